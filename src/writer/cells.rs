//! The values of a column, row by row: the input for encoding formats of rows.

use std::fmt::Write as _;
use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, FixedSizeListArray, PrimitiveArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes as types;

use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Shape};

/// A column's array, split into its parts.
pub(super) struct Cells<'a> {
    pub(super) column: &'a Column,
    pub(super) values: Values,
    layout: Layout,
}

/// The elements of all rows in succession.
pub(super) enum Values {
    U8(PrimitiveArray<types::UInt8Type>),
    I8(PrimitiveArray<types::Int8Type>),
    I16(PrimitiveArray<types::Int16Type>),
    I32(PrimitiveArray<types::Int32Type>),
    I64(PrimitiveArray<types::Int64Type>),
    F16(PrimitiveArray<types::Float16Type>),
    F32(PrimitiveArray<types::Float32Type>),
    F64(PrimitiveArray<types::Float64Type>),
    Bool(BooleanArray),
    Bytes(BinaryViewArray),
}

/// Which elements belong to a row.
enum Layout {
    Each(usize),
    Ragged(OffsetBuffer<i32>, usize),
}

impl<'a> Cells<'a> {
    /// Splits an array of the type that carries `column`.
    pub(super) fn new(column: &'a Column, array: &ArrayRef) -> Self {
        debug_assert_eq!(array.data_type(), &column.arrow_type());
        let of_list = |list: &FixedSizeListArray| {
            let each = list.value_length() as usize;
            let from = list.value_offset(0) as usize;
            (list.values().slice(from, list.len() * each), each)
        };
        let (values, layout) = match column.shape() {
            _ if column.is_raw() => (array.clone(), Layout::Each(1)),
            Shape::Scalar => (array.clone(), Layout::Each(1)),
            Shape::Fixed(_) => {
                let (values, each) = of_list(array.as_fixed_size_list());
                (values, Layout::Each(each))
            }
            Shape::Ragged(inner) => {
                let list = array.as_list::<i32>();
                let offsets = list.offsets().clone();
                match inner.is_empty() {
                    true => (list.values().clone(), Layout::Ragged(offsets, 1)),
                    false => {
                        let (values, each) = of_list(list.values().as_fixed_size_list());
                        (values, Layout::Ragged(offsets, each))
                    }
                }
            }
        };
        let dtype = if column.is_raw() { Dtype::Bytes } else { column.dtype() };
        let values = match dtype {
            Dtype::U8 => Values::U8(values.as_primitive().clone()),
            Dtype::I8 => Values::I8(values.as_primitive().clone()),
            Dtype::I16 => Values::I16(values.as_primitive().clone()),
            Dtype::I32 => Values::I32(values.as_primitive().clone()),
            Dtype::I64 => Values::I64(values.as_primitive().clone()),
            Dtype::F16 => Values::F16(values.as_primitive().clone()),
            Dtype::F32 => Values::F32(values.as_primitive().clone()),
            Dtype::F64 => Values::F64(values.as_primitive().clone()),
            Dtype::Bool => Values::Bool(values.as_boolean().clone()),
            Dtype::Bytes => Values::Bytes(values.as_binary_view().clone()),
        };
        Self { column, values, layout }
    }

    /// Returns the elements of a row.
    pub(super) fn of(&self, row: usize) -> Range<usize> {
        match &self.layout {
            Layout::Each(each) => row * each..(row + 1) * each,
            Layout::Ragged(offsets, each) => offsets[row] as usize * each..offsets[row + 1] as usize * each,
        }
    }

    /// Returns the number of elements in a step of a ragged row.
    pub(super) fn step(&self) -> usize {
        match self.layout {
            Layout::Each(each) | Layout::Ragged(_, each) => each,
        }
    }

    /// Returns whether a row is one element, as opposed to a list of one.
    pub(super) fn is_scalar(&self) -> bool {
        self.column.is_raw() || *self.column.shape() == Shape::Scalar
    }

    /// Returns the bytes of a row's values: elements as they lie in memory, byte strings by their lengths, lists with 4 bytes for their length.
    pub(super) fn row_bytes(&self, row: usize) -> u64 {
        let elements = self.of(row);
        let list = if matches!(self.layout, Layout::Ragged(..)) { 4 } else { 0 };
        list + match &self.values {
            Values::Bytes(values) => elements.map(|i| 4 + u64::from(values.views()[i] as u32)).sum::<u64>(),
            Values::Bool(_) | Values::U8(_) | Values::I8(_) => elements.len() as u64,
            Values::I16(_) | Values::F16(_) => 2 * elements.len() as u64,
            Values::I32(_) | Values::F32(_) => 4 * elements.len() as u64,
            Values::I64(_) | Values::F64(_) => 8 * elements.len() as u64,
        }
    }
}

impl Values {
    /// Returns a byte string.
    pub(super) fn bytes(&self, element: usize) -> Option<&[u8]> {
        if let Self::Bytes(values) = self { Some(values.value(element)) } else { None }
    }

    /// Appends a number in decimal, in the shortest form that reads back to the same value; a float has a point or an exponent. Appends nothing for
    /// byte strings.
    pub(super) fn number(&self, element: usize, out: &mut String) {
        let written = match self {
            Self::U8(values) => write!(out, "{}", values.value(element)),
            Self::I8(values) => write!(out, "{}", values.value(element)),
            Self::I16(values) => write!(out, "{}", values.value(element)),
            Self::I32(values) => write!(out, "{}", values.value(element)),
            Self::I64(values) => write!(out, "{}", values.value(element)),
            Self::F16(values) => write!(out, "{:?}", f32::from(values.value(element))),
            Self::F32(values) => write!(out, "{:?}", values.value(element)),
            Self::F64(values) => write!(out, "{:?}", values.value(element)),
            Self::Bool(values) => write!(out, "{}", values.value(element)),
            Self::Bytes(_) => Ok(()),
        };
        written.expect("a string takes what is written");
    }

    /// Returns whether a number is finite: neither NaN nor infinite.
    pub(super) fn is_finite(&self, element: usize) -> bool {
        match self {
            Self::F16(values) => values.value(element).is_finite(),
            Self::F32(values) => values.value(element).is_finite(),
            Self::F64(values) => values.value(element).is_finite(),
            _ => true,
        }
    }
}

/// Returns where each row of a batch ends: the running total of the bytes of its values.
pub(super) fn value_ends(columns: &[Cells<'_>], rows: usize) -> Vec<u64> {
    let mut end = 0;
    let mut ends = Vec::with_capacity(rows);
    for row in 0..rows {
        end += columns.iter().map(|cells| cells.row_bytes(row)).sum::<u64>();
        ends.push(end);
    }
    ends
}

/// Returns the error for a row that a format cannot hold.
pub(super) fn unfit(column: &Column, row: u64, what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Schema, what).column(column.name().clone()).record(row).stage("write")
}

/// Refuses columns of types that a format cannot hold.
pub(super) fn refuse(
    columns: &[Column],
    format: &str,
    cannot: impl Fn(&Column) -> Option<(String, String)>,
) -> Result<()> {
    match columns.iter().find_map(|column| Some((column, cannot(column)?))) {
        None => Ok(()),
        Some((column, (what, advice))) => Err(Error::new(ErrorKind::Schema, format!("{format} holds no {what}"))
            .column(column.name().clone())
            .stage("write")
            .advice(advice)),
    }
}
