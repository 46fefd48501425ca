//! `forebay verify`.

use forebay::Compression;
use forebay::format::example::{Example, Feature, SequenceExample};
use serde_json::json;

use crate::support::{Folder, golden, ids, offsets, picture, record, shard};

const GZIP: Compression = Compression::Gzip;

#[test]
fn what_tensorflow_wrote_is_good() {
    let folder = Folder::new();
    for name in ["examples.tfrecord", "examples.gzip.tfrecord", "examples.zlib.tfrecord"] {
        let found = folder.run_to(0, ["verify", &golden(name), "--json", "--format", "tfrecord"]).json();
        assert_eq!((&found["records"], &found["bad"], &found["shards"]), (&json!(6), &json!([]), &json!(1)), "{name}");
        assert_eq!(found["truncated"], false);
        assert_eq!(found["bytes"], std::fs::metadata(golden(name)).unwrap().len());
    }
    let found = folder.run_to(0, ["verify", &golden("sequences.tfrecord"), "--json"]).json();
    assert_eq!(found["records"], 4);
    let found = folder.run_to(0, ["verify", &golden("records.gzip.tfrecord"), "--records", "--json"]).json();
    assert_eq!(found["records"], 8);
    let text = folder.run_to(0, ["verify", &golden("examples*.tfrecord")]);
    assert_eq!(text.out, "18 records good, none bad, in 3 shards of 1.88 KiB\n");
    assert_eq!(text.err, "");
}

#[test]
fn records_that_are_no_examples_say_how_to_go_on() {
    let folder = Folder::new();
    let ended = folder.run_to(1, ["verify", &golden("records.tfrecord")]);
    assert!(ended.err.contains("--records"), "{}", ended.err);
}

#[test]
fn a_damaged_payload_is_one_bad_record() {
    let folder = Folder::new();
    let mut bytes = shard(ids(0..100), Compression::None);
    let starts = offsets(&bytes);
    for record in [7, 63] {
        bytes[starts[record] + 20] ^= 4;
    }
    let url = folder.put("a.tfrecord", &bytes);
    folder.put("b.tfrecord", &shard(ids(100..150), GZIP));
    let found = folder.run_to(1, ["verify", &folder.url("*.tfrecord"), "--json"]).json();
    assert_eq!(found["records"], 148);
    let bad = found["bad"].as_array().unwrap();
    assert_eq!(bad.len(), 2);
    for (bad, record) in bad.iter().zip([7, 63]) {
        assert_eq!(bad["url"], format!("file://{url}"));
        assert_eq!((&bad["record"], &bad["offset"]), (&json!(record), &json!(starts[record])));
        assert!(bad["reason"].as_str().unwrap().starts_with("payload checksum"), "{bad}");
    }
    let text = folder.run_to(1, ["verify", &url]);
    assert!(
        text.out.starts_with(&format!("file://{url}, record 7, byte {}: payload checksum", starts[7])),
        "{}",
        text.out
    );
    assert!(text.out.ends_with("98 records good, 2 bad, in 1 shard of 12.06 KiB\n"), "{}", text.out);
}

#[test]
fn damaged_framing_ends_its_shard_and_no_other() {
    let folder = Folder::new();
    let mut bytes = shard(ids(0..100), Compression::None);
    let starts = offsets(&bytes);
    bytes[starts[40]] ^= 1;
    folder.put("a.tfrecord", &bytes);
    let whole = shard(ids(100..200), Compression::None);
    folder.put("b.tfrecord", &whole[..starts[99]]);
    folder.put("c.tfrecord", &whole);
    let found = folder.run_to(1, ["verify", &folder.url("*.tfrecord"), "--json"]).json();
    let records = found["records"].as_u64().unwrap();
    assert!((40 + 90 + 100..40 + 100 + 100).contains(&records), "{records}");
    let bad = found["bad"].as_array().unwrap();
    assert_eq!((bad.len(), &bad[0]["record"], &bad[0]["offset"]), (2, &json!(40), &json!(starts[40])));
    for bad in bad {
        assert!(bad["reason"].as_str().unwrap().ends_with("the rest of the shard cannot be found"), "{bad}");
    }
}

#[test]
fn every_cut_of_a_compressed_shard_is_found() {
    let folder = Folder::new();
    for compression in [GZIP, Compression::Zlib] {
        let whole = shard(ids(0..20), compression);
        for cut in [12, whole.len() / 2, whole.len() - 1] {
            let url = folder.put("cut", &whole[..cut]);
            let found = folder.run_to(1, ["verify", &url, "--json"]).json();
            assert_eq!(found["num_bad"], 1, "{compression} {cut}: {found}");
        }
    }
}

#[test]
fn other_kinds_of_value_than_before_are_bad() {
    let folder = Folder::new();
    let mut payloads = ids(0..300);
    payloads[280] = Example::new().with_float32("id", [0.5]).encode();
    payloads[290] = b"no message at all".to_vec();
    payloads[291] = Example::new().encode();
    let url = folder.put("a", &shard(payloads, Compression::None));
    let found = folder.run_to(1, ["verify", &url, "--json"]).json();
    assert_eq!(found["records"], 298);
    let reasons: Vec<_> = found["bad"].as_array().unwrap().iter().map(|bad| bad["reason"].as_str().unwrap()).collect();
    assert!(reasons[0].contains("column id: wanted int64 values, found float values"), "{reasons:?}");
    assert!(reasons[1].contains("no tf.Example"), "{reasons:?}");
}

#[test]
fn feature_lists_of_any_shape_are_good() {
    let folder = Folder::new();
    let steps = |n: i64| (0..n).map(|step| Feature::int64(0..step));
    let ragged = |n| SequenceExample::new().with_steps("ragged", steps(n)).with_context("id", Feature::int64([n]));
    let twice = |n| ragged(n).with_steps("id", [Feature::float32([0.5])]);
    for payloads in
        [(0..5).map(|n| ragged(n).encode()).collect::<Vec<_>>(), (0..5).map(|n| twice(n).encode()).collect()]
    {
        let mut bytes = payloads.clone();
        let url = folder.put("a", &shard(payloads, Compression::None));
        assert_eq!(folder.run_to(0, ["verify", &url, "--json"]).json()["records"], 5);
        // The last list says that it is longer than it is.
        let end = bytes[4].len() - 1;
        bytes[4].truncate(end);
        let url = folder.put("a", &shard(bytes, Compression::None));
        assert_eq!(folder.run_to(1, ["verify", &url, "--json"]).json()["bad"][0]["record"], 4);
    }
}

#[test]
fn images_are_decoded_to_their_last_row() {
    let folder = Folder::new();
    let image = |bytes: &[u8]| Example::new().with_bytes("image", [bytes]).with_int64("label", [1]).encode();
    let (jpeg, png) = (picture("large.jpg"), picture("rgb8.png"));
    let mut torn = jpeg.clone();
    // The last rows are gone, the end marker is there.
    torn.drain(jpeg.len() - 300..jpeg.len() - 2);
    let payloads = [&jpeg[..], &png, &jpeg[..jpeg.len() - 100], &torn, &png[..png.len() * 2 / 3], b"", &jpeg];
    let url = folder.put("a", &shard(payloads.map(image), Compression::None));
    assert_eq!(folder.run_to(0, ["verify", &url, "--json"]).json()["records"], 7);
    let found = folder.run_to(1, ["verify", &url, "--json", "--decode", "image"]).json();
    let bad: Vec<_> = found["bad"].as_array().unwrap().iter().map(|bad| bad["record"].as_u64().unwrap()).collect();
    assert_eq!((bad, &found["records"]), (vec![2, 3, 4, 5], &json!(3)), "{found}");
    assert!(found["bad"][0]["reason"].as_str().unwrap().starts_with("column image: the JPEG image is cut off"));

    let ended = folder.run_to(2, ["verify", &url, "--decode", "img"]);
    assert!(ended.err.contains("image, label"), "{}", ended.err);
    folder.run_to(2, ["verify", &url, "--decode", "label"]);
    folder.run_to(2, ["verify", &url, "--decode", "image", "--records"]);
}

#[test]
fn lists_of_bad_records_are_bounded_and_counted() {
    let folder = Folder::new();
    let mut bytes = shard(ids(0..100), Compression::None);
    offsets(&bytes).into_iter().take(100).for_each(|start| bytes[start + 12] ^= 1);
    let url = folder.put("a", &bytes);
    let found = folder.run_to(1, ["verify", &url, "--records", "--json", "--max-bad", "3"]).json();
    assert_eq!((&found["truncated"], &found["num_bad"], &found["records"]), (&json!(true), &json!(100), &json!(0)));
    let bad: Vec<_> = found["bad"].as_array().unwrap().iter().map(|bad| bad["record"].as_u64().unwrap()).collect();
    assert_eq!(bad, [0, 1, 2]);
    let text = folder.run_to(1, ["verify", &url, "--records", "--max-bad", "3"]);
    assert!(text.out.contains("97 more are not listed"), "{}", text.out);
}

#[test]
fn what_cannot_be_read_is_no_bad_data() {
    let folder = Folder::new();
    let ended = folder.run_to(3, ["verify", &folder.url("absent"), "--json"]);
    let error = ended.error();
    assert_eq!((&error["kind"], &ended.out[..]), (&json!("NotFound"), ""));
    assert!(error["url"].as_str().unwrap().ends_with("absent"), "{error}");
    folder.run_to(3, ["verify", &folder.url("*.tfrecord")]);
    folder.run_to(2, ["verify"]);
    folder.run_to(2, ["verify", "a", "--format", "orc"]);
    folder.run_to(2, ["verify", "a", "--threads", "0"]);
    folder.run_to(2, ["verify", "nowhere://bucket/a"]);
}

#[test]
fn threads_change_nothing() {
    let folder = Folder::new();
    // Several blocks of 4 MiB a shard.
    let payloads: Vec<_> = (0..160).map(|id| record(id, 60_000)).collect();
    let mut bytes = shard(payloads.clone(), Compression::None);
    let starts = offsets(&bytes);
    (0..160).step_by(7).for_each(|record| bytes[starts[record] + 30_000] ^= 1);
    folder.put("a.tfrecord", &bytes);
    folder.put("b.tfrecord", &shard(payloads, GZIP));
    folder.put("c.tfrecord", &[]);
    let run =
        |threads: &str| folder.run_to(1, ["verify", &folder.url("*.tfrecord"), "--json", "--threads", threads]).json();
    let one = run("1");
    assert_eq!((&one["records"], &one["num_bad"]), (&json!(297), &json!(23)));
    assert_eq!(one, run("2"));
    assert_eq!(one, run("7"));
}

#[test]
fn a_null_within_a_list_is_bad_and_a_null_alone_is_not() {
    let folder = Folder::new();
    let url =
        folder.put("a.jsonl", b"{\"x\": [1, 2], \"y\": 1}\n{\"x\": [1, null], \"y\": 2}\n{\"x\": null, \"y\": null}\n");
    let found = folder.run_to(1, ["verify", &url, "--json"]).json();
    assert_eq!((&found["records"], &found["num_bad"]), (&json!(2), &json!(1)));
    assert_eq!((&found["bad"][0]["record"], &found["bad"][0]["offset"]), (&json!(1), &json!(22)), "{found}");
    assert!(found["bad"][0]["reason"].as_str().unwrap().contains("an element of the list is null"), "{found}");
}

#[test]
fn times_that_the_loader_would_not_read_together_are_bad() {
    let folder = Folder::new();
    folder.put("a.csv", b"x\n2024-01-01 00:00:00\n");
    folder.put("b.csv", b"x\n2024-01-01 00:00:00.000\n2024-01-01 00:00:00.500\n");
    let found = folder.run_to(1, ["verify", &folder.url("*.csv"), "--json"]).json();
    assert_eq!((&found["records"], &found["bad"][0]["record"]), (&json!(2), &json!(1)), "{found}");
}

#[test]
fn shards_that_a_manifest_names_are_missed() {
    let folder = Folder::new();
    folder.put("in.tfrecord", &shard(ids(0..30), Compression::None));
    let out = folder.path("out");
    let to = out.to_string_lossy().into_owned();
    let convert = ["convert", &folder.url("in.tfrecord"), &to, "--to", "jsonl", "--rows-per-shard", "10"];
    folder.run_to(0, convert);
    assert_eq!(folder.run_to(0, ["verify", &to, "--json"]).json()["records"], 30);
    let mut shards: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    shards.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
    shards.sort();
    // Cut behind a line, which JSON Lines itself does not show.
    let text = std::fs::read_to_string(&shards[0]).unwrap();
    let lines: String = text.split_inclusive('\n').take(9).collect();
    std::fs::write(&shards[0], &lines).unwrap();
    std::fs::remove_file(&shards[1]).unwrap();
    let ended = folder.run_to(3, ["verify", &to, "--json"]);
    let found = ended.json();
    assert_eq!((&found["records"], &found["num_bad"], &found["shards"]), (&json!(19), &json!(0), &json!(2)));
    for (number, said) in [(0, format!("{} bytes, and", lines.len())), (1, "no such shard".to_owned())] {
        let unread = &found["unread"][number];
        let name = shards[number].file_name().unwrap().to_string_lossy().into_owned();
        assert!(unread["url"].as_str().unwrap().ends_with(&name), "{found}");
        assert!(unread["reason"].as_str().unwrap().contains(&said), "{found}");
    }
    let ended = folder.run_to(3, ["verify", &to]);
    assert!(
        ended.out.contains("19 records good") && ended.out.contains("2 missing, cut off or not to be read"),
        "{}",
        ended.out
    );
    assert!(ended.err.contains("remove the manifest"), "{}", ended.err);
}

#[test]
fn a_shard_that_is_shorter_than_its_index_says_is_told_though_its_records_are_good() {
    let folder = Folder::new();
    let bytes = shard(ids(0..30), Compression::None);
    let path = folder.put("in.tfrecord", &bytes);
    folder.run_to(0, ["index", &path]);
    std::fs::write(&path, &bytes[..offsets(&bytes)[20]]).unwrap();
    let ended = folder.run_to(1, ["verify", &path, "--json"]);
    let found = ended.json();
    assert_eq!((&found["records"], &found["num_bad"]), (&json!(20), &json!(0)));
    let reason = found["unread"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("it may have been cut off while it was copied"), "{reason}");
    let ended = folder.run_to(1, ["verify", &path]);
    assert!(ended.err.contains("copy it again, or, if it was rewritten, index it anew"), "{}", ended.err);
    // As that says, whatever the index beside it says that a writer left.
    std::fs::create_dir(folder.path("_index")).unwrap();
    let kept = std::fs::read_dir(folder.index_dir()).unwrap().next().unwrap().unwrap().path();
    std::fs::copy(kept, folder.path("_index/in.tfrecord.index")).unwrap();
    folder.run_to(1, ["verify", &path, "--json"]);
    folder.run_to(0, ["index", &path]);
    assert_eq!(folder.run_to(0, ["verify", &path, "--json"]).json()["records"], 20);
}
