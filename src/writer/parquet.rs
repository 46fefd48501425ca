//! Writes rows as Parquet files whose row groups and pages suit loading.

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::cells::{Cells, unfit, value_ends};
use super::encode::{Data, Encode, Piece, Shard, Written};
use super::output::{Codec, Packing};
use super::stream::Counted;
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype};

/// Bytes of values in a row group. As a block of the loader, a row group is read with one request and decoded by one worker; shuffles mix row groups.
pub(super) const ROW_GROUP_BYTES: u64 = 8 << 20;

/// Bytes of values in a page, which is the smallest unit that has to be decoded for a row.
const PAGE_BYTES: usize = 256 << 10;

/// The number of values written between checks of a page's size. With 1024, the usual number, a page of images of 100 KB had 100 MB.
const BATCH_ROWS: usize = 32;

/// Rows that are passed to the encoder at a time.
const WRITTEN_ROWS: usize = 1024;

/// The key of the columns, as JSON, in a file's metadata: shapes of more than one extent are not in the schema.
const COLUMNS_KEY: &str = "forebay.columns";

pub(super) struct Parquet {
    columns: Vec<Column>,
    /// Which columns are text.
    text: Vec<bool>,
    schema: SchemaRef,
    properties: WriterProperties,
    row_group_bytes: u64,
}

impl Parquet {
    /// # Errors
    /// [`ErrorKind::Config`] for Bloom filters of columns that do not exist, and for text columns whose dtype cannot be text.
    pub(super) fn new(
        columns: &[Column],
        packing: Packing,
        bloom: &[String],
        text: &[String],
        row_group_bytes: u64,
    ) -> Result<Self> {
        let described = serde_json::to_string(columns).expect("columns are JSON");
        let is_long = columns.iter().any(|column| column.dtype() == Dtype::Bytes || column.is_raw());
        let mut properties = WriterProperties::builder()
            .set_compression(compression(packing)?)
            .set_statistics_enabled(EnabledStatistics::Page)
            .set_dictionary_enabled(true)
            .set_data_page_size_limit(PAGE_BYTES)
            .set_max_row_group_row_count(None)
            .set_created_by(concat!("forebay ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(vec![KeyValue::new(COLUMNS_KEY.to_owned(), described)]));
        if is_long {
            properties = properties.set_write_batch_size(BATCH_ROWS);
        }
        for name in text {
            if !columns.iter().any(|c| c.name().as_ref() == name && c.dtype() == Dtype::Bytes) {
                return Err(Error::config("text has to be a column of byte strings that is written")
                    .column(name.as_str())
                    .advice("name another one"));
            }
        }
        for name in bloom {
            if !columns.iter().any(|column| column.name().as_ref() == name) {
                return Err(Error::config("a Bloom filter of a column that is not there")
                    .column(name.as_str())
                    .advice("name a column that is written"));
            }
            properties = properties.set_column_bloom_filter_enabled(ColumnPath::from(name.as_str()), true);
        }
        let text: Vec<bool> = columns.iter().map(|column| text.iter().any(|name| **name == **column.name())).collect();
        let fields = columns.iter().zip(&text).map(|(column, is_text)| {
            let data_type = if *is_text { text_type(&column.arrow_type()) } else { column.arrow_type() };
            Field::new(column.name().as_ref(), data_type, false)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Ok(Self { columns: columns.to_vec(), text, schema, properties: properties.build(), row_group_bytes })
    }

    /// Returns the rows, with text columns marked as such.
    fn marked(&self, first: u64, rows: &RecordBatch, cells: &[Cells<'_>]) -> Result<RecordBatch> {
        let options = CastOptions { safe: false, ..CastOptions::default() };
        let arrays = rows.columns().iter().zip(cells).zip(self.schema.fields()).zip(&self.text);
        let arrays = arrays.map(|(((array, cells), field), is_text)| {
            if !is_text {
                return Ok(Arc::clone(array));
            }
            cast_with_options(array, field.data_type(), &options).map_err(|e| {
                let is_text = |i: usize| cells.values.bytes(i).is_none_or(|bytes| std::str::from_utf8(bytes).is_ok());
                let row = (0..rows.num_rows()).find(|row| !cells.of(*row).all(is_text)).unwrap_or(0);
                unfit(cells.column, first + row as u64, "the text is no UTF-8")
                    .because(e)
                    .advice("write the column as bytes: leave it out of .text_columns(), --text")
            })
        });
        RecordBatch::try_new(Arc::clone(&self.schema), arrays.collect::<Result<Vec<_>>>()?)
            .map_err(|e| Error::new(ErrorKind::Schema, "rows cannot be marked as text").because(e))
    }
}

fn text_type(carried: &DataType) -> DataType {
    let inner = |field: &Field| Arc::new(field.clone().with_data_type(text_type(field.data_type())));
    match carried {
        DataType::BinaryView => DataType::Utf8View,
        DataType::List(field) => DataType::List(inner(field)),
        DataType::FixedSizeList(field, n) => DataType::FixedSizeList(inner(field), *n),
        other => other.clone(),
    }
}

fn compression(Packing { codec, level }: Packing) -> Result<Compression> {
    let compression = match codec {
        Codec::None | Codec::Zlib => Ok(Compression::UNCOMPRESSED),
        Codec::Snappy => Ok(Compression::SNAPPY),
        Codec::Lz4 => Ok(Compression::LZ4_RAW),
        Codec::Gzip => GzipLevel::try_new(level).map(Compression::GZIP),
        Codec::Zstd => ZstdLevel::try_new(level as i32).map(Compression::ZSTD),
        Codec::Brotli => BrotliLevel::try_new(level).map(Compression::BROTLI),
    };
    compression.map_err(|e| Error::config(format!("{codec} has no level {level}")).because(e))
}

impl Encode for Parquet {
    /// Only counts: pages are encoded in the order of their shard.
    fn encode(&self, first: u64, rows: &RecordBatch) -> Result<Piece> {
        let cells: Vec<Cells<'_>> =
            self.columns.iter().zip(rows.columns()).map(|(column, array)| Cells::new(column, array)).collect();
        let ends = value_ends(&cells, rows.num_rows());
        let rows = if self.text.contains(&true) { self.marked(first, rows, &cells)? } else { rows.clone() };
        Ok(Piece { ends, data: Data::Rows(rows) })
    }

    fn begin(&self, folder: &Path, name: &str) -> Result<Box<dyn Shard>> {
        let options = ArrowWriterOptions::new().with_properties(self.properties.clone());
        let file = Counted::create(folder, name)?;
        let writer = ArrowWriter::try_new_with_options(file, Arc::clone(&self.schema), options)
            .map_err(|e| failed(e, &folder.join(name)))?;
        Ok(Box::new(File {
            writer,
            path: folder.join(name),
            in_group: 0,
            row_group_bytes: self.row_group_bytes,
            waiting: Vec::new(),
            waiting_rows: 0,
        }))
    }
}

struct File {
    writer: ArrowWriter<Counted>,
    path: std::path::PathBuf,
    /// Bytes of values in the row group that is being filled.
    in_group: u64,
    row_group_bytes: u64,
    /// Rows of that row group that are not yet written.
    waiting: Vec<RecordBatch>,
    waiting_rows: usize,
}

impl File {
    /// Accepts rows of one row group. Rows are written in batches of a fixed size, counted from the beginning of the row group, so pages end at the
    /// same rows however the rows arrived.
    fn take(&mut self, mut rows: RecordBatch) -> Result<()> {
        while self.waiting_rows + rows.num_rows() >= WRITTEN_ROWS {
            let room = WRITTEN_ROWS - self.waiting_rows;
            self.waiting.push(rows.slice(0, room));
            self.waiting_rows += room;
            rows = rows.slice(room, rows.num_rows() - room);
            self.write()?;
        }
        self.waiting_rows += rows.num_rows();
        self.waiting.push(rows);
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_rows = 0;
        let Some(first) = waiting.first() else { return Ok(()) };
        let rows = concat_batches(first.schema_ref(), &waiting);
        let rows = rows.map_err(|e| Error::new(ErrorKind::Memory, "rows cannot be put together").because(e))?;
        self.writer.write(&rows).map_err(|e| failed(e, &self.path))
    }
}

impl Shard for File {
    fn append(&mut self, mut piece: Piece) -> Result<()> {
        while piece.rows() > 0 {
            let fits = piece.fitting(self.row_group_bytes.saturating_sub(self.in_group));
            let rows = if self.in_group == 0 { fits.max(1) } else { fits };
            let (head, rest) = piece.split(rows);
            self.in_group += head.bytes();
            if let Data::Rows(batch) = head.data
                && rows > 0
            {
                self.take(batch)?;
            }
            if rest.rows() > 0 {
                self.write()?;
                self.writer.flush().map_err(|e| failed(e, &self.path))?;
                self.in_group = 0;
            }
            piece = rest;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Written> {
        self.write()?;
        let (bytes, crc32c) = self.writer.into_inner().map_err(|e| failed(e, &self.path))?.finish()?;
        Ok(Written { bytes, crc32c, index: None, labels: Vec::new() })
    }
}

fn failed(error: ParquetError, path: &Path) -> Error {
    if let ParquetError::External(source) = &error
        && let Some(io) = source.downcast_ref::<std::io::Error>()
    {
        return super::part::failed(std::io::Error::from(io.kind()), "cannot write the shard", path);
    }
    Error::new(ErrorKind::Transfer, "cannot write the shard").because(error).url(path.to_string_lossy().into_owned())
}
