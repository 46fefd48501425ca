//! What does each part of the way cost by itself, on one thread?
//!
//! Data: made here from fixed numbers. Throughput is that of the samples, or of the stored bytes where a part works on bytes. Whole
//! loaders are measured by `forebay bench`.
//!
//! `cargo bench --bench parts [NAME]`

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int64Array};
use arrow::buffer::Buffer;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use forebay::format::example::{Example, Kind, Parser};
use forebay::format::tfrecord::{Check, Compression, Framed, Framer, Writer};
use forebay::transform::image::{IMAGENET_MEAN, IMAGENET_STD};
use forebay::{Dataset, Image, Scheduler, Shuffle, float32, int64};

fn main() {
    divan::main();
}

fn shard(payloads: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), Compression::None);
    payloads.for_each(|payload| writer.write(&payload).expect("memory takes it"));
    writer.finish().expect("memory takes it")
}

/// How fast are records found and their checksums verified? 4 MiB of records.
#[divan::bench(args = [64, 600, 114_660])]
fn framing_and_crc(bencher: Bencher<'_, '_>, record: usize) {
    let shard = shard((0..(4 << 20) / record).map(|i| vec![i as u8; record]));
    bencher
        .counter(BytesCount::of_slice(&shard))
        .with_inputs(Framed::default)
        .bench_local_refs(|framed| Framer::new(Check::Full).frame(black_box(&shard), Some(0), framed).expect("sound"));
}

/// How fast do tf.Examples of 13 floats, 26 integers and a label become columns? 4,096 rows.
#[divan::bench]
fn examples_to_columns(bencher: Bencher<'_, '_>) {
    let names = |kind: char, count: usize| (0..count).map(move |i| format!("{kind}{i:02}"));
    let example = |row: usize| {
        let mut example = Example::new().with_int64("label", [row as i64 % 2]);
        for (i, name) in names('f', 13).enumerate() {
            example = example.with_float32(name, [(row * i) as f32]);
        }
        for (i, name) in names('i', 26).enumerate() {
            example = example.with_int64(name, [(row * 7919 * i) as i64 % (1 << 24)]);
        }
        example.encode()
    };
    let shard = Buffer::from_vec(shard((0..4096).map(example)));
    let mut framed = Framed::default();
    Framer::new(Check::Full).frame(&shard, Some(0), &mut framed).expect("sound");
    let columns: Vec<_> =
        names('f', 13).map(float32).chain(names('i', 26).map(int64)).chain([int64("label")]).collect();
    let parser = Parser::new(&columns, Kind::Example).expect("columns");
    bencher.counter(ItemsCount::new(4096usize)).bench_local(|| parser.parse(&shard, black_box(&framed.payloads)));
}

fn photograph() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/images/large.jpg");
    std::fs::read(path).expect("a golden file")
}

/// What does an image cost with and without the steps behind decoding? The picture is `tests/data/images/large.jpg`; `crop`: the
/// middle, undone by nothing; `resize`: and resized; `normalize`: and written as f32 planes.
#[divan::bench(args = ["crop", "resize", "normalize", "random_resized_crop"])]
fn image(bencher: Bencher<'_, '_>, steps: &str) {
    let encoded = photograph();
    let crop = Image::rgb().center_crop(200, 200);
    let image = match steps {
        "crop" => crop,
        "resize" => crop.resize(112, 112),
        "normalize" => crop.resize(112, 112).normalize(IMAGENET_MEAN, IMAGENET_STD),
        _ => Image::rgb().random_resized_crop(112, 112).horizontal_flip(0.5).normalize(IMAGENET_MEAN, IMAGENET_STD),
    };
    let (dtype, shape) = image.output().expect("a fixed size");
    let bytes = shape.iter().product::<usize>() * dtype.size().expect("numbers");
    let (mut slot, mut scratch) = (vec![0f32; bytes.div_ceil(4)], forebay::transform::image::Scratch::default());
    let mut number = 0;
    bencher.counter(ItemsCount::new(1usize)).bench_local(|| {
        number += 1;
        let slot = &mut bytemuck::cast_slice_mut(&mut slot)[..bytes];
        image.decode_into(black_box(&encoded), forebay::random::Key::new(number), slot, &mut scratch).expect("sound")
    });
}

/// What do planning, gathering, collating and handing over cost a row? 1,000,000 rows of `columns` numbers in memory, through a shuffle
/// buffer of 100,000, on the calling thread alone.
#[divan::bench(args = [1, 40], sample_count = 5)]
fn plan_gather_collate(bencher: Bencher<'_, '_>, columns: usize) {
    const ROWS: usize = 1_000_000;
    let ints: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS as i64));
    let floats: ArrayRef = Arc::new(Float32Array::from_iter_values((0..ROWS).map(|i| i as f32)));
    let column = |i: usize| (format!("c{i:02}"), if i.is_multiple_of(2) { ints.clone() } else { floats.clone() });
    let dataset = Dataset::from_columns((0..columns).map(column)).expect("columns");
    let dataset = dataset.shuffle(Shuffle::buffer(100_000)).batch(1024);
    let mut loader = dataset.loader().scheduler(Scheduler::single_threaded()).build().expect("a loader");
    let mut epoch = 0;
    bencher.counter(ItemsCount::new(ROWS)).bench_local(|| {
        epoch += 1;
        loader.epoch(epoch).map(|batch| batch.expect("a batch").len()).sum::<usize>()
    });
}

/// What does a batch cost that holds next to nothing? 20,000 batches of one row, from pool to loop, on `threads` workers.
#[divan::bench(args = [1, 2], sample_count = 5)]
fn hand_over(bencher: Bencher<'_, '_>, threads: usize) {
    let rows: ArrayRef = Arc::new(Int64Array::from_iter_values(0..20_000));
    let dataset = Dataset::from_columns([("x", rows)]).expect("a column").batch(1);
    let mut loader = dataset.loader().scheduler(Scheduler::threads(threads)).build().expect("a loader");
    let mut epoch = 0;
    bencher.counter(ItemsCount::new(20_000usize)).bench_local(|| {
        epoch += 1;
        loader.epoch(epoch).map(|batch| batch.expect("a batch").len()).sum::<usize>()
    });
}
