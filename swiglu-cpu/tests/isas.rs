//! The suite on every instruction set that this machine has, with fewer cases; absent ones are counted and named.

use swiglu_cpu::{Cpu, Isa};
use swiglu_testkit::bounds::Rounding;
use swiglu_testkit::{Check, Config};

const ISAS: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Neon];

#[test]
fn every_instruction_set_passes_the_suite() {
    let config = Config {
        composed: Rounding::Fused,
        orientation_invariant: true,
        zero_column_invariant: true,
        ..Config::cpu("swiglu-cpu", "isas")
    };
    let mut skipped = Vec::new();
    for isa in ISAS {
        match Cpu::new().with_isa(isa) {
            Ok(cpu) => {
                for check in Check::ALL {
                    let report = check.run(&cpu, &config, 200, 1);
                    assert!(report.is_ok(), "{isa} {check}: {:?}", report.err());
                }
            }
            Err(absent) => skipped.push(absent.to_string()),
        }
    }
    println!("{} of {} instruction sets run, skipped: {skipped:?}", ISAS.len() - skipped.len(), ISAS.len());
    assert!(skipped.len() < ISAS.len(), "the portable kernel always runs");
}
