//! Compares an output with the oracle, element by element.

use ndarray::Array2;
use swiglu_core::{Dtype, Element};

use crate::bounds::{Grade, largest};
use crate::config::Config;
use crate::oracle::Real;
use crate::report::{Failure, Report};

/// An output with what it should be and how far off it may be.
pub(crate) struct Expected {
    pub(crate) value: Real,
    pub(crate) hard: Real,
    pub(crate) watch: Real,
}

impl Expected {
    /// With both bounds from one formula.
    pub(crate) fn new(value: Real, bound: impl Fn(Grade, &Real) -> Real) -> Self {
        let (hard, watch) = (bound(Grade::Hard, &value), bound(Grade::Watch, &value));
        Self { value, hard, watch }
    }
}

/// How one element compares with one bound.
fn ratio(got: f64, exact: f64, bound: f64, largest: f64) -> f64 {
    if bound == f64::INFINITY {
        return 0.0;
    }
    if got.is_infinite() && got.signum() == exact.signum() && exact.abs() + bound > largest {
        return 0.0;
    }
    let error = (got - exact).abs();
    if error == 0.0 {
        0.0
    } else if error.is_nan() {
        f64::INFINITY
    } else {
        error / bound
    }
}

/// Every element of `got` against its bounds; `dtype` is what it was stored as.
pub(crate) fn judge<T: Element>(
    name: &str,
    got: &Array2<T>,
    expected: &Expected,
    dtype: Dtype,
    config: &Config,
    report: &mut Report,
) -> Result<(), Failure> {
    if got.dim() != expected.value.dim() {
        return Err(Failure::new(format!(
            "{name}: shape {:?}, expected {:?}",
            got.dim(),
            expected.value.dim()
        )));
    }
    let largest = largest(dtype);
    let mut here = (0.0f64, 0.0f64);
    for (at, got) in got.indexed_iter() {
        let (got, exact) = (f64::from(got.to_f32()), expected.value[at]);
        let (hard, watch) = (expected.hard[at], expected.watch[at] * config.watch_factor);
        report.elements += 1;
        report.unbound += u64::from(hard == f64::INFINITY);
        let ratios = (ratio(got, exact, hard, largest), ratio(got, exact, watch, largest));
        here = (here.0.max(ratios.0), here.1.max(ratios.1));
        let worst = ratios.0 > report.hard.ratio || ratios.1 > report.watch.ratio;
        if !worst {
            continue;
        }
        let place = format!("{name}[{}, {}]", at.0, at.1);
        let violated = [("HARD", ratios.0, hard), ("WATCH", ratios.1, watch)]
            .into_iter()
            .find(|(grade, ratio, _)| *ratio > 1.0 && (*grade == "HARD" || config.watch_fails));
        if let Some((grade, ratio, bound)) = violated {
            return Err(Failure::new(format!(
                "{place}: got {got:e}, expected {exact:e}: off by {:e}, {ratio:.3} times the {grade} bound {bound:e}",
                (got - exact).abs()
            )));
        }
        for (worst, ratio) in [(&mut report.hard, ratios.0), (&mut report.watch, ratios.1)] {
            if ratio > worst.ratio {
                (worst.ratio, worst.at, worst.case) = (ratio, place.clone(), None);
            }
        }
    }
    report.output(name, here);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_are_right_only_near_the_largest_number() {
        let most = largest(Dtype::F16);
        assert_eq!(ratio(f64::INFINITY, 65_530.0, 40.0, most), 0.0);
        assert_eq!(ratio(f64::INFINITY, 60_000.0, 40.0, most), f64::INFINITY);
        assert_eq!(ratio(f64::NEG_INFINITY, 65_530.0, 40.0, most), f64::INFINITY);
        assert!(ratio(65_504.0, 70_000.0, 40.0, most) > 1.0, "clamped instead of overflown");
    }

    #[test]
    fn nan_is_never_right_unless_nothing_is_known() {
        assert_eq!(ratio(f64::NAN, 1.0, 1e30, 1e38), f64::INFINITY);
        assert_eq!(ratio(f64::NAN, 1.0, f64::INFINITY, 1e38), 0.0);
    }

    #[test]
    fn a_bound_of_zero_wants_the_very_value() {
        assert_eq!(ratio(0.0, 0.0, 0.0, 1e38), 0.0);
        assert_eq!(ratio(1e-40, 0.0, 0.0, 1e38), f64::INFINITY);
    }
}
