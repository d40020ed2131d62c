//! The IDX format of MNIST: a header of big-endian numbers, then bytes.
//!
//! Files are not trusted: sizes are checked before anything is read, no more is read than the header announces, and memory grows
//! with what really arrives.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use ndarray::Array2;

use super::{CLASSES, PIXELS, SIDE};

/// More than this is not read from one file, whatever its header says. MNIST has 47 MB.
const MAX_BYTES: usize = 1 << 30;
/// The type byte of unsigned bytes.
const UNSIGNED_BYTE: u8 = 0x08;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What is wrong with an IDX file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdxError {
    /// The file cannot be opened, read or decompressed.
    #[error("cannot read: {0}")]
    Read(#[from] io::Error),
    /// The first bytes are not those of an IDX file.
    #[error("not an IDX file: expected two zero bytes, got {0:02x?}")]
    Magic([u8; 2]),
    /// The elements are not bytes.
    #[error("expected element type 0x08 (unsigned byte), got {0:#04x}")]
    ElementType(u8),
    /// Images where labels belong, or the other way round.
    #[error("expected {expected} dimensions, got {got}")]
    Rank {
        /// 3 for images, 1 for labels.
        expected: usize,
        /// What the header says.
        got: u8,
    },
    /// The product of the dimensions is no number of bytes.
    #[error("dimensions {0:?} overflow")]
    Overflow(Vec<u32>),
    /// More elements than this program reads.
    #[error("header announces {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The product of the dimensions.
        bytes: usize,
        /// The most that is read.
        limit: usize,
    },
    /// No elements.
    #[error("file has no samples")]
    Empty,
    /// Images of another size.
    #[error("expected images of 28 x 28 pixels, got {rows} x {columns}")]
    ImageSize {
        /// Height of an image.
        rows: u32,
        /// Width of an image.
        columns: u32,
    },
    /// The file ends too early.
    #[error("file is cut off: expected {expected} bytes {part}, got {got}")]
    Truncated {
        /// Where the end came.
        part: &'static str,
        /// What belongs there.
        expected: usize,
        /// What was there.
        got: usize,
    },
    /// The file goes on after its last element; also how a compressed bomb looks.
    #[error("file goes on after the {expected} bytes that its header announces")]
    Trailing {
        /// The product of the dimensions.
        expected: usize,
    },
    /// A label that is no digit.
    #[error("label {index} is {label}, expected 0 to 9")]
    Label {
        /// Position of the label.
        index: usize,
        /// Its value.
        label: u8,
    },
}

/// Opens a file; one compressed by gzip, known by its first bytes, is unpacked while it is read.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>, IdxError> {
    let mut file = BufReader::new(File::open(path)?);
    let packed = file.fill_buf()?.starts_with(&GZIP_MAGIC);
    Ok(if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

/// Reads images to one row of pixels each.
pub(crate) fn read_images(mut reader: impl Read) -> Result<Array2<u8>, IdxError> {
    let dims = read_header::<3>(&mut reader)?;
    let bytes = count(&dims)?;
    let [_, rows, columns] = dims;
    if [rows, columns].map(|side| side as usize) != [SIDE; 2] {
        return Err(IdxError::ImageSize { rows, columns });
    }
    let pixels = read_elements(&mut reader, bytes)?;
    Array2::from_shape_vec((bytes / PIXELS, PIXELS), pixels).map_err(|_| IdxError::Overflow(dims.to_vec()))
}

/// Reads labels, all below ten.
pub(crate) fn read_labels(mut reader: impl Read) -> Result<Vec<u8>, IdxError> {
    let dims = read_header::<1>(&mut reader)?;
    let labels = read_elements(&mut reader, count(&dims)?)?;
    match labels.iter().position(|&label| usize::from(label) >= CLASSES) {
        Some(index) => Err(IdxError::Label { index, label: labels[index] }),
        None => Ok(labels),
    }
}

/// The dimensions, after a check of all that comes before them.
fn read_header<const RANK: usize>(reader: &mut impl Read) -> Result<[u32; RANK], IdxError> {
    let [zero, zero_too, element, rank] = read_array(reader)?;
    if [zero, zero_too] != [0, 0] {
        return Err(IdxError::Magic([zero, zero_too]));
    }
    if element != UNSIGNED_BYTE {
        return Err(IdxError::ElementType(element));
    }
    if usize::from(rank) != RANK {
        return Err(IdxError::Rank { expected: RANK, got: rank });
    }
    let mut dims = [0; RANK];
    for dim in &mut dims {
        *dim = u32::from_be_bytes(read_array(reader)?);
    }
    Ok(dims)
}

fn read_array(reader: &mut impl Read) -> Result<[u8; 4], IdxError> {
    let bytes = read_at_most(reader, 4)?;
    <[u8; 4]>::try_from(bytes.as_slice()).map_err(|_| IdxError::Truncated {
        part: "of header",
        expected: 4,
        got: bytes.len(),
    })
}

/// The number of elements, at least one and at most `MAX_BYTES`.
fn count(dims: &[u32]) -> Result<usize, IdxError> {
    let product =
        dims.iter().try_fold(1_usize, |product, &dim| product.checked_mul(usize::try_from(dim).ok()?));
    match product {
        None => Err(IdxError::Overflow(dims.to_vec())),
        Some(0) => Err(IdxError::Empty),
        Some(bytes) if bytes > MAX_BYTES => Err(IdxError::TooLarge { bytes, limit: MAX_BYTES }),
        Some(bytes) => Ok(bytes),
    }
}

fn read_elements(reader: &mut impl Read, expected: usize) -> Result<Vec<u8>, IdxError> {
    let bytes = read_at_most(reader, expected + 1)?;
    match bytes.len() {
        got if got < expected => Err(IdxError::Truncated { part: "of elements", expected, got }),
        got if got > expected => Err(IdxError::Trailing { expected }),
        _ => Ok(bytes),
    }
}

/// Reads to the end or to `limit`; the memory taken follows what was read, not the limit.
fn read_at_most(reader: &mut impl Read, limit: usize) -> Result<Vec<u8>, IdxError> {
    let mut bytes = Vec::new();
    reader.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
