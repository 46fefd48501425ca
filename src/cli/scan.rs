//! All records of many shards, in parallel and in bounded memory.
//!
//! Threads share a queue of open shards. A thread takes one, frames its next block (only one thread at a time does that for a
//! shard), puts the shard back, and then works on the block beside the others: so the work is parallel over shards, and within one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use indicatif::ProgressBar;

use super::shards::Shards;
use super::walk::{Damage, Step, Walk};
use crate::error::Error;
use crate::format::tfrecord::{Check, Compression, ShardIndex};
use crate::source::Arrived;
use crate::source::tfrecord::PIECE_BYTES;

/// Shards that are open at the same time: each has a read on its way, so a bucket is asked for several pieces at once even
/// where there are two threads, and a large machine holds 16 pieces rather than one a core.
const OPEN: std::ops::RangeInclusive<usize> = 4..=16;

/// Pieces of shards that only some first records are wanted of.
const FIRST_PIECE_BYTES: u64 = 1 << 20;

/// One pass over shards.
pub(super) struct Scan<'a> {
    pub(super) shards: &'a Shards,
    pub(super) check: Check,
    /// How many records of each shard are looked at; all without it. A shard with 0 is not opened.
    pub(super) first: Option<&'a [u64]>,
    /// Counts stored bytes.
    pub(super) bar: &'a ProgressBar,
}

/// What a thread does with what is found. Each thread has its own.
pub(super) trait Visitor: Send {
    /// Records that lie next to each other; blocks come in any order.
    fn block(&mut self, block: Arrived);

    /// A shard is over.
    fn end(&mut self, end: End);
}

/// How a shard ended.
pub(super) struct End {
    pub(super) shard: usize,
    /// Records found, damaged payloads included.
    pub(super) records: u64,
    /// Their bytes, decompressed.
    pub(super) bytes: u64,
    pub(super) compression: Compression,
    pub(super) outcome: Outcome,
}

/// What a shard's end was.
pub(super) enum Outcome {
    /// All of it was read.
    Whole(ShardIndex),
    /// As many records as were wanted were read.
    Enough,
    /// The rest cannot be found.
    Damaged(Damage),
    /// It cannot be read.
    Unread(Error),
}

impl Scan<'_> {
    /// Runs over all shards and returns what the threads' visitors became.
    pub(super) fn run<V: Visitor>(&self, make: impl Fn() -> V + Sync) -> Vec<V> {
        let queue = Queue { state: Mutex::default(), changed: Condvar::new() };
        std::thread::scope(|scope| {
            let work = || self.work(&queue, make());
            let threads: Vec<_> = (1..self.shards.threads.max(1)).map(|_| scope.spawn(work)).collect();
            let own = work();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            joined.chain([own]).collect()
        })
    }

    fn work<'s, V: Visitor>(&'s self, queue: &Queue<'s>, mut visitor: V) -> V {
        while let Some(mut turn) = queue.take(self) {
            let Some(walk) = turn.walk.as_mut() else { continue };
            let step = walk.next(|bytes| self.bar.inc(bytes));
            let wanted = self.first.map_or(u64::MAX, |first| first[walk.shard()]);
            match step {
                Ok(Some(Step::Block(block))) if walk.records() < wanted => {
                    drop(turn);
                    visitor.block(block);
                }
                Ok(Some(Step::Block(mut block))) => {
                    if let Some(walk) = turn.finish() {
                        // What is left unread counts as done.
                        self.bar.inc(walk.unread());
                        visitor.end(end(walk, |_| Outcome::Enough));
                    }
                    let left = wanted.saturating_sub(block.first_record) as usize;
                    block.framed.payloads.truncate(left);
                    block.framed.bad.retain(|(row, _)| *row < left);
                    visitor.block(block);
                }
                Ok(Some(Step::Damage(damage))) => {
                    if let Some(walk) = turn.finish() {
                        visitor.end(end(walk, |_| Outcome::Damaged(damage)));
                    }
                }
                Ok(None) => {
                    if let Some(walk) = turn.finish() {
                        visitor.end(end(walk, |walk| walk.index().map_or_else(Outcome::Unread, Outcome::Whole)));
                    }
                }
                Err(error) => {
                    if let Some(walk) = turn.finish() {
                        visitor.end(end(walk, |_| Outcome::Unread(error)));
                    }
                }
            }
        }
        visitor
    }

    fn open(&self, shard: usize) -> Walk<'_> {
        let some = self.first.is_some_and(|first| first[shard] < u64::MAX);
        let piece_bytes = if some { FIRST_PIECE_BYTES } else { PIECE_BYTES };
        Walk::new(self.shards, shard, self.check, piece_bytes).reading_ahead()
    }
}

fn end<'a>(walk: Walk<'a>, outcome: impl FnOnce(Walk<'a>) -> Outcome) -> End {
    let (shard, records, bytes, compression) = (walk.shard(), walk.records(), walk.bytes(), walk.compression());
    End { shard, records, bytes, compression, outcome: outcome(walk) }
}

/// Open shards that no thread has in hand.
struct Queue<'s> {
    state: Mutex<State<'s>>,
    changed: Condvar,
}

#[derive(Default)]
struct State<'s> {
    waiting: VecDeque<Walk<'s>>,
    /// The next shard to open.
    next: usize,
    /// Shards in a thread's hand.
    out: usize,
}

/// A shard in a thread's hand; put back when dropped.
struct Turn<'q, 's> {
    queue: &'q Queue<'s>,
    walk: Option<Walk<'s>>,
}

impl<'s> Queue<'s> {
    fn lock(&self) -> MutexGuard<'_, State<'s>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard that has waited longest; `None` when all are over.
    fn take(&self, scan: &'s Scan<'_>) -> Option<Turn<'_, 's>> {
        let most = scan.shards.threads.clamp(*OPEN.start(), *OPEN.end());
        let mut state = self.lock();
        loop {
            while state.next < scan.shards.objects.len() && state.waiting.len() + state.out < most {
                let shard = state.next;
                state.next += 1;
                if scan.first.is_none_or(|first| first[shard] > 0) {
                    state.waiting.push_back(scan.open(shard));
                }
            }
            if let Some(walk) = state.waiting.pop_front() {
                state.out += 1;
                return Some(Turn { queue: self, walk: Some(walk) });
            }
            if state.out == 0 {
                self.changed.notify_all();
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<'s> Turn<'_, 's> {
    /// Keeps the shard: it is over.
    fn finish(mut self) -> Option<Walk<'s>> {
        self.walk.take()
    }
}

impl Drop for Turn<'_, '_> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.out -= 1;
        state.waiting.extend(self.walk.take());
        self.queue.changed.notify_all();
    }
}
