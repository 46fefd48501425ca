//! Columns of numbers and of lists of numbers, decoded straight into the memory of their array.
//!
//! Levels are processed as the runs in which they are stored: a list of 2,048 tokens costs a few steps, not 2,048. Values go from the decompressed
//! page to their final place in one pass. Whatever is not covered here (encodings other than plain and dictionary, deeper lists) is left to the
//! general reader.

use std::sync::Arc;

use arrow::array::{ArrayRef, ArrowPrimitiveType, BooleanBufferBuilder, ListArray, PrimitiveArray};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Int32Type, Int64Type};
use bytemuck::Pod;
use bytes::Bytes;
use parquet::basic::{CompressionCodec as Codec, Type as Physical};

use super::hybrid::{Run, Runs, unpack, width_of};
use super::page::{Decompressor, Encoding, Page, PageKind, Pages};
use crate::error::{Error, Result};

/// The stored bytes of a column in one row group, or in a part of it: pages from some row on.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// The dictionary page, if `pages` does not begin with it.
    pub(super) dictionary: Option<Bytes>,
    pub(super) pages: Bytes,
    /// The bytes to which all of it may decompress, and the values that it may hold, according to the footer.
    pub(super) bytes: u64,
    pub(super) values: u64,
    pub(super) codec: Codec,
    /// The number of values expected: memory for them is allocated at once.
    pub(super) expected: usize,
    /// Whether the first page begins with the rest of a list that is not wanted.
    pub(super) begins_within: bool,
}

/// The levels of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Levels {
    pub(super) max_definition: i16,
    /// 0 for numbers, 1 for lists of them.
    pub(super) max_repetition: i16,
    /// The lowest definition level at which a list has an element.
    pub(super) element: i16,
}

/// Returns whether columns of this type are decoded here.
pub(super) fn is_covered(stored: Physical, wanted: &DataType, levels: Levels) -> bool {
    let element = match wanted {
        DataType::List(item) => item.data_type(),
        other => other,
    };
    let is_list = matches!(wanted, DataType::List(_));
    let matches = matches!(
        (stored, element),
        (Physical::INT32, DataType::Int32)
            | (Physical::INT64, DataType::Int64)
            | (Physical::FLOAT, DataType::Float32)
            | (Physical::DOUBLE, DataType::Float64)
    );
    matches && levels.max_repetition == i16::from(is_list)
}

/// Decodes a column of a covered type; returns `None` if a page is stored in a way that is left to the general reader.
pub(super) fn decode(
    chunk: &Chunk,
    stored: Physical,
    levels: Levels,
    decompressor: &mut Decompressor,
) -> Result<Option<ArrayRef>> {
    match stored {
        Physical::INT32 => Column::<Int32Type>::decode(chunk, levels, decompressor),
        Physical::INT64 => Column::<Int64Type>::decode(chunk, levels, decompressor),
        Physical::FLOAT => Column::<Float32Type>::decode(chunk, levels, decompressor),
        Physical::DOUBLE => Column::<Float64Type>::decode(chunk, levels, decompressor),
        _ => Ok(None),
    }
}

/// A column that is being decoded.
struct Column<T: ArrowPrimitiveType> {
    levels: Levels,
    begins_within: bool,
    dictionary: Vec<T::Native>,
    values: Vec<T::Native>,
    /// Which values are not null; kept only from the first null on.
    present: Option<BooleanBufferBuilder>,
    /// Where each list begins in the values, and which lists are not null (kept only from the first null on).
    starts: Vec<i32>,
    lists: Option<BooleanBufferBuilder>,
    /// Unpacked numbers, and values without their gaps.
    scratch: Scratch<T::Native>,
}

struct Scratch<T> {
    repetition: Vec<u32>,
    definition: Vec<u32>,
    dense: Vec<T>,
}

/// The number of indexes that are unpacked at a time: they stay in the first-level cache.
const UNPACKED: usize = 1024;

impl<T: ArrowPrimitiveType<Native: Pod>> Column<T> {
    fn decode(chunk: &Chunk, levels: Levels, decompressor: &mut Decompressor) -> Result<Option<ArrayRef>> {
        let mut column = Self {
            levels,
            begins_within: chunk.begins_within,
            dictionary: Vec::new(),
            values: Vec::with_capacity(chunk.expected),
            present: None,
            starts: Vec::new(),
            lists: None,
            scratch: Scratch { repetition: Vec::new(), definition: Vec::new(), dense: Vec::new() },
        };
        let mut left = chunk.values;
        for part in chunk.dictionary.iter().chain([&chunk.pages]) {
            let mut pages = Pages::new(part.clone(), 0..part.len(), chunk.bytes);
            while let Some(page) = pages.next()? {
                let (kind, offset) = (page.header.kind, page.offset as u64);
                if kind == PageKind::Other {
                    continue;
                }
                if page.header.is_data() {
                    left = left.checked_sub(page.header.values.into()).ok_or_else(|| {
                        Error::corrupt("pages hold more values than the footer says").byte_offset(offset)
                    })?;
                }
                let page = decompressor.open(page, chunk.codec)?;
                let taken =
                    if kind == PageKind::Dictionary { column.take_dictionary(&page) } else { column.take(&page) };
                match taken.map_err(|error| error.byte_offset(offset))? {
                    true => {}
                    false => return Ok(None),
                }
            }
        }
        column.finish().map(Some)
    }

    fn take_dictionary(&mut self, page: &Page<'_>) -> Result<bool> {
        if !matches!(page.header.encoding, Encoding::Plain | Encoding::Dictionary) {
            return Ok(false);
        }
        self.dictionary.clear();
        plain(page.data, page.header.values as usize, &mut self.dictionary)?;
        Ok(true)
    }

    /// Takes a page of values; returns `false` if its encoding is not covered here.
    fn take(&mut self, page: &Page<'_>) -> Result<bool> {
        let values = page.header.values as usize;
        if !matches!(page.header.encoding, Encoding::Plain | Encoding::Dictionary) {
            return Ok(false);
        }
        let (repetition, definition, data): (&[u8], &[u8], &[u8]) = match page.header.kind {
            PageKind::DataV2 { .. } => (page.repetition, page.definition, page.data),
            _ if page.header.levels != Encoding::Rle => return Ok(false),
            _ => {
                let (repetition, rest) = levels_of(page.data, self.levels.max_repetition)?;
                let (definition, rest) = levels_of(rest, self.levels.max_definition)?;
                (repetition, definition, rest)
            }
        };
        let definition = Runs::new(definition, width_of(self.levels.max_definition), values)?;
        if self.levels.max_repetition == 0 {
            self.take_numbers(definition, data, page.header.encoding, values)?;
        } else {
            let repetition = Runs::new(repetition, 1, values)?;
            self.take_lists(repetition, definition, data, page.header.encoding, values)?;
        }
        Ok(true)
    }

    fn take_numbers(&mut self, mut runs: Runs<'_>, data: &[u8], encoding: Encoding, values: usize) -> Result<()> {
        let max = self.levels.max_definition as u32;
        if max == 0 {
            return self.take_values(data, encoding, values);
        }
        let mut first = runs.next()?;
        if first.is_none() || first == Some(Run::Repeated { value: max, count: values }) {
            return self.take_values(data, encoding, values);
        }
        let definition = &mut self.scratch.definition;
        definition.clear();
        while let Some(run) = first {
            write_out(run, width_of(self.levels.max_definition), definition);
            first = runs.next()?;
        }
        check_levels(definition, max)?;
        let definition = std::mem::take(definition);
        let taken = self.take_with_gaps(&definition, data, encoding);
        self.scratch.definition = definition;
        taken
    }

    fn take_lists(
        &mut self,
        mut repetition: Runs<'_>,
        mut definition: Runs<'_>,
        data: &[u8],
        encoding: Encoding,
        values: usize,
    ) -> Result<()> {
        let max = self.levels.max_definition as u32;
        let first = definition.next()?;
        if first.is_none() || first == Some(Run::Repeated { value: max, count: values }) {
            // Every level stands for a value: where lists begin is all there is to know.
            let mut at = self.values.len();
            while let Some(run) = repetition.next()? {
                match run {
                    Run::Repeated { value: 0, count } => {
                        for start in at..at + count {
                            self.begin_list(start, true)?;
                        }
                        at += count;
                    }
                    Run::Repeated { count, .. } => {
                        self.goes_on()?;
                        at += count;
                    }
                    run @ Run::Packed { .. } => {
                        let mut levels = std::mem::take(&mut self.scratch.repetition);
                        levels.clear();
                        write_out(run, 1, &mut levels);
                        for (i, &level) in levels.iter().enumerate() {
                            if level == 0 { self.begin_list(at + i, true)? } else { self.goes_on()? }
                        }
                        at += levels.len();
                        self.scratch.repetition = levels;
                    }
                }
            }
            return self.take_values(data, encoding, values);
        }
        let mut definitions = std::mem::take(&mut self.scratch.definition);
        let mut repetitions = std::mem::take(&mut self.scratch.repetition);
        definitions.clear();
        repetitions.clear();
        let mut next = first;
        while let Some(run) = next {
            write_out(run, width_of(self.levels.max_definition), &mut definitions);
            next = definition.next()?;
        }
        while let Some(run) = repetition.next()? {
            write_out(run, 1, &mut repetitions);
        }
        check_levels(&definitions, max)?;
        let (element, mut at) = (self.levels.element as u32, self.values.len());
        for (&definition, &repetition) in definitions.iter().zip(&repetitions) {
            if repetition == 0 {
                // One level below its elements a list is empty, further below it is none.
                self.begin_list(at, definition + 1 >= element)?;
            } else {
                self.goes_on()?;
            }
            at += usize::from(definition >= element);
        }
        definitions.retain(|&definition| definition >= element);
        let taken = self.take_with_gaps(&definitions, data, encoding);
        (self.scratch.definition, self.scratch.repetition) = (definitions, repetitions);
        taken
    }

    fn begin_list(&mut self, start: usize, is_there: bool) -> Result<()> {
        let start = i32::try_from(start).map_err(|_| too_many())?;
        match &mut self.lists {
            Some(lists) => lists.append(is_there),
            None if is_there => {}
            none => {
                let mut lists = BooleanBufferBuilder::new(self.starts.len() + 1);
                lists.append_n(self.starts.len(), true);
                lists.append(false);
                *none = Some(lists);
            }
        }
        self.starts.push(start);
        Ok(())
    }

    /// Checks that values can continue the previous list: there must be one, or the values come before the first wanted list and are not wanted
    /// themselves.
    fn goes_on(&self) -> Result<()> {
        match self.starts.is_empty() && !self.begins_within {
            true => Err(Error::corrupt("a column begins in the middle of a list")),
            false => Ok(()),
        }
    }

    /// Takes values with nulls among them: each definition level says whether its value is present.
    fn take_with_gaps(&mut self, definitions: &[u32], data: &[u8], encoding: Encoding) -> Result<()> {
        let max = self.levels.max_definition as u32;
        let there = definitions.iter().filter(|&&definition| definition == max).count();
        if there == definitions.len() {
            return self.take_values(data, encoding, there);
        }
        let before = self.values.len();
        let present = self.present.get_or_insert_with(|| {
            let mut present = BooleanBufferBuilder::new(before + definitions.len());
            present.append_n(before, true);
            present
        });
        let mut dense = std::mem::take(&mut self.scratch.dense);
        dense.clear();
        read_values(data, encoding, there, &self.dictionary, &mut dense)?;
        let mut next = dense.iter();
        self.values.extend(definitions.iter().map(|&definition| {
            let is_there = definition == max;
            present.append(is_there);
            if is_there { next.next().copied().unwrap_or_default() } else { T::Native::default() }
        }));
        self.scratch.dense = dense;
        Ok(())
    }

    /// Takes values without nulls.
    fn take_values(&mut self, data: &[u8], encoding: Encoding, values: usize) -> Result<()> {
        if let Some(present) = &mut self.present {
            present.append_n(values, true);
        }
        read_values(data, encoding, values, &self.dictionary, &mut self.values)
    }

    fn finish(mut self) -> Result<ArrayRef> {
        let end = i32::try_from(self.values.len()).map_err(|_| too_many())?;
        let nulls = |built: Option<BooleanBufferBuilder>| built.map(|mut built| NullBuffer::new(built.finish()));
        let values = PrimitiveArray::<T>::new(ScalarBuffer::from(self.values), nulls(self.present));
        if self.levels.max_repetition == 0 {
            return Ok(Arc::new(values));
        }
        self.starts.push(end);
        let field = Arc::new(Field::new_list_field(T::DATA_TYPE, true));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.starts));
        Ok(Arc::new(ListArray::new(field, offsets, Arc::new(values), nulls(self.lists))))
    }
}

fn too_many() -> Error {
    Error::corrupt("2^31 or more elements in one block").advice("write the shard with smaller row groups")
}

/// Splits the levels off the front of a page of the first version; returns the levels and the rest.
pub(super) fn levels_of(data: &[u8], max: i16) -> Result<(&[u8], &[u8])> {
    if max == 0 {
        return Ok((&[], data));
    }
    let early = || Error::corrupt("a page ends within its levels");
    let (length, rest) = data.split_first_chunk::<4>().ok_or_else(early)?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(early)
}

/// Checks levels against the maximum: they are packed into bits that can hold numbers larger than the highest level.
fn check_levels(levels: &[u32], max: u32) -> Result<()> {
    let fills_its_bits = (max + 1).is_power_of_two();
    match levels.iter().max().filter(|&&level| !fills_its_bits && level > max) {
        Some(level) => Err(Error::corrupt(format!("a level of {level}, where {max} is the most"))),
        None => Ok(()),
    }
}

/// Writes the numbers of a run.
fn write_out(run: Run<'_>, width: u32, out: &mut Vec<u32>) {
    match run {
        Run::Repeated { value, count } => out.extend(std::iter::repeat_n(value, count)),
        Run::Packed { bytes, count } => {
            let start = out.len();
            out.resize(start + count, 0);
            unpack(bytes, width, &mut out[start..]);
        }
    }
}

/// Appends values from the data of a page.
fn read_values<T: Pod>(
    data: &[u8],
    encoding: Encoding,
    values: usize,
    dictionary: &[T],
    out: &mut Vec<T>,
) -> Result<()> {
    match encoding {
        Encoding::Dictionary => indexed(data, values, dictionary, out),
        _ => plain(data, values, out),
    }
}

/// Reads plain values: end to end, little-endian.
fn plain<T: Pod>(data: &[u8], values: usize, out: &mut Vec<T>) -> Result<()> {
    let size = size_of::<T>();
    let data = values.checked_mul(size).and_then(|bytes| data.get(..bytes)).ok_or_else(|| {
        Error::corrupt(format!("a page of {} bytes, where {values} values of {size} bytes are declared", data.len()))
    })?;
    match bytemuck::try_cast_slice(data) {
        Ok(aligned) if cfg!(target_endian = "little") => out.extend_from_slice(aligned),
        _ if cfg!(target_endian = "little") => {
            out.extend(data.chunks_exact(size).map(bytemuck::pod_read_unaligned::<T>));
        }
        _ => out.extend(data.chunks_exact(size).map(|value| {
            let mut value: Vec<u8> = value.to_vec();
            value.reverse();
            bytemuck::pod_read_unaligned::<T>(&value)
        })),
    }
    Ok(())
}

/// Reads values by their index in the dictionary.
fn indexed<T: Pod>(data: &[u8], values: usize, dictionary: &[T], out: &mut Vec<T>) -> Result<()> {
    if values == 0 {
        return Ok(());
    }
    let beyond = |index: u32| Error::corrupt(format!("value {index} of a dictionary of {}", dictionary.len()));
    let (&width, data) = data.split_first().ok_or_else(|| Error::corrupt("a page without its indexes"))?;
    let mut runs = Runs::new(data, width.into(), values)?;
    out.reserve(values);
    let mut unpacked = [0u32; UNPACKED];
    while let Some(run) = runs.next()? {
        match run {
            Run::Repeated { value, count } => {
                let &value = dictionary.get(value as usize).ok_or_else(|| beyond(value))?;
                out.extend(std::iter::repeat_n(value, count));
            }
            Run::Packed { bytes, count } => {
                // So many numbers take whole bytes whatever their width.
                let piece_bytes = UNPACKED / 8 * usize::from(width);
                for start in (0..count).step_by(UNPACKED) {
                    let indexes = &mut unpacked[..UNPACKED.min(count - start)];
                    unpack(&bytes[(start / UNPACKED * piece_bytes).min(bytes.len())..], width.into(), indexes);
                    let largest = indexes.iter().fold(0, |largest, &index| largest.max(index));
                    if largest as usize >= dictionary.len() {
                        return Err(beyond(largest));
                    }
                    out.extend(indexes.iter().map(|&index| dictionary[index as usize]));
                }
            }
        }
    }
    Ok(())
}
