//! An external shuffle: puts any number of rows into a random order within a memory budget.
//!
//! Each row has a key, a number drawn from the seed and the row's own number; the order of keys is the order of rows. So the order depends on nothing
//! else: neither on the budget nor on how rows arrive. The number of rows need not be known beforehand.
//!
//! 1. Rows are distributed: rows in the same range of keys go to the same bucket, in a file. They are collected until they take half of the memory,
//!    so that each bucket receives a run of rows at a time instead of single rows.
//! 2. One bucket after another is read, sorted by key and emitted. A bucket that turns out too large for the memory is distributed again, by finer
//!    ranges.
//!
//! Distributed rows are Arrow IPC streams in succession in one file. The places of a bucket's streams are kept in memory, 16 bytes for each.

use std::fs::File;
use std::io::{Cursor, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, UInt64Array};
use arrow::compute::{cast, interleave_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt64Type};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use super::cells::{Cells, value_ends};
use super::part;
use crate::error::{Error, ErrorKind, Result};
use crate::random::Key;
use crate::schema::{Column, arrow_schema};

/// The most buckets in a level: with more, the collected rows would be cut into pieces too small to be read individually.
const MAX_BUCKETS: u64 = 256;

/// The bookkeeping per collected row, in addition to its values: its number, and its place in two lists.
const ROW_OVERHEAD: u64 = 40;

/// Bytes of rows that are emitted together.
const GIVEN_BYTES: u64 = 1 << 20;

/// Rows that wait to be shuffled.
pub(super) struct Shuffle {
    columns: Vec<Column>,
    /// The types in which rows are stored: byte strings in succession, because views would carry along all the data that they were cut from.
    stored: SchemaRef,
    key: Key,
    folder: PathBuf,
    memory: u64,
    gathered: Vec<RecordBatch>,
    gathered_bytes: u64,
    level: Level,
    most_in_memory: u64,
}

/// Buckets that cover equal ranges of keys.
struct Level {
    file: File,
    path: PathBuf,
    end: u64,
    /// The first key, and the number of keys.
    from: u64,
    width: u128,
    buckets: Vec<Bucket>,
}

#[derive(Clone, Default)]
struct Bucket {
    /// Where its streams lie: offset and length.
    streams: Vec<(u64, u64)>,
    /// Bytes that its rows take in memory.
    bytes: u64,
    rows: u64,
}

impl Shuffle {
    /// Creates a shuffle whose rows are distributed to files in `folder`. The folder is created here, and removed when the shuffle is dropped. About
    /// `expected` bytes will come, if that is known.
    pub(super) fn new(
        columns: &[Column],
        seed: u64,
        folder: &Path,
        memory: u64,
        expected: Option<u64>,
    ) -> Result<Self> {
        super::folder::remove_folder(folder)?;
        std::fs::create_dir(folder).map_err(|e| part::failed(e, "cannot make the folder", folder))?;
        // Four times as many as would do, because rows in memory take more than stored ones, and buckets differ.
        let buckets = expected.map_or(MAX_BUCKETS / 4, |bytes| (4 * bytes).div_ceil(memory.max(1)));
        let stored = columns.iter().map(|column| {
            Arc::new(Field::new(column.name().as_ref(), stored_type(&column.arrow_type()), false)) as FieldRef
        });
        let number = Arc::new(Field::new("", DataType::UInt64, false));
        Ok(Self {
            columns: columns.to_vec(),
            stored: Arc::new(Schema::new(stored.chain([number]).collect::<Vec<_>>())),
            key: Key::new(seed).with("shuffle"),
            level: Level::new(folder, 0, 1 << 64, buckets)?,
            folder: folder.to_owned(),
            memory: memory.max(1),
            gathered: Vec::new(),
            gathered_bytes: 0,
            most_in_memory: 0,
        })
    }

    /// Returns the most bytes of rows that were in memory at the same time.
    pub(super) fn peak(&self) -> u64 {
        self.most_in_memory
    }

    /// Accepts rows with these numbers.
    pub(super) fn deal(&mut self, rows: &RecordBatch, numbers: Vec<u64>) -> Result<()> {
        let cells: Vec<Cells<'_>> =
            self.columns.iter().zip(rows.columns()).map(|(column, array)| Cells::new(column, array)).collect();
        let ends = value_ends(&cells, rows.num_rows());
        let half = self.memory / 2;
        let mut at = 0;
        while at < rows.num_rows() {
            // As many as there is room for, and one at least.
            let before = if at == 0 { 0 } else { ends[at - 1] };
            let cost = |row: usize| ends[row] - before + ROW_OVERHEAD * (row - at + 1) as u64;
            let room = half.saturating_sub(self.gathered_bytes);
            let mut until = at;
            while until < rows.num_rows() && cost(until) <= room {
                until += 1;
            }
            if until == at && !self.gathered.is_empty() {
                self.hand_out()?;
                continue;
            }
            until = until.max(at + 1);
            self.gathered_bytes += cost(until - 1);
            self.most_in_memory = self.most_in_memory.max(self.gathered_bytes);
            let some = store(&rows.slice(at, until - at), &numbers[at..until], &self.stored);
            self.gathered.push(some.map_err(internal)?);
            at = until;
        }
        Ok(())
    }

    /// Puts the collected rows into their buckets.
    fn hand_out(&mut self) -> Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        self.gathered_bytes = 0;
        self.level.take(&gathered, self.key, &self.columns)
    }

    /// Emits all rows in their order, some at a time.
    pub(super) fn give(mut self, out: &mut dyn FnMut(RecordBatch) -> Result<()>) -> Result<u64> {
        self.hand_out()?;
        let level = self.level.seal()?;
        self.give_level(&level, 1, out)?;
        Ok(self.most_in_memory)
    }

    fn give_level(
        &mut self,
        level: &Level,
        depth: usize,
        out: &mut dyn FnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        for (number, bucket) in level.buckets.iter().enumerate() {
            let (from, width) = level.range(number);
            if bucket.bytes > self.memory / 2 && bucket.rows > 1 && width > 1 {
                let buckets = (4 * bucket.bytes).div_ceil(self.memory).max(2);
                let path = self.folder.join(format!("{depth}"));
                std::fs::create_dir_all(&path).map_err(|e| part::failed(e, "cannot make the folder", &path))?;
                let mut finer = Level::new(&path, from, width, buckets)?;
                for stream in &bucket.streams {
                    let batches = level.read(&[*stream])?;
                    self.most_in_memory = self.most_in_memory.max(self.bytes_of(&batches));
                    finer.take(&batches, self.key, &self.columns)?;
                }
                let finer = finer.seal()?;
                self.give_level(&finer, depth + 1, out)?;
                std::fs::remove_file(&finer.path)
                    .map_err(|e| part::failed(e, "cannot remove the file", &finer.path))?;
                continue;
            }
            let batches = level.read(&bucket.streams)?;
            self.most_in_memory = self.most_in_memory.max(bucket.bytes);
            let mut order: Vec<(u64, u64, usize, usize)> = Vec::with_capacity(bucket.rows as usize);
            for (batch, rows) in batches.iter().enumerate() {
                let numbers = numbers(rows);
                order.extend(
                    numbers.iter().enumerate().map(|(row, n)| (self.key.with_number(*n).value(), *n, batch, row)),
                );
            }
            order.sort_unstable();
            let each = (GIVEN_BYTES * bucket.rows / bucket.bytes.max(1)).clamp(1, 8192) as usize;
            let batches: Vec<&RecordBatch> = batches.iter().collect();
            for some in order.chunks(each) {
                let places: Vec<(usize, usize)> = some.iter().map(|(_, _, batch, row)| (*batch, *row)).collect();
                let rows = interleave_record_batch(&batches, &places).and_then(|rows| carried(&rows, &self.columns));
                out(rows.map_err(internal)?)?;
            }
        }
        Ok(())
    }

    fn bytes_of(&self, batches: &[RecordBatch]) -> u64 {
        batches.iter().map(|rows| bytes_of(rows, &self.columns)).sum()
    }
}

impl Drop for Shuffle {
    fn drop(&mut self) {
        // When it fails, the next run takes it away.
        _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Level {
    fn new(folder: &Path, from: u64, width: u128, buckets: u64) -> Result<Self> {
        let path = folder.join("rows");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|e| part::failed(e, "cannot create the file", &path))?;
        let buckets = vec![
            Bucket::default();
            buckets.clamp(1, MAX_BUCKETS).min(u64::try_from(width).unwrap_or(u64::MAX)) as usize
        ];
        Ok(Self { file, path, end: 0, from, width, buckets })
    }

    /// Returns the keys of a bucket: the first, and how many.
    fn range(&self, bucket: usize) -> (u64, u128) {
        let count = self.buckets.len() as u128;
        let start = |bucket: usize| (self.width * bucket as u128).div_ceil(count);
        (self.from.wrapping_add(start(bucket) as u64), start(bucket + 1) - start(bucket))
    }

    fn bucket(&self, key: u64) -> usize {
        (u128::from(key - self.from) * self.buckets.len() as u128 / self.width) as usize
    }

    /// Puts stored rows into their buckets.
    fn take(&mut self, rows: &[RecordBatch], key: Key, columns: &[Column]) -> Result<()> {
        let mut places: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.buckets.len()];
        for (batch, rows) in rows.iter().enumerate() {
            for (row, number) in numbers(rows).iter().enumerate() {
                places[self.bucket(key.with_number(*number).value())].push((batch, row));
            }
        }
        let rows: Vec<&RecordBatch> = rows.iter().collect();
        for (bucket, places) in places.iter().enumerate().filter(|(_, places)| !places.is_empty()) {
            let run = interleave_record_batch(&rows, places).map_err(internal)?;
            let stream = written(&run).map_err(internal)?;
            let stored = self.file.write_all(&stream);
            stored.map_err(|e| part::failed(e, "cannot write the rows that are shuffled", &self.path))?;
            let into = &mut self.buckets[bucket];
            into.streams.push((self.end, stream.len() as u64));
            into.bytes += bytes_of(&run, columns);
            into.rows += run.num_rows() as u64;
            self.end += stream.len() as u64;
        }
        Ok(())
    }

    /// Returns the level for reading only.
    fn seal(&mut self) -> Result<Self> {
        let file = self.file.try_clone().map_err(|e| part::failed(e, "cannot open the file", &self.path))?;
        let buckets = std::mem::take(&mut self.buckets);
        Ok(Self { file, path: self.path.clone(), end: self.end, from: self.from, width: self.width, buckets })
    }

    fn read(&self, streams: &[(u64, u64)]) -> Result<Vec<RecordBatch>> {
        let mut batches = Vec::with_capacity(streams.len());
        for (offset, bytes) in streams {
            let mut stream = vec![0; *bytes as usize];
            self.file
                .read_exact_at(&mut stream, *offset)
                .map_err(|e| part::failed(e, "cannot read the rows that are shuffled", &self.path))?;
            let reader = StreamReader::try_new(Cursor::new(stream), None).map_err(internal)?;
            for batch in reader {
                batches.push(batch.map_err(internal)?);
            }
        }
        Ok(batches)
    }
}

fn written(rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema())?;
    writer.write(rows)?;
    writer.into_inner()
}

/// Returns the numbers of stored rows: their last column.
fn numbers(rows: &RecordBatch) -> &[u64] {
    rows.column(rows.num_columns() - 1).as_primitive::<UInt64Type>().values()
}

/// Returns the bytes that stored rows take, as [`Shuffle::deal`] counts them.
fn bytes_of(rows: &RecordBatch, columns: &[Column]) -> u64 {
    let values = carried(rows, columns).map(|rows| {
        let cells: Vec<Cells<'_>> =
            columns.iter().zip(rows.columns()).map(|(column, array)| Cells::new(column, array)).collect();
        value_ends(&cells, rows.num_rows()).last().copied().unwrap_or(0)
    });
    values.unwrap_or(0) + ROW_OVERHEAD * rows.num_rows() as u64
}

fn stored_type(carried: &DataType) -> DataType {
    let inner = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(stored_type(field.data_type())));
    match carried {
        DataType::BinaryView => DataType::LargeBinary,
        DataType::List(field) => DataType::List(inner(field)),
        DataType::FixedSizeList(field, n) => DataType::FixedSizeList(inner(field), *n),
        other => other.clone(),
    }
}

fn store(rows: &RecordBatch, numbers: &[u64], schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let arrays = rows.columns().iter().zip(schema.fields()).map(|(array, field)| cast(array, field.data_type()));
    let mut arrays = arrays.collect::<Result<Vec<ArrayRef>, _>>()?;
    arrays.push(Arc::new(UInt64Array::from(numbers.to_vec())));
    RecordBatch::try_new(Arc::clone(schema), arrays)
}

fn carried(rows: &RecordBatch, columns: &[Column]) -> Result<RecordBatch, ArrowError> {
    let arrays = rows.columns().iter().zip(columns).map(|(array, column)| cast(array, &column.arrow_type()));
    RecordBatch::try_new(arrow_schema(columns), arrays.collect::<Result<Vec<ArrayRef>, _>>()?)
}

fn internal(error: ArrowError) -> Error {
    Error::new(ErrorKind::Memory, "rows cannot be gathered").because(error).stage("shuffle")
}
