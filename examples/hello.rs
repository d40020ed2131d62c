//! One fused call on ndarray views.

use ndarray::array;
use swiglu::{Cpu, MatRef, Options, Orientation, Result, SwiGLU, Weights};

fn main() -> Result<()> {
    let x = array![[1.0f32, 2.0, 3.0], [-1.0, 0.5, 0.0]]; // [B, I]
    let wf = array![[0.1f32, 0.4, 1.0, -1.0], [0.2, 0.5, 0.0, 1.0], [0.3, 0.6, 2.0, 0.5]]; // [I, 2D]: gate | up
    let w = Weights::packed(MatRef::try_from(&wf)?, Orientation::InOut)?;
    let z = Cpu::new().forward(MatRef::try_from(&x)?, w, Options::new())?;
    println!("z = silu(x . Wa) * (x . Wb) =\n{}", z.into_array());
    Ok(())
}
