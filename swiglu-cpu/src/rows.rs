//! Passes over rows and columns: everything that is not a product.

use swiglu_core::ops::GatherRows;
use swiglu_core::{Element, Error, Gate, Host, MatMut, MatRef, Result, Scalar};

use crate::gate;
use crate::kernels::Kernel;

/// Floats that a pass widens at a time: 4 buffers of 1 KiB stay in L1.
const STRIP: usize = 256;

/// Splits a parallel pass until a part has at most this many elements: 64 KiB of f32, some microseconds of work.
const GRAIN: usize = 1 << 14;

/// Splits several matrices of equal row count into blocks of rows. Rows without elements are nothing to work on.
pub(crate) fn for_row_blocks<S: RowSplit>(operands: S, elements_per_row: usize, work: &(impl Fn(S) + Sync)) {
    let rows = operands.rows();
    if rows == 0 || elements_per_row == 0 {
        return;
    }
    let grain = (GRAIN / elements_per_row).max(1);
    if rows <= grain {
        return work(operands);
    }
    let (upper, lower) = operands.split((rows / 2).next_multiple_of(grain).min(rows - 1));
    rayon::join(
        || for_row_blocks(upper, elements_per_row, work),
        || for_row_blocks(lower, elements_per_row, work),
    );
}

/// Operands of a pass that can be cut between rows.
pub(crate) trait RowSplit: Send + Sized {
    fn rows(&self) -> usize;
    fn split(self, at: usize) -> (Self, Self);
}

impl<T: Scalar> RowSplit for MatRef<'_, T, Host> {
    fn rows(&self) -> usize {
        MatRef::rows(self)
    }

    fn split(self, at: usize) -> (Self, Self) {
        let part = |rows| self.sub(rows, 0..self.cols()).expect("a row block lies inside of its matrix");
        (part(0..at), part(at..MatRef::rows(&self)))
    }
}

impl<T: Scalar> RowSplit for MatMut<'_, T, Host> {
    fn rows(&self) -> usize {
        MatMut::rows(self)
    }

    fn split(self, at: usize) -> (Self, Self) {
        self.split_rows(at).expect("a row block lies inside of its matrix")
    }
}

impl<A: RowSplit> RowSplit for Option<A> {
    /// An absent operand fits any row count; callers put one that is there first.
    fn rows(&self) -> usize {
        self.as_ref().map_or(0, RowSplit::rows)
    }

    fn split(self, at: usize) -> (Self, Self) {
        self.map(|operand| operand.split(at)).unzip()
    }
}

macro_rules! tuples {
    ($(($first:ident, $($name:ident),+)),+) => {$(
        #[allow(non_snake_case, reason = "operands are named after their types")]
        impl<$first: RowSplit, $($name: RowSplit),+> RowSplit for ($first, $($name),+) {
            fn rows(&self) -> usize {
                self.0.rows()
            }

            fn split(self, at: usize) -> (Self, Self) {
                let ($first, $($name),+) = self;
                let $first = $first.split(at);
                $(let $name = $name.split(at);)+
                (($first.0, $($name.0),+), ($first.1, $($name.1),+))
            }
        }
    )+};
}
tuples!((A, B), (A, B, C), (A, B, C, D), (A, B, C, D, E));

/// z = h(g, u) for rows `[g | u]`.
pub(crate) fn gate_values<K: Kernel, T: Element>(
    kernel: K,
    function: Gate,
    pre: MatRef<'_, T, Host>,
    z: MatMut<'_, T, Host>,
) {
    let hidden = z.cols();
    for_row_blocks((z, pre), 3 * hidden, &|(mut z, pre): (MatMut<'_, T, Host>, MatRef<'_, T, Host>)| {
        kernel.vectorize(
            #[inline(always)]
            || {
                for row in 0..z.rows() {
                    let (Some(pre), Some(z)) = (pre.row(row), z.row_mut(row)) else { continue };
                    let (g, u) = pre.split_at(hidden);
                    for ((g, u), z) in g.chunks(STRIP).zip(u.chunks(STRIP)).zip(z.chunks_mut(STRIP)) {
                        let (mut wg, mut wu, mut h) = ([0.0; STRIP], [0.0; STRIP], [0.0; STRIP]);
                        T::widen(g, &mut wg);
                        T::widen(u, &mut wu);
                        gate::values(function, &wg[..z.len()], &wu[..z.len()], &mut h[..z.len()]);
                        T::narrow(&h, z);
                    }
                }
            },
        );
    });
}

/// One row of `[g | u]` becomes `[dg | du]`.
#[inline(always)]
fn gate_gradient_row<T: Element>(
    function: Gate,
    dz: &[T],
    g: &mut [T],
    u: &mut [T],
    mut sums: Option<Sums<'_>>,
) {
    for (at, ((dz, g), u)) in dz.chunks(STRIP).zip(g.chunks_mut(STRIP)).zip(u.chunks_mut(STRIP)).enumerate() {
        let (mut wdz, mut wg, mut wu) = ([0.0; STRIP], [0.0; STRIP], [0.0; STRIP]);
        let len = dz.len();
        T::widen(dz, &mut wdz);
        T::widen(g, &mut wg);
        T::widen(u, &mut wu);
        gate::gradients(function, &wdz[..len], &mut wg[..len], &mut wu[..len]);
        if let Some(sums) = &mut sums {
            add_assign(&mut sums.gate[at * STRIP..][..len], &wg[..len]);
            add_assign(&mut sums.up[at * STRIP..][..len], &wu[..len]);
        }
        T::narrow(&wg, g);
        T::narrow(&wu, u);
    }
}

/// Column sums of both halves of dAB, in f32 and before rounding.
struct Sums<'a> {
    gate: &'a mut [f32],
    up: &'a mut [f32],
}

#[inline(always)]
pub(crate) fn add_assign(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// Pre-activations `[g | u]` become dAB in place; their column sums go to `sums [2D]` when asked for.
///
/// With sums, tasks are blocks of columns, so that each sum is one chain in ascending row order; without, blocks of
/// rows.
pub(crate) fn gate_gradients<K: Kernel, T: Element>(
    kernel: K,
    function: Gate,
    dz: MatRef<'_, T, Host>,
    pre: MatMut<'_, T, Host>,
    sums: Option<&mut [f32]>,
) {
    let hidden = dz.cols();
    let (g, u) = pre.split_cols(hidden).expect("pre-activations are two halves");
    let Some(sums) = sums else {
        return for_row_blocks((dz, g, u), 4 * hidden, &|(dz, mut g, mut u): RowOperands<'_, T>| {
            kernel.vectorize(
                #[inline(always)]
                || {
                    for row in 0..dz.rows() {
                        let (Some(dz), Some(g), Some(u)) = (dz.row(row), g.row_mut(row), u.row_mut(row))
                        else {
                            continue;
                        };
                        gate_gradient_row(function, dz, g, u, None);
                    }
                },
            );
        });
    };
    sums.fill(0.0);
    let (sum_gate, sum_up) = sums.split_at_mut(hidden);
    let columns = ColumnTask { function, dz, g, u, sums: Sums { gate: sum_gate, up: sum_up } };
    columns.run(kernel);
}

type RowOperands<'a, T> = (MatRef<'a, T, Host>, MatMut<'a, T, Host>, MatMut<'a, T, Host>);

/// A block of columns of the gate gradient.
struct ColumnTask<'a, T: Element> {
    function: Gate,
    dz: MatRef<'a, T, Host>,
    g: MatMut<'a, T, Host>,
    u: MatMut<'a, T, Host>,
    sums: Sums<'a>,
}

impl<T: Element> ColumnTask<'_, T> {
    /// Columns of a task: 64 f32 are four cache lines of each operand, enough for the prefetcher.
    const COLS: usize = 64;

    fn run<K: Kernel>(self, kernel: K) {
        let cols = self.dz.cols();
        if cols > Self::COLS {
            let (left, right) = self.split((cols / 2).next_multiple_of(Self::COLS).min(cols - 1));
            rayon::join(|| left.run(kernel), || right.run(kernel));
            return;
        }
        let Self { function, dz, mut g, mut u, sums } = self;
        kernel.vectorize(
            #[inline(always)]
            || {
                for row in 0..dz.rows() {
                    let (Some(dz), Some(g), Some(u)) = (dz.row(row), g.row_mut(row), u.row_mut(row)) else {
                        continue;
                    };
                    let sums = Sums { gate: &mut *sums.gate, up: &mut *sums.up };
                    gate_gradient_row(function, dz, g, u, Some(sums));
                }
            },
        );
    }

    fn split(self, at: usize) -> (Self, Self) {
        let Self { function, dz, g, u, sums } = self;
        let (rows, cols) = dz.shape();
        let inside = "a column block lies inside of its matrix";
        let (dz0, dz1) = (dz.sub(0..rows, 0..at).expect(inside), dz.sub(0..rows, at..cols).expect(inside));
        let (g0, g1) = g.split_cols(at).expect(inside);
        let (u0, u1) = u.split_cols(at).expect(inside);
        let ((sg0, sg1), (su0, su1)) = (sums.gate.split_at_mut(at), sums.up.split_at_mut(at));
        (
            Self { function, dz: dz0, g: g0, u: u0, sums: Sums { gate: sg0, up: su0 } },
            Self { function, dz: dz1, g: g1, u: u1, sums: Sums { gate: sg1, up: su1 } },
        )
    }
}

/// `sums[j]` = the sum of column j, one chain in ascending row order.
pub(crate) fn column_sums<K: Kernel, T: Element>(kernel: K, a: MatRef<'_, T, Host>, sums: &mut [f32]) {
    let cols = a.cols();
    if cols > STRIP {
        let at = (cols / 2).next_multiple_of(STRIP).min(cols - 1);
        let (left, right) = sums.split_at_mut(at);
        let part = |cols| a.sub(0..a.rows(), cols).expect("a column block lies inside of its matrix");
        rayon::join(|| column_sums(kernel, part(0..at), left), || column_sums(kernel, part(at..cols), right));
        return;
    }
    sums.fill(0.0);
    kernel.vectorize(
        #[inline(always)]
        || {
            let mut wide = [0.0; STRIP];
            for row in 0..a.rows() {
                T::widen(a.row(row).unwrap_or_default(), &mut wide);
                add_assign(sums, &wide);
            }
        },
    );
}

/// Writes or adds a row of f32 to a `[1, n]` matrix.
pub(crate) fn put_row<S: Element>(from: &[f32], mut to: MatMut<'_, S, Host>, add: bool) {
    let Some(to) = to.row_mut(0) else { return };
    for (to, from) in to.iter_mut().zip(from) {
        *to = S::from_f32(if add { to.to_f32() + from } else { *from });
    }
}

/// Copies the rows that are named, all of which are looked for before anything is written.
pub(crate) fn gather<T: Element>(call: GatherRows<'_, T, Host>) -> Result<()> {
    let GatherRows { from, rows, to } = call;
    for index in 0..rows.rows() {
        let row = named(rows, index);
        if row as usize >= from.rows() {
            return Err(Error::Row { index, row, rows: from.rows() });
        }
    }
    let cols = from.cols();
    for_row_blocks((to, rows), cols, &|(mut to, rows): (MatMut<'_, T, Host>, MatRef<'_, u32, Host>)| {
        for index in 0..rows.rows() {
            if let (Some(to), Some(from)) = (to.row_mut(index), from.row(named(rows, index) as usize)) {
                to.copy_from_slice(from);
            }
        }
    });
    Ok(())
}

/// The number at `index` of a list of one column.
fn named(rows: MatRef<'_, u32, Host>, index: usize) -> u32 {
    rows.row(index).and_then(|row| row.first()).copied().unwrap_or_default()
}
