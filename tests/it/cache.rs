//! Loaders over remote shards, with a cache on a local disk.

use std::sync::Arc;

use forebay::store::StoreOptions;
use forebay::{Compression, Dataset, Index, LoaderBuilder, Result, Shuffle, TfRecord};
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, PutPayload};

use crate::support::recording::Recording;
use crate::support::shards::shard_of_ids;

/// Three shards of 4,000 records in a store that notes what it is asked for, and its name.
fn shards(compression: Compression) -> (Arc<Recording>, Dataset) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let store = Arc::new(InMemory::new());
    for shard in 0..3 {
        let bytes = shard_of_ids(shard * 4000..(shard + 1) * 4000, compression);
        let key = format!("data/{shard}.tfrecord").into();
        runtime.block_on(store.put(&key, PutPayload::from(bytes))).expect("a map takes it");
    }
    let dataset = Dataset::open_with("mine://bucket/data/*.tfrecord", TfRecord::new().records()).expect("a pattern");
    (Recording::new(store), dataset)
}

fn bytes_of(ranges: Vec<std::ops::Range<u64>>) -> u64 {
    ranges.into_iter().map(|range| range.end - range.start).sum()
}

/// Sample ids of an epoch, in order.
fn epoch(builder: LoaderBuilder, number: u64) -> Result<Vec<u64>> {
    let mut loader = builder.build()?;
    let batches = loader.epoch(number).map(|batch| Ok(batch?.samples().to_vec()));
    Ok(batches.collect::<Result<Vec<_>>>()?.concat())
}

#[test]
fn a_second_epoch_and_a_second_process_read_the_disk() -> Result<()> {
    for (shuffle, compression) in [
        (Shuffle::none(), Compression::None),
        (Shuffle::buffer(500), Compression::None),
        (Shuffle::global(), Compression::None),
        (Shuffle::buffer(500), Compression::Gzip),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, dataset) = shards(compression);
        let dataset = dataset.shuffle(shuffle).batch(100);
        let builder = |cached: bool| {
            let options = StoreOptions::new().register("mine://bucket", store.clone());
            let options = if cached { options.cache(folder.path().join("cache"), 1 << 30) } else { options };
            dataset.loader().seed(7).store(options).index(Index::Build).index_dir(folder.path().join("index"))
        };
        let expected = [epoch(builder(false), 0)?, epoch(builder(false), 1)?];
        assert_eq!(expected.each_ref().map(Vec::len), [12_000; 2]);
        store.take();
        assert_eq!(epoch(builder(true), 0)?, expected[0]);
        assert!(bytes_of(store.take()) > 0);
        assert_eq!(epoch(builder(true), 0)?, expected[0]);
        assert_eq!(bytes_of(store.take()), 0, "{shuffle}, {compression:?}");
        assert_eq!(epoch(builder(true), 1)?, expected[1]);
        if shuffle != Shuffle::global() {
            assert_eq!(bytes_of(store.take()), 0, "{shuffle}, {compression:?}");
        }
        // Single rows of another epoch are read in other runs: all are there once all were read.
        store.take();
        let mut loader = builder(true).build()?;
        let samples: usize = loader.epoch(1).map(|batch| batch.map(|batch| batch.len())).sum::<Result<_>>()?;
        assert_eq!((samples, bytes_of(store.take())), (12_000, 0), "{shuffle}, {compression:?}");
        let notes = loader.report().notes;
        assert!(notes.iter().any(|note| note.contains("MiB came out of the cache in")), "{notes:?}");
    }
    Ok(())
}

#[test]
#[cfg(all(feature = "cli", feature = "http"))]
fn the_bench_reads_out_of_a_cache() {
    use crate::support::shards::shard;
    use crate::support::web::Web;

    let folder = tempfile::tempdir().expect("a folder");
    let bench = |url: &str, cache: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["bench", "raw", url, "--epochs", "1", "--quiet", "--json", "--cache", cache]);
        let ended = command.current_dir(folder.path()).env("FOREBAY_INDEX_DIR", "index").output().expect("it runs");
        ended.status.success()
    };
    let whole = shard((0..300).map(|number| vec![number as u8; 1000]), Compression::None);
    let mut damaged = whole.clone();
    damaged[100_000..].fill(0);
    let web = Web::start(whole, "\"one\"");
    assert!(bench(&web.url(), "cache"));
    // What was read before is good; what the server says is of the same version is not.
    web.replace(damaged, "\"one\"");
    assert!(bench(&web.url(), "cache"));
    assert!(!bench(&web.url(), "other"));
}
