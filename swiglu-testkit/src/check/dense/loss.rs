//! Softmax cross-entropy.
//!
//! Bounds: a row's loss is log(sum of C exponentials) - (its label's logit - the largest). Each exponential is off by
//! at most (|l - max| + 4) u, its sum by gamma_C more, the logarithm and the subtraction by a few u of their size.

use ndarray::Array2;
use swiglu_core::{Dense, Dtype, Element, Error, LossTargets};

use super::Bench;
use crate::bits::Value;
use crate::bounds::tiny;
use crate::data::{Draws, real};
use crate::guarded::Guarded;
use crate::judge::{Expected, judge};
use crate::oracle::Real;
use crate::report::{Failure, Report, ensure};

/// The reference: mean loss, hits, gradient, and what the two numbers are off by in f32.
struct Reference {
    loss: f64,
    loss_bound: f64,
    correct: u32,
    dlogits: Real,
    dlogits_bound: Real,
}

fn reference(logits: &Real, labels: &[u32], dtype: Dtype) -> Reference {
    let u = Dtype::F32.unit_roundoff();
    let (batch, classes) = logits.dim();
    let mut r = Reference {
        loss: 0.0,
        loss_bound: 0.0,
        correct: 0,
        dlogits: Real::zeros(logits.dim()),
        dlogits_bound: Real::zeros(logits.dim()),
    };
    for (i, row) in logits.rows().into_iter().enumerate() {
        let label = labels[i] as usize;
        let most = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
        let least = row.iter().fold(f64::INFINITY, |m, v| m.min(*v));
        let sum: f64 = row.iter().map(|v| (v - most).exp()).sum();
        let loss = sum.ln() - (row[label] - most);
        // Of each exponential, their sum, and a quotient or logarithm of it.
        let relative = u * (classes as f64 + (most - least) + 12.0);
        r.loss += loss / batch as f64;
        r.loss_bound += (relative + 4.0 * u * (loss.abs() + sum.ln() + most - row[label])) / batch as f64;
        r.correct += u32::from(row.iter().position(|v| *v == most) == Some(label));
        for (j, v) in row.iter().enumerate() {
            let p = (v - most).exp() / sum;
            let d = (p - f64::from(u8::from(j == label))) / batch as f64;
            r.dlogits[[i, j]] = d;
            let bound = (2.0 * relative * p + 2.0 * u) / batch as f64;
            r.dlogits_bound[[i, j]] = bound + dtype.unit_roundoff() * (d.abs() + bound) + tiny(dtype);
        }
    }
    r.loss_bound += u * (batch as f64 + 2.0) * r.loss;
    r
}

pub(super) fn cross_entropy<T: Value, B: Dense<T>>(
    bench: &Bench<'_, B>,
    report: &mut Report,
) -> Result<(), Failure> {
    let backend = bench.backend;
    for (index, (batch, classes)) in
        [(1, 1), (3, 2), (5, 10), (64, 10), (129, 33), (7, 257), (300, 10)].into_iter().enumerate()
    {
        let scale = [1.0f32, 6.0, 0.0][index % 3];
        let logits: Array2<T> =
            bench.normal(20 + index as u64, (batch, classes)).mapv(|v: T| T::from_f32(scale * v.to_f32()));
        let mut draws = Draws::new(bench.seed, 7000 + index as u64);
        let labels = Array2::from_shape_simple_fn((batch, 1), || draws.below(classes) as u32);
        let placed = Guarded::new(backend, "logits", &logits, 2)?;
        let placed_labels = Guarded::new(backend, "labels", &labels, 1)?;
        for all in [true, false] {
            let mut loss = Guarded::<f32, _>::unwritten(backend, "loss", (1, 1), 2)?;
            let mut correct = Guarded::<u32, _>::unwritten(backend, "correct", (1, 1), 2)?;
            let mut dlogits = Guarded::<T, _>::unwritten(backend, "dlogits", (batch, classes), 1)?;
            let targets = LossTargets {
                loss: loss.view_mut(),
                correct: all.then(|| correct.view_mut()),
                dlogits: all.then(|| dlogits.view_mut()),
            };
            backend.cross_entropy(placed.view(), placed_labels.view(), targets)?;
            placed.unchanged(backend)?;
            placed_labels.unchanged(backend)?;
            let what = format!("{} cross-entropy of ({batch}, {classes})", T::DTYPE);
            let labels: Vec<u32> = labels.iter().copied().collect();
            let r = reference(&real(&logits), &labels, T::DTYPE);
            let one = |v: f64| Real::from_elem((1, 1), v);
            let expected = Expected::new(one(r.loss), |_, _| one(r.loss_bound));
            let name = format!("{what}: loss");
            judge(&name, &loss.read(backend)?, &expected, Dtype::F32, bench.config, report)?;
            if all {
                let got = correct.read(backend)?[[0, 0]];
                ensure(got == r.correct, || format!("{what}: {got} correct, expected {}", r.correct))?;
                let expected = Expected::new(r.dlogits.clone(), |_, _| r.dlogits_bound.clone());
                let name = format!("{what}: dlogits");
                judge(&name, &dlogits.read(backend)?, &expected, T::DTYPE, bench.config, report)?;
            } else {
                correct.unchanged(backend)?;
                dlogits.unchanged(backend)?;
            }
        }
    }
    bad_label::<T, B>(bench)?;
    not_a_number::<T, B>(bench)
}

/// Rows with a NaN have no largest logit: a model that diverged gets nothing right.
fn not_a_number<T: Value, B: Dense<T>>(bench: &Bench<'_, B>) -> Result<(), Failure> {
    let backend = bench.backend;
    let nan = f32::NAN;
    let rows = ndarray::array![[nan, nan, nan], [1.0, nan, 0.5], [nan, 2.0, 1.0], [3.0, 1.0, 2.0]];
    let logits = Guarded::new(backend, "logits", &rows.mapv(T::from_f32), 0)?;
    // The largest of those that compare, everywhere.
    let labels = Guarded::new(backend, "labels", &ndarray::array![[0u32], [0], [1], [0]], 0)?;
    let mut loss = Guarded::<f32, _>::unwritten(backend, "loss", (1, 1), 0)?;
    let mut correct = Guarded::<u32, _>::unwritten(backend, "correct", (1, 1), 0)?;
    let targets = LossTargets { loss: loss.view_mut(), correct: Some(correct.view_mut()), dlogits: None };
    backend.cross_entropy(logits.view(), labels.view(), targets)?;
    let (loss, hits) = (loss.read(backend)?[[0, 0]].to_f32(), correct.read(backend)?[[0, 0]]);
    ensure(loss.is_nan() && hits == 1, || {
        format!("rows with a NaN gave a loss of {loss} and {hits} hits for 1")
    })
}

/// A label past the last class is an error that names it, or the loss is NaN.
fn bad_label<T: Value, B: Dense<T>>(bench: &Bench<'_, B>) -> Result<(), Failure> {
    let backend = bench.backend;
    let logits = Guarded::new(backend, "logits", &bench.normal::<T>(30, (4, 3)), 0)?;
    for bad in [3, u32::MAX] {
        let labels =
            Array2::from_shape_vec((4, 1), vec![0, 2, bad, 1]).map_err(|e| Failure::new(e.to_string()))?;
        let labels = Guarded::new(backend, "labels", &labels, 0)?;
        let mut loss = Guarded::<f32, _>::unwritten(backend, "loss", (1, 1), 0)?;
        let targets = LossTargets { loss: loss.view_mut(), correct: None, dlogits: None };
        match backend.cross_entropy(logits.view(), labels.view(), targets) {
            Err(Error::Label { row: 2, label, classes: 3 }) if label == bad => loss.unchanged(backend)?,
            Err(error) => return Err(Failure::new(format!("label {bad} of 3 classes gave {error:?}"))),
            Ok(()) => {
                let loss = loss.read(backend)?[[0, 0]].to_f32();
                ensure(loss.is_nan(), || format!("label {bad} of 3 classes gave a loss of {loss}"))?;
            }
        }
    }
    Ok(())
}
