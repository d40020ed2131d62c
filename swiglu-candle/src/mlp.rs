//! The MLP of a transformer block.

use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear_no_bias};

use crate::SwiGlu;

/// `down_proj(h(gate_proj(x), up_proj(x)))`: a drop-in for the MLP of LLaMA and its relatives, without biases.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// use swiglu_candle::Mlp;
///
/// let variables = VarMap::new();
/// let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
/// let mlp = Mlp::new(16, 44, vb.pp("layers.0.mlp"))?; // layers.0.mlp.gate_proj.weight and so on
/// let x = Tensor::randn(0f32, 1.0, (2, 5, 16), &Device::Cpu)?;
/// let loss = mlp.forward(&x)?.sqr()?.mean_all()?;
/// let gradients = loss.backward()?;
/// assert!(variables.all_vars().iter().all(|var| gradients.get(var).is_some()));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mlp {
    projections: Projections,
    down: Linear,
    op: SwiGlu,
}

/// The weights of gate and up.
#[derive(Clone, Debug)]
enum Projections {
    Split { gate: Tensor, up: Tensor },
    Packed(Tensor),
}

impl Mlp {
    /// From `gate_proj.weight` and `up_proj.weight` `[intermediate_size, hidden_size]`, and `down_proj.weight`
    /// `[hidden_size, intermediate_size]`.
    ///
    /// # Errors
    /// What the [`VarBuilder`] fails with: a tensor that is not there, or of another shape.
    pub fn new(hidden_size: usize, intermediate_size: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let gate = weight(hidden_size, intermediate_size, vb.pp("gate_proj"))?;
        let up = weight(hidden_size, intermediate_size, vb.pp("up_proj"))?;
        Self::with(Projections::Split { gate, up }, hidden_size, intermediate_size, vb)
    }

    /// From `gate_up_proj.weight` `[2 * intermediate_size, hidden_size]`, gate rows first, as Phi-3 and GLM-4 have it, and
    /// `down_proj.weight`.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::{Module, VarBuilder};
    /// use swiglu_candle::Mlp;
    ///
    /// let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
    /// let mlp = Mlp::packed(16, 44, vb)?;
    /// let y = mlp.forward(&Tensor::ones((3, 16), DType::F32, &Device::Cpu)?)?;
    /// assert_eq!(y.dims(), [3, 16]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Mlp::new`].
    pub fn packed(hidden_size: usize, intermediate_size: usize, vb: VarBuilder<'_>) -> Result<Self> {
        // A width that is no number fits no tensor, and is refused as such.
        let gate_up = weight(hidden_size, intermediate_size.saturating_mul(2), vb.pp("gate_up_proj"))?;
        Self::with(Projections::Packed(gate_up), hidden_size, intermediate_size, vb)
    }

    fn with(
        projections: Projections,
        hidden_size: usize,
        intermediate_size: usize,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let down = linear_no_bias(intermediate_size, hidden_size, vb.pp("down_proj"))?;
        Ok(Self { projections, down, op: SwiGlu::new() })
    }

    /// With another gate function, or other options, for gate and up.
    #[must_use]
    pub fn op(mut self, op: SwiGlu) -> Self {
        self.op = op;
        self
    }
}

/// `weight` of a projection, initialised as candle's `linear_no_bias` does where variables are made.
fn weight(in_dim: usize, out_dim: usize, vb: VarBuilder<'_>) -> Result<Tensor> {
    Ok(linear_no_bias(in_dim, out_dim, vb)?.weight().clone())
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let z = match &self.projections {
            Projections::Split { gate, up } => self.op.forward(x, gate, up)?,
            Projections::Packed(gate_up) => self.op.forward_packed(x, gate_up, None)?,
        };
        self.down.forward(&z)
    }
}
