//! Reads a source without an index: pieces ahead in parallel, framed in order, one block at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::run::{BlockKey, Fetch, Run};
use crate::engine::budget::{Account, Grant};
use crate::engine::pool::{Level, no_panic};
use crate::engine::reorder::Reorder;
use crate::error::{Error, Result};
use crate::plan::ReadPoint;
use crate::random::Key;
use crate::source::{ARRIVED_BYTES, Arrived, Arriving, ArrivingPass, Next};

/// Pieces read at the same time.
const READS: u64 = 8;

/// Bytes of a block that arrives, and as many for what is made of it.
const ROOM_BYTES: u64 = 2 * ARRIVED_BYTES;

/// The pass over one source in one epoch.
pub(crate) struct ArrivalDriver {
    source: Arc<dyn Arriving>,
    epoch: u64,
    /// `None` while a worker frames.
    pass: Option<Box<dyn ArrivingPass>>,
    pieces: Reorder<Result<(Bytes, Grant)>>,
    /// A read that waits for the budget.
    next: Option<(u64, futures::future::BoxFuture<'static, Result<Bytes>>)>,
    asked: u64,
    supplied: u64,
    all_asked: bool,
    /// Reads of pieces that were not supplied to the pass yet.
    reads: VecDeque<Fetch>,
    /// Rows that planning waits for.
    wanted: u64,
    needs_piece: bool,
    waits_for_room: bool,
    /// Bytes of a block and what is made of it, as many as the next record takes, and the grant that is kept while such a record comes in.
    room_bytes: u64,
    room: Option<Grant>,
    blocks: u32,
    ended: bool,
    error: Option<Error>,
}

/// What a worker brings back from framing.
pub(crate) struct Framed {
    pub(crate) epoch: u64,
    pass: Box<dyn ArrivingPass>,
    result: Result<Outcome>,
}

/// The result of framing.
enum Outcome {
    /// A block: its number of rows, the sample id of the first row, and where to read it from again.
    Block(u64, u64, ReadPoint),
    /// Another piece is needed. The room is given back to hold the part of a large record that has come.
    Piece(Grant),
    /// A record takes this many bytes.
    Room(u64, Grant),
}

/// The number of tasks and reads that were started.
#[derive(Default)]
pub(crate) struct Started {
    pub(crate) tasks: usize,
    pub(crate) reads: usize,
}

impl ArrivalDriver {
    pub(crate) fn new(source: Arc<dyn Arriving>, epoch: u64, seed: u64, place: Option<ReadPoint>) -> Self {
        let pass = source.begin(Key::new(seed).with("shards").with_number(epoch), place);
        Self {
            source,
            epoch,
            pass: Some(pass),
            pieces: Reorder::default(),
            next: None,
            asked: 0,
            supplied: 0,
            all_asked: false,
            reads: VecDeque::new(),
            wanted: 0,
            needs_piece: true,
            waits_for_room: false,
            room_bytes: ROOM_BYTES,
            room: None,
            blocks: 0,
            ended: false,
            error: None,
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.blocks
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The error that ended the pass, if one did.
    pub(crate) fn error(&self) -> Option<Error> {
        self.error.clone()
    }

    /// Whether the next block is a worker's work: framing, or copying the piece that is needed.
    pub(crate) fn is_decoding(&self) -> bool {
        self.pass.is_none() || self.reads.front().is_some_and(Fetch::is_copying)
    }

    /// When the first byte came of the piece that is needed next.
    pub(crate) fn first_byte(&self) -> Option<Instant> {
        self.reads.front()?.first_byte()
    }

    /// Bytes that the driver waits for when the budget has no room.
    pub(crate) fn wanted_bytes(&self) -> Option<u64> {
        match &self.next {
            Some((bytes, _)) => Some(*bytes),
            None => self.waits_for_room.then_some(self.room_bytes),
        }
    }

    /// Says that planning waits for `rows` rows in all. Returns whether that is new.
    pub(crate) fn want(&mut self, rows: u64) -> bool {
        let news = rows > self.wanted;
        self.wanted = self.wanted.max(rows);
        news
    }

    pub(crate) fn piece_read(&mut self, number: u64, piece: Result<(Bytes, Grant)>) {
        self.pieces.put(number, piece);
    }

    /// Takes the pass back. Returns the rows, first sample id and place of the block that it gave.
    pub(crate) fn block_framed(&mut self, framed: Framed) -> Option<(u64, u64, ReadPoint)> {
        self.pass = Some(framed.pass);
        match framed.result {
            Ok(Outcome::Block(rows, first_id, place)) => {
                self.blocks += 1;
                self.room_bytes = ROOM_BYTES;
                return Some((rows, first_id, place));
            }
            Ok(Outcome::Piece(_)) if self.all_asked && self.supplied == self.asked => self.ended = true,
            Ok(Outcome::Piece(room)) => {
                self.needs_piece = true;
                self.room = Some(room).filter(|_| self.room_bytes > ROOM_BYTES);
            }
            Ok(Outcome::Room(bytes, room)) => {
                self.room_bytes = 2 * bytes;
                self.room = Some(room);
            }
            Err(error) => self.fail(error),
        }
        None
    }

    fn fail(&mut self, error: Error) {
        self.error = Some(error);
        self.ended = true;
        self.reads.clear();
        self.next = None;
    }

    /// Starts what can be started: reads, up to a few ahead, and framing of the next block.
    pub(crate) fn drive(&mut self, run: &Run, leaf: usize, rows: u64, reserve: u64) -> Started {
        let mut started = Started::default();
        if self.ended || rows >= self.wanted {
            return started;
        }
        let account = &run.shared.account;
        while !self.all_asked && self.asked - self.supplied < READS {
            let next = self.next.take().or_else(|| self.pass.as_mut().and_then(|pass| pass.next_read()));
            let Some((bytes, read)) = next else {
                self.all_asked = self.pass.is_some();
                break;
            };
            let Some(grant) = account.grant(bytes, reserve + ROOM_BYTES) else {
                self.next = Some((bytes, read));
                break;
            };
            let (number, epoch) = (self.asked, self.epoch);
            self.asked += 1;
            started.tasks += 1;
            started.reads += 1;
            let (fetch, task) = run.fetch(leaf, read, move |run, piece, _| {
                if let Ok(piece) = &piece {
                    run.shared.counters.read.add(0, piece.len() as u64);
                }
                run.update(|state| state.piece_read(leaf, epoch, number, piece.map(|piece| (piece, grant))));
            });
            self.reads.push_back(fetch);
            task.into_iter().for_each(|task| run.shared.pool.submit(task));
        }
        if self.pass.is_none() {
            return started;
        }
        let mut supplied = None;
        if self.needs_piece {
            match self.pieces.pop() {
                Some(Ok(piece)) => {
                    supplied = Some(piece);
                    self.supplied += 1;
                }
                Some(Err(error)) => {
                    self.fail(error.stage("read"));
                    started.tasks += 1;
                    self.report_end(run, leaf);
                    return started;
                }
                // After the last piece the pass is asked once more: it may end within a record.
                None if self.all_asked && self.supplied == self.asked => {}
                None => return started,
            }
        }
        // Room for the block and for the record that it may end with.
        let Some(mut room) = self.take_room(account, reserve) else {
            self.waits_for_room = true;
            if let Some((piece, grant)) = supplied {
                self.supplied -= 1;
                self.pieces.put_back(Ok((piece, grant)));
            }
            return started;
        };
        self.waits_for_room = false;
        self.needs_piece = false;
        if supplied.is_some() {
            self.reads.pop_front();
        }
        let (Some(mut pass), source, epoch) = (self.pass.take(), self.source.clone(), self.epoch) else {
            return started;
        };
        started.tasks += 1;
        run.submit(Level::Decode, move |run, _| {
            if let Some((piece, _grant)) = supplied {
                pass.supply(piece);
            }
            let block = no_panic(|| pass.next_block(room.bytes() as usize / 2)).map_err(|e| e.stage("decode"));
            let arrived = match block {
                Ok(Next::Block(block)) => block,
                other => {
                    let result = other.map(|next| match next {
                        Next::Room(bytes) => Outcome::Room(bytes as u64, room),
                        _ => Outcome::Piece(room),
                    });
                    return run.update(|state| _ = state.block_framed(leaf, Framed { epoch, pass, result }));
                }
            };
            let first_id = sample_id(&arrived);
            let result = Ok(Outcome::Block(arrived.framed.payloads.len() as u64, first_id, arrived.place()));
            let framed = Framed { epoch, pass, result };
            let mut key: Option<BlockKey> = None;
            run.update(|state| key = state.block_framed(leaf, framed));
            if let Some(key) = key {
                // What the block really takes.
                room.resize(2 * arrived.buffer.len() as u64);
                let decoded = run.decode(|| source.decode(arrived));
                run.decoded(key, first_id, room, decoded.map_err(|e| e.stage("decode")));
            }
        });
        started
    }

    /// Takes room for a block, and for what is made of it.
    fn take_room(&mut self, account: &Arc<Account>, reserve: u64) -> Option<Grant> {
        let Some(mut room) = self.room.take() else { return account.grant(self.room_bytes, reserve) };
        if room.bytes() < self.room_bytes && !room.resize(self.room_bytes) {
            self.room = Some(room);
            return None;
        }
        Some(room)
    }

    /// Makes the driver's end known if no worker brings it back.
    fn report_end(&mut self, run: &Run, leaf: usize) {
        let (Some(pass), epoch) = (self.pass.take(), self.epoch) else { return };
        let error = self.error.clone().expect("called after a failure");
        run.submit(Level::Decode, move |run, _| {
            run.update(|state| _ = state.block_framed(leaf, Framed { epoch, pass, result: Err(error) }));
        });
    }
}

/// The sample id of a block's first row: shard and record number, since row numbers are not known.
fn sample_id(arrived: &Arrived) -> u64 {
    (arrived.shard as u64) << 40 | arrived.first_record
}
