//! How a store behaves: retries, timeouts, endpoints, credentials.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;

use super::Store;
use super::pool::Pool;
use super::retry::Policy;
use super::url::{Scheme, Split, split};
use crate::engine::budget::Account;
use crate::error::{Error, Result};

/// Bytes of unused buffers that a store keeps outside of a loader.
const IDLE_BYTES: usize = 64 << 20;

/// The settings of a [`Store`]. The defaults suit buckets in the same region and local disks.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use forebay::store::StoreOptions;
///
/// let store = StoreOptions::new().retries(3).stall_timeout(Duration::from_secs(5)).concurrency(128).build();
/// assert_eq!(store.transfers().requests, 0);
/// ```
#[derive(Clone)]
pub struct StoreOptions {
    pub(super) policy: Policy,
    pub(super) stall_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) concurrency: usize,
    pub(super) allow_http: bool,
    pub(super) anonymous: bool,
    pub(super) environment: bool,
    pub(super) open_files: usize,
    pub(super) idle_buffer_bytes: Option<usize>,
    pub(super) cache: Option<(PathBuf, u64)>,
    endpoints: Vec<(Scheme, String)>,
    config: Vec<(Scheme, String, String)>,
    pub(super) registered: Vec<(String, Arc<dyn ObjectStore>)>,
    /// An impossible setting, which becomes the error of the first request.
    pub(super) mistake: Option<Error>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            policy: Policy { retries: 8, first: Duration::from_millis(100), most: Duration::from_secs(10) },
            stall_timeout: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(5),
            concurrency: 64,
            allow_http: false,
            anonymous: false,
            environment: true,
            open_files: 128,
            idle_buffer_bytes: None,
            cache: None,
            endpoints: Vec::new(),
            config: Vec::new(),
            registered: Vec::new(),
            mistake: None,
        }
    }
}

impl StoreOptions {
    /// Creates the default settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how often a request is sent again after a transient fault: a reset, a stall, 408, 429, 5xx. Default 8.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.policy.retries = retries;
        self
    }

    /// Sets the wait before the first retry. It doubles with each further retry, up to `most`; half of the wait is random. If a server's Retry-After,
    /// up to a minute, is longer, that is the wait. Default 100 ms up to 10 s.
    #[must_use]
    pub fn backoff(mut self, first: Duration, most: Duration) -> Self {
        (self.policy.first, self.policy.most) = (first, most);
        self
    }

    /// Sets how long a request may go without receiving a byte before it is given up and sent again for the rest. Default 20 s.
    #[must_use]
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.stall_timeout = timeout;
        self
    }

    /// Sets how long establishing a connection may take. Default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how many requests and file reads are in flight at once, at least 1. Default 64.
    #[must_use]
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = requests.clamp(1, tokio::sync::Semaphore::MAX_PERMITS);
        self
    }

    /// Allows endpoints that begin with `http://` on other machines, where anybody on the way can read what is sent.
    ///
    /// Endpoints on this machine, `http://` URLs and `STORAGE_EMULATOR_HOST` need no permission. Of these, S3 and Azure endpoints receive signed
    /// requests; the others receive no credentials.
    #[must_use]
    pub fn allow_http(mut self, allow: bool) -> Self {
        self.allow_http = allow;
        self
    }

    /// Sends unsigned requests, without looking for credentials: for public buckets.
    #[must_use]
    pub fn anonymous(mut self, anonymous: bool) -> Self {
        self.anonymous = anonymous;
        self
    }

    /// Sets whether `GOOGLE_*`, `AWS_*`, `AZURE_*` and `STORAGE_EMULATOR_HOST` are read. Default true.
    #[must_use]
    pub fn environment(mut self, read: bool) -> Self {
        self.environment = read;
        self
    }

    /// Sends the requests of a scheme (`gs`, `s3` or `az`) to another server, such as an emulator.
    ///
    /// It takes precedence over `STORAGE_EMULATOR_HOST`, `AWS_ENDPOINT_URL` and `AZURE_STORAGE_ENDPOINT` in the environment. Requests to a `gs`
    /// endpoint that begins with `http://` are unsigned. An `az` endpoint ends in the account: `http://127.0.0.1:10000/devstoreaccount1`. Any other
    /// scheme is an error of the first request.
    #[must_use]
    pub fn endpoint(mut self, scheme: &str, url: impl Into<String>) -> Self {
        match scheme_of(scheme, &[Scheme::Gs, Scheme::S3, Scheme::Az]) {
            Ok(scheme) => self.endpoints.push((scheme, url.into())),
            Err(error) => _ = self.mistake.get_or_insert(error),
        }
        self
    }

    /// Sets one of the client's own settings for a scheme, by its name in `object_store`: `aws_region`, `google_service_account_key`,
    /// `azure_storage_account_key`, `proxy_url`, `pool_max_idle_per_host`. A name unknown to `object_store` is an error of the first request, as is a
    /// scheme other than `gs`, `s3`, `az` and `http`.
    #[must_use]
    pub fn config(mut self, scheme: &str, key: impl Into<String>, value: impl Into<String>) -> Self {
        match scheme_of(scheme, &[Scheme::Gs, Scheme::S3, Scheme::Az, Scheme::Http]) {
            Ok(scheme) => self.config.push((scheme, key.into(), value.into())),
            Err(error) => _ = self.mistake.get_or_insert(error),
        }
        self
    }

    /// Sets how many local files are kept open. Default 128.
    #[must_use]
    pub fn open_files(mut self, files: usize) -> Self {
        self.open_files = files;
        self
    }

    /// Sets how many bytes of unused buffers are kept for later reads. Default 64 MiB; in a loader, as many as have been in use at one time, within
    /// its budget.
    #[must_use]
    pub fn idle_buffer_bytes(mut self, bytes: usize) -> Self {
        self.idle_buffer_bytes = Some(bytes);
        self
    }

    /// Keeps what is read from remote objects in a folder on a local disk, up to `max_bytes`. Later reads, in later epochs and by later processes,
    /// take it from there.
    ///
    /// Cached data is checked against the version that each object has when it is listed, and against checksums when it is read. Several processes,
    /// such as the ranks of a machine, may share a folder. When the cache is full, its content stays, because training reads the same data over and
    /// over, and the rest comes from the store. Objects that no process uses make room, the longest unused first. A disk that fails or is full only
    /// costs speed. Objects without ETag and time are not cached, nor are local files.
    ///
    /// # Example
    /// ```
    /// use forebay::store::{Store, StoreOptions};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> forebay::Result<()> {
    /// let folder = tempfile::tempdir().expect("a folder on a local disk");
    /// Store::memory_put("memory://docs-cache/train.rec", "0123456789".into())?;
    /// let store = StoreOptions::new().cache(folder.path(), 1 << 30).build();
    /// let shard = store.head("memory://docs-cache/train.rec").await?;
    /// for _ in 0..2 {
    ///     assert_eq!(store.read(&shard, 4..7).await?, "456");
    /// }
    /// assert_eq!((store.transfers().bytes, store.transfers().cached), (3, 3));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cache(mut self, folder: impl Into<PathBuf>, max_bytes: u64) -> Self {
        self.cache = Some((folder.into(), max_bytes));
        self
    }

    /// Serves every URL below `base` (`gs://bucket`, `mine://name`) from a store that the caller provides. A base with anything after its bucket or
    /// name is an error of the first request.
    ///
    /// # Example
    /// ```
    /// use std::sync::Arc;
    /// use forebay::store::StoreOptions;
    /// use object_store::{ObjectStoreExt, memory::InMemory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> forebay::Result<()> {
    /// let mine = Arc::new(InMemory::new());
    /// mine.put(&"a.rec".into(), "content".into()).await.expect("a map takes it");
    /// let store = StoreOptions::new().register("mine://shards", mine).build();
    /// assert_eq!(store.head("mine://shards/a.rec").await?.size, 7);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn register(mut self, base: &str, store: Arc<dyn ObjectStore>) -> Self {
        match base_of(base) {
            Ok(base) => self.registered.push((base, store)),
            Err(error) => _ = self.mistake.get_or_insert(error),
        }
        self
    }

    /// Creates a store with these settings. Nothing is looked up or connected to before the first request.
    pub fn build(self) -> Store {
        let limit = self.idle_buffer_bytes.unwrap_or(IDLE_BYTES);
        Store::with_options(self, Pool::alone(limit as u64))
    }

    /// Like [`build`](Self::build), with buffers from this account.
    pub(crate) fn build_within(self, account: Arc<Account>) -> Store {
        let limit = self.idle_buffer_bytes.map(|bytes| bytes as u64);
        Store::with_options(self, Pool::new(account, limit))
    }

    /// Returns the endpoint given for a scheme; the last one if there are several.
    #[cfg(any(feature = "gcs", feature = "s3", feature = "azure", feature = "http"))]
    pub(super) fn endpoint_of(&self, scheme: Scheme) -> Option<&str> {
        self.endpoints.iter().rev().find(|(of, _)| *of == scheme).map(|(_, url)| url.trim_end_matches('/'))
    }

    /// Returns the client settings given for a scheme, in order.
    #[cfg(any(feature = "gcs", feature = "s3", feature = "azure", feature = "http"))]
    pub(super) fn config_of(&self, scheme: Scheme) -> impl Iterator<Item = (&str, &str)> {
        self.config.iter().filter(move |(of, ..)| *of == scheme).map(|(_, key, value)| (&**key, &**value))
    }
}

/// Returns the scheme that an option names, written as in URLs, with or without `://`.
fn scheme_of(name: &str, known: &[Scheme]) -> Result<Scheme> {
    let scheme = Scheme::named(&name.split(':').next().unwrap_or_default().to_ascii_lowercase());
    if known.contains(&scheme) {
        return Ok(scheme);
    }
    let known: Vec<String> = known.iter().map(Scheme::to_string).collect();
    Err(Error::config(format!("the scheme {name:?} has no such option"))
        .advice(format!("name one of {}", known.join(", "))))
}

/// Returns the canonical URL of the base for which a store is registered.
fn base_of(text: &str) -> Result<String> {
    match split(text)? {
        Split::Remote(base, "") => Ok(base.url),
        Split::Remote(base, _) => Err(Error::config("a store cannot be registered for a part of a bucket")
            .url(text)
            .advice(format!("register it for {}, and write its keys in the URLs", base.url))),
        Split::Path(_) | Split::File(_) => {
            Err(Error::config("a store is registered for a scheme and a bucket or name")
                .url(text)
                .advice("write mine://name"))
        }
    }
}

/// Omits the values of the clients' settings, because some of them are secrets.
impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config: Vec<_> = self.config.iter().map(|(scheme, key, _)| (scheme, key)).collect();
        let registered: Vec<_> = self.registered.iter().map(|(base, _)| base).collect();
        f.debug_struct("StoreOptions")
            .field("policy", &self.policy)
            .field("stall_timeout", &self.stall_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("concurrency", &self.concurrency)
            .field("allow_http", &self.allow_http)
            .field("anonymous", &self.anonymous)
            .field("environment", &self.environment)
            .field("endpoints", &self.endpoints)
            .field("config", &config)
            .field("cache", &self.cache)
            .field("registered", &registered)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::super::remote::Remote;
    use super::*;

    fn first_request(options: &StoreOptions, url: &str) -> Result<Remote> {
        let Ok(Split::Remote(base, _)) = split(url) else { panic!("{url} is remote") };
        Remote::new(&base, options)
    }

    #[test]
    #[cfg(feature = "gcs")]
    fn schemes_are_named_in_any_way() {
        for name in ["gs", "GS", "gcs", "gs://", "gs:"] {
            let options = StoreOptions::new().endpoint(name, "http://127.0.0.1:1").config(name, "proxy_url", "");
            assert_eq!(options.endpoint_of(Scheme::Gs), Some("http://127.0.0.1:1"), "{name}");
            assert_eq!(options.config_of(Scheme::Gs).count(), 1, "{name}");
        }
    }

    #[test]
    fn options_for_what_has_none_are_errors_of_the_first_request() {
        let mine = || Arc::new(InMemory::new());
        let cases = [
            (StoreOptions::new().endpoint("minio", "http://127.0.0.1:1"), "\"minio\""),
            (StoreOptions::new().endpoint("http", "http://127.0.0.1:1"), "one of gs, s3, az"),
            (StoreOptions::new().config("", "aws_region", "x"), "one of gs, s3, az, http"),
            (StoreOptions::new().register("mine://shards/train", mine()), "register it for mine://shards"),
            (StoreOptions::new().register("shards", mine()), "write mine://name"),
            (StoreOptions::new().register("mine://", mine()), "no bucket"),
        ];
        for (options, says) in cases {
            let error = first_request(&options, "memory://m/x").unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_registered_store_serves_its_base_however_it_is_written() {
        for (base, url) in [("gcs://b", "gs://b/x"), ("GS://b/", "gs://b/x"), ("mine://b/", "MINE://b/x")] {
            let mine: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let options = StoreOptions::new().register(base, mine.clone());
            let client = first_request(&options, url).unwrap();
            assert_eq!(Arc::strong_count(&mine), 3, "{base} answers to {url}: {client:?}");
        }
    }
}
