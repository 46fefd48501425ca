//! What a file says of itself: schema, row groups, and where the pages of each column stand.

use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use bytes::Bytes;
use parquet::DecodeResult;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataPushDecoder};

use super::caught;
use crate::error::{Error, ErrorKind, Result};

/// Magic, the footer's length, and magic again.
const SMALLEST: u64 = 12;

/// Reads a footer without doing any I/O: it says which bytes it wants.
pub(crate) struct FooterReader {
    decoder: ParquetMetaDataPushDecoder,
    file_bytes: u64,
}

/// What a [`FooterReader`] came to.
pub(crate) enum Progress {
    Wants(Vec<Range<u64>>),
    Done(Box<ParquetMetaData>),
}

impl FooterReader {
    /// For a file of so many bytes.
    pub(crate) fn new(file_bytes: u64) -> Result<Self> {
        if file_bytes < SMALLEST {
            return Err(Error::corrupt(format!("{file_bytes} bytes are no Parquet file"))
                .advice("look whether it was written to its end"));
        }
        let decoder = ParquetMetaDataPushDecoder::try_new(file_bytes).map_err(damaged)?;
        Ok(Self { decoder: decoder.with_page_index_policy(PageIndexPolicy::Skip), file_bytes })
    }

    /// For the page indexes of a file whose footer is known.
    pub(crate) fn of_page_index(file_bytes: u64, metadata: &ParquetMetaData) -> Result<Self> {
        let decoder = ParquetMetaDataPushDecoder::try_new_with_metadata(file_bytes, metadata.clone());
        let decoder = decoder.map_err(damaged)?.with_page_index_policy(PageIndexPolicy::Optional);
        Ok(Self { decoder, file_bytes })
    }

    /// Takes bytes of the file.
    pub(crate) fn supply(&mut self, range: Range<u64>, bytes: Bytes) -> Result<()> {
        self.decoder.push_range(range, bytes).map_err(damaged)
    }

    pub(crate) fn next(&mut self) -> Result<Progress> {
        let decoded = caught(|| self.decoder.try_decode().map_err(damaged))?;
        match decoded {
            DecodeResult::NeedsData(ranges) => {
                if let Some(range) = ranges.iter().find(|range| range.end > self.file_bytes || range.start >= range.end)
                {
                    let message = format!("the footer names bytes {range:?} of a file of {}", self.file_bytes);
                    return Err(Error::corrupt(message).advice("fetch or write the shard again"));
                }
                Ok(Progress::Wants(ranges))
            }
            DecodeResult::Data(metadata) => Ok(Progress::Done(Box::new(metadata))),
            DecodeResult::Finished => Err(Error::corrupt("a footer was read twice")),
        }
    }
}

fn damaged(error: parquet::errors::ParquetError) -> Error {
    Error::corrupt("the footer cannot be read").because(error).advice("fetch or write the shard again")
}

/// A file's footer, checked: every number in it can be used.
#[derive(Clone, Debug)]
pub(crate) struct Footer {
    pub(super) reader: ArrowReaderMetadata,
    file_bytes: u64,
}

impl Footer {
    /// Checks what the file says of itself.
    ///
    /// # Errors
    /// Sizes below zero or beyond the file, types that Arrow has no name for.
    pub(crate) fn new(metadata: Arc<ParquetMetaData>, file_bytes: u64) -> Result<Self> {
        let columns = metadata.file_metadata().schema_descr().num_columns();
        for (number, group) in metadata.row_groups().iter().enumerate() {
            let wrong = |what: String| {
                Err(Error::corrupt(format!("row group {number}: {what}")).advice("fetch or write the shard again"))
            };
            if group.num_rows() < 0 || group.num_rows() > i64::from(i32::MAX) * 64 {
                return wrong(format!("{} rows", group.num_rows()));
            }
            if group.num_columns() != columns {
                return wrong(format!("{} columns, where the schema has {columns}", group.num_columns()));
            }
            for column in group.columns() {
                if let Err(what) = check_chunk(column, file_bytes) {
                    return wrong(format!("column {:?} {what}", column.column_path().string()));
                }
            }
        }
        let reader = caught(|| {
            let options = ArrowReaderOptions::new();
            let known = ArrowReaderMetadata::try_new(metadata.clone(), options.clone());
            // What another writer noted of its own types may not fit; then Parquet's types have to do.
            let known = known.or_else(|_| {
                ArrowReaderMetadata::try_new(metadata.clone(), options.clone().with_skip_arrow_metadata(true))
            });
            let schema = with_views(known.map_err(unreadable)?.schema());
            ArrowReaderMetadata::try_new(metadata, options.with_schema(schema)).map_err(unreadable)
        })?;
        Ok(Self { reader, file_bytes })
    }

    /// The schema that row groups are decoded to: byte strings as views, dictionaries as their values.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.reader.schema()
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    pub(crate) fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    /// Bytes of a column of a row group in the file.
    pub(crate) fn chunk_range(&self, group: usize, leaf: usize) -> Range<u64> {
        chunk_range(self.metadata().row_group(group).column(leaf)).expect("checked when the footer was read")
    }
}

fn unreadable(error: parquet::errors::ParquetError) -> Error {
    Error::new(ErrorKind::Schema, "the schema cannot be read").because(error)
}

fn chunk_range(column: &ColumnChunkMetaData) -> Option<Range<u64>> {
    let data = u64::try_from(column.data_page_offset()).ok()?;
    // Some writers note a dictionary page where there is none, at offset 0.
    let dictionary = column.dictionary_page_offset().and_then(|offset| u64::try_from(offset).ok());
    let start = dictionary.filter(|&offset| offset > 0).map_or(data, |offset| offset.min(data));
    Some(start..start.checked_add(u64::try_from(column.compressed_size()).ok()?)?)
}

fn check_chunk(column: &ColumnChunkMetaData, file_bytes: u64) -> Result<(), String> {
    if column.file_path().is_some() {
        return Err("lies in another file".into());
    }
    let range = chunk_range(column).ok_or("has sizes below zero")?;
    if range.end > file_bytes {
        return Err(format!("has bytes {range:?} of a file of {file_bytes}"));
    }
    if column.num_values() < 0 || column.uncompressed_size() < 0 {
        return Err("has sizes below zero".into());
    }
    Ok(())
}

/// The schema with byte strings and text as views, and dictionaries as their values.
fn with_views(schema: &Schema) -> SchemaRef {
    fn field(of: &Field) -> Arc<Field> {
        let data_type = match of.data_type() {
            DataType::Dictionary(_, values) => field(&Field::new("", (**values).clone(), true)).data_type().clone(),
            DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
            DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
            DataType::Struct(children) => DataType::Struct(fields(children)),
            DataType::List(item) => DataType::List(field(item)),
            DataType::LargeList(item) => DataType::LargeList(field(item)),
            DataType::FixedSizeList(item, n) => DataType::FixedSizeList(field(item), *n),
            DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
            other => other.clone(),
        };
        Arc::new(of.clone().with_data_type(data_type))
    }
    fn fields(of: &Fields) -> Fields {
        of.iter().map(|of| field(of)).collect()
    }
    Arc::new(Schema::new_with_metadata(fields(schema.fields()), schema.metadata().clone()))
}
