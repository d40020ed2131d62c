//! Opens the CUDA libraries at run time and finds functions in them. `driver.rs`, `nvrtc.rs` and `cublas.rs` call
//! those.
//!
//! Three facts carry the soundness of all four files, and the SAFETY comments name them:
//! - *Provenance.* A library comes from a [`Search`], which is built only from the fixed names of CUDA's own
//!   libraries or by the unsafe [`Search::from_paths`].
//! - *Types.* A function is stored under the type that cuda.h, nvrtc.h or cublas_api.h gives to its name, in a table
//!   made by [`functions!`].
//! - *Lifetime.* An opened library is never closed, so an address in it stays valid.

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use crate::CudaVersion;
use crate::search;

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
/// cuBLAS is not part of it: only `Route::Composed` and [`Cuda::with_cublas`](crate::Cuda::with_cublas) need that
/// library, and look for it when they are first used. They do so at the path in `SWIGLU_CUBLAS`, then by the names
/// `libcublas.so.13` and `libcublas.so.12`, in the toolkits, and by the name `libcublas.so`.
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
    cublas: Vec<PathBuf>,
}

impl Search {
    /// The usual places of this system.
    ///
    /// ```
    /// let search = swiglu_cuda::Search::system();
    /// assert!(!search.driver().is_empty() && !search.nvrtc().is_empty());
    /// ```
    pub fn system() -> Self {
        Self { driver: search::driver(), nvrtc: search::nvrtc(), cublas: Vec::new() }
    }

    /// Where cudarc looks for the driver.
    pub(crate) fn cudarc() -> Self {
        Self { driver: search::cudarc_driver(), nvrtc: Vec::new(), cublas: Vec::new() }
    }

    /// Where cuBLAS is looked for, on a driver that supports this version of CUDA.
    pub(crate) fn cublas(driver: CudaVersion) -> Self {
        Self { driver: Vec::new(), nvrtc: Vec::new(), cublas: search::cublas(driver.major) }
    }

    /// These places for cuBLAS and no others.
    ///
    /// # Safety
    /// As [`Search::from_paths`], with cuBLAS in place of NVRTC.
    #[cfg(test)]
    pub(crate) unsafe fn cublas_at(cublas: Vec<PathBuf>) -> Self {
        Self { driver: Vec::new(), nvrtc: Vec::new(), cublas }
    }

    /// These places and no others.
    ///
    /// # Safety
    ///
    /// Opening a library runs code in it, and its functions are called by the types that CUDA gives them. Every file
    /// that these candidates lead to must be:
    /// - not a shared library at all (it is refused), or
    /// - CUDA's driver library or NVRTC respectively, or one that behaves like it: any function of theirs that it
    ///   has takes the same arguments, writes only where, and as much as, theirs would, and returns a pointer only to
    ///   what theirs would.
    ///
    /// ```
    /// use swiglu_cuda::{Search, Unavailable};
    ///
    /// // SAFETY: there is no candidate, so nothing is opened.
    /// let nowhere = unsafe { Search::from_paths(vec![], vec![]) };
    /// assert_eq!(nowhere.probe(), Err(Unavailable::DriverMissing { tried: vec![] }));
    /// ```
    pub unsafe fn from_paths(driver: Vec<PathBuf>, nvrtc: Vec<PathBuf>) -> Self {
        Self { driver, nvrtc, cublas: Vec::new() }
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
    ($table:ident, $abi:literal: $($field:ident = $symbol:literal ($($argument:ty),*) -> $returned:ty;)*) => {
        struct $table {
            $($field: unsafe extern $abi fn($($argument),*) -> $returned,)*
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
pub(crate) use functions;

/// No number that CUDA reports is negative; a library that says otherwise gets the value that fits no requirement.
pub(crate) fn unsigned(value: c_int) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

/// A library that was opened, and is never closed: libcuda starts threads and registers exit handlers.
pub(crate) struct Opened {
    handle: ManuallyDrop<system::Handle>,
    asked: PathBuf,
}

impl Opened {
    /// The driver library; or every place that was tried, with the reason where there is one.
    pub(crate) fn driver(search: &Search) -> Result<Self, Vec<String>> {
        Self::first(&search.driver)
    }

    /// NVRTC; or every place that was tried, with the reason where there is one.
    pub(crate) fn nvrtc(search: &Search) -> Result<Self, Vec<String>> {
        Self::first(&search.nvrtc)
    }

    /// cuBLAS; or every place that was tried, with the reason where there is one.
    pub(crate) fn cublas(search: &Search) -> Result<Self, Vec<String>> {
        Self::first(&search.cublas)
    }

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
        let handle = unsafe { system::open(asked) }?;
        Ok(Self { handle: ManuallyDrop::new(handle), asked: asked.to_path_buf() })
    }

    /// # Safety
    ///
    /// `F` must be the function pointer type of `symbol`.
    pub(crate) unsafe fn function<F: Copy>(&self, symbol: &str) -> Option<F> {
        // SAFETY: the caller's promise on `F` is the one asked for.
        unsafe { system::function(&self.handle, symbol) }
    }

    /// Where `symbol` is in memory, to know that it exists; not for calling.
    pub(crate) fn address(&self, symbol: &str) -> Option<usize> {
        // SAFETY: a pointer to a function may be held at any function pointer type as long as it is not called.
        let function = unsafe { self.function::<unsafe extern "C" fn()>(symbol) }?;
        Some(function as usize)
    }

    /// The file that `symbol` was found in, where the system can say; else what the library was asked for by.
    pub(crate) fn file_with(&self, symbol: &str) -> PathBuf {
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
mod system {
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
mod system {
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
