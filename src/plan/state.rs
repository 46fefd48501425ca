//! What a loader has delivered, in a few numbers, and the plan that these belong to.

use serde::{Deserialize, Serialize};

use super::steps::sharers;
use crate::error::{Error, Result};

/// Where a training run stands after a batch: what was delivered, never what was prefetched.
///
/// Save it with a checkpoint (through serde; as JSON it is readable, and smaller than 1 KiB plus 16 bytes per stream).
/// [`LoaderBuilder::restore`](crate::LoaderBuilder::restore) then continues with precisely the samples, order and augmentations of an uninterrupted run, even
/// with other threads, prefetch, budget or devices, and with another number of ranks.
///
/// # Other world sizes
/// If rows are positions, the state of any one rank serves all worlds that divide `streams`, which [`LoaderBuilder::streams`](crate::LoaderBuilder::streams)
/// states from the start. After a filter or flat_map, a rank knows only its own streams: [`merge`](Self::merge) the states of all ranks first.
///
/// # Example
/// ```
/// # use forebay::{Dataset, Shuffle, State};
/// # use std::sync::Arc;
/// # let values = arrow::array::Int64Array::from_iter_values(0..100);
/// # let dataset = Dataset::from_columns([("x", Arc::new(values) as _)])?.shuffle(Shuffle::buffer(20)).batch(5);
/// let mut loader = dataset.loader().seed(7).build()?;
/// let mut batches = loader.epoch(3);
/// let saved = serde_json::to_string(&batches.next().expect("twenty batches")?.state()).expect("it is plain data");
/// let second = batches.next().expect("twenty batches")?;
///
/// let state: State = serde_json::from_str(&saved).expect("as written");
/// let mut restored = dataset.loader().restore(&state).build()?;
/// let again = (&mut restored).into_iter().next().expect("the rest of epoch 3")?;
/// assert_eq!((again.epoch(), again.step(), again.samples()), (3, 1, second.samples()));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct State {
    /// Version of this format: 3.
    pub version: u32,
    /// The epoch.
    pub epoch: u64,
    /// Steps of this epoch delivered so far, this batch included.
    pub step: u64,
    /// The seed of all randomness.
    pub seed: u64,
    /// Logical streams of the plan.
    pub streams: u64,
    /// The rank that the state comes from.
    pub rank: u64,
    /// How many ranks there were.
    pub world: u64,
    /// Bad records of this epoch that the rank has left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// Where each of the rank's streams stands, in graphs whose stages change the number of rows; empty if rows are positions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cursors: Vec<Cursor>,
    /// Where reading continues, for shards without an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_from: Option<ReadPoint>,
    /// The sources.
    pub data: Vec<DataMark>,
    /// The stages of the graph, each with a digest of what it does.
    pub graph: Vec<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Where one stream stands: everything before this was delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
#[non_exhaustive]
pub struct Cursor {
    /// Position in the stream before row-changing stages.
    pub position: u64,
    /// How many of the rows made from that position were already delivered.
    pub expanded: u64,
}

impl From<(u64, u64)> for Cursor {
    fn from((position, expanded): (u64, u64)) -> Self {
        Self { position, expanded }
    }
}

impl From<Cursor> for (u64, u64) {
    fn from(Cursor { position, expanded }: Cursor) -> Self {
        (position, expanded)
    }
}

/// Where a pass over shards without an index continues reading: rows before it are not needed any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReadPoint {
    /// Rows of this epoch before this point.
    pub row: u64,
    /// The shard, by its number in sorted order.
    pub shard: u64,
    /// The record within the shard, and the byte offset at which it begins; both are 0 if the shard is compressed.
    pub record: u64,
    /// The byte offset; see `record`.
    pub offset: u64,
}

/// Identifies a source. The URLs may change (shards may move); the shards' names, order and contents may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DataMark {
    /// Number of shards.
    pub shards: u64,
    /// Number of rows; none for shards without an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Digest of the shards' names and blocks, or names and sizes.
    pub digest: String,
}

impl DataMark {
    pub(crate) fn new(shards: usize, rows: Option<u64>, digest: u64) -> Self {
        Self { shards: shards as u64, rows, digest: format!("{digest:016x}") }
    }

    /// The last part of a shard's URL, which stays when the shards move.
    pub(crate) fn name_of(url: &str) -> &str {
        url.rsplit(['/', '\\']).next().unwrap_or(url)
    }
}

impl std::fmt::Display for DataMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.rows {
            Some(rows) => write!(f, "{} shards of {rows} rows", self.shards),
            None => write!(f, "{} shards without an index", self.shards),
        }
    }
}

/// The fields that all states of a loader have in common.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) seed: u64,
    pub(crate) streams: u64,
    pub(crate) rank: u64,
    pub(crate) world: u64,
    pub(crate) data: Vec<DataMark>,
    pub(crate) graph: Vec<String>,
    /// What each stage of `graph` does, for messages.
    pub(crate) stages: Vec<String>,
}

/// Where a loader stands after a batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) epoch: u64,
    pub(crate) step: u64,
    pub(crate) left_out: u64,
    pub(crate) cursors: Vec<Cursor>,
    pub(crate) read_from: Option<ReadPoint>,
}

impl Progress {
    /// Returns the start of an epoch.
    pub(crate) fn of_epoch(epoch: u64) -> Self {
        Self { epoch, ..Self::default() }
    }
}

/// The version of the format that is written and read.
const VERSION: u32 = 3;

impl State {
    pub(crate) fn new(identity: &Identity, progress: &Progress) -> Self {
        let Progress { epoch, step, left_out, cursors, read_from } = progress.clone();
        Self {
            version: VERSION,
            epoch,
            step,
            seed: identity.seed,
            streams: identity.streams,
            rank: identity.rank,
            world: identity.world,
            left_out,
            cursors,
            read_from,
            data: identity.data.clone(),
            graph: identity.graph.clone(),
        }
    }

    /// Merges the states of all ranks after one step into one state, from which any world that divides `streams` can continue.
    ///
    /// Needed only after a filter or flat_map; otherwise each rank's state serves all.
    ///
    /// # Errors
    /// States of different runs or steps, or not exactly one of each rank.
    ///
    /// # Example
    /// ```
    /// # use forebay::{Dataset, State, World};
    /// # use std::sync::Arc;
    /// # let values = arrow::array::Int64Array::from_iter_values(0..100);
    /// # let dataset = Dataset::from_columns([("x", Arc::new(values) as _)])?
    /// #     .filter("even", |_, row| Ok(row.get::<i64>("x")? % 2 == 0)).batch(8);
    /// let state_of = |rank| {
    ///     let mut loader = dataset.loader().world(World::new(rank, 2)?).steps_per_epoch(6).build()?;
    ///     let state = loader.epoch(0).next().expect("six steps")?.state();
    ///     Ok::<State, forebay::Error>(state)
    /// };
    /// let merged = State::merge([state_of(0)?, state_of(1)?])?;
    /// assert_eq!((merged.world, merged.cursors.len()), (1, 8));
    /// # Ok::<(), forebay::Error>(())
    /// ```
    pub fn merge(states: impl IntoIterator<Item = State>) -> Result<State> {
        let mut states: Vec<State> = states.into_iter().collect();
        states.sort_by_key(|state| state.rank);
        states.iter().try_for_each(State::check)?;
        let [first, others @ ..] = &states[..] else {
            return Err(Error::config("no state to merge").advice("give the states of all ranks"));
        };
        for other in others {
            let same = (other.epoch, other.step) == (first.epoch, first.step)
                && (other.seed, other.streams, other.version) == (first.seed, first.streams, first.version)
                && (other.world, &other.data, &other.graph) == (first.world, &first.data, &first.graph);
            if !same {
                return Err(Error::config(format!(
                    "the states of ranks {} and {} are not of one step of one run: epoch {} step {} and epoch {} step {}",
                    first.rank, other.rank, first.epoch, first.step, other.epoch, other.step
                ))
                .advice("give what each rank saved after the same step"));
            }
        }
        if !states.iter().map(|state| state.rank).eq(0..first.world) {
            let ranks: Vec<u64> = states.iter().map(|state| state.rank).collect();
            return Err(Error::config(format!("states of the ranks {ranks:?} of a world of {}", first.world))
                .advice("give one of each rank"));
        }
        Ok(State {
            rank: 0,
            world: 1,
            left_out: states.iter().fold(0, |sum, state| sum.saturating_add(state.left_out)),
            cursors: states.iter().flat_map(|state| state.cursors.iter().copied()).collect(),
            ..first.clone()
        })
    }

    /// Returns where a loader with this identity continues.
    ///
    /// # Errors
    /// A list of what has changed.
    pub(crate) fn progress_for(&self, identity: &Identity, transforms_may_differ: bool) -> Result<Progress> {
        self.check()?;
        let differences = self.differences(identity, transforms_may_differ);
        if !differences.is_empty() {
            let list: String = differences.iter().map(|difference| format!("\n  - {difference}")).collect();
            let advice = match self.version {
                VERSION => "restore it with the data set and settings that it was saved with, or begin a new run",
                _ => "restore it with the release of forebay that saved it, or begin a new run",
            };
            let only_transforms = !transforms_may_differ && self.differences(identity, true).is_empty();
            return Err(Error::config(format!("the state belongs to another run:{list}")).advice(
                match only_transforms {
                    true => format!(
                        "{advice}; if samples are to be made in another way from here on, say .transforms_may_differ()"
                    ),
                    false => advice.to_owned(),
                },
            ));
        }
        let cursors = if self.cursors.is_empty() || (self.rank, self.world) == (identity.rank, identity.world) {
            self.cursors.clone()
        } else if self.world == 1 {
            let of_rank = |rank| (rank * identity.streams / identity.world) as usize;
            self.cursors[of_rank(identity.rank)..of_rank(identity.rank + 1)].to_vec()
        } else {
            return Err(Error::config(format!(
                "the state of rank {} of {} knows only its own streams, and this is rank {} of {}",
                self.rank, self.world, identity.rank, identity.world
            ))
            .advice("save the states of all ranks, and restore State::merge of them"));
        };
        // Another number of ranks shares what was left out before as equally as can be said now.
        let left_out = self.left_out.saturating_mul(self.world).div_ceil(identity.world);
        Ok(Progress { epoch: self.epoch, step: self.step, left_out, cursors, read_from: self.read_from })
    }

    /// Checks that the numbers are consistent.
    fn check(&self) -> Result<()> {
        let streams = self.streams.checked_div(self.world).unwrap_or(0);
        if self.rank < self.world && (self.cursors.is_empty() || self.cursors.len() as u64 == streams) {
            return Ok(());
        }
        Err(Error::config(format!(
            "the state is damaged: rank {} of {} with {} cursors of {} streams in all",
            self.rank,
            self.world,
            self.cursors.len(),
            self.streams
        ))
        .advice("restore it as it was saved"))
    }

    fn differences(&self, identity: &Identity, transforms_may_differ: bool) -> Vec<String> {
        if self.version != VERSION {
            return vec![format!("its version is {}, this is version {VERSION}", self.version)];
        }
        let mut list = Vec::new();
        let mut compare = |what: &str, was: u64, is: u64, more: String| {
            if was != is {
                list.push(format!("{what} was {was}, is {is}{more}"));
            }
        };
        let (streams, world) = (self.streams, identity.world);
        let shared = match streams.is_multiple_of(world) {
            true => String::new(),
            false => format!(": {world} ranks cannot share {streams}, {} can", sharers(streams)),
        };
        compare("the seed", self.seed, identity.seed, String::new());
        compare("the number of streams", streams, identity.streams, shared);
        compare("the number of sources", self.data.len() as u64, identity.data.len() as u64, String::new());
        for (number, (was, is)) in self.data.iter().zip(&identity.data).enumerate() {
            if was.shards != is.shards || was.rows != is.rows {
                list.push(format!("source {number} had {was}, has {is}"));
            } else if was != is {
                list.push(format!("source {number} still has {is}, but their names, sizes or blocks changed"));
            }
        }
        let counts = |mark: &str| !(transforms_may_differ && is_transform(mark));
        let were: Vec<&str> = self.graph.iter().map(String::as_str).filter(|mark| counts(mark)).collect();
        let are: Vec<usize> = (0..identity.graph.len()).filter(|&number| counts(&identity.graph[number])).collect();
        if were.len() != are.len() {
            let names = |marks: &[&str]| marks.iter().map(|mark| name(mark)).collect::<Vec<_>>().join(", ");
            let are: Vec<&str> = are.iter().map(|&number| &*identity.graph[number]).collect();
            list.push(format!("the stages were `{}`, are `{}`", names(&were), names(&are)));
            return list;
        }
        for (was, number) in were.into_iter().zip(are) {
            let (is, stage) = (&identity.graph[number], &identity.stages[number]);
            if was != is {
                let another = if name(was) == name(is) { "another " } else { "" };
                list.push(format!("stage {number} was {another}`{}`, is `{stage}`", name(was)));
            }
        }
        list
    }
}

/// The most bytes of marks that a state may hold, and the most sources. Of larger graphs it knows only whether they are the same.
const MARK_BYTES: usize = 500;
const SOURCES: usize = 4;

/// First words of marks that do not affect which rows come: operations that compute something from each row and leave the row in its place, several of these
/// together, and what feeds them.
const TRANSFORMS: [&str; 9] =
    ["columns", "map", "map_batch", "image", "tokenize", "pad", "enumerate", "transforms", "inputs"];

/// The part of a mark that names its stage.
fn name(mark: &str) -> &str {
    mark.rsplit_once('#').map_or(mark, |(name, _)| name)
}

/// Whether a mark, or the word of one, belongs to a stage that may differ.
pub(crate) fn is_transform(mark: &str) -> bool {
    name(mark).split(' ').next().is_some_and(|verb| TRANSFORMS.contains(&verb))
}

impl Identity {
    /// Shortens the identity so that it is small enough for a state.
    pub(crate) fn bounded(mut self) -> Self {
        let is_large = |graph: &[String]| graph.iter().map(|mark| mark.len() + 3).sum::<usize>() > MARK_BYTES;
        if is_large(&self.graph) {
            let marks = self.graph.into_iter().zip(self.stages);
            let (transforms, mut kept): (Vec<_>, Vec<_>) =
                marks.enumerate().partition(|(_, (mark, _))| is_transform(mark));
            // Where they stand among the others is part of what they are.
            let transforms = (!transforms.is_empty()).then(|| {
                let all: String = transforms.iter().map(|(number, (mark, _))| format!("{number} {mark}")).collect();
                let count = format!("transforms {}", transforms.len());
                (Self::mark(&count, &all), count)
            });
            let marks: Vec<String> = kept.iter().map(|(_, (mark, _))| mark.clone()).collect();
            if is_large(&marks) {
                let count = format!("{} stages", marks.len());
                kept = vec![(0, (Self::mark(&count, &marks.concat()), count))];
            }
            (self.graph, self.stages) = kept.into_iter().map(|(_, mark)| mark).chain(transforms).unzip();
        }
        if self.data.len() > SOURCES {
            let digests: String = self.data.iter().map(|mark| mark.digest.as_str()).collect();
            let shards = self.data.iter().map(|mark| mark.shards as usize).sum();
            let rows = self.data.iter().map(|mark| mark.rows).sum();
            self.data = vec![DataMark::new(shards, rows, xxhash_rust::xxh3::xxh3_64(digests.as_bytes()))];
        }
        self
    }

    /// Returns a stage as a state holds it: a readable word, and a digest of the whole stage.
    pub(crate) fn mark(word: &str, stage: &str) -> String {
        let word: String = word.chars().take(24).collect();
        format!("{word}#{:08x}", xxhash_rust::xxh3::xxh3_64(stage.as_bytes()) as u32)
    }
}
