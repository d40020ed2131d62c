//! The op's two passes, enqueued.

use swiglu_core::ops::{Backward, Forward};
use swiglu_core::{
    Dims, Dtype, Element, Halves, MatMut, Orientation, Out, Problem, Result, Target, Upstream, Weights,
};

use crate::gemm::{Family, GateCode, Gemm};
use crate::hopper;
use crate::kernel::{Kernel, gate_code};
use crate::memory::CudaMemory;
use crate::params::{ColumnSumsParams, GateParams, GemmParams, Operand};
use crate::plan::{BackwardPlan, Cotangents, Planner, Sums};
use crate::queue::{Call, Queue};
use crate::realign::{self, Room, Rounded};

/// Starts a product whose operands are rounded first, where there is room for that.
fn launch_rounded(call: &Call<'_>, gemm: Gemm, rounded: &Rounded, params: &GemmParams) -> Result<()> {
    launch_gemm(call, gemm, &rounded.fill(call, params)?)
}

/// Starts a product whose operands are in place.
pub(crate) fn launch_gemm(call: &Call<'_>, gemm: Gemm, params: &GemmParams) -> Result<()> {
    let products =
        if gemm.product.has_gate() || params.segments == 2 || params.c[1] == Operand::NONE { 1 } else { 2 };
    if gemm.family == Family::Sm90 {
        return hopper::launch(call, gemm, products, params);
    }
    call.launch_copies(Kernel::Gemm(gemm), (params.m, params.n, products), params)
}

/// The parts of x . Wf that every projection has. `a` and `b` are x and the halves of the weights, wherever they are.
fn projection<T: Element>(
    (rows, a): (usize, Operand),
    (w, b): (&Weights<'_, T, CudaMemory>, [Operand; 2]),
) -> Result<GemmParams> {
    let (_, alpha, limit) = gate_code(w.function())?;
    let hidden = w.hidden();
    let bias = match w.bias_row() {
        None => [0, 0],
        Some(bias) => {
            let gate = bias.sub(0..1, 0..hidden)?;
            let up = bias.sub(0..1, hidden..2 * hidden)?;
            [gate.ptr().address(), up.ptr().address()]
        }
    };
    Ok(GemmParams {
        a: [a, Operand::NONE],
        b,
        bias,
        m: rows as i64,
        n: hidden as i64,
        k: w.in_features() as i64,
        alpha,
        limit,
        segments: 1,
        ..GemmParams::default()
    })
}

/// Both halves of the weights.
fn weight_operands<T: Element>(w: &Weights<'_, T, CudaMemory>) -> [Operand; 2] {
    [Operand::read(w.gate_weights()), Operand::read(w.up_weights())]
}

/// Enqueues a checked forward.
pub(crate) fn forward<T: Element>(
    queue: &Queue,
    planner: Planner<'_>,
    call: Forward<'_, T, CudaMemory>,
) -> Result<()> {
    let Forward { problem, x, w, z, pre, .. } = call;
    let plan = planner.forward(&problem, pre.is_some())?;
    let call = queue.call(plan.workspace_bytes)?;
    let (a, b) = plan.realigned.copy(&call, Operand::read(x), weight_operands(&w))?;
    let mut params = projection((x.rows(), a), (&w, b))?;
    params.c[0] = Operand::write(&z);
    if let Some(pre) = pre {
        let (gate, up) = pre.split_cols(w.hidden())?;
        params.pre = [Operand::write(&gate), Operand::write(&up)];
    }
    match plan.kernel {
        Kernel::Gemm(gemm) => launch_rounded(&call, gemm, &plan.rounded, &params),
        Kernel::Decode(decode) => hopper::launch_decode(&call, decode, &params),
        kernel => call.launch_on(kernel, params.m, params.n, &params),
    }
}

/// dAB while backward runs: its two halves.
#[derive(Clone, Copy)]
struct Dab {
    gate: Operand,
    up: Operand,
}

impl Dab {
    /// Where the pre-activations are.
    fn in_place<T: Element>(pre: MatMut<'_, T, CudaMemory>, hidden: usize) -> Result<Self> {
        let (gate, up) = pre.split_cols(hidden)?;
        Ok(Self { gate: Operand::write(&gate), up: Operand::write(&up) })
    }

    /// In the workspace.
    fn at(call: &Call<'_>, rooms: [Room; 2]) -> Self {
        let [gate, up] = rooms.map(|room| room.operand(call));
        Self { gate, up }
    }

    /// The same for products to write, which leave the ends of rows as they are.
    fn in_rooms(call: &Call<'_>, rooms: [Room; 2]) -> Result<Self> {
        rooms.iter().try_for_each(|room| room.clear_ends(call))?;
        Ok(Self::at(call, rooms))
    }
}

/// Enqueues a checked backward.
pub(crate) fn backward<T: Element>(
    queue: &Queue,
    planner: Planner<'_>,
    call: Backward<'_, T, CudaMemory>,
) -> Result<()> {
    let Backward { problem, x, w, upstream, pre, dx, dwf, dbias, .. } = call;
    let Dims { batch, in_features, hidden } = problem.dims;
    let plan = planner.backward(&problem)?;
    let call = queue.call(plan.workspace_bytes)?;
    let plain = plan.realigned.copy(&call, Operand::read(x), weight_operands(&w))?;
    let parts = plan.split.projected.copy(&call, plain.0, plain.1)?;
    let projected = |gemm: Gemm| if gemm.splits() { parts } else { plain };
    let pre = pre.map(|pre| Dab::in_place(pre, hidden)).transpose()?;
    let forming = Forming { call: &call, plan: &plan, problem: &problem, w: &w, upstream };
    let Some(dab) = forming.cotangents(pre, projected)? else { return Ok(()) };
    let dab_parts = match plan.split.dab {
        Some(rooms) => {
            let [gate, up] = realign::fill(&call, rooms.map(Some), [dab.gate, dab.up])?;
            Dab { gate, up }
        }
        None => dab,
    };
    let factor = |gemm: Gemm| if gemm.splits() { dab_parts } else { dab };
    if let (Some(gemm), Some(Out { to, add })) = (plan.dx, dx) {
        let Dab { gate, up } = factor(gemm);
        let params = GemmParams {
            a: [gate, up],
            b: projected(gemm).1,
            c: [Operand::write(&to), Operand::NONE],
            m: batch as i64,
            n: in_features as i64,
            k: hidden as i64,
            segments: 2,
            add: u32::from(add),
            ..GemmParams::default()
        };
        match plan.cotangents {
            Cotangents::Formed { progress } => {
                let (_, alpha, limit) = gate_code(w.function())?;
                let params = GemmParams { dz: forming.dz(), alpha, limit, ..params };
                hopper::launch_forming(&call, gemm, progress, &params)?;
            }
            Cotangents::Saved { .. } | Cotangents::Recomputed { .. } | Cotangents::Projected { .. } => {
                launch_rounded(&call, gemm, &plan.rounded.dx, &params)?;
            }
        }
    }
    if let (Some(gemm), Some(dwf)) = (plan.dwf, dwf) {
        let x = projected(gemm).0;
        let params = weight_gradient(w.orientation(), (batch, x), factor(gemm), dwf);
        launch_rounded(&call, gemm, &plan.rounded.dwf, &params)?;
    }
    if let (Some(sums), Some(dbias)) = (plan.sums, dbias) {
        let (to, add) = destination(&dbias);
        // In place of saved pre-activations the halves are one matrix: half the launches, for the same sums.
        let row = (hidden * T::DTYPE.bytes()) as u64;
        let one = dab.up == Operand { data: dab.gate.data + row, ..dab.gate };
        let (parts, cols) = if one { (1, 2 * hidden) } else { (2, hidden) };
        for (part, a) in [dab.gate, dab.up].into_iter().enumerate().take(parts) {
            let to = Operand { data: to.data + (part * sums.out.bytes() * cols) as u64, ..to };
            let partial = call.at(sums.partial + part * sums.chunks * cols * size_of::<f32>());
            column_sums(&call, sums, &sums.params((a, batch, cols), partial, (to, add)))?;
        }
    }
    Ok(())
}

/// What dAB is made of.
struct Forming<'a, T: Element> {
    call: &'a Call<'a>,
    plan: &'a BackwardPlan,
    problem: &'a Problem,
    w: &'a Weights<'a, T, CudaMemory>,
    upstream: Upstream<'a, T, CudaMemory>,
}

impl<T: Element> Forming<'_, T> {
    /// dz, where it is an operand.
    fn dz(&self) -> Operand {
        match self.upstream {
            Upstream::Dz(dz) => Operand::read(dz),
            Upstream::Projected { .. } => Operand::NONE,
        }
    }

    /// Enqueues what makes dAB, but for what dX makes on its way. `pre` are saved pre-activations, and `projected` says
    /// what a product reads for x and the weights. `None` without what the plan builds on, which comes from the same call.
    fn cotangents(
        &self,
        pre: Option<Dab>,
        projected: impl Fn(Gemm) -> (Operand, [Operand; 2]),
    ) -> Result<Option<Dab>> {
        let Self { call, plan, w, .. } = *self;
        let batch = self.problem.dims.batch;
        match (plan.cotangents, pre) {
            (Cotangents::Recomputed { gemm, to }, _) => {
                let dab = Dab::in_rooms(call, to)?;
                let (x, weights) = projected(gemm);
                let projection = projection((batch, x), (w, weights))?;
                let params = GemmParams { c: [dab.gate, dab.up], dz: self.dz(), ..projection };
                launch_rounded(call, gemm, &plan.rounded.cotangents, &params)?;
                Ok(Some(dab))
            }
            (Cotangents::Projected { gemm, again: Some(again), to: Some(to) }, _) => {
                let dab = Dab::in_rooms(call, to)?;
                let (x, b) = projected(again);
                let (a, c) = ([x; 2], [dab.gate, dab.up]);
                let projection = projection((batch, x), (w, b))?;
                // The bias comes with the gate gradient.
                let bias = projection.bias;
                let params = GemmParams { a, c, bias: [0, 0], ..projection };
                launch_rounded(call, again, &plan.rounded.cotangents, &params)?;
                self.project_back(gemm, (dab, bias), dab)?;
                Ok(Some(dab))
            }
            (Cotangents::Projected { gemm, again: None, to }, Some(pre)) => {
                let dab = to.map_or(Ok(pre), |rooms| Dab::in_rooms(call, rooms))?;
                self.project_back(gemm, (pre, [0, 0]), dab)?;
                Ok(Some(dab))
            }
            (Cotangents::Saved { gate, to }, Some(pre)) => {
                let rooms = to.map(|rooms| Dab::at(call, rooms));
                self.gate_gradient(gate, pre, rooms)?;
                Ok(Some(rooms.unwrap_or(pre)))
            }
            (Cotangents::Formed { .. }, pre) => Ok(pre),
            (Cotangents::Saved { .. } | Cotangents::Projected { .. }, _) => Ok(None),
        }
    }

    /// The pass over pre-activations and dz, in place or into rooms.
    fn gate_gradient(&self, gate: GateCode, pre: Dab, rooms: Option<Dab>) -> Result<()> {
        let (_, alpha, limit) = gate_code(self.w.function())?;
        let Dims { batch, hidden, .. } = self.problem.dims;
        let in_place = GateParams::new([pre.gate, pre.up], self.dz(), (batch, hidden), (alpha, limit));
        let params = rooms.map_or(in_place, |dab| in_place.to_rooms([dab.gate, dab.up]));
        let kernel = Kernel::GateBackward { dtype: T::DTYPE, gate };
        self.call.launch_on(kernel, params.rows, params.cols, &params)
    }

    /// dy . Wdown^T, on whose sums pre-activations become dAB; with a bias that they lack.
    fn project_back(&self, gemm: Gemm, (pre, bias): (Dab, [u64; 2]), dab: Dab) -> Result<()> {
        let Upstream::Projected { dy, down, .. } = self.upstream else { return Ok(()) };
        let (_, alpha, limit) = gate_code(self.w.function())?;
        let params = GemmParams {
            a: [Operand::read(dy), Operand::NONE],
            b: [Operand::read(down.matrix()), Operand::NONE],
            c: [dab.gate, dab.up],
            pre: [pre.gate, pre.up],
            bias,
            m: self.problem.dims.batch as i64,
            n: self.problem.dims.hidden as i64,
            k: down.out_features() as i64,
            alpha,
            limit,
            segments: 1,
            ..GemmParams::default()
        };
        launch_rounded(self.call, gemm, &self.plan.rounded.dz, &params)
    }
}

/// dWf = X^T . dAB for `[I, 2D]` weights, dAB^T . X for `[2D, I]`: two products in one launch.
fn weight_gradient<T: Element>(
    orientation: Orientation,
    (batch, x): (usize, Operand),
    dab: Dab,
    dwf: Halves<'_, T, CudaMemory>,
) -> GemmParams {
    let (rows, cols) = dwf.gate.shape();
    let ((gate, add), (up, _)) = (destination(&dwf.gate), destination(&dwf.up));
    let (x, dab) = ([x; 2], [dab.gate, dab.up]);
    let (a, b) = match orientation {
        Orientation::InOut => (x, dab),
        Orientation::OutIn => (dab, x),
    };
    GemmParams {
        a,
        b,
        c: [gate, up],
        m: rows as i64,
        n: cols as i64,
        k: batch as i64,
        segments: 1,
        add: u32::from(add),
        ..GemmParams::default()
    }
}

/// Where a gradient goes, and whether it is added to what is there.
pub(crate) fn destination<T: Element>(target: &Target<'_, T, CudaMemory>) -> (Operand, bool) {
    match target {
        Target::Same(out) => (Operand::write(&out.to), out.add),
        Target::F32(out) => (Operand::write(&out.to), out.add),
    }
}

/// The type that a result is rounded to.
pub(crate) fn out_type<T: Element>(target: &Target<'_, T, CudaMemory>) -> Dtype {
    match target {
        Target::Same(_) => T::DTYPE,
        Target::F32(_) => Dtype::F32,
    }
}

/// Both stages of column sums.
pub(crate) fn column_sums(call: &Call<'_>, sums: Sums, params: &ColumnSumsParams) -> Result<()> {
    call.launch_on(Kernel::PartialSums { dtype: sums.dtype }, params.chunks, params.cols, params)?;
    call.launch_on(Kernel::TotalSums { out: sums.out }, 1, params.cols, params)
}
