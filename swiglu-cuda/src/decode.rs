//! The kernels of few rows on Hopper: which there are, and how each is launched. Pure: tested without a GPU.

use std::fmt;

use swiglu_core::Dtype;

use crate::gemm::{Family, GateCode};
use crate::kernel::Grid;

/// A kernel of the family `decode`: the fused forward for up to `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Decode {
    /// Element type, of 16 bits.
    pub(crate) dtype: Dtype,
    /// Whether weights are `[D, I]`.
    pub(crate) b_trans: bool,
    /// The gate function.
    pub(crate) gate: GateCode,
    /// Rows of a box of x: 8, 16, 32, 64 or 128.
    pub(crate) rows: u32,
    /// Columns of gate, and of up, that a block takes: one of [`Decode::WIDTHS`].
    pub(crate) columns: u32,
}

/// What `decode.cu` makes of its macros; the formulas are the same.
impl Decode {
    /// The largest batch.
    pub(crate) const ROWS: usize = 128;

    /// Rows of the smallest kernel that holds a batch.
    pub(crate) fn rows_for(batch: usize) -> u32 {
        batch.clamp(8, Self::ROWS).next_power_of_two() as u32
    }

    /// The columns of blocks, though not of those of every kernel.
    pub(crate) const WIDTHS: [u32; 5] = [64, 80, 96, 112, 128];

    /// Whether there is such a kernel. Along `[I, 2D]` weights blocks begin at whole lines of L2.
    pub(crate) fn exists(&self) -> bool {
        let step = match (self.b_trans, self.rows) {
            (false, _) => 64,
            (true, 128) => 32,
            (true, _) => 16,
        };
        Self::WIDTHS.contains(&self.columns) && self.columns.is_multiple_of(step)
    }

    /// The kernel with the narrowest blocks of which none of so many multiprocessors gets more than it would of the widest.
    pub(crate) fn for_columns(self, hidden: u64, multiprocessors: u64) -> Self {
        let widest = Self { columns: 128, ..self };
        let blocks = widest.grid(hidden).blocks.next_multiple_of(multiprocessors.max(1));
        let widths = Self::WIDTHS.into_iter().map(|columns| Self { columns, ..self });
        widths.filter(Self::exists).find(|it| it.grid(hidden).blocks <= blocks).unwrap_or(widest)
    }

    /// Blocks for this many columns of gate, and their threads: a warp for every 16 columns, and one that copies.
    pub(crate) fn grid(&self, hidden: u64) -> Grid {
        let blocks = hidden.div_ceil(u64::from(self.columns));
        Grid { blocks, depth: 1, threads: 32 * (self.columns / 16 + 1) }
    }

    /// Blocks that run on a multiprocessor at once.
    fn at_once(&self) -> u32 {
        if self.columns == 64 || (self.rows == 64 && !self.b_trans) { 2 } else { 1 }
    }

    /// Bytes of dynamic shared memory of a block: as many stages as there is room for in a half or a whole of a
    /// multiprocessor's 228 KiB, of which a block takes 1 KiB besides.
    pub(crate) fn shared_bytes(&self) -> u32 {
        let room = (228 / self.at_once() - 1) * 1024;
        let stage = (2 * self.columns + self.rows) * 128 + 16;
        room / stage * stage
    }
}

impl fmt::Display for Decode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.b_trans { "t" } else { "n" };
        write!(f, "{}-{}-n{order}-{}", Family::Decode, self.dtype, self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(rows: u32, columns: u32) -> Decode {
        Decode { dtype: Dtype::Bf16, b_trans: false, gate: GateCode(0), rows, columns }
    }

    #[test]
    fn rows_hold_the_batch() {
        for (batch, rows) in [(1, 8), (8, 8), (9, 16), (17, 32), (33, 64), (64, 64), (65, 128), (128, 128)] {
            assert_eq!(Decode::rows_for(batch), rows, "{batch}");
        }
    }

    #[test]
    fn blocks_of_a_multiprocessor_fit_into_its_shared_memory() {
        for (rows, large, small) in [(8, 6, 6), (16, 6, 6), (32, 6, 5), (64, 2, 4), (128, 4, 3)] {
            for (columns, stages) in [(128, large), (64, small)] {
                let decode = decode(rows, columns);
                let bytes = decode.shared_bytes();
                assert_eq!(bytes, stages * ((2 * columns + rows) * 128 + 16), "{rows} x {columns}");
                assert!(decode.at_once() * (bytes + 1024) <= 228 * 1024, "{rows} x {columns}");
            }
        }
        assert_eq!(Decode { b_trans: true, ..decode(64, 112) }.shared_bytes(), 6 * (288 * 128 + 16));
    }

    #[test]
    fn blocks_are_as_narrow_as_multiprocessors_allow() {
        let columns = |b_trans, rows, hidden| {
            let decode = Decode { b_trans, ..decode(rows, 128) }.for_columns(hidden, 132);
            assert!(decode.exists(), "{decode:?}");
            (decode.columns, decode.grid(hidden).blocks)
        };
        assert_eq!(columns(false, 8, 132 * 64), (64, 132));
        assert_eq!(columns(false, 8, 132 * 64 + 1), (128, 67));
        assert_eq!(columns(false, 8, 14336), (128, 112));
        assert_eq!(columns(true, 8, 14336), (112, 128));
        assert_eq!(columns(true, 128, 14336), (128, 112));
        assert_eq!(columns(true, 128, 11008), (96, 115));
        // Two for each.
        assert_eq!(columns(true, 64, 28672), (112, 256));
        assert_eq!(columns(true, 64, 1), (64, 1));
    }

    #[test]
    fn the_last_block_has_the_rest_of_the_columns() {
        assert_eq!(decode(8, 128).grid(14336), Grid { blocks: 112, depth: 1, threads: 288 });
        assert_eq!(decode(8, 64).grid(4097), Grid { blocks: 65, depth: 1, threads: 160 });
    }
}
