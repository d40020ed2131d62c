//! Operands that tensor cores cannot read, copied as something that they can: rows that start elsewhere, f32 in parts, or
//! f32 rounded to TF32.

use swiglu_core::{Dtype, Problem, Result};

use crate::arena::Layout;
use crate::kernel::{Grid, Kernel};
use crate::params::{GemmParams, Operand, RealignJob, RealignParams};
use crate::queue::Call;

/// Bytes that rows start at multiples of: the unit of `cp.async`, `ldmatrix` and TMA.
pub(crate) const ROW_BYTES: usize = 16;

/// Elements of a row of TF32 are a multiple of this: 128 bytes, a line of L2, which 16 lanes then write whole.
const ROUNDED_ROW: usize = 32;

/// Operands by name, as plans list them.
pub(crate) const X: &str = "x";
pub(crate) const GATE_WEIGHTS: &str = "gate weights";
pub(crate) const UP_WEIGHTS: &str = "up weights";

/// Elements of a row that is a whole number of [`ROW_BYTES`].
pub(crate) fn padded(cols: usize, dtype: Dtype) -> usize {
    cols.next_multiple_of(ROW_BYTES / dtype.bytes())
}

/// f32 as parts of bf16: what `sm90_split.cu` multiplies and the pass `SPLIT` of `elementwise.cu` makes.
pub(crate) mod parts {
    /// Parts of an element, each a matrix; they lie behind one another.
    pub(crate) const COUNT: u64 = 3;
    /// Elements of a part that a thread of the pass writes at once, in 16 bytes.
    pub(crate) const VECTOR: usize = 8;
    /// Rows of a box of TMA.
    const BOX: u64 = 64;

    /// Rows from one part to the next: whole boxes, the last of which ends in zeros.
    pub(crate) fn whole_rows(rows: u64) -> u64 {
        rows.div_ceil(BOX).saturating_mul(BOX)
    }
}

/// What a copy of a matrix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The same elements.
    Same,
    /// Those of f32 in parts.
    Parts,
    /// Those of f32 rounded to TF32.
    Rounded,
    /// The same, rows as columns.
    Turned,
}

/// A matrix in the workspace, with rows at multiples of [`ROW_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    form: Form,
    /// Of the matrix, in parts or not.
    rows: usize,
    cols: usize,
    /// Of the elements here.
    dtype: Dtype,
    /// In bytes.
    pub(crate) offset: usize,
    /// Elements from row to row.
    pub(crate) stride: usize,
}

impl Room {
    pub(crate) fn new((rows, cols): (usize, usize), dtype: Dtype, workspace: &mut Layout) -> Self {
        let stride = padded(cols, dtype);
        let offset = workspace.part(rows.saturating_mul(stride).saturating_mul(dtype.bytes()));
        Self { form: Form::Same, rows, cols, dtype, offset, stride }
    }

    /// For the parts of a matrix of f32.
    pub(crate) fn parts((rows, cols): (usize, usize), workspace: &mut Layout) -> Self {
        let all = parts::whole_rows(rows as u64).saturating_mul(parts::COUNT) as usize;
        Self { form: Form::Parts, rows, ..Self::new((all, cols), Dtype::Bf16, workspace) }
    }

    /// For a matrix of f32 rounded to TF32, `turned` to have its rows as columns. Rows are whole lines of L2.
    pub(crate) fn rounded((rows, cols): (usize, usize), turned: bool, workspace: &mut Layout) -> Self {
        let (down, along) = if turned { (cols, rows) } else { (rows, cols) };
        let stride = along.next_multiple_of(ROUNDED_ROW);
        let offset = workspace.part(down.saturating_mul(stride).saturating_mul(size_of::<f32>()));
        let form = if turned { Form::Turned } else { Form::Rounded };
        Self { form, rows, cols, dtype: Dtype::F32, offset, stride }
    }

    fn kernel(&self) -> Kernel {
        match self.form {
            Form::Rounded => Kernel::Round { transposed: false },
            Form::Turned => Kernel::Round { transposed: true },
            Form::Same => Kernel::Realign { dtype: self.dtype },
            Form::Parts => Kernel::Split,
        }
    }

    /// What its copy has that the matrix has not, as a plan says it.
    fn what(&self) -> &'static str {
        match self.form {
            Form::Same => "rows to 16 bytes",
            Form::Parts => "in three parts of bf16",
            Form::Rounded => "rounded",
            Form::Turned => "rounded and transposed",
        }
    }

    pub(crate) fn operand(&self, call: &Call<'_>) -> Operand {
        Operand { data: call.at(self.offset), stride: self.stride as i64 }
    }

    /// Zeros behind the rows. No sum depends on them: a copy of the last, partial 16 bytes takes only what is in the row.
    /// initcheck cannot tell, and a workspace that is clean is one thing less to think about.
    pub(crate) fn clear_ends(&self, call: &Call<'_>) -> Result<()> {
        let (bytes, end) = (self.dtype.bytes(), self.stride - self.cols);
        call.clear_rows(self.offset + self.cols * bytes, (self.rows, end * bytes), self.stride * bytes)
    }
}

/// Enqueues the copies of matrices that have room for one: those by one kernel in one launch. What comes back is what to read
/// in their place.
pub(crate) fn fill<const N: usize>(
    call: &Call<'_>,
    rooms: [Option<Room>; N],
    from: [Operand; N],
) -> Result<[Operand; N]> {
    const { assert!(N <= RealignParams::JOBS, "each has a job in a launch") };
    for (i, room) in rooms.iter().enumerate() {
        let Some(kernel) = room.map(|room| room.kernel()) else { continue };
        let is_alike = |room: &Room| room.kernel() == kernel;
        if !rooms[..i].iter().flatten().any(is_alike) {
            let alike =
                rooms.into_iter().zip(from).filter_map(|(room, from)| Some((room.filter(is_alike)?, from)));
            launch(call, kernel, alike)?;
        }
    }
    Ok(std::array::from_fn(|i| rooms[i].map_or(from[i], |room| room.operand(call))))
}

/// Copies matrices into rooms that one kernel fills.
fn launch(call: &Call<'_>, kernel: Kernel, rooms: impl Iterator<Item = (Room, Operand)>) -> Result<()> {
    let mut params = RealignParams { jobs: [RealignJob::NONE; RealignParams::JOBS] };
    let mut grid = Grid { blocks: 0, depth: 1, threads: 0 };
    for (job, (room, from)) in params.jobs.iter_mut().zip(rooms) {
        let own = kernel.grid(room.rows as u64, room.cols as u64, call.facts());
        let (rows, cols, to) = (room.rows as i64, room.cols as i64, room.operand(call));
        *job = RealignJob { from, to, rows, cols, first_block: grid.blocks };
        grid = Grid { blocks: grid.blocks.saturating_add(own.blocks), ..own };
    }
    call.launch(kernel, grid, &params)
}

/// The launches that fill rooms with matrices of these names, as a plan lists them.
pub(crate) fn launches(rooms: impl Iterator<Item = (Room, &'static str)>) -> Vec<String> {
    let mut launches = Vec::<(Room, String)>::new();
    for (room, name) in rooms {
        match launches.iter_mut().find(|(first, _)| first.kernel() == room.kernel()) {
            Some((_, names)) => *names += &format!(" + {name}"),
            None => launches.push((room, name.to_string())),
        }
    }
    launches.iter().map(|(room, names)| format!("{}: {names}, {}", room.kernel(), room.what())).collect()
}

/// A matrix of f32 that a product reads.
pub(crate) type Named = (&'static str, (usize, usize));

/// Room for the operands of one product, rounded to TF32 and contiguous along what is summed over, which is how `wgmma`
/// reads them. No two products of a backward read one in the same arrangement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rounded {
    a: [Option<(Room, &'static str)>; 2],
    b: [Option<(Room, &'static str)>; 2],
}

impl Rounded {
    /// Room for operands A and B, each given with whether its rows are along k. One that is given once serves both
    /// products of a launch.
    pub(crate) fn new(
        (a, a_turned): (&[Named], bool),
        (b, b_turned): (&[Named], bool),
        workspace: &mut Layout,
    ) -> Self {
        let mut rooms = |named: &[Named], turned| {
            [0, 1].map(|i| {
                let &(name, shape) = named.get(i)?;
                Some((Room::rounded(shape, turned, workspace), name))
            })
        };
        Self { a: rooms(a, a_turned), b: rooms(b, b_turned) }
    }

    /// These rooms for A and B, in whichever form; nothing is copied where there is none.
    pub(crate) fn in_rooms(a: (Option<Room>, &'static str), b: (Option<Room>, &'static str)) -> Self {
        let named = |(room, name): (Option<Room>, _)| [room.map(|room| (room, name)), None];
        Self { a: named(a), b: named(b) }
    }

    /// The launches, as a plan lists them.
    pub(crate) fn launches(&self) -> Vec<String> {
        launches(self.a.into_iter().chain(self.b).flatten())
    }

    /// Enqueues the passes, if there are any. What comes back has what they made in place of A and B.
    pub(crate) fn fill(&self, call: &Call<'_>, params: &GemmParams) -> Result<GemmParams> {
        let ([a, other_a], [b, other_b]) = (self.a, self.b);
        let rooms = [a, other_a, b, other_b].map(|named| named.map(|(room, _)| room));
        let from = [params.a[0], params.a[1], params.b[0], params.b[1]];
        let made = fill(call, rooms, from)?;
        // One that serves both products of a launch has room once.
        let other = |first: usize| match (rooms[first], rooms[first + 1]) {
            (Some(_), None) if from[first + 1] != Operand::NONE => made[first],
            _ => made[first + 1],
        };
        Ok(GemmParams { a: [made[0], other(0)], b: [made[2], other(2)], ..*params })
    }
}

/// Room for those operands of the projections that are copied first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Realigned {
    pub(crate) x: Option<Room>,
    pub(crate) gate: Option<Room>,
    pub(crate) up: Option<Room>,
}

impl Realigned {
    /// Room for what of x and the weights a pass reads from unaligned rows; in `problem` it is aligned from then on.
    pub(crate) fn of(problem: &mut Problem, reads_x: bool, reads_w: bool, workspace: &mut Layout) -> Self {
        let (dims, dtype) = (problem.dims, problem.dtype);
        let half = problem.orientation.half_shape(dims.in_features, dims.hidden);
        let accesses = &mut problem.accesses;
        let mut room = |reads: bool, align: &mut u32, shape| {
            (reads && *align < ROW_BYTES as u32).then(|| {
                *align = ROW_BYTES as u32;
                Room::new(shape, dtype, workspace)
            })
        };
        Self {
            x: room(reads_x, &mut accesses.x.align, (dims.batch, dims.in_features)),
            gate: room(reads_w, &mut accesses.gate.align, half),
            up: room(reads_w, &mut accesses.up.align, half),
        }
    }

    /// Leaves out what no product reads after all.
    pub(crate) fn keep(&mut self, reads_x: bool, reads_w: bool) {
        self.x = self.x.filter(|_| reads_x);
        self.gate = self.gate.filter(|_| reads_w);
        self.up = self.up.filter(|_| reads_w);
    }

    /// Room for the parts of what products read of x and the weights.
    pub(crate) fn parts(problem: &Problem, reads_x: bool, reads_w: bool, workspace: &mut Layout) -> Self {
        let dims = problem.dims;
        let half = problem.orientation.half_shape(dims.in_features, dims.hidden);
        let mut room = |reads: bool, shape| reads.then(|| Room::parts(shape, workspace));
        Self {
            x: room(reads_x, (dims.batch, dims.in_features)),
            gate: room(reads_w, half),
            up: room(reads_w, half),
        }
    }

    /// The launches, as a plan lists them.
    pub(crate) fn launches(&self) -> Vec<String> {
        let named = [(self.x, X), (self.gate, GATE_WEIGHTS), (self.up, UP_WEIGHTS)];
        launches(named.into_iter().filter_map(|(room, name)| Some((room?, name))))
    }

    /// Enqueues the copies. What comes back is what to read in place of x and of the two halves of the weights.
    pub(crate) fn copy(
        &self,
        call: &Call<'_>,
        x: Operand,
        [gate, up]: [Operand; 2],
    ) -> Result<(Operand, [Operand; 2])> {
        let [x, gate, up] = fill(call, [self.x, self.gate, self.up], [x, gate, up])?;
        Ok((x, [gate, up]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::{Dims, Options, Orientation, Pass};

    #[test]
    fn parts_lie_in_whole_boxes() {
        let mut workspace = Layout::default();
        let room = Room::parts((65, 9), &mut workspace);
        assert_eq!((room.rows, room.cols, room.stride), (65, 9, 16));
        assert_eq!(workspace.bytes(), 3 * 128 * 16 * 2);
        assert_eq!(parts::whole_rows(0), 0);
    }

    #[test]
    fn rounded_rows_are_whole_lines() {
        let mut workspace = Layout::default();
        let room = Room::rounded((65, 9), false, &mut workspace);
        assert_eq!((room.rows, room.cols, room.stride, room.offset), (65, 9, 32, 0));
        let room = Room::rounded((65, 9), true, &mut workspace);
        assert_eq!((room.rows, room.cols, room.stride, room.offset), (65, 9, 96, 65 * 32 * 4));
        assert_eq!(workspace.bytes(), (65 * 32 + 9 * 96) * 4);
    }

    #[test]
    fn only_what_is_read_and_unaligned_is_copied() {
        let dims = Dims { batch: 3, in_features: 9, hidden: 5 };
        let pass = Pass::Forward { save: false };
        let asked = Problem::dense(pass, Dtype::Bf16, dims, Orientation::InOut, Options::new());
        for (reads_x, reads_w, align) in
            [(true, true, 2), (true, false, 2), (false, true, 8), (true, true, 16), (false, false, 2)]
        {
            let mut problem = asked;
            let accesses = &mut problem.accesses;
            [accesses.x.align, accesses.gate.align, accesses.up.align] = [align; 3];
            let mut workspace = Layout::default();
            let realigned = Realigned::of(&mut problem, reads_x, reads_w, &mut workspace);
            let unaligned = align < 16;
            assert_eq!(realigned.x.map(|room| room.stride), (reads_x && unaligned).then_some(16));
            assert_eq!(realigned.gate.map(|room| room.stride), (reads_w && unaligned).then_some(8));
            assert_eq!(realigned.up.is_some(), reads_w && unaligned);
            assert_eq!(problem.accesses.x.align, if reads_x && unaligned { 16 } else { align });
            let copied = [realigned.x, realigned.gate, realigned.up].iter().flatten().count();
            assert_eq!(realigned.launches().len(), copied.min(1), "{:?}", realigned.launches());
            assert_eq!(workspace.bytes() > 0, (reads_x || reads_w) && unaligned);
        }
    }
}
