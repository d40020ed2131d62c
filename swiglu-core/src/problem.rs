//! What a plan may depend on, and what a plan says.

use std::fmt;

use crate::element::{Dtype, Scalar};
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::layout::elements;
use crate::memory::{MatRef, Memory};
use crate::options::Options;
use crate::weights::Orientation;

/// B, I and D of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// B: rows of x.
    pub batch: usize,
    /// I: columns of x.
    pub in_features: usize,
    /// D: columns of z.
    pub hidden: usize,
}

/// How a gradient leaves backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GradientKind {
    /// Element type of the destination.
    pub dtype: Dtype,
    /// Whether it is added to.
    pub add: bool,
}

/// Where the dz of a backward comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum UpstreamKind {
    /// It is an operand.
    #[default]
    Dz,
    /// It is `dy . Wdown^T`.
    Projected {
        /// O: columns of dy.
        out_features: usize,
        /// Orientation of the down projection.
        orientation: Orientation,
    },
}

/// Which pass, and what it leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// z, and the pre-activations when `save` is set.
    Forward {
        /// Whether pre-activations are kept.
        save: bool,
    },
    /// The gradients that are `Some`.
    Backward {
        /// Whether forward kept the pre-activations.
        saved: bool,
        /// dX.
        dx: Option<GradientKind>,
        /// dWf.
        dwf: Option<GradientKind>,
        /// dbias.
        dbias: Option<GradientKind>,
    },
}

/// How an operand can be read: its row stride, and the largest power of two (at most 128) that divides its address
/// and its stride in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Access {
    /// Elements from row to row; 0 for an operand that the call does not have.
    pub row_stride: usize,
    /// Alignment in bytes.
    pub align: u32,
}

impl Access {
    /// The strongest alignment that is told apart, in bytes: one cache line of a GPU.
    pub const MAX_ALIGN: u32 = 128;

    pub(crate) fn of<T: Scalar, M: Memory>(m: MatRef<'_, T, M>) -> Self {
        let bits = M::place(m.ptr()).address | (m.row_stride() * size_of::<T>()) as u64;
        let align = 1 << bits.trailing_zeros().min(Self::MAX_ALIGN.trailing_zeros());
        Self { row_stride: m.row_stride(), align }
    }

    fn dense(cols: usize, dtype: Dtype) -> Self {
        // Only the lowest bits count.
        let bytes = cols.wrapping_mul(dtype.bytes()) as u64;
        let align = 1 << bytes.trailing_zeros().min(Self::MAX_ALIGN.trailing_zeros());
        Self { row_stride: cols, align }
    }
}

/// How every operand can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Accesses {
    /// x.
    pub x: Access,
    /// The gate projection.
    pub gate: Access,
    /// The up projection.
    pub up: Access,
    /// z; in backward dz, where it is an operand.
    pub z: Access,
    /// dy, where dz comes from it.
    pub dy: Access,
    /// The down projection, where dz comes from it.
    pub down: Access,
    /// The pre-activations.
    pub pre: Access,
    /// dx.
    pub dx: Access,
    /// The gate half of dwf.
    pub dwf_gate: Access,
    /// The up half of dwf.
    pub dwf_up: Access,
}

/// Everything that a plan may depend on. Pure data: the argument of `plan`, and the key of plan, tune and code caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Problem {
    /// Forward or backward.
    pub pass: Pass,
    /// Where the dz of a backward comes from.
    pub upstream: UpstreamKind,
    /// Element type.
    pub dtype: Dtype,
    /// B, I, D.
    pub dims: Dims,
    /// Orientation of the weights.
    pub orientation: Orientation,
    /// Whether there is a bias.
    pub bias: bool,
    /// The gate function.
    pub gate: Gate,
    /// Strides and alignments.
    pub accesses: Accesses,
    /// How to carry it out.
    pub options: Options,
}

/// Columns or rows of the largest tile, which a workspace may be filled up to.
const EDGE: usize = 128;

/// A dimension with whole tiles, and one more.
fn padded(what: &'static str, dim: usize) -> Result<usize> {
    dim.checked_add(2 * EDGE).ok_or(Error::Overflow { what, a: dim, b: 1 })
}

impl Dims {
    /// Whether every product that a backend forms of them fits, in bytes of f32, the widest element of a workspace: twice, for
    /// two of them in one.
    pub(crate) fn check(self) -> Result<()> {
        let packed = padded("packed width", elements("packed width", self.hidden, 2)?)?;
        let (batch, in_features) = (padded("batch", self.batch)?, padded("in_features", self.in_features)?);
        let row = elements("packed row bytes", packed, 2 * size_of::<f32>())?;
        elements("pre-activations", batch, row)?;
        elements("packed weights", in_features, row)?;
        elements("x", batch, elements("x row bytes", in_features, size_of::<f32>())?)?;
        Ok(())
    }

    /// The same of those with the width of dy.
    pub(crate) fn check_projected(self, out_features: usize) -> Result<()> {
        let row = elements("dy row bytes", padded("out_features", out_features)?, 2 * size_of::<f32>())?;
        elements("dy", padded("batch", self.batch)?, row)?;
        elements("down projection", padded("hidden", self.hidden)?, row)?;
        Ok(())
    }
}

impl Problem {
    /// A problem on dense, well-aligned operands, packed weights, SiLU and no bias: for asking `plan` about a shape.
    ///
    /// ```
    /// use swiglu_core::{Dims, Dtype, Options, Orientation, Pass, Problem, SwiGLU};
    /// use swiglu_cpu::Cpu;
    /// let dims = Dims { batch: 128, in_features: 784, hidden: 512 };
    /// let problem = Problem::dense(Pass::Forward { save: false }, Dtype::F32, dims, Orientation::InOut, Options::new());
    /// println!("{}", SwiGLU::<f32>::plan(&Cpu::new(), &problem)?);
    /// # Ok::<(), swiglu_core::Error>(())
    /// ```
    pub fn dense(pass: Pass, dtype: Dtype, dims: Dims, orientation: Orientation, options: Options) -> Self {
        let access = |cols: usize| Access::dense(cols, dtype);
        let half = access(orientation.packed_shape(dims.in_features, dims.hidden).1);
        let mut accesses = Accesses {
            x: access(dims.in_features),
            gate: half,
            up: half,
            z: access(dims.hidden),
            ..Accesses::default()
        };
        match pass {
            Pass::Forward { save } => {
                if save {
                    accesses.pre = access(dims.hidden.saturating_mul(2));
                }
            }
            Pass::Backward { saved, dx, dwf, .. } => {
                if saved {
                    accesses.pre = access(dims.hidden.saturating_mul(2));
                }
                if dx.is_some() {
                    accesses.dx = access(dims.in_features);
                }
                if dwf.is_some() {
                    (accesses.dwf_gate, accesses.dwf_up) = (half, half);
                }
            }
        }
        let upstream = UpstreamKind::Dz;
        Self {
            pass,
            upstream,
            dtype,
            dims,
            orientation,
            bias: false,
            gate: Gate::default(),
            accesses,
            options,
        }
    }

    /// A backward whose dz comes from `[B, O]` through a down projection, both dense and well aligned.
    ///
    /// ```
    /// use swiglu_core::{Dims, Dtype, GradientKind, Options, Orientation, Pass, Problem};
    /// let dims = Dims { batch: 128, in_features: 784, hidden: 512 };
    /// let dx = Some(GradientKind { dtype: Dtype::F32, add: false });
    /// let pass = Pass::Backward { saved: true, dx, dwf: None, dbias: None };
    /// let problem = Problem::dense(pass, Dtype::F32, dims, Orientation::InOut, Options::new());
    /// let projected = problem.projected(784, Orientation::InOut);
    /// assert_eq!(projected.flops(), 1.5 * problem.flops());
    /// ```
    #[must_use]
    pub fn projected(mut self, out_features: usize, orientation: Orientation) -> Self {
        self.upstream = UpstreamKind::Projected { out_features, orientation };
        self.accesses.z = Access::default();
        self.accesses.dy = Access::dense(out_features, self.dtype);
        self.accesses.down = Access::dense(
            match orientation {
                Orientation::InOut => out_features,
                Orientation::OutIn => self.dims.hidden,
            },
            self.dtype,
        );
        self
    }

    /// Whether operands of these dimensions can exist, with room for tiles that reach past their edges. Calls are checked
    /// anyway; a backend asks this of a problem that somebody made up for a plan.
    ///
    /// ```
    /// use swiglu_core::{Dims, Dtype, Error, Options, Orientation, Pass, Problem};
    /// let dims = Dims { batch: usize::MAX, in_features: 2, hidden: 2 };
    /// let pass = Pass::Forward { save: false };
    /// let problem = Problem::dense(pass, Dtype::F32, dims, Orientation::OutIn, Options::new());
    /// assert!(matches!(problem.check(), Err(Error::Overflow { .. })));
    /// ```
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn check(&self) -> Result<()> {
        self.dims.check()?;
        match self.upstream {
            UpstreamKind::Dz => Ok(()),
            UpstreamKind::Projected { out_features, .. } => self.dims.check_projected(out_features),
        }
    }

    /// Floating-point operations of the matrix products: `4 * B * I * D` for each of forward, dX and dWf, and for the
    /// pre-activations when backward has to compute them again; `2 * B * O * D` for a dz that comes from dy.
    pub fn flops(&self) -> f64 {
        let Dims { batch, in_features, hidden } = self.dims;
        let products = match self.pass {
            Pass::Forward { .. } => 1,
            Pass::Backward { saved, dx, dwf, .. } => {
                u8::from(!saved) + u8::from(dx.is_some()) + u8::from(dwf.is_some())
            }
        };
        let projected = match self.upstream {
            UpstreamKind::Dz => 0.0,
            UpstreamKind::Projected { out_features, .. } => {
                2.0 * batch as f64 * out_features as f64 * hidden as f64
            }
        };
        projected + 4.0 * f64::from(products) * batch as f64 * in_features as f64 * hidden as f64
    }
}

/// What a backend will do for a [`Problem`]: a pure function of the problem and of facts about the device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The backend and its kernel family.
    pub backend: String,
    /// One line for each launch or parallel pass, in order.
    pub launches: Vec<String>,
    /// Bytes of workspace that the call takes from the handle's arena.
    pub workspace_bytes: usize,
    /// What the caller may want to know: a tile that had to shrink, a precision that does not apply.
    pub notes: Vec<String>,
}

impl Plan {
    /// A plan without notes.
    pub fn new(backend: impl Into<String>, launches: Vec<String>, workspace_bytes: usize) -> Self {
        Self { backend: backend.into(), launches, workspace_bytes, notes: Vec::new() }
    }

    /// With one more note.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, workspace {} bytes", self.backend, self.workspace_bytes)?;
        for (index, launch) in self.launches.iter().enumerate() {
            write!(f, "\n  {}. {launch}", index + 1)?;
        }
        for note in &self.notes {
            write!(f, "\n  note: {note}")?;
        }
        Ok(())
    }
}
