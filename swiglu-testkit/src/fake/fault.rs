//! Failures on demand, with the timing of an asynchronous device.

use std::sync::{Arc, Mutex, PoisonError};

use swiglu_core::{Error, Result};

/// A failure for [`Fake::inject`](super::Fake::inject).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next launch fails on the device. It still returns `Ok`; [`Error::Device`] comes from `synchronize`, from a
    /// download or from the launch after it, and from every call from then on.
    Launch,
    /// The allocation after this many successful ones returns [`Error::OutOfMemory`]; those after it succeed again.
    Allocation {
        /// Allocations that succeed first.
        after: usize,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Health {
    #[default]
    Fine,
    /// The next launch fails.
    Doomed,
    /// A launch has failed, and the host does not know.
    Failed,
    /// The host knows. There is no way back.
    Lost,
}

#[derive(Debug, Default)]
struct State {
    health: Health,
    /// Allocations that still succeed before one fails.
    allocations: Option<usize>,
}

impl State {
    fn lose(&mut self) -> Error {
        self.health = Health::Lost;
        Error::Device("injected fault: a launch failed, the context is lost".into())
    }
}

/// What is wrong with a device: shared by every handle on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<Mutex<State>>);

impl Faults {
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn inject(&self, fault: Fault) {
        self.with(|state| match fault {
            Fault::Launch if state.health == Health::Fine => state.health = Health::Doomed,
            Fault::Launch => {}
            Fault::Allocation { after } => state.allocations = Some(after),
        });
    }

    /// Before a launch: whether it will have an effect.
    pub(super) fn launch(&self) -> Result<bool> {
        self.with(|state| match state.health {
            Health::Fine => Ok(true),
            Health::Doomed => {
                state.health = Health::Failed;
                Ok(false)
            }
            Health::Failed | Health::Lost => Err(state.lose()),
        })
    }

    /// Before an allocation, which does not wait for launches and so knows only what was reported.
    pub(super) fn allocate(&self, bytes: usize) -> Result<()> {
        self.with(|state| {
            if state.health == Health::Lost {
                return Err(state.lose());
            }
            let failing = state.allocations == Some(0);
            state.allocations = state.allocations.and_then(|left| left.checked_sub(1));
            if failing { Err(Error::OutOfMemory { bytes }) } else { Ok(()) }
        })
    }

    /// Whether an injected allocation failure is still to come.
    pub(super) fn allocation_pending(&self) -> bool {
        self.with(|state| state.allocations.is_some())
    }

    /// Once everything enqueued is done.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.with(|state| match state.health {
            Health::Fine | Health::Doomed => Ok(()),
            Health::Failed | Health::Lost => Err(state.lose()),
        })
    }
}
