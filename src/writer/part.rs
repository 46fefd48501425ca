//! Files that appear whole or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// A file in progress: it is written under a hidden name in the same folder, and removed unless it is finished.
///
/// Only one process at a time writes into the folder (it holds the folder's lock), so the hidden name is fixed, and a leftover of an interrupted run
/// under that name does no harm.
pub(crate) struct Part {
    file: Option<File>,
    hidden: PathBuf,
    path: PathBuf,
}

/// Returns the name that a file has until it is complete.
pub(crate) fn hidden_name(name: &str) -> String {
    format!(".{name}.part")
}

impl Part {
    /// Begins the file `name` in `folder`.
    pub(crate) fn create(folder: &Path, name: &str) -> Result<Self> {
        let (hidden, path) = (folder.join(hidden_name(name)), folder.join(name));
        // `create_new` does not follow a link that somebody put there.
        let file = remove_if_there(&hidden).and_then(|()| File::create_new(&hidden));
        let file = file.map_err(|e| failed(e, "cannot create the file", &hidden))?;
        Ok(Self { file: Some(file), hidden, path })
    }

    /// Returns the path that the file will get.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the content to the disk and leaves it under its hidden name, for callers that name several files at once.
    pub(crate) fn hold(mut self) -> Result<()> {
        let file = self.file.take().expect("there until finished");
        file.sync_all().map_err(|e| {
            _ = std::fs::remove_file(&self.hidden);
            failed(e, "cannot write the file", &self.path)
        })
    }

    /// Syncs the content to the disk and gives the file its name. Returns its size.
    pub(crate) fn finish(mut self) -> Result<u64> {
        let file = self.file.take().expect("there until finished");
        let named = file
            .sync_all()
            .and_then(|()| file.metadata())
            .and_then(|metadata| std::fs::rename(&self.hidden, &self.path).map(|()| metadata.len()));
        let bytes = named.map_err(|e| {
            _ = std::fs::remove_file(&self.hidden);
            failed(e, "cannot write the file", &self.path)
        })?;
        self.path.parent().map_or(Ok(()), sync_folder)?;
        Ok(bytes)
    }
}

impl Write for Part {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().expect("there until finished").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // It was given up; when this fails too, the next run takes it away.
            _ = std::fs::remove_file(&self.hidden);
        }
    }
}

/// Syncs the names in a folder to the disk.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|e| failed(e, "cannot synchronise the folder", folder))
}

/// Writes a small file atomically.
pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let mut part = Part::create(folder, name)?;
    part.write_all(bytes).map_err(|e| failed(e, "cannot write the file", &part.path))?;
    part.finish().map(|_| ())
}

/// Removes a file or link if it exists.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Returns a file system error at a path.
pub(crate) fn failed(error: io::Error, what: &'static str, path: &Path) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Access,
        _ => ErrorKind::Transfer,
    };
    Error::new(kind, what).because(error).url(path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_name_comes_with_the_whole_content_and_nothing_stays_of_what_was_given_up() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".a.part"), "of a run that was interrupted").unwrap();
        let mut part = Part::create(folder.path(), "a").unwrap();
        part.write_all(b"12345").unwrap();
        assert_eq!(names(folder.path()), [".a.part"]);
        assert_eq!(part.finish().unwrap(), 5);
        assert_eq!(names(folder.path()), ["a"]);
        drop(Part::create(folder.path(), "b").unwrap());
        assert_eq!(names(folder.path()), ["a"]);
        assert_eq!(std::fs::read(folder.path().join("a")).unwrap(), b"12345");
    }

    #[test]
    fn links_under_either_name_are_replaced_and_not_followed() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = other.path().join("precious");
        std::fs::write(&target, "as it was").unwrap();
        for name in ["a", ".a.part"] {
            std::os::unix::fs::symlink(&target, folder.path().join(name)).unwrap();
        }
        write(folder.path(), "a", b"new").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"as it was");
        assert!(std::fs::symlink_metadata(folder.path().join("a")).unwrap().is_file());
    }

    #[test]
    fn a_folder_in_the_way_is_an_error_that_leaves_no_part() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        assert!(write(folder.path(), "a", b"new").is_err());
        assert_eq!(names(folder.path()), ["a"]);
    }
}
