//! Parts of arrays. ndarray's `s!` expands to an `allow(unsafe_code)`, which this crate forbids.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, Axis, Slice, concatenate};

/// A copy of some rows and columns.
pub(crate) fn part<T: Clone>(a: &Array2<T>, rows: Range<usize>, cols: Range<usize>) -> Array2<T> {
    a.slice_axis(Axis(0), Slice::from(rows)).slice_axis(Axis(1), Slice::from(cols)).to_owned()
}

/// Some rows and columns, for writing.
pub(crate) fn part_mut<T>(a: &mut Array2<T>, rows: Range<usize>, cols: Range<usize>) -> ArrayViewMut2<'_, T> {
    let mut part = a.view_mut();
    part.slice_axis_inplace(Axis(0), Slice::from(rows));
    part.slice_axis_inplace(Axis(1), Slice::from(cols));
    part
}

/// Copies of the left and the right half of the columns.
pub(crate) fn column_halves<T: Clone>(a: &Array2<T>) -> (Array2<T>, Array2<T>) {
    let (rows, cols) = a.dim();
    (part(a, 0..rows, 0..cols / 2), part(a, 0..rows, cols / 2..cols))
}

/// Copies of the upper and the lower half of the rows.
pub(crate) fn row_halves<T: Clone>(a: &Array2<T>) -> (Array2<T>, Array2<T>) {
    let (rows, cols) = a.dim();
    (part(a, 0..rows / 2, 0..cols), part(a, rows / 2..rows, 0..cols))
}

/// Two matrices side by side.
///
/// # Panics
/// When their row counts differ.
pub(crate) fn beside<T: Copy>(left: &Array2<T>, right: &Array2<T>) -> Array2<T> {
    let joined = concatenate(Axis(1), &[left.view(), right.view()]).expect("one row count");
    joined.as_standard_layout().into_owned()
}

/// Two matrices, one above the other.
///
/// # Panics
/// When their column counts differ.
pub(crate) fn above<T: Copy>(upper: &Array2<T>, lower: &Array2<T>) -> Array2<T> {
    let joined = concatenate(Axis(0), &[upper.view(), lower.view()]).expect("one column count");
    joined.as_standard_layout().into_owned()
}

/// The transpose, in standard layout.
pub(crate) fn turned<T: Copy>(a: &Array2<T>) -> Array2<T> {
    a.t().as_standard_layout().into_owned()
}
