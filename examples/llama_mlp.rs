//! The MLP of a LLaMA layer from a checkpoint, forward and backward, against what PyTorch computed.
//!
//! ```sh
//! cargo run --release --features checkpoint --example llama_mlp              # the first GPU, or the CPU
//! cargo run --release --features checkpoint,cuda --example llama_mlp cuda:0  # that GPU
//! ```
//!
//! `scripts/make-llama-layer.py` made the file. It also derives from the rounding of f32 how far two implementations may be
//! from each other; the exit code is 1 when a result is farther away.

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use safetensors::SafeTensors;
use swiglu::checkpoint::{Checkpoint, MlpWeights, Stored};
use swiglu::{Complete, Device, Host, Job, Matrix, Op, Out, Result, Target};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/llama-layer.safetensors");
const MLP: &str = "model.layers.0.mlp";

/// Forward and backward of one batch.
struct Step<'a> {
    weights: &'a MlpWeights<f32>,
    x: Matrix<f32, Host>,
    dy: Matrix<f32, Host>,
}

/// Where it ran, and every result with its name in the file.
struct Results {
    device: String,
    tensors: Vec<(String, Matrix<f32, Host>)>,
}

impl Job for Step<'_> {
    type Output = Result<Results>;

    fn run<B: Complete>(self, backend: B) -> Self::Output {
        let Self { weights, x, dy } = self;
        let (x, dy, down) = (backend.upload(&x)?, backend.upload(&dy)?, backend.upload(&weights.down)?);
        let mut layer = weights.layer(&backend)?;

        let (z, mut saved) = layer.forward_train(&x)?;
        // The file has the down projection as [O, D]: y = z . down^T.
        let mut y = backend.zeros(x.rows(), down.rows())?;
        backend.matmul((z.view(), Op::N), (down.view(), Op::T), Target::write(&mut y))?;

        let mut dz = backend.zeros(z.rows(), z.cols())?;
        backend.matmul((dy.view(), Op::N), (down.view(), Op::N), Target::write(&mut dz))?;
        let mut ddown = backend.zeros(down.rows(), down.cols())?;
        backend.matmul((dy.view(), Op::T), (z.view(), Op::N), Target::write(&mut ddown))?;
        let mut dx = backend.zeros(x.rows(), x.cols())?;
        layer.backward(&x, &dz, &mut saved, Some(Out::write(&mut dx)))?;

        let mut tensors =
            vec![("y".to_owned(), backend.download(&y)?), ("dx".to_owned(), backend.download(&dx)?)];
        if let Some(dwf) = layer.dwf() {
            let hidden = layer.hidden();
            for (half, name) in [(0..hidden, "gate_proj"), (hidden..2 * hidden, "up_proj")] {
                let part = dwf.sub(half, 0..layer.in_features())?;
                tensors.push((format!("{MLP}.{name}.weight.grad"), backend.download(part)?));
            }
        }
        tensors.push((format!("{MLP}.down_proj.weight.grad"), backend.download(&ddown)?));
        Ok(Results { device: backend.name(), tensors })
    }
}

/// A tensor of the file that is no weight.
fn tensor(file: &SafeTensors<'_>, name: &str) -> Result<Matrix<f32, Host>, Box<dyn Error>> {
    let tensor = file.tensor(name)?;
    let mut values = vec![0.0; tensor.data().len() / size_of::<f32>()];
    f32::decode(tensor.data(), &mut values);
    let (rows, cols) = match *tensor.shape() {
        [rows, cols] => (rows, cols),
        _ => (1, values.len()),
    };
    Ok(Matrix::from_owned(values, rows, cols)?)
}

/// The largest difference, relative to the largest element that is expected.
fn relative_error(got: &Matrix<f32, Host>, expected: &Matrix<f32, Host>) -> f32 {
    let (got, expected) = (got.view().array(), expected.view().array());
    let largest = expected.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let difference = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs());
    // The first NaN stays, and is within no bound.
    let worst = |worst: f32, next: f32| if worst.is_nan() || next <= worst { worst } else { next };
    difference.fold(0.0, worst) / largest
}

/// Prints how far each result is from PyTorch's; whether all are within their bounds.
fn compare(device: Device) -> Result<bool, Box<dyn Error>> {
    let checkpoint = Checkpoint::open(FILE)?;
    print!("{checkpoint}");
    let weights = checkpoint.mlp(MLP)?.load::<f32>()?;

    let bytes = fs::read(FILE)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let step = Step { weights: &weights, x: tensor(&file, "x")?, dy: tensor(&file, "dy")? };
    let results = device.run(step)??;
    println!("on {}, largest error relative to the largest element (bound):", results.device);
    let mut within = true;
    for (name, got) in &results.tensors {
        let error = relative_error(got, &tensor(&file, name)?);
        let bound = tensor(&file, &format!("{name}.bound"))?.view().array()[[0, 0]];
        within &= error <= bound;
        println!("{name:45} {error:.1e} ({bound:.1e})");
    }
    Ok(within)
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let device = std::env::args().nth(1).as_deref().unwrap_or("auto").parse()?;
    Ok(if compare(device)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_as_close_to_pytorch_as_rounding_allows() {
        assert!(compare(Device::Cpu).unwrap_or_else(|e| panic!("{e}")), "a result is beyond its bound");
    }

    #[test]
    fn a_nan_is_within_no_bound() {
        let row =
            |values: [f32; 3]| Matrix::from_owned(values.to_vec(), 1, 3).unwrap_or_else(|e| panic!("{e}"));
        let error = relative_error(&row([1.0, f32::NAN, 3.0]), &row([1.0, 2.0, 4.0]));
        assert!(error.is_nan(), "{error}");
        assert_eq!(relative_error(&row([1.0, 2.0, 3.0]), &row([1.0, -2.0, -4.0])), 7.0 / 4.0);
    }
}
