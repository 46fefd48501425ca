//! TFRecord shards as a source: with an index in any order, without one as they come.

mod arriving;
pub(super) mod indexes;
mod reader;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{BinaryViewBuilder, RecordBatch};
use arrow::buffer::Buffer;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};

use self::arriving::Unindexed;
use self::indexes::{Found, Stale, find_index, notes_of};
pub(crate) use self::indexes::{Keeper, Outdated};
#[cfg(feature = "cli")]
pub(crate) use self::indexes::{Kept, beside, index_of};
pub(crate) use self::reader::ShardReader;
use self::reader::too_large;
use super::open::{Opened, Opening, Wanted};
use super::{Arrived, Decoded, Next, RecordPlaces, Source};
use crate::dataset::TfRecord;
use crate::error::{Error, ErrorKind, Result};
use crate::format::example::{Kind, Parser, infer, stranger};
use crate::format::tfrecord::{Check, Compression, Decoder, Framed, HEADER_BYTES, ShardIndex, Shortened, frame_block};
#[cfg(feature = "cli")]
use crate::format::tfrecord::{FOOTER_BYTES, MAX_RECORD_BYTES};
use crate::plan::Catalog;
use crate::schema::{Column, bytes};
use crate::store::{Object, Store};

/// A block of plain records: large enough that a request costs less than its bytes, small enough to mix and to budget for.
const BLOCK_BYTES: u64 = 4 << 20;

/// Pieces that a source without index is read in.
pub(crate) const PIECE_BYTES: u64 = 4 << 20;

/// The first piece of a shard whose first records are wanted.
const FIRST_PIECE_BYTES: u64 = 1 << 20;

/// Bytes of a record that commands hold in memory, at most: whatever the format takes, so that none is called bad for its size.
#[cfg(feature = "cli")]
pub(crate) const LARGEST_RECORD: usize = HEADER_BYTES + MAX_RECORD_BYTES as usize + FOOTER_BYTES;

/// Records that the schema is inferred from.
const INFER_RECORDS: usize = 256;

/// Shards whose index is looked for, or built, at the same time.
pub(super) const INDEXING: usize = 16;

/// Names the records' column when payloads are wanted as they are.
pub(crate) const RECORD: &str = "record";

/// Finds or builds the indexes of listed shards, and settles the columns.
pub(crate) async fn open(store: Store, objects: Vec<Object>, options: TfRecord, wanted: Wanted) -> Result<Opening> {
    let keeper = Keeper::new(wanted.index_dir.clone());
    let found: Vec<(Found, Option<Outdated>)> = stream::iter(objects.iter().cloned())
        .map(|object| {
            find_index(store.clone(), keeper.clone(), object, options.clone(), wanted.index, wanted.max_bytes)
        })
        .buffered(INDEXING)
        .try_collect()
        .await?;
    let (found, stale): (Vec<Found>, Vec<Option<Outdated>>) = found.into_iter().unzip();
    let parse = settle_columns(&store, &objects, &options, &wanted).await?;
    let shortened = stale.iter().map(|stale| stale.as_ref().and_then(Outdated::shortened)).collect();
    let common = Arc::new(Common { store, objects, options, parse, shortened });
    let is_usable = |found: &Found| match found {
        Found::Whole(_) => true,
        Found::Damaged(..) => wanted.leave_out,
        Found::Nothing => false,
    };
    let missing = found.iter().filter(|found| !is_usable(found)).count();
    let stale: Vec<_> = common.objects.iter().zip(&stale).zip(&found).collect();
    let stale: Vec<Stale> = stale
        .into_iter()
        .filter_map(|((object, reason), found)| {
            let reason = reason.clone()?;
            Some(Stale { url: object.url.clone(), reason, rebuilt: matches!(found, Found::Whole(_)) })
        })
        .collect();
    let rebuild = wanted.rebuild_command();
    let is_indexed = missing == 0 && !wanted.arrives;
    let notes = notes_of(&stale, &rebuild, wanted.index, is_indexed);
    if is_indexed {
        return Ok(Opening { opened: Opened::Indexed(Arc::new(Shards::new(common, found, &wanted))), notes });
    }
    if let Some(reason) = wanted.needs_index.as_ref().filter(|_| wanted.arrives) {
        return Err(Error::config(format!("the state is of a run without an index, which {reason} needs")).advice(
            "restore it with one rank and the graph it was saved with, or begin a run with .index(Index::Build)",
        ));
    }
    if let Some(reason) = wanted.needs_index {
        // What stands in the way of an index is the damage, where there is some.
        let damage =
            found.iter().find_map(|found| if let Found::Damaged(_, error) = found { Some(error) } else { None });
        return Err(damage.cloned().unwrap_or_else(|| {
            let mut message = format!("{missing} of {} shards have no index, which {reason} needs", found.len());
            let mut advice = format!("build it once with .index(Index::Build) on the loader, or beforehand: {rebuild}");
            let is_shortened = |stale: &&Stale| stale.reason.shortened().is_some();
            let mut missing = stale.iter().filter(|stale| !stale.rebuilt);
            if let Some(Stale { url, reason, .. }) = missing.clone().find(is_shortened).or_else(|| missing.next()) {
                message += &format!("; of {url} there is one, but {reason}");
                if reason.shortened().is_some() {
                    advice = format!("copy it again, or, if it was rewritten, {advice}");
                }
            }
            Error::config(message).advice(advice)
        }));
    }
    let unindexed = Unindexed { common, keeper, shuffled: wanted.shuffled, leave_out: wanted.leave_out };
    Ok(Opening { opened: Opened::Arriving(Arc::new(unindexed)), notes })
}

/// What all blocks of the shards share.
struct Common {
    store: Store,
    objects: Vec<Object>,
    options: TfRecord,
    parse: Parse,
    /// Of each shard, whether it is shorter than it was.
    shortened: Vec<Option<Shortened>>,
}

/// Payloads to columns.
struct Parse {
    columns: Vec<Column>,
    /// `None`: payloads as they are.
    parser: Option<Parser>,
    /// Names of features, where a record with values of another is bad.
    known: Option<HashSet<Box<[u8]>>>,
}

impl Parse {
    /// Adds the records to the bad ones that have values of a feature which is no column, where none may be missed.
    fn with_strangers(&self, bad: Vec<(usize, Error)>, data: &[u8], payloads: &[Range<usize>]) -> Vec<(usize, Error)> {
        let Some(known) = &self.known else { return bad };
        let mut all: BTreeMap<usize, Error> = bad.into_iter().collect();
        for (row, payload) in payloads.iter().enumerate() {
            if let Some(name) = stranger(&data[payload.clone()], |name| known.contains(name)) {
                let error = Error::new(ErrorKind::Schema, "has values here, and none in the first records");
                let error =
                    error.column(String::from_utf8_lossy(name)).advice("name the columns to read: .columns([..])");
                all.entry(row).or_insert(error);
            }
        }
        all.into_iter().collect()
    }
}

impl Common {
    fn check(&self) -> Check {
        if self.options.unchecked { Check::LengthsOnly } else { Check::Full }
    }

    fn decode(&self, buffer: Buffer, framed: Framed, url: &Arc<str>, record: u64, offset: u64) -> Result<Decoded> {
        let place = |row: usize, error: Error, start: usize| {
            // A payload starts behind the 12 bytes of its header.
            let at = offset + start.saturating_sub(HEADER_BYTES) as u64;
            error.url(url.clone()).record(record + row as u64).byte_offset(at).stage("decode")
        };
        // Behind each payload; where a record could not be found there is none.
        let stored = |payload: &Range<usize>| buffer.get(payload.end..)?.first_chunk().copied();
        let checksums = framed.payloads.iter().map(|payload| stored(payload).map_or(0, u32::from_le_bytes)).collect();
        let (rows, bad) = match &self.parse.parser {
            Some(parser) => {
                let parsed = parser.parse_except(&buffer, &framed.payloads, framed.bad);
                (parsed.rows, self.parse.with_strangers(parsed.bad, &buffer, &framed.payloads))
            }
            None => (self.views(buffer, &framed)?, framed.bad),
        };
        let bad = bad.into_iter().map(|(row, error)| (row, place(row, error, framed.payloads[row].start))).collect();
        let starts = framed.payloads.iter().map(|payload| payload.start.saturating_sub(HEADER_BYTES) as u32).collect();
        let places = RecordPlaces { url: url.clone(), first_record: record, offset, starts, files: Vec::new() };
        Ok(Decoded { rows, bad, places: Some(places), checksums })
    }

    /// Payloads as they are, without copying them.
    fn views(&self, buffer: Buffer, framed: &Framed) -> Result<RecordBatch> {
        let mut builder = BinaryViewBuilder::with_capacity(framed.payloads.len());
        let block = builder.append_block(buffer);
        for payload in &framed.payloads {
            builder
                .try_append_view(block, payload.start as u32, payload.len() as u32)
                .map_err(|e| Error::new(ErrorKind::Memory, "a block of 4 GiB or more cannot be viewed").because(e))?;
        }
        let schema = crate::schema::arrow_schema(&self.parse.columns);
        RecordBatch::try_new(schema, vec![Arc::new(builder.finish())])
            .map_err(|e| Error::new(ErrorKind::Schema, "records do not make their column").because(e))
    }
}

async fn settle_columns(store: &Store, objects: &[Object], options: &TfRecord, wanted: &Wanted) -> Result<Parse> {
    if options.records {
        let columns = wanted.columns.clone().unwrap_or_else(|| vec![bytes(RECORD)]);
        if columns.len() != 1
            || columns[0].name().as_ref() != RECORD
            || columns[0].arrow_type() != bytes(RECORD).arrow_type()
        {
            return Err(Error::config("records as they are have one column of bytes, called \"record\"")
                .advice("ask for bytes(\"record\") in .columns(), perhaps with .raw(dtype, shape), or for nothing"));
        }
        return Ok(Parse { columns, parser: None, known: None });
    }
    let (kind, columns) = match &wanted.columns {
        Some(columns) if columns.iter().any(Column::is_sequence) => (Kind::SequenceExample, columns.clone()),
        Some(columns) => (Kind::Example, columns.clone()),
        None => infer_columns(store, objects, options, wanted.leave_out, wanted.max_bytes).await?,
    };
    let parser = Parser::new(&columns, kind)?;
    let known = wanted.all_columns.then(|| columns.iter().map(|column| column.name().as_bytes().into()).collect());
    Ok(Parse { columns, parser: Some(parser), known })
}

/// The columns that the first records have.
#[cfg(feature = "cli")]
pub(crate) async fn stored_columns(
    store: &Store,
    objects: &[Object],
    options: &TfRecord,
    max_bytes: usize,
) -> Result<Vec<Column>> {
    infer_columns(store, objects, options, false, max_bytes).await.map(|(_, columns)| columns)
}

/// Looks at the first records: those before a bad one, which the loop will come to, or all that are good where bad ones are left out.
async fn infer_columns(
    store: &Store,
    objects: &[Object],
    options: &TfRecord,
    leave_out: bool,
    max_bytes: usize,
) -> Result<(Kind, Vec<Column>)> {
    for object in objects.iter().filter(|object| object.size > 0) {
        let place = |error: Error| error.url(object.url.clone()).stage("infer");
        let block = match first_block(store, object, options.compression, max_bytes).await {
            Ok(Some(block)) => block,
            Ok(None) => continue,
            Err(error) if leave_out && error.kind() == ErrorKind::Corrupt => continue,
            Err(error) => return Err(place(error)),
        };
        let mut damage = block.framed.bad.into_iter().collect::<HashMap<_, _>>();
        let mut good = Vec::new();
        for (row, payload) in block.framed.payloads.into_iter().enumerate().take(INFER_RECORDS) {
            match damage.remove(&row) {
                None => good.push(payload),
                Some(_) if leave_out => {}
                Some(error) if good.is_empty() => return Err(place(error)),
                Some(_) => break,
            }
        }
        match infer_from(&block.buffer, good, leave_out) {
            Err(_) if leave_out => {}
            inferred => return inferred.map_err(place),
        }
    }
    Err(Error::new(ErrorKind::Schema, "the shards hold no record to infer columns from")
        .advice("name the columns with .columns()"))
}

/// The first records of a shard, and a few more pieces of it if they are large.
async fn first_block(
    store: &Store,
    object: &Object,
    compression: Option<Compression>,
    max_bytes: usize,
) -> Result<Option<Arrived>> {
    let mut shard = ShardReader::new(object, compression, Check::Full);
    let (mut at, mut piece_bytes) = (0, FIRST_PIECE_BYTES);
    while at < object.size {
        let end = object.size.min(at + piece_bytes);
        shard.supply(store.read(object, at..end).await.map_err(|e| e.stage("read"))?, end == object.size);
        (at, piece_bytes) = (end, PIECE_BYTES);
        match shard.next_block(max_bytes)? {
            Next::Block(block) => return Ok(Some(block)),
            Next::Piece => {}
            Next::Room(bytes) => return Err(too_large(bytes, &shard)),
        }
    }
    Ok(None)
}

/// The columns of the payloads before the first that cannot be described, or of all others.
fn infer_from(data: &[u8], mut payloads: Vec<Range<usize>>, leave_out: bool) -> Result<(Kind, Vec<Column>)> {
    loop {
        let error = match infer(payloads.iter().map(|payload| &data[payload.clone()])) {
            Ok(inferred) => return Ok(inferred),
            Err(error) => error,
        };
        match error.place().record.map(|record| record as usize) {
            Some(bad) if leave_out && payloads.len() > 1 => _ = payloads.remove(bad),
            Some(bad) if bad > 0 => payloads.truncate(bad),
            Some(bad) => return Err(error.byte_offset(payloads[bad].start.saturating_sub(HEADER_BYTES) as u64)),
            None => return Err(error),
        }
    }
}

/// Shards whose records are indexed: blocks are runs of records, or whole shards where they are compressed.
pub(crate) struct Shards {
    common: Arc<Common>,
    catalog: Catalog,
    /// Where each block starts in its (decompressed) shard; it ends where the next one of the shard starts, or at the shard's end. Below a global shuffle
    /// each row is a block, so these are as few bytes as may be.
    offsets: Vec<u64>,
    /// Compression and end of each shard.
    layouts: Vec<(Compression, u64)>,
    /// What is wrong with the framing of damaged shards, by shard. Behind the blocks before the damage such a shard has one of a single bad
    /// record and no bytes, which stands for the rest.
    damage: HashMap<u32, Error>,
}

struct Block {
    shard: usize,
    compression: Compression,
    first_record: u64,
    /// ReadPoint in the decompressed shard.
    offset: u64,
    bytes: u64,
}

impl Shards {
    fn new(common: Arc<Common>, found: Vec<Found>, wanted: &Wanted) -> Self {
        let (mut indexes, mut damage) = (Vec::with_capacity(found.len()), HashMap::new());
        for found in found {
            match found {
                Found::Whole(index) => indexes.push(index),
                Found::Damaged(index, error) => {
                    damage.insert(indexes.len() as u32, error);
                    indexes.push(index);
                }
                Found::Nothing => unreachable!("only shards with an index are opened by it"),
            }
        }
        let total: u64 = indexes.iter().map(ShardIndex::bytes).sum();
        let rows: u64 = indexes.iter().map(|index| index.len() as u64).sum();
        let target = match wanted {
            Wanted { by_rows: true, .. } => 1,
            Wanted { whole_rows, .. } if rows <= *whole_rows => BLOCK_BYTES,
            Wanted { min_blocks, .. } => (total / (*min_blocks).max(1)).clamp(1, BLOCK_BYTES),
        };
        let row_bytes: u64 = common.parse.columns.iter().map(|column| column.sample_bytes().unwrap_or(16) as u64).sum();
        let (mut catalog, mut offsets, mut divisible) = (Catalog::new(), Vec::new(), true);
        for (shard, index) in indexes.iter().enumerate() {
            catalog.push_shard(common.objects[shard].url.clone());
            let compression = index.compression();
            let stored = if compression == Compression::None { 0 } else { common.objects[shard].size };
            divisible &= compression == Compression::None;
            for run in index.blocks(if compression == Compression::None { target } else { u64::MAX }) {
                let rows = run.num_records as u64;
                catalog.push_block(rows, stored + run.bytes + rows * row_bytes);
                offsets.push(run.offset);
            }
            if damage.contains_key(&(shard as u32)) {
                catalog.push_block(1, row_bytes);
                offsets.push(index.bytes());
            }
        }
        let catalog = if divisible { catalog } else { catalog.indivisible() };
        let layouts = indexes.iter().map(|index| (index.compression(), index.bytes())).collect();
        Self { common, catalog, offsets, layouts, damage }
    }

    fn block(&self, block: usize) -> Block {
        let shard = self.catalog.shard_of(block);
        let ((compression, end), offset) = (self.layouts[shard], self.offsets[block]);
        let next = self.offsets.get(block + 1).filter(|_| self.catalog.shard_of(block + 1) == shard);
        let bytes = next.unwrap_or(&end) - offset;
        Block { shard, compression, first_record: self.catalog.record_of(block), offset, bytes }
    }
}

impl Source for Shards {
    fn name(&self) -> String {
        format!("{} TFRecord shards", self.common.objects.len())
    }

    fn columns(&self) -> &[Column] {
        &self.common.parse.columns
    }

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn fetch(&self, block: usize) -> Option<BoxFuture<'static, Result<Vec<Bytes>>>> {
        let Block { shard, compression, offset, bytes, .. } = self.block(block);
        if bytes == 0 {
            return None;
        }
        let (store, object) = (self.common.store.clone(), self.common.objects[shard].clone());
        let range = if compression == Compression::None { offset..offset + bytes } else { 0..object.size };
        Some(Box::pin(async move { Ok(vec![store.read(&object, range).await?]) }))
    }

    fn decode(&self, block: usize, fetched: Vec<Bytes>) -> Result<Decoded> {
        let fetched = fetched.into_iter().next().unwrap_or_default();
        let Block { shard, compression, first_record, offset, bytes } = self.block(block);
        let url = &self.common.objects[shard].url;
        let damage = self.damage.get(&(shard as u32));
        if let Some(damage) = damage.filter(|_| bytes == 0) {
            return self.common.decode(Buffer::from(&[]), broken_off(damage.clone()), url, first_record, offset);
        }
        let buffer = match compression {
            Compression::None => Buffer::from(fetched),
            _ => {
                let mut data = Vec::with_capacity(bytes as usize);
                let mut decoder = Decoder::new(compression);
                let decoded = decoder.decode(&fetched, &mut data, bytes as usize);
                let decoded = decoded.map_err(|e| e.url(url.clone()))?;
                // What is left may be members that hold nothing: bgzip ends with one.
                let mut beyond = Vec::new();
                if decoded.more && damage.is_none() {
                    let rest = decoder.decode(&fetched[decoded.consumed..], &mut beyond, 1);
                    rest.map_err(|e| e.url(url.clone()))?;
                }
                // Of a damaged shard the index holds less than it decompresses to.
                if data.len() as u64 != bytes || !beyond.is_empty() {
                    return Err(Error::corrupt(format!(
                        "decompresses to other than the {bytes} bytes that its index says"
                    ))
                    .url(url.clone())
                    .advice(format!("the shard changed behind its index: forebay index --deep '{url}'")));
                }
                if damage.is_none() {
                    decoder.finish().map_err(|e| e.url(url.clone()))?;
                }
                Buffer::from_vec(data)
            }
        };
        let rows = self.catalog.block_rows(block) as usize;
        let framed = frame_block(&buffer, offset, first_record, rows, self.common.check());
        self.common.decode(buffer, framed, url, first_record, offset)
    }
}

/// The one record that stands for what cannot be found of a damaged shard.
fn broken_off(damage: Error) -> Framed {
    Framed { payloads: vec![Range::default()], bad: vec![(0, damage)] }
}
