//! Fused SwiGLU for Rust: one call computes both projections and the gate, forward and backward, on a CPU or an NVIDIA
//! GPU.
//!
//! `z = act(x . Wa) * (x . Wb)` with packed weights `Wf = [Wa | Wb]`.
//!
//! ```
//! use swiglu::{Backend, Cpu, FusedSwiGLU};
//!
//! let cpu = Cpu::new();
//! let mut layer = FusedSwiGLU::<f32, _>::init(&cpu, 64, 128, 1)?; // [I, 2D] = [64, 256]
//! let x = cpu.zeros(8, 64)?;
//! let (z, mut saved) = layer.forward_train(&x)?;
//! let dz = cpu.zeros(8, 128)?;
//! layer.backward(&x, &dz, &mut saved, None)?;
//! assert_eq!(z.shape(), (8, 128));
//! # Ok::<(), swiglu::Error>(())
//! ```
//!
//! - Everything that is not tied to a device comes from [`swiglu_core`]; see there for the concepts.
//! - `swiglu_cpu::Cpu` is the CPU backend, `swiglu_cuda::Cuda` the CUDA backend.
//! - [`Device`] chooses at run time, for code written once over [`Complete`] backends.
//! - [`guide`] has a page on each of: which half is the gate, memory, numerics, performance, porting.
//!
//! # Crate features
//!
//! - `cpu` (default): the CPU backend. Without it `Device::Cpu` is unavailable.
//! - `checkpoint`: safetensors checkpoints into weights and back, as the module `checkpoint`.
//! - `cli`: the command line, `swiglu`.
//! - `cuda`: the CUDA backend. Builds without a CUDA toolkit; driver and compiler are looked for at run time.

#![forbid(unsafe_code)]

mod device;
pub mod guide;

pub use device::{Availability, Complete, Device, Job};
#[cfg(feature = "checkpoint")]
pub use swiglu_checkpoint as checkpoint;
pub use swiglu_core::*;
#[cfg(feature = "cpu")]
pub use swiglu_cpu::{Cpu, Isa};
#[cfg(feature = "cuda")]
pub use swiglu_cuda::{self as cuda, Cuda};

/// The README's examples, as tests.
#[cfg(all(doctest, feature = "cpu"))]
#[doc = include_str!("../README.md")]
struct Readme;
