//! The same call twice gives the same bits.

use swiglu_core::SwiGLU;

use super::differential::{BackwardOutputs, ForwardOutputs, Olds, run_both};
use crate::bits::{Value, difference};
use crate::case::Case;
use crate::config::Config;
use crate::data::Inputs;
use crate::report::{Failure, Report};

/// Every output of two runs that have the same ones.
pub(super) fn same_outputs<T: Value>(
    what: &str,
    a: (&ForwardOutputs<T>, &BackwardOutputs),
    b: (&ForwardOutputs<T>, &BackwardOutputs),
) -> Result<(), Failure> {
    let mut found = vec![("z", difference(&a.0.z, &b.0.z))];
    if let (Some(a), Some(b)) = (&a.0.pre, &b.0.pre) {
        found.push(("saved g", difference(&a.0, &b.0)));
        found.push(("saved u", difference(&a.1, &b.1)));
    }
    if let (Some(a), Some(b)) = (&a.1.dx, &b.1.dx) {
        found.push(("dx", difference(a, b)));
    }
    if let (Some(a), Some(b)) = (&a.1.dwf, &b.1.dwf) {
        found.push(("dwf gate", difference(&a.0, &b.0)));
        found.push(("dwf up", difference(&a.1, &b.1)));
    }
    if let (Some(a), Some(b)) = (&a.1.dbias, &b.1.dbias) {
        found.push(("dbias", difference(a, b)));
    }
    match found.into_iter().find_map(|(name, difference)| Some((name, difference?))) {
        None => Ok(()),
        Some((name, at)) => Err(Failure::new(format!("{what}: {name} differs at {at}"))),
    }
}

/// Runs a case twice on one handle and once on a clone of it, and expects the same bits everywhere.
///
/// # Errors
/// A [`Failure`] that names the first output and element that differs.
pub fn run_to_run<T: Value, B: SwiGLU<T>>(backend: &B, case: &Case, _: &Config) -> Result<Report, Failure> {
    let case = &if case.is_backward() { *case } else { case.all_gradients() };
    let result = (|| {
        let (inputs, olds) = (Inputs::<T>::draw(case), Olds::draw(case));
        let first = run_both(backend, case, &inputs, &olds)?;
        let second = run_both(backend, case, &inputs, &olds)?;
        same_outputs("the second run", (&first.0, &first.1), (&second.0, &second.1))?;
        let third = run_both(&backend.clone(), case, &inputs, &olds)?;
        same_outputs("a clone of the handle", (&first.0, &first.1), (&third.0, &third.1))
    })();
    result.map(|()| Report::default().of_case(case)).map_err(|failure: Failure| failure.of_case(case))
}
