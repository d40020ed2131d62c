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
use swiglu::{Complete, Device, Host, Job, Matrix, Out, Result};

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
        let (x, dy) = (backend.upload(&x)?, backend.upload(&dy)?);
        let mut mlp = weights.mlp(&backend)?;

        let mut y = backend.zeros(x.rows(), mlp.out_features())?;
        let mut dx = backend.zeros(x.rows(), x.cols())?;
        let mut kept = mlp.saved(x.rows())?;
        mlp.forward_train_into(x.view(), y.view_mut(), &mut kept)?;
        mlp.backward(x.view(), dy.view(), &mut kept, Some(Out::write(&mut dx)))?;

        let (in_features, hidden) = (mlp.gated().in_features(), mlp.gated().hidden());
        let gradients: Vec<_> = mlp.parameters().map(|parameter| parameter.gradient).collect();
        let (dwf, ddown) = (gradients[0], gradients[1]);
        let tensors = [
            ("y".to_owned(), y.view()),
            ("dx".to_owned(), dx.view()),
            (format!("{MLP}.gate_proj.weight.grad"), dwf.sub(0..hidden, 0..in_features)?),
            (format!("{MLP}.up_proj.weight.grad"), dwf.sub(hidden..2 * hidden, 0..in_features)?),
            (format!("{MLP}.down_proj.weight.grad"), ddown),
        ];
        let tensors: Result<_> =
            tensors.into_iter().map(|(name, tensor)| Ok((name, backend.download(tensor)?))).collect();
        let tensors = tensors?;
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
