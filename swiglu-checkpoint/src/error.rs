//! The one error type of this crate.

use std::io;
use std::path::PathBuf;

use swiglu_core::{Dtype, Orientation};

use crate::problem::Problem;

/// What opening, loading or saving a checkpoint can fail with. Every variant names the file or the MLP, and carries the
/// numbers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused, or the file ended while it was read.
    #[error("{}: {source}", file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// What it said.
        source: io::Error,
    },

    /// A pipe, a device, or a folder where a file is needed.
    #[error("{}: not a regular file", file.display())]
    NotAFile {
        /// Which path.
        file: PathBuf,
    },

    /// A folder without a checkpoint.
    #[error("{}: holds neither model.safetensors nor model.safetensors.index.json", folder.display())]
    NoModel {
        /// Which folder.
        folder: PathBuf,
    },

    /// A folder with two checkpoints, which may differ.
    #[error(
        "{}: holds both model.safetensors and model.safetensors.index.json, open one of them",
        folder.display()
    )]
    TwoModels {
        /// Which folder.
        folder: PathBuf,
    },

    /// A file that ends before the length of its header does.
    #[error("{}: {bytes} bytes are too few, a safetensors file starts with 8 for the header's length", file.display())]
    TooShort {
        /// Which file.
        file: PathBuf,
        /// Bytes in it.
        bytes: u64,
    },

    /// A header, or an index, that is longer than any real one.
    #[error("{}: header or index of {bytes} bytes, expected at most {limit}", file.display())]
    TooLarge {
        /// Which file.
        file: PathBuf,
        /// Bytes that the header says it has, or that the index has.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },

    /// A header that ends after its file does.
    #[error("{}: header of {length} bytes, but {available} bytes follow its length", file.display())]
    HeaderLength {
        /// Which file.
        file: PathBuf,
        /// Bytes that the header says it has.
        length: u64,
        /// Bytes behind its length.
        available: u64,
    },

    /// A header that is not JSON, or not of the form that safetensors prescribes.
    #[error("{}: header: {source}", file.display())]
    Header {
        /// Which file.
        file: PathBuf,
        /// What is wrong, and where in the header.
        source: serde_json::Error,
    },

    /// Two tensors of one name.
    #[error("{}: tensor {tensor:?} is there twice", file.display())]
    Duplicate {
        /// Which file, or which index.
        file: PathBuf,
        /// The name.
        tensor: String,
    },

    /// Tensors that overlap each other, leave a hole, or end before they start.
    #[error(
        "{}: tensor {tensor:?}: bytes {}..{}, expected to start at {expected}",
        file.display(), .got.0, .got.1
    )]
    Offsets {
        /// Which file.
        file: PathBuf,
        /// The first tensor that is out of line.
        tensor: String,
        /// Where the tensor before it ends.
        expected: u64,
        /// Where it says that it starts and ends.
        got: (u64, u64),
    },

    /// A tensor with more or fewer bytes than its shape and element type have.
    #[error("{}: tensor {tensor:?}: {dtype} of shape {shape:?} in {got} bytes", file.display())]
    Size {
        /// Which file.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// Its element type, as the file names it.
        dtype: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes between its offsets.
        got: u64,
    },

    /// A file that was cut off, or that goes on after its last tensor.
    #[error("{}: header describes {expected} bytes, the file has {got}", file.display())]
    FileLength {
        /// Which file.
        file: PathBuf,
        /// Bytes up to the end of the last tensor.
        expected: u64,
        /// Bytes in the file.
        got: u64,
    },

    /// An index that is not JSON, or not of the form of one.
    #[error("{}: index: {source}", file.display())]
    Index {
        /// Which file.
        file: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },

    /// An index that names a shard outside of its folder.
    #[error("{}: shard {shard:?} of tensor {tensor:?} is not the name of a file in this folder", file.display())]
    ShardName {
        /// The index.
        file: PathBuf,
        /// The tensor that should be there.
        tensor: String,
        /// The name.
        shard: String,
    },

    /// An index that names a shard that does not exist.
    #[error("{}: shard {shard:?} is missing", file.display())]
    MissingShard {
        /// The index.
        file: PathBuf,
        /// Name of the shard.
        shard: String,
    },

    /// An index that names a tensor that its shard does not hold.
    #[error("{}: tensor {tensor:?} is not in shard {shard:?}", file.display())]
    NotInShard {
        /// The index.
        file: PathBuf,
        /// Which tensor.
        tensor: String,
        /// Name of the shard.
        shard: String,
    },

    /// No MLP of this name was found.
    #[error("{}: no MLP {mlp:?}", file.display())]
    NoSuchMlp {
        /// The checkpoint.
        file: PathBuf,
        /// The name.
        mlp: String,
    },

    /// An MLP of this name is there, but cannot be used.
    #[error("{}: {problem}", file.display())]
    Unusable {
        /// The checkpoint.
        file: PathBuf,
        /// Why not.
        problem: Box<Problem>,
    },

    /// Weights of another element type than the checkpoint's.
    #[error("{}: {mlp:?} holds {got}, expected {expected}", file.display())]
    Dtype {
        /// The checkpoint.
        file: PathBuf,
        /// Name of the MLP.
        mlp: String,
        /// The element type that was asked for.
        expected: Dtype,
        /// The element type in the file.
        got: Dtype,
    },

    /// Weights to be saved have another shape than in the checkpoint.
    #[error(
        "{}: {operand} of {mlp:?}: expected [{}, {}], got [{}, {}]",
        file.display(), .expected.0, .expected.1, .got.0, .got.1
    )]
    Shape {
        /// The checkpoint.
        file: PathBuf,
        /// Name of the MLP.
        mlp: String,
        /// Which matrix.
        operand: &'static str,
        /// Its shape as loaded.
        expected: (usize, usize),
        /// Its shape now.
        got: (usize, usize),
    },

    /// Weights to be saved lie the other way round than in the checkpoint.
    #[error("{}: {mlp:?} holds {expected:?} matrices, got {got:?}", file.display())]
    Orientation {
        /// The checkpoint.
        file: PathBuf,
        /// Name of the MLP.
        mlp: String,
        /// How its matrices lie in the file.
        expected: Orientation,
        /// How those to be saved lie.
        got: Orientation,
    },

    /// A bias to be saved that the checkpoint does not have, or the other way round.
    #[error("{}: {operand} of {mlp:?}: {}", file.display(), if *.expected { "missing" } else { "the checkpoint has none" })]
    Bias {
        /// The checkpoint.
        file: PathBuf,
        /// Name of the MLP.
        mlp: String,
        /// Which bias.
        operand: &'static str,
        /// Whether the checkpoint has one.
        expected: bool,
    },

    /// What `swiglu-core` refused, or could not allocate.
    #[error(transparent)]
    Core(#[from] swiglu_core::Error),
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
