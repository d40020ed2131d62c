//! NEON: thirty-two 128-bit registers, on every 64-bit Arm.

use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vfmaq_f32, vld1q_f32, vst1q_f32};

use super::tile::{Vector, check, check_strip, dispatch_rows, dispatch_strip, strip, tile};
use super::{Form, Kernel, Panel, Strip};

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

/// Eight lanes: two registers, so that a tile of two vectors has as many columns as AVX2's, and one element of A is
/// broadcast once for four multiply-adds.
#[derive(Clone, Copy)]
struct F32x8(float32x4_t, float32x4_t);

impl Vector for F32x8 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract: NEON is there.
        unsafe { Self::splat(0.0) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the trait's contract, and the caller vouches for LANES floats at `p`.
        unsafe { Self(vld1q_f32(p), vld1q_f32(p.add(4))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as for `load`.
        unsafe {
            vst1q_f32(p, self.0);
            vst1q_f32(p.add(4), self.1);
        }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the trait's contract.
        let v = unsafe { vdupq_n_f32(v) };
        Self(v, v)
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(vfmaq_f32(c.0, self.0, b.0), vfmaq_f32(c.1, self.1, b.1)) }
    }

    #[inline(always)]
    fn mul_add_one(a: f32, b: f32, c: f32) -> f32 {
        // One instruction on every 64-bit Arm.
        a.mul_add(b, c)
    }
}

/// # Safety
/// As [`tile`], with the floats of `a`; NEON is there.
#[target_feature(enable = "neon")]
unsafe fn run(a: Panel<'_>, b: *const f32, c: *mut f32, first: bool) {
    let Panel { form, rows, depth, floats } = a;
    let a = floats.as_ptr();
    // SAFETY: the caller's contract.
    unsafe { dispatch_rows!(Neon, F32x8, form, rows, (depth, a, b, c, first), [1, 2, 3, 4, 5, 6]) }
}

/// # Safety
/// As [`strip`], with the floats of `a`; NEON is there.
#[target_feature(enable = "neon")]
unsafe fn run_strip(a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
    let (a, rows, Strip { floats, stride, cols }) = (a.floats.as_ptr(), a.rows, c);
    let c = floats.as_mut_ptr();
    // SAFETY: the caller's contract.
    unsafe { dispatch_strip!(F32x8, rows, (a, b, c, stride, cols), [1, 2, 3, 4, 5, 6]) }
}

/// # Safety
/// NEON is there.
#[target_feature(enable = "neon")]
unsafe fn call<R>(f: impl FnOnce() -> R) -> R {
    f()
}

impl Kernel for Neon {
    const NAME: &'static str = "aarch64-neon-f32-6x16";
    /// 6 x 16 accumulators are 24 registers; four hold B and one the broadcast of A.
    const MR: usize = 6;
    const NR: usize = 16;
    /// 256 x 16 floats are 16 KiB, half of a 32 KiB L1 and a quarter of the 64 KiB that most server cores have.
    const KC: usize = 256;

    fn tile(self, a: Panel<'_>, b: &[f32], c: &mut [f32], first: bool) {
        check::<Self>(a, b, c);
        // SAFETY: `check` compared the three lengths with what the tile reads and writes; `self` proves the ISA.
        unsafe { run(a, b.as_ptr(), c.as_mut_ptr(), first) }
    }

    fn strip(self, a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
        check_strip::<Self>(a, b, &c);
        // SAFETY: `check_strip` compared every length with what is read and written; `self` proves the ISA.
        unsafe { run_strip(a, b, c) }
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves the ISA.
        unsafe { call(f) }
    }
}
