//! Calls into a stub of cuBLAS that multiplies on the host; and into cuBLAS itself, as far as that goes without a GPU.
//!
//! What cannot run says so on standard error.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use swiglu_core::{Dtype, Op, Precision};
use tempfile::TempDir;

use super::*;
use crate::params::Operand;

fn note(line: &str) {
    // Past the test harness, which captures only the print macros. A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn open(candidates: Vec<PathBuf>) -> Result<Cublas, CudaError> {
    // SAFETY: the stub has the functions of cuBLAS with the same arguments, and writes no more than they do; the other
    // candidates of these tests are no libraries.
    Cublas::open(&unsafe { Search::cublas_at(candidates) })
}

/// A stub of cuBLAS with these macros; `None`, and a line that says so, where there is no C compiler.
fn stub(settings: &[&str]) -> Option<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir().unwrap();
    let input = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/stubs/libcublas.c");
    let library = folder.path().join("libcublas.so");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-ffp-contract=off", "-o"]).arg(&library).arg(input);
    let Ok(output) = compile.args(settings.iter().map(|setting| format!("-D{setting}"))).output() else {
        note("skipped a test of cuBLAS: no C compiler to build the stub library");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some((folder, library))
}

fn reason(error: CudaError) -> String {
    match error {
        CudaError::Cublas { reason } => reason,
        other => panic!("expected an error of cuBLAS, got {other:?}"),
    }
}

/// A session with the stream and the workspace that the stub expects.
fn session(library: PathBuf) -> Result<Session, CudaError> {
    let mut session = Session::new(Arc::new(open(vec![library])?))?;
    // SAFETY: the stub does not access them.
    unsafe { session.attach(7 as *mut c_void, 4096, 1024) }?;
    Ok(session)
}

const KIND: ProductKind = ProductKind {
    dtype: Dtype::F32,
    out: Dtype::F32,
    precision: Precision::Strict,
    op_a: Op::N,
    op_b: Op::N,
};

/// A row-major matrix in host memory, with whatever lies between its rows.
struct Host {
    shape: (usize, usize),
    stride: usize,
    values: Vec<f32>,
}

impl Host {
    /// Small integers, so that sums are exact; the rows are `gap` elements apart.
    fn new(shape: (usize, usize), gap: usize, seed: usize) -> Self {
        let stride = shape.1 + gap;
        let value = |i: usize| ((i * 7 + seed * 5 + 3) % 11) as f32 - 5.0;
        Self { shape, stride, values: (0..shape.0 * stride).map(value).collect() }
    }

    fn at(&self, op: Op, row: usize, col: usize) -> f32 {
        match op {
            Op::N => self.values[row * self.stride + col],
            Op::T => self.values[col * self.stride + row],
        }
    }

    fn operand(&mut self) -> Operand {
        // The stride of a single row is of no meaning.
        let stride = if self.shape.0 > 1 { self.stride as i64 } else { i64::MAX };
        Operand { data: self.values.as_mut_ptr() as u64, stride }
    }
}

/// Every product of small matrices, with every transposition, against the definition.
fn multiplies(library: PathBuf) {
    let mut session = session(library).unwrap();
    let ops = [Op::N, Op::T];
    let shapes = [(1, 1, 1), (2, 3, 4), (4, 1, 3), (1, 5, 2), (3, 4, 1), (5, 2, 6)];
    let (mut cases, gaps) = (0, [(0, 0, 0), (1, 2, 3), (4, 0, 1)]);
    for (op_a, op_b) in ops.into_iter().flat_map(|a| ops.map(|b| (a, b))) {
        for (shape, (gap_a, gap_b, gap_c), add) in shapes
            .into_iter()
            .flat_map(|shape| gaps.map(|gaps| (shape, gaps)))
            .flat_map(|(shape, gaps)| [false, true].map(|add| (shape, gaps, add)))
        {
            let (m, n, k) = shape;
            let mut a = Host::new(op_a.shape((m, k)), gap_a, 1);
            let mut b = Host::new(op_b.shape((k, n)), gap_b, 2);
            let mut c = Host::new((m, n), gap_c, 3);
            if !add {
                // What is not added to is not read.
                for row in 0..m {
                    c.values[row * (n + gap_c)..][..n].fill(f32::NAN);
                }
            }
            let mut expected = c.values.clone();
            for (row, col) in (0..m).flat_map(|row| (0..n).map(move |col| (row, col))) {
                let sum: f32 = (0..k).map(|i| a.at(op_a, row, i) * b.at(op_b, i, col)).sum();
                let to = &mut expected[row * (n + gap_c) + col];
                *to = if add { *to + sum } else { sum };
            }
            let kind = ProductKind { op_a, op_b, ..KIND };
            let product = Product { kind, a: a.operand(), b: b.operand(), c: c.operand(), shape, add };
            // SAFETY: the stub computes in host memory, and the operands are matrices of these shapes there.
            unsafe { session.multiply(&Arguments::new(&product)) }.unwrap();
            assert_eq!(c.values, expected, "{product:?}");
            cases += 1;
        }
    }
    assert_eq!(cases, 4 * 6 * 3 * 2, "cases run");
}

#[test]
fn row_major_products_come_out() {
    if let Some((_folder, library)) = stub(&["WITHOUT_GEMM"]) {
        multiplies(library);
    }
}

#[test]
fn an_older_library_multiplies_too() {
    if let Some((_folder, library)) = stub(&["ONLY_NARROW"]) {
        multiplies(library);
    }
}

#[test]
fn factors_change_places() {
    let at = |data, stride| Operand { data, stride };
    let product = |op_a, op_b, shape, add| Product {
        kind: ProductKind { op_a, op_b, ..KIND },
        a: at(1000, 100),
        b: at(2000, 200),
        c: at(3000, 300),
        shape,
        add,
    };
    let plain = Arguments {
        transa: 0,
        transb: 0,
        m: 5,
        n: 4,
        k: 6,
        a: 2000,
        b: 1000,
        c: 3000,
        lda: 200,
        ldb: 100,
        ldc: 300,
        factors: 0,
        ctype: 0,
        beta: 0.0,
        compute: 68,
    };
    let of = |op_a, op_b, add| Arguments::new(&product(op_a, op_b, (4, 5, 6), add));
    assert_eq!(of(Op::N, Op::N, false), plain);
    assert_eq!(of(Op::N, Op::N, true), Arguments { beta: 1.0, ..plain });
    assert_eq!(of(Op::T, Op::N, false), Arguments { transb: 1, ..plain });
    assert_eq!(of(Op::N, Op::T, false), Arguments { transa: 1, ..plain });
    assert_eq!(of(Op::T, Op::T, false), Arguments { transa: 1, transb: 1, ..plain });
    // Of a single row only the columns count: one row of a, and of b^T as it is stored.
    let row = Arguments::new(&product(Op::N, Op::T, (1, 1, 6), false));
    assert_eq!((row.lda, row.ldb, row.ldc), (6, 6, 1));
    // And of a single column the stride does.
    let column = Arguments::new(&product(Op::T, Op::N, (1, 1, 6), false));
    assert_eq!((column.lda, column.ldb, column.ldc), (200, 100, 1));
}

#[test]
fn element_types_and_precision_have_their_codes() {
    let codes = |dtype, out, precision| {
        let kind = ProductKind { dtype, out, precision, ..KIND };
        let operand = Operand { data: 256, stride: 8 };
        let product = Product { kind, a: operand, b: operand, c: operand, shape: (8, 8, 8), add: false };
        let Arguments { factors, ctype, compute, .. } = Arguments::new(&product);
        (factors, ctype, compute)
    };
    let (strict, tf32) = (Precision::Strict, Precision::Tf32);
    assert_eq!(codes(Dtype::F32, Dtype::F32, strict), (0, 0, 68));
    assert_eq!(codes(Dtype::F32, Dtype::F32, tf32), (0, 0, 77));
    assert_eq!(codes(Dtype::F16, Dtype::F16, tf32), (2, 2, 68));
    assert_eq!(codes(Dtype::Bf16, Dtype::F32, strict), (14, 0, 68));
}

#[test]
fn a_missing_library_lists_what_was_tried() {
    let folder = tempfile::tempdir().unwrap();
    let (absent, wrong) = (folder.path().join("libcublas.so.13"), folder.path().join("libcublas.so.12"));
    std::fs::write(&wrong, "no library").unwrap();
    let message = reason(open(vec![absent.clone(), wrong.clone()]).err().unwrap());
    for part in [absent.to_str().unwrap(), wrong.to_str().unwrap(), "install", "SWIGLU_CUBLAS"] {
        assert!(message.contains(part), "{part} in {message}");
    }
}

#[test]
fn a_library_that_lacks_a_function_is_refused() {
    for (settings, symbol) in [
        (["WITHOUT_WORKSPACE"].as_slice(), "cublasSetWorkspace_v2"),
        (&["ONLY_NARROW", "WITHOUT_GEMM"], "cublasGemmEx"),
    ] {
        let Some((_folder, library)) = stub(settings) else { return };
        let message = reason(open(vec![library]).err().unwrap());
        assert!(message.contains(&format!("has no function {symbol}:")), "{message}");
        assert!(message.contains("libcublas.so") && message.contains("SWIGLU_CUBLAS"), "{message}");
    }
}

#[test]
fn a_status_is_told_by_name() {
    let Some((_folder, library)) = stub(&["CREATE_CODE=3"]) else { return };
    let message = reason(session(library).err().unwrap());
    let name = "cublasCreate_v2 returned CUBLAS_STATUS_ALLOC_FAILED (3): a code without a name";
    assert!(message.starts_with(name), "{message}");

    let Some((_folder, library)) = stub(&["GEMM_CODE=15"]) else { return };
    let mut session = session(library).unwrap();
    let mut one = Host::new((1, 1), 0, 1);
    let operand = one.operand();
    let product = Product { kind: KIND, a: operand, b: operand, c: operand, shape: (1, 1, 1), add: false };
    // SAFETY: the stub refuses before it looks at the operands.
    let message = reason(unsafe { session.multiply(&Arguments::new(&product)) }.unwrap_err());
    let name =
        "cublasGemmEx_64 returned CUBLAS_STATUS_NOT_SUPPORTED (15): stub of a description; by cuBLAS 12.9 (";
    assert!(message.starts_with(name), "{message}");
}

#[test]
fn numbers_past_32_bits_are_refused_by_an_older_library() {
    let Some((_folder, library)) = stub(&["ONLY_NARROW"]) else { return };
    let mut session = session(library).unwrap();
    let operand = Operand { data: 256, stride: 1 << 31 };
    let product = |shape| Product { kind: KIND, a: operand, b: operand, c: operand, shape, add: false };
    for shape in [(2, 2, 2), (1, 1, 1 << 31), (1 << 31, 1, 1)] {
        // SAFETY: the call is refused before the stub sees it.
        let message = reason(unsafe { session.multiply(&Arguments::new(&product(shape))) }.unwrap_err());
        assert!(message.contains("up to 2147483647, and one is 2147483648"), "{message}");
    }
}

#[test]
fn a_handle_is_destroyed() {
    let Some((_folder, library)) = stub(&[]) else { return };
    // The stub has no more than one.
    for _ in 0..3 {
        let first = session(library.clone()).unwrap();
        assert!(session(library.clone()).is_err(), "a second handle");
        drop(first);
    }
}

/// The library itself, without a device: its functions are there, and it says what it is.
#[test]
fn the_installed_library_opens() {
    match Cublas::open(&Search::cublas(CudaVersion { major: 13, minor: 0 })) {
        Ok(cublas) => {
            assert!(matches!(cublas.gemm, Gemm::Wide(_)), "{}", cublas.info());
            assert!(
                cublas.info().version.major >= 12 && cublas.info().path.is_absolute(),
                "{}",
                cublas.info()
            );
            let message = reason(cublas.check("a call", 15).unwrap_err());
            assert!(message.contains("CUBLAS_STATUS_NOT_SUPPORTED (15): "), "{message}");
        }
        Err(missing) => note(&format!("skipped a test of cuBLAS: {missing}")),
    }
}
