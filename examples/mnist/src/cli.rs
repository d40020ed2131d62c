//! The command line: what it accepts, and nothing of what it does.

use std::path::PathBuf;

use clap::{Parser, ValueEnum, builder::RangedU64ValueParser};
use swiglu::{Device, WeightGrad};

/// Hidden width when neither `--hidden` nor a checkpoint names one.
pub(crate) const DEFAULT_HIDDEN: usize = 256;

/// Widest hidden layer and largest batch: what they allocate stays below a few GiB, and no product of sizes overflows.
const MAX_SIZE: u64 = 1 << 16;
const MAX_THREADS: u64 = 1024;

/// Trains a SwiGLU classifier, 784 -> SwiGLU(hidden) -> 10, on MNIST or on digits drawn in code.
#[derive(Clone, Debug, Parser)]
#[command(name = "mnist", version)]
#[command(after_help = "Exit codes: 0 success, 2 usage, 3 data or output files, 4 device.")]
pub(crate) struct Args {
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    pub(crate) device: Device,

    /// Folder with the four IDX files, packed (.gz) or not. Without it: $SWIGLU_DATA, then the cache folder, then digits
    /// drawn in code.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// Fetch MNIST (11.6 MB) into the cache folder, or into the folder given by --data.
    #[arg(long)]
    pub(crate) download: bool,

    /// Passes over the training set; 0 only evaluates.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) epochs: u32,

    /// Samples per training step.
    #[arg(long, value_name = "N", default_value_t = 128)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=MAX_SIZE))]
    pub(crate) batch_size: usize,

    /// Hidden width [default: 256, or that of the model given by --load].
    #[arg(long, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=MAX_SIZE))]
    pub(crate) hidden: Option<usize>,

    /// Learning rate of AdamW.
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, value_parser = learning_rate, allow_negative_numbers = true)]
    pub(crate) lr: f32,

    /// Seed of the initial weights and of the order of the samples.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Threads of the CPU backend [default: one per core].
    #[arg(long, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=MAX_THREADS))]
    pub(crate) threads: Option<usize>,

    /// How the gradient of the SwiGLU weights is computed.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = WeightGradChoice::Fused)]
    pub(crate) weight_grad: WeightGradChoice,

    /// Use separate operations in place of the fused SwiGLU, for comparison.
    #[arg(long)]
    pub(crate) unfused: bool,

    /// Write the trained model as safetensors.
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,

    /// Start from a model written by --save.
    #[arg(long, value_name = "FILE")]
    pub(crate) load: Option<PathBuf>,

    /// Write one JSON line per epoch.
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics: Option<PathBuf>,

    /// Draw the training loss and the test accuracy as SVG.
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,

    /// Print nothing but the test accuracy.
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// What `--weight-grad` accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightGradChoice {
    /// The SwiGLU weights stay as they are; only the classifier learns.
    Frozen,
    /// By the platform's matrix product.
    Composed,
    /// By the crate's own kernel.
    Fused,
}

impl From<WeightGradChoice> for WeightGrad {
    fn from(choice: WeightGradChoice) -> Self {
        match choice {
            WeightGradChoice::Frozen => Self::Frozen,
            WeightGradChoice::Composed => Self::Composed,
            WeightGradChoice::Fused => Self::Fused,
        }
    }
}

fn learning_rate(text: &str) -> Result<f32, String> {
    let rate: f32 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if rate.is_finite() && rate > 0.0 {
        Ok(rate)
    } else {
        Err("expected a positive, finite number".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["mnist"], words].concat())
    }

    #[test]
    fn the_definition_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let args = parse(&[]).expect("no flag is required");
        assert_eq!((args.epochs, args.batch_size, args.hidden, args.seed), (5, 128, None, 1), "numbers");
        assert_eq!(
            (args.lr, args.device, args.weight_grad),
            (1e-3, Device::Auto, WeightGradChoice::Fused),
            "modes"
        );
    }

    #[test]
    fn numbers_without_a_meaning_are_refused() {
        for words in [
            ["--batch-size", "0"],
            ["--batch-size", "65537"],
            ["--hidden", "0"],
            ["--hidden", "18446744073709551616"],
            ["--threads", "0"],
            ["--epochs", "-1"],
            ["--lr", "0"],
            ["--lr", "-0.1"],
            ["--lr", "nan"],
            ["--lr", "inf"],
            ["--lr", "1e39"],
            ["--lr", "fast"],
            ["--weight-grad", "none"],
            ["--device", "gpu"],
            ["--device", "cuda:"],
        ] {
            assert_eq!(parse(&words).expect_err("has no meaning").exit_code(), 2, "{words:?}");
        }
        assert_eq!(parse(&["--epochs", "0"]).map(|args| args.epochs).ok(), Some(0), "zero epochs are legal");
    }
}
