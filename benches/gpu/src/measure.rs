//! A measurement: contenders in turns, each between two events, round after round.

use serde::Serialize;
use swiglu_core::{
    Dense, Dims, Dtype, Element, GradientKind, Options, Pass as CorePass, Precision, Problem, SwiGLU,
};
use swiglu_cuda::{Cuda, Graph};

use crate::error::Result;
use crate::gpu::{Gpu, Span};
use crate::job::Job;
use crate::stats::Spread;
use crate::workload::{Contender, Workload};

/// Calls in a graph at least: launching it costs as much as a small call.
const GRAPH_CALLS: usize = 20;

/// What one contender took.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) contender: Contender,
    /// Of a call.
    pub(crate) seconds: Spread,
    pub(crate) flops_per_second: f64,
    pub(crate) bytes_per_second: f64,
    /// Of the measured peak, or of the measured bandwidth where that is the bound: 1 is all of it.
    pub(crate) of_bound: f64,
    /// Its time over that of this library in the same round: above 1, this library is faster.
    pub(crate) ratio: Spread,
    /// Largest relative error of a part of its results against those of the packed products.
    pub(crate) error: Option<f64>,
}

/// What came of a job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) job: Job,
    /// What this library ran.
    pub(crate) launches: Vec<String>,
    /// Sets of operands that calls take in turn, and calls in a round.
    pub(crate) sets: usize,
    pub(crate) calls: usize,
    /// Size of x and Wf of all sets.
    pub(crate) rotated_bytes: usize,
    /// `cold` when that is twice L2 and more.
    pub(crate) l2: &'static str,
    pub(crate) flops: f64,
    pub(crate) bytes: f64,
    /// The error from which on results count as wrong.
    pub(crate) tolerance: f64,
    pub(crate) entries: Vec<Entry>,
}

impl Outcome {
    /// Whether every result is as close as its element type allows.
    pub(crate) fn is_right(&self) -> bool {
        self.entries.iter().all(|entry| entry.error.is_none_or(|error| error <= self.tolerance))
    }
}

/// What rates are compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) flops_per_second: f64,
    pub(crate) bytes_per_second: f64,
}

/// Measures a job.
pub(crate) fn measure<T: Element>(gpu: &Gpu, job: &Job, rounds: usize, bounds: Bounds) -> Result<Outcome>
where
    Cuda: SwiGLU<T> + Dense<T>,
{
    let mut workload = Workload::<T>::new(gpu, job)?;
    let errors = workload.errors()?;
    let sets = workload.sets();
    let calls = if job.graph { sets * GRAPH_CALLS.div_ceil(sets) } else { sets };
    let mut race = Race { gpu, job, calls, workload, graphs: Vec::new() };
    let seconds = race.run(rounds)?;
    let entries = Contender::ALL.into_iter().zip(&seconds).map(|(contender, own)| {
        let spread = Spread::of(own);
        let (flops_per_second, bytes_per_second) = (job.flops() / spread.median, job.bytes() / spread.median);
        let of_bound = if job.is_memory_bound() {
            bytes_per_second / bounds.bytes_per_second
        } else {
            flops_per_second / bounds.flops_per_second
        };
        let error = errors.iter().find(|(whose, _)| *whose == contender).map(|(_, error)| *error);
        let ratio = Spread::of_ratios(own, &seconds[0]);
        Entry { contender, seconds: spread, flops_per_second, bytes_per_second, of_bound, ratio, error }
    });
    let rotated_bytes = sets * (job.shape.input() + job.shape.weights()) * job.dtype.bytes();
    Ok(Outcome {
        job: *job,
        launches: launches::<T>(&gpu.cuda, job)?,
        sets,
        calls,
        rotated_bytes,
        l2: l2_state(rotated_bytes, gpu.l2_bytes),
        flops: job.flops(),
        bytes: job.bytes(),
        tolerance: tolerance(job.dtype, job.precision),
        entries: entries.collect(),
    })
}

fn l2_state(rotated_bytes: usize, l2_bytes: usize) -> &'static str {
    match rotated_bytes {
        bytes if bytes >= 2 * l2_bytes => "cold",
        bytes if bytes <= l2_bytes => "warm",
        _ => "partly warm",
    }
}

/// Several times what one rounding more of the pre-activations, or sums in another order, bring.
fn tolerance(dtype: Dtype, precision: Precision) -> f64 {
    match (dtype, precision) {
        (Dtype::F32, Precision::Strict) => 1e-4,
        (Dtype::F32, Precision::Tf32) => 1e-2,
        (Dtype::F16, _) => 5e-3,
        (Dtype::Bf16, _) => 3e-2,
    }
}

/// What this library runs for a call of the job.
fn launches<T: Element>(cuda: &Cuda, job: &Job) -> Result<Vec<String>>
where
    Cuda: SwiGLU<T>,
{
    let kind = Some(GradientKind { dtype: T::DTYPE, add: false });
    let forward = CorePass::Forward { save: job.pass.saves() };
    let dwf = if job.pass.has_dwf() { kind } else { None };
    let backward = CorePass::Backward { saved: true, dx: kind, dwf, dbias: None };
    let passes = [(job.pass.projects(), forward), (job.pass.has_dx(), backward)];
    let options = Options::new().precision(job.precision);
    let dims: Dims = job.shape.dims();
    let mut launches = Vec::new();
    for (_, pass) in passes.into_iter().filter(|(wanted, _)| *wanted) {
        let mut problem = Problem::dense(pass, T::DTYPE, dims, job.orientation, options);
        if job.pass.has_down() && pass == backward {
            problem = problem.projected(dims.in_features, job.orientation);
        }
        launches.extend(SwiGLU::<T>::plan(cuda, &problem)?.launches);
    }
    Ok(launches)
}

/// The contenders of a job, taking turns.
struct Race<'g, T: Element> {
    gpu: &'g Gpu,
    job: &'g Job,
    calls: usize,
    workload: Workload<'g, T>,
    /// One for each contender, where graphs are measured.
    graphs: Vec<Graph>,
}

impl<T: Element> Race<'_, T>
where
    Cuda: SwiGLU<T> + Dense<T>,
{
    /// Seconds of a call, for each contender, in each round.
    fn run(&mut self, rounds: usize) -> Result<Vec<Vec<f64>>> {
        let contenders = Contender::ALL;
        if self.job.graph {
            for contender in contenders {
                let (workload, calls) = (&mut self.workload, self.calls);
                let sets = workload.sets();
                let mut outcome = Ok(());
                let graph = self.gpu.cuda.capture(|| {
                    outcome = (0..calls).try_for_each(|index| workload.call(contender, index % sets));
                    Ok(())
                });
                outcome?;
                self.graphs.push(graph?);
            }
        }
        let mut seconds = vec![Vec::with_capacity(rounds); contenders.len()];
        // The first round is not counted.
        for round in 0..=rounds {
            // The device goes on from one contender to the next without a pause.
            let mut spans = Vec::with_capacity(contenders.len());
            for turn in 0..contenders.len() {
                let index = (round + turn) % contenders.len();
                spans.push((index, self.span(index)?));
            }
            for (index, span) in spans {
                let taken = span.seconds()? / self.calls as f64;
                if round > 0 {
                    seconds[index].push(taken);
                }
            }
        }
        Ok(seconds)
    }

    fn span(&mut self, index: usize) -> Result<Span> {
        for set in 0..self.workload.sets() {
            self.workload.prepare(Contender::ALL[index], set)?;
        }
        self.gpu.flush()?;
        if self.job.warm {
            self.calls(index)?;
        }
        let gpu = self.gpu;
        gpu.span(|| self.calls(index))
    }

    fn calls(&mut self, index: usize) -> Result<()> {
        if let Some(graph) = self.graphs.get_mut(index) {
            return Ok(graph.launch()?);
        }
        let sets = self.workload.sets();
        (0..self.calls).try_for_each(|call| self.workload.call(Contender::ALL[index], call % sets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_the_cache_follows_from_what_is_read() {
        assert_eq!(
            [0, 50, 51, 99, 100].map(|bytes| l2_state(bytes, 50)),
            ["warm", "warm", "partly warm", "partly warm", "cold"]
        );
    }

    #[test]
    fn tolerances_follow_the_precision() {
        let list = [
            tolerance(Dtype::F32, Precision::Strict),
            tolerance(Dtype::F16, Precision::Strict),
            tolerance(Dtype::F32, Precision::Tf32),
            tolerance(Dtype::Bf16, Precision::Strict),
        ];
        assert!(list.is_sorted(), "{list:?}");
    }
}
