//! JSON Lines and CSV as a source: runs of whole rows are blocks, read by Arrow's readers.

mod exact;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, ListArray, RecordBatch, RecordBatchOptions, StructArray,
    new_null_array,
};
use arrow::compute::concat_batches;
use arrow::csv;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json;
use bytes::Bytes;
use futures::{StreamExt, stream};

use super::carry::{self, Carrier, leaves};
use super::cut::{Block, Blocks, Cut, Parsed, Reading, row_bytes, target_bytes, with_also};
use super::open::{Opened, Opening, Wanted};
use super::rows::{RowIndex, Scan, Shelf, beginning, rows_of};
use super::tfrecord::INDEXING;
use crate::dataset::{Csv, JsonLines};
use crate::error::{Error, ErrorKind, Result};
use crate::format::data_uri::{DATA_URI, undo_base64};
use crate::format::packed::{Packing, unpack};
use crate::format::text::{BYTE_ORDER_MARK, RowFinder, Rows};
use crate::schema::{Column, Dtype, Missing, Shape};
use crate::store::{Object, Store};

/// Rows that the schema is inferred from.
const INFER_ROWS: usize = 256;

/// Bytes of them, unless the first is larger.
const INFER_BYTES: u64 = 4 << 20;

/// Bytes of a CSV's header, at most.
const HEADER_BYTES: u64 = 1 << 20;

/// How the text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Json { data_uris: bool },
    Csv { delimiter: u8, header: bool },
}

impl Dialect {
    fn rows(self) -> Rows {
        match self {
            Self::Json { .. } => Rows::Lines,
            Self::Csv { delimiter, .. } => Rows::Csv { delimiter },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Json { .. } => "JSON Lines",
            Self::Csv { .. } => "CSV",
        }
    }

    /// Rows of a shard that are no records.
    fn heading(self) -> usize {
        usize::from(matches!(self, Self::Csv { header: true, .. }))
    }

    /// What moves rows, for kept indexes.
    fn kind(self) -> String {
        match self {
            Self::Json { .. } => "JSON Lines".into(),
            Self::Csv { delimiter, .. } => format!("CSV {delimiter}"),
        }
    }
}

impl Scan for RowFinder {
    fn feed(&mut self, piece: &[u8]) {
        RowFinder::feed(self, piece);
    }

    fn starts(self) -> Vec<u64> {
        RowFinder::starts(self)
    }
}

pub(crate) async fn open_json(
    store: Store,
    objects: Vec<Object>,
    options: JsonLines,
    wanted: Wanted,
) -> Result<Opening> {
    let JsonLines { data_uris } = options;
    open(store, objects, |_| Dialect::Json { data_uris }, wanted).await
}

pub(crate) async fn open_csv(store: Store, objects: Vec<Object>, options: Csv, wanted: Wanted) -> Result<Opening> {
    let Csv { delimiter, no_header } = options;
    if delimiter.is_some_and(|byte| matches!(byte, b'"' | b'\n' | b'\r') || !byte.is_ascii()) {
        return Err(Error::config("a delimiter is one ASCII character, and no quote or line end"));
    }
    let dialect = move |object: &Object| {
        let name = object.url.to_ascii_lowercase();
        let plain = [".gz", ".zst", ".zstd"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        let usual = if plain.ends_with(".tsv") { b'\t' } else { b',' };
        Dialect::Csv { delimiter: delimiter.unwrap_or(usual), header: !no_header }
    };
    open(store, objects, dialect, wanted).await
}

/// A shard whose rows were found.
struct Found {
    object: Object,
    dialect: Dialect,
    rows: Result<RowIndex>,
}

/// Finds the rows of listed shards, and settles the columns.
async fn open(
    store: Store,
    objects: Vec<Object>,
    dialect: impl Fn(&Object) -> Dialect,
    wanted: Wanted,
) -> Result<Opening> {
    let limit = wanted.max_bytes;
    let shards: Vec<(Object, Dialect, Shelf)> = objects
        .iter()
        .map(|object| {
            let dialect = dialect(object);
            (object.clone(), dialect, Shelf::new(&wanted, dialect.kind()))
        })
        .collect();
    let found: Vec<Found> = stream::iter(shards)
        .map(|(object, dialect, shelf)| {
            let store = store.clone();
            async move {
                let rows = rows_of(&store, &object, &shelf, || RowFinder::new(dialect.rows()), limit).await;
                let rows = rows.map_err(|e| e.url(object.url.clone()).stage("index"));
                Found { object, dialect, rows }
            }
        })
        .buffered(INDEXING)
        .collect()
        .await;
    for Found { rows, .. } in &found {
        if let Err(error) = rows
            && !(wanted.leave_out && error.kind() == ErrorKind::Corrupt)
        {
            return Err(error.clone());
        }
    }
    let inferred = infer(&store, &found, &wanted).await?;
    let mut notes = Vec::new();
    let columns = match &wanted.columns {
        Some(declared) => {
            let stored = leaves(&inferred);
            let also = |name: &str| stored.iter().find(|leaf| leaf.name == name)?.column().ok();
            carry::in_times_of(with_also(declared, &wanted, also), &stored)
        }
        None => carry::inferred(&leaves(&inferred), &mut notes)?,
    };
    let reading = Text { shards: shards_of(&store, &found, &inferred, &columns, limit).await?, columns, limit };
    let good = || found.iter().filter_map(|found| Some((found, found.rows.as_ref().ok()?)));
    let (rows, bytes) =
        good().fold((0, 0), |(rows, bytes), (_, index)| (rows + index.starts.len() as u64, bytes + index.end));
    let target = target_bytes(&wanted, rows, bytes);
    let mut blocks = Blocks::new();
    for Found { object, dialect, rows } in &found {
        blocks.push_shard(object);
        let index = match rows {
            Ok(index) => index,
            Err(error) => {
                blocks.push_damage(error.clone(), 0, &reading.columns);
                continue;
            }
        };
        let packed = index.packing != Packing::Plain;
        if packed {
            blocks.indivisible();
        }
        for (begin, end) in index.runs(dialect.heading(), if packed { u64::MAX } else { target }) {
            let (rows, offset) = ((end - begin) as u64, index.starts[begin]);
            let range = offset..index.row_end(end - 1);
            // Text is held beside what becomes of it, which takes about as much.
            let memory = 2 * (range.end - range.start) + rows * row_bytes(&reading.columns);
            match packed {
                true => blocks.push(rows, memory + object.size, 0..object.size, offset),
                false => blocks.push(rows, memory, range, offset),
            }
        }
    }
    let name = found.first().map_or("text", |found| found.dialect.name());
    let source = Cut::new(name, store, objects, blocks, reading);
    Ok(Opening { opened: Opened::Indexed(Arc::new(source)), notes })
}

// --- columns -----------------------------------------------------------------------------------------------------------

/// The schema of the first rows there are, all fields nullable.
async fn infer(store: &Store, found: &[Found], wanted: &Wanted) -> Result<Schema> {
    for Found { object, dialect, rows } in found {
        let Ok(index) = rows else { continue };
        let first = dialect.heading();
        if index.starts.len() <= first {
            continue;
        }
        let most = index.starts.len().min(first + INFER_ROWS);
        let last =
            (first..most).take_while(|&row| row == first || index.row_end(row) <= INFER_BYTES).last().unwrap_or(first);
        let place = |error: Error| error.url(object.url.clone()).stage("infer");
        let text = beginning(store, object, index, index.row_end(last), wanted.max_bytes).await.map_err(place)?;
        let row = |row: usize| &text[index.starts[row] as usize..index.row_end(row) as usize];
        let sample: Vec<&[u8]> = (first..=last).map(row).collect();
        let inferred = match *dialect {
            Dialect::Json { .. } => infer_json(&sample, wanted),
            Dialect::Csv { delimiter, header } => {
                let head = if header { row(0) } else { b"" };
                is_utf8(head, delimiter).map_err(place)?;
                if !(wanted.leave_out || wanted.columns.is_some()) {
                    let at = |error: Error| place(error.record(0).byte_offset(index.starts[first]));
                    is_utf8(sample[0], delimiter).map_err(at)?;
                }
                infer_csv(head, &sample, delimiter, header, wanted)
            }
        };
        return inferred.map_err(|(row, error)| {
            let error = if wanted.columns.is_some() { error } else { error.advice("name the columns with .columns()") };
            place(error.record(row as u64).byte_offset(index.starts[(first + row).min(last)]))
        });
    }
    if wanted.columns.is_some() {
        return Ok(Schema::empty());
    }
    Err(Error::new(ErrorKind::Schema, "the shards hold no row to infer columns from")
        .advice("name the columns with .columns()"))
}

/// The fields of the lines before the first bad one, which the loop will come to, or of all that are good where bad ones are left out.
fn infer_json(sample: &[&[u8]], wanted: &Wanted) -> Result<Schema, (usize, Error)> {
    let mut values = Vec::new();
    for (row, line) in sample.iter().enumerate() {
        match serde_json::from_slice::<serde_json::Value>(line) {
            Ok(value @ serde_json::Value::Object(_)) => values.push(value),
            _ if wanted.leave_out || wanted.columns.is_some() => {}
            _ if !values.is_empty() => break,
            Ok(_) => return Err((row, Error::corrupt("the line is no JSON object"))),
            Err(e) => return Err((row, Error::corrupt("the line is no JSON").because(e))),
        }
    }
    let schema = json::reader::infer_json_schema_from_iterator(values.iter().map(Ok::<_, ArrowError>));
    match schema {
        Ok(schema) => Ok(schema),
        // What is declared is read by what it is declared as.
        Err(_) if wanted.columns.is_some() => Ok(Schema::empty()),
        Err(e) => Err((0, Error::new(ErrorKind::Schema, "the first lines are of several types").because(e))),
    }
}

/// The fields of the rows before the first that is no text, which the loop will come to, or of all others where bad ones are left out.
fn infer_csv(
    head: &[u8],
    sample: &[&[u8]],
    delimiter: u8,
    header: bool,
    wanted: &Wanted,
) -> Result<Schema, (usize, Error)> {
    let format =
        || csv::reader::Format::default().with_header(header).with_delimiter(delimiter).with_truncated_rows(true);
    let names = format().infer_schema(head, Some(0)).map(|(schema, _)| schema);
    let mut text = head.to_vec();
    for row in sample {
        match std::str::from_utf8(row) {
            Err(_) if wanted.leave_out || wanted.columns.is_some() => continue,
            Err(_) => break,
            Ok(_) => {}
        }
        text.extend_from_slice(row);
        if !row.ends_with(b"\n") {
            text.push(b'\n');
        }
    }
    match format().infer_schema(&text[..], Some(INFER_ROWS)) {
        Ok((schema, _)) => Ok(schema),
        // A bad row among the first is for the loop to come to.
        Err(e) if header => names.map_err(|_| (0, Error::corrupt("the header cannot be read").because(e))),
        Err(e) => Err((0, Error::corrupt("the first rows cannot be read").because(e))),
    }
}

/// # Errors
/// [`ErrorKind::Corrupt`] for a row with bytes that are no UTF-8.
fn is_utf8(row: &[u8], delimiter: u8) -> Result<()> {
    let Err(error) = std::str::from_utf8(row) else { return Ok(()) };
    let at = error.valid_up_to();
    let field = field_at(row, at, delimiter) + 1;
    let message = format!("byte {at} of the row, in field {field}, is 0x{:02x}, which is no UTF-8", row[at]);
    Err(Error::corrupt(message).advice("convert the shard to UTF-8: iconv -f latin1 -t utf-8"))
}

/// The field that a byte of a row belongs to.
fn field_at(row: &[u8], at: usize, delimiter: u8) -> usize {
    let mut quoted = false;
    let ends = row[..at].iter().filter(|&&byte| {
        quoted ^= byte == b'"';
        byte == delimiter && !quoted
    });
    ends.count()
}

/// The type that a field is read as, so that it can become the column: that of the column's elements, in lists as there were in the first rows.
fn read_as(seen: Option<&DataType>, column: &Column) -> DataType {
    // Dates and times are integers, once they are read.
    if let (Some(time), Dtype::I64) = (column.time(), column.dtype()) {
        return time.clone();
    }
    let list = |item| DataType::List(Arc::new(Field::new_list_field(item, true)));
    let leaf = || match column.dtype() {
        _ if column.is_raw() => DataType::Utf8,
        Dtype::Bytes => DataType::Utf8,
        // Neither reader knows halves.
        Dtype::F16 => DataType::Float32,
        dtype => dtype.arrow(),
    };
    match seen {
        Some(DataType::List(item)) => list(read_as(Some(item.data_type()), column)),
        Some(other) if *other != DataType::Null => leaf(),
        _ => match column.shape() {
            _ if column.is_raw() => leaf(),
            Shape::Scalar => leaf(),
            Shape::Fixed(extents) => extents.iter().fold(leaf(), |item, _| list(item)),
            Shape::Ragged(inner) => inner.iter().fold(list(leaf()), |item, _| list(item)),
        },
    }
}

/// The schema to read JSON with: the columns alone, in objects within objects where their names have dots.
fn json_schema(inferred: &Schema, columns: &[Column]) -> Schema {
    let seen = leaves(inferred);
    // An object's fields; a name with a dot that was seen as it is stays one.
    #[derive(Default)]
    struct Objects {
        fields: Vec<(String, Entry)>,
    }
    enum Entry {
        Value(DataType),
        Object(Objects),
    }
    impl Objects {
        fn insert(&mut self, path: &[&str], data_type: DataType) {
            let at = self.fields.iter().position(|(name, _)| name == path[0]);
            match (path.len(), at) {
                (1, None) => self.fields.push((path[0].to_owned(), Entry::Value(data_type))),
                (_, Some(at)) => {
                    if let (Entry::Object(objects), true) = (&mut self.fields[at].1, path.len() > 1) {
                        objects.insert(&path[1..], data_type);
                    }
                }
                (_, None) => {
                    let mut objects = Objects::default();
                    objects.insert(&path[1..], data_type);
                    self.fields.push((path[0].to_owned(), Entry::Object(objects)));
                }
            }
        }

        fn fields(self) -> Fields {
            let fields = self.fields.into_iter().map(|(name, entry)| match entry {
                Entry::Value(data_type) => Field::new(name, data_type, true),
                Entry::Object(objects) => Field::new(name, DataType::Struct(objects.fields()), true),
            });
            fields.collect()
        }
    }
    let mut objects = Objects::default();
    let named = |name: &str| seen.iter().find(|leaf| leaf.name == name);
    for column in columns {
        let name = column.name().as_ref();
        // A mask is read with its column.
        let masked = name
            .strip_suffix(".is_present")
            .filter(|of| named(name).is_none() && columns.iter().any(|c| c.name().as_ref() == *of));
        if masked.is_some() {
            continue;
        }
        let leaf = named(name);
        let data_type = read_as(leaf.map(|leaf| leaf.field.data_type()), column);
        // The way to a leaf that was seen is as it was seen: names may hold dots.
        let mut path = Vec::new();
        match leaf {
            Some(leaf) => {
                let mut fields = inferred.fields();
                for &at in &leaf.path {
                    path.push(fields[at].name().as_str());
                    if let DataType::Struct(inner) = fields[at].data_type() {
                        fields = inner;
                    }
                }
            }
            None => path.extend(name.split('.')),
        }
        objects.insert(&path, data_type);
    }
    Schema::new(objects.fields())
}

/// How each shard is read.
struct Shard {
    dialect: Dialect,
    packing: Packing,
    /// All fields of a row.
    schema: SchemaRef,
    /// The same as Arrow reads them: text, where it would cut something off.
    read: SchemaRef,
    /// Those of them that are wanted.
    projection: Vec<usize>,
    carrier: Carrier,
}

async fn shards_of(
    store: &Store,
    found: &[Found],
    inferred: &Schema,
    columns: &[Column],
    limit: usize,
) -> Result<Vec<Option<Shard>>> {
    let heads: Vec<Result<Option<Shard>>> = stream::iter(found.iter().map(|found| async move {
        let Found { object, dialect, rows } = found;
        let Ok(index) = rows else { return Ok(None) };
        if index.starts.is_empty() {
            return Ok(None);
        }
        let place = |error: Error| error.url(object.url.clone()).stage("index");
        let schema = match *dialect {
            Dialect::Json { .. } => json_schema(inferred, columns),
            Dialect::Csv { delimiter, header } => {
                let end = index.row_end(0);
                if end > HEADER_BYTES {
                    return Err(place(Error::corrupt(format!("a first row of {end} bytes"))
                        .advice("an open quote makes all that follows one field; state the delimiter with Csv::new().delimiter(..)")));
                }
                let head = beginning(store, object, index, end, limit).await.map_err(place)?;
                csv_schema(&head[index.starts[0] as usize..], delimiter, header, inferred, columns).map_err(place)?
            }
        };
        let filled: Vec<Column> = columns.iter().map(|column| if matches!(dialect, Dialect::Csv { .. }) { or_empty(column) } else { column.clone() }).collect();
        let carrier = Carrier::new(&schema, Some(&filled)).map_err(place)?;
        let projection = carrier.projection();
        // Arrow's reader of CSV takes whole numbers alone.
        let is_cut = match dialect {
            Dialect::Json { .. } => DataType::is_integer,
            Dialect::Csv { .. } => DataType::is_temporal,
        };
        let read = schema.fields().iter().map(|field| exact::as_text(field, is_cut)).collect::<Fields>();
        let (schema, read) = (Arc::new(schema), Arc::new(Schema::new(read)));
        Ok(Some(Shard { dialect: *dialect, packing: index.packing, schema, read, projection, carrier }))
    }).collect::<Vec<_>>())
    .buffered(INDEXING)
    .collect()
    .await;
    heads.into_iter().collect()
}

/// CSV knows no difference between an empty string and none.
fn or_empty(column: &Column) -> Column {
    match (column.dtype(), column.missing()) {
        (Dtype::Bytes, Missing::Error) if !column.is_raw() => column.clone().optional(),
        _ => column.clone(),
    }
}

fn csv_schema(head: &[u8], delimiter: u8, header: bool, inferred: &Schema, columns: &[Column]) -> Result<Schema> {
    if let Some(list) = columns.iter().find(|column| *column.shape() != Shape::Scalar && !column.is_raw()) {
        return Err(Error::new(ErrorKind::Schema, format!("a field of CSV holds one value, and this is {list}"))
            .column(list.name().clone())
            .advice("declare a scalar, or split the text in a .map()"));
    }
    let format = csv::reader::Format::default().with_header(header).with_delimiter(delimiter);
    is_utf8(head, delimiter)?;
    let (names, _) =
        format.infer_schema(head, Some(0)).map_err(|e| Error::corrupt("the header cannot be read").because(e))?;
    let declared: HashMap<&str, &Column> = columns.iter().map(|column| (column.name().as_ref(), column)).collect();
    let fields = names.fields().iter().map(|field| {
        let seen = inferred.field_with_name(field.name()).ok().map(|field| field.data_type());
        let data_type = declared.get(field.name().as_str()).map_or(DataType::Utf8, |column| read_as(seen, column));
        Arc::new(Field::new(field.name(), data_type, true)) as FieldRef
    });
    Ok(Schema::new(fields.collect::<Fields>()))
}

// --- rows --------------------------------------------------------------------------------------------------------------

/// Rows of text.
struct Text {
    columns: Vec<Column>,
    shards: Vec<Option<Shard>>,
    limit: usize,
}

impl Reading for Text {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn read(&self, block: &Block, fetched: Vec<Bytes>) -> Result<Parsed> {
        let shard = self.shards[block.shard].as_ref().ok_or_else(|| Error::corrupt("a block of an empty shard"))?;
        let mut text = fetched.into_iter().next().unwrap_or_default();
        if shard.packing != Packing::Plain {
            text = unpack(shard.packing, &text, self.limit)?.into();
        }
        let mut finder = match shard.packing {
            Packing::Plain => RowFinder::within(shard.dialect.rows()),
            _ => RowFinder::new(shard.dialect.rows()),
        };
        finder.feed(&text);
        let starts = finder.starts();
        let end = |row: usize| starts.get(row + 1).map_or(text.len(), |&end| end as usize);
        let rows: Vec<Range<usize>> = (0..starts.len()).map(|row| starts[row] as usize..end(row)).collect();
        // A compressed shard is read from its beginning, heading included.
        let heading = if shard.packing == Packing::Plain { 0 } else { shard.dialect.heading() };
        let rows = &rows[heading.min(rows.len())..];
        if rows.len() != block.rows {
            return Err(Error::corrupt(format!(
                "{} rows, where there were {} when the shard was opened",
                rows.len(),
                block.rows
            ))
            .advice("the shard changed meanwhile: begin again"));
        }
        let (mut batches, mut bad) = (Vec::new(), Vec::new());
        shard.decode(&text, rows, 0, &mut batches, &mut bad)?;
        let schema = shard.delivered()?;
        let batch = match <[RecordBatch; 1]>::try_from(batches) {
            Ok([batch]) => batch,
            Err(batches) => concat_batches(&schema, &batches).map_err(unreadable)?,
        };
        let (rows_read, unfit) = shard.carrier.projected_rows(&batch)?;
        // What is wrong with a line comes before what that leaves of its values.
        let known: Vec<usize> = bad.iter().map(|(row, _)| *row).collect();
        bad.extend(unfit.into_iter().filter(|(row, _)| known.binary_search(row).is_err()));
        bad.sort_by_key(|(row, _)| *row);
        let base = rows.first().map_or(0, |row| row.start);
        let starts = rows.iter().map(|row| (row.start - base) as u32).collect();
        Ok(Parsed { rows: rows_read, bad, starts })
    }
}

fn unreadable(error: ArrowError) -> Error {
    Error::corrupt("cannot be read as the columns").because(error)
}

impl Shard {
    /// Rows to batches: all at once, or, where one is bad, in halves until it is found. `first` is the number of the first.
    fn decode(
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
    fn delivered(&self) -> Result<SchemaRef> {
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
        let odd = |what: &str| Error::corrupt(what.to_owned());
        let batch = match self.dialect {
            Dialect::Json { .. } => {
                let builder = json::ReaderBuilder::new(self.read.clone()).with_coerce_primitive(true);
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
                let read = self.read_csv(text, rows, delimiter, self.read.clone(), &self.projection);
                read.map_err(|error| match error {
                    // It counts lines from the first that it is shown.
                    Unread::Refused(_) if rows.len() == 1 => self.csv_fault(text, &rows[0], delimiter),
                    Unread::Refused(error) => unreadable(error),
                    Unread::Open => odd("a quoted field is not closed"),
                })?
            }
        };
        let batch = batch.filter(|batch| batch.num_rows() == rows.len());
        let batch = batch.ok_or_else(|| odd("the line is no row"))?;
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
        if let Err(error) = is_utf8(&text[row.clone()], delimiter) {
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
