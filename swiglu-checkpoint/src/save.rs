//! Weights back into a checkpoint: its files are copied byte by byte, but for the tensors that were put.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use swiglu_core::{Host, MatRef, Matrix, interleave_packed_columns};
use tempfile::NamedTempFile;

use crate::checkpoint::{Checkpoint, Mlp, Source};
use crate::error::{Error, Result};
use crate::load::MlpWeights;
use crate::names::Packing;
use crate::shard::{Span, io_error};
use crate::stored::Stored;

/// A checkpoint with some MLPs exchanged, to be saved: see [`Checkpoint::edit`].
#[derive(Debug)]
pub struct Edit<'a> {
    checkpoint: &'a Checkpoint,
    /// By first byte, for each shard.
    pieces: Vec<BTreeMap<u64, Piece<'a>>>,
}

/// Bytes that replace as many of a file.
struct Piece<'a> {
    end: u64,
    content: Content<'a>,
}

/// Writes the bytes of some elements.
type Content<'a> = Box<dyn Fn(&mut dyn Write) -> Result<(), Failure> + 'a>;

/// What goes wrong while a piece is written.
enum Failure {
    Io(std::io::Error),
    Core(swiglu_core::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Io(error)
    }
}

impl From<swiglu_core::Error> for Failure {
    fn from(error: swiglu_core::Error) -> Self {
        Failure::Core(error)
    }
}

impl std::fmt::Debug for Piece<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Piece").field("end", &self.end).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// The checkpoint with nothing exchanged yet, to [`put`](Edit::put) weights into and [`save`](Edit::save).
    pub fn edit(&self) -> Edit<'_> {
        Edit { checkpoint: self, pieces: self.shards.iter().map(|_| BTreeMap::new()).collect() }
    }
}

impl<'a> Edit<'a> {
    /// Exchanges the parameters of the MLP of this name, as [`Checkpoint::mlp`] takes it; a second time, once more.
    ///
    /// # Errors
    /// As [`Checkpoint::mlp`]; [`Error::Dtype`], [`Error::Orientation`], [`Error::Shape`] and [`Error::Bias`] when the weights are not what the
    /// file has room for. Nothing was exchanged then.
    pub fn put<T: Stored>(&mut self, name: &str, weights: &'a MlpWeights<T>) -> Result<()> {
        let mlp = self.checkpoint.mlp(name)?;
        mlp.check_dtype::<T>()?;
        check_fit(&mlp, weights)?;
        let spans = &mlp.group.spans;
        let interleaved = mlp.packing() == Packing::InterleavedColumns;
        self.exchange(&mlp, &spans.wf, &weights.wf, interleaved)?;
        if let Some(bias) = &weights.bias {
            self.exchange(&mlp, &spans.bias, bias, interleaved)?;
        }
        self.exchange(&mlp, &[spans.down], &weights.down, false)?;
        match (&weights.down_bias, spans.down_bias) {
            (Some(bias), Some(span)) => self.exchange(&mlp, &[span], bias, false),
            _ => Ok(()),
        }
    }

    /// The elements of `matrix`, one after the other, become those of the spans.
    fn exchange<T: Stored>(
        &mut self,
        mlp: &Mlp<'_>,
        spans: &[Span],
        matrix: &'a Matrix<T, Host>,
        interleaved: bool,
    ) -> Result<()> {
        if let (true, &[span]) = (interleaved, spans) {
            let view = matrix.view();
            self.replace(
                mlp.span(span),
                Box::new(move |out| write_elements(elements(interleave_packed_columns(view)?.view())?, out)),
            );
            return Ok(());
        }
        let all = elements(matrix.view())?;
        for (&span, part) in spans.iter().zip(all.chunks((all.len() / spans.len()).max(1))) {
            self.replace(mlp.span(span), Box::new(move |out| write_elements(part, out)));
        }
        Ok(())
    }

    fn replace(&mut self, span: Span, content: Content<'a>) {
        self.pieces[span.shard].insert(span.start, Piece { end: span.start + span.bytes, content });
    }

    /// Writes the checkpoint: to the file `to` when it was opened as a file, otherwise into the folder `to`, which is made
    /// if it is not there, under the names that its files have.
    ///
    /// Headers, the index and all tensors that were not put are copied byte by byte. Everything is written beside its
    /// place first and then renamed, so a reader sees the old files or the new ones whole; `to` may be where the
    /// checkpoint came from, which itself goes on reading what it opened.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Core`] with [`swiglu_core::Error::OutOfMemory`]. Until everything has been written,
    /// nothing has been replaced.
    pub fn save(&self, to: impl AsRef<Path>) -> Result<()> {
        let to = to.as_ref();
        let in_folder = |name: &Path| to.join(name.file_name().unwrap_or_default());
        let mut staged = Vec::new();
        if let Source::File = self.checkpoint.source {
            staged.push(self.stage(0, to.to_owned())?);
        } else {
            fs::create_dir_all(to).map_err(|source| io_error(to, source))?;
            for (position, shard) in self.checkpoint.shards.iter().enumerate() {
                staged.push(self.stage(position, in_folder(shard.path()))?);
            }
        }
        if let Source::Sharded { index } = &self.checkpoint.source {
            let path = in_folder(self.checkpoint.path());
            let mut file = Staged::new(path)?;
            file.write(index)?;
            staged.push(file);
        }
        staged.iter_mut().try_for_each(Staged::sync)?;
        staged.into_iter().try_for_each(Staged::persist)
    }

    /// A shard with its pieces exchanged, beside its place.
    fn stage(&self, position: usize, path: PathBuf) -> Result<Staged> {
        let shard = &self.checkpoint.shards[position];
        let mut staged = Staged::new(path)?;
        let mut at = 0;
        for (&start, piece) in &self.pieces[position] {
            shard.copy(at..start, |bytes| staged.write(bytes))?;
            staged.piece(&piece.content)?;
            at = piece.end;
        }
        shard.copy(at..shard.bytes(), |bytes| staged.write(bytes))?;
        Ok(staged)
    }
}

/// A file that is being written beside its place.
struct Staged {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl Staged {
    fn new(path: PathBuf) -> Result<Self> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        // The user's umask decides, as it does for any other new file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(|source| io_error(&path, source))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|source| io_error(&self.path, source))
    }

    fn piece(&mut self, content: &Content<'_>) -> Result<()> {
        content(&mut self.file).map_err(|failure| match failure {
            Failure::Io(source) => io_error(&self.path, source),
            Failure::Core(error) => error.into(),
        })
    }

    fn sync(&mut self) -> Result<()> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().as_file().sync_all());
        synced.map_err(|source| io_error(&self.path, source))
    }

    fn persist(self) -> Result<()> {
        let file = self.file.into_inner().map_err(|e| io_error(&self.path, e.into_error()))?;
        file.persist(&self.path).map_err(|e| io_error(&self.path, e.error))?;
        Ok(())
    }
}

/// Weights must be what the file has room for.
fn check_fit<T: Stored>(mlp: &Mlp<'_>, weights: &MlpWeights<T>) -> Result<()> {
    let (expected, got) = (mlp.orientation(), weights.orientation());
    if expected != got {
        let (file, mlp) = (mlp.checkpoint.path().to_owned(), mlp.name());
        return Err(Error::Orientation { file, mlp, expected, got });
    }
    let bias = mlp.has_bias().then_some((1, 2 * mlp.hidden()));
    let down_bias = mlp.has_down_bias().then_some((1, mlp.out_features()));
    check_shape(mlp, "wf", mlp.packed_shape(), weights.wf.shape())?;
    check_bias(mlp, "bias", bias, weights.bias.as_ref())?;
    check_shape(mlp, "down", mlp.down_shape(), weights.down.shape())?;
    check_bias(mlp, "down bias", down_bias, weights.down_bias.as_ref())
}

fn check_bias<T: Stored>(
    mlp: &Mlp<'_>,
    operand: &'static str,
    expected: Option<(usize, usize)>,
    got: Option<&Matrix<T, Host>>,
) -> Result<()> {
    match (expected, got) {
        (Some(expected), Some(got)) => check_shape(mlp, operand, expected, got.shape()),
        (None, None) => Ok(()),
        (expected, _) => Err(Error::Bias {
            file: mlp.checkpoint.path().to_owned(),
            mlp: mlp.name(),
            operand,
            expected: expected.is_some(),
        }),
    }
}

fn check_shape(
    mlp: &Mlp<'_>,
    operand: &'static str,
    expected: (usize, usize),
    got: (usize, usize),
) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    let (file, mlp) = (mlp.checkpoint.path().to_owned(), mlp.name());
    Err(Error::Shape { file, mlp, operand, expected, got })
}

/// The elements of an owned matrix, which lie in one piece.
fn elements<T: Stored>(matrix: MatRef<'_, T, Host>) -> swiglu_core::Result<&[T]> {
    let (stride, cols) = (matrix.row_stride(), matrix.cols());
    matrix.array().to_slice().ok_or(swiglu_core::Error::Stride { operand: "matrix", stride, cols })
}

fn write_elements<T: Stored>(elements: &[T], out: &mut dyn Write) -> Result<(), Failure> {
    /// 16 to 32 KiB on their way.
    const AT_ONCE: usize = 8192;
    let mut bytes = Vec::with_capacity(AT_ONCE.min(elements.len()) * size_of::<T>());
    for elements in elements.chunks(AT_ONCE) {
        bytes.clear();
        T::encode(elements, &mut bytes);
        out.write_all(&bytes)?;
    }
    Ok(())
}
