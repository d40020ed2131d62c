//! The suite on every instruction set that this machine has, with fewer cases; absent ones are counted and named.

use swiglu_cpu::{Cpu, Isa};
use swiglu_testkit::bounds::Rounding;
use swiglu_testkit::{Check, Config};

const ISAS: [Isa; 6] = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

#[test]
fn every_instruction_set_passes_the_suite() {
    let mut skipped = Vec::new();
    for isa in ISAS {
        match Cpu::new().with_isa(isa) {
            Ok(cpu) => {
                let config = Config {
                    composed: Rounding::Fused,
                    orientation_invariant: true,
                    zero_column_invariant: true,
                    flushes: isa.flushes_subnormals_of(),
                    ..Config::cpu("swiglu-cpu", "isas")
                };
                for check in Check::ALL {
                    let report = check.run(&cpu, &config, 150, 1);
                    assert!(report.is_ok(), "{isa} {check}: {:?}", report.err());
                }
            }
            Err(absent) => skipped.push(absent.to_string()),
        }
    }
    println!("{} of {} instruction sets run, skipped: {skipped:?}", ISAS.len() - skipped.len(), ISAS.len());
    assert!(skipped.len() < ISAS.len(), "the portable kernel always runs");
}
