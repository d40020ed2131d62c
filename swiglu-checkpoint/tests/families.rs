//! Every family of names in every element type: what is found, what is loaded, and that saving gives the same bytes.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{D, E, I, O, Tensor, bytes_of, gpt_oss, llama, meta, phi3, tensor, write};
use safetensors::Dtype as FileDtype;
use swiglu_checkpoint::{Checkpoint, Family, MlpWeights, Packing, Stored};
use swiglu_core::{Gate, Matrix, Orientation, SwiGLU, bf16, f16, interleave_packed_columns};
use swiglu_cpu::Cpu;
use tempfile::TempDir;

/// A checkpoint of one file, with a tensor of another kind before and after those of the MLPs.
fn make(mut tensors: Vec<Tensor>) -> (TempDir, PathBuf) {
    tensors.insert(0, tensor("model.embed_tokens.weight", FileDtype::F16, &[4, 3]));
    tensors.push(tensor("model.steps", FileDtype::I64, &[1]));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    write(&path, &tensors);
    (folder, path)
}

fn open(path: &PathBuf) -> Checkpoint {
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(checkpoint.problems(), [], "nothing but MLPs");
    checkpoint
}

/// The bytes that the file gave for a tensor, from the list that made it.
fn source<'a>(tensors: &'a [Tensor], name: &str) -> &'a [u8] {
    &tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{name} is a tensor")).bytes
}

fn load<T: Stored>(checkpoint: &Checkpoint, name: &str) -> MlpWeights<T> {
    checkpoint.mlp(name).and_then(|mlp| mlp.load()).unwrap_or_else(|e| panic!("{e}"))
}

/// Loads every MLP, puts it back as it is, and compares the file that is saved with the one that was opened.
fn saves_the_same_bytes<T: Stored>(path: &PathBuf) {
    let checkpoint = open(path);
    let loaded: Vec<_> = checkpoint
        .mlps()
        .map(|mlp| (mlp.name(), mlp.load::<T>().unwrap_or_else(|e| panic!("{e}"))))
        .collect();
    let mut edit = checkpoint.edit();
    for (name, weights) in &loaded {
        edit.put(name, weights).unwrap_or_else(|e| panic!("{e}"));
    }
    let to = path.with_file_name("saved.safetensors");
    edit.save(&to).unwrap_or_else(|e| panic!("{e}"));
    assert!(fs::read(path).expect("source") == fs::read(&to).expect("copy"), "the same bytes");
    checkpoint.edit().save(path).unwrap_or_else(|e| panic!("{e}"));
    assert!(fs::read(path).expect("source") == fs::read(&to).expect("copy"), "in place, with nothing put");
}

fn split_family<T: Stored>(dtype: FileDtype, bias: bool, numbers: bool) {
    let prefix = if numbers { "layers.1.feed_forward" } else { "model.layers.0.mlp" };
    let (tensors, [gate, up, down]) = if numbers {
        (meta(prefix, dtype, bias), ["w1", "w3", "w2"])
    } else {
        (llama(prefix, dtype, bias), ["gate_proj", "up_proj", "down_proj"])
    };
    let (_folder, path) = make(tensors.clone());
    let checkpoint = open(&path);
    let mlp = checkpoint.mlp(prefix).unwrap_or_else(|e| panic!("{e}"));
    let family = if numbers { Family::Meta } else { Family::Llama };
    assert_eq!((mlp.family(), mlp.packing()), (family, Packing::Split));
    assert_eq!((mlp.orientation(), mlp.dtype(), mlp.expert()), (Orientation::OutIn, T::DTYPE, None));
    assert_eq!((mlp.in_features(), mlp.hidden(), mlp.out_features()), (I, D, O));
    assert_eq!((mlp.has_bias(), mlp.has_down_bias()), (bias, bias));

    let weights = load::<T>(&checkpoint, prefix);
    let of = |module: &str, part: &str| source(&tensors, &format!("{prefix}.{module}.{part}"));
    assert_eq!(weights.wf.shape(), (2 * D, I));
    assert_eq!(
        bytes_of(&weights.wf),
        [of(gate, "weight"), of(up, "weight")].concat(),
        "gate rows, then up rows"
    );
    assert_eq!(weights.down.shape(), (O, D));
    assert_eq!(bytes_of(&weights.down), of(down, "weight"));
    assert_eq!(weights.bias.is_some(), bias);
    if let (Some(row), Some(down_row)) = (&weights.bias, &weights.down_bias) {
        assert_eq!(bytes_of(row), [of(gate, "bias"), of(up, "bias")].concat());
        assert_eq!(bytes_of(down_row), of(down, "bias"));
        assert_eq!((row.shape(), down_row.shape()), ((1, 2 * D), (1, O)));
    }
    let view = weights.weights().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((view.in_features(), view.hidden(), view.function()), (I, D, Gate::Swiglu));
    saves_the_same_bytes::<T>(&path);
}

fn packed_family<T: Stored>(dtype: FileDtype, bias: bool) {
    let prefix = "model.layers.31.mlp";
    let tensors = phi3(prefix, dtype, bias);
    let (_folder, path) = make(tensors.clone());
    let checkpoint = open(&path);
    let mlp = checkpoint.mlp(prefix).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((mlp.family(), mlp.packing()), (Family::Phi3, Packing::Halves));
    assert_eq!((mlp.in_features(), mlp.hidden(), mlp.out_features()), (I, D, O));

    let weights = load::<T>(&checkpoint, prefix);
    let of = |name: &str| source(&tensors, &format!("{prefix}.{name}")).to_vec();
    assert_eq!(bytes_of(&weights.wf), of("gate_up_proj.weight"));
    assert_eq!(bytes_of(&weights.down), of("down_proj.weight"));
    assert_eq!(weights.bias.as_ref().map(bytes_of), bias.then(|| of("gate_up_proj.bias")));
    assert_eq!(weights.down_bias.as_ref().map(bytes_of), bias.then(|| of("down_proj.bias")));
    saves_the_same_bytes::<T>(&path);
}

fn interleaved_family<T: Stored>(dtype: FileDtype) {
    let prefix = "model.layers.0.mlp.experts";
    let tensors = gpt_oss(prefix, dtype);
    let (_folder, path) = make(tensors.clone());
    let checkpoint = open(&path);
    assert_eq!(checkpoint.mlps().map(|mlp| mlp.expert()).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    let of = |name: &str, expert: usize| {
        let all = source(&tensors, &format!("{prefix}.{name}"));
        all[expert * all.len() / E..(expert + 1) * all.len() / E].to_vec()
    };
    for expert in 0..E {
        let mlp = checkpoint.mlp(&format!("{prefix}.{expert}")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((mlp.family(), mlp.packing()), (Family::GptOss, Packing::InterleavedColumns));
        assert_eq!((mlp.in_features(), mlp.hidden(), mlp.out_features()), (I, D, O));
        let weights = load::<T>(&checkpoint, &mlp.name());
        assert_eq!(weights.orientation(), Orientation::InOut);
        assert_eq!(weights.function(), Gate::SwigluClamped { alpha: 1.702, limit: 7.0 });
        assert_eq!((weights.wf.shape(), weights.down.shape()), ((I, 2 * D), (D, O)));

        let unit = size_of::<T>();
        let (rows, packed) = (of("gate_up_proj", expert), bytes_of(&weights.wf));
        for (row, col) in (0..I).flat_map(|row| (0..D).map(move |col| (row, col))) {
            let element = |of: &[u8], col: usize| of[(row * 2 * D + col) * unit..][..unit].to_vec();
            assert_eq!(element(&packed, col), element(&rows, 2 * col), "gate {row}, {col}");
            assert_eq!(element(&packed, D + col), element(&rows, 2 * col + 1), "up {row}, {col}");
        }
        let bias = weights.bias.as_ref().map(|bias| interleave_packed_columns(bias.view()));
        let bias = bias.transpose().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bias.as_ref().map(bytes_of), Some(of("gate_up_proj_bias", expert)));
        assert_eq!(bytes_of(&weights.down), of("down_proj", expert));
        assert_eq!(weights.down_bias.as_ref().map(bytes_of), Some(of("down_proj_bias", expert)));
    }
    saves_the_same_bytes::<T>(&path);
}

fn every_family<T: Stored>(dtype: FileDtype) {
    for bias in [false, true] {
        split_family::<T>(dtype, bias, false);
        split_family::<T>(dtype, bias, true);
        packed_family::<T>(dtype, bias);
    }
    interleaved_family::<T>(dtype);
}

#[test]
fn f32_is_loaded_and_saved_bit_for_bit() {
    every_family::<f32>(FileDtype::F32);
}

#[test]
fn f16_is_loaded_and_saved_bit_for_bit() {
    every_family::<f16>(FileDtype::F16);
}

#[test]
fn bf16_is_loaded_and_saved_bit_for_bit() {
    every_family::<bf16>(FileDtype::BF16);
}

#[test]
fn what_was_found_is_listed_in_the_order_of_layers() {
    let mut tensors = llama("model.layers.10.mlp", FileDtype::BF16, true);
    tensors.extend(llama("model.layers.2.mlp", FileDtype::F32, false));
    tensors.extend(meta("model.layers.1.block_sparse_moe.experts.4", FileDtype::F16, false));
    tensors.extend(gpt_oss("model.layers.0.mlp.experts", FileDtype::BF16));
    tensors.push(tensor("model.layers.3.mlp.gate_proj.weight", FileDtype::F32, &[D, I]));
    let (_folder, path) = make(tensors);
    let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<String> = checkpoint.mlps().map(|mlp| mlp.name()).collect();
    assert_eq!(
        names,
        [
            "model.layers.0.mlp.experts.0",
            "model.layers.0.mlp.experts.1",
            "model.layers.0.mlp.experts.2",
            "model.layers.1.block_sparse_moe.experts.4",
            "model.layers.2.mlp",
            "model.layers.10.mlp",
        ]
    );
    let lines = [
        r#""model.layers.0.mlp.experts" (gpt-oss experts): bf16, in_features 6, hidden 5, out_features 7, bias, down bias, 3 experts"#,
        r#""model.layers.1.block_sparse_moe.experts.4" (w1/w3/w2): f16, in_features 6, hidden 5, out_features 7"#,
        r#""model.layers.2.mlp" (gate_proj/up_proj/down_proj): f32, in_features 6, hidden 5, out_features 7"#,
        r#""model.layers.10.mlp" (gate_proj/up_proj/down_proj): bf16, in_features 6, hidden 5, out_features 7, bias, down bias"#,
        r#"unusable: "model.layers.3.mlp" (gate_proj/up_proj/down_proj): tensor "model.layers.3.mlp.up_proj.weight" is missing"#,
        "",
    ];
    assert_eq!(checkpoint.to_string(), lines.join("\n"));
    let first = checkpoint.mlps().next().map(|mlp| mlp.to_string());
    let expected = r#""model.layers.0.mlp.experts.0" (gpt-oss experts): bf16, in_features 6, hidden 5, out_features 7, bias, down bias"#;
    assert_eq!(first.as_deref(), Some(expected));
}

#[test]
fn widened_weights_are_the_values_of_the_file() {
    fn check<T: Stored>(dtype: FileDtype) {
        let (_folder, path) = make(llama("mlp", dtype, true));
        let checkpoint = open(&path);
        let narrow = load::<T>(&checkpoint, "mlp");
        let wide = checkpoint.mlp("mlp").and_then(|mlp| mlp.load_widened()).unwrap_or_else(|e| panic!("{e}"));
        let same = |narrow: &Matrix<T, _>, wide: &Matrix<f32, _>| {
            assert_eq!(narrow.shape(), wide.shape());
            for (narrow, wide) in narrow.view().array().iter().zip(wide.view().array()) {
                let expected = narrow.to_f32();
                assert!(expected.to_bits() == wide.to_bits() || expected.is_nan() && wide.is_nan());
            }
        };
        same(&narrow.wf, &wide.wf);
        same(&narrow.down, &wide.down);
        same(narrow.bias.as_ref().expect("bias"), wide.bias.as_ref().expect("bias"));
        same(narrow.down_bias.as_ref().expect("bias"), wide.down_bias.as_ref().expect("bias"));
    }
    check::<f32>(FileDtype::F32);
    check::<f16>(FileDtype::F16);
    check::<bf16>(FileDtype::BF16);
}

#[test]
fn a_file_of_pytorch_is_loaded_and_saved_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("pytorch.safetensors");
    let made = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pytorch.safetensors");
    fs::copy(made, &path).expect("made by scripts/make-llama-layer.py");
    let weights = load::<bf16>(&open(&path), "model.layers.0.mlp");
    let values =
        |matrix: &Matrix<bf16, _>| matrix.view().array().mapv(bf16::to_f32).into_raw_vec_and_offset().0;
    let count = |from: u8, to: u8| (from..to).map(f32::from).collect::<Vec<_>>();
    assert_eq!((weights.wf.shape(), values(&weights.wf)), ((6, 4), count(0, 24)));
    assert_eq!((weights.down.shape(), values(&weights.down)), ((2, 3), count(24, 30)));
    saves_the_same_bytes::<bf16>(&path);
}

/// Small numbers instead of random bits, for arithmetic.
fn tame(mut tensors: Vec<Tensor>) -> Vec<Tensor> {
    for tensor in &mut tensors {
        let values = tensor.bytes.chunks(4).map(|bytes| f32::from(bytes[0]) / 128.0 - 1.0);
        tensor.bytes = values.flat_map(f32::to_le_bytes).collect();
    }
    tensors
}

#[test]
fn a_loaded_layer_computes_what_its_weights_do() {
    for tensors in
        [llama("0", FileDtype::F32, true), phi3("0", FileDtype::F32, true), gpt_oss("", FileDtype::F32)]
    {
        // A prefix may be empty: names then start without a dot.
        let strip = |mut tensor: Tensor| {
            tensor.name = tensor.name.trim_start_matches('.').to_owned();
            tensor
        };
        let (_folder, path) = make(tame(tensors.into_iter().map(strip).collect()));
        let checkpoint = open(&path);
        let weights = load::<f32>(&checkpoint, "0");
        let cpu = Cpu::new();
        let x = Matrix::try_from(ramp(3, I)).unwrap_or_else(|e| panic!("{e}"));
        let layer = weights.layer(&cpu).unwrap_or_else(|e| panic!("{e}"));
        let z = layer.forward(&x).unwrap_or_else(|e| panic!("{e}"));
        let w = weights.weights().unwrap_or_else(|e| panic!("{e}"));
        let expected =
            cpu.forward(x.view(), w, swiglu_core::Options::new()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(z.view().array(), expected.view().array());

        let geglu = load::<f32>(&checkpoint, "0").with_function(Gate::GegluTanh);
        assert_eq!(geglu.weights().unwrap_or_else(|e| panic!("{e}")).function(), Gate::GegluTanh);
        let other = geglu.layer(&cpu).and_then(|layer| layer.forward(&x)).unwrap_or_else(|e| panic!("{e}"));
        assert_ne!(z.view().array(), other.view().array(), "another function");
    }
}

fn ramp(rows: usize, cols: usize) -> ndarray::Array2<f32> {
    ndarray::Array2::from_shape_fn((rows, cols), |(row, col)| (row * cols + col) as f32 / 7.0 - 1.0)
}

#[test]
fn what_was_put_is_in_the_file_and_the_rest_is_as_it_was() {
    let tensors: Vec<Tensor> = [
        tame(llama("a", FileDtype::F32, true)),
        tame(gpt_oss("b", FileDtype::F32)),
        tame(phi3("c", FileDtype::F32, false)),
    ]
    .concat();
    let (_folder, path) = make(tensors.clone());
    let checkpoint = open(&path);
    let (mut a, mut b) = (load::<f32>(&checkpoint, "a"), load::<f32>(&checkpoint, "b.1"));
    for weights in [&mut a, &mut b] {
        let negate = |matrix: &mut Matrix<f32, _>| matrix.view_mut().array_mut().mapv_inplace(|value| -value);
        negate(&mut weights.wf);
        negate(&mut weights.down);
        weights.bias.as_mut().map(negate);
        weights.down_bias.as_mut().map(negate);
    }
    let untouched = load::<f32>(&checkpoint, "a");
    let mut edit = checkpoint.edit();
    // The last of two counts.
    for (name, weights) in [("a", &untouched), ("b.1", &b), ("a", &a)] {
        edit.put(name, weights).unwrap_or_else(|e| panic!("{e}"));
    }
    edit.save(&path).unwrap_or_else(|e| panic!("{e}"));

    let negated = tensors.into_iter().map(|mut tensor| {
        let range = match &tensor.name[..1] {
            "a" => 0..tensor.bytes.len(),
            "b" => tensor.bytes.len() / E..2 * tensor.bytes.len() / E,
            _ => 0..0,
        };
        // The sign is the highest bit of the last byte.
        tensor.bytes[range].chunks_mut(4).for_each(|bytes| bytes[3] ^= 0x80);
        tensor
    });
    let (_other, expected) = make(negated.collect());
    let (saved, expected) = (fs::read(&path).expect("saved"), fs::read(expected).expect("expected"));
    let (saved, expected) = (safetensors_of(&saved), safetensors_of(&expected));
    assert_eq!(saved, expected);
}

/// Names and contents, as the safetensors crate reads them.
fn safetensors_of(bytes: &[u8]) -> std::collections::BTreeMap<String, Vec<u8>> {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap_or_else(|e| panic!("{e}"));
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

#[test]
fn headers_that_this_crate_would_not_write_are_kept_as_they_are() {
    let header = r#" {"z": {"shape": [1], "data_offsets": [240, 241], "dtype": "U8", "more": [1, {}]},
        "m.up_proj.weight":{"dtype":"F16","shape":[5,6],"data_offsets":[60,120]}, "__metadata__": {"b":"2","a":"1"},
        "m.down_proj.weight":{"dtype":"F16","shape":[12,5],"data_offsets":[120,240]},
        "m.gate_pro\u006a.weight":{"dtype":"F16","shape":[5,6],"data_offsets":[0,60]}}   "#;
    let data: Vec<u8> = (0..241).map(|byte| byte as u8).collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("odd.safetensors");
    fs::write(&path, common::with_header(header, &data)).expect("written");
    assert_eq!(load::<f16>(&open(&path), "m").down.shape(), (12, 5));
    saves_the_same_bytes::<f16>(&path);
}
