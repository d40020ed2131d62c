//! Tuning on the device: candidates have the same bits, what was found is taken and is on disk, and nothing is timed while
//! a graph is captured. Times are not tested.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libtest_mimic::{Failed, Trial};
use swiglu_core::{
    Backend, Dims, Dtype, Element, Error, GradientKind, Gradients, Options, Orientation, Out, Pass,
    Precision, Problem, Save, SwiGLU, Target, Weights, bf16,
};
use swiglu_cuda::{Cuda, CudaError, Family, TuneReport, Tuning};

use crate::children::{CACHE, Outcome, fresh, spawn};
use crate::streams::noise;

pub(crate) fn trials() -> Vec<Trial> {
    let dims = |batch, in_features, hidden| Dims { batch, in_features, hidden };
    // Edges of tiles in every dimension; a batch for `decode`; rows that are no whole vectors.
    let shapes = [dims(1300, 520, 1100), dims(700, 264, 136), dims(24, 2048, 4096), dims(515, 131, 263)];
    let mut trials = Vec::new();
    for (name, dtype, precision) in [
        ("bf16", Dtype::Bf16, Precision::Strict),
        ("f16", Dtype::F16, Precision::Strict),
        ("f32", Dtype::F32, Precision::Strict),
        ("tf32", Dtype::F32, Precision::Tf32),
    ] {
        for (order, orientation) in [("in_out", Orientation::InOut), ("out_in", Orientation::OutIn)] {
            let test = move || same_bits(dtype, orientation, precision, &shapes);
            trials.push(Trial::test(format!("tuning::candidates_agree_{name}_{order}"), test));
        }
    }
    trials.extend([
        Trial::test("tuning::widths_of_decode_agree", widths_of_decode),
        Trial::test("tuning::sums_that_are_added_agree", added_sums),
        Trial::test("tuning::a_tuned_step_has_the_same_bits", tuned_step),
        Trial::test("tuning::a_second_process_finds_what_the_first_measured", second_process),
        Trial::test("tuning::nothing_is_timed_in_a_capture", in_a_capture),
    ]);
    trials
}

/// What was measured is counted for a device: one test at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every candidate of every product, and enough of them.
fn agree(report: &TuneReport, least: usize) -> Outcome {
    for product in &report.products {
        let fewer = product.candidates.len() < 2;
        if fewer || product.candidates.iter().any(|candidate| !candidate.same_bits) {
            return Err(format!("not all agree:\n{report}").into());
        }
        if product.chosen > 0 && product.speedup < 1.0 {
            return Err(format!("a slower one was chosen:\n{report}").into());
        }
    }
    println!("{report}");
    match report.products.len() {
        products if products >= least => Ok(()),
        products => Err(format!("{products} products were tuned, not {least}").into()),
    }
}

fn same_bits(dtype: Dtype, orientation: Orientation, precision: Precision, shapes: &[Dims]) -> Outcome {
    let _turn = turn();
    let cuda = crate::cuda()?;
    // Products of f32 that are cut along k, as small ones are on Hopper, have no competitors.
    let strict = dtype == Dtype::F32 && precision == Precision::Strict;
    let cuda = if strict { cuda.with_family(Family::Simt) } else { cuda };
    for &dims in shapes {
        agree(&cuda.tune(dtype, dims, orientation, Options::new().precision(precision))?, 2)?;
    }
    Ok(())
}

/// Blocks of every width, for every number of rows, with a rest of columns and of k. The suite has the narrowest alone: its
/// matrices are small.
fn widths_of_decode() -> Outcome {
    let _turn = turn();
    let cuda = crate::cuda()?;
    for batch in [5, 12, 24, 60, 100] {
        let dims = Dims { batch, in_features: 1032, hidden: 4104 };
        for dtype in [Dtype::Bf16, Dtype::F16] {
            for orientation in [Orientation::InOut, Orientation::OutIn] {
                let pass = Pass::Forward { save: true };
                let problem = Problem::dense(pass, dtype, dims, orientation, Options::new());
                let report = cuda.tune_problem(&problem)?;
                agree(&report, 1)?;
                let widths = match orientation {
                    Orientation::InOut => 2,
                    Orientation::OutIn if batch > 64 => 3,
                    Orientation::OutIn => 5,
                };
                if report.products.iter().any(|product| product.candidates.len() != widths) {
                    return Err(format!("not {widths} widths:\n{report}").into());
                }
            }
        }
    }
    Ok(())
}

fn added_sums() -> Outcome {
    let _turn = turn();
    let cuda = crate::cuda()?;
    let kind = |dtype| Some(GradientKind { dtype, add: true });
    let dims = Dims { batch: 600, in_features: 392, hidden: 264 };
    for out in [Dtype::Bf16, Dtype::F32] {
        let pass = Pass::Backward { saved: true, dx: kind(Dtype::Bf16), dwf: kind(out), dbias: None };
        let problem = Problem::dense(pass, Dtype::Bf16, dims, Orientation::InOut, Options::new());
        agree(&cuda.tune_problem(&problem)?, 2)?;
    }
    Ok(())
}

/// The bits of z, dX and dWf.
fn step<T: Element>(
    cuda: &Cuda,
    (batch, in_features, hidden): (usize, usize, usize),
) -> Result<Vec<u32>, Error>
where
    Cuda: SwiGLU<T>,
{
    let x = cuda.upload(&noise::<T>(batch, in_features)?)?;
    let wf = cuda.upload(&noise::<T>(in_features, 2 * hidden)?)?;
    let dz = cuda.upload(&noise::<T>(batch, hidden)?)?;
    let w = Weights::packed(wf.view(), Orientation::InOut)?;
    let (z, mut saved) = cuda.forward_train(x.view(), w, Save::PreActivations, Options::new())?;
    let (mut dx, mut dwf) = (cuda.zeros::<T>(batch, in_features)?, cuda.zeros::<T>(in_features, 2 * hidden)?);
    let gradients = Gradients::new().dx(Out::write(&mut dx)).dwf(Target::write(&mut dwf));
    cuda.backward(x.view(), w, dz.view(), &mut saved, gradients, Options::new())?;
    let mut bits = Vec::new();
    for matrix in [&z, &dx, &dwf] {
        bits.extend(cuda.download(matrix)?.into_array().iter().map(|value| value.to_f32().to_bits()));
    }
    Ok(bits)
}

/// Untuned, tuned at the first use, and by what was stored then.
fn tuned_step() -> Outcome {
    let _turn = turn();
    let shape = (1100, 776, 1048);
    let plain = crate::cuda()?.with_tuning(Tuning::Off);
    let expected = step::<bf16>(&plain, shape)?;
    let before = plain.tuning_use().measured;
    for tuning in [Tuning::FirstUse, Tuning::Stored] {
        let tuned = crate::cuda()?.with_tuning(tuning);
        if step::<bf16>(&tuned, shape)? != expected {
            return Err(format!("{tuning:?} changed bits").into());
        }
        let pass = Pass::Forward { save: true };
        let dims = Dims { batch: shape.0, in_features: shape.1, hidden: shape.2 };
        let problem = Problem::dense(pass, Dtype::Bf16, dims, Orientation::InOut, Options::new());
        let plan = SwiGLU::<bf16>::plan(&tuned, &problem)?;
        if !plan.notes.iter().any(|note| note.starts_with("tuned: ")) {
            return Err(format!("the plan does not say that it is tuned: {plan}").into());
        }
    }
    let measured = plain.tuning_use().measured - before;
    // None where an earlier run left them on disk.
    if measured <= 3 { Ok(()) } else { Err(format!("{measured} products were timed").into()) }
}

/// The child: prints what was measured and what came from disk.
pub(crate) fn child() -> Outcome {
    let cuda = Cuda::new(0)?;
    let bits = step::<bf16>(&cuda, (520, 264, 264))?;
    let hash = bits.iter().fold(0u64, |hash, &bits| hash.wrapping_mul(31).wrapping_add(u64::from(bits)));
    let used = cuda.tuning_use();
    println!(
        "{hash:016x} measured {} loaded {} {}",
        used.measured,
        used.loaded,
        used.note.unwrap_or_default()
    );
    Ok(())
}

fn child_with(folder: &Path, tune: &str) -> Result<(String, String), Failed> {
    let variables = [(CACHE, folder.as_os_str()), ("SWIGLU_TUNE", tune.as_ref())];
    let line = spawn("tuned", &variables)?;
    println!("SWIGLU_TUNE={tune}: {line}");
    let (hash, rest) = line.split_once(' ').ok_or("one word")?;
    Ok((hash.to_owned(), rest.trim().to_owned()))
}

fn second_process() -> Outcome {
    let (_parent, folder) = fresh()?;
    let (expected, _) = child_with(&folder, "off")?;
    for (tune, rest) in [
        ("stored", "measured 0 loaded 0"),
        ("1", "measured 3 loaded 0"),
        ("1", "measured 0 loaded 3"),
        ("stored", "measured 0 loaded 3"),
        ("off", "measured 0 loaded 0"),
    ] {
        let got = child_with(&folder, tune)?;
        if got != (expected.clone(), rest.to_owned()) {
            return Err(format!("SWIGLU_TUNE={tune}: {got:?}, expected {expected} {rest}").into());
        }
    }
    let (hash, rest) = child_with(&folder, "maybe")?;
    let noted = rest.contains("SWIGLU_TUNE") && rest.contains("maybe");
    if hash == expected && noted { Ok(()) } else { Err(format!("{hash} {rest}").into()) }
}

fn in_a_capture() -> Outcome {
    let _turn = turn();
    let cuda = crate::cuda()?.with_tuning(Tuning::FirstUse);
    let dims = Dims { batch: 333, in_features: 248, hidden: 312 };
    let tune = || cuda.tune(Dtype::Bf16, dims, Orientation::InOut, Options::new());
    let mut refused = None;
    cuda.capture(|| {
        refused = Some(tune());
        Ok(())
    })?;
    match refused {
        Some(Err(Error::Device(source)))
            if matches!(source.downcast_ref(), Some(CudaError::NotWarm { .. })) => {}
        other => return Err(format!("{other:?}").into()),
    }
    // A call that was made before tuning was asked for is warm, and stays it.
    let plain = cuda.clone().with_tuning(Tuning::Off);
    let x = cuda.upload(&noise::<bf16>(dims.batch, dims.in_features)?)?;
    let wf = cuda.upload(&noise::<bf16>(dims.in_features, 2 * dims.hidden)?)?;
    let mut z = cuda.zeros::<bf16>(dims.batch, dims.hidden)?;
    let w = Weights::packed(wf.view(), Orientation::InOut)?;
    plain.forward_into(x.view(), w, z.view_mut(), Options::new())?;
    let before = cuda.tuning_use().measured;
    let mut graph = cuda.capture(|| cuda.forward_into(x.view(), w, z.view_mut(), Options::new()))?;
    graph.launch()?;
    cuda.synchronize()?;
    match cuda.tuning_use().measured - before {
        0 => Ok(()),
        measured => Err(format!("{measured} products were timed in a capture").into()),
    }
}
