//! What the program tells: a line, a JSON line and a point of a curve per epoch.

pub(crate) mod metrics;
pub(crate) mod plot;
pub(crate) mod progress;

use std::fmt;

/// How many samples were classified rightly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Score {
    /// Samples whose class was found.
    pub(crate) correct: usize,
    /// All samples.
    pub(crate) total: usize,
}

impl Score {
    /// From 0 to 1; 0 when there are no samples.
    pub(crate) fn fraction(self) -> f64 {
        if self.total == 0 { 0.0 } else { self.correct as f64 / self.total as f64 }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} % ({}/{})", self.fraction() * 100.0, self.correct, self.total)
    }
}

/// One pass over the training set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EpochReport {
    /// Counted from one.
    pub(crate) epoch: u32,
    /// Mean loss of the epoch.
    pub(crate) train_loss: f32,
    /// On the training set.
    pub(crate) train: Score,
    /// On the test set, after the epoch.
    pub(crate) test: Score,
    /// Time of the training steps, without the test.
    pub(crate) seconds: f64,
}

impl EpochReport {
    /// Training samples per second; 0 when no time was measured.
    pub(crate) fn samples_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.train.total as f64 / self.seconds } else { 0.0 }
    }
}

impl fmt::Display for EpochReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The shortest decimal number that stands for this f32 and no other: two runs can be compared by eye.
        let loss = self.train_loss.to_string();
        write!(
            f,
            "epoch {:>3}  loss {loss:<11}  train {:6.2} %  test {:6.2} %  {:7.2} s  {:8.0} samples/s",
            self.epoch,
            self.train.fraction() * 100.0,
            self.test.fraction() * 100.0,
            self.seconds,
            self.samples_per_second()
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const REPORT: EpochReport = EpochReport {
        epoch: 2,
        train_loss: 0.123_456_79,
        train: Score { correct: 900, total: 1000 },
        test: Score { correct: 95, total: 100 },
        seconds: 0.5,
    };

    #[test]
    fn scores_are_percentages_and_counts() {
        assert_eq!(Score { correct: 9812, total: 10_000 }.to_string(), "98.12 % (9812/10000)");
        assert_eq!(Score::default().to_string(), "0.00 % (0/0)", "no samples");
    }

    #[test]
    fn an_epoch_is_one_line() {
        let line =
            "epoch   2  loss 0.12345679   train  90.00 %  test  95.00 %     0.50 s      2000 samples/s";
        assert_eq!(REPORT.to_string(), line);
    }

    #[test]
    fn no_time_is_no_speed() {
        assert_eq!(EpochReport { seconds: 0.0, ..REPORT }.samples_per_second(), 0.0);
    }
}
