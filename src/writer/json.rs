//! Writes rows as JSON Lines: one object per row, with its keys in the order of the columns.
//!
//! Byte strings that are UTF-8 are written as text. Others become a data URI, `data:;base64,` followed by their base64. So does text that begins like
//! such a URI, so that the string alone shows which it was.

use std::path::Path;

use arrow::array::RecordBatch;

use super::cells::{Cells, Values, unfit};
use super::encode::{Data, Encode, Piece, Shard};
use super::output::Packing;
use super::stream::Stream;
use crate::error::Result;
use crate::format::data_uri::{DATA_URI, base64};
use crate::schema::{Column, Shape};

pub(super) struct JsonLines {
    columns: Vec<Column>,
    packing: Packing,
}

impl JsonLines {
    pub(super) fn new(columns: &[Column], packing: Packing) -> Self {
        Self { columns: columns.to_vec(), packing }
    }
}

impl Encode for JsonLines {
    fn encode(&self, first: u64, rows: &RecordBatch) -> Result<Piece> {
        let columns: Vec<Cells<'_>> =
            self.columns.iter().zip(rows.columns()).map(|(column, array)| Cells::new(column, array)).collect();
        let keys: Vec<String> = columns.iter().map(|cells| string(cells.column.name()) + ":").collect();
        let (mut out, mut ends) = (String::new(), Vec::with_capacity(rows.num_rows()));
        for row in 0..rows.num_rows() {
            out.push('{');
            for (number, (cells, key)) in columns.iter().zip(&keys).enumerate() {
                if number > 0 {
                    out.push(',');
                }
                out.push_str(key);
                value(cells, row, &mut out).ok_or_else(|| {
                    unfit(cells.column, first + row as u64, "JSON has neither NaN nor infinite numbers")
                        .advice("write Parquet, or leave the column out")
                })?;
            }
            out.push_str("}\n");
            ends.push(out.len() as u64);
        }
        Ok(Piece { data: Data::Bytes(out.into_bytes().into()), ends })
    }

    fn begin(&self, folder: &Path, name: &str) -> Result<Box<dyn Shard>> {
        Ok(Box::new(Stream::begin(folder, name, self.packing, &[], false)?))
    }
}

/// Appends a row's value: an element, a list, or a list of lists for the extents of its shape. Returns `None` if JSON has no such number.
pub(super) fn value(cells: &Cells<'_>, row: usize, out: &mut String) -> Option<()> {
    let elements = cells.of(row);
    if cells.is_scalar() {
        return element(&cells.values, elements.start, out);
    }
    let inner: &[usize] = match cells.column.shape() {
        Shape::Scalar => &[],
        Shape::Fixed(extents) => extents.get(1..).unwrap_or(&[]),
        Shape::Ragged(inner) => inner,
    };
    let mut at = elements.start;
    nested(&cells.values, inner, elements.len(), &mut at, out)
}

/// Appends a list of `elements` elements in all, whose items have these extents.
fn nested(values: &Values, inner: &[usize], elements: usize, at: &mut usize, out: &mut String) -> Option<()> {
    let each: usize = inner.iter().product();
    out.push('[');
    for item in 0..elements.checked_div(each).unwrap_or(0) {
        if item > 0 {
            out.push(',');
        }
        match inner {
            [] => {
                element(values, *at, out)?;
                *at += 1;
            }
            [_, rest @ ..] => nested(values, rest, each, at, out)?,
        }
    }
    out.push(']');
    Some(())
}

fn element(values: &Values, element: usize, out: &mut String) -> Option<()> {
    match values.bytes(element) {
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.starts_with(DATA_URI) => out.push_str(&string(text)),
            _ => {
                out.push('"');
                out.push_str(DATA_URI);
                base64(bytes, out);
                out.push('"');
            }
        },
        None => {
            if !values.is_finite(element) {
                return None;
            }
            values.number(element, out);
        }
    }
    Some(())
}

fn string(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}
