//! Proof that operands were checked.

/// Operands that core has checked: shapes, strides, overlap, device, stream and overflow.
///
/// Only this crate can make one, so a backend that receives it may rely on all of that, in unsafe code too:
///
/// ```compile_fail
/// use swiglu_core::{Checked, ops};
/// fn forge(operands: ops::AddBias<'_, f32, swiglu_core::Host>) -> Checked<ops::AddBias<'_, f32, swiglu_core::Host>> {
///     Checked { operands } // private field
/// }
/// ```
///
/// Taking it apart is open to everyone:
///
/// ```
/// use swiglu_core::{Checked, ops};
/// fn take<'a>(call: Checked<ops::AddBias<'a, f32, swiglu_core::Host>>) -> ops::AddBias<'a, f32, swiglu_core::Host> {
///     call.into_inner()
/// }
/// ```
#[derive(Debug)]
pub struct Checked<O> {
    operands: O,
}

impl<O> Checked<O> {
    pub(crate) fn new(operands: O) -> Self {
        Self { operands }
    }

    /// The operands.
    pub fn into_inner(self) -> O {
        self.operands
    }

    /// The operands, without taking them.
    pub fn get(&self) -> &O {
        &self.operands
    }
}
