//! Calls without rows, inputs or hidden units, however large their other extents are.

use swiglu_core::{
    Error, Gradients, Host, Layout, MatMut, MatRef, Options, Orientation, Out, Result, Route, Save, SwiGLU,
    Target, Weights,
};
use swiglu_cpu::Cpu;

/// Forward and backward of operands without an element.
fn step(route: Route, orientation: Orientation, [batch, inputs, hidden]: [usize; 3]) -> Result<()> {
    let cpu = Cpu::new().with_threads(2)?;
    let options = Options::new().route(route);
    let none = |rows, cols| -> Result<MatRef<'static, f32, Host>> {
        MatRef::from_slice(&[], Layout::dense(rows, cols)?)
    };
    let nowhere = |rows, cols| -> Result<MatMut<'static, f32, Host>> {
        MatMut::from_slice(&mut [], Layout::dense(rows, cols)?)
    };
    let packed = |inputs, hidden: usize| match hidden.checked_mul(2) {
        Some(width) if orientation == Orientation::InOut => (inputs, width),
        Some(width) => (width, inputs),
        None => (usize::MAX, usize::MAX),
    };
    let (rows, cols) = packed(inputs, hidden);
    let x = none(batch, inputs)?;
    let w = Weights::packed(none(rows, cols)?, orientation)?;
    cpu.forward_into(x, w, nowhere(batch, hidden)?, options)?;
    for save in [Save::PreActivations, Save::Input] {
        let mut saved = cpu.saved(save, batch, hidden)?;
        cpu.forward_train_into(x, w, nowhere(batch, hidden)?, &mut saved, options)?;
        let gradients =
            Gradients::new().dx(Out::write(nowhere(batch, inputs)?)).dwf(Target::write(nowhere(rows, cols)?));
        cpu.backward(x, w, none(batch, hidden)?, &mut saved, gradients, options)?;
    }
    Ok(())
}

/// Each is done at once, or refused with its numbers: none panics, counts to 2^40 or allocates.
#[test]
fn extents_of_nothing_may_be_large() {
    let mut done = 0;
    for large in [1 << 20, 1 << 40, 1 << 50, 1 << 59, (1 << 60) - 1, 1 << 60, 1 << 61, isize::MAX as usize] {
        for dims in [[large, 0, 0], [0, large, 0], [0, 0, large]] {
            for route in [Route::Fused, Route::Composed] {
                for orientation in [Orientation::InOut, Orientation::OutIn] {
                    match step(route, orientation, dims) {
                        Ok(()) => done += 1,
                        Err(Error::Overflow { .. }) => assert!(large > 1 << 40, "{dims:?}"),
                        Err(error) => panic!("{dims:?}: {error}"),
                    }
                }
            }
        }
    }
    assert!(done >= 24, "{done} calls were made");
}
