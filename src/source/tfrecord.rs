//! TFRecord shards as a source: with an index in any order, without one as they come.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{BinaryViewBuilder, RecordBatch};
use arrow::buffer::Buffer;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};

use super::open::{Index, Opened, Opening, Wanted};
use super::{ARRIVED_BYTES, Arrived, Arriving, ArrivingPass, Decoded, Next, RecordPlaces, Source};
use crate::dataset::TfRecord;
use crate::error::{Error, ErrorKind, Result};
use crate::format::example::{Kind, Parser, infer};
use crate::format::tfrecord::{
    Check, Compression, Decoder, Fingerprint, Framed, Framer, HEADER_BYTES, INDEX_FOLDER, IndexBuilder, ShardIndex,
    Shortened, frame_block,
};
use crate::plan::{Catalog, DataMark, Permutation, ReadPoint};
use crate::random::Key;
use crate::schema::{Column, bytes};
use crate::store::{Object, Store};

/// A block of plain records: large enough that a request costs less than its bytes, small enough to mix and to budget for.
const BLOCK_BYTES: u64 = 4 << 20;

/// Pieces that a source without index is read in.
pub(crate) const PIECE_BYTES: u64 = 4 << 20;

/// The first piece of a shard whose first records are wanted.
const FIRST_PIECE_BYTES: u64 = 1 << 20;

/// Bytes of a record that commands hold in memory, at most.
#[cfg(feature = "cli")]
const LARGEST_RECORD: usize = 512 << 20;

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

/// A shard whose stored index is damaged or of another version of it.
struct Stale {
    url: Arc<str>,
    reason: Outdated,
    rebuilt: bool,
}

/// Why a stored index does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outdated {
    Shortened(Shortened),
    /// It is damaged, or of another version of the shard: in words.
    Other(String),
}

impl Outdated {
    pub(crate) fn shortened(&self) -> Option<Shortened> {
        if let Self::Shortened(shortened) = self { Some(*shortened) } else { None }
    }
}

impl std::fmt::Display for Outdated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shortened(shortened) => write!(f, "{shortened}"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

/// Shards that are named one by one in notes.
const NAMED: usize = 3;

fn notes_of(stale: &[Stale], rebuild: &str, index: Index, is_indexed: bool) -> Vec<String> {
    let read = match is_indexed {
        true => "what it has is read",
        false => "shards are read as they come, in another order than with indexes",
    };
    let note = |Stale { url, reason, rebuilt }: &Stale| {
        let is_shortened = reason.shortened().is_some();
        match (rebuilt, is_shortened) {
            (true, true) if index == Index::Build => {
                format!("{url}: {reason}; copy it again, unless it was rewritten: its index was built again")
            }
            (_, true) => {
                format!("{url}: {reason}; {read}: copy it again, or, if it was rewritten, index it anew: {rebuild}")
            }
            (true, false) => format!("{url}: its index was stale and was built again: {reason}"),
            (false, false) => format!("{url}: its index is stale, so {read}: {reason}; {rebuild}"),
        }
    };
    // What may be damage is named before what merely changed.
    let (shortened, changed): (Vec<&Stale>, Vec<&Stale>) =
        stale.iter().partition(|stale| stale.reason.shortened().is_some());
    let mut notes: Vec<String> = shortened.into_iter().chain(changed).take(NAMED).map(note).collect();
    if stale.len() > NAMED {
        notes.push(format!("the indexes of {} more shards were stale as well", stale.len() - NAMED));
    }
    notes
}

/// What is known of a shard's records.
enum Found {
    Whole(ShardIndex),
    /// Those before damage to the framing.
    Damaged(ShardIndex, Error),
    /// Nothing: it takes reading the shard.
    Nothing,
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
                (parsed.rows, parsed.bad)
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
        return Ok(Parse { columns, parser: None });
    }
    let (kind, columns) = match &wanted.columns {
        Some(columns) if columns.iter().any(Column::is_sequence) => (Kind::SequenceExample, columns.clone()),
        Some(columns) => (Kind::Example, columns.clone()),
        None => infer_columns(store, objects, options, wanted.leave_out, wanted.max_bytes).await?,
    };
    let parser = Parser::new(&columns, kind)?;
    Ok(Parse { columns, parser: Some(parser) })
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

/// A record that the budget cannot hold.
fn too_large(bytes: usize, shard: &ShardReader) -> Error {
    Error::new(ErrorKind::Memory, format!("a record of {bytes} bytes does not fit the budget"))
        .record(shard.framer.record())
        .byte_offset(shard.framer.offset())
        .advice(format!("take .budget(Budget::mebibytes({})) or more", (4 * bytes as u64).div_ceil(1 << 20)))
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

// --- indexes -----------------------------------------------------------------------------------------------------------

/// Keeps indexes in a folder, under a name made from the shard's URL.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    dir: Option<PathBuf>,
}

/// What a [`Keeper`] has of a shard.
pub(crate) enum Kept {
    Nothing,
    /// Damaged, or of another version of the shard: why it does not count.
    Stale(Outdated),
    Index(ShardIndex),
}

impl Kept {
    /// What stored bytes are for this object.
    fn of(stored: &[u8], object: &Object) -> Self {
        let (index, now) = match ShardIndex::from_bytes(stored) {
            Ok(index) => (index, fingerprint(object)),
            Err(error) => return Self::Stale(Outdated::Other(error.reason())),
        };
        if let Some(shortened) = Shortened::of(index.fingerprint(), &now) {
            return Self::Stale(Outdated::Shortened(shortened));
        }
        match index.matches(&now) {
            Ok(()) => Self::Index(index),
            Err(difference) => Self::Stale(Outdated::Other(format!("the shard has changed: its {difference}"))),
        }
    }
}

impl Keeper {
    /// A keeper in this folder; without one it keeps nothing.
    pub(crate) fn new(dir: Option<PathBuf>) -> Self {
        Self { dir }
    }

    fn path(&self, url: &str) -> Option<PathBuf> {
        Some(self.dir.as_ref()?.join(format!("{:016x}.index", xxhash_rust::xxh3::xxh3_64(url.as_bytes()))))
    }

    /// What is stored of this object.
    pub(crate) fn look(&self, object: &Object) -> Kept {
        match self.path(&object.url).and_then(|path| std::fs::read(path).ok()) {
            Some(stored) => Kept::of(&stored, object),
            None => Kept::Nothing,
        }
    }

    /// Stores an index where it can; where not, the next run builds it again.
    pub(crate) fn save(&self, object: &Object, index: &ShardIndex) {
        _ = self.try_save(object, index);
    }

    /// Stores an index, whole or not at all.
    ///
    /// # Errors
    /// [`ErrorKind::Access`] if the folder cannot be written to.
    pub(crate) fn try_save(&self, object: &Object, index: &ShardIndex) -> Result<()> {
        let Some(path) = self.path(&object.url) else { return Ok(()) };
        write_whole(&path, index.to_bytes()?)
    }
}

/// Writes an index, whole or not at all.
pub(super) fn write_whole(path: &Path, bytes: Vec<u8>) -> Result<()> {
    let Some(dir) = path.parent() else { return Ok(()) };
    let part = path.with_extension(format!("part-{}-{:?}", std::process::id(), std::thread::current().id()));
    let stored = std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&part, bytes))
        .and_then(|()| std::fs::rename(&part, path));
    stored.map_err(|error| {
        _ = std::fs::remove_file(part);
        Error::new(ErrorKind::Access, format!("the index cannot be written to {}", path.display())).because(error)
    })
}

pub(super) fn fingerprint(object: &Object) -> Fingerprint {
    Fingerprint { size: object.size, etag: object.etag.as_deref().map(str::to_owned), modified: object.modified }
}

/// The index of a shard, as [`find_index`], for commands: without a budget, and with nothing to deliver before damage. `None` where it would
/// take reading the shard.
#[cfg(feature = "cli")]
pub(crate) async fn index_of(
    store: Store,
    keeper: Keeper,
    object: Object,
    options: TfRecord,
    policy: Index,
) -> Result<Option<ShardIndex>> {
    match find_index(store, keeper, object, options, policy, LARGEST_RECORD).await?.0 {
        Found::Whole(index) => Ok(Some(index)),
        Found::Damaged(_, error) if policy == Index::Build => Err(error),
        Found::Damaged(..) | Found::Nothing => Ok(None),
    }
}

/// The index of one shard: stored, hopped or read, as told; and why the stored one does not count, if there is one that does not.
async fn find_index(
    store: Store,
    keeper: Keeper,
    object: Object,
    options: TfRecord,
    policy: Index,
    max_bytes: usize,
) -> Result<(Found, Option<Outdated>)> {
    let local = store.local_path(&object);
    let (known, found, stated) = (object.clone(), keeper.clone(), options.compression);
    let hopped = on_disk_thread(move || {
        // A wrong statement ends in the same error with an index and without.
        let agrees = |index: &ShardIndex| index.is_empty() || stated.is_none_or(|stated| stated == index.compression());
        let mut stale = match found.look(&known) {
            Kept::Index(index) if agrees(&index) => return Ok((Found::Whole(index), None)),
            Kept::Stale(reason) => Some(reason),
            Kept::Index(_) | Kept::Nothing => None,
        };
        match local.as_deref().map_or(Kept::Nothing, |path| beside(path, &known)) {
            Kept::Index(index) if agrees(&index) => return Ok((Found::Whole(index), None)),
            Kept::Stale(shortened @ Outdated::Shortened(_)) => stale = Some(shortened),
            // An index of something else says nothing of this shard.
            Kept::Stale(Outdated::Other(_)) | Kept::Index(_) | Kept::Nothing => {}
        }
        let hopped = local.map_or(Ok(Found::Nothing), |path| hop(&path, &known, &options))?;
        // An index that says what a shard has lost is replaced by who knows that it has not; until then it says so at each start.
        let may_be_cut = stale.as_ref().is_some_and(|stale| stale.shortened().is_some());
        if let Found::Whole(index) = &hopped
            && (!may_be_cut || policy == Index::Build)
        {
            found.save(&known, index);
        }
        Ok((hopped, stale))
    });
    let place = |error: Error| error.url(object.url.clone()).stage("index");
    let (mut found, stale) = hopped.await.map_err(place)?;
    if policy == Index::Build && matches!(found, Found::Nothing) {
        found = read_through(&store, &object, stated, max_bytes).await.map_err(place)?;
        if let Found::Whole(index) = &found {
            keeper.save(&object, index);
        }
    }
    let found = match (found, stale.as_ref().and_then(Outdated::shortened)) {
        (Found::Damaged(index, error), Some(shortened)) => Found::Damaged(index, place(shortened.explain(error))),
        (Found::Damaged(index, error), None) => Found::Damaged(index, place(error)),
        (found, _) => found,
    };
    Ok((found, stale))
}

pub(super) async fn on_disk_thread<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let result = tokio::task::spawn_blocking(f).await;
    result.unwrap_or_else(|e| Err(Error::new(ErrorKind::Panicked, "a disk thread panicked").because(e)))
}

/// A plain local shard, header by header; nothing is found of a compressed one.
fn hop(path: &Path, object: &Object, options: &TfRecord) -> Result<Found> {
    let file = std::fs::File::open(path).map_err(|e| Error::new(ErrorKind::Access, "cannot be opened").because(e))?;
    let mut head = vec![0; HEADER_BYTES.min(object.size as usize)];
    file.read_exact_at(&mut head, 0).map_err(|e| Error::new(ErrorKind::Transfer, "cannot be read").because(e))?;
    if options.compression.unwrap_or_else(|| Compression::detect(&head)) != Compression::None {
        return Ok(Found::Nothing);
    }
    let mut read_at = |offset: u64, buffer: &mut [u8]| file.read_exact_at(buffer, offset);
    Ok(match ShardIndex::hop_up_to_damage(&mut read_at, fingerprint(object))? {
        (index, None) => Found::Whole(index),
        (index, Some(damage)) => Found::Damaged(index, damage),
    })
}

/// The index that whoever wrote a local shard put beside it. It knows the shard's size alone, so that it can be copied along.
pub(crate) fn beside(path: &Path, object: &Object) -> Kept {
    let stored = || {
        let name = format!("{}.index", path.file_name()?.to_str()?);
        std::fs::read(path.parent()?.join(INDEX_FOLDER).join(name)).ok()
    };
    stored().map_or(Kept::Nothing, |stored| Kept::of(&stored, object))
}

/// Reads a shard once for its index.
async fn read_through(
    store: &Store,
    object: &Object,
    compression: Option<Compression>,
    max_bytes: usize,
) -> Result<Found> {
    let mut shard = ShardReader::new(object, compression, Check::LengthsOnly);
    let mut at = 0;
    while at < object.size {
        let end = object.size.min(at + PIECE_BYTES);
        let piece = store.read(object, at..end).await?;
        at = end;
        shard = on_disk_thread(move || {
            shard.supply(piece, at == shard.size);
            loop {
                match shard.next_block(max_bytes) {
                    Ok(Next::Block(_)) => {}
                    Ok(Next::Room(bytes)) => return Err(too_large(bytes, &shard)),
                    Ok(Next::Piece) | Err(_) => return Ok(shard),
                }
            }
        })
        .await?;
        if shard.failed.is_some() {
            break;
        }
    }
    shard.found()
}

// --- with an index -----------------------------------------------------------------------------------------------------

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
                // Of a damaged shard the index holds less than it decompresses to.
                if data.len() as u64 != bytes || decoded.more && damage.is_none() {
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

// --- without one -------------------------------------------------------------------------------------------------------

/// Shards read from front to back, in the order of their URLs or shuffled as wholes.
pub(crate) struct Unindexed {
    common: Arc<Common>,
    keeper: Keeper,
    shuffled: bool,
    leave_out: bool,
}

impl Arriving for Unindexed {
    fn columns(&self) -> &[Column] {
        &self.common.parse.columns
    }

    fn mark(&self) -> DataMark {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for object in &self.common.objects {
            hash.update(DataMark::name_of(&object.url).as_bytes());
            hash.update(&object.size.to_le_bytes());
        }
        DataMark::new(self.common.objects.len(), None, hash.digest())
    }

    fn check(&self, place: ReadPoint) -> Result<()> {
        let object = usize::try_from(place.shard).ok().and_then(|shard| self.common.objects.get(shard));
        if object.is_some_and(|object| place.offset < object.size) {
            return Ok(());
        }
        let ReadPoint { shard, offset, .. } = place;
        Err(Error::config(format!(
            "the state is damaged: reading begins at byte {offset} of shard {shard}, which there is not"
        ))
        .advice("restore it as it was saved"))
    }

    fn begin(&self, key: Key, place: Option<ReadPoint>) -> Box<dyn ArrivingPass> {
        let shards = self.common.objects.len() as u64;
        let permutation = Permutation::new(key, shards);
        let order = (0..shards).map(|i| if self.shuffled { permutation.at(i) } else { i } as usize);
        let order = order.filter(|&shard| self.common.objects[shard].size > 0);
        let order = order.skip_while(|&shard| place.is_some_and(|place| place.shard != shard as u64)).collect();
        Box::new(Pass {
            start: place.filter(|place| place.offset > 0),
            common: self.common.clone(),
            keeper: self.keeper.clone(),
            order,
            leave_out: self.leave_out,
            broken: None,
            at: place.map_or(0, |place| place.offset),
            asked: VecDeque::new(),
            pieces: VecDeque::new(),
            current: None,
        })
    }

    fn decode(&self, block: Arrived) -> Result<Decoded> {
        let Arrived { buffer, framed, shard, first_record, offset, .. } = block;
        self.common.decode(buffer, framed, &self.common.objects[shard].url, first_record, offset)
    }
}

struct Pass {
    common: Arc<Common>,
    keeper: Keeper,
    /// Where the first shard is entered, if not at its beginning.
    start: Option<ReadPoint>,
    /// Shards still to be asked for, and the offset in the first of them.
    order: VecDeque<usize>,
    at: u64,
    /// Whether the pass goes on behind a damaged shard, and the last such: its other pieces are of no use.
    leave_out: bool,
    broken: Option<usize>,
    /// Shard of each piece asked for, and whether it is the shard's last.
    asked: VecDeque<(usize, bool)>,
    pieces: VecDeque<(usize, bool, Bytes)>,
    current: Option<(usize, ShardReader)>,
}

impl ArrivingPass for Pass {
    fn next_read(&mut self) -> Option<(u64, BoxFuture<'static, Result<Bytes>>)> {
        if self.order.front().is_some_and(|&shard| self.broken == Some(shard)) {
            self.order.pop_front();
            self.at = 0;
        }
        let shard = *self.order.front()?;
        let object = self.common.objects[shard].clone();
        let range: Range<u64> = self.at..object.size.min(self.at + PIECE_BYTES);
        let last = range.end == object.size;
        self.at = if last { 0 } else { range.end };
        if last {
            self.order.pop_front();
        }
        self.asked.push_back((shard, last));
        let store = self.common.store.clone();
        Some((range.end - range.start, Box::pin(async move { store.read(&object, range).await })))
    }

    fn supply(&mut self, piece: Bytes) {
        let (shard, last) = self.asked.pop_front().expect("pieces come in the order they were asked for");
        self.pieces.push_back((shard, last, piece));
    }

    fn next_block(&mut self, room: usize) -> Result<Next> {
        loop {
            if let Some((shard, reader)) = &mut self.current {
                let (shard, object) = (*shard, &self.common.objects[*shard]);
                let explain = |error: Error| match self.common.shortened[shard] {
                    Some(shortened) => shortened.explain(error),
                    None => error,
                };
                match reader.next_block(room).map_err(|e| explain(e).url(object.url.clone())) {
                    Ok(Next::Block(block)) => return Ok(Next::Block(Arrived { shard, ..block })),
                    Ok(Next::Room(bytes)) => return Ok(Next::Room(bytes)),
                    Ok(Next::Piece) => {}
                    Err(error) if self.leave_out && error.kind() == ErrorKind::Corrupt => {
                        let (first_record, offset) = (reader.framer.record(), reader.framer.offset());
                        (self.broken, self.current) = (Some(shard), None);
                        let (buffer, framed, seekable) = (Buffer::from(&[]), broken_off(error), false);
                        return Ok(Next::Block(Arrived { buffer, framed, shard, first_record, offset, seekable }));
                    }
                    Err(error) if error.kind() == ErrorKind::Corrupt => return Err(error.or_leave_out()),
                    Err(error) => return Err(error),
                }
                if reader.is_done() {
                    if let Some((_, reader)) = self.current.take()
                        && let Ok(Found::Whole(index)) = reader.found()
                    {
                        self.keeper.save(object, &index);
                    }
                    continue;
                }
            }
            let Some((shard, last, piece)) = self.pieces.pop_front() else { return Ok(Next::Piece) };
            if self.broken == Some(shard) {
                continue;
            }
            let (_, reader) = self.current.get_or_insert_with(|| {
                let compression = self.common.options.compression;
                let reader = ShardReader::new(&self.common.objects[shard], compression, self.common.check());
                match self.start.take() {
                    Some(start) => (shard, reader.starting_at(start.record, start.offset)),
                    None => (shard, reader),
                }
            });
            reader.supply(piece, last);
        }
    }
}

/// One shard from front to back: pieces in, blocks of records out.
pub(crate) struct ShardReader {
    fingerprint: Fingerprint,
    size: u64,
    /// Whether it began at the shard's beginning.
    whole: bool,
    /// Known with the first piece, if not stated.
    compression: Option<Compression>,
    decoder: Option<Decoder>,
    framer: Framer,
    input: Bytes,
    last: bool,
    /// Decompressed bytes that are no whole record yet.
    rest: Vec<u8>,
    builder: IndexBuilder,
    done: bool,
    failed: Option<Error>,
}

impl ShardReader {
    pub(crate) fn new(object: &Object, compression: Option<Compression>, check: Check) -> Self {
        Self {
            fingerprint: fingerprint(object),
            size: object.size,
            whole: true,
            compression,
            decoder: None,
            framer: Framer::new(check),
            input: Bytes::new(),
            last: false,
            rest: Vec::new(),
            builder: IndexBuilder::new(),
            done: false,
            failed: None,
        }
    }

    /// Starts in the middle of a plain shard: the first piece begins with the header of `record`. Such a reader has no index.
    pub(crate) fn starting_at(mut self, record: u64, offset: u64) -> Self {
        self.whole = false;
        self.compression = Some(Compression::None);
        self.framer = self.framer.starting_at(record, offset);
        self
    }

    /// The next record, and where its header starts in the decompressed shard.
    #[cfg(feature = "cli")]
    pub(crate) fn position(&self) -> (u64, u64) {
        (self.framer.record(), self.framer.offset())
    }

    /// How the shard is compressed, once the first piece is there.
    #[cfg(feature = "cli")]
    pub(crate) fn compression(&self) -> Option<Compression> {
        self.compression
    }

    pub(crate) fn supply(&mut self, piece: Bytes, last: bool) {
        debug_assert!(self.input.is_empty(), "a piece is used up before the next comes");
        self.last = last;
        let compression = *self.compression.get_or_insert_with(|| Compression::detect(&piece));
        self.decoder.get_or_insert_with(|| Decoder::new(compression));
        self.input = piece;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// The next block as [`next_block`](Self::next_block) gives it, for commands, which have no budget; `None` where another piece is wanted.
    #[cfg(feature = "cli")]
    pub(crate) fn next_arrived(&mut self) -> Result<Option<Arrived>> {
        match self.next_block(LARGEST_RECORD)? {
            Next::Block(block) => Ok(Some(block)),
            Next::Piece => Ok(None),
            Next::Room(bytes) => Err(too_large(bytes, self)),
        }
    }

    /// The next block, whose shard's number is left to the caller; a piece is wanted once more behind the last, when it is done.
    fn next_block(&mut self, room: usize) -> Result<Next> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.done {
            return Ok(Next::Piece);
        }
        let Some(decoder) = &mut self.decoder else { return Ok(Next::Piece) };
        let (mut result, mut framed, mut ended) = (Ok(()), Framed::default(), false);
        let (first_record, offset) = (self.framer.record(), self.framer.offset());
        let mut needed = ARRIVED_BYTES as usize;
        let mut consumed = 0;
        loop {
            if needed > room.max(ARRIVED_BYTES as usize) {
                return Ok(Next::Room(needed));
            }
            let more = needed.saturating_sub(self.rest.len());
            match decoder.decode(&self.input, &mut self.rest, more) {
                Ok(decoded) => {
                    self.input = self.input.slice(decoded.consumed..);
                    ended = self.last && !decoded.more && self.input.is_empty();
                    if ended {
                        result = decoder.finish();
                    }
                }
                Err(error) => result = Err(error),
            }
            let following = match (self.compression, ended && result.is_ok()) {
                (_, true) => Some(0),
                (Some(Compression::None), false) => Some(self.size - offset - self.rest.len() as u64),
                _ => None,
            };
            match self.framer.frame(&self.rest[consumed..], following, &mut framed) {
                Ok(progress) => {
                    consumed += progress.consumed;
                    // A record that does not fit the block is read whole; its length was held against shard and limit.
                    needed = needed.max(consumed + progress.needed);
                }
                Err(error) => result = result.and(Err(error)),
            }
            let used_up = self.input.is_empty() && !ended;
            if result.is_err() || ended || used_up || !framed.payloads.is_empty() {
                break;
            }
        }
        self.done = ended && result.is_ok();
        for payload in &framed.payloads {
            result = result.and(self.builder.push(payload.len() as u64));
        }
        if let Err(error) = result {
            self.failed = Some(error.clone());
            if framed.payloads.is_empty() {
                return Err(error);
            }
        }
        if framed.payloads.is_empty() {
            return Ok(Next::Piece);
        }
        // Payloads of later rounds of the loop count from what was consumed before; there is only one round with records.
        // Behind damage nothing is read; what was found before it lies in the same bytes.
        let rest = if self.failed.is_some() { Vec::new() } else { self.rest.split_off(consumed) };
        let buffer = Buffer::from_vec(std::mem::replace(&mut self.rest, rest));
        let seekable = self.compression == Some(Compression::None);
        Ok(Next::Block(Arrived { buffer, framed, shard: 0, first_record, offset, seekable }))
    }

    /// The index of a shard that was read to its end.
    ///
    /// # Errors
    /// The damage that reading met.
    #[cfg(feature = "cli")]
    pub(crate) fn index(self) -> Result<ShardIndex> {
        match self.found()? {
            Found::Whole(index) => Ok(index),
            Found::Damaged(_, error) => Err(error),
            Found::Nothing => unreachable!("something is known of a shard that was read"),
        }
    }

    /// The records that were found.
    fn found(self) -> Result<Found> {
        if !self.whole {
            return Err(Error::corrupt("the shard was not read from its beginning"));
        }
        if self.size == 0 {
            return self.builder.finish(self.fingerprint, Compression::None).map(Found::Whole);
        }
        match (self.failed, self.done, self.compression) {
            (Some(error), _, compression) if error.kind() == ErrorKind::Corrupt => {
                let index = self.builder.up_to_damage(self.fingerprint, compression.unwrap_or(Compression::None));
                Ok(Found::Damaged(index, error))
            }
            (Some(error), ..) => Err(error),
            (None, true, Some(compression)) => self.builder.finish(self.fingerprint, compression).map(Found::Whole),
            _ => Err(Error::corrupt("the shard was not read to its end")),
        }
    }
}

/// The one record that stands for what cannot be found of a damaged shard.
fn broken_off(damage: Error) -> Framed {
    Framed { payloads: vec![Range::default()], bad: vec![(0, damage)] }
}
