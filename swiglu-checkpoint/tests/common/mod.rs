//! Checkpoints that tests make, by the safetensors crate itself.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::HashMap;
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use swiglu_checkpoint::Stored;
use swiglu_core::{Host, Matrix};

/// A tensor of random bits, NaNs included: what is saved must be what was there, not what it means.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> Tensor {
    let length = shape.iter().product::<usize>() * dtype.bitsize() / 8;
    let mut bytes = vec![0; length];
    let seed = name.bytes().fold(length as u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
}

/// What PyTorch programs write beside the tensors.
pub(crate) fn metadata() -> HashMap<String, String> {
    [("format", "pt"), ("who", "a test"), ("escaped", "\"\u{e9}\n")].map(|(k, v)| (k.into(), v.into())).into()
}

pub(crate) fn serialize(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        (&tensor.name, view.expect("bytes of this shape"))
    });
    safetensors::serialize(views, Some(metadata())).expect("names and sizes are sound")
}

pub(crate) fn write(path: &Path, tensors: &[Tensor]) {
    std::fs::write(path, serialize(tensors)).expect("the temporary folder can be written");
}

/// Bytes of a file that has this header, as the crate would not write it.
pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

pub(crate) fn bytes_of<T: Stored>(matrix: &Matrix<T, Host>) -> Vec<u8> {
    let mut bytes = Vec::new();
    T::encode(matrix.view().array().to_slice().expect("a matrix is dense"), &mut bytes);
    bytes
}

pub(crate) const I: usize = 6;
pub(crate) const D: usize = 5;
pub(crate) const O: usize = 7;
pub(crate) const E: usize = 3;

/// LLaMA's names under a prefix, with every bias or none.
pub(crate) fn llama(prefix: &str, dtype: Dtype, bias: bool) -> Vec<Tensor> {
    split(prefix, ["gate_proj", "up_proj", "down_proj"], dtype, bias)
}

/// Meta's and Mixtral's.
pub(crate) fn meta(prefix: &str, dtype: Dtype, bias: bool) -> Vec<Tensor> {
    split(prefix, ["w1", "w3", "w2"], dtype, bias)
}

fn split(prefix: &str, [gate, up, down]: [&str; 3], dtype: Dtype, bias: bool) -> Vec<Tensor> {
    let weight = |name: &str, shape: &[usize]| tensor(&format!("{prefix}.{name}.weight"), dtype, shape);
    let mut tensors = vec![weight(gate, &[D, I]), weight(up, &[D, I]), weight(down, &[O, D])];
    if bias {
        for (name, width) in [(gate, D), (up, D), (down, O)] {
            tensors.push(tensor(&format!("{prefix}.{name}.bias"), dtype, &[width]));
        }
    }
    tensors
}

/// Phi-3's.
pub(crate) fn phi3(prefix: &str, dtype: Dtype, bias: bool) -> Vec<Tensor> {
    let name = |name: &str| format!("{prefix}.{name}");
    let mut tensors = vec![
        tensor(&name("gate_up_proj.weight"), dtype, &[2 * D, I]),
        tensor(&name("down_proj.weight"), dtype, &[O, D]),
    ];
    if bias {
        tensors.push(tensor(&name("gate_up_proj.bias"), dtype, &[2 * D]));
        tensors.push(tensor(&name("down_proj.bias"), dtype, &[O]));
    }
    tensors
}

/// gpt-oss's.
pub(crate) fn gpt_oss(prefix: &str, dtype: Dtype) -> Vec<Tensor> {
    let name = |name: &str| format!("{prefix}.{name}");
    vec![
        tensor(&name("gate_up_proj"), dtype, &[E, I, 2 * D]),
        tensor(&name("gate_up_proj_bias"), dtype, &[E, 2 * D]),
        tensor(&name("down_proj"), dtype, &[E, D, O]),
        tensor(&name("down_proj_bias"), dtype, &[E, O]),
    ]
}
