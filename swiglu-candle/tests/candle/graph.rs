//! The op as a part of candle's graph: which gradients there are, and backward more than once.

use candle_core::{DType, Device, Result, Tensor, Var};
use swiglu_candle::Save;

use crate::Test;
use crate::reference::{Case, Form, Inputs, check, real};

pub(crate) const TESTS: &[Test] = &[
    ("frozen_operands_have_no_gradients", frozen),
    ("nothing_to_train", inference),
    ("backward_twice", twice),
    ("one_tensor_in_two_places", shared),
    ("a_node_between_others", between),
];

fn frozen(device: &Device) -> Result<()> {
    for form in Form::ALL {
        let case = Case { form, ..Case::new(5, 12, 8, DType::F32) };
        let all = Inputs::draw(&case, device)?;
        let biases = all.biases.clone().map(|(gate, up)| (gate.detach(), up.detach()));
        let weights = Inputs { w_gate: all.w_gate.detach(), w_up: all.w_up.detach(), ..all.clone() };
        let only_x = Inputs { biases: biases.clone(), ..weights.clone() };
        check(&case, &Inputs { x: all.x.detach(), ..all.clone() })?;
        check(&case, &Inputs { w_gate: all.w_gate.detach(), ..all.clone() })?;
        check(&case, &Inputs { w_up: all.w_up.detach(), ..all.clone() })?;
        check(&case, &Inputs { biases, x: all.x.detach(), ..all.clone() })?;
        check(&case, &weights)?;
        check(&case, &only_x)?;
        let gradients = only_x.forward(&case)?.sum_all()?.backward()?;
        assert!(gradients.get(&only_x.x).is_some() && gradients.get(&only_x.w_gate).is_none(), "{form:?}");
    }
    let case = Case::new(5, 12, 8, DType::F32);
    let all = Inputs::draw(&case, device)?;
    let half = Inputs { w_gate: all.w_gate.detach(), x: all.x.detach(), ..all };
    let gradients = half.forward(&case)?.sum_all()?.backward()?;
    assert!(gradients.get(&half.x).is_none() && gradients.get(&half.w_gate).is_none(), "frozen");
    assert!(gradients.get(&half.w_up).is_some(), "trained");
    Ok(())
}

fn inference(device: &Device) -> Result<()> {
    let case = Case::new(5, 12, 8, DType::F32);
    let all = Inputs::draw(&case, device)?;
    let (x, gate, up) = (all.x.detach(), all.w_gate.detach(), all.w_up.detach());
    let z = case.op().forward(&x, &gate, &up)?;
    assert!(!z.track_op(), "no graph without variables");
    // On CUDA another kernel may run when pre-activations are kept.
    if device.is_cpu() {
        assert_eq!(real(&z)?, real(&all.forward(&case)?)?, "training does not change z");
    }
    check(&case, &Inputs { x, w_gate: gate, w_up: up, ..all })?;
    Ok(())
}

/// The gradient of the gate weights from one more backward of a graph.
fn gradient(loss: &Tensor, of: &Tensor) -> Result<swiglu_testkit::oracle::Real> {
    real(loss.backward()?.get(of).expect("a gradient of the variable"))
}

fn twice(device: &Device) -> Result<()> {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for save in [Save::PreActivations, Save::Input] {
            let case = Case { save, ..Case::new(5, 12, 8, dtype) };
            let inputs = Inputs::draw(&case, device)?;
            let loss = inputs.forward(&case)?.mul(&inputs.dz)?.sum_all()?;
            let first = gradient(&loss, &inputs.w_gate)?;
            for _ in 0..2 {
                assert_eq!(gradient(&loss, &inputs.w_gate)?, first, "{save:?}");
            }
        }
    }
    Ok(())
}

/// One variable is every argument: its gradient is the sum of those of three.
fn shared(device: &Device) -> Result<()> {
    let case = Case::new(6, 6, 6, DType::F32);
    let inputs = Inputs::draw(&case, device)?;
    let w = &inputs.w_gate;
    let whole = case.op().forward(w, w, w)?.sum_all()?.backward()?;
    let twin = |w: &Tensor| Var::from_tensor(&w.copy()?);
    let (x, gate, up) = (twin(w)?, twin(w)?, twin(w)?);
    let parts = case.op().forward(&x, &gate, &up)?.sum_all()?.backward()?;
    let part = |of| parts.get(of).expect("a gradient of each");
    let sum = part(x.as_tensor()).add(part(gate.as_tensor()))?.add(part(up.as_tensor()))?;
    assert_eq!(real(whole.get(w).expect("a gradient of the variable"))?, real(&sum)?);
    Ok(())
}

fn between(device: &Device) -> Result<()> {
    let case = Case::new(5, 12, 8, DType::F32);
    let inputs = Inputs::draw(&case, device)?;
    let scaled = (inputs.x.affine(2.0, 0.0)?, inputs.w_up.affine(0.5, 0.0)?);
    let through = |x: &Tensor, up: &Tensor| case.op().forward(x, &inputs.w_gate, up)?.sqr()?.sum_all();
    let outer = gradient(&through(&scaled.0, &scaled.1)?, &inputs.x)?;
    let (x, up) = (Var::from_tensor(&scaled.0.detach())?, scaled.1.detach());
    let inner = gradient(&through(&x, &up)?, &x)?;
    assert_eq!(outer, inner * 2.0, "the chain rule, exact for powers of two");
    Ok(())
}
