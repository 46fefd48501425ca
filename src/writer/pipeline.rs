//! Turns rows into shards: encodes on all threads, cuts in order, and writes several shards at a time.
//!
//! ```text
//! write ──► chunks ──► encode (any order) ──► cut (in order) ──► lanes: one a shard, each in order
//!          admitted by bytes                  on the caller's thread
//! ```
//!
//! Chunks are numbered as they arrive, and the thread that writes cuts them into shards in this order. So the number of threads does not affect which
//! row goes into which shard. A lane is a shard with a queue; a worker processes what waits in it and leaves. Bytes in flight are counted from the
//! moment a chunk is admitted until its bytes are in the shard: as rows until the chunk is encoded, as encoded bytes from then on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;

use super::encode::{Encode, Piece, Shard, Written};
use super::folder::{Done, Folder, save_index};
use super::manifest::ShardEntry;
use crate::engine::Scheduler;
use crate::engine::pool::{Level, Pool, no_panic};
use crate::error::Result;
use crate::format::tfrecord::Compression;

/// The limits on a shard's size; every limit that is set applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) rows: Option<u64>,
    /// Bytes before compression.
    pub(super) bytes: Option<u64>,
}

/// Rows to be written after those before them.
pub(super) struct Chunk {
    pub(super) rows: RecordBatch,
    pub(super) consumed: Consumed,
    /// The bytes that it takes in memory.
    pub(super) bytes: u64,
}

/// How many rows of the source have been processed once a row is written.
#[derive(Clone, Debug)]
pub(super) enum Consumed {
    /// The rows are consecutive, beginning with this number.
    From(u64),
    /// The rows have these numbers.
    Rows(Vec<u64>),
}

impl Consumed {
    /// Returns the number after the first `rows` of them.
    fn after(&self, rows: usize) -> u64 {
        match self {
            Self::From(first) => first + rows as u64,
            Self::Rows(numbers) => rows.checked_sub(1).map_or(0, |last| numbers[last] + 1),
        }
    }

    /// Splits off the rows from `rows` on.
    pub(super) fn split_off(&mut self, rows: usize) -> Self {
        match self {
            Self::From(first) => Self::From(*first + rows as u64),
            Self::Rows(numbers) => Self::Rows(numbers.split_off(rows)),
        }
    }
}

/// The workers and their work.
pub(super) struct Pipeline {
    pool: Pool,
    shared: Arc<Shared>,
    folder: Arc<Folder>,
    limits: Limits,
    budget: u64,
    threads: usize,
    /// Chunks that have been numbered.
    chunks: u64,
    /// Chunks that have been cut into shards.
    cut: u64,
    /// Rows that have been admitted.
    rows: u64,
    /// The shard that is being filled.
    current: Option<Filling>,
    /// The number of the next shard.
    next_shard: u64,
    /// The rows of all shards before it.
    shard_start: u64,
    /// Whether names are those of images (by rows) instead of shards.
    by_rows: bool,
    compression: Compression,
}

struct Filling {
    lane: Arc<Lane>,
    rows: u64,
    bytes: u64,
    end: u64,
}

struct Shared {
    encode: Arc<dyn Encode>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    in_flight: u64,
    peak: u64,
    /// Chunks that are not yet encoded.
    encoding: usize,
    encoded: BTreeMap<u64, Result<(Piece, Consumed)>>,
    /// Shards that have been begun and are not complete.
    open: usize,
    failed: Option<crate::Error>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shard, and what waits to be written into it.
struct Lane {
    number: u64,
    name: String,
    state: Mutex<LaneState>,
}

#[derive(Default)]
struct LaneState {
    steps: VecDeque<Step>,
    /// Whether a worker is processing it.
    taken: bool,
    shard: Option<Box<dyn Shard>>,
}

enum Step {
    Append(Piece),
    /// Nothing follows. Holds the number of rows, the number of the first, and the rows of the source with which they end.
    Finish {
        rows: u64,
        first: u64,
        end: u64,
    },
}

impl Pipeline {
    /// Creates a pipeline that continues after the shards that the folder has.
    pub(super) fn new(
        encode: Arc<dyn Encode>,
        folder: Arc<Folder>,
        limits: Limits,
        budget: u64,
        threads: usize,
        by_rows: bool,
        compression: Compression,
    ) -> Result<Self> {
        let (next_shard, rows, _) = folder.progress();
        let shared = Arc::new(Shared { encode, state: Mutex::default(), changed: Condvar::new() });
        let pool = Pool::new(Scheduler::threads(threads))?;
        Ok(Self {
            pool,
            shared,
            folder,
            limits,
            budget,
            threads: threads.max(1),
            chunks: 0,
            cut: 0,
            rows,
            current: None,
            next_shard,
            shard_start: rows,
            by_rows,
            compression,
        })
    }

    /// Returns the most bytes that were in flight at any time.
    pub(super) fn peak(&self) -> u64 {
        self.shared.state().peak
    }

    /// Accepts rows as soon as there is room for them.
    pub(super) fn push(&mut self, chunk: Chunk) -> Result<()> {
        self.admit(chunk.bytes)?;
        let (number, first) = (self.chunks, self.rows);
        self.chunks += 1;
        self.rows += chunk.rows.num_rows() as u64;
        let shared = Arc::clone(&self.shared);
        self.pool.submit(self.pool.prepare(Level::Transform, move |_| {
            let encoded = no_panic(|| shared.encode.encode(first, &chunk.rows));
            let Chunk { rows, consumed, bytes } = chunk;
            drop(rows);
            shared.change(|state| {
                state.encoding -= 1;
                state.in_flight -= bytes;
                state.in_flight += encoded.as_ref().map_or(0, Piece::bytes);
                state.peak = state.peak.max(state.in_flight);
                state.encoded.insert(number, encoded.map(|piece| (piece, consumed)));
            });
        }));
        Ok(())
    }

    /// Waits until `bytes` more bytes fit, and cuts chunks meanwhile.
    pub(super) fn admit(&mut self, bytes: u64) -> Result<()> {
        loop {
            self.cut()?;
            let shared = Arc::clone(&self.shared);
            let mut state = shared.state();
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            // A few chunks a thread, so that what encoding adds to them is bounded too.
            let fits = state.in_flight == 0 || state.in_flight + bytes <= self.budget;
            if fits && state.encoding < 2 * self.threads + 2 {
                state.in_flight += bytes;
                state.peak = state.peak.max(state.in_flight);
                state.encoding += 1;
                return Ok(());
            }
            if !state.encoded.contains_key(&self.cut) {
                drop(shared.wait(state));
            }
        }
    }

    /// Releases bytes that were admitted but not pushed.
    #[cfg(test)]
    pub(super) fn release(&mut self, bytes: u64) {
        self.shared.change(|state| {
            state.encoding -= 1;
            state.in_flight -= bytes;
        });
    }

    /// Cuts the encoded chunks into shards, in order.
    fn cut(&mut self) -> Result<()> {
        loop {
            let next = self.shared.state().encoded.remove(&self.cut);
            let Some(next) = next else { return Ok(()) };
            let (mut piece, mut consumed) = next?;
            self.cut += 1;
            while piece.rows() > 0 {
                let room = self.room(&piece)?;
                if room == 0 {
                    self.end_shard();
                    continue;
                }
                let (head, rest) = piece.split(room);
                let later = consumed.split_off(room);
                let filling = self.current.as_mut().expect("begun by `room`");
                filling.rows += room as u64;
                filling.bytes += head.bytes();
                filling.end = consumed.after(room);
                let lane = Arc::clone(&filling.lane);
                let is_full = self.limits.rows.is_some_and(|rows| filling.rows >= rows);
                self.hand(&lane, Step::Append(head));
                if is_full {
                    self.end_shard();
                }
                (piece, consumed) = (rest, later);
            }
        }
    }

    /// Returns how many rows of the piece fit into the current shard; begins a shard if there is none.
    fn room(&mut self, piece: &Piece) -> Result<usize> {
        if self.current.is_none() {
            self.begin_shard()?;
        }
        let filling = self.current.as_ref().expect("begun above");
        let mut room = piece.rows();
        if let Some(rows) = self.limits.rows {
            room = room.min(usize::try_from(rows - filling.rows).unwrap_or(usize::MAX));
        }
        if let Some(bytes) = self.limits.bytes {
            let left = bytes.saturating_sub(filling.bytes + self.shared.encode.frame_bytes());
            // A row that is larger than a shard may be has one of its own.
            room = room.min(piece.fitting(left).max(usize::from(filling.rows == 0)));
        }
        Ok(room)
    }

    /// Begins a shard once there are not too many in progress.
    fn begin_shard(&mut self) -> Result<()> {
        let mut state = self.shared.state();
        while state.open > self.threads {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            state = self.shared.wait(state);
        }
        state.open += 1;
        drop(state);
        let (number, name) = (self.next_shard, self.folder.shard_name(self.next_shard));
        self.next_shard += 1;
        let lane = Arc::new(Lane { number, name, state: Mutex::default() });
        self.current = Some(Filling { lane, rows: 0, bytes: 0, end: 0 });
        Ok(())
    }

    fn end_shard(&mut self) {
        let Some(Filling { lane, rows, end, .. }) = self.current.take() else { return };
        let first = self.shard_start;
        self.shard_start += rows;
        self.hand(&lane, Step::Finish { rows, first, end });
    }

    /// Adds a step to a lane, and gives the lane to a worker unless one is processing it.
    fn hand(&self, lane: &Arc<Lane>, step: Step) {
        let mut state = lane.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.steps.push_back(step);
        if std::mem::replace(&mut state.taken, true) {
            return;
        }
        let (lane, shared, folder) = (Arc::clone(lane), Arc::clone(&self.shared), Arc::clone(&self.folder));
        let (by_rows, compression) = (self.by_rows, self.compression);
        let task = move |_: &mut _| work(&lane, &shared, &folder, by_rows, compression);
        self.pool.submit(self.pool.prepare(Level::Collate, task));
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// The first row that cannot be encoded, or the first shard that cannot be written.
    pub(super) fn finish(&mut self) -> Result<()> {
        loop {
            self.cut()?;
            if self.cut == self.chunks {
                self.end_shard();
            }
            let shared = Arc::clone(&self.shared);
            let state = shared.state();
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            if self.cut == self.chunks && state.open == 0 {
                return Ok(());
            }
            if !state.encoded.contains_key(&self.cut) {
                drop(shared.wait(state));
            }
        }
    }
}

/// Processes the steps that wait in a lane.
fn work(lane: &Lane, shared: &Shared, folder: &Folder, by_rows: bool, compression: Compression) {
    loop {
        let (step, shard) = {
            let mut state = lane.state.lock().unwrap_or_else(PoisonError::into_inner);
            match state.steps.pop_front() {
                Some(step) => (step, state.shard.take()),
                None => {
                    state.taken = false;
                    return;
                }
            }
        };
        let has_failed = shared.state().failed.is_some();
        let bytes = if let Step::Append(piece) = &step { piece.bytes() } else { 0 };
        let is_last = matches!(step, Step::Finish { .. });
        let done = match has_failed {
            true => Ok(None),
            false => no_panic(|| perform(step, shard, lane, shared, folder, by_rows, compression)),
        };
        let failed = match done {
            Ok(shard) => {
                lane.state.lock().unwrap_or_else(PoisonError::into_inner).shard = shard;
                None
            }
            Err(error) => Some(error),
        };
        shared.change(|state| {
            state.in_flight -= bytes;
            state.open -= usize::from(is_last);
            if let Some(error) = failed {
                state.failed.get_or_insert(error);
            }
        });
    }
}

fn perform(
    step: Step,
    shard: Option<Box<dyn Shard>>,
    lane: &Lane,
    shared: &Shared,
    folder: &Folder,
    by_rows: bool,
    compression: Compression,
) -> Result<Option<Box<dyn Shard>>> {
    let mut shard = match shard {
        Some(shard) => shard,
        None => {
            folder.begin(&lane.name)?;
            shared.encode.begin(&folder.path, &lane.name)?
        }
    };
    match step {
        Step::Append(piece) => {
            shard.append(piece)?;
            Ok(Some(shard))
        }
        Step::Finish { rows, first, end } => {
            let Written { bytes, crc32c, index, labels } = shard.finish()?;
            if let Some(index) = index {
                save_index(&folder.path, &lane.name, index, bytes, compression)?;
            }
            let name = match by_rows {
                true => format!("{first:08}-{:08}", first + rows.saturating_sub(1)),
                false => lane.name.clone(),
            };
            let entry = ShardEntry { name, rows, bytes, crc32c };
            folder.note(Done { number: lane.number, entry, end, labels })?;
            Ok(None)
        }
    }
}
