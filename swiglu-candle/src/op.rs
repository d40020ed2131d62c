//! What users call: checks the operands, has those copied that cannot be used in place, and adds the op to the graph.

use candle_core::{Result, Tensor};
use swiglu_core::{Gate, Options, Orientation, Save};

use crate::call::{Arrangement, Call};
use crate::node::Node;
use crate::operand::{Named, as_rows, check_kind, check_shape, in_features, orientation, out_features};

/// The op with what can be chosen about it; [`swiglu`](crate::swiglu) is the one with every default.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use swiglu_candle::{Gate, SwiGlu};
///
/// let x = Tensor::randn(0f32, 1.0, (8, 16), &Device::Cpu)?;
/// let w_gate_up = Tensor::randn(0f32, 0.1, (2 * 32, 16), &Device::Cpu)?;
/// let z = SwiGlu::new().gate(Gate::GegluTanh).forward_packed(&x, &w_gate_up, None)?;
/// assert_eq!(z.dims(), [8, 32]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SwiGlu {
    gate: Gate,
    save: Save,
    options: Options,
}

impl SwiGlu {
    /// [`Gate::Swiglu`], [`Save::PreActivations`], default [`Options`].
    pub fn new() -> Self {
        Self::default()
    }

    /// With this function to join gate and up.
    #[must_use]
    pub fn gate(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    /// With this choice of what a forward keeps for its backward, where one may come: x or weights are variables, or
    /// depend on some.
    ///
    /// [`Save::PreActivations`] keeps `2 * B * D` elements until the backward has run; candle's own graph of the same
    /// function keeps `3 * B * D`. [`Save::Input`] keeps nothing, and a training step does a third more arithmetic.
    #[must_use]
    pub fn save(mut self, save: Save) -> Self {
        self.save = save;
        self
    }

    /// With these options, for forward and backward.
    ///
    /// ```
    /// use swiglu_candle::{Options, Precision, SwiGlu};
    /// let tf32_on_cuda = SwiGlu::new().options(Options::new().precision(Precision::Tf32));
    /// # let _ = tf32_on_cuda;
    /// ```
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// `h(x . w_gate^T, x . w_up^T)`: x `[.., I]`, weights `[D, I]`, as candle's `Linear` and checkpoints have them.
    ///
    /// # Errors
    /// An operand of another shape, dtype or device than the others, or of a dtype or device that is not supported;
    /// and what the backend fails with.
    pub fn forward(&self, x: &Tensor, w_gate: &Tensor, w_up: &Tensor) -> Result<Tensor> {
        self.check(x, &[("w_gate", w_gate), ("w_up", w_up)])?;
        check_shape(("w_gate", w_gate), (out_features(("w_gate", w_gate))?, in_features(x)?))?;
        check_shape(("w_up", w_up), w_gate.shape())?;
        self.apply(Arrangement::Split, x, w_gate, w_up)
    }

    /// [`forward`](Self::forward) with a bias `[D]` for each projection.
    ///
    /// Weights and biases are packed for the call, which copies them: a model does that once, at load, and calls
    /// [`forward_packed`](Self::forward_packed).
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use swiglu_candle::SwiGlu;
    ///
    /// let zeros = |rows, cols| Tensor::zeros((rows, cols), DType::F32, &Device::Cpu);
    /// let bias = |value| Tensor::full(value, 3, &Device::Cpu);
    /// let (x, w) = (zeros(2, 4)?, zeros(3, 4)?);
    /// let z = SwiGlu::new().forward_with_bias(&x, (&w, &bias(0f32)?), (&w, &bias(1f32)?))?;
    /// assert_eq!(z.to_vec2::<f32>()?, [[0.0; 3]; 2]); // silu(0) * 1
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_with_bias(
        &self,
        x: &Tensor,
        (w_gate, b_gate): (&Tensor, &Tensor),
        (w_up, b_up): (&Tensor, &Tensor),
    ) -> Result<Tensor> {
        self.check(x, &[("w_gate", w_gate), ("b_gate", b_gate), ("w_up", w_up), ("b_up", b_up)])?;
        let hidden = out_features(("w_gate", w_gate))?;
        check_shape(("w_gate", w_gate), (hidden, in_features(x)?))?;
        check_shape(("w_up", w_up), w_gate.shape())?;
        check_shape(("b_gate", b_gate), hidden)?;
        check_shape(("b_up", b_up), hidden)?;
        let (w, b) = (Tensor::cat(&[w_gate, w_up], 0)?, Tensor::cat(&[b_gate, b_up], 0)?);
        self.apply(Arrangement::PackedBias, x, &w, &b)
    }

    /// With the weights of both projections in one tensor `[2D, I]`, gate rows first, and a bias `[2D]` likewise.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_packed(&self, x: &Tensor, w_gate_up: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let name = "w_gate_up";
        self.check(x, &[(name, w_gate_up), ("bias", bias.unwrap_or(w_gate_up))])?;
        let width = out_features((name, w_gate_up))?;
        check_shape((name, w_gate_up), (width, in_features(x)?))?;
        match bias {
            None => self.apply(Arrangement::Packed, x, w_gate_up, w_gate_up),
            Some(bias) => {
                check_shape(("bias", bias), width)?;
                self.apply(Arrangement::PackedBias, x, w_gate_up, bias)
            }
        }
    }

    fn check(&self, x: &Tensor, others: &[Named<'_>]) -> Result<()> {
        in_features(x)?;
        check_kind(("x", x), others)
    }

    fn apply(&self, arrangement: Arrangement, x: &Tensor, second: &Tensor, third: &Tensor) -> Result<Tensor> {
        let in_place = match arrangement {
            Arrangement::PackedBias => orientation(&[second]),
            Arrangement::Split | Arrangement::Packed => orientation(&[second, third]),
        };
        let third = match arrangement {
            Arrangement::PackedBias => &as_rows(third)?,
            Arrangement::Split | Arrangement::Packed => third,
        };
        let (second, third) = match in_place {
            Some(_) => (second.clone(), third.clone()),
            None => (second.contiguous()?, third.contiguous()?),
        };
        let x = as_rows(x)?;
        let trains = [&x, &second, &third].into_iter().any(Tensor::track_op);
        let call = Call {
            gate: self.gate,
            options: self.options,
            arrangement,
            orientation: in_place.unwrap_or(Orientation::OutIn),
            keep: trains.then_some(self.save),
        };
        x.apply_op3(&second, &third, Node::new(call))
    }
}
