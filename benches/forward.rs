//! Forward: fused, unfused over the same backend, and plain ndarray.

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use swiglu::{Cpu, MatMut, MatRef, Options, Orientation, SwiGLU, Unfused, Weights};

use common::{Flops, Operands, SHAPES, flops, name, ndarray_forward};

fn call<B: SwiGLU<f32, Memory = swiglu::Host>>(backend: &B, o: &mut Operands) -> swiglu::Result<()> {
    let w = Weights::packed(MatRef::try_from(&o.wf)?, Orientation::InOut)?;
    backend.forward_into(MatRef::try_from(&o.x)?, w, MatMut::try_from(&mut o.z)?, Options::new())
}

fn forward(c: &mut Criterion<Flops>) {
    let fused = Cpu::new();
    let unfused = Unfused(fused.clone());
    for shape in SHAPES {
        let mut o = Operands::new(shape);
        let mut group = c.benchmark_group(format!("forward {}", name(shape)));
        group.throughput(Throughput::Elements(flops(shape)));
        group.bench_function("fused", |b| b.iter(|| call(&fused, &mut o).expect("operands fit")));
        group.bench_function("unfused", |b| b.iter(|| call(&unfused, &mut o).expect("operands fit")));
        group.bench_function("ndarray", |b| b.iter(|| ndarray_forward(&o.x, &o.wf, &mut o.z)));
        group.finish();
    }
}

criterion_group! { name = benches; config = common::criterion(); targets = forward }
criterion_main!(benches);
