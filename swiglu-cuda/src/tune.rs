//! Tuning: the kernel that is fastest on this device, among those that give the same bits.
//!
//! The planner's choice comes from rules that hold on average ([`model`] and `plan.rs`). Here the kernels that compete with
//! it ([`variant`]) are timed on the device ([`trial`]), and what was found is kept for the process ([`choices`]) and on
//! disk ([`store`]). The planner asks for it through [`Choices`], and stays a pure function of what it is given.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use cudarc::driver::CudaContext;
use swiglu_core::{Dims, Dtype, GradientKind, Options, Orientation, Pass, Problem, Result, Route};

use crate::Preflight;
use crate::backend::Cuda;
use crate::cache::DiskCache;
use crate::device::Facts;
use crate::plan::Planner;

mod choices;
mod model;
mod store;
#[cfg(test)]
mod tests;
mod trial;
mod variant;

pub(crate) use choices::{Asked, Choices, Told};
pub(crate) use variant::Variant;

use choices::{Bucket, Missing, Table};
use store::Store;

/// Whether a handle takes the kernels that were measured to be fastest: [`Cuda::with_tuning`].
///
/// Only kernels that sum in the same order compete, so results have the same bits with and without.
///
/// ```
/// use swiglu_cuda::Tuning;
/// assert_eq!(Tuning::default(), Tuning::Off);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Tuning {
    /// The planner's own choice, which follows from the problem and the device alone.
    #[default]
    Off,
    /// What [`Cuda::tune`] found in this process, or this or another handle on disk; else the planner's choice.
    Stored,
    /// As `Stored`; and a call whose products nobody has tuned so far tunes them first, which takes seconds, most of
    /// them for compiling, and up to half of the free memory meanwhile. Not while a graph is captured on the handle's
    /// stream, nor where something that it takes is missing. A call must not be the first of its kind while its thread
    /// captures another stream.
    FirstUse,
}

impl Tuning {
    /// What a value of `SWIGLU_TUNE` asks for; what is wrong with it where it is none.
    fn parse(value: &str) -> Result<Self, String> {
        match value {
            "" | "0" | "off" => Ok(Self::Off),
            "stored" => Ok(Self::Stored),
            "1" | "on" => Ok(Self::FirstUse),
            other => {
                Err(format!("SWIGLU_TUNE is {other:?}, none of 0, off, stored, 1, on: nothing is tuned"))
            }
        }
    }
}

/// What tuning did in this process, on a device: [`Cuda::tuning_use`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TuningUse {
    /// Products that were timed.
    pub measured: u64,
    /// Choices that came from disk.
    pub loaded: u64,
    /// What is wrong with `SWIGLU_TUNE`, if anything is. For the disk, see [`CacheUse::note`](crate::CacheUse::note).
    pub note: Option<String>,
}

/// A kernel that took part in a trial.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TunedCandidate {
    /// What sets it apart from the others.
    pub variant: String,
    /// Seconds of a call.
    pub seconds: f64,
    /// Whether its results had the bits of the planner's choice, in the rows that were compared. Else it is not taken.
    pub same_bits: bool,
}

/// A product that was tuned.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TunedProduct {
    /// The kernel, as plans name it.
    pub kernel: String,
    /// m, n (of one half, where there are two) and k.
    pub shape: [usize; 3],
    /// What was timed. The planner's own choice is the first.
    pub candidates: Vec<TunedCandidate>,
    /// The one that is taken from now on.
    pub chosen: usize,
    /// How many times as long as the fastest candidate the planner's choice takes, in a trial of these two. Up to 1.02
    /// the planner's choice stays.
    pub speedup: f64,
}

/// What came of [`Cuda::tune`].
///
/// Products of which there is but one kernel with the same bits are not in it.
#[derive(Clone, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct TuneReport {
    /// In the order in which they run.
    pub products: Vec<TunedProduct>,
}

impl fmt::Display for TuneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for TunedProduct { kernel, shape: [m, n, k], candidates, chosen, speedup } in &self.products {
            writeln!(
                f,
                "{kernel}, {m} x {n} x {k}: the planner's choice takes {speedup:.3} times the least"
            )?;
            for (index, TunedCandidate { variant, seconds, same_bits }) in candidates.iter().enumerate() {
                let mark = if index == *chosen { '*' } else { ' ' };
                let bits = if *same_bits { "" } else { ", other bits" };
                writeln!(f, "  {mark} {:9.4} ms  {variant}{bits}", seconds * 1e3)?;
            }
        }
        Ok(())
    }
}

/// What all handles on a device share of it.
#[derive(Debug)]
pub(crate) struct Tuner {
    table: Table,
    store: Store,
    loading: Once,
    /// Held while something is timed.
    trial: Mutex<()>,
    measured: AtomicU64,
    loaded: AtomicU64,
    note: OnceLock<String>,
}

impl Tuner {
    pub(crate) fn new(found: &Preflight, facts: Facts, context: &CudaContext) -> Self {
        Self {
            table: Table::new(facts),
            store: Store::new(store::key(found, &facts, context)),
            loading: Once::new(),
            trial: Mutex::default(),
            measured: AtomicU64::new(0),
            loaded: AtomicU64::new(0),
            note: OnceLock::new(),
        }
    }

    /// What the environment asks for.
    pub(crate) fn of_env(&self, cache: &DiskCache) -> Tuning {
        let value = std::env::var_os("SWIGLU_TUNE").unwrap_or_default();
        let tuning = Tuning::parse(&value.to_string_lossy()).unwrap_or_else(|note| {
            self.note.get_or_init(|| note);
            Tuning::Off
        });
        self.prepare(tuning, cache);
        tuning
    }

    /// Before the first handle asks: what is on disk, once.
    fn prepare(&self, tuning: Tuning, cache: &DiskCache) {
        if tuning == Tuning::Off {
            return;
        }
        self.loading.call_once(|| {
            let stored = self.store.load(cache);
            self.loaded.fetch_add(stored.len() as u64, Ordering::Relaxed);
            self.table.extend(stored);
        });
    }

    /// For planners of handles that are tuned.
    pub(crate) fn choices(&self) -> &dyn Choices {
        &self.table
    }
}

impl Cuda {
    /// With the kernels that were measured to be fastest, or without. New handles do as `SWIGLU_TUNE` says: `1` or `on`
    /// is [`Tuning::FirstUse`], `stored` is [`Tuning::Stored`], unset is [`Tuning::Off`].
    ///
    /// ```no_run
    /// use swiglu_cuda::{Cuda, Tuning};
    /// let cuda = Cuda::new(0)?.with_tuning(Tuning::FirstUse);
    /// # Ok::<(), swiglu_core::Error>(())
    /// ```
    #[must_use]
    pub fn with_tuning(mut self, tuning: Tuning) -> Self {
        let device = &self.queue().device;
        device.tuner.prepare(tuning, device.cache());
        self.set_tuning(tuning);
        self
    }

    /// Times the kernels that compete for a shape's products (forward, forward that saves, dX, dWf, and the gate's
    /// gradient of a backward that computes the pre-activations again), on operands of its own, dense and aligned. What
    /// was found holds for shapes like it on this device, and is left on disk beside the compiled kernels; handles
    /// [with tuning](Cuda::with_tuning) take it, those of other processes included.
    ///
    /// Waits for the device, and takes seconds.
    ///
    /// ```no_run
    /// use swiglu_core::{Dims, Dtype, Options, Orientation};
    /// use swiglu_cuda::{Cuda, Tuning};
    /// let cuda = Cuda::new(0)?.with_tuning(Tuning::Stored);
    /// let dims = Dims { batch: 8192, in_features: 4096, hidden: 14336 };
    /// println!("{}", cuda.tune(Dtype::Bf16, dims, Orientation::InOut, Options::new())?);
    /// # Ok::<(), swiglu_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](swiglu_core::Error::OutOfMemory) where the operands do not fit beside what is allocated;
    /// what a call of the shape returns;
    /// [`CudaError::NotWarm`](crate::CudaError::NotWarm) while a graph is captured.
    pub fn tune(
        &self,
        dtype: Dtype,
        dims: Dims,
        orientation: Orientation,
        options: Options,
    ) -> Result<TuneReport> {
        let kind = Some(GradientKind { dtype, add: false });
        let backward = |saved| Pass::Backward { saved, dx: kind, dwf: kind, dbias: None };
        let passes =
            [Pass::Forward { save: false }, Pass::Forward { save: true }, backward(true), backward(false)];
        let mut tuned = Tuned::default();
        for pass in passes {
            self.tune_products(&Problem::dense(pass, dtype, dims, orientation, options), &mut tuned)?;
        }
        Ok(self.keep(tuned))
    }

    /// As [`Cuda::tune`], for the products of one problem.
    ///
    /// # Errors
    /// As [`Cuda::tune`].
    pub fn tune_problem(&self, problem: &Problem) -> Result<TuneReport> {
        let mut tuned = Tuned::default();
        self.tune_products(problem, &mut tuned)?;
        Ok(self.keep(tuned))
    }

    /// What tuning did so far, by all handles on this device.
    pub fn tuning_use(&self) -> TuningUse {
        let tuner = &self.queue().device.tuner;
        TuningUse {
            measured: tuner.measured.load(Ordering::Relaxed),
            loaded: tuner.loaded.load(Ordering::Relaxed),
            note: tuner.note.get().cloned(),
        }
    }

    /// Before a call that has not been made before, where it is to be tuned then. Allocates nothing otherwise.
    pub(crate) fn tune_first_use(&self, problem: &Problem) -> Result<()> {
        let device = &self.queue().device;
        if self.tuning() != Tuning::FirstUse || self.queue().capturing() {
            return Ok(());
        }
        let missing = Missing::of(device.tuner.choices());
        plan_of(&Planner { choices: Some(&missing), ..self.planner() }, problem)?;
        if !missing.any() {
            return Ok(());
        }
        let mut tuned = Tuned { only_missing: true, ..Tuned::default() };
        match self.tune_products(problem, &mut tuned) {
            // For want of memory, or of a kernel that competes, a call is not tuned in this process, and is made all the
            // same.
            Err(_) if device.health.check().is_ok() => {
                for (asked, known) in self.asked(problem, Some(device.tuner.choices()))? {
                    let default = if known.is_none() { asked.kernel.variant() } else { None };
                    device.tuner.table.extend(default.map(|variant| (Bucket::of(&asked), variant)));
                }
            }
            outcome => outcome?,
        }
        self.keep(tuned);
        Ok(())
    }

    /// The products of a problem that have a choice of kernels, each with the analytic one and what was chosen.
    fn asked(&self, problem: &Problem, known: Option<&dyn Choices>) -> Result<Vec<(Asked, Option<Variant>)>> {
        let told = Told::by(known);
        plan_of(&Planner { choices: Some(&told), ..self.planner() }, problem)?;
        Ok(told.into_inner())
    }

    fn tune_products(&self, problem: &Problem, tuned: &mut Tuned) -> Result<()> {
        problem.check()?;
        let device = &self.queue().device;
        self.queue().outside_capture("kernels had to be timed")?;
        if problem.options.route != Route::Fused {
            return Ok(());
        }
        // Trials of two threads would disturb each other, and who waited may find that there is nothing left to do.
        let _turn = device.tuner.trial.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tuned.only_missing.then(|| device.tuner.choices());
        for (asked, variant) in self.asked(problem, known)? {
            let bucket = Bucket::of(&asked);
            if variant.is_none() && !tuned.entries.iter().any(|(other, _)| *other == bucket) {
                let (chosen, product) = self.tune_product(&asked)?;
                let entry = chosen.map(|variant| (bucket, variant));
                device.tuner.table.extend(entry);
                tuned.entries.extend(entry);
                tuned.report.products.extend(product);
            }
        }
        Ok(())
    }

    fn tune_product(&self, asked: &Asked) -> Result<(Option<Variant>, Option<TunedProduct>)> {
        let device = &self.queue().device;
        let candidates = model::candidates(asked, &device.facts);
        if candidates.len() < 2 {
            return Ok((candidates.first().copied(), None));
        }
        // What runs on this stream would be in the way. The trial has another, whose memory no graph keeps.
        self.queue().stream.synchronize()?;
        let outcome = trial::measure(&self.new_stream()?.with_tuning(Tuning::Off), asked, &candidates)?;
        device.tuner.measured.fetch_add(1, Ordering::Relaxed);
        let (m, n, k) = asked.shape;
        let timed = candidates.iter().zip(&outcome.seconds).zip(&outcome.same_bits);
        let product = TunedProduct {
            kernel: asked.kernel.to_string(),
            shape: [m, n, k],
            candidates: timed
                .map(|((variant, &seconds), &same_bits)| TunedCandidate {
                    variant: variant.to_string(),
                    seconds,
                    same_bits,
                })
                .collect(),
            chosen: outcome.chosen,
            speedup: outcome.speedup,
        };
        Ok((candidates.get(outcome.chosen).copied(), Some(product)))
    }

    /// Leaves what was found to later processes.
    fn keep(&self, tuned: Tuned) -> TuneReport {
        let device = &self.queue().device;
        if !tuned.entries.is_empty() {
            device.tuner.store.add(device.cache(), &tuned.entries);
        }
        tuned.report
    }
}

/// What a call found.
#[derive(Default)]
struct Tuned {
    /// Whether products whose choice is known are left alone.
    only_missing: bool,
    entries: Vec<(Bucket, Variant)>,
    report: TuneReport,
}

/// Plans a problem, for what its choices are told.
fn plan_of(planner: &Planner<'_>, problem: &Problem) -> Result<()> {
    match problem.pass {
        Pass::Forward { save } => planner.forward(problem, save).map(drop),
        Pass::Backward { .. } => planner.backward(problem).map(drop),
    }
}
