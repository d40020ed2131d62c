//! Operands of the calls that are timed, and the calls.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiglu::{
    Backend, Dense, DeviceId, Dims, Element, Gradients, Matrix, Memory, Op, Options, Orientation, Out,
    Result, Route, Save, Saved, SwiGLU, Target, Weights,
};

use crate::cli::{BenchArgs, BenchPass};

/// Uniform in (-scale, scale): never zeros, which some machines multiply faster.
fn random<T: Element, B: Backend>(
    backend: &B,
    (rows, cols): (usize, usize),
    scale: f32,
    seed: u64,
) -> Result<Matrix<T, B::Memory>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut matrix = Matrix::host_zeros(rows, cols)?;
    let mut view = matrix.view_mut();
    for row in 0..rows {
        for v in view.row_mut(row).unwrap_or_default() {
            *v = T::from_f32(scale * ((rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0));
        }
    }
    backend.upload(&matrix)
}

/// Everything a call reads or writes.
pub(crate) struct Workload<T: Element, M: Memory> {
    orientation: Orientation,
    x: Matrix<T, M>,
    wf: Matrix<T, M>,
    z: Matrix<T, M>,
    /// Of a step.
    backward: Option<Backward<T, M>>,
}

/// What a backward reads or writes besides.
struct Backward<T: Element, M: Memory> {
    saved: Saved<T, M>,
    dz: Matrix<T, M>,
    dx: Matrix<T, M>,
    dwf: Matrix<T, M>,
}

impl<T: Element, M: Memory> Workload<T, M> {
    pub(crate) fn new<B: SwiGLU<T, Memory = M>>(backend: &B, args: &BenchArgs) -> Result<Self> {
        let Dims { batch, in_features, hidden } = args.shape.0;
        let orientation = Orientation::from(args.orientation);
        let packed = orientation.packed_shape(in_features, hidden);
        let backward = match args.pass {
            BenchPass::Forward => None,
            BenchPass::Step => Some(Backward {
                saved: backend.saved(Save::PreActivations, batch, hidden)?,
                dz: random(backend, (batch, hidden), 1.0, 3)?,
                dx: backend.zeros(batch, in_features)?,
                dwf: backend.zeros(packed.0, packed.1)?,
            }),
        };
        Ok(Self {
            orientation,
            x: random(backend, (batch, in_features), 1.0, 1)?,
            wf: random(backend, packed, 1.0 / (in_features as f32).sqrt(), 2)?,
            z: backend.zeros(batch, hidden)?,
            backward,
        })
    }

    /// One forward, or one step.
    pub(crate) fn call<B: SwiGLU<T, Memory = M>>(&mut self, backend: &B, route: Route) -> Result<()> {
        let options = Options::new().route(route);
        let (x, w) = (self.x.view(), Weights::packed(self.wf.view(), self.orientation)?);
        let Some(Backward { saved, dz, dx, dwf }) = &mut self.backward else {
            return backend.forward_into(x, w, self.z.view_mut(), options);
        };
        backend.forward_train_into(x, w, self.z.view_mut(), saved, options)?;
        let gradients = Gradients::new().dx(Out::write(dx)).dwf(Target::write(dwf));
        backend.backward(x, w, dz.view(), saved, gradients, options)
    }
}

/// A product of square matrices, large enough to be as fast as a product gets.
pub(crate) struct Square<T: Element, M: Memory> {
    a: Matrix<T, M>,
    b: Matrix<T, M>,
    c: Matrix<T, M>,
}

impl<T: Element, M: Memory> Square<T, M> {
    pub(crate) fn new<B: Backend<Memory = M>>(backend: &B) -> Result<Self> {
        let size = if backend.device() == DeviceId::HOST { 1024 } else { 4096 };
        let factor = |seed| random(backend, (size, size), 1.0, seed);
        Ok(Self { a: factor(4)?, b: factor(5)?, c: backend.zeros(size, size)? })
    }

    /// Rows and columns.
    pub(crate) fn size(&self) -> usize {
        self.a.rows()
    }

    /// Operations of one call.
    pub(crate) fn flop(&self) -> f64 {
        2.0 * (self.size() as f64).powi(3)
    }

    pub(crate) fn call<B: Dense<T, Memory = M>>(&mut self, backend: &B) -> Result<()> {
        backend.matmul((self.a.view(), Op::N), (self.b.view(), Op::N), Target::write(&mut self.c))
    }
}
