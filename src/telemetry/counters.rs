//! What is counted while a loader runs: per block, chunk or batch, never per row.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counters of one stage.
#[derive(Debug, Default)]
pub(crate) struct StageCounter {
    rows: AtomicU64,
    bytes: AtomicU64,
    /// Tokens that the stage laid out, and the padding that filled up their rows.
    tokens: AtomicU64,
    padding: AtomicU64,
    /// Nanoseconds that threads spent in the stage, summed over threads.
    busy: AtomicU64,
    /// Nanoseconds in which the stage stood still because its input was not there.
    input: AtomicU64,
    /// Nanoseconds in which the stage stood still because there was no room for its output.
    room: AtomicU64,
}

impl StageCounter {
    pub(crate) fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn pad(&self, tokens: u64, padding: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.padding.fetch_add(padding, Ordering::Relaxed);
    }

    /// Tokens and padding.
    pub(crate) fn padding(&self) -> (u64, u64) {
        (self.tokens.load(Ordering::Relaxed), self.padding.load(Ordering::Relaxed))
    }

    pub(crate) fn busy(&self, time: Duration) {
        self.busy.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn waited_for_input(&self, time: Duration) {
        self.input.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn waited_for_room(&self, time: Duration) {
        self.room.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Busy, waiting for input, waiting for room.
    pub(crate) fn times(&self) -> [Duration; 3] {
        [&self.busy, &self.input, &self.room].map(|nanos| Duration::from_nanos(nanos.load(Ordering::Relaxed)))
    }
}

/// What the loop can wait for, as far as one moment shows. The tasks of a level do several things in turn; [`Report`](super::Report) divides their
/// time by how long each took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitedFor {
    /// The memory budget: a block could not be asked for.
    Budget,
    /// The store's answer to a request: nothing that is needed next has come yet.
    FirstByte,
    /// The rest of what a store has begun to send.
    Bandwidth,
    /// Decoding of records to columns.
    Decode,
    /// Tasks that gather rows and apply the functions of the graph.
    Evaluate,
    /// Tasks that make batches: functions of whole batches, images, laying out, the copy to the device.
    Assemble,
    /// The other iterators of a split loader, which have not taken their parts yet.
    Lanes,
}

impl WaitedFor {
    const COUNT: usize = Self::Lanes as usize + 1;
}

/// All counters of a loader.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Decisions: the time for which the lock of a run was held.
    pub(crate) plan: StageCounter,
    pub(crate) read: StageCounter,
    pub(crate) decode: StageCounter,
    pub(crate) transform: StageCounter,
    pub(crate) image: StageCounter,
    pub(crate) collate: StageCounter,
    pub(crate) deliver: StageCounter,
    /// Operations on the device, on the loop's thread.
    pub(crate) on_device: StageCounter,
    /// Batches and samples that the loop has taken.
    batches: AtomicU64,
    samples: AtomicU64,
    /// Nanoseconds that `next()` blocked, by what it waited for.
    waited: [AtomicU64; WaitedFor::COUNT],
    /// Nanoseconds between one `next()` and the following one.
    looped: AtomicU64,
}

impl Counters {
    pub(crate) fn waited(&self, what: WaitedFor, time: Duration) {
        self.waited[what as usize].fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn wait(&self, what: WaitedFor) -> Duration {
        Duration::from_nanos(self.waited[what as usize].load(Ordering::Relaxed))
    }

    /// Counts a batch that the loop has taken.
    pub(crate) fn delivered(&self, samples: usize) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.samples.fetch_add(samples as u64, Ordering::Relaxed);
    }

    /// Batches and samples that the loop has taken.
    pub(crate) fn taken(&self) -> (u64, u64) {
        (self.batches.load(Ordering::Relaxed), self.samples.load(Ordering::Relaxed))
    }

    pub(crate) fn looped(&self, time: Duration) {
        self.looped.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn loop_time(&self) -> Duration {
        Duration::from_nanos(self.looped.load(Ordering::Relaxed))
    }
}

/// The counters of a function of the graph, and where it is applied.
pub(crate) struct FunctionCounter {
    pub(crate) name: String,
    pub(crate) counter: Arc<StageCounter>,
    /// Whether it is applied to whole batches, where these are made.
    pub(crate) on_batches: bool,
    pub(crate) decodes_images: bool,
}

/// Measures the time from one change of state to the next.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    /// Time since the last lap ended.
    pub(crate) fn since(&self) -> Duration {
        self.0.elapsed()
    }

    /// When the last lap ended, and now.
    pub(crate) fn lap(&mut self) -> (Instant, Instant) {
        let now = Instant::now();
        (std::mem::replace(&mut self.0, now), now)
    }
}
