//! A training step of the MNIST network's hidden layer, batch 128: forward, dWf, bias gradients and AdamW.

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use swiglu::{
    AdamW, Complete, Cpu, FusedSwiGLU, Gradient, Host, MatRef, Optimizer, Result, Saved, Unfused, WeightGrad,
};

use common::{Flops, Operands, flops};

const SHAPE: [usize; 3] = [128, 784, 512];

struct Step<B: Complete<Memory = Host>> {
    layer: FusedSwiGLU<f32, B>,
    optimizers: Vec<Optimizer<Host>>,
    saved: Saved<f32, Host>,
}

impl<B: Complete<Memory = Host>> Step<B> {
    fn new(backend: &B, weight_grad: WeightGrad) -> Result<Self> {
        let [batch, in_features, hidden] = SHAPE;
        let mut layer =
            FusedSwiGLU::init(backend, in_features, hidden, 1)?.zero_bias()?.weight_grad(weight_grad)?;
        let (optimizers, saved) = (layer.optimizers()?, layer.saved(batch)?);
        Ok(Self { layer, optimizers, saved })
    }

    fn run(&mut self, o: &mut Operands) -> Result<()> {
        let x = MatRef::try_from(&o.x)?;
        self.layer.forward_train_into(x, swiglu::MatMut::try_from(&mut o.z)?, &mut self.saved)?;
        self.layer.backward(x, MatRef::try_from(&o.dz)?, &mut self.saved, None)?;
        let backend = self.layer.backend().clone();
        for (parameter, optimizer) in self.layer.parameters().zip(&mut self.optimizers) {
            backend.adamw(AdamW::new(1e-3), Gradient::F32(parameter.gradient), optimizer, parameter.value)?;
        }
        Ok(())
    }
}

fn mnist(c: &mut Criterion<Flops>) {
    let cpu = Cpu::new();
    let mut o = Operands::new(SHAPE);
    let mut group = c.benchmark_group("mnist step");
    group.throughput(Throughput::Elements(2 * flops(SHAPE)));
    for (label, mode) in [("fused", WeightGrad::Fused), ("composed weight gradient", WeightGrad::Composed)] {
        let mut step = Step::new(&cpu, mode).expect("the shape fits");
        group.bench_function(label, |b| b.iter(|| step.run(&mut o).expect("operands fit")));
    }
    let mut step = Step::new(&Unfused(cpu), WeightGrad::Fused).expect("the shape fits");
    group.bench_function("unfused", |b| b.iter(|| step.run(&mut o).expect("operands fit")));
    group.finish();
}

criterion_group! { name = benches; config = common::criterion(); targets = mnist }
criterion_main!(benches);
