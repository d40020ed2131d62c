//! Fused against unfused and against plain ndarray with matrixmultiply, interleaved in one run: medians and ratios.
//!
//! `cargo run --release --example compare`

#[path = "../benches/common/mod.rs"]
mod common;

use std::time::Instant;

use ndarray::linalg::general_mat_mul;
use swiglu::{
    Backend, Cpu, Gradients, Host, MatMut, MatRef, Options, Orientation, Out, Result, Save, Saved, SwiGLU,
    Target, Unfused, Weights,
};

use common::{Operands, SHAPES, flops, name, ndarray_forward, ndarray_gate_backward};

/// Seconds of forward and of backward (dX and dWf) in each round.
#[derive(Default)]
struct Times {
    forward: Vec<f64>,
    backward: Vec<f64>,
}

impl Times {
    fn median(times: &[f64]) -> f64 {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

fn timed<R>(times: &mut Vec<f64>, f: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = f();
    times.push(start.elapsed().as_secs_f64());
    result
}

fn fused_round<B: SwiGLU<f32, Memory = Host>>(
    backend: &B,
    o: &mut Operands,
    saved: &mut Saved<f32, Host>,
    times: &mut Times,
) -> Result<()> {
    let x = MatRef::try_from(&o.x)?;
    let w = Weights::packed(MatRef::try_from(&o.wf)?, Orientation::InOut)?;
    let z = MatMut::try_from(&mut o.z)?;
    timed(&mut times.forward, || backend.forward_train_into(x, w, z, saved, Options::new()))?;
    let gradients = Gradients::new()
        .dx(Out::write(MatMut::try_from(&mut o.dx)?))
        .dwf(Target::write(MatMut::try_from(&mut o.dwf)?));
    let dz = MatRef::try_from(&o.dz)?;
    timed(&mut times.backward, || backend.backward(x, w, dz, saved, gradients, Options::new()))
}

fn ndarray_round(o: &mut Operands, times: &mut Times) {
    let mut pre = timed(&mut times.forward, || ndarray_forward(&o.x, &o.wf, &mut o.z));
    timed(&mut times.backward, || {
        ndarray_gate_backward(&o.dz, &mut pre);
        general_mat_mul(1.0, &pre, &o.wf.t(), 0.0, &mut o.dx);
        general_mat_mul(1.0, &o.x.t(), &pre, 0.0, &mut o.dwf);
    });
}

fn main() -> Result<()> {
    let cpu = Cpu::new();
    let unfused = Unfused(cpu.clone());
    println!(
        "{}; f32, W [I, 2D], forward keeps pre-activations; medians, GFLOP/s (ratio of times to fused)",
        cpu.name()
    );
    println!("{:24} {:>8} {:>16} {:>16}", "", "fused", "unfused", "ndarray");
    for shape in SHAPES {
        let mut o = Operands::new(shape);
        let mut saved = cpu.saved(Save::PreActivations, shape[0], shape[2])?;
        let rounds = if flops(shape) > 50_000_000_000 { 5 } else { 31 };
        let mut times: [Times; 3] = Default::default();
        for _ in 0..rounds {
            fused_round(&cpu, &mut o, &mut saved, &mut times[0])?;
            fused_round(&unfused, &mut o, &mut saved, &mut times[1])?;
            ndarray_round(&mut o, &mut times[2]);
        }
        let row = |pass: &str, flops: u64, times: [&[f64]; 3]| {
            let [fused, unfused, ndarray] = times.map(Times::median);
            let rate = |seconds: f64| flops as f64 / seconds / 1e9;
            let other = |seconds: f64| format!("{:.0} ({:.2}x)", rate(seconds), seconds / fused);
            let label = format!("{pass} {}", name(shape));
            println!("{label:24} {:8.0} {:>16} {:>16}", rate(fused), other(unfused), other(ndarray));
        };
        let [f, u, n] = &times;
        row("fwd", flops(shape), [&f.forward, &u.forward, &n.forward]);
        row("bwd", 2 * flops(shape), [&f.backward, &u.backward, &n.backward]);
    }
    Ok(())
}
