//! Tests JSON Lines and CSV, plain and compressed, against plain readers.

use bytes::Bytes;
use forebay::source::check::Asked;
use forebay::{Column, Csv, Dtype, Format, JsonLines, Shape, bytes, int64};

use crate::gzip;
use crate::shard::{self, MAX_BYTES, Value, Values};

/// The memory that reading may take in addition to the text, each byte of which can be a list or an object of its own.
const MOST_BYTES: usize = 8 * MAX_BYTES;

/// Text is refused, or has the rows that a plain reader finds, in bounded memory. Each row is bad, or has the values that the plain reader finds
/// where it knows them. The rows are the same however the text is cut into blocks and compressed.
///
/// Byte 0: the format (bits 0 and 1: JSON, CSV, CSV without header, CSV with semicolons and without header), whether columns are stated (bit 2),
/// whether the rest is text or stored unchanged (bit 3), and how else text is read (bits 4 and 5: in small blocks, gzip, zstd, gzip in two).
pub fn text(data: &[u8]) {
    let ([mode], rest) = crate::split::<1>(data);
    let format = || -> Format {
        match mode & 3 {
            0 => JsonLines::new().into(),
            1 => Csv::new().into(),
            2 => Csv::new().without_header().into(),
            _ => Csv::new().without_header().delimiter(b';').into(),
        }
    };
    let stated = if mode & 4 == 0 { None } else { Some(columns(mode & 3)) };
    let asked = |blocks| Asked { columns: stated.clone(), blocks, ..shard::all() };
    // What is stored as it is decompresses to as much as may be held, of which each byte can be a list or an object.
    let most = if mode & 8 != 0 { 12 * MOST_BYTES } else { MOST_BYTES + 512 * rest.len() };
    let open = |stored: &[u8], blocks| {
        let source = shard::open(Bytes::copy_from_slice(stored), format(), asked(blocks), most)?;
        let rows = shard::rows(&*source, most);
        Ok::<_, forebay::Error>((source.columns().to_vec(), rows))
    };
    let plain = open(rest, 1);
    if mode & 8 != 0 || rest.starts_with(b"\x1f\x8b\x08") || rest.starts_with(b"\x28\xb5\x2f\xfd") {
        return;
    }
    let other = match mode >> 4 & 3 {
        0 => open(rest, 1 << 20),
        1 => open(&gzip(rest), 1),
        2 => open(&zstd::encode_all(rest, 1).expect("memory"), 1),
        _ => open(&[&gzip(&rest[..rest.len() / 2])[..], &gzip(&rest[rest.len() / 2..])].concat(), 1),
    };
    match (&plain, &other) {
        (Ok((columns, rows)), Ok((other_columns, other_rows))) => {
            assert_eq!(columns, other_columns);
            assert!(rows.is_none() || other_rows.is_none() || rows == other_rows, "{rows:?}, then {other_rows:?}");
        }
        (Err(a), Err(b)) => assert_eq!(a.kind(), b.kind()),
        _ => panic!("{:?}, then {:?}", plain.as_ref().map(drop), other.as_ref().map(drop)),
    }
    let Ok((columns, Some(rows))) = plain else { return };
    match mode & 3 {
        0 => against_json(rest, &columns, &rows),
        1 => against_csv(rest, b',', true, &columns, &rows),
        2 => against_csv(rest, b',', false, &columns, &rows),
        _ => against_csv(rest, b';', false, &columns, &rows),
    }
}

/// Returns columns with short names, so that a fuzzer finds them.
fn columns(format: u8) -> Vec<Column> {
    let of = |name: &str, dtype| Column::new(name, dtype, Shape::Scalar);
    match format {
        0 => vec![int64("a"), of("b", Dtype::F64), bytes("c"), int64("d").ragged(), of("o.e", Dtype::Bool)],
        1 => vec![bytes("a"), int64("b")],
        _ => vec![bytes("column_1"), int64("column_2"), of("column_3", Dtype::F64), of("column_4", Dtype::Bool)],
    }
}

type Rows = [Option<Vec<Values>>];

/// What a plain reader says about a value.
enum Says {
    Is(Values),
    /// The row is bad.
    Bad,
    /// The reader of the column decides whether this can be one of its values.
    Unknown,
}

fn hold(row: usize, column: &Column, found: Option<&Values>, says: &Says) {
    match (found, says) {
        (_, Says::Unknown) | (None, Says::Bad) => {}
        (Some(found), Says::Is(wanted)) if same(found, wanted) => {}
        (found, Says::Is(wanted)) => panic!("row {row}, {column}: {found:?}, where the text says {wanted:?}"),
        (Some(found), Says::Bad) => panic!("row {row}, {column}: {found:?}, where the text has no such value"),
    }
}

/// Compares values; the last digit of floats may differ.
fn same(found: &Values, wanted: &Values) -> bool {
    let close = |a: &Value, b: &Value| match (a, b) {
        (Value::Float(a), Value::Float(b)) => {
            let (a, b) = (f64::from_bits(*a), f64::from_bits(*b));
            a == b || (a - b).abs() <= 1e-6 * a.abs().max(b.abs()) || (a.is_infinite() && b.abs() > 1e37)
        }
        (a, b) => a == b,
    };
    found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| close(a, b))
}

fn against_json(text: &[u8], columns: &[Column], rows: &Rows) {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let first = line.iter().position(|byte| !blank(byte))?;
        Some(&line[first..])
    });
    let lines: Vec<&[u8]> = lines.collect();
    assert_eq!(rows.len(), lines.len(), "lines");
    for (at, (row, line)) in rows.iter().zip(lines).enumerate() {
        let value = match serde_json::from_slice::<serde_json::Value>(line) {
            Ok(value) => value,
            Err(_) => continue,
        };
        if !value.is_object() {
            assert!(row.is_none(), "row {at} is no object: {row:?}");
            continue;
        }
        let says: Vec<Says> = columns.iter().map(|column| json(&value, column)).collect();
        // A row is good where all of its values are, if that is known.
        let good = says.iter().all(|says| matches!(says, Says::Is(_)));
        match row {
            None => assert!(!good, "row {at} is bad: {}", line.escape_ascii()),
            Some(values) => {
                for ((column, found), says) in columns.iter().zip(values).zip(&says) {
                    hold(at, column, Some(found), says);
                }
            }
        }
    }
}

/// Returns the value at a column's dotted name: a key with those dots, or else nested keys.
fn json(line: &serde_json::Value, column: &Column) -> Says {
    use serde_json::Value as Json;
    let name = column.name().as_ref();
    let mut at = Some(line);
    if name.contains('.') && line.get(name).is_some() || name.is_empty() || name.split('.').any(str::is_empty) {
        return Says::Unknown;
    }
    for part in name.split('.') {
        at = match at {
            Some(Json::Object(fields)) => fields.get(part),
            // Names may hold dots in any of the objects.
            _ if name.matches('.').count() > 1 => return Says::Unknown,
            None | Some(Json::Null) => None,
            Some(_) => return Says::Unknown,
        };
    }
    if name.matches('.').count() > 1 {
        return Says::Unknown;
    }
    let value = match at {
        None | Some(Json::Null) => return Says::Bad,
        Some(value) => value,
    };
    let scalar = |value: &Json| match (column.dtype(), value) {
        (_, Json::Null) => Says::Bad,
        (Dtype::I64, Json::Number(number)) if number.is_i64() => match number.as_i64() {
            Some(value) => Says::Is(vec![Value::Int(value)]),
            None => Says::Unknown,
        },
        (Dtype::F64, Json::Number(number)) => match number.as_f64() {
            Some(value) => Says::Is(vec![Value::Float(value.to_bits())]),
            None => Says::Unknown,
        },
        (Dtype::Bool, Json::Bool(value)) => Says::Is(vec![Value::Bool(*value)]),
        (Dtype::Bytes, Json::String(value)) => Says::Is(vec![Value::Bytes(value.clone().into_bytes())]),
        _ => Says::Unknown,
    };
    match (column.shape(), value) {
        (Shape::Scalar, Json::Array(_)) => Says::Unknown,
        (Shape::Scalar, value) => scalar(value),
        (Shape::Ragged(inner), Json::Array(items)) if inner.is_empty() => {
            let mut all = Vec::new();
            for item in items {
                match scalar(item) {
                    Says::Is(mut value) => all.append(&mut value),
                    other => return other,
                }
            }
            Says::Is(all)
        }
        _ => Says::Unknown,
    }
}

fn against_csv(text: &[u8], delimiter: u8, header: bool, columns: &[Column], rows: &Rows) {
    let mut records = records(text, delimiter).into_iter();
    let names: Vec<Vec<u8>> = match (header, records.clone().next()) {
        (true, Some(_)) => records.next().flatten().unwrap_or_default(),
        (false, Some(first)) => {
            (1..=first.map_or(0, |first| first.len())).map(|number| format!("column_{number}").into_bytes()).collect()
        }
        (_, None) => Vec::new(),
    };
    assert_eq!(rows.len(), records.len(), "rows");
    let mut distinct = names.clone();
    distinct.sort();
    distinct.dedup();
    if distinct.len() != names.len() {
        return;
    }
    for (at, (row, fields)) in rows.iter().zip(records).enumerate() {
        let Some(fields) = fields else {
            assert!(row.is_none(), "row {at} does not end: {row:?}");
            continue;
        };
        if fields.len() != names.len() {
            assert!(row.is_none(), "row {at} has {} fields of {}: {row:?}", fields.len(), names.len());
            continue;
        }
        let says = columns.iter().map(|column| match names.iter().position(|name| name == column.name().as_bytes()) {
            Some(place) => csv(&fields[place], column),
            None => Says::Unknown,
        });
        let says: Vec<Says> = says.collect();
        // All of a row is text, also what no column is of.
        let good = says.iter().all(|says| matches!(says, Says::Is(_)))
            && fields.iter().all(|field| std::str::from_utf8(field).is_ok());
        match row {
            None => assert!(!good, "row {at} is bad: {fields:?}"),
            Some(values) => {
                for ((column, found), says) in columns.iter().zip(values).zip(&says) {
                    hold(at, column, Some(found), says);
                }
            }
        }
    }
}

fn csv(field: &[u8], column: &Column) -> Says {
    let Ok(text) = std::str::from_utf8(field) else { return Says::Bad };
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.len() <= 18;
    match column.dtype() {
        Dtype::Bytes => Says::Is(vec![Value::Bytes(field.to_vec())]),
        _ if field.is_empty() => Says::Bad,
        Dtype::I64 if is_plain => match text.parse() {
            Ok(value) => Says::Is(vec![Value::Int(value)]),
            Err(_) => Says::Unknown,
        },
        Dtype::F64 if is_plain => match text.parse::<f64>() {
            Ok(value) => Says::Is(vec![Value::Float(value.to_bits())]),
            Err(_) => Says::Unknown,
        },
        Dtype::Bool if text == "true" || text == "false" => Says::Is(vec![Value::Bool(text == "true")]),
        _ => Says::Unknown,
    }
}

/// Reads RFC 4180 byte by byte: fields between delimiters, within quotes if they begin with a quote; rows between line ends outside of quotes. A last
/// row whose quote is not closed does not count.
fn records(text: &[u8], delimiter: u8) -> Vec<Option<Vec<Vec<u8>>>> {
    let mut records: Vec<Option<Vec<Vec<u8>>>> = Vec::new();
    // Nor is a mark of the byte order.
    let mut rest = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    loop {
        // Blank lines are no rows.
        let blank = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let Some(first) = rest.iter().position(|byte| !blank(byte)) else { return records };
        rest = &rest[first..];
        let mut row = vec![Vec::new()];
        let mut quoted = rest[0] == b'"';
        let mut at = usize::from(quoted);
        while at < rest.len() {
            let byte = rest[at];
            let field = row.last_mut().expect("one at least");
            match byte {
                b'"' if quoted && rest.get(at + 1) == Some(&b'"') => {
                    field.push(b'"');
                    at += 1;
                }
                b'"' if quoted => quoted = false,
                byte if quoted => field.push(byte),
                b'\r' | b'\n' => break,
                byte if byte == delimiter => {
                    row.push(Vec::new());
                    if rest.get(at + 1) == Some(&b'"') {
                        quoted = true;
                        at += 1;
                    }
                }
                byte => field.push(byte),
            }
            at += 1;
        }
        records.push((!quoted).then_some(row));
        rest = &rest[at.min(rest.len())..];
    }
}
