//! One shard read from front to back.

use arrow::buffer::Buffer;
use bytes::Bytes;

use super::indexes::{Found, fingerprint};
use crate::error::{Error, ErrorKind, Result};
use crate::format::tfrecord::{Check, Compression, Decoder, Fingerprint, Framed, Framer, IndexBuilder};
use crate::source::{ARRIVED_BYTES, Arrived, Next};
use crate::store::Object;

/// One shard from front to back: pieces in, blocks of records out.
pub(crate) struct ShardReader {
    fingerprint: Fingerprint,
    pub(super) size: u64,
    /// Whether it began at the shard's beginning.
    whole: bool,
    /// Known with the first piece, if not stated.
    compression: Option<Compression>,
    decoder: Option<Decoder>,
    pub(super) framer: Framer,
    input: Bytes,
    last: bool,
    /// Decompressed bytes that are no whole record yet.
    rest: Vec<u8>,
    builder: IndexBuilder,
    done: bool,
    pub(super) failed: Option<Error>,
}

impl ShardReader {
    pub(crate) fn new(object: &Object, compression: Option<Compression>, check: Check) -> Self {
        Self {
            fingerprint: fingerprint(object),
            size: object.size,
            whole: true,
            compression,
            decoder: None,
            framer: Framer::new(check),
            input: Bytes::new(),
            last: false,
            rest: Vec::new(),
            builder: IndexBuilder::new(),
            done: false,
            failed: None,
        }
    }

    /// Starts in the middle of a plain shard: the first piece begins with the header of `record`. Such a reader has no index.
    pub(crate) fn starting_at(mut self, record: u64, offset: u64) -> Self {
        self.whole = false;
        self.compression = Some(Compression::None);
        self.framer = self.framer.starting_at(record, offset);
        self
    }

    /// The next record, and where its header starts in the decompressed shard.
    #[cfg(feature = "cli")]
    pub(crate) fn position(&self) -> (u64, u64) {
        (self.framer.record(), self.framer.offset())
    }

    /// How the shard is compressed, once the first piece is there.
    #[cfg(feature = "cli")]
    pub(crate) fn compression(&self) -> Option<Compression> {
        self.compression
    }

    pub(crate) fn supply(&mut self, piece: Bytes, last: bool) {
        debug_assert!(self.input.is_empty(), "a piece is used up before the next comes");
        self.last = last;
        let compression = *self.compression.get_or_insert_with(|| Compression::detect(&piece));
        self.decoder.get_or_insert_with(|| Decoder::new(compression));
        self.input = piece;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// The next block as [`next_block`](Self::next_block) gives it, for commands; `None` where another piece is wanted.
    #[cfg(feature = "cli")]
    pub(crate) fn next_arrived(&mut self, room: usize) -> Result<Option<Arrived>> {
        match self.next_block(room)? {
            Next::Block(block) => Ok(Some(block)),
            Next::Piece => Ok(None),
            Next::Room(bytes) => Err(too_large(bytes, self)),
        }
    }

    /// The next block, whose shard's number is left to the caller; a piece is wanted once more behind the last, when it is done.
    pub(super) fn next_block(&mut self, room: usize) -> Result<Next> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.done {
            return Ok(Next::Piece);
        }
        let Some(decoder) = &mut self.decoder else { return Ok(Next::Piece) };
        let (mut result, mut framed, mut ended) = (Ok(()), Framed::default(), false);
        let (first_record, offset) = (self.framer.record(), self.framer.offset());
        let mut needed = ARRIVED_BYTES as usize;
        let mut consumed = 0;
        loop {
            if needed > room.max(ARRIVED_BYTES as usize) {
                return Ok(Next::Room(needed));
            }
            let more = needed.saturating_sub(self.rest.len());
            match decoder.decode(&self.input, &mut self.rest, more) {
                Ok(decoded) => {
                    self.input = self.input.slice(decoded.consumed..);
                    ended = self.last && !decoded.more && self.input.is_empty();
                    if ended {
                        result = decoder.finish();
                    }
                }
                Err(error) => result = Err(error),
            }
            let following = match (self.compression, ended && result.is_ok()) {
                (_, true) => Some(0),
                (Some(Compression::None), false) => Some(self.size - offset - self.rest.len() as u64),
                _ => None,
            };
            match self.framer.frame(&self.rest[consumed..], following, &mut framed) {
                Ok(progress) => {
                    consumed += progress.consumed;
                    // A record that does not fit the block is read whole; its length was held against shard and limit.
                    needed = needed.max(consumed + progress.needed);
                }
                Err(error) => result = result.and(Err(error)),
            }
            let used_up = self.input.is_empty() && !ended;
            if result.is_err() || ended || used_up || !framed.payloads.is_empty() {
                break;
            }
        }
        self.done = ended && result.is_ok();
        for payload in &framed.payloads {
            result = result.and(self.builder.push(payload.len() as u64));
        }
        if let Err(error) = result {
            self.failed = Some(error.clone());
            if framed.payloads.is_empty() {
                return Err(error);
            }
        }
        if framed.payloads.is_empty() {
            return Ok(Next::Piece);
        }
        // Payloads of later rounds of the loop count from what was consumed before; there is only one round with records.
        // Behind damage nothing is read; what was found before it lies in the same bytes.
        let rest = if self.failed.is_some() { Vec::new() } else { self.rest.split_off(consumed) };
        let buffer = Buffer::from_vec(std::mem::replace(&mut self.rest, rest));
        let seekable = self.compression == Some(Compression::None);
        Ok(Next::Block(Arrived { buffer, framed, shard: 0, first_record, offset, seekable }))
    }

    /// The index of a shard that was read to its end.
    ///
    /// # Errors
    /// The damage that reading met.
    #[cfg(feature = "cli")]
    pub(crate) fn index(self) -> Result<crate::format::tfrecord::ShardIndex> {
        match self.found()? {
            Found::Whole(index) => Ok(index),
            Found::Damaged(_, error) => Err(error),
            Found::Nothing => unreachable!("something is known of a shard that was read"),
        }
    }

    /// The records that were found.
    pub(super) fn found(self) -> Result<Found> {
        if !self.whole {
            return Err(Error::corrupt("the shard was not read from its beginning"));
        }
        if self.size == 0 {
            return self.builder.finish(self.fingerprint, Compression::None).map(Found::Whole);
        }
        match (self.failed, self.done, self.compression) {
            (Some(error), _, compression) if error.kind() == ErrorKind::Corrupt => {
                let index = self.builder.up_to_damage(self.fingerprint, compression.unwrap_or(Compression::None));
                Ok(Found::Damaged(index, error))
            }
            (Some(error), ..) => Err(error),
            (None, true, Some(compression)) => self.builder.finish(self.fingerprint, compression).map(Found::Whole),
            _ => Err(Error::corrupt("the shard was not read to its end")),
        }
    }
}

/// A record that the budget cannot hold.
pub(super) fn too_large(bytes: usize, shard: &ShardReader) -> Error {
    Error::new(ErrorKind::Memory, format!("a record of {bytes} bytes does not fit the budget"))
        .record(shard.framer.record())
        .byte_offset(shard.framer.offset())
        .advice(format!("take .budget(Budget::mebibytes({})) or more", (4 * bytes as u64).div_ceil(1 << 20)))
}
