//! A source of row numbers that counts what is asked of it, and fails where it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Int64Array, RecordBatch};
use bytes::Bytes;
use forebay::plan::Catalog;
use forebay::source::{Decoded, Source};
use forebay::{Column, Dataset, Error, ErrorKind, Result, int64};
use futures::FutureExt;
use futures::future::BoxFuture;

/// How often each block was fetched and decoded.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) fetches: Vec<AtomicUsize>,
    pub(crate) decodes: Vec<AtomicUsize>,
}

impl Counts {
    pub(crate) fn fetches(&self) -> Vec<usize> {
        self.fetches.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }

    pub(crate) fn decodes(&self) -> Vec<usize> {
        self.decodes.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }
}

/// Row numbers in a column `id`, in blocks of given sizes.
pub(crate) struct Numbers {
    columns: Vec<Column>,
    catalog: Catalog,
    counts: Arc<Counts>,
    pub(crate) fetch_fails_at: Option<usize>,
    pub(crate) fetch_panics_at: Option<usize>,
    pub(crate) decode_fails_at: Option<usize>,
    pub(crate) decode_panics_at: Option<usize>,
    /// The first read of this block never ends by itself, and takes its time to be ended.
    pub(crate) fetch_stalls_at: Option<usize>,
    /// Rows that decoding gives too many.
    pub(crate) extra_rows: usize,
}

/// What is long in being dropped.
struct Slow;

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
}

impl Numbers {
    /// Shards of blocks of rows, each block of so many bytes a row.
    pub(crate) fn new(shards: &[Vec<u64>], row_bytes: u64) -> Self {
        let mut catalog = Catalog::new();
        for (number, blocks) in shards.iter().enumerate() {
            catalog.push_shard(format!("numbers-{number}"));
            blocks.iter().for_each(|&rows| catalog.push_block(rows, rows * row_bytes));
        }
        let zeros = || (0..catalog.blocks()).map(|_| AtomicUsize::new(0)).collect();
        let counts = Arc::new(Counts { fetches: zeros(), decodes: zeros() });
        Self {
            columns: vec![int64("id")],
            catalog,
            counts,
            fetch_fails_at: None,
            fetch_panics_at: None,
            decode_fails_at: None,
            decode_panics_at: None,
            fetch_stalls_at: None,
            extra_rows: 0,
        }
    }

    pub(crate) fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    pub(crate) fn dataset(self) -> Dataset {
        Dataset::from_source(self)
    }
}

impl Source for Numbers {
    fn name(&self) -> String {
        "numbers".into()
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn fetch(&self, block: usize) -> Option<BoxFuture<'static, Result<Vec<Bytes>>>> {
        let is_first = self.counts.fetches[block].fetch_add(1, Ordering::SeqCst) == 0;
        let stalls = (is_first && self.fetch_stalls_at == Some(block)).then(|| Slow);
        let (first, rows) = (self.catalog.block_start(block), self.catalog.block_rows(block));
        let (fails, panics) = (self.fetch_fails_at == Some(block), self.fetch_panics_at == Some(block));
        let read = async move {
            assert!(!panics, "the disk is upside down");
            if let Some(_slow) = stalls {
                return futures::future::pending().await;
            }
            if fails {
                return Err(Error::new(ErrorKind::Transfer, "the line is dead"));
            }
            // Another task may go first.
            tokio::task::yield_now().await;
            Ok(vec![(first..first + rows).flat_map(|id| (id as i64).to_le_bytes()).collect()])
        };
        Some(read.boxed())
    }

    fn decode(&self, block: usize, fetched: Vec<Bytes>) -> Result<Decoded> {
        self.counts.decodes[block].fetch_add(1, Ordering::SeqCst);
        assert!(self.decode_panics_at != Some(block), "no such codec");
        if self.decode_fails_at == Some(block) {
            return Err(Error::new(ErrorKind::Corrupt, "not a number"));
        }
        let ids = fetched[0].chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().expect("8 bytes")));
        let ids = Int64Array::from_iter_values(ids.chain((0..self.extra_rows).map(|_| -1)));
        Ok(Decoded::good(RecordBatch::try_from_iter([("id", Arc::new(ids) as _)]).expect("one column")))
    }
}
