//! What a call will do, without doing it.

use swiglu_core::{
    Dims, Dtype, GradientKind, Orientation, Pass, Plan, Precision, Problem, Route, UpstreamKind,
};

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

fn describe(kernel: &str, what: &str, grid: &Grid) -> String {
    let Grid { m, n, k, row_edge, col_edge, .. } = grid;
    let blocks = grid.blocks();
    format!("{what}: {kernel} [{m} x {k}] . [{k} x {n}] in {blocks} blocks of {row_edge} x {col_edge}")
}

impl KernelVisitor for Fused<'_> {
    type Output = Plan;

    fn visit<K: Kernel>(self, kernel: K) -> Plan {
        let Problem { dims, orientation, gate, dtype, .. } = *self.problem;
        let grids = Grids::new(kernel, self.problem, self.threads);
        let projection = Projection::new(kernel, self.problem, self.threads);
        let kernel = kernel_name(kernel, dtype);
        let mut launches = Vec::new();
        let (mut task_len, mut dotted_len) = (0, 0);
        let mut product = |launches: &mut Vec<String>, kernel: &str, what: &str, grid: &Grid| {
            launches.push(describe(kernel, what, grid));
            task_len = task_len.max(grid.task_len());
        };
        let call_len = match self.problem.pass {
            Pass::Forward { save } => {
                let kept = if save { ", keeping pre-activations" } else { "" };
                let what = format!("forward with {gate} epilogue{kept}");
                match projection {
                    Projection::Tiled(grid) => product(&mut launches, kernel, &what, &grid),
                    streamed @ (Projection::Streamed(grid) | Projection::Dotted(grid)) => {
                        task_len = streamed.task_len();
                        launches.push(format!("{}, weights read in place", describe(kernel, &what, &grid)));
                    }
                }
                0
            }
            Pass::Backward { saved, dx, dwf, dbias } => {
                match (saved, grids.dz) {
                    (true, None) => {
                        launches.push(format!("gate gradient of {gate} in place{}", sums(dbias)));
                    }
                    (false, None) => {
                        let what = format!("forward again with {gate} gradient epilogue");
                        product(&mut launches, kernel, &what, &grids.projection);
                    }
                    (saved, Some(grid)) => {
                        if !saved {
                            product(&mut launches, kernel, "pre-activations again", &grids.projection);
                        }
                        product(&mut launches, kernel, &format!("dz with {gate} gradient epilogue"), &grid);
                    }
                }
                if dbias.is_some() && (!saved || grids.dz.is_some()) {
                    launches.push("column sums of dAB".to_owned());
                }
                // dAB that was computed again is in f32.
                let kernel = if saved { kernel } else { K::NAME };
                match grids.dx {
                    _ if dx.is_none() => {}
                    InputGradient::Tiled(grid) => product(&mut launches, kernel, "dx", &grid),
                    InputGradient::Dotted(grid) => {
                        dotted_len = grids.dx.task_len();
                        launches.push(format!("{}, weights read in place", describe(kernel, "dx", &grid)));
                    }
                }
                if dwf.is_some() {
                    match orientation {
                        Orientation::InOut => product(&mut launches, kernel, "dwf, both halves", &grids.dwf),
                        Orientation::OutIn => {
                            product(&mut launches, kernel, "dwf gate half", &grids.dwf);
                            product(&mut launches, kernel, "dwf up half", &grids.dwf);
                        }
                    }
                }
                CallSpace::new(dims, saved, dbias.is_some()).len()
            }
        };
        let workspace_bytes = (self.threads * task_len.max(dotted_len) + call_len) * size_of::<f32>();
        Plan::new(format!("cpu {kernel}"), launches, workspace_bytes)
    }
}

fn sums(dbias: Option<GradientKind>) -> &'static str {
    if dbias.is_some() { ", with its column sums" } else { "" }
}

fn composed(problem: &Problem) -> Plan {
    let Dims { batch, hidden, .. } = problem.dims;
    let launches = match problem.pass {
        Pass::Forward { .. } => {
            vec!["sgemm gate".to_owned(), "sgemm up".to_owned(), format!("gate {}", problem.gate)]
        }
        Pass::Backward { saved, dx, dwf, .. } => {
            let mut launches = Vec::new();
            if !saved {
                launches.extend(["sgemm gate".to_owned(), "sgemm up".to_owned()]);
            }
            if problem.upstream != UpstreamKind::Dz {
                launches.push("sgemm dz".to_owned());
            }
            launches.push(format!("gate gradient of {}", problem.gate));
            if dx.is_some() {
                launches.extend(["sgemm dx gate".to_owned(), "sgemm dx up".to_owned()]);
            }
            if dwf.is_some() {
                launches.extend(["sgemm dwf gate".to_owned(), "sgemm dwf up".to_owned()]);
            }
            launches
        }
    };
    let pre = 2 * batch * hidden;
    Plan::new("cpu matrixmultiply", launches, 0)
        .note(format!("allocates {pre} floats of pre-activations on each call"))
}
