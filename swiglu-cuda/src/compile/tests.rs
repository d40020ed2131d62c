//! Compiling by a stub of NVRTC, whose machine code is what it was given; and by NVRTC itself, where there is one.
//!
//! What cannot run says so on standard error. With `SWIGLU_REQUIRE_GPU=1` NVRTC must be there.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

use tempfile::TempDir;

use super::{CompileError, Compiler, Defines, FOLDER, Source, Target, cubin, key};
use crate::cache::DiskCache;
use crate::{ComputeCapability, CudaVersion, Search, Unavailable};

const DRIVER: CudaVersion = CudaVersion { major: 13, minor: 0 };

/// Its entry point is named after the header's macro and the define.
const NAMED: Source = Source {
    name: "named.cu",
    text: "#include \"outer.cuh\"\nextern \"C\" __global__ void NAME(int* out) { *out = DEFINED; }\n",
    headers: &[
        ("inner.cuh", "#define PASTE(a, b) a##b\n#define JOIN(a, b) PASTE(a, b)\n"),
        ("outer.cuh", "#include \"inner.cuh\"\n#define NAME JOIN(entry_, DEFINED)\n"),
    ],
};

const REFUSED: Source = Source { name: "refused.cu", text: "refuse this\n", headers: &[] };

fn capability(major: u32, minor: u32) -> ComputeCapability {
    ComputeCapability { major, minor }
}

fn note(line: &str) {
    // Past the test harness, which captures only the print macros. A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn skip(reason: &str) {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    note(&format!("skipped {count} of the compiler's tests: {reason}"));
}

/// `None`, and a line that says so, where there is no NVRTC.
fn nvrtc() -> Option<Compiler> {
    Compiler::open(&Search::system())
        .inspect_err(|reason| {
            assert!(env::var_os("SWIGLU_REQUIRE_GPU").is_none_or(|value| value != "1"), "{reason}");
            skip(&reason.to_string());
        })
        .ok()
}

/// A stub of NVRTC with these macros; `None`, and a line that says so, where there is no C compiler.
#[allow(unsafe_code, reason = "names the library to open")]
fn stub(settings: &[&str]) -> Option<(TempDir, Compiler)> {
    let folder = tempfile::tempdir().unwrap();
    let input = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/stubs/libnvrtc.c");
    let library = folder.path().join("libnvrtc.so");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(input);
    let Ok(output) = compile.args(settings.iter().map(|setting| format!("-D{setting}"))).output() else {
        skip("no C compiler to build the stub library");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: the stub has the functions of NVRTC with the same arguments, and writes no more than they do.
    let search = unsafe { Search::from_paths(vec![], vec![library]) };
    Some((folder, Compiler::open(&search).unwrap()))
}

fn compile(
    compiler: &Compiler,
    source: &Source,
    defines: &Defines,
) -> Result<(String, String), CompileError> {
    let target = compiler.target(capability(8, 0), DRIVER).unwrap();
    let compiled = compiler.compile(source, &target, defines)?;
    Ok((String::from_utf8_lossy(&compiled.cubin).into_owned(), compiled.log))
}

#[test]
fn nvrtc_gets_the_sources_and_the_options() {
    let Some((_folder, compiler)) = stub(&[]) else { return };
    let defines = Defines::default().with("TILE", 64).with("SHIFT", -1);
    let (cubin, log) = compile(&compiler, &NAMED, &defines).unwrap();
    let [(inner_name, inner), (outer_name, outer)] = [NAMED.headers[0], NAMED.headers[1]];
    let files =
        format!("/swiglu-cuda/named.cu\n{}\n{inner_name}\n{inner}\n{outer_name}\n{outer}\n", NAMED.text);
    let options = "-arch=sm_80\n--std=c++17\n--ftz=false\n--prec-div=true\n--prec-sqrt=true\n--fmad=true\n\
        --ptxas-options=-v\n-DTILE=64\n-DSHIFT=-1\n";
    assert_eq!(cubin, files + options);
    assert_eq!(log, "1 live\nsecond line");
}

#[test]
fn a_refused_source_gives_the_log() {
    let Some((_folder, compiler)) = stub(&[]) else { return };
    let error = compile(&compiler, &REFUSED, &Defines::default().with("TILE", 64)).unwrap_err();
    assert_eq!((error.kernel, error.call, error.code), ("refused.cu", "nvrtcCompileProgram", 6));
    assert_eq!((error.reason.as_str(), error.log.as_str()), ("STUB_COMPILATION", "1 live\nsecond line"));
    assert_eq!(error.options.last().unwrap(), "-DTILE=64");
    let message = error.to_string();
    assert!(
        message.starts_with("NVRTC could not compile refused.cu: nvrtcCompileProgram returned 6"),
        "{message}"
    );
    assert!(
        message.contains("-arch=sm_80") && message.ends_with("-DTILE=64:\n1 live\nsecond line"),
        "{message}"
    );
}

#[test]
fn a_program_is_destroyed_on_every_path() {
    // The log has the number of programs that are live while one is compiled.
    for setting in ["CUBIN_CODE=0", "CUBIN_CODE=9", "EMPTY_CUBIN"] {
        let Some((_folder, compiler)) = stub(&[setting]) else { return };
        for source in [NAMED, REFUSED, NAMED, REFUSED] {
            let log = compile(&compiler, &source, &Defines::default())
                .map_or_else(|error| error.log, |(_, log)| log);
            assert_eq!(log, "1 live\nsecond line", "{setting}");
        }
    }
}

#[test]
fn each_call_that_fails_is_named() {
    let cases = [
        ("CREATE_CODE=2", "nvrtcCreateProgram", 2, "STUB_CREATION", ""),
        ("CUBIN_CODE=9", "nvrtcGetCUBIN", 9, "a code without a name", "1 live\nsecond line"),
        ("EMPTY_CUBIN", "nvrtcGetCUBINSize", 0, "there is no machine code", "1 live\nsecond line"),
    ];
    for (setting, call, code, reason, log) in cases {
        let Some((_folder, compiler)) = stub(&[setting]) else { return };
        let error = compile(&compiler, &NAMED, &Defines::default()).unwrap_err();
        assert_eq!((error.call, error.code), (call, code));
        assert_eq!((error.reason.as_str(), error.log.as_str()), (reason, log), "{setting}");
        assert_eq!(error.to_string().ends_with("--ptxas-options=-v"), log.is_empty(), "{error}");
    }
}

#[test]
fn a_nul_is_an_error_value() {
    let Some((_folder, compiler)) = stub(&[]) else { return };
    let sources = [
        Source { name: "a\0.cu", ..NAMED },
        Source { text: "a\0", ..NAMED },
        Source { headers: &[("a\0", "")], ..NAMED },
        Source { headers: &[("a", "\0")], ..NAMED },
    ];
    for source in sources {
        let error = compile(&compiler, &source, &Defines::default()).unwrap_err();
        assert_eq!((error.call, error.code), ("nvrtcCreateProgram", 3));
    }
    let error = compile(&compiler, &NAMED, &Defines::default().with("\0", 0)).unwrap_err();
    assert_eq!((error.call, error.code), ("nvrtcCompileProgram", 5));
}

#[test]
fn the_architecture_is_the_newest_that_the_device_runs() {
    let Some((_folder, compiler)) = stub(&["ARCHITECTURES=75,80,86,87,90,120"]) else { return };
    let architecture = |major, minor| {
        let target = compiler.target(capability(major, minor), DRIVER).unwrap();
        super::options(&target, &Defines::default())[0].clone()
    };
    let expected =
        [((7, 5), "75"), ((8, 0), "80"), ((8, 6), "86"), ((8, 9), "87"), ((9, 0), "90a"), ((12, 1), "120")];
    for ((major, minor), name) in expected {
        assert_eq!(architecture(major, minor), format!("-arch=sm_{name}"));
    }
    for (major, minor) in [(7, 0), (10, 0), (13, 0)] {
        let error = compiler.target(capability(major, minor), DRIVER).unwrap_err();
        assert!(
            matches!(&error, Unavailable::NvrtcArchitecture { supported, .. } if supported.len() == 6),
            "{error}"
        );
    }
}

#[test]
fn what_was_compiled_is_found_on_disk() {
    let Some((folder, compiler)) = stub(&[]).filter(|_| cfg!(unix)) else { return };
    let target = compiler.target(capability(9, 0), DRIVER).unwrap();
    let cache = DiskCache::at(folder.path().join("cache"));
    let code = |defines: &Defines| cubin(&compiler, &cache, &NAMED, &target, defines).unwrap();
    let (one, two) = (Defines::default().with("TILE", 1), Defines::default().with("TILE", 2));
    let first = code(&one);
    assert_eq!((cache.hits(), cache.misses()), (0, 1));
    assert!(code(&one) == first && code(&two) != first, "the define is part of the key");
    assert_eq!((cache.hits(), cache.misses()), (1, 2));
    assert_eq!(cubin(&compiler, &DiskCache::default(), &NAMED, &target, &one).unwrap(), first);

    let error = cubin(&compiler, &cache, &REFUSED, &target, &one).unwrap_err();
    assert_eq!(error.code, 6);
    assert_eq!(fs::read_dir(folder.path().join("cache")).unwrap().count(), 2, "a failure is not kept");
    assert_eq!(cache.note(), None);
}

/// Were NVRTC asked all the same, it would refuse.
#[test]
fn what_is_on_disk_is_not_compiled() {
    let Some((folder, compiler)) = stub(&[]).filter(|_| cfg!(unix)) else { return };
    let target = compiler.target(capability(9, 0), DRIVER).unwrap();
    let cache = DiskCache::at(folder.path().join("cache"));
    cache.store(&key(compiler.version, &REFUSED, &target, &Defines::default()), b"machine code");
    assert_eq!(cubin(&compiler, &cache, &REFUSED, &target, &Defines::default()).unwrap(), b"machine code");
}

#[test]
fn everything_that_the_code_depends_on_is_in_the_key() {
    let version = |major, minor| CudaVersion { major, minor };
    let target = |name: &str, driver| Target { architecture: name.to_owned(), driver };
    let (hopper, tile) = (target("sm_90a", DRIVER), Defines::default().with("TILE", 1));
    let headers: [&[(&str, &str)]; 4] =
        [&[], &[("inner.cuh", "x")], const { &[NAMED.headers[1], NAMED.headers[0]] }, &[("inner.cuhx", "")]];
    let mut keys = vec![
        key(DRIVER, &NAMED, &hopper, &tile),
        key(version(13, 1), &NAMED, &hopper, &tile),
        key(DRIVER, &NAMED, &target("sm_90a", version(13, 1)), &tile),
        key(DRIVER, &NAMED, &target("sm_90", DRIVER), &tile),
        key(DRIVER, &NAMED, &hopper, &Defines::default()),
        key(DRIVER, &NAMED, &hopper, &Defines::default().with("TILE", 2)),
        key(DRIVER, &NAMED, &hopper, &Defines::default().with("TILE", 1).with("TILE", 1)),
        key(DRIVER, &Source { name: "other.cu", ..NAMED }, &hopper, &tile),
        key(DRIVER, &Source { text: "other", ..NAMED }, &hopper, &tile),
    ];
    keys.extend(headers.map(|headers| key(DRIVER, &Source { headers, ..NAMED }, &hopper, &tile)));
    for (i, a) in keys.iter().enumerate() {
        assert!(keys[i + 1..].iter().all(|b| a != b), "key {i} is there twice");
    }
    assert_eq!(keys[0], key(DRIVER, &NAMED, &hopper, &tile));
}

#[test]
fn nvrtc_compiles_an_include_and_a_define() {
    let Some(compiler) = nvrtc() else { return };
    for gpu in [capability(8, 0), capability(9, 0)] {
        let target = compiler.target(gpu, DRIVER).unwrap();
        let compiled = compiler.compile(&NAMED, &target, &Defines::default().with("DEFINED", 42)).unwrap();
        // An ELF file for a machine of number 190, EM_CUDA.
        assert_eq!((&compiled.cubin[..4], &compiled.cubin[18..20]), (&b"\x7fELF"[..], &[190, 0][..]));
        assert!(String::from_utf8_lossy(&compiled.cubin).contains("entry_42"), "{gpu}");
        // The assembler's report, which OPTIONS asks for, and nothing else.
        let report = |line: &str| line.starts_with("ptxas");
        assert!(compiled.log.lines().all(report) && compiled.log.contains("entry_42"), "{}", compiled.log);
    }
}

#[test]
fn nvrtc_compiles_hopper_instructions_for_hopper_alone() {
    let Some(compiler) = nvrtc() else { return };
    let text = "extern \"C\" __global__ void entry() { asm volatile(\"wgmma.fence.sync.aligned;\"); }\n";
    let source = Source { name: "hopper.cu", text, headers: &[] };
    let compile =
        |gpu| compiler.compile(&source, &compiler.target(gpu, DRIVER).unwrap(), &Defines::default());
    compile(capability(9, 0)).unwrap();
    let error = compile(capability(8, 0)).unwrap_err();
    assert!(error.to_string().contains("wgmma"), "{error}");
}

#[test]
fn nvrtc_says_what_is_wrong_and_where() {
    let Some(compiler) = nvrtc() else { return };
    let source = Source { name: "wrong.cu", text: "\n\nint x = no_such_name;\n", headers: &[] };
    let error = compile(&compiler, &source, &Defines::default()).unwrap_err();
    assert_eq!(
        (error.call, error.code, error.reason.as_str()),
        ("nvrtcCompileProgram", 6, "NVRTC_ERROR_COMPILATION")
    );
    let message = error.to_string();
    assert!(message.contains("wrong.cu(3): error") && message.contains("no_such_name"), "{message}");
}

#[test]
fn nvrtc_warns_in_the_log_of_what_it_compiles() {
    let Some(compiler) = nvrtc() else { return };
    let source = Source { name: "warned.cu", text: "#warning take care\n", headers: &[] };
    let (_, log) = compile(&compiler, &source, &Defines::default()).unwrap();
    assert!(log.contains("take care"), "{log}");
}

/// A test runs in the crate's folder, where there is this file.
#[test]
fn nvrtc_takes_no_header_from_the_working_directory() {
    let Some(compiler) = nvrtc() else { return };
    assert!(fs::exists("tests/stubs/libnvrtc.c").unwrap());
    for text in ["#include \"tests/stubs/libnvrtc.c\"\n", "#include <tests/stubs/libnvrtc.c>\n"] {
        let source = Source { name: "searching.cu", text, headers: &[] };
        let error = compile(&compiler, &source, &Defines::default()).unwrap_err();
        assert!(error.log.contains("open source file"), "{error}");
        assert!(error.log.contains(&format!("{FOLDER}searching.cu(1)")), "{error}");
    }
}
