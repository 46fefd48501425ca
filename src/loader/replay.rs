//! Rebuilds one batch, anywhere: which samples it held, where they were read, and what each stage did.

use std::sync::{Arc, Mutex};

use super::delivery::Delivery;
use super::evaluate::Block;
use super::pipeline::{Leaf, Pipeline};
use super::run::{Kept, Run, Shared};
use super::skip::Log;
use super::{Epoch, Loader};
use crate::batch::{Batch, Origin};
use crate::engine::budget::Account;
use crate::engine::io::Io;
use crate::engine::pool::Pool;
use crate::engine::{Budget, Scheduler};
use crate::error::{Error, Result};
use crate::plan::state::{Identity, Progress};
use crate::plan::steps::Steps;
use crate::plan::{Ledger, State};
use crate::telemetry::{Counters, Report, StageCounter};

/// A batch that was rebuilt.
#[derive(Debug)]
#[non_exhaustive]
pub struct Replay {
    /// The batch, in host memory.
    pub batch: Batch,
    /// Where each of its samples was read, in the order of the batch.
    pub origins: Vec<Origin>,
    /// What each stage did for it.
    pub report: Report,
}

impl Loader {
    /// Rebuilds the batch of one step and rank, single-threaded and stage by stage, wherever this loader stands.
    ///
    /// After a filter or flat_map, and in shards without an index, it goes through the epoch up to that step. So use
    /// [`replay_behind`](Self::replay_behind) if there is a state of the step before.
    ///
    /// # Errors
    /// Any error that the loop would have met; a step or rank that does not exist.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::Int64Array;
    /// # use forebay::Shuffle;
    /// # let dataset = forebay::Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(0..640)) as _)])?;
    /// let mut loader = dataset.shuffle(Shuffle::buffer(50)).batch(16).loader().seed(3).build()?;
    /// let batch = loader.epoch(2).nth(7).expect("forty steps")?;
    /// let replay = loader.replay(2, 7, 0)?;
    /// assert_eq!(replay.batch.samples(), batch.samples());
    /// assert_eq!(replay.origins[0].record, batch.samples()[0]);
    /// # Ok::<(), forebay::Error>(())
    /// ```
    pub fn replay(&self, epoch: u64, step: u64, rank: usize) -> Result<Replay> {
        let steps = self.shared.pipeline.steps;
        if rank as u64 >= steps.world {
            return Err(
                Error::config(format!("rank {rank} of a world of {}", steps.world)).advice("ranks are counted from 0")
            );
        }
        let mut start = Progress::of_epoch(epoch);
        if !self.shared.pipeline.expands && !self.shared.pipeline.order.arrives() {
            start.step = step;
        }
        self.replay_from(&start, step, rank as u64)
    }

    /// Rebuilds the batch after a state, as [`replay`](Self::replay) does.
    ///
    /// # Errors
    /// As for [`replay`](Self::replay); and a state that is not of this loader.
    pub fn replay_behind(&self, state: &State) -> Result<Replay> {
        let start = self.shared.pipeline.start_behind(state)?;
        self.replay_from(&start, start.step, self.shared.pipeline.steps.rank)
    }

    fn replay_from(&self, start: &Progress, step: u64, rank: u64) -> Result<Replay> {
        let shared = &self.shared;
        let scheduler = Scheduler::single_threaded();
        let stages = shared.pipeline.stages.iter().cloned();
        let replayed = Shared {
            pipeline: Pipeline {
                steps: Steps { rank, ..shared.pipeline.steps },
                identity: Arc::new(Identity { rank, ..shared.pipeline.identity.as_ref().clone() }),
                // Its own counts.
                stages: stages
                    .map(|stage| super::pipeline::Stage { counter: Arc::<StageCounter>::default(), ..stage })
                    .collect(),
                window: 1,
                ..shared.pipeline.clone()
            },
            scheduler,
            pool: Pool::new(scheduler)?,
            io: Io::new(scheduler)?,
            store: shared.store.clone(),
            account: Account::new(Budget::of_bytes(shared.account.total())),
            counters: Counters::default(),
            skipped: Log::default(),
            ledger: Mutex::new(Ledger::new(&shared.pipeline.identity)),
            alive: Arc::default(),
            #[cfg(feature = "tch")]
            on_device: shared.on_device.clone(),
            traced: true,
            ..*shared.as_ref()
        };
        let run = Run::start(Arc::new(replayed), start, &[Delivery::default()], false);
        let mut batches = Epoch::new(run.clone(), 0, start.epoch, Arc::default());
        let batch = batches.by_ref().find(|batch| batch.as_ref().map_or(true, |batch| batch.step() == step));
        let mut batch = batch.unwrap_or_else(|| {
            Err(Error::config(format!("epoch {} has no step {step}", start.epoch)).advice("steps are counted from 0"))
        })?;
        let origins = std::mem::take(&mut batch.origins);
        Ok(Replay { batch, origins, report: super::report(&run.shared, std::iter::empty()) })
    }
}

/// Where samples were read, among the blocks that a batch's rows point into.
pub(super) fn origins(pipeline: &Pipeline, kept: &[Kept], samples: &[u64]) -> Vec<Origin> {
    let blocks: Vec<_> = kept.iter().flat_map(|kept| kept.iter()).collect();
    let origin = |&sample: &u64| {
        blocks.iter().find_map(|((leaf, number), block)| origin(&pipeline.leaves[*leaf], *number, block, sample))
    };
    samples.iter().filter_map(origin).collect()
}

fn origin(leaf: &Leaf, number: u32, block: &Block, sample: u64) -> Option<Origin> {
    let row = sample.checked_sub(block.first_id).filter(|&row| row < block.decoded.rows.num_rows() as u64)?;
    if let Some(places) = &block.decoded.places {
        let (url, record, offset) = places.of(row as usize);
        return Some(Origin { sample, url, record, offset });
    }
    let Leaf::Indexed(source) = leaf else { return None };
    let catalog = source.catalog();
    let url = catalog.shard_name(catalog.shard_of(number as usize)).clone();
    Some(Origin { sample, url, record: catalog.record_of(number as usize) + row, offset: None })
}
