//! Batches of rows whose number no plan knows: what filters and flat_maps leave, stream by stream.
//!
//! Each stream gives its share of every batch. When one has run dry at the end of an epoch, the others fill its place, in the
//! order of their numbers, so that all batches but the last are full.

use std::collections::VecDeque;

use super::assemble::Assembly;
use super::run::{Evaluation, Kept};
use super::skip::Drawn;
use crate::batch::collate::Rows;
use crate::error::Error;
use crate::plan::steps::Steps;
use crate::plan::{Cursor, Remainder};

pub(crate) struct Rebatch {
    steps: Steps,
    /// Batches of an epoch at most.
    limit: Option<u64>,
    streams: Vec<Stream>,
    /// The step of the next batch.
    step: u64,
    /// The epoch of the rows at hand.
    epoch: u64,
    /// What was drawn since the last batch.
    drawn: Drawn,
}

#[derive(Default)]
struct Stream {
    pieces: VecDeque<Piece>,
    rows: usize,
    /// The position behind all pieces.
    end: u64,
}

/// Rows that some consecutive positions became.
struct Piece {
    rows: Rows,
    origin: Option<Vec<u32>>,
    /// Rows already taken.
    taken: usize,
    position: u64,
    kept: Kept,
}

impl Piece {
    fn left(&self) -> usize {
        self.rows.len() - self.taken
    }

    /// Position of a row, and how many rows of that position come before it.
    fn cursor(&self, row: usize) -> Cursor {
        let Some(origin) = &self.origin else { return Cursor { position: self.position + row as u64, expanded: 0 } };
        let first = origin.partition_point(|&o| o < origin[row]);
        Cursor { position: self.position + u64::from(origin[row]), expanded: (row - first) as u64 }
    }
}

impl Rebatch {
    pub(crate) fn new(steps: Steps, limit: Option<u64>) -> Self {
        let streams = (0..steps.streams / steps.world).map(|_| Stream::default()).collect();
        Self { steps, limit, streams, step: 0, epoch: 0, drawn: Drawn::default() }
    }

    /// Whether `epoch` has all the batches that it may have.
    pub(crate) fn is_full(&self, epoch: u64) -> bool {
        self.epoch == epoch && self.limit.is_some_and(|limit| self.step >= limit)
    }

    /// Takes the rows of one step; gives the batches that are full, and at the end of an epoch the rest.
    pub(crate) fn push(&mut self, evaluation: Evaluation) -> Vec<Assembly> {
        if self.epoch != evaluation.epoch {
            (self.epoch, self.step) = (evaluation.epoch, 0);
            self.streams.iter_mut().for_each(|stream| *stream = Stream::default());
        }
        let mut error = None;
        for chunk in evaluation.chunks {
            self.drawn.add(&chunk);
            let (evaluated, position) = (chunk.evaluated, chunk.position);
            let stream = &mut self.streams[chunk.stream];
            stream.end = position + chunk.positions;
            if evaluated.rows.len() > 0 {
                stream.rows += evaluated.rows.len();
                let (rows, origin) = (evaluated.rows, evaluated.origin);
                stream.pieces.push_back(Piece { rows, origin, taken: 0, position, kept: evaluation.kept.clone() });
            }
            if evaluated.error.is_some() {
                error = evaluated.error;
                break;
            }
        }
        let mut batches = Vec::new();
        let share = self.steps.stream_share() as usize;
        while !self.is_full(self.epoch) && self.streams.iter().all(|stream| stream.rows >= share) {
            batches.push(self.take(None));
        }
        if error.is_some() || evaluation.end.is_some() {
            self.take_rest(error, &mut batches);
        }
        batches
    }

    /// The rest of an epoch, or what came before an error.
    fn take_rest(&mut self, error: Option<Error>, batches: &mut Vec<Assembly>) {
        let batch = (self.steps.batch / self.steps.world) as usize;
        let left = |rebatch: &Self| rebatch.streams.iter().map(|stream| stream.rows).sum::<usize>();
        while !self.is_full(self.epoch) && left(self) >= batch {
            batches.push(self.take(None));
        }
        if self.is_full(self.epoch) {
            return;
        }
        let rest = left(self) > 0 && self.steps.remainder == Remainder::Keep || !self.drawn.skipped.is_empty();
        if error.is_some() || rest {
            batches.push(self.take(error));
        }
    }

    /// The next batch: each stream's share, and where one has less, more of the others.
    fn take(&mut self, error: Option<Error>) -> Assembly {
        let batch = (self.steps.batch / self.steps.world) as usize;
        let share = self.steps.stream_share() as usize;
        let mut counts: Vec<usize> = self.streams.iter().map(|stream| stream.rows.min(share)).collect();
        let mut missing = batch - counts.iter().sum::<usize>();
        for (stream, count) in self.streams.iter().zip(&mut counts) {
            let more = (stream.rows - *count).min(missing);
            *count += more;
            missing -= more;
        }
        let (mut rows, mut kept) = (Vec::new(), Vec::new());
        for (stream, count) in self.streams.iter_mut().zip(counts) {
            stream.take(count, &mut rows, &mut kept);
        }
        let cursors = self.streams.iter().map(Stream::cursor).collect();
        self.step += 1;
        let drawn = std::mem::take(&mut self.drawn);
        Assembly {
            number: 0,
            epoch: self.epoch,
            step: self.step - 1,
            rows,
            error,
            drawn,
            cursors,
            gaps: Vec::new(),
            kept,
            bytes: 0,
        }
    }
}

impl Stream {
    fn take(&mut self, mut count: usize, rows: &mut Vec<Rows>, kept: &mut Vec<Kept>) {
        self.rows -= count;
        while count > 0 {
            let piece = self.pieces.front_mut().expect("counted in rows");
            let some = piece.left().min(count);
            rows.push(piece.rows.slice(piece.taken, some));
            kept.push(piece.kept.clone());
            piece.taken += some;
            count -= some;
            if piece.left() == 0 {
                self.pieces.pop_front();
            }
        }
    }

    fn cursor(&self) -> Cursor {
        self.pieces.front().map_or(Cursor { position: self.end, expanded: 0 }, |piece| piece.cursor(piece.taken))
    }
}
