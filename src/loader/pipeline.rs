//! The result of lowering a graph, and what follows from it for steps and states.

use std::sync::Arc;

use crate::batch::collate::Layout;
use crate::dataset::graph::Function;
use crate::error::{Error, Result};
use crate::loader::rebatch::Rebatch;
use crate::plan::order::{ENDLESS, Order, PADDING};
use crate::plan::state::{Identity, Progress};
use crate::plan::steps::Steps;
use crate::plan::{Cursor, State};
use crate::random::Key;
use crate::schema::Column;
pub(crate) use crate::source::open::Opened as Leaf;
use crate::telemetry::StageCounter;

/// A function of the graph, with the key of its randomness.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) function: Function,
    pub(crate) key: Key,
    pub(crate) counter: Arc<StageCounter>,
}

/// The result of lowering a graph.
#[derive(Clone)]
pub(crate) struct Pipeline {
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) order: Order,
    pub(crate) stages: Vec<Stage>,
    pub(crate) enumerated: Vec<Column>,
    pub(crate) layouts: Vec<Layout>,
    /// Functions of whole batches, by number of stage.
    pub(crate) on_batches: Vec<usize>,
    pub(crate) steps: Steps,
    /// Whether a row can become none or several on its way.
    pub(crate) expands: bool,
    /// The stage that does so, with an article.
    pub(crate) changer: &'static str,
    /// Positions of a stream in a window, if a function needs all rows of a window: a multiple of the stream's share of a step.
    pub(crate) window_rows: Option<u64>,
    /// The functions that are applied to whole windows, by number of stage: the one that needs windows, and all after it.
    pub(crate) on_windows: Vec<usize>,
    /// Whether streams give shares of any number of rows, as the rows are marked, instead of a fixed number of rows.
    pub(crate) shares: bool,
    /// The most batches that an epoch has, where batches are counted after an expanding stage.
    pub(crate) limit: Option<u64>,
    /// For orders that do not end: rows of a stream in succession that leave none, after which it is assumed that none ever will be left.
    pub(crate) barren_turn: Option<u64>,
    /// The most batches between the start of their tickets and the loop.
    pub(crate) window: u64,
    /// What every state of the loader has in common.
    pub(crate) identity: Arc<Identity>,
    /// Whether states of graphs with other transforms are accepted.
    pub(crate) transforms_may_differ: bool,
    pub(crate) notes: Vec<String>,
}

impl Pipeline {
    /// The sample id of a block's first row.
    pub(crate) fn first_id(&self, leaf: usize, block: u32) -> u64 {
        let before = self.leaves[..leaf].iter().map(Leaf::num_ids).sum::<u64>();
        match &self.leaves[leaf] {
            Leaf::Indexed(source) => before + source.catalog().block_start(block as usize),
            Leaf::Arriving(_) => unreachable!("blocks that arrive bring their ids"),
        }
    }

    /// The position from which each of the rank's streams is planned, where rows are not positions.
    pub(crate) fn planned_at(&self, cursors: &[Cursor]) -> Vec<u64> {
        let mut planned = vec![0; if self.expands { self.steps.own_streams() as usize } else { 0 }];
        for (at, cursor) in planned.iter_mut().zip(cursors) {
            *at = self.planned_for(*cursor);
        }
        if self.order.arrives() {
            // One sequence feeds all streams: it begins with the step that the first of them stands in.
            let share = self.steps.stream_share();
            let first = planned.iter().min().map_or(0, |at| at / share * share);
            planned.fill(first);
        }
        planned
    }

    /// The position from which a stream that stands at a cursor is planned. What a window became is made of all its rows, so it is planned from the
    /// window's start.
    pub(crate) fn planned_for(&self, cursor: Cursor) -> u64 {
        self.window_rows.map_or(cursor.position, |rows| cursor.position / rows * rows)
    }

    /// Whether all rows are written anew on their way, so that they do not point into blocks.
    fn packs(&self) -> bool {
        self.stages.iter().any(|stage| matches!(stage.function, Function::Pack { .. }))
    }

    /// Positions of a stream that one ticket has.
    pub(crate) fn unit(&self) -> u64 {
        self.window_rows.unwrap_or(self.steps.stream_share())
    }

    /// The most tickets that are planned ahead of those that can start. There are fewer if a ticket has the positions of many steps.
    pub(crate) fn tickets_ahead(&self) -> u64 {
        (TICKETS_AHEAD * self.steps.stream_share() / self.unit()).max(2)
    }

    /// Tickets that are planned before their rows are evaluated, where rows are not positions: as many as a batch and a share more take if no row is
    /// lost.
    pub(crate) fn tickets_unseen(&self) -> u64 {
        ((self.steps.batch / self.steps.world + self.steps.stream_share()) / self.unit()).max(2)
    }

    /// Positions that were delivered before a run begins, among the rows that arrive again for it.
    pub(crate) fn passed_at(&self, start: &Progress) -> std::ops::Range<u64> {
        let step = match self.planned_at(&start.cursors).first() {
            Some(at) => at / self.steps.stream_share(),
            None => start.step,
        };
        let next = step.saturating_mul(self.steps.batch);
        self.order.first_arrival_for(next).map_or(0..0, |first| first..next)
    }

    /// Where a run begins that continues from a state.
    ///
    /// # Errors
    /// A state of another run, or numbers that no state of this loader has.
    pub(crate) fn start_behind(&self, state: &State) -> Result<Progress> {
        let start = state.progress_for(&self.identity, self.transforms_may_differ)?;
        self.check(&start).map(|()| start)
    }

    fn check(&self, start: &Progress) -> Result<()> {
        let damaged = |what: String| {
            Err(Error::config(format!("the state is damaged: {what}")).advice("restore it as it was saved"))
        };
        let rows = if self.order.arrives() { ENDLESS } else { self.order.rows().unwrap_or(ENDLESS) };
        let streams = if self.expands { self.steps.own_streams() } else { 0 };
        if start.epoch >= PADDING >> 1 || start.step > start_limit(self.steps, rows, self.expands) {
            return damaged(format!("epoch {} step {}, which there is not", start.epoch, start.step));
        }
        if start.cursors.len() as u64 != streams {
            return damaged(format!("{} cursors for {streams} streams", start.cursors.len()));
        }
        for (stream, cursor) in (self.steps.first_stream()..).zip(&start.cursors) {
            let end = self.steps.stream_rows(stream, rows);
            if cursor.position > end || cursor.expanded > u64::from(u32::MAX) {
                return damaged(format!("stream {stream} stands at {} of {end}", cursor.position));
            }
        }
        match (self.leaves.iter().find(|leaf| matches!(leaf, Leaf::Arriving(_))), start.read_from) {
            (Some(Leaf::Arriving(source)), Some(read_from)) => {
                if read_from.row > self.passed_at(start).start {
                    return damaged(format!("reading begins at row {}, behind the next", read_from.row));
                }
                source.check(read_from)
            }
            (Some(_), None) if start.step > 0 => damaged("it does not say where reading begins".into()),
            (None, Some(_)) => damaged("the shards have an index, and it says where reading begins".into()),
            _ => Ok(()),
        }
    }

    /// The builder of batches from rows that are not positions.
    pub(crate) fn rebatch(&self, start: &Progress, traced: bool) -> Option<Rebatch> {
        let rows = if self.order.arrives() { ENDLESS } else { self.order.rows().unwrap_or(ENDLESS) };
        self.expands.then(|| Rebatch::new(self, rows, traced || !self.packs(), start))
    }

    /// The number of an epoch's rows over all ranks, if it is known beforehand and batches are made of these rows.
    pub(crate) fn known_rows(&self) -> Option<u64> {
        self.order.rows().filter(|&rows| rows != ENDLESS && !self.expands && !self.order.arrives())
    }
}

/// The most steps whose positions are planned ahead of the tickets that can start.
const TICKETS_AHEAD: u64 = 64;

/// The largest number of steps that a state may say were taken.
fn start_limit(steps: Steps, rows: u64, expands: bool) -> u64 {
    match rows {
        _ if steps.stated.is_some() || expands => u64::from(u32::MAX) << 16,
        rows => steps.per_epoch(rows).min(u64::from(u32::MAX) << 16),
    }
}
