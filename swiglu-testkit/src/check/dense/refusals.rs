//! Dense calls that must be refused.

use swiglu_core::{
    AdamW, Dense, Error, Gate, Gradient, LossTargets, MatMut, Matrix, Memory, Op, Scalar, Target,
};

use crate::bits::Value;
use crate::check::errors::{refuses, refuses_shape};
use crate::guarded::Guarded;
use crate::report::Failure;

fn matrix<S: Scalar, T: Value, B: Dense<T>>(
    backend: &B,
    (rows, cols): (usize, usize),
) -> swiglu_core::Result<Matrix<S, B::Memory>> {
    backend.zeros(rows, cols)
}

fn out<'a, S: Scalar, M: Memory>(m: &'a mut Matrix<S, M>) -> MatMut<'a, S, M> {
    m.view_mut()
}

/// Wrong shapes, gates and hyperparameters, each named, with nothing written.
pub(in crate::check) fn refusals<T: Value, B: Dense<T>>(backend: &B) -> Result<(), Failure> {
    let t = |shape| matrix::<T, T, B>(backend, shape);
    let word = |shape| matrix::<u32, T, B>(backend, shape);
    let float = |shape| matrix::<f32, T, B>(backend, shape);
    let mut to = Guarded::<T, _>::unwritten(backend, "output", (3, 4), 1)?;

    let (a, b) = (t((3, 5))?, t((6, 4))?);
    let outcome = backend.matmul((a.view(), Op::N), (b.view(), Op::N), Target::write(to.view_mut()));
    refuses_shape(outcome, "right factor", (5, 4), (6, 4))?;
    let b = t((5, 6))?;
    let outcome = backend.matmul((a.view(), Op::N), (b.view(), Op::N), Target::add(to.view_mut()));
    refuses_shape(outcome, "product", (3, 6), (3, 4))?;
    let outcome = backend.matmul((a.view(), Op::T), (b.view(), Op::N), Target::write(to.view_mut()));
    refuses_shape(outcome, "right factor", (3, 6), (5, 6))?;

    let outcome = backend.add_bias(t((1, 5))?.view(), to.view_mut());
    refuses_shape(outcome, "bias", (1, 4), (1, 5))?;
    let outcome = backend.add_bias(t((2, 4))?.view(), to.view_mut());
    refuses_shape(outcome, "bias", (1, 4), (2, 4))?;
    let outcome = backend.column_sums(t((7, 4))?.view(), Target::write(to.view_mut()));
    refuses_shape(outcome, "column sums", (1, 4), (3, 4))?;

    let pre = t((3, 7))?;
    refuses_shape(backend.gate(Gate::Glu, pre.view(), to.view_mut()), "pre-activations", (3, 8), (3, 7))?;
    let dz = t((3, 3))?;
    let outcome = backend.gate_backward(Gate::Glu, dz.view(), to.view_mut());
    refuses_shape(outcome, "pre-activations", (3, 6), (3, 4))?;
    let invalid = Gate::SwigluClamped { alpha: 1.0, limit: f32::NAN };
    let is_invalid = |e: &Error| matches!(e, Error::InvalidOption { .. });
    let (pre, two) = (t((3, 8))?, t((3, 2))?);
    refuses(backend.gate(invalid, pre.view(), to.view_mut()), "an invalid gate", is_invalid)?;
    refuses(backend.gate_backward(invalid, two.view(), to.view_mut()), "an invalid gate", is_invalid)?;

    let (from, rows) = (t((9, 4))?, word((4, 1))?);
    let outcome = backend.gather_rows(from.view(), rows.view(), to.view_mut());
    refuses_shape(outcome, "row indices", (3, 1), (4, 1))?;
    let (from, rows) = (t((9, 5))?, word((3, 1))?);
    let outcome = backend.gather_rows(from.view(), rows.view(), to.view_mut());
    refuses_shape(outcome, "gathered rows", (3, 5), (3, 4))?;

    // Shapes of labels, loss, hits, gradient; exactly one of them wrong.
    let logits = t((3, 4))?;
    let right = ((3, 1), (1, 1), (1, 1), (3, 4));
    for (shapes, operand, expected, got) in [
        (((4, 1), right.1, right.2, right.3), "labels", right.0, (4, 1)),
        ((right.0, (2, 1), right.2, right.3), "loss", right.1, (2, 1)),
        ((right.0, right.1, (1, 2), right.3), "correct", right.2, (1, 2)),
        ((right.0, right.1, right.2, (3, 5)), "dlogits", right.3, (3, 5)),
    ] {
        let (labels, mut loss) = (word(shapes.0)?, float(shapes.1)?);
        let (mut correct, mut dlogits) = (word(shapes.2)?, t(shapes.3)?);
        let targets = LossTargets {
            loss: out(&mut loss),
            correct: Some(out(&mut correct)),
            dlogits: Some(out(&mut dlogits)),
        };
        refuses_shape(backend.cross_entropy(logits.view(), labels.view(), targets), operand, expected, got)?;
    }

    let mut optimizer = backend.optimizer(t((3, 4))?.view())?;
    let gradient = t((4, 3))?;
    let hyper = AdamW::new(0.1);
    let outcome = backend.adamw(hyper, Gradient::Same(gradient.view()), &mut optimizer, to.view_mut());
    refuses_shape(outcome, "gradient", (3, 4), (4, 3))?;
    let gradient = float((3, 4))?;
    let mut small = backend.optimizer(t((3, 3))?.view())?;
    let outcome = backend.adamw(hyper, Gradient::F32(gradient.view()), &mut small, to.view_mut());
    refuses_shape(outcome, "optimizer", (3, 4), (3, 3))?;
    let wrong: [fn(&mut AdamW); 8] = [
        |h| h.lr = -1.0,
        |h| h.lr = f32::NAN,
        |h| h.beta1 = 1.0,
        |h| h.beta1 = -0.1,
        |h| h.beta2 = f32::NAN,
        |h| h.epsilon = 0.0,
        |h| h.epsilon = f32::INFINITY,
        |h| h.weight_decay = -1.0,
    ];
    for spoil in wrong {
        let mut hyper = hyper;
        spoil(&mut hyper);
        let outcome = backend.adamw(hyper, Gradient::F32(gradient.view()), &mut optimizer, to.view_mut());
        refuses(outcome, "an invalid hyperparameter", is_invalid)?;
    }
    to.unchanged(backend)
}
