//! The tiled driver: every product of the backend is this loop nest with other sources and another output.
//!
//! A that is not too large is packed once, by all threads. Then blocks of the output are tasks. Inside of one, for each depth
//! of KC: pack panels of B, pack panels of A that no one has packed before, and run the register tile over every pair of
//! them; after the last depth the tile goes to the output straight from L1. Structure after Van Zee and van de Geijn, "BLIS"
//! (ACM TOMS 41(3)), with the two outer loops made into tasks.

use std::ops::Range;

use rayon::prelude::*;
use swiglu_core::{Dtype, Element};

use crate::arena::Tasks;
use crate::grid::{Grid, even_parts};
use crate::kernels::{Kernel, KernelVisitor, Panel};
use crate::pack::{SourceA, SourceB, panel_len};

/// Where finished accumulators go. Splits along with the blocks, so that every task owns its part.
pub(crate) trait Output: Send + Sized {
    /// The rows before `at`, and those from `at` on.
    fn split_rows(self, at: usize) -> (Self, Self);

    /// The columns before `at`, and those from `at` on.
    fn split_cols(self, at: usize) -> (Self, Self);

    /// Takes `rows.len()` rows of `K::NR` accumulators for `cols.len()` columns of the output.
    fn store<K: Kernel>(&mut self, rows: Range<usize>, cols: Range<usize>, accumulators: &[f32]);
}

/// output = a . b, in blocks of `grid`, on the current thread pool: with the kernel for bf16 where both are bf16. The
/// grid is made for the same kernel.
pub(crate) fn gemm<K, A, B, O>(kernel: K, grid: &Grid, a: &A, b: &B, output: O, tasks: Tasks<'_>)
where
    K: Kernel,
    A: SourceA,
    B: SourceB,
    O: Output,
{
    let product = Product { grid, a, b, output, tasks };
    if const { is_bf16::<A::Element>() && is_bf16::<B::Element>() } {
        kernel.for_bf16(product);
    } else {
        product.visit(kernel);
    }
}

pub(crate) const fn is_bf16<T: Element>() -> bool {
    matches!(T::DTYPE, Dtype::Bf16)
}

/// A product that only lacks a kernel.
struct Product<'a, A, B, O> {
    grid: &'a Grid,
    a: &'a A,
    b: &'a B,
    output: O,
    tasks: Tasks<'a>,
}

impl<A: SourceA, B: SourceB, O: Output> KernelVisitor for Product<'_, A, B, O> {
    type Output = ();

    fn visit<K: Kernel>(self, kernel: K) {
        let Self { grid, a, b, output, tasks } = self;
        debug_assert!(grid.tiling.is_for::<K>(), "a grid for this kernel");
        let space = grid.space();
        let run = |a: RowPanels<'_, A>, output: O| {
            let work = |rows: Range<usize>, cols: Range<usize>, mut output: O| {
                tasks.with(space.task, |scratch| {
                    kernel.vectorize(
                        #[inline(always)]
                        || block(kernel, grid, a, b, Part { rows, cols }, &mut output, scratch),
                    );
                });
            };
            divide(grid, 0..grid.m, 0..grid.n, output, &work);
        };
        if grid.ahead {
            tasks.sharing(space.shared, |panels| {
                pack_ahead(kernel, grid, a, panels);
                run(RowPanels::Ahead(panels), output);
            });
        } else {
            run(RowPanels::Of(a), output);
        }
    }
}

/// Where a block has its rows of A from.
enum RowPanels<'a, A> {
    /// [Packed](pack_ahead) before all blocks.
    Ahead(&'a [f32]),
    /// It packs them.
    Of(&'a A),
}

impl<A> Clone for RowPanels<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for RowPanels<'_, A> {}

/// Packs all of A: for each row block, for each depth, the panels that a block reads then.
fn pack_ahead<K: Kernel, A: SourceA>(kernel: K, grid: &Grid, a: &A, panels: &mut [f32]) {
    let (depths, len) = (grid.depths(), grid.unit_len().max(1));
    panels.par_chunks_exact_mut(len).enumerate().for_each(|(unit, panels)| {
        let start = unit / depths * grid.row_edge;
        let (rows, ks) = (start..grid.m.min(start + grid.row_edge), grid.depth(unit % depths));
        kernel.vectorize(
            #[inline(always)]
            || a.pack(kernel, rows, ks, panels),
        );
    });
}

/// Halves the output until one block is left. Which thread takes which half changes nothing but the time.
pub(crate) fn divide<O, W>(grid: &Grid, rows: Range<usize>, cols: Range<usize>, output: O, work: &W)
where
    O: Output,
    W: Fn(Range<usize>, Range<usize>, O) + Sync,
{
    let row_blocks = rows.len().div_ceil(grid.row_edge);
    let col_blocks = cols.len().div_ceil(grid.col_edge);
    if row_blocks == 0 || col_blocks == 0 {
        return;
    }
    if row_blocks == 1 && col_blocks == 1 {
        return work(rows, cols, output);
    }
    if col_blocks >= row_blocks {
        let at = col_blocks / 2 * grid.col_edge;
        let (left, right) = output.split_cols(at);
        let (start, seam, end) = (cols.start, cols.start + at, cols.end);
        rayon::join(
            || divide(grid, rows.clone(), start..seam, left, work),
            || divide(grid, rows.clone(), seam..end, right, work),
        );
    } else {
        let at = row_blocks / 2 * grid.row_edge;
        let (upper, lower) = output.split_rows(at);
        let (start, seam, end) = (rows.start, rows.start + at, rows.end);
        rayon::join(
            || divide(grid, start..seam, cols.clone(), upper, work),
            || divide(grid, seam..end, cols.clone(), lower, work),
        );
    }
}

/// Rows and columns of the whole output that a block covers.
struct Part {
    rows: Range<usize>,
    cols: Range<usize>,
}

#[inline(always)]
fn block<K, A, B, O>(
    kernel: K,
    grid: &Grid,
    a: RowPanels<'_, A>,
    b: &B,
    part: Part,
    output: &mut O,
    scratch: &mut [f32],
) where
    K: Kernel,
    A: SourceA,
    B: SourceB,
    O: Output,
{
    let Part { rows, cols } = part;
    let [a_len, b_len, _] = grid.scratch();
    let held = kernel.hold();
    let (a_panels, rest) = scratch.split_at_mut(a_len);
    let (b_panels, accumulators) = rest.split_at_mut(b_len);
    let row_panels = rows.len().div_ceil(K::MR);
    let col_panels = cols.len().div_ceil(grid.width);
    let depths = grid.depths();
    for depth in 0..depths {
        let ks = grid.depth(depth);
        let (first, last) = (depth == 0, depth + 1 == depths);
        let words = K::words(ks.len());
        let (a_stride, b_stride) = (words * K::A_STRIDE, panel_len(words, K::NR));
        b.pack(kernel, cols.clone(), ks.clone(), &mut b_panels[..col_panels * b_stride]);
        let a_panels = match a {
            RowPanels::Ahead(panels) => {
                let unit = rows.start / grid.row_edge * depths + depth;
                &panels[unit * grid.unit_len()..][..row_panels * a_stride]
            }
            RowPanels::Of(a) => {
                let panels = &mut a_panels[..row_panels * a_stride];
                a.pack(kernel, rows.clone(), ks.clone(), panels);
                &*panels
            }
        };
        for (j, start) in cols.clone().step_by(grid.width).enumerate() {
            let b_panel = &b_panels[j * b_stride..][..b_stride];
            for (i, panel_rows) in even_parts(rows.clone(), K::MR).enumerate() {
                let a_panel = &a_panels[i * a_stride..][..a_stride];
                // With a single depth a tile is stored at once, so all of them can share one place.
                let place = if depths == 1 { 0 } else { (j * row_panels + i) * K::MR * K::NR };
                let c = &mut accumulators[place..][..K::MR * K::NR];
                let a_panel = Panel { rows: panel_rows.len(), depth: words, floats: a_panel };
                kernel.tile(&held, a_panel, b_panel, c, first);
                if last {
                    let within = panel_rows.start - rows.start..panel_rows.end - rows.start;
                    let col = start - cols.start;
                    let c = &c[..panel_rows.len() * K::NR];
                    output.store::<K>(within, col..(col + grid.width).min(cols.len()), c);
                }
            }
        }
    }
}
