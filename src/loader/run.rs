//! The driver of a run: plans tickets, asks for blocks, starts work, puts results in order.
//!
//! A *ticket* is one step of the plan on its way through the stages. [`State::advance`] takes all decisions, under one lock, whenever something
//! happened: a block arrived, a task ended, the loop took a batch. It never waits. The work itself runs on the pool without the lock.
//! `src/loader/README.md` describes the life of a ticket. `planning.rs` decides about rows, `blocks.rs` about blocks, and `reads.rs` reads them.
//! `tickets.rs` decides about tickets whose blocks are there. Loops take batches in `lanes.rs`, and `waits.rs` keeps account of their waits.

mod blocks;
mod lanes;
mod planning;
mod reads;
mod tickets;
mod waits;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Instant;

use bytes::Bytes;

pub(crate) use self::reads::Fetch;
use self::reads::{Alive, Thread};
use super::arrival::ArrivalDriver;
use super::assemble::{Assembled, Assembly};
use super::delivery::{Delivery, Parcel, Way};
use super::evaluate::{Block, Blocks, Evaluated};
use super::pipeline::{Leaf, Pipeline};
use super::rebatch::Rebatch;
use super::skip::{Log, Skip, Tally};
use crate::batch::Batch;
use crate::engine::Scheduler;
use crate::engine::budget::{Account, Grant};
use crate::engine::io::Io;
use crate::engine::pool::{Level, Pool, Prepared, no_panic};
use crate::engine::reorder::Reorder;
use crate::error::{Error, Result};
use crate::plan::ReadPoint;
use crate::plan::ledger::{Ledger, id_term};
use crate::plan::order::{Arrivals, Order, Picked};
use crate::plan::state::Progress;
use crate::source::{self, Decoded};
use crate::store::Store;
use crate::telemetry::{Clock, Counters, Skipped, WaitedFor};
use crate::transform::image::Scratch;

/// What all runs of a loader share.
pub(crate) struct Shared {
    pub(crate) pipeline: Pipeline,
    pub(crate) scheduler: Scheduler,
    pub(crate) pool: Pool,
    pub(crate) io: Io,
    pub(crate) store: Store,
    pub(crate) account: Arc<Account>,
    pub(crate) counters: Counters,
    pub(crate) seed: u64,
    /// What is done about bad records, and those that were left out.
    pub(crate) skip: Option<Skip>,
    pub(crate) skipped: Log,
    /// What the loop has taken.
    pub(crate) ledger: Mutex<Ledger>,
    /// Whether batches say where their samples were read.
    pub(crate) traced: bool,
    /// What is done to batches on their device.
    #[cfg(feature = "tch")]
    pub(crate) on_device: Arc<[super::on_device::Prepared]>,
    /// Rows of a chunk, which one task takes.
    pub(crate) chunk_rows: usize,
    /// Tasks of any run that wait or run. What they hold of the budget comes back with them.
    pub(crate) alive: Arc<AtomicUsize>,
}

impl Shared {
    /// Looks at the ledger, or adds to it.
    pub(crate) fn with_ledger<T>(&self, f: impl FnOnce(&mut Ledger) -> T) -> T {
        f(&mut self.ledger.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Bytes of a batch of this rank, if its columns' sizes are fixed.
    pub(crate) fn batch_bytes(&self) -> u64 {
        let sample: usize = self.pipeline.layouts.iter().filter_map(|layout| layout.sample_bytes()).sum();
        (sample as u64).saturating_mul(self.pipeline.steps.batch) / self.pipeline.steps.world
    }
}

/// Bytes of blocks that are asked for ahead of the tickets that can start: enough to keep a distant store busy.
const READ_AHEAD: u64 = 64 << 20;

/// One pass, or several, over the data set.
pub(crate) struct Run {
    pub(crate) shared: Arc<Shared>,
    /// How each lane's batches come to it.
    pub(crate) ways: Vec<Way>,
    state: Mutex<State>,
    /// Where each lane's thread sleeps.
    bells: Vec<Condvar>,
    cancelled: AtomicBool,
    /// Reads that were cancelled before they were done, and still count as under way.
    aborted: AtomicUsize,
    /// Of each source, how many of its last reads in a row a worker could have copied, or did.
    copyable: Vec<AtomicU32>,
    /// Batches whose memory is not granted yet.
    pub(crate) ungranted: AtomicU64,
    this: Weak<Run>,
}

/// A block's place: source, block, and the epoch for sources without an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockKey {
    pub(crate) leaf: usize,
    pub(crate) block: u32,
    pub(crate) epoch: u64,
}

struct Entry {
    stage: BlockStage,
    /// The last ticket that needs the block.
    hold: u64,
    /// Tickets that wait for the block.
    waiting: Vec<u64>,
    bytes: u64,
    /// Whether no ticket has asked for it yet.
    is_ahead: bool,
    /// Rows not yet delivered, for blocks that arrived and will not be read again.
    rows_left: Option<u64>,
}

impl Entry {
    /// Whether the block can be forgotten once no ticket needs it: nothing is under way for it, and it can be read again.
    fn is_settled(&self) -> bool {
        self.rows_left.is_none() && matches!(self.stage, BlockStage::Wanted | BlockStage::Ready(_))
    }
}

enum BlockStage {
    Wanted,
    Fetching(Fetch),
    Decoding,
    Ready(Arc<Block>),
}

/// One step of the plan.
struct Ticket {
    epoch: u64,
    step: u64,
    chunks: Vec<Chunk>,
    /// In ascending order.
    blocks: Vec<BlockKey>,
    missing: usize,
    /// Bytes that have to be read for the ticket.
    bytes: u64,
    /// Bytes of the blocks that no earlier ticket needed.
    held: u64,
    /// The marker after the last step of an epoch.
    end: Option<Option<Error>>,
}

/// Some consecutive rows of a ticket.
struct Chunk {
    /// The rows in parts, each evaluated by one task. Only a window has more than one part.
    parts: Vec<Picked>,
    /// The stream that the rows belong to, and their position in it, where rows are not positions.
    stream: usize,
    position: u64,
}

impl Chunk {
    fn positions(&self) -> u64 {
        self.parts.iter().map(Picked::positions).sum()
    }

    /// The terms in the ledger of the positions that were left out.
    fn left_out(&self, evaluated: &Evaluated, in_windows: bool) -> Vec<u128> {
        if evaluated.skipped.is_empty() {
            return Vec::new();
        }
        let drawn: Vec<(u64, u64)> = self.parts.iter().flat_map(Picked::drawn).collect();
        let of = |(position, error): &(u32, Error)| {
            let at = drawn[*position as usize];
            // A window's rows all stand at its last position.
            let own = error.place().sample.filter(|sample| in_windows && *sample != at.0);
            own.and_then(|sample| drawn.iter().find(|(id, _)| *id == sample).copied()).unwrap_or(at)
        };
        evaluated.skipped.iter().map(of).map(|(id, pass)| id_term(id, 0, pass)).collect()
    }
}

/// A ticket whose rows were evaluated.
pub(crate) struct Evaluation {
    pub(crate) epoch: u64,
    pub(crate) step: u64,
    pub(crate) chunks: Vec<EvaluatedChunk>,
    pub(crate) end: Option<Option<Error>>,
    /// Blocks that the rows may still point into.
    pub(crate) kept: Kept,
    /// Rows taken from blocks that arrived.
    counts: HashMap<BlockKey, u64>,
}

impl Evaluation {
    fn nothing() -> Self {
        Self { epoch: 0, step: 0, chunks: Vec::new(), end: None, kept: Kept::default(), counts: HashMap::new() }
    }
}

/// Some consecutive rows of a ticket, evaluated.
#[derive(Clone)]
pub(crate) struct EvaluatedChunk {
    pub(crate) stream: usize,
    /// Position of the first row in the stream, and the number of positions.
    pub(crate) position: u64,
    pub(crate) positions: u64,
    pub(crate) evaluated: Evaluated,
    /// The terms in the ledger of what was left out.
    pub(crate) left_out: Vec<u128>,
}

/// Blocks that are kept alive (and accounted for) by the rows that point into them.
pub(crate) type Kept = Arc<Blocks>;

/// What `next()` may find.
enum Item {
    /// Records that were left out of the batch after this item.
    LeftOut(Vec<Skipped>),
    Batch(Box<Batch>, Option<Grant>, Parcel),
    Failed(Error),
    EndOfEpoch(u64),
}

/// What holds the next batch up.
enum Stands {
    /// Bytes, and when the first of them came.
    Reading(Option<Instant>),
    In(WaitedFor),
}

/// The result of one step: an item for each lane, or one for all.
enum Out {
    Batch(Assembled),
    Failed(Error),
    EndOfEpoch(u64),
}

/// What comes next after all batches that were begun.
enum Ready {
    Batch(Box<Assembly>),
    End(Out),
}

/// One of the iterators that share this run.
struct Lane {
    items: VecDeque<Item>,
    open: bool,
    /// Whether the lane's loop found nothing, and waits.
    waits: bool,
}

pub(crate) struct State {
    order: Order,
    arrivals: Vec<Arrivals>,
    /// What had arrived in epochs that are planned but not yet delivered to their end.
    arrived: VecDeque<(u64, Vec<Arrivals>)>,
    drivers: HashMap<usize, ArrivalDriver>,
    /// Next step to plan.
    epoch: u64,
    step: u64,
    /// Whether the next epoch is planned after this one.
    go_on: bool,
    planned_all: bool,
    /// The epoch that needs no more rows.
    cut: Option<u64>,
    /// In an order that depends on what arrives: the epoch that a failure broke off, and the first row of the order that would be another without the
    /// failure.
    broken_off: Option<(u64, u64)>,
    /// Without an index: the position of the last batch that no failure can change.
    settled: Option<Progress>,
    /// Records left out up to the last whole batch.
    left_out: u64,
    /// The ticket of step 0 of the epoch being planned, modulo 2^64: a run may begin after that step.
    base: u64,
    /// How far each of the rank's streams is planned, where rows are not positions.
    planned: Vec<u64>,
    /// Where the first epoch's pass over shards without an index begins.
    place: Option<ReadPoint>,
    /// Positions of that epoch that were delivered before, among the rows that arrive again.
    passed: Range<u64>,
    tickets: VecDeque<Ticket>,
    /// Number of the first of `tickets`.
    first: u64,
    /// Number of tickets started, and of tickets whose rows were handed on.
    started: u64,
    popped: u64,
    /// [`Ticket::held`] of the tickets started and not handed on.
    under_way: VecDeque<u64>,
    evaluated: Reorder<Evaluation>,
    blocks: HashMap<BlockKey, Entry>,
    releases: BinaryHeap<Reverse<(u64, BlockKey)>>,
    needs: VecDeque<BlockKey>,
    ahead: VecDeque<BlockKey>,
    rebatch: Option<Rebatch>,
    /// Batches whose rows are there, and ends of epochs after them, for which the window has no room yet.
    ready: VecDeque<Ready>,
    /// How many of these the last ticket gave.
    yielded: usize,
    /// Outs that were numbered, and outs that were taken from `out`.
    assigned: u64,
    out: Reorder<Out>,
    taken: u64,
    lanes: Vec<Lane>,
    /// Assemblies that wait for memory.
    stalled: VecDeque<Assembly>,
    /// Tasks to be submitted, and blocks to be freed, once the lock is released.
    todo: Vec<Prepared>,
    done_with: Vec<Entry>,
    in_flight: usize,
    fetching: usize,
    decoding: usize,
    /// The largest batch so far.
    batch_bytes: u64,
    /// Counts bad records, if they are left out.
    tally: Option<Tally>,
    failed: bool,
    clock: Clock,
}

impl Run {
    /// Starts at `start`, with one lane for each device.
    pub(crate) fn start(shared: Arc<Shared>, start: &Progress, deliveries: &[Delivery], go_on: bool) -> Arc<Self> {
        let pipeline = &shared.pipeline;
        let first_row = start.read_from.map_or(0, |place| place.row);
        let step = if pipeline.expands { 0 } else { start.step };
        let state = State {
            order: pipeline.order.clone(),
            arrivals: pipeline.leaves.iter().map(|_| Arrivals::from_row(first_row)).collect(),
            arrived: VecDeque::new(),
            drivers: HashMap::new(),
            epoch: start.epoch,
            step,
            go_on,
            planned_all: false,
            cut: None,
            broken_off: None,
            settled: None,
            left_out: start.left_out,
            base: 0u64.wrapping_sub(step),
            planned: pipeline.planned_at(&start.cursors),
            place: start.read_from,
            passed: pipeline.passed_at(start),
            tickets: VecDeque::new(),
            first: 0,
            under_way: VecDeque::new(),
            started: 0,
            popped: 0,
            evaluated: Reorder::default(),
            blocks: HashMap::new(),
            releases: BinaryHeap::new(),
            needs: VecDeque::new(),
            ahead: VecDeque::new(),
            rebatch: pipeline.rebatch(start, shared.traced),
            ready: VecDeque::new(),
            yielded: 0,
            assigned: 0,
            out: Reorder::default(),
            taken: 0,
            lanes: deliveries.iter().map(|_| Lane { items: VecDeque::new(), open: true, waits: false }).collect(),
            stalled: VecDeque::new(),
            todo: Vec::new(),
            done_with: Vec::new(),
            in_flight: 0,
            fetching: 0,
            decoding: 0,
            batch_bytes: if deliveries.iter().all(Delivery::is_ring) { 0 } else { shared.batch_bytes() },
            tally: shared.skip.map(|skip| {
                let rows = pipeline.known_rows().map(|rows| rows / pipeline.steps.world);
                Tally::new(skip, rows, start, pipeline.steps.batch / pipeline.steps.world)
            }),
            failed: false,
            clock: Clock::new(),
        };
        // What the window has beyond the batch that is being made.
        let ahead = (shared.pipeline.window as usize - 1).max(1);
        let copyable = shared.pipeline.leaves.iter().map(|_| AtomicU32::new(0)).collect();
        let run = Arc::new_cyclic(|this| Self {
            ways: deliveries.iter().map(|delivery| delivery.way(ahead)).collect(),
            shared,
            state: Mutex::new(state),
            bells: deliveries.iter().map(|_| Condvar::new()).collect(),
            cancelled: AtomicBool::new(false),
            aborted: AtomicUsize::new(0),
            copyable,
            ungranted: AtomicU64::new(0),
            this: this.clone(),
        });
        run.update(|state| {
            if let Some(error) = state.tally.as_ref().and_then(Tally::exceeded_before) {
                state.fail(error);
            }
        });
        run
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes the lock, and accounts for the time until now.
    fn lock_on_time(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.account_time(&self.shared);
        state
    }

    /// Accounts for the time until now, including that of a wait that is not over.
    pub(crate) fn account_until_now(&self) {
        drop(self.lock_on_time());
    }

    /// Changes the state and does what follows from it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        if self.is_cancelled() {
            return;
        }
        let mut state = self.lock_on_time();
        change(&mut state);
        state.advance(self);
        self.unlock(state);
    }

    /// Releases the lock, and does what need not be done under it: wakes loops, hands tasks to the pool (which may wake workers), frees blocks.
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let (todo, done_with) = (std::mem::take(&mut state.todo), std::mem::take(&mut state.done_with));
        let woken: Vec<usize> = state.lanes_to_wake().collect();
        self.shared.counters.plan.busy(state.clock.since());
        drop(state);
        woken.into_iter().for_each(|lane| self.bells[lane].notify_one());
        todo.into_iter().for_each(|task| self.shared.pool.submit(task));
        self.pump();
        drop(done_with);
    }

    /// Queues the copies that can be queued.
    fn pump(&self) {
        if self.ways.iter().any(Way::is_device) {
            let start = Instant::now();
            self.ways.iter().for_each(Way::pump);
            self.shared.counters.deliver.busy(start.elapsed());
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Ends the run: nothing is read or computed for it any more, and its memory is given back.
    pub(crate) fn cancel(&self) {
        if self.shared.pool.is_inherited() {
            // Whoever holds the lock is not in this process.
            return;
        }
        self.cancelled.store(true, Ordering::Release);
        let mut state = self.lock();
        let emptied = (
            std::mem::take(&mut state.blocks),
            std::mem::take(&mut state.drivers),
            std::mem::take(&mut state.tickets),
            std::mem::take(&mut state.out),
            std::mem::take(&mut state.evaluated),
            std::mem::take(&mut state.stalled),
            std::mem::take(&mut state.ready),
            state.rebatch.take(),
        );
        let items: Vec<_> = state.lanes.iter_mut().map(|lane| std::mem::take(&mut lane.items)).collect();
        state.needs.clear();
        state.ahead.clear();
        drop(state);
        drop((emptied, items));
        self.wake_all();
    }

    /// Notes that no epoch after the current one will be asked for.
    pub(crate) fn last_epoch(&self) {
        self.lock().go_on = false;
    }

    /// Hands a task to the pool. It is counted until `f` has called [`update`](Self::update) with its result.
    pub(crate) fn submit(&self, level: Level, f: impl FnOnce(&Run, &mut Scratch) + Send + 'static) {
        self.shared.pool.submit(self.prepare(level, f));
    }

    /// Prepares a task that is handed to the pool later.
    fn prepare(&self, level: Level, f: impl FnOnce(&Run, &mut Scratch) + Send + 'static) -> Prepared {
        let this = self.this.clone();
        let alive = Alive::new(&self.shared.alive);
        self.shared.pool.prepare(level, move |worker| {
            // Dropped after everything that the task holds.
            let (_alive, f) = (alive, f);
            if let Some(run) = this.upgrade().filter(|run| !run.is_cancelled()) {
                run.guarded(|run| f(run, worker.scratch::<Scratch>()));
            }
        })
    }

    /// Runs a piece of work that already catches panics of user functions. A panic that comes this far is a fault of forebay, and the loop receives
    /// it as an error.
    fn guarded(&self, f: impl FnOnce(&Run)) {
        let done = no_panic(|| {
            f(self);
            Ok(())
        });
        if let Err(error) = done {
            self.lock().fail(error);
            self.wake_all();
        }
    }

    fn fetched(&self, key: BlockKey, grant: Grant, bytes: Result<Vec<Bytes>>, thread: Thread) {
        if let Ok(pieces) = &bytes {
            self.shared.counters.read.add(0, pieces.iter().map(|piece| piece.len() as u64).sum());
        }
        self.update(|state| {
            state.fetching -= 1;
            state.decoding += 1;
            if let Some(entry) = state.blocks.get_mut(&key) {
                entry.stage = BlockStage::Decoding;
            }
        });
        match thread {
            Thread::Worker if self.is_cancelled() => {}
            Thread::Worker => self.decode_block(key, grant, bytes),
            Thread::Io => self.submit(Level::Decode, move |run, _| run.decode_block(key, grant, bytes)),
        }
    }

    /// Makes rows of a block's bytes. Runs on the pool.
    fn decode_block(&self, key: BlockKey, grant: Grant, bytes: Result<Vec<Bytes>>) {
        let Leaf::Indexed(source) = &self.shared.pipeline.leaves[key.leaf] else {
            unreachable!("blocks that arrive are not asked for")
        };
        let block = key.block as usize;
        let decoded = bytes
            .map_err(|e| e.stage("read"))
            .and_then(|bytes| self.decode(|| source::decode(&**source, block, bytes)).map_err(|e| e.stage("decode")));
        let shard = source.catalog().shard_name(source.catalog().shard_of(block)).clone();
        let first_id = self.shared.pipeline.first_id(key.leaf, key.block);
        self.decoded(key, first_id, grant, decoded.map_err(|e| e.url(shard).block(u64::from(key.block))));
    }

    /// Decodes a block, counts its time and catches panics.
    pub(crate) fn decode(&self, f: impl FnOnce() -> Result<Decoded>) -> Result<Decoded> {
        let start = Instant::now();
        let decoded = no_panic(f).map(Decoded::with_checksums);
        self.shared.counters.decode.busy(start.elapsed());
        if let Ok(decoded) = &decoded {
            self.shared
                .counters
                .decode
                .add(decoded.rows.num_rows() as u64, decoded.rows.get_array_memory_size() as u64);
        }
        decoded
    }

    /// Notes that a block is there, or will never be.
    pub(crate) fn decoded(&self, key: BlockKey, first_id: u64, grant: Grant, decoded: Result<Decoded>) {
        let (decoded, failed) = match decoded {
            Ok(decoded) => (decoded, None),
            Err(error) => (
                Decoded::good(arrow::array::RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty()))),
                Some(error),
            ),
        };
        let block = Arc::new(Block { decoded, failed, first_id, _grant: Some(grant) });
        self.update(|state| {
            state.decoding -= 1;
            state.in_flight -= 1;
            let Some(entry) = state.blocks.get_mut(&key) else { return };
            entry.stage = BlockStage::Ready(block);
            if entry.hold < state.popped && entry.is_settled() {
                state.blocks.remove(&key);
                return;
            }
            for number in std::mem::take(&mut entry.waiting) {
                if let Some(at) = number.checked_sub(state.first) {
                    state.tickets[at as usize].missing -= 1;
                }
            }
        });
    }

    /// Notes that a batch is finished.
    pub(crate) fn finished(&self, number: u64, result: Result<Assembled>) {
        self.update(|state| {
            state.in_flight -= 1;
            match result {
                Ok(assembled) => state.out.put(number, Out::Batch(assembled)),
                Err(error) => state.out.put(number, Out::Failed(error)),
            }
            // Devices are sent what is ready before the loop asks for it.
            state.distribute(self);
        });
    }

    /// Takes back an assembly that found no memory. It is tried again when some was given back.
    pub(crate) fn stall(&self, assembly: Assembly) {
        self.update(|state| {
            state.in_flight -= 1;
            state.batch_bytes = state.batch_bytes.max(assembly.bytes);
            let at = state.stalled.partition_point(|other| other.number < assembly.number);
            state.stalled.insert(at, assembly);
        });
    }
}

impl State {
    /// Bytes kept free for batches that are still to be laid out.
    fn reserve(&self, run: &Run) -> u64 {
        let window = run.shared.pipeline.window;
        let batches = window.saturating_sub(self.undelivered()) + run.ungranted.load(Ordering::Acquire);
        self.batch_bytes.saturating_mul(batches)
    }

    /// Takes every decision that can be taken now.
    fn advance(&mut self, run: &Run) {
        if run.is_cancelled() {
            return;
        }
        let aborted = run.aborted.swap(0, Ordering::AcqRel);
        self.in_flight = self.in_flight.saturating_sub(aborted);
        self.fetching = self.fetching.saturating_sub(aborted);
        while let Some(evaluation) = self.evaluated.pop() {
            self.hand_on(run, evaluation);
        }
        self.begin_ready(run);
        while let Some(assembly) = self.stalled.pop_front() {
            let room = run.shared.account.used() + assembly.bytes <= run.shared.account.total();
            if !room || !run.ways.iter().all(Way::has_room) {
                self.stalled.push_front(assembly);
                break;
            }
            self.in_flight += 1;
            self.todo.push(run.prepare(Level::Collate, move |run, scratch| assembly.begin(run, scratch)));
        }
        loop {
            self.drive_arrivals(run);
            self.ask_for_blocks(run);
            let started = self.start_tickets(run);
            let planned = self.plan_more(run);
            if !started && !planned {
                return;
            }
        }
    }

    /// Begins the batches whose rows are there, as far as the window has room. A ticket may give many batches at once, of which only a few are wanted
    /// at a time.
    fn begin_ready(&mut self, run: &Run) {
        while let Some(ready) = self.ready.pop_front() {
            match ready {
                _ if self.failed => {}
                Ready::Batch(_) if self.undelivered() >= run.shared.pipeline.window => {
                    self.ready.push_front(ready);
                    return;
                }
                Ready::Batch(mut assembly) => {
                    assembly.number = self.assigned;
                    self.assigned += 1;
                    self.in_flight += 1;
                    run.ungranted.fetch_add(1, Ordering::AcqRel);
                    self.todo.push(run.prepare(Level::Collate, move |run, scratch| assembly.begin(run, scratch)));
                }
                Ready::End(out) => {
                    self.out.put(self.assigned, out);
                    self.assigned += 1;
                    self.distribute_if_next(run);
                }
            }
        }
    }

    /// Hands an end of epoch to the lanes at once if it is next: it takes no room in the window.
    fn distribute_if_next(&mut self, run: &Run) {
        if self.out.is_ready() {
            self.distribute(run);
        }
    }
}
