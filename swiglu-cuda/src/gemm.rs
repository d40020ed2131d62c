//! One matrix product on the device: which kernel, with which tile, for which grid. Pure: tested without a GPU.

use std::fmt;

use swiglu_core::Dtype;

use crate::device::Facts;
use crate::forming::Forming;

/// A group of kernels with one way of multiplying.
///
/// ```
/// use swiglu_cuda::Family;
/// assert_eq!(Family::Mma.to_string(), "mma");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Fused multiply-adds on the ordinary cores: any GPU, shape, stride and type. In f32 it is the strict one.
    Simt,
    /// Tensor cores by `mma.sync`, from compute capability 8.0 on: 16-bit types, and f32 as TF32 when asked for.
    /// Rows must start at multiples of 16 bytes.
    Mma,
    /// Hopper's tensor cores, by `wgmma` and TMA, on compute capability 9.0: 16-bit types whose rows start at multiples
    /// of 16 bytes; f32 in f32's accuracy, each element as the sum of three of bf16, which a pass before makes; and f32 as
    /// TF32 when asked for, which a pass before rounds.
    Sm90,
    /// Forwards of [`Family::Sm90`] in 16-bit types, where rows of outputs start and end at multiples of 16 bytes: two groups
    /// of warps take turns, one with the products of a tile and the other with the gate function on the tile before. All
    /// other products are those of [`Family::Sm90`]. Taken without being asked for where a model of their tiles expects them
    /// to be faster: large forwards.
    Turns,
    /// Strict f32 products that are too small to be split first, on compute capability 9.0 and later: tensor cores
    /// multiply each element as the sum of three of bf16, which the kernel makes on the way, and what is summed over is
    /// cut among warps and blocks too. Sums are added in another order than by [`Family::Simt`].
    Sliced,
    /// Products of a vector and a matrix, for batches of up to 8 rows.
    Gemv,
    /// Few rows against weights that are read once: up to 128 rows of 16-bit types on compute capability 9.0. Rows of x
    /// and the weights must start at multiples of 16 bytes.
    Decode,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Simt => "simt",
            Family::Mma => "mma",
            Family::Sm90 => "sm90",
            Family::Turns => "turns",
            Family::Sliced => "sliced",
            Family::Gemv => "gemv",
            Family::Decode => "decode",
        })
    }
}

/// A gate function as the kernels number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GateCode(pub(crate) u8);

impl GateCode {
    pub(crate) const GEGLU_ERF: Self = Self(2);
}

/// What a product is for: what its epilogue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Product {
    /// Plain results of this type.
    Store { out: Dtype },
    /// z = h(g, u).
    Gate(GateCode),
    /// dG and dU, from sums that are g and u.
    GateGradient(GateCode),
    /// dG and dU, from sums that are dz: pre-activations become them.
    Cotangents(GateCode),
}

impl Product {
    /// Whether a tile accumulates gate and up columns beside each other.
    pub(crate) fn is_paired(self) -> bool {
        matches!(self, Product::Gate(_) | Product::GateGradient(_))
    }

    /// Whether results come of a gate function.
    pub(crate) fn has_gate(self) -> bool {
        !matches!(self, Product::Store { .. })
    }

    /// The type of C, for operands of this one.
    pub(crate) fn out(self, dtype: Dtype) -> Dtype {
        match self {
            Product::Store { out } => out,
            Product::Gate(_) | Product::GateGradient(_) | Product::Cotangents(_) => dtype,
        }
    }
}

/// Edge of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Edge {
    E32 = 32,
    E64 = 64,
    E128 = 128,
}

impl Edge {
    pub(crate) const fn len(self) -> u64 {
        self as u64
    }

    /// The next smaller one.
    pub(crate) const fn smaller(self) -> Option<Self> {
        match self {
            Edge::E128 => Some(Edge::E64),
            Edge::E64 => Some(Edge::E32),
            Edge::E32 => None,
        }
    }
}

/// Which operands may be accessed in vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Vectors {
    pub(crate) a: bool,
    pub(crate) b: bool,
    pub(crate) c: bool,
}

/// How the two warpgroups of a block that multiply divide the tiles of `sm90`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) enum Schedule {
    /// Each has half of the rows of every tile, which are 128.
    #[default]
    Together,
    /// Each has every other tile, of so many rows, and writes it while the other multiplies. Blocks are paired.
    Turns { rows: u32 },
}

/// What only kernels of the family `sm90` differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Hopper {
    pub(crate) schedule: Schedule,
    /// Two blocks copy B for each other; A, where warpgroups take turns.
    pub(crate) pairs: bool,
    /// C is written by TMA.
    pub(crate) boxes: bool,
    /// Tiles have 128 columns in place of 256: where there are few.
    pub(crate) narrow: bool,
    /// A is saved pre-activations, and becomes their cotangents first.
    pub(crate) forms: Option<Forming>,
    /// Rows of tiles, or of pairs of them, that sweep the columns together, to share what they read in L2: a power of
    /// two. An argument of a launch, and no part of a kernel that is compiled.
    pub(crate) group: u32,
}

impl Hopper {
    /// Rows in a group, unless something else was measured to be faster. Columns are read again for each group, and the
    /// rows of one are to stay in L2. For pairs 4, 16 and 32 are each up to 5 % slower than 8 at some shape, and nowhere
    /// faster by 2 %. For blocks by themselves 16 is everywhere within 2 % of the fastest, where 8 takes 7 to 9 % longer
    /// in forwards (0.111 ms for 0.106 at 4096, 1024, 4096; 0.0247 for 0.0228 at 2048, 768, 2048), and 32 takes 3 % longer
    /// in one that saves (0.0271 ms for 0.0264 at 8192, 256, 1024). H100, bf16.
    pub(crate) const fn group(pairs: bool) -> u32 {
        if pairs { 8 } else { 16 }
    }
}

/// A kernel of the families `simt`, `mma`, `sm90` and `sliced`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Gemm {
    pub(crate) family: Family,
    pub(crate) dtype: Dtype,
    /// f32 operands rounded to TF32.
    pub(crate) tf32: bool,
    /// A is stored k x m.
    pub(crate) a_trans: bool,
    /// B is stored n x k.
    pub(crate) b_trans: bool,
    pub(crate) product: Product,
    pub(crate) edge: Edge,
    pub(crate) vectors: Vectors,
    pub(crate) hopper: Hopper,
    /// Parts that k is cut into: 2, 4, 8, 16 or 32 in `sliced`, each for a warp; 1 to 4 in plain 16-bit products of `sm90`,
    /// each for a block. Elsewhere 1.
    pub(crate) parts: u32,
}

impl Gemm {
    /// Without what is no part of the kernel that is compiled.
    pub(crate) fn compiled(self) -> Self {
        Self { hopper: Hopper { group: 0, ..self.hopper }, ..self }
    }

    /// Turns for this product of `sm90`, or why there are none. A tile has as many rows as leave registers for the gate function,
    /// since a thread has as many sums.
    pub(crate) fn turns(&self) -> Result<Schedule, &'static str> {
        let rows = match self.product {
            Product::Gate(GateCode::GEGLU_ERF) => 160,
            Product::Gate(_) => 192,
            Product::Store { .. } | Product::GateGradient(_) | Product::Cotangents(_) => {
                return Err("turns has forwards only");
            }
        };
        if self.dtype == Dtype::F32 {
            Err("turns multiplies 16-bit types")
        } else if !self.hopper.boxes {
            Err("turns needs outputs whose rows start and end at multiples of 16 bytes")
        } else {
            Ok(Schedule::Turns { rows })
        }
    }

    /// The same product by another schedule; blocks that take turns are paired.
    pub(crate) fn scheduled(self, schedule: Schedule) -> Self {
        let pairs = self.hopper.pairs || schedule != Schedule::Together;
        Self { hopper: Hopper { schedule, pairs, ..self.hopper }, ..self }
    }

    /// Whether operands are f32 split into parts of bf16.
    pub(crate) fn splits(&self) -> bool {
        self.family == Family::Sm90 && self.dtype == Dtype::F32 && !self.tf32
    }

    /// Whether operands are f32 that was rounded to TF32, contiguous along k, first.
    pub(crate) fn rounds(&self) -> bool {
        self.family == Family::Sm90 && self.tf32
    }

    /// Rows and columns of C that a block of threads computes; columns of one half in paired products.
    pub(crate) fn tile(&self) -> (u64, u64) {
        let edge = self.edge.len();
        match (self.family, self.product.is_paired()) {
            // A simt tile holds gate and up columns in its own edge.
            (Family::Simt, true) => (edge, edge / 2),
            (Family::Sliced, false) => (sliced::ROWS, sliced::COLUMNS),
            (Family::Sliced, true) => (sliced::ROWS, sliced::COLUMNS / 2),
            (Family::Sm90, paired) => {
                let (rows, columns) = sm90::tile(self);
                (rows, if paired { columns / 2 } else { columns })
            }
            _ => (edge, edge),
        }
    }

    /// Tiles of an m x n product. Except in `sm90` and `sliced`, each has a block of threads.
    pub(crate) fn tiles(&self, m: u64, n: u64) -> u64 {
        let (rows, cols) = self.tile();
        m.div_ceil(rows).saturating_mul(n.div_ceil(cols))
    }

    /// Blocks of `sm90` for `products` m x n products: as many as run at once, or as there are tiles; where tiles are shared,
    /// so many for each. Where operands are formed on the way, blocks without a tile do that.
    pub(crate) fn blocks(&self, (m, n, products): (u64, u64, u64), facts: &Facts) -> u64 {
        let clusters = self.clusters(m, n).saturating_mul(products);
        let at_once = self.clusters_at_once(facts);
        match (self.parts, self.hopper.forms) {
            (2.., _) => clusters.saturating_mul(u64::from(self.parts)),
            (_, Some(_)) if clusters > 0 => at_once * self.cluster(),
            _ => clusters.min(at_once) * self.cluster(),
        }
    }

    /// Blocks that copy an operand for each other.
    fn cluster(&self) -> u64 {
        if self.hopper.pairs { 2 } else { 1 }
    }

    /// The tiles of a cluster of `sm90` together: on neighbouring rows of tiles, or on neighbouring columns where warpgroups
    /// take turns.
    pub(crate) fn cluster_tile(&self) -> (u64, u64) {
        let (rows, cols) = self.tile();
        match self.hopper.schedule {
            Schedule::Together => (rows * self.cluster(), cols),
            Schedule::Turns { .. } => (rows, cols * self.cluster()),
        }
    }

    /// Clusters for an m x n product of `sm90`.
    pub(crate) fn clusters(&self, m: u64, n: u64) -> u64 {
        let (rows, cols) = self.cluster_tile();
        m.div_ceil(rows).saturating_mul(n.div_ceil(cols))
    }

    /// Clusters of `sm90` that run at once.
    pub(crate) fn clusters_at_once(&self, facts: &Facts) -> u64 {
        u64::from(facts.multiprocessors) / self.cluster()
    }

    /// Threads of a block.
    pub(crate) fn threads(&self) -> u32 {
        match self.family {
            Family::Mma => mma::threads(self),
            Family::Sm90 => sm90::THREADS,
            Family::Sliced => 32 * sliced::groups(self.parts),
            _ => simt::threads(self),
        }
    }

    /// Whether a block's shared memory can hold what the kernel needs of it.
    pub(crate) fn fits(&self, facts: &Facts) -> bool {
        match self.family {
            // One stage fills while another is read.
            Family::Mma => mma::stages(self, facts) >= 2,
            _ => self.shared_bytes(facts) <= facts.shared_bytes,
        }
    }

    /// Bytes of dynamic shared memory of a block.
    pub(crate) fn shared_bytes(&self, facts: &Facts) -> u32 {
        match self.family {
            Family::Mma => mma::stages(self, facts) * mma::stage_bytes(self, facts),
            Family::Sm90 => sm90::shared_bytes(self),
            Family::Sliced => sliced::shared_bytes(self.parts),
            _ => 0,
        }
    }
}

/// What `simt_gemm.cu` makes of its macros.
mod simt {
    use super::{Edge, Gemm};

    pub(super) fn threads(gemm: &Gemm) -> u32 {
        match gemm.edge {
            Edge::E128 | Edge::E64 => 256,
            Edge::E32 => 64,
        }
    }
}

/// What `sliced_gemm.cu` makes of its macros; the formulas are the same.
pub(crate) mod sliced {
    pub(super) const ROWS: u64 = 32;
    pub(super) const COLUMNS: u64 = 64;
    /// Of k: a slab's.
    pub(crate) const DEPTH: u64 = 16;
    pub(crate) const PARTS: [u32; 5] = [2, 4, 8, 16, 32];

    /// Parts of k in a block: a warp for each.
    pub(crate) const fn groups(parts: u32) -> u32 {
        if parts < 8 { parts } else { 8 }
    }

    /// Blocks of a cluster, which share a tile.
    pub(crate) const fn slices(parts: u32) -> u32 {
        parts / groups(parts)
    }

    /// Four slabs of 6 KiB for each warp; and what a block gets from the others of its cluster, of whose tile of 8 KiB it
    /// finishes a share, with a barrier.
    pub(super) const fn shared_bytes(parts: u32) -> u32 {
        let slices = slices(parts);
        let received = if slices > 1 { (slices - 1) * 8192 / slices + 16 } else { 0 };
        groups(parts) * 4 * 6144 + received
    }
}

/// What `mma_config.cuh` makes of its macros; the formulas are the same.
mod mma {
    use super::{Edge, Facts, Gemm};

    fn halves(gemm: &Gemm) -> u32 {
        if gemm.product.is_paired() { 2 } else { 1 }
    }

    fn warps(gemm: &Gemm) -> u32 {
        if gemm.edge == Edge::E128 && gemm.product.is_paired() { 8 } else { 4 }
    }

    pub(super) fn threads(gemm: &Gemm) -> u32 {
        32 * warps(gemm)
    }

    fn blocks_per_multiprocessor(gemm: &Gemm) -> u32 {
        match gemm.edge {
            Edge::E32 => 4,
            Edge::E64 => 2,
            Edge::E128 => 8 / warps(gemm),
        }
    }

    fn stages_of(gemm: &Gemm, facts: &Facts, k_bytes: u32) -> u32 {
        let kib = facts.shared_bytes / 1024;
        let limit = ((kib + 1) / blocks_per_multiprocessor(gemm)).saturating_sub(1) * 1024;
        (limit / (gemm.edge as u32 * (1 + halves(gemm)) * k_bytes)).min(4)
    }

    fn k_bytes(gemm: &Gemm, facts: &Facts) -> u32 {
        if stages_of(gemm, facts, 128) >= 3 { 128 } else { 64 }
    }

    pub(super) fn stages(gemm: &Gemm, facts: &Facts) -> u32 {
        stages_of(gemm, facts, k_bytes(gemm, facts))
    }

    pub(super) fn stage_bytes(gemm: &Gemm, facts: &Facts) -> u32 {
        gemm.edge as u32 * (1 + halves(gemm)) * k_bytes(gemm, facts)
    }
}

/// What `sm90_config.cuh` has, `sm90_turns_config.cuh` and `sm90_split_config.cuh`.
mod sm90 {
    use super::{Gemm, Schedule};

    pub(super) const THREADS: u32 = 3 * 128;

    /// Rows, and columns of both halves together.
    pub(super) fn tile(gemm: &Gemm) -> (u64, u64) {
        match gemm.hopper.schedule {
            Schedule::Turns { rows } => (u64::from(rows), 128),
            Schedule::Together if gemm.splits() || gemm.hopper.narrow => (128, 128),
            Schedule::Together => (128, 256),
        }
    }

    pub(super) fn shared_bytes(gemm: &Gemm) -> u32 {
        match gemm.hopper.schedule {
            // 192 KiB of stages, 32 KiB of C, barriers, and the way to the next KiB. Four stages, or six of narrow tiles, have
            // a full and an empty barrier each; two of three parts have a full one and an empty one for each part.
            Schedule::Together => 192 * 1024 + 32 * 1024 + 12 * 8 + 1024,
            // Five stages, with a full and an empty barrier each, and four boxes of 32 rows of C.
            Schedule::Turns { rows } => 5 * ((rows + 128) * 128 + 2 * 8) + 4 * 32 * 128 + 1024,
        }
    }
}

impl fmt::Display for Gemm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = |trans: bool| if trans { "t" } else { "n" };
        let kind = if self.tf32 { "tf32".to_owned() } else { self.dtype.to_string() };
        let (family, size) = match (self.family, self.hopper.schedule) {
            (Family::Sliced, _) => (self.family, u64::from(self.parts)),
            (_, Schedule::Turns { rows }) => (Family::Turns, u64::from(rows)),
            _ => (self.family, self.edge.len()),
        };
        write!(f, "{family}-{kind}-{}{}-{size}", order(self.a_trans), order(self.b_trans))?;
        if self.hopper.narrow {
            f.write_str("-narrow")?;
        }
        match (self.family, self.parts) {
            (Family::Sm90, parts @ 2..) => write!(f, "-by-{parts}"),
            _ => Ok(()),
        }
    }
}
