//! Formats besides TFRecord: what was written is read, in an order that is a function of the seed, restored everywhere; damage ends in errors with their
//! place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, FixedSizeListArray, Float32Array, Int64Array, ListArray, RecordBatch,
    StringArray, StringViewArray, StructArray, UInt16Array,
};
use arrow::datatypes::{DataType, Field, Float32Type, Int32Type, Int64Type};
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use forebay::store::Store;
use forebay::testing::restores_everywhere;
use forebay::{
    ArrowIpc, Column, Dataset, Dtype, Error, ErrorKind, Format, LoaderBuilder, Missing, Result, Scheduler, Shape,
    Shuffle, Skip, World, bytes, float32, int64,
};

use crate::support::watched;

/// A URL of its own for every shard that a test puts.
fn put(name: &str, content: impl Into<Vec<u8>>) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let url = format!("memory://formats/{}/{name}", NUMBER.fetch_add(1, Ordering::Relaxed));
    Store::memory_put(&url, content.into().into()).expect("memory takes it");
    url
}

/// Several shards in one folder, as a pattern.
fn put_all(names: &[&str], contents: Vec<Vec<u8>>) -> String {
    let first = put(names[0], contents[0].clone());
    let folder = first.rsplit_once('/').expect("a folder").0.to_owned();
    for (name, content) in names.iter().zip(contents) {
        Store::memory_put(&format!("{folder}/{name}"), content.into()).expect("memory takes it");
    }
    format!("{folder}/*")
}

/// The ids of an epoch and the error that ended it, if one did.
fn ids_of(loader: LoaderBuilder) -> Result<(Vec<i64>, Option<Error>)> {
    watched(move || {
        let mut loader = loader.build()?;
        let (mut ids, mut failed) = (Vec::new(), None);
        for batch in loader.epoch(0) {
            match batch.and_then(|batch| Ok(batch.values::<i64>("id")?.into_owned())) {
                Ok(values) => ids.extend(values),
                Err(error) => failed = Some(error),
            }
        }
        Ok((ids, failed))
    })
}

#[track_caller]
fn whole(loader: LoaderBuilder) -> Vec<i64> {
    match ids_of(loader).expect("it opens") {
        (ids, None) => ids,
        (ids, Some(error)) => panic!("behind {} ids: {error}", ids.len()),
    }
}

/// What every format promises of a data set with a column `id`, which counts from 0 in the order of records.
#[track_caller]
fn keeps_its_promises(dataset: &Dataset, rows: i64) {
    let plain = dataset.batch(4);
    let ids = whole(plain.loader());
    assert_eq!(ids, (0..rows).collect::<Vec<_>>());
    for shuffled in [dataset.shuffle(Shuffle::buffer(7)).batch(4), dataset.shuffle(Shuffle::global()).batch(4)] {
        let order = whole(shuffled.loader().seed(3));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, ids, "each record once");
        for scheduler in [Scheduler::single_threaded(), Scheduler::threads(1), Scheduler::threads(4)] {
            assert_eq!(whole(shuffled.loader().seed(3).scheduler(scheduler)), order, "for any threads");
        }
        assert_eq!(whole(shuffled.prefetch(5).loader().seed(3)), order, "for any prefetch");
        assert_ne!(whole(shuffled.loader().seed(4)), order, "for this seed");
        restores_everywhere(&shuffled).expect("restores");
    }
    // Ranks take turns within each step, so together they have what one has.
    let mut seen: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
    for size in [1, 2, 4] {
        for rank in 0..size {
            let world = World::new(rank, size).expect("a world");
            let ids = whole(plain.drop_remainder().loader().world(world));
            seen.entry(size).or_default().extend(ids);
        }
    }
    seen.values_mut().for_each(|ids| ids.sort_unstable());
    assert!(seen.values().all(|ids| ids.len() == (rows - rows % 4) as usize && *ids == seen[&1]), "{seen:?}");
}

/// Every prefix of a shard, and the shard with single bytes changed, ends in an error or in rows, without panic. `open` reads them in this format.
fn survives_damage(stored: &[u8], name: &str, format: &Format, columns: &[Column]) {
    let run = |content: Vec<u8>| {
        let dataset = Dataset::open_with(put(name, content), format.clone()).expect("a pattern");
        let dataset = if columns.is_empty() { dataset } else { dataset.columns(columns.to_vec()) };
        let loader = dataset.batch(8).loader().scheduler(Scheduler::single_threaded());
        watched(move || -> Result<u64> {
            let mut rows = 0;
            for batch in loader.build()?.into_iter() {
                rows += batch?.len() as u64;
            }
            Ok(rows)
        })
    };
    for length in (0..stored.len()).step_by(1 + stored.len() / 400) {
        if let Err(error) = run(stored[..length].to_vec()) {
            assert_ne!(error.kind(), ErrorKind::Panicked, "cut to {length}: {error}");
        }
    }
    let mut state = 1u64;
    for _ in 0..400 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (at, bit) = ((state >> 20) as usize % stored.len(), (state >> 60) as u8 % 8);
        let mut content = stored.to_vec();
        content[at] ^= 1 << bit;
        if let Err(error) = run(content) {
            assert_ne!(error.kind(), ErrorKind::Panicked, "byte {at}, bit {bit}: {error}");
        }
    }
}

mod arrow_ipc {
    use super::*;

    fn batch(ids: Range<i64>) -> RecordBatch {
        let count = ids.clone().count();
        let names =
            DictionaryArray::<Int32Type>::from_iter(ids.clone().map(|id| if id % 2 == 0 { "even" } else { "odd" }));
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>(
            ids.clone().map(|id| Some((0..id % 3).map(Some).collect::<Vec<_>>())),
        );
        let vectors = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
            ids.clone().map(|id| Some([Some(id as f32), Some(0.5)])),
            2,
        );
        let image = StructArray::from(vec![
            (
                Arc::new(Field::new("bytes", DataType::Utf8, true)),
                Arc::new(StringArray::from_iter_values(ids.clone().map(|id| format!("an image of some length, {id}"))))
                    as ArrayRef,
            ),
            (
                Arc::new(Field::new("width", DataType::UInt16, true)),
                Arc::new(UInt16Array::from(vec![640; count])) as ArrayRef,
            ),
        ]);
        let score = Float32Array::from_iter(ids.clone().map(|id| (id % 5 != 0).then_some(id as f32)));
        RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from_iter_values(ids.clone())) as ArrayRef, false),
            ("name", Arc::new(names), true),
            ("list", Arc::new(lists), true),
            ("vector", Arc::new(vectors), true),
            ("image", Arc::new(image), true),
            ("score", Arc::new(score), true),
            ("flag", Arc::new(BooleanArray::from_iter(ids.clone().map(|id| Some(id % 2 == 0)))), true),
            (
                "view",
                Arc::new(StringViewArray::from_iter_values(ids.map(|id| format!("view number {id}, long enough")))),
                true,
            ),
        ])
        .expect("columns of one length")
    }

    fn file(batches: &[RecordBatch], options: IpcWriteOptions) -> Vec<u8> {
        let mut writer = FileWriter::try_new_with_options(Vec::new(), &batches[0].schema(), options).expect("a writer");
        batches.iter().for_each(|batch| writer.write(batch).expect("memory takes it"));
        writer.finish().expect("memory takes it");
        writer.into_inner().expect("memory takes it")
    }

    fn stream(batches: &[RecordBatch]) -> Vec<u8> {
        let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).expect("a writer");
        batches.iter().for_each(|batch| writer.write(batch).expect("memory takes it"));
        writer.finish().expect("memory takes it");
        writer.into_inner().expect("memory takes it")
    }

    fn shard(ids: Range<i64>) -> Vec<u8> {
        // Slices of one batch share its dictionary, which a file has once.
        let (whole, middle) = (batch(ids.clone()), ids.clone().count() / 2);
        let parts = [whole.slice(0, middle), whole.slice(middle, whole.num_rows() - middle)];
        file(&parts, IpcWriteOptions::default())
    }

    #[test]
    fn what_was_written_is_read() -> Result<()> {
        let compressed = |kind| IpcWriteOptions::default().try_with_compression(Some(kind)).expect("a known kind");
        let whole = batch(0..12);
        let batches = [whole.slice(0, 5), whole.slice(5, 7)];
        let mut shards = vec![
            file(&batches, IpcWriteOptions::default()),
            stream(&batches),
            // Of a stream's dictionaries the last before a batch counts.
            stream(&[batch(0..5), batch(5..12)]),
        ];
        if cfg!(feature = "zstd") {
            shards.push(file(&batches, compressed(arrow::ipc::CompressionType::ZSTD)));
            shards.push(file(&batches, compressed(arrow::ipc::CompressionType::LZ4_FRAME)));
        }
        for shard in shards {
            let dataset = Dataset::open(put("a.arrow", shard))?.columns([
                int64("id"),
                bytes("name"),
                int64("list").ragged(),
                float32("vector").fixed([2]),
                bytes("image.bytes"),
                int64("image.width"),
                float32("score").or(Missing::Float(-1.0)),
                Column::new("score.is_present", Dtype::Bool, Shape::Scalar),
                Column::new("flag", Dtype::Bool, Shape::Scalar),
                bytes("view"),
            ]);
            let read = watched(move || -> Result<_> {
                let mut loader = dataset.batch(12).loader().build()?;
                let batch = loader.epoch(0).next().expect("twelve rows")?;
                Ok((
                    batch.values::<i64>("id")?.into_owned(),
                    batch.bytes("name")?.map(|name| name.to_vec()).collect::<Vec<_>>(),
                    batch.values::<f32>("vector")?.into_owned(),
                    batch.bytes("image.bytes")?.map(|image| image.to_vec()).collect::<Vec<_>>(),
                    batch.values::<i64>("image.width")?.into_owned(),
                    batch.values::<f32>("score")?.into_owned(),
                    batch.bytes("view")?.map(|view| view.to_vec()).collect::<Vec<_>>(),
                ))
            })?;
            assert_eq!(read.0, (0..12).collect::<Vec<_>>());
            assert_eq!((&read.1[4][..], &read.1[5][..]), (&b"even"[..], &b"odd"[..]));
            assert_eq!(read.2[10..12], [5.0, 0.5]);
            assert_eq!(read.3[7], b"an image of some length, 7");
            assert_eq!(read.4, [640; 12]);
            assert_eq!(read.5[4..7], [4.0, -1.0, 6.0]);
            assert_eq!(read.6[11], b"view number 11, long enough");
        }
        Ok(())
    }

    #[test]
    fn order_and_state_are_kept() {
        let urls = put_all(
            &["0.arrow", "1.feather", "2.arrows", "3.ipc"],
            vec![shard(0..10), shard(10..13), stream(&[batch(13..20), batch(20..24)]), shard(24..41)],
        );
        keeps_its_promises(&Dataset::open(urls).expect("a pattern").columns([int64("id"), bytes("name")]), 41);
    }

    #[test]
    fn a_null_is_a_bad_record_and_the_others_are_not() -> Result<()> {
        let url = put("a.arrow", shard(0..12));
        let dataset = Dataset::open(url.clone())?.columns([int64("id"), float32("score")]).batch(2);
        let (_, error) = ids_of(dataset.loader())?;
        let error = error.expect("the first score is null");
        assert_eq!((error.place().url.as_deref(), error.place().record), (Some(&*url), Some(0)), "{error}");
        assert_eq!((error.kind(), error.place().column.as_deref()), (ErrorKind::Schema, Some("score")), "{error}");
        assert!(error.place().byte_offset.is_some() && error.to_string().contains(".optional()"), "{error}");
        let (ids, error) = ids_of(dataset.loader().on_bad_record(Skip::up_to(10)))?;
        assert_eq!((ids, error.map(|e| e.to_string())), (vec![1, 2, 3, 4, 6, 7, 8, 9, 11], None));
        Ok(())
    }

    #[test]
    fn damage_ends_in_errors() {
        let format = ArrowIpc::new().into();
        let small = RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from_iter_values(0..8)) as ArrayRef),
            (
                "name",
                Arc::new(DictionaryArray::<Int32Type>::from_iter((0..8).map(|_| "a name of some length"))) as ArrayRef,
            ),
        ])
        .expect("two columns");
        survives_damage(&file(&[small.clone(), small.clone()], IpcWriteOptions::default()), "a.arrow", &format, &[]);
        survives_damage(&stream(&[small.clone(), small.clone()]), "a.arrows", &format, &[]);
        if cfg!(feature = "zstd") {
            let kind = arrow::ipc::CompressionType::LZ4_FRAME;
            let options = IpcWriteOptions::default().try_with_compression(Some(kind)).expect("a known kind");
            survives_damage(&file(&[small], options), "a.arrow", &format, &[]);
        }
    }

    #[test]
    fn a_stream_that_breaks_off_gives_what_is_before() -> Result<()> {
        let mut stored = stream(&[batch(0..5), batch(5..9)]);
        stored.truncate(stored.len() - 300);
        let dataset = Dataset::open(put("a.arrows", stored))?.columns([int64("id")]).batch(5);
        let (ids, error) = ids_of(dataset.loader())?;
        let error = error.expect("it breaks off");
        assert_eq!((ids, error.place().record), ((0..5).collect(), Some(5)), "{error}");
        assert!(error.kind() == ErrorKind::Corrupt && error.place().byte_offset.is_some(), "{error}");
        let (ids, error) = ids_of(dataset.loader().on_bad_record(Skip::up_to(1)))?;
        assert_eq!((ids.len(), error.is_none()), (5, true));
        Ok(())
    }

    #[test]
    fn what_is_no_arrow_or_empty_says_so() -> Result<()> {
        let build = |content: &[u8]| {
            let dataset = Dataset::open_with(put("a", content), ArrowIpc::new()).expect("a pattern").batch(1);
            watched(move || dataset.loader().build().map(|_| ()))
        };
        let text = build(b"{\"id\": 1}\n").expect_err("text is no Arrow");
        assert!(text.to_string().contains("neither an Arrow IPC file nor a stream"), "{text}");
        let old = build(b"FEA1 and so on").expect_err("an old format");
        assert!(old.to_string().contains("version=2"), "{old}");
        assert_eq!(build(b"").expect_err("nothing").kind(), ErrorKind::Schema);
        let none = file(&[batch(0..0)], IpcWriteOptions::default());
        let dataset = Dataset::open(put("a.arrow", none))?.columns([int64("id")]).batch(2);
        let error = ids_of(dataset.loader()).expect_err("no rows");
        assert!(error.to_string().contains("the data set has no rows"), "{error}");
        Ok(())
    }
}
