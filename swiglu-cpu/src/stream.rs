//! Products with few rows, whose time is that of reading B: it is read once, where it lies, and not packed.
//!
//! A task has some columns of the output and all of its rows, and walks down B a few rows at a time: long runs of each,
//! a handful of streams at once. Its accumulators are small enough for L1 and L2, and are continued in ascending k, so
//! each element gets the bits that the tiled driver would give it.

use std::ops::Range;

use swiglu_core::{Dtype, Element, Host, MatRef};

use crate::arena::Tasks;
use crate::gemm::{Output, divide, is_bf16};
use crate::grid::{Grid, Tiling, even_parts};
use crate::kernels::{Ahead, Kernel, KernelVisitor, Panel, Strip, Strips};
use crate::pack::ahead;
use crate::word::Word;

/// Up to this many rows, reading B in place is faster wherever B lies: 0.21 ms for 0.29 tiled at 1, 784, 512, and 26.4 for
/// 43.4 at 1, 4096, 11008 (two cores of a Xeon at 2.1 GHz, AVX-512).
const FEW_ROWS: usize = 8;
/// Up to this many where B comes from memory: 38.5 ms for 44.7 at 16, 4096, 11008, but 0.40 for 0.35 at 16, 784, 512.
const MOST_ROWS: usize = 16;
/// Bytes of B that no core's L2 holds.
const LARGE: usize = 16 << 20;

/// Whether a product with `m` rows, and a B of `bytes`, is faster without packing.
pub(crate) fn pays(m: usize, bytes: usize) -> bool {
    m <= FEW_ROWS || (m <= MOST_ROWS && bytes >= LARGE)
}

/// Rows of B at a time: as many streams as one core's prefetcher follows without losing one, and accumulators are
/// loaded and stored once for so many multiply-adds.
const DEPTH: usize = 8;
/// Columns of B at a time, where they are read in place: whole pages of f32, since finding a page takes as long as reading a
/// part of it. With DEPTH rows they are 64 KiB, in L2 for the second group of rows of A. Two cores of a Zen 5 take 10.7 ms for
/// 13.7 with 128 of them (f32, 1, 4096, 11008, with hints).
const RUN: usize = 2048;
/// Columns at a time where words are made of them first: 256 bytes of sixteen rows of bf16, so that as many streams are under
/// way. Two cores of a Zen 5 take 5.8 ms for 6.7 with 2048 of them, and 6.9 for 8.9 with 16 rows (bf16, 1, 4096, 11008).
const MADE_RUN: usize = 128;
/// Columns of a task: 16 rows of both accumulators are 256 KiB, in L2.
const COLUMNS: usize = 2048;

/// Columns of B at a time.
const fn run_len<W: Word, T: Element>() -> usize {
    if is_in_place::<W, T>() { RUN } else { MADE_RUN }
}

/// Whether elements are words where they lie.
const fn is_in_place<W: Word, T: Element>() -> bool {
    W::STEP == 1 && matches!(T::DTYPE, Dtype::F32)
}

/// The gate and the up factor, `[k, n]` each, or `[n, k]`.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a, T: Element> {
    pub(crate) gate: MatRef<'a, T, Host>,
    pub(crate) up: MatRef<'a, T, Host>,
}

/// Blocks of such a product.
pub(crate) fn grid(tiling: Tiling, shape: [usize; 3], threads: usize) -> Grid {
    Grid::of_few_rows(tiling, shape, threads, (tiling.nr / 2, COLUMNS))
}

/// Floats that a task works in: both accumulators, DEPTH columns of A, widened runs of B, and one group of columns of
/// both accumulators as a tile has them.
pub(crate) fn task_len(grid: &Grid) -> usize {
    let Grid { m, tiling, .. } = grid;
    2 * m * grid.col_edge + m.div_ceil(tiling.mr) * DEPTH * tiling.a_stride + DEPTH * MADE_RUN + m * tiling.nr
}

/// output = a . [gate | up], in blocks of `grid`, on the current thread pool: with the kernel for bf16 where both are. The
/// grid is made for the same kernel.
pub(crate) fn stream<K, T, O>(
    kernel: K,
    grid: &Grid,
    a: MatRef<'_, T, Host>,
    b: Pair<'_, T>,
    output: O,
    tasks: Tasks<'_>,
) where
    K: Kernel,
    T: Element,
    O: Output,
{
    let product = Product { grid, a, b, output, tasks };
    if const { is_bf16::<T>() } {
        kernel.for_bf16(product);
    } else {
        product.visit(kernel);
    }
}

/// A product that only lacks a kernel.
struct Product<'a, T: Element, O> {
    grid: &'a Grid,
    a: MatRef<'a, T, Host>,
    b: Pair<'a, T>,
    output: O,
    tasks: Tasks<'a>,
}

impl<T: Element, O: Output> KernelVisitor for Product<'_, T, O> {
    type Output = ();

    fn visit<K: Kernel>(self, kernel: K) {
        let Self { grid, a, b, output, tasks } = self;
        let kernel = kernel.strips().expect("products are only streamed by kernels that can");
        let work = |_: Range<usize>, cols: Range<usize>, mut output: O| {
            tasks.with(task_len(grid), |scratch| {
                kernel.vectorize(
                    #[inline(always)]
                    || block(kernel, grid, a, b, cols, &mut output, scratch),
                );
            });
        };
        divide(grid, 0..grid.m, 0..grid.n, output, &work);
    }
}

#[inline(always)]
fn block<K, T, O>(
    kernel: K,
    grid: &Grid,
    a: MatRef<'_, T, Host>,
    b: Pair<'_, T>,
    cols: Range<usize>,
    output: &mut O,
    scratch: &mut [f32],
) where
    K: Strips,
    T: Element,
    O: Output,
{
    let (m, width) = (grid.m, cols.len());
    let (gate, rest) = scratch.split_at_mut(m * width);
    let (up, rest) = rest.split_at_mut(m * width);
    let (panel, rest) = rest.split_at_mut(m.div_ceil(K::MR) * DEPTH * K::A_STRIDE);
    let (runs, tile) = rest.split_at_mut(DEPTH * MADE_RUN);
    gate.fill(0.0);
    up.fill(0.0);
    for start in (0..grid.k).step_by(DEPTH * K::Word::STEP) {
        let ks = start..grid.k.min(start + DEPTH * K::Word::STEP);
        pack_columns::<K, T>(a, ks.clone(), panel);
        for (factor, accumulators) in [(b.gate, &mut *gate), (b.up, &mut *up)] {
            for run in (0..width).step_by(run_len::<K::Word, T>()) {
                let run = run..width.min(run + run_len::<K::Word, T>());
                let from = cols.start + run.start..cols.start + run.end;
                with_rows::<K::Word, T>(factor, ks.clone(), from, runs, |rows, next| {
                    add_strips(kernel, panel, (rows, next), accumulators, (m, width), run.clone());
                });
            }
        }
    }
    let half = K::NR / 2;
    for start in (0..width).step_by(half) {
        let part = start..width.min(start + half);
        for (r, tile) in tile.chunks_exact_mut(K::NR).enumerate().take(m) {
            let row = r * width + part.start..r * width + part.end;
            tile[..part.len()].copy_from_slice(&gate[row.clone()]);
            tile[half..half + part.len()].copy_from_slice(&up[row]);
        }
        output.store::<K>(0..m, part, &tile[..m * K::NR]);
    }
}

/// Columns `ks` of A: for each group of rows that a strip takes, k-major.
#[inline(always)]
fn pack_columns<K: Kernel, T: Element>(a: MatRef<'_, T, Host>, ks: Range<usize>, panel: &mut [f32]) {
    for (rows, panel) in even_parts(0..a.rows(), K::MR).zip(panel.chunks_exact_mut(DEPTH * K::A_STRIDE)) {
        for (r, row) in rows.enumerate() {
            let row = a.row(row).and_then(|row| row.get(ks.clone())).unwrap_or_default();
            let mut words = [0.0; DEPTH];
            K::Word::along(row, &mut words);
            for (panel, word) in panel.chunks_exact_mut(K::A_STRIDE).zip(words) {
                panel[r] = word;
            }
        }
    }
}

/// Calls `f` with the words of the columns `cols` of the rows `ks`, where they lie if they are f32, else made in `runs`; and
/// with where those of as many rows begin that come next.
#[inline(always)]
fn with_rows<W: Word, T: Element>(
    matrix: MatRef<'_, T, Host>,
    ks: Range<usize>,
    cols: Range<usize>,
    runs: &mut [f32],
    f: impl FnOnce(&[&[f32]], Ahead<'_>),
) {
    let row = |k: usize| matrix.row(k).and_then(|row| row.get(cols.clone())).unwrap_or_default();
    let mut rows: [&[f32]; DEPTH] = [&[]; DEPTH];
    let rows = &mut rows[..ks.len().div_ceil(W::STEP)];
    for ((to, k), run) in
        rows.iter_mut().zip(ks.clone().step_by(W::STEP)).zip(runs.chunks_exact_mut(MADE_RUN))
    {
        let first = row(k);
        *to = match T::as_f32(first) {
            Some(floats) if is_in_place::<W, T>() => floats,
            _ => {
                let two = W::STEP == 2 && k + 1 < ks.end;
                W::across(first, if two { row(k + 1) } else { &[] }, run);
                &run[..cols.len()]
            }
        };
    }
    let next: [*const u8; 2 * DEPTH] = std::array::from_fn(|i| ahead(matrix, ks.end + i, cols.start).cast());
    f(rows, Ahead { rows: &next[..ks.len()], bytes: size_of::<T>() });
}

/// Adds the products of one run of B to the accumulators of every row.
#[inline(always)]
fn add_strips<K: Strips>(
    kernel: K,
    panel: &[f32],
    (rows, next): (&[&[f32]], Ahead<'_>),
    accumulators: &mut [f32],
    (m, stride): (usize, usize),
    run: Range<usize>,
) {
    let depth = rows.len();
    for (group, floats) in even_parts(0..m, K::MR).zip(panel.chunks_exact(DEPTH * K::A_STRIDE)) {
        let a = Panel { rows: group.len(), depth, floats };
        let floats = &mut accumulators[group.start * stride + run.start..];
        // Once is enough, and a single row of A does better without where rows of B are read in place: 8.8 ms for 9.8 (f32, 1,
        // 4096, 11008, two cores of a Zen 5; 4 rows take 11.1 for 12.0 with hints, 16 take 14.3 for 16.5).
        let hints = group.start == 0 && (m > 1 || next.bytes < size_of::<f32>());
        let next = if hints { next } else { Ahead { rows: &[], ..next } };
        kernel.strip(a, rows, Strip { floats, stride, cols: run.len(), next });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Portable;

    #[test]
    fn few_rows_are_streamed_and_some_along_large_weights() {
        assert!(pays(1, 0) && pays(8, 0) && pays(16, LARGE));
        assert!(!pays(9, LARGE - 1) && !pays(17, usize::MAX));
    }

    #[test]
    fn tasks_cover_the_columns_in_whole_panels() {
        for (n, threads) in [(1, 1), (3, 8), (512, 2), (11008, 2), (100_000, 3)] {
            let grid = grid(Tiling::of::<Portable>(), [2, n, 10], threads);
            assert!(grid.col_edge.is_multiple_of(grid.width) && grid.col_edge <= COLUMNS, "{grid:?}");
            assert!(grid.blocks() * grid.col_edge >= n, "{grid:?}");
            assert!(task_len(&grid) >= 2 * 2 * grid.col_edge, "{grid:?}");
        }
    }
}
