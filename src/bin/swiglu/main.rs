//! What fused SwiGLU does on this machine: what it can run on, which kernels a shape gets, how exact and how fast they
//! are, and which MLPs a checkpoint holds.

#![forbid(unsafe_code)]

mod bench;
mod chart;
mod cli;
mod doctor;
mod failure;
mod inspect;
mod machine;
mod plan;
mod promise;
mod stats;
mod verify;
mod workload;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Args, Command};
use crate::failure::{Failure, Outcome};

fn main() -> ExitCode {
    match run(&Args::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(Failure::Closed) => ExitCode::FAILURE,
        Err(Failure::Usage(error)) => error.exit(),
        Err(Failure::Message(message)) => {
            // Nobody is left to tell when standard error is closed; the exit code remains.
            let _ = writeln!(io::stderr(), "swiglu: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that was looked at is as it should be.
fn run(command: &Command) -> Outcome {
    match command {
        Command::Doctor(args) => doctor::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Bench(args) => bench::run(args),
    }
}

/// Writes a line to standard output. Unlike `println!` it does not panic when nobody reads any more.
fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Message(format!("cannot write to standard output: {error}")),
    })
}

/// Writes one JSON object to standard output.
fn print_json(report: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report)
        .map_err(|error| Failure::Message(format!("cannot write the report as JSON: {error}")))?;
    print(text)
}
