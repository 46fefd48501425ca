//! What was read from stores, kept on a local disk for the next time.
//!
//! A folder of data (`gs://bucket/train`) has a folder in the cache. There an object has two files: its bytes, as far as they were read, each at its own
//! offset in a sparse file, and a log of the ranges that are there, each with a checksum. Nothing else says what is there: a record of the log is written
//! behind its bytes, by one call, so that several processes share a cache, and one that is killed leaves nothing that is believed in and wrong. Whatever
//! cannot be read, or is not what its checksum says, is asked of the store again.
//!
//! Where it is full nothing is thrown out for what comes: of a data set that is larger than the cache, and read over and over, the same part stays. Room is made of folders that no
//! process uses, which hold a lock on those that they do, the longest unused first.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::Object;
use super::local::io_error;
use super::pool::{Buffer, Pool};
use crate::{Error, Result};

/// What a log begins with; the version of the object follows, and zeros.
const MAGIC: &[u8; 16] = b"forebay cache 1\n";
const HEADER: usize = 32;
/// Start, length, checksum of the bytes, checksum of this record, version. None lies on two pages of memory, so that nobody sees a half of one.
const RECORD: usize = 32;

/// The file of a folder that says whose it is, and is locked by processes that use it.
const FOLDER: &str = "folder";

/// Bytes that are read or written by one call, as of local files.
const PIECE: usize = 256 << 10;

/// For so long a cache that found nothing to make room of does not look again.
const FULL_FOR: Duration = Duration::from_secs(60);

/// A folder on a local disk, and what this process knows of it.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    limit: u64,
    /// Bytes in it, of all processes; as of the last look, and what was added since.
    used: AtomicU64,
    added: AtomicU64,
    /// Whether it cannot be written to any more.
    broken: AtomicBool,
    full_until: Mutex<Option<Instant>>,
    folders: Mutex<HashMap<String, Folder>>,
    entries: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
}

/// The folder of a folder of data, locked for as long as this process may use it.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    _lock: File,
}

/// One object of one version.
#[derive(Debug)]
pub(super) struct Entry {
    data: PathBuf,
    log: PathBuf,
    version: u64,
    known: Mutex<Known>,
}

/// The ranges that are there, by their starts. They may overlap, but none lies within another.
#[derive(Debug, Default)]
struct Known {
    pieces: BTreeMap<u64, Piece>,
    /// Bytes of the log that were read; 0 before its header was.
    read_to: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    end: u64,
    crc: u32,
}

/// What the cache has of a range.
pub(super) enum Found {
    All(Buffer),
    /// All but this part of it, which the rest of the buffer lacks.
    Part(Buffer, Range<u64>),
    /// Nothing, or so little that it is not worth while.
    Nothing,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// Opens a cache, or makes one (blocking).
    ///
    /// # Errors
    /// A folder that cannot be made or written to.
    pub(super) fn open(root: &Path, limit: u64) -> Result<Self> {
        let failed = |e| {
            io_error(e, "the cache's folder cannot be used")
                .url(root.to_string_lossy().into_owned())
                .advice("name a folder on a local disk that can be written to: StoreOptions::cache(folder, bytes)")
        };
        let probe = root.join(format!(".probe-{}", std::process::id()));
        fs::create_dir_all(root).and_then(|()| File::create(&probe)).map_err(failed)?;
        _ = fs::remove_file(probe);
        let used = bytes_in(root);
        Ok(Self {
            root: root.to_owned(),
            limit,
            used: AtomicU64::new(used),
            added: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            full_until: Mutex::default(),
            folders: Mutex::default(),
            entries: Mutex::default(),
        })
    }

    /// The entry of an object (blocking); none of one whose versions cannot be told apart.
    pub(super) fn entry(&self, object: &Object) -> Option<Arc<Entry>> {
        let version = match (&object.etag, object.modified) {
            (None, None) => return None,
            (etag, modified) => xxh3_64(format!("{} {etag:?} {modified:?} {}", object.url, object.size).as_bytes()),
        };
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.get(&object.url).filter(|entry| entry.version == version) {
            return Some(entry.clone());
        }
        let folder = self.folder(object.url.rsplit_once('/').map_or("", |(folder, _)| folder)).ok()?;
        let name = format!("{:032x}", xxh3_128(object.url.as_bytes()));
        let [data, log] = ["data", "log"].map(|kind| folder.join(format!("{name}.{kind}")));
        let entry = Arc::new(Entry { data, log, version, known: Mutex::default() });
        entries.insert(object.url.clone(), entry.clone());
        Some(entry)
    }

    /// The folder of a folder of data, which is held from now on.
    fn folder(&self, url: &str) -> io::Result<PathBuf> {
        let mut folders = lock(&self.folders);
        if let Some(folder) = folders.get(url) {
            return Ok(folder.path.clone());
        }
        let path = self.root.join(format!("{:016x}", xxh3_64(url.as_bytes())));
        let held = path.join(FOLDER);
        let lock = loop {
            fs::create_dir_all(&path)?;
            let mut file = OpenOptions::new().create(true).append(true).open(&held)?;
            file.lock_shared()?;
            // Another process may have removed the folder while this one waited for the lock.
            if fs::metadata(&held).is_ok_and(|now| file.metadata().is_ok_and(|mine| now.ino() == mine.ino())) {
                if file.metadata()?.len() == 0 {
                    file.write_all(url.as_bytes())?;
                }
                file.set_modified(SystemTime::now())?;
                break file;
            }
        };
        folders.insert(url.to_owned(), Folder { path: path.clone(), _lock: lock });
        Ok(path)
    }

    /// Keeps what was read of an object (blocking). Where that fails it is read again another time, and a disk that is full is not tried again.
    pub(super) fn keep(&self, entry: &Entry, start: u64, bytes: &Bytes) {
        let len = bytes.len() as u64;
        if self.broken.load(Ordering::Relaxed) || !self.has_room(len) {
            return;
        }
        match entry.write(start, bytes) {
            Ok(()) => {
                self.used.fetch_add(len, Ordering::Relaxed);
                self.added.fetch_add(len, Ordering::Relaxed);
            }
            Err(error) => {
                use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
                let lasts = matches!(error.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull);
                self.broken.fetch_or(lasts, Ordering::Relaxed);
            }
        }
    }

    /// Whether so many bytes more fit, once room is made where it can be.
    fn has_room(&self, len: u64) -> bool {
        // Other processes add too.
        if self.added.load(Ordering::Relaxed) > self.limit / 32 {
            self.added.store(0, Ordering::Relaxed);
            // What was written a moment ago may not be on the disk yet.
            self.used.fetch_max(bytes_in(&self.root), Ordering::Relaxed);
        }
        let fits = || self.used.load(Ordering::Relaxed).saturating_add(len) <= self.limit;
        if fits() {
            return true;
        }
        let Ok(mut full_until) = self.full_until.try_lock() else { return false };
        if len > self.limit || full_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        for folder in self.unused() {
            if fits() {
                break;
            }
            let freed = remove(&folder).unwrap_or(0);
            _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(freed)));
        }
        *full_until = (!fits()).then(|| Instant::now() + FULL_FOR);
        full_until.is_none()
    }

    /// Folders that this process does not use, the longest unused first.
    fn unused(&self) -> Vec<PathBuf> {
        let mine: Vec<PathBuf> = lock(&self.folders).values().map(|folder| folder.path.clone()).collect();
        let used_at = |path: &PathBuf| fs::metadata(path.join(FOLDER)).and_then(|at| at.modified()).ok();
        let mut folders: Vec<_> = folders_of(&self.root).filter(|path| !mine.contains(path)).collect();
        folders.sort_by_key(used_at);
        folders
    }
}

/// Removes a folder that no process uses, and says how many bytes it had.
fn remove(folder: &Path) -> io::Result<u64> {
    let held = File::open(folder.join(FOLDER))?;
    held.try_lock()?;
    let mut freed = 0;
    for file in fs::read_dir(folder)? {
        let file = file?;
        freed += file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        fs::remove_file(file.path())?;
    }
    fs::remove_dir(folder)?;
    Ok(freed)
}

fn folders_of(root: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join(FOLDER).is_file())
}

/// Bytes on the disk in the folders of a cache.
fn bytes_in(root: &Path) -> u64 {
    let files = folders_of(root).flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

impl Entry {
    /// Reads a range as far as it is there (blocking).
    ///
    /// # Errors
    /// No memory for it.
    pub(super) fn read(&self, pool: &Arc<Pool>, range: &Range<u64>) -> Result<Found> {
        let (mut pieces, mut missing) = lock(&self.known).cover(range);
        // Another thread may just have done so.
        if !missing.is_empty() && self.refresh().is_ok() {
            (pieces, missing) = lock(&self.known).cover(range);
        }
        let wanted = range.end - range.start;
        if (missing.end - missing.start) * 2 > wanted {
            return Ok(Found::Nothing);
        }
        let Ok(file) = File::open(&self.data) else {
            return Ok(Found::Nothing);
        };
        let len = usize::try_from(wanted).map_err(|_| Error::config("a range longer than memory"))?;
        let mut buffer = pool.take(len)?;
        let memory = buffer.fill(len);
        for (start, piece) in pieces {
            let part = start.max(range.start)..piece.end.min(range.end);
            let into = &mut memory[(part.start - range.start) as usize..(part.end - range.start) as usize];
            if read_piece(&file, start, piece, part, into).is_err() {
                // Another process replaced it, or the disk lost it.
                lock(&self.known).pieces.remove(&start);
                return Ok(Found::Nothing);
            }
        }
        Ok(if missing.is_empty() { Found::All(buffer) } else { Found::Part(buffer, missing) })
    }

    /// Reads what the log has more than is known.
    fn refresh(&self) -> io::Result<()> {
        let mut known = lock(&self.known);
        let log = File::open(&self.log)?;
        let len = log.metadata()?.len();
        if len < known.read_to {
            // It was begun anew.
            *known = Known::default();
        }
        if known.read_to == 0 {
            let mut header = [0; HEADER];
            log.read_exact_at(&mut header, 0)?;
            if header != self.header() {
                return Ok(());
            }
            known.read_to = HEADER as u64;
        }
        let mut records = vec![0; ((len - known.read_to) as usize) / RECORD * RECORD];
        log.read_exact_at(&mut records, known.read_to)?;
        for record in records.chunks_exact(RECORD) {
            // What is damaged is passed over, for records behind it stand where they should; and so is what another process wrote of another version.
            if let Some((start, piece)) = parse(self.version, record) {
                known.add(start, piece);
            }
            known.read_to += RECORD as u64;
        }
        Ok(())
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        header[MAGIC.len()..][..8].copy_from_slice(&self.version.to_le_bytes());
        header
    }

    fn write(&self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.begin()?;
        let data = OpenOptions::new().create(true).truncate(false).write(true).open(&self.data)?;
        for (piece, at) in bytes.chunks(PIECE).zip((start..).step_by(PIECE)) {
            data.write_all_at(piece, at)?;
        }
        let piece = Piece { end: start + bytes.len() as u64, crc: crc32c::crc32c(bytes) };
        OpenOptions::new().append(true).open(&self.log)?.write_all(&record(self.version, start, piece))?;
        lock(&self.known).add(start, piece);
        Ok(())
    }

    /// Sees to it that the log is of this version. Another is replaced as a whole (a process that still has that version reads bytes which are not what it
    /// knows), and so is one that a process was killed in, which would part all records behind it in the middle.
    fn begin(&self) -> io::Result<()> {
        let mut known = lock(&self.known);
        let mut header = [0; HEADER];
        let log = File::open(&self.log).and_then(|log| log.read_exact_at(&mut header, 0).and(log.metadata()));
        let is_whole = log.is_ok_and(|log| (log.len() - HEADER as u64).is_multiple_of(RECORD as u64));
        if !is_whole || header != self.header() {
            let part = self.log.with_extension(format!("part-{}", std::process::id()));
            _ = fs::remove_file(&self.data);
            fs::write(&part, self.header())?;
            fs::rename(&part, &self.log)?;
            *known = Known::default();
        }
        Ok(())
    }
}

impl Known {
    /// Adds a piece, unless it lies within another; those that lie within it are left out.
    fn add(&mut self, start: u64, piece: Piece) {
        if self.before(start).is_some_and(|(_, other)| other.end >= piece.end) {
            return;
        }
        while let Some((&within, _)) = self.pieces.range(start..).next().filter(|(_, other)| other.end <= piece.end) {
            self.pieces.remove(&within);
        }
        self.pieces.insert(start, piece);
    }

    /// The piece that begins last of those that hold this byte or end before it. As none lies within another, it is also the one that ends last.
    fn before(&self, at: u64) -> Option<(u64, Piece)> {
        self.pieces.range(..=at).next_back().map(|(&start, &piece)| (start, piece))
    }

    /// The pieces that a range is read from, and from the first byte to the last that is in none of them.
    fn cover(&self, range: &Range<u64>) -> (Vec<(u64, Piece)>, Range<u64>) {
        let (mut pieces, mut missing, mut at) = (Vec::new(), range.end..range.end, range.start);
        while at < range.end {
            if let Some((start, piece)) = self.before(at).filter(|(_, piece)| piece.end > at) {
                pieces.push((start, piece));
                at = piece.end;
            } else {
                let next = self.pieces.range(at + 1..range.end).next().map_or(range.end, |(&start, _)| start);
                missing = missing.start.min(at)..next;
                at = next;
            }
        }
        pieces.retain(|(start, piece)| missing.is_empty() || *start < missing.start || piece.end > missing.end);
        (pieces, missing)
    }
}

/// Reads a part of a piece, all of which has to be what its checksum says.
fn read_piece(file: &File, start: u64, piece: Piece, part: Range<u64>, into: &mut [u8]) -> io::Result<()> {
    let whole = (piece.end - start) as usize;
    let read = |memory: &mut [u8]| -> io::Result<()> {
        let mut crc = 0;
        for (chunk, at) in memory.chunks_mut(PIECE).zip((start..).step_by(PIECE)) {
            file.read_exact_at(chunk, at)?;
            crc = crc32c::crc32c_append(crc, chunk);
        }
        if crc == piece.crc { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    };
    if into.len() == whole {
        return read(into);
    }
    let mut memory = vec![0; whole];
    read(&mut memory)?;
    into.copy_from_slice(&memory[(part.start - start) as usize..][..into.len()]);
    Ok(())
}

fn record(version: u64, start: u64, piece: Piece) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&start.to_le_bytes());
    record[8..16].copy_from_slice(&(piece.end - start).to_le_bytes());
    record[16..20].copy_from_slice(&piece.crc.to_le_bytes());
    record[24..].copy_from_slice(&version.to_le_bytes());
    let check = check(&record);
    record[20..24].copy_from_slice(&check.to_le_bytes());
    record
}

fn check(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..20]), &record[24..])
}

fn parse(version: u64, record: &[u8]) -> Option<(u64, Piece)> {
    let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"));
    let (start, len) = (number(0), number(8));
    let counts = check(record) == half(20) && number(24) == version;
    counts.then_some((start, Piece { end: start.checked_add(len)?, crc: half(16) }))
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::random::Key;
    use crate::store::{Store, StoreOptions};

    const MIB: usize = 1 << 20;

    fn content(seed: u64, len: usize) -> Bytes {
        let mut bytes = vec![0; len];
        rand::RngCore::fill_bytes(&mut Key::new(seed).rng(), &mut bytes);
        bytes.into()
    }

    fn put(url: &str, seed: u64, len: usize) -> Bytes {
        let bytes = content(seed, len);
        Store::memory_put(url, bytes.clone()).unwrap();
        bytes
    }

    fn store(root: &Path, limit: usize) -> Store {
        StoreOptions::new().cache(root, limit as u64).build()
    }

    /// Reads a range, and says how many bytes came from the store.
    async fn read(store: &Store, url: &str, range: Range<u64>, expected: &Bytes) -> u64 {
        let before = store.transfers();
        let object = store.head(url).await.unwrap();
        let bytes = store.read(&object, range.clone()).await.unwrap();
        assert_eq!(bytes, expected[range.start as usize..range.end as usize], "{url} {range:?}");
        let after = store.transfers();
        assert_eq!(after.bytes - before.bytes + after.cached - before.cached, range.end - range.start);
        after.bytes - before.bytes
    }

    #[tokio::test]
    async fn what_was_read_is_read_from_the_disk_by_this_process_and_others() {
        let folder = tempfile::tempdir().unwrap();
        let url = "memory://cache-shared/a folder/part 0.rec";
        let expected = put(url, 1, 3 * MIB);
        let (one, two) = (store(folder.path(), 10 * MIB), store(folder.path(), 10 * MIB));
        assert_eq!(read(&one, url, 100..2_000_000, &expected).await, 1_999_900);
        assert_eq!(read(&one, url, 100..2_000_000, &expected).await, 0);
        // A part of it, and what is behind it as well; what the other has read since.
        assert_eq!(read(&two, url, 5000..5001, &expected).await, 0);
        assert_eq!(read(&two, url, 1_900_000..2_100_000, &expected).await, 100_000);
        assert_eq!(read(&one, url, 1_900_000..2_100_000, &expected).await, 0);
        // With a gap of a hundred bytes; from the first gap to the last by one request; where more than half is missing, all of it.
        assert_eq!(read(&one, url, 2_100_100..2_200_000, &expected).await, 99_900);
        assert_eq!(read(&two, url, 2_000_000..2_200_000, &expected).await, 100);
        assert_eq!(read(&two, url, 2_200_010..2_210_000, &expected).await, 9990);
        assert_eq!(read(&two, url, 0..2_210_000, &expected).await, 2_210_000);
        assert_eq!(read(&one, url, 0..2_210_000, &expected).await, 0);
    }

    #[tokio::test]
    async fn any_ranges_of_any_versions_are_what_the_store_has() {
        for seed in 0..6 {
            let (folder, mut rng) = (tempfile::tempdir().unwrap(), Key::new(seed).rng());
            let url = format!("memory://cache-random-{seed}/x");
            let mut expected = put(&url, seed, 50_000);
            let stores = [0, 1].map(|_| store(folder.path(), 200_000));
            let entry = || {
                let files = fs::read_dir(folders_of(folder.path()).next()?).ok()?;
                files.flatten().map(|file| file.path()).find(|path| path.extension().is_some_and(|end| end == "log"))
            };
            for step in 0..300u64 {
                let start = rng.random_range(0..50_000);
                let end = rng.random_range(start..=50_000.min(start + 8000));
                read(&stores[rng.random_range(0..2)], &url, start..end, &expected).await;
                match (rng.random_range(0..30), entry()) {
                    (0, _) => expected = put(&url, seed * 1000 + step, 50_000),
                    // What a process that is killed, or a disk, leaves behind.
                    (1, Some(log)) => OpenOptions::new().append(true).open(log).unwrap().write_all(&[7; 11]).unwrap(),
                    (2, Some(log)) => {
                        File::options().write(true).open(log).unwrap().set_len(rng.random_range(0..200)).unwrap()
                    }
                    (3, Some(log)) => fs::remove_file(log.with_extension("data")).unwrap_or(()),
                    (4, Some(log)) => {
                        let data = File::options().write(true).open(log.with_extension("data"));
                        _ = data.map(|data| data.write_all_at(&[0; 5000], rng.random_range(0..50_000)));
                    }
                    _ => {}
                }
            }
        }
    }

    #[tokio::test]
    async fn bytes_of_another_version_are_not_taken_for_those_that_were_listed() {
        let folder = tempfile::tempdir().unwrap();
        let url = "memory://cache-versions/x";
        let old = put(url, 1, 10_000);
        let (one, two) = (store(folder.path(), MIB), store(folder.path(), MIB));
        let listed = one.head(url).await.unwrap();
        assert_eq!(one.read(&listed, 0..1000).await.unwrap(), old[..1000]);
        let new = put(url, 2, 10_000);
        for start in (0..10_000).step_by(1000) {
            assert_eq!(read(&two, url, start..start + 1000, &new).await, 1000);
        }
        for range in [0..1000, 2000..3000] {
            let error = one.read(&listed, range).await.unwrap_err();
            assert!(error.to_string().contains("list it again"), "{error}");
        }
        assert_eq!(read(&one, url, 2000..3000, &new).await, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn reads_at_the_same_time_lose_nothing() {
        for round in 0..20u64 {
            let folder = tempfile::tempdir().unwrap();
            let url = format!("memory://cache-together-{round}/x");
            let expected = put(&url, round, 320 * 700);
            let stores = [0, 1].map(|_| store(folder.path(), 10 * MIB));
            let reads = (0..640u64).map(|number| {
                let (store, url, expected) = (stores[number as usize % 2].clone(), url.clone(), expected.clone());
                let start = number / 2 * 700;
                let end = (start + if number % 7 == 0 { 1400 } else { 700 }).min(expected.len() as u64);
                tokio::spawn(async move {
                    let object = store.head(&url).await.unwrap();
                    assert_eq!(store.read(&object, start..end).await.unwrap(), expected[start as usize..end as usize]);
                })
            });
            for read in reads.collect::<Vec<_>>() {
                read.await.unwrap();
            }
            for store in stores.iter().chain([&store(folder.path(), 10 * MIB)]) {
                for start in (0..320 * 700).step_by(700) {
                    assert_eq!(read(store, &url, start..start + 700, &expected).await, 0, "{round}: {start}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_full_cache_keeps_what_it_has_and_takes_room_from_folders_that_nobody_uses() {
        let folder = tempfile::tempdir().unwrap();
        let url = |data: &str, shard: usize| format!("memory://cache-full/{data}/{shard}");
        let mut expected = Vec::new();
        for shard in 0..6 {
            expected.push(content(shard as u64, MIB));
            for data in ["old", "new", "used"] {
                Store::memory_put(&url(data, shard), expected[shard].clone()).unwrap();
            }
        }
        let pass = async |store: &Store, data: &str, shards: Range<usize>| {
            let mut fetched = 0;
            for shard in shards {
                fetched += read(store, &url(data, shard), 0..MIB as u64, &expected[shard]).await;
            }
            fetched / MIB as u64
        };
        let using = store(folder.path(), 4 * MIB + MIB / 2);
        assert_eq!(pass(&using, "used", 0..1).await, 1);
        let before = store(folder.path(), 4 * MIB + MIB / 2);
        assert_eq!(
            (pass(&before, "old", 0..6).await, pass(&before, "old", 0..6).await),
            (6, 3),
            "three fit beside the other"
        );
        drop(before);
        let now = store(folder.path(), 4 * MIB + MIB / 2);
        assert_eq!(
            (pass(&now, "new", 0..6).await, pass(&now, "new", 0..6).await),
            (6, 3),
            "those of the old folder made room"
        );
        assert_eq!(pass(&using, "used", 0..1).await, 0, "a folder that is in use stays");
        assert_eq!(pass(&using, "old", 0..1).await, 1);
    }

    #[tokio::test]
    async fn a_cache_that_cannot_be_used_is_an_error_and_one_that_goes_away_none() {
        let folder = tempfile::tempdir().unwrap();
        let url = "memory://cache-broken/x";
        let expected = put(url, 1, MIB);
        let file = folder.path().join("file");
        fs::write(&file, "no folder").unwrap();
        let blocked = store(&file, MIB);
        let object = blocked.head(url).await.unwrap();
        let error = blocked.read(&object, 0..10).await.unwrap_err().to_string();
        assert!(
            error.contains("the cache's folder cannot be used") && error.contains("StoreOptions::cache"),
            "{error}"
        );

        let inside = folder.path().join("inside");
        let gone = store(&inside, 10 * MIB);
        assert_eq!(read(&gone, url, 0..1000, &expected).await, 1000);
        fs::remove_dir_all(&inside).unwrap();
        assert_eq!(read(&gone, url, 0..1000, &expected).await, 1000);
        assert_eq!(read(&gone, url, 0..2000, &expected).await, 2000);
    }
}
