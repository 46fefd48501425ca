//! What does a plan of many rows, blocks and shards cost before the first batch, and at the beginning of an epoch?
//!
//! Data: row numbers that are generated when a block is decoded, so that only planning grows with the data set. For comparison: the index array that
//! a loader without formulas shuffles. The columns of bytes show what is allocated: `max alloc` at one time.
//!
//! `cargo bench --bench plan --no-default-features [NAME]`

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use bytes::Bytes;
use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use forebay::plan::Catalog;
use forebay::random::Key;
use forebay::source::{Decoded, Source};
use forebay::{Column, Dataset, Exhausted, Loader, Result, Scheduler, Shuffle, int64};
use rand::RngCore;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

struct RowNumbers {
    columns: Vec<Column>,
    catalog: Catalog,
}

impl Source for RowNumbers {
    fn name(&self) -> String {
        "row numbers".into()
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn decode(&self, block: usize, _: Vec<Bytes>) -> Result<Decoded> {
        let first = self.catalog.block_start(block) as i64;
        let rows = Int64Array::from_iter_values(first..first + self.catalog.block_rows(block) as i64);
        Ok(Decoded::good(RecordBatch::try_from_iter([("row", Arc::new(rows) as _)]).expect("one column")))
    }
}

/// Creates shards of `blocks` blocks of 1,000 rows.
fn catalog(shards: usize, blocks: usize) -> Catalog {
    let mut catalog = Catalog::new();
    for shard in 0..shards {
        catalog.push_shard(format!("gs://a-bucket/a-data-set/train/part-{shard:07}-of-{shards:07}.tfrecord"));
        (0..blocks).for_each(|_| catalog.push_block(1000, 4 << 20));
    }
    catalog
}

fn dataset(shards: usize, blocks: usize) -> Dataset {
    Dataset::from_source(RowNumbers { columns: vec![int64("row")], catalog: catalog(shards, blocks) })
}

fn loader(dataset: &Dataset) -> Loader {
    dataset.loader().scheduler(Scheduler::single_threaded()).build().expect("a loader")
}

/// Numbers of shards, and of blocks in each: 10 million rows; 100 million; a thousand million in a few shards, and in a million shards.
const SIZES: [(usize, usize); 4] = [(10, 1000), (100, 1000), (1000, 1000), (1_000_000, 1)];

/// Creating the catalog itself.
#[divan::bench(args = SIZES, sample_count = 5)]
fn a_catalog(bencher: Bencher<'_, '_>, (shards, blocks): (usize, usize)) {
    bencher.bench_local(|| catalog(shards, blocks));
}

/// From a data set to the first batch of 256 out of a shuffle buffer of 100,000 rows.
#[divan::bench(args = SIZES, sample_count = 5)]
fn first_batch(bencher: Bencher<'_, '_>, (shards, blocks): (usize, usize)) {
    let dataset = dataset(shards, blocks).shuffle(Shuffle::buffer(100_000)).batch(256);
    bencher.bench_local(|| loader(&dataset).epoch(0).next().expect("a batch").expect("sound").len());
}

/// The same for a global shuffle, whose first batch draws on 256 blocks.
#[divan::bench(args = SIZES, sample_count = 5)]
fn first_batch_of_a_global_shuffle(bencher: Bencher<'_, '_>, (shards, blocks): (usize, usize)) {
    let dataset = dataset(shards, blocks).shuffle(Shuffle::global()).batch(256);
    bencher.bench_local(|| loader(&dataset).epoch(0).next().expect("a batch").expect("sound").len());
}

/// The first batch of a later epoch, from an existing loader.
#[divan::bench(args = SIZES, sample_count = 5)]
fn first_batch_of_another_epoch(bencher: Bencher<'_, '_>, (shards, blocks): (usize, usize)) {
    let mut loader = loader(&dataset(shards, blocks).shuffle(Shuffle::buffer(100_000)).batch(256));
    let mut epoch = 0;
    bencher.bench_local(|| {
        epoch += 1;
        loader.epoch(epoch).next().expect("a batch").expect("sound").len()
    });
}

/// What do mixed rows cost, compared with rows that are not mixed? A million rows are planned, gathered and handed over on one thread: two parts with
/// shuffle buffers, by weights; 0 : 1 is one of them alone.
#[divan::bench(args = [(0, 1), (1, 1), (7, 3), (333, 667)], sample_count = 5)]
fn mixed_rows(bencher: Bencher<'_, '_>, (left, right): (u32, u32)) {
    let part = || dataset(10, 100).shuffle(Shuffle::buffer(100_000));
    let mix = Dataset::mix([(part(), left.max(1)), (part(), right)], Exhausted::Repeat).take(1_000_000);
    let rows = if left == 0 { part() } else { mix };
    let mut loader = loader(&rows.batch(1000));
    let mut epoch = 0;
    bencher.counter(ItemsCount::new(1_000_000usize)).bench_local(|| {
        epoch += 1;
        loader.epoch(epoch).map(|batch| batch.expect("a batch").len()).sum::<usize>()
    });
}

/// Shuffles an array of all row numbers and takes its first 256: what the plan does without.
#[divan::bench(args = [10_000_000, 100_000_000], sample_count = 3)]
fn index_array(bencher: Bencher<'_, '_>, rows: u64) {
    let mut key = 0;
    bencher.bench_local(|| {
        key += 1;
        let mut rng = Key::new(key).rng();
        let mut order: Vec<u64> = (0..rows).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, ((u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64) as usize);
        }
        black_box(&order[..256]).iter().sum::<u64>()
    });
}
