//! `gs://` against a real emulator: what is listed can be read, exactly, whatever it is called, and becomes tensors.

use forebay::format::example::Example;
use forebay::store::Store;
use forebay::testing::restores_everywhere;
use forebay::{Compression, Dataset, ErrorKind, Image, Index, Result, Scheduler, Shuffle, bytes, int64};

use crate::support::fake_gcs::FakeGcs;
use crate::support::shards::{Folder, content as file, shard, shard_of_ids};
use crate::support::{take, take_ids};

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

// --- from the bucket to tensors ----------------------------------------------------------------------------------------

#[test]
fn shards_in_a_bucket_are_streamed_first_and_indexed_then() -> Result<()> {
    let Some(server) = FakeGcs::start(BUCKET) else { return Ok(()) };
    let folder = Folder::new();
    server.put(BUCKET, "t/a.tfrecord", &shard_of_ids(0..120, Compression::None));
    server.put(BUCKET, "t/b.tfrecord", &shard_of_ids(120..200, Compression::Gzip));
    let dataset = Dataset::open("gs://shards/t/*.tfrecord")?.batch(16);
    let loader = || folder.loader(&dataset).store(server.options());
    assert_eq!(loader().build()?.steps_per_epoch(), None, "nothing is known of them");
    assert_eq!(take_ids(loader(), "id")?.whole().concat(), (0..200).collect::<Vec<_>>());
    assert_eq!(loader().build()?.steps_per_epoch(), Some(13), "the stream left an index of each");
    for scheduler in [Scheduler::single_threaded(), Scheduler::threads(3)] {
        let taken = take_ids(loader().scheduler(scheduler).index(Index::Build), "id")?;
        assert_eq!(taken.whole().concat(), (0..200).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn a_bucket_is_shuffled_as_a_folder_of_the_same_shards() -> Result<()> {
    let Some(server) = FakeGcs::start(BUCKET) else { return Ok(()) };
    let folder = Folder::with_ids(&[90, 60]);
    for name in ["00.tfrecord", "01.tfrecord"] {
        server.put(BUCKET, name, &file(&folder.url(name)));
    }
    for shuffle in [Shuffle::buffer(40), Shuffle::buffer(200), Shuffle::global()] {
        let there = Dataset::open("gs://shards/*.tfrecord")?.shuffle(shuffle).batch(8);
        let here = folder.all().shuffle(shuffle).batch(8);
        let there = folder.loader(&there).seed(3).store(server.options()).index(Index::Build);
        let taken = take_ids(there, "id")?.whole();
        assert_eq!(taken, take_ids(folder.loader(&here).seed(3), "id")?.whole());
        assert!(!taken.concat().is_sorted());
    }
    Ok(())
}

#[test]
fn digits_in_a_bucket_become_the_tensors_of_the_local_files() -> Result<()> {
    let Some(server) = FakeGcs::start(BUCKET) else { return Ok(()) };
    let digits = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/digits");
    let name = "test-00000-of-00001.tfrecord";
    server.put(BUCKET, &format!("digits/{name}"), &file(&format!("{digits}/{name}")));
    let pixels = |url: String, index| -> Result<Vec<(Vec<i64>, Vec<f32>)>> {
        let folder = Folder::new();
        let dataset = Dataset::open(url)?
            .columns([bytes("image/encoded"), int64("image/class/label")])
            .image("image/encoded", Image::gray().resize(8, 8).to_f32())
            .batch(64);
        let taken = take(folder.loader(&dataset).store(server.options()).index(index), 0, |batch| {
            assert_eq!(batch.shape("image/encoded")?, [batch.len(), 1, 8, 8]);
            #[cfg(feature = "tch")]
            assert_eq!(batch.tensor("image/encoded")?.size(), [batch.len() as i64, 1, 8, 8]);
            Ok((
                batch.values::<i64>("image/class/label")?.into_owned(),
                batch.values::<f32>("image/encoded")?.into_owned(),
            ))
        })?;
        Ok(taken.whole())
    };
    let local = pixels(format!("{digits}/{name}"), Index::Auto)?;
    assert_eq!(local.iter().map(|(labels, _)| labels.len()).sum::<usize>(), 360);
    for index in [Index::Auto, Index::Build] {
        assert!(pixels(format!("gs://shards/digits/{name}"), index)? == local, "{index:?}");
    }
    Ok(())
}

#[test]
fn a_damaged_shard_in_a_bucket_gives_what_is_before_and_names_the_place() -> Result<()> {
    let Some(server) = FakeGcs::start(BUCKET) else { return Ok(()) };
    let folder = Folder::new();
    let sound = shard_of_ids(0..50, Compression::None);
    server.put(BUCKET, "a.tfrecord", &sound[..sound.len() - 3]);
    let dataset = Dataset::open("gs://shards/a.tfrecord")?.columns([int64("id")]).batch(8);
    let taken = take_ids(folder.loader(&dataset).store(server.options()), "id")?;
    let error = taken.failure();
    assert_eq!(taken.batches.concat(), (0..49).collect::<Vec<_>>(), "{error}");
    assert_eq!(
        (error.kind(), error.place().url.as_deref()),
        (ErrorKind::Corrupt, Some("gs://shards/a.tfrecord")),
        "{error}"
    );
    assert_eq!(error.place().record, Some(49), "{error}");
    Ok(())
}

#[test]
fn a_stream_from_a_bucket_goes_on_within_its_shards() -> Result<()> {
    let Some(server) = FakeGcs::start(BUCKET) else { return Ok(()) };
    let folder = Folder::new();
    server.put(BUCKET, "a.tfrecord", &shard_of_ids(0..50, Compression::None));
    // Two blocks of 4 MiB and more, so that reading goes on in the middle of the shard.
    let large =
        (50..140).map(|id| Example::new().with_int64("id", [id]).with_bytes("noise", [vec![7; 100_000]]).encode());
    server.put(BUCKET, "b.tfrecord", &shard(large, Compression::None));
    server.put(BUCKET, "c.tfrecord", &shard_of_ids(140..200, Compression::Gzip));
    let dataset = Dataset::open("gs://shards/*.tfrecord")?.columns([int64("id")]);
    for dataset in [dataset.batch(10), dataset.shuffle(Shuffle::buffer(30)).batch(10)] {
        let dir = folder.index_dir().join(dataset.explain().len().to_string());
        restores_everywhere(dataset.loader().index_dir(dir).store(server.options()))?;
    }
    let mut loader = dataset.batch(10).loader().index_dir(folder.index_dir()).store(server.options()).build()?;
    let state = loader.epoch(0).nth(12).expect("twenty steps")?.state();
    let read_from = state.read_from.expect("there is no index");
    assert!(read_from.shard == 1 && read_from.record > 0 && read_from.offset > 4_000_000, "{read_from:?}");
    Ok(())
}

#[cfg(feature = "parquet")]
#[test]
fn of_parquet_in_a_bucket_the_end_and_the_wanted_columns_alone_are_asked_for() -> Result<()> {
    use std::sync::Arc;

    use object_store::ClientConfigKey;
    use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

    use crate::parquet::{asked, written};
    use crate::support::recording::Recording;

    let Some(server) = FakeGcs::start(BUCKET) else { return Ok(()) };
    let file = written(20_000, true);
    server.put(BUCKET, "p/a.parquet", &file);
    let key = serde_json::json!({
        "gcs_base_url": server.url(), "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": "",
    });
    let bucket = GoogleCloudStorageBuilder::new()
        .with_service_account_key(key.to_string())
        .with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true")
        .with_bucket_name(BUCKET)
        .build()
        .expect("an emulator");
    let store = Recording::new(Arc::new(bucket));
    let ids =
        |dataset: &Dataset, options| Ok::<_, forebay::Error>(take_ids(dataset.loader().store(options), "id")?.whole());
    for names in [&["id"][..], &["id", "bytes"]] {
        let columns = names.iter().map(|&name| if name == "id" { int64(name) } else { bytes(name) });
        let dataset = Dataset::open("gs://shards/p/*.parquet")?.columns(columns.collect::<Vec<_>>()).batch(999);
        let options = forebay::store::StoreOptions::new().register("gs://shards", store.clone());
        assert_eq!(ids(&dataset, options)?.concat(), (0..20_000).collect::<Vec<_>>());
        assert_eq!(store.take(), asked(&file, names), "{names:?}");
        // The same with the loader's own client.
        assert_eq!(ids(&dataset, server.options())?.concat().len(), 20_000);
    }
    let dataset =
        Dataset::open("gs://shards/p/a.parquet")?.columns([int64("id")]).shuffle(Shuffle::buffer(500)).batch(1000);
    restores_everywhere(dataset.loader().store(server.options()))
}
