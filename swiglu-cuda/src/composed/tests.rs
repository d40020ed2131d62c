//! What the route says that it will do. That it does so is tested on a GPU.

use swiglu_core::{Options, Precision};

use super::*;

const DIMS: Dims = Dims { batch: 100, in_features: 40, hidden: 33 };

fn problem(pass: Pass, dtype: Dtype, orientation: Orientation, options: Options) -> Problem {
    Problem::dense(pass, dtype, DIMS, orientation, options)
}

fn plan(problem: &Problem) -> Plan {
    describe("test".to_owned(), problem, &Facts::H100).unwrap()
}

#[test]
fn forward_is_two_products_and_a_gate() {
    let save = problem(Pass::Forward { save: true }, Dtype::F32, Orientation::OutIn, Options::new());
    let kept = plan(&save);
    assert_eq!(
        kept.launches,
        [
            "cublas-f32-nt: gate projection",
            "cublas-f32-nt: up projection",
            "gate-f32: swiglu of both projections"
        ]
    );
    assert_eq!(kept.workspace_bytes, 0);
    assert_eq!(kept.notes, ["cuBLAS has another 33554432 bytes, allocated once for each handle"]);

    let mut own = problem(Pass::Forward { save: false }, Dtype::Bf16, Orientation::InOut, Options::new());
    own.bias = true;
    let own = plan(&own);
    assert_eq!(
        own.launches,
        [
            "cublas-bf16-nn: gate projection",
            "cublas-bf16-nn: up projection",
            "add-bias-bf16: bias of both",
            "gate-bf16: swiglu of both projections"
        ]
    );
    // 66 columns in rows of 72, for whole vectors of 8.
    assert_eq!(own.workspace_bytes, (100 * 72 * 2usize).next_multiple_of(128));
}

#[test]
fn backward_is_two_products_for_each_gradient() {
    let kind = |dtype| Some(GradientKind { dtype, add: false });
    let pass = |saved| Pass::Backward {
        saved,
        dx: kind(Dtype::F16),
        dwf: kind(Dtype::F32),
        dbias: kind(Dtype::F32),
    };
    let saved = plan(&problem(pass(true), Dtype::F16, Orientation::InOut, Options::new()));
    let gradients = [
        "gate-gradient-f16: pre-activations become dAB",
        "cublas-f16-nt: dX, from dG",
        "cublas-f16-nt: dX, from dU added",
        "cublas-f16-tn: gate half of dWf",
        "cublas-f16-tn: up half of dWf",
        "column-sums-f16: dbias",
        "column-sums-to-f32: dbias",
    ];
    assert_eq!(saved.launches, gradients);
    // Two chunks of rows.
    let sums = (2 * 66 * 4usize).next_multiple_of(128);
    assert_eq!(saved.workspace_bytes, sums);

    let again = plan(&problem(pass(false), Dtype::F16, Orientation::OutIn, Options::new()));
    assert_eq!(again.launches[..2], ["cublas-f16-nt: gate projection", "cublas-f16-nt: up projection"]);
    assert_eq!(again.launches[3], "cublas-f16-nn: dX, from dG");
    assert_eq!(again.launches.len(), 2 + gradients.len());
    assert_eq!(again.workspace_bytes, (100 * 72 * 2usize).next_multiple_of(128) + sums);

    let frozen = Pass::Backward { saved: true, dx: kind(Dtype::F16), dwf: None, dbias: None };
    let frozen = plan(&problem(frozen, Dtype::F16, Orientation::InOut, Options::new()));
    assert_eq!((frozen.launches.len(), frozen.workspace_bytes), (3, 0));
}

#[test]
fn options_that_do_not_apply_are_noted() {
    let options = Options::new().precision(Precision::Tf32).tile(Tile::T64);
    let tf32 = plan(&problem(Pass::Forward { save: true }, Dtype::F32, Orientation::InOut, options));
    assert_eq!(tf32.launches[0], "cublas-tf32-nn: gate projection");
    assert_eq!(tf32.notes.last().map(String::as_str), Some("cuBLAS chooses its own tiles"));
}
