//! Streams, handles and graphs.

use libtest_mimic::{Failed, Trial};
use swiglu_core::{
    Backend, Dense, Element, Error, FusedSwiGLU, Host, Matrix, Op, Options, Orientation, Out, SwiGLU, Target,
    Weights, bf16,
};
use swiglu_cuda::{Cuda, CudaError, CudaMemory, Family};

use crate::cuda;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("streams::a_matrix_of_another_stream_is_refused", another_stream),
        Trial::test("streams::handles_on_one_stream_share_matrices", same_stream),
        Trial::test("streams::two_streams_give_the_same_bits", two_streams),
        Trial::test("streams::strided_copies_arrive", strided_copies),
        Trial::test("streams::copies_on_the_device_arrive", device_copies),
        Trial::test("streams::a_long_row_is_copied_in_parts", long_row),
        Trial::test("streams::weights_that_were_just_written_are_read", written_weights),
        Trial::test("graphs::a_graph_repeats_the_call_on_new_contents", graph_repeats),
        Trial::test("graphs::a_graph_forms_cotangents", graph_forms),
        Trial::test("graphs::a_cold_call_is_not_warm", cold_call),
        Trial::test("graphs::dropped_operands_are_parked", parked),
        Trial::test("graphs::an_error_in_the_capture_ends_it", error_in_capture),
    ]
}

/// Numbers without a pattern.
pub(crate) fn noise<T: Element>(rows: usize, cols: usize) -> Result<Matrix<T, Host>, Error> {
    let mut matrix = Matrix::host_zeros(rows, cols)?;
    let mut state = 88_172_645_463_325_252u64;
    for value in matrix.view_mut().array_mut() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *value = T::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0);
    }
    Ok(matrix)
}

pub(crate) fn bits(cuda: &Cuda, m: &Matrix<f32, CudaMemory>) -> Result<Vec<u32>, Error> {
    Ok(cuda.download(m)?.into_array().iter().map(|value| value.to_bits()).collect())
}

fn another_stream() -> Result<(), Failed> {
    let (one, other) = (cuda()?, cuda()?);
    let layer = FusedSwiGLU::<f32, _>::init(&one, 8, 8, 1)?;
    let x = other.zeros(2, 8)?;
    let refused = layer.forward(&x);
    match refused {
        Err(Error::WrongStream { operand: "x", .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn same_stream() -> Result<(), Failed> {
    let one = cuda()?;
    let other = Cuda::on_stream(one.cuda_stream().clone())?;
    let layer = FusedSwiGLU::<f32, _>::init(&one, 8, 8, 1)?;
    layer.forward(&other.zeros(2, 8)?)?;
    Ok(one.synchronize()?)
}

fn two_streams() -> Result<(), Failed> {
    let run = |cuda: &Cuda| -> Result<Vec<u32>, Error> {
        let layer = FusedSwiGLU::<f32, _>::init(cuda, 100, 70, 1)?;
        bits(cuda, &layer.forward(&cuda.upload(&noise(33, 100)?)?)?)
    };
    let (one, other) = (cuda()?, cuda()?);
    if run(&one)? == run(&other)? { Ok(()) } else { Err("another stream gave other bits".into()) }
}

/// `decode` asks for the first weights while the kernel that writes them may still run.
fn written_weights() -> Result<(), Failed> {
    let cuda = cuda()?.with_family(Family::Decode);
    let (batch, in_features, hidden) = (100, 1032, 4104);
    let x = cuda.upload(&noise::<bf16>(batch, in_features)?)?;
    let right = cuda.upload(&noise::<bf16>(8, 2 * hidden)?)?;
    let mut wf = cuda.zeros::<bf16>(in_features, 2 * hidden)?;
    let mut z = cuda.zeros::<bf16>(batch, hidden)?;
    let mut forward = |left: &Matrix<bf16, CudaMemory>, waits: bool| -> Result<Vec<u16>, Error> {
        let product = (left.view(), Op::N);
        cuda.matmul(product, (right.view(), Op::N), Target::write(&mut wf))?;
        if waits {
            cuda.synchronize()?;
        }
        let w = Weights::packed(wf.view(), Orientation::InOut)?;
        cuda.forward_into(x.view(), w, z.view_mut(), Options::new())?;
        Ok(cuda.download(&z)?.into_array().iter().map(|value| value.to_bits()).collect())
    };
    let lefts = (1..5)
        .map(|scale| {
            let mut left = noise::<bf16>(in_features, 8)?;
            for value in left.view_mut().array_mut() {
                *value = bf16::from_f32(value.to_f32() * scale as f32);
            }
            cuda.upload(&left)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let expected = lefts.iter().map(|left| forward(left, true)).collect::<Result<Vec<_>, _>>()?;
    if expected[0] == expected[1] {
        return Err("other weights gave the same bits".into());
    }
    for round in 0..50 {
        for (left, expected) in lefts.iter().zip(&expected) {
            if &forward(left, false)? != expected {
                return Err(format!("round {round}: weights of another call were read").into());
            }
        }
    }
    Ok(())
}

fn strided_copies() -> Result<(), Failed> {
    let cuda = cuda()?;
    let from = noise(37, 50)?;
    let mut wide = cuda.zeros::<f32>(40, 64)?;
    cuda.copy_in(from.view().sub(1..37, 3..50)?, wide.view_mut().sub(2..38, 5..52)?)?;
    let back = cuda.download(&wide)?.into_array();
    for ((row, col), &value) in back.indexed_iter() {
        let inside = (2..38).contains(&row) && (5..52).contains(&col);
        let expected = if inside { from.view().array()[[row - 1, col - 2]] } else { 0.0 };
        if value.to_bits() != expected.to_bits() {
            return Err(format!("{value} at [{row}, {col}], expected {expected}").into());
        }
    }
    let mut strided = Matrix::<f32, Host>::host_zeros(36, 100)?;
    cuda.copy_out(wide.view().sub(2..38, 5..52)?, strided.view_mut().sub(0..36, 7..54)?)?;
    let same = strided.view().sub(0..36, 7..54)?.array() == from.view().sub(1..37, 3..50)?.array();
    if same { Ok(()) } else { Err("the way back differs".into()) }
}

fn device_copies() -> Result<(), Failed> {
    let cuda = cuda()?;
    let from = cuda.upload(&noise(30, 40)?)?;
    let mut to = cuda.zeros::<f32>(20, 64)?;
    cuda.copy(from.view().sub(3..13, 4..37)?, to.view_mut().sub(5..15, 9..42)?)?;
    let back = cuda.download(&to)?;
    let expected = cuda.download(from.view().sub(3..13, 4..37)?)?;
    let same = back.view().sub(5..15, 9..42)?.array() == expected.view().array();
    let untouched = back.view().array().iter().filter(|value| **value != 0.0).count() <= 10 * 33;
    if same && untouched { Ok(()) } else { Err("the copy differs".into()) }
}

fn long_row() -> Result<(), Failed> {
    let cuda = cuda()?;
    // 3 rows of 2.8 MB: several staging buffers each, none of them full at the end.
    let from = noise::<f32>(3, 700_001)?;
    let back = cuda.download(&cuda.upload(&from)?)?;
    if back.view().array() == from.view().array() { Ok(()) } else { Err("the copy differs".into()) }
}

fn graph_repeats() -> Result<(), Failed> {
    let cuda = cuda()?;
    let mut layer = FusedSwiGLU::<f32, _>::init(&cuda, 64, 48, 3)?.zero_bias()?;
    let (mut x, mut z) = (cuda.upload(&noise(20, 64)?)?, cuda.zeros::<f32>(20, 48)?);
    let dz = cuda.upload(&noise(20, 48)?)?;
    let mut saved = layer.saved(20)?;
    let mut step = |layer: &mut FusedSwiGLU<f32, Cuda>, x: &Matrix<f32, _>| {
        layer.forward_train_into(x.view(), z.view_mut(), &mut saved)?;
        layer.backward(x.view(), dz.view(), &mut saved, None)
    };
    step(&mut layer, &x)?;
    let mut graph = cuda.capture(|| step(&mut layer, &x))?;
    let other = noise(21, 64)?;
    cuda.copy_in(other.view().sub(1..21, 0..64)?, x.view_mut())?;
    graph.launch()?;
    let from_graph = bits(&cuda, &z)?;
    let expected = bits(&cuda, &layer.forward(&x)?)?;
    if from_graph == expected { Ok(()) } else { Err("the graph gave other bits".into()) }
}

/// dX whose blocks tell each other by counters what is formed, which are set to zero before it.
fn graph_forms() -> Result<(), Failed> {
    let cuda = cuda()?.with_family(Family::Sm90);
    let (batch, in_features, hidden) = (1160, 136, 2184);
    let mut layer = FusedSwiGLU::<bf16, _>::init(&cuda, in_features, hidden, 3)?;
    let (x, dz) = (cuda.upload(&noise(batch, in_features)?)?, cuda.upload(&noise(batch, hidden)?)?);
    let (mut z, mut dx) = (cuda.zeros(batch, hidden)?, cuda.zeros::<bf16>(batch, in_features)?);
    let mut saved = layer.saved(batch)?;
    let mut step = |dx: &mut Matrix<bf16, CudaMemory>| {
        layer.forward_train_into(x.view(), z.view_mut(), &mut saved)?;
        layer.backward(x.view(), dz.view(), &mut saved, Some(Out::write(dx)))
    };
    step(&mut dx)?;
    let values = |dx: &Matrix<bf16, CudaMemory>| -> Result<Vec<u16>, Error> {
        Ok(cuda.download(dx)?.into_array().iter().map(|value| value.to_bits()).collect())
    };
    let expected = values(&dx)?;
    let mut graph = cuda.capture(|| step(&mut dx))?;
    for _ in 0..3 {
        cuda.copy_in(Matrix::<bf16, Host>::host_zeros(batch, in_features)?.view(), dx.view_mut())?;
        graph.launch()?;
        if values(&dx)? != expected {
            return Err("the graph gave other bits".into());
        }
    }
    Ok(())
}

fn not_warm(outcome: Result<impl std::fmt::Debug, Error>) -> Result<(), Failed> {
    match outcome {
        Err(Error::Device(source)) if matches!(source.downcast_ref(), Some(CudaError::NotWarm { .. })) => {
            Ok(())
        }
        other => Err(format!("expected NotWarm, got {other:?}").into()),
    }
}

fn cold_call() -> Result<(), Failed> {
    let cuda = cuda()?;
    let layer = FusedSwiGLU::<f32, _>::init(&cuda, 8, 8, 1)?;
    let x = cuda.zeros(4, 8)?;
    // It has to allocate its result.
    not_warm(cuda.capture(|| layer.forward(&x).map(drop)))?;
    not_warm(cuda.capture(|| cuda.synchronize()))?;
    not_warm(cuda.capture(|| cuda.download(&x).map(drop)))?;
    // And the handle is as good as before.
    layer.forward(&x)?;
    Ok(cuda.synchronize()?)
}

fn parked() -> Result<(), Failed> {
    let cuda = cuda()?;
    let layer = FusedSwiGLU::<f32, _>::init(&cuda, 256, 256, 1)?;
    let (x, mut z) = (cuda.upload(&noise(64, 256)?)?, cuda.zeros::<f32>(64, 256)?);
    layer.forward_into(x.view(), z.view_mut())?;
    let expected = bits(&cuda, &z)?;
    let mut graph = cuda.capture(|| layer.forward_into(x.view(), z.view_mut()))?;
    drop(x);
    if cuda.parked() != 1 {
        return Err(format!("{} blocks are parked", cuda.parked()).into());
    }
    // New matrices must not get the memory of the dropped one.
    let scribble: Vec<_> =
        (0..8).map(|_| cuda.upload(&noise::<f32>(64, 256)?)).collect::<Result<_, Error>>()?;
    graph.launch()?;
    if bits(&cuda, &z)? != expected {
        return Err("the graph read something else than its operand".into());
    }
    drop((graph, scribble));
    if cuda.parked() == 0 { Ok(()) } else { Err("still parked without a graph".into()) }
}

fn error_in_capture() -> Result<(), Failed> {
    let cuda = cuda()?;
    let failed = cuda.capture(|| Err(Error::Spent));
    if !matches!(failed, Err(Error::Spent)) {
        return Err(format!("{failed:?}").into());
    }
    cuda.zeros::<f32>(3, 3)?;
    Ok(cuda.synchronize()?)
}
