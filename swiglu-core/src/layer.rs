//! The guide's module: weights, their gradient, and a handle on the device that holds both.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::backend::Backend;
use crate::dense::{Dense, Optimizer};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::gradients::{Gradients, Out, Target};
use crate::host::Host;
use crate::layout::elements;
use crate::memory::{MatMut, MatRef, Matrix};
use crate::options::{Options, Precision, Route, Tile};
use crate::saved::{Save, Saved};
use crate::swiglu::{SwiGLU, check_shape};
use crate::upstream::Upstream;
use crate::weights::{Orientation, Weights};

/// How a layer computes the gradient of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum WeightGrad {
    /// Not at all: the weights stay as they are.
    Frozen,
    /// By the platform's GEMM library.
    Composed,
    /// By this library's kernels.
    #[default]
    Fused,
}

/// A parameter and its gradient, for an optimizer.
#[derive(Debug)]
pub struct Parameter<'a, T: Element, B: Backend> {
    /// The parameter.
    pub value: MatMut<'a, T, B::Memory>,
    /// Its gradient, in `f32` whatever the element type.
    pub gradient: MatRef<'a, f32, B::Memory>,
}

/// A parameter matrix, and its gradient when it is trained.
#[derive(Debug)]
pub(crate) struct Trained<T: Element, B: Backend> {
    pub(crate) value: Matrix<T, B::Memory>,
    pub(crate) gradient: Option<Matrix<f32, B::Memory>>,
}

impl<T: Element, B: Backend> Trained<T, B> {
    pub(crate) fn new(value: Matrix<T, B::Memory>) -> Self {
        Self { value, gradient: None }
    }

    /// Makes or drops the gradient.
    pub(crate) fn train(&mut self, backend: &B, trained: bool) -> Result<()> {
        let (rows, cols) = self.value.shape();
        self.gradient = if trained { Some(backend.zeros(rows, cols)?) } else { None };
        Ok(())
    }

    /// The parameter, and where backward puts its gradient.
    pub(crate) fn parts(
        &mut self,
        add: bool,
    ) -> (MatRef<'_, T, B::Memory>, Option<Target<'_, T, B::Memory>>) {
        let target = self.gradient.as_mut().map(|to| Target::F32(Out { to: to.view_mut(), add }));
        (self.value.view(), target)
    }

    pub(crate) fn parameter(&mut self) -> Option<Parameter<'_, T, B>> {
        let gradient = self.gradient.as_ref()?.view();
        Some(Parameter { value: self.value.view_mut(), gradient })
    }
}

/// Fused SwiGLU as a layer: owns weights, bias and their gradients on the device of its backend.
///
/// ```
/// use swiglu_core::{Backend, FusedSwiGLU};
/// use swiglu_cpu::Cpu;
///
/// let cpu = Cpu::new();
/// let mut layer = FusedSwiGLU::<f32, _>::init(&cpu, 16, 32, 7)?;
/// let x = cpu.zeros(4, 16)?;
/// let (z, mut saved) = layer.forward_train(&x)?;
/// assert_eq!(z.shape(), (4, 32));
/// let dz = cpu.zeros(4, 32)?;
/// layer.backward(&x, &dz, &mut saved, None)?;
/// assert_eq!(layer.parameters().count(), 1);
/// # Ok::<(), swiglu_core::Error>(())
/// ```
#[derive(Debug)]
pub struct FusedSwiGLU<T: Element, B: Backend> {
    backend: B,
    wf: Trained<T, B>,
    bias: Option<Trained<T, B>>,
    orientation: Orientation,
    gate: Gate,
    save: Save,
    options: Options,
    weight_grad: WeightGrad,
    accumulate: bool,
}

impl<T: Element, B: SwiGLU<T>> FusedSwiGLU<T, B> {
    /// Weights `[I, 2D]` drawn uniformly from +-1/sqrt(I), as `nn.Linear` does; the same seed gives the same weights
    /// on every device.
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::OutOfMemory`], [`Error::Device`].
    pub fn init(backend: &B, in_features: usize, hidden: usize, seed: u64) -> Result<Self> {
        let wf = uniform::<T>(in_features, elements("packed width", hidden, 2)?, in_features, seed)?;
        Self::load(backend, wf.view(), Orientation::InOut)
    }

    /// Packed weights from the host, gate half first.
    ///
    /// # Errors
    /// [`Error::OddWidth`], [`Error::OutOfMemory`], [`Error::Device`].
    pub fn load(backend: &B, wf: MatRef<'_, T, Host>, orientation: Orientation) -> Result<Self> {
        Weights::packed(wf, orientation)?;
        let mut wf = Trained::new(backend.upload(wf)?);
        wf.train(backend, true)?;
        Ok(Self {
            backend: backend.clone(),
            wf,
            bias: None,
            orientation,
            gate: Gate::default(),
            save: Save::default(),
            options: Options::new(),
            weight_grad: WeightGrad::default(),
            accumulate: false,
        })
    }

    /// With a bias `[1, 2D]` from the host.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::OutOfMemory`], [`Error::Device`].
    pub fn bias(mut self, bias: MatRef<'_, T, Host>) -> Result<Self> {
        check_shape("bias", bias.shape(), (1, 2 * self.hidden()))?;
        let mut bias = Trained::new(self.backend.upload(bias)?);
        bias.train(&self.backend, self.weight_grad != WeightGrad::Frozen)?;
        self.bias = Some(bias);
        Ok(self)
    }

    /// With a bias of zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn zero_bias(self) -> Result<Self> {
        let zeros = Matrix::host_zeros(1, 2 * self.hidden())?;
        self.bias(zeros.view())
    }

    /// With this gate function.
    #[must_use]
    pub fn gate(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    /// With this choice of what forward keeps.
    #[must_use]
    pub fn save_mode(mut self, save: Save) -> Self {
        self.save = save;
        self
    }

    /// With this output tile (the guide's `block`).
    #[must_use]
    pub fn tile(mut self, tile: Tile) -> Self {
        self.options = self.options.tile(tile);
        self
    }

    /// With this precision of `f32` products on CUDA.
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.options = self.options.precision(precision);
        self
    }

    /// With gradients that add up over backward calls instead of being overwritten.
    #[must_use]
    pub fn accumulate(mut self, accumulate: bool) -> Self {
        self.accumulate = accumulate;
        self
    }

    /// With this way of computing the weight gradient. Frozen weights hold no gradient memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn weight_grad(mut self, weight_grad: WeightGrad) -> Result<Self> {
        self.weight_grad = weight_grad;
        let trained = weight_grad != WeightGrad::Frozen;
        self.wf.train(&self.backend, trained)?;
        if let Some(bias) = &mut self.bias {
            bias.train(&self.backend, trained)?;
        }
        Ok(self)
    }

    /// I.
    pub fn in_features(&self) -> usize {
        match self.orientation {
            Orientation::InOut => self.wf.value.rows(),
            Orientation::OutIn => self.wf.value.cols(),
        }
    }

    /// D.
    pub fn hidden(&self) -> usize {
        match self.orientation {
            Orientation::InOut => self.wf.value.cols() / 2,
            Orientation::OutIn => self.wf.value.rows() / 2,
        }
    }

    /// The handle the layer runs on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The weights, as the op takes them.
    ///
    /// # Errors
    /// None in practice: the shapes were checked when the layer was made.
    pub fn weights(&self) -> Result<Weights<'_, T, B::Memory>> {
        let w = Weights::packed(self.wf.value.view(), self.orientation)?.gate(self.gate);
        match &self.bias {
            Some(bias) => w.bias(bias.value.view()),
            None => Ok(w),
        }
    }

    /// z = h(x . Wa + ba, x . Wb + bb).
    ///
    /// # Errors
    /// As [`SwiGLU::forward_into`].
    pub fn forward<'a>(&self, x: impl Into<MatRef<'a, T, B::Memory>>) -> Result<Matrix<T, B::Memory>>
    where
        B::Memory: 'a,
    {
        self.backend.forward(x.into(), self.weights()?, self.options)
    }

    /// [`forward`](Self::forward) into a matrix of the caller.
    ///
    /// # Errors
    /// As [`SwiGLU::forward_into`].
    pub fn forward_into<'a>(
        &self,
        x: impl Into<MatRef<'a, T, B::Memory>>,
        z: impl Into<MatMut<'a, T, B::Memory>>,
    ) -> Result<()>
    where
        B::Memory: 'a,
    {
        self.backend.forward_into(x.into(), self.weights()?, z.into(), self.options)
    }

    /// [`forward`](Self::forward), and what backward needs.
    ///
    /// # Errors
    /// As [`SwiGLU::forward_into`].
    pub fn forward_train<'a>(
        &self,
        x: impl Into<MatRef<'a, T, B::Memory>>,
    ) -> Result<(Matrix<T, B::Memory>, Saved<T, B::Memory>)>
    where
        B::Memory: 'a,
    {
        self.backend.forward_train(x.into(), self.weights()?, self.save, self.options)
    }

    /// Room for what [`forward_train_into`](Self::forward_train_into) keeps, for batches of up to `batch` rows.
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::OutOfMemory`].
    pub fn saved(&self, batch: usize) -> Result<Saved<T, B::Memory>> {
        self.backend.saved(self.save, batch, self.hidden())
    }

    /// [`forward_train`](Self::forward_train) into matrices of the caller: nothing is allocated.
    ///
    /// # Errors
    /// As [`SwiGLU::forward_train_into`].
    pub fn forward_train_into<'a>(
        &self,
        x: impl Into<MatRef<'a, T, B::Memory>>,
        z: impl Into<MatMut<'a, T, B::Memory>>,
        saved: &mut Saved<T, B::Memory>,
    ) -> Result<()>
    where
        B::Memory: 'a,
    {
        self.backend.forward_train_into(x.into(), self.weights()?, z.into(), saved, self.options)
    }

    /// Fills the gradients of weights and bias (unless frozen), and dx when asked for.
    ///
    /// # Errors
    /// As [`SwiGLU::backward`].
    pub fn backward<'a>(
        &mut self,
        x: impl Into<MatRef<'a, T, B::Memory>>,
        upstream: impl Into<Upstream<'a, T, B::Memory>>,
        saved: &mut Saved<T, B::Memory>,
        dx: Option<Out<'_, T, B::Memory>>,
    ) -> Result<()>
    where
        B::Memory: 'a,
    {
        let Self { backend, wf, bias, orientation, gate, options, weight_grad, accumulate, .. } = self;
        let (wf, dwf) = wf.parts(*accumulate);
        let mut w = Weights::packed(wf, *orientation)?.gate(*gate);
        let mut gradients = Gradients::new();
        gradients.dx = dx;
        if let Some(dwf) = dwf {
            gradients = gradients.dwf(dwf);
        }
        if let Some(bias) = bias {
            let (bias, dbias) = bias.parts(*accumulate);
            w = w.bias(bias)?;
            gradients.dbias = dbias;
        }
        let route = match weight_grad {
            WeightGrad::Composed => Route::Composed,
            WeightGrad::Frozen | WeightGrad::Fused => Route::Fused,
        };
        backend.backward(x.into(), w, upstream, saved, gradients, options.route(route))
    }

    /// What an optimizer steps: weights, then bias; nothing when frozen.
    pub fn parameters(&mut self) -> impl Iterator<Item = Parameter<'_, T, B>> {
        let bias = self.bias.as_mut().and_then(Trained::parameter);
        self.wf.parameter().into_iter().chain(bias)
    }

    /// Optimizer state, one for each of [`parameters`](Self::parameters).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn optimizers(&mut self) -> Result<Vec<Optimizer<B::Memory>>>
    where
        B: Dense<T>,
    {
        let backend = self.backend.clone();
        self.parameters().map(|parameter| backend.optimizer(parameter.value.view())).collect()
    }

    /// Copies of weights and bias on the host, bit for bit.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`].
    pub fn save(&self) -> Result<(Matrix<T, Host>, Option<Matrix<T, Host>>)> {
        let wf = self.backend.download(&self.wf.value)?;
        let bias = self.bias.as_ref().map(|bias| self.backend.download(&bias.value)).transpose()?;
        Ok((wf, bias))
    }

    /// The gradient of the weights, in their shape; `None` when frozen.
    pub fn dwf(&self) -> Option<MatRef<'_, f32, B::Memory>> {
        self.wf.gradient.as_ref().map(Matrix::view)
    }

    /// The gradient of the bias; `None` when there is none or it is frozen.
    pub fn dbias(&self) -> Option<MatRef<'_, f32, B::Memory>> {
        self.bias.as_ref()?.gradient.as_ref().map(Matrix::view)
    }
}

/// `[rows, cols]` drawn uniformly from +-1/sqrt(fan_in), row by row.
pub(crate) fn uniform<T: Element>(
    rows: usize,
    cols: usize,
    fan_in: usize,
    seed: u64,
) -> Result<Matrix<T, Host>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
    let mut matrix = Matrix::host_zeros(rows, cols)?;
    let mut view = matrix.view_mut();
    for row in 0..rows {
        let Some(row) = view.row_mut(row) else {
            return Err(Error::OutOfBounds { operand: "weights", end: row, len: rows });
        };
        for value in row {
            // 24 random bits are a uniform f32 in [0, 1).
            let unit = (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
            *value = T::from_f32((2.0 * unit - 1.0) * bound);
        }
    }
    Ok(matrix)
}
