//! How far a gate's factors can be off: what comes in through g and u, and what the f32 function adds.
//!
//! # Propagation
//! With |g^ - g| <= e and h = a(g) b(u), the mean value theorem gives
//!
//! ```text
//! |a(g^) - a(g)|   <= min(L e, |a'(g)| e + H e^2)        L = max|a'|
//! |a'(g^) - a'(g)| <= min(H e, 2 L) + jump               H = max|a''|
//! ```
//!
//! | gate | L | H | jump |
//! |---|---|---|---|
//! | swiglu | 1.0998394 | 1/2 | |
//! | geglu-tanh | 1.12900 | 0.79789 | |
//! | geglu-erf | 1.12891 | 0.79789 | |
//! | reglu | 1 | 0 | 1 where e reaches g = 0 |
//! | glu | 1/4 | 0.09623 | |
//! | swiglu-clamped | 1.0998394 | alpha/2 | L where e reaches g = limit; b' by 1 where it reaches |u| = limit |
//!
//! a of the clamped gate is silu(alpha g) / alpha below the limit, so its slope is silu'(alpha g).
//!
//! # Evaluation
//! `units` is the relative error of the f32 functions in units of u = 2^-24, at an argument v that is exact. Where v is
//! itself computed, with a relative error of r u (clamped: v = alpha g, r = 1; tanh: v = 2y(g), five operations and two
//! rounded constants, r = 8), sigma(v) moves relatively by at most |v| (1 - sigma(v)) r u:
//!
//! ```text
//! |a^ - a|   <= u (units + r |v| (1 - sigma)) |a|                                        a = g sigma(v)
//! |a'^ - a'| <= u ((units + r + r |v| (1 - sigma)) sigma + (units + r + r |v|) |g v'| sigma (1 - sigma))
//! ```
//!
//! The second is absolute, because a' has a root where relative error means nothing. For the erf form Phi(g) =
//! erfc(y)/2 with y = -g/sqrt 2 off by 2u; erfc moves relatively by at most (2 y^2 + 1) 2u = 2 (1 + g^2) u for g < 0
//! (from the Mills ratio), and by less than 1u for g >= 0; the density moves by g^2 u.
//!
//! Both are taken at g^, not g: arguments are widened by e.

use swiglu_core::Gate;

use crate::oracle::gate::{Factors, density, logistic, phi, tanh_argument};

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// The least subnormal of f32: what a result near 0 may be off by on top.
pub(super) const TINY: f64 = f32::from_bits(1) as f64;

/// max |silu'|, at 2.3994.
const SILU_SLOPE: f64 = 1.099_839_4;

/// How far each of [`Factors`] can be off.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spread {
    pub(super) a: f64,
    pub(super) a_slope: f64,
    pub(super) b: f64,
    pub(super) b_slope: f64,
}

/// L and H of the table above, the kinks aside.
fn constants(gate: Gate) -> (f64, f64) {
    match gate {
        Gate::Swiglu => (SILU_SLOPE, 0.5),
        Gate::GegluTanh => (1.129_0, 0.797_89),
        Gate::GegluErf => (1.128_91, 0.797_89),
        Gate::Reglu => (1.0, 0.0),
        Gate::Glu => (0.25, 0.096_23),
        Gate::SwigluClamped { alpha, .. } => (SILU_SLOPE, 0.5 * f64::from(alpha.abs())),
        other => panic!("no bounds for {other}"),
    }
}

/// What the evaluation adds to a product of sigma(v): the relative error of the value and the absolute one of the
/// slope, both in units of u. `low` is v at the left end of the error interval, `high` the larger |v| of both ends.
fn logistic_units(v: f64, low: f64, high: f64, chain: f64, r: f64, units: f64) -> (f64, f64) {
    let (s, rest) = (logistic(v), logistic(-v));
    let tail = r * high * logistic(-low);
    let slope = (units + r + tail) * s + (units + r + r * high) * chain.abs() * s * rest;
    (units + tail, slope)
}

/// The evaluation error of a, relative, and of a', absolute, in units of u.
fn evaluation(gate: Gate, g: f64, e: f64, units: f64) -> (f64, f64) {
    let widest = g.abs() + e;
    match gate {
        Gate::Reglu => (0.0, 0.0),
        Gate::Swiglu => logistic_units(g, g - e, widest, g, 0.0, units),
        Gate::Glu => {
            let (s, rest) = (logistic(g), logistic(-g));
            (units, units * s * rest)
        }
        Gate::GegluTanh => {
            let (v, slope) = tanh_argument(g);
            logistic_units(v, tanh_argument(g - e).0, tanh_argument(widest).0, g * slope, 8.0, units)
        }
        Gate::SwigluClamped { alpha, limit } => {
            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
            let ends = [alpha * (g - e).min(limit), alpha * (g + e).min(limit)];
            let v = alpha * g.min(limit);
            let high = ends[0].abs().max(ends[1].abs());
            logistic_units(v, ends[0].min(ends[1]), high, v, 1.0, units)
        }
        Gate::GegluErf => {
            let square = widest * widest;
            let left = if g - e < 0.0 { 2.0 * (1.0 + square) } else { 1.0 };
            let value = units + left;
            (value, value * phi(g) + (units + 2.0 * (1.0 + square)) * g.abs() * density(g))
        }
        other => panic!("no bounds for {other}"),
    }
}

/// How far the factors of a gate can be off when g and u are off by at most `e_g` and `e_u`.
pub(super) fn spread(
    gate: Gate,
    f: &Factors,
    (g, e_g): (f64, f64),
    (u, e_u): (f64, f64),
    units: f64,
) -> Spread {
    let (lipschitz, curvature) = constants(gate);
    let mut a = (lipschitz * e_g).min(f.a_slope.abs() * e_g + curvature * e_g * e_g);
    let mut a_slope = (curvature * e_g).min(2.0 * lipschitz);
    let (mut b, mut b_slope) = (e_u, 0.0);
    let (mut value_units, mut slope_units) = evaluation(gate, g, e_g, units);
    // Widening by e: the slope's own scale moves by at most 4 (1 + |alpha|) e.
    slope_units += 4.0 * (1.0 + 2.0 * curvature) * e_g * units;
    let reaches = |distance: f64, e: f64| e > 0.0 && distance.abs() <= e;
    match gate {
        Gate::Reglu => {
            a = if g + e_g < 0.0 { 0.0 } else { e_g };
            a_slope = if reaches(g, e_g) { 1.0 } else { 0.0 };
            (value_units, slope_units) = (0.0, 0.0);
        }
        Gate::SwigluClamped { limit, .. } => {
            let limit = f64::from(limit);
            if g - e_g > limit {
                (a, a_slope, slope_units) = (0.0, 0.0, 0.0);
            } else if reaches(g - limit, e_g) {
                // On either side of the limit: both one-sided estimates, and the jump.
                a = lipschitz * e_g;
                a_slope += lipschitz;
            }
            b = if u.abs() - e_u > limit { 0.0 } else { e_u };
            b += U * (f.b.abs() + b);
            if reaches(u.abs() - limit, e_u) {
                b_slope = 1.0;
            }
        }
        _ => {}
    }
    // Phi and its density may be subnormal, and rounded, before they are multiplied by g.
    let tiny = TINY * if gate == Gate::GegluErf { 2.0 + g.abs() + e_g } else { 2.0 };
    a += U * value_units * (f.a.abs() + a) + tiny;
    a_slope += U * slope_units + tiny;
    Spread { a, a_slope, b, b_slope }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::gate::factors;

    const CLAMPED: Gate = Gate::SwigluClamped { alpha: 1.702, limit: 7.0 };
    const SMOOTH: [Gate; 4] = [Gate::Swiglu, Gate::GegluTanh, Gate::GegluErf, Gate::Glu];

    #[test]
    fn the_constants_hold_and_are_tight() {
        for gate in SMOOTH {
            let (lipschitz, curvature) = constants(gate);
            let (mut slope, mut second) = (0.0f64, 0.0f64);
            for i in -200_000..200_000 {
                let (g, step) = (f64::from(i) * 1e-4, 1e-5);
                let at = |g| factors(gate, g, 1.0).a_slope;
                slope = slope.max(at(g).abs());
                second = second.max(((at(g + step) - at(g - step)) / (2.0 * step)).abs());
            }
            assert!(slope <= lipschitz && slope > 0.999 * lipschitz, "{gate}: max slope {slope}");
            assert!(
                second <= curvature + 1e-6 && second > 0.999 * curvature,
                "{gate}: max curvature {second}"
            );
        }
    }

    #[test]
    fn moving_the_arguments_stays_inside() {
        for gate in Gate::ALL {
            for i in -120..120 {
                for j in [-8.3, -7.01, -0.4, 1.7, 6.99, 9.0] {
                    let (g, u) = (f64::from(i) * 0.0837, j);
                    for e in [1e-9, 1e-3, 0.05, 0.9] {
                        let exact = factors(gate, g, u);
                        let s = spread(gate, &exact, (g, e), (u, e), 0.0);
                        for t in [-1.0, -0.5, 0.3, 1.0] {
                            let f = factors(gate, g + t * e, u - t * e);
                            let inside = (f.a - exact.a).abs() <= s.a + 1e-14
                                && (f.a_slope - exact.a_slope).abs() <= s.a_slope + 1e-14
                                && (f.b - exact.b).abs() <= s.b + 1e-14
                                && (f.b_slope - exact.b_slope).abs() <= s.b_slope;
                            assert!(inside, "{gate} at {g}, {u} moved by {e}: {s:?}");
                        }
                    }
                }
            }
        }
    }

    /// The f32 functions of core against the bound with an exact argument, on a fine grid.
    #[test]
    fn the_f32_gates_of_core_stay_inside() {
        for gate in Gate::ALL.into_iter().chain([Gate::SwigluClamped { alpha: 0.25, limit: 30.0 }]) {
            let mut worst = [0.0f64; 3];
            for i in -400_000..400_000 {
                let (g, u) = (i as f32 * 2.7e-4, 1.37f32);
                let exact = factors(gate, f64::from(g), f64::from(u));
                let s = spread(gate, &exact, (f64::from(g), 0.0), (f64::from(u), 0.0), 8.0);
                let (by_g, by_u) = gate.partials(g, u);
                let value = (f64::from(gate.value(g, u)) - exact.value()).abs();
                let bound = exact.b.abs() * s.a + exact.a.abs() * s.b + U * exact.value().abs() + 2.0 * TINY;
                let (exact_g, exact_u) = exact.partials();
                let slope_bound =
                    exact.b.abs() * s.a_slope + exact.a_slope.abs() * s.b + U * exact_g.abs() + 2.0 * TINY;
                let ratios = [
                    value / bound,
                    (f64::from(by_g) - exact_g).abs() / slope_bound,
                    (f64::from(by_u) - exact_u).abs() / (s.a * exact.b_slope + 2.0 * TINY),
                ];
                for (worst, ratio) in worst.iter_mut().zip(ratios) {
                    assert!(ratio <= 1.0, "{gate} at {g}: {ratios:?}");
                    *worst = worst.max(ratio);
                }
            }
            println!("{gate}: worst value, dh/dg, dh/du ratios {worst:.3?}");
        }
    }

    #[test]
    fn kinks_cost_only_where_the_error_reaches_them() {
        let at = |g: f64, e: f64| {
            spread(Gate::Reglu, &factors(Gate::Reglu, g, 1.0), (g, e), (1.0, 0.0), 8.0).a_slope
        };
        assert!(at(0.5, 0.1) < 0.01 && at(0.05, 0.1) >= 1.0 && at(0.0, 0.0) < 0.01, "reglu");
        let slope =
            |u: f64, e: f64| spread(CLAMPED, &factors(CLAMPED, 1.0, u), (1.0, 0.0), (u, e), 8.0).b_slope;
        assert!(slope(6.0, 0.5) == 0.0 && slope(6.9, 0.5) == 1.0 && slope(7.0, 0.0) == 0.0, "clamped");
    }
}
