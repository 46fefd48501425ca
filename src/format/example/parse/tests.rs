//! The parser against spelled-out cases, files that TensorFlow wrote, and the generic view of random messages.

use arrow::array::{Array, AsArray};
use arrow::datatypes as types;
use proptest::prelude::*;
use prost::Message;
use prost::encoding::{encode_key, encode_varint};

use super::*;
use crate::format::example::{Example, Feature, SequenceExample, infer};
use crate::format::tfrecord::{Check, Compression, Decoder, Framed, Framer};
use crate::{bytes, float32, int64};

fn join(records: &[Vec<u8>]) -> (Buffer, Vec<Range<usize>>) {
    let mut at = 0;
    let ranges = records.iter().map(|record| {
        at += record.len();
        at - record.len()..at
    });
    let ranges = ranges.collect();
    (Buffer::from_vec(records.concat()), ranges)
}

fn parse(columns: &[Column], kind: Kind, records: &[Vec<u8>]) -> Parsed {
    let (buffer, ranges) = join(records);
    let parsed = Parser::new(columns, kind).unwrap().parse(&buffer, &ranges);
    assert_eq!(parsed.rows.num_rows(), records.len());
    assert!(parsed.bad.windows(2).all(|pair| pair[0].0 < pair[1].0), "ascending, each once");
    parsed
}

/// One row of a column in words, so that all types compare alike.
fn row(array: &dyn Array, row: usize) -> String {
    let row = array.slice(row, 1);
    fn flat(array: &dyn Array) -> String {
        match array.data_type() {
            DataType::Int64 => format!("{:?}", array.as_primitive::<types::Int64Type>().values().to_vec()),
            DataType::Int32 => format!("{:?}", array.as_primitive::<types::Int32Type>().values().to_vec()),
            DataType::Int16 => format!("{:?}", array.as_primitive::<types::Int16Type>().values().to_vec()),
            DataType::Int8 => format!("{:?}", array.as_primitive::<types::Int8Type>().values().to_vec()),
            DataType::UInt8 => format!("{:?}", array.as_primitive::<types::UInt8Type>().values().to_vec()),
            DataType::Float16 => format!("{:?}", array.as_primitive::<types::Float16Type>().values().to_vec()),
            DataType::Float32 => format!("{:?}", array.as_primitive::<types::Float32Type>().values().to_vec()),
            DataType::Float64 => format!("{:?}", array.as_primitive::<types::Float64Type>().values().to_vec()),
            DataType::Boolean => format!("{:?}", array.as_boolean().iter().map(|v| v.unwrap()).collect::<Vec<_>>()),
            DataType::BinaryView => {
                let strings = array.as_binary_view().iter();
                format!("{:?}", strings.map(|s| s.unwrap().escape_ascii().to_string()).collect::<Vec<_>>())
            }
            DataType::FixedSizeList(..) => flat(array.as_fixed_size_list().values()),
            DataType::List(_) => flat(&array.as_list::<i32>().value(0)),
            other => panic!("no column is carried as {other}"),
        }
    }
    flat(&row)
}

fn only(column: Column, feature: Feature) -> Result<String, String> {
    let example = Example::new().with(&**column.name(), feature).encode();
    let parsed = parse(std::slice::from_ref(&column), Kind::Example, &[example]);
    match parsed.bad.first() {
        Some((_, error)) => Err(error.to_string()),
        None => Ok(row(parsed.rows.column(0), 0)),
    }
}

#[test]
fn each_dtype_and_shape_is_read() {
    let ints = |values: &[i64]| Feature::int64(values.iter().copied());
    let floats = |values: &[f32]| Feature::float32(values.iter().copied());
    let long = "a string of more than twelve bytes";
    for (column, feature, expected) in [
        (int64("x"), ints(&[-1]), "[-1]"),
        (Column::new("x", Dtype::I32, Shape::Scalar), ints(&[i64::from(i32::MIN)]), "[-2147483648]"),
        (Column::new("x", Dtype::I16, Shape::Scalar), ints(&[-300]), "[-300]"),
        (Column::new("x", Dtype::I8, Shape::Scalar), ints(&[-128]), "[-128]"),
        (Column::new("x", Dtype::U8, Shape::Scalar), ints(&[255]), "[255]"),
        (Column::new("x", Dtype::Bool, Shape::Scalar), ints(&[1]), "[true]"),
        (float32("x"), floats(&[0.1]), "[0.1]"),
        (Column::new("x", Dtype::F64, Shape::Scalar), floats(&[0.5]), "[0.5]"),
        (Column::new("x", Dtype::F16, Shape::Scalar), floats(&[0.5]), "[0.5]"),
        (Column::new("x", Dtype::F16, Shape::Scalar), floats(&[f32::INFINITY]), "[inf]"),
        (bytes("x"), Feature::bytes([long]), &format!("[{long:?}]")),
        (bytes("x"), Feature::bytes([""]), "[\"\"]"),
        (int64("x").fixed([2, 2]), ints(&[1, 2, 3, 1 << 40]), "[1, 2, 3, 1099511627776]"),
        (float32("x").fixed([3]), floats(&[1.0, 2.0, 3.0]), "[1.0, 2.0, 3.0]"),
        (bytes("x").fixed([2]), Feature::bytes(["a", long]), &format!("[\"a\", {long:?}]")),
        (int64("x").ragged(), ints(&[]), "[]"),
        (Column::new("x", Dtype::Bool, Shape::Ragged(vec![])), ints(&[1, 0]), "[true, false]"),
        (Column::new("x", Dtype::F32, Shape::Ragged(vec![2])), floats(&[1.0, 2.0, 3.0, 4.0]), "[1.0, 2.0, 3.0, 4.0]"),
        (bytes("x").ragged(), Feature::bytes([long, "b", ""]), &format!("[{long:?}, \"b\", \"\"]")),
        (bytes("x").raw(Dtype::U8, [2, 2]), Feature::bytes(["abcd"]), "[\"abcd\"]"),
        (bytes("x").raw(Dtype::F32, [4]), Feature::bytes(["0123456789abcdef"]), "[\"0123456789abcdef\"]"),
    ] {
        assert_eq!(only(column.clone(), feature).as_deref(), Ok(expected), "{column}");
    }
}

#[test]
fn what_does_not_fit_says_what_was_wanted_and_found() {
    for (column, feature, expected) in [
        (
            int64("x"),
            Feature::float32([1.0]),
            "column x: wanted int64 values, found float values; declare it as float32(\"x\")",
        ),
        (float32("x").ragged(), Feature::bytes(["a"]), "column x: wanted float values, found bytes values"),
        (int64("x"), Feature::int64([1, 2]), "column x: wanted 1 int64 value, found 2; declare its shape"),
        (float32("x").fixed([3]), Feature::float32([1.0]), "column x: wanted 3 float values, found 1"),
        (
            Column::new("x", Dtype::I64, Shape::Ragged(vec![2])),
            Feature::int64([1]),
            "wanted a multiple of 2 int64 values, found 1",
        ),
        (Column::new("x", Dtype::U8, Shape::Scalar), Feature::int64([256]), "column x: 256 does not fit into u8"),
        (Column::new("x", Dtype::Bool, Shape::Ragged(vec![])), Feature::int64([0, 2]), "2 does not fit into bool"),
        (
            Column::new("x", Dtype::F16, Shape::Scalar),
            Feature::float32([70_000.0]),
            "column x: 70000 does not fit into f16; declare it as float32(\"x\")",
        ),
        (Column::new("x", Dtype::F16, Shape::Ragged(vec![])), Feature::float32([1.0, -7e4]), "-70000 does not fit"),
        (bytes("x").raw(Dtype::U8, [2, 2]), Feature::bytes(["abc"]), "wanted 4 bytes (x: u8[2, 2]), found 3"),
        (int64("x"), Feature::default(), "column x: no value in this record"),
        (int64("x"), Feature::int64([]), "column x: no value in this record"),
        (int64("x").ragged(), Feature::default(), "column x: no value in this record"),
    ] {
        let error = only(column, feature).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn missing_features_become_the_default_or_an_error_that_lists_the_names() {
    let record = || vec![Example::new().with_int64("there", [1]).with_int64("b", [2]).encode()];
    let long = b"a default of more than twelve bytes".to_vec();
    for (column, expected) in [
        (int64("x").or(Missing::Int(-5)), "[-5]"),
        (int64("x").optional(), "[0]"),
        (Column::new("x", Dtype::U8, Shape::Scalar).or(Missing::Int(9)), "[9]"),
        (float32("x").or(Missing::Int(2)), "[2.0]"),
        (float32("x").fixed([2]).or(Missing::Float(0.5)), "[0.5, 0.5]"),
        (int64("x").ragged().or(Missing::Int(3)), "[]"),
        (bytes("x").or(Missing::Bytes(b"n/a".to_vec())), "[\"n/a\"]"),
        (bytes("x").or(Missing::Bytes(long)), "[\"a default of more than twelve bytes\"]"),
        (bytes("x").raw(Dtype::I16, [2]).or(Missing::Int(258)), r#"["\\x02\\x01\\x02\\x01"]"#),
        (bytes("x").raw(Dtype::U8, [20]).optional(), &format!("[\"{}\"]", r"\\x00".repeat(20))),
    ] {
        let parsed = parse(std::slice::from_ref(&column), Kind::Example, &record());
        assert!(parsed.bad.is_empty(), "{:?}", parsed.bad);
        assert_eq!(row(parsed.rows.column(0), 0), expected, "{column}");
    }
    let parsed = parse(&[int64("there"), int64("x")], Kind::Example, &record());
    let error = parsed.bad[0].1.to_string();
    assert!(error.starts_with("column x: no column x; these exist: b, there; "), "{error}");
}

#[test]
fn other_messages_are_never_taken_for_empty_examples() {
    let sequence = SequenceExample::new().with_steps("s", [Feature::int64([1])]).encode();
    for (record, words) in [
        (vec![0x10, 5, 0x1a, 1, b'x'], "the record has none at all"),
        (vec![0x08, 5], "the record has none at all"),
        (sequence, "read it as one"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF".to_vec(), "no tf.Example"),
        (vec![0x0a, 100, 1], "no tf.Example: a field reaches beyond the end"),
        // Field 1 holds a map of another message: its values have fields that features do not have.
        (vec![0x0a, 9, 0x0a, 7, 0x0a, 1, b'k', 0x12, 2, 0x28, 1], "these exist: k"),
    ] {
        let parsed =
            parse(&[int64("x").optional(), bytes("y").optional()], Kind::Example, std::slice::from_ref(&record));
        assert!(parsed.bad[0].1.to_string().contains(words), "{record:?}: {}", parsed.bad[0].1);
        assert_eq!(parsed.bad[0].1.kind(), ErrorKind::Schema);
    }
    // Examples without a wanted feature, or without any, are examples.
    for record in [Example::new().with_int64("other", [1]).encode(), Vec::new(), vec![0x0a, 0]] {
        assert!(parse(&[int64("x").optional()], Kind::Example, &[record]).bad.is_empty());
    }
}

#[test]
fn impossible_columns_are_refused_all_at_once() {
    let columns = [
        int64("a").in_sequence(),
        float32("b").fixed([0]),
        int64("c").fixed([usize::MAX, 2]),
        bytes("d").raw(Dtype::U8, [2]).ragged(),
        Column::new("e", Dtype::U8, Shape::Scalar).or(Missing::Int(300)),
        bytes("f").or(Missing::Int(0)),
        int64("a"),
    ];
    let error = Parser::new(&columns, Kind::Example).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    for words in [
        "a: is a feature list",
        "b: shape [0]",
        "c: shape",
        "d: a raw",
        "e: Int(300)",
        "f: Int(0)",
        "a: is named twice",
    ] {
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    assert!(Parser::new(&[], Kind::Example).is_err());
}

#[test]
fn rows_that_were_bad_before_keep_their_errors_and_others_their_place() {
    let records: Vec<_> = (0..600).map(|i| Example::new().with_int64("x", [i]).encode()).collect();
    let (buffer, mut ranges) = join(&records);
    ranges[3] = 0..0;
    ranges[7] = 5..usize::MAX;
    ranges[400] = 0..1;
    let known = vec![(3, Error::corrupt("framing said so"))];
    let parsed = Parser::new(&[int64("x")], Kind::Example).unwrap().parse_except(&buffer, &ranges, known);
    assert_eq!(parsed.bad.iter().map(|bad| bad.0).collect::<Vec<_>>(), [3, 7, 400]);
    assert_eq!(parsed.bad[0].1.to_string(), "framing said so");
    assert_eq!(row(parsed.rows.column(0), 599), "[599]");
    assert_eq!(row(parsed.rows.column(0), 401), "[401]");
}

#[test]
fn long_byte_strings_are_views_into_the_parsed_buffer() {
    let image = vec![7; 1000];
    let (buffer, ranges) = join(&[Example::new().with_bytes("image", [&image]).encode()]);
    let parsed = Parser::new(&[bytes("image")], Kind::Example).unwrap().parse(&buffer, &ranges);
    let data = parsed.rows.column(0).as_binary_view().value(0);
    assert_eq!(data, image);
    assert!(buffer.as_ptr_range().contains(&data.as_ptr()));
}

#[test]
fn buffers_beyond_the_reach_of_a_view_become_several_blocks() {
    let text = |i: usize| format!("record number {i} holds this");
    let records: Vec<_> = (0..300).map(|i| Example::new().with_bytes("x", [text(i)]).encode()).collect();
    let (buffer, mut ranges) = join(&records);
    ranges.swap(10, 250);
    let mut parser = Parser::new(&[bytes("x").or(Missing::Bytes(vec![b'-'; 20]))], Kind::Example).unwrap();
    parser.block_bytes = 1000;
    let parsed = parser.parse(&buffer, &ranges);
    assert!(parsed.bad.is_empty());
    let array = parsed.rows.column(0).as_binary_view();
    assert!(array.data_buffers().len() > 10);
    for row in 0..300 {
        let i = if row == 10 {
            250
        } else if row == 250 {
            10
        } else {
            row
        };
        assert_eq!(array.value(row), text(i).as_bytes());
    }
    parser.block_bytes = 20;
    assert_eq!(parser.parse(&buffer, &ranges).bad.len(), 300);
}

#[test]
fn every_prefix_and_flipped_bit_of_a_record_gives_an_error_or_a_row() {
    let sequence = SequenceExample::new()
        .with_context("i", Feature::int64([1, 1 << 50]))
        .with_context("b", Feature::bytes(["a string of some length", "x"]))
        .with_steps("s", [Feature::float32([1.0, 2.0]), Feature::float32([3.0, 4.0])]);
    let columns = [int64("i").ragged(), bytes("b").fixed([2]), float32("s").fixed([2]).in_sequence()];
    let record = sequence.encode();
    let mut records: Vec<_> = (0..record.len()).map(|cut| record[..cut].to_vec()).collect();
    for bit in 0..record.len() * 8 {
        let mut damaged = record.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        records.push(damaged);
    }
    let parsed = parse(&columns, Kind::SequenceExample, &records);
    assert!(parsed.bad.len() > record.len());
    parsed.rows.columns().iter().for_each(|column| column.to_data().validate_full().unwrap());
    parse(&columns[..2], Kind::Example, &records);
}

#[test]
fn feature_lists_have_a_row_a_step() {
    let records = [
        SequenceExample::new()
            .with_context("id", Feature::int64([1]))
            .with_steps("xy", [Feature::float32([1.0, 2.0]), Feature::float32([3.0, 4.0])])
            .with_steps("a", [Feature::int64([5]), Feature::default(), Feature::int64([])])
            .encode(),
        SequenceExample::new().with_context("id", Feature::int64([2])).with_steps("xy", []).encode(),
        SequenceExample::new().with_context("id", Feature::int64([3])).encode(),
        SequenceExample::new()
            .with_context("id", Feature::int64([4]))
            .with_steps("xy", [Feature::float32([1.0])])
            .encode(),
    ];
    let columns = [int64("id"), float32("xy").fixed([2]).in_sequence(), int64("a").in_sequence().or(Missing::Int(-1))];
    let parsed = parse(&columns, Kind::SequenceExample, &records);
    let rows = |i: usize| (row(parsed.rows.column(1), i), row(parsed.rows.column(2), i));
    assert_eq!(rows(0), ("[1.0, 2.0, 3.0, 4.0]".into(), "[5, -1, -1]".into()));
    assert_eq!(rows(1), ("[]".into(), "[]".into()));
    assert_eq!(parsed.rows.column(1).as_list::<i32>().value_length(0), 2);
    let bad: Vec<_> = parsed.bad.iter().map(|(row, error)| (*row, error.to_string())).collect();
    assert!(bad[0].0 == 2 && bad[0].1.contains("no column xy; these exist: id"), "{bad:?}");
    assert!(bad[1].0 == 3 && bad[1].1.contains("wanted 2 float values, found 1 (step 0)"), "{bad:?}");
}

/// The records of a golden shard.
fn golden(stored: &[u8]) -> Vec<Vec<u8>> {
    let mut decoder = Decoder::new(Compression::detect(stored));
    let (mut plain, mut framed) = (Vec::new(), Framed::default());
    assert!(!decoder.decode(stored, &mut plain, 1 << 20).unwrap().more);
    decoder.finish().unwrap();
    Framer::new(Check::Full).frame(&plain, Some(0), &mut framed).unwrap();
    assert!(framed.bad.is_empty());
    framed.payloads.into_iter().map(|range| plain[range].to_vec()).collect()
}

#[test]
fn examples_that_tensorflow_wrote_are_inferred_and_parsed() {
    for stored in [
        &include_bytes!("../../../../tests/data/examples.tfrecord")[..],
        include_bytes!("../../../../tests/data/examples.gzip.tfrecord"),
        include_bytes!("../../../../tests/data/examples.zlib.tfrecord"),
    ] {
        let records = golden(stored);
        let (kind, columns) = infer(records.iter().map(Vec::as_slice)).unwrap();
        let expected = [
            float32("boxes").ragged(),
            bytes("image"),
            int64("label"),
            float32("score"),
            int64("sometimes").optional(),
            int64("tokens").fixed([3]),
            bytes("words").ragged(),
        ];
        assert_eq!((kind, &columns[..]), (Kind::Example, &expected[..]));
        let parsed = parse(&columns, kind, &records);
        assert!(parsed.bad.is_empty(), "{:?}", parsed.bad);
        for i in 0..6usize {
            let expected = [
                format!("{:?}", (0..i % 4).map(|j| j as f32 * 0.25).collect::<Vec<_>>()),
                format!("{:?}", [vec![i as u8; 10 + i].escape_ascii().to_string()]),
                format!("[{}]", i as i64 - 2),
                format!("{:?}", [i as f32 * 0.5]),
                format!("[{}]", if i % 2 == 0 { 7 * i } else { 0 }),
                format!("{:?}", [i as i64, 300 * i as i64, -((i as i64) << 40)]),
                format!("{:?}", (0..i % 3).map(|j| format!("word {j}")).collect::<Vec<_>>()),
            ];
            let found: Vec<_> = parsed.rows.columns().iter().map(|column| row(column, i)).collect();
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn sequences_that_tensorflow_wrote_are_inferred_and_parsed() {
    let records = golden(include_bytes!("../../../../tests/data/sequences.tfrecord"));
    let (kind, columns) = infer(records.iter().map(Vec::as_slice)).unwrap();
    assert_eq!(kind, Kind::SequenceExample);
    let expected = [
        int64("action").in_sequence(),
        bytes("frame").in_sequence(),
        int64("id"),
        float32("speed").fixed([2]).in_sequence(),
        bytes("title"),
    ];
    assert_eq!(columns, expected);
    let parsed = parse(&columns, kind, &records);
    assert!(parsed.bad.is_empty(), "{:?}", parsed.bad);
    for i in 0..4usize {
        let expected = [
            format!("{:?}", (0..=i).map(|t| 10 * t).collect::<Vec<_>>()),
            format!("{:?}", (0..i).map(|t| format!("frame {t} of sequence {i}")).collect::<Vec<_>>()),
            format!("[{}]", 100 + i),
            format!("{:?}", (0..=i).flat_map(|t| [t as f32, 0.0 - t as f32]).collect::<Vec<_>>()),
            format!("[\"sequence number {i}\"]"),
        ];
        let found: Vec<_> = parsed.rows.columns().iter().map(|column| row(column, i)).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn messages_are_written_byte_for_byte_like_tensorflow() {
    let records = golden(include_bytes!("../../../../tests/data/examples.tfrecord"));
    for (i, record) in records.iter().enumerate() {
        let n = i as i64;
        let mut example = Example::new()
            .with_int64("label", [n - 2])
            .with_float32("score", [i as f32 * 0.5])
            .with_bytes("image", [vec![i as u8; 10 + i]])
            .with_int64("tokens", [n, 300 * n, -(n << 40)])
            .with_float32("boxes", (0..i % 4).map(|j| j as f32 * 0.25))
            .with_bytes("words", (0..i % 3).map(|j| format!("word {j}")))
            .with("empty", Feature::default());
        if i % 2 == 0 {
            example = example.with_int64("sometimes", [7 * n]);
        }
        assert_eq!(example.encode(), *record);
    }
    let records = golden(include_bytes!("../../../../tests/data/sequences.tfrecord"));
    for (i, record) in records.iter().enumerate() {
        let sequence = SequenceExample::new()
            .with_context("id", Feature::int64([100 + i as i64]))
            .with_context("title", Feature::bytes([format!("sequence number {i}")]))
            .with_steps("frame", (0..i).map(|t| Feature::bytes([format!("frame {t} of sequence {i}")])))
            .with_steps("speed", (0..=i).map(|t| Feature::float32([t as f32, 0.0 - t as f32])))
            .with_steps("action", (0..=i).map(|t| Feature::int64([10 * t as i64])));
        assert_eq!(sequence.encode(), *record);
        assert_eq!(SequenceExample::from_bytes(record).unwrap(), sequence);
    }
}

// Random messages in random encodings, held against the generic view.

#[derive(Clone, Debug)]
enum Piece {
    Ints(Vec<i64>, bool),
    Floats(Vec<f32>, bool),
    Strings(Vec<Vec<u8>>),
    Unknown,
}

/// How an entry of the map is written.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Usual,
    ValueFirst,
    Split,
    Unknown,
    NoValue,
    NoKey,
}

fn field(tag: u32, value: &[u8], out: &mut Vec<u8>) {
    encode_key(tag, prost::encoding::WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// A field 9 that nobody knows: a group with a varint in it.
const GROUP: [u8; 4] = [0x4b, 0x08, 0x05, 0x4c];

impl Piece {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut list = Vec::new();
        match self {
            Piece::Ints(values, true) => {
                let mut packed = Vec::new();
                values.iter().for_each(|value| encode_varint(*value as u64, &mut packed));
                field(1, &packed, &mut list);
            }
            Piece::Ints(values, false) => values.iter().for_each(|value| {
                list.push(0x08);
                encode_varint(*value as u64, &mut list);
            }),
            Piece::Floats(values, true) => {
                let packed: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                field(1, &packed, &mut list);
            }
            Piece::Floats(values, false) => values.iter().for_each(|value| {
                list.push(0x0d);
                list.extend(value.to_le_bytes());
            }),
            Piece::Strings(values) => values.iter().for_each(|value| field(1, value, &mut list)),
            Piece::Unknown => return out.extend(GROUP),
        }
        let tag = if let Piece::Ints(..) = self { 3 } else { 1 + u32::from(matches!(self, Piece::Floats(..))) };
        field(tag, &list, out);
    }
}

fn entry(name: &str, pieces: &[Piece], how: Entry, out: &mut Vec<u8>) {
    let mut value = Vec::new();
    pieces.iter().for_each(|piece| piece.encode(&mut value));
    let mut entry = Vec::new();
    match how {
        Entry::Usual => {
            field(1, name.as_bytes(), &mut entry);
            field(2, &value, &mut entry);
        }
        Entry::ValueFirst => {
            field(2, &value, &mut entry);
            field(1, name.as_bytes(), &mut entry);
        }
        Entry::Split => {
            field(1, name.as_bytes(), &mut entry);
            for piece in pieces {
                let mut value = Vec::new();
                piece.encode(&mut value);
                field(2, &value, &mut entry);
            }
        }
        Entry::Unknown => {
            entry.extend(GROUP);
            field(1, name.as_bytes(), &mut entry);
            field(2, &value, &mut entry);
            field(7, b"?", &mut entry);
        }
        Entry::NoValue => field(1, name.as_bytes(), &mut entry),
        Entry::NoKey => field(2, &value, &mut entry),
    }
    field(1, &entry, out);
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let int = prop_oneof![0i64..3, any::<i64>()];
    let piece = prop_oneof![
        3 => (proptest::collection::vec(int, 0..3), any::<bool>()).prop_map(|(values, packed)| Piece::Ints(values, packed)),
        2 => (proptest::collection::vec(-9f32..9.0, 0..3), any::<bool>()).prop_map(|(values, packed)| Piece::Floats(values, packed)),
        2 => proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..3).prop_map(Piece::Strings),
        1 => Just(Piece::Unknown),
    ];
    proptest::collection::vec(piece, 0..3)
}

const NAMES: [&str; 8] = ["label", "floats", "string", "pair", "strings", "small", "unwanted", ""];

fn record() -> impl Strategy<Value = Vec<u8>> {
    let how = prop_oneof![
        6 => Just(Entry::Usual),
        1 => Just(Entry::ValueFirst),
        1 => Just(Entry::Split),
        1 => Just(Entry::Unknown),
        1 => Just(Entry::NoValue),
        1 => Just(Entry::NoKey),
    ];
    let entries = proptest::collection::vec((0..NAMES.len(), pieces(), how), 0..10);
    // A first entry that is good makes most rows good in their required column.
    (any::<bool>(), entries, 0usize..10, any::<bool>()).prop_map(|(start, entries, cut, unknown)| {
        let mut maps = [Vec::new(), Vec::new()];
        if start {
            entry("label", &[Piece::Ints(vec![5], true)], Entry::Usual, &mut maps[0]);
        }
        for (i, (name, pieces, how)) in entries.iter().enumerate() {
            entry(NAMES[*name], pieces, *how, &mut maps[usize::from(i >= cut)]);
        }
        let mut record = Vec::new();
        field(1, &maps[0], &mut record);
        if unknown {
            record.extend(GROUP);
        }
        field(1, &maps[1], &mut record);
        record
    })
}

/// What a column holds of a feature in the generic view, by its documentation.
fn model(column: &Column, feature: Option<&Feature>) -> Result<String, ()> {
    let ragged = matches!(column.shape(), Shape::Ragged(_));
    let feature = feature.filter(|f| f.kind.is_some());
    let right_kind = feature.is_none_or(|f| match column.dtype() {
        Dtype::Bytes => f.as_bytes().is_some(),
        Dtype::F32 => f.as_float32().is_some(),
        _ => f.as_int64().is_some(),
    });
    if !right_kind {
        return Err(());
    }
    let Some(feature) = feature.filter(|f| ragged || f.num_values() > 0) else {
        let n = column.shape().elements().unwrap_or(0);
        return match column.missing() {
            Missing::Error => Err(()),
            Missing::Int(v) => Ok(format!("{:?}", vec![*v; n])),
            Missing::Float(v) => Ok(format!("{:?}", vec![*v as f32; n])),
            Missing::Bytes(v) => Ok(format!("{:?}", vec![v.escape_ascii().to_string(); n])),
        };
    };
    if column.shape().elements().is_some_and(|n| n != feature.num_values()) {
        return Err(());
    }
    match column.dtype() {
        Dtype::Bytes => {
            let strings = feature.as_bytes().unwrap().iter();
            Ok(format!("{:?}", strings.map(|s| s.escape_ascii().to_string()).collect::<Vec<_>>()))
        }
        Dtype::F32 => Ok(format!("{:?}", feature.as_float32().unwrap())),
        Dtype::U8 if feature.as_int64().unwrap().iter().any(|v| !(0..256).contains(v)) => Err(()),
        _ => Ok(format!("{:?}", feature.as_int64().unwrap())),
    }
}

fn columns() -> Vec<Column> {
    vec![
        int64("label"),
        float32("floats").ragged().optional(),
        bytes("string").or(Missing::Bytes(b"a default of some length".to_vec())),
        int64("pair").fixed([2]).optional(),
        bytes("strings").ragged().optional(),
        Column::new("small", Dtype::U8, Shape::Scalar).or(Missing::Int(7)),
        int64("").ragged().optional(),
    ]
}

proptest! {
    #[test]
    fn columns_agree_with_the_generic_view(records in proptest::collection::vec(record(), 1..20)) {
        let columns = columns();
        let parsed = parse(&columns, Kind::Example, &records);
        for (i, record) in records.iter().enumerate() {
            let example = Example::decode(&record[..]).unwrap();
            let expected: Result<Vec<_>, ()> = columns.iter().map(|c| model(c, example.get(c.name()))).collect();
            let bad = parsed.bad.iter().find(|(row, _)| *row == i);
            match expected {
                Err(()) => prop_assert!(bad.is_some(), "row {i} of {example:?}"),
                Ok(expected) => {
                    prop_assert!(bad.is_none(), "{bad:?} in {example:?}");
                    let found: Vec<_> = parsed.rows.columns().iter().map(|column| row(column, i)).collect();
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn feature_lists_agree_with_the_generic_view(
        lists in proptest::collection::vec(proptest::collection::vec((0..2usize, pieces()), 0..4), 1..10),
        split: bool,
    ) {
        let columns = [int64("a").in_sequence().or(Missing::Int(-3)), bytes("b").in_sequence().optional()];
        let mut records = Vec::new();
        for steps in &lists {
            let mut maps = Vec::new();
            for (number, name) in ["a", "b"].iter().enumerate() {
                let mut values = vec![Vec::new(); 2];
                for (i, (_, pieces)) in steps.iter().enumerate().filter(|(_, (of, _))| *of == number) {
                    let mut feature = Vec::new();
                    pieces.iter().for_each(|piece| piece.encode(&mut feature));
                    field(1, &feature, &mut values[usize::from(split && i % 2 == 1)]);
                }
                let mut entry = Vec::new();
                field(1, name.as_bytes(), &mut entry);
                values[..1 + usize::from(split)].iter().for_each(|value| field(2, value, &mut entry));
                field(1, &entry, &mut maps);
            }
            let mut record = Vec::new();
            field(2, &maps, &mut record);
            records.push(record);
        }
        let parsed = parse(&columns, Kind::SequenceExample, &records);
        for (i, record) in records.iter().enumerate() {
            let sequence = SequenceExample::decode(&record[..]).unwrap();
            let lists = sequence.feature_lists.unwrap_or_default().feature_list;
            let expected: Result<Vec<_>, ()> = columns.iter().map(|column| {
                let scalar = Column::new("x", column.dtype(), Shape::Scalar).or(column.missing().clone());
                let steps: Result<Vec<_>, ()> = lists[&**column.name()].feature.iter().map(|f| model(&scalar, Some(f))).collect();
                Ok(format!("[{}]", steps?.iter().map(|s| &s[1..s.len() - 1]).collect::<Vec<_>>().join(", ")))
            }).collect();
            let bad = parsed.bad.iter().any(|(row, _)| *row == i);
            prop_assert_eq!(bad, expected.is_err());
            if let Ok(expected) = expected {
                let found: Vec<_> = parsed.rows.columns().iter().map(|column| row(column, i)).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn any_bytes_end_in_rows_and_errors(records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..20)) {
        parse(&columns(), Kind::Example, &records);
        parse(&[int64("label").in_sequence(), bytes("x").optional()], Kind::SequenceExample, &records);
        let _ = infer(records.iter().map(Vec::as_slice));
    }
}
