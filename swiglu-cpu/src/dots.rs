//! Products with few rows along weights whose rows run along k, whose time is that of reading them: each row is read once,
//! where it lies, by a kernel that multiplies such runs with packed rows of A. Projections along `[2D, I]`, and dX along
//! `[I, 2D]`.

use std::ops::Range;

use swiglu_core::{Element, Host, MatRef};

use crate::arena::Tasks;
use crate::gemm::{Output, divide, is_bf16};
use crate::grid::{Grid, Tiling};
use crate::kernels::{Dots, DotsVisitor, EDGE, Kernel, KernelVisitor};
use crate::pack::pack_steps;
use crate::stream::Pair;

/// Columns of a task: enough that packing A, 128 KiB at 16 rows and I = 4096, is little beside 8 MiB of weights.
const COLUMNS: usize = 512;

/// Blocks of such a product: all rows, and columns for four tasks a thread where there are enough.
pub(crate) fn grid(tiling: Tiling, [m, n, k]: [usize; 3], threads: usize) -> Grid {
    let share = n.div_ceil(4 * threads.max(1)).clamp(1, COLUMNS).next_multiple_of(EDGE);
    Grid { m, n, k, tiling, row_edge: m.max(1), col_edge: share, width: EDGE, parts: 1, ahead: false }
}

/// Floats that a task works in: all rows of A, packed, one tile, and what the kernel needs.
pub(crate) fn task_len(grid: &Grid) -> usize {
    let Grid { tiling, k, m, .. } = grid;
    tiling.all_words(*k).next_multiple_of(EDGE) * m.next_multiple_of(EDGE)
        + tiling.dot_rows * tiling.nr
        + tiling.dot_work
}

/// output = a . [gate | up]^T, in blocks of `grid`, on the current thread pool, with the kernel for bf16 where both are. The
/// grid is made for the same kernel.
pub(crate) fn multiply<K, T, O>(
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
        KernelVisitor::visit(product, kernel);
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
        kernel.with_dots(self).expect("such a grid is only made for kernels that can");
    }
}

impl<T: Element, O: Output> DotsVisitor for Product<'_, T, O> {
    type Output = ();

    fn visit<K: Dots>(self, kernel: K) {
        let Self { grid, a, b, output, tasks } = self;
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
    K: Dots,
    T: Element,
    O: Output,
{
    let (rows, rest) = scratch.split_at_mut(scratch.len() - K::DOT_ROWS * K::NR - K::DOT_WORK);
    let (tile, work) = rest.split_at_mut(K::DOT_ROWS * K::NR);
    pack_steps(kernel, a, rows);
    let held = kernel.hold();
    for start in cols.clone().step_by(EDGE) {
        let part = start..cols.end.min(start + EDGE);
        let b = [b.gate, b.up].map(|factor| (factor, part.clone()));
        kernel.dots(&held, (grid.m, &*rows), b, (tile, true), work);
        output.store::<K>(0..grid.m, part.start - cols.start..part.end - cols.start, &tile[..grid.m * K::NR]);
    }
}

/// Elements of k that all columns of a task take before the next: 16 packed rows of them are 256 KiB, in L2.
const DEPTH: usize = 4096;

/// Blocks of dAB . Wf^T: all rows, and columns for four tasks a thread where there are enough. k is that of one half.
pub(crate) fn stacked_grid(tiling: Tiling, [m, n, k]: [usize; 3], threads: usize) -> Grid {
    let share = n.div_ceil(4 * threads.max(1)).clamp(1, COLUMNS).next_multiple_of(tiling.nr);
    Grid { m, n, k, tiling, row_edge: m.max(1), col_edge: share, width: tiling.nr, parts: 2, ahead: false }
}

/// Floats that a task works in: a part of all rows of A, packed, tiles of all its columns, and what the kernel needs.
pub(crate) fn stacked_task_len(grid: &Grid) -> usize {
    let Grid { tiling, k, m, col_edge, .. } = grid;
    let tiles = col_edge.div_ceil(tiling.nr);
    tiling.all_words(DEPTH.min(*k)).next_multiple_of(EDGE) * m.next_multiple_of(EDGE)
        + tiles * tiling.dot_rows * tiling.nr
        + tiling.dot_work
}

/// output = [a.0 | a.1] . [gate | up]^T, where rows of both run along k. The grid is made for the same kernel.
pub(crate) fn multiply_stacked<K, A, T, O>(
    kernel: K,
    grid: &Grid,
    a: (MatRef<'_, A, Host>, MatRef<'_, A, Host>),
    b: Pair<'_, T>,
    output: O,
    tasks: Tasks<'_>,
) where
    K: Kernel,
    A: Element,
    T: Element,
    O: Output,
{
    let product = StackedProduct { grid, a: [a.0, a.1], b: [b.gate, b.up], output, tasks };
    if const { is_bf16::<A>() && is_bf16::<T>() } {
        kernel.for_bf16(product);
    } else {
        KernelVisitor::visit(product, kernel);
    }
}

/// A product of two halves of k that only lacks a kernel.
struct StackedProduct<'a, A: Element, T: Element, O> {
    grid: &'a Grid,
    a: [MatRef<'a, A, Host>; 2],
    b: [MatRef<'a, T, Host>; 2],
    output: O,
    tasks: Tasks<'a>,
}

impl<A: Element, T: Element, O: Output> KernelVisitor for StackedProduct<'_, A, T, O> {
    type Output = ();

    fn visit<K: Kernel>(self, kernel: K) {
        kernel.with_dots(self).expect("such a grid is only made for kernels that can");
    }
}

impl<A: Element, T: Element, O: Output> DotsVisitor for StackedProduct<'_, A, T, O> {
    type Output = ();

    fn visit<K: Dots>(self, kernel: K) {
        let Self { grid, a, b, output, tasks } = self;
        let work = |_: Range<usize>, cols: Range<usize>, mut output: O| {
            tasks.with(stacked_task_len(grid), |scratch| {
                kernel.vectorize(
                    #[inline(always)]
                    || stacked_block(kernel, grid, (&a, &b), cols, &mut output, scratch),
                );
            });
        };
        divide(grid, 0..grid.m, 0..grid.n, output, &work);
    }
}

#[inline(always)]
fn stacked_block<K, A, T, O>(
    kernel: K,
    grid: &Grid,
    (a, b): (&[MatRef<'_, A, Host>; 2], &[MatRef<'_, T, Host>; 2]),
    cols: Range<usize>,
    output: &mut O,
    scratch: &mut [f32],
) where
    K: Dots,
    A: Element,
    T: Element,
    O: Output,
{
    let tiles = cols.len().div_ceil(K::NR) * K::DOT_ROWS * K::NR;
    let (rest, work) = scratch.split_at_mut(scratch.len() - K::DOT_WORK);
    let (rows, tiles) = rest.split_at_mut(rest.len() - tiles);
    let held = kernel.hold();
    let parts = || cols.clone().step_by(K::NR).map(|start| start..cols.end.min(start + K::NR));
    for (half, (a, b)) in a.iter().zip(b).enumerate() {
        // One empty part where there is nothing to sum.
        for start in (0..grid.k.max(1)).step_by(DEPTH) {
            let ks = start..grid.k.min(start + DEPTH);
            let inside = "a part of k";
            let a = a.sub(0..grid.m, ks.clone()).expect(inside);
            let b = b.sub(0..b.rows(), ks.clone()).expect(inside);
            let rows = &mut rows[..K::words(ks.len()).next_multiple_of(EDGE) * grid.m.next_multiple_of(EDGE)];
            pack_steps(kernel, a, rows);
            for (part, tile) in parts().zip(tiles.chunks_exact_mut(K::DOT_ROWS * K::NR)) {
                let middle = part.end.min(part.start + K::NR / 2);
                let b = [(b, part.start..middle), (b, middle..part.end)];
                kernel.dots(&held, (grid.m, &*rows), b, (tile, half == 0 && start == 0), work);
            }
        }
    }
    for (part, tile) in parts().zip(tiles.chunks_exact(K::DOT_ROWS * K::NR)) {
        output.store::<K>(0..grid.m, part.start - cols.start..part.end - cols.start, &tile[..grid.m * K::NR]);
    }
}
