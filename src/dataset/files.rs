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
    /// Arrow IPC files and streams: `.arrow`, `.feather`, `.ipc`, `.arrows`.
    ArrowIpc(ArrowIpc),
}

impl Format {
    /// The format that a file's name ends in, if it ends in one.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let plain = [".gz", ".zst", ".zstd", ".zlib"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        match plain.rsplit_once('.')?.1 {
            "tfrecord" | "tfrecords" | "tfrec" => Some(Self::TfRecord(TfRecord::new())),
            "arrow" | "arrows" | "feather" | "ipc" => Some(Self::ArrowIpc(ArrowIpc::new())),
            _ => None,
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::TfRecord(_) => "TFRecord",
            Self::ArrowIpc(_) => "Arrow IPC",
        }
    }

    /// What was said about reading it, to be put behind the URLs.
    pub(crate) fn options(&self) -> &dyn fmt::Display {
        match self {
            Self::TfRecord(options) => options,
            Self::ArrowIpc(options) => options,
        }
    }

    /// What of that changes which rows there are, for states.
    pub(crate) fn mark(&self) -> String {
        match self {
            Self::TfRecord(options) if options.records => "records".into(),
            Self::TfRecord(_) | Self::ArrowIpc(_) => String::new(),
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

impl From<ArrowIpc> for Format {
    fn from(options: ArrowIpc) -> Self {
        Self::ArrowIpc(options)
    }
}

/// How Arrow IPC files and streams are read: a record batch is a block, the columns are its fields. Which of the two a shard is, and whether
/// its buffers are compressed, is recognised by content.
///
/// # Example
/// ```
/// use std::sync::Arc;
///
/// use arrow::array::{Int64Array, RecordBatch};
/// use arrow::ipc::writer::FileWriter;
/// use forebay::{ArrowIpc, Dataset, store::Store};
///
/// let ids = Arc::new(Int64Array::from_iter_values(0..10));
/// let batch = RecordBatch::try_from_iter([("id", ids as _)])?;
/// let mut writer = FileWriter::try_new(Vec::new(), &batch.schema())?;
/// writer.write(&batch)?;
/// writer.finish()?;
/// Store::memory_put("memory://docs-ipc/ids", writer.into_inner()?.into())?;
///
/// let dataset = Dataset::open_with("memory://docs-ipc/ids", ArrowIpc::new())?.batch(10);
/// let batch = dataset.loader().build()?.into_iter().next().expect("ten rows are a batch")?;
/// assert_eq!(batch.values::<i64>("id")?.len(), 10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ArrowIpc {}

impl ArrowIpc {
    /// Files and streams, whichever a shard is.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Display for ArrowIpc {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
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
