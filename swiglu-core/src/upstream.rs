//! The gradient that backward starts from: dz itself, or what a down projection makes dz of.

use crate::dense::Op;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::memory::{MatRef, Matrix, Memory};
use crate::weights::Orientation;

/// The weights that project z back: `y = z . Wdown`, `[B, D]` to `[B, O]`.
///
/// ```
/// use swiglu_core::{Down, Matrix, Orientation};
/// let w = Matrix::<f32, _>::host_zeros(4, 16)?; // [O, D], as checkpoints have it
/// let down = Down::new(w.view(), Orientation::OutIn);
/// assert_eq!((down.hidden(), down.out_features()), (16, 4));
/// # Ok::<(), swiglu_core::Error>(())
/// ```
pub struct Down<'a, T: Element, M: Memory> {
    matrix: MatRef<'a, T, M>,
    orientation: Orientation,
}

impl<T: Element, M: Memory> Clone for Down<'_, T, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Element, M: Memory> Copy for Down<'_, T, M> {}

impl<T: Element, M: Memory> std::fmt::Debug for Down<'_, T, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Down").field("matrix", &self.matrix).field("orientation", &self.orientation).finish()
    }
}

impl<'a, T: Element, M: Memory> Down<'a, T, M> {
    /// `[D, O]` for [`Orientation::InOut`], `[O, D]` for [`Orientation::OutIn`].
    pub fn new(matrix: MatRef<'a, T, M>, orientation: Orientation) -> Self {
        Self { matrix, orientation }
    }

    /// The matrix, as it lies in memory.
    pub fn matrix(&self) -> MatRef<'a, T, M> {
        self.matrix
    }

    /// Which way it lies.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// D.
    pub fn hidden(&self) -> usize {
        self.in_out().0
    }

    /// O.
    pub fn out_features(&self) -> usize {
        self.in_out().1
    }

    /// D and O.
    fn in_out(&self) -> (usize, usize) {
        let (rows, cols) = self.matrix.shape();
        self.orientation.half_shape(rows, cols)
    }

    /// Whether the matrix is transposed in `z . Wdown`; the other way round in `dy . Wdown^T`.
    pub fn op(&self) -> Op {
        match self.orientation {
            Orientation::InOut => Op::N,
            Orientation::OutIn => Op::T,
        }
    }
}

/// Where dz comes from.
///
/// ```
/// use swiglu_core::{Down, Matrix, Orientation, Upstream};
/// let (dy, w) = (Matrix::<f32, _>::host_zeros(2, 4)?, Matrix::host_zeros(16, 4)?);
/// let upstream = Upstream::projected(dy.view(), Down::new(w.view(), Orientation::InOut))?;
/// assert_eq!(upstream.shape(), (2, 16));
/// # Ok::<(), swiglu_core::Error>(())
/// ```
pub enum Upstream<'a, T: Element, M: Memory> {
    /// dz `[B, D]`.
    Dz(MatRef<'a, T, M>),
    /// `dz = dy . Wdown^T`, which a fused backend never writes to memory, nor rounds. Made by [`Upstream::projected`].
    #[non_exhaustive]
    Projected {
        /// `[B, O]`.
        dy: MatRef<'a, T, M>,
        /// D to O.
        down: Down<'a, T, M>,
    },
}

impl<T: Element, M: Memory> Clone for Upstream<'_, T, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Element, M: Memory> Copy for Upstream<'_, T, M> {}

impl<T: Element, M: Memory> std::fmt::Debug for Upstream<'_, T, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Upstream::Dz(dz) => f.debug_tuple("Dz").field(dz).finish(),
            Upstream::Projected { dy, down } => {
                f.debug_struct("Projected").field("dy", dy).field("down", down).finish()
            }
        }
    }
}

impl<'a, T: Element, M: Memory> From<MatRef<'a, T, M>> for Upstream<'a, T, M> {
    fn from(dz: MatRef<'a, T, M>) -> Self {
        Upstream::Dz(dz)
    }
}

impl<'a, T: Element, M: Memory> From<&'a Matrix<T, M>> for Upstream<'a, T, M> {
    fn from(dz: &'a Matrix<T, M>) -> Self {
        Upstream::Dz(dz.view())
    }
}

impl<'a, T: Element, M: Memory> Upstream<'a, T, M> {
    /// dz by way of dy `[B, O]` and the down projection.
    ///
    /// # Errors
    /// [`Error::Shape`] when dy and the down projection differ in O.
    pub fn projected(dy: MatRef<'a, T, M>, down: Down<'a, T, M>) -> Result<Self> {
        let expected = (dy.rows(), down.out_features());
        if dy.shape() != expected {
            return Err(Error::Shape { operand: "dy", expected, got: dy.shape() });
        }
        Ok(Upstream::Projected { dy, down })
    }

    /// Rows and columns of dz.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Upstream::Dz(dz) => dz.shape(),
            Upstream::Projected { dy, down } => (dy.rows(), down.hidden()),
        }
    }
}
