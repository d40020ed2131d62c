//! Operands widened to `f32`, each with the dimension that a product sums over as its last.

use ndarray::{Array2, Axis};
use swiglu_core::{Element, Host, MatRef, Memory, Op, Orientation, Weights};

use super::bug::Bug;

/// A matrix in `f32`.
pub(super) fn widen<T: Element>(m: MatRef<'_, T, Host>) -> Array2<f32> {
    m.array().mapv(Element::to_f32)
}

/// `op(m)` in `f32`, rows adjacent.
pub(super) fn widen_op<T: Element>(m: MatRef<'_, T, Host>, op: Op) -> Array2<f32> {
    match op {
        Op::N => widen(m),
        Op::T => transposed(&widen(m)),
    }
}

/// The transpose in standard layout, so that its rows are slices.
pub(super) fn transposed(m: &Array2<f32>) -> Array2<f32> {
    m.t().as_standard_layout().into_owned()
}

/// Both projections, one row `[I]` for each hidden unit.
pub(super) struct Projections {
    pub(super) gate: Array2<f32>,
    pub(super) up: Array2<f32>,
}

impl Projections {
    pub(super) fn read<T: Element>(w: Weights<'_, T, Host>, bug: Option<Bug>) -> Self {
        let square = w.in_features() == w.hidden();
        let op = match w.orientation() {
            Orientation::InOut => Op::T,
            Orientation::OutIn if square && bug == Some(Bug::SquareIgnoresOrientation) => Op::T,
            Orientation::OutIn => Op::N,
        };
        let (gate, up) = (widen_op(w.gate_weights(), op), widen_op(w.up_weights(), op));
        match bug {
            Some(Bug::SwapHalves) => Self { gate: up, up: gate },
            Some(Bug::InterleavedAsPacked) if interleaved(&w) => Self::packed(&gate, &up),
            _ => Self { gate, up },
        }
    }

    /// What a kernel sees that takes alternating rows for packed ones.
    fn packed(gate: &Array2<f32>, up: &Array2<f32>) -> Self {
        let hidden = gate.nrows();
        let row =
            |index: usize| if index.is_multiple_of(2) { gate.row(index / 2) } else { up.row(index / 2) };
        let half = |first: usize| {
            let mut half = Array2::zeros(gate.dim());
            for (index, mut to) in half.axis_iter_mut(Axis(0)).enumerate() {
                to.assign(&row(first + index));
            }
            half
        };
        Self { gate: half(0), up: half(hidden) }
    }
}

/// Whether the rows of both halves alternate in memory.
fn interleaved<T: Element>(w: &Weights<'_, T, Host>) -> bool {
    let address = |m: MatRef<'_, T, Host>| Host::place(m.ptr()).address;
    let (gate, up) = (w.gate_weights(), w.up_weights());
    let apart = address(up).wrapping_sub(address(gate));
    w.orientation() == Orientation::OutIn && apart == (gate.row_stride() * size_of::<T>() / 2) as u64
}
