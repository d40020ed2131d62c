//! Error bounds, per element, in two grades.
//!
//! With gamma_n = n u_a / (1 - n u_a) (Higham, Accuracy and Stability, eq. 3.13) a sum of n products is off by at most
//! gamma_n times its magnitude |a| . |b|, in any order of summation. [`Grade::Hard`] uses that: a violation is a bug.
//! [`Grade::Watch`] uses 6 sqrt(n) u_a instead (Ipsen and Zhou, arXiv 1906.10465), and adds independent roundings of
//! many summands in quadrature: a violation needs a look. The smaller of both is taken, so that Watch <= Hard.
//!
//! For each output, q = gamma and products written `.`:
//!
//! ```text
//! pre-activations  e_g = q (|x| . |Wa| + |ba|)          n = I + 2: the sum, the bias, a conversion
//! z                E = |a| e_b + |b| e_a + e_a e_b, then u32 and u_T of z
//! dU, dG           E_U = |dz| ((|a| + e_a) (|b'| + e_b') - |a b'|), E_G likewise with a' and b, then 3 u32
//! dz from dy       e_dz = q |dy| . |Wdown|^T, n = O + 2: |dz| + e_dz for |dz| above, and |a| e_dz on top
//! dX               E = q M + (1 + q) (E_G . |Wa|^T + E_U . |Wb|^T), M = |dG| . |Wa|^T + |dU| . |Wb|^T, n = 2D + 2
//! dWf              E = q M + (1 + q) |X|^T . E_G, M = |X|^T . |dG|, n = B + 2
//! dbias            the same with ones for X
//! ```
//!
//! e_a, e_b and the slopes' errors are the gate's: see `bounds/gate.rs`. On top:
//! - Each rounding to the element type T adds u_T of the value and `tiny`, T's least subnormal: the saved
//!   pre-activations, z, each gradient. dG and dU may be rounded to T in 16-bit types before they are multiplied.
//! - [`Rounding::Unfused`]: the pre-activations are rounded to T before and after the bias, and dX is rounded between
//!   its two products.
//! - `+=` puts the old value into M and rounds the sum once.
//! - A sum of n products has underflow errors of n least subnormals; where a path flushes subnormals, of n least
//!   normals, also of each factor.
//! - Where an intermediate can overflow, the bound is infinite: what comes out is then not constrained.
//!
//! Backward after `Save::PreActivations` starts from the saved values as they are stored (they are public, and checked
//! by the forward bounds), so e_g = e_u = 0 there.

mod gate;

use swiglu_core::{Dtype, Gate};

use crate::oracle::gate::factors;
use crate::oracle::{Cotangents, Operands, Projection, Real, absolute, product, transposed};
use gate::{TINY, spread};

/// Unit roundoff of f32.
const U32: f64 = 1.0 / (1u64 << 24) as f64;

/// Which of the two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// Proved: a violation is a bug.
    Hard,
    /// Probable: a violation needs a look.
    Watch,
}

/// Where a backend rounds to the element type between its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Nowhere but at outputs, and at dG and dU.
    Fused,
    /// Wherever an intermediate goes through memory: pre-activations, a dz that comes from dy, the first product of dX.
    Unfused,
}

/// The arithmetic that a bound is for.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// The element type.
    pub dtype: Dtype,
    /// Unit roundoff of an accumulation: 2^-24 for f32 on a CPU, 2^-23 for tensor cores, which neither round to nearest
    /// nor normalise partial sums.
    pub accumulator: f64,
    /// Where it rounds in between.
    pub rounding: Rounding,
    /// Whether subnormal factors and sums become 0.
    pub flushes: bool,
    /// Relative error of a gate function at an exact argument, in units of 2^-24: 8 is 4 ulp.
    pub gate_units: f64,
}

/// Largest finite number of an element type.
pub fn largest(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(f32::MAX),
        Dtype::F16 => 65504.0,
        Dtype::Bf16 => f64::from(half::bf16::MAX),
    }
}

/// Least subnormal of an element type.
pub fn tiny(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => TINY,
        Dtype::F16 => f64::from(half::f16::from_bits(1)),
        Dtype::Bf16 => f64::from(half::bf16::from_bits(1)),
    }
}

/// What one rounding to `dtype` adds to a value that is off by `e`.
fn rounded(dtype: Dtype, value: f64, e: f64) -> f64 {
    dtype.unit_roundoff() * (value.abs() + e) + tiny(dtype)
}

/// `e`, or infinity when a value that is off by `e` can overflow.
fn unless_overflow(e: f64, value: f64, limit: f64) -> f64 {
    if value.abs() + e <= limit { e } else { f64::INFINITY }
}

fn largest_of(a: &Real) -> f64 {
    a.iter().fold(0.0, |most: f64, v| most.max(v.abs()))
}

/// What dG and dU are off by: through the arithmetic, and by one more rounding to T.
#[derive(Clone, Debug)]
pub struct CotangentError {
    gate: Real,
    up: Real,
    gate_store: Real,
    up_store: Real,
}

impl Model {
    /// gamma_n, or what takes its place.
    pub fn gamma(&self, grade: Grade, n: usize) -> f64 {
        let n = n as f64;
        let proved = n * self.accumulator / (1.0 - n * self.accumulator);
        match grade {
            Grade::Hard => proved,
            Grade::Watch => proved.min(6.0 * n.sqrt() * self.accumulator),
        }
    }

    /// What underflow adds to a sum of `n` products of elements of `a` and `b`.
    fn underflow(&self, n: usize, a: &Real, b: &Real) -> f64 {
        let kept = n as f64 * TINY;
        if !self.flushes {
            return kept;
        }
        kept + n as f64 * f64::from(f32::MIN_POSITIVE) * (1.0 + largest_of(a) + largest_of(b))
    }

    /// A sum of products: rounding, what its factors are off by (`e`), and the old value that it is added to.
    ///
    /// `n` counts the roundings that a summand can go through.
    pub fn sum(&self, grade: Grade, n: usize, magnitude: f64, e: f64) -> f64 {
        let q = self.gamma(grade, n);
        unless_overflow(q * magnitude + (1.0 + q) * e, magnitude, f64::from(f32::MAX))
    }

    /// What a result is off by after it was rounded to the type of its destination.
    pub fn stored(&self, dtype: Dtype, value: f64, e: f64) -> f64 {
        e + rounded(dtype, value, e)
    }

    /// What a computed pre-activation is off by before the gate sees it.
    pub fn pre_activation(&self, grade: Grade, operands: &Operands, w: &Real, p: &Projection) -> Real {
        let terms = w.nrows();
        let underflow = self.underflow(terms + 2, &operands.x, w);
        Real::from_shape_fn(p.value.dim(), |at| {
            let mut e = self.sum(grade, terms + 2, p.magnitude[at], underflow);
            if self.rounding == Rounding::Unfused {
                e += rounded(self.dtype, p.unbiased[at], e);
                e = unless_overflow(e, p.unbiased[at], largest(self.dtype));
                if operands.bias.is_some() {
                    e += rounded(self.dtype, p.value[at], e);
                    e = unless_overflow(e, p.value[at], largest(self.dtype));
                }
            }
            e
        })
    }

    /// What a pre-activation is off by after it was rounded to T: as it is saved.
    pub fn saved(&self, value: &Real, e: &Real) -> Real {
        match self.rounding {
            Rounding::Unfused => e.clone(),
            Rounding::Fused => {
                Real::from_shape_fn(value.dim(), |at| self.stored(self.dtype, value[at], e[at]))
            }
        }
    }

    /// What z is off by, for g and u that are off by `e_g` and `e_u`.
    pub fn output(&self, gate: Gate, (g, e_g): (&Real, &Real), (u, e_u): (&Real, &Real)) -> Real {
        Real::from_shape_fn(g.dim(), |at| {
            let f = factors(gate, g[at], u[at]);
            let s = spread(gate, &f, (g[at], e_g[at]), (u[at], e_u[at]), self.gate_units);
            let moved = f.a.abs() * s.b + f.b.abs() * s.a + s.a * s.b;
            let e = moved + U32 * (f.value().abs() + moved) + TINY;
            self.stored(self.dtype, f.value(), e)
        })
    }

    /// What dG and dU are off by, for g, u and dz that are off by `e_g`, `e_u` and `e_dz`.
    pub fn cotangents(
        &self,
        gate: Gate,
        (g, e_g): (&Real, &Real),
        (u, e_u): (&Real, &Real),
        (dz, e_dz): (&Real, Option<&Real>),
    ) -> CotangentError {
        let zeros = || Real::zeros(g.dim());
        let mut error = CotangentError { gate: zeros(), up: zeros(), gate_store: zeros(), up_store: zeros() };
        for (at, &dz) in dz.indexed_iter() {
            let f = factors(gate, g[at], u[at]);
            let s = spread(gate, &f, (g[at], e_g[at]), (u[at], e_u[at]), self.gate_units);
            let (by_g, by_u) = f.partials();
            let off_g = f.a_slope.abs() * s.b + f.b.abs() * s.a_slope + s.a_slope * s.b;
            let off_u = f.a.abs() * s.b_slope + f.b_slope.abs() * s.a + s.a * s.b_slope;
            let dz = (dz, e_dz.map_or(0.0, |e| e[at]));
            (error.gate[at], error.gate_store[at]) = self.cotangent(dz, by_g, off_g);
            (error.up[at], error.up_store[at]) = self.cotangent(dz, by_u, off_u);
        }
        error
    }

    /// dz times a partial derivative that is off by `e`; and one rounding to T.
    fn cotangent(&self, (dz, e_dz): (f64, f64), partial: f64, e: f64) -> (f64, f64) {
        let limit = f64::from(f32::MAX);
        let e = unless_overflow(e, partial, limit);
        let value = dz * partial;
        let off = (dz.abs() + e_dz) * (e + TINY) + partial.abs() * e_dz;
        let off = off + 3.0 * U32 * (value.abs() + off) + TINY;
        // A NaN from 0 * infinity counts as overflow.
        let off = if off.is_nan() { f64::INFINITY } else { unless_overflow(off, value, limit) };
        match self.dtype {
            Dtype::F32 => (off, 0.0),
            Dtype::F16 | Dtype::Bf16 => {
                let off = unless_overflow(off, value, largest(self.dtype));
                (off, rounded(self.dtype, value, off))
            }
        }
    }

    /// What many summands, each off by `store` times a factor, add up to: linearly, or in quadrature.
    fn stores(&self, grade: Grade, store: &Real, factor: &Real, store_first: bool) -> Real {
        let multiply = |s: &Real, f: &Real| if store_first { product(s, f) } else { product(f, s) };
        let linear = multiply(store, &absolute(factor));
        if grade == Grade::Hard || self.dtype == Dtype::F32 {
            return linear;
        }
        let squares = multiply(&store.mapv(|s| s * s), &factor.mapv(|f| f * f));
        Real::from_shape_fn(linear.dim(), |at| linear[at].min(6.0 * squares[at].sqrt()))
    }

    /// What dX is off by; `parts` are its two products, `old` what it is added to.
    pub fn input_gradient(
        &self,
        grade: Grade,
        operands: &Operands,
        (d, error): (&Cotangents, &CotangentError),
        parts: (&Real, &Real),
        old: Option<&Real>,
    ) -> Real {
        let (wa, wb) = (transposed(&operands.gate_weights), transposed(&operands.up_weights));
        let (wa_abs, wb_abs) = (absolute(&wa), absolute(&wb));
        let magnitude = product(&absolute(&d.gate), &wa_abs) + product(&absolute(&d.up), &wb_abs);
        let arithmetic = product(&error.gate, &wa_abs) + product(&error.up, &wb_abs);
        let stores =
            self.stores(grade, &error.gate_store, &wa, true) + self.stores(grade, &error.up_store, &wb, true);
        let terms = 2 * wa.nrows() + 2;
        let underflow = self.underflow(terms, &d.gate, &wa).max(self.underflow(terms, &d.up, &wb));
        Real::from_shape_fn(magnitude.dim(), |at| {
            let old = old.map_or(0.0, |old| old[at]);
            let mut e =
                self.sum(grade, terms, magnitude[at] + old.abs(), arithmetic[at] + stores[at] + underflow);
            if self.rounding == Rounding::Unfused {
                let first = parts.0[at] + old;
                e = unless_overflow(e + rounded(self.dtype, first, e), first, largest(self.dtype));
            }
            known(self.stored(self.dtype, parts.0[at] + parts.1[at] + old, e))
        })
    }

    /// What one half of dWf is off by, `[I, D]`, and likewise dbias with ones for `x`.
    ///
    /// `value` includes the old one.
    pub fn weight_gradient(
        &self,
        grade: Grade,
        x: &Real,
        (d, error, store): (&Real, &Real, &Real),
        (value, old): (&Real, Option<&Real>),
        destination: Dtype,
    ) -> Real {
        let xt = transposed(x);
        let xt_abs = absolute(&xt);
        let magnitude = product(&xt_abs, &absolute(d));
        let arithmetic = product(&xt_abs, error);
        let stores = self.stores(grade, store, &xt, false);
        let terms = x.nrows() + 2;
        let underflow = self.underflow(terms, x, d);
        Real::from_shape_fn(magnitude.dim(), |at| {
            let old = old.map_or(0.0, |old| old[at].abs());
            let e = self.sum(grade, terms, magnitude[at] + old, arithmetic[at] + stores[at] + underflow);
            known(self.stored(destination, value[at], e))
        })
    }

    /// What a plain product of stored matrices is off by; `value` includes the old one.
    pub fn matmul(
        &self,
        grade: Grade,
        (a, b): (&Real, &Real),
        (value, old): (&Real, Option<&Real>),
        destination: Dtype,
    ) -> Real {
        let magnitude = product(&absolute(a), &absolute(b));
        let terms = a.ncols() + 2;
        let underflow = self.underflow(terms, a, b);
        Real::from_shape_fn(magnitude.dim(), |at| {
            let old = old.map_or(0.0, |old| old[at].abs());
            let e = self.sum(grade, terms, magnitude[at] + old, underflow);
            self.stored(destination, value[at], e)
        })
    }
}

impl CotangentError {
    /// dG: the arithmetic, and the rounding.
    pub fn gate(&self) -> (&Real, &Real) {
        (&self.gate, &self.gate_store)
    }

    /// dU: the arithmetic, and the rounding.
    pub fn up(&self) -> (&Real, &Real) {
        (&self.up, &self.up_store)
    }
}

/// A NaN bound comes from infinity times 0 and constrains nothing.
fn known(bound: f64) -> f64 {
    if bound.is_nan() { f64::INFINITY } else { bound }
}

/// |ones| for a bias gradient.
pub fn bias_gradient_input(batch: usize) -> Real {
    Real::ones((batch, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::column_sums;

    fn model(dtype: Dtype) -> Model {
        Model { dtype, accumulator: U32, rounding: Rounding::Fused, flushes: false, gate_units: 8.0 }
    }

    #[test]
    fn watch_is_never_above_hard() {
        let model = model(Dtype::F32);
        for n in [0, 1, 2, 30, 40, 1000, 100_000] {
            assert!(model.gamma(Grade::Watch, n) <= model.gamma(Grade::Hard, n), "{n}");
        }
        assert!(model.gamma(Grade::Watch, 10_000) < 0.1 * model.gamma(Grade::Hard, 10_000), "far below");
    }

    #[test]
    fn overflow_unbinds() {
        let model = model(Dtype::F16);
        assert_eq!(model.sum(Grade::Hard, 10, 1e39, 0.0), f64::INFINITY);
        let (off, _) = model.cotangent((60_000.0, 0.0), 1.2, 1e-7);
        assert_eq!(off, f64::INFINITY);
        let (off, store) = model.cotangent((60.0, 0.0), 1.2, 1e-7);
        assert!(off < 1e-4 && store > 0.03 && store < 0.04, "{off} {store}");
    }

    #[test]
    fn limits_of_the_element_types() {
        assert_eq!(tiny(Dtype::F32), 2f64.powi(-149));
        assert_eq!(tiny(Dtype::F16), 2f64.powi(-24));
        assert_eq!(tiny(Dtype::Bf16), 2f64.powi(-133));
        assert_eq!(largest(Dtype::Bf16), 2f64.powi(128) - 2f64.powi(120));
    }

    #[test]
    fn bias_gradients_are_weight_gradients_of_ones() {
        let d = Real::from_shape_fn((3, 2), |(i, j)| (i + 3 * j) as f64);
        let ones = bias_gradient_input(3);
        assert_eq!(product(&transposed(&ones), &d), column_sums(&d));
    }
}
