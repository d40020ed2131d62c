//! Geometry of a matrix in a block of memory. Owned by core, so that no backend can get it wrong.

use std::ops::Range;

use crate::error::{Error, Result};

/// Elements of the widest type, f32 or u32, that can be addressed.
const MOST_ELEMENTS: usize = isize::MAX as usize / size_of::<f32>();

/// Shape and row stride of a row-major matrix whose columns are adjacent.
///
/// Invariants, established by every constructor: `row_stride >= cols` when there is more than one row (so rows never
/// overlap), and the byte behind the last element, of whichever type, has an index that fits in `isize`. A matrix without
/// rows or columns is held to that as if it had one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl Layout {
    /// Rows follow each other without a gap.
    ///
    /// # Errors
    /// [`Error::Overflow`] when `rows * cols` elements cannot be addressed.
    pub fn dense(rows: usize, cols: usize) -> Result<Self> {
        Self::strided(rows, cols, cols)
    }

    /// Rows start `row_stride` elements apart.
    ///
    /// # Errors
    /// [`Error::Stride`] when rows would overlap, [`Error::Overflow`] when the matrix cannot be addressed.
    ///
    /// ```
    /// use swiglu_core::Layout;
    /// let layout = Layout::strided(3, 4, 10)?;
    /// assert_eq!(layout.span(), 24);
    /// assert!(Layout::strided(3, 4, 2).is_err());
    /// # Ok::<(), swiglu_core::Error>(())
    /// ```
    pub fn strided(rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        if rows > 1 && row_stride < cols {
            return Err(Error::Stride { operand: "matrix", stride: row_stride, cols });
        }
        let row_stride = if rows > 1 { row_stride } else { cols.max(row_stride) };
        let end = elements("matrix", rows.max(1), row_stride.max(1))?.checked_add(cols);
        match end {
            Some(end) if end <= MOST_ELEMENTS => Ok(Self { rows, cols, row_stride }),
            _ => Err(Error::Overflow { what: "matrix", a: rows, b: row_stride }),
        }
    }

    /// Checks that the layout stays inside of a block of `len` elements.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn within(self, len: usize) -> Result<Self> {
        match self.span() {
            end if end <= len => Ok(self),
            end => Err(Error::OutOfBounds { operand: "matrix", end, len }),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from the start of one row to the start of the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Elements from the first to one past the last; 0 for an empty matrix.
    pub fn span(&self) -> usize {
        if self.rows == 0 || self.cols == 0 { 0 } else { (self.rows - 1) * self.row_stride + self.cols }
    }

    /// Offset and layout of a part.
    pub(crate) fn part(self, rows: Range<usize>, cols: Range<usize>) -> Result<(usize, Self)> {
        let inside = rows.start <= rows.end
            && rows.end <= self.rows
            && cols.start <= cols.end
            && cols.end <= self.cols;
        if !inside {
            return Err(Error::Part {
                rows: (rows.start, rows.end),
                cols: (cols.start, cols.end),
                shape: self.shape(),
            });
        }
        let part = Self { rows: rows.len(), cols: cols.len(), row_stride: self.row_stride };
        // An empty part of the end must not point past the block.
        let offset = if part.span() == 0 { 0 } else { rows.start * self.row_stride + cols.start };
        Ok((offset, part))
    }

    /// Offset and layout of every second row from row `first` (0 or 1); the row count must be even.
    pub(crate) fn alternate_rows(self, first: usize) -> Result<(usize, Self)> {
        if !self.rows.is_multiple_of(2) {
            return Err(Error::OddWidth { operand: "wf", width: self.rows });
        }
        let row_stride = elements("wf", self.row_stride, 2)?;
        let half = Self { rows: self.rows / 2, cols: self.cols, row_stride };
        let offset = if half.span() == 0 { 0 } else { first * self.row_stride };
        Ok((offset, half))
    }
}

/// `a * b` in 64 bits, and as a `usize` that also fits in `isize`.
pub(crate) fn elements(what: &'static str, a: usize, b: usize) -> Result<usize> {
    (a as u64)
        .checked_mul(b as u64)
        .filter(|&product| product <= isize::MAX as u64)
        .map(|product| product as usize)
        .ok_or(Error::Overflow { what, a, b })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_must_not_overlap_but_one_row_has_no_stride() {
        assert!(matches!(Layout::strided(2, 5, 4), Err(Error::Stride { stride: 4, cols: 5, .. })));
        assert_eq!(Layout::strided(1, 5, 0).map(|l| l.span()).ok(), Some(5));
        assert_eq!(Layout::strided(0, 5, 0).map(|l| l.span()).ok(), Some(0));
    }

    #[test]
    fn overflow_is_an_error() {
        let most = MOST_ELEMENTS;
        for (rows, cols) in [(0, most + 1), (most + 1, 0), (1, most + 1), (0, isize::MAX as usize)] {
            assert!(matches!(Layout::dense(rows, cols), Err(Error::Overflow { .. })), "{rows} x {cols}");
        }
        assert!(Layout::dense(0, most / 2).is_ok() && Layout::dense(most, 0).is_ok());
        assert!(matches!(Layout::dense(usize::MAX, 2), Err(Error::Overflow { .. })));
        assert!(matches!(Layout::dense(isize::MAX as usize, 2), Err(Error::Overflow { .. })));
        assert!(matches!(Layout::strided(2, 1, usize::MAX), Err(Error::Overflow { .. })));
    }

    #[test]
    fn parts_stay_inside() {
        let layout = Layout::strided(4, 6, 10).unwrap_or_else(|e| panic!("{e}"));
        let (offset, part) = layout.part(1..3, 2..6).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((offset, part.span()), (12, 14));
        assert!(matches!(layout.part(0..5, 0..1), Err(Error::Part { .. })));
        assert!(matches!(layout.part(0..1, 0..7), Err(Error::Part { .. })));
        #[expect(clippy::reversed_empty_ranges, reason = "a reversed range must be refused")]
        let reversed = layout.part(3..1, 0..1);
        assert!(matches!(reversed, Err(Error::Part { .. })));
        assert_eq!(layout.part(4..4, 6..6).map(|(offset, _)| offset).ok(), Some(0));
    }
}
