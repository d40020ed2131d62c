//! Arguments of the kernels: the structs of `kernels/params.cuh`. Each size is checked on both sides.

use swiglu_core::{Dtype, MatMut, MatRef, Scalar};

use crate::memory::{CudaMemory, CudaPtr};

/// A row-major matrix of a kernel: address of the first element, elements from one row to the next.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operand {
    pub(crate) data: u64,
    pub(crate) stride: i64,
}

impl Operand {
    /// A matrix that is not there.
    pub(crate) const NONE: Self = Self { data: 0, stride: 0 };

    pub(crate) fn read<T: Scalar>(m: MatRef<'_, T, CudaMemory>) -> Self {
        Self::at(m.ptr(), m.row_stride())
    }

    pub(crate) fn write<T: Scalar>(m: &MatMut<'_, T, CudaMemory>) -> Self {
        Self::at(m.ptr(), m.row_stride())
    }

    /// The largest power of two, up to 128, that every row starts at a multiple of, in bytes.
    pub(crate) fn alignment(self, dtype: Dtype) -> u32 {
        let bits = self.data | (self.stride as u64).wrapping_mul(dtype.bytes() as u64);
        1 << bits.trailing_zeros().min(7)
    }

    pub(crate) fn at(ptr: CudaPtr, stride: usize) -> Self {
        Self { data: ptr.address(), stride: stride as i64 }
    }
}

/// Twin of `GemmParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GemmParams {
    pub(crate) a: [Operand; 2],
    pub(crate) b: [Operand; 2],
    pub(crate) c: [Operand; 2],
    pub(crate) pre: [Operand; 2],
    pub(crate) dz: Operand,
    pub(crate) bias: [u64; 2],
    pub(crate) m: i64,
    pub(crate) n: i64,
    pub(crate) k: i64,
    pub(crate) alpha: f32,
    pub(crate) limit: f32,
    pub(crate) segments: u32,
    pub(crate) add: u32,
}

/// What the driver makes of a matrix for TMA. Opaque; zeros where there is none.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TensorMap(pub(crate) [u64; 16]);

/// Twin of `Sm90Params`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sm90Params {
    pub(crate) a: [TensorMap; 2],
    pub(crate) b: [TensorMap; 2],
    pub(crate) c: [TensorMap; 2],
    pub(crate) pre: [TensorMap; 2],
    pub(crate) gemm: GemmParams,
    pub(crate) products: u32,
    pub(crate) group_log2: u32,
    pub(crate) progress: u64,
}

/// Twin of `GateParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateParams {
    pub(crate) gate: Operand,
    pub(crate) up: Operand,
    pub(crate) z: Operand,
    pub(crate) to_gate: Operand,
    pub(crate) to_up: Operand,
    pub(crate) rows: i64,
    pub(crate) cols: i64,
    pub(crate) alpha: f32,
    pub(crate) limit: f32,
    pub(crate) fills: u32,
    pub(crate) unused: u32,
}

impl GateParams {
    /// Both halves of pre-activations of so many rows and columns, and z or dz. Cotangents take their place.
    pub(crate) fn new(
        [gate, up]: [Operand; 2],
        z: Operand,
        (rows, cols): (usize, usize),
        (alpha, limit): (f32, f32),
    ) -> Self {
        let (rows, cols, to_gate, to_up) = (rows as i64, cols as i64, gate, up);
        Self { gate, up, z, to_gate, to_up, rows, cols, alpha, limit, fills: 0, unused: 0 }
    }

    /// Cotangents go to rows of their own, which have room up to the next multiple of 16 bytes: zeros come there.
    pub(crate) fn to_rooms(self, [to_gate, to_up]: [Operand; 2]) -> Self {
        Self { to_gate, to_up, fills: 1, ..self }
    }
}

/// Twin of `RealignJob`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct RealignJob {
    pub(crate) from: Operand,
    pub(crate) to: Operand,
    pub(crate) rows: i64,
    pub(crate) cols: i64,
    pub(crate) first_block: u64,
}

impl RealignJob {
    /// No block is this job's.
    pub(crate) const NONE: Self =
        Self { from: Operand::NONE, to: Operand::NONE, rows: 0, cols: 0, first_block: u64::MAX };
}

/// Twin of `RealignParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct RealignParams {
    pub(crate) jobs: [RealignJob; Self::JOBS],
}

impl RealignParams {
    /// Both operands of two products.
    pub(crate) const JOBS: usize = 4;
}

/// Twin of `GatherParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GatherParams {
    pub(crate) from: Operand,
    pub(crate) to: Operand,
    pub(crate) named: u64,
    pub(crate) named_stride: i64,
    pub(crate) from_rows: i64,
    pub(crate) rows: i64,
    pub(crate) cols: i64,
}

/// Twin of `AddBiasParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AddBiasParams {
    pub(crate) bias: u64,
    pub(crate) c: Operand,
    pub(crate) rows: i64,
    pub(crate) cols: i64,
}

/// Twin of `ColumnSumsParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ColumnSumsParams {
    pub(crate) a: Operand,
    pub(crate) to: u64,
    pub(crate) partial: u64,
    pub(crate) rows: i64,
    pub(crate) cols: i64,
    pub(crate) rows_per_chunk: i64,
    pub(crate) chunks: i64,
    pub(crate) add: u32,
    pub(crate) unused: u32,
}

/// Twin of `CrossEntropyParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CrossEntropyParams {
    pub(crate) logits: Operand,
    pub(crate) dlogits: Operand,
    pub(crate) labels: u64,
    pub(crate) label_stride: i64,
    pub(crate) loss: u64,
    pub(crate) correct: u64,
    pub(crate) row_loss: u64,
    pub(crate) row_correct: u64,
    pub(crate) rows: i64,
    pub(crate) classes: i64,
}

/// Twin of `AdamWParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AdamWParams {
    pub(crate) gradient: Operand,
    pub(crate) parameter: Operand,
    pub(crate) first: Operand,
    pub(crate) second: Operand,
    pub(crate) master: Operand,
    pub(crate) steps: u64,
    pub(crate) ticket: u64,
    pub(crate) rows: i64,
    pub(crate) cols: i64,
    pub(crate) lr: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) epsilon: f32,
    pub(crate) weight_decay: f32,
    pub(crate) unused: u32,
}

const _: () = {
    assert!(size_of::<GemmParams>() == 200);
    assert!(size_of::<Sm90Params>() == 1280);
    assert!(size_of::<GateParams>() == 112);
    assert!(size_of::<RealignParams>() == 224);
    assert!(size_of::<GatherParams>() == 72);
    assert!(size_of::<AddBiasParams>() == 40);
    assert!(size_of::<ColumnSumsParams>() == 72);
    assert!(size_of::<CrossEntropyParams>() == 96);
    assert!(size_of::<AdamWParams>() == 136);
};

/// What a kernel takes as its one argument: plain data that the kernel's source declares with the same layout.
///
/// Sealed by being private to the crate; only the structs above have it.
pub(crate) trait KernelParams: Copy {}
impl KernelParams for GemmParams {}
impl KernelParams for Sm90Params {}
impl KernelParams for GateParams {}
impl KernelParams for RealignParams {}
impl KernelParams for GatherParams {}
impl KernelParams for AddBiasParams {}
impl KernelParams for ColumnSumsParams {}
impl KernelParams for CrossEntropyParams {}
impl KernelParams for AdamWParams {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_of_every_row() {
        let at = |data, stride| Operand { data, stride }.alignment(Dtype::F16);
        assert_eq!(at(256, 64), 128);
        assert_eq!(at(256, 8), 16);
        assert_eq!(at(256, 7), 2);
        assert_eq!(at(260, 64), 4);
    }
}
