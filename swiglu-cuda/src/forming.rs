//! dAB formed out of saved pre-activations by the product that reads it first, in place of a pass of its own: dX of the
//! family `sm90`.

use swiglu_core::Result;

use crate::arena::Layout;
use crate::queue::Call;

/// What a warp forms at once, in rows and in columns, and the rows of a tile: `sm90_cotangents.cuh` has the same.
const ROWS: usize = 16;
const COLUMNS: usize = 256;
const TILE_ROWS: usize = 128;

/// From so many in_features on a product takes as long as the warps that it leaves idle take to form what it reads:
/// 0.143 ms for 0.160 with a pass of its own at 4096, 1024, 4096, and 0.125 for 0.114 at 8192, 512, 2048.
pub(crate) const PAYS_FROM: usize = 1024;
/// Below so many in_features a product waits for them, and all warps form an eighth before they multiply: 0.143 ms for
/// 0.161 at 4096, 1024, 4096, and 0.231 for 0.210 at 4096, 2048, 4096.
const WAITS_BELOW: usize = 1536;

/// The counters by which the blocks of that product tell each other what is formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// In the workspace, in bytes.
    offset: usize,
    bytes: usize,
    /// What all warps form first.
    pub(crate) units_first: u32,
}

impl Progress {
    /// For halves of this shape and the product with weights of so many `in_features`; `None` where there is more to do
    /// than a counter of 32 bits can count, with room for the claims of those who then find that nothing is left.
    pub(crate) fn new(
        (rows, cols): (usize, usize),
        in_features: usize,
        workspace: &mut Layout,
    ) -> Option<Self> {
        let columns = cols.div_ceil(COLUMNS);
        let units = u32::try_from(rows.div_ceil(ROWS).checked_mul(columns)?).ok()?;
        if units > u32::MAX / 2 {
            return None;
        }
        // Units claimed, units done, and units done of each rectangle.
        let bytes = (2 + rows.div_ceil(TILE_ROWS) * columns) * size_of::<u32>();
        let units_first = if in_features < WAITS_BELOW { units / 8 } else { 0 };
        Some(Self { offset: workspace.part(bytes), bytes, units_first })
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
        let bytes = |shape, workspace: &mut Layout| Progress::new(shape, 64, workspace).map(|it| it.bytes);
        assert_eq!(bytes((129, 257), &mut workspace), Some(4 * (2 + 2 * 2)));
        assert_eq!(bytes((8192, 14336), &mut workspace), Some(4 * (2 + 64 * 56)));
        assert!(workspace.bytes() >= 4 * (6 + 3586));
        assert_eq!(bytes((usize::MAX, usize::MAX), &mut workspace), None);
        assert_eq!(bytes((16 << 20, 256 << 20), &mut workspace), None);
    }

    #[test]
    fn short_products_begin_with_an_eighth() {
        let first = |in_features| {
            Progress::new((8192, 4096), in_features, &mut Layout::default()).map(|it| it.units_first)
        };
        assert_eq!((first(1024), first(4096)), (Some(512 * 16 / 8), Some(0)));
    }
}
