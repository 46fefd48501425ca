//! `forebay convert`: interrupted, refused, and what scripts read of it.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use forebay::Compression;
use forebay::format::example::Example;

use crate::support::{Folder, ids, interruptible, shard};

fn convert(src: &Path, dest: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("convert").args([src, dest]).args(options);
    command
}

fn run(src: &Path, dest: &Path, options: &[&str]) -> (i32, Output) {
    let output = convert(src, dest, options).output().expect("it starts");
    (output.status.code().expect("it ends by itself"), output)
}

/// Copies of a picture in two folders.
fn pictures(folder: &Path, picture: &str, copies: usize) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images").join(picture);
    let src = folder.join("src");
    for class in ["cat", "dog"] {
        std::fs::create_dir_all(src.join(class)).expect("a folder");
        for number in 0..copies / 2 {
            std::fs::copy(&golden, src.join(class).join(format!("{number:04}-{picture}"))).expect("a copy");
        }
    }
    src
}

/// Files of a folder with their content, by name; those that listings pass over left out.
fn shards(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let files = entries.filter_map(|entry| {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("ASCII");
        // A hidden part may be renamed while this looks, and a shard behind a gap is removed by the run that goes on.
        let content = (!name.starts_with(['.', '_'])).then(|| std::fs::read(entry.path()).ok());
        Some((name, content.flatten()?))
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    files
}

#[test]
fn an_interrupted_run_leaves_whole_shards_and_the_next_one_makes_the_rest() {
    let folder = tempfile::tempdir().expect("a folder");
    let src = pictures(folder.path(), "large.jpg", 600);
    let options = ["--encode", "png", "--shard-records", "20", "--threads", "2", "--shuffle", "1"];
    let (whole, dest) = (folder.path().join("whole"), folder.path().join("dest"));
    let (code, output) = run(&src, &whole, &options);
    assert_eq!(code, 0, "{output:?}");
    let expected = shards(&whole);
    assert_eq!(expected.len(), 30);

    for interruption in 0..3 {
        let before = shards(&dest).len();
        let mut child =
            interruptible(&convert(&src, &dest, &options)).stderr(Stdio::null()).spawn().expect("it starts");
        let deadline = Instant::now() + Duration::from_secs(120);
        while shards(&dest).len() <= before {
            assert!(Instant::now() < deadline, "no shard appears");
            std::thread::yield_now();
        }
        let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(interrupt.expect("there is kill").success());
        let status = child.wait().expect("it ends");
        assert_eq!(status.signal(), Some(2), "interruption {interruption}: it was done before it was interrupted");
        let there = shards(&dest);
        assert!(there.len() > before && there.len() < expected.len());
        assert!(there.iter().all(|shard| expected.contains(shard)), "a shard that is not whole");
    }
    let before = shards(&dest).len();
    let (code, output) = run(&src, &dest, &[&options[..], &["--json"]].concat());
    assert_eq!(code, 0, "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    // A shard whose line in the journal was not written is made again: each interruption may leave one of either thread.
    assert!(json["written"].as_u64().expect("a number") <= 30 - before as u64 + 3 * 2, "{json}");
    assert!(shards(&dest) == expected);
    let hidden = std::fs::read_dir(&dest).expect("the folder").map(|entry| entry.expect("an entry").file_name());
    assert_eq!(hidden.filter(|name| name.to_string_lossy().starts_with('.')).count(), 0);
}

#[test]
fn results_are_one_json_object_and_codes_say_how_it_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let src = pictures(folder.path(), "rgb8.png", 6);
    let (dest, again) = (folder.path().join("dest"), folder.path().join("again"));
    let (code, output) = run(&src, &dest, &["--json", "--shard-records", "4"]);
    assert_eq!((code, output.stderr.len()), (0, 0), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("one object and nothing else");
    for (key, value) in [("shards", 2), ("records", 6), ("skipped", 0), ("written", 2), ("classes", 2), ("ignored", 0)]
    {
        assert_eq!(json[key], value, "{key}");
    }
    let bytes: usize = shards(&dest).iter().map(|(_, content)| content.len()).sum();
    assert_eq!(json["bytes"], bytes);
    assert_eq!(json["dest"], dest.canonicalize().expect("it is there").to_str().expect("ASCII"));

    // Usage: it is all there; no such option; options that exclude each other.
    for (dest, options) in
        [(&dest, &["--shard-records", "4"][..]), (&again, &["--shard-bytes", "64M"]), (&again, &["--quality", "5"])]
    {
        let (code, output) = run(&src, dest, options);
        assert_eq!((code, output.stdout.len()), (2, 0), "{options:?}: {output:?}");
        assert!(!output.stderr.is_empty() && !again.exists());
    }
    // Not to be read.
    let (code, output) = run(&folder.path().join("none"), &again, &["--json"]);
    let error: Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!((code, &error["error"]["kind"]), (3, &Value::from("NotFound")));
    // Bad data, and left out.
    std::fs::write(src.join("dog/bad.jpg"), "no image").expect("a file");
    let (code, output) = run(&src, &again, &["--quiet"]);
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(code == 1 && text.contains("dog/bad.jpg") && text.contains("--skip-bad"), "{text}");
    let (code, output) = run(&src, &again, &["--json", "--skip-bad", "1"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((code, &json["skipped"], json["bad"].as_array().map(Vec::len)), (0, &Value::from(1), Some(1)), "{json}");
    assert!(json["bad"][0]["url"].as_str().is_some_and(|url| url.ends_with("dog/bad.jpg")), "{json}");
}

#[test]
fn what_is_in_the_way_stays_unless_forced() {
    let folder = tempfile::tempdir().expect("a folder");
    let src = pictures(folder.path(), "rgb8.png", 2);
    let dest = folder.path().join("dest");
    std::fs::create_dir(&dest).expect("a folder");
    let name = dest.join("data-00000-of-00001.tfrecord");
    std::fs::write(&name, "not ours").expect("a file");
    let (code, output) = run(&src, &dest, &[]);
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(code == 2 && text.contains("data-00000-of-00001.tfrecord") && text.contains("--force"), "{text}");
    assert_eq!(std::fs::read(&name).expect("it is there"), b"not ours");
    assert_eq!(run(&src, &dest, &["--force"]).0, 0);
    assert_ne!(std::fs::read(&name).expect("it is there"), b"not ours");
}

#[test]
fn a_row_by_row_run_that_is_killed_goes_on_with_the_shards_it_has() {
    let folder = tempfile::tempdir().expect("a folder");
    let src = pictures(folder.path(), "large.jpg", 480);
    let options =
        ["--to", "jsonl", "--rows-per-shard", "16", "--threads", "2", "--compression", "gzip", "--encode", "png"];
    let (whole, dest) = (folder.path().join("whole"), folder.path().join("dest"));
    assert_eq!(run(&src, &whole, &options).0, 0);
    let expected = shards(&whole);
    assert_eq!(expected.len(), 30);
    // Those that a run goes on from: noted in the journal, without a gap.
    let noted = || {
        let journal = std::fs::read_to_string(dest.join(".forebay-writer.journal")).unwrap_or_default();
        let lines = journal.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let numbers: BTreeSet<u64> = lines.filter_map(|line| line["shard"]["number"].as_u64()).collect();
        (0..).take_while(|number| numbers.contains(number)).count()
    };
    let mut before = 0;
    for _ in 0..3 {
        let mut child =
            convert(&src, &dest, &options).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
        let deadline = Instant::now() + Duration::from_secs(120);
        while noted() <= before {
            assert!(Instant::now() < deadline, "no shard appears");
            std::thread::yield_now();
        }
        child.kill().expect("it runs");
        let status = child.wait().expect("it ends");
        assert_eq!(status.signal(), Some(9), "it was done before it was killed");
        let there = shards(&dest);
        before = noted();
        assert!(there.len() >= before && there.len() < expected.len());
        assert!(there.iter().all(|shard| expected.contains(shard)), "a shard that is not whole");
    }
    let (code, output) = run(&src, &dest, &[&options[..], &["--json"]].concat());
    assert_eq!(code, 0, "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["written"], 30 - before, "{json}");
    assert!(shards(&dest) == expected);
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").file_name());
        entries.collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&dest), names(&whole));
}

#[test]
fn formats_are_chosen_and_what_cannot_be_is_said_with_its_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let src = pictures(folder.path(), "rgb8.png", 6);
    let dest = folder.path().join("lines");
    let (code, output) =
        run(&src, &dest, &["--to", "jsonl", "--json", "--columns", "image/filename,image/class/label"]);
    assert_eq!((code, output.stderr.len()), (0, 0), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("one object and nothing else");
    for (key, value) in [("shards", 1), ("records", 6), ("skipped", 0), ("written", 1), ("classes", 2)] {
        assert_eq!(json[key], value, "{key}");
    }
    assert_eq!((&json["to"], &json["from"]), (&"jsonl".into(), &"images".into()));
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(dest.join("_manifest.json")).expect("it is there")).expect("JSON");
    assert_eq!((&manifest["format"], &manifest["rows"]), (&"jsonl".into(), &6.into()));
    let again = folder.path().join("again");
    for (options, what) in [
        (&["--to", "tar"][..], "--rename image/encoded="),
        (&["--to", "jsonl", "--compression", "snappy"], "none, gzip, zstd"),
        (&["--to", "jsonl", "--columns", "nothing"], "image/encoded"),
        (&["--to", "jsonl", "--bloom", "x"], "--to parquet"),
        (&["--to", "jsonl", "--rename", "x"], "OLD=NEW"),
    ] {
        let (code, output) = run(&src, &again, options);
        let text = String::from_utf8(output.stderr).expect("text");
        // A column that a format cannot hold is of the data, the others of the command.
        assert!(code == if options[1] == "tar" { 1 } else { 2 } && text.contains(what), "{code} {options:?}: {text}");
        assert!(shards(&again).is_empty());
    }
    let (code, output) = run(&src, &dest, &["--to", "jsonl"]);
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(code == 2 && text.contains("--force"), "{text}");
    assert_eq!(run(&src, &dest, &["--to", "jsonl", "--force"]).0, 0);
}

#[test]
fn missing_values_are_refused_as_nulls_are() {
    let folder = Folder::new();
    let records = [
        Example::new().with_int64("a", [1]).with_bytes("list", ["x", "y"]),
        Example::new().with_int64("a", [2]),
        Example::new().with_bytes("list", ["z"]),
    ];
    let src = folder.put("a.tfrecord", &shard(records.iter().map(Example::encode), Compression::None));
    for to in ["jsonl", "parquet"] {
        let err = folder.run_to(1, ["convert", &src, &folder.url(to), "--to", to]).err;
        assert!(err.contains("record 2") && err.contains("column a"), "{err}");
        assert!(err.contains("--skip-bad") && err.contains("--columns"), "{err}");
    }
    // A list that is not there is an empty one.
    let out = folder.url("lists");
    folder.run_to(0, ["convert", &src, &out, "--to", "jsonl", "--skip-bad", "1"]);
    let lines = std::fs::read_to_string(folder.path("lists/data-00000.jsonl")).expect("a shard");
    assert_eq!(lines, "{\"a\":1,\"list\":[\"x\",\"y\"]}\n{\"a\":2,\"list\":[]}\n");

    let src = archive(&folder, &[("0.cls", "7"), ("0.txt", "a"), ("1.txt", "b")]);
    let err = folder.run_to(1, ["convert", &src, &folder.url("tar"), "--to", "tar"]).err;
    assert!(err.contains("record 1") && err.contains("column cls"), "{err}");
}

/// Writes `a.tar` with these members.
fn archive(folder: &Folder, members: &[(&str, &str)]) -> String {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content.as_bytes()).expect("memory takes it");
    }
    folder.put("a.tar", &archive.into_inner().expect("memory takes it"))
}

#[test]
fn archives_have_no_two_members_of_one_name() {
    let folder = Folder::new();
    let out = |name: &str| folder.url(name);
    let src = folder.put("case.jsonl", b"{\"A\": 1, \"a\": 2}\n");
    let err = folder.run_to(1, ["convert", &src, &out("case"), "--to", "tar"]).err;
    assert!(err.contains("`A` and `a`") && err.contains("--rename a=a_2"), "{err}");
    folder.run_to(0, ["convert", &src, &out("renamed"), "--to", "tar", "--rename", "a=a_2"]);

    let rows = ["k", "j", "k"].map(|key| format!("{{\"__key__\": \"{key}\", \"x\": 1}}\n")).concat();
    let src = folder.put("keys.jsonl", rows.as_bytes());
    let err = folder.run_to(1, ["convert", &src, &out("keys"), "--to", "tar"]).err;
    assert!(err.contains("record 2, column __key__") && err.contains("`k`"), "{err}");
    // In an archive of its own the key is no other's.
    folder.run_to(0, ["convert", &src, &out("two"), "--to", "tar", "--rows-per-shard", "2"]);
}

#[test]
fn the_renaming_that_is_proposed_is_taken() {
    let folder = Folder::new();
    let src = folder.put("unnamed.csv", b"a,,b/c\n1,2,3\n");
    let err = folder.run_to(1, ["convert", &src, &folder.url("refused"), "--to", "tar"]).err;
    let (_, proposed) = err.trim_end().split_once("--rename ").expect("it proposes one");
    assert_eq!(proposed, "=unnamed,b/c=b.c");
    folder.run_to(0, ["convert", &src, &folder.url("out"), "--to", "tar", "--rename", proposed]);
}

#[test]
fn a_folder_from_which_a_shard_is_missing_is_not_converted() {
    let folder = Folder::new();
    folder.put("in.tfrecord", &shard(ids(0..30), Compression::None));
    let (first, second) = (folder.url("first"), folder.url("second"));
    folder.run_to(0, ["convert", &folder.url("in.tfrecord"), &first, "--to", "jsonl", "--rows-per-shard", "10"]);
    std::fs::remove_file(folder.path("first/data-00001.jsonl")).unwrap();
    let ended = folder.run_to(3, ["convert", &first, &second, "--to", "tfrecord"]);
    assert!(ended.err.contains("no such shard, and the folder's _manifest.json names it"), "{}", ended.err);
    assert!(!folder.path("second/_manifest.json").exists());
    let named = folder.url("first/data-0000[02].jsonl");
    folder.run_to(0, ["convert", &named, &second, "--to", "tfrecord"]);
}
