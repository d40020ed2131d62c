//! `swiglu plan`: which kernels a shape would use, and why.

use swiglu::{
    Complete, Dtype, GradientKind, Job, Options, Pass, Plan, Precision, Problem, Result, SwiGLU, bf16, f16,
};

use crate::cli::{PassChoice, PlanArgs};
use crate::failure::{Failure, Outcome};
use crate::print;

pub(crate) fn run(args: &PlanArgs) -> Outcome {
    if args.down.is_some() && !args.pass.is_backward() {
        let message = "--down is for --pass backward and recompute: forward has no gradient to project";
        return Err(Failure::usage("plan", message));
    }
    let problem = problem(args);
    let plan = args.device.run(Planning(problem))??;
    let dtype = problem.dtype;
    print(format_args!(
        "shape {} (batch, in_features, hidden), {dtype}, {:.3} GFLOP",
        args.shape,
        problem.flops() / 1e9
    ))?;
    print(plan)?;
    Ok(true)
}

fn problem(args: &PlanArgs) -> Problem {
    let dtype = args.dtype.into();
    let orientation = args.orientation.into();
    let precision = if args.tf32 { Precision::Tf32 } else { Precision::Strict };
    let options = Options::new().tile(args.tile.into()).route(args.route.into()).precision(precision);
    let mut problem = Problem::dense(pass(args.pass, dtype), dtype, args.shape.0, orientation, options);
    problem.gate = args.gate.into();
    match args.down {
        Some(out_features) => problem.projected(out_features, orientation),
        None => problem,
    }
}

fn pass(choice: PassChoice, dtype: Dtype) -> Pass {
    let gradient = Some(GradientKind { dtype, add: false });
    let backward = |saved| Pass::Backward { saved, dx: gradient, dwf: gradient, dbias: None };
    match choice {
        PassChoice::Forward => Pass::Forward { save: false },
        PassChoice::Save => Pass::Forward { save: true },
        PassChoice::Backward => backward(true),
        PassChoice::Recompute => backward(false),
    }
}

/// Asks a device for the plan of a problem.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planning(pub(crate) Problem);

impl Job for Planning {
    type Output = Result<Plan>;

    fn run<B: Complete>(self, backend: B) -> Result<Plan> {
        match self.0.dtype {
            Dtype::F32 => SwiGLU::<f32>::plan(&backend, &self.0),
            Dtype::F16 => SwiGLU::<f16>::plan(&backend, &self.0),
            Dtype::Bf16 => SwiGLU::<bf16>::plan(&backend, &self.0),
        }
    }
}
