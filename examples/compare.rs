//! Fused against unfused, against plain ndarray with matrixmultiply, and against the gemm crate with AVX-512 where that is,
//! interleaved in one run: medians and ratios.
//!
//! `cargo run --release --example compare`

#[path = "../benches/common/mod.rs"]
mod common;

use std::time::Instant;

use ndarray::Array2;
use swiglu::{
    Backend, Cpu, Gradients, Host, MatMut, MatRef, Options, Orientation, Out, Result, Save, Saved, SwiGLU,
    Target, Unfused, Weights,
};

use common::{Operands, Product, SHAPES, by_gemm, by_ndarray, flops, gate, gate_backward, name};

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

/// As a peer's products and elementwise passes; room for the pre-activations is there before.
fn peer_round(product: Product, o: &mut Operands, pre: &mut Array2<f32>, times: &mut Times) {
    timed(&mut times.forward, || {
        product(o.x.view(), o.wf.view(), pre);
        gate(pre, &mut o.z);
    });
    timed(&mut times.backward, || {
        gate_backward(&o.dz, pre);
        product(pre.view(), o.wf.t(), &mut o.dx);
        product(o.x.t(), pre.view(), &mut o.dwf);
    });
}

/// The largest difference of two results, as a share of the largest element.
fn difference(a: &Array2<f32>, b: &Array2<f32>) -> f32 {
    let largest = a.iter().fold(0f32, |most, v| most.max(v.abs()));
    a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

fn main() -> Result<()> {
    let cpu = Cpu::new();
    let unfused = Unfused(cpu.clone());
    println!(
        "{}; f32, W [I, 2D], forward keeps pre-activations; medians, GFLOP/s (ratio of times to fused)",
        cpu.name()
    );
    println!("{:24} {:>8} {:>16} {:>16} {:>16}", "", "fused", "unfused", "ndarray", "gemm");
    for shape in SHAPES {
        let mut o = Operands::new(shape);
        let mut saved = cpu.saved(Save::PreActivations, shape[0], shape[2])?;
        let rounds = if flops(shape) > 50_000_000_000 { 5 } else { 31 };
        let mut pre = Array2::zeros((shape[0], 2 * shape[2]));
        let mut times: [Times; 4] = Default::default();
        for round in 0..rounds {
            fused_round(&cpu, &mut o, &mut saved, &mut times[0])?;
            let ours = (round == 0).then(|| [&o.z, &o.dx, &o.dwf].map(Array2::clone));
            fused_round(&unfused, &mut o, &mut saved, &mut times[1])?;
            for (product, times) in [by_ndarray as Product, by_gemm].into_iter().zip(&mut times[2..]) {
                peer_round(product, &mut o, &mut pre, times);
                for (ours, theirs) in ours.iter().flatten().zip([&o.z, &o.dx, &o.dwf]) {
                    let off = difference(ours, theirs);
                    assert!(off < 1e-4, "{shape:?}: a result differs by {off} of its largest element");
                }
            }
        }
        let row = |pass: &str, flops: u64, times: [&[f64]; 4]| {
            let [fused, unfused, ndarray, gemm] = times.map(Times::median);
            let rate = |seconds: f64| flops as f64 / seconds / 1e9;
            let other = |seconds: f64| format!("{:.0} ({:.2}x)", rate(seconds), seconds / fused);
            let label = format!("{pass} {}", name(shape));
            let others = [unfused, ndarray, gemm].map(other);
            println!("{label:24} {:8.0} {:>16} {:>16} {:>16}", rate(fused), others[0], others[1], others[2]);
        };
        let [f, u, n, g] = &times;
        row("fwd", flops(shape), [&f.forward, &u.forward, &n.forward, &g.forward]);
        row("bwd", 2 * flops(shape), [&f.backward, &u.backward, &n.backward, &g.backward]);
    }
    Ok(())
}
