//! One safetensors file: opened, checked, and read in parts. Nothing is allocated for bytes that the file does not have.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::header::{Entry, Header, parse};

/// The longest header that safetensors reads, and the longest index read here.
pub(crate) const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the header's length, in front of the header.
const LENGTH: u64 = 8;
/// Bytes that are on their way between a file and a matrix: they stay in L2.
const CHUNK: usize = 64 << 10;

/// A tensor of a file, whose place was checked.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    pub(crate) span: Span,
}

/// Bytes of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Which file of the checkpoint.
    pub(crate) shard: usize,
    /// The first byte, from the start of the file.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

impl Span {
    /// The `index`-th of `parts` equal parts.
    pub(crate) fn part(self, index: u64, parts: u64) -> Self {
        let bytes = self.bytes / parts;
        Self { start: self.start + index * bytes, bytes, ..self }
    }
}

/// An open file. Reads are in turn: they share its position.
#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    file: Mutex<File>,
    bytes: u64,
}

impl Shard {
    /// Opens a file and reads its header; the tensors for which `wanted` is true, in the order of the file.
    pub(crate) fn open(
        path: &Path,
        shard: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(Self, Vec<Tensor>)> {
        let (mut file, bytes) = open_regular(path)?;
        let header = read_header(&mut file, path, bytes)?;
        let Header(mut entries) =
            parse(&header).map_err(|source| Error::Header { file: path.to_owned(), source })?;
        let data = LENGTH + header.len() as u64;
        check_names(&mut entries, path)?;
        check_places(&mut entries, path, bytes - data, bytes)?;
        let tensors = entries.into_iter().filter(|(name, _)| wanted(name)).map(|(name, entry)| {
            let (start, end) = entry.data_offsets;
            let span = Span { shard, start: data + start, bytes: end - start };
            Tensor { name: name.into_owned(), dtype: entry.dtype, shape: entry.shape.0, span }
        });
        let tensors = tensors.collect();
        Ok((Self { path: path.to_owned(), file: Mutex::new(file), bytes }, tensors))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hands the bytes of a span to `take`, in order, a whole number of `unit` bytes at a time.
    pub(crate) fn read(&self, span: Span, unit: usize, mut take: impl FnMut(&[u8])) -> Result<()> {
        self.chunks(span.start..span.start + span.bytes, unit, |chunk| {
            take(chunk);
            Ok(())
        })
    }

    /// Hands a range of bytes to `take`, in order.
    pub(crate) fn copy(&self, range: Range<u64>, take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.chunks(range, 1, take)
    }

    fn chunks(
        &self,
        range: Range<u64>,
        unit: usize,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let failed = |source| io_error(&self.path, source);
        let longest = CHUNK - CHUNK % unit;
        let mut left = range.end.saturating_sub(range.start);
        let mut buffer = vec![0; usize::try_from(left).map_or(longest, |left| left.min(longest))];
        let mut file = self.lock();
        file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
        while left > 0 {
            let length = usize::try_from(left).map_or(longest, |left| left.min(longest));
            let chunk = &mut buffer[..length];
            file.read_exact(chunk).map_err(failed)?;
            take(chunk)?;
            left -= length as u64;
        }
        Ok(())
    }

    /// A panic elsewhere leaves nothing half done: every read starts with a seek.
    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn io_error(file: &Path, source: io::Error) -> Error {
    Error::Io { file: file.to_owned(), source }
}

/// Opens a regular file; anything else, which could block or never end, is not touched.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let failed = |source| io_error(path, source);
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Error::NotAFile { file: path.to_owned() });
    }
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    Ok((file, bytes))
}

/// Reads `bytes` bytes, which the caller knows to be there and bounded.
pub(crate) fn read_bytes(file: &mut File, path: &Path, bytes: u64) -> Result<Vec<u8>> {
    let too_large = || Error::TooLarge { file: path.to_owned(), bytes, limit: MAX_HEADER };
    let length = usize::try_from(bytes).map_err(|_| too_large())?;
    if bytes > MAX_HEADER {
        return Err(too_large());
    }
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(length).map_err(|_| swiglu_core::Error::OutOfMemory { bytes: length })?;
    buffer.resize(length, 0);
    file.read_exact(&mut buffer).map_err(|source| io_error(path, source))?;
    Ok(buffer)
}

/// The header's bytes: its length is checked against the file before anything is allocated.
fn read_header(file: &mut File, path: &Path, bytes: u64) -> Result<Vec<u8>> {
    let Some(available) = bytes.checked_sub(LENGTH) else {
        return Err(Error::TooShort { file: path.to_owned(), bytes });
    };
    let mut length = [0; LENGTH as usize];
    file.read_exact(&mut length).map_err(|source| io_error(path, source))?;
    let length = u64::from_le_bytes(length);
    if length > available {
        return Err(Error::HeaderLength { file: path.to_owned(), length, available });
    }
    read_bytes(file, path, length)
}

/// Sorts by name and refuses two of one name.
pub(crate) fn check_names<E>(entries: &mut [(Cow<'_, str>, E)], path: &Path) -> Result<()> {
    entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    match entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(Error::Duplicate { file: path.to_owned(), tensor: pair[0].0.clone().into_owned() }),
        None => Ok(()),
    }
}

/// Sorts by place; tensors must follow each other without a gap, up to the end of the file, each as long as its shape and
/// element type say.
fn check_places(
    entries: &mut [(Cow<'_, str>, Entry)],
    path: &Path,
    available: u64,
    file_bytes: u64,
) -> Result<()> {
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut expected = 0;
    for (name, entry) in entries.iter() {
        let (start, end) = entry.data_offsets;
        if start != expected || end < start {
            let (file, tensor) = (path.to_owned(), name.clone().into_owned());
            return Err(Error::Offsets { file, tensor, expected, got: entry.data_offsets });
        }
        if entry.bytes() != Some(end - start) {
            return Err(Error::Size {
                file: path.to_owned(),
                tensor: name.clone().into_owned(),
                dtype: entry.dtype.to_string(),
                shape: entry.shape.0.clone(),
                got: end - start,
            });
        }
        expected = end;
    }
    if expected == available {
        return Ok(());
    }
    let expected = (file_bytes - available).saturating_add(expected);
    Err(Error::FileLength { file: path.to_owned(), expected, got: file_bytes })
}
