//! Every kernel of the crate: from what it is to its source and the constants it is compiled with.

use std::fmt;

use swiglu_core::{Dtype, Error, Gate, Result};

use crate::compile::{Defines, Source};
use crate::decode::Decode;
use crate::device::Facts;
use crate::forming::Forming;
use crate::gemm::{Family, GateCode, Gemm, Product, Schedule, sliced};
use crate::realign::parts;

/// Headers that kernels include, by name.
const HEADERS: &[(&str, &str)] = &[
    ("types.cuh", include_str!("../kernels/types.cuh")),
    ("params.cuh", include_str!("../kernels/params.cuh")),
    ("gate.cuh", include_str!("../kernels/gate.cuh")),
    ("pack.cuh", include_str!("../kernels/pack.cuh")),
    ("product.cuh", include_str!("../kernels/product.cuh")),
    ("epilogue.cuh", include_str!("../kernels/epilogue.cuh")),
    ("sm90_ptx.cuh", include_str!("../kernels/sm90_ptx.cuh")),
    ("sm90_wgmma.cuh", include_str!("../kernels/sm90_wgmma.cuh")),
    ("sm90_config.cuh", include_str!("../kernels/sm90_config.cuh")),
    ("sm90_split_config.cuh", include_str!("../kernels/sm90_split_config.cuh")),
    ("sm90_turns_config.cuh", include_str!("../kernels/sm90_turns_config.cuh")),
    ("sm90_turned.cuh", include_str!("../kernels/sm90_turned.cuh")),
    ("sm90_tiles.cuh", include_str!("../kernels/sm90_tiles.cuh")),
    ("sm90_walk.cuh", include_str!("../kernels/sm90_walk.cuh")),
    ("sm90_slices.cuh", include_str!("../kernels/sm90_slices.cuh")),
    ("sm90_cotangents.cuh", include_str!("../kernels/sm90_cotangents.cuh")),
    ("sm90_staged.cuh", include_str!("../kernels/sm90_staged.cuh")),
    ("sm90_rows.cuh", include_str!("../kernels/sm90_rows.cuh")),
    ("sm90_epilogue.cuh", include_str!("../kernels/sm90_epilogue.cuh")),
    ("sm90_upstream.cuh", include_str!("../kernels/sm90_upstream.cuh")),
    ("mma_config.cuh", include_str!("../kernels/mma_config.cuh")),
    ("mma_tile.cuh", include_str!("../kernels/mma_tile.cuh")),
];

macro_rules! source {
    ($name:literal) => {
        Source { name: $name, text: include_str!(concat!("../kernels/", $name)), headers: HEADERS }
    };
}

static SIMT_GEMM: Source = source!("simt_gemm.cu");
static SLICED_GEMM: Source = source!("sliced_gemm.cu");
static MMA_GEMM: Source = source!("mma_gemm.cu");
static SM90_GEMM: Source = source!("sm90_gemm.cu");
static SM90_TURNS: Source = source!("sm90_turns.cu");
static SM90_SPLIT: Source = source!("sm90_split.cu");
static GEMV: Source = source!("gemv.cu");
static DECODE: Source = source!("decode.cu");
static ELEMENTWISE: Source = source!("elementwise.cu");
static LOSS: Source = source!("loss.cu");
static ADAMW: Source = source!("adamw.cu");

/// Names and texts of what kernels that compete with others are compiled from: see `tune`.
pub(crate) fn competing_files() -> impl Iterator<Item = (&'static str, &'static str)> {
    let sources = [&SIMT_GEMM, &MMA_GEMM, &SM90_GEMM, &SM90_TURNS, &DECODE];
    sources.into_iter().map(|source| (source.name, source.text)).chain(HEADERS.iter().copied())
}

/// All of them.
#[cfg(test)]
const SOURCES: [&Source; 11] = [
    &SIMT_GEMM,
    &SLICED_GEMM,
    &MMA_GEMM,
    &SM90_GEMM,
    &SM90_TURNS,
    &SM90_SPLIT,
    &GEMV,
    &DECODE,
    &ELEMENTWISE,
    &LOSS,
    &ADAMW,
];

/// A kernel and everything that it is specialised for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    /// A product of the families `simt`, `mma`, `sm90` and `sliced`.
    Gemm(Gemm),
    /// The fused forward for up to `rows` rows.
    Gemv {
        /// Element type.
        dtype: Dtype,
        /// Whether weights are `[D, I]`.
        b_trans: bool,
        /// The gate function.
        gate: GateCode,
        /// Rows of the batch that a block takes: 1, 2, 4 or 8.
        rows: u32,
        /// Whether x and weights may be read in vectors.
        vectors: bool,
    },
    /// The fused forward for few rows, on Hopper.
    Decode(Decode),
    /// z = h(g, u) from pre-activations in memory.
    GateForward {
        /// Element type.
        dtype: Dtype,
        /// The gate function.
        gate: GateCode,
    },
    /// Pre-activations to their cotangents, in place.
    GateBackward {
        /// Element type.
        dtype: Dtype,
        /// The gate function.
        gate: GateCode,
    },
    /// A copy whose rows start at multiples of 16 bytes.
    Realign {
        /// Element type.
        dtype: Dtype,
    },
    /// Three matrices of bf16 for one of f32, whose sum they are.
    Split,
    /// f32 rounded to TF32.
    Round {
        /// Whether rows become columns.
        transposed: bool,
    },
    /// Copies of the rows that a list names.
    Gather {
        /// Element type.
        dtype: Dtype,
    },
    /// c += bias.
    AddBias {
        /// Element type.
        dtype: Dtype,
    },
    /// Column sums of chunks of rows.
    PartialSums {
        /// Element type of the matrix.
        dtype: Dtype,
    },
    /// The sum of those.
    TotalSums {
        /// Element type of the sums.
        out: Dtype,
    },
    /// Loss, hit and gradient of each row.
    RowLoss {
        /// Element type.
        dtype: Dtype,
    },
    /// The mean of the losses, the sum of the hits.
    MeanLoss,
    /// A step of the optimizer.
    AdamW {
        /// Element type of the parameter.
        dtype: Dtype,
        /// Whether the gradient is in f32 all the same.
        gradient_f32: bool,
    },
}

/// Threads of a block of every kernel but the products and `decode`.
const THREADS: u32 = 256;

/// Edge of the tile that a block of the pass `ROUND` takes.
const ROUND_EDGE: u64 = 64;

/// Blocks of a launch, copies of the grid (independent products), and threads of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) blocks: u64,
    pub(crate) depth: u32,
    pub(crate) threads: u32,
}

/// Numbers of the element types in `types.cuh`.
const fn dtype_code(dtype: Dtype) -> i64 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    }
}

/// A gate function as the kernels number it, and its two parameters.
pub(crate) fn gate_code(gate: Gate) -> Result<(GateCode, f32, f32)> {
    match gate {
        Gate::Swiglu => Ok((GateCode(0), 0.0, 0.0)),
        Gate::GegluTanh => Ok((GateCode(1), 0.0, 0.0)),
        Gate::GegluErf => Ok((GateCode(2), 0.0, 0.0)),
        Gate::Reglu => Ok((GateCode(3), 0.0, 0.0)),
        Gate::Glu => Ok((GateCode(4), 0.0, 0.0)),
        Gate::SwigluClamped { alpha, limit } => Ok((GateCode(5), alpha, limit)),
        _ => Err(Error::Unsupported { backend: "swiglu-cuda", what: "this gate function" }),
    }
}

impl Kernel {
    pub(crate) fn source(&self) -> &'static Source {
        match self {
            Kernel::Gemm(Gemm { family: Family::Mma, .. }) => &MMA_GEMM,
            Kernel::Gemm(gemm @ Gemm { family: Family::Sm90, .. }) => match gemm.hopper.schedule {
                Schedule::Turns { .. } => &SM90_TURNS,
                Schedule::Together if gemm.splits() => &SM90_SPLIT,
                Schedule::Together => &SM90_GEMM,
            },
            Kernel::Gemm(Gemm { family: Family::Sliced, .. }) => &SLICED_GEMM,
            Kernel::Gemm(_) => &SIMT_GEMM,
            Kernel::Gemv { .. } => &GEMV,
            Kernel::Decode(_) => &DECODE,
            Kernel::GateForward { .. }
            | Kernel::GateBackward { .. }
            | Kernel::Realign { .. }
            | Kernel::Split
            | Kernel::Round { .. }
            | Kernel::Gather { .. }
            | Kernel::AddBias { .. }
            | Kernel::PartialSums { .. }
            | Kernel::TotalSums { .. } => &ELEMENTWISE,
            Kernel::RowLoss { .. } | Kernel::MeanLoss => &LOSS,
            Kernel::AdamW { .. } => &ADAMW,
        }
    }

    /// The macros that make the source this kernel.
    pub(crate) fn defines(&self, facts: &Facts) -> Defines {
        let flag = i64::from;
        match *self {
            Kernel::Gemm(gemm) => gemm_defines(&gemm, facts),
            Kernel::Gemv { dtype, b_trans, gate, rows, vectors } => Defines::default()
                .with("DTYPE", dtype_code(dtype))
                .with("B_TRANS", flag(b_trans))
                .with("GATE_FUNCTION", i64::from(gate.0))
                .with("ROWS", i64::from(rows))
                .with("A_VECTOR", flag(vectors))
                .with("B_VECTOR", flag(vectors)),
            Kernel::Decode(Decode { dtype, b_trans, gate, rows, columns }) => Defines::default()
                .with("DTYPE", dtype_code(dtype))
                .with("B_TRANS", flag(b_trans))
                .with("GATE_FUNCTION", i64::from(gate.0))
                .with("ROWS", i64::from(rows))
                .with("COLUMNS", i64::from(columns)),
            Kernel::GateForward { dtype, gate } => Defines::default()
                .with("PASS", 0)
                .with("DTYPE", dtype_code(dtype))
                .with("GATE_FUNCTION", i64::from(gate.0)),
            Kernel::GateBackward { dtype, gate } => Defines::default()
                .with("PASS", 1)
                .with("DTYPE", dtype_code(dtype))
                .with("GATE_FUNCTION", i64::from(gate.0)),
            Kernel::Realign { dtype } => Defines::default().with("PASS", 5).with("DTYPE", dtype_code(dtype)),
            Kernel::Split => Defines::default().with("PASS", 6).with("DTYPE", dtype_code(Dtype::F32)),
            Kernel::Round { transposed } => Defines::default()
                .with("PASS", 7)
                .with("DTYPE", dtype_code(Dtype::F32))
                .with("TRANSPOSED", flag(transposed)),
            Kernel::Gather { dtype } => Defines::default().with("PASS", 8).with("DTYPE", dtype_code(dtype)),
            Kernel::AddBias { dtype } => Defines::default().with("PASS", 2).with("DTYPE", dtype_code(dtype)),
            Kernel::PartialSums { dtype } => {
                Defines::default().with("PASS", 3).with("DTYPE", dtype_code(dtype))
            }
            // The type of the sums is all that the second stage sees.
            Kernel::TotalSums { out } => {
                Defines::default().with("PASS", 4).with("DTYPE", dtype_code(out)).with("OUT_F32", 0)
            }
            Kernel::RowLoss { dtype } => Defines::default().with("PASS", 0).with("DTYPE", dtype_code(dtype)),
            Kernel::MeanLoss => Defines::default().with("PASS", 1).with("DTYPE", dtype_code(Dtype::F32)),
            Kernel::AdamW { dtype, gradient_f32 } => {
                Defines::default().with("DTYPE", dtype_code(dtype)).with("GRADIENT_F32", flag(gradient_f32))
            }
        }
    }

    /// Blocks, and threads of a block, for a matrix of `rows` by `cols` (of one half, in paired products).
    ///
    /// The tables are those at the head of each kernel's file.
    pub(crate) fn grid(&self, rows: u64, cols: u64, facts: &Facts) -> Grid {
        let one_per = |elements: u64| elements.div_ceil(u64::from(THREADS));
        let vectors = |dtype: Dtype| rows.saturating_mul(cols.div_ceil(16 / dtype.bytes() as u64));
        let (blocks, threads) = match *self {
            Kernel::Gemm(gemm) => {
                let slices = if gemm.family == Family::Sliced { sliced::slices(gemm.parts) } else { 1 };
                (gemm.tiles(rows, cols).saturating_mul(u64::from(slices)), gemm.threads())
            }
            Kernel::Gemv { dtype, b_trans, .. } => {
                let columns = match (b_trans, dtype) {
                    (true, _) => 16,
                    (false, Dtype::F32) => 32,
                    (false, Dtype::F16 | Dtype::Bf16) => 64,
                };
                (if rows == 0 { 0 } else { cols.div_ceil(columns) }, THREADS)
            }
            Kernel::Decode(decode) => return decode.grid(cols),
            Kernel::GateForward { dtype, .. }
            | Kernel::GateBackward { dtype, .. }
            | Kernel::Realign { dtype }
            | Kernel::Gather { dtype }
            | Kernel::AddBias { dtype } => (one_per(vectors(dtype)), THREADS),
            Kernel::Split => {
                let vectors = parts::whole_rows(rows).saturating_mul(cols.div_ceil(parts::VECTOR as u64));
                (one_per(vectors), THREADS)
            }
            Kernel::Round { .. } => {
                (rows.div_ceil(ROUND_EDGE).saturating_mul(cols.div_ceil(ROUND_EDGE)), THREADS)
            }
            // Rows are the chunks here, and one in the second stage.
            Kernel::PartialSums { .. } | Kernel::TotalSums { .. } => {
                (rows.saturating_mul(one_per(cols)), THREADS)
            }
            Kernel::RowLoss { .. } => (one_per(rows.saturating_mul(32)), THREADS),
            Kernel::MeanLoss => (1, THREADS),
            // Blocks stride over the elements; one for an empty parameter, which counts its steps all the same.
            Kernel::AdamW { .. } => {
                let enough = u64::from(facts.multiprocessors) * 4;
                (one_per(vectors(Dtype::F32)).clamp(1, enough), THREADS)
            }
        };
        Grid { blocks, depth: 1, threads }
    }

    /// Bytes of dynamic shared memory of a block.
    pub(crate) fn shared_bytes(&self, facts: &Facts) -> u32 {
        match self {
            Kernel::Gemm(gemm) => gemm.shared_bytes(facts),
            Kernel::Decode(decode) => decode.shared_bytes(),
            _ => 0,
        }
    }

    /// Whether multiprocessors are to give blocks all the shared memory that they have, at the expense of the cache
    /// beside it, which these kernels hardly use.
    pub(crate) fn fills_shared(&self) -> bool {
        matches!(self, Kernel::Decode(_))
    }
}

fn gemm_defines(gemm: &Gemm, facts: &Facts) -> Defines {
    let (product, gate, out) = match gemm.product {
        Product::Store { out } => (0, gemm.hopper.forms.map_or(0, |forming| forming.gate.0), out),
        Product::Gate(gate) => (1, gate.0, gemm.dtype),
        Product::GateGradient(gate) => (2, gate.0, gemm.dtype),
        Product::Cotangents(gate) => (3, gate.0, gemm.dtype),
    };
    let defines = Defines::default()
        .with("DTYPE", dtype_code(gemm.dtype))
        .with("A_TRANS", i64::from(gemm.a_trans))
        .with("B_TRANS", i64::from(gemm.b_trans))
        .with("PRODUCT", product)
        .with("GATE_FUNCTION", i64::from(gate))
        .with("OUT_F32", i64::from(gemm.dtype != Dtype::F32 && out == Dtype::F32))
        .with("C_VECTOR", i64::from(gemm.vectors.c));
    let edge = gemm.edge.len() as i64;
    match gemm.family {
        Family::Sm90 => defines
            .with("TF32", i64::from(gemm.tf32))
            .with("CLUSTER", if gemm.hopper.pairs { 2 } else { 1 })
            .with("SLICES", i64::from(gemm.parts))
            .with("C_BOXES", i64::from(gemm.hopper.boxes))
            .with("FORM_COTANGENTS", i64::from(gemm.hopper.forms.is_some()))
            .with("FORM_AHEAD", gemm.hopper.forms.map_or(0, Forming::ahead))
            .with("FORM_HURRIES", i64::from(gemm.hopper.forms.is_some_and(|forming| forming.hurries)))
            .with("TILE_M", gemm.tile().0 as i64)
            .with("TILE_N", if gemm.hopper.narrow { 128 } else { 256 }),
        Family::Sliced => defines
            .with("A_VECTOR", i64::from(gemm.vectors.a))
            .with("B_VECTOR", i64::from(gemm.vectors.b))
            .with("GROUPS", i64::from(sliced::groups(gemm.parts)))
            .with("SLICES", i64::from(sliced::slices(gemm.parts))),
        Family::Mma => defines
            .with("BLOCK", edge)
            .with("TF32", i64::from(gemm.tf32))
            .with("SMEM_KB", i64::from(facts.shared_bytes / 1024)),
        _ => defines
            .with("BLOCK", edge)
            .with("A_VECTOR", i64::from(gemm.vectors.a))
            .with("B_VECTOR", i64::from(gemm.vectors.b)),
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kernel::Gemm(gemm) => gemm.fmt(f),
            Kernel::Gemv { dtype, b_trans, rows, .. } => {
                write!(f, "gemv-{dtype}-n{}-{rows}", if *b_trans { "t" } else { "n" })
            }
            Kernel::Decode(decode) => decode.fmt(f),
            Kernel::GateForward { dtype, .. } => write!(f, "gate-{dtype}"),
            Kernel::GateBackward { dtype, .. } => write!(f, "gate-gradient-{dtype}"),
            Kernel::Realign { dtype } => write!(f, "realign-{dtype}"),
            Kernel::Split => f.write_str("split-f32"),
            Kernel::Round { transposed } => {
                f.write_str(if *transposed { "round-tf32-t" } else { "round-tf32" })
            }
            Kernel::Gather { dtype } => write!(f, "gather-{dtype}"),
            Kernel::AddBias { dtype } => write!(f, "add-bias-{dtype}"),
            Kernel::PartialSums { dtype } => write!(f, "column-sums-{dtype}"),
            Kernel::TotalSums { out } => write!(f, "column-sums-to-{out}"),
            Kernel::RowLoss { dtype } => write!(f, "cross-entropy-{dtype}"),
            Kernel::MeanLoss => f.write_str("mean-loss"),
            Kernel::AdamW { dtype, .. } => write!(f, "adamw-{dtype}"),
        }
    }
}

#[cfg(test)]
mod tests;
