use crate::{Config, Failure, Report, suite::Complete};
pub fn layers<B: Complete>(_: &B, _: &Config, _: u64) -> Result<Report, Failure> {
    Ok(Report::default())
}
