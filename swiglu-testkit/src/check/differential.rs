//! A backend against the oracle: one case.

use ndarray::Array2;
use swiglu_core::{
    Backend, Down, Dtype, Gradients, MatRef, Memory, Orientation, Out, Save, Saved, SwiGLU, Upstream,
};

use crate::arrange::{PlacedGradient, PlacedWeights, place};
use crate::bits::Value;
use crate::bounds::{Grade, Model, Rounding, bias_gradient_input};
use crate::case::{Case, DownCase, How, Keep};
use crate::config::Config;
use crate::data::{Inputs, old, real};
use crate::guarded::{AnyGuarded, Guarded};
use crate::judge::{Expected, judge};
use crate::oracle::{
    Operands, PreActivations, Real, cotangents, output, product, transposed, weight_gradient,
};
use crate::part::{beside, column_halves, part, turned};
use crate::report::{Failure, Report};

/// g and u as they were saved, `[B, D]` each.
pub(crate) type SavedPair<T> = (Array2<T>, Array2<T>);

/// What a forward leaves.
pub(crate) struct ForwardOutputs<T> {
    /// `[B, D]`.
    pub(crate) z: Array2<T>,
    /// What it saved.
    pub(crate) pre: Option<SavedPair<T>>,
}

/// What a backward leaves, in f32 (exact); dwf as halves `[I, D]`.
pub(crate) struct BackwardOutputs {
    pub(crate) dx: Option<Array2<f32>>,
    pub(crate) dwf: Option<(Array2<f32>, Array2<f32>)>,
    pub(crate) dbias: Option<Array2<f32>>,
}

/// What gradients are added to, all in the element type.
#[derive(Clone)]
pub(crate) struct Olds<T> {
    pub(crate) dx: Array2<T>,
    pub(crate) dwf: (Array2<T>, Array2<T>),
    pub(crate) dbias: Array2<T>,
}

impl<T: Value> Olds<T> {
    pub(crate) fn draw(case: &Case) -> Self {
        let (i, d) = (case.in_features, case.hidden);
        Self {
            dx: old(case, 0, (case.batch, i)),
            dwf: (old(case, 1, (i, d)), old(case, 2, (i, d))),
            dbias: old(case, 3, (1, 2 * d)),
        }
    }
}

fn saved_of<T: Value, B: Backend>(
    backend: &B,
    view: Option<MatRef<'_, T, B::Memory>>,
) -> Result<Option<SavedPair<T>>, Failure> {
    let Some(view) = view else { return Ok(None) };
    Ok(Some(column_halves(&backend.download(view)?.into_array())))
}

/// What dz comes from, in a backend's memory.
enum PlacedUpstream<T: Value, M: Memory> {
    Dz(Guarded<T, M>),
    Projected { dy: Guarded<T, M>, down: Guarded<T, M>, orientation: Orientation },
}

impl<T: Value, M: Memory> PlacedUpstream<T, M> {
    fn new<B: Backend<Memory = M>>(backend: &B, case: &Case, inputs: &Inputs<T>) -> Result<Self, Failure> {
        let (Some(DownCase { orientation, pad, .. }), Some((dy, down))) = (case.down, &inputs.projected)
        else {
            return Ok(Self::Dz(Guarded::new(backend, "dz", &inputs.dz, case.pads.z)?));
        };
        let down = match orientation {
            Orientation::InOut => Guarded::new(backend, "down projection", down, pad)?,
            Orientation::OutIn => Guarded::new(backend, "down projection", &turned(down), case.pads.z)?,
        };
        Ok(Self::Projected { dy: Guarded::new(backend, "dy", dy, pad)?, down, orientation })
    }

    fn upstream(&self) -> swiglu_core::Result<Upstream<'_, T, M>> {
        match self {
            Self::Dz(dz) => Ok(dz.view().into()),
            Self::Projected { dy, down, orientation } => {
                Upstream::projected(dy.view(), Down::new(down.view(), *orientation))
            }
        }
    }

    fn unchanged<B: Backend<Memory = M>>(&self, backend: &B) -> Result<(), Failure> {
        match self {
            Self::Dz(dz) => dz.unchanged(backend),
            Self::Projected { dy, down, .. } => {
                dy.unchanged(backend)?;
                down.unchanged(backend)
            }
        }
    }
}

/// Operands of a case in a backend's memory, and what a forward of it saved.
pub(crate) struct Placed<'a, T: Value, B: SwiGLU<T>> {
    backend: &'a B,
    case: &'a Case,
    x: Guarded<T, B::Memory>,
    w: PlacedWeights<T, B::Memory>,
    upstream: PlacedUpstream<T, B::Memory>,
    saved: Option<Saved<T, B::Memory>>,
}

impl<'a, T: Value, B: SwiGLU<T>> Placed<'a, T, B> {
    pub(crate) fn new(backend: &'a B, case: &'a Case, inputs: &Inputs<T>) -> Result<Self, Failure> {
        Ok(Self {
            backend,
            case,
            x: Guarded::new(backend, "x", &inputs.x, case.pads.x)?,
            w: PlacedWeights::new(backend, case, inputs)?,
            upstream: PlacedUpstream::new(backend, case, inputs)?,
            saved: None,
        })
    }

    fn inputs_unchanged(&self) -> Result<(), Failure> {
        self.x.unchanged(self.backend)?;
        self.w.unchanged(self.backend)?;
        self.upstream.unchanged(self.backend)
    }

    /// Runs the forward of the case and reads what it left.
    pub(crate) fn forward(&mut self) -> Result<ForwardOutputs<T>, Failure> {
        let (backend, case, options) = (self.backend, self.case, self.case.options());
        let (batch, hidden) = (self.x.view().rows(), case.hidden);
        let mut z = Guarded::<T, B::Memory>::unwritten(backend, "z", (batch, hidden), case.pads.z)?;
        let w = self.w.weights(case)?;
        let save = match case.keep {
            Keep::Nothing => None,
            Keep::PreActivations => Some(Save::PreActivations),
            Keep::Input => Some(Save::Input),
        };
        match save {
            None => backend.forward_into(self.x.view(), w, z.view_mut(), options)?,
            Some(save) => {
                // Room for a larger batch, as a training loop keeps it.
                let mut saved = backend.saved(save, batch + (case.seed % 3) as usize, hidden)?;
                backend.forward_train_into(self.x.view(), w, z.view_mut(), &mut saved, options)?;
                self.saved = Some(saved);
            }
        }
        let pre = match &self.saved {
            Some(saved) => saved_of(backend, saved.pre_activations())?,
            None => None,
        };
        let z = z.read(backend)?;
        self.inputs_unchanged()?;
        Ok(ForwardOutputs { z, pre })
    }

    /// Runs the backward of the case and reads what it left. A forward has run.
    pub(crate) fn backward(&mut self, olds: &Olds<T>) -> Result<BackwardOutputs, Failure> {
        let (backend, case) = (self.backend, self.case);
        let mut saved = self.saved.take().ok_or_else(|| Failure::new("backward without forward_train"))?;
        let dx_how = case.dx.map(|how| How { wide: false, ..how });
        let mut dx = dx_how.map(|how| place(backend, "dx", &olds.dx, case.pads.dx, how)).transpose()?;
        let mut dwf = case
            .dwf
            .map(|how| PlacedGradient::new(backend, case, (&olds.dwf.0, &olds.dwf.1), how))
            .transpose()?;
        let mut dbias =
            case.dbias.map(|how| place(backend, "dbias", &olds.dbias, case.pads.dwf, how)).transpose()?;
        let mut gradients = Gradients::new();
        if let (Some(AnyGuarded::Same(dx)), Some(how)) = (&mut dx, case.dx) {
            gradients = gradients.dx(Out { to: dx.view_mut(), add: how.add });
        }
        if let Some(dwf) = &mut dwf {
            gradients = dwf.ask(case, gradients);
        }
        if let (Some(dbias), Some(how)) = (&mut dbias, case.dbias) {
            gradients = gradients.dbias(dbias.target(how.add));
        }
        let w = self.w.weights(case)?;
        let upstream = self.upstream.upstream()?;
        backend.backward(self.x.view(), w, upstream, &mut saved, gradients, case.options())?;
        let outputs = BackwardOutputs {
            dx: dx.map(|dx| dx.read(backend)).transpose()?,
            dwf: dwf.map(|dwf| dwf.read(backend, case)).transpose()?,
            dbias: dbias.map(|dbias| dbias.read(backend)).transpose()?,
        };
        self.inputs_unchanged()?;
        Ok(outputs)
    }
}

/// Runs the forward of a case on these inputs.
pub(crate) fn run_forward<T: Value, B: SwiGLU<T>>(
    backend: &B,
    case: &Case,
    inputs: &Inputs<T>,
) -> Result<ForwardOutputs<T>, Failure> {
    Placed::new(backend, case, inputs)?.forward()
}

/// Runs forward and backward of a case on these inputs.
pub(crate) fn run_both<T: Value, B: SwiGLU<T>>(
    backend: &B,
    case: &Case,
    inputs: &Inputs<T>,
    olds: &Olds<T>,
) -> Result<(ForwardOutputs<T>, BackwardOutputs), Failure> {
    let mut placed = Placed::new(backend, case, inputs)?;
    let forward = placed.forward()?;
    Ok((forward, placed.backward(olds)?))
}

/// g and u with what each is off by, one pair of bounds for each grade.
pub(crate) struct Pre {
    pub(crate) g: Real,
    pub(crate) u: Real,
    hard: (Real, Real),
    watch: (Real, Real),
}

impl Pre {
    fn errors(&self, grade: Grade) -> &(Real, Real) {
        match grade {
            Grade::Hard => &self.hard,
            Grade::Watch => &self.watch,
        }
    }

    /// As computed, before any rounding to T that the arithmetic does not have.
    pub(crate) fn computed(model: &Model, operands: &Operands, pre: &PreActivations) -> Self {
        let errors = |grade| {
            (
                model.pre_activation(grade, operands, &operands.gate_weights, &pre.gate),
                model.pre_activation(grade, operands, &operands.up_weights, &pre.up),
            )
        };
        Self {
            g: pre.gate.value.clone(),
            u: pre.up.value.clone(),
            hard: errors(Grade::Hard),
            watch: errors(Grade::Watch),
        }
    }

    /// As stored: exactly these values. One that is not finite constrains nothing that depends on it.
    pub(crate) fn stored<T: Value>((g, u): &SavedPair<T>) -> Self {
        let (mut g, mut u) = (real(g), real(u));
        let open = |a: &mut Real| {
            let open = a.mapv(|v| if v.is_finite() { 0.0 } else { f64::INFINITY });
            a.mapv_inplace(|v| if v.is_finite() { v } else { 0.0 });
            open
        };
        let errors = (open(&mut g), open(&mut u));
        Self { g, u, hard: errors.clone(), watch: errors }
    }

    fn rounded(mut self, model: &Model) -> Self {
        for errors in [&mut self.hard, &mut self.watch] {
            errors.0 = model.saved(&self.g, &errors.0);
            errors.1 = model.saved(&self.u, &errors.1);
        }
        self
    }

    pub(crate) fn z(&self, model: &Model, operands: &Operands) -> Expected {
        Expected::new(output(operands.gate, &self.g, &self.u), |grade, _| {
            let errors = self.errors(grade);
            model.output(operands.gate, (&self.g, &errors.0), (&self.u, &errors.1))
        })
    }
}

/// Saved pre-activations and z against the oracle.
pub(crate) fn check_forward<T: Value>(
    case: &Case,
    config: &Config,
    operands: &Operands,
    outputs: &ForwardOutputs<T>,
    report: &mut Report,
) -> Result<(), Failure> {
    let model = config.model(case);
    let pre = operands.pre_activations();
    let computed = Pre::computed(&model, operands, &pre);
    if let Some((g, u)) = &outputs.pre {
        let expected = |value: &Real, pick: fn(&(Real, Real)) -> &Real| {
            Expected::new(value.clone(), |grade, value| model.saved(value, pick(computed.errors(grade))))
        };
        judge("saved g", g, &expected(&computed.g, |e| &e.0), case.dtype, config, report)?;
        judge("saved u", u, &expected(&computed.u, |e| &e.1), case.dtype, config, report)?;
    }
    judge("z", &outputs.z, &computed.z(&model, operands), case.dtype, config, report)?;
    Ok(())
}

/// dz and what it is off by, where it comes from dy.
pub(crate) fn projected(config: &Config, case: &Case, (dy, down): (&Real, &Real)) -> (Real, Expected) {
    let model = config.model(case);
    let right = transposed(down);
    let dz = product(dy, &right);
    let stored = match model.rounding {
        Rounding::Fused => Dtype::F32,
        Rounding::Unfused => case.dtype,
    };
    let error =
        Expected::new(dz.clone(), |grade, value| model.matmul(grade, (dy, &right), (value, None), stored));
    (dz, error)
}

/// What backward starts from, besides what forward saved.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub(crate) operands: &'a Operands,
    pub(crate) dz: &'a Real,
    /// What dz is off by; `None` when it is exact.
    pub(crate) e_dz: Option<&'a Expected>,
}

/// Every gradient against the oracle.
pub(crate) fn check_backward<T: Value>(
    case: &Case,
    config: &Config,
    Side { operands, dz, e_dz }: Side<'_>,
    olds: &Olds<T>,
    (forward, outputs): (&ForwardOutputs<T>, &BackwardOutputs),
    report: &mut Report,
) -> Result<(), Failure> {
    let model = config.model(case);
    let pre = match &forward.pre {
        Some(stored) => Pre::stored(stored),
        None => {
            // Rounded before their bias, and after it or not.
            let through_memory = case.down.is_some() && config.rounds_recomputed_projected;
            let rounding = if through_memory { Rounding::Unfused } else { model.rounding };
            let model = Model { rounding, ..model };
            let computed = Pre::computed(&model, operands, &operands.pre_activations());
            if config.rounds_recomputed { computed.rounded(&model) } else { computed }
        }
    };
    let d = cotangents(operands.gate, &pre.g, &pre.u, dz);
    let error = |grade| {
        let errors = pre.errors(grade);
        let e_dz = e_dz.map(|e| if grade == Grade::Hard { &e.hard } else { &e.watch });
        model.cotangents(operands.gate, (&pre.g, &errors.0), (&pre.u, &errors.1), (dz, e_dz))
    };
    let (hard, watch) = (error(Grade::Hard), error(Grade::Watch));
    let error = |grade| if grade == Grade::Hard { &hard } else { &watch };
    let kind = |how: How| if how.wide { Dtype::F32 } else { case.dtype };

    if let (Some(dx), Some(how)) = (&outputs.dx, case.dx) {
        let old = how.add.then(|| real(&olds.dx));
        let parts = operands.input_gradient(&d);
        let mut value = &parts.0 + &parts.1;
        if let Some(old) = &old {
            value += old;
        }
        let expected = Expected::new(value, |grade, _| {
            let parts = (&parts.0, &parts.1);
            model.input_gradient(grade, operands, (&d, error(grade)), parts, old.as_ref())
        });
        judge("dx", dx, &expected, case.dtype, config, report)?;
    }
    let half = |x: &Real, up: bool, old: Option<Real>, destination: Dtype| {
        let d = if up { &d.up } else { &d.gate };
        let mut value = weight_gradient(x, d);
        if let Some(old) = &old {
            value += old;
        }
        Expected::new(value, |grade, value| {
            let (error, store) = if up { error(grade).up() } else { error(grade).gate() };
            model.weight_gradient(grade, x, (d, error, store), (value, old.as_ref()), destination)
        })
    };
    if let (Some((gate, up)), Some(how)) = (&outputs.dwf, case.dwf) {
        let old = |old: &Array2<T>| how.add.then(|| real(old));
        let (olds, kind) = (&olds.dwf, kind(how));
        judge("dwf gate", gate, &half(&operands.x, false, old(&olds.0), kind), kind, config, report)?;
        judge("dwf up", up, &half(&operands.x, true, old(&olds.1), kind), kind, config, report)?;
    }
    if let (Some(dbias), Some(how)) = (&outputs.dbias, case.dbias) {
        let ones = bias_gradient_input(case.batch);
        let add = |old: &Array2<T>, up: bool| {
            let from = if up { case.hidden } else { 0 };
            how.add.then(|| real(&part(old, 0..1, from..from + case.hidden)))
        };
        let (gate, up) = (
            half(&ones, false, add(&olds.dbias, false), kind(how)),
            half(&ones, true, add(&olds.dbias, true), kind(how)),
        );
        let expected = Expected {
            value: beside(&gate.value, &up.value),
            hard: beside(&gate.hard, &up.hard),
            watch: beside(&gate.watch, &up.watch),
        };
        judge("dbias", dbias, &expected, kind(how), config, report)?;
    }
    Ok(())
}

/// Runs one case on a backend and compares everything it leaves with the oracle: outputs within their bounds, inputs
/// and the canaries around every operand bit for bit as they were.
///
/// # Errors
/// A [`Failure`] that names the first output and element that is wrong.
pub fn check_case<T: Value, B: SwiGLU<T>>(
    backend: &B,
    case: &Case,
    config: &Config,
) -> Result<Report, Failure> {
    let inputs = Inputs::<T>::draw(case);
    let operands = inputs.operands(case);
    let mut report = Report::default();
    let result = (|| {
        if !case.is_backward() {
            let outputs = run_forward(backend, case, &inputs)?;
            return check_forward(case, config, &operands, &outputs, &mut report);
        }
        let olds = Olds::draw(case);
        let (forward, backward) = run_both(backend, case, &inputs, &olds)?;
        if case.keep == Keep::PreActivations {
            // Backward is judged from what was saved, so that has to be right first.
            check_forward(case, config, &operands, &forward, &mut report)?;
        }
        let (dz, e_dz) = match &inputs.projected {
            None => (real(&inputs.dz), None),
            Some((dy, down)) => {
                let (dz, e_dz) = projected(config, case, (&real(dy), &real(down)));
                (dz, Some(e_dz))
            }
        };
        let side = Side { operands: &operands, dz: &dz, e_dz: e_dz.as_ref() };
        check_backward(case, config, side, &olds, (&forward, &backward), &mut report)
    })();
    match result {
        Ok(()) => Ok(report.of_case(case)),
        Err(failure) => Err(failure.of_case(case)),
    }
}
