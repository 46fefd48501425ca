//! Reads images from shards in Google Cloud Storage, with the loop of `train_images` but without a neural network.
//!
//! `cargo run --release --example from_gcs -- gs://BUCKET/train-*.tfrecord` prints the first batches, how many images arrive per second, and the loader's
//! report: which stage the loop waited for. Any other URL or path works too. Without arguments it explains where credentials come from and how to read from an
//! emulator.
//!
//! The first time, remote shards are read in the order in which they arrive. That run leaves an index in `~/.cache/forebay/index` (or `$FOREBAY_INDEX_DIR`),
//! with which the next run draws its order from all rows.
//!
//! Checked with: `--batches 3 examples/data/photos/train-*.tfrecord`

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use forebay::{Dataset, Device, Image, Shuffle, bytes, int64};
use tch::Kind;

const IMAGE: &str = "image/encoded";
const LABEL: &str = "image/class/label";

/// Batches that are printed; the others are only counted.
const SHOWN: u64 = 3;

const USAGE: &str = "\
usage: from_gcs [--batch SIZE] [--batches COUNT] URL...

  URL       shards with image/encoded and image/class/label, for instance 'gs://BUCKET/train-*.tfrecord';
            quoted, or the shell looks for files of that name
  --batch   images in a batch, 32 if not said
  --batches how many batches to read, all of one epoch if not said

Credentials, the first that there are:
  GOOGLE_APPLICATION_CREDENTIALS=KEY.json   a service account's key, or what `gcloud auth application-default login` wrote
  the metadata server                       on Google's own machines, without doing anything

An emulator instead of the real store, without credentials:
  fake-gcs-server -scheme http -port 4443 -public-host 127.0.0.1:4443 -backend memory -data FOLDER
  STORAGE_EMULATOR_HOST=http://127.0.0.1:4443 from_gcs 'gs://BUCKET/*.tfrecord'
  where FOLDER/BUCKET holds the shards";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<String>) -> Result<(), Box<dyn Error>> {
    let (mut urls, mut size, mut batches) = (Vec::new(), 32, usize::MAX);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let number = |text: Option<String>| -> Result<usize, Box<dyn Error>> {
            let text = text.ok_or_else(|| format!("{argument} needs a number"))?;
            text.parse().map_err(|error| format!("{argument} {text}: {error}").into())
        };
        match argument.as_str() {
            "--batch" => size = number(arguments.next())?,
            "--batches" => batches = number(arguments.next())?,
            _ if argument.starts_with('-') => return Err(format!("unknown option {argument}\n\n{USAGE}").into()),
            _ => urls.push(argument),
        }
    }

    let dataset = Dataset::open(urls)?
        .columns([bytes(IMAGE), int64(LABEL)])
        .shuffle(Shuffle::buffer(1024))
        .image(IMAGE, Image::rgb().random_resized_crop(224, 224).horizontal_flip(0.5))
        .batch(size);
    println!("{dataset}");
    let start = Instant::now();
    let mut loader = dataset.loader().seed(42).device(Device::cuda_if_available()).build()?;
    println!("built in {:.2} s", start.elapsed().as_secs_f64());

    let (start, mut count, mut bytes) = (Instant::now(), 0, 0);
    for batch in loader.epoch(0).take(batches) {
        let batch = batch?;
        // A training step would stand here.
        let (images, labels) = (batch.tensor(IMAGE)?, batch.tensor(LABEL)?);
        if batch.step() < SHOWN {
            let (shape, mean) = (images.size(), images.mean(Kind::Float).double_value(&[]));
            let first = Vec::<i64>::try_from(labels.slice(0, 0, 8, 1).to_device(tch::Device::Cpu))?;
            let seconds = start.elapsed().as_secs_f64();
            println!("batch {}: {shape:?}, mean {mean:.1}, labels {first:?}..., at {seconds:.2} s", batch.step());
        }
        count += batch.len();
        bytes += images.numel();
    }
    if count == 0 {
        return Err("the shards hold no records".into());
    }
    let seconds = start.elapsed().as_secs_f64();
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    println!(
        "{count} images in {seconds:.2} s: {:.0} images/s, {mebibytes:.0} MiB of pixels\n",
        count as f64 / seconds
    );
    println!("{}", loader.report());
    Ok(())
}
