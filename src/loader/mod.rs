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

/// One execution of a [`Dataset`](crate::Dataset): where, how parallel, from which seed.
///
/// `for batch in loader` takes one epoch and the loader with it; `for batch in &mut loader` the next epoch;
/// [`loader.epoch(e)`](Self::epoch) a given one. Behind an epoch's last batches the next epoch is already read.
///
/// Dropping an iterator before its end (a `break`) ends what was under way for it. An iterator that is still out goes on without its loader; dropping the
/// last of them ends the threads.
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
    /// A run whose epoch was taken to its end, kept so that the next epoch is read meanwhile.
    ended: Option<(Arc<Run>, u64)>,
}

impl Current {
    /// An iterator came to the end of `epoch`: keep its run for the next one.
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
    /// The batches of epoch `epoch`. It borrows nothing, and can be sent to another thread.
    ///
    /// A loader delivers one epoch at a time: asking for another one ends an iterator that is still out.
    ///
    /// Of the epoch that a state was [restored](Self::restore) in, or steps were [skipped](Self::skip_steps) in, it is the rest.
    pub fn epoch(&mut self, epoch: u64) -> Epoch {
        self.begin(epoch, true)
    }

    /// The epoch that `for batch in &mut loader` takes next: 0 at first, and that of a restored state.
    pub fn next_epoch(&self) -> u64 {
        self.start.epoch
    }

    /// Goes back or forth to a state saved by this loader or one like it: the next batches are those behind it. An iterator that
    /// is still out ends.
    ///
    /// # Errors
    /// As [`LoaderBuilder::restore`], which also takes the seed and the number of streams from the state.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        self.start = self.shared.pipeline.start_behind(state)?;
        self.supersede();
        Ok(())
    }

    /// Leaves out the next `steps` steps of the epoch that comes next, without reading them.
    ///
    /// # Errors
    /// Behind a filter or flat_map, and without an index, nobody knows where those steps end.
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

    /// What all its states have in common.
    #[cfg(feature = "cli")]
    pub(crate) fn identity(&self) -> &Identity {
        &self.shared.pipeline.identity
    }

    /// Ends what is under way.
    fn supersede(&mut self) {
        let mut current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        current.ended = None;
        // Taken out, so that an iterator that ends by it does not leave it behind as one to go on with.
        if let Some(superseded) = std::mem::take(&mut current.run).upgrade() {
            superseded.cancel();
        }
    }

    /// Where `epoch` begins; the one behind it is next.
    fn start_of(&mut self, epoch: u64) -> Progress {
        let start = std::mem::replace(&mut self.start, Progress::of_epoch(epoch.saturating_add(1)));
        if start.epoch == epoch { start } else { Progress::of_epoch(epoch) }
    }

    /// `go_on`: whether a next epoch may be asked for, and is read ahead.
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

    /// One iterator for each device, to be moved to a thread each: the batches of the next epoch, each batch shared out in
    /// equal, contiguous parts. One reader and one pool serve all; the slowest iterator sets the pace. An iterator that is dropped
    /// leaves its part of every batch behind.
    ///
    /// `next()` waits until every other iterator has taken all but the last few parts. One thread that takes one iterator to its end, and the next one then, waits
    /// forever: on one thread they are taken in turns.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) if there is no such device; a batch that the devices cannot share equally, or the last one of an epoch. Where nobody knows
    /// how many rows there are (behind a filter, without an index) the last one may leave some without a part: `.drop_remainder()` leaves it out.
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

    /// Steps of an epoch, equal on every rank; `None` where that is neither [stated](LoaderBuilder::steps_per_epoch) nor known before: behind a
    /// filter or flat_map, without an index, and for endless data sets.
    pub fn steps_per_epoch(&self) -> Option<u64> {
        let pipeline = &self.shared.pipeline;
        pipeline.steps.stated.or_else(|| Some(pipeline.steps.per_epoch(pipeline.known_rows()?)))
    }

    /// What the loop has taken so far, epoch by epoch, in sums: proof that another run delivered the same.
    ///
    /// It is of this rank; [`Ledger::sum`](crate::Ledger::sum) adds ranks up. What was prefetched and not taken is not in it. An epoch that is asked for again
    /// is added again. Beside a checkpoint it belongs with the [`State`] of the last batch: taken after `next()` has returned that batch,
    /// it holds that batch and none behind.
    pub fn ledger(&self) -> crate::Ledger {
        self.shared.with_ledger(|ledger| ledger.clone())
    }

    /// Whether a ledger, summed over all ranks, holds all of an epoch: every sample of the plan as often as the plan says, in its place.
    ///
    /// Nothing is read for it: the plan of the epoch is walked, on this thread. Checksums of what is stored are not in the plan, so the ledger's
    /// third sum is not looked at; two runs are compared by it. Where bad records were left out they count as had, and the places of the
    /// others cannot be verified.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the epoch is not complete: the message says how many samples are missing or too
    /// many, which one where it is only one, or which rank's are. [`ErrorKind::Config`](crate::ErrorKind::Config) if the ledger is of another
    /// run, and for data sets that cannot be planned beforehand: behind a filter or flat_map, endless ones, and shards without an index.
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

    /// What was done so far, stage by stage, and what the loop waited for, up to this moment.
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
