//! The counters as a table and a sentence.

use std::fmt;
use std::time::Duration;

use super::counters::{Counters, NamedCounter, StageCounter, WaitedFor};
use crate::error::Error;

/// What a loader has done so far, stage by stage, and what its loop waited for.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// # let numbers = arrow::array::Int64Array::from_iter_values(0..100);
/// # let dataset = forebay::Dataset::from_columns([("x", Arc::new(numbers) as _)])?.batch(10);
/// let mut loader = dataset.loader().build()?;
/// for batch in &mut loader {
///     batch?;
/// }
/// let report = loader.report();
/// assert_eq!((report.batches, report.samples), (10, 100));
/// println!("{report}");
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Every stage, from the source down.
    pub stages: Vec<StageReport>,
    /// Batches that the loop has taken, summed over the iterators of a [split](crate::Loader::split). Stages may have done more: they
    /// work ahead, beyond the end of an epoch too.
    pub batches: u64,
    /// Samples in them.
    pub samples: u64,
    /// Time in which `next()` blocked, by what it waited for.
    pub waited: Vec<(&'static str, Duration)>,
    /// Time that the loop spent between calls of `next()`.
    pub looped: Duration,
    /// The most bytes that were in flight at a time.
    pub peak_bytes: u64,
    /// The budget.
    pub budget_bytes: u64,
    /// Records that were left out, as [`Skip`](crate::Skip) allowed, in the order in which they would have been delivered: the first 10,000.
    pub skipped: Vec<Skipped>,
    /// How many were left out in all.
    pub num_skipped: u64,
    /// Remarks on the plan: how coarse the mixing is, what was read without an index.
    pub notes: Vec<String>,
}

/// A record that was left out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Skipped {
    /// The epoch.
    pub epoch: u64,
    /// What is wrong with it, and where it is.
    pub error: Error,
    /// Its term in the ledger.
    pub(crate) term: u128,
}

impl Skipped {
    pub(crate) fn new(epoch: u64, error: Error, term: u128) -> Self {
        Self { epoch, error, term }
    }
}

/// One stage's counters.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StageReport {
    /// `read`, `decode`, `transform`, the name of a function, `image`, `collate`, `deliver`.
    pub name: String,
    /// Rows that went through.
    pub rows: u64,
    /// Bytes that came out.
    pub bytes: u64,
    /// Time that threads spent in it, summed over threads.
    pub busy: Duration,
    /// Time in which it stood still for want of input.
    pub waited_for_input: Duration,
    /// Time in which it stood still for want of room downstream (or in the budget).
    pub waited_for_room: Duration,
}

impl Report {
    pub(crate) fn new(
        counters: &Counters,
        functions: &[NamedCounter],
        (peak, budget): (u64, u64),
        (skipped, num_skipped): (Vec<Skipped>, u64),
        notes: Vec<String>,
    ) -> Self {
        let stage = |name: &str, counter: &StageCounter| {
            let [busy, waited_for_input, waited_for_room] = counter.times();
            StageReport {
                name: name.to_owned(),
                rows: counter.rows(),
                bytes: counter.bytes(),
                busy,
                waited_for_input,
                waited_for_room,
            }
        };
        let mut stages = vec![
            stage("read", &counters.read),
            stage("decode", &counters.decode),
            stage("transform", &counters.transform),
        ];
        stages.extend(functions.iter().map(|(name, counter)| stage(name, counter)));
        if counters.image.rows() > 0 {
            stages.push(stage("image", &counters.image));
        }
        stages.extend([stage("collate", &counters.collate), stage("deliver", &counters.deliver)]);
        let (batches, samples) = counters.taken();
        Self {
            stages,
            batches,
            samples,
            waited: counters.waits().map(|(what, time)| (what.name(), time)).collect(),
            looped: counters.loop_time(),
            peak_bytes: peak,
            budget_bytes: budget,
            skipped,
            num_skipped,
            notes,
        }
    }

    /// The counters of a stage.
    pub fn stage(&self, name: &str) -> Option<&StageReport> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// Time in which `next()` blocked, in all.
    pub fn total_wait(&self) -> Duration {
        self.waited.iter().map(|(_, time)| *time).sum()
    }

    /// The share of its time that the loop waited, 0 to 1.
    pub fn wait_share(&self) -> f64 {
        let total = self.total_wait() + self.looped;
        if total.is_zero() { 0.0 } else { self.total_wait().as_secs_f64() / total.as_secs_f64() }
    }

    /// The stage that the loop waited for most, if it waited.
    pub fn bottleneck(&self) -> Option<&'static str> {
        self.waited.iter().max_by_key(|(_, time)| *time).filter(|(_, time)| !time.is_zero()).map(|(name, _)| *name)
    }

    fn advice(&self) -> String {
        let Some(stage) = self.bottleneck() else { return "the loop never waited".into() };
        let what = WaitedFor::ALL.into_iter().find(|what| what.name() == stage).expect("named after one of them");
        let advice = match what {
            WaitedFor::Budget => "a larger .budget(), a smaller shuffle buffer or less prefetch",
            WaitedFor::Read => "a nearer or faster store, or fewer bytes a sample",
            WaitedFor::Decode => "fewer .columns(), uncompressed shards, or more threads",
            WaitedFor::Transform => "faster functions, or more threads",
            WaitedFor::Image => "more threads, smaller stored images, or u8 instead of f32",
            WaitedFor::Collate => "more threads, or fewer columns",
            WaitedFor::Deliver => "fewer bytes a batch: u8 instead of f32, normalised on the device",
        };
        format!(
            "the loop waited {:.0} % of its time, most for {stage}; what would help: {advice}",
            self.wait_share() * 100.0
        )
    }
}

/// Bad records that are printed; the rest is in [`Report::skipped`].
const PRINTED: usize = 100;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0).max(5);
        writeln!(
            f,
            "{:width$}  {:>12}  {:>12}  {:>9}  {:>9}  {:>9}",
            "stage", "rows", "MiB", "busy s", "no input", "no room"
        )?;
        for stage in &self.stages {
            let mebibytes = stage.bytes as f64 / f64::from(1 << 20);
            writeln!(
                f,
                "{:width$}  {:>12}  {mebibytes:>12.1}  {:>9.3}  {:>9.3}  {:>9.3}",
                stage.name,
                stage.rows,
                stage.busy.as_secs_f64(),
                stage.waited_for_input.as_secs_f64(),
                stage.waited_for_room.as_secs_f64(),
            )?;
        }
        let waits = self.waited.iter().filter(|(_, time)| !time.is_zero());
        let waits: Vec<String> = waits.map(|(name, time)| format!("{name} {:.3} s", time.as_secs_f64())).collect();
        writeln!(
            f,
            "{} batches, {} samples; loop {:.3} s, waited {:.3} s{}{}",
            self.batches,
            self.samples,
            self.looped.as_secs_f64(),
            self.total_wait().as_secs_f64(),
            if waits.is_empty() { "" } else { ": " },
            waits.join(", ")
        )?;
        writeln!(
            f,
            "peak {:.1} MiB of a budget of {:.1} MiB",
            self.peak_bytes as f64 / f64::from(1 << 20),
            self.budget_bytes as f64 / f64::from(1 << 20)
        )?;
        if self.num_skipped > 0 {
            writeln!(f, "left out {} bad records:", self.num_skipped)?;
            for Skipped { epoch, error, .. } in self.skipped.iter().take(PRINTED) {
                writeln!(f, "  epoch {epoch}: {error}")?;
            }
            if self.num_skipped > PRINTED as u64 {
                writeln!(f, "  and {} more", self.num_skipped - PRINTED as u64)?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        write!(f, "{}", self.advice())
    }
}
