//! The columns of records, with statistics over the records that were looked at.

pub(super) mod rows;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::format::example::{Feature, Kind, Parser, SequenceExample, Values, either};
use crate::schema::{Column, Dtype, Shape};
use crate::source::tfrecord::RECORD;
use crate::transform::image::{ImageFormat, probe};

/// The dtypes of features, in the order of their field numbers.
const DTYPES: [Dtype; 3] = [Dtype::Bytes, Dtype::F32, Dtype::I64];

/// What was seen in records. The results of several threads can be merged.
#[derive(Default)]
pub(super) struct Look {
    /// Records looked at.
    pub(super) records: u64,
    /// How many of them are `tf.Example`s or `tf.SequenceExample`s with features.
    pub(super) messages: u64,
    /// How many have no bytes at all: they may be messages without features, or anything else.
    empty: u64,
    sequences: u64,
    context: BTreeMap<String, Seen>,
    lists: BTreeMap<String, Seen>,
    /// The raw payloads.
    payloads: Seen,
}

/// What was seen under one name.
#[derive(Default)]
struct Seen {
    /// Records with a value.
    present: u64,
    /// Records (or steps) with each kind of value.
    kinds: [u64; 3],
    /// The fewest and the most values in a record; for a feature list, steps.
    len: Span,
    /// The same for the values in a step.
    step_len: Span,
    /// The shortest and the longest byte string.
    bytes: Span,
    strings: u64,
    formats: BTreeMap<&'static str, u64>,
}

/// The minimum and the maximum of something.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Span(Option<(u64, u64)>);

impl Span {
    fn add(&mut self, value: u64) {
        self.merge(Span(Some((value, value))));
    }

    fn merge(&mut self, other: Span) {
        self.0 = match (self.0, other.0) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
    }

    fn least(self) -> Option<u64> {
        self.0.map(|(least, _)| least)
    }

    fn most(self) -> Option<u64> {
        self.0.map(|(_, most)| most)
    }
}

/// The report on a column; part of the JSON output that is a contract.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct ColumnReport {
    pub(super) name: String,
    pub(super) dtype: String,
    /// In how many of the records looked at the column has a value.
    pub(super) present: u64,
    /// Values in a record; for a feature list, steps.
    pub(super) min_len: u64,
    pub(super) max_len: u64,
    /// Bytes of a byte string.
    pub(super) min_bytes: Option<u64>,
    pub(super) max_bytes: Option<u64>,
    /// The image format of most byte strings.
    pub(super) holds: Option<&'static str>,
    /// Whether it is a feature list.
    pub(super) sequence: bool,
    /// The declaration in Rust; `None` if no declaration accepts all of the records.
    pub(super) suggested: Option<String>,
}

/// Detects the format of an encoded image from its first bytes.
pub(super) fn image_format(value: &[u8]) -> Option<&'static str> {
    Some(match ImageFormat::of(value).ok()? {
        ImageFormat::Jpeg => "jpeg",
        ImageFormat::Png => "png",
        ImageFormat::WebP => "webp",
        ImageFormat::Gif => "gif",
        ImageFormat::Tiff => "tiff",
        // Two letters of text look like it too.
        ImageFormat::Bmp => probe(value).ok().map(|_| "bmp")?,
    })
}

impl Seen {
    fn feature(&mut self, feature: &Feature) -> bool {
        let kind = match &feature.kind {
            None => return false,
            Some(Values::Bytes(list)) => {
                list.value.iter().for_each(|value| self.string(value));
                0
            }
            Some(Values::Float(_)) => 1,
            Some(Values::Int64(_)) => 2,
        };
        self.kinds[kind] += 1;
        true
    }

    fn string(&mut self, value: &[u8]) {
        self.strings += 1;
        self.bytes.add(value.len() as u64);
        if let Some(format) = image_format(value) {
            *self.formats.entry(format).or_default() += 1;
        }
    }

    fn merge(&mut self, other: Seen) {
        self.present += other.present;
        self.strings += other.strings;
        (0..3).for_each(|kind| self.kinds[kind] += other.kinds[kind]);
        self.len.merge(other.len);
        self.step_len.merge(other.step_len);
        self.bytes.merge(other.bytes);
        for (format, count) in other.formats {
            *self.formats.entry(format).or_default() += count;
        }
    }

    /// Returns the dtype of most values; `None` if there are no values.
    fn dtype(&self) -> Option<Dtype> {
        let most = self.kinds.iter().copied().max().filter(|&most| most > 0)?;
        DTYPES.into_iter().zip(self.kinds).find(|(_, count)| *count == most).map(|(dtype, _)| dtype)
    }

    /// Returns the kinds of value, if there are several.
    fn mixture(&self) -> Option<String> {
        let kinds = DTYPES.iter().zip(self.kinds).filter(|(_, count)| *count > 0);
        let kinds: Vec<_> = kinds.map(|(dtype, count)| format!("{dtype} in {count}")).collect();
        (kinds.len() > 1).then(|| kinds.join(", "))
    }

    fn holds(&self) -> Option<&'static str> {
        let most = self.formats.iter().max_by_key(|(_, count)| **count)?;
        (*most.1 * 2 > self.strings).then_some(*most.0)
    }

    /// Returns the column that accepts all of the records, as inference would create it.
    fn column(&self, name: &str, sequence: bool, records: u64) -> Option<Column> {
        let column = Column::new(name, self.dtype()?, Shape::Scalar);
        let span = if sequence { self.step_len } else { self.len };
        let column = match span.0 {
            _ if self.mixture().is_some() => return None,
            Some((1, 1)) => column,
            Some((least, most)) if least == most && least > 0 => column.fixed([least as usize]),
            _ if sequence => return None,
            _ => column.ragged(),
        };
        let column = if sequence { column.in_sequence() } else { column };
        Some(if self.present < records { column.optional() } else { column })
    }

    fn report(&self, name: &str, sequence: bool, records: u64) -> Option<ColumnReport> {
        Some(self.report_as(name, self.dtype()?, sequence, self.column(name, sequence, records)))
    }

    /// Reports what was seen of a column of this dtype, with the column as which it is best declared.
    fn report_as(&self, name: &str, dtype: Dtype, sequence: bool, declared: Option<Column>) -> ColumnReport {
        ColumnReport {
            name: name.to_owned(),
            dtype: dtype.to_string(),
            present: self.present,
            min_len: self.len.least().unwrap_or(0),
            max_len: self.len.most().unwrap_or(0),
            min_bytes: self.bytes.least(),
            max_bytes: self.bytes.most(),
            holds: self.holds(),
            sequence,
            suggested: declared.as_ref().map(declaration),
        }
    }
}

/// Returns the declaration of a column in Rust.
fn declaration(column: &Column) -> String {
    let name = column.name();
    let constructed = match column.dtype() {
        Dtype::Bytes => format!("bytes({name:?})"),
        Dtype::F32 => format!("float32({name:?})"),
        Dtype::I64 => format!("int64({name:?})"),
        dtype => format!("Column::new({name:?}, Dtype::{dtype:?}, Shape::Scalar)"),
    };
    // Lists of arrays have no verb.
    if let (Shape::Ragged(inner), false) = (column.shape(), column.is_sequence())
        && !inner.is_empty()
    {
        let optional = if *column.missing() == crate::schema::Missing::Error { "" } else { ".optional()" };
        return format!("Column::new({name:?}, Dtype::{:?}, Shape::Ragged(vec!{inner:?})){optional}", column.dtype());
    }
    let shape = match (column.shape(), column.is_sequence()) {
        (Shape::Fixed(extents), _) => format!(".fixed({extents:?})"),
        (Shape::Ragged(inner), true) if !inner.is_empty() => format!(".fixed({inner:?})"),
        (Shape::Ragged(_), false) => ".ragged()".to_owned(),
        _ => String::new(),
    };
    let sequence = if column.is_sequence() { ".in_sequence()" } else { "" };
    let optional = if *column.missing() == crate::schema::Missing::Error { "" } else { ".optional()" };
    format!("{constructed}{shape}{sequence}{optional}")
}

impl Look {
    /// Looks at a record.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if it is neither a `tf.Example` nor a `tf.SequenceExample`. It is counted nevertheless.
    pub(super) fn add(&mut self, payload: &[u8]) -> Result<()> {
        self.records += 1;
        self.payloads.present += 1;
        self.payloads.kinds[0] += 1;
        self.payloads.len.add(1);
        self.payloads.string(payload);
        let SequenceExample { context, feature_lists } = either(payload)?;
        *(if payload.is_empty() { &mut self.empty } else { &mut self.messages }) += 1;
        self.sequences += u64::from(feature_lists.is_some());
        for (name, feature) in context.into_iter().flat_map(|features| features.feature) {
            let seen = self.context.entry(name).or_default();
            if seen.feature(&feature) {
                seen.present += 1;
                seen.len.add(feature.num_values() as u64);
            }
        }
        for (name, list) in feature_lists.into_iter().flat_map(|lists| lists.feature_list) {
            let seen = self.lists.entry(name).or_default();
            seen.present += 1;
            seen.len.add(list.feature.len() as u64);
            for step in &list.feature {
                if seen.feature(step) {
                    seen.step_len.add(step.num_values() as u64);
                }
            }
        }
        Ok(())
    }

    /// Adds what another thread saw.
    pub(super) fn merge(&mut self, other: Look) {
        self.records += other.records;
        self.messages += other.messages;
        self.empty += other.empty;
        self.sequences += other.sequences;
        self.payloads.merge(other.payloads);
        for (mine, others) in [(&mut self.context, other.context), (&mut self.lists, other.lists)] {
            for (name, seen) in others {
                mine.entry(name).or_default().merge(seen);
            }
        }
    }

    /// Returns how many records are something else.
    pub(super) fn strangers(&self) -> u64 {
        self.records - self.messages - self.empty
    }

    /// Returns which message the records are; `None` if they are not messages.
    pub(super) fn kind(&self) -> Option<Kind> {
        match (self.messages, self.sequences) {
            (0, _) => None,
            (_, 0) => Some(Kind::Example),
            _ => Some(Kind::SequenceExample),
        }
    }

    /// Returns the columns, sorted by name. Names without a value in any record are left out.
    pub(super) fn columns(&self) -> Vec<ColumnReport> {
        if self.kind().is_none() {
            return self.payloads.report(RECORD, false, self.records).into_iter().collect();
        }
        let records = self.messages + self.empty;
        let context = self.context.iter().filter_map(|(name, seen)| seen.report(name, false, records));
        let lists = self.lists.iter().filter_map(|(name, seen)| seen.report(name, true, records));
        let mut columns: Vec<_> = context.chain(lists).collect();
        columns.sort_by(|a, b| a.name.cmp(&b.name));
        columns
    }

    /// Returns errors for names under which records hold several kinds of value.
    pub(super) fn mixtures(&self) -> impl Iterator<Item = Error> {
        let seen = self.context.iter().chain(&self.lists);
        seen.filter_map(|(name, seen)| {
            let message = format!("holds several kinds of value: {}", seen.mixture()?);
            Some(Error::new(ErrorKind::Schema, message).column(name.as_str()))
        })
    }

    /// Returns a parser that only reports damage and values of another kind than in most records, and whether there are feature lists that it cannot
    /// handle (their steps differ in length, or a feature of the context has the same name).
    pub(super) fn lenient_parser(&self) -> Result<(Parser, bool)> {
        let mut columns = Vec::new();
        for (name, seen) in &self.context {
            columns.extend(seen.dtype().map(|dtype| Column::new(name.as_str(), dtype, Shape::Scalar).ragged()));
        }
        let mut beyond = false;
        for (name, seen) in &self.lists {
            let Some(dtype) = seen.dtype() else { continue };
            let column = Column::new(name.as_str(), dtype, Shape::Scalar);
            match seen.step_len.0 {
                Some((least, most)) if least == most && least > 0 && !self.context.contains_key(name) => {
                    columns.push(column.fixed([least as usize]).in_sequence());
                }
                _ => beyond = true,
            }
        }
        if columns.is_empty() {
            // Nobody has this name; the parser still takes each record apart.
            columns.push(Column::new("\0", Dtype::Bytes, Shape::Scalar).ragged());
        }
        let columns: Vec<_> = columns.into_iter().map(Column::optional).collect();
        Ok((Parser::new(&columns, self.kind().unwrap_or(Kind::Example))?, beyond))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::example::Example;

    fn look(records: &[Vec<u8>]) -> Look {
        let mut look = Look::default();
        records.iter().for_each(|record| look.add(record).unwrap());
        look
    }

    #[test]
    fn declarations_are_what_inferring_would_make() {
        let records = [
            Example::new().with_int64("label", [1]).with_float32("box", [0.0; 4]).with_bytes("words", ["a"]).encode(),
            Example::new().with_int64("label", [2]).with_bytes("words", ["bc", "d"]).encode(),
        ];
        let suggested: Vec<_> = look(&records).columns().into_iter().map(|column| column.suggested.unwrap()).collect();
        assert_eq!(
            suggested,
            ["float32(\"box\").fixed([4]).optional()", "int64(\"label\")", "bytes(\"words\").ragged()"]
        );
        let (_, inferred) = crate::format::example::infer(records.iter().map(Vec::as_slice)).unwrap();
        assert_eq!(inferred.iter().map(declaration).collect::<Vec<_>>(), suggested);
    }

    #[test]
    fn feature_lists_count_steps_and_declare_what_a_step_holds() {
        let steps = |n: usize| (0..n).map(|_| Feature::float32([0.0, 1.0]));
        let sequence = |n| SequenceExample::new().with_steps("speed", steps(n)).with_context("id", Feature::int64([1]));
        let look = look(&[sequence(3).encode(), sequence(0).encode()]);
        assert_eq!(look.kind(), Some(Kind::SequenceExample));
        let columns = look.columns();
        assert_eq!((columns[1].min_len, columns[1].max_len, columns[1].sequence), (0, 3, true));
        assert_eq!(columns[1].suggested.as_deref(), Some("float32(\"speed\").fixed([2]).in_sequence()"));
    }

    #[test]
    fn parts_merge_into_the_whole() {
        let record = |i: i64| {
            let example = Example::new().with_bytes("image", [b"GIF89a..".as_slice()]);
            if i % 2 == 0 { example.with_int64("x", 0..i) } else { example.with_float32("x", [0.5]) }.encode()
        };
        let records: Vec<_> = (0..6).map(record).collect();
        let whole = look(&records);
        let mut parts = look(&records[..2]);
        parts.merge(look(&records[2..]));
        assert_eq!(parts.columns(), whole.columns());
        assert_eq!(whole.columns()[0].holds, Some("gif"));
        assert_eq!((whole.columns()[1].suggested.as_ref(), whole.mixtures().count()), (None, 1));
    }

    #[test]
    fn payloads_of_other_messages_are_one_column() {
        let mut look = Look::default();
        assert!(look.add(b"\xff no message").is_err());
        assert!(look.add(b"BMW").is_err());
        assert!(look.add(b"").is_ok());
        assert_eq!((look.kind(), look.strangers()), (None, 2));
        let columns = look.columns();
        assert_eq!((columns.len(), &*columns[0].name, columns[0].max_bytes), (1, "record", Some(12)));
        assert_eq!(columns[0].holds, None);
    }
}
