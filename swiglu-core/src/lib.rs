//! What fused SwiGLU is.
//!
//! `z = act(x . Wa) * (x . Wb)` with packed weights `Wf = [Wa | Wb]`, and its gradients, as one shape-checked trait:
//! [`SwiGLU`]. This crate owns geometry, checks and semantics; a backend (`swiglu-cpu`, `swiglu-cuda`) owns memory
//! and kernels. The facade crate `swiglu` joins them.
//!
//! | symbol | meaning | shape |
//! |---|---|---|
//! | B, I, D | batch, in_features, hidden | |
//! | x | input | `[B, I]` |
//! | wf | weights, gate half first | `[I, 2D]` or `[2D, I]` |
//! | g, u | pre-activations of gate and up | `[B, D]` each |
//! | z | output, h(g, u) | `[B, D]` |
//!
//! - Matrices: [`Matrix`], [`MatRef`], [`MatMut`] in a [`Memory`], with a checked [`Layout`].
//! - Parameters: [`Weights`], in both orientations, packed, split or interleaved; six [`Gate`]s.
//! - Calls: [`SwiGLU`], [`Upstream`], [`Gradients`], [`Saved`], [`Options`]; what they will do: [`Problem`], [`Plan`].
//! - Around the op: [`Dense`], and [`Unfused`], the op composed from it.
//! - Layers: [`FusedSwiGLU`], [`SwiGLUMlp`].
//!
//! Numerics: accumulation in `f32`, bias and gate function in `f32` on unrounded pre-activations, one rounding to the
//! element type for z, for each saved pre-activation and for each gradient.

#![deny(unsafe_code)]

mod backend;
mod checked;
mod dense;
mod element;
mod error;
mod footprint;
mod gate;
mod gradients;
#[allow(unsafe_code, reason = "host pointers become slices and ndarray views here, and only here")]
mod host;
mod layer;
mod layout;
mod memory;
mod mlp;
pub mod ops;
mod options;
mod problem;
mod saved;
mod swiglu;
mod unfused;
mod upstream;
mod weights;

pub use backend::{Backend, Replay};
pub use checked::Checked;
pub use dense::{AdamW, Dense, Gradient, LossTargets, Op, Optimizer, OptimizerMut};
pub use element::{Dtype, Element, Scalar};
pub use error::{Error, Result};
pub use gate::{Gate, GateFunction, GateVisitor};
pub use gradients::{Gradients, Halves, Out, Target};
#[doc(no_inline)]
pub use half::{bf16, f16};
pub use host::{Host, HostPtr};
pub use layer::{FusedSwiGLU, Parameter, WeightGrad};
pub use layout::Layout;
pub use memory::{DeviceId, MatMut, MatRef, Matrix, Memory, Place, StreamId};
pub use mlp::{MlpSaved, SwiGLUMlp};
pub use options::{Options, Precision, Route, Tile};
pub use problem::{Access, Accesses, Dims, GradientKind, Pass, Plan, Problem, UpstreamKind};
pub use saved::{Save, Saved};
pub use swiglu::SwiGLU;
pub use unfused::Unfused;
pub use upstream::{Down, Upstream};
pub use weights::{Orientation, Weights, interleave_packed_columns, pack_interleaved_columns};
