//! Single elements: which stored types can become which dtype, and what stands for those that are null.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BinaryViewArray, BinaryViewBuilder, BooleanArray,
    Int64Array, LargeBinaryArray, PrimitiveArray, make_view,
};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, Float16Type, Float32Type, Float64Type,
    Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
};
use arrow::error::ArrowError;
use half::f16;

use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Missing};

/// The kinds of stored elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bytes,
    Bool,
    Int,
    Float,
    Decimal,
    Time,
    Null,
}

fn kind_of(data_type: &DataType) -> Option<Kind> {
    use DataType::*;
    Some(match data_type {
        Binary | LargeBinary | BinaryView | Utf8 | LargeUtf8 | Utf8View | FixedSizeBinary(_) => Kind::Bytes,
        Boolean => Kind::Bool,
        Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 => Kind::Int,
        Float16 | Float32 | Float64 => Kind::Float,
        Decimal32(..) | Decimal64(..) | Decimal128(..) | Decimal256(..) => Kind::Decimal,
        Date32 | Date64 | Time32(_) | Time64(_) | Timestamp(..) | Duration(_) => Kind::Time,
        Null => Kind::Null,
        _ => return None,
    })
}

pub(super) fn is_bytes(data_type: &DataType) -> bool {
    kind_of(data_type) == Some(Kind::Bytes)
}

/// The dtype of elements where none is declared.
pub(super) fn default_dtype(data_type: &DataType) -> Option<Dtype> {
    Some(match kind_of(data_type)? {
        Kind::Bytes => Dtype::Bytes,
        Kind::Decimal => Dtype::F64,
        Kind::Time => Dtype::I64,
        Kind::Null => return None,
        Kind::Bool | Kind::Int | Kind::Float => match data_type {
            DataType::UInt16 => Dtype::I32,
            DataType::UInt32 | DataType::UInt64 => Dtype::I64,
            same => Dtype::from_arrow(same)?,
        },
    })
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::F32 | Dtype::F64)
}

/// Whether elements of this type can become the dtype, apart from single values that do not fit.
pub(super) fn castable(data_type: &DataType, dtype: Dtype) -> bool {
    match kind_of(data_type) {
        Some(Kind::Null) => true,
        Some(Kind::Bytes) => dtype == Dtype::Bytes,
        Some(Kind::Bool | Kind::Int) => dtype != Dtype::Bytes,
        Some(Kind::Float) => is_float(dtype),
        Some(Kind::Decimal) => dtype.is_int() || is_float(dtype),
        Some(Kind::Time) => dtype.is_int(),
        None => false,
    }
}

/// Elements in their dtype, null where they were or do not fit; the latter in ascending order, each with what is wrong.
pub(super) fn elements(array: &ArrayRef, dtype: Dtype) -> Result<(ArrayRef, Vec<(usize, String)>)> {
    let stored = array.data_type();
    let refused = |e: Option<ArrowError>| {
        let error = Error::new(ErrorKind::Schema, format!("is stored as {stored} and declared as {dtype}"));
        if let Some(e) = e { error.because(e) } else { error }
    };
    if !castable(stored, dtype) {
        return Err(refused(None));
    }
    let kind = kind_of(stored);
    if *stored == dtype.arrow() {
        return Ok((array.clone(), Vec::new()));
    }
    let cast_to = |array: &ArrayRef| cast(array, &dtype.arrow()).map_err(|e| refused(Some(e)));
    let casted = match kind {
        Some(Kind::Bytes) => return Ok((views(array).map_err(|e| refused(Some(e)))?, Vec::new())),
        Some(Kind::Null) => return Ok((cast_to(array)?, Vec::new())),
        Some(Kind::Int) if is_float(dtype) => exact_floats(array, dtype).map_err(|e| refused(Some(e)))?,
        Some(Kind::Int) if dtype == Dtype::Bool => {
            let wide = cast(array, &DataType::Int64).map_err(|e| refused(Some(e)))?;
            let values =
                wide.as_primitive::<Int64Type>().iter().map(|v| v.filter(|v| (0..2).contains(v)).map(|v| v == 1));
            Arc::new(BooleanArray::from_iter(values))
        }
        Some(Kind::Time) => {
            let wide = cast(array, &DataType::Int64).map_err(|e| refused(Some(e)))?;
            if dtype == Dtype::I64 { wide } else { cast_to(&wide)? }
        }
        Some(Kind::Decimal) if dtype.is_int() => {
            let wide = unscaled(array);
            if dtype == Dtype::I64 { wide } else { cast_to(&wide)? }
        }
        Some(Kind::Decimal) => {
            let wide = cast(array, &DataType::Float64).map_err(|e| refused(Some(e)))?;
            if dtype == Dtype::F64 { wide } else { finite(&wide, cast_to(&wide)?) }
        }
        Some(Kind::Float) => finite(array, cast_to(array)?),
        _ => cast_to(array)?,
    };
    let misfits = newly_null(array, &casted).into_iter().map(|at| {
        let value = arrow::util::display::array_value_to_string(array, at).unwrap_or_else(|_| "a value".into());
        (at, format!("{value} does not fit {dtype}"))
    });
    let misfits = misfits.collect();
    Ok((casted, misfits))
}

/// What is null behind a cast and was not before.
fn newly_null(before: &ArrayRef, after: &ArrayRef) -> Vec<usize> {
    let Some(nulls) = after.nulls().filter(|nulls| nulls.null_count() > before.null_count()) else { return Vec::new() };
    (0..after.len()).filter(|&at| nulls.is_null(at) && !before.is_null(at)).collect()
}

/// Integers as floats that hold them exactly, null where there is none for certain.
fn exact_floats(array: &ArrayRef, dtype: Dtype) -> Result<ArrayRef, ArrowError> {
    use DataType::*;
    let floats = cast(array, &dtype.arrow())?;
    let (exact, largest) = match dtype {
        Dtype::F16 => (matches!(array.data_type(), Int8 | UInt8), 1 << 11),
        Dtype::F32 => (matches!(array.data_type(), Int8 | UInt8 | Int16 | UInt16), 1 << 24),
        _ => (!matches!(array.data_type(), Int64 | UInt64), 1 << 53),
    };
    if exact {
        return Ok(floats);
    }
    let wide = cast(array, &Int64)?;
    let wide: &Int64Array = wide.as_primitive();
    let fits = |at: usize| wide.is_valid(at) && wide.value(at).unsigned_abs() <= largest;
    if wide.null_count() == array.null_count() && wide.values().iter().all(|v| v.unsigned_abs() <= largest) {
        return Ok(floats);
    }
    Ok(with_nulls(&floats, NullBuffer::from_iter((0..wide.len()).map(fits))))
}

/// Floats that were rounded, null where a finite one became infinite.
fn finite(before: &ArrayRef, after: ArrayRef) -> ArrayRef {
    fn infinite(array: &ArrayRef) -> Vec<bool> {
        match array.data_type() {
            DataType::Float16 => array.as_primitive::<Float16Type>().values().iter().map(|v| v.is_infinite()).collect(),
            DataType::Float32 => array.as_primitive::<Float32Type>().values().iter().map(|v| v.is_infinite()).collect(),
            _ => array.as_primitive::<Float64Type>().values().iter().map(|v| v.is_infinite()).collect(),
        }
    }
    let now = infinite(&after);
    if !now.contains(&true) {
        return after;
    }
    let was = infinite(before);
    let grown = now.iter().zip(was).map(|(&now, was)| now && !was);
    let fits = grown.enumerate().map(|(at, grown)| after.is_valid(at) && !grown).collect::<Vec<_>>();
    if after.null_count() == fits.iter().filter(|fits| !**fits).count() {
        return after;
    }
    with_nulls(&after, NullBuffer::from(fits))
}

fn with_nulls(floats: &ArrayRef, nulls: NullBuffer) -> ArrayRef {
    fn of<T: ArrowPrimitiveType>(array: &ArrayRef, nulls: NullBuffer) -> ArrayRef {
        Arc::new(PrimitiveArray::<T>::new(array.as_primitive::<T>().values().clone(), Some(nulls)))
    }
    match floats.data_type() {
        DataType::Float16 => of::<Float16Type>(floats, nulls),
        DataType::Float32 => of::<Float32Type>(floats, nulls),
        _ => of::<Float64Type>(floats, nulls),
    }
}

/// The integers that decimals are stored as, null where they take more than 64 bits.
fn unscaled(array: &ArrayRef) -> ArrayRef {
    let wide: Int64Array = match array.data_type() {
        DataType::Decimal32(..) => array.as_primitive::<Decimal32Type>().unary(i64::from),
        DataType::Decimal64(..) => array.as_primitive::<Decimal64Type>().unary(|value| value),
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().unary_opt(|value| i64::try_from(value).ok()),
        _ => array.as_primitive::<Decimal256Type>().unary_opt(|value| i64::try_from(value.to_i128()?).ok()),
    };
    Arc::new(wide)
}

/// Byte strings and text as views into the buffers they are stored in.
pub(super) fn views(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    Ok(Arc::new(match array.data_type() {
        DataType::BinaryView => return Ok(array.clone()),
        DataType::Utf8View => array.as_string_view().clone().to_binary_view(),
        DataType::Utf8 => BinaryViewArray::from(&BinaryArray::from(array.as_string::<i32>().clone())),
        DataType::LargeUtf8 => BinaryViewArray::from(&LargeBinaryArray::from(array.as_string::<i64>().clone())),
        DataType::Binary => BinaryViewArray::from(array.as_binary::<i32>()),
        DataType::LargeBinary => BinaryViewArray::from(array.as_binary::<i64>()),
        DataType::FixedSizeBinary(n) => {
            let strings = array.as_fixed_size_binary();
            let length = *n as usize;
            if array.len().saturating_mul(length) > u32::MAX as usize {
                return cast(array, &DataType::BinaryView);
            }
            let mut builder = BinaryViewBuilder::with_capacity(array.len());
            let block = builder.append_block(strings.values().clone());
            for row in 0..array.len() {
                match strings.is_null(row) {
                    true => builder.append_null(),
                    false => builder.try_append_view(block, (row * length) as u32, *n as u32)?,
                }
            }
            builder.finish()
        }
        other => return Err(ArrowError::CastError(format!("{other} are no byte strings"))),
    }))
}

/// What stands for a null, in each form that elements have.
#[derive(Clone, Debug, Default)]
pub(super) struct StandIn {
    int: i64,
    float: f64,
    bytes: Vec<u8>,
}

/// What stands for a null in this column; zeros where a null is an error.
pub(super) fn stand_in(column: &Column) -> Result<StandIn> {
    let dtype = column.dtype();
    let refuse = || {
        Err(Error::config(format!("{:?} is no default for {dtype}", column.missing()))
            .column(column.name().clone())
            .advice("give .or() a value of the column's dtype"))
    };
    let (int, float) = match column.missing() {
        Missing::Error => return Ok(StandIn::default()),
        Missing::Bytes(bytes) => {
            let fits = if column.is_raw() { column.sample_bytes() == Some(bytes.len()) } else { dtype == Dtype::Bytes };
            return if fits { Ok(StandIn { bytes: bytes.clone(), ..Default::default() }) } else { refuse() };
        }
        Missing::Int(int) => (*int, *int as f64),
        Missing::Float(_) if !is_float(dtype) => return refuse(),
        Missing::Float(float) => (0, *float),
    };
    let element = match dtype {
        Dtype::U8 => u8::try_from(int).ok().map(|v| v.to_le_bytes().to_vec()),
        Dtype::I8 => i8::try_from(int).ok().map(|v| v.to_le_bytes().to_vec()),
        Dtype::I16 => i16::try_from(int).ok().map(|v| v.to_le_bytes().to_vec()),
        Dtype::I32 => i32::try_from(int).ok().map(|v| v.to_le_bytes().to_vec()),
        Dtype::I64 => Some(int.to_le_bytes().to_vec()),
        Dtype::Bool => u8::try_from(int).ok().filter(|v| *v < 2).map(|v| vec![v]),
        Dtype::F16 => Some(f16::from_f64(float).to_le_bytes().to_vec()),
        Dtype::F32 => Some((float as f32).to_le_bytes().to_vec()),
        Dtype::F64 => Some(float.to_le_bytes().to_vec()),
        Dtype::Bytes => None,
    };
    let Some(element) = element else { return refuse() };
    let bytes =
        if column.is_raw() { element.repeat(column.sample_bytes().unwrap_or(0) / element.len()) } else { element };
    Ok(StandIn { int, float, bytes })
}

/// Elements of a dtype with the stand-in where they are null, without nulls.
pub(super) fn fill(array: &ArrayRef, dtype: Dtype, stand_in: &StandIn) -> Result<ArrayRef> {
    fn numbers<T: ArrowPrimitiveType>(array: &ArrayRef, nulls: &NullBuffer, value: T::Native) -> ArrayRef {
        let mut values = array.as_primitive::<T>().values().to_vec();
        values.iter_mut().zip(nulls).for_each(|(slot, valid)| {
            if !valid {
                *slot = value;
            }
        });
        Arc::new(PrimitiveArray::<T>::new(values.into(), None))
    }
    let Some(nulls) = array.nulls().filter(|nulls| nulls.null_count() > 0) else { return Ok(array.clone()) };
    let StandIn { int, float, bytes } = stand_in;
    Ok(match dtype {
        Dtype::U8 => numbers::<UInt8Type>(array, nulls, *int as u8),
        Dtype::I8 => numbers::<Int8Type>(array, nulls, *int as i8),
        Dtype::I16 => numbers::<Int16Type>(array, nulls, *int as i16),
        Dtype::I32 => numbers::<Int32Type>(array, nulls, *int as i32),
        Dtype::I64 => numbers::<Int64Type>(array, nulls, *int),
        Dtype::F16 => numbers::<Float16Type>(array, nulls, f16::from_f64(*float)),
        Dtype::F32 => numbers::<Float32Type>(array, nulls, *float as f32),
        Dtype::F64 => numbers::<Float64Type>(array, nulls, *float),
        Dtype::Bool => {
            let values = array.as_boolean().values();
            let filled = if *int == 1 { values | &!nulls.inner() } else { values & nulls.inner() };
            Arc::new(BooleanArray::new(filled, None))
        }
        Dtype::Bytes => {
            let (views, buffers, _) = array.as_binary_view().clone().into_parts();
            let mut buffers = buffers.to_vec();
            let too_long = |_| Error::new(ErrorKind::Memory, "a value for what is missing of 4 GiB or more");
            let _length = u32::try_from(bytes.len()).map_err(too_long)?;
            let view = make_view(bytes, buffers.len() as u32, 0);
            // A view holds up to 12 bytes itself.
            if bytes.len() > 12 {
                buffers.push(Buffer::from_vec(bytes.clone()));
            }
            let views: Vec<u128> =
                views.iter().zip(nulls).map(|(&old, valid)| if valid { old } else { view }).collect();
            let filled = BinaryViewArray::try_new(views.into(), buffers, None);
            Arc::new(filled.map_err(|e| Error::new(ErrorKind::Schema, "cannot be carried").because(e))?)
        }
    })
}
