//! Caches what was read from stores on a local disk.
//!
//! Each object has two files: a sparse file with the bytes that were read, each at its own offset, and a log of the pieces that are there, each with
//! a checksum. Only the log says what is there. A record is written to the log after its bytes, so that several processes can share a cache, and a
//! process that is killed leaves nothing that is trusted but wrong. Whatever cannot be read, or does not match its checksum, is read from the store
//! again.
//!
//! A full cache does not evict data in use to make room for new data: of a data set that is larger than the cache and is read over and over,
//! the same part stays. Only objects that no process uses are removed, the longest unused first. Objects are grouped into buckets by the folder of
//! their URL. A process holds a lock on the buckets that it uses, and the objects in them count as used for a day after they were read.

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
use crate::engine::file_lock::FileLock;
use crate::{Error, Result};

/// The beginning of a log; the version of the object and zeros follow.
const MAGIC: &[u8; 16] = b"forebay cache 1\n";
const HEADER: usize = 32;
/// A record: start, length, checksum of the bytes, checksum of this record, version. No record spans two memory pages, so that no process sees half of
/// one.
const RECORD: usize = 32;

/// Pieces end at multiples of this: a piece that is wanted in part has to be read whole for its checksum. It is also the size of one read or write
/// call, as for local files.
const PIECE: usize = 256 << 10;

/// The most pieces that a process keeps track of, at 40 bytes each. Anything beyond is read from the store.
const MOST_PIECES: i64 = 8 << 20;

/// The number of folders over which objects are spread, by the folder of their URL.
const BUCKETS: u64 = 64;
/// The file of a bucket that processes lock while they use the bucket.
const LOCK: &str = "lock";

/// How long to wait before looking for room again where none was found.
const LOOK_AFTER: Duration = Duration::from_secs(60);

/// In buckets that are in use, objects that no process has read for this long may be removed. Objects that are read are marked as used once in a
/// while.
const UNUSED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
const MARK_AFTER: Duration = Duration::from_secs(60 * 60);

/// A cache folder on a local disk, and what this process knows of it.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    limit: u64,
    /// Bytes in the folder, of all processes, as of the last check, and bytes added since.
    used: AtomicU64,
    added: AtomicU64,
    looked: Mutex<Option<Instant>>,
    /// Whether the folder cannot be written to (any more).
    broken: AtomicBool,
    /// How many more pieces this process may keep track of.
    pieces: Arc<AtomicI64>,
    buckets: Mutex<HashMap<u64, Option<Bucket>>>,
    entries: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
}

/// A bucket that is locked for as long as this process may use it.
#[derive(Debug)]
struct Bucket {
    path: Arc<Path>,
    _lock: FileLock,
}

/// One version of one object.
#[derive(Debug)]
pub(super) struct Entry {
    bucket: Arc<Path>,
    name: u128,
    version: u64,
    known: Mutex<Known>,
    room: Arc<AtomicI64>,
    /// When the object was last marked as used.
    marked: Mutex<Instant>,
}

/// The known pieces, by their starts. They may overlap, but none lies within another.
#[derive(Debug, Default)]
struct Known {
    pieces: BTreeMap<u64, Piece>,
    /// Bytes of the log that were read (0 before its header was read), and the file that they were read from.
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

/// Returns whether a write error is permanent.
fn lasts(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

impl Cache {
    /// Opens or creates a cache (blocking). A cache on a disk that is full or read-only is only read.
    ///
    /// # Errors
    /// A folder that cannot be created.
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

    /// Returns the entry of an object (blocking); `None` if the object's versions cannot be told apart.
    pub(super) fn entry(&self, object: &Object) -> Option<Arc<Entry>> {
        let version = object.lasting_etag().or_else(|| Some(object.modified?.to_string()))?;
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

    /// Returns a bucket, which stays locked from now on; `None` if that is not possible.
    fn bucket(&self, number: u64) -> Option<Arc<Path>> {
        let mut buckets = lock(&self.buckets);
        let bucket = buckets.entry(number).or_insert_with(|| {
            let path = self.root.join(format!("bucket-{number:02}"));
            let lock = fs::create_dir_all(&path).and_then(|()| {
                let lock = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path.join(LOCK));
                let lock = lock.or_else(|_| File::open(path.join(LOCK)))?;
                // Held for a moment by one that makes room.
                lock.lock_shared()?;
                Ok(FileLock::of(lock))
            });
            lock.ok().map(|lock| Bucket { path: path.into(), _lock: lock })
        });
        bucket.as_ref().map(|bucket| bucket.path.clone())
    }

    /// Stores what was read of an object (blocking). If that fails, the bytes will be read from the store again; after an error such as a full disk,
    /// nothing more is written.
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

    /// Returns whether `len` more bytes fit, after making room if possible.
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

    /// Removes objects that no process uses, the longest unused first, until `len` bytes fit.
    fn make_room(&self, len: u64) {
        // Exclusively held until all is done: a process that wants the bucket waits for that.
        let mut held: HashMap<PathBuf, Option<FileLock>> = HashMap::new();
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
                lock.try_lock().is_ok().then(|| FileLock::of(lock))
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

/// Returns the files in the buckets of a cache.
fn files_in(root: &Path) -> impl Iterator<Item = (PathBuf, fs::Metadata)> {
    let buckets = (0..BUCKETS).map(|number| root.join(format!("bucket-{number:02}")));
    let files = buckets.flat_map(|bucket| fs::read_dir(bucket).into_iter().flatten().flatten());
    files.filter_map(|file| Some((file.path(), file.metadata().ok()?)))
}

/// Returns the bytes that a cache takes on the disk.
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

    /// Marks the object as used now. (Files of another user keep their time.)
    fn mark(&self) {
        _ = File::open(self.log()).and_then(|log| log.set_modified(SystemTime::now()));
    }

    /// Returns whether a range is there, according to the log (blocking).
    pub(super) fn has(&self, range: &Range<u64>) -> bool {
        lock(&self.known).cover(range).is_some() || self.refresh().is_ok() && lock(&self.known).cover(range).is_some()
    }

    /// Reads a range that should be there (blocking); returns `None` if it turns out not to be.
    ///
    /// # Errors
    /// There is no memory for it.
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

    /// Reads the records that were added to the log since the last time.
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
        let mut records = Vec::new();
        loop {
            let left = metadata.len().saturating_sub(known.read_to) as usize / RECORD * RECORD;
            if left == 0 || self.room.load(Ordering::Relaxed) <= 0 {
                return Ok(());
            }
            records.resize(left.min(PIECE), 0);
            log.read_exact_at(&mut records, known.read_to)?;
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

    /// Writes bytes and returns by how much the files grew on the disk.
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

    /// Ensures that the log is of this version and complete. A log of another version is replaced (a process that still uses that version then reads
    /// bytes that do not match its records). A log in which a killed process left an incomplete record is padded, so that the records after it are
    /// aligned.
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
    /// Adds a piece, unless it lies within another; removes those that lie within it.
    fn add(&mut self, start: u64, piece: Piece) {
        if self.before(start).is_some_and(|(_, other)| other.end >= piece.end) {
            return;
        }
        while let Some((&within, _)) = self.pieces.range(start..).next().filter(|(_, other)| other.end <= piece.end) {
            self.pieces.remove(&within);
        }
        self.pieces.insert(start, piece);
    }

    /// Returns the last piece that begins at or before this byte. As none lies within another, it is also the one that ends last.
    fn before(&self, at: u64) -> Option<(u64, Piece)> {
        self.pieces.range(..=at).next_back().map(|(&start, &piece)| (start, piece))
    }

    /// Returns the pieces from which a range is read; `None` if some byte is in no piece.
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

/// Reads a part of a piece. The whole piece has to match its checksum.
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
mod tests;
