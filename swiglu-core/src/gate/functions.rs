//! The gate functions, one type each.

use super::GateFunction;
use super::math::{Logistic, exp_negative};

/// silu(g) * u.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swiglu;

impl GateFunction for Swiglu {
    #[inline(always)]
    fn value(self, g: f32, u: f32) -> f32 {
        Logistic::new(g).times(g) * u
    }

    #[inline(always)]
    fn partials(self, g: f32, u: f32) -> (f32, f32) {
        let s = Logistic::new(g);
        (u * s.slope_of_product(g), s.times(g))
    }
}

/// sigmoid(g) * u.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Glu;

impl GateFunction for Glu {
    #[inline(always)]
    fn value(self, g: f32, u: f32) -> f32 {
        Logistic::new(g).value() * u
    }

    #[inline(always)]
    fn partials(self, g: f32, u: f32) -> (f32, f32) {
        let s = Logistic::new(g);
        (u * s.slope(), s.value())
    }
}

/// relu(g) * u.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reglu;

impl GateFunction for Reglu {
    #[inline(always)]
    fn value(self, g: f32, u: f32) -> f32 {
        // Written so that a NaN passes.
        (if g <= 0.0 { 0.0 } else { g }) * u
    }

    #[inline(always)]
    fn partials(self, g: f32, u: f32) -> (f32, f32) {
        let slope = if g <= 0.0 { 0.0 } else { 1.0 };
        let slope = if g.is_nan() { g } else { slope };
        (u * slope, if g <= 0.0 { 0.0 } else { g })
    }
}

/// gelu(g) * u, tanh form: (1 + tanh(y)) / 2 = sigmoid(2y) with y = sqrt(2/pi) (g + 0.044715 g^3).
#[derive(Clone, Copy, Debug)]
pub(crate) struct GegluTanh;

impl GegluTanh {
    /// 2 sqrt(2/pi).
    const SLOPE: f32 = 1.595_769_2;
    const CUBIC: f32 = 0.044_715;

    /// 2y and g * d(2y)/dg.
    #[inline(always)]
    fn argument(g: f32) -> (f32, f32) {
        let square = g * g;
        let scaled = Self::SLOPE * g;
        (scaled * (1.0 + Self::CUBIC * square), scaled * (1.0 + 3.0 * Self::CUBIC * square))
    }
}

impl GateFunction for GegluTanh {
    #[inline(always)]
    fn value(self, g: f32, u: f32) -> f32 {
        Logistic::new(Self::argument(g).0).times(g) * u
    }

    #[inline(always)]
    fn partials(self, g: f32, u: f32) -> (f32, f32) {
        let (v, c) = Self::argument(g);
        let s = Logistic::new(v);
        (u * s.slope_of_product(c), s.times(g))
    }
}

/// gelu(g) * u, exact: g * Phi(g) with Phi(g) = erfc(-g / sqrt 2) / 2. The complementary error function is `libm`'s.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GegluErf;

impl GegluErf {
    /// Past these ends Phi is 0 or 1 and its density 0 in f32, and products with g need no infinity.
    const END: f32 = 174.0;
    const INV_SQRT_2: f32 = std::f32::consts::FRAC_1_SQRT_2;
    /// 1 / sqrt(2 pi).
    const DENSITY: f32 = 0.398_942_3;

    #[inline(always)]
    fn clamp_left(g: f32) -> f32 {
        if g < -Self::END { -Self::END } else { g }
    }

    /// Phi(g).
    #[inline(always)]
    fn phi(g: f32) -> f32 {
        0.5 * libm::erfcf(-g * Self::INV_SQRT_2)
    }
}

impl GateFunction for GegluErf {
    #[inline(always)]
    fn value(self, g: f32, u: f32) -> f32 {
        (Self::clamp_left(g) * Self::phi(g)) * u
    }

    #[inline(always)]
    fn partials(self, g: f32, u: f32) -> (f32, f32) {
        let phi = Self::phi(g);
        let c = Self::clamp_left(g);
        let c = if c > Self::END { Self::END } else { c };
        let slope = phi + exp_negative(-0.5 * c * c, c * Self::DENSITY);
        (u * slope, Self::clamp_left(g) * phi)
    }
}

/// The clamped variant of gpt-oss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SwigluClamped {
    /// Slope of the sigmoid.
    pub(crate) alpha: f32,
    /// Where the pre-activations are cut off.
    pub(crate) limit: f32,
}

impl SwigluClamped {
    #[inline(always)]
    fn gate(self, g: f32) -> f32 {
        if g > self.limit { self.limit } else { g }
    }

    #[inline(always)]
    fn up(self, u: f32) -> f32 {
        let u = if u > self.limit { self.limit } else { u };
        if u < -self.limit { -self.limit } else { u }
    }
}

impl GateFunction for SwigluClamped {
    #[inline(always)]
    fn value(self, g: f32, u: f32) -> f32 {
        let g = self.gate(g);
        Logistic::new(self.alpha * g).times(g) * (self.up(u) + 1.0)
    }

    #[inline(always)]
    fn partials(self, g: f32, u: f32) -> (f32, f32) {
        let gate = self.gate(g);
        let v = self.alpha * gate;
        let s = Logistic::new(v);
        let dg = (self.up(u) + 1.0) * s.slope_of_product(v);
        let du = s.times(gate);
        (if g > self.limit { 0.0 } else { dg }, if u.abs() > self.limit { 0.0 } else { du })
    }
}
