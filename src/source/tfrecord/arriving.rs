//! Shards without an index, as they come.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow::buffer::Buffer;
use bytes::Bytes;
use futures::future::BoxFuture;

use super::indexes::Found;
use super::{Common, Keeper, PIECE_BYTES, ShardReader, broken_off};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{DataMark, Permutation, ReadPoint};
use crate::random::Key;
use crate::schema::Column;
use crate::source::{Arrived, Arriving, ArrivingPass, Decoded, Next};

/// Shards read from front to back, in the order of their URLs or shuffled as wholes.
pub(crate) struct Unindexed {
    pub(super) common: Arc<Common>,
    pub(super) keeper: Keeper,
    pub(super) shuffled: bool,
    pub(super) leave_out: bool,
}

impl Arriving for Unindexed {
    fn columns(&self) -> &[Column] {
        &self.common.parse.columns
    }

    fn mark(&self) -> DataMark {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for object in &self.common.objects {
            hash.update(DataMark::name_of(&object.url).as_bytes());
            hash.update(&object.size.to_le_bytes());
        }
        DataMark::new(self.common.objects.len(), None, hash.digest())
    }

    fn check(&self, place: ReadPoint) -> Result<()> {
        let object = usize::try_from(place.shard).ok().and_then(|shard| self.common.objects.get(shard));
        if object.is_some_and(|object| place.offset < object.size) {
            return Ok(());
        }
        let ReadPoint { shard, offset, .. } = place;
        Err(Error::config(format!(
            "the state is damaged: reading begins at byte {offset} of shard {shard}, which there is not"
        ))
        .advice("restore it as it was saved"))
    }

    fn begin(&self, key: Key, place: Option<ReadPoint>) -> Box<dyn ArrivingPass> {
        let shards = self.common.objects.len() as u64;
        let permutation = Permutation::new(key, shards);
        let order = (0..shards).map(|i| if self.shuffled { permutation.at(i) } else { i } as usize);
        let order = order.filter(|&shard| self.common.objects[shard].size > 0);
        let order = order.skip_while(|&shard| place.is_some_and(|place| place.shard != shard as u64)).collect();
        Box::new(Pass {
            start: place.filter(|place| place.offset > 0),
            common: self.common.clone(),
            keeper: self.keeper.clone(),
            order,
            leave_out: self.leave_out,
            broken: None,
            at: place.map_or(0, |place| place.offset),
            asked: VecDeque::new(),
            pieces: VecDeque::new(),
            current: None,
        })
    }

    fn decode(&self, block: Arrived) -> Result<Decoded> {
        let Arrived { buffer, framed, shard, first_record, offset, .. } = block;
        self.common.decode(buffer, framed, &self.common.objects[shard].url, first_record, offset)
    }
}

struct Pass {
    common: Arc<Common>,
    keeper: Keeper,
    /// Where the first shard is entered, if not at its beginning.
    start: Option<ReadPoint>,
    /// Shards still to be asked for, and the offset in the first of them.
    order: VecDeque<usize>,
    at: u64,
    /// Whether the pass goes on behind a damaged shard, and the last such: its other pieces are of no use.
    leave_out: bool,
    broken: Option<usize>,
    /// Shard of each piece asked for, and whether it is the shard's last.
    asked: VecDeque<(usize, bool)>,
    pieces: VecDeque<(usize, bool, Bytes)>,
    current: Option<(usize, ShardReader)>,
}

impl ArrivingPass for Pass {
    fn next_read(&mut self) -> Option<(u64, BoxFuture<'static, Result<Bytes>>)> {
        if self.order.front().is_some_and(|&shard| self.broken == Some(shard)) {
            self.order.pop_front();
            self.at = 0;
        }
        let shard = *self.order.front()?;
        let object = self.common.objects[shard].clone();
        let range: Range<u64> = self.at..object.size.min(self.at + PIECE_BYTES);
        let last = range.end == object.size;
        self.at = if last { 0 } else { range.end };
        if last {
            self.order.pop_front();
        }
        self.asked.push_back((shard, last));
        let store = self.common.store.clone();
        Some((range.end - range.start, Box::pin(async move { store.read(&object, range).await })))
    }

    fn supply(&mut self, piece: Bytes) {
        let (shard, last) = self.asked.pop_front().expect("pieces come in the order they were asked for");
        self.pieces.push_back((shard, last, piece));
    }

    fn next_block(&mut self, room: usize) -> Result<Next> {
        loop {
            if let Some((shard, reader)) = &mut self.current {
                let (shard, object) = (*shard, &self.common.objects[*shard]);
                let explain = |error: Error| match self.common.shortened[shard] {
                    Some(shortened) => shortened.explain(error),
                    None => error,
                };
                match reader.next_block(room).map_err(|e| explain(e).url(object.url.clone())) {
                    Ok(Next::Block(block)) => return Ok(Next::Block(Arrived { shard, ..block })),
                    Ok(Next::Room(bytes)) => return Ok(Next::Room(bytes)),
                    Ok(Next::Piece) => {}
                    Err(error) if self.leave_out && error.kind() == ErrorKind::Corrupt => {
                        let (first_record, offset) = (reader.framer.record(), reader.framer.offset());
                        (self.broken, self.current) = (Some(shard), None);
                        let (buffer, framed, seekable) = (Buffer::from(&[]), broken_off(error), false);
                        return Ok(Next::Block(Arrived { buffer, framed, shard, first_record, offset, seekable }));
                    }
                    Err(error) if error.kind() == ErrorKind::Corrupt => return Err(error.or_leave_out()),
                    Err(error) => return Err(error),
                }
                if reader.is_done() {
                    if let Some((_, reader)) = self.current.take()
                        && let Ok(Found::Whole(index)) = reader.found()
                    {
                        self.keeper.save(object, &index);
                    }
                    continue;
                }
            }
            let Some((shard, last, piece)) = self.pieces.pop_front() else { return Ok(Next::Piece) };
            if self.broken == Some(shard) {
                continue;
            }
            let (_, reader) = self.current.get_or_insert_with(|| {
                let compression = self.common.options.compression;
                let reader = ShardReader::new(&self.common.objects[shard], compression, self.common.check());
                match self.start.take() {
                    Some(start) => (shard, reader.starting_at(start.record, start.offset)),
                    None => (shard, reader),
                }
            });
            reader.supply(piece, last);
        }
    }
}
