//! Why something that looks like an MLP cannot be used.

use crate::names::Family;

/// Something that looks like an MLP but cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{prefix:?} ({family}): {reason}")]
pub struct Problem {
    pub(crate) prefix: String,
    pub(crate) family: Family,
    pub(crate) reason: Reason,
}

impl Problem {
    /// What the names of its tensors start with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The family that the names are of.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Why it cannot be used.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }
}

/// Why an MLP cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// A tensor is not there without which the others are of no use.
    #[error("tensor {tensor:?} is missing")]
    Missing {
        /// Its name.
        tensor: String,
    },

    /// Another MLP has the same name, so that neither can be asked for: two ways of naming under one prefix, or an expert of a
    /// stack that is called what an MLP beside it is.
    #[error("an MLP of {other} has the same name")]
    SharedName {
        /// The family of the other.
        other: Family,
    },

    /// Gate and up are there both packed and apart.
    #[error("tensor {tensor:?} is there beside gate_up_proj")]
    PackedAndSplit {
        /// Name of the one apart.
        tensor: String,
    },

    /// All experts in one tensor, but without the bias that tells gpt-oss from models whose halves do not alternate.
    #[error(
        "tensor {tensor:?} has no bias beside it, so it is not gpt-oss's, and whether its columns alternate is unknown"
    )]
    UnknownHalves {
        /// Its name.
        tensor: String,
    },

    /// The weights are quantised.
    #[error("tensor {tensor:?} is quantised, expected F32, F16 or BF16 weights")]
    Quantised {
        /// Its name.
        tensor: String,
    },

    /// Elements of a type that is not computed with.
    #[error("tensor {tensor:?}: expected F32, F16 or BF16, got {got}")]
    Dtype {
        /// Its name.
        tensor: String,
        /// Its element type, as the file names it.
        got: String,
    },

    /// Elements of another type than the other tensors'.
    #[error("tensor {tensor:?}: expected {expected} as the other tensors, got {got}")]
    MixedDtypes {
        /// Its name.
        tensor: String,
        /// The element type of the others.
        expected: String,
        /// Its own.
        got: String,
    },

    /// Not a matrix, or for all experts not a stack of them.
    #[error("tensor {tensor:?}: expected {expected} dimensions, got shape {got:?}")]
    Dimensions {
        /// Its name.
        tensor: String,
        /// How many dimensions it should have.
        expected: usize,
        /// Its shape.
        got: Vec<u64>,
    },

    /// A shape that does not fit the other tensors.
    #[error("tensor {tensor:?}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// Its name.
        tensor: String,
        /// The shape that fits the other tensors.
        expected: Vec<u64>,
        /// Its shape.
        got: Vec<u64>,
    },

    /// A packed tensor holds two halves, so its packed extent must be even.
    #[error("tensor {tensor:?}: packed width {width} is odd, expected 2 * hidden")]
    OddWidth {
        /// Its name.
        tensor: String,
        /// The odd extent.
        width: u64,
    },

    /// A tensor without elements.
    #[error("tensor {tensor:?}: shape {got:?} has no elements")]
    Empty {
        /// Its name.
        tensor: String,
        /// Its shape.
        got: Vec<u64>,
    },

    /// A tensor whose extents this machine cannot address.
    #[error("tensor {tensor:?}: shape {got:?} cannot be addressed on this machine")]
    TooLarge {
        /// Its name.
        tensor: String,
        /// Its shape.
        got: Vec<u64>,
    },
}
