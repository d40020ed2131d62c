//! Relations between calls that need no oracle: order, scale, splits, arrangements.

use ndarray::{Array2, Axis};
use swiglu_core::{Dtype, Gate, Orientation, SwiGLU};

use super::differential::{BackwardOutputs, ForwardOutputs, Olds, run_both, run_forward};
use super::repeat::same_outputs;
use crate::bits::{Bits, Value, difference};
use crate::bounds::{Rounding, largest};
use crate::case::{Case, Keep, Packing, Pads};
use crate::config::Config;
use crate::data::{Draws, Inputs};
use crate::part::{above, beside, column_halves, part};
use crate::report::{Failure, Report, ensure};

type Outputs<T> = (ForwardOutputs<T>, BackwardOutputs);

fn permutation(draws: &mut Draws, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, draws.below(i + 1));
    }
    order
}

fn rows<T: Clone>(a: &Array2<T>, order: &[usize]) -> Array2<T> {
    a.select(Axis(0), order)
}

fn columns<T: Copy>(a: &Array2<T>, order: &[usize]) -> Array2<T> {
    a.select(Axis(1), order).as_standard_layout().into_owned()
}

fn ensure_same<T: Bits>(what: &str, a: &Array2<T>, b: &Array2<T>) -> Result<(), Failure> {
    match difference(a, b) {
        None => Ok(()),
        Some(at) => Err(Failure::new(format!("{what} differs at {at}"))),
    }
}

/// What every relation starts from.
struct Base<'a, T, B> {
    backend: &'a B,
    case: Case,
    inputs: Inputs<T>,
    olds: Olds<T>,
    outputs: Outputs<T>,
}

impl<'a, T: Value, B: SwiGLU<T>> Base<'a, T, B> {
    fn new(backend: &'a B, case: Case) -> Result<Self, Failure> {
        let (inputs, olds) = (Inputs::<T>::draw(&case), Olds::draw(&case));
        let outputs = run_both(backend, &case, &inputs, &olds)?;
        Ok(Self { backend, case, inputs, olds, outputs })
    }

    fn draws(&self, stream: u64) -> Draws {
        Draws::new(self.case.seed, 1000 + stream)
    }

    /// Rows of x permute rows of z, pre-activations and dx.
    fn permuted_rows(&self) -> Result<(), Failure> {
        let order = permutation(&mut self.draws(0), self.case.batch);
        let mut inputs = self.inputs.clone();
        inputs.x = rows(&inputs.x, &order);
        inputs.dz = rows(&inputs.dz, &order);
        let olds = Olds { dx: rows(&self.olds.dx, &order), ..self.olds.clone() };
        let (forward, backward) = run_both(self.backend, &self.case, &inputs, &olds)?;
        let (before, gradients) = &self.outputs;
        ensure_same("z of permuted rows", &forward.z, &rows(&before.z, &order))?;
        if let (Some(now), Some(before)) = (&forward.pre, &before.pre) {
            ensure_same("saved g of permuted rows", &now.0, &rows(&before.0, &order))?;
            ensure_same("saved u of permuted rows", &now.1, &rows(&before.1, &order))?;
        }
        match (&backward.dx, &gradients.dx) {
            (Some(now), Some(before)) => ensure_same("dx of permuted rows", now, &rows(before, &order)),
            _ => Ok(()),
        }
    }

    /// Hidden units permute columns of z, pre-activations, dwf and dbias. (dx sums over them.)
    fn permuted_hidden_units(&self) -> Result<(), Failure> {
        let order = permutation(&mut self.draws(1), self.case.hidden);
        let mut inputs = self.inputs.clone();
        inputs.gate_weights = columns(&inputs.gate_weights, &order);
        inputs.up_weights = columns(&inputs.up_weights, &order);
        inputs.bias = inputs.bias.map(|(gate, up)| (columns(&gate, &order), columns(&up, &order)));
        inputs.dz = columns(&inputs.dz, &order);
        let mut olds = self.olds.clone();
        olds.dwf = (columns(&olds.dwf.0, &order), columns(&olds.dwf.1, &order));
        let (gate, up) = column_halves(&olds.dbias);
        olds.dbias = beside(&columns(&gate, &order), &columns(&up, &order));
        let (forward, backward) = run_both(self.backend, &self.case, &inputs, &olds)?;
        let (before, gradients) = &self.outputs;
        ensure_same("z of permuted hidden units", &forward.z, &columns(&before.z, &order))?;
        if let (Some(now), Some(before)) = (&forward.pre, &before.pre) {
            ensure_same("saved g of permuted hidden units", &now.0, &columns(&before.0, &order))?;
            ensure_same("saved u of permuted hidden units", &now.1, &columns(&before.1, &order))?;
        }
        if let (Some(now), Some(before)) = (&backward.dwf, &gradients.dwf) {
            ensure_same("dwf gate of permuted hidden units", &now.0, &columns(&before.0, &order))?;
            ensure_same("dwf up of permuted hidden units", &now.1, &columns(&before.1, &order))?;
        }
        if let (Some(now), Some(before)) = (&backward.dbias, &gradients.dbias) {
            let (gate, up) = column_halves(before);
            let expected = beside(&columns(&gate, &order), &columns(&up, &order));
            ensure_same("dbias of permuted hidden units", now, &expected)?;
        }
        Ok(())
    }

    /// Up weights times 4: z times 4, exactly, where h is linear in u and nothing is subnormal or overflows.
    fn scaled_up_weights(&self) -> Result<(), Failure> {
        let four = |a: &Array2<T>| a.mapv(|v| T::from_f32(4.0 * v.to_f32()));
        let mut inputs = self.inputs.clone();
        inputs.up_weights = four(&inputs.up_weights);
        inputs.bias = inputs.bias.map(|(gate, up)| (gate, four(&up)));
        let scaled = run_forward(self.backend, &self.case, &inputs)?.z;
        let least = match T::DTYPE {
            Dtype::F32 | Dtype::Bf16 => f32::MIN_POSITIVE,
            Dtype::F16 => half::f16::MIN_POSITIVE.to_f32(),
        };
        for (at, before) in self.outputs.0.z.indexed_iter() {
            let (before, now) = (before.to_f32(), scaled[at].to_f32());
            let right = if before.abs() < least {
                // Subnormal results are rounded coarsely, so 4 times one may be anything near.
                now.abs() < 5.0 * least
            } else {
                now == 4.0 * before || 4.0 * f64::from(before.abs()) > largest(T::DTYPE)
            };
            ensure(right, || format!("z{at:?} is {before:e}, and {now:e} with up weights times 4"))?;
        }
        Ok(())
    }

    /// Columns of zeros behind x and rows of zeros behind the weights change nothing.
    fn appended_zeros(&self) -> Result<(), Failure> {
        let more = 1 + self.draws(2).below(9);
        let Case { batch, in_features, hidden, .. } = self.case;
        let zero = |rows, cols| Array2::from_elem((rows, cols), T::default());
        let mut inputs = self.inputs.clone();
        inputs.x = beside(&inputs.x, &zero(batch, more));
        inputs.gate_weights = above(&inputs.gate_weights, &zero(more, hidden));
        inputs.up_weights = above(&inputs.up_weights, &zero(more, hidden));
        let case = Case { in_features: in_features + more, ..self.case };
        let forward = run_forward(self.backend, &case.forward_only(), &inputs)?;
        ensure_same("z with columns of zeros", &forward.z, &self.outputs.0.z)
    }

    /// Two calls for the two parts of a batch.
    fn split_batch(&self) -> Result<(), Failure> {
        let Case { batch, in_features, hidden, .. } = self.case;
        if batch < 2 {
            return Ok(());
        }
        let at = 1 + self.draws(3).below(batch - 1);
        let run = |from: usize, to: usize| {
            let case = Case { batch: to - from, ..self.case };
            let mut inputs = self.inputs.clone();
            inputs.x = part(&inputs.x, from..to, 0..in_features);
            inputs.dz = part(&inputs.dz, from..to, 0..hidden);
            let olds = Olds { dx: part(&self.olds.dx, from..to, 0..in_features), ..self.olds.clone() };
            run_both(self.backend, &case, &inputs, &olds)
        };
        let (first, second) = (run(0, at)?, run(at, batch)?);
        let (whole, gradients) = &self.outputs;
        let what = |name: &str| format!("{name} of a batch split at row {at}");
        ensure_same(&what("z"), &above(&first.0.z, &second.0.z), &whole.z)?;
        if let (Some(first), Some(second), Some(whole)) = (&first.0.pre, &second.0.pre, &whole.pre) {
            ensure_same(&what("saved g"), &above(&first.0, &second.0), &whole.0)?;
            ensure_same(&what("saved u"), &above(&first.1, &second.1), &whole.1)?;
        }
        match (&first.1.dx, &second.1.dx, &gradients.dx) {
            (Some(first), Some(second), Some(whole)) => {
                ensure_same(&what("dx"), &above(first, second), whole)
            }
            _ => Ok(()),
        }
    }

    fn same_as(&self, what: &str, case: Case) -> Result<(), Failure> {
        let other = run_both(self.backend, &case, &self.inputs, &self.olds)?;
        same_outputs(what, (&self.outputs.0, &self.outputs.1), (&other.0, &other.1))
    }

    /// Packed, split and interleaved weights; other row strides.
    fn rearranged(&self) -> Result<(), Failure> {
        let case = self.case;
        self.same_as("packed weights", Case { packing: Packing::Packed, ..case })?;
        self.same_as("split weights", Case { packing: Packing::Split, ..case })?;
        if case.orientation == Orientation::OutIn {
            self.same_as("interleaved weights", Case { packing: Packing::Interleaved, ..case })?;
        }
        self.same_as("dense rows", Case { pads: Pads::all(0), ..case })?;
        self.same_as("padded rows", Case { pads: Pads { x: 5, w: 3, z: 1, dx: 2, dwf: 7 }, ..case })
    }

    /// The other orientation of the weights.
    fn turned(&self) -> Result<(), Failure> {
        let orientation = match self.case.orientation {
            Orientation::InOut => Orientation::OutIn,
            Orientation::OutIn => Orientation::InOut,
        };
        let packing = match self.case.packing {
            Packing::Interleaved => Packing::Packed,
            packing => packing,
        };
        self.same_as("the other orientation", Case { orientation, packing, ..self.case })
    }
}

/// Runs a case, then variations of it, and compares the results with each other, bit for bit, as far as the backend
/// promises so.
///
/// # Errors
/// A [`Failure`] that names the relation and the first element that breaks it.
pub fn metamorphic<T: Value, B: SwiGLU<T>>(
    backend: &B,
    case: &Case,
    config: &Config,
) -> Result<Report, Failure> {
    // dz is permuted and cut along with the rest: it has to be an operand.
    let mut wanted = Case { down: None, ..*case };
    if wanted.keep == Keep::Nothing {
        wanted.keep = Keep::PreActivations;
    }
    let result = (|| {
        let base = Base::<T, B>::new(backend, wanted)?;
        if config.batch_invariant {
            base.permuted_rows()?;
            base.split_batch()?;
        }
        if config.hidden_invariant {
            base.permuted_hidden_units()?;
        }
        if config.stride_invariant {
            base.rearranged()?;
        }
        if config.orientation_invariant {
            base.turned()?;
        }
        if config.zero_column_invariant {
            base.appended_zeros()?;
        }
        let linear = !matches!(wanted.gate, Gate::SwigluClamped { .. });
        // Pre-activations that are rounded to f16 in between may be subnormal there, so their scale shows.
        let in_between = config.rounding(wanted.route) == Rounding::Unfused && wanted.dtype == Dtype::F16;
        if linear && !in_between && !config.flushes.contains(&wanted.dtype) {
            base.scaled_up_weights()?;
        }
        Ok(())
    })();
    result.map(|()| Report::default().of_case(case)).map_err(|failure: Failure| failure.of_case(case))
}
