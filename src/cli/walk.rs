//! Walks through one shard from front to back while it is being read.

use tokio::sync::oneshot;

use super::shards::Shards;
use crate::dataset::{Format, TfRecord};
use crate::engine::io::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::format::tfrecord::{Check, Compression, ShardIndex};
use crate::source::Arrived;
use crate::source::open::doubt;
use crate::source::tfrecord::{LARGEST_RECORD, ShardReader};

/// Walks through the records of one shard.
///
/// # Memory
/// The piece that is read ahead, the piece that is being processed, and the records of one block: 12 MiB with pieces of 4 MiB, unless a record is
/// larger.
pub(super) struct Walk<'a> {
    shards: &'a Shards,
    shard: usize,
    reader: ShardReader,
    /// The offset of the next piece in the stored shard.
    at: u64,
    piece_bytes: u64,
    /// The size of the largest record that is accepted.
    room: usize,
    ahead: Option<Piece>,
    reads_ahead: bool,
    over: bool,
}

/// A piece that was requested.
struct Piece {
    bytes: u64,
    last: bool,
    result: oneshot::Receiver<Result<bytes::Bytes>>,
    /// Cancels the read when the walk is abandoned.
    _cancel: Cancel,
}

/// A step of a walk.
pub(super) enum Step {
    Block(Arrived),
    /// Record boundaries can no longer be found; nothing follows.
    Damage(Damage),
}

/// Where a shard is damaged.
pub(super) struct Damage {
    /// The record that cannot be found.
    pub(super) record: u64,
    /// Where its header would start in the decompressed shard.
    pub(super) offset: u64,
    pub(super) error: Error,
}

impl<'a> Walk<'a> {
    /// Creates a walk from the first record.
    pub(super) fn new(shards: &'a Shards, shard: usize, check: Check, piece_bytes: u64) -> Self {
        let reader = ShardReader::new(&shards.objects[shard], None, check);
        Self {
            shards,
            shard,
            reader,
            at: 0,
            piece_bytes,
            room: LARGEST_RECORD,
            ahead: None,
            reads_ahead: false,
            over: false,
        }
    }

    /// Starts at a record of a plain shard, given its place.
    pub(super) fn starting_at(mut self, record: u64, offset: u64) -> Self {
        self.reader = self.reader.starting_at(record, offset);
        self.at = offset;
        self
    }

    /// From now on, requests the next piece before it is needed.
    pub(super) fn reading_ahead(mut self) -> Self {
        self.reads_ahead = true;
        self.ask();
        self
    }

    /// Returns the shard's number.
    pub(super) fn shard(&self) -> usize {
        self.shard
    }

    /// Returns the stored bytes that have not been requested.
    pub(super) fn unread(&self) -> u64 {
        self.shards.objects[self.shard].size - self.at
    }

    /// Returns the number of records so far.
    pub(super) fn records(&self) -> u64 {
        self.reader.position().0
    }

    /// Returns the decompressed bytes of the records so far.
    pub(super) fn bytes(&self) -> u64 {
        self.reader.position().1
    }

    /// Returns how the shard is compressed; an empty shard counts as uncompressed.
    pub(super) fn compression(&self) -> Compression {
        self.reader.compression().unwrap_or_default()
    }

    /// Returns the index of a shard whose records have all been walked through, from the first on.
    pub(super) fn index(self) -> Result<ShardIndex> {
        self.reader.index()
    }

    /// Returns the next block; `None` after the last block and after damage. `read` is called with the number of stored bytes that arrived.
    ///
    /// # Errors
    /// The shard cannot be read.
    pub(super) fn next(&mut self, read: impl Fn(u64)) -> Result<Option<Step>> {
        while !self.over {
            match self.reader.next_arrived(self.room) {
                Ok(Some(block)) => return Ok(Some(Step::Block(Arrived { shard: self.shard, ..block }))),
                Err(error) => {
                    self.over = true;
                    // What is too large to be held may be good.
                    if error.kind() != ErrorKind::Corrupt {
                        return Err(self.placed(error));
                    }
                    let (record, offset) = self.reader.position();
                    return Ok(Some(Step::Damage(Damage { record, offset, error: self.placed(error) })));
                }
                Ok(None) if self.reader.is_done() => break,
                Ok(None) => {}
            }
            self.ask();
            let Some(piece) = self.ahead.take() else { break };
            let arrived = self.shards.io.wait(async move {
                piece.result.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Panicked, "reading panicked")))
            })?;
            read(piece.bytes);
            self.reader.supply(arrived, piece.last);
            if self.reads_ahead {
                self.ask();
            }
        }
        self.over = true;
        Ok(None)
    }

    /// Adds the shard's URL to an error.
    fn placed(&self, error: Error) -> Error {
        doubt(&Format::TfRecord(TfRecord::new()), error.url(self.shards.objects[self.shard].url.clone()))
    }

    /// Requests the next piece, unless it has been requested or there is none.
    fn ask(&mut self) {
        let object = &self.shards.objects[self.shard];
        if self.ahead.is_some() || self.at >= object.size {
            return;
        }
        let range = self.at..object.size.min(self.at + self.piece_bytes);
        let (bytes, last) = (range.end - range.start, range.end == object.size);
        self.at = range.end;
        let (done, result) = oneshot::channel();
        let (store, object) = (self.shards.store.clone(), object.clone());
        let cancel = self.shards.io.spawn(async move { _ = done.send(store.read(&object, range).await) });
        self.ahead = Some(Piece { bytes, last, result, _cancel: cancel });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::shards::ShardArgs;
    use crate::format::tfrecord::Writer;

    #[test]
    fn what_is_too_large_to_be_held_is_an_error_and_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tfrecord");
        let mut writer = Writer::new(Vec::new(), Compression::None);
        writer.write(&vec![0; 5 << 20]).unwrap();
        std::fs::write(&path, writer.finish().unwrap()).unwrap();
        let shards = ShardArgs { urls: vec![path.to_string_lossy().into_owned()], threads: Some(1) }.find().unwrap();
        let step = |room: usize| Walk { room, ..Walk::new(&shards, 0, Check::Full, 1 << 20) }.next(|_| {});
        assert!(matches!(step(LARGEST_RECORD), Ok(Some(Step::Block(_)))));
        let Err(error) = step(4 << 20) else { panic!("it does not fit") };
        assert_eq!((error.kind(), error.place().record), (ErrorKind::Memory, Some(0)));
        assert!(error.place().url.as_deref().is_some_and(|url| url.ends_with("a.tfrecord")), "{error}");
    }
}
