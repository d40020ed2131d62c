//! Full backward: dX and dWf from saved pre-activations, gate gradient included.

mod common;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;
use ndarray::linalg::general_mat_mul;
use swiglu::{
    Cpu, Gradients, Host, MatMut, MatRef, Options, Orientation, Out, Route, Saved, SwiGLU, Target, Unfused,
    Weights,
};

use common::{Flops, Operands, SHAPES, flops, gate_backward, name, ndarray_forward, prepare};

fn call<B: SwiGLU<f32, Memory = Host>>(
    backend: &B,
    o: &Operands,
    [dx, dwf]: [&mut Array2<f32>; 2],
    saved: &mut Saved<f32, Host>,
    options: Options,
) -> swiglu::Result<()> {
    let w = Weights::packed(MatRef::try_from(&o.wf)?, Orientation::InOut)?;
    let gradients =
        Gradients::new().dx(Out::write(MatMut::try_from(dx)?)).dwf(Target::write(MatMut::try_from(dwf)?));
    backend.backward(MatRef::try_from(&o.x)?, w, MatRef::try_from(&o.dz)?, saved, gradients, options)
}

fn backward_weight(c: &mut Criterion<Flops>) {
    let cpu = Cpu::new();
    let unfused = Unfused(cpu.clone());
    let composed = Options::new().route(Route::Composed);
    for shape in SHAPES {
        let mut o = Operands::new(shape);
        let (mut dx, mut dwf) = (std::mem::take(&mut o.dx), std::mem::take(&mut o.dwf));
        let mut group = c.benchmark_group(format!("backward dX dWf {}", name(shape)));
        group.throughput(Throughput::Elements(2 * flops(shape)));
        for (label, options) in [("fused", Options::new()), ("composed", composed)] {
            group.bench_function(label, |b| {
                b.iter_batched_ref(
                    || prepare(&cpu, &o).expect("operands fit"),
                    |saved| call(&cpu, &o, [&mut dx, &mut dwf], saved, options).expect("operands fit"),
                    BatchSize::PerIteration,
                );
            });
        }
        group.bench_function("unfused", |b| {
            b.iter_batched_ref(
                || prepare(&unfused, &o).expect("operands fit"),
                |saved| call(&unfused, &o, [&mut dx, &mut dwf], saved, Options::new()).expect("operands fit"),
                BatchSize::PerIteration,
            );
        });
        let pre = ndarray_forward(&o.x, &o.wf, &mut o.z);
        group.bench_function("ndarray", |b| {
            b.iter_batched_ref(
                || pre.clone(),
                |pre| {
                    gate_backward(&o.dz, pre);
                    general_mat_mul(1.0, pre, &o.wf.t(), 0.0, &mut dx);
                    general_mat_mul(1.0, &o.x.t(), pre, 0.0, &mut dwf);
                },
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }
}

criterion_group! { name = benches; config = common::criterion(); targets = backward_weight }
criterion_main!(benches);
