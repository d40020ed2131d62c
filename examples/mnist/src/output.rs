//! The files that the program writes: checked before the work starts, and replaced as a whole at its end.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub(crate) struct OutputError {
    path: PathBuf,
    source: io::Error,
}

impl OutputError {
    /// `source` happened while `path` was written.
    pub(crate) fn new(path: &Path, source: io::Error) -> Self {
        Self { path: path.to_owned(), source }
    }
}

/// Fails now if `replace` would fail later; an existing file keeps its contents.
pub(crate) fn check(path: &Path) -> Result<(), OutputError> {
    match Target::of(path) {
        Target::Replaced(path) => temporary_beside(&path).map(drop),
        Target::WrittenInPlace => OpenOptions::new().write(true).open(path).map(drop),
    }
    .map_err(|source| OutputError::new(path, source))
}

/// Makes `contents` the contents of `path`. A reader sees the old file or the new one, never a part.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> Result<(), OutputError> {
    match Target::of(path) {
        Target::Replaced(path) => replace_by_rename(&path, contents),
        Target::WrittenInPlace => {
            OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(contents))
        }
    }
    .map_err(|source| OutputError::new(path, source))
}

fn replace_by_rename(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = temporary_beside(path)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// How a path is written.
enum Target {
    /// A regular file or nothing yet, behind any symbolic links.
    Replaced(PathBuf),
    /// A pipe or a device, which a rename would destroy; or a folder, which refuses to be opened.
    WrittenInPlace,
}

impl Target {
    fn of(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => Self::WrittenInPlace,
            _ => Self::Replaced(fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())),
        }
    }
}

/// An empty file in the folder of `path`, so that a rename stays within one file system.
fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(io::ErrorKind::IsADirectory.into()),
    };
    let mut builder = tempfile::Builder::new();
    // The user's umask decides, as it does for any other new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        for contents in ["first, and long", "second"] {
            check(&path).map_err(io::Error::other)?;
            replace(&path, contents.as_bytes()).map_err(io::Error::other)?;
            assert_eq!(fs::read_to_string(&path)?, contents, "contents");
        }
        assert_eq!(fs::read_dir(folder.path())?.count(), 1, "a temporary file was left behind");
        Ok(())
    }

    #[test]
    fn a_check_keeps_the_contents() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        fs::write(&path, "kept")?;
        check(&path).map_err(io::Error::other)?;
        assert_eq!(fs::read_to_string(&path)?, "kept", "contents");
        Ok(())
    }

    #[test]
    fn folders_and_paths_below_files_are_refused() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("file");
        fs::write(&file, "")?;
        for path in [
            folder.path().to_owned(),
            file.join("below"),
            folder.path().join("none/below"),
            "/".into(),
            "".into(),
        ] {
            assert!(check(&path).is_err(), "check({})", path.display());
            assert!(replace(&path, b"contents").is_err(), "replace({})", path.display());
        }
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn symbolic_links_stay_links() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old")?;
        std::os::unix::fs::symlink(&file, &link)?;
        replace(&link, b"new").map_err(io::Error::other)?;
        assert_eq!(fs::read_to_string(&file)?, "new", "the file behind the link");
        assert!(fs::symlink_metadata(&link)?.is_symlink(), "the link became a file");
        Ok(())
    }
}
