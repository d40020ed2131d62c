//! A warm call allocates nothing: passes and a training step under a counting allocator, on a stub of the driver that
//! takes every call and does nothing.
//!
//! The driver is found by its name, so the test runs itself again where that name leads to the stub. Without a C compiler
//! it says so and checks nothing.
#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use swiglu_core::{
    AdamW, Backend, Dense, Element, FusedSwiGLU, Gradient, LossTargets, Op, Orientation, Out, Result, SwiGLU,
    Target, WeightGrad, bf16,
};
use swiglu_cuda::{Cuda, Family};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Set where the stub is the driver.
const CHILD: &str = "SWIGLU_TEST_STUB_DRIVER";

fn build(source: &str, to: &Path) -> bool {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/stubs").join(source);
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(to).arg(source).output();
    compiled.is_ok_and(|output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        true
    })
}

#[test]
fn a_warm_call_allocates_nothing() {
    if env::var_os(CHILD).is_some() {
        return count().unwrap_or_else(|e| panic!("{e}"));
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let built = build("libcuda_calls.c", &at("libcuda.so.1")) && build("libnvrtc.c", &at("libnvrtc.so"));
    if !built {
        // A closed standard error is no reason to fail.
        let _ = writeln!(std::io::stderr(), "skipped: no C compiler to build the stub driver");
        return;
    }
    std::fs::copy(at("libcuda.so.1"), at("libcuda.so")).unwrap();
    let child = Command::new(env::current_exe().unwrap())
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", folder.path())
        .env("SWIGLU_NVRTC", at("libnvrtc.so"))
        .env("SWIGLU_CUDA_CACHE", "off")
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}{}",
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr)
    );
}

/// Rows, in and out, where each family is at home.
type Shape = (usize, usize, usize);

fn count() -> Result<()> {
    let cuda = Cuda::new(0)?;
    for orientation in [Orientation::InOut, Orientation::OutIn] {
        steps::<f32>(&cuda, (128, 784, 512), orientation)?;
        steps::<bf16>(&cuda, (2048, 512, 1024), orientation)?;
        // Operands that are copied before tensor cores read them.
        steps::<bf16>(&cuda, (129, 77, 35), orientation)?;
        steps::<bf16>(&cuda, (8, 4096, 14336), orientation)?;
    }
    steps::<bf16>(&cuda.with_family(Family::Mma), (2048, 512, 1024), Orientation::InOut)
}

/// The first step may allocate; the later ones must not, which take buffers of different addresses in turn.
fn steps<T: Element>(cuda: &Cuda, (batch, in_features, hidden): Shape, orientation: Orientation) -> Result<()>
where
    Cuda: SwiGLU<T> + Dense<T>,
{
    const CLASSES: usize = 10;
    let (rows, cols) = orientation.packed_shape(in_features, hidden);
    let wf = swiglu_core::Matrix::host_zeros(rows, cols)?;
    let mut layer = FusedSwiGLU::<T, _>::load(cuda, wf.view(), orientation)?
        .zero_bias()?
        .weight_grad(WeightGrad::Fused)?;
    let mut optimizers = layer.optimizers()?;
    let head = cuda.zeros::<T>(hidden, CLASSES)?;
    let labels = cuda.zeros::<u32>(batch, 1)?;
    let (mut z, mut dz) = (cuda.zeros::<T>(batch, hidden)?, cuda.zeros::<T>(batch, hidden)?);
    let (mut logits, mut dlogits) = (cuda.zeros::<T>(batch, CLASSES)?, cuda.zeros::<T>(batch, CLASSES)?);
    let mut loss = cuda.zeros::<f32>(1, 1)?;
    let mut saved = layer.saved(batch)?;
    let xs = [cuda.zeros::<T>(batch, in_features)?, cuda.zeros::<T>(batch, in_features)?];
    let mut dx = cuda.zeros::<T>(batch, in_features)?;
    for step in 0..4 {
        let (x, before) = (&xs[step % 2], ALLOCATIONS.load(Ordering::Relaxed));
        layer.forward_into(x, &mut z)?;
        layer.forward_train_into(x, &mut z, &mut saved)?;
        cuda.matmul((z.view(), Op::N), (head.view(), Op::N), Target::write(&mut logits))?;
        let targets = LossTargets { loss: loss.view_mut(), correct: None, dlogits: Some(dlogits.view_mut()) };
        cuda.cross_entropy(logits.view(), labels.view(), targets)?;
        cuda.matmul((dlogits.view(), Op::N), (head.view(), Op::T), Target::write(&mut dz))?;
        layer.backward(x, &dz, &mut saved, Some(Out::write(&mut dx)))?;
        for (parameter, optimizer) in layer.parameters().zip(&mut optimizers) {
            cuda.adamw(AdamW::new(1e-3), Gradient::F32(parameter.gradient), optimizer, parameter.value)?;
        }
        let made = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert!(
            step == 0 || made == 0,
            "{made} allocations in step {step} of {batch}, {in_features}, {hidden}"
        );
    }
    Ok(())
}
