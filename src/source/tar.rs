//! Tar archives in the convention of WebDataset as a source: runs of samples are blocks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryViewBuilder, Float64Array, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::buffer::Buffer;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::carry::carry;
use super::cut::{Block, Blocks, Cut, Parsed, Reading, Window, row_bytes, target_bytes, with_also};
use super::open::{Opened, Opening, Wanted};
use super::rows::{Kept, RowIndex, Shelf, beginning, notes_of, whole};
use super::tfrecord::INDEXING;
use super::tfrecord::indexes::on_disk_thread;
use crate::dataset::Tar;
use crate::error::{Error, ErrorKind, Result};
use crate::format::packed::{Packing, unpack};
use crate::format::tar::{Member, Samples, Step, Walk};
use crate::format::tfrecord::Shortened;
use crate::schema::{Column, Dtype, Missing, Shape, arrow_schema, bytes};
use crate::store::{Object, Store};

/// Names the column of keys, as WebDataset does.
const KEY: &str = "__key__";

/// Headers that lie nearer to each other share a read: from there on a request costs less than the bytes between them.
const WINDOW_BYTES: u64 = 256 << 10;

/// The same on local disks.
const LOCAL_WINDOW_BYTES: u64 = 8 << 10;

/// Bytes of samples that columns are inferred from, unless the first is larger.
const INFER_BYTES: u64 = 4 << 20;

/// The samples of an archive, and what is wrong behind them.
type Found = Result<(RowIndex, Option<Error>)>;

/// Finds the samples of listed archives, and settles the columns.
pub(crate) async fn open(store: Store, objects: Vec<Object>, _options: Tar, wanted: Wanted) -> Result<Opening> {
    let limit = wanted.max_bytes;
    let shelf = Shelf::new(&wanted, "tar");
    let found: Vec<(Object, Found, Option<Shortened>)> = stream::iter(objects.iter().cloned())
        .map(|object| {
            let (store, shelf) = (store.clone(), shelf.clone());
            async move {
                let (found, shortened) = samples_of(&store, &object, &shelf, limit).await;
                let found = found.map_err(|e| e.url(object.url.clone()).stage("index"));
                (object, found, shortened)
            }
        })
        .buffered(INDEXING)
        .collect()
        .await;
    let notes = notes_of(found.iter().map(|(object, _, shortened)| (object, *shortened)));
    // Of an archive that holds nothing else, the damage may be that it is none. Else it follows the samples, unless those alone will not do.
    let mut archives = Vec::new();
    for (object, found, _) in found {
        let found = match found {
            Ok((index, Some(error))) if index.starts.is_empty() || wanted.whole_shards => {
                Err(error.url(object.url.clone()).stage("index"))
            }
            found => found,
        };
        match found {
            Err(error) if !(wanted.leave_out && error.kind() == ErrorKind::Corrupt) => return Err(error),
            found => archives.push((object, found)),
        }
    }
    let columns = match &wanted.columns {
        Some(declared) => with_also(declared, &wanted, |name| Some(bytes(name))),
        None if wanted.all_columns => infer_all(&store, &archives, limit).await?,
        None => infer(&store, &archives, limit).await?,
    };
    columns.iter().try_for_each(validate)?;
    let sizes = archives.iter().filter_map(|(_, found)| Some(&found.as_ref().ok()?.0));
    let (rows, total) =
        sizes.fold((0, 0), |(rows, total), index| (rows + index.starts.len() as u64, total + index.end));
    let target = target_bytes(&wanted, rows, total);
    let (mut blocks, mut packed) = (Blocks::new(), Vec::new());
    for (object, found) in archives {
        blocks.push_shard(&object);
        let (index, damage) = match found {
            Ok(found) => found,
            Err(error) => {
                packed.push(None);
                blocks.push_damage(error, 0, &columns);
                continue;
            }
        };
        let is_packed = index.packing != Packing::Plain;
        if is_packed {
            blocks.indivisible();
        }
        for (begin, end) in index.runs(0, if is_packed { u64::MAX } else { target }) {
            let (rows, offset) = ((end - begin) as u64, index.starts[begin]);
            let range = offset..index.row_end(end - 1);
            let memory = range.end - range.start + rows * row_bytes(&columns);
            match is_packed {
                true => blocks.push(rows, memory + object.size, 0..object.size, offset),
                false => blocks.push(rows, memory, range, offset),
            }
        }
        let samples = index.starts.first().copied().unwrap_or(0) as usize..index.end as usize;
        packed.push(is_packed.then_some((index.packing, samples)));
        if let Some(error) = damage {
            blocks.push_damage(error, index.end, &columns);
        }
    }
    let source = Cut::new("tar", store, objects, blocks, Archives { columns, packed, limit });
    Ok(Opening { opened: Opened::Indexed(Arc::new(source)), notes })
}

/// The samples of an archive: kept, or found by hopping from header to header; and whether it is shorter than when they were found before.
async fn samples_of(store: &Store, object: &Object, shelf: &Shelf, limit: usize) -> (Found, Option<Shortened>) {
    let (known, look) = (object.clone(), shelf.clone());
    let shortened = match on_disk_thread(move || Ok(look.look(&known))).await {
        Ok(Kept::Index(index)) => return (Ok((index, None)), None),
        Ok(Kept::Longer(shortened)) => shortened,
        Ok(Kept::Nothing) => return (hop_or_unpack(store, object, shelf, limit).await, None),
        Err(error) => return (Err(error), None),
    };
    let found = match hop_or_unpack(store, object, shelf, limit).await {
        Ok((index, damage)) => Ok((index, damage.map(|damage| shortened.explain(damage)))),
        Err(error) => Err(shortened.explain(error)),
    };
    (found, Some(shortened))
}

/// The samples of an archive, found by hopping from header to header, or by unpacking it.
async fn hop_or_unpack(store: &Store, object: &Object, shelf: &Shelf, limit: usize) -> Found {
    let head = store.read(object, 0..object.size.min(4)).await?;
    let packing = Packing::of(&head);
    let (index, damage) = match packing {
        Packing::Plain => hop(Window::new(store, object, near(store, object))).await?,
        _ => {
            let stored = whole(store, object, limit).await?;
            on_disk_thread(move || {
                let data = unpack(packing, &stored, limit)?;
                let mut starts = Starts::default();
                let ended = Walk::through(&data, |member| starts.add(&member));
                Ok(starts.finish(packing, ended, data.len() as u64))
            })
            .await?
        }
    };
    if damage.is_none() {
        let (object, shelf, found) = (object.clone(), shelf.clone(), index.clone());
        on_disk_thread(move || {
            shelf.save(&object, &found);
            Ok(())
        })
        .await?;
    }
    Ok((index, damage))
}

async fn hop(window: Window<'_>) -> Found {
    let (mut starts, size) = (Starts::default(), window.size());
    let ended = each_member(window, |member| starts.add(member)).await?;
    Ok(starts.finish(Packing::Plain, ended, size))
}

/// Hops from header to header; returns where the members end, or what is wrong behind the last.
async fn each_member(mut window: Window<'_>, mut take: impl FnMut(&Member)) -> Result<Result<u64>> {
    let mut walk = Walk::new(window.size());
    loop {
        let range = match walk.next() {
            Ok(Step::End(end)) => return Ok(Ok(end)),
            Ok(Step::Read(range)) => range,
            Err(error) => return Ok(Err(error)),
        };
        let bytes = window.get(range).await?;
        match walk.supply(&bytes) {
            Ok(Some(member)) => take(&member),
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Headers that lie nearer to each other than this share a read.
fn near(store: &Store, object: &Object) -> u64 {
    if store.local_path(object).is_some() { LOCAL_WINDOW_BYTES } else { WINDOW_BYTES }
}

/// Where samples start, as members are found.
#[derive(Default)]
struct Starts {
    samples: Samples,
    starts: Vec<u64>,
}

impl Starts {
    fn add(&mut self, member: &Member) {
        if let Some((_, true)) = self.samples.place(member) {
            self.starts.push(member.start);
        }
    }

    fn finish(mut self, packing: Packing, ended: Result<u64>, size: u64) -> (RowIndex, Option<Error>) {
        match ended {
            Ok(end) => (RowIndex { packing, starts: self.starts, end: end.min(size) }, None),
            // Nobody knows whether the last sample is whole.
            Err(error) => {
                let end = self.starts.pop().unwrap_or(0);
                (RowIndex { packing, starts: self.starts, end }, Some(error))
            }
        }
    }
}

/// The columns of the first samples, all bytes; those that are not in every one of them are optional.
async fn infer(store: &Store, archives: &[(Object, Found)], limit: usize) -> Result<Vec<Column>> {
    for (object, found) in archives {
        let Ok((index, _)) = found else { continue };
        if index.starts.is_empty() {
            continue;
        }
        let place = |error: Error| error.url(object.url.clone()).stage("infer");
        let last = (0..index.starts.len())
            .take_while(|&row| row == 0 || index.row_end(row) <= INFER_BYTES)
            .last()
            .unwrap_or(0);
        let end = index.row_end(last);
        let archive = beginning(store, object, index, end, limit).await.map_err(place)?;
        let mut seen = Seen::default();
        Walk::through(&archive[index.starts[0] as usize..], |member| seen.add(&member)).map_err(place)?;
        return Ok(seen.columns());
    }
    Err(no_sample())
}

/// The same of all samples: headers are read once more.
async fn infer_all(store: &Store, archives: &[(Object, Found)], limit: usize) -> Result<Vec<Column>> {
    let seen = archives.iter().filter_map(|(object, found)| Some((object, &found.as_ref().ok()?.0)));
    let seen = seen.map(|(object, index)| async move {
        let mut seen = Seen::default();
        let walked = match index.packing {
            Packing::Plain => {
                each_member(Window::new(store, object, near(store, object)), |member| seen.add(member)).await?
            }
            _ => {
                let archive = beginning(store, object, index, index.end, limit).await?;
                Walk::through(&archive, |member| seen.add(&member))
            }
        };
        walked.map_err(|e| e.url(object.url.clone()).stage("infer"))?;
        Ok::<_, Error>(seen)
    });
    let seen: Vec<Seen> = stream::iter(seen.collect::<Vec<_>>()).buffered(INDEXING).try_collect().await?;
    let all = seen.into_iter().fold(Seen::default(), |mut all, seen| {
        all.rows += seen.rows;
        seen.members.into_iter().for_each(|(name, count)| *all.members.entry(name).or_default() += count);
        all
    });
    if all.rows == 0 { Err(no_sample()) } else { Ok(all.columns()) }
}

/// The members that samples have.
#[derive(Default)]
struct Seen {
    samples: Samples,
    rows: u64,
    members: BTreeMap<String, u64>,
}

impl Seen {
    fn add(&mut self, member: &Member) {
        if let Some((column, begins)) = self.samples.place(member) {
            self.rows += u64::from(begins);
            *self.members.entry(column).or_default() += 1;
        }
    }

    fn columns(self) -> Vec<Column> {
        let column = |(name, count)| if count < self.rows { bytes(name).optional() } else { bytes(name) };
        std::iter::once(bytes(KEY)).chain(self.members.into_iter().map(column)).collect()
    }
}

fn no_sample() -> Error {
    Error::new(ErrorKind::Schema, "the archives hold no sample to infer columns from")
        .advice("name the columns with .columns(): by the extensions of members, such as bytes(\"jpg\")")
}

fn validate(column: &Column) -> Result<()> {
    if *column.shape() != Shape::Scalar && !column.is_raw() {
        return Err(Error::new(
            ErrorKind::Schema,
            format!("a member is a byte string or a number in text, and this is {column}"),
        )
        .column(column.name().clone())
        .advice("declare bytes, with .raw(dtype, shape) where they are an array's memory"));
    }
    // What stands for a missing member must be one of the dtype.
    carry(&(Arc::new(arrow::array::NullArray::new(0)) as ArrayRef), column).map(|_| ())
}

/// The samples of all archives.
struct Archives {
    columns: Vec<Column>,
    /// How each compressed archive is, and where its samples lie.
    packed: Vec<Option<(Packing, Range<usize>)>>,
    limit: usize,
}

impl Reading for Archives {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn read(&self, block: &Block, fetched: Vec<Bytes>) -> Result<Parsed> {
        let mut archive = fetched.into_iter().next().unwrap_or_default();
        if let Some((packing, samples)) = &self.packed[block.shard] {
            let data = Bytes::from(unpack(*packing, &archive, self.limit)?);
            if data.len() < samples.end {
                return Err(Error::corrupt("is shorter than when it was opened")
                    .advice("the archive changed meanwhile: begin again"));
            }
            archive = data.slice(samples.clone());
        }
        if archive.len() > u32::MAX as usize {
            return Err(Error::new(ErrorKind::Memory, "a sample of 4 GiB or more"));
        }
        // The place of each member of each sample, by column.
        let (mut samples, mut starts, mut keys) = (Samples::default(), Vec::new(), Vec::<Vec<u8>>::new());
        let mut places = vec![vec![None::<Range<u32>>; block.rows]; self.columns.len()];
        let mut twice = BTreeMap::new();
        Walk::through(&archive, |member| {
            let Some((name, begins)) = samples.place(&member) else { return };
            if begins {
                starts.push(member.start as u32);
                keys.push(samples.key().to_vec());
            }
            let row = starts.len() - 1;
            for (column, places) in self.columns.iter().zip(&mut places) {
                if column.name().as_ref() == name
                    && let Some(place) = places.get_mut(row)
                    && place.replace(member.data.start as u32..member.data.end as u32).is_some()
                {
                    twice.entry(row).or_insert_with(|| column.clone());
                }
            }
        })?;
        if starts.len() != block.rows {
            return Err(Error::corrupt(format!("{} samples, where there were {}", starts.len(), block.rows))
                .advice("the archive changed since its index was built: begin again"));
        }
        let buffer = Buffer::from(archive);
        let mut bad = BTreeMap::new();
        for (row, column) in twice {
            let key = String::from_utf8_lossy(&keys[row]).into_owned();
            let error = Error::corrupt(format!("sample {key} has two members .{}", column.name()));
            bad.insert(row, error.column(column.name().clone()).advice("give samples keys of their own"));
        }
        let mut arrays = Vec::with_capacity(self.columns.len());
        for (column, places) in self.columns.iter().zip(&places) {
            let is_key = column.name().as_ref() == KEY;
            let (array, misread) = match is_key {
                true => (keys_of(&keys)?, Vec::new()),
                false => values(column, places, &buffer)?,
            };
            let (array, errors) = carry(&array, column)?;
            arrays.push(array);
            misread.into_iter().for_each(|(row, error)| _ = bad.entry(row).or_insert(error));
            for (row, error) in errors {
                let missing = !is_key && places[row].is_none() && *column.missing() == Missing::Error;
                bad.entry(row).or_insert_with(|| match missing {
                    true => no_member(&keys[row], column),
                    false => error,
                });
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(block.rows));
        let rows = RecordBatch::try_new_with_options(arrow_schema(&self.columns), arrays, &options);
        let rows = rows.map_err(|e| Error::new(ErrorKind::Schema, "members do not make their columns").because(e))?;
        Ok(Parsed { rows, bad: bad.into_iter().collect(), starts })
    }
}

fn no_member(key: &[u8], column: &Column) -> Error {
    let key = String::from_utf8_lossy(key);
    Error::new(ErrorKind::Schema, format!("sample {key} has no member .{}", column.name()))
        .column(column.name().clone())
        .advice("declare what stands for it: .optional() or .or(..)")
}

fn keys_of(keys: &[Vec<u8>]) -> Result<ArrayRef> {
    let mut builder = BinaryViewBuilder::with_capacity(keys.len());
    keys.iter().for_each(|key| builder.append_value(key));
    Ok(Arc::new(builder.finish()))
}

/// Members as views into the block, or as the numbers they spell; null where there is none.
fn values(column: &Column, places: &[Option<Range<u32>>], buffer: &Buffer) -> Result<(ArrayRef, Vec<(usize, Error)>)> {
    let mut misread = Vec::new();
    if column.dtype() == Dtype::Bytes || column.is_raw() {
        let mut builder = BinaryViewBuilder::with_capacity(places.len());
        let block = builder.append_block(buffer.clone());
        for place in places {
            match place {
                None => builder.append_null(),
                Some(place) => builder
                    .try_append_view(block, place.start, place.end - place.start)
                    .map_err(|e| Error::new(ErrorKind::Memory, "a block cannot be viewed").because(e))?,
            }
        }
        return Ok((Arc::new(builder.finish()), misread));
    }
    let mut spelt = |row: usize, what: &str| {
        let text = buffer.get(places[row].as_ref()?.start as usize..places[row].as_ref()?.end as usize)?;
        let spelt = std::str::from_utf8(text).ok().map(str::trim);
        // What is infinite in digits is too large for any column; `inf` says so itself.
        let is_number = |text: &str| text.parse().is_ok_and(|v: f64| v.is_finite() || !text.contains(char::is_numeric));
        if !spelt.is_some_and(is_number) {
            let shown = text[..text.len().min(20)].escape_ascii();
            let error = Error::new(ErrorKind::Schema, format!("\"{shown}\" is no {what}"));
            misread.push((row, error.column(column.name().clone()).advice("declare it as bytes")));
            return None;
        }
        spelt.map(str::to_owned)
    };
    let rows = 0..places.len();
    if matches!(column.dtype(), Dtype::F16 | Dtype::F32 | Dtype::F64) {
        let numbers = rows.map(|row| spelt(row, "number")?.parse::<f64>().ok());
        return Ok((Arc::new(Float64Array::from_iter(numbers)), misread));
    }
    let texts: Vec<Option<String>> = rows.map(|row| spelt(row, "integer")).collect();
    let numbers: Vec<Option<i64>> = texts.iter().map(|text| text.as_ref()?.parse().ok()).collect();
    for (row, (text, number)) in texts.iter().zip(&numbers).enumerate() {
        if let (Some(text), None) = (text, number) {
            let error = Error::new(ErrorKind::Schema, format!("\"{text}\" is no integer of 64 bits"));
            misread.push((row, error.column(column.name().clone()).advice("declare it as a float or as bytes")));
        }
    }
    let array: ArrayRef = Arc::new(Int64Array::from(numbers));
    debug_assert_eq!(array.len(), places.len());
    Ok((array, misread))
}
