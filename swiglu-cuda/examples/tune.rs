//! How far the planner's choices are from the fastest kernels with the same bits on this GPU:
//! `cargo run --release -p swiglu-cuda --example tune -- [SHAPES] [DTYPE] [ORIENTATION]`, where shapes are B,I,D separated
//! by semicolons.
//!
//! Tunes every product of each shape, prints what was timed, and last the largest ratio of all. What was found stays on
//! disk for handles with `SWIGLU_TUNE=1`.

use std::time::Instant;

use swiglu_core::{Backend, Dims, Dtype, Options, Orientation};
use swiglu_cuda::{Cuda, Tuning};

/// Large language models' layers, and smaller ones.
const SHAPES: &str = "8192,4096,14336;8192,4096,11008;8192,2048,8192;8192,8192,28672;4096,1024,4096;2048,768,2048;\
                      8192,256,1024";

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn shape(text: &str) -> Outcome<Dims> {
    let numbers = text.split(',').map(|number| number.trim().parse());
    match numbers.collect::<Result<Vec<usize>, _>>()?.as_slice() {
        &[batch, in_features, hidden] => Ok(Dims { batch, in_features, hidden }),
        _ => Err(format!("{text:?} is not B,I,D").into()),
    }
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default: &'static str| arguments.get(index).map_or(default, String::as_str);
    let shapes = argument(0, SHAPES).split(';').map(shape).collect::<Outcome<Vec<_>>>()?;
    let dtype = match argument(1, "bf16") {
        "bf16" => Dtype::Bf16,
        "f16" => Dtype::F16,
        "f32" => Dtype::F32,
        other => return Err(format!("{other:?} is none of bf16, f16, f32").into()),
    };
    let orientation = match argument(2, "in-out") {
        "in-out" => Orientation::InOut,
        "out-in" => Orientation::OutIn,
        other => return Err(format!("{other:?} is neither in-out nor out-in").into()),
    };
    let cuda = Cuda::new(0)?.with_tuning(Tuning::Stored);
    println!("{}", cuda.name());
    let (mut worst, mut other_bits) = (1f64, 0);
    for dims in shapes {
        let started = Instant::now();
        let report = cuda.tune(dtype, dims, orientation, Options::new())?;
        let Dims { batch, in_features, hidden } = dims;
        println!(
            "\n{batch}, {in_features}, {hidden} {dtype}, tuned in {:.1} s\n{report}",
            started.elapsed().as_secs_f64()
        );
        for product in &report.products {
            worst = worst.max(product.speedup);
            other_bits += product.candidates.iter().filter(|candidate| !candidate.same_bits).count();
        }
    }
    println!(
        "the planner's choice takes up to {worst:.3} times the least; {other_bits} candidates with other bits"
    );
    println!("{:?}; {:?}", cuda.tuning_use(), cuda.cache_use());
    Ok(())
}
