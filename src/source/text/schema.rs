//! The columns of text: what its first rows look like, and the schema that Arrow reads it with.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::csv;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};
use arrow::error::ArrowError;
use arrow::json;
use serde_json::Value;

use super::INFER_ROWS;
use crate::error::{Error, ErrorKind, Result};
use crate::format::text::{RowFinder, Rows};
use crate::schema::{Column, Dtype, Missing, Shape, Unit};
use crate::source::carry::leaves;
use crate::source::open::Wanted;

/// The fields of the lines before the first bad one, which the loop will come to, or of all that are good where bad ones are left out.
pub(super) fn infer_json(sample: &[&[u8]], wanted: &Wanted) -> Result<Schema, (usize, Error)> {
    let mut values = Vec::new();
    for (row, line) in sample.iter().enumerate() {
        match serde_json::from_slice::<Value>(line) {
            Ok(mut value @ Value::Object(_)) => {
                as_integers(&mut value);
                values.push(value);
            }
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

/// Makes integers beyond 64 bits with a sign be among others: one of them would make its whole column one of floats, of which large ones are rounded.
fn as_integers(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_u64() && !number.is_i64() => *value = i64::MAX.into(),
        Value::Array(items) => items.iter_mut().for_each(as_integers),
        Value::Object(fields) => fields.values_mut().for_each(as_integers),
        _ => {}
    }
}

/// The fields of the rows before the first that is no text, which the loop will come to, or of all others where bad ones are left out.
pub(super) fn infer_csv(
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
        Ok((schema, _)) => Ok(with_codes(schema, &text[head.len()..], delimiter)),
        // A bad row among the first is for the loop to come to.
        Err(e) if header => names.map_err(|_| (0, Error::corrupt("the header cannot be read").because(e))),
        Err(e) => Err((0, Error::corrupt("the first rows cannot be read").because(e))),
    }
}

/// The schema with columns of digits as text where one begins with a zero: as numbers, codes such as `00501` would lose it.
fn with_codes(schema: Schema, rows: &[u8], delimiter: u8) -> Schema {
    let is_int: Vec<bool> = schema.fields().iter().map(|field| *field.data_type() == DataType::Int64).collect();
    let mut finder = RowFinder::within(Rows::Csv { delimiter });
    finder.feed(rows);
    let starts: Vec<usize> = finder.starts().iter().map(|&start| start as usize).collect();
    let ends = starts.iter().skip(1).copied().chain([rows.len()]);
    let mut is_code = vec![false; is_int.len()];
    for (start, end) in starts.iter().zip(ends) {
        codes(&rows[*start..end], delimiter, &is_int).for_each(|field| is_code[field] = true);
    }
    let field = |(field, is_code): (&FieldRef, bool)| match is_code {
        true => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8)),
        false => field.clone(),
    };
    Schema::new(schema.fields().iter().zip(is_code).map(field).collect::<Fields>())
}

/// Of the chosen fields of a row those that begin with a zero before other digits.
pub(super) fn codes<'a>(row: &'a [u8], delimiter: u8, chosen: &'a [bool]) -> impl Iterator<Item = usize> + 'a {
    let zeros = row.windows(2).enumerate().filter(|(_, pair)| pair[0] == b'0' && pair[1].is_ascii_digit());
    let fields = zeros.filter_map(move |(at, _)| {
        let before = row[..at].strip_suffix(b"-").unwrap_or(&row[..at]);
        let before = before.strip_suffix(b"\"").unwrap_or(before);
        let is_start = before.last().is_none_or(|byte| *byte == delimiter);
        is_start.then(|| field_at(row, at, delimiter))
    });
    fields.filter(|&field| chosen.get(field) == Some(&true))
}

/// Whether there may be [`codes`] in rows behind each other, the first aside: 0.26 ns a byte, where the exact look takes 0.81 and reading CSV 6 to 8.
pub(super) fn may_hold_codes(text: &[u8], delimiter: u8) -> bool {
    let starts = |byte: u8| (byte == delimiter) | (byte == b'"') | (byte == b'\n') | (byte == b'\r');
    let [second, third, fourth] = [1, 2, 3].map(|skipped| text.get(skipped..).unwrap_or_default());
    let bytes = text.iter().zip(second).zip(third).zip(fourth);
    // Without a way out of the loop, it is one for vectors.
    bytes.fold(false, |found, (((&a, &b), &c), &d)| {
        found | ((starts(b) | (b == b'-') & starts(a)) & (c == b'0') & d.is_ascii_digit())
    })
}

/// Whether a row is text.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a row with bytes that are no UTF-8. `fields` are those of the row, where they are known.
pub(super) fn is_utf8(row: &[u8], delimiter: u8, fields: &Fields) -> Result<()> {
    let Err(error) = std::str::from_utf8(row) else { return Ok(()) };
    let at = error.valid_up_to();
    let field = field_at(row, at, delimiter);
    let number = field + 1;
    let message = format!("byte {at} of the row, in field {number}, is 0x{:02x}, which is no UTF-8", row[at]);
    let error = Error::corrupt(message).advice("convert the shard to UTF-8: iconv -f latin1 -t utf-8");
    Err(match fields.get(field) {
        Some(field) => error.column(field.name().clone()),
        None => error,
    })
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
    if let Some(Unit::Time(time)) = column.unit() {
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
pub(super) fn json_schema(inferred: &Schema, columns: &[Column]) -> Schema {
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

/// The fields that are columns, or were seen in the first lines with other values than nulls.
pub(super) fn known_fields(inferred: &Schema, columns: &[Column]) -> HashSet<String> {
    fn has_values(data_type: &DataType) -> bool {
        match data_type {
            DataType::List(item) => has_values(item.data_type()),
            other => *other != DataType::Null,
        }
    }
    let seen = leaves(inferred).into_iter().filter(|leaf| has_values(leaf.field.data_type())).map(|leaf| leaf.name);
    seen.chain(columns.iter().map(|column| column.name().to_string())).collect()
}

/// The error of a line with a value in a field that is not known. What cannot be read is for the reader to say.
pub(super) fn stranger(line: &[u8], known: &HashSet<String>) -> Option<Error> {
    fn is_empty(value: &serde_json::Value) -> bool {
        value.is_null() || value.as_array().is_some_and(|elements| elements.iter().all(is_empty))
    }
    fn find(
        object: &serde_json::Map<String, serde_json::Value>,
        prefix: &str,
        known: &HashSet<String>,
    ) -> Option<String> {
        object.iter().find_map(|(key, value)| {
            let name = format!("{prefix}{key}");
            match value {
                serde_json::Value::Object(inner) => find(inner, &format!("{name}."), known),
                value if is_empty(value) => None,
                _ => (!known.contains(&name)).then_some(name),
            }
        })
    }
    let name = find(&serde_json::from_slice(line).ok()?, "", known)?;
    let error = Error::new(ErrorKind::Schema, "has a value here, and none in the first lines").column(name);
    Some(error.advice("name the columns to read: .columns([..])"))
}

/// CSV knows no difference between an empty string and none.
pub(super) fn or_empty(column: &Column) -> Column {
    match (column.dtype(), column.missing()) {
        (Dtype::Bytes, Missing::Error) if !column.is_raw() => column.clone().optional(),
        _ => column.clone(),
    }
}

/// The schema to read a shard of CSV with: all fields of its header, or of its first row, in their order.
pub(super) fn csv_schema(
    head: &[u8],
    delimiter: u8,
    header: bool,
    inferred: &Schema,
    columns: &[Column],
) -> Result<Schema> {
    if let Some(list) = columns.iter().find(|column| *column.shape() != Shape::Scalar && !column.is_raw()) {
        return Err(Error::new(ErrorKind::Schema, format!("a field of CSV holds one value, and this is {list}"))
            .column(list.name().clone())
            .advice("declare a scalar, or split the text in a .map()"));
    }
    let format = csv::reader::Format::default().with_header(header).with_delimiter(delimiter);
    is_utf8(head, delimiter, &Fields::empty())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_without_values_are_no_strangers() {
        let known = HashSet::from(["x".to_owned(), "in.side".to_owned()]);
        for line in [
            r#"{"x": 1, "in": {"side": 2}}"#,
            r#"{"y": null, "z": [null, [], [[null]]], "in": {"out": {}}}"#,
            "no JSON",
        ] {
            assert!(stranger(line.as_bytes(), &known).is_none(), "{line}");
        }
        for (line, name) in [(r#"{"y": 0}"#, "y"), (r#"{"z": [[], [false]]}"#, "z"), (r#"{"in": {"x": ""}}"#, "in.x")] {
            assert_eq!(stranger(line.as_bytes(), &known).unwrap().place().column.as_deref(), Some(name));
        }
    }
}
