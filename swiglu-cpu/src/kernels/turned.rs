//! Rows of B that are turned where they are needed, a few at a time, and not packed: [`Dots`](super::Dots) for kernels whose
//! tile takes a step of k at a time.

use std::ops::Range;

use swiglu_core::{Element, Host, MatRef};

use super::{Block, EDGE, Kernel, Panel, Runs, prefetch};
use crate::grid::even_parts;
use crate::pack::ahead;
use crate::word::Word;

/// Words of each row that are read together, 1 KiB: two cores of a Zen 5 read 16 or 32 rows side by side at 44 GB/s by so much,
/// and at 30 by 256 bytes, of the 46 at which they read one after the other.
const RUN: usize = 16 * EDGE;
/// Words of each row that are turned before they are multiplied: 8 KiB of both matrices, in L1, for which accumulators are
/// loaded and stored once.
const CHUNK: usize = 4 * EDGE;

/// Floats from one run to the next: a cache line more than it has, so that those of sixteen rows do not meet in a set of L1.
const STRIDE: usize = RUN + EDGE;
/// Floats of the runs of both matrices.
const RUNS: usize = 2 * EDGE * STRIDE;
/// The same, and of a chunk of them, turned.
#[cfg(target_arch = "x86_64")]
pub(super) const WORK: usize = RUNS + CHUNK * 2 * EDGE;

/// See [`Dots::dots`](super::Dots::dots).
#[inline(always)]
pub(super) fn dots<K: Kernel, T: Element>(
    kernel: K,
    held: &K::Held,
    (rows, a): (usize, &[f32]),
    b: [Runs<'_, T>; 2],
    (c, first): (&mut [f32], bool),
    work: &mut [f32],
) {
    const { assert!(K::NR == 2 * EDGE && K::A_STRIDE == EDGE && K::DOT_ROWS == EDGE) };
    let k = b[0].0.cols();
    if k == 0 {
        if first {
            c.fill(0.0);
        }
        return;
    }
    // Rows of this call: of each matrix, or of one.
    let call = b[0].1.end.max(b[1].1.end) - b[0].1.start;
    let (runs, turned) = work.split_at_mut(RUNS);
    let step = RUN * K::Word::STEP;
    for (start, a) in (0..k).step_by(step).zip(a.chunks(RUN * EDGE)) {
        let ks = start..k.min(start + step);
        for ((factor, columns), runs) in b.iter().zip(runs.chunks_exact_mut(EDGE * STRIDE)) {
            for (row, run) in columns.clone().zip(runs.chunks_exact_mut(STRIDE)) {
                read::<K::Word, T>(*factor, row, ks.clone(), run);
            }
        }
        let next = b.clone().map(|(factor, rows)| next_runs(factor, rows, ks.end, call));
        let words = K::words(ks.len());
        for (at, a) in (0..words).step_by(CHUNK).zip(a.chunks(CHUNK * EDGE)) {
            let depth = CHUNK.min(words - at);
            for (matrix, runs) in runs.chunks_exact(EDGE * STRIDE).enumerate() {
                turn(kernel, runs, at..at + depth, &mut turned[matrix * EDGE..], &next[matrix]);
            }
            for part in even_parts(0..rows, K::MR) {
                let panel = Panel { rows: part.len(), depth, floats: &a[part.start..] };
                let first = first && start == 0 && at == 0;
                kernel.tile(held, panel, turned, &mut c[part.start * K::NR..], first);
            }
        }
    }
}

/// Where the runs are that are read next: of the same rows, or the first ones of those behind the rows of this call.
#[inline(always)]
fn next_runs<T: Element>(
    factor: MatRef<'_, T, Host>,
    rows: Range<usize>,
    next: usize,
    call: usize,
) -> [*const T; EDGE] {
    let (skip, next) = if next < factor.cols() { (0, next) } else { (call, 0) };
    std::array::from_fn(|row| ahead(factor, rows.start + row + skip, next))
}

/// Words of a row, with zeros up to whole blocks.
#[inline(always)]
fn read<W: Word, T: Element>(factor: MatRef<'_, T, Host>, row: usize, ks: Range<usize>, run: &mut [f32]) {
    let from = factor.row(row).and_then(|row| row.get(ks)).unwrap_or_default();
    if from.len() == RUN * W::STEP {
        return W::along(&from[..RUN * W::STEP], &mut run[..RUN]);
    }
    let words = from.len().div_ceil(W::STEP);
    run[words..].fill(0.0);
    W::along(from, &mut run[..words]);
}

/// Words of sixteen runs as columns, `K::NR` apart. For each line of them a line of what is `next` is asked for: 10.8 ms for
/// 12.2 with a quarter of all lines at once before each chunk, which wait for each other (f32, 1, 4096, 11008, two cores of a
/// Zen 5; 5.2 for 5.8 in bf16). Turning and multiplying alone take 3.1 ms and 2.0.
#[inline(always)]
fn turn<K: Kernel, T: Element>(
    kernel: K,
    runs: &[f32],
    words: Range<usize>,
    to: &mut [f32],
    next: &[*const T; EDGE],
) {
    for (start, to) in words.step_by(EDGE).zip(to.chunks_mut(EDGE * K::NR)) {
        for run in next {
            prefetch(run.wrapping_add(start * K::Word::STEP));
        }
        let mut block: Block = [[0.0; EDGE]; EDGE];
        for (to, run) in block.iter_mut().zip(runs.chunks_exact(STRIDE)) {
            to.copy_from_slice(&run[start..start + EDGE]);
        }
        kernel.transpose(&block, to, K::NR);
    }
}
