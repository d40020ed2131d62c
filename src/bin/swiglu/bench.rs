//! `swiglu bench`: the fused op against what it replaces, as a share of what the device reaches in the same run.

use std::fmt;
use std::time::Instant;

use serde::Serialize;
use swiglu::{
    Backend, Complete, Dense, Dims, Dtype, Element, Job, Result, Route, SwiGLU, Unfused, bf16, f16,
};

use crate::chart::{self, Bar};
use crate::cli::BenchArgs;
use crate::failure::{Failure, Outcome};
use crate::stats::Spread;
use crate::workload::{Square, Workload};
use crate::{print, print_json};

/// Calls are repeated until a measurement takes this long, so that a clock and a queue can be neglected.
const SECONDS: f64 = 0.02;

/// Most calls of one measurement.
const MOST_CALLS: f64 = 1000.0;

/// Everything, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
struct Report {
    backend: String,
    dtype: String,
    pass: &'static str,
    #[serde(flatten)]
    dims: Sizes,
    rounds: usize,
    /// Operations of one call: `4 * B * I * D` for each of forward, dX and dWf.
    flop: f64,
    /// Rows and columns of the square product that is the peak, and its best rate.
    peak_size: usize,
    peak_gflop_per_second: f64,
    entries: Vec<Entry>,
    /// What could not be measured, and why.
    left_out: Option<String>,
}

/// [`Dims`], as JSON has them.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sizes {
    batch: usize,
    in_features: usize,
    hidden: usize,
}

impl From<Dims> for Sizes {
    fn from(Dims { batch, in_features, hidden }: Dims) -> Self {
        Self { batch, in_features, hidden }
    }
}

/// What was measured of one contender.
#[derive(Clone, Debug, Serialize)]
struct Entry {
    name: &'static str,
    seconds: Spread,
    gflop_per_second: f64,
    /// Of the best rate of the square product.
    percent_of_peak: f64,
    /// Its time in proportion to that of the fused op, within each round.
    time_over_fused: Spread,
}

impl Entry {
    /// Of a contender's times and those of the fused op, in seconds; the work of a call, and the peak rate.
    fn new(contender: Contender, times: &[f64], fused: &[f64], [flop, peak]: [f64; 2]) -> Self {
        let seconds = Spread::of(times);
        let rate = flop / seconds.median;
        Self {
            name: contender.name(),
            seconds,
            gflop_per_second: rate / 1e9,
            percent_of_peak: 100.0 * rate / peak,
            time_over_fused: Spread::of_ratios(times, fused),
        }
    }
}

impl Report {
    /// The device, and what was measured on it.
    fn title(&self) -> String {
        let Self { backend, dtype, pass, dims: Sizes { batch, in_features, hidden }, .. } = self;
        format!("{backend}, {dtype}, {pass}, shape {batch},{in_features},{hidden}")
    }

    fn svg(&self) -> Result<String, String> {
        let bar = |entry: &Entry| {
            let Entry { name, gflop_per_second: rate, percent_of_peak, .. } = entry;
            let label = format!("{rate:.1} GFLOP/s, {percent_of_peak:.0}% of peak");
            Bar { name: (*name).to_owned(), rate: *rate, label }
        };
        chart::to_svg(&self.title(), &self.entries.iter().map(bar).collect::<Vec<_>>())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, flop, peak_size, peak_gflop_per_second, .. } = self;
        writeln!(f, "{}", self.title())?;
        writeln!(
            f,
            "{:.3} GFLOP a call, 4*B*I*D a product; {rounds} interleaved rounds, random data",
            flop / 1e9
        )?;
        writeln!(
            f,
            "peak: {peak_gflop_per_second:.1} GFLOP/s, this backend's best square product ({peak_size}) in this run"
        )?;
        write!(
            f,
            "{:26} {:>10} {:>21} {:>9} {:>7} {:>14}",
            "", "median ms", "quartiles ms", "GFLOP/s", "% peak", "time / fused"
        )?;
        self.entries.iter().try_for_each(|entry| write!(f, "\n{entry}"))?;
        match &self.left_out {
            Some(reason) => write!(f, "\nleft out: {reason}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, seconds, gflop_per_second, percent_of_peak, time_over_fused } = self;
        let [median, lower, upper] = [seconds.median, seconds.lower, seconds.upper].map(|time| time * 1e3);
        let quartiles = format!("{lower:.4}..{upper:.4}");
        write!(f, "{name:26} {median:>10.4} {quartiles:>21} {gflop_per_second:>9.1} {percent_of_peak:>7.1}")?;
        write!(f, " {:>14.3}", time_over_fused.median)
    }
}

pub(crate) fn run(args: &BenchArgs) -> Outcome {
    let report = args.device.run(Measuring(args))??;
    if let Some(path) = &args.svg {
        let written =
            report.svg().and_then(|svg| std::fs::write(path, svg).map_err(|error| error.to_string()));
        written.map_err(|error| Failure::Message(format!("cannot write {}: {error}", path.display())))?;
    }
    if args.json {
        print_json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(true)
}

/// Measures on a backend.
struct Measuring<'a>(&'a BenchArgs);

impl Job for Measuring<'_> {
    type Output = Result<Report>;

    fn run<B: Complete>(self, backend: B) -> Result<Report> {
        match self.0.dtype.into() {
            Dtype::F32 => measure::<f32, B>(&backend, self.0),
            Dtype::F16 => measure::<f16, B>(&backend, self.0),
            Dtype::Bf16 => measure::<bf16, B>(&backend, self.0),
        }
    }
}

/// Every contender once in each round, so that all of them meet the same clocks and neighbours.
fn measure<T: Element, B: SwiGLU<T> + Dense<T>>(backend: &B, args: &BenchArgs) -> Result<Report> {
    let mut workload = Workload::new(backend, args)?;
    let mut square = Square::<T, B::Memory>::new(backend)?;
    let unfused = Unfused(backend.clone());
    let mut contenders = vec![Contender::Fused, Contender::Unfused];
    let composed = workload.call(backend, Route::Composed).and_then(|()| backend.synchronize());
    if composed.is_ok() {
        contenders.push(Contender::Composed);
    }
    let mut times = vec![Vec::new(); contenders.len()];
    let mut peak = 0.0_f64;
    for _ in 0..args.rounds {
        for (contender, times) in contenders.iter().zip(&mut times) {
            times.push(timed(backend, || match contender {
                Contender::Fused => workload.call(backend, Route::Fused),
                Contender::Unfused => workload.call(&unfused, Route::Fused),
                Contender::Composed => workload.call(backend, Route::Composed),
            })?);
        }
        peak = peak.max(square.flop() / timed(backend, || square.call(backend))?);
    }
    let flop = args.flop();
    let entries = contenders.iter().zip(&times);
    Ok(Report {
        backend: backend.name(),
        dtype: T::DTYPE.to_string(),
        pass: args.pass.name(),
        dims: args.shape.0.into(),
        rounds: args.rounds,
        flop,
        peak_size: square.size(),
        peak_gflop_per_second: peak / 1e9,
        entries: entries
            .map(|(&contender, own)| Entry::new(contender, own, &times[0], [flop, peak]))
            .collect(),
        left_out: composed.err().map(|reason| format!("{}: {reason}", Contender::Composed.name())),
    })
}

/// Seconds of one call, of as many as take a while. The first, which may compile or allocate, does not count.
fn timed<B: Backend>(backend: &B, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut batch = |calls: f64| {
        backend.synchronize()?;
        let start = Instant::now();
        for _ in 0..calls as usize {
            call()?;
        }
        backend.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / calls)
    };
    batch(1.0)?;
    let once: f64 = batch(1.0)?;
    let calls = (SECONDS / once.max(f64::MIN_POSITIVE)).ceil().clamp(1.0, MOST_CALLS);
    if calls > 1.0 { batch(calls) } else { Ok(once) }
}

/// What is measured against what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Fused,
    Unfused,
    Composed,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Fused => "fused",
            Self::Unfused => "two linears + elementwise",
            Self::Composed => "composed route",
        }
    }
}
