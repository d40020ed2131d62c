//! Kernels compile, without spilling a register, for every architecture. Needs NVRTC and no GPU.
//!
//! | variable | meaning |
//! |---|---|
//! | `SWIGLU_KERNELS=all` | every kernel for every architecture it can be launched on; else those of [`thinned`] |
//! | `SWIGLU_ARCHITECTURES` | some of the architectures, such as `80,90` |
//! | `SWIGLU_REQUIRE_NVRTC=1` | NVRTC must be there |

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;
use crate::cache::DiskCache;
use crate::compile::{Compiler, Target, cubin};
use crate::{ComputeCapability, CudaVersion, Search};

mod reachable;

/// Shared memory that a block can be given, in KiB, by architecture: the table of technical specifications in the CUDA
/// programming guide.
const ARCHITECTURES: [(u32, u32, u32); 7] =
    [(7, 0, 96), (7, 5, 64), (8, 0, 163), (8, 6, 99), (8, 9, 99), (9, 0, 227), (12, 0, 99)];

fn architectures() -> [Facts; 7] {
    ARCHITECTURES.map(|(major, minor, kib)| Facts {
        capability: ComputeCapability { major, minor },
        multiprocessors: 100,
        shared_bytes: kib * 1024,
    })
}

/// A kernel, and the device to compile it for.
type Job = (Facts, Kernel);

/// Every kernel for every architecture.
fn all() -> Vec<Job> {
    architectures()
        .into_iter()
        .flat_map(|facts| reachable::kernels(facts).into_iter().map(move |kernel| (facts, kernel)))
        .collect()
}

/// 8.6 and 8.9, which run what 8.0 runs with less shared memory, are left to the whole sweep.
fn is_sibling((facts, _): &Job) -> bool {
    facts.capability.major == 8 && facts.capability.minor > 0
}

/// Each kernel for one architecture, in turn, and for each architecture the first of a class that it would lack; less
/// those that are [one more](reachable::is_one_more).
fn thinned(all: &[Job]) -> Vec<Job> {
    let all: Vec<Job> = all.iter().copied().filter(|job| !is_sibling(job)).collect();
    let mut homes = HashMap::<Kernel, Vec<Facts>>::new();
    for &(facts, kernel) in all.iter().filter(|(_, kernel)| !reachable::is_one_more(*kernel)) {
        homes.entry(kernel).or_default().push(facts);
    }
    let mut jobs = Vec::new();
    for (_, kernel) in &all {
        // Removed when it is met for the first time, so that the order is that of `all`.
        if let Some(homes) = homes.remove(kernel) {
            jobs.push((homes[jobs.len() % homes.len()], *kernel));
        }
    }
    let mut covered: HashSet<Job> =
        jobs.iter().map(|&(facts, kernel)| (facts, reachable::class(kernel))).collect();
    for &(facts, kernel) in &all {
        if covered.insert((facts, reachable::class(kernel))) {
            jobs.push((facts, kernel));
        }
    }
    jobs
}

#[test]
fn thinning_leaves_no_kernel_and_no_class_out() {
    let mut all = all();
    let thinned = thinned(&all);
    println!("{} of {} compilations", thinned.len(), all.len());
    all.retain(|job| !is_sibling(job));
    assert_eq!(thinned.iter().collect::<HashSet<_>>().len(), thinned.len(), "no job is there twice");
    let kernels = |jobs: &[Job]| jobs.iter().map(|&(_, kernel)| kernel).collect::<HashSet<_>>();
    let left_out: Vec<_> = kernels(&all).difference(&kernels(&thinned)).copied().collect();
    assert!(left_out.iter().all(|&kernel| reachable::is_one_more(kernel)), "{left_out:?}");
    println!("{} kernels are left to the whole sweep", left_out.len());
    let classes = |jobs: &[Job]| -> HashSet<Job> {
        jobs.iter().map(|&(facts, kernel)| (facts, reachable::class(kernel))).collect()
    };
    assert_eq!(classes(&thinned), classes(&all));
}

#[test]
fn kernels_that_no_problem_needs_are_never_chosen() {
    for (facts, kernel) in all() {
        if let Kernel::Decode(decode) = kernel {
            assert_eq!(facts.capability.major, 9, "{decode:?}");
            assert!(decode.shared_bytes() <= facts.shared_bytes, "{decode:?}");
        }
        let Kernel::Gemm(gemm) = kernel else { continue };
        let tensor_cores = facts.capability.major >= 8;
        let vectors = gemm.vectors.a || gemm.vectors.b || gemm.vectors.c;
        if gemm.family == Family::Simt && gemm.dtype != Dtype::F32 && tensor_cores {
            assert!(!vectors, "{} {gemm:?}", facts.capability);
        }
        if gemm.family == Family::Sliced {
            assert!(gemm.dtype == Dtype::F32 && facts.capability.major >= 9, "{} {gemm:?}", facts.capability);
        }
        let plain = matches!(gemm.family, Family::Simt | Family::Sliced);
        assert!(plain || tensor_cores, "{} {gemm:?}", facts.capability);
        assert!(gemm.fits(&facts), "{} {gemm:?}", facts.capability);
    }
}

/// A kernel starts while the one before it runs: without these it would read what is not yet there. All do so first, but for
/// `decode`, which has its barriers and L2 ready before.
#[test]
fn every_kernel_waits_for_the_one_before_it() {
    let mut kernels = 0;
    for source in SOURCES {
        for kernel in source.text.split("extern \"C\" __global__").skip(1) {
            let body = kernel.split_once("{\n").map(|(_, body)| body.trim_start());
            let once = |what: &str| source.text.matches(what).count() == 1;
            let by_itself =
                source.name == "decode.cu" && once("let_next_start();") && once("wait_for_previous();");
            let first = body.is_some_and(|body| body.starts_with("follow();"));
            assert!(first || by_itself, "{}: {kernel}", source.name);
            kernels += 1;
        }
    }
    assert!(kernels > SOURCES.len(), "{kernels} kernels");
}

/// What the assembler says where registers went to memory (`N bytes stack frame, N bytes spill stores`), or a warp's
/// products wait for each other (C75xx).
fn complaint(log: &str) -> Option<&str> {
    let bytes_before = |line: &str, what: &str| -> u32 {
        let before = line.split(what).next().unwrap_or_default();
        before.split_whitespace().next_back().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let bad = |line: &&str| {
        let memory = ["bytes stack frame", "bytes spill stores", "bytes spill loads"];
        line.contains("C75") || memory.iter().any(|what| line.contains(what) && bytes_before(line, what) > 0)
    };
    log.lines().find(bad)
}

#[test]
fn spills_are_noticed() {
    let clean = "ptxas info    : Used 40 registers\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
    assert_eq!(complaint(clean), None);
    for log in [
        "    8 bytes stack frame, 0 bytes spill stores",
        "  . 0 bytes stack frame, 4 bytes spill stores",
        "C7510",
    ] {
        assert_eq!(complaint(log), Some(log));
    }
}

/// Kernels of one architecture.
#[derive(Default)]
struct Tally {
    compiled: usize,
    skipped: usize,
    /// Why, where NVRTC does not know the architecture.
    reason: String,
    seconds: f64,
}

/// What came of all jobs, by architecture; and the failures, a line each.
#[derive(Default)]
struct Outcome {
    tallies: BTreeMap<ComputeCapability, Tally>,
    failures: BTreeSet<String>,
}

impl Outcome {
    fn tally(&mut self, capability: ComputeCapability) -> &mut Tally {
        self.tallies.entry(capability).or_default()
    }
}

fn compile(compiler: &Compiler, target: &Target, (facts, kernel): Job) -> Result<(), String> {
    let capability = facts.capability;
    let compiled = compiler
        .compile(kernel.source(), target, &kernel.defines(&facts))
        .map_err(|error| format!("{capability}: {error}"))?;
    match complaint(&compiled.log) {
        Some(line) => Err(format!("{capability} {kernel} {kernel:?}: {line}")),
        None => Ok(()),
    }
}

/// Compiles on all cores: two threads in NVRTC get 1.4 times as much done as one (13.5, 8 kernels, 2 cores).
fn run(compiler: &Compiler, jobs: &[Job]) -> Outcome {
    let outcome = Mutex::new(Outcome::default());
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(&job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let capability = job.0.capability;
            let start = Instant::now();
            let result = compiler
                .target(capability, CudaVersion { major: 12, minor: 0 })
                .map(|target| compile(compiler, &target, job));
            let mut outcome = outcome.lock().unwrap();
            match result {
                Err(reason) => {
                    outcome.tally(capability).skipped += 1;
                    outcome.tally(capability).reason = reason.to_string();
                }
                Ok(result) => {
                    outcome.tally(capability).compiled += 1;
                    outcome.tally(capability).seconds += start.elapsed().as_secs_f64();
                    outcome.failures.extend(result.err());
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    outcome.into_inner().unwrap()
}

fn asked_for(capability: ComputeCapability) -> bool {
    let Ok(list) = std::env::var("SWIGLU_ARCHITECTURES") else { return true };
    let name = format!("{}{}", capability.major, capability.minor);
    list.split(',').any(|asked| asked == name)
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    let compiler = match Compiler::open(&Search::system()) {
        Ok(compiler) => compiler,
        Err(reason) => {
            let required = std::env::var_os("SWIGLU_REQUIRE_NVRTC").is_some_and(|value| value == "1");
            assert!(!required, "{reason}");
            eprintln!("skipped: no kernel was compiled, {reason}");
            return;
        }
    };
    let everything = all();
    let whole = std::env::var_os("SWIGLU_KERNELS").is_some_and(|value| value == "all");
    let mut jobs = if whole { everything } else { thinned(&everything) };
    jobs.retain(|(facts, _)| asked_for(facts.capability));
    assert!(!jobs.is_empty(), "SWIGLU_ARCHITECTURES names none of {ARCHITECTURES:?}");
    let start = Instant::now();
    let Outcome { tallies, failures } = run(&compiler, &jobs);
    println!("{}: {} jobs in {:.0} s", compiler.library(), jobs.len(), start.elapsed().as_secs_f64());
    for (capability, Tally { compiled, skipped, reason, seconds }) in tallies {
        match skipped {
            0 => println!("{capability}: {compiled} kernels compiled, {seconds:.0} s of a thread"),
            _ => println!("{capability}: skipped {skipped} kernels: {reason}"),
        }
    }
    let list: Vec<_> = failures.iter().map(String::as_str).collect();
    assert!(list.is_empty(), "{} failures:\n{}", list.len(), list.join("\n"));
}

/// Fills the folder `SWIGLU_FILL` with kernels for the architectures that `SWIGLU_ARCHITECTURES` names, under a driver of
/// CUDA 13.0, where `SWIGLU_FILL_ONLY` is in their names: a GPU's machine that has this NVRTC's version need not compile them.
/// There a suite under compute-sanitizer, for one, took 7 s for more than 100.
#[test]
#[ignore = "writes a folder for another machine: scripts/gpu-cache.sh"]
fn a_cache_is_filled_for_another_machine() {
    let folder = std::env::var_os("SWIGLU_FILL").expect("SWIGLU_FILL names a folder");
    let only = std::env::var("SWIGLU_FILL_ONLY").unwrap_or_default();
    let compiler = Compiler::open(&Search::system()).unwrap_or_else(|reason| panic!("{reason}"));
    let cache = DiskCache::at(folder.into());
    let mut jobs = all();
    jobs.retain(|(facts, kernel)| asked_for(facts.capability) && kernel.to_string().contains(&only));
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((facts, kernel)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let driver = CudaVersion { major: 13, minor: 0 };
            let target =
                compiler.target(facts.capability, driver).unwrap_or_else(|reason| panic!("{reason}"));
            cubin(&compiler, &cache, kernel.source(), &target, &kernel.defines(facts))
                .unwrap_or_else(|error| panic!("{error}"));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    assert_eq!(cache.note(), None);
    println!("{} kernels", jobs.len());
}
