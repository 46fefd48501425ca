//! Writes rows into a batch's memory: stacked, padded, decoded in place.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;

use super::buffer::{Allocator, Part, Whole};
use super::{BatchColumn, Data, Pad, Side, copy};
use crate::error::{Error, ErrorKind, Result};
use crate::random::Key;
use crate::schema::{Column, Dtype, Element, Shape};
use crate::transform::image::{Image, Scratch};

/// Rows on their way from blocks to batches, and which samples they are.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub(crate) rows: RecordBatch,
    pub(crate) samples: Vec<Sample>,
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    /// Joins rows end to end.
    pub(crate) fn concat(chunks: &[Self]) -> Result<Self> {
        let Some(first) = chunks.first() else { return Err(Error::config("no rows to join")) };
        let alike = chunks.iter().map(|chunk| in_order_of(&first.rows, &chunk.rows));
        let alike = alike.collect::<Result<Vec<_>, _>>();
        let rows = alike.and_then(|alike| arrow::compute::concat_batches(first.rows.schema_ref(), alike.iter()));
        let rows = rows.map_err(|e| Error::new(ErrorKind::Transform, "rows of different columns met").because(e))?;
        Ok(Self { rows, samples: chunks.iter().flat_map(|chunk| chunk.samples.iter().copied()).collect() })
    }

    pub(crate) fn slice(&self, start: usize, len: usize) -> Self {
        Self { rows: self.rows.slice(start, len), samples: self.samples[start..start + len].to_vec() }
    }
}

/// Puts the columns of rows into the order of others: Arrow joins rows by column number, but columns are known by name.
pub(crate) fn in_order_of(first: &RecordBatch, rows: &RecordBatch) -> std::result::Result<RecordBatch, ArrowError> {
    let (wanted, found) = (first.schema_ref().fields(), rows.schema_ref());
    if wanted.iter().zip(found.fields()).all(|(a, b)| a.name() == b.name()) && wanted.len() == found.fields().len() {
        return Ok(rows.clone());
    }
    let indices =
        wanted.iter().map(|field| found.index_of(field.name())).collect::<std::result::Result<Vec<_>, _>>()?;
    rows.project(&indices)
}

/// The identity of a row, from which all its randomness derives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) id: u64,
    /// How often the sample was drawn before.
    pub(crate) pass: u64,
    /// Which of the rows it is that a flat_map made of the sample.
    pub(crate) part: u32,
    /// The checksum of the record that the sample was read from.
    pub(crate) checksum: u32,
}

impl Sample {
    /// The key of this sample below an operation's key.
    pub(crate) fn key(self, operation: Key) -> Key {
        let key = operation.with_number(self.id).with_number(self.pass);
        if self.part == 0 { key } else { key.with_number(u64::from(self.part)) }
    }
}

/// How one column of the batch is made.
#[derive(Clone)]
pub(crate) struct Layout {
    /// Name, dtype and shape in the batch.
    pub(crate) column: Column,
    pub(crate) pad: Pad,
    /// The image operation that fills the slots, with the key of its randomness.
    pub(crate) image: Option<(Arc<Image>, Key)>,
    /// Whether the column holds no elements of a sample, but says where they lie; its padding does not count.
    pub(crate) is_index: bool,
}

impl Layout {
    pub(crate) fn is_bytes(&self) -> bool {
        self.column.dtype() == Dtype::Bytes
    }

    /// Bytes that a sample takes in the batch, if they are known before its rows are.
    pub(crate) fn sample_bytes(&self) -> Option<usize> {
        match (self.column.shape(), self.pad.length) {
            (Shape::Ragged(inner), Some(length)) => {
                Some(inner.iter().product::<usize>() * self.pad.extent(length) * self.column.dtype().size()?)
            }
            _ => self.column.sample_bytes(),
        }
    }
}

/// The most bytes that each column takes in a batch of `samples` samples, if they are known beforehand.
#[cfg(feature = "tch")]
pub(crate) fn bounds(layouts: &[Layout], samples: usize) -> Vec<Option<usize>> {
    layouts.iter().map(|layout| layout.sample_bytes().map(|bytes| bytes * samples)).collect()
}

/// Bytes that each column takes in the batch of these rows.
pub(crate) fn column_bytes(layouts: &[Layout], chunks: &[Rows]) -> impl Iterator<Item = usize> {
    let len: usize = chunks.iter().map(Rows::len).sum();
    let sample = |layout: &Layout| {
        layout.sample_bytes().or_else(|| {
            let Shape::Ragged(inner) = layout.column.shape() else { return None };
            let lengths =
                chunks.iter().filter_map(|chunk| chunk.rows.column_by_name(layout.column.name())).map(list_lengths);
            let longest = layout.pad.extent(lengths.flatten().max().unwrap_or(0) as usize);
            Some(longest * inner.iter().product::<usize>() * layout.column.dtype().size()?)
        })
    };
    layouts.iter().map(move |layout| sample(layout).unwrap_or(0) * len)
}

/// A batch being filled: one part for each chunk of rows and column.
pub(crate) struct Filling {
    columns: Vec<ColumnFilling>,
    len: usize,
}

/// A column being filled.
struct ColumnFilling {
    layout: Layout,
    shape: Vec<usize>,
    lengths: Option<Vec<i64>>,
    memory: Memory,
}

enum Memory {
    Filling(Whole),
    Bytes(ArrayRef),
}

/// The slots of one chunk of rows: a part for each column that has memory.
pub(crate) struct Slots {
    parts: Vec<Option<(Part, usize)>>,
}

/// Allocates a batch for these chunks of rows.
///
/// # Errors
/// A column is gone; no memory.
pub(crate) fn begin(layouts: &[Layout], chunks: &[Rows], allocator: &Allocator) -> Result<(Filling, Vec<Slots>)> {
    let len = chunks.iter().map(Rows::len).sum();
    let mut slots: Vec<Slots> = chunks.iter().map(|_| Slots { parts: Vec::with_capacity(layouts.len()) }).collect();
    let mut columns = Vec::with_capacity(layouts.len());
    for (number, layout) in layouts.iter().enumerate() {
        let name = layout.column.name();
        let arrays: Vec<&ArrayRef> = chunks.iter().map(|chunk| column(chunk, name)).collect::<Result<_>>()?;
        if layout.is_bytes() {
            let arrays: Vec<&dyn Array> = arrays.iter().map(|array| array.as_ref()).collect();
            let array = arrow::compute::concat(&arrays)
                .map_err(|e| Error::new(ErrorKind::Schema, "cannot be joined").because(e).column(name.clone()))?;
            columns.push(ColumnFilling {
                layout: layout.clone(),
                shape: vec![len],
                lengths: None,
                memory: Memory::Bytes(array),
            });
            slots.iter_mut().for_each(|slots| slots.parts.push(None));
            continue;
        }
        let mut shape = vec![len];
        let lengths = match layout.column.shape() {
            Shape::Scalar => None,
            Shape::Fixed(extents) => {
                shape.extend(extents);
                None
            }
            Shape::Ragged(inner) => {
                let mut lengths: Vec<i64> = arrays.iter().flat_map(|array| list_lengths(array)).collect();
                let longest = lengths.iter().max().copied().unwrap_or(0) as usize;
                let extent = layout.pad.extent(longest);
                // What is longer is cut here, or refused when it is to be written.
                lengths.iter_mut().for_each(|length| *length = (*length).min(extent as i64));
                shape.push(extent);
                shape.extend(inner);
                Some(lengths)
            }
        };
        let sample_bytes = shape[1..].iter().product::<usize>() * layout.column.dtype().size().expect("not bytes");
        let buffer = allocator.allocate(number, layout.column.dtype(), &shape)?;
        let (whole, parts) = buffer.split(chunks.iter().map(|chunk| chunk.len() * sample_bytes));
        for (slots, part) in slots.iter_mut().zip(parts) {
            slots.parts.push(Some((part, sample_bytes)));
        }
        columns.push(ColumnFilling { layout: layout.clone(), shape, lengths, memory: Memory::Filling(whole) });
    }
    Ok((Filling { columns, len }, slots))
}

fn column<'a>(rows: &'a Rows, name: &str) -> Result<&'a ArrayRef> {
    let found = rows.rows.column_by_name(name);
    found.ok_or_else(|| Error::new(ErrorKind::Schema, "the column is gone before the batch").column(name))
}

fn list_lengths(array: &ArrayRef) -> Vec<i64> {
    let Some(array) = array.as_list_opt::<i32>() else { return Vec::new() };
    array.offsets().lengths().map(|length| length as i64).collect()
}

/// Writes one chunk of rows into its slots.
///
/// Returns the rows that cannot be written, with the reason for each. In each column it stops after the first bad row that `may_leave_out` does not
/// allow. All other rows are written.
pub(crate) fn fill(
    layouts: &[Layout],
    rows: &Rows,
    mut slots: Slots,
    may_leave_out: &dyn Fn(&Error) -> bool,
    scratch: &mut Scratch,
) -> Vec<(usize, Error)> {
    let mut all_bad = Vec::new();
    for (layout, part) in layouts.iter().zip(&mut slots.parts) {
        let Some((part, sample_bytes)) = part else { continue };
        let array = match column(rows, layout.column.name()) {
            Ok(array) => array,
            Err(error) => return vec![(0, error)],
        };
        let mut bad = |row: usize, error: Error| {
            let go_on = may_leave_out(&error);
            all_bad.push((row, error.column(layout.column.name().clone()).sample(rows.samples[row].id)));
            go_on
        };
        match &layout.image {
            Some((image, key)) => {
                let encoded = array.as_binary_view();
                let slots = part.bytes().chunks_exact_mut(*sample_bytes);
                for (row, (sample, slot)) in rows.samples.iter().zip(slots).enumerate() {
                    let decoded = image.decode_into(encoded.value(row), sample.key(*key), slot, scratch);
                    if let Err(error) = decoded
                        && !bad(row, error.stage("image"))
                    {
                        break;
                    }
                }
            }
            None if layout.column.is_raw() => copy_raw(&layout.column, array, part.bytes(), *sample_bytes, &mut bad),
            None => fill_values(layout, array, part.bytes(), *sample_bytes, &mut bad),
        }
    }
    one_a_row(all_bad, may_leave_out)
}

/// Keeps one reason for each row, in the order of rows. If a row has several, it keeps one that ends the run, if there is any: the writing of that
/// column stopped there.
fn one_a_row(mut bad: Vec<(usize, Error)>, may_leave_out: &dyn Fn(&Error) -> bool) -> Vec<(usize, Error)> {
    bad.sort_by_key(|(row, error)| (*row, may_leave_out(error)));
    bad.dedup_by_key(|(row, _)| *row);
    bad
}

fn copy_raw(
    column: &Column,
    array: &ArrayRef,
    out: &mut [u8],
    sample_bytes: usize,
    bad: &mut dyn FnMut(usize, Error) -> bool,
) {
    let (values, stored) = (array.as_binary_view(), column.stored_dtype());
    let size = |dtype: Dtype| dtype.size().expect("raw columns hold numbers");
    let wanted = sample_bytes / size(column.dtype()) * size(stored);
    let streams = copy::is_streamed(out.len(), sample_bytes);
    for (row, slot) in out.chunks_exact_mut(sample_bytes.max(1)).enumerate() {
        let value = values.value(row);
        if value.len() == wanted {
            match (stored, column.dtype()) {
                (Dtype::I32, Dtype::I64) => widen(value, slot, |v| i64::from(i32::from_ne_bytes(v)).to_ne_bytes()),
                (Dtype::F32, Dtype::F64) => widen(value, slot, |v| f64::from(f32::from_ne_bytes(v)).to_ne_bytes()),
                _ if streams => copy::stream(value, slot),
                _ => slot.copy_from_slice(value),
            }
        } else {
            let message = format!("{} bytes, {wanted} declared", value.len());
            if !bad(row, Error::new(ErrorKind::Schema, message).stage("collate")) {
                return;
            }
        }
    }
}

/// Widens elements of four bytes to elements of eight.
fn widen(value: &[u8], slot: &mut [u8], element: impl Fn([u8; 4]) -> [u8; 8]) {
    for (from, to) in value.as_chunks::<4>().0.iter().zip(slot.as_chunks_mut::<8>().0) {
        *to = element(*from);
    }
}

fn fill_values(
    layout: &Layout,
    array: &ArrayRef,
    out: &mut [u8],
    sample_bytes: usize,
    bad: &mut dyn FnMut(usize, Error) -> bool,
) {
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let items = flat_bytes(list.values());
            let size = layout.column.dtype().size().expect("not bytes");
            let Shape::Ragged(inner) = layout.column.shape() else { unreachable!("lists are ragged") };
            let item = inner.iter().product::<usize>() * size;
            let filler = filler(layout.column.dtype(), layout.pad.value);
            for (row, offsets) in list.value_offsets().windows(2).enumerate() {
                let length = (offsets[1] - offsets[0]) as usize;
                if !layout.pad.truncate && layout.pad.extent(length) < length {
                    let message =
                        format!("a sample of {length} rows, where {} are the bound", layout.pad.extent(length));
                    let error = Error::new(ErrorKind::Transform, message).stage("collate");
                    if !bad(row, error.advice("raise the bound of Pad::to(n), or cut samples with Pad::truncate_to(n)"))
                    {
                        return;
                    }
                    continue;
                }
                let slot = &mut out[row * sample_bytes..(row + 1) * sample_bytes];
                let value = &items[offsets[0] as usize * item..offsets[1] as usize * item];
                let kept = value.len().min(slot.len());
                let value = match layout.pad.cut {
                    Side::Left => &value[value.len() - kept..],
                    Side::Right => &value[..kept],
                };
                let (rows, padding) = match layout.pad.side {
                    Side::Left => {
                        let (padding, rows) = slot.split_at_mut(slot.len() - kept);
                        (rows, padding)
                    }
                    Side::Right => slot.split_at_mut(kept),
                };
                rows.copy_from_slice(value);
                padding.chunks_exact_mut(size).for_each(|element| element.copy_from_slice(&filler[..size]));
            }
        }
        DataType::FixedSizeList(_, n) => {
            let list = array.as_fixed_size_list();
            let values = list.values().slice(list.value_offset(0) as usize, *n as usize * list.len());
            copy_flat(&flat_bytes(&values), out);
        }
        _ => copy_flat(&flat_bytes(array), out),
    }
}

/// Copies rows that lie end to end.
fn copy_flat(rows: &[u8], out: &mut [u8]) {
    if copy::is_streamed(out.len(), out.len()) { copy::stream(rows, out) } else { out.copy_from_slice(rows) }
}

/// The memory of an array's elements, with fixed lists flattened.
fn flat_bytes(array: &ArrayRef) -> Cow<'_, [u8]> {
    fn typed<T: Element>(array: &ArrayRef) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytemuck::cast_slice(array.as_primitive::<T::Arrow>().values()))
    }
    match array.data_type() {
        DataType::UInt8 => typed::<u8>(array),
        DataType::Int8 => typed::<i8>(array),
        DataType::Int16 => typed::<i16>(array),
        DataType::Int32 => typed::<i32>(array),
        DataType::Int64 => typed::<i64>(array),
        DataType::Float16 => typed::<half::f16>(array),
        DataType::Float32 => typed::<f32>(array),
        DataType::Float64 => typed::<f64>(array),
        DataType::Boolean => array.as_boolean().values().iter().map(u8::from).collect(),
        DataType::FixedSizeList(_, n) => {
            let list = array.as_fixed_size_list();
            let (start, len) = (list.value_offset(0) as usize, *n as usize * list.len());
            match flat_bytes(list.values()) {
                Cow::Borrowed(bytes) => {
                    let size = bytes.len() / list.values().len().max(1);
                    Cow::Borrowed(&bytes[start * size..(start + len) * size])
                }
                Cow::Owned(bytes) => Cow::Owned(bytes[start..start + len].to_vec()),
            }
        }
        other => unreachable!("{other} is not carried between stages"),
    }
}

/// A padding value in the dtype's own bytes: the first `size` of them.
fn filler(dtype: Dtype, value: f64) -> [u8; 8] {
    let mut bytes = [0; 8];
    let mut put = |value: &[u8]| bytes[..value.len()].copy_from_slice(value);
    match dtype {
        Dtype::U8 => put(&[value as u8]),
        Dtype::I8 => put(&(value as i8).to_ne_bytes()),
        Dtype::I16 => put(&(value as i16).to_ne_bytes()),
        Dtype::I32 => put(&(value as i32).to_ne_bytes()),
        Dtype::I64 => put(&(value as i64).to_ne_bytes()),
        Dtype::F16 => put(&half::f16::from_f64(value).to_ne_bytes()),
        Dtype::F32 => put(&(value as f32).to_ne_bytes()),
        Dtype::F64 => put(&value.to_ne_bytes()),
        Dtype::Bool => put(&[u8::from(value != 0.0)]),
        Dtype::Bytes => {}
    }
    bytes
}

impl Filling {
    /// The number of elements of the ragged columns, and of the padding that fills them up.
    pub(crate) fn padding(&self) -> (u64, u64) {
        let (mut tokens, mut all) = (0, 0);
        for column in self.columns.iter().filter(|column| !column.layout.is_index) {
            if let Some(lengths) = &column.lengths {
                let inner = column.shape[2..].iter().product::<usize>() as u64;
                tokens += lengths.iter().sum::<i64>() as u64 * inner;
                all += column.shape.iter().product::<usize>() as u64;
            }
        }
        (tokens, all - tokens)
    }

    /// Returns the finished columns, reduced to the rows in `kept`. All slots must have been filled and dropped.
    pub(crate) fn finish(self, kept: &[Range<usize>]) -> Result<Vec<BatchColumn>> {
        let all = kept.iter().map(ExactSizeIterator::len).sum::<usize>() == self.len;
        let columns = self.columns.into_iter().map(|ColumnFilling { layout, mut shape, mut lengths, memory }| {
            if !all {
                shape[0] = kept.iter().map(ExactSizeIterator::len).sum();
                lengths = lengths.map(|all| kept.iter().flat_map(|rows| &all[rows.clone()]).copied().collect());
            }
            let data = match memory {
                Memory::Bytes(array) if all => Data::Bytes(array),
                Memory::Bytes(array) => {
                    let parts: Vec<_> = kept.iter().map(|rows| array.slice(rows.start, rows.len())).collect();
                    let parts: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).collect();
                    let joined = arrow::compute::concat(&parts);
                    Data::Bytes(joined.map_err(|e| Error::new(ErrorKind::Schema, "cannot be joined").because(e))?)
                }
                Memory::Filling(whole) => {
                    let mut buffer = whole.join().expect("slots are dropped once they are filled");
                    if !all {
                        let row =
                            shape[1..].iter().product::<usize>() * layout.column.dtype().size().expect("not bytes");
                        buffer.keep(kept.iter().map(|rows| rows.start * row..rows.end * row));
                    }
                    Data::Host(Arc::new(buffer))
                }
            };
            Ok(BatchColumn { column: layout.column, shape, data, lengths })
        });
        columns.collect()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float32Array, Int64Array, ListArray};
    use arrow::datatypes::Int64Type;

    use super::*;
    use crate::engine::Budget;
    use crate::engine::budget::Account;
    use crate::{bytes, float32, int64};

    fn rows(columns: Vec<(&str, ArrayRef)>) -> Rows {
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let samples = (0..rows.num_rows() as u64).map(|id| Sample { id, pass: 0, part: 0, checksum: 0 }).collect();
        Rows { rows, samples }
    }

    fn collate(layouts: &[Layout], chunks: &[Rows], kept: Option<&[Range<usize>]>) -> Result<Vec<BatchColumn>> {
        let account = Account::new(Budget::mebibytes(64));
        let (filling, slots) = begin(layouts, chunks, &Allocator::new(&account))?;
        for (rows, slots) in chunks.iter().zip(slots) {
            let bad = fill(layouts, rows, slots, &|_| false, &mut Scratch::default());
            bad.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))?;
        }
        let all = Range { start: 0, end: filling.len };
        filling.finish(kept.unwrap_or(std::slice::from_ref(&all)))
    }

    fn layout(column: Column, pad: Pad) -> Layout {
        Layout { column, pad, image: None, is_index: false }
    }

    fn values<T: Element>(column: &BatchColumn) -> Vec<T> {
        match &column.data {
            Data::Host(buffer) => bytemuck::cast_slice(buffer.bytes()).to_vec(),
            _ => panic!("not in host memory"),
        }
    }

    fn ragged(lists: &[&[i64]]) -> ArrayRef {
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(
            lists.iter().map(|l| Some(l.iter().map(|&v| Some(v)))),
        ))
    }

    #[test]
    fn chunks_are_stacked_in_order() {
        let chunk = |values: Vec<i64>| rows(vec![("a", Arc::new(Int64Array::from(values)) as _)]);
        let chunks = [chunk(vec![1, 2]), chunk(vec![]), chunk(vec![3])];
        let columns = collate(&[layout(int64("a"), Pad::default())], &chunks, None).unwrap();
        assert_eq!((values::<i64>(&columns[0]), &columns[0].shape), (vec![1, 2, 3], &vec![3]));
        let columns = collate(&[layout(int64("a"), Pad::default())], &chunks, Some(&[0..1, 2..3])).unwrap();
        assert_eq!((values::<i64>(&columns[0]), &columns[0].shape), (vec![1, 3], &vec![2]));
    }

    #[test]
    fn slices_of_arrays_keep_their_place() {
        let all = rows(vec![
            ("a", Arc::new(Float32Array::from_iter_values((0..6).map(|x| x as f32))) as _),
            ("r", ragged(&[&[1], &[2, 3], &[], &[4, 5, 6], &[7], &[]])),
        ]);
        let chunks = [all.slice(1, 2), all.slice(3, 2)];
        let layouts = [layout(float32("a"), Pad::default()), layout(int64("r").ragged(), Pad::longest().value(-1.0))];
        let columns = collate(&layouts, &chunks, None).unwrap();
        assert_eq!(values::<f32>(&columns[0]), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(columns[1].shape, [4, 3]);
        assert_eq!(values::<i64>(&columns[1]), [2, 3, -1, -1, -1, -1, 4, 5, 6, 7, -1, -1]);
        assert_eq!(columns[1].lengths.as_deref(), Some(&[2, 0, 3, 1][..]));
    }

    #[test]
    fn a_bound_is_kept_cut_to_or_refused() {
        let chunks = [rows(vec![("r", ragged(&[&[1, 2, 3], &[4]]))])];
        let to = |pad| collate(&[layout(int64("r").ragged(), pad)], &chunks, None);
        assert_eq!(values::<i64>(&to(Pad::to(4)).unwrap()[0]), [1, 2, 3, 0, 4, 0, 0, 0]);
        let cut = to(Pad::truncate_to(2)).unwrap();
        assert_eq!((values::<i64>(&cut[0]), cut[0].lengths.clone()), (vec![1, 2, 4, 0], Some(vec![2, 1])));
        for bound in [2, 0] {
            let error = to(Pad::to(bound)).err().unwrap().to_string();
            assert!(error.contains(&format!("a sample of 3 rows, where {bound} are the bound")), "{error}");
        }
    }

    #[test]
    fn padding_and_cutting_have_a_side_each() {
        let chunks = [rows(vec![("r", ragged(&[&[1, 2, 3, 4, 5], &[6], &[]]))])];
        let collated = |pad: Pad| {
            let columns = collate(&[layout(int64("r").ragged(), pad.value(9.0))], &chunks, None).unwrap();
            let extent = columns[0].shape[1];
            (
                values::<i64>(&columns[0]).chunks(extent).map(<[i64]>::to_vec).collect::<Vec<_>>(),
                columns[0].lengths.clone(),
            )
        };
        let cases: [(Pad, Side, Side, [&[i64]; 3]); 8] = [
            (Pad::truncate_to(3), Side::Right, Side::Right, [&[1, 2, 3], &[6, 9, 9], &[9, 9, 9]]),
            (Pad::truncate_to(3), Side::Left, Side::Right, [&[1, 2, 3], &[9, 9, 6], &[9, 9, 9]]),
            (Pad::truncate_to(3), Side::Right, Side::Left, [&[3, 4, 5], &[6, 9, 9], &[9, 9, 9]]),
            (Pad::truncate_to(3), Side::Left, Side::Left, [&[3, 4, 5], &[9, 9, 6], &[9, 9, 9]]),
            // Rounded up, the stated length too.
            (Pad::truncate_to(3).multiple_of(4), Side::Left, Side::Left, [&[2, 3, 4, 5], &[9, 9, 9, 6], &[9, 9, 9, 9]]),
            (
                Pad::longest().multiple_of(3),
                Side::Left,
                Side::Right,
                [&[9, 1, 2, 3, 4, 5], &[9, 9, 9, 9, 9, 6], &[9; 6]],
            ),
            (Pad::longest().multiple_of(5), Side::Right, Side::Right, [&[1, 2, 3, 4, 5], &[6, 9, 9, 9, 9], &[9; 5]]),
            (Pad::to(5).multiple_of(6), Side::Right, Side::Right, [&[1, 2, 3, 4, 5, 9], &[6, 9, 9, 9, 9, 9], &[9; 6]]),
        ];
        for (pad, side, cut, wanted) in cases {
            let pad = pad.side(side).cut(cut);
            let (found, lengths) = collated(pad);
            assert_eq!(found, wanted, "{pad}");
            let extent = found[0].len() as i64;
            assert_eq!(lengths.as_deref(), Some(&[5.min(extent), 1, 0][..]), "{pad}");
        }
    }

    #[test]
    fn a_reason_that_ends_the_run_is_not_hidden_by_one_that_does_not() {
        let error = |kind, message| Error::new(kind, message);
        let bad = vec![
            (1, error(ErrorKind::Corrupt, "first column")),
            (4, error(ErrorKind::Corrupt, "first column")),
            (1, error(ErrorKind::Config, "second column")),
            (0, error(ErrorKind::Corrupt, "third column")),
            (4, error(ErrorKind::Corrupt, "third column")),
        ];
        let left = one_a_row(bad, &|error| error.kind() == ErrorKind::Corrupt);
        let left: Vec<_> = left.iter().map(|(row, error)| (*row, error.kind())).collect();
        assert_eq!(left, [(0, ErrorKind::Corrupt), (1, ErrorKind::Config), (4, ErrorKind::Corrupt)]);
    }

    #[test]
    fn raw_bytes_must_have_the_declared_size() {
        let array: ArrayRef = Arc::new(arrow::array::BinaryViewArray::from_iter_values([&b"abcd"[..], b"efg"]));
        let layouts = [layout(bytes("x").raw(Dtype::U8, [2, 2]), Pad::default())];
        let all = rows(vec![("x", array)]);
        let columns = collate(&layouts, &[all.slice(0, 1)], None).unwrap();
        assert_eq!((values::<u8>(&columns[0]), &columns[0].shape), (b"abcd".to_vec(), &vec![1, 2, 2]));
        assert!(collate(&layouts, &[all], None).err().unwrap().to_string().contains("3 bytes, 4 declared"));
    }
}
