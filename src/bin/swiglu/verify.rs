//! `swiglu verify`: the testkit's suite on this machine.

use std::time::Instant;

use swiglu::{Complete, Device, Job};
use swiglu_testkit::{Case, Check, Config, Failure as TestFailure, Report};

use crate::cli::VerifyArgs;
use crate::failure::{Failure, Outcome};
use crate::{print, promise};

/// Largest dimension of a case that is given: operands and those of the oracle stay below a few hundred MiB.
const LARGEST: usize = 4096;

pub(crate) fn run(args: &VerifyArgs) -> Outcome {
    let oversized = |case: &Case| case.batch.max(case.in_features).max(case.hidden) > LARGEST;
    if args.case.as_ref().is_some_and(oversized) {
        let message = format!("dimensions of a --case go up to {LARGEST}: the oracle computes it in f64");
        return Err(Failure::usage("verify", &message));
    }
    args.device.run(Verifying(args))?
}

/// Runs the checks.
struct Verifying<'a>(&'a VerifyArgs);

impl Job for Verifying<'_> {
    type Output = Outcome;

    fn run<B: Complete>(self, backend: B) -> Outcome {
        let config = promise::of(backend.device());
        print(format_args!("{}, errors relative to the bounds that are proved", backend.name()))?;
        let mut checks = Check::ALL.into_iter().filter(|check| self.chosen(*check)).peekable();
        if checks.peek().is_none() {
            return Err(Failure::usage("verify", "no check that was asked for has cases like this one"));
        }
        let mut failed = 0;
        for check in checks {
            let start = Instant::now();
            let result = self.result(check, &backend, &config);
            failed += usize::from(result.is_err());
            print(self.line(check, &result, start.elapsed().as_secs_f64()))?;
        }
        if failed > 0 {
            return Err(Failure::Message(format!(
                "{failed} checks failed; each `again:` line above shows its failure alone, please report it"
            )));
        }
        Ok(true)
    }
}

impl Verifying<'_> {
    fn chosen(&self, check: Check) -> bool {
        let VerifyArgs { check: name, case, .. } = self.0;
        name.is_none_or(|name| name == check) && case.as_ref().is_none_or(|case| check.applies(case))
    }

    fn result<B: Complete>(&self, check: Check, backend: &B, config: &Config) -> Result<Report, TestFailure> {
        match &self.0.case {
            Some(case) => check.case(backend, case, config),
            None => check.run(backend, config, self.0.cases, self.0.seed),
        }
    }

    fn line(&self, check: Check, result: &Result<Report, TestFailure>, seconds: f64) -> String {
        let name = check.to_string();
        match result {
            Ok(report) => format!("PASS   {name:16} {seconds:.1} s{}", worst(report)),
            Err(failure) => {
                let message = failure.message.replace('\n', "\n       ");
                format!("ERROR  {name:16} {message}\n       again: {}", self.again(check, failure))
            }
        }
    }

    /// The command that shows a failure again: by its case, or where that is none of the check's own, by the seed.
    fn again(&self, check: Check, failure: &TestFailure) -> String {
        let VerifyArgs { device, cases, seed, .. } = self.0;
        let device = match device {
            Device::Auto => String::new(),
            device => format!(" --device {device}"),
        };
        match failure.case.as_deref().filter(|case| check.applies(case)) {
            Some(case) => format!("swiglu verify{device} --check {check} --case \"{case}\""),
            None => format!("swiglu verify{device} --check {check} --cases {cases} --seed {seed}"),
        }
    }
}

/// How much was compared, and where the error was worst.
fn worst(report: &Report) -> String {
    let Report { cases, elements, hard, .. } = report;
    let cases = if *cases > 0 { format!(", {cases} cases") } else { String::new() };
    if *elements == 0 {
        return cases;
    }
    let at = if hard.at.is_empty() { String::new() } else { format!(" at {}", hard.at) };
    let case = hard.case.map(|case| format!(" of \"{case}\"")).unwrap_or_default();
    format!("{cases}, {elements} elements, worst {:.4}{at}{case}", hard.ratio)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use swiglu::Dtype;
    use swiglu_testkit::{Bug, Naive, Pass};

    use super::*;
    use crate::cli::{Args, Command};

    fn args(words: &[&str]) -> VerifyArgs {
        match Args::try_parse_from([&["swiglu", "verify"], words].concat()).map(|args| args.command) {
            Ok(Command::Verify(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_failure_comes_with_the_case_that_shows_it_again() {
        let (check, wrong) = (Check::Differential(Pass::Forward, Dtype::F32), Naive::with(Bug::SkipLastRow));
        let config = Config::cpu("swiglu", "cli");
        let first = args(&["--cases", "50"]);
        let result = Verifying(&first).result(check, &wrong, &config);
        let line = Verifying(&first).line(check, &result, 0.0);
        let again = line.split_once("again: swiglu verify --check forward_f32 --case ").expect("a case").1;

        let second = args(&["--check", "forward_f32", "--case", again.trim_matches('"')]);
        assert!(Verifying(&second).chosen(check), "{line}");
        assert!(Verifying(&second).result(check, &wrong, &config).is_err(), "{line}");
        assert!(Verifying(&second).result(check, &Naive::new(), &config).is_ok(), "{line}");
    }

    #[test]
    fn a_failure_without_a_case_of_its_own_comes_with_the_seed() {
        let args = args(&["--cases", "9", "--seed", "3", "--device", "cpu"]);
        let line = Verifying(&args).line(Check::Errors, &Err(TestFailure::new("accepted")), 0.0);
        let again = "again: swiglu verify --device cpu --check errors --cases 9 --seed 3";
        assert!(line.starts_with("ERROR  errors") && line.ends_with(again), "{line}");
    }
}
