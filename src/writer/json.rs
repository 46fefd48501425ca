//! Rows as JSON Lines: an object a row, its keys in the order of the columns.
//!
//! Byte strings are text where they are UTF-8. Others become a data URI, `data:;base64,` and their base64, as does text that
//! begins like one; so what was written can be told from the string alone.

use std::path::Path;

use arrow::array::RecordBatch;

use super::cells::{Cells, Values, unfit};
use super::encode::{Data, Encode, Piece, Shard};
use super::output::Packing;
use super::stream::Stream;
use crate::error::Result;
use crate::schema::{Column, Shape};

/// What byte strings that are no text begin with.
pub(super) const DATA_URI: &str = "data:;base64,";

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

/// Appends a row's value: an element, a list, or a list of lists for the extents of its shape. `None` where JSON has no such number.
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

/// A list of `elements` elements in all, whose items have these extents.
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

/// Appends base64 in the alphabet of RFC 4648, section 4, padded.
fn base64(bytes: &[u8], out: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.reserve(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let six = (bits >> (18 - 6 * place)) as usize & 63;
            out.push(if place <= group.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("\u{3ff}\u{ff}", "z7/Dvw=="),
        ] {
            let mut out = String::new();
            base64(bytes.as_bytes(), &mut out);
            assert_eq!(out, text);
        }
    }
}
