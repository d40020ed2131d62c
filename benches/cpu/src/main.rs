//! Measures fused SwiGLU on a CPU as a share of the machine's own peaks.
//!
//! `cargo run --release -p swiglu-bench-cpu`. Peak and call take turns in one process, and what counts is the median
//! of their ratio: it stays what it is when the clock or a neighbour changes.
#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "instructions of the peak loops")]
mod peak;
mod workload;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use swiglu_core::{Dtype, Orientation, SwiGLU, bf16, f16};
use swiglu_cpu::{Cpu, Isa};

use crate::peak::Loop;
use crate::workload::{Pass, Shape, Workload};

/// Shapes from MNIST to LLaMA, down to one token.
const SHAPES: [[usize; 3]; 5] =
    [[128, 784, 512], [512, 1024, 4096], [1024, 4096, 11008], [16, 4096, 11008], [1, 4096, 11008]];
/// Up to this many rows reading the weights is what takes the time.
const FEW_ROWS: usize = 16;
/// Floats that are read for the bandwidth: 512 MiB, more than any cache.
const BUFFER: usize = 128 << 20;

/// Measures fused SwiGLU on this machine's CPU.
#[derive(Debug, Parser)]
struct Args {
    /// Calls of each kind; the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Batch, in_features and hidden, comma-separated; may be repeated.
    #[arg(long = "shape", value_parser = parse_shape)]
    shapes: Vec<Shape>,
    /// Element types.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["f32", "bf16"])]
    dtype: Vec<Type>,
    /// What to time.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["forward", "backward"])]
    pass: Vec<What>,
    /// How the weights lie.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["in-out"])]
    weights: Vec<Lie>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// z alone
    Forward,
    /// dX and dWf
    Backward,
    /// Both in one
    Step,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Lie {
    /// `[I, 2D]`
    InOut,
    /// `[2D, I]`
    OutIn,
}

fn parse_shape(text: &str) -> Result<Shape, String> {
    let dims: Vec<usize> = text
        .split(',')
        .map(|dim| dim.trim().parse().map_err(|e| format!("{dim}: {e}")))
        .collect::<Result<_, _>>()?;
    match dims[..] {
        [batch, in_features, hidden] => Ok(Shape { batch, in_features, hidden }),
        _ => Err(format!("expected batch, in_features and hidden, got {} numbers", dims.len())),
    }
}

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

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
    let bench = Bench { cpu: Cpu::new(), rounds: args.rounds.max(1), buffer: vec![1.0; BUFFER] };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", swiglu_core::Backend::name(&bench.cpu))?;
    for kind in
        [Loop::Avx512, Loop::Avx512Bf16, Loop::Amx, Loop::Avx2].into_iter().filter(|kind| kind.is_available())
    {
        let rate = median((0..21).map(|_| kind.rate()).collect());
        writeln!(out, "peak {kind:?}: {:.0} GFLOP/s", rate / 1e9)?;
    }
    let read = median((0..5).map(|_| peak::read_rate(&bench.buffer)).collect());
    writeln!(out, "read: {:.1} GB/s\n", read / 1e9)?;
    let defaults = SHAPES.map(|[batch, in_features, hidden]| Shape { batch, in_features, hidden });
    let shapes = if args.shapes.is_empty() { defaults.to_vec() } else { args.shapes.clone() };
    for shape in shapes {
        for orientation in args.weights.iter().map(|lie| match lie {
            Lie::InOut => Orientation::InOut,
            Lie::OutIn => Orientation::OutIn,
        }) {
            for dtype in &args.dtype {
                let passes = args.pass.iter().map(|what| match what {
                    What::Forward => Pass::Forward,
                    What::Backward => Pass::Backward,
                    What::Step => Pass::Step,
                });
                let lines = match dtype {
                    Type::F32 => bench.measure::<f32>(shape, orientation, passes)?,
                    Type::F16 => bench.measure::<f16>(shape, orientation, passes)?,
                    Type::Bf16 => bench.measure::<bf16>(shape, orientation, passes)?,
                };
                for line in lines {
                    writeln!(out, "{line}")?;
                }
            }
        }
    }
    Ok(())
}

/// One measured call.
struct Line {
    what: String,
    seconds: f64,
    /// Per second: operations, or bytes of weights.
    rate: f64,
    unit: &'static str,
    /// Of what the machine can do at best, where that is known: the median, and the least time by the highest peak,
    /// which a busy neighbour disturbs less.
    shares: Option<[f64; 2]>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, seconds, rate, unit, shares } = self;
        write!(f, "{what:<44} {:>9.3} ms {:>7.1} {unit}", seconds * 1e3, rate / 1e9)?;
        match shares {
            Some([median, best]) => write!(f, " {:>6.1} % (best {:.1} %)", median * 100.0, best * 100.0),
            None => Ok(()),
        }
    }
}

struct Bench {
    cpu: Cpu,
    rounds: usize,
    buffer: Vec<f32>,
}

impl Bench {
    /// The loop that bounds products of this type, if there is one for the instruction set that runs.
    fn limit(&self, dtype: Dtype) -> Result<Option<Loop>> {
        Ok(match (self.cpu.isa()?, dtype) {
            (Isa::Avx512Bf16, Dtype::Bf16) => Some(Loop::Avx512Bf16),
            (Isa::Amx, Dtype::Bf16) => Some(Loop::Amx),
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, _) => Some(Loop::Avx512),
            (Isa::Avx2, _) => Some(Loop::Avx2),
            _ => None,
        })
    }

    fn measure<T: swiglu_core::Element>(
        &self,
        shape: Shape,
        orientation: Orientation,
        passes: impl Iterator<Item = Pass>,
    ) -> Result<Vec<Line>>
    where
        Cpu: SwiGLU<T>,
    {
        let mut workload = Workload::<T>::new(&self.cpu, shape, orientation)?;
        let mut lines = Vec::new();
        for pass in passes {
            lines.push(self.line(&mut workload, shape, orientation, pass)?);
        }
        Ok(lines)
    }

    fn line<T: swiglu_core::Element>(
        &self,
        workload: &mut Workload<T>,
        shape: Shape,
        orientation: Orientation,
        pass: Pass,
    ) -> Result<Line>
    where
        Cpu: SwiGLU<T>,
    {
        let limit = self.limit(T::DTYPE)?;
        let streams = shape.batch <= FEW_ROWS && pass == Pass::Forward;
        let products = match pass {
            Pass::Forward => 1.0,
            Pass::Backward => 2.0,
            Pass::Step => 3.0,
        };
        let work =
            if streams { (shape.weights() * size_of::<T>()) as f64 } else { products * shape.operations() };
        let best = || match limit {
            _ if streams => Some(peak::read_rate(&self.buffer)),
            limit => limit.map(Loop::rate),
        };
        workload.time(pass)?;
        let (mut seconds, mut shares, mut highest) = (Vec::new(), Vec::new(), 0.0_f64);
        for _ in 0..self.rounds {
            let before = best();
            let time = workload.time(pass)?.as_secs_f64();
            seconds.push(time);
            if let (Some(before), Some(after)) = (before, best()) {
                shares.push(work / time / ((before + after) / 2.0));
                highest = highest.max(before).max(after);
            }
        }
        let Shape { batch, in_features, hidden } = shape;
        let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let seconds = median(seconds);
        Ok(Line {
            what: format!("{pass:?} {} {orientation:?} {batch},{in_features},{hidden}", T::DTYPE),
            seconds,
            rate: work / seconds,
            unit: if streams { "GB/s   " } else { "GFLOP/s" },
            shares: (!shares.is_empty()).then(|| [median(shares), work / least / highest]),
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
