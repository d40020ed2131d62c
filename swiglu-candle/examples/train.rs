//! Trains a model that predicts the next byte of this file, with the fused MLP and with candle's own ops side by side,
//! from the same weights: `cargo run --release -p swiglu-candle --example train`.

use std::time::{Duration, Instant};

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{
    AdamW, Embedding, Linear, Module, Optimizer, VarBuilder, VarMap, embedding, linear_no_bias, loss,
};
use swiglu_candle::Mlp;

const TEXT: &[u8] = include_bytes!("train.rs");
/// Bytes that the next one is predicted from.
const CONTEXT: usize = 16;
const EMBEDDING: usize = 16;
const HIDDEN: usize = CONTEXT * EMBEDDING;
const INTERMEDIATE: usize = 512;
const BATCH: usize = 128;
const STEPS: usize = 100;
const REPORT: usize = 20;

/// What the fused MLP takes the place of.
struct PlainMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl PlainMlp {
    fn new(hidden: usize, intermediate: usize, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            gate: linear_no_bias(hidden, intermediate, vb.pp("gate_proj"))?,
            up: linear_no_bias(hidden, intermediate, vb.pp("up_proj"))?,
            down: linear_no_bias(intermediate, hidden, vb.pp("down_proj"))?,
        })
    }
}

impl Module for PlainMlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&(self.gate.forward(x)?.silu()? * self.up.forward(x)?)?)
    }
}

/// Embedded bytes, a residual MLP, and a score for each byte.
struct Model<M> {
    embedding: Embedding,
    mlp: M,
    head: Linear,
}

impl<M: Module> Model<M> {
    fn new(vb: &VarBuilder<'_>, mlp: impl FnOnce(usize, usize, VarBuilder<'_>) -> Result<M>) -> Result<Self> {
        Ok(Self {
            embedding: embedding(256, EMBEDDING, vb.pp("embedding"))?,
            mlp: mlp(HIDDEN, INTERMEDIATE, vb.pp("mlp"))?,
            head: linear_no_bias(HIDDEN, 256, vb.pp("head"))?,
        })
    }

    fn loss(&self, contexts: &Tensor, next: &Tensor) -> Result<Tensor> {
        let x = self.embedding.forward(contexts)?.flatten_from(D::Minus2)?;
        let y = (self.mlp.forward(&x)? + x)?;
        loss::cross_entropy(&self.head.forward(&y)?, next)
    }
}

/// A model in training, and the time that went into it.
struct Training<M> {
    model: Model<M>,
    optimizer: AdamW,
    spent: Duration,
}

impl<M: Module> Training<M> {
    fn new(model: Model<M>, variables: &VarMap) -> Result<Self> {
        Ok(Self { model, optimizer: AdamW::new_lr(variables.all_vars(), 1e-3)?, spent: Duration::ZERO })
    }

    fn step(&mut self, contexts: &Tensor, next: &Tensor) -> Result<f32> {
        let start = Instant::now();
        let loss = self.model.loss(contexts, next)?;
        self.optimizer.backward_step(&loss)?;
        let loss = loss.to_scalar()?; // waits for the device
        self.spent += start.elapsed();
        Ok(loss)
    }
}

/// The contexts of one step, and the bytes after them.
fn batch(step: usize, device: &Device) -> Result<(Tensor, Tensor)> {
    let at = |row| (step * BATCH + row) * 7919 % (TEXT.len() - CONTEXT);
    let bytes = |from: usize, to: usize| TEXT[from..to].iter().map(|&byte| u32::from(byte));
    let contexts: Vec<u32> = (0..BATCH).flat_map(|row| bytes(at(row), at(row) + CONTEXT)).collect();
    let next: Vec<u32> = (0..BATCH).map(|row| u32::from(TEXT[at(row) + CONTEXT])).collect();
    Ok((Tensor::from_vec(contexts, (BATCH, CONTEXT), device)?, Tensor::from_vec(next, BATCH, device)?))
}

/// Gives the variables the values that those of the same name have elsewhere.
fn copy(from: &VarMap, to: &mut VarMap) -> Result<()> {
    let values: Vec<_> = match from.data().lock() {
        Ok(data) => data.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect(),
        Err(_) => candle_core::bail!("the variables are in use"),
    };
    to.set(values.into_iter())
}

fn main() -> Result<()> {
    let device = Device::cuda_if_available(0)?;
    let (fused_variables, mut plain_variables) = (VarMap::new(), VarMap::new());
    let builder = |variables| VarBuilder::from_varmap(variables, DType::F32, &device);
    let fused = Model::new(&builder(&fused_variables), Mlp::new)?;
    let plain = Model::new(&builder(&plain_variables), PlainMlp::new)?;
    copy(&fused_variables, &mut plain_variables)?;
    let (mut fused, mut plain) =
        (Training::new(fused, &fused_variables)?, Training::new(plain, &plain_variables)?);

    println!("{:>5} {:>12} {:>12} {:>12} {:>12}", "step", "fused loss", "plain loss", "fused ms", "plain ms");
    for step in 1..=STEPS {
        let (contexts, next) = batch(step, &device)?;
        let losses = (fused.step(&contexts, &next)?, plain.step(&contexts, &next)?);
        if step % REPORT == 0 {
            let ms = |spent: &mut Duration| std::mem::take(spent).as_secs_f64() * 1e3 / REPORT as f64;
            let times = (ms(&mut fused.spent), ms(&mut plain.spent));
            println!("{step:>5} {:>12.6} {:>12.6} {:>12.2} {:>12.2}", losses.0, losses.1, times.0, times.1);
        }
    }
    Ok(())
}
