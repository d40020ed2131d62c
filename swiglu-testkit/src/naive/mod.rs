//! The op and its neighbours as plain scalar loops: the slowest backend, the easiest to read, and the one that can be
//! given a [`Bug`].
//!
//! It owns no numerics of its own: gate functions are core's, sums run over k in ascending order in `f32`, and each
//! result is rounded once. Oracles are elsewhere and share nothing with it.

mod arithmetic;
mod bug;
mod dense;
mod read;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::Array2;
use swiglu_core::ops::{Backward, Copy, CopyIn, CopyOut, Forward};
use swiglu_core::{
    Backend, Checked, DeviceId, Element, Gate, Host, MatMut, MatRef, Matrix, Op, Orientation, Plan, Problem,
    Result, Scalar, SwiGLU, Upstream, Weights,
};

pub use bug::Bug;

use crate::part::part;

use arithmetic::{Product, Sum};
use read::{Projections, transposed, widen, widen_op};

/// A backend of plain loops on the host, right or with one seeded bug.
///
/// ```
/// use swiglu_core::{Backend, Options, Orientation, SwiGLU, Weights};
/// use swiglu_testkit::{Bug, Naive};
///
/// let (right, wrong) = (Naive::new(), Naive::with(Bug::SkipLastRow));
/// assert_eq!(right.bug(), None);
/// let (x, wf) = (right.zeros::<f32>(2, 3)?, right.zeros(3, 8)?);
/// let w = Weights::packed(wf.view(), Orientation::InOut)?;
/// assert_eq!(wrong.forward(x.view(), w, Options::new())?.shape(), (2, 4));
/// # Ok::<(), swiglu_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Naive {
    bug: Option<Bug>,
    /// Forward calls so far, for [`Bug::OrderByCall`]. Shared by clones.
    calls: Arc<AtomicUsize>,
}

/// Pre-activations in `f32`, as the epilogue sees them.
struct Pre {
    gate: Array2<f32>,
    up: Array2<f32>,
}

impl Naive {
    /// Without a bug.
    pub fn new() -> Self {
        Self::default()
    }

    /// With this bug.
    pub fn with(bug: Bug) -> Self {
        Self { bug: Some(bug), ..Self::default() }
    }

    /// The bug it has.
    pub fn bug(&self) -> Option<Bug> {
        self.bug
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Sums without their bias: `start` is where those of the gate half begin.
    fn project(&self, x: &Array2<f32>, w: &Projections, start: Option<&Array2<f32>>) -> Pre {
        let call = self.calls.load(Ordering::Relaxed);
        let sum = |start, row| Sum { product: Product::Forward, start, row, rows: x.nrows(), call };
        let gate = self.product(x, &w.gate, |i, j| sum(start.map_or(0.0, |start| start[[i, j]]), i));
        let up = self.product(x, &w.up, |i, _| sum(0.0, i));
        Pre { gate, up }
    }

    fn add_bias_row<T: Element>(&self, pre: &mut Pre, bias: Option<MatRef<'_, T, Host>>) {
        let Some(bias) = bias.filter(|_| !self.is(Bug::NoBias)) else { return };
        let (bias, hidden) = (widen(bias), pre.gate.ncols());
        let up = if self.is(Bug::BiasOfGate) { 0 } else { hidden };
        for _ in 0..if self.is(Bug::BiasTwice) { 2 } else { 1 } {
            for ((_, j), g) in pre.gate.indexed_iter_mut() {
                *g += bias[[0, j]];
            }
            for ((_, j), u) in pre.up.indexed_iter_mut() {
                *u += bias[[0, up + j]];
            }
        }
    }

    fn save<T: Element>(&self, pre: &Pre, z: &Array2<f32>, to: MatMut<'_, T, Host>) {
        let hidden = pre.gate.ncols();
        let (mut first, mut second) = (&pre.gate, &pre.up);
        if self.is(Bug::SaveSwapped) {
            std::mem::swap(&mut first, &mut second);
        }
        if self.is(Bug::SaveZ) {
            first = z;
        }
        for ((i, j), to) in to.array_mut().indexed_iter_mut() {
            *to = self.round(if j < hidden { first[[i, j]] } else { second[[i, j - hidden]] });
        }
    }

    /// dAB = [dG | dU] in the element type, widened again: what the gradient products read.
    fn gate_gradients<T: Element>(&self, gate: Gate, pre: &Pre, dz: &Array2<f32>) -> Pre {
        let mut dab = Pre { gate: Array2::zeros(dz.dim()), up: Array2::zeros(dz.dim()) };
        for ((i, j), dz) in dz.indexed_iter() {
            let (g, u) = (pre.gate[[i, j]], pre.up[[i, j]]);
            let (mut by_g, mut by_u) = self.partials(gate, g, u);
            if self.is(Bug::SwapGradients) {
                std::mem::swap(&mut by_g, &mut by_u);
            }
            dab.gate[[i, j]] = self.round::<T>(dz * by_g).to_f32();
            dab.up[[i, j]] = self.round::<T>(dz * by_u).to_f32();
        }
        dab
    }

    fn input_gradient(&self, dab: &Pre, w: &Projections) -> Array2<f32> {
        let sum = |start| Sum { product: Product::Dx, start, row: 0, rows: 0, call: 0 };
        let by_gate = self.product(&dab.gate, &transposed(&w.gate), |_, _| sum(0.0));
        if self.is(Bug::DxGateOnly) {
            return by_gate;
        }
        let sign = if self.is(Bug::DxWrongSign) { -1.0 } else { 1.0 };
        let up = dab.up.mapv(|du| sign * du);
        self.product(&up, &transposed(&w.up), |i, k| sum(by_gate[[i, k]]))
    }
}

impl Backend for Naive {
    type Memory = Host;

    fn name(&self) -> String {
        match self.bug {
            None => "naive".to_owned(),
            Some(bug) => format!("naive with {bug:?}"),
        }
    }

    fn device(&self) -> DeviceId {
        DeviceId::HOST
    }

    fn zeros<T: Scalar>(&self, rows: usize, cols: usize) -> Result<Matrix<T, Host>> {
        Matrix::host_zeros(rows, cols)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn run_copy<T: Scalar>(&self, call: Checked<Copy<'_, T, Host>>) -> Result<()> {
        let Copy { from, to } = call.into_inner();
        to.array_mut().assign(&from.array());
        Ok(())
    }

    fn run_copy_in<T: Scalar>(&self, call: Checked<CopyIn<'_, T, Host>>) -> Result<()> {
        let CopyIn { from, to } = call.into_inner();
        to.array_mut().assign(&from.array());
        Ok(())
    }

    fn run_copy_out<T: Scalar>(&self, call: Checked<CopyOut<'_, T, Host>>) -> Result<()> {
        let CopyOut { from, to } = call.into_inner();
        to.array_mut().assign(&from.array());
        Ok(())
    }
}

impl<T: Element> SwiGLU<T> for Naive {
    fn run_forward(&self, call: Checked<Forward<'_, T, Host>>) -> Result<()> {
        let Forward { x, w, z, pre: saved, .. } = call.into_inner();
        self.calls.fetch_add(1, Ordering::Relaxed);
        let stale = self.is(Bug::StaleAccumulator).then(|| widen(z.view()));
        let mut pre = self.project(&widen(x), &Projections::read(w, self.bug), stale.as_ref());
        let bare = self.is(Bug::SaveWithoutBias).then(|| Pre { gate: pre.gate.clone(), up: pre.up.clone() });
        self.add_bias_row(&mut pre, w.bias_row());
        let shape = z.shape();
        let values =
            Array2::from_shape_fn(shape, |at| self.value::<T>(w.function(), pre.gate[at], pre.up[at]));
        for ((i, j), z) in z.array_mut().indexed_iter_mut() {
            if !self.skips((i, j), shape) {
                *z = self.round(values[[i, j]]);
            }
        }
        if let Some(saved) = saved {
            self.save(bare.as_ref().unwrap_or(&pre), &values, saved);
        }
        Ok(())
    }

    fn run_backward(&self, call: Checked<Backward<'_, T, Host>>) -> Result<()> {
        let Backward { x, w, upstream, pre: saved, dx, dwf, dbias, .. } = call.into_inner();
        let (projections, x) = (Projections::read(w, self.bug), widen(x));
        let (hidden, batch) = (w.hidden(), x.nrows());
        let pre = match &saved {
            Some(saved) => {
                let packed = widen(saved.view());
                let half = |first| Array2::from_shape_fn((batch, hidden), |(i, j)| packed[[i, first + j]]);
                Pre { gate: half(0), up: half(hidden) }
            }
            None => self.recompute(&x, &projections, w),
        };
        let dab = self.gate_gradients::<T>(w.function(), &pre, &self.upstream(upstream));
        if let Some(saved) = saved {
            for ((i, j), to) in saved.array_mut().indexed_iter_mut() {
                // Exact: dAB already has the precision of the element type.
                *to = T::from_f32(if j < hidden { dab.gate[[i, j]] } else { dab.up[[i, j - hidden]] });
            }
        }
        if let Some(dx) = dx {
            self.leave_out(dx, &self.input_gradient(&dab, &projections));
        }
        if let Some(dwf) = dwf {
            self.leave_weights(&x, &dab, w.orientation(), dwf);
        }
        if let Some(dbias) = dbias {
            let sums = |half: &Array2<f32>| self.sum_rows(half, self.is(Bug::DbiasEvenRows));
            let row = [sums(&dab.gate), sums(&dab.up)].concat();
            let row = Array2::from_shape_fn((1, 2 * hidden), |(_, j)| row[j]);
            self.leave(dbias, &row, Bug::DbiasOverwrites);
        }
        Ok(())
    }

    fn plan(&self, _: &Problem) -> Result<Plan> {
        Ok(Plan::new(self.name(), vec!["scalar loops".to_owned()], 0))
    }
}

impl Naive {
    /// dz, unrounded where it is a product.
    fn upstream<T: Element>(&self, upstream: Upstream<'_, T, Host>) -> Array2<f32> {
        match upstream {
            Upstream::Dz(dz) => widen(dz),
            Upstream::Projected { dy, down, .. } => {
                let square = down.hidden() == down.out_features();
                // One row `[O]` for each hidden unit.
                let op = match down.orientation() {
                    Orientation::OutIn if self.is(Bug::SquareIgnoresOrientation) && square => Op::N,
                    Orientation::OutIn => Op::T,
                    Orientation::InOut => Op::N,
                };
                let right = widen_op(down.matrix(), op);
                let missing = self.is(Bug::ProjectedMissesLastOutput) && right.ncols() > 0;
                let terms = right.ncols() - usize::from(missing);
                let left = part(&widen(dy), 0..dy.rows(), 0..terms);
                let right = part(&right, 0..down.hidden(), 0..terms);
                self.product(&left, &right, |_, _| Sum::of(Product::Dense))
            }
        }
    }

    fn recompute<T: Element>(
        &self,
        x: &Array2<f32>,
        projections: &Projections,
        w: Weights<'_, T, Host>,
    ) -> Pre {
        let mut pre = self.project(x, projections, None);
        self.add_bias_row(&mut pre, w.bias_row().filter(|_| !self.is(Bug::RecomputeNoBias)));
        pre
    }
}
