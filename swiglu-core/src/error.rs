//! The one error type of the library.

use std::error::Error as StdError;

use crate::memory::{DeviceId, StreamId};

/// What a call can fail with. Every variant names the operand and carries the numbers.
///
/// A call that returns an error from this list has written nothing, but for [`Error::Device`], after which the
/// contents of the outputs are unspecified (still initialised). What is made of several calls, the passes of
/// [`SwiGLUMlp`](crate::SwiGLUMlp) and of [`Unfused`](crate::Unfused), may run out of memory after some of them: those are done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has the wrong shape.
    #[error("{operand}: expected [{}, {}], got [{}, {}]", .expected.0, .expected.1, .got.0, .got.1)]
    Shape {
        /// Which operand.
        operand: &'static str,
        /// Rows and columns that the other operands ask for.
        expected: (usize, usize),
        /// Rows and columns that came.
        got: (usize, usize),
    },

    /// A packed operand holds two halves, so its packed extent must be even.
    #[error("{operand}: packed width {width} is odd, expected 2 * hidden")]
    OddWidth {
        /// Which operand.
        operand: &'static str,
        /// The odd extent.
        width: usize,
    },

    /// Rows would overlap each other.
    #[error("{operand}: row stride {stride} is smaller than a row of {cols} columns")]
    Stride {
        /// Which operand.
        operand: &'static str,
        /// Distance between rows, in elements.
        stride: usize,
        /// Elements in a row.
        cols: usize,
    },

    /// The columns of an array are not adjacent in memory.
    #[error(
        "{operand}: columns are {col_stride} elements apart, expected adjacent columns (a column-major weight matrix \
         is Orientation::OutIn: pass its transpose, `wf.t()`; copy anything else with `as_standard_layout`)"
    )]
    ColumnMajor {
        /// Which operand.
        operand: &'static str,
        /// Distance between columns, in elements.
        col_stride: isize,
    },

    /// The rows of an array run backwards.
    #[error("{operand}: rows run backwards (row stride {stride})")]
    NegativeStride {
        /// Which operand.
        operand: &'static str,
        /// Distance between rows, in elements.
        stride: isize,
    },

    /// A layout reaches past the end of the block it addresses.
    #[error("{operand}: layout ends at element {end} of a block that holds {len}")]
    OutOfBounds {
        /// Which operand.
        operand: &'static str,
        /// One past the last element addressed.
        end: usize,
        /// Elements in the block.
        len: usize,
    },

    /// A part of a matrix was asked for that it does not have.
    #[error(
        "part of rows {}..{} and columns {}..{} does not lie in a matrix of [{}, {}]",
        .rows.0, .rows.1, .cols.0, .cols.1, .shape.0, .shape.1
    )]
    Part {
        /// First row and one past the last.
        rows: (usize, usize),
        /// First column and one past the last.
        cols: (usize, usize),
        /// Shape of the matrix.
        shape: (usize, usize),
    },

    /// An output shares memory with another operand.
    #[error("{output} overlaps {other}")]
    Overlap {
        /// The output.
        output: &'static str,
        /// The operand that shares memory with it.
        other: &'static str,
    },

    /// An operand lives on another device than the backend.
    #[error("{operand} lives on {got}, the backend on {expected}")]
    WrongDevice {
        /// Which operand.
        operand: &'static str,
        /// Where the backend is.
        expected: DeviceId,
        /// Where the operand is.
        got: DeviceId,
    },

    /// An operand belongs to another stream than the backend's: the two are not ordered with each other.
    #[error("{operand} belongs to {got}, the backend to {expected}")]
    WrongStream {
        /// Which operand.
        operand: &'static str,
        /// The backend's stream.
        expected: StreamId,
        /// The operand's stream.
        got: StreamId,
    },

    /// Backward was called on saved values that no forward has filled since the last backward.
    #[error("saved values are spent: run forward_train before backward")]
    Spent,

    /// Saved values come from a forward of another shape or gate.
    #[error(
        "saved values were made for batch {}, in_features {}, hidden {} and {}, the call has {}, {}, {} and {}",
        .saved.0, .saved.1, .saved.2, .saved.3, .call.0, .call.1, .call.2, .call.3
    )]
    SavedMismatch {
        /// Batch, in_features, hidden and gate of the forward.
        saved: (usize, usize, usize, crate::Gate),
        /// Batch, in_features, hidden and gate of this call.
        call: (usize, usize, usize, crate::Gate),
    },

    /// The two halves of a weight gradient were asked for in different ways.
    #[error("dwf: both halves must be written, or both added to, in one element type")]
    MixedHalves,

    /// A product of dimensions does not fit.
    #[error("{what}: {a} x {b} overflows")]
    Overflow {
        /// What was being sized.
        what: &'static str,
        /// One factor.
        a: usize,
        /// The other.
        b: usize,
    },

    /// An allocation failed.
    #[error("out of memory: {bytes} bytes asked for")]
    OutOfMemory {
        /// Bytes of the allocation that failed.
        bytes: usize,
    },

    /// A parameter is outside of its range.
    #[error("{option} is {value}, expected {expected}")]
    InvalidOption {
        /// Which parameter.
        option: &'static str,
        /// Its value.
        value: f64,
        /// The range it must lie in.
        expected: &'static str,
    },

    /// A label names a class that does not exist.
    #[error("label {label} in row {row}, expected less than {classes}")]
    Label {
        /// Row of the label.
        row: usize,
        /// The label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },

    /// An index names a row that does not exist.
    #[error("index {index} is row {row}, expected less than {rows}")]
    Row {
        /// Which index of the list.
        index: usize,
        /// The row that it names.
        row: u32,
        /// Number of rows.
        rows: usize,
    },

    /// This backend cannot do what was asked.
    #[error("{backend} does not support {what}")]
    Unsupported {
        /// Name of the backend.
        backend: &'static str,
        /// What was asked.
        what: &'static str,
    },

    /// A device cannot be used on this machine. The only error after which `Device::Auto` tries the next device.
    #[error("{device} is unavailable: {reason}")]
    Unavailable {
        /// Which device.
        device: String,
        /// Why, and what to do about it.
        reason: String,
    },

    /// The device reported a failure, maybe of an earlier call.
    #[error("device error: {0}")]
    Device(#[source] Box<dyn StdError + Send + Sync>),
}

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
