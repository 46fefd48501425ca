//! `forebay bench`: whole loaders, measured over whole epochs, beside what the machine can do at all.

#[cfg(feature = "parquet")]
mod columnar;
mod data;
mod documents;
mod limit;
mod process;
mod workload;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use limit::Limit;
use serde::Serialize;
use workload::Input;
pub(super) use workload::{Packing, Workload};

use super::shards::ShardArgs;
use super::terminal::{Mark, Terminal};
use super::{Failure, Verdict};
use crate::engine::Scheduler;
use crate::error::{Error, ErrorKind, Result};
use crate::loader::Loader;

/// Examples for `--help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  forebay bench image --limit
  forebay bench image gs://bucket/train-*.tfrecord --epochs 1
  forebay bench features --threads 2 --json
  forebay bench pack --packing concat --window 256 --limit
  forebay bench image --step-time 0.150";

/// Arguments of `forebay bench`.
#[derive(clap::Args, Debug)]
pub(super) struct BenchArgs {
    /// What to load.
    workload: Workload,
    /// Shards: paths or URLs, globs, ranges [default: data made from a seed and kept in target/bench].
    #[arg(value_name = "URL")]
    urls: Vec<String>,
    /// Threads of the loader, and of the limits [default: one for each core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Epochs that are measured, after one that warms up and is checked.
    #[arg(long, value_name = "E", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// Samples of a batch [default: 256 image, 4096 features, 400 raw, 1024 tiny, 32 tokens and pack, 16384 wide, 48 latents].
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Samples of the shuffle buffer, 0 for none [default: 1000 image, 100000 tiny, 10000 pack, 0].
    #[arg(long, value_name = "S")]
    shuffle: Option<u64>,
    /// Parquet compressed with snappy instead of zstd.
    #[arg(long)]
    snappy: bool,
    /// Images as u8, not normalised.
    #[arg(long)]
    u8: bool,
    /// Take each batch for so long, as a training step does.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    step_time: Option<Duration>,
    /// So many accelerators take turns: each takes every N-th batch, for --step-time.
    #[arg(long, value_name = "N", requires = "step_time", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    accelerators: u32,
    /// Measure the bare loops beside it.
    #[arg(long)]
    limit: bool,
    /// Samples of the data made here.
    #[arg(long, value_name = "N", conflicts_with = "urls", value_parser = clap::value_parser!(u64).range(1..))]
    samples: Option<u64>,
    /// How `pack` packs.
    #[arg(long, value_name = "HOW", default_value = "best-fit")]
    packing: Packing,
    /// Tokens of its rows.
    #[arg(long, value_name = "N", default_value_t = workload::PACKED as u32, value_parser = clap::value_parser!(u32).range(1..))]
    length: u32,
    /// Documents of a stream that it packs together.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    window: Option<u64>,
    /// The column of encoded images.
    #[arg(long, value_name = "COLUMN", default_value = "image/encoded")]
    image: String,
    /// The column of labels [default: image/class/label, label].
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// Save the loader's ledger, of all epochs, to this file.
    #[arg(long, value_name = "FILE")]
    ledger: Option<std::path::PathBuf>,
    /// Print the loader's report too.
    #[arg(long)]
    report: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

/// What was measured: the JSON object.
#[derive(Debug, Serialize)]
struct Measured {
    workload: &'static str,
    samples_per_s: f64,
    /// Of `pack`: without padding.
    tokens_per_s: Option<f64>,
    padding_share: Option<f64>,
    stored_bytes_per_s: f64,
    cpu_s: f64,
    samples_per_cpu_s: f64,
    first_batch_s: f64,
    peak_rss_bytes: Option<u64>,
    /// What was resident at the end of each epoch.
    rss_bytes: Vec<u64>,
    wait_share: f64,
    wait_p50_s: f64,
    wait_p99_s: f64,
    /// Of all epochs, the one that was checked included: what the loop waited for.
    waited_s: BTreeMap<String, f64>,
    /// Time for which the one lock of the run was held.
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
    wall_s: f64,
    /// Of the epoch that was checked: samples, and a sum that every one of them adds to.
    checked_samples: u64,
    checked_sum: String,
    /// Whether both are those of the data made here; `None` where they are not known.
    checked: Option<bool>,
}

pub(super) fn run(args: &BenchArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    let start = Instant::now();
    let workload = args.workload;
    let scheduler = args.threads.map_or_else(Scheduler::default, |threads| Scheduler::threads(threads.into()));
    let threads = scheduler.num_threads();
    let (input, expected) = input(args, threads, terminal)?;
    // What was spent on making data is no part of a program's start.
    let making = start.elapsed();
    let batch = args.batch.map_or(workload.default_batch(), |batch| batch as usize);
    let shuffle = args.shuffle.unwrap_or(workload.default_shuffle());
    let dataset = workload.dataset(&input, args.u8, batch, shuffle)?;
    let mut loader = dataset.loader().scheduler(scheduler).build()?;

    let (mut sum, mut samples, mut first_batch) = (0u64, 0, None);
    for batch in loader.epoch(0) {
        let batch = batch?;
        first_batch.get_or_insert_with(|| process::age().unwrap_or(start.elapsed()).saturating_sub(making));
        samples += workload.count(&batch)?;
        sum = sum.wrapping_add(workload.sum(&batch, &input)?);
    }
    let checked = expected.map(|expected| expected == (samples, sum));
    let mut measured = measure(&mut loader, args)?;
    if workload == Workload::Pack {
        // Each epoch has the tokens that were counted in the first.
        let (tokens, cells) = (samples * args.epochs, measured.samples * u64::from(args.length));
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
    if args.limit {
        let shards = ShardArgs { urls: input.urls.clone(), threads: args.threads };
        let shards = if input.urls.is_empty() { None } else { Some(shards.find()?) };
        measured.limits = limit::limits(workload, &input, args.u8, batch, shuffle, shards.as_ref(), threads)?;
        measured.limit_samples_per_s = measured.limits.first().map(|limit| limit.samples_per_s);
        measured.of_limit = measured.limit_samples_per_s.map(|limit| measured.samples_per_s / limit);
    }
    measured.threads = threads;
    measured.batch = batch;
    measured.first_batch_s = first_batch.unwrap_or_default().as_secs_f64();
    (measured.checked_samples, measured.checked_sum, measured.checked) = (samples, format!("{sum:016x}"), checked);
    if terminal.is_json() {
        terminal.print_json(&measured)?;
    } else {
        print(&measured, terminal)?;
    }
    if args.report {
        terminal.note(format_args!("the loader's report\n{report}"));
    }
    match checked {
        Some(false) => Err(Error::new(ErrorKind::Corrupt, "the loader delivered other data than was made")
            .advice("remove the folder target/bench, and run again")
            .into()),
        _ => Ok(Verdict::Good),
    }
}

/// What is read, and what the samples of it add up to, where that is known.
fn input(args: &BenchArgs, threads: usize, terminal: &Terminal) -> Result<(Input, Option<(u64, u64)>)> {
    let workload = args.workload;
    let samples = args.samples.unwrap_or(workload.default_samples());
    let default_label = if workload == Workload::Image { "image/class/label" } else { "label" };
    let mut input = Input {
        urls: args.urls.clone(),
        is_made: args.urls.is_empty(),
        image: args.image.clone(),
        label: args.label.clone().unwrap_or_else(|| default_label.to_owned()),
        record_bytes: data::RAW_BYTES,
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
    if input.is_made {
        let folder = data::folder(workload, samples, args.snappy);
        let made = data::made(workload, samples, args.snappy, &folder, threads, terminal)?;
        input.urls = made.urls(&folder);
        return Ok((input, Some((made.samples, made.sum))));
    }
    if workload == Workload::Raw {
        let shards = ShardArgs { urls: input.urls.clone(), threads: args.threads }.find()?;
        let (store, first) = (shards.store.clone(), shards.objects.first().cloned());
        let Some(first) = first.filter(|first| first.size >= 8) else {
            return Err(Error::new(ErrorKind::NotFound, "the first shard holds no record"));
        };
        let length = shards.io.wait(async move { store.read(&first, 0..8).await })?;
        input.record_bytes = u64::from_le_bytes(length[..].try_into().expect("eight bytes were read")) as usize;
    }
    Ok((input, None))
}

/// Takes whole epochs behind the first.
fn measure(loader: &mut Loader, args: &BenchArgs) -> Result<Measured> {
    let stored = |loader: &Loader| loader.report().stage("read").map_or(0, |stage| stage.bytes);
    let planned = |loader: &Loader| loader.report().stage("plan").map_or(Duration::ZERO, |stage| stage.busy);
    let (stored_before, cpu_before, plan_before) = (stored(loader), process::cpu_time(), planned(loader));
    let (mut waits, mut samples, mut stepped) = (Vec::new(), 0u64, Duration::ZERO);
    let mut resident = Vec::new();
    let start = Instant::now();
    for epoch in 1..=args.epochs {
        let mut batches = loader.epoch(epoch);
        loop {
            let asked = Instant::now();
            let Some(batch) = batches.next() else { break };
            waits.push(asked.elapsed());
            let batch = batch?;
            samples += batch.len() as u64;
            if let Some(step) = args.step_time.map(|step| step / args.accelerators) {
                // The accelerator has the batch, and the host's memory is let go while it works. What the step took is counted: a thread that
                // sleeps is woken late where workers have the cores.
                let begun = Instant::now();
                drop(batch);
                std::thread::sleep(step.saturating_sub(begun.elapsed()));
                stepped += begun.elapsed();
            }
        }
        resident.extend(process::resident_bytes());
    }
    let (wall, cpu) = (start.elapsed().as_secs_f64(), (process::cpu_time() - cpu_before).as_secs_f64());
    let stored_bytes = stored(loader) - stored_before;
    let waited: Duration = waits.iter().sum();
    let first = waits.first().copied().unwrap_or_default();
    let batches = waits.len() as u64;
    waits.sort_unstable();
    let quantile =
        |share: f64| waits.get((waits.len() as f64 * share) as usize).copied().unwrap_or_default().as_secs_f64();
    // Of a loop that does nothing with its batches, the time that it did not wait.
    let busy = if args.step_time.is_some() { stepped.as_secs_f64() } else { wall - waited.as_secs_f64() };
    Ok(Measured {
        workload: args.workload.name(),
        samples_per_s: samples as f64 / wall,
        tokens_per_s: None,
        padding_share: None,
        stored_bytes_per_s: stored_bytes as f64 / wall,
        cpu_s: cpu,
        samples_per_cpu_s: samples as f64 / cpu.max(0.01),
        first_batch_s: 0.0,
        peak_rss_bytes: process::peak_resident_bytes(),
        rss_bytes: resident,
        wait_share: waited.as_secs_f64() / wall,
        wait_p50_s: quantile(0.5),
        wait_p99_s: quantile(0.99),
        waited_s: loader.report().waited.into_iter().map(|(what, time)| (what, time.as_secs_f64())).collect(),
        plan_s: (planned(loader) - plan_before).as_secs_f64(),
        utilisation: busy / wall,
        utilisation_after_first: busy / (wall - first.as_secs_f64()),
        limit_samples_per_s: None,
        of_limit: None,
        limits: Vec::new(),
        threads: 0,
        epochs: args.epochs,
        samples,
        batches,
        batch: 0,
        wall_s: wall,
        checked_samples: 0,
        checked_sum: String::new(),
        checked: None,
    })
}

fn print(measured: &Measured, terminal: &Terminal) -> Result<(), Failure> {
    let mut out = terminal.out();
    let mut line = |name: &str, value: String| writeln!(out, "{name:<22} {value}");
    let rate = |rate: f64| match rate {
        1e6.. => format!("{:.2} M/s", rate / 1e6),
        1e4.. => format!("{:.1} k/s", rate / 1e3),
        _ => format!("{rate:.0} /s"),
    };
    let m = measured;
    line("workload", format!("{}, batches of {}, {} threads", m.workload, m.batch, m.threads))?;
    let checked = match m.checked {
        Some(true) => terminal.mark(Mark::Good, "as made"),
        Some(false) => terminal.mark(Mark::Bad, "other than made"),
        None => "nothing to compare with".into(),
    };
    let what = if m.tokens_per_s.is_some() { "tokens" } else { "samples" };
    line("checked", format!("{} {what}, sum {}: {checked}", m.checked_samples, m.checked_sum))?;
    line(
        "samples",
        format!(
            "{}, {} in {} epochs, {:.2} s",
            terminal.mark(Mark::Bold, rate(m.samples_per_s)),
            m.samples,
            m.epochs,
            m.wall_s
        ),
    )?;
    if let (Some(tokens), Some(padding)) = (m.tokens_per_s, m.padding_share) {
        line("tokens", format!("{}, {:.2} % padding", terminal.mark(Mark::Bold, rate(tokens)), padding * 100.0))?;
    }
    line("stored bytes", format!("{:.1} MB/s", m.stored_bytes_per_s / 1e6))?;
    line("cpu", format!("{:.2} s, {} per cpu second", m.cpu_s, rate(m.samples_per_cpu_s).trim_end_matches("/s")))?;
    line("first batch", format!("{:.3} s after the process's start", m.first_batch_s))?;
    line(
        "waited",
        format!("{:.1} % of the time; median {:.6} s, p99 {:.6} s", m.wait_share * 100.0, m.wait_p50_s, m.wait_p99_s),
    )?;
    let per_batch = m.plan_s / m.batches.max(1) as f64 * 1e6;
    line(
        "planned",
        format!("{:.1} % of the time, {per_batch:.1} us a batch, under the run's lock", m.plan_s / m.wall_s * 100.0),
    )?;
    line("utilisation", format!("{:.4}, without the first step {:.4}", m.utilisation, m.utilisation_after_first))?;
    if let Some(bytes) = m.peak_rss_bytes {
        line("peak memory", format!("{:.0} MiB resident", bytes as f64 / f64::from(1 << 20)))?;
    }
    for limit in &m.limits {
        let share = m.samples_per_s / limit.samples_per_s * 100.0;
        line("limit", format!("{}, of which this is {share:.1} %: {}", rate(limit.samples_per_s), limit.what))?;
    }
    out.flush()?;
    Ok(())
}
