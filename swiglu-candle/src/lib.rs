//! Fused SwiGLU on [candle](candle_core)'s tensors: one op in place of two products, a SiLU and a multiplication, with
//! gradients.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//!
//! let device = Device::Cpu;
//! let x = Tensor::randn(0f32, 1.0, (2, 5, 16), &device)?; // [.., I]
//! let w_gate = Var::randn(0f32, 0.1, (32, 16), &device)?; // [D, I], as candle's `Linear` has it
//! let w_up = Var::randn(0f32, 0.1, (32, 16), &device)?;
//!
//! let z = swiglu_candle::swiglu(&x, &w_gate, &w_up)?; // silu(x . w_gate^T) * (x . w_up^T)
//! assert_eq!(z.dims(), [2, 5, 32]);
//!
//! let gradients = z.sqr()?.sum_all()?.backward()?;
//! assert_eq!(gradients.get(&w_gate).map(|gradient| gradient.dims()), Some([32, 16].as_slice()));
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! [`SwiGlu`] is the op with a choice of gate function, packed weights and biases; [`Mlp`] is a drop-in for the MLP of
//! LLaMA over a `VarBuilder`.
//!
//! # What is computed
//!
//! That of `swiglu-core`: sums in f32, bias and gate function in f32 on unrounded sums, one rounding to the dtype of the
//! tensors for z and for each gradient. A graph of candle's own ops rounds between all of them, so bits differ.
//!
//! Gradients come for those of x, weights and bias that are variables or depend on some; weights that are frozen cost
//! nothing in a backward. (Where only one of `w_gate` and `w_up` is trained, both gradients are computed.) A second
//! backward of the same graph runs the forward again.
//!
//! # Tensors
//!
//! - dtypes f32, f16 and bf16, all operands in one.
//! - On the CPU, or, with the feature `cuda`, on an NVIDIA GPU: there on candle's own stream, so in order with candle's
//!   ops.
//! - x is read where it lies when its rows are contiguous and the same distance apart (a whole tensor, a `narrow`), and
//!   copied by `contiguous` otherwise. Likewise weights, where a transpose `w.t()` of contiguous weights `[I, D]` is read
//!   in place too. z is contiguous.
//! - Anything else (another dtype, a Metal device, operands of several dtypes or devices, shapes that do not fit) is an
//!   error that names the operand.
//!
//! # Crate features
//!
//! - `cuda`: tensors on NVIDIA GPUs. Builds candle's own CUDA kernels, so it needs a CUDA toolkit; the kernels of this
//!   library are compiled for the device at run time.

#![deny(unsafe_code)]

mod call;
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "views of candle's device memory")]
mod cuda;
mod given;
mod mlp;
mod node;
mod op;
mod operand;
mod storage;

use candle_core::{Result, Tensor};

pub use mlp::Mlp;
pub use op::SwiGlu;
#[doc(no_inline)]
pub use swiglu_core::{Gate, Options, Precision, Route, Save, Tile};

/// `silu(x . w_gate^T) * (x . w_up^T)`: x `[.., I]`, weights `[D, I]`, z `[.., D]`.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let w_gate = Tensor::new(&[[1f32, 0.5]], &Device::Cpu)?;
/// let w_up = Tensor::new(&[[3f32, -1.0]], &Device::Cpu)?;
/// let z = swiglu_candle::swiglu(&x, &w_gate, &w_up)?;
/// let silu = |g: f32| g / (1.0 + (-g).exp());
/// assert!((z.to_vec2::<f32>()?[0][0] - silu(2.0) * 1.0).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As [`SwiGlu::forward`].
pub fn swiglu(x: &Tensor, w_gate: &Tensor, w_up: &Tensor) -> Result<Tensor> {
    SwiGlu::new().forward(x, w_gate, w_up)
}
