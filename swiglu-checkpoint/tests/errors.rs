//! Every problem and every error that is not about a hostile file: those are in `hostile.rs`.

mod common;

use std::fs;
use std::path::Path;

use common::{D, E, I, O, Tensor, gpt_oss, llama, meta, phi3, tensor, write};
use safetensors::Dtype as FileDtype;
use safetensors::Dtype::{BF16, F16, F32};
use swiglu_checkpoint::{Checkpoint, Error, Family, MlpWeights, Reason};
use swiglu_core::{Dtype, Matrix, Orientation, bf16};
use tempfile::TempDir;

fn make(tensors: &[Tensor]) -> (TempDir, Checkpoint) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("m.safetensors");
    write(&path, tensors);
    let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
    (folder, checkpoint)
}

/// The one problem of a file whose MLP "m" was changed by `change`.
fn problem(mut tensors: Vec<Tensor>, change: impl Fn(&mut Vec<Tensor>)) -> (Family, Reason) {
    change(&mut tensors);
    let (_folder, checkpoint) = make(&tensors);
    assert_eq!(checkpoint.mlps().count(), 0, "no MLP: {checkpoint}");
    let [problem] = checkpoint.problems() else { panic!("one problem: {checkpoint}") };
    assert_eq!(problem.prefix(), "m");
    let name = if problem.family() == Family::GptOss { "m.0" } else { "m" };
    match (checkpoint.mlp("m").map(|mlp| mlp.name()), checkpoint.mlp(name).map(|mlp| mlp.name())) {
        (Err(Error::Unusable { problem: same, .. }), Err(_)) => assert_eq!(*same, *problem),
        other => panic!("{other:?}"),
    }
    (problem.family(), problem.reason().clone())
}

fn without(name: &'static str) -> impl Fn(&mut Vec<Tensor>) {
    move |tensors| tensors.retain(|tensor| tensor.name != name)
}

fn with(name: &'static str, dtype: FileDtype, shape: &'static [usize]) -> impl Fn(&mut Vec<Tensor>) {
    move |tensors| {
        tensors.retain(|tensor| tensor.name != name);
        tensors.push(tensor(name, dtype, shape));
    }
}

fn name(tensor: &str) -> String {
    tensor.to_owned()
}

#[test]
fn a_missing_tensor_is_named() {
    let missing = |tensor: &str| Reason::Missing { tensor: name(tensor) };
    for gone in
        ["m.gate_proj.weight", "m.up_proj.weight", "m.down_proj.weight", "m.gate_proj.bias", "m.up_proj.bias"]
    {
        assert_eq!(problem(llama("m", F32, true), without(gone)), (Family::Llama, missing(gone)));
    }
    for gone in ["m.w1.weight", "m.w3.weight", "m.w2.weight", "m.w3.bias"] {
        assert_eq!(problem(meta("m", F16, true), without(gone)), (Family::Meta, missing(gone)));
    }
    let gone = "m.down_proj.weight";
    assert_eq!(problem(phi3("m", F32, false), without(gone)), (Family::Phi3, missing(gone)));
    for gone in ["m.gate_up_proj", "m.down_proj"] {
        assert_eq!(problem(gpt_oss("m", BF16), without(gone)), (Family::GptOss, missing(gone)));
    }
}

#[test]
fn halves_that_cannot_be_told_apart_are_refused() {
    let reason = problem(gpt_oss("m", BF16), without("m.gate_up_proj_bias"));
    assert_eq!(reason, (Family::GptOss, Reason::UnknownHalves { tensor: name("m.gate_up_proj") }));
    for beside in ["m.gate_proj.weight", "m.up_proj.bias"] {
        let reason = problem(phi3("m", F32, false), with(beside, F32, &[D, I]));
        assert_eq!(reason, (Family::Phi3, Reason::PackedAndSplit { tensor: name(beside) }));
    }
    let reason = problem(phi3("m", F32, false), with("m.gate_up_proj.weight", F32, &[9, I]));
    assert_eq!(reason.1, Reason::OddWidth { tensor: name("m.gate_up_proj.weight"), width: 9 });
    let reason = problem(gpt_oss("m", F32), with("m.gate_up_proj", F32, &[E, I, 9]));
    assert_eq!(reason.1, Reason::OddWidth { tensor: name("m.gate_up_proj"), width: 9 });
}

/// Two ways of naming under one prefix, and an MLP that is called what an expert is: neither can be meant by its name. One
/// that is called what no expert is has its own.
#[test]
fn mlps_of_one_name_are_refused() {
    let refused = |tensors: [Vec<Tensor>; 2]| {
        let (_folder, checkpoint) = make(&tensors.concat());
        let reasons: Vec<_> =
            checkpoint.problems().iter().map(|p| (p.family(), p.reason().clone())).collect();
        let left: Vec<_> = checkpoint.mlps().map(|mlp| mlp.name()).collect();
        assert!(left.iter().all(|name| checkpoint.mlp(name).is_ok()), "{checkpoint}");
        (reasons, left)
    };
    let shared = |family, other| (family, Reason::SharedName { other });
    let (reasons, left) = refused([llama("m", F32, false), meta("m", F32, false)]);
    assert_eq!(reasons.len(), 2);
    assert!(reasons.contains(&shared(Family::Llama, Family::Meta)), "{reasons:?}");
    assert!(reasons.contains(&shared(Family::Meta, Family::Llama)), "{reasons:?}");
    assert!(left.is_empty(), "{left:?}");
    let (reasons, left) = refused([gpt_oss("m", BF16), meta("m.1", BF16, false)]);
    assert!(reasons.contains(&shared(Family::GptOss, Family::Meta)), "{reasons:?}");
    assert!(reasons.contains(&shared(Family::Meta, Family::GptOss)), "{reasons:?}");
    assert!(left.is_empty(), "{left:?}");
    for other in [format!("m.{E}"), "m.01".to_owned(), "m.x".to_owned(), "m".to_owned()] {
        let (reasons, left) = refused([gpt_oss("m", BF16), meta(&other, BF16, false)]);
        assert_eq!((reasons, left.len()), (vec![], E + 1), "{other}");
    }
}

#[test]
fn shapes_that_do_not_fit_each_other_are_named_with_the_one_that_would() {
    let shape = |family, tensor: &'static str, got: &'static [usize], expected: &[usize]| {
        let tensors = match family {
            Family::Llama => llama("m", F32, true),
            Family::Meta => meta("m", F32, true),
            Family::Phi3 => phi3("m", F32, true),
            _ => gpt_oss("m", F32),
        };
        let extents = |shape: &[usize]| shape.iter().map(|&extent| extent as u64).collect();
        let reason = Reason::Shape { tensor: name(tensor), expected: extents(expected), got: extents(got) };
        assert_eq!(problem(tensors, with(tensor, F32, got)), (family, reason));
    };
    shape(Family::Llama, "m.up_proj.weight", &[D + 1, I], &[D, I]);
    shape(Family::Llama, "m.up_proj.weight", &[I, D], &[D, I]);
    shape(Family::Llama, "m.down_proj.weight", &[D, O], &[D, D]);
    shape(Family::Llama, "m.gate_proj.bias", &[D + 1], &[D]);
    shape(Family::Llama, "m.up_proj.bias", &[1, D], &[D]);
    shape(Family::Llama, "m.down_proj.bias", &[D], &[O]);
    shape(Family::Meta, "m.w3.weight", &[D, I + 1], &[D, I]);
    shape(Family::Meta, "m.w2.weight", &[O, I], &[O, D]);
    shape(Family::Phi3, "m.down_proj.weight", &[O, 2 * D], &[O, D]);
    shape(Family::Phi3, "m.gate_up_proj.bias", &[D], &[2 * D]);
    shape(Family::Phi3, "m.down_proj.bias", &[O + 1], &[O]);
    shape(Family::GptOss, "m.gate_up_proj_bias", &[E, D], &[E, 2 * D]);
    shape(Family::GptOss, "m.down_proj", &[E - 1, D, O], &[E, D, O]);
    shape(Family::GptOss, "m.down_proj", &[E, 2 * D, O], &[E, D, O]);
    shape(Family::GptOss, "m.down_proj_bias", &[E, D], &[E, O]);
}

#[test]
fn tensors_that_are_no_matrices_are_refused() {
    let dimensions = |tensor: &str, expected, got: &[u64]| Reason::Dimensions {
        tensor: name(tensor),
        expected,
        got: got.to_vec(),
    };
    let reason = problem(llama("m", F32, false), with("m.gate_proj.weight", F32, &[30]));
    assert_eq!(reason.1, dimensions("m.gate_proj.weight", 2, &[30]));
    let reason = problem(phi3("m", F32, false), with("m.gate_up_proj.weight", F32, &[1, 10, 6]));
    assert_eq!(reason.1, dimensions("m.gate_up_proj.weight", 2, &[1, 10, 6]));
    let reason = problem(gpt_oss("m", F32), with("m.gate_up_proj", F32, &[I, 2 * D]));
    assert_eq!(reason.1, dimensions("m.gate_up_proj", 3, &[6, 10]));
    let reason = problem(meta("m", F32, false), with("m.w2.weight", F32, &[0, D]));
    assert_eq!(reason.1, Reason::Empty { tensor: name("m.w2.weight"), got: vec![0, 5] });
}

#[test]
fn dtypes_that_are_not_computed_with_are_named() {
    for (dtype, got) in [(FileDtype::F64, "F64"), (FileDtype::F8_E4M3, "F8_E4M3"), (FileDtype::I8, "I8")] {
        let reason = problem(llama("m", F32, false), with("m.up_proj.weight", dtype, &[D, I]));
        assert_eq!(reason.1, Reason::Dtype { tensor: name("m.up_proj.weight"), got: name(got) });
    }
    let reason = problem(llama("m", BF16, true), with("m.down_proj.bias", F32, &[O]));
    let (expected, got) = (name("BF16"), name("F32"));
    assert_eq!(reason.1, Reason::MixedDtypes { tensor: name("m.down_proj.bias"), expected, got });
    for quantised in ["m.gate_proj.qweight", "m.up_proj.weight_packed"] {
        let reason = problem(llama("m", F16, false), with(quantised, FileDtype::I32, &[2, 3]));
        assert_eq!(reason, (Family::Llama, Reason::Quantised { tensor: name(quantised) }));
    }
    let reason = problem(gpt_oss("m", BF16), with("m.down_proj_blocks", FileDtype::U8, &[3, 2, 2, 16]));
    assert_eq!(reason, (Family::GptOss, Reason::Quantised { tensor: name("m.down_proj_blocks") }));
}

#[test]
fn messages_name_file_tensor_expected_and_got() {
    let (folder, checkpoint) = make(&[
        tensor("m.gate_proj.weight", F32, &[D, I]),
        tensor("m.up_proj.weight", F32, &[D, I]),
        tensor("m.down_proj.weight", F32, &[O, I]),
    ]);
    let path = folder.path().join("m.safetensors");
    let message = checkpoint.mlp("m").map_err(|error| error.to_string()).map(|mlp| mlp.name());
    let expected = format!(
        r#"{}: "m" (gate_proj/up_proj/down_proj): tensor "m.down_proj.weight": expected shape [7, 5], got [7, 6]"#,
        path.display()
    );
    assert_eq!(message, Err(expected));
}

#[test]
fn names_of_experts_are_exact() {
    let (_folder, checkpoint) = make(&gpt_oss("m", F32));
    assert_eq!(checkpoint.mlp("m.2").map(|mlp| mlp.expert()).ok(), Some(Some(2)));
    for wrong in ["m", "m.3", "m.02", "m.+2", "m.", "2", "", "m.2.", "m.99999999999999999999"] {
        let missing = checkpoint.mlp(wrong).map(|mlp| mlp.name());
        assert!(
            matches!(&missing, Err(Error::NoSuchMlp { mlp, .. }) if mlp == wrong),
            "{wrong}: {missing:?}"
        );
    }
}

#[test]
fn another_dtype_than_the_files_is_refused() {
    let (_folder, checkpoint) = make(&llama("m", BF16, false));
    let mlp = checkpoint.mlp("m").unwrap_or_else(|e| panic!("{e}"));
    let error = mlp.load::<f32>().map(drop);
    assert!(
        matches!(&error, Err(Error::Dtype { mlp, expected: Dtype::F32, got: Dtype::Bf16, .. }) if mlp == "m"),
        "{error:?}"
    );
    let weights = mlp.load_widened().unwrap_or_else(|e| panic!("{e}"));
    let error = checkpoint.edit().put("m", &weights);
    assert!(matches!(error, Err(Error::Dtype { expected: Dtype::F32, got: Dtype::Bf16, .. })), "{error:?}");
}

fn loaded(tensors: &[Tensor]) -> (TempDir, Checkpoint, MlpWeights<bf16>) {
    let (folder, checkpoint) = make(tensors);
    let weights = checkpoint.mlps().next().expect("an MLP").load().unwrap_or_else(|e| panic!("{e}"));
    (folder, checkpoint, weights)
}

#[test]
fn weights_that_do_not_fit_are_not_put() {
    let tensors = llama("m", BF16, true);
    let (_folder, checkpoint, _) = loaded(&tensors);
    let zeros = |rows, cols| Matrix::host_zeros(rows, cols).unwrap_or_else(|e| panic!("{e}"));
    let refused = |change: &dyn Fn(&mut MlpWeights<bf16>), expected: &str| {
        let (folder, _, mut weights) = loaded(&tensors);
        change(&mut weights);
        let mut edit = checkpoint.edit();
        let error = edit.put("m", &weights).map_err(|error| error.to_string());
        let start = format!("{}: ", checkpoint.path().display());
        assert_eq!(error.map_err(|error| error.replace(&start, "")), Err(expected.to_owned()));
        let copy = folder.path().join("copy");
        edit.save(&copy).unwrap_or_else(|e| panic!("{e}"));
        let source = fs::read(checkpoint.path()).expect("source");
        assert!(fs::read(copy).expect("copy") == source, "nothing was put");
    };
    refused(&|w| w.wf = zeros(2 * D, I + 1), "wf of \"m\": expected [10, 6], got [10, 7]");
    refused(&|w| w.down = zeros(D, O), "down of \"m\": expected [7, 5], got [5, 7]");
    refused(&|w| w.bias = Some(zeros(2 * D, 1)), "bias of \"m\": expected [1, 10], got [10, 1]");
    refused(&|w| w.down_bias = Some(zeros(1, D)), "down bias of \"m\": expected [1, 7], got [1, 5]");
    refused(&|w| w.bias = None, "bias of \"m\": missing");
    refused(&|w| w.down_bias = None, "down bias of \"m\": missing");

    let (_folder, other, mut weights) = loaded(&llama("m", BF16, false));
    weights.bias = Some(zeros(1, 2 * D));
    let error = other.edit().put("m", &weights);
    assert!(matches!(error, Err(Error::Bias { operand: "bias", expected: false, .. })), "{error:?}");
    let error = other.edit().put("n", &weights);
    assert!(matches!(error, Err(Error::NoSuchMlp { .. })), "{error:?}");

    let (_folder, _, turned) = loaded(&gpt_oss("m", BF16));
    let error = checkpoint.edit().put("m", &turned);
    let expected = (Orientation::OutIn, Orientation::InOut);
    assert!(
        matches!(error, Err(Error::Orientation { expected: e, got: g, .. }) if (e, g) == expected),
        "{error:?}"
    );
}

#[test]
fn exchanged_matrices_are_checked_before_they_are_used() {
    let (_folder, _, mut weights) = loaded(&llama("m", BF16, true));
    weights.wf = Matrix::host_zeros(2 * D + 1, I).unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(weights.weights(), Err(swiglu_core::Error::OddWidth { width: 11, .. })));
    weights.wf = Matrix::host_zeros(2 * D + 2, I).unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(weights.weights(), Err(swiglu_core::Error::Shape { operand: "bias", .. })));
}

#[test]
fn paths_that_are_no_checkpoints_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = Checkpoint::open(folder.path().join("m.safetensors")).map(drop);
    assert!(
        matches!(&missing, Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound)
    );
    let missing = Checkpoint::open(folder.path().join("m.index.json")).map(drop);
    assert!(matches!(missing, Err(Error::Io { .. })), "{missing:?}");
    let none = Checkpoint::open(folder.path()).map(drop);
    assert!(matches!(none, Err(Error::NoModel { .. })), "{none:?}");
    write(&folder.path().join("model.safetensors"), &[]);
    fs::write(folder.path().join("model.safetensors.index.json"), "{}").expect("written");
    let two = Checkpoint::open(folder.path()).map(drop);
    assert!(matches!(two, Err(Error::TwoModels { .. })), "{two:?}");
    let index = Checkpoint::open(folder.path().join("x.json")).map(drop);
    assert!(matches!(index, Err(Error::Io { .. })), "{index:?}");
    fs::create_dir(folder.path().join("shard")).expect("a folder");
    fs::write(folder.path().join("i.json"), r#"{"weight_map":{"a":"shard"}}"#).expect("written");
    let shard = Checkpoint::open(folder.path().join("i.json")).map(drop);
    assert!(matches!(shard, Err(Error::NotAFile { .. })), "{shard:?}");
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_read() {
    let endless = Checkpoint::open("/dev/zero").map(drop);
    assert!(matches!(endless, Err(Error::NotAFile { .. })), "{endless:?}");
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_an_error() {
    let (_folder, checkpoint) = make(&llama("m", F32, false));
    let mlp = checkpoint.mlp("m").unwrap_or_else(|e| panic!("{e}"));
    let file = fs::File::options().write(true).open(checkpoint.path()).expect("opened");
    file.set_len(400).expect("cut off");
    let error = mlp.load::<f32>().map(drop);
    let is_eof = |source: &std::io::Error| source.kind() == std::io::ErrorKind::UnexpectedEof;
    assert!(matches!(&error, Err(Error::Io { source, .. }) if is_eof(source)), "{error:?}");
    let to = checkpoint.path().with_file_name("copy");
    let error = checkpoint.edit().save(&to);
    assert!(matches!(&error, Err(Error::Io { source, .. }) if is_eof(source)), "{error:?}");
    assert!(!to.exists(), "nothing is left of a save that failed");
    let left = fs::read_dir(to.parent().expect("a folder")).expect("a folder").count();
    assert_eq!(left, 1, "not even a temporary file");
}

#[test]
fn a_place_that_cannot_be_written_is_an_error() {
    let (folder, checkpoint) = make(&llama("m", F32, false));
    for to in [folder.path().join("missing").join("m.safetensors"), folder.path().to_owned()] {
        let error = checkpoint.edit().save(&to);
        assert!(matches!(&error, Err(Error::Io { file, .. }) if *file == to), "{error:?}");
    }
    assert!(Path::new(folder.path()).is_dir(), "the folder is still there");
}
