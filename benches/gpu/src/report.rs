//! What was measured, and its three forms: a table as it grows, JSON, and a chart.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::gpu::Peak;
use crate::measure::Outcome;

pub(crate) mod chart;
pub(crate) mod table;

/// Everything about a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Device and libraries.
    pub(crate) machine: String,
    pub(crate) method: &'static str,
    pub(crate) rounds: usize,
    pub(crate) l2_bytes: usize,
    /// Read and written, of a copy on the device.
    pub(crate) copy_bytes_per_second: f64,
    pub(crate) peaks: Vec<Peak>,
    pub(crate) outcomes: Vec<Outcome>,
}

/// How the numbers came about.
pub(crate) const METHOD: &str = "CUDA events around the calls of a round; every contender once in a round, in turns, on \
                                 the same operands; normally distributed data; clocks warmed; L2 flushed before, and \
                                 operands rotated; medians and quartiles over rounds; ratio = a contender's time over \
                                 this library's in the same round";

impl Report {
    pub(crate) fn save_json(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)
            .map_err(|error| Error::Output { path: path.to_path_buf(), source: error.into() })?;
        write(path, &(json + "\n"))
    }

    pub(crate) fn save_svg(&self, path: &Path) -> Result<()> {
        write(path, &chart::to_svg(&self.outcomes, path)?)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|source| Error::Output { path: path.to_path_buf(), source })
}

/// Made-up results.
#[cfg(test)]
pub(crate) mod samples {
    use swiglu_core::{Dtype, Orientation};

    use crate::job::{Op, SHAPES, Selection};
    use crate::measure::{Entry, Outcome};
    use crate::stats::Spread;
    use crate::workload::Contender;

    pub(crate) fn outcomes(ops: &[Op]) -> Vec<Outcome> {
        let selection = Selection {
            ops: ops.to_vec(),
            shapes: SHAPES.split(';').filter_map(|shape| shape.parse().ok()).collect(),
            dtypes: vec![Dtype::Bf16],
            orientations: vec![Orientation::InOut],
        };
        let outcome = |job: crate::job::Job| {
            let entries = Contender::ALL.iter().enumerate().map(|(index, &contender)| {
                let scale = 1.0 + index as f64 / 10.0;
                let seconds = job.flops() / 700e12 * scale;
                let around = |median: f64| Spread { median, lower: 0.99 * median, upper: 1.01 * median };
                Entry {
                    contender,
                    seconds: around(seconds),
                    flops_per_second: 700e12 / scale,
                    bytes_per_second: job.bytes() / seconds,
                    of_bound: 0.9 / scale,
                    ratio: around(scale),
                    error: (contender == Contender::Fused).then_some(0.004),
                }
            });
            Outcome {
                job,
                launches: vec!["a kernel".to_owned()],
                sets: 2,
                calls: 2,
                rotated_bytes: 603 << 20,
                l2: "cold",
                flops: job.flops(),
                bytes: job.bytes(),
                tolerance: 0.03,
                entries: entries.collect(),
            }
        };
        selection.jobs().into_iter().map(outcome).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Op;

    #[test]
    fn json_has_what_was_measured() {
        let outcomes = samples::outcomes(&[Op::Forward, Op::Mnist]);
        let count = outcomes.len();
        let report = Report {
            machine: "a GPU".to_owned(),
            method: METHOD,
            rounds: 9,
            l2_bytes: 50 << 20,
            copy_bytes_per_second: 3e12,
            peaks: vec![Peak { kind: "bf16".to_owned(), flops_per_second: 795e12 }],
            outcomes,
        };
        let json = serde_json::to_value(&report).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(json["outcomes"].as_array().map(Vec::len), Some(count));
        let first = &json["outcomes"][0];
        assert_eq!((first["op"].as_str(), first["dtype"].as_str()), (Some("forward"), Some("bf16")));
        assert_eq!((first["batch"].as_u64(), first["hidden"].as_u64()), (Some(8192), Some(14336)));
        assert_eq!(first["entries"][1]["contender"], "gemms");
        assert_eq!(first["entries"][1]["ratio"]["median"], 1.1);
        assert_eq!(json["outcomes"][count - 1]["pass"], "step");
    }

    #[test]
    fn a_result_that_is_too_far_off_or_no_number_is_wrong() {
        let mut outcome = samples::outcomes(&[Op::Mnist]).swap_remove(0);
        assert!(outcome.is_right(), "0.004 of 0.03");
        for error in [0.04, f64::NAN] {
            outcome.entries[0].error = Some(error);
            assert!(!outcome.is_right(), "{error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let error = write(Path::new("/no-such-folder/bench.json"), "").err().map(|e| e.to_string());
        assert!(
            error.is_some_and(|error| error.starts_with("/no-such-folder/bench.json: ")),
            "another error"
        );
    }
}
