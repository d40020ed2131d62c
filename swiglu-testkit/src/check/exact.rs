//! Data on which every sum is exact in f32, in any order: what comes out must be the very value, rounded once.

use ndarray::Array2;
use swiglu_core::{Element, Gate, SwiGLU};

use super::differential::{Olds, Pre, run_both, run_forward};
use crate::bits::Value;
use crate::bounds::{Model, Rounding};
use crate::case::{Case, Data};
use crate::config::Config;
use crate::data::{Inputs, real};
use crate::judge::judge;
use crate::oracle::{Operands, PreActivations, Real, absolute, cotangents, product, transposed};
use crate::part::{beside, column_halves};
use crate::report::{Failure, Report};

/// What f32 can hold exactly: integers below this, times any power of two.
const INTEGERS: f64 = (1u64 << 24) as f64;

/// The largest power of two that divides every element; 1 when all are 0.
fn quantum(a: &Real) -> f64 {
    let of = |v: f64| {
        let zeros = (v.to_bits() | (1 << 52)).trailing_zeros().min(52) as i32;
        let exponent = ((v.to_bits() >> 52) & 0x7ff) as i32 - 1023;
        2f64.powi(exponent - 52 + zeros)
    };
    let least = a.iter().filter(|v| **v != 0.0).map(|v| of(*v)).fold(f64::INFINITY, f64::min);
    if least.is_finite() { least } else { 1.0 }
}

/// One rounding of an exact value to the type of its destination.
fn once<T: Element>(value: f64, wide: bool) -> f64 {
    let value = value as f32;
    f64::from(if wide { value } else { T::from_f32(value).to_f32() })
}

/// Every element is one of the values that `allowed` gives for its place. The sign of a zero does not count: it depends
/// on whether a sum starts from 0.
fn same<T: Element>(
    name: &str,
    got: &Array2<T>,
    allowed: impl Fn((usize, usize)) -> (f64, f64),
    report: &mut Report,
) -> Result<(), Failure> {
    report.output(&format!("exact {name}"), (0.0, 0.0));
    for (at, got) in got.indexed_iter() {
        let (got, (one, other)) = (f64::from(got.to_f32()), allowed(at));
        report.elements += 1;
        if got != one && got != other {
            let off = (got - one).abs();
            return Err(Failure::new(format!(
                "{name}[{}, {}]: got {got:e}, exactly {one:e}: off by {off:e}",
                at.0, at.1
            )));
        }
    }
    Ok(())
}

/// The saved pre-activations are the exact values rounded once; with the bias added after a rounding where the backend
/// does so.
fn check_saved<T: Value>(
    (g, u): &(Array2<T>, Array2<T>),
    pre: &PreActivations,
    rounding: Rounding,
    report: &mut Report,
) -> Result<(), Failure> {
    for (name, got, exact) in [("saved g", g, &pre.gate), ("saved u", u, &pre.up)] {
        let allowed = |at| {
            let (value, unbiased) = (exact.value[at], exact.unbiased[at]);
            let twice = once::<T>(once::<T>(unbiased, false) + (value - unbiased), false);
            let value = once::<T>(value, false);
            (value, if rounding == Rounding::Unfused { twice } else { value })
        };
        same(name, got, allowed, report)?;
    }
    Ok(())
}

/// A gradient of integers: the sum, the old value, and whether f32 holds every partial sum.
struct ExactSum {
    value: Real,
    exact: bool,
}

/// a . b + old, if every partial sum in any order is exact.
fn exact_sum(a: &Real, b: &Real, old: Option<&Real>) -> ExactSum {
    let (mut value, mut magnitude) = (product(a, b), product(&absolute(a), &absolute(b)));
    let mut unit = quantum(a) * quantum(b);
    if let Some(old) = old {
        value += old;
        magnitude += &absolute(old);
        unit = unit.min(quantum(old));
    }
    let most = magnitude.iter().fold(0.0, |most: f64, m| most.max(*m));
    ExactSum { value, exact: most < INTEGERS * unit }
}

/// dG and dU of reglu on integers are integers. Rounding them to the element type changes nothing, or they are skipped.
fn check_reglu_gradients<T: Value, B: SwiGLU<T>>(
    backend: &B,
    case: &Case,
    config: &Config,
    report: &mut Report,
) -> Result<(), Failure> {
    // Products of three sums, of dy too, would leave f32's integers.
    let case = &Case { gate: Gate::Reglu, down: None, ..*case };
    let inputs = Inputs::<T>::draw(case);
    let (operands, olds) = (inputs.operands(case), Olds::<T>::draw(case));
    let (forward, backward) = run_both(backend, case, &inputs, &olds)?;
    let pre = operands.pre_activations();
    let (g, u) = match &forward.pre {
        Some((g, u)) => (real(g), real(u)),
        None if config.rounding(case.route) == Rounding::Unfused || config.rounds_recomputed => {
            // What backward computed again may have been rounded: only what rounding leaves alone is known.
            let kept = |v: &Real| v.iter().all(|v| once::<T>(*v, false) == *v);
            if !(kept(&pre.gate.value) && kept(&pre.up.value)) {
                return Ok(());
            }
            (pre.gate.value, pre.up.value)
        }
        None => (pre.gate.value, pre.up.value),
    };
    let d = cotangents(Gate::Reglu, &g, &u, &real(&inputs.dz));
    if !d.gate.iter().chain(&d.up).all(|v| once::<T>(*v, false) == *v) {
        return Ok(());
    }
    let unfused = config.rounding(case.route) == Rounding::Unfused;
    if let (Some(dx), Some(how)) = (&backward.dx, case.dx) {
        let old = how.add.then(|| real(&olds.dx));
        let weights = beside(&operands.gate_weights, &operands.up_weights);
        let sum = exact_sum(&beside(&d.gate, &d.up), &transposed(&weights), old.as_ref());
        let first =
            product(&d.gate, &transposed(&operands.gate_weights)) + old.unwrap_or(Real::zeros(dx.dim()));
        if sum.exact {
            let allowed = |at| {
                let value = once::<T>(sum.value[at], false);
                let twice = once::<T>(once::<T>(first[at], false) + (sum.value[at] - first[at]), false);
                (value, if unfused { twice } else { value })
            };
            same("dx", dx, allowed, report)?;
        }
    }
    let half = |name: &str,
                x: &Real,
                (got, d, old): (&Array2<f32>, &Real, Option<Real>),
                wide,
                report: &mut Report| {
        let sum = exact_sum(&transposed(x), d, old.as_ref());
        if !sum.exact {
            return Ok(());
        }
        let value = |at| once::<T>(sum.value[at], wide);
        same(name, got, |at| (value(at), value(at)), report)
    };
    if let (Some((gate, up)), Some(how)) = (&backward.dwf, case.dwf) {
        let old = |old: &Array2<T>| how.add.then(|| real(old));
        half("dwf gate", &operands.x, (gate, &d.gate, old(&olds.dwf.0)), how.wide, report)?;
        half("dwf up", &operands.x, (up, &d.up, old(&olds.dwf.1)), how.wide, report)?;
    }
    if let (Some(dbias), Some(how)) = (&backward.dbias, case.dbias) {
        let ones = Real::ones((case.batch, 1));
        let ((gate, up), olds) = (column_halves(dbias), column_halves(&olds.dbias));
        let old = |old: &Array2<T>| how.add.then(|| real(old));
        half("dbias gate", &ones, (&gate, &d.gate, old(&olds.0)), how.wide, report)?;
        half("dbias up", &ones, (&up, &d.up, old(&olds.1)), how.wide, report)?;
    }
    Ok(())
}

/// Runs a case of [`Data::Integers`] and expects exact results where results are exact: saved pre-activations bit for
/// bit, z within the error of the gate function alone, and, with reglu in place of the case's gate, every gradient bit
/// for bit.
///
/// # Errors
/// A [`Failure`] that names the first output and element that is wrong.
pub fn exact_integers<T: Value, B: SwiGLU<T>>(
    backend: &B,
    case: &Case,
    config: &Config,
) -> Result<Report, Failure> {
    let case = &Case { data: Data::Integers, ..*case };
    let mut report = Report::default();
    let result = (|| {
        let forward = case.forward_only();
        let inputs = Inputs::<T>::draw(&forward);
        let operands: Operands = inputs.operands(&forward);
        let outputs = run_forward(backend, &forward, &inputs)?;
        let pre = operands.pre_activations();
        let rounding = config.rounding(case.route);
        if let Some(saved) = &outputs.pre {
            check_saved(saved, &pre, rounding, &mut report)?;
        }
        // No error of summation: what is left is the gate's, and roundings in between.
        let model = Model { accumulator: 0.0, ..config.model(case) };
        let expected = Pre::computed(&model, &operands, &pre).z(&model, &operands);
        judge("z", &outputs.z, &expected, case.dtype, config, &mut report)?;
        if case.is_backward() {
            check_reglu_gradients::<T, B>(backend, case, config, &mut report)?;
        }
        Ok(())
    })();
    result.map(|()| report.of_case(case)).map_err(|failure: Failure| failure.of_case(case))
}

#[cfg(test)]
mod tests {
    use swiglu_core::Dtype;

    use super::*;
    use crate::oracle::weight_gradient;

    #[test]
    fn quanta_are_the_lowest_bits() {
        let of = |v: f64| quantum(&Real::from_elem((1, 1), v));
        assert_eq!(
            (of(1.0), of(-6.0), of(0.75), of(0.0), of(3.0 * 2f64.powi(-40))),
            (1.0, 2.0, 0.25, 1.0, 2f64.powi(-40))
        );
        assert_eq!(quantum(&ndarray::array![[8.0, 0.0, -0.5]]), 0.5);
    }

    #[test]
    fn sums_past_24_bits_are_not_called_exact() {
        let (a, b) = (ndarray::array![[1.0, INTEGERS]], ndarray::array![[1.0], [1.0]]);
        assert!(!exact_sum(&a, &b, None).exact, "2^24 + 1");
        assert!(!exact_sum(&a.mapv(|v| v / 4.0), &b, None).exact, "scaling changes nothing");
        assert!(exact_sum(&ndarray::array![[1.0, 4096.0]], &b, None).exact, "13 bits");
    }

    /// The oracle's own sums on integer data do not depend on the order: they are exact.
    #[test]
    fn the_oracle_is_exact_on_integers() {
        for seed in 0..20 {
            let case = Case { data: Data::Integers, seed, bias: true, ..Case::new(5, 129, 7, Dtype::F32) };
            let inputs = Inputs::<f32>::draw(&case);
            let operands = inputs.operands(&case);
            let pre = operands.pre_activations();
            for i in 0..5 {
                for j in 0..7 {
                    let bias = inputs.bias.as_ref().map_or(0.0, |(gate, _)| gate[[0, j]]);
                    let (mut up, mut down) = (bias, 0.0f32);
                    for k in 0..129 {
                        up += inputs.x[[i, k]] * inputs.gate_weights[[k, j]];
                        down += inputs.x[[i, 128 - k]] * inputs.gate_weights[[128 - k, j]];
                    }
                    let exact = pre.gate.value[[i, j]];
                    assert_eq!((f64::from(up), f64::from(down + bias)), (exact, exact), "{case} {i} {j}");
                }
            }
            assert!(pre.gate.value.iter().all(|g| g.abs() < 32.0), "pre-activations are where gates bend");
            let d = cotangents(Gate::Reglu, &pre.gate.value, &pre.up.value, &real(&inputs.dz));
            assert!(exact_sum(&transposed(&operands.x), &d.gate, None).exact, "gradients too");
            assert_eq!(
                exact_sum(&transposed(&operands.x), &d.gate, None).value,
                weight_gradient(&operands.x, &d.gate)
            );
        }
    }
}
