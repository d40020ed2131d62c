//! The plan of a forward, and what forward and backward both need of the projections.

use swiglu_core::{Access, Dims, Dtype, Orientation, Pass, Precision, Problem, Result, Tile};

use super::product::Wanted;
use super::{MAX_COORDINATE, MMA, Planner, SM90, VECTOR, halves, inputs};
use crate::arena::Layout;
use crate::decode::Decode;
use crate::gemm::{Family, GateCode, Gemm, Product};
use crate::kernel::{Kernel, gate_code};
use crate::notes::{Note, Notes};
use crate::realign::{GATE_WEIGHTS, Named, Realigned, Rounded, UP_WEIGHTS, X};
use crate::tune::Asked;

/// Largest batch of the `gemv` kernels.
const GEMV_ROWS: usize = 8;
/// From this many bytes of weights on, a few microseconds of an H100's memory, `decode` is taken unasked. What a launch
/// costs besides counts for more in smaller calls, of which none was measured; the smallest has 67 MB.
const STREAM_FROM_BYTES: usize = 16 << 20;

impl Planner<'_> {
    /// x . Wf, with whichever epilogue.
    pub(super) fn projection(
        &self,
        problem: &Problem,
        product: Product,
        outputs: u32,
        notes: &mut Notes,
    ) -> Gemm {
        let Problem { dims: Dims { batch, in_features, hidden }, options, .. } = problem;
        let wanted = Wanted {
            dtype: problem.dtype,
            precision: options.precision,
            tile: options.tile,
            product,
            a_trans: false,
            b_trans: problem.orientation == Orientation::OutIn,
            shape: (*batch, *hidden),
            k: *in_features,
            segments: 1,
            add: false,
            depth: 1,
            saves: problem.pass == Pass::Forward { save: true },
            inputs: inputs(problem),
            outputs,
            room: true,
        };
        self.gemm(&wanted, notes)
    }

    /// The kernel of a forward.
    pub(crate) fn forward(&self, problem: &Problem, save: bool) -> Result<ForwardPlan> {
        let Problem { dims: Dims { batch, hidden, .. }, accesses, dtype, .. } = *problem;
        let (gate, ..) = gate_code(problem.gate)?;
        let mut notes = Notes::default();
        let (mut realigned, mut workspace) = (Realigned::default(), Layout::default());
        let mut rounded = Rounded::default();
        let automatic = self.forced.is_none() || self.forced == Some(Family::Decode);
        let decode = self.decode(problem, gate);
        let refused = self.refused_by_decode(problem, &decode);
        if automatic && refused.is_none() {
            let decode = self.tuned_decode(problem, decode);
            let kernel = Kernel::Decode(decode);
            return Ok(ForwardPlan { realigned, rounded, kernel, workspace_bytes: 0, notes });
        }
        let gemv = automatic && problem.options.tile == Tile::Auto;
        let (family, kernel) = if batch <= GEMV_ROWS && (gemv || self.forced == Some(Family::Gemv)) {
            let kernel = Kernel::Gemv {
                dtype,
                b_trans: problem.orientation == Orientation::OutIn,
                gate,
                rows: (batch.max(1) as u32).next_power_of_two(),
                vectors: inputs(problem) >= VECTOR,
            };
            (Family::Gemv, kernel)
        } else {
            let mut problem = *problem;
            if self.realigns(&problem) {
                realigned = Realigned::of(&mut problem, true, true, &mut workspace);
            }
            let pre = if save { halves(accesses.pre, hidden, dtype) } else { Access::MAX_ALIGN };
            let gemm = self.projection(&problem, Product::Gate(gate), accesses.z.align.min(pre), &mut notes);
            if gemm.splits() {
                realigned = Realigned::parts(&problem, true, true, &mut workspace);
            } else if gemm.rounds() {
                (realigned, workspace) = Default::default();
                rounded = rounded_projection(&problem, &mut workspace);
            }
            (gemm.family, Kernel::Gemm(gemm))
        };
        if let (Some(Family::Decode), Some(reason)) = (self.forced, refused) {
            notes.push(Note::InPlaceOf { family, asked: Family::Decode, reason });
        }
        Ok(ForwardPlan { realigned, rounded, kernel, workspace_bytes: workspace.bytes(), notes })
    }

    /// Whether operands that tensor cores cannot read are copied for them. A copy moves each byte twice, and without it
    /// a product runs some ten times slower on plain cores.
    pub(super) fn realigns(&self, problem: &Problem) -> bool {
        let on_tensor_cores = problem.dtype != Dtype::F32 || problem.options.precision == Precision::Tf32;
        on_tensor_cores && self.realigns_for(problem.dims.batch)
    }

    /// The same for a product of so many rows.
    pub(super) fn realigns_for(&self, rows: usize) -> bool {
        self.facts.capability >= MMA && self.forced != Some(Family::Simt) && rows > GEMV_ROWS
    }

    /// The kernel of `decode` for a forward that it accepts.
    fn decode(&self, problem: &Problem, gate: GateCode) -> Decode {
        let any = Decode {
            dtype: problem.dtype,
            b_trans: problem.orientation == Orientation::OutIn,
            gate,
            rows: Decode::rows_for(problem.dims.batch),
            columns: 128,
        };
        any.for_columns(problem.dims.hidden as u64, u64::from(self.facts.multiprocessors))
    }

    /// The kernel of `decode` for a forward, once it is sure to be one of them.
    fn tuned_decode(&self, problem: &Problem, decode: Decode) -> Decode {
        if problem.options.tile != Tile::Auto {
            return decode;
        }
        let Dims { batch, in_features, hidden } = problem.dims;
        let asked = Asked {
            kernel: Kernel::Decode(decode),
            shape: (batch, hidden, in_features),
            segments: 1,
            depth: 1,
            saves: problem.pass == Pass::Forward { save: true },
            add: false,
        };
        self.chosen(&asked).map_or(decode, |variant| decode.with(variant))
    }

    /// Why a forward is not one for `decode`.
    fn refused_by_decode(&self, problem: &Problem, decode: &Decode) -> Option<&'static str> {
        let Dims { batch, in_features, hidden } = problem.dims;
        if self.facts.capability != SM90 || decode.shared_bytes() > self.facts.shared_bytes {
            Some("decode needs compute capability 9.0")
        } else if problem.dtype == Dtype::F32 {
            Some("decode multiplies 16-bit types")
        } else if batch > Decode::ROWS {
            Some("decode takes up to 128 rows")
        } else if batch.min(in_features).min(hidden) == 0 {
            Some("decode needs something to multiply")
        } else if inputs(problem) < VECTOR {
            Some("decode needs rows that start at multiples of 16 bytes")
        } else if in_features.max(hidden) > MAX_COORDINATE {
            Some("decode takes up to 2^31 - 257 rows and columns")
        } else if self.forced.is_none() && problem.options.tile != Tile::Auto {
            Some("decode has no tiles")
        } else if self.forced.is_none() && !self.streams(problem, decode) {
            Some("decode would leave most multiprocessors idle, or take no time")
        } else {
            None
        }
    }

    /// Whether the time is that of reading the weights. 64 blocks on 132 multiprocessors still read 2.8 TB/s of an
    /// H100's 3.0; fewer were not measured.
    fn streams(&self, problem: &Problem, decode: &Decode) -> bool {
        let Dims { in_features, hidden, .. } = problem.dims;
        let bytes = in_features.saturating_mul(hidden).saturating_mul(2 * problem.dtype.bytes());
        let blocks = decode.grid(hidden as u64).blocks;
        bytes >= STREAM_FROM_BYTES && blocks.saturating_mul(5) >= 2 * u64::from(self.facts.multiprocessors)
    }
}

/// What a forward enqueues.
#[derive(Clone, Debug)]
pub(crate) struct ForwardPlan {
    pub(crate) realigned: Realigned,
    pub(crate) rounded: Rounded,
    pub(crate) kernel: Kernel,
    pub(crate) workspace_bytes: usize,
    pub(crate) notes: Notes,
}

/// Room for what the projections read, rounded.
pub(super) fn rounded_projection(problem: &Problem, workspace: &mut Layout) -> Rounded {
    let Dims { batch, in_features, hidden } = problem.dims;
    let half = problem.orientation.half_shape(in_features, hidden);
    let turned = problem.orientation == Orientation::InOut;
    let x: Named = (X, (batch, in_features));
    Rounded::new((&[x], false), (&[(GATE_WEIGHTS, half), (UP_WEIGHTS, half)], turned), workspace)
}
