//! The one pool of workers for CPU work; work nearest to the consumer goes first.
#![expect(clippy::disallowed_methods, reason = "this is the place that starts threads, and joins them")]

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, ThreadId};

use crossbeam_channel::{Receiver, Sender, select_biased, unbounded};

use super::neighbour::{Cores, Neighbour, never_preempt};
use crate::error::{Error, ErrorKind, Result};

/// How work is spread over threads.
///
/// # Example
/// ```
/// use forebay::Scheduler;
///
/// assert_eq!(Scheduler::threads(4).num_threads(), 4);
/// assert_eq!(Scheduler::single_threaded().num_threads(), 0);
///
/// // A loader that gives way to the loop that it feeds.
/// let polite = Scheduler::share(0.5).niceness(10);
/// assert!(polite.num_threads() >= 1);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduler {
    /// The number of workers, by default the number of cores.
    threads: usize,
    /// Whether the number of workers was stated; otherwise it is one a core.
    is_stated: bool,
    neighbour: Neighbour,
}

impl Scheduler {
    /// Uses a pool of this many workers (at least one) in addition to the calling thread.
    pub fn threads(threads: usize) -> Self {
        Self { threads: threads.max(1), is_stated: true, neighbour: Neighbour::default() }
    }

    /// Uses as many workers as this share of the cores that this process may use, rounded, and at least one: `share(0.5)` gives 8 of 16.
    ///
    /// The share limits computation. Threads that only move bytes (sockets, disks) come on top; [`cores`](Self::cores) bounds all of them. Each
    /// process takes its share of all cores that it may use: with eight ranks on one machine, give each `share(1.0 / 8.0)`.
    pub fn share(share: f64) -> Self {
        Self::threads((share.clamp(0.0, 1.0) * num_cores() as f64).round() as usize)
    }

    /// Does everything but waiting for disks on the thread that asks for a batch, in the same order: for debugging and profiling.
    pub fn single_threaded() -> Self {
        Self { threads: 0, is_stated: true, neighbour: Neighbour::default() }
    }

    /// Keeps all threads of the loader on these cores, as the system numbers them. If the number of workers is not stated, there is one for each of
    /// these cores.
    ///
    /// The cores may differ from those of the thread that builds the loader. The loop's own thread stays as it is.
    ///
    /// # Errors
    /// [`build()`](crate::LoaderBuilder::build) refuses cores that do not exist or that this process may not use, and systems other than Linux.
    #[must_use]
    pub fn cores(mut self, cores: impl IntoIterator<Item = usize>) -> Self {
        self.neighbour.cores = Some(Cores::of(cores));
        self
    }

    /// Keeps all threads of the loader off one core: that of the thread that calls [`build()`](crate::LoaderBuilder::build), which is the training
    /// loop's. If the number of workers is not stated, there is one for each other core.
    ///
    /// The calling thread is not pinned: threads that it starts later (libtorch's threads for operations on the CPU) would inherit that and share its
    /// one core. Linux leaves a thread on its core as long as that core is free when the thread wakes. If the calling thread must never move, pin it,
    /// and name the loader's cores with [`cores`](Self::cores). That is also the way for several processes on one machine, each of which knows only
    /// its own core.
    ///
    /// # Errors
    /// `build()` refuses it if no other core is left, and on systems other than Linux.
    #[must_use]
    pub fn off_this_core(mut self) -> Self {
        self.neighbour.off_this_core = true;
        self
    }

    /// Lets all threads of the loader give way to others. 0 is the usual niceness; at 19 a thread hardly ever runs where others want to. Negative
    /// numbers need the right to them.
    ///
    /// # Errors
    /// `build()` refuses what the system refuses, which is a niceness below that of the process itself, and systems other than Linux.
    #[must_use]
    pub fn niceness(mut self, niceness: i8) -> Self {
        self.neighbour.niceness = Some(niceness);
        self
    }

    /// Returns the number of workers, without the calling thread.
    pub fn num_threads(self) -> usize {
        if self.is_stated {
            return self.threads;
        }
        let cores = self.neighbour.cores.and_then(|cores| cores.ok()).map_or(self.threads, |cores| cores.len());
        cores.saturating_sub(self.neighbour.off_this_core.into()).max(1)
    }

    pub(crate) fn is_single_threaded(self) -> bool {
        self.num_threads() == 0
    }

    /// The same with its cores spelled out, as the calling thread sees them.
    ///
    /// # Errors
    /// What the system refuses.
    pub(crate) fn settle(mut self) -> Result<Self> {
        if self.is_single_threaded() && self.neighbour != Neighbour::default() {
            return Err(Error::config("a single-threaded loader has no threads whose cores and niceness could be set")
                .advice("take Scheduler::threads(n), or leave .cores, .off_this_core and .niceness out"));
        }
        self.neighbour = self.neighbour.settle()?;
        Ok(self)
    }

    /// What each of the loader's threads does when it starts.
    pub(crate) fn neighbour(self) -> Neighbour {
        self.neighbour
    }
}

/// Cores that this process may use.
fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Default for Scheduler {
    /// One worker a core that this process may use.
    fn default() -> Self {
        Self { threads: num_cores(), is_stated: false, neighbour: Neighbour::default() }
    }
}

/// Which work goes first: the nearer to the consumer, the sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Collate,
    Transform,
    Decode,
}

impl Level {
    const ALL: [Self; 3] = [Self::Collate, Self::Transform, Self::Decode];
}

const LEVELS: usize = Level::ALL.len();

type Task = Box<dyn FnOnce(&mut Worker) + Send>;

/// A task that is in no queue yet.
pub(crate) struct Prepared {
    level: Level,
    task: Task,
}

/// What a task finds on its thread: values kept from task to task.
#[derive(Default)]
pub(crate) struct Worker {
    scratch: HashMap<TypeId, Box<dyn Any + Send>>,
}

impl Worker {
    /// This thread's value of type `T`, made at its first use.
    pub(crate) fn scratch<T: Any + Default + Send>(&mut self) -> &mut T {
        let slot = self.scratch.entry(TypeId::of::<T>()).or_insert_with(|| Box::<T>::default());
        slot.downcast_mut().expect("keyed by its type")
    }
}

/// Workers and their queues, one queue a level.
///
/// A free worker takes the oldest task of the lowest level that has one. Dropping the pool ends it: running tasks are waited for, waiting tasks are
/// dropped.
pub(crate) struct Pool {
    queues: Vec<Sender<Task>>,
    waiting: Vec<Receiver<Task>>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
    /// The process that the workers are in. A process that was forked off has none of them.
    pub(crate) process: u32,
    /// The caller's own worker, for pools without threads.
    own: Mutex<Worker>,
    /// The number of running tasks, by level.
    running: Arc<[AtomicUsize; LEVELS]>,
}

impl Pool {
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn new(scheduler: Scheduler) -> Result<Self> {
        let (queues, waiting): (Vec<_>, Vec<_>) = (0..LEVELS).map(|_| unbounded::<Task>()).unzip();
        let (stop, stopped) = unbounded::<()>();
        let mut pool = Self {
            queues,
            waiting,
            stop: Some(stop),
            threads: Vec::new(),
            process: std::process::id(),
            own: Mutex::default(),
            running: Arc::default(),
        };
        let (threads, neighbour) = (scheduler.num_threads(), scheduler.neighbour());
        for i in 0..threads {
            let (waiting, stopped) = (pool.waiting.clone(), stopped.clone());
            let thread = std::thread::Builder::new()
                .name(format!("forebay-{i}"))
                .spawn(move || {
                    never_preempt();
                    neighbour.apply();
                    work(&waiting, &stopped);
                })
                .map_err(|e| Error::config(format!("cannot start worker {i} of {threads}")).because(e))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Prepares a task for the queue of its level.
    pub(crate) fn prepare(&self, level: Level, task: impl FnOnce(&mut Worker) + Send + 'static) -> Prepared {
        let running = self.running.clone();
        let task = move |worker: &mut Worker| {
            running[level as usize].fetch_add(1, Ordering::Relaxed);
            task(worker);
            running[level as usize].fetch_sub(1, Ordering::Relaxed);
        };
        Prepared { level, task: Box::new(task) }
    }

    /// Prepares a task that is not work of its level, only as urgent: nobody waits for what it does.
    pub(crate) fn prepare_errand(&self, level: Level, task: impl FnOnce(&mut Worker) + Send + 'static) -> Prepared {
        Prepared { level, task: Box::new(task) }
    }

    /// Puts a task into its queue, and wakes a worker that has nothing to do.
    pub(crate) fn submit(&self, Prepared { level, task }: Prepared) {
        // The receivers live as long as the pool.
        _ = self.queues[level as usize].send(task);
    }

    /// Whether this process was forked off the pool's process, and so has none of its threads.
    pub(crate) fn is_inherited(&self) -> bool {
        self.process != std::process::id()
    }

    /// What work of a level waits for: that level itself if a task of it runs, else the level that most workers are busy with.
    pub(crate) fn busy_instead_of(&self, level: Level) -> Level {
        let running = |level: &Level| self.running[*level as usize].load(Ordering::Relaxed);
        if running(&level) > 0 {
            return level;
        }
        Level::ALL.into_iter().filter(|level| running(level) > 0).max_by_key(running).unwrap_or(level)
    }

    /// Runs the next task on the calling thread, for pools without threads. Returns whether there was one.
    pub(crate) fn run_one(&self) -> bool {
        let Some(task) = self.waiting.iter().find_map(|queue| queue.try_recv().ok()) else { return false };
        let mut worker = self.own.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        task(&mut worker);
        true
    }
}

fn work(waiting: &[Receiver<Task>], stopped: &Receiver<()>) {
    let [collate, transform, decode] = waiting else { unreachable!("one queue a level") };
    let mut worker = Worker::default();
    loop {
        let task = select_biased! {
            recv(stopped) -> _ => return,
            recv(collate) -> task => task,
            recv(transform) -> task => task,
            recv(decode) -> task => task,
        };
        let Ok(task) = task else { return };
        task(&mut worker);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.queues.clear();
        if self.is_inherited() {
            // There is nobody to wait for.
            return self.threads.drain(..).for_each(std::mem::forget);
        }
        let own: ThreadId = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != own) {
            // A worker ends with its task; panics of tasks were caught and reported where they ran.
            _ = thread.join();
        }
    }
}

/// Runs `f`; a panic becomes an error.
pub(crate) fn no_panic<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// The error of a panic.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::new(ErrorKind::Panicked, format!("panicked: {}", text.unwrap_or("no message")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn work_nearest_to_the_consumer_goes_first() {
        let pool = Pool::new(Scheduler::single_threaded()).unwrap();
        let (log, order) = mpsc::channel();
        for (level, name) in
            [(Level::Decode, 'c'), (Level::Transform, 'b'), (Level::Decode, 'd'), (Level::Collate, 'a')]
        {
            let log = log.clone();
            pool.submit(pool.prepare(level, move |_| log.send(name).unwrap()));
        }
        while pool.run_one() {}
        drop(log);
        assert_eq!(order.iter().collect::<String>(), "abcd");
    }

    #[test]
    fn dropping_the_pool_ends_its_threads_and_drops_what_waits() {
        let pool = Pool::new(Scheduler::threads(2)).unwrap();
        let (ran, counted) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        for _ in 0..100 {
            let (ran, counted) = (ran.clone(), counted.clone());
            pool.submit(pool.prepare(Level::Decode, move |_| {
                ran.fetch_add(1, Ordering::Relaxed);
                drop(counted);
            }));
        }
        drop(pool);
        assert_eq!(Arc::strong_count(&counted), 1, "no task is left behind");
    }

    #[test]
    fn workers_are_as_many_as_was_said_or_as_there_are_cores() {
        let cores = num_cores();
        for (scheduler, threads) in [
            (Scheduler::default(), cores),
            (Scheduler::default().cores(0..7), 7),
            (Scheduler::default().off_this_core().cores(0..7), 6),
            (Scheduler::default().cores([5]).off_this_core(), 1),
            (Scheduler::threads(3).cores(0..7).off_this_core(), 3),
            (Scheduler::share(1.0), cores),
            (Scheduler::share(7.5), cores),
            (Scheduler::share(0.0), 1),
            (Scheduler::share(f64::NAN), 1),
        ] {
            assert_eq!(scheduler.num_threads(), threads, "{scheduler:?}");
        }
        let error = Scheduler::single_threaded().niceness(1).settle().unwrap_err().to_string();
        assert!(error.contains("Scheduler::threads(n)"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn workers_are_good_neighbours_from_their_first_task_on() {
        use crate::engine::neighbour::seen_of_this_thread;
        let own = seen_of_this_thread();
        let core: usize = own.0.split(['-', ',']).next().unwrap().parse().unwrap();
        // Nicer than the process: less is refused.
        let nice = (own.1 + 7).min(19) as i8;
        let scheduler = Scheduler::threads(3).cores([core]).niceness(nice).settle().unwrap();
        let pool = Pool::new(scheduler).unwrap();
        let (log, seen) = mpsc::channel();
        for _ in 0..30 {
            let log = log.clone();
            pool.submit(pool.prepare(Level::Decode, move |_| log.send(seen_of_this_thread()).unwrap()));
        }
        drop(log);
        assert_eq!(
            seen.iter().collect::<Vec<_>>(),
            vec![(core.to_string(), nice.into(), libc::SCHED_BATCH.into()); 30]
        );
        assert_eq!(seen_of_this_thread(), own, "the thread that starts them stays as it is");
    }

    #[test]
    fn scratch_is_kept_from_task_to_task() {
        let pool = Pool::new(Scheduler::single_threaded()).unwrap();
        let (log, seen) = mpsc::channel();
        for _ in 0..3 {
            let log = log.clone();
            pool.submit(pool.prepare(Level::Decode, move |worker| {
                let counter = worker.scratch::<u32>();
                *counter += 1;
                log.send(*counter).unwrap();
            }));
        }
        while pool.run_one() {}
        drop(log);
        assert_eq!(seen.iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn panics_become_errors() {
        let error = no_panic::<()>(|| panic!("boom {}", 7)).unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Panicked, "panicked: boom 7"));
    }
}
