//! Stores: URLs, patterns, and exact range reads with retries, over `object_store` and local files.
//!
//! A [`Store`] turns patterns into [`Object`]s and reads exact ranges of them. A read returns exactly the bytes asked for, of the version that was
//! listed; anything else is an error. Stores know nothing of record formats.
//!
//! | URL | names |
//! |---|---|
//! | `data/a.rec`, `/data/a.rec`, `file:///data/a.rec` | a local file |
//! | `gs://bucket/key` | Google Cloud Storage (feature `gcs`) |
//! | `s3://bucket/key` | Amazon S3 and servers that speak its protocol (feature `s3`) |
//! | `az://container/key`, `abfss://container@account.dfs.core.windows.net/key` | Azure Blob Storage (feature `azure`) |
//! | `http://host/path`, `https://host/path` | a web server that answers range requests (feature `http`) |
//! | `memory://name/key` | a map in this process, shared by all stores |
//!
//! Keys of buckets are taken literally; `file:` and `http:` URLs are percent-decoded. A URL that holds a password or a signature is refused.
//!
//! | pattern | stands for |
//! |---|---|
//! | `*`, `?`, `[a-c]`, `[!a-c]` | characters within one name, except a dot at its beginning |
//! | `**` | any folders; at the end of a pattern, every file below |
//! | `{train,val}`, `{00000..01023}` | each of the alternatives, padded as written; without `*` nothing is listed, and each must exist |
//! | `folder/`, a local folder, `gs://bucket` | every file below, except names that begin with `.` or `_` |
//!
//! `[*]`, `[[]` and `[{]` stand for the characters themselves, as does `%2A` in a `file:` URL.

mod cache;
mod complete;
mod list;
mod local;
mod options;
mod pattern;
mod pool;
mod range;
mod remote;
mod retry;
#[cfg(any(feature = "gcs", feature = "s3", feature = "azure", feature = "http"))]
mod transport;
mod url;
mod watch;

#[cfg(test)]
mod fault_tests;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use object_store::ObjectStoreExt as _;
use tokio::sync::{OnceCell, Semaphore};

use self::cache::Cache;
pub(crate) use self::complete::Incomplete;
use self::local::Files;
pub use self::options::StoreOptions;
use self::pool::Pool;
use self::remote::Remote;
use self::url::{Base, Location, Scheme};
pub(crate) use self::watch::Watch;
#[cfg(test)]
pub(crate) use self::watch::copied;
use crate::random::Key;
use crate::{Error, ErrorKind, Result};

/// A stored object or file, in the version that was listed.
///
/// # Example
/// ```
/// use bytes::Bytes;
/// use forebay::store::Store;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> forebay::Result<()> {
/// Store::memory_put("memory://object-docs/a", Bytes::from_static(b"12345"))?;
/// let object = Store::new().head("memory://object-docs/a").await?;
/// assert_eq!((&*object.url, object.size), ("memory://object-docs/a", 5));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// The canonical URL: `gs://bucket/key`, `file:///folder/file`.
    pub url: Arc<str>,
    /// The size in bytes.
    pub size: u64,
    /// The version, in the form of the HTTP ETag header; files have none.
    pub etag: Option<Arc<str>>,
    /// The time of the last change in nanoseconds since 1970, if the store reports it.
    pub modified: Option<i64>,
}

impl Object {
    /// Returns the ETag in a form that is valid in other processes too. In in-memory stores, and in stores that users register for schemes of their
    /// own, ETags may be counters that restart with each process; there, the time is added to the ETag.
    pub(crate) fn lasting_etag(&self) -> Option<String> {
        let etag = self.etag.as_deref()?;
        let scheme = self.url.split_once("://").map_or(Scheme::Other, |(name, _)| Scheme::named(name));
        let is_own = matches!(scheme, Scheme::Memory | Scheme::Other);
        let time = self.modified.filter(|_| is_own).map(|time| format!(" of {time}"));
        Some(format!("{etag}{}", time.unwrap_or_default()))
    }
}

/// The totals of what a store has transferred so far.
///
/// # Example
/// ```
/// let moved = forebay::store::Store::new().transfers();
/// assert_eq!((moved.requests, moved.retries, moved.bytes), (0, 0, 0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transfers {
    /// Requests sent and files read, including retries.
    pub requests: u64,
    /// How many of these requests repeated a failed one.
    pub retries: u64,
    /// Bytes of content received, including those of failed tries.
    pub bytes: u64,
    /// Bytes that were read from the [cache](StoreOptions::cache) instead.
    pub cached: u64,
}

/// Gives access to every store, local and remote. It is cheap to clone, and all threads can share it.
///
/// It has no threads of its own: its futures run on the caller's tokio runtime, which needs I/O and time enabled. It keeps one client per bucket,
/// container or host, with its connections and credentials.
///
/// # Example
/// ```
/// use bytes::Bytes;
/// use forebay::store::Store;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> forebay::Result<()> {
/// for shard in 0..3 {
///     Store::memory_put(&format!("memory://docs/train-{shard:05}.rec"), Bytes::from_static(b"0123456789"))?;
/// }
/// let store = Store::new();
/// let shards = store.list(&["memory://docs/train-*.rec"]).await?;
/// assert_eq!(shards.len(), 3);
/// assert_eq!(store.read(&shards[2], 4..7).await?, "456");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: StoreOptions,
    remotes: Mutex<HashMap<Base, Arc<Remote>>>,
    files: Arc<Files>,
    pool: Arc<Pool>,
    turns: Semaphore,
    cache: OnceCell<Arc<Cache>>,
    transfers: Counters,
    /// Differs between processes, so that they do not retry at the same moments.
    jitter: Key,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    retries: AtomicU64,
    bytes: AtomicU64,
    cached: AtomicU64,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// Creates a store with the default [`StoreOptions`].
    pub fn new() -> Self {
        StoreOptions::default().build()
    }

    fn with_options(options: StoreOptions, pool: Arc<Pool>) -> Self {
        Self {
            shared: Arc::new(Shared {
                remotes: Mutex::default(),
                files: Arc::new(Files::new(options.open_files)),
                pool,
                turns: Semaphore::new(options.concurrency),
                cache: OnceCell::new(),
                transfers: Counters::default(),
                jitter: Key::new(RandomState::new().hash_one("jitter")),
                options,
            }),
        }
    }

    /// Lists the objects that the patterns stand for, each once.
    ///
    /// URLs without a glob are looked up one by one, in parallel, without listing anything. Empty files are included.
    ///
    /// # Order
    /// Sorted by the bytes of the unescaped URL, whatever the order in which the store lists objects and in which the patterns are given.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if a pattern matches nothing or a named object does not exist; the message says what exists next to it.
    /// [`ErrorKind::Config`] if a pattern cannot be parsed, or if a plain web server is asked for a glob.
    pub async fn list<S: AsRef<str>>(&self, patterns: &[S]) -> Result<Vec<Object>> {
        let patterns: Vec<&str> = patterns.iter().map(AsRef::as_ref).collect();
        list::list(self, &patterns).await
    }

    /// Returns the shards that the manifests of the listed folders name and that are missing among `listed`, or that differ in size from what was
    /// written.
    pub(crate) async fn incomplete<S: AsRef<str>>(&self, patterns: &[S], listed: &[Object]) -> Result<Vec<Incomplete>> {
        let patterns: Vec<&str> = patterns.iter().map(AsRef::as_ref).collect();
        complete::incomplete(self, &patterns, listed).await.map_err(|e| e.stage("list"))
    }

    /// Describes one object or file; the URL is taken literally, without globs.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Access`] without permission to look it up.
    pub async fn head(&self, url: &str) -> Result<Object> {
        let described = match Location::parse(url).map_err(|e| e.stage("list"))? {
            Location::Local(path) => {
                self.count(0);
                blocking(move || local::head(&path)).await
            }
            Location::Remote(base, key) => match self.remote(&base) {
                Ok(remote) => range::head(&self.shared, &remote, &key).await,
                Err(e) => Err(e),
            },
        };
        described.map_err(|e| e.url(url).stage("list"))
    }

    /// Reads exactly this range of this version of the object.
    ///
    /// Sends one request. When it breaks off or stalls, it is sent again for what is still missing, as often as [`StoreOptions::retries`] allows. For
    /// one large object, run several reads at once.
    ///
    /// # Memory
    /// The range's length, in a buffer that is reused once the last slice of the returned bytes has been dropped.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the object is gone or has changed since it was listed, [`ErrorKind::Transfer`] if the store keeps failing or
    /// answers with anything but this range, [`ErrorKind::Config`] if it cannot answer range requests at all, [`ErrorKind::Corrupt`] if the range
    /// ends beyond the object. The error's place holds the URL and the byte reached.
    pub async fn read(&self, object: &Object, range: Range<u64>) -> Result<Bytes> {
        let read = self.read_located(object, range).await;
        read.map_err(|e| e.url(Arc::clone(&object.url)).stage("read"))
    }

    async fn read_located(&self, object: &Object, range: Range<u64>) -> Result<Bytes> {
        if range.start > range.end || range.end > object.size {
            return Err(Error::corrupt(format!("bytes {range:?} of an object of {} bytes", object.size))
                .byte_offset(range.start)
                .advice("the index that names them is of another version: build it again"));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match Location::parse(&object.url)? {
            Location::Local(path) => {
                let len = range.end - range.start;
                if watch::may_copy(len) {
                    watch::came();
                    let copied = self.shared.files.read_cached(&self.shared.pool, &path, object, range.clone())?;
                    watch::copied(len, copied.is_some());
                    if let Some(bytes) = copied {
                        self.count(len);
                        return Ok(bytes);
                    }
                }
                let _turn = self.shared.turns.acquire().await.expect("the semaphore is never closed");
                let (files, pool) = (Arc::clone(&self.shared.files), Arc::clone(&self.shared.pool));
                watch::came();
                let object = object.clone();
                let (bytes, all_cached) = blocking(move || files.read(&pool, &path, &object, range)).await?;
                watch::copied(len, all_cached);
                self.count(bytes.len() as u64);
                Ok(bytes)
            }
            Location::Remote(base, key) => {
                let remote = self.remote(&base)?;
                match self.cache().await? {
                    Some(cache) => self.read_through(cache, &remote, &key, object, range).await,
                    None => range::read(&self.shared, &remote, &key, object, range).await,
                }
            }
        }
    }

    async fn cache(&self) -> Result<Option<Arc<Cache>>> {
        let Some((folder, limit)) = self.shared.options.cache.clone() else { return Ok(None) };
        let open = || blocking(move || Cache::open(&folder, limit).map(Arc::new));
        self.shared.cache.get_or_try_init(open).await.cloned().map(Some)
    }

    /// Reads from the cache, or else reads from the store and fills the cache.
    async fn read_through(
        &self,
        cache: Arc<Cache>,
        remote: &Remote,
        key: &str,
        object: &Object,
        range: Range<u64>,
    ) -> Result<Bytes> {
        let (opened, listed, wanted) = (cache.clone(), object.clone(), range.clone());
        let look = move || Ok(opened.entry(&listed).map(|entry| (entry.has(&wanted), entry)));
        let entry = match blocking(look).await? {
            Some((true, entry)) => {
                watch::came();
                let (pool, known, wanted) = (self.shared.pool.clone(), entry.clone(), range.clone());
                if let Some(buffer) = blocking(move || known.read(&pool, &wanted)).await? {
                    self.shared.transfers.cached.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                    return Ok(buffer.freeze());
                }
                Some(entry)
            }
            looked => looked.map(|(_, entry)| entry),
        };
        let read = range::read(&self.shared, remote, key, object, range.clone()).await?;
        if let Some(entry) = entry {
            let kept = read.clone();
            blocking(move || {
                cache.keep(&entry, range.start, &kept);
                Ok(())
            })
            .await?;
        }
        Ok(read)
    }

    /// Writes an object or file, which appears whole or not at all; folders are created as needed.
    ///
    /// A file is written under a hidden name in the same folder, synchronised and renamed.
    ///
    /// # Errors
    /// [`ErrorKind::Access`] without permission to write, [`ErrorKind::Transfer`] if the store or disk fails.
    pub async fn write(&self, url: &str, bytes: Bytes) -> Result<()> {
        let written = match Location::parse(url).map_err(|e| e.stage("write"))? {
            Location::Local(path) => blocking(move || local::write(&path, &bytes)).await,
            Location::Remote(base, key) => self.put(&base, &key, bytes).await,
        };
        written.map_err(|e| e.url(url).stage("write"))
    }

    async fn put(&self, base: &Base, key: &str, bytes: Bytes) -> Result<()> {
        let remote = self.remote(base)?;
        let path = range::path(key)?;
        // What is sent cannot be watched: 256 KiB/s is the slowest upload that is waited for.
        let limit = self.shared.options.stall_timeout + Duration::from_secs(bytes.len() as u64 >> 18);
        let request = || {
            let (store, path, bytes) = (Arc::clone(&remote.store), path.clone(), bytes.clone());
            async move { store.put(&path, bytes.into()).await }
        };
        range::retrying(&self.shared, &remote, limit, request).await.map(|_| ())
    }

    /// Reads a whole object or file; returns `None` if there is none.
    ///
    /// # Memory
    /// The size of the object: use it for indexes and other small files.
    ///
    /// # Errors
    /// Those of [`Store::read`], except for an object that does not exist.
    pub async fn read_whole_if_exists(&self, url: &str) -> Result<Option<Bytes>> {
        match self.head(url).await {
            Ok(object) => self.read(&object, 0..object.size).await.map(Some),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Puts an object into an in-memory store, from any thread, without a runtime.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the URL is not of the form `memory://name/key`.
    pub fn memory_put(url: &str, bytes: Bytes) -> Result<()> {
        match Location::parse(url)? {
            Location::Remote(base, key) if base.scheme == Scheme::Memory => {
                let (store, path) = (remote::memory(base.name()), range::path(&key)?);
                let put = store.put(&path, bytes.into()).now_or_never().expect("a map never waits");
                put.map(|_| ()).map_err(|e| Error::config("not put into memory").url(url).because(e))
            }
            _ => Err(Error::config("not an in-memory URL").url(url).advice("write memory://name/key")),
        }
    }

    /// Returns the path of a local file; `None` for objects elsewhere. It is meant for readers that hop through a file by themselves.
    pub fn local_path(&self, object: &Object) -> Option<PathBuf> {
        match Location::parse(&object.url) {
            Ok(Location::Local(path)) => Some(path),
            _ => None,
        }
    }

    /// Returns the totals of what has been transferred since the store was created.
    pub fn transfers(&self) -> Transfers {
        let Counters { requests, retries, bytes, cached } = &self.shared.transfers;
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Transfers { requests: now(requests), retries: now(retries), bytes: now(bytes), cached: now(cached) }
    }

    /// Describes how much of what was read came out of the cache, if there is one.
    pub(crate) fn note_of_cache(&self) -> Option<String> {
        let (folder, _) = self.shared.options.cache.as_ref()?;
        let Transfers { bytes, cached, .. } = self.transfers();
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (cached, all) = (mebibytes(cached), mebibytes(bytes + cached));
        Some(format!("of {all:.1} MiB read, {cached:.1} MiB came out of the cache in {}", folder.display()))
    }

    fn count(&self, bytes: u64) {
        self.shared.transfers.requests.fetch_add(1, Ordering::Relaxed);
        self.shared.transfers.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns the client of a base, which is created at first use.
    fn remote(&self, base: &Base) -> Result<Arc<Remote>> {
        let mut remotes = self.shared.remotes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = remotes.get(base) {
            return Ok(Arc::clone(remote));
        }
        let remote = Arc::new(Remote::new(base, &self.shared.options)?);
        remotes.insert(base.clone(), Arc::clone(&remote));
        Ok(remote)
    }
}

/// Returns the error for an object that is no longer the one that was listed.
fn changed(difference: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::NotFound, difference)
        .advice("the data was written while it was read: list it again, and write new data under new names")
}

/// Runs blocking work on the runtime's threads for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(e) => Err(Error::new(ErrorKind::Transfer, "the runtime is shutting down").because(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_reads_of_one_file_at_once_each_get_their_own_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..1_000_000u32).flat_map(|i| (i as u16).to_le_bytes()).collect();
        let url = folder.path().join("a").to_str().unwrap().to_owned();
        let store = StoreOptions::new().concurrency(8).build();
        store.write(&url, content.clone().into()).await.unwrap();
        let object = store.head(&url).await.unwrap();
        let reads = (0..200u64).map(|i| {
            let (store, object) = (store.clone(), object.clone());
            let range = i * 9973..i * 9973 + 10_007 + i;
            tokio::spawn(async move { (range.clone(), store.read(&object, range).await.unwrap()) })
        });
        for read in futures::future::join_all(reads).await {
            let (range, bytes) = read.unwrap();
            assert_eq!(bytes, content[range.start as usize..range.end as usize]);
        }
        assert_eq!(store.local_path(&object).unwrap(), folder.path().join("a"));
    }

    #[tokio::test]
    async fn ranges_outside_the_object_are_refused_without_a_request() {
        Store::memory_put("memory://outside/a", Bytes::from_static(b"0123456789")).unwrap();
        let store = Store::new();
        let object = store.head("memory://outside/a").await.unwrap();
        #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
        for range in [0..11, 11..12, 5..4, 0..u64::MAX] {
            assert_eq!(store.read(&object, range).await.unwrap_err().kind(), ErrorKind::Corrupt);
        }
        assert_eq!(store.read(&object, 10..10).await.unwrap(), "");
        assert_eq!(store.transfers().requests, 1);
        let huge = Object { size: u64::MAX, ..object };
        assert_eq!(store.read(&huge, 0..1 << 62).await.unwrap_err().kind(), ErrorKind::Memory);
    }

    #[tokio::test]
    async fn what_is_written_is_read_back_and_what_is_missing_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new();
        for url in [format!("{}/deep/a #1", folder.path().display()), "memory://written/a #1".to_owned()] {
            assert_eq!(store.read_whole_if_exists(&url).await.unwrap(), None);
            store.write(&url, Bytes::from_static(b"one")).await.unwrap();
            store.write(&url, Bytes::from_static(b"two!")).await.unwrap();
            assert_eq!(store.read_whole_if_exists(&url).await.unwrap().unwrap(), "two!");
        }
    }

    #[tokio::test]
    async fn an_object_in_memory_that_was_replaced_is_an_error() {
        Store::memory_put("memory://replaced/a", Bytes::from_static(b"one")).unwrap();
        let store = Store::new();
        let object = store.head("memory://replaced/a").await.unwrap();
        Store::memory_put("memory://replaced/a", Bytes::from_static(b"two")).unwrap();
        let error = store.read(&object, 0..3).await.unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("list it again"), "{error}");
        let object = store.head("memory://replaced/a").await.unwrap();
        assert_eq!(store.read(&object, 0..3).await.unwrap(), "two");
    }

    #[tokio::test]
    async fn schemes_that_nobody_answers_to_are_named() {
        let error = Store::new().head("hf://datasets/x").await.unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains("register"), "{error}");
    }

    #[test]
    fn a_store_can_be_shared_and_its_reads_spawned() {
        fn is_send<T: Send + Sync + Clone>(_: &T) {}
        fn spawns<T: Send>(_: T) {}
        let store = Store::new();
        is_send(&store);
        let object = Object { url: "memory://x/y".into(), size: 1, etag: None, modified: None };
        spawns(store.read(&object, 0..1));
        spawns(store.list(&["memory://x/*"]));
        spawns(store.head("x"));
        spawns(store.write("x", Bytes::new()));
    }
}
