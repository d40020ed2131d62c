//! Microkernels: the only code that knows an instruction set.
//!
//! A kernel value is the proof that its instruction set exists on this machine. Everything above is generic over
//! [`Kernel`], so the whole driver is compiled once for each of them and no call in its loops is indirect.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub(crate) mod sgemm;
mod tile;
#[cfg(target_arch = "x86_64")]
mod turned;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use amx::Amx;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512_bf16::Avx512Bf16;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

use std::ops::Range;

use swiglu_core::{Element, Host, MatRef};

use crate::pack::{LINE, pack_runs};
use crate::word::Word;

/// Edge of a block that is transposed while it is packed: a cache line of f32.
pub(crate) const EDGE: usize = 16;

/// A block to be transposed.
pub(crate) type Block = [[f32; EDGE]; EDGE];

/// How a panel of A lies, so that a tile reads it from one end to the other.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code, reason = "only AMX takes runs")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanelOrder {
    /// One k after the other, [`Kernel::A_STRIDE`] words apart, rows adjacent: one cache line for each k.
    Steps,
    /// [`EDGE`] words of each of [`Kernel::A_STRIDE`] rows, then the next [`EDGE`]: one cache line for each row.
    Runs,
}

/// A packed panel of A.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel<'a> {
    /// Rows, at least 1 and at most [`Kernel::MR`].
    pub(crate) rows: usize,
    /// Extent in k, at most [`Kernel::KC`]: in words, as everything that kernels meet.
    pub(crate) depth: usize,
    /// The elements, and maybe more behind them.
    pub(crate) floats: &'a [f32],
}

/// Rows of accumulators.
#[derive(Debug)]
pub(crate) struct Strip<'a> {
    pub(crate) floats: &'a mut [f32],
    /// Floats from one row to the next.
    pub(crate) stride: usize,
    pub(crate) cols: usize,
    /// What is read after it.
    pub(crate) next: Ahead<'a>,
}

/// The rows of B that are read next, from the first column of a strip on. Addresses and nothing else: they need not be
/// readable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead<'a> {
    pub(crate) rows: &'a [*const u8],
    /// Of an element.
    pub(crate) bytes: usize,
}

impl Ahead<'_> {
    /// Asks for so many columns from `col` on, of two lines at most.
    #[inline(always)]
    fn fetch(self, col: usize, cols: usize) {
        let two = cols * self.bytes > LINE;
        for row in self.rows {
            let line = row.wrapping_add(col * self.bytes);
            prefetch(line);
            if two {
                prefetch(line.wrapping_add(LINE));
            }
        }
    }
}

/// A register tile `MR x NR` and the instruction set it is written for.
pub(crate) trait Kernel: Copy + Send + Sync + 'static {
    /// `{arch}-{dtype}-{mr}x{nr}`.
    const NAME: &'static str;
    /// Most rows of a tile.
    const MR: usize;
    /// Columns of a tile: `NR / 2` gate and `NR / 2` up columns where both are computed together.
    const NR: usize;
    /// Depth of a packed panel. KC x NR floats of B take half of L1, A_STRIDE x KC floats of A less than the other half.
    const KC: usize;
    /// Rows that a panel of A has room for: MR, and what fills up whole vectors.
    const A_STRIDE: usize;
    /// How a panel of A lies.
    const A_ORDER: PanelOrder = PanelOrder::Steps;
    /// Rows of a block: of 76 panels of 14 rows 76 x 16 x 192 floats of A are 934 KB with AVX-512. They are read once for
    /// each panel of B and stay in L2; so many of them pay for packing B.
    const BLOCK_ROWS: usize = 76 * 14;
    /// Columns of panels of a block of so many rows, more with fewer rows: with these 16 x 192 x 32 floats of B, 393 KB,
    /// and 2.2 MB of accumulators, which are touched once for each KC of depth.
    const BLOCK_COLS: usize = 16 * 32;
    /// Words along k that are summed before they are added to an element. Panels hold whole groups, filled up with zeros.
    const GROUP: usize = 1;
    /// What its panels hold.
    type Word: Word;
    /// What a thread holds while it runs tiles.
    type Held;
    /// The same kernel, where it can read rows of B in place.
    type Strips: Strips;

    /// Gets the current thread ready for tiles, until the value is dropped. One at a time for each thread.
    fn hold(self) -> Self::Held;

    /// Visits the kernel for products of bf16 with bf16: a better one, where this instruction set has one, or this one, with
    /// bf16 widened as it is packed.
    #[inline(always)]
    fn for_bf16<V: KernelVisitor>(self, visitor: V) -> V::Output {
        visitor.visit(self)
    }

    /// This kernel, if it can read rows of B in place.
    fn strips(self) -> Option<Self::Strips>;

    /// Most rows of a product for which this is a kernel of [`Dots`]; 0 where it is none.
    const DOT_ROWS: usize = 0;
    /// Whether it can go on with sums that are there, then.
    const DOTS_GO_ON: bool = false;

    /// Visits this kernel, if it is one of [`Dots`].
    #[inline(always)]
    fn with_dots<V: DotsVisitor>(self, _: V) -> Option<V::Output> {
        None
    }

    /// Words of a panel that holds `len` elements along k.
    #[inline(always)]
    fn words(len: usize) -> usize {
        len.div_ceil(Self::Word::STEP).next_multiple_of(Self::GROUP)
    }

    /// `c[r][j] (+)= sum over k of a(r, k) * b[k][j]` for the rows and the depth of `a`; `b` and `c` are dense with `NR`
    /// columns.
    ///
    /// Each element is one chain of multiply-adds in ascending k, continued from `c` unless `first`: its bits do not
    /// depend on how k was cut into panels of whole words, nor on the number of rows.
    fn tile(self, held: &Self::Held, a: Panel<'_>, b: &[f32], c: &mut [f32], first: bool);

    /// `to[k * stride + j] = block[j][k]`.
    #[inline(always)]
    fn transpose(self, block: &Block, to: &mut [f32], stride: usize) {
        for (k, row) in to.chunks_mut(stride).take(EDGE).enumerate() {
            for (to, column) in row.iter_mut().zip(block) {
                *to = column[k];
            }
        }
    }

    /// Calls `f` in a context where the compiler may use this instruction set, so that plain loops in `f` vectorise
    /// for it. Inlined functions only: a call that stays a call is compiled for the baseline.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;
}

/// A kernel that can read rows of B in place.
pub(crate) trait Strips: Kernel {
    /// `c[r][j] += sum over k of a(r, k) * b[k][j]`, for rows of B where they lie, as many columns as the shortest has.
    ///
    /// Each element is the same chain as in [`tile`](Kernel::tile), so its bits are.
    fn strip(self, a: Panel<'_>, b: &[&[f32]], c: Strip<'_>);
}

/// A kernel that can read columns of B in place: runs along k.
pub(crate) trait Dots: Kernel {
    /// Packs A as [`dots`](Dots::dots) reads it, at most [`Kernel::DOT_ROWS`] rows, in blocks of [`EDGE`] words along k.
    #[inline(always)]
    fn pack_dots<T: Element>(self, matrix: MatRef<'_, T, Host>, to: &mut [f32]) {
        pack_runs::<Self, T>(matrix, to);
    }

    /// Products of `rows` rows of A as [`pack_dots`](Dots::pack_dots) packs them, at most [`Kernel::DOT_ROWS`], with at most
    /// [`EDGE`] rows of two matrices: the first `NR / 2` columns of `c` become those with the first matrix, the others those
    /// with the second. `c` is dense with `NR` columns, and has `DOT_ROWS` rows; those past `rows`, and columns without a row,
    /// are left or filled. What is there is the start of the sums, unless these are the `first` of them, as they are for
    /// kernels that cannot go on.
    ///
    /// Each element is the same chain as in [`tile`](Kernel::tile), so its bits are.
    fn dots<T: Element>(
        self,
        held: &Self::Held,
        a: (usize, &[f32]),
        b: [Runs<'_, T>; 2],
        sums: (&mut [f32], bool),
    );
}

/// Rows of a matrix.
pub(crate) type Runs<'a, T> = (MatRef<'a, T, Host>, Range<usize>);

/// A computation that is generic over a kernel of [`Dots`].
pub(crate) trait DotsVisitor {
    type Output;
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only kernels for x86-64 read columns in place")
    )]
    fn visit<K: Dots>(self, kernel: K) -> Self::Output;
}

/// Asks for the cache line at `line` to be brought to L2. An address and nothing else: it need not be readable.
#[inline(always)]
pub(crate) fn prefetch<T>(line: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// The same, to L1.
#[inline(always)]
fn prefetch_near<T>(line: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// A computation that is generic over the kernel.
pub(crate) trait KernelVisitor {
    type Output;
    fn visit<K: Kernel>(self, kernel: K) -> Self::Output;
}
