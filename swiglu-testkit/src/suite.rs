//! The suite: every check, as a list, as a function that runs one, and as a macro that makes `#[test]`s of them.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `SWIGLU_CASES` | cases of each differential test | [`Config::cases`], 2000 |
//! | `SWIGLU_SEED` | seed of the generators | 0 |
//! | `SWIGLU_CASE` | one line: run just that case | |

use std::fmt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use proptest::strategy::BoxedStrategy;
use proptest::test_runner::{
    Config as Proptest, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner,
};
use swiglu_core::{Dense, Dtype, SwiGLU};

use crate::case::{Case, Data, Pass, Space, cases};
use crate::check::{self, check_case};
use crate::config::Config;
use crate::regressions;
use crate::report::{Failure, Report};

/// A backend that has everything: the op and what stands around it, for every element type.
pub trait Complete: SwiGLU<f32> + SwiGLU<f16> + SwiGLU<bf16> + Dense<f32> + Dense<f16> + Dense<bf16> {}
impl<B> Complete for B where
    B: SwiGLU<f32> + SwiGLU<f16> + SwiGLU<bf16> + Dense<f32> + Dense<f16> + Dense<bf16>
{
}

/// Runs an expression with `$t` as the type of a [`Dtype`].
macro_rules! with_dtype {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            Dtype::F32 => {
                type $t = f32;
                $body
            }
            Dtype::F16 => {
                type $t = f16;
                $body
            }
            Dtype::Bf16 => {
                type $t = bf16;
                $body
            }
        }
    };
}

/// One test of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Random cases of one pass and element type against the oracle.
    Differential(Pass, Dtype),
    /// Data on which every sum is exact.
    ExactIntegers,
    /// Relations between calls: permuted, scaled, split, rearranged.
    Metamorphic,
    /// NaN, infinities, signed zeros, subnormals, empty dimensions, overflow.
    SpecialValues,
    /// Calls that must be refused.
    Errors,
    /// What stands around the op.
    Dense,
    /// The layers.
    Layers,
    /// The same call twice.
    RunToRun,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Differential(Pass::Forward, Dtype::F32),
        Self::Differential(Pass::Forward, Dtype::Bf16),
        Self::Differential(Pass::Forward, Dtype::F16),
        Self::Differential(Pass::Dx, Dtype::F32),
        Self::Differential(Pass::Dx, Dtype::Bf16),
        Self::Differential(Pass::Dx, Dtype::F16),
        Self::Differential(Pass::Dwf, Dtype::F32),
        Self::Differential(Pass::Dwf, Dtype::Bf16),
        Self::Differential(Pass::Dwf, Dtype::F16),
        Self::ExactIntegers,
        Self::Metamorphic,
        Self::SpecialValues,
        Self::Errors,
        Self::Dense,
        Self::Layers,
        Self::RunToRun,
    ];

    /// How many cases it runs when `cases` are asked for.
    fn count(self, cases: u32) -> u32 {
        match self {
            Self::Differential(..) => cases,
            Self::ExactIntegers => cases.div_ceil(2),
            Self::Metamorphic | Self::RunToRun => cases.div_ceil(10),
            Self::SpecialValues | Self::Errors | Self::Dense | Self::Layers => 1,
        }
    }

    /// The cases that it draws, for each element type; none when it is not made of cases.
    fn spaces(self, config: &Config) -> Vec<BoxedStrategy<Case>> {
        let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16];
        let space = |dtype, pass| Space { routes: config.routes.to_vec(), ..Space::new(dtype, pass) };
        let each = |pass, data: &[Data]| {
            let one = |dtype| cases(&Space { data: data.to_vec(), large: false, ..space(dtype, pass) });
            dtypes.into_iter().map(one).collect()
        };
        match self {
            Self::Differential(pass, dtype) => vec![cases(&space(dtype, pass))],
            Self::ExactIntegers => each(Pass::Dwf, &[Data::Integers]),
            Self::Metamorphic | Self::RunToRun => {
                each(Pass::Dx, &[Data::Normal, Data::Sparse, Data::Cancelling])
            }
            Self::SpecialValues | Self::Errors | Self::Dense | Self::Layers => Vec::new(),
        }
    }

    /// Whether it is made of cases; the others have a list of their own.
    const fn takes_cases(self) -> bool {
        !matches!(self, Self::SpecialValues | Self::Errors | Self::Dense | Self::Layers)
    }

    /// The failure with the command that shows it again, for a test of this name.
    fn with_reproducer(self, failure: Failure, config: &Config, test: &str, seed: u64) -> Failure {
        let case = failure.case.as_deref().filter(|_| self.takes_cases());
        let seed = if case.is_none() && seed != 0 { format!("SWIGLU_SEED={seed} ") } else { String::new() };
        Failure { reproducer: seed + &config.reproducer(test, case), ..failure }
    }

    /// Whether a given case is one of this check.
    pub fn applies(self, case: &Case) -> bool {
        match self {
            Self::Differential(pass, dtype) => case.dtype == dtype && case.tests(pass),
            Self::ExactIntegers => case.data == Data::Integers,
            Self::Metamorphic | Self::RunToRun => true,
            Self::SpecialValues | Self::Errors | Self::Dense | Self::Layers => false,
        }
    }

    /// Runs one case of this check. A panic of the backend is a failure like any other.
    ///
    /// # Errors
    /// What is wrong.
    pub fn case<B: Complete>(self, backend: &B, case: &Case, config: &Config) -> Result<Report, Failure> {
        let run = std::panic::AssertUnwindSafe(|| self.case_or_panic(backend, case, config));
        std::panic::catch_unwind(run).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
            Err(Failure::new(format!("panic: {text}")).of_case(case))
        })
    }

    fn case_or_panic<B: Complete>(
        self,
        backend: &B,
        case: &Case,
        config: &Config,
    ) -> Result<Report, Failure> {
        with_dtype!(case.dtype, T => match self {
            Self::Differential(..) => check_case::<T, B>(backend, case, config),
            Self::ExactIntegers => check::exact_integers::<T, B>(backend, case, config),
            Self::Metamorphic => check::metamorphic::<T, B>(backend, case, config),
            Self::RunToRun => check::run_to_run::<T, B>(backend, case, config),
            Self::SpecialValues | Self::Errors | Self::Dense | Self::Layers => Ok(Report::default()),
        })
    }

    /// Runs the whole check with random cases, and shrinks the first that fails.
    ///
    /// # Errors
    /// What is wrong, in the smallest case that was found, and the command that runs it again.
    pub fn run<B: Complete>(
        self,
        backend: &B,
        config: &Config,
        cases: u32,
        seed: u64,
    ) -> Result<Report, Failure> {
        let test = self.to_string();
        let mut report = match self {
            Self::SpecialValues => check::special_values(backend, config),
            Self::Errors => check::errors(backend),
            Self::Dense => check::dense(backend, config, seed),
            Self::Layers => check::layers(backend, config, seed),
            _ => Ok(Report::default()),
        }
        .map_err(|failure| self.with_reproducer(failure, config, &test, seed))?;
        let spaces = self.spaces(config);
        let share = self.count(cases).div_ceil(spaces.len().max(1) as u32);
        for (index, space) in spaces.iter().enumerate() {
            let seed = mixed_seed(&test, seed, index);
            report.merge(&self.random(backend, config, space, share, &seed)?);
        }
        Ok(report)
    }

    fn random<B: Complete>(
        self,
        backend: &B,
        config: &Config,
        space: &BoxedStrategy<Case>,
        cases: u32,
        seed: &[u8; 32],
    ) -> Result<Report, Failure> {
        let options =
            Proptest { cases, failure_persistence: None, max_shrink_iters: 4096, ..Proptest::default() };
        let mut runner = TestRunner::new_with_rng(options, TestRng::from_seed(RngAlgorithm::ChaCha, seed));
        let report = std::cell::RefCell::new(Report::default());
        let outcome = runner.run(space, |case| match self.case(backend, &case, config) {
            Ok(one) => {
                report.borrow_mut().merge(&one);
                Ok(())
            }
            Err(failure) => Err(TestCaseError::fail(failure.message)),
        });
        match outcome {
            Ok(()) => Ok(report.into_inner()),
            Err(TestError::Fail(reason, case)) => {
                let message = match self.case(backend, &case, config) {
                    Err(failure) => failure.message,
                    Ok(_) => format!("{reason} (but not when run again)"),
                };
                let failure = Failure::new(message).of_case(&case);
                Err(self.with_reproducer(failure, config, &self.to_string(), 0))
            }
            Err(TestError::Abort(reason)) => Err(Failure::new(format!("the generator gave up: {reason}"))),
        }
    }
}

/// The name of the test function.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differential(pass, dtype) => {
                let pass = match pass {
                    Pass::Forward => "forward",
                    Pass::Dx => "dx",
                    Pass::Dwf => "dwf",
                };
                write!(f, "{pass}_{dtype}")
            }
            Self::ExactIntegers => f.write_str("exact_integers"),
            Self::Metamorphic => f.write_str("metamorphic"),
            Self::SpecialValues => f.write_str("special_values"),
            Self::Errors => f.write_str("errors"),
            Self::Dense => f.write_str("dense"),
            Self::Layers => f.write_str("layers"),
            Self::RunToRun => f.write_str("run_to_run"),
        }
    }
}

/// A seed for the generator of one test: FNV-1a of its name, the user's seed and the index of the space.
fn mixed_seed(test: &str, seed: u64, index: usize) -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut absorb = |byte: u8| {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        hash
    };
    for byte in test.bytes().chain(seed.to_le_bytes()).chain((index as u64).to_le_bytes()) {
        absorb(byte);
    }
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&absorb(0xa5).to_le_bytes());
    }
    bytes
}

fn number<T: std::str::FromStr>(variable: &str, default: T) -> T {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        Err(_) => default,
    }
}

/// Where a test file keeps the cases that failed once.
fn regression_file(manifest: &str, file: &str) -> PathBuf {
    Path::new(manifest).join("proptest-regressions").join(file).with_extension("txt")
}

/// One `#[test]` of [`suite!`](crate::suite!): runs a check as the environment says and prints one line.
///
/// # Panics
/// When the check fails.
pub fn run_test<B: Complete>(backend: &B, config: &Config, check: Check, module: &str, manifest: &str) {
    // `suite::avx2` is the module `avx2` of the test file `suite`.
    let module = module.split_once("::").map(|(_, module)| format!("{module}::")).unwrap_or_default();
    let name = format!("{module}{check}");
    let seed = number("SWIGLU_SEED", 0);
    let again = |failure: Failure| check.with_reproducer(failure, config, &name, seed);
    let start = std::time::Instant::now();
    let finish = |result: Result<Report, Failure>| match result {
        Ok(report) => {
            println!("{name} on {}: {report}; {:.1} s", backend.name(), start.elapsed().as_secs_f64());
        }
        Err(failure) => panic!("{name} on {}: {}", backend.name(), again(failure)),
    };
    if let Ok(line) = std::env::var("SWIGLU_CASE") {
        let case: Case = line.parse().unwrap_or_else(|e| panic!("SWIGLU_CASE: {e}"));
        if check.applies(&case) {
            finish(check.case(backend, &case, config));
        } else {
            println!("{name}: nothing to do, SWIGLU_CASE is not one of its cases");
        }
        return;
    }
    let file = regression_file(manifest, config.file);
    for case in regressions::read(&file) {
        if check.applies(&case)
            && let Err(failure) = check.case(backend, &case, config)
        {
            panic!("{name} on {}, a case that failed before: {}", backend.name(), again(failure));
        }
    }
    let result = check.run(backend, config, number("SWIGLU_CASES", config.cases), seed);
    if let (Err(Failure { case: Some(case), .. }), true) = (&result, check.takes_cases()) {
        regressions::append(&file, case);
    }
    finish(result);
}

/// Makes the suite's tests for a backend.
///
/// ```no_run
/// # // A doctest does not run its `#[test]`s; compiling them is the point.
/// swiglu_testkit::suite! {
///     backend: swiglu_testkit::Naive::new(),
///     config: swiglu_testkit::Config::cpu("swiglu-testkit", "suite_on_naive"),
/// }
/// # fn main() {}
/// ```
///
/// `backend` and `config` are expressions, evaluated in each test. Put the call into a module to have several.
#[macro_export]
macro_rules! suite {
    (backend: $backend:expr, config: $config:expr $(,)?) => {
        $crate::suite! { @tests ($backend) ($config)
            forward_f32 Differential($crate::Pass::Forward, $crate::Dtype::F32);
            forward_bf16 Differential($crate::Pass::Forward, $crate::Dtype::Bf16);
            forward_f16 Differential($crate::Pass::Forward, $crate::Dtype::F16);
            dx_f32 Differential($crate::Pass::Dx, $crate::Dtype::F32);
            dx_bf16 Differential($crate::Pass::Dx, $crate::Dtype::Bf16);
            dx_f16 Differential($crate::Pass::Dx, $crate::Dtype::F16);
            dwf_f32 Differential($crate::Pass::Dwf, $crate::Dtype::F32);
            dwf_bf16 Differential($crate::Pass::Dwf, $crate::Dtype::Bf16);
            dwf_f16 Differential($crate::Pass::Dwf, $crate::Dtype::F16);
            exact_integers ExactIntegers;
            metamorphic Metamorphic;
            special_values SpecialValues;
            errors Errors;
            dense Dense;
            layers Layers;
            run_to_run RunToRun;
        }
    };
    (@tests $backend:tt $config:tt $($name:ident $check:ident $(($($arg:expr),*))?;)*) => {
        $($crate::suite! { @test $backend $config $name $check $(($($arg),*))? })*
    };
    (@test ($backend:expr) ($config:expr) $name:ident $check:ident $($args:tt)?) => {
        #[test]
        fn $name() {
            let check = $crate::Check::$check $($args)?;
            $crate::run_test(&$backend, &$config, check, module_path!(), env!("CARGO_MANIFEST_DIR"));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_functions() {
        let names = Check::ALL.map(|check| check.to_string());
        assert_eq!(names[1], "forward_bf16");
        assert_eq!(names[15], "run_to_run");
    }

    #[test]
    fn seeds_differ_by_test_seed_and_space() {
        let seed = mixed_seed("forward_f32", 0, 0);
        assert_ne!(seed, mixed_seed("forward_f16", 0, 0));
        assert_ne!(seed, mixed_seed("forward_f32", 1, 0));
        assert_ne!(seed, mixed_seed("forward_f32", 0, 1));
        assert_eq!(seed, mixed_seed("forward_f32", 0, 0));
    }

    #[test]
    fn a_reproducer_names_case_package_file_and_test() {
        let config = Config::cpu("swiglu-cpu", "suite");
        let case = Case::new(1, 2, 3, Dtype::F16);
        let line = config.reproducer("avx2::forward_f16", Some(&case));
        let expected = "SWIGLU_CASE=\"m1k2d3 f16 InOut packed pad0 swiglu infer normal s0\" \
                        cargo test -p swiglu-cpu --test suite avx2::forward_f16";
        assert_eq!(line, expected);
        let quoted = line.split('"').nth(1).unwrap_or_default();
        assert_eq!(quoted.parse(), Ok(case));
    }
}
