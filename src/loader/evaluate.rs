//! Turns picked rows into real ones: gathers them from blocks, then applies the functions of the graph.

mod blocks;
mod chunk;
mod window;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, AsArray, FixedSizeListArray, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{interleave_record_batch, take_record_batch};
use arrow::datatypes::{Field, Schema};
use xxhash_rust::xxh3::xxh3_64;

pub(crate) use self::blocks::{Block, Blocks, locate};
use super::pipeline::Stage;
use super::skip::is_bad_record;
use crate::batch::collate::{Rows, Sample, in_order_of};
use crate::dataset::function::{Context, Outputs, Row};
use crate::dataset::graph::Function;
use crate::engine::pool::no_panic;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::order::{Picked, PickedRows};
use crate::random::Key;
use crate::schema::{Column, Dtype};
use crate::telemetry::Counters;
use crate::transform::image::{Image, Scratch};

/// Evaluated rows, up to the first that failed.
#[derive(Clone)]
pub(crate) struct Evaluated {
    pub(crate) rows: Rows,
    /// For each row the position it came from, where rows are not positions.
    pub(crate) origin: Option<Vec<u32>>,
    /// For each row the number of the share of a batch that it belongs to, where shares have no fixed number of rows.
    pub(crate) shares: Option<Vec<u32>>,
    /// Positions that were left out because their record is bad, ascending.
    pub(crate) skipped: Vec<(u32, Error)>,
    /// What stopped evaluation after these rows.
    pub(crate) error: Option<Error>,
}

impl Evaluated {
    /// No rows, because of `error`.
    pub(crate) fn failed(error: Error) -> Self {
        let rows = Rows { rows: RecordBatch::new_empty(Arc::new(Schema::empty())), samples: Vec::new() };
        Self { rows, origin: None, shares: None, skipped: Vec::new(), error: Some(error) }
    }

    /// The position that a row came from.
    fn position(&self, row: usize) -> u32 {
        self.origin.as_ref().map_or(row as u32, |origin| origin[row])
    }

    /// Only the first `len` rows, because of `error`.
    fn cut(mut self, len: usize, error: Error) -> Self {
        self.rows = self.rows.slice(0, len);
        if let Some(origin) = &mut self.origin {
            origin.truncate(len);
        }
        if let Some(shares) = &mut self.shares {
            shares.truncate(len);
        }
        self.error = Some(error);
        self
    }
}

/// The rows that are not bad.
struct Sound<'p> {
    at: Cow<'p, [(usize, usize)]>,
    origin: Option<Vec<u32>>,
    skipped: Vec<(u32, Error)>,
    error: Option<Error>,
}

impl<'p> Sound<'p> {
    fn all(rows: &'p [(usize, usize)]) -> Self {
        Self { at: rows.into(), origin: None, skipped: Vec::new(), error: None }
    }
}

/// What evaluation needs to know.
pub(crate) struct Env<'a> {
    pub(crate) stages: &'a [Stage],
    pub(crate) enumerated: &'a [Column],
    pub(crate) blocks: &'a Blocks,
    pub(crate) epoch: u64,
    /// The number of the stream's window that the rows belong to, where functions work on windows.
    pub(crate) window: u64,
    pub(crate) counters: &'a Counters,
    /// Whether bad records are left out, instead of being an error.
    pub(crate) leave_out: bool,
}

impl Env<'_> {
    /// # Errors
    /// Faults that no row is to blame for.
    pub(crate) fn evaluate(&self, picked: &Picked, scratch: &mut Scratch) -> Result<Evaluated> {
        match picked {
            Picked::Rows(rows) => self.gather(rows),
            Picked::Gathered { parts, from } => {
                let parts = parts.iter().map(|part| self.evaluate(part, scratch)).collect::<Result<Vec<_>>>()?;
                regather(&parts, from)
            }
            Picked::Zipped(parts) => {
                let parts = parts.iter().map(|part| self.evaluate(part, scratch)).collect::<Result<Vec<_>>>()?;
                zip(parts)
            }
            Picked::Enumerated { positions, column, input } => {
                let mut input = self.evaluate(input, scratch)?;
                let rows = 0..input.rows.len();
                let values =
                    Int64Array::from_iter_values(rows.map(|row| positions[input.position(row) as usize] as i64));
                let column = self.enumerated[*column].clone();
                input.rows.rows = with_columns(&input.rows.rows, vec![(column, Arc::new(values) as _)])?;
                Ok(input)
            }
            Picked::Applied { stage, input } => {
                let input = self.evaluate(input, scratch)?;
                self.apply(&self.stages[*stage], input, scratch)
            }
        }
    }

    fn gather(&self, picked: &PickedRows) -> Result<Evaluated> {
        let start = Instant::now();
        let blocks: Vec<&Block> = picked.blocks.iter().map(|block| self.blocks.get(picked.leaf, block.block)).collect();
        let any_bad = blocks.iter().any(|block| block.failed.is_some() || !block.decoded.bad.is_empty());
        let Sound { at, origin, skipped, error } =
            if any_bad { self.leave_bad(picked, &blocks) } else { Sound::all(&picked.rows) };
        let sample = |&(block, row): &(usize, usize)| {
            let id = picked.blocks[block].first_id + row as u64;
            Sample { id, pass: picked.pass, part: 0, checksum: blocks[block].decoded.checksums[row] }
        };
        let samples = at.iter().map(sample).collect();
        let sources: Vec<&RecordBatch> = blocks.iter().map(|block| &block.decoded.rows).collect();
        let in_sequence = at.windows(2).all(|pair| pair[0].0 == pair[1].0 && pair[0].1 + 1 == pair[1].1);
        let rows = match at[..] {
            // The rows of a block as they stand: no copy. A failed block has no rows; its schema does not matter then.
            [(block, first), ..] if in_sequence => sources[block].slice(first, at.len()),
            [] => sources
                .first()
                .map_or_else(|| RecordBatch::new_empty(Arc::new(Schema::empty())), |rows| rows.slice(0, 0)),
            [(wanted, _), ..] => {
                let usable: Vec<&RecordBatch> =
                    sources.iter().map(|rows| if rows.num_columns() == 0 { sources[wanted] } else { rows }).collect();
                interleave_record_batch(&usable, &at).map_err(internal)?
            }
        };
        self.counters.transform.busy(start.elapsed());
        Ok(Evaluated { rows: Rows { rows, samples }, origin, shares: None, skipped, error })
    }

    /// Leaves out bad rows, up to one that ends the evaluation.
    fn leave_bad<'p>(&self, picked: &'p PickedRows, blocks: &[&Block]) -> Sound<'p> {
        let mut at = Vec::with_capacity(picked.rows.len());
        let (mut origin, mut skipped, mut error) = (Vec::new(), Vec::new(), None);
        for (position, &(block, row)) in picked.rows.iter().enumerate() {
            let data = blocks[block];
            let bad = data.decoded.bad.binary_search_by_key(&row, |bad| bad.0).ok();
            if let Some(found) = data.failed.as_ref().or(bad.map(|i| &data.decoded.bad[i].1)) {
                let found = found.clone().sample(picked.id(position));
                if !self.may_leave_out(&found) {
                    error = Some(self.ends(found));
                    break;
                }
                skipped.push((position as u32, found));
                continue;
            }
            at.push((block, row));
            origin.push(position as u32);
        }
        let origin = (!skipped.is_empty()).then_some(origin);
        Sound { at: at.into(), origin, skipped, error }
    }

    /// Whether a record with this error may be left out. How many may be left out is checked where batches are delivered.
    fn may_leave_out(&self, error: &Error) -> bool {
        self.leave_out && is_bad_record(error)
    }

    /// Notes a row for which a function failed. Returns whether it is the last one.
    fn ends_at(&self, failing: &mut Failing, row: usize, error: Error) -> bool {
        if self.may_leave_out(&error) {
            failing.left_out.push((row, error));
            return false;
        }
        failing.end = Some((row, self.ends(error)));
        true
    }

    /// The error with which a bad record ends the epoch.
    fn ends(&self, error: Error) -> Error {
        if is_bad_record(&error) && !self.leave_out { error.or_leave_out() } else { error }
    }

    fn context(&self, key: Key, sample: Sample) -> Context {
        Context { key: sample.key(key), sample: sample.id, epoch: self.epoch }
    }

    /// Applies one function of the graph.
    pub(crate) fn apply(&self, stage: &Stage, input: Evaluated, scratch: &mut Scratch) -> Result<Evaluated> {
        if input.rows.len() == 0 {
            return Ok(self.apply_to_nothing(stage, input));
        }
        let start = Instant::now();
        let applied = self.apply_to_rows(stage, input, scratch);
        stage.counter.busy(start.elapsed());
        if let Ok(applied) = &applied {
            stage.counter.add(applied.rows.len() as u64, 0);
        }
        applied
    }

    /// Adds to an error the sample for which a function failed, and where its record stands.
    fn blame(&self, stage: &Stage, sample: Sample, error: Error) -> Error {
        locate(error.stage(stage.name.clone()).sample(sample.id), self.blocks.values())
    }

    /// No rows, with the columns that the function's rows would have.
    fn empty_of(&self, stage: &Stage, input: &RecordBatch) -> RecordBatch {
        match &stage.function {
            Function::Pack { outputs, .. } => RecordBatch::new_empty(crate::schema::arrow_schema(outputs)),
            _ => input.slice(0, 0),
        }
    }

    /// The schema that the function's rows would have, without calling it.
    fn apply_to_nothing(&self, stage: &Stage, mut input: Evaluated) -> Evaluated {
        if stage.function.window().is_some() {
            input.rows.rows = self.empty_of(stage, &input.rows.rows);
        }
        let empty: Vec<(Column, ArrayRef)> = match &stage.function {
            Function::Map { outputs, .. } | Function::MapBatch { outputs, .. } | Function::FlatMap { outputs, .. } => {
                outputs
                    .iter()
                    .map(|column| (column.clone(), arrow::array::new_empty_array(&column.arrow_type())))
                    .collect()
            }
            #[cfg(feature = "tokenizers")]
            Function::Tokenize { tokenizer, .. } => {
                let column = tokenizer.column();
                let none = arrow::array::new_empty_array(&column.arrow_type());
                vec![(column, none)]
            }
            _ => Vec::new(),
        };
        if input.rows.rows.num_columns() > 0
            && let Ok(rows) = with_columns(&input.rows.rows, empty)
        {
            input.rows.rows = rows;
        }
        if stage.function.changes_rows() {
            input.origin.get_or_insert_default();
        }
        input
    }

    fn apply_to_rows(&self, stage: &Stage, input: Evaluated, scratch: &mut Scratch) -> Result<Evaluated> {
        let len = input.rows.len();
        let blame = |row: usize, error: Error| self.blame(stage, input.rows.samples[row], error);
        match &stage.function {
            Function::Select { columns } => {
                let schema = input.rows.rows.schema();
                let indices = columns
                    .iter()
                    .map(|name| schema.index_of(name))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(internal)?;
                let rows = input.rows.rows.project(&indices).map_err(internal)?;
                Ok(Evaluated { rows: Rows { rows, ..input.rows }, ..input })
            }
            Function::Map { outputs, f } => {
                let mut written = Outputs::new(outputs);
                let mut failing = Failing::default();
                for (index, &sample) in input.rows.samples.iter().enumerate() {
                    let row = Row { rows: &input.rows.rows, index };
                    let result = no_panic(|| written.one(|out| f(&self.context(stage.key, sample), row, out)));
                    if let Err(error) = result
                        && self.ends_at(&mut failing, index, blame(index, error))
                    {
                        break;
                    }
                }
                let arrays = written.finish()?;
                let mut result = failing.leave(input)?;
                result.rows.rows = with_columns(&result.rows.rows, arrays)?;
                Ok(result)
            }
            Function::MapBatch { outputs, f } => {
                let contexts: Vec<Context> = input.rows.samples.iter().map(|&s| self.context(stage.key, s)).collect();
                let mapped =
                    no_panic(|| f(&contexts, &input.rows.rows)).and_then(|rows| check_output(outputs, &rows, len));
                match mapped {
                    Ok(arrays) => {
                        let rows = with_columns(&input.rows.rows, arrays)?;
                        Ok(Evaluated { rows: Rows { rows, ..input.rows }, ..input })
                    }
                    Err(error) => {
                        let error = blame(0, error);
                        Ok(self.apply_to_nothing(stage, input.cut(0, error)))
                    }
                }
            }
            Function::Filter { f } => {
                let (mut kept, mut failing) = (Vec::with_capacity(len), Failing::default());
                for (index, &sample) in input.rows.samples.iter().enumerate() {
                    let row = Row { rows: &input.rows.rows, index };
                    match no_panic(|| f(&self.context(stage.key, sample), row)) {
                        Ok(true) => kept.push(index as u32),
                        Ok(false) => {}
                        Err(error) => {
                            if self.ends_at(&mut failing, index, blame(index, error)) {
                                break;
                            }
                        }
                    }
                }
                expand(input, kept, None, failing)
            }
            Function::Where { condition } => {
                let held = condition.of_rows(&input.rows.rows)?;
                let kept = (0..len as u32).filter(|&row| held[row as usize]).collect();
                expand(input, kept, None, Failing::default())
            }
            Function::FlatMap { outputs, f } => {
                let mut written = Outputs::new(outputs);
                let (mut from, mut parts) = (Vec::with_capacity(len), Vec::with_capacity(len));
                let mut failing = Failing::default();
                for (index, &sample) in input.rows.samples.iter().enumerate() {
                    let row = Row { rows: &input.rows.rows, index };
                    match no_panic(|| written.many(|out| f(&self.context(stage.key, sample), row, out))) {
                        Ok(rows) => {
                            from.extend(std::iter::repeat_n(index as u32, rows));
                            parts.extend((0..rows as u32).map(|part| part_of(sample, part)));
                        }
                        Err(error) => {
                            if self.ends_at(&mut failing, index, blame(index, error)) {
                                break;
                            }
                        }
                    }
                }
                let arrays = written.finish()?;
                let mut expanded = expand(input, from, Some(parts), failing)?;
                expanded.rows.rows = with_columns(&expanded.rows.rows, arrays)?;
                Ok(expanded)
            }
            #[cfg(feature = "tokenizers")]
            Function::Tokenize { column, tokenizer } => {
                let texts = column_of(&input.rows.rows, column)?.as_binary_view_opt().cloned();
                let texts = texts
                    .ok_or_else(|| Error::new(ErrorKind::Schema, "not a column of bytes").column(column.as_str()))?;
                let (mut tokenized, mut failing) =
                    (crate::transform::tokens::Tokenized::new(tokenizer), Failing::default());
                for (index, text) in texts.iter().flatten().enumerate() {
                    if let Err(error) = no_panic(|| tokenized.push(text))
                        && self.ends_at(&mut failing, index, blame(index, error.column(column.as_str())))
                    {
                        break;
                    }
                }
                let mut result = failing.leave(input)?;
                result.rows.rows = with_columns(&result.rows.rows, vec![tokenized.finish()])?;
                Ok(result)
            }
            Function::Chunk { column, chunk } => self.chunked(stage, input, column, chunk),
            Function::Pack { .. } | Function::Bucket { .. } => unreachable!("applied to windows"),
            Function::Image { column, image } => {
                let (dtype, shape) = image.output()?;
                let encoded =
                    input.rows.rows.column_by_name(column).and_then(|array| array.as_binary_view_opt().cloned());
                let encoded = encoded
                    .ok_or_else(|| Error::new(ErrorKind::Schema, "not a column of bytes").column(column.as_str()))?;
                let sample_bytes = shape.iter().product::<usize>() * dtype.size().unwrap_or(1);
                let mut pixels = vec![0f32; (len * sample_bytes).div_ceil(4)];
                let slots: &mut [u8] = bytemuck::cast_slice_mut(&mut pixels);
                let mut failing = Failing::default();
                for (row, (sample, slot)) in
                    input.rows.samples.iter().zip(slots.chunks_exact_mut(sample_bytes)).enumerate()
                {
                    let key = sample.key(stage.key);
                    if let Err(error) = no_panic(|| image.decode_into(encoded.value(row), key, slot, scratch))
                        && self.ends_at(&mut failing, row, blame(row, error.stage("image").column(column.as_str())))
                    {
                        break;
                    }
                }
                let array = pixel_array(image, pixels, len * sample_bytes)?;
                let declared = Column::new(column.as_str(), dtype, crate::schema::Shape::Fixed(shape));
                let mut result = input;
                result.rows.rows = with_columns(&result.rows.rows, vec![(declared, array)])?;
                failing.leave(result)
            }
        }
    }
}

/// Rows for which a function failed: those that are left out, and the one that ends the evaluation.
#[derive(Default)]
struct Failing {
    left_out: Vec<(usize, Error)>,
    end: Option<(usize, Error)>,
}

impl Failing {
    /// The rows without the failing ones, and only those before the end.
    fn leave(self, input: Evaluated) -> Result<Evaluated> {
        let (left_out, len) = (self.left_out, self.end.as_ref().map_or(input.rows.len(), |end| end.0));
        if left_out.is_empty() {
            return Ok(match self.end {
                Some((row, error)) => input.cut(row, error),
                None => input,
            });
        }
        let kept = (0..len).filter(|row| left_out.binary_search_by_key(row, |left| left.0).is_err());
        let kept = kept.map(|row| row as u32).collect();
        expand(input, kept, None, Self { left_out, end: self.end })
    }
}

/// Merges skipped rows in the order of their keys, and keeps one for each key.
fn merge_skipped<K: Ord>(
    skipped: impl Iterator<Item = (u32, Error)>,
    of: impl Fn(&(u32, Error)) -> K,
) -> Vec<(u32, Error)> {
    let mut skipped: Vec<_> = skipped.collect();
    skipped.sort_by_key(&of);
    skipped.dedup_by_key(|skipped| of(skipped));
    skipped
}

/// Pixels of decoded images as a fixed-size list.
fn pixel_array(image: &Image, pixels: Vec<f32>, bytes: usize) -> Result<ArrayRef> {
    let (dtype, shape) = image.output()?;
    let items: ArrayRef = match dtype {
        Dtype::F32 => Arc::new(arrow::array::Float32Array::from(pixels)),
        _ => Arc::new(arrow::array::UInt8Array::from(bytemuck::cast_slice::<f32, u8>(&pixels)[..bytes].to_vec())),
    };
    let field = Arc::new(Field::new_list_field(items.data_type().clone(), false));
    let list = FixedSizeListArray::try_new(field, shape.iter().product::<usize>() as i32, items, None);
    Ok(Arc::new(list.map_err(internal)?))
}

/// An error that is a fault of forebay.
fn internal(error: arrow::error::ArrowError) -> Error {
    Error::new(ErrorKind::Transform, "rows of different columns met").because(error)
}

/// Adds columns to the rows, or replaces those of the same name.
fn with_columns(rows: &RecordBatch, columns: Vec<(Column, ArrayRef)>) -> Result<RecordBatch> {
    let columns = columns.into_iter().map(|(column, array)| (column.name().clone(), array));
    with_columns_as(rows, columns.collect())
}

/// Does the same with arrays that no column can be declared for.
fn with_columns_as(rows: &RecordBatch, columns: Vec<(Arc<str>, ArrayRef)>) -> Result<RecordBatch> {
    if columns.is_empty() {
        return Ok(rows.clone());
    }
    let mut fields: Vec<Arc<Field>> = rows.schema_ref().fields().iter().cloned().collect();
    let mut arrays = rows.columns().to_vec();
    for (name, array) in columns {
        let nullable = *array.data_type() == arrow::datatypes::DataType::Null;
        let field = Arc::new(Field::new(name.as_ref(), array.data_type().clone(), nullable));
        match fields.iter().position(|f| f.name() == field.name()) {
            Some(at) => (fields[at], arrays[at]) = (field, array),
            None => {
                fields.push(field);
                arrays.push(array);
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(internal)
}

/// A column that a graph was checked to have.
fn column_of<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    rows.column_by_name(name)
        .ok_or_else(|| Error::new(ErrorKind::Schema, "the column is gone before it is wanted").column(name))
}

/// The part number of row `part` among those made of a sample. Parts of parts stay distinct for up to 2^12 rows made of each.
fn part_of(sample: Sample, part: u32) -> u32 {
    sample.part.wrapping_mul(1 << 12).wrapping_add(part)
}

/// Takes rows by number: each of them once, several times or not at all.
fn expand(input: Evaluated, from: Vec<u32>, parts: Option<Vec<u32>>, failing: Failing) -> Result<Evaluated> {
    let left_out = failing.left_out.into_iter().map(|(row, error)| (input.position(row), error));
    // Rows that were made of one sample are one record; those of a window have one position and are many.
    let skipped = merge_skipped(input.skipped.iter().cloned().chain(left_out), |(position, error)| {
        (*position, error.place().sample)
    });
    let origin = match &input.origin {
        Some(origin) => from.iter().map(|&row| origin[row as usize]).collect(),
        None => from.clone(),
    };
    let shares = input.shares.as_ref().map(|shares| from.iter().map(|&row| shares[row as usize]).collect());
    let mut samples: Vec<Sample> = from.iter().map(|&row| input.rows.samples[row as usize]).collect();
    for (sample, part) in samples.iter_mut().zip(parts.into_iter().flatten()) {
        sample.part = part;
    }
    let rows = take_record_batch(&input.rows.rows, &UInt32Array::from(from)).map_err(internal)?;
    let error = failing.end.map(|end| end.1).or(input.error);
    Ok(Evaluated { rows: Rows { rows, samples }, origin: Some(origin), shares, skipped, error })
}

/// Rows of several parts in the order of positions.
fn regather(parts: &[Evaluated], from: &[(u32, u32)]) -> Result<Evaluated> {
    let expanded = parts.iter().any(|part| part.origin.is_some());
    // Where each position's rows start in its part.
    let starts: Vec<Option<Vec<usize>>> = parts
        .iter()
        .map(|part| {
            part.origin.as_ref().map(|origin| {
                let positions = from.iter().map(|f| f.1 as usize + 1).max().unwrap_or(0);
                (0..=positions).map(|position| origin.partition_point(|&o| (o as usize) < position)).collect()
            })
        })
        .collect();
    let (mut at, mut origin, mut samples) = (Vec::new(), Vec::new(), Vec::new());
    let (mut skipped, mut error) = (Vec::new(), None);
    for (position, &(part, index)) in from.iter().enumerate() {
        let (evaluated, index) = (&parts[part as usize], index as usize);
        let range = match &starts[part as usize] {
            Some(starts) => starts[index]..starts[index + 1],
            None => index..index + 1,
        };
        // A part that failed has no rows from there on, and whether this position comes behind is known by its rows alone.
        let behind = match &evaluated.origin {
            None => range.end > evaluated.rows.len(),
            Some(origin) => origin.last().is_none_or(|&last| last as usize <= index),
        };
        if let (Some(found), true) = (&evaluated.error, behind) {
            error = Some(found.clone());
            break;
        }
        if let Ok(found) = evaluated.skipped.binary_search_by_key(&(index as u32), |skipped| skipped.0) {
            skipped.push((position as u32, evaluated.skipped[found].1.clone()));
        }
        for row in range {
            at.push((part as usize, row));
            origin.push(position as u32);
            samples.push(evaluated.rows.samples[row]);
        }
    }
    // A part without rows may have other columns than its rows would: functions are not called for it.
    let sources = || parts.iter().map(|part| &part.rows.rows);
    let rows = match sources().find(|rows| rows.num_rows() > 0) {
        Some(first) if !at.is_empty() => {
            let of =
                |rows: &RecordBatch| if rows.num_rows() > 0 { in_order_of(first, rows) } else { Ok(first.clone()) };
            let sources = sources().map(of).collect::<Result<Vec<_>, _>>().map_err(internal)?;
            interleave_record_batch(&sources.iter().collect::<Vec<_>>(), &at).map_err(internal)?
        }
        Some(first) => first.slice(0, 0),
        None => match sources().find(|rows| rows.num_columns() > 0) {
            Some(first) => first.slice(0, 0),
            None => RecordBatch::new_empty(Arc::new(Schema::empty())),
        },
    };
    Ok(Evaluated { rows: Rows { rows, samples }, origin: expanded.then_some(origin), shares: None, skipped, error })
}

/// Joins columns side by side, up to the last row that all parts have.
fn zip(mut parts: Vec<Evaluated>) -> Result<Evaluated> {
    if parts.iter().any(|part| part.origin.is_some()) {
        parts = aligned(parts)?;
    }
    let origin = parts[0].origin.clone();
    // A row is one record, however many of its inputs are bad.
    let skipped = merge_skipped(parts.iter().flat_map(|part| part.skipped.iter().cloned()), |skipped| skipped.0);
    let shortest = parts.iter().map(|part| part.rows.len()).min().unwrap_or(0);
    let error = parts.iter().filter(|part| part.rows.len() == shortest).find_map(|part| part.error.clone());
    let mut parts = parts.into_iter();
    let first = parts.next().expect("zip has inputs");
    let mut samples = first.rows.samples[..shortest].to_vec();
    let mut rows = first.rows.rows.slice(0, shortest);
    for part in parts {
        // The row is the first input's; what was put beside it is part of its bytes.
        for (sample, beside) in samples.iter_mut().zip(&part.rows.samples) {
            let beside = [u64::from(sample.checksum), beside.id, u64::from(beside.checksum)];
            sample.checksum = xxh3_64(bytemuck::cast_slice(&beside.map(u64::to_le))) as u32;
        }
        let part = part.rows.rows.slice(0, shortest);
        let columns: Vec<_> = part.schema_ref().fields().iter().zip(part.columns()).collect();
        let new = columns.into_iter().filter(|(field, _)| rows.column_by_name(field.name()).is_none());
        let new: Vec<(Arc<Field>, ArrayRef)> = new.map(|(field, array)| (field.clone(), array.clone())).collect();
        let fields: Vec<Arc<Field>> =
            rows.schema_ref().fields().iter().cloned().chain(new.iter().map(|n| n.0.clone())).collect();
        let arrays = rows.columns().iter().cloned().chain(new.into_iter().map(|n| n.1)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(shortest));
        rows = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options).map_err(internal)?;
    }
    let origin = origin.map(|origin| origin[..shortest].to_vec());
    Ok(Evaluated { rows: Rows { rows, samples }, origin, shares: None, skipped, error })
}

/// Only the positions that every part has. A part that failed has none from there on, and ends all parts.
fn aligned(parts: Vec<Evaluated>) -> Result<Vec<Evaluated>> {
    let positions = |part: &Evaluated| -> Vec<u32> { (0..part.rows.len()).map(|row| part.position(row)).collect() };
    let mut common = positions(&parts[0]);
    for part in &parts[1..] {
        let other = positions(part);
        common.retain(|position| other.binary_search(position).is_ok());
    }
    let failed = parts.iter().filter(|part| part.error.is_some()).min_by_key(|part| positions(part).pop());
    let error = failed.and_then(|part| part.error.clone());
    let parts = parts.into_iter().map(|part| {
        let there = positions(&part);
        let rows = common.iter().filter_map(|position| there.binary_search(position).ok());
        let rows = rows.map(|row| row as u32).collect();
        Ok(Evaluated { error: error.clone(), ..expand(part, rows, None, Failing::default())? })
    });
    parts.collect()
}

/// The declared columns of what a `map_batch` returned.
fn check_output(outputs: &[Column], rows: &RecordBatch, len: usize) -> Result<Vec<(Column, ArrayRef)>> {
    if rows.num_rows() != len {
        return Err(Error::new(ErrorKind::Transform, format!("returned {} rows for {len}", rows.num_rows()))
            .advice("return one row for each; .filter() and .flat_map() change their number"));
    }
    let column = |column: &Column| {
        let array = rows.column_by_name(column.name());
        let array = array.ok_or_else(|| {
            Error::new(ErrorKind::Transform, "declared as an output, but not returned").column(column.name().clone())
        })?;
        let wanted = column.arrow_type();
        let array = if array.data_type() == &wanted {
            array.clone()
        } else {
            arrow::compute::cast(array, &wanted).map_err(|e| {
                Error::new(ErrorKind::Transform, format!("returned as {}, declared {column}", array.data_type()))
                    .because(e)
                    .column(column.name().clone())
            })?
        };
        if array.null_count() > 0 {
            return Err(
                Error::new(ErrorKind::Transform, "null values cannot become tensors").column(column.name().clone())
            );
        }
        Ok((column.clone(), array))
    };
    outputs.iter().map(column).collect()
}
