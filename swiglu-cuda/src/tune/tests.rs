//! What competes, what the planner makes of it, and what the environment says, on devices that exist as numbers only.

use std::collections::HashSet;

use swiglu_core::{Access, Precision, Tile};

use super::*;
use crate::gemm::{Edge, Family, Gemm, Product};
use crate::kernel::Kernel;

const H100: Facts = Facts::H100;
const A100: Facts = Facts::A100;
const LARGE: Dims = Dims { batch: 8192, in_features: 4096, hidden: 14336 };

fn planner(facts: Facts, choices: Option<&dyn Choices>) -> Planner<'_> {
    Planner { facts, forced: None, choices }
}

fn passes(dtype: Dtype) -> [Pass; 3] {
    let kind = Some(GradientKind { dtype, add: false });
    [
        Pass::Forward { save: true },
        Pass::Backward { saved: true, dx: kind, dwf: kind, dbias: None },
        Pass::Backward { saved: false, dx: None, dwf: None, dbias: None },
    ]
}

fn problem(pass: Pass, dtype: Dtype, dims: Dims, options: Options) -> Problem {
    Problem::dense(pass, dtype, dims, Orientation::InOut, options)
}

/// What is asked for by every pass.
fn asked(facts: Facts, dtype: Dtype, dims: Dims, options: Options) -> Vec<Asked> {
    let told = Told::by(None);
    for pass in passes(dtype) {
        let planned = plan_of(&planner(facts, Some(&told)), &problem(pass, dtype, dims, options));
        planned.unwrap_or_else(|error| panic!("{error}"));
    }
    told.into_inner().into_iter().map(|(asked, _)| asked).collect()
}

/// A bucket is told to take one variant, whatever is asked.
#[derive(Debug)]
struct Always(Variant);

impl Choices for Always {
    fn choose(&self, _: &Asked) -> Option<Variant> {
        Some(self.0)
    }
}

/// Candidates differ in nothing that a sum depends on: only in the schedule, the cluster and the raster, the edge of a tile, or
/// the columns of a block. That these change no bits, the GPU tests check.
#[test]
fn candidates_sum_in_the_same_order() {
    let few = Dims { batch: 16, ..LARGE };
    let tf32 = Options::new().precision(Precision::Tf32);
    let mut seen = HashSet::new();
    for (facts, dtype, dims, options) in [
        (H100, Dtype::Bf16, LARGE, Options::new()),
        (H100, Dtype::Bf16, few, Options::new()),
        (H100, Dtype::F32, LARGE, Options::new()),
        (H100, Dtype::F32, LARGE, tf32),
        (A100, Dtype::F16, LARGE, Options::new()),
    ] {
        for asked in asked(facts, dtype, dims, options) {
            let candidates = model::candidates(&asked, &facts);
            assert_eq!(candidates.first().copied(), asked.kernel.variant(), "the analytic choice is first");
            assert!(candidates.len() > 1, "{asked:?}");
            assert_eq!(candidates.iter().collect::<HashSet<_>>().len(), candidates.len(), "{candidates:?}");
            for variant in candidates {
                seen.insert(variant);
                assert!(asked.kernel.competes(variant, &facts), "{variant} for {asked:?}");
                let other = asked.kernel.with(variant);
                assert_eq!(other.variant(), Some(variant));
                match (asked.kernel, other) {
                    (Kernel::Gemm(gemm), Kernel::Gemm(other)) => {
                        assert!(other.fits(&facts), "{other:?}");
                        let same = Gemm { edge: gemm.edge, hopper: gemm.hopper, ..other };
                        assert_eq!((same, other.hopper.boxes), (gemm, gemm.hopper.boxes));
                        assert!(gemm.family == Family::Sm90 || other.hopper == gemm.hopper, "{other:?}");
                        assert!(gemm.family != Family::Sm90 || other.edge == gemm.edge, "{other:?}");
                    }
                    (Kernel::Decode(decode), Kernel::Decode(other)) => {
                        assert_eq!(crate::decode::Decode { columns: decode.columns, ..other }, decode);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    assert_eq!(seen.len(), 8 + 4 + 3 + 2, "{seen:?}");
}

/// Gate functions have no kernel for blocks by themselves where C is not written in boxes.
#[test]
fn only_kernels_that_exist_compete() {
    let mut unaligned = problem(Pass::Forward { save: false }, Dtype::Bf16, LARGE, Options::new());
    unaligned.accesses.z = Access { align: 2, ..unaligned.accesses.z };
    let told = Told::by(None);
    assert!(planner(H100, Some(&told)).forward(&unaligned, false).is_ok());
    let asked = told.into_inner();
    let [(asked, None)] = asked.as_slice() else { panic!("{asked:?}") };
    for variant in model::candidates(asked, &H100) {
        assert!(matches!(variant, Variant::Hopper { pairs: true, .. }), "{variant}");
    }
    assert!(!asked.kernel.competes(Variant::Hopper { pairs: false, group: 8 }, &H100));
    assert!(!asked.kernel.competes(Variant::Hopper { pairs: true, group: 7 }, &H100));
    assert!(!asked.kernel.competes(Variant::Tile(Edge::E64), &H100));
    assert!(!asked.kernel.competes(Variant::Decode { columns: 64 }, &H100));
    assert_eq!(Kernel::MeanLoss.variants(&H100), []);
    // Operands of this one would need a pass of their own first.
    let Kernel::Gemm(gemm) = asked.kernel else { panic!("{asked:?}") };
    let f32 = Kernel::Gemm(Gemm { dtype: Dtype::F32, ..gemm });
    assert_eq!((f32.variant(), f32.variants(&H100)), (None, vec![]));
    assert!(!f32.competes(Variant::Hopper { pairs: true, group: 8 }, &H100));
}

#[test]
fn the_model_prefers_what_reads_less() {
    let products = asked(H100, Dtype::Bf16, LARGE, Options::new());
    let [forward, ..] = products.as_slice() else { panic!("{products:?}") };
    let candidates = model::candidates(forward, &H100);
    let place = |pairs, group| {
        let wanted = Variant::Hopper { pairs, group };
        candidates.iter().position(|variant| *variant == wanted).unwrap_or(usize::MAX)
    };
    let turns = |variant: &Variant| matches!(variant, Variant::Turns { .. });
    assert!(candidates[..4].iter().all(turns), "ends of tiles cost less: {candidates:?}");
    assert!(place(true, 16) < place(true, 32), "L2 holds 4096 rows of 8 KiB, and no 8192: {candidates:?}");
    assert!(place(false, 32) < place(false, 8), "columns are read less often: {candidates:?}");
    assert!(place(true, 4) < place(false, 32), "L2 supplies pairs: {candidates:?}");
}

#[test]
fn empty_products_have_nothing_to_choose() {
    let dims = Dims { batch: 4096, in_features: 0, hidden: 4096 };
    for asked in asked(H100, Dtype::Bf16, dims, Options::new()) {
        assert_eq!(model::candidates(&asked, &H100).len(), 1, "{asked:?}");
    }
}

#[test]
fn a_tile_that_was_asked_for_is_not_tuned() {
    for tile in [Tile::T32, Tile::T64, Tile::T128] {
        for dims in [LARGE, Dims { batch: 16, ..LARGE }] {
            assert_eq!(asked(H100, Dtype::Bf16, dims, Options::new().tile(tile)), [], "{tile:?}");
        }
    }
}

/// What was measured is what is planned, and the plan says so.
#[test]
fn the_planner_takes_what_was_measured() {
    let table = Table::new(H100);
    let forward = problem(Pass::Forward { save: true }, Dtype::Bf16, LARGE, Options::new());
    let notes = |choices| {
        let plan = planner(H100, choices).describe("test".into(), &forward);
        plan.unwrap_or_else(|error| panic!("{error}")).notes
    };
    assert_eq!(notes(Some(&table)), [""; 0]);
    let single = Variant::Hopper { pairs: false, group: 16 };
    let products = asked(H100, Dtype::Bf16, LARGE, Options::new());
    table.extend(products.iter().map(|asked| (Bucket::of(asked), single)));
    let plan = planner(H100, Some(&table)).forward(&forward, true).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(plan.kernel.variant(), Some(single));
    assert_eq!(
        notes(Some(&table)),
        [
            "tuned: turns-bf16-nn-192 by single blocks, 16 rows of tiles at a time in place of warpgroups in turns, \
          8 rows of tiles at a time"
        ]
    );
    assert_eq!(notes(None), [""; 0]);
    // As many kernels, each by its variant, and nothing else of the plan changes.
    for pass in passes(Dtype::Bf16) {
        let problem = problem(pass, Dtype::Bf16, LARGE, Options::new());
        let launches = |choices| {
            let plan = planner(H100, choices).describe("test".into(), &problem);
            plan.map(|plan| (plan.launches.len(), plan.workspace_bytes))
                .unwrap_or_else(|error| panic!("{error}"))
        };
        assert_eq!(launches(Some(&table)), launches(None));
    }
    let default = asked(H100, Dtype::Bf16, LARGE, Options::new())[0].kernel.variant();
    table.extend(default.map(|variant| (Bucket::of(&products[0]), variant)));
    assert!(notes(Some(&table))[0].ends_with("as without tuning"), "{:?}", notes(Some(&table)));
}

#[test]
fn what_cannot_be_launched_is_not_taken() {
    let table = Table::new(A100);
    let products = asked(A100, Dtype::Bf16, LARGE, Options::new());
    let hopper = Variant::Hopper { pairs: false, group: 16 };
    table.extend(products.iter().map(|asked| (Bucket::of(asked), hopper)));
    assert!(products.iter().all(|asked| table.choose(asked).is_none()));
    let small = Variant::Tile(Edge::E32);
    table.extend(products.iter().map(|asked| (Bucket::of(asked), small)));
    assert!(products.iter().all(|asked| table.choose(asked) == Some(small)));
    // A kernel of another family stays what it is.
    let forward = problem(Pass::Forward { save: true }, Dtype::Bf16, LARGE, Options::new());
    let planned = |choices| planner(A100, choices).forward(&forward, true).map(|plan| plan.kernel);
    let (Ok(tuned), Ok(plain)) = (planned(Some(&Always(hopper))), planned(None)) else {
        panic!("both are planned")
    };
    assert_eq!(tuned, plain);
}

#[test]
fn shapes_that_are_alike_share_a_choice() {
    let of = |batch, in_features, hidden| {
        let dims = Dims { batch, in_features, hidden };
        asked(H100, Dtype::Bf16, dims, Options::new()).iter().map(Bucket::of).collect::<Vec<_>>()
    };
    let large = of(8192, 4096, 14336);
    assert_eq!(large.iter().collect::<HashSet<_>>().len(), large.len(), "each product has its own");
    assert_eq!(of(8192 - 1000, 4096, 14336), large);
    assert_eq!(of(8192, 4096, 14336 - 2000), large);
    assert_ne!(of(8193, 4096, 14336), large);
    assert_ne!(of(7168, 4096, 14336), large);
    let saving = problem(Pass::Forward { save: true }, Dtype::Bf16, LARGE, Options::new());
    let bucket = |change: fn(&mut Problem)| {
        let mut problem = saving;
        change(&mut problem);
        let told = Told::by(None);
        assert!(plan_of(&planner(H100, Some(&told)), &problem).is_ok());
        told.into_inner().first().map(|(asked, _)| Bucket::of(asked))
    };
    let own = bucket(|_| ());
    assert_eq!(bucket(|problem| problem.gate = swiglu_core::Gate::Reglu), own, "gate functions cost alike");
    assert_ne!(bucket(|problem| problem.pass = Pass::Forward { save: false }), own);
    assert_ne!(bucket(|problem| problem.accesses.z.align = 2), own);
    assert_ne!(bucket(|problem| problem.dtype = Dtype::F16), own);
    assert_ne!(bucket(|problem| problem.orientation = Orientation::OutIn), own);
}

#[test]
fn missing_choices_are_noticed() {
    let table = Table::new(H100);
    let forward = problem(Pass::Forward { save: true }, Dtype::Bf16, LARGE, Options::new());
    let missing = || {
        let missing = Missing::of(&table);
        assert!(plan_of(&planner(H100, Some(&missing)), &forward).is_ok());
        missing.any()
    };
    assert!(missing());
    let products = asked(H100, Dtype::Bf16, LARGE, Options::new());
    let default = products[0].kernel.variant();
    table.extend(default.map(|variant| (Bucket::of(&products[0]), variant)));
    assert!(!missing());
}

#[test]
fn the_variable_turns_tuning_on() {
    for (value, expected) in [
        ("", Tuning::Off),
        ("0", Tuning::Off),
        ("off", Tuning::Off),
        ("stored", Tuning::Stored),
        ("1", Tuning::FirstUse),
        ("on", Tuning::FirstUse),
    ] {
        assert_eq!(Tuning::parse(value), Ok(expected), "{value:?}");
    }
    for value in ["yes", "ON", "2", " 1"] {
        let note = Tuning::parse(value).map_or_else(|note| note, |tuning| panic!("{value:?} is {tuning:?}"));
        assert!(note.contains("SWIGLU_TUNE") && note.contains(value), "{note}");
    }
}

#[test]
fn a_report_names_the_winner() {
    let candidate =
        |variant: &str, seconds, same_bits| TunedCandidate { variant: variant.into(), seconds, same_bits };
    let report = TuneReport {
        products: vec![TunedProduct {
            kernel: "sm90-bf16-nn-128".into(),
            shape: [8192, 14336, 4096],
            candidates: vec![candidate("one", 2.5e-3, true), candidate("two", 2e-3, false)],
            chosen: 0,
            speedup: 1.0,
        }],
    };
    let expected = "sm90-bf16-nn-128, 8192 x 14336 x 4096: the planner's choice takes 1.000 times the least\n  \
                    *    2.5000 ms  one\n       2.0000 ms  two, other bits\n";
    assert_eq!(report.to_string(), expected);
}

/// Products of `Dense` have their own buckets, and profit too.
#[test]
fn dense_products_are_asked_for() {
    use crate::plan::Matmul;
    let told = Told::by(None);
    let call = Matmul {
        dtype: Dtype::Bf16,
        out: Dtype::F32,
        a_trans: false,
        b_trans: true,
        shape: (4096, 4096),
        k: 4096,
        add: true,
        inputs: 16,
        outputs: 16,
    };
    planner(H100, Some(&told)).matmul(&call);
    let asked = told.into_inner();
    let [(asked, None)] = asked.as_slice() else { panic!("{asked:?}") };
    let Kernel::Gemm(gemm) = asked.kernel else { panic!("{asked:?}") };
    assert_eq!((gemm.product, asked.add, asked.depth), (Product::Store { out: Dtype::F32 }, true, 1));
}
