//! The bugs that a fake device can be given: those of addressing, which safe code cannot have on host memory.

use crate::catalogue::catalogue;

catalogue! {
    /// A seeded bug of memory access. The checks must notice every one of them.
    Slip {
        /// Operands are read as if their rows were adjacent.
        ReadsDense,
        /// Results are written as if their rows were adjacent.
        WritesDense,
        /// Operands are read from the start of their block, whatever their offset.
        ReadsFromBlockStart,
        /// Results are written one element past the end of each row: no mask in the last tile.
        WritesPastRow,
        /// Results are written one element before their start.
        WritesBeforeStart,
        /// The element past the end of a row is read and multiplied by 0, which a NaN survives.
        ReadsPastRow,
        /// The input x is scratch space.
        ModifiesInput,
        /// The last element of a result stays where it was.
        KeepsLastElement,
    }
}
