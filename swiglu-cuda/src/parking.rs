//! What graphs ask of a stream: blocks that were dropped wait here while a captured graph may still use them, and calls
//! learn that one is being captured. One for each stream, shared by all handles on it.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks dropped while graphs of a stream live. Freed when the last of them is gone.
#[derive(Default)]
pub(crate) struct ParkingLot {
    state: Mutex<State>,
    capturing: AtomicBool,
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

    /// Frees a block, or whatever else graphs may use, or keeps it while they live.
    pub(crate) fn free<R: Send + 'static>(&self, resource: R) {
        let mut state = self.state();
        if state.graphs > 0 {
            state.parked.push(Box::new(resource));
        } else {
            drop(state);
            drop(resource);
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

    /// Whether graphs live.
    pub(crate) fn is_busy(&self) -> bool {
        self.state().graphs > 0
    }

    /// Whether a graph is being captured.
    pub(crate) fn capturing(&self) -> bool {
        self.capturing.load(Ordering::Relaxed)
    }

    pub(crate) fn set_capturing(&self, capturing: bool) {
        self.capturing.store(capturing, Ordering::Relaxed);
    }

    /// Blocks that wait.
    pub(crate) fn parked(&self) -> usize {
        self.state().parked.len()
    }
}
