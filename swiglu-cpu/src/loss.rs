//! Softmax cross-entropy over rows.

use swiglu_core::ops::CrossEntropy;
use swiglu_core::{Element, Host, Layout, MatMut, MatRef, Result};

use crate::arena::{Space, Workspace};
use crate::backend::Pass;
use crate::dense::wide_row;
use crate::kernels::Kernel;
use crate::rows::for_row_blocks;

/// A checked loss.
pub(crate) struct Loss<'a, T: Element>(pub(crate) CrossEntropy<'a, T, Host>);

type Block<'a, T> =
    (MatRef<'a, T, Host>, MatRef<'a, u32, Host>, MatMut<'a, f32, Host>, Option<MatMut<'a, T, Host>>);

impl<T: Element> Pass for Loss<'_, T> {
    fn run<K: Kernel>(self, _: K, workspace: &mut Workspace, _: usize) -> Result<()> {
        let CrossEntropy { logits, labels, mut loss, correct, dlogits } = self.0;
        let batch = logits.rows();
        workspace.grow(0, Space::of_call(2 * batch))?;
        let (_, floats) = workspace.parts(2 * batch);
        let scale = 1.0 / batch.max(1) as f32;
        let results = MatMut::from_slice(floats, Layout::dense(batch, 2)?)?;
        let operands: Block<'_, T> = (logits, labels, results, dlogits);
        // Rows without classes have a result too.
        for_row_blocks(
            operands,
            logits.cols().max(1),
            &|(logits, labels, mut results, mut dlogits): Block<'_, T>| {
                for row in 0..logits.rows() {
                    let label =
                        labels.row(row).and_then(|labels| labels.first()).map_or(0, |&label| label as usize);
                    let gradient = dlogits.as_mut().and_then(|dlogits| dlogits.row_mut(row));
                    let (loss, hit) = loss_of_row(logits, row, label, scale, gradient);
                    if let Some(result) = results.row_mut(row) {
                        result.copy_from_slice(&[loss, f32::from(u8::from(hit))]);
                    }
                }
            },
        );
        // In row order, so that the bits do not depend on the threads.
        let (mut total, mut hits) = (0.0f32, 0u32);
        for result in floats.chunks_exact(2) {
            total += result[0];
            hits += u32::from(result[1] != 0.0);
        }
        put(&mut loss, total * scale);
        if let Some(mut correct) = correct {
            put(&mut correct, hits);
        }
        Ok(())
    }
}

fn put<S: swiglu_core::Scalar>(to: &mut MatMut<'_, S, Host>, value: S) {
    if let Some(to) = to.row_mut(0).and_then(|row| row.first_mut()) {
        *to = value;
    }
}

/// The loss of one row and whether its first largest logit is the label's; fills its gradient.
///
/// loss = log(sum of exp(l - max)) - (l[label] - max), gradient = (softmax - onehot) * scale. `libm`'s functions, so
/// that the bits are the same on every platform.
fn loss_of_row<T: Element>(
    logits: MatRef<'_, T, Host>,
    row: usize,
    label: usize,
    scale: f32,
    gradient: Option<&mut [T]>,
) -> (f32, bool) {
    let values = wide_row(logits, row);
    let (mut best, mut max) = (0, f32::NEG_INFINITY);
    for (class, value) in values.clone().enumerate() {
        if value > max {
            (best, max) = (class, value);
        }
    }
    let sum: f32 = values.clone().map(|value| libm::expf(value - max)).sum();
    if let Some(gradient) = gradient {
        for (class, (to, value)) in gradient.iter_mut().zip(values.clone()).enumerate() {
            let softmax = libm::expf(value - max) / sum;
            *to = T::from_f32((softmax - f32::from(u8::from(class == label))) * scale);
        }
    }
    let own = values.clone().nth(label).unwrap_or(f32::NAN);
    // Where a logit is NaN none is the largest.
    (libm::logf(sum) - (own - max), best == label && !sum.is_nan())
}
