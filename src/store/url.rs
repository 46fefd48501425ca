//! Locations of objects: URLs are parsed, and written again in one canonical form.
//!
//! Keys of buckets are taken literally, as `gcloud storage` and `aws s3` do: a `%` or `#` in `gs://bucket/key` is that character. `file://` and
//! `http(s)://` are URLs in the strict sense and are percent-decoded. Plain paths are paths.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use url::Url;

use crate::{Error, Result};

/// The protocol that a URL implies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scheme {
    Gs,
    S3,
    Az,
    Http,
    Memory,
    /// A scheme that only a store registered by the user knows.
    Other,
}

impl Scheme {
    /// Returns the scheme that a URL or an option names, aliases included.
    pub(super) fn named(name: &str) -> Self {
        match name {
            "gs" | "gcs" => Self::Gs,
            "s3" | "s3a" | "s3n" => Self::S3,
            "az" | "azure" | "adl" | "abfs" | "abfss" => Self::Az,
            "http" | "https" => Self::Http,
            "memory" => Self::Memory,
            _ => Self::Other,
        }
    }

    /// Returns whether keys in URLs of this scheme are percent-encoded.
    pub(super) fn is_encoded(self) -> bool {
        self == Self::Http
    }

    /// Returns advice for when the store asks for credentials.
    pub(super) fn access_advice(self) -> &'static str {
        match self {
            Self::Gs => {
                "point GOOGLE_APPLICATION_CREDENTIALS at a key file or run `gcloud auth application-default login`; \
                 a public bucket is read with StoreOptions::anonymous(true)"
            }
            Self::S3 => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles in ~/.aws are not read), or attach a role; \
                 a public bucket is read with StoreOptions::anonymous(true). S3 also answers so for a missing key when \
                 listing is not allowed"
            }
            Self::Az => {
                "set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or attach an \
                 identity; a public container is read with StoreOptions::anonymous(true)"
            }
            Self::Http | Self::Memory | Self::Other => "check that the server lets this machine read the object",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gs => "gs",
            Self::S3 => "s3",
            Self::Az => "az",
            Self::Http => "http",
            Self::Memory => "memory",
            Self::Other => "other",
        })
    }
}

/// A bucket, container, host or in-memory store: what one client talks to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Base {
    pub(super) scheme: Scheme,
    /// Canonical, without a trailing slash: `gs://bucket`, `http://host:8080`.
    pub(super) url: String,
}

impl Base {
    /// The bucket, container or host.
    pub(super) fn name(&self) -> &str {
        self.url.split_once("://").map_or("", |(_, name)| name)
    }

    /// Returns the canonical URL of a key.
    pub(super) fn join(&self, key: &str) -> String {
        if self.scheme.is_encoded()
            && let Ok(mut url) = Url::parse(&self.url)
        {
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.clear().extend(key.split('/'));
            }
            return url.into();
        }
        format!("{}/{key}", self.url)
    }
}

/// The location of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Location {
    /// An absolute path.
    Local(PathBuf),
    /// A key, unescaped and without a leading slash, below a base.
    Remote(Base, String),
}

impl Location {
    /// Parses a URL or path literally: `*` and `{` are ordinary characters.
    pub(super) fn parse(text: &str) -> Result<Self> {
        match split(text)? {
            Split::Path(path) => absolute(Path::new(path)).map(Self::Local),
            Split::File(path) => Ok(Self::Local(PathBuf::from(OsString::from_vec(decode(path).into_owned())))),
            Split::Remote(base, key) => {
                let key = if base.scheme.is_encoded() { decode_key(text, key)? } else { Cow::Borrowed(key) };
                check_key(text, &key)?;
                Ok(Self::Remote(base, key.into_owned()))
            }
        }
    }

    /// Returns the canonical URL, from which [`Location::parse`] makes this location again.
    pub(super) fn url(&self) -> String {
        match self {
            Self::Local(path) => match Url::from_file_path(path) {
                Ok(url) => url.into(),
                Err(()) => format!("file://{}", path.display()),
            },
            Self::Remote(base, key) => base.join(key),
        }
    }
}

/// A URL or path in its two parts, with nothing decoded yet.
pub(super) enum Split<'a> {
    /// A plain path.
    Path(&'a str),
    /// The absolute path of a `file://` URL, percent-encoded.
    File(&'a str),
    /// A base, and the key without its leading slash.
    Remote(Base, &'a str),
}

/// Finds the scheme and splits off the base.
pub(super) fn split(text: &str) -> Result<Split<'_>> {
    if text.is_empty() {
        return Err(Error::config("an empty URL").advice("give a path, gs://bucket/key or another URL"));
    }
    if text.contains('\0') {
        return Err(Error::config("a URL with a zero byte in it").url(text));
    }
    if let Some(rest) = text.strip_prefix("file:") {
        let path = rest.strip_prefix("//").unwrap_or(rest);
        let path = path.strip_prefix("localhost").unwrap_or(path);
        if !path.starts_with('/') {
            return Err(Error::config("a file URL holds an absolute path and no host")
                .url(text)
                .advice("write file:///folder/file or a plain path"));
        }
        return Ok(Split::File(path));
    }
    let Some((name, rest)) = text.split_once("://").filter(|(name, _)| is_scheme(name)) else {
        return Ok(Split::Path(text));
    };
    let name = name.to_ascii_lowercase();
    let scheme = Scheme::named(&name);
    let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() {
        return Err(Error::config("no bucket or host after ://").url(text));
    }
    let url = match scheme {
        Scheme::Http => {
            if let Some(found) = rest.find(['?', '#']) {
                return Err(Error::config(format!(
                    "`{}` starts a query or fragment, which reads over {name} do not carry",
                    &rest[found..=found]
                ))
                .url(&text[..text.len() - rest.len() + found])
                .advice("write %3F or %23 when it belongs to the path; a signed link is not supported"));
            }
            if host.contains('@') {
                let hidden = format!("{name}://…@{}", host.rsplit('@').next().unwrap_or_default());
                return Err(
                    Error::config("a password in a URL would be printed in errors and saved in states").url(hidden)
                );
            }
            let parsed = Url::parse(&format!("{name}://{host}"))
                .map_err(|e| Error::config("not a host").url(text).because(e))?;
            parsed.as_str().trim_end_matches('/').to_owned()
        }
        Scheme::Other => format!("{name}://{host}"),
        _ => format!("{scheme}://{host}"),
    };
    Ok(Split::Remote(Base { scheme, url }, key))
}

fn is_scheme(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Undoes percent-encoding; a `%` that starts no escape stays.
pub(super) fn decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        match escape.and_then(|hex| Some(hex_digit(hex[0])? << 4 | hex_digit(hex[1])?)) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    Cow::Owned(decoded)
}

fn hex_digit(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}

/// Decodes a key of a percent-encoded scheme.
pub(super) fn decode_key<'a>(url: &str, key: &'a str) -> Result<Cow<'a, str>> {
    if key.to_ascii_lowercase().contains("%2f") {
        return Err(Error::config("%2F in a path: this server could not be asked for it").url(url));
    }
    match decode(key) {
        Cow::Borrowed(_) => Ok(Cow::Borrowed(key)),
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(key) => Ok(Cow::Owned(key)),
            Err(e) => Err(Error::config("the percent-encoded path is not UTF-8").url(url).because(e)),
        },
    }
}

/// Refuses keys that the clients cannot ask for.
pub(super) fn check_key(url: &str, key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(Error::config("a bucket without a key")
            .url(url)
            .advice("name an object, or end with / for all of them"));
    }
    key.strip_suffix('/').unwrap_or(key).split('/').try_for_each(|segment| check_segment(url, segment))
}

/// Refuses an invalid part of a key.
pub(super) fn check_segment(url: &str, segment: &str) -> Result<()> {
    let why = match segment {
        "" => "two slashes in a row",
        "." | ".." => "a `.` or `..` between slashes",
        _ if segment.bytes().any(|byte| byte.is_ascii_control()) => "a control character",
        _ => return Ok(()),
    };
    Err(Error::config(format!("{why}: such keys cannot be read")).url(url).advice("store the object under another key"))
}

/// Makes a path absolute without asking the file system; `.` and double slashes are removed.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::config("cannot make the path absolute").url(lossy(path)).because(e))
}

/// Returns a path for a message.
pub(super) fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn urls_are_made_canonical_and_parsed_back() {
        let cases = [
            ("gs://b/a/x.rec", "gs://b/a/x.rec"),
            ("gcs://b/x", "gs://b/x"),
            ("GS://b/x", "gs://b/x"),
            ("s3a://b/x", "s3://b/x"),
            ("abfs://c/x", "az://c/x"),
            ("abfss://c@acc.dfs.core.windows.net/x", "az://c@acc.dfs.core.windows.net/x"),
            ("azure://c/x", "az://c/x"),
            ("memory://m/x", "memory://m/x"),
            ("gs://b/50%25 of #1 [a]*", "gs://b/50%25 of #1 [a]*"),
            ("gs://b/größe/😀", "gs://b/größe/😀"),
            ("http://HOST:8080/a%20b/%23c", "http://host:8080/a%20b/%23c"),
            ("http://h/a b", "http://h/a%20b"),
            ("http://h:80/x", "http://h/x"),
            ("file:///a/b%20c%25", "file:///a/b%20c%25"),
            ("file:///a b", "file:///a%20b"),
            ("file:/a", "file:///a"),
            ("file://localhost/a", "file:///a"),
            ("/a/b c#?%", "file:///a/b%20c%23%3F%25"),
            ("/a/./b//c", "file:///a/b/c"),
        ];
        for (text, canonical) in cases {
            let location = Location::parse(text).unwrap();
            assert_eq!(location.url(), canonical, "{text}");
            assert_eq!(Location::parse(canonical).unwrap(), location, "{text}");
        }
        let relative = Location::parse("data/x").unwrap();
        assert_eq!(relative, Location::Local(std::env::current_dir().unwrap().join("data/x")));
    }

    #[test]
    fn encoded_bytes_that_are_no_text_are_still_a_file() {
        let location = Location::Local(PathBuf::from(OsString::from_vec(vec![b'/', 0xff, b'x'])));
        assert_eq!(location.url(), "file:///%FFx");
        assert_eq!(Location::parse("file:///%FFx").unwrap(), location);
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let cases = [
            ("", "empty"),
            ("gs://", "no bucket"),
            ("gs://b", "without a key"),
            ("gs://b/", "without a key"),
            ("gs://b/a//c", "two slashes"),
            ("gs://b/a/../c", "`..`"),
            ("file://host/a", "absolute path"),
            ("http://h/a?token=secret", "query"),
            ("http://u:secret@h/a", "password"),
            ("http://h/a%2fb", "%2F"),
        ];
        for (text, word) in cases {
            let error = Location::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
            assert!(error.to_string().contains(word), "{text}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
