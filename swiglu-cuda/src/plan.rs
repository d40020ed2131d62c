//! From a problem and a device to the kernels that solve it. Pure: everything here is tested without a GPU.

use swiglu_core::{Access, Dtype, Pass, Plan, Problem, Result, Route};

use crate::device::Facts;
use crate::gemm::Family;
use crate::tune::{Choices, Told};
use crate::{ComputeCapability, composed};

mod backward;
mod clocks;
mod few;
mod forward;
mod product;
mod turns;

pub(crate) use backward::{BackwardPlan, Cotangents, Sums};
pub(crate) use clocks::{copy_clocks, sm90_clocks};
pub(crate) use forward::ForwardPlan;
pub(crate) use product::Matmul;

/// Bytes of the widest access, `ld.global.v4`: what vector loads, and `cp.async`, need rows to be aligned to.
const VECTOR: u32 = 16;
/// Ampere: the first architecture with bf16 and TF32 products and `cp.async`.
const MMA: ComputeCapability = ComputeCapability { major: 8, minor: 0 };
/// Hopper, whose instructions no later architecture has.
const SM90: ComputeCapability = ComputeCapability { major: 9, minor: 0 };
/// Coordinates of TMA are 32-bit with a sign, and the last tile, or the last of a pair, may begin 128 and end 256 past the
/// end of a matrix.
const MAX_COORDINATE: usize = i32::MAX as usize - 256;

/// How a device is to be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planner<'c> {
    pub(crate) facts: Facts,
    /// The family to take wherever it accepts the problem.
    pub(crate) forced: Option<Family>,
    /// What was measured, where that is to count.
    pub(crate) choices: Option<&'c dyn Choices>,
}

/// The alignment of column `at` of a matrix with this access.
fn part(access: Access, at: usize, dtype: Dtype) -> u32 {
    let bytes = (at * dtype.bytes()) as u64;
    access.align.min(1 << bytes.trailing_zeros().min(Access::MAX_ALIGN.trailing_zeros()))
}

/// The alignment of both halves of a packed `[B, 2D]` matrix.
fn halves(access: Access, hidden: usize, dtype: Dtype) -> u32 {
    access.align.min(part(access, hidden, dtype))
}

/// The least alignment of the rows of x and of the weights.
fn inputs(problem: &Problem) -> u32 {
    let accesses = &problem.accesses;
    accesses.x.align.min(accesses.gate.align).min(accesses.up.align)
}

impl Planner<'_> {
    /// The plan as users see it.
    pub(crate) fn describe(&self, backend: String, problem: &Problem) -> Result<Plan> {
        if problem.options.route == Route::Composed {
            return composed::describe(backend, problem, &self.facts);
        }
        let told = Told::by(self.choices);
        let planner = Planner { choices: Some(&told), ..*self };
        let (launches, bytes, notes) = match problem.pass {
            Pass::Forward { save } => {
                let ForwardPlan { kernel, realigned, rounded, workspace_bytes, notes } =
                    planner.forward(problem, save)?;
                let last = format!("{kernel}: {} of both projections", problem.gate);
                let launches = [realigned.launches(), rounded.launches(), vec![last]].concat();
                (launches, workspace_bytes, notes)
            }
            Pass::Backward { .. } => {
                let plan = planner.backward(problem)?;
                (plan.launches(problem), plan.workspace_bytes, plan.notes)
            }
        };
        let notes = notes.texts().chain(told.into_notes());
        Ok(notes.fold(Plan::new(backend, launches, bytes), Plan::note))
    }
}

#[cfg(test)]
mod tests;
