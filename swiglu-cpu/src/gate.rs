//! Gate functions over slices, written so that they vectorise in the caller's instruction set.

use swiglu_core::{Gate, GateFunction, GateVisitor};

/// `h[j] = h(g[j], u[j])`.
#[inline(always)]
pub(crate) fn values(gate: Gate, g: &[f32], u: &[f32], h: &mut [f32]) {
    gate.dispatch(Values { g, u, h });
}

/// `g[j]` and `u[j]` become `dz[j] * dh/dg` and `dz[j] * dh/du`.
#[inline(always)]
pub(crate) fn gradients(gate: Gate, dz: &[f32], g: &mut [f32], u: &mut [f32]) {
    gate.dispatch(Gradients { dz, g, u });
}

struct Values<'a> {
    g: &'a [f32],
    u: &'a [f32],
    h: &'a mut [f32],
}

impl GateVisitor for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn visit<G: GateFunction>(self, gate: G) {
        for ((h, g), u) in self.h.iter_mut().zip(self.g).zip(self.u) {
            *h = gate.value(*g, *u);
        }
    }
}

struct Gradients<'a> {
    dz: &'a [f32],
    g: &'a mut [f32],
    u: &'a mut [f32],
}

impl GateVisitor for Gradients<'_> {
    type Output = ();

    #[inline(always)]
    fn visit<G: GateFunction>(self, gate: G) {
        for ((g, u), dz) in self.g.iter_mut().zip(self.u).zip(self.dz) {
            let (dg, du) = gate.partials(*g, *u);
            *g = dz * dg;
            *u = dz * du;
        }
    }
}
