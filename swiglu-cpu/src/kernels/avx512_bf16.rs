//! AVX-512-BF16: dot products of bf16 pairs, in the registers and the tile of [`Avx512`].
//!
//! A property of this kernel, and of the instruction: subnormal factors and results count as 0, and a pair is summed in
//! two steps that each round to nearest, whatever the state of the thread. Every other kernel keeps subnormals.

use std::arch::x86_64::{
    __m128, __m128bh, __m512, __m512bh, _mm_cvtss_f32, _mm_dpbf16_ps, _mm_set_ss, _mm512_dpbf16_ps,
    _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use swiglu_core::Element;

use super::avx512::call;
use super::tile::{Vector, check, check_strip, dispatch_rows, dispatch_strip, strip, tile};
use super::turned::{Part, Words};
use super::{Avx512, Block, Dots, DotsVisitor, EDGE, Kernel, Panel, Runs, Strip, Strips};
use crate::word::{Pair, Word};

/// Proof that this machine has AVX-512-BF16 and all that [`Avx512`] needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Bf16 {
    base: Avx512,
}

impl Avx512Bf16 {
    pub(crate) fn detect() -> Option<Self> {
        let base = Avx512::detect()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self { base })
    }

    /// Whether it multiplies faster than f32 does. Zen 4 and 5 start as many of these as of f32, so do twice the work;
    /// Intel starts a quarter as many: 184 GFLOP/s for 366 on two cores of a Sapphire Rapids.
    pub(crate) fn is_fast() -> bool {
        #[allow(unused_unsafe, reason = "safe in newer compilers than the oldest supported")]
        // SAFETY: every x86-64 has CPUID and its leaf 0.
        let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
        let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        name.concat() == b"AuthenticAMD"
    }
}

/// Sixteen pairs, or sixteen sums of them.
#[derive(Clone, Copy)]
struct Pairs(__m512);

impl Pairs {
    /// # Safety
    /// AVX-512 is there.
    #[inline(always)]
    unsafe fn factors(self) -> __m512bh {
        // SAFETY: both are 64 bytes, in which every bit pattern is valid.
        unsafe { std::mem::transmute::<__m512, __m512bh>(self.0) }
    }
}

impl Vector for Pairs {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract: AVX-512 is there.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the trait's contract, and the caller vouches for LANES words at `p`.
        Self(unsafe { _mm512_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_set1_ps(v) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_dpbf16_ps(c.0, self.factors(), b.factors()) })
    }

    #[inline(always)]
    unsafe fn mul_add_one(a: f32, b: f32, c: f32) -> f32 {
        // SAFETY: the trait's contract; VL is detected together with F. Both casts are of 16 bytes, in which every bit
        // pattern is valid.
        unsafe {
            let pair = |word| std::mem::transmute::<__m128, __m128bh>(_mm_set_ss(word));
            _mm_cvtss_f32(_mm_dpbf16_ps(_mm_set_ss(c), pair(a), pair(b)))
        }
    }
}

/// # Safety
/// As [`tile`], with the words of `a`; AVX-512 and its BF16 are there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")]
unsafe fn run(a: Panel<'_>, b: *const f32, c: *mut f32, first: bool) {
    let Panel { rows, depth, floats } = a;
    let a = floats.as_ptr();
    // SAFETY: the caller's contract.
    unsafe {
        dispatch_rows!(
            Avx512Bf16,
            Pairs,
            rows,
            (depth, a, b, c, first),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
        );
    }
}

/// # Safety
/// As [`strip`], with the words of `a`; AVX-512 and its BF16 are there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")]
unsafe fn run_strip(a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
    let (a, rows, Strip { floats, stride, cols, next }) = (a.floats.as_ptr(), a.rows, c);
    let c = floats.as_mut_ptr();
    // SAFETY: the caller's contract.
    unsafe {
        dispatch_strip!(
            Avx512Bf16,
            Pairs,
            rows,
            (a, b, c, stride, cols, next),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
        );
    }
}

impl Words for Pairs {
    const STEP: usize = Pair::STEP;

    #[inline(always)]
    fn of(words: __m512) -> Self {
        Self(words)
    }
}

/// # Safety
/// As [`super::turned::run`]; AVX-512 and its BF16 are there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")]
unsafe fn run_dots<T: Element>(part: Part<'_, T>) {
    // SAFETY: the caller's contract.
    unsafe { super::turned::run::<Pairs, T>(part) }
}

impl Kernel for Avx512Bf16 {
    const NAME: &'static str = "x86_64-avx512bf16-bf16-14x32";
    const MR: usize = Avx512::MR;
    const NR: usize = Avx512::NR;
    const KC: usize = Avx512::KC;
    const A_STRIDE: usize = Avx512::A_STRIDE;
    type Word = Pair;
    type Held = ();
    type Strips = Self;

    #[inline(always)]
    fn hold(self) {}

    #[inline(always)]
    fn strips(self) -> Option<Self> {
        Some(self)
    }

    const DOT_ROWS: usize = EDGE;
    const DOTS_GO_ON: bool = true;

    #[inline(always)]
    fn with_dots<V: DotsVisitor>(self, visitor: V) -> Option<V::Output> {
        Some(visitor.visit(self))
    }

    fn tile(self, (): &(), a: Panel<'_>, b: &[f32], c: &mut [f32], first: bool) {
        check::<Self>(a, b, c);
        // SAFETY: `check` compared the three lengths with what the tile reads and writes; `self` proves the ISA.
        unsafe { run(a, b.as_ptr(), c.as_mut_ptr(), first) }
    }

    #[inline(always)]
    fn transpose(self, block: &Block, to: &mut [f32], stride: usize) {
        self.base.transpose(block, to, stride);
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `base` proves the ISA.
        unsafe { call(f) }
    }
}

impl Strips for Avx512Bf16 {
    fn strip(self, a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
        check_strip::<Self>(a, b, &c);
        // SAFETY: `check_strip` compared every length with what is read and written; `self` proves the ISA.
        unsafe { run_strip(a, b, c) }
    }
}

impl Dots for Avx512Bf16 {
    #[inline(always)]
    fn dots<T: Element>(self, (): &(), a: (usize, &[f32]), b: [Runs<'_, T>; 2], sums: (&mut [f32], bool)) {
        // SAFETY: `self` proves the ISA.
        super::turned::dots::<Self, T>(a, &b, sums, |part| unsafe { run_dots(part) });
    }
}
