//! Columns with one element for each token, such as loss masks, labels and weights. They are cut and packed like the tokens.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, ListArray, MutableArrayData, PrimitiveArray, make_array};
use arrow::buffer::BooleanBuffer;
use half::f16;

use super::pack::{Layout, fixed};
use crate::error::{Error, ErrorKind};
use crate::schema::{Dtype, Element, Value};

/// The columns that are packed with the tokens, and the values in them where documents have no element.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Beside {
    /// Each column, with the value in its padding.
    columns: Vec<(String, Filler)>,
    /// Columns, with the value next to the EOS token after each document.
    at_eos: Vec<(String, Filler)>,
}

impl Beside {
    pub(super) fn push(&mut self, column: String, pad_value: Value) {
        self.columns.push((column, pad_value.into()));
    }

    pub(super) fn push_at_eos(&mut self, column: String, value: Value) {
        self.at_eos.push((column, value.into()));
    }

    /// The columns, in the order in which they were named.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(name, _)| name.as_str())
    }

    fn at_eos(&self, column: &str) -> Option<&Filler> {
        self.at_eos.iter().find(|(name, _)| name == column).map(|(_, value)| value)
    }

    /// Returns what is wrong with the names, with advice. `outputs` are the columns that packing itself makes.
    pub(super) fn mistakes(&self, tokens: &str, has_eos: bool, outputs: &[&str]) -> Vec<(String, &'static str)> {
        let mut mistakes = twice(self.names(), tokens);
        for name in self.names() {
            if outputs.contains(&name) {
                mistakes.push((
                    format!("{name} beside the tokens is the name of a column that packing makes"),
                    "give yours another one with .map(), and name that",
                ));
            }
            if has_eos && self.at_eos(name).is_none() {
                mistakes.push((
                    format!("{name} has no element for the token behind each document"),
                    "say what stands there with .eos_beside(column, value): a loss mask that is 0 there never teaches a model to stop",
                ));
            }
        }
        for (at, (name, _)) in self.at_eos.iter().enumerate() {
            if !has_eos {
                mistakes.push((
                    format!("{name} beside a token that is put behind no document"),
                    "say which with .eos(token), or leave .eos_beside() out",
                ));
            }
            if !self.names().any(|known| known == name) {
                mistakes.push((
                    format!("{name} has a value at the end of documents, and is no column beside the tokens"),
                    "name it with .beside(column, pad_value) as well",
                ));
            }
            if self.at_eos[..at].iter().any(|(other, _)| other == name) {
                mistakes
                    .push((format!("{name} has two values at the end of documents"), "leave one .eos_beside() out"));
            }
        }
        mistakes
    }

    /// Returns the values stated for a column that its dtype cannot hold.
    pub(super) fn misfits(&self, column: &str, dtype: Dtype) -> Vec<String> {
        let of_column = self.columns.iter().chain(&self.at_eos).filter(|(name, _)| name == column);
        of_column.filter(|(_, value)| value.elements(dtype, 1).is_none()).map(|(_, value)| value.to_string()).collect()
    }

    /// Writes the columns of a layout from the elements of its documents: each run of elements is copied to the place of its tokens.
    pub(super) fn write(&self, elements: &[&ListArray], layout: &Layout, len: usize) -> Vec<ArrayRef> {
        let columns = self.columns.iter().zip(elements);
        columns.map(|((name, pad), elements)| write(elements, pad, self.at_eos(name), layout, len)).collect()
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, pad) in &self.columns {
            write!(f, ", beside {name} padded with {pad}")?;
            if let Some(value) = self.at_eos(name) {
                write!(f, " and {value} at eos")?;
            }
        }
        Ok(())
    }
}

/// Returns columns that are named twice, or are the tokens themselves.
pub(super) fn twice<'a>(names: impl Iterator<Item = &'a str>, tokens: &str) -> Vec<(String, &'static str)> {
    let (mut mistakes, mut known) = (Vec::new(), Vec::new());
    for name in names {
        if name == tokens {
            mistakes.push((
                format!("{name} beside the tokens is the column of tokens itself"),
                "name other columns in .beside(), or none",
            ));
        } else if known.contains(&name) {
            mistakes.push((format!("{name} stands beside the tokens twice"), "call .beside() once for each column"));
        }
        known.push(name);
    }
    mistakes
}

/// Returns the rows in which a column has another number of elements than there are tokens, in ascending order, each with the reason.
pub(crate) fn uneven(tokens: (&str, &ListArray), beside: &[(&str, &ListArray)]) -> Vec<(usize, Error)> {
    let mut uneven = Vec::new();
    for (column, elements) in beside {
        let lengths = tokens.1.offsets().lengths().zip(elements.offsets().lengths()).enumerate();
        uneven.extend(lengths.filter(|(_, (tokens, elements))| tokens != elements).map(|(row, (length, elements))| {
            let message = format!("{elements} elements beside the {length} tokens of `{}`", tokens.0);
            let advice = "give each token one, where the shards are written or in a .map() before";
            (row, Error::new(ErrorKind::Transform, message).column(*column).advice(advice))
        }));
    }
    // Of a row that two columns fail for, one reason will do.
    uneven.sort_by_key(|(row, _)| *row);
    uneven.dedup_by_key(|(row, _)| *row);
    uneven
}

/// Writes one column of a layout. Without `at_eos`, documents have an element for each of their tokens.
fn write(elements: &ListArray, pad: &Filler, at_eos: Option<&Filler>, layout: &Layout, len: usize) -> ArrayRef {
    const ELEMENTS: usize = 0;
    const PADDING: usize = 1;
    const EOS: usize = 2;
    let dtype = Dtype::from_arrow(&elements.value_type()).expect("a column has a dtype");
    let filled = |value: &Filler, count| value.elements(dtype, count).expect("as was checked").to_data();
    let (padding, eos) = (filled(pad, len), filled(at_eos.unwrap_or(pad), 1));
    let values = elements.values().to_data();
    let offsets = elements.value_offsets();
    let mut cells = MutableArrayData::new(vec![&values, &padding, &eos], false, layout.ends.len() * len);
    let mut put = |source, start, end| cells.try_extend(source, start, end).expect("elements have no offsets");
    for spans in layout.rows() {
        let mut room = len;
        for span in spans {
            let [start, end] = [0, 1].map(|at| offsets[span.document as usize + at] as usize);
            let from = start + span.start as usize;
            let to = from + span.len as usize;
            put(ELEMENTS, from.min(end), to.min(end));
            if to > end {
                put(EOS, 0, 1);
            }
            room -= span.len as usize;
        }
        put(PADDING, 0, room);
    }
    fixed(make_array(cells.freeze()), len)
}

/// Whether a dtype can hold this value.
pub(crate) fn holds(dtype: Dtype, value: impl Into<Value>) -> bool {
    Filler::from(value.into()).elements(dtype, 1).is_some()
}

/// The value that stands where a column has no element. Floats are kept by their bits, so that each is equal to itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Filler {
    Whole(i64),
    Float(u64),
    /// A value that no element can be.
    Text(String),
}

impl Filler {
    /// Returns `count` elements of this value; `None` if the dtype cannot hold it. Floats are rounded to the dtype as long as they stay finite; whole numbers
    /// are not rounded.
    fn elements(&self, dtype: Dtype, count: usize) -> Option<ArrayRef> {
        fn of<T: Element>(value: T, count: usize) -> ArrayRef {
            Arc::new(PrimitiveArray::<T::Arrow>::from_value(value, count))
        }
        Some(match dtype {
            Dtype::U8 => of(u8::try_from(self.whole()?).ok()?, count),
            Dtype::I8 => of(i8::try_from(self.whole()?).ok()?, count),
            Dtype::I16 => of(i16::try_from(self.whole()?).ok()?, count),
            Dtype::I32 => of(i32::try_from(self.whole()?).ok()?, count),
            Dtype::I64 => of(self.whole()?, count),
            Dtype::F16 => of(self.float(f16::from_f64, f16::to_f64)?, count),
            Dtype::F32 => of(self.float(|value| value as f32, f64::from)?, count),
            Dtype::F64 => of(self.float(|value| value, |value| value)?, count),
            Dtype::Bool => Arc::new(BooleanArray::from(match self.whole()? {
                0 => BooleanBuffer::new_unset(count),
                1 => BooleanBuffer::new_set(count),
                _ => return None,
            })),
            Dtype::Bytes => return None,
        })
    }

    fn whole(&self) -> Option<i64> {
        match self {
            Self::Whole(value) => Some(*value),
            Self::Float(bits) => {
                // 2^53: up to here every float without a fraction is one whole number.
                let value = f64::from_bits(*bits);
                (value.fract() == 0.0 && value.abs() <= (1u64 << 53) as f64).then_some(value as i64)
            }
            Self::Text(_) => None,
        }
    }

    fn float<T: Copy>(&self, narrow: impl Fn(f64) -> T, widen: impl Fn(T) -> f64) -> Option<T> {
        match self {
            Self::Whole(value) => {
                let near = narrow(*value as f64);
                (widen(near) as i128 == i128::from(*value)).then_some(near)
            }
            Self::Float(bits) => {
                let value = f64::from_bits(*bits);
                let near = narrow(value);
                (widen(near).is_infinite() == value.is_infinite()).then_some(near)
            }
            Self::Text(_) => None,
        }
    }
}

impl From<Value> for Filler {
    fn from(value: Value) -> Self {
        match value {
            Value::Int(value) => Self::Whole(value),
            Value::Float(value) => Self::Float(value.to_bits()),
            Value::Bool(value) => Self::Whole(value.into()),
            text @ Value::Bytes(_) => Self::Text(text.to_string()),
        }
    }
}

impl fmt::Display for Filler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => write!(f, "{value}"),
            Self::Float(bits) => write!(f, "{:?}", f64::from_bits(*bits)),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{Float16Type, Float32Type, Int64Type, UInt8Type};

    use super::*;

    fn filler(value: impl Into<Value>) -> Filler {
        value.into().into()
    }

    #[test]
    fn values_are_exact_or_none() {
        let holds = |value: Filler, dtype| value.elements(dtype, 2).is_some();
        for (value, dtype) in [
            (filler(-100), Dtype::I8),
            (filler(255), Dtype::U8),
            (filler(-100.0), Dtype::I16),
            (filler(i64::MAX), Dtype::I64),
            (filler(true), Dtype::I32),
            (filler(1), Dtype::Bool),
            (filler(0.1), Dtype::F32),
            (filler(2048), Dtype::F16),
            (filler(1i64 << 60), Dtype::F64),
            (filler(f64::INFINITY), Dtype::F16),
            (filler(f64::NAN), Dtype::F32),
        ] {
            assert!(holds(value.clone(), dtype), "{value} as {dtype}");
        }
        for (value, dtype) in [
            (filler(-129), Dtype::I8),
            (filler(-1), Dtype::U8),
            (filler(0.5), Dtype::I64),
            (filler(1e300), Dtype::I64),
            (filler(f64::NAN), Dtype::I64),
            (filler(2), Dtype::Bool),
            (filler(2049), Dtype::F16),
            (filler((1i64 << 24) + 1), Dtype::F32),
            (filler(i64::MAX), Dtype::F64),
            (filler(1e39), Dtype::F32),
            (filler(65520.0), Dtype::F16),
            (filler("0"), Dtype::I64),
            (filler(0), Dtype::Bytes),
        ] {
            assert!(!holds(value.clone(), dtype), "{value} as {dtype}");
        }
        let exact = filler(i64::MAX).elements(Dtype::I64, 3).unwrap();
        assert_eq!(exact.as_primitive::<Int64Type>().values(), &[i64::MAX; 3]);
        assert_eq!(filler(255).elements(Dtype::U8, 1).unwrap().as_primitive::<UInt8Type>().values(), &[255]);
        assert_eq!(filler(0.1).elements(Dtype::F32, 1).unwrap().as_primitive::<Float32Type>().values(), &[0.1]);
        let half = filler(-0.5).elements(Dtype::F16, 1).unwrap();
        assert_eq!(half.as_primitive::<Float16Type>().values(), &[f16::from_f32(-0.5)]);
        assert_eq!(filler(true).elements(Dtype::Bool, 2).unwrap().as_boolean().true_count(), 2);
    }

    #[test]
    fn equal_values_are_equal() {
        assert_eq!(filler(f64::NAN), filler(f64::NAN));
        assert_ne!(filler(0.0), filler(-0.0));
        assert_eq!(filler(-100).to_string(), "-100");
        assert_eq!(filler(0.0).to_string(), "0.0");
    }

    #[test]
    fn every_mistake_is_named() {
        let beside = |columns: &[&str], at_eos: &[&str]| {
            let mut beside = Beside::default();
            columns.iter().for_each(|column| beside.push((*column).to_owned(), 0.into()));
            at_eos.iter().for_each(|column| beside.push_at_eos((*column).to_owned(), 1.into()));
            beside
        };
        let said = |beside: Beside, has_eos| {
            let mistakes = beside.mistakes("tokens", has_eos, &["input_ids", "cu_seqlens"]);
            mistakes.into_iter().map(|(message, _)| message).collect::<Vec<_>>()
        };
        assert!(said(beside(&["mask", "labels"], &[]), false).is_empty());
        assert!(said(beside(&["mask", "labels"], &["labels", "mask"]), true).is_empty());
        for (beside, has_eos, words) in [
            (beside(&["mask", "mask"], &[]), false, "twice"),
            (beside(&["tokens"], &[]), false, "the column of tokens itself"),
            (beside(&["cu_seqlens"], &[]), false, "that packing makes"),
            (beside(&["mask"], &[]), true, "no element for the token behind each document"),
            (beside(&["mask"], &["mask"]), false, "put behind no document"),
            (beside(&["mask"], &["mask", "other"]), true, "no column beside the tokens"),
            (beside(&["mask"], &["mask", "mask"]), true, "two values"),
        ] {
            let said = said(beside, has_eos);
            assert!(said.len() == 1 && said[0].contains(words), "{said:?} lacks {words}");
        }
    }
}
