//! After the first call of a shape nothing is allocated: a training step under a counting allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use swiglu_core::{
    AdamW, Backend, Dense, Element, FusedSwiGLU, Gradient, LossTargets, Op, Result, Save, Target, bf16,
};
use swiglu_cpu::Cpu;

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

const BATCH: usize = 32;
const IN_FEATURES: usize = 100;
const HIDDEN: usize = 48;
const CLASSES: usize = 10;

/// Allocations of each of `steps` training steps: forward, head, loss, backward with dx, optimizer.
fn train<T: Element>(cpu: &Cpu, save: Save, steps: usize) -> Result<Vec<usize>>
where
    Cpu: Dense<T> + swiglu_core::SwiGLU<T>,
{
    let mut layer = FusedSwiGLU::<T, _>::init(cpu, IN_FEATURES, HIDDEN, 1)?.zero_bias()?.save_mode(save);
    let mut optimizers = layer.optimizers()?;
    let (x, head) = (cpu.zeros::<T>(BATCH, IN_FEATURES)?, cpu.zeros::<T>(HIDDEN, CLASSES)?);
    let labels = cpu.zeros::<u32>(BATCH, 1)?;
    let (mut z, mut dz) = (cpu.zeros::<T>(BATCH, HIDDEN)?, cpu.zeros::<T>(BATCH, HIDDEN)?);
    let (mut logits, mut dlogits) = (cpu.zeros::<T>(BATCH, CLASSES)?, cpu.zeros::<T>(BATCH, CLASSES)?);
    let (mut loss, mut dx) = (cpu.zeros::<f32>(1, 1)?, cpu.zeros::<T>(BATCH, IN_FEATURES)?);
    let mut saved = layer.saved(BATCH)?;
    let mut counts = Vec::with_capacity(steps);
    for _ in 0..steps {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        layer.forward_train_into(&x, &mut z, &mut saved)?;
        cpu.matmul((z.view(), Op::N), (head.view(), Op::N), Target::write(&mut logits))?;
        let targets = LossTargets { loss: loss.view_mut(), correct: None, dlogits: Some(dlogits.view_mut()) };
        cpu.cross_entropy(logits.view(), labels.view(), targets)?;
        cpu.matmul((dlogits.view(), Op::N), (head.view(), Op::T), Target::write(&mut dz))?;
        layer.backward(&x, &dz, &mut saved, Some(swiglu_core::Out::write(&mut dx)))?;
        for (parameter, optimizer) in layer.parameters().zip(&mut optimizers) {
            cpu.adamw(AdamW::new(1e-3), Gradient::F32(parameter.gradient), optimizer, parameter.value)?;
        }
        counts.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
    }
    Ok(counts)
}

/// One test, so that nothing else runs while it counts. Steps run inside of the pool: a call from outside goes through
/// rayon's injector queue, which allocates a block on every 63rd.
#[test]
fn a_second_equal_step_allocates_nothing() {
    let cpu = Cpu::new().with_threads(2).unwrap_or_else(|e| panic!("{e}"));
    // A worker allocates when it looks for work for the first time, which on a busy machine can be late: all of them have
    // before anything is counted.
    cpu.install(|| (0..100).for_each(|_| drop(rayon::broadcast(|_| std::thread::yield_now()))));
    for save in [Save::PreActivations, Save::Input] {
        let f32_counts = cpu.install(|| train::<f32>(&cpu, save, 4)).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            f32_counts[0] > 0 || save == Save::Input,
            "the first step makes the workspace: {f32_counts:?}"
        );
        assert_eq!(f32_counts[1..], [0, 0, 0], "f32 {save:?}");
        let bf16_counts = cpu.install(|| train::<bf16>(&cpu, save, 4)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bf16_counts[1..], [0, 0, 0], "bf16 {save:?}");
    }
}
