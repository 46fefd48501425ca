//! `forebay bench`: measures whole loaders, over whole epochs or by the accelerators that they feed, and compares them with what the machine can do
//! at all.

mod args;
#[cfg(feature = "parquet")]
mod columnar;
mod data;
mod documents;
mod emulate;
mod jitter;
mod limit;
mod preset;
mod print;
mod process;
mod search;
mod workload;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub(super) use args::{BenchArgs, EXAMPLES};
use emulate::{Emulation, Pace, Plan};
use jitter::Jitter;
use limit::Limit;
use search::{Search, median};
use serde::Serialize;
pub(super) use workload::Workload;
use workload::{Files, Input};

use super::shards::ShardArgs;
use super::terminal::Terminal;
use super::{Failure, Verdict};
use crate::dataset::Format;
use crate::engine::{Budget, Scheduler, budget};
use crate::error::{Error, ErrorKind, Result};
use crate::format::tfrecord::{FOOTER_BYTES, HEADER_BYTES};
use crate::loader::Loader;
use crate::plan::Shuffle;
use crate::store::StoreOptions;

/// The default time for which accelerators run, and loaders with which they are compared.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// Bytes of a record's header and footer.
const OVERHEAD: u64 = (HEADER_BYTES + FOOTER_BYTES) as u64;

/// What was measured: the JSON object.
#[derive(Debug, Default, Serialize)]
struct Measured {
    workload: &'static str,
    samples_per_s: f64,
    /// For `pack`, over whole epochs: tokens without padding.
    tokens_per_s: Option<f64>,
    padding_share: Option<f64>,
    stored_bytes_per_s: f64,
    cpu_s: f64,
    samples_per_cpu_s: f64,
    first_batch_s: f64,
    peak_rss_bytes: Option<u64>,
    /// Resident memory at the end of each epoch.
    rss_bytes: Vec<u64>,
    wait_share: f64,
    wait_p50_s: f64,
    wait_p99_s: f64,
    wait_max_s: f64,
    /// What the loop waited for, over all epochs including the checked one (for a run with accelerators: over that run).
    waited_s: BTreeMap<String, f64>,
    /// How long the run's only lock was held.
    plan_s: f64,
    utilisation: f64,
    utilisation_after_first: f64,
    limit_samples_per_s: Option<f64>,
    of_limit: Option<f64>,
    limits: Vec<Limit>,
    threads: usize,
    epochs: u64,
    samples: u64,
    batches: u64,
    batch: usize,
    shuffle: String,
    wall_s: f64,
    /// The number of samples in the checked epoch, and a sum to which every one of them contributes.
    checked_samples: u64,
    checked_sum: String,
    /// Whether both match the data generated here; `None` if they are not known.
    checked: Option<bool>,
    /// For a workload of published sizes: those sizes, and that this is not a result of their benchmark.
    preset: Option<String>,
    /// The number of its files, and their bytes.
    files: Option<usize>,
    files_bytes: Option<u64>,
    /// The memory that the process may use.
    memory_bytes: Option<u64>,
    /// Whether that memory holds local files completely. If so, the checked epoch leaves them there, and the measured reads come from memory, not
    /// from a disk.
    fits_page_cache: Option<bool>,
    /// The bytes that were read, as a share of the bytes of the delivered samples: less if steps in flight at the same time share files.
    read_share: Option<f64>,
    /// With accelerators: all runs. The values above are those of the run with median utilisation.
    emulation: Option<Emulation>,
    search: Option<Search>,
    jitter: Option<Jitter>,
}

/// A workload, what it reads, and how.
struct Bench<'a> {
    args: &'a BenchArgs,
    input: Input,
    batch: usize,
    shuffle: Shuffle,
    /// Samples of an epoch, once one epoch has been read.
    rows: u64,
}

/// What one epoch held.
struct Checked {
    /// The number of samples; for `pack`, of tokens.
    samples: u64,
    sum: u64,
    first_batch: Option<Duration>,
}

impl Bench<'_> {
    fn loader(&self, batch: usize, endless: bool, scheduler: Scheduler) -> Result<Loader> {
        let mut dataset = self.args.workload.dataset(&self.input, self.args.u8, batch, self.shuffle, endless)?;
        if let Some(batches) = self.args.prefetch {
            dataset = dataset.prefetch(batches);
        }
        let budget = self.args.budget.map_or_else(Budget::default, Budget::mebibytes);
        let mut store = StoreOptions::new();
        if let Some(folder) = &self.args.cache {
            store = store.cache(folder, self.args.cache_size << 20);
        }
        dataset.loader().scheduler(scheduler).budget(budget).store(store).build()
    }

    /// Creates a loader of one epoch that does not end.
    fn endless(&self, batch: usize, scheduler: Scheduler) -> Result<Loader> {
        self.loader(batch, true, scheduler)
    }

    /// Reads the first epoch, and adds up its samples.
    fn check(&mut self, loader: &mut Loader, age: &dyn Fn() -> Duration) -> Result<Checked> {
        let mut checked = Checked { samples: 0, sum: 0, first_batch: None };
        for batch in loader.epoch(0) {
            let batch = batch?;
            checked.first_batch.get_or_insert_with(age);
            self.rows += batch.len() as u64;
            checked.samples += self.args.workload.count(&batch)?;
            checked.sum = checked.sum.wrapping_add(self.args.workload.sum(&batch, &self.input)?);
        }
        Ok(checked)
    }

    /// Returns the plan for this many accelerators with steps of this length.
    fn plan(&self, accelerators: u32, step: Duration) -> Plan {
        let of_epochs = |epochs: u64| (epochs * self.rows / (self.batch as u64 * u64::from(accelerators))).max(2);
        let long_enough = || (LONG_ENOUGH.as_secs_f64() / step.as_secs_f64()).clamp(20.0, 1e9).ceil() as u64;
        let steps = self.args.steps.or(self.args.epochs.map(of_epochs)).unwrap_or_else(long_enough);
        Plan { accelerators, steps, step, batch: self.batch }
    }
}

pub(super) fn run(args: &BenchArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    let start = Instant::now();
    args.check()?;
    let workload = args.workload;
    // What is measured beside a mock loop is compared with the loader that has no regard for it.
    let scheduler = if args.jitter { args.plain_scheduler() } else { args.scheduler() };
    let threads = scheduler.num_threads();
    let (input, expected) = input(args, threads, terminal)?;
    // What was spent on making data is no part of a program's start.
    let making = start.elapsed();
    let batch = args.batch.map_or(workload.default_batch(), |batch| batch as usize);
    let shuffle = args.shuffle.map_or(workload.default_shuffle(), |shuffle| shuffle.0);
    let mut bench = Bench { args, input, batch, shuffle, rows: 0 };
    let mut loader = bench.loader(batch, false, scheduler)?;
    let age = || process::age().unwrap_or(start.elapsed()).saturating_sub(making);
    let first = bench.check(&mut loader, &age).map_err(|error| match (workload, error.kind()) {
        (Workload::Features, ErrorKind::Schema) => error.advice("features reads f00 to f12, i00 to i25 and label"),
        _ => error,
    })?;
    let checked = expected.map(|expected| expected == (first.samples, first.sum));
    if checked == Some(false) {
        return Err(Error::new(ErrorKind::Corrupt, "the loader delivered other data than was made")
            .advice("remove the folder target/bench, and run again")
            .into());
    }
    if bench.rows == 0 && (args.pace().is_some() || args.jitter) {
        return Err(Error::new(ErrorKind::NotFound, "there are no samples to train on").into());
    }
    let (mut measured, loader) = match args.pace().filter(|_| !args.find_accelerators) {
        Some(pace) => {
            drop(loader);
            accelerators(&bench, scheduler, pace)?
        }
        None => {
            let measured = alone(&mut loader, args)?;
            (measured, loader)
        }
    };
    if workload == Workload::Pack && measured.emulation.is_none() {
        // Each epoch has the tokens that were counted in the first, in other rows.
        let (tokens, cells) = (first.samples * measured.epochs, measured.samples * u64::from(args.length));
        measured.tokens_per_s = Some(tokens as f64 / measured.wall_s);
        measured.padding_share = Some(1.0 - tokens as f64 / cells as f64);
    }
    let report = loader.report();
    if let Some(file) = &args.ledger {
        std::fs::write(file, serde_json::to_vec(&loader.ledger())?).map_err(|e| {
            Error::new(ErrorKind::Access, format!("the ledger cannot be written to {}", file.display())).because(e)
        })?;
    }
    drop(loader);
    if let Some(Pace::Step(step)) = args.pace().filter(|_| args.find_accelerators) {
        measured.search = Some(search::search(&bench, scheduler, step, measured.samples_per_s)?);
    }
    if args.jitter {
        let polite = args.polite_scheduler();
        measured.jitter = Some(jitter::jitter(&bench, scheduler, polite, measured.samples_per_s)?);
    }
    if args.limit || args.find_accelerators {
        let shards = ShardArgs { urls: bench.input.urls.clone(), threads: args.threads };
        let shards = if bench.input.urls.is_empty() { None } else { Some(shards.find()?) };
        measured.limits = limit::limits(workload, &bench.input, args.u8, batch, shuffle, shards.as_ref(), threads)?;
        measured.limit_samples_per_s = measured.limits.first().map(|limit| limit.samples_per_s);
        measured.of_limit = measured.limit_samples_per_s.map(|limit| measured.samples_per_s / limit);
    }
    measured.workload = workload.name();
    if let Some(Files { number, bytes, are_local }) = bench.input.files {
        let read = measured.stored_bytes_per_s / measured.samples_per_s;
        (measured.files, measured.files_bytes) = (Some(number), Some(bytes));
        measured.read_share = Some(read * bench.rows as f64 / bytes as f64);
        measured.memory_bytes = budget::usable_memory();
        measured.fits_page_cache = measured.memory_bytes.filter(|_| are_local).map(|memory| bytes < memory);
    }
    measured.preset = workload.preset().map(|preset| preset.note(args.demand.is_none()));
    (measured.threads, measured.batch, measured.shuffle) = (threads, batch, shuffle.to_string());
    measured.first_batch_s = first.first_batch.unwrap_or_default().as_secs_f64();
    (measured.checked_samples, measured.checked_sum) = (first.samples, format!("{:016x}", first.sum));
    measured.checked = checked;
    if terminal.is_json() {
        terminal.print_json(&measured)?;
    } else {
        print::print(&measured, terminal)?;
    }
    if args.report {
        terminal.note(format_args!("the loader's report\n{report}"));
    }
    Ok(Verdict::Good)
}

/// Returns what is read, and the sum of its samples if that is known.
fn input(args: &BenchArgs, threads: usize, terminal: &Terminal) -> Result<(Input, Option<(u64, u64)>)> {
    let workload = args.workload;
    let wanted = args.wanted();
    let samples = wanted.samples;
    let default_label = if workload == Workload::Image { "image/class/label" } else { "label" };
    let mut input = Input {
        urls: args.urls.clone(),
        files: None,
        image: args.image.clone(),
        label: args.label.clone().unwrap_or_else(|| default_label.to_owned()),
        record_bytes: data::RAW_BYTES,
        format: None,
        parquet: args.parquet(),
        rows: samples as i64,
        documents: None,
        pack: workload::pack(args.packing, args.length as usize, args.window),
    };
    if workload == Workload::Pack {
        input.urls.clear();
        let documents = documents::documents(samples)?;
        let expected = documents::sum(&documents);
        input.documents = Some(documents);
        return Ok((input, Some(expected)));
    }
    if workload == Workload::Tiny {
        input.urls.clear();
        return Ok((input, Some((samples, (samples * samples.saturating_sub(1) / 2)))));
    }
    if args.urls.is_empty() {
        let folder = data::folder(wanted);
        let made = data::made(wanted, &folder, threads, terminal)?;
        input.urls = made.urls(&folder);
        let sizes = input.urls.iter().map(|path| std::fs::metadata(path).map_or(0, |file| file.len()));
        let files = Files { number: input.urls.len(), bytes: sizes.sum(), are_local: true };
        input.files = workload.preset().map(|_| files);
        return Ok((input, Some((made.samples, made.sum))));
    }
    let shards = ShardArgs { urls: input.urls.clone(), threads: args.threads }.find()?;
    let format = args.format.of(&shards.objects)?;
    let is_tfrecord = matches!(format, Format::TfRecord(_));
    let (name, stated) = (workload.name(), format.name());
    if matches!(workload, Workload::Image | Workload::Features) {
        if args.limit && !is_tfrecord {
            return Err(Error::config(format!("--limit of {name} is of TFRecord, and the shards are {stated}"))
                .advice("leave it out"));
        }
        input.format = Some(format);
    } else if workload.is_columnar(input.parquet) {
        if !matches!(format, Format::Parquet(_)) {
            return Err(
                Error::config(format!("{name} reads Parquet, and the shards are {stated}")).url(input.urls[0].clone())
            );
        }
    } else if !is_tfrecord {
        return Err(Error::config(format!("{name} reads records of TFRecord, and the shards are {stated}"))
            .url(input.urls[0].clone())
            .advice("take `image` or `features` for other formats"));
    }
    if workload == Workload::Raw || workload.preset().is_some() {
        let files = Files {
            number: shards.objects.len(),
            bytes: shards.objects.iter().map(|object| object.size).sum(),
            are_local: shards.objects.iter().all(|object| shards.store.local_path(object).is_some()),
        };
        input.files = workload.preset().map(|_| files);
        if workload.preset().is_some_and(|preset| !preset.is_fixed()) {
            return Ok((input, None));
        }
        let (store, first) = (shards.store.clone(), shards.objects.first().cloned());
        let Some(first) = first.filter(|first| first.size >= 8) else {
            return Err(Error::new(ErrorKind::NotFound, "the first shard holds no record"));
        };
        let (url, size) = (first.url.clone(), first.size);
        let length = shards.io.wait(async move { store.read(&first, 0..8).await })?;
        let length = u64::from_le_bytes(length[..].try_into().expect("eight bytes were read"));
        if length.saturating_add(OVERHEAD) > size {
            return Err(Error::corrupt(format!("its first record would have {length} bytes"))
                .url(url)
                .advice(format!("{name} reads plain TFRecord whose records are of one size")));
        }
        input.record_bytes = length as usize;
    }
    Ok((input, None))
}

/// Measures what a loader did between two moments.
struct Meter {
    start: Instant,
    stored: u64,
    planned: Duration,
    cpu: Duration,
}

/// The result of a [`Meter`].
struct Used {
    wall_s: f64,
    stored_bytes: u64,
    plan_s: f64,
    cpu_s: f64,
}

impl Meter {
    fn start(loader: &Loader) -> Self {
        Self {
            stored: Self::stored(loader),
            planned: Self::planned(loader),
            cpu: process::cpu_time(),
            start: Instant::now(),
        }
    }

    fn stop(self, loader: &Loader) -> Used {
        Used {
            wall_s: self.start.elapsed().as_secs_f64(),
            stored_bytes: Self::stored(loader) - self.stored,
            plan_s: (Self::planned(loader) - self.planned).as_secs_f64(),
            cpu_s: (process::cpu_time() - self.cpu).as_secs_f64(),
        }
    }

    fn stored(loader: &Loader) -> u64 {
        loader.report().stage("read").map_or(0, |stage| stage.bytes)
    }

    fn planned(loader: &Loader) -> Duration {
        loader.report().stage("plan").map_or(Duration::ZERO, |stage| stage.busy)
    }
}

/// Returns the quantile of sorted times: the one below which this share of them lies; 1 is the longest.
fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default().as_secs_f64()
}

impl Measured {
    /// Returns the values that are measured in the same way with and without accelerators; `waits` has a wait for each batch, sorted.
    fn of(loader: &Loader, used: &Used, samples: u64, waits: &[Duration]) -> Self {
        Self {
            samples_per_s: samples as f64 / used.wall_s,
            stored_bytes_per_s: used.stored_bytes as f64 / used.wall_s,
            cpu_s: used.cpu_s,
            samples_per_cpu_s: samples as f64 / used.cpu_s.max(0.01),
            peak_rss_bytes: process::peak_resident_bytes(),
            wait_p50_s: quantile(waits, 0.5),
            wait_p99_s: quantile(waits, 0.99),
            wait_max_s: quantile(waits, 1.0),
            waited_s: loader.report().waited.into_iter().map(|(what, time)| (what, time.as_secs_f64())).collect(),
            plan_s: used.plan_s,
            samples,
            batches: waits.len() as u64,
            wall_s: used.wall_s,
            ..Self::default()
        }
    }
}

/// Measures the loader by itself. If accelerators are compared with it, it is measured as often as they run, and the result is the median.
fn alone(loader: &mut Loader, args: &BenchArgs) -> Result<Measured> {
    let times = if args.find_accelerators { args.num_runs() } else { 1 };
    // What was read ahead before counts little then, however small the data.
    let is_held_against = args.find_accelerators || args.jitter;
    let at_least = if is_held_against && args.epochs.is_none() { LONG_ENOUGH } else { Duration::ZERO };
    let mut all = (0..times).map(|_| measure(loader, args.num_epochs(), at_least)).collect::<Result<Vec<_>>>()?;
    let rates: Vec<f64> = all.iter().map(|measured| measured.samples_per_s).collect();
    let at = rates.iter().position(|rate| *rate == median(&rates)).unwrap_or(0);
    Ok(all.swap_remove(at))
}

/// Reads this many whole epochs, or more until enough time has passed, and does nothing with their batches.
fn measure(loader: &mut Loader, epochs: u64, at_least: Duration) -> Result<Measured> {
    let meter = Meter::start(loader);
    let (mut waits, mut samples, mut resident) = (Vec::new(), 0u64, Vec::new());
    let mut taken = 0;
    while taken < epochs || meter.start.elapsed() < at_least {
        taken += 1;
        let mut batches = loader.epoch(loader.next_epoch());
        loop {
            let asked = Instant::now();
            let Some(batch) = batches.next() else { break };
            waits.push(asked.elapsed());
            samples += batch?.len() as u64;
        }
        resident.extend(process::resident_bytes());
    }
    let used = meter.stop(loader);
    let waited = waits.iter().sum::<Duration>().as_secs_f64();
    let first_wait = waits.first().copied().unwrap_or_default().as_secs_f64();
    waits.sort_unstable();
    // The time that the loop did not wait.
    let busy = used.wall_s - waited;
    Ok(Measured {
        rss_bytes: resident,
        wait_share: waited / used.wall_s,
        utilisation: busy / used.wall_s,
        utilisation_after_first: busy / (used.wall_s - first_wait),
        epochs: taken,
        ..Measured::of(loader, &used, samples, &waits)
    })
}

/// Runs the accelerators as often as requested; returns the run of median utilisation, and the last run's loader.
fn accelerators(bench: &Bench<'_>, scheduler: Scheduler, pace: Pace) -> Result<(Measured, Loader)> {
    let (args, accelerators) = (bench.args, bench.args.accelerators);
    let (mut all, mut runs, mut last) = (Vec::new(), Vec::new(), None);
    for _ in 0..args.num_runs() {
        // One loader at a time.
        drop(last.take());
        let (measured, ran, loader) = emulate::emulate(bench, scheduler, accelerators, pace)?;
        all.push(measured);
        runs.push(ran);
        last = Some(loader);
    }
    let utilisations: Vec<f64> = all.iter().map(|measured| measured.utilisation_after_first).collect();
    let at = utilisations.iter().position(|utilisation| *utilisation == median(&utilisations)).unwrap_or(0);
    let mut measured = all.swap_remove(at);
    measured.epochs = measured.samples / bench.rows.max(1);
    let step_s = runs[at].step_s;
    let without_loader = emulate::without_loader(&bench.plan(accelerators, Duration::from_secs_f64(step_s)))?;
    let host_threads = emulate::num_threads(accelerators);
    measured.emulation = Some(Emulation { accelerators, host_threads, step_s, without_loader, runs });
    Ok((measured, last.expect("one run at least")))
}
