//! What can go wrong on a device, as the source of core's [`Error::Device`](swiglu_core::Error::Device).

use cudarc::driver::sys::CUresult;
use swiglu_core::Error;

use crate::compile::CompileError;

/// A failure of the device, its driver or its compiler.
///
/// It comes inside of [`swiglu_core::Error::Device`]:
///
/// ```
/// use swiglu_core::Error;
/// use swiglu_cuda::CudaError;
///
/// fn poisoned(error: &Error) -> bool {
///     match error {
///         Error::Device(source) => matches!(source.downcast_ref(), Some(CudaError::ContextPoisoned { .. })),
///         _ => false,
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A kernel made an illegal access, trapped or hung. Its context cannot be used any more, in this or any other
    /// handle of this process on that device; CUDA allows nothing but to end the process.
    #[error(
        "the CUDA context is lost: {call} reported {name} ({code}), of itself or of an earlier call; every later call \
         on this device fails too; restart the process (SWIGLU_SYNC=1 names the call that did it)"
    )]
    ContextPoisoned {
        /// The call that reported it first.
        call: String,
        /// Its `CUresult`.
        code: u32,
        /// The name of that code.
        name: String,
    },

    /// The driver refused a call; later calls may succeed.
    #[error("{call} failed with {name} ({code})")]
    Driver {
        /// The call.
        call: String,
        /// Its `CUresult`.
        code: u32,
        /// The name of that code.
        name: String,
    },

    /// NVRTC could not compile a kernel.
    #[error(transparent)]
    Compile(#[from] CompileError),

    /// While a graph is captured nothing may be compiled, allocated or waited for: run the call once before.
    #[error("not warm: {what} while a graph is captured; run the same call once before capturing it")]
    NotWarm {
        /// What the call had to do.
        what: &'static str,
    },

    /// A capture did not come to a graph.
    #[error("the capture was not ended properly: {reason}")]
    Capture {
        /// Why.
        reason: &'static str,
    },

    /// cuBLAS could not be loaded, or answered with an error. Nothing needs it but `Route::Composed` and
    /// [`Cuda::with_cublas`](crate::Cuda::with_cublas): every other call goes on working.
    #[error("cuBLAS: {reason}")]
    Cublas {
        /// What was tried, or which call failed.
        reason: String,
    },

    /// A matrix has more tiles than a grid has blocks.
    #[error("{kernel}: {blocks} blocks are needed, a grid has at most {limit}")]
    GridTooLarge {
        /// The kernel.
        kernel: String,
        /// Blocks that the product takes.
        blocks: u64,
        /// Blocks that a launch takes.
        limit: u64,
    },
}

impl From<CudaError> for Error {
    fn from(error: CudaError) -> Self {
        Error::Device(Box::new(error))
    }
}

/// Codes after which a context is of no use, from the description of `CUresult` in cuda.h: each says that the process
/// must be terminated and relaunched.
pub(crate) fn is_sticky(code: CUresult) -> bool {
    matches!(
        code,
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
    )
}
