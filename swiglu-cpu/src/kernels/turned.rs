//! Rows of B that are turned in registers, where they are multiplied, and not packed: [`Dots`](super::Dots) for the kernels of
//! AVX-512.
//!
//! Sixteen rows of one matrix are read side by side, a cache line of each in turn: that many streams a core's prefetcher
//! follows. A plain loop on two cores of a Zen 5 reads 180 MB at 41 GB/s that way, as it does row after row; at 36 if both
//! matrices are read side by side, and at 34 by 1 KiB of each row.

use std::arch::x86_64::{
    __m512, _mm256_maskz_loadu_epi16, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_setzero_ps, _mm512_slli_epi32,
};
use std::ops::Range;

use swiglu_core::{Dtype, Element};

use super::avx512::turned;
use super::tile::Vector;
use super::{EDGE, Kernel, Runs, prefetch};
use crate::grid::even_parts;
use crate::pack::ahead;
use crate::word::Word;

/// Rows of A whose sums registers hold, beside sixteen columns of B.
const MOST: usize = 8;
/// Blocks of k that more rows of A take in turns: of each row of B a KiB, which is in L2 for the second of them.
const TOGETHER: usize = 16;
/// Bytes of each row that are asked for ahead of use; with half or twice as much that loop is 4 % slower.
const AHEAD: usize = 1024;

/// A vector of sixteen words.
pub(super) trait Words: Vector {
    /// Elements along k in a word.
    const STEP: usize;

    fn of(words: __m512) -> Self;
}

/// Sixteen rows of B; where there are fewer, the last one again.
struct Rows<T> {
    rows: [*const T; EDGE],
    /// Elements of each.
    len: usize,
    /// The rows that are read after them. Addresses and nothing else: they need not be readable.
    next: [*const T; EDGE],
}

impl<T: Element> Rows<T> {
    /// `None` where there is no row.
    #[inline(always)]
    fn of((matrix, rows): &Runs<'_, T>, (after, first): (&Runs<'_, T>, usize)) -> Option<Self> {
        let last = rows.len().checked_sub(1)?;
        let len = matrix.cols();
        let next = std::array::from_fn(|at| ahead(after.0, first + at, 0));
        let rows = std::array::from_fn(|at| {
            let row = matrix.row(rows.start + at.min(last)).unwrap_or_default();
            assert!(row.len() == len, "a row of B");
            row.as_ptr()
        });
        Some(Self { rows, len, next })
    }

    /// Asks for what is read after the block that begins at `at`.
    #[inline(always)]
    fn fetch(&self, at: usize) {
        let at = at + AHEAD / size_of::<T>();
        let (rows, at) = if at < self.len { (&self.rows, at) } else { (&self.next, at - self.len) };
        for row in rows {
            prefetch(row.wrapping_add(at));
        }
    }
}

/// Rows of A, sixteen of B, and where their products go.
pub(super) struct Part<'a, T> {
    /// Of A, at most [`MOST`].
    rows: usize,
    /// The words of those rows in the first block of k; those of the next lie `a_stride` behind.
    a: &'a [f32],
    a_stride: usize,
    b: &'a Rows<T>,
    blocks: Range<usize>,
    c: &'a mut [f32],
    c_stride: usize,
    first: bool,
    /// Whether rows of B are asked for ahead of use.
    fetches: bool,
}

impl<T: Element> Part<'_, T> {
    /// What [`run`] needs of the lengths.
    fn check<V: Words>(&self) {
        let last = self.rows - 1;
        let a = self.blocks.end.saturating_sub(1) * self.a_stride + (last + 1) * EDGE;
        let there = (1..=MOST).contains(&self.rows) && self.a.len() >= a;
        let inside = self.blocks.end <= self.b.len.div_ceil(EDGE * V::STEP);
        let room = self.c.len() >= last * self.c_stride + EDGE;
        assert!(there && inside && room, "operands of dots are too short");
    }
}

/// See [`Dots::dots`](super::Dots::dots); `run` is the kernel's call of [`run`].
#[inline(always)]
pub(super) fn dots<K: Kernel, T: Element>(
    (rows, a): (usize, &[f32]),
    b: &[Runs<'_, T>; 2],
    (c, first): (&mut [f32], bool),
    run: impl Fn(Part<'_, T>),
) {
    const { assert!(K::NR == 2 * EDGE && K::DOT_ROWS <= 2 * MOST) };
    let blocks = b[0].0.cols().div_ceil(EDGE * K::Word::STEP);
    if blocks == 0 && first {
        c.fill(0.0);
    }
    // Rows of this call: of each matrix, or of one.
    let call = b[0].1.end.max(b[1].1.end) - b[0].1.start;
    let next = [(&b[1], b[1].1.start), (&b[0], b[0].1.start + call)];
    let together = if rows <= MOST { blocks } else { TOGETHER };
    for (matrix, (runs, next)) in b.iter().zip(next).enumerate() {
        let Some(b) = Rows::of(runs, next) else { continue };
        for start in (0..blocks).step_by(together.max(1)) {
            for part in even_parts(0..rows, MOST) {
                run(Part {
                    rows: part.len(),
                    a: &a[part.start * EDGE..],
                    a_stride: rows * EDGE,
                    b: &b,
                    blocks: start..blocks.min(start + together),
                    c: &mut c[part.start * K::NR + matrix * EDGE..],
                    c_stride: K::NR,
                    first: first && start == 0,
                    fetches: part.start == 0,
                });
            }
        }
    }
}

/// Adds the products of a part to its sums, for each in ascending k.
///
/// # Safety
/// The machine has `V`'s instruction set, and AVX-512 F, BW and VL.
#[inline(always)]
pub(super) unsafe fn run<V: Words, T: Element>(part: Part<'_, T>) {
    part.check::<V>();
    // SAFETY: `check` compared the lengths with the rows, and the caller vouches for the instruction set.
    unsafe {
        match part.rows {
            1 => add::<V, T, 1>(part),
            2 => add::<V, T, 2>(part),
            3 => add::<V, T, 3>(part),
            4 => add::<V, T, 4>(part),
            5 => add::<V, T, 5>(part),
            6 => add::<V, T, 6>(part),
            7 => add::<V, T, 7>(part),
            _ => add::<V, T, MOST>(part),
        }
    }
}

/// # Safety
/// - As [`run`].
/// - `part` has passed its check and has `R` rows.
#[inline(always)]
unsafe fn add<V: Words, T: Element, const R: usize>(part: Part<'_, T>) {
    let Part { a, a_stride, b, blocks, c, c_stride, first, fetches, .. } = part;
    let (a, c) = (a.as_ptr(), c.as_mut_ptr());
    let step = EDGE * V::STEP;
    let whole = blocks.end.min(b.len / step);
    // SAFETY: the caller's contract. `rows` are readable for `len` elements, since each came from a slice of that length, and
    // no block before `whole` ends behind them; of the one that does, only what is there is read.
    unsafe {
        let mut sums = [V::zero(); R];
        if !first {
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = V::load(c.add(r * c_stride));
            }
        }
        for block in blocks.start..whole {
            if fetches {
                b.fetch(block * step);
            }
            let columns = turned(load_all::<V, T>(b, block * step, step));
            for (word, column) in columns.into_iter().enumerate() {
                add_column(&mut sums, a.add(block * a_stride + word), column);
            }
        }
        if whole < blocks.end {
            let left = b.len - whole * step;
            let columns = turned(load_all::<V, T>(b, whole * step, left));
            for (word, column) in columns.into_iter().enumerate().take(left.div_ceil(V::STEP)) {
                add_column(&mut sums, a.add(whole * a_stride + word), column);
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            sums.store(c.add(r * c_stride));
        }
    }
}

/// # Safety
/// - As [`run`].
/// - `a` is a word of the first row, and those of the others lie [`EDGE`] apart.
#[inline(always)]
unsafe fn add_column<V: Words, const R: usize>(sums: &mut [V; R], a: *const f32, column: __m512) {
    // SAFETY: the caller's contract.
    unsafe {
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = V::splat(*a.add(r * EDGE)).mul_add(V::of(column), *sums);
        }
    }
}

/// Sixteen words of each row: `count` elements from `at` on, and zeros.
///
/// # Safety
/// As [`load`], for each row.
#[inline(always)]
unsafe fn load_all<V: Words, T: Element>(b: &Rows<T>, at: usize, count: usize) -> [__m512; EDGE] {
    // SAFETY: the caller's contract. A loop, since a closure would not be compiled for the instruction set.
    unsafe {
        let mut all = [_mm512_setzero_ps(); EDGE];
        for (to, row) in all.iter_mut().zip(b.rows) {
            *to = load::<V, T>(row.add(at), count);
        }
        all
    }
}

/// Sixteen words: the first `count` elements at `from`, and zeros.
///
/// # Safety
/// - AVX-512 F, BW and VL are there.
/// - `count` elements are readable.
#[inline(always)]
unsafe fn load<V: Words, T: Element>(from: *const T, count: usize) -> __m512 {
    let mask = if count < EDGE * V::STEP { (1 << count) - 1 } else { u32::MAX };
    // SAFETY: the caller's contract; what is masked is not read. An element has the size that its type says.
    unsafe {
        match T::DTYPE {
            Dtype::F32 => _mm512_maskz_loadu_ps(mask as u16, from.cast()),
            Dtype::F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask as u16, from.cast())),
            Dtype::Bf16 if V::STEP == 2 => _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, from.cast())),
            Dtype::Bf16 => {
                let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask as u16, from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
        }
    }
}
