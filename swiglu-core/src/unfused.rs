//! The op composed from dense operations: two projections, a pass over the pre-activations, plain products.

use crate::backend::{Backend, Replay};
use crate::checked::Checked;
use crate::dense::{Dense, Op};
use crate::element::{Element, Scalar};
use crate::error::Result;
use crate::gradients::{Halves, Out, Target};
use crate::memory::{DeviceId, MatMut, MatRef, Matrix, StreamId};
use crate::ops::{
    AdamWStep, AddBias, Backward, ColumnSums, Copy, CopyIn, CopyOut, CrossEntropy, Forward, GateBackward,
    GateForward, GatherRows, MatMul,
};
use crate::problem::{Pass, Plan, Problem, UpstreamKind};
use crate::swiglu::SwiGLU;
use crate::upstream::{Down, Upstream};
use crate::weights::{Orientation, Weights};

/// The Liger-style baseline: the op over any [`Dense`] backend, in that backend's memory.
///
/// Pre-activations go through memory in the element type, so they are rounded once more than in a fused kernel.
///
/// ```
/// use swiglu_core::{Backend, Unfused};
/// use swiglu_cpu::Cpu;
/// assert!(Unfused(Cpu::new()).name().starts_with("unfused cpu"));
/// ```
#[derive(Clone, Debug)]
pub struct Unfused<B>(pub B);

impl<B: Backend> Backend for Unfused<B> {
    type Memory = B::Memory;

    fn name(&self) -> String {
        format!("unfused {}", self.0.name())
    }

    fn device(&self) -> DeviceId {
        self.0.device()
    }

    fn stream(&self) -> StreamId {
        self.0.stream()
    }

    fn zeros<T: Scalar>(&self, rows: usize, cols: usize) -> Result<Matrix<T, B::Memory>> {
        self.0.zeros(rows, cols)
    }

    fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }

    fn reserve(&self, plan: &Plan) -> Result<()> {
        self.0.reserve(plan)
    }

    fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        self.0.capture(work)
    }

    fn run_copy<T: Scalar>(&self, call: Checked<Copy<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_copy(call)
    }

    fn run_copy_in<T: Scalar>(&self, call: Checked<CopyIn<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_copy_in(call)
    }

    fn run_copy_out<T: Scalar>(&self, call: Checked<CopyOut<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_copy_out(call)
    }
}

/// pre = [x . Wa | x . Wb] + bias, in the element type.
fn project<T: Element, B: Dense<T>>(
    dense: &B,
    x: MatRef<'_, T, B::Memory>,
    w: Weights<'_, T, B::Memory>,
    mut pre: MatMut<'_, T, B::Memory>,
) -> Result<()> {
    let op = match w.orientation() {
        Orientation::InOut => Op::N,
        Orientation::OutIn => Op::T,
    };
    let (gate, up) = pre.view_mut().split_cols(w.hidden())?;
    dense.matmul((x, Op::N), (w.gate_weights(), op), Target::write(gate))?;
    dense.matmul((x, Op::N), (w.up_weights(), op), Target::write(up))?;
    match w.bias_row() {
        Some(bias) => dense.add_bias(bias, pre),
        None => Ok(()),
    }
}

/// dz = dy . Wdown^T, in the element type.
fn project_back<T: Element, B: Dense<T>>(
    dense: &B,
    dy: MatRef<'_, T, B::Memory>,
    down: Down<'_, T, B::Memory>,
    dz: MatMut<'_, T, B::Memory>,
) -> Result<()> {
    let op = match down.op() {
        Op::N => Op::T,
        Op::T => Op::N,
    };
    dense.matmul((dy, Op::N), (down.matrix(), op), Target::write(dz))
}

/// dX = dG . Wa^T + dU . Wb^T.
fn input_gradient<T: Element, B: Dense<T>>(
    dense: &B,
    w: Weights<'_, T, B::Memory>,
    dab: MatRef<'_, T, B::Memory>,
    dx: Out<'_, T, B::Memory>,
) -> Result<()> {
    let op = match w.orientation() {
        Orientation::InOut => Op::T,
        Orientation::OutIn => Op::N,
    };
    let (rows, hidden) = (dab.rows(), w.hidden());
    let Out { mut to, add } = dx;
    let first = Out { to: to.view_mut(), add };
    dense.matmul((dab.sub(0..rows, 0..hidden)?, Op::N), (w.gate_weights(), op), Target::Same(first))?;
    dense.matmul((dab.sub(0..rows, hidden..2 * hidden)?, Op::N), (w.up_weights(), op), Target::add(to))
}

/// dWf = X^T . dAB, or its transpose.
fn weight_gradient<T: Element, B: Dense<T>>(
    dense: &B,
    orientation: Orientation,
    x: MatRef<'_, T, B::Memory>,
    dab: MatRef<'_, T, B::Memory>,
    dwf: Halves<'_, T, B::Memory>,
) -> Result<()> {
    let (rows, hidden) = (dab.rows(), dab.cols() / 2);
    for (half, target) in [(0, dwf.gate), (hidden, dwf.up)] {
        let dhalf = dab.sub(0..rows, half..half + hidden)?;
        match orientation {
            Orientation::InOut => dense.matmul((x, Op::T), (dhalf, Op::N), target)?,
            Orientation::OutIn => dense.matmul((dhalf, Op::T), (x, Op::N), target)?,
        }
    }
    Ok(())
}

impl<T: Element, B: Dense<T>> SwiGLU<T> for Unfused<B> {
    fn run_forward(&self, call: Checked<Forward<'_, T, B::Memory>>) -> Result<()> {
        let Forward { x, w, z, pre, .. } = call.into_inner();
        let mut own;
        let mut pre = match pre {
            Some(pre) => pre,
            None => {
                own = self.zeros(x.rows(), 2 * w.hidden())?;
                own.view_mut()
            }
        };
        project(&self.0, x, w, pre.view_mut())?;
        self.0.gate(w.function(), pre.view(), z)
    }

    fn run_backward(&self, call: Checked<Backward<'_, T, B::Memory>>) -> Result<()> {
        let Backward { x, w, upstream, pre, dx, dwf, dbias, .. } = call.into_inner();
        let mut own;
        let mut pre = match pre {
            Some(pre) => pre,
            None => {
                own = self.zeros(x.rows(), 2 * w.hidden())?;
                project(&self.0, x, w, own.view_mut())?;
                own.view_mut()
            }
        };
        match upstream {
            Upstream::Dz(dz) => self.0.gate_backward(w.function(), dz, pre.view_mut())?,
            Upstream::Projected { dy, down } => {
                let mut dz = self.zeros(x.rows(), w.hidden())?;
                project_back(&self.0, dy, down, dz.view_mut())?;
                self.0.gate_backward(w.function(), dz.view(), pre.view_mut())?;
            }
        }
        let dab = pre.view();
        if let Some(dx) = dx {
            input_gradient(&self.0, w, dab, dx)?;
        }
        if let Some(dwf) = dwf {
            weight_gradient(&self.0, w.orientation(), x, dab, dwf)?;
        }
        if let Some(dbias) = dbias {
            self.0.column_sums(dab, dbias)?;
        }
        Ok(())
    }

    fn plan(&self, problem: &Problem) -> Result<Plan> {
        let mut launches = Vec::new();
        let mut project = || {
            launches.extend(["matmul gate".to_owned(), "matmul up".to_owned()]);
            if problem.bias {
                launches.push("add bias".to_owned());
            }
        };
        match problem.pass {
            Pass::Forward { .. } => {
                project();
                launches.push(format!("gate {}", problem.gate));
            }
            Pass::Backward { saved, dx, dwf, dbias } => {
                if !saved {
                    project();
                }
                if problem.upstream != UpstreamKind::Dz {
                    launches.push("matmul dz".to_owned());
                }
                launches.push(format!("gate gradient {}", problem.gate));
                if dx.is_some() {
                    launches.extend(["matmul dx gate".to_owned(), "matmul dx up".to_owned()]);
                }
                if dwf.is_some() {
                    launches.extend(["matmul dwf gate".to_owned(), "matmul dwf up".to_owned()]);
                }
                if dbias.is_some() {
                    launches.push("column sums".to_owned());
                }
            }
        }
        Ok(Plan::new(self.name(), launches, 0)
            .note("pre-activations, and a dz that comes from dy, go through memory, allocated by the call"))
    }
}

impl<T: Element, B: Dense<T>> Dense<T> for Unfused<B> {
    fn run_matmul(&self, call: Checked<MatMul<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_matmul(call)
    }

    fn run_add_bias(&self, call: Checked<AddBias<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_add_bias(call)
    }

    fn run_column_sums(&self, call: Checked<ColumnSums<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_column_sums(call)
    }

    fn run_gate(&self, call: Checked<GateForward<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_gate(call)
    }

    fn run_gate_backward(&self, call: Checked<GateBackward<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_gate_backward(call)
    }

    fn run_gather_rows(&self, call: Checked<GatherRows<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_gather_rows(call)
    }

    fn run_cross_entropy(&self, call: Checked<CrossEntropy<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_cross_entropy(call)
    }

    fn run_adamw(&self, call: Checked<AdamWStep<'_, T, B::Memory>>) -> Result<()> {
        self.0.run_adamw(call)
    }
}
