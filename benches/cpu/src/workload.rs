//! Operands of one shape and the calls that are timed.

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiglu_core::{
    Element, Gradients, Host, Matrix, Options, Orientation, Out, Result, Save, SwiGLU, Target, Weights,
};
use swiglu_cpu::Cpu;

/// Batch, in_features and hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) in_features: usize,
    pub(crate) hidden: usize,
}

impl Shape {
    /// Operations of two projections, and of each of dX and dWf.
    pub(crate) fn operations(self) -> f64 {
        4.0 * self.batch as f64 * self.in_features as f64 * self.hidden as f64
    }

    /// Elements of the weights.
    pub(crate) fn weights(self) -> usize {
        2 * self.in_features * self.hidden
    }
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// z alone.
    Forward,
    /// dX and dWf from saved pre-activations, gate gradient included.
    Backward,
    /// Forward that saves, then backward.
    Step,
}

/// Everything a call reads or writes.
#[derive(Debug)]
pub(crate) struct Workload<T: Element> {
    cpu: Cpu,
    orientation: Orientation,
    x: Matrix<T, Host>,
    wf: Matrix<T, Host>,
    z: Matrix<T, Host>,
    dz: Matrix<T, Host>,
    dx: Matrix<T, Host>,
    dwf: Matrix<T, Host>,
}

/// Uniform in (-scale, scale): never zeros, which some machines multiply faster.
fn random<T: Element>(rows: usize, cols: usize, scale: f32, seed: u64) -> Result<Matrix<T, Host>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut matrix = Matrix::host_zeros(rows, cols)?;
    let mut view = matrix.view_mut();
    for row in 0..rows {
        for v in view.row_mut(row).unwrap_or_default() {
            *v = T::from_f32(scale * ((rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0));
        }
    }
    Ok(matrix)
}

impl<T: Element> Workload<T>
where
    Cpu: SwiGLU<T>,
{
    pub(crate) fn new(cpu: &Cpu, shape: Shape, orientation: Orientation) -> Result<Self> {
        let Shape { batch, in_features, hidden } = shape;
        let (rows, cols) = orientation.packed_shape(in_features, hidden);
        Ok(Self {
            cpu: cpu.clone(),
            orientation,
            x: random(batch, in_features, 1.0, 1)?,
            wf: random(rows, cols, 1.0 / (in_features as f32).sqrt(), 2)?,
            z: Matrix::host_zeros(batch, hidden)?,
            dz: random(batch, hidden, 1.0, 3)?,
            dx: Matrix::host_zeros(batch, in_features)?,
            dwf: Matrix::host_zeros(rows, cols)?,
        })
    }

    /// Time of one call.
    pub(crate) fn time(&mut self, pass: Pass) -> Result<Duration> {
        let w = Weights::packed(self.wf.view(), self.orientation)?;
        let x = self.x.view();
        if pass == Pass::Forward {
            let start = Instant::now();
            self.cpu.forward_into(x, w, self.z.view_mut(), Options::new())?;
            return Ok(start.elapsed());
        }
        let mut saved = self.cpu.saved(Save::PreActivations, x.rows(), w.hidden())?;
        // Pages that were never touched are not part of a call.
        self.cpu.forward_train_into(x, w, self.z.view_mut(), &mut saved, Options::new())?;
        let mut start = Instant::now();
        if pass == Pass::Step {
            start = Instant::now();
            self.cpu.forward_train_into(x, w, self.z.view_mut(), &mut saved, Options::new())?;
        }
        let gradients =
            Gradients::new().dx(Out::write(self.dx.view_mut())).dwf(Target::write(self.dwf.view_mut()));
        self.cpu.backward(x, w, self.dz.view(), &mut saved, gradients, Options::new())?;
        Ok(start.elapsed())
    }
}
