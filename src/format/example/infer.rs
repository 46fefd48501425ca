//! Infers the columns of records that have no declared columns.

use std::collections::BTreeMap;

use super::cell::{BYTES, FLOAT, kind_name};
use super::parse::Kind;
use super::proto::{Example, Feature, SequenceExample, Values};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Shape};

/// What the records so far show about one name.
#[derive(Default)]
struct Seen {
    /// The kind, by its field number; 0 while every value has been missing.
    kind: u32,
    /// Records that hold the feature, in every step.
    records: usize,
    /// The fewest and the most values per record, or per step.
    counts: Option<(usize, usize)>,
    sequence: bool,
}

impl Seen {
    fn add(&mut self, name: &str, feature: &Feature) -> Result<bool> {
        let kind = match &feature.kind {
            None => return Ok(false),
            Some(Values::Bytes(_)) => BYTES,
            Some(Values::Float(_)) => FLOAT,
            Some(Values::Int64(_)) => super::cell::INT64,
        };
        if self.kind != 0 && self.kind != kind {
            let (first, second) = (kind_name(self.kind), kind_name(kind));
            return Err(Error::new(
                ErrorKind::Schema,
                format!("holds {first} values in some records, {second} in others"),
            )
            .column(name)
            .advice("name the columns to read, without this one: .columns([..])"));
        }
        self.kind = kind;
        let count = feature.num_values();
        let (fewest, most) = self.counts.unwrap_or((count, count));
        self.counts = Some((fewest.min(count), most.max(count)));
        Ok(true)
    }

    /// Returns the column, unless no record had a value.
    fn column(&self, name: &str, num_records: usize) -> Result<Option<Column>> {
        let dtype = match self.kind {
            0 => return Ok(None),
            BYTES => Dtype::Bytes,
            FLOAT => Dtype::F32,
            _ => Dtype::I64,
        };
        let column = Column::new(name, dtype, Shape::Scalar);
        let mut column = match self.counts {
            Some((1, 1)) => column,
            Some((fewest, most)) if fewest == most && fewest > 0 => column.fixed([fewest]),
            Some((fewest, most)) if self.sequence => {
                let message = format!("holds {fewest} to {most} values a step");
                return Err(Error::new(ErrorKind::Schema, message)
                    .column(name)
                    .advice("steps of different lengths are not supported: name the columns to read, .columns([..])"));
            }
            _ => column.ragged(),
        };
        if self.sequence {
            column = column.in_sequence();
        }
        Ok(Some(if self.records < num_records { column.optional() } else { column }))
    }
}

/// Reads a record of either kind: the context of a sequence is encoded like the features of an example.
///
/// # Errors
/// [`ErrorKind::Schema`] if it is of neither kind.
pub(crate) fn either(payload: &[u8]) -> Result<SequenceExample> {
    let record = SequenceExample::from_bytes(payload).or_else(|_| {
        let example = Example::from_bytes(payload)?;
        Ok(SequenceExample { context: example.features, feature_lists: None })
    })?;
    if record.context.is_none() && record.feature_lists.is_none() && !payload.is_empty() {
        return Err(Error::new(ErrorKind::Schema, "the record is another message than a tf.Example")
            .advice("read the records as bytes and decode them in a map"));
    }
    Ok(record)
}

/// Infers the kind and the columns of records from the first few of them (64 to 256 are enough).
///
/// A column is `bytes`, `f32` or `i64`. It is a scalar if every record has one value, fixed if every record has the same number of values, and ragged
/// otherwise. It is optional if a record, or a step, lacks it. Columns are sorted by name. A column without a value in any record is left out.
///
/// # Errors
/// [`ErrorKind::Schema`] if there are no records, if a record is neither a `tf.Example` nor a `tf.SequenceExample` (the error's place is its number),
/// if a name holds two kinds of value or is both in the context and among the feature lists, or if the steps of a feature list differ in length.
///
/// # Example
/// ```
/// use forebay::format::example::{Example, Kind, infer};
/// use forebay::{bytes, float32, int64};
///
/// let records = [
///     Example::new().with_int64("label", [3]).with_bytes("name", ["a"]).with_float32("box", [0.5, 1.0]).encode(),
///     Example::new().with_int64("label", [4]).with_float32("box", [0.5]).encode(),
/// ];
/// let (kind, columns) = infer(records.iter().map(Vec::as_slice))?;
/// assert_eq!(kind, Kind::Example);
/// assert_eq!(columns, [float32("box").ragged(), int64("label"), bytes("name").optional()]);
/// # Ok::<(), forebay::Error>(())
/// ```
pub fn infer<'a>(payloads: impl IntoIterator<Item = &'a [u8]>) -> Result<(Kind, Vec<Column>)> {
    let (mut context, mut lists) = (BTreeMap::<String, Seen>::new(), BTreeMap::<String, Seen>::new());
    let (mut num_records, mut kind) = (0, Kind::Example);
    for payload in payloads {
        let at = |error: Error| error.record(num_records as u64);
        let record = either(payload).map_err(at)?;
        for (name, feature) in record.context.into_iter().flat_map(|features| features.feature) {
            let seen = context.entry(name.clone()).or_default();
            seen.records += usize::from(seen.add(&name, &feature).map_err(at)?);
        }
        if record.feature_lists.is_some() {
            kind = Kind::SequenceExample;
        }
        for (name, list) in record.feature_lists.into_iter().flat_map(|lists| lists.feature_list) {
            let seen = lists.entry(name.clone()).or_default();
            seen.sequence = true;
            let mut complete = true;
            for step in &list.feature {
                complete &= seen.add(&name, step).map_err(at)?;
            }
            seen.records += usize::from(complete);
        }
        num_records += 1;
    }
    if let Some(name) = lists.keys().find(|name| context.contains_key(*name)) {
        return Err(Error::new(ErrorKind::Schema, "is a feature of the context and a feature list too")
            .column(name.as_str())
            .advice("name the columns to read, with one of the two: .columns([..])"));
    }
    let mut columns = Vec::new();
    for (name, seen) in context.iter().chain(&lists) {
        columns.extend(seen.column(name, num_records)?);
    }
    columns.sort_by(|a, b| a.name().cmp(b.name()));
    if columns.is_empty() {
        return Err(Error::new(
            ErrorKind::Schema,
            format!("the first {num_records} records have no features with values"),
        )
        .advice("name the columns: .columns([..]), or read the records as bytes"));
    }
    Ok((kind, columns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bytes, float32, int64};

    fn infer_all(records: &[Vec<u8>]) -> Result<(Kind, Vec<Column>)> {
        infer(records.iter().map(Vec::as_slice))
    }

    #[test]
    fn sequences_are_told_from_examples() {
        let steps = |n: usize| vec![Feature::float32([1.0, 2.0]); n];
        let records = [
            SequenceExample::new().with_context("id", Feature::int64([1])).with_steps("xy", steps(3)).encode(),
            SequenceExample::new().with_context("id", Feature::int64([2])).with_steps("xy", steps(0)).encode(),
        ];
        let (kind, columns) = infer_all(&records).unwrap();
        assert_eq!(kind, Kind::SequenceExample);
        assert_eq!(columns, [int64("id"), float32("xy").fixed([2]).in_sequence()]);
    }

    #[test]
    fn records_that_cannot_be_described_are_refused_with_the_way_out() {
        let example = |feature: Feature| Example::new().with("a", feature).encode();
        let steps = [Feature::int64([1]), Feature::int64([1, 2])];
        let both = SequenceExample::new().with_context("a", Feature::int64([1])).with_steps("a", steps[..1].to_vec());
        for (records, words) in [
            (vec![], "first 0 records have no features"),
            (vec![b"\xff\xd8\xff\xe0 a photograph".to_vec()], "record 0: the record is no tf.Example"),
            (vec![vec![0x1a, 1, b'x']], "another message"),
            (vec![example(Feature::default())], "no features with values"),
            (vec![example(Feature::int64([1])), example(Feature::float32([1.0]))], "record 1, column a: holds int64"),
            (vec![SequenceExample::new().with_steps("s", steps.clone()).encode()], "holds 1 to 2 values a step"),
            (vec![both.encode()], "a feature list too"),
        ] {
            let error = infer_all(&records).unwrap_err();
            assert!(error.to_string().contains(words) && error.kind() == ErrorKind::Schema, "{error}");
        }
    }

    #[test]
    fn a_step_without_a_value_makes_a_feature_list_optional() {
        let steps = [Feature::int64([1]), Feature::default()];
        let record = SequenceExample::new().with_steps("s", steps).encode();
        let (kind, columns) = infer_all(std::slice::from_ref(&record)).unwrap();
        assert_eq!(columns, [int64("s").in_sequence().optional()]);
        let parser = super::super::Parser::new(&columns, kind).unwrap();
        let whole = 0..record.len();
        assert!(parser.parse(&record.into(), &[whole]).bad.is_empty());
    }

    #[test]
    fn empty_lists_make_a_column_ragged_and_missing_kinds_optional() {
        let records = [
            Example::new().with_int64("n", []).with("k", Feature::default()).with_bytes("b", ["x", "y"]).encode(),
            Example::new().with_int64("n", [1]).with_int64("k", [1]).with_bytes("b", ["z", "w"]).encode(),
        ];
        let columns = infer_all(&records).unwrap().1;
        assert_eq!(columns, [bytes("b").fixed([2]), int64("k").optional(), int64("n").ragged()]);
    }
}
