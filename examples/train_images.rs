//! Trains small convolutional networks on real images read from TFRecord shards, and fails if they learn nothing.
//!
//! Without arguments it trains twice, on the images of `examples/data`. The first run trains on handwritten digits of 8x8 pixels, until more than 95 % of the
//! held-out ones are recognised. The second run trains on photographs as random crops of 224x224 pixels, where the question is which photograph a crop was cut
//! from. `--data URL...` trains on your own shards (`image/encoded`, `image/class/label`), and `--photos FOLDER` trains on a folder of photographs, which is
//! written to shards first.
//!
//! It prints the graph of each data set, one line per epoch (loss, accuracy, samples per second, how much of the time the loop waited for data), and the
//! loader's report. The exit code says whether the loss fell and the digits were recognised.
//!
//! Checked with: `--quick`

#[path = "train_images/folder.rs"]
mod folder;
#[path = "train_images/network.rs"]
mod network;
#[path = "train_images/train.rs"]
mod train;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::Parser;
use forebay::{Dataset, Device, Error, ErrorKind, Image, Shuffle, bytes, int64};

use train::{Goals, Task, train};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const IMAGE: &str = "image/encoded";
const LABEL: &str = "image/class/label";

/// If an epoch has few photographs, they are repeated up to this number, as other crops each time.
const CROPS_PER_EPOCH: u64 = 480;

/// Trains small networks on images from TFRecord shards and shows what the loader did meanwhile.
#[derive(Parser)]
struct Arguments {
    /// Shards of your own to train on: paths, gs://, s3://, az:// or http(s):// URLs, globs
    #[arg(long, value_name = "URL", num_args = 1.., conflicts_with = "photos")]
    data: Vec<String>,

    /// A folder of photographs to train on: with a labels.csv (file,label_index,label_name), or a sub-folder for each class
    #[arg(long, value_name = "FOLDER")]
    photos: Option<PathBuf>,

    /// cpu, cuda or cuda:N; without it, the first GPU if there is one
    #[arg(long, value_parser = device)]
    device: Option<Device>,

    /// Epochs of each training
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,

    /// The seed of the order, the crops and the networks
    #[arg(long, default_value_t = 42)]
    seed: u64,

    /// Few epochs: only the loss has to fall
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    // Asked even if another is wanted: it loads CUDA, which has to come before libtorch first looks for it.
    let found = Device::cuda_if_available();
    let device = arguments.device.unwrap_or(found);
    println!("training on {device}, seed {}", arguments.seed);

    // Removed with its shards at the end.
    let mut shards = None;
    let tasks = match &arguments.photos {
        Some(folder) => {
            let folder = shards.insert(folder::to_shards(folder)?).path().join("*.tfrecord");
            vec![own_photographs(vec![folder.display().to_string()], arguments)?]
        }
        None if arguments.data.is_empty() => vec![digits(arguments)?, photographs(arguments)?],
        None => vec![own_photographs(arguments.data.clone(), arguments)?],
    };
    let mut missed = Vec::new();
    for task in &tasks {
        missed.extend(train(task, device, arguments.seed)?);
    }
    if missed.is_empty() { Ok(()) } else { Err(missed.join("; ").into()) }
}

/// Ten classes of handwritten digits, with other digits held out.
fn digits(arguments: &Arguments) -> Result<Task> {
    let digits = |files: &str| -> Result<Dataset> {
        let dataset = Dataset::open(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits/").to_owned() + files)?;
        Ok(dataset.columns([bytes(IMAGE), int64(LABEL)]))
    };
    // Digits a little larger, moved by a pixel: without it the network knows the training images by heart after six epochs.
    let moved = Image::gray().random_resized_crop(8, 8).scale(0.7..=1.0).ratio(0.85..=1.18);
    Ok(Task {
        name: "handwritten digits, 8x8",
        train: digits("train-*.tfrecord")?
            .shuffle(Shuffle::buffer(2048))
            .image(IMAGE, moved)
            .batch(64)
            .drop_remainder(),
        held_out: Some(digits("test-*.tfrecord")?.image(IMAGE, Image::gray().resize(8, 8)).batch(360)),
        network: network::for_digits,
        classes: 10,
        epochs: arguments.epochs.unwrap_or(if arguments.quick { 3 } else { 20 }),
        learning_rate: 4e-3,
        // So small a network is slower on several threads than on one.
        threads: 1,
        goals: Goals { loss_share: 0.5, accuracy: (!arguments.quick).then_some(0.95) },
    })
}

/// Which of twelve photographs is this a crop of?
fn photographs(arguments: &Arguments) -> Result<Task> {
    let dataset = Dataset::open(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/photos/train-*.tfrecord"))?
        .columns([bytes(IMAGE), int64(LABEL)]);
    let (photographs, classes) = (12, 12);
    let task = crops("crops of twelve photographs, 224x224", &dataset, photographs, classes, arguments);
    Ok(Task { goals: Goals { loss_share: if arguments.quick { 0.9 } else { 0.5 }, accuracy: None }, ..task })
}

/// The user's own photographs. Their labels may have gaps: a first pass numbers the existing labels from 0.
fn own_photographs(urls: Vec<String>, arguments: &Arguments) -> Result<Task> {
    let mut counts = BTreeMap::<i64, u64>::new();
    for batch in Dataset::open(urls.clone())?.columns([int64(LABEL)]).batch(4096).loader().build()? {
        for label in batch?.values::<i64>(LABEL)?.iter() {
            *counts.entry(*label).or_default() += 1;
        }
    }
    let (photographs, classes) = (counts.values().sum(), counts.len());
    println!("{photographs} photographs of {classes} classes");

    let numbers: BTreeMap<i64, i64> = counts.into_keys().zip(0..).collect();
    let dataset = Dataset::open(urls)?.columns([bytes(IMAGE), int64(LABEL)]).map(
        "number the labels",
        [int64(LABEL)],
        move |_, row, out| {
            let label = row.get(LABEL)?;
            let number = numbers.get(&label);
            let number = number.ok_or_else(|| Error::new(ErrorKind::Transform, format!("label {label} is new")))?;
            out.set(LABEL, *number)
        },
    );
    Ok(crops("crops of your photographs, 224x224", &dataset, photographs, classes as i64, arguments))
}

fn crops(name: &'static str, images: &Dataset, photographs: u64, classes: i64, arguments: &Arguments) -> Task {
    let crops = if arguments.quick { CROPS_PER_EPOCH / 2 } else { CROPS_PER_EPOCH };
    let train = images
        .shuffle(Shuffle::buffer(4096))
        .repeat((crops / photographs.max(1)).max(1))
        .image(IMAGE, Image::rgb().random_resized_crop(224, 224).horizontal_flip(0.5))
        .batch(32)
        .drop_remainder();
    Task {
        name,
        train,
        held_out: None,
        network: network::for_photographs,
        classes,
        epochs: arguments.epochs.unwrap_or(if arguments.quick { 2 } else { 8 }),
        learning_rate: 3e-3,
        threads: available_parallelism().map_or(1, usize::from),
        goals: Goals { loss_share: 1.0, accuracy: None },
    }
}

fn device(name: &str) -> Result<Device, String> {
    match name.split_once(':') {
        None if name == "cpu" => return Ok(Device::Cpu),
        None if name == "cuda" => return Ok(Device::Cuda(0)),
        Some(("cuda", index)) => index.parse().map(Device::Cuda).ok(),
        _ => None,
    }
    .ok_or_else(|| "cpu, cuda or cuda:N".into())
}
