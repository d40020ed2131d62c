//! The layers, generic over the backend: they must compute what the op does, and keep what they are given.

mod gated;
mod mlp;

use half::{bf16, f16};
use swiglu_core::{Dense, SwiGLU};

use crate::bits::Value;
use crate::config::Config;
use crate::report::{Failure, Report};
use crate::suite::Complete;

fn one_type<T: Value, B: SwiGLU<T> + Dense<T>>(
    backend: &B,
    config: &Config,
    seed: u64,
    report: &mut Report,
) -> Result<(), Failure> {
    gated::check::<T, B>(backend, config, seed, report)?;
    mlp::check::<T, B>(backend, config, seed, report)
}

/// Both layers on every element type: forward and gradients against the oracle in each mode, accumulation, parameters,
/// and saving bit for bit.
///
/// # Errors
/// A [`Failure`] that names the layer and what is wrong.
pub fn layers<B: Complete>(backend: &B, config: &Config, seed: u64) -> Result<Report, Failure> {
    let mut report = Report::default();
    one_type::<f32, B>(backend, config, seed, &mut report)?;
    one_type::<f16, B>(backend, config, seed, &mut report)?;
    one_type::<bf16, B>(backend, config, seed, &mut report)?;
    Ok(report)
}
