//! The arguments of `forebay bench`.

use std::path::PathBuf;
use std::time::Duration;

use super::data::Wanted;
use super::emulate::Pace;
use super::preset::Model;
use super::workload::{self, Packing, Workload};
use crate::cli::explain::Shuffled;
use crate::cli::format::FormatArgs;
use crate::engine::Scheduler;
use crate::error::{Error, Result};

/// Examples for `--help`.
pub(in crate::cli) const EXAMPLES: &str = "\
Examples:
  forebay bench image --limit
  forebay bench image gs://bucket/train-*.tfrecord --epochs 1
  forebay bench features --threads 2 --json
  forebay bench pack --packing concat --window 256 --limit
  forebay bench image --step-time 0.150 --accelerators 2
  forebay bench resnet50-like --demand 0.95 --accelerators 8 --runs 5
  forebay bench resnet50-like --files 8 --accelerator h100 --find-accelerators
  forebay bench image --niceness 10 --off-this-core
  forebay bench image --jitter";

/// Arguments of `forebay bench`.
#[derive(clap::Args, Debug)]
pub(in crate::cli) struct BenchArgs {
    /// What to load.
    pub(super) workload: Workload,
    /// Shards: paths or URLs, globs, ranges [default: data made from a seed and kept in target/bench].
    #[arg(value_name = "URL")]
    pub(super) urls: Vec<String>,
    #[command(flatten)]
    pub(super) format: FormatArgs,
    /// Threads of the loader, and of the limits [default: one per core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) threads: Option<u16>,
    /// Epochs to measure, after one that is checked and serves as warm-up [default: 3; as a baseline for comparisons: as many as take 10 seconds].
    #[arg(long, value_name = "E", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) epochs: Option<u64>,
    /// Samples per batch, for each accelerator [default: 256 image, 4096 features, 400 raw, 1024 tiny, 32 tokens and pack, 16384 wide, 48 latents].
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) batch: Option<u32>,
    /// The shuffle: a buffer of this many samples, `global` or `none` [default: 1000 image, 100000 tiny, 10000 pack, global cosmoflow-like and
    /// unet3d-like, none].
    #[arg(long, value_name = "S")]
    pub(super) shuffle: Option<Shuffled>,
    /// Compress Parquet with snappy instead of zstd.
    #[arg(long)]
    pub(super) snappy: bool,
    /// Store unet3d-like in Parquet instead of TFRecord.
    #[cfg(feature = "parquet")]
    #[arg(long)]
    pub(super) parquet: bool,
    /// Deliver images as u8, not normalised.
    #[arg(long)]
    pub(super) u8: bool,
    /// Hold each batch for this long, as a training step does.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, group = "step")]
    pub(super) step_time: Option<Duration>,
    /// Use the published step time of this accelerator, for resnet50-like, cosmoflow-like and unet3d-like.
    #[arg(long, value_name = "MODEL", group = "step")]
    pub(super) accelerator: Option<Model>,
    /// Make steps so long that the accelerators ask for this share of what they take when no step needs time, measured just before each run.
    #[arg(long, value_name = "SHARE", value_parser = demand, group = "step", conflicts_with = "find_accelerators")]
    pub(super) demand: Option<f64>,
    /// Run this many accelerators, each with a batch of its own, that wait for each other after every step.
    #[arg(long, value_name = "N", requires = "step", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) accelerators: u32,
    /// Find the most accelerators that are kept busy for 99 % of the time, compared with the number for which 95 % of the loader's maximum is enough.
    #[arg(long, requires = "step", conflicts_with_all = ["accelerators", "jitter", "ledger", "report"])]
    pub(super) find_accelerators: bool,
    /// Steps of each accelerator in a run, and of the mock loop [default: as many as --epochs hold, or else as take 10 seconds, at least 20].
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(2..))]
    pub(super) steps: Option<u64>,
    /// Runs of the accelerators; the one of median utilisation is reported in full [default: 1, 5 to find accelerators].
    #[arg(long, value_name = "R", requires = "step", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) runs: Option<u32>,
    /// Measure how late a mock training step's launches come: without the loader, with it, and with it as a good neighbour.
    #[arg(long, conflicts_with_all = ["step", "ledger", "report"])]
    pub(super) jitter: bool,
    /// Use as many threads as this share of the cores.
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "threads")]
    pub(super) share: Option<f64>,
    /// Keep the loader's threads on these cores, such as 0-3,6.
    #[arg(long, value_name = "CORES", value_parser = cores)]
    pub(super) cores: Option<CoreList>,
    /// Keep the loader's threads off the core on which the command's own thread runs.
    #[arg(long)]
    pub(super) off_this_core: bool,
    /// Niceness of the loader's threads, up to 19.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(super) niceness: Option<i8>,
    /// Bytes that the loader may have in flight, in MiB [default: a quarter of the memory].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) budget: Option<u64>,
    /// Batches that wait for the loop, or for each accelerator [default: 2, more for small ones].
    #[arg(long, value_name = "BATCHES")]
    pub(super) prefetch: Option<usize>,
    /// Cache what is read from remote shards in this folder, on a local disk.
    #[arg(long, value_name = "FOLDER", requires = "urls")]
    pub(super) cache: Option<PathBuf>,
    /// Size of the cache, in MiB.
    #[arg(long, value_name = "MIB", requires = "cache", default_value_t = 100 << 10, value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub(super) cache_size: u64,
    /// Also measure the bare loops, for comparison.
    #[arg(long)]
    pub(super) limit: bool,
    /// Number of samples in the generated data.
    #[arg(long, value_name = "N", conflicts_with = "urls", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) samples: Option<u64>,
    /// Number of files of resnet50-like, cosmoflow-like and unet3d-like [default: 4, 200, 28].
    #[arg(long, value_name = "F", conflicts_with_all = ["urls", "samples"], value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) files: Option<u64>,
    /// The algorithm with which `pack` packs.
    #[arg(long, value_name = "HOW", default_value = "best-fit")]
    pub(super) packing: Packing,
    /// Tokens per row of `pack`.
    #[arg(long, value_name = "N", default_value_t = workload::PACKED as u32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) length: u32,
    /// Documents of a stream that `pack` packs together.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) window: Option<u64>,
    /// The column of encoded images.
    #[arg(long, value_name = "COLUMN", default_value = "image/encoded")]
    pub(super) image: String,
    /// The column of labels [default: image/class/label, label].
    #[arg(long, value_name = "COLUMN")]
    pub(super) label: Option<String>,
    /// Save the loader's ledger of all epochs to this file.
    #[arg(long, value_name = "FILE")]
    pub(super) ledger: Option<PathBuf>,
    /// Print the loader's report too.
    #[arg(long)]
    pub(super) report: bool,
}

/// Cores by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CoreList(pub(super) Vec<usize>);

impl BenchArgs {
    /// Refuses combinations that do not work and that clap cannot check.
    pub(super) fn check(&self) -> Result<()> {
        let name = self.workload.name();
        if self.workload.preset().is_some() {
            let fixed = [
                ("--batch", self.batch.is_some()),
                ("--samples", self.samples.is_some()),
                ("--step-time", self.step_time.is_some()),
            ];
            if let Some((flag, _)) = fixed.into_iter().find(|(_, is_given)| *is_given) {
                return Err(Error::config(format!(
                    "{flag}: {name} is as published; it is scaled by --files and --accelerators"
                ))
                .advice("take `raw` for other sizes, and --accelerator for its steps"));
            }
        } else if self.accelerator.is_some() || self.files.is_some() {
            return Err(Error::config(format!(
                "--accelerator and --files are of published workloads, which {name} is not"
            ))
            .advice("take --step-time and --samples, or resnet50-like, cosmoflow-like or unet3d-like"));
        }
        if self.steps.is_some() && self.pace().is_none() && !self.jitter {
            return Err(Error::config("--steps are of accelerators or of --jitter").advice(
                "take --step-time, --accelerator or --demand; --epochs says how long a loader is measured alone",
            ));
        }
        if !self.urls.is_empty() && matches!(self.workload, Workload::Tiny | Workload::Pack) {
            return Err(Error::config(format!("{name} reads no shards: its rows are made in memory"))
                .url(self.urls[0].clone())
                .advice("leave the URL out, or take `image`, `features` or `raw`"));
        }
        if self.parquet() && self.workload != Workload::Unet3dLike {
            return Err(Error::config(format!("--parquet is of unet3d-like, not of {name}")));
        }
        Ok(())
    }

    pub(super) fn parquet(&self) -> bool {
        #[cfg(feature = "parquet")]
        return self.parquet;
        #[cfg(not(feature = "parquet"))]
        false
    }

    /// Returns the data to be generated if no shards are named.
    pub(super) fn wanted(&self) -> Wanted {
        let of_files = |files: u64| self.workload.preset().map(|preset| files * preset.records_per_file);
        let samples = self.files.and_then(of_files).or(self.samples).unwrap_or(self.workload.default_samples());
        Wanted { workload: self.workload, samples, snappy: self.snappy, parquet: self.parquet() }
    }

    /// Returns how long an accelerator works on a batch, if there is one.
    pub(super) fn pace(&self) -> Option<Pace> {
        let published = self.accelerator.zip(self.workload.preset()).map(|(model, preset)| preset.step(model));
        published.or(self.step_time).map(Pace::Step).or(self.demand.map(Pace::Demand))
    }

    /// Returns the number of epochs in a measurement.
    pub(super) fn num_epochs(&self) -> u64 {
        self.epochs.unwrap_or(3)
    }

    /// Returns the number of runs of the accelerators.
    pub(super) fn num_runs(&self) -> u32 {
        self.runs.unwrap_or(if self.find_accelerators { 5 } else { 1 })
    }

    /// Returns the scheduler without regard for neighbours.
    pub(super) fn plain_scheduler(&self) -> Scheduler {
        let stated = self.threads.map(|threads| Scheduler::threads(threads.into()));
        stated.or(self.share.map(Scheduler::share)).unwrap_or_default()
    }

    pub(super) fn scheduler(&self) -> Scheduler {
        let mut scheduler = self.plain_scheduler();
        if let Some(CoreList(cores)) = &self.cores {
            scheduler = scheduler.cores(cores.iter().copied());
        }
        if self.off_this_core {
            scheduler = scheduler.off_this_core();
        }
        self.niceness.map_or(scheduler, |niceness| scheduler.niceness(niceness))
    }

    /// Returns the scheduler with the neighbour options in the arguments, or otherwise with all that are available: another core if there is one, and
    /// the lowest priority.
    pub(super) fn polite_scheduler(&self) -> Scheduler {
        if self.cores.is_some() || self.off_this_core || self.niceness.is_some() {
            return self.scheduler();
        }
        let polite = self.plain_scheduler().niceness(19);
        if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
            polite.off_this_core()
        } else {
            polite
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())?;
    if time.is_zero() { Err("a step takes some time".to_owned()) } else { Ok(time) }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is not a share from 0 to 1"))
}

fn demand(text: &str) -> Result<f64, String> {
    share(text).and_then(|share| if share > 0.0 { Ok(share) } else { Err("accelerators ask for something".to_owned()) })
}

fn cores(text: &str) -> Result<CoreList, String> {
    let wrong = || format!("{text:?} is no list of cores such as 0-3,6");
    let number = |text: &str| text.trim().parse::<u16>().map(usize::from).map_err(|_| wrong());
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    Ok(CoreList(cores))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_listed_as_the_system_does() {
        for (text, wanted) in [("3", vec![3]), ("0-3,6", vec![0, 1, 2, 3, 6]), (" 1, 4-4", vec![1, 4])] {
            assert_eq!(cores(text), Ok(CoreList(wanted)));
        }
        for text in ["", "a", "3-1", "1,,2", "-1", "0-3-5", "70000"] {
            assert!(cores(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn shares_and_seconds_are_numbers_in_their_range() {
        assert_eq!((share("0.5"), seconds("0.25")), (Ok(0.5), Ok(Duration::from_millis(250))));
        for text in ["", "2", "-0.1", "NaN", "half"] {
            assert!(share(text).is_err(), "{text:?}");
        }
        for text in ["0", "-1", "soon", "NaN"] {
            assert!(seconds(text).is_err(), "{text:?}");
        }
        for (text, wanted) in [("0.95", Some(0.95)), ("1", Some(1.0)), ("0", None), ("1.1", None)] {
            assert_eq!(demand(text).ok(), wanted, "{text:?}");
        }
    }
}
