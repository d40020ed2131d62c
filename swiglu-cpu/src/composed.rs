//! `Route::Composed`: matrixmultiply's GEMM, with elementwise passes around it. 16-bit operands are widened first.
//!
//! Blocks are of a fixed size and the sum over k is never split, so the bits are those of one thread.

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use swiglu_core::ops::{Backward, Forward};
use swiglu_core::{
    Down, Element, Host, MatMut, MatRef, Matrix, Orientation, Out, Result, Target, Upstream, Weights,
};

use crate::arena::Workspace;
use crate::backend::Pass;
use crate::kernels::Kernel;
use crate::kernels::sgemm::sgemm;
use crate::rows;

/// Rows or columns of a task.
const EDGE: usize = 128;

/// A copy in f32.
fn widen<T: Element>(m: MatRef<'_, T, Host>) -> Result<Matrix<f32, Host>> {
    let mut wide = Matrix::host_zeros(m.rows(), m.cols())?;
    let mut to = wide.view_mut();
    for row in rows_of(m.shape()) {
        if let (Some(from), Some(to)) = (m.row(row), to.row_mut(row)) {
            T::widen(from, to);
        }
    }
    Ok(wide)
}

/// The rows of a matrix that hold something.
fn rows_of((rows, cols): (usize, usize)) -> std::ops::Range<usize> {
    if cols == 0 { 0..0 } else { 0..rows }
}

fn zeros((rows, cols): (usize, usize)) -> Result<Matrix<f32, Host>> {
    Matrix::host_zeros(rows, cols)
}

/// `c = a . b + beta * c` in tasks of EDGE rows, or of EDGE columns when there are few rows.
fn matmul(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, beta: f32, c: ArrayViewMut2<'_, f32>) {
    let (m, n) = c.dim();
    if m.min(n) == 0 {
        return;
    }
    let by_rows = m >= n;
    let extent = if by_rows { m } else { n };
    if extent <= EDGE {
        return sgemm(a, b, beta, c);
    }
    let at = (extent / 2).next_multiple_of(EDGE).min(extent - 1);
    if by_rows {
        let ((a0, a1), (c0, c1)) = (a.split_at(Axis(0), at), c.split_at(Axis(0), at));
        rayon::join(|| matmul(a0, b, beta, c0), || matmul(a1, b, beta, c1));
    } else {
        let ((b0, b1), (c0, c1)) = (b.split_at(Axis(1), at), c.split_at(Axis(1), at));
        rayon::join(|| matmul(a, b0, beta, c0), || matmul(a, b1, beta, c1));
    }
}

/// Copies of the operands in f32.
struct Wide {
    x: Matrix<f32, Host>,
    gate: Matrix<f32, Host>,
    up: Matrix<f32, Host>,
}

impl Wide {
    fn new<T: Element>(x: MatRef<'_, T, Host>, w: &Weights<'_, T, Host>) -> Result<Self> {
        Ok(Self { x: widen(x)?, gate: widen(w.gate_weights())?, up: widen(w.up_weights())? })
    }

    /// Both projections as `[I, D]` views.
    fn projections(&self, orientation: Orientation) -> (ArrayView2<'_, f32>, ArrayView2<'_, f32>) {
        let (gate, up) = (self.gate.view().array(), self.up.view().array());
        match orientation {
            Orientation::InOut => (gate, up),
            Orientation::OutIn => (gate.reversed_axes(), up.reversed_axes()),
        }
    }

    /// Unrounded pre-activations `[B, 2D]`.
    fn pre_activations<T: Element>(&self, w: &Weights<'_, T, Host>) -> Result<Matrix<f32, Host>> {
        let mut pre = Matrix::host_zeros(self.x.rows(), 2 * w.hidden())?;
        let (gate, up) = self.projections(w.orientation());
        let (to_gate, to_up) = pre.view_mut().split_cols(w.hidden())?;
        matmul(self.x.view().array(), gate, 0.0, to_gate.array_mut());
        matmul(self.x.view().array(), up, 0.0, to_up.array_mut());
        if let Some(bias) = w.bias_row() {
            let bias = widen(bias)?;
            let mut view = pre.view_mut();
            for row in rows_of(view.shape()) {
                if let (Some(to), Some(bias)) = (view.row_mut(row), bias.view().row(0)) {
                    rows::add_assign(to, bias);
                }
            }
        }
        Ok(pre)
    }
}

fn narrow<T: Element>(from: MatRef<'_, f32, Host>, mut to: MatMut<'_, T, Host>, add: bool) {
    for row in rows_of(from.shape()) {
        let (Some(from), Some(to)) = (from.row(row), to.row_mut(row)) else { continue };
        for (to, from) in to.iter_mut().zip(from) {
            *to = T::from_f32(if add { to.to_f32() + from } else { *from });
        }
    }
}

/// Writes or adds an f32 result to a target of either type.
fn deliver<T: Element>(from: &Matrix<f32, Host>, target: Target<'_, T, Host>) {
    match target {
        Target::Same(Out { to, add }) => narrow(from.view(), to, add),
        Target::F32(Out { to, add }) => narrow(from.view(), to, add),
    }
}

/// A checked forward on this route.
pub(crate) struct ComposedForward<'a, T: Element>(pub(crate) Forward<'a, T, Host>);

impl<T: Element> Pass for ComposedForward<'_, T> {
    fn run<K: Kernel>(self, kernel: K, _: &mut Workspace, _: usize) -> Result<()> {
        let Forward { x, w, z, pre, .. } = self.0;
        let wide = Wide::new(x, &w)?;
        let unrounded = wide.pre_activations(&w)?;
        let mut h = Matrix::host_zeros(z.rows(), z.cols())?;
        rows::gate_values(kernel, w.function(), unrounded.view(), h.view_mut());
        narrow(h.view(), z, false);
        if let Some(pre) = pre {
            narrow(unrounded.view(), pre, false);
        }
        Ok(())
    }
}

/// dy . Wdown^T.
fn project_back<T: Element>(dy: MatRef<'_, T, Host>, down: Down<'_, T, Host>) -> Result<Matrix<f32, Host>> {
    let (dy, matrix) = (widen(dy)?, widen(down.matrix())?);
    let right = match down.orientation() {
        Orientation::InOut => matrix.view().array().reversed_axes(),
        Orientation::OutIn => matrix.view().array(),
    };
    let mut dz = Matrix::host_zeros(dy.rows(), down.hidden())?;
    matmul(dy.view().array(), right, 0.0, dz.view_mut().array_mut());
    Ok(dz)
}

/// A checked backward on this route.
pub(crate) struct ComposedBackward<'a, T: Element>(pub(crate) Backward<'a, T, Host>);

impl<T: Element> Pass for ComposedBackward<'_, T> {
    fn run<K: Kernel>(self, kernel: K, _: &mut Workspace, _: usize) -> Result<()> {
        let Backward { x, w, upstream, pre, dx, dwf, dbias, .. } = self.0;
        let (batch, hidden) = upstream.shape();
        let wide = Wide::new(x, &w)?;
        let dz = match upstream {
            Upstream::Dz(dz) => widen(dz)?,
            Upstream::Projected { dy, down, .. } => project_back(dy, down)?,
        };
        let mut dab = match pre {
            Some(pre) => widen(pre.view())?,
            None => wide.pre_activations(&w)?,
        };
        let mut sums = dbias.as_ref().map(|dbias| zeros(dbias.shape())).transpose()?;
        // Everything that is allocated is there before the first gradient is written: a call that is refused writes nothing.
        let mut room_of_dx = dx.as_ref().map(|dx| zeros(dx.to.shape())).transpose()?;
        let mut room_of_half = dwf.as_ref().map(|dwf| zeros(dwf.gate.shape())).transpose()?;
        let mut row = sums.as_mut().map(Matrix::view_mut);
        let row = row.as_mut().and_then(|row| row.row_mut(0));
        rows::gate_gradients(kernel, w.function(), dz.view(), dab.view_mut(), row);
        let dgate = dab.view().sub(0..batch, 0..hidden)?.array();
        let dup = dab.view().sub(0..batch, hidden..2 * hidden)?.array();
        if let (Some(dx), Some(product)) = (dx, &mut room_of_dx) {
            let (gate, up) = wide.projections(w.orientation());
            matmul(dgate, gate.reversed_axes(), 0.0, product.view_mut().array_mut());
            matmul(dup, up.reversed_axes(), 1.0, product.view_mut().array_mut());
            narrow(product.view(), dx.to, dx.add);
        }
        if let (Some(dwf), Some(product)) = (dwf, &mut room_of_half) {
            let x = wide.x.view().array();
            for (half, target) in [(dgate, dwf.gate), (dup, dwf.up)] {
                let (a, b) = match w.orientation() {
                    Orientation::InOut => (x.reversed_axes(), half),
                    Orientation::OutIn => (half.reversed_axes(), x),
                };
                matmul(a, b, 0.0, product.view_mut().array_mut());
                deliver(product, target);
            }
        }
        if let (Some(dbias), Some(sums)) = (dbias, &sums) {
            deliver(sums, dbias);
        }
        Ok(())
    }
}
