//! Safetensors checkpoints into the weights of fused SwiGLU, and back.
//!
//! [`Checkpoint::open`] reads the headers of a file, of the shards of an index, or of a folder that holds either, and
//! finds the MLPs by the names of their tensors. [`Mlp::load`] reads one as it lies in the file, without a transpose;
//! [`Edit::save`] writes weights back, and every byte that is not theirs as it was.
//!
//! ```
//! use swiglu_checkpoint::{Checkpoint, Family};
//! use swiglu_core::{Backend, Orientation, SwiGLU};
//! use swiglu_cpu::Cpu;
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("model.safetensors");
//! # let (narrow, wide) = (vec![0u8; 24 * 16 * 4], vec![0u8; 16 * 24 * 4]);
//! # let view = |shape: [usize; 2], bytes| {
//! #     safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes)
//! # };
//! # let tensors = [
//! #     ("model.layers.0.mlp.gate_proj.weight", view([24, 16], &narrow)?),
//! #     ("model.layers.0.mlp.up_proj.weight", view([24, 16], &narrow)?),
//! #     ("model.layers.0.mlp.down_proj.weight", view([16, 24], &wide)?),
//! # ];
//! # safetensors::serialize_to_file(tensors, None, &path)?;
//! let checkpoint = Checkpoint::open(&path)?;
//! print!("{checkpoint}"); // every MLP, and what looks like one but cannot be used
//!
//! let mlp = checkpoint.mlp("model.layers.0.mlp")?;
//! assert_eq!((mlp.family(), mlp.orientation()), (Family::Llama, Orientation::OutIn));
//! let mut weights = mlp.load::<f32>()?;
//! let mut layer = weights.layer(&Cpu::new())?;
//! // .. train the layer ..
//! (weights.wf, weights.bias) = layer.save()?;
//!
//! let mut edit = checkpoint.edit();
//! edit.put("model.layers.0.mlp", &weights)?;
//! edit.save(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it finds
//!
//! | [`Family`] | names | in the file |
//! |---|---|---|
//! | `Llama` | `gate_proj.weight`, `up_proj.weight`; `down_proj.weight` | `[D, I]` each; `[O, D]` |
//! | `Phi3` | `gate_up_proj.weight`; `down_proj.weight` | `[2D, I]`, gate rows first; `[O, D]` |
//! | `Meta` | `w1.weight` (gate), `w3.weight` (up); `w2.weight` (down) | `[D, I]` each; `[O, D]` |
//! | `GptOss` | `gate_up_proj`, `gate_up_proj_bias`; `down_proj`, `down_proj_bias` | `[E, I, 2D]`, columns g0, u0, g1, ..; `[E, D, O]` |
//!
//! The first three may have biases (`.bias`); experts of their own (`experts.3.w1.weight`) are MLPs like any other. All
//! tensors of an MLP are F32, F16 or BF16. Whatever else has such names is listed by [`Checkpoint::problems`] with the
//! reason: a gate without an up projection, shapes that do not fit each other, quantised weights.
//!
//! # What names and shapes do not tell
//!
//! - **Which half is the gate.** In `gate_up_proj.weight` it is taken to be the first, as in Phi-3 and GLM-4. Both halves
//!   have the same shape, so a model that uses this name with the up half first is loaded with the two exchanged.
//! - **The gate function.** It stands in the model's `config.json`. Gemma has LLaMA's names, but GEGLU:
//!   [`MlpWeights::with_function`] with [`Gate::GegluTanh`](swiglu_core::Gate::GegluTanh).
//! - **Whether the columns of a stacked `gate_up_proj` alternate.** gpt-oss's do, and it has a bias; Llama 4's do not, and
//!   it has none. Without a bias it is a problem, not an MLP.
//!
//! # Hostile files
//!
//! The length of a header is checked against its file and a limit (100 MB) before anything is allocated. Names that are
//! there twice, tensors that overlap or leave holes, shapes that do not come to the bytes they have, files that end early
//! or late, and indices that name a missing tensor or a file outside of their folder are errors. Opening allocates at most
//! 8 times the bytes of the headers and 16 times those of the index; loading, no more than the tensors' bytes, twice that
//! where columns alternate, and twice where 16-bit elements are widened; either also a buffer of 64 KiB. No input panics.

#![forbid(unsafe_code)]

mod checkpoint;
mod error;
mod find;
mod header;
mod index;
mod load;
mod names;
mod problem;
mod save;
mod shard;
mod stored;

pub use checkpoint::{Checkpoint, Mlp};
pub use error::{Error, Result};
pub use load::MlpWeights;
pub use names::{Family, Packing};
pub use problem::{Problem, Reason};
pub use save::Edit;
pub use stored::Stored;
