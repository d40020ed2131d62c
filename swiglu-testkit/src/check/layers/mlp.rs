//! `SwiGLUMlp` against composing the oracle: y = z . Wd, dz = dy . Wd^T, and the op's gradients from that dz.

use ndarray::Array2;
use swiglu_core::{Dense, Dtype, MatRef, Matrix, Orientation, Out, Route, SwiGLU, SwiGLUMlp, WeightGrad};

use super::gated::layer;
use crate::bits::Value;
use crate::bounds::{Grade, Model, bias_gradient_input};
use crate::case::{Case, DownCase, How, Keep};
use crate::check::differential::{
    BackwardOutputs, ForwardOutputs, Olds, Pre, Side, check_backward, projected,
};
use crate::config::Config;
use crate::data::{Inputs, real};
use crate::guarded::Guarded;
use crate::judge::{Expected, judge};
use crate::oracle::{Operands, Real, column_sums, output, product, transposed, weight_gradient};
use crate::part::{column_halves, part, turned};
use crate::report::{Failure, Report, ensure};

/// Columns of y: one that no vector divides, and one that all do.
const OUTS: [u16; 2] = [11, 24];

/// y, dz and the gradient of the down projection `[D, O]` in f64.
struct Reference {
    y: Real,
    #[cfg(test)]
    dz: Real,
    ddown: Real,
}

fn reference(operands: &Operands, down: &Real, dy: &Real) -> Reference {
    let pre = operands.pre_activations();
    let z = output(operands.gate, &pre.gate.value, &pre.up.value);
    Reference {
        y: product(&z, down),
        #[cfg(test)]
        dz: product(dy, &transposed(down)),
        ddown: weight_gradient(&z, dy),
    }
}

/// y, and the gradient of the down projection, through z and what it is off by.
fn through_z(
    model: &Model,
    z: &Expected,
    (down, dy): (&Real, &Real),
    reference: &Reference,
) -> (Expected, Expected) {
    let no_store = Real::zeros(z.value.dim());
    let error = |grade| if grade == Grade::Hard { &z.hard } else { &z.watch };
    // y^T = Wd^T . z^T has the form of a weight gradient: columns of Wd for X, z^T for dG.
    let y = Expected::new(reference.y.clone(), |grade, value| {
        let parts = (&transposed(&z.value), &transposed(error(grade)), &transposed(&no_store));
        transposed(&model.weight_gradient(grade, down, parts, (&transposed(value), None), model.dtype))
    });
    // dWd = z^T . dy = (dy^T . z)^T.
    let ddown = Expected::new(reference.ddown.clone(), |grade, value| {
        let parts = (&z.value, error(grade), &no_store);
        transposed(&model.weight_gradient(grade, dy, parts, (&transposed(value), None), Dtype::F32))
    });
    (y, ddown)
}

/// The same with a bias added to the results as they were rounded.
fn with_bias(model: &Model, y: &Expected, bias: &Real) -> Expected {
    Expected::new(&y.value + bias, |grade, value| {
        let error = if grade == Grade::Hard { &y.hard } else { &y.watch };
        Real::from_shape_fn(value.dim(), |at| model.stored(model.dtype, value[at], error[at]))
    })
}

/// The gradient of a bias that is added to every row.
fn sums_of_rows(model: &Model, dy: &Real) -> Expected {
    let (ones, exact) = (bias_gradient_input(dy.nrows()), Real::zeros(dy.dim()));
    Expected::new(column_sums(dy), |grade, value| {
        model.weight_gradient(grade, &ones, (dy, &exact, &exact), (value, None), Dtype::F32)
    })
}

fn one<T: Value, B: SwiGLU<T> + Dense<T>>(
    backend: &B,
    (case, DownCase { out_features, orientation, pad }): (&Case, DownCase),
    weight_grad: WeightGrad,
    config: &Config,
    report: &mut Report,
) -> Result<(), Failure> {
    let out_features = usize::from(out_features);
    let inputs = Inputs::<T>::draw(case);
    let (dy, down) = inputs.projected.as_ref().ok_or_else(|| Failure::new("a case without a dy"))?;
    let lies = |down: &Array2<T>| match orientation {
        Orientation::InOut => down.clone(),
        Orientation::OutIn => turned(down),
    };
    let gated = layer(backend, case, &inputs)?;
    let placed = lies(down);
    let mlp = SwiGLUMlp::load(gated, MatRef::try_from(&placed)?, orientation)?;
    let bias = case.bias.then(|| part(dy, 0..1, 0..out_features));
    let mlp = match &bias {
        Some(bias) => mlp.down_bias(MatRef::try_from(bias)?)?,
        None => mlp,
    };
    let mut mlp = mlp.weight_grad(weight_grad)?;
    ensure(mlp.out_features() == out_features, || format!("{} outputs", mlp.out_features()))?;
    ensure(mlp.save_down()?.into_array() == placed, || "another down projection came back".to_owned())?;

    let x = Guarded::new(backend, "x", &inputs.x, 3)?;
    let placed_dy = Guarded::new(backend, "dy", dy, pad)?;
    let mut y = Guarded::<T, _>::unwritten(backend, "y", (case.batch, out_features), 2)?;
    let mut dx = Guarded::<T, _>::unwritten(backend, "dx", inputs.x.dim(), 2)?;
    let mut kept = mlp.saved(case.batch + 2)?;
    mlp.forward_train_into(x.view(), y.view_mut(), &mut kept)?;
    mlp.backward(x.view(), placed_dy.view(), &mut kept, Some(Out::write(dx.view_mut())))?;
    let y = y.read(backend)?;
    let plain: Array2<T> = backend.download(&mlp.forward(x.view())?)?.into_array();
    x.unchanged(backend)?;
    placed_dy.unchanged(backend)?;

    let kinds = 2 + 2 * usize::from(case.bias);
    let trained = if weight_grad == WeightGrad::Frozen { 0 } else { kinds };
    let gradients: Result<Vec<Array2<f32>>, swiglu_core::Error> =
        mlp.parameters().map(|p| backend.download(p.gradient).map(Matrix::into_array)).collect();
    let gradients = gradients?;
    ensure(gradients.len() == trained, || format!("{} parameters, expected {trained}", gradients.len()))?;

    let operands = inputs.operands(case);
    let (down, dy) = (real(down), real(dy));
    let reference = reference(&operands, &down, &dy);
    let route = if weight_grad == WeightGrad::Composed { Route::Composed } else { Route::Fused };
    let wide = gradients.first().map(|_| How { add: false, wide: true });
    let judged = Case {
        route,
        dx: Some(How { add: false, wide: false }),
        dwf: wide,
        dbias: wide.filter(|_| case.bias),
        ..*case
    };
    let model = config.model(&judged);
    let z = Pre::computed(&model, &operands, &operands.pre_activations()).z(&model, &operands);
    let (mut expected_y, expected_ddown) = through_z(&model, &z, (&down, &dy), &reference);
    if let Some(bias) = &bias {
        expected_y = with_bias(&model, &expected_y, &real(bias));
    }
    judge("y", &y, &expected_y, case.dtype, config, report)?;
    judge("y of forward", &plain, &expected_y, case.dtype, config, report)?;
    let mut down_gradients = gradients.iter().skip(kinds / 2);
    if let Some(ddown) = down_gradients.next() {
        let ddown = if orientation == Orientation::OutIn { turned(ddown) } else { ddown.clone() };
        judge("gradient of the down projection", &ddown, &expected_ddown, Dtype::F32, config, report)?;
    }
    if let Some(dbias) = down_gradients.next() {
        judge("gradient of the down bias", dbias, &sums_of_rows(&model, &dy), Dtype::F32, config, report)?;
    }
    let (dz, e_dz) = projected(config, &judged, (&dy, &down));
    let side = Side { operands: &operands, dz: &dz, e_dz: Some(&e_dz) };
    let backward = BackwardOutputs {
        dx: Some(dx.read(backend)?.mapv(T::to_f32)),
        dwf: gradients.first().map(column_halves),
        dbias: gradients.get(1).filter(|_| case.bias).cloned(),
    };
    // Nobody sees the values that the layer saved, so backward is judged from computed ones, rounded as saved ones are.
    let unseen = ForwardOutputs { z: y, pre: None };
    let rounds = case.keep == Keep::PreActivations || config.rounds_recomputed;
    let config = &Config { rounds_recomputed: rounds, ..config.clone() };
    check_backward(&judged, config, side, &Olds::draw(case), (&unseen, &backward), report)?;
    *report = std::mem::take(report).of_case(case);
    Ok(())
}

pub(super) fn check<T: Value, B: SwiGLU<T> + Dense<T>>(
    backend: &B,
    config: &Config,
    seed: u64,
    report: &mut Report,
) -> Result<(), Failure> {
    for (index, (batch, in_features, hidden, keep)) in
        [(1, 3, 2, Keep::Input), (9, 17, 35, Keep::PreActivations), (40, 33, 24, Keep::Input)]
            .into_iter()
            .enumerate()
    {
        for (turn, gate) in swiglu_core::Gate::ALL.into_iter().enumerate() {
            let orientation = [Orientation::InOut, Orientation::OutIn][(index + turn) % 2];
            let down =
                DownCase { out_features: OUTS[turn / 2 % 2], orientation, pad: 1 - (turn / 2 % 2) as u16 };
            let case = Case {
                gate,
                keep,
                down: Some(down),
                bias: turn % 3 == 1,
                orientation: Orientation::InOut,
                seed,
                ..Case::new(batch, in_features, hidden, T::DTYPE)
            };
            let modes = [WeightGrad::Frozen, WeightGrad::Composed, WeightGrad::Fused];
            let composed = config.routes.contains(&Route::Composed);
            for weight_grad in modes.into_iter().filter(|mode| composed || *mode != WeightGrad::Composed) {
                one::<T, B>(backend, (&case, down), weight_grad, config, report)
                    .map_err(|failure| failure.context(format!("mlp {weight_grad:?}")).of_case(&case))?;
            }
        }
    }
    let mlp = SwiGLUMlp::<T, B>::init(backend, 8, 12, seed)?;
    let shape = mlp.save_down()?.shape();
    ensure(shape == (12, 8), || format!("the down projection of a new mlp is {shape:?}"))
}

#[cfg(test)]
mod tests {
    use swiglu_core::Gate;

    use super::*;
    use crate::data::Draws;
    use crate::oracle::cotangents;

    /// The name of an operand, the operand, and its gradient.
    type Part<'a> = (&'static str, fn(&mut Operands) -> &mut Real, &'a Real);

    #[test]
    fn the_reference_is_a_gradient() {
        let eps = 1e-6;
        for gate in [Gate::Swiglu, Gate::GegluTanh, Gate::GegluErf, Gate::Glu] {
            let case = Case { gate, ..Case::new(3, 4, 5, Dtype::F32) };
            let mut operands = Inputs::<f32>::draw(&case).operands(&case);
            let mut draws = Draws::new(1, 1);
            let mut down = Real::from_shape_simple_fn((5, 11), || draws.normal());
            let dy = Real::from_shape_simple_fn((3, 11), || draws.normal());
            let exact = reference(&operands, &down, &dy);
            let pre = operands.pre_activations();
            let d = cotangents(gate, &pre.gate.value, &pre.up.value, &exact.dz);
            let (first, second) = operands.input_gradient(&d);
            let gradients =
                (first + second, weight_gradient(&operands.x, &d.gate), weight_gradient(&operands.x, &d.up));
            let objective = |operands: &Operands, down: &Real| (reference(operands, down, &dy).y * &dy).sum();
            let near = |exact: f64, above: f64, below: f64, what: &str| {
                let difference = (above - below) / (2.0 * eps);
                assert!(
                    (exact - difference).abs() < 1e-6 * (1.0 + exact.abs()),
                    "{gate} {what}: {exact} {difference}"
                );
            };
            let parts: [Part<'_>; 3] = [
                ("dx", |o| &mut o.x, &gradients.0),
                ("dwa", |o| &mut o.gate_weights, &gradients.1),
                ("dwb", |o| &mut o.up_weights, &gradients.2),
            ];
            for (what, part, exact) in parts {
                for (at, &exact) in exact.indexed_iter() {
                    let old = part(&mut operands)[at];
                    part(&mut operands)[at] = old + eps;
                    let above = objective(&operands, &down);
                    part(&mut operands)[at] = old - eps;
                    let below = objective(&operands, &down);
                    part(&mut operands)[at] = old;
                    near(exact, above, below, what);
                }
            }
            for (at, &exact) in exact.ddown.indexed_iter() {
                let old = down[at];
                down[at] = old + eps;
                let above = objective(&operands, &down);
                down[at] = old - eps;
                let below = objective(&operands, &down);
                down[at] = old;
                near(exact, above, below, "ddown");
            }
        }
    }
}
