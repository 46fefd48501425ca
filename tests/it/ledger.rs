//! The ledger: equal where two runs delivered the same, and where they did not it says in what.

use arrow::array::{ArrayRef, Int64Array};
use forebay::format::tfrecord::Writer;
use forebay::plan::{Property, Sums};
use forebay::{
    Compression, Dataset, Device, ErrorKind, Image, Ledger, LoaderBuilder, Remainder, Result, Scheduler, Shuffle, Skip,
    TfRecord, World, int64,
};

use crate::support::shards::{Folder, record};
use crate::support::source::Numbers;
use crate::support::watched;

/// The ledger of some epochs.
fn ledger_of(loader: LoaderBuilder, epochs: std::ops::Range<u64>) -> Result<Ledger> {
    watched(move || {
        let mut loader = loader.build()?;
        for epoch in epochs {
            loader.epoch(epoch).try_for_each(|batch| batch.map(drop))?;
        }
        Ok(loader.ledger())
    })
}

fn properties(a: &Ledger, b: &Ledger) -> Vec<Property> {
    a.compare(b).into_iter().map(|difference| difference.property).collect()
}

/// Records of an id and a picture; those whose id is in `bad` have a damaged payload, and those in `blank` no picture.
fn pictures(sizes: &[u64], bad: &[u64], blank: &[u64]) -> Folder {
    let (folder, mut first) = (Folder::new(), 0);
    let mut picture = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(4, 4).write_to(&mut picture, image::ImageFormat::Png).expect("memory takes it");
    for (number, &size) in sizes.iter().enumerate() {
        let mut stored = Vec::new();
        for id in first..first + size {
            let picture = if blank.contains(&id) { &b"nothing"[..] } else { picture.get_ref() };
            let example = forebay::format::example::Example::new().with_int64("id", [id as i64]);
            let mut writer = Writer::new(Vec::new(), Compression::None);
            writer.write(&example.with_bytes("image", [picture]).encode()).expect("memory takes it");
            let mut framed = writer.finish().expect("memory takes it");
            if bad.contains(&id) {
                framed[14] ^= 1;
            }
            stored.extend(framed);
        }
        folder.put(&format!("{number:02}.tfrecord"), &stored);
        first += size;
    }
    folder
}

fn keep_most(dataset: &Dataset) -> Dataset {
    dataset.filter("most", |context, _| {
        use rand::Rng as _;
        Ok(context.rng().random_bool(0.8))
    })
}

fn doubled(dataset: &Dataset) -> Dataset {
    dataset.flat_map("twice", [int64("copy")], |_, row, out| {
        let id: i64 = row.get("id")?;
        (0..id % 4).try_for_each(|copy| out.push(|row| row.set("copy", copy)))
    })
}

fn halved(dataset: &Dataset) -> Dataset {
    dataset.map("half", [int64("half")], |_, row, out| out.set("half", row.get::<i64>("id")? / 2))
}

/// Graphs of every verb, and whether their epochs can be planned.
fn graphs(all: &Dataset) -> Vec<(&'static str, Dataset, bool)> {
    let numbers = Numbers::new(&[vec![30, 70]], 8)
        .dataset()
        .map("other", [int64("other")], |_, row, out| out.set("other", row.get::<i64>("id")?));
    let other = numbers.columns([int64("other")]);
    let shuffled = all.shuffle(Shuffle::buffer(40));
    vec![
        ("plain", all.batch(8), true),
        ("shuffled, a map", halved(&shuffled).batch(8), true),
        ("global", all.shuffle(Shuffle::global()).batch(8).drop_remainder(), true),
        ("filled up", shuffled.batch(16).remainder(Remainder::Repeat), true),
        ("repeated, numbered", shuffled.repeat(3).enumerate("number").batch(8), true),
        ("two on end", all.take(50).concat(&shuffled.skip(20)).batch(8), true),
        ("side by side", shuffled.zip(&other.shuffle(Shuffle::buffer(9))).batch(8), true),
        ("interleaved", all.interleave(2, 3).take(70).batch(8), true),
        ("some batches", shuffled.batch(8).skip(1).take(7), true),
        ("filtered", keep_most(&shuffled).batch(8), false),
        ("one to many", doubled(&shuffled).batch(8), false),
        ("one to many to most", keep_most(&doubled(&keep_most_by_id(&shuffled))).batch(8), false),
    ]
}

fn keep_most_by_id(dataset: &Dataset) -> Dataset {
    dataset.filter("not sevenths", |_, row| Ok(row.get::<i64>("id")? % 7 != 0))
}

#[test]
fn threads_prefetch_and_budget_leave_it_as_it_is() -> Result<()> {
    let folder = Folder::with_ids(&[40, 21, 60]);
    for (name, dataset, planned) in graphs(&folder.all()) {
        let run = |prefetch, scheduler| {
            ledger_of(folder.loader(&dataset.prefetch(prefetch)).seed(7).scheduler(scheduler).streams(4), 0..2)
        };
        // The prefetch is part of the graph's description; what is delivered does not depend on it.
        let alone = run(0, Scheduler::single_threaded())?;
        for (prefetch, threads) in [(1, 1), (3, 4)] {
            let other = run(prefetch, Scheduler::threads(threads))?;
            assert_eq!(properties(&alone, &other), [], "{name}");
        }
        assert_eq!(alone.epochs.len(), 2);
        assert_ne!(alone.epoch(0).ids, alone.epoch(1).ids, "{name}: an epoch is a pass of its own");

        let loader = folder.loader(&dataset.prefetch(0)).seed(7).streams(4).build()?;
        for epoch in 0..2 {
            match loader.verify_epoch(epoch, &alone) {
                Ok(()) => assert!(planned, "{name}"),
                Err(error) => {
                    assert!(!planned && error.kind() == ErrorKind::Config, "{name}: {error}");
                    assert!(error.to_string().contains("decides how many rows there are"), "{error}");
                }
            }
        }
        let error = loader.verify_epoch(2, &alone);
        assert!(error.is_err_and(|error| !planned || error.to_string().contains(" 0 samples")), "{name}");
    }
    Ok(())
}

#[test]
fn ranks_add_up_to_one_rank_and_the_sum_is_complete() -> Result<()> {
    let folder = pictures(&[40, 21, 59], &[3, 17, 80], &[44, 100]);
    let image = |dataset: Dataset| dataset.image("image", Image::rgb().resize(2, 2));
    let graphs = [
        image(folder.all()).batch(8),
        image(folder.all().shuffle(Shuffle::buffer(30))).batch(8),
        image(halved(&folder.all().shuffle(Shuffle::global()))).batch(16).remainder(Remainder::Repeat),
        image(folder.all().shuffle(Shuffle::buffer(30)).repeat(2)).batch(16).drop_remainder(),
    ];
    for (number, dataset) in graphs.iter().enumerate() {
        let builder = |world| {
            let builder = folder.loader(dataset).seed(5).streams(4).world(world).on_bad_record(Skip::up_to(10));
            builder.scheduler(Scheduler::threads(2))
        };
        let single = ledger_of(builder(World::single()), 0..2)?;
        let left_out: Vec<u64> = single.epochs.values().map(|sums| sums.left_out).collect();
        assert!(left_out.iter().all(|&left_out| left_out >= 5), "graph {number}: {left_out:?}");
        for size in [2, 4] {
            let ranks = (0..size).map(|rank| ledger_of(builder(World::new(rank, size)?), 0..2));
            let ranks = ranks.collect::<Result<Vec<_>>>()?;
            assert_eq!(Ledger::sum(&ranks)?, single, "graph {number}, {size} ranks");
            let loader = builder(World::new(1, size)?).build()?;
            loader.verify_epoch(0, &single)?;
            let alone = loader.verify_epoch(0, &ranks[1]).unwrap_err().to_string();
            assert!(alone.contains("those of rank 1 alone; add up the ledgers of all ranks"), "{alone}");
            let lacking = loader.verify_epoch(0, &Ledger::sum(&ranks[1..])?).unwrap_err().to_string();
            let said = if size == 2 { "those of rank 1 alone" } else { "all but those of rank 0" };
            assert!(lacking.contains(said), "{lacking}");
        }
    }
    Ok(())
}

#[test]
fn what_was_prefetched_and_not_taken_does_not_count() -> Result<()> {
    let folder = Folder::with_ids(&[100]);
    let dataset = folder.all().shuffle(Shuffle::buffer(30)).batch(5).prefetch(6);
    let mut loader = folder.loader(&dataset).scheduler(Scheduler::threads(3)).build()?;
    assert!(loader.ledger().epochs.is_empty());
    let mut batches = loader.epoch(0);
    for taken in 1..=4 {
        batches.next().expect("20 batches")?;
        assert_eq!(loader.ledger().epoch(0).samples, 5 * taken);
    }
    drop(batches);
    assert_eq!(loader.ledger().epoch(0).samples, 20);
    let error = loader.verify_epoch(0, &loader.ledger()).unwrap_err().to_string();
    assert!(error.contains("20 samples were delivered, all of the first 4 of 20 steps, and none behind"), "{error}");

    loader.epoch(0).skip(4).try_for_each(|batch| batch.map(drop))?;
    // The four batches that were taken twice are in it twice.
    let error = loader.verify_epoch(0, &loader.ledger()).unwrap_err().to_string();
    assert!(error.contains("120 samples were delivered, the plan has 100"), "{error}");
    Ok(())
}

#[test]
fn the_parts_of_a_run_that_was_continued_add_up_to_one_that_was_not() -> Result<()> {
    let folder = pictures(&[40, 60], &[3, 70], &[]);
    let all = folder.all().columns([int64("id")]).shuffle(Shuffle::buffer(30));
    for dataset in [all.batch(6), keep_most(&all).batch(6), doubled(&all).batch(6)] {
        let loader = || folder.loader(&dataset).seed(4).on_bad_record(Skip::up_to(5));
        let undisturbed = ledger_of(loader(), 0..2)?;
        for taken in [1, 7, 12] {
            let mut first = loader().scheduler(Scheduler::threads(3)).build()?;
            let mut batches = first.epoch(0);
            let state = (0..taken).map(|_| batches.next().expect("13 batches or more")).last();
            let state = state.expect("some were taken")?.state();
            let before = first.ledger();
            let mut second = loader().restore(&state).build()?;
            for _ in 0..2 {
                (&mut second).into_iter().try_for_each(|batch| batch.map(drop))?;
            }
            assert_eq!(Ledger::sum([&before, &second.ledger()])?, undisturbed, "{dataset:?}, after {taken} batches");
        }
    }
    Ok(())
}

#[test]
fn devices_share_one_ledger() -> Result<()> {
    let folder = Folder::with_ids(&[96]);
    let dataset = folder.all().shuffle(Shuffle::buffer(30)).batch(12);
    let single = ledger_of(folder.loader(&dataset), 0..1)?;
    let mut loader = folder.loader(&dataset).scheduler(Scheduler::threads(2)).build()?;
    let lanes = loader.split(&[Device::Cpu, Device::Cpu, Device::Cpu])?;
    std::thread::scope(|scope| {
        lanes.into_iter().for_each(|mut lane| {
            scope.spawn(move || lane.try_for_each(|batch| batch.map(drop)).expect("sound shards"));
        });
    });
    assert_eq!(loader.ledger(), single);
    // Of a lane that is dropped only what it took counts.
    let mut loader = folder.loader(&dataset).scheduler(Scheduler::threads(2)).build()?;
    let mut lanes = loader.split(&[Device::Cpu, Device::Cpu])?;
    lanes.pop().expect("two lanes").next().expect("a batch")?;
    lanes[0].try_for_each(|batch| batch.map(drop))?;
    assert_eq!(loader.ledger().epoch(0).samples, 6 + 48);
    Ok(())
}

/// Shards whose records are as they should be but for what `change` does to them before they are framed.
fn changed(change: impl Fn(&mut Vec<Vec<u8>>)) -> Folder {
    let folder = Folder::new();
    for shard in 0..2 {
        let mut payloads: Vec<Vec<u8>> = (shard * 40..shard * 40 + 40).map(record).collect();
        if shard == 1 {
            change(&mut payloads);
        }
        let mut writer = Writer::new(Vec::new(), Compression::None);
        payloads.iter().for_each(|payload| writer.write(payload).expect("memory takes it"));
        folder.put(&format!("{shard:02}.tfrecord"), &writer.finish().expect("memory takes it"));
    }
    folder
}

#[test]
fn samples_that_are_dropped_doubled_swapped_or_spoilt_are_noticed_and_named() -> Result<()> {
    let run = |folder: &Folder, dataset: &Dataset| ledger_of(folder.loader(&dataset.batch(8)).seed(3), 0..1);
    let folder = changed(|_| {});
    let all = folder.all();
    let sound = run(&folder, &all)?;
    // In the graph: positions 30 and 31 of 80.
    let part = |from: u64, to: u64| all.skip(from).take(to - from);
    let [front, one, other, back] = [part(0, 30), part(30, 31), part(31, 32), part(32, 80)];
    let join = |parts: &[&Dataset]| parts[1..].iter().fold(parts[0].clone(), |joined, part| joined.concat(part));
    for (parts, broken) in [
        (&[&front, &one, &other, &back][..], &[][..]),
        (&[&front, &other, &back], &[Property::Samples]),
        (&[&front, &one, &other, &other, &back], &[Property::Samples]),
        (&[&front, &one, &one, &back], &[Property::Samples]),
        (&[&front, &other, &one, &back], &[Property::Order]),
    ] {
        assert_eq!(properties(&sound, &run(&folder, &join(parts))?), broken);
    }
    // In the shards: rows are numbered as they stand, so records that change places are other bytes of the same rows.
    type Change = fn(&mut Vec<Vec<u8>>);
    let changes: [(Change, Property); 5] = [
        (|payloads| _ = payloads.remove(10), Property::Samples),
        (|payloads| payloads.insert(10, payloads[10].clone()), Property::Samples),
        (|payloads| payloads.swap(10, 11), Property::Payloads),
        (|payloads| payloads[10][7] ^= 1, Property::Payloads),
        (|payloads| payloads[10] = payloads[11].clone(), Property::Payloads),
    ];
    for (number, (change, broken)) in changes.into_iter().enumerate() {
        let folder = changed(change);
        let raw = Dataset::open_with(folder.url("*.tfrecord"), TfRecord::new().records())?;
        let (sound_folder, whole) = (changed(|_| {}), TfRecord::new().records());
        let sound = run(&sound_folder, &Dataset::open_with(sound_folder.url("*.tfrecord"), whole)?)?;
        assert_eq!(properties(&sound, &run(&folder, &raw)?), [broken], "change {number}");
    }
    Ok(())
}

#[test]
fn shuffled_orders_of_other_seeds_differ_in_their_order_alone() -> Result<()> {
    let folder = Folder::with_ids(&[80]);
    let dataset = folder.all().shuffle(Shuffle::buffer(30)).batch(8);
    let run = |seed| ledger_of(folder.loader(&dataset).seed(seed), 0..1);
    assert_eq!(properties(&run(1)?, &run(2)?), [Property::Order]);
    let error = folder.loader(&dataset).seed(2).build()?.verify_epoch(0, &run(1)?).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("seed 2 and 1"), "{error}");
    Ok(())
}

#[test]
fn values_in_memory_have_checksums_of_their_own() -> Result<()> {
    let run = |values: Vec<i64>| {
        let columns = [("x", std::sync::Arc::new(Int64Array::from(values)) as ArrayRef)];
        ledger_of(Dataset::from_columns(columns)?.batch(4).loader(), 0..1)
    };
    let sound = run((0..20_000).collect())?;
    let spoilt = run((0..20_000).map(|x| if x == 9_000 { 1 } else { x }).collect())?;
    assert_eq!(properties(&sound, &run((0..20_000).collect())?), []);
    assert_eq!(properties(&sound, &spoilt), [Property::Payloads]);
    Ok(())
}

#[test]
fn what_stands_beside_a_row_is_part_of_its_bytes() -> Result<()> {
    let folder = Folder::with_ids(&[60]);
    let beside = |shuffle| {
        let numbers = Numbers::new(&[vec![60]], 8).dataset();
        let numbers = numbers.map("other", [int64("other")], |_, row, out| out.set("other", row.get::<i64>("id")?));
        let dataset = folder.all().zip(&numbers.columns([int64("other")]).shuffle(shuffle)).batch(6);
        ledger_of(folder.loader(&dataset), 0..1)
    };
    let (plain, moved) = (beside(Shuffle::none())?, beside(Shuffle::buffer(100))?);
    assert_eq!(properties(&plain, &moved), [Property::Payloads]);
    Ok(())
}

#[test]
fn unverified_checksums_are_taken_for_what_is_stored() -> Result<()> {
    let spoilt = pictures(&[20], &[7], &[]);
    let run = |folder: &Folder| {
        let dataset = Dataset::open_with(folder.url("*.tfrecord"), TfRecord::new().unchecked().records())?;
        ledger_of(folder.loader(&dataset.batch(5)), 0..1)
    };
    // The damage came behind the checksum, and nobody looked.
    assert_eq!(properties(&run(&pictures(&[20], &[], &[]))?, &run(&spoilt)?), []);
    Ok(())
}

#[test]
fn shards_without_an_index_have_a_ledger_that_only_another_run_can_be_compared_with() -> Result<()> {
    let folder = Folder::new();
    let gzip = |ids: std::ops::Range<u64>| crate::support::shards::shard_of_ids(ids, Compression::Gzip);
    folder.put("a.tfrecord", &gzip(0..30));
    folder.put("b.tfrecord", &gzip(30..70));
    let dataset = folder.all().shuffle(Shuffle::buffer(16)).batch(6);
    let run = |threads, index: &str| {
        let loader = dataset.loader().index_dir(folder.path(index)).scheduler(Scheduler::threads(threads));
        ledger_of(loader, 0..1)
    };
    let (a, b) = (run(1, "one")?, run(3, "two")?);
    assert_eq!((a.compare(&b).len(), a.epoch(0).samples), (0, 70));
    let error = dataset.loader().index_dir(folder.path("three")).build()?.verify_epoch(0, &a).unwrap_err();
    assert!(error.to_string().contains("no index"), "{error}");
    Ok(())
}

#[test]
fn the_ledger_of_seed_42_never_changes() -> Result<()> {
    let folder = Folder::with_ids(&[50, 30, 20]);
    let dataset = folder.all().shuffle(Shuffle::buffer(40)).batch(8).drop_remainder();
    let Sums { samples, ids, order, payloads, .. } = ledger_of(folder.loader(&dataset).seed(42), 0..1)?.epoch(0);
    let found = [ids, order, payloads].map(|sum| format!("{sum:032x}"));
    assert_eq!((samples, found.each_ref().map(String::as_str)), (96, PINNED));
    Ok(())
}

const PINNED: [&str; 3] =
    ["ecfb04edb9660e23211e5007149ba83d", "875e507cc5ffea29a0a6a0676a383ee9", "de38ee9bda12908ec16978afb2fed26a"];
