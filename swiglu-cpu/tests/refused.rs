//! Calls that are refused halfway through, by an allocator that fails: nothing is written, and they may be made again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use swiglu_core::{
    Backend, Error, Gradients, Options, Orientation, Out, Result, Route, Save, SwiGLU, Target, Weights,
};
use swiglu_cpu::Cpu;

const BATCH: usize = 3;
const IN: usize = 37;
const HIDDEN: usize = 53;
/// Of dx, of half of the weights, and of dz: what a composed backward allocates, and nobody else does.
const SIZES: [usize; 3] = [BATCH * IN * 4, IN * HIDDEN * 4, BATCH * HIDDEN * 4];

struct Failing;

/// How many allocations of these sizes succeed before one fails; none fails at usize::MAX.
static LEFT: AtomicUsize = AtomicUsize::new(usize::MAX);

fn fails(size: usize) -> bool {
    SIZES.contains(&size)
        && LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.wrapping_sub(1))) == Ok(0)
}

// SAFETY: every call that does not fail is passed on to the system allocator unchanged, and null is a failure.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is that of `System`.
        if fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        if fails(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// One test, so that no other allocation is counted.
#[test]
fn a_composed_backward_without_memory_writes_nothing() -> Result<()> {
    let cpu = Cpu::new();
    let options = Options::new().route(Route::Composed);
    let ones = |rows, cols| -> Result<_> {
        let mut matrix = cpu.zeros::<f32>(rows, cols)?;
        matrix.view_mut().array_mut().fill(1.0);
        Ok(matrix)
    };
    let (x, wf, dz) = (ones(BATCH, IN)?, ones(IN, 2 * HIDDEN)?, ones(BATCH, HIDDEN)?);
    let w = Weights::packed(wf.view(), Orientation::InOut)?;
    let (mut dx, mut dwf, mut dbias) = (ones(BATCH, IN)?, ones(IN, 2 * HIDDEN)?, ones(1, 2 * HIDDEN)?);
    let (_, mut saved) = cpu.forward_train(x.view(), w, Save::PreActivations, options)?;
    for allocations in 0.. {
        LEFT.store(allocations, Ordering::Relaxed);
        let gradients =
            Gradients::new().dx(Out::add(&mut dx)).dwf(Target::add(&mut dwf)).dbias(Target::add(&mut dbias));
        let result = cpu.backward(x.view(), w, dz.view(), &mut saved, gradients, options);
        LEFT.store(usize::MAX, Ordering::Relaxed);
        let unchanged = [&dx, &dwf, &dbias].map(|m| m.view().array().iter().all(|&value| value == 1.0));
        match result {
            Err(Error::OutOfMemory { .. }) => assert_eq!(unchanged, [true; 3], "after {allocations}"),
            Err(error) => return Err(error),
            Ok(()) => {
                assert_eq!(unchanged, [false; 3]);
                assert!(allocations >= SIZES.len(), "{allocations} allocations failed, one after the other");
                break;
            }
        }
    }
    assert!(!saved.is_armed());
    Ok(())
}
