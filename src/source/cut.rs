//! Shards that are cut into blocks, each a range of a shard's bytes: what files, archives and text have in common.

use std::collections::HashMap;
use std::ops::Range;

use arrow::array::{ArrayData, RecordBatch, RecordBatchOptions, make_array};
use arrow::datatypes::FieldRef;
use arrow::error::ArrowError;
use bytes::Bytes;
use futures::future::BoxFuture;

use super::open::Wanted;
use super::{Decoded, RecordPlaces, Source};
use crate::error::{Error, Result};
use crate::plan::Catalog;
use crate::schema::{Column, arrow_schema};
use crate::store::{Object, Store};

/// A block of rows whose size may be chosen: large enough that a request costs less than its bytes, small enough to mix and to budget for.
pub(super) const BLOCK_BYTES: u64 = 4 << 20;

/// Turns the bytes of a block into rows.
pub(super) trait Reading: Send + Sync + 'static {
    /// The columns of the rows.
    fn columns(&self) -> &[Column];

    /// What a block needs of its shard besides its own range.
    fn also(&self, block: usize) -> &[Range<u64>] {
        let _ = block;
        &[]
    }

    /// As many rows as the block has, of its own range and then the others. Errors need no place but their column.
    fn read(&self, block: &Block, fetched: Vec<Bytes>) -> Result<Parsed>;
}

/// A block, as its reader sees it.
pub(super) struct Block {
    pub(super) shard: usize,
    /// The number of the block within the catalog.
    pub(super) block: usize,
    #[cfg_attr(
        not(any(feature = "text", feature = "tar")),
        expect(dead_code, reason = "only found rows are counted again")
    )]
    pub(super) rows: usize,
}

/// Rows, and which of them are bad.
pub(super) struct Parsed {
    pub(super) rows: RecordBatch,
    pub(super) bad: Vec<(usize, Error)>,
    /// Where each row starts within the block.
    pub(super) starts: Vec<u32>,
}

/// The blocks of shards, as they were found.
pub(super) struct Blocks {
    catalog: Catalog,
    /// What is read for each block, and where its rows begin in the (decompressed) shard.
    ranges: Vec<(Range<u64>, u64)>,
    /// What is wrong with shards of which the rest cannot be found. It stands in a block of one bad record behind the others.
    damage: HashMap<usize, Error>,
    divisible: bool,
}

impl Blocks {
    pub(super) fn new() -> Self {
        Self { catalog: Catalog::new(), ranges: Vec::new(), damage: HashMap::new(), divisible: true }
    }

    pub(super) fn push_shard(&mut self, object: &Object) {
        self.catalog.push_shard(object.url.clone());
    }

    /// A block of `rows` rows that takes `memory` bytes; `offset` is where its rows begin.
    pub(super) fn push(&mut self, rows: u64, memory: u64, range: Range<u64>, offset: u64) {
        if rows > 0 {
            self.catalog.push_block(rows, memory);
            self.ranges.push((range, offset));
        }
    }

    /// Blocks are as they are stored, however finely they are to be mixed.
    pub(super) fn indivisible(&mut self) {
        self.divisible = false;
    }

    /// What is wrong behind the blocks of the shard that was pushed last. A row of these columns stands for it, and a damaged schema may say that one takes
    /// any amount of memory.
    pub(super) fn push_damage(&mut self, error: Error, offset: u64, columns: &[Column]) {
        let shard = self.catalog.shards() - 1;
        let known = error.url(self.catalog.shard_name(shard).clone());
        self.push(1, row_bytes(columns), offset..offset, offset);
        self.damage.insert(shard, known);
    }
}

/// Bytes that the blocks of a divisible shard should have.
pub(super) fn target_bytes(wanted: &Wanted, rows: u64, bytes: u64) -> u64 {
    match wanted {
        Wanted { by_rows: true, .. } => 1,
        Wanted { whole_rows, .. } if rows <= *whole_rows => BLOCK_BYTES,
        Wanted { min_blocks, .. } => (bytes / (*min_blocks).max(1)).clamp(1, BLOCK_BYTES),
    }
}

/// The declared columns, and those of conditions as they are stored.
pub(super) fn with_also(declared: &[Column], wanted: &Wanted, stored: impl Fn(&str) -> Option<Column>) -> Vec<Column> {
    let mut columns = declared.to_vec();
    for name in &wanted.also {
        if columns.iter().all(|column| column.name() != name) {
            columns.extend(stored(name));
        }
    }
    columns
}

/// Bytes that a row's columns take, apart from byte strings and lists.
pub(super) fn row_bytes(columns: &[Column]) -> u64 {
    columns.iter().map(|column| column.sample_bytes().unwrap_or(16) as u64).sum()
}

/// Shards cut into blocks, as a source.
pub(super) struct Cut<R> {
    format: &'static str,
    store: Store,
    objects: Vec<Object>,
    catalog: Catalog,
    ranges: Vec<(Range<u64>, u64)>,
    damage: HashMap<usize, Error>,
    reading: R,
}

impl<R: Reading> Cut<R> {
    pub(super) fn new(format: &'static str, store: Store, objects: Vec<Object>, blocks: Blocks, reading: R) -> Self {
        let Blocks { catalog, ranges, damage, divisible } = blocks;
        let catalog = if divisible { catalog } else { catalog.indivisible() };
        Self { format, store, objects, catalog, ranges, damage, reading }
    }
}

/// A window over a shard, for headers with content between them that is not wanted.
pub(super) struct Window<'a> {
    store: &'a Store,
    object: &'a Object,
    /// Bytes that are read at once: headers that lie nearer to each other share a read.
    most: u64,
    start: u64,
    bytes: Bytes,
}

impl<'a> Window<'a> {
    pub(super) fn new(store: &'a Store, object: &'a Object, most: u64) -> Self {
        Self { store, object, most, start: 0, bytes: Bytes::new() }
    }

    pub(super) fn size(&self) -> u64 {
        self.object.size
    }

    /// These bytes, or as many of them as there are.
    pub(super) async fn get(&mut self, range: Range<u64>) -> Result<Bytes> {
        let end = range.end.min(self.object.size);
        if range.start < self.start || end > self.start + self.bytes.len() as u64 {
            let end = end.max(range.start.saturating_add(self.most).min(self.object.size));
            self.bytes = self.store.read(self.object, range.start..end).await?;
            self.start = range.start;
        }
        Ok(self.bytes.slice((range.start - self.start) as usize..(end - self.start) as usize))
    }
}

/// One row that holds nothing, for a record that cannot be found. It takes the bytes of its columns, and no more while it is made.
pub(super) fn placeholder(columns: &[Column]) -> Result<RecordBatch> {
    fn without_nulls(data: ArrayData) -> Result<ArrayData, ArrowError> {
        let children = data.child_data().iter().cloned().map(without_nulls).collect::<Result<Vec<_>, _>>()?;
        data.into_builder().nulls(None).child_data(children).build()
    }
    let schema = arrow_schema(columns);
    let nothing = |field: &FieldRef| without_nulls(ArrayData::new_null(field.data_type(), 1)).map(make_array);
    let arrays = schema.fields().iter().map(nothing).collect::<Result<Vec<_>, _>>();
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    arrays
        .and_then(|arrays| RecordBatch::try_new_with_options(schema, arrays, &options))
        .map_err(|e| Error::new(crate::ErrorKind::Schema, "cannot be carried").because(e))
}

impl<R: Reading> Source for Cut<R> {
    fn name(&self) -> String {
        format!("{} {} shards", self.objects.len(), self.format)
    }

    fn columns(&self) -> &[Column] {
        self.reading.columns()
    }

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn fetch(&self, block: usize) -> Option<BoxFuture<'static, Result<Vec<Bytes>>>> {
        let range = self.ranges[block].0.clone();
        if range.is_empty() {
            return None;
        }
        let (store, object) = (self.store.clone(), self.objects[self.catalog.shard_of(block)].clone());
        let ranges: Vec<_> = std::iter::once(range).chain(self.reading.also(block).iter().cloned()).collect();
        Some(Box::pin(async move {
            futures::future::try_join_all(ranges.into_iter().map(|range| store.read(&object, range))).await
        }))
    }

    fn decode(&self, block: usize, fetched: Vec<Bytes>) -> Result<Decoded> {
        let shard = self.catalog.shard_of(block);
        let (object, offset) = (&self.objects[shard], self.ranges[block].1);
        let places = |starts: Vec<u32>| RecordPlaces {
            url: object.url.clone(),
            first_record: self.catalog.record_of(block),
            offset,
            starts,
            files: Vec::new(),
        };
        let last = block + 1 == self.catalog.blocks() || self.catalog.shard_of(block + 1) != shard;
        if let Some(damage) = self.damage.get(&shard).filter(|_| last) {
            let places = places(vec![0]);
            let error = places.locate(0, damage.clone().stage("decode"));
            let mut decoded = Decoded::with_bad(placeholder(self.columns())?, vec![(0, error)]);
            decoded.places = Some(places);
            return Ok(decoded);
        }
        let rows = self.catalog.block_rows(block) as usize;
        let seen = Block { shard, block, rows };
        let parsed = self.reading.read(&seen, fetched);
        let Parsed { rows: batch, bad, starts } =
            parsed.map_err(|e| e.url(object.url.clone()).byte_offset(offset).stage("decode"))?;
        if batch.num_rows() != rows {
            let message = format!("{} rows, where there were {rows} when the shard was opened", batch.num_rows());
            return Err(Error::corrupt(message).url(object.url.clone()).byte_offset(offset).stage("decode"));
        }
        let places = places(starts);
        let bad = bad.into_iter().map(|(row, error)| (row, places.locate(row, error.stage("decode")))).collect();
        let mut decoded = Decoded::with_bad(batch, bad);
        decoded.places = Some(places);
        Ok(decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Dtype, Shape, bytes, float32, int64};

    #[test]
    fn what_stands_for_damage_is_reckoned_and_takes_no_more() {
        let columns = [
            int64("a"),
            bytes("b").ragged(),
            float32("c").fixed([1 << 10, 1 << 10]),
            Column::new("d", Dtype::Bool, Shape::Ragged(vec![3])),
            bytes("e").fixed([2]),
        ];
        let rows = placeholder(&columns).unwrap();
        assert_eq!((rows.num_rows(), rows.num_columns()), (1, 5));
        for array in rows.columns() {
            array.to_data().validate_full().unwrap();
            assert_eq!(array.logical_null_count(), 0);
        }
        let mut blocks = Blocks::new();
        blocks.catalog.push_shard("a");
        blocks.push_damage(Error::corrupt("a message"), 0, &columns);
        assert!(blocks.catalog.block_bytes(0) >= 4 << 20);
        assert!(rows.get_array_memory_size() as u64 <= blocks.catalog.block_bytes(0) + 4096);
    }
}
