//! How a call is carried out: everything that may change its speed or its rounding, nothing that changes what it
//! computes.

/// Edge of an output tile: on the CPU and in the CUDA families `simt` and `mma`.
///
/// A tile that does not fit the device becomes the next smaller one, and the plan says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Tile {
    /// The backend chooses, by shape and device.
    #[default]
    Auto,
    /// 32.
    T32,
    /// 64.
    T64,
    /// 128.
    T128,
}

impl Tile {
    /// The edge in elements, `None` for [`Tile::Auto`].
    pub const fn edge(self) -> Option<usize> {
        match self {
            Tile::Auto => None,
            Tile::T32 => Some(32),
            Tile::T64 => Some(64),
            Tile::T128 => Some(128),
        }
    }
}

/// Precision of `f32` products on CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// The accuracy and the range of `f32` arithmetic, infinities included. A backend that makes these products of
    /// parts says where at the ends of the range they are coarser: `swiglu-cuda` does, on Hopper.
    #[default]
    Strict,
    /// TF32 tensor cores: operands rounded to 11 bits. Never chosen silently. The CPU has none and computes strictly.
    Tf32,
}

/// Whose kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Route {
    /// This library's fused kernels.
    #[default]
    Fused,
    /// The platform's GEMM library with elementwise passes around it: matrixmultiply on the CPU, cuBLAS on CUDA.
    Composed,
}

/// How a call is carried out.
///
/// ```
/// use swiglu_core::{Options, Route, Tile};
/// let options = Options::new().tile(Tile::T64).route(Route::Composed);
/// assert_eq!(options.tile, Tile::T64);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct Options {
    /// Edge of an output tile.
    pub tile: Tile,
    /// Precision of `f32` products on CUDA.
    pub precision: Precision,
    /// Whose kernels run.
    pub route: Route,
}

impl Options {
    /// The defaults: automatic tile, strict precision, fused kernels.
    pub const fn new() -> Self {
        Self { tile: Tile::Auto, precision: Precision::Strict, route: Route::Fused }
    }

    /// With this output tile.
    #[must_use]
    pub const fn tile(mut self, tile: Tile) -> Self {
        self.tile = tile;
        self
    }

    /// With this precision.
    #[must_use]
    pub const fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// With these kernels.
    #[must_use]
    pub const fn route(mut self, route: Route) -> Self {
        self.route = route;
        self
    }
}
