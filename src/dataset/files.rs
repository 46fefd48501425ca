//! Formats of shards, and how each is read.

use std::fmt;

use crate::format::tfrecord::Compression;

/// The format of shards, with what is said about reading it.
///
/// # Example
/// ```
/// use forebay::{Dataset, Format, TfRecord};
///
/// let format: Format = TfRecord::new().records().into();
/// assert_eq!(format.to_string(), "TFRecord -> record: bytes");
/// let dataset = Dataset::open_with("data/", format)?;
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Format {
    /// TFRecord: `.tfrecord`, and what else has no name of its own.
    TfRecord(TfRecord),
    /// Parquet: `.parquet`.
    Parquet(Parquet),
}

impl Format {
    /// The format that a file's name ends in, if it ends in one.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let plain = [".gz", ".zst", ".zstd", ".zlib"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        match plain.rsplit_once('.')?.1 {
            "tfrecord" | "tfrecords" | "tfrec" => Some(Self::TfRecord(TfRecord::new())),
            "parquet" | "parq" | "pq" => Some(Self::Parquet(Parquet::new())),
            _ => None,
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::TfRecord(_) => "TFRecord",
            Self::Parquet(_) => "Parquet",
        }
    }

    /// What was said about reading it, to be put behind the URLs.
    pub(crate) fn options(&self) -> &dyn fmt::Display {
        match self {
            Self::TfRecord(options) => options,
            Self::Parquet(options) => options,
        }
    }

    /// What of that changes which rows there are, for states.
    pub(crate) fn mark(&self) -> String {
        match self {
            Self::TfRecord(options) if options.records => "records".into(),
            Self::TfRecord(_) | Self::Parquet(_) => String::new(),
        }
    }

    /// The format that all of some patterns end in.
    pub(crate) fn of_patterns(patterns: &[String]) -> Option<Self> {
        let mut formats = patterns.iter().map(|pattern| Self::of_name(pattern));
        let first = formats.next().flatten()?;
        formats.all(|format| format.as_ref() == Some(&first)).then_some(first)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name(), self.options())
    }
}

impl From<TfRecord> for Format {
    fn from(options: TfRecord) -> Self {
        Self::TfRecord(options)
    }
}

/// How TFRecord shards are read.
///
/// # Example
/// ```
/// use forebay::{Dataset, TfRecord};
///
/// let dataset = Dataset::open_with("data/*.tfrecord", TfRecord::new().records());
/// assert!(dataset?.explain().contains("record"));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TfRecord {
    pub(crate) compression: Option<Compression>,
    pub(crate) unchecked: bool,
    pub(crate) records: bool,
}

impl TfRecord {
    /// `tf.Example` or `tf.SequenceExample` records, checksums verified, compression recognised by content.
    pub fn new() -> Self {
        Self::default()
    }

    /// States the compression instead of recognising it.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Leaves out the checksum of payloads. That of lengths is always verified.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        self.unchecked = true;
        self
    }

    /// Gives each payload as it is, in one column of bytes named `record`.
    #[must_use]
    pub fn records(mut self) -> Self {
        self.records = true;
        self
    }
}

impl fmt::Display for TfRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(compression) = self.compression {
            write!(f, ", {compression:?}")?;
        }
        if self.unchecked {
            f.write_str(", payload checksums not verified")?;
        }
        if self.records { f.write_str(" -> record: bytes") } else { Ok(()) }
    }
}

/// How Parquet files are read.
///
/// # Example
/// ```
/// use forebay::{Dataset, Parquet};
///
/// let dataset = Dataset::open_with("gs://bucket/train/", Parquet::new())?;
/// assert!(dataset.explain().contains("Parquet"));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parquet {}

impl Parquet {
    /// Row groups as blocks; the columns that are asked for.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Display for Parquet {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl From<Parquet> for Format {
    fn from(options: Parquet) -> Self {
        Self::Parquet(options)
    }
}
