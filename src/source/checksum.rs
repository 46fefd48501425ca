//! Checksums of rows whose source stores none.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A checksum of each row's values, column by column, the lower half of 64 bits into which each is mixed.
///
/// A number is mixed in by a multiplication: hashing each by itself took longer than decoding it from Parquet. Anything longer is hashed with XXH3-64,
/// seeded with what the columns before gave: of a fixed number of elements their bytes; of a list their number before; of byte strings each by itself.
pub(crate) fn row_checksums(rows: &RecordBatch) -> Vec<u32> {
    let mut hashes = vec![0; rows.num_rows()];
    for column in rows.columns() {
        if !mix_numbers(column, &mut hashes) {
            fold(column, &|row| row..row + 1, &mut hashes);
        }
    }
    hashes.into_iter().map(|hash| hash as u32).collect()
}

/// Mixes a column of single numbers into the rows' hashes; `false` where it is none.
fn mix_numbers(array: &ArrayRef, hashes: &mut [u64]) -> bool {
    /// A bijection of the value for each hash, and of the hash for each value: no change is lost.
    fn mix(hash: &mut u64, value: u64) {
        // The golden ratio's odd neighbour, as in SplitMix64.
        let mixed = (*hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *hash = mixed ^ mixed >> 32;
    }
    macro_rules! numbers {
        ($($variant:pat => $type:ident, $bits:expr;)*) => {
            match array.data_type() {
                $($variant => {
                    let values = array.as_primitive::<arrow::datatypes::$type>().values();
                    hashes.iter_mut().zip(values).for_each(|(hash, &value)| mix(hash, $bits(value)));
                })*
                DataType::Boolean => {
                    let values = array.as_boolean().values();
                    hashes.iter_mut().zip(values).for_each(|(hash, value)| mix(hash, u64::from(value)));
                }
                _ => return false,
            }
        };
    }
    numbers! {
        DataType::UInt8 => UInt8Type, u64::from;
        DataType::Int8 => Int8Type, |value| value as u64;
        DataType::Int16 => Int16Type, |value| value as u64;
        DataType::Int32 => Int32Type, |value| value as u64;
        DataType::Int64 => Int64Type, |value| value as u64;
        DataType::Float16 => Float16Type, |value: half::f16| u64::from(value.to_bits());
        DataType::Float32 => Float32Type, |value: f32| u64::from(value.to_bits());
        DataType::Float64 => Float64Type, f64::to_bits;
    }
    true
}

/// Hashes the items of `array` that belong to each row onto the row's hash.
fn fold(array: &ArrayRef, items: &dyn Fn(usize) -> Range<usize>, hashes: &mut [u64]) {
    match array.data_type() {
        DataType::FixedSizeList(_, length) => {
            let length = *length as usize;
            let within = |row| {
                let items: Range<usize> = items(row);
                items.start * length..items.end * length
            };
            fold(array.as_fixed_size_list().values(), &within, hashes);
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            let within = |row| {
                let items: Range<usize> = items(row);
                offsets[items.start] as usize..offsets[items.end] as usize
            };
            for (row, hash) in hashes.iter_mut().enumerate() {
                *hash = xxh3_64_with_seed(&(within(row).len() as u64).to_le_bytes(), *hash);
            }
            fold(list.values(), &within, hashes);
        }
        DataType::BinaryView => {
            let values = array.as_binary_view();
            for (row, hash) in hashes.iter_mut().enumerate() {
                *hash = items(row).fold(*hash, |hash, item| xxh3_64_with_seed(values.value(item), hash));
            }
        }
        DataType::Boolean => {
            let values = array.as_boolean();
            for (row, hash) in hashes.iter_mut().enumerate() {
                *hash = items(row).fold(*hash, |hash, item| xxh3_64_with_seed(&[u8::from(values.value(item))], hash));
            }
        }
        element => {
            // What is left of the types that columns have: numbers in one buffer.
            let (data, Some(width)) = (array.to_data(), element.primitive_width()) else { return };
            let bytes = &data.buffers()[0].as_slice()[data.offset() * width..];
            for (row, hash) in hashes.iter_mut().enumerate() {
                let items = items(row);
                *hash = xxh3_64_with_seed(&bytes[items.start * width..items.end * width], *hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        BinaryViewArray, BooleanArray, FixedSizeListArray, Float32Array, Int64Array, ListArray, UInt8Array,
    };
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::Field;

    use super::*;

    fn fixed(values: Vec<f32>) -> ArrayRef {
        let field = Arc::new(Field::new_list_field(DataType::Float32, false));
        Arc::new(FixedSizeListArray::new(field, 2, Arc::new(Float32Array::from(values)), None))
    }

    fn ragged(lengths: [usize; 3], values: Vec<u8>) -> ArrayRef {
        let field = Arc::new(Field::new_list_field(DataType::UInt8, false));
        Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), Arc::new(UInt8Array::from(values)), None))
    }

    fn strings(values: [&[u8]; 3]) -> ArrayRef {
        Arc::new(BinaryViewArray::from_iter_values(values))
    }

    fn lists(lengths: [usize; 3], values: Vec<&[u8]>) -> ArrayRef {
        let field = Arc::new(Field::new_list_field(DataType::BinaryView, false));
        let values = Arc::new(BinaryViewArray::from_iter_values(values));
        Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), values, None))
    }

    /// Each row of three, as every kind of column.
    fn rows() -> Vec<ArrayRef> {
        vec![
            Arc::new(Int64Array::from(vec![1, 2, 3])),
            fixed(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
            ragged([2, 0, 1], vec![7, 8, 9]),
            strings([b"a", b"", b"a string that does not fit its view"]),
            lists([1, 2, 0], vec![b"x", b"y", b"z"]),
            Arc::new(BooleanArray::from(vec![true, false, true])),
        ]
    }

    fn batch(columns: Vec<ArrayRef>) -> RecordBatch {
        RecordBatch::try_from_iter(columns.into_iter().enumerate().map(|(i, column)| (i.to_string(), column))).unwrap()
    }

    #[test]
    fn the_checksums_are_pinned() {
        assert_eq!(row_checksums(&batch(rows())), PINNED);
    }

    const PINNED: [u32; 3] = [1960993926, 3165891664, 3234176646];

    #[test]
    fn a_change_of_any_value_changes_the_checksum_of_its_row_alone() {
        let changes: Vec<(usize, ArrayRef, usize)> = vec![
            (0, Arc::new(Int64Array::from(vec![1, 2, 4])), 2),
            (1, fixed(vec![0.0, 1.0, 2.0, 3.5, 4.0, 5.0]), 1),
            (2, ragged([2, 0, 1], vec![7, 6, 9]), 0),
            (3, strings([b"a", b"", b"a string that does not fit its vieW"]), 2),
            (4, lists([1, 2, 0], vec![b"x", b"y", b"Z"]), 1),
            (5, Arc::new(BooleanArray::from(vec![false, false, true])), 0),
        ];
        let before = row_checksums(&batch(rows()));
        for (column, changed, at) in changes {
            let mut columns = rows();
            columns[column] = changed;
            let after = row_checksums(&batch(columns));
            let differing: Vec<usize> = (0..3).filter(|&row| before[row] != after[row]).collect();
            assert_eq!(differing, [at], "column {column}");
        }
    }

    #[test]
    fn elements_that_move_to_the_next_list_or_column_are_noticed() {
        let checksums = |columns| row_checksums(&batch(columns));
        let moved = |a: [usize; 3], b: [usize; 3]| {
            (
                checksums(vec![ragged(a, vec![1, 1, 1]), ragged(b, vec![1, 1, 1])]),
                checksums(vec![ragged(b, vec![1; 3]), ragged(a, vec![1; 3])]),
            )
        };
        let (one, other) = moved([2, 1, 0], [1, 2, 0]);
        assert!(one[0] != other[0] && one[1] != other[1] && one[2] == other[2]);
    }

    #[test]
    fn slices_have_the_checksums_of_their_rows() {
        let (whole, rows) = (row_checksums(&batch(rows())), batch(rows()));
        for (start, len) in [(0, 3), (1, 2), (2, 1), (1, 0)] {
            assert_eq!(row_checksums(&rows.slice(start, len)), whole[start..start + len]);
        }
    }
}
