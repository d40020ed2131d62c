//! The command line: what it accepts, and nothing of what it does.

use std::fmt;
use std::str::FromStr;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand, ValueEnum};
use swiglu::{Device, Dims, Dtype, Gate, Orientation, Route, Tile};

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
