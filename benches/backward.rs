//! Backward with frozen weights: dX alone, from saved pre-activations, gate gradient included.

mod common;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use swiglu::{
    Cpu, Gradients, Host, MatMut, MatRef, Options, Orientation, Out, Saved, SwiGLU, Unfused, Weights,
};

use common::{Flops, Operands, SHAPES, flops, gate_backward, name, ndarray_forward, prepare};

fn call<B: SwiGLU<f32, Memory = Host>>(
    backend: &B,
    x: &Operands,
    dx: &mut ndarray::Array2<f32>,
    saved: &mut Saved<f32, Host>,
) -> swiglu::Result<()> {
    let w = Weights::packed(MatRef::try_from(&x.wf)?, Orientation::InOut)?;
    let gradients = Gradients::new().dx(Out::write(MatMut::try_from(dx)?));
    backend.backward(MatRef::try_from(&x.x)?, w, MatRef::try_from(&x.dz)?, saved, gradients, Options::new())
}

fn backward(c: &mut Criterion<Flops>) {
    let fused = Cpu::new();
    let unfused = Unfused(fused.clone());
    for shape in SHAPES {
        let mut o = Operands::new(shape);
        let mut dx = std::mem::take(&mut o.dx);
        let mut group = c.benchmark_group(format!("backward dX {}", name(shape)));
        group.throughput(Throughput::Elements(flops(shape)));
        group.bench_function("fused", |b| {
            b.iter_batched_ref(
                || prepare(&fused, &o).expect("operands fit"),
                |saved| call(&fused, &o, &mut dx, saved).expect("operands fit"),
                BatchSize::PerIteration,
            );
        });
        group.bench_function("unfused", |b| {
            b.iter_batched_ref(
                || prepare(&unfused, &o).expect("operands fit"),
                |saved| call(&unfused, &o, &mut dx, saved).expect("operands fit"),
                BatchSize::PerIteration,
            );
        });
        let pre = ndarray_forward(&o.x, &o.wf, &mut o.z);
        group.bench_function("ndarray", |b| {
            b.iter_batched_ref(
                || pre.clone(),
                |pre| {
                    gate_backward(&o.dz, pre);
                    ndarray::linalg::general_mat_mul(1.0, pre, &o.wf.t(), 0.0, &mut dx);
                },
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

criterion_group! { name = benches; config = common::criterion(); targets = backward }
criterion_main!(benches);
