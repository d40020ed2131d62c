//! One test case, described completely and in one line.

mod strategy;
mod text;

use swiglu_core::{Dtype, Gate, Options, Orientation, Route, Tile};

pub use strategy::{Space, cases};
pub use text::ParseCaseError;

/// How the two halves of the weights, and of their gradient, lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// In one matrix, gate half first.
    Packed,
    /// In two matrices.
    Split,
    /// In one `[2D, I]` matrix with alternating rows: only with [`Orientation::OutIn`].
    Interleaved,
}

/// What forward keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: inference. Only without gradients.
    Nothing,
    /// [`Save::PreActivations`](swiglu_core::Save::PreActivations).
    PreActivations,
    /// [`Save::Input`](swiglu_core::Save::Input).
    Input,
}

/// A down projection that dz comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownCase {
    /// O.
    pub out_features: u16,
    /// Orientation of the projection.
    pub orientation: Orientation,
    /// Elements from the end of a row of dy to the start of the next. The projection has as many where its rows are O long,
    /// and as many as dz where they are D long.
    pub pad: u16,
}

/// How a gradient leaves backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// Added to what is there.
    pub add: bool,
    /// Into f32 instead of the element type.
    pub wide: bool,
}

/// Where the inputs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Normal, weights scaled so that pre-activations are near 1.
    Normal,
    /// Uniform, scaled likewise.
    Uniform,
    /// Random sign, logarithm uniform over a range that depends on the seed and goes up to 2^-60..2^60.
    LogUniform,
    /// Normal, nine tenths zeros.
    Sparse,
    /// One element of each row of x and dz is not zero.
    OneHot,
    /// Pairs of terms that nearly cancel.
    Cancelling,
    /// Small integers times powers of two: every sum is exact in f32, in any order.
    Integers,
}

/// Elements from the end of a row to the start of the next, for each operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pads {
    /// x.
    pub x: u16,
    /// Weights.
    pub w: u16,
    /// z and dz.
    pub z: u16,
    /// dx.
    pub dx: u16,
    /// dwf.
    pub dwf: u16,
}

impl Pads {
    /// The same for all.
    pub const fn all(pad: u16) -> Self {
        Self { x: pad, w: pad, z: pad, dx: pad, dwf: pad }
    }

    fn list(self) -> [u16; 5] {
        [self.x, self.w, self.z, self.dx, self.dwf]
    }
}

/// A test case: everything that a differential check depends on. Data come from the seed, so shrinking moves shapes.
///
/// ```
/// use swiglu_testkit::Case;
/// let line = "m7k33d5 bf16 OutIn split pad3 geglu-erf bias pre dx+ dwf32 normal s42";
/// let case: Case = line.parse()?;
/// assert_eq!(case.in_features, 33);
/// assert_eq!(case.to_string(), line);
/// # Ok::<(), swiglu_testkit::ParseCaseError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// B.
    pub batch: usize,
    /// I.
    pub in_features: usize,
    /// D.
    pub hidden: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Orientation of the weights.
    pub orientation: Orientation,
    /// Arrangement of their halves.
    pub packing: Packing,
    /// Row strides.
    pub pads: Pads,
    /// The gate.
    pub gate: Gate,
    /// Whether there is a bias.
    pub bias: bool,
    /// What forward keeps.
    pub keep: Keep,
    /// Where dz comes from, when it is no operand. A forward alone has none.
    pub down: Option<DownCase>,
    /// The gradient of x; never `wide`.
    pub dx: Option<How>,
    /// The gradient of the weights.
    pub dwf: Option<How>,
    /// The gradient of the bias.
    pub dbias: Option<How>,
    /// Distribution of the inputs.
    pub data: Data,
    /// Output tile.
    pub tile: Tile,
    /// Whose kernels run.
    pub route: Route,
    /// Seed of the inputs.
    pub seed: u64,
}

/// What a case tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// z and the saved pre-activations.
    Forward,
    /// dx, maybe with other gradients.
    Dx,
    /// dwf or dbias, maybe with dx.
    Dwf,
}

impl Case {
    /// A forward case on dense, packed operands.
    pub const fn new(batch: usize, in_features: usize, hidden: usize, dtype: Dtype) -> Self {
        Self {
            batch,
            in_features,
            hidden,
            dtype,
            orientation: Orientation::InOut,
            packing: Packing::Packed,
            pads: Pads::all(0),
            gate: Gate::Swiglu,
            bias: false,
            keep: Keep::Nothing,
            down: None,
            dx: None,
            dwf: None,
            dbias: None,
            data: Data::Normal,
            tile: Tile::Auto,
            route: Route::Fused,
            seed: 0,
        }
    }

    /// Whether the case has gradients.
    pub const fn is_backward(&self) -> bool {
        self.dx.is_some() || self.dwf.is_some() || self.dbias.is_some()
    }

    /// Whether it is a case of this pass.
    pub const fn tests(&self, pass: Pass) -> bool {
        match pass {
            Pass::Forward => !self.is_backward(),
            Pass::Dx => self.dx.is_some(),
            Pass::Dwf => self.dwf.is_some() || self.dbias.is_some(),
        }
    }

    /// The options of its calls.
    pub const fn options(&self) -> Options {
        Options::new().tile(self.tile).route(self.route)
    }

    /// The same case, forward only.
    #[must_use]
    pub const fn forward_only(mut self) -> Self {
        (self.dx, self.dwf, self.dbias, self.down) = (None, None, None, None);
        self
    }

    /// The same case with every gradient, into the element type.
    #[must_use]
    pub const fn all_gradients(mut self) -> Self {
        let how = Some(How { add: false, wide: false });
        (self.dx, self.dwf, self.dbias) = (how, how, how);
        if matches!(self.keep, Keep::Nothing) {
            self.keep = Keep::PreActivations;
        }
        self
    }

    /// Multiply-adds of one product.
    pub const fn volume(&self) -> usize {
        self.batch.saturating_mul(self.in_features).saturating_mul(self.hidden)
    }
}
