//! Host copies of operands, with the strides of the original.

use swiglu_core::{
    Down, Element, Halves, Host, Layout, MatMut, MatRef, Orientation, Out, Result, Scalar, Target, Upstream,
    Weights,
};

use super::memory::{FakeMemory, FakePtr};
use super::slip::Slip;

/// Everything from the first to the last element of a view, stride gaps included.
pub(super) struct Staged<T> {
    data: Vec<T>,
    layout: Layout,
    slip: Option<Slip>,
}

impl<T: Scalar> Staged<T> {
    pub(super) fn read(from: MatRef<'_, T, FakeMemory>, slip: Option<Slip>) -> Result<Self> {
        let (layout, start) = (from.layout(), from.ptr().offset());
        let mut data = vec![T::default(); layout.span()];
        if layout.span() > 0 {
            from.ptr().with(|block| {
                data.copy_from_slice(&block[start..start + layout.span()]);
                misread(&mut data, block, start, layout, slip);
            })?;
        }
        Ok(Self { data, layout, slip })
    }

    pub(super) fn view(&self) -> Result<MatRef<'_, T, Host>> {
        MatRef::from_slice(&self.data, self.layout)
    }

    pub(super) fn view_mut(&mut self) -> Result<MatMut<'_, T, Host>> {
        MatMut::from_slice(&mut self.data, self.layout)
    }

    /// Writes the elements of the view, and nothing between them.
    pub(super) fn write(&self, to: MatMut<'_, T, FakeMemory>) -> Result<()> {
        self.write_at(to.ptr())
    }

    /// [`write`](Self::write), also where only a read was agreed: what [`Slip::ModifiesInput`] does.
    pub(super) fn write_at(&self, to: FakePtr<T>) -> Result<()> {
        let (rows, cols) = self.layout.shape();
        if self.layout.span() == 0 {
            return Ok(());
        }
        let (start, from_stride) = (to.offset(), self.layout.row_stride());
        let stride = if self.slip == Some(Slip::WritesDense) { cols } else { from_stride };
        to.with(|block| {
            for row in 0..rows {
                let from = &self.data[row * from_stride..][..cols];
                let last = row + 1 == rows && self.slip == Some(Slip::KeepsLastElement);
                let count = cols - usize::from(last);
                block[start + row * stride..][..count].copy_from_slice(&from[..count]);
                let past = block.get_mut(start + row * stride + cols);
                if let (Some(past), Some(Slip::WritesPastRow)) = (past, self.slip) {
                    *past = from[cols - 1];
                }
            }
            if self.slip == Some(Slip::WritesBeforeStart) && start > 0 {
                block[start - 1] = self.data[0];
            }
        })
    }
}

/// Changes what was read as a slip would.
fn misread<T: Scalar>(data: &mut [T], block: &[T], start: usize, layout: Layout, slip: Option<Slip>) {
    let ((rows, cols), stride) = (layout.shape(), layout.row_stride());
    match slip {
        Some(Slip::ReadsDense) => {
            for row in 0..rows {
                data[row * stride..][..cols].copy_from_slice(&block[start + row * cols..][..cols]);
            }
        }
        Some(Slip::ReadsFromBlockStart) => data.copy_from_slice(&block[..data.len()]),
        Some(Slip::ReadsPastRow) => {
            for row in 0..rows {
                let past = block.get(start + row * stride + cols);
                // 0 * value changes a sum when value is NaN (or infinite, which stays untold here).
                if let Some(&nan) = past.filter(|past| is_nan(*past)) {
                    data[row * stride + cols - 1] = nan;
                }
            }
        }
        _ => {}
    }
}

/// A NaN of any element type.
#[expect(clippy::eq_op, reason = "only a NaN differs from itself")]
fn is_nan<T: Scalar>(value: &T) -> bool {
    value != value
}

/// A gradient target on the host.
pub(super) enum StagedTarget<T: Element> {
    Same(Staged<T>, bool),
    F32(Staged<f32>, bool),
}

impl<T: Element> StagedTarget<T> {
    pub(super) fn read(target: &Target<'_, T, FakeMemory>, slip: Option<Slip>) -> Result<Self> {
        Ok(match target {
            Target::Same(out) => Self::Same(Staged::read(out.to.view(), slip)?, out.add),
            Target::F32(out) => Self::F32(Staged::read(out.to.view(), slip)?, out.add),
        })
    }

    pub(super) fn target(&mut self) -> Result<Target<'_, T, Host>> {
        Ok(match self {
            Self::Same(staged, add) => Target::Same(Out { to: staged.view_mut()?, add: *add }),
            Self::F32(staged, add) => Target::F32(Out { to: staged.view_mut()?, add: *add }),
        })
    }

    pub(super) fn write(&self, target: Target<'_, T, FakeMemory>) -> Result<()> {
        match (self, target) {
            (Self::Same(staged, _), Target::Same(out)) => staged.write(out.to),
            (Self::F32(staged, _), Target::F32(out)) => staged.write(out.to),
            _ => Ok(()),
        }
    }
}

/// Both halves of dWf on the host.
pub(super) struct StagedHalves<T: Element> {
    pub(super) gate: StagedTarget<T>,
    pub(super) up: StagedTarget<T>,
}

impl<T: Element> StagedHalves<T> {
    pub(super) fn read(halves: &Halves<'_, T, FakeMemory>, slip: Option<Slip>) -> Result<Self> {
        Ok(Self { gate: StagedTarget::read(&halves.gate, slip)?, up: StagedTarget::read(&halves.up, slip)? })
    }

    pub(super) fn write(&self, halves: Halves<'_, T, FakeMemory>) -> Result<()> {
        self.gate.write(halves.gate)?;
        self.up.write(halves.up)
    }
}

/// Weights on the host.
pub(super) struct StagedWeights<'a, T: Element> {
    original: Weights<'a, T, FakeMemory>,
    gate: Staged<T>,
    up: Staged<T>,
    bias: Option<Staged<T>>,
}

impl<'a, T: Element> StagedWeights<'a, T> {
    pub(super) fn read(w: Weights<'a, T, FakeMemory>, slip: Option<Slip>) -> Result<Self> {
        let (gate, up) = (Staged::read(w.gate_weights(), slip)?, Staged::read(w.up_weights(), slip)?);
        let bias = w.bias_row().map(|bias| Staged::read(bias, slip)).transpose()?;
        Ok(Self { original: w, gate, up, bias })
    }

    pub(super) fn weights(&self) -> Result<Weights<'_, T, Host>> {
        let w = Weights::split(self.gate.view()?, self.up.view()?, self.original.orientation())?;
        let w = w.gate(self.original.function());
        match &self.bias {
            Some(bias) => w.bias(bias.view()?),
            None => Ok(w),
        }
    }
}

/// What dz comes from, on the host.
pub(super) enum StagedUpstream<T: Element> {
    Dz(Staged<T>),
    Projected { dy: Staged<T>, down: Staged<T>, orientation: Orientation },
}

impl<T: Element> StagedUpstream<T> {
    pub(super) fn read(upstream: Upstream<'_, T, FakeMemory>, slip: Option<Slip>) -> Result<Self> {
        Ok(match upstream {
            Upstream::Dz(dz) => Self::Dz(Staged::read(dz, slip)?),
            Upstream::Projected { dy, down, .. } => Self::Projected {
                dy: Staged::read(dy, slip)?,
                down: Staged::read(down.matrix(), slip)?,
                orientation: down.orientation(),
            },
        })
    }

    pub(super) fn upstream(&self) -> Result<Upstream<'_, T, Host>> {
        match self {
            Self::Dz(dz) => dz.view().map(Upstream::from),
            Self::Projected { dy, down, orientation } => {
                Upstream::projected(dy.view()?, Down::new(down.view()?, *orientation))
            }
        }
    }
}
