//! The MLP over a `VarBuilder`.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Module, VarBuilder, VarMap};
use swiglu_candle::{Gate, Mlp, SwiGlu, swiglu};

use crate::Test;
use crate::reference::real;

pub(crate) const TESTS: &[Test] = &[
    ("mlp_loads_llama_names", llama),
    ("mlp_loads_phi3_names", phi3),
    ("mlp_variables_have_names_and_gradients", variables),
    ("mlp_says_what_is_missing", missing),
];

const HIDDEN: usize = 12;
const INTERMEDIATE: usize = 20;

fn random(rows: usize, cols: usize, device: &Device) -> Result<Tensor> {
    Tensor::randn(0f32, 0.3, (rows, cols), device)
}

/// Gate, up and down projections.
fn weights(device: &Device) -> Result<[Tensor; 3]> {
    let wide = || random(INTERMEDIATE, HIDDEN, device);
    Ok([wide()?, wide()?, random(HIDDEN, INTERMEDIATE, device)?])
}

fn llama(device: &Device) -> Result<()> {
    let [gate, up, down] = weights(device)?;
    let names = ["gate_proj", "up_proj", "down_proj"].map(|name| format!("model.layers.3.mlp.{name}.weight"));
    let tensors: HashMap<_, _> = names.into_iter().zip([gate.clone(), up.clone(), down.clone()]).collect();
    let vb = VarBuilder::from_tensors(tensors, DType::F32, device);
    let mlp = Mlp::new(HIDDEN, INTERMEDIATE, vb.pp("model.layers.3.mlp"))?;
    let x = random(10, HIDDEN, device)?.reshape((2, 5, HIDDEN))?;
    let y = mlp.forward(&x)?;
    assert_eq!(y.dims(), [2, 5, HIDDEN]);
    let rows = x.flatten_to(1)?;
    let expected = swiglu(&rows, &gate, &up)?.matmul(&down.t()?)?;
    assert_eq!(real(&y.flatten_to(1)?)?, real(&expected)?);
    let op = SwiGlu::new().gate(Gate::GegluTanh);
    let expected = op.forward(&rows, &gate, &up)?.matmul(&down.t()?)?;
    assert_eq!(real(&mlp.op(op).forward(&rows)?)?, real(&expected)?);
    Ok(())
}

fn phi3(device: &Device) -> Result<()> {
    let [gate, up, down] = weights(device)?;
    let tensors = HashMap::from([
        ("gate_up_proj.weight".to_owned(), Tensor::cat(&[&gate, &up], 0)?),
        ("down_proj.weight".to_owned(), down.clone()),
    ]);
    let mlp = Mlp::packed(HIDDEN, INTERMEDIATE, VarBuilder::from_tensors(tensors, DType::F32, device))?;
    let x = random(7, HIDDEN, device)?;
    let expected = swiglu(&x, &gate, &up)?.matmul(&down.t()?)?;
    assert_eq!(real(&mlp.forward(&x)?)?, real(&expected)?);
    Ok(())
}

fn variables(device: &Device) -> Result<()> {
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, device);
    let mlp = Mlp::new(HIDDEN, INTERMEDIATE, vb.pp("split"))?;
    let packed = Mlp::packed(HIDDEN, INTERMEDIATE, vb.pp("packed"))?;
    let x = random(7, HIDDEN, device)?;
    let loss = mlp.forward(&x)?.add(&packed.forward(&x)?)?.sqr()?.mean_all()?;
    let gradients = loss.backward()?;
    let data = variables.data().lock().expect("the variables");
    let mut shapes: Vec<_> = data.iter().map(|(name, var)| (name.as_str(), var.dims().to_vec())).collect();
    shapes.sort();
    let expected = [
        ("packed.down_proj.weight", vec![HIDDEN, INTERMEDIATE]),
        ("packed.gate_up_proj.weight", vec![2 * INTERMEDIATE, HIDDEN]),
        ("split.down_proj.weight", vec![HIDDEN, INTERMEDIATE]),
        ("split.gate_proj.weight", vec![INTERMEDIATE, HIDDEN]),
        ("split.up_proj.weight", vec![INTERMEDIATE, HIDDEN]),
    ];
    assert_eq!(shapes, expected);
    for (name, var) in data.iter() {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("no gradient of {name}"));
        assert!(real(gradient)?.iter().any(|d| *d != 0.0), "{name}");
    }
    Ok(())
}

fn missing(device: &Device) -> Result<()> {
    let vb = VarBuilder::from_tensors(HashMap::new(), DType::F32, device);
    let message =
        Mlp::new(HIDDEN, INTERMEDIATE, vb.pp("mlp")).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(message.contains("mlp.gate_proj.weight"), "{message}");
    Ok(())
}
