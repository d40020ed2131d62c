//! The fake device computes what its engine computes, and fails as a device fails.

use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiglu_core::{
    AdamW, Backend, Dense, DeviceId, Element, Error, FusedSwiGLU, Gate, Gradient, Gradients, Host, Layout,
    LossTargets, MatMut, MatRef, Matrix, Memory, Op, Options, Orientation, Out, Result, Save, Scalar,
    StreamId, SwiGLU, SwiGLUMlp, Target, Unfused, WeightGrad, Weights,
};
use swiglu_testkit::{Check, Config, Fake, FakeMemory, Fault, Naive};

fn fake(ordinal: u32) -> Fake<Naive> {
    Fake::new(Naive::new(), ordinal)
}

/// Uniform in -1..1, rounded to the element type.
fn random<T: Element>(rows: usize, cols: usize, seed: u64) -> Matrix<T, Host> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut matrix = Matrix::host_zeros(rows, cols).expect("a small matrix");
    for value in matrix.view_mut().array_mut() {
        *value = T::from_f32((rng.next_u32() as f32 / u32::MAX as f32).mul_add(2.0, -1.0));
    }
    matrix
}

/// Bits of every element, row by row.
fn bits<'a, T: Element, B: Backend>(backend: &B, matrix: impl Into<MatRef<'a, T, B::Memory>>) -> Vec<u32>
where
    B::Memory: 'a,
{
    let host = backend.download(matrix).expect("a download");
    host.view().array().iter().map(|value| value.to_f32().to_bits()).collect()
}

fn scalar<T: Scalar, B: Backend>(backend: &B, matrix: &Matrix<T, B::Memory>) -> Result<T> {
    Ok(backend.download(matrix)?.view().array()[[0, 0]])
}

#[test]
fn the_suite_passes_on_the_device() {
    let device = fake(119);
    let config = Config {
        orientation_invariant: true,
        zero_column_invariant: true,
        ..Config::cpu("swiglu-testkit", "fake")
    };
    for check in Check::ALL {
        match check.run(&device, &config, 60, 0) {
            Ok(report) => println!("{check}: {report}"),
            Err(failure) => panic!("{check}: {failure}"),
        }
    }
    assert_eq!(device.live_blocks(), 0, "blocks left");
}

const BATCH: usize = 24;
const FEATURES: usize = 12;
const HIDDEN: usize = 10;
const CLASSES: usize = 4;

/// A small training run, written once for every backend: loss bits and hits of each step.
fn train<T: Element, B: SwiGLU<T> + Dense<T>>(backend: &B, steps: usize) -> Result<Vec<(u32, u32)>> {
    let x = backend.upload(&random::<T>(BATCH, FEATURES, 1))?;
    let mut labels = Matrix::<u32, Host>::host_zeros(BATCH, 1)?;
    for ((row, _), label) in labels.view_mut().array_mut().indexed_iter_mut() {
        *label = (row * 7 % CLASSES) as u32;
    }
    let labels = backend.upload(&labels)?;
    let mut layer = FusedSwiGLU::<T, B>::init(backend, FEATURES, HIDDEN, 2)?.zero_bias()?;
    let mut layer_optimizers = layer.optimizers()?;
    let mut head = backend.upload(&random::<T>(HIDDEN, CLASSES, 3))?;
    let mut head_optimizer = backend.optimizer(head.view())?;
    let mut dhead = backend.zeros::<f32>(HIDDEN, CLASSES)?;
    let (mut logits, mut dlogits) = (backend.zeros(BATCH, CLASSES)?, backend.zeros(BATCH, CLASSES)?);
    let (mut loss, mut correct) = (backend.zeros::<f32>(1, 1)?, backend.zeros::<u32>(1, 1)?);
    let mut dz = backend.zeros(BATCH, HIDDEN)?;
    let hyper = AdamW::new(0.03);
    let mut history = Vec::new();
    for _ in 0..steps {
        let (z, mut saved) = layer.forward_train(&x)?;
        backend.matmul((z.view(), Op::N), (head.view(), Op::N), Target::write(&mut logits))?;
        let targets = LossTargets {
            loss: loss.view_mut(),
            correct: Some(correct.view_mut()),
            dlogits: Some(dlogits.view_mut()),
        };
        backend.cross_entropy(logits.view(), labels.view(), targets)?;
        backend.matmul((dlogits.view(), Op::N), (head.view(), Op::T), Target::write(&mut dz))?;
        backend.matmul((z.view(), Op::T), (dlogits.view(), Op::N), Target::write_f32(&mut dhead))?;
        layer.backward(&x, &dz, &mut saved, None)?;
        for (parameter, optimizer) in layer.parameters().zip(&mut layer_optimizers) {
            backend.adamw(hyper, Gradient::F32(parameter.gradient), optimizer, parameter.value)?;
        }
        backend.adamw(hyper, Gradient::F32(dhead.view()), &mut head_optimizer, head.view_mut())?;
        history.push((scalar(backend, &loss)?.to_bits(), scalar(backend, &correct)?));
    }
    Ok(history)
}

fn training_learns_and_agrees<T: Element>(ordinal: u32) {
    let expected = train::<T, _>(&Naive::new(), 60).expect("training on the host");
    let losses: Vec<f32> = expected.iter().map(|&(loss, _)| f32::from_bits(loss)).collect();
    assert!(losses[0] > 1.0 && losses[59] < 0.5 * losses[0], "{}: losses {losses:?}", T::DTYPE);
    assert!(expected[59].1 > expected[0].1, "{}: hits {expected:?}", T::DTYPE);
    let got = train::<T, _>(&fake(ordinal), 60).expect("training on the fake device");
    assert_eq!(got, expected, "{}: loss bits and hits", T::DTYPE);
}

#[test]
fn training_learns_and_agrees_with_the_engine() {
    training_learns_and_agrees::<f32>(100);
    training_learns_and_agrees::<bf16>(101);
}

#[test]
fn the_unfused_op_is_the_same_over_device_and_engine() {
    let run = |history: Result<Vec<(u32, u32)>>| history.expect("training");
    let device = run(train::<f32, _>(&Unfused(fake(102)), 5));
    assert_eq!(device, run(train::<f32, _>(&Unfused(Naive::new()), 5)), "loss bits");
}

/// Everything that a layer produces, as bits: z, dx, gradients, and the parameters after a step.
fn layer_bits<T: Element, B: SwiGLU<T> + Dense<T>>(backend: &B, save: Save, gate: Gate) -> Vec<Vec<u32>> {
    let run = || -> Result<Vec<Vec<u32>>> {
        let (wf, bias) = (random::<T>(FEATURES, 2 * HIDDEN, 5), random::<T>(1, 2 * HIDDEN, 6));
        let layer = FusedSwiGLU::<T, B>::load(backend, wf.view(), Orientation::InOut)?;
        let mut layer = layer.bias(bias.view())?.save_mode(save).gate(gate).accumulate(true);
        // Operands inside of larger matrices: their rows are apart.
        let (x, dz) = (backend.upload(&random::<T>(9, 20, 7))?, backend.upload(&random::<T>(9, 20, 8))?);
        let x = x.view().sub(1..8, 3..3 + FEATURES)?;
        let dz = dz.view().sub(2..9, 5..5 + HIDDEN)?;
        let mut dx = backend.upload(&random::<T>(9, 20, 9))?;
        let mut z = backend.upload(&random::<T>(9, 20, 10))?;
        let mut saved = layer.saved(8)?;
        for _ in 0..2 {
            layer.forward_train_into(x, z.view_mut().sub(1..8, 4..4 + HIDDEN)?, &mut saved)?;
            let to = Out::add(dx.view_mut().sub(0..7, 8..8 + FEATURES)?);
            layer.backward(x, dz, &mut saved, Some(to))?;
        }
        let mut all = vec![bits(backend, &z), bits(backend, &dx)];
        let mut optimizers = layer.optimizers()?;
        for (parameter, optimizer) in layer.parameters().zip(&mut optimizers) {
            all.push(bits(backend, parameter.gradient));
            backend.adamw(AdamW::new(0.1), Gradient::F32(parameter.gradient), optimizer, parameter.value)?;
        }
        let (wf, bias) = layer.save()?;
        all.push(bits(&Naive::new(), &wf));
        all.extend(bias.map(|bias| bits(&Naive::new(), &bias)));
        Ok(all)
    };
    run().expect("a layer's step")
}

#[test]
fn layers_give_the_bits_of_the_engine() {
    for save in [Save::PreActivations, Save::Input] {
        for gate in Gate::ALL {
            let expected = layer_bits::<f32, _>(&Naive::new(), save, gate);
            assert_eq!(expected.len(), 6, "results compared");
            assert_eq!(layer_bits::<f32, _>(&fake(103), save, gate), expected, "f32 {gate} {save:?}");
            let expected = layer_bits::<bf16, _>(&Naive::new(), save, gate);
            assert_eq!(layer_bits::<bf16, _>(&fake(104), save, gate), expected, "bf16 {gate} {save:?}");
        }
    }
}

fn mlp_bits<T: Element, B: SwiGLU<T> + Dense<T>>(backend: &B) -> Vec<Vec<u32>> {
    let run = || -> Result<Vec<Vec<u32>>> {
        let mut mlp = SwiGLUMlp::<T, B>::init(backend, FEATURES, HIDDEN, 11)?;
        let x = backend.upload(&random::<T>(7, FEATURES, 12))?;
        let dy = backend.upload(&random::<T>(7, FEATURES, 13))?;
        let (mut y, mut dx) = (backend.zeros(7, FEATURES)?, backend.zeros(7, FEATURES)?);
        let mut kept = mlp.saved(8)?;
        mlp.forward_train_into(x.view(), y.view_mut(), &mut kept)?;
        mlp.backward(x.view(), dy.view(), &mut kept, Some(Out::write(&mut dx)))?;
        assert_eq!(bits(backend, &mlp.forward(&x)?), bits(backend, &y), "inference and training");
        let mut all = vec![bits(backend, &y), bits(backend, &dx)];
        all.extend(mlp.parameters().map(|parameter| bits(backend, parameter.gradient)));
        Ok(all)
    };
    run().expect("an MLP's step")
}

#[test]
fn an_mlp_gives_the_bits_of_the_engine() {
    assert_eq!(mlp_bits::<f32, _>(&fake(105)), mlp_bits::<f32, _>(&Naive::new()), "f32");
    assert_eq!(mlp_bits::<bf16, _>(&fake(105)), mlp_bits::<bf16, _>(&Naive::new()), "bf16");
}

/// x, wf and z of one small call on a backend.
fn operands<B: Backend>(
    backend: &B,
) -> (Matrix<f32, B::Memory>, Matrix<f32, B::Memory>, Matrix<f32, B::Memory>) {
    let upload = |rows, cols, seed| backend.upload(&random::<f32>(rows, cols, seed)).expect("an upload");
    (upload(3, 5, 20), upload(5, 8, 21), upload(3, 4, 22))
}

fn forward(
    device: &Fake<Naive>,
    x: &Matrix<f32, FakeMemory>,
    wf: &Matrix<f32, FakeMemory>,
    z: &mut Matrix<f32, FakeMemory>,
) -> Result<()> {
    let w = Weights::packed(wf.view(), Orientation::InOut)?;
    device.forward_into(x.view(), w, z.view_mut(), Options::new())
}

#[test]
fn operands_of_another_device_are_refused() {
    let (here, there) = (fake(106), fake(107));
    let (x, wf, mut z) = operands(&here);
    let (other_x, other_wf, mut other_z) = operands(&there);
    let refused = |result: Result<()>, name: &str| match result {
        Err(Error::WrongDevice { operand, expected, got }) => {
            assert_eq!((expected, got), (DeviceId::new(106), DeviceId::new(107)), "{name}");
            assert!(operand.ends_with(name), "{operand} instead of {name}");
        }
        other => panic!("{name}: {other:?}"),
    };
    refused(forward(&here, &other_x, &wf, &mut z), "x");
    refused(forward(&here, &x, &other_wf, &mut z), "weights");
    refused(forward(&here, &x, &wf, &mut other_z), "z");
    refused(here.download(&other_z).map(|_| ()), "source");
    refused(here.copy_in(random::<f32>(3, 4, 1).view(), other_z.view_mut()), "destination");
    forward(&here, &x, &wf, &mut z).expect("operands of the right device");
}

#[test]
fn operands_of_another_stream_are_refused() {
    let one = fake(108);
    let two = one.on_stream(2);
    assert_eq!((one.stream(), two.stream()), (StreamId::new(1), StreamId::new(2)), "streams");
    let (x, wf, mut z) = operands(&one);
    let (other_x, _, mut other_z) = operands(&two);
    let refused = |result: Result<()>, name: &str| match result {
        Err(Error::WrongStream { operand, expected, got }) => {
            assert_eq!((operand, expected, got), (name, one.stream(), two.stream()), "{name}");
        }
        other => panic!("{name}: {other:?}"),
    };
    refused(forward(&one, &other_x, &wf, &mut z), "x");
    refused(forward(&one, &x, &wf, &mut other_z), "z");
    refused(one.download(&other_z).map(|_| ()), "source");
    forward(&one.clone(), &x, &wf, &mut z).expect("a clone is the same stream");
}

fn lost<R>(result: Result<R>) -> bool {
    matches!(result, Err(Error::Device(_)))
}

#[test]
fn a_fault_surfaces_in_the_call_after_the_next() {
    let device = fake(109);
    let (x, wf, mut z) = operands(&device);
    let before = bits(&device, &z);
    device.inject(Fault::Launch);
    device.synchronize().expect("nothing has failed yet");
    assert_eq!(bits(&device, &z), before, "a download before the launch that fails");
    forward(&device, &x, &wf, &mut z).expect("enqueued");
    let fresh = device.zeros::<f32>(2, 2).expect("an allocation does not wait");
    assert!(lost(forward(&device, &x, &wf, &mut z)), "the next call");
    assert!(lost(device.synchronize()), "synchronize");
    drop(fresh);
}

#[test]
fn a_lost_device_stays_lost_for_every_handle() {
    let device = fake(110);
    let (clone, other_stream, bystander) = (device.clone(), device.on_stream(9), fake(110));
    let (x, wf, mut z) = operands(&device);
    device.inject(Fault::Launch);
    forward(&device, &x, &wf, &mut z).expect("enqueued");
    assert!(lost(clone.synchronize()), "the clone synchronizes");
    for handle in [&device, &clone, &other_stream] {
        for _ in 0..3 {
            assert!(lost(handle.synchronize()), "synchronize");
            assert!(lost(handle.zeros::<f32>(1, 1)), "zeros");
            assert!(lost(handle.upload(&random::<f32>(1, 1, 1))), "upload");
        }
    }
    assert!(lost(device.download(&z)), "download");
    assert!(lost(forward(&device, &x, &wf, &mut z)), "forward");
    bystander.synchronize().expect("another device of the same ordinal");
}

#[test]
fn a_download_reports_a_fault_and_leaves_the_host_alone() {
    let device = fake(111);
    let (x, wf, mut z) = operands(&device);
    device.inject(Fault::Launch);
    forward(&device, &x, &wf, &mut z).expect("enqueued");
    let mut host = random::<f32>(3, 4, 30);
    let before = host.view().array().to_owned();
    assert!(lost(device.copy_out(z.view(), host.view_mut())), "copy_out");
    assert_eq!(host.view().array(), before, "host memory");
    assert!(lost(device.download(&z)), "download");
}

#[test]
fn a_fault_in_the_middle_of_training_is_an_error_not_a_number() {
    for launches in 0..12 {
        let device = fake(112);
        let layer = FusedSwiGLU::<f32, _>::init(&device, FEATURES, HIDDEN, 2).expect("a layer");
        let x = device.upload(&random::<f32>(4, FEATURES, 1)).expect("x");
        for _ in 0..launches {
            layer.forward(&x).expect("a healthy call");
        }
        device.inject(Fault::Launch);
        assert!(lost(train::<f32, _>(&device, 2)), "after {launches} launches");
    }
}

/// One training run under each allocation failure in turn, until none is left to fail.
#[test]
fn every_allocation_may_fail_and_the_next_run_is_right() {
    let device = fake(113);
    let expected = train::<bf16, _>(&Naive::new(), 2).expect("training on the host");
    let mut failures = 0;
    loop {
        device.inject(Fault::Allocation { after: failures });
        let result = train::<bf16, _>(&device, 2);
        if device.allocation_fault_pending() {
            assert_eq!(result.expect("a clean run"), expected, "bits of the clean run");
            break;
        }
        assert!(
            matches!(result, Err(Error::OutOfMemory { bytes }) if bytes > 0),
            "failure {failures}: {result:?}"
        );
        assert_eq!(device.live_blocks(), 0, "blocks leaked by failure {failures}");
        assert_eq!(
            train::<bf16, _>(&device, 2).ok(),
            Some(expected.clone()),
            "right after failure {failures}"
        );
        failures += 1;
    }
    assert!(failures > 20, "only {failures} allocations were made to fail");
}

/// A layer lives through failures of its own calls and goes on with the right bits.
#[test]
fn a_layer_survives_allocation_failures() {
    let device = fake(114);
    let run = |failing: bool| -> Vec<Vec<u32>> {
        let mut layer = FusedSwiGLU::<f32, _>::init(&device, FEATURES, HIDDEN, 2).expect("a layer");
        let x = device.upload(&random::<f32>(4, FEATURES, 40)).expect("x");
        let dz = device.upload(&random::<f32>(4, HIDDEN, 41)).expect("dz");
        if failing {
            // z, and the saved values.
            for after in 0..2 {
                device.inject(Fault::Allocation { after });
                let result = layer.forward_train(&x);
                assert!(matches!(result, Err(Error::OutOfMemory { .. })), "allocation {after}: {result:?}");
            }
            device.inject(Fault::Allocation { after: 2 });
            layer.forward_train(&x).expect("a call that makes two allocations");
            assert!(matches!(device.zeros::<f32>(1, 1), Err(Error::OutOfMemory { bytes: 4 })), "the third");
        }
        let (z, mut saved) = layer.forward_train(&x).expect("after recovery");
        layer.backward(&x, &dz, &mut saved, None).expect("backward");
        assert!(matches!(layer.backward(&x, &dz, &mut saved, None), Err(Error::Spent)), "a second backward");
        vec![bits(&device, &z), bits(&device, layer.dwf().expect("a trained layer"))]
    };
    assert_eq!(run(true), run(false), "bits after failures");
    assert_eq!(device.live_blocks(), 0, "blocks left");
}

#[test]
fn views_into_foreign_blocks_are_bounded() {
    let device = fake(115);
    let host = random::<f32>(6, 10, 50);
    let mut block = device.upload(&host).expect("an upload").into_owned();
    let layout = |rows, cols, stride| Layout::strided(rows, cols, stride).expect("a layout");
    let part = MatRef::<f32, FakeMemory>::of(&block, 12, layout(4, 5, 10)).expect("a part");
    let expected = host.view().sub(1..5, 2..7).expect("the same part");
    assert_eq!(
        device.download(part).expect("a download").into_array(),
        expected.array(),
        "a part of a block"
    );
    for (offset, rows, cols, stride) in [(0, 7, 10, 10), (1, 6, 10, 10), (61, 1, 1, 1), (usize::MAX, 2, 2, 2)]
    {
        let view = MatRef::<f32, FakeMemory>::of(&block, offset, layout(rows, cols, stride));
        assert!(
            matches!(view, Err(Error::OutOfBounds { len, .. }) if len == 60 - offset.min(60)),
            "{offset} {rows}"
        );
        let view = MatMut::<f32, FakeMemory>::of(&mut block, offset, layout(rows, cols, stride));
        assert!(matches!(view, Err(Error::OutOfBounds { .. })), "for writing: {offset} {rows}");
    }
    let to = MatMut::<f32, FakeMemory>::of(&mut block, 59, layout(1, 1, 1)).expect("the last element");
    device.copy_in(random::<f32>(1, 1, 51).view(), to).expect("a write");
    assert!(
        matches!(Matrix::<f32, FakeMemory>::from_owned(block, 61, 1), Err(Error::OutOfBounds { .. })),
        "a matrix"
    );
}

#[test]
fn addresses_tell_blocks_and_elements_apart() {
    let device = fake(116);
    let (a, b) = (device.zeros::<bf16>(4, 8).expect("a"), device.zeros::<bf16>(4, 8).expect("b"));
    let place = |m: MatRef<'_, bf16, FakeMemory>| FakeMemory::place(m.ptr());
    let (at_a, at_b) = (place(a.view()), place(b.view()));
    assert_eq!((at_a.device, at_a.stream), (device.device(), device.stream()), "bound to device and stream");
    assert!(at_a.address.abs_diff(at_b.address) >= 64, "two blocks share bytes");
    let inner = place(a.view().sub(1..3, 2..5).expect("a part"));
    assert_eq!(inner.address, at_a.address + 2 * 10, "row 1, column 2 of 16-bit elements");
    assert_eq!(device.live_blocks(), 2, "blocks alive");
    drop((a, b));
    assert_eq!(device.live_blocks(), 0, "blocks freed");
}

#[test]
fn a_label_past_the_last_class_is_refused_before_anything_is_written() {
    let device = fake(117);
    let logits = device.upload(&random::<f32>(3, CLASSES, 60)).expect("logits");
    let mut labels = Matrix::<u32, Host>::host_zeros(3, 1).expect("labels");
    labels.view_mut().array_mut()[[2, 0]] = CLASSES as u32;
    let labels = device.upload(&labels).expect("labels");
    let mut loss = device.upload(&random::<f32>(1, 1, 61)).expect("loss");
    let before = bits(&device, &loss);
    let targets = LossTargets { loss: loss.view_mut(), correct: None, dlogits: None };
    let result = device.cross_entropy(logits.view(), labels.view(), targets);
    assert!(matches!(result, Err(Error::Label { row: 2, label: 4, classes: 4 })), "{result:?}");
    assert_eq!(bits(&device, &loss), before, "loss");
}

#[test]
fn frozen_weights_and_each_gradient_alone() {
    let (host, device) = (Naive::new(), fake(118));
    let frozen = FusedSwiGLU::<f32, _>::init(&device, FEATURES, HIDDEN, 2)
        .and_then(|layer| layer.weight_grad(WeightGrad::Frozen));
    assert_eq!(frozen.expect("a frozen layer").parameters().count(), 0, "parameters of a frozen layer");

    fn each<B: SwiGLU<f32>>(backend: &B) -> Result<Vec<Vec<u32>>> {
        let (x, wf, dz) = operands(backend);
        let w = Weights::packed(wf.view(), Orientation::InOut)?;
        let mut all = Vec::new();
        for wanted in 0..3 {
            let (_, mut saved) = backend.forward_train(x.view(), w, Save::PreActivations, Options::new())?;
            let mut dx = backend.upload(&random::<f32>(3, 5, 70))?;
            let mut dwf = backend.upload(&random::<f32>(5, 8, 71))?;
            let mut dbias = backend.upload(&random::<f32>(1, 8, 72))?;
            let gradients = match wanted {
                0 => Gradients::new().dx(Out::write(&mut dx)),
                1 => Gradients::new().dwf(Target::add(&mut dwf)),
                _ => Gradients::new().dbias(Target::write_f32(&mut dbias)),
            };
            backend.backward(x.view(), w, dz.view(), &mut saved, gradients, Options::new())?;
            all.extend([bits(backend, &dx), bits(backend, &dwf), bits(backend, &dbias)]);
        }
        Ok(all)
    }
    assert_eq!(
        each(&device).expect("on the device"),
        each(&host).expect("on the host"),
        "each gradient alone"
    );
}
