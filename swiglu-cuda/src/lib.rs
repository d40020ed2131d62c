//! Fused SwiGLU on NVIDIA GPUs, from compute capability 7.0 on.
//!
//! [`Cuda`] is a handle on one device and one stream. It implements the traits of [`swiglu_core`]: the op itself, and
//! `Dense`, what a training step needs around it.
//!
//! ```
//! use swiglu_core::{Backend, Options, Orientation, SwiGLU, Weights};
//! use swiglu_cuda::Cuda;
//!
//! match Cuda::new(0) {
//!     Ok(cuda) => {
//!         let (x, wf) = (cuda.zeros::<f32>(8, 64)?, cuda.zeros::<f32>(64, 256)?);
//!         let z = cuda.forward(x.view(), Weights::packed(wf.view(), Orientation::InOut)?, Options::new())?;
//!         assert_eq!(cuda.download(&z)?.shape(), (8, 128));
//!     }
//!     Err(reason) => println!("no CUDA here: {reason}"),
//! }
//! # Ok::<(), swiglu_core::Error>(())
//! ```
//!
//! # Kernels
//!
//! CUDA C++ without headers, in this crate, compiled by NVRTC for the device's own architecture when a call first needs
//! it, and kept on disk (`SWIGLU_CUDA_CACHE`). [`Family`] lists the kinds; the plan of a problem
//! ([`SwiGLU::plan`](swiglu_core::SwiGLU::plan)) names what runs.
//!
//! f32 stays f32 ([`Precision::Strict`](swiglu_core::Precision)): products on the ordinary cores, or, on Hopper and where
//! that takes less time, products on tensor cores of elements in three parts of bf16, which are at least as exact as a chain
//! of multiply-adds. Small products make the parts on the way ([`Family::Sliced`]), of any element; an infinity, a NaN or an
//! overflow gives what multiply-adds give, in more time. Large ones have a pass before that makes them ([`Family::Sm90`]):
//! exact so for elements from 2^-126 to 3.39e38 (and sums up to a hundredth below the largest f32). There a smaller element
//! counts with an error of up to 2^-151 times the other factor; a larger one, or sum, may have as few as 8 bits right. The
//! parts take 6 bytes of workspace for each element of an operand; [`Cuda::with_family`] and [`Family::Simt`] do without
//! all that.
//!
//! TF32 ([`Precision::Tf32`](swiglu_core::Precision)) on Hopper rounds the operands of large products in a pass before,
//! into 4 bytes of workspace for each element; [`Family::Mma`] does without, at half the speed.
//!
//! `Route::Composed`, and the dense products of [`Cuda::with_cublas`], go through cuBLAS, which is looked for when such a
//! call first needs it: `SWIGLU_CUBLAS` names the library, else the usual names and toolkits are tried.
//!
//! # Tuning
//!
//! Shape and alignment choose a kernel by rules. [`Cuda::tune`] measures instead which of the kernels that give the same
//! bits is fastest for a shape, and keeps that on disk beside the compiled kernels; handles
//! [with tuning](Cuda::with_tuning) take it, and with [`Tuning::FirstUse`] measure what is not known yet. `SWIGLU_TUNE`
//! (`1`, `stored`, or `off`, which it is unset) says what new handles do.
//!
//! # Streams and graphs
//!
//! A call enqueues and returns. Matrices belong to the stream of their handle, and one of another stream is refused. A
//! fault of the device surfaces later, and stays: [`CudaError::ContextPoisoned`]. [`Cuda::capture`] makes a [`Graph`] of
//! calls that have run once.
//!
//! # Building and running without CUDA
//!
//! Nothing of CUDA is needed to build: the libraries are looked for at run time. Where they are missing or broken the
//! answer is an error value; no function here panics. [`preflight`] says what is there and what is missing, [`probe`]
//! lists the devices, [`Search`] says where the libraries are looked for. A library, once opened, stays loaded until the
//! process ends: the driver starts threads and registers exit handlers, so it cannot be unloaded safely.
//!
//! [`preflight`]'s `Ok` means that driver and NVRTC were opened, hold every function that is needed and suit the device.
//! It does not mean that a kernel was compiled or launched: a device that is out of memory or held exclusively by another
//! process still passes.
#![deny(unsafe_code)]

mod arena;
mod backend;
mod cache;
mod capture;
mod compile;
mod composed;
#[allow(unsafe_code, reason = "calls into cuBLAS; everything above it is safe")]
mod cublas;
mod decode;
mod dense;
mod device;
#[allow(unsafe_code, reason = "calls into the driver library; everything above it is safe")]
mod driver;
mod error;
mod forming;
mod gemm;
mod health;
mod hopper;
mod kernel;
#[allow(unsafe_code, reason = "calls into the driver; everything above it is safe")]
mod launch;
#[allow(
    unsafe_code,
    reason = "opens the CUDA libraries; everything above the files that call into them is safe"
)]
mod loader;
mod memory;
mod notes;
#[allow(unsafe_code, reason = "calls into NVRTC; everything above it is safe")]
mod nvrtc;
mod params;
mod parking;
mod passes;
mod plan;
mod preflight;
mod queue;
mod realign;
mod search;
#[allow(unsafe_code, reason = "page-locked memory; everything above it is safe")]
mod staging;
mod tune;
mod unavailable;

pub use backend::{CacheUse, Cuda};
pub use capture::Graph;
pub use compile::CompileError;
pub use cublas::CublasInfo;
pub use cudarc;
pub use error::CudaError;
pub use gemm::Family;
pub use loader::Search;
pub use memory::{Block, CudaMemory, CudaPtr};
pub use preflight::{ComputeCapability, CudaVersion, GpuInfo, Library, Preflight, preflight, probe};
pub use tune::{TuneReport, TunedCandidate, TunedProduct, Tuning, TuningUse};
pub use unavailable::Unavailable;
