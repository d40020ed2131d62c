//! Sums, the gate, rounding, and how results leave: where most bugs sit.

use half::{bf16, f16};
use ndarray::{Array2, ArrayView1, Axis};
use swiglu_core::{Dtype, Element, Gate, Halves, Host, Orientation, Out, Target};

use super::bug::Bug;
use super::read::transposed;
use super::{Naive, Pre};

/// Which product a sum belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    Forward,
    Dx,
    Dwf,
    Dense,
}

/// One sum of products: where it starts, and what the bugs that reorder it need to know.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub(super) product: Product,
    pub(super) start: f32,
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) call: usize,
}

impl Sum {
    /// A sum from 0 on.
    pub(super) fn of(product: Product) -> Self {
        Self { product, start: 0.0, row: 0, rows: 0, call: 0 }
    }
}

/// Whether a row lies in an 8-row tile that the matrix does not fill.
fn in_tail(row: usize, rows: usize) -> bool {
    row >= rows - rows % 8
}

fn through_bf16(value: f32) -> f32 {
    Element::to_f32(<bf16 as Element>::from_f32(value))
}

/// Three correct digits: exp as a power of (1 + x/1024).
fn coarse_sigmoid(g: f32) -> f32 {
    1.0 / (1.0 + (1.0 - g.clamp(-80.0, 80.0) / 1024.0).powi(1024))
}

/// The least positive normal number.
fn least_normal(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => f16::MIN_POSITIVE.to_f32(),
        Dtype::F32 | Dtype::Bf16 => f32::MIN_POSITIVE,
    }
}

impl Naive {
    /// `[m, n]` from rows `[m, k]` and `[n, k]`; `sum` says how each element is summed.
    pub(super) fn product(
        &self,
        left: &Array2<f32>,
        right: &Array2<f32>,
        sum: impl Fn(usize, usize) -> Sum,
    ) -> Array2<f32> {
        let mut product = Array2::zeros((left.nrows(), right.nrows()));
        for ((i, j), to) in product.indexed_iter_mut() {
            *to = self.sum(left.row(i), right.row(j), sum(i, j));
        }
        product
    }

    fn sum(&self, left: ArrayView1<'_, f32>, right: ArrayView1<'_, f32>, sum: Sum) -> f32 {
        let terms = left.len();
        let forward = sum.product == Product::Forward;
        if self.bug.is_none() {
            return left.iter().zip(right).fold(sum.start, |value, (left, right)| value + left * right);
        }
        let dropped = |k: usize| match self.bug {
            Some(Bug::DropLastTerm) => forward && k + 1 == terms,
            Some(Bug::DropSlab) => forward && (16..24).contains(&k),
            Some(Bug::DropPast256) => forward && k >= 256,
            Some(Bug::SkipZeros) => left[k] == 0.0 || right[k] == 0.0,
            Some(Bug::DxMissesLastUnit) => sum.product == Product::Dx && k + 1 == terms,
            Some(Bug::DwfMissesLastRow) => sum.product == Product::Dwf && k + 1 == terms,
            _ => false,
        };
        // Where the sum begins in k; it wraps around.
        let first = match self.bug {
            Some(Bug::OrderByTile) if forward && in_tail(sum.row, sum.rows) => terms / 2,
            Some(Bug::OrderByCall) if forward => sum.call % 3 * terms / 3,
            _ => 0,
        };
        let narrow = forward && self.is(Bug::Bf16Accumulator);
        let mut value = sum.start;
        for k in (first..terms).chain(0..first).filter(|&k| !dropped(k)) {
            value += left[k] * right[k];
            if narrow {
                value = through_bf16(value);
            }
        }
        value
    }

    /// h(g, u) of pre-activations that have not been rounded.
    pub(super) fn value<T: Element>(&self, gate: Gate, g: f32, u: f32) -> f32 {
        let (g, u) = match self.bug {
            Some(Bug::GateOnUp) => (u, g),
            Some(Bug::RoundBeforeGate) => (T::from_f32(g).to_f32(), T::from_f32(u).to_f32()),
            Some(Bug::Bf16BeforeGate) => (through_bf16(g), through_bf16(u)),
            _ => (g, u),
        };
        match (self.bug, gate) {
            (Some(Bug::PlainSilu), Gate::Swiglu) => g * (1.0 / (1.0 + (-g).exp())) * u,
            (Some(Bug::CoarseExp), Gate::Swiglu) => g * coarse_sigmoid(g) * u,
            _ => self.broken(gate).value(g, u),
        }
    }

    /// dh/dg and dh/du.
    pub(super) fn partials(&self, gate: Gate, g: f32, u: f32) -> (f32, f32) {
        let (by_g, by_u) = self.broken(gate).partials(g, u);
        match (self.bug, gate) {
            (Some(Bug::NoSlopeTerm), Gate::Swiglu) => (u * Gate::Glu.value(g, 1.0), by_u),
            (Some(Bug::ReluSlope), Gate::Reglu) if g == 0.0 => (u, by_u),
            _ => (by_g, by_u),
        }
    }

    /// The gate that a bug puts in the place of another.
    fn broken(&self, gate: Gate) -> Gate {
        match (self.bug, gate) {
            (Some(Bug::NoClamp), Gate::SwigluClamped { alpha, .. }) => {
                Gate::SwigluClamped { alpha, limit: f32::MAX }
            }
            (Some(Bug::TanhForErf), Gate::GegluErf) => Gate::GegluTanh,
            _ => gate,
        }
    }

    /// Rounds a result to the element type.
    pub(super) fn round<T: Element>(&self, value: f32) -> T {
        let rounded = T::from_f32(value);
        match self.bug {
            Some(Bug::TruncateStore) if value.is_finite() => {
                let kept = match T::DTYPE {
                    Dtype::F32 => u32::MAX,
                    Dtype::F16 => !0x1fff,
                    Dtype::Bf16 => !0xffff,
                };
                T::from_f32(f32::from_bits(value.to_bits() & kept))
            }
            Some(Bug::SaturateStore) if value.is_finite() && rounded.to_f32().is_infinite() => {
                T::from_f32(65504.0f32.copysign(value))
            }
            Some(Bug::FlushSubnormals) if rounded.to_f32().abs() < least_normal(T::DTYPE) => T::from_f32(0.0),
            _ => rounded,
        }
    }

    /// Whether a bug leaves this element of z unwritten.
    pub(super) fn skips(&self, (i, j): (usize, usize), (rows, cols): (usize, usize)) -> bool {
        match self.bug {
            Some(Bug::SkipLastRow) => i + 1 == rows,
            Some(Bug::SkipLastColumn) => j + 1 == cols,
            Some(Bug::SkipRowOfTail) => i + 1 == rows && in_tail(i, rows),
            _ => false,
        }
    }

    /// Sums over rows, in ascending order.
    pub(super) fn sum_rows(&self, a: &Array2<f32>, even_only: bool) -> Vec<f32> {
        let mut sums = vec![0.0; a.ncols()];
        for (_, row) in a.axis_iter(Axis(0)).enumerate().filter(|(i, _)| !even_only || i % 2 == 0) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += value;
            }
        }
        sums
    }

    /// dX to where the caller wants it.
    pub(super) fn leave_out<T: Element>(&self, dx: Out<'_, T, Host>, values: &Array2<f32>) {
        let add = (dx.add && !self.is(Bug::DxOverwrites)) || self.is(Bug::DxAdds);
        self.leave(Target::Same(Out { to: dx.to, add }), values, Bug::DxOverwrites);
    }

    /// A gradient to where the caller wants it, unless `overwrites` is the bug.
    pub(super) fn leave<T: Element>(
        &self,
        target: Target<'_, T, Host>,
        values: &Array2<f32>,
        overwrites: Bug,
    ) {
        let add = target.adds() && !self.is(overwrites);
        let old = |old: f32| if add { old } else { 0.0 };
        match target {
            Target::Same(out) => {
                for (to, value) in out.to.array_mut().iter_mut().zip(values) {
                    *to = self.round(value + old(to.to_f32()));
                }
            }
            Target::F32(out) => {
                for (to, value) in out.to.array_mut().iter_mut().zip(values) {
                    let narrow = self.is(Bug::F32TargetRounded);
                    let value = if narrow { T::from_f32(*value).to_f32() } else { *value };
                    *to = value + old(*to);
                }
            }
        }
    }

    /// dWf = X^T . dAB to where the caller wants it.
    pub(super) fn leave_weights<T: Element>(
        &self,
        x: &Array2<f32>,
        dab: &Pre,
        orientation: Orientation,
        dwf: Halves<'_, T, Host>,
    ) {
        if x.nrows() == 0 && self.is(Bug::DwfForgotWhenEmpty) {
            return;
        }
        let columns = transposed(x);
        let (mut gate, mut up) = (&dab.gate, &dab.up);
        if self.is(Bug::DwfSwapped) {
            std::mem::swap(&mut gate, &mut up);
        }
        for (half, target) in [(gate, dwf.gate), (up, dwf.up)] {
            let half = transposed(half);
            let values = match orientation {
                Orientation::InOut => self.product(&columns, &half, |_, _| Sum::of(Product::Dwf)),
                Orientation::OutIn => self.product(&half, &columns, |_, _| Sum::of(Product::Dwf)),
            };
            let target = if self.is(Bug::DwfAdds) { added(target) } else { target };
            self.leave(target, &values, Bug::DwfOverwrites);
        }
    }
}

fn added<T: Element>(target: Target<'_, T, Host>) -> Target<'_, T, Host> {
    match target {
        Target::Same(out) => Target::Same(Out { add: true, ..out }),
        Target::F32(out) => Target::F32(Out { add: true, ..out }),
    }
}
