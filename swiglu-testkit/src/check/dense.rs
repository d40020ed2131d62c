use crate::{Config, Failure, Report, suite::Complete};
pub fn dense<B: Complete>(_: &B, _: &Config, _: u64) -> Result<Report, Failure> {
    Ok(Report::default())
}
