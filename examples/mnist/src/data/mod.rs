//! Where the samples come from: IDX files that are found or fetched, or digits drawn in code.

mod digits;
mod download;
mod files;
mod idx;
mod strokes;

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use ndarray::Array2;

use self::download::DownloadError;
use self::idx::IdxError;

/// Height and width of an image.
pub(crate) const SIDE: usize = 28;
/// Pixels of an image, and inputs of the network.
pub(crate) const PIXELS: usize = SIDE * SIDE;
/// Digits, and outputs of the network.
pub(crate) const CLASSES: usize = 10;

/// The drawn digits are one fixed set, as MNIST is: `--seed` is about the training alone.
const DIGITS_SEED: u64 = 1;
const DIGITS_TRAIN: usize = 20_000;
const DIGITS_TEST: usize = 4_000;

/// Images with their labels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Split {
    /// One row of 784 pixels per image, 255 is ink.
    pub(crate) images: Array2<u8>,
    /// The digit of each image.
    pub(crate) labels: Vec<u8>,
}

/// A training set, a test set, and where they come from.
#[derive(Clone, Debug)]
pub(crate) struct Dataset {
    /// To learn from.
    pub(crate) train: Split,
    /// To measure with.
    pub(crate) test: Split,
    /// Where both come from.
    pub(crate) source: Source,
}

/// Where a data set comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// IDX files in this folder.
    Files(PathBuf),
    /// Digits drawn in code, because no files were found.
    Drawn,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(folder) => write!(f, "IDX files in {}", folder.display()),
            Self::Drawn => {
                f.write_str("digits drawn in code, as no MNIST files were found (see --data, --download)")
            }
        }
    }
}

/// Why there is no data.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    /// The user named a folder without any of the files.
    #[error("no MNIST files in {}: expected {}.gz and three more, packed or not", folder.display(), files::NAMES[0])]
    NoFiles {
        /// The folder.
        folder: PathBuf,
    },
    /// Some of the four files are there, others are not.
    #[error("{name}.gz is missing in {}, packed or not", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The first missing file.
        name: &'static str,
    },
    /// A file is not what it should be.
    #[error("{}: {source}", path.display())]
    Idx {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: IdxError,
    },
    /// Images without labels or labels without images.
    #[error("{} has {images} images, but {} has {labels} labels", image_file.display(), label_file.display())]
    Counts {
        /// The file of the images.
        image_file: PathBuf,
        /// How many it holds.
        images: usize,
        /// The file of the labels.
        label_file: PathBuf,
        /// How many it holds.
        labels: usize,
    },
    /// `--download` has no folder to write to.
    #[error("no cache folder: set XDG_CACHE_HOME to an absolute path, or give --data")]
    NoCache,
    /// `--download` failed.
    #[error(transparent)]
    Download(#[from] DownloadError),
}

/// The folders to look into; all of them are optional.
#[derive(Clone, Debug, Default)]
pub(crate) struct Search {
    /// What `--data` said: no other folder is looked at.
    pub(crate) data: Option<PathBuf>,
    /// What `SWIGLU_DATA` says: named by the user too, so it is used or refused.
    pub(crate) variable: Option<PathBuf>,
    /// `swiglu/mnist` in the user's cache folder: may be empty.
    pub(crate) cache: Option<PathBuf>,
}

impl Search {
    /// `--data`, and what the environment says.
    pub(crate) fn new(data: Option<&Path>) -> Self {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache_home = variable("XDG_CACHE_HOME")
            .filter(|folder| folder.is_absolute())
            .or_else(|| env::home_dir().map(|home| home.join(".cache")));
        Self {
            data: data.map(Path::to_owned),
            variable: variable("SWIGLU_DATA"),
            cache: cache_home.map(|folder| folder.join("swiglu").join("mnist")),
        }
    }
}

/// Loads the first data set that the search finds, or draws one.
pub(crate) fn load(search: &Search) -> Result<Dataset, DataError> {
    if let Some(folder) = search.data.as_ref().or(search.variable.as_ref()) {
        return from_folder(folder)?.ok_or_else(|| DataError::NoFiles { folder: folder.clone() });
    }
    let cached = search.cache.as_deref().map(from_folder).transpose()?.flatten();
    Ok(cached.unwrap_or_else(drawn))
}

/// Fetches MNIST into `--data` or the cache, unless it is there, and loads it. `say` gets a line per fetched file.
pub(crate) fn download(search: &Search, say: impl FnMut(&str)) -> Result<Dataset, DataError> {
    let folder = search.data.as_ref().or(search.cache.as_ref()).ok_or(DataError::NoCache)?;
    download::fetch_all(folder, download::https, say)?;
    from_folder(folder)?.ok_or_else(|| DataError::NoFiles { folder: folder.clone() })
}

fn from_folder(folder: &Path) -> Result<Option<Dataset>, DataError> {
    let source = Source::Files(folder.to_owned());
    Ok(files::read(folder)?.map(|[train, test]| Dataset { train, test, source }))
}

fn drawn() -> Dataset {
    let [train, test] = digits::generate(DIGITS_SEED, DIGITS_TRAIN, DIGITS_TEST);
    Dataset { train, test, source: Source::Drawn }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        files::tests::write_small_set(folder.path());
        folder
    }

    fn path(folder: &tempfile::TempDir) -> Option<PathBuf> {
        Some(folder.path().to_owned())
    }

    #[test]
    fn folders_are_searched_in_order() {
        let [data, variable, cache] = [(); 3].map(|()| filled());
        let mut search = Search { data: path(&data), variable: path(&variable), cache: path(&cache) };
        let source = |search: &Search| load(search).expect("legal files").source;
        assert_eq!(source(&search), Source::Files(data.path().to_owned()), "--data comes first");
        search.data = None;
        assert_eq!(source(&search), Source::Files(variable.path().to_owned()), "then the variable");
        search.variable = None;
        assert_eq!(source(&search), Source::Files(cache.path().to_owned()), "then the cache");
    }

    #[test]
    fn a_named_folder_is_used_or_refused() {
        let (empty, cache) = (tempfile::tempdir().expect("a temporary folder"), filled());
        for search in [
            Search { data: path(&empty), variable: path(&cache), cache: path(&cache) },
            Search { data: None, variable: path(&empty), cache: path(&cache) },
        ] {
            let error = load(&search).expect_err("the folder is empty");
            assert!(matches!(&error, DataError::NoFiles { folder } if folder == empty.path()), "{error}");
        }
    }

    #[test]
    fn digits_are_drawn_when_nothing_is_found() {
        let empty = tempfile::tempdir().expect("a temporary folder");
        let dataset = load(&Search { cache: path(&empty), ..Search::default() }).expect("nothing can fail");
        assert_eq!(dataset.source, Source::Drawn, "source");
        assert_eq!(dataset.train.images.dim(), (DIGITS_TRAIN, PIXELS), "training images");
        assert_eq!(dataset.test.labels.len(), DIGITS_TEST, "test labels");
    }

    #[test]
    fn a_download_needs_a_folder() {
        let error = download(&Search::default(), |_| ()).expect_err("there is no folder");
        assert!(matches!(error, DataError::NoCache), "{error}");
    }
}
