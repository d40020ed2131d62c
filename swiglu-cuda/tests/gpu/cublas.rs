//! What is special about products by cuBLAS; that they are right is the suite's to say.

use libtest_mimic::{Failed, Trial};
use swiglu_core::{
    Backend, Dense, Element, Error, FusedSwiGLU, Gradients, Matrix, Op, Options, Out, Precision, Route,
    SwiGLU, Target, Unfused, bf16,
};
use swiglu_cuda::{Cuda, CudaError, CudaMemory};

use crate::cuda;
use crate::streams::noise;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cublas::it_is_named", named),
        Trial::test("cublas::a_graph_repeats_a_composed_step", graph),
        Trial::test("cublas::a_cold_composed_call_is_not_warm", cold),
        Trial::test("cublas::handles_give_the_same_bits", same_bits),
        Trial::test("cublas::a_product_of_nothing_is_zeros", nothing),
        Trial::test("cublas::tf32_is_used_only_where_it_is_asked_for", tf32),
    ]
}

const COMPOSED: Options = Options::new().route(Route::Composed);

fn values<T: Element>(cuda: &Cuda, m: &Matrix<T, CudaMemory>) -> Result<Vec<f32>, Error> {
    Ok(cuda.download(m)?.into_array().iter().map(|value| value.to_f32()).collect())
}

/// A composed forward and backward, without allocating.
struct Step<T: Element> {
    cuda: Cuda,
    layer: FusedSwiGLU<T, Cuda>,
    x: Matrix<T, CudaMemory>,
    z: Matrix<T, CudaMemory>,
    dz: Matrix<T, CudaMemory>,
    dx: Matrix<T, CudaMemory>,
    dwf: Matrix<f32, CudaMemory>,
}

impl<T: Element> Step<T>
where
    Cuda: SwiGLU<T>,
{
    const SHAPE: (usize, usize, usize) = (37, 72, 40);

    fn new(cuda: Cuda) -> Result<Self, Error> {
        let (batch, in_features, hidden) = Self::SHAPE;
        Ok(Self {
            layer: FusedSwiGLU::init(&cuda, in_features, hidden, 3)?.zero_bias()?,
            x: cuda.upload(&noise(batch, in_features)?)?,
            z: cuda.zeros(batch, hidden)?,
            dz: cuda.upload(&noise(batch, hidden)?)?,
            dx: cuda.zeros(batch, in_features)?,
            dwf: cuda.zeros(in_features, 2 * hidden)?,
            cuda,
        })
    }

    /// `saved` has been made for the shape.
    fn run(&mut self, saved: &mut swiglu_core::Saved<T, CudaMemory>) -> Result<(), Error> {
        let Self { cuda, layer, x, z, dz, dx, dwf } = self;
        let w = layer.weights()?;
        cuda.forward_train_into(x.view(), w, z.view_mut(), saved, COMPOSED)?;
        let gradients = Gradients::new().dx(Out::write(dx)).dwf(Target::write_f32(dwf));
        cuda.backward(x.view(), layer.weights()?, dz.view(), saved, gradients, COMPOSED)
    }

    fn results(&self) -> Result<Vec<u32>, Error> {
        let (z, dx) = (values(&self.cuda, &self.z)?, values(&self.cuda, &self.dx)?);
        let dwf = values(&self.cuda, &self.dwf)?;
        Ok(z.into_iter().chain(dx).chain(dwf).map(f32::to_bits).collect())
    }
}

fn named() -> Result<(), Failed> {
    let cuda = cuda()?.with_cublas();
    let (info, name) = (cuda.cublas()?, Unfused(cuda).name());
    println!("{info}");
    let good = info.path.is_absolute() && info.version.major >= 12 && name.contains("cuBLAS");
    if good { Ok(()) } else { Err(format!("{name}, by {info}").into()) }
}

fn graph() -> Result<(), Failed> {
    let mut step = Step::<bf16>::new(cuda()?)?;
    let mut saved = step.layer.saved(Step::<bf16>::SHAPE.0)?;
    step.run(&mut saved)?;
    let expected = step.results()?;
    let cuda = step.cuda.clone();
    let mut graph = cuda.capture(|| step.run(&mut saved))?;
    // Capturing runs nothing: what the graph writes is seen only where it was not before.
    let zeros = Matrix::host_zeros(step.z.rows(), step.z.cols())?;
    cuda.copy_in(zeros.view(), step.z.view_mut())?;
    for _ in 0..2 {
        graph.launch()?;
        if step.results()? != expected {
            return Err("the graph gave other bits".into());
        }
    }
    Ok(())
}

fn cold() -> Result<(), Failed> {
    let cuda = cuda()?;
    let (a, b) = (cuda.upload(&noise::<f32>(8, 8)?)?, cuda.upload(&noise::<f32>(8, 8)?)?);
    let mut c = cuda.zeros::<f32>(8, 8)?;
    let blas = cuda.clone().with_cublas();
    let mut multiply = || blas.matmul((a.view(), Op::N), (b.view(), Op::N), Target::write(&mut c));
    match cuda.capture(&mut multiply) {
        Err(Error::Device(source)) if matches!(source.downcast_ref(), Some(CudaError::NotWarm { .. })) => {}
        other => return Err(format!("expected NotWarm, got {other:?}").into()),
    }
    // And the handle is as good as before.
    multiply()?;
    cuda.capture(&mut multiply)?.launch()?;
    Ok(cuda.synchronize()?)
}

fn same_bits() -> Result<(), Failed> {
    let run = || -> Result<Vec<u32>, Failed> {
        let mut step = Step::<f32>::new(cuda()?)?;
        let mut saved = step.layer.saved(Step::<f32>::SHAPE.0)?;
        step.run(&mut saved)?;
        Ok(step.results()?)
    };
    if run()? == run()? { Ok(()) } else { Err("another handle gave other bits".into()) }
}

fn nothing() -> Result<(), Failed> {
    let cuda = cuda()?.with_cublas();
    let old = noise::<bf16>(5, 7)?;
    let (a, b) = (cuda.zeros::<bf16>(5, 0)?, cuda.zeros::<bf16>(7, 0)?);
    let mut c = cuda.upload(&old)?;
    cuda.matmul((a.view(), Op::N), (b.view(), Op::T), Target::add(&mut c))?;
    if cuda.download(&c)?.view().array() != old.view().array() {
        return Err("a sum of nothing was added".into());
    }
    // Only the inside of c.
    cuda.matmul(
        (a.view().sub(0..3, 0..0)?, Op::N),
        (b.view().sub(0..2, 0..0)?, Op::T),
        Target::write(c.view_mut().sub(1..4, 2..4)?),
    )?;
    for ((row, col), value) in cuda.download(&c)?.into_array().indexed_iter() {
        let inside = (1..4).contains(&row) && (2..4).contains(&col);
        let expected = if inside { 0.0 } else { old.view().array()[[row, col]].to_f32() };
        if value.to_f32() != expected {
            return Err(format!("{value} at [{row}, {col}], expected {expected}").into());
        }
    }
    Ok(())
}

fn tf32() -> Result<(), Failed> {
    let cuda = cuda()?;
    if cuda.preflight().gpu.compute_capability.major < 8 {
        return Ok(());
    }
    let layer = FusedSwiGLU::<f32, _>::init(&cuda, 512, 256, 3)?;
    let x = cuda.upload(&noise::<f32>(256, 512)?)?;
    let run = |options: Options| -> Result<Vec<f32>, Error> {
        values(&cuda, &cuda.forward(x.view(), layer.weights()?, options)?)
    };
    let (fused, strict) = (run(Options::new())?, run(COMPOSED)?);
    let rounded = run(COMPOSED.precision(Precision::Tf32))?;
    let off = |other: &[f32]| {
        fused.iter().zip(other).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / fused.len() as f64
    };
    let (strict, rounded) = (off(&strict), off(&rounded));
    // Rounding to 11 bits moves results by thousands of times what another order of summation does.
    if strict * 50.0 < rounded {
        Ok(())
    } else {
        Err(format!("off by {strict:e}, and by {rounded:e}").into())
    }
}
