//! Host memory: slices and ndarray views enter and leave without a copy. The only file of this crate with `unsafe`.

use std::fmt;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Ix2, ShapeBuilder, StrideShape};

use crate::element::Scalar;
use crate::error::{Error, Result};
use crate::layout::{Layout, elements};
use crate::memory::{DeviceId, MatMut, MatRef, Matrix, Memory, Place, StreamId};

/// The host's address space. Blocks are `Vec`s.
#[derive(Debug)]
pub enum Host {}

/// A pointer into host memory. Safe code can only carry it around.
pub struct HostPtr<T>(*mut T);

impl<T> HostPtr<T> {
    /// The bare pointer.
    #[inline(always)]
    pub fn get(self) -> *mut T {
        self.0
    }
}

impl<T> Clone for HostPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for HostPtr<T> {}

impl<T> fmt::Debug for HostPtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:p}", self.0)
    }
}

// SAFETY: a HostPtr is only dereferenced through a MatRef or MatMut (or by a backend that was handed one), whose
// lifetimes keep what it points to alive and borrowed; `T: Send + Sync` lets another thread read or write it.
unsafe impl<T: Send + Sync> Send for HostPtr<T> {}
// SAFETY: as above; a shared HostPtr gives no more than a copied one.
unsafe impl<T: Send + Sync> Sync for HostPtr<T> {}

impl Memory for Host {
    type Owned<T: Scalar> = Vec<T>;
    type Ptr<T: Scalar> = HostPtr<T>;

    fn len<T: Scalar>(owned: &Vec<T>) -> usize {
        owned.len()
    }

    fn ptr<T: Scalar>(owned: &Vec<T>) -> HostPtr<T> {
        HostPtr(owned.as_ptr().cast_mut())
    }

    fn ptr_mut<T: Scalar>(owned: &mut Vec<T>) -> HostPtr<T> {
        HostPtr(owned.as_mut_ptr())
    }

    fn offset<T: Scalar>(ptr: HostPtr<T>, elements: usize) -> HostPtr<T> {
        HostPtr(ptr.0.wrapping_add(elements))
    }

    fn place<T: Scalar>(ptr: HostPtr<T>) -> Place {
        Place { device: DeviceId::HOST, stream: StreamId::NONE, address: ptr.0.addr() as u64 }
    }
}

/// The layout of an ndarray view, if its columns are adjacent and its rows run forwards.
fn layout_of((rows, cols): (usize, usize), strides: &[isize]) -> Result<Layout> {
    let operand = "ndarray view";
    if rows == 0 || cols == 0 {
        return Layout::dense(rows, cols);
    }
    if cols > 1 && strides[1] != 1 {
        return Err(Error::ColumnMajor { operand, col_stride: strides[1] });
    }
    if rows == 1 {
        return Layout::dense(rows, cols);
    }
    match usize::try_from(strides[0]) {
        Ok(stride) => Layout::strided(rows, cols, stride),
        Err(_) => Err(Error::NegativeStride { operand, stride: strides[0] }),
    }
}

/// A layout in ndarray's words. An array without elements passes ndarray's aliasing check when its empty axis has the
/// smallest stride.
fn stride_shape(layout: Layout) -> StrideShape<Ix2> {
    let (rows, cols) = layout.shape();
    let strides = if layout.span() == 0 { (rows.min(1), cols.min(1)) } else { (layout.row_stride(), 1) };
    (rows, cols).strides(strides)
}

impl<'a, T: Scalar> TryFrom<ArrayView2<'a, T>> for MatRef<'a, T, Host> {
    type Error = Error;

    /// # Errors
    /// [`Error::ColumnMajor`], [`Error::NegativeStride`], [`Error::Stride`] (a broadcast view).
    fn try_from(array: ArrayView2<'a, T>) -> Result<Self> {
        let layout = layout_of(array.dim(), array.strides())?;
        // SAFETY: the view borrows every element of its shape and strides for 'a, and `layout` describes just those
        // (layout_of refused every other stride).
        Ok(unsafe { Self::from_raw(HostPtr(array.as_ptr().cast_mut()), layout) })
    }
}

impl<'a, T: Scalar> TryFrom<ArrayViewMut2<'a, T>> for MatMut<'a, T, Host> {
    type Error = Error;

    /// # Errors
    /// [`Error::ColumnMajor`], [`Error::NegativeStride`].
    fn try_from(mut array: ArrayViewMut2<'a, T>) -> Result<Self> {
        let layout = layout_of(array.dim(), array.strides())?;
        // SAFETY: the view borrows every element of its shape and strides mutably for 'a, and `layout` describes just
        // those (layout_of refused every other stride).
        Ok(unsafe { Self::from_raw(HostPtr(array.as_mut_ptr()), layout) })
    }
}

impl<'a, T: Scalar> TryFrom<&'a Array2<T>> for MatRef<'a, T, Host> {
    type Error = Error;

    fn try_from(array: &'a Array2<T>) -> Result<Self> {
        array.view().try_into()
    }
}

impl<'a, T: Scalar> TryFrom<&'a mut Array2<T>> for MatMut<'a, T, Host> {
    type Error = Error;

    fn try_from(array: &'a mut Array2<T>) -> Result<Self> {
        array.view_mut().try_into()
    }
}

impl<'a, T: Scalar> MatRef<'a, T, Host> {
    /// A view of a slice.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] when the slice is too short for the layout.
    ///
    /// ```
    /// use swiglu_core::{Layout, MatRef};
    /// let data = [1.0f32; 12];
    /// let x = MatRef::from_slice(&data, Layout::strided(3, 2, 5)?)?;
    /// assert_eq!(x.shape(), (3, 2));
    /// assert!(MatRef::from_slice(&data, Layout::strided(3, 3, 5)?).is_err());
    /// # Ok::<(), swiglu_core::Error>(())
    /// ```
    pub fn from_slice(data: &'a [T], layout: Layout) -> Result<Self> {
        let layout = layout.within(data.len())?;
        // SAFETY: the slice borrows its elements for 'a, and `within` keeps the layout inside of it.
        Ok(unsafe { Self::from_raw(HostPtr(data.as_ptr().cast_mut()), layout) })
    }

    /// The view as an ndarray.
    pub fn array(self) -> ArrayView2<'a, T> {
        // SAFETY: whoever made this view vouched for its elements during 'a; Layout keeps the span within isize.
        unsafe { ArrayView2::from_shape_ptr(stride_shape(self.layout()), self.ptr().get()) }
    }

    /// One row as a slice; `None` past the last.
    #[inline]
    pub fn row(self, row: usize) -> Option<&'a [T]> {
        if row >= self.rows() {
            return None;
        }
        // SAFETY: `row` is in range (above), so its `cols` adjacent elements lie inside the layout, which is readable
        // for 'a.
        Some(unsafe {
            std::slice::from_raw_parts(self.ptr().get().add(row * self.row_stride()), self.cols())
        })
    }
}

impl<'a, T: Scalar> MatMut<'a, T, Host> {
    /// A view of a slice.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] when the slice is too short for the layout.
    pub fn from_slice(data: &'a mut [T], layout: Layout) -> Result<Self> {
        let layout = layout.within(data.len())?;
        // SAFETY: the slice borrows its elements mutably for 'a, and `within` keeps the layout inside of it.
        Ok(unsafe { Self::from_raw(HostPtr(data.as_mut_ptr()), layout) })
    }

    /// The view as an ndarray.
    pub fn array_mut(self) -> ArrayViewMut2<'a, T> {
        // SAFETY: whoever made this view vouched for exclusive access to its elements during 'a, it is consumed here,
        // and Layout keeps rows apart and the span within isize.
        unsafe { ArrayViewMut2::from_shape_ptr(stride_shape(self.layout()), self.ptr().get()) }
    }

    /// One row as a slice; `None` past the last.
    #[inline]
    pub fn row_mut(&mut self, row: usize) -> Option<&mut [T]> {
        if row >= self.rows() {
            return None;
        }
        // SAFETY: `row` is in range (above), so its `cols` adjacent elements lie inside the layout, which is ours
        // alone for as long as `self` is borrowed.
        Some(unsafe {
            std::slice::from_raw_parts_mut(self.ptr().get().add(row * self.row_stride()), self.cols())
        })
    }
}

impl<T: Scalar> Matrix<T, Host> {
    /// A zeroed matrix on the host.
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::OutOfMemory`] instead of an abort.
    pub fn host_zeros(rows: usize, cols: usize) -> Result<Self> {
        let len = elements("matrix", rows, cols)?;
        let bytes = elements("matrix bytes", len, size_of::<T>())?;
        let mut owned = Vec::new();
        owned.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes })?;
        owned.resize(len, T::default());
        Self::from_owned(owned, rows, cols)
    }

    /// The matrix as an ndarray; nothing is copied.
    pub fn into_array(self) -> Array2<T> {
        let shape = self.shape();
        let mut owned = self.into_owned();
        owned.truncate(shape.0 * shape.1);
        Array2::from_shape_vec(shape, owned).expect("a matrix owns at least rows * cols elements")
    }
}

impl<T: Scalar> From<Matrix<T, Host>> for Array2<T> {
    fn from(matrix: Matrix<T, Host>) -> Self {
        matrix.into_array()
    }
}

impl<T: Scalar> TryFrom<Array2<T>> for Matrix<T, Host> {
    type Error = Error;

    /// Takes the array's own block; copies only when it is not in standard layout.
    fn try_from(array: Array2<T>) -> Result<Self> {
        let (rows, cols) = array.dim();
        let array = if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() };
        let (owned, offset) = array.into_raw_vec_and_offset();
        let owned = if offset.unwrap_or(0) == 0 { owned } else { owned[offset.unwrap_or(0)..].to_vec() };
        Self::from_owned(owned, rows, cols)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;

    fn count(rows: usize, cols: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, cols), |(i, j)| (i * cols + j) as f32)
    }

    #[test]
    fn strided_views_enter_and_leave_without_a_copy() {
        let mut big = count(9, 20);
        let expected = big.slice(s![1..5, 3..9]).to_owned();
        let view = MatRef::try_from(big.slice(s![1..5, 3..9])).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(view.array(), expected);
        assert_eq!(view.row(2), expected.row(2).to_slice());
        assert_eq!(view.row(4), None);
        let mut out = MatMut::try_from(big.slice_mut(s![..;2, 1..3])).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(out.shape(), (5, 2));
        out.row_mut(1).unwrap_or_else(|| panic!("row 1"))[1] = -1.0;
        assert!(out.row_mut(5).is_none(), "past the last row");
        assert_eq!(big[[2, 2]], -1.0);
    }

    #[test]
    fn strides_that_cannot_be_used_are_named() {
        let a = count(4, 6);
        assert!(matches!(MatRef::try_from(a.t()), Err(Error::ColumnMajor { col_stride: 6, .. })));
        assert!(matches!(
            MatRef::try_from(a.slice(s![.., ..;2])),
            Err(Error::ColumnMajor { col_stride: 2, .. })
        ));
        assert!(matches!(
            MatRef::try_from(a.slice(s![..;-1, ..])),
            Err(Error::NegativeStride { stride: -6, .. })
        ));
        let row = a.slice(s![0..1, ..]);
        let broadcast = row.broadcast((3, 6)).unwrap_or_else(|| panic!("broadcast"));
        assert!(matches!(MatRef::try_from(broadcast), Err(Error::Stride { stride: 0, cols: 6, .. })));
        let column_major = Error::ColumnMajor { operand: "wf", col_stride: 6 }.to_string();
        assert!(column_major.contains("Orientation::OutIn"), "{column_major}");
    }

    #[test]
    fn single_rows_columns_and_empty_arrays_are_welcome() {
        let a = count(4, 6);
        for part in
            [a.slice(s![1..2, ..]), a.slice(s![.., 2..3]), a.slice(s![0..0, ..]), a.slice(s![.., 6..6])]
        {
            let view = MatRef::try_from(part).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(view.array(), part);
        }
        for (rows, cols, stride) in [(0, 0, 0), (2, 0, 0), (2, 0, 7), (0, 3, 3), (3, 1, 1)] {
            let layout = Layout::strided(rows, cols, stride).unwrap_or_else(|e| panic!("{e}"));
            let mut data = [0.0f32; 8];
            let view = MatMut::from_slice(&mut data, layout).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(view.view().array().dim(), (rows, cols));
            assert_eq!(view.array_mut().dim(), (rows, cols));
        }
    }

    #[test]
    fn arrays_become_matrices_and_come_back() {
        for array in
            [count(3, 5), count(5, 3).reversed_axes(), count(0, 3), count(6, 4).slice_move(s![2..5, 1..3])]
        {
            let matrix = Matrix::try_from(array.clone()).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(Array2::from(matrix), array);
        }
    }

    #[test]
    fn an_impossible_allocation_is_an_error() {
        let e = Matrix::<f32, Host>::host_zeros(1 << 40, 1 << 18).err();
        assert!(matches!(e, Some(Error::OutOfMemory { .. })), "{e:?}");
        let e = Matrix::<f32, Host>::host_zeros(1 << 60, 2).err();
        assert!(matches!(e, Some(Error::Overflow { .. })), "{e:?}");
    }
}
