//! From a problem and a device to the kernels that solve it. Pure: everything here is tested without a GPU.

use swiglu_core::{
    Access, Dims, Dtype, GradientKind, Orientation, Pass, Plan, Precision, Problem, Result, Route, Tile,
};

use crate::arena::Layout;
use crate::decode::Decode;
use crate::device::Facts;
use crate::forming::{PAYS_FROM, Progress};
use crate::gemm::sliced::GROUPS;
use crate::gemm::{Edge, Family, GateCode, Gemm, Hopper, Product, Vectors};
use crate::kernel::{Kernel, gate_code};
use crate::notes::{Note, Notes};
use crate::params::{ColumnSumsParams, Operand};
use crate::realign::{Named, Realigned, Room, Rounded};
use crate::tune::{Asked, Choices, Told, Variant};
use crate::{ComputeCapability, composed};

/// Bytes of the widest access, `ld.global.v4`: what vector loads, and `cp.async`, need rows to be aligned to.
const VECTOR: u32 = 16;
/// Bytes of two f32, the widest store of an `mma` epilogue.
const PAIR: u32 = 8;
/// Ampere: the first architecture with bf16 and TF32 products and `cp.async`.
const MMA: ComputeCapability = ComputeCapability { major: 8, minor: 0 };
/// Hopper, whose instructions no later architecture has.
const SM90: ComputeCapability = ComputeCapability { major: 9, minor: 0 };
/// Coordinates of TMA are 32-bit with a sign, and the last tile, or the last of a pair, may begin 128 and end 256 past the
/// end of a matrix.
const MAX_COORDINATE: usize = i32::MAX as usize - 256;
/// Rows of the three parts of an f32 operand lie behind one another.
const MAX_PART: usize = MAX_COORDINATE / 3 - 64;
/// What f32 in parts and `simt` do in a second, where tiles fill an H100: 113 to 132 and 37 to 43 TFLOP/s, from
/// 256, 4096, 11008 to 8192, 4096, 14336.
const SPLIT_RATE: f64 = 120e12;
const SIMT_RATE: f64 = 40e12;
/// The ends of a tile of f32 in parts take as long as this many of k: 107 TFLOP/s at 1024, 784, 2048.
const SPLIT_ENDS: f64 = 96.0;
/// Seconds for an element of an operand, of which splitting reads 4 bytes and writes 6; and for the start of three passes.
const SPLIT_ELEMENT: f64 = 3.5e-12;
const SPLIT_PASSES: f64 = 12e-6;
/// What TF32 of `sm90`, once its operands are rounded, and of `mma` do in a second, where tiles fill an H100: 380 to 386 and
/// 157 TFLOP/s in forwards of 4096, 4096, 11008 and 8192, 4096, 14336.
const ROUNDED_RATE: f64 = 385e12;
const MMA_TF32_RATE: f64 = 160e12;
/// Seconds for an element of an operand, of which rounding reads 4 bytes and writes 4, at 2.8 TB/s; and for the start of
/// three passes and of a product whose tiles are large: 0.047 ms and 0.044 by `mma` at 1024, 784, 2048, and 0.069 and 0.084
/// at 2048, 784, 2048.
const ROUND_ELEMENT: f64 = 2.9e-12;
const ROUND_PASSES: f64 = 16e-6;
/// Operands that L2 (50 MB on an H100) does not hold are copied by pairs of blocks: it supplies 32 bytes a clock to each
/// multiprocessor that way and 48 without, of which it ran short: 720 and 609 TFLOP/s at 8192, 4096, 14336. Where it
/// holds them, blocks by themselves start sooner: 394 and 370 at 8192, 256, 1024.
const PAIRS_FROM_BYTES: usize = 64 << 20;
/// Largest batch of the `gemv` kernels.
const GEMV_ROWS: usize = 8;
/// From this many bytes of weights on, a few microseconds of an H100's memory, `decode` is taken unasked. What a launch
/// costs besides counts for more in smaller calls, of which none was measured; the smallest has 67 MB.
const STREAM_FROM_BYTES: usize = 16 << 20;

/// How a device is to be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planner<'c> {
    pub(crate) facts: Facts,
    /// The family to take wherever it accepts the problem.
    pub(crate) forced: Option<Family>,
    /// What was measured, where that is to count.
    pub(crate) choices: Option<&'c dyn Choices>,
}

/// What one product needs to be chosen.
struct Wanted {
    dtype: Dtype,
    precision: Precision,
    tile: Tile,
    product: Product,
    a_trans: bool,
    b_trans: bool,
    /// Rows and columns of C; columns of one half in paired products.
    shape: (usize, usize),
    /// What is summed over, in all segments together.
    k: usize,
    segments: u32,
    /// Whether C is added to.
    add: bool,
    /// Independent products in one launch.
    depth: u64,
    /// Whether pre-activations are written besides C.
    saves: bool,
    /// The least alignment of the rows of A and B.
    inputs: u32,
    /// The least alignment of the rows of everything else.
    outputs: u32,
    /// Whether there is room for parts of f32 operands.
    room: bool,
}

impl Wanted {
    fn is_tf32(&self) -> bool {
        self.dtype == Dtype::F32 && self.precision == Precision::Tf32
    }

    fn hopper(&self) -> Hopper {
        let (m, n) = self.shape;
        let (columns, out) = match self.product {
            Product::Store { out } => (n, out),
            Product::Gate(_) | Product::GateGradient(_) => (n.saturating_mul(2), self.dtype),
        };
        let bytes = m.saturating_add(columns).saturating_mul(self.k).saturating_mul(self.dtype.bytes());
        // TMA leaves out what is beside a matrix in whole vectors only: the rest of one is overwritten with zeros.
        let whole = n.is_multiple_of(VECTOR as usize / out.bytes());
        let boxes = whole && self.outputs >= VECTOR && !self.add;
        // What f32 in parts needs of L2 is little for its products: 124 TFLOP/s without pairs and 119 with them. It was measured
        // with the raster of pairs, 8 rows of tiles.
        let split = self.dtype == Dtype::F32 && !self.is_tf32();
        let pairs = !split && (bytes > PAIRS_FROM_BYTES || !self.several(boxes));
        Hopper { pairs, boxes, forms: None, group: Hopper::group(pairs || split) }
    }

    /// Whether there are kernels for pairs of blocks and blocks by themselves, and for outputs in vectors and without.
    /// Gate functions have one kernel for all outputs that are not written in boxes: each takes NVRTC two seconds.
    fn several(&self, boxes: bool) -> bool {
        boxes || !self.product.is_paired()
    }

    /// What `sm90` may access in vectors.
    fn hopper_vectors(&self) -> Vectors {
        let several = self.several(self.hopper().boxes);
        Vectors { a: true, b: true, c: several && self.outputs >= PAIR }
    }
}

/// The alignment of column `at` of a matrix with this access.
fn part(access: Access, at: usize, dtype: Dtype) -> u32 {
    let bytes = (at * dtype.bytes()) as u64;
    access.align.min(1 << bytes.trailing_zeros().min(Access::MAX_ALIGN.trailing_zeros()))
}

/// The alignment of both halves of a packed `[B, 2D]` matrix.
fn halves(access: Access, hidden: usize, dtype: Dtype) -> u32 {
    access.align.min(part(access, hidden, dtype))
}

/// The least alignment of the rows of x and of the weights.
fn inputs(problem: &Problem) -> u32 {
    let accesses = &problem.accesses;
    accesses.x.align.min(accesses.gate.align).min(accesses.up.align)
}

impl Planner<'_> {
    /// The kernel for a product, and what there is to say about the choice.
    fn gemm(&self, wanted: &Wanted, notes: &mut Notes) -> Gemm {
        self.tuned(self.analytic(wanted, notes), wanted)
    }

    /// What was measured to be fastest in place of the analytic choice, if anything was.
    fn tuned(&self, gemm: Gemm, wanted: &Wanted) -> Gemm {
        // A tile that was asked for is what is used.
        if wanted.tile != Tile::Auto {
            return gemm;
        }
        let (m, n) = wanted.shape;
        let asked = Asked {
            kernel: Kernel::Gemm(gemm),
            shape: (m, n, wanted.k),
            segments: wanted.segments,
            depth: wanted.depth as u32,
            saves: wanted.saves,
            add: wanted.add,
        };
        self.chosen(&asked).map_or(gemm, |variant| gemm.with(variant))
    }

    /// What was measured to be fastest, of a kernel that others compete with.
    fn chosen(&self, asked: &Asked) -> Option<Variant> {
        asked.kernel.variant()?;
        self.choices.and_then(|choices| choices.choose(asked))
    }

    /// The choice that needs no measurement.
    fn analytic(&self, wanted: &Wanted, notes: &mut Notes) -> Gemm {
        let tf32 = wanted.is_tf32();
        let plain = Gemm {
            family: Family::Simt,
            dtype: wanted.dtype,
            tf32: false,
            a_trans: wanted.a_trans,
            b_trans: wanted.b_trans,
            product: wanted.product,
            edge: Edge::E128,
            vectors: Vectors::default(),
            hopper: Hopper::default(),
            slices: 1,
        };
        let hopper = Gemm {
            family: Family::Sm90,
            tf32,
            // Rounding makes both operands contiguous along k.
            a_trans: wanted.a_trans && !tf32,
            b_trans: wanted.b_trans || tf32,
            vectors: wanted.hopper_vectors(),
            hopper: wanted.hopper(),
            ..plain
        };
        let largest = match self.family(wanted, tf32, &hopper, notes) {
            Family::Sm90 => return hopper,
            Family::Mma => Gemm {
                family: Family::Mma,
                tf32,
                vectors: Vectors { a: true, b: true, c: wanted.outputs >= PAIR },
                ..plain
            },
            // One switch for all: a kernel for each combination would be compiled for little. Aligned 16-bit operands
            // get here only by force where there are tensor cores, and then do without.
            _ => {
                let needed = wanted.dtype == Dtype::F32 || self.facts.capability < MMA;
                let all = needed && wanted.inputs.min(wanted.outputs) >= VECTOR;
                let plain = Gemm { vectors: Vectors { a: all, b: all, c: all }, ..plain };
                match self.sliced(plain, wanted, notes) {
                    Some(sliced) => return sliced,
                    None => plain,
                }
            }
        };
        match wanted.tile {
            Tile::Auto => self.fitting(self.filling(largest, wanted), notes),
            Tile::T128 => self.fitting(largest, notes),
            Tile::T64 => self.fitting(Gemm { edge: Edge::E64, ..largest }, notes),
            Tile::T32 => self.fitting(Gemm { edge: Edge::E32, ..largest }, notes),
        }
    }

    fn family(&self, wanted: &Wanted, tf32: bool, hopper: &Gemm, notes: &mut Notes) -> Family {
        if wanted.dtype == Dtype::F32 && !tf32 {
            return self.strict_family(wanted, hopper, notes);
        }
        let by_mma = if self.facts.capability < MMA {
            Some("mma needs compute capability 8.0")
        } else if wanted.inputs < VECTOR {
            Some("mma needs rows that start at multiples of 16 bytes")
        } else {
            None
        };
        // Rounding reads any rows.
        let any_rows = tf32 && self.forced != Some(Family::Mma);
        let by_sm90 = if any_rows { None } else { by_mma }.or_else(|| self.refused_by_sm90(wanted, hopper));
        match (self.forced, by_mma, by_sm90) {
            (Some(Family::Simt | Family::Sliced), ..) => Family::Simt,
            (Some(Family::Mma), None, _) => Family::Mma,
            (_, _, None) => Family::Sm90,
            (Some(Family::Sm90), None, Some(reason)) => {
                notes.push(Note::InPlaceOf { family: Family::Mma, asked: Family::Sm90, reason });
                Family::Mma
            }
            (_, None, _) => Family::Mma,
            (Some(forced @ (Family::Mma | Family::Sm90)), Some(reason), _) => {
                notes.push(Note::InPlaceOf { family: Family::Simt, asked: forced, reason });
                Family::Simt
            }
            (_, Some(reason), _) => {
                notes.push(Note::Because(Family::Simt, reason));
                Family::Simt
            }
        }
    }

    /// For f32 in f32's accuracy.
    fn strict_family(&self, wanted: &Wanted, hopper: &Gemm, notes: &mut Notes) -> Family {
        let refused = match self.forced {
            Some(Family::Simt | Family::Sliced) => return Family::Simt,
            Some(Family::Mma) => Some("f32 is multiplied in f32 unless Precision::Tf32 is asked for"),
            _ => self.refused_by_split(wanted, hopper),
        };
        match (self.forced, refused) {
            (_, None) => Family::Sm90,
            (Some(forced @ (Family::Mma | Family::Sm90)), Some(reason)) => {
                notes.push(Note::InPlaceOf { family: Family::Simt, asked: forced, reason });
                Family::Simt
            }
            // What strict f32 is everywhere else: nothing to say.
            _ => Family::Simt,
        }
    }

    /// Why a product of f32 is not one of its parts.
    fn refused_by_split(&self, wanted: &Wanted, hopper: &Gemm) -> Option<&'static str> {
        if let Some(reason) = self.refused_by_tiles(wanted, hopper) {
            return Some(reason);
        }
        let (m, n) = wanted.shape;
        if !wanted.room {
            Some("sm90 needs room for the parts of f32 operands")
        } else if m.max(n).max(wanted.k) > MAX_PART {
            Some("sm90 takes f32 of up to 715 million rows and columns")
        } else if self.forced != Some(Family::Sm90) && !self.pays_to_split(wanted, hopper) {
            Some("simt is as fast as splitting f32 first")
        } else {
            None
        }
    }

    /// Whether products of parts take less time than those of f32, splitting included. A backward splits an operand
    /// once for two products, which this leaves out.
    fn pays_to_split(&self, wanted: &Wanted, hopper: &Gemm) -> bool {
        let (area, elements, filled) = self.work(wanted, hopper);
        let k = wanted.k as f64;
        let split =
            2.0 * area * (k + SPLIT_ENDS) * filled / SPLIT_RATE + elements * SPLIT_ELEMENT + SPLIT_PASSES;
        split < 2.0 * area * k / SIMT_RATE
    }

    /// Why a product that `mma` accepts is not one for `sm90`.
    fn refused_by_sm90(&self, wanted: &Wanted, hopper: &Gemm) -> Option<&'static str> {
        if let Some(reason) = self.refused_by_tiles(wanted, hopper) {
            Some(reason)
        } else if wanted.is_tf32() {
            self.refused_by_rounding(wanted, hopper)
        } else if self.forced != Some(Family::Sm90) && !self.occupies(hopper, wanted) {
            Some("tiles of sm90 would leave most multiprocessors idle")
        } else {
            None
        }
    }

    /// Why a product of TF32 is not one for `sm90`, which has tiles for it.
    fn refused_by_rounding(&self, wanted: &Wanted, hopper: &Gemm) -> Option<&'static str> {
        if !wanted.room {
            Some("sm90 needs room for rounded operands")
        } else if self.forced != Some(Family::Sm90) && !self.pays_to_round(wanted, hopper) {
            Some("mma is as fast as rounding f32 first")
        } else {
            None
        }
    }

    /// Whether products of operands that are rounded first take less time than those of `mma`.
    fn pays_to_round(&self, wanted: &Wanted, hopper: &Gemm) -> bool {
        let (area, elements, filled) = self.work(wanted, hopper);
        let k = wanted.k as f64;
        let rounded = 2.0 * area * k * filled / ROUNDED_RATE + elements * ROUND_ELEMENT + ROUND_PASSES;
        rounded < 2.0 * area * k / MMA_TF32_RATE
    }

    /// Elements of C in all products of a launch, those of A and B, and how much longer tiles take than if they filled the
    /// multiprocessors each time.
    fn work(&self, wanted: &Wanted, hopper: &Gemm) -> (f64, f64, f64) {
        let (m, n) = wanted.shape;
        let tiles = hopper.tiles(m as u64, n as u64).saturating_mul(wanted.depth);
        let multiprocessors = u64::from(self.facts.multiprocessors);
        let filled = tiles.div_ceil(multiprocessors).saturating_mul(multiprocessors) as f64 / tiles as f64;
        let columns = if wanted.product.is_paired() { 2.0 * n as f64 } else { n as f64 };
        let (m, depth) = (m as f64, wanted.depth as f64);
        (m * columns * depth, (m + columns * depth) * wanted.k as f64, filled)
    }

    /// Why a product is not one for tiles of `sm90`, of whichever type.
    fn refused_by_tiles(&self, wanted: &Wanted, hopper: &Gemm) -> Option<&'static str> {
        let (m, n) = wanted.shape;
        if self.facts.capability != SM90 || !hopper.fits(&self.facts) {
            Some("sm90 needs compute capability 9.0")
        } else if matches!(wanted.tile, Tile::T32 | Tile::T64) {
            Some("sm90 has tiles of 128 rows")
        } else if wanted.k == 0 {
            Some("sm90 needs something to sum")
        } else if m.max(n).max(wanted.k) > MAX_COORDINATE {
            Some("sm90 takes up to 2^31 - 257 rows and columns")
        } else {
            None
        }
    }

    /// The kernel of `sliced` for a product on plain cores that it accepts: unless it is forced, one whose tiles of 128
    /// leave multiprocessors idle.
    fn sliced(&self, plain: Gemm, wanted: &Wanted, notes: &mut Notes) -> Option<Gemm> {
        let (m, n) = (wanted.shape.0 as u64, wanted.shape.1 as u64);
        let multiprocessors = u64::from(self.facts.multiprocessors);
        let mut sliced = Gemm { family: Family::Sliced, edge: Edge::E64, ..plain };
        let refused = if self.facts.capability < SM90 || !sliced.fits(&self.facts) {
            Some("sliced needs compute capability 9.0")
        } else if wanted.dtype != Dtype::F32 {
            Some("sliced multiplies f32")
        } else if wanted.tile != Tile::Auto {
            Some("sliced has no tiles to choose from")
        } else {
            None
        };
        match (self.forced, refused) {
            (Some(Family::Sliced), Some(reason)) => {
                notes.push(Note::InPlaceOf { family: Family::Simt, asked: Family::Sliced, reason });
                return None;
            }
            (Some(Family::Sliced), None) => {}
            (None | Some(Family::Decode | Family::Gemv), None)
                if plain.tiles(m, n).saturating_mul(wanted.depth) < multiprocessors => {}
            _ => return None,
        }
        // As many blocks as there are multiprocessors at most, with a slab of 8 for each group of warps at least.
        let tiles = sliced.tiles(m, n).saturating_mul(wanted.depth);
        for slices in [2, 4] {
            let more = Gemm { slices, ..sliced };
            let slabs = wanted.k >= 8 * (GROUPS * slices) as usize;
            if slabs && tiles.saturating_mul(u64::from(slices)) <= multiprocessors && more.fits(&self.facts) {
                sliced = more;
            }
        }
        Some(sliced)
    }

    /// Whether at least a quarter of the multiprocessors' time goes into tiles. 64 tiles on 132 run at 345 TFLOP/s (dX of
    /// 8192, 256, 1024) where `mma` has less than half of that, and 16 at 110, which `mma` reaches with its smaller ones.
    fn occupies(&self, gemm: &Gemm, wanted: &Wanted) -> bool {
        let multiprocessors = u64::from(self.facts.multiprocessors);
        let tiles = gemm.tiles(wanted.shape.0 as u64, wanted.shape.1 as u64).saturating_mul(wanted.depth);
        tiles.saturating_mul(4) >= tiles.div_ceil(multiprocessors).saturating_mul(multiprocessors)
    }

    /// The largest tile of which there are enough to occupy three quarters of the multiprocessors: 128 tiles of 64 on 132
    /// take 0.041 ms, 512 of 32 take 0.063, and 32 of 128 take 0.083 (dWf of 8192, 256, 1024 in bf16).
    fn filling(&self, mut gemm: Gemm, wanted: &Wanted) -> Gemm {
        let (m, n) = (wanted.shape.0 as u64, wanted.shape.1 as u64);
        let enough = 3 * u64::from(self.facts.multiprocessors);
        while gemm.tiles(m, n).saturating_mul(wanted.depth).saturating_mul(4) < enough {
            match gemm.edge.smaller() {
                Some(edge) => gemm.edge = edge,
                None => break,
            }
        }
        gemm
    }

    /// The tile itself, or the next smaller one that the shared memory of a block can hold.
    fn fitting(&self, mut gemm: Gemm, notes: &mut Notes) -> Gemm {
        let asked = gemm.edge;
        while !gemm.fits(&self.facts) {
            match gemm.edge.smaller() {
                Some(edge) => gemm.edge = edge,
                None => break,
            }
        }
        if gemm.edge != asked {
            notes.push(Note::Smaller { edge: gemm.edge, asked, shared_bytes: self.facts.shared_bytes });
        }
        gemm
    }

    /// x . Wf, with whichever epilogue.
    fn projection(&self, problem: &Problem, product: Product, outputs: u32, notes: &mut Notes) -> Gemm {
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
    fn realigns(&self, problem: &Problem) -> bool {
        let on_tensor_cores = problem.dtype != Dtype::F32 || problem.options.precision == Precision::Tf32;
        on_tensor_cores
            && self.facts.capability >= MMA
            && self.forced != Some(Family::Simt)
            && problem.dims.batch > GEMV_ROWS
    }

    /// The kernel of `decode` for a forward that it accepts.
    fn decode(&self, problem: &Problem, gate: GateCode) -> Decode {
        // Large blocks where they occupy three quarters of the multiprocessors: 112 on 132 take nine tenths of the time
        // of 224 small ones.
        let large = problem.dims.hidden.div_ceil(128).saturating_mul(4);
        let enough = large >= 3 * self.facts.multiprocessors as usize;
        Decode {
            dtype: problem.dtype,
            b_trans: problem.orientation == Orientation::OutIn,
            gate,
            rows: Decode::rows_for(problem.dims.batch),
            columns: if enough { 128 } else { 64 },
        }
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
        let (cotangents, dab) = if saved && realigns && multiplied && in_place < VECTOR {
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
                match Progress::new((batch, hidden), in_features, &mut workspace) {
                    Some(progress) => {
                        let (forms, group) = (Some(gate), Hopper::group(true));
                        let hopper = Hopper { pairs: true, forms, group, ..gemm.hopper };
                        (Cotangents::Formed { progress }, Some(Gemm { hopper, ..gemm }))
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

    /// Whether dX forms the cotangents that it reads, whose rows have this alignment. Each of its blocks forms as much, so
    /// there have to be enough: with tiles for 24 of 132 multiprocessors it takes 0.073 ms, and 0.065 with a pass of its own
    /// (2048, 768, 2048).
    fn forms(&self, gemm: &Gemm, problem: &Problem, dab: u32) -> bool {
        let Dims { batch, in_features, .. } = problem.dims;
        let tiles = gemm.tiles(batch as u64, in_features as u64);
        let occupied = tiles.saturating_mul(4) >= 3 * u64::from(self.facts.multiprocessors);
        let pays = occupied && in_features >= PAYS_FROM && gemm.hopper.pairs;
        gemm.family == Family::Sm90
            && gemm.dtype != Dtype::F32
            && gemm.hopper.boxes
            && dab.min(problem.accesses.z.align) >= VECTOR
            && (pays || self.forced == Some(Family::Sm90))
    }

    /// The plan as users see it.
    pub(crate) fn describe(&self, backend: String, problem: &Problem) -> Result<Plan> {
        if problem.options.route == Route::Composed {
            return composed::describe(backend, problem, &self.facts);
        }
        let told = Told::by(self.choices);
        let planner = Planner { choices: Some(&told), ..*self };
        let (launches, bytes, notes) = match problem.pass {
            Pass::Forward { save } => {
                let ForwardPlan { kernel, realigned, rounded, workspace_bytes, notes } =
                    planner.forward(problem, save)?;
                let last = format!("{kernel}: {} of both projections", problem.gate);
                let before = realigned.launches().chain(rounded.launches());
                (before.chain([last]).collect(), workspace_bytes, notes)
            }
            Pass::Backward { .. } => {
                let plan = planner.backward(problem)?;
                (plan.launches(problem), plan.workspace_bytes, plan.notes)
            }
        };
        let notes = notes.texts().chain(told.into_notes());
        Ok(notes.fold(Plan::new(backend, launches, bytes), Plan::note))
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

/// Where dAB comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cotangents {
    /// Saved pre-activations become it, in place or in the workspace.
    Saved { gate: GateCode, to: Option<[Room; 2]> },
    /// Saved pre-activations become it in place, within dX.
    Formed { progress: Progress },
    /// The projections once more, with the gate gradient as their epilogue, into the workspace.
    Recomputed { gemm: Gemm, to: [Room; 2] },
}

impl Cotangents {
    /// The product that recomputes them.
    fn gemm(&self) -> Option<Gemm> {
        match *self {
            Cotangents::Recomputed { gemm, .. } => Some(gemm),
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
    fn launches(&self) -> (impl Iterator<Item = String>, impl Iterator<Item = String>) {
        let dab = self.dab.into_iter().flatten().zip(["dG", "dU"]);
        (self.projected.launches(), dab.map(|(room, name)| room.launch(name)))
    }
}

const X: &str = "x";
const GATE_WEIGHTS: &str = "gate weights";
const UP_WEIGHTS: &str = "up weights";

/// Room for what the projections read, rounded.
fn rounded_projection(problem: &Problem, workspace: &mut Layout) -> Rounded {
    let Dims { batch, in_features, hidden } = problem.dims;
    let half = problem.orientation.half_shape(in_features, hidden);
    let turned = problem.orientation == Orientation::InOut;
    let x: Named = (X, (batch, in_features));
    Rounded::new((&[x], false), (&[(GATE_WEIGHTS, half), (UP_WEIGHTS, half)], turned), workspace)
}

/// Room for what a backward's products of TF32 read. Each rounds its operands right before it runs, so all have the same
/// room.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RoundedOperands {
    pub(crate) cotangents: Rounded,
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
        let rounded = Self {
            cotangents: room(cotangents.gemm(), &|own| rounded_projection(problem, own)),
            dx: room(dx, &|own| Rounded::new((&dab, false), (&weights, out_in), own)),
            dwf: room(dwf, &|own| match problem.orientation {
                Orientation::InOut => Rounded::new((&x, true), (&dab, true), own),
                Orientation::OutIn => Rounded::new((&dab, true), (&x, true), own),
            }),
        };
        (rounded, bytes)
    }
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
    fn launches(&self, problem: &Problem) -> Vec<String> {
        let (before, after) = self.split.launches();
        let mut launches: Vec<_> = self.realigned.launches().chain(before).collect();
        let dx = match self.cotangents {
            Cotangents::Saved { gate, .. } => {
                let kernel = Kernel::GateBackward { dtype: problem.dtype, gate };
                launches.push(format!("{kernel}: saved pre-activations become dAB"));
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

/// A plain product of `Dense`: shapes and alignments in place of a problem.
pub(crate) struct Matmul {
    pub(crate) dtype: Dtype,
    pub(crate) out: Dtype,
    pub(crate) a_trans: bool,
    pub(crate) b_trans: bool,
    pub(crate) shape: (usize, usize),
    pub(crate) k: usize,
    pub(crate) add: bool,
    pub(crate) inputs: u32,
    pub(crate) outputs: u32,
}

impl Planner<'_> {
    pub(crate) fn matmul(&self, call: &Matmul) -> Gemm {
        let wanted = Wanted {
            dtype: call.dtype,
            precision: Precision::Strict,
            tile: Tile::Auto,
            product: Product::Store { out: call.out },
            a_trans: call.a_trans,
            b_trans: call.b_trans,
            shape: call.shape,
            k: call.k,
            segments: 1,
            add: call.add,
            depth: 1,
            saves: false,
            inputs: call.inputs,
            outputs: call.outputs,
            room: false,
        };
        self.gemm(&wanted, &mut Notes::default())
    }
}

#[cfg(test)]
mod tests;
