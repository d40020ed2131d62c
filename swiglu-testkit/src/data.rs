//! The inputs of a case, drawn from its seed.

use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use swiglu_core::{Dtype, Element};

use crate::case::{Case, Data, DownCase};
use crate::oracle::{Operands, Real};
use crate::part::column_halves;

/// The inputs of a case in its element type, as halves in the orientation `[I, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs<T> {
    /// `[B, I]`.
    pub x: Array2<T>,
    /// Wa, `[I, D]`.
    pub gate_weights: Array2<T>,
    /// Wb, `[I, D]`.
    pub up_weights: Array2<T>,
    /// ba and bb, `[1, D]` each.
    pub bias: Option<(Array2<T>, Array2<T>)>,
    /// `[B, D]`; not used where it comes from dy.
    pub dz: Array2<T>,
    /// dy `[B, O]`, and the down projection as `[D, O]`.
    pub projected: Option<(Array2<T>, Array2<T>)>,
}

/// What an array of a case is for. Each has a random stream of its own, so that they do not shift with the shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    X,
    GateWeights,
    UpWeights,
    Bias,
    Dz,
    Old,
    Dy,
    Down,
}

/// Random numbers of one role.
pub(crate) struct Draws {
    rng: ChaCha8Rng,
}

impl Draws {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { rng }
    }

    /// Uniform in (0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (f64::from(self.rng.next_u32()) + 0.5) / (1u64 << 32) as f64
    }

    /// Uniform in (-1, 1).
    pub(crate) fn signed(&mut self) -> f64 {
        2.0 * self.unit() - 1.0
    }

    /// Standard normal, by Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Uniform in 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// An integer in -2..=2.
    fn small_integer(&mut self) -> f64 {
        self.below(5) as f64 - 2.0
    }
}

/// Stored values in f64; exact.
pub fn real<T: Element>(a: &Array2<T>) -> Real {
    a.mapv(|v| f64::from(v.to_f32()))
}

/// The nearest values of an element type.
pub(crate) fn narrow<T: Element>(a: &Real) -> Array2<T> {
    a.mapv(|v| T::from_f32(v as f32))
}

/// What the seed says about the scale of everything.
struct Scales {
    /// Of the weights, relative to 1 / sqrt(I).
    weights: f64,
    /// Of the exponents of log-uniform data.
    exponents: f64,
}

fn scales(case: &Case) -> Scales {
    let mut draws = Draws::new(case.seed, 99);
    let exponents: &[f64] = match case.dtype {
        Dtype::F16 => &[2.0, 4.0, 7.0],
        Dtype::F32 | Dtype::Bf16 => &[8.0, 15.0, 30.0, 60.0],
    };
    let weights = [0.25, 1.0, 1.0, 4.0, 12.0];
    Scales {
        weights: weights[draws.below(weights.len())],
        exponents: exponents[draws.below(exponents.len())],
    }
}

/// The power of two that brings integer pre-activations to about 3: sums of `in_features` products of variance 4.
fn integer_shift(in_features: usize) -> f64 {
    let deviation = 2.0 * (in_features.max(1) as f64).sqrt();
    2f64.powi(-((deviation / 3.0).log2().ceil().max(0.0) as i32))
}

fn draw(case: &Case, role: Role, (rows, cols): (usize, usize)) -> Real {
    let mut draws = Draws::new(case.seed, role as u64);
    let scales = scales(case);
    let fan = (case.in_features.max(1) as f64).sqrt();
    let scale = match role {
        Role::GateWeights | Role::UpWeights => scales.weights / fan,
        Role::Down => 1.0 / (cols.max(1) as f64).sqrt(),
        Role::X | Role::Bias | Role::Dz | Role::Dy | Role::Old => 1.0,
    };
    let per_row = matches!(role, Role::X | Role::Dz | Role::Dy);
    let mut a = Real::zeros((rows, cols));
    match case.data {
        Data::Normal => a.mapv_inplace(|_| scale * draws.normal()),
        Data::Uniform => a.mapv_inplace(|_| scale * 1.7 * draws.signed()),
        Data::LogUniform => {
            // Gradients multiply three factors where pre-activations multiply two.
            let share = match role {
                Role::Dz => 0.5,
                Role::Dy | Role::Down => 0.25,
                _ => 1.0,
            };
            let reach = scales.exponents * share;
            a.mapv_inplace(|_| draws.signed().signum() * (reach * draws.signed()).exp2());
        }
        Data::Sparse => {
            let kept = |draws: &mut Draws| draws.below(10) == 0;
            a.mapv_inplace(|_| if kept(&mut draws) { 3.0 * scale * draws.normal() } else { 0.0 });
        }
        Data::OneHot if per_row => {
            for mut row in a.rows_mut() {
                if !row.is_empty() {
                    row[draws.below(cols)] = 1.0 + draws.unit();
                }
            }
        }
        Data::OneHot => a.mapv_inplace(|_| draws.normal()),
        Data::Cancelling => {
            a.mapv_inplace(|_| scale * draws.normal());
            // x: [a, -a, b, -b, ..]; W: rows in pairs that differ in the seventh bit.
            for i in 0..rows {
                for j in 0..cols {
                    match role {
                        Role::X if j % 2 == 1 => a[[i, j]] = -a[[i, j - 1]],
                        Role::GateWeights | Role::UpWeights if i % 2 == 1 => {
                            a[[i, j]] = a[[i - 1, j]] * (1.0 + draws.signed() / 64.0);
                        }
                        _ => {}
                    }
                }
            }
        }
        Data::Integers => {
            let shift = integer_shift(case.in_features);
            for mut row in a.rows_mut() {
                let scale = match role {
                    Role::X => 2f64.powi(draws.below(4) as i32 - 2),
                    Role::GateWeights | Role::UpWeights | Role::Bias => shift,
                    Role::Dz | Role::Dy | Role::Down | Role::Old => 1.0,
                };
                row.mapv_inplace(|_| scale * draws.small_integer());
            }
        }
    }
    a
}

impl<T: Element> Inputs<T> {
    /// The inputs of a case.
    pub fn draw(case: &Case) -> Self {
        let (b, i, d) = (case.batch, case.in_features, case.hidden);
        let half = |role| narrow(&draw(case, role, (i, d)));
        let bias = case.bias.then(|| {
            let both = narrow::<T>(&draw(case, Role::Bias, (1, 2 * d)));
            column_halves(&both)
        });
        Self {
            x: narrow(&draw(case, Role::X, (b, i))),
            gate_weights: half(Role::GateWeights),
            up_weights: half(Role::UpWeights),
            bias,
            dz: narrow(&draw(case, Role::Dz, (b, d))),
            projected: case.down.map(|DownCase { out_features, .. }| {
                let o = usize::from(out_features);
                (narrow(&draw(case, Role::Dy, (b, o))), narrow(&draw(case, Role::Down, (d, o))))
            }),
        }
    }

    /// The same values for the oracle.
    pub fn operands(&self, case: &Case) -> Operands {
        Operands {
            x: real(&self.x),
            gate_weights: real(&self.gate_weights),
            up_weights: real(&self.up_weights),
            bias: self.bias.as_ref().map(|(gate, up)| (real(gate), real(up))),
            gate: case.gate,
        }
    }
}

/// What a gradient is added to; `which` tells the gradients of one case apart.
pub(crate) fn old<T: Element>(case: &Case, which: u64, shape: (usize, usize)) -> Array2<T> {
    let seed = case.seed.wrapping_add(which << 32);
    narrow(&draw(&Case { seed, ..*case }, Role::Old, shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_exact_in_f32_in_any_order() {
        for (in_features, seed) in [(1, 0), (7, 1), (257, 2), (4096, 3)] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let case =
                    Case { bias: true, data: Data::Integers, seed, ..Case::new(6, in_features, 5, dtype) };
                let (x, w) = (Role::X, Role::GateWeights);
                let (x, w) = (draw(&case, x, (6, in_features)), draw(&case, w, (in_features, 5)));
                let quantum = 0.25 * integer_shift(in_features);
                let magnitude = x.iter().fold(0.0f64, |m, v| m.max(v.abs()))
                    * w.iter().fold(0.0f64, |m, v| m.max(v.abs()))
                    * in_features as f64;
                assert!(magnitude / quantum < (1u64 << 24) as f64, "{magnitude} {quantum}");
                let product = crate::oracle::product(&x, &w);
                assert!(product.iter().all(|v| (v / quantum).fract() == 0.0), "multiples of the quantum");
                let last = in_features.max(1) - 1;
                let reversed = crate::oracle::product(
                    &Real::from_shape_fn(x.dim(), |(i, k)| x[[i, last - k]]),
                    &Real::from_shape_fn(w.dim(), |(k, j)| w[[last - k, j]]),
                );
                assert_eq!(product, reversed);
            }
        }
    }

    #[test]
    fn integers_survive_every_element_type() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let case = Case { data: Data::Integers, ..Case::new(9, 300, 4, dtype) };
            let exact = draw(&case, Role::X, (9, 300));
            assert_eq!(real(&narrow::<half::bf16>(&exact)), exact);
            assert_eq!(real(&narrow::<half::f16>(&exact)), exact);
        }
    }

    #[test]
    fn the_seed_decides() {
        let case = Case { bias: true, seed: 5, ..Case::new(3, 4, 5, Dtype::F32) };
        assert_eq!(Inputs::<f32>::draw(&case), Inputs::<f32>::draw(&case));
        assert_ne!(Inputs::<f32>::draw(&case), Inputs::<f32>::draw(&Case { seed: 6, ..case }));
        assert_ne!(old::<f32>(&case, 0, (2, 2)), old::<f32>(&case, 1, (2, 2)));
    }
}
