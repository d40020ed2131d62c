//! What the suite may expect of a backend.

use swiglu_core::{Dtype, Route};

use crate::bounds::{Model, Rounding};
use crate::case::Case;

/// What a backend promises beyond the contract of the op, and how its arithmetic rounds.
///
/// ```
/// use swiglu_testkit::Config;
/// let config = Config { watch_factor: 0.1, ..Config::cpu("swiglu-cpu", "suite") };
/// assert!(config.batch_invariant);
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// The crate whose tests run, for reproducers.
    pub package: &'static str,
    /// The test file of it.
    pub file: &'static str,
    /// Features that `cargo test` needs, as one flag's value; empty for none.
    pub features: &'static str,
    /// Cases of each differential test; other tests run a share of that. `SWIGLU_CASES` overrides it.
    pub cases: u32,
    /// Unit roundoff of an accumulation.
    pub accumulator: f64,
    /// Where [`Route::Fused`] rounds in between.
    pub fused: Rounding,
    /// Where [`Route::Composed`] rounds in between.
    pub composed: Rounding,
    /// Whether pre-activations that backward computes again are rounded to the element type.
    pub rounds_recomputed: bool,
    /// Whether they are, before their bias, where dz comes from dy.
    pub rounds_recomputed_projected: bool,
    /// Element types whose kernels turn subnormals into 0.
    pub flushes: &'static [Dtype],
    /// Relative error of the gate functions, in units of 2^-24.
    pub gate_units: f64,
    /// The watch bound times this is what counts as a violation.
    pub watch_factor: f64,
    /// Whether a violation of the watch bound fails.
    pub watch_fails: bool,
    /// Same bits of z, pre-activations and dx for any split and any order of the batch.
    pub batch_invariant: bool,
    /// Same bits for any order of the hidden units.
    pub hidden_invariant: bool,
    /// Same bits for both orientations of the weights.
    pub orientation_invariant: bool,
    /// Same bits for any packing and row stride.
    pub stride_invariant: bool,
    /// Same bits when columns of zeros are appended to x (and rows to the weights).
    pub zero_column_invariant: bool,
    /// Routes to test.
    pub routes: &'static [Route],
}

impl Config {
    /// A CPU backend: f32 accumulation, same bits for any batch, order and stride.
    pub const fn cpu(package: &'static str, file: &'static str) -> Self {
        Self {
            package,
            file,
            features: "",
            cases: 2000,
            accumulator: Dtype::F32.unit_roundoff(),
            fused: Rounding::Fused,
            composed: Rounding::Unfused,
            rounds_recomputed: false,
            rounds_recomputed_projected: false,
            flushes: &[],
            gate_units: 8.0,
            watch_factor: 1.0,
            watch_fails: true,
            batch_invariant: true,
            hidden_invariant: true,
            orientation_invariant: false,
            stride_invariant: true,
            zero_column_invariant: false,
            routes: &[Route::Fused, Route::Composed],
        }
    }

    /// A CUDA backend: tensor-core accumulation; alignment and shape may choose another kernel with other bits.
    pub const fn cuda(package: &'static str, file: &'static str) -> Self {
        Self {
            accumulator: 2.0 * Dtype::F32.unit_roundoff(),
            batch_invariant: false,
            hidden_invariant: false,
            stride_invariant: false,
            rounds_recomputed_projected: true,
            ..Self::cpu(package, file)
        }
    }

    /// The same with every route rounding in between, as [`Unfused`](swiglu_core::Unfused) does.
    #[must_use]
    pub const fn unfused(mut self) -> Self {
        self.fused = Rounding::Unfused;
        self.composed = Rounding::Unfused;
        self
    }

    /// Where calls of this route round in between.
    pub fn rounding(&self, route: Route) -> Rounding {
        match route {
            Route::Fused => self.fused,
            Route::Composed => self.composed,
        }
    }

    /// The arithmetic of a case.
    pub fn model(&self, case: &Case) -> Model {
        Model {
            dtype: case.dtype,
            accumulator: self.accumulator,
            rounding: self.rounding(case.route),
            flushes: self.flushes.contains(&case.dtype),
            gate_units: self.gate_units,
        }
    }

    /// The command that runs one case again.
    pub fn reproducer(&self, test: &str, case: Option<&Case>) -> String {
        let case = case.map(|case| format!("SWIGLU_CASE=\"{case}\" ")).unwrap_or_default();
        let features = match self.features {
            "" => String::new(),
            features => format!(" --features {features}"),
        };
        format!("{case}cargo test -p {}{features} --test {} {test}", self.package, self.file)
    }
}
