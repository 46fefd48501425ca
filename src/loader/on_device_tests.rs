//! Operations on the device against plain loops over the values.
#![cfg(feature = "tch")]

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewArray, Int64Array, StringViewArray};
use half::{bf16, f16};
use tch::Kind;

use crate::device::ops::draw::{self, Mixed, Window};
use crate::device::ops::tensors::{Normalization, to_floats};
use crate::random::Key;
use crate::testing::restores_everywhere;
use crate::transform::image::{IMAGENET_MEAN, IMAGENET_STD};
use crate::{
    Batch, Column, Dataset, Device, Dtype, ErrorKind, Image, Layout, OnDevice, Result, Scheduler, Shape, Shuffle, World,
};

const HEIGHT: usize = 4;
const WIDTH: usize = 6;
const CLASSES: usize = 5;
const SEED: u64 = 11;

/// The byte of a sample's image at a place.
fn byte(id: u64, y: usize, x: usize, c: usize) -> u8 {
    (id * 37 + (y * 40 + x * 6 + c) as u64) as u8
}

fn at(layout: Layout, y: usize, x: usize, c: usize) -> usize {
    match layout {
        Layout::Nhwc => (y * WIDTH + x) * 3 + c,
        Layout::Nchw => (c * HEIGHT + y) * WIDTH + x,
    }
}

/// Every place of an image.
fn places() -> impl Iterator<Item = (usize, usize, usize)> {
    (0..HEIGHT).flat_map(|y| (0..WIDTH).flat_map(move |x| (0..3).map(move |c| (y, x, c))))
}

/// The values of an image in a layout.
fn image<T: Copy + Default>(layout: Layout, value: impl Fn(usize, usize, usize) -> T) -> Vec<T> {
    let mut out = vec![T::default(); HEIGHT * WIDTH * 3];
    places().for_each(|(y, x, c)| out[at(layout, y, x, c)] = value(y, x, c));
    out
}

/// `rows` images of bytes in this layout, and labels.
fn dataset(rows: i64, layout: Layout) -> Dataset {
    let extents = match layout {
        Layout::Nhwc => vec![HEIGHT, WIDTH, 3],
        Layout::Nchw => vec![3, HEIGHT, WIDTH],
    };
    Dataset::from_columns([("label", Arc::new(Int64Array::from_iter_values((0..rows).map(|id| id % 5))) as ArrayRef)])
        .unwrap()
        .map("paint", [Column::new("image", Dtype::U8, Shape::Fixed(extents))], move |context, _, out| {
            out.set_values("image", &image(layout, |y, x, c| byte(context.sample(), y, x, c)))
        })
        .shuffle(Shuffle::buffer(16))
}

fn images(layout: Layout) -> OnDevice {
    OnDevice::images("image").layout(layout)
}

/// The batches of two epochs.
fn batches(dataset: &Dataset, what: &OnDevice) -> Vec<Batch> {
    let mut loader = dataset.loader().seed(SEED).on_device(what.clone()).build().unwrap();
    (0..2).flat_map(|epoch| loader.epoch(epoch)).collect::<Result<_>>().unwrap()
}

fn key(operation: &str, batch: &Batch) -> Key {
    let key = Key::new(SEED).with("on device").with("image").with(operation);
    key.with_number(batch.epoch()).with_number(batch.step())
}

fn mixed(batch: &Batch, what: &OnDevice) -> Mixed {
    draw::mixed(key("mix", batch).with_number(batch.samples()[0]), what, (HEIGHT as u32, WIDTH as u32))
}

/// The sample before each of a batch.
fn partners(batch: &Batch) -> Vec<u64> {
    let mut before = batch.samples().to_vec();
    before.rotate_right(1);
    before
}

fn assert_close(got: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let furthest = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(furthest <= 1e-6, "{what}: {furthest} apart");
}

fn assert_rows(batch: &Batch, column: &str, row: impl Fn(usize, u64) -> Vec<f32>) {
    let wanted: Vec<f32> = batch.samples().iter().enumerate().flat_map(|(at, &id)| row(at, id)).collect();
    assert_close(&batch.values::<f32>(column).unwrap(), &wanted, column);
}

#[test]
fn drawn_samples_are_mirrored_and_others_left_as_they_are() {
    for layout in [Layout::Nhwc, Layout::Nchw] {
        let dataset = dataset(96, layout).batch(32);
        let mut flips = 0;
        for batch in batches(&dataset, &images(layout).horizontal_flip(0.5)) {
            let rows = draw::flipped(key("horizontal_flip", &batch), 0.5, batch.samples());
            flips += rows.len();
            let wanted: Vec<u8> = (0..)
                .zip(batch.samples())
                .flat_map(|(row, &id)| {
                    let mirror = rows.contains(&row);
                    image(layout, move |y, x, c| byte(id, y, if mirror { WIDTH - 1 - x } else { x }, c))
                })
                .collect();
            assert_eq!(batch.values::<u8>("image").unwrap(), wanted, "{layout:?}");
        }
        assert!((60..132).contains(&flips), "{flips} of 192");
    }
    let dataset = dataset(8, Layout::Nhwc).batch(8);
    for (probability, mirror) in [(0.0, false), (1.0, true)] {
        let batch = &batches(&dataset, &images(Layout::Nhwc).horizontal_flip(probability))[0];
        let value = |id| image(Layout::Nhwc, move |y, x, c| byte(id, y, if mirror { WIDTH - 1 - x } else { x }, c));
        let wanted: Vec<u8> = batch.samples().iter().flat_map(|&id| value(id)).collect();
        assert_eq!(batch.values::<u8>("image").unwrap(), wanted);
    }
}

#[test]
fn layouts_are_changed_in_shape_and_memory() {
    for (from, to) in [(Layout::Nhwc, Layout::Nchw), (Layout::Nchw, Layout::Nhwc), (Layout::Nchw, Layout::Nchw)] {
        let what = if to == Layout::Nchw { images(from).channels_first() } else { images(from).channels_last() };
        let batch = &batches(&dataset(4, from).batch(4), &what)[0];
        let shape = if to == Layout::Nchw { [4, 3, HEIGHT, WIDTH] } else { [4, HEIGHT, WIDTH, 3] };
        assert_eq!(batch.shape("image").unwrap(), shape);
        assert!(batch.tensor("image").unwrap().is_contiguous());
        let wanted: Vec<u8> =
            batch.samples().iter().flat_map(|&id| image(to, move |y, x, c| byte(id, y, x, c))).collect();
        assert_eq!(batch.values::<u8>("image").unwrap(), wanted, "{from:?} to {to:?}");
    }
}

#[test]
fn normalised_bytes_are_those_of_the_image_pipeline() {
    let encoded: Vec<Vec<u8>> = (0..16)
        .map(|id| {
            let pixels = image(Layout::Nhwc, |y, x, c| byte(id, y, x, c));
            let picture = image::RgbImage::from_raw(WIDTH as u32, HEIGHT as u32, pixels).unwrap();
            let mut file = Cursor::new(Vec::new());
            picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
            file.into_inner()
        })
        .collect();
    let dataset =
        Dataset::from_columns([("image", Arc::new(BinaryViewArray::from_iter_values(encoded)) as _)]).unwrap();
    let decoded = Image::rgb().center_crop(HEIGHT as u32, WIDTH as u32);
    let on_workers = decoded.clone().normalize(IMAGENET_MEAN, IMAGENET_STD);
    let wanted = dataset.image("image", on_workers.clone()).batch(16).loader().build().unwrap().into_iter().next();
    let wanted = wanted.unwrap().unwrap();
    let normalize = OnDevice::images("image").normalize(IMAGENET_MEAN, IMAGENET_STD);
    let cases = [
        (decoded.clone(), normalize.clone()),
        (decoded.clone().layout(Layout::Nhwc), normalize.clone().channels_first()),
        (decoded.clone().to_f32(), normalize.clone()),
    ];
    for (image, what) in cases {
        let batch = &batches(&dataset.image("image", image).batch(16), &what)[0];
        assert_eq!(batch.shape("image").unwrap(), wanted.shape("image").unwrap());
        assert_close(&batch.values::<f32>("image").unwrap(), &wanted.values::<f32>("image").unwrap(), "normalised");
    }
    let twice = dataset.image("image", on_workers).batch(16).loader().on_device(normalize).build().err().unwrap();
    assert!(twice.to_string().contains("would be again"), "{twice}");
}

#[test]
fn every_byte_is_normalised_as_by_the_tables() {
    let bytes: Vec<u8> = (0..=255).flat_map(|byte| [byte; 3]).collect();
    let tensor = tch::Tensor::from_slice(&bytes).view([1, 16, 16, 3]);
    let (mean, std) = (&IMAGENET_MEAN[..], &IMAGENET_STD[..]);
    let normalization = Normalization::new(&tensor, Layout::Nhwc, mean, std).unwrap();
    let floats = to_floats(&tensor, Some(&normalization)).unwrap();
    let wanted: Vec<f32> =
        bytes.iter().enumerate().map(|(i, &b)| (f32::from(b) / 255.0 - mean[i % 3]) / std[i % 3]).collect();
    assert_close(&Vec::try_from(floats.reshape([-1])).unwrap(), &wanted, "normalised");
    let floats = to_floats(&tensor, None).unwrap();
    let wanted: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0).collect();
    assert_close(&Vec::try_from(floats.reshape([-1])).unwrap(), &wanted, "scaled");
}

#[test]
fn half_precision_is_rounded_to_once() {
    let dataset = dataset(4, Layout::Nhwc).batch(4);
    let plain = images(Layout::Nhwc).normalize(IMAGENET_MEAN, IMAGENET_STD);
    let floats = batches(&dataset, &plain)[0].values::<f32>("image").unwrap().into_owned();
    let halves = &batches(&dataset, &plain.clone().to(Kind::Half))[0];
    let wanted: Vec<f16> = floats.iter().map(|&value| f16::from_f32(value)).collect();
    assert_eq!(halves.values::<f16>("image").unwrap(), wanted);
    assert!(halves.values::<f32>("image").is_err());
    let brains = &batches(&dataset, &plain.to(Kind::BFloat16))[0];
    let wanted: Vec<f32> = floats.iter().map(|&value| bf16::from_f32(value).to_f32()).collect();
    assert_eq!(brains.values::<f32>("image").unwrap(), wanted);
    assert_eq!(brains.tensor("image").unwrap().kind(), Kind::BFloat16);
    assert_eq!(brains.to_dlpack("image").unwrap().dtype(), crate::dlpack::DLDataType { code: 4, bits: 16, lanes: 1 });
    assert!(format!("{brains:?}").contains("image: bf16[4, 4, 6, 3]"), "{brains:?}");
    let scaled = &batches(&dataset, &images(Layout::Nhwc).to(Kind::Float))[0];
    assert_rows(scaled, "image", |_, id| image(Layout::Nhwc, |y, x, c| f32::from(byte(id, y, x, c)) / 255.0));
}

#[test]
fn mixup_weighs_each_sample_and_label_with_the_one_before() {
    let what = images(Layout::Nhwc).channels_first().labels("label", CLASSES).mixup(0.4, 0.75);
    let (mut plain, mut mixed_ones) = (0, 0);
    for batch in batches(&dataset(160, Layout::Nhwc).batch(10), &what) {
        let own = match mixed(&batch, &what) {
            Mixed::Not => 1.0,
            Mixed::Whole(own) => own,
            Mixed::Box(..) => panic!("nobody asked for it"),
        };
        if own == 1.0 {
            plain += 1
        } else {
            mixed_ones += 1
        }
        let before = partners(&batch);
        let weigh = |a: f64, b: f64| (own * a + (1.0 - own) * b) as f32;
        assert_eq!(batch.shape("image").unwrap(), [10, 3, HEIGHT, WIDTH]);
        assert_rows(&batch, "image", |row, id| {
            let value = |id, y, x, c| f64::from(byte(id, y, x, c)) / 255.0;
            image(Layout::Nchw, |y, x, c| weigh(value(id, y, x, c), value(before[row], y, x, c)))
        });
        check_labels(&batch, own);
    }
    assert!(plain > 0 && mixed_ones > 6, "{plain} {mixed_ones}");
}

/// Labels are `own` of each sample's class, and the rest of that of the sample before.
fn check_labels(batch: &Batch, own: f64) {
    let before = partners(batch);
    assert_eq!(batch.shape("label").unwrap(), [batch.len(), CLASSES]);
    let is = |id: u64, class: usize| f64::from(u8::from(id as usize % 5 == class));
    assert_rows(batch, "label", |row, id| {
        (0..CLASSES).map(|class| (own * is(id, class) + (1.0 - own) * is(before[row], class)) as f32).collect()
    });
    for label in batch.values::<f32>("label").unwrap().chunks_exact(CLASSES) {
        assert!((label.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}

#[test]
fn cutmix_takes_a_box_of_the_image_before_and_its_share_of_the_label() {
    for layout in [Layout::Nhwc, Layout::Nchw] {
        let what = images(layout).normalize([0.5; 3], [0.25; 3]).labels("label", CLASSES).cutmix(1.0, 1.0);
        let mut cut = 0;
        for batch in batches(&dataset(160, layout).batch(10), &what) {
            let Mixed::Box(Window { left, top, right, bottom }, own) = mixed(&batch, &what) else {
                panic!("it is certain")
            };
            cut += (right - left) * (bottom - top);
            let before = partners(&batch);
            assert_rows(&batch, "image", |row, id| {
                image(layout, |y, x, c| {
                    let inside = (left..right).contains(&(x as u32)) && (top..bottom).contains(&(y as u32));
                    (f32::from(byte(if inside { before[row] } else { id }, y, x, c)) / 255.0 - 0.5) / 0.25
                })
            });
            check_labels(&batch, own);
        }
        assert!(cut > 16, "{cut}");
    }
}

#[test]
fn a_batch_gets_mixup_or_cutmix_and_flips_come_first() {
    let what = images(Layout::Nhwc).horizontal_flip(0.5).labels("label", CLASSES).mixup(1.0, 0.5).cutmix(1.0, 0.5);
    let mut kinds = [0; 2];
    for batch in batches(&dataset(160, Layout::Nhwc).batch(10), &what) {
        let flips = draw::flipped(key("horizontal_flip", &batch), 0.5, batch.samples());
        let before = partners(&batch);
        let value = |row: usize, id, y, x, c| {
            let x = if flips.contains(&(row as i64)) { WIDTH - 1 - x } else { x };
            f64::from(byte(id, y, x, c)) / 255.0
        };
        let drawn = mixed(&batch, &what);
        assert_rows(&batch, "image", |row, id| {
            let partner = (row + 9) % 10;
            image(Layout::Nhwc, |y, x, c| {
                let (mine, other) = (value(row, id, y, x, c), value(partner, before[row], y, x, c));
                let weight = match drawn {
                    Mixed::Not => 1.0,
                    Mixed::Whole(own) => own,
                    Mixed::Box(w, _) => {
                        let inside = (w.left..w.right).contains(&(x as u32)) && (w.top..w.bottom).contains(&(y as u32));
                        f64::from(u8::from(!inside))
                    }
                };
                (weight * mine + (1.0 - weight) * other) as f32
            })
        });
        match drawn {
            Mixed::Not => panic!("the probabilities sum to 1"),
            Mixed::Whole(_) => kinds[0] += 1,
            Mixed::Box(..) => kinds[1] += 1,
        }
    }
    assert!(kinds[0] > 2 && kinds[1] > 2, "{kinds:?}");
}

#[test]
fn labels_alone_become_smoothed_shares() {
    let what = images(Layout::Nhwc).labels("label", CLASSES).label_smoothing(0.2);
    let batch = &batches(&dataset(10, Layout::Nhwc).batch(10), &what)[0];
    assert_rows(batch, "label", |_, id| {
        (0..CLASSES).map(|class| if id as usize % 5 == class { 0.84 } else { 0.04 }).collect()
    });
    let untouched: Vec<u8> =
        batch.samples().iter().flat_map(|&id| image(Layout::Nhwc, move |y, x, c| byte(id, y, x, c))).collect();
    assert_eq!(batch.values::<u8>("image").unwrap(), untouched);
}

#[test]
fn a_batch_of_one_sample_is_not_mixed() {
    let what = images(Layout::Nhwc).labels("label", CLASSES).mixup(1.0, 0.5).cutmix(1.0, 0.5);
    let all = batches(&dataset(9, Layout::Nhwc).batch(4), &what);
    let last = all.last().unwrap();
    assert_eq!(last.len(), 1);
    assert_rows(last, "image", |_, id| image(Layout::Nhwc, |y, x, c| f32::from(byte(id, y, x, c)) / 255.0));
    check_labels(last, 1.0);
}

/// All operations that draw.
fn everything() -> OnDevice {
    let what = images(Layout::Nhwc).horizontal_flip(0.5).channels_first().normalize(IMAGENET_MEAN, IMAGENET_STD);
    what.labels("label", CLASSES).mixup(0.8, 0.4).cutmix(1.0, 0.4)
}

fn all_values(batches: &[Batch]) -> Vec<Vec<f32>> {
    let of = |batch: &Batch| {
        let columns = ["image", "label"].map(|column| batch.values::<f32>(column).unwrap().into_owned());
        columns.concat()
    };
    batches.iter().map(of).collect()
}

#[test]
fn results_are_of_the_seed_and_epoch_whatever_the_threads() {
    let dataset = dataset(50, Layout::Nhwc).batch(8);
    let run = |seed, scheduler, epoch| {
        let mut loader = dataset.loader().seed(seed).scheduler(scheduler).on_device(everything()).build().unwrap();
        all_values(&loader.epoch(epoch).collect::<Result<Vec<_>>>().unwrap())
    };
    let one = run(1, Scheduler::single_threaded(), 0);
    assert_eq!(one, run(1, Scheduler::threads(3), 0));
    assert_ne!(one, run(2, Scheduler::threads(3), 0));
    assert_ne!(one, run(1, Scheduler::threads(3), 1));
}

#[test]
fn a_restored_run_goes_on_with_equal_batches() {
    restores_everywhere(dataset(50, Layout::Nhwc).batch(8).loader().seed(5).on_device(everything())).unwrap();
}

#[test]
fn a_replayed_batch_is_the_one_that_the_loop_had() {
    let mut loader = dataset(50, Layout::Nhwc).batch(8).loader().seed(5).on_device(everything()).build().unwrap();
    let had: Vec<Batch> = loader.epoch(1).collect::<Result<_>>().unwrap();
    let again = loader.replay(1, 3, 0).unwrap().batch;
    assert_eq!(all_values(&[again]), all_values(&had[3..4]));
}

#[test]
fn each_lane_of_a_split_works_on_its_part() {
    let what = images(Layout::Nhwc).horizontal_flip(0.5).labels("label", CLASSES).mixup(0.8, 1.0);
    let dataset = dataset(48, Layout::Nhwc).batch(12);
    let mut loader = dataset.loader().seed(SEED).on_device(what.clone()).build().unwrap();
    let lanes = loader.split(&[Device::Cpu, Device::Cpu]).unwrap();
    let lanes: Vec<Vec<Batch>> = std::thread::scope(|scope| {
        let lanes: Vec<_> =
            lanes.into_iter().map(|lane| scope.spawn(move || lane.collect::<Result<Vec<_>>>().unwrap())).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
    });
    let flips = images(Layout::Nhwc).horizontal_flip(0.5);
    for (step, whole) in batches(&dataset, &flips).iter().filter(|batch| batch.epoch() == 0).enumerate() {
        let halves = [&lanes[0][step], &lanes[1][step]];
        assert_eq!([halves[0].samples(), halves[1].samples()].concat(), whole.samples());
        // What each image is before mixing: flips do not depend on the lane.
        let flipped = whole.values::<u8>("image").unwrap();
        let size = HEIGHT * WIDTH * 3;
        let mut weights = Vec::new();
        for (lane, half) in halves.into_iter().enumerate() {
            let Mixed::Whole(own) = mixed(half, &what) else { panic!("it is certain") };
            weights.push(own);
            assert_rows(half, "image", |row, _| {
                let value = |row: usize, i: usize| f64::from(flipped[(lane * 6 + row) * size + i]) / 255.0;
                (0..size).map(|i| (own * value(row, i) + (1.0 - own) * value((row + 5) % 6, i)) as f32).collect()
            });
            check_labels(half, own);
        }
        assert_ne!(weights[0], weights[1], "each lane draws its own");
    }
}

#[test]
fn flips_are_equal_for_every_number_of_ranks() {
    let dataset = dataset(48, Layout::Nhwc).batch(12);
    let what = images(Layout::Nhwc).horizontal_flip(0.5);
    let run = |rank, size| {
        let world = World::new(rank, size).unwrap();
        let loader = dataset.loader().seed(SEED).streams(4).world(world).on_device(what.clone()).build().unwrap();
        loader.into_iter().collect::<Result<Vec<_>>>().unwrap()
    };
    let (alone, ranks) = (run(0, 1), [run(0, 2), run(1, 2)]);
    for (step, whole) in alone.iter().enumerate() {
        let mut parts = std::collections::HashMap::new();
        for part in ranks.iter().map(|rank| &rank[step]) {
            let values = part.values::<u8>("image").unwrap().into_owned();
            let images: Vec<Vec<u8>> = values.chunks_exact(HEIGHT * WIDTH * 3).map(<[u8]>::to_vec).collect();
            parts.extend(part.samples().iter().copied().zip(images));
        }
        for (id, image) in
            whole.samples().iter().zip(whole.values::<u8>("image").unwrap().chunks_exact(HEIGHT * WIDTH * 3))
        {
            assert_eq!(parts[id], image, "sample {id} of step {step}");
        }
    }
}

#[test]
fn what_does_not_suit_the_columns_is_refused_all_at_once() {
    let text = StringViewArray::from_iter_values((0..8).map(|i| i.to_string()));
    let text = arrow::compute::cast(&text, &arrow::datatypes::DataType::BinaryView).unwrap();
    let dataset = dataset(8, Layout::Nhwc).zip(&Dataset::from_columns([("text", text)]).unwrap()).batch(4);
    let error = dataset
        .loader()
        .on_device(OnDevice::images("picture").horizontal_flip(0.5))
        .on_device(OnDevice::images("label").labels("text", 5))
        .on_device(OnDevice::images("image").normalize([0.5], [0.5]).layout(Layout::Nhwc))
        .build()
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    let message = error.to_string();
    for part in [
        "4 mistakes",
        "batches have no column \"picture\"; name one of theirs: label, image, text",
        "`text: bytes` holds no class numbers",
        "`label: i64` holds no images",
        ".normalize(..) has 1 channels, the images 3",
    ] {
        assert!(message.contains(part), "{part} is missing in {message}");
    }
    let unknown = dataset.loader().on_device(OnDevice::images("image").horizontal_flip(0.5)).build().err().unwrap();
    assert!(unknown.to_string().contains("say .layout(Layout::Nhwc)"), "{unknown}");

    let what = OnDevice::images("image").horizontal_flip(2.0).labels("label", 0);
    let error = dataset.loader().on_device(what.clone()).on_device(what).build().err().unwrap().to_string();
    for part in ["6 mistakes", "column image is named twice", "column label is named twice", "a probability is 0 to 1"]
    {
        assert!(error.contains(part), "{part} is missing in {error}");
    }
}

#[test]
fn a_layout_that_contradicts_the_decoder_is_refused() {
    let bytes = Arc::new(BinaryViewArray::from_iter_values([b"-"])) as _;
    let dataset = Dataset::from_columns([("image", bytes)]).unwrap().image("image", Image::rgb().resize(2, 2)).batch(1);
    let error = dataset.loader().on_device(images(Layout::Nhwc).horizontal_flip(0.5)).build().err().unwrap();
    assert!(error.to_string().contains(".layout(Nhwc), where images are decoded as Nchw"), "{error}");
}

#[test]
fn a_label_that_is_no_class_ends_the_epoch_with_its_sample() {
    let dataset = dataset(10, Layout::Nhwc).batch(10);
    let what = images(Layout::Nhwc).labels("label", 4);
    let mut epoch = dataset.loader().on_device(what).build().unwrap().into_iter();
    let error = epoch.next().unwrap().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("the label 4 is none of 4 classes"), "{error}");
    assert!([4, 9].contains(&error.place().sample.unwrap()), "{error}");
    assert!(epoch.next().is_none());
}

#[test]
fn a_row_of_a_wrong_label_is_nan_where_nobody_looked() {
    let labels = tch::Tensor::from_slice(&[1i64, -1, 2]);
    let (soft, wrong) = crate::device::ops::tensors::one_hot(&labels, 2, 0.0).unwrap();
    assert_eq!(Vec::<bool>::try_from(wrong).unwrap(), [false, true, true]);
    let soft = Vec::<f32>::try_from(soft.reshape([-1])).unwrap();
    assert_eq!(soft[..2], [0.0, 1.0]);
    assert!(soft[2..].iter().all(|value| value.is_nan()));
}

#[test]
fn the_report_has_a_line_for_it() {
    let dataset = dataset(40, Layout::Nhwc).batch(8);
    let mut loader = dataset.loader().on_device(everything()).build().unwrap();
    loader.epoch(0).try_for_each(|batch| batch.map(drop)).unwrap();
    let report = loader.report();
    let stage = report.stage("on device").unwrap();
    let floats = HEIGHT * WIDTH * 3 + CLASSES;
    assert_eq!((stage.rows, stage.bytes), (40, 40 * floats as u64 * 4));
    assert!(!stage.busy.is_zero());
    assert_eq!(report.waited.iter().find(|(name, _)| name == "on device").unwrap().1, stage.busy);
    let mut plain = dataset.loader().build().unwrap();
    plain.epoch(0).try_for_each(|batch| batch.map(drop)).unwrap();
    assert!(plain.report().stage("on device").is_none());
}
