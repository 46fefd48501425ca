//! Counts the records of shards: from indexes where they exist, by reading the shards where not.

use std::path::PathBuf;
use std::sync::Mutex;

use futures::{StreamExt, TryStreamExt, stream};

use super::scan::{End, Outcome, Scan, Visitor};
use super::shards::Shards;
use super::terminal::{Terminal, Unit};
use crate::dataset::TfRecord;
use crate::error::{Error, Result};
use crate::format::tfrecord::{Check, Compression, ShardIndex};
use crate::loader::default_index_dir;
use crate::source::Arrived;
use crate::source::open::Index;
use crate::source::tfrecord::{Keeper, index_of};

/// Where indexes are kept.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct IndexArgs {
    /// The folder of indexes [default: $FOREBAY_INDEX_DIR, or forebay/index in the user's cache].
    #[arg(long, value_name = "DIR")]
    index_dir: Option<PathBuf>,
}

impl IndexArgs {
    /// Returns the folder; `None` if no folder is known.
    pub(super) fn dir(&self) -> Option<PathBuf> {
        self.index_dir.clone().or_else(default_index_dir)
    }

    pub(super) fn keeper(&self) -> Keeper {
        Keeper::new(self.dir())
    }
}

/// What is known of a shard.
pub(super) struct Count {
    pub(super) records: u64,
    /// Decompressed bytes.
    pub(super) bytes: u64,
    pub(super) compression: Compression,
    /// Where the shard breaks off; the counts cover what comes before.
    pub(super) damage: Option<Error>,
}

/// The number of shards whose index is looked up at the same time.
const LOOKING: usize = 16;

/// Counts the records of every shard, and stores the indexes that this creates.
///
/// # Errors
/// A shard that cannot be read. Damage is not an error here: it is recorded in the shard's count.
pub(super) fn count(shards: &Shards, keeper: &Keeper, terminal: &Terminal) -> Result<Vec<Count>> {
    let (store, objects, looking) = (shards.store.clone(), shards.objects.clone(), keeper.clone());
    let found: Vec<Option<Count>> = shards.io.wait(async move {
        let find = |object| index_of(store.clone(), looking.clone(), object, TfRecord::new(), Index::Auto);
        // Only the numbers are kept: the indexes of many shards are large.
        let counted = stream::iter(objects).map(find).buffered(LOOKING);
        counted.map_ok(|index| index.map(|index| Count::of(&index))).try_collect().await
    })?;
    let missing: Vec<u64> = found.iter().map(|count| if count.is_none() { u64::MAX } else { 0 }).collect();
    let bytes = shards.objects.iter().zip(&missing).filter(|(_, wanted)| **wanted > 0).map(|(object, _)| object.size);
    let counts = Counts { shards, keeper, counts: Mutex::new(found), failed: Mutex::default() };
    if missing.iter().any(|&wanted| wanted > 0) {
        let bar = terminal.progress("counting", bytes.sum(), Unit::Bytes);
        Scan { shards, check: Check::LengthsOnly, first: Some(&missing), bar: &bar }.run(|| &counts);
        bar.finish_and_clear();
    }
    match counts.failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            let counts = counts.counts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            Ok(counts.into_iter().map(|count| count.expect("found, or scanned")).collect())
        }
    }
}

impl Count {
    fn of(index: &ShardIndex) -> Self {
        let (records, bytes, compression) = (index.len() as u64, index.bytes(), index.compression());
        Self { records, bytes, compression, damage: None }
    }
}

/// Records how shards end.
struct Counts<'a> {
    shards: &'a Shards,
    keeper: &'a Keeper,
    counts: Mutex<Vec<Option<Count>>>,
    failed: Mutex<Option<Error>>,
}

impl Visitor for &Counts<'_> {
    fn block(&mut self, _: Arrived) {}

    fn end(&mut self, end: End) {
        let End { shard, records, bytes, compression, outcome } = end;
        let damage = match outcome {
            Outcome::Whole(index) => {
                self.keeper.save(&self.shards.objects[shard], &index);
                None
            }
            Outcome::Enough => None,
            Outcome::Damaged(damage) => Some(damage.error),
            Outcome::Unread(error) => {
                let mut failed = self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                failed.get_or_insert(error);
                None
            }
        };
        let mut counts = self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        counts[shard] = Some(Count { records, bytes, compression, damage });
    }
}
