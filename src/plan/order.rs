//! The tree of orders: which row of which source stands at each position.

mod arrivals;
mod lanes;
mod picked;

use std::sync::Arc;

pub(crate) use arrivals::Arrivals;
pub(crate) use lanes::Lanes;
use picked::Picker;
pub(crate) use picked::{Picked, PickedBlock, PickedRows};

use super::catalog::Catalog;
use super::mix::Mixing;
use super::permutation::Permutation;
use super::shuffle::ShuffledOrder;
use crate::random::Key;

/// Set in the pass number of samples that fill up the last batch, so that these are augmented anew.
pub(crate) const PADDING: u64 = 1 << 63;

/// Rows of an order that never ends.
pub(crate) const ENDLESS: u64 = u64::MAX;

/// Positions of a node's order, each with the step until which its block must stay in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions {
    pub(crate) index: Vec<u64>,
    pub(crate) hold: Vec<u64>,
}

impl Positions {
    pub(crate) fn new(index: Vec<u64>, hold: u64) -> Self {
        let hold = vec![hold; index.len()];
        Self { index, hold }
    }

    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { index: Vec::with_capacity(capacity), hold: Vec::with_capacity(capacity) }
    }

    pub(crate) fn push(&mut self, index: u64, hold: u64) {
        self.index.push(index);
        self.hold.push(hold);
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    fn map(mut self, f: impl Fn(u64) -> u64) -> Self {
        self.index.iter_mut().for_each(|index| *index = f(*index));
        self
    }
}

/// How a node's positions lie in the steps of the epoch, if they do so in ascending order. Position p becomes, at the latest, the epoch's position
/// `p · many / few + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    offset: i64,
    /// `many` positions of the epoch correspond to `few` of the node: below a mix, other positions come between.
    many: u64,
    few: u64,
    /// The global batch.
    batch: u64,
}

impl Frame {
    /// The frame of the node whose positions are the epoch's.
    pub(crate) fn of_epoch(batch: u64) -> Self {
        Self { offset: 0, many: 1, few: 1, batch }
    }

    /// The step in which a position is delivered, or a later step.
    pub(crate) fn step_of(self, position: u64) -> u64 {
        let position = if self.many == self.few {
            position
        } else {
            (u128::from(position) * u128::from(self.many) / u128::from(self.few)).min(u64::MAX.into()) as u64
        };
        position.saturating_add_signed(self.offset) / self.batch
    }

    /// The frame of an input whose position 0 is this node's position `by`.
    pub(crate) fn moved(self, by: i128) -> Self {
        let (many, few) = (i128::from(self.many), i128::from(self.few));
        let offset = i128::from(self.offset) + (by * many + few - 1).div_euclid(few);
        Self { offset: offset.clamp(i64::MIN.into(), i64::MAX.into()) as i64, ..self }
    }

    /// The frame of an input whose position p is, at the latest, this node's position `p · many / few + last`.
    pub(crate) fn stretched(self, many: u64, few: u64, last: u64) -> Self {
        let mut stretch = (u128::from(self.many) * u128::from(many), u128::from(self.few) * u128::from(few));
        // Mixes in mixes: a digit less in the 10th place is a step more in a thousand million.
        while stretch.0.max(stretch.1) > u32::MAX.into() {
            stretch = (stretch.0.div_ceil(2), (stretch.1 / 2).max(1));
        }
        Self { many: stretch.0 as u64, few: stretch.1 as u64, ..self.moved(last.into()) }
    }
}

/// A block that will be needed, and the last step that needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) leaf: usize,
    pub(crate) block: u32,
    pub(crate) hold: u64,
}

/// Planning has to wait: a source without an index has not shown this many rows yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeedsRows {
    pub(crate) leaf: usize,
    pub(crate) rows: u64,
}

/// A node of the order's tree.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// A source with an index, in its own order. `first_id` is the sample id of its row 0.
    Rows {
        leaf: usize,
        catalog: Arc<Catalog>,
        first_id: u64,
    },
    /// A source without an index, in the order of arrival, shuffled in segments of `buffer` rows.
    Arrival {
        leaf: usize,
        key: Key,
        buffer: u64,
        segment: Option<(u64, u64, Permutation)>,
    },
    Shuffle {
        order: ShuffledOrder,
        input: Box<Order>,
    },
    Interleave {
        lanes: Arc<Lanes>,
        input: Box<Order>,
    },
    Take {
        rows: u64,
        input: Box<Order>,
    },
    Skip {
        rows: u64,
        input: Box<Order>,
    },
    /// Pass after pass of the input.
    Repeat {
        turns: Turns,
        input: Box<Order>,
    },
    Concat(Vec<Order>),
    Mix {
        mixing: Mixing,
        inputs: Vec<Order>,
    },
    Zip(Vec<Order>),
    Enumerate {
        column: usize,
        input: Box<Order>,
    },
    Apply {
        stage: usize,
        input: Box<Order>,
    },
}

/// How often an input is repeated in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turns {
    Times(u64),
    Forever,
    /// Forever; the first turn of an epoch is the epoch as it would be without repetition.
    Stated,
}

impl Turns {
    /// The number of the pass over the input that a turn makes.
    fn pass(self, pass: u64, turn: u64) -> u64 {
        let number = match self {
            Turns::Times(times) => (pass & !PADDING).wrapping_mul(times).wrapping_add(turn),
            Turns::Forever => (pass & !PADDING).wrapping_mul(1 << 32).wrapping_add(turn),
            Turns::Stated => (pass & !PADDING).wrapping_add(turn.wrapping_mul(1 << 32)),
        };
        number & !PADDING | pass & PADDING
    }
}

impl Order {
    /// Rows of an epoch; `None` for a source without an index.
    pub(crate) fn rows(&self) -> Option<u64> {
        Some(match self {
            Order::Rows { catalog, .. } => catalog.rows(),
            Order::Arrival { .. } => return None,
            Order::Shuffle { order, .. } => order.rows(),
            Order::Interleave { lanes, .. } => lanes.rows(),
            Order::Take { rows, input } => input.rows().map_or(*rows, |n| n.min(*rows)),
            Order::Skip { rows, input } => match input.rows()? {
                ENDLESS => ENDLESS,
                n => n.saturating_sub(*rows),
            },
            Order::Repeat { turns: Turns::Times(times), input } => input.rows()?.saturating_mul(*times),
            Order::Repeat { .. } => ENDLESS,
            Order::Concat(inputs) => {
                inputs.iter().try_fold(0u64, |sum, input| input.rows().map(|n| sum.saturating_add(n)))?
            }
            Order::Mix { mixing, .. } => mixing.rows(),
            Order::Zip(inputs) => inputs.iter().map(Order::rows).min().flatten()?,
            Order::Enumerate { input, .. } | Order::Apply { input, .. } => return input.rows(),
        })
    }

    /// The number of rows after which an endless order has delivered everything that it repeats, if that is known.
    pub(crate) fn endless_turn(&self) -> Option<u64> {
        match self {
            Order::Repeat { turns: Turns::Forever | Turns::Stated, input } => {
                input.rows().filter(|&rows| rows != ENDLESS)
            }
            Order::Repeat { input, .. }
            | Order::Interleave { input, .. }
            | Order::Shuffle { input, .. }
            | Order::Take { input, .. }
            | Order::Skip { input, .. }
            | Order::Enumerate { input, .. }
            | Order::Apply { input, .. } => input.endless_turn(),
            Order::Concat(inputs) => {
                let before = inputs.iter().filter_map(Order::rows).filter(|&rows| rows != ENDLESS);
                Some(before.fold(inputs.iter().find_map(Order::endless_turn)?, u64::saturating_add))
            }
            // All pairs of two turns.
            Order::Zip(inputs) => inputs.iter().filter_map(Order::endless_turn).reduce(u64::saturating_mul),
            Order::Rows { .. } | Order::Arrival { .. } | Order::Mix { .. } => None,
        }
    }

    /// Row numbers at which the blocks start that a shuffle above may permute, the total, and whether the blocks may be cut.
    pub(crate) fn blocks(&self) -> (Arc<Vec<u64>>, bool) {
        match self {
            Order::Rows { catalog, .. } => (catalog.starts().clone(), !catalog.is_indivisible()),
            Order::Concat(inputs) => {
                let (mut starts, mut divisible) = (vec![0u64], true);
                for input in inputs {
                    let (inner, cuttable) = input.blocks();
                    let before = starts[starts.len() - 1];
                    starts.extend(inner[1..].iter().map(|start| before.saturating_add(*start)));
                    divisible &= cuttable;
                }
                (starts.into(), divisible)
            }
            Order::Take { input, .. } if input.rows().is_some() => self.front_of(input),
            Order::Zip(inputs) => self.front_of(&inputs[0]),
            Order::Enumerate { input, .. } | Order::Apply { input, .. } => input.blocks(),
            _ => (vec![0, self.rows().unwrap_or(0)].into(), true),
        }
    }

    /// The blocks of an input, if this node takes its first rows.
    fn front_of(&self, input: &Order) -> (Arc<Vec<u64>>, bool) {
        let rows = self.rows().unwrap_or(0);
        let (starts, divisible) = input.blocks();
        if starts.last() == Some(&rows) {
            return (starts, divisible);
        }
        let before = &starts[..starts.partition_point(|&start| start < rows)];
        ([before, &[rows]].concat().into(), divisible)
    }

    /// Row ranges of the shards, if the order is that of one source.
    pub(crate) fn shards(&self) -> Option<Vec<std::ops::Range<u64>>> {
        match self {
            Order::Rows { catalog, .. } => Some((0..catalog.shards()).map(|shard| catalog.shard_rows(shard)).collect()),
            Order::Enumerate { input, .. } | Order::Apply { input, .. } => input.shards(),
            _ => None,
        }
    }

    /// The shuffle buffer of a source without an index, if nothing but functions stands above it.
    pub(crate) fn arrival_buffer(&mut self) -> Option<&mut u64> {
        match self {
            Order::Arrival { buffer, .. } => Some(buffer),
            Order::Apply { input, .. } => input.arrival_buffer(),
            _ => None,
        }
    }

    /// The first row that must arrive before positions from `position` on can be planned.
    pub(crate) fn first_arrival_for(&self, position: u64) -> Option<u64> {
        match self {
            Order::Arrival { buffer, .. } => Some(position / buffer * buffer),
            Order::Take { input, .. } | Order::Apply { input, .. } => input.first_arrival_for(position),
            _ => None,
        }
    }

    /// Whether a source without an index is below.
    pub(crate) fn arrives(&self) -> bool {
        match self {
            Order::Arrival { .. } => true,
            Order::Take { input, .. } | Order::Apply { input, .. } => input.arrives(),
            _ => false,
        }
    }

    /// Returns blocks that will be needed about one shuffle buffer after these positions of an epoch, and the step until which they are needed.
    ///
    /// While one segment of a shuffled order drains, the blocks of the next are read at the same pace; otherwise all of them would be requested at once when
    /// that segment begins. Orders without a buffer give nothing: their next positions are near enough.
    pub(crate) fn ahead(
        &mut self,
        positions: std::ops::Range<u64>,
        pass: u64,
        frame: Option<Frame>,
        out: &mut Vec<Ahead>,
    ) {
        match self {
            Order::Shuffle { order, input } => {
                for (rows, hold) in order.ahead(positions, pass, frame) {
                    input.blocks_of(rows, hold, out);
                }
            }
            Order::Enumerate { input, .. } | Order::Apply { input, .. } => input.ahead(positions, pass, frame, out),
            Order::Take { rows, input } => {
                let end = positions.end.min(*rows);
                input.ahead(positions.start.min(end)..end, pass, frame, out);
            }
            Order::Zip(inputs) => inputs.iter_mut().for_each(|input| input.ahead(positions.clone(), pass, frame, out)),
            Order::Skip { rows, input } => {
                let frame = frame.map(|f| f.moved(-i128::from(*rows)));
                input.ahead(positions.start + *rows..positions.end + *rows, pass, frame, out);
            }
            Order::Repeat { turns, input } => {
                let rows = input.rows().unwrap_or(ENDLESS).max(1);
                let mut at = positions.start;
                while at < positions.end {
                    let turn = at / rows;
                    let (start, stop) = (turn * rows, positions.end.min((turn + 1).saturating_mul(rows)));
                    let frame = frame.map(|f| f.moved(start.into()));
                    input.ahead(at - start..stop - start, turns.pass(pass, turn), frame, out);
                    at = stop;
                }
            }
            Order::Concat(inputs) => {
                let mut start = 0u64;
                for input in inputs {
                    let end = start.saturating_add(input.rows().unwrap_or(ENDLESS));
                    let part = positions.start.max(start)..positions.end.min(end);
                    if part.start < part.end {
                        let frame = frame.map(|f| f.moved(start.into()));
                        input.ahead(part.start - start..part.end - start, pass, frame, out);
                    }
                    start = end;
                }
            }
            Order::Mix { mixing, inputs } if positions.start < positions.end && positions.end <= mixing.rows() => {
                for (part, turn, range) in mixing.ranges(pass & !PADDING, positions) {
                    let pass = mixing.pass_of(pass, part, turn);
                    let frame = frame.map(|f| mixing.frame(f, part, turn, range.start));
                    inputs[part].ahead(range, pass, frame, out);
                }
            }
            _ => {}
        }
    }

    /// Adds the blocks of sources behind a range of this node's own positions.
    fn blocks_of(&self, rows: std::ops::Range<u64>, hold: u64, out: &mut Vec<Ahead>) {
        match self {
            Order::Rows { leaf, catalog, .. } if !rows.is_empty() => {
                let (first, last) = (catalog.locate(rows.start).0, catalog.locate(rows.end - 1).0);
                out.extend((first..=last).map(|block| Ahead { leaf: *leaf, block: block as u32, hold }));
            }
            Order::Enumerate { input, .. } | Order::Apply { input, .. } => input.blocks_of(rows, hold, out),
            Order::Zip(inputs) => inputs.iter().for_each(|input| input.blocks_of(rows.clone(), hold, out)),
            Order::Concat(inputs) => {
                let mut start = 0;
                for input in inputs {
                    let end = start + input.rows().unwrap_or(0);
                    let part = rows.start.max(start)..rows.end.min(end);
                    if part.start < part.end {
                        input.blocks_of(part.start - start..part.end - start, hold, out);
                    }
                    start = end;
                }
            }
            _ => {}
        }
    }

    /// Resolves positions of `pass` to rows of sources.
    pub(crate) fn pick(
        &mut self,
        positions: Positions,
        pass: u64,
        frame: Option<Frame>,
        arrivals: &[Arrivals],
    ) -> Result<Picked, NeedsRows> {
        match self {
            Order::Rows { leaf, catalog, first_id } => {
                let mut picked = pick_rows(*leaf, catalog, *first_id, positions, pass);
                if let Some(frame) = frame.filter(|frame| frame.many > frame.few) {
                    // Below a mix a block's next row may be many steps away.
                    for PickedBlock { block, hold, .. } in &mut picked.blocks {
                        *hold = frame.step_of(catalog.starts()[*block as usize + 1] - 1).max(*hold);
                    }
                }
                Ok(Picked::Rows(picked))
            }
            Order::Arrival { leaf, key, buffer, segment } => {
                pick_arrived(*leaf, *key, *buffer, segment, positions, pass, &arrivals[*leaf]).map(Picked::Rows)
            }
            Order::Shuffle { order, input } => match &mut **input {
                // The block is that of the piece: there is nothing to look for.
                Order::Rows { leaf, catalog, first_id } => {
                    let (mut picker, starts) = (Picker::new(*leaf, pass, positions.len()), catalog.starts());
                    let place = |row| {
                        let block = catalog.locate(row).0;
                        (block as u32, starts[block])
                    };
                    order.map(&positions, pass & !PADDING, frame, place, |(block, start), row, hold| {
                        picker.push(block, *first_id + start, row - start, hold);
                    });
                    Ok(Picked::Rows(picker.picked))
                }
                input => {
                    let mut mapped = Positions::with_capacity(positions.len());
                    order.map(&positions, pass & !PADDING, frame, |_| (0, 0), |_, row, hold| mapped.push(row, hold));
                    input.pick(mapped, pass, None, arrivals)
                }
            },
            Order::Interleave { lanes, input } => {
                let mapped = lanes.map(positions, frame);
                input.pick(mapped, pass, None, arrivals)
            }
            Order::Take { input, .. } => input.pick(positions, pass, frame, arrivals),
            Order::Skip { rows, input } => {
                let skipped = *rows;
                let frame = frame.map(|f| f.moved(-i128::from(skipped)));
                input.pick(positions.map(|p| p + skipped), pass, frame, arrivals)
            }
            Order::Repeat { turns, input } => {
                let rows = input.rows().unwrap_or(ENDLESS).max(1);
                let groups = split(positions, |p| (p / rows, p % rows));
                gathered(groups, |turn, positions| {
                    let frame = frame.map(|f| f.moved((turn * rows).into()));
                    input.pick(positions, turns.pass(pass, turn), frame, arrivals)
                })
            }
            Order::Concat(inputs) => {
                let starts: Vec<u64> = inputs
                    .iter()
                    .scan(0u64, |sum, input| {
                        Some(std::mem::replace(sum, sum.saturating_add(input.rows().unwrap_or(ENDLESS))))
                    })
                    .collect();
                let groups = split(positions, |p| {
                    let part = starts.partition_point(|&start| start <= p) - 1;
                    (part as u64, p - starts[part])
                });
                gathered(groups, |part, positions| {
                    let frame = frame.map(|f| f.moved(starts[part as usize].into()));
                    inputs[part as usize].pick(positions, pass, frame, arrivals)
                })
            }
            Order::Mix { mixing, inputs } => {
                let parts = inputs.len() as u64;
                let groups = split(positions, |p| {
                    let place = mixing.place(pass & !PADDING, p);
                    (place.turn * parts + place.part as u64, place.position)
                });
                gathered(groups, |group, positions| {
                    let (part, turn) = ((group % parts) as usize, group / parts);
                    let pass = mixing.pass_of(pass, part, turn);
                    let frame = frame.map(|f| mixing.frame(f, part, turn, positions.index[0]));
                    inputs[part].pick(positions, pass, frame, arrivals)
                })
            }
            Order::Zip(inputs) => {
                let parts = inputs.iter_mut().map(|input| input.pick(positions.clone(), pass, frame, arrivals));
                Ok(Picked::Zipped(parts.collect::<Result<_, _>>()?))
            }
            Order::Enumerate { column, input } => {
                let index = positions.index.clone();
                let input = Box::new(input.pick(positions, pass, frame, arrivals)?);
                Ok(Picked::Enumerated { positions: index, column: *column, input })
            }
            Order::Apply { stage, input } => {
                Ok(Picked::Applied { stage: *stage, input: Box::new(input.pick(positions, pass, frame, arrivals)?) })
            }
        }
    }
}

fn pick_rows(leaf: usize, catalog: &Catalog, first_id: u64, positions: Positions, pass: u64) -> PickedRows {
    let starts = catalog.starts();
    let mut picker = Picker::new(leaf, pass, positions.len());
    let mut block = 0;
    for (index, hold) in positions.index.into_iter().zip(positions.hold) {
        // Without order the next row is mostly in another block; in order mostly in the same.
        if index < starts[block] || index >= starts[block + 1] {
            block = catalog.locate(index).0;
        }
        picker.push(block as u32, first_id + starts[block], index - starts[block], hold);
    }
    picker.picked
}

fn pick_arrived(
    leaf: usize,
    key: Key,
    buffer: u64,
    segment: &mut Option<(u64, u64, Permutation)>,
    positions: Positions,
    pass: u64,
    arrived: &Arrivals,
) -> Result<PickedRows, NeedsRows> {
    let mut picker = Picker::new(leaf, pass, positions.len());
    for (index, hold) in positions.index.into_iter().zip(positions.hold) {
        let start = index / buffer * buffer;
        let end = match arrived.total() {
            Some(total) => total.min(start + buffer),
            None if arrived.rows() < start + buffer => return Err(NeedsRows { leaf, rows: start + buffer }),
            None => start + buffer,
        };
        if segment.as_ref().is_none_or(|(of_pass, at, _)| (*of_pass, *at) != (pass, start)) {
            let key = key.with_number(pass & !PADDING).with("segment").with_number(start);
            *segment = Some((pass, start, Permutation::new(key, end - start)));
        }
        let (_, _, permutation) = segment.as_ref().expect("drawn above");
        let row = start + permutation.at(index - start);
        let block = arrived.starts.partition_point(|&start| start <= row) - 1;
        picker.push(block as u32, arrived.ids[block], row - arrived.starts[block], hold);
    }
    Ok(picker.picked)
}

/// Positions grouped by their target, and for each original position its group and its index there.
struct Groups {
    groups: Vec<(u64, Positions)>,
    from: Vec<(u32, u32)>,
}

fn split(positions: Positions, mut place: impl FnMut(u64) -> (u64, u64)) -> Groups {
    let mut groups: Vec<(u64, Positions)> = Vec::new();
    let mut from = Vec::with_capacity(positions.len());
    for (index, hold) in positions.index.into_iter().zip(positions.hold) {
        let (group, within) = place(index);
        // Few groups, and nearly always the one before.
        let at = groups.iter().rposition(|(g, _)| *g == group).unwrap_or_else(|| {
            groups.push((group, Positions::default()));
            groups.len() - 1
        });
        from.push((at as u32, groups[at].1.len() as u32));
        groups[at].1.push(within, hold);
    }
    Groups { groups, from }
}

fn gathered(
    Groups { mut groups, from }: Groups,
    mut pick: impl FnMut(u64, Positions) -> Result<Picked, NeedsRows>,
) -> Result<Picked, NeedsRows> {
    if groups.len() == 1 {
        let (group, positions) = groups.remove(0);
        return pick(group, positions);
    }
    let parts = groups.into_iter().map(|(group, positions)| pick(group, positions)).collect::<Result<_, _>>()?;
    Ok(Picked::Gathered { parts, from })
}

#[cfg(test)]
mod tests {
    use super::super::Shuffle;
    use super::super::state::ReadPoint;
    use super::super::steps::{Remainder, Steps};
    use super::*;

    fn source(leaf: usize, first_id: u64, blocks: &[u64]) -> Order {
        let mut catalog = Catalog::new();
        for (shard, &rows) in blocks.iter().enumerate() {
            catalog.push_shard(format!("shard-{shard}"));
            catalog.push_block(rows, rows * 10);
        }
        Order::Rows { leaf, catalog: Arc::new(catalog), first_id }
    }

    fn ids(order: &mut Order, pass: u64) -> Vec<(u64, u64)> {
        let rows = order.rows().unwrap();
        let frame = Some(Frame::of_epoch(4));
        let mut out = Vec::new();
        for start in (0..rows).step_by(4) {
            let positions = Positions::new((start..rows.min(start + 4)).collect(), start / 4);
            out.extend(flatten(&order.pick(positions, pass, frame, &[]).unwrap()));
        }
        out
    }

    fn flatten(picked: &Picked) -> Vec<(u64, u64)> {
        match picked {
            Picked::Rows(rows) => (0..rows.rows.len()).map(|row| (rows.id(row), rows.pass)).collect(),
            Picked::Gathered { parts, from } => {
                let parts: Vec<_> = parts.iter().map(flatten).collect();
                from.iter().map(|&(part, index)| parts[part as usize][index as usize]).collect()
            }
            Picked::Zipped(parts) => flatten(&parts[0]),
            Picked::Enumerated { input, .. } | Picked::Applied { input, .. } => flatten(input),
        }
    }

    #[test]
    fn take_skip_concat_and_repeat_are_arithmetic() {
        let mut order = Order::Repeat {
            turns: Turns::Times(2),
            input: Box::new(Order::Take {
                rows: 5,
                input: Box::new(Order::Skip {
                    rows: 2,
                    input: Box::new(Order::Concat(vec![source(0, 0, &[3]), source(1, 100, &[2, 2])])),
                }),
            }),
        };
        assert_eq!(order.rows(), Some(10));
        let got = ids(&mut order, 3);
        let wanted = [2, 100, 101, 102, 103];
        let first: Vec<_> = wanted.iter().map(|&id| (id, 6)).collect();
        let second: Vec<_> = wanted.iter().map(|&id| (id, 7)).collect();
        assert_eq!(got, [first, second].concat());
    }

    #[test]
    fn zip_ends_with_its_shortest_input() {
        let order = Order::Zip(vec![source(0, 0, &[3, 3]), source(1, 6, &[4])]);
        assert_eq!(order.rows(), Some(4));
        assert_eq!(order.blocks(), (vec![0, 3, 4].into(), true));
    }

    #[test]
    fn shards_of_unequal_length_take_turns_until_each_is_exhausted() {
        let lanes = Lanes::new(&[0..3, 3..4, 4..9], 3, 1);
        let rows: Vec<_> = (0..9).map(|p| lanes.row_at(p)).collect();
        assert_eq!(rows, [0, 3, 4, 1, 5, 2, 6, 7, 8]);
        let lanes = Lanes::new(&[0..3, 3..4, 4..9], 2, 2);
        let rows: Vec<_> = (0..9).map(|p| lanes.row_at(p)).collect();
        assert_eq!(rows, [0, 1, 3, 2, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn interleaving_delivers_every_row_once() {
        for cycle in 1..6 {
            for run in 1..5 {
                let lanes = Lanes::new(&[0..7, 7..7, 7..20, 20..21, 21..40], cycle, run);
                let mut rows: Vec<_> = (0..40).map(|p| lanes.row_at(p)).collect();
                rows.sort_unstable();
                assert_eq!(rows, (0..40).collect::<Vec<_>>(), "cycle {cycle}, run {run}");
            }
        }
    }

    #[test]
    fn arrivals_are_shuffled_by_segments_once_they_are_there() {
        let mut order = Order::Arrival { leaf: 0, key: Key::new(1), buffer: 8, segment: None };
        let mut arrivals = vec![Arrivals::from_row(0)];
        arrivals[0].push(5, 1000, ReadPoint::default());
        let ask = |order: &mut Order, range: std::ops::Range<u64>, arrivals: &[Arrivals]| {
            order.pick(Positions::new(range.collect(), 0), 0, None, arrivals).map(|picked| flatten(&picked))
        };
        assert_eq!(ask(&mut order, 0..4, &arrivals), Err(NeedsRows { leaf: 0, rows: 8 }));
        arrivals[0].push(5, 2000, ReadPoint { row: 2, ..ReadPoint::default() });
        assert_eq!([0, 4, 5, 99].map(|row| arrivals[0].place_of(row).unwrap().row), [0, 0, 3, 3]);
        let first = ask(&mut order, 0..4, &arrivals).unwrap();
        arrivals[0].end();
        let mut all: Vec<_> = (0..10).step_by(2).flat_map(|p| ask(&mut order, p..p + 2, &arrivals).unwrap()).collect();
        assert_eq!(all[..4], first);
        all.sort_unstable();
        assert_eq!(
            all.iter().map(|a| a.0).collect::<Vec<_>>(),
            [(1000..1005), (2000..2005)].into_iter().flatten().collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_rank_delivers_its_slice_of_the_global_batch() {
        let order = |world, rank| {
            let input = source(0, 0, &[10; 40]);
            let (starts, divisible) = input.blocks();
            let steps = Steps::new(24, Some(12), (rank, world), Remainder::Drop).unwrap();
            let order = ShuffledOrder::new(Key::new(4), Shuffle::buffer(48), &starts, divisible, steps);
            (Order::Shuffle { order, input: Box::new(input) }, steps)
        };
        let delivered = |world| {
            let mut global = vec![Vec::new(); 16];
            for rank in 0..world {
                let (mut order, steps) = order(world, rank);
                for (step, batch) in (0..).zip(&mut global) {
                    let positions = Positions::new(steps.slots(step, 400).collect(), step);
                    let picked = order.pick(positions, 0, Some(Frame::of_epoch(24)), &[]).unwrap();
                    batch.extend(flatten(&picked));
                }
            }
            global
        };
        let alone = delivered(1);
        for world in [2, 3, 4, 6, 12] {
            assert_eq!(delivered(world), alone, "world of {world}");
        }
    }
}
