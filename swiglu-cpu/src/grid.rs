//! How a product is cut into blocks: a pure function of its shape, the kernel, the tile option and the thread count.
//! Bits never depend on it (see [`Kernel::tile`]).

use std::ops::Range;

use swiglu_core::Tile;

use crate::kernels::Kernel;
use crate::pack::SourceB;
use crate::word::Word;

/// The blocks of one product `[m, k] . [k, n]`. Each is one task, and owns its part of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Rows of a block.
    pub(crate) row_edge: usize,
    /// Columns of a block.
    pub(crate) col_edge: usize,
    /// Columns of the output that one panel of B covers.
    pub(crate) width: usize,
    /// Equal parts of k that no panel holds some of two of.
    pub(crate) parts: usize,
}

impl Grid {
    /// Row panels of a block: 76 x 16 x 192 floats of A are 934 KB with AVX-512. They are read once for each panel of B
    /// and stay in L2; so many of them pay for packing B.
    const ROW_PANELS: usize = 76;
    /// Tiles of a block: with 76 row panels 16 x 192 x 32 floats of B, 393 KB, and 2.2 MB of accumulators, which are
    /// touched once for each KC of depth.
    const TILES: usize = 1216;
    /// Column panels of a block with some rows, where packing B is much of the work: longer runs of each of its rows.
    const COL_PANELS: usize = 32;
    /// The same with at most FEW row panels, where packing B is all the work: 8 x 24 KiB of it, which are still in L2 when
    /// they are multiplied. 34 ms for 60 at 1, 4096, 11008 along `[2D, I]` weights.
    const FEW_COL_PANELS: usize = 8;
    const FEW: usize = 2;

    /// Chooses blocks for `threads` threads: of the size that fits L2, smaller where threads would idle, or of the
    /// edge that the caller asked for.
    pub(crate) fn new<K: Kernel, B: SourceB>(
        m: usize,
        n: usize,
        k: usize,
        tile: Tile,
        threads: usize,
    ) -> Self {
        let width = B::width(K::NR);
        let (row_edge, col_edge) = match tile.edge() {
            Some(edge) => (edge, edge),
            None => Self::automatic::<K>(m, n, width, threads),
        };
        let col_edge = even_share(n, col_edge).next_multiple_of(width);
        Self { m, n, k, row_edge: even_share(m, row_edge), col_edge, width, parts: B::PARTS }
    }

    fn automatic<K: Kernel>(m: usize, n: usize, width: usize, threads: usize) -> (usize, usize) {
        let mut row_panels = m.div_ceil(K::MR).clamp(1, Self::ROW_PANELS);
        let most = if row_panels <= Self::FEW { Self::FEW_COL_PANELS } else { Self::COL_PANELS };
        let mut col_panels = n.div_ceil(width).clamp(1, (Self::TILES / row_panels).min(most));
        // Two blocks for each thread, so that one that is late costs half a share at most.
        let too_few =
            |rows: usize, cols: usize| m.div_ceil(rows * K::MR) * n.div_ceil(cols * width) < 2 * threads;
        while threads > 1 && row_panels * col_panels > 1 && too_few(row_panels, col_panels) {
            if col_panels > 1 {
                col_panels = col_panels.div_ceil(2);
            } else {
                row_panels = row_panels.div_ceil(2);
            }
        }
        (row_panels * K::MR, col_panels * width)
    }

    /// Number of depths that k is cut into, at least one.
    pub(crate) fn depths<K: Kernel>(&self) -> usize {
        (self.parts * self.depths_of_part::<K>()).max(1)
    }

    /// The range of k of a depth; empty behind the last one.
    pub(crate) fn depth<K: Kernel>(&self, depth: usize) -> Range<usize> {
        let (share, edge) = (self.k / self.parts, K::KC * K::Word::STEP);
        let depths = self.depths_of_part::<K>().max(1);
        let start = (depth % depths * edge).min(share);
        let part = depth / depths;
        if part < self.parts {
            part * share + start..part * share + share.min(start + edge)
        } else {
            self.k..self.k
        }
    }

    fn depths_of_part<K: Kernel>(&self) -> usize {
        (self.k / self.parts).div_ceil(K::KC * K::Word::STEP)
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.m.div_ceil(self.row_edge) * self.n.div_ceil(self.col_edge)
    }

    /// Panels of A in a block of full size.
    fn row_panels<K: Kernel>(&self) -> usize {
        self.row_edge.div_ceil(K::MR)
    }

    fn col_panels(&self) -> usize {
        self.col_edge.div_ceil(self.width)
    }

    /// Floats of packed A, packed B and accumulators that a task works in.
    pub(crate) fn scratch<K: Kernel>(&self) -> [usize; 3] {
        let a = self.row_panels::<K>() * K::KC.min(self.k) * K::A_STRIDE;
        let b = self.col_panels() * K::KC.min(self.k) * K::NR;
        let tiles =
            if self.k > K::KC || self.parts > 1 { self.row_panels::<K>() * self.col_panels() } else { 1 };
        [a, b, tiles * K::MR * K::NR]
    }

    /// Floats that a task works in.
    pub(crate) fn task_len<K: Kernel>(&self) -> usize {
        self.scratch::<K>().iter().sum()
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
    use crate::pack::{Paired, Stacked};

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

    #[test]
    fn small_products_are_cut_for_every_thread() {
        let grid = Grid::new::<Portable, Paired<'_, f32>>(8, 64, 10, Tile::Auto, 2);
        assert!(grid.blocks() >= 2, "{grid:?}");
        let one = Grid::new::<Portable, Stacked<'_, f32>>(1, 1, 1, Tile::Auto, 8);
        assert_eq!(one.blocks(), 1);
    }

    #[test]
    fn depths_cover_k_and_no_seam_lies_inside() {
        for k in [0, 2, 256, 500, 512, 514, 1026] {
            let grid = Grid::new::<Portable, Stacked<'_, f32>>(1, 1, k, Tile::Auto, 1);
            let ks: Vec<_> = (0..grid.depths::<Portable>()).map(|d| grid.depth::<Portable>(d)).collect();
            assert!(ks.windows(2).all(|pair| pair[0].end == pair[1].start), "{ks:?}");
            assert!(ks.iter().all(|ks| ks.end <= k / 2 || ks.start >= k / 2), "{ks:?}");
            assert_eq!((ks[0].start, ks[ks.len() - 1].end), (0, k));
            assert!(grid.depth::<Portable>(ks.len()).is_empty(), "nothing comes after {ks:?}");
        }
    }

    #[test]
    fn a_tile_option_sets_the_edge() {
        let grid = Grid::new::<Portable, Paired<'_, f32>>(1000, 1000, 10, Tile::T32, 2);
        assert!(grid.row_edge <= 32 && grid.col_edge <= 32, "{grid:?}");
    }
}
