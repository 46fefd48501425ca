//! `forebay inspect`.

use forebay::Compression;
use forebay::format::example::Example;
use serde_json::json;

use crate::support::{Folder, golden, ids, offsets, picture, shard};

#[test]
fn what_tensorflow_wrote_is_described() {
    let folder = Folder::new();
    for (name, compression) in [("examples", "none"), ("examples.gzip", "gzip"), ("examples.zlib", "zlib")] {
        let path = golden(&format!("{name}.tfrecord"));
        let found = folder.run_to(0, ["inspect", &path, "--json"]).json();
        assert_eq!((&found["format"], &found["compression"]), (&json!("tfrecord"), &json!(compression)));
        assert_eq!((&found["shards"], &found["records"], &found["looked_at"]), (&json!(1), &json!(6), &json!(6)));
        assert_eq!(found["bytes"], std::fs::metadata(&path).unwrap().len());
        assert_eq!((&found["decompressed_bytes"], &found["kind"]), (&json!(1037), &json!("example")));
        let columns = found["columns"].as_array().unwrap();
        let names: Vec<_> = columns.iter().map(|column| column["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["boxes", "image", "label", "score", "sometimes", "tokens", "words"]);
        let boxes = json!({
            "name": "boxes", "dtype": "f32", "present": 6, "min_len": 0, "max_len": 3, "min_bytes": null,
            "max_bytes": null, "holds": null, "sequence": false, "suggested": "float32(\"boxes\").ragged()",
        });
        assert_eq!(columns[0], boxes);
        assert_eq!((&columns[1]["min_bytes"], &columns[1]["max_bytes"]), (&json!(10), &json!(15)));
        assert_eq!(
            (&columns[4]["present"], &columns[4]["suggested"]),
            (&json!(3), &json!("int64(\"sometimes\").optional()"))
        );
    }
    let found = folder.run_to(0, ["inspect", &golden("examples*.tfrecord"), "--json"]).json();
    assert_eq!((&found["compression"], &found["records"]), (&json!("mixed"), &json!(18)));
}

#[test]
fn text_is_a_table_under_a_summary() {
    let folder = Folder::new();
    let ended = folder.run_to(0, ["inspect", &golden("sequences.tfrecord")]);
    let lines: Vec<_> = ended.out.lines().collect();
    assert_eq!(lines[1], "holds      tf.SequenceExample");
    assert_eq!(lines[7], "column  dtype  present     values  bytes  holds  declare as");
    assert_eq!(
        lines[11],
        "speed   f32          4  1-4 steps                float32(\"speed\").fixed([2]).in_sequence()"
    );
    assert_eq!(ended.err, "");
}

#[test]
fn other_payloads_are_one_column() {
    let folder = Folder::new();
    let found = folder.run_to(0, ["inspect", &golden("records.tfrecord"), "--json"]).json();
    assert_eq!((&found["kind"], &found["records"]), (&json!("record"), &json!(8)));
    let column = &found["columns"][0];
    assert_eq!((&column["name"], &column["present"], &column["max_bytes"]), (&json!("record"), &json!(8), &json!(49)));
}

#[test]
fn images_are_recognised() {
    let folder = Folder::new();
    let images = ["rgb-420.jpg", "gray.jpg"].map(picture);
    let payloads = images.map(|image| Example::new().with_bytes("image", [image]).encode());
    let url = folder.put("a", &shard(payloads, Compression::None));
    assert_eq!(folder.run_to(0, ["inspect", &url, "--json"]).json()["columns"][0]["holds"], "jpeg");
}

#[test]
fn looking_is_bounded_and_counting_is_not() {
    let folder = Folder::new();
    folder.put("a.tfrecord", &shard(ids(0..1000), Compression::None));
    folder.put("b.tfrecord", &shard(ids(0..30), Compression::Gzip));
    folder.put("c.tfrecord", b"");
    let url = folder.url("*.tfrecord");
    for (flags, looked_at) in [(&["--look", "100"][..], 100), (&["--look", "0"], 0), (&["--all"], 1030), (&[], 1000)] {
        let args = ["inspect", &url, "--json"].into_iter().chain(flags.iter().copied());
        let found = folder.run_to(0, args).json();
        assert_eq!(
            (&found["looked_at"], &found["records"], &found["shards"]),
            (&json!(looked_at), &json!(1030), &json!(3))
        );
    }
}

#[test]
fn damaged_shards_are_shown_as_far_as_they_go() {
    let folder = Folder::new();
    let mut bytes = shard(ids(0..100), Compression::None);
    let starts = offsets(&bytes);
    bytes[starts[40]] ^= 1;
    bytes[starts[3] + 15] ^= 1;
    let url = folder.put("a", &bytes);
    let ended = folder.run_to(1, ["inspect", &url, "--json"]);
    let found = ended.json();
    assert_eq!((&found["records"], &found["looked_at"]), (&json!(40), &json!(39)));
    assert_eq!(found["columns"][0]["present"], 39);
    let errors: Vec<&str> = ended.err.lines().collect();
    assert_eq!(errors.len(), 2, "{}", ended.err);
    assert_eq!((&ended.error()["record"], &ended.error()["kind"]), (&json!(40), &json!("Corrupt")));
    assert!(folder.run_to(1, ["inspect", &url]).err.contains("error: file://"));
}

#[test]
fn what_cannot_be_read_ends_with_3_and_usage_with_2() {
    let folder = Folder::new();
    let ended = folder.run_to(3, ["inspect", &folder.url("absent")]);
    assert!(ended.err.starts_with("error: ") && ended.out.is_empty(), "{}", ended.err);
    folder.run_to(3, ["inspect", &folder.url("*.tfrecord")]);
    folder.run_to(2, ["inspect"]);
    folder.run_to(2, ["inspect", "a", "--look", "many"]);
    folder.run_to(2, ["inspect", "a", "--look", "1", "--all"]);
}
