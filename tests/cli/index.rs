//! `forebay index`.

use std::fs;

use forebay::format::tfrecord::{Fingerprint, ShardIndex};
use forebay::{Compression, Dataset};
use serde_json::json;

use crate::support::{Folder, golden, ids, offsets, shard};

fn three(folder: &Folder) -> String {
    folder.put("a.tfrecord", &shard(ids(0..100), Compression::None));
    folder.put("b.tfrecord", &shard(ids(100..150), Compression::Gzip));
    folder.put("c.tfrecord", b"");
    folder.url("*.tfrecord")
}

#[test]
fn indexes_are_written_once_and_checked() {
    let folder = Folder::new();
    let url = three(&folder);
    let found = folder.run_to(1, ["index", &url, "--check", "--json"]).json();
    assert_eq!((&found["valid"], &found["written"], &found["shards"]), (&json!(0), &json!(0), &json!(3)));
    assert_eq!((found["stale"].as_array().unwrap().len(), &found["stale"][0]["reason"]), (3, &json!("there is none")));
    assert!(!folder.index_dir().exists());

    let found = folder.run_to(0, ["index", &url, "--json"]).json();
    assert_eq!((&found["written"], &found["valid"], &found["records"]), (&json!(3), &json!(0), &json!(150)));
    assert_eq!(found["dir"], folder.index_dir().display().to_string());
    assert_eq!(fs::read_dir(folder.index_dir()).unwrap().count(), 3);
    let found = folder.run_to(0, ["index", &url, "--json"]).json();
    assert_eq!((&found["written"], &found["valid"], &found["stale"]), (&json!(0), &json!(3), &json!([])));
    for flags in [&["--check"][..], &["--check", "--deep"], &["--deep"]] {
        let found = folder.run_to(0, ["index", &url, "--json"].iter().chain(flags)).json();
        assert_eq!((&found["valid"], &found["records"]), (&json!(3), &json!(150)));
    }
    let text = folder.run_to(0, ["index", &url]);
    assert_eq!(text.out, format!("3 shards, 150 records: 3 valid, 0 written, in {}\n", folder.index_dir().display()));
}

#[test]
fn loaders_take_what_was_written() {
    let folder = Folder::new();
    let url = three(&folder);
    let dir = folder.url("elsewhere");
    folder.run_to(0, ["index", &url, "--index-dir", &dir]);
    // A global shuffle needs every index; compressed shards have none by themselves.
    let dataset = Dataset::open(&url[..]).unwrap().shuffle(forebay::Shuffle::global()).batch(50);
    let mut loader = dataset.loader().index_dir(&dir).build().unwrap();
    assert_eq!(loader.epoch(0).count(), 3);
}

#[test]
fn changed_shards_and_damaged_indexes_are_stale() {
    let folder = Folder::new();
    let url = three(&folder);
    folder.run_to(0, ["index", &url]);
    folder.put("a.tfrecord", &shard(ids(0..120), Compression::None));
    let found = folder.run_to(1, ["index", &url, "--check", "--json"]).json();
    assert_eq!((&found["valid"], found["stale"].as_array().unwrap().len()), (&json!(2), 1));
    assert!(found["stale"][0]["reason"].as_str().unwrap().contains("size is"), "{found}");
    assert!(folder.run_to(1, ["index", &url, "--check"]).out.contains("1 missing or stale"));
    assert_eq!(folder.run_to(0, ["index", &url, "--json"]).json()["written"], 1);

    for file in fs::read_dir(folder.index_dir()).unwrap() {
        fs::write(file.unwrap().path(), b"rubbish").unwrap();
    }
    let found = folder.run_to(1, ["index", &url, "--check", "--json"]).json();
    assert!(found["stale"][2]["reason"].as_str().unwrap().contains("no valid index"), "{found}");
    assert_eq!(folder.run_to(0, ["index", &url, "--json"]).json()["written"], 3);
}

#[test]
fn a_deep_check_finds_what_size_and_time_hide() {
    let folder = Folder::new();
    let url = folder.put("a", &shard([vec![0; 10], vec![0; 20]], Compression::None));
    folder.run_to(0, ["index", &url]);
    let modified = fs::metadata(&url).unwrap().modified().unwrap();
    folder.put("a", &shard([vec![0; 20], vec![0; 10]], Compression::None));
    fs::File::options().write(true).open(&url).unwrap().set_modified(modified).unwrap();
    folder.run_to(0, ["index", &url, "--check"]);
    let found = folder.run_to(1, ["index", &url, "--check", "--deep", "--json"]).json();
    assert!(found["stale"][0]["reason"].as_str().unwrap().contains("not those of the shard"), "{found}");
    assert_eq!(folder.run_to(0, ["index", &url, "--deep", "--json"]).json()["written"], 1);
    folder.run_to(0, ["index", &url, "--check", "--deep"]);
}

#[test]
fn damaged_shards_are_named_and_the_others_indexed() {
    let folder = Folder::new();
    let url = three(&folder);
    let mut bytes = shard(ids(0..10), Compression::None);
    let at = offsets(&bytes)[6];
    bytes[at] ^= 1;
    let damaged = folder.put("d.tfrecord", &bytes);
    let found = folder.run_to(1, ["index", &url, "--json"]).json();
    assert_eq!((&found["written"], found["bad"].as_array().unwrap().len()), (&json!(3), 1));
    assert_eq!(found["bad"][0]["url"], format!("file://{damaged}"));
    assert!(found["bad"][0]["reason"].as_str().unwrap().starts_with(&format!("record 6, byte {at}: length checksum")));
}

#[test]
fn shards_that_were_cut_off_are_told_from_those_that_changed() {
    let folder = Folder::new();
    let url = three(&folder);
    folder.run_to(0, ["index", &url]);
    let whole = shard(ids(0..100), Compression::None);
    let cut = offsets(&whole)[80];
    let said = |cut: usize, whole: usize| {
        format!(
            "the shard has {cut} bytes, and had {whole} when it was indexed: it may have been cut off while it was copied"
        )
    };
    let has = |text: &str, words: &[&str]| {
        words.iter().for_each(|words| assert!(text.contains(words), "{text} lacks {words}"))
    };

    // Within a record it is damaged, and the index that tells so is kept.
    let path = folder.put("a.tfrecord", &whole[..cut + 30]);
    let within = said(cut + 30, whole.len());
    for _ in 0..2 {
        let found = folder.run_to(1, ["index", &url, "--json"]).json();
        assert_eq!((&found["written"], &found["valid"], &found["stale"]), (&json!(0), &json!(2), &json!([])));
        assert_eq!(found["bad"][0]["url"], format!("file://{path}"));
        let reason = found["bad"][0]["reason"].as_str().unwrap();
        assert!(reason.starts_with(&format!("record 80, byte {cut}: the shard ends inside a record")), "{reason}");
        has(reason, &[&format!("{within}; copy it again")]);
    }
    has(&folder.run_to(1, ["index", &url, "--check"]).out, &[&within, "or, if it was rewritten, index it anew"]);

    // Behind a record nobody can tell but by the index.
    folder.put("a.tfrecord", &whole[..cut]);
    let behind = said(cut, whole.len());
    let found = folder.run_to(1, ["index", &url, "--check", "--json"]).json();
    let stale = json!({
        "url": format!("file://{path}"),
        "reason": format!("{behind}; copy it again, or, if it was rewritten, index it anew, without --check"),
    });
    assert_eq!(found["stale"], json!([stale]));
    let text = folder.run_to(0, ["index", &url]).out;
    has(&text, &[&behind, "copy it again, unless it was rewritten: its index was built anew", "1 written"]);
    let text = folder.run_to(0, ["index", &url]).out;
    assert!(!text.contains("cut off") && text.contains("3 valid"), "{text}");

    // So can one that was copied along with the shard.
    let copied = Folder::new();
    let mut read_at = |offset: u64, into: &mut [u8]| {
        into.copy_from_slice(&whole[offset as usize..][..into.len()]);
        Ok(())
    };
    let fingerprint = Fingerprint { size: whole.len() as u64, ..Fingerprint::default() };
    let index = ShardIndex::hop(&mut read_at, fingerprint).unwrap();
    fs::create_dir(copied.path("_index")).unwrap();
    copied.put("_index/a.tfrecord.index", &index.to_bytes().unwrap());
    let path = copied.put("a.tfrecord", &whole[..cut]);
    has(&copied.run_to(0, ["index", &path]).out, &[&behind, "copy it again, unless it was rewritten", "1 written"]);

    let gzip = shard(ids(100..150), Compression::Gzip);
    folder.put("b.tfrecord", &gzip[..gzip.len() / 2]);
    let found = folder.run_to(1, ["index", &url, "--json"]).json();
    has(
        found["bad"][0]["reason"].as_str().unwrap(),
        &[&format!("{}; copy it again", said(gzip.len() / 2, gzip.len()))],
    );
    assert_eq!((&found["written"], found["bad"].as_array().unwrap().len()), (&json!(0), 1));
}

#[test]
fn folders_that_cannot_be_written_and_shards_that_cannot_be_read_end_with_3() {
    let folder = Folder::new();
    let file = folder.put("file", b"");
    let ended = folder.run_to(3, ["index", &golden("examples.tfrecord"), "--index-dir", &format!("{file}/below")]);
    assert!(ended.err.contains("cannot be written"), "{}", ended.err);
    folder.run_to(3, ["index", &folder.url("absent")]);
    folder.run_to(3, ["index", &folder.url("*.tfrecord")]);
    folder.run_to(2, ["index"]);
}
