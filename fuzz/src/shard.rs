//! Opens and reads a stored shard of any format as the loader does, and returns its rows as plain values.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{self, ArrowNativeType, DataType};
use bytes::Bytes;
use forebay::source::{Decoded, Source, check};
use forebay::store::Store;
use forebay::{Column, Error, ErrorKind, Format};

/// Half of a budget; small, so that an input of a few KiB can ask for more.
pub(crate) const MAX_BYTES: usize = 256 << 10;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
}

/// Asks for everything in a shard.
pub(crate) fn all() -> check::Asked {
    check::Asked { columns: None, conditions: Vec::new(), blocks: 1, max_bytes: MAX_BYTES }
}

/// Asks for these columns of a shard.
pub(crate) fn columns(columns: &[Column]) -> check::Asked {
    check::Asked { columns: Some(columns.to_vec()), ..all() }
}

/// Opens a shard while holding no more than the given number of bytes.
///
/// An error has a kind that says what is wrong with the shard, and says where.
pub(crate) fn open(
    shard: Bytes,
    format: Format,
    asked: check::Asked,
    most_bytes: usize,
) -> Result<Arc<dyn Source>, Error> {
    // What is open stays as it is while others are opened.
    static OPENED: AtomicUsize = AtomicUsize::new(0);
    let url = format!("memory://fuzz/shard-{}", OPENED.fetch_add(1, Relaxed) % 8);
    Store::memory_put(&url, shard).expect("a map takes everything");
    let opened = RUNTIME
        .with(|runtime| crate::memory::bounded(most_bytes, || runtime.block_on(check::open(&url, format, asked))));
    if let Err(error) = &opened {
        refused(error);
        assert!(error.place().url.is_some() || error.kind() == ErrorKind::Schema, "no place: {error}");
    }
    opened
}

/// Checks that a shard is refused for its content, or for the memory that the content takes.
pub(crate) fn refused(error: &Error) {
    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Schema | ErrorKind::Memory), "{error}");
}

/// Reads a block while holding no more than `most_bytes` bytes. Returns its rows, whose arrays are consistent, or an error. Nothing is read of blocks
/// that the loader would find too large.
pub(crate) fn block(source: &dyn Source, block: usize, most_bytes: usize) -> Option<Result<Decoded, Error>> {
    let rows = source.catalog().block_rows(block);
    if source.catalog().block_bytes(block) > most_bytes as u64 / 2 || rows > 1 << 16 {
        return None;
    }
    let read = RUNTIME.with(|runtime| {
        crate::memory::bounded(most_bytes, || {
            let fetched = source.fetch(block).map(|read| runtime.block_on(read)).transpose()?;
            source.decode(block, fetched.unwrap_or_default())
        })
    });
    match &read {
        Err(error) => refused(error),
        Ok(decoded) => {
            assert_eq!(decoded.rows.num_rows() as u64, rows, "as many rows as the catalog says");
            assert_eq!(decoded.rows.num_columns(), source.columns().len());
            decoded.rows.columns().iter().for_each(crate::valid);
            assert!(decoded.rows.columns().iter().all(|array| array.logical_null_count() == 0), "a null is delivered");
            assert!(decoded.bad.is_sorted_by(|(a, _), (b, _)| a < b), "bad rows ascend");
            for (row, error) in &decoded.bad {
                assert!((*row as u64) < rows, "row {row} of {rows}");
                refused(error);
                assert!(error.place().url.is_some() && error.place().record.is_some(), "no place: {error}");
            }
        }
    }
    Some(read)
}

/// Returns all rows: the values of each, or `None` for a bad row. The rows of blocks that cannot be read count as bad.
pub(crate) fn rows(source: &dyn Source, most_bytes: usize) -> Option<Vec<Option<Vec<Values>>>> {
    let mut all = Vec::new();
    for number in 0..source.catalog().blocks() {
        match block(source, number, most_bytes)? {
            Ok(decoded) => all.extend(rows_of(&decoded)),
            Err(_) => all.extend((0..source.catalog().block_rows(number)).map(|_| None)),
        }
    }
    Some(all)
}

/// Returns the values of each row, or `None` for a bad row.
pub(crate) fn rows_of(decoded: &Decoded) -> impl Iterator<Item = Option<Vec<Values>>> {
    (0..decoded.rows.num_rows()).map(|row| {
        let good = decoded.bad.binary_search_by_key(&row, |(row, _)| *row).is_err();
        good.then(|| decoded.rows.columns().iter().map(|array| values(array, row).expect("no nulls")).collect())
    })
}

/// The values of a column in a row, with lists expanded.
pub(crate) type Values = Vec<Value>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Int(i64),
    /// The bits of a 64-bit float, including NaNs.
    Float(u64),
    Bool(bool),
    Bytes(Vec<u8>),
    /// A stored value that is not read here.
    Any,
}

/// Returns the values of a stored array in a row; `None` if any of them is null or no column can hold it.
pub(crate) fn values(array: &ArrayRef, row: usize) -> Option<Values> {
    let mut values = Vec::new();
    push(array, row, &mut values).then_some(values)
}

fn push(array: &ArrayRef, row: usize, values: &mut Values) -> bool {
    use DataType::*;
    if array.is_null(row) {
        return false;
    }
    macro_rules! ints {
        ($type:ty) => {
            match i64::try_from(array.as_primitive::<$type>().value(row)) {
                Ok(value) => values.push(Value::Int(value)),
                Err(_) => return false,
            }
        };
    }
    macro_rules! floats {
        ($type:ty) => {
            values.push(Value::Float(f64::from(array.as_primitive::<$type>().value(row)).to_bits()))
        };
    }
    let list =
        |item: &ArrayRef, start: usize, end: usize, values: &mut Values| (start..end).all(|at| push(item, at, values));
    match array.data_type() {
        Int8 => ints!(datatypes::Int8Type),
        Int16 => ints!(datatypes::Int16Type),
        Int32 => ints!(datatypes::Int32Type),
        Int64 => ints!(datatypes::Int64Type),
        UInt8 => ints!(datatypes::UInt8Type),
        UInt16 => ints!(datatypes::UInt16Type),
        UInt32 => ints!(datatypes::UInt32Type),
        UInt64 => ints!(datatypes::UInt64Type),
        Float16 => floats!(datatypes::Float16Type),
        Float32 => floats!(datatypes::Float32Type),
        Float64 => floats!(datatypes::Float64Type),
        Date32 | Time32(_) => values.push(Value::Int(stored::<i32>(array, row).into())),
        Date64 | Time64(_) | Timestamp(..) | Duration(_) => values.push(Value::Int(stored::<i64>(array, row))),
        Boolean => values.push(Value::Bool(array.as_boolean().value(row))),
        Utf8 => values.push(Value::Bytes(array.as_string::<i32>().value(row).into())),
        LargeUtf8 => values.push(Value::Bytes(array.as_string::<i64>().value(row).into())),
        Utf8View => values.push(Value::Bytes(array.as_string_view().value(row).into())),
        Binary => values.push(Value::Bytes(array.as_binary::<i32>().value(row).into())),
        LargeBinary => values.push(Value::Bytes(array.as_binary::<i64>().value(row).into())),
        BinaryView => values.push(Value::Bytes(array.as_binary_view().value(row).into())),
        FixedSizeBinary(_) => values.push(Value::Bytes(array.as_fixed_size_binary().value(row).into())),
        Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            return push(dictionary.values(), dictionary.normalized_keys()[row], values);
        }
        RunEndEncoded(..) => {
            // One row of it as an array of its values.
            let DataType::RunEndEncoded(_, item) = array.data_type() else { return false };
            let Ok(plain) = arrow::compute::cast(&array.slice(row, 1), item.data_type()) else { return false };
            return push(&plain, 0, values);
        }
        List(_) => {
            let (array, offsets) = (array.as_list::<i32>(), array.as_list::<i32>().value_offsets());
            return list(array.values(), offsets[row] as usize, offsets[row + 1] as usize, values);
        }
        LargeList(_) => {
            let (array, offsets) = (array.as_list::<i64>(), array.as_list::<i64>().value_offsets());
            return list(array.values(), offsets[row] as usize, offsets[row + 1] as usize, values);
        }
        ListView(_) => {
            let array = array.as_list_view::<i32>();
            let (start, length) = (array.value_offset(row) as usize, array.value_size(row) as usize);
            return list(array.values(), start, start + length, values);
        }
        LargeListView(_) => {
            let array = array.as_list_view::<i64>();
            let (start, length) = (array.value_offset(row) as usize, array.value_size(row) as usize);
            return list(array.values(), start, start + length, values);
        }
        FixedSizeList(..) => {
            let array = array.as_fixed_size_list();
            let (start, length) = (array.value_offset(row) as usize, array.value_length() as usize);
            return list(array.values(), start, start + length, values);
        }
        _ => values.push(Value::Any),
    }
    true
}

fn stored<T: ArrowNativeType>(array: &ArrayRef, row: usize) -> T {
    let data = array.to_data();
    data.buffers()[0].typed_data::<T>()[data.offset() + row]
}

/// Returns the values of a record batch in a row of the column with a dotted name; `None` if it is null.
pub(crate) fn values_of(batch: &RecordBatch, name: &str, row: usize) -> Option<Values> {
    fn find<'a>(
        fields: &datatypes::Fields,
        columns: &'a [ArrayRef],
        before: &str,
        name: &str,
        row: usize,
    ) -> Option<Option<&'a ArrayRef>> {
        fields.iter().zip(columns).find_map(|(field, array)| {
            let dotted = format!("{before}{}", field.name());
            match field.data_type() {
                DataType::Struct(inner) => {
                    let found = find(inner, array.as_struct().columns(), &format!("{dotted}."), name, row)?;
                    Some(found.filter(|_| array.is_valid(row)))
                }
                _ => (dotted == name).then_some(Some(array)),
            }
        })
    }
    let array = find(batch.schema_ref().fields(), batch.columns(), "", name, row).expect("a column that is stored")?;
    values(array, row)
}

/// Returns whether the values are those wanted, as far as they are read here.
pub(crate) fn agree(found: &Values, wanted: &Values) -> bool {
    found.len() == wanted.len()
        && found.iter().zip(wanted).all(|(found, wanted)| *wanted == Value::Any || found == wanted)
}
