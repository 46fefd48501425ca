//! Each verb of the graph through the whole engine, and graphs that are more than a chain.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, ListArray, RecordBatch};
use arrow::datatypes::Int64Type;
use forebay::{
    Column, Dataset, Device, Dtype, ErrorKind, Exhausted, Image, Pad, Remainder, Result, Scheduler, Shape, Shuffle,
    World, bytes, float32, int64,
};

use crate::support::shards::Folder;
use crate::support::source::Numbers;
use crate::support::{take, take_ids, watched};

/// 0..60 in two shards.
fn numbers() -> Dataset {
    Numbers::new(&[vec![10, 20], vec![7, 3, 20]], 8).dataset()
}

/// A column of the whole epoch, the same alone and with three threads.
fn column(dataset: &Dataset, name: &'static str) -> Vec<i64> {
    let with = |scheduler| {
        take_ids(dataset.loader().seed(1).streams(1).scheduler(scheduler), name).expect("it is built").whole().concat()
    };
    let alone = with(Scheduler::single_threaded());
    assert_eq!(with(Scheduler::threads(3)), alone);
    alone
}

fn doubled(
    name: &'static str,
) -> impl Fn(&[forebay::Context], &RecordBatch) -> Result<RecordBatch> + Send + Sync + 'static {
    move |contexts, rows| {
        assert_eq!(contexts.len(), rows.num_rows());
        let ids = rows.column_by_name("id").expect("it is there").as_primitive::<Int64Type>();
        let doubled = Int64Array::from_iter_values(ids.values().iter().map(|id| id * 2));
        Ok(RecordBatch::try_from_iter([(name, Arc::new(doubled) as _)]).expect("one column"))
    }
}

#[test]
fn map_adds_and_replaces_columns() {
    let dataset = numbers()
        .map("square", [int64("square")], |_, row, out| out.set("square", row.get::<i64>("id")?.pow(2)))
        .map("id@2", [int64("id")], |context, row, out| {
            assert_eq!(context.sample() as i64, row.get::<i64>("id")?);
            out.set("id", -row.get::<i64>("id")?)
        })
        .batch(7);
    assert_eq!(column(&dataset, "id"), (0..60).map(|x| -x).collect::<Vec<_>>());
    assert_eq!(column(&dataset, "square"), (0..60).map(|x| x * x).collect::<Vec<_>>());
}

#[test]
fn columns_chooses_and_orders() -> Result<()> {
    let dataset = numbers().map("more", [int64("a"), float32("b")], |_, _, out| {
        out.set("b", 0.5f32)?;
        out.set("a", 1i64)
    });
    let taken = take(dataset.columns([float32("b"), int64("id")]).batch(60).loader(), 0, |batch| {
        assert_eq!(batch.names().collect::<Vec<_>>(), ["b", "id"]);
        assert_eq!(batch.values::<f32>("b")?.len(), 60);
        #[cfg(feature = "tch")]
        assert!(batch.tensor("a").is_err_and(|e| e.to_string().contains("these exist: b, id")));
        Ok(())
    })?;
    assert_eq!(taken.whole().len(), 1);
    Ok(())
}

#[test]
fn map_batch_works_before_and_behind_the_batch() -> Result<()> {
    let wanted: Vec<i64> = (0..60).map(|x| x * 2).collect();
    assert_eq!(column(&numbers().map_batch("f", [int64("two")], doubled("two")).batch(8), "two"), wanted);
    assert_eq!(column(&numbers().batch(8).map_batch("f", [int64("two")], doubled("two")), "two"), wanted);
    // Behind the batch a function sees exactly a batch.
    let sizes = numbers().batch(16).map_batch("size", [int64("size")], |_, rows| {
        let size = Int64Array::from(vec![rows.num_rows() as i64; rows.num_rows()]);
        Ok(RecordBatch::try_from_iter([("size", Arc::new(size) as _)]).expect("one column"))
    });
    assert_eq!(column(&sizes, "size"), [vec![16; 48], vec![12; 12]].concat());
    // Behind a filter too.
    let kept = numbers().filter("even", |_, row| Ok(row.get::<i64>("id")? % 2 == 0)).batch(8).map_batch(
        "f",
        [int64("two")],
        doubled("two"),
    );
    assert_eq!(column(&kept, "two"), (0..30).map(|x| x * 4).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn filter_and_flat_map_change_the_number_of_rows() -> Result<()> {
    let even = |dataset: &Dataset| dataset.filter("even", |_, row| Ok(row.get::<i64>("id")? % 2 == 0));
    assert_eq!(column(&even(&numbers()).batch(7), "id"), (0..60).step_by(2).collect::<Vec<_>>());
    // Each number as often as it is large, modulo 3.
    let repeated = even(&numbers()).flat_map("copies", [int64("copy")], |_, row, out| {
        for copy in 0..row.get::<i64>("id")? % 3 {
            out.push(|row| row.set("copy", copy))?;
        }
        Ok(())
    });
    let wanted: Vec<(i64, i64)> = (0..60).step_by(2).flat_map(|id| (0..id % 3).map(move |copy| (id, copy))).collect();
    let dataset = repeated.batch(4);
    assert_eq!(column(&dataset, "id"), wanted.iter().map(|w| w.0).collect::<Vec<_>>());
    assert_eq!(column(&dataset, "copy"), wanted.iter().map(|w| w.1).collect::<Vec<_>>());
    assert_eq!(column(&dataset.drop_remainder(), "id").len(), wanted.len() / 4 * 4);
    assert_eq!(column(&dataset.take(3), "id"), wanted.iter().map(|w| w.0).take(12).collect::<Vec<_>>());
    assert_eq!(column(&numbers().filter("none", |_, _| Ok(false)).batch(4), "id"), [0i64; 0]);
    assert_eq!(dataset.loader().build()?.steps_per_epoch(), None);
    Ok(())
}

#[test]
fn concat_zip_repeat_take_skip_and_enumerate_are_what_they_say() {
    let numbers = numbers();
    let (head, tail) = (numbers.take(5), numbers.skip(57));
    assert_eq!(column(&head.concat(&tail).batch(3), "id"), [0, 1, 2, 3, 4, 57, 58, 59]);
    assert_eq!(column(&tail.repeat(3).batch(2), "id"), [57, 58, 59, 57, 58, 59, 57, 58, 59]);
    assert_eq!(column(&tail.repeat_forever().batch(2).take(4), "id"), [57, 58, 59, 57, 58, 59, 57, 58]);
    assert_eq!(column(&tail.repeat_forever().take(5).batch(2), "id"), [57, 58, 59, 57, 58]);
    assert_eq!(column(&numbers.batch(8).skip(7), "id"), [56, 57, 58, 59]);
    assert_eq!(column(&numbers.batch(8).skip(2).take(1), "id"), (16..24).collect::<Vec<_>>());
    assert_eq!(column(&tail.enumerate("n").skip(1).batch(3), "n"), [1, 2]);
    assert_eq!(column(&numbers.shuffle(Shuffle::buffer(8)).enumerate("n").batch(9), "n"), (0..60).collect::<Vec<_>>());
    let renamed = numbers.map("other", [int64("other")], |_, row, out| out.set("other", row.get::<i64>("id")?));
    let pairs = numbers.skip(10).zip(&renamed.columns([int64("other")])).batch(6);
    assert_eq!(column(&pairs, "id"), (10..60).collect::<Vec<_>>());
    assert_eq!(column(&pairs, "other"), (0..50).collect::<Vec<_>>());
}

#[test]
fn repeats_of_a_shuffle_have_an_order_each_and_augment_anew() {
    use rand::Rng as _;
    let dataset = numbers().shuffle(Shuffle::buffer(60)).repeat(2);
    let drawn = dataset
        .map("draw", [int64("drawn")], |context, _, out| out.set("drawn", context.rng().random_range(0..1i64 << 40)));
    let dataset = drawn.batch(10);
    let (ids, drawn) = (column(&dataset, "id"), column(&dataset, "drawn"));
    let (first, second) = ids.split_at(60);
    let sorted = |ids: &[i64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    assert_eq!((sorted(first), sorted(second)), ((0..60).collect(), (0..60).collect()));
    assert_ne!(first, second);
    let mut distinct = drawn;
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 120);
}

#[test]
fn interleave_takes_turns_between_shards() {
    let dataset = Numbers::new(&[vec![4], vec![3, 3], vec![2], vec![1]], 8).dataset();
    let turns = column(&dataset.interleave(2, 2).batch(4), "id");
    // Lanes: shards 0 and 2 (0..4, 10..12), shards 1 and 3 (4..10, 12).
    assert_eq!(turns, [0, 1, 4, 5, 2, 3, 6, 7, 10, 11, 8, 9, 12]);
}

#[test]
fn ragged_columns_are_padded_as_told() -> Result<()> {
    let dataset = numbers().take(4).map("tokens", [int64("tokens").ragged()], |_, row, out| {
        let id = row.get::<i64>("id")?;
        out.set_values("tokens", &(0..id).map(|_| id).collect::<Vec<_>>())
    });
    let padded = |dataset: &Dataset| {
        take(dataset.batch(4).loader(), 0, |batch| {
            let lengths = batch.lengths("tokens")?.to_vec();
            Ok((batch.shape("tokens")?.to_vec(), batch.values::<i64>("tokens")?.into_owned(), lengths))
        })
    };
    let longest = vec![0, 0, 0, 1, 0, 0, 2, 2, 0, 3, 3, 3];
    assert_eq!(padded(&dataset)?.whole(), [(vec![4, 3], longest, vec![0, 1, 2, 3])]);
    let cut = vec![-1, -1, 1, -1, 2, 2, 3, 3];
    assert_eq!(
        padded(&dataset.pad("tokens", Pad::truncate_to(2).value(-1.0)))?.whole(),
        [(vec![4, 2], cut, vec![0, 1, 2, 2])]
    );
    assert_eq!(padded(&dataset.pad("tokens", Pad::to(5)))?.whole()[0].0, [4, 5]);
    let taken = padded(&dataset.pad("tokens", Pad::to(2)))?;
    let error = taken.failure();
    assert_eq!((error.place().column.as_deref(), error.place().sample), (Some("tokens"), Some(3)), "{error}");
    Ok(())
}

#[test]
fn padding_stays_with_the_lists_of_its_name() -> Result<()> {
    let lists = || [int64("tokens").ragged()];
    let made = numbers().take(2).map("tokens", lists(), |_, _, out| out.set_values("tokens", &[7i64]));
    let made = made.pad("tokens", Pad::to(2).value(-1.0));
    let again = made.map("again", lists(), |_, _, out| out.set_values("tokens", &[8i64]));
    let in_batches = made.map_batch("again", lists(), |_, rows| {
        let tokens = (0..rows.num_rows()).map(|_| Some([Some(8)]));
        let tokens = ListArray::from_iter_primitive::<Int64Type, _, _>(tokens);
        Ok(RecordBatch::try_from_iter([("tokens", Arc::new(tokens) as _)]).expect("one column"))
    });
    for graph in [again, in_batches] {
        let batch = graph.batch(2).loader().build()?.epoch(0).next().expect("a batch")?;
        assert_eq!(*batch.values::<i64>("tokens")?, [8, -1, 8, -1]);
    }
    // Numbers that take the lists' place need none.
    let sums = made.map("sum", [int64("tokens")], |_, _, out| out.set("tokens", 8i64));
    let batch = sums.batch(2).loader().build()?.epoch(0).next().expect("a batch")?;
    assert_eq!(*batch.values::<i64>("tokens")?, [8, 8]);
    Ok(())
}

#[test]
fn padding_that_cannot_be_had_is_refused() -> Result<()> {
    let lists = |column: Column| numbers().map("lists", [column.ragged()], |_, _, _| Ok(()));
    let said = |graph: Dataset| graph.batch(2).loader().build().expect_err("another padding").to_string();
    for (dtype, value) in
        [(Dtype::U8, -100.0), (Dtype::I32, f64::NAN), (Dtype::I64, 0.5), (Dtype::Bool, -100.0), (Dtype::F16, 1e6)]
    {
        let column = Column::new("x", dtype, Shape::Scalar);
        let text = said(lists(column.clone()).pad("x", Pad::longest().value(value)));
        assert!(text.contains(&format!("with {value}, and holds no such element")), "{text}");
        lists(column).pad("x", Pad::longest().value(1.0)).batch(2).loader().build()?;
    }
    // A batch has rows of all parts, and is padded one way.
    let (plain, padded) = (lists(int64("x")), lists(int64("x")).pad("x", Pad::longest().value(-100.0)));
    let mix = |a: &Dataset, b: &Dataset| Dataset::mix([(a.clone(), 1.0), (b.clone(), 1.0)], Exhausted::Stop);
    for (a, b) in [(&plain, &padded), (&padded, &plain)] {
        for (verb, graph) in [("concat", a.concat(b)), ("mix", mix(a, b))] {
            let text = said(graph);
            assert!(text.contains(&format!("{verb} of \"x\" padded to the longest with")), "{text}");
        }
    }
    padded.concat(&padded).batch(2).loader().build()?;
    plain.pad("x", Pad::longest()).concat(&plain).batch(2).loader().build()?;
    Ok(())
}

const DIGITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits/test-*.tfrecord");

#[test]
fn images_are_decoded_into_the_batch_or_for_a_function_alike() -> Result<()> {
    let folder = Folder::new();
    let source = Dataset::open(DIGITS)?.columns([bytes("image/encoded"), int64("image/class/label")]).take(20);
    let decoded = source.image("image/encoded", Image::gray().resize(8, 8));
    let seen = decoded.map("sum", [int64("sum")], |_, row, out| {
        out.set("sum", row.values::<u8>("image/encoded")?.iter().map(|&pixel| i64::from(pixel)).sum::<i64>())
    });
    let encoded = take(folder.loader(&source.batch(20)), 0, |batch| {
        Ok(batch.bytes("image/encoded")?.map(<[u8]>::to_vec).collect::<Vec<_>>())
    })?;
    let wanted: Vec<u8> = encoded
        .whole()
        .concat()
        .iter()
        .flat_map(|png| image::load_from_memory(png).expect("a PNG").to_luma8().into_raw())
        .collect();
    for dataset in [&decoded, &seen] {
        let wanted = wanted.clone();
        let taken = take(folder.loader(&dataset.batch(20)).scheduler(Scheduler::threads(2)), 0, move |batch| {
            assert_eq!(batch.shape("image/encoded")?, [20, 1, 8, 8]);
            assert_eq!(*batch.values::<u8>("image/encoded")?, wanted);
            Ok(())
        })?;
        assert_eq!(taken.whole().len(), 1);
    }
    let sums = take_ids(folder.loader(&seen.batch(7)), "sum")?.whole().concat();
    assert_eq!(
        sums,
        wanted.chunks(64).map(|pixels| pixels.iter().map(|&p| i64::from(p)).sum::<i64>()).collect::<Vec<_>>()
    );
    Ok(())
}

#[test]
fn an_image_that_cannot_be_decoded_names_its_sample() -> Result<()> {
    let folder = Folder::with_ids(&[5]);
    let dataset = folder.all().image("noise", Image::rgb().resize(4, 4));
    for threads in [1, 3] {
        let taken = take_ids(folder.loader(&dataset.batch(2)).scheduler(Scheduler::threads(threads)), "id")?;
        let error = taken.failure();
        assert_eq!((taken.batches.len(), error.place().sample), (0, Some(0)), "{error}");
        assert!(error.to_string().contains("noise"), "{error}");
    }
    Ok(())
}

#[test]
fn columns_in_memory_of_every_kind_become_batches() -> Result<()> {
    use arrow::array::{BooleanArray, Float64Array, ListArray, StringArray, UInt8Array};
    let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([
        Some(vec![Some(1)]),
        Some(vec![]),
        Some(vec![Some(2), Some(3)]),
    ]);
    let columns: [(&str, Arc<dyn Array>); 5] = [
        ("flag", Arc::new(BooleanArray::from(vec![true, false, true]))),
        ("byte", Arc::new(UInt8Array::from(vec![1, 2, 255]))),
        ("double", Arc::new(Float64Array::from(vec![0.5, -1.0, 2.0]))),
        ("text", Arc::new(StringArray::from(vec!["a", "", "a text longer than a view"]))),
        ("list", Arc::new(lists)),
    ];
    let taken = take(Dataset::from_columns(columns)?.batch(3).loader(), 0, |batch| {
        assert_eq!(*batch.values::<u8>("byte")?, [1, 2, 255]);
        assert_eq!(*batch.values::<f64>("double")?, [0.5, -1.0, 2.0]);
        assert_eq!(batch.bytes("text")?.collect::<Vec<_>>(), [&b"a"[..], b"", b"a text longer than a view"]);
        assert_eq!((batch.lengths("list")?, &*batch.values::<i64>("list")?), (&[1, 0, 2][..], &[1, 0, 0, 0, 2, 3][..]));
        assert_eq!(batch.shape("flag")?, [3]);
        Ok(())
    })?;
    assert_eq!(taken.whole().len(), 1);
    Ok(())
}

// --- a source that feeds two branches ----------------------------------------------------------------------------------

/// Two branches of one source, side by side again.
fn diamond(source: &Dataset) -> Dataset {
    let left = source.map("left", [int64("left")], |_, row, out| out.set("left", row.get::<i64>("id")? * 2));
    let right = source.map("right", [int64("right")], |_, row, out| out.set("right", -row.get::<i64>("id")?));
    left.columns([int64("left")]).zip(&right).batch(3)
}

#[test]
fn a_source_of_two_branches_is_fetched_and_decoded_once() -> Result<()> {
    for scheduler in [Scheduler::single_threaded(), Scheduler::threads(4)] {
        let source = Numbers::new(&[vec![5; 30], vec![11; 10]], 8);
        let counts = source.counts();
        let dataset = diamond(&source.dataset());
        // Split over one device, an epoch is not followed by another.
        let rows = watched(move || -> Result<Vec<_>> {
            let mut loader = dataset.loader().scheduler(scheduler).build()?;
            let epochs = loader.split(&[Device::Cpu])?;
            let mut rows = Vec::new();
            for batch in epochs.into_iter().flatten() {
                let batch = batch?;
                let (left, right) = (batch.values::<i64>("left")?, batch.values::<i64>("right")?);
                rows.extend(left.iter().copied().zip(right.iter().copied()));
            }
            Ok(rows)
        })?;
        assert_eq!(rows, (0..260i64).map(|id| (2 * id, -id)).collect::<Vec<_>>());
        assert_eq!((counts.fetches(), counts.decodes()), (vec![1; 40], vec![1; 40]));
    }
    Ok(())
}

#[test]
fn shards_of_two_branches_are_read_once() -> Result<()> {
    let folder = Folder::with_ids(&[200, 100]);
    let stored: u64 = ["00", "01"]
        .iter()
        .map(|name| std::fs::metadata(folder.path(&format!("{name}.tfrecord"))).expect("a file").len())
        .sum();
    let dataset = diamond(&folder.all().columns([int64("id")]));
    let loader = folder.loader(&dataset);
    let (rows, read) = watched(move || -> Result<_> {
        let mut loader = loader.build()?;
        let epochs = loader.split(&[Device::Cpu])?;
        let rows = epochs.into_iter().flatten().map(|batch| batch.map(|b| b.len())).sum::<Result<usize>>()?;
        Ok((rows, loader.report().stage("read").map(|stage| stage.bytes)))
    })?;
    assert_eq!((rows, read), (300, Some(stored)));
    Ok(())
}

// --- mistakes and pictures ---------------------------------------------------------------------------------------------

#[test]
fn all_mistakes_of_a_graph_come_at_once_with_the_calls_that_mend_them() {
    let odd = |dataset: &Dataset| dataset.filter("odd", |_, row| Ok(row.get::<i64>("id")? % 2 == 1));
    let dataset = odd(&odd(&numbers())).take(3).interleave(0, 1).repeat(0).columns([]).prefetch(2);
    let error = dataset.loader().build().expect_err("it cannot work");
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Config);
    for part in
        [".batch(n)", "two functions", "take and skip", "interleave(0, 1)", "repeat(0)", "empty list of columns"]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(text.contains("6 mistakes") || text.contains("7 mistakes"), "{text}");
}

#[test]
fn mistakes_that_only_the_data_shows_come_at_once_too() {
    let graph = numbers()
        .columns([int64("id"), int64("label")])
        .pad("id", Pad::longest())
        .image("id", Image::rgb().resize(2, 2));
    let error = graph.batch(8).remainder(Remainder::Refuse).loader().build().expect_err("it cannot work");
    let text = error.to_string();
    for part in ["\"label\"", "`id: i64` is padded", "holds no encoded images", "60 rows leave 4"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let text =
        numbers().concat(&numbers().enumerate("n")).batch(8).loader().build().expect_err("columns differ").to_string();
    assert!(text.contains("concat of different columns") && text.contains(".columns()"), "{text}");
}

#[test]
fn worlds_and_batches_that_do_not_fit_name_values_that_do() -> Result<()> {
    let error = |size: usize, batch: usize| {
        let loader = numbers().batch(batch).drop_remainder().loader();
        World::new(0, size).and_then(|world| loader.world(world).build()).err().map(|e| e.to_string())
    };
    assert_eq!(error(2, 6), None);
    assert!(error(4, 6).is_some_and(|text| text.contains(".batch(4 or 8)")));
    let kept = numbers().batch(8).loader().world(World::new(0, 2)?).build().expect_err("4 rows are left");
    assert!(kept.to_string().contains("Remainder::Drop"), "{kept}");
    let filtered = numbers().filter("f", |_, _| Ok(true)).batch(6).loader().world(World::new(0, 2)?).build();
    assert!(filtered.err().is_some_and(|e| e.to_string().contains("different numbers of steps")));
    Ok(())
}

#[test]
fn a_graph_prints_itself_in_three_ways() {
    let dataset = diamond(&numbers());
    let wanted = concat!(
        " 0  read numbers -> id: i64\n",
        " 1  map \"left\" -> left: i64\n",
        " 2  columns left: i64\n",
        " 3  map \"right\" -> right: i64  <- 0\n",
        " 4  zip  <- 2, 3\n",
        " 5  batch 3 samples over all ranks\n",
    );
    assert_eq!(dataset.explain(), wanted);
    assert_eq!(dataset.to_dot().matches(" -> n").count(), 6);
    assert!(dataset.to_dot().contains("n0 -> n3;"), "{}", dataset.to_dot());
    assert!(dataset.to_mermaid().contains("n0 --> n3"), "{}", dataset.to_mermaid());
}
