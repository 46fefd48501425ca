//! Values of a record for display: numbers, short text, and summaries of long byte strings.

use std::fmt;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
};

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::look::image_format;
use super::opened::Cells;
use super::text::count;
use crate::format::example::{Feature, FeatureList, Values};
use crate::schema::Shape;
use crate::transform::image::probe;

/// The most bytes of a text that is shown whole; longer ones are shown by size and digest.
const TEXT_BYTES: usize = 64;

/// The number of values of a list that are shown as text by default.
const SHOWN: usize = 16;

/// A value for display.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shown {
    /// A feature without a value, or no feature of that name.
    Nothing,
    Int(i64),
    /// A float. JSON has no infinities and no NaN, so there they become strings.
    Float(f32),
    Double(f64),
    Bool(bool),
    Text(String),
    Blob(Blob),
    List(Vec<Shown>),
    /// The first values of a longer list.
    Cut {
        len: usize,
        first: Vec<Shown>,
    },
}

/// A long byte string, or one that is not text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Blob {
    bytes: usize,
    sha256: String,
    /// The image format of its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) holds: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    height: Option<u32>,
    /// The file to which it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
    /// The beginning of the text, for people.
    #[serde(skip)]
    text: Option<String>,
}

impl Blob {
    fn new(value: &[u8]) -> Self {
        let holds = image_format(value);
        let info = holds.and_then(|_| probe(value).ok());
        let text = printable(value).map(|text| text.chars().take(TEXT_BYTES / 2).collect());
        Self {
            bytes: value.len(),
            sha256: Sha256::digest(value).iter().map(|byte| format!("{byte:02x}")).collect(),
            holds,
            width: info.map(|info| info.width),
            height: info.map(|info| info.height),
            file: None,
            text,
        }
    }

    /// Returns the extension for a file with this content.
    pub(super) fn extension(&self) -> &'static str {
        match self.holds {
            Some("jpeg") => "jpg",
            Some(format) => format,
            None if self.text.is_some() => "txt",
            None => "bin",
        }
    }
}

/// Returns bytes as text if they have no control characters other than line ends and tabs.
fn printable(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    (!text.contains(|c: char| c.is_control() && !"\n\r\t".contains(c))).then_some(text)
}

impl Shown {
    /// Converts a byte string.
    pub(super) fn bytes(value: &[u8]) -> Self {
        match printable(value).filter(|_| value.len() <= TEXT_BYTES) {
            Some(text) => Shown::Text(text.to_owned()),
            None => Shown::Blob(Blob::new(value)),
        }
    }

    /// Converts a feature: a single value by itself, several as a list.
    pub(super) fn feature(feature: &Feature) -> Self {
        match Self::list(feature) {
            Some(mut list) if list.len() == 1 => list.remove(0),
            Some(list) => Shown::List(list),
            None => Shown::Nothing,
        }
    }

    /// Converts a row's value in a column: a single value by itself, lists as lists, nested as deeply as the column has extents.
    pub(super) fn cell(cells: &Cells, row: usize, shape: &Shape) -> Self {
        if !cells.is_present(row) {
            return Shown::Nothing;
        }
        let (array, range) = cells.elements(row);
        let mut values: Vec<Shown> = range.map(|at| Self::element(array, at)).collect();
        match shape {
            Shape::Scalar => values.pop().unwrap_or(Shown::Nothing),
            Shape::Fixed(extents) => Self::nested(values, extents.get(1..).unwrap_or_default()),
            Shape::Ragged(inner) => Self::nested(values, inner),
        }
    }

    /// Nests values into lists with these inner extents.
    fn nested(values: Vec<Shown>, inner: &[usize]) -> Self {
        match inner {
            [] => Shown::List(values),
            [_, rest @ ..] => {
                let each = inner.iter().product::<usize>().max(1);
                Shown::List(values.chunks(each).map(|values| Self::nested(values.to_vec(), rest)).collect())
            }
        }
    }

    fn element(array: &dyn Array, at: usize) -> Self {
        match array.data_type() {
            DataType::UInt8 => Shown::Int(array.as_primitive::<UInt8Type>().value(at).into()),
            DataType::Int8 => Shown::Int(array.as_primitive::<Int8Type>().value(at).into()),
            DataType::Int16 => Shown::Int(array.as_primitive::<Int16Type>().value(at).into()),
            DataType::Int32 => Shown::Int(array.as_primitive::<Int32Type>().value(at).into()),
            DataType::Int64 => Shown::Int(array.as_primitive::<Int64Type>().value(at)),
            DataType::Float16 => Shown::Float(array.as_primitive::<Float16Type>().value(at).to_f32()),
            DataType::Float32 => Shown::Float(array.as_primitive::<Float32Type>().value(at)),
            DataType::Float64 => Shown::Double(array.as_primitive::<Float64Type>().value(at)),
            DataType::Boolean => Shown::Bool(array.as_boolean().value(at)),
            DataType::BinaryView => Shown::bytes(array.as_binary_view().value(at)),
            _ => Shown::Nothing,
        }
    }

    /// Returns the values in it that are not lists, in order.
    pub(super) fn leaves_mut(&mut self) -> Vec<&mut Self> {
        match self {
            Shown::List(values) => values.iter_mut().flat_map(Self::leaves_mut).collect(),
            alone => vec![alone],
        }
    }

    /// Converts a feature list to a list of lists.
    pub(super) fn steps(list: &FeatureList) -> Self {
        let steps = list.feature.iter().map(|step| Shown::List(Self::list(step).unwrap_or_default()));
        Shown::List(steps.collect())
    }

    fn list(feature: &Feature) -> Option<Vec<Self>> {
        Some(match feature.kind.as_ref()? {
            Values::Bytes(list) => list.value.iter().map(|value| Self::bytes(value)).collect(),
            Values::Float(list) => list.value.iter().map(|&value| Shown::Float(value)).collect(),
            Values::Int64(list) => list.value.iter().map(|&value| Shown::Int(value)).collect(),
        })
    }

    /// Returns a value of a list, or a single value.
    pub(super) fn nth_mut(&mut self, number: usize) -> Option<&mut Self> {
        match self {
            Shown::List(values) => values.get_mut(number),
            alone => Some(alone),
        }
    }

    /// Shortens lists of more than `most` values.
    pub(super) fn cut(self, most: usize) -> Self {
        let Shown::List(list) = self else { return self };
        let len = list.len();
        let first: Vec<_> = list.into_iter().take(most).map(|value| value.cut(most)).collect();
        if len > most { Shown::Cut { len, first } } else { Shown::List(first) }
    }

    /// Converts to JSON: all values, except those that were cut.
    pub(super) fn to_json(&self) -> Value {
        let list = |values: &[Shown]| Value::Array(values.iter().map(Shown::to_json).collect());
        match self {
            Shown::Nothing => Value::Null,
            Shown::Int(value) => json!(value),
            // The shortest decimal number that is this float, instead of all digits of it as a double.
            Shown::Float(value) if value.is_finite() => {
                json!(value.to_string().parse::<f64>().unwrap_or(f64::from(*value)))
            }
            Shown::Float(value) if value.is_nan() => json!("NaN"),
            Shown::Float(value) => json!(if *value > 0.0 { "Infinity" } else { "-Infinity" }),
            Shown::Double(value) if value.is_finite() => json!(value),
            Shown::Double(value) if value.is_nan() => json!("NaN"),
            Shown::Double(value) => json!(if *value > 0.0 { "Infinity" } else { "-Infinity" }),
            Shown::Bool(value) => json!(value),
            Shown::Text(text) => json!(text),
            Shown::Blob(blob) => json!(blob),
            Shown::List(values) => list(values),
            Shown::Cut { len, first } => json!({ "len": len, "first": list(first) }),
        }
    }

    /// Converts to text on one line.
    pub(super) fn to_text(&self, most: Option<usize>) -> String {
        self.clone().cut(most.unwrap_or(SHOWN)).to_string()
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, values: &[Shown], end: &str| {
            f.write_str("[")?;
            for (number, value) in values.iter().enumerate() {
                write!(f, "{}{value}", if number == 0 { "" } else { ", " })?;
            }
            f.write_str(end)
        };
        match self {
            Shown::Nothing => f.write_str("-"),
            Shown::Int(value) => write!(f, "{value}"),
            Shown::Float(value) => write!(f, "{value}"),
            Shown::Double(value) => write!(f, "{value}"),
            Shown::Bool(value) => write!(f, "{value}"),
            Shown::Text(text) => write!(f, "{text:?}"),
            Shown::Blob(blob) => write!(f, "{blob}"),
            Shown::List(values) => list(f, values, "]"),
            Shown::Cut { len, first } => {
                list(f, first, if first.is_empty() { "…] " } else { ", …] " })?;
                write!(f, "{} values", count(*len as u64))
            }
        }
    }
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(format) = self.holds {
            write!(f, "{format} ")?;
        }
        if let (Some(width), Some(height)) = (self.width, self.height) {
            write!(f, "{width}x{height}, ")?;
        }
        write!(f, "{} bytes, sha256 {}…", count(self.bytes as u64), &self.sha256[..8])?;
        if let Some(text) = &self.text {
            write!(f, ", {text:?}…")?;
        }
        match &self.file {
            Some(file) => write!(f, " -> {file}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_values_stand_alone_and_others_in_lists() {
        let json = |feature: Feature| Shown::feature(&feature).to_json();
        assert_eq!(json(Feature::int64([3])), json!(3));
        assert_eq!(json(Feature::int64([3, -4])), json!([3, -4]));
        assert_eq!(json(Feature::float32([])), json!([]));
        assert_eq!(json(Feature::default()), json!(null));
        assert_eq!(json(Feature::bytes(["a", ""])), json!(["a", ""]));
        let steps = FeatureList { feature: vec![Feature::int64([1]), Feature::default()] };
        assert_eq!(Shown::steps(&steps).to_json(), json!([[1], []]));
    }

    #[test]
    fn floats_are_as_short_as_they_can_be_and_never_invalid() {
        let json = |value| Shown::Float(value).to_json().to_string();
        assert_eq!([0.1, 1e-10, -2.0].map(json), ["0.1", "1e-10", "-2.0"]);
        assert_eq!([f32::NAN, f32::INFINITY, -f32::INFINITY].map(json), ["\"NaN\"", "\"Infinity\"", "\"-Infinity\""]);
    }

    #[test]
    fn long_and_binary_strings_are_sizes_and_digests() {
        assert_eq!(Shown::bytes(&[b'x'; 64]).to_json(), json!("x".repeat(64)));
        let long = Shown::bytes(&[b'x'; 65]);
        assert_eq!(long.to_json()["bytes"], 65);
        assert!(long.to_string().contains("\"xxxx"), "{long}");
        let binary = Shown::bytes(&[0, 1, 2]).to_json();
        assert_eq!(binary["sha256"], "ae4b3280e56e2faf83f414a6e3dabe9d5fbe18976544c05fed121accb85b53fc");
        let gif = b"GIF89a\x03\0\x02\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x03\0\x02\0\0\x02\x03\x84\x8f\x05\0;";
        let gif = Shown::bytes(gif);
        assert_eq!((&gif.to_json()["holds"], &gif.to_json()["width"]), (&json!("gif"), &json!(3)));
        assert!(gif.to_string().starts_with("gif 3x2, 36 bytes, sha256 44b1bd68…"), "{gif}");
    }

    #[test]
    fn cut_lists_say_how_long_they_were() {
        let list = Shown::List((0..20).map(Shown::Int).collect());
        assert_eq!(list.clone().cut(2).to_json(), json!({"len": 20, "first": [0, 1]}));
        assert_eq!(list.to_text(Some(2)), "[0, 1, …] 20 values");
        assert!(list.to_text(None).ends_with("15, …] 20 values"));
        assert_eq!(list.to_json().as_array().map(Vec::len), Some(20));
    }
}
