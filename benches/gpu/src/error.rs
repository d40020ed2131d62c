//! Every way in which the program can fail.

use std::io;
use std::path::PathBuf;

use swiglu_cuda::cudarc::driver::DriverError;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a measurement or the program stops.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The library, or the device under it.
    #[error(transparent)]
    Swiglu(#[from] swiglu_core::Error),
    /// A call of the benchmark's own into the driver.
    #[error("the driver: {0:?}")]
    Driver(#[from] DriverError),
    /// cuBLASLt cannot be used.
    #[error("cuBLASLt, which everything is measured against: {0}")]
    Library(String),
    /// A call into cuBLASLt failed.
    #[error("{call} returned {code}: {text}")]
    Lt {
        /// Name of the function.
        call: &'static str,
        /// The status.
        code: i32,
        /// What cuBLASLt says about it.
        text: String,
    },
    /// cuBLASLt has no algorithm that runs.
    #[error("cuBLASLt has no algorithm for {0}")]
    NoAlgorithm(String),
    /// A product that its plan was not made for.
    #[error("a plan of cuBLASLt was given another product: {0}")]
    ForeignPlan(String),
    /// A file cannot be written.
    #[error("{}: {source}", .path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The table cannot be printed.
    #[error("standard output: {0}")]
    Print(#[from] io::Error),
    /// Some measurements did not happen, or their results are wrong. What, is printed where it happened.
    #[error("{failed} of {all} measurements failed, and {wrong} had wrong results")]
    Incomplete {
        /// Measurements that ended in an error.
        failed: usize,
        /// Measurements of results that differ too much.
        wrong: usize,
        /// All measurements that were asked for.
        all: usize,
    },
}
