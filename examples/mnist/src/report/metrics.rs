//! One JSON object per line and epoch, for other programs.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::EpochReport;
use crate::output::OutputError;

/// An open metrics file. Each line is written at once, so a run that is cut off leaves whole lines.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Creates or empties the file: a path that cannot be written fails before the training starts.
    pub(crate) fn create(path: &Path) -> Result<Self, OutputError> {
        let file = File::create(path).map_err(|source| OutputError::new(path, source))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Adds the line of one epoch, whose steps had these losses.
    pub(crate) fn write(&mut self, report: &EpochReport, losses: &[f32]) -> Result<(), OutputError> {
        let line = serde_json::to_vec(&Line::new(report, losses)).map_err(io::Error::from);
        line.and_then(|mut line| {
            line.push(b'\n');
            self.file.write_all(&line)
        })
        .map_err(|source| OutputError::new(&self.path, source))
    }
}

#[derive(Serialize)]
struct Line<'a> {
    epoch: u32,
    train_loss: f32,
    /// The bits of `train_loss`: JSON has no NaN, and runs are compared bit for bit.
    train_loss_bits: String,
    train_accuracy: f64,
    test_accuracy: f64,
    seconds: f64,
    samples_per_second: f64,
    /// Of each step.
    losses: &'a [f32],
}

impl<'a> Line<'a> {
    fn new(report: &EpochReport, losses: &'a [f32]) -> Self {
        Self {
            epoch: report.epoch,
            train_loss: report.train_loss,
            train_loss_bits: format!("{:#010x}", report.train_loss.to_bits()),
            train_accuracy: report.train.fraction(),
            test_accuracy: report.test.fraction(),
            seconds: report.seconds,
            samples_per_second: report.samples_per_second(),
            losses,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::report::tests::REPORT;

    fn lines(reports: &[EpochReport]) -> String {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::create(&path).expect("a new file");
        for report in reports {
            metrics.write(report, &[0.5, 0.25]).expect("an open file takes lines");
        }
        fs::read_to_string(&path).expect("was written")
    }

    #[test]
    fn an_epoch_is_one_json_line() {
        let line = concat!(
            r#"{"epoch":2,"train_loss":0.12345679,"train_loss_bits":"0x3dfcd6ea","train_accuracy":0.9,"#,
            r#""test_accuracy":0.95,"seconds":0.5,"samples_per_second":2000.0,"losses":[0.5,0.25]}"#,
            "\n"
        );
        assert_eq!(lines(&[REPORT, REPORT]), [line, line].concat());
    }

    #[test]
    fn a_diverged_loss_is_still_json() {
        let text = lines(&[EpochReport { train_loss: f32::NAN, ..REPORT }]);
        let value: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
        assert_eq!(value["train_loss"], serde_json::Value::Null, "{text}");
        assert_eq!(value["train_loss_bits"], "0x7fc00000", "{text}");
    }

    #[test]
    fn a_path_below_a_file_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        assert!(Metrics::create(&file.path().join("metrics.jsonl")).is_err());
    }
}
