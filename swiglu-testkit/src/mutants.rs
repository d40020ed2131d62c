//! Mutation testing of the checks: backends with one seeded bug each, and which checks notice it.

use std::collections::BTreeMap;
use std::fmt;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config as Proptest, RngAlgorithm, TestRng, TestRunner};
use swiglu_core::{Dtype, Route};

use crate::case::{Case, Pass, Space, cases};
use crate::config::Config;
use crate::fake::{Fake, Slip};
use crate::naive::{Bug, Naive};
use crate::suite::{Check, Complete};

/// A backend with something wrong.
///
/// ```
/// use swiglu_testkit::{Bug, Case, Mutant};
/// let case: Case = "m3k5d4 f32 InOut packed pad0 swiglu infer normal s1".parse()?;
/// let kills = Mutant::Arithmetic(Bug::SwapHalves).kills(&[case], 1);
/// assert!(kills.iter().any(|kill| kill.kind() == "differential"));
/// # Ok::<(), swiglu_testkit::ParseCaseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// [`Naive`] with this bug.
    Arithmetic(Bug),
    /// [`Fake`] over a right engine, with this bug.
    Access(Slip),
}

/// A check that noticed a mutant.
#[derive(Clone, Debug)]
pub struct Kill {
    /// Which check.
    pub check: Check,
    /// In which case; `None` for a check that has a list of its own.
    pub case: Option<Case>,
    /// What it said.
    pub message: String,
}

impl Kill {
    /// The kind of check, whatever the pass and element type.
    pub fn kind(&self) -> String {
        match self.check {
            Check::Differential(..) => "differential".to_owned(),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arithmetic(bug) => fmt::Debug::fmt(bug, f),
            Self::Access(slip) => fmt::Debug::fmt(slip, f),
        }
    }
}

impl Mutant {
    /// Every mutant.
    pub fn all() -> impl Iterator<Item = Self> {
        let bugs = Bug::ALL.iter().copied().map(Self::Arithmetic);
        bugs.chain(Slip::ALL.iter().copied().map(Self::Access))
    }

    /// What goes wrong, in one line.
    pub fn description(self) -> &'static str {
        match self {
            Self::Arithmetic(bug) => bug.description(),
            Self::Access(slip) => slip.description(),
        }
    }

    /// The checks that notice this mutant: all that take a case, on these cases; then those with a list of their own,
    /// which are slow, until one of them notices, and only while fewer than `enough` kinds have.
    pub fn kills(self, cases: &[Case], enough: usize) -> Vec<Kill> {
        match self {
            Self::Arithmetic(bug) => kills(&Naive::with(bug), cases, enough),
            Self::Access(slip) => {
                kills(&Fake::new(Naive::new(), u32::MAX - 1).with_slip(slip), cases, enough)
            }
        }
    }
}

/// What the plain loops promise: everything.
fn config() -> Config {
    Config {
        orientation_invariant: true,
        zero_column_invariant: true,
        routes: &[Route::Fused],
        ..Config::cpu("swiglu-testkit", "mutants")
    }
}

/// The checks with a list of their own, the fastest first.
const OWN_LIST: [Check; 4] = [Check::Errors, Check::Dense, Check::Layers, Check::SpecialValues];

/// The checks that a backend fails: see [`Mutant::kills`].
pub fn kills<B: Complete>(backend: &B, cases: &[Case], enough: usize) -> Vec<Kill> {
    let config = config();
    let mut kills = Vec::new();
    for case in cases {
        let mut compared = false;
        for check in Check::ALL.into_iter().filter(|check| check.applies(case)) {
            // A case with two gradients belongs to two differential tests, which run the same code.
            let differential = matches!(check, Check::Differential(..));
            if !(differential && compared)
                && let Err(failure) = check.case(backend, case, &config)
            {
                kills.push(Kill { check, case: Some(*case), message: failure.message });
            }
            compared |= differential;
        }
    }
    for check in OWN_LIST {
        if kinds(&kills).len() >= enough {
            break;
        }
        if let Err(failure) = check.run(backend, &config, 1, 0) {
            kills.push(Kill { check, case: failure.case.map(|case| *case), message: failure.message });
            break;
        }
    }
    kills
}

/// How often each kind of check is among them.
pub fn kinds(kills: &[Kill]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for kill in kills {
        *kinds.entry(kill.kind()).or_default() += 1;
    }
    kinds
}

/// Cases that single bugs need: where rows end inside a tile, where orientations cannot be told by shape, where a sum
/// has a second block, where a batch is empty, where a gate has a corner.
const CHOSEN: [&str; 26] = [
    "m5k300d3 f32 InOut packed pad0 swiglu pre normal s1",
    "m2k517d2 bf16 OutIn packed pad0 swiglu pre dx dwf integers s2",
    "m3k290d2 f16 InOut split pad1 swiglu bias input dx+ dwf dbias normal s24",
    "m6k6d6 f32 OutIn packed pad0 swiglu bias pre dx dwf dbias normal s3",
    "m6k6d6 bf16 OutIn split pad3 swiglu bias input dx dwf32 dbias32 normal s4",
    "m13k9d5 f32 OutIn interleaved pad0 swiglu bias pre dx dwf normal s5",
    "m13k9d5 f16 OutIn interleaved pad2 swiglu bias input dx+ dwf32+ dbias+ uniform s6",
    "m0k5d7 f32 InOut packed pad2 swiglu bias pre dx dwf dbias normal s7",
    "m0k5d7 bf16 OutIn split pad0 swiglu bias input dwf32 dbias32 normal s8",
    "m4k0d3 f32 InOut packed pad1 swiglu bias pre dx dwf dbias normal s9",
    "m9k17d11 f32 InOut packed pad4 reglu pre dx dwf integers s10",
    "m6k8d7 f16 OutIn packed pad0 reglu pre dx+ dwf32 integers s23",
    "m9k17d11 bf16 InOut split pad0 reglu bias pre dx dwf+ sparse s11",
    "m7k33d10 f32 InOut packed pad7 geglu-erf bias pre dx dwf normal s12",
    "m7k33d10 bf16 OutIn packed pad1 geglu-erf input dx dwf dbias normal s13",
    "m7k33d10 f32 InOut packed pad0 geglu-tanh pre dx+ dwf+ dbias+ normal s14",
    "m8k16d16 f32 InOut packed pad0 glu bias pre dx dwf dbias32+ cancelling s15",
    "m11k25d9 f32 InOut packed pad3 swiglu-clamped(1,1.25) bias pre dx dwf normal s16",
    "m11k25d9 f16 OutIn packed pad3 swiglu-clamped(1.702,7) bias input dx dwf normal s17",
    "m17k31d13 f16 InOut packed pad5 swiglu pre dx dwf loguniform s18",
    "m9k20d8 f16 OutIn packed pad0 swiglu pre dx dwf32 loguniform s4",
    "m9k20d8 f16 InOut packed pad0 swiglu infer loguniform s3",
    "m17k31d13 bf16 InOut split pad8 swiglu bias infer normal s19",
    "m15k64d20 f32 InOut packed pad16 swiglu bias infer normal s20",
    "m3k40d6 bf16 InOut packed pad1 swiglu bias input dx dwf32+ dbias32 onehot s21",
    "m23k7d31 f32 InOut packed pad0 swiglu bias input dx+ dwf+ dbias+ uniform s22",
];

/// The cases that every mutant is shown: always the same, chosen ones and drawn ones.
pub fn mutant_cases() -> Vec<Case> {
    let chosen = CHOSEN.iter().map(|line| line.parse().unwrap_or_else(|e| panic!("{e}")));
    chosen.chain(drawn(2)).collect()
}

/// As many cases of every pass and element type, from the generator of the suite.
fn drawn(count: usize) -> Vec<Case> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Proptest::default(), rng);
    let mut drawn = Vec::new();
    for pass in [Pass::Forward, Pass::Dx, Pass::Dwf] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let space = Space { routes: vec![Route::Fused], large: false, ..Space::new(dtype, pass) };
            let space = cases(&space);
            let one = || space.new_tree(&mut runner).map(|tree| tree.current());
            let some = std::iter::repeat_with(one).take(count);
            drawn.extend(some.map(|case| case.unwrap_or_else(|e| panic!("no case: {e}"))));
        }
    }
    drawn
}
