//! `Route::Composed`: products by cuBLAS, with elementwise kernels around them.
//!
//! Where results are rounded is what [`Unfused`](swiglu_core::Unfused) does: pre-activations go through memory in the
//! element type, before the bias and after it, and so does dX between its two products. Sums are in f32.

use swiglu_core::ops::{Backward, Forward};
use swiglu_core::{
    Dims, Dtype, Element, GradientKind, Halves, MatMut, MatRef, Op, Orientation, Out, Pass, Plan, Problem,
    Result, Tile, Upstream, UpstreamKind, Weights,
};

use crate::arena::Layout;
use crate::cublas::{Product, ProductKind, workspace_bytes};
use crate::device::Facts;
use crate::gemm::GateCode;
use crate::kernel::{Kernel, gate_code};
use crate::memory::CudaMemory;
use crate::params::{AddBiasParams, GateParams, GemmParams, Operand};
use crate::passes::{column_sums, destination, launch_gemm, out_type};
use crate::plan::{Matmul, Planner, Sums};
use crate::queue::{Call, Queue};
use crate::realign::padded;

/// What a pass takes besides its operands.
#[derive(Clone, Copy, Debug)]
struct Needs {
    gate: GateCode,
    /// Pre-activations, where the caller has no memory for them; of no bytes where he has.
    scratch: Scratch,
    /// dz, where it comes from dy.
    dz: Scratch,
    sums: Option<Sums>,
    workspace_bytes: usize,
}

/// A matrix in the workspace.
#[derive(Clone, Copy, Debug)]
struct Scratch {
    /// In bytes.
    offset: usize,
    /// Elements from row to row.
    stride: usize,
}

impl Scratch {
    /// For rows of so many columns; for none where it is not wanted.
    fn new(wanted: bool, (rows, cols): (usize, usize), dtype: Dtype, workspace: &mut Layout) -> Self {
        let stride = padded(cols, dtype);
        let bytes = if wanted { rows * stride * dtype.bytes() } else { 0 };
        Self { offset: workspace.part(bytes), stride }
    }

    fn operand(&self, call: &Call<'_>) -> Operand {
        Operand { data: call.at(self.offset), stride: self.stride as i64 }
    }
}

impl Needs {
    /// With `kept` pre-activations are the caller's.
    fn of(problem: &Problem, kept: bool) -> Result<Self> {
        let Problem { dims: Dims { batch, hidden, .. }, dtype, .. } = *problem;
        let (gate, ..) = gate_code(problem.gate)?;
        let mut workspace = Layout::default();
        let width = 2 * hidden;
        let scratch = Scratch::new(!kept, (batch, width), dtype, &mut workspace);
        let projected = problem.upstream != UpstreamKind::Dz;
        let dz = Scratch::new(projected, (batch, hidden), dtype, &mut workspace);
        let sums = match problem.pass {
            Pass::Backward { dbias: Some(GradientKind { dtype: out, .. }), .. } => {
                Some(Sums::new(dtype, out, batch, width, &mut workspace))
            }
            _ => None,
        };
        Ok(Self { gate, scratch, dz, sums, workspace_bytes: workspace.bytes() })
    }
}

/// Which products a problem consists of.
#[derive(Clone, Copy)]
struct Kinds {
    base: ProductKind,
    orientation: Orientation,
}

impl Kinds {
    fn of(problem: &Problem) -> Self {
        let Problem { dtype, orientation, options, .. } = *problem;
        let precision = options.precision;
        Self { base: ProductKind { dtype, out: dtype, precision, op_a: Op::N, op_b: Op::N }, orientation }
    }

    /// x times one half of Wf.
    fn projection(self) -> ProductKind {
        let op_b = match self.orientation {
            Orientation::InOut => Op::N,
            Orientation::OutIn => Op::T,
        };
        ProductKind { op_b, ..self.base }
    }

    /// dG or dU times the transpose of one half of Wf.
    fn input_gradient(self) -> ProductKind {
        let op_b = match self.orientation {
            Orientation::InOut => Op::T,
            Orientation::OutIn => Op::N,
        };
        ProductKind { op_b, ..self.base }
    }

    /// dy times the transpose of the down projection.
    fn upstream(self, down: Orientation) -> ProductKind {
        Self { orientation: down, ..self }.input_gradient()
    }

    /// X^T times dG or dU for `[I, 2D]` weights, the transpose of that for `[2D, I]`: the first factor is transposed
    /// either way.
    fn weight_gradient(self, out: Dtype) -> ProductKind {
        ProductKind { out, op_a: Op::T, ..self.base }
    }
}

/// The plan as users see it.
pub(crate) fn describe(backend: String, problem: &Problem, facts: &Facts) -> Result<Plan> {
    let kept = matches!(problem.pass, Pass::Forward { save: true } | Pass::Backward { saved: true, .. });
    let (needs, kinds) = (Needs::of(problem, kept)?, Kinds::of(problem));
    let (dtype, gate) = (problem.dtype, needs.gate);
    let mut launches = Vec::new();
    if !kept || matches!(problem.pass, Pass::Forward { .. }) {
        let projection = kinds.projection();
        launches.extend([format!("{projection}: gate projection"), format!("{projection}: up projection")]);
        if problem.bias {
            launches.push(format!("{}: bias of both", Kernel::AddBias { dtype }));
        }
    }
    match problem.pass {
        Pass::Forward { .. } => {
            launches.push(format!(
                "{}: {} of both projections",
                Kernel::GateForward { dtype, gate },
                problem.gate
            ));
        }
        Pass::Backward { dx, dwf, .. } => {
            if let UpstreamKind::Projected { orientation, .. } = problem.upstream {
                launches.push(format!("{}: dz", kinds.upstream(orientation)));
            }
            launches.push(format!("{}: pre-activations become dAB", Kernel::GateBackward { dtype, gate }));
            if dx.is_some() {
                let product = kinds.input_gradient();
                launches.extend([format!("{product}: dX, from dG"), format!("{product}: dX, from dU added")]);
            }
            if let Some(GradientKind { dtype: out, .. }) = dwf {
                let product = kinds.weight_gradient(out);
                launches
                    .extend([format!("{product}: gate half of dWf"), format!("{product}: up half of dWf")]);
            }
            if let Some(sums) = needs.sums {
                launches.push(format!("{}: dbias", Kernel::PartialSums { dtype: sums.dtype }));
                launches.push(format!("{}: dbias", Kernel::TotalSums { out: sums.out }));
            }
        }
    }
    let mut plan = Plan::new(backend, launches, needs.workspace_bytes).note(format!(
        "cuBLAS has another {} bytes, allocated once for each handle",
        workspace_bytes(facts.capability)
    ));
    if dtype != Dtype::F32 {
        plan = plan
            .note(format!("pre-activations are rounded to {dtype} before the bias and the gate"))
            .note(format!(
                "products that are added to results in {dtype} are not by cuBLAS: it rounds them before"
            ));
    }
    if problem.options.tile != Tile::Auto {
        plan = plan.note("cuBLAS chooses its own tiles");
    }
    Ok(plan)
}

/// Enqueues a product of any shape.
///
/// Two kinds go to a kernel of this crate. A sum of nothing, because BLAS libraries differ on what such a product writes.
/// And what is added to a 16-bit result: cuBLAS (13.1, on an H100) rounds the product to 16 bits before it adds it. A sum
/// of integers that is 192 exactly came out as 191 in bf16.
pub(crate) fn multiply(call: &mut Call<'_>, product: &Product) -> Result<()> {
    match product.shape {
        (0, ..) | (_, 0, _) => Ok(()),
        (.., 0) if product.add => Ok(()),
        (.., 0) => multiply_by_kernel(call, planner(call), product),
        _ if rounds_before_adding(product) => multiply_by_kernel(call, planner(call), product),
        _ => call.cublas()?.multiply(product),
    }
}

fn rounds_before_adding(product: &Product) -> bool {
    product.add && product.kind.out != Dtype::F32
}

fn planner(call: &Call<'_>) -> Planner<'static> {
    Planner { facts: *call.facts(), forced: None, choices: None }
}

/// Enqueues a product by a kernel of this crate.
pub(crate) fn multiply_by_kernel(call: &Call<'_>, planner: Planner<'_>, product: &Product) -> Result<()> {
    let Product { kind, a, b, c, shape: (m, n, k), add } = *product;
    let gemm = planner.matmul(&Matmul {
        dtype: kind.dtype,
        out: kind.out,
        a_trans: kind.op_a == Op::T,
        b_trans: kind.op_b == Op::T,
        shape: (m, n),
        k,
        add,
        inputs: a.alignment(kind.dtype).min(b.alignment(kind.dtype)),
        outputs: c.alignment(kind.out),
    });
    let params = GemmParams {
        a: [a, Operand::NONE],
        b: [b, Operand::NONE],
        c: [c, Operand::NONE],
        m: m as i64,
        n: n as i64,
        k: k as i64,
        segments: 1,
        add: u32::from(add),
        ..GemmParams::default()
    };
    launch_gemm(call, gemm, &params)
}

/// Both halves of a matrix `[B, 2D]`.
fn halves(packed: Operand, hidden: usize, dtype: Dtype) -> [Operand; 2] {
    let up = packed.data.wrapping_add((hidden * dtype.bytes()) as u64);
    [packed, Operand { data: up, ..packed }]
}

/// Where pre-activations are while a pass runs.
fn pre_activations<T: Element>(
    call: &Call<'_>,
    needs: &Needs,
    kept: Option<&MatMut<'_, T, CudaMemory>>,
) -> Operand {
    match kept {
        Some(pre) => Operand::write(pre),
        None => needs.scratch.operand(call),
    }
}

/// pre = [x . Wa | x . Wb] + bias, in the element type.
fn project<T: Element>(
    call: &mut Call<'_>,
    problem: &Problem,
    x: MatRef<'_, T, CudaMemory>,
    w: &Weights<'_, T, CudaMemory>,
    pre: Operand,
) -> Result<()> {
    let Dims { batch, in_features, hidden } = problem.dims;
    let (kind, shape) = (Kinds::of(problem).projection(), (batch, hidden, in_features));
    let weights = [w.gate_weights(), w.up_weights()].map(Operand::read);
    for (b, c) in weights.into_iter().zip(halves(pre, hidden, T::DTYPE)) {
        multiply(call, &Product { kind, a: Operand::read(x), b, c, shape, add: false })?;
    }
    let Some(bias) = w.bias_row() else { return Ok(()) };
    let (rows, cols) = (batch as i64, 2 * hidden as i64);
    let params = AddBiasParams { bias: bias.ptr().address(), c: pre, rows, cols };
    call.launch_on(Kernel::AddBias { dtype: T::DTYPE }, rows, cols, &params)
}

/// The gate over pre-activations `[B, 2D]` and z, or dz.
fn gate_params<T: Element>(
    problem: &Problem,
    w: &Weights<'_, T, CudaMemory>,
    pre: Operand,
    z: Operand,
) -> Result<GateParams> {
    let Dims { batch, hidden, .. } = problem.dims;
    let (_, alpha, limit) = gate_code(w.function())?;
    Ok(GateParams::new(halves(pre, hidden, T::DTYPE), z, (batch, hidden), (alpha, limit)))
}

/// Enqueues a checked forward.
pub(crate) fn forward<T: Element>(queue: &Queue, call: Forward<'_, T, CudaMemory>) -> Result<()> {
    let Forward { problem, x, w, z, pre, .. } = call;
    let needs = Needs::of(&problem, pre.is_some())?;
    let mut call = queue.call(needs.workspace_bytes)?;
    let pre = pre_activations(&call, &needs, pre.as_ref());
    project(&mut call, &problem, x, &w, pre)?;
    let params = gate_params(&problem, &w, pre, Operand::write(&z))?;
    let kernel = Kernel::GateForward { dtype: T::DTYPE, gate: needs.gate };
    call.launch_on(kernel, params.rows, params.cols, &params)
}

/// Enqueues a checked backward.
pub(crate) fn backward<T: Element>(queue: &Queue, call: Backward<'_, T, CudaMemory>) -> Result<()> {
    let Backward { problem, x, w, upstream, pre, dx, dwf, dbias, .. } = call;
    let Dims { batch, hidden, .. } = problem.dims;
    let needs = Needs::of(&problem, pre.is_some())?;
    let mut call = queue.call(needs.workspace_bytes)?;
    let dab = pre_activations(&call, &needs, pre.as_ref());
    if pre.is_none() {
        project(&mut call, &problem, x, &w, dab)?;
    }
    let dz = match upstream {
        Upstream::Dz(dz) => Operand::read(dz),
        Upstream::Projected { dy, down, .. } => {
            let c = needs.dz.operand(&call);
            let (a, b) = (Operand::read(dy), Operand::read(down.matrix()));
            let kind = Kinds::of(&problem).upstream(down.orientation());
            let shape = (batch, hidden, down.out_features());
            multiply(&mut call, &Product { kind, a, b, c, shape, add: false })?;
            c
        }
    };
    let params = gate_params(&problem, &w, dab, dz)?;
    let kernel = Kernel::GateBackward { dtype: T::DTYPE, gate: needs.gate };
    call.launch_on(kernel, params.rows, params.cols, &params)?;
    if let Some(dx) = dx {
        input_gradient(&mut call, &problem, &w, dab, &dx)?;
    }
    if let Some(dwf) = dwf {
        weight_gradient(&mut call, &problem, x, dab, &dwf)?;
    }
    if let (Some(sums), Some(dbias)) = (needs.sums, dbias) {
        let params = sums.params((dab, batch, 2 * hidden), call.at(sums.partial), destination(&dbias));
        column_sums(&call, sums, &params)?;
    }
    Ok(())
}

/// dX = dG . Wa^T, and then += dU . Wb^T.
fn input_gradient<T: Element>(
    call: &mut Call<'_>,
    problem: &Problem,
    w: &Weights<'_, T, CudaMemory>,
    dab: Operand,
    dx: &Out<'_, T, CudaMemory>,
) -> Result<()> {
    let Dims { batch, in_features, hidden } = problem.dims;
    let (kind, shape) = (Kinds::of(problem).input_gradient(), (batch, in_features, hidden));
    let [dgate, dup] = halves(dab, hidden, T::DTYPE);
    let [gate, up] = [w.gate_weights(), w.up_weights()].map(Operand::read);
    let c = Operand::write(&dx.to);
    multiply(call, &Product { kind, a: dgate, b: gate, c, shape, add: dx.add })?;
    multiply(call, &Product { kind, a: dup, b: up, c, shape, add: true })
}

/// Both halves of dWf.
fn weight_gradient<T: Element>(
    call: &mut Call<'_>,
    problem: &Problem,
    x: MatRef<'_, T, CudaMemory>,
    dab: Operand,
    dwf: &Halves<'_, T, CudaMemory>,
) -> Result<()> {
    let (batch, hidden) = (problem.dims.batch, problem.dims.hidden);
    let (rows, cols) = dwf.gate.shape();
    for (half, target) in halves(dab, hidden, T::DTYPE).into_iter().zip([&dwf.gate, &dwf.up]) {
        let (c, add) = destination(target);
        let (a, b) = match problem.orientation {
            Orientation::InOut => (Operand::read(x), half),
            Orientation::OutIn => (half, Operand::read(x)),
        };
        let kind = Kinds::of(problem).weight_gradient(out_type(target));
        multiply(call, &Product { kind, a, b, c, shape: (rows, cols, batch), add })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
