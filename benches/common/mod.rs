//! What the benchmarks share: shapes, random data, and a throughput in floating-point operations.

#![allow(dead_code, unused_imports, missing_docs, reason = "each benchmark uses a part of this module")]

mod peers;

use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiglu::{Host, MatMut, MatRef, Options, Orientation, Save, Saved, SwiGLU, Weights};

pub(crate) use peers::{Product, by_gemm, by_ndarray, gate, gate_backward, ndarray_forward};

/// Batch, in_features and hidden: the CPU table of the project, from MNIST to LLaMA, down to one token.
pub(crate) const SHAPES: [[usize; 3]; 5] =
    [[128, 784, 512], [512, 1024, 4096], [1024, 4096, 11008], [16, 4096, 11008], [1, 4096, 11008]];

/// `4 * B * I * D`: the operations of two projections, and of each of dX and dWf.
pub(crate) fn flops([batch, in_features, hidden]: [usize; 3]) -> u64 {
    4 * batch as u64 * in_features as u64 * hidden as u64
}

pub(crate) fn name([batch, in_features, hidden]: [usize; 3]) -> String {
    format!("B{batch} I{in_features} D{hidden}")
}

/// Uniform in (-1, 1): never zeros, which some machines multiply faster.
pub(crate) fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, cols), || (rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0)
}

/// x, wf, z and dz of one shape.
pub(crate) struct Operands {
    pub(crate) x: Array2<f32>,
    pub(crate) wf: Array2<f32>,
    pub(crate) z: Array2<f32>,
    pub(crate) dz: Array2<f32>,
    pub(crate) dx: Array2<f32>,
    pub(crate) dwf: Array2<f32>,
}

impl Operands {
    pub(crate) fn new([batch, in_features, hidden]: [usize; 3]) -> Self {
        Self {
            x: random(batch, in_features, 1),
            wf: random(in_features, 2 * hidden, 2) / (in_features as f32).sqrt(),
            z: Array2::zeros((batch, hidden)),
            dz: random(batch, hidden, 3),
            dx: Array2::zeros((batch, in_features)),
            dwf: Array2::zeros((in_features, 2 * hidden)),
        }
    }
}

/// What a forward leaves behind; not part of the measured time.
pub(crate) fn prepare<B: SwiGLU<f32, Memory = Host>>(
    backend: &B,
    o: &Operands,
) -> swiglu::Result<Saved<f32, Host>> {
    let w = Weights::packed(MatRef::try_from(&o.wf)?, Orientation::InOut)?;
    Ok(backend.forward_train(MatRef::try_from(&o.x)?, w, Save::PreActivations, Options::new())?.1)
}

/// Wall time, with throughput written as operations per second.
pub(crate) struct Flops;

struct FlopsFormatter;

impl Measurement for Flops {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }

    fn end(&self, start: Instant) -> Duration {
        WallTime.end(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        WallTime.add(a, b)
    }

    fn zero(&self) -> Duration {
        WallTime.zero()
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &FlopsFormatter
    }
}

impl ValueFormatter for FlopsFormatter {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    /// Times are nanoseconds, so operations per time are already GFLOP/s.
    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        match throughput {
            Throughput::Elements(operations) => {
                for value in values {
                    *value = *operations as f64 / *value;
                }
                "GFLOP/s"
            }
            other => WallTime.formatter().scale_throughputs(typical, other, values),
        }
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}

/// Few samples: the large shapes take a second each.
pub(crate) fn criterion() -> Criterion<Flops> {
    Criterion::default()
        .with_measurement(Flops)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
}
