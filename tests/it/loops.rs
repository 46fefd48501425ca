//! The loops that users write, and what is left behind when they end early.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::Int64Array;
use forebay::{Budget, Dataset, Device, Epoch, Loader, Result, Scheduler, Shuffle, State};

use crate::support::shards::Folder;
use crate::support::source::Numbers;
use crate::support::{eventually, threads_named, watched};

fn numbers(rows: i64) -> Dataset {
    Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(0..rows)) as _)]).expect("one column")
}

fn values(epoch: Epoch) -> Result<Vec<i64>> {
    let mut values = Vec::new();
    for batch in epoch {
        values.extend_from_slice(&batch?.values::<i64>("x")?);
    }
    Ok(values)
}

#[test]
fn for_batch_in_loader_takes_one_epoch() -> Result<()> {
    let loader = numbers(100).batch(8).loader().build()?;
    let mut seen = Vec::new();
    for batch in loader {
        let batch = batch?;
        seen.extend_from_slice(&batch.values::<i64>("x")?);
    }
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn for_batch_in_a_borrowed_loader_takes_epoch_after_epoch() -> Result<()> {
    let mut loader = numbers(64).shuffle(Shuffle::buffer(16)).batch(8).loader().seed(1).build()?;
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let mut order = Vec::new();
        for batch in &mut loader {
            let batch = batch?;
            assert_eq!(batch.epoch(), epoch);
            order.extend_from_slice(&batch.values::<i64>("x")?);
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..64).collect::<Vec<_>>());
        orders.push(order);
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2]);
    Ok(())
}

#[test]
fn a_given_epoch_has_its_order_and_its_states() -> Result<()> {
    let mut loader = numbers(64).shuffle(Shuffle::buffer(16)).batch(8).loader().seed(1).build()?;
    let third = values(loader.epoch(3))?;
    let mut states: Vec<State> = Vec::new();
    for batch in loader.epoch(0) {
        states.push(batch?.state().clone());
    }
    assert_eq!(states.iter().map(|state| state.step).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    let text = serde_json::to_string(&states[3]).expect("a state is plain data");
    assert!(text.len() < 1024, "{text}");
    assert_eq!(serde_json::from_str::<State>(&text).expect("it was written so"), states[3]);
    for epoch in [1, 2] {
        values(loader.epoch(epoch))?;
    }
    assert_eq!(values(loader.epoch(3))?, third, "on the way from epoch 2 or from nothing");
    Ok(())
}

#[test]
fn a_break_ends_the_epoch_and_the_loader_goes_on() -> Result<()> {
    let mut loader = numbers(10_000).batch(8).loader().build()?;
    for round in 0..20 {
        for batch in &mut loader {
            let batch = batch?;
            assert_eq!(batch.epoch(), round);
            if batch.values::<i64>("x")?[0] == 8 {
                break;
            }
        }
    }
    Ok(())
}

#[test]
fn a_loader_and_an_epoch_move_to_other_threads() -> Result<()> {
    let mut loader: Loader = numbers(50).batch(8).loader().build()?;
    let epoch = loader.epoch(0);
    let there = std::thread::scope(|scope| {
        let first = scope.spawn(move || values(epoch));
        let second = first.join().expect("no panic");
        scope.spawn(move || values(loader.epoch(1)).map(|rows| (second, rows))).join().expect("no panic")
    });
    let (first, second) = there?;
    assert_eq!((first?.len(), second.len()), (50, 50));
    Ok(())
}

#[test]
fn an_epoch_outlives_its_loader() -> Result<()> {
    let epoch = numbers(100).batch(8).loader().build()?.epoch(0);
    assert_eq!(values(epoch)?.len(), 100);
    Ok(())
}

#[test]
fn split_shares_each_batch_over_threads() -> Result<()> {
    let mut loader = numbers(96).batch(12).loader().build()?;
    let parts = loader.split(&[Device::Cpu; 3])?;
    let parts: Vec<Vec<i64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = parts.into_iter().map(|part| scope.spawn(move || values(part))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<_>>()
    })?;
    for (lane, part) in parts.iter().enumerate() {
        let wanted: Vec<i64> = (0..96).filter(|x| x % 12 / 4 == lane as i64).collect();
        assert_eq!(*part, wanted);
    }
    let error = loader.split(&[Device::Cpu; 5]).expect_err("12 is no multiple of 5");
    assert!(error.to_string().contains("cannot be shared by 5 devices"), "{error}");
    Ok(())
}

#[test]
fn a_lane_that_is_dropped_does_not_hold_up_the_others() -> Result<()> {
    let mut loader = numbers(4000).batch(4).loader().build()?;
    let mut lanes = loader.split(&[Device::Cpu; 2])?;
    let last = lanes.pop().expect("two lanes");
    drop(lanes);
    assert_eq!(values(last)?.len(), 2000);
    Ok(())
}

#[test]
fn an_epoch_that_is_superseded_ends() -> Result<()> {
    let mut loader = numbers(1000).batch(10).loader().build()?;
    let mut first = loader.epoch(0);
    first.next().expect("a batch")?;
    let second = loader.epoch(1);
    assert_eq!(first.count(), 0);
    assert_eq!(values(second)?.len(), 1000);
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    // Threads are counted by a name of their own: other tests run beside this one.
    let slow = |dataset: Dataset| {
        dataset.map("slow", [forebay::int64("y")], |_, row, out| {
            std::thread::sleep(Duration::from_micros(50));
            out.set("y", row.get::<i64>("x")?)
        })
    };
    let alive = Arc::new(());
    let held = alive.clone();
    let dataset = slow(numbers(100_000)).filter("hold", move |_, _| {
        let _ = &held;
        Ok(true)
    });
    let mut loader = dataset.batch(16).loader().scheduler(Scheduler::threads(3)).build()?;
    drop(dataset);
    assert!(eventually(|| threads_named("forebay") >= 3), "workers run");
    for batch in &mut loader {
        if batch?.step() == 2 {
            break;
        }
    }
    drop(loader);
    // A task that was running ends first; it holds the rest until then.
    assert!(eventually(|| Arc::strong_count(&alive) == 1), "the graph, its tasks and its rows are gone");
    Ok(())
}

#[test]
fn one_thread_and_many_deliver_the_same() -> Result<()> {
    let dataset = numbers(1000).shuffle(Shuffle::buffer(100)).filter("two thirds", |context, _| {
        use rand::Rng;
        Ok(context.rng().random_bool(2.0 / 3.0))
    });
    let dataset = dataset.batch(16);
    let with =
        |scheduler| -> Result<Vec<i64>> { values(dataset.loader().seed(3).scheduler(scheduler).build()?.epoch(1)) };
    let alone = with(Scheduler::single_threaded())?;
    assert!((550..780).contains(&alone.len()), "{} rows", alone.len());
    for threads in [1, 2, 7] {
        assert_eq!(with(Scheduler::threads(threads))?, alone, "{threads} threads");
    }
    Ok(())
}

#[test]
fn a_shuffle_below_a_fork_has_one_order_in_both_branches() -> Result<()> {
    let shuffled = numbers(200).shuffle(Shuffle::buffer(40));
    let branch = |name: &'static str| {
        shuffled.map(name, [forebay::int64(name)], move |_, row, out| out.set(name, row.get::<i64>("x")?))
    };
    let dataset = branch("a").zip(&branch("b")).batch(8);
    for batch in dataset.loader().seed(5).build()? {
        let batch = batch?;
        assert_eq!(batch.values::<i64>("a")?, batch.values::<i64>("b")?);
    }
    Ok(())
}

#[test]
fn a_lane_that_waits_hears_of_the_end() -> Result<()> {
    for _ in 0..50 {
        let mut loader = numbers(32).batch(4).loader().scheduler(Scheduler::threads(2)).build()?;
        let mut lanes = loader.split(&[Device::Cpu; 2])?;
        let fast = lanes.pop().expect("two lanes");
        let (done, ended) = std::sync::mpsc::channel();
        #[expect(clippy::disallowed_methods, reason = "a thread that may hang must not be joined")]
        std::thread::spawn(move || done.send(values(fast).map(|rows| rows.len())));
        assert_eq!(values(lanes.pop().expect("the other"))?.len(), 16);
        let rows = ended.recv_timeout(Duration::from_secs(20)).expect("the fast lane ends, too");
        assert_eq!(rows?, 16);
    }
    Ok(())
}

#[test]
fn works_inside_an_async_runtime() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for scheduler in [Scheduler::threads(2), Scheduler::single_threaded()] {
        let folder = Folder::with_ids(&[40]);
        let loader = folder.loader(&folder.all().batch(8)).scheduler(scheduler);
        let taken = runtime.block_on(async {
            let batches = loader.build()?.epoch(0);
            batches.map(|batch| batch.map(|batch| batch.len())).sum::<Result<usize>>()
        });
        assert_eq!(taken?, 40);
    }
    Ok(())
}

#[test]
fn an_epoch_that_is_asked_for_again_waits_for_the_memory_of_reads_that_are_being_ended() -> Result<()> {
    // A budget for one block, which the read of the first run holds until it is dropped.
    let mut source = Numbers::new(&[vec![60_000, 60_000]], 8);
    source.fetch_stalls_at = Some(0);
    let counts = source.counts();
    let loader = source
        .dataset()
        .batch(1000)
        .prefetch(1)
        .loader()
        .budget(Budget::of_bytes(700_000))
        .scheduler(Scheduler::threads(1));
    let taken = watched(move || {
        let mut loader = loader.build()?;
        let left = loader.epoch(0);
        assert!(eventually(|| counts.fetches()[0] == 1));
        drop(left);
        loader.epoch(0).map(|batch| batch.map(|batch| batch.len())).sum::<Result<usize>>()
    });
    assert_eq!(taken?, 120_000);
    Ok(())
}

#[test]
fn without_prefetch_and_threads_the_next_epoch_begins_when_it_is_asked_for() -> Result<()> {
    let folder = Folder::with_ids(&[20, 10]);
    let loader = folder.loader(&folder.all().batch(4).prefetch(0)).scheduler(Scheduler::single_threaded());
    let batches = watched(move || {
        let mut loader = loader.build()?;
        Ok::<_, forebay::Error>((0..3).map(|epoch| loader.epoch(epoch).count()).collect::<Vec<_>>())
    });
    assert_eq!(batches?, [8, 8, 8]);
    Ok(())
}
