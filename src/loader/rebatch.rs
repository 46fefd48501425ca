//! Makes batches of rows whose number no plan knows: what filters and flat_maps leave, stream by stream.
//!
//! Each stream gives its share of every batch. When one has run dry at the end of an epoch, the others fill its place, in the order of their numbers,
//! so that all batches but the last are full. A batch depends only on what the streams' rows are, never on when they come: it waits until its content
//! is settled. So a run that begins in the middle gives the same batches as the whole run.
//!
//! If shares are marked in the rows, a stream gives one share to each batch, whatever number of rows it has, and a stream that has run dry gives
//! nothing.

use std::collections::VecDeque;

use super::assemble::Assembly;
use super::pipeline::Pipeline;
use super::run::{EvaluatedChunk, Evaluation, Kept};
use super::skip::Drawn;
use crate::batch::collate::Rows;
use crate::error::Error;
use crate::plan::order::ENDLESS;
use crate::plan::state::Progress;
use crate::plan::steps::Steps;
use crate::plan::{Cursor, Remainder};

pub(crate) struct Rebatch {
    steps: Steps,
    /// The most batches that an epoch has.
    limit: Option<u64>,
    /// Positions of an epoch; [`ENDLESS`] if they are not known or do not end.
    rows: u64,
    /// Rows of one turn of an order that does not end. If none of so many rows of a stream is left, that stream is not waited for any longer.
    turn: Option<u64>,
    /// The stage that changes the number of rows, for messages.
    changer: &'static str,
    /// Whether shares are marked in the rows.
    shares: bool,
    /// Whether rows point into blocks, which they then keep.
    points: bool,
    streams: Vec<Stream>,
    /// The step of the next batch.
    step: u64,
    /// The epoch of the rows at hand, and whether they are all of its rows.
    epoch: u64,
    over: bool,
    failed: bool,
}

struct Stream {
    pieces: VecDeque<Piece>,
    rows: usize,
    /// Everything before this cursor was delivered.
    cursor: Cursor,
    /// The position after all pieces, and how many positions there are.
    end: u64,
    length: u64,
    /// Positions since the last one that became a row.
    barren: u64,
    /// Positions that were left out and are not counted yet.
    skipped: VecDeque<(u64, (Error, u128))>,
    /// The error that comes after the last piece.
    error: Option<Error>,
}

/// Rows that some consecutive positions became.
struct Piece {
    rows: Rows,
    origin: Option<Vec<u32>>,
    /// The number of each row's share, if shares are marked.
    shares: Option<Vec<u32>>,
    /// Whether an error follows the last row, which may be in the middle of what a position became.
    is_cut: bool,
    /// Rows already taken.
    taken: usize,
    position: u64,
    kept: Kept,
}

/// Rows that each stream gives to the next batch.
enum Next {
    /// Not settled yet.
    Open,
    Full(Vec<usize>),
    /// All rows that there are.
    Rest(Vec<usize>),
    /// All rows that there are before an error.
    Ends(Vec<usize>, Error),
}

impl Piece {
    fn left(&self) -> usize {
        self.rows.len() - self.taken
    }

    /// The position that a row came from, counted from that of the piece.
    fn position(&self, row: usize) -> u32 {
        self.origin.as_ref().map_or(row as u32, |origin| origin[row])
    }

    /// How many rows the next share has.
    fn next_share(&self) -> usize {
        let Some(shares) = &self.shares else { return self.left() };
        shares[self.taken..].iter().take_while(|share| **share == shares[self.taken]).count()
    }

    /// How many of the rows lie before a cursor.
    fn rows_before(&self, cursor: Cursor) -> usize {
        let Some(within) = cursor.position.checked_sub(self.position) else { return 0 };
        let first = |position: u64| match &self.origin {
            Some(origin) => origin.partition_point(|&o| u64::from(o) < position),
            None => position.min(self.rows.len() as u64) as usize,
        };
        first(within).saturating_add(cursor.expanded as usize).min(first(within + 1))
    }

    /// The cursor after a row.
    fn cursor_behind(&self, row: usize) -> Cursor {
        let position = self.position(row);
        let behind = row + 1;
        let is_whole = if behind == self.rows.len() { !self.is_cut } else { self.position(behind) != position };
        if is_whole {
            return Cursor { position: self.position + u64::from(position) + 1, expanded: 0 };
        }
        let first = self.origin.as_ref().map_or(row, |origin| origin.partition_point(|&o| o < position));
        Cursor { position: self.position + u64::from(position), expanded: (behind - first) as u64 }
    }
}

impl Rebatch {
    /// `rows`: positions of an epoch, if known. `points`: whether rows keep the blocks that they point into.
    pub(crate) fn new(pipeline: &Pipeline, rows: u64, points: bool, start: &Progress) -> Self {
        let mut rebatch = Self {
            steps: pipeline.steps,
            limit: pipeline.limit,
            rows,
            turn: pipeline.barren_turn,
            changer: pipeline.changer,
            shares: pipeline.shares,
            points,
            streams: Vec::new(),
            step: start.step,
            epoch: start.epoch,
            over: false,
            failed: false,
        };
        rebatch.begin();
        for (stream, &cursor) in rebatch.streams.iter_mut().zip(&start.cursors) {
            (stream.cursor, stream.end) = (cursor, cursor.position);
        }
        rebatch
    }

    fn begin(&mut self) {
        let streams = self.steps.first_stream()..self.steps.first_stream() + self.steps.own_streams();
        let length = |stream| if self.rows == ENDLESS { ENDLESS } else { self.steps.stream_rows(stream, self.rows) };
        self.streams = streams.map(|stream| Stream::new(length(stream))).collect();
        self.over = false;
    }

    /// Whether `epoch` has all the batches that it may have.
    pub(crate) fn is_full(&self, epoch: u64) -> bool {
        self.epoch == epoch && self.limit.is_some_and(|limit| self.step >= limit)
    }

    /// Whether a stream that is planned up to this position need not be read further now: the next batch can be made without more of it, and enough
    /// is under way.
    pub(crate) fn is_sated(&self, stream: usize, epoch: u64, planned: u64) -> bool {
        let Stream { rows, end, .. } = self.streams[stream];
        let under_way = rows as u64 + planned.saturating_sub(end);
        let enough = if self.shares { 1 } else { self.share() };
        self.epoch == epoch && rows >= enough && under_way >= (self.batch() + self.share()) as u64
    }

    /// Rows of this rank's batch, and of a stream's part of it.
    fn batch(&self) -> usize {
        (self.steps.batch / self.steps.world) as usize
    }

    fn share(&self) -> usize {
        self.steps.stream_share() as usize
    }

    /// Takes the rows of one ticket. Returns the batches that they settle.
    pub(crate) fn push(&mut self, evaluation: Evaluation) -> Vec<Assembly> {
        if self.epoch != evaluation.epoch {
            (self.epoch, self.step) = (evaluation.epoch, 0);
            self.begin();
        }
        // Rows that were written anew need no block any more.
        let kept = if self.points { evaluation.kept } else { Kept::default() };
        for chunk in evaluation.chunks {
            self.streams[chunk.stream].push(chunk, &kept, self.turn, self.changer);
        }
        self.over |= evaluation.end.is_some();
        let mut batches = Vec::new();
        while !self.failed && !self.is_full(self.epoch) {
            match self.next() {
                Next::Open => break,
                Next::Full(counts) => batches.push(self.take(counts, None)),
                Next::Ends(counts, error) => {
                    self.failed = true;
                    batches.push(self.take(counts, Some(error)));
                }
                Next::Rest(mut counts) => {
                    if self.steps.remainder != Remainder::Keep {
                        counts.fill(0);
                    }
                    if self.shares
                        && counts.iter().zip(&self.streams).any(|(&count, stream)| count < stream.rows)
                        && counts.iter().any(|&count| count > 0)
                    {
                        batches.push(self.take(counts, None));
                        continue;
                    }
                    // Positions that became no row are counted as seen, too.
                    let unseen = self.streams.iter().any(|stream| stream.cursor.position < stream.end);
                    if unseen || counts.iter().any(|&count| count > 0) {
                        let mut last = self.take(counts, None);
                        self.streams.iter_mut().for_each(|stream| stream.pass(stream.end, &mut last.drawn));
                        last.progress = self.progress();
                        batches.push(last);
                    }
                    break;
                }
            }
        }
        batches
    }

    /// What the next batch is made of: each stream's share, and more of the others if one has less.
    fn next(&self) -> Next {
        if self.shares {
            return self.next_shares();
        }
        let is_over = |stream: &Stream| self.over || stream.end >= stream.length;
        let short = |stream: &&Stream| stream.rows < self.share();
        if self.streams.iter().filter(short).any(|stream| stream.error.is_none() && !is_over(stream)) {
            return Next::Open;
        }
        let mut counts: Vec<usize> = self.streams.iter().map(|stream| stream.rows.min(self.share())).collect();
        if let Some(error) = self.streams.iter().filter(short).find_map(|stream| stream.error.clone()) {
            return Next::Ends(counts, error);
        }
        let mut missing = self.batch() - counts.iter().sum::<usize>();
        for (stream, count) in self.streams.iter().zip(&mut counts) {
            let more = (stream.rows - *count).min(missing);
            *count += more;
            missing -= more;
            if missing > 0
                && let Some(error) = &stream.error
            {
                let error = error.clone();
                return Next::Ends(counts, error);
            }
            if missing > 0 && !is_over(stream) {
                return Next::Open;
            }
        }
        if missing > 0 { Next::Rest(counts) } else { Next::Full(counts) }
    }

    /// What the next batch is made of if shares are marked: one share of each stream.
    fn next_shares(&self) -> Next {
        let counts = self.streams.iter().map(|stream| stream.pieces.front().map_or(0, Piece::next_share)).collect();
        let mut dry = self.streams.iter().filter(|stream| stream.rows == 0).peekable();
        if dry.peek().is_none() {
            return Next::Full(counts);
        }
        if dry.clone().any(|stream| stream.error.is_none() && !self.over && stream.end < stream.length) {
            return Next::Open;
        }
        match dry.find_map(|stream| stream.error.clone()) {
            Some(error) => Next::Ends(counts, error),
            None => Next::Rest(counts),
        }
    }

    fn take(&mut self, counts: Vec<usize>, error: Option<Error>) -> Assembly {
        let (mut rows, mut kept, mut drawn) = (Vec::new(), Vec::new(), Drawn::default());
        let (before, share) = (self.progress(), self.share());
        let (mut gaps, mut taken) = (Vec::new(), 0);
        for (stream, count) in self.streams.iter_mut().zip(counts) {
            stream.take(count, &mut rows, &mut kept, &mut drawn);
            taken += count as u64;
            if self.shares {
                // Each stream has its slots, full or not: the same in every world.
                gaps.extend(std::iter::repeat_n(taken, share - count));
            }
        }
        self.step += 1;
        let progress = self.progress();
        let step = self.step - 1;
        Assembly { step, before, progress, rows, error, drawn, gaps, kept, ..Assembly::default() }
    }

    fn progress(&self) -> Progress {
        let cursors = self.streams.iter().map(|stream| stream.cursor).collect();
        Progress { epoch: self.epoch, step: self.step, cursors, ..Progress::default() }
    }
}

impl Stream {
    fn new(length: u64) -> Self {
        Self {
            pieces: VecDeque::new(),
            rows: 0,
            cursor: Cursor::default(),
            end: 0,
            length,
            barren: 0,
            skipped: VecDeque::new(),
            error: None,
        }
    }

    fn push(&mut self, chunk: EvaluatedChunk, kept: &Kept, turn: Option<u64>, changer: &str) {
        if self.error.is_some() {
            return;
        }
        let EvaluatedChunk { position, positions, evaluated, left_out, .. } = chunk;
        self.end = position + positions;
        let from = self.cursor.position;
        let skipped = evaluated.skipped.into_iter().zip(left_out);
        let skipped = skipped.map(|((at, error), term)| (position + u64::from(at), (error, term)));
        self.skipped.extend(skipped.filter(|(at, _)| *at >= from));
        let mut piece = Piece {
            rows: evaluated.rows,
            origin: evaluated.origin,
            shares: evaluated.shares,
            is_cut: evaluated.error.is_some(),
            taken: 0,
            position,
            kept: kept.clone(),
        };
        // A run that begins in the middle meets what was delivered before.
        piece.taken = piece.rows_before(self.cursor);
        self.barren = if piece.left() > 0 { 0 } else { self.barren + positions };
        self.error = evaluated.error;
        if self.error.is_none() && turn.is_some_and(|turn| self.barren > turn) {
            self.error =
                Some(Error::config(format!("of {} samples in a row {changer} left none", self.barren)).advice(
                    "an epoch that goes on until it has them waits for some: look at what it lets through, the .filter() above all",
                ));
        }
        if piece.left() > 0 {
            self.rows += piece.left();
            self.pieces.push_back(piece);
        }
    }

    fn take(&mut self, mut count: usize, rows: &mut Vec<Rows>, kept: &mut Vec<Kept>, drawn: &mut Drawn) {
        self.rows -= count;
        let before = self.cursor.position;
        while count > 0 {
            let piece = self.pieces.front_mut().expect("counted in rows");
            let some = piece.left().min(count);
            rows.push(piece.rows.slice(piece.taken, some));
            kept.push(piece.kept.clone());
            piece.taken += some;
            count -= some;
            self.cursor = piece.cursor_behind(piece.taken - 1);
            if piece.left() == 0 {
                self.pieces.pop_front();
            }
        }
        self.count(before, drawn);
    }

    /// Moves on to a position after which nothing of the epoch comes.
    fn pass(&mut self, position: u64, drawn: &mut Drawn) {
        let before = self.cursor.position;
        self.cursor.position = self.cursor.position.max(position);
        self.count(before, drawn);
    }

    /// Counts the positions from `before` to the cursor as drawn.
    fn count(&mut self, before: u64, drawn: &mut Drawn) {
        drawn.samples += self.cursor.position - before;
        while self.skipped.front().is_some_and(|(position, _)| *position < self.cursor.position) {
            drawn.skipped.extend(self.skipped.pop_front().map(|(_, left_out)| left_out));
        }
    }
}
