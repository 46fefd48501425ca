//! Processes blocks on several threads and takes them in order: one pass over any source, within a budget.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::shards;
use crate::engine::io::Io;
use crate::engine::pool::no_panic;
use crate::error::Result;
use crate::source::{self, Decoded, Source};

/// Blocks, numbered in the order in which they are taken.
pub(super) trait Blocks: Sync {
    /// The result of processing a block.
    type Made: Send;

    /// Returns approximately the bytes that a block takes in memory.
    fn block_bytes(&self, block: usize) -> u64;

    /// Processes a block, on any thread.
    fn make(&self, block: usize) -> Result<Self::Made>;
}

/// Reads and decodes a block of a source.
pub(super) fn read(source: &dyn Source, io: &Io, block: usize) -> Result<Decoded> {
    let fetched = match source.fetch(block) {
        Some(fetch) => shards::read(io, fetch)?,
        None => Vec::new(),
    };
    source::decode(source, block, fetched)
}

struct State<T> {
    /// The next block to make.
    next: usize,
    /// The next block to take.
    taken: usize,
    bytes: u64,
    made: BTreeMap<usize, Result<T>>,
    stop: bool,
}

/// The number of blocks per thread that may be made but not yet taken, whatever their size, so that threads do not idle behind a slow block.
const AHEAD: usize = 4;

/// Makes blocks on `threads` threads and takes them in order on this one. At most `budget` bytes (or one block) wait to be taken.
///
/// # Errors
/// The error of the first block that cannot be made or taken; the others are abandoned.
pub(super) fn run<B: Blocks + ?Sized>(
    all: &B,
    blocks: Range<usize>,
    threads: usize,
    budget: u64,
    mut take: impl FnMut(usize, B::Made) -> Result<()>,
) -> Result<()> {
    let state = State { next: blocks.start, taken: blocks.start, bytes: 0, made: BTreeMap::new(), stop: false };
    let state = Mutex::new(state);
    let changed = Condvar::new();
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let wait =
        |state| -> MutexGuard<'_, State<B::Made>> { changed.wait(state).unwrap_or_else(PoisonError::into_inner) };
    let worker = || {
        loop {
            let mut state = lock();
            let block = loop {
                let block = state.next;
                if state.stop || block >= blocks.end {
                    return;
                }
                let is_near = block - state.taken < AHEAD * threads.max(1);
                let fits = state.bytes == 0 || state.bytes.saturating_add(all.block_bytes(block)) <= budget;
                if is_near && fits {
                    break block;
                }
                state = wait(state);
            };
            state.next += 1;
            state.bytes += all.block_bytes(block);
            drop(state);
            let made = no_panic(|| all.make(block));
            lock().made.insert(block, made);
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        (0..threads.max(1).min(blocks.len())).for_each(|_| _ = scope.spawn(worker));
        let taken = blocks.clone().try_for_each(|block| {
            let mut state = lock();
            let made = loop {
                match state.made.remove(&block) {
                    Some(made) => break made,
                    None => state = wait(state),
                }
            };
            drop(state);
            let taken = made.and_then(|made| take(block, made));
            let mut state = lock();
            state.taken += 1;
            state.bytes -= all.block_bytes(block);
            drop(state);
            changed.notify_all();
            taken
        });
        lock().stop = true;
        changed.notify_all();
        taken
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::Error;

    struct Numbers {
        fails_at: usize,
        made: AtomicUsize,
    }

    impl Blocks for Numbers {
        type Made = usize;

        fn block_bytes(&self, block: usize) -> u64 {
            1 + block as u64 % 5
        }
        fn make(&self, block: usize) -> Result<usize> {
            self.made.fetch_add(1, Ordering::Relaxed);
            if block == self.fails_at { Err(Error::corrupt("bad")) } else { Ok(3 * block) }
        }
    }

    fn supply(fails_at: usize) -> Numbers {
        Numbers { fails_at, made: AtomicUsize::new(0) }
    }

    #[test]
    fn blocks_are_taken_in_order_whatever_the_threads_and_the_budget() {
        for (threads, budget) in [(1, 0), (3, 0), (4, 7), (8, 1000)] {
            let mut taken = Vec::new();
            let all = supply(usize::MAX);
            run(&all, 10..100, threads, budget, |block, made| {
                assert_eq!(made, 3 * block);
                taken.push(block);
                Ok(())
            })
            .unwrap();
            assert_eq!(taken, (10..100).collect::<Vec<_>>(), "{threads} {budget}");
        }
    }

    #[test]
    fn the_first_failure_ends_it_and_little_is_made_beyond() {
        let all = supply(20);
        let mut taken = 0;
        let error = run(&all, 0..100, 2, 1000, |_, _| {
            taken += 1;
            Ok(())
        });
        assert_eq!((error.unwrap_err().message(), taken), ("bad", 20));
        assert!(all.made.load(Ordering::Relaxed) <= 20 + 1 + AHEAD * 2);
        let error = run(&supply(usize::MAX), 0..100, 3, 1000, |block, _| {
            if block == 5 { Err(Error::corrupt("not taken")) } else { Ok(()) }
        });
        assert_eq!(error.unwrap_err().message(), "not taken");
    }
}
