//! The op on candle's tensors, on every device there is: values and gradients against candle's own graph in f64.
//!
//! With the feature `cuda` each test runs on the first GPU too; without a GPU those are counted as ignored, and
//! `SWIGLU_REQUIRE_GPU=1` makes that a failure.

#[cfg(feature = "cuda")]
mod cuda;
mod errors;
mod graph;
mod layouts;
mod mlp;
mod reference;
mod training;
mod values;

use std::process::ExitCode;

use candle_core::{Device, Result};
use libtest_mimic::{Arguments, Trial};

/// A test for any device.
type Test = (&'static str, fn(&Device) -> Result<()>);

fn on(prefix: &str, device: &Device, tests: impl IntoIterator<Item = Test>) -> Vec<Trial> {
    let trial = |(name, test): Test| {
        let device = device.clone();
        Trial::test(format!("{prefix}::{name}"), move || test(&device).map_err(|e| e.to_string().into()))
    };
    tests.into_iter().map(trial).collect()
}

fn everywhere() -> impl Iterator<Item = Test> {
    [values::TESTS, graph::TESTS, layouts::TESTS, errors::TESTS, mlp::TESTS, training::TESTS]
        .into_iter()
        .flatten()
        .copied()
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    #[cfg_attr(not(feature = "cuda"), expect(unused_mut, reason = "more come with the feature"))]
    let mut trials = on("cpu", &Device::Cpu, everywhere());
    #[cfg(feature = "cuda")]
    trials.extend(cuda::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}
