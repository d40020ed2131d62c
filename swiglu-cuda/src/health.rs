//! Whether a device's context still works. One for each device: its context is shared by all handles of the process.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use swiglu_core::{Error, Result};

use crate::error::{CudaError, is_sticky};

/// Remembers the first failure after which nothing works.
#[derive(Debug)]
pub(crate) struct Health {
    lost: OnceLock<CudaError>,
    synchronous: bool,
}

/// One for each device that was ever opened: a context that is lost stays lost until the process ends, also after the
/// last handle on it is gone.
static ALL: Mutex<Vec<(usize, Arc<Health>)>> = Mutex::new(Vec::new());

impl Health {
    /// That of the device with this ordinal.
    pub(crate) fn of(ordinal: usize) -> Arc<Self> {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().find(|(other, _)| *other == ordinal).map(|(_, health)| health.clone());
        known.unwrap_or_else(|| {
            let health = Arc::new(Self::from_env());
            all.push((ordinal, health.clone()));
            health
        })
    }

    /// With `SWIGLU_SYNC=1` each launch is waited for, so that a fault names the kernel that made it.
    fn from_env() -> Self {
        let synchronous = std::env::var_os("SWIGLU_SYNC").is_some_and(|value| value == "1");
        Self { lost: OnceLock::new(), synchronous }
    }

    pub(crate) fn synchronous(&self) -> bool {
        self.synchronous
    }

    /// The failure that lost the context, if there was one.
    pub(crate) fn check(&self) -> Result<()> {
        match self.lost.get() {
            None => Ok(()),
            Some(error) => Err(error.clone().into()),
        }
    }

    /// What a failed call is to the caller.
    pub(crate) fn failed(&self, call: &str, code: CUresult) -> Error {
        let name = name(code);
        let call = call.to_owned();
        if !is_sticky(code) {
            return CudaError::Driver { call, code: code as u32, name }.into();
        }
        self.lost.get_or_init(|| CudaError::ContextPoisoned { call, code: code as u32, name }).clone().into()
    }
}

/// `CUDA_ERROR_ILLEGAL_ADDRESS` and the like.
fn name(code: CUresult) -> String {
    match DriverError(code).error_name() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => "unknown error".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_stays() {
        let health = Health { lost: OnceLock::new(), synchronous: false };
        assert!(health.check().is_ok());
        let lost = CudaError::ContextPoisoned { call: "a kernel".into(), code: 700, name: "X".into() };
        assert_eq!(health.lost.set(lost.clone()), Ok(()));
        let Err(Error::Device(source)) = health.check() else { panic!("a lost context is an error") };
        assert_eq!(source.downcast_ref::<CudaError>(), Some(&lost));
    }
}
