//! dAB formed out of saved pre-activations by the product that reads it first, in place of a pass of its own: dX of the
//! family `sm90`.

use swiglu_core::Result;

use crate::arena::Layout;
use crate::gemm::GateCode;
use crate::queue::Call;

/// What a warp forms at once, in rows and in columns, and the rows of a tile: `sm90_cotangents.cuh` has the same.
const ROWS: usize = 16;
const COLUMNS: usize = 256;
const TILE_ROWS: usize = 128;

/// From so many in_features on dX is faster than with a pass of its own before it, in ms on an H100: 0.104 and 0.125 at
/// 8192, 512, 2048, 0.055 and 0.059 at 8192, 256, 1024, 0.045 and 0.046 at 2048, 768, 2048. Below nothing was measured.
pub(crate) const PAYS_FROM: usize = 256;
/// Below so many in_features a product waits for those warps, and they hurry: 0.120 ms for 0.157 at 4096, 1024, 4096, where
/// 0.762 are 0.740 at 8192, 2048, 8192 if they do not. That was with three rows in place of four; with four dX of 8192, 2048,
/// 8192 and 8192, 4096, 11008 is within 0.3 % of it, as ratios to the product alone.
const WAITS_BELOW: usize = 1536;

/// How dX forms the cotangents that it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Forming {
    pub(crate) gate: GateCode,
    /// Warps have all the rows on their way that they can.
    pub(crate) hurries: bool,
}

impl Forming {
    pub(crate) fn new(gate: GateCode, in_features: usize) -> Self {
        Self { gate, hurries: in_features < WAITS_BELOW }
    }

    /// Rows that a warp has on their way.
    pub(crate) fn ahead(self) -> i64 {
        // With eight, registers of the exact GELU are spilled.
        if self.hurries && self.gate != GateCode::GEGLU_ERF { 8 } else { 4 }
    }
}

/// The counters by which the blocks of that product tell each other what is formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// In the workspace, in bytes.
    offset: usize,
    bytes: usize,
}

impl Progress {
    /// For halves of this shape; `None` where there is more to do than a counter of 32 bits can count, with room for the
    /// claims of those who then find that nothing is left.
    pub(crate) fn new((rows, cols): (usize, usize), workspace: &mut Layout) -> Option<Self> {
        let columns = cols.div_ceil(COLUMNS);
        let units = u32::try_from(rows.div_ceil(ROWS).checked_mul(columns)?).ok()?;
        if units > u32::MAX / 2 {
            return None;
        }
        // Units claimed, units done, and units done of each rectangle.
        let bytes = (2 + rows.div_ceil(TILE_ROWS) * columns) * size_of::<u32>();
        Some(Self { offset: workspace.part(bytes), bytes })
    }

    /// Sets the counters to zero, in stream order, and says where they are.
    pub(crate) fn start(&self, call: &Call<'_>) -> Result<u64> {
        call.clear(self.offset, self.bytes)?;
        Ok(call.at(self.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rectangle_has_a_counter() {
        let mut workspace = Layout::default();
        let bytes = |shape, workspace: &mut Layout| Progress::new(shape, workspace).map(|it| it.bytes);
        assert_eq!(bytes((129, 257), &mut workspace), Some(4 * (2 + 2 * 2)));
        assert_eq!(bytes((8192, 14336), &mut workspace), Some(4 * (2 + 64 * 56)));
        assert!(workspace.bytes() >= 4 * (6 + 3586));
        assert_eq!(bytes((usize::MAX, usize::MAX), &mut workspace), None);
        assert_eq!(bytes((16 << 20, 256 << 20), &mut workspace), None);
    }

    #[test]
    fn short_products_wait_for_what_is_formed() {
        let forming = |gate, in_features| {
            let forming = Forming::new(gate, in_features);
            (forming.hurries, forming.ahead())
        };
        let (swiglu, erf) = (GateCode(0), GateCode::GEGLU_ERF);
        assert_eq!((forming(swiglu, 1024), forming(swiglu, 4096)), ((true, 8), (false, 4)));
        assert_eq!((forming(erf, 1024), forming(erf, 4096)), ((true, 4), (false, 4)));
    }
}
