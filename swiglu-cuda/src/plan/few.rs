//! Plain products of `sm90` with fewer tiles than multiprocessors: narrow tiles, and tiles that several blocks share.

use swiglu_core::{Dtype, Tile};

use super::Planner;
use super::product::Wanted;
use crate::gemm::{Gemm, Hopper};

/// k blocks that each block has at least where several share a tile: 16 for two take as long as they take one (13.3 us and
/// 13.8 for dWf of 1024, 512, 2048), since what blocks then send each other takes as long as some 6.
const SHARED_LEAST: usize = 8;
/// Elements of k in a block of `sm90`, of 16 bits.
const BLOCK_K: usize = 64;

/// Clocks of an H100, read in the kernels for dX of 2048, 768, 2048 and of 8192, 256, 1024 and dWf of the latter. Of the products
/// of a k block, 128 x 128:
const BLOCK: f64 = 543.0;
/// bytes that all multiprocessors together get in a clock, mostly from L2;
const BYTES: f64 = 4900.0;
/// until the first block has come, the end of a tile, and what more it takes to add the parts of those that are shared.
const START: f64 = 4500.0;
const END: f64 = 3500.0;
const ADDING: f64 = 5000.0;

impl Planner<'_> {
    /// The same product of `sm90` in the tiles, and with as many blocks for each, that take least: wide ones for a block each, as
    /// many as run at once for each wide one, or narrow ones in the same ways. Measured of wide ones: 18.8 us for 24.3 with two
    /// blocks (dX of 8192, 256, 1024), 36.9 for 80.5 with three (1024, 1024, 4096), 28.1 for 77.8 with four (dWf of
    /// 8192, 256, 1024). Five and six gain nothing more, and eight leave multiprocessors idle.
    pub(super) fn few(&self, wanted: &Wanted, gemm: Gemm) -> Gemm {
        if gemm.product.has_gate() || gemm.dtype == Dtype::F32 {
            return gemm;
        }
        let blocks = (wanted.k / wanted.segments as usize).div_ceil(BLOCK_K) * wanted.segments as usize;
        // Those outside the matrix that a pair may have among them.
        let tiles = |gemm: &Gemm| {
            let clusters = gemm.clusters(wanted.shape.0 as u64, wanted.shape.1 as u64);
            clusters.saturating_mul(if gemm.hopper.pairs { 2 } else { 1 }).saturating_mul(wanted.depth)
        };
        let at_once = |gemm: &Gemm| {
            let enough = gemm.parts == 1 || blocks >= SHARED_LEAST * gemm.parts as usize;
            enough && tiles(gemm) <= self.clusters_at_once(gemm.parts)
        };
        let clocks = |gemm: &Gemm| self.clocks_of_few(gemm, tiles(gemm), blocks);
        let least = forms(gemm, wanted.tile == Tile::Auto).filter(at_once).map(|gemm| (clocks(&gemm), gemm));
        least.fold((clocks(&gemm), gemm), |best, other| if other.0 < best.0 { other } else { best }).1
    }

    /// Clocks that so many tiles of so many k blocks take.
    fn clocks_of_few(&self, gemm: &Gemm, tiles: u64, blocks: usize) -> f64 {
        let multiprocessors = u64::from(self.facts.multiprocessors).max(1);
        let running = tiles.saturating_mul(u64::from(gemm.parts)).min(multiprocessors) as f64;
        let waves = tiles.saturating_mul(u64::from(gemm.parts)).div_ceil(multiprocessors) as f64;
        let (rows, columns) = gemm.tile();
        // Each block of a pair copies half of the columns for both.
        let copied = rows + if gemm.hopper.pairs { columns / 2 } else { columns };
        let copies = (copied as usize * BLOCK_K * gemm.dtype.bytes()) as f64 * running / BYTES;
        let block = (BLOCK * columns as f64 / 128.0).max(copies);
        let each = (blocks as f64 / f64::from(gemm.parts)).ceil() * block + END;
        START + waves * each + if gemm.parts > 1 { ADDING } else { 0.0 }
    }

    /// Clusters of so many blocks that run at once, with a multiprocessor for each block. Clusters do not reach over groups
    /// of multiprocessors, of which an H100 has eight, mostly of 16 or 18: of its 132, 66 clusters of two have a place, but
    /// 39 of three and 30 of four (cuOccupancyMaxActiveClusters). Groups differ from one GPU to another.
    pub(super) fn clusters_at_once(&self, blocks: u32) -> u64 {
        let multiprocessors = u64::from(self.facts.multiprocessors);
        match blocks {
            0..=2 => multiprocessors / u64::from(blocks.max(1)),
            _ => multiprocessors * 7 / 8 / u64::from(blocks),
        }
    }
}

/// What a product of few tiles may be instead; narrow tiles too, or not. As many narrow ones are as fast as wide ones for two
/// blocks, and leave nothing to add.
fn forms(gemm: Gemm, narrow: bool) -> impl Iterator<Item = Gemm> {
    let shared = move |narrow, parts| {
        let hopper = Hopper { narrow, pairs: false, group: Hopper::group(false), ..gemm.hopper };
        Gemm { hopper, parts, ..gemm }
    };
    let paired = Hopper { narrow: true, pairs: true, group: Hopper::group(true), ..gemm.hopper };
    let wide = [shared(false, 3), shared(false, 4)];
    let narrow_ones = [Gemm { hopper: paired, ..gemm }, shared(true, 2), shared(true, 3), shared(true, 4)];
    wide.into_iter().chain(narrow_ones.into_iter().filter(move |_| narrow))
}
