//! Saves byte strings of records as files.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Writes files into one folder. Their names are made from the content of records, which is not trusted.
pub(super) struct Saver {
    dir: PathBuf,
    force: bool,
    /// Names used in this run.
    given: HashSet<String>,
}

/// The longest part of a name that comes from data: file systems allow 255 bytes for a whole name.
const PART_BYTES: usize = 80;

impl Saver {
    /// Creates a saver and its folder; with `force` the saver replaces files from before this run.
    pub(super) fn new(dir: &Path, force: bool) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|error| refused(dir, error))?;
        Ok(Self { dir: dir.to_owned(), force, given: HashSet::new() })
    }

    /// Writes a file called `<shard>-<record>-<column>[-<value>].<extension>` and returns its path.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the file exists, [`ErrorKind::Access`] if it cannot be written.
    pub(super) fn save(
        &mut self,
        url: &str,
        record: u64,
        column: &str,
        value: Option<usize>,
        extension: &str,
        bytes: &[u8],
    ) -> Result<String> {
        let shard = stem(url);
        let value = value.map(|value| format!("-{value}")).unwrap_or_default();
        let stem = format!("{}-{record}-{}{value}", plain(&shard), plain(column));
        // Names that differ only in what is not plain, or in their folders, are told apart by a number.
        let names =
            (1..).map(|n| if n == 1 { format!("{stem}.{extension}") } else { format!("{stem}~{n}.{extension}") });
        let mut names = names.filter(|name| !self.given.contains(name));
        let name = names.next().expect("numbers do not end");
        let path = self.dir.join(&name);
        if self.force {
            // Removed first: what is written never goes through a link that stood there.
            _ = std::fs::remove_file(&path);
        }
        let written = std::fs::File::create_new(&path).and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| refused(&path, error))?;
        self.given.insert(name);
        Ok(path.display().to_string())
    }
}

/// Returns a shard's name without the parts that all shards have in common: `train.tfrecord-00000-of-00010` becomes `train-00000-of-00010`.
fn stem(url: &str) -> String {
    let name = url.rsplit('/').next().unwrap_or(url);
    let compressed = [".gz", ".gzip", ".zlib", ".zz"].iter().find_map(|end| name.strip_suffix(end));
    let name = compressed.unwrap_or(name).replacen(".tfrecords", "", 1).replacen(".tfrecord", "", 1);
    if name.is_empty() { "shard".to_owned() } else { name }
}

fn refused(path: &Path, error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::AlreadyExists {
        let message = format!("{} exists and is not overwritten", path.display());
        return Error::config(message).advice("name another folder, or replace such files with --force");
    }
    Error::new(ErrorKind::Access, format!("{} cannot be written", path.display())).because(error)
}

/// Keeps letters, digits, `_`, `-` and inner dots; everything else becomes `_`.
fn plain(part: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' };
    let plain: String = part.chars().map(plain).take(PART_BYTES).collect();
    plain.trim_matches('.').replace("..", "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_folder_and_differ() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("out");
        let mut saver = Saver::new(&dir, false).unwrap();
        let mut name = |column: &str, value| {
            let path = saver.save("file:///a/../x/train-00.tfrecord.gz", 7, column, value, "bin", b"abc").unwrap();
            let path = Path::new(&path);
            assert_eq!(path.parent(), Some(&*dir));
            assert_eq!(std::fs::read(path).unwrap(), b"abc");
            path.file_name().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(name("image/encoded", None), "train-00-7-image_encoded.bin");
        assert_eq!(name("image_encoded", None), "train-00-7-image_encoded~2.bin");
        assert_eq!(name("../../etc", Some(2)), "train-00-7-___etc-2.bin");
        assert_eq!(name("", None), "train-00-7-.bin");
        assert!(name(&"é".repeat(1000), None).len() < 120);
    }

    #[test]
    fn stems_keep_what_tells_shards_apart() {
        assert_eq!(stem("gs://b/d/ds-train.tfrecord-00003-of-00010"), "ds-train-00003-of-00010");
        assert_eq!(stem("a/part.7.tfrecord.gz"), "part.7");
        assert_eq!((stem("a/.tfrecord"), stem("a.tfrecords")), ("shard".into(), "a".into()));
    }

    #[test]
    fn files_are_replaced_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let save = |force, bytes: &[u8]| Saver::new(dir.path(), force).unwrap().save("s", 0, "c", None, "bin", bytes);
        let path = save(false, b"one").unwrap();
        let error = save(false, b"two").unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains("--force"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        save(true, b"three").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        let below = dir.path().join("s-0-c.bin/below");
        assert_eq!(Saver::new(&below, false).err().unwrap().kind(), ErrorKind::Access);
    }
}
