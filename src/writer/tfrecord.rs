//! Writes rows as `tf.Example`s in TFRecord shards.

use std::borrow::Cow;
use std::path::Path;

use arrow::array::RecordBatch;

use super::cells::{Cells, Values, refuse, unfit};
use super::encode::{Data, Encode, Piece, Shard};
use super::output::{Codec, Packing};
use super::stream::Stream;
use crate::error::Result;
use crate::format::example::{Example, Feature, SequenceExample};
use crate::format::tfrecord::{Compression, MAX_RECORD_BYTES, Writer};
use crate::schema::{Column, Dtype};

/// Encodes integers and booleans as lists of int64, floats as lists of float, byte strings as lists of bytes.
pub(super) struct TfRecord {
    columns: Vec<Column>,
    packing: Packing,
    is_sequence: bool,
    /// Whether the only column holds payloads that are stored unchanged.
    as_they_are: bool,
}

impl TfRecord {
    /// # Errors
    /// [`ErrorKind::Schema`](crate::ErrorKind::Schema) for columns of f64, which a `tf.Example` does not have, unless they may lose precision.
    pub(super) fn new(columns: &[Column], packing: Packing, narrow: bool) -> Result<Self> {
        refuse(columns, "a tf.Example", |column| {
            let is_double = column.dtype() == Dtype::F64 && !column.is_raw() && !narrow;
            is_double
                .then(|| ("f64".into(), "write Parquet, or let it be rounded to f32: .narrow(true), --narrow".into()))
        })?;
        let is_sequence = columns.iter().any(Column::is_sequence);
        Ok(Self { columns: columns.to_vec(), packing, is_sequence, as_they_are: false })
    }

    /// Creates an encoder whose payloads are the values of the only column.
    pub(super) fn of_payloads(column: &Column, packing: Packing) -> Self {
        Self { columns: vec![column.clone()], packing, is_sequence: false, as_they_are: true }
    }

    fn payload(&self, columns: &[Cells<'_>], row: usize) -> Vec<u8> {
        if !self.is_sequence {
            let features = columns.iter().map(|cells| (cells.column.name(), feature(cells, cells.of(row))));
            return features.fold(Example::new(), |example, (name, f)| example.with(name.as_ref(), f)).encode();
        }
        let add = |sequence: SequenceExample, cells: &Cells<'_>| {
            let (name, elements) = (cells.column.name().as_ref(), cells.of(row));
            if !cells.column.is_sequence() {
                return sequence.with_context(name, feature(cells, elements));
            }
            let step = cells.step().max(1);
            let steps = elements.step_by(step).map(|start| feature(cells, start..start + step));
            sequence.with_steps(name, steps)
        };
        columns.iter().fold(SequenceExample::new(), add).encode()
    }
}

fn feature(cells: &Cells<'_>, elements: std::ops::Range<usize>) -> Feature {
    let values = &cells.values;
    match values {
        Values::U8(a) => Feature::int64(elements.map(|i| a.value(i).into())),
        Values::I8(a) => Feature::int64(elements.map(|i| a.value(i).into())),
        Values::I16(a) => Feature::int64(elements.map(|i| a.value(i).into())),
        Values::I32(a) => Feature::int64(elements.map(|i| a.value(i).into())),
        Values::I64(a) => Feature::int64(a.values()[elements].iter().copied()),
        Values::Bool(a) => Feature::int64(elements.map(|i| a.value(i).into())),
        Values::F16(a) => Feature::float32(elements.map(|i| a.value(i).into())),
        Values::F32(a) => Feature::float32(a.values()[elements].iter().copied()),
        Values::F64(a) => Feature::float32(elements.map(|i| a.value(i) as f32)),
        Values::Bytes(a) => Feature::bytes(elements.map(|i| a.value(i))),
    }
}

/// Checks that the floats of a row that are finite as f64 are also finite as f32.
fn narrows(cells: &Cells<'_>, row: usize, first: u64) -> Result<()> {
    let Values::F64(values) = &cells.values else { return Ok(()) };
    let grows = |value: &f64| value.is_finite() && (*value as f32).is_infinite();
    match cells.of(row).map(|i| values.value(i)).find(grows) {
        Some(value) => Err(unfit(cells.column, first + row as u64, format!("{value:?} does not fit f32"))
            .advice("write Parquet, which has f64, or leave the column out")),
        None => Ok(()),
    }
}

impl Encode for TfRecord {
    fn encode(&self, first: u64, rows: &RecordBatch) -> Result<Piece> {
        let columns: Vec<Cells<'_>> =
            self.columns.iter().zip(rows.columns()).map(|(column, array)| Cells::new(column, array)).collect();
        let mut writer = Writer::new(Vec::new(), Compression::None);
        let mut ends = Vec::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            columns.iter().try_for_each(|cells| narrows(cells, row, first))?;
            let payload: Cow<'_, [u8]> = match self.as_they_are {
                true => columns[0].values.bytes(row).unwrap_or_default().into(),
                false => self.payload(&columns, row).into(),
            };
            if payload.len() as u64 > MAX_RECORD_BYTES {
                let what =
                    format!("a record of {} bytes, more than the {MAX_RECORD_BYTES} that readers take", payload.len());
                return Err(unfit(columns[0].column, first + row as u64, what).advice("leave large columns out"));
            }
            writer.write(&payload)?;
            ends.push(writer.offset());
        }
        Ok(Piece { data: Data::Bytes(writer.finish()?.into()), ends })
    }

    fn begin(&self, folder: &Path, name: &str) -> Result<Box<dyn Shard>> {
        Ok(Box::new(Stream::begin(folder, name, self.packing, &[], true)?))
    }
}

/// Returns the compression that indexes record.
pub(super) fn compression(codec: Codec) -> Compression {
    match codec {
        Codec::Gzip => Compression::Gzip,
        Codec::Zlib => Compression::Zlib,
        _ => Compression::None,
    }
}
