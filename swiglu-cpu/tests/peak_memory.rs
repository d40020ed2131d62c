//! What a forward takes beside its operands: at most 64 MiB at once on up to 8 threads, by an allocator that keeps count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use swiglu_core::{Backend, Element, Options, Orientation, Result, SwiGLU, Weights, bf16};
use swiglu_cpu::Cpu;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn took(bytes: usize) {
    MOST.fetch_max(NOW.fetch_add(bytes, Ordering::Relaxed) + bytes, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while one is copied.
        took(size);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MOST_BYTES: usize = 64 << 20;

/// Bytes at once of a first forward beyond what was there before it.
fn forward<T: Element>(threads: usize, orientation: Orientation, [batch, i, d]: [usize; 3]) -> Result<usize>
where
    Cpu: SwiGLU<T>,
{
    let cpu = Cpu::new().with_threads(threads)?;
    let (rows, cols) = orientation.packed_shape(i, d);
    let (x, wf) = (cpu.zeros::<T>(batch, i)?, cpu.zeros::<T>(rows, cols)?);
    let mut z = cpu.zeros::<T>(batch, d)?;
    let weights = Weights::packed(wf.view(), orientation)?;
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    cpu.forward_into(x.view(), weights, z.view_mut(), Options::new())?;
    Ok(MOST.load(Ordering::Relaxed) - before)
}

/// One test, so that nothing else is counted.
#[test]
fn a_forward_takes_at_most_64_mib_beside_its_operands() {
    for shape in [[512, 1024, 4096], [16, 4096, 4096], [1, 4096, 4096]] {
        for orientation in [Orientation::InOut, Orientation::OutIn] {
            for threads in [1, 2, 8] {
                let f32 = forward::<f32>(threads, orientation, shape);
                let bf16 = forward::<bf16>(threads, orientation, shape);
                for bytes in [f32, bf16].map(|bytes| bytes.unwrap_or_else(|error| panic!("{error}"))) {
                    println!("{shape:?} {orientation:?}, {threads} threads: {bytes} bytes");
                    assert!(bytes > 0, "the first call makes its workspace");
                    assert!(
                        bytes <= MOST_BYTES,
                        "{shape:?} {orientation:?}, {threads} threads: {bytes} bytes"
                    );
                }
            }
        }
    }
}
