//! Products with few rows along `[2D, I]` weights, whose time is that of reading them: a row of weights runs along k, and is
//! read once, where it lies, by a kernel that multiplies such runs with packed rows of A.

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
    Grid { m, n, k, tiling, row_edge: m.max(1), col_edge: share, width: EDGE, parts: 1 }
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
        kernel.dots(&held, (grid.m, &*rows), [b.gate, b.up].map(|factor| (factor, part.clone())), tile, work);
        output.store::<K>(0..grid.m, part.start - cols.start..part.end - cols.start, &tile[..grid.m * K::NR]);
    }
}
