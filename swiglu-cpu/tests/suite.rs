//! The testkit's suite on the CPU backend: the best instruction set of the machine, or the one that `SWIGLU_ISA` names.

use swiglu_core::Dtype;
use swiglu_cpu::Cpu;
use swiglu_testkit::Config;
use swiglu_testkit::bounds::Rounding;

swiglu_testkit::suite! {
    backend: Cpu::new(),
    config: Config {
        composed: Rounding::Fused,
        orientation_invariant: true,
        zero_column_invariant: true,
        // A property of its kernel for bf16.
        flushes: if Cpu::new().isa().is_ok_and(|isa| isa.flushes_subnormals(Dtype::Bf16)) { &[Dtype::Bf16] } else { &[] },
        ..Config::cpu("swiglu-cpu", "suite")
    },
}
