//! `Dense` on the device: products by the same kernels as the op, or by cuBLAS, and what stands around them.

use swiglu_core::ops::{
    AdamWStep, AddBias, ColumnSums, CrossEntropy, GateBackward, GateForward, GatherRows, MatMul,
};
use swiglu_core::{Checked, Dense, Dtype, Element, Gradient, OptimizerMut, Precision, Result, bf16, f16};

use crate::arena::Layout;
use crate::backend::Cuda;
use crate::composed::{multiply, multiply_by_kernel};
use crate::cublas::{Product, ProductKind};
use crate::kernel::{Kernel, gate_code};
use crate::memory::CudaMemory;
use crate::params::{AdamWParams, AddBiasParams, CrossEntropyParams, GateParams, GatherParams, Operand};
use crate::passes::{column_sums, destination, out_type};
use crate::plan::Sums;
use crate::realign::{self, ROW_BYTES, Room};

impl Cuda {
    fn product<T: Element>(&self, call: MatMul<'_, T, CudaMemory>) -> Result<()> {
        let MatMul { a, op_a, b, op_b, c } = call;
        let ((m, n), (_, k)) = (c.shape(), op_a.shape(a.shape()));
        let (to, add) = destination(&c);
        let (dtype, precision) = (T::DTYPE, Precision::Strict);
        let kind = ProductKind { dtype, out: out_type(&c), precision, op_a, op_b };
        let (from_a, from_b) = (Operand::read(a), Operand::read(b));
        let product = Product { kind, a: from_a, b: from_b, c: to, shape: (m, n, k), add };
        let mut workspace = Layout::default();
        let mut room = |from: Operand, shape| {
            let unaligned = (from.alignment(dtype) as usize) < ROW_BYTES;
            let copied = unaligned && self.planner().realigns_factors(dtype, m);
            copied.then(|| Room::new(shape, dtype, &mut workspace))
        };
        let rooms = [room(from_a, a.shape()), room(from_b, b.shape())];
        let mut call = self.queue().call(workspace.bytes())?;
        if rooms == [None; 2] && self.has_cublas() {
            return multiply(&mut call, &product);
        }
        // cuBLAS takes 22 ms for 4 where rows are of odd length (8191, 11007, 4095 on an H100).
        let [a, b] = realign::fill(&call, rooms, [from_a, from_b])?;
        let product = Product { a, b, ..product };
        multiply_by_kernel(&call, self.planner(), &product)
    }

    fn bias_sum<T: Element>(&self, call: AddBias<'_, T, CudaMemory>) -> Result<()> {
        let AddBias { bias, c } = call;
        let (rows, cols) = c.shape();
        let params = AddBiasParams {
            bias: bias.ptr().address(),
            c: Operand::write(&c),
            rows: rows as i64,
            cols: cols as i64,
        };
        self.queue().call(0)?.launch_on(
            Kernel::AddBias { dtype: T::DTYPE },
            params.rows,
            params.cols,
            &params,
        )
    }

    fn sum_columns<T: Element>(&self, call: ColumnSums<'_, T, CudaMemory>) -> Result<()> {
        let ColumnSums { a, to } = call;
        let (rows, cols) = a.shape();
        let mut workspace = Layout::default();
        let sums = Sums::new(T::DTYPE, out_type(&to), rows, cols, &mut workspace);
        let call = self.queue().call(workspace.bytes())?;
        let params = sums.params((Operand::read(a), rows, cols), call.at(sums.partial), destination(&to));
        column_sums(&call, sums, &params)
    }

    fn gate_values<T: Element>(&self, call: GateForward<'_, T, CudaMemory>) -> Result<()> {
        let GateForward { gate, pre, z } = call;
        let (rows, cols) = z.shape();
        let (code, alpha, limit) = gate_code(gate)?;
        let half =
            |first: usize| -> Result<Operand> { Ok(Operand::read(pre.sub(0..rows, first..first + cols)?)) };
        let params =
            GateParams::new([half(0)?, half(cols)?], Operand::write(&z), (rows, cols), (alpha, limit));
        let kernel = Kernel::GateForward { dtype: T::DTYPE, gate: code };
        self.queue().call(0)?.launch_on(kernel, params.rows, params.cols, &params)
    }

    fn gate_cotangents<T: Element>(&self, call: GateBackward<'_, T, CudaMemory>) -> Result<()> {
        let GateBackward { gate, dz, pre } = call;
        let (rows, cols) = dz.shape();
        let (code, alpha, limit) = gate_code(gate)?;
        let (gate, up) = pre.split_cols(cols)?;
        let pre = [Operand::write(&gate), Operand::write(&up)];
        let params = GateParams::new(pre, Operand::read(dz), (rows, cols), (alpha, limit));
        let kernel = Kernel::GateBackward { dtype: T::DTYPE, gate: code };
        self.queue().call(0)?.launch_on(kernel, params.rows, params.cols, &params)
    }

    fn chosen_rows<T: Element>(&self, call: GatherRows<'_, T, CudaMemory>) -> Result<()> {
        let GatherRows { from, rows, to } = call;
        let (count, cols) = to.shape();
        let params = GatherParams {
            from: Operand::read(from),
            to: Operand::write(&to),
            named: rows.ptr().address(),
            named_stride: rows.row_stride() as i64,
            from_rows: from.rows() as i64,
            rows: count as i64,
            cols: cols as i64,
        };
        self.queue().call(0)?.launch_on(Kernel::Gather { dtype: T::DTYPE }, params.rows, params.cols, &params)
    }

    fn loss<T: Element>(&self, call: CrossEntropy<'_, T, CudaMemory>) -> Result<()> {
        let CrossEntropy { logits, labels, loss, correct, dlogits } = call;
        let (rows, classes) = logits.shape();
        let mut workspace = Layout::default();
        let row_loss = workspace.part(rows * size_of::<f32>());
        let row_correct = workspace.part(rows * size_of::<u32>());
        let call = self.queue().call(workspace.bytes())?;
        let params = CrossEntropyParams {
            logits: Operand::read(logits),
            dlogits: dlogits.as_ref().map_or(Operand::NONE, Operand::write),
            labels: labels.ptr().address(),
            label_stride: labels.row_stride() as i64,
            loss: loss.ptr().address(),
            correct: correct.map_or(0, |correct| correct.ptr().address()),
            row_loss: call.at(row_loss),
            row_correct: call.at(row_correct),
            rows: rows as i64,
            classes: classes as i64,
        };
        call.launch_on(Kernel::RowLoss { dtype: T::DTYPE }, params.rows, params.classes, &params)?;
        call.launch_on(Kernel::MeanLoss, 1, 1, &params)
    }

    fn optimizer_step<T: Element>(&self, call: AdamWStep<'_, T, CudaMemory>) -> Result<()> {
        let AdamWStep { hyper, gradient, state, parameter } = call;
        let OptimizerMut { first, second, steps, master } = state;
        let (rows, cols) = parameter.shape();
        let (gradient, gradient_f32) = match gradient {
            Gradient::Same(gradient) => (Operand::read(gradient), T::DTYPE == Dtype::F32),
            Gradient::F32(gradient) => (Operand::read(gradient), true),
        };
        let mut call = self.queue().call(0)?;
        let params = AdamWParams {
            gradient,
            parameter: Operand::write(&parameter),
            first: Operand::write(&first),
            second: Operand::write(&second),
            master: master.as_ref().map_or(Operand::NONE, Operand::write),
            steps: steps.ptr().address(),
            ticket: call.ticket()?,
            rows: rows as i64,
            cols: cols as i64,
            lr: hyper.lr,
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            epsilon: hyper.epsilon,
            weight_decay: hyper.weight_decay,
            unused: 0,
        };
        let kernel = Kernel::AdamW { dtype: T::DTYPE, gradient_f32 };
        call.launch_on(kernel, params.rows, params.cols, &params)
    }
}

/// One implementation for each element type, as for the op.
macro_rules! dense {
    ($($t:ty),*) => {$(
        impl Dense<$t> for Cuda {
            fn run_matmul(&self, call: Checked<MatMul<'_, $t, CudaMemory>>) -> Result<()> {
                self.product(call.into_inner())
            }

            fn run_add_bias(&self, call: Checked<AddBias<'_, $t, CudaMemory>>) -> Result<()> {
                self.bias_sum(call.into_inner())
            }

            fn run_column_sums(&self, call: Checked<ColumnSums<'_, $t, CudaMemory>>) -> Result<()> {
                self.sum_columns(call.into_inner())
            }

            fn run_gate(&self, call: Checked<GateForward<'_, $t, CudaMemory>>) -> Result<()> {
                self.gate_values(call.into_inner())
            }

            fn run_gate_backward(&self, call: Checked<GateBackward<'_, $t, CudaMemory>>) -> Result<()> {
                self.gate_cotangents(call.into_inner())
            }

            fn run_gather_rows(&self, call: Checked<GatherRows<'_, $t, CudaMemory>>) -> Result<()> {
                self.chosen_rows(call.into_inner())
            }

            fn run_cross_entropy(&self, call: Checked<CrossEntropy<'_, $t, CudaMemory>>) -> Result<()> {
                self.loss(call.into_inner())
            }

            fn run_adamw(&self, call: Checked<AdamWStep<'_, $t, CudaMemory>>) -> Result<()> {
                self.optimizer_step(call.into_inner())
            }
        }
    )*};
}
dense!(f32, f16, bf16);
