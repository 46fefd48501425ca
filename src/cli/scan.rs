//! Scans all records of many shards, in parallel and in bounded memory.
//!
//! Threads share a queue of open shards. A thread takes a shard, frames its next block (only one thread at a time does that for a shard), puts the
//! shard back, and then processes the block while others continue. So the work is parallel both over shards and within one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use indicatif::ProgressBar;

use super::shards::Shards;
use super::walk::{Damage, Step, Walk};
use crate::error::Error;
use crate::format::tfrecord::{Check, Compression, ShardIndex};
use crate::source::Arrived;
use crate::source::tfrecord::PIECE_BYTES;

/// The number of shards that are open at the same time. Each has a read in progress, so even with two threads several pieces are requested from a
/// bucket at once, and a large machine holds 16 pieces instead of one per core.
const OPEN: std::ops::RangeInclusive<usize> = 4..=16;

/// The piece size for shards of which only some first records are wanted.
const FIRST_PIECE_BYTES: u64 = 1 << 20;

/// One pass over shards.
pub(super) struct Scan<'a> {
    pub(super) shards: &'a Shards,
    pub(super) check: Check,
    /// How many records of each shard are looked at; all if `None`. A shard with 0 is not opened.
    pub(super) first: Option<&'a [u64]>,
    /// Counts stored bytes.
    pub(super) bar: &'a ProgressBar,
}

/// What a thread does with the records it finds. Each thread has its own visitor.
pub(super) trait Visitor: Send {
    /// Takes adjacent records; blocks come in any order.
    fn block(&mut self, block: Arrived);

    /// Takes the end of a shard.
    fn end(&mut self, end: End);
}

/// How a shard ended.
pub(super) struct End {
    pub(super) shard: usize,
    /// Records found, including those with damaged payloads.
    pub(super) records: u64,
    /// Their decompressed bytes.
    pub(super) bytes: u64,
    pub(super) compression: Compression,
    pub(super) outcome: Outcome,
}

/// How the scan of a shard ended.
pub(super) enum Outcome {
    /// The whole shard was read.
    Whole(ShardIndex),
    /// As many records as were wanted were read.
    Enough,
    /// The rest of the records cannot be found.
    Damaged(Damage),
    /// The shard cannot be read.
    Unread(Error),
}

impl Scan<'_> {
    /// Scans all shards and returns the threads' visitors in their final state.
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

/// Open shards that no thread is working on.
struct Queue<'s> {
    state: Mutex<State<'s>>,
    changed: Condvar,
}

#[derive(Default)]
struct State<'s> {
    waiting: VecDeque<Walk<'s>>,
    /// The next shard to open.
    next: usize,
    /// Shards that threads are working on.
    out: usize,
}

/// A shard that a thread is working on; put back when dropped.
struct Turn<'q, 's> {
    queue: &'q Queue<'s>,
    walk: Option<Walk<'s>>,
}

impl<'s> Queue<'s> {
    fn lock(&self) -> MutexGuard<'_, State<'s>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the shard that has waited longest; `None` when all shards have ended.
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
    /// Takes the shard out of the queue, because it has ended.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::engine::Scheduler;
    use crate::engine::io::Io;
    use crate::format::tfrecord::Writer;
    use crate::store::Store;

    /// Records seen of each shard, and how it ended.
    #[derive(Default)]
    struct Seen {
        records: BTreeMap<usize, Vec<u64>>,
        ends: BTreeMap<usize, (u64, &'static str)>,
    }

    impl Visitor for Seen {
        fn block(&mut self, block: Arrived) {
            let records = block.first_record..block.first_record + block.framed.payloads.len() as u64;
            self.records.entry(block.shard).or_default().extend(records);
        }

        fn end(&mut self, end: End) {
            let how = match end.outcome {
                Outcome::Whole(index) if index.len() as u64 == end.records => "whole",
                Outcome::Whole(_) => "another index",
                Outcome::Enough => "enough",
                Outcome::Damaged(_) => "damaged",
                Outcome::Unread(_) => "unread",
            };
            assert!(self.ends.insert(end.shard, (end.records, how)).is_none(), "a shard ends once");
        }
    }

    /// Creates shards in memory with these numbers of records of 50,000 bytes each.
    fn shards(name: &str, records: &[usize], threads: usize) -> Shards {
        let store = Store::new();
        let io = Arc::new(Io::new(Scheduler::threads(threads)).unwrap());
        for (shard, &records) in records.iter().enumerate() {
            let compression = if shard % 2 == 0 { Compression::None } else { Compression::Gzip };
            let mut writer = Writer::new(Vec::new(), compression);
            (0..records).for_each(|record| writer.write(&vec![record as u8; 50_000]).unwrap());
            let url = format!("memory://{name}/{shard:03}");
            Store::memory_put(&url, Bytes::from(writer.finish().unwrap())).unwrap();
        }
        let (listing, pattern) = (store.clone(), format!("memory://{name}/*"));
        let objects = io.wait(async move { listing.list(&[pattern]).await }).unwrap();
        Shards { store, objects, io, threads }
    }

    fn scan(shards: &Shards, first: Option<&[u64]>) -> Seen {
        let bar = ProgressBar::hidden();
        let mut whole = Seen::default();
        for seen in (Scan { shards, check: Check::Full, first, bar: &bar }).run(Seen::default) {
            seen.records
                .into_iter()
                .for_each(|(shard, records)| whole.records.entry(shard).or_default().extend(records));
            seen.ends.into_iter().for_each(|(shard, end)| assert!(whole.ends.insert(shard, end).is_none()));
        }
        whole.records.values_mut().for_each(|records| records.sort_unstable());
        whole
    }

    #[test]
    fn every_record_is_seen_once_whatever_the_threads() {
        let records = [250, 3, 0, 120, 1, 90, 7, 5];
        for threads in [1, 3, 8] {
            let seen = scan(&shards(&format!("scan-{threads}"), &records, threads), None);
            for (shard, &records) in records.iter().enumerate() {
                let of_shard = seen.records.get(&shard).cloned().unwrap_or_default();
                assert_eq!(of_shard, (0..records as u64).collect::<Vec<_>>(), "{threads} threads, shard {shard}");
                assert_eq!(seen.ends[&shard], (records as u64, "whole"));
            }
        }
    }

    #[test]
    fn only_the_records_wanted_are_seen_and_shards_without_any_stay_closed() {
        let shards = shards("scan-first", &[250, 3, 10], 2);
        let before = shards.store.transfers().bytes;
        let seen = scan(&shards, Some(&[2, 5, 0]));
        assert_eq!(seen.records, BTreeMap::from([(0, vec![0, 1]), (1, vec![0, 1, 2])]));
        assert_eq!((seen.ends[&0].1, seen.ends[&1].1, seen.ends.len()), ("enough", "whole", 2));
        assert!(shards.store.transfers().bytes - before < 4 * FIRST_PIECE_BYTES);
    }

    #[test]
    fn a_shard_that_cannot_be_read_leaves_the_others_alone() {
        let shards = shards("scan-unread", &[5, 5, 5], 2);
        Store::memory_put("memory://scan-unread/001", Bytes::from_static(b"another one")).unwrap();
        let seen = scan(&shards, None);
        assert_eq!((seen.ends[&0], seen.ends[&1], seen.ends[&2]), ((5, "whole"), (0, "unread"), (5, "whole")));
    }

    #[test]
    fn a_panic_in_a_thread_ends_the_pass() {
        struct Panics;
        impl Visitor for Panics {
            fn block(&mut self, _: Arrived) {
                panic!("a visitor's");
            }
            fn end(&mut self, _: End) {}
        }
        let shards = shards("scan-panic", &[5, 5, 5, 5], 3);
        let bar = ProgressBar::hidden();
        let scan = Scan { shards: &shards, check: Check::Full, first: None, bar: &bar };
        let run = std::panic::AssertUnwindSafe(|| scan.run(|| Panics).len());
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
