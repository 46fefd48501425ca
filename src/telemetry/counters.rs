//! What is counted, while it happens. Counted per block, chunk or batch, never per row.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counters of one stage.
#[derive(Debug, Default)]
pub(crate) struct StageCounter {
    rows: AtomicU64,
    bytes: AtomicU64,
    /// Nanoseconds that threads spent in it, summed over threads.
    busy: AtomicU64,
    /// Nanoseconds in which it stood still because its input was not there.
    input: AtomicU64,
    /// Nanoseconds in which it stood still because there was no room for its output.
    room: AtomicU64,
}

impl StageCounter {
    pub(crate) fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
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

/// What the loop can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitedFor {
    /// The memory budget: a block could not be asked for.
    Budget,
    /// Bytes of the store.
    Read,
    /// Records to columns.
    Decode,
    /// Gathering rows, and the user's functions.
    Transform,
    /// Decoding of images into the batch.
    Image,
    /// Laying rows into the batch.
    Collate,
    /// The copy to the device.
    Deliver,
}

impl WaitedFor {
    pub(crate) const ALL: [Self; 7] =
        [Self::Budget, Self::Read, Self::Decode, Self::Transform, Self::Image, Self::Collate, Self::Deliver];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Read => "read",
            Self::Decode => "decode",
            Self::Transform => "transform",
            Self::Image => "image",
            Self::Collate => "collate",
            Self::Deliver => "deliver",
        }
    }
}

/// All counters of a loader.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) read: StageCounter,
    pub(crate) decode: StageCounter,
    pub(crate) transform: StageCounter,
    pub(crate) image: StageCounter,
    pub(crate) collate: StageCounter,
    pub(crate) deliver: StageCounter,
    /// Batches and samples that the loop has taken.
    batches: AtomicU64,
    samples: AtomicU64,
    /// Nanoseconds that `next()` blocked, by what it waited for.
    waited: [AtomicU64; WaitedFor::ALL.len()],
    /// Nanoseconds between one `next()` and the following one.
    looped: AtomicU64,
}

impl Counters {
    pub(crate) fn waited(&self, what: WaitedFor, time: Duration) {
        self.waited[what as usize].fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn waits(&self) -> impl Iterator<Item = (WaitedFor, Duration)> {
        WaitedFor::ALL
            .into_iter()
            .map(|what| (what, Duration::from_nanos(self.waited[what as usize].load(Ordering::Relaxed))))
    }

    /// The loop has taken a batch.
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

/// A named stage's counters, for functions of the graph.
pub(crate) type NamedCounter = (String, Arc<StageCounter>);

/// Measures the time from one change of state to the next.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    /// Time since the last lap.
    pub(crate) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}
