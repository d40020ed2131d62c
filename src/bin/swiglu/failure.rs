//! Why a command gave up.

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::cli::Args;

/// Whether everything that a command looked at is as it should be.
pub(crate) type Outcome = Result<bool, Failure>;

/// Why a command gave up.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What is wrong and what to do about it.
    Message(String),
    /// Arguments that each make sense, but not together.
    Usage(clap::Error),
    /// Nobody reads the output any more.
    Closed,
}

impl Failure {
    /// Arguments of a subcommand that do not go together.
    pub(crate) fn usage(subcommand: &str, message: &str) -> Self {
        let mut command = Args::command();
        command.build();
        let command = command.find_subcommand_mut(subcommand);
        let error = |command: &mut clap::Command| command.error(ErrorKind::ArgumentConflict, message);
        Self::Usage(command.map_or_else(|| error(&mut Args::command()), error))
    }
}

impl From<swiglu::Error> for Failure {
    fn from(error: swiglu::Error) -> Self {
        match error {
            swiglu::Error::Unavailable { .. } => {
                Self::Message(format!("{error} (`swiglu doctor` lists what this machine can run on)"))
            }
            swiglu::Error::Overflow { .. } | swiglu::Error::OutOfMemory { .. } => {
                Self::Message(format!("{error}; try a smaller shape"))
            }
            _ => Self::Message(error.to_string()),
        }
    }
}
