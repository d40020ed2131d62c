//! Fused SwiGLU on the CPU: tiled, vectorised, parallel with rayon.
//!
//! [`Cpu`] implements [`SwiGLU`](swiglu_core::SwiGLU) and [`Dense`](swiglu_core::Dense) for f32, f16 and bf16. It is
//! the reference and the fallback of the library, and meant to be the fastest way to run the op on a CPU.
//!
//! - Gate and up projection share one pass over x: each register tile holds both pre-activations of an output, and the
//!   gate function runs on it before anything is stored. Pre-activations reach memory only when they are kept.
//! - One loop nest serves forward, dX and dWf in both weight orientations; only where operands come from and what
//!   happens to the result differ. 16-bit operands are widened while they are packed, or bf16 is packed as it is in pairs
//!   along k ([`Isa::Avx512Bf16`]); no pass over a matrix transposes it.
//! - Each output element is one chain of multiply-adds, or of sums of pairs, in ascending k. So bits do not depend on the tile, on the number
//!   of threads, or on how a batch is split; they may depend on the instruction set ([`Isa`]).
//!
//! ```
//! use swiglu_core::{Backend, FusedSwiGLU};
//! use swiglu_cpu::Cpu;
//!
//! let cpu = Cpu::new();
//! let layer = FusedSwiGLU::<f32, _>::init(&cpu, 64, 128, 1)?;
//! let x = cpu.zeros(8, 64)?;
//! assert_eq!(layer.forward(&x)?.shape(), (8, 128));
//! # Ok::<(), swiglu_core::Error>(())
//! ```

#![deny(unsafe_code)]

mod arena;
mod backend;
mod composed;
mod dense;
mod dots;
mod gate;
mod gemm;
mod grid;
mod isa;
#[allow(unsafe_code, reason = "vector intrinsics and a foreign GEMM: the only rooms with unsafe code")]
mod kernels;
mod loss;
mod optimizer;
mod output;
mod pack;
mod passes;
mod plan;
mod rows;
mod stream;
mod word;

pub use backend::Cpu;
pub use isa::Isa;
