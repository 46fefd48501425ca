//! Element types of columns: how each is read from a feature and becomes an Arrow array.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryViewArray, BooleanArray, PrimitiveArray, make_view};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes as types;
use half::f16;

use super::wire::{self, Flaw, fixed32, len, var};

/// The kinds of feature, by their field numbers in `tf.train.Feature`; 0 means none.
pub(super) const BYTES: u32 = 1;
pub(super) const FLOAT: u32 = 2;
pub(super) const INT64: u32 = 3;

pub(super) fn kind_name(kind: u32) -> &'static str {
    match kind {
        BYTES => "bytes",
        FLOAT => "float",
        INT64 => "int64",
        _ => "no",
    }
}

/// The buffer that views of byte strings point into.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) number: u32,
}

/// The values of a feature in any encoding, collected by protobuf's rules for merging.
#[derive(Default)]
pub(super) struct Collected<'a> {
    pub(super) kind: u32,
    pub(super) ints: Vec<i64>,
    pub(super) floats: Vec<f32>,
    pub(super) strings: Vec<&'a [u8]>,
}

impl<'a> Collected<'a> {
    pub(super) fn clear(&mut self) {
        self.kind = 0;
        self.ints.clear();
        self.floats.clear();
        self.strings.clear();
    }

    /// Merges the bytes of a feature: another kind replaces what was there; values of the same kind are appended.
    pub(super) fn merge(&mut self, feature: &'a [u8]) -> Result<(), Flaw> {
        for field in wire::fields(feature) {
            let (tag, list) = field?;
            if !(len(1)..=len(3)).contains(&tag) {
                continue;
            }
            if self.kind != tag >> 3 {
                self.clear();
                self.kind = tag >> 3;
            }
            self.list(list)?;
        }
        Ok(())
    }

    fn list(&mut self, mut list: &'a [u8]) -> Result<(), Flaw> {
        let packed = len(1);
        while !list.is_empty() {
            let tag = wire::tag(&mut list)?;
            match self.kind {
                BYTES if tag == packed => self.strings.push(wire::bytes(&mut list)?),
                FLOAT if tag == packed => {
                    let (values, rest) = wire::bytes(&mut list)?.as_chunks::<4>();
                    if !rest.is_empty() {
                        return Err(Flaw::Truncated);
                    }
                    self.floats.extend(values.iter().map(|value| f32::from_le_bytes(*value)));
                }
                FLOAT if tag == fixed32(1) => {
                    let value = wire::take(&mut list, 4)?.try_into().expect("4 bytes");
                    self.floats.push(f32::from_le_bytes(value));
                }
                INT64 if tag == packed => {
                    let mut values = wire::bytes(&mut list)?;
                    while !values.is_empty() {
                        self.ints.push(wire::varint(&mut values)? as i64);
                    }
                }
                INT64 if tag == var(1) => self.ints.push(wire::varint(&mut list)? as i64),
                _ => wire::skip(&mut list, tag)?,
            }
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ints.len() + self.floats.len() + self.strings.len()
    }
}

/// An element of a column, in its in-memory form.
pub(super) trait Cell: Copy {
    /// The kind of feature from which it is read.
    const KIND: u32;

    /// Reads the value of a feature that holds one value in the encoding that writers use. On `None` the caller takes the slow path.
    fn one(feature: &[u8], block: Block<'_>) -> Option<Self>;

    /// Appends the values of a feature in the encoding that writers use. On `None` the caller takes the slow path, whatever was appended.
    fn many(feature: &[u8], block: Block<'_>, values: &mut Vec<Self>) -> Option<()>;

    /// Appends collected values. The error describes the first value that does not fit.
    fn collected(from: &Collected<'_>, block: Block<'_>, values: &mut Vec<Self>) -> Result<(), String>;

    /// Returns the length of a byte string.
    fn bytes(self) -> usize {
        size_of::<Self>()
    }

    /// Returns the elements as an Arrow array.
    fn array(values: Vec<Self>, blocks: &[Buffer]) -> ArrayRef;
}

/// Returns the list inside a feature that holds only this kind, once.
#[inline(always)]
fn sole_list(feature: &[u8], kind: u32) -> Option<&[u8]> {
    let (tag, mut list) = feature.split_first()?;
    let bytes = wire::varint(&mut list).ok()?;
    (u32::from(*tag) == len(kind) && bytes == list.len() as u64).then_some(list)
}

/// Returns the packed values inside a feature that holds only this kind, once, packed in one piece.
#[inline(always)]
fn sole_packed(feature: &[u8], kind: u32) -> Option<&[u8]> {
    let list = sole_list(feature, kind)?;
    let (tag, mut packed) = list.split_first()?;
    let bytes = wire::varint(&mut packed).ok()?;
    (*tag == 0x0a && bytes == packed.len() as u64).then_some(packed)
}

#[inline(always)]
fn one_int(feature: &[u8]) -> Option<i64> {
    // Feature { int64_list: { value: packed, or one field } }, all lengths below 13.
    let (mut value, list_bytes) = match feature {
        [0x1a, list_bytes, 0x0a, bytes, value @ ..] if usize::from(*bytes) == value.len() => {
            (value, list_bytes.wrapping_sub(2))
        }
        [0x1a, list_bytes, 0x08, value @ ..] => (value, list_bytes.wrapping_sub(1)),
        _ => return None,
    };
    if usize::from(list_bytes) != value.len() {
        return None;
    }
    let number = wire::varint(&mut value).ok()?;
    value.is_empty().then_some(number as i64)
}

macro_rules! int_cell {
    ($native:ty, $array:expr, $convert:expr) => {
        impl Cell for $native {
            const KIND: u32 = INT64;

            #[inline(always)]
            fn one(feature: &[u8], _: Block<'_>) -> Option<Self> {
                let convert: fn(i64) -> Option<Self> = $convert;
                one_int(feature).and_then(convert)
            }

            #[inline]
            fn many(feature: &[u8], _: Block<'_>, values: &mut Vec<Self>) -> Option<()> {
                let convert: fn(i64) -> Option<Self> = $convert;
                let mut packed = sole_packed(feature, INT64)?;
                while !packed.is_empty() {
                    values.push(convert(wire::varint(&mut packed).ok()? as i64)?);
                }
                Some(())
            }

            fn collected(from: &Collected<'_>, _: Block<'_>, values: &mut Vec<Self>) -> Result<(), String> {
                let convert: fn(i64) -> Option<Self> = $convert;
                let fit = |&value: &i64| convert(value).map(|v| values.push(v)).ok_or_else(|| value.to_string());
                from.ints.iter().try_for_each(fit)
            }

            fn array(values: Vec<Self>, _: &[Buffer]) -> ArrayRef {
                $array(values)
            }
        }
    };
}

fn primitive<T: types::ArrowPrimitiveType>(values: Vec<T::Native>) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(values), None))
}

int_cell!(i64, primitive::<types::Int64Type>, Some);
int_cell!(i32, primitive::<types::Int32Type>, |value| value.try_into().ok());
int_cell!(i16, primitive::<types::Int16Type>, |value| value.try_into().ok());
int_cell!(i8, primitive::<types::Int8Type>, |value| value.try_into().ok());
int_cell!(u8, primitive::<types::UInt8Type>, |value| value.try_into().ok());
int_cell!(bool, |values: Vec<bool>| Arc::new(BooleanArray::from(values)), |value| match value {
    0 => Some(false),
    1 => Some(true),
    _ => None,
});

macro_rules! float_cell {
    ($native:ty, $arrow:ty, $convert:expr, $fits:expr) => {
        impl Cell for $native {
            const KIND: u32 = FLOAT;

            #[inline(always)]
            fn one(feature: &[u8], _: Block<'_>) -> Option<Self> {
                match feature {
                    [0x12, 6, 0x0a, 4, a, b, c, d] | [0x12, 5, 0x0d, a, b, c, d] => {
                        let value = f32::from_le_bytes([*a, *b, *c, *d]);
                        let converted = $convert(value);
                        $fits(&converted, value).then_some(converted)
                    }
                    _ => None,
                }
            }

            #[inline]
            fn many(feature: &[u8], _: Block<'_>, values: &mut Vec<Self>) -> Option<()> {
                let (packed, rest) = sole_packed(feature, FLOAT)?.as_chunks::<4>();
                let start = values.len();
                values.extend(packed.iter().map(|value| $convert(f32::from_le_bytes(*value))));
                let mut pairs = values[start..].iter().zip(packed);
                let fits = pairs.all(|(converted, value)| $fits(converted, f32::from_le_bytes(*value)));
                (rest.is_empty() && fits).then_some(())
            }

            fn collected(from: &Collected<'_>, _: Block<'_>, values: &mut Vec<Self>) -> Result<(), String> {
                from.floats.iter().try_for_each(|&value| {
                    let converted = $convert(value);
                    values.push(converted);
                    if $fits(&converted, value) { Ok(()) } else { Err(value.to_string()) }
                })
            }

            fn array(values: Vec<Self>, _: &[Buffer]) -> ArrayRef {
                primitive::<$arrow>(values)
            }
        }
    };
}

float_cell!(f32, types::Float32Type, std::convert::identity, |_: &f32, _| true);
float_cell!(f64, types::Float64Type, f64::from, |_: &f64, _| true);
float_cell!(f16, types::Float16Type, f16::from_f32, |half: &f16, value: f32| half.is_finite() || !value.is_finite());

/// A byte string in Arrow's view layout: up to 12 bytes are stored in the view itself, longer ones by block and offset.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct View(u128);

impl View {
    /// Creates a view of `data`, which lies in `block` unless it is short.
    #[inline(always)]
    pub(super) fn new(data: &[u8], block: Block<'_>) -> Self {
        let offset = (data.as_ptr() as usize).wrapping_sub(block.bytes.as_ptr() as usize);
        Self(make_view(data, block.number, offset as u32))
    }
}

impl Cell for View {
    const KIND: u32 = BYTES;

    #[inline(always)]
    fn one(feature: &[u8], block: Block<'_>) -> Option<Self> {
        Some(View::new(sole_packed(feature, BYTES)?, block))
    }

    #[inline]
    fn many(feature: &[u8], block: Block<'_>, values: &mut Vec<Self>) -> Option<()> {
        let mut list = sole_list(feature, BYTES)?;
        while let Some((0x0a, rest)) = list.split_first() {
            list = rest;
            values.push(View::new(wire::bytes(&mut list).ok()?, block));
        }
        list.is_empty().then_some(())
    }

    fn collected(from: &Collected<'_>, block: Block<'_>, values: &mut Vec<Self>) -> Result<(), String> {
        values.extend(from.strings.iter().map(|data| View::new(data, block)));
        Ok(())
    }

    fn bytes(self) -> usize {
        // The length is the view's first four bytes.
        self.0 as u32 as usize
    }

    fn array(values: Vec<Self>, blocks: &[Buffer]) -> ArrayRef {
        let views: Vec<u128> = values.into_iter().map(|view| view.0).collect();
        let array = BinaryViewArray::try_new(ScalarBuffer::from(views), blocks.to_vec(), None)
            .expect("each view was made from a slice of its block");
        debug_assert_eq!(array.null_count(), 0);
        Arc::new(array)
    }
}
