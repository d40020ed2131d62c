//! What a training step needs around the op: products, bias, gate, loss, optimizer. Checked like the op itself.

use crate::backend::Backend;
use crate::checked::Checked;
use crate::element::{Dtype, Element};
use crate::error::{Error, Result};
use crate::footprint::Footprints;
use crate::gate::Gate;
use crate::gradients::Target;
use crate::layout::elements;
use crate::memory::{MatMut, MatRef, Matrix, Memory};
use crate::ops::{
    AdamWStep, AddBias, ColumnSums, CrossEntropy, GateBackward, GateForward, GatherRows, MatMul,
};
use crate::swiglu::{check_shape, writes_target};

/// Whether a factor of a product is transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// As it is.
    N,
    /// Transposed.
    T,
}

impl Op {
    /// Shape after transposition.
    pub const fn shape(self, (rows, cols): (usize, usize)) -> (usize, usize) {
        match self {
            Op::N => (rows, cols),
            Op::T => (cols, rows),
        }
    }
}

/// Parameters of AdamW (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl AdamW {
    /// The usual parameters with this rate: decays 0.9 and 0.999, epsilon 1e-8, weight decay 0.01.
    pub const fn new(lr: f32) -> Self {
        Self { lr, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    }

    fn check(self) -> Result<()> {
        let range = |option, value: f32, ok: bool, expected| match ok {
            true => Ok(()),
            false => Err(Error::InvalidOption { option, value: f64::from(value), expected }),
        };
        range("lr", self.lr, self.lr.is_finite() && self.lr >= 0.0, "a finite number of at least 0")?;
        range("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "a number from 0 to below 1")?;
        range("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "a number from 0 to below 1")?;
        let epsilon = self.epsilon;
        range("epsilon", epsilon, epsilon.is_finite() && epsilon > 0.0, "a finite number above 0")?;
        let decay = self.weight_decay;
        range("weight_decay", decay, decay.is_finite() && decay >= 0.0, "a finite number of at least 0")
    }
}

/// What AdamW keeps for one parameter: both moments, the step count, and an `f32` master copy under 16-bit parameters.
/// All of it on the device, so that a step needs no host round trip.
pub struct Optimizer<M: Memory> {
    first: Matrix<f32, M>,
    second: Matrix<f32, M>,
    steps: Matrix<u32, M>,
    master: Option<Matrix<f32, M>>,
}

impl<M: Memory> std::fmt::Debug for Optimizer<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Optimizer").field("shape", &self.first.shape()).finish_non_exhaustive()
    }
}

impl<M: Memory> Optimizer<M> {
    fn view_mut(&mut self) -> OptimizerMut<'_, M> {
        OptimizerMut {
            first: self.first.view_mut(),
            second: self.second.view_mut(),
            steps: self.steps.view_mut(),
            master: self.master.as_mut().map(Matrix::view_mut),
        }
    }

    /// Bytes of device memory it holds.
    pub fn bytes(&self) -> usize {
        let matrix = self.first.rows() * self.first.cols() * size_of::<f32>();
        matrix * if self.master.is_some() { 3 } else { 2 } + size_of::<u32>()
    }
}

/// An [`Optimizer`], borrowed for one step.
#[derive(Debug)]
pub struct OptimizerMut<'a, M: Memory> {
    /// First moment, of the parameter's shape.
    pub first: MatMut<'a, f32, M>,
    /// Second moment, of the parameter's shape.
    pub second: MatMut<'a, f32, M>,
    /// `[1, 1]`: steps done; the step increments it.
    pub steps: MatMut<'a, u32, M>,
    /// The parameter in `f32`; `None` when the parameter is `f32` itself.
    pub master: Option<MatMut<'a, f32, M>>,
}

/// A gradient for the optimizer, in the element type or in `f32`.
#[derive(Debug)]
pub enum Gradient<'a, T: Element, M: Memory> {
    /// In the element type.
    Same(MatRef<'a, T, M>),
    /// In `f32`.
    F32(MatRef<'a, f32, M>),
}

impl<T: Element, M: Memory> Gradient<'_, T, M> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Gradient::Same(gradient) => gradient.shape(),
            Gradient::F32(gradient) => gradient.shape(),
        }
    }
}

/// The loss of a batch, and what else is wanted of it.
#[derive(Debug)]
pub struct LossTargets<'a, T: Element, M: Memory> {
    /// `[1, 1]`: the mean loss.
    pub loss: MatMut<'a, f32, M>,
    /// `[1, 1]`: rows whose largest logit, the first of equals, is the label's.
    pub correct: Option<MatMut<'a, u32, M>>,
    /// `[B, classes]`: the gradient of the mean loss.
    pub dlogits: Option<MatMut<'a, T, M>>,
}

/// Dense operations of a training step. Accumulation is `f32`, and each result is rounded once.
///
/// Every method checks as [`SwiGLU`](crate::SwiGLU) does and returns [`Error::Shape`], [`Error::Overlap`],
/// [`Error::WrongDevice`], [`Error::WrongStream`], [`Error::Overflow`] or [`Error::InvalidOption`] with nothing
/// written; [`Error::OutOfMemory`] and [`Error::Device`] come from the backend.
pub trait Dense<T: Element>: Backend {
    /// Runs a checked product.
    #[doc(hidden)]
    fn run_matmul(&self, call: Checked<MatMul<'_, T, Self::Memory>>) -> Result<()>;
    /// Runs a checked addition of a bias.
    #[doc(hidden)]
    fn run_add_bias(&self, call: Checked<AddBias<'_, T, Self::Memory>>) -> Result<()>;
    /// Runs a checked sum over rows.
    #[doc(hidden)]
    fn run_column_sums(&self, call: Checked<ColumnSums<'_, T, Self::Memory>>) -> Result<()>;
    /// Runs a checked gate.
    #[doc(hidden)]
    fn run_gate(&self, call: Checked<GateForward<'_, T, Self::Memory>>) -> Result<()>;
    /// Runs a checked gate gradient.
    #[doc(hidden)]
    fn run_gate_backward(&self, call: Checked<GateBackward<'_, T, Self::Memory>>) -> Result<()>;
    /// Runs a checked choice of rows.
    #[doc(hidden)]
    fn run_gather_rows(&self, call: Checked<GatherRows<'_, T, Self::Memory>>) -> Result<()>;
    /// Runs a checked loss.
    #[doc(hidden)]
    fn run_cross_entropy(&self, call: Checked<CrossEntropy<'_, T, Self::Memory>>) -> Result<()>;
    /// Runs a checked optimizer step.
    #[doc(hidden)]
    fn run_adamw(&self, call: Checked<AdamWStep<'_, T, Self::Memory>>) -> Result<()>;

    /// `c = op_a(a) . op_b(b)`, or `c +=`.
    ///
    /// # Errors
    /// See [`Dense`].
    fn matmul(
        &self,
        (a, op_a): (MatRef<'_, T, Self::Memory>, Op),
        (b, op_b): (MatRef<'_, T, Self::Memory>, Op),
        c: Target<'_, T, Self::Memory>,
    ) -> Result<()> {
        let ((m, k), (_, n)) = (op_a.shape(a.shape()), op_b.shape(b.shape()));
        check_shape("right factor", op_b.shape(b.shape()), (k, n))?;
        check_shape("product", c.shape(), (m, n))?;
        elements("product bytes", m, elements("product row bytes", n, size_of::<f32>())?)?;
        let mut footprints = Footprints::new();
        footprints.reads("left factor", a).reads("right factor", b);
        writes_target(&mut footprints, "product", &c);
        footprints.check(self)?;
        self.run_matmul(Checked::new(MatMul { a, op_a, b, op_b, c }))
    }

    /// `c[i][j] += bias[j]` with `bias [1, n]`.
    ///
    /// # Errors
    /// See [`Dense`].
    fn add_bias(&self, bias: MatRef<'_, T, Self::Memory>, c: MatMut<'_, T, Self::Memory>) -> Result<()> {
        check_shape("bias", bias.shape(), (1, c.cols()))?;
        Footprints::new().reads("bias", bias).writes("sum", &c).check(self)?;
        self.run_add_bias(Checked::new(AddBias { bias, c }))
    }

    /// The sum of the rows of `a [m, n]` into `[1, n]`: the gradient of a bias.
    ///
    /// # Errors
    /// See [`Dense`].
    fn column_sums(&self, a: MatRef<'_, T, Self::Memory>, to: Target<'_, T, Self::Memory>) -> Result<()> {
        check_shape("column sums", to.shape(), (1, a.cols()))?;
        let mut footprints = Footprints::new();
        footprints.reads("matrix", a);
        writes_target(&mut footprints, "column sums", &to);
        footprints.check(self)?;
        self.run_column_sums(Checked::new(ColumnSums { a, to }))
    }

    /// `z = h(g, u)` for `pre = [g | u]`, `[B, 2D]` to `[B, D]`.
    ///
    /// # Errors
    /// See [`Dense`].
    fn gate(
        &self,
        gate: Gate,
        pre: MatRef<'_, T, Self::Memory>,
        z: MatMut<'_, T, Self::Memory>,
    ) -> Result<()> {
        gate.check()?;
        let packed = (z.rows(), elements("packed width", z.cols(), 2)?);
        check_shape("pre-activations", pre.shape(), packed)?;
        Footprints::new().reads("pre-activations", pre).writes("z", &z).check(self)?;
        self.run_gate(Checked::new(GateForward { gate, pre, z }))
    }

    /// `pre = [g | u]` becomes `[dz * dh/dg | dz * dh/du]` in place.
    ///
    /// # Errors
    /// See [`Dense`].
    fn gate_backward(
        &self,
        gate: Gate,
        dz: MatRef<'_, T, Self::Memory>,
        pre: MatMut<'_, T, Self::Memory>,
    ) -> Result<()> {
        gate.check()?;
        let packed = (dz.rows(), elements("packed width", dz.cols(), 2)?);
        check_shape("pre-activations", pre.shape(), packed)?;
        Footprints::new().reads("dz", dz).writes("pre-activations", &pre).check(self)?;
        self.run_gate_backward(Checked::new(GateBackward { gate, dz, pre }))
    }

    /// `to[i] = from[rows[i]]` for `rows [m, 1]`, bit for bit: a batch out of a data set that stays on the device.
    ///
    /// ```
    /// # use swiglu_core::{Dense, Host, Matrix, Result};
    /// # fn batch<B: Dense<f32>>(backend: &B) -> Result<()> {
    /// let data = backend.zeros(60_000, 784)?;
    /// let chosen = backend.zeros(128, 1)?; // row 0, 128 times
    /// let mut x = backend.zeros(128, 784)?;
    /// backend.gather_rows(data.view(), chosen.view(), x.view_mut())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Dense`]. An index past the last row is [`Error::Row`] where the backend can look at it, otherwise it makes its
    /// row NaN.
    fn gather_rows(
        &self,
        from: MatRef<'_, T, Self::Memory>,
        rows: MatRef<'_, u32, Self::Memory>,
        to: MatMut<'_, T, Self::Memory>,
    ) -> Result<()> {
        check_shape("row indices", rows.shape(), (to.rows(), 1))?;
        check_shape("gathered rows", to.shape(), (to.rows(), from.cols()))?;
        let mut footprints = Footprints::new();
        footprints.reads("source", from).reads("row indices", rows).writes("gathered rows", &to);
        footprints.check(self)?;
        self.run_gather_rows(Checked::new(GatherRows { from, rows, to }))
    }

    /// The mean cross-entropy of `softmax(logits)` against `labels [B, 1]`. The loss stays on the device. A row with a NaN, or
    /// whose largest logit is infinite, makes it NaN and is never correct.
    ///
    /// # Errors
    /// See [`Dense`]. A label past the last class is [`Error::Label`] where the backend can look at it, otherwise it
    /// makes the loss NaN.
    fn cross_entropy(
        &self,
        logits: MatRef<'_, T, Self::Memory>,
        labels: MatRef<'_, u32, Self::Memory>,
        targets: LossTargets<'_, T, Self::Memory>,
    ) -> Result<()> {
        let LossTargets { loss, correct, dlogits } = targets;
        check_shape("labels", labels.shape(), (logits.rows(), 1))?;
        check_shape("loss", loss.shape(), (1, 1))?;
        let mut footprints = Footprints::new();
        footprints.reads("logits", logits).reads("labels", labels).writes("loss", &loss);
        if let Some(correct) = &correct {
            check_shape("correct", correct.shape(), (1, 1))?;
            footprints.writes("correct", correct);
        }
        if let Some(dlogits) = &dlogits {
            check_shape("dlogits", dlogits.shape(), logits.shape())?;
            footprints.writes("dlogits", dlogits);
        }
        footprints.check(self)?;
        self.run_cross_entropy(Checked::new(CrossEntropy { logits, labels, loss, correct, dlogits }))
    }

    /// What AdamW keeps for `parameter`, with an `f32` master copy when its elements are 16 bits wide.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and what the copies return.
    fn optimizer(&self, parameter: MatRef<'_, T, Self::Memory>) -> Result<Optimizer<Self::Memory>> {
        let (rows, cols) = parameter.shape();
        let master = match T::DTYPE {
            Dtype::F32 => None,
            Dtype::F16 | Dtype::Bf16 => {
                let host = self.download(parameter)?;
                let mut wide = Matrix::host_zeros(rows, cols)?;
                let mut to = wide.view_mut();
                for row in 0..rows {
                    if let (Some(from), Some(to)) = (host.view().row(row), to.row_mut(row)) {
                        T::widen(from, to);
                    }
                }
                Some(self.upload(&wide)?)
            }
        };
        let steps = self.zeros(1, 1)?;
        Ok(Optimizer { first: self.zeros(rows, cols)?, second: self.zeros(rows, cols)?, steps, master })
    }

    /// One step of AdamW, in `f32`, on the master copy where there is one.
    ///
    /// # Errors
    /// See [`Dense`].
    fn adamw(
        &self,
        hyper: AdamW,
        gradient: Gradient<'_, T, Self::Memory>,
        optimizer: &mut Optimizer<Self::Memory>,
        parameter: MatMut<'_, T, Self::Memory>,
    ) -> Result<()> {
        hyper.check()?;
        check_shape("gradient", gradient.shape(), parameter.shape())?;
        check_shape("optimizer", optimizer.first.shape(), parameter.shape())?;
        let state = optimizer.view_mut();
        if state.master.is_some() != (T::DTYPE != Dtype::F32) {
            return Err(Error::Unsupported {
                backend: "adamw",
                what: "an optimizer made for another element type",
            });
        }
        let mut footprints = Footprints::new();
        footprints
            .writes("parameter", &parameter)
            .writes("first moment", &state.first)
            .writes("second moment", &state.second)
            .writes("step count", &state.steps);
        if let Some(master) = &state.master {
            footprints.writes("master copy", master);
        }
        match gradient {
            Gradient::Same(gradient) => footprints.reads("gradient", gradient),
            Gradient::F32(gradient) => footprints.reads("gradient", gradient),
        };
        footprints.check(self)?;
        self.run_adamw(Checked::new(AdamWStep { hyper, gradient, state, parameter }))
    }
}
