//! What a person sees while the training runs: a bar on a terminal, a line per epoch anywhere.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::EpochReport;

const TEMPLATE: &str = "{prefix} [{bar:32}] {pos}/{len} steps, {msg}, {eta} left";

/// Writes lines to standard output and draws a bar on standard error; a reader that has gone away stops neither.
#[derive(Debug)]
pub(crate) struct Progress {
    quiet: bool,
    bar: ProgressBar,
}

impl Progress {
    /// `quiet` leaves only `result`.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, bar: ProgressBar::hidden() }
    }

    /// Starts the bar of an epoch of `steps` training steps.
    pub(crate) fn start_epoch(&mut self, epoch: u32, epochs: u32, steps: usize) {
        let visible = !self.quiet && io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar = ProgressBar::with_draw_target(Some(steps as u64), target)
            .with_style(style)
            .with_prefix(format!("epoch {epoch}/{epochs}"));
    }

    /// Moves the bar by one step; `loss` is asked for only if the bar can be seen.
    pub(crate) fn step(&self, loss: impl FnOnce() -> f32) {
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("loss {:.4}", loss()));
            self.bar.inc(1);
        }
    }

    /// Removes the bar and prints the line of the epoch.
    pub(crate) fn finish_epoch(&self, report: &EpochReport) {
        self.bar.finish_and_clear();
        self.line(report);
    }

    /// Prints a line, unless the user wants quiet.
    pub(crate) fn line(&self, line: impl Display) {
        if !self.quiet {
            self.result(line);
        }
    }

    /// Prints a line that is the purpose of the program. Not for the middle of an epoch, where the bar is.
    pub(crate) fn result(&self, line: impl Display) {
        // A closed pipe is the reader's decision, not a failure of the training.
        let _ = writeln!(io::stdout(), "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::REPORT;

    #[test]
    fn the_template_is_legal() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn a_hidden_bar_asks_for_no_loss() {
        let mut progress = Progress::new(true);
        progress.start_epoch(1, 1, 1);
        progress.step(|| panic!("the loss may still be on its way from a device"));
        progress.finish_epoch(&REPORT);
    }
}
