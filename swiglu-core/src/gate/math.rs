//! The exponential and the logistic function in f32, accurate where the naive forms are not.
//!
//! Every function is branch-free (selects only) and uses no fused multiply-add, so a loop over it vectorises on each
//! ISA and gives the same bits on all of them.

/// Below this argument `sigma(v) * x` is zero for every finite f32 `x`: e^-174 is 2^-251, and 2^-251 * 2^128 is 2^-123,
/// still held exactly enough by the two-step scaling; further down the result is defined as a signed zero.
const LOWEST: f32 = -174.0;

/// `(1 + m) * 2^n`, with `m` in [-0.3, 0.42]: e^v for `v <= 0`.
///
/// The 1 is left out of `m` so that a product with e^v takes over an error of at most 0.42 times that of `m`, and is
/// not rounded to a whole `1 + m` first: silu just below the normal range owes its last half unit to this.
#[derive(Clone, Copy)]
struct Exponential {
    m: f32,
    n: i32,
}

impl Exponential {
    /// `factor * (1 + m)`: what is left to scale by `2^n`.
    #[inline(always)]
    fn times(self, factor: f32) -> f32 {
        factor + factor * self.m
    }

    /// e^v itself, or the smallest normal power of two where it is less: a summand of 1.
    #[inline(always)]
    fn beside_one(self) -> f32 {
        (1.0 + self.m) * power_of_two(self.n.max(-126))
    }
}

/// e^v for v <= 0 (NaN stays NaN in `m`; v below [`LOWEST`] counts as [`LOWEST`]).
///
/// Range reduction v = n ln 2 + r with ln 2 in two parts (Cody and Waite), then the degree-6 polynomial of Cephes'
/// expf on |r| <= ln(2)/2.
#[inline(always)]
fn exponential(v: f32) -> Exponential {
    // Adding 1.5 * 2^23 rounds to an integer, to nearest even, and leaves that integer in the low mantissa bits.
    const MAGIC: f32 = 12_582_912.0;
    // 15 bits of ln 2, so that n * LN2_HIGH is exact for |n| < 2^9; and the rest.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    let v = if v < LOWEST { LOWEST } else { v };
    let shifted = v * std::f32::consts::LOG2_E + MAGIC;
    let n = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let whole = shifted - MAGIC;
    let r = (v - whole * LN2_HIGH) - whole * LN2_LOW;
    let mut q = 1.987_569_1e-4;
    q = q * r + 1.398_199_9e-3;
    q = q * r + 8.333_452e-3;
    q = q * r + 4.166_579_6e-2;
    q = q * r + 1.666_666_5e-1;
    q = q * r + 5.0e-1;
    Exponential { m: r + (r * r) * q, n }
}

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `v * 2^n` for -252 <= n <= 127, rounded once: the first step stays normal, only the second can become subnormal.
#[inline(always)]
fn scale(v: f32, n: i32) -> f32 {
    let half = n >> 1;
    v * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `factor * e^v` for v <= 0, with subnormal results rounded once.
#[inline(always)]
pub(super) fn exp_negative(v: f32, factor: f32) -> f32 {
    let e = exponential(v);
    scale(e.times(factor), e.n)
}

/// The logistic function sigma(v) = 1 / (1 + e^-v), in pieces that keep its relative accuracy on both tails.
///
/// With t = e^-|v| and r = 1 / (1 + t): sigma is r on the right and t * r on the left, 1 - sigma the other way round.
#[derive(Clone, Copy)]
pub(super) struct Logistic {
    v: f32,
    e: Exponential,
    r: f32,
}

impl Logistic {
    const FINITE: f32 = 1e4;

    #[inline(always)]
    pub(super) fn new(v: f32) -> Self {
        let e = exponential(-v.abs());
        Self { v, e, r: 1.0 / (1.0 + e.beside_one()) }
    }

    /// `right` where v >= 0 and `t * left` where v < 0, scaled at the very end. A NaN v has made `r`, and so `right`,
    /// NaN.
    #[inline(always)]
    fn finish(self, right: f32, left: f32) -> f32 {
        let negative = self.v < 0.0;
        let p = if negative { self.e.times(left) } else { right };
        let n = if negative { self.e.n } else { 0 };
        scale(p, n)
    }

    /// x * sigma(v), for an `x` of the sign of `v` or none: the limit -0 where v is far to the left, even for x = -inf.
    #[inline(always)]
    pub(super) fn times(self, x: f32) -> f32 {
        // Scaled by 2^-251 even 1 becomes a zero, and keeps its sign through `Exponential::times`, where -0 would not.
        let x = if self.v < LOWEST { 1.0f32.copysign(x) } else { x };
        let xr = x * self.r;
        self.finish(xr, xr)
    }

    /// sigma(v).
    #[inline(always)]
    pub(super) fn value(self) -> f32 {
        self.finish(self.r, self.r)
    }

    /// sigma'(v) = sigma(v) * (1 - sigma(v)) = t * r^2 on both sides.
    #[inline(always)]
    pub(super) fn slope(self) -> f32 {
        let rr = self.r * self.r;
        scale(self.e.times(rr), self.e.n)
    }

    /// d(x sigma(v))/dx = sigma(v) + c * sigma'(v), where `c` is x * dv/dx.
    #[inline(always)]
    pub(super) fn slope_of_product(self, c: f32) -> f32 {
        // Only an infinite c, which would give NaN, needs the clamp: with v above LOWEST, |c| is at most 3 |v|, that of
        // the cubic argument of GELU.
        let c = c.clamp(-Self::FINITE, Self::FINITE);
        let t = self.e.beside_one();
        let right = self.r * (1.0 + c * t * self.r);
        let left = self.r * (1.0 + c * self.r);
        self.finish(right, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_close_everywhere() {
        let mut worst = 0.0f64;
        for i in 0..=2_000_000 {
            let v = -(i as f32) * 5e-5;
            let exact = f64::from(v).exp();
            let ulp = f64::from(f32::from_bits(((exact as f32).to_bits()).max(0x0080_0000)).next_up())
                - f64::from(f32::from_bits(((exact as f32).to_bits()).max(0x0080_0000)));
            worst = worst.max((f64::from(exp_negative(v, 1.0)) - exact).abs() / ulp);
        }
        assert!(worst < 1.5, "{worst} ulp");
    }

    #[test]
    fn powers_of_two_are_exact() {
        for n in -126..=127 {
            assert_eq!(f64::from(power_of_two(n)), 2f64.powi(n), "2^{n}");
        }
        assert_eq!(scale(1.0, -149), f32::from_bits(1));
        assert_eq!(scale(1.5, -252), 0.0);
    }
}
