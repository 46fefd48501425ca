//! The blocks that rows are picked from.

use std::sync::Arc;

use crate::engine::budget::Grant;
use crate::error::Error;
use crate::source::Decoded;

/// A decoded block, kept for as long as its rows are needed.
pub(crate) struct Block {
    pub(crate) decoded: Decoded,
    /// The error of the whole block, if it failed.
    pub(crate) failed: Option<Error>,
    /// The sample id of its first row.
    pub(crate) first_id: u64,
    /// The block's share of the budget, which is given back with it.
    pub(crate) _grant: Option<Grant>,
}

/// Adds to a sample's error where its record stands, if one of the blocks holds it.
pub(crate) fn locate<'a>(error: Error, blocks: impl IntoIterator<Item = &'a Arc<Block>>) -> Error {
    let Some(id) = error.place().sample.filter(|_| error.place().record.is_none()) else { return error };
    let found = blocks.into_iter().find_map(|block| {
        let row = id.checked_sub(block.first_id).filter(|&row| row < block.decoded.rows.num_rows() as u64)?;
        block.decoded.places.as_ref().map(|places| (places, row as usize))
    });
    match found {
        Some((places, row)) => places.locate(row, error),
        None => error,
    }
}

/// Blocks by source and number.
#[derive(Default)]
pub(crate) struct Blocks(Vec<((usize, u32), Arc<Block>)>);

impl Blocks {
    /// Blocks in ascending order.
    pub(crate) fn sorted(blocks: Vec<((usize, u32), Arc<Block>)>) -> Self {
        debug_assert!(blocks.is_sorted_by_key(|block| block.0));
        Self(blocks)
    }

    pub(super) fn get(&self, leaf: usize, block: u32) -> &Block {
        let at = self.0.binary_search_by_key(&(leaf, block), |block| block.0);
        &self.0[at.expect("a ticket starts when its blocks are there")].1
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &((usize, u32), Arc<Block>)> {
        self.0.iter()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<Block>> {
        self.0.iter().map(|(_, block)| block)
    }
}
