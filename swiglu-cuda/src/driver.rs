//! The calls into the driver library. What makes them sound is said in `loader.rs`.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::{Path, PathBuf};

use crate::loader::{Opened, functions, unsigned};
use crate::{ComputeCapability, CudaVersion, GpuInfo, Search, Unavailable};

// CUDAAPI is stdcall on 32-bit Windows and the C convention elsewhere, which is what "system" means.
functions! { DriverFunctions, "system":
    init = "cuInit" (c_uint) -> c_int;
    version = "cuDriverGetVersion" (*mut c_int) -> c_int;
    device_count = "cuDeviceGetCount" (*mut c_int) -> c_int;
    device = "cuDeviceGet" (*mut c_int, c_int) -> c_int;
    name = "cuDeviceGetName" (*mut c_char, c_int, c_int) -> c_int;
    attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, c_int) -> c_int;
    memory = "cuDeviceTotalMem_v2" (*mut usize, c_int) -> c_int;
}

/// What the backend calls through cudarc, which looks a function up when it is first called and panics where it is
/// missing.
const CALLED_THROUGH_CUDARC: [&str; 46] = [
    "cuInit",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemAllocAsync",
    "cuMemFree_v2",
    "cuMemFreeAsync",
    "cuMemAllocHost_v2",
    "cuMemFreeHost",
    "cuMemsetD8Async",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpy2DAsync_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventQuery",
    "cuEventElapsedTime",
    "cuEventDestroy_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuTensorMapEncodeTiled",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuDeviceGetName",
];

/// Checks the library that cudarc is going to open. It has its own order of names, so that may be another file than the
/// one that was found first, and it panics where there is none or a function is missing.
pub(crate) fn check_cudarc() -> Result<(), Unavailable> {
    let library = Opened::driver(&Search::cudarc()).map_err(|tried| Unavailable::DriverMissing { tried })?;
    match CALLED_THROUGH_CUDARC.into_iter().find(|symbol| library.address(symbol).is_none()) {
        None => Ok(()),
        Some(symbol) => Err(Unavailable::DriverBroken { path: library.file_with("cuInit"), symbol }),
    }
}

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;

/// The driver library with all of its functions found.
pub(crate) struct Driver {
    functions: DriverFunctions,
    path: PathBuf,
}

impl Driver {
    pub(crate) fn open(search: &Search) -> Result<Self, Unavailable> {
        let library = Opened::driver(search).map_err(|tried| Unavailable::DriverMissing { tried })?;
        match DriverFunctions::resolve(&library) {
            Ok(functions) => Ok(Self { path: library.file_with("cuInit"), functions }),
            Err(symbol) => Err(Unavailable::DriverBroken { path: library.file_with("cuInit"), symbol }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The newest CUDA version that the driver supports. May be asked before [`Driver::initialise`].
    pub(crate) fn version(&self) -> Result<CudaVersion, Unavailable> {
        let mut version = 0;
        // SAFETY: type and lifetime as in `loader.rs`; the pointer is to one live c_int.
        let code = unsafe { (self.functions.version)(&raw mut version) };
        driver_result("cuDriverGetVersion", code)?;
        // 12080 is 12.8.
        Ok(CudaVersion { major: unsigned(version / 1000), minor: unsigned(version % 1000 / 10) })
    }

    pub(crate) fn initialise(&self) -> Result<(), Unavailable> {
        // SAFETY: type and lifetime as in `loader.rs`; no pointer is passed, and 0 is the only flag there is.
        let code = unsafe { (self.functions.init)(0) };
        driver_result("cuInit", code)
    }

    pub(crate) fn device_count(&self) -> Result<usize, Unavailable> {
        let mut count = 0;
        // SAFETY: type and lifetime as in `loader.rs`; the pointer is to one live c_int.
        let code = unsafe { (self.functions.device_count)(&raw mut count) };
        driver_result("cuDeviceGetCount", code)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub(crate) fn gpu(&self, ordinal: usize) -> Result<GpuInfo, Unavailable> {
        let device = self.device(ordinal)?;
        let compute_capability = ComputeCapability {
            major: self.attribute(device, CAPABILITY_MAJOR)?,
            minor: self.attribute(device, CAPABILITY_MINOR)?,
        };
        let (name, memory_bytes) = (self.name(device)?, self.memory(device)?);
        Ok(GpuInfo { ordinal, name, compute_capability, memory_bytes })
    }

    fn device(&self, ordinal: usize) -> Result<c_int, Unavailable> {
        // One past the driver's own range is an error of the driver, not a device.
        let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let mut device = 0;
        // SAFETY: type and lifetime as in `loader.rs`; the pointer is to one live c_int (CUdevice is an int).
        let code = unsafe { (self.functions.device)(&raw mut device, ordinal) };
        driver_result("cuDeviceGet", code).map(|()| device)
    }

    fn name(&self, device: c_int) -> Result<String, Unavailable> {
        let mut buffer = [0u8; 256];
        let room = buffer.len() as c_int;
        // SAFETY: type and lifetime as in `loader.rs`; `room` is the length of the buffer behind the pointer.
        let code = unsafe { (self.functions.name)(buffer.as_mut_ptr().cast(), room, device) };
        driver_result("cuDeviceGetName", code)?;
        let name = CStr::from_bytes_until_nul(&buffer).map_or(buffer.as_slice(), CStr::to_bytes);
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    fn attribute(&self, device: c_int, attribute: c_int) -> Result<u32, Unavailable> {
        let mut value = 0;
        // SAFETY: type and lifetime as in `loader.rs`; the pointer is to one live c_int.
        let code = unsafe { (self.functions.attribute)(&raw mut value, attribute, device) };
        driver_result("cuDeviceGetAttribute", code).map(|()| unsigned(value))
    }

    fn memory(&self, device: c_int) -> Result<u64, Unavailable> {
        let mut bytes = 0usize;
        // SAFETY: type and lifetime as in `loader.rs`; the pointer is to one live usize, which is C's size_t.
        let code = unsafe { (self.functions.memory)(&raw mut bytes, device) };
        driver_result("cuDeviceTotalMem_v2", code).map(|()| bytes as u64)
    }
}

fn driver_result(call: &'static str, code: c_int) -> Result<(), Unavailable> {
    match code {
        0 => Ok(()),
        NO_DEVICE => Err(Unavailable::no_device()),
        code => Err(Unavailable::DriverFailed { call, code }),
    }
}
