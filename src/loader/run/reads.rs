//! Reads, on the I/O runtime or by the workers: who runs which, what is counted while they are under way, and how they are cancelled.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::FutureExt as _;

use super::Run;
use crate::engine::io::Cancel;
use crate::engine::pool::{Level, Prepared, no_panic, panicked};
use crate::error::Result;
use crate::store::Watch;

/// A read under way. It ends when this is dropped.
pub(crate) struct Fetch {
    /// Its task on the I/O runtime, if it is there.
    task: Arc<OnceLock<Cancel>>,
    /// Whether it began as a worker's.
    by_worker: bool,
    watch: Watch,
}

impl Fetch {
    /// When its first byte came, if it has.
    pub(crate) fn first_byte(&self) -> Option<Instant> {
        self.watch.first_byte()
    }

    /// Whether it is the work of a worker.
    pub(crate) fn is_copying(&self) -> bool {
        self.by_worker && self.task.get().is_none()
    }
}

/// Reads in a row that found their files in memory, from which on workers copy them. A data set that is only partly in memory seldom has so many, and
/// its reads should be at the disk at once instead of waiting for workers.
const ENOUGH_COPYABLE: u32 = 8;

/// What a read comes to: its result, or a panic.
type Caught<T> = std::thread::Result<Result<T>>;

type Reading<T> = Pin<Box<dyn Future<Output = Caught<T>> + Send>>;

fn settle<T>(caught: Caught<T>) -> Result<T> {
    caught.unwrap_or_else(|panic: Box<dyn Any + Send>| Err(panicked(&*panic)))
}

/// The kind of thread that something runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thread {
    /// One of the pool's, or the loop's own where there are none.
    Worker,
    /// One of the I/O runtime's, which must not compute.
    Io,
}

/// Counts a task for as long as it lives.
pub(super) struct Alive(Arc<AtomicUsize>);

impl Alive {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A read that is under way. If it is dropped before its end, nobody waits for it any more.
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
        // The lock may be held by whoever drops the read, on this very thread: a worker takes the count over.
        if let Some(run) = self.run.upgrade() {
            run.aborted.fetch_add(1, Ordering::AcqRel);
            run.send_errand();
        }
    }
}

/// A read that counts as alive until everything that it holds is dropped. A cancelled read holds its share of the budget until an I/O thread comes to
/// it.
struct Counted {
    read: Pin<Box<dyn Future<Output = ()> + Send>>,
    _alive: Alive,
}

impl Future for Counted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.read.as_mut().poll(context)
    }
}

impl Run {
    /// Runs a read on the I/O runtime, then `then` with its result. Where a task of the pool is needed for that, the caller submits it.
    ///
    /// Where the source's last reads found all of their files in the kernel's page cache, this one is likely to be nothing but copying: it is a worker's
    /// task. What a core has just copied is in its cache when the worker decodes it, and no more threads compete for the cores than there are workers.
    /// If the worker would have to wait after all, the read goes on where others are. (Single-threaded, all reads are tasks.)
    pub(crate) fn fetch<T: Send + 'static>(
        &self,
        leaf: usize,
        future: impl Future<Output = Result<T>> + Send + 'static,
        then: impl FnOnce(&Run, Result<T>, Thread) + Send + 'static,
    ) -> (Fetch, Option<Prepared>) {
        let (task, watch) = (Arc::<OnceLock<Cancel>>::default(), Watch::default());
        let mut read: Reading<T> = Box::pin(AssertUnwindSafe(watch.of(future)).catch_unwind());
        let fetch = |by_worker| Fetch { task: task.clone(), by_worker, watch: watch.clone() };
        if self.shared.scheduler.is_single_threaded() {
            let fetch = fetch(false);
            watch.let_copy(u64::MAX);
            let prepared = self.prepare(Level::Decode, move |run, _| {
                let result = no_panic(|| run.shared.io.wait(async { Ok(settle(read.await)) }));
                then(run, result.and_then(|result| result), Thread::Worker);
            });
            return (fetch, Some(prepared));
        }
        let unfinished = Unfinished { run: self.this.clone() };
        if self.copyable[leaf].load(Ordering::Relaxed) < ENOUGH_COPYABLE {
            let fetch = fetch(false);
            _ = task.set(self.read_on(leaf, watch, read, unfinished, then));
            return (fetch, None);
        }
        let (fetch, task) = (fetch(true), Arc::downgrade(&task));
        let prepared = self.prepare(Level::Decode, move |run, _| {
            // Nobody waits for it any more.
            let Some(task) = task.upgrade() else { return drop(unfinished) };
            let start = Instant::now();
            let runtime = run.shared.io.enter();
            let copied = watch.copy(&mut read);
            drop(runtime);
            run.shared.counters.read.busy(start.elapsed());
            match copied {
                Some(caught) => {
                    unfinished.disarm();
                    run.note(leaf, &watch);
                    then(run, settle(caught), Thread::Worker);
                }
                None => _ = task.set(run.read_on(leaf, watch, read, unfinished, then)),
            }
        });
        (fetch, Some(prepared))
    }

    /// Notes whether a worker could have copied what was read, or did.
    fn note(&self, leaf: usize, watch: &Watch) {
        let copyable = &self.copyable[leaf];
        let reads = if watch.was_copyable() { copyable.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
        copyable.store(reads, Ordering::Relaxed);
    }

    /// Runs a read to its end on the I/O runtime.
    fn read_on<T: Send + 'static>(
        &self,
        leaf: usize,
        watch: Watch,
        read: Reading<T>,
        unfinished: Unfinished,
        then: impl FnOnce(&Run, Result<T>, Thread) + Send + 'static,
    ) -> Cancel {
        let this = self.this.clone();
        let read = async move {
            let result = settle(read.await);
            unfinished.disarm();
            if let Some(run) = this.upgrade() {
                run.note(leaf, &watch);
                run.guarded(|run| then(run, result, Thread::Io));
            }
        };
        self.shared.io.spawn(Counted { read: Box::pin(read), _alive: Alive::new(&self.shared.alive) })
    }

    /// Sends a worker to do what follows from a change that was made without the lock.
    pub(super) fn send_errand(&self) {
        let this = self.this.clone();
        self.shared.pool.submit(self.shared.pool.prepare_errand(Level::Collate, move |_| {
            if let Some(run) = this.upgrade() {
                run.guarded(|run| run.update(|_| {}));
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use arrow::array::{Int64Array, RecordBatch};
    use bytes::Bytes;
    use futures::future::BoxFuture;

    use crate::dataset::Dataset;
    use crate::engine::Scheduler;
    use crate::error::ErrorKind;
    use crate::plan::Catalog;
    use crate::schema::{Column, int64};
    use crate::source::{Decoded, Source};
    use crate::store::copied;

    use super::*;

    const BLOCKS: usize = 60;
    const ROWS: usize = 4;

    /// What a block's read does once its file was found in memory.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Then {
        Ends,
        Waits,
        Panics,
    }

    /// Blocks so large, they say, that no more than a few are read ahead.
    struct Blocks {
        columns: [Column; 1],
        catalog: Catalog,
        then: fn(usize) -> Then,
        reads: AtomicUsize,
        /// Which threads polled each read.
        polls: Log,
    }

    /// A read's number, its block, and the thread. The next epoch is read ahead, so some blocks are read twice.
    type Log = Arc<Mutex<Vec<(usize, usize, String)>>>;

    impl Source for Blocks {
        fn name(&self) -> String {
            "blocks".into()
        }

        fn columns(&self) -> &[Column] {
            &self.columns
        }

        fn catalog(&self) -> &Catalog {
            &self.catalog
        }

        fn fetch(&self, block: usize) -> Option<BoxFuture<'static, Result<Vec<Bytes>>>> {
            let (then, polls) = ((self.then)(block), self.polls.clone());
            let number = self.reads.fetch_add(1, Ordering::Relaxed);
            let note = move || {
                let name = std::thread::current().name().unwrap_or_default().to_owned();
                polls.lock().unwrap().push((number, block, name));
            };
            Some(Box::pin(async move {
                copied(1, true);
                note();
                match then {
                    Then::Ends => {}
                    Then::Waits => {
                        // The first poll ends here; another thread's work may be done by then.
                        tokio::task::yield_now().await;
                        tokio::task::spawn_blocking(|| ()).await.unwrap();
                        note();
                    }
                    Then::Panics => panic!("read of block {block}"),
                }
                Ok(Vec::new())
            }))
        }

        fn decode(&self, block: usize, _fetched: Vec<Bytes>) -> Result<Decoded> {
            let numbers = Int64Array::from_iter_values((block * ROWS) as i64..((block + 1) * ROWS) as i64);
            Ok(Decoded::good(RecordBatch::try_from_iter([("x", Arc::new(numbers) as _)]).unwrap()))
        }
    }

    fn loader(then: fn(usize) -> Then, scheduler: Scheduler) -> (crate::Loader, Log) {
        let mut catalog = Catalog::new();
        catalog.push_shard("blocks");
        (0..BLOCKS).for_each(|_| catalog.push_block(ROWS as u64, 16 << 20));
        let polls = Log::default();
        let source = Blocks { columns: [int64("x")], catalog, then, reads: AtomicUsize::new(0), polls: polls.clone() };
        let loader = Dataset::from_source(source).batch(ROWS).loader().scheduler(scheduler).build().unwrap();
        (loader, polls)
    }

    fn numbers(loader: &mut crate::Loader) -> Result<Vec<i64>> {
        let batches = loader.epoch(0).map(|batch| Ok(batch?.values::<i64>("x")?.to_vec()));
        Ok(batches.collect::<Result<Vec<_>>>()?.concat())
    }

    fn all() -> Vec<i64> {
        (0..(BLOCKS * ROWS) as i64).collect()
    }

    #[test]
    fn a_read_that_need_not_wait_is_the_workers_once_one_did_not() {
        let (mut loader, polls) = loader(|_| Then::Ends, Scheduler::threads(2));
        assert_eq!(numbers(&mut loader).unwrap(), all());
        let polls = polls.lock().unwrap();
        assert_eq!(polls[0].2, "forebay-io", "nothing is known yet");
        let last = polls.iter().find(|(_, block, _)| *block == BLOCKS - 1).unwrap();
        assert!(last.2.starts_with("forebay-") && last.2 != "forebay-io", "{polls:?}");
    }

    #[test]
    fn one_that_has_to_wait_after_all_waits_on_the_runtime() {
        fn then(block: usize) -> Then {
            if block % 3 == 2 { Then::Waits } else { Then::Ends }
        }
        let (mut loader, polls) = loader(then, Scheduler::threads(2));
        assert_eq!(numbers(&mut loader).unwrap(), all());
        let polls = polls.lock().unwrap();
        let (mut seen, mut moved) = (std::collections::HashMap::new(), 0);
        for (number, block, name) in polls.iter() {
            let Some(before) = seen.insert(number, name) else { continue };
            assert!(
                then(*block) == Then::Waits && name == "forebay-io",
                "{number}, block {block}: {before}, then {name}"
            );
            moved += usize::from(before != "forebay-io");
        }
        assert!(moved > 0, "some began on a worker: {polls:?}");
    }

    #[test]
    fn without_workers_the_loop_reads_them() {
        let (mut loader, polls) = loader(|_| Then::Ends, Scheduler::single_threaded());
        assert_eq!(numbers(&mut loader).unwrap(), all());
        let own = std::thread::current().name().unwrap_or_default().to_owned();
        assert!(polls.lock().unwrap().iter().all(|(_, _, name)| *name == own));
    }

    #[test]
    fn a_panic_of_one_on_a_worker_is_an_error() {
        let (mut loader, _) =
            loader(|block| if block == BLOCKS - 1 { Then::Panics } else { Then::Ends }, Scheduler::threads(2));
        let error = numbers(&mut loader).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert!(error.to_string().contains("read of block 59"), "{error}");
    }

    #[test]
    fn epochs_that_are_dropped_among_such_reads_leave_nothing_under_way() {
        let (mut loader, _) =
            loader(|block| if block % 7 == 6 { Then::Waits } else { Then::Ends }, Scheduler::threads(2));
        for taken in 0..20 {
            assert_eq!(loader.epoch(0).take(taken).filter(Result::is_ok).count(), taken);
        }
        assert_eq!(numbers(&mut loader).unwrap(), all());
        let shared = loader.shared.clone();
        drop(loader);
        let deadline = Instant::now() + Duration::from_secs(60);
        while shared.alive.load(Ordering::Acquire) > 0 {
            assert!(Instant::now() < deadline, "reads are still under way");
            std::thread::yield_now();
        }
    }
}
