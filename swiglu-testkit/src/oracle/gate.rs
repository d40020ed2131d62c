//! The gate functions in f64, written from their definitions and apart from every kernel.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use swiglu_core::Gate;

/// h(g, u) = a(g) * b(u) at one point: both factors and their slopes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// a(g).
    pub a: f64,
    /// a'(g); at a kink, the value that [`Gate`] defines.
    pub a_slope: f64,
    /// b(u): u itself, or the clamped u plus 1.
    pub b: f64,
    /// b'(u).
    pub b_slope: f64,
}

impl Factors {
    /// h(g, u).
    pub fn value(self) -> f64 {
        self.a * self.b
    }

    /// dh/dg and dh/du.
    pub fn partials(self) -> (f64, f64) {
        (self.a_slope * self.b, self.a * self.b_slope)
    }
}

/// 1 / (1 + e^-v), relatively accurate on the left tail too; the right tail is `logistic(-v)` away from 1.
pub fn logistic(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

/// 2y(g) and its slope, where gelu(g) = g * (1 + tanh y) / 2 = g * sigma(2y) and y = sqrt(2/pi) (g + 0.044715 g^3).
pub fn tanh_argument(g: f64) -> (f64, f64) {
    let scale = 2.0 * (2.0 / PI).sqrt();
    (scale * (g + 0.044715 * g.powi(3)), scale * (1.0 + 3.0 * 0.044715 * g * g))
}

/// The standard normal distribution function.
pub fn phi(g: f64) -> f64 {
    0.5 * libm::erfc(-g * FRAC_1_SQRT_2)
}

/// Its density.
pub fn density(g: f64) -> f64 {
    (-0.5 * g * g).exp() / (2.0 * PI).sqrt()
}

/// g * sigma(v) and its slope, for v with dv/dg = `slope`.
fn weighted_logistic(g: f64, v: f64, slope: f64) -> (f64, f64) {
    let (s, rest) = (logistic(v), logistic(-v));
    (g * s, s + g * slope * s * rest)
}

/// The factors of a gate at (g, u).
///
/// # Panics
/// On a gate that has no oracle yet.
pub fn factors(gate: Gate, g: f64, u: f64) -> Factors {
    let ((a, a_slope), (b, b_slope)) = match gate {
        Gate::Swiglu => (weighted_logistic(g, g, 1.0), (u, 1.0)),
        Gate::GegluTanh => {
            let (v, slope) = tanh_argument(g);
            (weighted_logistic(g, v, slope), (u, 1.0))
        }
        Gate::GegluErf => ((g * phi(g), phi(g) + g * density(g)), (u, 1.0)),
        Gate::Reglu => (if g > 0.0 { (g, 1.0) } else { (0.0, 0.0) }, (u, 1.0)),
        Gate::Glu => ((logistic(g), logistic(g) * logistic(-g)), (u, 1.0)),
        Gate::SwigluClamped { alpha, limit } => {
            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
            let (a, slope) = weighted_logistic(g.min(limit), alpha * g.min(limit), alpha);
            let up = u.clamp(-limit, limit) + 1.0;
            ((a, if g > limit { 0.0 } else { slope }), (up, if u.abs() > limit { 0.0 } else { 1.0 }))
        }
        other => panic!("the oracle does not know {other}"),
    };
    Factors { a, a_slope, b, b_slope }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points away from 0 and from the limit 7, where slopes jump.
    fn points() -> impl Iterator<Item = (f64, f64)> {
        (-95..95).flat_map(|i| {
            [-9.3, -6.6, -1.25, 0.35, 2.6, 8.7].into_iter().map(move |u| (0.1 * f64::from(i) + 0.05, u))
        })
    }

    #[test]
    fn partials_are_central_differences() {
        let eps = 1e-6;
        for gate in Gate::ALL {
            for (g, u) in points() {
                let h = |g, u| factors(gate, g, u).value();
                let (dg, du) = factors(gate, g, u).partials();
                let by_g = (h(g + eps, u) - h(g - eps, u)) / (2.0 * eps);
                let by_u = (h(g, u + eps) - h(g, u - eps)) / (2.0 * eps);
                assert!((dg - by_g).abs() <= 1e-7 * (1.0 + dg.abs()), "{gate} at {g}, {u}: {dg} {by_g}");
                assert!((du - by_u).abs() <= 1e-7 * (1.0 + du.abs()), "{gate} at {g}, {u}: {du} {by_u}");
            }
        }
    }

    #[test]
    fn the_f32_gates_of_core_are_near() {
        for gate in Gate::ALL {
            for (g, u) in points() {
                let (g, u) = (g as f32, u as f32);
                let exact = factors(gate, f64::from(g), f64::from(u));
                let error = (f64::from(gate.value(g, u)) - exact.value()).abs();
                assert!(error <= 1e-4 * exact.value().abs() + 1e-30, "{gate} at {g}, {u}: {error}");
            }
        }
    }

    #[test]
    fn tails_are_zero_not_nan() {
        for gate in Gate::ALL {
            for g in [-1e30, -800.0, 800.0, 1e30] {
                let f = factors(gate, g, 2.0);
                assert!(f.a.is_finite() && f.a_slope.is_finite(), "{gate} at {g}: {f:?}");
            }
        }
    }
}
