//! The iterator over one epoch.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::Current;
use super::run::Run;
use crate::batch::Batch;
use crate::error::Result;

/// Iterates over the batches of one epoch, in order. After an error it ends.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// # use arrow::array::Int64Array;
/// # let dataset = forebay::Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(0..64)) as _)])?;
/// # let mut loader = dataset.batch(16).loader().build()?;
/// let epoch = loader.epoch(0);
/// let batches = std::thread::spawn(move || epoch.count()).join().expect("no panic");
/// assert_eq!(batches, 4);
/// # Ok::<(), forebay::Error>(())
/// ```
pub struct Epoch {
    /// `None` after the end.
    run: Option<Arc<Run>>,
    lane: usize,
    epoch: u64,
    current: Arc<Mutex<Current>>,
    returned: Option<Instant>,
}

impl Epoch {
    pub(super) fn new(run: Arc<Run>, lane: usize, epoch: u64, current: Arc<Mutex<Current>>) -> Self {
        Self { run: Some(run), lane, epoch, current, returned: None }
    }
}

impl std::fmt::Debug for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lane, epoch, run, .. } = self;
        let mut shown = f.debug_struct("Epoch");
        shown.field("epoch", epoch).field("lane", lane).field("has_ended", &run.is_none()).finish_non_exhaustive()
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let run = self.run.as_ref()?;
        if let Some(returned) = self.returned.take() {
            run.shared.counters.looped(returned.elapsed());
        }
        let item = run.next(self.lane, self.epoch);
        match &item {
            Some(Ok(_)) => self.returned = Some(Instant::now()),
            // After an error the run is of no use; behind an epoch's end it goes on with the next.
            Some(Err(_)) => drop(self.run.take().inspect(|run| run.close_lane(self.lane))),
            None => {
                let run = self.run.take()?;
                self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).keep(run, self.epoch);
            }
        }
        item
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            run.close_lane(self.lane);
        }
    }
}
