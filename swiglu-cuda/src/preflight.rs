//! The questions: which GPUs are there, and can this one be used. Owns the order of the checks and what they
//! return; `driver.rs` and `nvrtc.rs` do the calls.

use std::fmt;
use std::path::PathBuf;

use crate::compile::Compiler;
use crate::driver::Driver;
use crate::{Search, Unavailable};

/// The oldest driver interface the backend is written for.
const OLDEST_DRIVER: CudaVersion = CudaVersion { major: 12, minor: 0 };

/// Volta: the oldest architecture with the memory model and warp primitives that the kernels will assume.
const OLDEST_GPU: ComputeCapability = ComputeCapability { major: 7, minor: 0 };

/// A CUDA version, such as 12.8: of NVRTC, or the newest one that a driver supports.
///
/// ```
/// use swiglu_cuda::CudaVersion;
///
/// let version = CudaVersion { major: 12, minor: 8 };
/// assert_eq!(version.to_string(), "12.8");
/// assert!(version < CudaVersion { major: 13, minor: 0 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CudaVersion {
    /// The part before the dot.
    pub major: u32,
    /// The part after the dot.
    pub minor: u32,
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The architecture generation of a GPU: 7.0 is Volta, 8.0 Ampere, 9.0 Hopper.
///
/// ```
/// use swiglu_cuda::ComputeCapability;
///
/// let hopper = ComputeCapability { major: 9, minor: 0 };
/// assert_eq!(hopper.to_string(), "9.0");
/// assert!(hopper > ComputeCapability { major: 8, minor: 6 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability {
    /// The part before the dot.
    pub major: u32,
    /// The part after the dot.
    pub minor: u32,
}

impl ComputeCapability {
    /// Machine code runs on its own minor version and on later ones of the same major version.
    pub(crate) fn runs_code_for(self, built_for: Self) -> bool {
        built_for.major == self.major && built_for.minor <= self.minor
    }
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One GPU, as the driver describes it.
///
/// ```
/// for gpu in swiglu_cuda::probe().unwrap_or_default() {
///     println!("{}: {} with {} bytes", gpu.ordinal, gpu.name, gpu.memory_bytes);
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuInfo {
    /// Its number among the visible devices, from 0. `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER` decide it.
    pub ordinal: usize,
    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Its architecture generation.
    pub compute_capability: ComputeCapability,
    /// All of its memory, used or free.
    pub memory_bytes: u64,
}

impl fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ordinal, name, compute_capability, memory_bytes } = self;
        let gib = *memory_bytes as f64 / f64::from(1u32 << 30);
        write!(f, "GPU {ordinal}: {name}, compute capability {compute_capability}, {gib:.1} GiB")
    }
}

/// A shared library that was opened, and the version it reports.
///
/// ```
/// if let Ok(found) = swiglu_cuda::preflight(0) {
///     println!("kernels would be compiled by {}", found.nvrtc.path.display());
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Library {
    /// On Linux the file that was opened, links resolved; elsewhere the name it was asked for by.
    pub path: PathBuf,
    /// For NVRTC its own version; for the driver the newest CUDA version it supports.
    pub version: CudaVersion,
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (CUDA {})", self.path.display(), self.version)
    }
}

/// What a device would be used with: the answer when nothing is missing.
///
/// ```
/// match swiglu_cuda::preflight(0) {
///     Ok(found) => println!("{} through {}", found.gpu.name, found.driver),
///     Err(reason) => println!("{reason}"),
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preflight {
    /// The device.
    pub gpu: GpuInfo,
    /// The driver library, `libcuda`.
    pub driver: Library,
    /// The run-time compiler.
    pub nvrtc: Library,
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; driver {}; NVRTC {}", self.gpu, self.driver, self.nvrtc)
    }
}

/// Lists every visible GPU, those too old to be used included. Needs the driver, not NVRTC.
///
/// The list is never empty: where the driver sees no device the answer is [`Unavailable::NoDevice`].
///
/// # Errors
///
/// Any `Driver..` variant of [`Unavailable`], or [`Unavailable::NoDevice`].
///
/// ```
/// match swiglu_cuda::probe() {
///     Ok(gpus) => gpus.iter().for_each(|gpu| println!("{gpu}")),
///     Err(reason) => println!("no GPU: {reason}"),
/// }
/// ```
pub fn probe() -> Result<Vec<GpuInfo>, Unavailable> {
    Search::system().probe()
}

/// Says whether the GPU numbered `ordinal` can be used, and with which libraries; or what is missing.
///
/// # Errors
///
/// Any variant of [`Unavailable`]: the first thing found missing, in the order driver, device, NVRTC.
///
/// ```
/// use swiglu_cuda::Unavailable;
///
/// match swiglu_cuda::preflight(0) {
///     Ok(found) => println!("{found}"),
///     Err(Unavailable::NvrtcMissing { tried }) => println!("there is a GPU; install NVRTC (not in {tried:?})"),
///     Err(reason) => println!("{reason}"),
/// }
/// ```
pub fn preflight(ordinal: usize) -> Result<Preflight, Unavailable> {
    Search::system().preflight(ordinal)
}

impl Search {
    /// [`probe`](crate::probe) with the libraries of this search.
    ///
    /// # Errors
    ///
    /// Those of [`probe`](crate::probe).
    ///
    /// ```
    /// use swiglu_cuda::Search;
    ///
    /// assert_eq!(Search::system().probe().is_ok(), swiglu_cuda::probe().is_ok());
    /// ```
    pub fn probe(&self) -> Result<Vec<GpuInfo>, Unavailable> {
        let (driver, _) = start(self)?;
        (0..count(&driver)?).map(|ordinal| driver.gpu(ordinal)).collect()
    }

    /// [`preflight`](crate::preflight) with the libraries of this search.
    ///
    /// # Errors
    ///
    /// Those of [`preflight`](crate::preflight).
    ///
    /// ```
    /// use swiglu_cuda::Search;
    ///
    /// assert_eq!(Search::system().preflight(0).is_ok(), swiglu_cuda::preflight(0).is_ok());
    /// ```
    pub fn preflight(&self, ordinal: usize) -> Result<Preflight, Unavailable> {
        let (driver, driver_file) = start(self)?;
        let gpu = usable_gpu(&driver, ordinal)?;
        let nvrtc = usable_nvrtc(self, gpu.compute_capability)?;
        Ok(Preflight { gpu, driver: driver_file, nvrtc })
    }
}

/// Opens the driver and initialises it. The version comes first: it can be asked of a driver too old to start.
fn start(search: &Search) -> Result<(Driver, Library), Unavailable> {
    let driver = Driver::open(search)?;
    let version = driver.version()?;
    if version < OLDEST_DRIVER {
        return Err(Unavailable::DriverTooOld { have: version, need: OLDEST_DRIVER });
    }
    driver.initialise()?;
    let path = driver.path().to_path_buf();
    Ok((driver, Library { path, version }))
}

/// Drivers answer "no device" in two ways: code 100, and a count of zero.
fn count(driver: &Driver) -> Result<usize, Unavailable> {
    match driver.device_count()? {
        0 => Err(Unavailable::no_device()),
        present => Ok(present),
    }
}

fn usable_gpu(driver: &Driver, ordinal: usize) -> Result<GpuInfo, Unavailable> {
    let present = count(driver)?;
    if ordinal >= present {
        return Err(Unavailable::UnknownDevice { asked: ordinal, present });
    }
    let gpu = driver.gpu(ordinal)?;
    if gpu.compute_capability < OLDEST_GPU {
        return Err(Unavailable::ComputeCapability { have: gpu.compute_capability, need: OLDEST_GPU });
    }
    Ok(gpu)
}

fn usable_nvrtc(search: &Search, gpu: ComputeCapability) -> Result<Library, Unavailable> {
    let compiler = Compiler::open(search)?;
    compiler.architecture(gpu)?;
    Ok(compiler.library())
}

#[cfg(test)]
mod tests {
    use super::ComputeCapability;

    fn capability(major: u32, minor: u32) -> ComputeCapability {
        ComputeCapability { major, minor }
    }

    #[test]
    fn code_runs_on_its_own_and_later_minor_versions_only() {
        assert!(capability(8, 6).runs_code_for(capability(8, 6)));
        assert!(capability(8, 9).runs_code_for(capability(8, 0)));
        assert!(!capability(8, 0).runs_code_for(capability(8, 6)));
        assert!(!capability(9, 0).runs_code_for(capability(8, 0)));
        assert!(!capability(7, 5).runs_code_for(capability(9, 0)));
    }
}
