//! Packing: panels of A and B in the order in which a tile reads them, widened to f32 on the way.
//!
//! A *source* says where element (row, k) of A or (k, column) of B comes from. Every source copies along its own
//! memory, so no pass over a matrix transposes it first.

use std::ops::Range;

use swiglu_core::{Element, Host, MatRef};

use crate::kernels::{EDGE, Form, Kernel};

/// Rows of A.
pub(crate) trait SourceA: Sync {
    /// How its panels lie in memory.
    const FORM: Form;

    /// Packs `rows` and `ks`: at most `K::MR` rows, at most `K::KC` deep.
    fn pack<K: Kernel>(&self, rows: Range<usize>, ks: Range<usize>, panel: &mut [f32]);
}

/// Columns of B.
pub(crate) trait SourceB: Sync {
    /// Columns of the result that one panel of `nr` columns covers.
    fn width(nr: usize) -> usize;

    /// Packs the panels of a block: `cols` and `ks`, `ks.len() x K::NR` floats for each
    /// [`width`](Self::width) of `cols`; columns that are not there become zeros.
    ///
    /// All panels at once, so that a row of the source is read from end to end while its page is at hand.
    fn pack<K: Kernel>(&self, kernel: K, cols: Range<usize>, ks: Range<usize>, panels: &mut [f32]);
}

/// Columns `cols` of row `row`. Both were checked when the call was, so they are always there.
#[inline(always)]
fn part<'a, T: Element>(matrix: MatRef<'a, T, Host>, row: usize, cols: Range<usize>) -> &'a [T] {
    matrix.row(row).and_then(|row| row.get(cols)).unwrap_or_default()
}

/// Widens `lanes` elements, a constant where this is inlined: one vector, and no call to copy a few bytes.
#[inline(always)]
fn copy_lanes<T: Element>(from: &[T], to: &mut [f32], lanes: usize) {
    T::widen(&from[..lanes], &mut to[..lanes]);
}

/// A(r, k) = matrix[r][k].
pub(crate) struct Rows<'a, T: Element>(pub(crate) MatRef<'a, T, Host>);

impl<T: Element> SourceA for Rows<'_, T> {
    const FORM: Form = Form::RowMajor;

    #[inline(always)]
    fn pack<K: Kernel>(&self, rows: Range<usize>, ks: Range<usize>, panel: &mut [f32]) {
        for (r, row) in rows.enumerate() {
            T::widen(part(self.0, row, ks.clone()), &mut panel[r * K::A_STRIDE..]);
        }
    }
}

/// A(r, k) = matrix[k][r].
pub(crate) struct Columns<'a, T: Element>(pub(crate) MatRef<'a, T, Host>);

impl<T: Element> SourceA for Columns<'_, T> {
    const FORM: Form = Form::KMajor;

    #[inline(always)]
    fn pack<K: Kernel>(&self, rows: Range<usize>, ks: Range<usize>, panel: &mut [f32]) {
        // Always a whole vector: what it copies past the last row, the next k overwrites.
        let lanes = K::NR / 2;
        const { assert!(K::MR <= K::NR / 2, "a vector holds the rows of a panel") };
        let (height, whole) = (rows.len(), rows.start..rows.start + lanes);
        if whole.end <= self.0.cols() {
            for (step, k) in ks.enumerate() {
                copy_lanes(part(self.0, k, whole.clone()), &mut panel[step * height..], lanes);
            }
        } else {
            for (panel, k) in panel.chunks_exact_mut(height).zip(ks) {
                T::widen(part(self.0, k, rows.clone()), panel);
            }
        }
    }
}

/// Whether k runs along the rows or along the columns of a matrix that serves as B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Along {
    /// B(k, j) = matrix[k][j].
    Rows,
    /// B(k, j) = matrix[j][k].
    Columns,
}

/// Which lanes of each panel a factor fills: `width` of `nr`, from `at` on.
#[derive(Clone, Copy)]
struct Lanes {
    nr: usize,
    at: usize,
    width: usize,
}

/// A matrix that serves as B, in either direction.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a, T: Element> {
    pub(crate) matrix: MatRef<'a, T, Host>,
    pub(crate) along: Along,
}

impl<T: Element> Factor<'_, T> {
    /// Extent in k.
    fn depth(&self) -> usize {
        match self.along {
            Along::Rows => self.matrix.rows(),
            Along::Columns => self.matrix.cols(),
        }
    }

    /// Fills lanes `at..at + width` of every panel of `nr` lanes.
    #[inline(always)]
    fn fill<K: Kernel>(
        &self,
        kernel: K,
        cols: Range<usize>,
        ks: Range<usize>,
        panels: &mut [f32],
        lanes: Lanes,
    ) {
        let panel_len = ks.len() * lanes.nr;
        if panel_len == 0 {
            return;
        }
        match self.along {
            Along::Rows => self.copy(cols, ks, panels, lanes),
            Along::Columns => {
                for (panel, start) in
                    panels.chunks_exact_mut(panel_len).zip(cols.clone().step_by(lanes.width))
                {
                    let cols = start..cols.end.min(start + lanes.width);
                    self.transpose(kernel, cols, ks.clone(), panel, lanes);
                }
            }
        }
    }

    /// k runs along the rows: each row is cut into the panels.
    #[inline(always)]
    fn copy(&self, cols: Range<usize>, ks: Range<usize>, panels: &mut [f32], lanes: Lanes) {
        let Lanes { nr, at, width } = lanes;
        let panel_len = ks.len() * nr;
        for (step, k) in ks.enumerate() {
            let row = part(self.matrix, k, cols.clone());
            let whole = row.chunks_exact(width);
            let rest = whole.remainder();
            let mut start = step * nr + at;
            for from in whole {
                copy_lanes(from, &mut panels[start..], width);
                start += panel_len;
            }
            if !rest.is_empty() {
                let (full, empty) = panels[start..start + width].split_at_mut(rest.len());
                T::widen(rest, full);
                empty.fill(0.0);
            }
        }
    }

    /// k runs along the columns: blocks of sixteen columns and sixteen k, a cache line of the source each, are widened
    /// and written out transposed.
    #[inline(always)]
    fn transpose<K: Kernel>(
        &self,
        kernel: K,
        cols: Range<usize>,
        ks: Range<usize>,
        panel: &mut [f32],
        lanes: Lanes,
    ) {
        let Lanes { nr, at, width } = lanes;
        for start in ks.clone().step_by(EDGE) {
            let deep = EDGE.min(ks.end - start);
            let rows = &mut panel[(start - ks.start) * nr..];
            for lane in (0..width).step_by(EDGE) {
                let mut block = [[0.0; EDGE]; EDGE];
                let there = cols.len().saturating_sub(lane).min(EDGE);
                for (j, column) in block.iter_mut().enumerate().take(there) {
                    let from = part(self.matrix, cols.start + lane + j, start..start + deep);
                    if deep == EDGE { copy_lanes(from, column, EDGE) } else { T::widen(from, column) }
                }
                if deep == EDGE && width - lane >= EDGE {
                    kernel.transpose(&block, &mut rows[at + lane..], nr);
                } else {
                    let lanes = EDGE.min(width - lane);
                    for (k, row) in rows.chunks_exact_mut(nr).enumerate().take(deep) {
                        for (to, column) in row[at + lane..at + lane + lanes].iter_mut().zip(&block) {
                            *to = column[k];
                        }
                    }
                }
            }
        }
    }
}

/// One factor, or two stacked along k: `[first; second]`.
pub(crate) struct Stacked<'a, T: Element> {
    pub(crate) first: Factor<'a, T>,
    pub(crate) second: Option<Factor<'a, T>>,
}

impl<T: Element> SourceB for Stacked<'_, T> {
    fn width(nr: usize) -> usize {
        nr
    }

    #[inline(always)]
    fn pack<K: Kernel>(&self, kernel: K, cols: Range<usize>, ks: Range<usize>, panels: &mut [f32]) {
        let seam = self.first.depth();
        let lanes = Lanes { nr: K::NR, at: 0, width: K::NR };
        let Some(second) = self.second.as_ref().filter(|_| ks.end > seam) else {
            return self.first.fill(kernel, cols, ks, panels, lanes);
        };
        if ks.start >= seam {
            return second.fill(kernel, cols, ks.start - seam..ks.end - seam, panels, lanes);
        }
        // The seam lies inside: panel by panel, since each of them holds both factors.
        let (upper, lower) = (ks.start..seam, 0..ks.end - seam);
        for (panel, start) in panels.chunks_exact_mut(ks.len() * K::NR).zip(cols.clone().step_by(K::NR)) {
            let cols = start..cols.end.min(start + K::NR);
            let (above, below) = panel.split_at_mut(upper.len() * K::NR);
            self.first.fill(kernel, cols.clone(), upper.clone(), above, lanes);
            second.fill(kernel, cols, lower.clone(), below, lanes);
        }
    }
}

/// Two factors side by side in each panel: half of its columns from the gate projection, half from the up projection,
/// so that a tile holds both pre-activations of an output.
pub(crate) struct Paired<'a, T: Element> {
    pub(crate) gate: Factor<'a, T>,
    pub(crate) up: Factor<'a, T>,
}

impl<T: Element> SourceB for Paired<'_, T> {
    fn width(nr: usize) -> usize {
        nr / 2
    }

    #[inline(always)]
    fn pack<K: Kernel>(&self, kernel: K, cols: Range<usize>, ks: Range<usize>, panels: &mut [f32]) {
        let width = K::NR / 2;
        self.gate.fill(kernel, cols.clone(), ks.clone(), panels, Lanes { nr: K::NR, at: 0, width });
        self.up.fill(kernel, cols, ks, panels, Lanes { nr: K::NR, at: width, width });
    }
}
