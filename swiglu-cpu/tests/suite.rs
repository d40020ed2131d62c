//! The testkit's suite on the CPU backend: the best instruction set of the machine, or the one that `SWIGLU_ISA` names.

use swiglu_cpu::{Cpu, Isa};
use swiglu_testkit::Config;
use swiglu_testkit::bounds::Rounding;

swiglu_testkit::suite! {
    backend: Cpu::new(),
    config: Config {
        composed: Rounding::Fused,
        orientation_invariant: true,
        zero_column_invariant: true,
        flushes: Cpu::new().isa().map_or(&[], Isa::flushes_subnormals_of),
        ..Config::cpu("swiglu-cpu", "suite")
    },
}
