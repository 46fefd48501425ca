//! Each sample once, and counted once, where something ends: parts, windows, shards, lanes, limits.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use bytes::Bytes;
use forebay::plan::Catalog;
use forebay::source::{Decoded, Source};
use forebay::{
    Buckets, Column, Compression, Dataset, Device, Error, ErrorKind, Loader, LoaderBuilder, Remainder, Result, Shuffle,
    Skip, State, int64,
};
use futures::future::BoxFuture;

use crate::support::shards::{Folder, shard_of_ids};
use crate::support::watched;

/// Columns `x` and `y`, of which the second is the first one's negative.
fn pairs(x: std::ops::Range<i64>) -> Dataset {
    let column = |sign: i64| Arc::new(Int64Array::from_iter_values(x.clone().map(move |x| sign * x))) as ArrayRef;
    Dataset::from_columns([("x", column(1)), ("y", column(-1))]).expect("two columns")
}

/// What came before the first error, that error, and the state behind the last batch.
fn run(loader: &mut Loader, epoch: u64) -> (Vec<i64>, Option<Error>, Option<State>) {
    let (mut taken, mut failed, mut state) = (Vec::new(), None, None);
    for batch in loader.epoch(epoch) {
        match batch {
            Ok(batch) => {
                let name = if batch.names().any(|name| name == "id") { "id" } else { "x" };
                taken.extend_from_slice(&batch.values::<i64>(name).expect("numbers"));
                state = Some(batch.state());
            }
            Err(error) => failed = Some(error),
        }
    }
    (taken, failed, state)
}

fn whole(loader: LoaderBuilder) -> Result<Vec<i64>> {
    let (taken, failed, _) = run(&mut loader.build()?, 0);
    failed.map_or(Ok(taken), Err)
}

/// A name by which a function fails, once, at one row.
fn failing_at(dataset: &Dataset, at: Option<i64>, kind: ErrorKind) -> Dataset {
    dataset.map("check@1", [int64("checked")], move |_, row, out| {
        let x = row.get::<i64>("x")?;
        if Some(x) == at { Err(Error::new(kind, "not now")) } else { out.set("checked", x) }
    })
}

#[test]
fn columns_are_joined_by_their_names() -> Result<()> {
    // Of most parts of a chunk the filter leaves nothing, whose columns then stand as they were.
    let part = |range| {
        pairs(range).filter("tens", |_, row| Ok(row.get::<i64>("x")? % 10 == 0)).columns([int64("y"), int64("x")])
    };
    let filtered = part(0..1000).concat(&part(1000..2000)).shuffle(Shuffle::buffer(5000));
    // A number that takes the place of a column in one part, and comes behind the others in the other.
    let numbered = pairs(0..50)
        .columns([int64("y"), int64("x")])
        .enumerate("y")
        .concat(&pairs(50..100).columns([int64("x")]).enumerate("y").columns([int64("y"), int64("x")]));
    for (dataset, sum) in [(filtered, 0), (numbered.shuffle(Shuffle::buffer(500)), 1)] {
        let mut rows = 0;
        for batch in dataset.batch(8).loader().streams(1).build()?.epoch(0) {
            let batch = batch?;
            for (x, y) in batch.values::<i64>("x")?.iter().zip(&*batch.values::<i64>("y")?) {
                rows += 1;
                assert!(if sum == 0 { x + y == 0 } else { *y == x % 50 }, "{x} {y}");
            }
        }
        assert!(rows == 200 || rows == 100);
    }
    Ok(())
}

/// Blocks whose columns stand now this way round and now the other.
struct Turning {
    columns: Vec<Column>,
    catalog: Catalog,
}

impl Source for Turning {
    fn name(&self) -> String {
        "turning".into()
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn fetch(&self, _: usize) -> Option<BoxFuture<'static, Result<Vec<Bytes>>>> {
        None
    }

    fn decode(&self, block: usize, _: Vec<Bytes>) -> Result<Decoded> {
        let start = self.catalog.block_start(block) as i64;
        let column = |sign: i64| Arc::new(Int64Array::from_iter_values((start..start + 10).map(|x| sign * x))) as _;
        let columns: [(&str, ArrayRef); 2] = [("x", column(1)), ("y", column(-1))];
        let [first, second] = if block.is_multiple_of(2) { [0, 1] } else { [1, 0] };
        let more = ("more", column(7));
        let columns = [columns[first].clone(), more, columns[second].clone()];
        Ok(Decoded::good(RecordBatch::try_from_iter(columns).expect("of one length")))
    }
}

#[test]
fn blocks_of_a_source_may_have_their_columns_in_any_order() -> Result<()> {
    let mut catalog = Catalog::new();
    catalog.push_shard("turning");
    (0..20).for_each(|_| catalog.push_block(10, 160));
    let dataset = Dataset::from_source(Turning { columns: vec![int64("x"), int64("y")], catalog });
    for batch in dataset.shuffle(Shuffle::buffer(1000)).batch(16).loader().build()?.epoch(0) {
        let batch = batch?;
        let y = batch.values::<i64>("y")?;
        assert!(batch.values::<i64>("x")?.iter().zip(&*y).all(|(x, y)| x + y == 0));
    }
    Ok(())
}

#[test]
fn what_a_failure_left_of_a_sample_or_window_comes_behind_its_state() -> Result<()> {
    let fourfold = |at| {
        let parts = pairs(0..40).flat_map("four@1", [int64("x"), int64("y")], |_, row, out| {
            let x = row.get::<i64>("x")?;
            (0..4).try_for_each(|part| out.push(|row| row.set("x", 4 * x + part).and_then(|()| row.set("y", part))))
        });
        failing_at(&parts, at, ErrorKind::Transfer).batch(8)
    };
    let bucketed = |at| {
        let lengths = pairs(0..64).map("list@1", [int64("list").ragged()], |_, row, out| {
            out.set_values("list", &vec![1i64; 1 + row.get::<i64>("x")? as usize % 7])
        });
        let buckets = Buckets::boundaries([4]).window(32);
        failing_at(&lengths.bucket_by_length("list", buckets).columns([int64("x")]), at, ErrorKind::Transfer).batch(4)
    };
    type Graph<'a> = &'a dyn Fn(Option<i64>) -> Dataset;
    for (graph, at) in [(&fourfold as Graph<'_>, 42), (&fourfold, 43), (&bucketed, 21), (&bucketed, 50)] {
        let expected = whole(graph(None).loader().seed(4).streams(1))?;
        let (mut first, failed, state) = run(&mut graph(Some(at)).loader().seed(4).streams(1).build()?, 0);
        assert!(failed.is_some() && !first.is_empty());
        let mended = graph(None).loader().restore(&state.expect("a batch")).build()?;
        let rest = run(&mut { mended }, 0);
        first.extend(rest.0);
        assert_eq!(first, expected, "failed at {at}");
    }
    Ok(())
}

#[test]
fn a_run_without_an_index_goes_on_from_in_front_of_what_a_failure_changed() -> Result<()> {
    for (buffer, damaged) in [(20, 33), (20, 41), (1, 13), (1, 16)] {
        let folder = Folder::new();
        let sound = shard_of_ids(0..40, Compression::None);
        // It ends in the middle of the header of a record.
        let good = shard_of_ids(0..damaged.min(40) as u64, Compression::None).len();
        let shard = &sound[..sound.len().min(good + 5)];
        let gzip = |bytes: &[u8]| {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut writer, bytes).expect("memory takes it");
            writer.finish().expect("memory takes it")
        };
        folder.put("0.tfrecord", &gzip(shard));
        let dataset = folder.all().columns([int64("id")]).shuffle(Shuffle::buffer(buffer)).batch(8);
        let (first, failed, state) = run(&mut folder.loader(&dataset).seed(3).build()?, 0);
        assert_eq!(failed.is_some(), damaged < 40);
        let good = damaged.min(40) as i64;
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..good).collect::<Vec<_>>(), "what came before the damage is whole");
        if damaged >= 40 {
            continue;
        }
        let state = state.expect("a batch");
        // As if the shard had been mended: what is behind the state comes, in the order of a run that was never broken off.
        folder.put("0.tfrecord", &gzip(&sound));
        // Its index goes elsewhere: what is read ahead for the next epoch may store it again at any time.
        let expected = whole(dataset.loader().index_dir(folder.path("indexes of the whole")).seed(3))?;
        let settled = state.step as usize * 8;
        assert_eq!(first[..settled], expected[..settled]);
        assert!(settled <= damaged / buffer as usize * buffer as usize, "step {} of {buffer}", state.step);
        // Of rows that are made of others, too: of the first one that would be another, none is behind the state.
        folder.put("0.tfrecord", &gzip(shard));
        let parts = folder.all().columns([int64("id")]).shuffle(Shuffle::buffer(buffer)).flat_map(
            "five",
            [int64("id")],
            |_, row, out| {
                let id = row.get::<i64>("id")?;
                (0..5).try_for_each(|part| out.push(|row| row.set("id", 5 * id + part)))
            },
        );
        let (first, failed, state) = run(&mut folder.loader(&parts.batch(8)).seed(3).streams(1).build()?, 0);
        let state = state.expect("a batch");
        assert!(failed.is_some() && first.len() == 5 * damaged);
        let settled = state.step as usize * 8;
        let expected: Vec<i64> = expected.iter().flat_map(|id| (0..5).map(move |part| 5 * id + part)).collect();
        assert_eq!(first[..settled], expected[..settled]);
        assert!(settled <= 5 * (damaged / buffer as usize * buffer as usize));
    }
    Ok(())
}

#[test]
fn each_bad_row_of_a_window_is_counted() -> Result<()> {
    let list = pairs(0..200).map("list", [int64("list").ragged()], |_, row, out| {
        out.set_values("list", &vec![1i64; 1 + row.get::<i64>("x")? as usize % 5])
    });
    let bucketed = list.bucket_by_length("list", Buckets::boundaries([3]).window(100)).columns([int64("x")]);
    let checked = bucketed.map("check", [int64("z")], |_, row, out| match row.get::<i64>("x")? {
        x if x % 10 == 0 => Err(Error::new(ErrorKind::Transform, "a multiple of ten")),
        x => out.set("z", x),
    });
    let dataset = checked.batch(10);
    let mut loader = dataset.loader().streams(1).on_bad_record(Skip::up_to(20)).build()?;
    let (taken, failed, _) = run(&mut loader, 0);
    assert!(failed.is_none() && taken.len() == 180, "{failed:?}");
    assert_eq!(loader.report().num_skipped, 20);
    let mut samples: Vec<_> = loader.report().skipped.iter().map(|skipped| skipped.error.place().sample).collect();
    samples.sort_unstable();
    assert_eq!(samples, (0..20).map(|i| Some(10 * i)).collect::<Vec<_>>());
    let (_, failed, _) = run(&mut dataset.loader().streams(1).on_bad_record(Skip::up_to(3)).build()?, 0);
    assert!(failed.expect("more than three").to_string().contains("up_to(3)"));
    Ok(())
}

#[test]
fn a_remainder_that_is_refused_is_refused_without_an_index_too() {
    let folder = Folder::new();
    folder.put("0.tfrecord", &shard_of_ids(0..13, Compression::Gzip));
    let dataset = folder.all().columns([int64("id")]).batch(8).remainder(Remainder::Refuse);
    let refused = folder.loader(&dataset).build().expect_err("nobody knows the number of rows");
    assert!(refused.to_string().contains("Remainder::Refuse"), "{refused}");
}

#[test]
fn a_filter_that_leaves_nothing_ends_an_endless_epoch() -> Result<()> {
    let nothing = pairs(0..100).filter("none", |_, _| Ok(false)).repeat_forever().batch(8);
    for loader in [nothing.loader(), nothing.loader().steps_per_epoch(3)] {
        let error = watched(move || loader.build().map(|mut loader| loader.epoch(0).next()));
        let error = error?.expect("an item").expect_err("there is nothing");
        assert!(error.to_string().contains("left none"), "{error}");
    }
    Ok(())
}

#[test]
fn a_filter_that_leaves_little_is_waited_for() -> Result<()> {
    let numbered = pairs(0..10).repeat_forever().take(30_000).enumerate("y");
    let few = numbered.filter("few", |_, row| Ok(row.get::<i64>("y")? % 1000 == 999));
    assert_eq!(whole(few.batch(4).loader())?.len(), 30);
    let first = pairs(0..10).repeat_forever().enumerate("y").filter("few", |_, row| Ok(row.get::<i64>("y")? > 5000));
    assert_eq!(first.batch(4).loader().build()?.epoch(0).take(3).filter_map(Result::ok).count(), 3);
    Ok(())
}

#[test]
fn devices_do_not_share_a_last_batch_unequally() -> Result<()> {
    let devices = [Device::Cpu; 3];
    let dataset = pairs(0..98).batch(12);
    let refused = dataset.loader().build()?.split(&devices).expect_err("two rows for three");
    assert!(refused.to_string().contains("has 2 samples, which 3 devices"), "{refused}");
    for dataset in [dataset.drop_remainder(), pairs(0..96).batch(12), pairs(0..99).batch(12)] {
        let lanes = dataset.loader().build()?.split(&devices)?;
        let taken = watched(move || {
            std::thread::scope(|scope| {
                let lanes: Vec<_> = lanes.into_iter().map(|lane| scope.spawn(move || lane.count())).collect();
                lanes.into_iter().map(|lane| lane.join().expect("no panic")).collect::<Vec<_>>()
            })
        });
        assert!(taken.windows(2).all(|two| two[0] == two[1]), "{taken:?}");
    }
    Ok(())
}

#[test]
fn rows_that_are_dropped_each_turn_are_part_of_a_state() -> Result<()> {
    let of = |remainder| pairs(0..10).batch(4).remainder(remainder);
    let state = of(Remainder::Keep).loader().steps_per_epoch(6).build()?.epoch(0).nth(2).expect("six steps")?.state();
    let refused = of(Remainder::Drop).loader().steps_per_epoch(6).restore(&state).build().expect_err("others follow");
    assert!(refused.to_string().contains("steps_per_epoch of whole batches"), "{refused}");
    assert!(of(Remainder::Repeat).loader().steps_per_epoch(6).restore(&state).build().is_ok());
    Ok(())
}

/// Rows of which those named are bad, and one fails for another reason.
fn bad(dataset: &Dataset, bad: &'static [i64], fails: Option<i64>) -> Dataset {
    dataset.map("bad@1", [int64("z")], move |_, row, out| match row.get::<i64>("x")? {
        x if bad.contains(&x) => Err(Error::new(ErrorKind::Transform, "bad")),
        x if Some(x) == fails => Err(Error::new(ErrorKind::Transfer, "not now")),
        x => out.set("z", x),
    })
}

#[test]
fn bad_records_of_a_batch_are_counted_once_whatever_ends_behind_it() -> Result<()> {
    // More than allowed in one batch, behind which a run goes on.
    let dataset = bad(&pairs(0..24), &[3, 4, 5], None).batch(8);
    let mut first = dataset.loader().on_bad_record(Skip::up_to(1)).build()?;
    let (_, failed, state) = run(&mut first, 0);
    assert!(failed.is_some() && first.report().num_skipped == 3);
    let mut second = dataset.loader().on_bad_record(Skip::up_to(9)).restore(&state.expect("a batch")).build()?;
    assert!(run(&mut second, 0).1.is_none());
    let sum = forebay::Ledger::sum(&[first.ledger(), second.ledger()])?;
    second.verify_epoch(0, &sum)?;

    // A batch that is cut short comes again, with the record that it did without.
    let cut = |fails| bad(&pairs(0..24), &[2], fails).batch(8);
    let (_, failed, state) = run(&mut cut(Some(5)).loader().on_bad_record(Skip::up_to(1)).build()?, 0);
    assert!(failed.is_some());
    let mended =
        cut(None).loader().on_bad_record(Skip::up_to(1)).restore(&state.expect("a part of a batch")).build()?;
    let (taken, failed, _) = run(&mut { mended }, 0);
    assert!(failed.is_none() && taken.len() == 23, "{failed:?}");
    Ok(())
}

#[test]
fn a_rate_is_held_against_all_that_was_seen() -> Result<()> {
    for kept in [63, 64] {
        let few = bad(&pairs(0..10_000), &[3], None).filter("few", move |_, row| Ok(row.get::<i64>("x")? <= kept));
        let (taken, failed, _) = run(&mut few.batch(8).loader().on_bad_record(Skip::rate(0.001)).build()?, 0);
        assert!(failed.is_none() && taken.len() as i64 == kept, "{failed:?}");
    }
    Ok(())
}

#[test]
fn what_was_left_out_is_told_though_its_lane_is_dropped() -> Result<()> {
    let dataset = bad(&pairs(0..32), &[6], None).batch(8);
    let mut loader = dataset.loader().on_bad_record(Skip::up_to(1)).build()?;
    let [first, second] = <[_; 2]>::try_from(loader.split(&[Device::Cpu; 2])?).expect("two");
    // The second's first part is there, so what it does without was told to the first.
    let mut second = second;
    let part = second.next().expect("a part")?;
    drop(first);
    // Seven rows are shared by two.
    assert_eq!((part.len(), second.count()), (4, 3));
    assert_eq!((loader.report().num_skipped, loader.report().skipped.len()), (1, 1));
    Ok(())
}
