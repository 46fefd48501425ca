//! Measures on a GPU what the loader promises: that copies run at the speed of the bus during the training step, arrive intact, and leave the GPU no time to
//! wait.
//!
//! `cargo run --release --example gpu_throughput -- --all --json results.json` makes its own shards in a temporary folder, of raw images and of photographs as
//! large as ImageNet's, and runs every measurement, in some five minutes. It prints a table, and writes what was measured and on what machine, with the
//! loaders' reports. If `FOREBAY_COMMIT` is set at compile time, that is stored too. Each measurement can also be run by its name:
//!
//! - `stress`: 100,000 small steps, with random allocations at the same time, on a device that lags behind the host. Checksums of every batch, computed on the
//!   device, must be the host's (wanted: all of them, on a device that is kept waiting for less than half of the time), for columns on every path: large,
//!   small, and unbounded. Every 2000 steps an epoch is dropped while a batch is in flight. Memory of host and device is measured before and after.
//! - `operations`: what `on_device` makes of batches on the device is what it makes of them on the CPU, exactly for `u8`, within rounding for `f32`, within one
//!   step of `f16` and `bf16`; both parts of a split, whose devices are this one twice, have the host's checksums; exports by DLPack are the tensors' memory.
//! - `bandwidth`: bytes per second of batches that the loop only takes, from a gigabyte of rows in memory, compared with a bare copy from page-locked memory
//!   (wanted: 90 %); and the same from files, where reading and checking them may be the limit.
//! - `images`, `raw`: a ResNet-50 in bf16 trains on batches of 256 x 224 x 224, from JPEG decoded by the loader and from raw `u8`. The result is the share of
//!   the device's time between one step's last kernel and the next one's first (wanted: less than 1 %), by events on its stream, and the same with one batch
//!   that stays.
//! - `overlap`: the share of the copies that runs during steps, by events on both streams (wanted: 90 %); and the time of steps with arriving batches, and
//!   without.
//! - `data`: with `--data URL...`, images per second from these shards (gs:// and others) through the ring to the device; the first batches are compared with
//!   the host's.
//!
//! `bandwidth`, `images`, `raw` and `overlap` are measured in three turns, each right next to what they are compared with. All turns are printed; the median
//! counts.
//!
//! After each measurement, results are printed and the file of `--json` is rewritten. A measurement that fails is a result too, and the others continue.
//!
//! The exit code is 3 if there is no GPU, after the program has said why and what it would measure, and 1 if something wanted was missed. `--device cpu`
//! rehearses the program with small sizes and without claims.
//!
//! Checked with: `--all --device cpu`

#[path = "gpu_throughput/bandwidth.rs"]
mod bandwidth;
#[path = "gpu_throughput/clock.rs"]
mod clock;
#[path = "gpu_throughput/known.rs"]
mod known;
#[path = "gpu_throughput/machine.rs"]
mod machine;
#[path = "gpu_throughput/measure.rs"]
mod measure;
#[path = "gpu_throughput/measured.rs"]
mod measured;
#[path = "gpu_throughput/operations.rs"]
mod operations;
#[path = "gpu_throughput/photos.rs"]
mod photos;
#[path = "gpu_throughput/shards.rs"]
mod shards;
#[path = "gpu_throughput/stress.rs"]
mod stress;
#[path = "gpu_throughput/training.rs"]
mod training;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use forebay::Device;
use machine::Machine;
use measure::Bench;
use measured::Measured;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// The exit code of a machine without a GPU.
const NO_GPU: u8 = 3;

/// The measurements, each with a short description.
const MEASUREMENTS: [(&str, &str); 6] = [
    // First: what others leave in libtorch's cache of memory would hide growth.
    (
        "stress",
        "checksums of every batch on the device in 100,000 small steps beside random allocations; memory at both ends",
    ),
    ("operations", "operations on the device beside those on the CPU, the parts of a split, exports by DLPack"),
    ("bandwidth", "host to device through the loader, as a share of a bare copy from page-locked memory"),
    ("raw", "share of its time that the device is between steps while a ResNet-50 trains on raw images"),
    ("images", "the same on JPEG photographs that the loader decodes"),
    ("overlap", "how much of the copies' time is hidden behind steps"),
];

/// Measures what the loader promises on a GPU.
#[derive(Parser)]
struct Arguments {
    /// What to measure: stress, operations, bandwidth, raw, images, overlap
    #[arg(value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(MEASUREMENTS.map(|(name, _)| name)))]
    names: Vec<String>,

    /// All of them
    #[arg(long)]
    all: bool,

    /// Shards of images (image/encoded) to bring to the device: paths, gs://, s3://, az:// or http(s):// URLs, globs
    #[arg(long, value_name = "URL", num_args = 1..)]
    data: Vec<String>,

    /// Write what was measured to this file, or with - to the standard output
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,

    /// cuda, cuda:N, or cpu for a rehearsal
    #[arg(long, default_value = "cuda")]
    device: String,
}

fn main() -> ExitCode {
    start(&Arguments::parse())
}

fn start(arguments: &Arguments) -> ExitCode {
    // Asked first: it loads CUDA, which has to come before libtorch looks for it.
    let found = Device::cuda_if_available();
    let device = match arguments.device.as_str() {
        "cpu" => Device::Cpu,
        "cuda" => found,
        other => match other.strip_prefix("cuda:").and_then(|number| number.parse().ok()) {
            Some(number) => Device::Cuda(number),
            None => {
                eprintln!("error: {other:?} is no device: cuda, cuda:N or cpu");
                return ExitCode::from(2);
            }
        },
    };
    if found == Device::Cpu && arguments.device != "cpu" {
        let why =
            forebay::init_cuda().err().map_or_else(|| "libtorch finds none".to_owned(), |error| error.to_string());
        println!("there is no GPU here: {why}\nWith one, these would be measured:");
        MEASUREMENTS.iter().for_each(|(name, what)| println!("  {name:<10} {what}"));
        return ExitCode::from(NO_GPU);
    }
    match run(arguments, device) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every wanted result was reached.
fn run(arguments: &Arguments, device: Device) -> Result<bool> {
    let chosen = |name: &&(&str, &str)| arguments.all || arguments.names.iter().any(|wanted| wanted == name.0);
    let mut names: Vec<(&str, &str)> = MEASUREMENTS.iter().filter(chosen).copied().collect();
    if !arguments.data.is_empty() {
        names.push(("data", "images of these shards, through the ring to the device"));
    }
    if names.is_empty() {
        return Err("nothing to do: name measurements, or --all, or --data URL...; --help says what there is".into());
    }
    let bench = Bench::new(device)?;
    let to_stdout = arguments.json.as_deref().is_some_and(|file| file.as_os_str() == "-");
    if !to_stdout {
        Machine::look(device).print();
    }
    let mut all = Vec::new();
    for (name, what) in names {
        eprintln!("{name}: {what}");
        let begun = Instant::now();
        // What does not start with `f_` in tch panics where libtorch fails.
        let measured = catch_unwind(AssertUnwindSafe(|| bench.measure(name, &arguments.data)));
        let measured = measured.unwrap_or_else(|_| Err("it panicked; the message stands above".into()));
        let measured =
            measured.unwrap_or_else(|error| Measured::failed(name, &error.to_string())).took(begun.elapsed());
        if !to_stdout {
            measured.print(device == Device::Cpu);
        }
        all.push(measured);
        if let Some(file) = arguments.json.as_deref().filter(|_| !to_stdout) {
            std::fs::write(file, to_json(&bench, &all)?)?;
        }
    }
    if to_stdout {
        print!("{}", to_json(&bench, &all)?);
    }
    Ok(all.iter().all(|measured| measured.is_good(device == Device::Cpu)))
}

fn to_json(bench: &Bench, all: &[Measured]) -> Result<String> {
    let results = serde_json::json!({
        "machine": Machine::look(bench.device),
        "rehearsal": bench.is_rehearsal(),
        "measured": all,
    });
    Ok(serde_json::to_string_pretty(&results)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_is_told_by_the_exit_code() {
        // Where there is one this would measure.
        if Device::cuda_if_available() == Device::Cpu {
            let arguments = Arguments::parse_from(["gpu_throughput", "--all"]);
            assert_eq!(start(&arguments), ExitCode::from(NO_GPU));
        }
    }
}
