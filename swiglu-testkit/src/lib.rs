//! Oracles, error bounds, generators and the suite that every fused SwiGLU backend passes.
#![forbid(unsafe_code)]

mod arrange;
mod bits;
pub mod bounds;
mod case;
mod catalogue;
pub mod check;
mod config;
mod data;
mod fake;
mod guarded;
mod judge;
mod mutants;
mod naive;
pub mod oracle;
mod part;
mod regressions;
mod report;
mod suite;

pub use bits::{Bits, Value};
pub use case::{Case, Data, DownCase, How, Keep, Packing, Pads, ParseCaseError, Pass, Space, cases};
pub use config::Config;
pub use data::{Inputs, real};
pub use fake::{Fake, FakeBlock, FakeMemory, FakePtr, Fault, Slip};
pub use mutants::{Kill, Mutant, kills, kinds, mutant_cases};
pub use naive::{Bug, Naive};
pub use report::{Failure, Report, Worst};
pub use suite::{Check, Complete, run_test};
#[doc(no_inline)]
pub use swiglu_core::Dtype;
