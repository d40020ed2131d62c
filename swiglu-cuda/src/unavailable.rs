//! Why a GPU cannot be used: one variant for each thing that can be missing, with the numbers and the advice.

use std::env;
use std::path::PathBuf;

use crate::{ComputeCapability, CudaVersion};

/// Why CUDA cannot be used here, and what would change that. Its message is one line, advice included.
///
/// ```
/// use swiglu_cuda::{CudaVersion, Unavailable};
///
/// let have = CudaVersion { major: 11, minor: 2 };
/// let need = CudaVersion { major: 12, minor: 0 };
/// let message = Unavailable::DriverTooOld { have, need }.to_string();
/// assert!(message.contains("11.2") && message.contains("12.0"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// No driver library could be opened.
    #[error(
        "no CUDA driver library could be opened (tried {}); install the NVIDIA driver, or start the container with \
         GPU access",
        .tried.join(", ")
    )]
    DriverMissing {
        /// Each place in order; where a file was there but could not be opened, the reason in brackets.
        tried: Vec<String>,
    },

    /// A driver library was opened, but it lacks a function of the driver.
    #[error(
        "the CUDA driver library {} has no function {symbol}: it is a stub or damaged; reinstall the NVIDIA driver, \
         or take the stub out of the library path",
        .path.display()
    )]
    DriverBroken {
        /// The library.
        path: PathBuf,
        /// The first function found missing.
        symbol: &'static str,
    },

    /// The driver answered a call with an error.
    #[error("the CUDA driver failed: {call} returned error {code} ({})", driver_advice(*.code))]
    DriverFailed {
        /// The function called.
        call: &'static str,
        /// Its `CUresult`.
        code: i32,
    },

    /// The driver supports only older versions of CUDA.
    #[error(
        "the NVIDIA driver supports CUDA {have}, and {need} is needed; install a newer driver (525.60.13 on Linux or \
         527.41 on Windows is the first for CUDA 12.0)"
    )]
    DriverTooOld {
        /// The newest version the driver supports.
        have: CudaVersion,
        /// The oldest version this crate works with.
        need: CudaVersion,
    },

    /// The driver works and sees no device.
    #[error("the CUDA driver sees no GPU; {}", no_device_advice(.visible_devices.as_deref()))]
    NoDevice {
        /// The value of `CUDA_VISIBLE_DEVICES`, where it is set: it may be what hides the devices.
        visible_devices: Option<String>,
    },

    /// There are devices, but none of that number.
    #[error(
        "there is no GPU {asked}: {present} visible, numbered from 0; ask for a lower number or check \
         CUDA_VISIBLE_DEVICES"
    )]
    UnknownDevice {
        /// The ordinal asked for.
        asked: usize,
        /// How many devices are visible.
        present: usize,
    },

    /// NVRTC could not be opened.
    #[error(
        "NVRTC, the CUDA run-time compiler, could not be opened (tried {}); install the CUDA toolkit or its NVRTC \
         package, or set SWIGLU_NVRTC to the absolute path of the library",
        .tried.join(", ")
    )]
    NvrtcMissing {
        /// Each place in order; where a file was there but could not be opened, the reason in brackets.
        tried: Vec<String>,
    },

    /// A library was opened as NVRTC, but it lacks a function of NVRTC.
    #[error(
        "the NVRTC library {} has no function {symbol}: it is older than CUDA 11.2 or damaged; install a newer one, \
         or set SWIGLU_NVRTC to the absolute path of another",
        .path.display()
    )]
    NvrtcBroken {
        /// The library.
        path: PathBuf,
        /// The first function found missing.
        symbol: &'static str,
    },

    /// NVRTC answered a call with an error.
    #[error(
        "NVRTC failed: {call} returned error {code}; reinstall it, or set SWIGLU_NVRTC to the absolute path of \
         another"
    )]
    NvrtcFailed {
        /// The function called.
        call: &'static str,
        /// Its `nvrtcResult`.
        code: i32,
    },

    /// This NVRTC compiles for no architecture whose code the device runs: it is too new for the device, or too old.
    #[error(
        "NVRTC {version} ({}) does not compile for compute capability {have}, only for {}; set SWIGLU_NVRTC to the \
         absolute path of a version that does",
        .path.display(),
        list(.supported)
    )]
    NvrtcArchitecture {
        /// The library.
        path: PathBuf,
        /// Its version.
        version: CudaVersion,
        /// What the device is.
        have: ComputeCapability,
        /// What this NVRTC compiles for.
        supported: Vec<ComputeCapability>,
    },

    /// The device is of too old a generation.
    #[error("the GPU has compute capability {have}, and {need} or newer is needed; use another GPU")]
    ComputeCapability {
        /// What the device is.
        have: ComputeCapability,
        /// The oldest generation this crate works with.
        need: ComputeCapability,
    },
}

impl Unavailable {
    /// `NoDevice`, with what the environment says.
    pub(crate) fn no_device() -> Self {
        let visible = env::var_os("CUDA_VISIBLE_DEVICES");
        Self::NoDevice { visible_devices: visible.map(|value| value.to_string_lossy().into_owned()) }
    }
}

fn no_device_advice(visible_devices: Option<&str>) -> String {
    match visible_devices {
        Some(value) => format!("CUDA_VISIBLE_DEVICES is set to {value:?} and may hide it: unset it"),
        None => "check that one is installed and that this process or container has access to it".to_owned(),
    }
}

/// What the codes met at start-up mean; names and numbers from `CUresult` in cuda.h.
fn driver_advice(code: i32) -> &'static str {
    match code {
        2 => "out of memory: free some and try again",
        34 => "the toolkit's link-time stub was opened: take its folder out of the library path",
        46 => "the device is busy or unavailable: check that no process holds it exclusively",
        101 => "invalid device: check CUDA_VISIBLE_DEVICES",
        802 => "the system is not ready: check that the fabric manager runs",
        803 => {
            "the driver library and the kernel module differ in version: reboot, or match the container to the host"
        }
        804 => "this GPU does not support the forward-compatibility driver: use the driver's own library",
        999 => "unknown error: check that `nvidia-smi` works and that the kernel modules are loaded",
        _ => "its meaning is in CUresult, in the CUDA driver documentation; check that `nvidia-smi` works",
    }
}

fn list(supported: &[ComputeCapability]) -> String {
    if supported.is_empty() {
        return "none".to_owned();
    }
    supported.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
