//! The CUDA backend of fused SwiGLU. **At this version it only reports whether a GPU could be used.**
//!
//! There are no kernels here yet, so nothing in this crate computes on a GPU. What exists is the preflight that
//! the backend will start with: [`preflight`] looks for the NVIDIA driver library and for NVRTC, NVIDIA's run-time
//! compiler, asks the driver about one device, and returns either what it found or an [`Unavailable`] that says
//! what is missing and what to do about it. [`probe`] lists every device and needs the driver alone.
//!
//! ```
//! match swiglu_cuda::preflight(0) {
//!     Ok(found) => println!("{found}"),
//!     Err(reason) => println!("no CUDA here: {reason}"),
//! }
//! ```
//!
//! # What an `Ok` means
//!
//! - The driver library was opened, holds every function this crate needs, supports CUDA 12.0 or newer and
//!   initialised without an error.
//! - The device exists and has compute capability 7.0 or newer.
//! - NVRTC was opened, holds every function this crate needs, and lists an architecture whose code the device runs.
//!
//! It does not mean that a kernel was compiled or launched: a device that is out of memory or held exclusively by
//! another process still passes.
//!
//! # Building and running without CUDA
//!
//! Nothing of CUDA is needed to build: both libraries are looked for at run time. Where they are missing or broken
//! the answer is an error value; no function here panics. [`Search`] says where they are looked for. A library,
//! once opened, stays loaded until the process ends: the driver starts threads and registers exit handlers, so it
//! cannot be unloaded safely.
#![deny(unsafe_code)]

mod arena;
mod backend;
mod cache;
mod capture;
mod compile;
mod dense;
mod device;
#[allow(unsafe_code, reason = "calls into the driver library; everything above it is safe")]
mod driver;
mod error;
mod gemm;
mod health;
mod kernel;
#[allow(unsafe_code, reason = "calls into the driver; everything above it is safe")]
mod launch;
#[allow(
    unsafe_code,
    reason = "opens the CUDA libraries; everything above the files that call into them is safe"
)]
mod loader;
mod memory;
#[allow(unsafe_code, reason = "calls into NVRTC; everything above it is safe")]
mod nvrtc;
mod params;
mod parking;
mod passes;
mod plan;
mod preflight;
mod queue;
mod search;
#[allow(unsafe_code, reason = "page-locked memory; everything above it is safe")]
mod staging;
mod unavailable;

pub use backend::{CacheUse, Cuda};
pub use capture::Graph;
pub use compile::CompileError;
pub use cudarc;
pub use error::CudaError;
pub use gemm::Family;
pub use loader::Search;
pub use memory::{Block, CudaMemory, CudaPtr};
pub use preflight::{ComputeCapability, CudaVersion, GpuInfo, Library, Preflight, preflight, probe};
pub use unavailable::Unavailable;
