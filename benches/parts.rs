//! What does each part of the pipeline cost by itself, on one thread?
//!
//! Data: generated here from fixed numbers. Throughput is that of samples, or of stored bytes for parts that process bytes. `forebay bench` measures
//! whole loaders.
//!
//! `cargo bench --bench parts [NAME]`

use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int64Array, ListArray};
use arrow::buffer::Buffer;
use arrow::datatypes::Int32Type;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use forebay::format::example::{Example, Kind, Parser};
use forebay::format::tfrecord::{Check, Compression, Framed, Framer, Writer};
use forebay::transform::image::{IMAGENET_MEAN, IMAGENET_STD};
use forebay::{Dataset, Image, Pack, Scheduler, Shuffle, float32, int64};

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

/// Returns a picture whose decoding is only a copy.
fn bitmap(width: u32, height: u32) -> Vec<u8> {
    let mut encoded = std::io::Cursor::new(Vec::new());
    let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, (x ^ y) as u8]));
    picture.write_to(&mut encoded, image::ImageFormat::Bmp).expect("memory takes it");
    encoded.into_inner()
}

/// Decodes one image repeatedly, with a new key each time.
fn decode(bencher: Bencher<'_, '_>, encoded: &[u8], image: &Image) {
    let (dtype, shape) = image.output().expect("a fixed size");
    let bytes = shape.iter().product::<usize>() * dtype.size().expect("numbers");
    let (mut slot, mut scratch) = (vec![0f32; bytes.div_ceil(4)], forebay::transform::image::Scratch::default());
    let mut number = 0;
    bencher.counter(ItemsCount::new(1usize)).bench_local(|| {
        number += 1;
        let slot = &mut bytemuck::cast_slice_mut(&mut slot)[..bytes];
        image.decode_into(black_box(encoded), forebay::random::Key::new(number), slot, &mut scratch).expect("sound")
    });
}

/// What does decoding a window of a JPEG cost, by the window's sides? The picture is `tests/data/images/large.jpg`.
#[divan::bench(args = [50, 100, 150])]
fn window_decode(bencher: Bencher<'_, '_>, side: u32) {
    decode(bencher, &photograph(), &Image::rgb().center_crop(side, side).to_u8());
}

/// What does resizing to 224 x 224 cost, by the sides of what is resized? The picture is uncompressed: `layout` says what the rest of the work costs.
#[divan::bench(args = [(160, 120), (300, 300), (500, 375), (1600, 1200)])]
fn resize(bencher: Bencher<'_, '_>, (width, height): (u32, u32)) {
    decode(bencher, &bitmap(width, height), &Image::rgb().resize(224, 224).to_u8());
}

/// What does writing pixels into the batch cost, unchanged and as normalised f32 planes? The picture is uncompressed, 224 x 224.
#[divan::bench(args = ["u8", "normalized"])]
fn layout(bencher: Bencher<'_, '_>, how: &str) {
    let image = Image::rgb().center_crop(224, 224);
    let image = if how == "u8" { image.to_u8() } else { image.normalize(IMAGENET_MEAN, IMAGENET_STD) };
    decode(bencher, &bitmap(224, 224), &image);
}

/// What does an image cost in the form that training needs: a random window of a JPEG, resized, flipped, normalised?
#[divan::bench]
fn random_resized_crop(bencher: Bencher<'_, '_>) {
    let image = Image::rgb().random_resized_crop(112, 112).horizontal_flip(0.5);
    decode(bencher, &photograph(), &image.normalize(IMAGENET_MEAN, IMAGENET_STD));
}

/// What do colour changes add to an image? A random window of the same JPEG as normalised planes of 224 x 224, with one change or all of them.
#[divan::bench(args = ["none", "brightness", "contrast", "saturation", "hue", "all", "gray"])]
fn colors(bencher: Bencher<'_, '_>, which: &str) {
    let image = Image::rgb().random_resized_crop(224, 224).normalize(IMAGENET_MEAN, IMAGENET_STD);
    let image = match which {
        "none" => image,
        "brightness" => image.color_jitter(0.4, 0.0, 0.0, 0.0),
        "contrast" => image.color_jitter(0.0, 0.4, 0.0, 0.0),
        "saturation" => image.color_jitter(0.0, 0.0, 0.4, 0.0),
        "hue" => image.color_jitter(0.0, 0.0, 0.0, 0.1),
        "all" => image.color_jitter(0.4, 0.4, 0.4, 0.1),
        _ => image.random_grayscale(1.0),
    };
    decode(bencher, &photograph(), &image);
}

/// Returns a data set with `columns` numbers per row, in memory.
fn numbers(columns: usize, rows: usize) -> Dataset {
    let ints: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows as i64));
    let floats: ArrayRef = Arc::new(Float32Array::from_iter_values((0..rows).map(|i| i as f32)));
    let column = |i: usize| (format!("c{i:02}"), if i.is_multiple_of(2) { ints.clone() } else { floats.clone() });
    Dataset::from_columns((0..columns).map(column)).expect("columns")
}

/// Runs whole epochs, each in a different order.
fn epochs(bencher: Bencher<'_, '_>, dataset: &Dataset, rows: usize, scheduler: Scheduler) {
    let mut loader = dataset.loader().scheduler(scheduler).build().expect("a loader");
    let mut epoch = 0;
    bencher.counter(ItemsCount::new(rows)).bench_local(|| {
        epoch += 1;
        loader.epoch(epoch).map(|batch| batch.expect("a batch").len()).sum::<usize>()
    });
}

const ROWS: usize = 1_000_000;

/// What does collating cost per row, by number of columns? 1,000,000 rows in their own order: nothing is permuted or gathered, rows are laid out in
/// the order in which they are stored. On the calling thread alone, batches of 1,024.
#[divan::bench(args = [1, 40], sample_count = 5)]
fn collate(bencher: Bencher<'_, '_>, columns: usize) {
    epochs(bencher, &numbers(columns, ROWS).batch(1024), ROWS, Scheduler::single_threaded());
}

/// What do permutation and gathering add to that? Rows go through a shuffle buffer of 100,000: planned segment by segment, gathered from some twenty
/// blocks. The second column adds only gathering and collating.
#[divan::bench(args = [1, 2, 40], sample_count = 5)]
fn permutation_and_gather(bencher: Bencher<'_, '_>, columns: usize) {
    let dataset = numbers(columns, ROWS).shuffle(Shuffle::buffer(100_000)).batch(1024);
    epochs(bencher, &dataset, ROWS, Scheduler::single_threaded());
}

/// And if all rows are permuted as a whole, by one formula per row, and gathered from everywhere?
#[divan::bench(args = [1, 2], sample_count = 5)]
fn global_permutation(bencher: Bencher<'_, '_>, columns: usize) {
    let dataset = numbers(columns, ROWS).shuffle(Shuffle::global()).batch(1024);
    epochs(bencher, &dataset, ROWS, Scheduler::single_threaded());
}

/// What does a batch cost that holds next to nothing: two tasks, each handed over between loop, pool and run? 20,000 batches of one row, on `threads`
/// workers.
#[divan::bench(args = [1, 2], sample_count = 5)]
fn hand_over(bencher: Bencher<'_, '_>, threads: usize) {
    epochs(bencher, &numbers(1, 20_000).batch(1), 20_000, Scheduler::threads(threads));
}

/// What does packing cost per token, by algorithm? 20,000 documents of 4 to 1,600 tokens, in memory, in their own order, are packed into rows of
/// 2,048: three columns of i64, written and laid out. On the calling thread alone.
#[divan::bench(args = ["first_fit", "best_fit", "longest_first", "concat_then_split"], sample_count = 5)]
fn pack(bencher: Bencher<'_, '_>, how: &str) {
    let pack = match how {
        "first_fit" => Pack::first_fit(2048),
        "best_fit" => Pack::best_fit(2048),
        "longest_first" => Pack::best_fit(2048).longest_first(),
        _ => Pack::concat_then_split(2048),
    };
    packed(bencher, pack, &[]);
}

/// And with best fit and further columns next to the tokens: `columns` more of i32?
#[divan::bench(args = [0, 1, 2], sample_count = 5)]
fn pack_beside(bencher: Bencher<'_, '_>, columns: usize) {
    packed(bencher, Pack::best_fit(2048), &["mask", "labels"][..columns]);
}

fn packed(bencher: Bencher<'_, '_>, pack: Pack, beside: &[&str]) {
    let length = |i: usize| (i * 7919 % 40 + 1) * (i * 104_729 % 37 + 4);
    let lists = (0..20_000).map(|i| Some((0..length(i)).map(|t| Some(t as i32))));
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists));
    let columns = std::iter::once(&"tokens").chain(beside).map(|&name| (name, lists.clone()));
    let dataset = Dataset::from_columns(columns).expect("columns");
    let pack = beside.iter().fold(pack, |pack, &name| pack.beside(name, 0));
    let tokens = (0..20_000).map(length).sum();
    epochs(bencher, &dataset.pack(pack).batch(32), tokens, Scheduler::single_threaded());
}
