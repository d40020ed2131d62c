//! Where the system keeps the CUDA libraries. Names and folders only: nothing is opened here.
//!
//! A bare name is left to the system's loader. It comes before the folders, so that what the administrator
//! configured wins; the folders serve systems whose loader was not told of them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// `libcuda.so.1` is the driver's run-time name; `libcuda.so` may be the toolkit's link-time stub, so it is second.
const DRIVER_NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// Newest first: a newer NVRTC knows more devices. What an old device needs is checked once it is open.
const NVRTC_NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

const NVRTC_NAMES_WINDOWS: [&str; 2] = ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];

/// Newest first, with the major version of CUDA that each is of.
const CUBLAS_NAMES: [(u32, &str); 2] = [(13, "libcublas.so.13"), (12, "libcublas.so.12")];

const CUBLAS_NAMES_WINDOWS: [(u32, &str); 2] = [(13, "cublas64_13.dll"), (12, "cublas64_12.dll")];

/// The driver's candidates, in the order in which they are tried.
pub(crate) fn driver() -> Vec<PathBuf> {
    if cfg!(windows) {
        return vec![PathBuf::from("nvcuda.dll")];
    }
    let folders = [
        PathBuf::from("/usr/lib/wsl/lib"),
        PathBuf::from(format!("/usr/lib/{}-linux-gnu", env::consts::ARCH)),
        PathBuf::from("/usr/lib64"),
        PathBuf::from("/usr/local/nvidia/lib64"),
        PathBuf::from("/run/opengl-driver/lib"),
    ];
    bare(&DRIVER_NAMES).chain(inside(&folders, &DRIVER_NAMES)).collect()
}

/// What cudarc asks the system's loader for, in its order; the many other names on its list are no driver's. A library
/// that is already open is found by its run-time name, so one that `driver` found in a folder is found here too.
pub(crate) fn cudarc_driver() -> Vec<PathBuf> {
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };
    bare(names).collect()
}

/// NVRTC's candidates, in the order in which they are tried: the one the user named first.
pub(crate) fn nvrtc() -> Vec<PathBuf> {
    let names = if cfg!(windows) { NVRTC_NAMES_WINDOWS.as_slice() } else { NVRTC_NAMES.as_slice() };
    named("SWIGLU_NVRTC").chain(bare(names)).chain(inside(&toolkits(), names)).collect()
}

/// cuBLAS's candidates on a driver that supports this major version of CUDA, in the order in which they are tried: the
/// one the user named first.
pub(crate) fn cublas(driver: u32) -> Vec<PathBuf> {
    let names = cublas_names(driver);
    // Of whichever version, so last.
    let link: &[&str] = if cfg!(windows) { &[] } else { &["libcublas.so"] };
    named("SWIGLU_CUBLAS").chain(bare(&names)).chain(inside(&toolkits(), &names)).chain(bare(link)).collect()
}

/// A cuBLAS that is newer than the driver can be opened, but does not work.
fn cublas_names(driver: u32) -> Vec<&'static str> {
    let names = if cfg!(windows) { CUBLAS_NAMES_WINDOWS } else { CUBLAS_NAMES };
    names.into_iter().filter(|(major, _)| *major <= driver).map(|(_, name)| name).collect()
}

/// The path in an environment variable, where it is set.
fn named(variable: &str) -> impl Iterator<Item = PathBuf> + use<> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from).into_iter()
}

fn bare(names: &[&str]) -> impl Iterator<Item = PathBuf> {
    names.iter().map(PathBuf::from)
}

fn inside(folders: &[PathBuf], names: &[&str]) -> impl Iterator<Item = PathBuf> {
    folders.iter().flat_map(move |folder| names.iter().map(move |name| folder.join(name)))
}

/// The library folders of the toolkits of this system.
fn toolkits() -> Vec<PathBuf> {
    if cfg!(windows) { toolkits_windows() } else { toolkits_under(Path::new("/usr/local")) }
}

/// The library folders of the toolkits under `root`: `cuda`, which an administrator points at one of them, and then
/// `cuda-12.8` and the like from the newest down.
fn toolkits_under(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name == "cuda" || name.starts_with("cuda-"))
        .collect();
    names.sort_by_key(|name| (name != "cuda", std::cmp::Reverse(toolkit_version(name))));
    names.iter().map(|name| root.join(name).join("lib64")).collect()
}

/// `cuda-12.8` as `[12, 8]`: as text, 12.10 would come before 12.8.
fn toolkit_version(name: &str) -> Vec<u32> {
    let version = name.strip_prefix("cuda-").unwrap_or_default();
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// The installer sets `CUDA_PATH`. CUDA 13 moved the libraries from `bin` to `bin\x64`.
fn toolkits_windows() -> Vec<PathBuf> {
    let Some(root) = env::var_os("CUDA_PATH").map(PathBuf::from) else { return Vec::new() };
    vec![root.join("bin").join("x64"), root.join("bin")]
}

#[cfg(test)]
mod tests {
    use super::{cublas, cublas_names, driver, toolkit_version, toolkits_under};
    use std::path::Path;

    #[test]
    fn toolkit_versions_are_numbers() {
        assert!(toolkit_version("cuda-12.10") > toolkit_version("cuda-12.8"));
        assert!(toolkit_version("cuda-13") > toolkit_version("cuda-12.8"));
        assert_eq!(toolkit_version("cuda-old"), [0]);
    }

    #[test]
    fn a_missing_root_has_no_toolkits() {
        assert!(toolkits_under(Path::new("/no-such-folder")).is_empty());
    }

    #[test]
    fn every_candidate_is_a_bare_name_or_an_absolute_path() {
        for path in driver().into_iter().chain(cublas(13)) {
            assert!(path.is_absolute() || path.file_name() == Some(path.as_os_str()), "{}", path.display());
        }
    }

    #[test]
    fn a_cublas_newer_than_the_driver_is_not_tried() {
        let [newest, older] = [cublas_names(13), cublas_names(12)];
        assert!(newest.len() == 2 && newest[1..] == older, "{newest:?} and {older:?}");
        assert_eq!(cublas_names(14), newest);
        assert!(cublas_names(11).is_empty());
    }
}
