//! The whole MLP of a transformer block: the op, and a projection back.

use crate::backend::Backend;
use crate::dense::{Dense, Op, Optimizer};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gradients::{Out, Target};
use crate::host::Host;
use crate::layer::{FusedSwiGLU, Parameter, Trained, WeightGrad, uniform};
use crate::memory::{MatMut, MatRef, Matrix, Memory};
use crate::saved::Saved;
use crate::swiglu::{SwiGLU, check_shape};
use crate::upstream::{Down, Upstream};
use crate::weights::Orientation;

/// y = h(x . Wa, x . Wb) . Wdown: gate, up and down projections as one unit, with biases or without.
///
/// ```
/// use swiglu_core::{Backend, SwiGLUMlp};
/// use swiglu_cpu::Cpu;
///
/// let cpu = Cpu::new();
/// let mlp = SwiGLUMlp::<f32, _>::init(&cpu, 16, 32, 1)?;
/// let y = mlp.forward(&cpu.zeros(4, 16)?)?;
/// assert_eq!(y.shape(), (4, 16));
/// # Ok::<(), swiglu_core::Error>(())
/// ```
#[derive(Debug)]
pub struct SwiGLUMlp<T: Element, B: Backend> {
    gated: FusedSwiGLU<T, B>,
    down: Trained<T, B>,
    orientation: Orientation,
    down_bias: Option<Trained<T, B>>,
    accumulate: bool,
}

/// What [`SwiGLUMlp::forward_train_into`] keeps: the op's [`Saved`], and z. Reused from step to step.
#[derive(Debug)]
pub struct MlpSaved<T: Element, B: Backend> {
    saved: Saved<T, B::Memory>,
    z: Matrix<T, B::Memory>,
}

/// Room for z of one call.
fn room<T: Element, M: Memory>(
    z: &mut Matrix<T, M>,
    batch: usize,
    hidden: usize,
) -> Result<MatMut<'_, T, M>> {
    let got = z.shape();
    if got.0 < batch || got.1 != hidden {
        return Err(Error::Shape { operand: "saved z", expected: (batch, hidden), got });
    }
    z.view_mut().sub(0..batch, 0..hidden)
}

impl<T: Element, B: SwiGLU<T> + Dense<T>> SwiGLUMlp<T, B> {
    /// Random weights, as many outputs as inputs, no biases. See [`FusedSwiGLU::init`].
    ///
    /// # Errors
    /// [`Error::Overflow`](crate::Error::Overflow), [`Error::OutOfMemory`](crate::Error::OutOfMemory),
    /// [`Error::Device`](crate::Error::Device).
    pub fn init(backend: &B, in_features: usize, hidden: usize, seed: u64) -> Result<Self> {
        let gated = FusedSwiGLU::init(backend, in_features, hidden, seed)?;
        let down = uniform::<T>(hidden, in_features, hidden, seed.wrapping_add(1))?;
        Self::load(gated, down.view(), Orientation::InOut)
    }

    /// A gated layer, and a down projection from the host: `[D, O]` for [`Orientation::InOut`], `[O, D]`, as checkpoints
    /// have it, for [`Orientation::OutIn`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::OutOfMemory`](crate::Error::OutOfMemory),
    /// [`Error::Device`](crate::Error::Device).
    pub fn load(
        gated: FusedSwiGLU<T, B>,
        down: MatRef<'_, T, Host>,
        orientation: Orientation,
    ) -> Result<Self> {
        let out_features = Down::new(down, orientation).out_features();
        check_shape("down projection", down.shape(), orientation.half_shape(gated.hidden(), out_features))?;
        let mut down = Trained::new(gated.backend().upload(down)?);
        down.train(gated.backend(), true)?;
        Ok(Self { gated, down, orientation, down_bias: None, accumulate: false })
    }

    /// With a bias `[1, O]` of the down projection, which is added to `z . Wdown` as it was rounded to the element type. That
    /// of the gated layer is the layer's own.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::OutOfMemory`](crate::Error::OutOfMemory),
    /// [`Error::Device`](crate::Error::Device).
    pub fn down_bias(mut self, bias: MatRef<'_, T, Host>) -> Result<Self> {
        check_shape("down bias", bias.shape(), (1, self.out_features()))?;
        let mut bias = Trained::new(self.gated.backend().upload(bias)?);
        bias.train(self.gated.backend(), self.down.gradient.is_some())?;
        self.down_bias = Some(bias);
        Ok(self)
    }

    /// With this way of computing the weight gradients.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Device`](crate::Error::Device).
    pub fn weight_grad(mut self, weight_grad: WeightGrad) -> Result<Self> {
        self.gated = self.gated.weight_grad(weight_grad)?;
        let trained = weight_grad != WeightGrad::Frozen;
        for parameter in [Some(&mut self.down), self.down_bias.as_mut()].into_iter().flatten() {
            parameter.train(self.gated.backend(), trained)?;
        }
        Ok(self)
    }

    /// With gradients that add up over backward calls.
    #[must_use]
    pub fn accumulate(mut self, accumulate: bool) -> Self {
        self.gated = self.gated.accumulate(accumulate);
        self.accumulate = accumulate;
        self
    }

    /// The gated layer.
    pub fn gated(&self) -> &FusedSwiGLU<T, B> {
        &self.gated
    }

    /// O.
    pub fn out_features(&self) -> usize {
        self.down().out_features()
    }

    /// The down projection.
    pub fn down(&self) -> Down<'_, T, B::Memory> {
        Down::new(self.down.value.view(), self.orientation)
    }

    /// y.
    ///
    /// # Errors
    /// As [`SwiGLU::forward_into`].
    pub fn forward<'a>(&self, x: impl Into<MatRef<'a, T, B::Memory>>) -> Result<Matrix<T, B::Memory>>
    where
        B::Memory: 'a,
    {
        let z = self.gated.forward(x)?;
        let mut y = self.gated.backend().zeros(z.rows(), self.out_features())?;
        self.project(z.view(), y.view_mut())?;
        Ok(y)
    }

    /// Room for what [`forward_train_into`](Self::forward_train_into) keeps, for batches of up to `batch` rows.
    ///
    /// # Errors
    /// [`Error::Overflow`](crate::Error::Overflow), [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn saved(&self, batch: usize) -> Result<MlpSaved<T, B>> {
        let (backend, hidden) = (self.gated.backend(), self.gated.hidden());
        Ok(MlpSaved { saved: self.gated.saved(batch)?, z: backend.zeros(batch, hidden)? })
    }

    /// y into a matrix of the caller, keeping what backward needs.
    ///
    /// # Errors
    /// As [`SwiGLU::forward_train_into`].
    pub fn forward_train_into(
        &self,
        x: MatRef<'_, T, B::Memory>,
        y: MatMut<'_, T, B::Memory>,
        kept: &mut MlpSaved<T, B>,
    ) -> Result<()> {
        let hidden = self.gated.hidden();
        check_shape("y", y.shape(), (x.rows(), self.out_features()))?;
        let mut z = room(&mut kept.z, x.rows(), hidden)?;
        self.gated.forward_train_into(x, z.view_mut(), &mut kept.saved)?;
        self.project(z.view(), y)
    }

    /// Fills the weight gradients (unless frozen), and dx when asked for, from dy. dz is formed and used up within
    /// `dy . Wdown^T`: see [`Upstream::projected`].
    ///
    /// # Errors
    /// As [`SwiGLU::backward`].
    pub fn backward(
        &mut self,
        x: MatRef<'_, T, B::Memory>,
        dy: MatRef<'_, T, B::Memory>,
        kept: &mut MlpSaved<T, B>,
        dx: Option<Out<'_, T, B::Memory>>,
    ) -> Result<()> {
        let (backend, hidden) = (self.gated.backend().clone(), self.gated.hidden());
        check_shape("dy", dy.shape(), (x.rows(), self.out_features()))?;
        let (down, target) = self.down.parts(self.accumulate);
        let upstream = Upstream::projected(dy, Down::new(down, self.orientation))?;
        // The op first: when its saved values are spent, nothing else has been touched. Those that a forward has filled have
        // a z of as many rows.
        self.gated.backward(x, upstream, &mut kept.saved, dx)?;
        let z = kept.z.view().sub(0..x.rows(), 0..hidden)?;
        if let Some(target) = target {
            let (a, b) = match self.orientation {
                Orientation::InOut => (z, dy),
                Orientation::OutIn => (dy, z),
            };
            backend.matmul((a, Op::T), (b, Op::N), target)?;
        }
        match self.down_bias.as_mut().map(|bias| bias.parts(self.accumulate)) {
            Some((_, Some(target))) => backend.column_sums(dy, target),
            Some((_, None)) | None => Ok(()),
        }
    }

    /// What an optimizer steps: the gated layer's, then the down projection and its bias; nothing when frozen.
    pub fn parameters(&mut self) -> impl Iterator<Item = Parameter<'_, T, B>> {
        let bias = self.down_bias.as_mut().and_then(Trained::parameter);
        self.gated.parameters().chain(self.down.parameter()).chain(bias)
    }

    /// Optimizer state, one for each of [`parameters`](Self::parameters).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Device`](crate::Error::Device).
    pub fn optimizers(&mut self) -> Result<Vec<Optimizer<B::Memory>>> {
        let backend = self.gated.backend().clone();
        self.parameters().map(|parameter| backend.optimizer(parameter.value.view())).collect()
    }

    /// A copy of the down projection on the host, as it was loaded. For the rest see [`gated`](Self::gated).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Device`](crate::Error::Device).
    pub fn save_down(&self) -> Result<Matrix<T, Host>> {
        self.gated.backend().download(&self.down.value)
    }

    /// A copy of the bias of the down projection on the host.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::Device`](crate::Error::Device).
    pub fn save_down_bias(&self) -> Result<Option<Matrix<T, Host>>> {
        self.down_bias.as_ref().map(|bias| self.gated.backend().download(&bias.value)).transpose()
    }

    fn project(&self, z: MatRef<'_, T, B::Memory>, mut y: MatMut<'_, T, B::Memory>) -> Result<()> {
        let (backend, down) = (self.gated.backend(), self.down());
        backend.matmul((z, Op::N), (down.matrix(), down.op()), Target::write(y.view_mut()))?;
        match &self.down_bias {
            Some(bias) => backend.add_bias(bias.value.view(), y),
            None => Ok(()),
        }
    }
}
