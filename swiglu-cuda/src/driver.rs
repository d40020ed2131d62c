//! The calls: opens libcuda and NVRTC at run time, resolves their functions and calls them. The only file of this
//! crate with unsafe code.
//!
//! Three facts carry the soundness, and the SAFETY comments name them:
//! - *Provenance.* A library comes from a [`Search`], which is built only from the fixed names of CUDA's own
//!   libraries or by the unsafe [`Search::from_paths`].
//! - *Types.* A function is stored under the type that cuda.h or nvrtc.h gives to its name, in the tables below.
//! - *Lifetime.* An opened library is never closed, so an address in it stays valid.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use crate::{ComputeCapability, CudaVersion, GpuInfo, Unavailable, search};

/// Where the driver library and NVRTC are looked for: two lists of candidates, tried in order.
///
/// The first candidate that can be opened is the one that is judged, even if a later one would have been better.
/// A candidate is an absolute path, or a bare file name for the system's loader to find; a relative path is not
/// opened.
///
/// [`Search::system`] is what [`probe`](crate::probe) and [`preflight`](crate::preflight) use. On Linux it looks
/// - for the driver, by the names `libcuda.so.1` and `libcuda.so`, then under `/usr/lib/wsl/lib`, the multi-arch
///   folder of `/usr/lib`, `/usr/lib64`, `/usr/local/nvidia/lib64` and `/run/opengl-driver/lib`;
/// - for NVRTC, at the path in the environment variable `SWIGLU_NVRTC`, then by the names `libnvrtc.so.13`,
///   `libnvrtc.so.12` and `libnvrtc.so`, then in the toolkits under `/usr/local/cuda*`. The library of a Python wheel
///   is found through `SWIGLU_NVRTC` alone. If that path cannot be opened the others are still tried:
///   [`Preflight::nvrtc`](crate::Preflight::nvrtc) says which one was.
///
/// ```
/// use swiglu_cuda::Search;
///
/// for place in Search::system().driver() {
///     println!("{}", place.display());
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    driver: Vec<PathBuf>,
    nvrtc: Vec<PathBuf>,
}

impl Search {
    /// The usual places of this system.
    ///
    /// ```
    /// let search = swiglu_cuda::Search::system();
    /// assert!(!search.driver().is_empty() && !search.nvrtc().is_empty());
    /// ```
    pub fn system() -> Self {
        Self { driver: search::driver(), nvrtc: search::nvrtc() }
    }

    /// These places and no others.
    ///
    /// # Safety
    ///
    /// Opening a library runs code in it, and its functions are called by the types that CUDA gives them. Every file
    /// that these candidates lead to must be:
    /// - not a shared library at all (it is refused), or
    /// - CUDA's driver library or NVRTC respectively, or one that behaves like it: any function of theirs that it
    ///   has takes the same arguments and writes only where, and as much as, theirs would.
    ///
    /// ```
    /// use swiglu_cuda::{Search, Unavailable};
    ///
    /// // SAFETY: there is no candidate, so nothing is opened.
    /// let nowhere = unsafe { Search::from_paths(vec![], vec![]) };
    /// assert_eq!(nowhere.probe(), Err(Unavailable::DriverMissing { tried: vec![] }));
    /// ```
    pub unsafe fn from_paths(driver: Vec<PathBuf>, nvrtc: Vec<PathBuf>) -> Self {
        Self { driver, nvrtc }
    }

    /// The candidates for the driver library, in the order in which they are tried.
    ///
    /// ```
    /// println!("{:?}", swiglu_cuda::Search::system().driver());
    /// ```
    pub fn driver(&self) -> &[PathBuf] {
        &self.driver
    }

    /// The candidates for NVRTC, in the order in which they are tried.
    ///
    /// ```
    /// println!("{:?}", swiglu_cuda::Search::system().nvrtc());
    /// ```
    pub fn nvrtc(&self) -> &[PathBuf] {
        &self.nvrtc
    }
}

/// Declares a table of functions, all resolved before any is called. The types are those of the CUDA header.
macro_rules! functions {
    ($table:ident, $abi:literal: $($field:ident = $symbol:literal ($($argument:ty),*);)*) => {
        struct $table {
            $($field: unsafe extern $abi fn($($argument),*) -> c_int,)*
        }

        impl $table {
            /// Or the name of the first function that the library lacks.
            fn resolve(library: &Opened) -> Result<Self, &'static str> {
                $(
                    // SAFETY: `$field` has the type that the header gives to `$symbol`.
                    let $field = unsafe { library.function($symbol) }.ok_or($symbol)?;
                )*
                Ok(Self { $($field,)* })
            }
        }
    };
}

// CUDAAPI is stdcall on 32-bit Windows and the C convention elsewhere, which is what "system" means.
functions! { DriverFunctions, "system":
    init = "cuInit" (c_uint);
    version = "cuDriverGetVersion" (*mut c_int);
    device_count = "cuDeviceGetCount" (*mut c_int);
    device = "cuDeviceGet" (*mut c_int, c_int);
    name = "cuDeviceGetName" (*mut c_char, c_int, c_int);
    attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    memory = "cuDeviceTotalMem_v2" (*mut usize, c_int);
}

functions! { NvrtcFunctions, "C":
    version = "nvrtcVersion" (*mut c_int, *mut c_int);
    architecture_count = "nvrtcGetNumSupportedArchs" (*mut c_int);
    architectures = "nvrtcGetSupportedArchs" (*mut c_int);
}

/// What compiling a kernel takes. The preflight does not call these, but without one of them NVRTC is of no use.
const NVRTC_COMPILER: [&str; 5] =
    ["nvrtcCreateProgram", "nvrtcCompileProgram", "nvrtcGetCUBINSize", "nvrtcGetCUBIN", "nvrtcGetProgramLog"];

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
        let library = Opened::first(&search.driver).map_err(|tried| Unavailable::DriverMissing { tried })?;
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
        // SAFETY: type and lifetime as in the file head; the pointer is to one live c_int.
        let code = unsafe { (self.functions.version)(&raw mut version) };
        driver_result("cuDriverGetVersion", code)?;
        // 12080 is 12.8.
        Ok(CudaVersion { major: unsigned(version / 1000), minor: unsigned(version % 1000 / 10) })
    }

    pub(crate) fn initialise(&self) -> Result<(), Unavailable> {
        // SAFETY: type and lifetime as in the file head; no pointer is passed, and 0 is the only flag there is.
        let code = unsafe { (self.functions.init)(0) };
        driver_result("cuInit", code)
    }

    pub(crate) fn device_count(&self) -> Result<usize, Unavailable> {
        let mut count = 0;
        // SAFETY: type and lifetime as in the file head; the pointer is to one live c_int.
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
        // SAFETY: type and lifetime as in the file head; the pointer is to one live c_int (CUdevice is an int).
        let code = unsafe { (self.functions.device)(&raw mut device, ordinal) };
        driver_result("cuDeviceGet", code).map(|()| device)
    }

    fn name(&self, device: c_int) -> Result<String, Unavailable> {
        let mut buffer = [0u8; 256];
        let room = buffer.len() as c_int;
        // SAFETY: type and lifetime as in the file head; `room` is the length of the buffer behind the pointer.
        let code = unsafe { (self.functions.name)(buffer.as_mut_ptr().cast(), room, device) };
        driver_result("cuDeviceGetName", code)?;
        let name = CStr::from_bytes_until_nul(&buffer).map_or(buffer.as_slice(), CStr::to_bytes);
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    fn attribute(&self, device: c_int, attribute: c_int) -> Result<u32, Unavailable> {
        let mut value = 0;
        // SAFETY: type and lifetime as in the file head; the pointer is to one live c_int.
        let code = unsafe { (self.functions.attribute)(&raw mut value, attribute, device) };
        driver_result("cuDeviceGetAttribute", code).map(|()| unsigned(value))
    }

    fn memory(&self, device: c_int) -> Result<u64, Unavailable> {
        let mut bytes = 0usize;
        // SAFETY: type and lifetime as in the file head; the pointer is to one live usize, which is C's size_t.
        let code = unsafe { (self.functions.memory)(&raw mut bytes, device) };
        driver_result("cuDeviceTotalMem_v2", code).map(|()| bytes as u64)
    }
}

/// NVRTC with all of its functions found.
pub(crate) struct Nvrtc {
    functions: NvrtcFunctions,
    path: PathBuf,
}

impl Nvrtc {
    pub(crate) fn open(search: &Search) -> Result<Self, Unavailable> {
        let library = Opened::first(&search.nvrtc).map_err(|tried| Unavailable::NvrtcMissing { tried })?;
        let path = library.file_with("nvrtcVersion");
        let missing = NVRTC_COMPILER.into_iter().find(|symbol| library.address(symbol).is_none());
        match (NvrtcFunctions::resolve(&library), missing) {
            (Ok(functions), None) => Ok(Self { functions, path }),
            (Err(symbol), _) | (_, Some(symbol)) => Err(Unavailable::NvrtcBroken { path, symbol }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn version(&self) -> Result<CudaVersion, Unavailable> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: type and lifetime as in the file head; each pointer is to one live c_int.
        let code = unsafe { (self.functions.version)(&raw mut major, &raw mut minor) };
        nvrtc_result("nvrtcVersion", code)?;
        Ok(CudaVersion { major: unsigned(major), minor: unsigned(minor) })
    }

    /// The architectures it compiles for.
    pub(crate) fn architectures(&self) -> Result<Vec<ComputeCapability>, Unavailable> {
        let mut count = 0;
        // SAFETY: type and lifetime as in the file head; the pointer is to one live c_int.
        let code = unsafe { (self.functions.architecture_count)(&raw mut count) };
        nvrtc_result("nvrtcGetNumSupportedArchs", code)?;
        let mut numbers = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: type and lifetime as in the file head; it writes as many c_int as it just counted, and the vector
        // has that many.
        let code = unsafe { (self.functions.architectures)(numbers.as_mut_ptr()) };
        nvrtc_result("nvrtcGetSupportedArchs", code)?;
        // 90 is 9.0, and 121 is 12.1.
        let capability = |n: c_int| ComputeCapability { major: unsigned(n / 10), minor: unsigned(n % 10) };
        Ok(numbers.into_iter().map(capability).collect())
    }
}

/// No number that CUDA reports is negative; a library that says otherwise gets the value that fits no requirement.
fn unsigned(value: c_int) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn driver_result(call: &'static str, code: c_int) -> Result<(), Unavailable> {
    match code {
        0 => Ok(()),
        NO_DEVICE => Err(Unavailable::no_device()),
        code => Err(Unavailable::DriverFailed { call, code }),
    }
}

fn nvrtc_result(call: &'static str, code: c_int) -> Result<(), Unavailable> {
    if code == 0 { Ok(()) } else { Err(Unavailable::NvrtcFailed { call, code }) }
}

/// A library that was opened, and is never closed: libcuda starts threads and registers exit handlers.
struct Opened {
    handle: ManuallyDrop<loader::Handle>,
    asked: PathBuf,
}

impl Opened {
    /// The first of `candidates` that can be opened, or every one of them with the reason why not. Private, and
    /// called with the lists of a [`Search`] alone: that is where provenance comes from.
    fn first(candidates: &[PathBuf]) -> Result<Self, Vec<String>> {
        let mut tried = Vec::new();
        for asked in candidates {
            match Self::open(asked) {
                Ok(library) => return Ok(library),
                Err(reason) => tried.push(describe(asked, &reason)),
            }
        }
        Err(tried)
    }

    fn open(asked: &Path) -> Result<Self, String> {
        // A relative path would depend on the working directory, and an empty one means the program itself.
        if !asked.is_absolute() && asked.file_name() != Some(asked.as_os_str()) {
            return Err("not an absolute path, so not opened".to_owned());
        }
        // SAFETY: `asked` is of a `Search`, so provenance as in the file head holds.
        let handle = unsafe { loader::open(asked) }?;
        Ok(Self { handle: ManuallyDrop::new(handle), asked: asked.to_path_buf() })
    }

    /// # Safety
    ///
    /// `F` must be the function pointer type of `symbol`.
    unsafe fn function<F: Copy>(&self, symbol: &str) -> Option<F> {
        // SAFETY: the caller's promise on `F` is the one asked for.
        unsafe { loader::function(&self.handle, symbol) }
    }

    /// Where `symbol` is in memory, to know that it exists; not for calling.
    fn address(&self, symbol: &str) -> Option<usize> {
        // SAFETY: a pointer to a function may be held at any function pointer type as long as it is not called.
        let function = unsafe { self.function::<unsafe extern "C" fn()>(symbol) }?;
        Some(function as usize)
    }

    /// The file that `symbol` was found in, where the system can say; else what the library was asked for by.
    fn file_with(&self, symbol: &str) -> PathBuf {
        self.address(symbol).and_then(mapped_file).unwrap_or_else(|| self.asked.clone())
    }
}

/// The file mapped at an address, from `/proc/self/maps`; `None` on systems without it.
fn mapped_file(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| covers(line, address))?;
    // The fields before the path hold no slash.
    line.find('/').map(|start| PathBuf::from(&line[start..]))
}

/// Whether a line such as `7f00-7f40 r-xp 0 fd:00 42 /lib/libc.so.6` is of the mapping around `address`.
fn covers(line: &str, address: usize) -> bool {
    let bounds = || {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    bounds().is_some_and(|range| range.contains(&address))
}

/// A candidate as `tried` lists it: the path alone if nothing is there, else with the reason in brackets.
fn describe(asked: &Path, reason: &str) -> String {
    let asked = asked.display().to_string();
    // The loader usually begins its message with the name it was given.
    let reason = reason.strip_prefix(&asked).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(reason);
    if reason == "cannot open shared object file: No such file or directory" {
        return asked;
    }
    format!("{asked} ({reason})")
}

/// The system's loader.
#[cfg(any(unix, windows))]
mod loader {
    use std::error::Error;
    use std::path::Path;

    pub(super) type Handle = libloading::Library;

    /// # Safety
    ///
    /// Running the initialisers of the library that `path` leads to must be sound.
    pub(super) unsafe fn open(path: &Path) -> Result<Handle, String> {
        // SAFETY: the caller's promise on `path` is the one asked for.
        unsafe { open_eagerly(path) }.map_err(|error| reason(&error))
    }

    /// # Safety
    ///
    /// As [`open`].
    #[cfg(unix)]
    unsafe fn open_eagerly(path: &Path) -> Result<Handle, libloading::Error> {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
        // RTLD_NOW: a library with unresolved references fails here, and not by ending the process at a later call.
        // SAFETY: the caller's promise on `path` is the one asked for.
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(Into::into)
    }

    /// # Safety
    ///
    /// As [`open`].
    #[cfg(windows)]
    unsafe fn open_eagerly(path: &Path) -> Result<Handle, libloading::Error> {
        use libloading::os::windows::{
            LOAD_LIBRARY_SEARCH_DEFAULT_DIRS, LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR, Library,
        };
        // These folders leave out the working directory. DLL_LOAD_DIR, for what NVRTC loads from beside itself, is
        // allowed with absolute paths only.
        let beside = if path.is_absolute() { LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR } else { 0 };
        // SAFETY: the caller's promise on `path` is the one asked for.
        unsafe { Library::load_with_flags(path, LOAD_LIBRARY_SEARCH_DEFAULT_DIRS | beside) }.map(Into::into)
    }

    /// # Safety
    ///
    /// `F` must be the function pointer type of `symbol`.
    pub(super) unsafe fn function<F: Copy>(handle: &Handle, symbol: &str) -> Option<F> {
        // SAFETY: the caller promises that `F` is the type of `symbol`; `Option` of a function pointer has its size,
        // and takes in the null that a loader may answer with.
        let found = unsafe { handle.get::<Option<F>>(symbol) };
        found.ok().and_then(|function| *function)
    }

    /// libloading's own message is "dlopen failed"; what the loader said is its source.
    fn reason(error: &libloading::Error) -> String {
        error.source().map_or_else(|| error.to_string(), ToString::to_string)
    }
}

/// A system that has no loader: nothing is ever opened, and there is no handle to look up functions in.
#[cfg(not(any(unix, windows)))]
mod loader {
    use std::path::Path;

    pub(super) enum Handle {}

    /// # Safety
    ///
    /// None: unsafe for the same signature everywhere.
    pub(super) unsafe fn open(_: &Path) -> Result<Handle, String> {
        Err("this system has no shared libraries".to_owned())
    }

    /// # Safety
    ///
    /// None: unsafe for the same signature everywhere.
    pub(super) unsafe fn function<F: Copy>(handle: &Handle, _: &str) -> Option<F> {
        match *handle {}
    }
}

#[cfg(test)]
mod tests {
    use super::{covers, describe};
    use std::path::Path;

    #[test]
    fn a_mapping_holds_its_start_and_not_its_end() {
        let line = "7f00-7f40 r-xp 00000000 fd:00 42 /lib/x86_64-linux-gnu/libc.so.6";
        assert!(covers(line, 0x7f00) && covers(line, 0x7f3f));
        assert!(!covers(line, 0x7eff) && !covers(line, 0x7f40));
        assert!(!covers("", 0) && !covers("no-range", 0));
    }

    #[test]
    fn the_reason_is_given_where_it_is_more_than_absence() {
        let absent = "/lib/a.so: cannot open shared object file: No such file or directory";
        assert_eq!(describe(Path::new("/lib/a.so"), absent), "/lib/a.so");
        assert_eq!(
            describe(Path::new("/lib/a.so"), "/lib/a.so: file too short"),
            "/lib/a.so (file too short)"
        );
        let dependency = "libz.so.9: cannot open shared object file: No such file or directory";
        assert_eq!(describe(Path::new("/lib/a.so"), dependency), format!("/lib/a.so ({dependency})"));
    }
}
