//! Fetches the four files of MNIST. What arrives is kept only if its SHA-256 is the one written here.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::output::{self, OutputError};

/// Both hold the same files; the second is asked for what the first does not deliver.
const MIRRORS: [&str; 2] =
    ["https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/"];

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Without a byte for this long, a mirror counts as dead.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A file and what proves that it is the right one.
#[derive(Clone, Copy, Debug)]
struct Remote {
    name: &'static str,
    bytes: u64,
    sha256: &'static str,
}

const FILES: [Remote; 4] = [
    Remote {
        name: "train-images-idx3-ubyte.gz",
        bytes: 9_912_422,
        sha256: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    },
    Remote {
        name: "train-labels-idx1-ubyte.gz",
        bytes: 28_881,
        sha256: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    },
    Remote {
        name: "t10k-images-idx3-ubyte.gz",
        bytes: 1_648_877,
        sha256: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    },
    Remote {
        name: "t10k-labels-idx1-ubyte.gz",
        bytes: 4_542,
        sha256: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
];

/// Why a file was not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    /// The folder cannot be made.
    #[error("cannot create {}: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] OutputError),
    /// No answer, or the answer broke off.
    #[error("{url}: {source}")]
    Network {
        /// Where from.
        url: String,
        /// What the client says.
        source: io::Error,
    },
    /// Another length than the right file has.
    #[error("{url}: expected {expected} bytes, got {got}{}", if got > expected { " or more" } else { "" })]
    Size {
        /// Where from.
        url: String,
        /// The length of the right file.
        expected: u64,
        /// How many came; no more than one too many is read.
        got: u64,
    },
    /// The right length, but other bytes.
    #[error("{url}: expected SHA-256 {expected}, got {got}")]
    Hash {
        /// Where from.
        url: String,
        /// The hash of the right file.
        expected: &'static str,
        /// The hash of what came.
        got: String,
    },
    /// Each mirror failed, for these reasons.
    #[error("no mirror delivers {name}: {}", causes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Mirrors {
        /// The file.
        name: &'static str,
        /// One error per mirror.
        causes: Vec<DownloadError>,
    },
}

/// Opens a URL by https. A redirect to anything else is an error.
pub(super) fn https(url: &str) -> io::Result<Box<dyn Read>> {
    let agent = ureq::Agent::config_builder()
        .https_only(true)
        // The files as they are: the hash is that of the packed bytes.
        .accept_encoding("identity")
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(READ_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .build()
        .new_agent();
    let response = agent.get(url).call().map_err(ureq::Error::into_io)?;
    Ok(Box::new(response.into_body().into_reader()))
}

/// Makes `folder` hold the four files; those that it holds already are not fetched. `say` gets a line per fetched file.
pub(super) fn fetch_all(
    folder: &Path,
    mut open: impl FnMut(&str) -> io::Result<Box<dyn Read>>,
    mut say: impl FnMut(&str),
) -> Result<(), DownloadError> {
    fs::create_dir_all(folder)
        .map_err(|source| DownloadError::Folder { folder: folder.to_owned(), source })?;
    FILES.iter().try_for_each(|file| fetch(*file, folder, &mut open, &mut say))
}

fn fetch(
    file: Remote,
    folder: &Path,
    open: &mut impl FnMut(&str) -> io::Result<Box<dyn Read>>,
    say: &mut impl FnMut(&str),
) -> Result<(), DownloadError> {
    let path = folder.join(file.name);
    if is_right(file, &path) {
        return Ok(());
    }
    let mut causes = Vec::new();
    for mirror in MIRRORS {
        let url = format!("{mirror}{}", file.name);
        say(&format!("fetching {url} ({} bytes)", file.bytes));
        match receive(file, url, open) {
            Ok(contents) => return Ok(output::replace(&path, &contents)?),
            Err(cause) => causes.push(cause),
        }
    }
    Err(DownloadError::Mirrors { name: file.name, causes })
}

/// Whether `path` holds the right bytes; a file that cannot be read does not.
fn is_right(file: Remote, path: &Path) -> bool {
    let contents = File::open(path).and_then(|opened| read_limited(file, opened));
    contents.is_ok_and(|contents| hash(&contents) == file.sha256)
}

/// The contents of a URL, proved to be those of `file`.
fn receive(
    file: Remote,
    url: String,
    open: &mut impl FnMut(&str) -> io::Result<Box<dyn Read>>,
) -> Result<Vec<u8>, DownloadError> {
    let contents = match open(&url).and_then(|reader| read_limited(file, reader)) {
        Ok(contents) => contents,
        Err(source) => return Err(DownloadError::Network { url, source }),
    };
    if contents.len() as u64 != file.bytes {
        return Err(DownloadError::Size { url, expected: file.bytes, got: contents.len() as u64 });
    }
    let got = hash(&contents);
    if got != file.sha256 {
        return Err(DownloadError::Hash { url, expected: file.sha256, got });
    }
    Ok(contents)
}

/// Reads no more than one byte above the right length.
fn read_limited(file: Remote, reader: impl Read) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    reader.take(file.bytes + 1).read_to_end(&mut contents)?;
    Ok(contents)
}

fn hash(contents: &[u8]) -> String {
    Sha256::digest(contents).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
