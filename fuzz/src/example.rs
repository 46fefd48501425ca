//! Tests the columnar parser of `tf.Example` and `tf.SequenceExample` against a plain reader and the generic messages.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{self, DataType};
use forebay::format::example::{Example, Feature, Features, Kind, Parser, SequenceExample, Values, infer};
use forebay::{Column, Dtype, Error, ErrorKind, Missing, Shape, bytes, float32, int64};
use half::f16;

use crate::wire::{self, Flawed, Map, Value};

/// Records as `tf.Example`: the columns hold what the records say, and a row is only bad for a reason.
///
/// Bytes: 0 chooses the columns (its lowest bits) and whether the first row counts as bad beforehand (bit 7); then records, each preceded by its
/// length in two bytes.
pub fn example(data: &[u8]) {
    records(data, Kind::Example);
}

/// Tests the same for `tf.SequenceExample`.
pub fn sequence_example(data: &[u8]) {
    records(data, Kind::SequenceExample);
}

/// Returns columns with short names, so that a fuzzer finds them; each name has several types.
fn columns(set: u8, kind: Kind) -> Vec<Column> {
    let of = |name: &str, dtype, shape| Column::new(name, dtype, shape);
    let (list, pairs) = (Shape::Ragged(vec![]), Shape::Ragged(vec![2]));
    let long = || Missing::Bytes(b"a default of more than twelve bytes".to_vec());
    let mut columns = match set & 3 {
        0 => vec![
            int64("a").optional(),
            float32("b").ragged().optional(),
            bytes("c").or(long()),
            of("d", Dtype::U8, list).optional(),
            bytes("e").fixed([2]).optional(),
        ],
        1 => vec![
            bytes("a").ragged().optional(),
            of("b", Dtype::F16, Shape::Fixed(vec![2])).or(Missing::Float(0.5)),
            of("c", Dtype::Bool, Shape::Scalar).or(Missing::Int(1)),
            bytes("d").raw(Dtype::U8, [20]).optional(),
            of("", Dtype::I8, pairs).optional(),
        ],
        2 => vec![
            of("a", Dtype::I32, Shape::Scalar),
            of("b", Dtype::F64, Shape::Scalar).optional(),
            bytes("c").raw(Dtype::F32, [2, 1]).or(Missing::Float(1.5)),
            of("d", Dtype::I16, Shape::Fixed(vec![3])).optional(),
        ],
        _ => vec![float32("b"), bytes("c"), of("d", Dtype::Bool, list)],
    };
    if kind == Kind::SequenceExample {
        columns.extend(match set & 3 {
            0 => vec![int64("p").in_sequence().or(Missing::Int(-1)), float32("q").fixed([2]).in_sequence().optional()],
            1 => {
                vec![bytes("p").in_sequence().or(long()), of("q", Dtype::Bool, Shape::Scalar).in_sequence().optional()]
            }
            2 => vec![of("p", Dtype::F16, Shape::Scalar).in_sequence(), bytes("").fixed([2]).in_sequence().optional()],
            _ => vec![of("p", Dtype::U8, Shape::Fixed(vec![2])).in_sequence()],
        });
    }
    columns
}

/// Splits an input into records: each as long as the two bytes before it say, or as far as the input goes.
fn ranges(rest: &[u8]) -> Vec<Range<usize>> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    while let Some(length) = rest.get(at..at + 2) {
        let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
        at += 2;
        ranges.push(at..rest.len().min(at + length));
        at = rest.len().min(at + length);
    }
    ranges
}

fn records(data: &[u8], kind: Kind) {
    let ([set], rest) = crate::split::<1>(data);
    let ranges = ranges(rest);
    let payloads: Vec<&[u8]> = ranges.iter().map(|range| &rest[range.clone()]).collect();
    payloads.iter().for_each(|payload| the_plain_reader_agrees_with_the_generic_view(payload, kind));

    let columns = columns(set, kind);
    let known = set & 0x80 != 0 && !ranges.is_empty();
    check(&columns, kind, rest, &ranges, known);
    inferred(rest, &ranges, &payloads);
}

/// Checks that both readers find the same in a record that the generic messages accept.
fn the_plain_reader_agrees_with_the_generic_view(payload: &[u8], kind: Kind) {
    let record = match kind {
        Kind::Example => {
            Example::from_bytes(payload).map(|e| SequenceExample { context: e.features, feature_lists: None })
        }
        Kind::SequenceExample => SequenceExample::from_bytes(payload),
    };
    let Ok(record) = record else { return };
    let [context, lists] = wire::maps(payload, kind).expect("the generic view could read it");
    let features: Features = record.context.unwrap_or_default();
    assert!(context.keys().copied().eq(features.feature.keys().map(String::as_bytes)), "other names");
    for (pieces, feature) in context.values().zip(features.feature.values()) {
        assert!(same(&wire::feature(pieces).expect("the generic view could read it"), feature));
    }
    if kind == Kind::SequenceExample {
        let found = record.feature_lists.unwrap_or_default().feature_list;
        assert!(lists.keys().copied().eq(found.keys().map(String::as_bytes)), "other names");
        for (pieces, list) in lists.values().zip(found.values()) {
            let steps: Vec<_> = steps(pieces).map(|step| step.expect("the generic view could read it")).collect();
            assert_eq!(steps.len(), list.feature.len());
            for (step, feature) in steps.iter().zip(&list.feature) {
                assert!(same(&wire::feature(&[step]).expect("the generic view could read it"), feature));
            }
        }
    }
}

/// Compares bit by bit, so that a NaN equals itself.
fn same(a: &Feature, b: &Feature) -> bool {
    match (&a.kind, &b.kind) {
        (Some(Values::Float(a)), Some(Values::Float(b))) => {
            a.value.iter().map(|v| v.to_bits()).eq(b.value.iter().map(|v| v.to_bits()))
        }
        (a, b) => a == b,
    }
}

fn steps<'a>(pieces: &[&'a [u8]]) -> impl Iterator<Item = Result<&'a [u8], Flawed>> {
    pieces.iter().flat_map(|list| wire::fields(list)).filter_map(|field| match field {
        Ok((1, Value::Bytes(step))) => Some(Ok(step)),
        Ok(_) => None,
        Err(flaw) => Some(Err(flaw)),
    })
}

/// The values of a row, in one form for all element types: numbers as their bits.
#[derive(Debug, Default, PartialEq)]
struct Cells {
    numbers: Vec<u64>,
    strings: Vec<Vec<u8>>,
}

/// Parses, and compares every row with the plain reader.
fn check(columns: &[Column], kind: Kind, rest: &[u8], ranges: &[Range<usize>], known: bool) {
    let parser = Parser::new(columns, kind).expect("these columns can be");
    let buffer = Buffer::from(rest);
    let parsed = if known {
        parser.parse_except(&buffer, ranges, vec![(0, Error::new(ErrorKind::Corrupt, "known"))])
    } else {
        parser.parse(&buffer, ranges)
    };
    assert_eq!(parsed.rows.num_rows(), ranges.len());
    assert!(parsed.bad.windows(2).all(|pair| pair[0].0 < pair[1].0), "ascending, each once");
    for array in parsed.rows.columns() {
        array.to_data().validate_full().expect("valid, whatever the rows are");
        assert_eq!((array.len(), array.null_count()), (ranges.len(), 0));
    }
    let mut bad = parsed.bad.iter().peekable();
    for (row, range) in ranges.iter().enumerate() {
        let bad = bad.next_if(|(bad, _)| *bad == row).map(|(_, error)| error);
        if known && row == 0 {
            assert_eq!(bad.map(Error::message), Some("known"));
            continue;
        }
        let payload = &rest[range.clone()];
        let (expected, wanted) = match wire::maps(payload, kind) {
            Ok(maps) => expected(columns, kind, &maps),
            Err(Flawed) => (Err(ErrorKind::Schema), true),
        };
        match (expected, bad) {
            (Ok(expected), None) => {
                for ((column, array), expected) in columns.iter().zip(parsed.rows.columns()).zip(expected) {
                    assert_eq!(cells(array, row), expected, "row {row} of {column}");
                }
            }
            (Err(kind), Some(error)) if wanted => assert_eq!(error.kind(), kind, "row {row}: {error}"),
            // Nothing that is wanted: the record may be another message, which is an error whatever is optional.
            (_, Some(error)) if !wanted => {
                assert_eq!(error.kind(), ErrorKind::Schema);
                assert!(!error.to_string().contains("another message") || !is_canonical(payload, kind), "{error}");
            }
            (expected, bad) => panic!("row {row} of {columns:?}: {bad:?}, expected {expected:?}"),
        }
    }
}

/// Returns whether the record is encoded as this crate encodes it.
fn is_canonical(payload: &[u8], kind: Kind) -> bool {
    match kind {
        Kind::Example => Example::from_bytes(payload).is_ok_and(|record| record.encode() == payload),
        Kind::SequenceExample => SequenceExample::from_bytes(payload).is_ok_and(|record| record.encode() == payload),
    }
}

type Row = Result<Vec<Cells>, ErrorKind>;

/// Returns what the columns of a record should hold according to their documentation, and whether the record has anything that is wanted.
fn expected(columns: &[Column], kind: Kind, [context, lists]: &[Map<'_>; 2]) -> (Row, bool) {
    let mut wanted = false;
    let mut row = Vec::new();
    let mut error = None;
    for column in columns {
        let map = if column.is_sequence() { lists } else { context };
        assert!(kind == Kind::SequenceExample || !column.is_sequence());
        let pieces = map.get(column.name().as_bytes());
        wanted |= pieces.is_some();
        let cells = match pieces {
            Some(pieces) if column.is_sequence() => sequence(column, pieces),
            Some(pieces) => wire::feature(pieces).map_err(|Flawed| ErrorKind::Corrupt).and_then(|f| one(column, &f)),
            None if column.is_sequence() => absent(column, 0),
            None => one(column, &Feature::default()),
        };
        match cells {
            Ok(cells) => row.push(cells),
            Err(kind) => error = error.or(Some(kind)),
        }
    }
    (error.map_or(Ok(row), Err), wanted)
}

fn sequence(column: &Column, pieces: &[&[u8]]) -> Result<Cells, ErrorKind> {
    // A step is as a scalar or fixed column.
    let Shape::Ragged(extents) = column.shape() else { panic!("a feature list is ragged") };
    let shape = if extents.is_empty() { Shape::Scalar } else { Shape::Fixed(extents.clone()) };
    let step_column = Column::new("step", column.dtype(), shape).or(column.missing().clone());
    let mut all = Cells::default();
    for step in steps(pieces) {
        let feature = step.and_then(|step| wire::feature(&[step])).map_err(|Flawed| ErrorKind::Corrupt)?;
        let cells = one(&step_column, &feature)?;
        all.numbers.extend(cells.numbers);
        all.strings.extend(cells.strings);
    }
    Ok(all)
}

/// Returns the default value, repeated for `count` elements.
fn absent(column: &Column, count: usize) -> Result<Cells, ErrorKind> {
    let bits = |int: i64, float: f64| match column.dtype() {
        Dtype::F16 => u64::from(f16::from_f64(float).to_bits()),
        Dtype::F32 => u64::from((float as f32).to_bits()),
        Dtype::F64 => float.to_bits(),
        _ => int as u64,
    };
    let number = match column.missing() {
        Missing::Error => return Err(ErrorKind::Schema),
        Missing::Bytes(string) => return Ok(Cells { numbers: vec![], strings: vec![string.clone(); count] }),
        Missing::Int(int) => bits(*int, *int as f64),
        Missing::Float(float) => bits(0, *float),
    };
    if column.is_raw() {
        let element = &number.to_le_bytes()[..column.dtype().size().expect("raw columns have numbers")];
        return Ok(Cells { numbers: vec![], strings: vec![element.repeat(column.shape().elements().expect("fixed"))] });
    }
    Ok(Cells { numbers: vec![number; count], strings: vec![] })
}

/// Returns what a column holds for one feature.
fn one(column: &Column, feature: &Feature) -> Result<Cells, ErrorKind> {
    let (count, ragged) = match column.shape() {
        _ if column.is_raw() => (1, false),
        Shape::Scalar => (1, false),
        Shape::Fixed(extents) => (extents.iter().product(), false),
        Shape::Ragged(inner) => (inner.iter().product(), true),
    };
    let num_values = feature.num_values();
    let wrong = Err(ErrorKind::Schema);
    let cells = match (&feature.kind, column.dtype(), column.is_raw()) {
        (None, ..) => return absent(column, if ragged { 0 } else { count }),
        (Some(Values::Bytes(list)), dtype, raw) if raw || dtype == Dtype::Bytes => {
            Cells { numbers: vec![], strings: list.value.clone() }
        }
        (Some(Values::Float(list)), Dtype::F16 | Dtype::F32 | Dtype::F64, false) => {
            let bits = |value: f32| match column.dtype() {
                Dtype::F16 => u64::from(f16::from_f32(value).to_bits()),
                Dtype::F32 => u64::from(value.to_bits()),
                _ => f64::from(value).to_bits(),
            };
            Cells { numbers: list.value.iter().map(|value| bits(*value)).collect(), strings: vec![] }
        }
        (Some(Values::Int64(_)), Dtype::F16 | Dtype::F32 | Dtype::F64 | Dtype::Bytes, _) => return wrong,
        (Some(Values::Int64(list)), dtype, false) => {
            let range = match dtype {
                Dtype::U8 => 0..=255,
                Dtype::Bool => 0..=1,
                Dtype::I8 => i8::MIN.into()..=i8::MAX.into(),
                Dtype::I16 => i16::MIN.into()..=i16::MAX.into(),
                Dtype::I32 => i32::MIN.into()..=i32::MAX.into(),
                _ => i64::MIN..=i64::MAX,
            };
            if !list.value.iter().all(|value| range.contains(value)) {
                return wrong;
            }
            Cells { numbers: list.value.iter().map(|value| *value as u64).collect(), strings: vec![] }
        }
        _ => return wrong,
    };
    match num_values {
        0 if !ragged => return absent(column, count),
        n if if ragged { !n.is_multiple_of(count) } else { n != count } => return wrong,
        _ => {}
    }
    if column.is_raw() && column.sample_bytes() != Some(cells.strings[0].len()) {
        return wrong;
    }
    Ok(cells)
}

/// Returns one row of a column.
fn cells(array: &ArrayRef, row: usize) -> Cells {
    fn flat(array: &dyn Array) -> Cells {
        macro_rules! numbers {
            ($arrow:ident, $bits:expr) => {
                array.as_primitive::<datatypes::$arrow>().values().iter().map($bits).collect()
            };
        }
        let numbers = match array.data_type() {
            DataType::Int64 => numbers!(Int64Type, |v| *v as u64),
            DataType::Int32 => numbers!(Int32Type, |v| i64::from(*v) as u64),
            DataType::Int16 => numbers!(Int16Type, |v| i64::from(*v) as u64),
            DataType::Int8 => numbers!(Int8Type, |v| i64::from(*v) as u64),
            DataType::UInt8 => numbers!(UInt8Type, |v| u64::from(*v)),
            DataType::Float16 => numbers!(Float16Type, |v| u64::from(v.to_bits())),
            DataType::Float32 => numbers!(Float32Type, |v| u64::from(v.to_bits())),
            DataType::Float64 => numbers!(Float64Type, |v| v.to_bits()),
            DataType::Boolean => array.as_boolean().iter().map(|v| u64::from(v == Some(true))).collect(),
            DataType::BinaryView => {
                let strings = array.as_binary_view().iter().map(|string| string.unwrap_or_default().to_vec());
                return Cells { numbers: vec![], strings: strings.collect() };
            }
            DataType::FixedSizeList(..) => {
                let list = array.as_fixed_size_list();
                let (from, count) = (list.value_offset(0), list.value_length());
                return flat(&*list.values().slice(from as usize, count as usize * list.len()));
            }
            DataType::List(_) => return flat(&*array.as_list::<i32>().value(0)),
            other => panic!("no column is carried as {other}"),
        };
        Cells { numbers, strings: vec![] }
    }
    flat(&*array.slice(row, 1))
}

/// Checks that the columns inferred from records can be parsed, and that every record has them.
fn inferred(rest: &[u8], ranges: &[Range<usize>], payloads: &[&[u8]]) {
    let (kind, columns) = match infer(payloads.iter().copied()) {
        Ok(inferred) => inferred,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Schema);
            assert!(error.place().record.is_none_or(|record| record < payloads.len() as u64));
            return;
        }
    };
    let parser = Parser::new(&columns, kind).expect("inferred columns can be");
    let parsed = parser.parse(&Buffer::from(rest), ranges);
    for (row, error) in &parsed.bad {
        let readable = match kind {
            Kind::Example => Example::from_bytes(payloads[*row]).is_ok(),
            Kind::SequenceExample => SequenceExample::from_bytes(payloads[*row]).is_ok(),
        };
        // A record that the others make a sequence may be none; one with nothing wanted in it may be another message.
        let [context, lists] = wire::maps(payloads[*row], kind).unwrap_or_default();
        let wanted = columns.iter().any(|column| {
            let map = if column.is_sequence() { &lists } else { &context };
            map.contains_key(column.name().as_bytes())
        });
        assert!(!readable || !wanted, "row {row} of {columns:?}: {error}");
    }
    check(&columns, kind, rest, ranges, false);
}
