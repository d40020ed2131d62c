//! Products of the families `sm90` and `decode`: what TMA is told about their matrices.

use swiglu_core::{Dtype, Result};

use crate::decode::Decode;
use crate::forming::Progress;
use crate::gemm::{Gemm, Schedule};
use crate::kernel::{Grid, Kernel};
use crate::params::{GemmParams, Operand, Sm90Params, TensorMap};
use crate::queue::Call;
use crate::realign::parts;

/// A matrix as TMA sees it, which moves boxes of some rows x 128 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Boxed {
    pub(crate) matrix: Operand,
    pub(crate) dtype: Dtype,
    pub(crate) rows: u64,
    pub(crate) cols: u64,
    /// Up to 256. What a box has beyond the matrix is read as zeros.
    pub(crate) box_rows: u32,
}

impl Boxed {
    /// Columns of a box.
    pub(crate) fn columns(&self) -> u32 {
        128 / self.dtype.bytes() as u32
    }

    /// Bytes from one row to the next. Those of a single row may be any number, of which TMA takes none but multiples
    /// of 16.
    pub(crate) fn row_bytes(&self) -> u64 {
        let bytes = self.dtype.bytes() as u64;
        if self.rows == 1 {
            (self.cols * bytes).next_multiple_of(16)
        } else {
            self.matrix.stride as u64 * bytes
        }
    }
}

/// Rows of every box of `sm90`, but for some where warpgroups take turns; elements of a k block of both families.
const BOX: u32 = 64;
/// Rows of a box of C where warpgroups take turns.
const TURN_BOX: u32 = 32;

/// Starts `products` products of `sm90`, or one of as many segments as `params` says. Operands that are split are given
/// by their parts, and those that are rounded as they are then.
pub(crate) fn launch(call: &Call<'_>, gemm: Gemm, products: u32, params: &GemmParams) -> Result<()> {
    start(call, gemm, Sm90Params { products, gemm: *params, ..Sm90Params::default() })
}

/// Starts dX of `sm90` whose operand A is formed on the way.
pub(crate) fn launch_forming(
    call: &Call<'_>,
    gemm: Gemm,
    progress: Progress,
    params: &GemmParams,
) -> Result<()> {
    let progress = progress.start(call)?;
    let params = Sm90Params { products: 1, progress, gemm: *params, ..Sm90Params::default() };
    start(call, gemm, params)
}

/// Starts what is asked for, whose maps are not made yet.
fn start(call: &Call<'_>, gemm: Gemm, asked: Sm90Params) -> Result<()> {
    let params = &asked.gemm;
    let (m, n, k) = (params.m as u64, params.n as u64, params.k as u64);
    let kernel = Kernel::Gemm(gemm.compiled());
    let blocks = gemm.blocks((m, n, u64::from(asked.products)), call.facts());
    if blocks == 0 {
        return Ok(());
    }
    let shape = |trans: bool, (rows, cols): (u64, u64)| if trans { (cols, rows) } else { (rows, cols) };
    let (rows_a, rows_c) = match gemm.hopper.schedule {
        Schedule::Together => (BOX, BOX),
        Schedule::Turns { rows } => (rows / 2, TURN_BOX),
    };
    let maps = |matrices: [Operand; 2],
                dtype: Dtype,
                (rows, cols): (u64, u64),
                box_rows|
     -> Result<[TensorMap; 2]> {
        let mut maps = [TensorMap::default(); 2];
        for (map, matrix) in maps.iter_mut().zip(matrices) {
            if matrix != Operand::NONE {
                *map = call.tensor_map(&Boxed { matrix, dtype, rows, cols, box_rows })?;
            }
        }
        Ok(maps)
    };
    let out = gemm.product.out(gemm.dtype);
    let outputs = |matrices| match gemm.hopper.boxes {
        true => maps(matrices, out, (m, n), rows_c),
        false => Ok([TensorMap::default(); 2]),
    };
    let inputs = |matrices, (rows, cols), box_rows| match gemm.splits() {
        true => maps(matrices, Dtype::Bf16, (parts::COUNT * parts::whole_rows(rows), cols), box_rows),
        false => maps(matrices, gemm.dtype, (rows, cols), box_rows),
    };
    let params = Sm90Params {
        a: inputs(params.a, shape(gemm.a_trans, (m, k)), rows_a)?,
        b: inputs(params.b, shape(gemm.b_trans, (k, n)), BOX)?,
        c: outputs(params.c)?,
        pre: outputs(params.pre)?,
        group_log2: gemm.hopper.group.trailing_zeros(),
        ..asked
    };
    call.launch(kernel, Grid { blocks, depth: 1, threads: gemm.threads() }, &params)
}

/// Starts a kernel of `decode`: x in one box of rows, weights in boxes of a k block or of a block's columns.
pub(crate) fn launch_decode(call: &Call<'_>, decode: Decode, params: &GemmParams) -> Result<()> {
    let (m, n, k) = (params.m as u64, params.n as u64, params.k as u64);
    let map = |matrix, (rows, cols), box_rows| {
        call.tensor_map(&Boxed { matrix, dtype: decode.dtype, rows, cols, box_rows })
    };
    let weights = |matrix| match decode.b_trans {
        true => map(matrix, (n, k), decode.columns),
        false => map(matrix, (k, n), BOX),
    };
    let params = Sm90Params {
        a: [map(params.a[0], (m, k), decode.rows)?, TensorMap::default()],
        b: [weights(params.b[0])?, weights(params.b[1])?],
        gemm: *params,
        products: 1,
        ..Sm90Params::default()
    };
    call.launch(Kernel::Decode(decode), decode.grid(n), &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_128_bytes_wide() {
        let boxed = |dtype| Boxed {
            matrix: Operand { data: 256, stride: 72 },
            dtype,
            rows: 3,
            cols: 70,
            box_rows: BOX,
        };
        assert_eq!((boxed(Dtype::Bf16).columns(), boxed(Dtype::Bf16).row_bytes()), (64, 144));
        assert_eq!((boxed(Dtype::F32).columns(), boxed(Dtype::F32).row_bytes()), (32, 288));
    }

    #[test]
    fn a_single_row_has_no_stride_of_its_own() {
        let row = Boxed {
            matrix: Operand { data: 256, stride: 7 },
            dtype: Dtype::F16,
            rows: 1,
            cols: 70,
            box_rows: BOX,
        };
        assert_eq!(row.row_bytes(), 144);
    }
}
