//! Writing shards: [`Writer`], the formats it writes, and the [`Manifest`] next to the shards.
//!
//! Rows arrive as Arrow record batches and leave as shards of a chosen size: TFRecord, Parquet, tar archives, JSON Lines, or folders of images.
//! Shards are encoded on several threads, and each appears under its name once it is complete. An interrupted run can continue where it stopped, and
//! then writes the same bytes as an uninterrupted one. `docs/writing.md` describes the formats and files.

mod builder;
mod cells;
mod encode;
mod folder;
mod images;
mod json;
mod manifest;
mod output;
#[cfg(feature = "parquet")]
mod parquet;
pub(crate) mod part;
mod pipeline;
mod shuffle;
mod stream;
#[cfg(feature = "tar")]
mod tar;
#[cfg(test)]
mod tests;
mod tfrecord;

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};

pub use self::builder::WriterBuilder;
use self::cells::{Cells, value_ends};
use self::folder::Folder;
#[cfg(feature = "cli")]
pub(crate) use self::folder::{clear_written, is_written, lock, save_index};
#[cfg(feature = "cli")]
pub(crate) use self::manifest::MANIFEST;
pub use self::manifest::{Manifest, ShardEntry, Skipped};
pub use self::output::{Codec, Output};
use self::pipeline::{Chunk, Consumed, Pipeline};
use self::shuffle::Shuffle;
#[cfg(feature = "cli")]
pub(crate) use self::stream::Counted;
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Column;

/// Bytes of values that one task encodes: a few milliseconds of work.
const CHUNK_BYTES: u64 = 1 << 20;

/// The most rows in a chunk, for small rows.
const CHUNK_ROWS: usize = 8192;

/// Writes rows as shards of a data set.
///
/// A writer is created by [`Writer::builder`]. Call [`finish`](Self::finish): without it, the data set has no manifest and lacks its last rows. A
/// writer that is dropped before that leaves complete shards and a journal; a writer created with [`resume`](WriterBuilder::resume) continues after
/// them.
///
/// # Order
/// Rows keep the order in which they are written, or, with [`shuffle`](WriterBuilder::shuffle), are in an order that depends on the seed. The shards
/// are a function of rows and options: threads and budget do not change a byte.
///
/// # Memory
/// Rows and their encoded form, until they are in their shard: at most the [`budget`](WriterBuilder::budget), plus what encoding adds to a few chunks
/// of 1 MiB. Parquet additionally holds one row group for each shard in progress.
///
/// # Errors
/// [`ErrorKind::Schema`] for rows that do not match the columns or that the format cannot hold, with the column and the row; [`ErrorKind::Transfer`]
/// and [`ErrorKind::Access`] for file system errors, with the file. After an error nothing more is written.
///
/// # Example
/// ```
/// use std::sync::Arc;
///
/// use arrow::array::{Int64Array, RecordBatch, StringArray};
/// use forebay::writer::{Output, Writer};
/// use forebay::{Dataset, bytes, int64};
///
/// let folder = tempfile::tempdir().unwrap();
/// let mut writer = Writer::builder(Output::TfRecord)
///     .rows_per_shard(40)
///     .name("train")
///     .create(folder.path(), [int64("label"), bytes("text")])?;
/// for start in [0, 50] {
///     let label = Int64Array::from_iter_values(start..start + 50);
///     let text = StringArray::from_iter_values((start..start + 50).map(|i| format!("row {i}")));
///     writer.write(&RecordBatch::try_from_iter([("label", Arc::new(label) as _), ("text", Arc::new(text) as _)]).unwrap())?;
/// }
/// let manifest = writer.finish()?;
/// assert_eq!(manifest.shards.iter().map(|shard| shard.rows).collect::<Vec<_>>(), [40, 40, 20]);
///
/// // The folder as it is can be opened.
/// let dataset = Dataset::open(folder.path().to_str().unwrap())?.columns(manifest.columns.clone()).batch(100);
/// let batch = dataset.loader().build()?.epoch(0).next().unwrap()?;
/// assert_eq!(batch.values::<i64>("label")?, (0..100).collect::<Vec<_>>());
/// # Ok::<(), forebay::Error>(())
/// ```
pub struct Writer {
    columns: Vec<Column>,
    schema: SchemaRef,
    folder: Arc<Folder>,
    pipeline: Pipeline,
    shuffle: Option<Shuffle>,
    /// Shards that were there before, and rows of the source from which they were made.
    before: (u64, u64),
    /// Rows of the source, including those that were written before.
    consumed: u64,
    failed: Option<Error>,
}

impl Writer {
    /// Creates a builder for a writer of this format.
    pub fn builder(output: Output) -> WriterBuilder {
        WriterBuilder::new(output)
    }

    /// Returns the columns that rows must have.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Returns the number of the row at which to continue. The rows before it are in shards that an interrupted run completed.
    ///
    /// With a shuffle it is 0: all rows have to be distributed again, and those that have been written are skipped.
    pub fn resume_at(&self) -> u64 {
        if self.shuffle.is_some() { 0 } else { self.before.1 }
    }

    /// Returns how many shards an interrupted run completed.
    pub fn shards_before(&self) -> u64 {
        self.before.0
    }

    /// Returns the most bytes of rows that were in flight at any time, including rows to be shuffled.
    pub fn peak_bytes(&self) -> u64 {
        self.pipeline.peak().max(self.shuffle.as_ref().map_or(0, Shuffle::peak))
    }

    /// Writes rows. Waits while the budget is used up.
    ///
    /// The batch has the writer's columns, by name and in any order; other columns are ignored. Text and byte strings may be arrays of any kind.
    ///
    /// # Errors
    /// See [`Writer`]. The error may belong to a row that was written earlier.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let first = self.consumed;
        self.write_rows(rows, Consumed::From(first), first + rows.num_rows() as u64)
    }

    /// Writes the rows of a source that have these numbers, in ascending order, and no other rows below `end`.
    #[cfg(feature = "cli")]
    pub(crate) fn write_numbered(&mut self, rows: &RecordBatch, numbers: Vec<u64>, end: u64) -> Result<()> {
        self.write_rows(rows, Consumed::Rows(numbers), end)
    }

    /// Returns how many rows of the source are left out.
    #[cfg(feature = "cli")]
    pub(crate) fn num_left_out(&self) -> u64 {
        self.folder.num_skipped()
    }

    /// Records that a row of the source is left out, once. Returns how many are left out.
    #[cfg(feature = "cli")]
    pub(crate) fn leave_out(&self, skipped: Skipped) -> Result<u64> {
        self.folder.note_skipped(skipped)?;
        Ok(self.num_left_out())
    }

    fn write_rows(&mut self, rows: &RecordBatch, consumed: Consumed, end: u64) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let written = self.carry(rows).and_then(|rows| match &mut self.shuffle {
            Some(shuffle) => {
                let numbers = match consumed {
                    Consumed::From(first) => (first..first + rows.num_rows() as u64).collect(),
                    Consumed::Rows(numbers) => numbers,
                };
                shuffle.deal(&rows, numbers)
            }
            None => push(&mut self.pipeline, &self.columns, &rows, consumed),
        });
        self.consumed = end;
        written.inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// Writes the remaining rows and the manifest.
    ///
    /// # Errors
    /// See [`Writer`].
    pub fn finish(self) -> Result<Manifest> {
        self.finish_counted().map(|(manifest, _)| manifest)
    }

    /// Does the same, and also returns the most bytes that were in flight at any time.
    fn finish_counted(mut self) -> Result<(Manifest, u64)> {
        let mut peak = self.peak_bytes();
        if let Some(error) = self.failed {
            return Err(error);
        }
        if let Some(shuffle) = self.shuffle.take() {
            let (_, mut there, _) = self.folder.progress();
            let mut at = 0;
            let given = shuffle.give(&mut |rows| {
                let known = there.min(rows.num_rows() as u64);
                (there, at) = (there - known, at + known);
                let rows = rows.slice(known as usize, rows.num_rows() - known as usize);
                let consumed = Consumed::From(at);
                at += rows.num_rows() as u64;
                push(&mut self.pipeline, &self.columns, &rows, consumed)
            })?;
            peak = peak.max(given + self.pipeline.peak());
        }
        self.pipeline.finish()?;
        peak = peak.max(self.pipeline.peak());
        Ok((self.folder.complete()?, peak))
    }

    /// Returns the rows with their columns in the writer's order and types.
    fn carry(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let bad = |column: &Column, what: String| {
            Error::new(ErrorKind::Schema, what).column(column.name().clone()).stage("write")
        };
        let arrays = self.columns.iter().map(|column| {
            let array = rows.column_by_name(column.name()).ok_or_else(|| {
                bad(column, "the rows have no such column".into())
                    .advice("give every column that the writer was made with")
            })?;
            let carried = carried(array, &column.arrow_type()).ok_or_else(|| {
                bad(column, format!("the rows hold {}, and the column is {column}", array.data_type()))
                    .advice(format!("give arrays of {}", column.arrow_type()))
            })?;
            if carried.logical_null_count() > 0 {
                return Err(bad(column, format!("{} values are null", carried.logical_null_count()))
                    .advice("fill them: no format is written with missing values"));
            }
            Ok(carried)
        });
        let arrays = arrays.collect::<Result<Vec<ArrayRef>>>()?;
        RecordBatch::try_new(Arc::clone(&self.schema), arrays).map_err(|e| {
            Error::new(ErrorKind::Schema, "the rows are not those of the columns").because(e).stage("write")
        })
    }
}

/// Converts an array to the type that carries a column, if that changes no value.
fn carried(array: &ArrayRef, wanted: &DataType) -> Option<ArrayRef> {
    fn same_values(from: &DataType, to: &DataType) -> bool {
        use DataType::{Binary, BinaryView, FixedSizeList, LargeBinary, LargeUtf8, List, Utf8, Utf8View};
        match (from, to) {
            (Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView, BinaryView) => true,
            (List(from), List(to)) => same_values(from.data_type(), to.data_type()),
            (FixedSizeList(from, n), FixedSizeList(to, m)) => n == m && same_values(from.data_type(), to.data_type()),
            (from, to) => from == to,
        }
    }
    match array.data_type() {
        same if same == wanted => Some(Arc::clone(array)),
        other => same_values(other, wanted).then(|| cast(array, wanted).ok()).flatten(),
    }
}

/// Passes rows to the pipeline in chunks.
fn push(pipeline: &mut Pipeline, columns: &[Column], rows: &RecordBatch, mut consumed: Consumed) -> Result<()> {
    let cells: Vec<Cells<'_>> =
        columns.iter().zip(rows.columns()).map(|(column, array)| Cells::new(column, array)).collect();
    let ends = value_ends(&cells, rows.num_rows());
    let mut start = 0;
    while start < rows.num_rows() {
        let before = if start == 0 { 0 } else { ends[start - 1] };
        let fitting = ends.partition_point(|end| *end <= before + CHUNK_BYTES);
        let end = fitting.clamp(start + 1, start + CHUNK_ROWS).min(rows.num_rows());
        let later = consumed.split_off(end - start);
        let chunk = Chunk { rows: rows.slice(start, end - start), consumed, bytes: ends[end - 1] - before };
        pipeline.push(chunk)?;
        (start, consumed) = (end, later);
    }
    Ok(())
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("folder", &self.folder.path)
            .field("columns", &self.columns)
            .finish_non_exhaustive()
    }
}

/// Returns the folder into which a data set's rows are distributed.
fn shuffle_folder(folder: &Folder) -> PathBuf {
    folder.path.join(folder::SHUFFLE)
}

/// Checks that the program in `docs/writing.md` compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/writing.md")]
struct Writing;
