//! The calls into cuBLAS. What makes them sound is said in `loader.rs`, and for device memory in `launch.rs`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::CudaSlice;
use swiglu_core::Result;

use crate::error::CudaError;
use crate::launch::{Stream, allocate};
use crate::loader::{Opened, functions, unsigned};
use crate::memory::CudaPtr;
use crate::{ComputeCapability, CudaVersion, Search};

use product::Arguments;
pub(crate) use product::{Product, ProductKind};

mod product;
#[cfg(test)]
mod tests;

// CUBLASWINAPI is stdcall on 32-bit Windows and the C convention elsewhere, which is what "system" means. Its enums
// are as wide as an int.
functions! { CublasFunctions, "system":
    property = "cublasGetProperty" (c_int, *mut c_int) -> c_int;
    create = "cublasCreate_v2" (*mut *mut c_void) -> c_int;
    destroy = "cublasDestroy_v2" (*mut c_void) -> c_int;
    set_stream = "cublasSetStream_v2" (*mut c_void, *mut c_void) -> c_int;
    set_workspace = "cublasSetWorkspace_v2" (*mut c_void, *mut c_void, usize) -> c_int;
    set_math_mode = "cublasSetMathMode" (*mut c_void, c_int) -> c_int;
    status_name = "cublasGetStatusName" (c_int) -> *const c_char;
    status_text = "cublasGetStatusString" (c_int) -> *const c_char;
}

// From CUDA 12.0 on.
functions! { WideGemm, "system":
    call = "cublasGemmEx_64" (
        *mut c_void, c_int, c_int, i64, i64, i64,
        *const c_void, *const c_void, c_int, i64, *const c_void, c_int, i64,
        *const c_void, *mut c_void, c_int, i64, c_int, c_int
    ) -> c_int;
}

functions! { NarrowGemm, "system":
    call = "cublasGemmEx" (
        *mut c_void, c_int, c_int, c_int, c_int, c_int,
        *const c_void, *const c_void, c_int, c_int, *const c_void, c_int, c_int,
        *const c_void, *mut c_void, c_int, c_int, c_int, c_int
    ) -> c_int;
}

/// `MAJOR_VERSION` and `MINOR_VERSION` of `libraryPropertyType`.
const MAJOR_VERSION: c_int = 0;
const MINOR_VERSION: c_int = 1;

/// `CUBLAS_DEFAULT_MATH`, with `CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION`: parts of a sum are added in f32,
/// not in the element type. Strict f32 needs no more than this: only another compute type or another mode allows
/// TF32.
const MATH_MODE: c_int = 16;

/// `CUBLAS_GEMM_DEFAULT`: cuBLAS chooses, by shape and type.
const GEMM_DEFAULT: c_int = -1;

/// The product with 64-bit numbers where the library has it.
enum Gemm {
    Wide(WideGemm),
    Narrow(NarrowGemm),
}

impl Gemm {
    fn resolve(library: &Opened) -> Result<Self, &'static str> {
        match WideGemm::resolve(library) {
            Ok(wide) => Ok(Self::Wide(wide)),
            Err(_) => NarrowGemm::resolve(library).map(Self::Narrow),
        }
    }
}

/// The cuBLAS that is used.
///
/// ```
/// if let Ok(cuda) = swiglu_cuda::Cuda::new(0) {
///     match cuda.cublas() {
///         Ok(info) => println!("{info}"),
///         Err(reason) => println!("{reason}"),
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CublasInfo {
    /// On Linux the file that was opened, links resolved; elsewhere the name it was asked for by.
    pub path: PathBuf,
    /// Its own version, which is not always that of the toolkit it comes with.
    pub version: CudaVersion,
}

impl fmt::Display for CublasInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuBLAS {} ({})", self.version, self.path.display())
    }
}

/// cuBLAS with all of its functions found.
pub(crate) struct Cublas {
    functions: CublasFunctions,
    gemm: Gemm,
    info: CublasInfo,
}

impl Cublas {
    pub(crate) fn open(search: &Search) -> Result<Self, CudaError> {
        let failed = |reason| Err(CudaError::Cublas { reason });
        let library = match Opened::cublas(search) {
            Ok(library) => library,
            Err(tried) => {
                return failed(format!(
                    "the library could not be opened (tried {}); install the CUDA toolkit or its cuBLAS package, or \
                     set SWIGLU_CUBLAS to the absolute path of the library",
                    tried.join(", ")
                ));
            }
        };
        let path = library.file_with("cublasCreate_v2");
        let found = CublasFunctions::resolve(&library)
            .and_then(|functions| Gemm::resolve(&library).map(|gemm| (functions, gemm)));
        let (functions, gemm) = match found {
            Ok(found) => found,
            Err(symbol) => {
                return failed(format!(
                    "the library {} has no function {symbol}: it is older than CUDA 11.4 or damaged; install a \
                     newer one, or set SWIGLU_CUBLAS to the absolute path of another",
                    path.display()
                ));
            }
        };
        let version = CudaVersion { major: 0, minor: 0 };
        let mut cublas = Self { functions, gemm, info: CublasInfo { path, version } };
        cublas.info.version =
            CudaVersion { major: cublas.property(MAJOR_VERSION)?, minor: cublas.property(MINOR_VERSION)? };
        Ok(cublas)
    }

    pub(crate) fn info(&self) -> &CublasInfo {
        &self.info
    }

    fn property(&self, which: c_int) -> Result<u32, CudaError> {
        let mut value = 0;
        // SAFETY: type and lifetime as in `loader.rs`; the pointer is to one live c_int.
        let code = unsafe { (self.functions.property)(which, &raw mut value) };
        self.check("cublasGetProperty", code).map(|()| unsigned(value))
    }

    fn check(&self, call: &str, code: c_int) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: type and lifetime as in `loader.rs`; every number is allowed.
        let (name, text) =
            unsafe { ((self.functions.status_name)(code), (self.functions.status_text)(code)) };
        let [name, text] = [name, text].map(|text| {
            if text.is_null() {
                return "a code without a name".to_owned();
            }
            // SAFETY: both functions return pointers to constant C strings in the library, which is never closed.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        });
        Err(CudaError::Cublas {
            reason: format!("{call} returned {name} ({code}): {text}; by {}", self.info),
        })
    }
}

/// A handle of cuBLAS, destroyed with this value.
struct Session {
    cublas: Arc<Cublas>,
    raw: *mut c_void,
}

// SAFETY: cuBLAS lets any thread use a handle, one at a time: a session is used through `&mut` alone.
unsafe impl Send for Session {}

impl Session {
    /// On the current context.
    fn new(cublas: Arc<Cublas>) -> Result<Self, CudaError> {
        let mut raw = ptr::null_mut();
        // SAFETY: type and lifetime as in `loader.rs`; the pointer is to one live handle.
        let code = unsafe { (cublas.functions.create)(&raw mut raw) };
        cublas.check("cublasCreate_v2", code)?;
        let session = Self { cublas, raw };
        // SAFETY: type and lifetime as in `loader.rs`; the handle is live, and the mode is one that cublas_api.h
        // names.
        let code = unsafe { (session.cublas.functions.set_math_mode)(session.raw, MATH_MODE) };
        session.cublas.check("cublasSetMathMode", code)?;
        Ok(session)
    }

    /// Sets the stream, and the memory that products may use besides their operands. cuBLAS then allocates nothing
    /// of its own, so that a product can be captured, and repeats its bits.
    ///
    /// # Safety
    /// - `stream` is one of the context that was current in [`Session::new`], and outlives the session.
    /// - `workspace` is the address of `bytes` bytes of that device, for the session alone, until what it enqueues
    ///   is done.
    unsafe fn attach(&mut self, stream: *mut c_void, workspace: u64, bytes: usize) -> Result<(), CudaError> {
        let functions = &self.cublas.functions;
        // SAFETY: type and lifetime as in `loader.rs`; the handle is live; the caller's promise on the stream.
        let code = unsafe { (functions.set_stream)(self.raw, stream) };
        self.cublas.check("cublasSetStream_v2", code)?;
        // After the stream: setting that takes cuBLAS back to a workspace of its own.
        // SAFETY: type and lifetime as in `loader.rs`; the handle is live; the caller's promise on the workspace.
        let code = unsafe { (functions.set_workspace)(self.raw, workspace as *mut c_void, bytes) };
        self.cublas.check("cublasSetWorkspace_v2", code)
    }

    /// Enqueues a product.
    ///
    /// # Safety
    /// - The context that was current in [`Session::new`] is current.
    /// - The operands are as the arguments say, on that device; nothing else touches the result, and nothing writes
    ///   the factors, until the product is done.
    unsafe fn multiply(&mut self, arguments: &Arguments) -> Result<(), CudaError> {
        let Arguments { transa, transb, m, n, k, a, b, c, lda, ldb, ldc, factors, ctype, beta, compute } =
            *arguments;
        let alpha = 1f32;
        let (alpha, beta) = ((&raw const alpha).cast::<c_void>(), (&raw const beta).cast::<c_void>());
        let (a, b, c) = (a as *const c_void, b as *const c_void, c as *mut c_void);
        // The two functions differ in the width of these numbers alone.
        macro_rules! gemm {
            ($gemm:ident, [$m:expr, $n:expr, $k:expr], [$lda:expr, $ldb:expr, $ldc:expr]) => {
                // SAFETY: type and lifetime as in `loader.rs`; the handle is live; the scalars are live and, as the
                // compute type says, f32 in host memory, where a new handle looks for them; the caller's promise on
                // the operands.
                unsafe {
                    ($gemm.call)(
                        self.raw, transa, transb, $m, $n, $k, alpha, a, factors, $lda, b, factors, $ldb, beta, c,
                        ctype, $ldc, compute, GEMM_DEFAULT,
                    )
                }
            };
        }
        match &self.cublas.gemm {
            Gemm::Wide(wide) => {
                let code = gemm!(wide, [m, n, k], [lda, ldb, ldc]);
                self.cublas.check("cublasGemmEx_64", code)
            }
            Gemm::Narrow(narrow) => {
                let [m, n, k] = self.narrow([m, n, k])?;
                let [lda, ldb, ldc] = self.narrow([lda, ldb, ldc])?;
                let code = gemm!(narrow, [m, n, k], [lda, ldb, ldc]);
                self.cublas.check("cublasGemmEx", code)
            }
        }
    }

    /// The same numbers, if they are of a product that a library without 64-bit numbers takes.
    fn narrow(&self, numbers: [i64; 3]) -> Result<[c_int; 3], CudaError> {
        let mut narrow = [0; 3];
        for (to, from) in narrow.iter_mut().zip(numbers) {
            *to = c_int::try_from(from).map_err(|_| {
                let reason = format!(
                    "{} takes dimensions and strides up to {}, and one is {from}; 12.0 is the first that takes more",
                    self.cublas.info,
                    c_int::MAX
                );
                CudaError::Cublas { reason }
            })?;
        }
        Ok(narrow)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: type and lifetime as in `loader.rs`; the handle is live, and nothing uses it after this. Its
        // answer is of no use: there is nothing else to try.
        unsafe { (self.cublas.functions.destroy)(self.raw) };
    }
}

/// What cuBLAS advises, by its documentation of `cublasSetWorkspace`: 32 MiB from Hopper on and 4 MiB before.
pub(crate) const fn workspace_bytes(capability: ComputeCapability) -> usize {
    if capability.major >= 9 { 32 << 20 } else { 4 << 20 }
}

/// cuBLAS on one stream.
pub(crate) struct Handle {
    session: ManuallyDrop<Session>,
    stream: Stream,
    /// Freed after the session is gone, on the stream that its products are enqueued on.
    _workspace: CudaSlice<u8>,
}

impl Handle {
    /// With a workspace of its own of so many bytes.
    pub(crate) fn new(cublas: Arc<Cublas>, stream: &Stream, bytes: usize) -> Result<Self> {
        // Makes the context current.
        let workspace = allocate(stream, bytes)?;
        let mut session = Session::new(cublas)?;
        let address = CudaPtr::of(&workspace).address();
        // SAFETY: the stream is of the context that is current, and lives as long as `stream`, which is dropped
        // after the session; the workspace has that many bytes, is used by nothing else, and is freed in stream
        // order.
        unsafe { session.attach(stream.raw().cu_stream().cast(), address, bytes) }?;
        Ok(Self { session: ManuallyDrop::new(session), stream: stream.clone(), _workspace: workspace })
    }

    /// Enqueues a product without an empty operand. The context must be current.
    pub(crate) fn multiply(&mut self, product: &Product) -> Result<()> {
        // SAFETY: *current context* and *checked operands*, as in `launch.rs`.
        unsafe { self.session.multiply(&Arguments::new(product)) }?;
        self.stream.launched(&product.kind)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Without its context there is nothing that cuBLAS could give back.
        if self.stream.bind().is_ok() {
            // SAFETY: it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.session) };
        }
    }
}
