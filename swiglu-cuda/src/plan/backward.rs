//! The plan of a backward: where dAB comes from, and the products and sums that read it.

use swiglu_core::{Dims, Dtype, GradientKind, Orientation, Pass, Problem, Result, UpstreamKind};

use super::forward::rounded_projection;
use super::product::Wanted;
use super::{Planner, VECTOR, halves, inputs};
use crate::arena::Layout;
use crate::forming::{Forming, PAYS_FROM, Progress};
use crate::gemm::{Family, GateCode, Gemm, Hopper, Product};
use crate::kernel::{Kernel, gate_code};
use crate::notes::Notes;
use crate::params::{ColumnSumsParams, Operand};
use crate::realign::{self, GATE_WEIGHTS, Named, Realigned, Room, Rounded, UP_WEIGHTS, X};

impl Planner<'_> {
    /// The kernels of a backward.
    pub(crate) fn backward(&self, problem: &Problem) -> Result<BackwardPlan> {
        let Pass::Backward { saved, dx, dwf, dbias } = problem.pass else {
            return Err(swiglu_core::Error::Unsupported {
                backend: "swiglu-cuda",
                what: "a forward as a backward",
            });
        };
        let mut problem = *problem;
        let Problem { dims: Dims { batch, in_features, hidden }, dtype, .. } = problem;
        let (gate, ..) = gate_code(problem.gate)?;
        let mut notes = Notes::default();
        let mut workspace = Layout::default();
        let realigns = self.realigns(&problem);
        let mut realigned = match realigns {
            true => {
                let (reads_x, reads_w) = (!saved || dwf.is_some(), !saved || dx.is_some());
                Realigned::of(&mut problem, reads_x, reads_w, &mut workspace)
            }
            false => Realigned::default(),
        };
        let accesses = problem.accesses;
        let mut rooms = || [(); 2].map(|()| Room::new((batch, hidden), dtype, &mut workspace));
        let in_place = halves(accesses.pre, hidden, dtype);
        let multiplied = dx.is_some() || dwf.is_some();
        let apart = saved && realigns && multiplied && in_place < VECTOR;
        let (cotangents, dab) = if let UpstreamKind::Projected { out_features, orientation } =
            problem.upstream
        {
            let to = (apart || !saved).then(&mut rooms);
            let dab = if to.is_some() { VECTOR } else { in_place };
            let projected = (out_features, orientation);
            // Saved ones are read where they are, wherever dAB goes.
            let both = if saved { in_place.min(dab) } else { dab };
            let gemm = self.product_of_dz(&problem, projected, Product::Cotangents(gate), both, &mut notes);
            let again = (!saved).then(|| self.pre_activations_again(&problem, &mut notes));
            (Cotangents::Projected { gemm, again, to }, dab)
        } else if apart {
            (Cotangents::Saved { gate, to: Some(rooms()) }, VECTOR)
        } else if saved {
            (Cotangents::Saved { gate, to: None }, in_place)
        } else {
            let product = Product::GateGradient(gate);
            let to = rooms();
            let gemm = self.projection(&problem, product, accesses.z.align.min(VECTOR), &mut notes);
            (Cotangents::Recomputed { gemm, to }, VECTOR)
        };
        let weights = accesses.gate.align.min(accesses.up.align);
        let trans = problem.orientation == Orientation::OutIn;
        let wanted = Wanted {
            dtype,
            precision: problem.options.precision,
            tile: problem.options.tile,
            product: Product::Store { out: dtype },
            a_trans: false,
            b_trans: !trans,
            shape: (batch, in_features),
            k: 2 * hidden,
            segments: 2,
            add: dx.is_some_and(|dx| dx.add),
            depth: 1,
            saves: false,
            inputs: dab.min(weights),
            outputs: accesses.dx.align,
            room: true,
        };
        let dx = dx.map(|_| self.analytic(&wanted, &mut notes));
        let (cotangents, dx) = match (cotangents, dx) {
            (Cotangents::Saved { gate, to: None }, Some(gemm)) if self.forms(&gemm, &problem, dab) => {
                match Progress::new((batch, hidden), &mut workspace) {
                    Some(progress) => {
                        let (forms, group) = (Some(Forming::new(gate, in_features)), Hopper::group(true));
                        let hopper = Hopper { pairs: true, forms, group, ..gemm.hopper };
                        (Cotangents::Formed { progress }, Some(Gemm { hopper, parts: 1, ..gemm }))
                    }
                    None => (cotangents, Some(self.tuned(gemm, &wanted))),
                }
            }
            _ => (cotangents, dx.map(|gemm| self.tuned(gemm, &wanted))),
        };
        let dwf = dwf.map(|GradientKind { dtype: out, add }| {
            let wanted = Wanted {
                product: Product::Store { out },
                a_trans: true,
                b_trans: false,
                shape: problem.orientation.half_shape(in_features, hidden),
                k: batch,
                segments: 1,
                add,
                depth: 2,
                inputs: dab.min(accesses.x.align),
                outputs: accesses.dwf_gate.align.min(accesses.dwf_up.align),
                ..wanted
            };
            self.gemm(&wanted, &mut notes)
        });
        let split = SplitOperands::of(&problem, cotangents, (dx, dwf), &mut workspace);
        let sums = dbias
            .map(|GradientKind { dtype: out, .. }| Sums::new(dtype, out, batch, 2 * hidden, &mut workspace));
        let (rounded, workspace_bytes) = RoundedOperands::of(&problem, cotangents, (dx, dwf), workspace);
        let reads = |gemm: Option<Gemm>| gemm.is_some_and(|gemm| !gemm.rounds());
        let again = reads(cotangents.gemm());
        realigned.keep(again || reads(dwf), again || reads(dx));
        Ok(BackwardPlan { realigned, cotangents, split, rounded, dx, dwf, sums, workspace_bytes, notes })
    }

    /// dy . Wdown^T, with the gate gradient on its sums, of pre-activations whose rows have this alignment.
    fn product_of_dz(
        &self,
        problem: &Problem,
        (out_features, orientation): (usize, Orientation),
        product: Product,
        outputs: u32,
        notes: &mut Notes,
    ) -> Gemm {
        let Dims { batch, hidden, .. } = problem.dims;
        let align = problem.accesses.dy.align.min(problem.accesses.down.align);
        let wanted = Wanted {
            dtype: problem.dtype,
            precision: problem.options.precision,
            tile: problem.options.tile,
            product,
            a_trans: false,
            b_trans: orientation == Orientation::InOut,
            shape: (batch, hidden),
            k: out_features,
            segments: 1,
            add: false,
            depth: 1,
            saves: false,
            inputs: if self.realigns(problem) { VECTOR } else { align },
            outputs,
            room: true,
        };
        self.analytic(&wanted, notes)
    }

    /// Both projections, into the workspace.
    fn pre_activations_again(&self, problem: &Problem, notes: &mut Notes) -> Gemm {
        let Dims { batch, in_features, hidden } = problem.dims;
        let wanted = Wanted {
            dtype: problem.dtype,
            precision: problem.options.precision,
            tile: problem.options.tile,
            product: Product::Store { out: problem.dtype },
            a_trans: false,
            b_trans: problem.orientation == Orientation::OutIn,
            shape: (batch, hidden),
            k: in_features,
            segments: 1,
            add: false,
            depth: 2,
            saves: false,
            inputs: inputs(problem),
            outputs: VECTOR,
            room: true,
        };
        self.gemm(&wanted, notes)
    }

    /// Whether dX forms the cotangents that it reads, whose rows have this alignment: where it has tiles for three eighths of
    /// the multiprocessors, and no blocks that share them.
    fn forms(&self, gemm: &Gemm, problem: &Problem, dab: u32) -> bool {
        let Dims { batch, in_features, .. } = problem.dims;
        let tiles = gemm.tiles(batch as u64, in_features as u64);
        let occupied = tiles.saturating_mul(8) >= 3 * u64::from(self.facts.multiprocessors);
        let pays = occupied && gemm.parts == 1 && in_features >= PAYS_FROM;
        tiles > 0
            && gemm.family == Family::Sm90
            && gemm.dtype != Dtype::F32
            && gemm.hopper.boxes
            && dab.min(problem.accesses.z.align) >= VECTOR
            && (pays || self.forces_sm90())
    }
}

/// Where dAB comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cotangents {
    /// Saved pre-activations become it, in place or in the workspace.
    Saved { gate: GateCode, to: Option<[Room; 2]> },
    /// Saved pre-activations become it in place, within dX.
    Formed { progress: Progress },
    /// dy . Wdown^T, with the gate gradient as its epilogue: over saved pre-activations, in place or into the workspace, or
    /// over those that `again` has left there.
    Projected { gemm: Gemm, again: Option<Gemm>, to: Option<[Room; 2]> },
    /// The projections once more, with the gate gradient as their epilogue, into the workspace.
    Recomputed { gemm: Gemm, to: [Room; 2] },
}

impl Cotangents {
    /// The product that computes the projections again.
    fn gemm(&self) -> Option<Gemm> {
        match *self {
            Cotangents::Recomputed { gemm, .. } => Some(gemm),
            Cotangents::Projected { again, .. } => again,
            Cotangents::Saved { .. } | Cotangents::Formed { .. } => None,
        }
    }
}

/// Room for the parts of what a backward's products read in parts. Others read the same operands as they are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SplitOperands {
    pub(crate) projected: Realigned,
    pub(crate) dab: Option<[Room; 2]>,
}

impl SplitOperands {
    fn of(
        problem: &Problem,
        cotangents: Cotangents,
        (dx, dwf): (Option<Gemm>, Option<Gemm>),
        workspace: &mut Layout,
    ) -> Self {
        let splits = |gemm: Option<Gemm>| gemm.is_some_and(|gemm| gemm.splits());
        let Dims { batch, hidden, .. } = problem.dims;
        let (again, dx, dwf) = (splits(cotangents.gemm()), splits(dx), splits(dwf));
        Self {
            projected: Realigned::parts(problem, again || dwf, again || dx, workspace),
            dab: (dx || dwf).then(|| [(); 2].map(|()| Room::parts((batch, hidden), workspace))),
        }
    }

    /// The launches before dAB is there, and those after it.
    fn launches(&self) -> (Vec<String>, Vec<String>) {
        let dab = self.dab.into_iter().flatten().zip(["dG", "dU"]);
        (self.projected.launches(), realign::launches(dab))
    }
}

/// Room for what a backward's products of TF32 read. Each rounds its operands right before it runs, so all have the same
/// room.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RoundedOperands {
    pub(crate) cotangents: Rounded,
    /// For any type: what the product that makes dz reads, in the form that it takes.
    pub(crate) dz: Rounded,
    pub(crate) dx: Rounded,
    pub(crate) dwf: Rounded,
}

impl RoundedOperands {
    /// Besides, the bytes of a workspace with this behind what is in it.
    fn of(
        problem: &Problem,
        cotangents: Cotangents,
        (dx, dwf): (Option<Gemm>, Option<Gemm>),
        workspace: Layout,
    ) -> (Self, usize) {
        let Dims { batch, in_features, hidden } = problem.dims;
        let half = problem.orientation.half_shape(in_features, hidden);
        let out_in = problem.orientation == Orientation::OutIn;
        let weights = [(GATE_WEIGHTS, half), (UP_WEIGHTS, half)];
        let dab = [("dG", (batch, hidden)), ("dU", (batch, hidden))];
        let x = [(X, (batch, in_features))];
        let mut bytes = workspace.bytes();
        let mut room = |gemm: Option<Gemm>, operands: &dyn Fn(&mut Layout) -> Rounded| {
            if !gemm.is_some_and(|gemm| gemm.rounds()) {
                return Rounded::default();
            }
            let mut own = workspace;
            let rounded = operands(&mut own);
            bytes = bytes.max(own.bytes());
            rounded
        };
        let mut rounded = Self {
            cotangents: room(cotangents.gemm(), &|own| rounded_projection(problem, own)),
            dz: Rounded::default(),
            dx: room(dx, &|own| Rounded::new((&dab, false), (&weights, out_in), own)),
            dwf: room(dwf, &|own| match problem.orientation {
                Orientation::InOut => Rounded::new((&x, true), (&dab, true), own),
                Orientation::OutIn => Rounded::new((&dab, true), (&x, true), own),
            }),
        };
        if let (Cotangents::Projected { gemm, .. }, UpstreamKind::Projected { out_features, orientation }) =
            (cotangents, problem.upstream)
        {
            let mut own = workspace;
            rounded.dz = operands_of_dz(problem, gemm, (out_features, orientation), &mut own);
            bytes = bytes.max(own.bytes());
        }
        (rounded, bytes)
    }
}

/// Room for dy and the down projection, in the form that a product of them reads: in parts, rounded, or with aligned rows.
fn operands_of_dz(
    problem: &Problem,
    gemm: Gemm,
    (out_features, orientation): (usize, Orientation),
    workspace: &mut Layout,
) -> Rounded {
    let Dims { batch, hidden, .. } = problem.dims;
    let dy: Named = ("dy", (batch, out_features));
    let down: Named = ("down projection", orientation.half_shape(hidden, out_features));
    if gemm.rounds() {
        return Rounded::new((&[dy], false), (&[down], orientation == Orientation::OutIn), workspace);
    }
    let mut room = |(name, shape): Named, align: u32| {
        let unaligned = matches!(gemm.family, Family::Mma | Family::Sm90) && align < VECTOR;
        let room = if gemm.splits() {
            Some(Room::parts(shape, workspace))
        } else {
            unaligned.then(|| Room::new(shape, problem.dtype, workspace))
        };
        (room, name)
    };
    Rounded::in_rooms(room(dy, problem.accesses.dy.align), room(down, problem.accesses.down.align))
}

/// Column sums in two stages: within chunks of rows, and over the chunks. Chunks depend on the number of rows alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    pub(crate) dtype: Dtype,
    pub(crate) out: Dtype,
    pub(crate) rows_per_chunk: usize,
    pub(crate) chunks: usize,
    /// Offset of the sums of the chunks in the workspace, in bytes.
    pub(crate) partial: usize,
}

impl Sums {
    /// At least this many rows make a chunk worth a block of threads, and at most so many chunks are summed by one
    /// thread in the second stage.
    const ROWS: usize = 64;
    const CHUNKS: usize = 64;

    pub(crate) fn new(dtype: Dtype, out: Dtype, rows: usize, cols: usize, workspace: &mut Layout) -> Self {
        let rows_per_chunk = rows.div_ceil(Self::CHUNKS).max(Self::ROWS);
        let chunks = rows.div_ceil(rows_per_chunk).max(1);
        let partial = workspace.part(chunks * cols * size_of::<f32>());
        Self { dtype, out, rows_per_chunk, chunks, partial }
    }

    /// The argument of both stages for a matrix; `partial` is where the sums of its chunks go.
    pub(crate) fn params(
        &self,
        (a, rows, cols): (Operand, usize, usize),
        partial: u64,
        (to, add): (Operand, bool),
    ) -> ColumnSumsParams {
        ColumnSumsParams {
            a,
            to: to.data,
            partial,
            rows: rows as i64,
            cols: cols as i64,
            rows_per_chunk: self.rows_per_chunk as i64,
            chunks: self.chunks as i64,
            add: u32::from(add),
            unused: 0,
        }
    }
}

/// What a backward enqueues.
#[derive(Clone, Debug)]
pub(crate) struct BackwardPlan {
    pub(crate) realigned: Realigned,
    pub(crate) cotangents: Cotangents,
    pub(crate) split: SplitOperands,
    pub(crate) rounded: RoundedOperands,
    pub(crate) dx: Option<Gemm>,
    pub(crate) dwf: Option<Gemm>,
    pub(crate) sums: Option<Sums>,
    pub(crate) workspace_bytes: usize,
    pub(crate) notes: Notes,
}

impl BackwardPlan {
    pub(super) fn launches(&self, problem: &Problem) -> Vec<String> {
        let (before, after) = self.split.launches();
        let mut launches: Vec<_> = [self.realigned.launches(), before].concat();
        let dx = match self.cotangents {
            Cotangents::Saved { gate, .. } => {
                let kernel = Kernel::GateBackward { dtype: problem.dtype, gate };
                launches.push(format!("{kernel}: saved pre-activations become dAB"));
                "dX"
            }
            Cotangents::Projected { gemm, again, .. } => {
                launches.extend(self.rounded.cotangents.launches());
                launches.extend(again.map(|again| format!("{again}: pre-activations of both projections")));
                launches.extend(self.rounded.dz.launches());
                launches.push(format!("{gemm}: dAB from pre-activations and dz"));
                "dX"
            }
            Cotangents::Formed { .. } => "saved pre-activations become dAB, and dX",
            Cotangents::Recomputed { gemm, .. } => {
                launches.extend(self.rounded.cotangents.launches());
                launches.push(format!("{gemm}: dAB from both projections"));
                "dX"
            }
        };
        launches.extend(after);
        launches.extend(self.rounded.dx.launches());
        launches.extend(self.dx.map(|gemm| format!("{gemm}: {dx}")));
        launches.extend(self.rounded.dwf.launches());
        launches.extend(self.dwf.map(|gemm| format!("{gemm}: both halves of dWf")));
        if let Some(sums) = self.sums {
            launches.push(format!("{}: dbias", Kernel::PartialSums { dtype: sums.dtype }));
            launches.push(format!("{}: dbias", Kernel::TotalSums { out: sums.out }));
        }
        launches
    }
}
