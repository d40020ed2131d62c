//! AVX-512: thirty-two 512-bit registers.

use std::arch::x86_64::{
    __m512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
    _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use swiglu_core::Element;

#[cfg(target_os = "linux")]
use super::Amx;
use super::tile::{Vector, check, check_strip, dispatch_rows, dispatch_strip, strip, tile};
use super::turned::{Part, Words};
use super::{Avx512Bf16, Block, Dots, DotsVisitor, EDGE, Kernel, KernelVisitor, Panel, Runs, Strip, Strips};
use crate::word::{Single, Word};

/// How bf16 is multiplied with bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bf16 {
    /// As f32.
    Widened,
    /// As `avx512bf16` does.
    Dot,
    /// As `amx` does.
    #[cfg(target_os = "linux")]
    Tiles,
}

/// Proof that this machine has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512 {
    bf16: Bf16,
}

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        there.then_some(Self { bf16: Bf16::Widened })
    }
}

impl Avx512 {
    /// The same, with bf16 multiplied in pairs.
    pub(crate) fn detect_bf16() -> Option<Self> {
        Avx512Bf16::detect().and(Self::detect()).map(|_| Self { bf16: Bf16::Dot })
    }

    /// The same, with bf16 multiplied in tile registers.
    #[cfg(target_os = "linux")]
    pub(crate) fn detect_amx() -> Option<Self> {
        Amx::detect().and(Self::detect()).map(|_| Self { bf16: Bf16::Tiles })
    }
}

impl Vector for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract: AVX-512 is there.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the trait's contract, and the caller vouches for LANES floats at `p`.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { _mm512_storeu_ps(p, self) }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { _mm512_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the trait's contract.
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }

    #[inline(always)]
    unsafe fn mul_add_one(a: f32, b: f32, c: f32) -> f32 {
        // One instruction here: FMA is there.
        a.mul_add(b, c)
    }
}

/// # Safety
/// As [`tile`], with the floats of `a`; AVX-512 is there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn run(a: Panel<'_>, b: *const f32, c: *mut f32, first: bool) {
    let Panel { rows, depth, floats } = a;
    let a = floats.as_ptr();
    // SAFETY: the caller's contract.
    unsafe {
        dispatch_rows!(
            Avx512,
            __m512,
            rows,
            (depth, a, b, c, first),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
        );
    }
}

/// Sixteen columns of sixteen rows, by halving: pairs of rows, pairs of pairs, then the four 128-bit lanes twice.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn columns_of(rows: [__m512; EDGE]) -> [__m512; EDGE] {
    // quads[q][c], lane l: column 4 l + c of rows 4 q .. 4 q + 4.
    let quads: [[__m512; 4]; 4] = std::array::from_fn(|q| {
        let r = &rows[4 * q..4 * q + 4];
        let (low01, high01) = (_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
        let (low23, high23) = (_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
        let pair = |a: __m512, b: __m512| (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let ((a, b), (c, d)) = (pair(low01, low23), pair(high01, high23));
        [
            _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)),
        ]
    });
    let mut columns = rows;
    for c in 0..4 {
        let [q0, q1, q2, q3] = [quads[0][c], quads[1][c], quads[2][c], quads[3][c]];
        // 0x88 takes the even lanes of both operands, 0xdd the odd ones.
        let (even01, even23) = (_mm512_shuffle_f32x4::<0x88>(q0, q1), _mm512_shuffle_f32x4::<0x88>(q2, q3));
        let (odd01, odd23) = (_mm512_shuffle_f32x4::<0xdd>(q0, q1), _mm512_shuffle_f32x4::<0xdd>(q2, q3));
        columns[c] = _mm512_shuffle_f32x4::<0x88>(even01, even23);
        columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd01, odd23);
        columns[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even01, even23);
        columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd01, odd23);
    }
    columns
}

/// # Safety
/// - AVX-512 is there.
/// - `to` is writable for sixteen rows of sixteen floats, `stride` apart.
#[target_feature(enable = "avx512f")]
unsafe fn transpose(block: &Block, to: *mut f32, stride: usize) {
    // SAFETY: a row of the block is sixteen floats; the caller's contract for `to`.
    unsafe {
        let columns = columns_of(std::array::from_fn(|j| _mm512_loadu_ps(block[j].as_ptr())));
        for (k, column) in columns.into_iter().enumerate() {
            _mm512_storeu_ps(to.add(k * stride), column);
        }
    }
}

/// # Safety
/// As [`strip`], with the floats of `a`; the instruction set is there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
unsafe fn run_strip(a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
    let (a, rows, Strip { floats, stride, cols, next }) = (a.floats.as_ptr(), a.rows, c);
    let c = floats.as_mut_ptr();
    // SAFETY: the caller's contract.
    unsafe {
        dispatch_strip!(
            Avx512,
            __m512,
            rows,
            (a, b, c, stride, cols, next),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
        );
    }
}

impl Words for __m512 {
    const STEP: usize = Single::STEP;

    #[inline(always)]
    fn of(words: __m512) -> Self {
        words
    }
}

/// # Safety
/// As [`turned::run`]; the instruction set is there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
unsafe fn run_dots<T: Element>(part: Part<'_, T>) {
    // SAFETY: the caller's contract.
    unsafe { super::turned::run::<__m512, T>(part) }
}

/// # Safety
/// AVX-512, FMA and F16C are there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
pub(super) unsafe fn call<R>(f: impl FnOnce() -> R) -> R {
    f()
}

impl Kernel for Avx512 {
    const NAME: &'static str = "x86_64-avx512-f32-14x32";
    /// 14 x 32 accumulators are 28 registers; two hold B, and A comes as an embedded broadcast.
    const MR: usize = 14;
    const NR: usize = 32;
    /// 192 x 32 floats are 24 KiB, half of a 48 KiB L1.
    const KC: usize = 192;
    const A_STRIDE: usize = 16;
    type Word = Single;
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

    #[inline(always)]
    fn for_bf16<V: KernelVisitor>(self, visitor: V) -> V::Output {
        if self.bf16 == Bf16::Dot
            && let Some(kernel) = Avx512Bf16::detect()
        {
            return visitor.visit(kernel);
        }
        #[cfg(target_os = "linux")]
        if self.bf16 == Bf16::Tiles
            && let Some(kernel) = Amx::detect()
        {
            return visitor.visit(kernel);
        }
        visitor.visit(self)
    }

    fn tile(self, (): &(), a: Panel<'_>, b: &[f32], c: &mut [f32], first: bool) {
        check::<Self>(a, b, c);
        // SAFETY: `check` compared the three lengths with what the tile reads and writes; `self` proves the ISA.
        unsafe { run(a, b.as_ptr(), c.as_mut_ptr(), first) }
    }

    #[inline(always)]
    fn transpose(self, block: &Block, to: &mut [f32], stride: usize) {
        assert!(stride >= EDGE && to.len() >= (EDGE - 1) * stride + EDGE, "room for a transposed block");
        // SAFETY: the assertion compared the length with the 16 rows written; `self` proves the ISA.
        unsafe { transpose(block, to.as_mut_ptr(), stride) }
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves the ISA.
        unsafe { call(f) }
    }
}

impl Strips for Avx512 {
    fn strip(self, a: Panel<'_>, b: &[&[f32]], c: Strip<'_>) {
        check_strip::<Self>(a, b, &c);
        // SAFETY: `check_strip` compared every length with what is read and written; `self` proves the ISA.
        unsafe { run_strip(a, b, c) }
    }
}

impl Dots for Avx512 {
    #[inline(always)]
    fn dots<T: Element>(self, (): &(), a: (usize, &[f32]), b: [Runs<'_, T>; 2], sums: (&mut [f32], bool)) {
        // SAFETY: `self` proves the ISA.
        super::turned::dots::<Self, T>(a, &b, sums, |part| unsafe { run_dots(part) });
    }
}
