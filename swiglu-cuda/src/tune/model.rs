//! What a kernel should take, from the figures of a device alone: which of many candidates are worth timing. Pure.
//!
//! The model knows products, L2 and memory, and that a wave of tiles lasts as long as the slowest of them. What it does not
//! know (latency, power, what epilogues hide) is why there is a tuner; the planner's own rules come from measurements.

use crate::device::Facts;
use crate::gemm::{Family, Gemm};
use crate::kernel::Kernel;
use crate::plan::{copy_clocks, sm90_clocks};

use super::choices::Asked;
use super::variant::Variant;

/// Candidates that are timed: as many as forwards of `sm90` have, each of which takes some 20 ms.
const MOST: usize = 12;

/// Bytes a clock that memory of 3.0 TB/s supplies to each of 132 multiprocessors at 1.6 GHz. Ratios of candidates depend
/// little on it.
const MEMORY_RATE: f64 = 14.2;
/// What an H100's L2 holds, less what the other operand passes through.
const L2_BYTES: f64 = 40e6;

/// Multiply-adds a clock of a multiprocessor, where the family has no model of its own.
fn rate(gemm: &Gemm) -> f64 {
    match gemm.family {
        Family::Mma if gemm.tf32 => 512.0,
        Family::Mma => 1024.0,
        _ => 128.0,
    }
}

/// The candidates for a product, the analytic choice first and then by what the model expects of them.
pub(crate) fn candidates(asked: &Asked, facts: &Facts) -> Vec<Variant> {
    let (m, n, k) = asked.shape;
    let mut variants = asked.kernel.variants(facts);
    if m.min(n).min(k) == 0 {
        variants.truncate(1);
    }
    if let Some((_, others)) = variants.split_first_mut() {
        let expected = |variant: &Variant| clocks(asked.kernel.with(*variant), asked.shape, facts);
        others.sort_by(|a, b| {
            let (a, b) = (expected(a), expected(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
    }
    variants.truncate(MOST);
    variants
}

/// Clocks of a product, and how many of them memory is busy.
fn clocks(kernel: Kernel, (m, n, k): (usize, usize, usize), facts: &Facts) -> (f64, f64) {
    match kernel {
        Kernel::Gemm(gemm) => gemm_clocks(&gemm, (m as f64, n as f64, k as f64), facts),
        // Bound by memory, which every multiprocessor that has a block helps to read.
        Kernel::Decode(decode) => {
            let busy = decode.grid(n as u64).blocks.min(u64::from(facts.multiprocessors)) as f64;
            let clocks = 2.0 * n as f64 * k as f64 * decode.dtype.bytes() as f64 / (MEMORY_RATE * busy);
            (clocks, clocks)
        }
        _ => (0.0, 0.0),
    }
}

fn gemm_clocks(gemm: &Gemm, (m, n, k): (f64, f64, f64), facts: &Facts) -> (f64, f64) {
    let multiprocessors = f64::from(facts.multiprocessors);
    let (rows, cols) = gemm.tile();
    let (rows, cols) = (rows as f64, cols as f64);
    let (cluster_rows, cluster_cols) = gemm.cluster_tile();
    let (cluster_rows, cluster_cols) = (cluster_rows as f64, cluster_cols as f64);
    let halves = if gemm.product.is_paired() { 2.0 } else { 1.0 };
    let row_bytes = k * gemm.dtype.bytes() as f64;
    // Rows of tiles, or of pairs, and columns of them; waves, of as many tiles as run at once.
    let (high, wide) = ((m / cluster_rows).ceil(), (n / cluster_cols).ceil());
    let at_once = gemm.clusters_at_once(facts).max(1) as f64;
    let waves = (high * wide / at_once).ceil();
    let supplied = match gemm.family {
        Family::Sm90 => sm90_clocks(gemm, (m, n, k), facts),
        _ => waves * (rows * cols * halves * k / rate(gemm)).max(copy_clocks(gemm, k)),
    };
    // B is read once for each group of rows; A once, where L2 holds a group of its rows while they sweep the columns, and
    // else for each wave.
    let group = f64::from(gemm.hopper.group.max(8)).min(high);
    let group_bytes = group * cluster_rows * row_bytes;
    let sweeps = if group_bytes <= L2_BYTES { 1.0 } else { (group * wide / at_once).ceil() };
    let bytes = (high / group).ceil() * (group_bytes * sweeps + n * halves * row_bytes);
    let memory = bytes / (MEMORY_RATE * multiprocessors);
    (supplied.max(memory), memory)
}
