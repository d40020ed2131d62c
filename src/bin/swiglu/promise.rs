//! What each backend promises to the testkit.

use swiglu::{Cpu, DeviceId, Isa};
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
        flushes: Cpu::new().isa().map_or(&[], Isa::flushes_subnormals_of),
        ..Config::cpu("swiglu-cpu", "suite")
    }
}
