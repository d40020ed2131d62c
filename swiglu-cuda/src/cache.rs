//! Machine code on disk, so that a process need not compile what an earlier one did, and beside it what tuning found.
//! Owns where it is kept, and that no trouble with it is ever an error: what cannot be read is as good as absent, what
//! cannot be written is left.
//!
//! A cubin is code. It is taken only from a folder that belongs to this user and that nobody else may write to, and
//! only if it is, bit for bit, what was stored under the same key. Whoever runs as the same user is trusted.
//!
//! `SWIGLU_CUDA_CACHE` says where: unset, `$XDG_CACHE_HOME/swiglu/cubin/v1`, or `$HOME/.cache/swiglu/cubin/v1`; `off`,
//! nowhere; else the absolute path of a folder. Nothing is ever removed: a folder can be deleted at any time.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

mod entry;
mod folder;
#[cfg(test)]
mod tests;

pub(crate) use entry::Key;

use entry::LARGEST_ENTRY;
use folder::Folder;

/// A folder of cubins, or none.
#[derive(Debug, Default)]
pub(crate) struct DiskCache {
    path: Option<PathBuf>,
    hits: AtomicU64,
    misses: AtomicU64,
    /// The first trouble: one line is enough for a report, and the others mostly repeat it.
    note: OnceLock<String>,
}

impl DiskCache {
    /// Where the environment says. Nothing is opened or made before the first entry is asked for.
    pub(crate) fn from_env() -> Self {
        let [named, xdg, home] = ["SWIGLU_CUDA_CACHE", "XDG_CACHE_HOME", "HOME"].map(env::var_os);
        match place(named, xdg, home) {
            Ok(Some(path)) => Self::at(path),
            Ok(None) => Self::default(),
            Err(note) => Self { note: OnceLock::from(note), ..Self::default() },
        }
    }

    /// In this folder, which is made when the first entry is stored.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path: Some(path), ..Self::default() }
    }

    /// What was stored under this key; `None` where nothing was, or nothing that can be trusted.
    pub(crate) fn load(&self, key: &Key) -> Option<Vec<u8>> {
        let found = self.find(key);
        let count = if found.is_some() { &self.hits } else { &self.misses };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// As [`DiskCache::load`], for what is no kernel and does not count as one.
    pub(crate) fn find(&self, key: &Key) -> Option<Vec<u8>> {
        self.path.as_deref().and_then(|path| self.noted(path, read(path, key)).flatten())
    }

    /// Leaves `body` for later, if that is possible.
    pub(crate) fn store(&self, key: &Key, body: &[u8]) {
        if let Some(path) = &self.path {
            self.noted(path, write(path, key, body));
        }
    }

    /// How many loads found something.
    pub(crate) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// How many loads found nothing.
    pub(crate) fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Why the cache is of less use than it could be, if there is a reason: the first one met.
    pub(crate) fn note(&self) -> Option<&str> {
        self.note.get().map(String::as_str)
    }

    fn noted<T>(&self, path: &Path, outcome: Result<T, Trouble>) -> Option<T> {
        outcome
            .map_err(|trouble| self.note.get_or_init(|| format!("cubin cache {}: {trouble}", path.display())))
            .ok()
    }
}

fn read(path: &Path, key: &Key) -> Result<Option<Vec<u8>>, Trouble> {
    let Some(folder) = Folder::open(path)? else { return Ok(None) };
    let name = key.file_name();
    let Some(bytes) = folder.read(&name, LARGEST_ENTRY)? else { return Ok(None) };
    entry::decode(key, bytes).map(Some).map_err(|damage| Trouble::Damaged { name, damage })
}

fn write(path: &Path, key: &Key, body: &[u8]) -> Result<(), Trouble> {
    let bytes = entry::encode(key, body)?;
    Folder::make(path)?.write(&key.file_name(), &bytes)
}

/// The folder, if any, that these values of the variables choose; or why there is none although one was wanted.
fn place(
    named: Option<OsString>,
    xdg: Option<OsString>,
    home: Option<OsString>,
) -> Result<Option<PathBuf>, String> {
    let absolute = |value: OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    if let Some(named) = named.filter(|value| !value.is_empty()) {
        let note =
            format!("SWIGLU_CUDA_CACHE is {named:?}, neither \"off\" nor an absolute path: no cubin cache");
        return if named == "off" { Ok(None) } else { absolute(named).map(Some).ok_or(note) };
    }
    // The XDG specification has relative values ignored.
    let xdg = xdg.and_then(absolute);
    let caches = xdg.or_else(|| Some(home.and_then(absolute)?.join(".cache")));
    let caches = caches.ok_or("neither XDG_CACHE_HOME nor HOME is an absolute path: no cubin cache")?;
    Ok(Some(caches.join("swiglu").join("cubin").join("v1")))
}

/// Why an entry was not read or not written. Told in a note, never returned to a caller.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[cfg(unix)]
    #[error("it belongs to user {owner} and this process runs as user {user}: not used")]
    Owner { owner: u32, user: u32 },
    #[cfg(unix)]
    #[error("it is writable by others (mode {mode:03o}): not used")]
    Writable { mode: u32 },
    #[cfg(unix)]
    #[error("{name}: {refusal}")]
    Entry { name: String, refusal: Box<Trouble> },
    #[cfg(unix)]
    #[error("{name} is no regular file: not used")]
    NoFile { name: String },
    #[cfg(unix)]
    #[error("{doing} failed: {error}")]
    Io { doing: &'static str, error: std::io::Error },
    #[cfg(not(unix))]
    #[error("who may write to it is checked on Unix only: not used")]
    Unchecked,
    #[error("{name} is damaged ({damage}): not used")]
    Damaged { name: String, damage: &'static str },
    #[error("an entry of {bytes} bytes is over the limit of {limit}: not used")]
    TooLarge { bytes: u64, limit: u64 },
}
