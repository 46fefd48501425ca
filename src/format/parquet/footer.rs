//! A file's metadata: the schema, the row groups, and where the pages of each column are.

use std::collections::HashMap;
use std::ops::Range;
use std::slice::Iter;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use parquet::DecodeResult;
use parquet::arrow::ARROW_SCHEMA_META_KEY;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::basic::Type as Physical;
use parquet::file::metadata::{
    ColumnChunkMetaData, OffsetIndexBuilder, PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder,
    ParquetMetaDataPushDecoder,
};

use super::caught;
use super::thrift::{Kind, Reader};
use crate::error::{Error, ErrorKind, Result};
use crate::format::ipc::notes_strange_type;

/// The size of magic, footer length, and magic again: the smallest file.
const SMALLEST: u64 = 12;

/// The size of the footer's length and the magic at the end.
const END: u64 = 8;

/// The deepest nesting of groups in a schema, because the crate descends by recursion.
const MAX_DEPTH: usize = 64;

/// Reads a footer without doing any I/O: it reports which bytes it needs.
pub(crate) struct FooterReader {
    decoder: ParquetMetaDataPushDecoder,
    file_bytes: u64,
    /// The bytes supplied so far.
    pieces: Vec<(u64, Bytes)>,
    /// What still has to be checked before the decoder sees it: the decoder allocates as many items as a list declares.
    unseen: Unseen,
}

enum Unseen {
    Footer,
    /// Structures at these ranges.
    Structures(Vec<Range<u64>>),
}

/// The result of one step of a [`FooterReader`].
pub(crate) enum Progress {
    Wants(Vec<Range<u64>>),
    Done(Box<ParquetMetaData>),
}

impl FooterReader {
    /// Creates a reader for a file of `file_bytes` bytes.
    pub(crate) fn new(file_bytes: u64) -> Result<Self> {
        if file_bytes < SMALLEST {
            return Err(Error::corrupt(format!("{file_bytes} bytes are no Parquet file"))
                .advice("look whether it was written to its end"));
        }
        let decoder = ParquetMetaDataPushDecoder::try_new(file_bytes).map_err(damaged)?;
        let decoder = decoder.with_page_index_policy(PageIndexPolicy::Skip);
        Ok(Self { decoder, file_bytes, pieces: Vec::new(), unseen: Unseen::Footer })
    }

    /// Creates a reader for the page indexes of a file whose footer is known.
    ///
    /// It always reads the places of pages; with `with_bounds` it also reads the bounds of their values.
    pub(crate) fn of_page_index(file_bytes: u64, metadata: &ParquetMetaData, with_bounds: bool) -> Result<Self> {
        let decoder = ParquetMetaDataPushDecoder::try_new_with_metadata(file_bytes, metadata.clone());
        let bounds = if with_bounds { PageIndexPolicy::Optional } else { PageIndexPolicy::Skip };
        let decoder = decoder.map_err(damaged)?.with_column_index_policy(bounds);
        let decoder = decoder.with_offset_index_policy(PageIndexPolicy::Optional);
        let columns = metadata.row_groups().iter().flat_map(|group| group.columns());
        let place = |offset: Option<i64>, length: Option<i32>| {
            let start = u64::try_from(offset?).ok()?;
            Some(start..start.checked_add(u64::try_from(length?).ok()?)?)
        };
        let places = columns.flat_map(|column| {
            let rows = place(column.offset_index_offset(), column.offset_index_length());
            let bounds = place(column.column_index_offset(), column.column_index_length());
            rows.into_iter().chain(bounds.filter(|_| with_bounds))
        });
        Ok(Self { decoder, file_bytes, pieces: Vec::new(), unseen: Unseen::Structures(places.collect()) })
    }

    /// Takes bytes of the file.
    pub(crate) fn supply(&mut self, range: Range<u64>, bytes: Bytes) -> Result<()> {
        self.pieces.push((range.start, bytes.clone()));
        self.decoder.push_range(range, bytes).map_err(damaged)
    }

    /// Returns supplied bytes, if they have been supplied.
    fn supplied(&self, range: &Range<u64>) -> Option<&[u8]> {
        self.pieces.iter().find_map(|(start, bytes)| {
            let from = range.start.checked_sub(*start)?;
            bytes.get(usize::try_from(from).ok()?..usize::try_from(range.end - start).ok()?)
        })
    }

    /// Checks the supplied bytes that have not been checked yet.
    fn look(&mut self) -> Result<()> {
        match &self.unseen {
            Unseen::Footer => {
                let end = self.file_bytes - END;
                let Some([a, b, c, d, magic @ ..]) = self.supplied(&(end..self.file_bytes)) else { return Ok(()) };
                match magic {
                    b"PAR1" => {}
                    b"PARE" => {
                        return Err(Error::corrupt("ends in PARE: its footer is encrypted, which is not read")
                            .advice("write it without encryption"));
                    }
                    _ => {
                        return Err(Error::corrupt(
                            "does not end in PAR1: it was not written or fetched to its end, or is no Parquet file",
                        )
                        .advice("fetch or write the shard again, or state its format"));
                    }
                }
                let length = u32::from_le_bytes([*a, *b, *c, *d]);
                let start = end.checked_sub(length.into()).ok_or_else(|| {
                    Error::corrupt(format!("a footer of {length} bytes in a file of {}", self.file_bytes))
                        .advice("fetch or write the shard again")
                })?;
                let Some(footer) = self.supplied(&(start..end)) else { return Ok(()) };
                check_footer(footer).map_err(|error| {
                    let offset = error.place().byte_offset.unwrap_or(0);
                    Error::corrupt("the footer cannot be read")
                        .because(error)
                        .byte_offset(start + offset)
                        .advice("fetch or write the shard again")
                })?;
                self.unseen = Unseen::Structures(Vec::new());
            }
            Unseen::Structures(places) => {
                let mut left = Vec::new();
                for place in places {
                    match self.supplied(place) {
                        None => left.push(place.clone()),
                        Some(bytes) => check_page_index(bytes).map_err(|error| {
                            Error::corrupt("the page index cannot be read")
                                .because(error)
                                .byte_offset(place.start)
                                .advice("fetch or write the shard again")
                        })?,
                    }
                }
                self.unseen = Unseen::Structures(left);
            }
        }
        Ok(())
    }

    pub(crate) fn next(&mut self) -> Result<Progress> {
        self.look()?;
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

/// Checks that lists end within the footer and that the schema is a tree of bounded depth. Allocates nothing for what the footer declares.
fn check_footer(footer: &[u8]) -> Result<()> {
    let (mut reader, mut last) = (Reader::new(footer), 0);
    while let Some((field, kind)) = reader.field(&mut last)? {
        match (field, kind) {
            (2, Kind::List) => check_schema(&mut reader)?,
            (_, kind) => reader.skip(kind)?,
        }
    }
    Ok(())
}

/// Checks, like [`check_footer`], the index of where a column's pages are, or of what they hold; the latter begins with the list of pages that hold
/// only nulls.
fn check_page_index(index: &[u8]) -> Result<()> {
    let (mut reader, mut last) = (Reader::new(index), 0);
    while let Some((field, kind)) = reader.field(&mut last)? {
        let mut ahead = reader.clone();
        match (field, kind) {
            (1, Kind::List) if matches!(ahead.list()?, (_, Kind::True | Kind::False)) => reader.skip_truths()?,
            (_, kind) => reader.skip(kind)?,
        }
    }
    Ok(())
}

fn check_schema(reader: &mut Reader<'_>) -> Result<()> {
    let (length, Kind::Struct) = reader.list()? else { return Err(Error::corrupt("the schema is no list of fields")) };
    // Fields that are still to come in each group around.
    let mut open: Vec<u64> = Vec::new();
    for at in 0..length {
        let (mut children, mut last) = (0, 0);
        while let Some((field, kind)) = reader.field(&mut last)? {
            match (field, kind) {
                (5, Kind::Int) => children = reader.int()?,
                (_, kind) => reader.skip(kind)?,
            }
        }
        let children = u64::try_from(children).ok().filter(|&children| children < length - at);
        let children = children.ok_or_else(|| Error::corrupt("a group has more fields than the schema"))?;
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        open.push(children);
        open.truncate(open.iter().rposition(|&left| left > 0).map_or(0, |last| last + 1));
        if open.len() > MAX_DEPTH {
            return Err(Error::corrupt(format!("the schema has more than {MAX_DEPTH} groups within each other")));
        }
    }
    Ok(())
}

fn damaged(error: parquet::errors::ParquetError) -> Error {
    Error::corrupt("the footer cannot be read").because(error).advice("fetch or write the shard again")
}

/// A file's footer after checks: every number in it can be used.
#[derive(Clone, Debug)]
pub(crate) struct Footer {
    pub(super) reader: ArrowReaderMetadata,
    file_bytes: u64,
    /// The places of pages, for columns of row groups that were scanned for them.
    scanned: HashMap<(usize, usize), Arc<Vec<PageRows>>>,
}

/// A page: its rows, and its place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageRows {
    /// The rows of which the page holds at least a part.
    pub(crate) rows: Range<u64>,
    /// Whether the page begins within its first row, a list that began on the page before.
    pub(crate) begins_within: bool,
    pub(crate) place: Range<u64>,
}

impl Footer {
    /// Checks the file's metadata.
    ///
    /// # Errors
    /// Sizes below zero or beyond the file, and types for which Arrow has no name.
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
            let notes = metadata.file_metadata().key_value_metadata().into_iter().flatten();
            let mut notes =
                notes.filter(|note| note.key == ARROW_SCHEMA_META_KEY).filter_map(|note| note.value.as_deref());
            let read =
                |skip| ArrowReaderMetadata::try_new(metadata.clone(), options.clone().with_skip_arrow_metadata(skip));
            // What another writer noted of its own types may not fit; then Parquet's types have to do.
            let known = read(notes.any(notes_strange_type)).or_else(|_| read(true)).map_err(unreadable)?;
            let columns = metadata.file_metadata().schema_descr().columns();
            let int96: Vec<bool> = columns.iter().map(|column| column.physical_type() == Physical::INT96).collect();
            let with = |days| {
                let schema = with_views(known.schema(), days, &int96);
                ArrowReaderMetadata::try_new(metadata.clone(), options.clone().with_schema(schema))
            };
            // Few writers store dates as something else than days.
            with(true).or_else(|_| with(false)).map_err(unreadable)
        })?;
        Ok(Self { reader, file_bytes, scanned: HashMap::new() })
    }

    /// Returns the schema to which row groups are decoded: byte strings become views, dictionaries their values.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.reader.schema()
    }

    /// Adds the pages that scans have found.
    pub(crate) fn with_pages(mut self, found: impl IntoIterator<Item = ((usize, usize), Vec<PageRows>)>) -> Self {
        self.scanned.extend(found.into_iter().map(|(key, pages)| (key, Arc::new(pages))));
        self
    }

    /// Returns the pages of a column if it was scanned, or if the file has a consistent index of them.
    pub(crate) fn pages(&self, group: usize, leaf: usize) -> Option<Arc<Vec<PageRows>>> {
        if let Some(scanned) = self.scanned.get(&(group, leaf)) {
            return Some(scanned.clone());
        }
        let rows = self.metadata().row_group(group).num_rows() as u64;
        let chunk = self.chunk_range(group, leaf);
        let pages = self.metadata().offset_index()?.get(group)?.get(leaf)?.page_locations();
        let mut found: Vec<PageRows> = Vec::with_capacity(pages.len());
        for (at, page) in pages.iter().enumerate() {
            let start = u64::try_from(page.first_row_index).ok()?;
            let end = pages.get(at + 1).map_or(Some(rows), |next| u64::try_from(next.first_row_index).ok())?;
            let offset = u64::try_from(page.offset).ok()?;
            let place = offset..offset.checked_add(u64::try_from(page.compressed_page_size).ok()?)?;
            let follows =
                found.last().map_or(start == 0, |before| before.rows.end == start && before.place.end == place.start);
            if !follows || end < start || end > rows || place.start < chunk.start || place.end > chunk.end {
                return None;
            }
            found.push(PageRows { rows: start..end, begins_within: false, place });
        }
        (!found.is_empty()).then(|| Arc::new(found))
    }

    /// Creates a reader of one row group alone (its number is 0) that knows the pages found by the scan.
    pub(super) fn reader_of_scanned(&self, group: usize) -> Result<ArrowReaderMetadata> {
        let metadata = self.metadata();
        let columns = 0..metadata.row_group(group).num_columns();
        let index = columns.map(|leaf| {
            let mut index = OffsetIndexBuilder::new();
            for page in self.pages(group, leaf).iter().flat_map(|pages| pages.iter()) {
                index.append_row_count((page.rows.end - page.rows.start) as i64);
                let bytes = i32::try_from(page.place.end - page.place.start).unwrap_or(i32::MAX);
                index.append_offset_and_size(page.place.start as i64, bytes);
                index.append_unencoded_byte_array_data_bytes(None);
            }
            index.build()
        });
        let alone = ParquetMetaDataBuilder::new(metadata.file_metadata().clone())
            .add_row_group(metadata.row_group(group).clone())
            .set_offset_index(Some(vec![index.collect()]))
            .build();
        let options = ArrowReaderOptions::new().with_schema(self.schema().clone());
        ArrowReaderMetadata::try_new(Arc::new(alone), options).map_err(unreadable)
    }

    /// Returns whether the pages of a row group are known only from a scan.
    pub(super) fn is_scanned(&self, group: usize) -> bool {
        self.scanned.keys().any(|(scanned, _)| *scanned == group)
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    pub(crate) fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    /// Returns the range of a column of a row group in the file.
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

/// Returns the schema with byte strings and text as views, dictionaries as their values, dates in `days` if they are stored so, and INT96 in
/// microseconds: nanoseconds would overflow outside of 1677 to 2262. `int96` says for each column of the file whether it is INT96.
fn with_views(schema: &Schema, days: bool, int96: &[bool]) -> SchemaRef {
    fn field(of: &Field, days: bool, int96: &mut Iter<'_, bool>) -> Arc<Field> {
        let data_type = match of.data_type() {
            DataType::Dictionary(_, values) => {
                field(&Field::new("", (**values).clone(), true), days, int96).data_type().clone()
            }
            DataType::Struct(children) => DataType::Struct(fields(children, days, int96)),
            DataType::List(item) => DataType::List(field(item, days, int96)),
            DataType::LargeList(item) => DataType::LargeList(field(item, days, int96)),
            DataType::ListView(item) => DataType::ListView(field(item, days, int96)),
            DataType::LargeListView(item) => DataType::LargeListView(field(item, days, int96)),
            DataType::FixedSizeList(item, n) => DataType::FixedSizeList(field(item, days, int96), *n),
            DataType::Map(entries, sorted) => DataType::Map(field(entries, days, int96), *sorted),
            leaf => match (leaf, int96.next() == Some(&true)) {
                (DataType::Timestamp(..), true) => DataType::Timestamp(TimeUnit::Microsecond, None),
                (DataType::Utf8 | DataType::LargeUtf8, _) => DataType::Utf8View,
                (DataType::Binary | DataType::LargeBinary, _) => DataType::BinaryView,
                // As pyarrow reads it: Parquet has dates in days alone, whatever they were before.
                (DataType::Date64, _) if days => DataType::Date32,
                _ => leaf.clone(),
            },
        };
        Arc::new(of.clone().with_data_type(data_type))
    }
    fn fields(of: &Fields, days: bool, int96: &mut Iter<'_, bool>) -> Fields {
        of.iter().map(|of| field(of, days, int96)).collect()
    }
    let fields = fields(schema.fields(), days, &mut int96.iter());
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}
