//! The contenders of a measurement: this library, and what it is measured against, on the same operands.

use serde::Serialize;
use swiglu_core::{
    Backend, Dense, Down, Element, Gate, Gradients, MatMut, MatRef, Matrix, Op, Options, Orientation, Out,
    Precision, Save, Saved, SwiGLU, Target, Upstream, Weights,
};
use swiglu_cuda::{Cuda, CudaMemory};

use crate::cublaslt::Product;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::job::{Job, Pass};
use crate::noise::Noise;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Contender {
    /// This library.
    Fused,
    /// cuBLASLt's products of the packed matrices, and nothing else: not the whole operation.
    Gemms,
    /// The same, with an elementwise kernel for the gate and one for its gradient.
    Packed,
    /// As most implementations have it, Liger's among them: gate and up as products of their own, between elementwise
    /// kernels; dX as two products, the second added to the first.
    Linears,
}

impl Contender {
    /// This library first.
    pub(crate) const ALL: [Self; 4] = [Self::Fused, Self::Gemms, Self::Packed, Self::Linears];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Fused => "swiglu, fused",
            Self::Gemms => "cuBLASLt, GEMMs alone",
            Self::Packed => "GEMMs + elementwise",
            Self::Linears => "two linears + elementwise",
        }
    }

    /// Whether it computes the whole operation.
    pub(crate) fn is_whole(self) -> bool {
        self != Self::Gemms
    }
}

/// The operands of one call.
struct Set<T: Element> {
    x: Matrix<T, CudaMemory>,
    wf: Matrix<T, CudaMemory>,
    dz: Matrix<T, CudaMemory>,
    z: Matrix<T, CudaMemory>,
    /// Pre-activations, and then their gradient, of the baselines.
    pre: Matrix<T, CudaMemory>,
    saved: Saved<T, CudaMemory>,
    dx: Matrix<T, CudaMemory>,
    dwf: Matrix<T, CudaMemory>,
    down: Option<DownSet<T>>,
}

/// What a down projection adds, in the orientation of the weights, with as many outputs as inputs. The baselines keep dz
/// in memory.
struct DownSet<T: Element> {
    w: Matrix<T, CudaMemory>,
    dy: Matrix<T, CudaMemory>,
    y: Matrix<T, CudaMemory>,
    dw: Matrix<T, CudaMemory>,
}

/// Least and most sets that calls take in turn.
const SETS: [usize; 2] = [2, 32];

/// What the calls of one round should take at least, in seconds, so that the events around them do not count.
const ROUND_SECONDS: f64 = 1e-3;

/// Rows of a result that are compared.
const SAMPLED_ROWS: usize = 16;

/// Columns whose errors are averaged: a wrong tile must not hide in a row that is right elsewhere.
const CHUNK: usize = 64;

/// A job's operands on a device.
pub(crate) struct Workload<'g, T: Element> {
    gpu: &'g Gpu,
    pass: Pass,
    orientation: Orientation,
    precision: Precision,
    options: Options,
    sets: Vec<Set<T>>,
    noise: Noise<T>,
}

impl<'g, T: Element> Workload<'g, T>
where
    Cuda: SwiGLU<T> + Dense<T>,
{
    pub(crate) fn new(gpu: &'g Gpu, job: &Job) -> Result<Self> {
        let (cuda, shape) = (&gpu.cuda, job.shape);
        let (batch, inputs, hidden) = (shape.batch, shape.in_features, shape.hidden);
        let (noise, weight_noise) =
            (Noise::new(cuda, 1.0)?, Noise::new(cuda, (inputs as f32).sqrt().recip())?);
        let down_noise = Noise::new(cuda, (hidden as f32).sqrt().recip())?;
        let (wf_rows, wf_cols) = job.orientation.packed_shape(inputs, hidden);
        let (down_rows, down_cols) = job.orientation.half_shape(hidden, inputs);
        let sets = (0..sets(job, gpu.l2_bytes, gpu.free_bytes()?))
            .map(|_| -> Result<Set<T>> {
                Ok(Set {
                    x: noise.matrix(cuda, batch, inputs)?,
                    wf: weight_noise.matrix(cuda, wf_rows, wf_cols)?,
                    dz: noise.matrix(cuda, batch, hidden)?,
                    z: cuda.zeros(batch, hidden)?,
                    pre: noise.matrix(cuda, batch, 2 * hidden)?,
                    saved: cuda.saved(Save::PreActivations, batch, hidden)?,
                    dx: cuda.zeros(batch, inputs)?,
                    dwf: cuda.zeros(wf_rows, wf_cols)?,
                    down: match job.pass.has_down() {
                        true => Some(DownSet {
                            w: down_noise.matrix(cuda, down_rows, down_cols)?,
                            dy: noise.matrix(cuda, batch, inputs)?,
                            y: cuda.zeros(batch, inputs)?,
                            dw: cuda.zeros(down_rows, down_cols)?,
                        }),
                        false => None,
                    },
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            gpu,
            pass: job.pass,
            orientation: job.orientation,
            precision: job.precision,
            options: Options::new().precision(job.precision),
            sets,
            noise,
        })
    }

    pub(crate) fn sets(&self) -> usize {
        self.sets.len()
    }

    /// Enqueues what a call uses up, and what is not part of its time.
    pub(crate) fn prepare(&mut self, contender: Contender, set: usize) -> Result<()> {
        if !self.pass.consumes() {
            return Ok(());
        }
        let (products, options) = (self.products(), self.options);
        let set = &mut self.sets[set];
        let (x, w) = (set.x.view(), Weights::packed(set.wf.view(), self.orientation)?);
        match contender {
            Contender::Fused => {
                Ok(self.gpu.cuda.forward_train_into(x, w, set.z.view_mut(), &mut set.saved, options)?)
            }
            Contender::Gemms => Ok(()),
            Contender::Packed | Contender::Linears => products.project(x, set.wf.view(), set.pre.view_mut()),
        }
    }

    /// Enqueues a call.
    pub(crate) fn call(&mut self, contender: Contender, set: usize) -> Result<()> {
        match contender {
            Contender::Fused => self.fused(set),
            Contender::Gemms | Contender::Packed => self.packed(set, contender.is_whole()),
            Contender::Linears => self.linears(set),
        }
    }

    fn fused(&mut self, set: usize) -> Result<()> {
        let (cuda, options, pass) = (&self.gpu.cuda, self.options, self.pass);
        let Set { x, wf, dz, z, saved, dx, dwf, down, .. } = &mut self.sets[set];
        let (x, w) = (x.view(), Weights::packed(wf.view(), self.orientation)?);
        match (pass.projects(), pass.saves()) {
            (true, true) => cuda.forward_train_into(x, w, z.view_mut(), saved, options)?,
            (true, false) => cuda.forward_into(x, w, z.view_mut(), options)?,
            (false, _) => {}
        }
        let mut upstream = Upstream::from(dz.view());
        if let Some(DownSet { w, dy, y, .. }) = down {
            let down = Down::new(w.view(), self.orientation);
            cuda.matmul((z.view(), Op::N), (down.matrix(), down.op()), Target::write(y))?;
            upstream = Upstream::projected(dy.view(), down)?;
        }
        if pass.has_dx() {
            let gradients = Gradients::new().dx(Out::write(dx));
            let gradients = if pass.has_dwf() { gradients.dwf(Target::write(dwf)) } else { gradients };
            cuda.backward(x, w, upstream, saved, gradients, options)?;
        }
        if let (Some(DownSet { dy, dw, .. }), true) = (down, pass.has_dwf()) {
            let (a, b) = match self.orientation {
                Orientation::InOut => (z.view(), dy.view()),
                Orientation::OutIn => (dy.view(), z.view()),
            };
            cuda.matmul((a, Op::T), (b, Op::N), Target::write(dw))?;
        }
        Ok(())
    }

    /// One product for both halves, with the elementwise kernels or without.
    fn packed(&mut self, set: usize, elementwise: bool) -> Result<()> {
        let (cuda, pass, products) = (&self.gpu.cuda, self.pass, self.products());
        let Set { x, wf, dz, z, pre, dx, dwf, down, .. } = &mut self.sets[set];
        if pass.projects() {
            products.project(x.view(), wf.view(), pre.view_mut())?;
            if elementwise {
                cuda.gate(Gate::Swiglu, pre.view(), z.view_mut())?;
            }
        }
        products.down(pass, down, z.view(), dz.view_mut())?;
        if pass.has_dx() {
            if elementwise {
                cuda.gate_backward(Gate::Swiglu, dz.view(), pre.view_mut())?;
            }
            products.input_gradient(pre.view(), wf.view(), dx.view_mut(), false)?;
        }
        if pass.has_dwf() {
            products.weight_gradient(x.view(), pre.view(), dwf.view_mut())?;
        }
        Ok(())
    }

    /// A product for each half.
    fn linears(&mut self, set: usize) -> Result<()> {
        let (cuda, pass, products) = (&self.gpu.cuda, self.pass, self.products());
        let Set { x, wf, dz, z, pre, dx, dwf, down, .. } = &mut self.sets[set];
        let (x, w) = (x.view(), Weights::packed(wf.view(), self.orientation)?);
        let (hidden, halves) = (w.hidden(), [w.gate_weights(), w.up_weights()]);
        if pass.projects() {
            let (gate, up) = pre.view_mut().split_cols(hidden)?;
            for (half, to) in halves.into_iter().zip([gate, up]) {
                products.project(x, half, to)?;
            }
            cuda.gate(Gate::Swiglu, pre.view(), z.view_mut())?;
        }
        products.down(pass, down, z.view(), dz.view_mut())?;
        if !pass.has_dx() {
            return Ok(());
        }
        cuda.gate_backward(Gate::Swiglu, dz.view(), pre.view_mut())?;
        let (batch, dab) = (pre.rows(), pre.view());
        let dhalves = [dab.sub(0..batch, 0..hidden)?, dab.sub(0..batch, hidden..2 * hidden)?];
        for (index, (half, dhalf)) in halves.into_iter().zip(dhalves).enumerate() {
            products.input_gradient(dhalf, half, dx.view_mut(), index > 0)?;
        }
        if pass.has_dwf() {
            let (gate, up) = match self.orientation {
                Orientation::InOut => dwf.view_mut().split_cols(hidden)?,
                Orientation::OutIn => dwf.view_mut().split_rows(hidden)?,
            };
            for (dhalf, to) in dhalves.into_iter().zip([gate, up]) {
                products.weight_gradient(x, dhalf, to)?;
            }
        }
        Ok(())
    }

    fn products(&self) -> Products<'g> {
        Products { gpu: self.gpu, orientation: self.orientation, precision: self.precision }
    }

    /// How much each whole contender's results differ from those of [`Contender::Packed`], relatively: the largest such
    /// number of any part of a sampled row.
    pub(crate) fn errors(&mut self) -> Result<Vec<(Contender, f64)>> {
        for contender in Contender::ALL {
            // Finds the fastest products, and compiles kernels.
            self.prepare(contender, 0)?;
            self.call(contender, 0)?;
        }
        let reference = self.sample(Contender::Packed)?;
        let others = [Contender::Fused, Contender::Linears];
        others.into_iter().map(|other| Ok((other, worst(&self.sample(other)?, &reference)))).collect()
    }

    /// Rows of every result of one call.
    fn sample(&mut self, contender: Contender) -> Result<Vec<Vec<f32>>> {
        let (gpu, pass) = (self.gpu, self.pass);
        let set = &mut self.sets[0];
        // Or a call that writes nothing would have the results of the one before.
        let down = set.down.iter_mut().flat_map(|down| [&mut down.y, &mut down.dw]);
        for result in [&mut set.z, &mut set.dx, &mut set.dwf].into_iter().chain(down) {
            self.noise.fill(&gpu.cuda, result)?;
        }
        self.prepare(contender, 0)?;
        self.call(contender, 0)?;
        let set = &self.sets[0];
        let mut rows = Vec::new();
        let mut take = |view: MatRef<'_, T, CudaMemory>| -> Result<()> {
            for row in sampled(view.rows()) {
                rows.push(gpu.row(view, row)?);
            }
            Ok(())
        };
        if pass.projects() {
            take(set.z.view())?;
        }
        if pass == Pass::Save {
            let pre = if contender == Contender::Fused { set.saved.pre_activations() } else { None };
            take(pre.unwrap_or(set.pre.view()))?;
        }
        if pass.has_dx() {
            take(set.dx.view())?;
        }
        if pass.has_dwf() {
            take(set.dwf.view())?;
        }
        if let Some(DownSet { y, dw, .. }) = &set.down {
            take(y.view())?;
            if pass.has_dwf() {
                take(dw.view())?;
            }
        }
        Ok(rows)
    }
}

/// The products of a job, by cuBLASLt, on the packed matrices or on half of them.
struct Products<'g> {
    gpu: &'g Gpu,
    orientation: Orientation,
    precision: Precision,
}

impl Products<'_> {
    /// pre = x . W.
    fn project<T: Element>(
        &self,
        x: MatRef<'_, T, CudaMemory>,
        w: MatRef<'_, T, CudaMemory>,
        pre: MatMut<'_, T, CudaMemory>,
    ) -> Result<()> {
        let op = match self.orientation {
            Orientation::InOut => Op::N,
            Orientation::OutIn => Op::T,
        };
        let precision = self.precision;
        self.gpu.multiply(Product { a: (x, Op::N), b: (w, op), c: pre, add: false, precision })
    }

    /// y = z . Wdown; in a step dz = dy . Wdown^T and dWdown = z^T . dy.
    fn down<T: Element>(
        &self,
        pass: Pass,
        down: &mut Option<DownSet<T>>,
        z: MatRef<'_, T, CudaMemory>,
        dz: MatMut<'_, T, CudaMemory>,
    ) -> Result<()> {
        let Some(DownSet { w, dy, y, dw }) = down else { return Ok(()) };
        self.project(z, w.view(), y.view_mut())?;
        if pass.has_dx() {
            self.input_gradient(dy.view(), w.view(), dz, false)?;
        }
        if pass.has_dwf() {
            self.weight_gradient(z, dy.view(), dw.view_mut())?;
        }
        Ok(())
    }

    /// dX = dAB . W^T, or added.
    fn input_gradient<T: Element>(
        &self,
        dab: MatRef<'_, T, CudaMemory>,
        w: MatRef<'_, T, CudaMemory>,
        dx: MatMut<'_, T, CudaMemory>,
        add: bool,
    ) -> Result<()> {
        let op = match self.orientation {
            Orientation::InOut => Op::T,
            Orientation::OutIn => Op::N,
        };
        self.gpu.multiply(Product { a: (dab, Op::N), b: (w, op), c: dx, add, precision: self.precision })
    }

    /// dW = X^T . dAB, or its transpose.
    fn weight_gradient<T: Element>(
        &self,
        x: MatRef<'_, T, CudaMemory>,
        dab: MatRef<'_, T, CudaMemory>,
        dw: MatMut<'_, T, CudaMemory>,
    ) -> Result<()> {
        let (a, b) = match self.orientation {
            Orientation::InOut => ((x, Op::T), (dab, Op::N)),
            Orientation::OutIn => ((dab, Op::T), (x, Op::N)),
        };
        self.gpu.multiply(Product { a, b, c: dw, add: false, precision: self.precision })
    }
}

/// How many sets it takes until x and Wf of all of them are twice as large as L2, and a round long enough; as many as fit
/// into half of the memory that is free.
fn sets(job: &Job, l2_bytes: usize, free_bytes: usize) -> usize {
    if job.warm {
        return 1;
    }
    let (shape, bytes) = (job.shape, job.dtype.bytes());
    // A guess of the time of a call: on no device so far is it shorter.
    let seconds = (job.flops() / 1e15).max(job.bytes() / 4e12);
    let for_l2 = (2 * l2_bytes).div_ceil((shape.input() + shape.weights()) * bytes);
    let wanted = for_l2.max((ROUND_SECONDS / seconds) as usize).clamp(SETS[0], SETS[1]);
    // x and dX, Wf and dWf, z and dz, and pre-activations twice; dy and y, and half as many weights and gradients.
    let down = if job.pass.has_down() { 2 * shape.input() + shape.weights() } else { 0 };
    let bytes_of_set = (2 * (shape.input() + shape.weights() + 3 * shape.output()) + down) * bytes;
    wanted.min(free_bytes / 2 / bytes_of_set).max(1)
}

/// Rows from the first to the last, evenly.
fn sampled(rows: usize) -> Vec<usize> {
    let count = rows.min(SAMPLED_ROWS);
    (0..count).map(|index| index * (rows - 1) / (count - 1).max(1)).collect()
}

/// The largest relative error of a chunk, in the Euclidean norm.
fn worst(got: &[Vec<f32>], expected: &[Vec<f32>]) -> f64 {
    let mut worst = 0f64;
    for (got, expected) in got.iter().zip(expected) {
        // A chunk of few and small numbers is measured by its row.
        let mean = energy(expected) / expected.len() as f64;
        for (got, expected) in got.chunks(CHUNK).zip(expected.chunks(CHUNK)) {
            let difference: Vec<f32> = got.iter().zip(expected).map(|(a, b)| a - b).collect();
            let error = (energy(&difference) / energy(expected).max(mean * expected.len() as f64)).sqrt();
            // A NaN is the worst of all, but zeros that should be zeros are right.
            match energy(&difference) {
                0.0 => {}
                _ if error.is_nan() => return f64::NAN,
                _ => worst = worst.max(error),
            }
        }
    }
    worst
}

/// The square of the Euclidean norm.
fn energy(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{self, Selection};
    use swiglu_core::Dtype;

    const L2: usize = 50 << 20;
    const FREE: usize = 78 << 30;

    fn job(shape: &str, op: job::Op) -> Job {
        let selection = Selection {
            ops: vec![op],
            shapes: vec![shape.parse().unwrap_or_else(|e| panic!("{e}"))],
            dtypes: vec![Dtype::Bf16],
            orientations: vec![Orientation::InOut],
        };
        selection.jobs()[0]
    }

    #[test]
    fn inputs_exceed_the_cache_unless_it_is_to_be_warm() {
        for shape in ["8192,8192,28672", "4096,1024,4096", "2048,768,2048", "8192,256,1024"] {
            let job = job(shape, job::Op::Forward);
            let bytes = sets(&job, L2, FREE) * 2 * (job.shape.input() + job.shape.weights());
            assert!(bytes >= 2 * L2, "{shape}: {bytes}");
        }
        assert_eq!(sets(&job("1,1,1", job::Op::Mnist), L2, FREE), 1);
    }

    #[test]
    fn sets_fit_into_memory() {
        let large = job("8192,8192,28672", job::Op::Step);
        assert_eq!(sets(&large, L2, FREE), 2);
        assert_eq!(sets(&large, L2, 1 << 20), 1);
        assert_eq!(sets(&job("1,1,1", job::Op::Forward), L2, FREE), SETS[1]);
    }

    #[test]
    fn sampled_rows_are_rows() {
        assert_eq!(sampled(1), [0]);
        assert_eq!(sampled(2), [0, 1]);
        let rows = sampled(8191);
        assert_eq!((rows.len(), rows[0], rows[15]), (SAMPLED_ROWS, 0, 8190));
        assert!(sampled(0).is_empty(), "rows of nothing");
    }

    #[test]
    fn one_wrong_chunk_is_seen() {
        let right = vec![vec![1.0; 1000]];
        let mut wrong = right.clone();
        wrong[0][700..764].fill(0.0);
        assert_eq!(worst(&right, &right), 0.0);
        assert!(worst(&wrong, &right) > 0.5, "{}", worst(&wrong, &right));
        let mut small = right.clone();
        small[0][999] = 1e-6;
        let mut close = small.clone();
        close[0][999] = 2e-6;
        assert!(worst(&close, &small) < 1e-5, "one number near zero is {}", worst(&close, &small));
        wrong[0][3] = f32::NAN;
        assert!(worst(&wrong, &right).is_nan(), "not a number is not right");
    }
}
