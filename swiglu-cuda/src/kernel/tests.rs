//! Every kernel compiles for every architecture, without spilling a register. Needs NVRTC and no GPU.
//!
//! `SWIGLU_ARCHITECTURES` picks some of them, such as `80,90`.

use std::collections::BTreeSet;

use swiglu_core::Dtype;

use super::*;
use crate::compile::Compiler;
use crate::gemm::{Edge, Vectors};
use crate::{ComputeCapability, CudaVersion, Search};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
const EDGES: [Edge; 3] = [Edge::E32, Edge::E64, Edge::E128];
const BOTH: [bool; 2] = [false, true];
const GATES: std::ops::Range<u8> = 0..6;

/// Shared memory that a block can be given, by architecture: the table of technical specifications in the CUDA
/// programming guide.
const ARCHITECTURES: [(u32, u32, u32); 7] =
    [(7, 0, 96), (7, 5, 64), (8, 0, 163), (8, 6, 99), (8, 9, 99), (9, 0, 227), (12, 0, 99)];

/// The products of a family, with one gate function; the others differ in the epilogue alone.
fn products(family: Family) -> Vec<Kernel> {
    let mut kernels = Vec::new();
    for (dtype, edge, all) in DTYPES
        .into_iter()
        .flat_map(|dtype| EDGES.into_iter().flat_map(move |edge| BOTH.map(|vectors| (dtype, edge, vectors))))
    {
        let vectors = match family {
            Family::Mma => Vectors { a: true, b: true, c: all },
            _ => Vectors { a: all, b: all, c: all },
        };
        let tf32 = family == Family::Mma && dtype == Dtype::F32;
        let base = Gemm {
            family,
            dtype,
            tf32,
            a_trans: false,
            b_trans: false,
            product: Product::Gate(GateCode(0)),
            edge,
            vectors,
        };
        for b_trans in BOTH {
            for product in [Product::Gate(GateCode(0)), Product::GateGradient(GateCode(0))] {
                kernels.push(Kernel::Gemm(Gemm { b_trans, product, ..base }));
            }
            for (a_trans, out) in
                BOTH.into_iter().flat_map(|a_trans| [(a_trans, dtype), (a_trans, Dtype::F32)])
            {
                let product = Product::Store { out };
                kernels.push(Kernel::Gemm(Gemm { a_trans, b_trans, product, ..base }));
            }
        }
    }
    kernels
}

/// Every gate function, in the kernels that have one.
fn gates(family: Family) -> impl Iterator<Item = Kernel> {
    let of = move |gate: GateCode| {
        let paired = products(family).into_iter().filter_map(move |kernel| match kernel {
            Kernel::Gemm(gemm) if gemm.edge == Edge::E64 && !gemm.b_trans && gemm.vectors.c => {
                match gemm.product {
                    Product::Gate(_) => Some(Kernel::Gemm(Gemm { product: Product::Gate(gate), ..gemm })),
                    Product::GateGradient(_) => {
                        Some(Kernel::Gemm(Gemm { product: Product::GateGradient(gate), ..gemm }))
                    }
                    Product::Store { .. } => None,
                }
            }
            _ => None,
        });
        paired.collect::<Vec<_>>()
    };
    GATES.map(GateCode).flat_map(of)
}

/// Everything that is no matrix product.
fn passes() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::MeanLoss];
    for dtype in DTYPES {
        for gate in GATES.map(GateCode) {
            kernels.extend([Kernel::GateForward { dtype, gate }, Kernel::GateBackward { dtype, gate }]);
        }
        kernels.extend([
            Kernel::AddBias { dtype },
            Kernel::PartialSums { dtype },
            Kernel::TotalSums { out: dtype },
        ]);
        kernels.push(Kernel::RowLoss { dtype });
        kernels.extend(BOTH.map(|gradient_f32| Kernel::AdamW { dtype, gradient_f32 }));
        for (b_trans, vectors) in [(false, false), (false, true), (true, false), (true, true)] {
            for rows in [1, 2, 4, 8] {
                kernels.push(Kernel::Gemv { dtype, b_trans, gate: GateCode(0), rows, vectors });
            }
        }
    }
    kernels
}

/// All kernels of an architecture, each once.
fn kernels(capability: ComputeCapability) -> Vec<Kernel> {
    let families = [Family::Simt, Family::Mma];
    let families = families.into_iter().filter(|&family| family == Family::Simt || capability.major >= 8);
    let mut kernels = passes();
    for family in families {
        kernels.extend(products(family));
        kernels.extend(gates(family));
    }
    let mut seen = std::collections::HashSet::new();
    kernels.retain(|kernel| seen.insert(*kernel));
    kernels
}

/// What the assembler says where registers went to memory (`N bytes stack frame, N bytes spill stores`), or a warp's
/// products wait for each other (C75xx).
fn complaint(log: &str) -> Option<&str> {
    let bytes_before = |line: &str, what: &str| -> u32 {
        let before = line.split(what).next().unwrap_or_default();
        before.split_whitespace().next_back().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let bad = |line: &&str| {
        let memory = ["bytes stack frame", "bytes spill stores", "bytes spill loads"];
        line.contains("C75") || memory.iter().any(|what| line.contains(what) && bytes_before(line, what) > 0)
    };
    log.lines().find(bad)
}

#[test]
fn spills_are_noticed() {
    let clean = "ptxas info    : Used 40 registers\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
    assert_eq!(complaint(clean), None);
    for log in [
        "    8 bytes stack frame, 0 bytes spill stores",
        "  . 0 bytes stack frame, 4 bytes spill stores",
        "C7510",
    ] {
        assert_eq!(complaint(log), Some(log));
    }
}

fn asked_for(capability: ComputeCapability) -> bool {
    let Ok(list) = std::env::var("SWIGLU_ARCHITECTURES") else { return true };
    let name = format!("{}{}", capability.major, capability.minor);
    list.split(',').any(|asked| asked == name)
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    let compiler = match Compiler::open(&Search::system()) {
        Ok(compiler) => compiler,
        Err(reason) => {
            assert!(std::env::var_os("SWIGLU_REQUIRE_NVRTC").is_none(), "{reason}");
            eprintln!("skipped: no kernel was compiled, {reason}");
            return;
        }
    };
    let mut failures = BTreeSet::new();
    for (major, minor, kib) in ARCHITECTURES {
        let capability = ComputeCapability { major, minor };
        if !asked_for(capability) {
            continue;
        }
        let driver = CudaVersion { major: 12, minor: 0 };
        let target = match compiler.target(capability, driver) {
            Ok(target) => target,
            Err(reason) => {
                eprintln!("skipped compute capability {capability}: {reason}");
                continue;
            }
        };
        let facts = Facts { capability, multiprocessors: 100, shared_bytes: kib * 1024 };
        let (started, all) = (std::time::Instant::now(), kernels(capability));
        for kernel in &all {
            if matches!(kernel, Kernel::Gemm(gemm) if !gemm.fits(&facts)) {
                continue;
            }
            match compiler.compile(kernel.source(), &target, &kernel.defines(&facts)) {
                Ok(compiled) => {
                    if let Some(line) = complaint(&compiled.log) {
                        failures.insert(format!("{capability} {kernel} {kernel:?}: {line}"));
                    }
                }
                Err(error) => {
                    failures.insert(format!("{capability}: {error}"));
                }
            }
        }
        println!("{capability}: {} kernels in {:.1} s", all.len(), started.elapsed().as_secs_f64());
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.into_iter().collect::<Vec<_>>().join("\n")
    );
}
