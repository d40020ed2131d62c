//! A few steps of training: the loss goes down, and is the one of candle's own graph at each step.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Optimizer, SGD};

use crate::Test;
use crate::reference::{Case, Inputs, real, z_bound};

pub(crate) const TESTS: &[Test] = &[("training_lowers_the_loss", lowers)];

const STEPS: usize = 20;

/// Weights of at most 1/2, drawn from a seed.
fn draw(case: &Case, device: &Device) -> Result<Inputs> {
    let drawn = Inputs::draw(case, device)?;
    let small = |w: &Tensor| w.detach().broadcast_div(&(w.detach().abs()?.max_all()? * 2.0)?);
    Ok(Inputs { w_gate: small(&drawn.w_gate)?, w_up: small(&drawn.w_up)?, x: drawn.x.detach(), ..drawn })
}

/// Fits z to what other weights make of x.
fn lowers(device: &Device) -> Result<()> {
    let case = Case::new(48, 16, 24, DType::F32);
    let start = draw(&case, device)?;
    let target = draw(&Case { seed: 8, ..case }, device)?;
    let target = Inputs { x: start.x.clone(), ..target }.forward(&case)?;
    let (gate, up) = (Var::from_tensor(&start.w_gate)?, Var::from_tensor(&start.w_up)?);
    let mut optimizer = SGD::new(vec![gate.clone(), up.clone()], 1.0)?;
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let z = case.op().forward(&start.x, &gate, &up)?;
        let loss = z.sub(&target)?.sqr()?.mean_all()?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let inputs =
            Inputs { w_gate: gate.as_tensor().clone(), w_up: up.as_tensor().clone(), ..start.clone() };
        let (exact, bound) = exact_loss(&case, &inputs, &target)?;
        assert!((value - exact).abs() <= bound, "step {}: {value}, exact {exact} +- {bound:e}", losses.len());
        losses.push(value);
        optimizer.backward_step(&loss)?;
    }
    assert!(losses[STEPS - 1] < 0.5 * losses[0], "{losses:?}");
    Ok(())
}

/// The loss by candle's graph in f64, and how far from it one in f32 may be: each z - t by the bound of z and a rounding,
/// its square and the mean of all by one rounding for each operation.
fn exact_loss(case: &Case, inputs: &Inputs, target: &Tensor) -> Result<(f64, f64)> {
    let unit = swiglu_testkit::Dtype::F32.unit_roundoff();
    let (z, bound) = z_bound(case, inputs)?;
    let target = real(target)?;
    let (mut loss, mut off) = (0.0, 0.0);
    for ((z, target), e) in z.iter().zip(&target).zip(&bound) {
        let d = z - target;
        let e = e + unit * (d.abs() + e);
        loss += d * d;
        off += 2.0 * d.abs() * e + e * e;
    }
    let n = z.len() as f64;
    let roundings = (n + 2.0) * unit;
    let gamma = roundings / (1.0 - roundings);
    Ok((loss / n, (off + gamma * (loss + off)) / n))
}
