//! Gate functions h(g, u), and their partial derivatives.
//!
//! [`Gate`] names a function at run time; [`GateFunction`] is the function itself, one type each, so that a kernel's
//! epilogue is compiled for it. [`Gate::dispatch`] goes from the first to the second.

mod functions;
mod math;

use std::fmt;
use std::hash::{Hash, Hasher};

pub(crate) use functions::{GegluErf, GegluTanh, Glu, Reglu, Swiglu, SwigluClamped};

use crate::error::{Error, Result};

/// Which function joins the gate and the up projection.
///
/// `g` is the gate pre-activation and `u` the up pre-activation; Shazeer, "GLU Variants Improve Transformer"
/// (arXiv 2002.05202) for the family.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum Gate {
    /// silu(g) * u with silu(g) = g * sigmoid(g).
    #[default]
    Swiglu,
    /// gelu(g) * u with the tanh form of GELU (arXiv 1606.08415).
    GegluTanh,
    /// gelu(g) * u with the exact GELU, g * Phi(g).
    GegluErf,
    /// relu(g) * u; the derivative at 0 is 0.
    Reglu,
    /// sigmoid(g) * u.
    Glu,
    /// gpt-oss: with g' = min(g, limit) and u' = clamp(u, -limit, limit), g' * sigmoid(alpha * g') * (u' + 1).
    SwigluClamped {
        /// Slope of the sigmoid; gpt-oss has 1.702.
        alpha: f32,
        /// Where the pre-activations are cut off; gpt-oss has 7.
        limit: f32,
    },
}

/// A gate function as a type.
///
/// The methods are branch-free where the function allows it, so that a loop over them vectorises.
pub trait GateFunction: Copy + Send + Sync + 'static {
    /// h(g, u).
    fn value(self, g: f32, u: f32) -> f32;

    /// dh/dg and dh/du.
    fn partials(self, g: f32, u: f32) -> (f32, f32);
}

/// A computation that is generic over the gate function.
pub trait GateVisitor {
    /// What it gives back.
    type Output;

    /// Runs the computation for one function.
    fn visit<G: GateFunction>(self, gate: G) -> Self::Output;
}

impl Gate {
    /// Every gate, the clamped one with the parameters of gpt-oss.
    pub const ALL: [Gate; 6] = [
        Gate::Swiglu,
        Gate::GegluTanh,
        Gate::GegluErf,
        Gate::Reglu,
        Gate::Glu,
        Gate::SwigluClamped { alpha: 1.702, limit: 7.0 },
    ];

    /// Calls `visitor` with the function that this gate names.
    ///
    /// Always inlined: a loop in `visitor` is compiled for the instruction set of the caller.
    #[inline(always)]
    pub fn dispatch<V: GateVisitor>(self, visitor: V) -> V::Output {
        match self {
            Gate::Swiglu => visitor.visit(Swiglu),
            Gate::GegluTanh => visitor.visit(GegluTanh),
            Gate::GegluErf => visitor.visit(GegluErf),
            Gate::Reglu => visitor.visit(Reglu),
            Gate::Glu => visitor.visit(Glu),
            Gate::SwigluClamped { alpha, limit } => visitor.visit(SwigluClamped { alpha, limit }),
        }
    }

    /// h(g, u).
    ///
    /// ```
    /// use swiglu_core::Gate;
    /// assert_eq!(Gate::Swiglu.value(0.0, 3.0), 0.0);
    /// assert_eq!(Gate::Swiglu.value(f32::NEG_INFINITY, 3.0), 0.0);
    /// assert_eq!(Gate::Reglu.value(2.0, 3.0), 6.0);
    /// ```
    pub fn value(self, g: f32, u: f32) -> f32 {
        struct Value(f32, f32);
        impl GateVisitor for Value {
            type Output = f32;
            fn visit<G: GateFunction>(self, gate: G) -> f32 {
                gate.value(self.0, self.1)
            }
        }
        self.dispatch(Value(g, u))
    }

    /// dh/dg and dh/du.
    pub fn partials(self, g: f32, u: f32) -> (f32, f32) {
        struct Partials(f32, f32);
        impl GateVisitor for Partials {
            type Output = (f32, f32);
            fn visit<G: GateFunction>(self, gate: G) -> (f32, f32) {
                gate.partials(self.0, self.1)
            }
        }
        self.dispatch(Partials(g, u))
    }

    /// The parameters are finite and the limit is positive.
    pub(crate) fn check(self) -> Result<()> {
        let Gate::SwigluClamped { alpha, limit } = self else { return Ok(()) };
        if !alpha.is_finite() {
            return Err(Error::InvalidOption {
                option: "gate alpha",
                value: f64::from(alpha),
                expected: "a finite number",
            });
        }
        if !(limit.is_finite() && limit > 0.0) {
            return Err(Error::InvalidOption {
                option: "gate limit",
                value: f64::from(limit),
                expected: "a finite number above 0",
            });
        }
        Ok(())
    }

    /// Identity by bits, so that `Eq` and `Hash` hold for the parameters too.
    fn key(self) -> (u8, u32, u32) {
        match self {
            Gate::Swiglu => (0, 0, 0),
            Gate::GegluTanh => (1, 0, 0),
            Gate::GegluErf => (2, 0, 0),
            Gate::Reglu => (3, 0, 0),
            Gate::Glu => (4, 0, 0),
            Gate::SwigluClamped { alpha, limit } => (5, alpha.to_bits(), limit.to_bits()),
        }
    }
}

impl PartialEq for Gate {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Gate {}

impl Hash for Gate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gate::Swiglu => f.write_str("swiglu"),
            Gate::GegluTanh => f.write_str("geglu-tanh"),
            Gate::GegluErf => f.write_str("geglu-erf"),
            Gate::Reglu => f.write_str("reglu"),
            Gate::Glu => f.write_str("glu"),
            Gate::SwigluClamped { alpha, limit } => write!(f, "swiglu-clamped({alpha},{limit})"),
        }
    }
}
