//! What is known of a source without an index while it is read.

use crate::plan::state::ReadPoint;

/// What a source without an index has shown so far in this pass.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    /// Rows before each block that arrived, and the total.
    pub(super) starts: Vec<u64>,
    /// Sample id of each block's first row.
    pub(super) ids: Vec<u64>,
    /// Where each block can be read from again.
    places: Vec<ReadPoint>,
    ended: bool,
}

impl Arrivals {
    /// Starts with nothing of the rows from `first_row` on.
    pub(crate) fn from_row(first_row: u64) -> Self {
        Self { starts: vec![first_row], ids: Vec::new(), places: Vec::new(), ended: false }
    }

    /// Records that a block of `rows` rows arrived. `place` is where to read it from again, except for the number of rows before.
    pub(crate) fn push(&mut self, rows: u64, first_id: u64, place: ReadPoint) {
        let before = self.rows() - place.row;
        self.starts.push(self.rows() + rows);
        self.ids.push(first_id);
        self.places.push(ReadPoint { row: before, ..place });
    }

    /// Where to read from, to get the rows from `row` on.
    pub(crate) fn place_of(&self, row: u64) -> Option<ReadPoint> {
        let block = self.starts.partition_point(|&start| start <= row).saturating_sub(1);
        self.places.get(block).or(self.places.last()).copied()
    }

    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    pub(crate) fn rows(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// All rows, once they are known.
    pub(crate) fn total(&self) -> Option<u64> {
        self.ended.then(|| self.rows())
    }
}
