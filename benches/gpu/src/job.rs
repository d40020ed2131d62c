//! What there is to measure: operations, shapes, and the list of measurements that a command line asks for.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Serialize, Serializer};
use swiglu_core::{Dims, Dtype, Element, Orientation, Precision, bf16, f16};

/// Batch, in_features and hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) in_features: usize,
    pub(crate) hidden: usize,
}

/// LLaMA-sized, then smaller ones, then ragged ones, whose rows start at odd elements.
pub(crate) const SHAPES: &str = "8192,4096,14336;8192,4096,11008;8192,2048,8192;8192,8192,28672;4096,1024,4096;\
                                 2048,768,2048;8192,256,1024;8191,4095,11007;1000,1001,1003";

const DECODE: [usize; 5] = [1, 4, 16, 64, 128];

/// No dimension may be larger: products of any three then fit in 64 bits.
const MAX_DIM: usize = 1 << 20;

impl Shape {
    const fn new(batch: usize, in_features: usize, hidden: usize) -> Self {
        Self { batch, in_features, hidden }
    }

    pub(crate) fn dims(self) -> Dims {
        Dims { batch: self.batch, in_features: self.in_features, hidden: self.hidden }
    }

    /// `4 * B * I * D`: the operations of both projections, and as many of dX and of dWf.
    pub(crate) fn flops(self) -> f64 {
        4.0 * self.batch as f64 * self.in_features as f64 * self.hidden as f64
    }

    /// Elements of x.
    pub(crate) fn input(self) -> usize {
        self.batch * self.in_features
    }

    /// Elements of Wf.
    pub(crate) fn weights(self) -> usize {
        2 * self.in_features * self.hidden
    }

    /// Elements of z.
    pub(crate) fn output(self) -> usize {
        self.batch * self.hidden
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}", self.batch, self.in_features, self.hidden)
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let dims: Vec<usize> = text
            .split(',')
            .map(|dim| match dim.trim().parse() {
                Ok(dim) if (1..=MAX_DIM).contains(&dim) => Ok(dim),
                _ => Err(format!("`{}` is not a number from 1 to {MAX_DIM}", dim.trim())),
            })
            .collect::<Result<_, _>>()?;
        match dims[..] {
            [batch, in_features, hidden] => Ok(Self::new(batch, in_features, hidden)),
            _ => Err(format!("expected three numbers, batch,in_features,hidden, and got {}", dims.len())),
        }
    }
}

/// What `--op` accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    /// z, in every element type and orientation asked for.
    Forward,
    /// The forward that keeps its pre-activations.
    Save,
    /// The gradient of x alone, from saved pre-activations: frozen weights.
    Dx,
    /// The gradients of x and of the weights, from saved pre-activations.
    Backward,
    /// The forward that keeps its pre-activations, and both gradients.
    Step,
    /// With a down projection back to in_features: forward, and forward and backward.
    Mlp,
    /// Forward of a few rows, which is bound by reading the weights; in a CUDA graph.
    Decode,
    /// f32, strictly and through TF32: forward and step.
    F32,
    /// MNIST's size in strict f32, forward and step, in a CUDA graph and a warm L2.
    Mnist,
}

/// The calls that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pass {
    Forward,
    Save,
    Dx,
    Backward,
    Step,
    Mlp,
    MlpStep,
}

impl Pass {
    /// Whether the projections are part of it.
    pub(crate) fn projects(self) -> bool {
        matches!(self, Self::Forward | Self::Save | Self::Step | Self::Mlp | Self::MlpStep)
    }

    pub(crate) fn has_dx(self) -> bool {
        matches!(self, Self::Dx | Self::Backward | Self::Step | Self::MlpStep)
    }

    pub(crate) fn has_dwf(self) -> bool {
        matches!(self, Self::Backward | Self::Step | Self::MlpStep)
    }

    /// Whether a down projection is part of it.
    pub(crate) fn has_down(self) -> bool {
        matches!(self, Self::Mlp | Self::MlpStep)
    }

    /// Whether pre-activations are kept.
    pub(crate) fn saves(self) -> bool {
        !matches!(self, Self::Forward | Self::Mlp)
    }

    /// Whether it uses up what an earlier forward left.
    pub(crate) fn consumes(self) -> bool {
        matches!(self, Self::Dx | Self::Backward)
    }

    /// Products of `4 * B * I * D` operations; one with the down projection is half of such.
    pub(crate) fn products(self) -> f64 {
        let parts = [self.projects(), self.has_dx(), self.has_dwf()];
        let products = parts.into_iter().filter(|&part| part).count() as f64;
        if self.has_down() { 1.5 * products } else { products }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Job {
    pub(crate) op: Op,
    pub(crate) pass: Pass,
    #[serde(serialize_with = "as_text")]
    pub(crate) dtype: Dtype,
    #[serde(serialize_with = "as_debug")]
    pub(crate) precision: Precision,
    #[serde(serialize_with = "as_debug")]
    pub(crate) orientation: Orientation,
    #[serde(flatten)]
    pub(crate) shape: Shape,
    /// Calls are captured, and the graph of them is measured.
    pub(crate) graph: bool,
    /// Every call has the operands of the one before.
    pub(crate) warm: bool,
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_debug<S: Serializer>(value: &impl fmt::Debug, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:?}"))
}

impl Job {
    pub(crate) fn flops(&self) -> f64 {
        self.pass.products() * self.shape.flops()
    }

    /// Bytes that a call cannot do without reading or writing.
    pub(crate) fn bytes(&self) -> f64 {
        let (x, wf, z) = (self.shape.input(), self.shape.weights(), self.shape.output());
        let pre = if self.pass.saves() { 2 * z } else { 0 };
        // y, and half as many weights once more.
        let down = if self.pass.has_down() { x + wf / 2 } else { 0 };
        let gradients = if self.pass.has_dx() { x } else { 0 } + if self.pass.has_dwf() { x + wf } else { 0 };
        ((x + wf + z + pre + down + gradients) * self.dtype.bytes()) as f64
    }

    /// Whether it is bound by memory, and so compared with the bandwidth of a copy.
    pub(crate) fn is_memory_bound(&self) -> bool {
        self.op == Op::Decode
    }

    /// `bf16`, `f32` or `tf32`.
    pub(crate) fn kind(&self) -> String {
        kind(self.dtype, self.precision)
    }

    /// The weights as a reader would write them.
    pub(crate) fn weights(&self) -> &'static str {
        match self.orientation {
            Orientation::InOut => "W [I, 2D]",
            Orientation::OutIn => "W [2D, I]",
        }
    }

    /// All but the shape.
    pub(crate) fn title(&self) -> String {
        let pass = match (self.op, self.pass) {
            (Op::Decode, _) => "decode",
            (_, Pass::Forward) => "forward",
            (_, Pass::Save) => "forward that saves",
            (_, Pass::Dx) => "dX",
            (_, Pass::Backward) => "dX and dWf",
            (_, Pass::Step) => "forward and backward",
            (_, Pass::Mlp) => "MLP",
            (_, Pass::MlpStep) => "MLP, forward and backward",
        };
        let graph = if self.graph { ", CUDA graph" } else { "" };
        format!("{pass}, {}, {}{graph}", self.kind(), self.weights())
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.title(), self.shape)
    }
}

/// `bf16`, `f32` or `tf32`.
pub(crate) fn kind(dtype: Dtype, precision: Precision) -> String {
    match (dtype, precision) {
        (Dtype::F32, Precision::Tf32) => "tf32".to_owned(),
        _ => dtype.to_string(),
    }
}

/// What `--dtype` accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeChoice {
    Bf16,
    F16,
}

impl From<DtypeChoice> for Dtype {
    fn from(choice: DtypeChoice) -> Self {
        match choice {
            DtypeChoice::Bf16 => bf16::DTYPE,
            DtypeChoice::F16 => f16::DTYPE,
        }
    }
}

/// What `--orientation` accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OrientationChoice {
    /// `[I, 2D]`.
    InOut,
    /// `[2D, I]`.
    OutIn,
}

impl From<OrientationChoice> for Orientation {
    fn from(choice: OrientationChoice) -> Self {
        match choice {
            OrientationChoice::InOut => Self::InOut,
            OrientationChoice::OutIn => Self::OutIn,
        }
    }
}

/// What the measurements are made of.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) ops: Vec<Op>,
    pub(crate) shapes: Vec<Shape>,
    pub(crate) dtypes: Vec<Dtype>,
    pub(crate) orientations: Vec<Orientation>,
}

impl Selection {
    /// The measurements, in order. `forward` takes every element type and orientation, others the first of each.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        self.ops.iter().flat_map(|&op| self.jobs_of(op)).collect()
    }

    fn jobs_of(&self, op: Op) -> Vec<Job> {
        let (Some(&dtype), Some(&orientation)) = (self.dtypes.first(), self.orientations.first()) else {
            return Vec::new();
        };
        let base = Job {
            op,
            pass: Pass::Forward,
            dtype,
            precision: Precision::Strict,
            orientation,
            shape: Shape::new(0, 0, 0),
            graph: false,
            warm: false,
        };
        let on_shapes = |base: Job| self.shapes.iter().map(move |&shape| Job { shape, ..base });
        match op {
            Op::Forward => {
                let kinds = self.dtypes.iter().flat_map(|&dtype| {
                    self.orientations.iter().map(move |&orientation| Job { dtype, orientation, ..base })
                });
                kinds.flat_map(on_shapes).collect()
            }
            Op::Save => on_shapes(Job { pass: Pass::Save, ..base }).collect(),
            Op::Dx => on_shapes(Job { pass: Pass::Dx, ..base }).collect(),
            Op::Backward => on_shapes(Job { pass: Pass::Backward, ..base }).collect(),
            Op::Step => on_shapes(Job { pass: Pass::Step, ..base }).collect(),
            Op::Mlp => {
                let passes = [Pass::Mlp, Pass::MlpStep].into_iter();
                passes.flat_map(|pass| on_shapes(Job { pass, ..base })).collect()
            }
            Op::Decode => {
                let shapes = DECODE.map(|batch| Shape::new(batch, 4096, 14336));
                shapes.map(|shape| Job { shape, graph: true, ..base }).to_vec()
            }
            Op::F32 => {
                let base = Job { dtype: Dtype::F32, shape: Shape::new(4096, 4096, 11008), ..base };
                let precisions = [Precision::Strict, Precision::Tf32];
                let both = |pass| precisions.map(|precision| Job { pass, precision, ..base });
                [both(Pass::Forward), both(Pass::Step)].concat()
            }
            Op::Mnist => {
                let base = Job {
                    dtype: Dtype::F32,
                    shape: Shape::new(128, 784, 512),
                    graph: true,
                    warm: true,
                    ..base
                };
                [Pass::Forward, Pass::Step].map(|pass| Job { pass, ..base }).to_vec()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(list: &str) -> Vec<Shape> {
        list.split(';').map(|shape| shape.parse().unwrap_or_else(|e| panic!("{shape}: {e}"))).collect()
    }

    fn selection(ops: &[Op]) -> Selection {
        Selection {
            ops: ops.to_vec(),
            shapes: shapes(SHAPES),
            dtypes: vec![Dtype::Bf16, Dtype::F16],
            orientations: vec![Orientation::InOut, Orientation::OutIn],
        }
    }

    #[test]
    fn the_default_shapes_are_shapes() {
        let list = shapes(SHAPES);
        assert_eq!(list.len(), 9);
        assert_eq!(list[0], Shape::new(8192, 4096, 14336));
        assert_eq!(list[8].to_string(), "1000, 1001, 1003");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "1,2", "1,2,3,4", "0,1,1", "1,-1,1", "a,1,1", "1,1,1048577", "1,,1"] {
            assert!(text.parse::<Shape>().is_err(), "{text:?} is no shape");
        }
        assert_eq!(" 1, 2 ,3".parse(), Ok(Shape::new(1, 2, 3)));
    }

    #[test]
    fn forward_takes_every_kind_and_the_others_the_first() {
        assert_eq!(selection(&[Op::Forward]).jobs().len(), 4 * 9);
        let jobs = selection(&[Op::Step]).jobs();
        assert!(jobs.len() == 9 && jobs.iter().all(|job| job.dtype == Dtype::Bf16), "{jobs:?}");
        let jobs = selection(&[Op::F32, Op::Decode, Op::Mnist]).jobs();
        let graphs = jobs.iter().filter(|job| job.graph).count();
        assert_eq!((jobs.len(), graphs), (4 + 5 + 2, 5 + 2));
        assert!(selection(&[]).jobs().is_empty(), "nothing asked for");
    }

    #[test]
    fn operations_and_bytes_are_those_of_the_products() {
        let base = selection(&[Op::Forward]).jobs()[0];
        let flops = 4.0 * 8192.0 * 4096.0 * 14336.0;
        let passes =
            [Pass::Forward, Pass::Save, Pass::Dx, Pass::Backward, Pass::Step, Pass::Mlp, Pass::MlpStep];
        let products = passes.map(|pass| (Job { pass, ..base }).flops() / flops);
        assert_eq!(products, [1.0, 1.0, 1.0, 2.0, 3.0, 1.5, 4.5]);
        let decode = selection(&[Op::Decode]).jobs()[0];
        assert_eq!(decode.bytes(), 2.0 * (4096.0 + 2.0 * 4096.0 * 14336.0 + 14336.0));
    }

    #[test]
    fn titles_say_what_runs() {
        let jobs = selection(&[Op::Mnist]).jobs();
        assert_eq!(jobs[1].to_string(), "forward and backward, f32, W [I, 2D], CUDA graph: 128, 784, 512");
    }
}
