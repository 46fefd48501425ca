use rand::Rng as _;

use super::*;
use crate::random::Key;
use crate::store::{Store, StoreOptions};

const MIB: usize = 1 << 20;

fn content(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    rand::RngCore::fill_bytes(&mut Key::new(seed).rng(), &mut bytes);
    bytes.into()
}

fn put(url: &str, seed: u64, len: usize) -> Bytes {
    let bytes = content(seed, len);
    Store::memory_put(url, bytes.clone()).unwrap();
    bytes
}

fn store(root: &Path, limit: usize) -> Store {
    StoreOptions::new().cache(root, limit as u64).build()
}

/// Reads a range, and returns how many bytes came from the store.
async fn read(store: &Store, url: &str, range: Range<u64>, expected: &Bytes) -> u64 {
    let before = store.transfers();
    let object = store.head(url).await.unwrap();
    let bytes = store.read(&object, range.clone()).await.unwrap();
    assert_eq!(bytes, expected[range.start as usize..range.end as usize], "{url} {range:?}");
    let after = store.transfers();
    assert_eq!(after.bytes - before.bytes + after.cached - before.cached, range.end - range.start);
    after.bytes - before.bytes
}

#[tokio::test]
async fn what_was_read_is_read_from_the_disk_by_this_process_and_others() {
    let folder = tempfile::tempdir().unwrap();
    let url = "memory://cache-shared/a folder/part 0.rec";
    let expected = put(url, 1, 3 * MIB);
    let (one, two) = (store(folder.path(), 10 * MIB), store(folder.path(), 10 * MIB));
    assert_eq!(read(&one, url, 100..2_000_000, &expected).await, 1_999_900);
    assert_eq!(read(&one, url, 100..2_000_000, &expected).await, 0);
    // Any part of it; what the other has read since; and where anything is missing, all.
    assert_eq!(read(&two, url, 5000..5001, &expected).await, 0);
    assert_eq!(read(&two, url, 1_900_000..2_100_000, &expected).await, 200_000);
    assert_eq!(read(&one, url, 1_900_000..2_100_000, &expected).await, 0);
    assert_eq!(read(&one, url, 100..2_100_000, &expected).await, 0);
    assert_eq!(read(&one, url, 99..2_100_000, &expected).await, 2_099_901);
    assert_eq!(read(&two, url, 99..2_100_000, &expected).await, 0);
}

#[test]
fn no_piece_is_longer_than_what_is_read_for_one_byte_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), 1 << 30).unwrap();
    let object = Object { url: "gs://bucket/x".into(), size: 1 << 30, etag: Some("a".into()), modified: None };
    let entry = cache.entry(&object).unwrap();
    cache.keep(&entry, 1000, &content(1, 3 * PIECE));
    let pieces: Vec<(u64, u64)> = lock(&entry.known).pieces.iter().map(|(start, piece)| (*start, piece.end)).collect();
    let at = |piece: usize| (piece * PIECE) as u64;
    assert_eq!(pieces, [(1000, at(1)), (at(1), at(2)), (at(2), at(3)), (at(3), at(3) + 1000)]);
    assert_eq!(cache.pieces.load(Ordering::Relaxed), MOST_PIECES - 4);
    // Once there are as many as may be, nothing more is kept, or read from the log.
    cache.pieces.store(0, Ordering::Relaxed);
    cache.keep(&entry, 0, &content(2, 1000));
    assert!(entry.has(&(1000..2000)) && !entry.has(&(0..1000)));
}

#[tokio::test]
async fn any_ranges_of_any_versions_are_what_the_store_has() {
    for seed in 0..6 {
        let (folder, mut rng) = (tempfile::tempdir().unwrap(), Key::new(seed).rng());
        let url = format!("memory://cache-random-{seed}/x");
        let mut expected = put(&url, seed, 50_000);
        let stores = [0, 1].map(|_| store(folder.path(), 200_000));
        let is_log = |path: &PathBuf| path.extension().is_some_and(|end| end == "log");
        let entry = || files_in(folder.path()).map(|(path, _)| path).find(is_log);
        for step in 0..300u64 {
            let start = rng.random_range(0..50_000);
            let end = rng.random_range(start..=50_000.min(start + 8000));
            read(&stores[rng.random_range(0..2)], &url, start..end, &expected).await;
            match (rng.random_range(0..30), entry()) {
                (0, _) => expected = put(&url, seed * 1000 + step, 50_000),
                // What a process that is killed, or a disk, leaves behind.
                (1, Some(log)) => OpenOptions::new().append(true).open(log).unwrap().write_all(&[7; 11]).unwrap(),
                (2, Some(log)) => {
                    File::options().write(true).open(log).unwrap().set_len(rng.random_range(0..200)).unwrap()
                }
                (3, Some(log)) => fs::remove_file(log.with_extension("data")).unwrap_or(()),
                (4, Some(log)) => {
                    let data = File::options().write(true).open(log.with_extension("data"));
                    _ = data.map(|data| data.write_all_at(&[0; 5000], rng.random_range(0..50_000)));
                }
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn bytes_of_another_version_are_not_taken_for_those_that_were_listed() {
    let folder = tempfile::tempdir().unwrap();
    let url = "memory://cache-versions/x";
    let old = put(url, 1, 10_000);
    let (one, two) = (store(folder.path(), MIB), store(folder.path(), MIB));
    let listed = one.head(url).await.unwrap();
    assert_eq!(one.read(&listed, 0..1000).await.unwrap(), old[..1000]);
    let new = put(url, 2, 10_000);
    for start in (0..10_000).step_by(1000) {
        assert_eq!(read(&two, url, start..start + 1000, &new).await, 1000);
    }
    for range in [0..1000, 2000..3000] {
        let error = one.read(&listed, range).await.unwrap_err();
        assert!(error.to_string().contains("list it again"), "{error}");
    }
    assert_eq!(read(&one, url, 2000..3000, &new).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reads_at_the_same_time_lose_nothing() {
    for round in 0..20u64 {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("memory://cache-together-{round}/x");
        let expected = put(&url, round, 320 * 700);
        let stores = [0, 1].map(|_| store(folder.path(), 10 * MIB));
        let reads = (0..640u64).map(|number| {
            let (store, url, expected) = (stores[number as usize % 2].clone(), url.clone(), expected.clone());
            let start = number / 2 * 700;
            let end = (start + if number % 7 == 0 { 1400 } else { 700 }).min(expected.len() as u64);
            tokio::spawn(async move {
                let object = store.head(&url).await.unwrap();
                assert_eq!(store.read(&object, start..end).await.unwrap(), expected[start as usize..end as usize]);
            })
        });
        for read in reads.collect::<Vec<_>>() {
            read.await.unwrap();
        }
        for store in stores.iter().chain([&store(folder.path(), 10 * MIB)]) {
            for start in (0..320 * 700).step_by(700) {
                assert_eq!(read(store, &url, start..start + 700, &expected).await, 0, "{round}: {start}");
            }
        }
    }
}

#[tokio::test]
async fn a_full_cache_keeps_what_it_has_and_takes_room_from_folders_that_nobody_uses() {
    let folder = tempfile::tempdir().unwrap();
    let url = |data: &str, shard: usize| format!("memory://cache-full/{data}/{shard}");
    let mut expected = Vec::new();
    for shard in 0..6 {
        expected.push(content(shard as u64, MIB));
        for data in ["old", "new", "used"] {
            Store::memory_put(&url(data, shard), expected[shard].clone()).unwrap();
        }
    }
    let pass = async |store: &Store, data: &str, shards: Range<usize>| {
        let mut fetched = 0;
        for shard in shards {
            fetched += read(store, &url(data, shard), 0..MIB as u64, &expected[shard]).await;
        }
        fetched / MIB as u64
    };
    let limit = 4 * MIB + MIB / 2;
    // As the file system counts: not each takes as many blocks for a file as another.
    let is_full = || (limit - MIB + 1..=limit).contains(&(bytes_in(folder.path()) as usize));
    let using = store(folder.path(), limit);
    assert_eq!(pass(&using, "used", 0..1).await, 1);
    let before = store(folder.path(), limit);
    assert_eq!(pass(&before, "old", 0..6).await, 6);
    assert!(is_full());
    let lacking = pass(&before, "old", 0..6).await;
    assert!((1..6).contains(&lacking), "some fit beside the other: {lacking} of 6 do not");
    drop(before);
    let now = store(folder.path(), limit);
    assert_eq!(pass(&now, "new", 0..6).await, 6);
    assert!(is_full());
    assert_eq!(pass(&now, "new", 0..6).await, lacking, "those of the old folder made room");
    assert_eq!(pass(&using, "used", 0..1).await, 0, "a folder that is in use stays");
    assert_eq!(pass(&using, "old", 0..1).await, 1);
}

#[tokio::test]
async fn what_a_folder_in_use_has_lost_makes_room_in_a_day() {
    let folder = tempfile::tempdir().unwrap();
    let url = |shard: u64| format!("memory://cache-lost/x/{shard}");
    let expected: Vec<Bytes> = (0..3).map(|shard| put(&url(shard), shard, MIB)).collect();
    let whole = async |store: &Store, shard: u64| {
        read(store, &url(shard), 0..MIB as u64, &expected[shard as usize]).await / MIB as u64
    };
    let new = || store(folder.path(), 2 * MIB + MIB / 2);
    let using = new();
    assert_eq!((whole(&using, 0).await, whole(&using, 1).await), (1, 1));
    let other = new();
    assert_eq!((whole(&other, 2).await, whole(&other, 2).await), (1, 1), "there is no room");
    let log = |shard: u64| {
        let name = format!("{:032x}.log", xxh3_128(url(shard).as_bytes()));
        files_in(folder.path()).map(|(path, _)| path).find(|path| path.ends_with(&name)).unwrap()
    };
    let old = SystemTime::now() - 2 * UNUSED_FOR;
    File::options().write(true).open(log(1)).unwrap().set_modified(old).unwrap();
    let other = new();
    assert_eq!((whole(&other, 2).await, whole(&other, 2).await), (1, 0));
    assert_eq!((whole(&using, 0).await, whole(&using, 1).await), (0, 1));
}

#[tokio::test]
async fn a_cache_that_cannot_be_used_is_an_error_and_one_that_goes_away_none() {
    let folder = tempfile::tempdir().unwrap();
    let url = "memory://cache-broken/x";
    let expected = put(url, 1, MIB);
    let file = folder.path().join("file");
    fs::write(&file, "no folder").unwrap();
    let blocked = store(&file, MIB);
    let object = blocked.head(url).await.unwrap();
    let error = blocked.read(&object, 0..10).await.unwrap_err().to_string();
    assert!(error.contains("the cache's folder cannot be used") && error.contains("StoreOptions::cache"), "{error}");

    let inside = folder.path().join("inside");
    let gone = store(&inside, 10 * MIB);
    assert_eq!(read(&gone, url, 0..1000, &expected).await, 1000);
    fs::remove_dir_all(&inside).unwrap();
    assert_eq!(read(&gone, url, 0..1000, &expected).await, 1000);
    assert_eq!(read(&gone, url, 0..2000, &expected).await, 2000);
}
