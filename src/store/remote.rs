//! One client per bucket, container or host, and the meaning of its errors.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use futures::future::BoxFuture;
use object_store::list::PaginatedListStore;
use object_store::memory::InMemory;
use object_store::{ObjectMeta, ObjectStore};

use super::options::StoreOptions;
use super::retry::{Fault, Refused};
use super::url::{Base, Scheme};
use super::{Object, changed};
use crate::{Error, ErrorKind, Result};

type Credentials = Box<dyn Fn() -> BoxFuture<'static, object_store::Result<()>> + Send + Sync>;

/// A client.
pub(super) struct Remote {
    pub(super) base: Base,
    pub(super) store: Arc<dyn ObjectStore>,
    /// Lists by any prefix, page by page; not every store can do that.
    pub(super) pages: Option<Arc<dyn PaginatedListStore>>,
    credentials: Option<Credentials>,
    /// Whether credentials were obtained once, so that a failure to renew them may be transient.
    pub(super) had_credentials: AtomicBool,
    /// Whether a range request was answered with a range once, so that receiving the whole object instead may be transient.
    pub(super) answered_range: AtomicBool,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("base", &self.base.url).finish_non_exhaustive()
    }
}

impl Remote {
    /// Creates the client of a base; connects to nothing.
    pub(super) fn new(base: &Base, options: &StoreOptions) -> Result<Self> {
        if let Some(mistake) = &options.mistake {
            return Err(mistake.clone());
        }
        if let Some((_, store)) = options.registered.iter().rev().find(|(of, _)| *of == base.url) {
            return Ok(Self::plain(base, Arc::clone(store)));
        }
        match base.scheme {
            Scheme::Memory => Ok(Self::plain(base, memory(base.name()))),
            #[cfg(feature = "gcs")]
            Scheme::Gs => clients::gs(base, options),
            #[cfg(feature = "s3")]
            Scheme::S3 => clients::s3(base, options),
            #[cfg(feature = "azure")]
            Scheme::Az => clients::az(base, options),
            #[cfg(feature = "http")]
            Scheme::Http => clients::http(base, options),
            Scheme::Other => Err(Error::config("no store answers to this scheme").advice(
                "write a path, file://, gs://, s3://, az://, http(s):// or memory://, or register a store for it with \
                 StoreOptions::register",
            )),
            #[allow(unreachable_patterns)] // When every feature is on.
            scheme => {
                let feature = match scheme {
                    Scheme::Gs => "gcs",
                    Scheme::Az => "azure",
                    Scheme::S3 => "s3",
                    _ => "http",
                };
                Err(Error::config(format!("this build cannot read {scheme}://"))
                    .advice(format!("build forebay with the feature `{feature}`")))
            }
        }
    }

    fn plain(base: &Base, store: Arc<dyn ObjectStore>) -> Self {
        Self {
            base: base.clone(),
            store,
            pages: None,
            credentials: None,
            had_credentials: AtomicBool::new(false),
            answered_range: AtomicBool::new(false),
        }
    }

    /// Gets credentials before the request, to distinguish missing credentials from a request that failed.
    pub(super) async fn authenticate(&self) -> Result<(), Fault> {
        let Some(credentials) = &self.credentials else { return Ok(()) };
        match credentials().await {
            Ok(()) => {
                self.had_credentials.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(e) => {
                // A machine without a metadata server must not wait for one through all retries.
                let busy = find::<Refused>(&e).is_some_and(Refused::is_transient);
                let again = busy || self.had_credentials.load(Ordering::Relaxed);
                let error = Error::new(ErrorKind::Access, "no credentials")
                    .because(Client::new(e))
                    .advice(self.base.scheme.access_advice());
                Err(Fault { error, again, retry_after: None })
            }
        }
    }

    /// Returns what an error of the client means.
    pub(super) fn fault(&self, error: object_store::Error) -> Fault {
        self.fault_of(error, None)
    }

    /// Returns what an error means that occurred while reading an object that was listed with this ETag.
    pub(super) fn fault_of(&self, error: object_store::Error, listed: Option<&str>) -> Fault {
        use object_store::Error as E;
        let (mut retry_after, mut advice) = (None, None);
        let (kind, message) = match &error {
            E::NotFound { .. } => (ErrorKind::NotFound, "no such object"),
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
                advice = Some(self.base.scheme.access_advice());
                (ErrorKind::Access, "access refused")
            }
            E::Precondition { .. } | E::NotModified { .. } => {
                let listed = listed.map_or(String::new(), |etag| format!(", whose ETag was {etag}"));
                return changed(format!("the server holds another version of it than was listed{listed}"))
                    .because(Client::new(error))
                    .into();
            }
            E::InvalidPath { .. } => (ErrorKind::Config, "a key that cannot be read"),
            E::NotSupported { .. } | E::NotImplemented { .. } | E::UnknownConfigurationKey { .. } => {
                (ErrorKind::Config, "the store cannot do this")
            }
            _ => match find::<Refused>(&error) {
                Some(refused) if refused.is_transient() => {
                    retry_after = refused.retry_after;
                    (ErrorKind::Transfer, "the server is busy or broken")
                }
                Some(_) => {
                    advice = Some("check endpoint, region and credentials");
                    (ErrorKind::Config, "the server refused the request")
                }
                None => self.wrong_range(&error, &mut advice),
            },
        };
        let mut described = Error::new(kind, message).because(Client::new(error));
        if let Some(advice) = advice {
            described = described.advice(advice);
        }
        Fault { again: described.is_transient(), error: described, retry_after }
    }

    #[cfg(any(feature = "gcs", feature = "s3", feature = "azure", feature = "http"))]
    fn wrong_range(&self, error: &object_store::Error, advice: &mut Option<&'static str>) -> (ErrorKind, &'static str) {
        match find::<super::transport::WrongRange>(error) {
            Some(wrong) if wrong.is_whole() && !self.answered_range.load(Ordering::Relaxed) => {
                *advice =
                    Some("use a server that answers range requests (nginx, a bucket), or copy the files to a disk");
                (ErrorKind::Config, "the server sends whole objects only")
            }
            Some(_) => (ErrorKind::Transfer, "the server sent other bytes than asked for"),
            None => (ErrorKind::Transfer, "the request failed"),
        }
    }

    #[cfg(not(any(feature = "gcs", feature = "s3", feature = "azure", feature = "http")))]
    fn wrong_range(&self, _: &object_store::Error, _: &mut Option<&'static str>) -> (ErrorKind, &'static str) {
        (ErrorKind::Transfer, "the request failed")
    }

    /// Converts a client's description to an object.
    pub(super) fn object(&self, meta: &ObjectMeta) -> Object {
        Object {
            url: self.base.join(meta.location.as_ref()).into(),
            size: meta.size,
            etag: meta.e_tag.as_deref().map(|etag| match self.base.scheme {
                Scheme::Gs | Scheme::S3 | Scheme::Az => quoted(etag).into(),
                _ => etag.into(),
            }),
            modified: modified(meta),
        }
    }
}

/// Returns the time of the last change in Unix nanoseconds; clients report 1970 where the server said nothing.
pub(super) fn modified(meta: &ObjectMeta) -> Option<i64> {
    meta.last_modified.timestamp_nanos_opt().filter(|&nanos| nanos != 0)
}

/// Returns an ETag in the form of the HTTP header. Some listings leave out the quotes, Azure's for example.
fn quoted(etag: &str) -> String {
    if etag.starts_with('"') || etag.starts_with("W/") { etag.to_owned() } else { format!("\"{etag}\"") }
}

/// Returns the process-wide in-memory store of this name.
pub(super) fn memory(name: &str) -> Arc<InMemory> {
    static STORES: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(stores.entry(name.to_owned()).or_default())
}

/// Finds the first error of type `T` in the chain of sources.
fn find<T: std::error::Error + 'static>(error: &object_store::Error) -> Option<&T> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// A client's error, without repetitions. Most of its layers repeat what the next one says; the innermost often adds something.
#[derive(Debug)]
struct Client {
    text: String,
    #[expect(dead_code, reason = "shown by {:?}")]
    error: object_store::Error,
}

impl Client {
    fn new(error: object_store::Error) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            let said = inner.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            source = inner.source();
        }
        Self { text, error }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Client {}

#[cfg(any(feature = "gcs", feature = "s3", feature = "azure", feature = "http"))]
mod clients {
    //! Settings in order of precedence: the user's `config`, the user's other options, the environment.

    use object_store::client::ClientConfigKey;
    use object_store::{CredentialProvider, RetryConfig};

    use super::super::transport::Connector;
    use super::*;

    /// Longer than any healthy read: the limit that matters is the one on stalls.
    const NO_TIMEOUT: &str = "86400s";
    const USER_AGENT: &str = concat!("forebay/", env!("CARGO_PKG_VERSION"));

    fn no_retries() -> RetryConfig {
        RetryConfig { max_retries: 0, ..Default::default() }
    }

    /// Applies to a builder the settings that all builders have in common.
    macro_rules! configured {
        ($builder:expr, $base:expr, $options:expr, $client:path) => {{
            let connect = format!("{}ms", $options.connect_timeout.as_millis());
            let mut builder = $builder
                .with_config($client(ClientConfigKey::Timeout), NO_TIMEOUT)
                .with_config($client(ClientConfigKey::ConnectTimeout), connect)
                .with_config($client(ClientConfigKey::UserAgent), USER_AGENT)
                .with_retry(no_retries())
                .with_http_connector(Connector);
            for (key, value) in $options.config_of($base.scheme) {
                let parsed = key.to_ascii_lowercase().parse().map_err(|_| {
                    Error::config(format!("{}:// has no setting `{key}`", $base.scheme))
                        .advice("correct the name in StoreOptions::config")
                })?;
                builder = builder.with_config(parsed, value);
            }
            builder
        }};
    }

    fn with_credentials<P>(remote: Remote, provider: &Arc<P>, unsigned: bool) -> Remote
    where
        P: CredentialProvider + ?Sized + 'static,
    {
        if unsigned {
            return remote;
        }
        let provider = Arc::clone(provider);
        let credentials: Credentials = Box::new(move || {
            let provider = Arc::clone(&provider);
            Box::pin(async move { provider.get_credential().await.map(|_| ()) })
        });
        Remote { credentials: Some(credentials), ..remote }
    }

    fn cannot_build(base: &Base) -> impl Fn(object_store::Error) -> Error {
        let advice = base.scheme.access_advice();
        move |e| {
            Error::new(ErrorKind::Access, "the credentials or settings cannot be used")
                .because(Client::new(e))
                .advice(advice)
        }
    }

    /// Returns whether requests may go to this endpoint unencrypted.
    #[cfg(any(feature = "s3", feature = "azure"))]
    fn plain_http(options: &StoreOptions, endpoint: Option<&str>, allowed: bool) -> Result<bool> {
        let Some(endpoint) = endpoint.filter(|endpoint| endpoint.starts_with("http://")) else { return Ok(allowed) };
        let host = url::Url::parse(endpoint).ok();
        let here = match host.as_ref().and_then(url::Url::host) {
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            None => false,
        };
        if here || allowed || options.allow_http {
            return Ok(true);
        }
        Err(Error::config(format!("requests to {endpoint} would travel unencrypted"))
            .advice("use https://, or allow it with StoreOptions::allow_http(true)"))
    }

    fn is_true(value: Option<String>) -> bool {
        value.is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    #[cfg(feature = "gcs")]
    pub(super) fn gs(base: &Base, options: &StoreOptions) -> Result<Remote> {
        use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

        let emulator = || {
            let host = options.environment.then(|| std::env::var("STORAGE_EMULATOR_HOST").ok()).flatten()?;
            let host = host.trim_end_matches('/');
            (!host.is_empty()).then(|| if host.contains("://") { host.to_owned() } else { format!("http://{host}") })
        };
        let given = options.endpoint_of(Scheme::Gs).map(str::to_owned);
        let is_emulator = given.as_ref().is_none_or(|url| url.starts_with("http://"));
        let endpoint = given.or_else(emulator);
        let mut unsigned = options.anonymous;
        let builder = match &endpoint {
            // Never a token to a server that is not Google's, so the environment's credentials are not even read.
            Some(url) if is_emulator => {
                unsigned = true;
                let key = serde_json::json!({
                    "gcs_base_url": url, "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": "",
                });
                GoogleCloudStorageBuilder::new()
                    .with_service_account_key(key.to_string())
                    .with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true")
            }
            _ => {
                let builder = if options.environment {
                    GoogleCloudStorageBuilder::from_env()
                } else {
                    GoogleCloudStorageBuilder::new()
                };
                match &endpoint {
                    Some(url) => builder.with_base_url(url),
                    None => builder,
                }
            }
        };
        let mut builder = configured!(builder, base, options, GoogleConfigKey::Client).with_bucket_name(base.name());
        if options.anonymous {
            builder = builder.with_skip_signature(true);
        }
        unsigned |= is_true(builder.get_config_value(&GoogleConfigKey::SkipSignature));
        let store = Arc::new(builder.build().map_err(cannot_build(base))?);
        let remote = Remote { pages: Some(store.clone()), ..Remote::plain(base, store.clone()) };
        Ok(with_credentials(remote, store.credentials(), unsigned))
    }

    #[cfg(feature = "s3")]
    pub(super) fn s3(base: &Base, options: &StoreOptions) -> Result<Remote> {
        use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

        let mut builder = if options.environment { AmazonS3Builder::from_env() } else { AmazonS3Builder::new() };
        if let Some(endpoint) = options.endpoint_of(Scheme::S3) {
            builder = builder.with_endpoint(endpoint);
        }
        builder = configured!(builder, base, options, AmazonS3ConfigKey::Client).with_bucket_name(base.name());
        if options.anonymous {
            builder = builder.with_skip_signature(true);
        }
        let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
        let allowed = is_true(builder.get_config_value(&AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp)));
        builder = builder.with_allow_http(plain_http(options, endpoint.as_deref(), allowed)?);
        let unsigned = is_true(builder.get_config_value(&AmazonS3ConfigKey::SkipSignature));
        let store = Arc::new(builder.build().map_err(cannot_build(base))?);
        let remote = Remote { pages: Some(store.clone()), ..Remote::plain(base, store.clone()) };
        Ok(with_credentials(remote, store.credentials(), unsigned))
    }

    #[cfg(feature = "azure")]
    pub(super) fn az(base: &Base, options: &StoreOptions) -> Result<Remote> {
        use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};

        let mut builder =
            if options.environment { MicrosoftAzureBuilder::from_env() } else { MicrosoftAzureBuilder::new() };
        if let Some(endpoint) = options.endpoint_of(Scheme::Az) {
            builder = builder.with_endpoint(endpoint.to_owned());
        }
        builder = configured!(builder, base, options, AzureConfigKey::Client);
        // container@account.host names the account as well.
        builder = match base.name().contains('@') {
            true => builder.with_url(&base.url),
            false => builder.with_container_name(base.name()),
        };
        if options.anonymous {
            builder = builder.with_skip_signature(true);
        }
        let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
        let allowed = is_true(builder.get_config_value(&AzureConfigKey::Client(ClientConfigKey::AllowHttp)));
        builder = builder.with_allow_http(plain_http(options, endpoint.as_deref(), allowed)?);
        let unsigned = is_true(builder.get_config_value(&AzureConfigKey::SkipSignature));
        let store = Arc::new(builder.build().map_err(cannot_build(base))?);
        let remote = Remote { pages: Some(store.clone()), ..Remote::plain(base, store.clone()) };
        Ok(with_credentials(remote, store.credentials(), unsigned))
    }

    #[cfg(feature = "http")]
    pub(super) fn http(base: &Base, options: &StoreOptions) -> Result<Remote> {
        use object_store::http::HttpBuilder;

        let builder = HttpBuilder::new().with_url(&base.url).with_config(ClientConfigKey::AllowHttp, "true");
        let builder = configured!(builder, base, options, std::convert::identity);
        let store = builder.build().map_err(cannot_build(base))?;
        Ok(Remote::plain(base, Arc::new(store)))
    }
}
