//! Places documents in rows, by their lengths alone.

use std::collections::BTreeSet;

use super::{Algorithm, Pack};

/// A part of a document, as it stands in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) document: u32,
    /// Its tokens, counted in the document. After the last one stands eos, if there is one.
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// Which tokens each row holds.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Row after row; within a row, in the order of the documents.
    pub(crate) spans: Vec<Span>,
    /// Where each row's spans end.
    pub(crate) ends: Vec<usize>,
}

impl Layout {
    /// The spans of each row.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[Span]> {
        self.ends.iter().scan(0, |start, &end| Some(&self.spans[std::mem::replace(start, end)..end]))
    }
}

/// Decides where documents of these lengths are placed.
pub(super) fn lay_out(lengths: &[u32], pack: &Pack) -> Layout {
    if pack.algorithm == Algorithm::ConcatThenSplit {
        return concatenate(lengths, pack.len as u32);
    }
    let mut pieces = Vec::with_capacity(lengths.len());
    for (document, &length) in lengths.iter().enumerate() {
        let starts = (0..length).step_by(pack.len);
        pieces.extend(starts.map(|start| Span {
            document: document as u32,
            start,
            len: (length - start).min(pack.len as u32),
        }));
    }
    let bins = place(&pieces, pack);
    // Rows in the order of their first pieces, and in each row the order of pieces: sorted by counting.
    let (mut rows, mut ends) = (vec![u32::MAX; pieces.len()], Vec::new());
    for &bin in &bins {
        let row = &mut rows[bin as usize];
        if *row == u32::MAX {
            *row = ends.len() as u32;
            ends.push(0);
        }
        ends[*row as usize] += 1;
    }
    let mut next = Vec::with_capacity(ends.len());
    let mut sum = 0;
    for end in &mut ends {
        next.push(sum);
        sum += *end;
        *end = sum;
    }
    let mut spans = vec![Span { document: 0, start: 0, len: 0 }; pieces.len()];
    for (piece, bin) in pieces.into_iter().zip(bins) {
        let at = &mut next[rows[bin as usize] as usize];
        spans[*at] = piece;
        *at += 1;
    }
    Layout { spans, ends }
}

/// All documents end to end, cut into rows.
fn concatenate(lengths: &[u32], row: u32) -> Layout {
    let mut layout = Layout::default();
    let mut room = row;
    for (document, &length) in lengths.iter().enumerate() {
        let mut start = 0;
        while start < length {
            let len = (length - start).min(room);
            layout.spans.push(Span { document: document as u32, start, len });
            start += len;
            room -= len;
            if room == 0 {
                layout.ends.push(layout.spans.len());
                room = row;
            }
        }
    }
    if room < row {
        layout.ends.push(layout.spans.len());
    }
    layout
}

/// Returns the bin of each piece. Bins are numbered in the order in which they are opened.
pub(super) fn place(pieces: &[Span], pack: &Pack) -> Vec<u32> {
    let mut order: Vec<u32> = (0..pieces.len() as u32).collect();
    if pack.longest_first {
        order.sort_by_key(|&piece| std::cmp::Reverse(pieces[piece as usize].len));
    }
    let mut bins = vec![0; pieces.len()];
    let mut open: Box<dyn Bins> = match pack.algorithm {
        Algorithm::FirstFit => Box::new(FirstFit::new(pieces.len(), pack.open_bins)),
        _ => Box::new(BestFit::new(pack.open_bins)),
    };
    for piece in order {
        bins[piece as usize] = open.place(pieces[piece as usize].len, pack.len as u32);
    }
    bins
}

/// Bins that are open for further pieces.
trait Bins {
    /// Returns the bin for a piece of this length: a new one if none has room.
    fn place(&mut self, len: u32, capacity: u32) -> u32;
}

/// Open bins by the room they have left. The bin with the least sufficient room, and the fullest bin, are found in O(log n).
struct BestFit {
    open: BTreeSet<(u32, u32)>,
    most: usize,
    opened: u32,
}

impl BestFit {
    fn new(most: Option<usize>) -> Self {
        Self { open: BTreeSet::new(), most: most.unwrap_or(usize::MAX), opened: 0 }
    }
}

impl Bins for BestFit {
    fn place(&mut self, len: u32, capacity: u32) -> u32 {
        let (room, bin) = match self.open.range((len, 0)..).next().copied() {
            Some(found) => {
                self.open.remove(&found);
                found
            }
            None => {
                self.opened += 1;
                (capacity, self.opened - 1)
            }
        };
        if room > len {
            if self.open.len() >= self.most {
                self.open.pop_first();
            }
            self.open.insert((room - len, bin));
        }
        bin
    }
}

/// A tree over all bins. Each node stores the most room of any bin below it, so the first bin with enough room is found in O(log n).
struct FirstFit {
    /// The root is node 1, the children of node i are 2i and 2i + 1, and bins begin in the middle. Closed bins have no room.
    room: Vec<u32>,
    /// The same bins by room, if the fullest will be asked for.
    by_room: Option<(BTreeSet<(u32, u32)>, usize)>,
    opened: u32,
}

impl FirstFit {
    fn new(bins: usize, most: Option<usize>) -> Self {
        let room = vec![0; 2 * bins.next_power_of_two()];
        Self { room, by_room: most.map(|most| (BTreeSet::new(), most)), opened: 0 }
    }

    fn first(&self, len: u32) -> Option<usize> {
        let leaves = self.room.len() / 2;
        let mut node = 1;
        if self.room[node] < len {
            return None;
        }
        while node < leaves {
            node = if self.room[2 * node] >= len { 2 * node } else { 2 * node + 1 };
        }
        Some(node - leaves)
    }

    fn set(&mut self, bin: usize, room: u32) {
        let mut node = self.room.len() / 2 + bin;
        self.room[node] = room;
        while node > 1 {
            node /= 2;
            self.room[node] = self.room[2 * node].max(self.room[2 * node + 1]);
        }
    }
}

impl Bins for FirstFit {
    fn place(&mut self, len: u32, capacity: u32) -> u32 {
        let (room, bin) = match self.first(len) {
            Some(bin) => (self.room[self.room.len() / 2 + bin], bin as u32),
            None => {
                self.opened += 1;
                (capacity, self.opened - 1)
            }
        };
        let left = room - len;
        let mut fullest = None;
        if let Some((by_room, most)) = &mut self.by_room {
            by_room.remove(&(room, bin));
            if left > 0 {
                fullest = if by_room.len() >= *most { by_room.pop_first() } else { None };
                by_room.insert((left, bin));
            }
        }
        if let Some((_, closed)) = fullest {
            self.set(closed as usize, 0);
        }
        self.set(bin as usize, left);
        bin
    }
}
