//! The suite on the simplest backends there are, with few cases: whether the suite itself is right.

use swiglu_core::Unfused;
use swiglu_testkit::{Bug, Case, Check, Config, Dtype, Naive, Pass};

const CONFIG: Config = Config {
    cases: 300,
    orientation_invariant: true,
    zero_column_invariant: true,
    ..Config::cpu("swiglu-testkit", "suite_on_naive")
};

swiglu_testkit::suite! { backend: Naive::new(), config: CONFIG }

mod unfused {
    use super::{CONFIG, Naive, Unfused};

    swiglu_testkit::suite! { backend: Unfused(Naive::new()), config: CONFIG.unfused() }
}

/// The case in a reproducer.
fn case_of(reproducer: &str) -> Case {
    let line = reproducer.split('"').nth(1).unwrap_or_else(|| panic!("no case in {reproducer}"));
    line.parse().unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn a_failure_is_shrunk_and_its_reproducer_fails_again() {
    let (wrong, right) = (Naive::with(Bug::DropLastTerm), Naive::new());
    for check in [Check::Differential(Pass::Forward, Dtype::F32), Check::ExactIntegers] {
        let failure = check.run(&wrong, &CONFIG, 100, 0).err().unwrap_or_else(|| panic!("{check} is blind"));
        let command = format!("cargo test -p swiglu-testkit --test suite_on_naive {check}");
        assert!(failure.reproducer.ends_with(&command), "{failure}");
        let case = case_of(&failure.reproducer);
        assert_eq!(Some(case), failure.case.as_deref().copied());
        assert!(case.volume() <= 27, "not shrunk: {case}");
        assert!(check.applies(&case), "{check} must run {case}");
        assert!(check.case(&wrong, &case, &CONFIG).is_err(), "{case} fails again");
        assert!(check.case(&right, &case, &CONFIG).is_ok(), "{case} passes on a right backend");
    }
}

#[test]
fn the_same_seed_runs_the_same_cases() {
    let check = Check::Differential(Pass::Dx, Dtype::Bf16);
    let run = |seed| check.run(&Naive::new(), &CONFIG, 20, seed).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).elements, run(2).elements);
}

/// Sums that turn out not to be exact are left out of the exact checks; ordinary ones must not be among them.
#[test]
fn exact_checks_reach_every_output() {
    for dtype in ["f32", "f16", "bf16"] {
        for keep in ["pre", "input"] {
            let line =
                format!("m9k17d33 {dtype} InOut packed pad0 swiglu bias {keep} dx+ dwf32+ dbias integers s3");
            let case: Case = line.parse().unwrap_or_else(|e| panic!("{e}"));
            let report =
                Check::ExactIntegers.case(&Naive::new(), &case, &CONFIG).unwrap_or_else(|e| panic!("{e}"));
            for output in ["dx", "dwf gate", "dwf up", "dbias gate", "dbias up"] {
                assert!(report.outputs.contains_key(&format!("exact {output}")), "{output} of {line}");
            }
        }
    }
}
