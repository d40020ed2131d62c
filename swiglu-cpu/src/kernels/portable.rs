//! The semantics in plain Rust, for every machine.

use super::tile::{Vector, check, check_strip, dispatch_rows, dispatch_strip, strip, tile};
use super::{Kernel, Panel, Strip, Strips};
use crate::word::Single;

/// Plain Rust; exists everywhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

/// Four lanes: one SSE2 or NEON register.
#[derive(Clone, Copy)]
struct F32x4([f32; 4]);

impl Vector for F32x4 {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 4])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for LANES floats at `p`; an array of f32 has the alignment of f32.
        Self(unsafe { p.cast::<[f32; 4]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { p.cast::<[f32; 4]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Self([v; 4])
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // Not `f32::mul_add`: without the instruction that is a library call. So every product is rounded here.
        Self(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }

    #[inline(always)]
    unsafe fn mul_add_one(a: f32, b: f32, c: f32) -> f32 {
        // As in `mul_add`.
        a * b + c
    }
}

impl Kernel for Portable {
    const NAME: &'static str = "portable-f32-4x8";
    /// 4 x 8 accumulators are eight of the sixteen registers of SSE2.
    const MR: usize = 4;
    const NR: usize = 8;
    /// 256 x 8 floats are 8 KiB, a quarter of the smallest L1 in use.
    const KC: usize = 256;
    const A_STRIDE: usize = 4;
    type Word = Single;
    type Held = ();
    type Strips = Self;

    #[inline(always)]
    fn hold(self) {}

    #[inline(always)]
    fn strips(self) -> Option<Self> {
        Some(self)
    }

    fn tile(self, (): &(), a: Panel<'_>, b: &[f32], c: &mut [f32], first: bool) {
        check::<Self>(a, b, c);
        let Panel { rows, depth, floats } = a;
        let (a, b, c) = (floats.as_ptr(), b.as_ptr(), c.as_mut_ptr());
        // SAFETY: `check` compared the three lengths with what the tile reads and writes.
        unsafe { dispatch_rows!(Self, F32x4, rows, (depth, a, b, c, first), [1, 2, 3, 4]) }
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }
}

impl Strips for Portable {
    fn strip(self, a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
        check_strip::<Self>(a, b, &c);
        let (a, rows, Strip { floats, stride, cols, next }) = (a.floats.as_ptr(), a.rows, c);
        let c = floats.as_mut_ptr();
        // SAFETY: `check_strip` compared every length with what is read and written.
        unsafe { dispatch_strip!(Self, F32x4, rows, (a, b, c, stride, cols, next), [1, 2, 3, 4]) }
    }
}
