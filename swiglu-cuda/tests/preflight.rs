//! The preflight against stub libraries, one for each thing that can be wrong, and once against this machine.
//!
//! The stubs are compiled here. Without a C compiler the tests that need one say so and check nothing.

mod common;

use common::{Stubs, note};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};
use swiglu_cuda::{ComputeCapability, CudaVersion, Search, Unavailable};

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn capability(major: u32, minor: u32) -> ComputeCapability {
    ComputeCapability { major, minor }
}

/// What the driver search alone comes to.
fn probe_error(driver: PathBuf) -> Unavailable {
    common::search(&[driver], &[]).probe().expect_err("the stub driver must not pass")
}

#[test]
fn a_missing_driver_names_every_place_tried() {
    let places =
        [PathBuf::from("/no-such-folder/libcuda.so.1"), PathBuf::from("libswiglu-no-such-driver.so")];
    let error = common::search(&places, &[]).preflight(0).unwrap_err();
    assert!(matches!(&error, Unavailable::DriverMissing { tried } if tried.len() == 2), "{error:?}");
    for place in &places {
        assert!(error.to_string().contains(&text(place)), "{error}");
    }
    assert!(error.to_string().contains("install the NVIDIA driver"), "{error}");
}

#[test]
fn paths_that_depend_on_the_working_directory_are_not_opened() {
    for place in ["", ".", "..", "libs/libcuda.so", "./libcuda.so", "libcuda.so/"] {
        let error = probe_error(PathBuf::from(place));
        assert!(
            matches!(&error, Unavailable::DriverMissing { tried } if tried.len() == 1),
            "{place}: {error:?}"
        );
    }
    let error = probe_error(PathBuf::from("./libcuda.so"));
    assert!(error.to_string().contains("./libcuda.so (not an absolute path"), "{error}");
}

#[test]
fn a_path_with_a_nul_is_an_error_value() {
    let error = probe_error(PathBuf::from("/lib\0cuda.so"));
    assert!(matches!(&error, Unavailable::DriverMissing { .. }), "{error:?}");
}

#[test]
fn a_driver_that_is_no_library_says_why_it_was_not_opened() {
    let folder = common::Scratch::new("garbage");
    for (name, bytes) in [("empty.so", &b""[..]), ("text.so", &b"this is no shared library"[..])] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("the scratch folder takes files");
        let error = probe_error(path.clone());
        let Unavailable::DriverMissing { tried } = &error else { panic!("{error:?}") };
        assert!(tried.len() == 1 && tried[0].starts_with(&format!("{} (", text(&path))), "{tried:?}");
    }
}

#[test]
fn a_driver_without_functions_is_broken() {
    let Some(stubs) = Stubs::new("empty-driver") else { return };
    let path = stubs.driver(&["EMPTY"]);
    assert_eq!(probe_error(path.clone()), Unavailable::DriverBroken { path, symbol: "cuInit" });
}

#[test]
fn a_driver_without_one_function_names_it() {
    let Some(stubs) = Stubs::new("partial-driver") else { return };
    let path = stubs.driver(&["WITHOUT_MEMORY"]);
    let error = probe_error(path.clone());
    assert_eq!(error, Unavailable::DriverBroken { path: path.clone(), symbol: "cuDeviceTotalMem_v2" });
    assert!(
        error.to_string().contains("cuDeviceTotalMem_v2") && error.to_string().contains(&text(&path)),
        "{error}"
    );
}

#[test]
fn the_first_driver_that_opens_is_the_one_judged() {
    let Some(stubs) = Stubs::new("driver-order") else { return };
    let places = ["/no-such-folder/libcuda.so.1".into(), stubs.driver(&["EMPTY"]), stubs.driver(&[])];
    let error = common::search(&places, &[]).probe().unwrap_err();
    assert!(matches!(&error, Unavailable::DriverBroken { path, .. } if *path == places[1]), "{error:?}");
}

#[test]
fn an_old_driver_says_what_is_needed() {
    let Some(stubs) = Stubs::new("old-driver") else { return };
    let error = probe_error(stubs.driver(&["VERSION=11020"]));
    let (have, need) = (CudaVersion { major: 11, minor: 2 }, CudaVersion { major: 12, minor: 0 });
    assert_eq!(error, Unavailable::DriverTooOld { have, need });
}

#[test]
fn a_driver_of_the_needed_version_passes() {
    let Some(stubs) = Stubs::new("new-enough-driver") else { return };
    assert!(common::search(&[stubs.driver(&["VERSION=12000"])], &[]).probe().is_ok());
}

#[test]
fn a_driver_that_fails_gives_the_call_the_code_and_advice() {
    let Some(stubs) = Stubs::new("failing-driver") else { return };
    let error = probe_error(stubs.driver(&["INIT_CODE=803"]));
    assert_eq!(error, Unavailable::DriverFailed { call: "cuInit", code: 803 });
    assert!(error.to_string().contains("803") && error.to_string().contains("reboot"), "{error}");
    let error = probe_error(stubs.driver(&["VERSION_CODE=34"]));
    assert_eq!(error, Unavailable::DriverFailed { call: "cuDriverGetVersion", code: 34 });
    assert!(error.to_string().contains("stub"), "{error}");
}

#[test]
fn no_device_is_a_code_or_a_count() {
    let Some(stubs) = Stubs::new("no-device") else { return };
    let visible_devices = env::var("CUDA_VISIBLE_DEVICES").ok();
    for setting in ["INIT_CODE=100", "COUNT=0", "COUNT=-1"] {
        let search = common::search(&[stubs.driver(&[setting])], &[]);
        let expected = Unavailable::NoDevice { visible_devices: visible_devices.clone() };
        assert_eq!(search.probe(), Err(expected.clone()), "{setting}");
        assert_eq!(search.preflight(0), Err(expected.clone()), "{setting}");
        let blamed = expected.to_string().contains("CUDA_VISIBLE_DEVICES");
        assert_eq!(blamed, visible_devices.is_some(), "{expected}");
    }
}

/// The environment of a running test cannot be changed safely, so the test above runs again in a process of its own.
#[test]
fn no_device_says_when_the_environment_may_hide_it() {
    let this = env::current_exe().expect("a test has a path");
    let mut again = Command::new(this);
    again.args(["--exact", "no_device_is_a_code_or_a_count"]).env("CUDA_VISIBLE_DEVICES", "");
    let output = again.output().expect("this test binary runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}

#[test]
fn every_device_is_listed() {
    let Some(stubs) = Stubs::new("three-devices") else { return };
    let gpus = common::search(&[stubs.driver(&["COUNT=3", "MAJOR=6", "MINOR=1"])], &[]).probe().unwrap();
    assert_eq!(gpus.iter().map(|gpu| gpu.ordinal).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(gpus.iter().map(|gpu| gpu.memory_bytes >> 33).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(gpus.iter().all(|gpu| gpu.name == "Stub GPU" && gpu.compute_capability == capability(6, 1)));
}

#[test]
fn a_name_that_does_not_end_is_cut() {
    let Some(stubs) = Stubs::new("endless-name") else { return };
    let gpus = common::search(&[stubs.driver(&["ENDLESS_NAME"])], &[]).probe().unwrap();
    assert_eq!(gpus[0].name, "x".repeat(256));
}

#[test]
fn an_opened_driver_stays_loaded() {
    let Some(stubs) = Stubs::new("stays-loaded") else { return };
    let search = common::search(&[stubs.driver(&["COUNT=initialised"])], &[]);
    // The stub counts its initialisations, and would start anew were it closed in between.
    let counts: Vec<usize> = (0..3).map(|_| search.probe().unwrap().len()).collect();
    assert_eq!(counts, [1, 2, 3]);
}

#[test]
fn an_ordinal_too_high_is_unknown() {
    let Some(stubs) = Stubs::new("unknown-device") else { return };
    let search = common::search(&[stubs.driver(&["COUNT=2"])], &[]);
    for asked in [2, usize::MAX] {
        assert_eq!(search.preflight(asked), Err(Unavailable::UnknownDevice { asked, present: 2 }));
    }
}

#[test]
fn an_old_gpu_is_refused() {
    let Some(stubs) = Stubs::new("old-gpu") else { return };
    let search = common::search(&[stubs.driver(&["MAJOR=6", "MINOR=1"])], &[stubs.nvrtc(&[])]);
    let (have, need) = (capability(6, 1), capability(7, 0));
    assert_eq!(search.preflight(0), Err(Unavailable::ComputeCapability { have, need }));
}

#[test]
fn a_missing_nvrtc_names_every_place_tried_and_the_variable() {
    let Some(stubs) = Stubs::new("no-nvrtc") else { return };
    let place = PathBuf::from("/no-such-folder/libnvrtc.so.12");
    let error = common::search(&[stubs.driver(&[])], std::slice::from_ref(&place)).preflight(0).unwrap_err();
    assert!(matches!(&error, Unavailable::NvrtcMissing { tried } if tried.len() == 1), "{error:?}");
    assert!(
        error.to_string().contains(&text(&place)) && error.to_string().contains("SWIGLU_NVRTC"),
        "{error}"
    );
}

#[test]
fn an_nvrtc_without_one_function_names_it() {
    let Some(stubs) = Stubs::new("broken-nvrtc") else { return };
    let driver = stubs.driver(&[]);
    let path = stubs.nvrtc(&["WITHOUT_CUBIN"]);
    let error = common::search(std::slice::from_ref(&driver), std::slice::from_ref(&path)).preflight(0);
    assert_eq!(error, Err(Unavailable::NvrtcBroken { path, symbol: "nvrtcGetCUBIN" }));
    let error = common::search(std::slice::from_ref(&driver), std::slice::from_ref(&driver)).preflight(0);
    assert_eq!(error, Err(Unavailable::NvrtcBroken { path: driver, symbol: "nvrtcVersion" }));
}

#[test]
fn an_nvrtc_that_fails_gives_the_call_and_the_code() {
    let Some(stubs) = Stubs::new("failing-nvrtc") else { return };
    let search = common::search(&[stubs.driver(&[])], &[stubs.nvrtc(&["VERSION_CODE=7"])]);
    assert_eq!(search.preflight(0), Err(Unavailable::NvrtcFailed { call: "nvrtcVersion", code: 7 }));
}

#[test]
fn an_nvrtc_that_does_not_know_the_gpu_says_what_it_knows() {
    let Some(stubs) = Stubs::new("nvrtc-architecture") else { return };
    let path = stubs.nvrtc(&[]);
    let search = common::search(&[stubs.driver(&["MAJOR=7"])], std::slice::from_ref(&path));
    let error = search.preflight(0).unwrap_err();
    let supported = vec![capability(7, 5), capability(8, 0), capability(9, 0), capability(12, 0)];
    let version = CudaVersion { major: 12, minor: 9 };
    assert_eq!(error, Unavailable::NvrtcArchitecture { path, version, have: capability(7, 0), supported });
    assert!(error.to_string().contains("7.0, only for 7.5, 8.0, 9.0, 12.0"), "{error}");
}

#[test]
fn a_usable_gpu_is_described() {
    let Some(stubs) = Stubs::new("usable") else { return };
    let (driver, nvrtc) = (stubs.driver(&["COUNT=2", "VERSION=13010"]), stubs.nvrtc(&[]));
    let found =
        common::search(std::slice::from_ref(&driver), std::slice::from_ref(&nvrtc)).preflight(1).unwrap();
    assert_eq!((found.gpu.ordinal, found.gpu.name.as_str()), (1, "Stub GPU"));
    assert_eq!((found.gpu.compute_capability, found.gpu.memory_bytes), (capability(9, 0), 2 << 33));
    assert_eq!((found.driver.path, found.driver.version), (driver, CudaVersion { major: 13, minor: 1 }));
    assert_eq!((found.nvrtc.path, found.nvrtc.version), (nvrtc, CudaVersion { major: 12, minor: 9 }));
}

#[cfg(target_os = "linux")]
#[test]
fn a_link_is_reported_as_the_file_behind_it() {
    let Some(stubs) = Stubs::new("link") else { return };
    let file = stubs.driver(&[]);
    let link = file.with_file_name("libcuda.so.1");
    std::os::unix::fs::symlink(&file, &link).expect("the scratch folder takes links");
    let found = common::search(&[link], &[stubs.nvrtc(&[])]).preflight(0).unwrap();
    assert_eq!(found.driver.path, file);
}

/// What the system itself answers. With `SWIGLU_REQUIRE_GPU=1` that answer must be a usable GPU.
#[test]
fn this_machine_answers() {
    let (gpus, found) = (swiglu_cuda::probe(), swiglu_cuda::preflight(0));
    match (gpus, found) {
        (Ok(gpus), Ok(found)) => {
            note(&format!("this machine: {found}"));
            assert_eq!(gpus[0], found.gpu);
            assert!(!found.gpu.name.is_empty() && found.gpu.memory_bytes > 0);
        }
        (_, Err(reason)) => {
            note(&format!("no usable GPU on this machine: {reason}"));
            assert!(env::var_os("SWIGLU_REQUIRE_GPU").is_none_or(|value| value != "1"), "{reason}");
        }
        (Err(reason), Ok(found)) => panic!("probe failed where preflight found {found}: {reason}"),
    }
}

#[test]
fn the_named_nvrtc_comes_first() {
    let named = env::var_os("SWIGLU_NVRTC").filter(|value| !value.is_empty());
    if let Some(path) = named {
        assert_eq!(Search::system().nvrtc()[0], Path::new(&path));
        return;
    }
    let mut again = Command::new(env::current_exe().expect("a test has a path"));
    again.args(["--exact", "the_named_nvrtc_comes_first"]).env("SWIGLU_NVRTC", "/no-such-folder/libnvrtc.so");
    let output = again.output().expect("this test binary runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
}
