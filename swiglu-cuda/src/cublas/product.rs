//! A product as this crate has it, row by row, and as cuBLAS takes it, column by column. Pure.

use std::ffi::c_int;
use std::fmt;

use swiglu_core::{Dtype, Op, Precision};

use crate::params::Operand;

/// `c = op_a(a) . op_b(b)`, or `c +=`, of row-major matrices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) kind: ProductKind,
    pub(crate) a: Operand,
    pub(crate) b: Operand,
    pub(crate) c: Operand,
    /// Rows of `c`, columns of `c`, summands of each element.
    pub(crate) shape: (usize, usize, usize),
    /// Whether `c` is added to.
    pub(crate) add: bool,
}

/// What a plan can say of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProductKind {
    /// Element type of the factors.
    pub(crate) dtype: Dtype,
    /// Element type of `c`: the factors', or f32.
    pub(crate) out: Dtype,
    pub(crate) precision: Precision,
    pub(crate) op_a: Op,
    pub(crate) op_b: Op,
}

impl ProductKind {
    /// f32 factors that are rounded to TF32.
    fn is_tf32(self) -> bool {
        self.dtype == Dtype::F32 && self.precision == Precision::Tf32
    }
}

impl fmt::Display for ProductKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = |op| if op == Op::T { "t" } else { "n" };
        let kind = if self.is_tf32() { "tf32".to_owned() } else { self.dtype.to_string() };
        write!(f, "cublas-{kind}-{}{}", order(self.op_a), order(self.op_b))
    }
}

/// `CUBLAS_OP_N` and `CUBLAS_OP_T`.
const OP_N: c_int = 0;
const OP_T: c_int = 1;

/// `CUDA_R_32F`, `CUDA_R_16F` and `CUDA_R_16BF`.
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;

/// `CUBLAS_COMPUTE_32F`: sums in f32, of whatever factors. `CUBLAS_COMPUTE_32F_FAST_TF32`: of f32 factors that may be
/// rounded to TF32.
const COMPUTE_32F: c_int = 68;
const COMPUTE_32F_FAST_TF32: c_int = 77;

/// Arguments of `cublasGemmEx`, by the names of its documentation; its A is our b.
///
/// A row-major matrix is, column by column, its transpose. So cuBLAS is asked for c's transpose,
/// `op_b(b)^T . op_a(a)^T`: both factors change places, and keep their `op`s because each is seen transposed already.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Arguments {
    pub(super) transa: c_int,
    pub(super) transb: c_int,
    pub(super) m: i64,
    pub(super) n: i64,
    pub(super) k: i64,
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) c: u64,
    pub(super) lda: i64,
    pub(super) ldb: i64,
    pub(super) ldc: i64,
    /// Of A and B.
    pub(super) factors: c_int,
    pub(super) ctype: c_int,
    pub(super) beta: f32,
    pub(super) compute: c_int,
}

impl Arguments {
    /// Of a product without an empty operand.
    pub(super) fn new(product: &Product) -> Self {
        let Product { kind, a, b, c, shape: (m, n, k), add } = *product;
        Self {
            transa: operation(kind.op_b),
            transb: operation(kind.op_a),
            m: n as i64,
            n: m as i64,
            k: k as i64,
            a: b.data,
            b: a.data,
            c: c.data,
            lda: leading_dimension(b, kind.op_b.shape((k, n))),
            ldb: leading_dimension(a, kind.op_a.shape((m, k))),
            ldc: leading_dimension(c, (m, n)),
            factors: data_type(kind.dtype),
            ctype: data_type(kind.out),
            // With 0, cuBLAS does not read c.
            beta: if add { 1.0 } else { 0.0 },
            compute: if kind.is_tf32() { COMPUTE_32F_FAST_TF32 } else { COMPUTE_32F },
        }
    }
}

/// Of a matrix that is stored with these rows and columns. The stride of a single row is of no meaning, and may be
/// more than a library with 32-bit numbers takes.
fn leading_dimension(matrix: Operand, (rows, cols): (usize, usize)) -> i64 {
    if rows > 1 { matrix.stride } else { cols as i64 }
}

fn operation(op: Op) -> c_int {
    match op {
        Op::N => OP_N,
        Op::T => OP_T,
    }
}

fn data_type(dtype: Dtype) -> c_int {
    match dtype {
        Dtype::F32 => R_32F,
        Dtype::F16 => R_16F,
        Dtype::Bf16 => R_16BF,
    }
}
