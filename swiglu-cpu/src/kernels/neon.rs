//! NEON: thirty-two 128-bit registers.

use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vfmaq_f32, vld1q_f32, vst1q_f32};

use super::tile::{Vector, check, check_strip, dispatch_rows, dispatch_strip, strip, tile};
use super::{Kernel, Panel, Strip, Strips};
use crate::word::Single;

/// Proof that this machine has NEON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon {
    _detected: (),
}

impl Neon {
    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self { _detected: () })
    }
}

impl Vector for float32x4_t {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract: NEON is there.
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the trait's contract, and the caller vouches for LANES floats at `p`.
        unsafe { vld1q_f32(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { vst1q_f32(p, self) }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { vdupq_n_f32(v) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the trait's contract.
        unsafe { vfmaq_f32(c, self, b) }
    }

    #[inline(always)]
    unsafe fn mul_add_one(a: f32, b: f32, c: f32) -> f32 {
        // One instruction here.
        a.mul_add(b, c)
    }
}

/// # Safety
/// As [`tile`], with the floats of `a`; NEON is there.
#[target_feature(enable = "neon")]
unsafe fn run(a: Panel<'_>, b: *const f32, c: *mut f32, first: bool) {
    let Panel { rows, depth, floats } = a;
    let a = floats.as_ptr();
    // SAFETY: the caller's contract.
    unsafe {
        dispatch_rows!(
            Neon,
            float32x4_t,
            rows,
            (depth, a, b, c, first),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
        );
    }
}

/// # Safety
/// As [`strip`], with the floats of `a`; NEON is there.
#[target_feature(enable = "neon")]
unsafe fn run_strip(a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
    let (a, rows, Strip { floats, stride, cols, next }) = (a.floats.as_ptr(), a.rows, c);
    let c = floats.as_mut_ptr();
    // SAFETY: the caller's contract.
    unsafe {
        dispatch_strip!(
            Neon,
            float32x4_t,
            rows,
            (a, b, c, stride, cols, next),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
        );
    }
}

/// # Safety
/// NEON is there.
#[target_feature(enable = "neon")]
unsafe fn call<R>(f: impl FnOnce() -> R) -> R {
    f()
}

impl Kernel for Neon {
    const NAME: &'static str = "aarch64-neon-f32-12x8";
    /// 12 x 8 accumulators are twenty-four registers; two hold B and one or more the broadcast of A.
    const MR: usize = 12;
    const NR: usize = 8;
    /// 512 x 8 floats of B are 16 KiB, a quarter of the 64 KiB L1 of the larger cores, and half of a small one.
    const KC: usize = 512;
    const A_STRIDE: usize = 12;
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
        // SAFETY: `check` compared the three lengths with what the tile reads and writes; `self` proves the ISA.
        unsafe { run(a, b.as_ptr(), c.as_mut_ptr(), first) }
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves the ISA.
        unsafe { call(f) }
    }
}

impl Strips for Neon {
    fn strip(self, a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
        check_strip::<Self>(a, b, &c);
        // SAFETY: `check_strip` compared every length with what is read and written; `self` proves the ISA.
        unsafe { run_strip(a, b, c) }
    }
}
