//! From CUDA C++ to machine code: what a kernel's source is, by which options it is compiled, and how a failure is
//! told. `nvrtc.rs` does the calls.
//!
//! Nothing of the system reaches a compilation but NVRTC itself: sources and headers are constants of this crate, a
//! define is an integer, and no folder is searched for headers.

use crate::cache::{DiskCache, Key};
use crate::nvrtc::{Failure, Nvrtc};
use crate::{ComputeCapability, CudaVersion, Library, Search, Unavailable};

#[cfg(test)]
mod tests;

/// Arithmetic as `--use_fast_math` would not have it: subnormals stay, division and square root are rounded to
/// nearest. Contraction to fused multiply-adds is what the error bounds assume. The assembler's report is how a test sees
/// registers that were spilled.
const OPTIONS: [&str; 6] = [
    "--std=c++17",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--fmad=true",
    "--ptxas-options=-v",
];

/// The device of this architecture has instructions that no later one is to have; `sm_90a` is what allows them.
const HOPPER: ComputeCapability = ComputeCapability { major: 9, minor: 0 };

/// Where the main file is said to be. NVRTC looks beside it for headers that it was not handed: by a bare name that
/// would be in the working directory.
const FOLDER: &str = "/swiglu-cuda/";

/// A kernel's source: its main file, and every file that an `#include` in it may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    /// Names, as the `#include` has them, and texts.
    pub(crate) headers: &'static [(&'static str, &'static str)],
}

/// Integers that a source is compiled with, as macros.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Defines(Vec<(&'static str, i64)>);

impl Defines {
    /// These, and then `name` as `value`.
    pub(crate) fn with(mut self, name: &'static str, value: i64) -> Self {
        self.0.push((name, value));
        self
    }
}

/// What programs are compiled for: an architecture that NVRTC knows, and the driver that is to load them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Such as `sm_90a`.
    architecture: String,
    driver: CudaVersion,
}

/// Machine code, and what NVRTC said while it made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compiled {
    pub(crate) cubin: Vec<u8>,
    pub(crate) log: String,
}

/// A kernel that NVRTC did not compile. Its message ends with NVRTC's own, line by line.
///
/// ```
/// fn report(error: &swiglu_cuda::CompileError) {
///     eprintln!("{} with {}:\n{}", error.kernel, error.options.join(" "), error.log);
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error(
    "NVRTC could not compile {kernel}: {call} returned {code} ({reason}) with {}{}",
    .options.join(" "),
    log_lines(.log)
)]
pub struct CompileError {
    /// The file.
    pub kernel: &'static str,
    /// The options it was compiled with.
    pub options: Vec<String>,
    /// The function of NVRTC that failed.
    pub call: &'static str,
    /// Its `nvrtcResult`.
    pub code: i32,
    /// NVRTC's name for that code; or what was missing, where the code is 0.
    pub reason: String,
    /// What NVRTC said; empty where it said nothing.
    pub log: String,
}

fn log_lines(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(":\n{log}") }
}

/// NVRTC, ready to compile.
pub(crate) struct Compiler {
    nvrtc: Nvrtc,
    version: CudaVersion,
    architectures: Vec<ComputeCapability>,
}

impl Compiler {
    pub(crate) fn open(search: &Search) -> Result<Self, Unavailable> {
        let nvrtc = Nvrtc::open(search)?;
        let (version, architectures) = (nvrtc.version()?, nvrtc.architectures()?);
        Ok(Self { nvrtc, version, architectures })
    }

    /// The file it was opened from, and its version.
    pub(crate) fn library(&self) -> Library {
        Library { path: self.nvrtc.path().to_path_buf(), version: self.version }
    }

    /// What to compile for, to run on a device of this capability under this driver.
    pub(crate) fn target(&self, gpu: ComputeCapability, driver: CudaVersion) -> Result<Target, Unavailable> {
        let built_for = self.architecture(gpu)?;
        let ComputeCapability { major, minor } = built_for;
        let suffix = if built_for == HOPPER { "a" } else { "" };
        Ok(Target { architecture: format!("sm_{major}{minor}{suffix}"), driver })
    }

    /// The newest architecture that this NVRTC knows and whose code a device of this capability runs. NVRTC drops old
    /// ones (13.0 dropped 7.0) and does not know newer ones: its own list decides.
    pub(crate) fn architecture(&self, gpu: ComputeCapability) -> Result<ComputeCapability, Unavailable> {
        let runs = self.architectures.iter().copied().filter(|&built_for| gpu.runs_code_for(built_for));
        runs.max().ok_or_else(|| Unavailable::NvrtcArchitecture {
            path: self.nvrtc.path().to_path_buf(),
            version: self.version,
            have: gpu,
            supported: self.architectures.clone(),
        })
    }

    pub(crate) fn compile(
        &self,
        source: &Source,
        target: &Target,
        defines: &Defines,
    ) -> Result<Compiled, CompileError> {
        let options = options(target, defines);
        let (outcome, log) = self.run(source, &options);
        match outcome {
            Ok(cubin) => Ok(Compiled { cubin, log }),
            Err(Failure { call, code, reason }) => {
                Err(CompileError { kernel: source.name, options, call, code, reason, log })
            }
        }
    }

    fn run(&self, source: &Source, options: &[String]) -> (Result<Vec<u8>, Failure>, String) {
        let name = format!("{FOLDER}{}", source.name);
        let mut program = match self.nvrtc.program(&name, source.text, source.headers) {
            Ok(program) => program,
            Err(failure) => return (Err(failure), String::new()),
        };
        let compiled = program.compile(options);
        let cubin = compiled.and_then(|()| program.cubin());
        (cubin, program.log())
    }
}

fn options(target: &Target, defines: &Defines) -> Vec<String> {
    let architecture = format!("-arch={}", target.architecture);
    let fixed = OPTIONS.into_iter().map(str::to_owned);
    let defines = defines.0.iter().map(|(name, value)| format!("-D{name}={value}"));
    std::iter::once(architecture).chain(fixed).chain(defines).collect()
}

/// Machine code for a source: from the cache, else compiled and left there.
pub(crate) fn cubin(
    compiler: &Compiler,
    cache: &DiskCache,
    source: &Source,
    target: &Target,
    defines: &Defines,
) -> Result<Vec<u8>, CompileError> {
    let key = key(compiler.version, source, target, defines);
    if let Some(cubin) = cache.load(&key) {
        return Ok(cubin);
    }
    let Compiled { cubin, .. } = compiler.compile(source, target, defines)?;
    cache.store(&key, &cubin);
    Ok(cubin)
}

/// Of everything that the machine code depends on.
fn key(compiler: CudaVersion, source: &Source, target: &Target, defines: &Defines) -> Key {
    let options = options(target, defines);
    let numbers = [source.headers.len().to_string(), options.len().to_string()];
    let mut parts = vec![env!("CARGO_PKG_VERSION"), source.name, source.text];
    let (compiler, driver) = (compiler.to_string(), target.driver.to_string());
    parts.extend([compiler.as_str(), &driver, &target.architecture, &numbers[0], &numbers[1]]);
    parts.extend(source.headers.iter().flat_map(|&(name, text)| [name, text]));
    parts.extend(options.iter().map(String::as_str));
    Key::of(&parts)
}
