//! AdamW against the same recurrence in f64.
//!
//! Bounds: an update lr * m^ / (sqrt(v^) + epsilon) is off relatively by some u, and by u / (1 - beta^t) through each
//! bias correction, whose 1 - beta^t cancels in early steps. The parameter adds an ulp or two of its own in each step.

use ndarray::Array2;
use swiglu_core::{AdamW, Dense, Dtype, Element, Gradient};

use super::Bench;
use crate::bits::Value;
use crate::bounds::tiny;
use crate::data::real;
use crate::guarded::Guarded;
use crate::judge::{Expected, judge};
use crate::oracle::Real;
use crate::report::{Failure, Report};

/// Moments, parameter, and what the parameter is off by.
struct State {
    first: Real,
    second: Real,
    parameter: Real,
    bound: Real,
}

fn step(hyper: AdamW, t: i32, gradient: &Real, state: &mut State) {
    let u = Dtype::F32.unit_roundoff();
    let [lr, beta1, beta2, epsilon, decay] =
        [hyper.lr, hyper.beta1, hyper.beta2, hyper.epsilon, hyper.weight_decay].map(f64::from);
    let corrections = (1.0 - beta1.powi(t), 1.0 - beta2.powi(t));
    let relative = u * (24.0 + 4.0 / corrections.0 + 4.0 / corrections.1 + 2.0 * f64::from(t));
    for (at, &g) in gradient.indexed_iter() {
        let m = beta1 * state.first[at] + (1.0 - beta1) * g;
        let v = beta2 * state.second[at] + (1.0 - beta2) * g * g;
        (state.first[at], state.second[at]) = (m, v);
        let root = (v / corrections.1).sqrt() + epsilon;
        let update = m / corrections.0 / root;
        // m is a difference of gradients: its error is relative to what it is made of, at most the root.
        let scale = root / root.max(epsilon) / corrections.0.min(1.0);
        let p = state.parameter[at];
        state.parameter[at] = p - lr * update - lr * decay * p;
        let off = lr * relative * (update.abs() + scale) + 4.0 * u * (p.abs() + lr * update.abs());
        state.bound[at] = state.bound[at] * (1.0 + lr * decay) + off + tiny(Dtype::F32);
    }
}

pub(super) fn adamw<T: Value, B: Dense<T>>(bench: &Bench<'_, B>, report: &mut Report) -> Result<(), Failure> {
    let backend = bench.backend;
    let mut other = AdamW::new(0.1);
    (other.beta1, other.beta2, other.epsilon, other.weight_decay) = (0.5, 0.9, 1e-3, 0.0);
    for (pad, hyper) in [(0, AdamW::new(1e-2)), (3, other)] {
        for (wide, shape) in [(false, (3, 5)), (true, (17, 33)), (true, (1, 1)), (false, (0, 4))] {
            let parameter: Array2<T> = bench.normal(40, shape);
            let mut placed = Guarded::new(backend, "parameter", &parameter, pad)?;
            let mut optimizer = backend.optimizer(placed.view())?;
            let (zeros, start) = (Real::zeros(shape), real(&parameter));
            let mut state =
                State { first: zeros.clone(), second: zeros.clone(), parameter: start, bound: zeros };
            for t in 1..=6 {
                let gradient: Array2<T> =
                    bench.normal(50 + t as u64, shape).mapv(|v: T| T::from_f32(0.3 * v.to_f32()));
                if wide {
                    let gradient = gradient.mapv(Element::to_f32);
                    let placed_gradient = Guarded::new(backend, "gradient", &gradient, 1)?;
                    let gradient = Gradient::F32(placed_gradient.view());
                    backend.adamw(hyper, gradient, &mut optimizer, placed.view_mut())?;
                    placed_gradient.unchanged(backend)?;
                } else {
                    let placed_gradient = Guarded::new(backend, "gradient", &gradient, 1)?;
                    let gradient = Gradient::Same(placed_gradient.view());
                    backend.adamw(hyper, gradient, &mut optimizer, placed.view_mut())?;
                    placed_gradient.unchanged(backend)?;
                }
                step(hyper, t, &real(&gradient), &mut state);
                let dtype = T::DTYPE;
                let round = if dtype == Dtype::F32 { 0.0 } else { dtype.unit_roundoff() };
                let expected = Expected::new(state.parameter.clone(), |_, value| {
                    Real::from_shape_fn(value.dim(), |at| {
                        let e = state.bound[at];
                        e + round * (value[at].abs() + e) + tiny(dtype)
                    })
                });
                let name = format!("{dtype} adamw {shape:?} after step {t}");
                judge(&name, &placed.read(backend)?, &expected, dtype, bench.config, report)?;
            }
        }
    }
    Ok(())
}
