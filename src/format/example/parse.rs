//! Parses wire bytes into Arrow columns, without building messages.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, ListArray, RecordBatch, RecordBatchOptions};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, SchemaRef};
use half::f16;

use super::cell::{Block, Cell, Collected, View, kind_name};
use super::scan::{self, Hints, Names, ODD, OddEntry};
use super::wire::{self, Flaw, len};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Missing, Shape, arrow_schema};

/// The message that records hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `tf.Example`: named features.
    Example,
    /// `tf.SequenceExample`: named features of the whole sequence, and named lists with one feature per time step.
    SequenceExample,
}

impl Kind {
    /// Returns the message's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Example => "tf.Example",
            Kind::SequenceExample => "tf.SequenceExample",
        }
    }
}

/// Parsed records: one row per record, and the rows that are bad.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The wanted columns, in the order in which they were asked for. The values of a bad row are valid but have no meaning.
    pub rows: RecordBatch,
    /// Bad rows in ascending order, each once, with the first error found in it.
    pub bad: Vec<(usize, Error)>,
}

/// Parses records of `tf.Example` or `tf.SequenceExample` straight into Arrow columns.
///
/// The parser reads only the wanted features and skips the others. Features may come in any order; records that all have the same order, as is usual,
/// are fastest. Int64 features go into `i64 i32 i16 i8 u8 bool` columns, and each value is checked. Float features go into `f32 f64 f16`. Bytes
/// features go into byte strings and into raw columns, whose length is checked.
///
/// Unusual encodings follow protobuf's rules. Of several features with the same name, the last counts. Of several kinds in a feature, the last
/// counts; pieces of the same kind are concatenated, packed or not. Unknown fields are skipped. A feature without a kind is missing, and so is an
/// empty list where the column is a scalar or has a fixed shape.
///
/// # Shape
/// As [`Column`] describes. A scalar column needs exactly one value, a fixed one as many as its extents multiply to, a ragged one a multiple of its
/// inner extents. A feature list ([`Column::in_sequence`]) needs one scalar, or one such row, per time step.
///
/// # Memory
/// Byte strings longer than 12 bytes are views into the buffer that was parsed and keep it alive.
///
/// # Errors
/// [`Parser::new`] returns [`ErrorKind::Config`] for impossible columns. Parsing itself never fails; bad rows have [`ErrorKind::Schema`] if the kind,
/// count or range differs from the declared one, if a column is missing, or if the record is another message, and [`ErrorKind::Corrupt`] if a wanted
/// feature is not valid protobuf.
///
/// # Source
/// Protocol Buffers, "Encoding"; TensorFlow, `tensorflow/core/example/feature.proto`.
///
/// # Example
/// ```
/// use arrow::array::AsArray;
/// use arrow::buffer::Buffer;
/// use arrow::datatypes::Int64Type;
/// use forebay::format::example::{Example, Kind, Parser};
/// use forebay::{float32, int64};
///
/// let record = Example::new().with_int64("label", [3]).with_float32("box", [0.5, 1.0]).encode();
/// let parser = Parser::new(&[int64("label"), float32("box").ragged()], Kind::Example)?;
/// let buffer = Buffer::from_vec(record);
/// let parsed = parser.parse(&buffer, &[0..buffer.len()]);
/// assert!(parsed.bad.is_empty());
/// assert_eq!(parsed.rows.column(0).as_primitive::<Int64Type>().values(), &[3]);
/// assert_eq!(parsed.rows.column(1).as_list::<i32>().value_length(0), 2);
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Parser {
    columns: Vec<Layout>,
    kind: Kind,
    context: Names,
    lists: Names,
    schema: SchemaRef,
    /// The most bytes that the views of one block can address.
    block_bytes: usize,
}

/// A column, and what is needed to parse it.
#[derive(Clone, Debug)]
struct Layout {
    column: Column,
    /// Values per sample, or the number of which a ragged sample has a multiple; for a feature list, values per step.
    count: usize,
    /// Whether any multiple of `count` is allowed.
    ragged: bool,
    /// Length of a raw column's byte string.
    raw_bytes: Option<usize>,
    /// Whether a missing feature is replaced.
    optional: bool,
    int: i64,
    float: f64,
    /// The default byte string. It is block 0 of the column's views if it is too long to be held in a view.
    string: Buffer,
}

/// The longest string that is stored in the view itself.
const INLINE_BYTES: usize = 12;
/// Arrow counts offsets in 31 bits.
const MAX_BLOCK_BYTES: usize = i32::MAX as usize;

impl Layout {
    fn new(column: &Column, kind: Kind) -> Result<Self, String> {
        let (shape, dtype) = (column.shape(), column.dtype());
        let (extents, ragged) = match shape {
            Shape::Scalar => (&[][..], false),
            Shape::Fixed(extents) => (&extents[..], false),
            Shape::Ragged(inner) => (&inner[..], true),
        };
        let count = extents.iter().try_fold(1usize, |count, &extent| count.checked_mul(extent));
        let count = count.filter(|&count| count > 0 && count <= i32::MAX as usize / 8);
        let count = count.ok_or_else(|| format!("shape {shape} has no elements, or too many"))?;
        if column.is_sequence() && kind == Kind::Example {
            return Err("is a feature list, but the records are tf.Examples: leave out .in_sequence()".to_owned());
        }
        if column.is_raw() && (ragged || dtype == Dtype::Bytes) {
            return Err("a raw column has a numeric dtype and fixed extents, and is no feature list".to_owned());
        }
        let raw_bytes = if column.is_raw() { column.sample_bytes() } else { None };
        let optional = *column.missing() != Missing::Error;
        let (mut int, mut float, mut string) = (0, 0.0, Vec::new());
        let wrong = |missing: &Missing| format!("{missing:?} is no default for {dtype}");
        match (column.missing(), dtype) {
            (Missing::Error, _) => string = vec![0; raw_bytes.unwrap_or(0)],
            (Missing::Bytes(bytes), _) if raw_bytes.is_some_and(|wanted| wanted == bytes.len()) => {
                string = bytes.clone()
            }
            (Missing::Bytes(bytes), Dtype::Bytes) => string = bytes.clone(),
            (missing @ Missing::Bytes(_), _) | (missing, Dtype::Bytes) => return Err(wrong(missing)),
            (missing, _) => {
                let element = number(missing, dtype).ok_or_else(|| wrong(missing))?;
                (int, float) = (element.0, element.1);
                if let Some(bytes) = raw_bytes {
                    string = element.2.repeat(bytes / element.2.len());
                }
            }
        }
        let string = Buffer::from_vec(string);
        let count = if raw_bytes.is_some() { 1 } else { count };
        Ok(Self { column: column.clone(), count, ragged, raw_bytes, optional, int, float, string })
    }

    /// Returns how many blocks of views come before the parsed buffer's block.
    fn own_blocks(&self) -> u32 {
        u32::from(self.string.len() > INLINE_BYTES)
    }
}

/// Converts a default number for a dtype: to an integer, to a float, and to the bytes of one element.
fn number(missing: &Missing, dtype: Dtype) -> Option<(i64, f64, Vec<u8>)> {
    let (int, float) = match *missing {
        Missing::Int(int) => (Some(int), int as f64),
        Missing::Float(float) => (None, float),
        _ => return None,
    };
    let bytes = match dtype {
        Dtype::U8 => u8::try_from(int?).ok()?.to_le_bytes().to_vec(),
        Dtype::I8 => i8::try_from(int?).ok()?.to_le_bytes().to_vec(),
        Dtype::I16 => i16::try_from(int?).ok()?.to_le_bytes().to_vec(),
        Dtype::I32 => i32::try_from(int?).ok()?.to_le_bytes().to_vec(),
        Dtype::I64 => int?.to_le_bytes().to_vec(),
        Dtype::Bool => u8::try_from(int?).ok().filter(|&int| int < 2)?.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f64(float).to_le_bytes().to_vec(),
        Dtype::F32 => (float as f32).to_le_bytes().to_vec(),
        Dtype::F64 => float.to_le_bytes().to_vec(),
        Dtype::Bytes => return None,
    };
    Some((int.unwrap_or(0), float, bytes))
}

/// What is wrong with a feature, before it becomes a message.
enum Problem {
    Missing,
    Kind(u32),
    Count(usize),
    Range(String),
    RawBytes(usize),
    TooMany,
    Wire(Flaw),
}

impl From<Flaw> for Problem {
    fn from(flaw: Flaw) -> Self {
        Problem::Wire(flaw)
    }
}

/// The value that replaces a missing one, as an element of a column.
trait Filler: Cell {
    fn filler(layout: &Layout) -> Self;
}

macro_rules! default_numbers {
    ($field:ident: $($native:ty => $convert:expr),*) => {$(
        impl Filler for $native {
            fn filler(layout: &Layout) -> Self {
                $convert(layout.$field)
            }
        }
    )*};
}

// Range was checked by `number`.
default_numbers!(int: i64 => |v| v, i32 => |v| v as i32, i16 => |v| v as i16, i8 => |v| v as i8, u8 => |v| v as u8, bool => |v| v != 0);
default_numbers!(float: f64 => |v| v, f32 => |v| v as f32, f16 => f16::from_f64);

impl Filler for View {
    fn filler(layout: &Layout) -> Self {
        View::new(&layout.string, Block { bytes: &layout.string, number: 0 })
    }
}

/// A column that is being filled.
struct Growing<T> {
    values: Vec<T>,
    /// For ragged columns: where each row ends, in items.
    offsets: Vec<i32>,
}

enum Store {
    U8(Growing<u8>),
    I8(Growing<i8>),
    I16(Growing<i16>),
    I32(Growing<i32>),
    I64(Growing<i64>),
    F16(Growing<f16>),
    F32(Growing<f32>),
    F64(Growing<f64>),
    Bool(Growing<bool>),
    View(Growing<View>),
}

/// Calls a generic function with the type that a store holds.
macro_rules! each {
    ($store:expr, $growing:ident => $call:expr) => {
        match $store {
            Store::U8($growing) => $call,
            Store::I8($growing) => $call,
            Store::I16($growing) => $call,
            Store::I32($growing) => $call,
            Store::I64($growing) => $call,
            Store::F16($growing) => $call,
            Store::F32($growing) => $call,
            Store::F64($growing) => $call,
            Store::Bool($growing) => $call,
            Store::View($growing) => $call,
        }
    };
}

impl Store {
    fn new(layout: &Layout, num_rows: usize) -> Self {
        fn growing<T>(layout: &Layout, num_rows: usize) -> Growing<T> {
            if layout.ragged {
                let mut offsets = Vec::with_capacity(num_rows + 1);
                offsets.push(0);
                return Growing { values: Vec::new(), offsets };
            }
            // Wide fixed columns grow as their values come: a damaged row must not cost what it only declares.
            let values = if layout.count <= 16 { num_rows * layout.count } else { 0 };
            Growing { values: Vec::with_capacity(values), offsets: Vec::new() }
        }
        if layout.raw_bytes.is_some() {
            return Store::View(growing(layout, num_rows));
        }
        match layout.column.dtype() {
            Dtype::U8 => Store::U8(growing(layout, num_rows)),
            Dtype::I8 => Store::I8(growing(layout, num_rows)),
            Dtype::I16 => Store::I16(growing(layout, num_rows)),
            Dtype::I32 => Store::I32(growing(layout, num_rows)),
            Dtype::I64 => Store::I64(growing(layout, num_rows)),
            Dtype::F16 => Store::F16(growing(layout, num_rows)),
            Dtype::F32 => Store::F32(growing(layout, num_rows)),
            Dtype::F64 => Store::F64(growing(layout, num_rows)),
            Dtype::Bool => Store::Bool(growing(layout, num_rows)),
            Dtype::Bytes => Store::View(growing(layout, num_rows)),
        }
    }
}

/// The rows that are scanned before their columns are filled. Both passes find them in the cache.
struct Chunk<'a> {
    /// The number of the first row in the whole call.
    first_row: usize,
    payloads: Vec<&'a [u8]>,
    /// One slot per column, row after row: the bytes of the feature (or feature list), empty if there is none.
    slots: Vec<&'a [u8]>,
    odd: Vec<OddEntry<'a>>,
    spoilt: Vec<bool>,
    block: Block<'a>,
}

impl<'a> Chunk<'a> {
    /// Returns the pieces of a feature's bytes that are to be merged.
    fn pieces(&self, slot: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let value = self.slots[slot];
        let filed = || self.odd.iter().rev().find(|(at, _)| *at == slot).map(|&(_, entry)| entry);
        let odd: Option<&'a [u8]> = if value == ODD { filed() } else { None };
        let whole = if odd.is_none() { Some(value) } else { None };
        whole.into_iter().chain(odd.into_iter().flat_map(scan::odd_values))
    }
}

impl Parser {
    /// Creates a parser that reads these columns from records of this kind.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there are no columns, for a repeated name, a feature list in a `tf.Example`, a shape without elements, a raw column
    /// that is ragged, and a default that its dtype cannot hold. The error lists all of these at once.
    pub fn new(columns: &[Column], kind: Kind) -> Result<Self> {
        let mut wrong = Vec::new();
        if columns.is_empty() {
            wrong.push("no columns are named: .columns([..])".to_owned());
        }
        let mut layouts = Vec::new();
        for (i, column) in columns.iter().enumerate() {
            if columns[..i].iter().any(|earlier| earlier.name() == column.name()) {
                wrong.push(format!("column {}: is named twice", column.name()));
            }
            match Layout::new(column, kind) {
                Ok(layout) => layouts.push(layout),
                Err(what) => wrong.push(format!("column {}: {what}", column.name())),
            }
        }
        if !wrong.is_empty() {
            return Err(Error::config(wrong.join("; ")));
        }
        let names = |sequence: bool| {
            let numbered = layouts.iter().zip(0..).filter(move |(layout, _)| layout.column.is_sequence() == sequence);
            Names::new(numbered.map(|(layout, number)| (&**layout.column.name(), number)))
        };
        let (context, lists) = (names(false), names(true));
        Ok(Self { columns: layouts, kind, context, lists, schema: arrow_schema(columns), block_bytes: MAX_BLOCK_BYTES })
    }

    /// Returns the Arrow schema of the rows.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Parses one record per payload. Payloads are ranges of `buffer`, usually as found by framing.
    pub fn parse(&self, buffer: &Buffer, payloads: &[Range<usize>]) -> Parsed {
        self.parse_except(buffer, payloads, Vec::new())
    }

    /// Parses all rows except those already known to be bad, which keep their errors (framing's, for instance).
    pub fn parse_except(&self, buffer: &Buffer, payloads: &[Range<usize>], bad: Vec<(usize, Error)>) -> Parsed {
        let mut bad = bad;
        let known = bad.len();
        let mut spoilt = vec![false; payloads.len()];
        for (row, _) in &bad {
            if let Some(spoilt) = spoilt.get_mut(*row) {
                *spoilt = true;
            }
        }
        let mut stores: Vec<_> = self.columns.iter().map(|layout| Store::new(layout, payloads.len())).collect();
        let rows_a_chunk = (4096 / self.columns.len()).clamp(8, 256);
        let mut chunk = Chunk {
            first_row: 0,
            payloads: Vec::with_capacity(rows_a_chunk),
            slots: vec![&[][..]; rows_a_chunk * self.columns.len()],
            odd: Vec::new(),
            spoilt: Vec::with_capacity(rows_a_chunk),
            block: Block { bytes: &[], number: 0 },
        };
        let mut hints = (Hints::default(), Hints::default());
        let mut collected = Collected::default();
        let mut blocks: Vec<Buffer> = Vec::new();
        let mut block = 0..0;
        while chunk.first_row < payloads.len() {
            chunk.payloads.clear();
            chunk.spoilt.clear();
            chunk.odd.clear();
            for (row, range) in payloads.iter().enumerate().skip(chunk.first_row).take(rows_a_chunk) {
                let payload = match buffer.get(range.clone()) {
                    _ if spoilt[row] => &[][..],
                    Some(payload) if payload.len() <= self.block_bytes => payload,
                    found => {
                        spoilt[row] = true;
                        bad.push((row, unreachable_payload(found.is_some())));
                        &[]
                    }
                };
                if !payload.is_empty() && (range.start < block.start || block.end < range.end) {
                    if !chunk.payloads.is_empty() {
                        break;
                    }
                    // Views count from the start of a block, so a large buffer is several of them.
                    let start = if range.end <= self.block_bytes { 0 } else { range.start };
                    block = start..buffer.len().min(start + self.block_bytes);
                    chunk.block = Block { bytes: &buffer[block.clone()], number: blocks.len() as u32 };
                    blocks.push(buffer.slice_with_length(block.start, block.len()));
                }
                chunk.payloads.push(payload);
                chunk.spoilt.push(spoilt[row]);
            }
            self.scan(&mut chunk, &mut hints, &mut bad);
            for (number, (layout, store)) in self.columns.iter().zip(&mut stores).enumerate() {
                each!(store, growing => fill(layout, number, self.columns.len(), &mut chunk, &mut collected, growing, &mut bad));
            }
            chunk.first_row += chunk.payloads.len();
        }
        if bad.len() > known || !bad.is_sorted_by_key(|(row, _)| *row) {
            bad.sort_by_key(|(row, _)| *row);
        }
        let arrays = self.columns.iter().zip(stores).zip(self.schema.fields()).map(
            |((layout, store), field)| each!(store, growing => array(layout, growing, field.data_type(), &blocks)),
        );
        let options = RecordBatchOptions::new().with_row_count(Some(payloads.len()));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays.collect(), &options)
            .expect("each column has the type of its field, and a value a row");
        Parsed { rows, bad }
    }

    /// Runs the first pass: finds each row's features.
    fn scan<'a>(&self, chunk: &mut Chunk<'a>, hints: &mut (Hints<'a>, Hints<'a>), bad: &mut Vec<(usize, Error)>) {
        let width = self.columns.len();
        for (row, &payload) in chunk.payloads.iter().enumerate() {
            let slots = &mut chunk.slots[row * width..][..width];
            slots.fill(&[]);
            if chunk.spoilt[row] {
                continue;
            }
            let mut wanted = 0;
            let mut scanned = || {
                let mut rest = payload;
                while !rest.is_empty() {
                    let tag = wire::tag(&mut rest)?;
                    let (names, hints, empty) = match tag {
                        tag if tag == len(1) => (&self.context, &mut hints.0, &[][..]),
                        tag if tag == len(2) && self.kind == Kind::SequenceExample => {
                            (&self.lists, &mut hints.1, scan::NO_STEPS)
                        }
                        tag => {
                            wire::skip(&mut rest, tag)?;
                            continue;
                        }
                    };
                    let map = wire::bytes(&mut rest)?;
                    wanted += scan::map(map, names, hints, slots, row * width, &mut chunk.odd, empty)?;
                }
                Ok(())
            };
            let error = match scanned() {
                Ok(()) if wanted > 0 || scan::is_exactly(payload, self.kind == Kind::SequenceExample) => continue,
                Ok(()) => self.another_message(payload),
                Err(flaw) => self.no_message(flaw),
            };
            chunk.spoilt[row] = true;
            bad.push((chunk.first_row + row, error));
        }
    }

    #[cold]
    fn another_message(&self, payload: &[u8]) -> Error {
        let name = self.columns[0].column.name();
        let advice = if self.kind == Kind::Example && scan::is_exactly(payload, true) {
            "the record is a tf.SequenceExample: read it as one".to_owned()
        } else {
            format!("the record is another message than a {}: read it as bytes", self.kind.name())
        };
        missing(name, payload).advice(advice)
    }

    #[cold]
    fn no_message(&self, flaw: Flaw) -> Error {
        Error::new(ErrorKind::Schema, format!("the record is no {}: {}", self.kind.name(), flaw.text()))
            .advice("read it as bytes, or look at it with `forebay inspect`")
    }
}

#[cold]
fn unreachable_payload(too_long: bool) -> Error {
    let message = if too_long { "the record has 2 GiB or more" } else { "the record lies outside its block" };
    Error::corrupt(message).advice("write the shard with smaller records, or build its index again")
}

/// Returns the error for a column without a value, with the columns that exist instead.
#[cold]
fn missing(name: &str, payload: &[u8]) -> Error {
    const MOST: usize = 32;
    let names = scan::names(payload, MOST);
    let more = if names.len() == MOST { ", …" } else { "" };
    let message = if names.iter().any(|found| found == name) {
        "no value in this record".to_owned()
    } else if names.is_empty() {
        format!("no column {name}; the record has none at all")
    } else {
        format!("no column {name}; these exist: {}{more}", names.join(", "))
    };
    Error::new(ErrorKind::Schema, message).column(name)
}

/// Runs the second pass: appends the values of one column for all rows in the chunk.
fn fill<'a, T: Filler>(
    layout: &Layout,
    number: usize,
    width: usize,
    chunk: &mut Chunk<'a>,
    collected: &mut Collected<'a>,
    growing: &mut Growing<T>,
    bad: &mut Vec<(usize, Error)>,
) {
    let block = Block { bytes: chunk.block.bytes, number: chunk.block.number + layout.own_blocks() };
    let single = !layout.ragged && layout.count == 1 && layout.raw_bytes.is_none();
    for row in 0..chunk.payloads.len() {
        let slot = row * width + number;
        // The way nearly all values go.
        if single && let Some(value) = T::one(chunk.slots[slot], block) {
            growing.values.push(value);
            continue;
        }
        let start = growing.values.len();
        let mut result = if chunk.spoilt[row] {
            Err((None, Problem::Missing))
        } else if layout.column.is_sequence() {
            match chunk.slots[slot] {
                [] => Err((None, Problem::Missing)),
                _ => steps(layout, chunk.pieces(slot), block, collected, &mut growing.values),
            }
        } else {
            feature(layout, chunk.slots[slot], || chunk.pieces(slot), block, collected, &mut growing.values)
                .map_err(|problem| (None, problem))
        };
        if layout.ragged && result.is_ok() && i32::try_from(growing.values.len() / layout.count).is_err() {
            result = Err((None, Problem::TooMany));
        }
        if let Err((step, problem)) = result {
            growing.values.truncate(start);
            if !layout.ragged {
                growing.values.resize(start + layout.count, T::filler(layout));
            }
            let replaced = layout.optional && matches!((step, &problem), (None, Problem::Missing));
            if !chunk.spoilt[row] && !replaced {
                chunk.spoilt[row] = true;
                bad.push((chunk.first_row + row, in_words(layout, T::KIND, step, problem, chunk.payloads[row])));
            }
        }
        if layout.ragged {
            let end = i32::try_from(growing.values.len() / layout.count).expect("rows that exceed it were cut");
            growing.offsets.push(end);
        }
    }
}

/// Appends the values of one feature. After an error, the caller cuts off what was appended.
#[inline]
fn feature<'a, T: Cell, P: Iterator<Item = &'a [u8]>>(
    layout: &Layout,
    value: &'a [u8],
    pieces: impl FnOnce() -> P,
    block: Block<'a>,
    collected: &mut Collected<'a>,
    values: &mut Vec<T>,
) -> Result<(), Problem> {
    if value.is_empty() {
        return Err(Problem::Missing);
    }
    let start = values.len();
    if T::many(value, block, values).is_none() {
        values.truncate(start);
        collected.clear();
        pieces().try_for_each(|piece| collected.merge(piece))?;
        if collected.kind == 0 {
            return Err(Problem::Missing);
        }
        if collected.kind != T::KIND {
            return Err(Problem::Kind(collected.kind));
        }
        T::collected(collected, block, values).map_err(|value| match wrong_count(layout, collected.len()) {
            Some(problem) => problem,
            None => Problem::Range(value),
        })?;
    }
    let found = values.len() - start;
    match (wrong_count(layout, found), layout.raw_bytes) {
        (Some(problem), _) => Err(problem),
        (None, Some(wanted)) if values[start].bytes() != wanted => Err(Problem::RawBytes(values[start].bytes())),
        _ => Ok(()),
    }
}

/// Returns what is wrong with a count of values. No values at all count as a missing feature, unless any number is allowed.
fn wrong_count(layout: &Layout, found: usize) -> Option<Problem> {
    if layout.ragged && !layout.column.is_sequence() {
        return (!found.is_multiple_of(layout.count)).then_some(Problem::Count(found));
    }
    match found {
        0 => Some(Problem::Missing),
        found => (found != layout.count).then_some(Problem::Count(found)),
    }
}

/// Appends the steps of a feature list. An error names the step.
fn steps<'a, T: Filler>(
    layout: &Layout,
    pieces: impl Iterator<Item = &'a [u8]>,
    block: Block<'a>,
    collected: &mut Collected<'a>,
    values: &mut Vec<T>,
) -> Result<(), (Option<usize>, Problem)> {
    let mut step = 0;
    for mut list in pieces {
        while !list.is_empty() {
            let next = |list: &mut &'a [u8]| {
                let tag = wire::tag(list)?;
                if tag == len(1) { wire::bytes(list).map(Some) } else { wire::skip(list, tag).map(|()| None) }
            };
            let Some(value) = next(&mut list).map_err(|flaw| (Some(step), flaw.into()))? else { continue };
            let one = if layout.count == 1 { T::one(value, block) } else { None };
            if let Some(one) = one {
                values.push(one);
            } else {
                let start = values.len();
                match feature(layout, value, || std::iter::once(value), block, collected, values) {
                    Ok(()) => {}
                    Err(Problem::Missing) if layout.optional => {
                        values.truncate(start);
                        values.resize(start + layout.count, T::filler(layout));
                    }
                    Err(problem) => return Err((Some(step), problem)),
                }
            }
            step += 1;
        }
    }
    Ok(())
}

#[cold]
fn in_words(layout: &Layout, kind: u32, step: Option<usize>, problem: Problem, payload: &[u8]) -> Error {
    let (column, name) = (&layout.column, layout.column.name());
    let wanted = match (layout.count, layout.ragged && !column.is_sequence()) {
        (1, true) => "any number of".to_owned(),
        (count, true) => format!("a multiple of {count}"),
        (count, false) => count.to_string(),
    };
    let constructor = |kind: u32| match kind {
        super::cell::BYTES => "bytes",
        super::cell::FLOAT => "float32",
        _ => "int64",
    };
    let (message, advice) = match problem {
        Problem::Missing if step.is_none() => {
            return missing(name, payload).advice("name a column that exists, or give this one a default: .optional()");
        }
        Problem::Missing => ("no value".to_owned(), "give the column a default: .optional()".to_owned()),
        Problem::Kind(found) => (
            format!("wanted {} values, found {} values", kind_name(kind), kind_name(found)),
            format!("declare it as {}({name:?})", constructor(found)),
        ),
        Problem::Count(found) => (
            format!("wanted {wanted} {} value{}, found {found}", kind_name(kind), if wanted == "1" { "" } else { "s" }),
            "declare its shape: .fixed([..]) for the same number in every record, .ragged() for any number".to_owned(),
        ),
        Problem::Range(value) => (
            format!("{value} does not fit into {}", column.dtype()),
            format!("declare it as {}({name:?})", constructor(kind)),
        ),
        Problem::RawBytes(found) => (
            format!("wanted {} bytes ({column}), found {found}", layout.raw_bytes.unwrap_or(0)),
            "declare the extents that the records hold, or read it as bytes".to_owned(),
        ),
        Problem::TooMany => ("2^31 or more values in one block".to_owned(), "read smaller blocks".to_owned()),
        Problem::Wire(flaw) => {
            let message = format!("the feature is no valid protobuf: {}", flaw.text());
            return Error::corrupt(message).column(Arc::clone(name)).advice("write the record again");
        }
    };
    let message = step.map_or(message.clone(), |step| format!("{message} (step {step})"));
    Error::new(ErrorKind::Schema, message).column(Arc::clone(name)).advice(advice)
}

/// Returns a finished column.
fn array<T: Cell>(layout: &Layout, growing: Growing<T>, data_type: &DataType, blocks: &[Buffer]) -> ArrayRef {
    let own = (layout.own_blocks() > 0).then(|| layout.string.clone());
    let blocks: Vec<Buffer> = own.into_iter().chain(blocks.iter().cloned()).collect();
    let values = T::array(growing.values, &blocks);
    let fixed = |data_type: &DataType, values| match data_type {
        DataType::FixedSizeList(item, count) => {
            let list = FixedSizeListArray::try_new(Arc::clone(item), *count, values, None);
            Arc::new(list.expect("a multiple of the count was appended")) as ArrayRef
        }
        _ => values,
    };
    match data_type {
        DataType::List(item) => {
            let offsets = OffsetBuffer::new(ScalarBuffer::from(growing.offsets));
            let list = ListArray::try_new(Arc::clone(item), offsets, fixed(item.data_type(), values), None);
            Arc::new(list.expect("offsets end at the last value"))
        }
        data_type => fixed(data_type, values),
    }
}

#[cfg(test)]
mod tests;
