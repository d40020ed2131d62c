//! Products with few rows along weights whose rows run along k, whose time is that of reading them: each row is read once,
//! where it lies, by a kernel that multiplies such runs with packed rows of A. Projections along `[2D, I]`, and dX along
//! `[I, 2D]`.

use std::ops::Range;

use swiglu_core::{Element, Host, MatRef};

use crate::arena::Tasks;
use crate::gemm::{Output, divide, is_bf16};
use crate::grid::{Grid, Tiling};
use crate::kernels::{Dots, DotsVisitor, EDGE, Kernel, KernelVisitor};
use crate::stream::Pair;

/// Columns of a task: enough that packing A, 128 KiB at 16 rows and I = 4096, is little beside 8 MiB of weights.
const COLUMNS: usize = 512;

/// Blocks of projections.
pub(crate) fn grid(tiling: Tiling, shape: [usize; 3], threads: usize) -> Grid {
    Grid::of_few_rows(tiling, shape, threads, (EDGE, COLUMNS))
}

/// Floats that a task works in: all rows of A, packed, and one tile.
pub(crate) fn task_len(grid: &Grid) -> usize {
    let Grid { tiling, k, m, .. } = grid;
    tiling.all_words(*k).next_multiple_of(EDGE) * m.next_multiple_of(EDGE) + tiling.dot_rows * tiling.nr
}

/// What is multiplied, and how a task does it.
pub(crate) trait Operands: Sync {
    /// Whether both factors are bf16.
    const BF16: bool;

    /// Floats that a task works in.
    fn task_len(&self, grid: &Grid) -> usize;

    /// All rows of a task's columns.
    fn block<K: Dots, O: Output>(&self, kernel: K, task: &mut Task<'_, O>, scratch: &mut [f32]);
}

/// Some columns, and where they go.
pub(crate) struct Task<'a, O> {
    grid: &'a Grid,
    cols: Range<usize>,
    output: O,
}

impl<O: Output> Task<'_, O> {
    /// Stores all rows of a part of the columns.
    #[inline(always)]
    fn store<K: Kernel>(&mut self, part: Range<usize>, tile: &[f32]) {
        let cols = part.start - self.cols.start..part.end - self.cols.start;
        self.output.store::<K>(0..self.grid.m, cols, &tile[..self.grid.m * K::NR]);
    }
}

/// output = the product of `operands`, in blocks of `grid`, on the current thread pool, with the kernel for bf16 where both
/// are. The grid is made for the same kernel.
pub(crate) fn multiply<K, P, O>(kernel: K, grid: &Grid, operands: P, output: O, tasks: Tasks<'_>)
where
    K: Kernel,
    P: Operands,
    O: Output,
{
    let product = Product { grid, operands, output, tasks };
    if const { P::BF16 } {
        kernel.for_bf16(product);
    } else {
        KernelVisitor::visit(product, kernel);
    }
}

/// A product that only lacks a kernel.
struct Product<'a, P, O> {
    grid: &'a Grid,
    operands: P,
    output: O,
    tasks: Tasks<'a>,
}

impl<P: Operands, O: Output> KernelVisitor for Product<'_, P, O> {
    type Output = ();

    fn visit<K: Kernel>(self, kernel: K) {
        kernel.with_dots(self).expect("such a grid is only made for kernels that can");
    }
}

impl<P: Operands, O: Output> DotsVisitor for Product<'_, P, O> {
    type Output = ();

    fn visit<K: Dots>(self, kernel: K) {
        let Self { grid, operands, output, tasks } = self;
        let work = |_: Range<usize>, cols: Range<usize>, output: O| {
            let mut task = Task { grid, cols, output };
            tasks.with(operands.task_len(grid), |scratch| {
                kernel.vectorize(
                    #[inline(always)]
                    || operands.block(kernel, &mut task, scratch),
                );
            });
        };
        divide(grid, 0..grid.m, 0..grid.n, output, &work);
    }
}

/// a . [gate | up]^T: projections along `[2D, I]`.
pub(crate) struct Projections<'a, T: Element> {
    pub(crate) a: MatRef<'a, T, Host>,
    pub(crate) b: Pair<'a, T>,
}

impl<T: Element> Operands for Projections<'_, T> {
    const BF16: bool = is_bf16::<T>();

    fn task_len(&self, grid: &Grid) -> usize {
        task_len(grid)
    }

    #[inline(always)]
    fn block<K: Dots, O: Output>(&self, kernel: K, task: &mut Task<'_, O>, scratch: &mut [f32]) {
        let (grid, cols) = (task.grid, task.cols.clone());
        let (rows, tile) = scratch.split_at_mut(scratch.len() - K::DOT_ROWS * K::NR);
        kernel.pack_dots(self.a, rows);
        let held = kernel.hold();
        for start in cols.clone().step_by(EDGE) {
            let part = start..cols.end.min(start + EDGE);
            let b = [self.b.gate, self.b.up].map(|factor| (factor, part.clone()));
            kernel.dots(&held, (grid.m, &*rows), b, (tile, true));
            task.store::<K>(part, tile);
        }
    }
}

/// Elements of k that all columns of a task take before the next: 16 packed rows of them are 256 KiB, in L2.
const DEPTH: usize = 4096;

/// Blocks of dAB . Wf^T. k is that of one half.
pub(crate) fn stacked_grid(tiling: Tiling, shape: [usize; 3], threads: usize) -> Grid {
    Grid { parts: 2, ..Grid::of_few_rows(tiling, shape, threads, (tiling.nr, COLUMNS)) }
}

/// Floats that a task works in: a part of all rows of A, packed, and tiles of all its columns.
pub(crate) fn stacked_task_len(grid: &Grid) -> usize {
    let Grid { tiling, k, m, col_edge, .. } = grid;
    let tiles = col_edge.div_ceil(tiling.nr);
    tiling.all_words(DEPTH.min(*k)).next_multiple_of(EDGE) * m.next_multiple_of(EDGE)
        + tiles * tiling.dot_rows * tiling.nr
}

/// [dG | dU] . [gate | up]^T, where rows of both run along k: dX along `[I, 2D]`.
pub(crate) struct Stacked<'a, A: Element, T: Element> {
    pub(crate) a: [MatRef<'a, A, Host>; 2],
    pub(crate) b: [MatRef<'a, T, Host>; 2],
}

impl<A: Element, T: Element> Operands for Stacked<'_, A, T> {
    const BF16: bool = is_bf16::<A>() && is_bf16::<T>();

    fn task_len(&self, grid: &Grid) -> usize {
        stacked_task_len(grid)
    }

    #[inline(always)]
    fn block<K: Dots, O: Output>(&self, kernel: K, task: &mut Task<'_, O>, scratch: &mut [f32]) {
        let (grid, cols) = (task.grid, task.cols.clone());
        let tiles = cols.len().div_ceil(K::NR) * K::DOT_ROWS * K::NR;
        let (rows, tiles) = scratch.split_at_mut(scratch.len() - tiles);
        let held = kernel.hold();
        let parts = || cols.clone().step_by(K::NR).map(|start| start..cols.end.min(start + K::NR));
        for (half, (a, b)) in self.a.iter().zip(&self.b).enumerate() {
            // One empty part where there is nothing to sum.
            for start in (0..grid.k.max(1)).step_by(DEPTH) {
                let ks = start..grid.k.min(start + DEPTH);
                let inside = "a part of k";
                let a = a.sub(0..grid.m, ks.clone()).expect(inside);
                let b = b.sub(0..b.rows(), ks.clone()).expect(inside);
                let rows =
                    &mut rows[..K::words(ks.len()).next_multiple_of(EDGE) * grid.m.next_multiple_of(EDGE)];
                kernel.pack_dots(a, rows);
                for (part, tile) in parts().zip(tiles.chunks_exact_mut(K::DOT_ROWS * K::NR)) {
                    let middle = part.end.min(part.start + K::NR / 2);
                    let b = [(b, part.start..middle), (b, middle..part.end)];
                    kernel.dots(&held, (grid.m, &*rows), b, (tile, half == 0 && start == 0));
                }
            }
        }
        for (part, tile) in parts().zip(tiles.chunks_exact(K::DOT_ROWS * K::NR)) {
            task.store::<K>(part, tile);
        }
    }
}
