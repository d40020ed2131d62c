//! What is planned for which problem, on devices that exist as numbers only.

use swiglu_core::{Dims, Dtype, Gate, GradientKind, Options, Orientation, Pass, Precision, Problem, Tile};

use super::backward::BackwardPlan;
use super::*;
use crate::arena::Layout;
use crate::gemm::{Edge, Gemm, Hopper, Product, Schedule, Vectors};
use crate::kernel::Kernel;
use crate::params::Operand;

const H100: Facts = Facts::H100;
const A100: Facts = Facts::A100;
const TURING: Facts = Facts {
    capability: ComputeCapability { major: 7, minor: 5 },
    multiprocessors: 40,
    shared_bytes: 64 * 1024,
};

const LARGE: Dims = Dims { batch: 8192, in_features: 4096, hidden: 14336 };
const SAVE: Pass = Pass::Forward { save: true };

fn planner(facts: Facts, forced: Option<Family>) -> Planner<'static> {
    Planner { facts, forced, choices: None }
}

fn forward(dtype: Dtype, dims: Dims, options: Options) -> Problem {
    Problem::dense(SAVE, dtype, dims, Orientation::InOut, options)
}

/// With rows of every operand at multiples of this many bytes.
fn aligned(mut problem: Problem, bytes: u32) -> Problem {
    let a = &mut problem.accesses;
    let all =
        [&mut a.x, &mut a.gate, &mut a.up, &mut a.z, &mut a.pre, &mut a.dx, &mut a.dwf_gate, &mut a.dwf_up];
    for access in all {
        access.align = bytes;
    }
    problem
}

/// The kernel of a forward as it names itself, and what is said about it.
fn chosen(planner: Planner<'_>, problem: &Problem) -> (String, Vec<String>) {
    let plan = planner.describe("test".into(), problem).unwrap_or_else(|error| panic!("{error}"));
    let converts = |launch: &&String| launch.starts_with("split-f32") || launch.starts_with("round-tf32");
    let first = plan.launches.iter().take_while(converts).count();
    let [launch] = &plan.launches[first..] else { panic!("a forward is one launch besides these: {plan}") };
    (launch.split(':').next().unwrap_or_default().to_owned(), plan.notes)
}

fn gemm(planner: Planner<'_>, problem: &Problem) -> Gemm {
    match planner.forward(problem, true).map(|plan| plan.kernel) {
        Ok(Kernel::Gemm(gemm)) => gemm,
        other => panic!("{other:?}"),
    }
}

fn backward(saved: bool, out: Dtype) -> Pass {
    let kind = |dtype| Some(GradientKind { dtype, add: false });
    Pass::Backward { saved, dx: kind(Dtype::Bf16), dwf: kind(out), dbias: kind(out) }
}

#[test]
fn sixteen_bits_go_to_tensor_cores_and_f32_where_it_stays_f32() {
    for (dtype, precision, kernel) in [
        (Dtype::Bf16, Precision::Strict, ["mma-bf16-nn-128", "turns-bf16-nn-192"]),
        (Dtype::F16, Precision::Strict, ["mma-f16-nn-128", "turns-f16-nn-192"]),
        // In parts of bf16, which together are as exact.
        (Dtype::F32, Precision::Strict, ["simt-f32-nn-128", "sm90-f32-nn-128"]),
        // Rounded and transposed first.
        (Dtype::F32, Precision::Tf32, ["mma-tf32-nn-128", "sm90-tf32-nt-128"]),
        // A precision of f32 says nothing about others.
        (Dtype::Bf16, Precision::Tf32, ["mma-bf16-nn-128", "turns-bf16-nn-192"]),
    ] {
        let problem = forward(dtype, LARGE, Options::new().precision(precision));
        for (facts, kernel) in [A100, H100].into_iter().zip(kernel) {
            let expected = (kernel.to_owned(), vec![]);
            assert_eq!(chosen(planner(facts, None), &problem), expected, "{dtype} {precision:?}");
        }
    }
}

#[test]
fn what_tensor_cores_cannot_take_is_said() {
    let bf16 = forward(Dtype::Bf16, LARGE, Options::new());
    let (kernel, notes) = chosen(planner(TURING, None), &bf16);
    assert_eq!(kernel, "simt-bf16-nn-128");
    assert_eq!(notes, ["simt: mma needs compute capability 8.0"]);

    // Few rows are not worth a copy of the weights.
    let few = forward(Dtype::Bf16, Dims { batch: 8, ..LARGE }, Options::new().tile(Tile::T64));
    let (kernel, notes) = chosen(planner(H100, None), &aligned(few, 8));
    assert_eq!(kernel, "simt-bf16-nn-64");
    assert_eq!(notes, ["simt: mma needs rows that start at multiples of 16 bytes"]);

    // Strict f32 is what was asked for: nothing to say, unless mma was forced.
    let f32 = forward(Dtype::F32, LARGE, Options::new());
    assert_eq!(chosen(planner(H100, None), &f32).1, [""; 0]);
    let (kernel, notes) = chosen(planner(H100, Some(Family::Mma)), &f32);
    assert_eq!(kernel, "simt-f32-nn-128");
    assert!(notes.len() == 1 && notes[0].starts_with("simt in place of mma: f32"), "{notes:?}");
}

/// Where f32 runs as products of parts: on Hopper, from enough work on.
#[test]
fn f32_is_split_where_that_pays() {
    let kernel = |forced, dims, tile| {
        let problem = forward(Dtype::F32, dims, Options::new().tile(tile));
        // Alignment does not count: splitting reads any rows.
        chosen(planner(H100, forced), &aligned(problem, 4))
    };
    let dims = |batch, in_features, hidden| Dims { batch, in_features, hidden };
    for (shape, split) in [
        (dims(4096, 4096, 11008), true),
        // 0.76 and 1.25 ms, and 85 and 153 us.
        (dims(256, 4096, 11008), true),
        (dims(1024, 784, 2048), true),
        // Splitting the weights takes longer than what it saves.
        (dims(64, 4096, 14336), false),
        // Too little to sum, too few tiles, and too little of everything.
        (dims(4096, 32, 4096), false),
        (dims(256, 4096, 512), false),
        (dims(256, 256, 1024), false),
    ] {
        let (chosen, notes) = kernel(None, shape, Tile::Auto);
        assert_eq!((chosen.starts_with("sm90-f32-nn"), notes), (split, vec![]), "{shape:?}: {chosen}");
        assert!(kernel(Some(Family::Sm90), shape, Tile::Auto).0.starts_with("sm90-f32"), "{shape:?}");
        assert!(kernel(Some(Family::Simt), shape, Tile::Auto).0.starts_with("simt-f32"), "{shape:?}");
    }
    let (kernel, notes) = kernel(Some(Family::Sm90), LARGE, Tile::T64);
    assert_eq!(
        (kernel.as_str(), notes),
        ("simt-f32-nn-64", vec!["simt in place of sm90: sm90 has tiles of 128 rows".to_owned()])
    );
}

/// Each operand is split once, for the products that read it, and the workspace has room for 6 bytes of each element.
#[test]
fn what_a_backward_multiplies_is_split_once() {
    let dims = Dims { batch: 4096, in_features: 4096, hidden: 11008 };
    let kind = Some(GradientKind { dtype: Dtype::F32, add: false });
    let (x, half, dab) = (4096 * 4096, 4096 * 11008, 4096 * 11008);
    for (saved, dx, dwf, split, elements) in [
        (true, kind, kind, ["x + gate weights + up weights", "dG + dU"].as_slice(), x + 2 * half + 2 * dab),
        (true, kind, None, ["gate weights + up weights", "dG + dU"].as_slice(), 2 * half + 2 * dab),
        (true, None, kind, ["x", "dG + dU"].as_slice(), x + 2 * dab),
        (true, None, None, [].as_slice(), 0),
        (false, None, None, ["x + gate weights + up weights"].as_slice(), x + 2 * half),
    ] {
        let pass = Pass::Backward { saved, dx, dwf, dbias: None };
        let problem = Problem::dense(pass, Dtype::F32, dims, Orientation::InOut, Options::new());
        let described = planner(H100, None).describe("test".into(), &problem);
        let plan = described.unwrap_or_else(|error| panic!("{error}"));
        let name = |launch: &String| {
            let rest = launch.strip_prefix("split-f32: ")?;
            rest.strip_suffix(", in three parts of bf16").map(str::to_owned)
        };
        assert_eq!(plan.launches.iter().filter_map(name).collect::<Vec<_>>(), split, "{plan}");
        // Recomputed cotangents are in the workspace in f32 as well.
        let recomputed = if saved { 0 } else { 2 * dab * 4 };
        assert_eq!(plan.workspace_bytes, elements * 6 + recomputed, "{plan}");
        let products = plan.launches.iter().filter(|launch| launch.starts_with("sm90-f32")).count();
        assert_eq!(products, usize::from(!saved) + usize::from(dx.is_some()) + usize::from(dwf.is_some()));
    }
}

/// Where TF32 runs on Hopper's instructions: from enough work on to pay for rounding, of rows at any address.
#[test]
fn tf32_is_rounded_first_where_that_pays() {
    let kernel = |forced, dims, tile, bytes| {
        let options = Options::new().precision(Precision::Tf32).tile(tile);
        chosen(planner(H100, forced), &aligned(forward(Dtype::F32, dims, options), bytes))
    };
    let dims = |batch, in_features, hidden| Dims { batch, in_features, hidden };
    // Milliseconds with rounding, and by mma.
    for (shape, rounded) in [
        (dims(4096, 4096, 11008), true), // 2.25, 4.70
        (dims(512, 4096, 11008), true),  // 0.523, 0.547
        (dims(1024, 1024, 4096), true),  // 0.087, 0.107
        (dims(8192, 784, 512), true),    // 0.075, 0.083
        (dims(128, 4096, 11008), false), // 0.504, 0.215
        (dims(256, 4096, 11008), false), // 0.456, 0.363
        (dims(512, 1024, 4096), false),  // 0.065, 0.059
        (dims(1024, 784, 2048), true),   // 0.042, 0.042
        (dims(2048, 256, 1024), false),  // 0.022, 0.019
        (dims(512, 512, 1024), false),   // 0.027, 0.015
    ] {
        let (chosen, notes) = kernel(None, shape, Tile::Auto, 16);
        assert_eq!((chosen.starts_with("sm90-tf32-nt"), notes), (rounded, vec![]), "{shape:?}: {chosen}");
        assert!(kernel(Some(Family::Sm90), shape, Tile::Auto, 16).0.starts_with("sm90-tf32"), "{shape:?}");
        assert!(kernel(Some(Family::Mma), shape, Tile::Auto, 16).0.starts_with("mma-tf32"), "{shape:?}");
    }
    // One launch rounds both where none is transposed: 0.0234 and 0.0282, where along [I, 2D] it is 0.0276 and 0.0287.
    for (orientation, rounded) in [(Orientation::InOut, false), (Orientation::OutIn, true)] {
        let options = Options::new().precision(Precision::Tf32);
        let pass = Pass::Forward { save: false };
        let problem = Problem::dense(pass, Dtype::F32, dims(2048, 512, 1024), orientation, options);
        let (chosen, _) = chosen(planner(H100, None), &aligned(problem, 16));
        assert_eq!(chosen.starts_with("sm90-tf32"), rounded, "{orientation:?}: {chosen}");
    }
    assert_eq!(kernel(None, LARGE, Tile::Auto, 4), ("sm90-tf32-nt-128".to_owned(), vec![]));
    let (kernel, notes) = kernel(Some(Family::Sm90), LARGE, Tile::T64, 16);
    assert_eq!(
        (kernel.as_str(), notes),
        ("mma-tf32-nn-64", vec!["mma in place of sm90: sm90 has tiles of 128 rows".to_owned()])
    );
}

/// Each product rounds what it reads, contiguous along what it sums over, into room that it shares with the others.
#[test]
fn products_of_tf32_have_their_operands_rounded() {
    let dims = Dims { batch: 4096, in_features: 4096, hidden: 11008 };
    let kind = Some(GradientKind { dtype: Dtype::F32, add: false });
    let (x, half) = (4096 * 4096, 4096 * 11008);
    let options = Options::new().precision(Precision::Tf32);
    let launches = |orientation, bytes| {
        let pass = Pass::Backward { saved: false, dx: kind, dwf: kind, dbias: None };
        let problem = aligned(Problem::dense(pass, Dtype::F32, dims, orientation, options), bytes);
        let plan = planner(H100, None).describe("test".into(), &problem);
        let plan = plan.unwrap_or_else(|error| panic!("{error}"));
        if bytes == 16 {
            // dAB, and the operands of dX, of which there are most.
            assert_eq!(plan.workspace_bytes, (2 * half + 4 * half) * 4, "{plan}");
            assert!(x + 2 * half < 4 * half);
        }
        plan.launches
    };
    let turned = |name: &str| format!("round-tf32-t: {name}, rounded and transposed");
    let straight = |name: &str| format!("round-tf32: {name}, rounded");
    let product = |what: &str| format!("sm90-tf32-nt-128: {what}");
    let again = product("dAB from both projections");
    let in_out = [
        straight("x"),
        turned("gate weights + up weights"),
        again.clone(),
        straight("dG + dU + gate weights + up weights"),
        product("dX"),
        turned("x + dG + dU"),
        product("both halves of dWf"),
    ];
    assert_eq!(launches(Orientation::InOut, 16), in_out);
    // Nobody reads aligned copies.
    assert_eq!(launches(Orientation::InOut, 4), in_out);
    let out_in = [
        straight("x + gate weights + up weights"),
        again,
        straight("dG + dU"),
        turned("gate weights + up weights"),
        product("dX"),
        turned("dG + dU + x"),
        product("both halves of dWf"),
    ];
    assert_eq!(launches(Orientation::OutIn, 16), out_in);
}

/// Operands that tensor cores cannot read are copied, each by itself. Outputs may be anywhere.
#[test]
fn unaligned_operands_are_copied_first() {
    let problem = forward(Dtype::Bf16, LARGE, Options::new());
    let launches = |facts: Facts, forced, change: fn(&mut Problem)| {
        let mut changed = problem;
        change(&mut changed);
        let plan = planner(facts, forced).describe("test".into(), &changed);
        plan.unwrap_or_else(|error| panic!("{error}")).launches
    };
    let copies = |change: fn(&mut Problem)| {
        let launches = launches(H100, None, change);
        let product = launches.last().map_or("", String::as_str);
        assert!(
            product.starts_with("turns-bf16-nn-192") || product.starts_with("sm90-bf16-nn-128"),
            "{product}"
        );
        launches[..launches.len() - 1].join("; ")
    };
    assert_eq!(copies(|p| p.accesses.x.align = 2), "realign-bf16: x, rows to 16 bytes");
    assert_eq!(copies(|p| p.accesses.gate.align = 8), "realign-bf16: gate weights, rows to 16 bytes");
    assert_eq!(copies(|p| p.accesses.up.align = 4), "realign-bf16: up weights, rows to 16 bytes");
    assert_eq!(copies(|p| p.accesses.z.align = 2), "");
    assert_eq!(copies(|p| p.accesses.pre.align = 2), "");
    // Only tensor cores need that.
    let unaligned = |p: &mut Problem| p.accesses.x.align = 2;
    assert_eq!(
        launches(H100, Some(Family::Simt), unaligned),
        ["simt-bf16-nn-128: swiglu of both projections"]
    );
    assert_eq!(launches(TURING, None, unaligned), ["simt-bf16-nn-128: swiglu of both projections"]);
    assert_eq!(launches(A100, None, unaligned).len(), 2);
}

/// dAB goes to the workspace where the halves of saved pre-activations are not aligned, and x and the weights are copied
/// for the gradients that read them.
#[test]
fn unaligned_gradients_use_the_workspace() {
    let dims = Dims { batch: 64, in_features: 4096, hidden: 4099 };
    let kind = Some(GradientKind { dtype: Dtype::Bf16, add: false });
    for (dx, dwf, copies) in [(kind, None, 1), (None, kind, 0), (kind, kind, 1), (None, None, 0)] {
        let pass = Pass::Backward { saved: true, dx, dwf, dbias: None };
        let problem = Problem::dense(pass, Dtype::Bf16, dims, Orientation::InOut, Options::new());
        let plan = planner(A100, None).backward(&problem).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(plan.realigned.launches().len(), copies, "{plan:?}");
        let Cotangents::Saved { to, .. } = plan.cotangents else { panic!("{plan:?}") };
        assert_eq!(to.is_some(), dx.is_some() || dwf.is_some(), "{plan:?}");
        assert!(plan.dx.into_iter().chain(plan.dwf).all(|gemm| gemm.family == Family::Mma), "{plan:?}");
    }
}

#[test]
fn stores_are_as_wide_as_every_output_allows() {
    let mut problem = forward(Dtype::Bf16, LARGE, Options::new());
    let vectors = |problem: &Problem| gemm(planner(A100, None), problem).vectors;
    assert!(vectors(&problem).c);
    problem.accesses.pre.align = 4;
    assert_eq!(vectors(&problem), Vectors { a: true, b: true, c: false });
    // The second half of [B, 2D] starts D elements into the row: 14337 of them are no pair.
    problem = forward(Dtype::Bf16, Dims { hidden: 14337, ..LARGE }, Options::new());
    problem = aligned(problem, 16);
    assert!(!vectors(&problem).c, "{problem:?}");
}

#[test]
fn forced_families_run_where_they_can() {
    let bf16 = forward(Dtype::Bf16, LARGE, Options::new());
    let forced = gemm(planner(H100, Some(Family::Simt)), &bf16);
    // Nobody needs fast 16-bit products on plain cores where there are tensor cores.
    assert_eq!((forced.family, forced.vectors), (Family::Simt, Vectors::default()));
    let alone = gemm(planner(TURING, None), &bf16);
    assert_eq!((alone.family, alone.vectors), (Family::Simt, Vectors { a: true, b: true, c: true }));

    // gemv takes 8 rows at most; forced, even with a tile that it has not.
    let tile = Options::new().tile(Tile::T64);
    for (batch, forced, options, kernel) in [
        (8, None, Options::new(), "gemv-bf16-nn-8"),
        (5, None, Options::new(), "gemv-bf16-nn-8"),
        (3, None, Options::new(), "gemv-bf16-nn-4"),
        (2, None, Options::new(), "gemv-bf16-nn-2"),
        (0, None, Options::new(), "gemv-bf16-nn-1"),
        (9, Some(Family::Gemv), tile, "mma-bf16-nn-64"),
        (8, None, tile, "mma-bf16-nn-64"),
        (8, Some(Family::Gemv), tile, "gemv-bf16-nn-8"),
        (8, Some(Family::Mma), tile, "mma-bf16-nn-64"),
        (8, Some(Family::Simt), tile, "simt-bf16-nn-64"),
    ] {
        let problem = forward(Dtype::Bf16, Dims { batch, ..LARGE }, options);
        assert_eq!(chosen(planner(A100, forced), &problem).0, kernel, "{batch} {forced:?} {options:?}");
    }
}

#[test]
fn orientation_is_part_of_the_kernel() {
    let problem = Problem::dense(SAVE, Dtype::Bf16, LARGE, Orientation::OutIn, Options::new());
    assert_eq!(chosen(planner(H100, None), &problem).0, "turns-bf16-nt-192");
    assert_eq!(chosen(planner(H100, Some(Family::Sm90)), &problem).0, "sm90-bf16-nt-128");
    assert_eq!(chosen(planner(A100, None), &problem).0, "mma-bf16-nt-128");
}

#[test]
fn tiles_shrink_until_most_multiprocessors_have_one() {
    for (batch, hidden, edge) in [
        (8192, 14336, Edge::E128),
        // 3 x 32 tiles of 128 are at least 81, three quarters of 108; 2 x 32 are fewer, and 4 x 64 of 64 are not.
        (384, 4096, Edge::E128),
        (256, 4096, Edge::E64),
        (32, 512, Edge::E32),
    ] {
        let problem = forward(Dtype::Bf16, Dims { batch, in_features: 4096, hidden }, Options::new());
        assert_eq!(gemm(planner(A100, None), &problem).edge, edge, "{batch} x {hidden}");
        for (tile, asked) in [(Tile::T32, Edge::E32), (Tile::T64, Edge::E64), (Tile::T128, Edge::E128)] {
            let problem = forward(Dtype::Bf16, problem.dims, Options::new().tile(tile));
            assert_eq!(gemm(planner(A100, None), &problem).edge, asked, "{batch} x {hidden}");
        }
    }
}

#[test]
fn a_tile_that_does_not_fit_becomes_a_smaller_one_and_the_plan_says_so() {
    let pass = Pass::Backward {
        saved: true,
        dx: Some(GradientKind { dtype: Dtype::Bf16, add: false }),
        dwf: None,
        dbias: None,
    };
    let options = Options::new().tile(Tile::T128);
    let problem = Problem::dense(pass, Dtype::Bf16, LARGE, Orientation::InOut, options);
    // Two blocks of two stages of 16 KiB, and 1 KiB that each takes besides, are more than this. So little has no device
    // with tensor cores: every one has 99 KiB, where every tile fits.
    let small = Facts { shared_bytes: 60 * 1024, ..H100 };
    let dx = |planner: Planner| match planner.backward(&problem) {
        Ok(BackwardPlan { dx: Some(gemm), notes, .. }) => (gemm, notes.texts().collect::<Vec<_>>()),
        other => panic!("{other:?}"),
    };
    let (gemm, notes) = dx(planner(small, None));
    assert_eq!((gemm.family, gemm.edge), (Family::Mma, Edge::E64));
    assert_eq!(notes, ["a tile of 128 does not fit into 61440 bytes of shared memory, so 64"]);
    assert!(gemm.fits(&small) && gemm.shared_bytes(&small) <= small.shared_bytes, "{gemm:?}");
    let (gemm, notes) = dx(planner(Facts { shared_bytes: 99 * 1024, ..H100 }, None));
    assert_eq!((gemm.edge, notes), (Edge::E128, Vec::<String>::new()));
    // Plain cores use less than any device has.
    let (gemm, notes) = dx(planner(small, Some(Family::Simt)));
    assert_eq!((gemm.edge, notes), (Edge::E128, Vec::<String>::new()));
}

#[test]
fn a_backward_of_saved_pre_activations_needs_no_third_product() {
    let problem =
        Problem::dense(backward(true, Dtype::F32), Dtype::Bf16, LARGE, Orientation::InOut, Options::new());
    let sums = ["column-sums-bf16", "column-sums-to-f32"];
    let of_mma = ["gate-gradient-bf16", "mma-bf16-nt-128", "mma-bf16-tn-128", sums[0], sums[1]];
    let of_sm90 = ["sm90-bf16-nt-128", "sm90-bf16-tn-128", sums[0], sums[1]];
    // Sums of 64 chunks of rows; and counters of what was formed in 64 x 56 rectangles, in whole 128 bytes.
    let partial = 64 * 2 * LARGE.hidden * 4;
    let counters = (4 * (2 + 64 * 56usize)).next_multiple_of(128);
    for (facts, expected, bytes) in [(A100, &of_mma[..], partial), (H100, &of_sm90, counters + partial)] {
        let plan =
            planner(facts, None).describe("test".into(), &problem).unwrap_or_else(|error| panic!("{error}"));
        let kernels: Vec<_> = plan.launches.iter().filter_map(|launch| launch.split(':').next()).collect();
        assert_eq!(kernels, expected, "{plan}");
        assert_eq!(plan.workspace_bytes, bytes);
        let printed = plan.to_string();
        assert!(expected.iter().all(|kernel| printed.contains(kernel)), "{printed}");
    }
}

#[test]
fn recomputed_pre_activations_take_a_workspace() {
    // 14337 bf16 are padded to whole vectors, 14344; each part starts at a multiple of 128 bytes.
    let dims = Dims { batch: 3, in_features: 64, hidden: 14337 };
    let pass = Pass::Backward { saved: false, dx: None, dwf: None, dbias: None };
    let problem = Problem::dense(pass, Dtype::Bf16, dims, Orientation::OutIn, Options::new());
    let plan =
        planner(H100, None).describe("test".into(), &problem).unwrap_or_else(|error| panic!("{error}"));
    let part = (3 * 14344 * 2usize).next_multiple_of(128);
    assert_eq!(plan.workspace_bytes, 2 * part);
    assert_eq!(plan.launches.len(), 1, "{plan}");
    assert!(plan.launches[0].ends_with("dAB from both projections"), "{plan}");

    let all =
        Problem::dense(backward(false, Dtype::Bf16), Dtype::Bf16, dims, Orientation::OutIn, Options::new());
    let plan = planner(H100, None).backward(&all).unwrap_or_else(|error| panic!("{error}"));
    let Cotangents::Recomputed { to: [dgate, dup], .. } = plan.cotangents else { panic!("{plan:?}") };
    assert_eq!((dgate.offset, dup.offset), (0, part));
    assert_eq!((dgate.stride, dup.stride), (14344, 14344));
    // The workspace is aligned whatever the operands are, so dWf asks x alone.
    assert!(plan.workspace_bytes > 2 * part, "the column sums have theirs");
}

#[test]
fn gradients_that_nobody_asked_for_cost_nothing() {
    let pass = Pass::Backward { saved: true, dx: None, dwf: None, dbias: None };
    let problem = Problem::dense(pass, Dtype::F32, LARGE, Orientation::InOut, Options::new());
    let plan =
        planner(H100, None).describe("test".into(), &problem).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((plan.launches.len(), plan.workspace_bytes), (1, 0), "{plan}");
}

#[test]
fn a_gradient_is_accumulated_in_the_type_of_its_destination() {
    for out in [Dtype::Bf16, Dtype::F32] {
        let problem =
            Problem::dense(backward(true, out), Dtype::Bf16, LARGE, Orientation::OutIn, Options::new());
        let plan = planner(H100, None).backward(&problem).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(plan.dwf.map(|gemm| gemm.product), Some(Product::Store { out }));
        assert_eq!(plan.dx.map(|gemm| gemm.product), Some(Product::Store { out: Dtype::Bf16 }));
        // dWf is dAB^T . X of [2D, I], or X^T . dAB: A is transposed in both.
        assert!(plan.dwf.is_some_and(|gemm| gemm.a_trans && !gemm.b_trans), "{plan:?}");
        // dX = dAB . Wf^T, and [2D, I] weights are Wf^T already.
        assert!(plan.dx.is_some_and(|gemm| !gemm.a_trans && !gemm.b_trans), "{plan:?}");
    }
}

/// The same plan for the same problem, and nothing else of the device than its facts.
#[test]
fn a_plan_is_a_pure_function() {
    let passes = [SAVE, backward(true, Dtype::F32), backward(false, Dtype::Bf16)];
    for (pass, gate) in passes.into_iter().flat_map(|pass| Gate::ALL.map(|gate| (pass, gate))) {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let mut problem = Problem::dense(pass, dtype, LARGE, Orientation::OutIn, Options::new());
            problem.gate = gate;
            let plan = || planner(H100, None).describe("test".into(), &problem);
            let (once, again) = (plan(), plan());
            match (once, again) {
                (Ok(once), Ok(again)) => assert_eq!(once, again),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_forward_is_no_backward() {
    let problem = forward(Dtype::F32, LARGE, Options::new());
    let refused = planner(H100, None).backward(&problem);
    assert!(matches!(refused, Err(swiglu_core::Error::Unsupported { .. })), "{refused:?}");
}

/// Chunks cover every row once, whatever the number of rows, and the argument says so to both stages.
#[test]
fn column_sums_cover_every_row() {
    for rows in [0, 1, 63, 64, 65, 4096, 4097, 1_000_003] {
        let mut workspace = Layout::default();
        let sums = Sums::new(Dtype::Bf16, Dtype::F32, rows, 10, &mut workspace);
        assert!(sums.chunks * sums.rows_per_chunk >= rows, "{rows}: {sums:?}");
        assert!(sums.chunks == 1 || (sums.chunks - 1) * sums.rows_per_chunk < rows, "{rows}: {sums:?}");
        assert!(workspace.bytes() >= sums.chunks * 10 * size_of::<f32>(), "{rows}: {workspace:?}");
        let (a, to) = (Operand { data: 256, stride: 12 }, Operand { data: 512, stride: 10 });
        let params = sums.params((a, rows, 10), 1024, (to, true));
        assert_eq!((params.a, params.to, params.partial, params.add), (a, 512, 1024, 1));
        assert_eq!((params.rows, params.cols), (rows as i64, 10));
        let chunks = (sums.chunks as i64, sums.rows_per_chunk as i64);
        assert_eq!((params.chunks, params.rows_per_chunk), chunks);
    }
}

/// What `sm90` does not take runs by `mma`, which says so where `sm90` was forced.
#[test]
fn hopper_kernels_run_where_they_fill_the_device() {
    let dims = |batch, in_features, hidden| Dims { batch, in_features, hidden };
    for (dims, family) in [
        (LARGE, Family::Sm90),
        // 8 x 16 tiles, and 2 x 16, which are less than a quarter of 132.
        (dims(1024, 784, 2048), Family::Sm90),
        (dims(256, 784, 2048), Family::Mma),
        // 11 x 13 tiles are 143: more than one for each multiprocessor, and not enough for two.
        (dims(1408, 784, 1664), Family::Sm90),
        (dims(4096, 0, 4096), Family::Mma),
    ] {
        let problem = aligned(forward(Dtype::Bf16, dims, Options::new()), 16);
        assert_eq!(gemm(planner(H100, None), &problem).family, family, "{dims:?}");
        // Forced, only what it cannot do is left to mma.
        let forced = if dims.in_features == 0 { Family::Mma } else { Family::Sm90 };
        assert_eq!(gemm(planner(H100, Some(Family::Sm90)), &problem).family, forced, "{dims:?}");
    }
    let small = forward(Dtype::Bf16, LARGE, Options::new().tile(Tile::T64));
    let (kernel, notes) = chosen(planner(H100, Some(Family::Sm90)), &small);
    assert_eq!(
        (kernel.as_str(), notes),
        ("mma-bf16-nn-64", vec!["mma in place of sm90: sm90 has tiles of 128 rows".into()])
    );
    let (kernel, notes) =
        chosen(planner(A100, Some(Family::Sm90)), &forward(Dtype::F16, LARGE, Options::new()));
    assert_eq!(kernel, "mma-f16-nn-128");
    assert_eq!(notes, ["mma in place of sm90: sm90 needs compute capability 9.0"]);
}

#[test]
fn hopper_blocks_are_as_many_as_run_at_once() {
    let forward = gemm(planner(H100, Some(Family::Sm90)), &forward(Dtype::Bf16, LARGE, Options::new()));
    assert!(forward.hopper.pairs && forward.hopper.boxes, "{forward:?}");
    assert_eq!(forward.blocks((8192, 14336, 1), &H100), 132);
    // Three rows of tiles are two pairs; one column of tiles.
    assert_eq!(forward.blocks((300, 100, 1), &H100), 4);
    let alone = Gemm { hopper: Hopper { pairs: false, ..forward.hopper }, ..forward };
    assert_eq!(alone.blocks((300, 100, 1), &H100), 3);
    assert_eq!(alone.blocks((300, 100, 2), &H100), 6);
    // An odd number of multiprocessors has one that no pair can use.
    assert_eq!(forward.blocks((8192, 14336, 1), &Facts { multiprocessors: 131, ..H100 }), 130);
    assert_eq!(forward.blocks((0, 14336, 1), &H100), 0);
}

/// TMA writes C where its rows allow it and nothing is added; pairs of blocks where L2 does not hold the operands.
#[test]
fn hopper_kernels_follow_from_alignment_and_size() {
    let problem = forward(Dtype::Bf16, LARGE, Options::new());
    let hopper = |problem: &Problem| gemm(planner(H100, Some(Family::Sm90)), problem).hopper;
    assert_eq!(hopper(&problem), Hopper { pairs: true, boxes: true, group: 8, ..Hopper::default() });
    let mut apart = problem;
    apart.accesses.z.align = 8;
    assert_eq!(hopper(&apart), Hopper { pairs: true, group: 8, ..Hopper::default() });
    // Rows of z start at multiples of 16 bytes, and end elsewhere.
    let ragged = Dims { hidden: 14339, ..LARGE };
    assert!(!hopper(&aligned(forward(Dtype::Bf16, ragged, Options::new()), 16)).boxes);
    let dims = Dims { batch: 8192, in_features: 256, hidden: 1024 };
    let single = Hopper { boxes: true, group: 16, ..Hopper::default() };
    assert_eq!(hopper(&forward(Dtype::Bf16, dims, Options::new())), single);
    for add in [false, true] {
        let kind = |dtype| Some(GradientKind { dtype, add });
        let pass = Pass::Backward { saved: true, dx: kind(Dtype::Bf16), dwf: kind(Dtype::F32), dbias: None };
        let problem = Problem::dense(pass, Dtype::Bf16, LARGE, Orientation::InOut, Options::new());
        let plan = planner(H100, None).backward(&problem).unwrap_or_else(|error| panic!("{error}"));
        for gemm in plan.dx.into_iter().chain(plan.dwf) {
            assert_eq!((gemm.family, gemm.hopper.boxes), (Family::Sm90, !add), "{gemm:?}");
        }
    }
}

/// Saved pre-activations become dAB within dX where many multiprocessors have a tile and everything is in vectors.
#[test]
fn hopper_forms_cotangents_on_the_way_to_dx() {
    let kind = |add| Some(GradientKind { dtype: Dtype::Bf16, add });
    let forms = |forced, pass, dims, dz| {
        let mut problem = Problem::dense(pass, Dtype::Bf16, dims, Orientation::InOut, Options::new());
        problem.accesses.z.align = dz;
        let plan = planner(H100, forced).backward(&problem).unwrap_or_else(|error| panic!("{error}"));
        let formed = matches!(plan.cotangents, Cotangents::Formed { .. });
        assert_eq!(plan.dx.is_some_and(|gemm| gemm.hopper.forms.is_some()), formed, "{plan:?}");
        assert_eq!(plan.launches(&problem).len(), 3 - usize::from(formed), "{plan:?}");
        formed
    };
    let pass = |saved, add| Pass::Backward { saved, dx: kind(add), dwf: kind(false), dbias: None };
    // 16 x 6 narrow tiles, and 8 x 4, of which 132 multiprocessors leave most idle, so that blocks share them.
    let enough = Dims { batch: 2048, in_features: 768, hidden: 2048 };
    let small = Dims { batch: 1024, in_features: 512, hidden: 2048 };
    assert!(forms(None, pass(true, false), LARGE, 16));
    assert!(forms(None, pass(true, false), enough, 16));
    assert!(!forms(None, pass(true, false), small, 16));
    assert!(forms(Some(Family::Sm90), pass(true, false), small, 16));
    assert!(!forms(Some(Family::Mma), pass(true, false), LARGE, 16));
    assert!(!forms(None, pass(true, false), LARGE, 8), "dz is read in vectors");
    assert!(!forms(None, pass(true, true), LARGE, 16), "what is added to is not written in boxes");
    assert!(!forms(None, pass(false, false), LARGE, 16), "pre-activations were not saved");
}

/// What a forward of few rows runs on an H100.
fn few(dims: Dims) -> (String, u32) {
    let problem = aligned(forward(Dtype::Bf16, dims, Options::new()), 16);
    let columns = match planner(H100, None).forward(&problem, true).map(|plan| plan.kernel) {
        Ok(Kernel::Decode(decode)) => decode.columns,
        _ => 0,
    };
    (chosen(planner(H100, None), &problem).0, columns)
}

#[test]
fn few_rows_on_hopper_stream_the_weights() {
    for (batch, kernel) in [
        (1, "decode-bf16-nn-8"),
        (8, "decode-bf16-nn-8"),
        (9, "decode-bf16-nn-16"),
        (100, "decode-bf16-nn-128"),
        (128, "decode-bf16-nn-128"),
    ] {
        assert_eq!(few(Dims { batch, ..LARGE }), (kernel.into(), 128), "{batch}");
    }
    assert_eq!(few(Dims { batch: 129, ..LARGE }).0, "turns-bf16-nn-192");
    let of = |batch, in_features, hidden| few(Dims { batch, in_features, hidden });
    // As many blocks of 64 columns as multiprocessors, and one more.
    assert_eq!(of(1, 4096, 132 * 64).1, 64);
    assert_eq!(of(1, 4096, 132 * 64 + 1).1, 128);
    assert_eq!(of(1, 4096, 4096), ("decode-bf16-nn-8".into(), 64));
    // 53 blocks of 64 columns are two fifths, 52 are not.
    assert_eq!(of(1, 4096, 52 * 64 + 1).0, "decode-bf16-nn-8");
    assert_eq!(of(1, 4096, 52 * 64).0, "gemv-bf16-nn-1");
    assert_eq!(of(16, 4096, 2048).0, "mma-bf16-nn-32");
    // 13 MB.
    assert_eq!(of(8, 784, 4096).0, "gemv-bf16-nn-8");
    let [f16, f32] = [Dtype::F16, Dtype::F32].map(|dtype| {
        let dims = Dims { batch: 4, ..LARGE };
        Problem::dense(SAVE, dtype, dims, Orientation::OutIn, Options::new())
    });
    assert_eq!(chosen(planner(H100, None), &f16), ("decode-f16-nt-8".into(), vec![]));
    assert_eq!(chosen(planner(H100, None), &f32), ("gemv-f32-nt-4".into(), vec![]));
    assert_eq!(chosen(planner(A100, None), &f16), ("gemv-f16-nt-4".into(), vec![]));
    let large = Options::new().tile(Tile::T128);
    let tiled = forward(Dtype::Bf16, Dims { batch: 128, ..LARGE }, large);
    assert_eq!(chosen(planner(H100, None), &tiled).0, "sm90-bf16-nn-128");
}

#[test]
fn forced_decode_says_what_it_does_not_take() {
    let run = |facts, problem: &Problem| chosen(planner(facts, Some(Family::Decode)), problem);
    let dims = |batch, in_features, hidden| Dims { batch, in_features, hidden };
    let bf16 = |dims, options| aligned(forward(Dtype::Bf16, dims, options), 16);
    // Small weights and a tile that it has not are no reason.
    let small = bf16(dims(3, 7, 5), Options::new().tile(Tile::T32));
    assert_eq!(run(H100, &small), ("decode-bf16-nn-8".into(), vec![]));
    // z and the pre-activations may be anywhere.
    let mut apart = small;
    (apart.accesses.z.align, apart.accesses.pre.align) = (2, 2);
    assert_eq!(run(H100, &apart), ("decode-bf16-nn-8".into(), vec![]));

    let auto = |dims| bf16(dims, Options::new());
    for (facts, problem, kernel, reason) in [
        (A100, auto(dims(3, 64, 64)), "gemv-bf16-nn-4", "decode needs compute capability 9.0"),
        (
            H100,
            forward(Dtype::F32, dims(3, 64, 64), Options::new()),
            "gemv-f32-nn-4",
            "decode multiplies 16-bit types",
        ),
        (H100, auto(dims(129, 64, 64)), "mma-bf16-nn-32", "decode takes up to 128 rows"),
        (H100, auto(dims(0, 64, 64)), "gemv-bf16-nn-1", "decode needs something to multiply"),
        (H100, auto(dims(9, 0, 64)), "mma-bf16-nn-32", "decode needs something to multiply"),
        (
            H100,
            aligned(auto(dims(8, 64, 64)), 8),
            "gemv-bf16-nn-8",
            "decode needs rows that start at multiples of 16 bytes",
        ),
        (H100, auto(dims(1, 1, 1 << 31)), "gemv-bf16-nn-1", "decode takes up to 2^31 - 257 rows and columns"),
    ] {
        let family = kernel.split('-').next().unwrap_or_default();
        let note = format!("{family} in place of decode: {reason}");
        assert_eq!(run(facts, &problem), (kernel.into(), vec![note]));
    }
    // Products that it has no part in are chosen as ever.
    assert_eq!(run(H100, &auto(LARGE)).0, "sm90-bf16-nn-128");
}

/// MNIST's size, whose products have 64, 52 and 400 tiles.
#[test]
fn small_f32_products_are_cut_along_k() {
    let dims = Dims { batch: 128, in_features: 784, hidden: 512 };
    let launches = |planner: Planner, orientation| {
        let kind = Some(GradientKind { dtype: Dtype::F32, add: false });
        let backward = Pass::Backward { saved: true, dx: kind, dwf: kind, dbias: None };
        let of = |pass| {
            let problem = Problem::dense(pass, Dtype::F32, dims, orientation, Options::new());
            let plan = planner.describe("test".into(), &problem).unwrap_or_else(|error| panic!("{error}"));
            assert!(plan.notes.is_empty(), "{plan}");
            plan.launches
        };
        let names = [of(SAVE), of(backward)].concat().into_iter();
        names.map(|launch| launch.split(':').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let expected = ["sliced-f32-nn-16", "gate-gradient-f32", "sliced-f32-nt-16", "sliced-f32-tn-2"];
    assert_eq!(launches(planner(H100, None), Orientation::InOut), expected);
    assert_eq!(launches(planner(H100, None), Orientation::OutIn)[0], "sliced-f32-nt-16");
    for other in [planner(A100, None), planner(H100, Some(Family::Simt))] {
        assert!(launches(other, Orientation::InOut).iter().all(|name| !name.starts_with("sliced")));
    }
}

#[test]
fn sliced_says_what_it_does_not_take() {
    let f32 = |dims| forward(Dtype::F32, dims, Options::new());
    let small = Dims { batch: 128, in_features: 784, hidden: 512 };
    let forced = |problem| chosen(planner(H100, Some(Family::Sliced)), &problem);
    assert_eq!(forced(f32(LARGE)).0, "sliced-f32-nn-2", "as asked");
    assert_eq!(chosen(planner(H100, None), &f32(LARGE)).0, "sm90-f32-nn-128");
    for (problem, reason) in [
        (forward(Dtype::Bf16, small, Options::new()), "sliced multiplies f32"),
        (forward(Dtype::F32, small, Options::new().tile(Tile::T64)), "sliced has no tiles to choose from"),
    ] {
        let (kernel, notes) = forced(problem);
        assert!(kernel.starts_with("simt-"), "{kernel}");
        assert_eq!(notes.last(), Some(&format!("simt in place of sliced: {reason}")), "{notes:?}");
    }
}

/// As many parts as fit at once, of no less than a slab.
#[test]
fn parts_follow_from_tiles_and_slabs() {
    for ((batch, in_features, hidden), parts) in [
        ((32, 784, 128), 32),
        ((128, 784, 512), 16),
        ((256, 784, 512), 8),
        ((512, 784, 512), 4),
        ((1024, 784, 512), 2),
        ((128, 16, 512), 2),
    ] {
        let dims = Dims { batch, in_features, hidden };
        let gemm = gemm(planner(H100, None), &forward(Dtype::F32, dims, Options::new()));
        assert_eq!((gemm.family, gemm.parts), (Family::Sliced, parts), "{dims:?}");
    }
}

/// Few tiles of a plain product are narrow, or shared by as many blocks as run at once, each with 512 of k at least, or both.
#[test]
fn few_tiles_of_hopper_are_narrow_or_shared() {
    let parts = |forced, dims: Dims, precision| {
        let kind = Some(GradientKind { dtype: Dtype::Bf16, add: false });
        let pass = Pass::Backward { saved: true, dx: kind, dwf: kind, dbias: None };
        let options = Options::new().precision(precision);
        let problem = Problem::dense(pass, Dtype::Bf16, dims, Orientation::InOut, options);
        let plan = planner(H100, forced).backward(&problem).unwrap_or_else(|error| panic!("{error}"));
        let of = |gemm: Option<Gemm>| {
            gemm.map(|gemm| {
                assert!(gemm.parts == 1 || !gemm.hopper.pairs, "{gemm:?}");
                (gemm.family, gemm.parts, gemm.hopper.narrow)
            })
        };
        (of(plan.dx), of(plan.dwf))
    };
    let dims = |batch, in_features, hidden| Dims { batch, in_features, hidden };
    let sm90 = |parts| Some((Family::Sm90, parts, false));
    let narrow = |parts: u32| Some((Family::Sm90, parts, true));
    let mma = Some((Family::Mma, 1, false));
    for (dims, dx, dwf) in [
        (LARGE, sm90(1), sm90(1)),
        // 96 narrow tiles of 64 k blocks, and twice 48 wide ones of 32.
        (dims(2048, 768, 2048), narrow(1), sm90(1)),
        // 128 of 32, and twice 16 of 128.
        (dims(8192, 256, 1024), narrow(1), narrow(3)),
        // 32 wide ones of 128: 30 clusters of four would fit.
        (dims(1024, 1024, 4096), sm90(3), sm90(1)),
        // 32 of 64, and twice 64 of 16.
        (dims(1024, 512, 2048), narrow(3), narrow(1)),
        // 8 of 14, and twice 8 of 8.
        (dims(512, 512, 448), mma, mma),
    ] {
        assert_eq!(parts(None, dims, Precision::Strict), (dx, dwf), "{dims:?}");
    }
    // Never more blocks than run at once, whatever the device.
    for multiprocessors in [1, 16, 60, 78, 114, 132] {
        let planner =
            Planner { facts: Facts { multiprocessors, ..H100 }, forced: Some(Family::Sm90), choices: None };
        for (shape, k) in [((0, 0), 4096), ((128, 256), 1024), ((2048, 768), 4096), ((8192, 8192), 65536)] {
            let call = Matmul {
                dtype: Dtype::Bf16,
                out: Dtype::Bf16,
                a_trans: false,
                b_trans: false,
                shape,
                k,
                add: false,
                inputs: 16,
                outputs: 16,
            };
            let gemm = planner.matmul(&call);
            let blocks = gemm.tiles(shape.0 as u64, shape.1 as u64) * u64::from(gemm.parts);
            assert!(gemm.parts == 1 || blocks <= u64::from(multiprocessors), "{multiprocessors} {gemm:?}");
            assert!(k >= 512 * gemm.parts as usize, "{gemm:?}");
        }
    }
    // dX that forms what it reads has its tiles to itself.
    assert_eq!(parts(Some(Family::Sm90), dims(2048, 768, 2048), Precision::Strict).0, narrow(1));
    let problem = forward(Dtype::Bf16, dims(1024, 512, 128), Options::new());
    assert_eq!(gemm(planner(H100, Some(Family::Sm90)), &problem).parts, 1, "gates need whole sums");
}

/// Forwards that are asked to take turns do, with rows of tiles that L2 keeps; the rest is as it would be.
#[test]
fn warpgroups_take_turns_where_that_is_asked_for() {
    let turns = planner(H100, Some(Family::Turns));
    for (in_features, group) in [(1024, 32), (2048, 16), (4096, 8), (28672, 4)] {
        let dims = Dims { in_features, ..LARGE };
        let hopper = gemm(turns, &forward(Dtype::Bf16, dims, Options::new())).hopper;
        let expected = Hopper {
            schedule: Schedule::Turns { rows: 192 },
            pairs: true,
            boxes: true,
            group,
            ..Hopper::default()
        };
        assert_eq!(hopper, expected);
    }
    let problem = forward(Dtype::Bf16, LARGE, Options::new());
    let large = gemm(turns, &problem);
    assert_eq!((large.tile(), large.cluster_tile()), ((192, 64), (192, 128)));
    assert_eq!(large.to_string(), "turns-bf16-nn-192");
    // 43 rows of tiles and 112 columns of pairs; one of each.
    assert_eq!((large.clusters(8192, 14336), large.blocks((8192, 14336, 1), &H100)), (43 * 112, 132));
    assert_eq!(large.blocks((100, 100, 1), &H100), 2);
    assert!(large.shared_bytes(&H100) <= H100.shared_bytes);
    let mut erf = problem;
    erf.gate = Gate::GegluErf;
    assert_eq!(gemm(turns, &erf).hopper.schedule, Schedule::Turns { rows: 160 });

    let mut apart = problem;
    apart.accesses.z.align = 8;
    for (refused, reason) in
        [(apart, "multiples of 16 bytes"), (forward(Dtype::F32, LARGE, Options::new()), "16-bit")]
    {
        let plan = turns.forward(&refused, false).unwrap_or_else(|error| panic!("{error}"));
        let Kernel::Gemm(gemm) = plan.kernel else { panic!("{:?}", plan.kernel) };
        assert_eq!((gemm.family, gemm.hopper.schedule), (Family::Sm90, Schedule::Together));
        assert!(plan.notes.texts().any(|note| note.contains(reason)), "{refused:?}");
    }
}

/// They do where they were measured to be faster: not where k is short, nor where tiles of 192 rows leave more of an H100
/// idle, nor in tiles that were asked for.
#[test]
fn warpgroups_take_turns_where_that_pays() {
    let schedule = |(batch, in_features, hidden), options| {
        let problem = forward(Dtype::Bf16, Dims { batch, in_features, hidden }, options);
        gemm(planner(H100, None), &problem).hopper.schedule
    };
    let turns = Schedule::Turns { rows: 192 };
    for shape in [(8192, 4096, 14336), (8192, 2048, 8192), (8192, 8192, 28672), (4096, 1024, 4096)] {
        assert_eq!(schedule(shape, Options::new()), turns, "{shape:?}");
        assert_eq!(schedule(shape, Options::new().tile(Tile::T128)), Schedule::Together, "{shape:?}");
    }
    for shape in [(2048, 768, 2048), (8192, 256, 1024), (256, 4096, 11008)] {
        assert_eq!(schedule(shape, Options::new()), Schedule::Together, "{shape:?}");
    }
}
