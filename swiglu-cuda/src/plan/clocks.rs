//! How long the tensor cores take for the tiles of an `sm90` product, ends of tiles included.

use crate::device::Facts;
use crate::gemm::{Gemm, Schedule};

/// Multiply-adds of 16-bit elements that a multiprocessor of an H100 does in a clock: 64 x 256 x 16 in 128 clocks.
const MULTIPLY_ADDS: f64 = 2048.0;
/// Bytes a clock that L2 supplies to a multiprocessor of an H100, as DeepGEMM models it.
const L2_RATE: f64 = 46.6;
/// Clocks between the products of two tiles. Where warpgroups work together they write the first in them; where they take
/// turns, the second has but to wait for its first blocks of k.
const TOGETHER_ENDS: f64 = 3800.0;
const TURNS_ENDS: f64 = 1000.0;
/// Clocks in which a warpgroup that takes turns writes a tile; and those before the first products of all and after the last.
const TURNS_WRITES: f64 = 7500.0;
const TURNS_START: f64 = 6500.0;

/// Clocks in which L2 supplies the operands of a tile: what the blocks of a cluster share is copied once for them.
pub(crate) fn copy_clocks(gemm: &Gemm, k: f64) -> f64 {
    let ((rows, columns), (cluster_rows, cluster_columns)) = (gemm.tile(), gemm.cluster_tile());
    let a = rows as f64 * columns as f64 / cluster_columns as f64;
    let b = halves(gemm) * columns as f64 * rows as f64 / cluster_rows as f64;
    (a + b) * k * gemm.dtype.bytes() as f64 / L2_RATE
}

/// Clocks of an m x n product over k on a device whose memory keeps up. Forwards in bf16 from 8192, 256, 1024 to
/// 8192, 4096, 14336 took within 5 % of it on an H100.
pub(crate) fn sm90_clocks(gemm: &Gemm, (m, n, k): (f64, f64, f64), facts: &Facts) -> f64 {
    let (rows, columns) = gemm.cluster_tile();
    let clusters = (m / rows as f64).ceil() * (n / columns as f64).ceil();
    let waves = (clusters / gemm.clusters_at_once(facts).max(1) as f64).ceil();
    let (rows, columns) = gemm.tile();
    let products = (rows * columns) as f64 * halves(gemm) * k / MULTIPLY_ADDS;
    let tile = products.max(copy_clocks(gemm, k));
    match gemm.hopper.schedule {
        Schedule::Together => waves * (tile + TOGETHER_ENDS),
        Schedule::Turns { .. } => waves * (tile + TURNS_ENDS).max((tile + TURNS_WRITES) / 2.0) + TURNS_START,
    }
}

fn halves(gemm: &Gemm) -> f64 {
    if gemm.product.is_paired() { 2.0 } else { 1.0 }
}
