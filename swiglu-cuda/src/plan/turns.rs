//! Products of `sm90` with a gate function whose warpgroups take turns: where that is faster.

use swiglu_core::Tile;

use super::Planner;
use super::clocks::sm90_clocks;
use super::product::Wanted;
use crate::gemm::{Family, Gemm, Hopper};
use crate::notes::{Note, Notes};

/// Bytes of A that a group of rows of tiles has at most: about a quarter of an H100's L2. At k = 1024, 2048 and 4096 these are
/// 32, 16 and 8 rows of tiles, each the fastest or within 1 % of it among 4, 8, 16, 32 and 64 (forward, bf16; 4096, 1024, 4096
/// and 8192, 2048, 8192 and 8192, 4096, 14336).
const GROUP_BYTES: usize = 13 << 20;
const GROUPS: [u32; 3] = [32, 16, 8];
const LEAST_GROUP: u32 = 4;
/// Bytes of A up to which all rows of tiles are one group, if they are no more than the largest has: L2 holds them, and each
/// column is read once. 1.036 ms for 1.086 in groups of eight at 4096, 4096, 11008.
const WHOLE_BYTES: usize = 36 << 20;
/// By how much the other kernel has to be faster in the model, which counts waves of tiles: within the power limit one that is
/// not full runs at a higher clock. At 4096, 4096, 4096 the model has turns 0.6 % slower: they take 0.365 ms for 0.369, and
/// 0.416 for 0.453 where pre-activations are saved. Where it has them 0.5 % faster, at 2048, 4096, 11008, they are 2 % slower.
const OTHERS_ARE_FASTER: f64 = 1.05;

impl Planner<'_> {
    /// The same product of `sm90` with warpgroups that take turns, where that was asked for or pays.
    pub(super) fn in_turns(&self, gemm: Gemm, wanted: &Wanted, notes: &mut Notes) -> Gemm {
        if !gemm.product.is_paired() {
            return gemm;
        }
        match (self.forced, gemm.turns()) {
            (Some(Family::Turns), Err(reason)) => {
                notes.push(Note::InPlaceOf { family: gemm.family, asked: Family::Turns, reason });
                gemm
            }
            (Some(Family::Turns), Ok(schedule)) => grouped(gemm.scheduled(schedule), wanted),
            (None, Ok(schedule)) if wanted.tile == Tile::Auto => {
                let turned = gemm.scheduled(schedule);
                let shape = (wanted.shape.0 as f64, wanted.shape.1 as f64, wanted.k as f64);
                let clocks = |gemm: &Gemm| sm90_clocks(gemm, shape, &self.facts);
                if clocks(&turned) < OTHERS_ARE_FASTER * clocks(&gemm) {
                    grouped(turned, wanted)
                } else {
                    gemm
                }
            }
            _ => gemm,
        }
    }
}

/// With as many rows of tiles in a group as L2 keeps.
fn grouped(gemm: Gemm, wanted: &Wanted) -> Gemm {
    let tile_rows = gemm.tile().0 as usize;
    let row_bytes = wanted.k.saturating_mul(gemm.dtype.bytes()).saturating_mul(tile_rows);
    let rows = wanted.shape.0.div_ceil(tile_rows);
    let whole = rows <= GROUPS[0] as usize && row_bytes.saturating_mul(rows) <= WHOLE_BYTES;
    let fits = |group: &u32| whole || row_bytes.saturating_mul(*group as usize) <= GROUP_BYTES;
    let group = GROUPS.into_iter().find(fits).unwrap_or(LEAST_GROUP);
    Gemm { hopper: Hopper { group, ..gemm.hopper }, ..gemm }
}
