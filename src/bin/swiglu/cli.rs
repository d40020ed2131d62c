//! The command line: what it accepts, and nothing of what it does.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand, ValueEnum};
use swiglu::{Device, Dims, Dtype, Gate, Orientation, Route, Tile};
use swiglu_testkit::{Case, Check};

/// Fused SwiGLU on this machine.
#[derive(Clone, Debug, Parser)]
#[command(name = "swiglu", version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 all is well, 1 a check failed or a file is bad, 2 usage.")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    Doctor(DoctorArgs),
    Plan(PlanArgs),
    Inspect(InspectArgs),
    Verify(VerifyArgs),
    Bench(BenchArgs),
}

/// Says what this machine can run on, what is missing and what to do about it.
///
/// Lists the processor, its caches and instruction sets, every device with its driver and compiler, and the kernels of each
/// element type, and compares a few calls on each device with an oracle in f64.
///
/// Each line has PASS, WARN (something cannot be used, the rest can) or ERROR (something is broken). Without a GPU the exit
/// code is 0.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  swiglu doctor
  swiglu doctor --json | jq .devices
  SWIGLU_ISA=avx2 swiglu doctor")]
pub(crate) struct DoctorArgs {
    /// Print one JSON object instead of lines.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints which kernels a shape would use, and why.
///
/// A plan depends on shape, element type, orientation and options, and on the device; nothing is computed. Operands are
/// taken to be dense, weights packed.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  swiglu plan --shape 128,784,512
  swiglu plan --shape 1,4096,11008 --dtype bf16 --orientation out-in --device cuda
  swiglu plan --shape 512,4096,14336 --pass backward --down 4096")]
pub(crate) struct PlanArgs {
    /// Batch, in_features and hidden.
    #[arg(long, value_name = "B,I,D")]
    pub(crate) shape: Shape,

    /// Element type.
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = DtypeChoice::F32)]
    pub(crate) dtype: DtypeChoice,

    /// How the weights lie in memory: [I, 2D], or [2D, I] as checkpoints have them.
    #[arg(long, value_name = "NAME", value_enum, default_value_t = OrientationChoice::InOut)]
    pub(crate) orientation: OrientationChoice,

    /// Which pass.
    #[arg(long, value_name = "PASS", value_enum, default_value_t = PassChoice::Forward)]
    pub(crate) pass: PassChoice,

    /// The gate function.
    #[arg(long, value_name = "GATE", value_enum, default_value_t = GateChoice::Swiglu)]
    pub(crate) gate: GateChoice,

    /// Outputs of a down projection that backward starts from; without it dz is an operand.
    #[arg(long, value_name = "O", value_parser = size())]
    pub(crate) down: Option<usize>,

    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    pub(crate) device: Device,

    /// Allow TF32 for f32, where the device has it.
    #[arg(long)]
    pub(crate) tf32: bool,

    /// Edge of an output tile.
    #[arg(long, value_name = "EDGE", value_enum, default_value_t = TileChoice::Auto)]
    pub(crate) tile: TileChoice,

    /// Whose kernels run: the fused ones, or the platform's matrix product around them.
    #[arg(long, value_name = "ROUTE", value_enum, default_value_t = RouteChoice::Fused)]
    pub(crate) route: RouteChoice,
}

/// Lists the MLPs of a safetensors checkpoint, and the call that loads each.
///
/// Only headers are read. What looks like an MLP but cannot be used is listed with the reason; experts that share a tensor
/// are listed once.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  swiglu inspect model.safetensors
  swiglu inspect model.safetensors.index.json
  swiglu inspect folder-of-a-model --json | jq '.mlps[].name'")]
pub(crate) struct InspectArgs {
    /// A safetensors file, an index of shards, or a folder that holds either.
    #[arg(value_name = "FILE")]
    pub(crate) path: PathBuf,

    /// Print one JSON object instead of lines.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compares this machine's results with oracles in f64 and in exact integers.
///
/// Runs the suite that every backend of the library passes: random shapes, layouts, gates and data in every pass and element
/// type, special values, calls that must be refused, the layers. Each line has the worst error relative to the bound that is
/// proved for it, and where it was. A failure is shrunk to a small case, and printed with the command that runs it again.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  swiglu verify
  swiglu verify --device cuda --cases 2000 --seed 7
  swiglu verify --check forward_bf16
  swiglu verify --case \"m7k33d5 bf16 OutIn split pad3 geglu-erf bias pre dx+ dwf32 normal s42\"")]
pub(crate) struct VerifyArgs {
    /// Random cases of each pass and element type; the other checks run a share of that.
    #[arg(long, value_name = "N", default_value_t = 200)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) cases: u32,

    /// Seed of the random cases.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    pub(crate) device: Device,

    /// Run this check alone.
    #[arg(long, value_name = "NAME", value_parser = check)]
    pub(crate) check: Option<Check>,

    /// Run this case alone, as a failure printed it.
    #[arg(long, value_name = "CASE", conflicts_with_all = ["cases", "seed"])]
    pub(crate) case: Option<Case>,
}

/// Measures the fused op against what it replaces.
///
/// Fused, two linears with an elementwise pass between them over the same backend, and, where it exists, the route through
/// the platform's matrix product, all in interleaved rounds. Rates count 4*B*I*D operations for each of forward, dX and dWf,
/// and are set in proportion to the best rate of a square product of the same backend in the same run.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  swiglu bench --shape 128,784,512
  swiglu bench --shape 1,4096,11008 --dtype bf16 --device cuda
  swiglu bench --shape 512,1024,4096 --pass step --rounds 31 --json")]
pub(crate) struct BenchArgs {
    /// Batch, in_features and hidden.
    #[arg(long, value_name = "B,I,D", default_value = "512,1024,4096")]
    pub(crate) shape: Shape,

    /// Element type.
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = DtypeChoice::F32)]
    pub(crate) dtype: DtypeChoice,

    /// How the weights lie in memory: [I, 2D], or [2D, I] as checkpoints have them.
    #[arg(long, value_name = "NAME", value_enum, default_value_t = OrientationChoice::InOut)]
    pub(crate) orientation: OrientationChoice,

    /// Which calls.
    #[arg(long, value_name = "PASS", value_enum, default_value_t = BenchPass::Forward)]
    pub(crate) pass: BenchPass,

    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    pub(crate) device: Device,

    /// Rounds, in each of which everything is measured once.
    #[arg(long, value_name = "N", default_value_t = 9)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(crate) rounds: usize,

    /// Print one JSON object instead of lines.
    #[arg(long)]
    pub(crate) json: bool,

    /// Draw the rates as SVG.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

impl BenchArgs {
    /// Operations of one call.
    pub(crate) fn flop(&self) -> f64 {
        let Dims { batch, in_features, hidden } = self.shape.0;
        let products = match self.pass {
            BenchPass::Forward => 1.0,
            BenchPass::Step => 3.0,
        };
        products * 4.0 * batch as f64 * in_features as f64 * hidden as f64
    }
}

/// What `--pass` of `bench` accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchPass {
    /// z alone, for inference.
    Forward,
    /// Forward that keeps the pre-activations, dX and dWf.
    Step,
}

impl BenchPass {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Step => "step",
        }
    }
}

/// A check by its name.
fn check(name: &str) -> Result<Check, String> {
    Check::ALL.into_iter().find(|check| check.to_string() == name).ok_or_else(|| {
        let names: Vec<String> = Check::ALL.iter().map(Check::to_string).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Any size that is not 0.
fn size() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Three dimensions, none of them 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape(pub(crate) Dims);

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let dims: Vec<usize> = text
            .split(',')
            .map(|dim| dim.trim().parse().ok().filter(|dim| *dim > 0))
            .collect::<Option<_>>()
            .unwrap_or_default();
        match dims[..] {
            [batch, in_features, hidden] => Ok(Self(Dims { batch, in_features, hidden })),
            _ => {
                Err("expected three numbers above 0: batch, in_features, hidden, such as 128,784,512".into())
            }
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dims { batch, in_features, hidden } = self.0;
        write!(f, "{batch},{in_features},{hidden}")
    }
}

/// A choice of the command line, and what it stands for.
macro_rules! choice {
    ($(#[$doc:meta])* $choice:ident($of:ty) { $($(#[$word:meta])* $name:ident => $value:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
        pub(crate) enum $choice {
            $($(#[$word])* $name,)*
        }

        impl From<$choice> for $of {
            fn from(choice: $choice) -> Self {
                match choice {
                    $($choice::$name => $value,)*
                }
            }
        }
    };
}

choice! {
    /// What `--dtype` accepts.
    DtypeChoice(Dtype) {
        F32 => Dtype::F32,
        F16 => Dtype::F16,
        Bf16 => Dtype::Bf16,
    }
}

choice! {
    /// What `--orientation` accepts.
    OrientationChoice(Orientation) {
        InOut => Orientation::InOut,
        OutIn => Orientation::OutIn,
    }
}

choice! {
    /// What `--gate` accepts.
    GateChoice(Gate) {
        Swiglu => Gate::Swiglu,
        GegluTanh => Gate::GegluTanh,
        GegluErf => Gate::GegluErf,
        Reglu => Gate::Reglu,
        Glu => Gate::Glu,
        /// With the parameters of gpt-oss.
        SwigluClamped => Gate::SwigluClamped { alpha: 1.702, limit: 7.0 },
    }
}

choice! {
    /// What `--tile` accepts.
    TileChoice(Tile) {
        Auto => Tile::Auto,
        #[value(name = "32")]
        T32 => Tile::T32,
        #[value(name = "64")]
        T64 => Tile::T64,
        #[value(name = "128")]
        T128 => Tile::T128,
    }
}

choice! {
    /// What `--route` accepts.
    RouteChoice(Route) {
        Fused => Route::Fused,
        Composed => Route::Composed,
    }
}

/// What `--pass` of `plan` accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PassChoice {
    /// z alone, for inference.
    Forward,
    /// z and the pre-activations.
    Save,
    /// dX and dWf from the pre-activations that forward kept.
    Backward,
    /// dX and dWf from x alone; backward computes the pre-activations again.
    Recompute,
}

impl PassChoice {
    /// Whether it makes gradients.
    pub(crate) fn is_backward(self) -> bool {
        matches!(self, Self::Backward | Self::Recompute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn shapes_are_three_sizes() {
        let dims = Dims { batch: 128, in_features: 784, hidden: 512 };
        assert_eq!("128,784,512".parse(), Ok(Shape(dims)));
        assert_eq!("128, 784, 512".parse(), Ok(Shape(dims)));
        for text in ["", "1", "1,2", "1,2,3,4", "1,2,0", "1,2,-3", "a,b,c", "1,2,99999999999999999999"] {
            assert!(text.parse::<Shape>().is_err(), "{text}");
        }
    }
}
