//! candle's own graph in f64, and how far from it the op may be: the bounds of `swiglu-testkit`.

use candle_core::{DType, Device, Result, Tensor, Var};
use swiglu_candle::{Gate, Save, SwiGlu};
use swiglu_testkit::bounds::{Grade, Model, bias_gradient_input};
use swiglu_testkit::oracle::{Operands, Real, cotangents};
use swiglu_testkit::{Config, Dtype};

/// Which of the op's functions is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Split,
    SplitBias,
    Packed,
    PackedBias,
}

impl Form {
    pub(crate) const ALL: [Self; 4] = [Self::Split, Self::SplitBias, Self::Packed, Self::PackedBias];

    fn has_bias(self) -> bool {
        matches!(self, Self::SplitBias | Self::PackedBias)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) batch: usize,
    pub(crate) in_features: usize,
    pub(crate) hidden: usize,
    pub(crate) dtype: DType,
    pub(crate) form: Form,
    pub(crate) gate: Gate,
    pub(crate) save: Save,
    pub(crate) seed: u64,
}

impl Case {
    pub(crate) fn new(batch: usize, in_features: usize, hidden: usize, dtype: DType) -> Self {
        let (form, gate, save) = (Form::Split, Gate::Swiglu, Save::PreActivations);
        Self { batch, in_features, hidden, dtype, form, gate, save, seed: 7 }
    }

    pub(crate) fn op(&self) -> SwiGlu {
        SwiGlu::new().gate(self.gate).save(self.save)
    }

    /// The arithmetic of the op on a device.
    fn model(&self, device: &Device) -> Model {
        let dtype = dtype(self.dtype);
        let (package, file) = ("swiglu-candle", "candle");
        let config = if device.is_cuda() { Config::cuda(package, file) } else { Config::cpu(package, file) };
        config.model(&swiglu_testkit::Case::new(self.batch, self.in_features, self.hidden, dtype))
    }
}

fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::Bf16,
        _ => Dtype::F32,
    }
}

/// What goes into the op: x of any layout, weights `[D, I]`, biases `[D]`, and dz of z's shape.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) x: Tensor,
    pub(crate) w_gate: Tensor,
    pub(crate) w_up: Tensor,
    pub(crate) biases: Option<(Tensor, Tensor)>,
    pub(crate) dz: Tensor,
}

impl Inputs {
    /// Variables, each contiguous.
    pub(crate) fn draw(case: &Case, device: &Device) -> Result<Self> {
        let (b, i, d) = (case.batch, case.in_features, case.hidden);
        let bias = case.form.has_bias();
        let drawn =
            swiglu_testkit::Case { seed: case.seed, bias, ..swiglu_testkit::Case::new(b, i, d, Dtype::F32) };
        let drawn = swiglu_testkit::Inputs::<f32>::draw(&drawn);
        let tensor = |values: &ndarray::Array2<f32>| {
            let flat = values.iter().copied().collect();
            Tensor::from_vec(flat, values.dim(), &Device::Cpu)?.to_dtype(case.dtype)?.to_device(device)
        };
        let variable = |tensor: Tensor| Ok::<_, candle_core::Error>(Var::from_tensor(&tensor)?.into_inner());
        let weights = |values| variable(tensor(values)?.t()?.contiguous()?);
        let row = |values| variable(tensor(values)?.squeeze(0)?);
        let biases =
            drawn.bias.as_ref().map(|(gate, up)| Ok::<_, candle_core::Error>((row(gate)?, row(up)?)));
        Ok(Self {
            x: variable(tensor(&drawn.x)?)?,
            w_gate: weights(&drawn.gate_weights)?,
            w_up: weights(&drawn.up_weights)?,
            biases: biases.transpose()?,
            dz: tensor(&drawn.dz)?,
        })
    }

    /// z by the op.
    pub(crate) fn forward(&self, case: &Case) -> Result<Tensor> {
        let (op, x, w_gate, w_up) = (case.op(), &self.x, &self.w_gate, &self.w_up);
        let packed = || Tensor::cat(&[w_gate, w_up], 0);
        match (case.form, &self.biases) {
            (Form::SplitBias, Some((gate, up))) => op.forward_with_bias(x, (w_gate, gate), (w_up, up)),
            (Form::PackedBias, Some((gate, up))) => {
                op.forward_packed(x, &packed()?, Some(&Tensor::cat(&[gate, up], 0)?))
            }
            (Form::Packed, _) => op.forward_packed(x, &packed()?, None),
            _ => op.forward(x, w_gate, w_up),
        }
    }

    /// The inputs that may have gradients, by name.
    fn named(&self) -> Vec<(&'static str, &Tensor)> {
        let mut named = vec![("dx", &self.x), ("dw_gate", &self.w_gate), ("dw_up", &self.w_up)];
        if let Some((gate, up)) = &self.biases {
            named.extend([("db_gate", gate), ("db_up", up)]);
        }
        named
    }

    /// The same values as variables in f64, in one matrix each.
    fn exact(&self) -> Result<Self> {
        let exact = |t: &Tensor, rows: usize| {
            let t = t.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.contiguous()?;
            let cols = t.elem_count() / rows.max(1);
            Ok::<_, candle_core::Error>(Var::from_tensor(&t.reshape((rows, cols))?)?.into_inner())
        };
        let batch = self.x.elem_count() / self.x.dim(candle_core::D::Minus1)?.max(1);
        let hidden = self.w_gate.dim(0)?;
        let bias = self
            .biases
            .as_ref()
            .map(|(gate, up)| Ok::<_, candle_core::Error>((exact(gate, 1)?, exact(up, 1)?)));
        Ok(Self {
            x: exact(&self.x, batch)?,
            w_gate: exact(&self.w_gate, hidden)?,
            w_up: exact(&self.w_up, hidden)?,
            biases: bias.transpose()?,
            dz: exact(&self.dz, batch)?,
        })
    }

    /// z by candle's own ops.
    pub(crate) fn graph(&self, gate: Gate) -> Result<Tensor> {
        let project = |w: &Tensor| self.x.matmul(&w.t()?);
        let (mut g, mut u) = (project(&self.w_gate)?, project(&self.w_up)?);
        if let Some((gate, up)) = &self.biases {
            (g, u) = (g.broadcast_add(gate)?, u.broadcast_add(up)?);
        }
        let activated = match gate {
            Gate::Swiglu => g.silu()?,
            Gate::GegluTanh => g.gelu()?,
            Gate::Reglu => g.relu()?,
            gate => candle_core::bail!("no graph for {gate}"),
        };
        activated.mul(&u)
    }

    fn operands(&self, gate: Gate) -> Result<Operands> {
        let bias =
            self.biases.as_ref().map(|(gate, up)| Ok::<_, candle_core::Error>((real(gate)?, real(up)?)));
        let transposed = |w: &Tensor| real(&w.t()?);
        Ok(Operands {
            x: real(&self.x)?,
            gate_weights: transposed(&self.w_gate)?,
            up_weights: transposed(&self.w_up)?,
            bias: bias.transpose()?,
            gate,
        })
    }
}

/// A matrix in f64.
pub(crate) fn real(t: &Tensor) -> Result<Real> {
    let t = t.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let shape = t.dims2()?;
    let values = t.flatten_all()?.to_vec1()?;
    Ok(Real::from_shape_vec(shape, values).expect("as many values as the shape has"))
}

/// How far z and the gradients may be from the exact ones.
struct Bounds {
    z: Real,
    gradients: Vec<Real>,
}

/// The proved bounds of `swiglu-testkit`, weights as `[D, I]`.
fn bounds(case: &Case, exact: &Inputs, device: &Device) -> Result<Bounds> {
    let (model, operands) = (case.model(device), exact.operands(case.gate)?);
    let (grade, gate) = (Grade::Hard, case.gate);
    let pre = operands.pre_activations();
    let (g, u) = (&pre.gate.value, &pre.up.value);
    let mut e_g = model.pre_activation(grade, &operands, &operands.gate_weights, &pre.gate);
    let mut e_u = model.pre_activation(grade, &operands, &operands.up_weights, &pre.up);
    let z = model.output(gate, (g, &e_g), (u, &e_u));
    if case.save == Save::PreActivations {
        (e_g, e_u) = (model.saved(g, &e_g), model.saved(u, &e_u));
    }
    let dz = real(&exact.dz)?;
    let d = cotangents(gate, g, u, &dz);
    let error = model.cotangents(gate, (g, &e_g), (u, &e_u), (&dz, None));
    let parts = operands.input_gradient(&d);
    let half = |x: &Real, d: &Real, (error, store): (&Real, &Real)| {
        let value = swiglu_testkit::oracle::weight_gradient(x, d);
        model.weight_gradient(grade, x, (d, error, store), (&value, None), model.dtype).reversed_axes()
    };
    let x = &operands.x;
    let mut gradients = vec![
        model.input_gradient(grade, &operands, (&d, &error), (&parts.0, &parts.1), None),
        half(x, &d.gate, error.gate()),
        half(x, &d.up, error.up()),
    ];
    if operands.bias.is_some() {
        let ones = bias_gradient_input(x.nrows());
        let row = |bound: Real| bound.reversed_axes();
        gradients.push(row(half(&ones, &d.gate, error.gate())));
        gradients.push(row(half(&ones, &d.up, error.up())));
    }
    Ok(Bounds { z, gradients })
}

/// The largest error in units of its bound; infinite for one that is not a number.
fn worst(got: &Tensor, exact: &Tensor, bound: &Real) -> Result<f64> {
    let exact = real(exact)?;
    let got = real(&got.contiguous()?.reshape(exact.dim())?)?;
    assert!(bound.iter().all(|bound| bound.is_finite()), "the bound says nothing");
    let ratio = |((got, exact), bound): ((&f64, &f64), &f64)| {
        let error = (got - exact).abs();
        if error.is_nan() {
            f64::INFINITY
        } else if error == 0.0 {
            0.0
        } else {
            error / bound
        }
    };
    Ok(got.iter().zip(&exact).zip(bound).map(ratio).fold(0.0, f64::max))
}

/// How far z, which the op has made of the inputs, and each gradient that there is are off, in units of their bounds: 1
/// or less is right.
pub(crate) fn errors(case: &Case, inputs: &Inputs, z: &Tensor) -> Result<Vec<(&'static str, f64)>> {
    let exact = inputs.exact()?;
    let bounds = bounds(case, &exact, inputs.x.device())?;
    let exact_z = exact.graph(case.gate)?;
    let mut errors = vec![("z", worst(z, &exact_z, &bounds.z)?)];
    let gradients = z.mul(&inputs.dz)?.sum_all()?.backward()?;
    let exact_gradients = exact_z.mul(&exact.dz)?.sum_all()?.backward()?;
    for (((name, of), (_, of_exact)), bound) in
        inputs.named().into_iter().zip(exact.named()).zip(&bounds.gradients)
    {
        let Some(gradient) = gradients.get(of) else { continue };
        assert_eq!(gradient.shape(), of.shape(), "{name}");
        let exact = exact_gradients.get(of_exact).expect("a gradient of every variable");
        errors.push((name, worst(gradient, exact, bound)?));
    }
    Ok(errors)
}

/// z within its bound, and for every variable a gradient within its own.
pub(crate) fn check(case: &Case, inputs: &Inputs) -> Result<()> {
    let errors = errors(case, inputs, &inputs.forward(case)?)?;
    for (name, ratio) in &errors {
        assert!(*ratio <= 1.0, "{name} is off by {ratio:.3} times its bound: {case:?}");
    }
    for (name, _) in inputs.named().iter().filter(|(_, tensor)| tensor.is_variable()) {
        assert!(errors.iter().any(|(has, _)| has == name), "no {name}: {case:?}");
    }
    Ok(())
}

/// The exact z, and how far from it the op's may be.
pub(crate) fn z_bound(case: &Case, inputs: &Inputs) -> Result<(Real, Real)> {
    let exact = inputs.exact()?;
    let bound = bounds(case, &exact, inputs.x.device())?.z;
    Ok((real(&exact.graph(case.gate)?)?, bound))
}
