//! What a forward pass keeps for its backward.

use crate::element::Element;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::memory::{MatMut, MatRef, Matrix, Memory};
use crate::weights::Weights;

/// Which values forward keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Save {
    /// The pre-activations `[B, 2D]`, gate half first: backward needs no third GEMM.
    #[default]
    PreActivations,
    /// Nothing but the caller's own `x`: backward computes the pre-activations again. Saves `2 * B * D` elements for
    /// `4 * B * I * D` more operations.
    Input,
}

/// The call that filled a [`Saved`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    batch: usize,
    in_features: usize,
    hidden: usize,
    gate: Gate,
}

impl Call {
    fn of<T: Element, M: Memory>(batch: usize, w: &Weights<'_, T, M>) -> Self {
        Self { batch, in_features: w.in_features(), hidden: w.hidden(), gate: w.function() }
    }
}

/// What a forward kept, reused from step to step.
///
/// Forward arms it, backward turns the pre-activations into their gradient in place and disarms it: a second backward
/// is [`Error::Spent`], never a wrong number. A backward that is refused leaves it as it was. It may be made for a larger batch
/// than a call has.
pub struct Saved<T: Element, M: Memory> {
    pre: Option<Matrix<T, M>>,
    armed: Option<Call>,
}

impl<T: Element, M: Memory> std::fmt::Debug for Saved<T, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("pre", &self.pre).field("armed", &self.armed).finish()
    }
}

impl<T: Element, M: Memory> Saved<T, M> {
    pub(crate) fn new(pre: Option<Matrix<T, M>>) -> Self {
        Self { pre, armed: None }
    }

    /// Which values it keeps.
    pub fn save(&self) -> Save {
        if self.pre.is_some() { Save::PreActivations } else { Save::Input }
    }

    /// Bytes of device memory it holds.
    pub fn bytes(&self) -> usize {
        self.pre.as_ref().map_or(0, |pre| pre.rows() * pre.cols() * size_of::<T>())
    }

    /// Whether a forward has filled it and no backward has used it up.
    pub fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// The pre-activations `[B, 2D]` of the last forward; `None` when they were not kept or are spent.
    pub fn pre_activations(&self) -> Option<MatRef<'_, T, M>> {
        let call = self.armed?;
        let pre = self.pre.as_ref()?;
        pre.view().sub(0..call.batch, 0..2 * call.hidden).ok()
    }

    /// Room for the pre-activations of one call, disarmed: whatever happens next, the old values are not used.
    pub(crate) fn room(&mut self, batch: usize, hidden: usize) -> Result<Option<MatMut<'_, T, M>>> {
        self.armed = None;
        let Some(pre) = &mut self.pre else { return Ok(None) };
        let got = pre.shape();
        if got.0 < batch || got.1 != 2 * hidden {
            return Err(Error::Shape {
                operand: "saved pre-activations",
                expected: (batch, 2 * hidden),
                got,
            });
        }
        pre.view_mut().sub(0..batch, 0..2 * hidden).map(Some)
    }

    pub(crate) fn arm(&mut self, batch: usize, w: &Weights<'_, T, M>) {
        self.armed = Some(Call::of(batch, w));
    }

    /// Whether backward of this call may use it.
    pub(crate) fn check(&self, batch: usize, w: &Weights<'_, T, M>) -> Result<()> {
        let saved = self.armed.ok_or(Error::Spent)?;
        let call = Call::of(batch, w);
        if saved == call {
            return Ok(());
        }
        let list = |c: Call| (c.batch, c.in_features, c.hidden, c.gate);
        Err(Error::SavedMismatch { saved: list(saved), call: list(call) })
    }

    /// The pre-activations of `batch` rows, for backward to overwrite, and who runs it.
    pub(crate) fn spend(&mut self, batch: usize) -> Result<(Option<MatMut<'_, T, M>>, Spending<'_>)> {
        let Self { pre, armed } = self;
        let pre = pre.as_mut().map(|pre| {
            let cols = pre.cols();
            pre.view_mut().sub(0..batch, 0..cols)
        });
        Ok((pre.transpose()?, Spending(armed)))
    }
}

/// What a backward uses up once nothing can be refused any more.
pub(crate) struct Spending<'a>(&'a mut Option<Call>);

impl Spending<'_> {
    /// Saved values count as spent from here on, also where `run` panics; but for an error after which nothing was written.
    pub(crate) fn run(self, run: impl FnOnce() -> Result<()>) -> Result<()> {
        let call = self.0.take();
        let result = run();
        if matches!(&result, Err(error) if !matches!(error, Error::Device(_))) {
            *self.0 = call;
        }
        result
    }
}
