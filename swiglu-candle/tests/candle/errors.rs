//! Operands that do not fit: an error that names the one and says what it should be.

use candle_core::{DType, Device, Result, Tensor};
use swiglu_candle::{Gate, SwiGlu, swiglu};

use crate::Test;

pub(crate) const TESTS: &[Test] =
    &[("dtypes", dtypes), ("shapes", shapes), ("devices", devices), ("gates_out_of_range", gates)];

fn refused(result: Result<Tensor>, expected: &str) {
    let message = result.err().map(|e| e.to_string()).unwrap_or_else(|| "no error".into());
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}

fn zeros(shape: impl Into<candle_core::Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::zeros(shape, dtype, device)
}

fn dtypes(device: &Device) -> Result<()> {
    let tensor = |rows, dtype| zeros((rows, 3), dtype, device);
    for dtype in [DType::F64, DType::U8, DType::U32, DType::I64] {
        let (x, w) = (tensor(2, dtype)?, tensor(4, dtype)?);
        refused(swiglu(&x, &w, &w), &format!("x has dtype {dtype:?}, expected F32, F16 or BF16"));
    }
    let (x, w, half) = (tensor(2, DType::F32)?, tensor(4, DType::F32)?, tensor(4, DType::F16)?);
    refused(swiglu(&x, &half, &w), "w_gate has dtype F16, x has F32");
    refused(swiglu(&x, &w, &half), "w_up has dtype F16, x has F32");
    refused(SwiGlu::new().forward_packed(&x, &half, None), "w_gate_up has dtype F16, x has F32");
    let (b, half) = (zeros(4, DType::F32, device)?, zeros(4, DType::BF16, device)?);
    refused(SwiGlu::new().forward_packed(&x, &w, Some(&half)), "bias has dtype BF16, x has F32");
    refused(SwiGlu::new().forward_with_bias(&x, (&w, &half), (&w, &b)), "b_gate has dtype BF16, x has F32");
    refused(SwiGlu::new().forward_with_bias(&x, (&w, &b), (&w, &half)), "b_up has dtype BF16, x has F32");
    Ok(())
}

fn shapes(device: &Device) -> Result<()> {
    let tensor = |rows: usize, cols: usize| zeros((rows, cols), DType::F32, device);
    let vector = |n: usize| zeros(n, DType::F32, device);
    let (x, w) = (tensor(2, 3)?, tensor(4, 3)?);
    refused(swiglu(&vector(3)?, &w, &w), "x has shape [3], expected [.., in_features]");
    refused(swiglu(&zeros((), DType::F32, device)?, &w, &w), "x has shape []");
    refused(swiglu(&x, &tensor(4, 5)?, &w), "w_gate has shape [4, 5], expected [4, 3]");
    refused(swiglu(&x, &vector(4)?, &w), "w_gate has shape [4], expected [out_features, in_features]");
    refused(swiglu(&x, &w, &tensor(5, 3)?), "w_up has shape [5, 3], expected [4, 3]");
    let op = SwiGlu::new();
    refused(op.forward_packed(&x, &tensor(4, 2)?, None), "w_gate_up has shape [4, 2], expected [4, 3]");
    refused(op.forward_packed(&x, &tensor(5, 3)?, None), "packed width 5 is odd");
    refused(op.forward_packed(&x, &w, Some(&vector(3)?)), "bias has shape [3], expected [4]");
    let (b, short) = (vector(4)?, vector(2)?);
    refused(op.forward_with_bias(&x, (&w, &short), (&w, &b)), "b_gate has shape [2], expected [4]");
    refused(op.forward_with_bias(&x, (&w, &b), (&w, &short)), "b_up has shape [2], expected [4]");
    refused(
        op.forward_with_bias(&x, (&w, &b), (&tensor(5, 3)?, &b)),
        "w_up has shape [5, 3], expected [4, 3]",
    );
    Ok(())
}

fn devices(device: &Device) -> Result<()> {
    let tensor = |device: &Device| zeros((4, 3), DType::F32, device);
    let (here, host) = (tensor(device)?, tensor(&Device::Cpu)?);
    if device.is_cpu() {
        assert!(swiglu(&here, &host, &host).is_ok());
        return Ok(());
    }
    refused(swiglu(&here, &host, &here), "w_gate is on Cpu, x on Cuda { gpu_id: 0 }");
    refused(swiglu(&host, &host, &here), "w_up is on Cuda { gpu_id: 0 }, x on Cpu");
    Ok(())
}

fn gates(device: &Device) -> Result<()> {
    let (x, w) = (zeros((2, 3), DType::F32, device)?, zeros((4, 3), DType::F32, device)?);
    let op = SwiGlu::new().gate(Gate::SwigluClamped { alpha: 1.0, limit: f32::NAN });
    refused(op.forward(&x, &w, &w), "limit is NaN");
    Ok(())
}
