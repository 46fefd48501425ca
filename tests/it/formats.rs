//! Formats besides TFRecord: what was written is read, in an order that is a function of the seed, restored everywhere; damage ends in errors with their
//! place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, FixedSizeListArray, Float32Array, Int64Array, ListArray, RecordBatch,
    StringArray, StringViewArray, StructArray, TimestampNanosecondArray, TimestampSecondArray, UInt16Array,
};
use arrow::datatypes::{DataType, Field, Float32Type, Int32Type, Int64Type};
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use forebay::store::Store;
use forebay::testing::restores_everywhere;
use forebay::{
    ArrowIpc, Column, Dataset, Dtype, Error, ErrorKind, Format, LoaderBuilder, Missing, Result, Scheduler, Shape,
    Shuffle, Skip, World, bytes, float32, int64,
};

use crate::support::{ids_and_report, watched};

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
    ids_and_report(loader).map(|(ids, failed, _)| (ids, failed))
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
    for length in (0..stored.len()).step_by(1 + stored.len() / 250) {
        if let Err(error) = run(stored[..length].to_vec()) {
            assert_ne!(error.kind(), ErrorKind::Panicked, "cut to {length}: {error}");
        }
    }
    let mut state = 1u64;
    for _ in 0..250 {
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
    fn times_of_several_units_are_no_column() -> Result<()> {
        let times = |array: ArrayRef| {
            let ids = Arc::new(Int64Array::from(vec![0])) as ArrayRef;
            let rows = RecordBatch::try_from_iter([("id", ids), ("t", array)]).expect("columns of one length");
            file(&[rows], IpcWriteOptions::default())
        };
        let seconds = times(Arc::new(TimestampSecondArray::from(vec![1])));
        let nanoseconds = times(Arc::new(TimestampNanosecondArray::from(vec![1_000_000_000])));
        let url = put_all(&["a.arrow", "b.arrow"], vec![seconds, nanoseconds]);
        for dataset in [Dataset::open(url.clone())?, Dataset::open(url)?.columns([int64("id"), int64("t")])] {
            let error = ids_of(dataset.batch(2).loader()).expect_err("seconds and nanoseconds");
            let place = error.place();
            assert_eq!((error.kind(), place.column.as_deref()), (ErrorKind::Schema, Some("t")), "{error}");
            assert!(place.url.as_deref().is_some_and(|url| url.ends_with("b.arrow")), "{error}");
            assert!(error.to_string().contains("Timestamp(ns), and Timestamp(s)"), "{error}");
        }
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

#[cfg(feature = "text")]
mod text {
    use std::io::Write as _;

    use forebay::{Csv, Index, JsonLines, col};

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    }

    fn lines(ids: Range<i64>) -> Vec<u8> {
        let line = |id: i64| {
            let list: Vec<i64> = (0..id % 3).collect();
            let score = if id % 5 == 0 { "null".to_owned() } else { format!("{id}.5") };
            format!(
                "{{\"id\": {id}, \"name\": \"sample \\\"{id}\\\" \\u00e4\", \"list\": {list:?}, \"vector\": [{id}, 0.5], \
                 \"at\": {{\"x\": {id}, \"flag\": {}}}, \"score\": {score}}}\n",
                id % 2 == 0
            )
        };
        ids.map(line).collect::<String>().into_bytes()
    }

    fn table(ids: Range<i64>, delimiter: char) -> Vec<u8> {
        let row = |id: i64| {
            let score = if id % 5 == 0 { String::new() } else { format!("{id}.5") };
            [
                id.to_string(),
                format!("\"sample {id},\n\t\"\"second\"\" line\""),
                score,
                format!("2024-01-{:02}", id % 28 + 1),
            ]
            .join(&delimiter.to_string())
        };
        let heading = ["id", "name", "score", "day"].join(&delimiter.to_string());
        std::iter::once(heading).chain(ids.map(row)).map(|row| row + "\r\n").collect::<String>().into_bytes()
    }

    #[test]
    fn lines_are_read_as_they_were_written() -> Result<()> {
        let plain = lines(0..12);
        let mut shards = vec![("a.jsonl", plain.clone()), ("a.ndjson.gz", gzip(&plain))];
        #[cfg(feature = "zstd")]
        shards.push(("a.jsonl.zst", zstd::encode_all(&plain[..], 1).expect("memory takes it")));
        for (name, shard) in shards {
            let dataset = Dataset::open(put(name, shard))?;
            let declared = dataset.columns([
                int64("id"),
                bytes("name"),
                Column::new("list", Dtype::I32, Shape::Ragged(vec![])),
                float32("vector").fixed([2]),
                float32("at.x"),
                Column::new("at.flag", Dtype::Bool, Shape::Scalar),
                float32("score").or(Missing::Float(-1.0)),
                Column::new("score.is_present", Dtype::Bool, Shape::Scalar),
                int64("elsewhere").or(Missing::Int(7)),
            ]);
            let read = watched(move || -> Result<_> {
                let mut loader = declared.pad("list", forebay::Pad::longest()).batch(12).loader().build()?;
                let batch = loader.epoch(0).next().expect("twelve rows")?;
                let names: Vec<Vec<u8>> = batch.bytes("name")?.map(<[u8]>::to_vec).collect();
                Ok((
                    names,
                    batch.values::<f32>("vector")?.into_owned(),
                    batch.values::<f32>("at.x")?.into_owned(),
                    batch.values::<f32>("score")?.into_owned(),
                    batch.values::<i64>("elsewhere")?.into_owned(),
                ))
            })?;
            assert_eq!(read.0[7], "sample \"7\" ä".as_bytes(), "{name}");
            assert_eq!(read.1[6..8], [3.0, 0.5]);
            assert_eq!(read.2, (0..12).map(|id| id as f32).collect::<Vec<_>>());
            assert_eq!(read.3[4..7], [4.5, -1.0, 6.5]);
            assert_eq!(read.4, [7; 12]);
        }
        Ok(())
    }

    #[test]
    fn columns_are_inferred_from_the_first_rows() -> Result<()> {
        let names = |url: String| {
            watched(move || -> Result<Vec<String>> {
                let mut loader = Dataset::open(url)?.batch(1).loader().on_bad_record(Skip::up_to(5)).build()?;
                let batch = loader.epoch(0).next().expect("a row")?;
                let mut names: Vec<String> = batch.names().map(str::to_owned).collect();
                names.sort_unstable();
                Ok(names)
            })
        };
        let lines =
            b"{\"b\": 1, \"a\": {\"x\": 0.5, \"y\": \"text\"}}\n{\"b\": 2, \"a\": {\"x\": 1, \"y\": \"t\"}}\n".to_vec();
        assert_eq!(names(put("a.jsonl", lines))?, ["a.x", "a.y", "b"]);
        assert_eq!(names(put("a.csv", table(1..4, ',')))?, ["day", "id", "name", "score"]);
        Ok(())
    }

    #[test]
    fn tables_are_read_as_they_were_written() -> Result<()> {
        let mut shards = vec![
            ("a.csv", table(0..12, ','), Csv::new()),
            ("a.tsv", table(0..12, '\t'), Csv::new()),
            ("a.txt", table(0..12, ';'), Csv::new().delimiter(b';')),
            ("a.csv.gz", gzip(&table(0..12, ',')), Csv::new()),
            ("marked.csv", [&b"\xef\xbb\xbf"[..], &table(0..12, ',')].concat(), Csv::new()),
        ];
        #[cfg(feature = "zstd")]
        shards.push(("a.tsv.zst", zstd::encode_all(&table(0..12, '\t')[..], 1).expect("memory takes it"), Csv::new()));
        for (name, shard, options) in shards {
            let dataset = Dataset::open_with(put(name, shard), options)?.columns([
                int64("id"),
                bytes("name"),
                float32("score").or(Missing::Float(-1.0)),
                int64("day"),
            ]);
            let read = watched(move || -> Result<_> {
                let mut loader = dataset.batch(12).loader().build()?;
                let batch = loader.epoch(0).next().expect("twelve rows")?;
                let names: Vec<Vec<u8>> = batch.bytes("name")?.map(<[u8]>::to_vec).collect();
                let days = batch.values::<i64>("day")?.into_owned();
                Ok((batch.values::<i64>("id")?.into_owned(), names, batch.values::<f32>("score")?.into_owned(), days))
            })?;
            assert_eq!(read.0, (0..12).collect::<Vec<_>>(), "{name}");
            assert_eq!(read.1[7], b"sample 7,\n\t\"second\" line", "{name}");
            assert_eq!(read.2[4..7], [4.5, -1.0, 6.5]);
            assert_eq!(read.3[0], 19_723, "days since 1970");
        }
        Ok(())
    }

    #[test]
    fn shards_whose_columns_come_in_another_order_are_one_table() -> Result<()> {
        let urls =
            put_all(&["0.csv", "1.csv"], vec![b"id,x\n0,5\n1,6\n".to_vec(), b"other,x,id\na,7,2\n,8,3".to_vec()]);
        assert_eq!(whole(Dataset::open(urls)?.columns([int64("id"), int64("x")]).batch(3).loader()), [0, 1, 2, 3]);
        let plain = Dataset::open_with(put("a.csv", "0,a\n1,b\n"), Csv::new().without_header())?;
        let renamed = plain
            .columns([int64("column_1")])
            .map("id", [int64("id")], |_, row, out| out.set("id", row.get::<i64>("column_1")?));
        assert_eq!(whole(renamed.batch(2).loader()), [0, 1]);
        Ok(())
    }

    #[test]
    fn order_and_state_are_kept() -> Result<()> {
        let urls = put_all(
            &["0.jsonl", "1.jsonl.gz", "2.jsonl", "3.jsonl"],
            vec![lines(0..10), gzip(&lines(10..13)), b"\n".to_vec(), lines(13..41)],
        );
        keeps_its_promises(&Dataset::open(urls)?.columns([int64("id"), bytes("name")]), 41);
        let urls = put_all(
            &["0.csv", "1.csv.gz", "2.csv"],
            vec![table(0..10, ','), gzip(&table(10..17, ',')), table(17..41, ',')],
        );
        keeps_its_promises(&Dataset::open(urls)?.columns([int64("id"), bytes("name")]), 41);
        let plain = put_all(&["0.jsonl", "1.jsonl"], vec![lines(0..20), lines(20..41)]);
        keeps_its_promises(&Dataset::open(plain)?.columns([int64("id")]), 41);
        Ok(())
    }

    #[test]
    fn a_bad_line_is_a_bad_record_with_its_place() -> Result<()> {
        let bad: [(&str, ErrorKind); 7] = [
            ("{\"id\": 7", ErrorKind::Corrupt),
            ("{\"id\": \"seven\"}", ErrorKind::Corrupt),
            ("{\"id\": 7} {\"id\": 8}", ErrorKind::Corrupt),
            ("{\"id\": 7}}", ErrorKind::Corrupt),
            ("seven", ErrorKind::Corrupt),
            ("{}", ErrorKind::Schema),
            ("{\"id\": null}", ErrorKind::Schema),
        ];
        for (line, kind) in bad {
            let mut rows: Vec<String> = (0..12).map(|id| format!("{{\"id\": {id}}}")).collect();
            rows[7] = line.into();
            let text = rows.join("\n").into_bytes();
            let offset = rows[..7].iter().map(|row| row.len() as u64 + 1).sum();
            check_place("a.jsonl", text.clone(), (7, offset), kind, line)?;
            check_place("a.jsonl.gz", gzip(&text), (7, offset), kind, line)?;
        }
        for (line, kind) in [
            ("7", ErrorKind::Corrupt),
            ("7,8,9", ErrorKind::Corrupt),
            ("seven,8", ErrorKind::Corrupt),
            (",8", ErrorKind::Schema),
        ] {
            let mut rows: Vec<String> = (0..12).map(|id| format!("{id},\"a\nb\"")).collect();
            rows[7] = line.into();
            let text = format!("id,x\n{}\n", rows.join("\n")).into_bytes();
            let offset = 5 + rows[..7].iter().map(|row| row.len() as u64 + 1).sum::<u64>();
            check_place("a.csv", text.clone(), (7, offset), kind, line)?;
            check_place("a.csv.gz", gzip(&text), (7, offset), kind, line)?;
        }
        Ok(())
    }

    fn check_place(name: &str, text: Vec<u8>, at: (u64, u64), kind: ErrorKind, line: &str) -> Result<()> {
        let url = put(name, text);
        let dataset = Dataset::open(url.clone())?.columns([int64("id")]);
        for scheduler in [Scheduler::single_threaded(), Scheduler::threads(3)] {
            let (ids, error) = ids_of(dataset.batch(7).loader().scheduler(scheduler))?;
            let error = error.unwrap_or_else(|| panic!("{line}: no error"));
            let place = error.place();
            assert_eq!(ids, (0..7).collect::<Vec<_>>(), "{line}: {error}");
            assert_eq!((place.record, place.byte_offset), (Some(at.0), Some(at.1)), "{line}: {error}");
            assert_eq!((place.url.as_deref(), error.kind()), (Some(&*url), kind), "{line}: {error}");
        }
        let (ids, error) = ids_of(dataset.batch(2).loader().on_bad_record(Skip::up_to(1)))?;
        assert_eq!((ids, error.map(|e| e.to_string())), ((0..12).filter(|id| *id != 7).collect(), None), "{line}");
        Ok(())
    }

    #[test]
    fn what_has_a_fraction_is_no_integer_and_no_whole_second() -> Result<()> {
        let rows = |last: &str, heading: &str, row: &dyn Fn(i64, &str) -> String, whole: &str| {
            let rows = (0..300).map(|id| row(id, whole)).chain([row(300, last)]);
            format!("{heading}{}", rows.collect::<Vec<_>>().join("")).into_bytes()
        };
        let json = |id: i64, x: &str| format!("{{\"id\": {id}, \"x\": {x}}}\n");
        let csv = |id: i64, x: &str| format!("{id},{x}\n");
        let midnight = "2024-01-01 00:00:00";
        let cases = [
            ("a.jsonl", rows("1.5", "", &json, "7"), "\"1.5\" is no i64"),
            ("a.jsonl", rows("[1, 0.5]", "", &json, "[7]"), "\"0.5\" is no i64"),
            ("a.csv", rows("2024-01-01 00:00:01.500", "id,x\n", &csv, midnight), "is no Timestamp(s)"),
            ("a.csv", rows("2024-01-01 00:00:01", "id,x\n", &csv, "2024-01-01"), "is no Date32"),
        ];
        for (name, text, words) in cases {
            let (ids, error) = ids_of(Dataset::open(put(name, text))?.batch(1).loader())?;
            let error = error.unwrap_or_else(|| panic!("{words}: no error"));
            assert_eq!((ids.len(), error.place().record), (300, Some(300)), "{error}");
            assert_eq!((error.kind(), error.place().column.as_deref()), (ErrorKind::Corrupt, Some("x")), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        for text in [rows("1e3", "", &json, "7"), rows("-2.0", "", &json, "7"), rows("\"8\"", "", &json, "7")] {
            assert_eq!(whole(Dataset::open(put("a.jsonl", text))?.batch(1).loader()).len(), 301);
        }
        Ok(())
    }

    #[test]
    fn integers_beyond_64_bits_are_bad_lines_of_a_column_of_integers() -> Result<()> {
        // 2^53 + 1, which no float is.
        let (id, large) = ((1i64 << 53) + 1, "9223372036854775808");
        let text = format!(
            "{{\"id\": {large}, \"x\": [1]}}\n{{\"id\": {id}, \"x\": [{large}]}}\n{{\"id\": {id}, \"x\": [2, 3]}}\n"
        );
        let dataset = Dataset::open(put("a.jsonl", text))?.batch(1);
        let (ids, error) = ids_of(dataset.loader().on_bad_record(Skip::up_to(2)))?;
        assert_eq!((ids, error.map(|error| error.to_string())), (vec![id], None));
        let (_, error) = ids_of(dataset.loader())?;
        let error = error.expect("a line that does not fit");
        assert_eq!((error.place().record, error.place().column.as_deref()), (Some(0), Some("id")), "{error}");
        Ok(())
    }

    #[test]
    fn codes_that_begin_with_a_zero_are_no_numbers() -> Result<()> {
        let codes = |text: &str, names: &str| {
            let dataset = Dataset::open(put("a.csv", format!("{names}\n{text}")))?.batch(2);
            let mut batches = dataset.loader().build()?.into_iter();
            let batch = batches.next().expect("two rows")?;
            Ok::<_, Error>(batch.bytes("zip")?.map(<[u8]>::to_vec).collect::<Vec<_>>())
        };
        assert_eq!(codes("0,10001\n1,00501\n", "id,zip")?, [b"10001", b"00501"]);
        assert_eq!(codes("\"-007\",0\n8,1\n", "zip,id")?, [&b"-007"[..], b"8"]);
        // Zeros, fractions, and what is said in quotes beside a number are none.
        let rows = |last: &str| {
            let rows = (0..300).map(|id| format!("{id},\"a,007\",0.5\n")).collect::<String>();
            put("a.csv", format!("id,text,x\n{rows}{last}"))
        };
        assert_eq!(whole(Dataset::open(rows(""))?.batch(1).loader()).len(), 300);
        for last in ["00501,a,0\n", "\"-01\",a,0\n"] {
            let (ids, error) = ids_of(Dataset::open(rows(last))?.batch(1).loader())?;
            let error = error.unwrap_or_else(|| panic!("{last}: no error"));
            assert_eq!((ids.len(), error.place().record), (300, Some(300)), "{error}");
            assert_eq!((error.kind(), error.place().column.as_deref()), (ErrorKind::Corrupt, Some("id")), "{error}");
        }
        assert_eq!(whole(Dataset::open(rows("00501,a,0\n"))?.columns([int64("id")]).batch(1).loader())[300], 501);
        Ok(())
    }

    #[test]
    fn finite_numbers_do_not_become_infinite() -> Result<()> {
        let float = |dtype| Column::new("x", dtype, Shape::Scalar);
        let cases = [
            (Dtype::F16, "65504", "70000"),
            (Dtype::F16, "1.0", "1e39"),
            (Dtype::F32, "3e38", "-1e39"),
            (Dtype::F64, "1e308", "1e400"),
        ];
        for (dtype, good, bad) in cases {
            let json =
                |x: &str| format!("{{\"id\": 0, \"x\": 1}}\n{{\"id\": 1, \"x\": {x}}}\n{{\"id\": 2, \"x\": 2}}\n");
            let csv = |x: &str| format!("id,x\n0,1\n1,{x}\n2,2\n");
            for (name, text) in [("a.jsonl", &json as &dyn Fn(&str) -> String), ("a.csv", &csv)] {
                let open = |x| {
                    Ok::<_, Error>(Dataset::open(put(name, text(x)))?.columns([int64("id"), float(dtype)]).batch(1))
                };
                assert_eq!(whole(open(good)?.loader()), [0, 1, 2], "{name} {dtype} {good}");
                let (ids, error) = ids_of(open(bad)?.loader())?;
                let error = error.unwrap_or_else(|| panic!("{name} {dtype} {bad}: no error"));
                assert_eq!((ids, error.place().record, error.place().column.as_deref()), (vec![0], Some(1), Some("x")));
            }
            let infinite = Dataset::open(put("a.csv", csv("-inf")))?.columns([int64("id"), float(dtype)]).batch(1);
            assert_eq!(whole(infinite.loader()), [0, 1, 2], "{dtype}");
        }
        // Within lists, and where nothing is declared.
        let lists = put("a.jsonl", "{\"id\": 0, \"x\": [0.5, 1e300]}\n{\"id\": 1, \"x\": [0.5, 1e400]}\n".to_owned());
        assert_eq!(ids_of(Dataset::open(lists)?.batch(1).loader().on_bad_record(Skip::up_to(1)))?.0, [0]);
        Ok(())
    }

    #[test]
    fn times_of_later_shards_are_read_in_the_unit_of_the_first() -> Result<()> {
        let shards = |x: [&str; 2]| {
            let text = |id: usize| format!("id,x\n{id},{}\n", x[id]).into_bytes();
            put_all(&["a.csv", "b.csv"], vec![text(0), text(1)])
        };
        let exact = shards(["2024-01-01 00:00:00.5", "2024-01-01 00:00:01"]);
        let dataset = Dataset::open(exact)?.batch(2);
        let values = watched(move || {
            dataset
                .loader()
                .build()?
                .epoch(0)
                .next()
                .expect("a batch")
                .and_then(|batch| batch.values::<i64>("x").map(|x| x.to_vec()))
        })?;
        assert_eq!(values[1] - values[0], 500);
        let lossy = shards(["2024-01-01", "2024-01-01 00:00:01"]);
        let (ids, error) = ids_of(Dataset::open(lossy)?.batch(1).loader())?;
        assert_eq!((ids, error.map(|error| error.place().record)), (vec![0], Some(Some(0))));
        Ok(())
    }

    #[test]
    fn rows_of_tables_say_what_is_wrong_with_them() -> Result<()> {
        let cases: [(&[u8], Option<&str>, &str); 4] = [
            (b"id,x\n0,1\n\"a\nb\",2\n", Some("id"), "\"a\\nb\" is no i64"),
            (b"id,x\n0,1\n1,2,3\n", None, "3 fields, where there are 2 columns"),
            (b"id,x\n0,a\n1,\xe9\n", Some("x"), "byte 2 of the row, in field 2, is 0xe9, which is no UTF-8"),
            (b"id,x\n0,a\n1,\"b,\xe9\"\n", Some("x"), "byte 5 of the row, in field 2, is 0xe9"),
        ];
        for (text, column, words) in cases {
            let (ids, error) = ids_of(Dataset::open(put("a.csv", text))?.columns([int64("id")]).batch(1).loader())?;
            let error = error.unwrap_or_else(|| panic!("{words}: no error"));
            assert_eq!((ids, error.place().record, error.place().column.as_deref()), (vec![0], Some(1), column));
            assert!(error.to_string().contains(words) && !error.to_string().contains(" line "), "{error}");
        }
        // A character of which one row has the beginning, and the next the end.
        let parted = Dataset::open(put("parted.csv", b"x\na\n\xef\n\xbb\xbfb\n"))?.columns([bytes("x")]).batch(1);
        let mut batches = parted.loader().build()?.into_iter();
        assert_eq!(batches.next().expect("a row")?.bytes("x")?.collect::<Vec<_>>(), [b"a"]);
        let error = batches.next().expect("a bad row").expect_err("no UTF-8");
        assert_eq!(error.place().record, Some(1));
        assert!(error.to_string().contains("is 0xef, which is no UTF-8"), "{error}");
        for text in [&b"id,x\n0,\xe9\n"[..], b"id,\xe9\n0,1\n"] {
            let error = ids_of(Dataset::open(put("a.csv", text))?.batch(1).loader()).expect_err("no UTF-8");
            assert!(error.to_string().contains("no UTF-8") && error.to_string().contains("iconv"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn columns_of_conditions_are_read_besides_those_declared() -> Result<()> {
        for url in [put("a.jsonl", lines(0..12)), put("a.csv", table(0..12, ','))] {
            let dataset = Dataset::open(url)?.filter_where(col("name").eq("sample \"7\" ä").or(col("id").gt(9)));
            let named = dataset.columns([int64("id")]).batch(1);
            let ids = whole(named.loader());
            assert!(ids == [7, 10, 11] || ids == [10, 11], "{ids:?}");
        }
        Ok(())
    }

    #[test]
    fn an_open_quote_is_one_bad_record_that_takes_the_rest() -> Result<()> {
        let url = put("a.csv", "id,x\n0,a\n1,\"b\n2,c\n");
        let dataset = Dataset::open(url)?.columns([int64("id"), bytes("x")]).batch(1);
        let (ids, error) = ids_of(dataset.loader())?;
        let error = error.expect("the quote is not closed");
        assert_eq!((ids, error.place().record, error.place().byte_offset), (vec![0], Some(1), Some(9)), "{error}");
        Ok(())
    }

    #[test]
    fn damage_ends_in_errors() {
        let columns = [int64("id"), bytes("name").optional(), float32("score").optional()];
        survives_damage(&lines(0..6), "a.jsonl", &JsonLines::new().into(), &columns);
        survives_damage(&lines(0..6), "a.jsonl", &JsonLines::new().into(), &[]);
        survives_damage(&table(0..6, ','), "a.csv", &Csv::new().into(), &columns);
        survives_damage(&table(0..6, ','), "a.csv", &Csv::new().into(), &[]);
        survives_damage(&gzip(&lines(0..6)), "a.jsonl", &JsonLines::new().into(), &columns);
    }

    #[test]
    fn another_format_or_nothing_says_so() -> Result<()> {
        let error = ids_of(Dataset::open_with(put("a", table(0..3, ',')), JsonLines::new())?.batch(1).loader());
        let error = error.expect_err("a table is no JSON");
        assert!(error.to_string().contains("no JSON") && error.place().record == Some(0), "{error}");
        let error = ids_of(Dataset::open(put("a.jsonl", ""))?.batch(1).loader()).expect_err("nothing");
        assert!(error.to_string().contains("no row to infer columns from"), "{error}");
        let error = ids_of(Dataset::open(put("a.csv", "id,x\n"))?.columns([int64("id")]).batch(1).loader());
        assert!(error.expect_err("a header alone").to_string().contains("no rows"));
        let error = ids_of(Dataset::open(put("a.csv", "id,x\n1,2\n"))?.columns([int64("y")]).batch(1).loader());
        let error = error.expect_err("no such column");
        assert!(error.to_string().contains("there are id, x"), "{error}");
        Ok(())
    }

    #[test]
    fn only_a_mark_at_the_beginning_is_none_of_the_content() -> Result<()> {
        let table = "\u{ff21},id\n\u{feff}x,0\ny,1\n\u{feff}z,2\n";
        let names = |text: String, rows: Shuffle| -> Result<Vec<(i64, Vec<u8>)>> {
            let dataset = Dataset::open(put("a.csv", text))?.columns([bytes("\u{ff21}"), int64("id")]).shuffle(rows);
            let mut loader = dataset.batch(3).loader().build()?;
            let batch = loader.epoch(0).next().expect("three rows are a batch")?;
            let names = batch.bytes("\u{ff21}")?.map(<[u8]>::to_vec);
            let mut rows: Vec<_> = batch.values::<i64>("id")?.iter().copied().zip(names).collect();
            rows.sort();
            Ok(rows)
        };
        let wanted = ["\u{feff}x", "y", "\u{feff}z"].map(|name| name.as_bytes().to_vec());
        let wanted: Vec<_> = (0..3).zip(wanted).collect();
        for mark in ["", "\u{feff}"] {
            // As one block, and each row by itself.
            for rows in [Shuffle::none(), Shuffle::global()] {
                assert_eq!(names(format!("{mark}{table}"), rows)?, wanted);
            }
        }
        Ok(())
    }

    #[test]
    fn bytes_that_are_no_text_come_back_from_data_uris() -> Result<()> {
        use arrow::array::AsArray as _;

        let strings = [&b"text"[..], b"\xff\xfe\0", b"", b"data:;base64,Zg==", b"\xc3"];
        let views = || Arc::new(arrow::array::BinaryViewArray::from_iter_values(strings)) as ArrayRef;
        let field = |length| Arc::new(Field::new(length, DataType::BinaryView, false));
        let pairs = arrow::buffer::OffsetBuffer::from_lengths([2, 0, 1, 1, 1]);
        let lists = ListArray::new(field("item"), pairs, views(), None);
        let raw = [[1u8, 0xff, 0x80, 7], [1; 4], [b'a'; 4], [0; 4], [0xc0; 4]];
        let raw = arrow::array::BinaryViewArray::from_iter_values(raw);
        let columns = [bytes("b"), bytes("l").ragged(), bytes("r")];
        let rows = [("b", views()), ("l", Arc::new(lists) as ArrayRef), ("r", Arc::new(raw) as ArrayRef)];
        let folder = tempfile::tempdir().expect("a folder");
        let written = folder.path().join("written");
        let mut writer =
            forebay::Writer::builder(forebay::writer::Output::JsonLines).create(&written, columns.clone())?;
        writer.write(&RecordBatch::try_from_iter(rows).expect("rows"))?;
        writer.finish()?;
        let url = format!("{}/*.jsonl", written.display());
        let read = |options: JsonLines, columns: &[Column]| -> Result<_> {
            let mut loader = Dataset::open_with(&*url, options)?.columns(columns.to_vec()).batch(5).loader().build()?;
            let batch = loader.epoch(0).next().expect("five rows are a batch")?;
            Ok(batch)
        };
        let batch = read(JsonLines::new().data_uris(), &columns)?;
        assert_eq!(batch.bytes("b")?.collect::<Vec<_>>(), strings);
        let lists = batch.array("l")?;
        let items = lists.as_list::<i32>().values().as_binary_view();
        assert_eq!(items.iter().flatten().collect::<Vec<_>>(), strings);
        let batch = read(JsonLines::new().data_uris(), &[bytes("r").raw(Dtype::U8, [4])])?;
        assert_eq!(batch.values::<u8>("r")?[..4], [1, 0xff, 0x80, 7]);
        // Without, strings stand as they are.
        let batch = read(JsonLines::new(), &columns[..1])?;
        assert_eq!(batch.bytes("b")?.nth(1), Some(&b"data:;base64,//4A"[..]));
        // A row whose base64 is none is bad, and the others are not.
        let lines = "{\"b\": \"data:;base64,Zg==\"}\n{\"b\": \"data:;base64,Zg\"}\n{\"b\": null}\n";
        let dataset = Dataset::open_with(put("a.jsonl", lines), JsonLines::new().data_uris())?;
        let dataset = dataset.columns([bytes("b").or(Missing::Bytes(b"none".to_vec()))]).batch(3);
        let mut loader = dataset.loader().on_bad_record(Skip::up_to(1)).build()?;
        let batch = loader.epoch(0).next().expect("two rows are left")?;
        assert_eq!(batch.bytes("b")?.collect::<Vec<_>>(), [&b"f"[..], b"none"]);
        Ok(())
    }

    #[test]
    fn where_rows_start_is_kept_beside_other_indexes() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let shard = folder.path().join("a.jsonl");
        std::fs::write(&shard, lines(0..10)).expect("a file");
        let dataset = Dataset::open(shard.display().to_string())?.columns([int64("id")]).batch(5);
        let indexes = folder.path().join("index");
        let loader = || dataset.loader().index_dir(indexes.clone()).index(Index::Auto);
        assert_eq!(whole(loader()).len(), 10);
        assert_eq!(std::fs::read_dir(&indexes).expect("a folder").count(), 1);
        assert_eq!(whole(loader()).len(), 10);
        // A shard that was written again is read again.
        std::fs::write(&shard, lines(0..20)).expect("a file");
        assert_eq!(whole(loader()).len(), 20);
        // And one that has become shorter is told.
        let (now, then) = (lines(0..15).len(), lines(0..20).len());
        std::fs::write(&shard, lines(0..15)).expect("a file");
        let (ids, failed, report) = ids_and_report(loader())?;
        assert_eq!((ids.len(), failed.map(|error| error.to_string()), report.notes.len()), (15, None, 1));
        let said = format!(
            "a.jsonl: the shard has {now} bytes, and had {then} when it was indexed: it may have been cut off while it was copied; copy it again, unless it was rewritten"
        );
        assert!(report.notes[0].contains(&said), "{:?}", report.notes);
        Ok(())
    }

    #[test]
    fn a_compressed_shard_that_was_cut_off_is_told_so() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let (shard, stored) = (folder.path().join("a.jsonl.gz"), gzip(&lines(0..200)));
        std::fs::write(&shard, &stored).expect("a file");
        let dataset = Dataset::open(shard.display().to_string())?.columns([int64("id")]).batch(5);
        let loader = || dataset.loader().index_dir(folder.path().join("index"));
        assert_eq!(whole(loader()).len(), 200);
        std::fs::write(&shard, &stored[..stored.len() / 2]).expect("a file");
        let error = ids_of(loader()).expect_err("half a stream").to_string();
        let said = format!("; the shard has {} bytes, and had {} when", stored.len() / 2, stored.len());
        assert!(error.contains("the gzip stream is damaged") && error.contains(&said), "{error}");
        assert!(error.ends_with("; copy it again"), "{error}");
        Ok(())
    }
}

#[cfg(feature = "tar")]
mod tar_archives {
    use std::io::Write as _;

    use forebay::Tar;

    use super::*;

    fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, &content[..]).expect("memory takes it");
        }
        builder.into_inner().expect("memory takes it")
    }

    fn members(ids: Range<i64>) -> Vec<(String, Vec<u8>)> {
        let sample = |id: i64| {
            let folder = if id % 4 == 0 { "a rather long folder name/".repeat(6) } else { "train/".to_owned() };
            let mut members = vec![
                (format!("{folder}{id:06}.jpg"), vec![id as u8; (id * 97 % 1500) as usize]),
                (format!("{folder}{id:06}.id"), format!("{id}\n").into_bytes()),
            ];
            if id % 5 != 0 {
                members.push((format!("{folder}{id:06}.JSON"), format!("{{\"id\": {id}}}").into_bytes()));
            }
            members
        };
        ids.flat_map(sample).collect()
    }

    fn shard(ids: Range<i64>) -> Vec<u8> {
        archive(&members(ids))
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    }

    #[test]
    fn samples_are_read_as_they_were_written() -> Result<()> {
        let mut shards =
            vec![("a.tar", shard(0..12)), ("a.tar.gz", gzip(&shard(0..12))), ("a.tgz", gzip(&shard(0..12)))];
        #[cfg(feature = "zstd")]
        shards.push(("a.tar.zst", zstd::encode_all(&shard(0..12)[..], 1).expect("memory takes it")));
        for (name, shard) in shards {
            let dataset = Dataset::open(put(name, shard))?.batch(12);
            let read = watched(move || -> Result<_> {
                let mut loader = dataset.loader().build()?;
                let batch = loader.epoch(0).next().expect("twelve samples")?;
                let bytes =
                    |name: &str| -> Result<Vec<Vec<u8>>> { Ok(batch.bytes(name)?.map(<[u8]>::to_vec).collect()) };
                Ok((bytes("__key__")?, bytes("jpg")?, bytes("id")?, bytes("json")?))
            })?;
            assert_eq!(
                (&read.0[1][..], &read.1[2][..], &read.2[3][..]),
                (&b"train/000001"[..], &[2; 194][..], &b"3\n"[..])
            );
            assert_eq!((&read.3[5][..], &read.3[6][..]), (&b""[..], &b"{\"id\": 6}"[..]), "{name}");
            assert!(read.0[4].starts_with(b"a rather long"));
        }
        Ok(())
    }

    #[test]
    fn order_and_state_are_kept() -> Result<()> {
        let urls = put_all(&["0.tar", "1.tar.gz", "2.tar"], vec![shard(0..10), gzip(&shard(10..13)), shard(13..41)]);
        keeps_its_promises(&Dataset::open(urls)?.columns([int64("id"), bytes("jpg")]), 41);
        let plain = put_all(&["0.tar", "1.tar"], vec![shard(0..20), shard(20..41)]);
        keeps_its_promises(&Dataset::open(plain)?.columns([int64("id"), bytes("__key__")]), 41);
        Ok(())
    }

    #[test]
    fn a_bad_sample_is_a_bad_record_with_its_place() -> Result<()> {
        let cases: [(&str, Option<&[u8]>, &str); 3] = [
            ("jpg", None, "has no member .jpg"),
            ("id", Some(b"seven"), "is no integer"),
            ("id", Some(b"7.5"), "is no integer"),
        ];
        for (column, content, words) in cases {
            let name = format!("train/000007.{column}");
            let mut members = members(0..12);
            let at = members.iter().position(|(member, _)| *member == name).expect("it is there");
            match content {
                None => _ = members.remove(at),
                Some(content) => members[at].1 = content.to_vec(),
            }
            let offset = shard(0..7).len() as u64 - 1024;
            for (name, shard) in [("a.tar", archive(&members)), ("a.tar.gz", gzip(&archive(&members)))] {
                let url = put(name, shard);
                let dataset = Dataset::open(url.clone())?.columns([int64("id"), bytes("jpg")]);
                let (ids, error) = ids_of(dataset.batch(7).loader())?;
                let error = error.unwrap_or_else(|| panic!("{words}: no error"));
                let place = error.place();
                assert_eq!((ids.len(), place.record, place.byte_offset), (7, Some(7), Some(offset)), "{error}");
                assert!(error.to_string().contains(words) && place.url.as_deref() == Some(&*url), "{error}");
                let (ids, error) = ids_of(dataset.batch(2).loader().on_bad_record(Skip::up_to(1)))?;
                assert_eq!((ids, error.is_none()), ((0..12).filter(|id| *id != 7).collect(), true));
            }
        }
        Ok(())
    }

    #[test]
    fn finite_numbers_do_not_become_infinite() -> Result<()> {
        let shard = |x: &str| archive(&[("0.id".into(), b"0".to_vec()), ("0.x".into(), x.into())]);
        for (dtype, text, is_good) in [
            (Dtype::F16, "70000", false),
            (Dtype::F32, "1e39", false),
            (Dtype::F64, "1e400", false),
            (Dtype::F64, "1e300", true),
            (Dtype::F32, "-inf", true),
        ] {
            let columns = [int64("id"), Column::new("x", dtype, Shape::Scalar)];
            let (ids, error) = ids_of(Dataset::open(put("a.tar", shard(text)))?.columns(columns).batch(1).loader())?;
            assert_eq!((ids.len(), error.is_none()), (usize::from(is_good), is_good), "{text}: {error:?}");
        }
        Ok(())
    }

    #[test]
    fn an_archive_that_breaks_off_gives_what_is_before() -> Result<()> {
        for packed in [false, true] {
            let mut stored = shard(1..12);
            // In the header of the last member of the seventh sample.
            stored.truncate(shard(1..8).len() - 1024 - 600);
            let stored = if packed { gzip(&stored) } else { stored };
            let dataset = Dataset::open(put("a.tar", stored))?.columns([int64("id")]).batch(6);
            let (ids, error) = ids_of(dataset.loader())?;
            let error = error.expect("it breaks off");
            assert_eq!(ids, (1..7).collect::<Vec<_>>(), "{error}");
            assert_eq!((error.kind(), error.place().record), (ErrorKind::Corrupt, Some(6)), "{error}");
            assert!(
                error.to_string().contains("ends inside a header") && error.place().byte_offset.is_some(),
                "{error}"
            );
            let (ids, error) = ids_of(dataset.loader().on_bad_record(Skip::up_to(1)))?;
            assert_eq!((ids.len(), error.map(|e| e.to_string())), (6, None));
        }
        Ok(())
    }

    #[test]
    fn an_archive_that_was_cut_off_is_told_so() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, stored) in [("a.tar", shard(1..12)), ("a.tgz", gzip(&shard(1..12)))] {
            let path = folder.path().join(name);
            std::fs::write(&path, &stored).expect("a file");
            let dataset = Dataset::open(path.display().to_string())?.columns([int64("id")]).batch(4);
            let loader = || dataset.loader().index_dir(folder.path().join("index"));
            assert_eq!(whole(loader()).len(), 11);
            let cut = if name == "a.tar" { shard(1..8).len() - 1024 - 600 } else { stored.len() / 2 };
            std::fs::write(&path, &stored[..cut]).expect("a file");
            let said = format!("the shard has {cut} bytes, and had {} when it was indexed", stored.len());
            let error = match ids_and_report(loader()) {
                Ok((_, failed, report)) => {
                    assert!(report.notes[0].contains(&format!("{name}: {said}")), "{:?}", report.notes);
                    failed.expect("it breaks off")
                }
                Err(error) => error,
            };
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(&format!("{said}: it may have been cut off")), "{error}");
            assert!(error.to_string().contains("; copy it again"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn damage_ends_in_errors() {
        let columns = [int64("id"), bytes("jpg")];
        survives_damage(&shard(1..5), "a.tar", &Tar::new().into(), &columns);
        survives_damage(&shard(1..5), "a.tar", &Tar::new().into(), &[]);
        survives_damage(&gzip(&shard(1..5)), "a.tar", &Tar::new().into(), &columns);
    }

    #[test]
    fn what_is_no_archive_or_empty_says_so() -> Result<()> {
        let build = |content: &[u8], columns: &[Column]| {
            let dataset = Dataset::open_with(put("a", content), Tar::new()).expect("a pattern").batch(1);
            let dataset = if columns.is_empty() { dataset } else { dataset.columns(columns.to_vec()).batch(1) };
            ids_of(dataset.loader()).expect_err("nothing to read").to_string()
        };
        assert!(build(&[b'x'; 2000], &[]).contains("checksum"));
        assert!(build(b"", &[]).contains("no sample to infer columns from"));
        assert!(build(&[0; 1024], &[]).contains("no sample to infer columns from"));
        let list = [float32("id").ragged()];
        let dataset = Dataset::open(put("a.tar", shard(0..3)))?.columns(list).batch(1);
        assert!(ids_of(dataset.loader()).expect_err("a list").to_string().contains(".raw("));
        Ok(())
    }

    #[test]
    fn a_column_twice_in_a_sample_is_bad() -> Result<()> {
        let twice = vec![("0.id".to_owned(), b"1".to_vec()), ("0.id".to_owned(), b"2".to_vec())];
        let dataset = Dataset::open(put("a.tar", archive(&twice)))?.columns([int64("id")]).batch(1);
        let (_, error) = ids_of(dataset.loader())?;
        assert!(error.expect("two of one name").to_string().contains("two members .id"));
        Ok(())
    }
}

mod images {
    use forebay::{Image, ImageFolder};

    use super::*;

    fn picture(id: u8) -> Vec<u8> {
        let pixels = image::RgbImage::from_fn(6, 4, |x, y| image::Rgb([id, x as u8, y as u8]));
        let mut encoded = std::io::Cursor::new(Vec::new());
        pixels.write_to(&mut encoded, image::ImageFormat::Png).expect("memory takes it");
        encoded.into_inner()
    }

    /// Pictures in three folders, with a file of another kind between them.
    fn folder(spoil: impl Fn(usize, Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for id in 0..41 {
            let class = folder.path().join("photos & more").join(["ape", "bee", "cat"][id * 3 / 41]);
            std::fs::create_dir_all(&class).expect("a folder");
            std::fs::write(class.join(format!("{id:02}.PNG")), spoil(id, picture(id as u8))).expect("a file");
            std::fs::write(class.join("notes.txt"), "none").expect("a file");
        }
        folder
    }

    fn open(folder: &tempfile::TempDir) -> Dataset {
        Dataset::open_with(folder.path().join("photos & more").display().to_string(), ImageFolder::new())
            .expect("a folder")
    }

    #[test]
    fn files_are_rows_with_the_number_of_their_folder() -> Result<()> {
        let folder = folder(|_, content| content);
        let dataset = open(&folder).image("image", Image::rgb().resize(4, 6)).batch(41);
        let (labels, paths, pixels, notes) = watched(move || -> Result<_> {
            let mut loader = dataset.loader().build()?;
            let batch = loader.epoch(0).next().expect("a batch")?;
            let paths: Vec<Vec<u8>> = batch.bytes("path")?.map(<[u8]>::to_vec).collect();
            let pixels = batch.values::<u8>("image")?.into_owned();
            Ok((batch.values::<i64>("label")?.into_owned(), paths, pixels, loader.report().to_string()))
        })?;
        assert_eq!(labels, (0..41).map(|id| id * 3 / 41).collect::<Vec<_>>());
        assert_eq!((&paths[0][..], &paths[40][..]), (&b"ape/00.PNG"[..], &b"cat/40.PNG"[..]));
        assert_eq!(pixels.len(), 41 * 72);
        assert!(notes.contains("3 of 44 files are not called like images"), "{notes}");
        Ok(())
    }

    #[test]
    fn nothing_but_images_needs_no_format() -> Result<()> {
        let folder = folder(|_, content| content);
        let photos = folder.path().join("photos & more");
        let of_class = |class: &str| {
            let dataset = Dataset::open(format!("{}/{class}/*.PNG", photos.display()))?.batch(50);
            dataset.loader().build()?.into_iter().map(|batch| Ok(batch?.len())).sum::<Result<usize>>()
        };
        assert_eq!(of_class("bee")?, 14);
        assert_eq!(of_class("*")?, 41);
        // With other files it has to be stated, and the error says how.
        let error = watched({
            let dataset = Dataset::open(photos.display().to_string())?.batch(50);
            move || dataset.loader().build().map(|_| ()).expect_err("no TFRecord")
        });
        assert!(error.to_string().contains("Dataset::open_with(urls, ImageFolder::new())"), "{error}");
        Ok(())
    }

    #[test]
    fn order_and_state_are_kept() {
        let folder = folder(|_, content| content);
        let numbered = open(&folder).map("id@1", [int64("id")], |_, row, out| {
            let path = row.bytes("path")?;
            let digits = &path[path.len() - 6..path.len() - 4];
            out.set("id", i64::from(digits[0] - b'0') * 10 + i64::from(digits[1] - b'0'))
        });
        keeps_its_promises(&numbered, 41);
    }

    #[test]
    fn a_bad_image_is_named_by_its_file() -> Result<()> {
        let folder = folder(|id, content| if id == 7 { content[..20].to_vec() } else { content });
        let dataset = open(&folder).image("image", Image::rgb().resize(4, 6)).batch(7);
        watched(move || {
            let mut loader = dataset.loader().build()?;
            let mut batches = loader.epoch(0);
            assert!(batches.next().expect("a batch").is_ok());
            let error = batches.next().expect("an error").expect_err("half an image");
            assert!(error.place().url.as_deref().is_some_and(|url| url.ends_with("ape/07.PNG")), "{error}");
            let mut loader = dataset.loader().on_bad_record(Skip::up_to(1)).build()?;
            let rows = loader.epoch(0).map(|batch| Ok(batch?.len())).sum::<Result<usize>>()?;
            assert_eq!(rows, 40);
            Ok(())
        })
    }

    #[test]
    fn other_folders_and_columns_say_what_there_is() -> Result<()> {
        let url = put("notes.txt", "none");
        let error = ids_of(Dataset::open_with(url, ImageFolder::new())?.batch(1).loader()).expect_err("no image");
        assert!(error.to_string().contains(".webp"), "{error}");
        let url = put("a.png", picture(1));
        let error = ids_of(Dataset::open_with(url, ImageFolder::new())?.columns([int64("class")]).batch(1).loader());
        assert!(error.expect_err("another column").to_string().contains("int64(\"label\")"));
        Ok(())
    }
}
