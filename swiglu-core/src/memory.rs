//! Address spaces, and matrices in them.
//!
//! Core owns geometry and lifetimes; a backend owns the memory. A [`MatRef`] is a pointer of some [`Memory`] with a
//! [`Layout`] that was checked when the view was made.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use crate::element::Scalar;
use crate::error::Result;
use crate::layout::Layout;

/// A device of an address space.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId(u32);

impl DeviceId {
    /// The host's own memory.
    pub const HOST: Self = Self(u32::MAX);

    /// The device with this ordinal.
    pub const fn new(ordinal: u32) -> Self {
        Self(ordinal)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::HOST { f.write_str("the host") } else { write!(f, "device {}", self.0) }
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A queue of a device within which work is ordered.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId(u64);

impl StreamId {
    /// Memory that is not bound to a stream.
    pub const NONE: Self = Self(0);

    /// A stream by its handle.
    pub const fn new(handle: u64) -> Self {
        Self(handle)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE { f.write_str("no stream") } else { write!(f, "stream {:#x}", self.0) }
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a pointer points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The device that holds the memory.
    pub device: DeviceId,
    /// The stream that the memory belongs to.
    pub stream: StreamId,
    /// The address on that device, in bytes.
    pub address: u64,
}

/// An address space: what owns memory in it, and a bare pointer into it.
///
/// Lifetimes are core's business, so pointers are plain `Copy` values and views stay covariant.
pub trait Memory: Sized + fmt::Debug + 'static {
    /// Owns a block of `T`.
    type Owned<T: Scalar>;
    /// Points to a `T`.
    type Ptr<T: Scalar>: Copy;

    /// Elements in a block.
    fn len<T: Scalar>(owned: &Self::Owned<T>) -> usize;
    /// The start of a block, for reading.
    fn ptr<T: Scalar>(owned: &Self::Owned<T>) -> Self::Ptr<T>;
    /// The start of a block, for writing.
    fn ptr_mut<T: Scalar>(owned: &mut Self::Owned<T>) -> Self::Ptr<T>;
    /// The pointer `elements` further on in the same block.
    fn offset<T: Scalar>(ptr: Self::Ptr<T>, elements: usize) -> Self::Ptr<T>;
    /// Where a pointer points.
    fn place<T: Scalar>(ptr: Self::Ptr<T>) -> Place;
}

/// A matrix that owns its memory. Dense, row-major.
pub struct Matrix<T: Scalar, M: Memory> {
    owned: M::Owned<T>,
    layout: Layout,
}

/// A matrix that somebody else owns, for reading.
pub struct MatRef<'a, T: Scalar, M: Memory> {
    ptr: M::Ptr<T>,
    layout: Layout,
    life: PhantomData<&'a T>,
}

/// A matrix that somebody else owns, for writing.
pub struct MatMut<'a, T: Scalar, M: Memory> {
    ptr: M::Ptr<T>,
    layout: Layout,
    life: PhantomData<&'a mut T>,
}

// By hand: a derive would ask for `M: Copy`.
impl<T: Scalar, M: Memory> Clone for MatRef<'_, T, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Scalar, M: Memory> Copy for MatRef<'_, T, M> {}

impl<T: Scalar, M: Memory> Matrix<T, M> {
    /// Takes over a block that holds at least `rows * cols` elements.
    ///
    /// # Errors
    /// [`Error::Overflow`](crate::Error::Overflow), [`Error::OutOfBounds`](crate::Error::OutOfBounds).
    pub fn from_owned(owned: M::Owned<T>, rows: usize, cols: usize) -> Result<Self> {
        let layout = Layout::dense(rows, cols)?.within(M::len(&owned))?;
        Ok(Self { owned, layout })
    }

    /// Gives the block back, for a foreign owner (candle, cudarc). Its length may exceed `rows * cols`.
    pub fn into_owned(self) -> M::Owned<T> {
        self.owned
    }

    /// The whole matrix, for reading.
    pub fn view(&self) -> MatRef<'_, T, M> {
        MatRef { ptr: M::ptr(&self.owned), layout: self.layout, life: PhantomData }
    }

    /// The whole matrix, for writing.
    pub fn view_mut(&mut self) -> MatMut<'_, T, M> {
        MatMut { ptr: M::ptr_mut(&mut self.owned), layout: self.layout, life: PhantomData }
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        self.layout.shape()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.layout.rows()
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.layout.cols()
    }
}

macro_rules! geometry {
    () => {
        /// Rows and columns.
        pub fn shape(&self) -> (usize, usize) {
            self.layout.shape()
        }

        /// Number of rows.
        pub fn rows(&self) -> usize {
            self.layout.rows()
        }

        /// Number of columns.
        pub fn cols(&self) -> usize {
            self.layout.cols()
        }

        /// Elements from the start of one row to the start of the next.
        pub fn row_stride(&self) -> usize {
            self.layout.row_stride()
        }

        /// Shape and stride.
        pub fn layout(&self) -> Layout {
            self.layout
        }

        /// The first element. For backends.
        pub fn ptr(&self) -> M::Ptr<T> {
            self.ptr
        }
    };
}

impl<'a, T: Scalar, M: Memory> MatRef<'a, T, M> {
    /// A view of foreign memory.
    ///
    /// # Safety
    /// - Every element that `layout` addresses from `ptr` is initialised and readable for `'a`.
    /// - Nobody writes any of them during `'a`.
    #[allow(unsafe_code, reason = "the way in for foreign memory; what makes it sound is the caller's")]
    pub unsafe fn from_raw(ptr: M::Ptr<T>, layout: Layout) -> Self {
        Self { ptr, layout, life: PhantomData }
    }

    /// A view into a block that somebody owns, from element `offset` on.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`](crate::Error::OutOfBounds).
    pub fn of(owned: &'a M::Owned<T>, offset: usize, layout: Layout) -> Result<Self> {
        let layout = layout.within(M::len(owned).saturating_sub(offset))?;
        Ok(Self { ptr: M::offset(M::ptr(owned), offset), layout, life: PhantomData })
    }

    geometry!();

    /// A part of the matrix.
    ///
    /// # Errors
    /// [`Error::Part`](crate::Error::Part) when it does not lie inside.
    pub fn sub(self, rows: Range<usize>, cols: Range<usize>) -> Result<Self> {
        let (offset, layout) = self.layout.part(rows, cols)?;
        Ok(Self { ptr: M::offset(self.ptr, offset), layout, life: PhantomData })
    }

    /// Every second row from row `first` (0 or 1) of a matrix with an even number of rows.
    pub(crate) fn alternate_rows(self, first: usize) -> Result<Self> {
        let (offset, layout) = self.layout.alternate_rows(first)?;
        Ok(Self { ptr: M::offset(self.ptr, offset), layout, life: PhantomData })
    }
}

impl<'a, T: Scalar, M: Memory> MatMut<'a, T, M> {
    /// A view of foreign memory.
    ///
    /// # Safety
    /// - Every element that `layout` addresses from `ptr` is initialised and writable for `'a`.
    /// - Nobody else reads or writes any of them during `'a`.
    #[allow(unsafe_code, reason = "the way in for foreign memory; what makes it sound is the caller's")]
    pub unsafe fn from_raw(ptr: M::Ptr<T>, layout: Layout) -> Self {
        Self { ptr, layout, life: PhantomData }
    }

    /// A view into a block that somebody owns, from element `offset` on.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`](crate::Error::OutOfBounds).
    pub fn of(owned: &'a mut M::Owned<T>, offset: usize, layout: Layout) -> Result<Self> {
        let layout = layout.within(M::len(owned).saturating_sub(offset))?;
        Ok(Self { ptr: M::offset(M::ptr_mut(owned), offset), layout, life: PhantomData })
    }

    geometry!();

    /// The same matrix, for reading.
    pub fn view(&self) -> MatRef<'_, T, M> {
        MatRef { ptr: self.ptr, layout: self.layout, life: PhantomData }
    }

    /// The same matrix, for a shorter while.
    pub fn view_mut(&mut self) -> MatMut<'_, T, M> {
        MatMut { ptr: self.ptr, layout: self.layout, life: PhantomData }
    }

    /// A part of the matrix.
    ///
    /// # Errors
    /// [`Error::Part`](crate::Error::Part) when it does not lie inside.
    pub fn sub(self, rows: Range<usize>, cols: Range<usize>) -> Result<Self> {
        let (offset, layout) = self.layout.part(rows, cols)?;
        Ok(Self { ptr: M::offset(self.ptr, offset), layout, life: PhantomData })
    }

    /// The columns before `at`, and those from `at` on.
    ///
    /// # Errors
    /// [`Error::Part`](crate::Error::Part) when `at` is past the last column.
    pub fn split_cols(self, at: usize) -> Result<(Self, Self)> {
        let (rows, cols) = self.shape();
        let (_, left) = self.layout.part(0..rows, 0..at)?;
        let (offset, right) = self.layout.part(0..rows, at..cols)?;
        Ok(self.pair(left, offset, right))
    }

    /// The rows before `at`, and those from `at` on.
    ///
    /// # Errors
    /// [`Error::Part`](crate::Error::Part) when `at` is past the last row.
    pub fn split_rows(self, at: usize) -> Result<(Self, Self)> {
        let (rows, cols) = self.shape();
        let (_, upper) = self.layout.part(0..at, 0..cols)?;
        let (offset, lower) = self.layout.part(at..rows, 0..cols)?;
        Ok(self.pair(upper, offset, lower))
    }

    /// The even rows, and the odd ones, of a matrix with an even number of rows.
    pub(crate) fn split_alternate_rows(self) -> Result<(Self, Self)> {
        let (_, even) = self.layout.alternate_rows(0)?;
        let (offset, odd) = self.layout.alternate_rows(1)?;
        Ok(self.pair(even, offset, odd))
    }

    /// Two views of one matrix; callers pass layouts that share no element.
    fn pair(self, first: Layout, offset: usize, second: Layout) -> (Self, Self) {
        let (ptr, life) = (self.ptr, PhantomData);
        (Self { ptr, layout: first, life }, Self { ptr: M::offset(ptr, offset), layout: second, life })
    }
}

impl<'a, T: Scalar, M: Memory> From<&'a Matrix<T, M>> for MatRef<'a, T, M> {
    fn from(matrix: &'a Matrix<T, M>) -> Self {
        matrix.view()
    }
}

impl<'a, T: Scalar, M: Memory> From<&'a mut Matrix<T, M>> for MatMut<'a, T, M> {
    fn from(matrix: &'a mut Matrix<T, M>) -> Self {
        matrix.view_mut()
    }
}

fn describe(f: &mut fmt::Formatter<'_>, name: &str, layout: &Layout) -> fmt::Result {
    f.debug_struct(name).field("layout", layout).finish_non_exhaustive()
}

impl<T: Scalar, M: Memory> fmt::Debug for Matrix<T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, "Matrix", &self.layout)
    }
}

impl<T: Scalar, M: Memory> fmt::Debug for MatRef<'_, T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, "MatRef", &self.layout)
    }
}

impl<T: Scalar, M: Memory> fmt::Debug for MatMut<'_, T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(f, "MatMut", &self.layout)
    }
}
