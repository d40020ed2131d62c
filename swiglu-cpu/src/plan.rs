//! What a call will do, without doing it.

use swiglu_core::{
    Dims, Dtype, GradientKind, Orientation, Pass, Plan, Precision, Problem, Route, UpstreamKind,
};

use crate::arena::Space;
use crate::grid::Grid;
use crate::isa::Isa;
use crate::kernels::{Kernel, KernelVisitor};
use crate::passes::{CallSpace, Grids, InputGradient, Projection};

/// A pure function of the problem, the instruction set and the thread count.
pub(crate) fn plan(isa: Isa, threads: usize, problem: &Problem) -> Plan {
    let plan = match problem.options.route {
        Route::Fused => isa.dispatch(Fused { threads, problem }),
        Route::Composed => composed(problem),
    };
    let plan = match problem.options.precision {
        Precision::Strict => plan,
        Precision::Tf32 => plan.note("tf32 does not exist on the cpu: products are strict f32"),
    };
    match isa {
        Isa::Portable => plan.note("portable kernel: products are rounded before they are added"),
        _ if isa.flushes_subnormals_of().contains(&problem.dtype)
            && problem.options.route == Route::Fused =>
        {
            plan.note("bf16 dot products: subnormals count as 0, some products along k are summed first")
        }
        _ => plan,
    }
}

struct Fused<'p> {
    threads: usize,
    problem: &'p Problem,
}

/// Name of the kernel that multiplies the elements of a problem.
fn kernel_name<K: Kernel>(kernel: K, dtype: Dtype) -> &'static str {
    struct Name;
    impl KernelVisitor for Name {
        type Output = &'static str;
        fn visit<K: Kernel>(self, _: K) -> &'static str {
            K::NAME
        }
    }
    if dtype == Dtype::Bf16 { kernel.for_bf16(Name) } else { Name.visit(kernel) }
}

/// The products of a call so far, and what they work in.
#[derive(Default)]
struct Launches {
    lines: Vec<String>,
    space: Space,
}

impl Launches {
    fn pass(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// A product on the tiled driver.
    fn tiled(&mut self, kernel: &str, what: &str, grid: &Grid) {
        let packed = if grid.ahead { ", rows packed once" } else { "" };
        self.product(kernel, what, grid, packed, grid.space());
    }

    /// A product of few rows.
    fn in_place(&mut self, kernel: &str, what: &str, grid: &Grid, space: Space) {
        self.product(kernel, what, grid, ", weights read in place", space);
    }

    fn product(&mut self, kernel: &str, what: &str, grid: &Grid, how: &str, space: Space) {
        let Grid { m, n, k, row_edge, col_edge, .. } = grid;
        let blocks = grid.blocks();
        self.pass(format!(
            "{what}: {kernel} [{m} x {k}] . [{k} x {n}] in {blocks} blocks of {row_edge} x {col_edge}{how}"
        ));
        self.space = self.space.or(space);
    }
}

impl KernelVisitor for Fused<'_> {
    type Output = Plan;

    fn visit<K: Kernel>(self, kernel: K) -> Plan {
        let Problem { dims, orientation, gate, dtype, .. } = *self.problem;
        let grids = Grids::new(kernel, self.problem, self.threads);
        let projection = Projection::new(kernel, self.problem, self.threads);
        let kernel = kernel_name(kernel, dtype);
        let mut launches = Launches::default();
        match self.problem.pass {
            Pass::Forward { save } => {
                let kept = if save { ", keeping pre-activations" } else { "" };
                let what = format!("forward with {gate} epilogue{kept}");
                match projection {
                    Projection::Tiled(grid) => launches.tiled(kernel, &what, &grid),
                    Projection::Streamed(grid) | Projection::Dotted(grid) => {
                        launches.in_place(kernel, &what, &grid, projection.space());
                    }
                }
            }
            Pass::Backward { saved, dx, dwf, dbias } => {
                match (saved, grids.dz) {
                    (true, None) => {
                        launches.pass(format!("gate gradient of {gate} in place{}", sums(dbias)));
                    }
                    (false, None) => {
                        let what = format!("forward again with {gate} gradient epilogue");
                        launches.tiled(kernel, &what, &grids.projection);
                    }
                    (saved, Some(grid)) => {
                        if !saved {
                            launches.tiled(kernel, "pre-activations again", &grids.projection);
                        }
                        launches.tiled(kernel, &format!("dz with {gate} gradient epilogue"), &grid);
                    }
                }
                if dbias.is_some() && (!saved || grids.dz.is_some()) {
                    launches.pass("column sums of dAB");
                }
                // dAB that was computed again is in f32.
                let kernel = if saved { kernel } else { K::NAME };
                match grids.dx {
                    _ if dx.is_none() => {}
                    InputGradient::Tiled(grid) => launches.tiled(kernel, "dx", &grid),
                    InputGradient::Dotted(grid) => {
                        launches.in_place(kernel, "dx", &grid, grids.dx.space());
                    }
                }
                if dwf.is_some() {
                    match orientation {
                        Orientation::InOut => launches.tiled(kernel, "dwf, both halves", &grids.dwf),
                        Orientation::OutIn => {
                            launches.tiled(kernel, "dwf gate half", &grids.dwf);
                            launches.tiled(kernel, "dwf up half", &grids.dwf);
                        }
                    }
                }
                launches.space.call = CallSpace::new(dims, saved, dbias.is_some()).len();
            }
        }
        Plan::new(format!("cpu {kernel}"), launches.lines, launches.space.bytes(self.threads))
    }
}

fn sums(dbias: Option<GradientKind>) -> &'static str {
    if dbias.is_some() { ", with its column sums" } else { "" }
}

fn composed(problem: &Problem) -> Plan {
    let Dims { batch, in_features, hidden } = problem.dims;
    let projections = || ["sgemm gate".to_owned(), "sgemm up".to_owned()];
    let bias = || problem.bias.then(|| "bias".to_owned());
    let mut launches = Vec::new();
    // Copies of x and of the weights, and pre-activations; then z or dz, and what the gradients need.
    let mut floats = batch * in_features + 2 * in_features * hidden + 2 * batch * hidden + batch * hidden;
    match problem.pass {
        Pass::Forward { .. } => {
            launches.extend(projections());
            launches.extend(bias());
            launches.push(format!("gate {}", problem.gate));
        }
        Pass::Backward { saved, dx, dwf, dbias } => {
            if let UpstreamKind::Projected { out_features, .. } = problem.upstream {
                launches.push("sgemm dz".to_owned());
                floats += (batch + hidden) * out_features;
            }
            if !saved {
                launches.extend(projections());
                launches.extend(bias());
            }
            launches.push(format!("gate gradient of {}{}", problem.gate, sums(dbias)));
            floats += 2 * hidden;
            if dx.is_some() {
                launches.extend(["sgemm dx gate".to_owned(), "sgemm dx up".to_owned()]);
                floats += batch * in_features;
            }
            if dwf.is_some() {
                launches.extend(["sgemm dwf gate".to_owned(), "sgemm dwf up".to_owned()]);
                floats += in_features * hidden;
            }
        }
    }
    Plan::new("cpu matrixmultiply", launches, 0)
        .note(format!("allocates up to {floats} floats on each call, copies of the operands among them"))
}
