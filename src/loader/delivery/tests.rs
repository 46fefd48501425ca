//! Loaders over an emulated device, which works in any order that events leave open.
#![expect(
    unsafe_code,
    reason = "kernels of the emulated device look at memory when they run, not when they are queued"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, ListArray};
use arrow::datatypes::{DataType, Field, Int64Type};
use rand::Rng as _;

use super::super::*;
use super::Delivery;
use crate::batch::{Batch, Pad};
use crate::dataset::Dataset;
use crate::device::Copier;
use crate::device::emulated::{Call, Emulated};
use crate::engine::{Budget, Scheduler};
use crate::error::ErrorKind;
use crate::random::Key;
use crate::schema::Element;

/// Floats of a sample: four samples have a tensor of their own, the other columns share one.
const WIDTH: usize = 70_000;
const ROWS: u64 = 23;

fn pixel(id: u64, at: usize) -> f32 {
    (id * 1000 + at as u64 % 997) as f32
}

fn list(id: u64) -> Vec<i64> {
    (0..id as i64 % 6).map(|at| at * 100 + id as i64).collect()
}

/// Images, labels, lists with a bound, and lists without a bound. The latter cross in pieces, which makes copies wait for whatever is queued on the
/// default stream.
fn dataset(rows: u64) -> Dataset {
    without_free(rows, false)
}

/// As [`dataset`], but without the lists that have no bound if `without` is set.
fn without_free(rows: u64, without: bool) -> Dataset {
    let ids = || 0..rows;
    let pixels = Float32Array::from_iter_values(ids().flat_map(|id| (0..WIDTH).map(move |at| pixel(id, at))));
    let item = Arc::new(Field::new_list_field(DataType::Float32, false));
    let pixels = FixedSizeListArray::new(item, WIDTH as i32, Arc::new(pixels), None);
    let lists =
        || ListArray::from_iter_primitive::<Int64Type, _, _>(ids().map(|id| Some(list(id).into_iter().map(Some))));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("image", Arc::new(pixels)),
        ("label", Arc::new(Int64Array::from_iter_values(ids().map(|id| id as i64 * 7)))),
        ("bounded", Arc::new(lists())),
        ("free", Arc::new(lists())),
    ];
    let columns = columns.into_iter().filter(|(name, _)| *name != "free" || !without);
    Dataset::from_columns(columns).unwrap().pad("bounded", Pad::to(8))
}

fn numbers(rows: i64) -> Dataset {
    Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(0..rows)) as _)]).unwrap()
}

fn on(device: &Arc<Emulated>, builder: LoaderBuilder) -> Loader {
    let mut loader = builder.build().unwrap();
    loader.deliver_through(device.clone()).unwrap();
    loader
}

/// What kernels found wrong.
type Wrong = Arc<Mutex<Vec<String>>>;

/// Queues a kernel that looks at a tensor.
fn look<T: Element>(device: &Emulated, wrong: &Wrong, name: &str, tensor: &tch::Tensor, expected: Vec<T>) {
    let (wrong, what) = (wrong.clone(), format!("{name} {:?}", tensor.size()));
    let (data, len) = (tensor.data_ptr() as usize, tensor.numel());
    device.launch(move || {
        // SAFETY: memory of the device is never returned to the system while it has anything queued; what it holds is what is tested.
        let found: &[T] = unsafe { std::slice::from_raw_parts(data as *const T, len) };
        if bytemuck::cast_slice::<T, u8>(found) != bytemuck::cast_slice::<T, u8>(&expected) {
            wrong.lock().unwrap().push(what);
        }
    });
}

/// Queues kernels that look at the whole batch.
fn look_at(device: &Emulated, wrong: &Wrong, batch: &Batch) {
    let ids = batch.samples();
    let padded = |extent: usize| -> Vec<i64> {
        ids.iter().flat_map(|&id| list(id).into_iter().chain(std::iter::repeat(0)).take(extent)).collect()
    };
    let tensor = |name: &str| batch.tensor(name).unwrap();
    let pixels = ids.iter().flat_map(|&id| (0..WIDTH).map(move |at| pixel(id, at))).collect();
    look::<f32>(device, wrong, "image", &tensor("image"), pixels);
    look::<i64>(device, wrong, "label", &tensor("label"), ids.iter().map(|&id| id as i64 * 7).collect());
    look::<i64>(device, wrong, "bounded", &tensor("bounded"), padded(8));
    if let Ok(shape) = batch.shape("free") {
        look::<i64>(device, wrong, "free", &tensor("free"), padded(shape[1]));
    }
}

/// Uses memory of the device as a model does: kernels fill it, and others look at it later.
fn use_memory(device: &Emulated, wrong: &Wrong, len: usize) {
    let tensor = device.allocate(len).unwrap();
    let data = tensor.data_ptr() as usize;
    // SAFETY: as in `look`.
    device.launch(move || unsafe { std::slice::from_raw_parts_mut(data as *mut u8, len) }.fill(77));
    (0..20).for_each(|_| look::<u8>(device, wrong, "the model's", &tensor, vec![77; len]));
}

#[test]
fn every_batch_is_whole_when_its_kernels_run_whatever_the_device_does_first() {
    for seed in 0..30 {
        let mut rng = Key::new(seed).rng();
        let device = Emulated::new(seed, Duration::from_micros(rng.random_range(0..400)));
        let wrong = Wrong::default();
        let scheduler = match rng.random_range(0..4) {
            0 => Scheduler::single_threaded(),
            threads => Scheduler::threads(threads),
        };
        let prefetch = rng.random_range(1..4);
        let dataset = without_free(ROWS, seed % 3 > 0).shuffle(crate::Shuffle::buffer(7)).batch(4).prefetch(prefetch);
        let mut loader = on(&device, dataset.loader().seed(seed).scheduler(scheduler));
        let mut seen = Vec::new();
        for epoch in 0..3 {
            let stop = if rng.random_bool(0.3) { rng.random_range(0..6) } else { usize::MAX };
            let mut label = None;
            for batch in loader.epoch(epoch).take(stop) {
                let batch = batch.unwrap();
                look_at(&device, &wrong, &batch);
                if rng.random_bool(0.3) {
                    label = Some(batch.tensor("label").unwrap());
                }
                if rng.random_bool(0.2) {
                    device.finish();
                }
                seen.extend(batch.samples().iter().map(|id| (epoch, *id)));
            }
            drop(label);
            use_memory(&device, &wrong, (WIDTH * 16).next_multiple_of(256));
            if stop == usize::MAX {
                let mut ids: Vec<_> = seen.drain(..).map(|(_, id)| id).collect();
                ids.sort_unstable();
                assert_eq!(ids, (0..ROWS).collect::<Vec<_>>());
            }
            seen.clear();
        }
        let ring = loader.report().rings[0];
        assert_eq!((ring.slots, device.memory().0), (prefetch + 2, 2), "locked once, and pieces for what has no bound");
        drop(loader);
        device.finish();
        assert_eq!(*wrong.lock().unwrap(), [""; 0], "seed {seed}");
        assert!(device.is_given_back(), "seed {seed}: {:?}", device.memory());
    }
}

#[test]
fn nobody_but_the_loop_waits_for_pieces_behind_kernels() {
    let device = Emulated::new(0, Duration::ZERO);
    let wrong = Wrong::default();
    // More columns than there are pieces, and one that takes several.
    let columns = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let of = |name, id| if (name, id) == ("b", 0) { (0..600_000).collect() } else { list(id) };
    let lists = |name| {
        let lists = (0..48).map(|id| Some(of(name, id).into_iter().map(Some)));
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))
    };
    let (made, rows) = std::sync::mpsc::channel();
    let dataset = Dataset::from_columns(columns.map(|name| (name, lists(name) as _))).unwrap();
    let counted = dataset.map("count", [], move |_, _, _| {
        _ = made.send(());
        Ok(())
    });
    let (end, ended) = std::sync::mpsc::channel::<()>();
    device.launch(move || _ = ended.recv());
    let mut loader = on(&device, counted.batch(4).prefetch(6).loader().scheduler(Scheduler::threads(2)));
    let mut batches = loader.epoch(0);
    // The window is filled: six batches, and the one that is being made.
    let filled = (0..28).take_while(|_| rows.recv_timeout(Duration::from_secs(10)).is_ok()).count();
    drop(end);
    assert_eq!(filled, 28);
    for batch in &mut batches {
        let batch = batch.unwrap();
        for name in columns {
            let extent = batch.shape(name).unwrap()[1];
            let ids = batch.samples().iter();
            let wanted =
                ids.flat_map(|&id| of(name, id).into_iter().chain(std::iter::repeat(0)).take(extent)).collect();
            look::<i64>(&device, &wrong, name, &batch.tensor(name).unwrap(), wanted);
        }
    }
    drop(batches);
    assert_eq!(loader.report().rings[0].crossed, 12);
    drop(loader);
    device.finish();
    assert_eq!(*wrong.lock().unwrap(), [""; 0]);
    assert!(device.is_given_back());
}

#[test]
fn workers_fill_the_pieces_of_the_next_batch_without_being_asked() {
    let device = Emulated::new(0, Duration::ZERO);
    let lists =
        ListArray::from_iter_primitive::<Int64Type, _, _>((0..8).map(|id| Some(list(id + 1).into_iter().map(Some))));
    let dataset = Dataset::from_columns([("list", Arc::new(lists) as _)]).unwrap().batch(4).prefetch(1);
    let mut loader = on(&device, dataset.loader().scheduler(Scheduler::threads(1)));
    let mut batches = loader.epoch(0);
    let first = batches.next().unwrap().unwrap();
    // A batch's copies end with an event.
    let copies = || device.log().iter().filter(|call| call.starts_with("copy")).count();
    let begun = std::time::Instant::now();
    while copies() < 2 && begun.elapsed() < Duration::from_secs(60) {
        std::thread::yield_now();
    }
    assert_eq!(copies(), 2, "{:?}", device.log());
    drop((first, batches));
}

#[test]
fn devices_share_each_batch_and_one_may_stop() {
    for seed in 0..10 {
        let devices = [0, 1].map(|device| Emulated::new(seed * 2 + device, Duration::from_micros(200)));
        let mut loader = dataset(24).batch(8).loader().scheduler(Scheduler::threads(2)).build().unwrap();
        loader.split.0 = vec![Device::Cuda(0), Device::Cuda(1)];
        let rings = devices.iter().map(|device| {
            let copier: Arc<dyn Copier> = device.clone();
            Delivery::through(Some(copier), &loader.shared.pipeline, 2, &loader.shared.account).unwrap()
        });
        loader.split.1 = rings.collect();
        for _ in 0..2 {
            let iterators = loader.split(&[Device::Cuda(0), Device::Cuda(1)]).unwrap();
            let wrong = Wrong::default();
            let taken: Vec<usize> = std::thread::scope(|scope| {
                let threads: Vec<_> = iterators
                    .into_iter()
                    .enumerate()
                    .map(|(lane, iterator)| {
                        let (device, wrong) = (devices[lane].clone(), wrong.clone());
                        let stop = if lane == 1 && seed % 2 == 1 { 1 } else { 3 };
                        scope.spawn(move || {
                            let batches = iterator.take(stop).map(|batch| look_at(&device, &wrong, &batch.unwrap()));
                            batches.count()
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(taken, if seed % 2 == 1 { [3, 1] } else { [3, 3] });
            devices.iter().for_each(|device| device.finish());
            assert_eq!(*wrong.lock().unwrap(), [""; 0]);
        }
        let crossed: Vec<u64> = loader.report().rings.iter().map(|ring| ring.crossed).collect();
        assert_eq!(crossed, if seed % 2 == 1 { [6, 2] } else { [6, 6] });
        drop(loader);
        assert!(devices.iter().all(|device| device.is_given_back() && device.memory().0 == 2), "locked once");
    }
}

#[test]
fn an_iterator_that_is_dropped_gives_its_tensors_back() {
    let devices = [0, 1].map(|seed| Emulated::new(seed, Duration::ZERO));
    let mut loader = numbers(64).batch(8).loader().scheduler(Scheduler::single_threaded()).build().unwrap();
    let both = [Device::Cuda(0), Device::Cuda(1)];
    let rings = devices.iter().map(|device| {
        let copier: Arc<dyn Copier> = device.clone();
        Delivery::through(Some(copier), &loader.shared.pipeline, 2, &loader.shared.account).unwrap()
    });
    loader.split = (both.to_vec(), rings.collect());
    let mut iterators = loader.split(&both).unwrap();
    let locked = loader.report().rings[1].bytes as usize;
    assert!(devices[1].memory().1 > locked, "there are tensors for the first batches");
    drop(iterators.pop());
    assert_eq!(devices[1].memory().1, locked);
    assert_eq!(iterators.pop().unwrap().map(Result::unwrap).count(), 8);
}

#[test]
fn the_order_of_events_is_that_of_the_design() {
    let device = Emulated::new(0, Duration::ZERO);
    let mut loader = on(&device, numbers(8).batch(2).prefetch(2).loader().scheduler(Scheduler::single_threaded()));
    let at = |from: &mut usize| {
        let log = device.log();
        let new = log[*from..].join(", ");
        *from = log.len();
        new
    };
    let mut from = 0;
    // Four slots of 256 bytes, and eight pieces of 1 MiB.
    assert_eq!(at(&mut from), "lock 1024, lock 8388608");
    let mut batches = loader.epoch(0);
    // Before anything is read: tensors for two batches, each with an event behind what may still use their memory.
    assert_eq!(at(&mut from), "allocate 256, record 0 on Default, allocate 256, record 1 on Default");
    let first = batches.next().unwrap().unwrap();
    let copy = |ready: usize, begun: usize| {
        let copied = begun + 1;
        format!("Copy waits for {ready}, mark {begun} on Copy, copy 16, record {copied} on Copy")
    };
    // The loop asks. Batch 0 is copied when it is finished. At its hand-over, before kernels are queued: tensors and event for batch 2, and only then
    // does the default stream wait for the copy. The loop works on behind it.
    assert_eq!(
        at(&mut from),
        format!(
            "mark 2 on Default, {}, allocate 256, record 5 on Default, Default waits for 4, mark 6 on Default",
            copy(0, 3)
        )
    );
    drop(first);
    let second = batches.next().unwrap().unwrap();
    assert_eq!(
        at(&mut from),
        format!(
            "mark 7 on Default, {}, allocate 256, record 10 on Default, Default waits for 9, mark 11 on Default",
            copy(1, 8)
        )
    );
    drop((second, batches));
    assert_eq!(at(&mut from), "");
    assert_eq!(loader.report().rings[0].crossed, 2);
}

#[test]
fn a_fault_of_the_device_is_an_error_in_its_place_and_loses_no_memory() {
    let calls = [Call::Allocate, Call::Record, Call::Wait, Call::Copy, Call::All];
    for (seed, (call, nth)) in calls.into_iter().flat_map(|call| (0..9).map(move |nth| (call, nth))).enumerate() {
        let device = Emulated::new(seed as u64, Duration::from_micros(100));
        let wrong = Wrong::default();
        let dataset = dataset(ROWS).batch(4);
        let mut loader = on(&device, dataset.loader().scheduler(Scheduler::threads(1 + seed % 3)));
        device.fail(call, nth);
        let (mut good, mut failed) = (0, None);
        for batch in loader.epoch(0) {
            match batch {
                Ok(batch) => {
                    assert!(failed.is_none(), "nothing behind an error");
                    assert_eq!(batch.step(), good);
                    good += 1;
                    look_at(&device, &wrong, &batch);
                }
                Err(error) => failed = Some(error),
            }
        }
        if call != Call::All {
            // The device goes on, and so does the loader.
            let batches = loader.epoch(1).map(|batch| look_at(&device, &wrong, &batch.unwrap()));
            assert_eq!(batches.count(), 6, "{call:?} {nth}");
        }
        let error = failed.unwrap_or_else(|| panic!("{call:?} {nth}: no error behind {good} batches"));
        assert_eq!((error.kind(), error.to_string().contains("device")), (ErrorKind::Device, true), "{error}");
        assert!(good < 6);
        drop(loader);
        device.finish();
        assert_eq!(*wrong.lock().unwrap(), [""; 0], "{call:?} {nth}");
        if call == Call::All {
            // Of a device that is lost nobody knows what it still does: its ring is never used again.
            assert!(device.memory().1 > 0);
        } else {
            assert!(device.is_given_back(), "{call:?} {nth}: {:?}", device.memory());
        }
    }
}

#[test]
fn what_cannot_be_measured_is_delivered_all_the_same() {
    // Five marks a batch that has a column without a bound, some of them of the next epoch's, which is read ahead.
    let timed: Vec<u64> = (0..30)
        .map(|nth| {
            let device = Emulated::new(nth, Duration::ZERO);
            let mut loader = on(&device, dataset(ROWS).batch(4).loader());
            device.fail(Call::Mark, nth as usize);
            assert_eq!(loader.epoch(0).map(Result::unwrap).count(), 6);
            device.finish();
            let ring = loader.report().rings[0];
            assert_eq!(ring.crossed, 6);
            ring.timed
        })
        .collect();
    assert!(timed.iter().all(|timed| [5, 6].contains(timed)) && timed[0] == 5, "{timed:?}");
}

#[test]
fn the_report_tells_how_long_a_device_stood_still() {
    let device = Emulated::new(0, Duration::ZERO);
    let late = Duration::from_millis(20);
    let idle = device.clone();
    let slow = numbers(8).map("slow", [], move |_, row, _| {
        // The mark of the loop's asking is done before the wait begins.
        idle.finish();
        std::thread::sleep(if row.get::<i64>("x")? % 2 == 0 { late } else { Duration::ZERO });
        Ok(())
    });
    let mut loader = on(&device, slow.batch(2).loader().scheduler(Scheduler::single_threaded()));
    let batches = loader.epoch(0).map(|batch| {
        device.finish();
        batch.unwrap().len()
    });
    assert_eq!(batches.sum::<usize>(), 8);
    device.finish();
    let report = loader.report();
    let ring = report.rings[0];
    // Each batch is asked for by a loop, and a device, that have nothing else to do.
    assert_eq!((ring.timed, ring.timed_bytes), (4, 64));
    assert!(ring.device_wait >= 4 * late && ring.device_wait_for_copies <= ring.device_wait, "{ring:?}");
    let text = report.to_string();
    assert!(
        text.contains("cuda:0: 4 batches of 0.0 MiB copied in") && text.contains("most for map \"slow\""),
        "{text}"
    );
}

#[test]
fn memory_that_cannot_be_locked_ends_the_build() {
    let device = Emulated::new(0, Duration::ZERO);
    device.fail(Call::Lock, 1);
    let loader = dataset(ROWS).batch(4).loader().build().unwrap();
    let copier: Arc<dyn Copier> = device.clone();
    let through = |account| Delivery::through(Some(copier.clone()), &loader.shared.pipeline, 1, account);
    assert_eq!(through(&loader.shared.account).err().unwrap().kind(), ErrorKind::Device);
    assert_eq!((loader.shared.account.used(), device.memory().1), (0, 0));
    let little = crate::engine::budget::Account::new(Budget::mebibytes(4));
    let error = through(&little).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Memory);
    assert!(error.to_string().contains("a ring of 4 batches"), "{error}");
}

#[test]
fn a_ring_is_part_of_the_budget_and_columns_without_bound_are_named() {
    let device = Emulated::new(0, Duration::ZERO);
    let mut loader = on(&device, dataset(ROWS).batch(4).loader().budget(Budget::mebibytes(64)));
    loader.epoch(0).for_each(|batch| drop(batch.unwrap()));
    let report = loader.report();
    // Floats of four samples, and labels and bounded lists, each rounded up to 256 bytes; four of them, and pieces.
    let slot = (WIDTH * 16).next_multiple_of(256) + 256 + 256;
    assert_eq!((report.rings[0].bytes, report.rings[0].crossed), ((4 * slot + (8 << 20)) as u64, 6));
    assert!(report.peak_bytes >= report.rings[0].bytes);
    let note = "\"free\" has no bound and crosses to the device in pieces";
    assert_eq!(report.notes.iter().filter(|line| line.starts_with(note)).count(), 1, "{:?}", report.notes);
}
