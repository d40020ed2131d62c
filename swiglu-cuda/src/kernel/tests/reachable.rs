//! Every kernel that can be launched on a device, found by asking the planner about every problem that it tells apart.

use std::collections::HashSet;

use swiglu_core::{Dims, Dtype, Gate, GradientKind, Options, Orientation, Pass, Precision, Problem, Tile};

use crate::decode::Decode;
use crate::device::Facts;
use crate::forming::Forming;
use crate::gemm::{Family, GateCode, Gemm, Hopper, Product, Vectors, sliced};
use crate::kernel::Kernel;
use crate::plan::{Cotangents, Matmul, Planner};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
const BOTH: [bool; 2] = [false, true];
const TILES: [Tile; 4] = [Tile::Auto, Tile::T32, Tile::T64, Tile::T128];
const FAMILIES: [Option<Family>; 8] = [
    None,
    Some(Family::Simt),
    Some(Family::Mma),
    Some(Family::Sm90),
    Some(Family::Turns),
    Some(Family::Sliced),
    Some(Family::Gemv),
    Some(Family::Decode),
];
/// Bytes that rows start at multiples of: single elements, pairs of f32, vectors.
const ALIGNMENTS: [u32; 3] = [2, 8, 16];

/// Kernels in the order in which they were found, each once.
#[derive(Default)]
struct Found {
    seen: HashSet<Kernel>,
    kernels: Vec<Kernel>,
}

impl Found {
    fn add(&mut self, kernel: Kernel) {
        let kernel = match kernel {
            Kernel::Gemm(gemm) => Kernel::Gemm(gemm.compiled()),
            other => other,
        };
        if self.seen.insert(kernel) {
            self.kernels.push(kernel);
        }
    }
}

/// All kernels of a device.
pub(super) fn kernels(facts: Facts) -> Vec<Kernel> {
    let mut found = Found::default();
    for forced in FAMILIES {
        let planner = Planner { facts, forced, choices: None };
        for dtype in DTYPES {
            for (inputs, outputs) in pairs(ALIGNMENTS, ALIGNMENTS) {
                products(planner, dtype, (inputs, outputs), &mut found);
                for (orientation, tile) in pairs([Orientation::InOut, Orientation::OutIn], TILES) {
                    for precision in [Precision::Strict, Precision::Tf32] {
                        for gate in Gate::ALL {
                            let options = Options::new().tile(tile).precision(precision);
                            let asked = Asked { dtype, orientation, gate, options, inputs, outputs };
                            passes(planner, &asked, &mut found);
                        }
                    }
                }
            }
        }
    }
    beside_products(&mut found);
    if found.kernels.iter().any(|kernel| matches!(kernel, Kernel::Gemm(gemm) if gemm.splits())) {
        found.add(Kernel::Split);
    }
    if found.kernels.iter().any(|kernel| matches!(kernel, Kernel::Gemm(gemm) if gemm.rounds())) {
        BOTH.into_iter().for_each(|transposed| found.add(Kernel::Round { transposed }));
    }
    // Parts follow from the numbers of tiles and slabs, of which there may be any.
    for kernel in found.kernels.clone() {
        let Kernel::Gemm(gemm @ Gemm { family: Family::Sliced, .. }) = kernel else { continue };
        let cut = sliced::PARTS.map(|parts| Gemm { parts, ..gemm });
        cut.into_iter().filter(|gemm| gemm.fits(&facts)).for_each(|gemm| found.add(Kernel::Gemm(gemm)));
    }
    // As those of few tiles do.
    for kernel in found.kernels.clone() {
        let Kernel::Gemm(gemm) = kernel else { continue };
        if !matches!(gemm, Gemm { family: Family::Sm90, product: Product::Store { .. }, parts: 1, .. })
            || gemm.dtype == Dtype::F32
            || gemm.hopper.forms.is_some()
        {
            continue;
        }
        let few = |narrow, parts| {
            let hopper = Hopper { narrow, pairs: parts == 1, ..gemm.hopper };
            Kernel::Gemm(Gemm { hopper, parts, ..gemm })
        };
        [1, 2, 3, 4].into_iter().for_each(|parts| found.add(few(true, parts)));
        [3, 4].into_iter().for_each(|parts| found.add(few(false, parts)));
    }
    // dX forms what it reads in tiles of both widths, in a hurry or not.
    for kernel in found.kernels.clone() {
        let Kernel::Gemm(gemm @ Gemm { hopper: Hopper { forms: Some(forming), .. }, .. }) = kernel else {
            continue;
        };
        for (narrow, in_features) in pairs(BOTH, [256, 4096]) {
            let forms = Some(Forming::new(forming.gate, in_features));
            let hopper = Hopper { narrow, forms, ..gemm.hopper };
            found.add(Kernel::Gemm(Gemm { hopper, ..gemm }));
        }
    }
    // What tuning may put in their place.
    for kernel in found.kernels.clone() {
        kernel.variants(&facts).into_iter().for_each(|variant| found.add(kernel.with(variant)));
    }
    found.kernels
}

fn pairs<A: Copy, B>(
    a: impl IntoIterator<Item = A>,
    b: impl IntoIterator<Item = B> + Clone,
) -> impl Iterator<Item = (A, B)> {
    a.into_iter().flat_map(move |a| b.clone().into_iter().map(move |b| (a, b)))
}

/// What problems of the op differ in, besides pass and shape.
struct Asked {
    dtype: Dtype,
    orientation: Orientation,
    gate: Gate,
    options: Options,
    inputs: u32,
    outputs: u32,
}

impl Asked {
    fn problem(&self, pass: Pass, (batch, in_features, hidden): (usize, usize, usize)) -> Problem {
        // Halves of packed rows are as aligned as the rows.
        let dims = Dims { batch, in_features, hidden };
        let mut problem = Problem::dense(pass, self.dtype, dims, self.orientation, self.options);
        problem.gate = self.gate;
        let accesses = &mut problem.accesses;
        for input in [&mut accesses.x, &mut accesses.gate, &mut accesses.up] {
            input.align = self.inputs;
        }
        // Saved pre-activations are what the gradients' products read.
        accesses.pre.align =
            if matches!(pass, Pass::Forward { .. }) { self.outputs } else { self.inputs.max(self.outputs) };
        for output in [&mut accesses.z, &mut accesses.dx, &mut accesses.dwf_gate, &mut accesses.dwf_up] {
            output.align = self.outputs;
        }
        problem
    }
}

/// Forward and backward.
fn passes(planner: Planner<'_>, asked: &Asked, found: &mut Found) {
    // Columns enough for large blocks of `decode`, and for small ones.
    for ((batch, hidden), save) in pairs(pairs([1, 2, 4, 8, 16, 32, 64, 128, 4096], [4096, 16384]), BOTH) {
        let problem = asked.problem(Pass::Forward { save }, (batch, 4096, hidden));
        let plan = planner.forward(&problem, save).unwrap_or_else(|error| panic!("{problem:?}: {error}"));
        found.add(plan.kernel);
    }
    // Operands that L2 holds, and such as it does not.
    for ((saved, add), (dtype, in_features)) in pairs(
        pairs(BOTH, BOTH).collect::<Vec<_>>(),
        pairs([asked.dtype, Dtype::F32], [256, 4096]).collect::<Vec<_>>(),
    ) {
        let kind = |dtype| Some(GradientKind { dtype, add });
        let pass = Pass::Backward { saved, dx: kind(asked.dtype), dwf: kind(dtype), dbias: kind(dtype) };
        let problem = asked.problem(pass, (4096, in_features, 4096));
        let mut projected = problem.projected(in_features, asked.orientation);
        [projected.accesses.dy.align, projected.accesses.down.align] = [asked.inputs; 2];
        for problem in [problem, projected] {
            let plan = planner.backward(&problem).unwrap_or_else(|error| panic!("{problem:?}: {error}"));
            match plan.cotangents {
                Cotangents::Saved { gate, .. } => {
                    found.add(Kernel::GateBackward { dtype: asked.dtype, gate });
                }
                Cotangents::Recomputed { gemm, .. } => found.add(Kernel::Gemm(gemm)),
                Cotangents::Projected { gemm, again, .. } => {
                    again.into_iter().chain([gemm]).for_each(|gemm| found.add(Kernel::Gemm(gemm)));
                }
                Cotangents::Formed { .. } => {}
            }
            plan.dx.into_iter().chain(plan.dwf).for_each(|gemm| found.add(Kernel::Gemm(gemm)));
            if let Some(sums) = plan.sums {
                found.add(Kernel::PartialSums { dtype: sums.dtype });
                found.add(Kernel::TotalSums { out: sums.out });
            }
        }
    }
}

/// Products of `Dense`. Their tile follows from their size alone.
fn products(planner: Planner<'_>, dtype: Dtype, (inputs, outputs): (u32, u32), found: &mut Found) {
    let blocks = planner.facts.multiprocessors as usize;
    // Few enough for each number of blocks that share a tile of `sm90`.
    let shapes = [16, 32, 64, 128].map(|edge| (edge * blocks, edge));
    for (out, shape) in pairs([dtype, Dtype::F32], shapes) {
        for (a_trans, b_trans) in pairs(BOTH, BOTH) {
            for add in BOTH {
                let call = Matmul { dtype, out, a_trans, b_trans, shape, k: 4096, add, inputs, outputs };
                found.add(Kernel::Gemm(planner.matmul(&call)));
            }
        }
    }
}

/// What `dense.rs` launches besides products; the types and the gate are all that it tells apart.
fn beside_products(found: &mut Found) {
    found.add(Kernel::MeanLoss);
    for dtype in DTYPES {
        for gate in (0..Gate::ALL.len() as u8).map(GateCode) {
            found.add(Kernel::GateForward { dtype, gate });
            found.add(Kernel::GateBackward { dtype, gate });
        }
        found.add(Kernel::Realign { dtype });
        found.add(Kernel::Gather { dtype });
        found.add(Kernel::AddBias { dtype });
        found.add(Kernel::PartialSums { dtype });
        found.add(Kernel::TotalSums { out: dtype });
        found.add(Kernel::RowLoss { dtype });
        found.add(Kernel::AdamW { dtype, gradient_f32: true });
        if dtype != Dtype::F32 {
            found.add(Kernel::AdamW { dtype, gradient_f32: false });
        }
    }
}

fn f16_as_bf16(dtype: Dtype) -> Dtype {
    if dtype == Dtype::F16 { Dtype::Bf16 } else { dtype }
}

/// The kernel with everything made equal that a thinned sweep need not try on every architecture: what is left is
/// family, kind of product or pass, element types (f16 counts as bf16 in products) and tile.
pub(super) fn class(kernel: Kernel) -> Kernel {
    let swiglu = GateCode(0);
    match kernel {
        Kernel::Gemm(gemm) => {
            let product = match gemm.product {
                Product::Store { out } => Product::Store { out: f16_as_bf16(out) },
                Product::Gate(_) => Product::Gate(swiglu),
                Product::GateGradient(_) => Product::GateGradient(swiglu),
                Product::Cotangents(_) => Product::Cotangents(swiglu),
            };
            let vectors = Vectors::default();
            let forms = gemm.hopper.forms.map(|forming| Forming { gate: swiglu, ..forming });
            let hopper = Hopper { forms, ..gemm.hopper };
            let dtype = f16_as_bf16(gemm.dtype);
            Kernel::Gemm(Gemm { dtype, a_trans: false, b_trans: false, product, vectors, hopper, ..gemm })
        }
        Kernel::Gemv { dtype, rows, .. } => {
            Kernel::Gemv { dtype, b_trans: false, gate: swiglu, rows, vectors: false }
        }
        Kernel::Decode(decode) => Kernel::Decode(Decode { b_trans: false, gate: swiglu, ..decode }),
        Kernel::GateForward { dtype, .. } => Kernel::GateForward { dtype, gate: swiglu },
        Kernel::GateBackward { dtype, .. } => Kernel::GateBackward { dtype, gate: swiglu },
        other => other,
    }
}

/// Whether a thinned sweep may leave a kernel to the whole one: f16, where bf16 has the same kernel; a gate function other
/// than SwiGLU in one more type, arrangement of the weights or kind of product; and another number of parts of k: `sm90` has
/// one, and narrow tiles only where they are written in boxes, `sliced` two and 16. Each gate function has it along
/// `[I, 2D]` weights, in forwards and in gate gradients, in bf16 on `mma` and in f32 on `simt`; in `sm90`, where NVRTC takes
/// two seconds for each kernel, in bf16, as everything there, by pairs of blocks and into boxes alone, for products that make
/// dz too; in `sliced` with one number of parts; and in `decode` for 16 rows.
pub(super) fn is_one_more(kernel: Kernel) -> bool {
    if let Kernel::Gemm(Gemm { family, dtype, parts, hopper, .. }) = kernel {
        let one = match family {
            Family::Sm90 => parts == 1 && dtype != Dtype::F16 && (!hopper.narrow || hopper.boxes),
            Family::Sliced => matches!(parts, 2 | 16),
            _ => true,
        };
        if !one {
            return true;
        }
    }
    let (gate, dtype, out_in) = match kernel {
        Kernel::Gemm(Gemm { dtype, b_trans, product, hopper, .. }) => match (product, hopper.forms) {
            (Product::Gate(gate) | Product::GateGradient(gate), _) => (gate, dtype, b_trans),
            // Down projections as checkpoints have them, [O, D], are not transposed.
            (Product::Cotangents(gate), _) => (gate, dtype, !b_trans),
            // [2D, I] weights are transposed in the projections, and not in dX.
            (Product::Store { .. }, Some(forming)) => (forming.gate, dtype, !b_trans),
            (Product::Store { .. }, None) => return dtype == Dtype::F16,
        },
        Kernel::Gemv { dtype, b_trans, gate, .. } => (gate, dtype, b_trans),
        Kernel::Decode(Decode { dtype, b_trans, gate, .. }) => (gate, dtype, b_trans),
        _ => return false,
    };
    let extra = match kernel {
        Kernel::Gemm(Gemm { family: Family::Sm90, hopper, .. }) => {
            dtype == Dtype::F32
                || !hopper.pairs
                || !hopper.boxes
                || hopper.forms.is_some_and(|it| !it.hurries)
        }
        Kernel::Gemm(Gemm { product: Product::Cotangents(_), .. }) => true,
        Kernel::Decode(Decode { rows, .. }) => rows != 16,
        Kernel::Gemm(Gemm { family: Family::Sliced, parts, .. }) => parts > 2,
        Kernel::Gemm(Gemm { family: Family::Mma, dtype, .. }) => dtype == Dtype::F32,
        Kernel::Gemm(Gemm { family: Family::Simt, dtype, .. }) => dtype != Dtype::F32,
        _ => false,
    };
    gate != GateCode(0) && (dtype == Dtype::F16 || out_in || extra)
}
