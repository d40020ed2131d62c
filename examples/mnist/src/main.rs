//! Trains a SwiGLU classifier, 784 -> SwiGLU(hidden) -> 10, on MNIST or on digits drawn in code.

#![forbid(unsafe_code)]

mod batches;
mod checkpoint;
mod cli;
mod data;
mod error;
mod model;
mod output;
mod report;
mod train;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::checkpoint::Checkpoint;
use crate::cli::{Args, DEFAULT_HIDDEN};
use crate::data::{Dataset, Search};
use crate::error::Error;
use crate::model::Parameters;
use crate::report::metrics::Metrics;
use crate::report::plot::Curves;
use crate::report::progress::Progress;
use crate::train::Training;

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
    let checkpoint = args.load.as_deref().map(|path| Checkpoint::load(path, args.hidden)).transpose()?;
    let metrics = open_outputs(args)?;
    let parameters = match checkpoint {
        Some(checkpoint) => checkpoint.into_parts(),
        None => model::initial(args.hidden.unwrap_or(DEFAULT_HIDDEN), args.seed),
    };
    let training = Training { args, data: &data, parameters, metrics, progress: Progress::new(args.quiet) };
    let unavailable = |source| Error::Device { device: args.device, source };
    let trained = args.device.run(training).map_err(unavailable)??;
    keep(args, trained.parameters, &trained.curves)?;
    progress.result(format_args!("test accuracy {}", trained.test));
    Ok(())
}

/// Writes the files that were asked for.
fn keep(args: &Args, parameters: Parameters, curves: &Curves) -> Result<(), Error> {
    if let Some(path) = &args.plot {
        curves.save(path)?;
    }
    if let Some(path) = &args.save {
        let [wf, bias, head, head_bias] = parameters;
        let checkpoint = Checkpoint::new(wf, bias, head, head_bias).map_err(|problem| problem.at(path))?;
        checkpoint.save(path)?;
    }
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
