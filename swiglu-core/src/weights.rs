//! The weights of the op, in every arrangement that checkpoints use.

use crate::element::{Element, Scalar};
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::host::Host;
use crate::memory::{MatRef, Matrix, Memory};

/// How a weight matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Orientation {
    /// `[in_features, hidden]` for each half, `[in_features, 2 * hidden]` packed: z = h(x . Wa, x . Wb).
    InOut,
    /// `[hidden, in_features]` for each half, `[2 * hidden, in_features]` packed: `nn.Linear`'s and every
    /// checkpoint's.
    OutIn,
}

impl Orientation {
    /// Shape of the packed matrix.
    pub const fn packed_shape(self, in_features: usize, hidden: usize) -> (usize, usize) {
        match self {
            Orientation::InOut => (in_features, hidden.saturating_mul(2)),
            Orientation::OutIn => (hidden.saturating_mul(2), in_features),
        }
    }

    /// Shape of one half.
    pub const fn half_shape(self, in_features: usize, hidden: usize) -> (usize, usize) {
        match self {
            Orientation::InOut => (in_features, hidden),
            Orientation::OutIn => (hidden, in_features),
        }
    }
}

/// The parameters of the function: both projections, bias, and the gate that joins them. Views, and `Copy`.
///
/// The gate half comes first wherever both are packed together.
pub struct Weights<'a, T: Element, M: Memory> {
    gate: MatRef<'a, T, M>,
    up: MatRef<'a, T, M>,
    bias: Option<MatRef<'a, T, M>>,
    orientation: Orientation,
    function: Gate,
}

impl<T: Element, M: Memory> Clone for Weights<'_, T, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Element, M: Memory> Copy for Weights<'_, T, M> {}

impl<T: Element, M: Memory> std::fmt::Debug for Weights<'_, T, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("gate", &self.gate)
            .field("up", &self.up)
            .field("bias", &self.bias)
            .field("orientation", &self.orientation)
            .field("function", &self.function)
            .finish()
    }
}

impl<'a, T: Element, M: Memory> Weights<'a, T, M> {
    /// One matrix that holds both halves, gate first: `[I, 2D]` ([`Orientation::InOut`]) or `[2D, I]`
    /// ([`Orientation::OutIn`]).
    ///
    /// # Errors
    /// [`Error::OddWidth`] when it has no two halves.
    ///
    /// ```
    /// use swiglu_core::{Matrix, Orientation, Weights};
    /// let wf = Matrix::<f32, _>::host_zeros(784, 2 * 512)?;
    /// let w = Weights::packed(wf.view(), Orientation::InOut)?;
    /// assert_eq!((w.in_features(), w.hidden()), (784, 512));
    /// # Ok::<(), swiglu_core::Error>(())
    /// ```
    pub fn packed(wf: MatRef<'a, T, M>, orientation: Orientation) -> Result<Self> {
        let (rows, cols) = wf.shape();
        let width = match orientation {
            Orientation::InOut => cols,
            Orientation::OutIn => rows,
        };
        if !width.is_multiple_of(2) {
            return Err(Error::OddWidth { operand: "wf", width });
        }
        let half = width / 2;
        match orientation {
            Orientation::InOut => {
                Self::split(wf.sub(0..rows, 0..half)?, wf.sub(0..rows, half..cols)?, orientation)
            }
            Orientation::OutIn => {
                Self::split(wf.sub(0..half, 0..cols)?, wf.sub(half..rows, 0..cols)?, orientation)
            }
        }
    }

    /// Two matrices of one shape; nothing is copied.
    ///
    /// # Errors
    /// [`Error::Shape`] when their shapes differ.
    pub fn split(gate: MatRef<'a, T, M>, up: MatRef<'a, T, M>, orientation: Orientation) -> Result<Self> {
        if gate.shape() != up.shape() {
            return Err(Error::Shape { operand: "up weights", expected: gate.shape(), got: up.shape() });
        }
        Ok(Self { gate, up, bias: None, orientation, function: Gate::default() })
    }

    /// `[2D, I]` whose even rows are gate rows and odd rows up rows (gpt-oss, transposed); nothing is copied.
    ///
    /// # Errors
    /// [`Error::OddWidth`].
    pub fn interleaved_rows(wf: MatRef<'a, T, M>) -> Result<Self> {
        Self::split(wf.alternate_rows(0)?, wf.alternate_rows(1)?, Orientation::OutIn)
    }

    /// With a bias `[1, 2D]`, gate half first.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn bias(mut self, bias: MatRef<'a, T, M>) -> Result<Self> {
        let expected = (1, 2 * self.hidden());
        if bias.shape() != expected {
            return Err(Error::Shape { operand: "bias", expected, got: bias.shape() });
        }
        self.bias = Some(bias);
        Ok(self)
    }

    /// With this gate function instead of [`Gate::Swiglu`].
    #[must_use]
    pub fn gate(mut self, function: Gate) -> Self {
        self.function = function;
        self
    }

    /// I.
    pub fn in_features(&self) -> usize {
        match self.orientation {
            Orientation::InOut => self.gate.rows(),
            Orientation::OutIn => self.gate.cols(),
        }
    }

    /// D.
    pub fn hidden(&self) -> usize {
        match self.orientation {
            Orientation::InOut => self.gate.cols(),
            Orientation::OutIn => self.gate.rows(),
        }
    }

    /// How both halves lie in memory.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// The function that joins gate and up.
    pub fn function(&self) -> Gate {
        self.function
    }

    /// The gate projection.
    pub fn gate_weights(&self) -> MatRef<'a, T, M> {
        self.gate
    }

    /// The up projection.
    pub fn up_weights(&self) -> MatRef<'a, T, M> {
        self.up
    }

    /// The bias `[1, 2D]`.
    pub fn bias_row(&self) -> Option<MatRef<'a, T, M>> {
        self.bias
    }

    /// Shape of the packed matrix, whether or not the halves are packed here.
    pub fn packed_shape(&self) -> (usize, usize) {
        self.orientation.packed_shape(self.in_features(), self.hidden())
    }
}

/// Packs `[I, 2D]` weights whose gate and up columns alternate (g0, u0, g1, u1, ..) into the two halves
/// `[gate | up]` that the kernels read. The only arrangement that costs a copy: do it once, at load.
///
/// # Errors
/// [`Error::OddWidth`], [`Error::OutOfMemory`].
pub fn pack_interleaved_columns<T: Scalar>(wf: MatRef<'_, T, Host>) -> Result<Matrix<T, Host>> {
    permute_columns(wf, |col, hidden| (col % 2) * hidden + col / 2)
}

/// The inverse of [`pack_interleaved_columns`], bit for bit.
///
/// # Errors
/// [`Error::OddWidth`], [`Error::OutOfMemory`].
pub fn interleave_packed_columns<T: Scalar>(wf: MatRef<'_, T, Host>) -> Result<Matrix<T, Host>> {
    permute_columns(wf, |col, hidden| if col < hidden { 2 * col } else { 2 * (col - hidden) + 1 })
}

fn permute_columns<T: Scalar>(
    wf: MatRef<'_, T, Host>,
    to: impl Fn(usize, usize) -> usize,
) -> Result<Matrix<T, Host>> {
    let (rows, cols) = wf.shape();
    if !cols.is_multiple_of(2) {
        return Err(Error::OddWidth { operand: "wf", width: cols });
    }
    let mut packed = Matrix::host_zeros(rows, cols)?;
    let mut target = packed.view_mut().array_mut();
    for ((row, col), &value) in wf.array().indexed_iter() {
        target[[row, to(col, cols / 2)]] = value;
    }
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaving_round_trips() {
        let wf = ndarray::Array2::from_shape_fn((3, 8), |(i, j)| (i * 8 + j) as f32);
        let view = MatRef::try_from(&wf).unwrap_or_else(|e| panic!("{e}"));
        let packed = pack_interleaved_columns(view).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(packed.view().row(0), Some([0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0].as_slice()));
        let back = interleave_packed_columns(packed.view()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(back.into_array(), wf);
    }

    #[test]
    fn odd_widths_are_refused() {
        let wf = Matrix::<f32, Host>::host_zeros(3, 5).unwrap_or_else(|e| panic!("{e}"));
        let odd = |r: Result<Weights<'_, f32, Host>>| matches!(r, Err(Error::OddWidth { operand: "wf", .. }));
        assert!(odd(Weights::packed(wf.view(), Orientation::InOut)), "5 columns");
        assert!(odd(Weights::packed(wf.view(), Orientation::OutIn)), "3 rows");
        assert!(odd(Weights::interleaved_rows(wf.view())), "3 rows, interleaved");
        assert!(matches!(pack_interleaved_columns(wf.view()), Err(Error::OddWidth { width: 5, .. })));
    }
}
