//! What a training step needs around the op, as plain loops.

use ndarray::{Array2, ArrayView1, Axis};
use swiglu_core::ops::{
    AdamWStep, AddBias, ColumnSums, CrossEntropy, GateBackward, GateForward, GatherRows, MatMul,
};
use swiglu_core::{Checked, Dense, Element, Error, Gradient, Host, Op, Result};

use super::arithmetic::{Product, Sum};
use super::bug::Bug;
use super::read::{widen, widen_op};
use super::{Naive, Pre};

/// The largest value, and the first place where it is found (the last, with the bug).
fn largest(row: ArrayView1<'_, f32>, last: bool) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (j, &value) in row.iter().enumerate() {
        if value > best.1 || (last && value == best.1) {
            best = (j, value);
        }
    }
    best
}

impl Naive {
    /// Which class each label names, all of them looked at before anything is written.
    fn classes(&self, labels: ArrayView1<'_, u32>, classes: usize) -> Result<Vec<usize>> {
        let class = |(row, &label): (usize, &u32)| match usize::try_from(label) {
            Ok(class) if class < classes => Ok(class),
            _ if classes > 0 && self.is(Bug::LabelClamped) => Ok(classes - 1),
            _ => Err(Error::Label { row, label, classes }),
        };
        labels.iter().enumerate().map(class).collect()
    }
}

impl<T: Element> Dense<T> for Naive {
    fn run_matmul(&self, call: Checked<MatMul<'_, T, Host>>) -> Result<()> {
        let MatMul { a, op_a, b, op_b, c } = call.into_inner();
        let square = a.rows() == a.cols();
        let op_a = if square && self.is(Bug::SquareIgnoresTranspose) { Op::N } else { op_a };
        let right = match op_b {
            Op::N => Op::T,
            Op::T => Op::N,
        };
        let (left, right) = (widen_op(a, op_a), widen_op(b, right));
        let values = self.product(&left, &right, |_, _| Sum::of(Product::Dense));
        self.leave(c, &values, Bug::DwfOverwrites);
        Ok(())
    }

    fn run_add_bias(&self, call: Checked<AddBias<'_, T, Host>>) -> Result<()> {
        let AddBias { bias, c } = call.into_inner();
        let bias = bias.array();
        for ((_, j), c) in c.array_mut().indexed_iter_mut() {
            *c = self.round(c.to_f32() + bias[[0, j]].to_f32());
        }
        Ok(())
    }

    fn run_column_sums(&self, call: Checked<ColumnSums<'_, T, Host>>) -> Result<()> {
        let ColumnSums { a, to } = call.into_inner();
        let sums = self.sum_rows(&widen(a), self.is(Bug::DbiasEvenRows));
        let sums = Array2::from_shape_fn((1, sums.len()), |(_, j)| sums[j]);
        self.leave(to, &sums, Bug::DbiasOverwrites);
        Ok(())
    }

    fn run_gate(&self, call: Checked<GateForward<'_, T, Host>>) -> Result<()> {
        let GateForward { gate, pre, z } = call.into_inner();
        let (pre, hidden) = (widen(pre), z.cols());
        for ((i, j), z) in z.array_mut().indexed_iter_mut() {
            *z = self.round(self.value::<T>(gate, pre[[i, j]], pre[[i, hidden + j]]));
        }
        Ok(())
    }

    fn run_gate_backward(&self, call: Checked<GateBackward<'_, T, Host>>) -> Result<()> {
        let GateBackward { gate, dz, pre } = call.into_inner();
        let (packed, dz) = (widen(pre.view()), widen(dz));
        let hidden = dz.ncols();
        let half = |first| Array2::from_shape_fn(dz.dim(), |(i, j)| packed[[i, first + j]]);
        let dab = self.gate_gradients::<T>(gate, &Pre { gate: half(0), up: half(hidden) }, &dz);
        for ((i, j), to) in pre.array_mut().indexed_iter_mut() {
            *to = T::from_f32(if j < hidden { dab.gate[[i, j]] } else { dab.up[[i, j - hidden]] });
        }
        Ok(())
    }

    fn run_gather_rows(&self, call: Checked<GatherRows<'_, T, Host>>) -> Result<()> {
        let GatherRows { from, rows, to } = call.into_inner();
        let from = from.array();
        let all = from.nrows();
        let place = |(index, &row): (usize, &u32)| match usize::try_from(row) {
            Ok(at) if at < all => Ok(at),
            _ => Err(Error::Row { index, row, rows: all }),
        };
        let places = rows.array().iter().enumerate().map(place).collect::<Result<Vec<_>>>()?;
        for ((i, j), to) in to.array_mut().indexed_iter_mut() {
            // With the bug, the rows that follow each other from the first on.
            let row = if self.is(Bug::GatherInOrder) { i.min(all - 1) } else { places[i] };
            *to = from[[row, j]];
        }
        Ok(())
    }

    fn run_cross_entropy(&self, call: Checked<CrossEntropy<'_, T, Host>>) -> Result<()> {
        let CrossEntropy { logits, labels, loss, correct, dlogits } = call.into_inner();
        let logits = widen(logits);
        let (batch, classes) = logits.dim();
        let labels = self.classes(labels.array().index_axis(Axis(1), 0), classes)?;
        let (mut total, mut hits) = (0.0f32, 0u32);
        let mut gradient = Array2::zeros(logits.dim());
        let count = batch as f32;
        for (i, &label) in labels.iter().enumerate() {
            let row = logits.row(i);
            let (first, maximum) = largest(row, self.is(Bug::LastOfEquals));
            let sum: f32 = row.iter().map(|logit| (logit - maximum).exp()).sum();
            let shift = if self.is(Bug::LossForgetsMaximum) { 0.0 } else { maximum };
            total += sum.ln() + shift - row[label];
            hits += u32::from(first == label && !sum.is_nan());
            for (j, logit) in row.iter().enumerate() {
                let one = if j == label { 1.0 } else { 0.0 };
                let value = (logit - maximum).exp() / sum - one;
                gradient[[i, j]] = if self.is(Bug::LossGradientOfSum) { value } else { value / count };
            }
        }
        loss.array_mut()[[0, 0]] = if batch == 0 { 0.0 } else { total / count };
        if let Some(correct) = correct {
            correct.array_mut()[[0, 0]] = hits;
        }
        if let Some(dlogits) = dlogits {
            for (to, value) in dlogits.array_mut().iter_mut().zip(&gradient) {
                *to = self.round(*value);
            }
        }
        Ok(())
    }

    fn run_adamw(&self, call: Checked<AdamWStep<'_, T, Host>>) -> Result<()> {
        let AdamWStep { hyper, gradient, state, parameter } = call.into_inner();
        let gradient = match gradient {
            Gradient::Same(gradient) => widen(gradient),
            Gradient::F32(gradient) => gradient.array().to_owned(),
        };
        let mut steps = state.steps.array_mut();
        // Stops at the largest count: by then both corrections are 1.
        steps[[0, 0]] = steps[[0, 0]].saturating_add(1);
        let correction = |beta: f32| match self.is(Bug::NoBiasCorrection) {
            true => 1.0,
            false => (1.0 - f64::from(beta).powf(f64::from(steps[[0, 0]]))) as f32,
        };
        let (by_first, by_second) = (correction(hyper.beta1), correction(hyper.beta2));
        let (mut first, mut second) = (state.first.array_mut(), state.second.array_mut());
        let mut master = state.master.map(|master| master.array_mut());
        for (at, parameter) in parameter.array_mut().indexed_iter_mut() {
            let wide = match &master {
                Some(master) if !self.is(Bug::MasterForgotten) => master[at],
                _ => parameter.to_f32(),
            };
            let (mut g, mut decay) = (gradient[at], hyper.weight_decay * wide);
            if self.is(Bug::CoupledDecay) {
                g += decay;
                decay = 0.0;
            }
            let m = hyper.beta1 * first[at] + (1.0 - hyper.beta1) * g;
            let v = hyper.beta2 * second[at] + (1.0 - hyper.beta2) * g * g;
            let step = (m / by_first) / ((v / by_second).sqrt() + hyper.epsilon);
            let wide = wide - hyper.lr * (step + decay);
            (first[at], second[at]) = (m, v);
            if let Some(master) = &mut master {
                master[at] = wide;
            }
            *parameter = self.round(wide);
        }
        Ok(())
    }
}
