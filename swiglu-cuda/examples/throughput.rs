//! How fast the kernels are on this GPU: `cargo run --release -p swiglu-cuda --example throughput`.
//!
//! Medians over rounds, each of several calls between two events on the stream; random data; each call reads inputs of
//! its own out of several sets, so that none of them is in L2 from the call before. Then the time of a first call in a
//! process, and what a warm call costs the host.

use std::time::Instant;

use cudarc::driver::sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
use swiglu_core::{
    Backend, Element, Error, Gradients, Host, Matrix, Options, Orientation, Out, Precision, Result, Save,
    SwiGLU, Target, Weights, bf16,
};
use swiglu_cuda::{Cuda, CudaMemory, Family, cudarc};

/// Rounds, of which the median counts, and calls in each.
const ROUNDS: usize = 7;
const CALLS: usize = 6;
/// Sets of inputs that the calls take in turn.
const SETS: usize = 2;

/// Uniform numbers from -1 to 1.
fn noise<T: Element>(cuda: &Cuda, rows: usize, cols: usize, seed: u64) -> Result<Matrix<T, CudaMemory>> {
    let mut matrix = Matrix::<T, Host>::host_zeros(rows, cols)?;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for value in matrix.view_mut().array_mut() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *value = T::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0);
    }
    cuda.upload(&matrix)
}

/// Median seconds of a call.
fn time(cuda: &Cuda, mut call: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let driver = |e: cudarc::driver::DriverError| Error::Device(Box::new(e));
    for set in 0..SETS {
        call(set)?;
    }
    let stream = cuda.cuda_stream();
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        let start = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(driver)?;
        for index in 0..CALLS {
            call(index % SETS)?;
        }
        let end = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(driver)?;
        seconds.push(f64::from(start.elapsed_ms(&end).map_err(driver)?) * 1e-3 / CALLS as f64);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[ROUNDS / 2])
}

struct Shape {
    batch: usize,
    in_features: usize,
    hidden: usize,
}

/// Forward, and backward from saved pre-activations, at one shape.
fn measure<T: Element>(cuda: &Cuda, shape: &Shape, options: Options) -> Result<()>
where
    Cuda: SwiGLU<T>,
{
    let &Shape { batch, in_features, hidden } = shape;
    let sets = |rows, cols, seed: u64| -> Result<Vec<_>> {
        (0..SETS as u64).map(|set| noise::<T>(cuda, rows, cols, seed + set)).collect()
    };
    let (x, wf) = (sets(batch, in_features, 1)?, sets(in_features, 2 * hidden, 11)?);
    let dz = noise::<T>(cuda, batch, hidden, 21)?;
    let mut z = cuda.zeros::<T>(batch, hidden)?;
    let weights = |set: usize| Weights::packed(wf[set].view(), Orientation::InOut);
    let flops = 4.0 * batch as f64 * in_features as f64 * hidden as f64;
    let forward = time(cuda, |set| cuda.forward_into(x[set].view(), weights(set)?, z.view_mut(), options))?;
    let mut saved = SwiGLU::<T>::saved(cuda, Save::PreActivations, batch, hidden)?;
    let saving = time(cuda, |set| {
        cuda.forward_train_into(x[set].view(), weights(set)?, z.view_mut(), &mut saved, options)
    })?;
    let (mut dx, mut dwf) = (cuda.zeros::<T>(batch, in_features)?, cuda.zeros::<T>(in_features, 2 * hidden)?);
    let both = time(cuda, |set| {
        let (x, w) = (x[set].view(), weights(set)?);
        cuda.forward_train_into(x, w, z.view_mut(), &mut saved, options)?;
        let gradients = Gradients::new().dx(Out::write(&mut dx)).dwf(Target::write(&mut dwf));
        cuda.backward(x, w, dz.view(), &mut saved, gradients, options)
    })?;
    let rate = |flops: f64, seconds: f64| flops / seconds / 1e12;
    println!(
        "{:<5} {batch:>5} {in_features:>5} {hidden:>6}  forward {:8.3} ms {:6.1} TFLOP/s  saving {:8.3} ms {:6.1}  with \
         backward {:8.3} ms {:6.1}",
        T::DTYPE.to_string(),
        forward * 1e3,
        rate(flops, forward),
        saving * 1e3,
        rate(flops, saving),
        both * 1e3,
        rate(3.0 * flops, both),
    );
    Ok(())
}

/// What a warm call costs the host, while the device is busy with others.
fn host_cost(cuda: &Cuda) -> Result<()> {
    let (x, wf) = (noise::<f32>(cuda, 64, 64, 1)?, noise::<f32>(cuda, 64, 128, 2)?);
    let mut z = cuda.zeros::<f32>(64, 64)?;
    let w = Weights::packed(wf.view(), Orientation::InOut)?;
    let mut call = || cuda.forward_into(x.view(), w, z.view_mut(), Options::new());
    call()?;
    cuda.synchronize()?;
    // Fewer than the 1024 launches that a stream takes before it makes the host wait.
    let (start, calls) = (Instant::now(), 500);
    for _ in 0..calls {
        call()?;
    }
    let cost = start.elapsed().as_secs_f64() / f64::from(calls);
    cuda.synchronize()?;
    println!("host cost of a warm call: {:.2} us", cost * 1e6);
    Ok(())
}

fn main() -> Result<()> {
    let started = Instant::now();
    let cuda = Cuda::new(0)?;
    let opened = started.elapsed().as_secs_f64();
    let (x, wf) = (cuda.zeros::<f32>(128, 784)?, cuda.zeros::<f32>(784, 1024)?);
    let first = Instant::now();
    cuda.forward(x.view(), Weights::packed(wf.view(), Orientation::InOut)?, Options::new())?;
    cuda.synchronize()?;
    println!(
        "{}: opened in {opened:.3} s, first call {:.3} s, cache {:?}",
        cuda.name(),
        first.elapsed().as_secs_f64(),
        cuda.cache_use()
    );
    host_cost(&cuda)?;
    let shapes = [(8192, 4096, 14336), (4096, 4096, 11008), (4096, 1024, 4096), (1024, 784, 2048)];
    let shapes = shapes.map(|(batch, in_features, hidden)| Shape { batch, in_features, hidden });
    for shape in &shapes {
        measure::<bf16>(&cuda, shape, Options::new())?;
    }
    measure::<f32>(&cuda, &shapes[1], Options::new())?;
    measure::<f32>(&cuda, &shapes[1], Options::new().precision(Precision::Tf32))?;
    println!("simt, forced:");
    measure::<bf16>(&cuda.clone().with_family(Family::Simt), &shapes[2], Options::new())
}
