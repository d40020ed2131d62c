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

use swiglu_core::{Dtype, Element};

use super::avx512::columns_of;
use super::tile::Vector;
use super::{EDGE, Kernel, Runs, prefetch};
use crate::grid::even_parts;
use crate::pack::ahead;

/// Rows of A whose sums registers hold at once, beside sixteen columns of B. Twice as many are the most.
const MOST: usize = 8;
/// Bytes of each row that are asked for ahead of use; with half or twice as much that loop is 4 % slower.
const AHEAD: usize = 1024;

/// A vector of sixteen words.
pub(super) trait Words: Vector {
    /// Elements along k in a word: those of the kernel's [`Word`](crate::word::Word).
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
    /// Of A, at most twice [`MOST`].
    rows: usize,
    /// For each block of k the words of all rows, one row after the other.
    a: &'a [f32],
    b: Rows<T>,
    /// The sums of a row of A lie `c_stride` behind those of the one before.
    c: &'a mut [f32],
    c_stride: usize,
    first: bool,
}

impl<T: Element> Part<'_, T> {
    /// What [`run`] needs of the lengths.
    fn check<V: Words>(&self) {
        let blocks = self.b.len.div_ceil(EDGE * V::STEP);
        let there = self.a.len() >= blocks * self.rows * EDGE;
        let some = (1..=2 * MOST).contains(&self.rows);
        assert!(some && there && self.c.len() >= (self.rows - 1) * self.c_stride + EDGE, "operands of dots");
    }
}

/// See [`Dots::dots`](super::Dots::dots); `run` is the kernel's call of [`run`].
#[inline(always)]
pub(super) fn dots<K: Kernel, T: Element>(
    (rows, a): (usize, &[f32]),
    b: &[Runs<'_, T>; 2],
    (sums, first): (&mut [f32], bool),
    run: impl Fn(Part<'_, T>),
) {
    const { assert!(K::NR == 2 * EDGE && K::DOT_ROWS <= 2 * MOST) };
    if b[0].0.cols() == 0 && first {
        sums.fill(0.0);
    }
    // Rows of this call: of each matrix, or of one.
    let call = b[0].1.end.max(b[1].1.end) - b[0].1.start;
    let next = [(&b[1], b[1].1.start), (&b[0], b[0].1.start + call)];
    for ((runs, next), from) in b.iter().zip(next).zip([0, EDGE]) {
        let Some(b) = Rows::of(runs, next) else { continue };
        run(Part { rows, a, b, c: &mut sums[from..], c_stride: K::NR, first });
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
            1 => add_all::<V, T, 1>(part),
            2 => add_all::<V, T, 2>(part),
            3 => add_all::<V, T, 3>(part),
            4 => add_all::<V, T, 4>(part),
            5 => add_all::<V, T, 5>(part),
            6 => add_all::<V, T, 6>(part),
            7 => add_all::<V, T, 7>(part),
            8 => add_all::<V, T, 8>(part),
            _ => add_halves::<V, T>(part),
        }
    }
}

/// Of rows whose sums stay in registers.
///
/// # Safety
/// - As [`run`].
/// - `part` has passed its check and has `R` rows.
#[inline(always)]
unsafe fn add_all<V: Words, T: Element, const R: usize>(part: Part<'_, T>) {
    let Part { a, b, c, c_stride, first, .. } = part;
    let (a, c) = (a.as_ptr(), c.as_mut_ptr());
    let step = EDGE * V::STEP;
    let whole = b.len / step;
    // SAFETY: the caller's contract. Rows of B are readable for `len` elements, since each came from a slice of that length.
    unsafe {
        let mut sums = load_sums::<V, R>(c, c_stride, first);
        for block in 0..whole {
            b.fetch(block * step);
            let columns = columns_of(load_all::<V, T>(&b, block * step, step));
            add(&mut sums, a.add(block * R * EDGE), &columns);
        }
        if whole * step < b.len {
            let left = b.len - whole * step;
            let columns = columns_of(load_all::<V, T>(&b, whole * step, left));
            add(&mut sums, a.add(whole * R * EDGE), &columns[..left.div_ceil(V::STEP)]);
        }
        store_sums(sums, c, c_stride);
    }
}

/// Of more rows: the first half of them, then the others, with each block of k. Its columns are turned once: 7.7 ms for 8.8 at
/// 16, 4096, 11008 in bf16 and 14.2 for 15.7 in f32 on two cores of a Zen 5.
///
/// # Safety
/// - As [`run`].
/// - `part` has passed its check and has more than [`MOST`] rows.
#[inline(always)]
unsafe fn add_halves<V: Words, T: Element>(part: Part<'_, T>) {
    let Part { rows, a, b, c, c_stride, first } = part;
    let (a, c) = (a.as_ptr(), c.as_mut_ptr());
    let step = EDGE * V::STEP;
    for (block, at) in (0..b.len).step_by(step).enumerate() {
        b.fetch(at);
        let there = step.min(b.len - at);
        // SAFETY: as in `add_all`; both halves are of the rows that `check` counted.
        unsafe {
            let columns = columns_of(load_all::<V, T>(&b, at, there));
            let columns = &columns[..there.div_ceil(V::STEP)];
            for half in even_parts(0..rows, MOST) {
                let a = a.add((block * rows + half.start) * EDGE);
                let c = c.add(half.start * c_stride);
                let first = first && block == 0;
                match half.len() {
                    4 => add_half::<V, 4>(a, columns, c, c_stride, first),
                    5 => add_half::<V, 5>(a, columns, c, c_stride, first),
                    6 => add_half::<V, 6>(a, columns, c, c_stride, first),
                    7 => add_half::<V, 7>(a, columns, c, c_stride, first),
                    _ => add_half::<V, 8>(a, columns, c, c_stride, first),
                }
            }
        }
    }
}

/// # Safety
/// As [`add`] and [`load_sums`].
#[inline(always)]
unsafe fn add_half<V: Words, const R: usize>(
    a: *const f32,
    columns: &[__m512],
    c: *mut f32,
    c_stride: usize,
    first: bool,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = load_sums::<V, R>(c, c_stride, first);
        add(&mut sums, a, columns);
        store_sums(sums, c, c_stride);
    }
}

/// The sums of `R` rows, or zeros.
///
/// # Safety
/// - As [`run`].
/// - Sixteen floats are readable in each of `R` rows, `stride` apart.
#[inline(always)]
unsafe fn load_sums<V: Words, const R: usize>(c: *const f32, stride: usize, first: bool) -> [V; R] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [V::zero(); R];
        if !first {
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = V::load(c.add(r * stride));
            }
        }
        sums
    }
}

/// # Safety
/// As [`load_sums`], of floats that are writable.
#[inline(always)]
unsafe fn store_sums<V: Words, const R: usize>(sums: [V; R], c: *mut f32, stride: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        for (r, sums) in sums.into_iter().enumerate() {
            sums.store(c.add(r * stride));
        }
    }
}

/// Adds the products of `R` rows of A with some columns, in their order.
///
/// # Safety
/// - As [`run`].
/// - As many words as there are columns are readable in each of `R` rows of `a`, [`EDGE`] apart.
#[inline(always)]
unsafe fn add<V: Words, const R: usize>(sums: &mut [V; R], a: *const f32, columns: &[__m512]) {
    // SAFETY: the caller's contract.
    unsafe {
        for (word, column) in columns.iter().enumerate() {
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = V::splat(*a.add(r * EDGE + word)).mul_add(V::of(*column), *sums);
            }
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
