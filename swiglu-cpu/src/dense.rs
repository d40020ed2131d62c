//! `Dense` on the CPU: products on the driver, the rest in passes over rows.

use swiglu_core::ops::{
    AdamWStep, AddBias, ColumnSums, CrossEntropy, GateBackward, GateForward, GatherRows, MatMul,
};
use swiglu_core::{
    Checked, Dense, Dtype, Element, Error, Gradient, Host, MatMut, MatRef, Op, Out, Result, Target, Tile,
    bf16, f16,
};

use crate::arena::{Space, Tasks, Workspace};
use crate::backend::Cpu;
use crate::backend::Pass;
use crate::gemm::gemm;
use crate::grid::{Grid, Tiling};
use crate::kernels::Kernel;
use crate::output::Store;
use crate::pack::{Along, Columns, Factor, Rows, SourceA};
use crate::{loss, optimizer, rows};

/// One implementation for each element type; see the macro `swiglu`.
macro_rules! dense {
    ($($t:ty),*) => {$(
        impl Dense<$t> for Cpu {
            fn run_matmul(&self, call: Checked<MatMul<'_, $t, Host>>) -> Result<()> {
                let call = call.into_inner();
                self.run(Product(call))
            }

            fn run_add_bias(&self, call: Checked<AddBias<'_, $t, Host>>) -> Result<()> {
                self.run(BiasSum(call.into_inner()))
            }

            fn run_column_sums(&self, call: Checked<ColumnSums<'_, $t, Host>>) -> Result<()> {
                let call = call.into_inner();
                self.run(SumColumns(call))
            }

            fn run_gate(&self, call: Checked<GateForward<'_, $t, Host>>) -> Result<()> {
                let call = call.into_inner();
                self.run(GateValues(call))
            }

            fn run_gate_backward(&self, call: Checked<GateBackward<'_, $t, Host>>) -> Result<()> {
                let call = call.into_inner();
                self.run(GateGradients(call))
            }

            fn run_gather_rows(&self, call: Checked<GatherRows<'_, $t, Host>>) -> Result<()> {
                self.run(ChosenRows(call.into_inner()))
            }

            fn run_cross_entropy(&self, call: Checked<CrossEntropy<'_, $t, Host>>) -> Result<()> {
                let call = call.into_inner();
                let classes = call.logits.cols();
                for row in 0..call.labels.rows() {
                    let label = call.labels.row(row).and_then(|labels| labels.first()).copied().unwrap_or_default();
                    if label as usize >= classes {
                        return Err(Error::Label { row, label, classes });
                    }
                }
                self.run(loss::Loss(call))
            }

            fn run_adamw(&self, call: Checked<AdamWStep<'_, $t, Host>>) -> Result<()> {
                let AdamWStep { hyper, gradient, state, parameter } = call.into_inner();
                match gradient {
                    Gradient::Same(gradient) => self.run(optimizer::Step { hyper, gradient, state, parameter }),
                    Gradient::F32(gradient) => self.run(optimizer::Step { hyper, gradient, state, parameter }),
                }
            }
        }
    )*};
}
dense!(f32, f16, bf16);

struct Product<'a, T: Element>(MatMul<'a, T, Host>);

impl<T: Element> Pass for Product<'_, T> {
    fn run<K: Kernel>(self, kernel: K, workspace: &mut Workspace, threads: usize) -> Result<()> {
        let MatMul { a, op_a, b, op_b, c } = self.0;
        let ((m, n), (_, k)) = (c.shape(), op_a.shape(a.shape()));
        let tiling = Tiling::with(kernel, T::DTYPE == Dtype::Bf16);
        let along = match op_b {
            Op::N => Along::Rows,
            Op::T => Along::Columns,
        };
        let grid = Grid::new::<Factor<'_, T>>(tiling, along, [m, n, k], Tile::Auto, threads);
        workspace.grow(threads, grid.space())?;
        let (tasks, _) = workspace.parts(0);
        let b = Factor { matrix: b, along };
        match op_a {
            Op::N => store(kernel, &grid, &Rows(a), &b, c, tasks),
            Op::T => store(kernel, &grid, &Columns(a), &b, c, tasks),
        }
        Ok(())
    }
}

fn store<K: Kernel, A: SourceA, T: Element>(
    kernel: K,
    grid: &Grid,
    a: &A,
    b: &Factor<'_, T>,
    c: Target<'_, T, Host>,
    tasks: Tasks<'_>,
) {
    match c {
        Target::Same(Out { to, add }) => gemm(kernel, grid, a, b, Store { to, add }, tasks),
        Target::F32(Out { to, add }) => gemm(kernel, grid, a, b, Store { to, add }, tasks),
    }
}

struct BiasSum<'a, T: Element>(AddBias<'a, T, Host>);

impl<T: Element> Pass for BiasSum<'_, T> {
    fn run<K: Kernel>(self, kernel: K, _: &mut Workspace, _: usize) -> Result<()> {
        let AddBias { bias, c } = self.0;
        let bias = bias.row(0).unwrap_or_default();
        rows::for_row_blocks(c, bias.len(), &|mut c: MatMut<'_, T, Host>| {
            kernel.vectorize(
                #[inline(always)]
                || {
                    for row in 0..c.rows() {
                        for (c, bias) in c.row_mut(row).unwrap_or_default().iter_mut().zip(bias) {
                            *c = T::from_f32(c.to_f32() + bias.to_f32());
                        }
                    }
                },
            );
        });
        Ok(())
    }
}

struct SumColumns<'a, T: Element>(ColumnSums<'a, T, Host>);

impl<T: Element> Pass for SumColumns<'_, T> {
    fn run<K: Kernel>(self, kernel: K, workspace: &mut Workspace, _: usize) -> Result<()> {
        let ColumnSums { a, to } = self.0;
        workspace.grow(0, Space::of_call(a.cols()))?;
        let (_, sums) = workspace.parts(a.cols());
        rows::column_sums(kernel, a, sums);
        match to {
            Target::Same(Out { to, add }) => rows::put_row(sums, to, add),
            Target::F32(Out { to, add }) => rows::put_row(sums, to, add),
        }
        Ok(())
    }
}

struct GateValues<'a, T: Element>(GateForward<'a, T, Host>);

impl<T: Element> Pass for GateValues<'_, T> {
    fn run<K: Kernel>(self, kernel: K, _: &mut Workspace, _: usize) -> Result<()> {
        let GateForward { gate, pre, z } = self.0;
        rows::gate_values(kernel, gate, pre, z);
        Ok(())
    }
}

struct ChosenRows<'a, T: Element>(GatherRows<'a, T, Host>);

impl<T: Element> Pass for ChosenRows<'_, T> {
    fn run<K: Kernel>(self, _: K, _: &mut Workspace, _: usize) -> Result<()> {
        rows::gather(self.0)
    }
}

struct GateGradients<'a, T: Element>(GateBackward<'a, T, Host>);

impl<T: Element> Pass for GateGradients<'_, T> {
    fn run<K: Kernel>(self, kernel: K, _: &mut Workspace, _: usize) -> Result<()> {
        let GateBackward { gate, dz, pre } = self.0;
        rows::gate_gradients(kernel, gate, dz, pre, None);
        Ok(())
    }
}

/// The element type's values of one row, widened; short rows only (classes of a loss).
pub(crate) fn wide_row<T: Element>(m: MatRef<'_, T, Host>, row: usize) -> impl Iterator<Item = f32> + Clone {
    m.row(row).unwrap_or_default().iter().map(|v| v.to_f32())
}
