//! Conditions on Parquet files: what statistics, page indexes and Bloom filters rule out is what would be left out anyway.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Float64Array, Int64Array,
    RecordBatch, StringArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use bytes::Bytes;
use forebay::format::parquet::check::Opened;
use forebay::source::check::{self, Asked};
use forebay::{Column, Dtype, Expr, Missing, Parquet, Shape, Value as Scalar, col};
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};

use crate::shard::{self, MAX_BYTES, Value, Values};

/// The memory that reading a file of a few KiB may take.
const MOST_BYTES: usize = 32 * MAX_BYTES;

/// The columns: the row number, and two whose types are chosen.
const NAMES: [&str; 3] = ["id", "a", "b"];

/// A condition selects the same rows of a file whether the file is asked for them or for all of its rows. A row with a null is left out only if the
/// condition fails whatever the value is. Pages that a scan finds are where the index says that they are. A damaged file is refused or read.
///
/// Bytes: 0 and 1 the types of two columns, 2 the number of rows, 3 to 7 how they are stored (see `stored`), 8 how they are declared, 9 how many of
/// the last bytes damage the file; then a condition, and values.
pub fn prune(data: &[u8]) {
    crate::quietly(|| {
        let (settings, rest) = crate::split::<10>(data);
        let mut input = Input { bytes: rest, at: 0 };
        let rows = usize::from(settings[2]) + 1;
        // The condition is made of values that are there, so that it holds for some.
        let condition_bytes: Vec<u8> = (0..24).map(|_| input.byte()).collect();
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows as i64));
        let nulls = settings[3] & 3;
        let [a, b] = [0, 1].map(|at| array(settings[at], rows, nulls, settings[3] >> 2 & 3, &mut input));
        let file = stored(&[ids, a.clone(), b.clone()], &settings);
        let Some(declared) = declared(settings[8], &[&a, &b]) else { return };
        if settings[9] > 0 {
            return damaged(&file, &data[data.len() - usize::from(settings[9]).min(data.len())..], &condition_bytes);
        }
        scanned(&file);
        let open = |conditions: Vec<Expr>, columns: Option<Vec<Column>>| {
            let asked = Asked { columns, conditions, ..shard::all() };
            shard::open(file.clone(), Parquet::new().into(), asked, MOST_BYTES)
        };
        let all = match open(Vec::new(), declared.clone()) {
            Ok(all) => all,
            // Types that no column can hold.
            Err(error) => return assert!(error.kind() == forebay::ErrorKind::Schema, "{error}"),
        };
        let rows_of_all = shard::rows(&*all, MOST_BYTES).expect("few rows");
        assert_eq!(rows_of_all.len(), rows);
        let dtypes: Vec<(&str, Dtype)> = all
            .columns()
            .iter()
            .filter_map(|column| {
                let name = NAMES.iter().find(|name| **name == column.name().as_ref())?;
                Some((*name, column.dtype()))
            })
            .collect();
        let at_column =
            |name: &str| all.columns().iter().position(|column| column.name().as_ref() == name).expect("a column");
        let sample = |name: &str, pick: u8| {
            let row = rows_of_all[usize::from(pick) % rows].as_ref()?;
            row[at_column(name)].first().cloned()
        };
        let mut bytes = Input { bytes: &condition_bytes, at: 0 };
        let condition = condition(&mut bytes, &dtypes, &sample, 3);
        let expr = condition.expr();
        let pruned = open(vec![expr.clone()], declared.clone()).expect("the file that was opened without a condition");
        // What each delivers.
        let mut delivered = Vec::new();
        let mut bad = Vec::new();
        for block in 0..pruned.catalog().blocks() {
            let decoded = shard::block(&*pruned, block, MOST_BYTES).expect("few rows").expect("a sound file");
            let held = check::of_rows(&expr, &decoded.rows).expect("columns that are there");
            let ids = decoded.rows.column_by_name("id").expect("a column").as_primitive::<Int64Type>().clone();
            for (row, (values, held)) in shard::rows_of(&decoded).zip(held).enumerate() {
                let id = ids.value(row) as usize;
                match values {
                    None => bad.push(id),
                    Some(values) => {
                        assert_eq!(Some(&values), rows_of_all[id].as_ref(), "row {id} read with a condition");
                        let is_held = condition.holds(&|name| values[at_column(name)].first());
                        assert_eq!(Some(held), is_held, "{expr} of row {id}, {values:?}");
                        if held {
                            delivered.push(id);
                        }
                    }
                }
            }
        }
        let holds = |id: usize| {
            let row = rows_of_all[id].as_ref()?;
            condition.holds(&|name| row[at_column(name)].first())
        };
        let wanted: Vec<usize> = (0..rows).filter(|&id| holds(id) == Some(true)).collect();
        assert_eq!(delivered, wanted, "{expr} of {:?} and {:?}", a.data_type(), b.data_type());
        // Bad rows that are left out are those of which all other values say so.
        let missing = (0..rows).filter(|id| rows_of_all[*id].is_none() && !bad.contains(id));
        let missing: Vec<usize> = missing.collect();
        if missing.is_empty() {
            return;
        }
        let mut alone: BTreeMap<&str, Vec<Option<Vec<Values>>>> = BTreeMap::new();
        for column in all.columns() {
            let one = open(Vec::new(), Some(vec![column.clone()])).expect("one of the columns");
            let name = NAMES.iter().find(|name| **name == column.name().as_ref()).expect("a column");
            alone.insert(name, shard::rows(&*one, MOST_BYTES).expect("few rows"));
        }
        for id in missing {
            let is_null = |name: &str| match name {
                "a" => a.is_null(id),
                "b" => b.is_null(id),
                _ => false,
            };
            let known = condition.holds(&|name| alone[name][id].as_ref()?[0].first());
            // A value that does not fit what is declared is compared as it is stored.
            let misfit =
                ["a", "b"].iter().any(|name| alone.get(name).is_some_and(|rows| rows[id].is_none()) && !is_null(name));
            assert!(known == Some(false) || misfit, "bad row {id} is left out, for which {expr} may hold");
        }
    });
}

/// The bytes of an input, repeated; zeros for an empty input.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at % self.bytes.len().max(1)).copied().unwrap_or(0);
        self.at += 1;
        // Whoever goes round again sees something else.
        byte.wrapping_add((self.at / self.bytes.len().max(1)) as u8)
    }
}

fn int(input: &mut Input<'_>) -> i64 {
    const EDGES: [i64; 12] = [
        i64::MIN,
        i64::MAX,
        i32::MIN as i64,
        i32::MAX as i64,
        u32::MAX as i64,
        (1 << 53) + 1,
        (1 << 24) + 1,
        -(1 << 53) - 1,
        0,
        -1,
        1 << 53,
        65_535,
    ];
    let (kind, value) = (input.byte(), input.byte());
    match kind {
        0..160 => i64::from(value as i8) / 4,
        160..200 => i64::from(value),
        200..230 => EDGES[usize::from(value) % EDGES.len()],
        _ => i64::from(value as i8) << (kind & 31),
    }
}

fn float(input: &mut Input<'_>) -> f64 {
    const EDGES: [f64; 10] =
        [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0, f64::MIN_POSITIVE, f64::MAX, 0.1, 16_777_217.0, 1e300];
    let kind = input.byte();
    match kind {
        0..200 => f64::from(input.byte() as i8) / 8.0,
        200..230 => EDGES[usize::from(input.byte()) % EDGES.len()],
        _ => int(input) as f64,
    }
}

fn string(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.byte();
    let letter = input.byte();
    // Longer than what statistics keep of a string, in some.
    let before = if kind & 4 != 0 {
        &b"the same beginning of more than sixty-four bytes, which is where statistics end: "[..]
    } else {
        b""
    };
    let letters: &[u8] = if kind & 8 != 0 { "\u{fffd}\u{7f}".as_bytes() } else { &[b'a' + letter % 5] };
    [before, &letters.repeat(usize::from(kind & 3))].concat()
}

/// Returns values of a type that a byte chooses, some of them null, perhaps in order.
fn array(kind: u8, rows: usize, nulls: u8, order: u8, input: &mut Input<'_>) -> ArrayRef {
    use DataType::*;
    let ints = |input: &mut Input<'_>| {
        let mut values: Vec<i64> = (0..rows).map(|_| int(input)).collect();
        sort(&mut values, order);
        Arc::new(Int64Array::from(values)) as ArrayRef
    };
    let through = |input: &mut Input<'_>, types: &[DataType]| {
        types.iter().fold(ints(input), |array, to| cast(&array, to).expect("a cast that there is"))
    };
    let made = match kind % 30 {
        0 => through(input, &[Int32]),
        1 => ints(input),
        2 => through(input, &[UInt8]),
        3 => through(input, &[UInt16]),
        4 => through(input, &[UInt32]),
        5 => through(input, &[UInt64]),
        6 => through(input, &[Int8]),
        7 => through(input, &[Int16]),
        8 | 9 | 10 => {
            let mut values: Vec<f64> = (0..rows).map(|_| float(input)).collect();
            if order & 1 != 0 {
                values.sort_by(f64::total_cmp);
            }
            let wide: ArrayRef = Arc::new(Float64Array::from(values));
            cast(&wide, &[Float32, Float64, Float16][usize::from(kind % 30 - 8)]).expect("floats")
        }
        11 => Arc::new(BooleanArray::from_iter((0..rows).map(|_| Some(input.byte() & 1 == 1)))),
        12 | 13 | 14 | 15 | 16 | 17 | 18 => {
            let mut values: Vec<Vec<u8>> = (0..rows).map(|_| string(input)).collect();
            sort(&mut values, order);
            let text = || {
                Arc::new(StringArray::from_iter_values(values.iter().map(|v| String::from_utf8_lossy(v)))) as ArrayRef
            };
            match kind % 30 {
                12 => text(),
                13 => Arc::new(BinaryArray::from_iter_values(&values)),
                14 => cast(&text(), &LargeUtf8).expect("text"),
                15 => cast(&text(), &Dictionary(Box::new(Int32), Box::new(Utf8))).expect("text"),
                16 => cast(&text(), &Utf8View).expect("text"),
                17 => {
                    let three = values.iter().map(|value| [value.len() as u8, value.first().copied().unwrap_or(0), 7]);
                    Arc::new(FixedSizeBinaryArray::try_from_iter(three).expect("three bytes each"))
                }
                _ => cast(&text(), &Dictionary(Box::new(Int8), Box::new(LargeUtf8))).unwrap_or_else(|_| text()),
            }
        }
        19 => through(input, &[Int32, Date32]),
        20 => through(input, &[Date64]),
        21 => through(input, &[Int32, Time32(TimeUnit::Second)]),
        22 => through(input, &[Int32, Time32(TimeUnit::Millisecond)]),
        23 => through(input, &[Timestamp(TimeUnit::Second, None)]),
        24 => through(input, &[Timestamp(TimeUnit::Millisecond, Some("UTC".into()))]),
        25 => through(input, &[Timestamp(TimeUnit::Nanosecond, None)]),
        26 => through(input, &[Time64(TimeUnit::Nanosecond)]),
        27 | 28 => {
            let precision = if kind % 30 == 27 { 8 } else { 16 };
            let most = 10i128.pow(precision);
            let values = (0..rows).map(|_| Some(i128::from(int(input)) % most));
            let decimals = Decimal128Array::from_iter(values.collect::<Vec<_>>());
            Arc::new(decimals.with_precision_and_scale(precision as u8, 2).expect("few digits"))
        }
        _ => through(input, &[Duration(TimeUnit::Millisecond)]),
    };
    if nulls < 2 {
        return made;
    }
    let absent =
        BooleanArray::from_iter((0..rows).map(|row| Some(if nulls == 2 { row % 7 == 3 } else { row % 64 > 24 })));
    arrow::compute::nullif(&made, &absent).unwrap_or(made)
}

fn sort<T: Ord>(values: &mut [T], order: u8) {
    match order {
        1 => values.sort_unstable(),
        2 => values.sort_unstable_by(|a, b| b.cmp(a)),
        _ => {}
    }
}

/// Returns a file of these columns.
///
/// Bytes: 3 nulls and order; 4 rows of a page and of a row group, 5 statistics (bits 0 and 1), Bloom filters (2), dictionaries (3), version 2 (4),
/// the places of pages (5), types as Parquet has them (6), without Arrow's schema (7); 6 how much of byte strings statistics keep; 7 compression and
/// encoding.
fn stored(arrays: &[ArrayRef], settings: &[u8; 10]) -> Bytes {
    let [_, _, _, _, sizes, flags, kept, coding, _, _] = *settings;
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let fields = NAMES.iter().zip(arrays).map(|(name, array)| {
        Field::new(
            *name,
            array.data_type().clone(),
            array.logical_null_count() > 0 || settings[3] & 16 != 0 && *name != "id",
        )
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(schema.clone(), arrays.to_vec()).expect("columns of one length");
    let kept = [None, Some(1), Some(3), Some(64)][usize::from(kept & 3)];
    let mut properties = WriterProperties::builder()
        .set_data_page_row_count_limit(usize::from(sizes & 15) * 4 + 1)
        .set_write_batch_size(usize::from(sizes & 15) * 2 + 1)
        .set_max_row_group_row_count(Some(usize::from(sizes >> 4) * 16 + 4))
        .set_statistics_enabled(match flags & 3 {
            0 => EnabledStatistics::None,
            1 => EnabledStatistics::Chunk,
            _ => EnabledStatistics::Page,
        })
        .set_bloom_filter_enabled(flag(2))
        .set_bloom_filter_max_ndv(64)
        .set_dictionary_enabled(flag(3))
        .set_writer_version(if flag(4) { WriterVersion::PARQUET_2_0 } else { WriterVersion::PARQUET_1_0 })
        .set_offset_index_disabled(flag(5))
        .set_coerce_types(flag(6))
        .set_column_index_truncate_length(kept)
        .set_statistics_truncate_length(kept)
        .set_compression(if coding & 1 == 1 { Compression::SNAPPY } else { Compression::UNCOMPRESSED });
    if coding & 2 == 2 && !flag(3) {
        for (name, array) in NAMES.iter().zip(arrays) {
            let encoding = match array.data_type() {
                DataType::Utf8 | DataType::Binary if coding & 4 == 4 => Encoding::DELTA_BYTE_ARRAY,
                DataType::Utf8 | DataType::Binary => Encoding::DELTA_LENGTH_BYTE_ARRAY,
                DataType::Int32 | DataType::Int64 => Encoding::DELTA_BINARY_PACKED,
                _ => continue,
            };
            properties = properties.set_column_encoding((*name).into(), encoding);
        }
    }
    let options = ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(flag(7));
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new_with_options(&mut file, schema, options).expect("types that can be stored");
    writer.write(&batch).expect("memory");
    writer.close().expect("memory");
    file.into()
}

/// Returns the declared columns: as they are stored, or each as a type that it may become.
#[expect(clippy::option_option, reason = "whether there are any, and whether they are stated")]
fn declared(choice: u8, arrays: &[&ArrayRef; 2]) -> Option<Option<Vec<Column>>> {
    if choice == 0 {
        return Some(None);
    }
    let mut columns = vec![forebay::int64("id")];
    for (at, array) in arrays.iter().enumerate() {
        let choice = choice >> (4 * at) & 15;
        let dtype = match (array.data_type(), choice & 7) {
            (DataType::Boolean, 0..4) => Dtype::Bool,
            (kind, _)
                if kind.is_binary()
                    || kind.is_string()
                    || matches!(kind, DataType::FixedSizeBinary(_) | DataType::Dictionary(..)) =>
            {
                Dtype::Bytes
            }
            (_, 0) => Dtype::I64,
            (_, 1) => Dtype::F64,
            (_, 2) => Dtype::F32,
            (_, 3) => Dtype::I32,
            (_, 4) => Dtype::F16,
            (_, 5) => Dtype::Bool,
            (_, 6) => Dtype::U8,
            _ => Dtype::I16,
        };
        let column = Column::new(NAMES[at + 1], dtype, Shape::Scalar);
        columns.push(match (choice & 8 != 0, dtype) {
            (false, _) => column,
            (true, Dtype::Bytes) => column.or(Missing::Bytes(b"aa".to_vec())),
            (true, Dtype::F16 | Dtype::F32 | Dtype::F64) => column.or(Missing::Float(0.5)),
            (true, _) => column.or(Missing::Int(1)),
        });
    }
    Some(Some(columns))
}

/// Checks that the pages that a scan finds are those that decoding finds.
fn scanned(file: &Bytes) {
    let known = Opened::new(file.clone()).expect("a sound file");
    let scanned = Opened::new(file.clone()).and_then(Opened::scanned).expect("a sound file");
    for (group, rows) in known.groups().into_iter().enumerate() {
        let whole = known.decode(group, 0..rows, None, true).expect("a sound file");
        for part in scanned.cut(group, 3) {
            let found = scanned.decode(group, part.clone(), None, true).expect("a sound file");
            for (found, whole) in found.iter().zip(&whole) {
                let whole = whole.slice(part.start as usize, (part.end - part.start) as usize);
                assert!(**found == *whole, "rows {part:?} of {found:?} are {whole:?}");
            }
        }
    }
}

/// Checks that a damaged file is refused or read, with a condition too.
fn damaged(file: &Bytes, spoil: &[u8], condition_bytes: &[u8]) {
    let mut file = file.to_vec();
    for piece in spoil.chunks_exact(3) {
        // From the end, where the footer and the indexes are.
        let back = usize::from(u16::from_le_bytes([piece[0], piece[1]])) % file.len();
        let at = file.len() - 1 - back;
        file[at] ^= piece[2];
    }
    let file = Bytes::from(file);
    if let Ok(opened) = crate::memory::bounded(MOST_BYTES, || Opened::new(file.clone()).and_then(Opened::scanned)) {
        for (group, rows) in opened.groups().into_iter().enumerate().take(8) {
            if opened.bytes(group, 0..rows) > MAX_BYTES as u64 || rows > 1 << 12 {
                continue;
            }
            for part in opened.cut(group, 3) {
                if let Ok(arrays) = opened.decode(group, part.clone(), None, true) {
                    arrays.iter().for_each(|array| {
                        crate::valid(array);
                        assert_eq!(array.len() as u64, part.end - part.start);
                    });
                }
            }
        }
    }
    let dtypes = [("id", Dtype::I64)];
    let condition =
        condition(&mut Input { bytes: condition_bytes, at: 0 }, &dtypes, &|_, pick| Some(Value::Int(pick.into())), 3);
    let asked = Asked { conditions: vec![condition.expr()], ..shard::all() };
    let Ok(source) = shard::open(file, Parquet::new().into(), asked, MOST_BYTES) else { return };
    for block in 0..source.catalog().blocks().min(8) {
        shard::block(&*source, block, MOST_BYTES);
    }
}

/// A condition, applicable to a file and to plain values.
enum Condition {
    Compare(&'static str, u8, Scalar),
    In(&'static str, Vec<Scalar>),
    And(Box<Condition>, Box<Condition>),
    Or(Box<Condition>, Box<Condition>),
    Not(Box<Condition>),
}

fn condition(
    input: &mut Input<'_>,
    columns: &[(&'static str, Dtype)],
    sample: &dyn Fn(&str, u8) -> Option<Value>,
    depth: u8,
) -> Condition {
    let kind = input.byte();
    if depth > 0 && kind >= 160 {
        let inner = Box::new(condition(input, columns, sample, depth - 1));
        return match kind & 3 {
            0 => Condition::Not(inner),
            1 => Condition::Or(inner, Box::new(condition(input, columns, sample, depth - 1))),
            _ => Condition::And(inner, Box::new(condition(input, columns, sample, depth - 1))),
        };
    }
    let (name, dtype) = columns[usize::from(input.byte()) % columns.len()];
    let mut value = || {
        let pick = input.byte();
        match (dtype, sample(name, pick)) {
            (Dtype::Bytes, Some(Value::Bytes(bytes))) => Scalar::Bytes(bytes),
            (Dtype::Bytes, _) => Scalar::Bytes(string(input)),
            (Dtype::Bool, _) => Scalar::Bool(pick & 1 == 1),
            (_, Some(Value::Int(int))) if pick & 3 != 0 => Scalar::Int(int.wrapping_add(i64::from(pick >> 6) - 1)),
            (_, Some(Value::Float(bits))) if pick & 3 != 0 => Scalar::Float(f64::from_bits(bits)),
            (_, Some(Value::Int(int))) if pick & 4 != 0 => Scalar::Float(int as f64),
            _ if pick & 8 != 0 => Scalar::Float(float(input)),
            _ => Scalar::Int(int(input)),
        }
    };
    match kind % 7 {
        6 => Condition::In(name, (0..kind / 7 % 4).map(|_| value()).collect()),
        operator => Condition::Compare(name, operator, value()),
    }
}

impl Condition {
    fn expr(&self) -> Expr {
        match self {
            Self::Compare(name, operator, value) => {
                let (column, value) = (col(*name), value.clone());
                match operator {
                    0 => column.eq(value),
                    1 => column.ne(value),
                    2 => column.lt(value),
                    3 => column.le(value),
                    4 => column.gt(value),
                    _ => column.ge(value),
                }
            }
            Self::In(name, values) => col(*name).is_in(values.clone()),
            Self::And(a, b) => a.expr().and(b.expr()),
            Self::Or(a, b) => a.expr().or(b.expr()),
            Self::Not(inner) => !inner.expr(),
        }
    }

    /// Returns whether it holds for these values; `None` if that depends on a missing value.
    fn holds<'a>(&self, of: &dyn Fn(&str) -> Option<&'a Value>) -> Option<bool> {
        match self {
            Self::Compare(name, operator, value) => {
                let ordering = compare(of(name)?, value);
                Some(match operator {
                    0 => ordering == Some(0),
                    1 => ordering != Some(0),
                    2 => ordering == Some(-1),
                    3 => matches!(ordering, Some(-1 | 0)),
                    4 => ordering == Some(1),
                    _ => matches!(ordering, Some(0 | 1)),
                })
            }
            Self::In(_, values) if values.is_empty() => Some(false),
            Self::In(name, values) => {
                let found = of(name)?;
                Some(values.iter().any(|value| compare(found, value) == Some(0)))
            }
            Self::And(a, b) => match (a.holds(of), b.holds(of)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Self::Or(a, b) => match (a.holds(of), b.holds(of)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Self::Not(inner) => inner.holds(of).map(|holds| !holds),
        }
    }
}

/// Compares exactly: -1, 0 or 1; `None` if one of the values is NaN.
fn compare(found: &Value, value: &Scalar) -> Option<i8> {
    // An integer and the half of a float that is whole are compared as such, what is behind its point decides where they are equal.
    let parts = |float: f64| match float {
        float if float.is_nan() => None,
        float if float.abs() < 1e30 => Some((float.floor() as i128, float - float.floor())),
        float => Some((if float > 0.0 { i128::MAX } else { i128::MIN }, 0.0)),
    };
    let ordering = match (found, value) {
        (Value::Int(a), Scalar::Int(b)) => a.cmp(b),
        (Value::Int(a), Scalar::Float(b)) => (i128::from(*a), 0.0).partial_cmp(&parts(*b)?)?,
        (Value::Float(a), Scalar::Int(b)) => parts(f64::from_bits(*a))?.partial_cmp(&(i128::from(*b), 0.0))?,
        (Value::Float(a), Scalar::Float(b)) => f64::from_bits(*a).partial_cmp(b)?,
        (Value::Bool(a), Scalar::Bool(b)) => a.cmp(b),
        (Value::Bytes(a), Scalar::Bytes(b)) => a.cmp(b),
        _ => return None,
    };
    Some(ordering as i8)
}
