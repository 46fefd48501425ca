//! Arrow IPC: finds record batches from a file's footer or a stream's messages, and decodes them.
//!
//! This module holds plain functions from bytes to values; the caller reads the bytes. A file is `ARROW1`, messages, a footer that lists the
//! messages, the footer's length, and `ARROW1` again. A stream is the messages alone, each of which states its own length. A message is
//! | bytes | what |
//! |---|---|
//! | 4 | `ff ff ff ff` (not there before Arrow 0.15) |
//! | 4 | length n of the metadata; 0 ends a stream |
//! | n | metadata, a flatbuffer: a schema, or where the buffers of a batch lie in the body |
//! | as the metadata says | body |
//!
//! Every length is checked against the shard and the body before it is used to read or allocate anything, because Arrow's own reader trusts lengths.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::ipc::reader::FileDecoder;
use arrow::ipc::{self, Block, MessageHeader, MetadataVersion};

use crate::error::{Error, ErrorKind, Result};

/// The magic bytes at the beginning and the end of a file.
const MAGIC: &[u8; 6] = b"ARROW1";

/// The size of a file's trailer: the footer's length and the magic.
pub(crate) const TRAILER_BYTES: u64 = 10;

/// The most bytes that come before a message's metadata.
pub(crate) const PREFIX_BYTES: usize = 8;

/// The most rows in one batch: the loader counts them in 32 bits within a block.
const MAX_ROWS: i64 = i32::MAX as i64;

/// The most elements in one array, small enough that no length in bytes overflows.
const MAX_NODE: i64 = 1 << 40;

/// The bits of the integers that Arrow's reader knows.
const WIDTHS: [i32; 4] = [8, 16, 32, 64];

/// The most that a compressed byte comes to: zstd repeats a byte 128 Ki times in a block of four. In LZ4 it is 255.
const MOST_FROM_A_BYTE: u64 = 1 << 15;

/// The two forms of Arrow shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    File,
    Stream,
}

/// Detects the form of a shard from its first bytes.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if it is neither form.
pub(crate) fn form_of(first_bytes: &[u8]) -> Result<Form> {
    if first_bytes.starts_with(MAGIC) {
        return Ok(Form::File);
    }
    if first_bytes.starts_with(b"FEA1") {
        return Err(Error::corrupt("is a Feather file of version 1, which Arrow's readers no longer read")
            .advice("write it again with pyarrow.feather.write_feather(.., version=2)"));
    }
    if first_bytes.starts_with(b"\x1f\x8b") || first_bytes.starts_with(b"\x28\xb5\x2f\xfd") {
        return Err(Error::corrupt("is compressed as a whole, so that no batch of it could be read alone")
            .advice("write it plain, with compressed buffers"));
    }
    // A stream begins with the message of its schema, whose metadata is short.
    match prefix(first_bytes) {
        Some(Prefix::Message { bytes, .. }) if (16..1 << 28).contains(&bytes) => Ok(Form::Stream),
        _ => Err(Error::corrupt("is neither an Arrow IPC file nor a stream")
            .advice("state the format that the shards have: Dataset::open_with(urls, format)")),
    }
}

/// The place of a message in a shard: where it starts, the bytes of its prefix with the metadata, and the bytes of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) metadata: u64,
    pub(crate) body: u64,
}

impl Extent {
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.metadata + self.body
    }

    pub(crate) fn metadata_range(&self) -> Range<u64> {
        self.offset..self.offset + self.metadata
    }

    fn block(&self) -> Block {
        Block::new(self.offset as i64, self.metadata as i32, self.body as i64)
    }
}

/// The content of a message's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// A message whose metadata takes `bytes`, after a prefix of `prefix` bytes.
    Message { prefix: usize, bytes: u64 },
    /// The stream ends here.
    End,
}

/// Reads a message's prefix; returns `None` if there are too few bytes.
pub(crate) fn prefix(bytes: &[u8]) -> Option<Prefix> {
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (prefix, length) = match number(0)? {
        u32::MAX => (8, number(4)?),
        length => (4, length),
    };
    Some(if length == 0 { Prefix::End } else { Prefix::Message { prefix, bytes: u64::from(length) } })
}

/// A file's footer.
#[derive(Debug)]
pub(crate) struct Footer {
    pub(crate) schema: SchemaRef,
    pub(crate) version: MetadataVersion,
    pub(crate) dictionaries: Vec<Extent>,
    pub(crate) batches: Vec<Extent>,
}

/// Returns where the footer of a file of `size` bytes lies, given the file's last [`TRAILER_BYTES`].
pub(crate) fn footer_range(trailer: &[u8], size: u64) -> Result<Range<u64>> {
    let end = size.saturating_sub(TRAILER_BYTES);
    let wrong = |message: String| {
        Err(Error::corrupt(message).byte_offset(end).advice("the file was cut short, or is still being written"))
    };
    let Some((length, magic)) = trailer.split_first_chunk::<4>() else {
        return wrong("is too short for an Arrow IPC file".into());
    };
    if magic != MAGIC {
        return wrong("does not end in ARROW1".into());
    }
    match u64::try_from(i32::from_le_bytes(*length)) {
        Ok(length) if length > 0 && length + 8 <= end => Ok(end - length..end),
        _ => wrong(format!("a footer of {} bytes in a file of {size}", i32::from_le_bytes(*length))),
    }
}

/// Reads a footer that starts at `start`; every message must lie before it.
pub(crate) fn footer(bytes: &[u8], start: u64) -> Result<Footer> {
    let damaged = |message: String| {
        Error::corrupt(format!("the footer is damaged: {message}")).byte_offset(start).advice("write the file again")
    };
    let footer = ipc::root_as_footer(bytes).map_err(|e| damaged(e.to_string()))?;
    let schema = schema_of(footer.schema().ok_or_else(|| damaged("it has no schema".into()))?)?;
    Ok(Footer {
        schema,
        version: footer.version(),
        dictionaries: extents(footer.dictionaries().into_iter().flatten(), start).map_err(damaged)?,
        batches: extents(footer.recordBatches().into_iter().flatten(), start).map_err(damaged)?,
    })
}

fn extents<'a>(blocks: impl Iterator<Item = &'a Block>, end: u64) -> Result<Vec<Extent>, String> {
    let number = |value: i64| u64::try_from(value).ok();
    let extent = |block: &Block| {
        let (offset, metadata) = (number(block.offset())?, number(block.metaDataLength().into())?);
        let body = number(block.bodyLength())?;
        let last = offset.checked_add(metadata)?.checked_add(body)?;
        (metadata >= PREFIX_BYTES as u64 && last <= end).then_some(Extent { offset, metadata, body })
    };
    let found = blocks
        .enumerate()
        .map(|(at, block)| extent(block).ok_or_else(|| format!("message {at} does not lie within the file")));
    found.collect()
}

/// What a message holds.
#[derive(Debug)]
pub(crate) enum Message {
    Schema(SchemaRef, MetadataVersion),
    Batch { rows: u64, body: u64, compressed: bool },
    Dictionary { id: i64, delta: bool, body: u64 },
}

/// Reads a message's metadata, including the prefix before it.
pub(crate) fn message(bytes: &[u8]) -> Result<Message> {
    let message = parse(bytes)?;
    let body = u64::try_from(message.bodyLength()).map_err(|_| damaged("its body has a negative length"))?;
    Ok(match message.header_type() {
        MessageHeader::Schema => {
            let schema = message.header_as_schema().ok_or_else(|| damaged("its schema is missing"))?;
            Message::Schema(schema_of(schema)?, message.version())
        }
        MessageHeader::RecordBatch => {
            let batch = message.header_as_record_batch().ok_or_else(|| damaged("its batch is missing"))?;
            let rows = rows_of(&batch)?;
            Message::Batch { rows, body, compressed: batch.compression().is_some() }
        }
        MessageHeader::DictionaryBatch => {
            let batch = message.header_as_dictionary_batch().ok_or_else(|| damaged("its dictionary is missing"))?;
            Message::Dictionary { id: batch.id(), delta: batch.isDelta(), body }
        }
        other => return Err(damaged(format!("it holds {other:?}, which is no record batch"))),
    })
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("a message is damaged: {what}")).advice("write the shard again")
}

fn parse(bytes: &[u8]) -> Result<ipc::Message<'_>> {
    let Some(Prefix::Message { prefix, bytes: length }) = prefix(bytes) else {
        return Err(damaged("there is none"));
    };
    let metadata = bytes.get(prefix..).filter(|rest| rest.len() as u64 >= length);
    let metadata = metadata.ok_or_else(|| damaged(format!("metadata of {length} bytes do not fit")))?;
    ipc::root_as_message(metadata).map_err(damaged)
}

fn rows_of(batch: &ipc::RecordBatch<'_>) -> Result<u64> {
    let rows = batch.length();
    let fits = u64::try_from(rows).ok().filter(|_| rows <= MAX_ROWS);
    fits.ok_or_else(|| damaged(format!("a batch of {rows} rows")))
}

fn schema_of(schema: ipc::Schema<'_>) -> Result<SchemaRef> {
    if schema.endianness() == ipc::Endianness::Big {
        return Err(Error::corrupt("was written on a big-endian machine, whose numbers are not turned round here")
            .advice("write it again on a little-endian one"));
    }
    if schema.fields().is_none() {
        return Err(damaged("its schema has no fields"));
    }
    if let Some(strange) = strange_type(schema) {
        return Err(strange);
    }
    guarded(|| Ok(Arc::new(ipc::convert::fb_to_schema(schema))))
}

/// Finds a type that Arrow's reader panics on: integers of other [`WIDTHS`], such as polars writes, and what only damage explains.
fn strange_type(schema: ipc::Schema<'_>) -> Option<Error> {
    fn of<'a>(mut fields: impl Iterator<Item = ipc::Field<'a>>) -> Option<Error> {
        fields.find_map(|field| {
            let name = field.name().unwrap_or("");
            let bits = field.type_as_int().map(|int| int.bitWidth()).filter(|bits| !WIDTHS.contains(bits));
            let strange = if let Some(bits) = bits {
                let what = format!("column {name:?} has integers of {bits} bits, which Arrow's reader does not know");
                Some(Error::new(ErrorKind::Schema, what).advice("write it without that column, or as decimals"))
            } else {
                (!is_a_type(&field)).then(|| damaged(format!("column {name:?} has no type that Arrow knows")))
            };
            strange.or_else(|| of(field.children()?.iter()))
        })
    }
    of(schema.fields()?.iter())
}

/// Whether what a field says of its type is in Arrow's format, and whether it has as many children as that type.
fn is_a_type(field: &ipc::Field<'_>) -> bool {
    use ipc::Type;
    let children = field.children().map_or(0, |children| children.len());
    let named = |name: Option<&str>| name.is_some();
    let index = field.dictionary().map(|dictionary| dictionary.indexType());
    if index.is_some_and(|index| index.is_none_or(|int| !WIDTHS.contains(&int.bitWidth()))) {
        return false;
    }
    match field.type_type() {
        Type::NONE => false,
        Type::List | Type::LargeList | Type::ListView | Type::LargeListView | Type::FixedSizeList | Type::Map => {
            children == 1
        }
        Type::RunEndEncoded => children == 2,
        Type::FloatingPoint => field.type_as_floating_point().is_some_and(|of| named(of.precision().variant_name())),
        Type::Date => field.type_as_date().is_some_and(|of| named(of.unit().variant_name())),
        Type::Time => field.type_as_time().is_some_and(|of| {
            of.bitWidth() == if of.unit() <= ipc::TimeUnit::MILLISECOND { 32 } else { 64 }
                && named(of.unit().variant_name())
        }),
        Type::Timestamp => field.type_as_timestamp().is_some_and(|of| named(of.unit().variant_name())),
        Type::Duration => field.type_as_duration().is_some_and(|of| named(of.unit().variant_name())),
        Type::Interval => field.type_as_interval().is_some_and(|of| named(of.unit().variant_name())),
        Type::Union => field.type_as_union().is_some_and(|of| named(of.mode().variant_name())),
        Type::Decimal => field.type_as_decimal().is_some_and(|of| {
            let fit = u8::try_from(of.precision()).is_ok() && i8::try_from(of.scale()).is_ok();
            [32, 64, 128, 256].contains(&of.bitWidth()) && fit
        }),
        other => named(other.variant_name()),
    }
}

/// Checks the same for the schema that Parquet files store for Arrow as a base64 message.
#[cfg(feature = "parquet")]
pub(crate) fn notes_strange_type(note: &str) -> bool {
    let message = crate::format::data_uri::undo_base64(note.as_bytes());
    message.is_some_and(|message| {
        let message = message.strip_prefix(&[0xff; 4]).and_then(|rest| rest.get(4..)).unwrap_or(&message);
        let schema = ipc::root_as_message(message).ok().and_then(|message| message.header_as_schema());
        schema.and_then(strange_type).is_some()
    })
}

/// Catches panics: Arrow's reader panics on some damaged messages even after all the checks here.
fn guarded<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(damaged("Arrow's reader cannot make sense of it")))
}

/// Decodes messages into record batches, with the dictionaries that came before them.
pub(crate) struct Decoder {
    inner: FileDecoder,
    schema: SchemaRef,
    version: MetadataVersion,
    projection: Vec<usize>,
}

impl Decoder {
    /// Creates a decoder for batches of this schema; `projection` lists the wanted fields.
    pub(crate) fn new(schema: SchemaRef, version: MetadataVersion, projection: Vec<usize>) -> Self {
        let inner = FileDecoder::new(schema.clone(), version).with_projection(projection.clone());
        Self { inner, schema, version, projection }
    }

    /// Returns whether wanted fields take their values from this dictionary.
    pub(crate) fn needs(&self, dictionary: i64) -> bool {
        let wanted = self.projection.iter().filter_map(|&at| self.schema.fields().get(at));
        wanted.into_iter().any(|field| names_dictionary(field, dictionary))
    }

    /// Takes a dictionary message; `bytes` are the bytes of its extent. No more than `limit` bytes are decompressed.
    pub(crate) fn dictionary(&mut self, extent: &Extent, bytes: &Buffer, limit: usize) -> Result<()> {
        let message = parse(bytes)?;
        let batch = message.header_as_dictionary_batch().ok_or_else(|| damaged("it is no dictionary"))?;
        if batch.isDelta() {
            return Err(delta());
        }
        let values = dictionary_field(self.schema.fields().iter(), batch.id());
        let values = values.ok_or_else(|| damaged(format!("no field has dictionary {}", batch.id())))?;
        let data = batch.data().ok_or_else(|| damaged("a dictionary without values"))?;
        let fields = [Arc::new(Field::new("", values, true))];
        check(&data, fields.iter(), self.version, body_of(extent, bytes)?, limit)?;
        guarded(|| {
            self.inner
                .read_dictionary(&extent.block(), bytes)
                .map_err(|e| damaged("it does not fit its schema").because(e))
        })
    }

    /// Decodes the wanted columns of a batch; `bytes` are the bytes of its extent. No more than `limit` bytes are decompressed.
    pub(crate) fn batch(&self, extent: &Extent, bytes: &Buffer, limit: usize) -> Result<RecordBatch> {
        let message = parse(bytes)?;
        let batch = message.header_as_record_batch().ok_or_else(|| damaged("it is no record batch"))?;
        check(&batch, self.schema.fields().iter(), self.version, body_of(extent, bytes)?, limit)?;
        let read = guarded(|| {
            let read = self.inner.read_record_batch(&extent.block(), bytes);
            read.map_err(|e| damaged("it does not fit its schema").because(e))
        });
        read?.ok_or_else(|| damaged("it is empty"))
    }
}

/// Returns the error for delta dictionaries: if dictionaries grew while a file is read, a block would depend on the blocks before it.
pub(crate) fn delta() -> Error {
    Error::new(ErrorKind::Schema, "a dictionary that is added to (a delta) is not read")
        .advice("write the shard without delta dictionaries")
}

fn body_of<'a>(extent: &Extent, bytes: &'a Buffer) -> Result<&'a [u8]> {
    let body = usize::try_from(extent.metadata).ok().and_then(|at| bytes.get(at..));
    body.filter(|body| body.len() as u64 == extent.body).ok_or_else(|| damaged("its body was not read as a whole"))
}

#[expect(deprecated, reason = "nothing else tells which dictionary a field has")]
fn dictionary_id(field: &Field) -> Option<i64> {
    field.dict_id()
}

fn children(data_type: &DataType) -> Vec<&Arc<Field>> {
    match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => vec![item],
        DataType::Struct(fields) => fields.iter().collect(),
        DataType::RunEndEncoded(ends, values) => vec![ends, values],
        DataType::Union(fields, _) => fields.iter().map(|(_, field)| field).collect(),
        DataType::Dictionary(_, values) => children(values),
        _ => Vec::new(),
    }
}

fn names_dictionary(field: &Field, id: i64) -> bool {
    dictionary_id(field) == Some(id) || children(field.data_type()).into_iter().any(|field| names_dictionary(field, id))
}

/// Returns the type of a dictionary's values.
fn dictionary_field<'a>(fields: impl IntoIterator<Item = &'a Arc<Field>>, id: i64) -> Option<DataType> {
    fields.into_iter().find_map(|field| match field.data_type() {
        DataType::Dictionary(_, values) if dictionary_id(field) == Some(id) => Some((**values).clone()),
        data_type => dictionary_field(children(data_type), id),
    })
}

/// Checks a batch's metadata against its fields and its body.
fn check<'a>(
    batch: &ipc::RecordBatch<'_>,
    fields: impl Iterator<Item = &'a Arc<Field>>,
    version: MetadataVersion,
    body: &[u8],
    limit: usize,
) -> Result<()> {
    rows_of(batch)?;
    let (Some(nodes), Some(buffers)) = (batch.nodes(), batch.buffers()) else {
        return Err(damaged("it does not say where its buffers are"));
    };
    let variadic: Vec<i64> = batch.variadicBufferCounts().into_iter().flatten().collect();
    let mut expected = Expected { nodes: 0, buffers: 0, variadic: variadic.into(), version };
    let mut columns = Vec::new();
    for field in fields {
        columns.push(expected.nodes);
        expected
            .add(field.data_type(), buffers.len())
            .ok_or_else(|| damaged("it has other buffers than its schema"))?;
    }
    if (expected.nodes, expected.buffers) != (nodes.len(), buffers.len()) || !expected.variadic.is_empty() {
        return Err(damaged("it has other columns or buffers than its schema"));
    }
    if let Some(node) = nodes
        .iter()
        .find(|node| !(0..=MAX_NODE).contains(&node.length()) || !(0..=node.length()).contains(&node.null_count()))
    {
        return Err(damaged(format!("an array of {} values with {} nulls", node.length(), node.null_count())));
    }
    if let Some(at) = columns.into_iter().find(|&at| nodes.get(at).length() != batch.length()) {
        return Err(damaged(format!(
            "a column of {} values in a batch of {} rows",
            nodes.get(at).length(),
            batch.length()
        )));
    }
    let mut decompressed = 0u64;
    for buffer in buffers.iter() {
        let range = (|| {
            let (offset, length) = (usize::try_from(buffer.offset()).ok()?, usize::try_from(buffer.length()).ok()?);
            body.get(offset..offset.checked_add(length)?)
        })();
        let bytes = range.ok_or_else(|| damaged("a buffer does not lie within its body"))?;
        if batch.compression().is_some() && !bytes.is_empty() {
            let length = bytes.first_chunk().map(|bytes| i64::from_le_bytes(*bytes));
            match length {
                // Not compressed after all.
                Some(-1) => {}
                Some(length @ 0..) if length as u64 / MOST_FROM_A_BYTE > bytes.len() as u64 => {
                    return Err(damaged(format!("a buffer of {} bytes cannot decompress to {length}", bytes.len())));
                }
                Some(length @ 0..) => decompressed = decompressed.saturating_add(length as u64),
                _ => return Err(damaged("a compressed buffer does not tell its length")),
            }
        }
    }
    if batch.compression().is_some() && !cfg!(feature = "zstd") {
        return Err(Error::config("compressed buffers of Arrow IPC need the feature `zstd` (LZ4 as well)")
            .advice("compile forebay with it: --features zstd"));
    }
    if decompressed > limit as u64 {
        return Err(Error::new(
            ErrorKind::Memory,
            format!("a batch decompresses to {decompressed} bytes, which do not fit the budget"),
        )
        .advice(format!(
            "write smaller batches, or take .budget(Budget::mebibytes({})) or more",
            decompressed.saturating_mul(2).div_ceil(1 << 20)
        )));
    }
    Ok(())
}

/// The number of arrays and buffers that fields need.
struct Expected {
    nodes: usize,
    buffers: usize,
    variadic: std::collections::VecDeque<i64>,
    version: MetadataVersion,
}

impl Expected {
    fn add(&mut self, data_type: &DataType, most: usize) -> Option<()> {
        use DataType::*;
        self.nodes += 1;
        let buffers = match data_type {
            Null | RunEndEncoded(..) => 0,
            Struct(_) | FixedSizeList(..) => 1,
            Utf8 | LargeUtf8 | Binary | LargeBinary | ListView(_) | LargeListView(_) => 3,
            Utf8View | BinaryView => {
                2 + usize::try_from(self.variadic.pop_front()?).ok().filter(|&count| count <= most)?
            }
            Union(_, mode) => {
                let validity = usize::from(self.version < MetadataVersion::V5);
                validity + 1 + usize::from(*mode == arrow::datatypes::UnionMode::Dense)
            }
            _ => 2,
        };
        self.buffers += buffers;
        if !matches!(data_type, Dictionary(..)) {
            for field in children(data_type) {
                self.add(field.data_type(), most)?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, DictionaryArray, Int64Array, StringViewArray};
    use arrow::datatypes::{Int32Type, Int64Type};
    use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};

    use super::*;

    fn rows() -> RecordBatch {
        let names = (0..100).map(|id| format!("a name of more than twelve bytes, {id}"));
        RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from_iter_values(0..100)) as ArrayRef),
            ("kind", Arc::new(DictionaryArray::<Int32Type>::from_iter((0..100).map(|_| "one kind"))) as ArrayRef),
            ("name", Arc::new(StringViewArray::from_iter_values(names)) as ArrayRef),
        ])
        .unwrap()
    }

    fn file(options: IpcWriteOptions) -> Vec<u8> {
        let mut writer = FileWriter::try_new_with_options(Vec::new(), &rows().schema(), options).unwrap();
        writer.write(&rows()).unwrap();
        writer.finish().unwrap();
        writer.into_inner().unwrap()
    }

    fn footer_of(file: &[u8]) -> Result<(Footer, Range<u64>)> {
        let trailer = &file[file.len() - TRAILER_BYTES as usize..];
        let range = footer_range(trailer, file.len() as u64)?;
        Ok((footer(&file[range.start as usize..range.end as usize], range.start)?, range))
    }

    fn message_of(file: &[u8], extent: &Extent) -> Buffer {
        let range = extent.range();
        Buffer::from(&file[range.start as usize..range.end as usize])
    }

    #[test]
    fn batches_are_decoded_alone_with_the_columns_wanted() {
        let file = file(IpcWriteOptions::default());
        let (footer, _) = footer_of(&file).unwrap();
        assert_eq!((footer.dictionaries.len(), footer.batches.len()), (1, 1));
        let mut decoder = Decoder::new(footer.schema.clone(), footer.version, vec![0, 1]);
        let Message::Dictionary { id, delta: false, .. } =
            message(&message_of(&file, &footer.dictionaries[0])).unwrap()
        else {
            panic!("a dictionary")
        };
        assert!(decoder.needs(id) && !Decoder::new(footer.schema.clone(), footer.version, vec![0, 2]).needs(id));
        decoder.dictionary(&footer.dictionaries[0], &message_of(&file, &footer.dictionaries[0]), 1 << 20).unwrap();
        let batch = decoder.batch(&footer.batches[0], &message_of(&file, &footer.batches[0]), 1 << 20).unwrap();
        assert_eq!((batch.num_columns(), batch.num_rows()), (2, 100));
        assert_eq!(batch.column(0).as_primitive::<Int64Type>().values()[99], 99);
    }

    #[test]
    fn lengths_beyond_the_file_are_refused_before_they_are_used() {
        let sound = file(IpcWriteOptions::default());
        let (footer, range) = footer_of(&sound).unwrap();
        // The batch's lengths in the footer: offset, length of the metadata (32 bits and as many of nothing), length of the body.
        let batch = footer.batches[0];
        let stored: Vec<u8> = [batch.offset, batch.metadata, batch.body].iter().flat_map(|v| v.to_le_bytes()).collect();
        let at = sound.windows(24).rposition(|bytes| bytes == stored).unwrap();
        assert!(at as u64 >= range.start);
        for (field, value) in [(0, 1u64 << 60), (0, u64::MAX), (16, 1 << 60), (16, u64::MAX), (0, range.end)] {
            let mut file = sound.clone();
            file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            let error = footer_of(&file).unwrap_err();
            assert!(error.to_string().contains("message 0 does not lie within the file"), "{error}");
        }
        let size = sound.len();
        for length in [0, -1, i32::MAX, size as i32] {
            let mut file = sound.clone();
            file[size - 10..size - 6].copy_from_slice(&length.to_le_bytes());
            assert!(footer_of(&file).unwrap_err().to_string().contains("a footer of"));
        }
    }

    #[test]
    fn lengths_within_a_message_are_held_against_its_body() {
        let file = file(IpcWriteOptions::default());
        let (footer, _) = footer_of(&file).unwrap();
        let extent = footer.batches[0];
        let decoder = Decoder::new(footer.schema.clone(), footer.version, vec![0, 2]);
        let sound = message_of(&file, &extent).to_vec();
        // Whatever eight bytes of the metadata say, it costs nothing: they are an error, or do not matter.
        for at in 0..extent.metadata as usize - 8 {
            for value in [1u64 << 60, u64::MAX, 1 << 31, 1 << 40] {
                let mut bytes = sound.clone();
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                if let Ok(batch) = decoder.batch(&extent, &bytes.into(), 1 << 20) {
                    assert_eq!(batch.num_columns(), 2);
                }
            }
        }
    }

    #[cfg(feature = "zstd")]
    #[test]
    fn what_decompresses_to_too_much_is_refused_before_memory_is_taken() {
        for kind in [ipc::CompressionType::LZ4_FRAME, ipc::CompressionType::ZSTD] {
            let file = file(IpcWriteOptions::default().try_with_compression(Some(kind)).unwrap());
            let (footer, _) = footer_of(&file).unwrap();
            let extent = footer.batches[0];
            let decoder = Decoder::new(footer.schema.clone(), footer.version, vec![0, 2]);
            let mut bytes = message_of(&file, &extent).to_vec();
            assert_eq!(decoder.batch(&extent, &bytes.clone().into(), 1 << 20).unwrap().num_rows(), 100);
            let error = decoder.batch(&extent, &bytes.clone().into(), 1000).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
            // The first compressed buffer holds 100 integers.
            let body = extent.metadata as usize;
            let at = body + bytes[body..].windows(8).position(|bytes| *bytes == 800u64.to_le_bytes()).unwrap();
            for (claim, kind) in
                [(1u64 << 21, ErrorKind::Memory), (1 << 60, ErrorKind::Corrupt), (u64::MAX - 1, ErrorKind::Corrupt)]
            {
                bytes[at..at + 8].copy_from_slice(&claim.to_le_bytes());
                let error = decoder.batch(&extent, &bytes.clone().into(), 1 << 20).unwrap_err();
                assert_eq!(error.kind(), kind, "{claim}: {error}");
            }
        }
    }

    #[test]
    fn damaged_types_are_found_before_the_reader_would_panic_on_them() {
        let list = |item| Arc::new(Field::new("item", item, true));
        let types = [
            DataType::Float32,
            DataType::Int16,
            DataType::List(list(DataType::Float64)),
            DataType::FixedSizeList(list(DataType::UInt8), 3),
            DataType::Timestamp(arrow::datatypes::TimeUnit::Second, None),
            DataType::Date32,
            DataType::Struct([list(DataType::Utf8)].into_iter().collect()),
        ];
        let fields: Vec<Field> = types.into_iter().map(|of| Field::new("x", of, true)).collect();
        let writer = StreamWriter::try_new(Vec::new(), &arrow::datatypes::Schema::new(fields)).unwrap();
        let sound = writer.get_ref().clone();
        assert!(matches!(message(&sound), Ok(Message::Schema(..))));
        let mut found = [0, 0];
        for at in PREFIX_BYTES..sound.len() {
            for value in (0..32).chain([40, 64, 255]) {
                let mut bytes = sound.clone();
                bytes[at] = value;
                let Err(error) = message(&bytes) else { continue };
                let text = error.to_string();
                assert!(!text.contains("cannot make sense"), "byte {at}, now {value}: {text}");
                found[0] += usize::from(text.contains("no type that Arrow knows"));
                found[1] += usize::from(text.contains("integers of"));
            }
        }
        assert!(found.iter().all(|found| *found > 0), "{found:?}");
    }

    #[test]
    fn forms_are_told_apart_by_their_beginning() {
        let file = file(IpcWriteOptions::default());
        let mut writer = StreamWriter::try_new(Vec::new(), &rows().schema()).unwrap();
        writer.finish().unwrap();
        let stream = writer.into_inner().unwrap();
        assert_eq!(form_of(&file[..8]).unwrap(), Form::File);
        assert_eq!(form_of(&stream[..8]).unwrap(), Form::Stream);
        assert_eq!(form_of(&stream[4..12]).unwrap(), Form::Stream, "as before Arrow 0.15");
        for other in [&b""[..], b"PAR1", b"{\"id\": 1}", b"\x1f\x8b\x08\0\0\0\0\0", &[0; 8], &[255; 8]] {
            assert!(form_of(other).is_err(), "{other:?}");
        }
    }
}
