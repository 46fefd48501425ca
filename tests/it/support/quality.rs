//! How well an order is shuffled, in figures, and the orders that others would give. `benches/shuffle_quality.rs` uses it too.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use bytes::Bytes;
use forebay::plan::Catalog;
use forebay::random::{Key, Rng};
use forebay::source::{Decoded, Source};
use forebay::{Column, Dataset, Result, Scheduler, Shuffle, int64};
use rand::Rng as _;
use rand::seq::SliceRandom as _;

/// Rows sorted by label, in shards and blocks of one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) shards: u64,
    pub(crate) shard_rows: u64,
    pub(crate) block_rows: u64,
    pub(crate) labels: u64,
    pub(crate) batch: u64,
}

impl Rows {
    pub(crate) fn count(self) -> u64 {
        self.shards * self.shard_rows
    }

    fn shard(self, shard: u64) -> Range<u64> {
        shard * self.shard_rows..(shard + 1) * self.shard_rows
    }

    fn label(self, row: u64) -> u64 {
        row * self.labels / self.count()
    }

    /// The order in which the loader delivers them in its first epoch.
    pub(crate) fn delivered(self, shuffle: Shuffle) -> Vec<u64> {
        let mut catalog = Catalog::new();
        for shard in 0..self.shards {
            catalog.push_shard(shard.to_string());
            for start in (0..self.shard_rows).step_by(self.block_rows as usize) {
                catalog.push_block(self.block_rows.min(self.shard_rows - start), 0);
            }
        }
        let dataset = Dataset::from_source(Numbered::new(catalog));
        let loader = dataset.shuffle(shuffle).batch(self.batch as usize).loader().seed(1);
        let loader = loader.scheduler(Scheduler::single_threaded()).build().expect("a loader");
        loader.into_iter().flat_map(|batch| batch.expect("a batch").samples().to_vec()).collect()
    }

    /// Each order equally likely.
    pub(crate) fn uniform(self) -> Vec<u64> {
        let mut rows: Vec<u64> = (0..self.count()).collect();
        rows.shuffle(&mut Key::new(1).with("uniform").rng());
        rows
    }

    /// What a sliding buffer makes of shards in their order, in an order drawn for them, or of `cycle` of these at a time, a row of each in turn.
    pub(crate) fn sliding(self, buffer: usize, shards: Shards) -> Vec<u64> {
        let mut rng = Key::new(1).with("sliding").rng();
        let mut order: Vec<u64> = (0..self.shards).collect();
        if shards != Shards::InOrder {
            order.shuffle(&mut rng);
        }
        let cycle = if let Shards::Interleaved(cycle) = shards { cycle } else { 1 };
        let mut next = order.into_iter().map(|shard| self.shard(shard));
        let mut open: Vec<Range<u64>> = next.by_ref().take(cycle).collect();
        let (mut rows, mut at) = (Vec::new(), 0);
        while !open.is_empty() {
            at %= open.len();
            match open[at].next() {
                Some(row) => {
                    rows.push(row);
                    at += 1;
                }
                // The next shard takes the place of one that ended.
                None => match next.next() {
                    Some(shard) => open[at] = shard,
                    None => _ = open.remove(at),
                },
            }
        }
        slide(rows, buffer, &mut rng)
    }

    pub(crate) fn measure(self, order: &[u64]) -> Quality {
        assert_eq!(order.len() as u64, self.count());
        let (count, batch) = (self.count() as f64, self.batch as usize);
        let displacement = (0..).zip(order).map(|(at, &row)| row.abs_diff(at) as f64).sum::<f64>() / count / count;
        let pairs = || order.windows(2).map(|pair| (pair[0], pair[1]));
        let share = |f: &dyn Fn(u64, u64) -> bool| pairs().filter(|&(a, b)| f(a, b)).count() as f64 / (count - 1.0);
        let mean = (count - 1.0) / 2.0;
        let variance = (count * count - 1.0) / 12.0;
        let serial =
            pairs().map(|(a, b)| (a as f64 - mean) * (b as f64 - mean)).sum::<f64>() / (count - 1.0) / variance;
        let (mut largest, mut together) = (Vec::new(), 0.0);
        let (mut labels, mut blocks) = (HashMap::new(), HashMap::new());
        for rows in order.chunks_exact(batch) {
            labels.clear();
            blocks.clear();
            for &row in rows {
                *labels.entry(self.label(row)).or_insert(0u32) += 1;
                *blocks.entry(self.block(row)).or_insert(0u32) += 1;
            }
            largest.push(f64::from(*labels.values().max().expect("a batch")) / batch as f64);
            together += blocks.values().map(|&n| f64::from(n) * (f64::from(n) - 1.0) / 2.0).sum::<f64>();
        }
        let of = |rows: u64| (rows * rows.saturating_sub(1) / 2) as f64;
        let (blocks, rest) = (self.shard_rows / self.block_rows, self.shard_rows % self.block_rows);
        let block_pairs = self.shards as f64 * (blocks as f64 * of(self.block_rows) + of(rest));
        let expected = (self.batch as f64 - 1.0) / (count - 1.0);
        Quality {
            displacement,
            same_block: share(&|a, b| self.block(a) == self.block(b)),
            adjacent: share(&|a, b| a.abs_diff(b) == 1),
            serial,
            label_run: 1.0 / share(&|a, b| self.label(a) != self.label(b)).max(1.0 / count),
            largest_label: largest.iter().sum::<f64>() / largest.len() as f64,
            worst_label: largest.iter().copied().fold(0.0, f64::max),
            together: together / block_pairs / expected,
        }
    }

    fn block(self, row: u64) -> (u64, u64) {
        (row / self.shard_rows, row % self.shard_rows / self.block_rows)
    }
}

/// How shards come before a sliding buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shards {
    InOrder,
    Shuffled,
    /// Shuffled, and so many read in turn.
    Interleaved(usize),
}

/// A buffer is filled; one of its rows is drawn, and the next row takes its place.
fn slide(rows: Vec<u64>, buffer: usize, rng: &mut Rng) -> Vec<u64> {
    let mut rows = rows.into_iter();
    let mut held: Vec<u64> = rows.by_ref().take(buffer).collect();
    let mut out = Vec::with_capacity(held.len());
    for row in rows {
        let at = rng.random_range(0..held.len());
        out.push(std::mem::replace(&mut held[at], row));
    }
    held.shuffle(rng);
    out.extend(held);
    out
}

/// Figures of one order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quality {
    /// Mean distance between a row's position and its number, of the number of rows; 1/3 where all orders are equally likely.
    pub(crate) displacement: f64,
    /// Consecutive samples of one block, and rows that stand beside each other in it.
    pub(crate) same_block: f64,
    pub(crate) adjacent: f64,
    /// Correlation of the row numbers of consecutive samples.
    pub(crate) serial: f64,
    /// Mean length of runs of one label.
    pub(crate) label_run: f64,
    /// Share of the most frequent label in a batch: the mean over batches, and the worst.
    pub(crate) largest_label: f64,
    pub(crate) worst_label: f64,
    /// How often two rows of one block are in one batch, over how often two rows are where all orders are equally likely.
    pub(crate) together: f64,
}

/// Rows that are their numbers.
pub(crate) struct Numbered {
    columns: Vec<Column>,
    catalog: Catalog,
}

impl Numbered {
    pub(crate) fn new(catalog: Catalog) -> Self {
        Self { columns: vec![int64("row")], catalog }
    }
}

impl Source for Numbered {
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
