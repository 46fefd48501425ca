//! Tests whole data sets: written, read back with other readers, interrupted, and shuffled.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use arrow::array::{
    BinaryViewArray, BooleanArray, FixedSizeListArray, Float16Array, Float32Array, Float64Array, Int8Array, Int16Array,
    Int32Array, Int64Array, ListArray, UInt8Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::Field;
use proptest::prelude::*;

use super::*;
use crate::engine::Budget;
use crate::schema::{Dtype, bytes, float32, int64};

fn list(values: ArrayRef, lengths: Vec<usize>) -> ArrayRef {
    let field = Arc::new(Field::new_list_field(values.data_type().clone(), false));
    Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), values, None))
}

fn fixed(values: ArrayRef, each: i32) -> ArrayRef {
    let field = Arc::new(Field::new_list_field(values.data_type().clone(), false));
    Arc::new(FixedSizeListArray::new(field, each, values, None))
}

/// Creates columns of every dtype and shape, with rows `from..to`.
fn everything(from: u64, to: u64) -> (Vec<Column>, RecordBatch) {
    let range = from as i64..to as i64;
    let n = range.clone().count();
    let text = range.clone().map(|i| format!("row {i} \"quoted\" \n ü").into_bytes());
    let raw = range.clone().map(|i| vec![255, 254, i as u8]);
    let lengths: Vec<usize> = range.clone().map(|i| (i % 4) as usize).collect();
    let total: usize = lengths.iter().sum();
    let columns: Vec<(Column, ArrayRef)> = vec![
        (int64("i64"), Arc::new(Int64Array::from_iter_values(range.clone().map(|i| i * 1_000_003 - 7)))),
        (
            Column::new("i32", Dtype::I32, crate::Shape::Scalar),
            Arc::new(Int32Array::from_iter_values(range.clone().map(|i| -(i as i32)))),
        ),
        (
            Column::new("i16", Dtype::I16, crate::Shape::Scalar),
            Arc::new(Int16Array::from_iter_values(range.clone().map(|i| i as i16))),
        ),
        (
            Column::new("i8", Dtype::I8, crate::Shape::Scalar),
            Arc::new(Int8Array::from_iter_values(range.clone().map(|i| i as i8))),
        ),
        (
            Column::new("u8", Dtype::U8, crate::Shape::Scalar),
            Arc::new(UInt8Array::from_iter_values(range.clone().map(|i| i as u8))),
        ),
        (
            Column::new("flag", Dtype::Bool, crate::Shape::Scalar),
            Arc::new(BooleanArray::from_iter(range.clone().map(|i| Some(i % 3 == 0)))),
        ),
        (
            Column::new("f16", Dtype::F16, crate::Shape::Scalar),
            Arc::new(Float16Array::from_iter_values(range.clone().map(|i| half::f16::from_f32(i as f32 / 4.0)))),
        ),
        (float32("f32"), Arc::new(Float32Array::from_iter_values(range.clone().map(|i| 1.0 / (i + 1) as f32)))),
        (bytes("text"), Arc::new(BinaryViewArray::from_iter_values(text))),
        (bytes("raw"), Arc::new(BinaryViewArray::from_iter_values(raw))),
        (
            int64("pair").fixed([2, 2]),
            fixed(Arc::new(Int64Array::from_iter_values((0..4 * n as i64).map(|i| i + 4 * from as i64))), 4),
        ),
        (
            float32("ragged").ragged(),
            list(Arc::new(Float32Array::from_iter_values((0..total).map(|i| i as f32 / 3.0))), lengths.clone()),
        ),
        (
            bytes("words").ragged(),
            list(Arc::new(BinaryViewArray::from_iter_values((0..total).map(|i| format!("w{i}")))), lengths),
        ),
    ];
    let (columns, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    let batch = RecordBatch::try_new(crate::schema::arrow_schema(&columns), arrays).unwrap();
    (columns, batch)
}

fn numbers(range: std::ops::Range<i64>) -> RecordBatch {
    RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(range)) as ArrayRef)]).unwrap()
}

/// Writes in batches of `batch` rows.
fn write_all(mut writer: Writer, rows: &RecordBatch, batch: usize) -> Result<(Manifest, u64)> {
    let mut at = writer.resume_at() as usize;
    while at < rows.num_rows() {
        let some = batch.min(rows.num_rows() - at);
        writer.write(&rows.slice(at, some))?;
        at += some;
    }
    writer.finish_counted()
}

/// Returns the shards of a folder in the order of the manifest, decompressed.
fn contents(folder: &Path, manifest: &Manifest) -> Vec<Vec<u8>> {
    manifest
        .shards
        .iter()
        .map(|shard| {
            let stored = std::fs::read(folder.join(&shard.name)).unwrap();
            let mut out = Vec::new();
            match manifest.options["compression"].as_str().unwrap() {
                "gzip" => _ = flate2::read::GzDecoder::new(&stored[..]).read_to_end(&mut out).unwrap(),
                "zlib" => _ = flate2::read::ZlibDecoder::new(&stored[..]).read_to_end(&mut out).unwrap(),
                #[cfg(feature = "zstd")]
                "zstd" => out = zstd::decode_all(&stored[..]).unwrap(),
                _ => out = stored,
            }
            out
        })
        .collect()
}

/// Returns all files below a folder, by their paths.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => {
                found.extend(files(&entry.path()).into_iter().map(|(path, bytes)| (format!("{name}/{path}"), bytes)))
            }
            false => _ = found.insert(name, std::fs::read(entry.path()).unwrap()),
        }
    }
    found
}

fn json_rows(folder: &Path, manifest: &Manifest) -> Vec<serde_json::Value> {
    let lines = contents(folder, manifest).concat();
    String::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn column(rows: &[serde_json::Value], name: &str) -> Vec<i64> {
    rows.iter().map(|row| row[name].as_i64().unwrap()).collect()
}

#[test]
fn tfrecord_reads_back_every_dtype_and_shape() {
    for codec in [Codec::None, Codec::Gzip, Codec::Zlib] {
        let folder = tempfile::tempdir().unwrap();
        let (columns, rows) = everything(0, 50);
        let builder = Writer::builder(Output::TfRecord).rows_per_shard(20).compression(codec);
        let (manifest, _) = write_all(builder.create(folder.path(), columns.clone()).unwrap(), &rows, 7).unwrap();
        assert_eq!(manifest.rows, 50);
        manifest.verify(folder.path()).unwrap();
        let dataset =
            crate::Dataset::open(folder.path().to_str().unwrap()).unwrap().columns(manifest.columns).batch(50);
        let indexes = tempfile::tempdir().unwrap();
        let mut loader = dataset.loader().index_dir(indexes.path()).build().unwrap();
        let batch = loader.epoch(0).next().unwrap().unwrap();
        assert_eq!(batch.values::<i64>("i64").unwrap()[3], 3 * 1_000_003 - 7);
        assert_eq!(batch.values::<i32>("i32").unwrap()[4], -4);
        assert_eq!(batch.values::<i16>("i16").unwrap()[49], 49);
        assert_eq!(batch.values::<u8>("u8").unwrap()[49], 49);
        assert_eq!(batch.values::<half::f16>("f16").unwrap()[3], half::f16::from_f32(0.75));
        assert_eq!(batch.values::<f32>("f32").unwrap()[9], 0.1);
        assert_eq!(batch.values::<i64>("pair").unwrap(), (0..200).collect::<Vec<_>>());
        // The index beside the shards was taken: none had to be made.
        assert_eq!(std::fs::read_dir(indexes.path()).unwrap().count(), 0, "{codec}");
    }
}

#[test]
fn sequences_are_written_as_feature_lists() {
    let folder = tempfile::tempdir().unwrap();
    let columns = vec![int64("id"), float32("speed").in_sequence()];
    let speed = list(Arc::new(Float32Array::from(vec![0.5, 1.5, 2.5])), vec![2, 1]);
    let rows =
        RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef), ("speed", speed)]);
    let writer = Writer::builder(Output::TfRecord).create(folder.path(), columns.clone()).unwrap();
    write_all(writer, &rows.unwrap(), 1).unwrap();
    let stored = std::fs::read(folder.path().join("data-00000.tfrecord")).unwrap();
    let length = u64::from_le_bytes(stored[..8].try_into().unwrap()) as usize;
    let first = crate::format::example::SequenceExample::from_bytes(&stored[12..12 + length]).unwrap();
    assert_eq!(first.feature_lists.unwrap().feature_list["speed"].feature.len(), 2);
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_reads_back_with_indexes_and_statistics() {
    use ::parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
    use ::parquet::file::metadata::PageIndexPolicy;
    let (mut columns, mut rows) = everything(0, 3000);
    columns.push(Column::new("f64", Dtype::F64, crate::Shape::Scalar));
    let mut arrays = rows.columns().to_vec();
    arrays.push(Arc::new(Float64Array::from_iter_values((0..3000).map(|i| f64::from(i) / 7.0))));
    rows = RecordBatch::try_new(crate::schema::arrow_schema(&columns), arrays).unwrap();
    for codec in [Codec::Zstd, Codec::Snappy, Codec::Gzip, Codec::Lz4, Codec::Brotli, Codec::None] {
        let folder = tempfile::tempdir().unwrap();
        let builder = Writer::builder(Output::Parquet)
            .rows_per_shard(2000)
            .expected_rows(3000)
            .compression(codec)
            .row_group_bytes(100_000)
            .bloom_filters(["i64"]);
        let (manifest, _) = write_all(builder.create(folder.path(), columns.clone()).unwrap(), &rows, 333).unwrap();
        manifest.verify(folder.path()).unwrap();
        let names: Vec<&str> = manifest.shards.iter().map(|shard| &*shard.name).collect();
        assert_eq!(names, ["data-00000-of-00002.parquet", "data-00001-of-00002.parquet"]);
        let mut read = Vec::new();
        for name in names {
            let file = std::fs::File::open(folder.path().join(name)).unwrap();
            let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
            let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).unwrap();
            let metadata = reader.metadata();
            assert!(
                metadata.num_row_groups() > 1 && metadata.offset_index().is_some() && metadata.column_index().is_some()
            );
            let group = metadata.row_group(0).column(0);
            assert!(group.bloom_filter_offset().is_some() && group.statistics().is_some());
            read.extend(reader.build().unwrap().map(Result::unwrap));
        }
        let read = arrow::compute::concat_batches(&rows.schema(), &read).unwrap();
        assert_eq!(read.columns(), rows.columns(), "{codec}");
    }
}

#[cfg(feature = "parquet")]
#[test]
fn text_is_marked_in_parquet_and_what_is_no_text_names_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let (columns, rows) = everything(0, 50);
    let builder = |text: &[&str]| Writer::builder(Output::Parquet).text_columns(text.iter().copied());
    let dest = folder.path().join("a");
    write_all(builder(&["text", "words"]).create(&dest, columns.clone()).unwrap(), &rows, 50).unwrap();
    let file = bytes::Bytes::from(files(&dest)["data-00000.parquet"].clone());
    let reader = ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let schema = reader.parquet_schema().clone();
    let is_text = |name: &str| {
        let column = schema.columns().iter().find(|column| column.path().parts()[0] == name).unwrap().clone();
        column.logical_type_ref() == Some(&::parquet::basic::LogicalType::String)
    };
    assert_eq!(["text", "words", "raw"].map(is_text), [true, true, false]);
    let read = reader.build().unwrap().next().unwrap().unwrap();
    assert_eq!(
        cast(read.column_by_name("text").unwrap(), &DataType::BinaryView).unwrap().as_ref(),
        rows["text"].as_ref()
    );
    let error = write_all(builder(&["raw"]).create(folder.path().join("b"), columns.clone()).unwrap(), &rows, 50);
    let error = error.unwrap_err();
    assert_eq!((error.place().record, error.place().column.as_deref()), (Some(0), Some("raw")));
    assert!(builder(&["i64"]).create(folder.path().join("c"), columns).is_err());
}

#[cfg(feature = "parquet")]
#[test]
fn row_groups_and_pages_do_not_depend_on_how_rows_came() {
    let folder = tempfile::tempdir().unwrap();
    let (columns, rows) = everything(0, 2000);
    let mut written = Vec::new();
    for (to, batch, threads) in [("a", 2000, 1), ("b", 11, 3)] {
        let builder = Writer::builder(Output::Parquet).row_group_bytes(50_000).threads(threads);
        let dest = folder.path().join(to);
        write_all(builder.create(&dest, columns.clone()).unwrap(), &rows, batch).unwrap();
        written.push(files(&dest));
    }
    let groups = |files: &BTreeMap<String, Vec<u8>>| {
        let bytes = bytes::Bytes::from(files["data-00000.parquet"].clone());
        let reader = ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect::<Vec<_>>()
    };
    assert!(groups(&written[0]).len() > 3);
    assert!(written[0] == written[1], "pages differ");
}

#[cfg(feature = "tar")]
#[test]
fn archives_hold_a_member_a_column_and_nothing_of_when_or_who() {
    let codecs = [Codec::None, Codec::Gzip, Codec::Zstd];
    for codec in codecs.into_iter().filter(|codec| Output::Tar.packing(Some(*codec), None).is_ok()) {
        let folder = tempfile::tempdir().unwrap();
        let (columns, rows) = everything(0, 10);
        let builder = Writer::builder(Output::Tar).rows_per_shard(6).compression(codec);
        let (manifest, _) = write_all(builder.create(folder.path(), columns.clone()).unwrap(), &rows, 4).unwrap();
        let mut members = BTreeMap::new();
        for content in contents(folder.path(), &manifest) {
            assert_eq!(content.len() % 512, 0);
            for entry in ::tar::Archive::new(&content[..]).entries().unwrap() {
                let mut entry = entry.unwrap();
                assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
                let path = entry.path().unwrap().to_str().unwrap().to_owned();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                members.insert(path, bytes);
            }
        }
        assert_eq!(members.len(), 10 * columns.len());
        let member = |name: &str| std::str::from_utf8(&members[name]).unwrap();
        assert_eq!(member("000000003.i64"), "3000002");
        assert_eq!(member("000000009.f32"), "0.1");
        assert_eq!(member("000000001.pair"), "[[4,5],[6,7]]");
        assert_eq!(member("000000002.words"), "[\"w1\",\"w2\"]");
        assert_eq!(members["000000007.raw"], [255, 254, 7]);
        assert_eq!(member("000000004.ragged"), "[]");
    }
}

#[cfg(feature = "tar")]
#[test]
fn archives_take_keys_from_their_column_and_refuse_names_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let keyed = |keys: [&str; 2]| {
        let keys = arrow::array::StringArray::from_iter_values(keys);
        let images = BinaryViewArray::from_iter_values(["a", "b"]);
        RecordBatch::try_from_iter([("__key__", Arc::new(keys) as ArrayRef), ("jpg", Arc::new(images) as ArrayRef)])
            .unwrap()
    };
    let create =
        |to: &str| Writer::builder(Output::Tar).create(folder.path().join(to), [bytes("__key__"), bytes("jpg")]);
    write_all(create("a").unwrap(), &keyed(["n01/x", "n02/y"]), 2).unwrap();
    let stored = std::fs::read(folder.path().join("a/data-00000.tar")).unwrap();
    let mut archive = ::tar::Archive::new(&stored[..]);
    let paths = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned());
    assert_eq!(paths.collect::<Vec<_>>(), ["n01/x.jpg", "n02/y.jpg"]);
    let error = write_all(create("b").unwrap(), &keyed(["n01/x", "../y"]), 2).unwrap_err();
    assert_eq!((error.place().record, error.place().column.as_deref()), (Some(1), Some("__key__")));
    let error = Writer::builder(Output::Tar)
        .create(folder.path().join("c"), [bytes("image/encoded"), int64("image/class/label"), int64("ok")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("--rename image/encoded=image.encoded,image/class/label=image.class.label"), "{error}");
}

#[test]
fn lines_of_json_hold_the_same_values_and_bytes_that_are_no_text_as_data_uris() {
    for codec in [Codec::None, Codec::Gzip, Codec::Zstd] {
        if codec == Codec::Zstd && !cfg!(feature = "zstd") {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let (columns, rows) = everything(0, 30);
        let builder = Writer::builder(Output::JsonLines).rows_per_shard(12).compression(codec);
        let (manifest, _) = write_all(builder.create(folder.path(), columns.clone()).unwrap(), &rows, 30).unwrap();
        let rows = json_rows(folder.path(), &manifest);
        assert_eq!(rows.len(), 30);
        let row = &rows[3];
        assert_eq!(row["i64"], 3_000_002);
        assert_eq!(row["text"], "row 3 \"quoted\" \n ü");
        assert_eq!(row["raw"], "data:;base64,//4D");
        assert_eq!((&row["flag"], &row["f16"], &row["f32"]), (&true.into(), &0.75.into(), &0.25.into()));
        assert_eq!(row["pair"], serde_json::json!([[12, 13], [14, 15]]));
        assert_eq!(row["words"].as_array().unwrap().len(), 3);
        let keys: Vec<&str> = columns.iter().map(|column| column.name().as_ref()).collect();
        let line = String::from_utf8(contents(folder.path(), &manifest).concat()).unwrap();
        let places: Vec<usize> = keys.iter().map(|key| line.find(&format!("\"{key}\":")).unwrap()).collect();
        assert!(places.is_sorted());
    }
}

#[test]
fn images_lie_in_folders_of_their_labels() {
    let folder = tempfile::tempdir().unwrap();
    let golden =
        |name: &str| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images").join(name)).unwrap();
    let images = BinaryViewArray::from_iter_values([golden("rgb8.png"), golden("lossy.webp"), golden("gray8.png")]);
    let columns = [bytes("image"), bytes("label")];
    let rows = |labels: [&str; 3]| {
        let labels = BinaryViewArray::from_iter_values(labels);
        RecordBatch::try_from_iter([
            ("image", Arc::new(images.clone()) as ArrayRef),
            ("label", Arc::new(labels) as ArrayRef),
        ])
        .unwrap()
    };
    let dest = folder.path().join("a");
    let builder = || Writer::builder(Output::Images).rows_per_shard(2);
    let (manifest, _) =
        write_all(builder().create(&dest, columns.clone()).unwrap(), &rows(["dog", "cat", "dog"]), 1).unwrap();
    let names: Vec<String> = files(&dest).into_keys().collect();
    assert_eq!(names, ["_manifest.json", "cat/00000001.webp", "dog/00000000.png", "dog/00000002.png"]);
    assert_eq!(files(&dest)["cat/00000001.webp"], golden("lossy.webp"));
    assert_eq!(
        (manifest.labels, &*manifest.shards[0].name),
        (vec!["cat".to_owned(), "dog".to_owned()], "00000000-00000001")
    );
    for label in ["../x", ".hidden", "", "a/b"] {
        let dest = folder.path().join("b");
        let writer = builder().overwrite(true).create(&dest, columns.clone()).unwrap();
        let error = write_all(writer, &rows(["dog", label, "dog"]), 3).unwrap_err();
        assert_eq!((error.kind(), error.place().record), (ErrorKind::Schema, Some(1)), "{label}");
    }
    // Starting over takes away what was written, and nothing else.
    std::fs::write(dest.join("dog/notes.txt"), "mine").unwrap();
    let writer = builder().overwrite(true).create(&dest, columns).unwrap();
    write_all(writer, &rows(["bird", "bird", "bird"]), 3).unwrap();
    let names: Vec<String> = files(&dest).into_keys().collect();
    assert_eq!(
        names,
        ["_manifest.json", "bird/00000000.png", "bird/00000001.webp", "bird/00000002.png", "dog/notes.txt"]
    );
}

#[test]
fn text_of_any_kind_is_taken_and_what_is_no_such_column_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::builder(Output::JsonLines).create(folder.path(), [bytes("text"), int64("n")]).unwrap();
    let text = |array: ArrayRef| {
        RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1])) as ArrayRef), ("text", array)])
    };
    writer.write(&text(Arc::new(arrow::array::LargeStringArray::from(vec!["a"]))).unwrap()).unwrap();
    writer.write(&text(Arc::new(arrow::array::BinaryArray::from_vec(vec![b"b"]))).unwrap()).unwrap();
    let error = writer.write(&text(Arc::new(Int64Array::from(vec![1]))).unwrap()).unwrap_err();
    assert_eq!((error.kind(), error.place().column.as_deref()), (ErrorKind::Schema, Some("text")));
    // It stays broken off: rows are missing.
    assert!(writer.write(&numbers(0..1)).is_err() && writer.finish().is_err());
    let mut writer =
        Writer::builder(Output::JsonLines).resume(true).create(folder.path(), [bytes("text"), int64("n")]).unwrap();
    let nulls = RecordBatch::try_from_iter([
        ("n", Arc::new(Int64Array::from(vec![None, Some(1)])) as ArrayRef),
        ("text", Arc::new(BinaryViewArray::from_iter_values(["a", "b"])) as ArrayRef),
    ]);
    assert!(writer.write(&nulls.unwrap()).unwrap_err().to_string().contains("1 values are null"));
}

#[test]
fn values_that_a_format_cannot_hold_name_their_row() {
    let folder = tempfile::tempdir().unwrap();
    let nan =
        RecordBatch::try_from_iter([("x", Arc::new(Float32Array::from(vec![1.0, f32::NAN])) as ArrayRef)]).unwrap();
    let writer = Writer::builder(Output::JsonLines).create(folder.path(), [float32("x")]).unwrap();
    let error = write_all(writer, &nan, 1).unwrap_err();
    assert_eq!((error.place().record, error.place().column.as_deref()), (Some(1), Some("x")));
    let double = Column::new("x", Dtype::F64, crate::Shape::Scalar);
    let error = Writer::builder(Output::TfRecord).create(folder.path().join("b"), [double.clone()]).unwrap_err();
    assert!(error.to_string().contains("--narrow") && error.place().column.as_deref() == Some("x"), "{error}");
    let writer = Writer::builder(Output::TfRecord).narrow(true).create(folder.path().join("b"), [double]).unwrap();
    let large = Arc::new(Float64Array::from(vec![f64::INFINITY, f64::NAN, 1e300])) as ArrayRef;
    let error = write_all(writer, &RecordBatch::try_from_iter([("x", large)]).unwrap(), 3).unwrap_err();
    assert_eq!((error.place().record, error.place().column.as_deref()), (Some(2), Some("x")));
    assert!(error.to_string().contains("1e300 does not fit f32"), "{error}");
}

#[test]
fn whole_data_sets_and_those_of_others_are_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let builder = || Writer::builder(Output::JsonLines).rows_per_shard(2).source("a");
    let refused = |builder: WriterBuilder, what: &str| {
        let error = builder.create(folder.path(), [int64("n")]).unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains(what), "{error}");
    };
    std::fs::write(folder.path().join("data-00007-of-00009.jsonl"), "mine").unwrap();
    refused(builder(), "`data-00007-of-00009.jsonl`");
    std::fs::remove_file(folder.path().join("data-00007-of-00009.jsonl")).unwrap();

    let mut writer = builder().create(folder.path(), [int64("n")]).unwrap();
    refused(builder(), "another process");
    writer.write(&numbers(0..5)).unwrap();
    drop(writer);
    refused(builder(), ".resume(true)");
    refused(builder().rows_per_shard(3).resume(true), "rows_per_shard differ");
    refused(builder().source("b").resume(true), "source differ");
    refused(builder().compression(Codec::Gzip).resume(true), "compression");
    let writer = builder().resume(true).create(folder.path(), [int64("n")]).unwrap();
    write_all(writer, &numbers(0..5), 5).unwrap();
    refused(builder().resume(true), "whole data set");
    let error = Writer::builder(Output::JsonLines).create(folder.path(), [int64("n")]).unwrap_err();
    assert!(error.to_string().contains("--force"));
    let writer = builder().rows_per_shard(5).overwrite(true).create(folder.path(), [int64("n")]).unwrap();
    write_all(writer, &numbers(0..5), 5).unwrap();
    assert_eq!(files(folder.path()).len(), 2);
}

#[test]
fn what_is_asked_for_last_does_not_undo_what_was_before() {
    let folder = tempfile::tempdir().unwrap();
    let builder = || Writer::builder(Output::JsonLines).rows_per_shard(2);
    let mut writer = builder().create(folder.path(), [int64("n")]).unwrap();
    writer.write(&numbers(0..5)).unwrap();
    drop(writer);
    let go_on = builder().resume(true).overwrite(false).create(folder.path(), [int64("n")]);
    write_all(go_on.unwrap(), &numbers(0..5), 5).unwrap();
    for start_over in [builder().overwrite(true).resume(false), builder().overwrite(true).resume(true)] {
        assert_eq!(start_over.create(folder.path(), [int64("n")]).unwrap().resume_at(), 0);
    }
}

#[test]
fn numbers_that_json_has_none_of_stand_in_for_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    for missing in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.5] {
        let columns = [int64("n"), float32("x").or(crate::Missing::Float(missing))];
        let builder = || Writer::builder(Output::JsonLines).rows_per_shard(2).overwrite(true);
        let rows = RecordBatch::try_from_iter([
            ("n", Arc::new(Int64Array::from_iter_values(0..5)) as ArrayRef),
            ("x", Arc::new(Float32Array::from(vec![1.0; 5])) as ArrayRef),
        ])
        .unwrap();
        let mut writer = builder().create(folder.path(), columns.clone()).unwrap();
        writer.write(&rows).unwrap();
        drop(writer);
        let go_on = builder().overwrite(false).resume(true).create(folder.path(), columns.clone()).unwrap();
        write_all(go_on, &rows, 5).unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap().columns, columns, "{missing}");
    }
}

#[test]
fn shards_that_nobody_knows_of_are_not_left_among_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let builder = || Writer::builder(Output::JsonLines).rows_per_shard(1);
    write_all(builder().create(folder.path(), [int64("n")]).unwrap(), &numbers(0..5), 5).unwrap();
    for file in ["_manifest.json", ".forebay-writer.journal"] {
        let kept = std::fs::rename(folder.path().join("_manifest.json"), folder.path().join("kept"));
        kept.unwrap();
        std::fs::write(folder.path().join(file), "{\"version\": 9").unwrap();
        let error = builder().overwrite(true).create(folder.path(), [int64("n")]).unwrap_err();
        assert!(error.to_string().contains(file) && error.to_string().contains("remove it by hand"), "{error}");
        assert_eq!(files(folder.path()).keys().filter(|name| name.starts_with("data-")).count(), 5);
        std::fs::remove_file(folder.path().join(file)).unwrap();
        std::fs::rename(folder.path().join("kept"), folder.path().join("_manifest.json")).unwrap();
    }
}

#[test]
fn what_was_interrupted_leaves_no_shard_among_new_ones() {
    let builder = || Writer::builder(Output::TfRecord).rows_per_shard(10);
    let interrupted = |folder: &Path| {
        let mut writer = builder().create(folder, [int64("n")]).unwrap();
        writer.write(&numbers(0..50)).unwrap();
        writer.pipeline.finish().unwrap();
    };
    let shards = |folder: &Path| {
        let names = files(folder).into_keys().filter(|name| name.starts_with("data-"));
        (names.collect::<Vec<_>>(), std::fs::read_dir(folder.join("_index")).unwrap().count())
    };
    let anew = |folder: &Path| {
        let writer = builder().rows_per_shard(50).overwrite(true).create(folder, [int64("n")]).unwrap();
        write_all(writer, &numbers(0..50), 50).unwrap();
        assert_eq!(shards(folder), (vec!["data-00000.tfrecord".to_owned()], 1));
    };
    // Of shards behind a gap nothing stays when a run goes on before the gap.
    let folder = tempfile::tempdir().unwrap();
    interrupted(folder.path());
    std::fs::write(folder.path().join("data-00001.tfrecord"), "cut off").unwrap();
    drop(builder().resume(true).create(folder.path(), [int64("n")]).unwrap());
    assert_eq!(shards(folder.path()), (vec!["data-00000.tfrecord".to_owned()], 1));
    anew(folder.path());
    // Killed between a shard's name and its line.
    let folder = tempfile::tempdir().unwrap();
    interrupted(folder.path());
    let path = folder.path().join(".forebay-writer.journal");
    let journal = std::fs::read_to_string(&path).unwrap();
    let lines: String =
        journal.lines().filter(|line| !line.contains("\"shard\"")).map(|line| line.to_owned() + "\n").collect();
    assert!(lines.len() < journal.len());
    std::fs::write(&path, lines).unwrap();
    assert_eq!(shards(folder.path()).0.len(), 5);
    anew(folder.path());
}

#[test]
fn a_manifest_that_names_files_elsewhere_removes_nothing_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let dest = folder.path().join("dest");
    let builder = || Writer::builder(Output::JsonLines);
    write_all(builder().create(&dest, [int64("n")]).unwrap(), &numbers(0..5), 5).unwrap();
    let precious = folder.path().join("data-00000.jsonl");
    std::fs::write(&precious, "mine").unwrap();
    let manifest = std::fs::read_to_string(dest.join("_manifest.json")).unwrap();
    std::fs::write(dest.join("_manifest.json"), manifest.replace("\"data-00000", "\"../data-00000")).unwrap();
    builder().overwrite(true).create(&dest, [int64("n")]).unwrap();
    assert!(precious.exists());
}

#[test]
fn interrupted_behind_any_shard_it_goes_on_to_the_same_files() {
    let formats = [Output::TfRecord, Output::Parquet, Output::Tar, Output::JsonLines];
    for output in formats.into_iter().filter(|output| output.packing(None, None).is_ok()) {
        let folder = tempfile::tempdir().unwrap();
        let builder = || Writer::builder(output).rows_per_shard(10).threads(2);
        let whole = folder.path().join("whole");
        write_all(builder().create(&whole, [int64("n")]).unwrap(), &numbers(0..95), 10).unwrap();
        let expected = files(&whole);
        for interrupted in 0..9 {
            let dest = folder.path().join(format!("{interrupted}"));
            let mut writer = builder().create(&dest, [int64("n")]).unwrap();
            for batch in 0..=interrupted {
                writer.write(&numbers(batch * 10..batch * 10 + 10)).unwrap();
            }
            // Until some shards are whole; the rest is given up in the middle.
            while writer.folder.progress().0 < interrupted as u64 {
                std::thread::yield_now();
                writer.pipeline.admit(0).unwrap();
                writer.pipeline.release(0);
            }
            drop(writer);
            let writer = builder().resume(true).create(&dest, [int64("n")]).unwrap();
            assert!(writer.shards_before() >= interrupted as u64 && writer.resume_at() == 10 * writer.shards_before());
            write_all(writer, &numbers(0..95), 7).unwrap();
            assert!(files(&dest) == expected, "{output}, {interrupted}");
        }
    }
}

#[test]
fn a_shard_that_is_gone_or_cut_off_is_written_again_with_those_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let builder = || Writer::builder(Output::JsonLines).rows_per_shard(10);
    let mut writer = builder().create(folder.path(), [int64("n")]).unwrap();
    writer.write(&numbers(0..50)).unwrap();
    writer.pipeline.finish().unwrap();
    drop(writer);
    std::fs::write(folder.path().join("data-00002.jsonl"), "cut off").unwrap();
    let writer = builder().resume(true).create(folder.path(), [int64("n")]).unwrap();
    assert_eq!((writer.shards_before(), writer.resume_at()), (2, 20));
    let (manifest, _) = write_all(writer, &numbers(0..50), 9).unwrap();
    assert_eq!(column(&json_rows(folder.path(), &manifest), "n"), (0..50).collect::<Vec<_>>());
    manifest.verify(folder.path()).unwrap();
    std::fs::write(folder.path().join("data-00001.jsonl"), "x").unwrap();
    let error = manifest.verify(folder.path()).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("data-00001.jsonl"), "{error}");
}

#[test]
fn a_shard_that_cannot_be_written_ends_it_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::builder(Output::JsonLines).rows_per_shard(10).create(folder.path(), [int64("n")]).unwrap();
    std::fs::create_dir(folder.path().join("data-00001.jsonl")).unwrap();
    let written = (0..100).try_for_each(|batch| writer.write(&numbers(batch * 10..batch * 10 + 10)));
    let error = written.and_then(|()| writer.finish().map(|_| ())).unwrap_err();
    assert!(error.to_string().contains("data-00001.jsonl"), "{error}");
    assert!(!folder.path().join("_manifest.json").exists());
}

#[test]
fn shuffled_rows_are_the_same_rows_in_an_order_of_the_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (columns, rows) = everything(0, 3000);
    let mut orders = Vec::new();
    for (to, seed, threads, budget, batch) in
        [("a", 7, 1, 1 << 30, 3000), ("b", 7, 3, 20_000, 17), ("c", 7, 2, 300_000, 1000), ("d", 8, 2, 1 << 20, 3000)]
    {
        let dest = folder.path().join(to);
        let builder = Writer::builder(Output::JsonLines)
            .rows_per_shard(700)
            .shuffle(seed)
            .threads(threads)
            .budget(Budget::of_bytes(budget));
        let (manifest, peak) = write_all(builder.create(&dest, columns.clone()).unwrap(), &rows, batch).unwrap();
        assert!(!dest.join(folder::SHUFFLE).exists());
        // What encoding adds: chunks of a few rows here, for each of the chunks that threads may have.
        assert!(budget > 100_000 || peak < budget + 100_000, "{peak} of {budget}");
        orders.push(json_rows(&dest, &manifest));
    }
    assert!(orders[0] == orders[1] && orders[0] == orders[2] && orders[0] != orders[3]);
    let plain = folder.path().join("plain");
    let (manifest, _) =
        write_all(Writer::builder(Output::JsonLines).create(&plain, columns).unwrap(), &rows, 100).unwrap();
    let mut expected = json_rows(&plain, &manifest);
    assert_ne!(orders[0], expected);
    for rows in [&mut orders[0], &mut expected] {
        rows.sort_by_key(|row| row["i64"].as_i64());
    }
    assert_eq!(orders[0], expected);
}

#[test]
fn a_shuffle_that_was_interrupted_passes_over_what_it_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let builder = || Writer::builder(Output::JsonLines).rows_per_shard(100).shuffle(3).budget(Budget::of_bytes(50_000));
    let (whole, dest) = (folder.path().join("whole"), folder.path().join("dest"));
    write_all(builder().create(&whole, [int64("n")]).unwrap(), &numbers(0..2000), 90).unwrap();
    write_all(builder().create(&dest, [int64("n")]).unwrap(), &numbers(0..2000), 90).unwrap();
    // As it is when it is interrupted behind five shards.
    let manifest = Manifest::read(&dest).unwrap();
    let mut writer = builder().overwrite(true).create(&dest, [int64("n")]).unwrap();
    let rows = json_rows(&whole, &manifest);
    let first: Vec<i64> = column(&rows[..500], "n");
    let batch = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(first)) as ArrayRef)]).unwrap();
    push(&mut writer.pipeline, &writer.columns, &batch, Consumed::From(0)).unwrap();
    writer.pipeline.finish().unwrap();
    drop(writer);
    let writer = builder().resume(true).create(&dest, [int64("n")]).unwrap();
    assert_eq!((writer.shards_before(), writer.resume_at()), (5, 0));
    write_all(writer, &numbers(0..2000), 1000).unwrap();
    assert!(files(&dest) == files(&whole));
}

#[test]
fn bytes_in_flight_stay_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let budget = 3 << 20;
    let builder =
        Writer::builder(Output::TfRecord).bytes_per_shard(1 << 20).threads(2).budget(Budget::of_bytes(budget));
    let mut writer = builder.create(folder.path(), [bytes("x")]).unwrap();
    for _ in 0..40 {
        let rows = BinaryViewArray::from_iter_values((0..10).map(|i| vec![i; 100_000]));
        writer.write(&RecordBatch::try_from_iter([("x", Arc::new(rows) as ArrayRef)]).unwrap()).unwrap();
    }
    let (manifest, peak) = writer.finish_counted().unwrap();
    // Framing and the message add less than 100 bytes a row.
    assert!(peak <= budget + 10_000 && peak > 1 << 20, "{peak}");
    assert_eq!(manifest.rows, 400);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn shards_have_the_stated_sizes(
        lengths in proptest::collection::vec(0usize..3000, 1..80), rows_each in 1u64..30, bytes_each in 2000u64..20_000,
        by in 0..3u8, output in 0..3usize, batch in 1usize..40,
    ) {
        let output = [Output::TfRecord, Output::JsonLines, Output::Tar][output];
        prop_assume!(output.packing(None, None).is_ok());
        let folder = tempfile::tempdir().unwrap();
        let values = BinaryViewArray::from_iter_values(lengths.iter().map(|length| vec![b'x'; *length]));
        let rows = RecordBatch::try_from_iter([("x", Arc::new(values) as ArrayRef)]).unwrap();
        let mut builder = Writer::builder(output).threads(2);
        builder = if by != 1 { builder.rows_per_shard(rows_each) } else { builder };
        builder = if by != 0 { builder.bytes_per_shard(bytes_each) } else { builder };
        let (manifest, _) = write_all(builder.create(folder.path(), [bytes("x")]).unwrap(), &rows, batch).unwrap();
        prop_assert_eq!(manifest.rows, lengths.len() as u64);
        for (number, shard) in manifest.shards.iter().enumerate() {
            let is_last = number + 1 == manifest.shards.len();
            let size = std::fs::metadata(folder.path().join(&shard.name)).unwrap().len();
            prop_assert_eq!(size, shard.bytes);
            prop_assert!(shard.rows > 0);
            match by {
                0 => prop_assert!(is_last || shard.rows == rows_each),
                1 => prop_assert!(shard.bytes <= bytes_each || shard.rows == 1),
                _ => prop_assert!(shard.rows <= rows_each && (shard.bytes <= bytes_each || shard.rows == 1)),
            }
        }
        if by == 1 {
            // No shard could have taken the first row of the next: a row takes at most its length and so much around it.
            let around = if output == Output::Tar { 1024 } else { 60 };
            let mut at = 0;
            for pair in manifest.shards.windows(2) {
                at += pair[0].rows as usize;
                prop_assert!(pair[0].bytes + lengths[at] as u64 + around > bytes_each);
            }
        }
    }
}
