//! What checks say.

use std::collections::BTreeMap;
use std::fmt;

use crate::case::Case;

/// The worst error of one grade, relative to its bound.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Worst {
    /// error / bound.
    pub ratio: f64,
    /// Which element of which output.
    pub at: String,
    /// The case it was in.
    pub case: Option<Case>,
}

impl Worst {
    pub(crate) fn raise(&mut self, other: &Self) {
        if other.ratio > self.ratio {
            *self = other.clone();
        }
    }
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}", self.ratio)?;
        if !self.at.is_empty() {
            write!(f, " at {}", self.at)?;
        }
        match &self.case {
            Some(case) => write!(f, " of SWIGLU_CASE=\"{case}\""),
            None => Ok(()),
        }
    }
}

/// What one or more checks measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Cases that ran.
    pub cases: u64,
    /// Outputs that were compared with the oracle, element by element.
    pub elements: u64,
    /// Elements among them whose bound is infinite, because an intermediate may overflow.
    pub unbound: u64,
    /// Worst error relative to the bound that is proved.
    pub hard: Worst,
    /// Worst error relative to the bound that is probable.
    pub watch: Worst,
    /// The worst ratio of each output of the op, to both bounds.
    pub outputs: BTreeMap<String, (f64, f64)>,
}

impl Report {
    /// Adds what another check measured.
    pub fn merge(&mut self, other: &Self) {
        self.cases += other.cases;
        self.elements += other.elements;
        self.unbound += other.unbound;
        self.hard.raise(&other.hard);
        self.watch.raise(&other.watch);
        for (name, ratios) in &other.outputs {
            self.output(name, *ratios);
        }
    }

    /// Notes the worst ratios of one output. Names with numbers belong to single calls and are left out.
    pub(crate) fn output(&mut self, name: &str, ratios: (f64, f64)) {
        if name.contains(|c: char| c.is_ascii_digit()) {
            return;
        }
        let worst = self.outputs.entry(name.to_owned()).or_default();
        *worst = (worst.0.max(ratios.0), worst.1.max(ratios.1));
    }

    /// One case.
    pub(crate) fn of_case(mut self, case: &Case) -> Self {
        self.cases += 1;
        for worst in [&mut self.hard, &mut self.watch] {
            if worst.ratio > 0.0 && worst.case.is_none() {
                worst.case = Some(*case);
            }
        }
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cases, {} elements", self.cases, self.elements)?;
        if self.unbound > 0 {
            write!(f, " ({} not bound)", self.unbound)?;
        }
        match self.hard == self.watch {
            true => write!(f, "; err/HARD = err/WATCH = {}", self.hard)?,
            false => write!(f, "; err/HARD {}; err/WATCH {}", self.hard, self.watch)?,
        }
        for (index, (name, (hard, watch))) in self.outputs.iter().enumerate() {
            write!(f, "{} {name} {hard:.3}/{watch:.3}", if index == 0 { "; by output" } else { "," })?;
        }
        Ok(())
    }
}

/// Why a check failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What is wrong, with the numbers.
    pub message: String,
    /// In which case. Boxed: a case is large, and every result has room for one.
    pub case: Option<Box<Case>>,
    /// The command that shows it again; empty until the suite fills it in.
    pub reproducer: String,
}

impl Failure {
    /// A failure with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), case: None, reproducer: String::new() }
    }

    /// The same, in a case.
    #[must_use]
    pub fn of_case(mut self, case: &Case) -> Self {
        self.case = self.case.or_else(|| Some(Box::new(*case)));
        self
    }

    /// The same, in front of which something else is said.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(case) = &self.case {
            write!(f, "\n  case: {case}")?;
        }
        if !self.reproducer.is_empty() {
            write!(f, "\n  again: {}", self.reproducer)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl From<swiglu_core::Error> for Failure {
    fn from(error: swiglu_core::Error) -> Self {
        Self::new(format!("unexpected error: {error}"))
    }
}

/// Fails with a message unless something holds.
pub(crate) fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::new(message())) }
}
