//! The settings of a writer, made before anything is written.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::encode::Encode;
use super::folder::{Existing, Folder, Identity};
use super::images::Images;
use super::json::JsonLines;
use super::manifest::Manifest;
use super::output::{Codec, Output, Packing};
use super::pipeline::{Limits, Pipeline};
use super::shuffle::Shuffle;
use super::tfrecord::{self, TfRecord};
use super::{Writer, shuffle_folder};
use crate::engine::{Budget, Scheduler};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Column;

/// The default size of shards.
const SHARD_BYTES: u64 = 256 << 20;

/// The default number of images that get their names together.
const IMAGE_ROWS: u64 = 1000;

/// Describes a [`Writer`].
///
/// # Example
/// ```
/// use forebay::int64;
/// use forebay::writer::{Codec, Output};
/// use forebay::Writer;
///
/// let folder = tempfile::tempdir().unwrap();
/// let writer = Writer::builder(Output::JsonLines)
///     .bytes_per_shard(64 << 20)
///     .compression(Codec::Gzip)
///     .level(9)
///     .create(folder.path(), [int64("label")])?;
/// assert_eq!(writer.resume_at(), 0);
///
/// let error = Writer::builder(Output::TfRecord).compression(Codec::Snappy).create(folder.path(), [int64("label")]);
/// assert!(error.unwrap_err().to_string().contains("none, gzip, zlib"));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct WriterBuilder {
    output: Output,
    rows_per_shard: Option<u64>,
    bytes_per_shard: Option<u64>,
    expected_rows: Option<u64>,
    expected_bytes: Option<u64>,
    codec: Option<Codec>,
    level: Option<u32>,
    name: String,
    scheduler: Scheduler,
    budget: Budget,
    overwrite: bool,
    resume: bool,
    source: Option<String>,
    shuffle: Option<u64>,
    narrow: bool,
    bloom: Vec<String>,
    text: Vec<String>,
    row_group_bytes: Option<u64>,
    image: Option<String>,
    label: Option<String>,
    payloads: bool,
    more: BTreeMap<String, serde_json::Value>,
}

impl WriterBuilder {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            rows_per_shard: None,
            bytes_per_shard: None,
            expected_rows: None,
            expected_bytes: None,
            codec: None,
            level: None,
            name: "data".into(),
            scheduler: Scheduler::default(),
            budget: Budget::default(),
            overwrite: false,
            resume: false,
            source: None,
            shuffle: None,
            narrow: false,
            bloom: Vec::new(),
            text: Vec::new(),
            row_group_bytes: None,
            image: None,
            label: None,
            payloads: false,
            more: BTreeMap::new(),
        }
    }

    /// Sets the number of rows per shard; the last shard has the rest. For images: how many get their names together (default 1000).
    pub fn rows_per_shard(mut self, rows: u64) -> Self {
        self.rows_per_shard = Some(rows);
        self
    }

    /// Sets the maximum size of a shard in bytes, before compression: of the whole file, or, for Parquet, of its values. A larger row gets a shard of its own.
    /// Default 256 MiB, unless rows are set; if both are set, the limit that is reached first applies.
    pub fn bytes_per_shard(mut self, bytes: u64) -> Self {
        self.bytes_per_shard = Some(bytes);
        self
    }

    /// Sets how many rows there will be. With [`rows_per_shard`](Self::rows_per_shard) alone, the names of shards then include their total number:
    /// `data-00003-of-00012.parquet` instead of `data-00003.parquet`.
    pub fn expected_rows(mut self, rows: u64) -> Self {
        self.expected_rows = Some(rows);
        self
    }

    /// Sets about how many bytes of rows there will be, from which a shuffle sizes its buckets. The order does not depend on it.
    pub fn expected_bytes(mut self, bytes: u64) -> Self {
        self.expected_bytes = Some(bytes);
        self
    }

    /// Sets how shards are compressed. TFRecord: `None` (the default), `Gzip`, `Zlib`. Parquet: `Zstd` (the default) and all others but `Zlib`. Tar
    /// and JSON Lines: `None` (the default), `Gzip`, `Zstd`.
    pub fn compression(mut self, codec: Codec) -> Self {
        self.codec = Some(codec);
        self
    }

    /// Sets the level of compression: 0 to 9 for gzip and zlib (default 6), 1 to 22 for zstd (3), 0 to 11 for Brotli (5).
    pub fn level(mut self, level: u32) -> Self {
        self.level = Some(level);
        self
    }

    /// Sets how the names of shards begin: letters, digits, `-`, `_` and `.`. Default `data`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the number of threads that encode and compress. Default one per core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.scheduler = Scheduler::threads(threads);
        self
    }

    /// Sets how many bytes of rows may be in flight. Default a quarter of the machine's memory.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Starts over if the folder holds a data set, or the beginning of one, that a writer wrote: its shards are removed. Other files stay, unless a
    /// shard takes their name. In folders of images, every file named like their images, with eight digits or more, is removed. It takes precedence
    /// over [`resume`](Self::resume).
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Continues at [`Writer::resume_at`] where the same data set was interrupted. If there is nothing yet, it begins; a finished data set is refused
    /// ([`Manifest::read`](super::Manifest::read) tells whether it is finished).
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Describes what the rows are made from, in words or as a hash. If it differs, [`resume`](Self::resume) refuses to continue.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Writes the rows in a random order that depends on this seed, across all shards. Rows are first distributed to files in the folder, which takes as
    /// much disk space again; memory is bounded by the [`budget`](Self::budget). Shards only appear once [`Writer::finish`] is called.
    ///
    /// # Randomness
    /// The order is a function of the seed and the rows' numbers: it is the same for any threads, budget, and sizes of batches and shards.
    pub fn shuffle(mut self, seed: u64) -> Self {
        self.shuffle = Some(seed);
        self
    }

    /// Allows f64 to be rounded to f32 where the format has no f64: TFRecord.
    pub fn narrow(mut self, narrow: bool) -> Self {
        self.narrow = narrow;
        self
    }

    /// Parquet: sets the columns that get Bloom filters, for looking up single values.
    pub fn bloom_filters<S: Into<String>>(mut self, columns: impl IntoIterator<Item = S>) -> Self {
        self.bloom = columns.into_iter().map(Into::into).collect();
        self
    }

    /// Parquet: sets the columns of byte strings that are text. They are checked to be UTF-8 and marked as text, so that other readers read them as
    /// strings.
    pub fn text_columns<S: Into<String>>(mut self, columns: impl IntoIterator<Item = S>) -> Self {
        self.text = columns.into_iter().map(Into::into).collect();
        self
    }

    /// Parquet: sets the bytes of values in a row group. Default 8 MiB. A loader reads one row group at a time.
    pub fn row_group_bytes(mut self, bytes: u64) -> Self {
        self.row_group_bytes = Some(bytes);
        self
    }

    /// Images: sets the column of encoded images. Default `image/encoded`, `image`, `jpg`, …
    pub fn image_column(mut self, name: impl Into<String>) -> Self {
        self.image = Some(name.into());
        self
    }

    /// Images: sets the column of labels, which become folders. Default `image/class/text`, `label`, …
    pub fn label_column(mut self, name: impl Into<String>) -> Self {
        self.label = Some(name.into());
        self
    }

    /// TFRecord: the only column holds payloads, which are stored unchanged.
    #[cfg(feature = "cli")]
    pub(crate) fn payloads(mut self, payloads: bool) -> Self {
        self.payloads = payloads;
        self
    }

    /// Adds another option that affects the shards, and so has to be the same when a run continues.
    #[cfg(feature = "cli")]
    pub(crate) fn option(mut self, name: &str, value: serde_json::Value) -> Self {
        self.more.insert(name.to_owned(), value);
        self
    }

    /// Prepares the folder and starts the threads.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for settings that cannot work, and for a folder that holds files that would be overwritten; [`ErrorKind::Schema`] for a
    /// column that the format cannot hold.
    pub fn create(self, folder: impl AsRef<Path>, columns: impl IntoIterator<Item = Column>) -> Result<Writer> {
        let columns: Vec<Column> = columns.into_iter().collect();
        let (packing, encode) = self.settle(&columns)?;
        let default_rows = (self.output == Output::Images).then_some(IMAGE_ROWS);
        let default_bytes = (self.output != Output::Images && self.rows_per_shard.is_none()).then_some(SHARD_BYTES);
        let limits =
            Limits { rows: self.rows_per_shard.or(default_rows), bytes: self.bytes_per_shard.or(default_bytes) };
        let identity = Identity {
            version: Manifest::VERSION,
            format: self.output,
            columns: columns.clone(),
            options: self.options(limits, packing),
            source: self.source.clone(),
            name: self.name.clone(),
            extension: self.output.extension(packing.codec).to_owned(),
            num_shards: match (limits, self.expected_rows, self.output) {
                (_, _, Output::Images) | (Limits { bytes: Some(_), .. }, ..) => None,
                (Limits { rows: Some(each), .. }, Some(rows), _) => Some(rows.div_ceil(each)),
                _ => None,
            },
        };
        let existing = match (self.overwrite, self.resume) {
            (true, _) => Existing::Overwrite,
            (false, true) => Existing::Resume,
            (false, false) => Existing::Refuse,
        };
        let folder = Arc::new(Folder::open(folder.as_ref(), identity, existing)?);
        let (shards, _, consumed) = folder.progress();
        let budget = self.budget.bytes();
        let shuffle = match self.shuffle {
            Some(seed) => {
                Some(Shuffle::new(&columns, seed, &shuffle_folder(&folder), budget / 2, self.expected_bytes)?)
            }
            None => None,
        };
        let share = if shuffle.is_some() { budget / 2 } else { budget };
        let threads = self.scheduler.num_threads();
        let compression = tfrecord::compression(packing.codec);
        let by_rows = self.output == Output::Images;
        let pipeline = Pipeline::new(encode, Arc::clone(&folder), limits, share, threads, by_rows, compression)?;
        Ok(Writer {
            schema: crate::schema::arrow_schema(&columns),
            consumed: if shuffle.is_some() { 0 } else { consumed },
            columns,
            folder,
            pipeline,
            shuffle,
            before: (shards, consumed),
            failed: None,
        })
    }

    /// Reports what [`create`](Self::create) would refuse in the settings and the columns, for callers that clear the folder first.
    #[cfg(feature = "cli")]
    pub(crate) fn validate(&self, columns: &[Column]) -> Result<()> {
        self.settle(columns).map(|_| ())
    }

    fn settle(&self, columns: &[Column]) -> Result<(Packing, Arc<dyn Encode>)> {
        let packing = self.output.packing(self.codec, self.level)?;
        self.check(columns)?;
        Ok((packing, self.encoder(columns, packing)?))
    }

    fn check(&self, columns: &[Column]) -> Result<()> {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let begins = self.name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || self.name.len() > 100 || !self.name.chars().all(known) {
            return Err(Error::config(format!("`{}` cannot be what shards are called", self.name))
                .advice("take letters, digits, `-`, `_` and `.`, and begin with a letter or digit"));
        }
        for (what, zero) in [
            ("rows of a shard", self.rows_per_shard == Some(0)),
            ("bytes of a shard", self.bytes_per_shard == Some(0)),
            ("bytes of a row group", self.row_group_bytes == Some(0)),
        ] {
            if zero {
                return Err(Error::config(format!("0 {what}")).advice("take 1 or more"));
            }
        }
        if columns.is_empty() {
            return Err(Error::new(ErrorKind::Schema, "there is no column to write").advice("name the columns"));
        }
        let mut names: Vec<&str> = columns.iter().map(|column| column.name().as_ref()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                let error = Error::new(ErrorKind::Schema, "there are two columns of this name").column(pair[0]);
                Err(error.advice("rename one of them"))
            }
            None => Ok(()),
        }
    }

    fn encoder(&self, columns: &[Column], packing: Packing) -> Result<Arc<dyn Encode>> {
        Ok(match self.output {
            Output::TfRecord if self.payloads => Arc::new(TfRecord::of_payloads(&columns[0], packing)),
            Output::TfRecord => Arc::new(TfRecord::new(columns, packing, self.narrow)?),
            #[cfg(feature = "parquet")]
            Output::Parquet => {
                let row_group_bytes = self.row_group_bytes.unwrap_or(super::parquet::ROW_GROUP_BYTES);
                Arc::new(super::parquet::Parquet::new(columns, packing, &self.bloom, &self.text, row_group_bytes)?)
            }
            #[cfg(feature = "tar")]
            Output::Tar => Arc::new(super::tar::Tar::new(columns, packing)?),
            Output::JsonLines => Arc::new(JsonLines::new(columns, packing)),
            Output::Images => Arc::new(Images::new(columns, self.image.as_deref(), self.label.as_deref())?),
            #[cfg(not(feature = "parquet"))]
            Output::Parquet => unreachable!("refused by `packing`"),
            #[cfg(not(feature = "tar"))]
            Output::Tar => unreachable!("refused by `packing`"),
        })
    }

    /// Returns the options that affect the shards.
    fn options(&self, limits: Limits, packing: Packing) -> BTreeMap<String, serde_json::Value> {
        let mut options = self.more.clone();
        let mut put = |key: &str, value: serde_json::Value| _ = options.insert(key.to_owned(), value);
        for (key, limit) in [("rows_per_shard", limits.rows), ("bytes_per_shard", limits.bytes)] {
            limit.into_iter().for_each(|limit| put(key, json!(limit)));
        }
        put("name", json!(self.name));
        put("compression", json!(packing.codec));
        put("level", json!(packing.level));
        self.shuffle.into_iter().for_each(|seed| put("shuffle", json!(seed)));
        for (key, is_set) in [("narrow", self.narrow), ("payloads", self.payloads)] {
            if is_set {
                put(key, json!(true));
            }
        }
        if self.output == Output::Parquet {
            put("bloom_filters", json!(self.bloom));
            put("text_columns", json!(self.text));
            self.row_group_bytes.into_iter().for_each(|bytes| put("row_group_bytes", json!(bytes)));
        }
        if self.output == Output::Images {
            put("image_column", json!(self.image));
            put("label_column", json!(self.label));
        }
        options
    }
}
