//! Tests whole conversions, in this process.

use std::path::Path;

use serde_json::json;

use super::super::terminal::{Color, Terminal};
use super::*;
use crate::format::example::Example;
use crate::format::tfrecord::{Check, Decoder, Framed, Framer, Writer};
use crate::writer::part;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: ConvertArgs,
}

/// Runs the command with these arguments.
pub(super) fn convert(src: &Path, dest: &Path, options: &[&str]) -> Result<()> {
    let line = ["convert", src.to_str().unwrap(), dest.to_str().unwrap()];
    let args = <Line as clap::Parser>::try_parse_from(line.iter().chain(options)).unwrap().args;
    match run(&args, &Terminal::new(true, Color::Never, true)) {
        Ok(_) => Ok(()),
        Err(Failure::Error(error)) => Err(error),
        Err(Failure::Closed) => panic!("nobody closes it"),
    }
}

/// Returns the complete shards of a folder by name.
pub(super) fn shards(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut shards: Vec<_> = files
        .map(|file| (file.file_name().into_string().unwrap(), file.path()))
        .filter(|(name, _)| name.ends_with(".tfrecord"))
        .map(|(name, path)| (name, std::fs::read(path).unwrap()))
        .collect();
    shards.sort();
    shards
}

pub(super) fn payloads_of(stored: &[u8]) -> Vec<Vec<u8>> {
    let (mut data, mut decoder) = (Vec::new(), Decoder::new(Compression::detect(stored)));
    decoder.decode(stored, &mut data, usize::MAX).unwrap();
    decoder.finish().unwrap();
    let mut framed = Framed::default();
    Framer::new(Check::Full).frame(&data, Some(0), &mut framed).unwrap();
    assert!(framed.bad.is_empty());
    framed.payloads.into_iter().map(|payload| data[payload].to_vec()).collect()
}

pub(super) fn payloads(folder: &Path) -> Vec<Vec<u8>> {
    shards(folder).iter().flat_map(|(_, stored)| payloads_of(stored)).collect()
}

pub(super) fn examples(folder: &Path) -> Vec<Example> {
    payloads(folder).iter().map(|payload| Example::from_bytes(payload).unwrap()).collect()
}

pub(super) fn text(example: &Example, key: &str) -> String {
    String::from_utf8(example.get(key).unwrap().as_bytes().unwrap()[0].clone()).unwrap()
}

pub(super) fn int(example: &Example, key: &str) -> i64 {
    example.get(key).unwrap().as_int64().unwrap()[0]
}

/// Creates a folder of `classes` x `each` pictures, and an empty folder next to it.
pub(super) fn pictures(classes: &[&str], each: usize) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (src, dest) = (folder.path().join("src"), folder.path().join("dest"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
    std::fs::create_dir(&src).unwrap();
    for class in classes {
        std::fs::create_dir_all(src.join(class)).unwrap();
        for number in 0..each {
            let from = ["rgb8.png", "gray8.png", "lossy.webp"][number % 3];
            std::fs::copy(golden.join(from), src.join(class).join(format!("{number:03}-{from}"))).unwrap();
        }
    }
    (folder, src, dest)
}

/// Creates shards of records whose lengths and contents differ, one of 20 KiB.
pub(super) fn record_shards(folder: &Path, compression: Compression, shards: usize, records: usize) -> Vec<Vec<u8>> {
    std::fs::create_dir_all(folder).unwrap();
    let mut all: Vec<Vec<u8>> = Vec::new();
    for shard in 0..shards {
        let mut writer = Writer::new(Vec::new(), compression);
        for record in 0..records {
            let number = shard * records + record;
            let length = if number == 7 { 20 << 10 } else { number * 37 % 500 };
            all.push((0..length).map(|i| (i * 7 + number) as u8).collect());
            writer.write(all.last().unwrap()).unwrap();
        }
        std::fs::write(folder.join(format!("in-{shard}.rec")), writer.finish().unwrap()).unwrap();
    }
    all
}

#[test]
fn folders_become_examples_with_labels_and_a_manifest_that_listings_pass_over() {
    let (_folder, src, dest) = pictures(&["dog", "cat"], 4);
    std::fs::write(src.join("dog/notes.txt"), "").unwrap();
    convert(&src, &dest, &["--shard-records", "3"]).unwrap();
    let names: Vec<_> = shards(&dest).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [0, 1, 2].map(|shard| format!("data-{shard:05}-of-00003.tfrecord")));
    let examples = examples(&dest);
    let labels: Vec<_> = examples.iter().map(|e| (int(e, "image/class/label"), text(e, "image/class/text"))).collect();
    assert_eq!(labels[3..5], [(0, "cat".into()), (1, "dog".into())]);
    let first = &examples[0];
    assert_eq!((text(first, "image/filename"), text(first, "image/format")), ("cat/000-rgb8.png".into(), "png".into()));
    let stored = std::fs::read(src.join("cat/000-rgb8.png")).unwrap();
    let info = crate::transform::image::probe(&stored).unwrap();
    assert_eq!(first.get("image/encoded").unwrap().as_bytes().unwrap(), [stored]);
    assert_eq!((int(first, "image/width"), int(first, "image/height")), (info.width.into(), info.height.into()));
    assert_eq!(std::fs::read_to_string(dest.join("_labels.txt")).unwrap(), "cat\ndog\n");

    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dest.join("_forebay-convert.json")).unwrap()).unwrap();
    assert_eq!((&manifest["complete"], &manifest["records"]), (&true.into(), &8.into()));
    assert_eq!(manifest["shards"][2]["records"], 2);
    let written = crate::Manifest::read(&dest).unwrap();
    written.verify(&dest).unwrap();
    assert_eq!((written.rows, written.shards.len(), written.columns.len()), (8, 3, 7));
    assert!(dest.join("_index/data-00002-of-00003.tfrecord.index").exists());
    let mut hidden = std::fs::read_dir(&dest).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!hidden.any(|name| name.to_string_lossy().starts_with('.')));
    let dataset = crate::Dataset::open(dest.to_str().unwrap()).unwrap();
    let mut loader = dataset.columns([crate::int64("image/class/label")]).batch(4).loader().build().unwrap();
    assert_eq!(loader.epoch(0).map(|batch| batch.unwrap().len()).sum::<usize>(), 8);
}

#[test]
fn lists_name_the_images_and_their_labels() {
    let (folder, src, dest) = pictures(&["x", "y"], 2);
    let csv = folder.path().join("labels.csv");
    std::fs::write(&csv, "file,label\ny/001-gray8.png,12\nx/000-rgb8.png,-1\n").unwrap();
    convert(&src, &dest, &["--labels", csv.to_str().unwrap()]).unwrap();
    let examples = examples(&dest);
    let labels: Vec<_> = examples.iter().map(|e| (text(e, "image/filename"), int(e, "image/class/label"))).collect();
    assert_eq!(labels, [("x/000-rgb8.png".into(), -1), ("y/001-gray8.png".into(), 12)]);
    assert!(examples[0].get("image/class/text").is_none() && !dest.join("_labels.txt").exists());

    std::fs::write(&csv, "../x.png,1\n").unwrap();
    let error = convert(&src, &dest.join("2"), &["--labels", csv.to_str().unwrap()]).unwrap_err();
    assert_eq!(super::super::exit_code(error.kind()), 1);
    assert!(error.to_string().contains("labels.csv (labels): line 1: "), "{error}");
}

#[test]
fn images_without_folders_have_no_label_and_those_beside_folders_are_refused() {
    let (_folder, src, dest) = pictures(&["."], 2);
    convert(&src, &dest, &[]).unwrap();
    assert!(examples(&dest)[0].get("image/class/label").is_none());
    std::fs::create_dir(src.join("class")).unwrap();
    std::fs::copy(src.join("000-rgb8.png"), src.join("class/a.png")).unwrap();
    let error = convert(&src, &dest.join("2"), &[]).unwrap_err();
    assert_eq!(super::super::exit_code(error.kind()), 2);
}

#[test]
fn threads_change_no_byte_and_a_seed_mixes_classes() {
    let (folder, src, dest) = pictures(&["a", "b", "c"], 7);
    for (threads, to) in [("1", "one"), ("2", "two"), ("8", "eight")] {
        convert(&src, &folder.path().join(to), &["--shard-records", "4", "--shuffle", "5", "--threads", threads])
            .unwrap();
    }
    let one = shards(&folder.path().join("one"));
    assert_eq!(one.len(), 6);
    assert!(one == shards(&folder.path().join("two")) && one == shards(&folder.path().join("eight")));
    convert(&src, &dest, &["--shard-records", "4"]).unwrap();
    let order = |folder: &Path| examples(folder).iter().map(|e| text(e, "image/filename")).collect::<Vec<_>>();
    let (mixed, sorted) = (order(&folder.path().join("one")), order(&dest));
    assert!(sorted.is_sorted() && !mixed.is_sorted());
    assert_eq!(mixed.iter().collect::<std::collections::BTreeSet<_>>(), sorted.iter().collect());
}

#[test]
fn shards_that_are_missing_are_made_again_and_others_not_touched() {
    let (_folder, src, dest) = pictures(&["a"], 9);
    convert(&src, &dest, &["--shard-records", "2"]).unwrap();
    let before = shards(&dest);
    let untouched = dest.join(&before[0].0);
    let modified = std::fs::metadata(&untouched).unwrap().modified().unwrap();
    let error = convert(&src, &dest, &["--shard-records", "2"]).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("--force"), "{error}");
    std::fs::remove_file(dest.join(&before[3].0)).unwrap();
    std::fs::write(dest.join(&before[1].0), "cut off").unwrap();
    std::fs::write(dest.join(part::hidden_name(&before[3].0)), "of an interrupted run").unwrap();
    convert(&src, &dest, &["--shard-records", "2"]).unwrap();
    assert!(shards(&dest) == before);
    assert_eq!(std::fs::metadata(&untouched).unwrap().modified().unwrap(), modified);
    assert!(!dest.join(part::hidden_name(&before[3].0)).exists());
}

#[test]
fn a_shard_counts_as_done_when_the_journal_has_its_whole_line() {
    let (_folder, src, dest) = pictures(&["a"], 3);
    let options = ["--shard-records", "1"];
    convert(&src, &dest, &options).unwrap();
    let before = shards(&dest);
    // As it is after an interruption within the second line: all shards have their names.
    let path = dest.join("_forebay-convert.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let lines = [0, 1].map(|shard| manifest["shards"][shard].to_string());
    manifest["complete"] = false.into();
    manifest["shards"] = json!([]);
    std::fs::write(&path, manifest.to_string()).unwrap();
    std::fs::write(dest.join(".forebay-convert.journal"), format!("{}\n{}", lines[0], &lines[1][..20])).unwrap();
    let stamp = |shard: usize| {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(dest.join(&before[shard].0)).unwrap().ino()
    };
    // Held open, so that no new file gets the number of an old one.
    let _held: Vec<_> = before.iter().map(|(name, _)| std::fs::File::open(dest.join(name)).unwrap()).collect();
    let stamps = [0, 1, 2].map(stamp);
    convert(&src, &dest, &options).unwrap();
    assert!(shards(&dest) == before);
    let kept: Vec<bool> = (0..3).map(|shard| stamp(shard) == stamps[shard]).collect();
    assert_eq!(kept, [true, false, false]);
}

#[test]
fn what_is_no_part_of_the_same_conversion_is_refused_and_force_starts_over() {
    let (folder, src, dest) = pictures(&["a"], 4);
    std::fs::create_dir(&dest).unwrap();
    let stranger = dest.join("data-00000-of-00001.tfrecord");
    std::fs::write(&stranger, "not ours").unwrap();
    let refused = |options: &[&str], what: &str| {
        let error = convert(&src, &dest, options).unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains(what), "{error}");
    };
    refused(&[], "would be written over");
    assert_eq!(std::fs::read(&stranger).unwrap(), b"not ours");
    convert(&src, &dest, &["--force"]).unwrap();
    refused(&["--shard-records", "1"], "--shard-bytes, --shard-records differ");
    refused(&["--prefix", "train"], "--prefix differ");
    std::fs::write(dest.join("other.tfrecord"), "not ours").unwrap();
    convert(&src, &dest, &["--shard-records", "1", "--prefix", "train", "--force"]).unwrap();
    let names: Vec<_> = shards(&dest).into_iter().map(|(name, _)| name).collect();
    assert_eq!((names.len(), &*names[0], &*names[1]), (5, "other.tfrecord", "train-00000-of-00004.tfrecord"));
    std::fs::copy(src.join("a/000-rgb8.png"), src.join("a/new.png")).unwrap();
    refused(&["--shard-records", "1", "--prefix", "train"], "have changed");
    std::fs::remove_file(src.join("a/new.png")).unwrap();
    // Written again, at a time that is another however coarse the clock of the file system is.
    let written = std::fs::File::options().write(true).open(src.join("a/000-rgb8.png")).unwrap();
    written.set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000)).unwrap();
    refused(&["--shard-records", "1", "--prefix", "train"], "have changed");
    std::fs::write(dest.join("_forebay-convert.json"), "{}").unwrap();
    refused(&["--shard-records", "1", "--prefix", "train"], "none that this version reads");
    let other = folder.path().join("link");
    std::os::unix::fs::symlink(&src, &other).unwrap();
    let error = convert(&src, &other, &["--force"]).unwrap_err();
    assert!(error.to_string().contains("folder of SRC"), "{error}");
}

#[test]
fn a_manifest_that_names_files_elsewhere_removes_nothing_of_them() {
    let (folder, src, dest) = pictures(&["a"], 1);
    convert(&src, &dest, &[]).unwrap();
    let precious = folder.path().join("x-00000-of-00001.tfrecord");
    std::fs::write(&precious, "").unwrap();
    let manifest = std::fs::read_to_string(dest.join("_forebay-convert.json")).unwrap();
    let manifest = manifest.replace("\"prefix\": \"data\"", "\"prefix\": \"../x\"");
    assert!(manifest.contains("../x"));
    std::fs::write(dest.join("_forebay-convert.json"), manifest).unwrap();
    convert(&src, &dest, &["--force"]).unwrap();
    assert!(precious.exists());
}

#[test]
fn two_conversions_into_one_folder_do_not_run_at_once() {
    let (_folder, src, dest) = pictures(&["a"], 1);
    std::fs::create_dir(&dest).unwrap();
    let other = std::fs::File::open(&dest).unwrap();
    other.lock().unwrap();
    let error = convert(&src, &dest, &["--force"]).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    drop(other);
    convert(&src, &dest, &[]).unwrap();
}

#[test]
fn bad_images_end_it_unless_they_may_be_left_out() {
    let (_folder, src, dest) = pictures(&["a", "b"], 3);
    std::fs::write(src.join("a/broken.jpg"), "no image").unwrap();
    std::fs::write(src.join("b/broken.png"), "").unwrap();
    let options = ["--shard-records", "2"];
    let error = convert(&src, &dest, &options).unwrap_err();
    assert_eq!(super::super::exit_code(error.kind()), 1);
    assert!(error.to_string().contains("broken.") && error.to_string().contains("--skip-bad"), "{error}");
    let error = convert(&src, &dest, &[&options[..], &["--skip-bad", "1"]].concat()).unwrap_err();
    assert_eq!(super::super::exit_code(error.kind()), 1);
    // Continues what the runs before it began.
    convert(&src, &dest, &[&options[..], &["--skip-bad", "2"]].concat()).unwrap();
    assert_eq!((examples(&dest).len(), shards(&dest).len()), (6, 4));
    let manifest = std::fs::read_to_string(dest.join("_forebay-convert.json")).unwrap();
    assert!(manifest.contains("a/broken.jpg") && manifest.contains("b/broken.png"), "{manifest}");
    std::fs::remove_file(dest.join("data-00000-of-00004.tfrecord")).unwrap();
    let error = convert(&src, &dest, &options).unwrap_err();
    assert!(error.to_string().contains("--skip-bad") && error.kind() != ErrorKind::NotFound, "{error}");
}

#[test]
fn records_go_over_byte_for_byte_whatever_the_compression_and_size() {
    let folder = tempfile::tempdir().unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Zlib] {
        let src = folder.path().join(compression.name());
        let records = record_shards(&src, compression, 3, 40);
        for (to, options) in [
            ("bytes", &["--shard-bytes", "5000"][..]),
            ("records", &["--shard-records", "7", "--compression", "gzip", "--threads", "3"]),
            ("one", &["--compression", "zlib", "--prefix", "all", "--threads", "1"]),
        ] {
            let dest = folder.path().join(format!("{compression}-{to}"));
            convert(&src, &dest, options).unwrap();
            assert!(payloads(&dest) == records, "{compression} {to}");
        }
        let dest = folder.path().join(format!("{compression}-bytes"));
        assert!(shards(&dest).iter().all(|(_, stored)| stored.len() <= 5000 || payloads_of(stored).len() == 1));
    }
    let plain = ["none", "gzip", "zlib"].map(|from| shards(&folder.path().join(format!("{from}-bytes"))));
    assert!(plain[0] == plain[1] && plain[0] == plain[2]);
}

#[test]
fn there_and_back_gives_the_same_shard() {
    let folder = tempfile::tempdir().unwrap();
    let src = folder.path().join("src");
    record_shards(&src, Compression::None, 1, 30);
    let (packed, back) = (folder.path().join("packed"), folder.path().join("back"));
    convert(&src.join("in-*.rec"), &packed, &["--compression", "gzip", "--shard-records", "4"]).unwrap();
    convert(&packed, &back, &[]).unwrap();
    assert!(shards(&back)[0].1 == std::fs::read(src.join("in-0.rec")).unwrap());
}

#[test]
fn damaged_records_name_their_place_and_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let (src, dest) = (folder.path().join("src"), folder.path().join("dest"));
    let mut records = record_shards(&src, Compression::None, 2, 10);
    let path = src.join("in-1.rec");
    let whole = std::fs::read(&path).unwrap();
    let mut stored = whole.clone();
    let last = stored.len() - 6;
    stored[last] ^= 1;
    std::fs::write(&path, stored).unwrap();
    let error = convert(&src, &dest, &[]).unwrap_err();
    assert_eq!((error.kind(), error.place().record), (ErrorKind::Corrupt, Some(9)));
    assert!(error.to_string().contains("in-1.rec, record 9, byte "), "{error}");
    convert(&src, &dest, &["--skip-bad", "1"]).unwrap();
    let left_out = crate::Manifest::read(&dest).unwrap().skipped;
    assert_eq!((left_out.len(), left_out[0].row, left_out[0].record), (1, 19, Some(9)));
    records.pop();
    assert!(payloads(&dest) == records);

    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = convert(&src, &folder.path().join("2"), &["--skip-bad", "9"]).unwrap_err();
    assert!(error.to_string().contains("in-1.rec, record 9, byte "), "{error}");
}

#[test]
fn links_out_of_the_folder_of_shards_and_shards_in_dest_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let (src, outside) = (folder.path().join("src"), folder.path().join("outside"));
    let records = record_shards(&src, Compression::None, 1, 5);
    record_shards(&outside, Compression::None, 1, 5);
    std::os::unix::fs::symlink(outside.join("in-0.rec"), src.join("link.rec")).unwrap();
    let dest = src.join("out");
    convert(&src, &dest, &["--shard-records", "1"]).unwrap();
    assert!(payloads(&dest) == records);
    let error = convert(&src, &dest, &["--shard-records", "1"]).unwrap_err();
    assert!(error.to_string().contains("converted into it before"), "{error}");
    // Named, it is no way out of a folder.
    convert(&src.join("link.rec"), &folder.path().join("named"), &[]).unwrap();
}

#[test]
fn a_folder_of_both_needs_a_word_and_what_is_no_shard_is_named() {
    let (folder, src, dest) = pictures(&["a"], 1);
    record_shards(&src, Compression::None, 1, 5);
    std::fs::rename(src.join("in-0.rec"), src.join("in.tfrecord")).unwrap();
    let error = convert(&src, &dest, &[]).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("--from"), "{error}");
    convert(&src, &dest, &["--from", "images"]).unwrap();
    let error = convert(&src, &folder.path().join("2"), &["--from", "tfrecord"]).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("a pattern"), "{error}");
    let pattern = src.join("*.tfrecord");
    convert(&pattern, &folder.path().join("3"), &[]).unwrap();
    assert_eq!(payloads(&folder.path().join("3")).len(), 5);
}

#[test]
fn options_that_do_nothing_are_refused() {
    let (folder, src, dest) = pictures(&["a"], 1);
    let shards = folder.path().join("records");
    record_shards(&shards, Compression::None, 1, 1);
    for (src, options) in [
        (&shards, &["--resize", "8"][..]),
        (&shards, &["--bloom", "a"]),
        (&shards, &["--compression", "zstd"]),
        (&src, &["--to", "parquet", "--narrow"]),
        (&src, &["--quality", "8"]),
        (&src, &["--quality", "8", "--encode", "png"]),
    ] {
        assert_eq!(convert(src, &dest, options).unwrap_err().kind(), ErrorKind::Config, "{options:?}");
    }
    let error = convert(&src, Path::new("gs://bucket/x"), &[]).unwrap_err();
    assert!(error.to_string().contains("local folder"), "{error}");
    assert_eq!(convert(&src.join("none"), &dest, &[]).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!dest.exists());
}

#[test]
#[cfg(feature = "jpeg")]
fn images_are_resized_and_encoded() {
    let (_folder, src, dest) = pictures(&["a"], 3);
    convert(&src, &dest, &["--resize", "12", "--encode", "jpeg", "--quality", "80"]).unwrap();
    for example in examples(&dest) {
        assert_eq!(text(&example, "image/format"), "jpeg");
        let info =
            crate::transform::image::probe(&example.get("image/encoded").unwrap().as_bytes().unwrap()[0]).unwrap();
        assert_eq!(info.width.min(info.height), 12);
        assert_eq!(
            (int(&example, "image/width"), int(&example, "image/height")),
            (info.width.into(), info.height.into())
        );
    }
}
