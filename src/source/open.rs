//! Opening shards: what the loader wants of them, and which source reads their format.

use std::path::PathBuf;
use std::sync::Arc;

#[cfg(feature = "tar")]
use super::tar;
#[cfg(feature = "text")]
use super::text;
use super::{Arriving, Source, images, ipc, tfrecord};
use crate::dataset::expr::Expr;
use crate::dataset::files::{Format, ImageFolder};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Column;
use crate::store::{Object, Store};

/// Where row counts come from.
///
/// # Example
/// ```no_run
/// use forebay::{Dataset, Index};
///
/// let dataset = Dataset::open("gs://bucket/train-*.tfrecord")?.batch(256);
/// let loader = dataset.loader().index(Index::Build).build()?;
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Index {
    /// Indexes that are there are used; local plain shards are indexed by hopping from header to header; others are read
    /// as they come, and leave an index behind.
    #[default]
    Auto,
    /// Shards without index are read once to build it, before the first batch.
    Build,
}

/// What the loader wants of the shards.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The URLs and patterns, as the user wrote them.
    pub(crate) patterns: Vec<String>,
    pub(crate) columns: Option<Vec<Column>>,
    /// Columns of conditions, wanted as they are stored besides `columns`.
    pub(crate) also: Vec<Arc<str>>,
    /// Whether anything but conditions, images and the batch looks at the rows.
    #[cfg_attr(not(feature = "parquet"), expect(dead_code, reason = "only Parquet makes use of it"))]
    pub(crate) is_seen: bool,
    /// What holds for each row that is wanted: rows for which it does not may be left out.
    #[cfg_attr(not(feature = "parquet"), expect(dead_code, reason = "only Parquet makes use of it"))]
    pub(crate) conditions: Vec<Arc<Expr>>,
    pub(crate) index: Index,
    pub(crate) index_dir: Option<PathBuf>,
    /// Blocks that a shuffle would like to mix, at least.
    pub(crate) min_blocks: u64,
    /// Rows up to which the data set is shuffled as a whole, in blocks as large as they come.
    pub(crate) whole_rows: u64,
    /// Rows are read one by one, in any order.
    pub(crate) by_rows: bool,
    pub(crate) shuffled: bool,
    /// Why an index is needed, if it is.
    pub(crate) needs_index: Option<String>,
    /// Whether shards are to be read as if they had no index.
    pub(crate) arrives: bool,
    /// Whether what cannot be read of a damaged shard counts as one bad record, instead of ending the pass.
    pub(crate) leave_out: bool,
    /// Whether a shard that is damaged behind its first rows is not opened; else a bad row stands for what cannot be found of it.
    pub(crate) whole_shards: bool,
    /// Whether columns that are inferred are those of all shards of Parquet, Arrow, CSV and tar, instead of those of the first: what is not in every shard
    /// is optional. A record of TFRecord, or a line of JSON, with values beyond the columns is bad.
    pub(crate) all_columns: bool,
    /// The largest record that the budget lets be held.
    pub(crate) max_bytes: usize,
}

impl Wanted {
    /// The command that builds the indexes of these shards where the loader looks for them.
    pub(super) fn rebuild_command(&self) -> String {
        let mut command = "forebay index".to_owned();
        self.patterns.iter().for_each(|pattern| command += &format!(" '{pattern}'"));
        if let Some(dir) = &self.index_dir {
            command += &format!(" --index-dir '{}'", dir.display());
        }
        command
    }
}

/// Opened shards, and what is remarkable about their indexes.
pub(crate) struct Opening {
    pub(crate) opened: Opened,
    pub(crate) notes: Vec<String>,
}

/// Opened shards.
#[derive(Clone)]
pub(crate) enum Opened {
    /// Blocks of known row counts, in any order.
    Indexed(Arc<dyn Source>),
    /// Blocks as they come.
    Arriving(Arc<dyn Arriving>),
}

impl Opened {
    /// Sample ids that its rows take, counted from the end of those before it; shards without index have their own.
    pub(crate) fn num_ids(&self) -> u64 {
        match self {
            Self::Indexed(source) => source.catalog().rows(),
            Self::Arriving(_) => 0,
        }
    }

    pub(crate) fn columns(&self) -> &[Column] {
        match self {
            Self::Indexed(source) => source.columns(),
            Self::Arriving(source) => source.columns(),
        }
    }
}

/// Lists the shards and opens them in their format: the one stated, or else that of their names.
pub(crate) async fn open(store: Store, format: Option<Format>, wanted: Wanted) -> Result<Opening> {
    let objects = store.list(&wanted.patterns).await.map_err(|e| e.stage("list"))?;
    let mut incomplete = store.incomplete(&wanted.patterns, &objects).await?.into_iter();
    if let Some(first) = incomplete.next() {
        return Err(first.error(incomplete.len()));
    }
    open_listed(store, objects, format, wanted).await
}

/// The same of shards that were listed already.
pub(crate) async fn open_listed(
    store: Store,
    objects: Vec<Object>,
    format: Option<Format>,
    wanted: Wanted,
) -> Result<Opening> {
    let format = match format {
        Some(format) => format,
        None => format_of(&objects)?,
    };
    let is = format.clone();
    let opening = match format {
        Format::TfRecord(options) => tfrecord::open(store, objects, options, wanted).await,
        #[cfg(feature = "parquet")]
        Format::Parquet(_) => super::parquet::open(store, objects, wanted).await,
        #[cfg(not(feature = "parquet"))]
        Format::Parquet(_) => {
            Err(Error::config("this build reads no Parquet").advice("switch on the feature `parquet`"))
        }
        Format::ArrowIpc(options) => ipc::open(store, objects, options, wanted).await,
        Format::Images(options) => images::open(store, objects, options, wanted).await,
        #[cfg(feature = "tar")]
        Format::Tar(options) => tar::open(store, objects, options, wanted).await,
        #[cfg(not(feature = "tar"))]
        Format::Tar(_) => Err(without("tar archives", "tar")),
        #[cfg(feature = "text")]
        Format::JsonLines(options) => text::open_json(store, objects, options, wanted).await,
        #[cfg(feature = "text")]
        Format::Csv(options) => text::open_csv(store, objects, options, wanted).await,
        #[cfg(not(feature = "text"))]
        Format::JsonLines(_) | Format::Csv(_) => Err(without("JSON Lines and CSV", "text")),
    };
    opening.map_err(|error| doubt(&is, error))
}

/// An error at the beginning of a shard whose name does not say that it is of this format: it may be of another one, or no shard.
pub(crate) fn doubt(format: &Format, error: Error) -> Error {
    let place = error.place();
    let Some(url) = place.url.clone().filter(|url| Format::of_name(url).is_none()) else { return error };
    let is_beginning = place.record.unwrap_or(0) == 0 && place.byte_offset.unwrap_or(0) == 0;
    let is_of_content = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Schema);
    if !is_beginning || !is_of_content || matches!(format, Format::Images(_)) {
        return error;
    }
    let folder = url.rsplit_once('/').map_or("", |(folder, _)| folder.trim_start_matches("file://"));
    let message = format!("{}; its name does not say that it is {}", error.reason(), format.name());
    let mut doubted = Error::new(error.kind(), message).url(url.clone());
    for (known, add) in
        [(place.record, Error::record as fn(Error, u64) -> Error), (place.byte_offset, Error::byte_offset)]
    {
        doubted = known.map_or(doubted.clone(), |known| add(doubted, known));
    }
    let state = match images::is_image(&url) {
        true => "read the folder as images: Dataset::open_with(urls, ImageFolder::new())",
        false => "state the format: Dataset::open_with(urls, format)",
    };
    let word = format.word();
    let advice = format!("{state}, or name the shards alone, with a pattern such as {folder}/*.{word}");
    doubted.advice(error.advised().map_or_else(|| advice.clone(), |known| format!("{known}, or {advice}")))
}

/// A format that was left out when compiling.
#[allow(dead_code, reason = "with all features there is none")]
fn without(format: &str, feature: &str) -> Error {
    Error::config(format!("{format} are not compiled in"))
        .advice(format!("compile forebay with the feature `{feature}`: --features {feature}"))
}

/// The format that the names of the shards end in: images where all are called like one, TFRecord where none says anything.
pub(crate) fn format_of(objects: &[Object]) -> Result<Format> {
    if !objects.is_empty() && objects.iter().all(|object| images::is_image(&object.url)) {
        return Ok(ImageFolder::new().into());
    }
    let mut named = objects.iter().filter_map(|object| Some((object, Format::of_name(&object.url)?)));
    let Some((first, format)) = named.next() else { return Ok(Format::TfRecord(Default::default())) };
    match named.find(|(_, other)| *other != format) {
        None => Ok(format),
        Some((other, _)) => Err(Error::config(format!("shards of several formats: {} and {}", first.url, other.url))
            .advice("name those of one format, with a pattern such as data/*.parquet")),
    }
}
