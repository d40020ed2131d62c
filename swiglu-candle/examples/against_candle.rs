//! The fused op against candle's own ops, whose products are the gemm crate's: f32 on the CPU, in turns in one process, medians.
//!
//! `cargo run --release -p swiglu-candle --example against_candle`

use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var};

/// Batch, in_features and hidden.
const SHAPES: [[usize; 3]; 4] = [[128, 784, 512], [512, 1024, 4096], [16, 4096, 11008], [1, 4096, 11008]];
const ROUNDS: usize = 7;

type Op = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

fn of_candle(x: &Tensor, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    x.matmul(&gate.t()?)?.silu()? * x.matmul(&up.t()?)?
}

/// Milliseconds of a call.
fn timed(call: impl FnOnce() -> Result<Tensor>) -> Result<f64> {
    let start = Instant::now();
    let result = call()?;
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    drop(result);
    Ok(milliseconds)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// z of weights that are no variables, and the gradient of x of a loss that sums z * dz, beside which those of the weights are
/// made.
fn passes(op: Op, [x, gate, up]: [&Tensor; 3], [vx, vgate, vup]: [&Var; 3], dz: &Tensor) -> Result<[f64; 2]> {
    let forward = timed(|| op(x, gate, up))?;
    let step = timed(|| {
        let gradients = (op(vx, vgate, vup)? * dz)?.sum_all()?.backward()?;
        gradients.get(vx).cloned().ok_or_else(|| candle_core::Error::Msg("x has no gradient".into()))
    })?;
    Ok([forward, step])
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    println!("f32, weights [D, I]; milliseconds, and how many times as long candle's own ops take");
    for [batch, in_features, hidden] in SHAPES {
        let random = |rows, cols, scale| Tensor::randn(0f32, scale, (rows, cols), &device);
        let scale = 1.0 / (in_features as f32).sqrt();
        let x = random(batch, in_features, 1.0)?;
        let (gate, up) = (random(hidden, in_features, scale)?, random(hidden, in_features, scale)?);
        let dz = random(batch, hidden, 1.0)?;
        let [vx, vgate, vup] = [&x, &gate, &up].map(Var::from_tensor);
        let (vx, vgate, vup) = (vx?, vgate?, vup?);
        let mut times = [[const { Vec::new() }; 2], [const { Vec::new() }; 2]];
        for _ in 0..ROUNDS {
            for (times, op) in times.iter_mut().zip([swiglu_candle::swiglu as Op, of_candle]) {
                let took = passes(op, [&x, &gate, &up], [&vx, &vgate, &vup], &dz)?;
                times.iter_mut().zip(took).for_each(|(times, took)| times.push(took));
            }
        }
        let [ours, theirs] = times.map(|times| times.map(median));
        println!(
            "{batch:5}, {in_features:5}, {hidden:6}: forward {:9.3}, {:.2} times; forward and backward {:9.3}, {:.2} times",
            ours[0],
            theirs[0] / ours[0],
            ours[1],
            theirs[1] / ours[1]
        );
    }
    Ok(())
}
