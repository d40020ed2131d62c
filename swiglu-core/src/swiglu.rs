//! The op: a shape-checked trait that users call and backends implement.

use crate::backend::Backend;
use crate::checked::Checked;
use crate::element::{Dtype, Element};
use crate::error::{Error, Result};
use crate::footprint::Footprints;
use crate::gradients::{Gradients, Out, Target};
use crate::layout::elements;
use crate::memory::{MatMut, MatRef, Matrix, Memory};
use crate::ops::{Backward, Forward};
use crate::options::Options;
use crate::problem::{Access, Accesses, Dims, GradientKind, Pass, Plan, Problem, UpstreamKind};
use crate::saved::{Save, Saved};
use crate::upstream::Upstream;
use crate::weights::Weights;

/// Fused SwiGLU on one element type: `z = h(x . Wa + ba, x . Wb + bb)` in one call, and its gradients.
///
/// Users call the provided methods. They check everything once (shapes, strides, overlap, device, stream, overflow)
/// and hand a [`Checked`] call to the backend; on an error nothing is written.
///
/// A dimension of 0 is legal: an empty sum is 0, so `I = 0` gives z = h(bias) and `B = 0` gives dWf = 0.
///
/// ```
/// use ndarray::array;
/// use swiglu_core::{Backend, MatRef, Options, Orientation, SwiGLU, Weights};
/// use swiglu_cpu::Cpu;
///
/// let x = array![[1.0f32, 2.0]]; // [B, I] = [1, 2]
/// let wf = array![[1.0f32, 3.0], [0.5, -1.0]]; // [I, 2D] = [2, 2]: gate column, up column
/// let w = Weights::packed(MatRef::try_from(&wf)?, Orientation::InOut)?;
/// let z = Cpu::new().forward(MatRef::try_from(&x)?, w, Options::new())?;
/// let silu = |g: f32| g / (1.0 + (-g).exp());
/// assert!((z.into_array()[[0, 0]] - silu(2.0) * 1.0).abs() < 1e-6);
/// # Ok::<(), swiglu_core::Error>(())
/// ```
///
/// An input cannot be its own output; the borrow checker refuses it:
///
/// ```compile_fail
/// use swiglu_core::{Backend, Options, Orientation, SwiGLU, Weights};
/// use swiglu_cpu::Cpu;
/// let cpu = Cpu::new();
/// let wf = cpu.zeros::<f32>(4, 8)?;
/// let w = Weights::packed(wf.view(), Orientation::InOut)?;
/// let mut x = cpu.zeros::<f32>(4, 4)?;
/// cpu.forward_into(x.view(), w, x.view_mut(), Options::new())?; // x is borrowed for reading
/// # Ok::<(), swiglu_core::Error>(())
/// ```
#[doc(alias = "SwiGlu")]
pub trait SwiGLU<T: Element>: Backend {
    /// Runs a checked forward.
    #[doc(hidden)]
    fn run_forward(&self, call: Checked<Forward<'_, T, Self::Memory>>) -> Result<()>;

    /// Runs a checked backward.
    #[doc(hidden)]
    fn run_backward(&self, call: Checked<Backward<'_, T, Self::Memory>>) -> Result<()>;

    /// What a call would do: kernels, tiles, workspace.
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::Unsupported`].
    fn plan(&self, problem: &Problem) -> Result<Plan>;

    /// `z = h(x . Wa + ba, x . Wb + bb)` into a matrix of the caller.
    ///
    /// `x [B, I]`, `z [B, D]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Overlap`], [`Error::WrongDevice`], [`Error::WrongStream`], [`Error::Overflow`],
    /// [`Error::InvalidOption`], [`Error::OutOfMemory`] (workspace), [`Error::Device`].
    fn forward_into(
        &self,
        x: MatRef<'_, T, Self::Memory>,
        w: Weights<'_, T, Self::Memory>,
        z: MatMut<'_, T, Self::Memory>,
        options: Options,
    ) -> Result<()> {
        self.run_forward(check_forward(self, x, w, z, None, options)?)
    }

    /// `z = h(x . Wa + ba, x . Wb + bb)`.
    ///
    /// # Errors
    /// As [`forward_into`](SwiGLU::forward_into).
    fn forward(
        &self,
        x: MatRef<'_, T, Self::Memory>,
        w: Weights<'_, T, Self::Memory>,
        options: Options,
    ) -> Result<Matrix<T, Self::Memory>> {
        check_shape("x", x.shape(), (x.rows(), w.in_features()))?;
        let mut z = self.zeros(x.rows(), w.hidden())?;
        self.forward_into(x, w, z.view_mut(), options)?;
        Ok(z)
    }

    /// Room for what [`forward_train_into`](SwiGLU::forward_train_into) keeps, for batches of up to `batch` rows.
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::OutOfMemory`].
    fn saved(&self, save: Save, batch: usize, hidden: usize) -> Result<Saved<T, Self::Memory>> {
        let pre = match save {
            Save::PreActivations => Some(self.zeros(batch, elements("packed width", hidden, 2)?)?),
            Save::Input => None,
        };
        Ok(Saved::new(pre))
    }

    /// [`forward_into`](SwiGLU::forward_into), keeping in `saved` what backward needs.
    ///
    /// # Errors
    /// As [`forward_into`](SwiGLU::forward_into), and [`Error::Shape`] when `saved` is too small. After an error
    /// `saved` is spent.
    fn forward_train_into(
        &self,
        x: MatRef<'_, T, Self::Memory>,
        w: Weights<'_, T, Self::Memory>,
        z: MatMut<'_, T, Self::Memory>,
        saved: &mut Saved<T, Self::Memory>,
        options: Options,
    ) -> Result<()> {
        let pre = saved.room(x.rows(), w.hidden())?;
        self.run_forward(check_forward(self, x, w, z, pre, options)?)?;
        saved.arm(x.rows(), &w);
        Ok(())
    }

    /// [`forward`](SwiGLU::forward), and what backward needs.
    ///
    /// # Errors
    /// As [`forward_into`](SwiGLU::forward_into).
    fn forward_train(
        &self,
        x: MatRef<'_, T, Self::Memory>,
        w: Weights<'_, T, Self::Memory>,
        save: Save,
        options: Options,
    ) -> Result<(Matrix<T, Self::Memory>, Saved<T, Self::Memory>)> {
        check_shape("x", x.shape(), (x.rows(), w.in_features()))?;
        let mut z = self.zeros(x.rows(), w.hidden())?;
        let mut saved = self.saved(save, x.rows(), w.hidden())?;
        self.forward_train_into(x, w, z.view_mut(), &mut saved, options)?;
        Ok((z, saved))
    }

    /// The gradients asked for, from `dz [B, D]`: with dU = dz * dh/du and dG = dz * dh/dg,
    /// `dX = [dG | dU] . Wf^T`, `dWf = X^T . [dG | dU]`, `dbias` = the column sums of `[dG | dU]`.
    ///
    /// `upstream` is dz, or [what a down projection makes dz of](Upstream::projected): then dG and dU are formed on the
    /// sums of `dy . Wdown^T`, and dz is never in memory.
    ///
    /// `x` and `w` are those of the forward that filled `saved`, which is spent afterwards.
    ///
    /// # Errors
    /// [`Error::Spent`], [`Error::SavedMismatch`], and as [`forward_into`](SwiGLU::forward_into).
    fn backward<'u>(
        &self,
        x: MatRef<'_, T, Self::Memory>,
        w: Weights<'_, T, Self::Memory>,
        upstream: impl Into<Upstream<'u, T, Self::Memory>>,
        saved: &mut Saved<T, Self::Memory>,
        gradients: Gradients<'_, T, Self::Memory>,
        options: Options,
    ) -> Result<()>
    where
        Self::Memory: 'u,
    {
        saved.check(x.rows(), &w)?;
        let (pre, spending) = saved.spend(x.rows())?;
        let call = check_backward(self, (x, w, upstream.into()), pre, gradients, options)?;
        spending.run(|| self.run_backward(call))
    }
}

pub(crate) fn check_shape(
    operand: &'static str,
    got: (usize, usize),
    expected: (usize, usize),
) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::Shape { operand, expected, got }) }
}

/// B, I, D, with every product that a backend will form known to fit.
fn check_dims<T: Element, M: Memory>(x: MatRef<'_, T, M>, w: &Weights<'_, T, M>) -> Result<Dims> {
    let dims = Dims { batch: x.rows(), in_features: w.in_features(), hidden: w.hidden() };
    check_shape("x", x.shape(), (dims.batch, dims.in_features))?;
    dims.check()?;
    w.function().check()?;
    Ok(dims)
}

fn reads_weights<T: Element, M: Memory>(footprints: &mut Footprints, w: &Weights<'_, T, M>) {
    footprints.reads("gate weights", w.gate_weights()).reads("up weights", w.up_weights());
    if let Some(bias) = w.bias_row() {
        footprints.reads("bias", bias);
    }
}

fn check_forward<'a, T: Element, B: SwiGLU<T>>(
    backend: &B,
    x: MatRef<'a, T, B::Memory>,
    w: Weights<'a, T, B::Memory>,
    z: MatMut<'a, T, B::Memory>,
    pre: Option<MatMut<'a, T, B::Memory>>,
    options: Options,
) -> Result<Checked<Forward<'a, T, B::Memory>>> {
    let dims = check_dims(x, &w)?;
    check_shape("z", z.shape(), (dims.batch, dims.hidden))?;
    let mut footprints = Footprints::new();
    footprints.reads("x", x);
    reads_weights(&mut footprints, &w);
    footprints.writes("z", &z);
    if let Some(pre) = &pre {
        check_shape("pre-activations", pre.shape(), (dims.batch, 2 * dims.hidden))?;
        footprints.writes("pre-activations", pre);
    }
    footprints.check(backend)?;
    let problem = Problem {
        pass: Pass::Forward { save: pre.is_some() },
        upstream: UpstreamKind::Dz,
        dtype: T::DTYPE,
        dims,
        orientation: w.orientation(),
        bias: w.bias_row().is_some(),
        gate: w.function(),
        accesses: Accesses {
            x: Access::of(x),
            gate: Access::of(w.gate_weights()),
            up: Access::of(w.up_weights()),
            z: Access::of(z.view()),
            pre: pre.as_ref().map_or_else(Access::default, |pre| Access::of(pre.view())),
            ..Accesses::default()
        },
        options,
    };
    Ok(Checked::new(Forward { problem, x, w, z, pre }))
}

fn target_access<T: Element, M: Memory>(target: &Target<'_, T, M>) -> Access {
    match target {
        Target::Same(out) => Access::of(out.to.view()),
        Target::F32(out) => Access::of(out.to.view()),
    }
}

fn target_kind<T: Element, M: Memory>(target: &Target<'_, T, M>) -> GradientKind {
    match target {
        Target::Same(out) => GradientKind { dtype: T::DTYPE, add: out.add },
        Target::F32(out) => GradientKind { dtype: Dtype::F32, add: out.add },
    }
}

pub(crate) fn writes_target<T: Element, M: Memory>(
    footprints: &mut Footprints,
    operand: &'static str,
    target: &Target<'_, T, M>,
) {
    match target {
        Target::Same(out) => footprints.writes(operand, &out.to),
        Target::F32(out) => footprints.writes(operand, &out.to),
    };
}

/// x, the weights, and where dz comes from.
type BackwardInputs<'a, T, M> = (MatRef<'a, T, M>, Weights<'a, T, M>, Upstream<'a, T, M>);

/// What dz comes from, as a problem has it, with every product known to fit.
fn check_upstream<T: Element, M: Memory>(
    dims: Dims,
    upstream: &Upstream<'_, T, M>,
    footprints: &mut Footprints,
) -> Result<UpstreamKind> {
    match *upstream {
        Upstream::Dz(dz) => {
            check_shape("dz", dz.shape(), (dims.batch, dims.hidden))?;
            footprints.reads("dz", dz);
            Ok(UpstreamKind::Dz)
        }
        Upstream::Projected { dy, down } => {
            let (out_features, orientation) = (down.out_features(), down.orientation());
            check_shape("dy", dy.shape(), (dims.batch, out_features))?;
            let expected = orientation.half_shape(dims.hidden, out_features);
            check_shape("down projection", down.matrix().shape(), expected)?;
            dims.check_projected(out_features)?;
            footprints.reads("dy", dy).reads("down projection", down.matrix());
            Ok(UpstreamKind::Projected { out_features, orientation })
        }
    }
}

fn check_backward<'a, T: Element, B: SwiGLU<T>>(
    backend: &B,
    (x, w, upstream): BackwardInputs<'a, T, B::Memory>,
    pre: Option<MatMut<'a, T, B::Memory>>,
    mut gradients: Gradients<'a, T, B::Memory>,
    options: Options,
) -> Result<Checked<Backward<'a, T, B::Memory>>> {
    let dims = check_dims(x, &w)?;
    let mut footprints = Footprints::new();
    let kind = check_upstream(dims, &upstream, &mut footprints)?;
    let dwf = gradients.take_halves(w.orientation(), dims.in_features, dims.hidden)?;
    let Gradients { dx, dbias, .. } = gradients;
    footprints.reads("x", x);
    reads_weights(&mut footprints, &w);
    if let Some(Out { to, .. }) = &dx {
        check_shape("dx", to.shape(), x.shape())?;
        footprints.writes("dx", to);
    }
    if let Some(halves) = &dwf {
        writes_target(&mut footprints, "dwf", &halves.gate);
        writes_target(&mut footprints, "dwf up half", &halves.up);
    }
    if let Some(target) = &dbias {
        check_shape("dbias", target.shape(), (1, 2 * dims.hidden))?;
        writes_target(&mut footprints, "dbias", target);
    }
    if let Some(pre) = &pre {
        footprints.writes("saved pre-activations", pre);
    }
    footprints.check(backend)?;
    let none = Access::default();
    let (dz, dy, down) = match upstream {
        Upstream::Dz(dz) => (Access::of(dz), none, none),
        Upstream::Projected { dy, down } => (none, Access::of(dy), Access::of(down.matrix())),
    };
    let problem = Problem {
        pass: Pass::Backward {
            saved: pre.is_some(),
            dx: dx.as_ref().map(|out| GradientKind { dtype: T::DTYPE, add: out.add }),
            dwf: dwf.as_ref().map(|halves| target_kind(&halves.gate)),
            dbias: dbias.as_ref().map(target_kind),
        },
        upstream: kind,
        dtype: T::DTYPE,
        dims,
        orientation: w.orientation(),
        bias: w.bias_row().is_some(),
        gate: w.function(),
        accesses: Accesses {
            x: Access::of(x),
            gate: Access::of(w.gate_weights()),
            up: Access::of(w.up_weights()),
            z: dz,
            dy,
            down,
            pre: pre.as_ref().map_or_else(Access::default, |pre| Access::of(pre.view())),
            dx: dx.as_ref().map_or_else(Access::default, |out| Access::of(out.to.view())),
            dwf_gate: dwf.as_ref().map_or_else(Access::default, |halves| target_access(&halves.gate)),
            dwf_up: dwf.as_ref().map_or_else(Access::default, |halves| target_access(&halves.up)),
        },
        options,
    };
    Ok(Checked::new(Backward { problem, x, w, upstream, pre, dx, dwf, dbias }))
}
