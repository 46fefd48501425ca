//! Formats of shards, and how each is read.

use std::fmt;

use crate::format::tfrecord::Compression;

/// The format of shards, with the options for reading it.
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
    /// TFRecord: `.tfrecord`, and every name that indicates no other format.
    TfRecord(TfRecord),
    /// Parquet: `.parquet`.
    Parquet(Parquet),
    /// Arrow IPC files and streams: `.arrow`, `.feather`, `.ipc`, `.arrows`.
    ArrowIpc(ArrowIpc),
    /// One JSON object per line: `.jsonl`, `.ndjson`. Needs the feature `text`.
    JsonLines(JsonLines),
    /// Rows of fields: `.csv`, `.tsv`. Needs the feature `text`.
    Csv(Csv),
    /// Archives in the convention of WebDataset: `.tar`. Needs the feature `tar`.
    Tar(Tar),
    /// A folder of image files. State this format if the folder has other files too.
    Images(ImageFolder),
}

impl Format {
    /// Returns the format that the end of a file's name indicates, if it indicates one.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let plain = [".gz", ".zst", ".zstd", ".zlib"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        match plain.rsplit_once('.')?.1 {
            "tfrecord" | "tfrecords" | "tfrec" => Some(Self::TfRecord(TfRecord::new())),
            "parquet" | "parq" | "pq" => Some(Self::Parquet(Parquet::new())),
            "arrow" | "arrows" | "feather" | "ipc" => Some(Self::ArrowIpc(ArrowIpc::new())),
            "jsonl" | "ndjson" => Some(Self::JsonLines(JsonLines::new())),
            "csv" | "tsv" => Some(Self::Csv(Csv::new())),
            "tar" | "tgz" => Some(Self::Tar(Tar::new())),
            _ => None,
        }
    }

    /// Returns its name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::TfRecord(_) => "TFRecord",
            Self::Parquet(_) => "Parquet",
            Self::ArrowIpc(_) => "Arrow IPC",
            Self::JsonLines(_) => "JSON Lines",
            Self::Csv(_) => "CSV",
            Self::Tar(_) => "tar",
            Self::Images(_) => "images",
        }
    }

    /// Returns one word for it: the extension of its shards (except for images), and its name in the command.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::TfRecord(_) => "tfrecord",
            Self::Parquet(_) => "parquet",
            Self::ArrowIpc(_) => "arrow",
            Self::JsonLines(_) => "jsonl",
            Self::Csv(_) => "csv",
            Self::Tar(_) => "tar",
            Self::Images(_) => "images",
        }
    }

    /// Returns its read options, to be printed after the URLs.
    pub(crate) fn options(&self) -> &dyn fmt::Display {
        match self {
            Self::TfRecord(options) => options,
            Self::Parquet(options) => options,
            Self::ArrowIpc(options) => options,
            Self::JsonLines(options) => options,
            Self::Csv(options) => options,
            Self::Tar(options) => options,
            Self::Images(options) => options,
        }
    }

    /// Returns those options that change which rows there are, for states.
    pub(crate) fn mark(&self) -> String {
        match self {
            Self::TfRecord(options) if options.records => "records".into(),
            Self::Csv(options) => options.mark(),
            Self::TfRecord(_)
            | Self::Parquet(_)
            | Self::ArrowIpc(_)
            | Self::JsonLines(_)
            | Self::Tar(_)
            | Self::Images(_) => String::new(),
        }
    }

    /// Returns the format that the ends of all patterns indicate.
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

/// How Arrow IPC files and streams are read. A record batch is a block; its fields are the columns.
///
/// The content shows whether a shard is a file or a stream, and whether its buffers are compressed.
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
    /// Reads files and streams; the content of each shard shows which it is.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Display for ArrowIpc {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl From<JsonLines> for Format {
    fn from(options: JsonLines) -> Self {
        Self::JsonLines(options)
    }
}

impl From<Csv> for Format {
    fn from(options: Csv) -> Self {
        Self::Csv(options)
    }
}

impl From<Tar> for Format {
    fn from(options: Tar) -> Self {
        Self::Tar(options)
    }
}

/// How tar archives are read: in the convention of WebDataset.
///
/// Plain, gzip and zstd are recognised by content. No part of a compressed archive can be read alone, so a compressed archive is one block.
///
/// Consecutive members with the same key form a sample. The key is a name up to the first dot of its last part; the column is the part after that dot, in lower
/// case. A column is bytes or, if a number is declared, the number that the member spells in ASCII. `__key__` is the key.
///
/// # Memory
/// Bytes are views into the block that was read.
///
/// # Example
/// ```
/// # #[cfg(feature = "tar")] {
/// use forebay::{Dataset, bytes, int64, store::Store};
///
/// let mut archive = tar::Builder::new(Vec::new());
/// for (name, content) in [("0.jpg", "a picture"), ("0.cls", "7"), ("1.jpg", "another"), ("1.cls", "9")] {
///     let mut header = tar::Header::new_gnu();
///     header.set_size(content.len() as u64);
///     archive.append_data(&mut header, name, content.as_bytes())?;
/// }
/// Store::memory_put("memory://docs-tar/train.tar", archive.into_inner()?.into())?;
///
/// let dataset = Dataset::open("memory://docs-tar/train.tar")?.columns([bytes("jpg"), int64("cls")]).batch(2);
/// let mut loader = dataset.loader().build()?;
/// let batch = loader.epoch(0).next().expect("two samples are a batch")?;
/// assert_eq!(*batch.values::<i64>("cls")?, [7, 9]);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Tar {}

impl Tar {
    /// Groups members into samples by their names.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Display for Tar {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl From<ImageFolder> for Format {
    fn from(options: ImageFolder) -> Self {
        Self::Images(options)
    }
}

/// How a folder of images is read: each file with the name of an image file is a row; other files are left out.
///
/// | column | |
/// |---|---|
/// | `image: bytes` | the file |
/// | `label: i64` | the number of its class, in the order of names; 0 without class folders. The class is the folder directly below the common folder of all files |
/// | `path: bytes` | its name below the common folder of all files |
///
/// Classes are those of the files listed. To get the same numbers every time, list all files, with `photos/` rather than `photos/cat*`.
///
/// # Example
/// ```
/// use forebay::{Dataset, ImageFolder, store::Store};
///
/// for name in ["cat/0.png", "cat/1.png", "dog/0.png"] {
///     Store::memory_put(&format!("memory://docs-images/photos/{name}"), "a picture".into())?;
/// }
/// let dataset = Dataset::open_with("memory://docs-images/photos/", ImageFolder::new())?.batch(3);
/// let mut loader = dataset.loader().build()?;
/// let batch = loader.epoch(0).next().expect("three files are a batch")?;
/// assert_eq!(*batch.values::<i64>("label")?, [0, 0, 1]);
/// assert_eq!(batch.bytes("path")?.last(), Some(&b"dog/0.png"[..]));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ImageFolder {}

impl ImageFolder {
    /// Makes one row of each file.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Display for ImageFolder {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// How JSON Lines are read: one object per line; blank lines are left out. Plain, gzip and zstd are recognised by content.
///
/// Columns are the fields of the objects; fields of nested objects have dotted names. Without [`Dataset::columns`](crate::Dataset::columns), the columns are
/// inferred from the first 256 lines. A missing field is null.
///
/// # Example
/// ```
/// use forebay::{Dataset, JsonLines, float32, int64, store::Store};
///
/// let lines = "{\"id\": 1, \"at\": {\"x\": 0.5}}\n{\"id\": 2, \"at\": {\"x\": 1.5}}\n";
/// Store::memory_put("memory://docs-lines/log", lines.into())?;
/// let dataset = Dataset::open_with("memory://docs-lines/log", JsonLines::new())?;
/// # #[cfg(feature = "text")] {
/// let mut loader = dataset.columns([int64("id"), float32("at.x")]).batch(2).loader().build()?;
/// let batch = loader.epoch(0).next().expect("two lines are a batch")?;
/// assert_eq!(*batch.values::<f32>("at.x")?, [0.5, 1.5]);
/// # }
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct JsonLines {
    pub(crate) data_uris: bool,
}

impl JsonLines {
    /// Reads one object per line; strings are the bytes of their text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes strings that begin with `data:;base64,` to the bytes that their rest encodes.
    ///
    /// [`Writer`](crate::Writer) writes bytes that are not text in this way, and also text that begins so. A row is bad if the rest of such a string is not
    /// base64, padded as in RFC 4648.
    ///
    /// # Example
    /// ```
    /// use forebay::{Dataset, JsonLines, bytes, store::Store};
    ///
    /// let lines = "{\"raw\": \"data:;base64,//4D\"}\n{\"raw\": \"text\"}\n";
    /// Store::memory_put("memory://docs-uris/lines", lines.into())?;
    /// let dataset = Dataset::open_with("memory://docs-uris/lines", JsonLines::new().data_uris())?;
    /// # #[cfg(feature = "text")] {
    /// let mut loader = dataset.columns([bytes("raw")]).batch(2).loader().build()?;
    /// let batch = loader.epoch(0).next().expect("two lines are a batch")?;
    /// assert_eq!(batch.bytes("raw")?.collect::<Vec<_>>(), [&[0xff, 0xfe, 3][..], b"text"]);
    /// # }
    /// # Ok::<(), forebay::Error>(())
    /// ```
    #[must_use]
    pub fn data_uris(mut self) -> Self {
        self.data_uris = true;
        self
    }
}

impl fmt::Display for JsonLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.data_uris { f.write_str(", data URIs as their bytes") } else { Ok(()) }
    }
}

/// How CSV is read: as in RFC 4180, with line ends within quotes, a first row of names, and blank lines left out. Plain, gzip and zstd are recognised by
/// content.
///
/// An empty field is null; in a column of bytes it is an empty string. Without [`Dataset::columns`](crate::Dataset::columns), types are inferred from the first
/// 256 rows; dates and times become integers.
///
/// # Example
/// ```
/// use forebay::{Csv, Dataset, int64, store::Store};
///
/// Store::memory_put("memory://docs-csv/table", "id;name\n1;\"one; or more\"\n2;two\n".into())?;
/// let dataset = Dataset::open_with("memory://docs-csv/table", Csv::new().delimiter(b';'))?;
/// # #[cfg(feature = "text")] {
/// let mut loader = dataset.batch(2).loader().build()?;
/// let batch = loader.epoch(0).next().expect("two rows are a batch")?;
/// assert_eq!(batch.bytes("name")?.next(), Some(&b"one; or more"[..]));
/// # }
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Csv {
    pub(crate) delimiter: Option<u8>,
    pub(crate) no_header: bool,
}

impl Csv {
    /// Reads fields between commas, or between tabs in shards whose name ends in `.tsv`; the first row names the fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the delimiter between fields: one ASCII character.
    #[must_use]
    pub fn delimiter(mut self, delimiter: u8) -> Self {
        self.delimiter = Some(delimiter);
        self
    }

    /// Reads the first row as a record like the others. Columns are called `column_1`, `column_2`, ….
    #[must_use]
    pub fn without_header(mut self) -> Self {
        self.no_header = true;
        self
    }

    fn mark(&self) -> String {
        let delimiter = self.delimiter.map_or(String::new(), |delimiter| format!("delimiter {delimiter}"));
        if self.no_header { format!("{delimiter} no header") } else { delimiter }
    }
}

impl fmt::Display for Csv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(delimiter) = self.delimiter {
            write!(f, ", fields between {:?}", char::from(delimiter))?;
        }
        if self.no_header { f.write_str(", without header") } else { Ok(()) }
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
    /// Reads `tf.Example` or `tf.SequenceExample` records; verifies checksums, and recognises compression by content.
    pub fn new() -> Self {
        Self::default()
    }

    /// States the compression instead of recognising it.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Skips the checksums of payloads. Those of lengths are always verified.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        self.unchecked = true;
        self
    }

    /// Delivers each payload unparsed, in one column of bytes named `record`.
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
    /// Reads row groups as blocks, and only the requested columns.
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
