//! Operands in the middle of larger matrices full of canaries.

use ndarray::Array2;
use swiglu_core::{Backend, Element, MatMut, MatRef, Matrix, Memory, Out, Scalar, Target};

use crate::bits::{Bits, Value};
use crate::part::{part, part_mut};
use crate::report::Failure;

/// Elements of canary before and behind an operand, at least.
const MARGIN: usize = 32;

/// Bytes of a vector access.
const VECTOR: usize = 16;

/// A matrix in a backend's memory: a strided part of a larger one. Everything around it must stay as it is.
pub(crate) struct Guarded<T: Scalar, M: Memory> {
    name: &'static str,
    matrix: Matrix<T, M>,
    /// What the larger matrix held before the call.
    image: Array2<T>,
    top: usize,
    left: usize,
    shape: (usize, usize),
}

impl<T: Bits, M: Memory> Guarded<T, M> {
    /// A copy of `content`, `pad` elements from the end of a row to the start of the next.
    pub(crate) fn new<B: Backend<Memory = M>>(
        backend: &B,
        name: &'static str,
        content: &Array2<T>,
        pad: u16,
    ) -> Result<Self, Failure> {
        let shape = content.dim();
        let pad = usize::from(pad);
        let stride = shape.1 + pad;
        // The margin is whole rows and, where rows are whole vectors, whole vectors of columns: so an operand is aligned
        // as its stride is.
        let top = 1 + MARGIN / stride.max(1);
        let unit = VECTOR / size_of::<T>();
        let left = if stride.is_multiple_of(unit) { pad / 2 / unit * unit } else { pad / 2 };
        let mut image =
            Array2::from_shape_fn((shape.0 + 2 * top, stride), |(i, j)| T::canary(i * stride + j));
        part_mut(&mut image, top..top + shape.0, left..left + shape.1).assign(content);
        let matrix = backend.upload(MatRef::try_from(&image)?)?;
        Ok(Self { name, matrix, image, top, left, shape })
    }

    /// A matrix that a call must fill without reading it: canaries inside too.
    pub(crate) fn unwritten<B: Backend<Memory = M>>(
        backend: &B,
        name: &'static str,
        shape: (usize, usize),
        pad: u16,
    ) -> Result<Self, Failure> {
        let content = Array2::from_shape_fn(shape, |(i, j)| T::canary(7 + 31 * (i * shape.1 + j)));
        Self::new(backend, name, &content, pad)
    }

    fn place(&self) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        (self.top..self.top + self.shape.0, self.left..self.left + self.shape.1)
    }

    pub(crate) fn view(&self) -> MatRef<'_, T, M> {
        let (rows, cols) = self.place();
        self.matrix.view().sub(rows, cols).expect("the part lies inside by construction")
    }

    pub(crate) fn view_mut(&mut self) -> MatMut<'_, T, M> {
        let (rows, cols) = self.place();
        self.matrix.view_mut().sub(rows, cols).expect("the part lies inside by construction")
    }

    /// The operand as it is now, after the canaries around it were found intact.
    pub(crate) fn read<B: Backend<Memory = M>>(&self, backend: &B) -> Result<Array2<T>, Failure> {
        let now = backend.download(self.matrix.view())?.into_array();
        let (rows, cols) = self.place();
        for (((i, j), now), before) in now.indexed_iter().zip(&self.image) {
            if rows.contains(&i) && cols.contains(&j) {
                continue;
            }
            if now.bits() != before.bits() {
                let (row, col) = (i as isize - self.top as isize, j as isize - self.left as isize);
                return Err(Failure::new(format!(
                    "{}: canary at row {row}, column {col} of an operand of [{}, {}] was overwritten with {now:?}",
                    self.name, self.shape.0, self.shape.1
                )));
            }
        }
        Ok(part(&now, rows, cols))
    }

    /// Nothing was written, neither around nor inside.
    pub(crate) fn unchanged<B: Backend<Memory = M>>(&self, backend: &B) -> Result<(), Failure> {
        let now = self.read(backend)?;
        let (rows, cols) = self.place();
        let before = part(&self.image, rows, cols);
        match crate::bits::difference(&before, &now) {
            None => Ok(()),
            Some(at) => Err(Failure::new(format!("{} was changed at {at}", self.name))),
        }
    }
}

/// A gradient in the element type or in f32.
pub(crate) enum AnyGuarded<T: Value, M: Memory> {
    Same(Guarded<T, M>),
    Wide(Guarded<f32, M>),
}

impl<T: Value, M: Memory> AnyGuarded<T, M> {
    pub(crate) fn target(&mut self, add: bool) -> Target<'_, T, M> {
        match self {
            AnyGuarded::Same(to) => Target::Same(Out { to: to.view_mut(), add }),
            AnyGuarded::Wide(to) => Target::F32(Out { to: to.view_mut(), add }),
        }
    }

    pub(crate) fn read<B: Backend<Memory = M>>(&self, backend: &B) -> Result<Array2<f32>, Failure> {
        match self {
            AnyGuarded::Same(from) => Ok(from.read(backend)?.mapv(Element::to_f32)),
            AnyGuarded::Wide(from) => from.read(backend),
        }
    }
}
