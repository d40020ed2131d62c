//! Builds the stub libraries, each test in a folder of its own.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use swiglu_cuda::Search;

/// Searches these places alone. Only paths to nothing, to files that are no libraries, and to stubs may be given.
pub(crate) fn search(driver: &[PathBuf], nvrtc: &[PathBuf]) -> Search {
    // SAFETY: the stubs have the functions of the CUDA libraries with the same arguments, and write no more than
    // they do; everything else that the tests name is refused by the loader.
    unsafe { Search::from_paths(driver.to_vec(), nvrtc.to_vec()) }
}

/// Says something on standard error, also in a test that passes: the test harness captures only the print macros.
pub(crate) fn note(line: &str) {
    // A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A folder that goes away with its owner. The process number keeps a run apart from another one beside it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(test: &str) -> Self {
        let root = fs::canonicalize(env!("CARGO_TARGET_TMPDIR")).expect("cargo makes this folder");
        let folder = root.join(format!("preflight-{test}-{}", process::id()));
        fs::create_dir(&folder).expect("no other test has this name");
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to `cargo clean`.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The C compiler of this machine, and a place for what it makes.
pub(crate) struct Stubs {
    compiler: &'static str,
    folder: Scratch,
}

impl Stubs {
    /// `None`, and a line that says so, where there is no C compiler.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let runs =
            |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
        let Some(compiler) = ["cc", "gcc", "clang"].into_iter().find(runs) else {
            note(&format!(
                "skipped {test}: no C compiler (tried cc, gcc, clang) to build the stub libraries"
            ));
            return None;
        };
        Some(Self { compiler, folder: Scratch::new(test) })
    }

    /// A stub of libcuda; `settings` are macros of its source.
    pub(crate) fn driver(&self, settings: &[&str]) -> PathBuf {
        self.build("libcuda", include_str!("../stubs/libcuda.c"), settings)
    }

    /// A stub of NVRTC; `settings` are macros of its source.
    pub(crate) fn nvrtc(&self, settings: &[&str]) -> PathBuf {
        self.build("libnvrtc", include_str!("../stubs/libnvrtc.c"), settings)
    }

    /// The settings are part of the file's name: a loaded file is never overwritten by another stub.
    fn build(&self, stem: &str, source: &str, settings: &[&str]) -> PathBuf {
        let input = self.folder.path().join(format!("{stem}.c"));
        fs::write(&input, source).expect("the scratch folder takes files");
        let library = self.folder.path().join(format!("{stem}-{}.so", settings.join("-")));
        let mut compile = Command::new(self.compiler);
        compile.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&input);
        compile.args(settings.iter().map(|setting| format!("-D{setting}")));
        let output = compile.output().expect("the compiler was there a moment ago");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        library
    }
}
