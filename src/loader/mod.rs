//! [`Loader`]: one execution of a data set.
//!
#![doc = include_str!("README.md")]

mod arrival;
mod assemble;
mod builder;
mod delivery;
mod epoch;
mod evaluate;
mod ledger;
mod lower;
mod minimum;
#[cfg(feature = "tch")]
mod on_device;
#[cfg(test)]
mod on_device_tests;
mod pipeline;
mod rebatch;
mod replay;
mod run;
mod skip;
mod world;

use std::sync::{Arc, Mutex, Weak};

pub use builder::LoaderBuilder;
#[cfg(feature = "cli")]
pub(crate) use builder::default_index_dir;
pub use epoch::Epoch;
pub use replay::Replay;
pub use skip::Skip;
pub use world::World;

use crate::dataset::graph::Function;
use crate::device::Device;
use crate::error::{Error, Result};
#[cfg(feature = "cli")]
use crate::plan::state::Identity;
use crate::plan::state::Progress;
use crate::plan::{Remainder, State};
use crate::telemetry::{FunctionCounter, Report};
use delivery::Delivery;
use run::{Run, Shared};

/// One execution of a [`Dataset`](crate::Dataset): where it runs, how parallel, and from which seed.
///
/// `for batch in loader` runs one epoch and consumes the loader. `for batch in &mut loader` runs the next epoch, and [`loader.epoch(e)`](Self::epoch)
/// a given one. While the loop takes an epoch's last batches, the loader already reads the next epoch.
///
/// Dropping an iterator before its end (a `break`) ends the work under way for it. An iterator that is still in use continues when its loader is
/// dropped; the threads end when the last of them is dropped.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// # use arrow::array::Int64Array;
/// # let dataset = forebay::Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(0..64)) as _)])?;
/// let mut loader = dataset.batch(16).loader().seed(42).build()?;
/// for epoch in 0..2 {
///     for batch in loader.epoch(epoch) {
///         let batch = batch?;
///         assert_eq!((batch.epoch(), batch.len()), (epoch, 16));
///     }
/// }
/// # Ok::<(), forebay::Error>(())
/// ```
pub struct Loader {
    shared: Arc<Shared>,
    delivery: Delivery,
    /// The devices of the last [`split`](Self::split), and their rings.
    split: (Vec<Device>, Vec<Delivery>),
    /// Where the next epoch asked for begins.
    start: Progress,
    /// The run of the last epoch asked for, which may go on with the next.
    current: Arc<Mutex<Current>>,
}

/// The run that the loader's iterators take from.
#[derive(Default)]
pub(crate) struct Current {
    run: Weak<Run>,
    /// A run whose epoch was taken to its end. It is kept so that it reads the next epoch meanwhile.
    ended: Option<(Arc<Run>, u64)>,
}

impl Current {
    /// Keeps the run of an iterator that came to the end of `epoch`, for the next epoch.
    pub(crate) fn keep(&mut self, run: Arc<Run>, epoch: u64) {
        if std::ptr::eq(self.run.as_ptr(), Arc::as_ptr(&run)) {
            self.ended = Some((run, epoch));
        }
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Loader {
    /// Returns the batches of epoch `epoch`. The iterator borrows nothing, and can be sent to another thread.
    ///
    /// A loader delivers one epoch at a time: asking for another epoch ends an iterator that is still in use.
    ///
    /// If a state was [restored](Self::restore) or steps were [skipped](Self::skip_steps) in this epoch, the iterator delivers the rest of it.
    pub fn epoch(&mut self, epoch: u64) -> Epoch {
        self.begin(epoch, true)
    }

    /// Returns the epoch that `for batch in &mut loader` takes next: 0 at first, and after a restore that of the state.
    pub fn next_epoch(&self) -> u64 {
        self.start.epoch
    }

    /// Moves back or forward to a state saved by this loader or one like it: the next batches are those after the state. An iterator that is still in
    /// use ends.
    ///
    /// # Errors
    /// As for [`LoaderBuilder::restore`], which also takes the seed and the number of streams from the state.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        self.start = self.shared.pipeline.start_behind(state)?;
        self.supersede();
        Ok(())
    }

    /// Skips the next `steps` steps of the epoch that comes next, without reading them.
    ///
    /// # Errors
    /// After a filter or flat_map, and without an index, it is not known where those steps end.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::Int64Array;
    /// # let dataset = forebay::Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(0..64)) as _)])?;
    /// let mut loader = dataset.batch(16).loader().build()?;
    /// loader.skip_steps(3)?;
    /// let steps = loader.epoch(0).map(|batch| batch.map(|batch| batch.step())).collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(steps, [3]);
    /// # Ok::<(), forebay::Error>(())
    /// ```
    pub fn skip_steps(&mut self, steps: u64) -> Result<()> {
        let pipeline = &self.shared.pipeline;
        if pipeline.expands || pipeline.order.arrives() {
            let why = if pipeline.expands {
                format!("behind {}", pipeline.changer)
            } else {
                "in shards without an index".to_owned()
            };
            return Err(Error::config(format!("{steps} steps {why} end at a place that is not known before"))
                .advice("restore a state, or take the batches and leave them unused"));
        }
        self.start.step = self.start.step.saturating_add(steps);
        self.supersede();
        Ok(())
    }

    /// What all states of this loader have in common.
    #[cfg(feature = "cli")]
    pub(crate) fn identity(&self) -> &Identity {
        &self.shared.pipeline.identity
    }

    /// Ends the run that is under way.
    fn supersede(&mut self) {
        let mut current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        current.ended = None;
        // Taken out, so that an iterator that ends by it does not leave it behind as one to go on with.
        if let Some(superseded) = std::mem::take(&mut current.run).upgrade() {
            superseded.cancel();
        }
    }

    /// Where `epoch` begins. The epoch after it becomes the next one.
    fn start_of(&mut self, epoch: u64) -> Progress {
        let start = std::mem::replace(&mut self.start, Progress::of_epoch(epoch.saturating_add(1)));
        if start.epoch == epoch { start } else { Progress::of_epoch(epoch) }
    }

    /// Begins an epoch. `go_on`: whether a next epoch may be asked for, and is read ahead.
    fn begin(&mut self, epoch: u64, go_on: bool) -> Epoch {
        let start = self.start_of(epoch);
        let mut current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let going_on = current.ended.take().filter(|(_, ended)| ended.checked_add(1) == Some(epoch));
        let run = going_on.map_or_else(
            || {
                if let Some(superseded) = current.run.upgrade() {
                    superseded.cancel();
                }
                Run::start(self.shared.clone(), &start, std::slice::from_ref(&self.delivery), go_on)
            },
            |(run, _)| run,
        );
        current.run = Arc::downgrade(&run);
        Epoch::new(run, 0, epoch, self.current.clone())
    }

    /// Returns one iterator for each device, each to be moved to its own thread. They deliver the next epoch: each batch is divided into equal,
    /// contiguous parts, one for each device. One reader and one pool serve all iterators; the slowest iterator sets the pace. If an iterator is
    /// dropped, its part of every batch is discarded.
    ///
    /// `next()` waits until every other iterator has taken all but the last few parts. A thread that takes one iterator to its end before the next
    /// one waits forever: on one thread, take from the iterators in turns.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) if there is no such device. Also an error: the devices cannot share a batch, or the last batch
    /// of an epoch, equally. If the number of rows is not known (after a filter, without an index), the last batch may leave some devices without a
    /// part: `.drop_remainder()` leaves that batch out.
    pub fn split(&mut self, devices: &[Device]) -> Result<Vec<Epoch>> {
        let batch = self.shared.pipeline.steps.batch / self.shared.pipeline.steps.world;
        if devices.is_empty() || !batch.is_multiple_of(devices.len() as u64) {
            return Err(Error::config(format!("a batch of {batch} cannot be shared by {} devices", devices.len()))
                .advice("make the batch a multiple of the number of devices"));
        }
        let steps = self.shared.pipeline.steps;
        let rest = self.shared.pipeline.known_rows().map_or(0, |rows| rows % steps.batch / steps.world);
        if steps.remainder == Remainder::Keep && steps.stated.is_none() && !rest.is_multiple_of(devices.len() as u64) {
            return Err(Error::config(format!(
                "the last batch of an epoch has {rest} samples, which {} devices cannot share equally",
                devices.len()
            ))
            .advice("say what becomes of them: .remainder(Remainder::Drop) or .remainder(Remainder::Repeat)"));
        }
        self.supersede();
        if self.split.0 != devices {
            // The rings before go first: locked memory is scarce.
            self.split = <_>::default();
            let lanes = devices.len() as u64;
            let deliveries = devices.iter().map(|&device| delivery::find(device)?.through(&self.shared, lanes));
            self.split = (devices.to_vec(), deliveries.collect::<Result<_>>()?);
        }
        let epoch = self.start.epoch;
        let start = self.start_of(epoch);
        let run = Run::start(self.shared.clone(), &start, &self.split.1, false);
        self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).run = Arc::downgrade(&run);
        Ok((0..devices.len()).map(|lane| Epoch::new(run.clone(), lane, epoch, Arc::default())).collect())
    }

    /// Returns the number of steps of an epoch, equal on every rank. `None` if it is neither [stated](LoaderBuilder::steps_per_epoch) nor known
    /// beforehand: after a filter or flat_map, without an index, and for endless data sets.
    pub fn steps_per_epoch(&self) -> Option<u64> {
        let pipeline = &self.shared.pipeline;
        pipeline.steps.stated.or_else(|| Some(pipeline.steps.per_epoch(pipeline.known_rows()?)))
    }

    /// Returns what the loop has taken so far, epoch by epoch, in sums: proof that another run delivered the same.
    ///
    /// The ledger is that of this rank; [`Ledger::sum`](crate::Ledger::sum) adds ranks up. Batches that were prefetched and not taken are not in it.
    /// An epoch that is asked for again is added again. Save it with a checkpoint, next to the [`State`] of the last batch: a ledger taken after
    /// `next()` has returned that batch holds that batch and none after it.
    pub fn ledger(&self) -> crate::Ledger {
        self.shared.with_ledger(|ledger| ledger.clone())
    }

    /// Checks that a ledger, summed over all ranks, holds all of an epoch: every sample of the plan as often as the plan says, in its place.
    ///
    /// Nothing is read: this thread walks the plan of the epoch. The plan has no checksums of the stored data, so the ledger's third sum is not
    /// checked; it serves to compare two runs. Bad records that were left out count as delivered, and then the places of the other samples cannot be
    /// verified.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the epoch is not complete. The message says how many samples are missing or too many,
    /// which one if it is only one, or which rank's samples. [`ErrorKind::Config`](crate::ErrorKind::Config) if the ledger is of another run, and for
    /// data sets that cannot be planned beforehand: after a filter or flat_map, endless ones, and shards without an index.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # let numbers = arrow::array::Int64Array::from_iter_values(0..100);
    /// # let dataset = forebay::Dataset::from_columns([("x", Arc::new(numbers) as _)])?;
    /// let mut loader = dataset.shuffle(forebay::Shuffle::buffer(10)).batch(10).loader().build()?;
    /// loader.epoch(0).try_for_each(|batch| batch.map(drop))?;
    /// loader.verify_epoch(0, &loader.ledger())?;
    ///
    /// loader.epoch(1).take(3).try_for_each(|batch| batch.map(drop))?;
    /// let error = loader.verify_epoch(1, &loader.ledger()).unwrap_err();
    /// assert!(error.to_string().contains("30 samples were delivered, all of the first 3 of 10 steps"));
    /// # Ok::<(), forebay::Error>(())
    /// ```
    pub fn verify_epoch(&self, epoch: u64, ledger: &crate::Ledger) -> Result<()> {
        ledger::verify(&self.shared, epoch, ledger)
    }

    /// Returns what was done so far, stage by stage, and what the loop waited for, up to this moment.
    pub fn report(&self) -> Report {
        let run = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).run.upgrade();
        if let Some(run) = run {
            run.account_until_now();
        }
        report(&self.shared, std::iter::once(&self.delivery).chain(&self.split.1))
    }
}

/// What was done by all runs of a loader.
fn report<'a>(shared: &Shared, deliveries: impl Iterator<Item = &'a Delivery>) -> Report {
    let pipeline = &shared.pipeline;
    let functions = pipeline.stages.iter().enumerate().filter_map(|(number, stage)| {
        let decodes_images = matches!(stage.function, Function::Image { .. });
        (decodes_images || stage.function.is_reported()).then(|| FunctionCounter {
            name: stage.name.clone(),
            counter: stage.counter.clone(),
            on_batches: pipeline.on_batches.contains(&number),
            decodes_images,
        })
    });
    let functions: Vec<_> = functions.collect();
    let budget = (shared.account.peak(), shared.account.total());
    let mut notes = pipeline.notes.clone();
    let rings: Vec<_> = deliveries.filter_map(Delivery::report).collect();
    if !rings.is_empty() {
        notes.extend(Delivery::notes(&pipeline.layouts));
    }
    notes.extend(shared.store.note_of_cache());
    Report::new(&shared.counters, &functions, budget, shared.skipped.listed(), notes, rings)
}

impl Drop for Loader {
    fn drop(&mut self) {
        let mut current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        current.ended = None;
        // An iterator that is still out keeps its run; nothing is read for an epoch behind it.
        if let Some(run) = current.run.upgrade() {
            run.last_epoch();
        }
    }
}

impl IntoIterator for Loader {
    type Item = Result<crate::Batch>;
    type IntoIter = Epoch;

    fn into_iter(mut self) -> Epoch {
        self.begin(self.start.epoch, false)
    }
}

impl IntoIterator for &mut Loader {
    type Item = Result<crate::Batch>;
    type IntoIter = Epoch;

    fn into_iter(self) -> Epoch {
        self.epoch(self.start.epoch)
    }
}
