//! What goes wrong, and what the loop sees of it: the batches before, one error that names the place, the end.

use forebay::{
    Budget, Dataset, Error, ErrorKind, LoaderBuilder, Pad, Result, Scheduler, Shuffle, Skip, float32, int64,
};

use crate::support::shards::Folder;
use crate::support::source::Numbers;
use crate::support::{take_ids, watched};

const SCHEDULERS: [fn() -> Scheduler; 3] =
    [Scheduler::single_threaded, || Scheduler::threads(1), || Scheduler::threads(4)];

fn numbers() -> Dataset {
    Numbers::new(&[vec![7; 20]], 8).dataset()
}

/// What a user's function does with one sample.
fn trip(id: i64, at: i64, panics: bool) -> Result<()> {
    assert!(!(panics && id == at), "tripped over {id}");
    if id == at { Err(Error::new(ErrorKind::Transform, format!("cannot stand {id}"))) } else { Ok(()) }
}

/// Graphs whose function `f` fails at sample `at`.
fn failing(at: i64, panics: bool) -> Vec<(&'static str, Dataset)> {
    let id = |row: &forebay::Row<'_>| row.get::<i64>("id");
    vec![
        (
            "map \"f\"",
            numbers().map("f", [int64("y"), int64("z")], move |_, row, out| {
                out.set("y", 1i64)?;
                trip(id(&row)?, at, panics)?;
                out.set("z", 1i64)
            }),
        ),
        ("filter \"f\"", numbers().filter("f", move |_, row| trip(id(&row)?, at, panics).map(|()| true))),
        (
            "flat_map \"f\"",
            numbers().flat_map("f", [int64("id"), int64("y")], move |_, row, out| {
                let id = id(&row)?;
                out.push(|row| {
                    row.set("id", id)?;
                    trip(id, at, panics)?;
                    row.set("y", 1i64)
                })
            }),
        ),
    ]
}

#[test]
fn a_sample_longer_than_its_bound_is_a_bad_one_among_others() -> Result<()> {
    let lists = numbers().take(3).map("lists", [int64("list").ragged()], |_, row, out| {
        out.set_values("list", &vec![1i64; [2, 9, 3][row.get::<i64>("id")? as usize]])
    });
    for scheduler in SCHEDULERS {
        let loader = || lists.pad("list", Pad::to(4)).batch(3).loader().streams(1).scheduler(scheduler());
        let taken = take_ids(loader(), "id")?;
        let (error, place) = (taken.failure(), taken.failure().place());
        assert_eq!((taken.batches.concat(), place.sample, place.column.as_deref()), (vec![0], Some(1), Some("list")));
        let text = error.to_string();
        assert!(text.contains("9 rows, where 4 are the bound") && text.contains("on_bad_record"), "{text}");
        let mut loader = loader().on_bad_record(Skip::up_to(1)).build()?;
        let batch = loader.epoch(0).next().expect("a batch")?;
        assert_eq!((batch.samples(), batch.lengths("list")?), (&[0, 2][..], &[2, 3][..]));
        assert_eq!(*batch.values::<i64>("list")?, [1, 1, 0, 0, 1, 1, 1, 0]);
        assert_eq!(loader.report().num_skipped, 1);
    }
    Ok(())
}

#[test]
fn a_function_that_fails_ends_the_loop_behind_the_samples_before() -> Result<()> {
    for (panics, kind) in [(false, ErrorKind::Transform), (true, ErrorKind::Panicked)] {
        for at in [0, 1, 41, 139] {
            for (stage, dataset) in failing(at, panics) {
                for scheduler in SCHEDULERS {
                    // One stream: batches of functions that drop rows come in the order of the file.
                    let loader = dataset.batch(8).loader().streams(1).scheduler(scheduler());
                    let taken = take_ids(loader, "id")?;
                    let error = taken.failure();
                    assert_eq!(taken.batches.concat(), (0..at).collect::<Vec<_>>(), "{stage}: {error}");
                    assert_eq!(error.kind(), kind, "{error}");
                    assert_eq!(error.place().sample, Some(at as u64), "{error}");
                    assert_eq!(error.place().stage.as_deref(), Some(stage), "{error}");
                    let words = if panics { "tripped over" } else { "cannot stand" };
                    assert!(error.to_string().contains(words), "{error}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_function_of_many_rows_that_fails_ends_the_loop() -> Result<()> {
    for (panics, kind) in [(false, ErrorKind::Transform), (true, ErrorKind::Panicked)] {
        let f = move |contexts: &[forebay::Context], rows: &arrow::array::RecordBatch| {
            let at = contexts.iter().find(|context| context.sample() == 41);
            at.map_or(Ok(()), |context| trip(context.sample() as i64, 41, panics))?;
            Ok(rows.clone())
        };
        let before = numbers().map_batch("f", [int64("id")], f).batch(8);
        let behind = numbers().batch(8).map_batch("f", [int64("id")], f);
        for (dataset, exact) in [(before, false), (behind, true)] {
            for scheduler in SCHEDULERS {
                let taken = take_ids(dataset.loader().scheduler(scheduler()), "id")?;
                let (error, ids) = (taken.failure(), taken.batches.concat());
                assert!(ids.len() <= 41 && ids.iter().enumerate().all(|(i, &id)| i as i64 == id), "{ids:?}");
                assert!(!exact || ids.len() == 40, "the batches before: {ids:?}");
                assert_eq!((error.kind(), error.place().stage.as_deref()), (kind, Some("map_batch \"f\"")), "{error}");
            }
        }
    }
    Ok(())
}

#[test]
fn outputs_that_are_not_as_declared_are_errors_that_say_so() -> Result<()> {
    let cases: [(&str, Dataset); 4] = [
        ("y", numbers().map("f", [int64("y")], |_, _, _| Ok(()))),
        ("y", numbers().map("f", [int64("y")], |_, _, out| out.set("y", 1.0f32))),
        ("z", numbers().map("f", [int64("y")], |_, _, out| out.set("z", 1i64))),
        ("x", numbers().map("f", [float32("y")], |_, row, out| out.set("y", row.get::<f32>("x")?))),
    ];
    for (column, dataset) in cases {
        let taken = take_ids(dataset.batch(4).loader(), "id")?;
        let error = taken.failure();
        assert_eq!((taken.batches.len(), error.place().sample), (0, Some(0)), "{error}");
        assert!(error.to_string().contains(column) && error.to_string().contains("map \"f\""), "{error}");
    }
    let short = numbers().map_batch("f", [int64("id")], |_, rows| Ok(rows.slice(0, rows.num_rows() - 1)));
    let error = take_ids(short.batch(4).loader(), "id")?;
    assert!(error.failure().to_string().contains("rows for"), "{}", error.failure());
    Ok(())
}

#[test]
fn a_source_that_fails_is_reported_with_its_block() -> Result<()> {
    type Set = fn(&mut Numbers);
    let faults: [(Set, ErrorKind, &str); 5] = [
        (|source| source.fetch_fails_at = Some(5), ErrorKind::Transfer, "the line is dead"),
        (|source| source.fetch_panics_at = Some(5), ErrorKind::Panicked, "panicked"),
        (|source| source.decode_fails_at = Some(5), ErrorKind::Corrupt, "not a number"),
        (|source| source.decode_panics_at = Some(5), ErrorKind::Panicked, "no such codec"),
        (|source| source.extra_rows = 1, ErrorKind::Corrupt, "8 rows, where the catalog says 7"),
    ];
    for (set, kind, words) in faults {
        for scheduler in SCHEDULERS {
            let mut source = Numbers::new(&[vec![7; 20]], 8);
            set(&mut source);
            let good = if source.extra_rows > 0 { 0 } else { 35 };
            let taken = take_ids(source.dataset().batch(4).loader().scheduler(scheduler()), "id")?;
            let error = taken.failure();
            assert_eq!(taken.batches.concat(), (0..good).collect::<Vec<_>>(), "{:?}: {error}", scheduler());
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.place().block, Some(good as u64 / 7), "{:?}: {error}", scheduler());
        }
    }
    Ok(())
}

#[test]
fn after_an_error_the_next_epoch_and_the_next_loader_work() -> Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (broken, seen) = (std::sync::Arc::new(AtomicBool::new(true)), std::sync::Arc::new(AtomicBool::new(false)));
    let (switch, saw) = (broken.clone(), seen.clone());
    let dataset = numbers().map("f", [int64("y")], move |_, row, out| {
        saw.store(true, Ordering::SeqCst);
        trip(row.get("id")?, 50, switch.load(Ordering::SeqCst))?;
        out.set("y", 1i64)
    });
    let dataset = dataset.filter("not 50", |_, _| Ok(true)).batch(8);
    watched(move || {
        let mut loader = dataset.loader().scheduler(Scheduler::threads(2)).build()?;
        let ended = |epoch: forebay::Epoch| epoch.filter_map(|batch| batch.err()).map(|e| e.kind()).collect::<Vec<_>>();
        assert_eq!(ended(loader.epoch(0)), [ErrorKind::Panicked]);
        assert_eq!(ended(loader.epoch(1)), [ErrorKind::Panicked]);
        broken.store(false, Ordering::SeqCst);
        assert_eq!(ended(loader.epoch(2)), [ErrorKind::Transform]);
        assert!(seen.load(Ordering::SeqCst));
        drop(loader);
        let rows = numbers()
            .batch(8)
            .loader()
            .build()?
            .into_iter()
            .map(|batch| batch.map(|b| b.len()))
            .sum::<Result<usize>>()?;
        assert_eq!(rows, 140);
        Ok(())
    })
}

#[test]
fn an_error_in_the_next_epoch_comes_in_the_next_epoch() -> Result<()> {
    let dataset = numbers().map("f", [int64("y")], |context, _, out| {
        assert!(context.epoch() < 1 || context.sample() != 3, "not again");
        out.set("y", 1i64)
    });
    watched(move || {
        let mut loader = dataset.batch(8).loader().scheduler(Scheduler::threads(2)).build()?;
        let rows = loader.epoch(0).map(|batch| batch.map(|b| b.len())).sum::<Result<usize>>()?;
        assert_eq!(rows, 140, "read ahead or not, the first epoch is whole");
        let second: Vec<_> = loader.epoch(1).map(|batch| batch.map(|b| b.len()).map_err(|e| e.kind())).collect();
        assert_eq!(second, [Ok(3), Err(ErrorKind::Panicked)]);
        Ok(())
    })
}

// --- memory ------------------------------------------------------------------------------------------------------------

/// The error of a loader whose budget is too small, from `build()` or from its first batches; never a hang.
fn refusal(loader: LoaderBuilder) -> Error {
    match take_ids(loader, "id") {
        Err(error) => error,
        Ok(taken) => taken.failure().clone(),
    }
}

/// Budgets that errors name are followed until one does. Each must be larger than the last.
fn settles(loader: &LoaderBuilder, first: Budget, rows: usize) -> Result<()> {
    let mut budget = first;
    for _ in 0..4 {
        let error = match take_ids(loader.clone().budget(budget), "id") {
            Err(error) => error,
            Ok(taken) if taken.error.is_none() => {
                assert_eq!(taken.batches.concat().len(), rows);
                return Ok(());
            }
            Ok(taken) => taken.failure().clone(),
        };
        assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
        let text = error.to_string();
        let number =
            text.rsplit_once("mebibytes(").and_then(|(_, rest)| rest.split_once(')')).map(|(number, _)| number);
        let named =
            Budget::mebibytes(number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no budget in: {text}")));
        assert!(named.bytes() > budget.bytes(), "{budget} is refused, {named} named: {text}");
        budget = named;
    }
    panic!("the budgets that errors name do not do: {budget}");
}

#[test]
fn a_tiny_budget_is_refused_with_one_that_does() -> Result<()> {
    for scheduler in SCHEDULERS {
        // Blocks of 1 MiB.
        let dataset = Numbers::new(&[vec![16; 12]], 1 << 16).dataset();
        let loader = dataset.batch(8).loader().scheduler(scheduler());
        for bytes in [0, 1, 1000, (1 << 20) - 1, 1 << 20] {
            let budget = Budget::of_bytes(bytes);
            let error = refusal(loader.clone().budget(budget));
            assert_eq!(error.kind(), ErrorKind::Memory, "{bytes}: {error}");
            settles(&loader, budget, 192)?;
        }
    }
    Ok(())
}

#[test]
fn a_shuffle_buffer_larger_than_the_budget_is_refused_with_one_that_does() -> Result<()> {
    for shuffle in [Shuffle::buffer(96), Shuffle::buffer(1000), Shuffle::global()] {
        for scheduler in SCHEDULERS {
            let dataset = Numbers::new(&[vec![16; 12]], 1 << 16).dataset();
            let loader = dataset.shuffle(shuffle).batch(8).loader().scheduler(scheduler());
            settles(&loader, Budget::mebibytes(3), 192)?;
        }
    }
    Ok(())
}

#[test]
fn a_budget_too_small_for_a_stream_is_refused_with_one_that_does() -> Result<()> {
    use crate::support::shards::shard_of_ids;
    use forebay::Compression;
    for shuffle in [Shuffle::none(), Shuffle::buffer(100)] {
        for scheduler in SCHEDULERS {
            let folder = Folder::new();
            folder.put("a.tfrecord", &shard_of_ids(0..300, Compression::Gzip));
            // Where indexes cannot be kept, every loader streams.
            folder.put("file", b"in the way");
            let dataset = folder.all().shuffle(shuffle).batch(8);
            let loader = dataset.loader().index_dir(folder.path("file/index")).scheduler(scheduler());
            settles(&loader, Budget::mebibytes(1), 300)?;
        }
    }
    Ok(())
}

#[test]
fn a_batch_larger_than_the_budget_is_refused_with_one_that_does() -> Result<()> {
    for scheduler in SCHEDULERS {
        let wide = numbers().map("wide", [float32("wide").fixed([1 << 16])], |_, _, out| {
            out.set_values("wide", &vec![0.5f32; 1 << 16])
        });
        settles(&wide.batch(16).loader().scheduler(scheduler()), Budget::mebibytes(3), 140)?;
        // Its size is known only when its rows are there.
        let ragged = numbers().map("wide", [float32("wide").ragged()], |context, _, out| {
            out.set_values("wide", &vec![0.5f32; 500 * context.sample() as usize])
        });
        settles(&ragged.batch(16).loader().scheduler(scheduler()), Budget::mebibytes(1), 140)?;
    }
    Ok(())
}
