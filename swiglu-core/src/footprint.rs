//! Which bytes a call touches: device, stream and exact two-dimensional overlap, checked without allocating.

use crate::backend::Backend;
use crate::element::Scalar;
use crate::error::{Error, Result};
use crate::memory::{MatMut, MatRef, Memory, Place, StreamId};

/// The bytes of one operand: `rows` runs of `row_bytes`, `stride_bytes` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    operand: &'static str,
    place: Place,
    rows: u64,
    row_bytes: u64,
    stride_bytes: u64,
}

impl Footprint {
    fn of<T: Scalar, M: Memory>(operand: &'static str, m: MatRef<'_, T, M>) -> Self {
        let size = size_of::<T>() as u64;
        let empty = m.layout().span() == 0;
        Self {
            operand,
            place: M::place(m.ptr()),
            rows: if empty { 0 } else { m.rows() as u64 },
            row_bytes: m.cols() as u64 * size,
            stride_bytes: m.row_stride() as u64 * size,
        }
    }

    /// One past the last byte.
    fn end(&self) -> i128 {
        self.row_start(self.rows.saturating_sub(1)) + i128::from(self.row_bytes)
    }

    fn row_start(&self, row: u64) -> i128 {
        i128::from(self.place.address) + i128::from(row) * i128::from(self.stride_bytes)
    }

    /// Whether the two share a byte. Exact: disjoint column blocks of one matrix do not.
    fn overlaps(&self, other: &Self) -> bool {
        if self.place.device != other.place.device || self.rows == 0 || other.rows == 0 {
            return false;
        }
        if self.end() <= other.row_start(0) || other.end() <= self.row_start(0) {
            return false;
        }
        if self.stride_bytes == other.stride_bytes {
            return self.overlaps_at_equal_stride(other);
        }
        let (few, many) = if self.rows <= other.rows { (self, other) } else { (other, self) };
        (0..few.rows)
            .any(|row| many.meets(few.row_start(row), few.row_start(row) + i128::from(few.row_bytes)))
    }

    /// Rows `i` of one and `j` of the other are `distance + (j - i) * stride` apart: one division finds the only two
    /// values of `j - i` that can bring them together.
    fn overlaps_at_equal_stride(&self, other: &Self) -> bool {
        let stride = i128::from(self.stride_bytes);
        let distance = other.row_start(0) - self.row_start(0);
        let steps = -(i128::from(self.rows) - 1)..=i128::from(other.rows) - 1;
        let nearest = -distance.div_euclid(stride);
        [nearest - 1, nearest].into_iter().filter(|t| steps.contains(t)).any(|t| {
            let gap = distance + t * stride;
            -i128::from(other.row_bytes) < gap && gap < i128::from(self.row_bytes)
        })
    }

    /// Whether any row shares a byte with `start..end`.
    fn meets(&self, start: i128, end: i128) -> bool {
        // The last row that starts before `end` is the one that reaches furthest among those.
        let last = (end - 1 - self.row_start(0)).div_euclid(i128::from(self.stride_bytes));
        if last < 0 {
            return false;
        }
        let last = last.min(i128::from(self.rows) - 1) as u64;
        self.row_start(last) + i128::from(self.row_bytes) > start
    }
}

/// The operands of one call. No call has more than [`Footprints::CAPACITY`], so nothing is allocated. Operands are added
/// in place: the list has 700 bytes, and to move it for each of them was an eighth of what a call costs the host.
#[derive(Debug)]
pub(crate) struct Footprints {
    list: [Option<Footprint>; Self::CAPACITY],
    outputs: usize,
    inputs: usize,
}

impl Footprints {
    /// Backward reads x, gate, up, bias, dy and the down projection, and writes the two halves of dwf, dbias, dx and the
    /// pre-activations: 11.
    const CAPACITY: usize = 12;

    pub(crate) fn new() -> Self {
        Self { list: [None; Self::CAPACITY], outputs: 0, inputs: 0 }
    }

    /// Adds an operand that the call writes.
    pub(crate) fn writes<T: Scalar, M: Memory>(
        &mut self,
        operand: &'static str,
        m: &MatMut<'_, T, M>,
    ) -> &mut Self {
        self.list[self.outputs] = Some(Footprint::of(operand, m.view()));
        self.outputs += 1;
        self
    }

    /// Adds an operand that the call only reads.
    pub(crate) fn reads<T: Scalar, M: Memory>(
        &mut self,
        operand: &'static str,
        m: MatRef<'_, T, M>,
    ) -> &mut Self {
        self.inputs += 1;
        self.list[Self::CAPACITY - self.inputs] = Some(Footprint::of(operand, m));
        self
    }

    /// Every operand is where the backend is, and no output shares a byte with another operand.
    pub(crate) fn check<B: Backend>(&self, backend: &B) -> Result<()> {
        let (device, stream) = (backend.device(), backend.stream());
        // From the back, where inputs are, in the order in which they were added.
        for footprint in self.list.iter().rev().flatten().filter(|footprint| footprint.rows > 0) {
            let (operand, place) = (footprint.operand, footprint.place);
            if place.device != device {
                return Err(Error::WrongDevice { operand, expected: device, got: place.device });
            }
            if place.stream != stream && place.stream != StreamId::NONE {
                return Err(Error::WrongStream { operand, expected: stream, got: place.stream });
            }
        }
        for (index, output) in self.list[..self.outputs].iter().flatten().enumerate() {
            let mut others = self.list[index + 1..].iter().rev().flatten();
            if let Some(other) = others.find(|other| output.overlaps(other)) {
                return Err(Error::Overlap { output: output.operand, other: other.operand });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::DeviceId;

    fn footprint(address: u64, rows: u64, row_bytes: u64, stride_bytes: u64) -> Footprint {
        let place = Place { device: DeviceId::HOST, stream: StreamId::NONE, address };
        Footprint { operand: "test", place, rows, row_bytes, stride_bytes }
    }

    fn share_a_byte(a: &Footprint, b: &Footprint) -> bool {
        let bytes = |f: &Footprint| {
            let f = *f;
            (0..f.rows).flat_map(move |row| {
                (0..f.row_bytes).map(move |byte| f.place.address + row * f.stride_bytes + byte)
            })
        };
        bytes(a).any(|byte| bytes(b).any(|other| byte == other))
    }

    #[test]
    fn agrees_with_the_definition_on_every_small_pair() {
        let mut cases = 0;
        for address in 0..14 {
            for (rows, row_bytes, gap) in [(1, 1, 0), (1, 5, 2), (2, 3, 1), (3, 2, 3), (4, 1, 2), (3, 3, 0)] {
                for (other_rows, other_bytes, other_gap) in
                    [(1, 2, 0), (2, 2, 2), (3, 1, 4), (2, 4, 0), (4, 2, 1)]
                {
                    for base in [5, 20] {
                        let a = footprint(address, rows, row_bytes, row_bytes + gap);
                        let b = footprint(base, other_rows, other_bytes, other_bytes + other_gap);
                        assert_eq!(a.overlaps(&b), share_a_byte(&a, &b), "{a:?} {b:?}");
                        assert_eq!(b.overlaps(&a), share_a_byte(&a, &b), "{b:?} {a:?}");
                        cases += 1;
                    }
                }
            }
        }
        assert_eq!(cases, 14 * 6 * 5 * 2, "cases run");
    }

    #[test]
    fn column_blocks_of_one_matrix_are_apart() {
        let left = footprint(1000, 1 << 40, 64, 256);
        let right = footprint(1064, 1 << 40, 192, 256);
        let wide = footprint(1064, 1 << 40, 193, 256);
        assert!(!left.overlaps(&right), "blocks side by side");
        assert!(left.overlaps(&wide), "one byte into the next row");
    }

    #[test]
    fn an_empty_operand_overlaps_nothing() {
        let empty = footprint(10, 0, 0, 0);
        assert!(!empty.overlaps(&footprint(0, 5, 10, 10)), "empty against full");
    }
}
