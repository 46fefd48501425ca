//! Where rows come from: the [`Source`] trait and its implementations.

pub(crate) mod carry;
#[doc(hidden)]
pub mod check;
mod checksum;
mod cut;
mod images;
mod ipc;
mod memory;
pub(crate) mod open;
#[cfg(feature = "parquet")]
pub(crate) mod parquet;
#[cfg(any(feature = "text", feature = "tar"))]
mod rows;
#[cfg(feature = "tar")]
mod tar;
#[cfg(feature = "text")]
mod text;
pub(crate) mod tfrecord;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array as _, RecordBatch};
use arrow::datatypes::DataType;
use bytes::Bytes;
use futures::future::BoxFuture;

pub(crate) use memory::Memory;

use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Catalog, DataMark, ReadPoint};
use crate::schema::Column;

/// A data set's origin: blocks of rows, fetched and decoded one at a time in whatever order the plan wants.
///
/// The loader calls [`fetch`](Self::fetch) when the budget has room for [`Catalog::block_bytes`], and runs what it returns on
/// its I/O runtime, for several blocks at once; then it calls [`decode`](Self::decode) on a worker thread. A block may be asked for again, in
/// the same epoch and in later ones, and must then give the same rows.
///
/// # Example
/// ```
/// use std::sync::Arc;
///
/// use arrow::array::{Int64Array, RecordBatch};
/// use bytes::Bytes;
/// use forebay::plan::Catalog;
/// use forebay::source::{Decoded, Source};
/// use forebay::{Column, Dataset, Result, int64};
///
/// /// The squares of 0..1000, in ten blocks.
/// struct Squares {
///     columns: Vec<Column>,
///     catalog: Catalog,
/// }
///
/// impl Source for Squares {
///     fn name(&self) -> String {
///         "squares".into()
///     }
///     fn columns(&self) -> &[Column] {
///         &self.columns
///     }
///     fn catalog(&self) -> &Catalog {
///         &self.catalog
///     }
///     fn decode(&self, block: usize, _fetched: Vec<Bytes>) -> Result<Decoded> {
///         let first = self.catalog.block_start(block) as i64;
///         let squares = Int64Array::from_iter_values((first..first + 100).map(|x| x * x));
///         Ok(Decoded::good(RecordBatch::try_from_iter([("square", Arc::new(squares) as _)]).expect("one column")))
///     }
/// }
///
/// let mut catalog = Catalog::new();
/// catalog.push_shard("squares");
/// (0..10).for_each(|_| catalog.push_block(100, 800));
/// let dataset = Dataset::from_source(Squares { columns: vec![int64("square")], catalog }).batch(250);
/// let mut sum = 0;
/// for batch in dataset.loader().build()? {
///     sum += batch?.values::<i64>("square")?.iter().sum::<i64>();
/// }
/// assert_eq!(sum, (0..1000).map(|x| x * x).sum::<i64>());
/// # Ok::<(), forebay::Error>(())
/// ```
pub trait Source: Send + Sync + 'static {
    /// A name for `explain()`, errors and fingerprints.
    fn name(&self) -> String;

    /// The columns of [`decode`](Self::decode)'s rows.
    fn columns(&self) -> &[Column];

    /// The blocks and their row counts.
    fn catalog(&self) -> &Catalog;

    /// Returns a future that reads a block's bytes, in as many pieces as it likes; `None` if there is nothing to read. The call itself must not wait: it
    /// may come on any thread, with the loader's lock held. The future runs on the loader's tokio runtime. If the source's last reads went through a
    /// [`Store`](crate::store::Store), which found all files in the kernel's page cache, a worker polls the next one first.
    ///
    /// [`Report::waited`](crate::Report::waited) charges a loop's wait for it to `first byte`. A `Store` tells when bytes begin to arrive; from then on
    /// it is charged to `bandwidth`.
    fn fetch(&self, block: usize) -> Option<BoxFuture<'static, Result<Vec<Bytes>>>> {
        let _ = block;
        None
    }

    /// Turns a block's bytes (no piece where nothing was fetched) into rows: as many as the catalog says, with the columns of [`columns`](Self::columns), found by
    /// name. Runs on a worker thread.
    ///
    /// A scalar column is an Arrow array of its dtype (bytes: `BinaryView`), one of fixed shape a `FixedSizeList` of all its elements, a ragged one a `List` (of
    /// `FixedSizeList`s where the shape goes on). A row with a null is a bad row.
    ///
    /// # Errors
    /// An error stands for the whole block; rows that are bad by themselves are listed in [`Decoded::bad`]. Arrays of other types than declared are an error.
    fn decode(&self, block: usize, fetched: Vec<Bytes>) -> Result<Decoded>;
}

/// Decodes a block and holds its rows against the catalog and the columns, so that nothing is missing or taken for something else in silence.
pub(crate) fn decode(source: &dyn Source, block: usize, fetched: Vec<Bytes>) -> Result<Decoded> {
    let (mut decoded, catalog) = (source.decode(block, fetched)?, source.catalog());
    let (found, rows) = (decoded.rows.num_rows() as u64, catalog.block_rows(block));
    if found != rows {
        return Err(
            Error::corrupt(format!("{found} rows, where the catalog says {rows}")).advice("build the index anew")
        );
    }
    let (mut nulls, mut order) = (BTreeMap::<usize, &Column>::new(), Vec::with_capacity(decoded.rows.num_columns()));
    for column in source.columns() {
        let wrong = |what: String| {
            Err(Error::new(ErrorKind::Schema, what)
                .column(column.name().clone())
                .advice(format!("decode() of {:?} has to give the columns that it declares", source.name())))
        };
        let Ok(number) = decoded.rows.schema_ref().index_of(column.name()) else {
            return wrong("a block without this column".into());
        };
        let array = decoded.rows.column(number);
        order.push(number);
        let declared = column.arrow_type();
        if !is_laid_out_as(array.data_type(), &declared) {
            return wrong(format!("an array of {}, where {column} is declared: {declared}", array.data_type()));
        }
        if array.null_count() > 0 {
            (0..array.len()).filter(|&row| array.is_null(row)).for_each(|row| _ = nulls.entry(row).or_insert(column));
        }
    }
    if !nulls.is_empty() || decoded.bad.iter().any(|(_, error)| error.place().record.is_none()) {
        let mut bad: BTreeMap<usize, Error> = decoded.bad.drain(..).collect();
        for (row, column) in nulls {
            let null = || Error::new(ErrorKind::Schema, "a null").column(column.name().clone()).stage("decode");
            bad.entry(row).or_insert_with(null);
        }
        let (shard, first) = (catalog.shard_name(catalog.shard_of(block)), catalog.record_of(block));
        decoded.bad.extend(bad.into_iter().map(|(row, error)| match error.place().record {
            Some(_) => (row, error),
            None => (row, error.url(shard.clone()).record(first + row as u64)),
        }));
    }
    // Blocks are joined by their columns' numbers, which are a source's own business.
    if order.iter().enumerate().any(|(place, &number)| place != number) {
        order.extend((0..decoded.rows.num_columns()).filter(|number| !order.contains(number)).collect::<Vec<_>>());
        let rows = decoded.rows.project(&order);
        decoded.rows =
            rows.map_err(|e| Error::new(ErrorKind::Schema, "columns of one block do not agree").because(e))?;
    }
    Ok(decoded)
}

/// Whether memory of a type can be read as that of another: names of list elements, and whether they may be null, do not matter.
fn is_laid_out_as(found: &DataType, declared: &DataType) -> bool {
    match (found, declared) {
        (DataType::List(a), DataType::List(b)) => is_laid_out_as(a.data_type(), b.data_type()),
        (DataType::FixedSizeList(a, n), DataType::FixedSizeList(b, m)) => {
            n == m && is_laid_out_as(a.data_type(), b.data_type())
        }
        _ => found == declared,
    }
}

/// The rows of a block, and which of them are bad.
#[derive(Debug)]
pub struct Decoded {
    /// One row a record. What stands in a bad row does not matter.
    pub rows: RecordBatch,
    /// Bad rows in ascending order, each with its error.
    pub bad: Vec<(usize, Error)>,
    /// Where the rows stand in their shard, for errors that come up later.
    pub(crate) places: Option<RecordPlaces>,
    /// The checksum of each row's record; the loader fills them in where there are none.
    pub(crate) checksums: Vec<u32>,
}

/// Where the rows of a block stand in their shard.
#[derive(Debug)]
pub(crate) struct RecordPlaces {
    pub(crate) url: Arc<str>,
    pub(crate) first_record: u64,
    /// Offset of the block, and of each row's record behind it; none where rows are not stored one behind the other.
    pub(crate) offset: u64,
    pub(crate) starts: Vec<u32>,
    /// The file of each row, where rows are whole files.
    pub(crate) files: Vec<Arc<str>>,
}

impl RecordPlaces {
    /// A row's shard, its record there, and the record's offset.
    pub(crate) fn of(&self, row: usize) -> (Arc<str>, u64, Option<u64>) {
        if let Some(file) = self.files.get(row) {
            return (file.clone(), 0, None);
        }
        let offset = self.starts.get(row).map(|&start| self.offset + u64::from(start));
        (self.url.clone(), self.first_record + row as u64, offset)
    }

    /// Adds a row's place to an error.
    pub(crate) fn locate(&self, row: usize, error: Error) -> Error {
        let (url, record, offset) = self.of(row);
        let error = error.url(url).record(record);
        if let Some(offset) = offset { error.byte_offset(offset) } else { error }
    }
}

impl Decoded {
    /// Rows without fault.
    pub fn good(rows: RecordBatch) -> Self {
        Self::with_bad(rows, Vec::new())
    }

    /// Rows of which some are bad: their numbers in ascending order, each with its error.
    pub fn with_bad(rows: RecordBatch, bad: Vec<(usize, Error)>) -> Self {
        Self { rows, bad, places: None, checksums: Vec::new() }
    }

    /// With a checksum of each row, where the source gave none.
    pub(crate) fn with_checksums(mut self) -> Self {
        if self.checksums.len() != self.rows.num_rows() {
            self.checksums = checksum::row_checksums(&self.rows);
        }
        self
    }
}

/// A source whose row counts are not known before it was read: its blocks come in an order of their own.
pub(crate) trait Arriving: Send + Sync + 'static {
    /// The columns of the rows.
    fn columns(&self) -> &[Column];

    /// A mark that changes with the list of shards.
    fn mark(&self) -> DataMark;

    /// Whether a pass can go on from a place.
    fn check(&self, place: ReadPoint) -> Result<()>;

    /// Begins a pass, or goes on with one from a place; `key` is that of the shards' order, if they are to be shuffled.
    fn begin(&self, key: crate::random::Key, place: Option<ReadPoint>) -> Box<dyn ArrivingPass>;

    /// Turns a block's bytes into rows, on a worker thread.
    fn decode(&self, block: Arrived) -> Result<Decoded>;
}

/// One pass over a source without index: pieces of shards go in, blocks of records come out, both in order.
pub(crate) trait ArrivingPass: Send {
    /// The next piece of a shard to read, with its size in bytes; `None` when all have been asked for.
    fn next_read(&mut self) -> Option<(u64, BoxFuture<'static, Result<Bytes>>)>;

    /// Takes a piece, in the order of [`next_read`](Self::next_read).
    fn supply(&mut self, piece: Bytes);

    /// The next block of about [`ARRIVED_BYTES`], on a worker thread, of which no more than `room` bytes are held in memory.
    ///
    /// # Errors
    /// Damage ends the pass; the blocks before it were given.
    fn next_block(&mut self, room: usize) -> Result<Next>;
}

/// What a pass gives.
pub(crate) enum Next {
    Block(Arrived),
    /// Another piece must be supplied; behind the last piece this is the end.
    Piece,
    /// A record takes so many bytes: more than there was room for.
    Room(usize),
}

/// Bytes of a block that arrives, unless a record is larger.
pub(crate) const ARRIVED_BYTES: u64 = 4 << 20;

/// A block of records that arrived.
pub(crate) struct Arrived {
    pub(crate) buffer: arrow::buffer::Buffer,
    /// The payloads within the buffer, and which are damaged.
    pub(crate) framed: crate::format::tfrecord::Framed,
    /// The shard, and the number of the first record in it.
    pub(crate) shard: usize,
    pub(crate) first_record: u64,
    /// Offset of the block in the (decompressed) shard.
    pub(crate) offset: u64,
    /// Whether reading can begin at that offset.
    pub(crate) seekable: bool,
}

impl Arrived {
    /// Where to read it from again; `row` counts the shard's rows from there to this block.
    pub(crate) fn place(&self) -> ReadPoint {
        let shard = self.shard as u64;
        if self.seekable {
            return ReadPoint { row: 0, shard, record: self.first_record, offset: self.offset };
        }
        ReadPoint { row: self.first_record, shard, record: 0, offset: 0 }
    }
}
