//! The one register tile that every instruction set instantiates.

use super::{Ahead, Kernel, Panel, Strip, prefetch, prefetch_near};

/// Steps of k that a tile asks for its panel of A ahead of use: 8 lines at 14 cycles each, longer than L2 takes.
const AHEAD: usize = 8;
/// The same to L2, for panels that come from L3 or from memory: 64 lines are 900 cycles. A third of a panel; the next panel
/// lies behind. 4 % of a forward of 1024, 4096, 11008 on a Zen 5, where all of x is packed once.
const FAR: usize = 64;
/// Floats of a cache line.
const LINE: usize = 16;

/// A vector register of f32.
///
/// # Safety
/// Callers run on a machine that has the instruction set of the implementation.
pub(super) trait Vector: Copy {
    const LANES: usize;
    unsafe fn zero() -> Self;
    /// Loads [`LANES`](Self::LANES) floats from `p`, at any alignment.
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn splat(v: f32) -> Self;
    /// `self * b + c`; fused where the instruction set has it.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The same for one float.
    unsafe fn mul_add_one(a: f32, b: f32, c: f32) -> f32;
}

/// `MR` rows of two vectors each: the gate and the up column block, or two adjacent blocks.
///
/// # Safety
/// - The machine has `V`'s instruction set.
/// - `a` is readable for `MR` rows of `depth` steps, `b` for `depth * 2 * LANES` floats, `c` is writable for
///   `MR * 2 * LANES` floats.
#[inline(always)]
pub(super) unsafe fn tile<K: Kernel, V: Vector, const MR: usize>(
    depth: usize,
    mut a: *const f32,
    mut b: *const f32,
    c: *mut f32,
    first: bool,
) {
    let row = |r: usize, v: usize| (2 * r + v) * V::LANES;
    // SAFETY: the caller's contract. Each step of k moves `a` by A_STRIDE floats and `b` by two vectors.
    unsafe {
        let mut acc = [[V::zero(); 2]; MR];
        if !first {
            for r in 0..MR {
                acc[r] = [V::load(c.add(row(r, 0))), V::load(c.add(row(r, 1)))];
            }
        }
        // The accumulators of the tile that comes next lie right behind; it starts by loading them.
        for line in (0..2 * MR * V::LANES).step_by(LINE) {
            prefetch_near(c.wrapping_add(K::MR * K::NR + line));
        }
        for _ in 0..depth {
            prefetch_near(a.wrapping_add(AHEAD * K::A_STRIDE));
            prefetch(a.wrapping_add(FAR * K::A_STRIDE));
            let b0 = V::load(b);
            let b1 = V::load(b.add(V::LANES));
            for r in 0..MR {
                let x = V::splat(*a.add(r));
                acc[r][0] = x.mul_add(b0, acc[r][0]);
                acc[r][1] = x.mul_add(b1, acc[r][1]);
            }
            a = a.add(K::A_STRIDE);
            b = b.add(2 * V::LANES);
        }
        for r in 0..MR {
            acc[r][0].store(c.add(row(r, 0)));
            acc[r][1].store(c.add(row(r, 1)));
        }
    }
}

/// `MR` rows of two vectors at a time, along rows of B that are not packed.
///
/// # Safety
/// - The machine has `V`'s instruction set.
/// - `a` is readable for `MR` rows of `b.len()` steps, every row of `b` for `cols`, and `c` is writable for `MR` rows of
///   `cols` floats, `stride` apart.
#[inline(always)]
pub(super) unsafe fn strip<K: Kernel, V: Vector, const MR: usize>(
    a: *const f32,
    b: &[&[f32]],
    c: *mut f32,
    stride: usize,
    cols: usize,
    next: Ahead<'_>,
) {
    let whole = cols - cols % (2 * V::LANES);
    // SAFETY: the caller's contract; `j` and what is loaded from there on stay below `cols`.
    unsafe {
        for j in (0..whole).step_by(2 * V::LANES) {
            let at = |r: usize, v: usize| r * stride + j + v * V::LANES;
            let mut acc = [[V::zero(); 2]; MR];
            for r in 0..MR {
                acc[r] = [V::load(c.add(at(r, 0))), V::load(c.add(at(r, 1)))];
            }
            next.fetch(j, 2 * V::LANES);
            for (k, row) in b.iter().enumerate() {
                let row = row.as_ptr().add(j);
                let (b0, b1) = (V::load(row), V::load(row.add(V::LANES)));
                for r in 0..MR {
                    let x = V::splat(*a.add(k * K::A_STRIDE + r));
                    acc[r][0] = x.mul_add(b0, acc[r][0]);
                    acc[r][1] = x.mul_add(b1, acc[r][1]);
                }
            }
            for r in 0..MR {
                acc[r][0].store(c.add(at(r, 0)));
                acc[r][1].store(c.add(at(r, 1)));
            }
        }
        for j in whole..cols {
            for r in 0..MR {
                let c = c.add(r * stride + j);
                for (k, row) in b.iter().enumerate() {
                    *c = V::mul_add_one(*a.add(k * K::A_STRIDE + r), *row.as_ptr().add(j), *c);
                }
            }
        }
    }
}

/// Floats of a panel of A that a tile reads.
#[inline(always)]
fn panel_len<K: Kernel>(rows: usize, depth: usize) -> usize {
    depth.checked_sub(1).map_or(0, |last| last * K::A_STRIDE + rows)
}

/// What every kernel checks before it goes to pointers: that all of `c` is there, and the columns of `b` that it has.
#[inline(always)]
pub(super) fn check_strip<K: Kernel>(a: Panel<'_>, b: &[&[f32]], c: &Strip<'_>) {
    let Panel { rows, depth, floats } = a;
    assert!((1..=K::MR).contains(&rows) && depth == b.len(), "strip of {rows} rows");
    let there = floats.len() >= panel_len::<K>(rows, depth) && b.iter().all(|row| row.len() >= c.cols);
    let room = c.stride >= c.cols && c.floats.len() >= (rows - 1) * c.stride + c.cols;
    assert!(there && room, "operands of a strip are too short");
}

/// What every kernel checks before it goes to pointers.
#[inline(always)]
pub(super) fn check<K: Kernel>(a: Panel<'_>, b: &[f32], c: &[f32]) {
    let Panel { rows, depth, floats } = a;
    let a_len = panel_len::<K>(rows, depth);
    assert!((1..=K::MR).contains(&rows), "tile of {rows} rows");
    let long_enough = floats.len() >= a_len && b.len() >= depth * K::NR && c.len() >= rows * K::NR;
    assert!(long_enough, "panels of a tile are too short");
}

/// Calls `tile` with the row count as a constant.
macro_rules! dispatch_rows {
    ($kernel:ty, $vector:ty, $rows:expr, $args:tt, [$($mr:literal),*]) => {
        match $rows {
            $($mr => tile::<$kernel, $vector, $mr> $args,)*
            _ => {}
        }
    };
}
pub(super) use dispatch_rows;

/// Calls `strip` with the row count as a constant.
macro_rules! dispatch_strip {
    ($kernel:ty, $vector:ty, $rows:expr, $args:tt, [$($mr:literal),*]) => {
        match $rows {
            $($mr => strip::<$kernel, $vector, $mr> $args,)*
            _ => {}
        }
    };
}
pub(super) use dispatch_strip;
