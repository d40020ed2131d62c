//! What each backend promises to the testkit.

use swiglu::{Cpu, DeviceId, Dtype};
use swiglu_testkit::Config;
use swiglu_testkit::bounds::Rounding;

/// What the backend of a device promises, beyond the contract of the op.
pub(crate) fn of(device: DeviceId) -> Config {
    if device == DeviceId::HOST { cpu() } else { Config::cuda("swiglu-cuda", "gpu") }
}

fn cpu() -> Config {
    Config {
        composed: Rounding::Fused,
        orientation_invariant: true,
        zero_column_invariant: true,
        // A property of its kernel for bf16.
        flushes: if Cpu::new().isa().is_ok_and(|isa| isa.flushes_subnormals(Dtype::Bf16)) {
            &[Dtype::Bf16]
        } else {
            &[]
        },
        ..Config::cpu("swiglu-cpu", "suite")
    }
}
