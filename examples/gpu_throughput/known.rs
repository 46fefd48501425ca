//! Rows of known numbers, in columns that go each way to a device, and checksums of their batches.

use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Int64Array, ListArray, UInt8Array};
use arrow::datatypes::{DataType, Field, Int32Type};
use forebay::{Batch, Dataset};
use tch::{Kind, Tensor};

use super::Result;

/// Of a batch `x` is above 1 MiB and has a tensor of its own; `label` and `tag` share one; `tokens` has no bound and crosses in pieces of 1 MiB.
pub(crate) const COLUMNS: [&str; 4] = ["x", "label", "tag", "tokens"];

pub(crate) const ROWS: u64 = 8192;
pub(crate) const BATCH: usize = 192;
const WIDTH: usize = 1024;
/// The one row of `tokens` that makes nine pieces of its batch.
const LONG_ROW: u64 = 5000;
const LONG: usize = 12_000;

fn x(row: u64, at: usize) -> i64 {
    (row as i64).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64) >> (at % 48)
}

fn label(row: u64) -> i64 {
    row as i64 * 7 % 1000
}

fn tag(row: u64) -> u8 {
    (row % 251) as u8
}

fn tokens(row: u64) -> impl Iterator<Item = i32> {
    let len = if row == LONG_ROW { LONG } else { row as usize % 40 };
    (0..len).map(move |at| (row as usize * 31 + at * 17 + 1) as i32)
}

/// The rows' data set, for batches of `BATCH`, and what is needed for the checksums.
pub(crate) struct Known {
    pub(crate) dataset: Dataset,
    /// Of each row and column: the sum of its elements, each times its place from 1 on.
    sums: Vec<[i64; COLUMNS.len()]>,
    /// 1, 2, 3, ... on the device.
    places: Tensor,
}

impl Known {
    pub(crate) fn new(device: tch::Device) -> Result<Self> {
        let item = Arc::new(Field::new_list_field(DataType::Int64, false));
        let values = (0..ROWS).flat_map(|row| (0..WIDTH).map(move |at| x(row, at)));
        let values = Arc::new(Int64Array::from_iter_values(values));
        let columns: [ArrayRef; 4] = [
            Arc::new(FixedSizeListArray::new(item, WIDTH as i32, values, None)),
            Arc::new(Int64Array::from_iter_values((0..ROWS).map(label))),
            Arc::new(UInt8Array::from_iter_values((0..ROWS).map(tag))),
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
                (0..ROWS).map(|row| Some(tokens(row).map(Some))),
            )),
        ];
        let sums = (0..ROWS).map(|row| {
            [
                weighted((0..WIDTH).map(|at| x(row, at))),
                label(row),
                tag(row).into(),
                weighted(tokens(row).map(i64::from)),
            ]
        });
        Ok(Self {
            dataset: Dataset::from_columns(COLUMNS.into_iter().zip(columns))?,
            sums: sums.collect(),
            places: Tensor::f_arange_start(1, LONG as i64 + 1, (Kind::Int64, device))?,
        })
    }

    /// The checksums of a batch's columns, `i64 [columns]`, as its device computes them: elements times their place in the row times the row's place in the batch,
    /// so that what arrives in a wrong place shows.
    pub(crate) fn on_device(&self, batch: &Batch) -> Result<Tensor> {
        let len = batch.len() as i64;
        let places = |count: i64| self.places.f_narrow(0, 0, count);
        let sums = COLUMNS.map(|name| -> Result<Tensor> {
            let column = batch.tensor(name)?.f_to_kind(Kind::Int64)?;
            let width = column.size().get(1).copied().unwrap_or(1);
            let weighted = column.f_view([len, width])?.f_mul(&places(width)?)?;
            let of_rows = weighted.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
            Ok(of_rows.f_mul(&places(len)?)?.f_sum(Kind::Int64)?)
        });
        let sums = sums.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_stack(&sums, 0)?)
    }

    /// What they must be.
    pub(crate) fn of(&self, batch: &Batch) -> [i64; COLUMNS.len()] {
        std::array::from_fn(|column| weighted(batch.samples().iter().map(|&row| self.sums[row as usize][column])))
    }
}

/// The sum of numbers, each times its place from 1 on; it wraps, as libtorch's does.
fn weighted(numbers: impl Iterator<Item = i64>) -> i64 {
    (1..).zip(numbers).fold(0, |sum: i64, (place, number)| sum.wrapping_add(number.wrapping_mul(place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_that_arrives_in_wrong_places_shows() {
        let known = Known::new(tch::Device::Cpu).unwrap();
        let batch = known.dataset.batch(BATCH).loader().build().unwrap().epoch(0).next().unwrap().unwrap();
        let found = || Vec::<i64>::try_from(&known.on_device(&batch).unwrap()).unwrap();
        let mut right = known.of(&batch);
        assert_eq!(found(), right);
        for (number, name) in COLUMNS.into_iter().enumerate() {
            // The batch's own memory.
            let mut column = batch.tensor(name).unwrap();
            column.copy_(&column.roll([1], [0]));
            let found = found();
            assert_ne!(found[number], right[number], "{name}");
            right[number] = found[number];
            assert_eq!(found, right, "{name}");
        }
    }
}
