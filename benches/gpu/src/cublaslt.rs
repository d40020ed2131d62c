//! The calls into cuBLASLt: all of the program's unsafe code.
//!
//! Four facts carry the soundness, and the SAFETY comments name them:
//! - *Provenance.* The library is opened by the names of NVIDIA's own, beside the cuBLAS that the backend found, or by
//!   the path that the user names for it.
//! - *Types.* A function is stored under the type that cublasLt.h gives to its name.
//! - *Lifetime.* The library is never closed, so an address in it stays valid; an object of it is destroyed once, by its
//!   [`Owned`].
//! - *Checked operands.* Addresses come from views that core checked, and that [`Lt::run`] finds on its own device and
//!   stream: what is freed is freed in stream order, and the borrow of the result excludes that of the factors.

use std::env;
use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::fmt;
use std::mem::{self, size_of_val};
use std::path::{Path, PathBuf};
use std::ptr;
use std::rc::Rc;

use libloading::Library;
use swiglu_core::{Backend, Dtype, Element, MatMut, MatRef, Matrix, Memory, Op, Place, Precision};
use swiglu_cuda::{Cuda, CudaMemory};

use crate::error::{Error, Result};
use crate::job::kind;

/// Algorithms that are asked for. cuBLASLt ranks them by a model, which is not always right.
const CANDIDATES: usize = 16;

/// What an algorithm may use besides its operands: twice what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 64 << 20;

/// The strongest alignment that cuBLASLt tells apart, in bytes.
const MAX_ALIGN: u32 = 256;

// `cublasStatus_t`.
const SUCCESS: c_int = 0;
const NOT_SUPPORTED: c_int = 15;

// `cublasComputeType_t`.
const COMPUTE_32F: c_int = 68;
const COMPUTE_32F_FAST_TF32: c_int = 77;

// `cudaDataType_t`.
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;

// `cublasOperation_t`.
const OP_N: c_int = 0;
const OP_T: c_int = 1;

// `cublasLtMatmulDescAttributes_t`.
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;

// `cublasLtMatmulPreferenceAttributes_t`.
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
const PREF_MIN_ALIGNMENT_A_BYTES: c_int = 5;
const PREF_MIN_ALIGNMENT_B_BYTES: c_int = 6;
const PREF_MIN_ALIGNMENT_C_BYTES: c_int = 7;
const PREF_MIN_ALIGNMENT_D_BYTES: c_int = 8;

/// `cublasLtMatmulAlgo_t`: what an algorithm is, to be handed back as it came.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Algorithm {
    data: [u64; 8],
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    algorithm: Algorithm,
    workspace_bytes: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// Destroys an object of cuBLASLt.
type Destroy = unsafe extern "system" fn(*mut c_void) -> c_int;

/// Sets an attribute of an object: which, from where, how many bytes.
type Set = unsafe extern "system" fn(*mut c_void, c_int, *const c_void, usize) -> c_int;

/// Declares the table of functions. The types are those of cublasLt.h, whose enums are as wide as an int.
macro_rules! functions {
    ($($field:ident = $symbol:literal: $kind:ty;)*) => {
        #[derive(Clone, Copy)]
        struct Functions { $($field: $kind,)* }

        impl Functions {
            /// Or the name of the first function that the library lacks.
            fn resolve(library: &Library) -> Result<Self, &'static str> {
                $(
                    // SAFETY: *Types*: `$kind` is the type of `$symbol`.
                    let $field = *unsafe { library.get::<$kind>($symbol) }.map_err(|_| $symbol)?;
                )*
                Ok(Self { $($field,)* })
            }
        }
    };
}

functions! {
    create = "cublasLtCreate": unsafe extern "system" fn(*mut *mut c_void) -> c_int;
    destroy = "cublasLtDestroy": Destroy;
    version = "cublasLtGetVersion": unsafe extern "system" fn() -> usize;
    status_text = "cublasLtGetStatusString": unsafe extern "system" fn(c_int) -> *const c_char;
    desc_create = "cublasLtMatmulDescCreate": unsafe extern "system" fn(*mut *mut c_void, c_int, c_int) -> c_int;
    desc_set = "cublasLtMatmulDescSetAttribute": Set;
    desc_destroy = "cublasLtMatmulDescDestroy": Destroy;
    layout_create = "cublasLtMatrixLayoutCreate":
        unsafe extern "system" fn(*mut *mut c_void, c_int, u64, u64, i64) -> c_int;
    layout_destroy = "cublasLtMatrixLayoutDestroy": Destroy;
    pref_create = "cublasLtMatmulPreferenceCreate": unsafe extern "system" fn(*mut *mut c_void) -> c_int;
    pref_set = "cublasLtMatmulPreferenceSetAttribute": Set;
    pref_destroy = "cublasLtMatmulPreferenceDestroy": Destroy;
    heuristic = "cublasLtMatmulAlgoGetHeuristic": unsafe extern "system" fn(
        *mut c_void, *mut c_void, *mut c_void, *mut c_void, *mut c_void, *mut c_void, *mut c_void,
        c_int, *mut Candidate, *mut c_int
    ) -> c_int;
    matmul = "cublasLtMatmul": unsafe extern "system" fn(
        *mut c_void, *mut c_void, *const c_void, *const c_void, *mut c_void, *const c_void, *mut c_void,
        *const c_void, *const c_void, *mut c_void, *mut c_void, *mut c_void,
        *const Algorithm, *mut c_void, usize, *mut c_void
    ) -> c_int;
}

impl Functions {
    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: *Types*, *lifetime*; every number is allowed.
        let text = unsafe { (self.status_text)(code) };
        let text = if text.is_null() {
            "a code without a name".to_owned()
        } else {
            // SAFETY: the function returns pointers to constant C strings in the library, which is never closed.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(Error::Lt { call, code, text })
    }
}

/// An object of cuBLASLt.
struct Owned {
    raw: *mut c_void,
    destroy: Destroy,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // A failure leaves nothing to be done.
        // SAFETY: *Types*, *lifetime*: `raw` was created together with `destroy`, and nothing uses it any more.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// A factor or the result of a product, as cuBLASLt sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Operand {
    rows: usize,
    cols: usize,
    stride: usize,
    /// Of its address, in bytes.
    align: u32,
}

impl Operand {
    fn of<T: Element>(view: MatRef<'_, T, CudaMemory>) -> Self {
        let align = 1 << view.ptr().address().trailing_zeros().min(MAX_ALIGN.trailing_zeros());
        Self { rows: view.rows(), cols: view.cols(), stride: view.row_stride(), align }
    }
}

/// Everything that the choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    dtype: Dtype,
    precision: Precision,
    op_a: Op,
    op_b: Op,
    a: Operand,
    b: Operand,
    c: Operand,
    add: bool,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transposed = |op| if op == Op::T { "^T" } else { "" };
        let Self { dtype, precision, op_a, op_b, a, b, add, .. } = *self;
        write!(f, "{} [{}, {}]{} . ", kind(dtype, precision), a.rows, a.cols, transposed(op_a))?;
        write!(f, "[{}, {}]{}{}", b.rows, b.cols, transposed(op_b), if add { ", added" } else { "" })
    }
}

/// `c = op_a(a) . op_b(b)`, or `c +=`, row-major.
#[derive(Debug)]
pub(crate) struct Product<'a, T: Element> {
    pub(crate) a: (MatRef<'a, T, CudaMemory>, Op),
    pub(crate) b: (MatRef<'a, T, CudaMemory>, Op),
    pub(crate) c: MatMut<'a, T, CudaMemory>,
    pub(crate) add: bool,
    pub(crate) precision: Precision,
}

impl<T: Element> Product<'_, T> {
    /// # Errors
    /// [`Error::NoAlgorithm`] when the shapes do not fit.
    pub(crate) fn key(&self) -> Result<Key> {
        let ((a, op_a), (b, op_b), c) = (self.a, self.b, self.c.view());
        let key = Key {
            dtype: T::DTYPE,
            precision: self.precision,
            op_a,
            op_b,
            a: Operand::of(a),
            b: Operand::of(b),
            c: Operand::of(c),
            add: self.add,
        };
        let ((m, k), (l, n)) = (op_a.shape(a.shape()), op_b.shape(b.shape()));
        if k == l && c.shape() == (m, n) { Ok(key) } else { Err(Error::NoAlgorithm(key.to_string())) }
    }

    fn places(&self) -> [Place; 3] {
        [self.a.0, self.b.0, self.c.view()].map(|view| CudaMemory::place::<T>(view.ptr()))
    }
}

/// What a product is, to cuBLASLt. It is column-major, where every matrix here is its own transpose: it computes
/// `c^T = op_b(b)^T . op_a(a)^T`, so the right factor comes first.
struct Descriptors {
    product: Owned,
    first: Owned,
    second: Owned,
    result: Owned,
}

impl Descriptors {
    fn new(functions: &Functions, key: &Key) -> Result<Self> {
        let compute = match (key.dtype, key.precision) {
            (Dtype::F32, Precision::Tf32) => COMPUTE_32F_FAST_TF32,
            _ => COMPUTE_32F,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: *Types*, *lifetime*; the pointer is to one live pointer.
        let code = unsafe { (functions.desc_create)(&raw mut raw, compute, R_32F) };
        functions.check("cublasLtMatmulDescCreate", code)?;
        let product = Owned { raw, destroy: functions.desc_destroy };
        for (attribute, op) in [(DESC_TRANSA, key.op_b), (DESC_TRANSB, key.op_a)] {
            let op = if op == Op::T { OP_T } else { OP_N };
            set(functions, functions.desc_set, &product, attribute, &op)?;
        }
        let [first, second, result] =
            [key.b, key.a, key.c].map(|operand| layout(functions, key.dtype, operand));
        Ok(Self { product, first: first?, second: second?, result: result? })
    }
}

/// Types whose values may be read as bytes, and which attributes have.
trait Attribute {}
impl Attribute for c_int {}
impl Attribute for u32 {}
impl Attribute for usize {}

fn set<A: Attribute>(
    functions: &Functions,
    set: Set,
    object: &Owned,
    attribute: c_int,
    value: &A,
) -> Result<()> {
    // SAFETY: *Types*, *lifetime*; the object is live, and the value is read during the call, as many bytes as it has.
    let code = unsafe { set(object.raw, attribute, ptr::from_ref(value).cast(), size_of_val(value)) };
    functions.check("setting an attribute", code)
}

fn layout(functions: &Functions, dtype: Dtype, operand: Operand) -> Result<Owned> {
    let kind = match dtype {
        Dtype::F32 => R_32F,
        Dtype::F16 => R_16F,
        Dtype::Bf16 => R_16BF,
    };
    let (rows, cols) = (operand.cols as u64, operand.rows as u64);
    let mut raw = ptr::null_mut();
    // SAFETY: *Types*, *lifetime*; the pointer is to one live pointer.
    let code = unsafe { (functions.layout_create)(&raw mut raw, kind, rows, cols, operand.stride as i64) };
    functions.check("cublasLtMatrixLayoutCreate", code)?;
    Ok(Owned { raw, destroy: functions.layout_destroy })
}

/// An algorithm for products of one key.
#[derive(Clone)]
pub(crate) struct Plan {
    key: Key,
    descriptors: Rc<Descriptors>,
    algorithm: Algorithm,
}

/// cuBLASLt on the stream of a handle.
pub(crate) struct Lt {
    functions: Functions,
    handle: Owned,
    cuda: Cuda,
    workspace: Matrix<u32, CudaMemory>,
    path: PathBuf,
}

impl Lt {
    /// # Errors
    /// [`Error::Swiglu`] when there is no cuBLAS, [`Error::Library`] when there is no cuBLASLt beside it.
    pub(crate) fn open(cuda: &Cuda) -> Result<Self> {
        let cublas = cuda.cublas()?;
        let (library, path) = load(&candidates(
            env::var_os("SWIGLU_CUBLASLT").filter(|path| !path.is_empty()),
            &cublas.path,
            cublas.version.major,
        ))?;
        let functions = Functions::resolve(&library)
            .map_err(|symbol| Error::Library(format!("{} has no function {symbol}", path.display())))?;
        // *Lifetime*.
        mem::forget(library);
        cuda.cuda_stream().context().bind_to_thread()?;
        let mut raw = ptr::null_mut();
        // SAFETY: *Types*, *lifetime*; the pointer is to one live pointer; a context is current.
        let code = unsafe { (functions.create)(&raw mut raw) };
        functions.check("cublasLtCreate", code)?;
        let handle = Owned { raw, destroy: functions.destroy };
        let workspace = cuda.zeros(1, WORKSPACE_BYTES / size_of::<u32>())?;
        Ok(Self { functions, handle, cuda: cuda.clone(), workspace, path })
    }

    /// Its version, and what it was opened as.
    pub(crate) fn describe(&self) -> String {
        // SAFETY: *Types*, *lifetime*.
        let version = unsafe { (self.functions.version)() };
        let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
        format!("cuBLASLt {major}.{minor}.{patch} ({})", self.path.display())
    }

    /// cuBLASLt's candidates for a product, the one it thinks best first.
    ///
    /// # Errors
    /// [`Error::NoAlgorithm`], [`Error::Lt`].
    pub(crate) fn plans<T: Element>(&self, product: &Product<'_, T>) -> Result<Vec<Plan>> {
        let key = product.key()?;
        self.cuda.cuda_stream().context().bind_to_thread()?;
        let functions = &self.functions;
        let preference = self.preference(&key)?;
        let descriptors = Rc::new(Descriptors::new(functions, &key)?);
        let (mut found, mut count) = ([Candidate::default(); CANDIDATES], 0);
        // SAFETY: *Types*, *lifetime*; every object is live, and the pointers are to CANDIDATES results and one int.
        let code = unsafe {
            (functions.heuristic)(
                self.handle.raw,
                descriptors.product.raw,
                descriptors.first.raw,
                descriptors.second.raw,
                descriptors.result.raw,
                descriptors.result.raw,
                preference.raw,
                CANDIDATES as c_int,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        if code != NOT_SUPPORTED {
            functions.check("cublasLtMatmulAlgoGetHeuristic", code)?;
        }
        let count = usize::try_from(count).unwrap_or(0);
        let usable = |candidate: &&Candidate| {
            candidate.state == SUCCESS && candidate.workspace_bytes <= WORKSPACE_BYTES
        };
        let plans: Vec<Plan> = found
            .iter()
            .take(count)
            .filter(usable)
            .map(|candidate| Plan { key, descriptors: descriptors.clone(), algorithm: candidate.algorithm })
            .collect();
        if plans.is_empty() { Err(Error::NoAlgorithm(key.to_string())) } else { Ok(plans) }
    }

    fn preference(&self, key: &Key) -> Result<Owned> {
        let functions = &self.functions;
        let mut raw = ptr::null_mut();
        // SAFETY: *Types*, *lifetime*; the pointer is to one live pointer.
        let code = unsafe { (functions.pref_create)(&raw mut raw) };
        functions.check("cublasLtMatmulPreferenceCreate", code)?;
        let preference = Owned { raw, destroy: functions.pref_destroy };
        set(functions, functions.pref_set, &preference, PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES)?;
        let aligns = [
            (PREF_MIN_ALIGNMENT_A_BYTES, key.b.align),
            (PREF_MIN_ALIGNMENT_B_BYTES, key.a.align),
            (PREF_MIN_ALIGNMENT_C_BYTES, key.c.align),
            (PREF_MIN_ALIGNMENT_D_BYTES, key.c.align),
        ];
        for (attribute, align) in aligns {
            set(functions, functions.pref_set, &preference, attribute, &align)?;
        }
        Ok(preference)
    }

    /// Enqueues a product.
    ///
    /// # Errors
    /// [`Error::ForeignPlan`] when the plan is one of other products, [`Error::Lt`].
    pub(crate) fn run<T: Element>(&self, plan: &Plan, product: &mut Product<'_, T>) -> Result<()> {
        let key = product.key()?;
        let ours = |place: Place| place.device == self.cuda.device() && place.stream == self.cuda.stream();
        if key != plan.key || !product.places().into_iter().all(ours) {
            return Err(Error::ForeignPlan(key.to_string()));
        }
        let stream = self.cuda.cuda_stream();
        stream.context().bind_to_thread()?;
        let descriptors = &plan.descriptors;
        let (alpha, beta) = (1f32, if key.add { 1f32 } else { 0f32 });
        let [a, b] = [product.a.0, product.b.0].map(|view| view.ptr().address() as *const c_void);
        let c = product.c.ptr().address() as *mut c_void;
        // SAFETY: *Types*, *lifetime*; every object is live, and describes these operands: the plan's key is theirs.
        // *Checked operands*. The scalars are live and f32, as the descriptor says, in host memory, where it looks for
        // them. The algorithm came from this library for this key, and takes no more workspace than there is, which is
        // this value's alone and used in stream order.
        let code = unsafe {
            (self.functions.matmul)(
                self.handle.raw,
                descriptors.product.raw,
                (&raw const alpha).cast(),
                b,
                descriptors.first.raw,
                a,
                descriptors.second.raw,
                (&raw const beta).cast(),
                c,
                descriptors.result.raw,
                c,
                descriptors.result.raw,
                &raw const plan.algorithm,
                self.workspace.view().ptr().address() as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        };
        self.functions.check("cublasLtMatmul", code)
    }
}

/// Where the library is looked for: as the user says; beside cuBLAS, which needs the same one; by its name.
fn candidates(named: Option<OsString>, cublas: &Path, major: u32) -> Vec<PathBuf> {
    let name =
        if cfg!(windows) { format!("cublasLt64_{major}.dll") } else { format!("libcublasLt.so.{major}") };
    named.map(PathBuf::from).into_iter().chain([cublas.with_file_name(&name), PathBuf::from(name)]).collect()
}

fn load(candidates: &[PathBuf]) -> Result<(Library, PathBuf)> {
    let mut tried = Vec::new();
    for path in candidates {
        // SAFETY: *Provenance*.
        match unsafe { Library::new(path) } {
            Ok(library) => return Ok((library, path.clone())),
            Err(reason) => tried.push(format!("{} ({reason})", path.display())),
        }
    }
    Err(Error::Library(format!("it could not be opened: tried {}", tried.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structs_are_as_wide_as_those_of_the_header() {
        assert_eq!((size_of::<Algorithm>(), size_of::<Candidate>()), (64, 96));
        assert_eq!(mem::offset_of!(Candidate, state), 72);
    }

    #[cfg(not(windows))]
    #[test]
    fn the_library_is_looked_for_beside_cublas() {
        let cublas = Path::new("/opt/cuda/lib64/libcublas.so.13.1.0.3");
        let paths = candidates(Some("/mine/lt.so".into()), cublas, 13);
        let expected = ["/mine/lt.so", "/opt/cuda/lib64/libcublasLt.so.13", "libcublasLt.so.13"];
        assert_eq!(paths, expected.map(PathBuf::from));
        assert_eq!(candidates(None, Path::new("libcublas.so.12"), 12).len(), 2);
    }

    #[test]
    fn a_missing_library_is_an_error_that_says_where_it_was_looked_for() {
        let message =
            load(&[PathBuf::from("/no-such-folder/libcublasLt.so.13")]).err().map(|e| e.to_string());
        assert!(message.is_some_and(|message| message.contains("/no-such-folder")), "the path is missing");
    }
}
