//! Finds a budget with which an epoch can be delivered, as small as can be told beforehand, by walking the epoch's plan.

use std::collections::HashMap;

use super::pipeline::Leaf;
use super::run::Shared;
use crate::plan::order::{Arrivals, ENDLESS, Frame, PickedBlock, Positions};

/// The most rows of an epoch that are walked. The walk is made once, for an error message.
const ROWS: u64 = 10_000_000;

/// Bytes of the blocks that have to be there at the same time, in the step that needs most, and of the batches in flight. `None` for sources whose
/// blocks are not known beforehand.
pub(crate) fn smallest_budget(shared: &Shared, epoch: u64, batch_bytes: u64) -> Option<u64> {
    let pipeline = &shared.pipeline;
    let mut order = pipeline.order.clone();
    let rows = order.rows().filter(|_| !order.arrives())?;
    let steps = pipeline.steps;
    let arrivals: Vec<Arrivals> = Vec::new();
    let count = if rows == ENDLESS { ENDLESS } else { steps.per_epoch(rows) };
    let (mut live, mut most) = (HashMap::<(usize, u32), u64>::new(), 0);
    // A ticket has a step, or as many as a window of each stream is shared out to.
    let unit = pipeline.unit() / steps.stream_share();
    let (count, batch) = (count.div_ceil(unit), steps.batch * unit);
    for step in 0..count.min(ROWS / batch.min(ROWS)) {
        let slots = (step * unit..(step + 1) * unit).flat_map(|step| steps.slots(step, rows));
        let positions = Positions::new(slots.filter(|&slot| slot < rows).collect(), step);
        let frame = Frame::of_epoch(batch);
        let picked = order.pick(positions, epoch, Some(frame), &arrivals).ok()?;
        picked.for_each_rows(&mut |rows| {
            for &PickedBlock { block, hold, .. } in &rows.blocks {
                let until = live.entry((rows.leaf, block)).or_insert(hold);
                *until = hold.max(*until);
            }
        });
        let bytes = |&(leaf, block): &(usize, u32)| match &pipeline.leaves[leaf] {
            Leaf::Indexed(source) => source.catalog().block_bytes(block as usize),
            Leaf::Arriving(_) => 0,
        };
        most = most.max(live.keys().map(bytes).sum());
        // A ticket planned ahead holds a block that is there, though it could be read again in its time.
        live.retain(|_, until| *until + pipeline.tickets_ahead() > step);
    }
    Some(most + batch_bytes * pipeline.window)
}
