//! From a checkpoint to matrices on the host, and on to the op and its layers.

use half::{bf16, f16};
use swiglu_core::{
    Dense, Dtype, FusedSwiGLU, Gate, Host, Matrix, Orientation, SwiGLU, SwiGLUMlp, Weights,
    pack_interleaved_columns,
};

use crate::checkpoint::Mlp;
use crate::error::{Error, Result};
use crate::names::Packing;
use crate::shard::Span;
use crate::stored::{Decode, Stored, widen};

/// The parameters of an MLP on the host, as they lie in the file: no matrix is transposed.
///
/// The matrices may be exchanged for others of the same shape, such as trained ones, and saved by
/// [`Edit::put`](crate::Edit::put).
#[derive(Debug)]
pub struct MlpWeights<T: Stored> {
    /// Gate and up projection, packed, gate half first: `[2D, I]` ([`Orientation::OutIn`]) or `[I, 2D]`
    /// ([`Orientation::InOut`]). Where the file has a tensor for each half, both were read to their places; where it has
    /// alternating columns, they were sorted out.
    pub wf: Matrix<T, Host>,
    /// `[1, 2D]`, gate half first.
    pub bias: Option<Matrix<T, Host>>,
    /// The down projection: `[O, D]` ([`Orientation::OutIn`]) or `[D, O]` ([`Orientation::InOut`]).
    pub down: Matrix<T, Host>,
    /// `[1, O]`.
    pub down_bias: Option<Matrix<T, Host>>,
    orientation: Orientation,
    function: Gate,
}

impl<T: Stored> MlpWeights<T> {
    /// How each matrix lies in memory, the down projection included.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// The gate function.
    pub fn function(&self) -> Gate {
        self.function
    }

    /// With another gate function than the names in the file stand for: [`Gate::GegluTanh`] for Gemma.
    #[must_use]
    pub fn with_function(mut self, function: Gate) -> Self {
        self.function = function;
        self
    }

    /// Gate and up as the op takes them; nothing is copied.
    ///
    /// # Errors
    /// [`swiglu_core::Error::OddWidth`] and [`swiglu_core::Error::Shape`] when the matrices were exchanged for others
    /// that do not fit.
    pub fn weights(&self) -> swiglu_core::Result<Weights<'_, T, Host>> {
        let weights = Weights::packed(self.wf.view(), self.orientation)?.gate(self.function);
        match &self.bias {
            Some(bias) => weights.bias(bias.view()),
            None => Ok(weights),
        }
    }

    /// Gate and up as a layer on the device of `backend`.
    ///
    /// # Errors
    /// As [`FusedSwiGLU::load`] and [`FusedSwiGLU::bias`].
    pub fn layer<B: SwiGLU<T>>(&self, backend: &B) -> swiglu_core::Result<FusedSwiGLU<T, B>> {
        let layer = FusedSwiGLU::load(backend, self.wf.view(), self.orientation)?.gate(self.function);
        match &self.bias {
            Some(bias) => layer.bias(bias.view()),
            None => Ok(layer),
        }
    }

    /// The whole MLP on a device: [`layer`](Self::layer), and the down projection with its bias.
    ///
    /// # Errors
    /// As [`SwiGLUMlp::load`].
    pub fn mlp<B: SwiGLU<T> + Dense<T>>(&self, backend: &B) -> swiglu_core::Result<SwiGLUMlp<T, B>> {
        let mlp = SwiGLUMlp::load(self.layer(backend)?, self.down.view(), self.orientation)?;
        match &self.down_bias {
            Some(bias) => mlp.down_bias(bias.view()),
            None => Ok(mlp),
        }
    }
}

impl Mlp<'_> {
    /// Reads the parameters, bit for bit.
    ///
    /// # Errors
    /// [`Error::Dtype`] when the file holds another element type, [`Error::Io`], and [`Error::Core`] with
    /// [`swiglu_core::Error::OutOfMemory`].
    pub fn load<T: Stored>(&self) -> Result<MlpWeights<T>> {
        self.check_dtype::<T>()?;
        self.read(T::decode)
    }

    /// Reads the parameters as `f32` of the same values, whatever the element type of the file.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Core`] with [`swiglu_core::Error::OutOfMemory`].
    pub fn load_widened(&self) -> Result<MlpWeights<f32>> {
        match self.dtype() {
            Dtype::F32 => self.read(f32::decode),
            Dtype::F16 => self.read(widen::<f16>),
            Dtype::Bf16 => self.read(widen::<bf16>),
        }
    }

    pub(crate) fn check_dtype<T: Stored>(&self) -> Result<()> {
        if self.dtype() == T::DTYPE {
            return Ok(());
        }
        let file = self.checkpoint.path().to_owned();
        Err(Error::Dtype { file, mlp: self.name(), expected: T::DTYPE, got: self.dtype() })
    }

    /// Shape of the packed matrix.
    pub(crate) fn packed_shape(&self) -> (usize, usize) {
        self.orientation().packed_shape(self.in_features(), self.hidden())
    }

    /// Shape of the down projection: that of a half whose inputs are the hidden values.
    pub(crate) fn down_shape(&self) -> (usize, usize) {
        self.orientation().half_shape(self.hidden(), self.out_features())
    }

    /// The part of a tensor's bytes that is this MLP's.
    pub(crate) fn span(&self, span: Span) -> Span {
        span.part(self.expert, self.group.experts.unwrap_or(1))
    }

    fn read<T: Stored>(&self, decode: Decode<T>) -> Result<MlpWeights<T>> {
        let spans = &self.group.spans;
        let bias_shape = (1, 2 * self.hidden());
        let wf = self.projections(&spans.wf, self.packed_shape(), decode)?;
        let bias = match spans.bias.as_slice() {
            [] => None,
            bias => Some(self.projections(bias, bias_shape, decode)?),
        };
        let down = self.matrix(&[spans.down], self.down_shape(), decode)?;
        let down_bias =
            spans.down_bias.map(|span| self.matrix(&[span], (1, self.out_features()), decode)).transpose()?;
        let (orientation, function) = (self.orientation(), self.function());
        Ok(MlpWeights { wf, bias, down, down_bias, orientation, function })
    }

    /// Gate and up, packed, gate half first.
    fn projections<T: Stored>(
        &self,
        spans: &[Span],
        shape: (usize, usize),
        decode: Decode<T>,
    ) -> Result<Matrix<T, Host>> {
        let matrix = self.matrix(spans, shape, decode)?;
        match self.packing() {
            Packing::Split | Packing::Halves => Ok(matrix),
            Packing::InterleavedColumns => Ok(pack_interleaved_columns(matrix.view())?),
        }
    }

    /// A matrix whose elements are those of the spans, one after the other.
    fn matrix<T: Stored>(
        &self,
        spans: &[Span],
        (rows, cols): (usize, usize),
        decode: Decode<T>,
    ) -> Result<Matrix<T, Host>> {
        let unit = self.dtype().bytes();
        let mut elements = Matrix::host_zeros(rows, cols)?.into_owned();
        let mut rest = elements.as_mut_slice();
        for &span in spans {
            let span = self.span(span);
            self.checkpoint.shards[span.shard].read(span, unit, |bytes| {
                let taken = std::mem::take(&mut rest);
                let (to, left) = taken.split_at_mut(taken.len().min(bytes.len() / unit));
                decode(bytes, to);
                rest = left;
            })?;
        }
        Ok(Matrix::from_owned(elements, rows, cols)?)
    }
}
