//! Kernels that compete: those that sum in the same order, so that a result has the same bits by each of them. Pure.
//!
//! Within `sm90`, `mma` and `simt` every element of C is one chain of products, in ascending k or by fixed turns of two
//! segments, whatever the tile, the cluster and the order of the tiles; within `decode` the chain depends on k alone. Zeros behind the end of k, of which
//! there may be more in one kernel than in another, add nothing. Families differ from each other, and do not compete.

use std::fmt;

use swiglu_core::Dtype;

use crate::decode::Decode;
use crate::device::Facts;
use crate::gemm::{Edge, Family, Gemm, Hopper, Schedule};
use crate::kernel::Kernel;

/// In what kernels with the same bits differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Variant {
    /// Of `sm90`: whether two blocks copy B for each other, and [`Hopper::group`].
    Hopper { pairs: bool, group: u32 },
    /// Of `sm90`: warpgroups that take turns, and [`Hopper::group`].
    Turns { group: u32 },
    /// Of `mma` and `simt`: the edge of a tile.
    Tile(Edge),
    /// Of `decode`: columns of gate that a block takes.
    Decode { columns: u32 },
}

/// Heights of a raster that compete: around the two that [`Hopper::group`] has. More rows than there are make one group.
const GROUPS: [u32; 4] = [4, 8, 16, 32];
const EDGES: [Edge; 3] = [Edge::E128, Edge::E64, Edge::E32];

impl Gemm {
    /// The same product by another kernel; by this one where the variant is of another family.
    pub(crate) fn with(self, variant: Variant) -> Self {
        match (self.family, variant) {
            (Family::Sm90, Variant::Hopper { pairs, group }) => {
                Self { hopper: Hopper { schedule: Schedule::Together, pairs, group, ..self.hopper }, ..self }
            }
            (Family::Sm90, Variant::Turns { group }) => match self.turns() {
                Ok(schedule) => {
                    let turned = self.scheduled(schedule);
                    Self { hopper: Hopper { group, ..turned.hopper }, ..turned }
                }
                Err(_) => self,
            },
            (Family::Mma | Family::Simt, Variant::Tile(edge)) => Self { edge, ..self },
            _ => self,
        }
    }

    /// Whether there are kernels for pairs of blocks and for blocks by themselves; see `Wanted::has_both_clusters` in `plan/product.rs`.
    fn has_both_clusters(&self) -> bool {
        self.hopper.boxes || !self.product.is_paired()
    }
}

impl Decode {
    /// The same product by another kernel; by this one where the variant is of another family.
    pub(crate) fn with(self, variant: Variant) -> Self {
        match variant {
            Variant::Decode { columns } => Self { columns, ..self },
            _ => self,
        }
    }
}

impl Kernel {
    /// Which of its competitors this kernel is; `None` where it has none. Trials hand `sm90` operands of 16 bits, and none
    /// that are formed on the way. Where there are few tiles, all of them run at once, in whichever order.
    pub(crate) fn variant(&self) -> Option<Variant> {
        match *self {
            Kernel::Gemm(Gemm { family: Family::Sm90, dtype, hopper, parts, .. }) => {
                let taken = dtype != Dtype::F32 && hopper.forms.is_none() && parts == 1 && !hopper.narrow;
                taken.then_some(match hopper.schedule {
                    Schedule::Together => Variant::Hopper { pairs: hopper.pairs, group: hopper.group },
                    Schedule::Turns { .. } => Variant::Turns { group: hopper.group },
                })
            }
            Kernel::Gemm(Gemm { family: Family::Mma | Family::Simt, edge, .. }) => Some(Variant::Tile(edge)),
            Kernel::Decode(decode) => Some(Variant::Decode { columns: decode.columns }),
            _ => None,
        }
    }

    /// The same product by another kernel; by this one where the variant is of another family.
    pub(crate) fn with(self, variant: Variant) -> Self {
        match self {
            Kernel::Gemm(gemm) => Kernel::Gemm(gemm.with(variant)),
            Kernel::Decode(decode) => Kernel::Decode(decode.with(variant)),
            other => other,
        }
    }

    /// Every kernel that competes with this one on a device, itself first.
    pub(crate) fn variants(&self, facts: &Facts) -> Vec<Variant> {
        let Some(own) = self.variant() else { return Vec::new() };
        let all: Vec<Variant> = match *self {
            Kernel::Gemm(Gemm { family: Family::Sm90, hopper, .. }) => [hopper.pairs, !hopper.pairs]
                .into_iter()
                .flat_map(|pairs| GROUPS.map(|group| Variant::Hopper { pairs, group }))
                .chain(GROUPS.map(|group| Variant::Turns { group }))
                .collect(),
            Kernel::Gemm(_) => EDGES.map(Variant::Tile).to_vec(),
            Kernel::Decode(_) => Decode::WIDTHS.map(|columns| Variant::Decode { columns }).to_vec(),
            _ => Vec::new(),
        };
        let others = all.into_iter().filter(|&other| other != own && self.competes(other, facts));
        [own].into_iter().chain(others).collect()
    }

    /// Whether a kernel may stand in for this one on a device: the same sums in the same order, and it can be launched.
    pub(crate) fn competes(&self, variant: Variant, facts: &Facts) -> bool {
        if self.variant().is_none() {
            return false;
        }
        match (*self, variant) {
            (Kernel::Gemm(gemm), Variant::Hopper { pairs, group }) => {
                gemm.family == Family::Sm90
                    && (pairs == gemm.hopper.pairs || gemm.has_both_clusters())
                    && (group == gemm.hopper.group || GROUPS.contains(&group))
            }
            (Kernel::Gemm(gemm), Variant::Turns { group }) => {
                gemm.family == Family::Sm90 && gemm.turns().is_ok() && GROUPS.contains(&group)
            }
            (Kernel::Gemm(gemm), Variant::Tile(_)) => {
                matches!(gemm.family, Family::Mma | Family::Simt) && gemm.with(variant).fits(facts)
            }
            (Kernel::Decode(decode), Variant::Decode { columns }) => {
                let other = Decode { columns, ..decode };
                other.exists() && other.shared_bytes() <= facts.shared_bytes
            }
            _ => false,
        }
    }
}

impl Variant {
    /// As three numbers, for a file.
    pub(super) fn to_numbers(self) -> [u64; 3] {
        match self {
            Self::Hopper { pairs, group } => [0, u64::from(pairs), u64::from(group)],
            Self::Tile(edge) => [1, edge.len(), 0],
            Self::Decode { columns } => [2, u64::from(columns), 0],
            Self::Turns { group } => [3, u64::from(group), 0],
        }
    }

    /// From the numbers of [`Variant::to_numbers`]; `None` where they are of no variant that competes.
    pub(super) fn of_numbers(numbers: [u64; 3]) -> Option<Self> {
        match numbers {
            [0, pairs @ (0 | 1), group] => {
                Some(Self::Hopper { pairs: pairs == 1, group: known_group(group)? })
            }
            [1, edge, 0] => EDGES.into_iter().find(|known| known.len() == edge).map(Self::Tile),
            [2, columns, 0] => {
                let columns = Decode::WIDTHS.into_iter().find(|&known| u64::from(known) == columns)?;
                Some(Self::Decode { columns })
            }
            [3, group, 0] => Some(Self::Turns { group: known_group(group)? }),
            _ => None,
        }
    }
}

fn known_group(group: u64) -> Option<u32> {
    GROUPS.into_iter().find(|&known| u64::from(known) == group)
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hopper { pairs, group } => {
                write!(
                    f,
                    "{} blocks, {group} rows of tiles at a time",
                    if *pairs { "paired" } else { "single" }
                )
            }
            Self::Turns { group } => write!(f, "warpgroups in turns, {group} rows of tiles at a time"),
            Self::Tile(edge) => write!(f, "tiles of {}", edge.len()),
            Self::Decode { columns } => write!(f, "{columns} columns a block"),
        }
    }
}
