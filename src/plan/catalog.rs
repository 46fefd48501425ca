//! What a source holds: shards, cut into blocks of known row counts.

use std::sync::{Arc, OnceLock};

use super::state::DataMark;

/// The shards of a source in order, each cut into blocks: the unit of reading.
///
/// The number of rows of a block is known, and its number of bytes in memory is known approximately. Row numbers run through all blocks; a row's number is its
/// *sample id* within the source.
///
/// # Memory
/// About 20 bytes per block, and one name per shard; nothing per row. A clone shares them.
///
/// # Example
/// ```
/// use forebay::plan::Catalog;
///
/// let mut catalog = Catalog::new();
/// catalog.push_shard("a.tfrecord");
/// catalog.push_block(3, 300);
/// catalog.push_block(2, 200);
/// assert_eq!((catalog.rows(), catalog.blocks()), (5, 2));
/// assert_eq!(catalog.locate(4), (1, 1));
/// ```
#[derive(Clone, Debug)]
pub struct Catalog {
    shards: Arc<Vec<Shard>>,
    /// Row number at which each block starts, and the total at the end.
    starts: Arc<Vec<u64>>,
    /// Bytes before each block, and the total at the end.
    bytes: Arc<Vec<u64>>,
    indivisible: bool,
    /// Made when a row is first looked for.
    hints: Arc<OnceLock<Hints>>,
}

/// Where to begin looking for a row: the block of every `1 << shift`-th row. There are about as many entries as blocks, so blocks of similar sizes are found at
/// once: a search through 1,000 of them took 14 % of the time of loading 8-byte rows.
#[derive(Clone, Debug)]
struct Hints {
    shift: u32,
    blocks: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Shard {
    name: Arc<str>,
    first_block: usize,
}

impl Default for Catalog {
    fn default() -> Self {
        Self::new()
    }
}

impl Catalog {
    /// Makes a catalog without shards.
    pub fn new() -> Self {
        Self {
            shards: Arc::default(),
            starts: vec![0].into(),
            bytes: vec![0].into(),
            indivisible: false,
            hints: Arc::default(),
        }
    }

    /// Begins a shard; the blocks pushed from here on belong to it.
    pub fn push_shard(&mut self, name: impl Into<Arc<str>>) {
        let shard = Shard { name: name.into(), first_block: self.blocks() };
        Arc::make_mut(&mut self.shards).push(shard);
    }

    /// Adds a block of `rows` rows that takes about `bytes` bytes in memory. Blocks without rows are left out.
    pub fn push_block(&mut self, rows: u64, bytes: u64) {
        if rows > 0 {
            if self.hints.get().is_some() {
                self.hints = Arc::default();
            }
            let (rows, bytes) = (self.rows() + rows, self.total_bytes() + bytes);
            Arc::make_mut(&mut self.starts).push(rows);
            Arc::make_mut(&mut self.bytes).push(bytes);
        }
    }

    /// Declares that blocks cannot be read in part, so mixing is only as fine as the blocks.
    #[must_use]
    pub fn indivisible(mut self) -> Self {
        self.indivisible = true;
        self
    }

    /// Returns the total number of rows.
    pub fn rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Returns the total number of bytes.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.last().copied().unwrap_or(0)
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Returns the number of shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Returns the number of rows of a block.
    pub fn block_rows(&self, block: usize) -> u64 {
        self.starts[block + 1] - self.starts[block]
    }

    /// Returns the row number at which a block starts.
    pub fn block_start(&self, block: usize) -> u64 {
        self.starts[block]
    }

    /// Returns about how many bytes a block takes in memory.
    pub fn block_bytes(&self, block: usize) -> u64 {
        self.bytes[block + 1] - self.bytes[block]
    }

    /// Returns the bytes of the largest block.
    pub fn largest_block(&self) -> u64 {
        (0..self.blocks()).map(|block| self.block_bytes(block)).max().unwrap_or(0)
    }

    /// Returns the shard that a block belongs to.
    pub fn shard_of(&self, block: usize) -> usize {
        self.shards.partition_point(|shard| shard.first_block <= block).saturating_sub(1)
    }

    /// Returns the name of a shard: its URL.
    pub fn shard_name(&self, shard: usize) -> &Arc<str> {
        &self.shards[shard].name
    }

    /// The range of rows in a shard.
    pub(crate) fn shard_rows(&self, shard: usize) -> std::ops::Range<u64> {
        let end = self.shards.get(shard + 1).map_or(self.blocks(), |next| next.first_block);
        self.starts[self.shards[shard].first_block]..self.starts[end]
    }

    /// Returns the row number, within its shard, of a block's first row.
    pub fn record_of(&self, block: usize) -> u64 {
        self.starts[block] - self.starts[self.shards[self.shard_of(block)].first_block]
    }

    /// Returns, for a row number below [`rows`](Self::rows), its block and the row within that block.
    pub fn locate(&self, row: u64) -> (usize, u64) {
        let Hints { shift, blocks } = self.hints.get_or_init(|| self.make_hints());
        let at = (row >> shift) as usize;
        let (low, high) = (blocks[at] as usize, blocks[at + 1] as usize);
        let block = low + self.starts[low + 1..=high].partition_point(|&start| start <= row);
        (block, row - self.starts[block])
    }

    fn make_hints(&self) -> Hints {
        let shift = (self.rows() / self.blocks().max(1) as u64).max(1).ilog2();
        let mut block = 0;
        // One more than there are, so that the last has an end.
        let blocks = (0..=(self.rows() >> shift) + 1).map(|hint| {
            while block + 1 < self.blocks() && self.starts[block + 1] <= hint << shift {
                block += 1;
            }
            block as u32
        });
        Hints { shift, blocks: blocks.collect() }
    }

    /// The row numbers at which blocks start, and the total.
    pub(crate) fn starts(&self) -> &Arc<Vec<u64>> {
        &self.starts
    }

    pub(crate) fn is_indivisible(&self) -> bool {
        self.indivisible
    }

    /// A mark that changes if the catalog does: names of shards without their folders, blocks, rows.
    pub(crate) fn mark(&self) -> DataMark {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for shard in self.shards.iter() {
            hash.update(DataMark::name_of(&shard.name).as_bytes());
            hash.update(&[0]);
            hash.update(&(shard.first_block as u64).to_le_bytes());
        }
        for start in self.starts.iter() {
            hash.update(&start.to_le_bytes());
        }
        DataMark::new(self.shards.len(), Some(self.rows()), hash.digest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_in_blocks_of_any_sizes() {
        for sizes in [vec![1], vec![5, 5, 5, 3], vec![1000, 1, 1, 1, 1], vec![1, 1, 1, 1, 1000], vec![7, 300, 2, 64, 1]]
        {
            let mut catalog = Catalog::new();
            sizes.iter().for_each(|&rows| catalog.push_block(rows, 1));
            let places = sizes.iter().enumerate().flat_map(|(block, &rows)| (0..rows).map(move |row| (block, row)));
            assert!(places.eq((0..catalog.rows()).map(|row| catalog.locate(row))), "{sizes:?}");
            catalog.push_block(2, 1);
            assert_eq!(catalog.locate(catalog.rows() - 1), (sizes.len(), 1));
        }
    }

    #[test]
    fn a_clone_shares_what_is_there_and_then_goes_its_own_way() {
        let mut catalog = Catalog::default();
        catalog.push_shard("a");
        catalog.push_block(3, 30);
        let (mut other, hint) = (catalog.clone(), catalog.locate(2));
        assert!(Arc::ptr_eq(&catalog.starts, &other.starts) && Arc::ptr_eq(&catalog.shards, &other.shards));
        assert!(other.hints.get().is_some(), "made for both");
        other.push_block(5, 50);
        assert_eq!((other.locate(7), other.blocks()), ((1, 4), 2));
        assert_eq!((catalog.locate(2), catalog.blocks(), catalog.rows()), (hint, 1, 3));
    }

    #[test]
    fn locates_rows_and_shards() {
        let mut catalog = Catalog::new();
        catalog.push_shard("a");
        catalog.push_block(3, 30);
        catalog.push_block(0, 0);
        catalog.push_shard("empty");
        catalog.push_shard("b");
        catalog.push_block(1, 10);
        catalog.push_block(2, 25);
        assert_eq!((catalog.rows(), catalog.blocks(), catalog.total_bytes(), catalog.largest_block()), (6, 3, 65, 30));
        let places: Vec<_> = (0..6).map(|row| catalog.locate(row)).collect();
        assert_eq!(places, [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]);
        let shards: Vec<_> = (0..3).map(|block| catalog.shard_name(catalog.shard_of(block)).to_string()).collect();
        assert_eq!(shards, ["a", "b", "b"]);
        assert_eq!((catalog.record_of(0), catalog.record_of(1), catalog.record_of(2)), (0, 0, 1));
        assert_eq!((catalog.shard_rows(0), catalog.shard_rows(1), catalog.shard_rows(2)), (0..3, 3..3, 3..6));
    }
}
