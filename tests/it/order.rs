//! The order of samples: a function of data, seed and epoch, whatever runs it.

use std::collections::BTreeSet;
use std::time::Duration;

use forebay::{Budget, Dataset, Error, ErrorKind, LoaderBuilder, Remainder, Result, Scheduler, Shuffle, World};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::support::shards::Folder;
use crate::support::source::Numbers;
use crate::support::{alone, eventually, take, take_ids, threads_named};

/// Anything that a user may ask for, and what it is asked of.
#[derive(Clone, Debug)]
struct Case {
    shards: Vec<Vec<u64>>,
    batch: usize,
    shuffle: Shuffle,
    remainder: Remainder,
    seed: u64,
    threads: usize,
    prefetch: usize,
    budget: Option<u64>,
}

impl Case {
    fn rows(&self) -> u64 {
        self.shards.iter().flatten().sum()
    }

    /// The graph of this case on some source, and the plainest loader of it.
    fn plain(&self, source: &Dataset) -> LoaderBuilder {
        let dataset = source.shuffle(self.shuffle).batch(self.batch).remainder(self.remainder).prefetch(0);
        dataset.loader().seed(self.seed).scheduler(Scheduler::single_threaded())
    }

    fn other(&self, source: &Dataset) -> LoaderBuilder {
        let dataset = source.shuffle(self.shuffle).batch(self.batch).remainder(self.remainder).prefetch(self.prefetch);
        let scheduler = if self.threads == 0 { Scheduler::single_threaded() } else { Scheduler::threads(self.threads) };
        dataset.loader().seed(self.seed).scheduler(scheduler)
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let shards = prop::collection::vec(prop::collection::vec(1..40u64, 1..5), 1..5);
    let shuffle = prop_oneof![
        Just(Shuffle::none()),
        (2..200u64).prop_map(Shuffle::buffer),
        Just(Shuffle::buffer(1000)),
        Just(Shuffle::global())
    ];
    let remainder = prop_oneof![Just(Remainder::Keep), Just(Remainder::Drop), Just(Remainder::Repeat)];
    let budget = prop_oneof![Just(None), (8..64u64).prop_map(|kib| Some(kib << 10))];
    let how = (0..5usize, 0..4usize, budget);
    (shards, 1..13usize, shuffle, remainder, 0..100u64, how).prop_map(
        |(shards, batch, shuffle, remainder, seed, (threads, prefetch, budget))| {
            let mut case = Case { shards, batch, shuffle, remainder, seed, threads, prefetch, budget };
            if case.rows() < batch as u64 && remainder == Remainder::Drop {
                case.remainder = Remainder::Keep;
            }
            case
        },
    )
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 24, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() }
}

/// Holds what came against the promises of a remainder policy.
fn covers(case: &Case, batches: &[Vec<i64>]) {
    let (rows, batch) = (case.rows() as usize, case.batch);
    let ids: Vec<i64> = batches.concat();
    let wanted = match case.remainder {
        Remainder::Keep => rows,
        Remainder::Drop | Remainder::Refuse => rows / batch * batch,
        Remainder::Repeat => rows.div_ceil(batch) * batch,
        other => unreachable!("{other:?} is no case"),
    };
    assert_eq!(ids.len(), wanted);
    let own = &ids[..wanted.min(rows)];
    let distinct: BTreeSet<i64> = own.iter().copied().collect();
    assert_eq!(distinct.len(), own.len(), "a sample came twice");
    assert!(own.iter().all(|id| (0..rows as i64).contains(id)));
    for (i, id) in ids.iter().enumerate().skip(rows) {
        assert_eq!(*id, ids[i % rows], "filled up from the front");
    }
    let full = if case.remainder == Remainder::Keep { &batches[..rows / batch] } else { batches };
    assert!(full.iter().all(|ids| ids.len() == batch));
    if case.shuffle == Shuffle::none() {
        assert!(own.is_sorted(), "the files' own order");
    }
}

/// The budget that an error says would do.
fn smallest_budget(error: &Error) -> Budget {
    assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
    let text = error.to_string();
    let number = text.rsplit_once("mebibytes(").and_then(|(_, rest)| rest.split_once(')')).map(|(number, _)| number);
    let number = number.unwrap_or_else(|| panic!("no budget is named in: {text}"));
    Budget::mebibytes(number.parse().expect("a number"))
}

/// Runs the case as it says; where its budget does not do, with the one that the error names.
fn run(case: &Case, loader: &LoaderBuilder) -> Vec<Vec<i64>> {
    let Some(bytes) = case.budget else { return take_ids(loader.clone(), "id").expect("it is built").whole() };
    let error = match take_ids(loader.clone().budget(Budget::of_bytes(bytes)), "id") {
        Ok(taken) if taken.error.is_none() => return taken.batches,
        Ok(taken) => taken.failure().clone(),
        Err(error) => error,
    };
    take_ids(loader.clone().budget(smallest_budget(&error)), "id").expect("it is built").whole()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn shards_on_disk_come_in_one_order_however_they_are_run(case in cases()) {
        let sizes: Vec<u64> = case.shards.iter().map(|blocks| blocks.iter().sum()).collect();
        let folder = Folder::with_ids(&sizes);
        let plain = take_ids(case.plain(&folder.all()).index_dir(folder.index_dir()), "id").unwrap().whole();
        covers(&case, &plain);
        let other = run(&case, &case.other(&folder.all()).index_dir(folder.index_dir()));
        prop_assert_eq!(other, plain);
    }

    #[test]
    fn blocks_of_any_size_come_in_one_order_however_they_are_run(case in cases()) {
        let source = Numbers::new(&case.shards, 24).dataset();
        let plain = take_ids(case.plain(&source), "id").unwrap().whole();
        covers(&case, &plain);
        let other = run(&case, &case.other(&source));
        prop_assert_eq!(other, plain);
    }

    #[test]
    fn ranks_tile_the_batches_of_one_rank(case in cases(), share in 1..7usize) {
        let case = Case { batch: 4 * share, remainder: Remainder::Repeat, budget: None, ..case };
        let source = Numbers::new(&case.shards, 24).dataset();
        let single = take_ids(case.other(&source).streams(4), "id").unwrap().whole();
        for size in [2, 4] {
            let ranks = (0..size).map(|rank| {
                let world = World::new(rank, size).unwrap();
                take_ids(case.other(&source).streams(4).world(world), "id").unwrap().whole()
            });
            let ranks: Vec<_> = ranks.collect();
            let steps = single.len();
            prop_assert!(ranks.iter().all(|rank| rank.len() == steps));
            let tiled: Vec<Vec<i64>> = (0..steps).map(|step| ranks.iter().flat_map(|rank| rank[step].clone()).collect()).collect();
            prop_assert_eq!(&tiled, &single);
        }
    }
}

#[test]
fn without_shuffle_the_order_is_the_files_own_in_every_epoch() -> Result<()> {
    let folder = Folder::with_ids(&[7, 1, 20]);
    for epoch in [0, 3] {
        let taken =
            take(folder.loader(&folder.all().batch(5)), epoch, |batch| Ok(batch.values::<i64>("id")?.into_owned()))?;
        assert_eq!(taken.whole().concat(), (0..28).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn random_pauses_in_functions_change_nothing() -> Result<()> {
    use rand::Rng as _;
    let folder = Folder::with_ids(&[100, 60, 140]);
    let dataset =
        folder.all().shuffle(Shuffle::buffer(90)).map("pause", [forebay::float32("drawn")], |context, row, out| {
            let mut rng = context.rng();
            // Another pause each time, whatever the sample draws.
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.subsec_nanos());
            std::thread::sleep(Duration::from_micros(u64::from(now) / 1000 % 200));
            _ = row.get::<i64>("id")?;
            out.set("drawn", rng.random::<f32>())
        });
    let dataset = dataset.filter("most", |context, _| Ok(context.rng().random_bool(0.9))).batch(8);
    let with = |scheduler| {
        take(folder.loader(&dataset).seed(5).scheduler(scheduler), 1, |batch| {
            Ok((batch.samples().to_vec(), batch.values::<f32>("drawn")?.into_owned()))
        })
        .map(|taken| taken.whole())
    };
    let alone = with(Scheduler::single_threaded())?;
    assert!((30..=37).contains(&alone.len()), "{} batches", alone.len());
    for threads in [2, 4] {
        assert_eq!(with(Scheduler::threads(threads))?, alone);
    }
    Ok(())
}

#[test]
fn the_first_samples_of_seed_42_never_change() -> Result<()> {
    let folder = Folder::with_ids(&[500, 300, 200]);
    let first = |shuffle, epoch| -> Result<Vec<i64>> {
        let taken = take(folder.loader(&folder.all().shuffle(shuffle).batch(8)).seed(42), epoch, |batch| {
            assert_eq!(batch.samples().iter().map(|&id| id as i64).collect::<Vec<_>>(), *batch.values::<i64>("id")?);
            Ok(batch.values::<i64>("id")?.into_owned())
        })?;
        Ok(taken.whole().swap_remove(0))
    };
    assert_eq!(first(Shuffle::none(), 0)?, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(first(Shuffle::buffer(100), 0)?, [476, 768, 580, 634, 195, 331, 737, 313]);
    assert_eq!(first(Shuffle::buffer(100), 1)?, [862, 720, 122, 750, 105, 209, 12, 909]);
    // What fits the buffer is permuted as a whole.
    for shuffle in [Shuffle::buffer(1000), Shuffle::global()] {
        assert_eq!(first(shuffle, 0)?, [784, 919, 187, 172, 141, 523, 506, 564]);
        assert_eq!(first(shuffle, 1)?, [827, 382, 952, 645, 81, 902, 981, 782]);
    }
    Ok(())
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
}

#[test]
fn loops_that_end_early_leave_no_thread_and_no_memory() -> Result<()> {
    if !alone("order::loops_that_end_early_leave_no_thread_and_no_memory") {
        return Ok(());
    }
    let folder = Folder::with_ids(&[400, 400]);
    let dataset = folder.all().shuffle(Shuffle::buffer(200)).batch(16);
    let rounds = |rounds: usize| -> Result<()> {
        for round in 0..rounds {
            let scheduler = Scheduler::threads(3);
            let mut loader = folder.loader(&dataset).scheduler(scheduler).budget(Budget::mebibytes(4)).build()?;
            assert!(eventually(|| threads_named("forebay") >= 3), "workers run");
            for batch in loader.epoch(round as u64).take(round % 4) {
                batch?;
            }
            let report = loader.report();
            assert!(report.peak_bytes <= report.budget_bytes, "{report}");
            drop(loader);
            assert!(eventually(|| threads_named("forebay") == 0), "{} threads are left", threads_named("forebay"));
        }
        Ok(())
    };
    // The allocator's arenas, one or more a thread, take so many rounds to fill.
    rounds(50)?;
    let before = resident_bytes();
    let mut grown = Vec::new();
    // A loop reads some 200 KB: 60 of them would leave 12 MB, and 60 more another 12. What the arenas hold goes up and down by some 8 MB.
    let is_small = |grown: &[u64]| grown.iter().any(|&bytes| bytes < 6 << 20);
    while grown.len() < 5 && !is_small(&grown) {
        rounds(60)?;
        grown.push(resident_bytes().saturating_sub(before));
    }
    assert!(is_small(&grown), "{grown:?} bytes are left");
    Ok(())
}
