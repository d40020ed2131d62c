//! Every way in which the program can fail, and the exit code of each.

use std::process::ExitCode;

use swiglu::Device;

use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::output::OutputError;

/// Why the program stops.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The flags contradict each other or the machine.
    #[error("{0}")]
    Usage(String),
    /// The data is missing or wrong.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A model file is wrong.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file that the user asked for cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The device that the user asked for cannot be used, or failed.
    #[error("device {device}: {source}")]
    Device {
        /// What `--device` said.
        device: Device,
        /// What the backend says about it.
        source: swiglu::Error,
    },
}

impl Error {
    /// The exit code that `--help` documents.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::Data(_) | Self::Checkpoint(_) | Self::Output(_) => 3,
            Self::Device { .. } => 4,
        })
    }
}
