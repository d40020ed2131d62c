//! The op as anybody would write it with another crate's matrix products: on all threads, and elementwise passes by ndarray.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};

/// c = a . b of a peer.
pub(crate) type Product = fn(ArrayView2<'_, f32>, ArrayView2<'_, f32>, &mut Array2<f32>);

/// By matrixmultiply.
pub(crate) fn by_ndarray(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, c: &mut Array2<f32>) {
    general_mat_mul(1.0, &a, &b, 0.0, c);
}

/// By the gemm crate, which candle and faer multiply with.
pub(crate) fn by_gemm(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, c: &mut Array2<f32>) {
    let (m, n, k) = (a.nrows(), b.ncols(), a.ncols());
    assert!(b.nrows() == k && c.dim() == (m, n), "the shapes of a product");
    let strides = |strides: &[isize]| (strides[1], strides[0]);
    let ((a_cs, a_rs), (b_cs, b_rs)) = (strides(a.strides()), strides(b.strides()));
    let (c_cs, c_rs) = strides(c.strides());
    // SAFETY: each pointer is to a matrix of these strides, whose shapes were compared above; c is borrowed for writing, so
    // it overlaps neither a nor b, and is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            c_cs,
            c_rs,
            false,
            a.as_ptr(),
            a_cs,
            a_rs,
            b.as_ptr(),
            b_cs,
            b_rs,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}

fn silu(g: f32) -> f32 {
    g / (1.0 + (-g).exp())
}

fn silu_slope(g: f32) -> f32 {
    let s = 1.0 / (1.0 + (-g).exp());
    s * (1.0 + g * (1.0 - s))
}

/// z of pre-activations.
pub(crate) fn gate(pre: &Array2<f32>, z: &mut Array2<f32>) {
    let hidden = z.ncols();
    ndarray::Zip::from(z)
        .and(pre.slice(s![.., ..hidden]))
        .and(pre.slice(s![.., hidden..]))
        .for_each(|z, g, u| *z = silu(*g) * u);
}

/// Pre-activations become their gradient.
pub(crate) fn gate_backward(dz: &Array2<f32>, pre: &mut Array2<f32>) {
    let (mut gates, mut ups) = pre.view_mut().split_at(ndarray::Axis(1), dz.ncols());
    ndarray::Zip::from(&mut gates).and(&mut ups).and(dz).for_each(|g, u, dz| {
        let (dg, du) = (dz * *u * silu_slope(*g), dz * silu(*g));
        (*g, *u) = (dg, du);
    });
}

/// The forward by ndarray, and what it leaves behind.
pub(crate) fn ndarray_forward(x: &Array2<f32>, wf: &Array2<f32>, z: &mut Array2<f32>) -> Array2<f32> {
    let pre = x.dot(wf);
    gate(&pre, z);
    pre
}
