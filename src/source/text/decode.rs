//! Rows of text to arrays, by Arrow's readers: all at once, or in halves until the bad ones are found.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, ListArray, RecordBatch, RecordBatchOptions, StructArray,
    new_null_array,
};
use arrow::csv;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json;

use super::schema::{codes, is_utf8, may_hold_codes};
use super::{Dialect, exact};
use crate::error::{Error, Result};
use crate::format::data_uri::{DATA_URI, undo_base64};
use crate::format::packed::Packing;
use crate::format::text::BYTE_ORDER_MARK;
use crate::source::carry::Carrier;

/// How each shard is read.
pub(super) struct Shard {
    pub(super) dialect: Dialect,
    pub(super) packing: Packing,
    /// All fields of a row.
    pub(super) schema: SchemaRef,
    /// The same as Arrow reads them: text, where it would cut something off.
    pub(super) read: SchemaRef,
    /// Those of them that are wanted.
    pub(super) projection: Vec<usize>,
    /// The same with floats as text: infinite ones may be finite as they are spelt.
    pub(super) spelt: SchemaRef,
    /// Of each field of CSV whether its first rows made it one of integers; nothing where none did.
    pub(super) integers: Vec<bool>,
    pub(super) carrier: Carrier,
}

pub(super) fn unreadable(error: ArrowError) -> Error {
    Error::corrupt("cannot be read as the columns").because(error)
}

impl Shard {
    /// Rows to batches: all at once, or, where one is bad, in halves until it is found. `first` is the number of the first.
    pub(super) fn decode(
        &self,
        text: &[u8],
        rows: &[Range<usize>],
        first: usize,
        batches: &mut Vec<RecordBatch>,
        bad: &mut Vec<(usize, Error)>,
    ) -> Result<()> {
        match self.try_decode(text, rows) {
            Ok(batch) => batches.push(batch),
            Err(error) if rows.len() <= 1 => {
                batches.push(self.nothing()?);
                bad.push((first, error));
            }
            Err(_) => {
                let (front, back) = rows.split_at(rows.len() / 2);
                self.decode(text, front, first, batches, bad)?;
                self.decode(text, back, first + front.len(), batches, bad)?;
            }
        }
        Ok(())
    }

    /// The schema of what is decoded.
    pub(super) fn delivered(&self) -> Result<SchemaRef> {
        let schema = self.schema.project(&self.projection).map_err(unreadable)?;
        Ok(Arc::new(match self.dialect {
            Dialect::Json { data_uris: true } => Schema::new(schema.fields().iter().map(binary).collect::<Fields>()),
            _ => schema,
        }))
    }

    fn nothing(&self) -> Result<RecordBatch> {
        let schema = self.delivered()?;
        let arrays = schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        RecordBatch::try_new_with_options(schema, arrays, &options).map_err(unreadable)
    }

    fn try_decode(&self, text: &[u8], rows: &[Range<usize>]) -> Result<RecordBatch> {
        if let Some(field) = self.code(text, rows) {
            let error = Error::corrupt("a zero before other digits, where the first rows hold integers");
            return Err(error
                .column(self.schema.field(field).name().clone())
                .advice("declare the column in .columns(): as bytes(..) to keep the zero, as int64(..) without it"));
        }
        let mut batch = self.read_as(text, rows, &self.read)?;
        if batch.columns().iter().any(exact::has_infinite) {
            batch = self.read_as(text, rows, &self.spelt)?;
        }
        let schema = Arc::new(self.schema.project(&self.projection).map_err(unreadable)?);
        let arrays = batch.columns().iter().zip(schema.fields()).map(|(array, field)| exact::from_text(array, field));
        let arrays = arrays.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(schema, arrays, &options).map_err(unreadable)?;
        if self.dialect != (Dialect::Json { data_uris: true }) {
            return Ok(batch);
        }
        let arrays = batch.columns().iter().map(undo_data_uris).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.delivered()?, arrays, &options).map_err(unreadable)
    }

    /// A field of integers, as the first rows have it, that begins with a zero in one of these.
    fn code(&self, text: &[u8], rows: &[Range<usize>]) -> Option<usize> {
        let Dialect::Csv { delimiter, .. } = self.dialect else { return None };
        let (first, last) = rows.first().zip(rows.last()).filter(|_| !self.integers.is_empty())?;
        let is_clean = !may_hold_codes(&text[first.start..last.end], delimiter);
        let rows = if is_clean { &rows[..1] } else { rows };
        rows.iter().find_map(|row| codes(&text[row.clone()], delimiter, &self.integers).next())
    }

    /// Rows as columns of a schema.
    fn read_as(&self, text: &[u8], rows: &[Range<usize>], schema: &SchemaRef) -> Result<RecordBatch> {
        let odd = |what: &str| Error::corrupt(what.to_owned());
        let batch = match self.dialect {
            Dialect::Json { .. } => {
                let builder = json::ReaderBuilder::new(schema.clone()).with_coerce_primitive(true);
                let mut decoder = builder.with_batch_size(rows.len() + 1).build_decoder().map_err(unreadable)?;
                for (number, row) in rows.iter().enumerate() {
                    let (line, end) = line(text, row);
                    let taken = decoder.decode(line).map_err(unreadable)? + decoder.decode(end).map_err(unreadable)?;
                    if decoder.has_partial_record() {
                        return Err(odd("the line ends inside a JSON value"));
                    }
                    if decoder.len() != number + 1 || taken != line.len() + end.len() {
                        return Err(odd("the line holds several JSON values"));
                    }
                }
                decoder.flush().map_err(unreadable)?
            }
            Dialect::Csv { delimiter, .. } => {
                let read = self.read_csv(text, rows, delimiter, schema.clone(), &self.projection);
                read.map_err(|error| match error {
                    // It counts lines from the first that it is shown.
                    Unread::Refused(_) if rows.len() == 1 => self.csv_fault(text, &rows[0], delimiter),
                    Unread::Refused(error) => unreadable(error),
                    Unread::Open => odd("a quoted field is not closed"),
                })?
            }
        };
        let batch = batch.filter(|batch| batch.num_rows() == rows.len());
        batch.ok_or_else(|| odd("the line is no row"))
    }

    /// Rows of CSV as columns of a schema, those of the projection.
    fn read_csv(
        &self,
        text: &[u8],
        rows: &[Range<usize>],
        delimiter: u8,
        schema: SchemaRef,
        projection: &[usize],
    ) -> Result<Option<RecordBatch>, Unread> {
        let builder = csv::ReaderBuilder::new(schema).with_header(false).with_delimiter(delimiter);
        let builder = builder.with_batch_size(rows.len() + 1).with_projection(projection.to_vec());
        let mut decoder = builder.build_decoder();
        let capacity = decoder.capacity();
        for (number, row) in rows.iter().enumerate() {
            let (line, end) = line(text, row);
            // The reader looks at all fields behind each other, where the beginning of a character and its end may come from two of them.
            if std::str::from_utf8(line).is_err() {
                return Err(Unread::Refused(ArrowError::CsvError("a row that is no UTF-8".into())));
            }
            // The reader takes a byte order mark for none of its content, whatever row it begins with: it does not know one that comes in two pieces.
            let (first, line) = line.split_at(usize::from(line.starts_with(BYTE_ORDER_MARK)));
            for part in [first, line, end] {
                let mut rest = part;
                while !rest.is_empty() {
                    let taken = decoder.decode(rest).map_err(Unread::Refused)?;
                    rest = &rest[taken.max(1).min(rest.len())..];
                }
            }
            if capacity - decoder.capacity() != number + 1 {
                return Err(Unread::Open);
            }
        }
        decoder.flush().map_err(Unread::Refused)
    }

    /// What is wrong with a row of CSV that cannot be read.
    fn csv_fault(&self, text: &[u8], row: &Range<usize>, delimiter: u8) -> Error {
        let (rows, fields) = (std::slice::from_ref(row), self.schema.fields());
        if let Err(error) = is_utf8(&text[row.clone()], delimiter, fields) {
            return error;
        }
        let format = csv::reader::Format::default().with_header(false).with_delimiter(delimiter);
        match format.infer_schema(&text[row.clone()], Some(1)) {
            Ok((found, _)) if found.fields().len() != fields.len() => {
                return Error::corrupt(format!(
                    "{} fields, where there are {} columns",
                    found.fields().len(),
                    fields.len()
                ));
            }
            _ => {}
        }
        let texts = fields.iter().map(|field| Field::new(field.name(), DataType::Utf8, true)).collect::<Fields>();
        let texts = Arc::new(Schema::new(texts));
        for &at in &self.projection {
            if self.read_csv(text, rows, delimiter, self.read.clone(), &[at]).is_err()
                && let Ok(Some(value)) = self.read_csv(text, rows, delimiter, texts.clone(), &[at])
            {
                return exact::no_value(
                    value.column(0).as_string::<i32>().value(0),
                    fields[at].data_type(),
                    fields[at].name(),
                );
            }
        }
        Error::corrupt("the row cannot be read")
    }
}

/// Why rows of CSV are not read.
enum Unread {
    Refused(ArrowError),
    /// A quote is not closed.
    Open,
}

/// A row and the line end that it lacks: each is fed by itself, so that none can take in what belongs to the next.
fn line<'a>(text: &'a [u8], row: &Range<usize>) -> (&'a [u8], &'static [u8]) {
    let line = &text[row.clone()];
    (line, if line.ends_with(b"\n") { b"" } else { b"\n" })
}

/// A field with byte strings where there are texts.
fn binary(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Utf8 => DataType::Binary,
        DataType::List(item) => DataType::List(binary(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(binary).collect()),
        other => other.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

/// Texts as byte strings: those that are data URIs as what they encode, others as they stand.
fn undo_data_uris(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::Utf8 => {
            let texts = array.as_string::<i32>();
            if !texts.iter().flatten().any(|text| text.starts_with(DATA_URI)) {
                return Ok(Arc::new(BinaryArray::from(texts.clone())));
            }
            let mut builder = BinaryBuilder::with_capacity(texts.len(), texts.value_data().len());
            for text in texts {
                match (text, text.and_then(|text| text.strip_prefix(DATA_URI))) {
                    (_, Some(encoded)) => {
                        let wrong = || Error::corrupt("a data URI whose base64 is none");
                        builder.append_value(undo_base64(encoded.as_bytes()).ok_or_else(wrong)?);
                    }
                    (text, None) => builder.append_option(text),
                }
            }
            Arc::new(builder.finish())
        }
        DataType::List(item) => {
            let list = array.as_list::<i32>();
            let values = undo_data_uris(list.values())?;
            let undone = ListArray::try_new(binary(item), list.offsets().clone(), values, list.nulls().cloned());
            Arc::new(undone.map_err(unreadable)?)
        }
        DataType::Struct(fields) => {
            let parts = array.as_struct();
            let undone = parts.columns().iter().map(undo_data_uris).collect::<Result<Vec<_>>>()?;
            let fields = fields.iter().map(binary).collect();
            Arc::new(StructArray::try_new(fields, undone, parts.nulls().cloned()).map_err(unreadable)?)
        }
        _ => array.clone(),
    })
}
