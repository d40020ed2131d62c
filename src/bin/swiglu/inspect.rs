//! `swiglu inspect`: which MLPs a checkpoint holds, and the call that loads each.

use serde::Serialize;
use swiglu::checkpoint::{Checkpoint, Mlp, Packing, Problem};
use swiglu::{Dtype, Orientation};

use crate::cli::InspectArgs;
use crate::failure::{Failure, Outcome};
use crate::{print, print_json};

/// Everything, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
struct Report {
    path: String,
    mlps: Vec<Found>,
    problems: Vec<Unusable>,
}

/// An MLP that can be loaded, or all experts of a layer that share tensors.
#[derive(Clone, Debug, Serialize)]
struct Found {
    /// What [`Checkpoint::mlp`] takes; for experts, of the first.
    name: String,
    prefix: String,
    /// How many experts share the tensors; `None` where they hold one MLP.
    experts: Option<u64>,
    family: String,
    packing: &'static str,
    orientation: &'static str,
    gate: String,
    dtype: String,
    in_features: usize,
    hidden: usize,
    out_features: usize,
    bias: bool,
    down_bias: bool,
    /// The call that loads it.
    load: String,
}

/// What looks like an MLP but cannot be loaded.
#[derive(Clone, Debug, Serialize)]
struct Unusable {
    prefix: String,
    family: String,
    reason: String,
}

impl From<&Problem> for Unusable {
    fn from(problem: &Problem) -> Self {
        Self {
            prefix: problem.prefix().to_owned(),
            family: problem.family().to_string(),
            reason: problem.reason().to_string(),
        }
    }
}

pub(crate) fn run(args: &InspectArgs) -> Outcome {
    let checkpoint = Checkpoint::open(&args.path).map_err(|error| Failure::Message(error.to_string()))?;
    let mlps = found(&checkpoint);
    if args.json {
        let path = checkpoint.path().display().to_string();
        print_json(&Report {
            path,
            mlps,
            problems: checkpoint.problems().iter().map(Unusable::from).collect(),
        })?;
    } else {
        print(text(&checkpoint, &mlps))?;
    }
    Ok(true)
}

/// The checkpoint's own report, and the call for each MLP.
fn text(checkpoint: &Checkpoint, mlps: &[Found]) -> String {
    let mut text = checkpoint.to_string();
    match mlps.first() {
        None => text += "no MLP with a gate was found that can be loaded",
        Some(_) => {
            let open = format!("let checkpoint = Checkpoint::open({:?})?;", checkpoint.path());
            text += "\nTo load one (swiglu::checkpoint::Checkpoint, feature `checkpoint`):\n  ";
            text += &open;
            for found in mlps {
                text += "\n  ";
                text += &found.load;
            }
            text += "\n  let layer = weights.layer(&backend)?;";
        }
    }
    text
}

/// Every MLP, with all experts that share tensors as one.
fn found(checkpoint: &Checkpoint) -> Vec<Found> {
    let mut list: Vec<Found> = Vec::new();
    for mlp in checkpoint.mlps() {
        match (mlp.expert(), list.last_mut()) {
            (Some(expert), Some(Found { experts: Some(experts), .. })) if expert > 0 => *experts = expert + 1,
            _ => list.push(describe(mlp)),
        }
    }
    list
}

fn describe(mlp: Mlp<'_>) -> Found {
    let name = mlp.name();
    Found {
        load: format!("let weights = checkpoint.mlp({name:?})?.load::<{}>()?;", element(mlp.dtype())),
        prefix: mlp.prefix().to_owned(),
        experts: mlp.expert().map(|_| 1),
        family: mlp.family().to_string(),
        packing: match mlp.packing() {
            Packing::Split => "split",
            Packing::Halves => "halves",
            Packing::InterleavedColumns => "interleaved_columns",
            _ => "other",
        },
        orientation: match mlp.orientation() {
            Orientation::InOut => "in_out",
            Orientation::OutIn => "out_in",
        },
        gate: mlp.function().to_string(),
        dtype: mlp.dtype().to_string(),
        in_features: mlp.in_features(),
        hidden: mlp.hidden(),
        out_features: mlp.out_features(),
        bias: mlp.has_bias(),
        down_bias: mlp.has_down_bias(),
        name,
    }
}

/// The type's path in Rust.
fn element(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "swiglu::f16",
        Dtype::Bf16 => "swiglu::bf16",
    }
}
