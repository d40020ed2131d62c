//! Operands of each operation, as a backend receives them inside of a [`Checked`](crate::Checked).

use crate::dense::{AdamW, Gradient, Op, OptimizerMut};
use crate::element::{Element, Scalar};
use crate::gate::Gate;
use crate::gradients::{Halves, Out, Target};
use crate::host::Host;
use crate::memory::{MatMut, MatRef, Memory};
use crate::problem::Problem;
use crate::upstream::Upstream;
use crate::weights::Weights;

/// `to = from`, from the host. Equal shapes.
#[derive(Debug)]
pub struct CopyIn<'a, T: Scalar, M: Memory> {
    /// Source.
    pub from: MatRef<'a, T, Host>,
    /// Destination.
    pub to: MatMut<'a, T, M>,
}

/// A copy within the device.
#[derive(Debug)]
pub struct Copy<'a, T: Scalar, M: Memory> {
    /// Source.
    pub from: MatRef<'a, T, M>,
    /// Destination, of the same shape.
    pub to: MatMut<'a, T, M>,
}

/// `to = from`, to the host. Equal shapes.
#[derive(Debug)]
pub struct CopyOut<'a, T: Scalar, M: Memory> {
    /// Source.
    pub from: MatRef<'a, T, M>,
    /// Destination.
    pub to: MatMut<'a, T, Host>,
}

/// z = h(x . Wa + ba, x . Wb + bb), and the pre-activations when asked for.
#[derive(Debug)]
pub struct Forward<'a, T: Element, M: Memory> {
    /// The call as a plan sees it.
    pub problem: Problem,
    /// `[B, I]`.
    pub x: MatRef<'a, T, M>,
    /// I to D.
    pub w: Weights<'a, T, M>,
    /// `[B, D]`; overlaps nothing.
    pub z: MatMut<'a, T, M>,
    /// `[B, 2D]`, gate half first; overlaps nothing.
    pub pre: Option<MatMut<'a, T, M>>,
}

/// The gradients that are `Some`.
#[derive(Debug)]
pub struct Backward<'a, T: Element, M: Memory> {
    /// The call as a plan sees it.
    pub problem: Problem,
    /// `[B, I]`.
    pub x: MatRef<'a, T, M>,
    /// I to D.
    pub w: Weights<'a, T, M>,
    /// dz `[B, D]`, or what it comes from.
    pub upstream: Upstream<'a, T, M>,
    /// `[B, 2D]`: the saved pre-activations, which become dAB = [dG | dU] in place. `None`: compute them again.
    pub pre: Option<MatMut<'a, T, M>>,
    /// `[B, I]`.
    pub dx: Option<Out<'a, T, M>>,
    /// Each of the weights' half shape.
    pub dwf: Option<Halves<'a, T, M>>,
    /// `[1, 2D]`.
    pub dbias: Option<Target<'a, T, M>>,
}

/// c = op(a) . op(b), or `+=`.
#[derive(Debug)]
pub struct MatMul<'a, T: Element, M: Memory> {
    /// Left factor, `[m, k]` after `op_a`.
    pub a: MatRef<'a, T, M>,
    /// Transposition of `a`.
    pub op_a: Op,
    /// Right factor, `[k, n]` after `op_b`.
    pub b: MatRef<'a, T, M>,
    /// Transposition of `b`.
    pub op_b: Op,
    /// `[m, n]`.
    pub c: Target<'a, T, M>,
}

/// `c[i][j] += bias[j]`.
#[derive(Debug)]
pub struct AddBias<'a, T: Element, M: Memory> {
    /// `[1, n]`.
    pub bias: MatRef<'a, T, M>,
    /// `[m, n]`.
    pub c: MatMut<'a, T, M>,
}

/// Sum over the rows of `a`: a bias gradient.
#[derive(Debug)]
pub struct ColumnSums<'a, T: Element, M: Memory> {
    /// `[m, n]`.
    pub a: MatRef<'a, T, M>,
    /// `[1, n]`.
    pub to: Target<'a, T, M>,
}

/// z = h(g, u) for pre-activations `[g | u]`.
#[derive(Debug)]
pub struct GateForward<'a, T: Element, M: Memory> {
    /// The function.
    pub gate: Gate,
    /// `[B, 2D]`.
    pub pre: MatRef<'a, T, M>,
    /// `[B, D]`.
    pub z: MatMut<'a, T, M>,
}

/// Pre-activations become their gradient, in place.
#[derive(Debug)]
pub struct GateBackward<'a, T: Element, M: Memory> {
    /// The function.
    pub gate: Gate,
    /// `[B, D]`.
    pub dz: MatRef<'a, T, M>,
    /// `[B, 2D]`.
    pub pre: MatMut<'a, T, M>,
}

/// `to[i] = from[rows[i]]`.
#[derive(Debug)]
pub struct GatherRows<'a, T: Element, M: Memory> {
    /// `[N, n]`.
    pub from: MatRef<'a, T, M>,
    /// `[m, 1]`, each below N.
    pub rows: MatRef<'a, u32, M>,
    /// `[m, n]`.
    pub to: MatMut<'a, T, M>,
}

/// Mean cross-entropy of a softmax over each row.
#[derive(Debug)]
pub struct CrossEntropy<'a, T: Element, M: Memory> {
    /// `[B, classes]`.
    pub logits: MatRef<'a, T, M>,
    /// `[B, 1]`.
    pub labels: MatRef<'a, u32, M>,
    /// `[1, 1]`: the mean loss.
    pub loss: MatMut<'a, f32, M>,
    /// `[1, 1]`: rows whose largest logit, the first of equals, is the label's.
    pub correct: Option<MatMut<'a, u32, M>>,
    /// `[B, classes]`: the gradient of the mean loss.
    pub dlogits: Option<MatMut<'a, T, M>>,
}

/// One AdamW step of one parameter matrix.
#[derive(Debug)]
pub struct AdamWStep<'a, T: Element, M: Memory> {
    /// Rate, decays and epsilon.
    pub hyper: AdamW,
    /// Of the parameter's shape.
    pub gradient: Gradient<'a, T, M>,
    /// What the optimizer keeps for this parameter.
    pub state: OptimizerMut<'a, M>,
    /// The parameter.
    pub parameter: MatMut<'a, T, M>,
}
