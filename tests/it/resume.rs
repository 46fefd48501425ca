//! A run that goes on from a saved state is the run that was never interrupted: in this world and in others.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::Int64Array;
use forebay::plan::ReadPoint;
use forebay::testing::restores_everywhere;
use forebay::{
    Batch, Budget, Compression, Dataset, Error, ErrorKind, Exhausted, LoaderBuilder, Pad, Remainder, Result, Scheduler,
    Shuffle, Skip, State, World, int64,
};
use proptest::prelude::*;
use rand::Rng;

use crate::support::in_world;
use crate::support::shards::{Folder, shard_of_ids};
use crate::support::source::Numbers;

/// `rows` row numbers in blocks of 7 and shards of 3 blocks.
fn numbers(rows: u64) -> Dataset {
    let blocks: Vec<u64> = (0..rows).step_by(7).map(|start| (rows - start).min(7)).collect();
    let shards: Vec<Vec<u64>> = blocks.chunks(3).map(<[u64]>::to_vec).collect();
    Numbers::new(&shards, 8).dataset()
}

fn noise(dataset: &Dataset) -> Dataset {
    dataset.map("noise@1", [int64("noise")], |context, _, out| out.set("noise", context.rng().random::<i64>()))
}

/// Keeps about a third, and of the first hundred rows none.
fn uneven(dataset: &Dataset) -> Dataset {
    dataset.filter("uneven@1", |_, row| {
        let id = row.get::<i64>("id")?;
        Ok(id >= 100 && id % 3 == 0)
    })
}

fn even(dataset: &Dataset) -> Dataset {
    dataset.filter("even@1", |_, row| Ok(row.get::<i64>("id")? % 2 == 0))
}

/// Makes 0 to 3 rows of each.
fn multiply(dataset: &Dataset) -> Dataset {
    dataset.flat_map("multiply@1", [int64("part")], |_, row, out| {
        for part in 0..row.get::<i64>("id")? % 4 {
            out.push(|row| row.set("part", part))?;
        }
        Ok(())
    })
}

/// Three parts, each shuffled by itself.
fn mixed(exhausted: Exhausted) -> Dataset {
    let part = |rows| numbers(rows).shuffle(Shuffle::buffer(16));
    Dataset::mix([(part(130), 5), (part(40), 2), (numbers(30), 1)], exhausted)
}

fn ids(batch: &Batch) -> Vec<i64> {
    batch.values::<i64>("id").expect("row numbers").into_owned()
}

#[test]
fn every_verb_restores_everywhere() -> Result<()> {
    let rows = || numbers(130);
    let graphs: Vec<(&str, Dataset)> = vec![
        ("plain", rows().batch(8)),
        ("buffer", noise(&rows().shuffle(Shuffle::buffer(32))).batch(8)),
        ("whole", noise(&rows().shuffle(Shuffle::buffer(1000))).batch(8)),
        ("global", rows().shuffle(Shuffle::global()).batch(8)),
        ("drop", rows().shuffle(Shuffle::buffer(32)).batch(8).drop_remainder()),
        ("fill up", noise(&rows().shuffle(Shuffle::buffer(32))).batch(8).remainder(Remainder::Repeat)),
        ("take and skip", rows().skip(5).take(101).shuffle(Shuffle::buffer(32)).batch(8).skip(1).take(9)),
        ("concat", rows().shuffle(Shuffle::buffer(32)).concat(&numbers(51)).batch(8)),
        (
            "zip",
            rows()
                .zip(
                    &numbers(140)
                        .map("other@1", [int64("other")], |_, row, out| out.set("other", row.get::<i64>("id")?))
                        .columns([int64("other")]),
                )
                .shuffle(Shuffle::buffer(32))
                .batch(8),
        ),
        ("repeat", noise(&numbers(40).shuffle(Shuffle::buffer(8)).repeat(3)).batch(8)),
        ("repeat forever", noise(&numbers(40).shuffle(Shuffle::buffer(8)).repeat_forever()).batch(8).take(30)),
        ("interleave", rows().interleave(3, 2).batch(8)),
        ("enumerate", rows().enumerate("i").shuffle(Shuffle::buffer(32)).batch(8)),
        (
            "map_batch",
            noise(&rows()).batch(8).map_batch("sum@1", [int64("sum")], |_, rows| {
                let sums = Int64Array::from_iter_values((0..rows.num_rows()).map(|_| 1));
                arrow::array::RecordBatch::try_from_iter([("sum", Arc::new(sums) as _)])
                    .map_err(|e| Error::new(ErrorKind::Transform, "no batch").because(e))
            }),
        ),
        ("filter", uneven(&noise(&rows().shuffle(Shuffle::buffer(32)))).batch(8)),
        ("filter, drop", uneven(&rows()).batch(8).drop_remainder()),
        ("filter, take", uneven(&rows().shuffle(Shuffle::buffer(32))).batch(2).take(3)),
        ("flat_map", noise(&multiply(&rows().shuffle(Shuffle::buffer(32)))).batch(8)),
        ("flat_map, filter", uneven(&multiply(&rows())).batch(8).prefetch(5)),
        ("mix, stop", noise(&mixed(Exhausted::Stop)).batch(8)),
        ("mix, drop", noise(&mixed(Exhausted::Drop)).batch(8)),
        ("mix, repeat", noise(&mixed(Exhausted::Repeat)).batch(8)),
        ("mix, filter", uneven(&mixed(Exhausted::Repeat)).batch(4)),
        ("one stream", uneven(&multiply(&rows())).batch(7)),
    ];
    for (name, graph) in graphs {
        restores_everywhere(graph.loader().seed(3)).unwrap_or_else(|error| panic!("{name}: {error}\n{graph}"));
    }
    Ok(())
}

#[test]
fn ragged_columns_restore_everywhere() -> Result<()> {
    let folder = Folder::with_ids(&[20, 31, 9]);
    let dataset = folder.all().columns([int64("id"), forebay::bytes("noise")]).shuffle(Shuffle::buffer(16)).flat_map(
        "list@1",
        [int64("list").ragged()],
        |_, row, out| {
            let id = row.get::<i64>("id")?;
            out.push(|row| row.set_values("list", &(0..id % 5).collect::<Vec<i64>>()))
        },
    );
    restores_everywhere(folder.loader(&dataset.pad("list", Pad::to(6)).batch(4)))
}

#[test]
fn shards_without_an_index_restore_everywhere() -> Result<()> {
    let folder = Folder::new();
    for (shard, ids) in [0..30, 30..31, 31..90, 90..120].into_iter().enumerate() {
        folder.put(&format!("{shard}.gz.tfrecord"), &shard_of_ids(ids, Compression::Gzip));
    }
    let all = || folder.all().columns([int64("id")]);
    for dataset in [
        all().batch(8),
        noise(&all().shuffle(Shuffle::buffer(20))).batch(8),
        uneven(&all().shuffle(Shuffle::buffer(20))).batch(2),
        multiply(&all().shuffle(Shuffle::buffer(20))).batch(8).drop_remainder(),
    ] {
        // Each pass leaves indexes behind; a restored run reads on without them.
        restores_everywhere(
            folder.loader(&dataset).index_dir(folder.index_dir().join(dataset.explain().len().to_string())),
        )
        .unwrap_or_else(|error| panic!("{error}\n{dataset}"));
    }
    Ok(())
}

#[test]
fn a_state_without_an_index_needs_the_same_world() {
    let folder = Folder::new();
    folder.put("0.tfrecord", &shard_of_ids(0..64, Compression::Gzip));
    let dataset = folder.all().columns([int64("id")]).batch(8);
    let state = folder.loader(&dataset).build().unwrap().epoch(0).next().unwrap().unwrap().state();
    let other = folder.loader(&dataset).restore(&state).world(World::new(0, 2).unwrap()).build();
    let message = other.expect_err("one rank only").to_string();
    assert!(message.contains("without an index") && message.contains("Index::Build"), "{message}");
}

#[test]
fn left_out_records_are_counted_on() -> Result<()> {
    let failing = |dataset: &Dataset| {
        dataset.map("check@1", [], |_, row, _| match row.get::<i64>("id")? {
            id if id % 9 == 5 => Err(Error::new(ErrorKind::Transform, "unlucky")),
            _ => Ok(()),
        })
    };
    for dataset in [failing(&numbers(90)).batch(5), uneven(&failing(&numbers(190))).batch(5)] {
        restores_everywhere(dataset.loader().on_bad_record(Skip::up_to(40)))?;
        // The limit holds over a restore: what an undisturbed run meets, a restored one meets at the same step.
        let limited = || dataset.loader().on_bad_record(Skip::up_to(6));
        let (mut steps, mut states) = (0, Vec::new());
        for batch in limited().build()?.epoch(0) {
            match batch {
                Ok(batch) => states.push(batch.state()),
                Err(error) => {
                    assert!(error.to_string().contains("bad record 7 of epoch 0"), "{error}");
                    steps = states.len();
                }
            }
        }
        assert!(steps > 0, "the limit is met");
        for (behind, state) in states.iter().enumerate() {
            let restored: Vec<_> = limited().restore(state).build()?.epoch(0).collect();
            assert_eq!(restored.len(), steps - behind, "restored behind step {behind}");
            assert!(restored[restored.len() - 1].as_ref().is_err_and(|e| e.to_string().contains("up_to(6) allows")));
        }
    }
    Ok(())
}

#[test]
fn a_batch_that_an_error_cuts_is_taken_again_as_a_whole() -> Result<()> {
    let dataset = |limit: i64| {
        numbers(100).map("fails@1", [], move |_, row, _| match row.get::<i64>("id")? {
            id if id == limit => Err(Error::new(ErrorKind::Transfer, "the disk is gone")),
            _ => Ok(()),
        })
    };
    for (failing, mended, cut, next) in [
        (dataset(84).batch(8), dataset(-1).batch(8), 80, 80),
        // Behind a filter a state tells rows, so none of them comes twice.
        (even(&dataset(84)).batch(8), even(&dataset(-1)).batch(8), 80, 84),
    ] {
        let batches: Vec<_> = failing.loader().streams(1).build()?.epoch(0).collect();
        let (last, error) = (&batches[batches.len() - 2], &batches[batches.len() - 1]);
        assert!(error.is_err());
        let last = last.as_ref().expect("what comes before the error");
        assert!(ids(last).contains(&cut) && !ids(last).contains(&84), "{:?}", ids(last));
        let rest = mended.loader().restore(&last.state()).build()?.epoch(0).next().expect("a batch")?;
        assert_eq!(ids(&rest)[0], next);
    }
    Ok(())
}

#[test]
fn a_damaged_state_is_refused() -> Result<()> {
    let positions = numbers(100).batch(8);
    let filtered = uneven(&numbers(400)).batch(8);
    let state = |dataset: &Dataset| {
        let state = dataset.loader().build()?.epoch(0).next().expect("a batch")?.state();
        Ok::<State, Error>(state)
    };
    type Damage = fn(&mut State);
    let cases: [(&Dataset, Damage); 9] = [
        (&positions, |state| state.step = 14),
        (&positions, |state| state.epoch = u64::MAX),
        (&positions, |state| state.world = 0),
        (&positions, |state| state.cursors = vec![Default::default(); 8]),
        (&positions, |state| state.read_from = Some(Default::default())),
        (&filtered, |state| state.cursors.truncate(3)),
        (&filtered, |state| state.cursors.clear()),
        (&filtered, |state| state.cursors[2].position = 51),
        (&filtered, |state| state.cursors[2].expanded = u64::MAX),
    ];
    for (number, (dataset, damage)) in cases.into_iter().enumerate() {
        let mut state = state(dataset)?;
        damage(&mut state);
        let refused =
            dataset.loader().restore(&state).build().err().unwrap_or_else(|| panic!("case {number} is taken"));
        assert!(refused.to_string().contains("the state is damaged"), "{refused}");
    }
    let folder = Folder::new();
    folder.put("0.tfrecord", &shard_of_ids(0..64, Compression::Gzip));
    let arriving = folder.all().columns([int64("id")]).batch(8);
    let state = folder.loader(&arriving).build()?.epoch(0).next().expect("a batch")?.state();
    let cases: [Damage; 5] = [
        |state| state.read_from = None,
        |state| state.step = 0,
        |state| state.read_from.insert(ReadPoint::default()).row = 9,
        |state| state.read_from.insert(ReadPoint::default()).shard = 1,
        |state| state.read_from.insert(ReadPoint::default()).offset = 1 << 40,
    ];
    for (number, damage) in cases.into_iter().enumerate() {
        let mut state = state.clone();
        damage(&mut state);
        match folder.loader(&arriving).restore(&state).build() {
            // An earlier step of the same shard is a state that there was.
            Ok(mut loader) => assert!(number == 1 && loader.epoch(0).count() == 8),
            Err(refused) => assert!(refused.to_string().contains("the state is damaged"), "{refused}"),
        }
    }
    Ok(())
}

#[test]
fn the_graph_of_a_state_knows_what_feeds_what() -> Result<()> {
    let (plain, shuffled) = (numbers(40), numbers(40).shuffle(Shuffle::buffer(16)));
    let state = shuffled.concat(&plain).batch(8).loader().build()?.epoch(0).next().expect("a batch")?.state();
    let fork = plain.shuffle(Shuffle::buffer(16));
    let first = fork.concat(&plain).batch(8).loader().build()?.epoch(0).next().expect("a batch")?.state();
    for other in [plain.concat(&fork), fork.concat(&fork)] {
        assert!(other.batch(8).loader().restore(&first).build().is_err(), "{other}");
    }
    assert!(fork.concat(&plain).batch(8).prefetch(4).loader().restore(&first).build().is_ok());
    assert_ne!(first.graph, state.graph);
    Ok(())
}

#[test]
fn a_stream_restored_late_lets_go_of_what_was_delivered() -> Result<()> {
    let folder = Folder::new();
    // 40 MB of blocks in one compressed shard, a budget of 48 MiB, and a state at nine tenths.
    let large = (0..400).map(|id| {
        forebay::format::example::Example::new()
            .with_int64("id", [id])
            .with_bytes("noise", [vec![id as u8; 100_000]])
            .encode()
    });
    folder.put("0.tfrecord", &crate::support::shards::shard(large, Compression::Gzip));
    for shuffle in [Shuffle::none(), Shuffle::buffer(40)] {
        let dataset =
            folder.all().columns([int64("id"), forebay::bytes("noise")]).shuffle(shuffle).batch(8).prefetch(1);
        let loader = || {
            let dir = folder.index_dir().join(shuffle.to_string());
            folder.loader(&dataset).index_dir(dir).budget(Budget::mebibytes(48)).seed(1)
        };
        let whole = loader().build()?.epoch(0).collect::<Result<Vec<_>>>()?;
        let mut restored = loader().restore(&whole[45].state()).build()?;
        let tail = restored.epoch(0).collect::<Result<Vec<_>>>()?;
        assert_eq!(tail.iter().map(ids).collect::<Vec<_>>(), whole[46..].iter().map(ids).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn the_world_changes_in_the_middle_of_an_epoch() -> Result<()> {
    let dataset = noise(&numbers(24 * 20).shuffle(Shuffle::buffer(96))).batch(24);
    let builder = dataset.loader().seed(42).streams(24);
    let (alone, ..) = in_world(&builder, None, 1, u64::MAX, ids)?;
    assert_eq!(alone.len(), 20);
    let (mut stitched, mut state) = (Vec::new(), None);
    for (world, to) in [(2, 5), (8, 11), (1, 13), (3, 20)] {
        let (global, states, _) = in_world(&builder, state.as_ref(), world, to, ids)?;
        assert!(states.iter().all(|of_rank| (of_rank.epoch, of_rank.step) == (0, to)));
        stitched.extend(global);
        state = states.into_iter().next_back();
    }
    assert_eq!(stitched, alone);
    Ok(())
}

#[test]
fn the_world_changes_behind_a_filter_with_merged_states() -> Result<()> {
    let dataset = uneven(&multiply(&numbers(700).shuffle(Shuffle::buffer(96)))).batch(24);
    let builder = dataset.loader().seed(42).streams(24).steps_per_epoch(40);
    let (alone, ..) = in_world(&builder, None, 1, u64::MAX, ids)?;
    assert!(alone.len() == 40 && alone.iter().all(|batch| batch.len() == 24));
    let (mut stitched, mut state) = (Vec::new(), None);
    for (world, to) in [(2, 5), (8, 11), (1, 13), (3, 40)] {
        let (global, states, _) = in_world(&builder, state.as_ref(), world, to, ids)?;
        stitched.extend(global);
        if world > 1 {
            let unmerged = builder.clone().restore(&states[1]).build().expect_err("a rank knows its own streams only");
            assert!(unmerged.to_string().contains("State::merge"), "{unmerged}");
        }
        state = Some(State::merge(states)?);
    }
    assert_eq!(stitched, alone);
    Ok(())
}

#[test]
fn ranks_behind_a_filter_take_equal_steps() -> Result<()> {
    let dataset = uneven(&numbers(500)).batch(8);
    let refused = dataset.loader().world(World::new(0, 2)?).build().expect_err("steps are not known");
    assert!(refused.to_string().contains(".steps_per_epoch(n)"), "{refused}");
    for rank in 0..2 {
        let mut loader = dataset.loader().world(World::new(rank, 2)?).steps_per_epoch(50).build()?;
        assert_eq!(loader.steps_per_epoch(), Some(50));
        for epoch in 0..2 {
            let lengths =
                loader.epoch(epoch).map(|batch| batch.map(|batch| batch.len())).collect::<Result<Vec<_>>>()?;
            assert_eq!(lengths, [4; 50]);
        }
    }
    restores_everywhere(dataset.loader().steps_per_epoch(50))?;
    restores_everywhere(dataset.loader().steps_per_epoch(50).world(World::new(1, 2)?))?;
    restores_everywhere(noise(&numbers(50).shuffle(Shuffle::buffer(16))).batch(8).loader().steps_per_epoch(20))
}

#[test]
fn steps_that_are_taken_away_are_not_stated() -> Result<()> {
    let dataset = uneven(&numbers(500)).batch(8).take(5);
    let refused = dataset.loader().steps_per_epoch(9).build().expect_err("five are left").to_string();
    assert!(refused.contains("9 stated steps") && refused.contains("leave .take() out"), "{refused}");
    let mut loader = dataset.loader().steps_per_epoch(4).build()?;
    assert_eq!((loader.steps_per_epoch(), loader.epoch(0).count()), (Some(4), 4));
    Ok(())
}

#[test]
fn stated_steps_begin_with_the_epoch_there_would_be_without() -> Result<()> {
    let dataset = numbers(48).shuffle(Shuffle::buffer(16)).batch(8);
    let mut plain = dataset.loader().seed(5).build()?;
    let mut stated = dataset.loader().seed(5).steps_per_epoch(10).build()?;
    for epoch in [0, 3] {
        let whole = plain.epoch(epoch).map(|batch| batch.map(|b| ids(&b))).collect::<Result<Vec<_>>>()?;
        let longer = stated.epoch(epoch).map(|batch| batch.map(|b| ids(&b))).collect::<Result<Vec<_>>>()?;
        assert_eq!((whole.len(), longer.len()), (6, 10));
        assert_eq!(longer[..6], whole);
        assert_ne!(longer[6..], whole[..4], "the second turn has its own order");
    }
    Ok(())
}

#[test]
fn a_filter_that_leaves_nothing_ends_with_an_error() {
    let dataset = numbers(100).filter("none@1", |_, _| Ok(false)).batch(8);
    let mut loader = dataset.loader().steps_per_epoch(3).build().unwrap();
    let error = loader.epoch(0).next().unwrap().unwrap_err().to_string();
    assert!(error.contains("left none") && error.contains(".filter()"), "{error}");
    assert_eq!(dataset.loader().build().unwrap().epoch(0).count(), 0);
}

#[test]
fn a_stream_that_gives_little_does_not_pile_up_the_others() -> Result<()> {
    // Of the first half of the streams next to nothing is kept; with 1 MiB rows the others would fill the budget.
    let dataset = Numbers::new(&[vec![4; 100]], 1 << 20)
        .dataset()
        .filter("late@1", |_, row| Ok(row.get::<i64>("id")? % 8 >= 4 || row.get::<i64>("id")? % 64 == 0))
        .batch(8);
    let mut loader = dataset.loader().budget(Budget::mebibytes(120)).scheduler(Scheduler::threads(2)).build()?;
    let rows = loader.epoch(0).map(|batch| batch.map(|batch| batch.len())).sum::<Result<usize>>()?;
    assert_eq!(rows, (0..400).filter(|id| id % 8 >= 4 || id % 64 == 0).count());
    Ok(())
}

#[test]
fn a_state_of_another_run_is_refused_with_what_differs() -> Result<()> {
    let graph = |name: &str, buffer| {
        numbers(100)
            .map(name.to_owned(), [int64("y")], |_, row, out| out.set("y", row.get::<i64>("id")?))
            .shuffle(Shuffle::buffer(buffer))
            .batch(8)
    };
    let dataset = graph("double@1", 16);
    let state = dataset.loader().seed(4).build()?.epoch(0).next().expect("a batch")?.state();
    let refused = |builder: LoaderBuilder| builder.restore(&state).build().expect_err("another run").to_string();
    for (builder, what) in [
        (dataset.loader().seed(5), vec!["the seed was 4, is 5"]),
        (dataset.loader().streams(4), vec!["the number of streams was 8, is 4"]),
        (dataset.loader().world(World::new(0, 3).unwrap()), vec!["the state has 8 streams, which stay"]),
        (dataset.take(3).loader(), vec!["the stages were `read, map double@1, shuffle, batch`, are"]),
        (graph("double@2", 16).loader(), vec!["`map double@1`, is `map \"double@2\""]),
        (graph("double@1", 17).loader(), vec!["another `shuffle`, is `shuffle buffer of 17 samples`"]),
        (graph("triple", 17).loader().seed(1), vec!["the seed was 4", "is `map \"triple\"", "buffer of 17"]),
        (dataset.loader().steps_per_epoch(9), vec!["the stages were", "steps_per_epoch"]),
    ] {
        let message = refused(builder);
        what.iter().for_each(|what| assert!(message.contains(what), "{what} is missing in {message}"));
    }
    let other = Numbers::new(&[vec![50, 49]], 8)
        .dataset()
        .map("double@1", [int64("y")], |_, row, out| out.set("y", row.get::<i64>("id")?));
    let message = refused(other.shuffle(Shuffle::buffer(16)).batch(8).loader());
    assert!(message.contains("source 0 had 5 shards of 100 rows, has 1 shards of 99 rows"), "{message}");
    let mut newer = state.clone();
    newer.version = 4;
    let message = dataset.loader().restore(&newer).build().expect_err("unknown").to_string();
    assert!(message.contains("its version is 4"), "{message}");
    // Prefetch, threads and budget may differ; seed and streams come from the state.
    let mut again = dataset.prefetch(7).loader().scheduler(Scheduler::threads(3)).restore(&state).build()?;
    assert_eq!((again.next_epoch(), again.epoch(0).next().expect("a batch")?.step()), (0, 1));
    Ok(())
}

#[test]
fn a_world_that_cannot_share_the_streams_of_a_state_is_told_which_can() -> Result<()> {
    let dataset = numbers(100).batch(20);
    let state = dataset.loader().build()?.epoch(0).next().expect("a batch")?.state();
    assert_eq!(state.streams, 5);
    let of = |world| dataset.loader().world(World::new(0, world).expect("a rank"));
    let refused = |world| of(world).restore(&state).build().expect_err("ranks that share nothing").to_string();
    let text = refused(2);
    assert!(text.contains("the state has 5 streams, which stay: restore it with 1 or 5 ranks;"), "{text}");
    assert!(text.contains(".streams(10) can go on with 1, 2, 5 or 10"), "{text}");
    assert!(refused(3).contains("with 1 or 5 ranks; for 3 to go on"), "{}", refused(3));
    assert!(of(5).restore(&state).build().is_ok());
    // The same of a loader that is there already.
    let text = of(2).build()?.restore(&state).expect_err("another number of streams").to_string();
    assert!(text.contains("the number of streams was 5, is 4: 2 ranks cannot share 5, 1 or 5 can"), "{text}");
    // And what it says is so.
    let state = dataset.loader().streams(10).build()?.epoch(0).next().expect("a batch")?.state();
    for world in [1, 2, 5, 10] {
        assert!(of(world).restore(&state).build().is_ok());
    }
    Ok(())
}

#[test]
fn a_state_is_small_and_readable() -> Result<()> {
    let rows = Numbers::new(&vec![vec![1 << 10; 10]; 1000], 8).dataset().skip(1 << 10);
    let dataset = multiply(&noise(&rows)).shuffle(Shuffle::buffer(1 << 16)).batch(256);
    let mut state = dataset.loader().streams(256).build()?.epoch(0).next().expect("a batch")?.state();
    state.cursors.iter_mut().for_each(|cursor| (cursor.position, cursor.expanded) = (12_345_678_901, 2));
    let text = serde_json::to_string(&state).expect("plain data");
    assert!(text.len() <= 1024 + 16 * 256, "{} bytes: {text}", text.len());
    assert!(text.contains("\"epoch\":0,\"step\":1") && text.contains("noise@1#"), "{text}");
    assert_eq!(serde_json::from_str::<State>(&text).expect("as written"), state);

    // Of many stages and sources it keeps less.
    let mut many = (0..9).fold(numbers(40), |all, _| all.concat(&numbers(40)));
    for stage in 0..40 {
        many = many.map(format!("a stage of some length, number {stage}"), [], |_, _, _| Ok(()));
    }
    let dataset = many.batch(8);
    let state = dataset.loader().build()?.epoch(0).next().expect("a batch")?.state();
    let text = serde_json::to_string(&state).expect("plain data");
    assert!(text.len() <= 1024, "{} bytes: {text}", text.len());
    assert!(dataset.loader().restore(&state).build().is_ok());
    let other = dataset.take(3);
    let message = other.loader().restore(&state).build().expect_err("another run").to_string();
    assert!(message.contains("batch, transforms 41`, are") && message.contains("take, transforms 41`"), "{message}");
    // And of very many whether they are the same.
    let dataset = (0..60).fold(dataset, |all, _| all.take(5));
    let state = dataset.loader().build()?.epoch(0).next().expect("a batch")?.state();
    assert!(serde_json::to_string(&state).expect("plain data").len() <= 1024);
    assert!(dataset.loader().restore(&state).build().is_ok());
    let error = dataset.take(5).loader().restore(&state).build().err();
    assert!(error.is_some_and(|e| e.to_string().contains("was `80 stages`, is `81 stages`")));
    Ok(())
}

#[test]
fn samples_may_be_made_in_another_way_where_a_run_goes_on() -> Result<()> {
    let add = |dataset: Dataset, name: &str, number: i64| {
        dataset.map(name.to_owned(), [int64("y")], move |_, row, out| out.set("y", number + row.get::<i64>("id")?))
    };
    let rows = |filtered: bool| {
        let rows = numbers(400).shuffle(Shuffle::buffer(32));
        if filtered { even(&rows) } else { rows }
    };
    for filtered in [false, true] {
        let dataset = add(rows(filtered), "one@1", 1).batch(8);
        let undisturbed: Vec<Batch> = dataset.loader().seed(2).build()?.into_iter().collect::<Result<_>>()?;
        let state = undisturbed[4].state();
        let others = [
            add(rows(filtered), "two@1", 2).batch(8),
            add(add(rows(filtered), "one@1", 1), "two@1", 2).batch(8),
            rows(filtered).batch(8),
        ];
        let numbered = (!filtered).then(|| rows(false).enumerate("n").batch(8));
        for other in others.into_iter().chain(numbered) {
            let strict = other.loader().restore(&state).build().expect_err("other transforms").to_string();
            assert!(strict.contains("say .transforms_may_differ()"), "{strict}");
            let loose = other.loader().restore(&state).transforms_may_differ().build()?;
            let rest = loose.into_iter().map(|batch| batch.map(|batch| ids(&batch))).collect::<Result<Vec<_>>>()?;
            assert_eq!(rest, undisturbed[5..].iter().map(ids).collect::<Vec<_>>(), "{other}");
        }
        // What decides which rows come may not.
        let sub = add(rows(!filtered), "one@1", 1).batch(8);
        for other in [add(numbers(400), "one@1", 1).batch(8), add(rows(filtered), "one@1", 1).batch(16), sub] {
            let builder = other.loader().restore(&state).transforms_may_differ();
            let error = builder.build().expect_err("other rows").to_string();
            assert!(error.contains("another run") && !error.contains("say .transforms"), "{error}");
        }
    }
    // Nor may what a stage goes by that makes more or fewer rows of some.
    let expanded = |name: &str| {
        let rows = numbers(100).map(name.to_owned(), [], |_, _, _| Ok(()));
        multiply(&rows).map("behind", [], |_, _, _| Ok(())).batch(8)
    };
    let state = expanded("one@1").loader().build()?.epoch(0).next().expect("a batch")?.state();
    assert_eq!(state.graph.len(), 5);
    let error = expanded("two@1").loader().restore(&state).transforms_may_differ().build().err();
    let message = error.expect("a flat_map goes by what the map made").to_string();
    assert!(message.contains("stage 1 was `early map one@1`, is `map \"two@1\""), "{message}");

    // Where data sets come together, stages may come and go in front of that, but not which of them they are part of.
    let whole = numbers(60);
    let part = whole.take(30);
    let joined = |other: &Dataset, name: &str| add(part.clone(), "a", 1).concat(&add(other.clone(), name, 2)).batch(5);
    let state = joined(&whole, "b").loader().build()?.epoch(0).next().expect("a batch")?.state();
    assert!(joined(&whole, "c").loader().restore(&state).transforms_may_differ().build().is_ok());
    assert!(joined(&whole, "c").loader().restore(&state).build().is_err());
    assert!(joined(&part, "b").loader().restore(&state).transforms_may_differ().build().is_err());
    let more = add(add(part.clone(), "a", 1), "more", 3).concat(&add(whole.clone(), "b", 2)).batch(5);
    assert!(more.loader().restore(&state).transforms_may_differ().build().is_ok());

    // A function's kind is known by more than its name: a filter may not take the place of a map.
    let state = numbers(100).map("even@1", [], |_, _, _| Ok(())).batch(8).loader().build()?.epoch(0).next();
    let state = state.expect("a batch")?.state();
    let builder = even(&numbers(100)).batch(8).loader().restore(&state).transforms_may_differ();
    assert!(builder.build().expect_err("fewer rows").to_string().contains("read, filter even@1, batch"));

    // In a graph of many stages too, and of a loader that is there already.
    let many =
        |number: i64| (0..60).fold(rows(false), |all, stage| add(all, &format!("number {stage}"), number)).batch(8);
    let state = many(1).loader().build()?.epoch(0).next().expect("a batch")?.state();
    let fewer = add(rows(false), "one@1", 1).batch(8);
    let mut loader = fewer.loader().transforms_may_differ().build()?;
    loader.restore(&state)?;
    assert_eq!(loader.into_iter().next().expect("the second batch")?.step(), 1);
    assert!(fewer.loader().build()?.restore(&state).is_err());
    Ok(())
}

#[test]
fn merging_wants_one_state_of_each_rank() -> Result<()> {
    let dataset = uneven(&numbers(500)).batch(8);
    let states = |rank, step| {
        let mut loader = dataset.loader().world(World::new(rank, 2)?).steps_per_epoch(9).build()?;
        let state = loader.epoch(0).nth(step).expect("nine steps")?.state();
        Ok::<State, Error>(state)
    };
    let (zero, one, later) = (states(0, 2)?, states(1, 2)?, states(1, 3)?);
    assert_eq!(State::merge([one.clone(), zero.clone()])?.cursors.len(), 8);
    for (states, what) in [
        (vec![], "no state"),
        (vec![zero.clone()], "ranks [0] of a world of 2"),
        (vec![zero.clone(), zero.clone()], "ranks [0, 0]"),
        (vec![zero, later], "step 3 and epoch 0 step 4"),
    ] {
        let message = State::merge(states).unwrap_err().to_string();
        assert!(message.contains(what), "{what}: {message}");
    }
    Ok(())
}

#[test]
fn every_rank_of_every_world_covers_the_epoch_with_equal_steps() -> Result<()> {
    for (samples, block, ranks_, threads, batch, buffer) in [
        (96, 1, 1, 1, 8, 0),
        (96, 5, 2, 2, 8, 16),
        (97, 5, 4, 1, 12, 16),
        (100, 33, 3, 3, 12, 64),
        (100, 100, 4, 2, 4, 1000),
        (257, 9, 8, 1, 16, 48),
    ] {
        let blocks: Vec<u64> = (0..samples).step_by(block).map(|start| (samples - start).min(block as u64)).collect();
        let rows = Numbers::new(&blocks.chunks(2).map(<[u64]>::to_vec).collect::<Vec<_>>(), 8).dataset();
        let dataset = rows.shuffle(Shuffle::buffer(buffer)).batch(batch).drop_remainder();
        let (mut seen, mut steps) = (Vec::new(), BTreeSet::new());
        for rank in 0..ranks_ {
            let builder = dataset.loader().world(World::new(rank, ranks_)?).scheduler(Scheduler::threads(threads));
            let mut loader = builder.build()?;
            let mut count = 0;
            for batch in loader.epoch(0) {
                seen.extend(ids(&batch?));
                count += 1;
            }
            assert_eq!(loader.steps_per_epoch(), Some(count));
            steps.insert(count);
        }
        let name = format!("{samples} samples, blocks of {block}, {ranks_} ranks, batch {batch}, buffer {buffer}");
        assert_eq!(steps.len(), 1, "{name}");
        assert_eq!(seen.len() as u64, samples / batch as u64 * batch as u64, "{name}");
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "{name}: a sample came twice");
    }
    Ok(())
}

#[test]
fn steps_are_skipped_without_being_read() -> Result<()> {
    let source = Numbers::new(&[vec![4; 50]], 8);
    let counts = source.counts();
    let mut loader = source.dataset().batch(4).prefetch(1).loader().build()?;
    loader.skip_steps(40)?;
    let steps = loader.into_iter().map(|batch| batch.map(|b| (b.step(), ids(&b)[0]))).collect::<Result<Vec<_>>>()?;
    assert_eq!(steps[..2], [(40, 160), (41, 164)]);
    assert_eq!(steps.len(), 10);
    assert_eq!(counts.fetches()[..40], [0; 40]);
    let unknown = uneven(&numbers(100)).batch(4).loader().build()?.skip_steps(1).expect_err("not known");
    assert!(unknown.to_string().contains("restore a state"), "{unknown}");
    Ok(())
}

#[test]
fn a_loader_goes_back_to_a_state() -> Result<()> {
    let dataset = noise(&numbers(100).shuffle(Shuffle::buffer(16))).batch(10);
    let mut loader = dataset.loader().seed(8).build()?;
    let mut epoch = loader.epoch(2);
    let state = epoch.nth(3).expect("ten steps")?.state();
    let next = ids(&epoch.next().expect("ten steps")?);
    loader.restore(&state)?;
    assert!(epoch.next().is_none(), "an iterator from before has ended");
    assert_eq!(loader.next_epoch(), 2);
    assert_eq!(ids(&loader.epoch(2).next().expect("ten steps")?), next);
    assert_eq!(loader.epoch(2).next().expect("ten steps")?.step(), 0, "asked for again it begins anew");
    Ok(())
}

#[test]
fn epochs_behind_one_that_was_left_for_another_place_are_whole() -> Result<()> {
    let dataset = noise(&numbers(100).shuffle(Shuffle::buffer(16))).batch(10);
    let expected = dataset.loader().seed(8).build()?.epoch(3).collect::<Result<Vec<_>>>()?;
    let state = dataset.loader().seed(8).build()?.epoch(2).nth(3).expect("ten steps")?.state();
    type Leave<'a> = Box<dyn Fn(&mut forebay::Loader) -> Result<()> + 'a>;
    // And the rows of the epoch behind: steps are skipped in the one that comes next.
    let leaves: [(Leave<'_>, usize); 3] = [
        (Box::new(|loader| loader.restore(&state)), 100),
        (Box::new(|loader| loader.skip_steps(2)), 80),
        (Box::new(|loader| loader.split(&[forebay::Device::Cpu]).map(drop)), 100),
    ];
    for (leave, rows) in leaves {
        let mut loader = dataset.loader().seed(8).build()?;
        // The loop goes on with its iterator, which has ended, and then with the epoch behind.
        for batch in loader.epoch(2) {
            batch?;
            leave(&mut loader)?;
        }
        for (epoch, rows) in [(3, rows), (4, 100), (5, 100)] {
            let taken = loader.epoch(epoch).map(|batch| batch.map(|batch| batch.len())).sum::<Result<usize>>()?;
            assert_eq!(taken, rows, "epoch {epoch}");
        }
        let again = loader.epoch(3).collect::<Result<Vec<_>>>()?;
        assert!(again.iter().map(ids).eq(expected.iter().map(ids)));
    }
    Ok(())
}

#[test]
fn a_batch_is_made_again_with_where_its_samples_were_read() -> Result<()> {
    let folder = Folder::with_ids(&[20, 31, 9, 40]);
    let dataset = folder.all().columns([int64("id")]).shuffle(Shuffle::buffer(16)).batch(4);
    let mut loader = folder.loader(&dataset).seed(9).world(World::new(1, 2)?).build()?;
    let batches = loader.epoch(1).collect::<Result<Vec<_>>>()?;
    for step in [0, 7, 24] {
        let replay = loader.replay(1, step, 1)?;
        assert_eq!(ids(&replay.batch), ids(&batches[step as usize]));
        assert_eq!(replay.origins.len(), 2);
        for (origin, id) in replay.origins.iter().zip(ids(&replay.batch)) {
            let path = origin.url.strip_prefix("file://").expect("a local shard");
            let shard = std::fs::read(path).expect("a shard");
            let payload = crate::support::shards::record(id as u64);
            let at = origin.offset.expect("shards have offsets") as usize + 12;
            assert_eq!(shard[at..at + payload.len()], payload, "record {} of {}", origin.record, origin.url);
        }
        assert_ne!(ids(&loader.replay(1, step, 0)?.batch), ids(&replay.batch), "the other rank has others");
    }
    assert!(loader.replay(1, 25, 0).unwrap_err().to_string().contains("no step 25"));
    assert!(loader.replay(1, 0, 2).unwrap_err().to_string().contains("rank 2 of a world of 2"));
    let filtered = folder.loader(&multiply(&folder.all().columns([int64("id")])).batch(2)).build()?;
    let state = filtered.replay(0, 0, 0)?.batch.state();
    assert_eq!(ids(&filtered.replay_behind(&state)?.batch), ids(&filtered.replay(0, 1, 0)?.batch));
    Ok(())
}

fn composition() -> impl Strategy<Value = (Dataset, String)> {
    let leaf = (1u64..60).prop_map(numbers);
    let tree = leaf.prop_recursive(4, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), 2u64..50).prop_map(|(input, buffer)| input.shuffle(Shuffle::buffer(buffer))),
            inner.clone().prop_map(|input| input.shuffle(Shuffle::global())),
            (inner.clone(), 1u64..4).prop_map(|(input, times)| input.repeat(times)),
            (inner.clone(), 1u64..80).prop_map(|(input, rows)| input.take(rows)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.concat(&b)),
            (inner.clone(), inner.clone(), 1u32..4, 0..3).prop_map(|(a, b, weight, exhausted)| {
                let exhausted = [Exhausted::Stop, Exhausted::Drop, Exhausted::Repeat][exhausted as usize];
                Dataset::mix([(a, weight), (b, 2)], exhausted)
            }),
        ]
    });
    (tree, 0..4, 1usize..13, any::<bool>()).prop_map(|(tree, kind, batch, drop): (Dataset, i32, usize, bool)| {
        let tree = match kind {
            0 => noise(&tree),
            1 => uneven(&noise(&tree)),
            2 => noise(&multiply(&tree)),
            _ => even(&tree),
        };
        let tree = tree.batch(batch);
        let tree = if drop && kind > 0 { tree.drop_remainder() } else { tree };
        let text = tree.explain();
        (tree, text)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn random_compositions_restore_everywhere((dataset, text) in composition(), seed: u64) {
        let loader = dataset.take(25).loader().seed(seed);
        // Parts of a mix may be too short for one window.
        prop_assume!(loader.clone().build().is_ok());
        let restored = restores_everywhere(loader);
        prop_assert!(restored.is_ok(), "{}\n{text}", restored.unwrap_err());
    }
}

#[test]
fn what_becomes_of_the_last_rows_may_be_another_where_a_run_goes_on() -> Result<()> {
    let graph = || numbers(200).shuffle(Shuffle::buffer(40)).batch(12);
    let ids = |batch: &Batch| batch.samples().to_vec();
    let mut whole = graph().loader().seed(3).build()?;
    let taken = whole.epoch(0).collect::<Result<Vec<_>>>()?;
    let state = taken[4].state();
    // Two ranks cannot share a short last batch, so they leave it out.
    for rank in 0..2 {
        let loader = graph().drop_remainder().loader().world(World::new(rank, 2)?).restore(&state);
        let rest = loader.build()?.epoch(0).map(|batch| Ok(ids(&batch?))).collect::<Result<Vec<_>>>()?;
        let half = |batch: &Batch| ids(batch)[rank * 6..][..6].to_vec();
        assert_eq!(rest, taken[5..16].iter().map(half).collect::<Vec<_>>(), "rank {rank}");
    }
    let longer = noise(&numbers(200).shuffle(Shuffle::buffer(40))).batch(12).loader().seed(3).restore(&state);
    let error = longer.build().expect_err("another graph").to_string();
    assert!(
        error.contains("the stages were `read, shuffle, batch`, are `read, shuffle, map noise@1, batch`"),
        "{error}"
    );
    Ok(())
}
