//! The one error type: what went wrong, where, and what to change.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the loader: a kind to match on, the place it happened at, and advice.
///
/// It prints as `place (stage): what happened; what to change`, for instance
/// `gs://b/train-00017.tfrecord, record 2041, byte 88120331 (decode): payload checksum 1f2e77aa, stored 09c4d1e0; fetch the shard again`. An error is one word
/// wide, so that the success path stays small, and it is cheap to clone.
///
/// # Example
/// ```
/// use forebay::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::Corrupt, "payload checksum 1f2e77aa, stored 09c4d1e0")
///     .url("file:///data/train.tfrecord")
///     .record(2041)
///     .advice("fetch the shard again");
/// assert_eq!(error.kind(), ErrorKind::Corrupt);
/// assert_eq!(error.place().record, Some(2041));
/// assert!(error.to_string().ends_with("; fetch the shard again"));
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    advice: Option<Cow<'static, str>>,
    place: Place,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of error that a caller may want to tell apart.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The configuration cannot work; the message names each call that fixes it.
    Config,
    /// A shard, bucket or folder does not exist, or a pattern matches nothing.
    NotFound,
    /// Credentials are missing or refused.
    Access,
    /// The store answered incorrectly, too late or not at all.
    Transfer,
    /// Stored bytes are damaged: a checksum, a length, an image.
    Corrupt,
    /// A column is missing or has another type or length than declared.
    Schema,
    /// A user's function returned an error.
    Transform,
    /// The memory budget cannot hold what the plan needs.
    Memory,
    /// The device or its driver failed.
    Device,
    /// A function panicked; the place holds the sample.
    Panicked,
}

/// Where an error happened. Each layer fills in the part that it knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The stage of the pipeline: `list`, `read`, `decode`, `map "name"`, `image`, `collate`.
    pub stage: Option<Cow<'static, str>>,
    /// The shard.
    pub url: Option<Arc<str>>,
    /// The block within the catalog.
    pub block: Option<u64>,
    /// The record within the shard, counted from 0.
    pub record: Option<u64>,
    /// The byte offset within the shard (within its decompressed content if the shard is compressed).
    pub byte_offset: Option<u64>,
    /// The column.
    pub column: Option<Arc<str>>,
    /// The sample id: the row's number within the data set.
    pub sample: Option<u64>,
}

impl Error {
    /// Makes an error of `kind`; the message says what happened, without place and advice.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), advice: None, place: Place::default(), source: None }))
    }

    /// A configuration error.
    pub(crate) fn config(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// Damaged bytes.
    pub(crate) fn corrupt(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    fn with(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Says what the reader can change.
    pub fn advice(self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.with(|e| e.advice = Some(advice.into()))
    }

    /// Says that a bad record need not end the epoch.
    pub(crate) fn or_leave_out(self) -> Self {
        let way_out = "go on without it: .on_bad_record(Skip::up_to(100))";
        self.with(|e| {
            let advice = e.advice.take().map(|advice| format!("{advice}, or {way_out}"));
            e.advice = Some(advice.map_or(way_out.into(), Cow::Owned));
        })
    }

    /// Keeps the error that led to this one.
    pub fn because(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.with(|e| e.source = Some(Arc::new(source)))
    }

    /// Adds the stage, unless a lower layer already named one.
    pub fn stage(self, stage: impl Into<Cow<'static, str>>) -> Self {
        self.with(|e| _ = e.place.stage.get_or_insert(stage.into()))
    }

    /// Adds the shard, unless already known.
    pub fn url(self, url: impl Into<Arc<str>>) -> Self {
        self.with(|e| _ = e.place.url.get_or_insert(url.into()))
    }

    /// Adds the block, unless already known.
    pub fn block(self, block: u64) -> Self {
        self.with(|e| _ = e.place.block.get_or_insert(block))
    }

    /// Adds the record's number in its shard, unless already known.
    pub fn record(self, record: u64) -> Self {
        self.with(|e| _ = e.place.record.get_or_insert(record))
    }

    /// Adds the byte offset in the shard, unless already known.
    pub fn byte_offset(self, offset: u64) -> Self {
        self.with(|e| _ = e.place.byte_offset.get_or_insert(offset))
    }

    /// Adds the column, unless already known.
    pub fn column(self, column: impl Into<Arc<str>>) -> Self {
        self.with(|e| _ = e.place.column.get_or_insert(column.into()))
    }

    /// Adds the sample id, unless already known.
    pub fn sample(self, sample: u64) -> Self {
        self.with(|e| _ = e.place.sample.get_or_insert(sample))
    }

    /// Returns the kind, to match on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns where the error happened.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// Returns what happened, without place and advice.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What happened and what led to it, without place and advice.
    pub(crate) fn reason(&self) -> String {
        let mut reason = self.0.message.to_string();
        let mut source = self.0.source.as_ref().map(|e| &**e as &dyn std::error::Error);
        while let Some(error) = source {
            reason.push_str(": ");
            reason.push_str(&error.to_string());
            source = error.source();
        }
        reason
    }

    /// Returns the error that led to this one, if there was one; in a user function's error, that is the argument of [`because`](Self::because).
    ///
    /// `Display` has already printed it, so it is not the [`source`](std::error::Error::source).
    ///
    /// # Example
    /// ```
    /// use forebay::{Error, ErrorKind};
    ///
    /// let error = Error::new(ErrorKind::Transform, "no label").because("seven".parse::<i64>().unwrap_err());
    /// assert!(error.cause().is_some_and(|cause| cause.is::<std::num::ParseIntError>()));
    /// assert_eq!(error.to_string(), "no label: invalid digit found in string");
    /// ```
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.0.source.as_deref()
    }

    /// Returns what the reader can change, if that is known.
    pub fn advised(&self) -> Option<&str> {
        self.0.advice.as_deref()
    }

    /// Returns whether the same request may succeed when sent again. This alone decides retries.
    pub fn is_transient(&self) -> bool {
        self.0.kind == ErrorKind::Transfer
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut part = |f: &mut fmt::Formatter<'_>, name: &str, value: Option<&dyn fmt::Display>| match value {
            Some(value) => write!(f, "{}{name}{value}", std::mem::replace(&mut separator, ", ")),
            None => Ok(()),
        };
        part(f, "", self.url.as_ref().map(|v| v as _))?;
        part(f, "block ", self.block.as_ref().map(|v| v as _))?;
        part(f, "record ", self.record.as_ref().map(|v| v as _))?;
        part(f, "byte ", self.byte_offset.as_ref().map(|v| v as _))?;
        part(f, "column ", self.column.as_ref().map(|v| v as _))?;
        part(f, "sample ", self.sample.as_ref().map(|v| v as _))?;
        match &self.stage {
            Some(stage) => write!(f, "{}({stage})", if separator.is_empty() { "" } else { " " }),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.0.place.to_string();
        if !place.is_empty() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.reason())?;
        if let Some(advice) = &self.0.advice {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_place_message_source_and_advice_in_that_order() {
        let error = Error::new(ErrorKind::Transfer, "request failed")
            .because(std::io::Error::other("reset"))
            .url("gs://b/a")
            .record(3)
            .stage("read")
            .advice("try later");
        assert_eq!(error.to_string(), "gs://b/a, record 3 (read): request failed: reset; try later");
        assert_eq!(error.reason(), "request failed: reset");
        assert!(error.is_transient());
    }

    #[test]
    fn the_layer_nearest_to_the_fault_names_the_place() {
        let error = Error::corrupt("x").record(1).record(2).stage("frame").stage("decode");
        assert_eq!(error.to_string(), "record 1 (frame): x");
    }

    #[test]
    fn is_one_word() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
