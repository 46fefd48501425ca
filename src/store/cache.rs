//! What was read from stores, kept on a local disk for the next time.
//!
//! An object has two files: its bytes, as far as they were read, each at its own offset in a sparse file, and a log of the pieces that are there, each with a checksum.
//! Nothing else says what is there: a record of the log is written behind its bytes, so that several processes share a cache, and one that is killed leaves
//! nothing that is believed in and wrong. Whatever cannot be read, or is not what its checksum says, is asked of the store again.
//!
//! Where it is full nothing is thrown out for what comes: of a data set that is larger than the cache, and read over and over, the same part stays. Room is made of objects that
//! no process uses, the longest unused first. Objects lie in buckets, by the folder of their URL; a process holds a lock on those that it uses, and what is in
//! them counts as used for a day after it was read.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
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

/// Pieces end at multiples of this: of one that is wanted in part all has to be read for its checksum. Also what is read or written by one call, as of local files.
const PIECE: usize = 256 << 10;

/// Pieces that a process knows of: 40 bytes each. What is more is read from the store.
const MOST_PIECES: i64 = 8 << 20;

/// Folders that objects lie in, by the folder of their URL.
const BUCKETS: u64 = 64;
/// The file of a bucket that is locked by processes that use it.
const LOCK: &str = "lock";

/// For so long room is not looked for again where there was none.
const LOOK_AFTER: Duration = Duration::from_secs(60);

/// Objects in buckets that are in use, and that nobody has read for so long, make room. What is read is marked once in a while.
const UNUSED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
const MARK_AFTER: Duration = Duration::from_secs(60 * 60);

/// A folder on a local disk, and what this process knows of it.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    limit: u64,
    /// Bytes in it, of all processes, as of the last look, and what was added since.
    used: AtomicU64,
    added: AtomicU64,
    looked: Mutex<Option<Instant>>,
    /// Whether it cannot be written to (any more).
    broken: AtomicBool,
    /// How many more pieces may be known.
    pieces: Arc<AtomicI64>,
    buckets: Mutex<HashMap<u64, Option<Bucket>>>,
    entries: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
}

/// A bucket, locked for as long as this process may use it.
#[derive(Debug)]
struct Bucket {
    path: Arc<Path>,
    _lock: File,
}

/// One object of one version.
#[derive(Debug)]
pub(super) struct Entry {
    bucket: Arc<Path>,
    name: u128,
    version: u64,
    known: Mutex<Known>,
    room: Arc<AtomicI64>,
    /// When it was last marked as used.
    marked: Mutex<Instant>,
}

/// The pieces that are there, by their starts. They may overlap, but none lies within another.
#[derive(Debug, Default)]
struct Known {
    pieces: BTreeMap<u64, Piece>,
    /// Bytes of the log that were read, 0 before its header was; and which file that was.
    read_to: u64,
    inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    end: u64,
    crc: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an error of writing lasts.
fn lasts(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

impl Cache {
    /// Opens a cache, or makes one (blocking). One on a disk that is full or read-only is read alone.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub(super) fn open(root: &Path, limit: u64) -> Result<Self> {
        let probe = root.join(format!(".probe-{}", std::process::id()));
        let probed = fs::create_dir_all(root).and_then(|()| File::create(&probe));
        _ = fs::remove_file(probe);
        match &probed {
            Err(error) if !(root.is_dir() && lasts(error)) => {
                let error = io_error(io::Error::from(error.kind()), "the cache's folder cannot be used");
                return Err(error.url(root.to_string_lossy().into_owned()).advice(
                    "name a folder on a local disk that can be written to: StoreOptions::cache(folder, bytes)",
                ));
            }
            _ => {}
        }
        Ok(Self {
            root: root.to_owned(),
            limit,
            used: AtomicU64::new(bytes_in(root)),
            added: AtomicU64::new(0),
            looked: Mutex::default(),
            broken: AtomicBool::new(probed.is_err()),
            pieces: Arc::new(AtomicI64::new(MOST_PIECES)),
            buckets: Mutex::default(),
            entries: Mutex::default(),
        })
    }

    /// The entry of an object (blocking); none of one whose versions cannot be told apart.
    pub(super) fn entry(&self, object: &Object) -> Option<Arc<Entry>> {
        let version = match (&object.etag, object.modified) {
            (Some(etag), _) => etag.to_string(),
            (None, Some(modified)) => modified.to_string(),
            (None, None) => return None,
        };
        let version = xxh3_64(format!("{} {} {version}", object.url, object.size).as_bytes());
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.get(&object.url).filter(|entry| entry.version == version) {
            return Some(entry.clone());
        }
        let folder = object.url.rsplit_once('/').map_or("", |(folder, _)| folder);
        let (bucket, name) = (self.bucket(xxh3_64(folder.as_bytes()) % BUCKETS)?, xxh3_128(object.url.as_bytes()));
        let (known, room, marked) = (Mutex::default(), self.pieces.clone(), Mutex::new(Instant::now()));
        let entry = Arc::new(Entry { bucket, name, version, known, room, marked });
        entry.mark();
        entries.insert(object.url.clone(), entry.clone());
        Some(entry)
    }

    /// A bucket, which is held from now on; none where that cannot be.
    fn bucket(&self, number: u64) -> Option<Arc<Path>> {
        let mut buckets = lock(&self.buckets);
        let bucket = buckets.entry(number).or_insert_with(|| {
            let path = self.root.join(format!("bucket-{number:02}"));
            let lock = fs::create_dir_all(&path).and_then(|()| {
                let lock = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path.join(LOCK));
                let lock = lock.or_else(|_| File::open(path.join(LOCK)))?;
                // Held for a moment by one that makes room.
                lock.lock_shared()?;
                Ok(lock)
            });
            lock.ok().map(|lock| Bucket { path: path.into(), _lock: lock })
        });
        bucket.as_ref().map(|bucket| bucket.path.clone())
    }

    /// Keeps what was read of an object (blocking). Where that fails it is read again another time, and a disk that is full is not tried again.
    pub(super) fn keep(&self, entry: &Entry, start: u64, bytes: &Bytes) {
        let is_closed = self.broken.load(Ordering::Relaxed) || self.pieces.load(Ordering::Relaxed) <= 0;
        if is_closed || !self.has_room(bytes.len() as u64) {
            return;
        }
        match entry.write(start, bytes) {
            Ok(grown) => {
                self.used.fetch_add(grown, Ordering::Relaxed);
                self.added.fetch_add(grown, Ordering::Relaxed);
            }
            Err(error) => _ = self.broken.fetch_or(lasts(&error), Ordering::Relaxed),
        }
    }

    /// Whether so many bytes more fit, once room is made where it can be.
    fn has_room(&self, len: u64) -> bool {
        let fits = || self.used.load(Ordering::Relaxed).saturating_add(len) <= self.limit;
        // One thread looks, others go by what it found before.
        let Ok(mut looked) = self.looked.try_lock() else { return fits() };
        // Other processes add as well.
        let has_grown = self.added.load(Ordering::Relaxed) > self.limit / 256;
        if !has_grown && (fits() || looked.is_some_and(|at| at.elapsed() < LOOK_AFTER)) {
            return fits();
        }
        *looked = Some(Instant::now());
        self.added.store(0, Ordering::Relaxed);
        self.used.store(bytes_in(&self.root), Ordering::Relaxed);
        if !fits() && len <= self.limit {
            self.make_room(len);
        }
        fits()
    }

    /// Removes what nobody uses, the longest unused first, until so many bytes fit.
    fn make_room(&self, len: u64) {
        // Exclusively held until all is done: a process that wants the bucket waits for that.
        let mut held: HashMap<PathBuf, Option<File>> = HashMap::new();
        let mut mine: Vec<PathBuf> = lock(&self.entries).values().map(|entry| entry.log()).collect();
        mine.sort_unstable();
        let mut logs: Vec<(SystemTime, PathBuf)> = files_in(&self.root)
            .filter(|(path, _)| path.extension().is_some_and(|end| end == "log"))
            .filter_map(|(path, metadata)| Some((metadata.modified().ok()?, path)))
            .collect();
        logs.sort_unstable();
        for (used_at, log) in logs {
            if self.used.load(Ordering::Relaxed).saturating_add(len) <= self.limit {
                return;
            }
            let Some(bucket) = log.parent() else { continue };
            let alone = held.entry(bucket.to_owned()).or_insert_with(|| {
                let lock = OpenOptions::new().read(true).write(true).open(bucket.join(LOCK)).ok()?;
                lock.try_lock().is_ok().then_some(lock)
            });
            let is_old = used_at.elapsed().is_ok_and(|age| age > UNUSED_FOR);
            if mine.binary_search(&log).is_ok() || alone.is_none() && !is_old {
                continue;
            }
            let freed: u64 = [log.with_extension("data"), log.clone()]
                .iter()
                .map(|file| {
                    let bytes = fs::metadata(file).map_or(0, |metadata| metadata.blocks() * 512);
                    if fs::remove_file(file).is_ok() { bytes } else { 0 }
                })
                .sum();
            _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(freed)));
        }
    }
}

/// The files in the buckets of a cache.
fn files_in(root: &Path) -> impl Iterator<Item = (PathBuf, fs::Metadata)> {
    let buckets = (0..BUCKETS).map(|number| root.join(format!("bucket-{number:02}")));
    let files = buckets.flat_map(|bucket| fs::read_dir(bucket).into_iter().flatten().flatten());
    files.filter_map(|file| Some((file.path(), file.metadata().ok()?)))
}

/// Bytes on the disk in a cache.
fn bytes_in(root: &Path) -> u64 {
    files_in(root).map(|(_, metadata)| metadata.blocks() * 512).sum()
}

impl Entry {
    fn data(&self) -> PathBuf {
        self.bucket.join(format!("{:032x}.data", self.name))
    }

    fn log(&self) -> PathBuf {
        self.bucket.join(format!("{:032x}.log", self.name))
    }

    /// Marks it as used now. (Files of another user stay as old as they are.)
    fn mark(&self) {
        _ = File::open(self.log()).and_then(|log| log.set_modified(SystemTime::now()));
    }

    /// Whether a range is there, as far as the log says (blocking).
    pub(super) fn has(&self, range: &Range<u64>) -> bool {
        lock(&self.known).cover(range).is_some() || self.refresh().is_ok() && lock(&self.known).cover(range).is_some()
    }

    /// Reads a range that is there (blocking); `None` where it is not after all.
    ///
    /// # Errors
    /// No memory for it.
    pub(super) fn read(&self, pool: &Arc<Pool>, range: &Range<u64>) -> Result<Option<Buffer>> {
        if let Ok(mut marked) = self.marked.try_lock()
            && marked.elapsed() > MARK_AFTER
        {
            *marked = Instant::now();
            self.mark();
        }
        let pieces = lock(&self.known).cover(range);
        let (Some(pieces), Ok(file)) = (pieces, File::open(self.data())) else { return Ok(None) };
        let len = usize::try_from(range.end - range.start).map_err(|_| Error::config("a range longer than memory"))?;
        let mut buffer = pool.take(len)?;
        let memory = buffer.fill(len);
        let mut scratch = Vec::new();
        for (start, piece) in pieces {
            let part = start.max(range.start)..piece.end.min(range.end);
            let into = &mut memory[(part.start - range.start) as usize..(part.end - range.start) as usize];
            if read_piece(&file, start, piece, part, into, &mut scratch).is_err() {
                // Another process replaced it, or the disk lost it.
                if lock(&self.known).pieces.remove(&start).is_some() {
                    self.room.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(None);
            }
        }
        Ok(Some(buffer))
    }

    /// Reads what the log has more than is known.
    fn refresh(&self) -> io::Result<()> {
        let mut known = lock(&self.known);
        let log = File::open(self.log())?;
        let metadata = log.metadata()?;
        if metadata.ino() != known.inode || metadata.len() < known.read_to {
            // It was begun anew.
            self.room.fetch_add(known.pieces.len() as i64, Ordering::Relaxed);
            *known = Known { inode: metadata.ino(), ..Known::default() };
        }
        if known.read_to == 0 {
            let mut header = [0; HEADER];
            log.read_exact_at(&mut header, 0)?;
            if header != self.header() {
                return Ok(());
            }
            known.read_to = HEADER as u64;
        }
        let mut records = vec![0; PIECE];
        loop {
            let left = metadata.len().saturating_sub(known.read_to) as usize / RECORD * RECORD;
            if left == 0 || self.room.load(Ordering::Relaxed) <= 0 {
                return Ok(());
            }
            let records = &mut records[..left.min(PIECE)];
            log.read_exact_at(records, known.read_to)?;
            for record in records.chunks_exact(RECORD) {
                // What is damaged is passed over, for records behind it stand where they should; and so is what another process wrote of another version.
                if let Some((start, piece)) = parse(self.version, record) {
                    self.add(&mut known, start, piece);
                }
                known.read_to += RECORD as u64;
            }
        }
    }

    fn add(&self, known: &mut Known, start: u64, piece: Piece) {
        let before = known.pieces.len() as i64;
        known.add(start, piece);
        self.room.fetch_sub(known.pieces.len() as i64 - before, Ordering::Relaxed);
    }

    fn header(&self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        header[MAGIC.len()..][..8].copy_from_slice(&self.version.to_le_bytes());
        header
    }

    /// Writes bytes and says by how much the files grew on the disk.
    fn write(&self, start: u64, bytes: &[u8]) -> io::Result<u64> {
        self.begin()?;
        let data = OpenOptions::new().create(true).truncate(false).write(true).open(self.data())?;
        let before = data.metadata()?.blocks();
        let (mut records, mut pieces, mut at) = (Vec::new(), Vec::new(), start);
        while at < start + bytes.len() as u64 {
            let end = (at / PIECE as u64 * PIECE as u64 + PIECE as u64).min(start + bytes.len() as u64);
            let chunk = &bytes[(at - start) as usize..(end - start) as usize];
            data.write_all_at(chunk, at)?;
            let piece = Piece { end, crc: crc32c::crc32c(chunk) };
            records.extend(record(self.version, at, piece));
            pieces.push((at, piece));
            at = end;
        }
        OpenOptions::new().append(true).open(self.log())?.write_all(&records)?;
        let mut known = lock(&self.known);
        pieces.into_iter().for_each(|(start, piece)| self.add(&mut known, start, piece));
        Ok((data.metadata()?.blocks().saturating_sub(before)) * 512 + records.len() as u64)
    }

    /// Sees to it that the log is of this version, and whole. Another is replaced (a process that still has that version reads bytes which are not what it
    /// knows); one that a process was killed in is filled up, so that no record behind it is parted.
    fn begin(&self) -> io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let _known = lock(&self.known);
        let mut header = [0; HEADER];
        let log = OpenOptions::new().read(true).append(true).open(self.log());
        let log = log.and_then(|log| log.read_exact_at(&mut header, 0).map(|()| log));
        match log {
            Ok(mut log) if header == self.header() => {
                let torn = log.metadata()?.len() as usize % RECORD;
                if torn == 0 { Ok(()) } else { log.write_all(&[0; RECORD][torn..]) }
            }
            _ => {
                let unique = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
                let nanos =
                    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
                let part = self.log().with_extension(format!("part-{}-{}-{nanos}", unique.0, unique.1));
                _ = fs::remove_file(self.data());
                fs::write(&part, self.header())?;
                fs::rename(&part, self.log())
            }
        }
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

    /// The piece that begins last of those that begin up to this byte. As none lies within another, it is also the one that ends last.
    fn before(&self, at: u64) -> Option<(u64, Piece)> {
        self.pieces.range(..=at).next_back().map(|(&start, &piece)| (start, piece))
    }

    /// The pieces that a range is read from; none where a byte of it is in no piece.
    fn cover(&self, range: &Range<u64>) -> Option<Vec<(u64, Piece)>> {
        let (mut pieces, mut at) = (Vec::new(), range.start);
        while at < range.end {
            let (start, piece) = self.before(at).filter(|(_, piece)| piece.end > at)?;
            pieces.push((start, piece));
            at = piece.end;
        }
        Some(pieces)
    }
}

/// Reads a part of a piece, all of which has to be what its checksum says.
fn read_piece(
    file: &File,
    start: u64,
    piece: Piece,
    part: Range<u64>,
    into: &mut [u8],
    scratch: &mut Vec<u8>,
) -> io::Result<()> {
    let whole = (piece.end - start) as usize;
    let read = |memory: &mut [u8]| -> io::Result<()> {
        file.read_exact_at(memory, start)?;
        if crc32c::crc32c(memory) == piece.crc { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    };
    if into.len() == whole {
        return read(into);
    }
    scratch.resize(whole, 0);
    read(scratch)?;
    into.copy_from_slice(&scratch[(part.start - start) as usize..][..into.len()]);
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
    let counts = check(record) == half(20) && number(24) == version && len <= PIECE as u64;
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
        // Any part of it; what the other has read since; and where anything is missing, all.
        assert_eq!(read(&two, url, 5000..5001, &expected).await, 0);
        assert_eq!(read(&two, url, 1_900_000..2_100_000, &expected).await, 200_000);
        assert_eq!(read(&one, url, 1_900_000..2_100_000, &expected).await, 0);
        assert_eq!(read(&one, url, 100..2_100_000, &expected).await, 0);
        assert_eq!(read(&one, url, 99..2_100_000, &expected).await, 2_099_901);
        assert_eq!(read(&two, url, 99..2_100_000, &expected).await, 0);
    }

    #[test]
    fn no_piece_is_longer_than_what_is_read_for_one_byte_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 1 << 30).unwrap();
        let object = Object { url: "gs://bucket/x".into(), size: 1 << 30, etag: Some("a".into()), modified: None };
        let entry = cache.entry(&object).unwrap();
        cache.keep(&entry, 1000, &content(1, 3 * PIECE));
        let pieces: Vec<(u64, u64)> =
            lock(&entry.known).pieces.iter().map(|(start, piece)| (*start, piece.end)).collect();
        let at = |piece: usize| (piece * PIECE) as u64;
        assert_eq!(pieces, [(1000, at(1)), (at(1), at(2)), (at(2), at(3)), (at(3), at(3) + 1000)]);
        assert_eq!(cache.pieces.load(Ordering::Relaxed), MOST_PIECES - 4);
        // Once there are as many as may be, nothing more is kept, or read from the log.
        cache.pieces.store(0, Ordering::Relaxed);
        cache.keep(&entry, 0, &content(2, 1000));
        assert!(entry.has(&(1000..2000)) && !entry.has(&(0..1000)));
    }

    #[tokio::test]
    async fn any_ranges_of_any_versions_are_what_the_store_has() {
        for seed in 0..6 {
            let (folder, mut rng) = (tempfile::tempdir().unwrap(), Key::new(seed).rng());
            let url = format!("memory://cache-random-{seed}/x");
            let mut expected = put(&url, seed, 50_000);
            let stores = [0, 1].map(|_| store(folder.path(), 200_000));
            let is_log = |path: &PathBuf| path.extension().is_some_and(|end| end == "log");
            let entry = || files_in(folder.path()).map(|(path, _)| path).find(is_log);
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
    async fn what_a_folder_in_use_has_lost_makes_room_in_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let url = |shard: u64| format!("memory://cache-lost/x/{shard}");
        let expected: Vec<Bytes> = (0..3).map(|shard| put(&url(shard), shard, MIB)).collect();
        let whole = async |store: &Store, shard: u64| {
            read(store, &url(shard), 0..MIB as u64, &expected[shard as usize]).await / MIB as u64
        };
        let new = || store(folder.path(), 2 * MIB + MIB / 2);
        let using = new();
        assert_eq!((whole(&using, 0).await, whole(&using, 1).await), (1, 1));
        let other = new();
        assert_eq!((whole(&other, 2).await, whole(&other, 2).await), (1, 1), "there is no room");
        let log = |shard: u64| {
            let name = format!("{:032x}.log", xxh3_128(url(shard).as_bytes()));
            files_in(folder.path()).map(|(path, _)| path).find(|path| path.ends_with(&name)).unwrap()
        };
        let old = SystemTime::now() - 2 * UNUSED_FOR;
        File::options().write(true).open(log(1)).unwrap().set_modified(old).unwrap();
        let other = new();
        assert_eq!((whole(&other, 2).await, whole(&other, 2).await), (1, 0));
        assert_eq!((whole(&using, 0).await, whole(&using, 1).await), (0, 1));
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
