//! Values and gradients, by dtype, form, gate and shape.

use candle_core::{DType, Device, Result};
use swiglu_candle::{Gate, Save};

use crate::Test;
use crate::reference::{Case, Form, Inputs, check, errors};

pub(crate) const TESTS: &[Test] = &[
    ("values_f32", |device| shapes(device, DType::F32)),
    ("values_f16", |device| shapes(device, DType::F16)),
    ("values_bf16", |device| shapes(device, DType::BF16)),
    ("gates", gates),
    ("recomputed_pre_activations", recomputed),
    ("the_bounds_tell_gate_from_up", swapped),
];

/// Across the edges of register tiles in each dimension.
const SHAPES: &[(usize, usize, usize)] =
    &[(1, 1, 1), (1, 40, 24), (2, 3, 5), (7, 33, 20), (17, 64, 32), (33, 65, 40), (64, 100, 17)];

fn shapes(device: &Device, dtype: DType) -> Result<()> {
    for &(batch, in_features, hidden) in SHAPES {
        for form in Form::ALL {
            let case = Case { form, ..Case::new(batch, in_features, hidden, dtype) };
            check(&case, &Inputs::draw(&case, device)?)?;
        }
    }
    Ok(())
}

fn gates(device: &Device) -> Result<()> {
    for gate in [Gate::GegluTanh, Gate::Reglu] {
        for form in Form::ALL {
            let case = Case { gate, form, ..Case::new(9, 20, 12, DType::F32) };
            check(&case, &Inputs::draw(&case, device)?)?;
        }
    }
    Ok(())
}

fn recomputed(device: &Device) -> Result<()> {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for form in Form::ALL {
            let case = Case { save: Save::Input, form, ..Case::new(9, 20, 12, dtype) };
            check(&case, &Inputs::draw(&case, device)?)?;
        }
    }
    Ok(())
}

/// A check that cannot fail would not see this.
fn swapped(device: &Device) -> Result<()> {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let case = Case::new(9, 20, 12, dtype);
        let inputs = Inputs::draw(&case, device)?;
        let z = case.op().forward(&inputs.x, &inputs.w_up, &inputs.w_gate)?;
        for (name, ratio) in errors(&case, &inputs, &z)? {
            assert!(ratio > 10.0, "{name} of {dtype:?}: {ratio}");
        }
    }
    Ok(())
}
