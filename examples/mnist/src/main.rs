//! Trains a SwiGLU classifier, 784 -> SwiGLU(hidden) -> 10, on MNIST or on digits drawn in code.

#![forbid(unsafe_code)]
#![allow(dead_code, reason = "the training loop, which uses the rest, is not written yet")]

mod checkpoint;
mod cli;
mod data;
mod error;
mod output;
mod report;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::checkpoint::Checkpoint;
use crate::cli::Args;
use crate::data::{Dataset, Search};
use crate::error::Error;
use crate::report::metrics::Metrics;
use crate::report::progress::Progress;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is closed; the exit code remains.
            let _ = writeln!(io::stderr(), "error: {error}");
            error.exit_code()
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    start_threads(args.threads)?;
    let progress = Progress::new(args.quiet);
    let data = load_data(args, &progress)?;
    progress.line(format_args!(
        "data: {}; {} training and {} test images",
        data.source,
        data.train.labels.len(),
        data.test.labels.len()
    ));
    let _checkpoint = args.load.as_deref().map(|path| Checkpoint::load(path, args.hidden)).transpose()?;
    let _metrics = open_outputs(args)?;
    Ok(())
}

/// Sizes the thread pool before its first use.
fn start_threads(threads: Option<usize>) -> Result<(), Error> {
    let Some(threads) = threads else { return Ok(()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| Error::Usage(format!("cannot start {threads} threads: {error}")))
}

fn load_data(args: &Args, progress: &Progress) -> Result<Dataset, Error> {
    let search = Search::new(args.data.as_deref());
    Ok(if args.download {
        data::download(&search, |line| progress.line(line))?
    } else {
        data::load(&search)?
    })
}

/// Makes sure that each output can be written before the training spends time on it.
fn open_outputs(args: &Args) -> Result<Option<Metrics>, Error> {
    args.plot.iter().chain(&args.save).try_for_each(|path| output::check(path))?;
    Ok(args.metrics.as_deref().map(Metrics::create).transpose()?)
}
