//! One training loop, written once: the CPU, a fake device whose memory the host cannot address, and `Unfused` on both.

#![cfg(feature = "cpu")]

use swiglu::{
    AdamW, Backend, Complete, Cpu, Element, FusedSwiGLU, Gradient, Job, LossTargets, MatRef, Matrix, Op, Out,
    Result, SwiGLUMlp, Target, Unfused, WeightGrad, bf16,
};
use swiglu_testkit::{Config, Fake, Fault};

const BATCH: usize = 24;
const IN_FEATURES: usize = 20;
const HIDDEN: usize = 17;
const CLASSES: usize = 3;
const STEPS: usize = 30;

/// Numbers without a pattern, the same on every machine.
fn noise(rows: usize, cols: usize, seed: u64) -> Matrix<f32, swiglu::Host> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut matrix = Matrix::host_zeros(rows, cols).expect("a small matrix");
    let mut view = matrix.view_mut();
    for row in 0..rows {
        view.row_mut(row).expect("a row of the matrix").iter_mut().for_each(|value| *value = next());
    }
    matrix
}

fn narrow<T: Element>(from: &Matrix<f32, swiglu::Host>) -> Matrix<T, swiglu::Host> {
    let mut matrix = Matrix::host_zeros(from.rows(), from.cols()).expect("a small matrix");
    let mut view = matrix.view_mut();
    for row in 0..from.rows() {
        T::narrow(from.view().row(row).expect("a row"), view.row_mut(row).expect("a row"));
    }
    matrix
}

/// Losses of a small training with a fixed head.
struct Losses<T>(WeightGrad, std::marker::PhantomData<T>);

impl<T> Losses<T> {
    fn with(weight_grad: WeightGrad) -> Self {
        Self(weight_grad, std::marker::PhantomData)
    }
}

fn losses<T: Element, B>(backend: &B, weight_grad: WeightGrad) -> Result<Vec<f32>>
where
    B: swiglu::SwiGLU<T> + swiglu::Dense<T>,
{
    let x = backend.upload(&narrow::<T>(&noise(BATCH, IN_FEATURES, 1)))?;
    let head = backend.upload(&narrow::<T>(&noise(HIDDEN, CLASSES, 2)))?;
    let labels: Vec<u32> = (0..BATCH as u32).map(|row| row % CLASSES as u32).collect();
    let labels = MatRef::from_slice(&labels, swiglu::Layout::dense(BATCH, 1)?)?;
    let labels = backend.upload(labels)?;
    let mut layer =
        FusedSwiGLU::<T, B>::init(backend, IN_FEATURES, HIDDEN, 3)?.zero_bias()?.weight_grad(weight_grad)?;
    let mut optimizers = layer.optimizers()?;
    let (mut logits, mut dlogits) =
        (backend.zeros::<T>(BATCH, CLASSES)?, backend.zeros::<T>(BATCH, CLASSES)?);
    let (mut dz, mut dx) = (backend.zeros::<T>(BATCH, HIDDEN)?, backend.zeros::<T>(BATCH, IN_FEATURES)?);
    let mut losses = backend.zeros::<f32>(1, STEPS)?;
    for step in 0..STEPS {
        let (z, mut saved) = layer.forward_train(&x)?;
        backend.matmul((z.view(), Op::N), (head.view(), Op::N), Target::write(&mut logits))?;
        let loss = losses.view_mut().sub(0..1, step..step + 1)?;
        let targets = LossTargets { loss, correct: None, dlogits: Some(dlogits.view_mut()) };
        backend.cross_entropy(logits.view(), labels.view(), targets)?;
        backend.matmul((dlogits.view(), Op::N), (head.view(), Op::T), Target::write(&mut dz))?;
        layer.backward(&x, &dz, &mut saved, Some(Out::write(&mut dx)))?;
        for (parameter, optimizer) in layer.parameters().zip(&mut optimizers) {
            let gradient = Gradient::F32(parameter.gradient);
            backend.adamw(AdamW::new(1e-2), gradient, optimizer, parameter.value)?;
        }
    }
    Ok(backend.download(&losses)?.into_array().into_iter().collect())
}

impl<T: Element> Job for Losses<T>
where
    Self: Typed,
{
    type Output = Result<Vec<f32>>;
    fn run<B: Complete>(self, backend: B) -> Self::Output {
        self.typed(&backend)
    }
}

/// The element types for which a complete backend has everything.
trait Typed {
    fn typed<B: Complete>(&self, backend: &B) -> Result<Vec<f32>>;
}

impl Typed for Losses<f32> {
    fn typed<B: Complete>(&self, backend: &B) -> Result<Vec<f32>> {
        losses::<f32, B>(backend, self.0)
    }
}

impl Typed for Losses<bf16> {
    fn typed<B: Complete>(&self, backend: &B) -> Result<Vec<f32>> {
        losses::<bf16, B>(backend, self.0)
    }
}

fn bits(losses: &[f32]) -> Vec<u32> {
    losses.iter().map(|loss| loss.to_bits()).collect()
}

#[test]
fn a_fake_device_trains_with_the_bits_of_the_cpu() {
    for mode in [WeightGrad::Fused, WeightGrad::Composed, WeightGrad::Frozen] {
        let on_cpu = Losses::<f32>::with(mode).run(Cpu::new()).expect("the CPU trains");
        let on_fake =
            Losses::<f32>::with(mode).run(Fake::new(Cpu::new(), 3).on_stream(9)).expect("the fake trains");
        assert_eq!(bits(&on_cpu), bits(&on_fake), "{mode:?}");
        if mode == WeightGrad::Frozen {
            assert!(
                on_cpu.iter().all(|loss| loss.to_bits() == on_cpu[0].to_bits()),
                "frozen weights do not learn"
            );
        } else {
            assert!(on_cpu[STEPS - 1] < 0.7 * on_cpu[0], "{mode:?} learns: {on_cpu:?}");
        }
    }
    let on_cpu = Losses::<bf16>::with(WeightGrad::Fused).run(Cpu::new()).expect("the CPU trains");
    let on_fake =
        Losses::<bf16>::with(WeightGrad::Fused).run(Fake::new(Cpu::new(), 3)).expect("the fake trains");
    assert_eq!(bits(&on_cpu), bits(&on_fake), "bf16");
    assert!(on_cpu[STEPS - 1] < 0.7 * on_cpu[0], "bf16 learns: {on_cpu:?}");
}

#[test]
fn unfused_and_composed_follow_the_same_curve() {
    let fused = Losses::<f32>::with(WeightGrad::Fused).run(Cpu::new()).expect("fused");
    let composed = Losses::<f32>::with(WeightGrad::Composed).run(Cpu::new()).expect("composed");
    let unfused = Losses::<f32>::with(WeightGrad::Fused).run(Unfused(Cpu::new())).expect("unfused");
    for (step, ((fused, composed), unfused)) in fused.iter().zip(&composed).zip(&unfused).enumerate() {
        // Rounding differs by some 1e-7 in each gradient; 30 steps of AdamW at 1e-2 let it grow a hundredfold.
        assert!((fused - composed).abs() <= 1e-4 * fused, "step {step}: fused {fused}, composed {composed}");
        assert!((fused - unfused).abs() <= 1e-4 * fused, "step {step}: fused {fused}, unfused {unfused}");
    }
}

#[test]
fn a_late_fault_surfaces_in_the_training_and_stays() {
    let fake = Fake::new(Cpu::new(), 5);
    fake.inject(Fault::Launch);
    let failed = Losses::<f32>::with(WeightGrad::Fused).run(fake.clone());
    assert!(matches!(failed, Err(swiglu::Error::Device(_))), "{failed:?}");
    assert!(fake.synchronize().is_err(), "the fault is sticky");
}

#[test]
fn an_mlp_on_the_fake_device_gives_the_bits_of_the_cpu() {
    fn run<B: Complete>(backend: &B) -> Result<(Vec<u32>, Vec<u32>)> {
        let mut mlp = SwiGLUMlp::<f32, B>::init(backend, IN_FEATURES, HIDDEN, 4)?;
        let x = backend.upload(&noise(BATCH, IN_FEATURES, 5))?;
        let dy = backend.upload(&noise(BATCH, IN_FEATURES, 6))?;
        let (mut y, mut dx) = (backend.zeros(BATCH, IN_FEATURES)?, backend.zeros(BATCH, IN_FEATURES)?);
        let mut kept = mlp.saved(BATCH)?;
        mlp.forward_train_into(x.view(), y.view_mut(), &mut kept)?;
        mlp.backward(x.view(), dy.view(), &mut kept, Some(Out::write(&mut dx)))?;
        let list = |m: &Matrix<f32, B::Memory>| -> Result<Vec<u32>> {
            Ok(backend.download(m)?.into_array().iter().map(|v| v.to_bits()).collect())
        };
        Ok((list(&y)?, list(&dx)?))
    }
    let (cpu, fake) = (run(&Cpu::new()), run(&Fake::new(Cpu::new(), 7)));
    assert_eq!(cpu.expect("the CPU runs"), fake.expect("the fake runs"));
}

swiglu_testkit::suite! {
    backend: Fake::new(Cpu::new(), 11).on_stream(2),
    config: Config {
        composed: swiglu_testkit::bounds::Rounding::Fused,
        flushes: Cpu::new().isa().map_or(&[], swiglu::Isa::flushes_subnormals_of),
        ..Config::cpu("swiglu", "everywhere")
    },
}
