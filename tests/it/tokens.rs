//! Chunked, packed and bucketed tokens are what an undisturbed, single-threaded run of one rank gives: in the middle of a window, in any world.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray};
use arrow::datatypes::{Int32Type, UInt16Type};
use forebay::testing::restores_everywhere;
use forebay::{
    Batch, Buckets, Budget, Chunk, Column, Compression, Dataset, Dtype, Error, ErrorKind, Ledger, LoaderBuilder, Long,
    Pack, Pad, Result, Scheduler, Shape, Shuffle, Side, Skip, State, World, float32, int64,
};
use rand::Rng;

use crate::support::in_world;
use crate::support::shards::{Folder, shard_of_ids};
use crate::support::source::Numbers;

/// Tokens of document `id`: 0 to 22 of them, each 1000·id + its place.
fn length(id: i64) -> i64 {
    id * 7 % 23
}

fn with_tokens(dataset: &Dataset) -> Dataset {
    dataset.map("tokens@1", [int64("tokens").ragged()], |_, row, out| {
        let id = row.get::<i64>("id")?;
        out.set_values("tokens", &(0..length(id)).map(|t| 1000 * id + t).collect::<Vec<_>>())
    })
}

/// `rows` documents in blocks of 7 and shards of 3 blocks.
fn documents(rows: u64) -> Dataset {
    let blocks: Vec<u64> = (0..rows).step_by(7).map(|start| (rows - start).min(7)).collect();
    let shards: Vec<Vec<u64>> = blocks.chunks(3).map(<[u64]>::to_vec).collect();
    with_tokens(&Numbers::new(&shards, 8).dataset())
}

fn noise(dataset: &Dataset) -> Dataset {
    dataset.map("noise@1", [int64("noise")], |context, _, out| out.set("noise", context.rng().random::<i64>()))
}

fn some(dataset: &Dataset) -> Dataset {
    dataset.filter("some@1", |_, row| Ok(row.get::<i64>("id")? % 3 > 0))
}

/// Every algorithm and option, with windows that end in the middle of a stream.
fn packs() -> Vec<Pack> {
    vec![
        Pack::first_fit(16).window(10),
        Pack::first_fit(24).window(7).open_bins(2).eos(-1).cu_seqlens(),
        Pack::best_fit(24).window(9).longest_first().segment_ids().cu_seqlens(),
        Pack::best_fit(24).window(1).long(Long::Truncate).dtype(Dtype::I32),
        Pack::concat_then_split(10).window(6).eos(-1).pad_value(-2),
        Pack::best_fit(40).window(30),
    ]
}

/// A name for failures, and the graph.
fn graphs(all: &Dataset) -> Vec<(String, Dataset)> {
    let shuffled = all.shuffle(Shuffle::buffer(48));
    let tokens = || "tokens";
    let mut graphs = vec![
        ("chunk".to_owned(), noise(&shuffled.chunk(tokens(), 5)).batch(8)),
        ("chunk, whole".to_owned(), noise(&shuffled.chunk(tokens(), Chunk::of(5).drop_last())).batch(8)),
        (
            "buckets".to_owned(),
            noise(&shuffled.bucket_by_length(tokens(), Buckets::boundaries([5, 15]).window(9))).batch(8),
        ),
        (
            "budget".to_owned(),
            noise(&shuffled.bucket_by_length(tokens(), Buckets::token_budget(90).window(16))).batch(8),
        ),
        (
            "filtered budget".to_owned(),
            some(&shuffled).bucket_by_length(tokens(), Buckets::token_budget(100).window(5)).batch(4),
        ),
        (
            "chunked buckets".to_owned(),
            shuffled
                .chunk(tokens(), 9)
                .bucket_by_length(tokens(), Buckets::boundaries([4]).window(8))
                .batch(8)
                .drop_remainder(),
        ),
        (
            "chunk, then pack".to_owned(),
            some(&shuffled.chunk(tokens(), 9)).pack(Pack::best_fit(20).window(12)).batch(4).drop_remainder(),
        ),
        (
            "pack, then filter".to_owned(),
            noise(&shuffled.pack(Pack::best_fit(20).window(12)))
                .filter("few@1", |_, row| Ok(row.values::<i64>("segment_ids")?[0] == 1))
                .batch(8)
                .prefetch(5),
        ),
    ];
    graphs.extend(packs().into_iter().map(|pack| (pack.to_string(), noise(&shuffled.pack(pack)).batch(8))));
    graphs
}

#[test]
fn token_pipelines_restore_everywhere() -> Result<()> {
    for (name, graph) in graphs(&documents(260)) {
        restores_everywhere(graph.loader().seed(3)).unwrap_or_else(|error| panic!("{name}: {error}\n{graph}"));
        let stated = graph.loader().seed(3).streams(4).steps_per_epoch(25);
        restores_everywhere(stated).unwrap_or_else(|error| panic!("{name}, stated steps: {error}\n{graph}"));
    }
    let repeated = documents(50).shuffle(Shuffle::buffer(16)).repeat(3).pack(Pack::best_fit(24).window(20)).batch(4);
    restores_everywhere(&repeated)?;
    let all = documents(90);
    let joined = all.concat(&all.skip(40).shuffle(Shuffle::buffer(16)));
    restores_everywhere(&joined.pack(Pack::concat_then_split(24).window(9)).batch(4))?;
    // Whatever only reorders may stand behind it as well, and reorders what goes in.
    let behind = |all: &Dataset| all.shuffle(Shuffle::buffer(16)).repeat(2);
    let packed = behind(&noise(&all.pack(Pack::best_fit(24).window(9)))).batch(4);
    restores_everywhere(&packed)?;
    let seen = |graph: &Dataset| {
        graph.loader().build()?.epoch(0).map(|batch| batch.map(|b| contents(&b))).collect::<Result<Vec<_>>>()
    };
    assert_eq!(seen(&packed)?, seen(&noise(&behind(&all).pack(Pack::best_fit(24).window(9))).batch(4))?);
    // A window of more rows than one task takes.
    let long = all.repeat(20).pack(Pack::best_fit(64).window(700)).batch(4).take(12);
    restores_everywhere(long.loader().streams(2))
}

#[test]
fn shards_without_an_index_restore_everywhere() -> Result<()> {
    let folder = Folder::new();
    for (shard, ids) in [0..30, 30..31, 31..90, 90..120].into_iter().enumerate() {
        folder.put(&format!("{shard}.gz.tfrecord"), &shard_of_ids(ids, Compression::Gzip));
    }
    let all = with_tokens(&folder.all().columns([int64("id")]));
    for (number, (name, graph)) in graphs(&all).into_iter().enumerate() {
        let loader = folder.loader(&graph).index_dir(folder.index_dir().join(number.to_string()));
        restores_everywhere(loader).unwrap_or_else(|error| panic!("{name}: {error}\n{graph}"));
    }
    Ok(())
}

/// What a batch holds, as numbers: of a packed one the ids, of another the tokens and their lengths.
fn contents(batch: &Batch) -> Vec<i64> {
    let column = if batch.names().any(|name| name == "input_ids") { "input_ids" } else { "tokens" };
    match batch.values::<i64>(column) {
        Ok(values) => values.to_vec(),
        Err(_) => batch.values::<i32>(column).expect("tokens").iter().map(|&id| id.into()).collect(),
    }
}

/// Rows of a batch without their padding, in order: what does not depend on how wide a rank's batch is.
fn rows(batch: &Batch) -> Vec<Vec<i64>> {
    let values = contents(batch);
    let width = values.len() / batch.len();
    let rows = values.chunks(width.max(1)).map(<[i64]>::to_vec);
    match batch.lengths("tokens") {
        Ok(lengths) => (0..batch.len()).map(|row| values[row * width..][..lengths[row] as usize].to_vec()).collect(),
        Err(_) => rows.collect(),
    }
}

#[test]
fn the_world_changes_in_the_middle_of_windows() -> Result<()> {
    let all = documents(700).shuffle(Shuffle::buffer(96));
    let tokens = "tokens";
    let mut graphs: Vec<Dataset> = packs().into_iter().map(|pack| all.pack(pack)).collect();
    graphs.extend([
        all.chunk(tokens, 5),
        all.bucket_by_length(tokens, Buckets::boundaries([5, 15]).window(9)),
        all.bucket_by_length(tokens, Buckets::token_budget(24 * 60).window(9)),
    ]);
    for graph in graphs {
        let graph = graph.batch(24 * if graph.explain().contains("tokens a batch") { 4 } else { 1 });
        let builder = graph.loader().seed(42).streams(24).steps_per_epoch(20);
        let (alone, _, undisturbed) = in_world(&builder, None, 1, u64::MAX, rows)?;
        assert_eq!(alone.len(), 20, "{graph}");
        let (mut stitched, mut state, mut parts) = (Vec::new(), None, Vec::new());
        for (world, to) in [(2, 5), (8, 11), (1, 13), (3, 20)] {
            let (global, states, ledger) = in_world(&builder, state.as_ref(), world, to, rows)?;
            stitched.extend(global);
            state = Some(State::merge(states)?);
            parts.push(ledger);
        }
        assert_eq!(stitched, alone, "{graph}");
        assert_eq!(Ledger::sum(&parts)?, undisturbed, "{graph}");
    }
    Ok(())
}

/// What [`with_beside`] puts beside a token, in its first column; in the second stands the token.
fn mask(token: i64) -> i8 {
    (token % 113) as i8
}

/// Documents with two more columns, which tell of each token which it is; where `spoilt` says so, the first has an element too few.
fn with_beside(dataset: &Dataset, spoilt: fn(i64) -> bool) -> Dataset {
    let columns = [Column::new("mask", Dtype::I8, Shape::Ragged(Vec::new())), float32("weights").ragged()];
    dataset.map("beside@1", columns, move |_, row, out| {
        let tokens = row.values::<i64>("tokens")?;
        let masks = &tokens[..tokens.len() - usize::from(spoilt(row.get("id")?))];
        out.set_values("mask", &masks.iter().map(|&token| mask(token)).collect::<Vec<_>>())?;
        out.set_values("weights", &tokens.iter().map(|&token| token as f32).collect::<Vec<_>>())
    })
}

/// The same with these columns beside the tokens.
fn beside(pack: Pack) -> Pack {
    let has_eos = pack.to_string().contains(", eos ");
    let pack = pack.beside("mask", -1).beside("weights", 0.25);
    if has_eos { pack.eos_beside("weights", -3.5).eos_beside("mask", -2) } else { pack }
}

/// The cells of a packed batch: the id, and what stands beside it, floats by their bits.
fn cells(batch: &Batch) -> Vec<(i64, i8, u32)> {
    let (masks, weights) =
        (batch.values::<i8>("mask").expect("masks"), batch.values::<f32>("weights").expect("weights"));
    let beside = masks.iter().zip(weights.iter()).map(|(&mask, weight)| (mask, weight.to_bits()));
    let ids = contents(batch);
    assert_eq!((masks.len(), weights.len()), (ids.len(), ids.len()));
    ids.into_iter().zip(beside).map(|(id, (mask, weight))| (id, mask, weight)).collect()
}

/// Whether each token of a pack of [`packs`] has beside it what is its own.
fn assert_own(cells: &[(i64, i8, u32)], graph: &Dataset) {
    let pad = if graph.explain().contains("padded with -2,") { -2 } else { 0 };
    for &(id, found, weight) in cells {
        let wanted = match id {
            id if id == pad => (-1, 0.25f32),
            -1 => (-2, -3.5),
            id => (mask(id), id as f32),
        };
        assert_eq!((found, f32::from_bits(weight)), wanted, "beside {id} in {graph}");
    }
}

#[test]
fn columns_beside_the_tokens_restore_everywhere_and_in_any_world() -> Result<()> {
    let all = with_beside(&some(&documents(420)), |_| false).shuffle(Shuffle::buffer(96));
    let cut = || all.chunk("tokens", Chunk::of(9).beside("weights").beside("mask"));
    let mut graphs: Vec<Dataset> = packs().into_iter().map(|pack| all.pack(beside(pack))).collect();
    graphs.push(cut().pack(beside(Pack::best_fit(20).window(12))));
    for graph in graphs {
        let restored = noise(&graph).batch(8).drop_remainder();
        restores_everywhere(restored.loader().seed(3)).unwrap_or_else(|error| panic!("{error}\n{graph}"));
        let graph = graph.batch(24);
        let builder = graph.loader().seed(42).streams(24).steps_per_epoch(8);
        let (alone, _, undisturbed) = in_world(&builder, None, 1, u64::MAX, cells)?;
        assert_eq!(alone.len(), 8, "{graph}");
        alone.iter().for_each(|step| assert_own(step, &graph));
        let (mut stitched, mut state, mut parts) = (Vec::new(), None, Vec::new());
        for (world, to) in [(2, 2), (8, 5), (3, 8)] {
            let (global, states, ledger) = in_world(&builder, state.as_ref(), world, to, cells)?;
            stitched.extend(global);
            state = Some(State::merge(states)?);
            parts.push(ledger);
        }
        assert_eq!(stitched, alone, "{graph}");
        assert_eq!(Ledger::sum(&parts)?, undisturbed, "{graph}");
    }
    let pieces = noise(&cut()).batch(8);
    restores_everywhere(&pieces)?;
    let mut tokens = 0;
    for batch in pieces.loader().build()? {
        let batch = batch?;
        assert_eq!(batch.lengths("tokens")?, batch.lengths("mask")?);
        assert_eq!(batch.lengths("tokens")?, batch.lengths("weights")?);
        // Padding is 0 in all of them, and no token is.
        cells(&batch).iter().for_each(|&(id, found, weight)| {
            assert_eq!((found, f32::from_bits(weight)), (mask(id), id as f32));
        });
        tokens += batch.lengths("tokens")?.iter().sum::<i64>();
    }
    assert_eq!(tokens, (0..420).filter(|id| id % 3 > 0).map(length).sum::<i64>());
    Ok(())
}

#[test]
fn documents_with_an_element_too_few_are_bad_records() -> Result<()> {
    let folder = Folder::with_ids(&[70, 60]);
    let spoilt = |id: i64| length(id) > 0 && id % 10 == 3;
    let all = with_beside(&with_tokens(&folder.all().columns([int64("id")])), spoilt);
    let bad = (0..130).filter(|&id| spoilt(id)).count() as u64;
    for graph in [
        all.pack(beside(Pack::best_fit(24).window(12))),
        all.pack(beside(Pack::concat_then_split(24).window(12).eos(-1))),
        all.chunk("tokens", Chunk::of(5).beside("mask")).columns([int64("tokens").ragged()]),
    ] {
        let graph = graph.batch(4);
        let batches: Vec<_> = folder.loader(&graph).streams(1).build()?.epoch(0).collect();
        let error = batches[batches.len() - 1].as_ref().expect_err("an element is missing");
        let text = error.to_string();
        assert_eq!((error.place().record, error.place().column.as_deref()), (Some(3), Some("mask")), "{text}");
        assert!(text.contains("20 elements beside the 21 tokens of `tokens`"), "{text}");
        assert!(text.contains("give each token one") && text.contains(".on_bad_record("), "{text}");
        let loader = || folder.loader(&graph).on_bad_record(Skip::up_to(20));
        restores_everywhere(loader())?;
        let mut whole = loader().build()?;
        let found = census(whole.epoch(0))?;
        let left = |id: i64| found.contains_key(&(1000 * id + 1));
        assert!((0..130).all(|id| left(id) == (length(id) > 1 && !spoilt(id))), "{graph}");
        assert_eq!((whole.report().num_skipped, whole.ledger().epoch(0).left_out), (bad, bad));
    }
    Ok(())
}

#[test]
fn columns_that_cannot_stand_beside_the_tokens_are_mistakes() -> Result<()> {
    let all = with_beside(&documents(40), |_| false);
    let message = |dataset: &Dataset| dataset.batch(4).loader().build().expect_err("mistakes").to_string();
    let twice = Pack::best_fit(8).eos(1).beside("mask", 0).beside("mask", 0).beside("tokens", 0).beside("input_ids", 0);
    let text = message(&all.pack(twice.eos_beside("labels", 0)));
    for part in [
        "mask stands beside the tokens twice",
        "tokens beside the tokens is the column of tokens itself",
        "input_ids beside the tokens is the name of a column that packing makes",
        "mask has no element for the token behind each document; say what stands there with .eos_beside(column, value)",
        "labels has a value at the end of documents",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let wrong =
        Pack::best_fit(8).eos(1).beside("mask", 1000).beside("weights", 1e300).beside("id", 0).beside("none", 0);
    let wrong = wrong.eos_beside("mask", 0.5).eos_beside("weights", 1).eos_beside("id", 1).eos_beside("none", 1);
    let text = message(&all.pack(wrong));
    for part in [
        "1000 beside the tokens in `mask: i8[*]`, which holds no such element; take a value",
        "0.5 beside the tokens in `mask: i8[*]`",
        "1e300 beside the tokens in `weights: f32[*]`",
        "`id: i64` beside the tokens, which has no element for each; name a ragged column",
        ".beside() of a column \"none\"; these exist: id, tokens, mask, weights",
        "5 mistakes",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let text = message(&all.chunk("tokens", Chunk::of(4).beside("tokens").beside("mask").beside("mask")));
    assert!(text.contains("chunk tokens: mask stands beside") && text.contains("2 mistakes"), "{text}");
    let text = message(&all.chunk("tokens", Chunk::of(4).beside("id").beside("none")));
    assert!(text.contains("`id: i64` beside") && text.contains("a column \"none\""), "{text}");
    Ok(())
}

#[test]
fn threads_prefetch_and_budget_change_nothing() -> Result<()> {
    let seen = |builder: LoaderBuilder| -> Result<(Vec<Vec<i64>>, Ledger)> {
        let mut loader = builder.seed(9).build()?;
        let batches = loader.epoch(1).map(|batch| batch.map(|b| contents(&b))).collect::<Result<Vec<_>>>()?;
        Ok((batches, loader.ledger()))
    };
    for (name, graph) in graphs(&documents(300)) {
        let wanted = seen(graph.loader().scheduler(Scheduler::single_threaded()))?;
        assert!(wanted.0.len() > 5, "{name}");
        for (threads, prefetch, budget) in [(1, 1, 64), (3, 1, 8), (2, 20, 64), (4, 0, 8)] {
            let loader = graph.prefetch(prefetch).loader();
            let loader = loader.scheduler(Scheduler::threads(threads)).budget(Budget::mebibytes(budget));
            assert!(seen(loader)? == wanted, "{name}: {threads} threads, prefetch {prefetch}, {budget} MiB");
        }
    }
    Ok(())
}

/// The tokens of an epoch, each as often as it came.
fn census(batches: impl Iterator<Item = Result<Batch>>) -> Result<BTreeMap<i64, usize>> {
    let mut census = BTreeMap::new();
    for batch in batches {
        for token in rows(&batch?).concat() {
            *census.entry(token).or_default() += 1;
        }
    }
    Ok(census)
}

#[test]
fn an_epoch_has_each_token_once() -> Result<()> {
    let all = documents(300);
    let wanted: BTreeMap<i64, usize> =
        (0..300).flat_map(|id| (0..length(id)).map(move |t| (1000 * id + t, 1))).collect();
    let shuffled = all.shuffle(Shuffle::buffer(48));
    let pack = |pack: Pack| shuffled.pack(pack.pad_value(-1));
    for (graph, streams) in [
        (pack(Pack::first_fit(16).window(20)), 1),
        (pack(Pack::first_fit(16).window(20).open_bins(3)), 8),
        (pack(Pack::best_fit(30)), 8),
        (pack(Pack::concat_then_split(11).window(33)), 4),
        (shuffled.chunk("tokens", 4), 8),
        (shuffled.bucket_by_length("tokens", Buckets::boundaries([8, 16]).window(12)), 8),
        (shuffled.bucket_by_length("tokens", Buckets::token_budget(200).window(12)), 4),
    ] {
        let mut loader = graph.batch(8).loader().streams(streams).build()?;
        for epoch in 0..2 {
            let mut found = census(loader.epoch(epoch))?;
            found.remove(&-1);
            assert!(found == wanted, "{graph}, {streams} streams");
        }
    }
    Ok(())
}

/// Documents of these lengths in memory.
fn in_memory(lengths: impl Iterator<Item = usize>) -> Result<Dataset> {
    let lists = lengths.enumerate().map(|(id, length)| Some((0..length).map(move |t| Some((id * 100 + t) as i32))));
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists));
    Dataset::from_columns([("tokens", lists)])
}

#[test]
fn a_token_budget_holds_for_each_rank_and_each_stream() -> Result<()> {
    let all = in_memory((0..2000).map(|i| 1 + i * 37 % 120))?.shuffle(Shuffle::buffer(256));
    let graph = all.bucket_by_length("tokens", Buckets::token_budget(4800).window(200)).batch(96);
    for world in [1, 2, 3] {
        for rank in 0..world {
            let mut loader = graph.loader().world(World::new(rank, world)?).steps_per_epoch(40).build()?;
            let mut filled = 0;
            for batch in loader.epoch(0) {
                let batch = batch?;
                let longest = *batch.lengths("tokens")?.iter().max().expect("samples") as usize;
                assert!(
                    batch.len() * longest <= 4800 / world && batch.len() <= 96 / world,
                    "{} x {longest}",
                    batch.len()
                );
                filled += batch.len() * longest;
            }
            assert!(filled * world > 40 * 4800 * 4 / 5, "{filled} of {}", 40 * 4800 / world);
            assert!(loader.report().notes.is_empty());
        }
    }
    let elastic = graph.loader().streams(24).build()?;
    assert!(elastic.report().notes[0].contains("a token budget is held by the part of each of the 24 streams"));
    // What is too long for a stream's share is an error of its record.
    let tight = || all.bucket_by_length("tokens", Buckets::token_budget(100).window(200)).batch(96).loader();
    let refused = tight().build()?.epoch(0).next().expect("an error").unwrap_err().to_string();
    assert!(refused.contains("a stream's share of the budget is 100") && refused.contains("sample "), "{refused}");
    let mut loader = tight().on_bad_record(Skip::up_to(500)).build()?;
    let samples = loader.epoch(0).map(|batch| batch.map(|b| b.len())).sum::<Result<usize>>()?;
    assert_eq!(samples as u64 + loader.report().num_skipped, 2000);
    Ok(())
}

#[test]
fn batches_are_of_one_bucket_as_far_as_possible() -> Result<()> {
    let all = in_memory((0..4096).map(|i| 1 + i * 37 % 120))?.shuffle(Shuffle::global());
    let padding = |graph: Dataset| -> Result<f64> {
        let mut loader = graph.batch(32).loader().seed(1).build()?;
        loader.epoch(0).try_for_each(|batch| batch.map(drop))?;
        Ok(loader.report().stage("collate").and_then(|stage| stage.padding_share()).expect("a ragged column"))
    };
    let plain = padding(all.clone())?;
    let bucketed = padding(all.bucket_by_length("tokens", Buckets::boundaries((10..120).step_by(10)).window(512)))?;
    assert!(plain > 0.4 && bucketed < 0.12, "{plain} and {bucketed}");
    Ok(())
}

#[test]
fn a_bad_document_ends_the_epoch_before_its_window_or_is_left_out() -> Result<()> {
    let failing = |bad: i64| {
        documents(64).map("check@1", [], move |_, row, _| match row.get::<i64>("id")? {
            id if id == bad => Err(Error::new(ErrorKind::Transform, "unlucky")),
            _ => Ok(()),
        })
    };
    let graph = |bad| failing(bad).pack(Pack::best_fit(23).window(16)).batch(2);
    let batches: Vec<_> = graph(40).loader().streams(1).build()?.epoch(0).collect();
    let error = batches[batches.len() - 1].as_ref().expect_err("the bad document").to_string();
    assert!(error.contains("unlucky") && error.contains("sample 40"), "{error}");
    let before: Vec<u64> = batches.iter().flatten().flat_map(|batch| batch.samples().to_vec()).collect();
    assert!(before.iter().all(|&id| id < 32) && before.contains(&16), "{before:?}");
    // Mended, it goes on with the whole window, and nothing comes twice.
    let state = batches[batches.len() - 2].as_ref().expect("what comes before").state();
    let whole = graph(-1).loader().streams(1).build()?.epoch(0).collect::<Result<Vec<_>>>()?;
    let rest = graph(-1).loader().restore(&state).build()?.epoch(0).collect::<Result<Vec<_>>>()?;
    let ids = |batches: &[Batch]| batches.iter().flat_map(|batch| batch.samples().to_vec()).collect::<Vec<_>>();
    assert_eq!([before, ids(&rest)].concat(), ids(&whole));
    // Long documents are bad ones where told so; left out, they are counted once, wherever it goes on.
    let refusing =
        documents(260).shuffle(Shuffle::buffer(48)).pack(Pack::best_fit(16).window(12).long(Long::Error)).batch(8);
    let loader = || refusing.loader().on_bad_record(Skip::up_to(100));
    restores_everywhere(loader())?;
    let mut whole = loader().build()?;
    whole.epoch(0).try_for_each(|batch| batch.map(drop))?;
    let long = (0..260).filter(|&id| length(id) > 16).count() as u64;
    assert_eq!((whole.report().num_skipped, whole.ledger().epoch(0).left_out), (long, long));
    let error = refusing.loader().build()?.epoch(0).find_map(Result::err).expect("long ones").to_string();
    assert!(error.contains("where rows have 16") && error.contains("Long::Split"), "{error}");
    Ok(())
}

#[test]
fn a_ledger_tells_documents_in_other_rows() -> Result<()> {
    let ledger = |pack: Pack| -> Result<Ledger> {
        let mut loader = documents(200).pack(pack.window(50)).batch(4).loader().build()?;
        loader.epoch(0).try_for_each(|batch| batch.map(drop))?;
        Ok(loader.ledger())
    };
    let one = ledger(Pack::best_fit(24))?;
    assert_eq!(one.epoch(0), ledger(Pack::best_fit(24).pad_value(5))?.epoch(0));
    assert_ne!(one.epoch(0).payloads, ledger(Pack::first_fit(24))?.epoch(0).payloads);
    assert_ne!(one.epoch(0).payloads, ledger(Pack::best_fit(24).eos(1))?.epoch(0).payloads);
    Ok(())
}

#[test]
fn columns_of_u16_become_i32() -> Result<()> {
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<UInt16Type, _, _>([
        Some(vec![Some(65535), Some(1)]),
        Some(vec![Some(7)]),
    ]));
    let all = Dataset::from_columns([("tokens", lists)])?;
    let batch = all.batch(2).loader().streams(1).build()?.epoch(0).next().expect("a batch")?;
    assert_eq!(*batch.values::<i32>("tokens")?, [65535, 1, 7, 0]);
    let packed = all.pack(Pack::best_fit(4).cu_seqlens()).batch(1);
    let batch = packed.loader().build()?.epoch(0).next().expect("a batch")?;
    assert_eq!(*batch.values::<i64>("input_ids")?, [65535, 1, 7, 0]);
    assert_eq!(*batch.values::<i32>("cu_seqlens")?, [0, 2, 3, 4]);
    assert!(batch.names().all(|name| name != "segment_ids"));
    Ok(())
}

#[test]
fn rows_of_fewer_segments_end_in_empty_ones() -> Result<()> {
    let packed = in_memory([2, 3, 5, 8].into_iter())?.pack(Pack::best_fit(10).cu_seqlens()).batch(2);
    let batch = packed.loader().streams(1).build()?.epoch(0).next().expect("a batch")?;
    assert_eq!(batch.shape("cu_seqlens")?, [2, 4]);
    assert_eq!(*batch.values::<i32>("cu_seqlens")?, [0, 2, 5, 10, 0, 8, 10, 10]);
    assert_eq!(batch.lengths("cu_seqlens")?, [4, 3]);
    Ok(())
}

#[test]
fn padded_segments_stay_empty_ones() -> Result<()> {
    let packed = in_memory([2, 3, 5, 8].into_iter())?.pack(Pack::best_fit(10).cu_seqlens());
    let wanted = [[0, 2, 5, 10, 10, 10], [0, 8, 10, 10, 10, 10]].concat();
    for pad in [Pad::to(6), Pad::longest().multiple_of(6), Pad::to(6).value(10.0)] {
        let graph = packed.pad("cu_seqlens", Pad::to(5)).pad("cu_seqlens", pad).batch(2);
        let batch = graph.loader().streams(1).build()?.epoch(0).next().expect("a batch")?;
        assert_eq!(*batch.values::<i32>("cu_seqlens")?, wanted, "{pad}");
        assert_eq!(batch.lengths("cu_seqlens")?, [4, 3]);
    }
    for pad in [Pad::truncate_to(6), Pad::to(6).side(Side::Left), Pad::to(6).value(-1.0)] {
        let refused = packed.pad("cu_seqlens", pad).batch(2).loader().build().expect_err("no such index").to_string();
        assert!(refused.contains(&pad.to_string()) && refused.contains("Pad::to(n)"), "{refused}");
    }
    Ok(())
}

#[test]
fn padding_stands_where_it_is_told() -> Result<()> {
    let pad = Pad::longest().multiple_of(4).side(Side::Left).value(-1.0);
    let graph = in_memory([2, 3].into_iter())?.pad("tokens", pad).batch(2);
    let batch = graph.loader().streams(1).build()?.epoch(0).next().expect("a batch")?;
    assert_eq!(*batch.values::<i32>("tokens")?, [-1, -1, 0, 1, -1, 100, 101, 102]);
    Ok(())
}

/// A vocabulary of the digits, and `id` tokens of text for each document.
#[cfg(feature = "tokenizers")]
mod text {
    use forebay::{Tokenizer, bytes};

    use super::*;

    const FILE: &str = r#"{"version": "1.0", "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "1": 1, "2": 2, "3": 3, "4": 4, "5": 5}, "unk_token": "[UNK]"}}"#;

    fn texts(rows: u64) -> Dataset {
        documents(rows).map("text@1", [bytes("text")], |_, row, out| {
            let words: Vec<String> = (0..length(row.get::<i64>("id")?)).map(|t| (t % 7).to_string()).collect();
            out.set_bytes("text", words.join(" ").as_bytes())
        })
    }

    #[test]
    fn tokenized_text_restores_everywhere() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, FILE).expect("a disk");
        let tokenizer = || Tokenizer::from_file(&path);
        let all = texts(150).shuffle(Shuffle::buffer(32)).tokenize("text", tokenizer()?.dtype(Dtype::I32));
        restores_everywhere(&all.batch(8))?;
        let packed = all.chunk("tokens", 9).pack(Pack::first_fit(16).window(12)).batch(8);
        restores_everywhere(&packed)?;
        let first = all.batch(2).loader().streams(1).build()?.epoch(0).next().expect("a batch")?;
        assert!(first.values::<i32>("tokens")?.iter().all(|token| (0..=5).contains(token)));
        // Another file of the same name makes other tokens.
        let state = packed.loader().build()?.epoch(0).next().expect("a batch")?.state();
        std::fs::write(&path, FILE.replace("\"5\": 5", "\"6\": 5")).expect("a disk");
        let other = texts(150).shuffle(Shuffle::buffer(32)).tokenize("text", tokenizer()?.dtype(Dtype::I32));
        let other = other.chunk("tokens", 9).pack(Pack::first_fit(16).window(12)).batch(8);
        let refused = other.loader().restore(&state).build().expect_err("another tokenizer").to_string();
        assert!(refused.contains("another `tokenize text`"), "{refused}");
        Ok(())
    }

    #[test]
    fn text_that_is_none_is_an_error_of_its_record() -> Result<()> {
        let tokenizer = Tokenizer::from_bytes("words.json", FILE.as_bytes())?;
        let texts = arrow::array::BinaryArray::from(vec![&b"1 2"[..], b"\xff", b"3"]);
        let all = Dataset::from_columns([("text", Arc::new(texts) as _)])?.tokenize("text", tokenizer);
        let batches: Vec<_> = all.batch(3).loader().streams(1).build()?.epoch(0).collect();
        let error = batches[1].as_ref().expect_err("no text").to_string();
        assert!(error.contains("column text") && error.contains("sample 1") && error.contains("not UTF-8"), "{error}");
        let mut loader = all.batch(3).loader().streams(1).on_bad_record(Skip::up_to(1)).build()?;
        let batch = loader.epoch(0).next().expect("two texts")?;
        assert_eq!((batch.samples(), batch.lengths("tokens")?), (&[0, 2][..], &[2, 1][..]));
        let scalars = documents(3).tokenize("id", Tokenizer::from_bytes("words.json", FILE.as_bytes())?).batch(1);
        let text = scalars.loader().build().expect_err("numbers").to_string();
        assert!(text.contains("holds no text"), "{text}");
        Ok(())
    }
}

#[test]
fn the_report_names_columns_that_packing_ends() -> Result<()> {
    let loader = documents(40).pack(Pack::best_fit(64)).batch(4).loader().build()?;
    let notes = loader.report().notes;
    assert!(notes.iter().any(|note| note.contains("columns that end there: id")), "{notes:?}");
    let alone = in_memory((0..40).map(|i| i % 7))?.pack(Pack::best_fit(64)).batch(4).loader().build()?;
    assert!(!alone.report().notes.iter().any(|note| note.contains("end there")), "{:?}", alone.report().notes);
    // Of columns that have an element a token it says how they go on.
    let with = with_beside(&documents(40), |_| false);
    let notes = |graph: Dataset| Ok::<_, Error>(graph.batch(4).loader().build()?.report().notes.join("\n"));
    let text = notes(with.pack(Pack::best_fit(64).beside("weights", 0.0)))?;
    assert!(text.contains("columns that end there: id, mask; .beside(\"mask\", pad_value)"), "{text}");
    let text = notes(with.chunk("tokens", Chunk::of(4).beside("mask")))?;
    assert!(text.contains("the whole list of weights: Chunk::of(4).beside(\"weights\")"), "{text}");
    assert!(!notes(with.chunk("tokens", Chunk::of(4).beside("mask").beside("weights")))?.contains("whole list"));
    Ok(())
}

#[test]
fn all_mistakes_come_at_once() -> Result<()> {
    let all = in_memory((0..40).map(|i| i % 7))?;
    let message = |dataset: &Dataset| dataset.loader().build().expect_err("mistakes").to_string();
    let graph = all
        .chunk("tokens", 0)
        .bucket_by_length("tokens", Buckets::boundaries([3, 2]).window(64))
        .pack(Pack::concat_then_split(8).open_bins(2).window(0))
        .take(3)
        .batch(4);
    let text = message(&graph);
    for part in [
        "chunk tokens of 0 tokens",
        "[3, 2]",
        "fills one row after another",
        "a window of 0 documents",
        "put .bucket_by_length() last",
        "windows of 64 and of 0 samples",
        "take and skip count",
        "7 mistakes",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let text = message(&all.pack(Pack::best_fit(8)).concat(&all.pack(Pack::best_fit(8))).batch(4));
    assert!(text.contains("below `concat`") && text.contains("put it behind"), "{text}");
    let text = message(&all.pack(Pack::best_fit(8).column("text")).batch(4));
    assert!(text.contains("these exist: tokens"), "{text}");
    let scalars = Dataset::from_columns([("x", Arc::new(arrow::array::Int64Array::from(vec![1])) as _)])?;
    let text = message(&scalars.pack(Pack::best_fit(8).column("x")).batch(4));
    assert!(text.contains("holds no lists of tokens"), "{text}");
    let text = message(&all.bucket_by_length("tokens", Buckets::token_budget(3)).batch(4).pad("tokens", Pad::to(4)));
    assert!(text.contains("stands behind the batch"), "{text}");
    let loader = all.bucket_by_length("tokens", Buckets::token_budget(3)).batch(4).loader().streams(4);
    let text = loader.build().expect_err("less than a token").to_string();
    assert!(text.contains("less than one"), "{text}");
    let loader = all.pack(Pack::best_fit(8)).batch(4).loader().world(World::new(0, 2)?);
    let text = loader.build().expect_err("steps are not known").to_string();
    assert!(text.contains(".steps_per_epoch(n)"), "{text}");
    Ok(())
}

#[test]
fn a_state_of_other_packing_is_refused() -> Result<()> {
    let graph = |pack: Pack| documents(100).pack(pack).batch(4);
    let state = graph(Pack::best_fit(24)).loader().build()?.epoch(0).next().expect("a batch")?.state();
    for other in [Pack::best_fit(25), Pack::first_fit(24), Pack::best_fit(24).window(5), Pack::best_fit(24).eos(3)] {
        let refused = graph(other).loader().restore(&state).build().expect_err("another graph").to_string();
        assert!(refused.contains("another `pack`"), "{refused}");
    }
    let graph = |pack: Pack| with_beside(&documents(100), |_| false).pack(pack).batch(4);
    let state =
        graph(Pack::best_fit(24).beside("mask", 0)).loader().build()?.epoch(0).next().expect("a batch")?.state();
    for other in [Pack::best_fit(24), Pack::best_fit(24).beside("mask", 1), Pack::best_fit(24).beside("weights", 0)] {
        let refused = graph(other).loader().restore(&state).build().expect_err("another graph").to_string();
        assert!(refused.contains("another `pack`"), "{refused}");
    }
    Ok(())
}
