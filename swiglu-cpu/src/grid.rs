//! How a product is cut into blocks: a pure function of its shape, the kernel, the tile option and the thread count.
//! Bits never depend on it (see [`Kernel::tile`]).

use std::ops::Range;

use swiglu_core::Tile;

use crate::arena::Space;
use crate::kernels::{Kernel, KernelVisitor};
use crate::pack::{Along, SourceB, panel_len};
use crate::word::Word;

/// Column panels of a block with some rows, where packing B is much of the work: longer runs of each of its rows.
const COL_PANELS: usize = 32;
/// Most floats of A that are packed before any block, for all of them: 32 MiB, half of what a forward on 8 threads may take
/// beside its operands. x of 1024, 4096 is 18 MiB. Packed again for each block it took 6 % of a forward of 1024, 4096, 11008.
const MOST_AHEAD: usize = 8 << 20;
/// The fewest. To start threads for it takes 18 us, about as long as one thread packs so many: a forward of 32, 64, 128 took
/// 45 us with it and 27 without (two cores of a Zen 5).
const LEAST_AHEAD: usize = 1 << 16;
/// How many times as wide blocks are where each packs its rows of A itself: two Zen 5 cores take 3 to 6 % less for dX and dWf
/// of 2048, 4096, 8192 in f32, and no less with four times. Their accumulators, of each thread, are 4.4 MB.
const WIDER: usize = 2;

/// What blocks depend on of the kernel that multiplies them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    pub(crate) mr: usize,
    pub(crate) nr: usize,
    /// Elements along k of a panel of full depth.
    depth: usize,
    /// Elements along k of a group of words.
    group: usize,
    /// Words of a panel of full depth.
    kc: usize,
    pub(crate) a_stride: usize,
    block_rows: usize,
    block_cols: usize,
    most_col_panels: usize,
    /// Whether the kernel can read rows of B in place.
    pub(crate) strips: bool,
    /// Most rows with which it reads columns of B in place, 0 where it cannot.
    pub(crate) dot_rows: usize,
    /// Whether that can go on with sums that are there.
    pub(crate) dots_go_on: bool,
}

impl Tiling {
    /// That of a kernel without strips.
    pub(crate) const fn of<K: Kernel>() -> Self {
        Self {
            mr: K::MR,
            nr: K::NR,
            depth: K::KC * K::Word::STEP,
            group: K::GROUP * K::Word::STEP,
            kc: K::KC,
            a_stride: K::A_STRIDE,
            block_rows: K::BLOCK_ROWS,
            block_cols: K::BLOCK_COLS,
            most_col_panels: COL_PANELS,
            strips: false,
            dot_rows: K::DOT_ROWS,
            dots_go_on: K::DOTS_GO_ON,
        }
    }

    /// That of the kernel with which an instruction set multiplies bf16 with bf16, or everything else.
    pub(crate) fn with<K: Kernel>(kernel: K, bf16: bool) -> Self {
        struct Of;
        impl KernelVisitor for Of {
            type Output = Tiling;
            fn visit<K: Kernel>(self, kernel: K) -> Tiling {
                Tiling { strips: kernel.strips().is_some(), ..Tiling::of::<K>() }
            }
        }
        if bf16 { kernel.for_bf16(Of) } else { Of.visit(kernel) }
    }

    /// Whether these are the registers and panels of a kernel.
    pub(crate) fn is_for<K: Kernel>(&self) -> bool {
        let Self { mr, nr, a_stride, group, .. } = Self::of::<K>();
        (mr, nr, a_stride, group) == (self.mr, self.nr, self.a_stride, self.group)
    }

    /// For a B that is packed to be read once: its panels need not fit L1, but each page of it that is touched should be read
    /// on from there. Along rows 2 KiB of bf16 of each, panels of 4 KiB; along columns 4 KiB of f32 of each of 128, panels
    /// of 128 KiB. In ms with these and with panels that fit L1, for bf16 with AMX: 16.7 and 27.9 along [I, 2D] at 1, 4096,
    /// 11008, 15.7 and 29.9 with 16 rows; along [2D, I] 17.7 and 25.4 with 16 rows.
    fn streaming(self, along: Along) -> Self {
        let (kc, most_col_panels) = match along {
            Along::Rows => (32, 64),
            Along::Columns => (1024, 4),
        };
        Self { depth: self.depth / self.kc * kc, kc, most_col_panels, ..self }
    }

    /// For blocks that pack their rows of A themselves.
    fn wider(self) -> Self {
        let Self { block_cols, most_col_panels, .. } = self;
        Self { block_cols: WIDER * block_cols, most_col_panels: WIDER * most_col_panels, ..self }
    }

    /// Words of a panel that holds `len` elements along k, at most those of full depth.
    fn words(&self, len: usize) -> usize {
        self.all_words(len.min(self.depth))
    }

    /// Words of whole groups for `len` elements along k.
    pub(crate) fn all_words(&self, len: usize) -> usize {
        len.div_ceil(self.group) * (self.group * self.kc / self.depth)
    }
}

/// The blocks of one product `[m, k] . [k, n]`. Each is one task, and owns its part of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) tiling: Tiling,
    /// Rows of a block.
    pub(crate) row_edge: usize,
    /// Columns of a block.
    pub(crate) col_edge: usize,
    /// Columns of the output that one panel of B covers.
    pub(crate) width: usize,
    /// Equal parts of k that no panel holds some of two of.
    pub(crate) parts: usize,
    /// Whether all of A is packed once, before any block. Else each block packs its rows again.
    pub(crate) ahead: bool,
}

impl Grid {
    const FEW_ROWS: usize = 2 * 16;

    /// Chooses blocks for `threads` threads: of the size that fits L2, smaller where threads would idle, or of the
    /// edge that the caller asked for.
    pub(crate) fn new<B: SourceB>(
        tiling: Tiling,
        along: Along,
        [m, n, k]: [usize; 3],
        tile: Tile,
        threads: usize,
    ) -> Self {
        let width = B::width(tiling.nr);
        let few = m <= Self::FEW_ROWS;
        let tiling = if few { tiling.streaming(along) } else { tiling };
        let (row_edge, col_edge) = match tile.edge() {
            Some(edge) => (edge, edge),
            None if Self::fits_ahead(m.saturating_mul(tiling.all_words(k))) => {
                Self::automatic(tiling, (m, n), width, threads)
            }
            None => Self::automatic(tiling.wider(), (m, n), width, threads),
        };
        let col_edge = even_share(n, col_edge).next_multiple_of(width);
        let row_edge = even_share(m, row_edge);
        let grid = Self { m, n, k, tiling, row_edge, col_edge, width, parts: B::PARTS, ahead: false };
        let len = grid.units().saturating_mul(grid.unit_len());
        Self { ahead: n > col_edge && len >= LEAST_AHEAD && Self::fits_ahead(len), ..grid }
    }

    /// Blocks of a product of few rows, which reads B in place: all rows, and columns for four tasks a thread where there are
    /// enough; at most so many, in whole widths.
    pub(crate) fn of_few_rows(
        tiling: Tiling,
        [m, n, k]: [usize; 3],
        threads: usize,
        (width, most): (usize, usize),
    ) -> Self {
        let col_edge = n.div_ceil(4 * threads.max(1)).clamp(1, most).next_multiple_of(width);
        Self { m, n, k, tiling, row_edge: m.max(1), col_edge, width, parts: 1, ahead: false }
    }

    /// Whether so many floats of A may be packed before all blocks.
    fn fits_ahead(len: usize) -> bool {
        len <= MOST_AHEAD
    }

    fn automatic(tiling: Tiling, (m, n): (usize, usize), width: usize, threads: usize) -> (usize, usize) {
        let mr = tiling.mr;
        let mut row_panels = m.div_ceil(mr).clamp(1, tiling.block_rows / mr);
        let most = tiling.most_col_panels;
        let tiles = tiling.block_rows * tiling.block_cols / (mr * tiling.nr);
        let mut col_panels = n.div_ceil(width).clamp(1, (tiles / row_panels).min(most));
        // Two blocks for each thread, so that one that is late costs half a share at most.
        let too_few =
            |rows: usize, cols: usize| m.div_ceil(rows * mr) * n.div_ceil(cols * width) < 2 * threads;
        while threads > 1 && row_panels * col_panels > 1 && too_few(row_panels, col_panels) {
            if col_panels > 1 {
                col_panels = col_panels.div_ceil(2);
            } else {
                row_panels = row_panels.div_ceil(2);
            }
        }
        (row_panels * mr, col_panels * width)
    }

    /// Number of depths that k is cut into, at least one.
    pub(crate) fn depths(&self) -> usize {
        (self.parts * self.depths_of_part()).max(1)
    }

    /// The range of k of a depth; empty behind the last one.
    pub(crate) fn depth(&self, depth: usize) -> Range<usize> {
        let (share, edge) = (self.k / self.parts, self.tiling.depth);
        let depths = self.depths_of_part().max(1);
        let start = (depth % depths * edge).min(share);
        let part = depth / depths;
        if part < self.parts {
            part * share + start..part * share + share.min(start + edge)
        } else {
            self.k..self.k
        }
    }

    fn depths_of_part(&self) -> usize {
        (self.k / self.parts).div_ceil(self.tiling.depth)
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.m.div_ceil(self.row_edge) * self.n.div_ceil(self.col_edge)
    }

    /// Row blocks times depths: the units in which A is packed ahead.
    pub(crate) fn units(&self) -> usize {
        self.m.div_ceil(self.row_edge) * self.depths()
    }

    /// Floats of the packed rows of a block, of one depth.
    pub(crate) fn unit_len(&self) -> usize {
        self.row_edge.div_ceil(self.tiling.mr) * self.tiling.words(self.k) * self.tiling.a_stride
    }

    /// Floats of packed A, packed B and accumulators that a task works in.
    pub(crate) fn scratch(&self) -> [usize; 3] {
        let Tiling { mr, nr, .. } = self.tiling;
        let (words, col_panels) = (self.tiling.words(self.k), self.col_edge.div_ceil(self.width));
        let tiles = if self.depths() > 1 { self.row_edge.div_ceil(mr) * col_panels } else { 1 };
        [if self.ahead { 0 } else { self.unit_len() }, col_panels * panel_len(words, nr), tiles * mr * nr]
    }

    /// Floats that a product works in.
    pub(crate) fn space(&self) -> Space {
        let shared = if self.ahead { self.units() * self.unit_len() } else { 0 };
        Space { task: self.scratch().iter().sum(), shared, call: 0 }
    }
}

/// The largest share of `total` when it is cut into as few equal parts of at most `edge` as possible.
fn even_share(total: usize, edge: usize) -> usize {
    total.div_ceil(total.div_ceil(edge).max(1)).max(1)
}

/// Cuts `range` into as few parts of at most `edge` as possible, of lengths that differ by at most one.
pub(crate) fn even_parts(range: Range<usize>, edge: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = range.len().div_ceil(edge);
    let (share, longer) =
        (range.len().checked_div(parts).unwrap_or(0), range.len().checked_rem(parts).unwrap_or(0));
    (0..parts).scan(range.start, move |start, part| {
        let end = *start + share + usize::from(part < longer);
        let part = *start..end;
        *start = end;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Portable;
    use crate::pack::{Factor, Paired, Stacked};

    #[test]
    fn parts_are_even_and_cover_the_range() {
        let parts: Vec<_> = even_parts(3..19, 14).collect();
        assert_eq!(parts, [3..11, 11..19]);
        assert_eq!(even_parts(5..5, 4).count(), 0);
        for total in 0..60 {
            let parts: Vec<_> = even_parts(0..total, 7).collect();
            assert_eq!(parts.iter().map(|p| p.len()).sum::<usize>(), total);
            assert!(parts.iter().all(|p| p.len() <= 7 && !p.is_empty()), "{parts:?}");
        }
    }

    const TILING: Tiling = Tiling::of::<Portable>();

    #[test]
    fn small_products_are_cut_for_every_thread() {
        let grid = Grid::new::<Paired<'_, f32>>(TILING, Along::Columns, [8, 64, 10], Tile::Auto, 2);
        assert!(grid.blocks() >= 2, "{grid:?}");
        let one = Grid::new::<Stacked<'_, f32>>(TILING, Along::Columns, [1, 1, 1], Tile::Auto, 8);
        assert_eq!(one.blocks(), 1);
    }

    #[test]
    fn depths_cover_k_and_no_seam_lies_inside() {
        for k in [0, 2, 256, 500, 512, 514, 1026] {
            let grid = Grid::new::<Stacked<'_, f32>>(TILING, Along::Columns, [1, 1, k], Tile::Auto, 1);
            let ks: Vec<_> = (0..grid.depths()).map(|d| grid.depth(d)).collect();
            assert!(ks.windows(2).all(|pair| pair[0].end == pair[1].start), "{ks:?}");
            assert!(ks.iter().all(|ks| ks.end <= k / 2 || ks.start >= k / 2), "{ks:?}");
            assert_eq!((ks[0].start, ks[ks.len() - 1].end), (0, k));
            assert!(grid.depth(ks.len()).is_empty(), "nothing comes after {ks:?}");
        }
    }

    #[test]
    fn panels_hold_whole_groups() {
        let tiling = Tiling { depth: 512, group: 32, kc: 256, ..TILING };
        assert_eq!([1, 32, 33, 500, 512, 4096].map(|len| tiling.words(len)), [16, 16, 32, 256, 256, 256]);
        assert_eq!([0, 1, 300].map(|len| TILING.words(len)), [0, 1, 256]);
    }

    #[test]
    fn rows_are_packed_once_where_that_pays_and_fits() {
        let tiling = Tiling { mr: 14, nr: 32, depth: 192, kc: 192, a_stride: 16, ..TILING };
        let ahead = |shape| Grid::new::<Factor<'_, f32>>(tiling, Along::Rows, shape, Tile::Auto, 3).ahead;
        // tests/bits.rs compares the first with the second, of f32 and of half as many words.
        assert!(ahead([300, 130, 420]) && ahead([300, 130, 210]) && !ahead([60, 130, 420]));
        assert!(ahead([1024, 11008, 4096]) && !ahead([1024, 4096, 22016]));
        // One column of blocks.
        assert!(!ahead([4096, 1, 1024]));
    }

    #[test]
    fn a_tile_option_sets_the_edge() {
        let grid = Grid::new::<Paired<'_, f32>>(TILING, Along::Columns, [1000, 1000, 10], Tile::T32, 2);
        assert!(grid.row_edge <= 32 && grid.col_edge <= 32, "{grid:?}");
    }
}
