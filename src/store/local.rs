//! Local files: reads at offsets through handles that are kept open, and atomic writes.

use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind as Io, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;

use super::pool::Pool;
use super::url::{Location, lossy};
use super::{Object, changed};
use crate::{Error, ErrorKind, Result};

/// Open files; the least recently used is closed first.
#[derive(Debug)]
pub(super) struct Files {
    limit: usize,
    open: Mutex<HashMap<PathBuf, Handle>>,
    clock: AtomicU64,
    /// Folders whose file system tells what is in the page cache. Others may be far away: even opening a file there may take long.
    known: RwLock<HashSet<PathBuf>>,
}

#[derive(Debug)]
struct Handle {
    file: Arc<File>,
    used: u64,
}

impl Files {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), open: Mutex::default(), clock: AtomicU64::new(0), known: RwLock::default() }
    }

    /// Returns an open handle of the file in the version that `object` was listed in.
    fn get(&self, path: &Path, object: &Object) -> Result<Arc<File>> {
        let used = self.clock.fetch_add(1, Ordering::Relaxed);
        let cached = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.get_mut(path).map(|handle| {
                handle.used = used;
                Arc::clone(&handle.file)
            })
        };
        if let Some(file) = cached {
            // Another file may have been moved to this name since; then it is opened again.
            if file.metadata().is_ok_and(|metadata| difference(&metadata, object).is_none()) {
                return Ok(file);
            }
        }
        let file = File::open(path).map_err(|e| io_error(e, "cannot open the file"))?;
        let metadata = file.metadata().map_err(|e| io_error(e, "cannot look at the file"))?;
        if let Some(difference) = difference(&metadata, object) {
            return Err(changed(difference));
        }
        let file = Arc::new(file);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= self.limit
            && !open.contains_key(path)
            && let Some(oldest) = open.iter().min_by_key(|(_, handle)| handle.used).map(|(path, _)| path.clone())
        {
            open.remove(&oldest);
        }
        open.insert(path.to_owned(), Handle { file: Arc::clone(&file), used });
        Ok(file)
    }

    /// Reads exactly `range` (blocking). Also returns whether all of it was in the kernel's page cache.
    pub(super) fn read(
        &self,
        pool: &Arc<Pool>,
        path: &Path,
        object: &Object,
        range: Range<u64>,
    ) -> Result<(Bytes, bool)> {
        let file = self.get(path, object)?;
        let len = usize::try_from(range.end - range.start).map_err(|_| Error::config("a range longer than memory"))?;
        let (mut buffer, mut all_cached) = (pool.take(len)?, true);
        for (piece, offset) in buffer.fill(len).chunks_mut(PIECE).zip((range.start..).step_by(PIECE)) {
            let copied = if all_cached { copy_cached(&file, piece, offset) } else { 0 };
            if copied == piece.len() {
                continue;
            }
            all_cached = false;
            file.read_exact_at(&mut piece[copied..], offset + copied as u64).map_err(|e| match e.kind() {
                Io::UnexpectedEof => changed(format!("the file ends before byte {}", range.end)),
                _ => io_error(e, "cannot read the file").byte_offset(offset),
            })?;
        }
        if all_cached && !self.knows_folder_of(path) {
            let folder = path.parent().map(Path::to_owned);
            self.known.write().unwrap_or_else(PoisonError::into_inner).extend(folder);
        }
        Ok((buffer.freeze(), all_cached))
    }

    /// Returns whether the file system of a file's folder is known to tell what is in the page cache.
    fn knows_folder_of(&self, path: &Path) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        path.parent().is_some_and(|folder| known.contains(folder))
    }

    /// Reads exactly `range` without waiting for a disk: returns `None` unless all of it is in the kernel's page cache, and a file of the same folder
    /// was before.
    pub(super) fn read_cached(
        &self,
        pool: &Arc<Pool>,
        path: &Path,
        object: &Object,
        range: Range<u64>,
    ) -> Result<Option<Bytes>> {
        if !self.knows_folder_of(path) {
            return Ok(None);
        }
        let file = self.get(path, object)?;
        let Ok(len) = usize::try_from(range.end - range.start) else { return Ok(None) };
        let mut buffer = pool.take(len)?;
        let mut pieces = buffer.fill(len).chunks_mut(PIECE).zip((range.start..).step_by(PIECE));
        let all_cached = pieces.all(|(piece, offset)| copy_cached(&file, piece, offset) == piece.len());
        Ok(all_cached.then(|| buffer.freeze()))
    }
}

/// Copies what the kernel's page cache has of a file from `offset` on, as far as it goes; returns how many bytes that was. Where the system or the
/// file system cannot tell what it has, that is none.
fn copy_cached(file: &File, piece: &mut [u8], offset: u64) -> usize {
    #[cfg(target_os = "linux")]
    {
        use rustix::io::{ReadWriteFlags, preadv2};
        let mut into = [io::IoSliceMut::new(piece)];
        preadv2(file, &mut into, offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
    }
    #[cfg(not(target_os = "linux"))]
    {
        _ = (file, piece, offset);
        0
    }
}

/// The bytes that one call reads. On servers (`PREEMPT_NONE`) Linux does not give up the core while it copies them: a loop that wakes up meanwhile
/// waits for the rest, which takes a millisecond for 4 MiB.
const PIECE: usize = 256 << 10;

/// Returns how a file differs from what was listed.
fn difference(metadata: &Metadata, object: &Object) -> Option<String> {
    if metadata.len() != object.size {
        return Some(format!("it had {} bytes when it was listed and has {} now", object.size, metadata.len()));
    }
    let modified = modified(metadata);
    (object.modified.is_some() && object.modified != Some(modified))
        .then(|| "it was written again since it was listed, with the same size".to_owned())
}

fn modified(metadata: &Metadata) -> i64 {
    metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())
}

/// Describes a regular file (blocking).
pub(super) fn head(path: &Path) -> Result<Object> {
    let metadata = std::fs::metadata(path).map_err(|e| io_error(e, "no such file"))?;
    object(path, &metadata)
}

/// Returns the object of a path whose metadata is known.
pub(super) fn object(path: &Path, metadata: &Metadata) -> Result<Object> {
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "a folder" } else { "no regular file" };
        return Err(
            Error::config(format!("{what}, where a file is needed")).advice("a folder's files are listed by folder/")
        );
    }
    let url = Location::Local(path.to_owned()).url();
    Ok(Object { url: url.into(), size: metadata.len(), etag: None, modified: Some(modified(metadata)) })
}

/// Writes a file that appears whole or not at all (blocking).
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::config("not the name of a file"));
    };
    std::fs::create_dir_all(folder).map_err(|e| io_error(e, "cannot make the folder"))?;
    // Hidden, so that a listing of the folder beside this write does not find it.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}-{number}.part", std::process::id()));
    let temporary = folder.join(temporary);
    let written = File::create_new(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|e| {
        // The first error is the one to report; when this fails too, a hidden file is left behind.
        _ = std::fs::remove_file(&temporary);
        io_error(e, "cannot write the file")
    })
}

/// Describes the folder's content or the nearest folder that exists, for the error of a missing file.
pub(super) fn near(path: &Path) -> String {
    let Some(folder) = path.ancestors().skip(1).find(|folder| folder.is_dir()) else { return String::new() };
    if path.parent() != Some(folder) {
        return format!("the path exists up to {}", lossy(folder));
    }
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_file()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    super::list::describe(names.len(), false, &names, &format!("{}/", lossy(folder).trim_end_matches('/')))
}

/// Returns an error of the file system.
pub(super) fn io_error(error: io::Error, what: &'static str) -> Error {
    let kind = match error.kind() {
        Io::NotFound | Io::NotADirectory => ErrorKind::NotFound,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Access,
        _ => ErrorKind::Transfer,
    };
    Error::new(kind, what).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> (PathBuf, Object) {
        let path = folder.path().join(name);
        write(&path, bytes).unwrap();
        let object = head(&path).unwrap();
        (path, object)
    }

    #[test]
    fn one_buffer_serves_read_after_read() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        let (path, object) = file(&folder, "a", &content);
        let (files, pool) = (Files::new(4), Pool::alone(1 << 20));
        let mut addresses = std::collections::HashSet::new();
        for start in 0..50u64 {
            let bytes = files.read(&pool, &path, &object, start..start + 100_000).unwrap().0;
            assert_eq!(bytes, content[start as usize..start as usize + 100_000]);
            addresses.insert(bytes.as_ptr());
        }
        assert_eq!(addresses.len(), 1);
        assert_eq!(files.open.lock().unwrap().len(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_comes_whole_however_much_of_it_is_in_memory() {
        use rustix::fs::{Advice, fadvise};
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3 * PIECE as u32 + 7).map(|i| (i >> 3) as u8).collect();
        let (path, object) = file(&folder, "a", &content);
        let (files, pool) = (Files::new(4), Pool::alone(1 << 20));
        let all = 0..content.len() as u64;
        // Where the file system says what it has in memory, what was just written is there.
        let (bytes, cached) = files.read(&pool, &path, &object, all.clone()).unwrap();
        assert_eq!(bytes, content);
        assert_eq!(files.read_cached(&pool, &path, &object, all.clone()).unwrap(), cached.then_some(bytes));
        // Without its first piece, or its second: if the system does as it is asked.
        for first in 0..2 {
            let handle = File::open(&path).unwrap();
            fadvise(&handle, (first * PIECE) as u64, std::num::NonZeroU64::new(PIECE as u64), Advice::DontNeed)
                .unwrap();
            let copied = files.read_cached(&pool, &path, &object, all.clone()).unwrap();
            assert!(copied.is_none_or(|copied| copied == content));
            assert_eq!(files.read(&pool, &path, &object, all.clone()).unwrap().0, content);
        }
        let error = files.read_cached(&pool, &path, &Object { size: 3, ..object }, 0..3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }

    #[test]
    fn handles_are_bounded_and_the_oldest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let (files, pool) = (Files::new(2), Pool::alone(0));
        let all: Vec<_> = ["a", "b", "c"].iter().map(|name| file(&folder, name, name.as_bytes())).collect();
        for at in [0, 1, 0, 2] {
            files.read(&pool, &all[at].0, &all[at].1, 0..1).unwrap();
        }
        let open = files.open.lock().unwrap();
        assert!(open.len() == 2 && open.contains_key(&all[0].0) && open.contains_key(&all[2].0));
    }

    #[test]
    fn a_file_that_grew_or_shrank_names_both_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let (path, object) = file(&folder, "a", b"0123456789");
        let (files, pool) = (Files::new(2), Pool::alone(0));
        files.read(&pool, &path, &object, 0..10).unwrap();
        for bytes in [&b"01234"[..], b"0123456789ab"] {
            std::fs::write(&path, bytes).unwrap();
            let error = files.read(&pool, &path, &object, 0..2).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(
                error.to_string().contains("10 bytes")
                    && error.to_string().contains(&format!("has {} now", bytes.len()))
            );
        }
    }

    #[test]
    fn a_file_replaced_under_its_name_is_opened_again_for_its_new_listing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _) = file(&folder, "a", b"old");
        let (files, pool) = (Files::new(2), Pool::alone(0));
        files.read(&pool, &path, &head(&path).unwrap(), 0..3).unwrap();
        write(&path, b"newer").unwrap();
        assert_eq!(files.read(&pool, &path, &head(&path).unwrap(), 0..5).unwrap().0, "newer");
    }

    #[test]
    fn a_write_leaves_nothing_but_the_file() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("deep/er/a"), b"x").unwrap();
        write(&folder.path().join("deep/er/a"), b"y").unwrap();
        let names: Vec<_> =
            std::fs::read_dir(folder.path().join("deep/er")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a"]);
        assert_eq!(std::fs::read(folder.path().join("deep/er/a")).unwrap(), b"y");
        // A folder in the way: the error leaves no part behind.
        std::fs::create_dir(folder.path().join("taken")).unwrap();
        std::fs::write(folder.path().join("taken/x"), "").unwrap();
        write(&folder.path().join("taken"), b"x").unwrap_err();
        assert!(
            !std::fs::read_dir(folder.path()).unwrap().any(|e| e
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains(".part"))
        );
    }
}
