//! Mixes through the whole engine: proportions, worlds, repeated reads, refusals.

use std::sync::Arc;

use forebay::{
    Budget, Dataset, Error, Exhausted, Image, Index, Remainder, Result, Scheduler, Shuffle, World, bytes, int64,
};

use crate::support::shards::Folder;
use crate::support::source::{Counts, Numbers};
use crate::support::{take, take_ids, watched};

/// Blocks of 20 rows, and what was asked of them. The part of a sample is told by its id: sources count on.
fn part(rows: u64) -> (Dataset, Arc<Counts>) {
    let numbers = Numbers::new(&[vec![20; rows as usize / 20]], 8);
    let counts = numbers.counts();
    (numbers.dataset(), counts)
}

fn samples(
    dataset: &Dataset,
    epoch: u64,
    set: impl Fn(forebay::LoaderBuilder) -> forebay::LoaderBuilder,
) -> Vec<Vec<u64>> {
    let loader = set(dataset.loader().seed(9));
    take(loader, epoch, |batch| Ok(batch.samples().to_vec())).expect("it is built").whole()
}

/// One of three mixes of two shuffled parts, the second of them a concatenation, nested in another.
fn mix(exhausted: Exhausted) -> Dataset {
    let (large, _) = part(2000);
    let (small, _) = part(300);
    let (other, _) = part(200);
    let small = small.concat(&other).shuffle(Shuffle::buffer(100));
    let inner = Dataset::mix([(large.shuffle(Shuffle::buffer(300)), 0.75), (small, 0.25)], exhausted);
    let (plain, _) = part(1000);
    Dataset::mix([(inner, 2), (plain, 1)], exhausted)
}

#[test]
fn every_window_has_the_proportions_and_every_epoch_its_order() {
    let (web, _) = part(2000);
    let (code, _) = part(400);
    let parts = [(web.shuffle(Shuffle::buffer(200)), 7), (code.shuffle(Shuffle::buffer(100)), 3)];
    let dataset = Dataset::mix(parts, Exhausted::Stop).batch(50);
    let (first, second) = (samples(&dataset, 0, |l| l).concat(), samples(&dataset, 1, |l| l).concat());
    assert_eq!(first.len(), 1330);
    for ids in [&first, &second] {
        assert!(ids.chunks(10).all(|window| window.iter().filter(|&&id| id < 2000).count() == 7));
    }
    assert_ne!(first, second);
    let of_code = |ids: &[u64]| ids.iter().copied().filter(|&id| id >= 2000).collect::<Vec<_>>();
    assert_ne!(of_code(&first), of_code(&second), "parts are shuffled anew");
    assert_ne!(
        first.iter().map(|&id| id < 2000).collect::<Vec<_>>(),
        second.iter().map(|&id| id < 2000).collect::<Vec<_>>(),
        "windows have another order",
    );
}

#[test]
fn each_row_comes_as_often_as_the_mix_says() {
    let times = |exhausted| {
        let mut counts = vec![0; 3500];
        samples(&mix(exhausted).batch(24), 2, |l| l).concat().into_iter().for_each(|id| counts[id as usize] += 1);
        let range = |ids: std::ops::Range<usize>| {
            let counts = &counts[ids];
            (*counts.iter().min().unwrap(), *counts.iter().max().unwrap(), counts.iter().sum::<u64>())
        };
        [range(0..2000), range(2000..2500), range(2500..3500)]
    };
    // 500 rows of the small part make 500 inner windows of 4; 1,000 rows of the plain part 1,000 windows of 3.
    assert_eq!(times(Exhausted::Stop), [(0, 1, 1500), (1, 1, 500), (1, 1, 1000)]);
    assert_eq!(times(Exhausted::Drop), [(1, 1, 2000), (1, 1, 500), (1, 1, 1000)]);
    // 667 inner windows for the large part, of 2,668 rows in all: 1,334 outer ones.
    assert_eq!(times(Exhausted::Repeat), [(1, 2, 2001), (1, 2, 667), (1, 2, 1334)]);
}

#[test]
fn threads_budgets_and_worlds_change_nothing() {
    for exhausted in [Exhausted::Stop, Exhausted::Drop, Exhausted::Repeat] {
        let dataset = mix(exhausted).batch(24).remainder(Remainder::Repeat);
        let with = |scheduler, world: Option<World>| {
            let set = |loader: forebay::LoaderBuilder| {
                let loader = loader.streams(12).scheduler(scheduler).budget(Budget::mebibytes(1));
                world.map_or(loader.clone(), |world| loader.world(world))
            };
            samples(&dataset, 1, set)
        };
        let alone = with(Scheduler::single_threaded(), None);
        assert_eq!(with(Scheduler::threads(3), None), alone);
        for size in [2, 3] {
            let ranks: Vec<_> =
                (0..size).map(|rank| with(Scheduler::threads(1), Some(World::new(rank, size).unwrap()))).collect();
            let tiled: Vec<Vec<u64>> =
                (0..alone.len()).map(|step| ranks.iter().flat_map(|rank| rank[step].clone()).collect()).collect();
            assert_eq!(tiled, alone, "world of {size}");
        }
    }
}

#[test]
fn a_mix_goes_on_from_every_state() -> Result<()> {
    for exhausted in [Exhausted::Stop, Exhausted::Drop, Exhausted::Repeat] {
        let mix = mix(exhausted);
        let filtered = mix.filter("most", |_, row| Ok(row.get::<i64>("id")? % 7 != 0));
        for dataset in [mix, filtered] {
            forebay::testing::restores_everywhere(dataset.batch(240).loader().seed(4))?;
        }
    }
    Ok(())
}

#[test]
fn a_part_that_starts_over_draws_anew() -> Result<()> {
    use rand::Rng as _;
    let (large, _) = part(400);
    let (small, _) = part(100);
    let parts = [(large, 1), (small.shuffle(Shuffle::buffer(100)), 1)];
    let dataset = Dataset::mix(parts, Exhausted::Repeat)
        .map("draw", [int64("drawn")], |context, _, out| out.set("drawn", context.rng().random_range(0..1i64 << 40)));
    let taken = take(dataset.batch(80).loader().seed(3), 0, |batch| {
        let drawn = batch.values::<i64>("drawn")?.into_owned();
        Ok(batch.samples().iter().copied().zip(drawn).collect::<Vec<_>>())
    })?;
    let small: Vec<_> = taken.whole().concat().into_iter().filter(|(id, _)| *id >= 400).collect();
    assert_eq!(small.len(), 400);
    let turns: Vec<_> = small.chunks(100).collect();
    for (i, turn) in turns.iter().enumerate() {
        let mut ids: Vec<u64> = turn.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (400..500).collect::<Vec<_>>());
        for other in &turns[..i] {
            assert!(turn.iter().zip(*other).filter(|(a, b)| a.0 == b.0).count() < 20, "an order of its own");
            assert!(turn.iter().all(|drawn| !other.contains(drawn)), "augmented anew");
        }
    }
    Ok(())
}

/// Takes one epoch, and has nothing of the next read.
fn one_epoch(loader: forebay::LoaderBuilder) -> usize {
    watched(move || loader.build().expect("it is built").into_iter().map(|batch| batch.expect("a batch").len()).sum())
}

/// How often blocks were read by ranks of a world, over the number of blocks.
fn reads(world: usize, weights: [u64; 2], exhausted: Exhausted) -> [f64; 2] {
    let mut reads = [0.0, 0.0];
    for rank in 0..world {
        let ((left, left_counts), (right, right_counts)) = (part(24_000), part(8_000));
        let parts = [
            (left.shuffle(Shuffle::buffer(480)), weights[0] as u32),
            (right.shuffle(Shuffle::buffer(480)), weights[1] as u32),
        ];
        let dataset = Dataset::mix(parts, exhausted).batch(96).drop_remainder();
        let loader = dataset.loader().streams(4).world(World::new(rank, world).expect("a rank of it"));
        one_epoch(loader);
        for (reads, counts) in reads.iter_mut().zip([left_counts, right_counts]) {
            let counts = counts.fetches();
            *reads += counts.iter().sum::<usize>() as f64 / counts.len() as f64;
        }
    }
    reads
}

#[test]
fn blocks_of_shuffled_parts_are_read_once() {
    for exhausted in [Exhausted::Stop, Exhausted::Drop, Exhausted::Repeat] {
        assert_eq!(reads(1, [3, 1], exhausted), [1.0, 1.0], "{exhausted:?}");
    }
    // A stream's share of 24 holds whole windows of 4, so ranks read what is theirs, and the blocks on the 3 cuts twice.
    let own = reads(4, [3, 1], Exhausted::Stop);
    assert!(own.iter().all(|&reads| reads < 1.01), "{own:?}");
    // Two shares together hold whole windows of 16, so two ranks read the same.
    let pairs = reads(4, [9, 7], Exhausted::Stop);
    assert!(pairs.iter().all(|&reads| reads < 2.01), "{pairs:?}");
    // Windows of 10 are in no step as a whole: all may read all, but each only once.
    let all = reads(4, [7, 3], Exhausted::Stop);
    assert!(all.iter().all(|&reads| reads <= 4.0), "{all:?}");
}

#[test]
fn the_report_says_where_ranks_read_the_same_blocks() -> Result<()> {
    let note = |weights: [u32; 2], size| -> Result<bool> {
        let dataset = Dataset::mix([(part(960).0, weights[0]), (part(960).0, weights[1])], Exhausted::Stop).batch(96);
        let loader = dataset.drop_remainder().loader().world(World::new(0, size)?).build()?;
        Ok(loader.report().to_string().contains("a multiple of 40"))
    };
    assert!(note([7, 3], 4)?);
    assert!(!note([7, 3], 1)? && !note([3, 1], 4)?);
    Ok(())
}

#[test]
fn blocks_of_rare_parts_in_their_own_order_are_read_once() {
    let ((large, _), (small, counts)) = (part(10_000), part(100));
    let dataset = Dataset::mix([(large.shuffle(Shuffle::buffer(100)), 99), (small, 1)], Exhausted::Stop).batch(2);
    // A row of the small part every 50 steps, and 64 steps are planned ahead at most.
    assert_eq!(one_epoch(dataset.prefetch(0).loader()), 10_000);
    assert_eq!(counts.fetches(), [1; 5]);
}

#[test]
fn mixes_that_mean_nothing_are_refused_with_what_to_do() {
    let numbers = || part(100).0;
    let refused = |dataset: Dataset| -> Error { dataset.batch(4).loader().build().expect_err("it is refused") };
    let says = |dataset: Dataset, parts: &[&str]| {
        let text = refused(dataset).to_string();
        parts.iter().for_each(|part| assert!(text.contains(part), "{part} is missing in {text}"));
    };
    says(Dataset::mix([(numbers(), 0), (numbers(), 1)], Exhausted::Stop), &["a weight of 0", "above 0"]);
    says(Dataset::mix([(numbers(), f64::NAN)], Exhausted::Stop), &["a weight of NaN"]);
    says(Dataset::mix([(numbers(), 1.0), (numbers(), 1e-5)], Exhausted::Stop), &["thousandth", "65,536"]);
    says(Dataset::mix(Vec::<(Dataset, f64)>::new(), Exhausted::Stop), &["a mix of nothing"]);
    says(Dataset::mix([(numbers().take(3), 4), (numbers(), 1)], Exhausted::Stop), &["3 rows", "Exhausted::Drop"]);
    says(Dataset::mix([(numbers(), 4), (numbers().take(0), 1)], Exhausted::Repeat), &["part 1", "0 rows"]);
    let filtered = numbers().filter("even", |_, row| Ok(row.get::<i64>("id")? % 2 == 0));
    says(Dataset::mix([(filtered, 4), (numbers(), 1)], Exhausted::Drop), &["mix counts rows", ".filter()"]);
    let other = numbers().map("x", [int64("x")], |_, _, out| out.set("x", 1i64));
    says(Dataset::mix([(other, 4), (numbers(), 1)], Exhausted::Drop), &["mix of different columns", ".columns()"]);
    let endless = numbers().repeat_forever();
    says(
        Dataset::mix([(endless.clone(), 1), (numbers(), 1)], Exhausted::Drop).shuffle(Shuffle::buffer(5)),
        &["endless"],
    );
    let stops = Dataset::mix([(endless, 1), (numbers(), 1)], Exhausted::Stop).shuffle(Shuffle::buffer(5));
    assert_eq!(stops.batch(4).loader().build().unwrap().steps_per_epoch(), Some(50));
}

#[test]
fn shards_without_an_index_are_refused_in_a_mix() {
    let folder = Folder::new();
    let shard = crate::support::shards::shard_of_ids(0..40, forebay::Compression::Gzip);
    folder.put("a.tfrecord.gz", &shard);
    let dataset = Dataset::mix([(folder.open("*.tfrecord.gz"), 1)], Exhausted::Stop).batch(4);
    let error = folder.loader(&dataset).build().expect_err("it is refused").to_string();
    assert!(error.contains("mix") && error.contains("Index::Build"), "{error}");
    let ids = take_ids(folder.loader(&dataset).index(Index::Build), "id").unwrap().whole().concat();
    assert_eq!(ids, (0..40).collect::<Vec<_>>());
}

#[test]
fn the_graph_says_what_weights_became() {
    let numbers = || part(20).0;
    let mix = Dataset::mix([(numbers(), 0.7), (numbers().shuffle(Shuffle::buffer(9)), 0.3)], Exhausted::Repeat);
    let wanted = " 0  read numbers -> id: i64\n 1  read numbers -> id: i64\n 2  shuffle buffer of 9 samples\n \
                  3  mix 7 : 3, repeat what is exhausted  <- 0, 2\n";
    assert_eq!(mix.explain(), wanted);
    assert!(mix.to_dot().contains("n0 -> n3;") && mix.to_dot().contains("n2 -> n3;"), "{}", mix.to_dot());
    assert!(mix.to_mermaid().contains("n2 --> n3"), "{}", mix.to_mermaid());
}

#[test]
fn parts_of_a_mix_may_decode_their_images_each_in_its_own_way() -> Result<()> {
    let shards = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits/test-*.tfrecord");
    let folder = Folder::new();
    let source = || Ok::<_, Error>(Dataset::open(shards)?.columns([bytes("image/encoded")]).take(20));
    let (plain, mirrored) = (Image::gray().resize(8, 8), Image::gray().resize(8, 8).horizontal_flip(1.0));
    let parts = [source()?.image("image/encoded", plain), source()?.image("image/encoded", mirrored)];
    let pixels = |dataset: &Dataset| -> Result<Vec<Vec<u8>>> {
        let taken =
            take(folder.loader(&dataset.batch(10)), 0, |batch| Ok(batch.values::<u8>("image/encoded")?.to_vec()))?;
        Ok(taken.whole().concat().chunks(64).map(<[u8]>::to_vec).collect())
    };
    let mixed = pixels(&Dataset::mix(parts.clone().map(|part| (part, 1)), Exhausted::Stop))?;
    let alone = [pixels(&parts[0])?, pixels(&parts[1])?];
    assert_eq!((mixed.len(), alone[0] == alone[1]), (40, false));
    for part in &alone {
        let found: Vec<_> = mixed.iter().filter(|pixels| part.contains(pixels)).collect();
        assert!(found.len() >= 20 && part.iter().all(|pixels| found.contains(&pixels)), "{}", found.len());
    }
    // On the way of the same rows a name stands for one function.
    let twice = parts[0].map("f", [], |_, _, _| Ok(())).map("f", [], |_, _, _| Ok(())).batch(10);
    let error = twice.loader().build().expect_err("two functions of one name");
    assert!(error.to_string().contains("two functions are called \"f\""), "{error}");
    Ok(())
}
