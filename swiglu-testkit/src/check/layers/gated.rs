//! `FusedSwiGLU`.

use ndarray::Array2;
use swiglu_core::{FusedSwiGLU, MatRef, Orientation, Out, Route, Save, SwiGLU, Tile, WeightGrad};

use crate::bits::{Value, difference};
use crate::case::{Case, How, Keep};
use crate::check::differential::{
    BackwardOutputs, ForwardOutputs, Olds, Side, check_backward, check_forward,
};
use crate::config::Config;
use crate::data::{Inputs, real};
use crate::guarded::Guarded;
use crate::part::{beside, column_halves, row_halves, turned};
use crate::report::{Failure, Report, ensure};

/// Packed weights of a case as the layer takes them.
fn packed<T: Value>(case: &Case, inputs: &Inputs<T>) -> Array2<T> {
    let wf = beside(&inputs.gate_weights, &inputs.up_weights);
    match case.orientation {
        Orientation::InOut => wf,
        Orientation::OutIn => turned(&wf),
    }
}

fn halves(case: &Case, dwf: &Array2<f32>) -> (Array2<f32>, Array2<f32>) {
    match case.orientation {
        Orientation::InOut => column_halves(dwf),
        Orientation::OutIn => {
            let (gate, up) = row_halves(dwf);
            (turned(&gate), turned(&up))
        }
    }
}

/// The layer of a case: weights, bias, gate, save mode and tile as the case says.
pub(super) fn layer<T: Value, B: SwiGLU<T>>(
    backend: &B,
    case: &Case,
    inputs: &Inputs<T>,
) -> Result<FusedSwiGLU<T, B>, Failure> {
    let wf = packed(case, inputs);
    let save = if case.keep == Keep::Input { Save::Input } else { Save::PreActivations };
    let layer = FusedSwiGLU::load(backend, MatRef::try_from(&wf)?, case.orientation)?;
    let layer = layer.gate(case.gate).save_mode(save).tile(case.tile);
    Ok(match &inputs.bias {
        Some((gate, up)) => layer.bias(MatRef::try_from(&beside(gate, up))?)?,
        None => layer,
    })
}

fn mode<T: Value, B: SwiGLU<T>>(
    backend: &B,
    case: &Case,
    weight_grad: WeightGrad,
    config: &Config,
    report: &mut Report,
) -> Result<(), Failure> {
    let inputs = Inputs::<T>::draw(case);
    let mut layer = layer(backend, case, &inputs)?.weight_grad(weight_grad)?;
    let shape = (layer.in_features(), layer.hidden());
    ensure(shape == (case.in_features, case.hidden), || format!("the layer is {shape:?}"))?;
    let x = Guarded::new(backend, "x", &inputs.x, case.pads.x)?;
    let dz = Guarded::new(backend, "dz", &inputs.dz, case.pads.z)?;
    let (z, mut saved) = layer.forward_train(x.view())?;
    let z = backend.download(&z)?.into_array();
    if let Some(at) = difference(&z, &backend.download(&layer.forward(x.view())?)?.into_array()) {
        return Err(Failure::new(format!("forward and forward_train of the layer differ at {at}")));
    }
    let pre = match saved.pre_activations() {
        Some(view) => Some(column_halves(&backend.download(view)?.into_array())),
        None => None,
    };
    let frozen = weight_grad == WeightGrad::Frozen;
    let trained = if frozen { 0 } else { 1 + usize::from(case.bias) };
    ensure(layer.parameters().count() == trained, || {
        format!("{weight_grad:?} has other than {trained} parameters")
    })?;

    let mut dx = Guarded::<T, _>::unwritten(backend, "dx", inputs.x.dim(), case.pads.dx)?;
    layer.backward(x.view(), dz.view(), &mut saved, Some(Out::write(dx.view_mut())))?;
    x.unchanged(backend)?;
    dz.unchanged(backend)?;
    let read = |view: Option<MatRef<'_, f32, B::Memory>>| {
        view.map(|view| backend.download(view).map(swiglu_core::Matrix::into_array)).transpose()
    };
    let (dwf, dbias) = (read(layer.dwf())?, read(layer.dbias())?);
    ensure(dwf.is_some() != frozen && dbias.is_some() == (case.bias && !frozen), || {
        format!("{weight_grad:?} has the wrong gradients")
    })?;

    // Judged as a case of the route that the mode stands for.
    let wide = |is: bool| is.then_some(How { add: false, wide: true });
    let route = if weight_grad == WeightGrad::Composed { Route::Composed } else { Route::Fused };
    let judged = Case {
        route,
        dx: Some(How { add: false, wide: false }),
        dwf: wide(!frozen),
        dbias: wide(dbias.is_some()),
        ..*case
    };
    let (operands, forward) = (inputs.operands(case), ForwardOutputs { z, pre });
    check_forward(case, config, &operands, &forward, report)?;
    let backward = BackwardOutputs {
        dx: Some(dx.read(backend)?.mapv(T::to_f32)),
        dwf: dwf.as_ref().map(|dwf| halves(case, dwf)),
        dbias,
    };
    let side = Side { operands: &operands, dz: &real(&inputs.dz), e_dz: None };
    check_backward(&judged, config, side, &Olds::draw(case), (&forward, &backward), report)?;
    *report = std::mem::take(report).of_case(case);
    match dwf {
        Some(dwf) => accumulates(backend, layer, &x, &dz, &dwf),
        None => Ok(()),
    }
}

/// With accumulation a second backward adds: twice the gradient, up to one rounding; without, it overwrites.
fn accumulates<T: Value, B: SwiGLU<T>>(
    backend: &B,
    mut layer: FusedSwiGLU<T, B>,
    x: &Guarded<T, B::Memory>,
    dz: &Guarded<T, B::Memory>,
    once: &Array2<f32>,
) -> Result<(), Failure> {
    for (accumulate, factor) in [(false, 1.0), (true, 2.0)] {
        layer = layer.accumulate(accumulate);
        let (_, mut saved) = layer.forward_train(x.view())?;
        layer.backward(x.view(), dz.view(), &mut saved, None)?;
        let dwf = layer.dwf().ok_or_else(|| Failure::new("the gradient is gone"))?;
        let dwf = backend.download(dwf)?.into_array();
        // Both runs sum the same terms; only where the old value enters the sum may differ.
        let scale = once.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        for (at, once) in once.indexed_iter() {
            let off = (dwf[at] - factor * once).abs();
            ensure(off <= 1e-4 * scale, || {
                format!("accumulate({accumulate}): dwf{at:?} is {}, {factor} times {once}", dwf[at])
            })?;
        }
    }
    Ok(())
}

/// What goes in comes out bit for bit, and a layer made from it is the same layer.
fn round_trip<T: Value, B: SwiGLU<T>>(backend: &B, case: &Case) -> Result<(), Failure> {
    let inputs = Inputs::<T>::draw(case);
    let first = layer(backend, case, &inputs)?;
    let (wf, bias) = first.save()?;
    let same = |what: &str, a: &Array2<T>, b: &Array2<T>| match difference(a, b) {
        None => Ok(()),
        Some(at) => Err(Failure::new(format!("saved {what} differs at {at}"))),
    };
    same("wf", &wf.view().array().to_owned(), &packed(case, &inputs))?;
    let mut second = FusedSwiGLU::load(backend, wf.view(), case.orientation)?.gate(case.gate).tile(case.tile);
    match (&bias, &inputs.bias) {
        (Some(bias), Some((gate, up))) => {
            same("bias", &bias.view().array().to_owned(), &beside(gate, up))?;
            second = second.bias(bias.view())?;
        }
        (None, None) => {}
        _ => return Err(Failure::new("a bias came or went")),
    }
    let x = backend.upload(MatRef::try_from(&inputs.x)?)?;
    let z = |layer: &FusedSwiGLU<T, B>| Ok::<_, Failure>(backend.download(&layer.forward(&x)?)?.into_array());
    same("layer's z", &z(&first)?, &z(&second)?)
}

/// The same seed gives the same weights, within +-1/sqrt(I), and others do not.
fn initial_weights<T: Value, B: SwiGLU<T>>(backend: &B) -> Result<(), Failure> {
    let weights = |seed| {
        let layer = FusedSwiGLU::<T, B>::init(backend, 16, 9, seed)?;
        Ok::<_, Failure>(layer.save()?.0.into_array())
    };
    let (a, b, c) = (weights(7)?, weights(7)?, weights(8)?);
    ensure(a.dim() == (16, 18) && difference(&a, &b).is_none(), || {
        "init is not decided by its seed".to_owned()
    })?;
    ensure(difference(&a, &c).is_some(), || "init does not depend on its seed".to_owned())?;
    let most = a.iter().fold(0.0f32, |most, v| most.max(v.to_f32().abs()));
    ensure((0.2..=0.251).contains(&most), || format!("the largest of 288 weights in +-1/4 is {most}"))
}

pub(super) fn check<T: Value, B: SwiGLU<T>>(
    backend: &B,
    config: &Config,
    seed: u64,
    report: &mut Report,
) -> Result<(), Failure> {
    initial_weights::<T, B>(backend)?;
    for (index, (orientation, keep, bias, tile)) in [
        (Orientation::InOut, Keep::PreActivations, true, Tile::Auto),
        (Orientation::OutIn, Keep::Input, false, Tile::T32),
        (Orientation::OutIn, Keep::PreActivations, true, Tile::T64),
        (Orientation::InOut, Keep::Input, true, Tile::T128),
    ]
    .into_iter()
    .enumerate()
    {
        for gate in swiglu_core::Gate::ALL {
            let case = Case {
                orientation,
                keep,
                bias,
                tile,
                gate,
                seed: seed + index as u64,
                ..Case::new([9, 33, 5, 1][index], [17, 40, 65, 3][index], [35, 7, 12, 33][index], T::DTYPE)
            };
            let modes = [WeightGrad::Frozen, WeightGrad::Composed, WeightGrad::Fused];
            let composed = config.routes.contains(&Route::Composed);
            for weight_grad in modes.into_iter().filter(|mode| composed || *mode != WeightGrad::Composed) {
                mode::<T, B>(backend, &case, weight_grad, config, report)
                    .map_err(|failure| failure.context(format!("layer {weight_grad:?}")).of_case(&case))?;
            }
            round_trip::<T, B>(backend, &case).map_err(|failure| failure.context("layer").of_case(&case))?;
        }
    }
    Ok(())
}
