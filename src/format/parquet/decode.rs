//! Decodes a run of rows of one row group: finds the bytes of the file that hold it, and decodes its columns.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use bytes::{Buf, Bytes};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection, RowSelector};
use parquet::basic::{ConvertedType, Type as Physical};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length};

use super::footer::{Footer, PageRows};
use super::numbers::{self, Chunk, Levels};
use super::page::{Decompressor, Encoding, Pages};
use super::{caught, delta};
use crate::error::{Error, Result};

/// Which columns of a file are read, and how each is decoded.
#[derive(Clone, Debug)]
pub(crate) struct Projection {
    /// The schema of the decoded rows: the wanted columns, with structs reduced to their wanted fields.
    schema: SchemaRef,
    columns: Vec<ProjectedColumn>,
}

/// One top-level column of the schema.
#[derive(Clone, Debug)]
struct ProjectedColumn {
    /// Its columns in the file; a struct has several.
    leaves: Vec<usize>,
    /// The column's levels, if it is decoded directly.
    direct: Option<Levels>,
}

/// Some rows of a row group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) group: usize,
    /// Rows within the row group.
    pub(crate) rows: Range<u64>,
}

impl Projection {
    /// Selects the columns with these dotted names (as far as the file has them), or all columns.
    pub(crate) fn new(footer: &Footer, names: Option<&[&str]>) -> Self {
        let descr = footer.metadata().file_metadata().schema_descr();
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for (root, field) in footer.schema().fields().iter().enumerate() {
            let mut paths = Vec::new();
            let Some(field) = pick(field, &mut vec![field.name().clone()], names, &mut paths) else { continue };
            let leaves = (0..descr.num_columns()).filter(|&leaf| {
                let parts = descr.columns()[leaf].path().parts();
                descr.get_column_root_idx(leaf) == root && paths.iter().any(|path| parts.starts_with(path))
            });
            let leaves: Vec<usize> = leaves.collect();
            let direct = match leaves[..] {
                [leaf] => {
                    let column = descr.column(leaf);
                    let (max_definition, max_repetition) = (column.max_def_level(), column.max_rep_level());
                    let levels =
                        Levels { max_definition, max_repetition, element: column.repeated_ancestor_def_level() };
                    let is_covered = numbers::is_covered(column.physical_type(), field.data_type(), levels);
                    is_covered.then_some(levels)
                }
                _ => None,
            };
            fields.push(field);
            columns.push(ProjectedColumn { leaves, direct });
        }
        Self { schema: Arc::new(Schema::new(fields)), columns }
    }

    /// Turns off direct decoding: the `parquet` crate decodes every column.
    pub(super) fn leave_to_the_crate(&mut self) {
        self.columns.iter_mut().for_each(|column| column.direct = None);
    }

    /// Returns the schema of the decoded rows.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns the columns of the file that are read.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = usize> {
        self.columns.iter().flat_map(|column| column.leaves.iter().copied())
    }

    /// Returns the bytes that some rows take: as stored, and (approximately) as decoded.
    pub(crate) fn bytes(&self, footer: &Footer, part: &Part) -> (u64, u64) {
        let group = footer.metadata().row_group(part.group);
        let (rows, wanted) = (group.num_rows().max(1) as u64, part.rows.end - part.rows.start);
        let share = |bytes: u64| (u128::from(bytes) * u128::from(wanted) / u128::from(rows)) as u64;
        let stored: u64 = ranges(footer, self, part).iter().map(|range| range.end - range.start).sum();
        let decoded = self.columns.iter().flat_map(|column| {
            column.leaves.iter().map(|&leaf| {
                let chunk = group.column(leaf);
                // A row without a value takes a level.
                let values = chunk.num_values().max(group.num_rows()) as u64;
                match column.direct {
                    Some(levels) => {
                        let offsets = if levels.max_repetition > 0 { 4 * rows } else { 0 };
                        values.saturating_mul(width(chunk.column_type())) + offsets
                    }
                    // Byte strings stay in their pages; views of them take 16 bytes. Those of fixed length are copied.
                    None => {
                        let each = chunk.column_descr().type_length().max(16) as u64;
                        undone_bytes(chunk).saturating_add(values.saturating_mul(each))
                    }
                }
            })
        });
        (stored, decoded.map(share).fold(0, u64::saturating_add))
    }
}

/// Returns the bytes that a column's pages take once they are decompressed and shared prefixes of byte strings are written out.
fn undone_bytes(chunk: &ColumnChunkMetaData) -> u64 {
    let bytes = chunk.uncompressed_size() as u64;
    if !chunk.encodings().any(|encoding| encoding == parquet::basic::Encoding::DELTA_BYTE_ARRAY) {
        return bytes;
    }
    let stated = chunk.unencoded_byte_array_data_bytes().and_then(|bytes| u64::try_from(bytes).ok());
    bytes.saturating_add(stated.unwrap_or_else(|| bytes.saturating_mul(SHARED).max(SHARED_BYTES)))
}

/// Bounds the size of strings that share prefixes where the footer does not state it: this many times their stored bytes, or `SHARED_BYTES` if that
/// is more.
const SHARED: u64 = 16;
const SHARED_BYTES: u64 = 1 << 20;

fn width(stored: parquet::basic::Type) -> u64 {
    match stored {
        parquet::basic::Type::INT64 | parquet::basic::Type::DOUBLE => 8,
        _ => 4,
    }
}

/// Returns a field with only its wanted parts; `paths` collects their names in the file.
fn pick(
    field: &Arc<Field>,
    path: &mut Vec<String>,
    names: Option<&[&str]>,
    paths: &mut Vec<Vec<String>>,
) -> Option<Arc<Field>> {
    let DataType::Struct(children) = field.data_type() else {
        let name = path.join(".");
        if names.is_some_and(|names| !names.contains(&name.as_str())) {
            return None;
        }
        paths.push(path.clone());
        return Some(field.clone());
    };
    let picked = children.iter().filter_map(|child| {
        path.push(child.name().clone());
        let picked = pick(child, path, names, paths);
        path.pop();
        picked
    });
    let picked: Fields = picked.collect();
    (!picked.is_empty()).then(|| Arc::new(field.as_ref().clone().with_data_type(DataType::Struct(picked))))
}

/// Where the pages of a column that hold some rows are.
struct Located {
    dictionary: Option<Range<u64>>,
    pages: Range<u64>,
    /// The first row that begins on these pages, and whether the rest of another row comes before it.
    first_row: u64,
    begins_within: bool,
}

fn locate(footer: &Footer, part: &Part, leaf: usize) -> Located {
    let chunk = footer.chunk_range(part.group, leaf);
    let rows = footer.metadata().row_group(part.group).num_rows() as u64;
    let whole = Located { dictionary: None, pages: chunk.clone(), first_row: 0, begins_within: false };
    if part.rows == (0..rows) {
        return whole;
    }
    let Some(pages) = footer.pages(part.group, leaf) else { return whole };
    let wanted = |page: &&PageRows| page.rows.start < part.rows.end && page.rows.end > part.rows.start;
    let (Some(first), Some(last)) = (pages.iter().find(wanted), pages.iter().rfind(wanted)) else { return whole };
    let before = pages.first().map_or(first.place.start, |page| page.place.start);
    let dictionary = (chunk.start < before).then_some(chunk.start..before);
    let first_row = first.rows.start + u64::from(first.begins_within);
    Located { dictionary, pages: first.place.start..last.place.end, first_row, begins_within: first.begins_within }
}

/// Returns the ranges of the file that hold some rows, by column, in ascending order.
pub(crate) fn ranges(footer: &Footer, projection: &Projection, part: &Part) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = projection
        .leaves()
        .flat_map(|leaf| {
            let Located { dictionary, pages, .. } = locate(footer, part, leaf);
            dictionary.into_iter().chain([pages])
        })
        .filter(|range| range.start < range.end)
        .collect();
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    ranges
}

/// Bytes that were read from a file: pieces with their offsets, in ascending order.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pieces: Arc<Vec<(u64, Bytes)>>,
    file_bytes: u64,
}

impl Fetched {
    pub(crate) fn new(pieces: Vec<(u64, Bytes)>, file_bytes: u64) -> Self {
        debug_assert!(pieces.is_sorted_by_key(|piece| piece.0));
        Self { pieces: Arc::new(pieces), file_bytes }
    }

    fn get(&self, range: Range<u64>) -> Option<Bytes> {
        if range.start == range.end {
            return Some(Bytes::new());
        }
        let at = self.pieces.partition_point(|(start, _)| *start <= range.start).checked_sub(1)?;
        let (start, piece) = &self.pieces[at];
        let (from, to) = (range.start - start, range.end.checked_sub(*start)?);
        (to <= piece.len() as u64).then(|| piece.slice(from as usize..to as usize))
    }

    fn from(&self, start: u64) -> Option<Bytes> {
        let at = self.pieces.partition_point(|(first, _)| *first <= start).checked_sub(1)?;
        let (first, piece) = &self.pieces[at];
        piece.len().checked_sub((start - first) as usize).map(|_| piece.slice((start - first) as usize..))
    }
}

impl Length for Fetched {
    fn len(&self) -> u64 {
        self.file_bytes
    }
}

impl ChunkReader for Fetched {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let missing = || parquet::errors::ParquetError::General(format!("byte {start} was not read"));
        self.from(start).map(Buf::reader).ok_or_else(missing)
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let missing = || parquet::errors::ParquetError::General(format!("{length} bytes at {start} were not read"));
        let end = start.checked_add(length as u64).ok_or_else(missing)?;
        self.get(start..end).ok_or_else(missing)
    }
}

/// Decodes some rows: returns an array for each top-level column of the projection's schema.
///
/// # Errors
/// Damage, with the column, and with the byte offset in the file if it is known.
pub(crate) fn decode(
    footer: &Footer,
    projection: &Projection,
    part: &Part,
    fetched: &Fetched,
    decompressor: &mut Decompressor,
) -> Result<Vec<ArrayRef>> {
    let rows = (part.rows.end - part.rows.start) as usize;
    let mut arrays: Vec<Option<ArrayRef>> = vec![None; projection.columns.len()];
    for (at, column) in projection.columns.iter().enumerate() {
        let Some(levels) = column.direct else { continue };
        let decoded = decode_numbers(footer, part, column.leaves[0], levels, fetched, decompressor);
        let array = decoded.map_err(|error| error.column(projection.schema.field(at).name().as_str()))?;
        // Pages that hold fewer rows than they should are damaged like any others.
        arrays[at] = array.filter(|array| array.len() == rows);
    }
    let general: Vec<usize> = (0..arrays.len()).filter(|&at| arrays[at].is_none()).collect();
    if !general.is_empty() {
        let leaves = general.iter().flat_map(|&at| projection.columns[at].leaves.iter().copied());
        let leaves: Vec<usize> = leaves.collect();
        check_sizes(footer, part, &leaves, fetched, decompressor)?;
        let decoded = decode_general(footer, part, &leaves, fetched)?;
        for (&at, array) in general.iter().zip(decoded.columns()) {
            arrays[at] = Some(array.clone());
        }
    }
    Ok(arrays.into_iter().map(|array| array.expect("each was decoded by one or the other")).collect())
}

/// Estimates the number of values of some rows: lists are taken to have the row group's average length. For all rows it is the number in the footer.
fn expected(column: &ColumnChunkMetaData, part: &Part, footer: &Footer) -> usize {
    let rows = footer.metadata().row_group(part.group).num_rows().max(1) as u128;
    let wanted = u128::from(part.rows.end - part.rows.start);
    (column.num_values() as u128 * wanted / rows) as usize
}

fn decode_numbers(
    footer: &Footer,
    part: &Part,
    leaf: usize,
    levels: Levels,
    fetched: &Fetched,
    decompressor: &mut Decompressor,
) -> Result<Option<ArrayRef>> {
    let column = footer.metadata().row_group(part.group).column(leaf);
    let Located { dictionary, pages, first_row, begins_within } = locate(footer, part, leaf);
    let missing = || Error::corrupt("bytes of a column were not read");
    let chunk = Chunk {
        dictionary: dictionary.map(|range| fetched.get(range).ok_or_else(missing)).transpose()?,
        pages: fetched.get(pages.clone()).ok_or_else(missing)?,
        bytes: column.uncompressed_size() as u64,
        values: column.num_values() as u64,
        codec: column.compression_codec(),
        expected: expected(column, part, footer),
        begins_within,
    };
    let decoded = numbers::decode(&chunk, column.column_type(), levels, decompressor);
    let decoded = decoded.map_err(|error| {
        let offset = error.place().byte_offset.unwrap_or(0);
        error.byte_offset(pages.start + offset)
    })?;
    let (skipped, rows) = ((part.rows.start - first_row) as usize, (part.rows.end - part.rows.start) as usize);
    Ok(decoded.map(|array| {
        let there = array.len().saturating_sub(skipped).min(rows);
        array.slice(skipped.min(array.len()), there)
    }))
}

/// Checks the headers of all pages before the general reader, which trusts them, decompresses the pages. Also checks the lengths of strings that
/// share prefixes, since a few bytes can stand for any number.
fn check_sizes(
    footer: &Footer,
    part: &Part,
    leaves: &[usize],
    fetched: &Fetched,
    decompressor: &mut Decompressor,
) -> Result<()> {
    for &leaf in leaves {
        let column = footer.metadata().row_group(part.group).column(leaf);
        let Located { dictionary, pages, .. } = locate(footer, part, leaf);
        let mut values = column.num_values() as u64;
        let mut shared = undone_bytes(column);
        for range in dictionary.into_iter().chain([pages]) {
            let data = fetched.get(range.clone()).ok_or_else(|| Error::corrupt("bytes of a column were not read"))?;
            let place = |error: Error| {
                let offset = error.place().byte_offset.unwrap_or(0);
                error.byte_offset(range.start + offset).column(column.column_path().string())
            };
            let length = data.len();
            let mut pages = Pages::new(data, 0..length, column.uncompressed_size() as u64);
            while let Some(page) = pages.next().map_err(place)? {
                page.check_window(column.compression_codec()).map_err(place)?;
                if page.header.is_data() {
                    values = values
                        .checked_sub(page.header.values.into())
                        .ok_or_else(|| place(Error::corrupt("pages hold more values than the footer says")))?;
                }
                let encoding = page.header.encoding;
                let is_fixed = column.column_type() == Physical::FIXED_LEN_BYTE_ARRAY;
                if matches!(encoding, Encoding::DeltaByteArray | Encoding::DeltaLengths)
                    && (is_fixed || column.column_type() == Physical::BYTE_ARRAY)
                {
                    let (offset, descr) = (page.offset as u64, column.column_descr());
                    let most = u64::from(page.header.values) * descr.type_length().max(0) as u64;
                    let page = decompressor.open(page, column.compression_codec()).map_err(place)?;
                    let bytes = delta::string_bytes(&page, descr.max_rep_level(), descr.max_def_level());
                    let bytes = bytes.map_err(|error| place(error.byte_offset(offset)))?;
                    if is_fixed && bytes > most {
                        return Err(place(Error::corrupt("byte strings longer than their type").byte_offset(offset)));
                    }
                    if !is_fixed && encoding == Encoding::DeltaByteArray {
                        shared = shared.checked_sub(bytes).ok_or_else(|| {
                            place(Error::corrupt("byte strings share more than the footer allows").byte_offset(offset))
                                .advice("write the column with another encoding than DELTA_BYTE_ARRAY")
                        })?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn decode_general(footer: &Footer, part: &Part, leaves: &[usize], fetched: &Fetched) -> Result<RecordBatch> {
    let group = footer.metadata().row_group(part.group);
    let (all, rows) = (group.num_rows() as u64, part.rows.end - part.rows.start);
    caught(|| {
        let mask = ProjectionMask::leaves(footer.metadata().file_metadata().schema_descr(), leaves.iter().copied());
        let (reader, group) = if rows < all && footer.is_scanned(part.group) {
            (footer.reader_of_scanned(part.group)?, 0)
        } else {
            (footer.reader.clone(), part.group)
        };
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(fetched.clone(), reader)
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_batch_size(rows as usize);
        if rows < all {
            let selectors = [
                RowSelector::skip(part.rows.start as usize),
                RowSelector::select(rows as usize),
                RowSelector::skip((all - part.rows.end) as usize),
            ];
            builder = builder.with_row_selection(RowSelection::from(selectors.to_vec()));
        }
        let failed = |error| Error::corrupt("a row group cannot be decoded").because(error);
        let reader = builder.build().map_err(|e| failed(arrow::error::ArrowError::from(e)))?;
        let schema = arrow::array::RecordBatchReader::schema(&reader);
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let batch = match <[RecordBatch; 1]>::try_from(batches) {
            Ok([batch]) => batch,
            Err(batches) => arrow::compute::concat_batches(&schema, &batches).map_err(failed)?,
        };
        if batch.num_rows() as u64 != rows {
            return Err(Error::corrupt(format!("{} rows, where the footer says {rows}", batch.num_rows())));
        }
        // The crate goes by the older of the two ways in which a footer says that a column is text.
        let descr = footer.metadata().file_metadata().schema_descr();
        let is_checked = leaves.iter().map(|&leaf| descr.column(leaf)).all(|column| {
            column.physical_type() != Physical::BYTE_ARRAY || column.converted_type() == ConvertedType::UTF8
        });
        if !batch.columns().iter().all(|array| is_text(&array.to_data(), is_checked)) {
            return Err(Error::corrupt("a text is no UTF-8"));
        }
        Ok(batch)
    })
}

/// Checks that each text is valid UTF-8. Where the crate has checked that, it remains to check that each text begins with a character: the crate
/// validates the texts of delta encodings end to end, not each by itself, so a character may be split between two texts, and the second then begins
/// with its remainder.
fn is_text(array: &ArrayData, is_checked: bool) -> bool {
    if *array.data_type() != DataType::Utf8View {
        return array.child_data().iter().all(|child| is_text(child, is_checked));
    }
    if is_checked {
        // A view has the length in its lowest 32 bits, and the first byte behind them.
        let views = &array.buffers()[0].typed_data::<u128>()[array.offset()..array.offset() + array.len()];
        return views.iter().all(|view| *view as u32 == 0 || (view >> 32) as u8 & 0xc0 != 0x80);
    }
    let texts = StringViewArray::from(array.clone()).to_binary_view();
    texts.iter().flatten().all(|text| std::str::from_utf8(text).is_ok())
}

/// Cuts rows into about `parts` parts, at page boundaries of their largest column; into one part if the places of pages are not known.
pub(crate) fn cut(footer: &Footer, projection: &Projection, whole: &Part, parts: u64) -> Vec<Range<u64>> {
    let all = whole.rows.clone();
    if parts <= 1 || !has_pages(footer, projection, whole.group) {
        return vec![all];
    }
    let pages = projection.leaves().filter_map(|leaf| footer.pages(whole.group, leaf));
    let bytes = |pages: &Arc<Vec<PageRows>>| pages.last().map_or(0, |page| page.place.end) - pages[0].place.start;
    let Some(pages) = pages.max_by_key(bytes) else { return vec![all] };
    let least = (all.end - all.start).div_ceil(parts);
    let mut cuts = vec![all.start];
    for page in pages.iter() {
        let end = page.rows.end;
        if end < all.end && end >= cuts[cuts.len() - 1] + least {
            cuts.push(end);
        }
    }
    cuts.push(all.end);
    cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// Returns whether the places of the pages of all columns of a row group are known, so that the row group can be read in part.
pub(crate) fn has_pages(footer: &Footer, projection: &Projection, group: usize) -> bool {
    let mut columns = projection.columns.iter();
    columns.all(|column| {
        column.leaves.iter().all(|&leaf| {
            // The general reader wants pages to begin with a row.
            let usable = |page: &PageRows| column.direct.is_some() || !page.begins_within;
            footer.pages(group, leaf).is_some_and(|pages| pages.iter().all(usable))
        })
    })
}

/// Returns the columns of a row group whose pages have unknown places.
pub(crate) fn without_pages(footer: &Footer, projection: &Projection, group: usize) -> Vec<usize> {
    projection.leaves().filter(|&leaf| footer.pages(group, leaf).is_none()).collect()
}
