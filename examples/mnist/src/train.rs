//! The training: epochs of steps, written once for every backend.

use std::time::Instant;

use swiglu::{AdamW, Complete, Job, Result, Unfused, WeightGrad};

use crate::batches::{Batches, picks, pixels};
use crate::cli::Args;
use crate::data::Dataset;
use crate::error::Error;
use crate::model::{Buffers, Model, Parameters, Samples, Stepper, Tally};
use crate::report::metrics::Metrics;
use crate::report::plot::Curves;
use crate::report::progress::Progress;
use crate::report::{EpochReport, Score};

/// A training run that only lacks a backend.
pub(crate) struct Training<'a> {
    pub(crate) args: &'a Args,
    pub(crate) data: &'a Dataset,
    pub(crate) parameters: Parameters,
    pub(crate) metrics: Option<Metrics>,
    pub(crate) progress: Progress,
}

/// What a run leaves behind.
pub(crate) struct Trained {
    pub(crate) parameters: Parameters,
    pub(crate) curves: Curves,
    pub(crate) test: Score,
}

impl Job for Training<'_> {
    type Output = Result<Trained, Error>;

    fn run<B: Complete>(self, backend: B) -> Self::Output {
        if self.args.unfused { self.on(Unfused(backend)) } else { self.on(backend) }
    }
}

impl Training<'_> {
    fn on<B: Complete>(mut self, backend: B) -> Result<Trained, Error> {
        let device = self.args.device;
        let failed = |source| Error::Device { device, source };
        self.progress.line(format_args!("device: {}", backend.name()));
        let mut run = Run::new(backend, &self).map_err(failed)?;
        let mut curves = Curves::default();
        let mut test = run.test().map_err(failed)?;
        for epoch in 1..=self.args.epochs {
            let started = Instant::now();
            let tally = run.epoch(&mut self, epoch).map_err(failed)?;
            let seconds = started.elapsed().as_secs_f64();
            test = run.test().map_err(failed)?;
            let samples = self.data.train.labels.len();
            let report = EpochReport {
                epoch,
                train_loss: mean_loss(&tally.losses, samples, self.args.batch_size),
                train: Score { correct: tally.correct, total: samples },
                test,
                seconds,
            };
            self.progress.finish_epoch(&report);
            if let Some(metrics) = &mut self.metrics {
                metrics.write(&report, &tally.losses)?;
            }
            curves.losses.extend(&tally.losses);
            curves.test_accuracy.push(test.fraction());
        }
        Ok(Trained { parameters: run.model.parameters().map_err(failed)?, curves, test })
    }
}

/// The mean over samples from the means over batches, of which the last may be shorter. In f64 and in order: the same
/// steps give the same bits.
fn mean_loss(losses: &[f32], samples: usize, batch_size: usize) -> f32 {
    let weighted = losses.iter().enumerate().map(|(step, &loss)| {
        let batch = batch_size.min(samples - step * batch_size);
        f64::from(loss) * batch as f64
    });
    (weighted.sum::<f64>() / samples.max(1) as f64) as f32
}

/// A model on its backend, the samples, and the buffers of its steps.
struct Run<'a, B: Complete> {
    model: Model<B>,
    device: Buffers<B>,
    train: (Batches<'a>, Samples<B>),
    test: (Batches<'a>, Samples<B>),
    stepper: Stepper,
    batch_size: usize,
}

impl<'a, B: Complete> Run<'a, B> {
    fn new(backend: B, training: &Training<'a>) -> Result<Self> {
        let (args, data) = (training.args, training.data);
        let model = Model::load(&backend, &training.parameters, WeightGrad::from(args.weight_grad))?;
        let samples = data.train.labels.len().max(data.test.labels.len());
        let device = model.buffers(args.batch_size, samples.div_ceil(args.batch_size))?;
        let train = (Batches::new(&data.train), model.samples(&pixels(&data.train))?);
        let test = (Batches::new(&data.test), model.samples(&pixels(&data.test))?);
        // Unfused, frozen weights save nothing, so each step allocates pre-activations: that cannot be captured.
        let replay = !(args.unfused && WeightGrad::from(args.weight_grad) == WeightGrad::Frozen);
        let stepper = Stepper::new(args.batch_size, AdamW::new(args.lr), replay);
        Ok(Self { model, device, train, test, stepper, batch_size: args.batch_size })
    }

    fn epoch(&mut self, training: &mut Training<'_>, epoch: u32) -> Result<Tally> {
        let Self { model, device, train: (train, samples), stepper, batch_size, .. } = self;
        let mut picks = picks(*batch_size);
        let steps = train.samples().div_ceil(*batch_size);
        train.shuffle(training.args.seed, epoch);
        training.progress.start_epoch(epoch, training.args.epochs, steps);
        for (step, range) in train.ranges(*batch_size).enumerate() {
            let batch = range.len();
            train.pick(range, &mut picks);
            model.upload(device, batch, &picks)?;
            stepper.step(model, samples, device, (batch, step))?;
            training.progress.step(|| model.loss(device, step).unwrap_or(f32::NAN));
        }
        model.tally(device, steps)
    }

    fn test(&mut self) -> Result<Score> {
        let Self { model, device, test: (batches, samples), batch_size, .. } = self;
        let mut picks = picks(*batch_size);
        for (step, range) in batches.ranges(*batch_size).enumerate() {
            let batch = range.len();
            batches.pick(range, &mut picks);
            model.upload(device, batch, &picks)?;
            model.evaluate(samples, device, batch, step)?;
        }
        let steps = batches.samples().div_ceil(*batch_size);
        let correct = model.tally(device, steps)?.correct;
        Ok(Score { correct, total: batches.samples() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_batch_weighs_less() {
        assert_eq!(mean_loss(&[1.0, 4.0], 3, 2), 2.0);
        assert_eq!(mean_loss(&[], 0, 2), 0.0);
    }
}
