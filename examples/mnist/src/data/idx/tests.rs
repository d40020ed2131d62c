//! Legal files, and each way in which a file can be wrong.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};

use super::*;

fn file(rank: u8, dims: &[u32], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, UNSIGNED_BYTE, rank];
    bytes.extend(dims.iter().flat_map(|dim| dim.to_be_bytes()));
    bytes.extend_from_slice(body);
    bytes
}

fn image_file(count: u32, body: &[u8]) -> Vec<u8> {
    file(3, &[count, 28, 28], body)
}

fn images(bytes: &[u8]) -> Result<Array2<u8>, IdxError> {
    read_images(bytes)
}

fn labels(bytes: &[u8]) -> Result<Vec<u8>, IdxError> {
    read_labels(bytes)
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writes to memory")
}

fn images_from_disk(contents: &[u8]) -> Result<Array2<u8>, IdxError> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(contents).expect("a temporary file takes bytes");
    read_images(open(file.path())?)
}

#[test]
fn images_and_labels_are_read() {
    let pixels: Vec<u8> = (0..2 * PIXELS).map(|i| (i % 251) as u8).collect();
    let read = images(&image_file(2, &pixels)).expect("a legal file");
    assert_eq!((read.dim(), read.into_raw_vec_and_offset().0), ((2, PIXELS), pixels), "images");
    assert_eq!(labels(&file(1, &[3], &[0, 9, 4])).expect("a legal file"), [0, 9, 4], "labels");
}

#[test]
fn packed_files_are_known_by_their_contents() {
    let plain = image_file(1, &[7; PIXELS]);
    assert_eq!(images_from_disk(&plain).expect("plain"), images_from_disk(&gz(&plain)).expect("packed"));
}

#[test]
fn other_formats_are_refused() {
    assert!(matches!(labels(b"PK\x03\x04"), Err(IdxError::Magic([b'P', b'K']))), "magic");
    assert!(matches!(labels(&[0, 0, 0x0d, 1]), Err(IdxError::ElementType(0x0d))), "element type");
    assert!(
        matches!(labels(&image_file(1, &[0; PIXELS])), Err(IdxError::Rank { expected: 1, got: 3 })),
        "rank"
    );
    assert!(matches!(images(&file(1, &[1], &[0])), Err(IdxError::Rank { expected: 3, got: 1 })), "rank");
}

#[test]
fn sizes_are_checked_before_elements_are_read() {
    let overflow = file(3, &[u32::MAX, u32::MAX, u32::MAX], &[]);
    assert!(matches!(images(&overflow), Err(IdxError::Overflow(dims)) if dims == [u32::MAX; 3]), "overflow");
    assert!(matches!(images(&image_file(u32::MAX, &[])), Err(IdxError::TooLarge { .. })), "images too large");
    let labels_too_large = labels(&file(1, &[MAX_BYTES as u32 + 1], &[]));
    assert!(matches!(labels_too_large, Err(IdxError::TooLarge { limit: MAX_BYTES, .. })), "labels too large");
    assert!(matches!(labels(&file(1, &[0], &[])), Err(IdxError::Empty)), "no labels");
    let rotated = images(&file(3, &[1, 14, 56], &[0; PIXELS]));
    assert!(matches!(rotated, Err(IdxError::ImageSize { rows: 14, columns: 56 })), "image size");
}

#[test]
fn every_shorter_file_is_truncated() {
    let whole = image_file(1, &[1; PIXELS]);
    for length in 0..whole.len() {
        let error = images(&whole[..length]).expect_err("a cut file");
        assert!(matches!(error, IdxError::Truncated { .. }), "{length} bytes: {error}");
    }
    let cut = images(&whole[..whole.len() - 1]);
    assert!(matches!(cut, Err(IdxError::Truncated { expected: PIXELS, got: 783, .. })), "numbers");
}

#[test]
fn longer_files_are_refused() {
    assert!(matches!(images(&image_file(1, &[1; PIXELS + 1])), Err(IdxError::Trailing { expected: PIXELS })));
    assert!(matches!(labels(&file(1, &[2], &[1, 2, 3])), Err(IdxError::Trailing { expected: 2 })));
}

#[test]
fn labels_are_digits() {
    assert!(matches!(labels(&file(1, &[2], &[9, 10])), Err(IdxError::Label { index: 1, label: 10 })));
}

#[test]
fn every_shorter_packed_file_is_refused() {
    let whole = gz(&image_file(1, &[1; PIXELS]));
    for length in 0..whole.len() {
        assert!(images_from_disk(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
    }
}

#[test]
fn damaged_packed_files_are_refused() {
    let mut wrong_checksum = gz(&image_file(1, &[1; PIXELS]));
    let place = wrong_checksum.len() - 8;
    wrong_checksum[place] ^= 1;
    assert!(matches!(images_from_disk(&wrong_checksum), Err(IdxError::Read(_))), "checksum");

    let mut with_a_tail = gz(&image_file(1, &[1; PIXELS]));
    with_a_tail.extend_from_slice(b"tail");
    assert!(matches!(images_from_disk(&with_a_tail), Err(IdxError::Read(_))), "bytes after the packed data");
}

#[test]
fn a_bomb_is_read_no_further_than_its_header_says() {
    let bomb = gz(&image_file(1, &vec![0; 64 << 20]));
    assert!(bomb.len() < 128 << 10, "the bomb is small: {} bytes", bomb.len());
    assert!(
        matches!(images_from_disk(&bomb), Err(IdxError::Trailing { expected: PIXELS })),
        "one image announced"
    );
    let honest_bomb = gz(&image_file(u32::MAX, &[0; 4096]));
    assert!(matches!(images_from_disk(&honest_bomb), Err(IdxError::TooLarge { .. })), "too many announced");
}

#[test]
fn files_that_cannot_be_opened_are_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    assert!(matches!(open(&folder.path().join("none")), Err(IdxError::Read(_))), "no file");
    assert!(open(folder.path()).is_err(), "a folder");
}
