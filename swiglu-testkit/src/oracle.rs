//! The reference: plain f64 triple loops over inputs as they are stored, written apart from every kernel.
//!
//! An f64 product of f32 values is exact, and a sum of n of them is wrong by at most n * 2^-53 of its magnitude: 2^-29
//! of what the bounds of [`bounds`](crate::bounds) allow.

pub mod gate;

use ndarray::Array2;
use swiglu_core::Gate;

use gate::factors;

/// A matrix of f64, in standard layout.
pub type Real = Array2<f64>;

/// The inputs of the op: weights as halves in the orientation `[I, D]`, whatever the backend saw.
#[derive(Clone, Debug)]
pub struct Operands {
    /// `[B, I]`.
    pub x: Real,
    /// Wa, `[I, D]`.
    pub gate_weights: Real,
    /// Wb, `[I, D]`.
    pub up_weights: Real,
    /// ba and bb, `[1, D]` each.
    pub bias: Option<(Real, Real)>,
    /// The gate function.
    pub gate: Gate,
}

/// One projection: x . W + bias.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Its value, `[B, D]`.
    pub value: Real,
    /// Its value without the bias.
    pub unbiased: Real,
    /// |x| . |W| + |bias|: what rounding errors are relative to.
    pub magnitude: Real,
}

/// Both pre-activations.
#[derive(Clone, Debug)]
pub struct PreActivations {
    /// g.
    pub gate: Projection,
    /// u.
    pub up: Projection,
}

/// dG and dU.
#[derive(Clone, Debug)]
pub struct Cotangents {
    /// dz * dh/dg.
    pub gate: Real,
    /// dz * dh/du.
    pub up: Real,
}

/// The transpose, in standard layout.
pub fn transposed(a: &Real) -> Real {
    a.t().as_standard_layout().into_owned()
}

/// Absolute values.
pub fn absolute(a: &Real) -> Real {
    a.mapv(f64::abs)
}

/// a . b, by the definition.
///
/// # Panics
/// When the inner dimensions differ.
pub fn product(a: &Real, b: &Real) -> Real {
    let ((rows, inner), cols) = (a.dim(), b.ncols());
    assert_eq!(inner, b.nrows(), "inner dimensions");
    let mut c = Real::zeros((rows, cols));
    for i in 0..rows {
        let mut row = c.row_mut(i);
        for k in 0..inner {
            let factor = a[[i, k]];
            for (sum, &b) in row.iter_mut().zip(b.row(k)) {
                *sum += factor * b;
            }
        }
    }
    c
}

/// The sum over rows, `[1, n]`.
pub fn column_sums(a: &Real) -> Real {
    let mut sums = Real::zeros((1, a.ncols()));
    for row in a.rows() {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
    sums
}

fn project(x: &Real, w: &Real, bias: Option<&Real>) -> Projection {
    let unbiased = product(x, w);
    let magnitude = product(&absolute(x), &absolute(w));
    match bias {
        Some(bias) => {
            Projection { value: &unbiased + bias, unbiased, magnitude: magnitude + &absolute(bias) }
        }
        None => Projection { value: unbiased.clone(), unbiased, magnitude },
    }
}

impl Operands {
    /// g and u.
    pub fn pre_activations(&self) -> PreActivations {
        let bias = |half: usize| self.bias.as_ref().map(|(gate, up)| if half == 0 { gate } else { up });
        PreActivations {
            gate: project(&self.x, &self.gate_weights, bias(0)),
            up: project(&self.x, &self.up_weights, bias(1)),
        }
    }

    /// dX from dG and dU, one summand for each projection.
    pub fn input_gradient(&self, d: &Cotangents) -> (Real, Real) {
        (product(&d.gate, &transposed(&self.gate_weights)), product(&d.up, &transposed(&self.up_weights)))
    }
}

/// z from pre-activations.
pub fn output(gate: Gate, g: &Real, u: &Real) -> Real {
    Real::from_shape_fn(g.dim(), |at| factors(gate, g[at], u[at]).value())
}

/// dG and dU from pre-activations and dz.
pub fn cotangents(gate: Gate, g: &Real, u: &Real, dz: &Real) -> Cotangents {
    let mut d = Cotangents { gate: Real::zeros(g.dim()), up: Real::zeros(g.dim()) };
    for (at, &dz) in dz.indexed_iter() {
        let (by_g, by_u) = factors(gate, g[at], u[at]).partials();
        (d.gate[at], d.up[at]) = (dz * by_g, dz * by_u);
    }
    d
}

/// One half of dWf, `[I, D]`.
pub fn weight_gradient(x: &Real, d: &Real) -> Real {
    product(&transposed(x), d)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn random(rng: &mut ChaCha8Rng, rows: usize, cols: usize) -> Real {
        Real::from_shape_simple_fn((rows, cols), || f64::from(rng.next_u32()) / f64::from(1u32 << 31) - 1.0)
    }

    fn operands(gate: Gate, seed: u64) -> (Operands, Real, ChaCha8Rng) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (b, i, d) = (3, 5, 4);
        let operands = Operands {
            x: random(&mut rng, b, i),
            gate_weights: random(&mut rng, i, d),
            up_weights: random(&mut rng, i, d),
            bias: Some((random(&mut rng, 1, d), random(&mut rng, 1, d))),
            gate,
        };
        let dz = random(&mut rng, b, d);
        (operands, dz, rng)
    }

    /// <dz, z>.
    fn objective(operands: &Operands, dz: &Real) -> f64 {
        let pre = operands.pre_activations();
        (output(operands.gate, &pre.gate.value, &pre.up.value) * dz).sum()
    }

    struct Gradients {
        dx: Real,
        dwa: Real,
        dwb: Real,
        dba: Real,
        dbb: Real,
    }

    fn gradients(operands: &Operands, dz: &Real) -> Gradients {
        let pre = operands.pre_activations();
        let d = cotangents(operands.gate, &pre.gate.value, &pre.up.value, dz);
        let (first, second) = operands.input_gradient(&d);
        Gradients {
            dx: first + second,
            dwa: weight_gradient(&operands.x, &d.gate),
            dwb: weight_gradient(&operands.x, &d.up),
            dba: column_sums(&d.gate),
            dbb: column_sums(&d.up),
        }
    }

    /// Whether a pre-activation is within `margin` of a point where the slope jumps.
    fn near_kink(operands: &Operands, margin: f64) -> bool {
        let kinks: &[f64] = match operands.gate {
            Gate::Reglu => &[0.0],
            Gate::SwigluClamped { .. } => &[-7.0, 7.0],
            _ => &[],
        };
        let pre = operands.pre_activations();
        let near = |v: &f64| kinks.iter().any(|kink| (v - kink).abs() < margin);
        pre.gate.value.iter().any(near) || pre.up.value.iter().any(near)
    }

    /// The name of an operand, the operand, and its gradient.
    type Part<'a> = (&'static str, fn(&mut Operands) -> &mut Real, &'a Real);

    #[test]
    fn gradients_are_central_differences() {
        let eps = 1e-6;
        for gate in Gate::ALL {
            for seed in 0..4 {
                let (mut operands, dz, _) = operands(gate, seed);
                if near_kink(&operands, 1e-4) {
                    continue;
                }
                let exact = gradients(&operands, &dz);
                let parts: [Part<'_>; 5] = [
                    ("dx", |o| &mut o.x, &exact.dx),
                    ("dwa", |o| &mut o.gate_weights, &exact.dwa),
                    ("dwb", |o| &mut o.up_weights, &exact.dwb),
                    ("dba", |o| &mut o.bias.as_mut().expect("a bias").0, &exact.dba),
                    ("dbb", |o| &mut o.bias.as_mut().expect("a bias").1, &exact.dbb),
                ];
                for (name, part, exact) in parts {
                    for (at, &slope) in exact.indexed_iter() {
                        let old = part(&mut operands)[at];
                        part(&mut operands)[at] = old + eps;
                        let above = objective(&operands, &dz);
                        part(&mut operands)[at] = old - eps;
                        let below = objective(&operands, &dz);
                        part(&mut operands)[at] = old;
                        let difference = (above - below) / (2.0 * eps);
                        assert!(
                            (slope - difference).abs() < 1e-8,
                            "{gate} {name} {at:?}: {slope} {difference}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_are_the_adjoint_of_the_derivative() {
        // <dz, J v> by one central difference along v, <J^T dz, v> by the formulas.
        let eps = 1e-6;
        for gate in Gate::ALL {
            let (operands, dz, mut rng) = operands(gate, 11);
            let exact = gradients(&operands, &dz);
            let direction = |rng: &mut ChaCha8Rng, like: &Real| random(rng, like.nrows(), like.ncols());
            let (vx, va, vb) = (
                direction(&mut rng, &operands.x),
                direction(&mut rng, &operands.gate_weights),
                direction(&mut rng, &operands.up_weights),
            );
            let moved = |step: f64| {
                let mut moved = operands.clone();
                moved.x = &moved.x + &(&vx * step);
                moved.gate_weights = &moved.gate_weights + &(&va * step);
                moved.up_weights = &moved.up_weights + &(&vb * step);
                objective(&moved, &dz)
            };
            let forward = (moved(eps) - moved(-eps)) / (2.0 * eps);
            let backward = (&exact.dx * &vx).sum() + (&exact.dwa * &va).sum() + (&exact.dwb * &vb).sum();
            assert!(
                (forward - backward).abs() < 1e-7 * (1.0 + backward.abs()),
                "{gate}: {forward} {backward}"
            );
        }
    }

    #[test]
    fn sums_over_nothing_are_zero() {
        assert_eq!(product(&Real::zeros((2, 0)), &Real::zeros((0, 3))), Real::zeros((2, 3)));
        assert_eq!(column_sums(&Real::zeros((0, 3))), Real::zeros((1, 3)));
    }
}
