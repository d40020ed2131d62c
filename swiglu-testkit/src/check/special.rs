use crate::{Config, Failure, Report, suite::Complete};
pub fn special_values<B: Complete>(_: &B, _: &Config) -> Result<Report, Failure> {
    Ok(Report::default())
}
