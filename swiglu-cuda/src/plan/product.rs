//! Which kernel a product runs by: the family, the tile, and what only a family's kernels differ in.

use swiglu_core::{Dtype, Precision, Tile};

use super::{MAX_COORDINATE, MMA, Planner, SM90, VECTOR};
use crate::gemm::{Edge, Family, Gemm, Hopper, Product, Schedule, Vectors, sliced};
use crate::kernel::Kernel;
use crate::notes::{Note, Notes};
use crate::tune::{Asked, Variant};

/// Bytes of two f32, the widest store of an `mma` epilogue.
const PAIR: u32 = 8;
/// Rows of the three parts of an f32 operand lie behind one another.
const MAX_PART: usize = MAX_COORDINATE / 3 - 64;
/// What f32 in parts and `simt` do in a second, where tiles fill an H100: 113 to 132 and 37 to 43 TFLOP/s, from
/// 256, 4096, 11008 to 8192, 4096, 14336.
const SPLIT_RATE: f64 = 120e12;
const SIMT_RATE: f64 = 40e12;
/// The ends of a tile of f32 in parts take as long as this many of k: 107 TFLOP/s at 1024, 784, 2048.
const SPLIT_ENDS: f64 = 96.0;
/// Seconds for an element of an operand, of which splitting reads 4 bytes and writes 6; and what it has to save besides: with that
/// the choice is the faster one, within 2 %, at 14 shapes from 512, 784, 512 to 4096, 128, 4096 in both orientations.
const SPLIT_ELEMENT: f64 = 3.5e-12;
const SPLIT_SAVES: f64 = 12e-6;
/// What TF32 of `sm90`, once its operands are rounded, and of `mma` do in a second, where tiles fill an H100: 380 to 386 and
/// 157 TFLOP/s in forwards of 4096, 4096, 11008 and 8192, 4096, 14336.
const ROUNDED_RATE: f64 = 385e12;
const MMA_TF32_RATE: f64 = 160e12;
/// Seconds for an element of an operand, of which rounding reads 4 bytes and writes 4, at 2.8 TB/s; and for the start of a
/// launch: of two, where one operand is transposed, and of one. At 2048, 512, 1024 27.6 and 23.4 us, and 28.7 and 28.2 by `mma`;
/// at 1024, 784, 2048 42.0 and 39.2, and 41.6 and 41.0; at 2048, 256, 1024 22.2 and 19.1, and 18.9 and 18.5.
const ROUND_ELEMENT: f64 = 2.9e-12;
const ROUND_LAUNCH: f64 = 5.3e-6;
/// From so many bytes of operands on they are copied by pairs of blocks: L2 supplies 32 bytes a clock to each multiprocessor
/// that way and 48 without, of which it ran short: 720 and 609 TFLOP/s in a forward of 8192, 4096, 14336, and dWf of 2048,
/// 4096, 11008, which has 62 MB, took 0.471 ms and 0.552. Blocks by themselves start sooner: 394 TFLOP/s and 370 in a forward
/// of 8192, 256, 1024, which has 5 MB. dWf of 512, 4096, 11008 with 15 MB took 0.148 ms in pairs, and 0.155.
const PAIRS_FROM_BYTES: usize = 12 << 20;

/// What one product needs to be chosen.
pub(super) struct Wanted {
    pub(super) dtype: Dtype,
    pub(super) precision: Precision,
    pub(super) tile: Tile,
    pub(super) product: Product,
    pub(super) a_trans: bool,
    pub(super) b_trans: bool,
    /// Rows and columns of C; columns of one half in paired products.
    pub(super) shape: (usize, usize),
    /// What is summed over, in all segments together.
    pub(super) k: usize,
    pub(super) segments: u32,
    /// Whether C is added to.
    pub(super) add: bool,
    /// Independent products in one launch.
    pub(super) depth: u64,
    /// Whether pre-activations are written besides C.
    pub(super) saves: bool,
    /// The least alignment of the rows of A and B.
    pub(super) inputs: u32,
    /// The least alignment of the rows of everything else.
    pub(super) outputs: u32,
    /// Whether there is room for parts of f32 operands.
    pub(super) room: bool,
}

impl Wanted {
    fn is_tf32(&self) -> bool {
        self.dtype == Dtype::F32 && self.precision == Precision::Tf32
    }

    fn hopper(&self) -> Hopper {
        let (m, n) = self.shape;
        let columns = if self.product.is_paired() { n.saturating_mul(2) } else { n };
        let out = self.product.out(self.dtype);
        let bytes = m.saturating_add(columns).saturating_mul(self.k).saturating_mul(self.dtype.bytes());
        // TMA leaves out what is beside a matrix in whole vectors only: the rest of one is overwritten with zeros.
        let whole = n.is_multiple_of(VECTOR as usize / out.bytes());
        let boxes = whole && self.outputs >= VECTOR && !self.add;
        // What f32 in parts needs of L2 is little for its products: 124 TFLOP/s without pairs and 119 with them. It was measured
        // with the raster of pairs, 8 rows of tiles.
        let split = self.dtype == Dtype::F32 && !self.is_tf32();
        let pairs = !split && (bytes > PAIRS_FROM_BYTES || !self.has_both_clusters(boxes));
        let schedule = Schedule::Together;
        Hopper { schedule, pairs, boxes, narrow: false, forms: None, group: Hopper::group(pairs || split) }
    }

    /// Whether there are kernels for pairs of blocks and for blocks by themselves. Gate functions have none of the latter for
    /// outputs that are not written in boxes: each takes NVRTC two seconds.
    fn has_both_clusters(&self, boxes: bool) -> bool {
        boxes || !self.product.has_gate()
    }
}

impl Planner<'_> {
    /// The kernel for a product, and what there is to say about the choice.
    pub(super) fn gemm(&self, wanted: &Wanted, notes: &mut Notes) -> Gemm {
        self.tuned(self.analytic(wanted, notes), wanted)
    }

    /// What was measured to be fastest in place of the analytic choice, if anything was.
    pub(super) fn tuned(&self, gemm: Gemm, wanted: &Wanted) -> Gemm {
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
    pub(super) fn chosen(&self, asked: &Asked) -> Option<Variant> {
        asked.kernel.variant()?;
        self.choices.and_then(|choices| choices.choose(asked))
    }

    /// The choice that needs no measurement.
    pub(super) fn analytic(&self, wanted: &Wanted, notes: &mut Notes) -> Gemm {
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
            parts: 1,
        };
        let hopper = self.few(
            wanted,
            Gemm {
                family: Family::Sm90,
                tf32,
                // Rounding makes both operands contiguous along k.
                a_trans: wanted.a_trans && !tf32,
                b_trans: wanted.b_trans || tf32,
                // Outputs that are not written in boxes are written in any rows, and dz is read with them.
                vectors: Vectors { a: true, b: true, c: wanted.hopper().boxes },
                hopper: wanted.hopper(),
                ..plain
            },
        );
        let largest = match self.family(wanted, tf32, &hopper, notes) {
            Family::Sm90 => return self.in_turns(hopper, wanted, notes),
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

    /// The family that is forced on products, of which `turns` has but a schedule of its own for some.
    fn forced_family(&self) -> Option<Family> {
        if self.forced == Some(Family::Turns) { Some(Family::Sm90) } else { self.forced }
    }

    /// Whether products are to be those of `sm90` even where others are faster.
    pub(super) fn forces_sm90(&self) -> bool {
        self.forced_family() == Some(Family::Sm90)
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
        match (self.forced_family(), by_mma, by_sm90) {
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
        let refused = match self.forced_family() {
            Some(Family::Simt | Family::Sliced) => return Family::Simt,
            Some(Family::Mma) => Some("f32 is multiplied in f32 unless Precision::Tf32 is asked for"),
            _ => self.refused_by_split(wanted, hopper),
        };
        match (self.forced_family(), refused) {
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
        } else if !self.forces_sm90() && !self.pays_to_split(wanted, hopper) {
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
            2.0 * area * (k + SPLIT_ENDS) * filled / SPLIT_RATE + elements * SPLIT_ELEMENT + SPLIT_SAVES;
        split < 2.0 * area * k / SIMT_RATE
    }

    /// Why a product that `mma` accepts is not one for `sm90`.
    fn refused_by_sm90(&self, wanted: &Wanted, hopper: &Gemm) -> Option<&'static str> {
        if let Some(reason) = self.refused_by_tiles(wanted, hopper) {
            Some(reason)
        } else if wanted.is_tf32() {
            self.refused_by_rounding(wanted, hopper)
        } else if !self.forces_sm90() && !self.occupies(hopper, wanted) {
            Some("tiles of sm90 would leave most multiprocessors idle")
        } else {
            None
        }
    }

    /// Why a product of TF32 is not one for `sm90`, which has tiles for it.
    fn refused_by_rounding(&self, wanted: &Wanted, hopper: &Gemm) -> Option<&'static str> {
        if !wanted.room {
            Some("sm90 needs room for rounded operands")
        } else if !self.forces_sm90() && !self.pays_to_round(wanted, hopper) {
            Some("mma is as fast as rounding f32 first")
        } else {
            None
        }
    }

    /// Whether products of operands that are rounded first take less time than those of `mma`.
    fn pays_to_round(&self, wanted: &Wanted, hopper: &Gemm) -> bool {
        let (area, elements, filled) = self.work(wanted, hopper);
        let k = wanted.k as f64;
        let launches = if wanted.a_trans == wanted.b_trans { 2.0 } else { 1.0 };
        let passes = elements * ROUND_ELEMENT + launches * ROUND_LAUNCH;
        let rounded = 2.0 * area * k * filled / ROUNDED_RATE + passes;
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

    /// The kernel of `sliced` for a product in place of `plain`, unless it is refused. Measured on an H100 against `simt`: as
    /// fast or faster everywhere from 32, 784, 128 to 1024, 1024, 1024 and 128, 4096, 4096, up to 4.4 times. Later GPUs have
    /// half the tensor cores for as many plain ones: there it is for products whose tiles of 128 leave multiprocessors idle.
    fn sliced(&self, plain: Gemm, wanted: &Wanted, notes: &mut Notes) -> Option<Gemm> {
        let (m, n) = (wanted.shape.0 as u64, wanted.shape.1 as u64);
        let sliced = Gemm { family: Family::Sliced, edge: Edge::E64, parts: 2, ..plain };
        let refused = if self.facts.capability < SM90 || !sliced.fits(&self.facts) {
            Some("sliced needs compute capability 9.0")
        } else if wanted.dtype != Dtype::F32 {
            Some("sliced multiplies f32")
        } else if wanted.tile != Tile::Auto {
            Some("sliced has no tiles to choose from")
        } else {
            None
        };
        let idle = || plain.tiles(m, n).saturating_mul(wanted.depth) < u64::from(self.facts.multiprocessors);
        match (self.forced, refused) {
            (Some(Family::Sliced), Some(reason)) => {
                notes.push(Note::InPlaceOf { family: Family::Simt, asked: Family::Sliced, reason });
                return None;
            }
            (Some(Family::Sliced), None) => {}
            (None | Some(Family::Decode | Family::Gemv), None) if self.facts.capability == SM90 || idle() => {
            }
            _ => return None,
        }
        let tiles = sliced.tiles(m, n).saturating_mul(wanted.depth);
        let per_segment = (wanted.k as u64 / u64::from(wanted.segments)).div_ceil(sliced::DEPTH);
        let slabs = per_segment * u64::from(wanted.segments);
        let of = |parts| Gemm { parts, ..sliced };
        let choices = sliced::PARTS.into_iter().filter(|&parts| of(parts).fits(&self.facts));
        let time = |parts: &u32| self.sliced_time(*parts, tiles, slabs);
        choices.min_by(|a, b| time(a).total_cmp(&time(b))).map(of)
    }

    /// Seconds that `sliced` takes for tiles of so many slabs, but for the launch: within a hundredth of the fastest on
    /// average, and at most an eighth slower, where it chooses among the parts in the measurements above.
    fn sliced_time(&self, parts: u32, tiles: u64, slabs: u64) -> f64 {
        let multiprocessors = u64::from(self.facts.multiprocessors);
        let (groups, slices) = (u64::from(sliced::groups(parts)), u64::from(sliced::slices(parts)));
        // Tiles that run at once.
        let fit = match slices {
            1 => multiprocessors * 8 / groups,
            more => self.clusters_at_once(more as u32),
        }
        .max(1);
        let wave = |tiles: u64| {
            // Eight warps of a multiprocessor take longer than four, and less than twice as long.
            let warps = (tiles * slices).div_ceil(multiprocessors) * groups;
            let slab = if warps > 4 { 1.34e-6 } else { 0.8e-6 };
            slabs.div_ceil(u64::from(parts)).max(1) as f64 * slab + 0.5e-6 + 0.3e-6 * (slices - 1) as f64
        };
        let rest = if tiles.is_multiple_of(fit) { 0.0 } else { wave(tiles % fit) };
        (tiles / fit) as f64 * wave(fit) + rest
    }

    /// Whether at least a quarter of the multiprocessors' time goes into tiles. 64 tiles on 132 run at 345 TFLOP/s (dX of
    /// 8192, 256, 1024) where `mma` has less than half of that, and 16 at 110, which `mma` reaches with its smaller ones.
    fn occupies(&self, gemm: &Gemm, wanted: &Wanted) -> bool {
        let multiprocessors = u64::from(self.facts.multiprocessors);
        let tiles = gemm.tiles(wanted.shape.0 as u64, wanted.shape.1 as u64).saturating_mul(wanted.depth);
        let blocks = tiles.saturating_mul(u64::from(gemm.parts));
        blocks.saturating_mul(4) >= blocks.div_ceil(multiprocessors).saturating_mul(multiprocessors)
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
    /// Whether factors of a plain product of so many rows, in rows that tensor cores cannot read, are copied for them.
    pub(crate) fn realigns_factors(&self, dtype: Dtype, rows: usize) -> bool {
        dtype != Dtype::F32 && self.realigns_for(rows)
    }

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
