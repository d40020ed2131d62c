//! A trained model as a safetensors file of four f32 tensors.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ndarray::Array2;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};

use crate::data::{CLASSES, PIXELS};
use crate::output::{self, OutputError};

/// Names in the file, in the order of the fields.
const NAMES: [&str; 4] = ["swiglu.wf", "swiglu.bias", "head.weight", "head.bias"];
/// The widest model of the command line needs 413 MiB.
const MAX_BYTES: u64 = 512 << 20;

/// What is wrong with a model, and with which file.
#[derive(Debug, thiserror::Error)]
#[error("checkpoint {}: {problem}", path.display())]
pub(crate) struct CheckpointError {
    path: PathBuf,
    problem: Problem,
}

/// What is wrong with a model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// The file cannot be read.
    #[error("cannot read: {0}")]
    Read(#[from] io::Error),
    /// The file is longer than any model.
    #[error("file has more than {limit} bytes")]
    TooLarge {
        /// The most that is read.
        limit: u64,
    },
    /// The file is cut off, damaged, or something else.
    #[error("not a safetensors file: {0}")]
    Format(#[from] SafeTensorError),
    /// A tensor is not there.
    #[error("tensor {0} is missing")]
    Missing(&'static str),
    /// A tensor is there that no model has.
    #[error("tensor {0:?} is unknown, expected {expected}", expected = NAMES.join(", "))]
    Unknown(String),
    /// Elements of another type.
    #[error("tensor {tensor}: expected F32, got {got:?}")]
    Dtype {
        /// Its name.
        tensor: &'static str,
        /// Its type.
        got: Dtype,
    },
    /// A shape that does not fit the network, or the other tensors.
    #[error("tensor {tensor}: expected shape {expected}, got {got:?}")]
    Shape {
        /// Its name.
        tensor: &'static str,
        /// The shape that fits.
        expected: String,
        /// Its shape.
        got: Vec<usize>,
    },
    /// An element that is infinite or no number.
    #[error("tensor {tensor}: element {index} is {value}, expected a finite number")]
    NotFinite {
        /// Its name.
        tensor: &'static str,
        /// Position of the first such element, in row-major order.
        index: usize,
        /// The element.
        value: f32,
    },
    /// A hidden width other than the one that the user asked for.
    #[error("expected hidden width {expected}, got {got}")]
    Hidden {
        /// What `--hidden` said.
        expected: usize,
        /// The width of the model.
        got: usize,
    },
}

impl Problem {
    /// The problem as that of a file.
    pub(crate) fn at(self, path: &Path) -> CheckpointError {
        CheckpointError { path: path.to_owned(), problem: self }
    }
}

/// The parameters of a model; shapes fit each other and all elements are finite.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checkpoint {
    tensors: [Array2<f32>; 4],
}

impl Checkpoint {
    /// Takes `wf` [784, 2 hidden] with the gate half first, `bias` [1, 2 hidden], `head` [hidden, 10], `head_bias` [1, 10].
    pub(crate) fn new(
        wf: Array2<f32>,
        bias: Array2<f32>,
        head: Array2<f32>,
        head_bias: Array2<f32>,
    ) -> Result<Self, Problem> {
        let tensors = [wf, bias, head, head_bias];
        check_shapes(&tensors)?;
        NAMES.iter().zip(&tensors).try_for_each(|(name, values)| check_finite(name, values))?;
        Ok(Self { tensors })
    }

    /// `wf`, `bias`, `head` and `head_bias`, in the shapes of [`Checkpoint::new`].
    pub(crate) fn into_parts(self) -> [Array2<f32>; 4] {
        self.tensors
    }

    /// The hidden width.
    pub(crate) fn hidden(&self) -> usize {
        self.tensors[2].nrows()
    }

    /// Writes the model; an existing file is replaced as a whole.
    pub(crate) fn save(&self, path: &Path) -> Result<(), OutputError> {
        let bytes = self.to_bytes().map_err(|error| OutputError::new(path, io::Error::other(error)))?;
        output::replace(path, &bytes)
    }

    /// Reads a model, whose hidden width is to be `hidden` if the user asked for one.
    pub(crate) fn load(path: &Path, hidden: Option<usize>) -> Result<Self, CheckpointError> {
        let parse = || {
            let model = Self::from_bytes(&read_limited(File::open(path)?, MAX_BYTES)?)?;
            match hidden {
                Some(expected) if expected != model.hidden() => {
                    Err(Problem::Hidden { expected, got: model.hidden() })
                }
                _ => Ok(model),
            }
        };
        parse().map_err(|problem: Problem| problem.at(path))
    }

    fn to_bytes(&self) -> Result<Vec<u8>, SafeTensorError> {
        let contents = self.tensors.each_ref().map(little_endian);
        let views = NAMES.iter().zip(&self.tensors).zip(&contents).map(|((&name, values), bytes)| {
            TensorView::new(Dtype::F32, values.shape().to_vec(), bytes).map(|view| (name, view))
        });
        safetensors::serialize(views.collect::<Result<Vec<_>, _>>()?, None)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Problem> {
        let file = SafeTensors::deserialize(bytes)?;
        if let Some(name) = file.names().into_iter().find(|name| !NAMES.contains(name)) {
            return Err(Problem::Unknown(name.to_owned()));
        }
        let [wf, bias, head, head_bias] = NAMES.map(|name| read_tensor(&file, name));
        Self::new(wf?, bias?, head?, head_bias?)
    }
}

fn read_limited(reader: impl Read, limit: u64) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(Problem::TooLarge { limit }) } else { Ok(bytes) }
}

fn read_tensor(file: &SafeTensors<'_>, name: &'static str) -> Result<Array2<f32>, Problem> {
    let tensor = file.tensor(name).map_err(|_| Problem::Missing(name))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(Problem::Dtype { tensor: name, got: tensor.dtype() });
    }
    let wrong_shape = || Problem::Shape {
        tensor: name,
        expected: "of two dimensions".to_owned(),
        got: tensor.shape().to_vec(),
    };
    let &[rows, columns] = tensor.shape() else { return Err(wrong_shape()) };
    let (elements, _) = tensor.data().as_chunks();
    let values = elements.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    Array2::from_shape_vec((rows, columns), values).map_err(|_| wrong_shape())
}

/// Row-major bytes, whatever the order in memory.
fn little_endian(values: &Array2<f32>) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The width of `wf` fixes the shapes of the others.
fn check_shapes(tensors: &[Array2<f32>; 4]) -> Result<(), Problem> {
    let shape = |tensor: usize, expected: String| Problem::Shape {
        tensor: NAMES[tensor],
        expected,
        got: tensors[tensor].shape().to_vec(),
    };
    let (inputs, width) = tensors[0].dim();
    let hidden = width / 2;
    if inputs != PIXELS || width % 2 != 0 || hidden == 0 {
        return Err(shape(0, format!("[{PIXELS}, 2 * hidden]")));
    }
    for (tensor, expected) in [(1, [1, width]), (2, [hidden, CLASSES]), (3, [1, CLASSES])] {
        if tensors[tensor].shape() != expected {
            return Err(shape(tensor, format!("{expected:?}")));
        }
    }
    Ok(())
}

fn check_finite(name: &'static str, values: &Array2<f32>) -> Result<(), Problem> {
    match values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, &value)) => Err(Problem::NotFinite { tensor: name, index, value }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
