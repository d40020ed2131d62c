//! Packing: panels of A and B in the order in which a tile reads them, made into the kernel's words on the way.
//!
//! A *source* says where element (row, k) of A or (k, column) of B comes from. Every source copies along its own
//! memory, so no pass over a matrix transposes it first.

use std::ops::Range;

use swiglu_core::{Element, Host, MatRef};

use crate::grid::even_parts;
use crate::kernels::{Block, EDGE, Kernel, PanelOrder, prefetch};
use crate::word::Word;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;
/// Rows that packing asks for ahead of use: a row of a block is 0.5 to 2 KiB, so these are what a core can have under
/// way, 16 lines and more at 100 ns each.
const ROWS_AHEAD: usize = 4;
/// The same for packing that turns its source, in lines of each of sixteen or thirty-two rows.
const LINES_AHEAD: usize = 4;

/// Rows of A.
pub(crate) trait SourceA: Sync {
    /// Its element type.
    type Element: Element;

    /// Packs the panels of a block: `rows` in [even parts](even_parts) of at most `K::MR`, and `ks`. A panel has
    /// `K::A_STRIDE` words for each of [`K::words`](Kernel::words); those past its last row are left or filled as suits,
    /// those past the last k are zeros.
    fn pack<K: Kernel>(&self, kernel: K, rows: Range<usize>, ks: Range<usize>, panels: &mut [f32]);
}

/// The panels of a block of A, and the rows of each.
#[inline(always)]
fn row_panels<K: Kernel>(
    rows: Range<usize>,
    depth: usize,
    panels: &mut [f32],
) -> impl Iterator<Item = (Range<usize>, &mut [f32])> {
    // A product without any k has no panels.
    let len = (K::words(depth) * K::A_STRIDE).max(1);
    even_parts(rows, K::MR).zip(panels.chunks_exact_mut(len))
}

/// Floats from one panel of B to the next: two cache lines more than it has, since 24 KiB would put the same row of sixteen
/// panels, which are written together, into one set of a 48 KiB L1, which has room for twelve.
pub(crate) const fn panel_len(words: usize, nr: usize) -> usize {
    words * nr + 2 * LINE / size_of::<f32>()
}

/// Columns of B.
pub(crate) trait SourceB: Sync {
    /// Its element type.
    type Element: Element;
    /// Equal parts of k that lie apart. No panel holds some of two.
    const PARTS: usize;

    /// Columns of the result that one panel of `nr` columns covers.
    fn width(nr: usize) -> usize;

    /// Packs the panels of a block, [`panel_len`] apart: `cols` and `ks`, [`K::words`](Kernel::words) of it `x K::NR` for each
    /// [`width`](Self::width) of `cols`; columns and words that are not there become zeros.
    ///
    /// All panels at once, so that a row of the source is read from end to end while its page is at hand.
    fn pack<K: Kernel>(&self, kernel: K, cols: Range<usize>, ks: Range<usize>, panels: &mut [f32]);
}

/// Columns `cols` of row `row`. Both were checked when the call was, so they are always there.
#[inline(always)]
fn part<'a, T: Element>(matrix: MatRef<'a, T, Host>, row: usize, cols: Range<usize>) -> &'a [T] {
    matrix.row(row).and_then(|row| row.get(cols)).unwrap_or_default()
}

/// Where an element lies, or would: an address to prefetch.
#[inline(always)]
pub(crate) fn ahead<T: Element>(matrix: MatRef<'_, T, Host>, row: usize, col: usize) -> *const T {
    matrix.row(row).unwrap_or_default().as_ptr().wrapping_add(col)
}

/// Words of `lanes` columns, a constant where this is inlined: one vector, and no call to copy a few bytes.
#[inline(always)]
fn across<W: Word, T: Element>(first: &[T], second: &[T], to: &mut [f32], lanes: usize) {
    let second = if second.len() < lanes { &[] } else { &second[..lanes] };
    W::across(&first[..lanes], second, &mut to[..lanes]);
}

/// Columns `cols` of the row `k`, and of the next one where a word takes both and `ks` has it.
#[inline(always)]
fn step<'a, W: Word, T: Element>(
    matrix: MatRef<'a, T, Host>,
    ks: &Range<usize>,
    k: usize,
    cols: Range<usize>,
) -> (&'a [T], &'a [T]) {
    let two = W::STEP == 2 && k + 1 < ks.end;
    (part(matrix, k, cols.clone()), if two { part(matrix, k + 1, cols) } else { &[] })
}

/// A(r, k) = matrix[r][k].
pub(crate) struct Rows<'a, T: Element>(pub(crate) MatRef<'a, T, Host>);

impl<T: Element> SourceA for Rows<'_, T> {
    type Element = T;

    #[inline(always)]
    fn pack<K: Kernel>(&self, kernel: K, rows: Range<usize>, ks: Range<usize>, panels: &mut [f32]) {
        for (rows, panel) in row_panels::<K>(rows, ks.len(), panels) {
            match K::A_ORDER {
                PanelOrder::Steps => self.steps(kernel, rows, ks.clone(), panel),
                PanelOrder::Runs => self.runs::<K>(rows, ks.clone(), panel),
            }
        }
    }
}

impl<T: Element> Rows<'_, T> {
    /// Blocks of sixteen words and up to sixteen rows, turned.
    #[inline(always)]
    fn steps<K: Kernel>(&self, kernel: K, rows: Range<usize>, ks: Range<usize>, panel: &mut [f32]) {
        const { assert!(!matches!(K::A_ORDER, PanelOrder::Steps) || K::A_STRIDE <= EDGE) };
        let edge = EDGE * K::Word::STEP;
        for (start, panel) in ks.clone().step_by(edge).zip(panel.chunks_mut(EDGE * K::A_STRIDE)) {
            let ks = start..ks.end.min(start + edge);
            let deep = K::words(ks.len());
            for row in rows.clone() {
                prefetch(ahead(self.0, row, start + LINES_AHEAD * LINE / size_of::<T>()));
            }
            let block = block::<K::Word, T>(self.0, rows.clone(), ks);
            put(kernel, &block, panel, K::A_STRIDE, (deep, K::A_STRIDE));
        }
    }

    /// Each row as it is, a cache line of a panel at a time.
    #[inline(always)]
    fn runs<K: Kernel>(&self, rows: Range<usize>, ks: Range<usize>, panel: &mut [f32]) {
        let edge = EDGE * K::Word::STEP;
        for (r, row) in rows.enumerate() {
            let next = ahead(self.0, row + ROWS_AHEAD, ks.start);
            for at in (0..ks.len()).step_by(LINE / size_of::<T>()) {
                prefetch(next.wrapping_add(at));
            }
            let row = part(self.0, row, ks.clone());
            for (run, group) in row.chunks(edge).zip(panel.chunks_exact_mut(EDGE * K::A_STRIDE)) {
                let to = &mut group[r * EDGE..][..EDGE];
                if run.len() == edge {
                    K::Word::along(&run[..edge], to);
                } else {
                    to.fill(0.0);
                    K::Word::along(run, to);
                }
            }
        }
    }
}

/// Words of the rows `rows`, at most EDGE, along the columns `ks`, at most EDGE words, with zeros around them.
#[inline(always)]
fn block<W: Word, T: Element>(matrix: MatRef<'_, T, Host>, rows: Range<usize>, ks: Range<usize>) -> Block {
    let mut block = [[0.0; EDGE]; EDGE];
    let whole = EDGE * W::STEP;
    for (to, row) in block.iter_mut().zip(rows) {
        let from = part(matrix, row, ks.clone());
        // A constant length, so that this is a vector or two.
        if from.len() == whole { W::along(&from[..whole], to) } else { W::along(from, to) }
    }
    block
}

/// All of `matrix`, turned: for each [`EDGE`] words along k, for each [`EDGE`] rows, one word of all of them after the other,
/// with zeros for what is not there.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    expect(dead_code, reason = "only AMX reads columns in place so")
)]
#[inline(always)]
pub(crate) fn pack_steps<K: Kernel, T: Element>(kernel: K, matrix: MatRef<'_, T, Host>, to: &mut [f32]) {
    let (edge, parts) = (EDGE * K::Word::STEP, matrix.rows().div_ceil(EDGE));
    let starts = (0..matrix.cols()).step_by(edge);
    for (start, to) in starts.zip(to.chunks_exact_mut((parts * EDGE * EDGE).max(1))) {
        let ks = start..matrix.cols().min(start + edge);
        for (part, to) in to.chunks_exact_mut(EDGE * EDGE).enumerate() {
            let rows = part * EDGE..matrix.rows().min((part + 1) * EDGE);
            let block = block::<K::Word, T>(matrix, rows, ks.clone());
            kernel.transpose(&block, to, EDGE);
        }
    }
}

/// All of `matrix`: for each [`EDGE`] words along k those of one row after the other, with zeros for what is not there.
#[inline(always)]
pub(crate) fn pack_runs<K: Kernel, T: Element>(matrix: MatRef<'_, T, Host>, to: &mut [f32]) {
    let edge = EDGE * K::Word::STEP;
    let starts = (0..matrix.cols()).step_by(edge);
    for (start, to) in starts.zip(to.chunks_exact_mut((matrix.rows() * EDGE).max(1))) {
        for (row, to) in to.chunks_exact_mut(EDGE).enumerate() {
            let end = matrix.cols().min(start + edge);
            let run = matrix.row(row).and_then(|row| row.get(start..end)).unwrap_or_default();
            let (words, rest) = to.split_at_mut(run.len().div_ceil(K::Word::STEP));
            K::Word::along(run, words);
            rest.fill(0.0);
        }
    }
}

/// Writes `deep` rows of `lanes` lanes of a transposed block, `stride` apart.
#[inline(always)]
fn put<K: Kernel>(kernel: K, block: &Block, to: &mut [f32], stride: usize, (deep, lanes): (usize, usize)) {
    if deep == EDGE && lanes == EDGE {
        return kernel.transpose(block, to, stride);
    }
    for (k, row) in to.chunks_mut(stride).enumerate().take(deep) {
        for (to, column) in row[..lanes].iter_mut().zip(block) {
            *to = column[k];
        }
    }
}

/// A(r, k) = matrix[k][r].
pub(crate) struct Columns<'a, T: Element>(pub(crate) MatRef<'a, T, Host>);

impl<T: Element> SourceA for Columns<'_, T> {
    type Element = T;

    #[inline(always)]
    fn pack<K: Kernel>(&self, kernel: K, rows: Range<usize>, ks: Range<usize>, panels: &mut [f32]) {
        match K::A_ORDER {
            PanelOrder::Steps => {
                for (rows, panel) in row_panels::<K>(rows, ks.len(), panels) {
                    self.steps::<K>(rows, ks.clone(), panel);
                }
            }
            PanelOrder::Runs => self.runs(kernel, rows, ks, panels),
        }
    }
}

impl<T: Element> Columns<'_, T> {
    #[inline(always)]
    fn steps<K: Kernel>(&self, rows: Range<usize>, ks: Range<usize>, panel: &mut [f32]) {
        // Always a whole step of the panel, so that its length is a constant.
        let whole = rows.start..rows.start + K::A_STRIDE;
        let there = whole.end <= self.0.cols();
        for (panel, k) in panel.chunks_exact_mut(K::A_STRIDE).zip(ks.clone().step_by(K::Word::STEP)) {
            if there {
                let (first, second) = step::<K::Word, T>(self.0, &ks, k, whole.clone());
                across::<K::Word, T>(first, second, panel, K::A_STRIDE);
            } else {
                let (first, second) = step::<K::Word, T>(self.0, &ks, k, rows.clone());
                K::Word::across(first, second, panel);
            }
        }
    }

    /// Blocks of sixteen words and sixteen rows, turned; those of all panels for one group of words after the other, so that
    /// the rows of the source are read while their pages are at hand.
    #[inline(always)]
    fn runs<K: Kernel>(&self, kernel: K, rows: Range<usize>, ks: Range<usize>, panels: &mut [f32]) {
        let edge = EDGE * K::Word::STEP;
        for (group, start) in ks.clone().step_by(edge).enumerate() {
            let ks_of_group = start..ks.end.min(start + edge);
            for (rows, panel) in row_panels::<K>(rows.clone(), ks.len(), panels) {
                let panel = &mut panel[group * EDGE * K::A_STRIDE..];
                for (first, to) in rows.step_by(EDGE).zip(panel.chunks_exact_mut(EDGE * EDGE)) {
                    for k in start + edge..start + 2 * edge {
                        prefetch(ahead(self.0, k, first));
                    }
                    let block = self.block::<K::Word>(first, ks_of_group.clone());
                    kernel.transpose(&block, to, EDGE);
                }
            }
        }
    }

    /// Words of sixteen columns from `first` on, along the rows `ks`, with zeros around them.
    #[inline(always)]
    fn block<W: Word>(&self, first: usize, ks: Range<usize>) -> Block {
        let mut block = [[0.0; EDGE]; EDGE];
        let cols = first..self.0.cols().min(first + EDGE);
        for (words, k) in block.iter_mut().zip(ks.clone().step_by(W::STEP)) {
            let (first, second) = step::<W, T>(self.0, &ks, k, cols.clone());
            if first.len() == EDGE {
                across::<W, T>(first, second, words, EDGE);
            } else {
                W::across(first, second, words);
            }
        }
        block
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
        let panel_len = panel_len(K::words(ks.len()), lanes.nr);
        match self.along {
            Along::Rows => self.copy::<K>(cols, ks, panels, lanes),
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

    /// k runs along the rows: each row, or each two, are cut into the panels.
    #[inline(always)]
    fn copy<K: Kernel>(&self, cols: Range<usize>, ks: Range<usize>, panels: &mut [f32], lanes: Lanes) {
        let Lanes { nr, at, width } = lanes;
        let panel_len = panel_len(K::words(ks.len()), nr);
        let whole = cols.len() / width * width;
        for (deep, k) in ks.clone().step_by(K::Word::STEP).enumerate() {
            let (first, second) = step::<K::Word, T>(self.matrix, &ks, k, cols.clone());
            let rows = [0, 1].map(|row| ahead(self.matrix, k + ROWS_AHEAD * K::Word::STEP + row, cols.start));
            let mut start = deep * nr + at;
            for lane in (0..whole).step_by(width) {
                for row in &rows[..K::Word::STEP] {
                    prefetch(row.wrapping_add(lane));
                }
                let second = second.get(lane..).unwrap_or_default();
                across::<K::Word, T>(&first[lane..], second, &mut panels[start..], width);
                start += panel_len;
            }
            if whole < cols.len() {
                let (full, empty) = panels[start..start + width].split_at_mut(cols.len() - whole);
                K::Word::across(&first[whole..], second.get(whole..).unwrap_or_default(), full);
                empty.fill(0.0);
            }
        }
        // A group of words is whole.
        for deep in ks.len().div_ceil(K::Word::STEP)..K::words(ks.len()) {
            for panel in panels.chunks_exact_mut(panel_len) {
                panel[deep * nr + at..][..width].fill(0.0);
            }
        }
    }

    /// k runs along the columns: blocks of sixteen columns and sixteen words, a cache line of the source each, are
    /// written out transposed.
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
        let edge = EDGE * K::Word::STEP;
        for (start, rows) in ks.clone().step_by(edge).zip(panel.chunks_mut(EDGE * nr)) {
            let ks = start..ks.end.min(start + edge);
            let deep = K::words(ks.len());
            for row in cols.clone() {
                prefetch(ahead(self.matrix, row, start + LINES_AHEAD * LINE / size_of::<T>()));
            }
            for lane in (0..width).step_by(EDGE) {
                let from = (cols.start + lane).min(cols.end)..(cols.start + lane + EDGE).min(cols.end);
                let block = block::<K::Word, T>(self.matrix, from, ks.clone());
                put(kernel, &block, &mut rows[at + lane..], nr, (deep, EDGE.min(width - lane)));
            }
        }
    }
}

impl<T: Element> SourceB for Factor<'_, T> {
    type Element = T;
    const PARTS: usize = 1;

    fn width(nr: usize) -> usize {
        nr
    }

    #[inline(always)]
    fn pack<K: Kernel>(&self, kernel: K, cols: Range<usize>, ks: Range<usize>, panels: &mut [f32]) {
        self.fill(kernel, cols, ks, panels, Lanes { nr: K::NR, at: 0, width: K::NR });
    }
}

/// Two factors of equal depth, stacked along k: `[first; second]`.
pub(crate) struct Stacked<'a, T: Element> {
    pub(crate) first: Factor<'a, T>,
    pub(crate) second: Factor<'a, T>,
}

impl<'a, T: Element> Stacked<'a, T> {
    /// The factor that has `ks`, and where in it they are.
    #[inline(always)]
    fn at(&self, ks: Range<usize>) -> (&Factor<'a, T>, Range<usize>) {
        let depth = match self.first.along {
            Along::Rows => self.first.matrix.rows(),
            Along::Columns => self.first.matrix.cols(),
        };
        if ks.start < depth { (&self.first, ks) } else { (&self.second, ks.start - depth..ks.end - depth) }
    }
}

impl<T: Element> SourceB for Stacked<'_, T> {
    type Element = T;
    const PARTS: usize = 2;

    fn width(nr: usize) -> usize {
        nr
    }

    #[inline(always)]
    fn pack<K: Kernel>(&self, kernel: K, cols: Range<usize>, ks: Range<usize>, panels: &mut [f32]) {
        let (factor, ks) = self.at(ks);
        factor.pack(kernel, cols, ks, panels);
    }
}

/// Two factors side by side in each panel: half of its columns from the gate projection, half from the up projection,
/// so that a tile holds both pre-activations of an output.
pub(crate) struct Paired<'a, T: Element> {
    pub(crate) gate: Factor<'a, T>,
    pub(crate) up: Factor<'a, T>,
}

impl<T: Element> SourceB for Paired<'_, T> {
    type Element = T;
    const PARTS: usize = 1;

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
