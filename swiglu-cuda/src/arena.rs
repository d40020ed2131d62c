//! Workspace of a handle: one block that grows to what the largest call so far needed.

use cudarc::driver::CudaSlice;
use swiglu_core::Result;

use crate::error::CudaError;
use crate::launch::{Stream, allocate};
use crate::memory::CudaPtr;
use crate::parking::ParkingLot;

/// Parts of a workspace start at multiples of this: what the widest vector access needs, and a line of the L2.
const ALIGNMENT: usize = 128;

/// The workspace. Calls on a stream run one after the other, so one block serves all of them.
#[derive(Default)]
pub(crate) struct Arena {
    block: Option<CudaSlice<u8>>,
}

impl Arena {
    pub(crate) fn bytes(&self) -> usize {
        self.block.as_ref().map_or(0, CudaSlice::len)
    }

    /// Makes room for `bytes`. The old block is freed in stream order, or parked for the graphs that use it.
    pub(crate) fn grow(
        &mut self,
        stream: &Stream,
        lot: &ParkingLot,
        bytes: usize,
        capturing: bool,
    ) -> Result<()> {
        if bytes <= self.bytes() {
            return Ok(());
        }
        if capturing {
            return Err(CudaError::NotWarm { what: "the workspace had to grow" }.into());
        }
        // The new one first: when it does not fit, the old one is still there.
        let block = allocate(stream, bytes)?;
        if let Some(old) = self.block.replace(block) {
            lot.free(old);
        }
        Ok(())
    }

    /// The block, for somebody else to free.
    pub(crate) fn take(&mut self) -> Option<CudaSlice<u8>> {
        self.block.take()
    }

    /// The start of the block; `None` before anything was asked for.
    pub(crate) fn start(&self) -> Option<u64> {
        self.block.as_ref().map(|block| CudaPtr::of(block).address())
    }
}

/// Where the parts of a workspace lie: handed out one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layout {
    end: usize,
}

impl Layout {
    /// The offset of a new part.
    pub(crate) fn part(&mut self, bytes: usize) -> usize {
        let start = self.end;
        self.end = start.saturating_add(bytes).checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        start
    }

    /// Bytes of all parts.
    pub(crate) fn bytes(self) -> usize {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_and_disjoint() {
        let mut layout = Layout::default();
        let parts = [layout.part(1), layout.part(0), layout.part(129), layout.part(4)];
        assert_eq!(parts, [0, 128, 128, 384]);
        assert_eq!(layout.bytes(), 512);
    }
}
