//! Formulas for the shuffled order of rows: permuted blocks, streams, segments.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::order::{Frame, Positions};
use super::permutation::Permutation;
use super::steps::Steps;
use crate::random::Key;

/// How samples are shuffled.
///
/// # Order
/// [`buffer`](Self::buffer) permutes all blocks. Each of the plan's streams takes an equal span of the permuted blocks, and permutes the rows of one segment
/// (its share of the buffer) at a time. A data set that fits the buffer is permuted by rows as a whole. [`global`](Self::global) permutes all rows, at the
/// price of random reads. Every epoch has its own order, a function of (seed, epoch), the same for any number of threads and ranks.
///
/// # Memory
/// About one buffer of samples is resident while the next one fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shuffle(Mode);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mode {
    None,
    Buffer(u64),
    Global,
}

impl Shuffle {
    /// Keeps the files' own order.
    pub fn none() -> Self {
        Self(Mode::None)
    }

    /// Shuffles with a buffer of this many samples, over permuted blocks.
    pub fn buffer(samples: u64) -> Self {
        Self(if samples <= 1 { Mode::None } else { Mode::Buffer(samples) })
    }

    /// Permutes all rows: the best mixing, at the price of random reads. In plain TFRecord these are reads of single records. Parquet, Arrow IPC and compressed
    /// shards read a whole block for each row: use a large [`buffer`](Self::buffer) there.
    pub fn global() -> Self {
        Self(Mode::Global)
    }

    pub(crate) fn is_none(self) -> bool {
        self.0 == Mode::None
    }

    pub(crate) fn is_global(self) -> bool {
        self.0 == Mode::Global
    }

    /// Samples in the buffer; `None` if it has no bound.
    pub(crate) fn samples(self) -> Option<u64> {
        match self.0 {
            Mode::None => Some(1),
            Mode::Buffer(samples) => Some(samples),
            Mode::Global => None,
        }
    }
}

impl fmt::Display for Shuffle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Mode::None => f.write_str("none"),
            Mode::Buffer(samples) => write!(f, "buffer of {samples} samples"),
            Mode::Global => f.write_str("global"),
        }
    }
}

/// With fewer pieces per stream than this, large blocks are permuted in parts, because a stream mixes only what lies in its span.
pub(crate) const PIECES_PER_STREAM: u64 = 64;

/// The order of one shuffle node: maps a position to a row of its child.
#[derive(Clone, Debug)]
pub(crate) struct ShuffledOrder {
    key: Key,
    shuffle: Shuffle,
    rows: u64,
    /// Row numbers of the child at which the permuted pieces start, and the total.
    pieces: Arc<Vec<u64>>,
    steps: Steps,
    /// The permuted line of the last pass asked for.
    line: Option<Line>,
    /// The last segment of each stream.
    segments: HashMap<u64, Segment>,
}

/// One pass over the child: its pieces in permuted order, laid end to end; or all rows permuted.
#[derive(Clone, Debug)]
enum Line {
    Rows { pass: u64, rows: Permutation },
    Pieces { pass: u64, pieces: Vec<u32>, starts: Vec<u64> },
}

impl Line {
    fn pass(&self) -> u64 {
        match self {
            Line::Rows { pass, .. } | Line::Pieces { pass, .. } => *pass,
        }
    }
}

/// The rows of one segment in delivery order.
#[derive(Clone, Debug)]
struct Segment {
    pass: u64,
    /// Range of positions in the stream.
    start: u64,
    end: u64,
    /// How its positions lie in steps.
    frame: Option<Frame>,
    pieces: Vec<Piece>,
    /// For each position its piece and the row in that piece, permuted.
    rows: Vec<(u32, u32)>,
}

/// The part of a permuted piece that lies in a segment.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// The child's row at which this part starts.
    first: u64,
    place: Place,
    /// The last position that needs its block, and the step of that position.
    until: u64,
    hold: u64,
}

/// The block that holds a row of the child, and the row at which the block starts, for callers that need them.
pub(crate) type Place = (u32, u64);

impl ShuffledOrder {
    /// `starts`: row numbers at which the child's blocks start, and the total; `divisible`: whether parts of a block can be
    /// permuted on their own.
    pub(crate) fn new(key: Key, shuffle: Shuffle, starts: &Arc<Vec<u64>>, divisible: bool, steps: Steps) -> Self {
        let rows = starts.last().copied().unwrap_or(0);
        let wanted = PIECES_PER_STREAM * steps.streams;
        let pieces =
            if divisible && (starts.len() as u64) <= wanted { cut(starts, wanted).into() } else { starts.clone() };
        Self { key, shuffle, rows, pieces, steps, line: None, segments: HashMap::new() }
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    fn by_rows(&self) -> bool {
        self.shuffle.samples().is_none_or(|samples| self.rows <= samples)
    }

    /// Gives the child's row for each of `positions` of `pass`, with the place of its block and the step until which the block is needed.
    ///
    /// `place` is asked for one row of each piece: a piece lies within one block of the child.
    pub(crate) fn map(
        &mut self,
        positions: &Positions,
        pass: u64,
        frame: Option<Frame>,
        place: impl Fn(u64) -> Place,
        mut give: impl FnMut(Place, u64, u64),
    ) {
        if self.line.as_ref().is_none_or(|line| line.pass() != pass) {
            self.line = Some(self.lay_out(pass));
        }
        if self.by_rows() {
            let Some(Line::Rows { rows, .. }) = &self.line else { unreachable!("laid out by rows") };
            // What fits the buffer stays until the end of the pass; a global shuffle reads each row by itself.
            let end = frame.filter(|_| !self.shuffle.is_global()).map_or(0, |frame| frame.step_of(self.rows - 1));
            for (&position, &hold) in positions.index.iter().zip(&positions.hold) {
                let (stream, within, _) = self.place(position);
                let row = rows.at(self.span(stream).start + within);
                give(place(row), row, end.max(hold));
            }
            return;
        }
        let mut at = 0;
        while at < positions.len() {
            let first = positions.index[at];
            let (stream, within, run) = self.place(first);
            let segment = self.segment(pass, stream, within, frame, &place);
            // Consecutive positions of one stream are a slice of the segment's table.
            let from = (within - segment.start) as usize;
            let run = (run as usize).min(segment.rows.len() - from).min(positions.len() - at);
            let run = (0..run).take_while(|&i| positions.index[at + i] == first + i as u64).count();
            for (&(piece, row), &hold) in segment.rows[from..from + run].iter().zip(&positions.hold[at..at + run]) {
                let piece = &segment.pieces[piece as usize];
                give(piece.place, piece.first + u64::from(row), piece.hold.max(hold));
            }
            at += run;
        }
    }

    /// Returns ranges of the child's rows that the streams behind `positions` reach one segment later, each with the last step that needs them. The first step
    /// of an epoch asks for the first segment as well.
    pub(crate) fn ahead(
        &mut self,
        positions: std::ops::Range<u64>,
        pass: u64,
        frame: Option<Frame>,
    ) -> Vec<(std::ops::Range<u64>, u64)> {
        let mut ranges = Vec::new();
        if self.by_rows() || positions.is_empty() || positions.end > self.rows {
            return ranges;
        }
        if self.line.as_ref().is_none_or(|line| line.pass() != pass) {
            self.line = Some(self.lay_out(pass));
        }
        let Some(Line::Pieces { pieces, starts, .. }) = &self.line else { unreachable!("laid out by pieces") };
        let full = self.segment_rows();
        let mut position = positions.start;
        while position < positions.end {
            let (stream, within, run) = self.place(position);
            let span = self.span(stream);
            let length = span.end - span.start;
            let from = if within == 0 { 0 } else { (within + full).min(length) };
            let to = (within + run.min(positions.end - position) + full).min(length);
            let mut at = from;
            while at < to {
                let piece = starts.partition_point(|&s| s <= span.start + at) - 1;
                let stop = (starts[piece + 1].min(span.end) - span.start).min(to);
                let first = self.pieces[pieces[piece] as usize] + (span.start + at - starts[piece]);
                let last = self.segment_range(stop - 1).end.min(length) - 1;
                let hold = frame.map_or(0, |frame| frame.step_of(self.position(stream, last)));
                ranges.push((first..first + stop - at, hold));
                at = stop;
            }
            position += run;
        }
        ranges
    }

    /// Returns the stream that delivers a position, the position within that stream, and how many positions from there on belong to it.
    ///
    /// Full steps are dealt out by shares; the last, shorter step takes what each stream has left, stream by stream.
    fn place(&self, position: u64) -> (u64, u64, u64) {
        let (batch, share) = (self.steps.batch, self.steps.stream_share());
        let full = self.rows / batch;
        let (step, slot) = (position / batch, position % batch);
        if step < full {
            let within = slot % share;
            return (slot / share, step * share + within, share - within);
        }
        let mut rest = position - full * batch;
        for stream in 0..self.steps.streams {
            let span = self.span(stream);
            let left = span.end - span.start - full * share;
            if rest < left {
                return (stream, full * share + rest, left - rest);
            }
            rest -= left;
        }
        unreachable!("position {position} of {} rows", self.rows)
    }

    /// The position at which a stream delivers its row `within`: the inverse of [`place`](Self::place), for full steps.
    fn position(&self, stream: u64, within: u64) -> u64 {
        let share = self.steps.stream_share();
        let step = (within / share).min(self.rows / self.steps.batch);
        (step * self.steps.batch + stream * share + within % share).min(self.rows - 1)
    }

    /// The part of the line that a stream takes.
    fn span(&self, stream: u64) -> std::ops::Range<u64> {
        let cut = |i: u64| (u128::from(self.rows) * u128::from(i) / u128::from(self.steps.streams)) as u64;
        cut(stream)..cut(stream + 1)
    }

    fn lay_out(&self, pass: u64) -> Line {
        let key = self.key.with_number(pass);
        if self.by_rows() {
            return Line::Rows { pass, rows: Permutation::new(key.with("rows"), self.rows) };
        }
        let count = self.pieces.len() as u64 - 1;
        let permutation = Permutation::new(key.with("blocks"), count);
        let pieces: Vec<u32> = (0..count).map(|i| permutation.at(i) as u32).collect();
        let mut starts = Vec::with_capacity(pieces.len() + 1);
        starts.push(0);
        for &piece in &pieces {
            let rows = self.pieces[piece as usize + 1] - self.pieces[piece as usize];
            starts.push(starts[starts.len() - 1] + rows);
        }
        Line::Pieces { pass, pieces, starts }
    }

    /// Rows of a full segment: a stream's share of the buffer.
    fn segment_rows(&self) -> u64 {
        (self.shuffle.samples().unwrap_or(u64::MAX) / self.steps.streams).max(1)
    }

    /// The segment that holds a position of a stream. The first three are shorter, so that the first batch comes early.
    fn segment_range(&self, within: u64) -> std::ops::Range<u64> {
        let full = self.segment_rows();
        let mut start = 0;
        for divisor in [8, 4, 2] {
            let rows = (full / divisor).max(1);
            if within < start + rows {
                return start..start + rows;
            }
            start += rows;
        }
        let start = start + (within - start) / full * full;
        start..start + full
    }

    /// Returns the segment of a stream that holds a position; draws it up if it is not the current one.
    fn segment(
        &mut self,
        pass: u64,
        stream: u64,
        within: u64,
        frame: Option<Frame>,
        place: &impl Fn(u64) -> Place,
    ) -> &Segment {
        let known = self.segments.get_mut(&stream);
        match known.filter(|s| s.pass == pass && s.start <= within && within < s.end) {
            Some(segment) if segment.frame == frame => {}
            // A stream that paused: the rows are the same, in other steps.
            Some(segment) => {
                segment.frame = frame;
                for piece in &mut segment.pieces {
                    piece.hold = frame.map_or(0, |frame| frame.step_of(piece.until));
                }
            }
            None => {
                let segment = self.draw(pass, stream, within, frame, place);
                self.segments.insert(stream, segment);
            }
        }
        &self.segments[&stream]
    }

    fn draw(&self, pass: u64, stream: u64, within: u64, frame: Option<Frame>, place: impl Fn(u64) -> Place) -> Segment {
        let span = self.span(stream);
        let range = self.segment_range(within);
        let (start, end) = (range.start, range.end.min(span.end - span.start));
        let Some(Line::Pieces { pieces, starts, .. }) = &self.line else { unreachable!("laid out by pieces") };
        let mut plain = Vec::with_capacity((end - start) as usize);
        let mut taken = Vec::new();
        let mut piece = starts.partition_point(|&s| s <= span.start + start) - 1;
        let mut at = span.start + start;
        while at < span.start + end {
            let stop = starts[piece + 1].min(span.start + end);
            let first = self.pieces[pieces[piece] as usize] + (at - starts[piece]);
            plain.extend((0..(stop - at) as u32).map(|row| (taken.len() as u32, row)));
            // A piece that goes on behind this segment stays until the last segment that it reaches.
            let last = starts[piece + 1].min(span.end) - 1 - span.start;
            let until = if last < end { end } else { self.segment_range(last).end.min(span.end - span.start) } - 1;
            let until = self.position(stream, until);
            let hold = frame.map_or(0, |frame| frame.step_of(until));
            taken.push(Piece { first, place: place(first), until, hold });
            at = stop;
            piece += 1;
        }
        let key = self.key.with_number(pass).with("segment").with_number(stream).with_number(start);
        let permutation = Permutation::new(key, end - start);
        let rows = (0..end - start).map(|i| plain[permutation.at(i) as usize]).collect();
        Segment { pass, start, end, frame, pieces: taken, rows }
    }
}

/// Cuts blocks into about `wanted` pieces of about the same number of rows.
fn cut(starts: &[u64], wanted: u64) -> Vec<u64> {
    let total = starts.last().copied().unwrap_or(0);
    let rows = (total / wanted.max(1)).max(1);
    let mut pieces = vec![0];
    for block in starts.windows(2) {
        let parts = (block[1] - block[0]).div_ceil(rows).max(1);
        pieces.extend((1..=parts).map(|part| block[0] + (block[1] - block[0]) * part / parts));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::steps::Remainder;
    use super::*;

    fn order(seed: u64, shuffle: Shuffle, rows: u64, block: u64, batch: u64, streams: Option<u64>) -> ShuffledOrder {
        let mut starts: Vec<u64> = (0..rows).step_by(block as usize).collect();
        starts.push(rows);
        let steps = Steps::new(batch, streams, (0, 1), Remainder::Keep).unwrap();
        ShuffledOrder::new(Key::new(seed), shuffle, &starts.into(), true, steps)
    }

    fn delivered(order: &mut ShuffledOrder, pass: u64, chunk: usize) -> Vec<u64> {
        let all: Vec<u64> = (0..order.rows()).collect();
        let frame = Frame::of_epoch(order.steps.batch);
        let mut rows = Vec::new();
        for positions in all.chunks(chunk) {
            let hold = frame.step_of(positions[0]);
            let positions = Positions::new(positions.to_vec(), hold);
            order.map(&positions, pass, Some(frame), |_| (0, 0), |_, row, _| rows.push(row));
        }
        rows
    }

    #[test]
    fn the_order_for_seed_42_is_pinned() {
        let mut small = order(42, Shuffle::buffer(8), 40, 5, 8, None);
        assert_eq!(delivered(&mut small, 0, 8)[..16], PINNED_BUFFER);
        let mut whole = order(42, Shuffle::buffer(100), 40, 5, 8, None);
        assert_eq!(delivered(&mut whole, 0, 8)[..16], PINNED_WHOLE);
    }

    const PINNED_BUFFER: [u64; 16] = [34, 32, 14, 25, 19, 23, 18, 20, 33, 38, 12, 37, 13, 11, 2, 6];
    const PINNED_WHOLE: [u64; 16] = [14, 31, 39, 16, 15, 33, 9, 26, 21, 19, 30, 32, 13, 2, 18, 1];

    #[test]
    fn segments_ramp_up_and_then_stay() {
        let order = order(1, Shuffle::buffer(128), 10_000, 10, 8, None);
        let starts: Vec<_> = (0..60).map(|within| order.segment_range(within).start).collect();
        let distinct = starts.iter().copied().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(distinct.into_iter().collect::<Vec<_>>(), [0, 2, 6, 14, 30, 46]);
    }

    #[test]
    fn passes_differ_and_repeat_exactly() {
        let mut order = order(5, Shuffle::buffer(64), 1000, 20, 16, None);
        let (first, second) = (delivered(&mut order, 0, 16), delivered(&mut order, 1, 16));
        assert_ne!(first, second);
        assert_eq!(first, delivered(&mut order, 0, 16));
    }

    #[test]
    fn few_large_blocks_are_permuted_in_pieces() {
        let mut order = order(9, Shuffle::buffer(100), 100_000, 100_000, 8, None);
        let first: Vec<_> = delivered(&mut order, 0, 8).into_iter().take(800).collect();
        let spread = first.iter().max().unwrap() - first.iter().min().unwrap();
        assert!(spread > 50_000, "the first hundred batches come from {spread} rows only");
    }

    #[test]
    fn a_block_is_held_until_its_last_row_is_delivered() {
        let mut order = order(3, Shuffle::buffer(48), 2000, 17, 8, None);
        let frame = Frame::of_epoch(8);
        let mut held: HashMap<u64, u64> = HashMap::new();
        for step in 0..250 {
            let positions = Positions::new((step * 8..step * 8 + 8).collect(), step);
            let place = |row: u64| ((row / 17) as u32, row / 17 * 17);
            order.map(&positions, 0, Some(frame), place, |(block, start), row, hold| {
                assert!(u64::from(block) == row / 17 && start == row / 17 * 17, "a piece is of one block");
                let until = held.entry(row / 17).or_insert(hold);
                assert!(*until >= step || hold >= step);
                *until = (*until).max(hold);
            });
        }
    }

    #[test]
    fn many_blocks_are_shared_with_the_catalog_and_a_copy_of_the_order_costs_none() {
        let mut catalog = super::super::Catalog::new();
        (0..1000).for_each(|_| catalog.push_block(10, 100));
        let steps = Steps::new(8, None, (0, 1), Remainder::Keep).unwrap();
        let order = ShuffledOrder::new(Key::new(1), Shuffle::buffer(64), catalog.starts(), true, steps);
        assert!(Arc::ptr_eq(&order.pieces, catalog.starts()));
        let copy = order.clone();
        assert!(Arc::ptr_eq(&copy.pieces, catalog.starts()) && copy.line.is_none() && copy.segments.is_empty());
    }

    proptest! {
        #[test]
        fn every_row_comes_exactly_once(
            rows in 1u64..700, block in 1u64..90, batch in 1u64..40, buffer in 0u64..900, chunk in 1usize..50, seed: u64,
        ) {
            for shuffle in [Shuffle::buffer(buffer.max(2)), Shuffle::global()] {
                let mut order = order(seed, shuffle, rows, block, batch, None);
                let whole = delivered(&mut order, 3, chunk);
                let mut sorted = whole.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..rows).collect::<Vec<_>>());
                prop_assert_eq!(whole, delivered(&mut order, 3, 7));
            }
        }
    }
}
