//! silu and its derivative on every f32, against f64. Some minutes: run with `--release -- --ignored --nocapture`.

use rayon::prelude::*;
use swiglu_core::Gate;

/// Distance between neighbouring f32 around `v`; the least subnormal below the normal range.
fn ulp(v: f64) -> f64 {
    let exponent = v.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    exponent.exp2() * f64::from(f32::EPSILON)
}

/// silu and silu' in f64, with their limits.
fn exact(x: f64) -> (f64, f64, f64) {
    if x == f64::NEG_INFINITY {
        return (0.0, 0.0, 0.0);
    }
    // e^x (1 + e^x)^-1 keeps its relative accuracy on the left, where 1 / (1 + e^-x) overflows.
    let s = if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) };
    let rest = if x < 0.0 { 1.0 / (1.0 + x.exp()) } else { (-x).exp() / (1.0 + (-x).exp()) };
    let product = if x.is_infinite() { 0.0 } else { x * s * rest };
    (x * s, s + product, s + product.abs())
}

#[derive(Clone, Copy, Default)]
struct Worst {
    checked: u64,
    normal_ulp: (f64, f32),
    subnormal: (f64, f32),
    slope: (f64, f32),
}

fn larger(a: (f64, f32), b: (f64, f32)) -> (f64, f32) {
    if b.0 > a.0 { b } else { a }
}

impl Worst {
    fn merge(self, other: Self) -> Self {
        Self {
            checked: self.checked + other.checked,
            normal_ulp: larger(self.normal_ulp, other.normal_ulp),
            subnormal: larger(self.subnormal, other.subnormal),
            slope: larger(self.slope, other.slope),
        }
    }

    fn check(&mut self, x: f32) {
        let (silu, slope, scale) = exact(f64::from(x));
        let error = (f64::from(Gate::Swiglu.value(x, 1.0)) - silu).abs();
        // Beside infinity the limit is exact: a difference of two infinities is no number.
        let error = if x == f32::INFINITY { 0.0 } else { error };
        if silu.abs() >= f64::from(f32::MIN_POSITIVE) {
            self.normal_ulp = larger(self.normal_ulp, (error / ulp(silu), x));
        } else {
            self.subnormal = larger(self.subnormal, (error / f64::from(f32::from_bits(1)), x));
        }
        let least = f64::from(f32::from_bits(1));
        let unit = f64::from(f32::EPSILON) / 2.0 * scale;
        let error = (f64::from(Gate::Swiglu.partials(x, 1.0).0) - slope).abs();
        self.slope = larger(self.slope, ((error - least).max(0.0) / unit.max(least), x));
        self.checked += 1;
    }
}

fn over(bits: std::ops::RangeInclusive<u32>, step: u32) -> Worst {
    let blocks: Vec<u32> = (0..=u32::MAX >> 16).collect();
    let worst_of_block = |&block: &u32| {
        let mut worst = Worst::default();
        for low in (0..=0xffffu32).step_by(step as usize) {
            let pattern = (block << 16) | low;
            let x = f32::from_bits(pattern);
            if bits.contains(&pattern) && !x.is_nan() {
                worst.check(x);
            }
        }
        worst
    };
    blocks.par_iter().map(worst_of_block).reduce(Worst::default, Worst::merge)
}

fn judge(worst: Worst) {
    println!(
        "{} inputs: silu {:.3} ulp at {:e}, {:.3} least subnormals at {:e}; silu' {:.3} units at {:e}",
        worst.checked,
        worst.normal_ulp.0,
        worst.normal_ulp.1,
        worst.subnormal.0,
        worst.subnormal.1,
        worst.slope.0,
        worst.slope.1
    );
    assert!(worst.normal_ulp.0 <= 4.0, "silu: at most 4 ulp");
    assert!(worst.subnormal.0 <= 1.0, "silu: at most one least subnormal where the result is not normal");
    assert!(worst.slope.0 <= 8.0, "silu': at most 8 u (s + |x| s (1 - s)), and a least subnormal");
}

#[test]
#[ignore = "takes minutes: every f32"]
fn every_f32() {
    let worst = over(0..=u32::MAX, 1);
    // Every pattern but the 2 (2^23 - 1) NaNs.
    assert_eq!(worst.checked, (1 << 32) - 2 * ((1 << 23) - 1), "inputs");
    judge(worst);
}

#[test]
fn one_f32_in_997() {
    judge(over(0..=u32::MAX, 997));
}

#[test]
fn every_f32_where_silu_leaves_the_normal_range() {
    judge(over((-80.0f32).to_bits()..=(-110.0f32).to_bits(), 1));
}

#[test]
fn ends_and_zeros() {
    let silu = |x: f32| Gate::Swiglu.value(x, 1.0);
    let slope = |x: f32| Gate::Swiglu.partials(x, 1.0).0;
    assert_eq!(silu(f32::INFINITY), f32::INFINITY);
    assert_eq!(silu(f32::NEG_INFINITY).to_bits(), (-0.0f32).to_bits(), "the limit from below");
    assert_eq!(silu(0.0).to_bits(), 0.0f32.to_bits());
    assert_eq!(silu(-0.0).to_bits(), (-0.0f32).to_bits());
    assert_eq!(slope(f32::INFINITY), 1.0);
    assert_eq!(slope(f32::NEG_INFINITY), 0.0);
    assert!(silu(f32::NAN).is_nan() && slope(f32::NAN).is_nan(), "a NaN passes");
    for gate in Gate::ALL {
        assert!(
            gate.value(f32::NAN, 1.0).is_nan() && gate.value(1.0, f32::NAN).is_nan(),
            "{gate}: a NaN passes"
        );
        for g in [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN] {
            let (dg, du) = gate.partials(g, 1.0);
            assert!(!gate.value(g, 1.0).is_nan() && !dg.is_nan() && !du.is_nan(), "{gate} at {g}: {dg} {du}");
        }
    }
}
