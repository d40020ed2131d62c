//! AdamW over rows.

use swiglu_core::{AdamW, Element, Host, MatMut, MatRef, OptimizerMut, Result};

use crate::arena::Workspace;
use crate::backend::Pass;
use crate::kernels::Kernel;
use crate::rows::for_row_blocks;

/// A checked step. `S` is the gradient's element type.
pub(crate) struct Step<'a, T: Element, S: Element> {
    pub(crate) hyper: AdamW,
    pub(crate) gradient: MatRef<'a, S, Host>,
    pub(crate) state: OptimizerMut<'a, Host>,
    pub(crate) parameter: MatMut<'a, T, Host>,
}

type Block<'a, T, S> = (
    MatRef<'a, S, Host>,
    MatMut<'a, f32, Host>,
    MatMut<'a, f32, Host>,
    MatMut<'a, T, Host>,
    Option<MatMut<'a, f32, Host>>,
);

/// Factors that are the same for every element of a step.
#[derive(Clone, Copy)]
struct Factors {
    hyper: AdamW,
    /// lr / (1 - beta1^t).
    rate: f32,
    /// 1 / sqrt(1 - beta2^t).
    root: f32,
    /// 1 - lr * weight_decay.
    keep: f32,
}

impl Factors {
    fn new(hyper: AdamW, step: u32) -> Self {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(f64::from(step));
        Self {
            hyper,
            rate: (f64::from(hyper.lr) / correction(hyper.beta1)) as f32,
            root: (1.0 / correction(hyper.beta2).sqrt()) as f32,
            keep: 1.0 - hyper.lr * hyper.weight_decay,
        }
    }

    /// One element: its new value.
    #[inline(always)]
    fn step(self, gradient: f32, first: &mut f32, second: &mut f32, value: f32) -> f32 {
        let AdamW { beta1, beta2, epsilon, .. } = self.hyper;
        *first = normal(beta1 * *first + (1.0 - beta1) * gradient);
        *second = normal(beta2 * *second + (1.0 - beta2) * (gradient * gradient));
        self.keep * value - self.rate * *first / (second.sqrt() * self.root + epsilon)
    }
}

/// Zero in place of a subnormal. A moment whose gradient stays zero decays into the subnormals and, rounded to nearest,
/// never leaves them; each operation on one costs some hundred cycles.
#[inline(always)]
fn normal(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0 } else { value }
}

impl<T: Element, S: Element> Pass for Step<'_, T, S> {
    fn run<K: Kernel>(self, kernel: K, _: &mut Workspace, _: usize) -> Result<()> {
        let Self { hyper, gradient, state, parameter } = self;
        let OptimizerMut { first, second, mut steps, master } = state;
        let count = steps.row_mut(0).and_then(|row| row.first_mut());
        let step = count.map_or(1, |count| {
            *count = count.saturating_add(1);
            *count
        });
        let factors = Factors::new(hyper, step);
        let cols = parameter.cols();
        let operands: Block<'_, T, S> = (gradient, first, second, parameter, master);
        for_row_blocks(operands, 4 * cols, &|block: Block<'_, T, S>| {
            kernel.vectorize(
                #[inline(always)]
                || step_block(factors, block),
            );
        });
        Ok(())
    }
}

#[inline(always)]
fn step_block<T: Element, S: Element>(factors: Factors, block: Block<'_, T, S>) {
    let (gradient, mut first, mut second, mut parameter, mut master) = block;
    for row in 0..gradient.rows() {
        let gradient = gradient.row(row).unwrap_or_default();
        let first = first.row_mut(row).unwrap_or_default();
        let second = second.row_mut(row).unwrap_or_default();
        let parameter = parameter.row_mut(row).unwrap_or_default();
        let moments = gradient.iter().zip(first).zip(second);
        match master.as_mut().and_then(|master| master.row_mut(row)) {
            Some(master) => {
                for ((((gradient, first), second), master), parameter) in moments.zip(master).zip(parameter) {
                    *master = factors.step(gradient.to_f32(), first, second, *master);
                    *parameter = T::from_f32(*master);
                }
            }
            None => {
                for (((gradient, first), second), parameter) in moments.zip(parameter) {
                    *parameter =
                        T::from_f32(factors.step(gradient.to_f32(), first, second, parameter.to_f32()));
                }
            }
        }
    }
}
