//! The four files of MNIST in one folder.

use std::path::{Path, PathBuf};

use super::idx::{self, IdxError};
use super::{DataError, Split};

/// Names of the training images, training labels, test images and test labels, without `.gz`.
pub(super) const NAMES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

/// Reads the training and the test set of `folder`; `None` when it has none of the four files.
pub(super) fn read(folder: &Path) -> Result<Option<[Split; 2]>, DataError> {
    let found = NAMES.map(|name| locate(folder, name));
    if found.iter().all(Option::is_none) {
        return Ok(None);
    }
    let present = |index: usize| {
        let missing = || DataError::Missing { folder: folder.to_owned(), name: NAMES[index] };
        found[index].as_deref().ok_or_else(missing)
    };
    let [train, train_labels, test, test_labels] = [present(0)?, present(1)?, present(2)?, present(3)?];
    Ok(Some([read_split(train, train_labels)?, read_split(test, test_labels)?]))
}

/// A file of this name, packed or not.
fn locate(folder: &Path, name: &str) -> Option<PathBuf> {
    [format!("{name}.gz"), name.to_owned()]
        .map(|name| folder.join(name))
        .into_iter()
        .find(|path| path.is_file())
}

fn read_split(image_file: &Path, label_file: &Path) -> Result<Split, DataError> {
    let images = idx::open(image_file).and_then(idx::read_images).map_err(|source| at(image_file, source))?;
    let labels = idx::open(label_file).and_then(idx::read_labels).map_err(|source| at(label_file, source))?;
    if images.nrows() != labels.len() {
        return Err(DataError::Counts {
            image_file: image_file.to_owned(),
            images: images.nrows(),
            label_file: label_file.to_owned(),
            labels: labels.len(),
        });
    }
    Ok(Split { images, labels })
}

fn at(path: &Path, source: IdxError) -> DataError {
    DataError::Idx { path: path.to_owned(), source }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;
    use crate::data::PIXELS;

    /// Writes a legal training set of three and test set of two samples.
    pub(in crate::data) fn write_small_set(folder: &Path) {
        for (name, count) in NAMES.into_iter().zip([3_u8, 3, 2, 2]) {
            fs::write(folder.join(name), contents(name, count)).expect("a temporary folder takes files");
        }
    }

    fn contents(name: &str, count: u8) -> Vec<u8> {
        if name.contains("labels") {
            [&[0, 0, 8, 1, 0, 0, 0, count][..], &vec![5; count.into()]].concat()
        } else {
            let header = [0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 28, 0, 0, 0, 28];
            [&header[..], &vec![1; usize::from(count) * PIXELS]].concat()
        }
    }

    #[test]
    fn a_whole_folder_is_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_small_set(folder.path());
        let [train, test] = read(folder.path()).expect("legal files").expect("four files");
        assert_eq!((train.images.nrows(), train.labels), (3, vec![5; 3]), "training set");
        assert_eq!((test.images.nrows(), test.labels), (2, vec![5; 2]), "test set");
    }

    #[test]
    fn a_folder_without_any_file_is_no_error_here() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(read(folder.path()).expect("no file"), None, "an empty folder");
        assert_eq!(read(&folder.path().join("none")).expect("no folder"), None, "no folder");
    }

    #[test]
    fn each_file_is_required() {
        for missing in NAMES {
            let folder = tempfile::tempdir().expect("a temporary folder");
            write_small_set(folder.path());
            fs::remove_file(folder.path().join(missing)).expect("was written");
            let error = read(folder.path()).expect_err("a file is missing");
            assert!(
                matches!(&error, DataError::Missing { name, .. } if *name == missing),
                "{missing}: {error}"
            );
        }
    }

    #[test]
    fn counts_agree() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_small_set(folder.path());
        fs::write(folder.path().join(NAMES[1]), contents(NAMES[1], 4))
            .expect("a temporary folder takes files");
        let error = read(folder.path()).expect_err("four labels for three images");
        assert!(matches!(error, DataError::Counts { images: 3, labels: 4, .. }), "{error}");
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_small_set(folder.path());
        fs::write(folder.path().join(NAMES[2]), [0, 0, 8]).expect("a temporary folder takes files");
        let error = read(folder.path()).expect_err("a cut file");
        assert!(error.to_string().contains(NAMES[2]), "{error}");
    }
}
