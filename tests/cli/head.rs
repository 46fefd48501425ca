//! `forebay head`.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use forebay::Compression;
use forebay::format::example::Example;
use serde_json::json;

use crate::support::{Folder, golden, ids, offsets, picture, shard};

#[test]
fn records_are_json_objects_a_line() {
    let folder = Folder::new();
    let lines = folder.run_to(0, ["head", &golden("examples.tfrecord"), "--json", "-n", "2"]).lines();
    assert_eq!(lines.len(), 2);
    let url = format!("file://{}", golden("examples.tfrecord"));
    let wanted = json!({
        "_place": {"url": url, "record": 1, "offset": 164}, "label": -1, "score": 0.5, "tokens": [1, 300, -1_099_511_627_776_i64],
        "boxes": 0.0, "words": "word 0", "empty": null,
        "image": {"bytes": 11, "sha256": "7b0c710c832f5e2d6ba6b0d459531380d8127d86b6ddf9f5e9e7df2f27f16479"},
    });
    assert_eq!(lines[1], wanted);
    let lines =
        folder.run_to(0, ["head", &golden("sequences.tfrecord"), "--json", "--skip", "2", "--column", "speed"]).lines();
    assert_eq!(lines[0]["speed"], json!([[0.0, 0.0], [1.0, -1.0], [2.0, -2.0]]));
    assert_eq!((lines.len(), lines[0].as_object().unwrap().len()), (2, 2));
}

#[test]
fn records_are_text_by_default() {
    let folder = Folder::new();
    let ended =
        folder.run_to(0, ["head", &golden("examples.tfrecord"), "-n", "1", "--column", "label", "--column", "image"]);
    let url = golden("examples.tfrecord");
    let wanted = format!("file://{url}, record 0, byte 0\n  image  10 bytes, sha256 01d448af…\n  label  -2\n");
    assert_eq!(ended.out, wanted);
}

#[test]
fn skipping_goes_through_shards_with_and_without_index() {
    let folder = Folder::new();
    folder.put("a.tfrecord", &shard(ids(0..100), Compression::None));
    folder.put("b.tfrecord", &shard(ids(100..200), Compression::Gzip));
    folder.put("c.tfrecord", &shard(ids(200..300), Compression::None));
    for (skip, num, last) in [(0, 3, 2), (98, 4, 101), (150, 1, 150), (198, 5, 202), (250, 100, 299)] {
        let (skip, num) = (skip.to_string(), num.to_string());
        let url = folder.url("*.tfrecord");
        let lines = folder.run_to(0, ["head", &url, "--json", "--skip", &skip, "-n", &num, "--column", "id"]).lines();
        assert_eq!(
            (&lines[0]["id"], &lines[lines.len() - 1]["id"]),
            (&json!(skip.parse::<u64>().unwrap()), &json!(last))
        );
        assert_eq!(lines[0]["_place"]["record"], skip.parse::<u64>().unwrap() % 100);
    }
    let ended = folder.run_to(0, ["head", &folder.url("a.tfrecord"), "--skip", "100"]);
    assert!(ended.out.is_empty() && ended.err.starts_with("note: "), "{}", ended.err);
}

#[test]
fn long_lists_are_cut_in_text_and_where_that_is_asked_for() {
    let folder = Folder::new();
    let url = folder.put("a", &shard([Example::new().with_int64("x", 0..40).encode()], Compression::None));
    assert_eq!(folder.run_to(0, ["head", &url, "--json"]).lines()[0]["x"].as_array().unwrap().len(), 40);
    let cut = folder.run_to(0, ["head", &url, "--json", "--max-values", "2"]).lines();
    assert_eq!(cut[0]["x"], json!({"len": 40, "first": [0, 1]}));
    assert!(folder.run_to(0, ["head", &url]).out.ends_with("14, 15, …] 40 values\n"));
}

#[test]
fn images_are_described_and_saved() {
    let folder = Folder::new();
    let jpeg = picture("rgb-420.jpg");
    let payload = Example::new().with_bytes("image/encoded", [&jpeg]).with_bytes("pair", [vec![0; 3], vec![1; 4]]);
    let payload = payload.with_bytes("name", ["tench"]).encode();
    let url = folder.put("train-07.tfrecord", &shard([payload], Compression::None));
    let out = folder.url("out");
    let line = folder.run_to(0, ["head", &url, "--json", "--save", &out]).lines().remove(0);
    let image = &line["image/encoded"];
    assert_eq!((&image["holds"], &image["bytes"]), (&json!("jpeg"), &json!(jpeg.len())));
    assert!(image["width"].as_u64().unwrap() > 0 && image["height"].as_u64().unwrap() > 0);
    assert_eq!(line["name"], "tench");
    assert_eq!(image["file"], format!("{out}/train-07-0-image_encoded.jpg"));
    assert_eq!(std::fs::read(image["file"].as_str().unwrap()).unwrap(), jpeg);
    assert_eq!(line["pair"][1]["file"], format!("{out}/train-07-0-pair-1.bin"));
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 3);

    let again = folder.run_to(2, ["head", &url, "--save", &out]);
    assert!(again.err.contains("--force"), "{}", again.err);
    folder.run_to(0, ["head", &url, "--save", &out, "--force"]);
    folder.run_to(2, ["head", &url, "--force"]);
}

#[test]
fn saved_names_stay_in_their_folder() {
    let folder = Folder::new();
    let payload = Example::new().with_bytes("../../evil", [vec![0; 100]]).with_bytes("/etc/x", [vec![1; 100]]).encode();
    let url = folder.put("a", &shard([payload], Compression::None));
    folder.run_to(0, ["head", &url, "--save", &folder.url("deep/out")]);
    assert_eq!(std::fs::read_dir(folder.path("deep/out")).unwrap().count(), 2);
    assert_eq!(std::fs::read_dir(folder.path("deep")).unwrap().count(), 1);
}

#[test]
fn damage_is_said_and_what_can_be_read_is_shown() {
    let folder = Folder::new();
    let mut bytes = shard(ids(0..10), Compression::None);
    let starts = offsets(&bytes);
    bytes[starts[1] + 20] ^= 1;
    bytes[starts[4]] ^= 1;
    folder.put("a.tfrecord", &bytes);
    folder.put("b.tfrecord", &shard(ids(10..20), Compression::None));
    let ended = folder.run_to(1, ["head", &folder.url("*.tfrecord"), "--json", "--column", "id"]);
    let shown: Vec<_> = ended.lines().iter().map(|line| line["id"].as_u64().unwrap()).collect();
    assert_eq!(shown, [0, 2, 3, 10, 11]);
    assert_eq!(ended.err.lines().count(), 2, "{}", ended.err);
}

#[test]
fn columns_and_shards_that_are_not_there_are_named() {
    let folder = Folder::new();
    let ended = folder.run_to(2, ["head", &golden("examples.tfrecord"), "--column", "lable"]);
    assert!(ended.err.contains("label"), "{}", ended.err);
    let ended = folder.run_to(1, ["head", &golden("records.tfrecord"), "--skip", "1"]);
    assert!(ended.err.contains("--records"), "{}", ended.err);
    assert_eq!(folder.run_to(0, ["head", &golden("records.tfrecord"), "--records", "--json"]).lines()[0]["record"], "");
    folder.run_to(3, ["head", &folder.url("absent")]);
    folder.run_to(3, ["head", &folder.url("*.tfrecord")]);
    folder.run_to(2, ["head", "a", "-n", "x"]);
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let folder = Folder::new();
    let url = folder.put("a", &shard(ids(0..20_000), Compression::None));
    for json in [&["--json"][..], &[]] {
        let mut command = folder.command(["head", &url, "-n", "20000"].iter().chain(json));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((child.wait().unwrap().code(), &err[..]), (Some(0), ""));
    }
}
