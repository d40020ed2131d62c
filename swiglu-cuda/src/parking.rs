//! Where blocks wait that were dropped while a captured graph may still use them.

use std::any::Any;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::CudaSlice;

/// Blocks dropped while graphs of a handle live. Freed when the last of them is gone.
#[derive(Default)]
pub(crate) struct ParkingLot {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    graphs: usize,
    parked: Vec<Box<dyn Any + Send>>,
}

impl ParkingLot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees a block, or keeps it while graphs live.
    pub(crate) fn free<T: 'static>(&self, slice: CudaSlice<T>) {
        let mut state = self.state();
        if state.graphs > 0 {
            state.parked.push(Box::new(slice));
        } else {
            drop(state);
            drop(slice);
        }
    }

    /// A graph has been captured.
    pub(crate) fn enter(&self) {
        self.state().graphs += 1;
    }

    /// A graph is gone.
    pub(crate) fn leave(&self) {
        let mut state = self.state();
        state.graphs = state.graphs.saturating_sub(1);
        if state.graphs == 0 {
            let parked = std::mem::take(&mut state.parked);
            drop(state);
            drop(parked);
        }
    }

    /// Blocks that wait.
    pub(crate) fn parked(&self) -> usize {
        self.state().parked.len()
    }
}
