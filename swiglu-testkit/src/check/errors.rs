//! Calls that must be refused: with the operand and the numbers, and with nothing written.

use half::bf16;
use ndarray::Array2;
use swiglu_core::{
    Error, Gate, Gradients, MatRef, Matrix, Options, Orientation, Out, Save, SwiGLU, Target, Weights,
};

use crate::bits::{Value, difference};
use crate::case::Case;
use crate::data::Inputs;
use crate::guarded::Guarded;
use crate::part::{beside, part};
use crate::report::{Failure, Report, ensure};
use crate::suite::Complete;

type Shape = (usize, usize);
type Outcome = swiglu_core::Result<()>;

const B: usize = 5;
const I: usize = 7;
const D: usize = 6;

/// Refused with [`Error::Shape`] that says what it should, in words too.
pub(super) fn refuses_shape(
    outcome: Outcome,
    operand: &str,
    expected: Shape,
    got: Shape,
) -> Result<(), Failure> {
    let said = format!("{outcome:?}");
    let right = match &outcome {
        Err(error @ Error::Shape { operand: o, expected: e, got: g }) => {
            let numbers = format!("expected [{}, {}], got [{}, {}]", e.0, e.1, g.0, g.1);
            *o == operand && *e == expected && *g == got && error.to_string().contains(&numbers)
        }
        _ => false,
    };
    ensure(right, || format!("expected {operand} to be refused, {got:?} for {expected:?}; got {said}"))
}

/// Refused with an error that `is` accepts.
pub(super) fn refuses(outcome: Outcome, what: &str, is: impl Fn(&Error) -> bool) -> Result<(), Failure> {
    let said = format!("{outcome:?}");
    ensure(outcome.is_err_and(|e| is(&e)), || format!("expected {what}, got {said}"))
}

/// Operands of one small call, and matrices of other shapes.
struct Bench<'a, T: Value, K: SwiGLU<T>> {
    backend: &'a K,
    inputs: Inputs<T>,
    x: Matrix<T, K::Memory>,
    wf: Matrix<T, K::Memory>,
    dz: Matrix<T, K::Memory>,
}

impl<'a, T: Value, K: SwiGLU<T>> Bench<'a, T, K> {
    fn new(backend: &'a K) -> Result<Self, Failure> {
        let inputs = Inputs::<T>::draw(&Case { seed: 3, ..Case::new(B, I, D, T::DTYPE) });
        let up = |a: &Array2<T>| backend.upload(MatRef::try_from(a)?);
        let wf = beside(&inputs.gate_weights, &inputs.up_weights);
        Ok(Self { backend, x: up(&inputs.x)?, wf: up(&wf)?, dz: up(&inputs.dz)?, inputs })
    }

    fn zeros(&self, (rows, cols): Shape) -> swiglu_core::Result<Matrix<T, K::Memory>> {
        self.backend.zeros(rows, cols)
    }

    fn weights(&self) -> swiglu_core::Result<Weights<'_, T, K::Memory>> {
        Weights::packed(self.wf.view(), Orientation::InOut)
    }

    /// A forward that must be refused, with z untouched.
    fn forward(
        &self,
        x: &Matrix<T, K::Memory>,
        w: Weights<'_, T, K::Memory>,
        z: Shape,
        check: impl Fn(Outcome) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut z = Guarded::<T, _>::unwritten(self.backend, "z", z, 2)?;
        check(self.backend.forward_into(x.view(), w, z.view_mut(), Options::new()))?;
        z.unchanged(self.backend)?;
        let mut saved = self.backend.saved(Save::PreActivations, B, D)?;
        check(self.backend.forward_train_into(x.view(), w, z.view_mut(), &mut saved, Options::new()))?;
        ensure(!saved.is_armed(), || "saved values are armed after a refused forward".to_owned())?;
        z.unchanged(self.backend)
    }
}

fn forward_shapes<T: Value, K: SwiGLU<T>>(backend: &K) -> Result<(), Failure> {
    let bench = Bench::<T, K>::new(backend)?;
    let w = bench.weights()?;
    for got in [(B, I + 1), (B, I - 1), (B, 0)] {
        let x = bench.zeros(got)?;
        bench.forward(&x, w, (B, D), |o| refuses_shape(o, "x", (B, I), got))?;
    }
    for got in [(B + 1, D), (B, D + 1), (B - 1, D), (B, 2 * D), (0, D)] {
        bench.forward(&bench.x, w, got, |o| refuses_shape(o, "z", (B, D), got))?;
    }
    for got in [(2, 2 * D), (1, D), (1, 2 * D + 1)] {
        let bias = bench.zeros(got)?;
        refuses_shape(w.bias(bias.view()).map(drop), "bias", (1, 2 * D), got)?;
    }
    let (gate, up) = (bench.zeros((I, D))?, bench.zeros((I, D + 1))?);
    let split = Weights::split(gate.view(), up.view(), Orientation::InOut).map(drop);
    refuses_shape(split, "up weights", (I, D), (I, D + 1))?;
    let odd = bench.zeros((I, 2 * D + 1))?;
    let odd_width = |e: &Error| matches!(e, Error::OddWidth { operand: "wf", width } if *width == 2 * D + 1);
    let packed = Weights::packed(odd.view(), Orientation::InOut).map(drop);
    refuses(packed, "an odd width", odd_width)?;
    // A saved of too few rows, and of another width.
    for (rows, hidden) in [(B - 1, D), (B, D + 1), (B, D - 1)] {
        let mut saved = backend.saved(Save::PreActivations, rows, hidden)?;
        let mut z = Guarded::<T, _>::unwritten(backend, "z", (B, D), 2)?;
        let outcome = backend.forward_train_into(bench.x.view(), w, z.view_mut(), &mut saved, Options::new());
        refuses_shape(outcome, "saved pre-activations", (B, 2 * D), (rows, 2 * hidden))?;
        z.unchanged(backend)?;
    }
    let invalid = [
        (f32::NAN, 7.0),
        (f32::INFINITY, 7.0),
        (1.0, 0.0),
        (1.0, -7.0),
        (1.0, f32::NAN),
        (1.0, f32::INFINITY),
    ];
    for (alpha, limit) in invalid {
        let w = w.gate(Gate::SwigluClamped { alpha, limit });
        let is = |e: &Error| matches!(e, Error::InvalidOption { .. });
        bench.forward(&bench.x, w, (B, D), |o| refuses(o, "an invalid gate", is))?;
    }
    Ok(())
}

/// Which gradients a refused backward is given, by shape.
#[derive(Clone, Copy)]
struct Shapes {
    dz: Shape,
    dx: Shape,
    dwf: Shape,
    dbias: Shape,
}

const RIGHT: Shapes = Shapes { dz: (B, D), dx: (B, I), dwf: (I, 2 * D), dbias: (1, 2 * D) };

fn backward_shapes<T: Value, K: SwiGLU<T>>(backend: &K) -> Result<(), Failure> {
    let bench = Bench::<T, K>::new(backend)?;
    let (x, w, options) = (bench.x.view(), bench.weights()?, Options::new());
    let (_, mut saved) = backend.forward_train(x, w, Save::PreActivations, options)?;
    let kept = |saved: &swiglu_core::Saved<T, K::Memory>| -> Result<Array2<T>, Failure> {
        let pre = saved
            .pre_activations()
            .ok_or_else(|| Failure::new("a refused backward has spent the saved values"))?;
        Ok(backend.download(pre)?.into_array())
    };
    let before = kept(&saved)?;
    let wrong: [(Shapes, &str, Shape, Shape); 8] = [
        (Shapes { dz: (B, D + 1), ..RIGHT }, "dz", RIGHT.dz, (B, D + 1)),
        (Shapes { dz: (B + 1, D), ..RIGHT }, "dz", RIGHT.dz, (B + 1, D)),
        (Shapes { dx: (B, I + 1), ..RIGHT }, "dx", RIGHT.dx, (B, I + 1)),
        (Shapes { dx: (B - 1, I), ..RIGHT }, "dx", RIGHT.dx, (B - 1, I)),
        (Shapes { dwf: (2 * D, I), ..RIGHT }, "dwf", RIGHT.dwf, (2 * D, I)),
        (Shapes { dwf: (I, D), ..RIGHT }, "dwf", RIGHT.dwf, (I, D)),
        (Shapes { dbias: (1, D), ..RIGHT }, "dbias", RIGHT.dbias, (1, D)),
        (Shapes { dbias: (2, 2 * D), ..RIGHT }, "dbias", RIGHT.dbias, (2, 2 * D)),
    ];
    for (shapes, operand, expected, got) in wrong {
        let dz = bench.zeros(shapes.dz)?;
        let mut dx = Guarded::<T, _>::unwritten(backend, "dx", shapes.dx, 1)?;
        let mut dwf = Guarded::<T, _>::unwritten(backend, "dwf", shapes.dwf, 1)?;
        let mut dbias = Guarded::<f32, _>::unwritten(backend, "dbias", shapes.dbias, 1)?;
        let gradients = Gradients::new()
            .dx(Out::write(dx.view_mut()))
            .dwf(Target::write(dwf.view_mut()))
            .dbias(Target::write_f32(dbias.view_mut()));
        let outcome = backend.backward(x, w, dz.view(), &mut saved, gradients, options);
        refuses_shape(outcome, operand, expected, got)?;
        dx.unchanged(backend)?;
        dwf.unchanged(backend)?;
        dbias.unchanged(backend)?;
        let same = difference(&before, &kept(&saved)?).is_none();
        ensure(same, || format!("saved values changed in a backward that was refused for {operand}"))?;
    }
    for (shape, operand) in [((I, D + 1), "dwf gate half"), ((D, I), "dwf gate half")] {
        let (mut gate, mut up) = (bench.zeros(shape)?, bench.zeros((I, D))?);
        let gradients = Gradients::new().dwf_split(Target::write(&mut gate), Target::write(&mut up));
        let outcome = backend.backward(x, w, bench.dz.view(), &mut saved, gradients, options);
        refuses_shape(outcome, operand, (I, D), shape)?;
    }
    let (mut gate, mut up) = (bench.zeros((I, D))?, bench.zeros((I, D))?);
    let mixed = |e: &Error| matches!(e, Error::MixedHalves);
    let gradients = Gradients::new().dwf_split(Target::add(&mut gate), Target::write(&mut up));
    let outcome = backend.backward(x, w, bench.dz.view(), &mut saved, gradients, options);
    refuses(outcome, "mixed halves", mixed)?;
    let mut wide = backend.zeros::<f32>(I, D)?;
    let gradients = Gradients::new().dwf_split(Target::write(&mut gate), Target::write_f32(&mut wide));
    let outcome = backend.backward(x, w, bench.dz.view(), &mut saved, gradients, options);
    refuses(outcome, "mixed halves", mixed)
}

/// Saved values survive refusals, give the gradient they would have given, and then are spent.
fn saved_values<T: Value, K: SwiGLU<T>>(backend: &K) -> Result<(), Failure> {
    let bench = Bench::<T, K>::new(backend)?;
    let (x, w, dz, options) = (bench.x.view(), bench.weights()?, bench.dz.view(), Options::new());
    let gradient = |saved: &mut swiglu_core::Saved<T, K::Memory>| {
        let mut dx = Guarded::<T, _>::unwritten(backend, "dx", (B, I), 1)?;
        let outcome =
            backend.backward(x, w, dz, saved, Gradients::new().dx(Out::write(dx.view_mut())), options);
        Ok::<_, Failure>((outcome, dx))
    };
    for save in [Save::PreActivations, Save::Input] {
        let (_, mut saved) = backend.forward_train(x, w, save, options)?;
        let (outcome, dx) = gradient(&mut saved)?;
        outcome?;
        let expected = dx.read(backend)?;

        let spent = |e: &Error| matches!(e, Error::Spent);
        let (outcome, dx) = gradient(&mut saved)?;
        refuses(outcome, "spent saved values", spent)?;
        dx.unchanged(backend)?;
        let mut fresh = backend.saved(save, B, D)?;
        let (outcome, _) = gradient(&mut fresh)?;
        refuses(outcome, "saved values that no forward has filled to count as spent", spent)?;

        let (_, mut saved) = backend.forward_train(x, w, save, options)?;
        let mismatch = |e: &Error| matches!(e, Error::SavedMismatch { saved: (B, I, D, Gate::Swiglu), .. });
        let refused = |outcome| refuses(outcome, "saved values of another call", mismatch);
        let nothing = Gradients::new;
        refused(backend.backward(x, w.gate(Gate::Glu), dz, &mut saved, nothing(), options))?;
        let fewer = x.sub(0..B - 1, 0..I)?;
        refused(backend.backward(fewer, w, dz.sub(0..B - 1, 0..D)?, &mut saved, nothing(), options))?;
        let narrow = Weights::packed(bench.wf.view().sub(0..I - 1, 0..2 * D)?, Orientation::InOut)?;
        refused(backend.backward(x.sub(0..B, 0..I - 1)?, narrow, dz, &mut saved, nothing(), options))?;
        let thin = Weights::packed(bench.wf.view().sub(0..I, 0..2 * D - 2)?, Orientation::InOut)?;
        refused(backend.backward(x, thin, dz.sub(0..B, 0..D - 1)?, &mut saved, nothing(), options))?;
        let (outcome, dx) = gradient(&mut saved)?;
        outcome?;
        match difference(&expected, &dx.read(backend)?) {
            None => {}
            Some(at) => return Err(Failure::new(format!("dx after refused calls differs at {at}"))),
        }
        ensure(!saved.is_armed(), || "saved values are still armed after backward".to_owned())?;
    }
    Ok(())
}

/// Operands that share a matrix but no element are welcome.
fn column_blocks<T: Value, K: SwiGLU<T>>(backend: &K) -> Result<(), Failure> {
    let bench = Bench::<T, K>::new(backend)?;
    let (w, options) = (bench.weights()?, Options::new());
    let (expected, mut saved) = backend.forward_train(bench.x.view(), w, Save::PreActivations, options)?;
    let expected = backend.download(&expected)?.into_array();

    let content = beside(&bench.inputs.x, &Array2::from_elem((B, D), T::canary(1)));
    let mut both = Guarded::new(backend, "x and z", &content, 3)?;
    let (x, z) = both.view_mut().split_cols(I)?;
    backend.forward_into(x.view(), w, z, options)?;
    let after = both.read(backend)?;
    let what = "side by side in one matrix";
    let differs = |name, a: &Array2<T>, b: &Array2<T>| match difference(a, b) {
        None => Ok(()),
        Some(at) => Err(Failure::new(format!("{name} {what} differs at {at}"))),
    };
    differs("z", &part(&after, 0..B, I..I + D), &expected)?;
    differs("x", &part(&after, 0..B, 0..I), &bench.inputs.x)?;

    // Both halves of dwf as column blocks, dx above dbias: all of them in two matrices.
    let mut halves = Guarded::<T, _>::unwritten(backend, "dwf", (I, 2 * D), 1)?;
    let (gate, up) = halves.view_mut().split_cols(D)?;
    let gradients = Gradients::new().dwf_split(Target::write(gate), Target::write(up));
    backend.backward(bench.x.view(), w, bench.dz.view(), &mut saved, gradients, options)?;
    let (_, mut saved) = backend.forward_train(bench.x.view(), w, Save::PreActivations, options)?;
    let mut packed = Guarded::<T, _>::unwritten(backend, "dwf", (I, 2 * D), 1)?;
    let gradients = Gradients::new().dwf(Target::write(packed.view_mut()));
    backend.backward(bench.x.view(), w, bench.dz.view(), &mut saved, gradients, options)?;
    differs("dwf", &halves.read(backend)?, &packed.read(backend)?)
}

/// Copies between host and device of different shapes are refused.
fn copies<T: Value, K: SwiGLU<T>>(backend: &K) -> Result<(), Failure> {
    let host = Matrix::<T, _>::host_zeros(2, 3)?;
    let mut device = Guarded::<T, _>::unwritten(backend, "destination", (3, 2), 1)?;
    refuses_shape(backend.copy_in(host.view(), device.view_mut()), "destination", (2, 3), (3, 2))?;
    device.unchanged(backend)?;
    let mut small = Matrix::<T, _>::host_zeros(2, 2)?;
    refuses_shape(backend.copy_out(device.view(), small.view_mut()), "destination", (3, 2), (2, 2))?;
    let third = Guarded::<T, _>::unwritten(backend, "source", (2, 2), 0)?;
    refuses_shape(backend.copy(third.view(), device.view_mut()), "destination", (2, 2), (3, 2))?;
    device.unchanged(backend)?;
    let overflow = backend.zeros::<T>(usize::MAX, 2).map(drop);
    refuses(overflow, "an overflow", |e| matches!(e, Error::Overflow { .. }))?;
    let too_much = backend.zeros::<T>(1 << 40, 1 << 18).map(drop);
    refuses(too_much, "out of memory", |e| matches!(e, Error::OutOfMemory { .. } | Error::Overflow { .. }))
}

/// Every call that core refuses, through this backend: the operand is named, with what was expected and what came, and
/// no output, canary or saved value has changed.
///
/// # Errors
/// A [`Failure`] that says what was accepted, or refused in another way.
pub fn errors<K: Complete>(backend: &K) -> Result<Report, Failure> {
    forward_shapes::<f32, K>(backend)?;
    forward_shapes::<bf16, K>(backend)?;
    backward_shapes::<f32, K>(backend)?;
    backward_shapes::<bf16, K>(backend)?;
    saved_values::<f32, K>(backend)?;
    saved_values::<bf16, K>(backend)?;
    column_blocks::<f32, K>(backend)?;
    column_blocks::<bf16, K>(backend)?;
    copies::<f32, K>(backend)?;
    copies::<bf16, K>(backend)?;
    super::dense::refusals::<f32, K>(backend)?;
    super::dense::refusals::<bf16, K>(backend)?;
    Ok(Report { cases: 12, ..Report::default() })
}
