//! The rows at some positions: the result of resolving the tree of orders.

use crate::plan::numbers::NumberMap;

/// Rows of one source in the order wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PickedRows {
    /// The source.
    pub(crate) leaf: usize,
    /// How often each of these samples was drawn before.
    pub(crate) pass: u64,
    /// The blocks that hold the rows, each once.
    pub(crate) blocks: Vec<PickedBlock>,
    /// For each row, which of `blocks` holds it, and its number in that block.
    pub(crate) rows: Vec<(usize, usize)>,
}

/// A block from which rows were picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PickedBlock {
    pub(crate) block: u32,
    /// Sample id of its first row.
    pub(crate) first_id: u64,
    /// Step until which it must stay.
    pub(crate) hold: u64,
}

impl PickedRows {
    /// The sample id of a row.
    pub(crate) fn id(&self, row: usize) -> u64 {
        let (block, row) = self.rows[row];
        self.blocks[block].first_id + row as u64
    }
}

/// Slots of the table of recent blocks: more blocks than a batch usually takes rows from.
const RECENT: usize = 256;

/// Picks row by row.
pub(super) struct Picker {
    pub(super) picked: PickedRows,
    /// Where each block stands in `blocks`. `recent` has this by the last bits of the block's number, for the last block with these bits.
    known: NumberMap<u32>,
    recent: [u32; RECENT],
}

impl Picker {
    pub(super) fn new(leaf: usize, pass: u64, rows: usize) -> Self {
        let picked = PickedRows { leaf, pass, blocks: Vec::new(), rows: Vec::with_capacity(rows) };
        Self { picked, known: NumberMap::default(), recent: [0; RECENT] }
    }

    /// Adds row `row` of a block, which must stay until step `hold`.
    pub(super) fn push(&mut self, block: u32, first_id: u64, row: u64, hold: u64) {
        let recent = &mut self.recent[block as usize % RECENT];
        let blocks = &mut self.picked.blocks;
        if blocks.get(*recent as usize).is_none_or(|found| found.block != block) {
            *recent = *self.known.entry(block).or_insert_with(|| {
                blocks.push(PickedBlock { block, first_id, hold });
                blocks.len() as u32 - 1
            });
        }
        let at = *recent as usize;
        blocks[at].hold = blocks[at].hold.max(hold);
        self.picked.rows.push((at, row as usize));
    }
}

/// The rows at some positions: the resolved tree of orders.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Picked {
    /// Rows of a source.
    Rows(PickedRows),
    /// Rows of several parts; `from` gives part and index for each position.
    Gathered { parts: Vec<Picked>, from: Vec<(u32, u32)> },
    /// Columns side by side.
    Zipped(Vec<Picked>),
    /// A column of the positions next to the other columns.
    Enumerated { positions: Vec<u64>, column: usize, input: Box<Picked> },
    /// Rows that function `stage` is applied to.
    Applied { stage: usize, input: Box<Picked> },
}

impl Picked {
    /// How many positions were picked.
    pub(crate) fn positions(&self) -> u64 {
        match self {
            Picked::Rows(rows) => rows.rows.len() as u64,
            Picked::Gathered { from, .. } => from.len() as u64,
            Picked::Zipped(parts) => parts[0].positions(),
            Picked::Enumerated { input, .. } | Picked::Applied { input, .. } => input.positions(),
        }
    }

    /// Sample id and pass of the row at each position; for columns side by side, those of the first input.
    pub(crate) fn drawn(&self) -> Vec<(u64, u64)> {
        match self {
            Picked::Rows(rows) => (0..rows.rows.len()).map(|row| (rows.id(row), rows.pass)).collect(),
            Picked::Gathered { parts, from } => {
                let parts: Vec<_> = parts.iter().map(Picked::drawn).collect();
                from.iter().map(|&(part, index)| parts[part as usize][index as usize]).collect()
            }
            Picked::Zipped(parts) => parts[0].drawn(),
            Picked::Enumerated { input, .. } | Picked::Applied { input, .. } => input.drawn(),
        }
    }

    /// Calls `f` for all rows of sources below.
    pub(crate) fn for_each_rows<'a>(&'a self, f: &mut impl FnMut(&'a PickedRows)) {
        match self {
            Picked::Rows(rows) => f(rows),
            Picked::Gathered { parts, .. } | Picked::Zipped(parts) => {
                parts.iter().for_each(|part| part.for_each_rows(f))
            }
            Picked::Enumerated { input, .. } | Picked::Applied { input, .. } => input.for_each_rows(f),
        }
    }
}
