//! Where gradients go: each one only when asked for, written or added.

use crate::element::{Element, Scalar};
use crate::error::{Error, Result};
use crate::memory::{MatMut, Memory};
use crate::weights::Orientation;

/// A matrix that a call writes, or adds to.
#[derive(Debug)]
pub struct Out<'a, T: Scalar, M: Memory> {
    /// The matrix.
    pub to: MatMut<'a, T, M>,
    /// Whether its old contents count (`+=`) or not (`=`).
    pub add: bool,
}

impl<'a, T: Scalar, M: Memory> Out<'a, T, M> {
    /// `to = gradient`; the old contents are not read.
    pub fn write(to: impl Into<MatMut<'a, T, M>>) -> Self {
        Self { to: to.into(), add: false }
    }

    /// `to += gradient`, rounded once.
    pub fn add(to: impl Into<MatMut<'a, T, M>>) -> Self {
        Self { to: to.into(), add: true }
    }
}

/// An [`Out`] in the element type of the op, or in `f32` (the master gradient under 16-bit weights).
#[derive(Debug)]
pub enum Target<'a, T: Element, M: Memory> {
    /// In the element type.
    Same(Out<'a, T, M>),
    /// In `f32`: not rounded to the element type.
    F32(Out<'a, f32, M>),
}

impl<'a, T: Element, M: Memory> Target<'a, T, M> {
    /// `to = gradient`.
    pub fn write(to: impl Into<MatMut<'a, T, M>>) -> Self {
        Self::Same(Out::write(to))
    }

    /// `to += gradient`.
    pub fn add(to: impl Into<MatMut<'a, T, M>>) -> Self {
        Self::Same(Out::add(to))
    }

    /// `to = gradient`, in `f32`.
    pub fn write_f32(to: impl Into<MatMut<'a, f32, M>>) -> Self {
        Self::F32(Out::write(to))
    }

    /// `to += gradient`, in `f32`.
    pub fn add_f32(to: impl Into<MatMut<'a, f32, M>>) -> Self {
        Self::F32(Out::add(to))
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Target::Same(out) => out.to.shape(),
            Target::F32(out) => out.to.shape(),
        }
    }

    /// Whether the old contents count.
    pub fn adds(&self) -> bool {
        match self {
            Target::Same(out) => out.add,
            Target::F32(out) => out.add,
        }
    }

    /// Applies one way of splitting, whatever the element type.
    fn halves<S: Splitter>(self, splitter: S) -> Result<(Self, Self)> {
        match self {
            Target::Same(Out { to, add }) => {
                let (gate, up) = splitter.split(to)?;
                Ok((Self::Same(Out { to: gate, add }), Self::Same(Out { to: up, add })))
            }
            Target::F32(Out { to, add }) => {
                let (gate, up) = splitter.split(to)?;
                Ok((Self::F32(Out { to: gate, add }), Self::F32(Out { to: up, add })))
            }
        }
    }
}

/// A way to cut a matrix in two, for any element type.
trait Splitter {
    fn split<'a, T: Scalar, M: Memory>(
        self,
        m: MatMut<'a, T, M>,
    ) -> Result<(MatMut<'a, T, M>, MatMut<'a, T, M>)>;
}

struct PackedHalves(Orientation);

impl Splitter for PackedHalves {
    fn split<'a, T: Scalar, M: Memory>(
        self,
        m: MatMut<'a, T, M>,
    ) -> Result<(MatMut<'a, T, M>, MatMut<'a, T, M>)> {
        let (rows, cols) = m.shape();
        match self.0 {
            Orientation::InOut => m.split_cols(cols / 2),
            Orientation::OutIn => m.split_rows(rows / 2),
        }
    }
}

struct AlternateRows;

impl Splitter for AlternateRows {
    fn split<'a, T: Scalar, M: Memory>(
        self,
        m: MatMut<'a, T, M>,
    ) -> Result<(MatMut<'a, T, M>, MatMut<'a, T, M>)> {
        m.split_alternate_rows()
    }
}

/// How the two halves of dWf lie in memory.
#[derive(Debug)]
enum WeightTarget<'a, T: Element, M: Memory> {
    Packed(Target<'a, T, M>),
    Split(Target<'a, T, M>, Target<'a, T, M>),
    InterleavedRows(Target<'a, T, M>),
}

/// The two halves of dWf, each of [`Orientation::half_shape`]; both written or both added to, in one element type.
#[derive(Debug)]
pub struct Halves<'a, T: Element, M: Memory> {
    /// Gradient of the gate projection.
    pub gate: Target<'a, T, M>,
    /// Gradient of the up projection.
    pub up: Target<'a, T, M>,
}

/// Which gradients backward computes. One that is absent costs nothing.
///
/// ```
/// use swiglu_core::{Gradients, Matrix, Out, Target};
/// let mut dx = Matrix::<f32, _>::host_zeros(4, 8)?;
/// let mut dwf = Matrix::<f32, _>::host_zeros(8, 6)?;
/// let gradients = Gradients::new().dx(Out::write(&mut dx)).dwf(Target::add(&mut dwf));
/// # let _: Gradients<'_, f32, swiglu_core::Host> = gradients;
/// # Ok::<(), swiglu_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Gradients<'a, T: Element, M: Memory> {
    pub(crate) dx: Option<Out<'a, T, M>>,
    dwf: Option<WeightTarget<'a, T, M>>,
    pub(crate) dbias: Option<Target<'a, T, M>>,
}

impl<T: Element, M: Memory> Default for Gradients<'_, T, M> {
    fn default() -> Self {
        Self { dx: None, dwf: None, dbias: None }
    }
}

impl<'a, T: Element, M: Memory> Gradients<'a, T, M> {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// The gradient of x, `[B, I]`.
    #[must_use]
    pub fn dx(mut self, to: Out<'a, T, M>) -> Self {
        self.dx = Some(to);
        self
    }

    /// The gradient of packed weights, in the shape and orientation of the packed weights.
    #[must_use]
    pub fn dwf(mut self, to: Target<'a, T, M>) -> Self {
        self.dwf = Some(WeightTarget::Packed(to));
        self
    }

    /// The gradient of weights in two matrices.
    #[must_use]
    pub fn dwf_split(mut self, gate: Target<'a, T, M>, up: Target<'a, T, M>) -> Self {
        self.dwf = Some(WeightTarget::Split(gate, up));
        self
    }

    /// The gradient of `[2D, I]` weights whose gate and up rows alternate.
    #[must_use]
    pub fn dwf_interleaved_rows(mut self, to: Target<'a, T, M>) -> Self {
        self.dwf = Some(WeightTarget::InterleavedRows(to));
        self
    }

    /// The gradient of the bias, `[1, 2D]`, gate half first.
    #[must_use]
    pub fn dbias(mut self, to: Target<'a, T, M>) -> Self {
        self.dbias = Some(to);
        self
    }

    /// The halves of dWf, checked against the weights' geometry.
    pub(crate) fn take_halves(
        &mut self,
        orientation: Orientation,
        in_features: usize,
        hidden: usize,
    ) -> Result<Option<Halves<'a, T, M>>> {
        let packed = orientation.packed_shape(in_features, hidden);
        let check = |operand, got, expected| {
            if got == expected { Ok(()) } else { Err(Error::Shape { operand, expected, got }) }
        };
        let half = orientation.half_shape(in_features, hidden);
        let (gate, up) = match self.dwf.take() {
            None => return Ok(None),
            Some(WeightTarget::Packed(to)) => {
                check("dwf", to.shape(), packed)?;
                to.halves(PackedHalves(orientation))?
            }
            Some(WeightTarget::InterleavedRows(to)) => {
                check("dwf", to.shape(), Orientation::OutIn.packed_shape(in_features, hidden))?;
                to.halves(AlternateRows)?
            }
            Some(WeightTarget::Split(gate, up)) => (gate, up),
        };
        if std::mem::discriminant(&gate) != std::mem::discriminant(&up) || gate.adds() != up.adds() {
            return Err(Error::MixedHalves);
        }
        check("dwf gate half", gate.shape(), half)?;
        check("dwf up half", up.shape(), half)?;
        Ok(Some(Halves { gate, up }))
    }
}
