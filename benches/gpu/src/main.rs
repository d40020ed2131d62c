//! Measures fused SwiGLU on a GPU against what cuBLASLt makes of the same products.
//!
//! `cargo run --release -p swiglu-bench-gpu --bin bench`, or `scripts/gpu-bundle.sh` for a machine without Rust.
#![deny(unsafe_code)]

mod cli;
#[allow(unsafe_code, reason = "calls into cuBLASLt; everything above it is safe")]
mod cublaslt;
mod error;
mod gpu;
mod job;
mod measure;
mod noise;
mod report;
mod stats;
mod workload;

use std::collections::HashMap;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use swiglu_core::{Dtype, Precision, bf16, f16};

use crate::cli::Args;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Peak};
use crate::job::Job;
use crate::measure::{Bounds, Outcome, measure};
use crate::report::{METHOD, Report, table};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is closed; the exit code remains.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let jobs = args.selection().jobs();
    let gpu = Gpu::open(args.device)?;
    let mut peaks = Peaks { gpu: &gpu, warm_up: args.seconds, known: HashMap::new() };
    // Also warms the clocks for what follows.
    peaks.of(Dtype::Bf16, Precision::Strict)?;
    let copy = gpu.copy_rate()?;
    let machine = gpu.describe()?;
    let mut out = io::stdout().lock();
    writeln!(out, "{machine}\n{METHOD}\ncopy {:.3} TB/s", copy / 1e12)?;
    let (mut outcomes, mut failed) = (Vec::new(), 0);
    for job in &jobs {
        match peaks.measure(job, args.rounds, copy) {
            Ok(outcome) => {
                write!(out, "{}", table::lines(&outcome).map_err(io::Error::other)?)?;
                outcomes.push(outcome);
            }
            Err(error) => {
                writeln!(out, "\n{job}\n  FAILED: {error}")?;
                failed += 1;
            }
        }
        out.flush()?;
    }
    let wrong = outcomes.iter().filter(|outcome| !outcome.is_right()).count();
    let report = Report {
        machine,
        method: METHOD,
        rounds: args.rounds,
        l2_bytes: gpu.l2_bytes,
        copy_bytes_per_second: copy,
        peaks: peaks.into_list(),
        outcomes,
    };
    writeln!(out)?;
    for Peak { kind, flops_per_second } in &report.peaks {
        writeln!(out, "peak {kind}: {:.1} TFLOP/s, cuBLASLt at 8192^3", flops_per_second / 1e12)?;
    }
    args.json.as_deref().map(|path| report.save_json(path)).transpose()?;
    args.svg.as_deref().map(|path| report.save_svg(path)).transpose()?;
    if failed + wrong > 0 { Err(Error::Incomplete { failed, wrong, all: jobs.len() }) } else { Ok(()) }
}

/// Peaks of element types, measured when first needed.
struct Peaks<'g> {
    gpu: &'g Gpu,
    warm_up: f64,
    known: HashMap<(Dtype, Precision), Peak>,
}

impl Peaks<'_> {
    fn of(&mut self, dtype: Dtype, precision: Precision) -> Result<f64> {
        if let Some(peak) = self.known.get(&(dtype, precision)) {
            return Ok(peak.flops_per_second);
        }
        let peak = match dtype {
            Dtype::F32 => self.gpu.peak::<f32>(precision, self.warm_up)?,
            Dtype::F16 => self.gpu.peak::<f16>(precision, self.warm_up)?,
            Dtype::Bf16 => self.gpu.peak::<bf16>(precision, self.warm_up)?,
        };
        let rate = peak.flops_per_second;
        self.known.insert((dtype, precision), peak);
        Ok(rate)
    }

    fn measure(&mut self, job: &Job, rounds: usize, bytes_per_second: f64) -> Result<Outcome> {
        let bounds = Bounds { flops_per_second: self.of(job.dtype, job.precision)?, bytes_per_second };
        match job.dtype {
            Dtype::F32 => measure::<f32>(self.gpu, job, rounds, bounds),
            Dtype::F16 => measure::<f16>(self.gpu, job, rounds, bounds),
            Dtype::Bf16 => measure::<bf16>(self.gpu, job, rounds, bounds),
        }
    }

    fn into_list(self) -> Vec<Peak> {
        let mut list: Vec<Peak> = self.known.into_values().collect();
        list.sort_by(|a, b| a.kind.cmp(&b.kind));
        list
    }
}
