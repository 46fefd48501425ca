//! JSON Lines and CSV as a source: runs of whole rows are blocks, read by Arrow's readers.

mod decode;
mod exact;
mod schema;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, FieldRef, Fields, Schema};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::carry::{self, Carrier, in_units_of, leaves};
use super::cut::{Block, Blocks, Cut, Parsed, Reading, row_bytes, target_bytes, with_also};
use super::open::{Opened, Opening, Wanted};
use super::rows::{RowIndex, Scan, Shelf, beginning, notes_of, rows_of};
use super::tfrecord::INDEXING;
use crate::dataset::{Csv, JsonLines};
use crate::error::{Error, ErrorKind, Result};
use crate::format::packed::{Packing, unpack};
use crate::format::text::{RowFinder, Rows};
use crate::format::tfrecord::Shortened;
use crate::schema::Column;
use crate::store::{Object, Store};
use decode::{Shard, unreadable};
use schema::{csv_schema, infer_csv, infer_json, is_utf8, json_schema, known_fields, or_empty, stranger};

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
    /// Whether it is shorter than when its rows were found before.
    shortened: Option<Shortened>,
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
                let (rows, shortened) = match rows {
                    Ok((rows, shortened)) => (Ok(rows), shortened),
                    Err(error) => (Err(error.url(object.url.clone()).stage("index")), None),
                };
                Found { object, dialect, rows, shortened }
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
    let mut notes = notes_of(found.iter().map(|found| (&found.object, found.shortened)));
    let columns = match &wanted.columns {
        Some(declared) => {
            let stored = leaves(&inferred);
            let also = |name: &str| stored.iter().find(|leaf| leaf.name == name)?.column().ok();
            in_units_of(with_also(declared, &wanted, also), [stored.clone()])
        }
        None if wanted.all_columns => {
            let others = infer_others(&store, &found, &wanted).await?;
            let schemas: Vec<_> = std::iter::once(&inferred).chain(&others).map(leaves).collect();
            carry::inferred_of_all(&schemas, &mut notes)?
        }
        None => carry::inferred(&leaves(&inferred), &mut notes)?,
    };
    // Of columns that were inferred it is known what they count.
    let is_stated = |column: &Column| column.dtype().is_int() && column.unit().is_none();
    let is_declared = wanted.columns.iter().flatten().any(is_stated);
    let shards = shards_of(&store, &found, &inferred, &columns, is_declared, limit).await?;
    let is_json = found.iter().all(|found| matches!(found.dialect, Dialect::Json { .. }));
    let known = (wanted.all_columns && is_json).then(|| known_fields(&inferred, &columns));
    let reading = Text { shards, columns, known, limit };
    let good = || found.iter().filter_map(|found| Some((found, found.rows.as_ref().ok()?)));
    let (rows, bytes) =
        good().fold((0, 0), |(rows, bytes), (_, index)| (rows + index.starts.len() as u64, bytes + index.end));
    let target = target_bytes(&wanted, rows, bytes);
    let mut blocks = Blocks::new();
    for Found { object, dialect, rows, .. } in &found {
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
    for Found { object, dialect, rows, .. } in found {
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
                is_utf8(head, delimiter, &Fields::empty()).map_err(place)?;
                if !(wanted.leave_out || wanted.columns.is_some()) {
                    let at = |error: Error| place(error.record(0).byte_offset(index.starts[first]));
                    is_utf8(sample[0], delimiter, &Fields::empty()).map_err(at)?;
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

/// The schemas of CSV behind the first that has rows: each shard has names of its own. Of JSON every line has.
async fn infer_others(store: &Store, found: &[Found], wanted: &Wanted) -> Result<Vec<Schema>> {
    let has_rows = |found: &&Found| found.rows.as_ref().is_ok_and(|rows| rows.starts.len() > found.dialect.heading());
    let others = found.iter().filter(has_rows).skip(1).filter(|found| matches!(found.dialect, Dialect::Csv { .. }));
    let schemas = others.map(|found| infer(store, std::slice::from_ref(found), wanted));
    stream::iter(schemas.collect::<Vec<_>>()).buffered(INDEXING).try_collect().await
}

/// How each shard is read; none where it has no rows.
async fn shards_of(
    store: &Store,
    found: &[Found],
    inferred: &Schema,
    columns: &[Column],
    is_declared: bool,
    limit: usize,
) -> Result<Vec<Option<Shard>>> {
    let shards = found.iter().map(|found| async move {
        match &found.rows {
            Ok(index) if !index.starts.is_empty() => {
                shard_of(store, found, index, inferred, columns, is_declared, limit).await.map(Some)
            }
            _ => Ok(None),
        }
    });
    let shards: Vec<Result<Option<Shard>>> =
        stream::iter(shards.collect::<Vec<_>>()).buffered(INDEXING).collect().await;
    shards.into_iter().collect()
}

async fn shard_of(
    store: &Store,
    Found { object, dialect, .. }: &Found,
    index: &RowIndex,
    inferred: &Schema,
    columns: &[Column],
    is_declared: bool,
    limit: usize,
) -> Result<Shard> {
    let place = |error: Error| error.url(object.url.clone()).stage("index");
    let schema = match *dialect {
        Dialect::Json { .. } => json_schema(inferred, columns),
        Dialect::Csv { delimiter, header } => {
            let end = index.row_end(0);
            if end > HEADER_BYTES {
                let advice =
                    "an open quote makes all that follows one field; state the delimiter with Csv::new().delimiter(..)";
                return Err(place(Error::corrupt(format!("a first row of {end} bytes")).advice(advice)));
            }
            let head = beginning(store, object, index, end, limit).await.map_err(place)?;
            csv_schema(&head[index.starts[0] as usize..], delimiter, header, inferred, columns).map_err(place)?
        }
    };
    let filled: Vec<Column> = match dialect {
        Dialect::Json { .. } => columns.to_vec(),
        Dialect::Csv { .. } => columns.iter().map(or_empty).collect(),
    };
    let carrier = Carrier::new(&schema, Some(&filled)).map_err(place)?;
    let projection = carrier.projection();
    // Arrow's reader of CSV takes whole numbers alone.
    let is_cut = match dialect {
        Dialect::Json { .. } => DataType::is_integer,
        Dialect::Csv { .. } => DataType::is_temporal,
    };
    let read = schema.fields().iter().map(|field| exact::as_text(field, is_cut)).collect::<Fields>();
    let spelt = read.iter().map(|field| exact::as_text(field, DataType::is_floating)).collect::<Fields>();
    let is_int = |field: &FieldRef| *field.data_type() == DataType::Int64;
    let has_integers = matches!(dialect, Dialect::Csv { .. }) && !is_declared && schema.fields().iter().any(is_int);
    let integers = if has_integers { schema.fields().iter().map(is_int).collect() } else { Vec::new() };
    let (schema, read, spelt) = (Arc::new(schema), Arc::new(Schema::new(read)), Arc::new(Schema::new(spelt)));
    Ok(Shard { dialect: *dialect, packing: index.packing, schema, read, projection, spelt, integers, carrier })
}

/// Rows of text.
struct Text {
    columns: Vec<Column>,
    /// JSON: fields, where a line with values of another is bad.
    known: Option<HashSet<String>>,
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
        if let Some(known) = &self.known {
            let found: HashSet<usize> = bad.iter().map(|(row, _)| *row).collect();
            let strangers = rows.iter().enumerate().filter(|(row, _)| !found.contains(row));
            bad.extend(strangers.filter_map(|(row, line)| Some((row, stranger(&text[line.clone()], known)?))));
            bad.sort_by_key(|(row, _)| *row);
        }
        let known: Vec<usize> = bad.iter().map(|(row, _)| *row).collect();
        bad.extend(unfit.into_iter().filter(|(row, _)| known.binary_search(row).is_err()));
        bad.sort_by_key(|(row, _)| *row);
        let base = rows.first().map_or(0, |row| row.start);
        let starts = rows.iter().map(|row| (row.start - base) as u32).collect();
        Ok(Parsed { rows: rows_read, bad, starts })
    }
}
