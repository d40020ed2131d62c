//! matrixmultiply's sgemm behind a checked signature.

use ndarray::{ArrayView2, ArrayViewMut2};

/// `c = a . b + beta * c`, on this thread.
pub(crate) fn sgemm(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    beta: f32,
    mut c: ArrayViewMut2<'_, f32>,
) {
    let ((m, k), n) = (a.dim(), b.ncols());
    assert!(
        b.nrows() == k && c.dim() == (m, n),
        "shapes of a product: {:?} {:?} {:?}",
        a.dim(),
        b.dim(),
        c.dim()
    );
    let stride = |s: &[isize]| (s[0], s[1]);
    let ((rsa, csa), (rsb, csb), (rsc, csc)) =
        (stride(a.strides()), stride(b.strides()), stride(c.strides()));
    // SAFETY: the views vouch for every element at their strides, the assertion makes the shapes fit each other, and
    // `c` is borrowed mutably, so it overlaps neither input.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            1.0,
            a.as_ptr(),
            rsa,
            csa,
            b.as_ptr(),
            rsb,
            csb,
            beta,
            c.as_mut_ptr(),
            rsc,
            csc,
        );
    }
}
