//! The neighbours of the op, through the engine.

use swiglu_core::ops::{
    AdamWStep, AddBias, ColumnSums, CrossEntropy, GateBackward, GateForward, GatherRows, MatMul,
};
use swiglu_core::{Checked, Dense, Element, Gradient, Host, LossTargets, Optimizer, Result};

use super::memory::FakeMemory;
use super::staged::{Staged, StagedTarget};
use super::{Fake, Slip};

/// A gradient for the optimizer, on the host.
enum StagedGradient<T: Element> {
    Same(Staged<T>),
    F32(Staged<f32>),
}

impl<T: Element> StagedGradient<T> {
    fn read(gradient: &Gradient<'_, T, FakeMemory>, slip: Option<Slip>) -> Result<Self> {
        Ok(match gradient {
            Gradient::Same(gradient) => Self::Same(Staged::read(*gradient, slip)?),
            Gradient::F32(gradient) => Self::F32(Staged::read(*gradient, slip)?),
        })
    }

    fn gradient(&self) -> Result<Gradient<'_, T, Host>> {
        Ok(match self {
            Self::Same(staged) => Gradient::Same(staged.view()?),
            Self::F32(staged) => Gradient::F32(staged.view()?),
        })
    }
}

impl<T: Element, E: Dense<T, Memory = Host>> Dense<T> for Fake<E> {
    fn run_matmul(&self, call: Checked<MatMul<'_, T, FakeMemory>>) -> Result<()> {
        let MatMul { a, op_a, b, op_b, c } = call.into_inner();
        self.launch(|| {
            let (host_a, host_b) = (Staged::read(a, self.slip)?, Staged::read(b, self.slip)?);
            let mut host_c = StagedTarget::read(&c, self.slip)?;
            self.engine.matmul((host_a.view()?, op_a), (host_b.view()?, op_b), host_c.target()?)?;
            host_c.write(c)
        })
    }

    fn run_add_bias(&self, call: Checked<AddBias<'_, T, FakeMemory>>) -> Result<()> {
        let AddBias { bias, c } = call.into_inner();
        self.launch(|| {
            let (bias, mut host_c) = (Staged::read(bias, self.slip)?, Staged::read(c.view(), self.slip)?);
            self.engine.add_bias(bias.view()?, host_c.view_mut()?)?;
            host_c.write(c)
        })
    }

    fn run_column_sums(&self, call: Checked<ColumnSums<'_, T, FakeMemory>>) -> Result<()> {
        let ColumnSums { a, to } = call.into_inner();
        self.launch(|| {
            let (a, mut host_to) = (Staged::read(a, self.slip)?, StagedTarget::read(&to, self.slip)?);
            self.engine.column_sums(a.view()?, host_to.target()?)?;
            host_to.write(to)
        })
    }

    fn run_gate(&self, call: Checked<GateForward<'_, T, FakeMemory>>) -> Result<()> {
        let GateForward { gate, pre, z } = call.into_inner();
        self.launch(|| {
            let (pre, mut host_z) = (Staged::read(pre, self.slip)?, Staged::read(z.view(), self.slip)?);
            self.engine.gate(gate, pre.view()?, host_z.view_mut()?)?;
            host_z.write(z)
        })
    }

    fn run_gate_backward(&self, call: Checked<GateBackward<'_, T, FakeMemory>>) -> Result<()> {
        let GateBackward { gate, dz, pre } = call.into_inner();
        self.launch(|| {
            let (dz, mut host_pre) = (Staged::read(dz, self.slip)?, Staged::read(pre.view(), self.slip)?);
            self.engine.gate_backward(gate, dz.view()?, host_pre.view_mut()?)?;
            host_pre.write(pre)
        })
    }

    fn run_gather_rows(&self, call: Checked<GatherRows<'_, T, FakeMemory>>) -> Result<()> {
        let GatherRows { from, rows, to } = call.into_inner();
        self.launch(|| {
            let (from, rows) = (Staged::read(from, self.slip)?, Staged::read(rows, self.slip)?);
            let mut host_to = Staged::read(to.view(), self.slip)?;
            self.engine.gather_rows(from.view()?, rows.view()?, host_to.view_mut()?)?;
            host_to.write(to)
        })
    }

    fn run_cross_entropy(&self, call: Checked<CrossEntropy<'_, T, FakeMemory>>) -> Result<()> {
        let CrossEntropy { logits, labels, loss, correct, dlogits } = call.into_inner();
        self.launch(|| {
            let slip = self.slip;
            let (logits, labels) = (Staged::read(logits, slip)?, Staged::read(labels, slip)?);
            let mut host_loss = Staged::read(loss.view(), slip)?;
            let mut host_correct = match &correct {
                Some(correct) => Some(Staged::read(correct.view(), slip)?),
                None => None,
            };
            let mut host_dlogits = match &dlogits {
                Some(dlogits) => Some(Staged::read(dlogits.view(), slip)?),
                None => None,
            };
            let targets = LossTargets {
                loss: host_loss.view_mut()?,
                correct: host_correct.as_mut().map(Staged::view_mut).transpose()?,
                dlogits: host_dlogits.as_mut().map(Staged::view_mut).transpose()?,
            };
            self.engine.cross_entropy(logits.view()?, labels.view()?, targets)?;
            host_loss.write(loss)?;
            if let (Some(staged), Some(correct)) = (host_correct, correct) {
                staged.write(correct)?;
            }
            match (host_dlogits, dlogits) {
                (Some(staged), Some(dlogits)) => staged.write(dlogits),
                _ => Ok(()),
            }
        })
    }

    /// Only the engine can make an [`Optimizer`], so it stays with the block of the first moments, from the first step
    /// on; the moments on the device are not used.
    fn run_adamw(&self, call: Checked<AdamWStep<'_, T, FakeMemory>>) -> Result<()> {
        let AdamWStep { hyper, gradient, state, parameter } = call.into_inner();
        self.launch(|| {
            let mut host_parameter = Staged::read(parameter.view(), self.slip)?;
            let kept: Option<Optimizer<Host>> = state.first.ptr().take();
            let mut optimizer = match kept {
                Some(optimizer) => optimizer,
                None => {
                    let mut start = Staged::read(parameter.view(), None)?;
                    if let Some(master) = &state.master {
                        // Exact: before the first step the master copy is the parameter as it was.
                        let master = Staged::read(master.view(), None)?;
                        let narrow = master.view()?.array().mapv(T::from_f32);
                        start.view_mut()?.array_mut().assign(&narrow);
                    }
                    self.engine.optimizer(start.view()?)?
                }
            };
            let gradient = StagedGradient::read(&gradient, self.slip)?;
            let done =
                self.engine.adamw(hyper, gradient.gradient()?, &mut optimizer, host_parameter.view_mut()?);
            state.first.ptr().keep(optimizer)?;
            done?;
            host_parameter.write(parameter)
        })
    }
}
