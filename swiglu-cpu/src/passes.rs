//! The op's two passes as products on the driver.

use swiglu_core::ops::{Backward, Forward};
use swiglu_core::{
    Dims, Down, Dtype, Element, Halves, Host, Layout, MatMut, MatRef, Orientation, Out, Problem, Result,
    Target, Tile, Upstream, UpstreamKind, Weights,
};

use crate::arena::{Space, Tasks, Workspace};
use crate::backend::Pass;
use crate::dots;
use crate::gemm::gemm;
use crate::grid::{Grid, Tiling};
use crate::kernels::Kernel;
use crate::output::{Bias, CotangentStore, GateGradientStore, GateStore, Store, StorePair};
use crate::pack::{Along, Columns, Factor, Paired, Rows, Stacked};
use crate::rows;
use crate::stream::{self, Pair};

/// How k runs in weights that serve as B as they are.
fn plain(orientation: Orientation) -> Along {
    match orientation {
        Orientation::InOut => Along::Rows,
        Orientation::OutIn => Along::Columns,
    }
}

/// The same for their transpose.
fn transposed(orientation: Orientation) -> Along {
    match orientation {
        Orientation::InOut => Along::Columns,
        Orientation::OutIn => Along::Rows,
    }
}

/// The projections as the B factor of `x . [Wa | Wb]`.
fn projections<'a, T: Element>(w: &Weights<'a, T, Host>) -> Paired<'a, T> {
    let along = plain(w.orientation());
    Paired { gate: Factor { matrix: w.gate_weights(), along }, up: Factor { matrix: w.up_weights(), along } }
}

/// The projections as the B factor of `[dG | dU] . [Wa | Wb]^T`.
fn transposed_projections<'a, T: Element>(w: &Weights<'a, T, Host>) -> Stacked<'a, T> {
    let along = transposed(w.orientation());
    Stacked {
        first: Factor { matrix: w.gate_weights(), along },
        second: Factor { matrix: w.up_weights(), along },
    }
}

/// The down projection as the B factor of `dy . Wdown^T`.
pub(crate) fn transposed_down<'a, T: Element>(down: &Down<'a, T, Host>) -> Factor<'a, T> {
    Factor { matrix: down.matrix(), along: transposed(down.orientation()) }
}

/// The two halves of a packed matrix.
fn halves<T: Element>(packed: MatRef<'_, T, Host>) -> Result<(MatRef<'_, T, Host>, MatRef<'_, T, Host>)> {
    let (rows, cols) = packed.shape();
    Ok((packed.sub(0..rows, 0..cols / 2)?, packed.sub(0..rows, cols / 2..cols)?))
}

/// The products of a call and their blocks: a pure function of the dimensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grids {
    /// x . Wf: forward, and the recomputation of pre-activations.
    pub(crate) projection: Grid,
    /// dy . Wdown^T, where dz comes from it.
    pub(crate) dz: Option<Grid>,
    /// dAB . Wf^T.
    pub(crate) dx: InputGradient,
    /// X^T . dAB, or one half of its transpose.
    pub(crate) dwf: Grid,
}

impl Grids {
    pub(crate) fn new<K: Kernel>(kernel: K, problem: &Problem, threads: usize) -> Self {
        let Dims { batch: b, in_features: i, hidden: d } = problem.dims;
        let tile = problem.options.tile;
        let bf16 = problem.dtype == Dtype::Bf16;
        let tiling = Tiling::with(kernel, bf16);
        // dAB that is computed again is in f32.
        let saved = !matches!(problem.pass, swiglu_core::Pass::Backward { saved: false, .. });
        let of_dab = Tiling::with(kernel, bf16 && saved);
        let (along, turned) = (plain(problem.orientation), transposed(problem.orientation));
        Self {
            projection: Grid::new::<Paired<'_, f32>>(tiling, along, [b, d, i], tile, threads),
            dz: match problem.upstream {
                UpstreamKind::Dz => None,
                UpstreamKind::Projected { out_features: o, orientation } => Some(
                    Grid::new::<Factor<'_, f32>>(tiling, transposed(orientation), [b, d, o], tile, threads),
                ),
            },
            dx: if tile == Tile::Auto
                && problem.orientation == Orientation::InOut
                && of_dab.dots_go_on
                && (1..=of_dab.dot_rows).contains(&b)
            {
                InputGradient::Dotted(dots::stacked_grid(of_dab, [b, i, d], threads))
            } else {
                InputGradient::Tiled(Grid::new::<Stacked<'_, f32>>(
                    of_dab,
                    turned,
                    [b, i, 2 * d],
                    tile,
                    threads,
                ))
            },
            dwf: match problem.orientation {
                Orientation::InOut => {
                    Grid::new::<Paired<'_, f32>>(of_dab, Along::Rows, [i, d, b], tile, threads)
                }
                Orientation::OutIn => {
                    Grid::new::<Factor<'_, f32>>(of_dab, Along::Rows, [d, i, b], tile, threads)
                }
            },
        }
    }
}

/// How dX is multiplied.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InputGradient {
    /// On the tiled driver.
    Tiled(Grid),
    /// Few rows, along `[I, 2D]` weights that are not packed.
    Dotted(Grid),
}

impl InputGradient {
    /// Floats that it works in.
    pub(crate) fn space(&self) -> Space {
        match self {
            InputGradient::Tiled(grid) => grid.space(),
            InputGradient::Dotted(grid) => Space::of_task(dots::stacked_task_len(grid)),
        }
    }
}

/// How a forward multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Projection {
    /// On the tiled driver.
    Tiled(Grid),
    /// Few rows, along `[I, 2D]` weights that are not packed.
    Streamed(Grid),
    /// Few rows, along `[2D, I]` weights that are not packed.
    Dotted(Grid),
}

impl Projection {
    pub(crate) fn new<K: Kernel>(kernel: K, problem: &Problem, threads: usize) -> Self {
        let Dims { batch, in_features, hidden } = problem.dims;
        let bytes = in_features.saturating_mul(2 * hidden).saturating_mul(problem.dtype.bytes());
        let tiling = Tiling::with(kernel, problem.dtype == Dtype::Bf16);
        let shape = [batch, hidden, in_features];
        if problem.options.tile == Tile::Auto {
            match problem.orientation {
                Orientation::InOut if tiling.strips && stream::pays(batch, bytes) => {
                    return Projection::Streamed(stream::grid(tiling, shape, threads));
                }
                Orientation::OutIn if (1..=tiling.dot_rows).contains(&batch) => {
                    return Projection::Dotted(dots::grid(tiling, shape, threads));
                }
                // Where k runs along the columns of weights, other kernels have to turn them: packing does.
                _ => {}
            }
        }
        Projection::Tiled(Grids::new(kernel, problem, threads).projection)
    }

    /// Floats that it works in.
    pub(crate) fn space(&self) -> Space {
        match self {
            Projection::Tiled(grid) => grid.space(),
            Projection::Streamed(grid) => Space::of_task(stream::task_len(grid)),
            Projection::Dotted(grid) => Space::of_task(dots::task_len(grid)),
        }
    }
}

/// A checked forward.
pub(crate) struct ForwardPass<'a, T: Element>(pub(crate) Forward<'a, T, Host>);

impl<T: Element> Pass for ForwardPass<'_, T> {
    fn run<K: Kernel>(self, kernel: K, workspace: &mut Workspace, threads: usize) -> Result<()> {
        let Forward { problem, x, w, z, pre, .. } = self.0;
        let projection = Projection::new(kernel, &problem, threads);
        workspace.grow(threads, projection.space())?;
        let (tasks, _) = workspace.parts(0);
        let pre = pre.map(|pre| pre.split_cols(w.hidden())).transpose()?;
        let output = GateStore { gate: w.function(), bias: w.bias_row().map(Bias::new), z, pre };
        match projection {
            Projection::Tiled(grid) => gemm(kernel, &grid, &Rows(x), &projections(&w), output, tasks),
            Projection::Streamed(grid) => {
                let pair = Pair { gate: w.gate_weights(), up: w.up_weights() };
                stream::stream(kernel, &grid, x, pair, output, tasks);
            }
            Projection::Dotted(grid) => {
                let b = Pair { gate: w.gate_weights(), up: w.up_weights() };
                dots::multiply(kernel, &grid, dots::Projections { a: x, b }, output, tasks);
            }
        }
        Ok(())
    }
}

/// A checked backward.
pub(crate) struct BackwardPass<'a, T: Element>(pub(crate) Backward<'a, T, Host>);

/// Floats that backward keeps for the whole call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallSpace {
    /// dAB in f32, when forward kept no pre-activations to turn into it.
    pub(crate) dab: usize,
    /// Column sums of dAB.
    pub(crate) sums: usize,
}

impl CallSpace {
    pub(crate) fn new(dims: Dims, saved: bool, dbias: bool) -> Self {
        Self {
            dab: if saved { 0 } else { 2 * dims.batch * dims.hidden },
            sums: if dbias { 2 * dims.hidden } else { 0 },
        }
    }

    pub(crate) fn len(self) -> usize {
        self.dab + self.sums
    }
}

impl<T: Element> Pass for BackwardPass<'_, T> {
    fn run<K: Kernel>(self, kernel: K, workspace: &mut Workspace, threads: usize) -> Result<()> {
        let Backward { problem, x, w, upstream, pre, dx, dwf, dbias, .. } = self.0;
        let grids = Grids::new(kernel, &problem, threads);
        let space = CallSpace::new(problem.dims, pre.is_some(), dbias.is_some());
        let products = [
            pre.is_none().then(|| grids.projection.space()),
            grids.dz.map(|grid| grid.space()),
            dx.is_some().then(|| grids.dx.space()),
            dwf.is_some().then(|| grids.dwf.space()),
        ];
        let call = Space::of_call(space.len());
        workspace.grow(threads, products.into_iter().flatten().fold(call, Space::or))?;
        let (tasks, floats) = workspace.parts(space.len());
        let (dab, sums) = floats.split_at_mut(space.dab);
        let wanted = dbias.is_some().then_some(&mut *sums);
        let cotangents = Cotangents { kernel, grids, x, w, upstream, tasks };
        let products = Products { grids, x, w, dx, dwf, tasks };
        match pre {
            Some(mut pre) => {
                cotangents.of_saved(pre.view_mut(), wanted)?;
                products.run(kernel, pre.view())?;
            }
            None => {
                let layout = Layout::dense(problem.dims.batch, 2 * problem.dims.hidden)?;
                let mut dab = MatMut::from_slice(dab, layout)?;
                cotangents.again(dab.view_mut(), wanted)?;
                products.run(kernel, dab.view())?;
            }
        }
        match dbias {
            Some(Target::Same(Out { to, add })) => rows::put_row(sums, to, add),
            Some(Target::F32(Out { to, add })) => rows::put_row(sums, to, add),
            None => {}
        }
        Ok(())
    }
}

/// How dAB comes to be.
struct Cotangents<'a, K: Kernel, T: Element> {
    kernel: K,
    grids: Grids,
    x: MatRef<'a, T, Host>,
    w: Weights<'a, T, Host>,
    upstream: Upstream<'a, T, Host>,
    tasks: Tasks<'a>,
}

impl<K: Kernel, T: Element> Cotangents<'_, K, T> {
    /// From saved pre-activations, in place; and its column sums.
    fn of_saved(self, mut pre: MatMut<'_, T, Host>, sums: Option<&mut [f32]>) -> Result<()> {
        let (kernel, gate) = (self.kernel, self.w.function());
        match (self.upstream, self.grids.dz) {
            (Upstream::Projected { dy, down, .. }, Some(grid)) => {
                let (dgate, dup) = pre.view_mut().split_cols(self.w.hidden())?;
                let output = CotangentStore::<T, T> { gate, bias: None, dgate, dup };
                gemm(kernel, &grid, &Rows(dy), &transposed_down(&down), output, self.tasks);
                column_sums(kernel, pre.view(), sums);
            }
            (Upstream::Dz(dz), _) => rows::gate_gradients(kernel, gate, dz, pre, sums),
            // The grid follows from the same upstream.
            (Upstream::Projected { .. }, None) => {}
        }
        Ok(())
    }

    /// From x and the weights, in f32: the projections with the gate gradient as their epilogue; or first those, and then
    /// the product that makes dz. And its column sums.
    fn again(self, mut dab: MatMut<'_, f32, Host>, sums: Option<&mut [f32]>) -> Result<()> {
        let Self { kernel, grids, x, w, upstream, tasks } = self;
        let (gate, bias) = (w.function(), w.bias_row().map(Bias::new));
        let (dgate, dup) = dab.view_mut().split_cols(w.hidden())?;
        match (upstream, grids.dz) {
            (Upstream::Dz(dz), _) => {
                let output = GateGradientStore { gate, bias, dz, dgate, dup };
                gemm(kernel, &grids.projection, &Rows(x), &projections(&w), output, tasks);
            }
            (Upstream::Projected { dy, down, .. }, Some(grid)) => {
                let output = StorePair { gate: dgate, up: dup, add: false };
                gemm(kernel, &grids.projection, &Rows(x), &projections(&w), output, tasks);
                let (dgate, dup) = dab.view_mut().split_cols(w.hidden())?;
                let output = CotangentStore { gate, bias, dgate, dup };
                gemm(kernel, &grid, &Rows(dy), &transposed_down(&down), output, tasks);
            }
            // As above.
            (Upstream::Projected { .. }, None) => {}
        }
        column_sums(kernel, dab.view(), sums);
        Ok(())
    }
}

fn column_sums<K: Kernel, S: Element>(kernel: K, dab: MatRef<'_, S, Host>, sums: Option<&mut [f32]>) {
    if let Some(sums) = sums {
        rows::column_sums(kernel, dab, sums);
    }
}

/// The two products of backward.
struct Products<'a, T: Element> {
    grids: Grids,
    x: MatRef<'a, T, Host>,
    w: Weights<'a, T, Host>,
    dx: Option<Out<'a, T, Host>>,
    dwf: Option<Halves<'a, T, Host>>,
    tasks: Tasks<'a>,
}

impl<T: Element> Products<'_, T> {
    /// Runs those that were asked for. dAB is in the element type where it replaced saved pre-activations, in f32
    /// where it was computed again.
    fn run<K: Kernel, S: Element>(self, kernel: K, dab: MatRef<'_, S, Host>) -> Result<()> {
        let Self { grids, x, w, dx, dwf, tasks } = self;
        if let Some(Out { to, add }) = dx {
            let output = Store { to, add };
            match grids.dx {
                InputGradient::Tiled(grid) => {
                    gemm(kernel, &grid, &Rows(dab), &transposed_projections(&w), output, tasks);
                }
                InputGradient::Dotted(grid) => {
                    let (dgate, dup) = halves(dab)?;
                    let stacked = dots::Stacked { a: [dgate, dup], b: [w.gate_weights(), w.up_weights()] };
                    dots::multiply(kernel, &grid, stacked, output, tasks);
                }
            }
        }
        match dwf {
            Some(Halves { gate: Target::Same(gate), up: Target::Same(up) }) => {
                weight_gradient(kernel, &grids.dwf, w.orientation(), x, dab, [gate, up], tasks)
            }
            Some(Halves { gate: Target::F32(gate), up: Target::F32(up) }) => {
                weight_gradient(kernel, &grids.dwf, w.orientation(), x, dab, [gate, up], tasks)
            }
            // Core refuses halves of two kinds (Error::MixedHalves).
            Some(_) | None => Ok(()),
        }
    }
}

fn weight_gradient<K: Kernel, T: Element, S: Element, D: Element>(
    kernel: K,
    grid: &Grid,
    orientation: Orientation,
    x: MatRef<'_, T, Host>,
    dab: MatRef<'_, S, Host>,
    [gate, up]: [Out<'_, D, Host>; 2],
    tasks: Tasks<'_>,
) -> Result<()> {
    let (dgate, dup) = halves(dab)?;
    let along = Along::Rows;
    match orientation {
        Orientation::InOut => {
            let b = Paired { gate: Factor { matrix: dgate, along }, up: Factor { matrix: dup, along } };
            let output = StorePair { gate: gate.to, up: up.to, add: gate.add };
            gemm(kernel, grid, &Columns(x), &b, output, tasks);
        }
        Orientation::OutIn => {
            for (half, Out { to, add }) in [(dgate, gate), (dup, up)] {
                let b = Factor { matrix: x, along };
                gemm(kernel, grid, &Columns(half), &b, Store { to, add }, tasks);
            }
        }
    }
    Ok(())
}
