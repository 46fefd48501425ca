//! The report: the counters as a table and a sentence.

use std::fmt;
use std::time::Duration;

use super::counters::{Counters, FunctionCounter, StageCounter, WaitedFor};
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
    /// Batches that the loop has taken, summed over the iterators of a [split](crate::Loader::split). Stages may have done more: they work ahead,
    /// even beyond the end of an epoch.
    pub batches: u64,
    /// Samples in these batches.
    pub samples: u64,
    /// Time in which `next()` blocked, by what it waited for: `budget`, `first byte` (the answer of a store), `bandwidth` (the rest of what the store
    /// sends; bytes of local files count as this), `decode` (records to columns), `transform` (gathering rows), each function by its name, `image`,
    /// `collate`, `deliver` (the copy to the device), `other iterators` (of a [split](crate::Loader::split) loader, which take their parts later),
    /// and `on device` (the time that `next()` itself took for operations there).
    pub waited: Vec<(String, Duration)>,
    /// Time that the loop spent between calls of `next()`: its own work.
    pub looped: Duration,
    /// The largest number of bytes in flight at a time.
    pub peak_bytes: u64,
    /// The budget in bytes.
    pub budget_bytes: u64,
    /// Records that were left out, as [`Skip`](crate::Skip) allowed, in the order in which they would have been delivered: the first 10,000.
    pub skipped: Vec<Skipped>,
    /// How many records were left out in all.
    pub num_skipped: u64,
    /// The rings of page-locked memory through which batches went to devices; empty for the CPU.
    pub rings: Vec<RingReport>,
    /// Remarks on the plan: how coarse the mixing is, what was read without an index.
    pub notes: Vec<String>,
}

/// A ring of page-locked memory, through which batches go to a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingReport {
    /// The number of the CUDA device.
    pub device: usize,
    /// Batches that the ring has room for.
    pub slots: usize,
    /// Its size in bytes, locked when the loader was built or first [split](crate::Loader::split) over its devices.
    pub bytes: u64,
    /// Batches that were handed over to the loop.
    pub crossed: u64,
    /// Batches among them whose copy was not done at the hand-over. The device waits for the rest of the copy, unless it has other work until then;
    /// the loop does not.
    pub late: u64,
    /// Batches that the times below cover: those that the device has come past. None with a driver older than CUDA 12.8.
    pub timed: u64,
    /// Bytes of these batches.
    pub timed_bytes: u64,
    /// How long their copies took, by the device's clock. For columns without a bound this includes the time that copies waited for pieces and for
    /// the workers that fill them.
    pub copying: Duration,
    /// How long the device had nothing to do for lack of a batch, by its own clock: from the moment when all work was done that the loop had queued
    /// before it asked for the batch, until the batch was there. Work on other streams is not seen.
    pub device_wait: Duration,
    /// The part of `device_wait` in which the batch was being copied.
    pub device_wait_for_copies: Duration,
}

/// A record that was left out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Skipped {
    /// The epoch.
    pub epoch: u64,
    /// What is wrong with the record, and where it is.
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
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StageReport {
    /// The stage's name: `plan` (decisions, which are taken one at a time), `read`, `decode`, `transform`, the name of a function, `image`,
    /// `collate`, `deliver`, `on device` (on a CUDA device: queueing the work).
    pub name: String,
    /// Rows that went through the stage.
    pub rows: u64,
    /// Bytes that came out of it.
    pub bytes: u64,
    /// Tokens that the stage laid out in rows: for a `pack`, those of the documents; for `collate`, the elements of ragged columns.
    pub tokens: u64,
    /// Padding that fills up these rows.
    pub padding: u64,
    /// Time that threads spent in the stage, summed over threads.
    pub busy: Duration,
    /// Time in which the stage stood still for lack of input.
    pub waited_for_input: Duration,
    /// Time in which the stage stood still for lack of room downstream (or in the budget).
    pub waited_for_room: Duration,
}

impl Report {
    pub(crate) fn new(
        counters: &Counters,
        functions: &[FunctionCounter],
        (peak, budget): (u64, u64),
        (skipped, num_skipped): (Vec<Skipped>, u64),
        notes: Vec<String>,
        rings: Vec<RingReport>,
    ) -> Self {
        let mut stages = vec![
            StageReport::new("plan", [&counters.plan]),
            StageReport::new("read", [&counters.read]),
            StageReport::new("decode", [&counters.decode]),
            StageReport::new("transform", [&counters.transform]),
        ];
        let users = functions.iter().filter(|function| !function.decodes_images);
        stages.extend(users.map(|function| StageReport::new(&function.name, [&*function.counter])));
        let decoders = functions.iter().filter(|function| function.decodes_images).map(|function| &*function.counter);
        let image = StageReport::new("image", decoders.chain([&counters.image]));
        if image.rows > 0 {
            stages.push(image);
        }
        stages.extend([
            StageReport::new("collate", [&counters.collate]),
            StageReport::new("deliver", [&counters.deliver]),
        ]);
        let on_device = StageReport::new(ON_DEVICE, [&counters.on_device]);
        if on_device.rows > 0 {
            stages.push(on_device);
        }
        let (batches, samples) = counters.taken();
        Self {
            stages,
            batches,
            samples,
            waited: waits(counters, functions),
            looped: counters.loop_time(),
            peak_bytes: peak,
            budget_bytes: budget,
            skipped,
            num_skipped,
            rings,
            notes,
        }
    }

    /// Returns the counters of a stage.
    pub fn stage(&self, name: &str) -> Option<&StageReport> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// Returns the total time in which `next()` blocked.
    pub fn total_wait(&self) -> Duration {
        self.waited.iter().map(|(_, time)| *time).sum()
    }

    /// Returns the share of its time that the loop waited, 0 to 1.
    pub fn wait_share(&self) -> f64 {
        let total = self.total_wait() + self.looped;
        if total.is_zero() { 0.0 } else { self.total_wait().as_secs_f64() / total.as_secs_f64() }
    }

    /// Returns what the loop waited for most, if it waited: a name in [`waited`](Self::waited).
    pub fn bottleneck(&self) -> Option<&str> {
        let longest = self.waited.iter().max_by_key(|(_, time)| *time);
        longest.filter(|(_, time)| !time.is_zero()).map(|(name, _)| &**name)
    }

    /// The share of the loop's time in which its devices stood still for lack of a batch, and the share of that in which the batch was being copied.
    /// `None` unless all batches went to devices that report times.
    fn device_wait(&self) -> Option<(f64, f64)> {
        let total = (self.total_wait() + self.looped).as_secs_f64();
        let used = || self.rings.iter().filter(|ring| ring.crossed > 0);
        let crossed: u64 = used().map(|ring| ring.crossed).sum();
        // A batch is counted as taken behind its hand-over.
        let tell = crossed > 0 && crossed >= self.batches && used().all(|ring| ring.timed > 0);
        let wait: f64 = used().map(|ring| ring.device_wait.as_secs_f64()).sum();
        let for_copies: f64 = used().map(|ring| ring.device_wait_for_copies.as_secs_f64()).sum();
        (tell && total > 0.0).then(|| (wait / total, if wait > 0.0 { for_copies / wait } else { 0.0 }))
    }

    fn advice(&self) -> String {
        let share = self.wait_share() * 100.0;
        let device = self.device_wait().map(|(wait, for_copies)| (wait * 100.0, for_copies));
        match device {
            Some((wait, _)) if wait < LITTLE_OF_A_DEVICE => {
                return format!(
                    "the loop waited {share:.1} % of its time, its device {wait:.1} %: what is done with the batches is what takes the time, and a faster loader would not help"
                );
            }
            Some((wait, for_copies)) if for_copies > 0.5 => {
                return format!(
                    "the device stood still for {wait:.1} % of the loop's time, most of it until a batch was copied; what would help: more .prefetch(), or fewer bytes a batch: u8 instead of f32, normalised on the device"
                );
            }
            _ => {}
        }
        let Some(name) = self.bottleneck() else { return "the loop never waited".into() };
        if share < LITTLE && device.is_none() {
            return format!(
                "the loop waited {share:.1} % of its time: what it does with its batches is what takes the time, and a faster loader would not \
                 help"
            );
        }
        let advice = match name {
            "budget" => "a larger .budget(), a smaller shuffle buffer or less prefetch",
            "first byte" => "a nearer store, or more requests at a time: a larger .budget(), StoreOptions::concurrency",
            "bandwidth" => {
                "a faster store or line, or fewer bytes a sample: fewer columns, smaller images, compression"
            }
            "decode" => "fewer .columns(), uncompressed shards, or more threads",
            "other iterators" => {
                "a thread for each iterator of the split loader, and equal work in each: the slowest sets the pace"
            }
            "transform" => "more threads, or columns of fewer bytes",
            "image" => "more threads, smaller stored images, or u8 instead of f32",
            "collate" => "more threads, or fewer columns",
            ON_DEVICE => {
                "on the CPU, steps of Image instead: workers do them beside the loop; on a GPU it is the loop's own queue that is full"
            }
            "deliver" => "fewer bytes a batch: u8 instead of f32, normalised on the device",
            _ => "a faster function, or more threads",
        };
        let device = device.map_or(String::new(), |(wait, _)| format!(", and its device {wait:.0} %"));
        format!("the loop waited {share:.0} % of its time{device}, most for {name}; what would help: {advice}")
    }
}

/// The stage of operations on the device.
const ON_DEVICE: &str = "on device";

/// Percentages of the loop's time that the loop, and its device, may wait before there is anything to gain.
const LITTLE: f64 = 5.0;
const LITTLE_OF_A_DEVICE: f64 = 1.0;

impl StageReport {
    /// Returns the share of padding in what the stage laid out, 0 to 1; `None` if it laid out nothing.
    pub fn padding_share(&self) -> Option<f64> {
        let all = self.tokens + self.padding;
        (all > 0).then(|| self.padding as f64 / all as f64)
    }

    fn new<'a>(name: &str, counters: impl IntoIterator<Item = &'a StageCounter>) -> Self {
        let mut report = Self { name: name.to_owned(), ..Self::default() };
        for counter in counters {
            let [busy, waited_for_input, waited_for_room] = counter.times();
            report.rows += counter.rows();
            report.bytes += counter.bytes();
            let (tokens, padding) = counter.padding();
            report.tokens += tokens;
            report.padding += padding;
            report.busy += busy;
            report.waited_for_input += waited_for_input;
            report.waited_for_room += waited_for_room;
        }
        report
    }
}

/// What the loop waited for. The wait for the tasks of a level is divided among the stages that these tasks ran, by how busy each stage was.
fn waits(counters: &Counters, functions: &[FunctionCounter]) -> Vec<(String, Duration)> {
    let busy = |counter: &StageCounter| counter.times()[0];
    let of = |on_batches: bool| functions.iter().filter(move |function| function.on_batches == on_batches);
    let named = |function: &FunctionCounter| {
        let name = if function.decodes_images { "image" } else { &function.name };
        (name.to_owned(), busy(&function.counter))
    };
    let gathering = ("transform".to_owned(), busy(&counters.transform));
    let evaluating: Vec<_> = [gathering].into_iter().chain(of(false).map(named)).collect();
    let stages = [("collate", &counters.collate), ("image", &counters.image), ("deliver", &counters.deliver)];
    let assembling: Vec<_> =
        stages.map(|(name, counter)| (name.to_owned(), busy(counter))).into_iter().chain(of(true).map(named)).collect();
    let plain = [
        ("budget", WaitedFor::Budget),
        ("first byte", WaitedFor::FirstByte),
        ("bandwidth", WaitedFor::Bandwidth),
        ("decode", WaitedFor::Decode),
        ("other iterators", WaitedFor::Lanes),
    ];
    let mut waits: Vec<_> = plain.map(|(name, what)| (name.to_owned(), counters.wait(what))).into();
    let levels = [(evaluating, WaitedFor::Evaluate), (assembling, WaitedFor::Assemble)];
    for (name, time) in levels.into_iter().flat_map(|(parts, what)| share_out(counters.wait(what), parts)) {
        match waits.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += time,
            None => waits.push((name, time)),
        }
    }
    let on_device = busy(&counters.on_device);
    if !on_device.is_zero() {
        waits.push((ON_DEVICE.to_owned(), on_device));
    }
    waits
}

/// Divides a time in proportion to how busy the parts were. The first part gets all of it if none was busy.
fn share_out(time: Duration, parts: Vec<(String, Duration)>) -> impl Iterator<Item = (String, Duration)> {
    let sum: f64 = parts.iter().map(|(_, busy)| busy.as_secs_f64()).sum();
    parts.into_iter().enumerate().map(move |(i, (name, busy))| {
        let share = match (sum > 0.0, i) {
            (true, _) => busy.as_secs_f64() / sum,
            (false, 0) => 1.0,
            (false, _) => 0.0,
        };
        (name, time.mul_f64(share))
    })
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
        for stage in &self.stages {
            if let Some(share) = stage.padding_share() {
                let all = stage.tokens + stage.padding;
                writeln!(f, "{}: {:.2} % padding in {all} elements", stage.name, share * 100.0)?;
            }
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
        for ring in self.rings.iter().filter(|ring| ring.timed > 0) {
            let (wait, for_copies) = (ring.device_wait.as_secs_f64(), ring.device_wait_for_copies.as_secs_f64());
            writeln!(
                f,
                "cuda:{}: {} batches of {:.1} MiB copied in {:.3} s; it stood still for lack of one for {wait:.3} s, {for_copies:.3} s of which for its copy",
                ring.device,
                ring.timed,
                ring.timed_bytes as f64 / f64::from(1 << 20) / ring.timed as f64,
                ring.copying.as_secs_f64(),
            )?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A report of a loop that worked for ten seconds and took 100 batches from a device's ring.
    fn of(waited: f64, device_wait: f64, for_copies: f64) -> String {
        let counters = Counters::default();
        counters.waited(WaitedFor::Decode, Duration::from_secs_f64(waited));
        counters.looped(Duration::from_secs_f64(10.0 - waited));
        (0..100).for_each(|_| counters.delivered(8));
        let seconds = Duration::from_secs_f64;
        let ring = RingReport {
            crossed: 100,
            timed: 100,
            device_wait: seconds(device_wait),
            device_wait_for_copies: seconds(for_copies),
            ..RingReport::default()
        };
        // That of the loader itself is not used where its batches are split.
        let rings = vec![RingReport::default(), ring];
        Report::new(&counters, &[], (0, 0), (Vec::new(), 0), Vec::new(), rings).advice()
    }

    #[test]
    fn advice_goes_by_what_the_device_waited_for() {
        for (waited, device_wait, for_copies, said) in [
            (4.0, 0.05, 0.0, "the loop waited 40.0 % of its time, its device 0.5 %"),
            (0.0, 0.0, 0.0, "its device 0.0 %"),
            // The loop is not kept waiting for copies, but its device is.
            (
                0.1,
                3.0,
                2.9,
                "the device stood still for 30.0 % of the loop's time, most of it until a batch was copied",
            ),
            (4.0, 3.0, 0.2, "the loop waited 40 % of its time, and its device 30 %, most for decode"),
        ] {
            let advice = of(waited, device_wait, for_copies);
            assert!(advice.contains(said), "{advice}");
        }
    }
}
