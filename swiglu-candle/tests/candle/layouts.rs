//! Tensors that are not contiguous, read in place or copied, against the same reference.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, IndexOp, Result, Tensor, Var};
use swiglu_candle::{Gate, SwiGlu, swiglu};

use crate::Test;
use crate::reference::{Case, Form, Inputs, check, real};

pub(crate) const TESTS: &[Test] = &[
    ("x_of_any_layout", inputs),
    ("x_of_any_rank", ranks),
    ("weights_of_any_layout", weights),
    ("biases_of_any_layout", biases),
    ("dz_of_any_layout", output_gradients),
    ("empty_dimensions", empty),
];

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Larger than a case asks for, to take parts of; not a variable.
fn larger(rows: usize, cols: usize, like: &Tensor) -> Result<Tensor> {
    Tensor::rand(-1f32, 1.0, (rows, cols), like.device())?.to_dtype(like.dtype())
}

fn inputs(device: &Device) -> Result<()> {
    for dtype in DTYPES {
        let case = Case::new(6, 16, 12, dtype);
        let drawn = Inputs::draw(&case, device)?;
        let big = larger(20, 40, &drawn.x)?;
        let layouts = [
            ("columns of a wider tensor", big.i((0..6, 3..19))?),
            ("rows of a longer tensor", big.i((5..11, 0..16))?),
            ("a transpose", big.i((0..16, 4..10))?.t()?),
            ("one row for all", big.i((0..1, 0..16))?.broadcast_as((6, 16))?),
        ];
        for (name, x) in layouts {
            assert!(!x.is_contiguous() || name.starts_with("rows"), "{name}");
            check(&case, &Inputs { x, ..drawn.clone() })?;
        }
        // Through a view of a variable, whose gradient candle puts together.
        let source = Var::from_tensor(&big)?;
        let z = swiglu(&source.i((0..6, 3..19))?, &drawn.w_gate, &drawn.w_up)?;
        let gradients = z.sum_all()?.backward()?;
        let gradient = gradients.get(&source).expect("a gradient of the whole variable");
        assert_eq!(gradient.dims(), [20, 40]);
        let outside = gradient.i((6.., ..))?.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
        assert_eq!(outside, 0.0);
    }
    Ok(())
}

fn ranks(device: &Device) -> Result<()> {
    let case = Case::new(24, 16, 12, DType::F32);
    let drawn = Inputs::draw(&case, device)?;
    let source = larger(40, 2 * 16, &drawn.x)?;
    let whole = source.i((0..24, 0..16))?;
    let layouts = [
        ("[B, T, I]", whole.contiguous()?.reshape((4, 6, 16))?),
        ("[B, H, T, I]", whole.contiguous()?.reshape((2, 3, 4, 16))?),
        ("a narrowed [B, T, 2I]", source.i((0..24, ..))?.reshape((4, 6, 32))?.narrow(2, 16, 16)?),
        ("swapped leading dimensions", whole.contiguous()?.reshape((6, 4, 16))?.transpose(0, 1)?),
        ("a narrowed middle", source.i((.., 0..16))?.contiguous()?.reshape((4, 10, 16))?.narrow(1, 2, 6)?),
    ];
    for (name, x) in layouts {
        let dims = [&x.dims()[..x.rank() - 1], &[12]].concat();
        assert_eq!(swiglu(&x, &drawn.w_gate, &drawn.w_up)?.dims(), dims, "{name}");
        check(&case, &Inputs { x, dz: drawn.dz.reshape(dims)?, ..drawn.clone() })?;
    }
    Ok(())
}

fn weights(device: &Device) -> Result<()> {
    for dtype in DTYPES {
        for form in [Form::Split, Form::SplitBias] {
            let case = Case { form, ..Case::new(6, 16, 12, dtype) };
            let drawn = Inputs::draw(&case, device)?;
            let (both, wide) = (larger(2 * 12, 16, &drawn.x)?, larger(16, 40, &drawn.x)?);
            let layouts = [
                ("halves of a packed tensor", both.i(..12)?, both.i(12..)?),
                ("transposes", wide.i((.., 0..12))?.t()?, wide.i((.., 12..24))?.t()?),
                ("one transpose", drawn.w_gate.clone(), wide.i((.., 0..12))?.t()?),
                (
                    "no rows",
                    wide.i((.., 0..12))?.t()?,
                    larger(12, 32, &drawn.x)?.reshape((12, 16, 2))?.i((.., .., 1))?,
                ),
            ];
            for (name, w_gate, w_up) in layouts {
                assert_eq!(
                    (w_gate.dims(), w_up.dims()),
                    ([12, 16].as_slice(), [12, 16].as_slice()),
                    "{name}"
                );
                check(&case, &Inputs { w_gate, w_up, ..drawn.clone() })?;
            }
        }
    }
    transposed_variables(device)
}

/// Small odd integers: sums of them and of their products are exact in f32, and not 0 when they have an odd number of terms.
fn integers(rows: usize, cols: usize, device: &Device) -> Result<Var> {
    let values = (0..rows * cols).map(|at| (at * 7 % 11 % 5) as f32 * 2.0 - 3.0).collect();
    Var::from_vec(values, (rows, cols), device)
}

/// Variables `[I, D]` that the op sees as their transposes: their gradients, and with them those of candle's own graph,
/// are exact for integers and a ReLU off its kink.
fn transposed_variables(device: &Device) -> Result<()> {
    let (x, dz) = (integers(6, 15, device)?, integers(6, 12, device)?);
    let (gate, up) = (integers(15, 12, device)?, integers(15, 12, device)?.affine(-1.0, 1.0)?);
    let up = Var::from_tensor(&up)?;
    let packed = Var::from_tensor(&Tensor::cat(&[gate.as_tensor(), up.as_tensor()], 1)?)?;
    let op = SwiGlu::new().gate(Gate::Reglu);
    let gradients = |z: Tensor| z.mul(&dz)?.sum_all()?.backward();
    let of = |gradients: &GradStore, var: &Var| real(gradients.get(var).expect("a gradient of the variable"));

    let graph = gradients((x.matmul(&gate)?.relu()? * x.matmul(&up)?)?)?;
    let split = gradients(op.forward(&x, &gate.t()?, &up.t()?)?)?;
    let whole = gradients(op.forward_packed(&x, &packed.t()?, None)?)?;
    for var in [&x, &gate, &up] {
        assert_eq!(of(&split, var)?, of(&graph, var)?);
    }
    assert_eq!(of(&whole, &x)?, of(&graph, &x)?);
    let halves = ndarray::concatenate![ndarray::Axis(1), of(&graph, &gate)?, of(&graph, &up)?];
    assert_eq!(of(&whole, &packed)?, halves);
    assert!(halves.iter().any(|d| *d != 0.0), "a gradient that says something");
    Ok(())
}

fn biases(device: &Device) -> Result<()> {
    let case = Case { form: Form::SplitBias, ..Case::new(6, 16, 12, DType::F32) };
    let drawn = Inputs::draw(&case, device)?;
    let column = |col| larger(12, 3, &drawn.x)?.i((.., col));
    let strided = Inputs { biases: Some((column(0)?, column(2)?)), ..drawn.clone() };
    check(&case, &strided)?;
    let (w, b) = (Tensor::cat(&[&drawn.w_gate, &drawn.w_up], 0)?, larger(24, 3, &drawn.x)?.i((.., 1))?);
    let z = case.op().forward_packed(&drawn.x, &w, Some(&b))?;
    let copied = case.op().forward_packed(&drawn.x, &w, Some(&b.contiguous()?))?;
    assert_eq!(real(&z)?, real(&copied)?);
    Ok(())
}

fn output_gradients(device: &Device) -> Result<()> {
    let case = Case::new(6, 16, 12, DType::F32);
    let drawn = Inputs::draw(&case, device)?;
    let gradient =
        |loss: Tensor| loss.backward().map(|g| g.get(&drawn.w_up).map(real).expect("a gradient"))?;
    let z = || drawn.forward(&case);
    let plain = gradient(z()?.mul(&drawn.dz)?.sum_all()?)?;
    // dz arrives as a transpose, and as one number for all.
    assert_eq!(gradient(z()?.t()?.mul(&drawn.dz.t()?.contiguous()?)?.sum_all()?)?, plain);
    let ones = gradient(z()?.mul(&drawn.dz.ones_like()?)?.sum_all()?)?;
    assert_eq!(gradient(z()?.sum_all()?)?, ones);
    Ok(())
}

fn empty(device: &Device) -> Result<()> {
    // candle does not make empty tensors everywhere.
    if Tensor::zeros((0, 5), DType::F32, device).is_err() {
        return Ok(());
    }
    for (batch, in_features, hidden) in [(0, 5, 3), (4, 0, 3), (4, 5, 0), (0, 0, 0)] {
        let zeros = |shape: (usize, usize)| Var::zeros(shape, DType::F32, device);
        let (x, w) = (zeros((batch, in_features))?, zeros((hidden, in_features))?);
        let up = zeros((hidden, in_features))?;
        let z = swiglu(&x, &w, &up)?;
        assert_eq!(z.dims(), [batch, hidden]);
        assert!(real(&z)?.iter().all(|z| *z == 0.0), "an empty sum is 0");
        let gradients = z.sum_all()?.backward()?;
        for var in [&x, &w, &up] {
            let gradient = gradients.get(var).expect("a gradient");
            assert_eq!(gradient.shape(), var.shape());
            assert!(real(gradient)?.iter().all(|d| *d == 0.0), "no rows, no gradient");
        }
    }
    Ok(())
}
