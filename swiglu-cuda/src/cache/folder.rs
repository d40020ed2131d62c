//! The folder on disk. What is checked is what is used: owner and mode are those of the opened folder, and files are
//! opened relative to it, not by a path that could lead elsewhere a moment later.

pub(super) use system::Folder;

#[cfg(unix)]
mod system {
    use std::collections::hash_map::RandomState;
    use std::fs::{DirBuilder, File, Metadata};
    use std::hash::BuildHasher as _;
    use std::io::{self, Read as _, Write as _};
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    use std::path::Path;

    use rustix::fs::{AtFlags, Mode, OFlags};
    use rustix::io::Errno;

    use super::super::Trouble;

    /// A folder that belongs to this user and that nobody else may write to.
    #[derive(Debug)]
    pub(crate) struct Folder(File);

    impl Folder {
        /// `None` where there is none.
        pub(crate) fn open(path: &Path) -> Result<Option<Self>, Trouble> {
            // A symbolic link is followed: where it leads to is checked like any other folder.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let file = match rustix::fs::open(path, flags, Mode::empty()) {
                Ok(descriptor) => File::from(descriptor),
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(io("opening the folder")(error.into())),
            };
            let metadata = file.metadata().map_err(io("inspecting the folder"))?;
            check(&metadata)?;
            Ok(Some(Self(file)))
        }

        /// Makes it, for this user alone, where there is none.
        pub(crate) fn make(path: &Path) -> Result<Self, Trouble> {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(io("making the folder"))?;
            let gone = || io("opening the folder")(io::ErrorKind::NotFound.into());
            Self::open(path)?.ok_or_else(gone)
        }

        /// The whole file; `None` where there is none.
        pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Trouble> {
            // NONBLOCK: to open a pipe would wait for a writer.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = match rustix::fs::openat(&self.0, name, flags, Mode::empty()) {
                Ok(descriptor) => File::from(descriptor),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP) => return Err(Trouble::NoFile { name: name.to_owned() }),
                Err(error) => return Err(io("opening an entry")(error.into())),
            };
            let metadata = file.metadata().map_err(io("inspecting an entry"))?;
            if !metadata.is_file() {
                return Err(Trouble::NoFile { name: name.to_owned() });
            }
            let in_entry = |refusal| Trouble::Entry { name: name.to_owned(), refusal: Box::new(refusal) };
            check(&metadata).map_err(in_entry)?;
            if metadata.len() > limit {
                return Err(Trouble::TooLarge { bytes: metadata.len(), limit });
            }
            let mut bytes = Vec::new();
            file.take(limit).read_to_end(&mut bytes).map_err(io("reading an entry"))?;
            Ok(Some(bytes))
        }

        /// Writes the whole file, for this user alone, or nothing: under another name first, so that whoever reads or
        /// writes it at the same time meets a complete file.
        pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Trouble> {
            // Std's own random numbers: no two threads or processes pick the same name, and EXCL would tell.
            let temporary = format!("{name}.{:016x}", RandomState::new().hash_one(name));
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let file = rustix::fs::openat(&self.0, &temporary, flags, mode);
            let file = file.map_err(|error| io("making a file")(error.into()))?;
            let written = fill(File::from(file), bytes).and_then(|()| {
                let renamed = rustix::fs::renameat(&self.0, &temporary, &self.0, name);
                renamed.map_err(|error| io("renaming a file")(error.into()))
            });
            if written.is_err() {
                // A file that cannot be removed either is never read: no key has its name.
                let _ = rustix::fs::unlinkat(&self.0, &temporary, AtFlags::empty());
            }
            written
        }
    }

    /// On disk before it gets its name: after a crash there is the whole file or none.
    fn fill(mut file: File, bytes: &[u8]) -> Result<(), Trouble> {
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("writing a file"))
    }

    fn check(metadata: &Metadata) -> Result<(), Trouble> {
        let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
        if owner != user {
            return Err(Trouble::Owner { owner, user });
        }
        let mode = metadata.mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(Trouble::Writable { mode });
        }
        Ok(())
    }

    fn io(doing: &'static str) -> impl Fn(io::Error) -> Trouble {
        move |error| Trouble::Io { doing, error }
    }
}

/// Owner and mode are Unix's, and nothing else is checked in their place: no folder is ever used.
#[cfg(not(unix))]
mod system {
    use std::path::Path;

    use super::super::Trouble;

    #[derive(Debug)]
    pub(crate) enum Folder {}

    impl Folder {
        pub(crate) fn open(_: &Path) -> Result<Option<Self>, Trouble> {
            Err(Trouble::Unchecked)
        }

        pub(crate) fn make(_: &Path) -> Result<Self, Trouble> {
            Err(Trouble::Unchecked)
        }

        pub(crate) fn read(&self, _: &str, _: u64) -> Result<Option<Vec<u8>>, Trouble> {
            match *self {}
        }

        pub(crate) fn write(&self, _: &str, _: &[u8]) -> Result<(), Trouble> {
            match *self {}
        }
    }
}
