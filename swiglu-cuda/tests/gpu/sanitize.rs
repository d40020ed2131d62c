//! Small shapes of every kernel, for compute-sanitizer: `gpu-run.sh sanitize`. Results are checked all the same.
//!
//! Listed, not drawn: each family runs every tile, arrangement of the weights, alignment and mode, and every gate. A
//! tile's shapes leave a rest in each dimension, and have more slabs of k than any kernel has stages.

use libtest_mimic::{Failed, Trial};
use swiglu_core::{
    Backend, Dims, Dtype, Gate, GradientKind, Gradients, Host, Matrix, Options, Orientation, Out, Precision,
    Problem, Route, Save, SwiGLU, Target, Tile, Weights,
};
use swiglu_cuda::{Cuda, CudaMemory, Family};
use swiglu_testkit::{Case, Check, Config, DownCase, How, Keep, Packing, Pass};

use crate::{config, cuda};

const ARRANGEMENTS: [(Orientation, Packing); 5] = [
    (Orientation::InOut, Packing::Packed),
    (Orientation::OutIn, Packing::Packed),
    (Orientation::InOut, Packing::Split),
    (Orientation::OutIn, Packing::Split),
    (Orientation::OutIn, Packing::Interleaved),
];

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (family, dtype) in [
        (Family::Simt, Dtype::F32),
        (Family::Simt, Dtype::F16),
        (Family::Simt, Dtype::Bf16),
        (Family::Sliced, Dtype::F32),
        (Family::Mma, Dtype::F16),
        (Family::Mma, Dtype::Bf16),
    ] {
        let lists = [
            ("forward", forward as fn(Dtype) -> Vec<Case>),
            ("backward_of_saved", |dtype| backward(dtype, Keep::PreActivations)),
            ("backward_of_input", |dtype| backward(dtype, Keep::Input)),
            ("backward_of_dy", projected),
        ];
        for (name, list) in lists {
            let filter: fn(Vec<Case>) -> Vec<Case> =
                if family == Family::Sliced { untiled } else { |cases| cases };
            let run = move || run(family, &filter(list(dtype)));
            trials.push(Trial::test(format!("sanitize::{family}::{name}_{dtype}"), run));
        }
    }
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
        // NVRTC takes two seconds for each kernel: a trial has as few as can be.
        let lists = [
            ("forward", hopper as fn(Vec<Case>) -> Vec<Case>, forward(dtype)),
            ("backward_of_saved", hopper, backward(dtype, Keep::PreActivations)),
            ("backward_of_input", |cases| seen(hopper(cases)), backward(dtype, Keep::Input)),
            ("backward_of_dy", |cases| seen(hopper(cases)), projected(dtype)),
            ("many_tiles", seen, many_tiles(dtype)),
            ("few_tiles", seen, few_tiles(dtype)),
        ];
        for (name, filter, list) in lists {
            let run = move || {
                if name == "few_tiles" && dtype != Dtype::F32 {
                    every_sharing_is_there(&list)?;
                }
                run(Family::Sm90, &filter(list.clone()))
            };
            trials.push(Trial::test(format!("sanitize::sm90::{name}_{dtype}"), run));
        }
    }
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for (name, list) in [("forward", hopper(forward(dtype))), ("many_tiles", many_tiles(dtype))] {
            let run = move || run(Family::Turns, &list);
            trials.push(Trial::test(format!("sanitize::turns::{name}_{dtype}"), run));
        }
    }
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let run = move || run(Family::Gemv, &few_rows(dtype));
        trials.push(Trial::test(format!("sanitize::gemv::forward_{dtype}"), run));
    }
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let run = move || run(Family::Decode, &some_rows(dtype));
        trials.push(Trial::test(format!("sanitize::decode::forward_{dtype}"), run));
    }
    trials.push(Trial::test("sanitize::mma::tf32", tf32));
    trials.push(Trial::test("sanitize::sm90::tf32", rounded));
    for check in [
        // Empty dimensions and odd strides.
        Check::Differential(Pass::Forward, Dtype::Bf16),
        Check::Differential(Pass::Dx, Dtype::F16),
        Check::Differential(Pass::Dwf, Dtype::F32),
        Check::Dense,
    ] {
        trials.push(Trial::test(format!("sanitize::auto::{check}"), move || drawn(check)));
    }
    trials
}

/// Each tile with each arrangement, aligned for vectors and not.
fn shapes(dtype: Dtype) -> impl Iterator<Item = Case> {
    let tiles = [(Tile::T32, 32), (Tile::T64, 64), (Tile::T128, 128)];
    let each = tiles.into_iter().flat_map(|tile| ARRANGEMENTS.map(|arrangement| (tile, arrangement)));
    let each = each.flat_map(|(tile, arrangement)| [true, false].map(|aligned| (tile, arrangement, aligned)));
    each.enumerate().map(move |(index, ((tile, edge), (orientation, packing), aligned))| Case {
        orientation,
        packing,
        tile,
        gate: Gate::ALL[index % Gate::ALL.len()],
        bias: index % 2 == 0,
        seed: index as u64,
        // 264 columns are two slabs more than four of 64.
        ..if aligned {
            Case::new(edge + 1, 264, edge + 8, dtype)
        } else {
            Case::new(edge + 1, 263, edge + 5, dtype)
        }
    })
}

fn forward(dtype: Dtype) -> Vec<Case> {
    let keeps = [Keep::Nothing, Keep::PreActivations];
    shapes(dtype).enumerate().map(|(index, case)| Case { keep: keeps[index / 2 % 2], ..case }).collect()
}

/// Every gradient: written or added to, in the element type or in f32.
fn backward(dtype: Dtype, keep: Keep) -> Vec<Case> {
    let gradients = |(index, case): (usize, Case)| {
        let how = |add: bool, wide: bool| Some(How { add, wide });
        let (add, wide) = (index / 2 % 2 == 0, index / 4 % 2 == 0);
        Case { keep, dx: how(add, false), dwf: how(!add, wide), dbias: how(add, !wide), ..case }
    };
    shapes(dtype).enumerate().map(gradients).collect()
}

/// With a dz that comes from dy, of an O that leaves a rest in k and whose rows are vectors or not; of saved
/// pre-activations and of ones that are computed again.
fn projected(dtype: Dtype) -> Vec<Case> {
    let down = |(index, case): (usize, Case)| {
        let orientation = [Orientation::InOut, Orientation::OutIn][index / 2 % 2];
        let (out_features, pad) = if index % 3 == 0 { (133, 1) } else { (264, 0) };
        Case { down: Some(DownCase { out_features, orientation, pad }), ..case }
    };
    let both = backward(dtype, Keep::PreActivations).into_iter().zip(backward(dtype, Keep::Input));
    both.flat_map(|(saved, again)| [saved, again]).enumerate().map(down).collect()
}

/// Without a choice of tile, which `sliced` does not have.
fn untiled(cases: Vec<Case>) -> Vec<Case> {
    cases.into_iter().map(|case| Case { tile: Tile::Auto, ..case }).collect()
}

/// Those with the one tile of `sm90`.
fn hopper(cases: Vec<Case>) -> Vec<Case> {
    cases.into_iter().filter(|case| case.tile == Tile::T128).collect()
}

/// The same without those in which a thread reads what TMA wrote into the workspace, under initcheck: no thread has written
/// it, and the tool reports each read. With an epilogue that writes element by element it reports nothing in these lists.
/// Column sums read dAB, the pass that splits f32 does, and the product that makes dz reads pre-activations.
fn seen(mut cases: Vec<Case>) -> Vec<Case> {
    let unseen = std::env::var("SWIGLU_SANITIZE_TOOL").is_ok_and(|tool| tool == "initcheck");
    let by_tma = |case: &Case| case.keep == Keep::Input && case.hidden.is_multiple_of(8);
    let reads = |case: &Case| case.dtype == Dtype::F32 || case.down.is_some();
    if unseen {
        cases.retain(|case| !(by_tma(case) && reads(case)));
        cases.iter_mut().filter(|case| by_tma(case)).for_each(|case| case.dbias = None);
    }
    cases
}

/// So few tiles and so many terms that `sm90` has narrow ones, which one to four blocks share, written by TMA, by threads, and
/// added to: in dX, whose terms are 2 * hidden, and in dWf, which sums over the batch. Last, wide ones for three and four.
fn few_tiles(dtype: Dtype) -> Vec<Case> {
    let how = |add: bool, wide: bool| Some(How { add, wide });
    let mut cases = Vec::new();
    for (orientation, add) in [(Orientation::InOut, false), (Orientation::OutIn, true)] {
        // In 16 bits of input: dX would form saved pre-activations, and has its tiles to itself then.
        let keep = if dtype == Dtype::F32 { Keep::PreActivations } else { Keep::Input };
        let base = |case| Case { orientation, keep, ..case };
        for (batch, hidden) in [(136, 520), (264, 650), (264, 776), (130, 1030)] {
            cases.push(Case { dx: how(add, false), ..base(Case::new(batch, 72, hidden, dtype)) });
        }
        for (batch, hidden) in [(1056, 136), (1344, 200), (1600, 264), (2056, 66)] {
            cases.push(Case { dwf: how(add, !add), ..base(Case::new(batch, 24, hidden, dtype)) });
        }
        for (batch, in_features, hidden) in [(760, 1530, 1280), (636, 1277, 1024)] {
            let case = Case { dx: how(add, false), ..base(Case::new(batch, in_features, hidden, dtype)) };
            cases.extend((dtype == Dtype::Bf16).then_some(case));
        }
    }
    cases
}

/// The list would test nothing if the planner took whole tiles.
fn every_sharing_is_there(cases: &[Case]) -> Result<(), Failed> {
    let cuda = cuda()?.with_family(Family::Sm90);
    let launches = |what: fn(&Case) -> bool| -> Result<Vec<String>, Failed> {
        let mut launches = Vec::new();
        for case in cases.iter().filter(|case| what(case)) {
            launches.extend(SwiGLU::<f32>::plan(&cuda, &backward_problem(case))?.launches);
        }
        Ok(launches)
    };
    let (dx, dwf) = (launches(|case| case.dx.is_some())?, launches(|case| case.dwf.is_some())?);
    // NVRTC takes two seconds for each kernel: wide ones in one type.
    let one = cases.iter().all(|case| case.dtype == Dtype::Bf16);
    let narrow = ["-narrow:", "-narrow-by-2:", "-narrow-by-3:", "-narrow-by-4:"];
    let wide = if one { vec!["-128-by-3:", "-128-by-4:"] } else { vec![] };
    for (launches, wanted) in
        narrow.iter().flat_map(|name| [(&dx, name), (&dwf, name)]).chain(wide.iter().map(|name| (&dx, name)))
    {
        if !launches.iter().any(|launch| launch.contains(wanted)) {
            return Err(format!("no kernel of {wanted} {launches:?}").into());
        }
    }
    Ok(())
}

fn backward_problem(case: &Case) -> Problem {
    let kind =
        |how: How| GradientKind { dtype: if how.wide { Dtype::F32 } else { case.dtype }, add: how.add };
    let (dx, dwf) = (case.dx.map(kind), case.dwf.map(kind));
    let pass = swiglu_core::Pass::Backward { saved: false, dx, dwf, dbias: None };
    let dims = Dims { batch: case.batch, in_features: case.in_features, hidden: case.hidden };
    Problem::dense(pass, case.dtype, dims, case.orientation, Options::new())
}

/// So many tiles that blocks of `sm90` take several, in the projections and in dX.
fn many_tiles(dtype: Dtype) -> Vec<Case> {
    let how = Some(How { add: false, wide: false });
    let mut cases = Vec::new();
    for (orientation, keep) in [(Orientation::InOut, Keep::PreActivations), (Orientation::OutIn, Keep::Input)]
    {
        for (batch, in_features, hidden) in [(1160, 136, 2184), (2312, 2184, 72)] {
            let case = Case::new(batch, in_features, hidden, dtype);
            cases.push(Case { orientation, keep, dx: how, dwf: how, ..case });
        }
    }
    cases
}

/// As many rows as each of the `gemv` kernels takes, and one that is not full.
fn few_rows(dtype: Dtype) -> Vec<Case> {
    let batches = [1, 2, 3, 4, 8];
    let each = batches.into_iter().flat_map(|batch| ARRANGEMENTS.map(|arrangement| (batch, arrangement)));
    let each =
        each.flat_map(|(batch, arrangement)| [true, false].map(|aligned| (batch, arrangement, aligned)));
    let case = |(index, (batch, (orientation, packing), aligned)): (usize, (usize, _, bool))| Case {
        orientation,
        packing,
        gate: Gate::ALL[index % Gate::ALL.len()],
        bias: index % 2 == 0,
        keep: if index % 3 == 0 { Keep::PreActivations } else { Keep::Nothing },
        seed: index as u64,
        ..if aligned { Case::new(batch, 520, 136, dtype) } else { Case::new(batch, 517, 133, dtype) }
    };
    each.enumerate().map(case).collect()
}

/// Rows that each of the `decode` kernels takes, always some fewer than its boxes have, against more slabs of k than
/// they have stages; all aligned, since they take nothing else.
fn some_rows(dtype: Dtype) -> Vec<Case> {
    let batches = [1, 3, 9, 17, 33, 100];
    let each = batches.into_iter().flat_map(|batch| ARRANGEMENTS.map(|arrangement| (batch, arrangement)));
    let case = |(index, (batch, (orientation, packing))): (usize, (usize, _))| Case {
        orientation,
        packing,
        gate: Gate::ALL[index % Gate::ALL.len()],
        bias: index % 2 == 0,
        keep: if index % 3 == 0 { Keep::PreActivations } else { Keep::Nothing },
        seed: index as u64,
        ..Case::new(batch, 520, 136, dtype)
    };
    let small = each.enumerate().map(case);
    // Columns enough for the large blocks of a device with up to 132 multiprocessors, with a rest.
    let large = [Orientation::InOut, Orientation::OutIn].map(|orientation| Case {
        orientation,
        keep: Keep::PreActivations,
        ..Case::new(33, 456, 12680, dtype)
    });
    small.chain(large).collect()
}

fn run(family: Family, cases: &[Case]) -> Result<(), Failed> {
    let (cuda, config) = (cuda()?.with_family(family), config());
    // Racecheck is some six times slower than the other tools: gpu-run.sh gives it a share.
    let every = std::env::var("SWIGLU_SANITIZE_EVERY").map_or(Ok(1), |every| every.parse::<usize>())?;
    let cases: Vec<_> = cases.iter().step_by(every.max(1)).collect();
    for case in &cases {
        let pass = if case.is_backward() { Pass::Dx } else { Pass::Forward };
        Check::Differential(pass, case.dtype).case(&cuda, case, &config)?;
    }
    println!("{} cases", cases.len());
    Ok(())
}

/// Without the composed route: initcheck does not see what cuBLAS stores, and reports every read of it.
fn drawn(check: Check) -> Result<(), Failed> {
    let config = Config { routes: &[Route::Fused], ..config() };
    let report = check.run(&cuda()?, &config, 20, 0)?;
    println!("{report}");
    Ok(())
}

/// Small integers, which TF32 holds: sums are exact, so `mma` and `simt` give the same numbers.
fn integers(rows: usize, cols: usize, salt: usize) -> swiglu_core::Result<Matrix<f32, Host>> {
    let mut matrix = Matrix::host_zeros(rows, cols)?;
    for (index, value) in matrix.view_mut().array_mut().iter_mut().enumerate() {
        let bits = (index + salt).wrapping_mul(2_654_435_769);
        *value = (bits >> 16) as f32 % 5.0 - 2.0;
    }
    Ok(matrix)
}

/// Products of `sm90`, rounded first, of less than a tile, of edges of several, and of rows that are no whole vectors.
fn rounded() -> Result<(), Failed> {
    let (hopper, plain) = (cuda()?.with_family(Family::Sm90), cuda()?.with_family(Family::Simt));
    for edge in [32, 130, 385] {
        for orientation in [Orientation::InOut, Orientation::OutIn] {
            for save in [Save::PreActivations, Save::Input] {
                let options = Options::new().precision(Precision::Tf32);
                let ours = tf32_step(&hopper, edge, orientation, save, options)?;
                if ours != tf32_step(&plain, edge, orientation, save, Options::new())? {
                    return Err(format!("{edge} {orientation:?} {save:?}: sm90 differs from simt").into());
                }
            }
        }
    }
    Ok(())
}

fn tf32() -> Result<(), Failed> {
    let cuda = cuda()?;
    for (tile, edge) in [(Tile::T32, 32), (Tile::T64, 64), (Tile::T128, 128)] {
        for orientation in [Orientation::InOut, Orientation::OutIn] {
            for save in [Save::PreActivations, Save::Input] {
                let outcome = |precision| -> swiglu_core::Result<Vec<Vec<f32>>> {
                    tf32_step(&cuda, edge, orientation, save, Options::new().tile(tile).precision(precision))
                };
                if outcome(Precision::Tf32)? != outcome(Precision::Strict)? {
                    return Err(format!("{edge} {orientation:?} {save:?}: mma differs from simt").into());
                }
            }
        }
    }
    Ok(())
}

/// z, dx and dwf.
fn tf32_step(
    cuda: &Cuda,
    edge: usize,
    orientation: Orientation,
    save: Save,
    options: Options,
) -> swiglu_core::Result<Vec<Vec<f32>>> {
    let (batch, in_features, hidden) = (edge + 1, 132, edge + 4);
    let (rows, cols) = orientation.packed_shape(in_features, hidden);
    let x = cuda.upload(&integers(batch, in_features, 1)?)?;
    let wf = cuda.upload(&integers(rows, cols, 2)?)?;
    let dz = cuda.upload(&integers(batch, hidden, 3)?)?;
    // ReLU keeps integers integers.
    let weights = Weights::packed(wf.view(), orientation)?.gate(Gate::Reglu);
    let mut saved = cuda.saved(save, batch, hidden)?;
    let (mut z, mut dx) = (cuda.zeros(batch, hidden)?, cuda.zeros(batch, in_features)?);
    let mut dwf = cuda.zeros(rows, cols)?;
    cuda.forward_train_into(x.view(), weights, z.view_mut(), &mut saved, options)?;
    let gradients = Gradients::new().dx(Out::write(&mut dx)).dwf(Target::write(&mut dwf));
    cuda.backward(x.view(), weights, dz.view(), &mut saved, gradients, options)?;
    [&z, &dx, &dwf].into_iter().map(|matrix| values(cuda, matrix)).collect()
}

fn values(cuda: &Cuda, matrix: &Matrix<f32, CudaMemory>) -> swiglu_core::Result<Vec<f32>> {
    Ok(cuda.download(matrix)?.into_array().into_iter().collect())
}
