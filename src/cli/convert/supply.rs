//! What is converted row by row: blocks that are made on several threads and taken in order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::engine::io::Io;
use crate::engine::pool::no_panic;
use crate::error::Result;
use crate::schema::Column;
use crate::source::{Decoded, Source};

/// Blocks of rows, numbered through, in the order in which they are written.
pub(super) trait Supply: Sync {
    fn columns(&self) -> &[Column];

    /// Where each block starts, and behind the last one the number of rows.
    fn starts(&self) -> Vec<u64>;

    /// What a block takes in memory, about.
    fn block_bytes(&self, block: usize) -> u64;

    /// Makes a block, on any thread.
    fn make(&self, block: usize) -> Result<Decoded>;
}

/// Shards that a source reads.
pub(super) struct Shards {
    pub(super) source: Arc<dyn Source>,
    pub(super) io: Arc<Io>,
}

impl Supply for Shards {
    fn columns(&self) -> &[Column] {
        self.source.columns()
    }

    fn starts(&self) -> Vec<u64> {
        let catalog = self.source.catalog();
        (0..catalog.blocks()).map(|block| catalog.block_start(block)).chain([catalog.rows()]).collect()
    }

    fn block_bytes(&self, block: usize) -> u64 {
        self.source.catalog().block_bytes(block)
    }

    fn make(&self, block: usize) -> Result<Decoded> {
        let fetched = match self.source.fetch(block) {
            Some(fetch) => self.io.wait(fetch)?,
            None => Vec::new(),
        };
        self.source.decode(block, fetched)
    }
}

#[derive(Default)]
struct State {
    /// The next block to make.
    next: usize,
    /// The next block to take.
    taken: usize,
    bytes: u64,
    made: BTreeMap<usize, Result<Decoded>>,
    stop: bool,
}

/// Blocks that are made and not taken, whatever they take: a slow one is not waited for alone.
const AHEAD: usize = 4;

/// Makes blocks on so many threads, of which no more than `budget` bytes (or one block) wait, and takes them in order on this one.
///
/// # Errors
/// That of the first block that cannot be made or taken; the others are given up.
pub(super) fn run(
    supply: &dyn Supply,
    blocks: Range<usize>,
    threads: usize,
    budget: u64,
    mut take: impl FnMut(usize, Decoded) -> Result<()>,
) -> Result<()> {
    let state = Mutex::new(State { next: blocks.start, taken: blocks.start, ..State::default() });
    let changed = Condvar::new();
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let wait = |state| -> MutexGuard<'_, State> { changed.wait(state).unwrap_or_else(PoisonError::into_inner) };
    let worker = || {
        loop {
            let mut state = lock();
            let block = loop {
                let block = state.next;
                if state.stop || block >= blocks.end {
                    return;
                }
                let is_near = block - state.taken < AHEAD * threads.max(1);
                let fits = state.bytes == 0 || state.bytes.saturating_add(supply.block_bytes(block)) <= budget;
                if is_near && fits {
                    break block;
                }
                state = wait(state);
            };
            state.next += 1;
            state.bytes += supply.block_bytes(block);
            drop(state);
            let made = no_panic(|| supply.make(block));
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
            state.bytes -= supply.block_bytes(block);
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

    use arrow::array::{Int64Array, RecordBatch};

    use super::*;
    use crate::error::Error;
    use crate::schema::int64;

    struct Numbers {
        columns: Vec<Column>,
        fails_at: usize,
        made: AtomicUsize,
    }

    impl Supply for Numbers {
        fn columns(&self) -> &[Column] {
            &self.columns
        }
        fn starts(&self) -> Vec<u64> {
            (0..=100).map(|block| block * 3).collect()
        }
        fn block_bytes(&self, block: usize) -> u64 {
            1 + block as u64 % 5
        }
        fn make(&self, block: usize) -> Result<Decoded> {
            self.made.fetch_add(1, Ordering::Relaxed);
            if block == self.fails_at {
                return Err(Error::corrupt("bad"));
            }
            let numbers = Int64Array::from_iter_values((0..3).map(|i| 3 * block as i64 + i));
            Ok(Decoded::good(RecordBatch::try_from_iter([("n", Arc::new(numbers) as _)]).unwrap()))
        }
    }

    fn supply(fails_at: usize) -> Numbers {
        Numbers { columns: vec![int64("n")], fails_at, made: AtomicUsize::new(0) }
    }

    #[test]
    fn blocks_are_taken_in_order_whatever_the_threads_and_the_budget() {
        for (threads, budget) in [(1, 0), (3, 0), (4, 7), (8, 1000)] {
            let mut taken = Vec::new();
            let all = supply(usize::MAX);
            run(&all, 10..100, threads, budget, |block, _| {
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
