//! `gs://` against a real emulator: what is listed can be read, exactly, whatever it is called.

use forebay::ErrorKind;
use forebay::store::Store;

use crate::support::fake_gcs::FakeGcs;

const BUCKET: &str = "shards";

fn content(key: &str) -> Vec<u8> {
    key.bytes().cycle().take(10_000 + key.len()).collect()
}

fn start(keys: &[&str]) -> Option<(FakeGcs, Store)> {
    let server = FakeGcs::start(BUCKET)?;
    for key in keys {
        server.put(BUCKET, key, &content(key));
    }
    let store = server.options().build();
    Some((server, store))
}

#[tokio::test]
async fn odd_keys_are_listed_asked_for_and_read() {
    let keys = ["a b/c d.rec", "größe/😀.rec", "hash#1.rec", "plus+and&.rec", "x%20y.rec", "x[1]{2}.rec"];
    let Some((_server, store)) = start(&keys) else { return };
    let objects = store.list(&["gs://shards/"]).await.unwrap();
    let urls: Vec<_> = objects.iter().map(|object| &*object.url).collect();
    assert_eq!(urls, keys.map(|key| format!("gs://shards/{key}")));
    for (object, key) in objects.iter().zip(keys) {
        let whole = content(key);
        assert_eq!(object.size, whole.len() as u64, "{key}");
        assert!(object.etag.is_some() && object.modified.is_some(), "{key}");
        let asked = store.head(&object.url).await.unwrap();
        assert_eq!((&asked.url, asked.size, &asked.etag), (&object.url, object.size, &object.etag));
        assert_eq!(store.read(object, 0..object.size).await.unwrap(), whole, "{key}");
        assert_eq!(store.read(object, 77..9_001).await.unwrap(), whole[77..9_001], "{key}");
        assert_eq!(store.read(object, object.size - 1..object.size).await.unwrap(), whole[whole.len() - 1..], "{key}");
    }
}

#[tokio::test]
async fn patterns_find_shards_and_only_those() {
    let keys =
        ["t/train-00000.rec", "t/train-00001.rec", "t/train-00001.rec.idx", "t/train-x/0.rec", "t/val-00000.rec"];
    let Some((_server, store)) = start(&keys) else { return };
    let cases: [(&str, &[&str]); 5] = [
        ("t/train-*.rec", &keys[..2]),
        ("t/train-{00000..00001}.rec", &keys[..2]),
        ("t/**/*.rec", &["t/train-00000.rec", "t/train-00001.rec", "t/train-x/0.rec", "t/val-00000.rec"]),
        ("t/", &keys),
        ("t/{val,train}-00000.rec", &["t/train-00000.rec", "t/val-00000.rec"]),
    ];
    for (pattern, expected) in cases {
        let objects = store.list(&[format!("gs://shards/{pattern}")]).await.unwrap();
        let found: Vec<_> = objects.iter().map(|object| object.url.strip_prefix("gs://shards/").unwrap()).collect();
        assert_eq!(found, expected, "{pattern}");
    }
}

#[tokio::test]
async fn what_is_missing_is_named_with_what_is_there() {
    let Some((_server, store)) = start(&["t/train-00000.rec", "t/train-00001.rec"]) else { return };
    for (pattern, words) in [
        ("gs://shards/t/train-{00000..00002}.rec", "train-00002.rec"),
        ("gs://shards/t/test-*", "nothing matches"),
        ("gs://shards/t/train-7.rec", "there are 2 files at gs://shards/t/: train-00000.rec, train-00001.rec"),
        ("gs://shards/t", "it is a folder"),
        ("gs://elsewhere/x.rec", "no such object"),
    ] {
        let error = store.list(&[pattern]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains(words), "{pattern}: {error}");
    }
    assert_eq!(store.read_whole_if_exists("gs://shards/none.idx").await.unwrap(), None);
}

#[tokio::test]
async fn a_shard_that_was_replaced_is_noticed_although_the_emulator_ignores_if_match() {
    let Some((server, store)) = start(&["a.rec"]) else { return };
    let object = store.head("gs://shards/a.rec").await.unwrap();
    let other: Vec<u8> = content("a.rec").iter().map(|byte| !byte).collect();
    server.put(BUCKET, "a.rec", &other);
    let error = store.read(&object, 0..100).await.unwrap_err();
    assert!(error.to_string().contains("list it again"), "{error}");
    let object = store.head("gs://shards/a.rec").await.unwrap();
    assert_eq!(store.read(&object, 0..100).await.unwrap(), other[..100]);
}

#[tokio::test]
async fn more_objects_than_fit_a_page_are_all_listed() {
    let keys: Vec<String> = (0..1100).map(|i| format!("many/{i:05}")).collect();
    let Some((_server, store)) = start(&keys.iter().map(String::as_str).collect::<Vec<_>>()) else { return };
    assert_eq!(store.list(&["gs://shards/many/*"]).await.unwrap().len(), 1100);
}
