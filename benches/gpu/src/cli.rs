//! The command line: what it accepts, and nothing of what it does.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, ValueEnum};

use crate::job::{DtypeChoice, Op, OrientationChoice, SHAPES, Selection, Shape};

/// Measures fused SwiGLU on a GPU against cuBLASLt: GEMMs alone, with an elementwise kernel, and as two linears.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench", version)]
#[command(
    after_help = "Needs cuBLAS and cuBLASLt beside the driver and NVRTC. SWIGLU_CUBLAS names the library, \
                        SWIGLU_CUBLASLT its companion."
)]
pub(crate) struct Args {
    /// What to measure, separated by commas [default: everything].
    #[arg(long = "op", value_name = "OP", value_enum, value_delimiter = ',')]
    pub(crate) ops: Vec<Op>,

    /// Shapes B,I,D separated by semicolons, for all but decode, f32 and mnist.
    #[arg(long, value_name = "SHAPES", value_delimiter = ';', default_value = SHAPES)]
    pub(crate) shapes: Vec<Shape>,

    /// Element types of forward; the other operations take the first.
    #[arg(
        long = "dtype",
        value_name = "TYPE",
        value_enum,
        value_delimiter = ',',
        default_value = "bf16,f16"
    )]
    pub(crate) dtypes: Vec<DtypeChoice>,

    /// Orientations of the weights of forward; the other operations take the first.
    #[arg(long, value_name = "NAME", value_enum, value_delimiter = ',', default_value = "in-out,out-in")]
    pub(crate) orientation: Vec<OrientationChoice>,

    /// Rounds, in each of which every contender is measured once.
    #[arg(long, value_name = "N", default_value_t = 9)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(crate) rounds: usize,

    /// Seconds of products before the first measurement, to warm the clocks.
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = seconds)]
    pub(crate) seconds: f64,

    /// The GPU, by its number.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) device: usize,

    /// Write everything that was measured as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draw the rates as SVG.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

impl Args {
    pub(crate) fn selection(&self) -> Selection {
        Selection {
            ops: if self.ops.is_empty() { Op::value_variants().to_vec() } else { self.ops.clone() },
            shapes: self.shapes.clone(),
            dtypes: self.dtypes.iter().map(|&choice| choice.into()).collect(),
            orientations: self.orientation.iter().map(|&choice| choice.into()).collect(),
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number from 0 to 60".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::{Dtype, Orientation};

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["bench"], args].concat())
    }

    #[test]
    fn everything_is_measured_by_default() {
        let selection = parse(&[]).unwrap_or_else(|e| panic!("{e}")).selection();
        assert_eq!(selection.ops.len(), Op::value_variants().len());
        assert_eq!(selection.shapes.len(), 9);
        assert_eq!(selection.dtypes, [Dtype::Bf16, Dtype::F16]);
        assert_eq!(selection.orientations, [Orientation::InOut, Orientation::OutIn]);
    }

    #[test]
    fn a_selection_is_parsed() {
        let args = ["--op", "forward,step", "--shapes", "1,2,3;4,5,6", "--dtype", "f16", "--rounds", "3"];
        let args = parse(&args).unwrap_or_else(|e| panic!("{e}"));
        let selection = args.selection();
        assert_eq!(selection.ops, [Op::Forward, Op::Step]);
        assert_eq!(selection.shapes[1].to_string(), "4, 5, 6");
        assert_eq!((selection.dtypes, args.rounds), (vec![Dtype::F16], 3));
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [["--op", "sideways"], ["--shapes", "1,2"], ["--rounds", "0"], ["--seconds", "-1"]] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }
}
