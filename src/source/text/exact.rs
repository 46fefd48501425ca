//! Text to integers and times as a whole, and to floats that hold it: Arrow's readers cut off the fractions of the former, and make the latter infinite.

use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, ListArray, PrimitiveArray, StructArray};
use arrow::compute::kernels::cast_utils::{Parser, string_to_datetime};
use arrow::datatypes::{
    DataType, Date32Type, FieldRef, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
};
use arrow::error::ArrowError;

use crate::error::{Error, Result};
use crate::schema::Dtype;

/// A field as it is read: text, where the reader would cut something off.
pub(super) fn as_text(field: &FieldRef, is_cut: fn(&DataType) -> bool) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::List(item) => DataType::List(as_text(item, is_cut)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|field| as_text(field, is_cut)).collect()),
        cut if is_cut(cut) => DataType::Utf8,
        _ => return field.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

/// What was read as text, as the type of its field.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) for the first value that loses by it; the place holds the column.
pub(super) fn from_text(array: &ArrayRef, field: &FieldRef) -> Result<ArrayRef> {
    convert(array, field, field.name())
}

fn convert(array: &ArrayRef, field: &FieldRef, name: &str) -> Result<ArrayRef> {
    let broken = |e: ArrowError| Error::corrupt("cannot be read as the column").because(e).column(name);
    Ok(match (array.data_type(), field.data_type()) {
        (DataType::Utf8, DataType::Int8) => values::<Int8Type>(array, name, int)?,
        (DataType::Utf8, DataType::Int16) => values::<Int16Type>(array, name, int)?,
        (DataType::Utf8, DataType::Int32) => values::<Int32Type>(array, name, int)?,
        (DataType::Utf8, DataType::Int64) => values::<Int64Type>(array, name, int)?,
        (DataType::Utf8, DataType::UInt8) => values::<UInt8Type>(array, name, int)?,
        (DataType::Utf8, DataType::Float32) => floats::<Float32Type>(array, name, f32::is_infinite)?,
        (DataType::Utf8, DataType::Float64) => floats::<Float64Type>(array, name, f64::is_infinite)?,
        (DataType::Utf8, DataType::Date32) => values::<Date32Type>(array, name, date)?,
        (DataType::Utf8, DataType::Timestamp(unit, _)) => match unit {
            TimeUnit::Second => values::<TimestampSecondType>(array, name, |text| time(text, 1))?,
            TimeUnit::Millisecond => values::<TimestampMillisecondType>(array, name, |text| time(text, 1_000))?,
            TimeUnit::Microsecond => values::<TimestampMicrosecondType>(array, name, |text| time(text, 1_000_000))?,
            TimeUnit::Nanosecond => values::<TimestampNanosecondType>(array, name, |text| time(text, NANOSECONDS))?,
        },
        (DataType::List(_), DataType::List(item)) => {
            let list = array.as_list::<i32>();
            let values = convert(list.values(), item, name)?;
            let list = ListArray::try_new(item.clone(), list.offsets().clone(), values, list.nulls().cloned());
            Arc::new(list.map_err(broken)?)
        }
        (DataType::Struct(_), DataType::Struct(fields)) => {
            let parts = array.as_struct();
            let columns = parts.columns().iter().zip(fields);
            let columns = columns.map(|(part, field)| convert(part, field, &format!("{name}.{}", field.name())));
            let columns = columns.collect::<Result<Vec<_>>>()?;
            Arc::new(StructArray::try_new(fields.clone(), columns, parts.nulls().cloned()).map_err(broken)?)
        }
        _ => array.clone(),
    })
}

fn values<T: ArrowPrimitiveType>(array: &ArrayRef, name: &str, parse: impl Fn(&str) -> Option<i64>) -> Result<ArrayRef>
where
    T::Native: TryFrom<i64>,
{
    let parsed = array.as_string::<i32>().iter().map(|text| {
        let Some(text) = text else { return Ok(None) };
        let value = parse(text).and_then(|value| T::Native::try_from(value).ok());
        value.map(Some).ok_or_else(|| no_value(text, &T::DATA_TYPE, name))
    });
    Ok(Arc::new(parsed.collect::<Result<PrimitiveArray<T>>>()?))
}

/// Floats as the readers take them, but for digits that none of the dtype holds.
fn floats<T: Parser>(array: &ArrayRef, name: &str, is_infinite: fn(T::Native) -> bool) -> Result<ArrayRef> {
    let parsed = array.as_string::<i32>().iter().map(|text| {
        let Some(text) = text else { return Ok(None) };
        let value = T::parse(text).filter(|value| !is_infinite(*value) || !text.contains(|c: char| c.is_ascii_digit()));
        value.map(Some).ok_or_else(|| no_value(text, &T::DATA_TYPE, name))
    });
    Ok(Arc::new(parsed.collect::<Result<PrimitiveArray<T>>>()?))
}

/// Whether there is an infinite float among what was read.
pub(super) fn has_infinite(array: &ArrayRef) -> bool {
    match array.data_type() {
        DataType::Float32 => array.as_primitive::<Float32Type>().values().iter().any(|value| value.is_infinite()),
        DataType::Float64 => array.as_primitive::<Float64Type>().values().iter().any(|value| value.is_infinite()),
        DataType::List(_) => has_infinite(array.as_list::<i32>().values()),
        DataType::Struct(_) => array.as_struct().columns().iter().any(has_infinite),
        _ => false,
    }
}

/// The error of a text that is no value of its column.
pub(super) fn no_value(text: &str, data_type: &DataType, name: &str) -> Error {
    let short: String = text.chars().take(64).collect();
    let what = Dtype::from_arrow(data_type).map_or_else(|| data_type.to_string(), |dtype| dtype.to_string());
    let other = if data_type.is_temporal() { "as bytes" } else { "with another dtype" };
    Error::corrupt(format!("{short:?} is no {what}"))
        .column(name)
        .advice(format!("mend the shard, or declare the column {other} in .columns()"))
}

/// A number without fraction, as `12`, `1.0` or `1e3`.
fn int(text: &str) -> Option<i64> {
    if let Ok(value) = text.parse() {
        return Some(value);
    }
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i64>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() || significant == "-" {
        return (digits.len() > significant.len()).then_some(0);
    }
    let zeros = exponent.checked_sub(fraction.len() as i64)?.checked_add((digits.len() - significant.len()) as i64)?;
    significant.parse::<i64>().ok()?.checked_mul(10i64.checked_pow(u32::try_from(zeros).ok()?)?)
}

/// Days since 1970, of a date or of midnight.
fn date(text: &str) -> Option<i64> {
    let days = i64::from(Date32Type::parse(text)?);
    (text.len() <= 10 || time(text, 1) == Some(days * 86_400)).then_some(days)
}

const NANOSECONDS: i64 = 1_000_000_000;

/// A point in time in units of which a second has so many.
fn time(text: &str, per_second: i64) -> Option<i64> {
    let utc: Tz = "+00:00".parse().ok()?;
    let time = string_to_datetime(&utc, text).ok()?;
    let (nanoseconds, unit) = (i64::from(time.timestamp_subsec_nanos()), NANOSECONDS / per_second);
    let whole = time.timestamp().checked_mul(per_second)?.checked_add(nanoseconds / unit)?;
    (nanoseconds % unit == 0).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_no_fraction_however_they_are_spelled() {
        let cases = [
            ("12", Some(12)),
            ("-0", Some(0)),
            ("-0.0", Some(0)),
            ("0e5", Some(0)),
            ("1.0", Some(1)),
            ("1e3", Some(1000)),
            ("-1.50E+1", Some(-15)),
            ("1200e-2", Some(12)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("9223372036854775807.0", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("1e19", None),
            ("1e999999999999999999999", None),
            ("1.5", None),
            ("1e-1", None),
            ("1.00000000000000000000001", None),
            ("", None),
            ("-", None),
            (".", None),
            ("e3", None),
            ("true", None),
            ("1.-5", None),
        ];
        for (text, value) in cases {
            assert_eq!(int(text), value, "{text:?}");
        }
    }

    #[test]
    fn times_are_whole_in_their_unit() {
        assert_eq!(time("1970-01-01 00:00:01", 1), Some(1));
        assert_eq!(time("1970-01-01T00:00:01.500Z", 1), None);
        assert_eq!(time("1970-01-01T00:00:01.500Z", 1_000), Some(1_500));
        assert_eq!(time("1970-01-01T00:00:01.0005", 1_000), None);
        assert_eq!(time("1969-12-31 23:59:59.5", 1_000), Some(-500));
        assert_eq!(time("1970-01-02", 1), Some(86_400));
        assert_eq!(
            (date("1970-01-02"), date("1970-01-02 00:00:00"), date("1970-01-02 00:00:01")),
            (Some(1), Some(1), None)
        );
        assert_eq!((date("9"), time("9", 1)), (None, None));
    }
}
