//! AVX2 with FMA: sixteen 256-bit registers.

use std::arch::x86_64::{
    __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::tile::{Vector, check, check_strip, dispatch_rows, dispatch_strip, strip, tile};
use super::{Kernel, Panel, Strip, Strips};
use crate::word::Single;

/// Proof that this machine has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2 {
    _detected: (),
}

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        there.then_some(Self { _detected: () })
    }
}

impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract: AVX2 is there.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the trait's contract, and the caller vouches for LANES floats at `p`.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { _mm256_storeu_ps(p, self) }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { _mm256_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the trait's contract; FMA is detected together with AVX2.
        unsafe { _mm256_fmadd_ps(self, b, c) }
    }

    #[inline(always)]
    unsafe fn mul_add_one(a: f32, b: f32, c: f32) -> f32 {
        // One instruction here: FMA is there.
        a.mul_add(b, c)
    }
}

/// # Safety
/// As [`tile`], with the floats of `a`; AVX2 and FMA are there.
#[target_feature(enable = "avx2,fma")]
unsafe fn run(a: Panel<'_>, b: *const f32, c: *mut f32, first: bool) {
    let Panel { rows, depth, floats } = a;
    let a = floats.as_ptr();
    // SAFETY: the caller's contract.
    unsafe { dispatch_rows!(Avx2, __m256, rows, (depth, a, b, c, first), [1, 2, 3, 4, 5, 6]) }
}

/// # Safety
/// As [`strip`], with the floats of `a`; the instruction set is there.
#[target_feature(enable = "avx2,fma")]
unsafe fn run_strip(a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
    let (a, rows, Strip { floats, stride, cols, next }) = (a.floats.as_ptr(), a.rows, c);
    let c = floats.as_mut_ptr();
    // SAFETY: the caller's contract.
    unsafe { dispatch_strip!(Avx2, __m256, rows, (a, b, c, stride, cols, next), [1, 2, 3, 4, 5, 6]) }
}

/// # Safety
/// AVX2, FMA and F16C are there.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn call<R>(f: impl FnOnce() -> R) -> R {
    f()
}

impl Kernel for Avx2 {
    const NAME: &'static str = "x86_64-avx2-f32-6x16";
    /// 6 x 16 accumulators are twelve registers; two hold B and one the broadcast of A.
    const MR: usize = 6;
    const NR: usize = 16;
    /// 256 x 16 floats are 16 KiB, half of a 32 KiB L1.
    const KC: usize = 256;
    const A_STRIDE: usize = 8;
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

impl Strips for Avx2 {
    fn strip(self, a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
        check_strip::<Self>(a, b, &c);
        // SAFETY: `check_strip` compared every length with what is read and written; `self` proves the ISA.
        unsafe { run_strip(a, b, c) }
    }
}
