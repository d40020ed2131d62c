//! 784 -> SwiGLU(hidden) -> 10 with biases, on any backend, and one training step of it.

use ndarray::Array2;
use swiglu::{
    AdamW, Backend, Complete, FusedSwiGLU, Gradient, LossTargets, MatMut, MatRef, Matrix, Op, Optimizer,
    Orientation, Replay, Result, Saved, Target, WeightGrad,
};

use crate::batches::uniform;
use crate::data::{CLASSES, PIXELS};

/// Parameters, their gradients and what the optimizer keeps.
pub(crate) struct Model<B: Complete> {
    backend: B,
    gated: FusedSwiGLU<f32, B>,
    gated_optimizers: Vec<Optimizer<B::Memory>>,
    head: Linear<B>,
    trained: bool,
}

/// A linear layer: y = z . weight + bias.
struct Linear<B: Complete> {
    weight: Matrix<f32, B::Memory>,
    bias: Matrix<f32, B::Memory>,
    dweight: Matrix<f32, B::Memory>,
    dbias: Matrix<f32, B::Memory>,
    optimizers: [Optimizer<B::Memory>; 2],
}

/// Everything that a step writes besides the parameters, made once and used in every step.
pub(crate) struct Buffers<B: Complete> {
    /// Samples of the batch, and their labels.
    picks: Matrix<u32, B::Memory>,
    x: Matrix<f32, B::Memory>,
    z: Matrix<f32, B::Memory>,
    dz: Matrix<f32, B::Memory>,
    logits: Matrix<f32, B::Memory>,
    dlogits: Matrix<f32, B::Memory>,
    saved: Saved<f32, B::Memory>,
    /// Loss and hits of the last step, always at one address.
    loss: Matrix<f32, B::Memory>,
    hits: Matrix<u32, B::Memory>,
    /// One column for each step of an epoch: nothing is read back in between.
    losses: Matrix<f32, B::Memory>,
    correct: Matrix<u32, B::Memory>,
}

/// The pixels of a split, `[samples, 784]`.
pub(crate) type Samples<B> = Matrix<f32, <B as Backend>::Memory>;

/// Losses and hits of the steps of an epoch.
#[derive(Debug)]
pub(crate) struct Tally {
    /// The mean loss of each step.
    pub(crate) losses: Vec<f32>,
    /// Samples whose class was found, over all steps.
    pub(crate) correct: usize,
}

/// The numbers that a model consists of, on the host.
pub(crate) type Parameters = [Array2<f32>; 4];

/// Random parameters.
pub(crate) fn initial(hidden: usize, seed: u64) -> Parameters {
    let drawn = |rows, cols, seed| {
        let mut weights = Array2::zeros((rows, cols));
        uniform(weights.view_mut(), seed);
        weights
    };
    [
        drawn(PIXELS, 2 * hidden, seed),
        Array2::zeros((1, 2 * hidden)),
        drawn(hidden, CLASSES, seed.wrapping_add(1)),
        Array2::zeros((1, CLASSES)),
    ]
}

impl<B: Complete> Linear<B> {
    fn load(backend: &B, weight: &Array2<f32>, bias: &Array2<f32>) -> Result<Self> {
        let (weight, bias) = (upload(backend, weight)?, upload(backend, bias)?);
        let optimizers = [backend.optimizer(weight.view())?, backend.optimizer(bias.view())?];
        let (dweight, dbias) = (backend.zeros(weight.rows(), weight.cols())?, backend.zeros(1, bias.cols())?);
        Ok(Self { weight, bias, dweight, dbias, optimizers })
    }

    fn forward(
        &self,
        backend: &B,
        z: MatRef<'_, f32, B::Memory>,
        mut y: MatMut<'_, f32, B::Memory>,
    ) -> Result<()> {
        backend.matmul((z, Op::N), (self.weight.view(), Op::N), Target::write(y.view_mut()))?;
        backend.add_bias(self.bias.view(), y)
    }

    /// The gradients of weight and bias.
    fn backward(
        &mut self,
        backend: &B,
        z: MatRef<'_, f32, B::Memory>,
        dy: MatRef<'_, f32, B::Memory>,
    ) -> Result<()> {
        backend.matmul((z, Op::T), (dy, Op::N), Target::write(&mut self.dweight))?;
        backend.column_sums(dy, Target::write(&mut self.dbias))
    }

    fn step(&mut self, backend: &B, hyper: AdamW) -> Result<()> {
        let [weight, bias] = &mut self.optimizers;
        backend.adamw(hyper, Gradient::Same(self.dweight.view()), weight, self.weight.view_mut())?;
        backend.adamw(hyper, Gradient::Same(self.dbias.view()), bias, self.bias.view_mut())
    }
}

impl<B: Complete> Model<B> {
    /// Uploads parameters.
    pub(crate) fn load(backend: &B, parameters: &Parameters, weight_grad: WeightGrad) -> Result<Self> {
        let [wf, bias, head, head_bias] = parameters;
        let mut gated = FusedSwiGLU::load(backend, wf.try_into()?, Orientation::InOut)?
            .bias(bias.try_into()?)?
            .weight_grad(weight_grad)?;
        let gated_optimizers = gated.optimizers()?;
        let head = Linear::load(backend, head, head_bias)?;
        let trained = weight_grad != WeightGrad::Frozen;
        Ok(Self { backend: backend.clone(), gated, gated_optimizers, head, trained })
    }

    /// Downloads the parameters.
    pub(crate) fn parameters(&self) -> Result<Parameters> {
        let (wf, bias) = self.gated.save()?;
        let bias = bias.map_or_else(|| Matrix::host_zeros(1, 2 * self.gated.hidden()), Ok)?;
        let head = self.backend.download(&self.head.weight)?;
        let head_bias = self.backend.download(&self.head.bias)?;
        Ok([wf.into_array(), bias.into_array(), head.into_array(), head_bias.into_array()])
    }

    /// Buffers for batches of up to `batch` samples and epochs of up to `steps` steps.
    pub(crate) fn buffers(&self, batch: usize, steps: usize) -> Result<Buffers<B>> {
        let (backend, hidden) = (&self.backend, self.gated.hidden());
        Ok(Buffers {
            picks: backend.zeros(batch, 2)?,
            x: backend.zeros(batch, PIXELS)?,
            z: backend.zeros(batch, hidden)?,
            dz: backend.zeros(batch, hidden)?,
            logits: backend.zeros(batch, CLASSES)?,
            dlogits: backend.zeros(batch, CLASSES)?,
            saved: self.gated.saved(batch)?,
            loss: backend.zeros(1, 1)?,
            hits: backend.zeros(1, 1)?,
            losses: backend.zeros(1, steps)?,
            correct: backend.zeros(1, steps)?,
        })
    }

    /// Uploads samples, which stay on the device.
    pub(crate) fn samples(&self, pixels: &Array2<f32>) -> Result<Samples<B>> {
        upload(&self.backend, pixels)
    }

    /// Uploads which samples the first `batch` rows of a batch are, and their labels.
    pub(crate) fn upload(&self, buffers: &mut Buffers<B>, batch: usize, picks: &Array2<u32>) -> Result<()> {
        let picks = MatRef::try_from(picks)?.sub(0..batch, 0..2)?;
        self.backend.copy_in(picks, buffers.picks.view_mut().sub(0..batch, 0..2)?)
    }

    /// One step on the first `batch` rows of the uploaded batch. Equal calls have equal operands, so that a device may
    /// [replay](Stepper) them.
    fn train(
        &mut self,
        samples: &Samples<B>,
        buffers: &mut Buffers<B>,
        batch: usize,
        hyper: AdamW,
    ) -> Result<()> {
        self.gather(samples, buffers, batch)?;
        let Self { backend, gated, gated_optimizers, head, trained } = self;
        let hidden = gated.hidden();
        let x = buffers.x.view().sub(0..batch, 0..PIXELS)?;
        let labels = buffers.picks.view().sub(0..batch, 1..2)?;
        let mut z = buffers.z.view_mut().sub(0..batch, 0..hidden)?;
        let mut logits = buffers.logits.view_mut().sub(0..batch, 0..CLASSES)?;
        let mut dlogits = buffers.dlogits.view_mut().sub(0..batch, 0..CLASSES)?;
        if *trained {
            gated.forward_train_into(x, z.view_mut(), &mut buffers.saved)?;
        } else {
            gated.forward_into(x, z.view_mut())?;
        }
        head.forward(backend, z.view(), logits.view_mut())?;
        let targets = LossTargets {
            loss: buffers.loss.view_mut(),
            correct: Some(buffers.hits.view_mut()),
            dlogits: Some(dlogits.view_mut()),
        };
        backend.cross_entropy(logits.view(), labels, targets)?;
        head.backward(backend, z.view(), dlogits.view())?;
        if *trained {
            let mut dz = buffers.dz.view_mut().sub(0..batch, 0..hidden)?;
            let to = Target::write(dz.view_mut());
            backend.matmul((dlogits.view(), Op::N), (head.weight.view(), Op::T), to)?;
            gated.backward(x, dz.view(), &mut buffers.saved, None)?;
        }
        head.step(backend, hyper)?;
        for (parameter, optimizer) in gated.parameters().zip(gated_optimizers) {
            backend.adamw(hyper, Gradient::F32(parameter.gradient), optimizer, parameter.value)?;
        }
        Ok(())
    }

    /// The pixels of the uploaded batch.
    fn gather(&self, samples: &Samples<B>, buffers: &mut Buffers<B>, batch: usize) -> Result<()> {
        let rows = buffers.picks.view().sub(0..batch, 0..1)?;
        let x = buffers.x.view_mut().sub(0..batch, 0..PIXELS)?;
        self.backend.gather_rows(samples.view(), rows, x)
    }

    /// Keeps loss and hits of the last step in column `step`.
    fn keep(&self, buffers: &mut Buffers<B>, step: usize) -> Result<()> {
        let to = buffers.losses.view_mut().sub(0..1, step..step + 1)?;
        self.backend.copy(buffers.loss.view(), to)?;
        let to = buffers.correct.view_mut().sub(0..1, step..step + 1)?;
        self.backend.copy(buffers.hits.view(), to)
    }

    /// Loss and hits of the uploaded batch, without learning from it.
    pub(crate) fn evaluate(
        &self,
        samples: &Samples<B>,
        buffers: &mut Buffers<B>,
        batch: usize,
        step: usize,
    ) -> Result<()> {
        self.gather(samples, buffers, batch)?;
        let hidden = self.gated.hidden();
        let mut z = buffers.z.view_mut().sub(0..batch, 0..hidden)?;
        let mut logits = buffers.logits.view_mut().sub(0..batch, 0..CLASSES)?;
        self.gated.forward_into(buffers.x.view().sub(0..batch, 0..PIXELS)?, z.view_mut())?;
        self.head.forward(&self.backend, z.view(), logits.view_mut())?;
        let targets = LossTargets {
            loss: buffers.losses.view_mut().sub(0..1, step..step + 1)?,
            correct: Some(buffers.correct.view_mut().sub(0..1, step..step + 1)?),
            dlogits: None,
        };
        self.backend.cross_entropy(logits.view(), buffers.picks.view().sub(0..batch, 1..2)?, targets)
    }

    /// Reads back the loss of one step; waits for it.
    pub(crate) fn loss(&self, buffers: &Buffers<B>, step: usize) -> Result<f32> {
        let loss = self.backend.download(buffers.losses.view().sub(0..1, step..step + 1)?)?;
        Ok(loss.into_array()[[0, 0]])
    }

    /// Reads back losses and hits of the first `steps` steps.
    pub(crate) fn tally(&self, buffers: &Buffers<B>, steps: usize) -> Result<Tally> {
        let losses = self.backend.download(buffers.losses.view().sub(0..1, 0..steps)?)?;
        let correct = self.backend.download(buffers.correct.view().sub(0..1, 0..steps)?)?;
        let correct = correct.into_array().iter().map(|&hits| hits as usize).sum();
        Ok(Tally { losses: losses.into_array().into_iter().collect(), correct })
    }
}

/// Enqueues training steps: call by call, or all at once where the device can replay them.
pub(crate) struct Stepper {
    batch_size: usize,
    hyper: AdamW,
    state: State,
}

/// What is known of a full step.
enum State {
    /// It has never run.
    Cold,
    /// It has run once, so everything that it needs is in place.
    Warm,
    /// It was captured.
    Captured(Box<dyn Replay>),
    /// It is enqueued call by call.
    Plain,
}

impl Stepper {
    /// For batches of `batch_size` samples. Without `replay` nothing is captured.
    pub(crate) fn new(batch_size: usize, hyper: AdamW, replay: bool) -> Self {
        Self { batch_size, hyper, state: if replay { State::Cold } else { State::Plain } }
    }

    /// One step on the first `batch` rows of the uploaded batch; its loss goes to column `step`.
    pub(crate) fn step<B: Complete>(
        &mut self,
        model: &mut Model<B>,
        samples: &Samples<B>,
        buffers: &mut Buffers<B>,
        (batch, step): (usize, usize),
    ) -> Result<()> {
        let hyper = self.hyper;
        if batch != self.batch_size {
            model.train(samples, buffers, batch, hyper)?;
            return model.keep(buffers, step);
        }
        if let State::Warm = self.state {
            let backend = model.backend.clone();
            let captured = backend.capture(|| model.train(samples, buffers, batch, hyper))?;
            self.state = captured.map_or(State::Plain, State::Captured);
        }
        match &mut self.state {
            State::Captured(replay) => replay.launch()?,
            State::Cold => {
                model.train(samples, buffers, batch, hyper)?;
                self.state = State::Warm;
            }
            State::Warm | State::Plain => model.train(samples, buffers, batch, hyper)?,
        }
        model.keep(buffers, step)
    }
}

fn upload<B: Complete>(backend: &B, array: &Array2<f32>) -> Result<Matrix<f32, B::Memory>> {
    backend.upload(MatRef::try_from(array)?)
}
