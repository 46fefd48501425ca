//! TFRecord shards as inputs: records are copied byte for byte into shards of another size or compression.

use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;

use super::work::{Halt, Input, Shard, Worker};
use crate::cli::shards::Shards;
use crate::dataset::TfRecord;
use crate::engine::io::Io;
use crate::error::{Error, Result};
use crate::format::tfrecord::{Check, Compression, FOOTER_BYTES, Framed, HEADER_BYTES, ShardIndex, frame_block};
use crate::source::open::Index;
use crate::source::tfrecord::{Keeper, LARGEST_RECORD, ShardReader, index_of};
use crate::store::{Object, Store};

/// The size of a read from a shard.
const PIECE_BYTES: u64 = 4 << 20;

/// The number of shards that are searched for their records at the same time.
const INDEXING: usize = 16;

const OVERHEAD: u64 = (HEADER_BYTES + FOOTER_BYTES) as u64;

/// The records of some shards, numbered across all of them.
pub(super) struct Records {
    store: Store,
    io: Arc<Io>,
    shards: Vec<Indexed>,
}

struct Indexed {
    object: Object,
    index: ShardIndex,
    /// The number of its first record among all records.
    start: u64,
}

impl Records {
    /// Finds the records: plain local shards from header to header, others by reading them completely.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if a shard's framing is damaged. The number of records lost after the damage is not known,
    /// so they cannot be left out either.
    pub(super) fn open(found: &Shards, objects: Vec<Object>, bar: &ProgressBar) -> Result<Self> {
        let (store, counting) = (found.store.clone(), bar.clone());
        let listed = objects.clone();
        let indexes: Vec<ShardIndex> = found.io.wait(async move {
            let found = futures::stream::iter(listed).map(|object| {
                let keeper = Keeper::new(None);
                let index = index_of(store.clone(), keeper, object, TfRecord::new(), Index::Build);
                let bar = counting.clone();
                async move {
                    let index = index.await;
                    bar.inc(1);
                    Ok::<_, Error>(index?.expect("asked to build it"))
                }
            });
            found.buffered(INDEXING).try_collect().await
        })?;
        let mut start = 0;
        let shards = objects.into_iter().zip(indexes).map(|(object, index)| {
            let first = start;
            start += index.len() as u64;
            Indexed { object, index, start: first }
        });
        Ok(Self { store: found.store.clone(), io: Arc::clone(&found.io), shards: shards.collect() })
    }

    /// Returns the bytes of each record, as in a plain shard.
    pub(super) fn sizes(&self) -> impl Iterator<Item = u64> + '_ {
        self.shards
            .iter()
            .flat_map(|shard| (0..shard.index.len()).map(|record| shard.index.length(record) as u64 + OVERHEAD))
    }

    /// Returns the shards that hold these records, each with the range that is requested, in the shard's own numbers.
    fn parts(&self, records: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> + '_ {
        let first = self.shards.partition_point(|shard| shard.start + shard.index.len() as u64 <= records.start);
        let from_first = self.shards.iter().enumerate().skip(first);
        from_first.take_while(move |(_, shard)| shard.start < records.end).filter_map(move |(number, shard)| {
            let within = |record: u64| record.saturating_sub(shard.start).min(shard.index.len() as u64);
            let part = within(records.start)..within(records.end);
            (!part.is_empty()).then_some((number, part))
        })
    }
}

impl Input for Records {
    fn worker(&self) -> Box<dyn Worker + '_> {
        Box::new(Copyist { records: self, stream: None })
    }
}

/// Copies records, on one thread.
struct Copyist<'a> {
    records: &'a Records,
    /// The compressed shard that was read last, at its current position, so that its next part can be read without starting over.
    stream: Option<Stream>,
}

impl Worker for Copyist<'_> {
    fn fill(&mut self, inputs: Range<u64>, out: &mut Shard<'_>) -> Result<(), Halt> {
        for (number, part) in self.records.parts(inputs) {
            match self.records.shards[number].index.compression() {
                Compression::None => self.copy_plain(number, part, out)?,
                _ => self.copy_compressed(number, part, out)?,
            }
        }
        Ok(())
    }
}

impl Copyist<'_> {
    /// Reads only the records, in runs of about [`PIECE_BYTES`].
    fn copy_plain(&self, number: usize, part: Range<u64>, out: &mut Shard<'_>) -> Result<(), Halt> {
        let Indexed { object, index, .. } = &self.records.shards[number];
        let (mut record, mut offset) = (part.start, index.offset(part.start as usize));
        while record < part.end {
            let (first, start) = (record, offset);
            while record < part.end && (record == first || offset - start < PIECE_BYTES) {
                offset += index.length(record as usize) as u64 + OVERHEAD;
                record += 1;
            }
            let (store, wanted, range) = (self.records.store.clone(), object.clone(), start..offset);
            let bytes = self.records.io.wait(async move { store.read(&wanted, range).await })?;
            let rows = (record - first) as usize;
            let framed = frame_block(&bytes, start, first, rows, Check::Full);
            copy(&bytes, &framed, 0..rows, &object.url, out)?;
        }
        Ok(())
    }

    /// Decompresses from where this thread left the shard, or from its beginning, and skips what is not requested.
    fn copy_compressed(&mut self, number: usize, part: Range<u64>, out: &mut Shard<'_>) -> Result<(), Halt> {
        let object = &self.records.shards[number].object;
        let mut stream = match self.stream.take() {
            Some(stream) if stream.number == number && stream.first_record <= part.start => stream,
            _ => Stream::new(number, object),
        };
        let mut record = part.start;
        while record < part.end {
            let end = stream.first_record + stream.framed.payloads.len() as u64;
            if record < end {
                let until = part.end.min(end);
                let rows = (record - stream.first_record) as usize..(until - stream.first_record) as usize;
                copy(&stream.buffer, &stream.framed, rows, &object.url, out)?;
                record = until;
                continue;
            }
            out.advance(0)?;
            stream.next(self.records, object)?;
        }
        self.stream = Some(stream);
        Ok(())
    }
}

/// Copies rows of a buffer; leaves out the damaged ones if that is allowed.
fn copy(buffer: &[u8], framed: &Framed, rows: Range<usize>, url: &Arc<str>, out: &mut Shard<'_>) -> Result<(), Halt> {
    let mut bad = framed.bad[framed.bad.partition_point(|(row, _)| *row < rows.start)..].iter().peekable();
    let mut stored = 0;
    for row in rows {
        let payload = framed.payloads[row].clone();
        stored += payload.len() as u64 + OVERHEAD;
        match bad.next_if(|(number, _)| *number == row) {
            Some((_, error)) => out.skip(error.clone().url(url.clone()).stage("read"))?,
            None => out.write(&buffer[payload])?,
        }
    }
    out.advance(stored)
}

/// A compressed shard that is being read from front to back.
struct Stream {
    number: usize,
    reader: ShardReader,
    /// Stored bytes that have been read.
    at: u64,
    /// The current records: the number of the first, and their ranges.
    first_record: u64,
    framed: Framed,
    buffer: arrow::buffer::Buffer,
}

impl Stream {
    fn new(number: usize, object: &Object) -> Self {
        Self {
            number,
            reader: ShardReader::new(object, None, Check::Full),
            at: 0,
            first_record: 0,
            framed: Framed::default(),
            buffer: arrow::buffer::Buffer::from_vec(Vec::<u8>::new()),
        }
    }

    /// Advances to the next records.
    fn next(&mut self, records: &Records, object: &Object) -> Result<()> {
        loop {
            let block = self.reader.next_arrived(LARGEST_RECORD);
            if let Some(block) = block.map_err(|e| e.url(object.url.clone()).stage("read"))? {
                (self.first_record, self.framed, self.buffer) = (block.first_record, block.framed, block.buffer);
                return Ok(());
            }
            if self.reader.is_done() || self.at == object.size {
                return Err(Error::corrupt("the shard ends before a record that was there when it was looked through")
                    .url(object.url.clone())
                    .stage("read"));
            }
            let range = self.at..object.size.min(self.at + PIECE_BYTES);
            self.at = range.end;
            let (store, wanted) = (records.store.clone(), object.clone());
            let piece = records.io.wait(async move { store.read(&wanted, range).await })?;
            self.reader.supply(piece, self.at == object.size);
        }
    }
}
