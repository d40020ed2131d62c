//! Faults that end the use of a device, or that an environment makes: each in a process of its own, which is this
//! program with `SWIGLU_FAULT_CHILD` set to the fault's name. A child checks what it sees; its exit status is the
//! outcome.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use libtest_mimic::{Failed, Trial};
use swiglu_core::{
    Backend, Dtype, Element, Error, FusedSwiGLU, Layout, MatRef, Matrix, Memory, Options, Orientation,
    Scalar, SwiGLU, Weights, bf16,
};
use swiglu_cuda::{CacheUse, Cuda, CudaError, CudaMemory};

/// Names the fault.
const CHILD: &str = "SWIGLU_FAULT_CHILD";
pub(crate) const CACHE: &str = "SWIGLU_CUDA_CACHE";

pub(crate) type Outcome = Result<(), Failed>;

/// Every child, by name.
const CHILDREN: [(&str, fn() -> Outcome); 8] = [
    ("hidden", hidden),
    ("full_memory", full_memory),
    ("illegal_address", illegal_address),
    ("named_fault", named_fault),
    ("forward", forward),
    ("first_call_f32", first_call::<f32>),
    ("first_call_bf16", first_call::<bf16>),
    ("tuned", crate::tuning::child),
];

pub(crate) fn trials() -> Vec<Trial> {
    let parent = |name: &'static str, set: &'static [(&'static str, &'static str)]| {
        move || {
            println!("{}", spawn(name, set)?);
            Ok(())
        }
    };
    vec![
        Trial::test("faults::hidden_devices", parent("hidden", &[("CUDA_VISIBLE_DEVICES", "")])),
        Trial::test("faults::full_memory", parent("full_memory", &[])),
        Trial::test("faults::illegal_address", parent("illegal_address", &[])),
        Trial::test("faults::named_fault", parent("named_fault", &[("SWIGLU_SYNC", "1")])),
        Trial::test("faults::cache_that_cannot_be_written", cache_that_cannot_be_written),
        Trial::test("faults::cache_with_damaged_entries", cache_with_damaged_entries),
        Trial::test("faults::cache_that_others_may_write_to", cache_that_others_may_write_to),
        Trial::test("faults::first_call", first_calls),
    ]
}

/// What a child does; `None` in the process that is no child.
pub(crate) fn child() -> Option<ExitCode> {
    let name = std::env::var(CHILD).ok()?;
    let Some((_, run)) = CHILDREN.into_iter().find(|(other, _)| *other == name) else {
        eprintln!("{CHILD}={name} is none of {:?}", CHILDREN.map(|(name, _)| name));
        return Some(ExitCode::FAILURE);
    };
    Some(match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("{}", failed.message().unwrap_or("failed"));
            ExitCode::FAILURE
        }
    })
}

/// Runs a child, and gives what it printed.
pub(crate) fn spawn<V: AsRef<std::ffi::OsStr>>(name: &str, set: &[(&str, V)]) -> Result<String, Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(CHILD, name).env_remove("SWIGLU_SYNC").env_remove("SWIGLU_TUNE");
    for (variable, value) in set {
        command.env(variable, value);
    }
    let output = command.output()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(stdout.trim_end().to_owned())
    } else {
        Err(format!("{name} ended with {}:\n{stdout}{stderr}", output.status).into())
    }
}

fn hidden() -> Outcome {
    match Cuda::new(0) {
        Err(Error::Unavailable { reason, .. }) if reason.contains("CUDA_VISIBLE_DEVICES") => {
            println!("{reason}");
            Ok(())
        }
        other => Err(format!("{other:?}").into()),
    }
}

/// Every byte that can be had is taken. Then a call fails, and after one block was given back it succeeds.
fn full_memory() -> Outcome {
    const BLOCK: usize = 1 << 30;
    const ROWS: usize = 1 << 18;
    let cuda = Cuda::new(0)?;
    let layer = FusedSwiGLU::<f32, _>::init(&cuda, 64, 64, 1)?;
    // Its result is 64 MiB.
    let x = cuda.upload(&crate::streams::noise(ROWS, 64)?)?;
    let before = crate::streams::bits(&cuda, &layer.forward(&x)?)?;
    // What the first call left is free again, and what the last blocks leave is too small for the call.
    cuda.synchronize()?;
    let (mut blocks, mut bytes) = (Vec::new(), BLOCK);
    while bytes >= 1 << 20 {
        match cuda.zeros::<u32>(1, bytes / 4) {
            Ok(block) => blocks.push(block),
            Err(Error::OutOfMemory { bytes: refused }) if refused == bytes => bytes /= 2,
            Err(other) => return Err(format!("{other:?} for {bytes} bytes").into()),
        }
    }
    let full = layer.forward(&x);
    if !matches!(full, Err(Error::OutOfMemory { bytes }) if bytes == ROWS * 64 * 4) {
        return Err(format!("{full:?} with {} blocks taken", blocks.len()).into());
    }
    println!("{} blocks took all memory", blocks.len());
    // The first block is the largest.
    drop(blocks.swap_remove(0));
    cuda.synchronize()?;
    let after = crate::streams::bits(&cuda, &layer.forward(&x)?)?;
    if after == before { Ok(()) } else { Err("other bits after memory was full".into()) }
}

/// A matrix where nothing is mapped: 4 TiB behind one that is there.
fn nowhere(x: &Matrix<f32, CudaMemory>) -> Result<MatRef<'_, f32, CudaMemory>, Error> {
    let address = CudaMemory::offset::<f32>(x.view().ptr(), 1 << 40);
    let layout = Layout::dense(x.rows(), x.cols())?;
    // SAFETY: none. That nothing can be read there is the point: the device's fault is what is tested, in a process
    // that does nothing else. The host never accesses device memory by address.
    Ok(unsafe { MatRef::from_raw(address, layout) })
}

/// The first report of a lost context.
fn poisoned<T: std::fmt::Debug>(what: &str, outcome: Result<T, Error>) -> Result<String, Failed> {
    match outcome {
        Err(Error::Device(source)) => match source.downcast_ref() {
            Some(CudaError::ContextPoisoned { call, .. }) => Ok(call.clone()),
            _ => Err(format!("{what}: {source}").into()),
        },
        other => Err(format!("{what}: {other:?} in place of a lost context").into()),
    }
}

fn illegal_address() -> Outcome {
    let cuda = Cuda::new(0)?;
    let other = Cuda::new(0)?;
    let layer = FusedSwiGLU::<f32, _>::init(&cuda, 64, 64, 1)?;
    let x = cuda.zeros::<f32>(32, 64)?;
    layer.forward(&x)?;
    cuda.synchronize()?;
    // Enqueued, so nothing is known yet.
    let z = layer.forward(nowhere(&x)?)?;
    println!("reported by {}", poisoned("synchronize", cuda.synchronize())?);
    poisoned("a second synchronize", cuda.synchronize())?;
    poisoned("forward", layer.forward(&x))?;
    poisoned("zeros", cuda.zeros::<f32>(1, 1))?;
    poisoned("download", cuda.download(&z))?;
    poisoned("upload", cuda.upload(&crate::streams::noise::<f32>(2, 2)?))?;
    poisoned("memory", cuda.memory())?;
    poisoned("capture", cuda.capture(|| Ok(())))?;
    poisoned("another handle", other.zeros::<f32>(1, 1))?;
    poisoned("a new stream", cuda.new_stream())?;
    poisoned("a new handle", Cuda::new(0))?;
    drop((x, z, layer, other, cuda));
    // Nobody is on the device now. It may be opened again if the driver allows that; `Unavailable` would have a program
    // fall back to the CPU without a word.
    match Cuda::new(0) {
        Err(reason @ Error::Unavailable { .. }) => Err(format!("hidden: {reason}").into()),
        Err(reason) => {
            println!("the device cannot be opened again: {reason}");
            Ok(())
        }
        Ok(cuda) => {
            let again = cuda.zeros::<f32>(1, 1).and_then(|_| cuda.synchronize());
            println!("the device was opened again, and gives {again:?}");
            Ok(())
        }
    }
}

/// With `SWIGLU_SYNC=1` the call itself fails, and names the kernel.
fn named_fault() -> Outcome {
    let cuda = Cuda::new(0)?;
    let layer = FusedSwiGLU::<f32, _>::init(&cuda, 64, 64, 1)?;
    let x = cuda.zeros::<f32>(32, 64)?;
    let call = poisoned("forward", layer.forward(nowhere(&x)?))?;
    println!("reported by {call}");
    let named = ["simt-f32", "sliced-f32"].iter().any(|kernel| call.starts_with(kernel));
    if named { Ok(()) } else { Err(format!("{call} names no kernel").into()) }
}

/// Prints the use of the cache, and a hash of the results, which must not depend on it.
fn forward() -> Outcome {
    let cuda = Cuda::new(0)?;
    let layer = FusedSwiGLU::<f32, _>::init(&cuda, 96, 80, 1)?;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    // A kernel for few rows, and one for many.
    for rows in [3, 70] {
        let z = layer.forward(&cuda.upload(&crate::streams::noise(rows, 96)?)?)?;
        for bits in crate::streams::bits(&cuda, &z)? {
            hash = (hash ^ u64::from(bits)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    let CacheUse { hits, misses, note, .. } = cuda.cache_use();
    println!("{hash:016x} {hits} {misses} {}", note.unwrap_or_default());
    Ok(())
}

/// What [`forward`] printed.
#[derive(Debug)]
struct Forward {
    hash: String,
    hits: u64,
    misses: u64,
    note: String,
}

impl Forward {
    fn with_cache(folder: &Path) -> Result<Self, Failed> {
        let line = spawn("forward", &[(CACHE, folder)])?;
        println!("{}: {line}", folder.display());
        let mut fields = line.splitn(4, ' ').map(str::to_owned);
        let mut field = || fields.next().unwrap_or_default();
        let (hash, hits, misses) = (field(), field().parse()?, field().parse()?);
        Ok(Self { hash, hits, misses, note: field() })
    }

    /// Fails unless the note says this and the results are those of `other`.
    fn expect(&self, other: &Self, (hits, misses): (u64, u64), note: &str) -> Outcome {
        let as_expected = self.hash == other.hash && (self.hits, self.misses) == (hits, misses);
        let noted = if note.is_empty() { self.note.is_empty() } else { self.note.contains(note) };
        if as_expected && noted {
            return Ok(());
        }
        Err(format!("{self:?}: expected the results of {other:?}, {hits} hits, {misses} misses, {note:?}")
            .into())
    }
}

/// A folder that nothing is in, and its parent, which goes with it.
pub(crate) fn fresh() -> Result<(tempfile::TempDir, PathBuf), Failed> {
    let parent = tempfile::tempdir()?;
    let folder = parent.path().join("cache");
    Ok((parent, folder))
}

fn cache_that_cannot_be_written() -> Outcome {
    let (_parent, folder) = fresh()?;
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, Permissions::from_mode(0o500))?;
    // The superuser may write all the same; to /proc nobody may.
    let folder = if fs::File::create(folder.join("probe")).is_ok() { "/proc/swiglu".into() } else { folder };
    let first = Forward::with_cache(&folder)?;
    first.expect(&first, (0, 2), "failed")
}

fn cache_with_damaged_entries() -> Outcome {
    let (_parent, folder) = fresh()?;
    let cold = Forward::with_cache(&folder)?;
    cold.expect(&cold, (0, 2), "")?;
    Forward::with_cache(&folder)?.expect(&cold, (2, 0), "")?;
    let mut entries = 0;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let mut bytes = fs::read(&path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes)?;
        entries += 1;
    }
    if entries != 2 {
        return Err(format!("{entries} entries of two kernels").into());
    }
    Forward::with_cache(&folder)?.expect(&cold, (0, 2), "damaged")?;
    // And they are good again.
    Forward::with_cache(&folder)?.expect(&cold, (2, 0), "")
}

fn cache_that_others_may_write_to() -> Outcome {
    let (_parent, folder) = fresh()?;
    let cold = Forward::with_cache(&folder)?;
    fs::set_permissions(&folder, Permissions::from_mode(0o777))?;
    Forward::with_cache(&folder)?.expect(&cold, (0, 2), "writable by others")
}

/// Prints how long a program waits for its first result.
fn first_call<T: Element + Scalar>() -> Outcome
where
    Cuda: SwiGLU<T>,
{
    let start = Instant::now();
    let cuda = Cuda::new(0)?;
    let opened = start.elapsed().as_secs_f64();
    let (x, wf) = (cuda.zeros::<T>(512, 512)?, cuda.zeros::<T>(512, 1024)?);
    let weights = Weights::packed(wf.view(), Orientation::InOut)?;
    cuda.forward(x.view(), weights, Options::new())?;
    cuda.synchronize()?;
    let seconds = start.elapsed().as_secs_f64();
    let CacheUse { hits, misses, .. } = cuda.cache_use();
    println!("{seconds:.3} s, of which {opened:.3} s to open the device; {hits} hits, {misses} misses");
    Ok(())
}

/// A test checks and a benchmark times: the seconds are printed only.
fn first_calls() -> Outcome {
    for (dtype, name) in [(Dtype::F32, "first_call_f32"), (Dtype::Bf16, "first_call_bf16")] {
        let (_parent, folder) = fresh()?;
        for (state, hits) in [("cold", "0 hits, 1 misses"), ("warm", "1 hits, 0 misses")] {
            let line = spawn(name, &[(CACHE, &folder)])?;
            println!("first call at 512 x 512 x 512 in {dtype}, {state} cache: {line}");
            if !line.contains(hits) {
                return Err(format!("{state}: {line}").into());
            }
        }
    }
    Ok(())
}
