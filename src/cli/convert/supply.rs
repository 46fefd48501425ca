//! The input of a row-by-row conversion: blocks of rows, from shards or from images.

use std::sync::Arc;

use crate::cli::blocks::{self, Blocks};
use crate::engine::io::Io;
use crate::error::Result;
use crate::schema::Column;
use crate::source::{Decoded, Source};

/// Blocks of rows, numbered in the order in which they are written.
pub(super) trait Supply: Blocks<Made = Decoded> {
    fn columns(&self) -> &[Column];

    /// Returns where each block starts, and at the end the total number of rows.
    fn starts(&self) -> Vec<u64>;
}

/// Shards that a source reads.
pub(super) struct Shards {
    pub(super) source: Arc<dyn Source>,
    pub(super) io: Arc<Io>,
}

impl Supply for Shards {
    fn columns(&self) -> &[Column] {
        self.source.columns()
    }

    fn starts(&self) -> Vec<u64> {
        let catalog = self.source.catalog();
        (0..catalog.blocks()).map(|block| catalog.block_start(block)).chain([catalog.rows()]).collect()
    }
}

impl Blocks for Shards {
    type Made = Decoded;

    fn block_bytes(&self, block: usize) -> u64 {
        self.source.catalog().block_bytes(block)
    }

    fn make(&self, block: usize) -> Result<Decoded> {
        blocks::read(&*self.source, &self.io, block)
    }
}
