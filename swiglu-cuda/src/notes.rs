//! What there is to say about a plan. Plain data, made into text where somebody asks: a call plans anew each time, and a
//! warm one must not allocate.

use std::fmt;

use crate::gemm::{Edge, Family};

/// Something that a user of a plan should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// This family, and why none that is faster.
    Because(Family, &'static str),
    /// This family, and not the one that was asked for.
    InPlaceOf { family: Family, asked: Family, reason: &'static str },
    /// This tile, because the one that was asked for does not fit into shared memory of so many bytes.
    Smaller { edge: Edge, asked: Edge, shared_bytes: u32 },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Note::Because(family, reason) => write!(f, "{family}: {reason}"),
            Note::InPlaceOf { family, asked, reason } => write!(f, "{family} in place of {asked}: {reason}"),
            Note::Smaller { edge, asked, shared_bytes } => write!(
                f,
                "a tile of {} does not fit into {shared_bytes} bytes of shared memory, so {}",
                asked.len(),
                edge.len()
            ),
        }
    }
}

/// The notes of a plan, in order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Notes {
    list: [Option<Note>; Self::CAPACITY],
}

impl Notes {
    /// Backward has three products, and there are up to two notes on each.
    const CAPACITY: usize = 6;

    pub(crate) fn push(&mut self, note: Note) {
        if let Some(room) = self.list.iter_mut().find(|room| room.is_none()) {
            *room = Some(note);
        }
    }

    pub(crate) fn texts(&self) -> impl Iterator<Item = String> {
        self.list.iter().flatten().map(Note::to_string)
    }
}
