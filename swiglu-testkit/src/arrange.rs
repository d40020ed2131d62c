//! Weights and their gradients in every arrangement: from halves `[I, D]` to matrices, and back.

use ndarray::Array2;
use swiglu_core::{Backend, Gradients, Memory, Orientation, Result, Scalar, Weights};

use crate::bits::{Bits, Value};
use crate::case::{Case, How, Packing};
use crate::data::Inputs;
use crate::guarded::{AnyGuarded, Guarded};
use crate::part::{above, beside, column_halves, row_halves, turned};
use crate::report::Failure;

/// One packed matrix, or the two halves, as they lie in memory.
fn arrange<T: Scalar>(case: &Case, gate: &Array2<T>, up: &Array2<T>) -> Vec<Array2<T>> {
    let (gate, up) = match case.orientation {
        Orientation::InOut => (gate.clone(), up.clone()),
        Orientation::OutIn => (turned(gate), turned(up)),
    };
    match (case.packing, case.orientation) {
        (Packing::Split, _) => vec![gate, up],
        (Packing::Packed, Orientation::InOut) => vec![beside(&gate, &up)],
        (Packing::Packed, Orientation::OutIn) => vec![above(&gate, &up)],
        (Packing::Interleaved, _) => {
            let (rows, cols) = gate.dim();
            vec![Array2::from_shape_fn((2 * rows, cols), |(i, j)| {
                if i % 2 == 0 { gate[[i / 2, j]] } else { up[[i / 2, j]] }
            })]
        }
    }
}

/// The inverse of [`arrange`].
fn halves<T: Scalar>(case: &Case, matrices: &[Array2<T>]) -> (Array2<T>, Array2<T>) {
    let first = &matrices[0];
    let (rows, cols) = first.dim();
    let (gate, up) = match (case.packing, case.orientation) {
        (Packing::Split, _) => (first.clone(), matrices[1].clone()),
        (Packing::Packed, Orientation::InOut) => column_halves(first),
        (Packing::Packed, Orientation::OutIn) => row_halves(first),
        (Packing::Interleaved, _) => {
            let row =
                |half: usize| Array2::from_shape_fn((rows / 2, cols), |(i, j)| first[[2 * i + half, j]]);
            (row(0), row(1))
        }
    };
    match case.orientation {
        Orientation::InOut => (gate, up),
        Orientation::OutIn => (turned(&gate), turned(&up)),
    }
}

/// Weights and bias of a case in a backend's memory.
pub(crate) struct PlacedWeights<T: Value, M: Memory> {
    pub(crate) matrices: Vec<Guarded<T, M>>,
    pub(crate) bias: Option<Guarded<T, M>>,
}

impl<T: Value, M: Memory> PlacedWeights<T, M> {
    pub(crate) fn new<B: Backend<Memory = M>>(
        backend: &B,
        case: &Case,
        inputs: &Inputs<T>,
    ) -> Result<Self, Failure> {
        let matrices = arrange(case, &inputs.gate_weights, &inputs.up_weights);
        let matrices: Result<_, Failure> =
            matrices.iter().map(|m| Guarded::new(backend, "weights", m, case.pads.w)).collect();
        let bias = inputs
            .bias
            .as_ref()
            .map(|(gate, up)| Guarded::new(backend, "bias", &beside(gate, up), case.pads.w));
        Ok(Self { matrices: matrices?, bias: bias.transpose()? })
    }

    pub(crate) fn weights(&self, case: &Case) -> Result<Weights<'_, T, M>> {
        let w = match case.packing {
            Packing::Packed => Weights::packed(self.matrices[0].view(), case.orientation)?,
            Packing::Split => {
                Weights::split(self.matrices[0].view(), self.matrices[1].view(), case.orientation)?
            }
            Packing::Interleaved => Weights::interleaved_rows(self.matrices[0].view())?,
        };
        let w = w.gate(case.gate);
        match &self.bias {
            Some(bias) => w.bias(bias.view()),
            None => Ok(w),
        }
    }

    pub(crate) fn unchanged<B: Backend<Memory = M>>(&self, backend: &B) -> Result<(), Failure> {
        self.matrices.iter().chain(&self.bias).try_for_each(|m| m.unchanged(backend))
    }
}

/// The gradient of the weights in a backend's memory, arranged as they are.
pub(crate) struct PlacedGradient<T: Value, M: Memory> {
    matrices: Vec<AnyGuarded<T, M>>,
    how: How,
}

/// A gradient's destination: old values where it adds, canaries where it writes.
fn destination<T: Bits, B: Backend>(
    backend: &B,
    name: &'static str,
    old: &Array2<T>,
    pad: u16,
    add: bool,
) -> Result<Guarded<T, B::Memory>, Failure> {
    if add {
        Guarded::new(backend, name, old, pad)
    } else {
        Guarded::unwritten(backend, name, old.dim(), pad)
    }
}

/// A destination in the element type or in f32, for a gradient whose old value is `old`.
pub(crate) fn place<T: Value, B: Backend>(
    backend: &B,
    name: &'static str,
    old: &Array2<T>,
    pad: u16,
    how: How,
) -> Result<AnyGuarded<T, B::Memory>, Failure> {
    Ok(match how.wide {
        false => AnyGuarded::Same(destination(backend, name, old, pad, how.add)?),
        true => AnyGuarded::Wide(destination(backend, name, &old.mapv(T::to_f32), pad, how.add)?),
    })
}

impl<T: Value, M: Memory> PlacedGradient<T, M> {
    /// With `old` as the halves that a gradient is added to.
    pub(crate) fn new<B: Backend<Memory = M>>(
        backend: &B,
        case: &Case,
        old: (&Array2<T>, &Array2<T>),
        how: How,
    ) -> Result<Self, Failure> {
        let matrices = arrange(case, old.0, old.1);
        let matrices: Result<_, Failure> =
            matrices.iter().map(|m| place(backend, "dwf", m, case.pads.dwf, how)).collect();
        Ok(Self { matrices: matrices?, how })
    }

    pub(crate) fn ask<'a>(&'a mut self, case: &Case, gradients: Gradients<'a, T, M>) -> Gradients<'a, T, M> {
        let add = self.how.add;
        match (&mut self.matrices[..], case.packing) {
            ([gate, up], _) => gradients.dwf_split(gate.target(add), up.target(add)),
            ([dwf], Packing::Interleaved) => gradients.dwf_interleaved_rows(dwf.target(add)),
            ([dwf], _) => gradients.dwf(dwf.target(add)),
            _ => gradients,
        }
    }

    /// The halves, `[I, D]`.
    pub(crate) fn read<B: Backend<Memory = M>>(
        &self,
        backend: &B,
        case: &Case,
    ) -> Result<(Array2<f32>, Array2<f32>), Failure> {
        let matrices: Result<Vec<_>, Failure> = self.matrices.iter().map(|m| m.read(backend)).collect();
        Ok(halves(case, &matrices?))
    }
}

#[cfg(test)]
mod tests {
    use swiglu_core::Dtype;

    use super::*;

    #[test]
    fn arrangements_round_trip() {
        let gate = Array2::from_shape_fn((3, 2), |(i, j)| (10 * i + j) as f32);
        let up = gate.mapv(|v| v + 100.0);
        for orientation in [Orientation::InOut, Orientation::OutIn] {
            for packing in [Packing::Packed, Packing::Split, Packing::Interleaved] {
                if packing == Packing::Interleaved && orientation == Orientation::InOut {
                    continue;
                }
                let case = Case { orientation, packing, ..Case::new(1, 3, 2, Dtype::F32) };
                let matrices = arrange(&case, &gate, &up);
                assert_eq!(halves(&case, &matrices), (gate.clone(), up.clone()), "{case}");
            }
        }
    }
}
