//! Tests conversions row by row, in this process.

use std::collections::BTreeSet;
use std::path::Path;

use super::tests::{convert, examples, int, payloads, pictures, record_shards, shards, text};
use super::*;
use crate::format::example::Example;
use crate::format::tfrecord::Writer as RecordWriter;
use crate::writer::Manifest;

/// Creates shards of tf.Examples with an image, a label, floats and words.
fn example_shards(folder: &Path, shards: usize, records: usize) -> Vec<Example> {
    std::fs::create_dir_all(folder).unwrap();
    let golden = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images/rgb8.png")).unwrap();
    let mut all = Vec::new();
    for shard in 0..shards {
        let mut writer = RecordWriter::new(Vec::new(), [Compression::None, Compression::Gzip][shard % 2]);
        for record in 0..records {
            let number = (shard * records + record) as i64;
            let example = Example::new()
                .with_bytes("image", [&golden])
                .with_int64("label", [number % 3])
                .with_int64("number", [number])
                .with_float32("box", [0.1, 0.2, 0.3, number as f32])
                .with_bytes("words", (0..1 + number % 3).map(|i| format!("word {i}")));
            writer.write(&example.encode()).unwrap();
            all.push(example);
        }
        std::fs::write(folder.join(format!("in-{shard}.tfrecord")), writer.finish().unwrap()).unwrap();
    }
    all
}

fn numbers(folder: &Path) -> Vec<i64> {
    examples(folder).iter().map(|example| int(example, "number")).collect()
}

fn json_rows(folder: &Path) -> Vec<serde_json::Value> {
    let manifest = Manifest::read(folder).unwrap();
    let text = manifest.shards.iter().map(|shard| std::fs::read_to_string(folder.join(&shard.name)).unwrap());
    text.collect::<String>().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
#[cfg(feature = "parquet")]
fn there_and_back_through_parquet_gives_the_same_records() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let all = example_shards(&at("src"), 3, 40);
    convert(&at("src"), &at("parquet"), &["--to", "parquet", "--rows-per-shard", "50", "--bloom", "number"]).unwrap();
    let manifest = Manifest::read(at("parquet")).unwrap();
    manifest.verify(at("parquet")).unwrap();
    let rows: Vec<u64> = manifest.shards.iter().map(|shard| shard.rows).collect();
    assert_eq!((rows, &*manifest.shards[2].name), (vec![50, 50, 20], "data-00002.parquet"));
    convert(&at("parquet"), &at("back"), &["--shard-bytes", "20000", "--compression", "gzip", "--level", "1"]).unwrap();
    assert!(examples(&at("back")) == all);
    // And on to a third: Parquet to Parquet, some columns under other names.
    let options = ["--to", "parquet", "--columns", "number,words", "--rename", "words=text", "--compression", "snappy"];
    convert(&at("parquet"), &at("some"), &options).unwrap();
    let names: Vec<String> =
        Manifest::read(at("some")).unwrap().columns.iter().map(|column| column.name().to_string()).collect();
    assert_eq!(names, ["number", "text"]);
    convert(&at("some"), &at("lines"), &["--to", "jsonl"]).unwrap();
    let lines = json_rows(&at("lines"));
    assert_eq!((lines.len(), &lines[5]["number"], lines[5]["text"].as_array().unwrap().len()), (120, &5.into(), 3));
}

#[test]
#[cfg(feature = "text")]
fn codes_behind_numbers_are_refused_whatever_columns_are_picked() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let rows: String = (0..300).map(|row| format!("{},{row}\n", 10_000 + row)).collect();
    std::fs::create_dir(at("src")).unwrap();
    std::fs::write(at("src/a.csv"), format!("zip,id\n{rows}00501,300\n")).unwrap();
    for picked in [&[][..], &["--columns", "zip"], &["--columns", "zip,id"]] {
        let error = convert(&at("src"), &at("dest"), &[&["--to", "jsonl", "--force"], picked].concat()).unwrap_err();
        assert_eq!((error.place().record, error.place().column.as_deref()), (Some(300), Some("zip")), "{error}");
    }
    convert(&at("src"), &at("dest"), &["--to", "jsonl", "--force", "--columns", "id"]).unwrap();
}

#[test]
fn every_format_is_written_from_records() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    example_shards(&at("src"), 1, 10);
    for (to, more, files) in [
        ("tfrecord", &["--columns", "image,label,number"][..], 1),
        ("jsonl", &[], 1),
        #[cfg(feature = "tar")]
        ("tar", &["--rename", "image=png"], 1),
        ("images", &[], 3),
    ] {
        convert(&at("src"), &at(to), &[&["--to", to], more].concat()).unwrap();
        let found = std::fs::read_dir(at(to)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(found.filter(|name| !name.starts_with(['_', '.'])).count(), files, "{to}");
        assert_eq!(Manifest::read(at(to)).unwrap().rows, 10);
    }
    assert!(examples(&at("tfrecord"))[3].get("words").is_none());
    assert_eq!(json_rows(&at("jsonl"))[4]["box"], serde_json::json!([0.1, 0.2, 0.3, 4.0]));
    assert!(at("images/2/00000005.png").exists());
    // Folders of images are read back.
    convert(&at("images"), &at("again"), &["--shard-records", "100"]).unwrap();
    let labels: Vec<String> = examples(&at("again")).iter().map(|example| text(example, "image/class/text")).collect();
    assert_eq!(labels, ["0", "0", "0", "0", "1", "1", "1", "2", "2", "2"]);
}

#[test]
fn images_become_rows_of_any_format() {
    let (folder, src, dest) = pictures(&["cat", "dog"], 20);
    convert(&src, &dest, &["--to", "jsonl", "--shuffle", "4", "--rows-per-shard", "15", "--threads", "3"]).unwrap();
    let rows = json_rows(&dest);
    let manifest = Manifest::read(&dest).unwrap();
    assert_eq!((rows.len(), manifest.shards.len()), (40, 3));
    assert!(rows[0]["image/encoded"].as_str().unwrap().starts_with("data:;base64,"));
    // The same order as to TFRecord.
    convert(&src, &folder.path().join("records"), &["--shuffle", "4"]).unwrap();
    let names: Vec<String> =
        examples(&folder.path().join("records")).iter().map(|example| text(example, "image/filename")).collect();
    assert_eq!(rows.iter().map(|row| row["image/filename"].as_str().unwrap()).collect::<Vec<_>>(), names);
    convert(&src, &folder.path().join("small"), &["--to", "images", "--resize", "8", "--encode", "png"]).unwrap();
    let image = std::fs::read(folder.path().join("small/dog/00000039.png")).unwrap();
    let info = crate::transform::image::probe(&image).unwrap();
    assert_eq!(info.width.min(info.height), 8);
}

#[test]
#[cfg(feature = "text")]
fn bytes_come_back_from_json_lines_that_were_written_from_json_lines() {
    let (folder, src, direct) = pictures(&["cat", "dog"], 6);
    let at = |name: &str| folder.path().join(name);
    convert(&src, &direct, &[]).unwrap();
    convert(&src, &at("lines"), &["--to", "jsonl"]).unwrap();
    convert(&at("lines"), &at("again"), &["--to", "jsonl"]).unwrap();
    convert(&at("again"), &at("back"), &[]).unwrap();
    assert!(payloads(&at("back")) == payloads(&direct));
    // Without a manifest strings are text, unless it is said what they are.
    std::fs::create_dir(at("bare")).unwrap();
    std::fs::copy(at("again/data-00000.jsonl"), at("bare/a.jsonl")).unwrap();
    convert(&at("bare"), &at("text"), &[]).unwrap();
    assert!(text(&examples(&at("text"))[0], "image/encoded").starts_with("data:;base64,"));
    convert(&at("bare"), &at("bytes"), &["--data-uris"]).unwrap();
    assert!(payloads(&at("bytes")) == payloads(&direct));
    let both = [at("bare"), at("mixed")].map(|path| path.to_str().unwrap().to_owned());
    let error = convert(&at("lines"), Path::new(&both[0]), &[&both[1]]).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("--data-uris"), "{error}");
    let error = convert(&src, &at("x"), &["--data-uris"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[test]
fn records_are_shuffled_as_they_are_whatever_they_hold() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let records = record_shards(&at("src"), Compression::None, 3, 200);
    for (to, options) in [
        ("a", &["--threads", "1"][..]),
        ("b", &["--threads", "3", "--budget", "100KiB"]),
        ("c", &["--budget", "10MiB"]),
    ] {
        convert(&at("src"), &at(to), &[&["--shuffle", "11", "--rows-per-shard", "130"], options].concat()).unwrap();
    }
    assert!(shards(&at("a")) == shards(&at("b")) && shards(&at("a")) == shards(&at("c")));
    let mut mixed = payloads(&at("a"));
    assert!(mixed != records);
    convert(&at("src"), &at("d"), &["--shuffle", "12"]).unwrap();
    assert!(payloads(&at("d")) != mixed);
    let mut sorted = records;
    mixed.sort();
    sorted.sort();
    assert!(mixed == sorted);
}

#[test]
fn bad_records_name_their_place_and_a_run_that_leaves_them_out_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    example_shards(&at("src"), 1, 100);
    let path = at("src").join("in-0.tfrecord");
    let mut stored = std::fs::read(&path).unwrap();
    // Within the payload of the last record but four.
    let record = stored.len() / 100;
    let at_byte = stored.len() - 4 * record - record / 2;
    stored[at_byte] ^= 1;
    std::fs::write(&path, stored).unwrap();
    let options = ["--to", "jsonl", "--rows-per-shard", "10", "--columns", "number"];
    let error = convert(&at("src"), &at("dest"), &options).unwrap_err();
    assert_eq!((error.kind(), error.place().record), (ErrorKind::Corrupt, Some(95)));
    assert!(error.to_string().contains("in-0.tfrecord") && error.to_string().contains("--skip-bad"), "{error}");
    assert!(!at("dest").join("_manifest.json").exists());
    convert(&at("src"), &at("dest"), &[&options[..], &["--skip-bad", "1"]].concat()).unwrap();
    let manifest = Manifest::read(at("dest")).unwrap();
    assert_eq!((manifest.rows, manifest.skipped.len(), manifest.skipped[0].row), (99, 1, 95));
    let numbers: Vec<i64> = json_rows(&at("dest")).iter().map(|row| row["number"].as_i64().unwrap()).collect();
    assert_eq!(numbers, (0..100).filter(|number| *number != 95).collect::<Vec<_>>());
    // Shuffled, the same rows are there, and the same are not.
    let options = [&options[..], &["--skip-bad", "1", "--shuffle", "3"]].concat();
    convert(&at("src"), &at("mixed"), &options).unwrap();
    let mixed: BTreeSet<i64> = json_rows(&at("mixed")).iter().map(|row| row["number"].as_i64().unwrap()).collect();
    assert_eq!(mixed, numbers.into_iter().collect());
}

#[test]
#[cfg(feature = "parquet")]
fn what_is_wrong_in_columns_that_are_not_picked_makes_no_record_bad() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for compression in [Compression::None, Compression::Gzip] {
        let src = at(compression.name());
        std::fs::create_dir(&src).unwrap();
        let mut writer = RecordWriter::new(Vec::new(), compression);
        for number in 0..300 {
            let b = if number == 299 { vec![1, 2] } else { vec![1] };
            writer.write(&Example::new().with_int64("a", [number]).with_int64("b", b).encode()).unwrap();
        }
        std::fs::write(src.join("in.tfrecord"), writer.finish().unwrap()).unwrap();
        let dest = at(&format!("{compression}-dest"));
        let error = convert(&src, &dest, &["--to", "parquet"]).unwrap_err();
        assert_eq!((error.place().record, error.place().column.as_deref()), (Some(299), Some("b")));
        convert(&src, &dest, &["--to", "parquet", "--columns", "a", "--force"]).unwrap();
        assert_eq!(Manifest::read(&dest).unwrap().rows, 300);
    }
}

#[test]
fn what_the_run_before_left_out_counts_when_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("src")).unwrap();
    for shard in 0..12 {
        let mut writer = RecordWriter::new(Vec::new(), Compression::None);
        (0..10).for_each(|number| writer.write(&Example::new().with_int64("n", [number]).encode()).unwrap());
        let mut stored = writer.finish().unwrap();
        if [0, 11].contains(&shard) {
            // Within the payload of the last record.
            let last = stored.len() - 6;
            stored[last] ^= 1;
        }
        std::fs::write(at("src").join(format!("{shard:02}.tfrecord")), stored).unwrap();
    }
    let options = ["--to", "jsonl", "--rows-per-shard", "10", "--threads", "1"];
    let error = convert(&at("src"), &at("dest"), &[&options[..], &["--skip-bad", "1"]].concat()).unwrap_err();
    assert_eq!((error.kind(), error.place().record), (ErrorKind::Corrupt, Some(9)), "{error}");
    let error = convert(&at("src"), &at("dest"), &options).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("--skip-bad 1 or more"), "{error}");
    convert(&at("src"), &at("dest"), &[&options[..], &["--skip-bad", "2"]].concat()).unwrap();
    let manifest = Manifest::read(at("dest")).unwrap();
    assert_eq!((manifest.rows, manifest.skipped.iter().map(|skipped| skipped.row).collect()), (118, vec![9, 119]));
}

#[test]
#[cfg(feature = "tar")]
fn a_shard_that_is_damaged_behind_its_first_rows_is_refused_whatever_may_be_left_out() {
    use arrow::array::{Int64Array, RecordBatch};
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..10 {
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        archive.append_data(&mut header, format!("{number}.cls"), &b"1"[..]).unwrap();
    }
    let mut archive = archive.into_inner().unwrap();
    // The checksum of the sixth header.
    archive[5 * 1024 + 150] ^= 1;
    std::fs::write(at("in.tar"), archive).unwrap();
    let ids = std::sync::Arc::new(Int64Array::from_iter_values(0..100));
    let batch = RecordBatch::try_from_iter([("id", ids as _)]).unwrap();
    let mut stream = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    (0..3).for_each(|_| stream.write(&batch).unwrap());
    let mut stream = stream.into_inner().unwrap();
    stream.truncate(stream.len() - 100);
    std::fs::write(at("in.arrows"), stream).unwrap();
    for name in ["in.tar", "in.arrows"] {
        for options in [&["--to", "jsonl"][..], &["--to", "jsonl", "--skip-bad", "9"]] {
            let error = convert(&at(name), &at("dest"), options).unwrap_err();
            assert_eq!(super::super::exit_code(error.kind()), 1, "{error}");
            assert!(error.to_string().contains(name) && !error.to_string().contains("--skip-bad"), "{error}");
        }
    }
    assert!(!at("dest").exists());
}

#[test]
fn several_sources_are_one_and_a_shard_that_is_named_twice_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    example_shards(&at("a"), 1, 5);
    example_shards(&at("b"), 1, 5);
    let (a, b, dest) = (at("a"), at("b"), at("dest"));
    let pattern = a.join("*.tfrecord");
    let src = [&a, &pattern, &b].map(|path| path.to_str().unwrap());
    let args: Vec<&str> = src.into_iter().skip(1).chain([dest.to_str().unwrap(), "--to", "tfrecord"]).collect();
    convert(&a, Path::new(args[0]), &args[1..]).unwrap();
    assert_eq!(numbers(&dest), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
    let error = convert(&a, &a.join("x"), &["--to", "jsonl", a.to_str().unwrap()]).unwrap_err();
    assert!(error.to_string().contains("folder of SRC"), "{error}");
}

#[test]
fn another_source_or_other_options_are_refused_with_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    example_shards(&at("src"), 1, 30);
    let options = ["--to", "jsonl", "--rows-per-shard", "10"];
    convert(&at("src"), &at("dest"), &options).unwrap();
    let error = convert(&at("src"), &at("dest"), &options).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("--force"), "{error}");
    // As it is when it was interrupted: a journal, and no manifest.
    let interrupted = |dest: &Path| {
        let rows = crate::int64("number");
        let mut writer = crate::Writer::builder(Output::JsonLines).rows_per_shard(2).create(dest, [rows]).unwrap();
        let one = arrow::array::Int64Array::from(vec![1, 2, 3]);
        let batch = arrow::array::RecordBatch::try_from_iter([("number", std::sync::Arc::new(one) as _)]).unwrap();
        writer.write(&batch).unwrap();
    };
    interrupted(&at("other"));
    let error = convert(&at("src"), &at("other"), &options).unwrap_err().to_string();
    assert!(error.contains("rows_per_shard") && error.contains("columns") && error.contains("source"), "{error}");
    convert(&at("src"), &at("other"), &[&options[..], &["--force"]].concat()).unwrap();
    assert_eq!(json_rows(&at("other")).len(), 30);
    let error = convert(&at("src"), &at("x"), &["--to", "jsonl", "--columns", "nothing"]).unwrap_err().to_string();
    assert!(error.contains("take some of: ") && error.contains("number"), "{error}");
}

/// Creates an archive of samples with members of these extensions.
#[cfg(feature = "tar")]
fn archive(samples: &[&[&str]]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (number, extensions) in samples.iter().enumerate() {
        for extension in *extensions {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            archive.append_data(&mut header, format!("{number}.{extension}"), &b"1"[..]).unwrap();
        }
    }
    archive.into_inner().unwrap()
}

#[test]
#[cfg(all(feature = "tar", feature = "parquet", feature = "text"))]
fn columns_that_the_first_shard_has_not_are_not_dropped() {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let ipc = |columns: &[&str]| {
        let ids = || std::sync::Arc::new(Int64Array::from_iter_values(0..3)) as ArrayRef;
        let batch = RecordBatch::try_from_iter(columns.iter().map(|name| (*name, ids()))).unwrap();
        let mut writer = arrow::ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        writer.into_inner().unwrap()
    };
    for (extension, first, second) in [
        ("arrow", ipc(&["a"]), ipc(&["a", "b"])),
        ("csv", b"a\n1\n2\n3\n".to_vec(), b"a,b\n1,1\n2,2\n3,3\n".to_vec()),
        ("tar", archive(&[&["a"][..]; 3]), archive(&[&["a"], &["a"], &["a", "b"]])),
    ] {
        let src = at(extension);
        std::fs::create_dir(&src).unwrap();
        std::fs::write(src.join(format!("0.{extension}")), first).unwrap();
        std::fs::write(src.join(format!("1.{extension}")), second).unwrap();
        let dest = |name: &str| at(&format!("{extension}-{name}"));
        let error = convert(&src, &dest("all"), &["--to", "jsonl"]).unwrap_err();
        let text = error.to_string();
        assert_eq!((super::super::exit_code(error.kind()), error.place().column.as_deref()), (1, Some("b")), "{text}");
        assert!(text.contains(&format!("0.{extension}")) && text.contains("columns"), "{text}");
        convert(&src, &dest("a"), &["--to", "jsonl", "--columns", "a"]).unwrap();
        assert_eq!(json_rows(&dest("a")).len(), 6);
    }
    let options = ["--to", "parquet", "--columns", "a"];
    convert(&at("arrow"), &at("parquet"), &options).unwrap();
    convert(&at("arrow/1.arrow"), &at("parquet2"), &["--to", "parquet"]).unwrap();
    std::fs::copy(at("parquet2/data-00000.parquet"), at("parquet/data-00001.parquet")).unwrap();
    let error = convert(&at("parquet"), &at("parquet3"), &["--to", "jsonl"]).unwrap_err();
    assert_eq!(error.place().column.as_deref(), Some("b"), "{error}");
    convert(&at("parquet"), &at("parquet4"), &["--to", "jsonl", "--columns", "a"]).unwrap();
}

#[test]
#[cfg(feature = "text")]
fn lines_with_fields_that_the_first_have_not_are_bad_unless_columns_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (number, last, field) in
        [(0, ", \"b\": 1", "b"), (1, ", \"o\": {\"x\": 1, \"y\": 2}", "o.y"), (2, ", \"n\": 4", "n")]
    {
        let line = |a: i32, more: &str| format!("{{\"a\": {a}{more}}}\n");
        let first = (0..300).map(|a| line(a, ", \"o\": {\"x\": 1}"));
        // Nulls and empty lists are no values.
        let none = [line(300, ", \"o\": {\"x\": 1}, \"n\": null, \"l\": []")];
        let last = if last.contains("\"o\"") { last.to_owned() } else { format!(", \"o\": {{\"x\": 1}}{last}") };
        let text: String = first.chain(none).chain([line(301, &last)]).collect();
        let src = at(&format!("{number}.jsonl"));
        std::fs::write(&src, text).unwrap();
        let dest = |name: &str| at(&format!("{number}-{name}"));
        let error = convert(&src, &dest("all"), &["--to", "jsonl"]).unwrap_err();
        let place = error.place();
        assert_eq!((error.kind(), place.record, place.column.as_deref()), (ErrorKind::Schema, Some(301), Some(field)));
        assert!(error.to_string().contains(".jsonl") && error.to_string().contains("--columns"), "{error}");
        for columns in ["a", "a,o.x"] {
            convert(&src, &dest(columns), &["--to", "jsonl", "--columns", columns]).unwrap();
            assert_eq!(json_rows(&dest(columns)).len(), 302);
        }
    }
}

#[test]
fn records_with_features_that_the_first_have_not_are_bad_unless_columns_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("src")).unwrap();
    let mut writer = RecordWriter::new(Vec::new(), Compression::None);
    for number in 0..300 {
        let example = Example::new().with_int64("a", [number]);
        // A feature without values is none.
        let example = if number == 298 { example.with_int64("b", []) } else { example };
        let example = if number == 299 { example.with_int64("b", [1]) } else { example };
        writer.write(&example.encode()).unwrap();
    }
    std::fs::write(at("src/in.tfrecord"), writer.finish().unwrap()).unwrap();
    let error = convert(&at("src"), &at("all"), &["--to", "jsonl"]).unwrap_err();
    let place = error.place();
    assert_eq!((error.kind(), place.record, place.column.as_deref()), (ErrorKind::Schema, Some(299), Some("b")));
    assert!(error.to_string().contains("in.tfrecord") && error.to_string().contains("--columns"), "{error}");
    convert(&at("src"), &at("a"), &["--to", "jsonl", "--columns", "a"]).unwrap();
    assert_eq!(json_rows(&at("a")).len(), 300);
    let mut writer = RecordWriter::new(Vec::new(), Compression::None);
    let steps = |n: usize| vec![crate::format::example::Feature::int64([1]); n];
    for number in 0..300 {
        let record = crate::format::example::SequenceExample::new().with_steps("a", steps(2));
        let record = if number == 299 { record.with_steps("b", steps(1)) } else { record.with_steps("b", steps(0)) };
        writer.write(&record.encode()).unwrap();
    }
    std::fs::write(at("src/in.tfrecord"), writer.finish().unwrap()).unwrap();
    let error = convert(&at("src"), &at("steps"), &["--to", "jsonl"]).unwrap_err();
    assert_eq!((error.place().record, error.place().column.as_deref()), (Some(299), Some("b")), "{error}");
}

#[test]
#[cfg(feature = "tar")]
fn what_is_refused_removes_nothing_of_an_earlier_conversion() {
    let (folder, src, dest) = pictures(&["cat"], 3);
    convert(&src, &dest, &[]).unwrap();
    let before = shards(&dest);
    for options in [&["--to", "tar"][..], &["--columns", "image/encoded", "--to", "images", "--image-column", "x"]] {
        let error = convert(&src, &dest, &[options, &["--force"]].concat()).unwrap_err();
        assert!(error.place().column.is_some(), "{error}");
        assert!(shards(&dest) == before, "{options:?}");
        Manifest::read(&dest).unwrap().verify(&dest).unwrap();
    }
    drop(folder);
}

#[test]
fn one_kind_of_conversion_does_not_write_over_another_unless_forced() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    example_shards(&at("src"), 1, 30);
    let (copy, rows) = (["--shard-records", "10"], ["--shard-records", "7", "--columns", "number"]);
    convert(&at("src"), &at("dest"), &copy).unwrap();
    for (now, then) in [(&rows[..], 5), (&copy[..], 3), (&rows[..], 5)] {
        let error = convert(&at("src"), &at("dest"), now).unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains("--force"), "{error}");
        convert(&at("src"), &at("dest"), &[now, &["--force"]].concat()).unwrap();
        assert_eq!((shards(&at("dest")).len(), numbers(&at("dest")).len()), (then, 30));
        assert_eq!(std::fs::read_dir(at("dest/_index")).unwrap().count(), then);
        Manifest::read(at("dest")).unwrap().verify(at("dest")).unwrap();
    }
}
