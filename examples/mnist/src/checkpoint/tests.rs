//! Round trips, and each way in which a model file can be wrong.

use std::fs;

use super::*;

const HIDDEN: usize = 3;
const SHAPES: [[usize; 2]; 4] = [[PIXELS, 2 * HIDDEN], [1, 2 * HIDDEN], [HIDDEN, CLASSES], [1, CLASSES]];

/// Arrays of these shapes, with subnormal numbers and negative zeros among the elements.
fn arrays(shapes: [[usize; 2]; 4]) -> [Array2<f32>; 4] {
    let value = |i: usize| match i % 4 {
        0 => -0.0,
        1 => f32::from_bits(i as u32),
        2 => f32::MAX / i as f32,
        _ => -1.0 / i as f32,
    };
    shapes.map(|shape| Array2::from_shape_fn(shape, |(row, column)| value(row * shape[1] + column)))
}

fn build([wf, bias, head, head_bias]: [Array2<f32>; 4]) -> Result<Checkpoint, Problem> {
    Checkpoint::new(wf, bias, head, head_bias)
}

fn model() -> Checkpoint {
    build(arrays(SHAPES)).expect("shapes fit")
}

/// A file with these tensors of zeros.
fn file(tensors: &[(&str, Dtype, &[usize])]) -> Vec<u8> {
    let zeros = vec![0; 1 << 20];
    let views = tensors.iter().map(|&(name, dtype, shape)| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, TensorView::new(dtype, shape.to_vec(), &zeros[..bytes]).expect("the length fits"))
    });
    safetensors::serialize(views.collect::<Vec<_>>(), None).expect("names are few")
}

/// A legal file but for one tensor.
fn file_but_for(changed: usize, dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let mut tensors: Vec<(&str, Dtype, &[usize])> =
        NAMES.into_iter().zip(&SHAPES).map(|(name, shape)| (name, Dtype::F32, &shape[..])).collect();
    tensors[changed] = (NAMES[changed], dtype, shape);
    file(&tensors)
}

fn problem(bytes: &[u8]) -> Problem {
    Checkpoint::from_bytes(bytes).expect_err("the file is wrong")
}

#[test]
fn a_model_survives_saving_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    model().save(&path).expect("a temporary folder takes files");
    let loaded = Checkpoint::load(&path, Some(HIDDEN)).expect("what was saved").into_parts();
    for (name, (before, after)) in NAMES.into_iter().zip(arrays(SHAPES).iter().zip(&loaded)) {
        let bits = |values: &Array2<f32>| values.mapv(f32::to_bits);
        assert_eq!(bits(before), bits(after), "{name}");
    }
}

#[test]
fn the_order_in_memory_does_not_matter() {
    let [wf, bias, head, head_bias] = arrays(SHAPES);
    let transposed =
        Array2::from_shape_fn((2 * HIDDEN, PIXELS), |(row, column)| wf[[column, row]]).reversed_axes();
    let other = Checkpoint::new(transposed, bias, head, head_bias).expect("shapes fit");
    assert_eq!(other.to_bytes().expect("serializes"), model().to_bytes().expect("serializes"));
}

#[test]
fn another_hidden_width_than_asked_for_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    model().save(&path).expect("a temporary folder takes files");
    let error = Checkpoint::load(&path, Some(4)).expect_err("the model has 3");
    assert!(matches!(error.problem, Problem::Hidden { expected: 4, got: HIDDEN }), "{error}");
    assert!(error.to_string().contains("model.safetensors"), "the error names the file: {error}");
    assert_eq!(Checkpoint::load(&path, None).expect("any width").hidden(), HIDDEN, "hidden width");
}

#[test]
fn files_that_cannot_be_read_are_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for path in [folder.path().to_owned(), folder.path().join("none")] {
        let error = Checkpoint::load(&path, None).expect_err("not a file");
        assert!(matches!(error.problem, Problem::Read(_)), "{error}");
    }
}

#[test]
fn no_more_than_the_limit_is_read() {
    assert_eq!(read_limited(&[7; 5][..], 5).expect("within the limit"), [7; 5]);
    assert!(matches!(read_limited(io::repeat(0), 5), Err(Problem::TooLarge { limit: 5 })));
}

#[test]
fn other_formats_are_refused() {
    for bytes in [&b""[..], b"safetensors", b"\x08\0\0\0\0\0\0\0not json", &[0xff; 64]] {
        assert!(matches!(problem(bytes), Problem::Format(_)), "{bytes:?}");
    }
}

#[test]
fn cut_files_are_refused() {
    let whole = model().to_bytes().expect("serializes");
    for length in [0, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        assert!(matches!(problem(&whole[..length]), Problem::Format(_)), "{length} of {} bytes", whole.len());
    }
    let longer = [&whole[..], b"tail"].concat();
    assert!(matches!(problem(&longer), Problem::Format(_)), "bytes after the last tensor");
}

#[test]
fn each_tensor_is_required() {
    for missing in NAMES {
        let others: Vec<_> = NAMES.into_iter().filter(|name| *name != missing).collect();
        let bytes = file(&others.iter().map(|name| (*name, Dtype::F32, &[1, 1][..])).collect::<Vec<_>>());
        assert!(matches!(problem(&bytes), Problem::Missing(name) if name == missing), "{missing}");
    }
}

#[test]
fn unknown_tensors_are_refused() {
    let bytes = file(&[("down.weight", Dtype::F32, &[1, 1])]);
    assert!(matches!(problem(&bytes), Problem::Unknown(name) if name == "down.weight"));
}

#[test]
fn other_element_types_are_refused() {
    for (tensor, name) in NAMES.into_iter().enumerate() {
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::I32] {
            let found = problem(&file_but_for(tensor, dtype, &SHAPES[tensor]));
            assert!(
                matches!(found, Problem::Dtype { tensor, got } if tensor == name && got == dtype),
                "{found}"
            );
        }
    }
}

#[test]
fn shapes_fit_the_network_and_each_other() {
    let cases: [(usize, &[usize]); 12] = [
        (0, &[PIXELS + 1, 2 * HIDDEN]),
        (0, &[PIXELS, 2 * HIDDEN + 1]),
        (0, &[PIXELS, 0]),
        (0, &[PIXELS * 2 * HIDDEN]),
        (0, &[2, PIXELS, HIDDEN]),
        (1, &[1, HIDDEN]),
        (1, &[2 * HIDDEN]),
        (2, &[CLASSES, HIDDEN]),
        (2, &[HIDDEN + 1, CLASSES]),
        (2, &[]),
        (3, &[1, CLASSES + 1]),
        (3, &[CLASSES, 1]),
    ];
    for (changed, shape) in cases {
        let found = problem(&file_but_for(changed, Dtype::F32, shape));
        let right =
            matches!(&found, Problem::Shape { tensor, got, .. } if *tensor == NAMES[changed] && got == shape);
        assert!(right, "{} {shape:?}: {found}", NAMES[changed]);
    }
}

#[test]
fn elements_are_finite() {
    for (tensor, name) in NAMES.into_iter().enumerate() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut changed = arrays(SHAPES);
            changed[tensor][[0, 4]] = value;
            // As a file too: serialized past the check.
            let bytes = Checkpoint { tensors: changed.clone() }.to_bytes().expect("serializes");
            for found in [problem(&bytes), build(changed).expect_err("not finite")] {
                assert!(
                    matches!(found, Problem::NotFinite { tensor, index: 4, .. } if tensor == name),
                    "{found}"
                );
            }
        }
    }
}

#[test]
fn a_header_that_lies_about_sizes_is_refused() {
    for header in [
        r#"{"swiglu.wf":{"dtype":"F32","shape":[18446744073709551615,18446744073709551615],"data_offsets":[0,4]}}"#,
        r#"{"swiglu.wf":{"dtype":"F32","shape":[1,1],"data_offsets":[0,400]}}"#,
        r#"{"swiglu.wf":{"dtype":"F32","shape":[1,1],"data_offsets":[4,0]}}"#,
    ] {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
        assert!(matches!(problem(&bytes), Problem::Format(_)), "{header}");
    }
}

#[test]
fn an_existing_file_is_kept_when_saving_fails() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file");
    fs::write(&file, "kept").expect("a temporary folder takes files");
    assert!(model().save(&file.join("below")).is_err(), "below a file");
    assert_eq!(fs::read_to_string(&file).expect("is there"), "kept", "contents");
}
