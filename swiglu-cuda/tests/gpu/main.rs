//! Everything that needs a GPU. Without one each test is counted as ignored, and the reason is printed once; with
//! `SWIGLU_REQUIRE_GPU=1` that is a failure instead.

mod children;
mod cublas;
mod faults;
mod large;
mod sanitize;
mod streams;
mod tuning;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use swiglu_core::{Route, Unfused};
use swiglu_cuda::{Cuda, Family};
use swiglu_testkit::{Check, Config, run_test};

/// A device for the whole run: the kernels that are loaded stay.
fn cuda() -> Result<Cuda, Failed> {
    Cuda::new(0).map_err(|reason| reason.to_string().into())
}

/// What a CUDA backend promises to the suite. A family of kernels that is forced has no part in the composed route.
fn config_of(family: Option<Family>) -> Config {
    match family {
        None => config(),
        Some(_) => Config { routes: &[Route::Fused], ..config() },
    }
}

/// What a CUDA backend promises to the suite.
fn config() -> Config {
    Config::cuda("swiglu-cuda", "gpu")
}

/// The suite on one family of kernels.
fn suite(module: &'static str, family: Option<Family>) -> impl Iterator<Item = Trial> {
    Check::ALL.into_iter().map(move |check| {
        Trial::test(format!("{module}::{check}"), move || {
            let cuda = cuda()?;
            let cuda = family.map_or(cuda.clone(), |family| cuda.with_family(family));
            run_test(&cuda, &config_of(family), check, &format!("gpu::{module}"), env!("CARGO_MANIFEST_DIR"));
            Ok(())
        })
    })
}

/// The suite on the op composed from this backend's dense products, or from those of cuBLAS.
fn unfused(module: &'static str, dense: fn(Cuda) -> Cuda) -> impl Iterator<Item = Trial> {
    Check::ALL.into_iter().map(move |check| {
        Trial::test(format!("{module}::{check}"), move || {
            let backend = Unfused(dense(cuda()?));
            let test = format!("gpu::{module}");
            run_test(&backend, &config().unfused(), check, &test, env!("CARGO_MANIFEST_DIR"));
            Ok(())
        })
    })
}

fn trials() -> Vec<Trial> {
    let families = [
        ("auto", None),
        ("simt", Some(Family::Simt)),
        ("mma", Some(Family::Mma)),
        ("sm90", Some(Family::Sm90)),
        ("turns", Some(Family::Turns)),
        ("sliced", Some(Family::Sliced)),
        ("gemv", Some(Family::Gemv)),
        ("decode", Some(Family::Decode)),
    ];
    let suites = families.into_iter().flat_map(|(module, family)| suite(module, family));
    let unfused = unfused("unfused", |cuda| cuda).chain(unfused("cublas", Cuda::with_cublas));
    let mut trials: Vec<_> = suites.chain(unfused).collect();
    let others = [
        cublas::trials,
        streams::trials,
        tuning::trials,
        faults::trials,
        children::trials,
        sanitize::trials,
        large::trials,
    ];
    for others in others {
        trials.extend(others());
    }
    trials
}

fn main() -> ExitCode {
    if let Some(outcome) = children::child() {
        return outcome;
    }
    let arguments = Arguments::from_args();
    let required = std::env::var_os("SWIGLU_REQUIRE_GPU").is_some_and(|value| value == "1");
    // Kept until the end, so that the device stays open between tests.
    let device = Cuda::new(0);
    let ignored = match &device {
        Ok(_) => false,
        Err(reason) => {
            eprintln!("{}: {reason}", if required { "no GPU" } else { "GPU tests are ignored" });
            !required
        }
    };
    let ignore = |trial: Trial| if ignored { trial.with_ignored_flag(true) } else { trial };
    let trials = trials().into_iter().map(ignore).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
