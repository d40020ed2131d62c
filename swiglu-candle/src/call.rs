//! One call of the op, forward and backward, whatever the device and the element type.

use std::any::Any;

use candle_core::{Layout as Strides, Result, Shape, bail};
use swiglu_core::{
    Backend, Gate, Gradients, MatRef, Matrix, Memory, Options, Orientation, Out, Save, Saved, SwiGLU, Target,
    Weights,
};

use crate::operand::{Place, output_shape, rows, weights};
use crate::storage::{DeviceStorage, Kind, MemoryOf, failed};

/// What the second and the third argument are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrangement {
    /// The weights of gate and of up, `[D, I]` each.
    Split,
    /// The weights of both `[2D, I]`, and again the same for want of a third argument.
    Packed,
    /// The weights of both `[2D, I]`, and the bias `[2D]`.
    PackedBias,
}

/// What is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) gate: Gate,
    pub(crate) options: Options,
    pub(crate) arrangement: Arrangement,
    pub(crate) orientation: Orientation,
    /// What forward keeps; `None` where nothing asks for gradients.
    pub(crate) keep: Option<Save>,
}

/// A storage, and the strides of a tensor in it.
pub(crate) type Operand<'a, S> = (&'a S, &'a Strides);

/// Something for each argument.
pub(crate) type Each<T> = (T, T, T);

/// What a forward kept; its type depends on device and element type.
pub(crate) type Kept = Option<Box<dyn Any + Send>>;

/// The gradients of the arguments that are wanted; of weights, in the orientation of the call.
pub(crate) type Grads<S> = Each<Option<S>>;

impl Call {
    /// z and its shape, and what a backward needs.
    pub(crate) fn forward<T: Kind, S: DeviceStorage>(
        &self,
        (x, second, third): Each<Operand<'_, S>>,
    ) -> Result<(S, Shape, Kept)>
    where
        S::Backend: SwiGLU<T>,
    {
        let backend = x.0.backend()?;
        let (input, w) = (matrix::<T, S>(x)?, self.weights::<T, S>(second, third)?);
        let shape = output_shape(x.1.shape(), w.hidden());
        let (z, kept) = match self.keep {
            None => (backend.forward(input, w, self.options).map_err(failed)?, None),
            Some(save) => {
                let (z, saved) = backend.forward_train(input, w, save, self.options).map_err(failed)?;
                (z, Some(S::keep(saved)))
            }
        };
        were_read::<T, S>(&[x, second, third])?;
        Ok((x.0.adopt(z)?, shape, kept))
    }

    /// The gradients that are wanted.
    pub(crate) fn backward<T: Kind, S: DeviceStorage>(
        &self,
        (x, second, third): Each<Operand<'_, S>>,
        dz: Operand<'_, S>,
        kept: Kept,
        wanted: Each<bool>,
    ) -> Result<Grads<S>>
    where
        S::Backend: SwiGLU<T>,
    {
        let backend = x.0.backend()?;
        let (input, w) = (matrix::<T, S>(x)?, self.weights::<T, S>(second, third)?);
        let output = matrix::<T, S>(dz)?;
        let mut saved = match kept.and_then(|kept| kept.downcast::<Saved<T, MemoryOf<S>>>().ok()) {
            Some(saved) => *saved,
            // Another backward of the same node: the first one used up what forward had kept.
            None => self.forward_again(&backend, input, w)?,
        };
        let mut grads = self.room::<T, S>(&backend, input.shape(), &w, wanted).map_err(failed)?;
        let asked = self.ask(&mut grads);
        backend.backward(input, w, output, &mut saved, asked, self.options).map_err(failed)?;
        were_read::<T, S>(&[x, second, third, dz])?;
        let adopt = |wanted, grad: Option<Matrix<T, MemoryOf<S>>>| {
            grad.filter(|_| wanted).map(|grad| x.0.adopt(grad)).transpose()
        };
        Ok((adopt(wanted.0, grads.0)?, adopt(wanted.1, grads.1)?, adopt(wanted.2, grads.2)?))
    }

    /// What forward keeps, from another forward.
    fn forward_again<T: Kind, B: SwiGLU<T>>(
        &self,
        backend: &B,
        x: MatRef<'_, T, B::Memory>,
        w: Weights<'_, T, B::Memory>,
    ) -> Result<Saved<T, B::Memory>> {
        let save = self.keep.unwrap_or_default();
        backend.forward_train(x, w, save, self.options).map(|(_, saved)| saved).map_err(failed)
    }

    /// Matrices for the gradients that are wanted; for those of both halves when one of them is.
    fn room<T: Kind, S: DeviceStorage>(
        &self,
        backend: &S::Backend,
        x: (usize, usize),
        w: &Weights<'_, T, MemoryOf<S>>,
        wanted: Each<bool>,
    ) -> swiglu_core::Result<Each<Option<Matrix<T, MemoryOf<S>>>>> {
        let zeros = |wanted: bool, (rows, cols): (usize, usize)| {
            wanted.then(|| backend.zeros(rows, cols)).transpose()
        };
        let (second, third) = match self.arrangement {
            Arrangement::Split => {
                let (either, half) = (wanted.1 || wanted.2, w.gate_weights().shape());
                (zeros(either, half)?, zeros(either, half)?)
            }
            Arrangement::Packed => (zeros(wanted.1, w.packed_shape())?, None),
            Arrangement::PackedBias => {
                (zeros(wanted.1, w.packed_shape())?, zeros(wanted.2, (1, 2 * w.hidden()))?)
            }
        };
        Ok((zeros(wanted.0, x)?, second, third))
    }

    /// Those matrices as what backward is to write.
    fn ask<'a, T: Kind, M: Memory>(
        &self,
        (dx, second, third): &'a mut Each<Option<Matrix<T, M>>>,
    ) -> Gradients<'a, T, M> {
        let mut gradients = Gradients::new();
        if let Some(dx) = dx {
            gradients = gradients.dx(Out::write(dx));
        }
        match (self.arrangement, second, third) {
            (Arrangement::Split, Some(gate), Some(up)) => {
                gradients.dwf_split(Target::write(gate), Target::write(up))
            }
            (_, dwf, dbias) => {
                if let Some(dwf) = dwf {
                    gradients = gradients.dwf(Target::write(dwf));
                }
                if let Some(dbias) = dbias {
                    gradients = gradients.dbias(Target::write(dbias));
                }
                gradients
            }
        }
    }

    /// The second and the third argument as weights.
    fn weights<'a, T: Kind, S: DeviceStorage>(
        &self,
        second: Operand<'a, S>,
        third: Operand<'a, S>,
    ) -> Result<Weights<'a, T, MemoryOf<S>>> {
        let part =
            |(storage, strides): Operand<'a, S>| storage.view(in_place(weights(strides, self.orientation))?);
        let w = match self.arrangement {
            Arrangement::Split => Weights::split(part(second)?, part(third)?, self.orientation),
            Arrangement::Packed => Weights::packed(part(second)?, self.orientation),
            Arrangement::PackedBias => {
                let bias = matrix::<T, S>(third)?;
                Weights::packed(part(second)?, self.orientation).and_then(|w| w.bias(bias))
            }
        };
        Ok(w.map_err(failed)?.gate(self.gate))
    }
}

/// The matrix that a tensor `[.., n]` is.
fn matrix<'a, T: Kind, S: DeviceStorage>(
    (storage, strides): Operand<'a, S>,
) -> Result<MatRef<'a, T, MemoryOf<S>>> {
    storage.view(in_place(rows(strides))?)
}

/// The place of an operand; those that have none were copied before they came here.
fn in_place(place: Option<Place>) -> Result<Place> {
    match place {
        Some(place) => Ok(place),
        None => bail!("swiglu: an operand is not a matrix in memory"),
    }
}

fn were_read<T: Kind, S: DeviceStorage>(operands: &[Operand<'_, S>]) -> Result<()> {
    operands.iter().try_for_each(|(storage, _)| storage.was_read::<T>())
}
