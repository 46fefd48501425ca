//! The driver of a run: plans tickets, asks for blocks, starts work, puts results in order.
//!
//! A *ticket* is one step of the plan on its way through the stages. All decisions are taken in [`State::advance`], under one
//! lock, whenever something happened: a block arrived, a task ended, the loop took a batch. It never waits. The work itself
//! runs on the pool without the lock. `src/loader/README.md` tells the life of a ticket. What is decided about rows stands in `planning.rs`, about
//! blocks in `blocks.rs`; `waits.rs` keeps account of the loop's waits.

mod blocks;
mod planning;
mod waits;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::arrival::ArrivalDriver;
use super::assemble::{Assembled, Assembly, Finished};
use super::delivery::{Delivery, Parcel, Way};
use super::evaluate::{Block, Blocks, Env, Evaluated};
use super::lower::{Leaf, Pipeline};
use super::minimum::smallest_budget;
use super::rebatch::Rebatch;
use super::skip::{Log, Skip, Tally};
use crate::batch::Batch;
use crate::engine::Scheduler;
use crate::engine::budget::{Account, Grant};
use crate::engine::io::{Cancel, Io};
use crate::engine::pool::{Level, Pool, Prepared, no_panic};
use crate::engine::reorder::Reorder;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ReadPoint;
use crate::plan::ledger::{Ledger, id_term};
use crate::plan::order::{Arrivals, Order, Picked};
use crate::plan::state::Progress;
use crate::source::{self, Decoded};
use crate::store::FirstByte;
use crate::telemetry::{Clock, Counters, Skipped, WaitedFor};
use crate::transform::image::Scratch;

/// Tickets of windows that are evaluated at a time.
const WINDOWS_UNDER_WAY: u64 = 2;

/// What all runs of a loader share.
pub(crate) struct Shared {
    pub(crate) pipeline: Pipeline,
    pub(crate) scheduler: Scheduler,
    pub(crate) pool: Pool,
    pub(crate) io: Io,
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
    /// Rows of a chunk: what one task takes.
    pub(crate) chunk_rows: usize,
    /// Tasks of any run that wait or run; what they hold of the budget comes back with them.
    pub(crate) alive: Arc<AtomicUsize>,
}

/// Counts a task for as long as it lives.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A read that is under way; when it is dropped before its end, nobody waits for it any more.
struct Unfinished {
    run: Weak<Run>,
}

impl Unfinished {
    fn disarm(mut self) {
        self.run = Weak::new();
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // The lock may be held by whoever drops the read, on this very thread: the count is taken over at the next change.
        if let Some(run) = self.run.upgrade() {
            run.aborted.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Shared {
    /// Looks at the ledger, or adds to it.
    pub(crate) fn with_ledger<T>(&self, f: impl FnOnce(&mut Ledger) -> T) -> T {
        f(&mut self.ledger.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Bytes of a batch of this rank, where its columns' sizes are fixed.
    pub(crate) fn batch_bytes(&self) -> u64 {
        let sample: usize = self.pipeline.layouts.iter().filter_map(|layout| layout.sample_bytes()).sum();
        sample as u64 * self.pipeline.steps.batch / self.pipeline.steps.world
    }
}

/// Bytes of blocks asked for ahead of the tickets that can start: what a store far away needs to be kept busy.
const READ_AHEAD: u64 = 64 << 20;

/// With so many batches on their way or fewer, a worker is woken for what follows when the loop took one; with more, they are small, and whichever worker ends its
/// task next does it.
const FEW_BATCHES: u64 = 16;

/// One pass, or several, over the data set.
pub(crate) struct Run {
    pub(crate) shared: Arc<Shared>,
    /// How each lane's batches come to it.
    pub(crate) ways: Vec<Way>,
    state: Mutex<State>,
    /// What each lane's thread sleeps at.
    bells: Vec<Condvar>,
    cancelled: AtomicBool,
    /// Reads that were ended before they were done, and are still counted as under way.
    aborted: AtomicUsize,
    /// Batches whose memory is not granted yet.
    pub(crate) ungranted: AtomicU64,
    this: Weak<Run>,
}

/// A block's place: source, block, and for sources without index the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockKey {
    pub(crate) leaf: usize,
    pub(crate) block: u32,
    pub(crate) epoch: u64,
}

struct Entry {
    stage: BlockStage,
    /// The last ticket that needs it.
    hold: u64,
    /// Tickets that wait for it.
    waiting: Vec<u64>,
    bytes: u64,
    /// Whether no ticket has asked for it yet.
    is_ahead: bool,
    /// Rows not yet delivered, for blocks that arrived and will not be read again.
    rows_left: Option<u64>,
}

impl Entry {
    /// Whether it can be forgotten once no ticket needs it: nothing is under way for it, and it can be read again.
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

/// A read under way.
pub(crate) struct Fetch {
    #[expect(dead_code, reason = "held to be dropped: dropping it ends the read")]
    cancel: Option<Cancel>,
    pub(crate) first_byte: FirstByte,
}

/// One step of the plan.
struct Ticket {
    epoch: u64,
    step: u64,
    chunks: Vec<Chunk>,
    /// In ascending order.
    blocks: Vec<BlockKey>,
    missing: usize,
    /// Bytes that have to be read for it.
    bytes: u64,
    /// Bytes of the blocks that no ticket before it needed.
    held: u64,
    /// The marker behind the last step of an epoch.
    end: Option<Option<Error>>,
}

/// Some consecutive rows of a ticket.
struct Chunk {
    /// In parts that a task each evaluates; more than one only of a window.
    parts: Vec<Picked>,
    /// The stream they belong to and their position in it, where rows are not positions.
    stream: usize,
    position: u64,
}

impl Chunk {
    fn positions(&self) -> u64 {
        self.parts.iter().map(Picked::positions).sum()
    }

    /// The terms in the ledger of the positions that were left out.
    fn left_out(&self, evaluated: &Evaluated) -> Vec<u128> {
        if evaluated.skipped.is_empty() {
            return Vec::new();
        }
        let drawn: Vec<(u64, u64)> = self.parts.iter().flat_map(Picked::drawn).collect();
        let terms = evaluated.skipped.iter().map(|&(position, _)| drawn[position as usize]);
        terms.map(|(id, pass)| id_term(id, 0, pass)).collect()
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
    /// Rows taken of blocks that arrived.
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
    /// Position in the stream of the first, and how many positions they were.
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
    /// Records that the batch behind this does without.
    LeftOut(Vec<Skipped>),
    Batch(Box<Batch>, Option<Grant>, Parcel),
    Failed(Error),
    EndOfEpoch(u64),
}

/// What the next batch stands still for.
enum Stands {
    /// Bytes, and since when they come.
    Reading(Option<Instant>),
    In(WaitedFor),
}

/// What one step gives: an item for each lane, or one for all.
enum Out {
    Batch(Assembled),
    Failed(Error),
    EndOfEpoch(u64),
}

/// What comes next behind all batches that were begun.
enum Ready {
    Batch(Box<Assembly>),
    End(Out),
}

/// One of the iterators that share this run.
struct Lane {
    items: VecDeque<Item>,
    open: bool,
    /// Whether its loop has found nothing, and waits.
    waits: bool,
}

pub(crate) struct State {
    order: Order,
    arrivals: Vec<Arrivals>,
    /// What had arrived in epochs that are planned, and not delivered to their end.
    arrived: VecDeque<(u64, Vec<Arrivals>)>,
    drivers: HashMap<usize, ArrivalDriver>,
    /// Next step to plan.
    epoch: u64,
    step: u64,
    /// Whether the next epoch is planned behind this one.
    go_on: bool,
    planned_all: bool,
    /// The epoch that needs no more rows.
    cut: Option<u64>,
    /// The ticket of step 0 of the epoch being planned, modulo 2^64: a run may begin behind it.
    base: u64,
    /// Where each of the rank's streams is planned to, where rows are not positions.
    planned: Vec<u64>,
    /// Where the first epoch's pass over shards without an index begins.
    place: Option<ReadPoint>,
    /// Positions of that epoch that were delivered before, of the rows that arrive again.
    passed: Range<u64>,
    tickets: VecDeque<Ticket>,
    /// Number of the first of `tickets`.
    first: u64,
    /// Tickets started, and tickets whose rows were handed on.
    started: u64,
    popped: u64,
    /// [`Ticket::held`] of those between the two.
    under_way: VecDeque<u64>,
    evaluated: Reorder<Evaluation>,
    blocks: HashMap<BlockKey, Entry>,
    releases: BinaryHeap<Reverse<(u64, BlockKey)>>,
    needs: VecDeque<BlockKey>,
    ahead: VecDeque<BlockKey>,
    rebatch: Option<Rebatch>,
    /// Batches whose rows are there, and ends of epochs behind them, that the window has no room for yet.
    ready: VecDeque<Ready>,
    /// How many of them the last ticket gave.
    yielded: usize,
    /// Outs numbered, and taken out of `out`.
    assigned: u64,
    out: Reorder<Out>,
    taken: u64,
    lanes: Vec<Lane>,
    /// Assemblies that wait for memory.
    stalled: VecDeque<Assembly>,
    /// Tasks to be submitted, and blocks to be freed, once the lock is let go.
    todo: Vec<Prepared>,
    done_with: Vec<Entry>,
    in_flight: usize,
    fetching: usize,
    decoding: usize,
    /// The largest batch so far.
    batch_bytes: u64,
    /// Counts bad records, where they are left out.
    tally: Option<Tally>,
    failed: bool,
    clock: Clock,
}

impl Run {
    /// Starts where `start` says; one lane for each device.
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
        let run = Arc::new_cyclic(|this| Self {
            ways: deliveries.iter().map(|delivery| delivery.way(ahead)).collect(),
            shared,
            state: Mutex::new(state),
            bells: deliveries.iter().map(|_| Condvar::new()).collect(),
            cancelled: AtomicBool::new(false),
            aborted: AtomicUsize::new(0),
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

    /// The lock, with the time until now accounted for.
    fn lock_on_time(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.account_time(&self.shared);
        state
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

    /// Lets go of the lock, and does what need not be done under it: wake loops, hand tasks to the pool (which may wake workers), free
    /// blocks.
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

    /// Queues the copies that can be.
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

    fn wake_all(&self) {
        self.bells.iter().for_each(Condvar::notify_one);
    }

    /// A lane's consumer is gone; when it was the last one, the run ends.
    pub(crate) fn close_lane(&self, lane: usize) {
        let mut state = self.lock();
        state.lanes[lane].open = false;
        let items = std::mem::take(&mut state.lanes[lane].items);
        let any_open = state.lanes.iter().any(|lane| lane.open);
        drop(state);
        drop(items);
        if any_open {
            self.update(|_| {});
        } else {
            self.cancel();
        }
    }

    /// Says that no epoch behind the current one will be asked for.
    pub(crate) fn last_epoch(&self) {
        self.lock().go_on = false;
    }

    /// The next batch of a lane; `None` at the end of `epoch`, and after an error.
    pub(crate) fn next(&self, lane: usize, epoch: u64) -> Option<Result<Batch>> {
        let (mut batch, parcel) = match self.take(lane, epoch)? {
            Ok(taken) => taken,
            Err(error) => return Some(Err(error)),
        };
        if let Err(error) = self.ways[lane].arrive(&mut batch, parcel) {
            return Some(Err(error.stage("device")));
        }
        #[cfg(feature = "tch")]
        if let Err(error) = self.shared.on_device(&mut batch) {
            return Some(Err(error));
        }
        self.shared.counters.delivered(batch.len());
        self.shared.with_ledger(|ledger| *ledger.epoch_mut(batch.epoch()) += batch.sums);
        Some(Ok(*batch))
    }

    /// Waits for the next batch of a lane, which may still be on its way to the device.
    fn take(&self, lane: usize, epoch: u64) -> Option<Result<(Box<Batch>, Parcel)>> {
        let mut state = self.lock_on_time();
        loop {
            state.distribute(self);
            let undelivered = state.undelivered();
            let item = state.lanes[lane].items.pop_front();
            let is_over = self.is_cancelled() || state.failed && state.in_flight == 0 && state.assigned == state.taken;
            state.lanes[lane].waits = item.is_none() && !is_over;
            return match item {
                None if is_over => None,
                None => {
                    state = self.wait(state, lane);
                    continue;
                }
                Some(Item::LeftOut(skipped)) => {
                    self.shared.with_ledger(|ledger| {
                        skipped.iter().for_each(|record| ledger.epoch_mut(record.epoch).leave_out(record.term));
                    });
                    self.shared.skipped.extend(skipped);
                    continue;
                }
                Some(Item::Batch(batch, grant, parcel)) => {
                    drop(grant);
                    // Of several lanes, the last one that takes its part makes room for a batch.
                    if state.undelivered() < undelivered {
                        self.go_on(state);
                    }
                    Some(Ok((batch, parcel)))
                }
                Some(Item::Failed(error)) => Some(Err(error)),
                Some(Item::EndOfEpoch(ended)) => {
                    debug_assert_eq!(ended, epoch);
                    None
                }
            };
        }
    }

    /// One round of waiting for something that a lane can take: does what there is to do, or sleeps while others do it.
    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, lane: usize) -> MutexGuard<'a, State> {
        if self.shared.scheduler.is_single_threaded() {
            self.unlock(state);
            let ran = self.shared.pool.run_one();
            state = self.lock_on_time();
            if ran {
                return state;
            }
        }
        // Bytes may have come back since the last change; then there is something to do after all.
        state.advance(self);
        if !state.todo.is_empty() {
            self.unlock(state);
            return self.lock_on_time();
        }
        // Reads that have begun nobody else would run.
        if self.shared.scheduler.is_single_threaded() && state.in_flight > 0 {
            return state;
        }
        // A slot comes back when its copy is done, of which nobody else tells.
        if !state.stalled.is_empty() {
            drop(state);
            let copied = self.ways.iter().any(Way::wait_for_one);
            state = self.lock_on_time();
            if copied {
                return state;
            }
        }
        if let Some(error) = state.is_stuck(self) {
            if self.shared.alive.load(Ordering::Acquire) > 0 {
                // Tasks that are about to end still hold their share of the budget.
                let moment = Duration::from_millis(1);
                let woken = self.bells[lane].wait_timeout(state, moment);
                state = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
                state.account_time(&self.shared);
                return state;
            }
            // The last of them may have given its bytes back just now.
            state.advance(self);
            if state.is_stuck(self).is_some() {
                state.fail(error);
                self.wake_all();
            }
            return state;
        }
        if state.out.is_ready() || !state.lanes[lane].items.is_empty() {
            return state;
        }
        self.shared.counters.plan.busy(state.clock.since());
        state = self.bells[lane].wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        state.account_time(&self.shared);
        state
    }

    /// The loop has taken a batch: what follows from it (reads to ask for, tasks to start) is a worker's to do, for the loop has a step to launch.
    fn go_on(&self, mut state: MutexGuard<'_, State>) {
        let many = self.shared.pipeline.window > FEW_BATCHES;
        if self.shared.scheduler.is_single_threaded() || many && state.in_flight == state.fetching {
            // There is no worker, or none whose task ends soon.
            state.advance(self);
            self.unlock(state);
        } else if !many {
            drop(state);
            let this = self.this.clone();
            self.shared.pool.submit(self.shared.pool.prepare_errand(Level::Collate, move |_| {
                if let Some(run) = this.upgrade() {
                    run.guarded(|run| run.update(|_| {}));
                }
            }));
        }
    }

    /// Hands a task to the pool; it is counted until `f` has called [`update`](Self::update) with its result.
    pub(crate) fn submit(&self, level: Level, f: impl FnOnce(&Run, &mut Scratch) + Send + 'static) {
        self.shared.pool.submit(self.prepare(level, f));
    }

    /// A task that is handed to the pool later.
    fn prepare(&self, level: Level, f: impl FnOnce(&Run, &mut Scratch) + Send + 'static) -> Prepared {
        let this = self.this.clone();
        let alive = Alive::new(&self.shared.alive);
        self.shared.pool.prepare(level, move |worker| {
            // Dropped behind everything that the task holds.
            let _alive = alive;
            if let Some(run) = this.upgrade().filter(|run| !run.is_cancelled()) {
                run.guarded(|run| f(run, worker.scratch::<Scratch>()));
            }
        })
    }

    /// Runs a future on the I/O runtime (or, single-threaded, as a task of the pool), then `then` with its result.
    pub(crate) fn fetch<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T>> + Send + 'static,
        then: impl FnOnce(&Run, Result<T>) + Send + 'static,
    ) -> Fetch {
        let this = self.this.clone();
        let first_byte = FirstByte::default();
        let future = first_byte.of(future);
        if self.shared.scheduler.is_single_threaded() {
            self.submit(Level::Decode, move |run, _| then(run, no_panic(|| run.shared.io.wait(future))));
            return Fetch { cancel: None, first_byte };
        }
        let unfinished = Unfinished { run: this.clone() };
        let cancel = self.shared.io.spawn(async move {
            let result = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(future)).await;
            let result = result.unwrap_or_else(|_| Err(Error::new(ErrorKind::Panicked, "reading panicked")));
            unfinished.disarm();
            if let Some(run) = this.upgrade() {
                run.guarded(|run| then(run, result));
            }
        });
        Fetch { cancel: Some(cancel), first_byte }
    }

    /// Does a piece of work that catches what user functions do; a panic that comes this far is a fault of ours, and the loop
    /// hears of it.
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

    fn fetched(&self, key: BlockKey, grant: Grant, bytes: Result<Vec<Bytes>>) {
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
        self.submit(Level::Decode, move |run, _| {
            let Leaf::Indexed(source) = &run.shared.pipeline.leaves[key.leaf] else {
                unreachable!("only indexed blocks are fetched")
            };
            let decoded = bytes
                .map_err(|e| e.stage("read"))
                .and_then(|bytes| run.decode(|| source::decode(&**source, key.block as usize, bytes)));
            let shard = source.catalog().shard_name(source.catalog().shard_of(key.block as usize)).clone();
            let first_id = run.shared.pipeline.first_id(key.leaf, key.block);
            run.decoded(
                key,
                first_id,
                grant,
                decoded.map_err(|e| e.stage("decode").url(shard).block(u64::from(key.block))),
            );
        });
    }

    /// Decodes a block, with its time counted and panics caught.
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

    /// A block is there, or will never be.
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

    /// A batch is finished.
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

    /// An assembly found no memory; it is tried again when some was given back.
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
    /// Batches that are finished or being finished, and not yet taken by the slowest lane.
    fn undelivered(&self) -> u64 {
        let queued = self.lanes.iter().filter(|lane| lane.open).map(|lane| lane.items.len()).max().unwrap_or(0);
        self.assigned - self.taken + queued as u64
    }

    /// Moves finished outs, in order, to the lanes.
    fn distribute(&mut self, run: &Run) {
        while let Some(out) = self.out.pop() {
            self.taken += 1;
            let send = |lane: &mut Lane, item: Item| {
                if lane.open {
                    lane.items.push_back(item);
                }
            };
            match out {
                Out::Batch(Assembled { lanes, error, drawn }) => {
                    let (listed, counted) = match &mut self.tally {
                        Some(tally) => tally.add(drawn),
                        None => (Vec::new(), Ok(())),
                    };
                    if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.open && !listed.is_empty()) {
                        lane.items.push_back(Item::LeftOut(listed));
                    }
                    let left_out = self.tally.as_ref().map_or(0, Tally::left_out);
                    for ((lane, way), finished) in self.lanes.iter_mut().zip(&run.ways).zip(lanes) {
                        let Finished { batch: Some(mut batch), grant, parcel } = finished else { continue };
                        batch.progress.left_out = left_out;
                        if lane.open {
                            way.enqueue(&parcel);
                        }
                        send(lane, Item::Batch(Box::new(batch), grant, parcel));
                    }
                    if let Some(error) = counted.err().or(error) {
                        return self.fail(error);
                    }
                }
                Out::Failed(error) => return self.fail(error),
                Out::EndOfEpoch(epoch) => {
                    if let Err(error) = self.tally.as_mut().map_or(Ok(()), Tally::end_epoch) {
                        return self.fail(error);
                    }
                    self.lanes.iter_mut().for_each(|lane| send(lane, Item::EndOfEpoch(epoch)));
                }
            }
        }
    }

    /// Ends the run with an error behind what was delivered.
    fn fail(&mut self, error: Error) {
        self.failed = true;
        self.planned_all = true;
        for lane in self.lanes.iter_mut().filter(|lane| lane.open) {
            lane.items.push_back(Item::Failed(error.clone()));
        }
    }

    /// Lanes whose sleep is over: those that have something to take, and all of them where one has to see to it that the run goes on, be it to
    /// its end.
    fn lanes_to_wake(&self) -> impl Iterator<Item = usize> {
        let all = self.failed || self.in_flight == 0 || !self.stalled.is_empty() || self.out.is_ready();
        let waiting = self.lanes.iter().enumerate().filter(|(_, lane)| lane.waits);
        waiting.filter(move |(_, lane)| all || !lane.items.is_empty()).map(|(number, _)| number)
    }

    /// Whether a lane has something to take.
    fn is_ready(&self) -> bool {
        self.out.is_ready() || self.lanes.iter().any(|lane| lane.open && !lane.items.is_empty())
    }

    /// Nothing runs, nothing is ready, and what is needed next does not fit the budget.
    fn is_stuck(&self, run: &Run) -> Option<Error> {
        let shared = &run.shared;
        if self.in_flight > 0 || self.is_ready() || self.failed {
            return None;
        }
        let wanted = match (self.stalled.front(), self.needs.front()) {
            (Some(assembly), _) => assembly.bytes,
            (None, Some(key)) => self.blocks.get(key).map_or(0, |entry| entry.bytes) + self.reserve(run),
            (None, None) => match self.drivers.values().find_map(ArrivalDriver::wanted_bytes) {
                Some(bytes) => bytes + self.reserve(run),
                None => {
                    return Some(Error::new(
                        ErrorKind::Panicked,
                        "nothing is under way and nothing can be: a fault of forebay",
                    ));
                }
            },
        };
        let (total, used) = (shared.account.total(), shared.account.used());
        // What is in flight when it got stuck is no bound of what the plan needs: look at all of it.
        let walked =
            smallest_budget(shared, self.tickets.front().map_or(self.epoch, |ticket| ticket.epoch), self.batch_bytes);
        let smallest = walked.unwrap_or(2 * (used + wanted)).max(used + wanted).div_ceil(1 << 20);
        Some(
            Error::new(
                ErrorKind::Memory,
                format!("the plan needs {} bytes more than the {used} in flight, of a budget of {total}", wanted),
            )
            .advice(format!(
                "take .budget(Budget::mebibytes({smallest})) or more, or a smaller shuffle buffer or batch"
            )),
        )
    }

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

    /// Whether there is room for what a further ticket gives: within the window of undelivered batches; and, where a ticket has windows of streams and
    /// gives many batches, beside those of the ticket before, so that the loop takes the one's while the other is evaluated.
    fn may_start(&self, run: &Run) -> bool {
        let under_way = self.started - self.popped;
        let room = under_way + self.undelivered() + (self.ready.len() as u64) < run.shared.pipeline.window;
        if run.shared.pipeline.window_rows.is_none() {
            return room;
        }
        // Nobody knows how many batches a ticket of windows gives: more of them would be evaluated long before they are wanted.
        under_way == 0 && self.ready.len() <= self.yielded || room && under_way < WINDOWS_UNDER_WAY
    }

    /// Starts tickets whose blocks are there, as far as there is room for their batches.
    fn start_tickets(&mut self, run: &Run) -> bool {
        let mut any = false;
        while !self.failed && self.may_start(run) {
            let Some(ticket) = self.tickets.front_mut().filter(|ticket| ticket.missing == 0) else { break };
            let (chunks, blocks) = (std::mem::take(&mut ticket.chunks), std::mem::take(&mut ticket.blocks));
            let (epoch, step, end) = (ticket.epoch, ticket.step, ticket.end.take());
            self.under_way.push_back(ticket.held);
            self.tickets.pop_front();
            let number = self.first;
            self.first += 1;
            self.started += 1;
            any = true;
            let data = blocks.iter().filter_map(|key| match &self.blocks.get(key)?.stage {
                BlockStage::Ready(block) => Some(((key.leaf, key.block), block.clone())),
                _ => None,
            });
            let data = Blocks::sorted(data.collect());
            let counts = self.count_rows(&chunks, epoch);
            let evaluation = Evaluation { epoch, step, chunks: Vec::new(), end, kept: Arc::new(data), counts };
            if chunks.is_empty() {
                self.evaluated.put(number, evaluation);
                while let Some(evaluation) = self.evaluated.pop() {
                    self.hand_on(run, evaluation);
                }
                self.begin_ready(run);
                continue;
            }
            self.in_flight += 1;
            self.todo.extend(evaluate(run, number, evaluation, chunks));
        }
        any
    }

    /// Takes an evaluated ticket in order: gives back blocks, and makes batches of its rows.
    fn hand_on(&mut self, run: &Run, evaluation: Evaluation) {
        let number = self.popped;
        self.popped += 1;
        self.under_way.pop_front();
        self.release(number, &evaluation);
        if self.failed {
            return;
        }
        let (epoch, ended) = (evaluation.epoch, evaluation.end.is_some());
        let end_error = evaluation.end.clone().flatten();
        let assemblies = match &mut self.rebatch {
            Some(rebatch) => rebatch.push(evaluation),
            None if ended => Vec::new(),
            None => Assembly::of_step(evaluation).into_iter().collect(),
        };
        self.yielded = assemblies.len();
        for mut assembly in assemblies {
            for progress in [&mut assembly.before, &mut assembly.progress] {
                progress.read_from = self.read_point_behind(&run.shared.pipeline, progress);
            }
            if assembly.error.is_some() {
                // Nothing comes behind an error.
                self.planned_all = true;
                self.go_on = false;
            }
            self.ready.push_back(Ready::Batch(Box::new(assembly)));
        }
        if self.rebatch.as_ref().is_some_and(|rebatch| rebatch.is_full(epoch)) {
            self.cut = Some(epoch);
        }
        if ended {
            self.arrived.retain(|(delivered, _)| *delivered > epoch);
            self.ready.push_back(Ready::End(end_error.map_or(Out::EndOfEpoch(epoch), Out::Failed)));
        }
    }

    /// Begins the batches whose rows are there, as far as the window goes: a ticket may give many at once, where a few are wanted at a time.
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

    /// Where a pass over shards without an index would have to go on behind a batch.
    fn read_point_behind(&self, pipeline: &Pipeline, progress: &Progress) -> Option<ReadPoint> {
        let steps = pipeline.steps;
        // One sequence feeds all streams: it begins with the step that the first of them is planned from.
        let step = progress.cursors.iter().map(|cursor| pipeline.planned_for(*cursor) / steps.stream_share()).min();
        let row = self.order.first_arrival_for(step.unwrap_or(progress.step) * steps.batch)?;
        let of_epoch = self.arrived.iter().find(|(epoch, _)| *epoch == progress.epoch);
        let arrivals = of_epoch.map_or(&self.arrivals, |(_, arrivals)| arrivals);
        arrivals.iter().find_map(|arrivals| arrivals.place_of(row))
    }

    /// An end of epoch takes no room in the window: it goes to the lanes at once where it is next.
    fn distribute_if_next(&mut self, run: &Run) {
        if self.out.is_ready() {
            self.distribute(run);
        }
    }
}

/// Tasks that evaluate the chunks of a ticket, part by part; the last one of a chunk joins its parts, the last of all hands the ticket on.
fn evaluate(run: &Run, number: u64, evaluation: Evaluation, chunks: Vec<Chunk>) -> impl Iterator<Item = Prepared> {
    struct Work {
        evaluation: Mutex<Evaluation>,
        chunks: Vec<ChunkWork>,
        left: AtomicUsize,
        kept: Kept,
        epoch: u64,
    }
    struct ChunkWork {
        chunk: Chunk,
        parts: Vec<OnceLock<Evaluated>>,
        left: AtomicUsize,
        result: OnceLock<EvaluatedChunk>,
    }
    let chunk_work = |chunk: Chunk| ChunkWork {
        parts: chunk.parts.iter().map(|_| OnceLock::new()).collect(),
        left: AtomicUsize::new(chunk.parts.len()),
        result: OnceLock::new(),
        chunk,
    };
    let tasks: Vec<(usize, usize)> =
        chunks.iter().enumerate().flat_map(|(i, chunk)| (0..chunk.parts.len()).map(move |part| (i, part))).collect();
    let work = Arc::new(Work {
        left: AtomicUsize::new(chunks.len()),
        chunks: chunks.into_iter().map(chunk_work).collect(),
        kept: evaluation.kept.clone(),
        epoch: evaluation.epoch,
        evaluation: Mutex::new(evaluation),
    });
    tasks.into_iter().map(move |(i, part)| {
        let work = work.clone();
        run.prepare(Level::Transform, move |run, scratch| {
            let pipeline = &run.shared.pipeline;
            let ChunkWork { chunk, parts, left, result } = &work.chunks[i];
            let env = Env {
                stages: &pipeline.stages,
                enumerated: &pipeline.enumerated,
                blocks: &work.kept,
                epoch: work.epoch,
                window: chunk.position / pipeline.unit(),
                counters: &run.shared.counters,
                leave_out: run.shared.skip.is_some(),
            };
            let evaluated = no_panic(|| env.evaluate(&chunk.parts[part], scratch)).unwrap_or_else(Evaluated::failed);
            let evaluated = if pipeline.on_windows.is_empty() {
                evaluated
            } else {
                _ = parts[part].set(evaluated);
                if left.fetch_sub(1, Ordering::AcqRel) > 1 {
                    return;
                }
                let parts = parts.iter().filter_map(OnceLock::get).cloned().zip(&chunk.parts);
                let parts = parts.map(|(evaluated, picked)| (evaluated, picked.positions())).collect();
                no_panic(|| env.evaluate_window(parts, &pipeline.on_windows, scratch)).unwrap_or_else(Evaluated::failed)
            };
            run.shared.counters.transform.add(evaluated.rows.len() as u64, 0);
            let Chunk { stream, position, .. } = *chunk;
            let left_out = chunk.left_out(&evaluated);
            _ = result.set(EvaluatedChunk { stream, position, positions: chunk.positions(), evaluated, left_out });
            if work.left.fetch_sub(1, Ordering::AcqRel) > 1 {
                return;
            }
            // The last chunk: all others have let go of the work, or are about to.
            let mut evaluation = work.evaluation.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let mut evaluation = std::mem::replace(&mut *evaluation, Evaluation::nothing());
            evaluation.chunks = work.chunks.iter().filter_map(|chunk| chunk.result.get()).cloned().collect();
            run.update(|state| {
                state.in_flight -= 1;
                state.evaluated.put(number, evaluation);
            });
        })
    })
}
