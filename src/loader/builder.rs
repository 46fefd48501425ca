//! Settings of a loader, checked at `build()`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::lower::{BatchSpec, Request, lower, requests};
#[cfg(feature = "tch")]
use super::on_device;
use super::pipeline::Leaf;
use super::run::Shared;
use super::skip::{Log, Skip};
use super::{Current, Loader, World, delivery};
use crate::batch::collate;
use crate::dataset::Dataset;
use crate::dataset::graph::{Function, Node, visit};
use crate::dataset::validate::{all_of, mistakes};
use crate::device::Device;
#[cfg(feature = "tch")]
use crate::device::OnDevice;
use crate::engine::budget::Account;
use crate::engine::io::Io;
use crate::engine::pool::Pool;
use crate::engine::{Budget, Scheduler};
use crate::error::{Error, Result};
use crate::plan::shuffle::PIECES_PER_STREAM;
use crate::plan::steps::{Steps, advice_for_state};
use crate::plan::{Ledger, State};
use crate::source::open::{self, Index, Wanted};
use crate::store::StoreOptions;
use crate::telemetry::Counters;

/// Settings of a [`Loader`]; everything has a default.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// # use arrow::array::Int64Array;
/// use forebay::{Budget, Device, Scheduler};
///
/// # let dataset = forebay::Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(0..64)) as _)])?.batch(8);
/// let loader = dataset
///     .loader()
///     .seed(42)
///     .device(Device::Cpu)
///     .scheduler(Scheduler::threads(2))
///     .budget(Budget::mebibytes(256))
///     .build()?;
/// assert_eq!(loader.steps_per_epoch(), Some(8));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct LoaderBuilder {
    dataset: Dataset,
    seed: Option<u64>,
    world: World,
    device: Device,
    scheduler: Scheduler,
    budget: Budget,
    streams: Option<u64>,
    steps_per_epoch: Option<u64>,
    restored: Option<State>,
    transforms_may_differ: bool,
    store: StoreOptions,
    index: Index,
    index_dir: Option<PathBuf>,
    skip: Option<Skip>,
    #[cfg(feature = "tch")]
    on_device: Vec<OnDevice>,
}

impl std::fmt::Debug for LoaderBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { dataset, seed, world, device, scheduler, budget, .. } = self;
        f.debug_struct("LoaderBuilder")
            .field("dataset", dataset)
            .field("seed", seed)
            .field("world", world)
            .field("device", device)
            .field("scheduler", scheduler)
            .field("budget", budget)
            .finish_non_exhaustive()
    }
}

impl LoaderBuilder {
    pub(crate) fn new(dataset: Dataset) -> Self {
        Self {
            dataset,
            seed: None,
            world: World::single(),
            device: Device::Cpu,
            scheduler: Scheduler::default(),
            budget: Budget::default(),
            streams: None,
            steps_per_epoch: None,
            restored: None,
            transforms_may_differ: false,
            store: StoreOptions::new(),
            index: Index::Auto,
            index_dir: default_index_dir(),
            skip: None,
            #[cfg(feature = "tch")]
            on_device: Vec::new(),
        }
    }

    /// Sets the seed, the one number behind all randomness. Without it the loader takes the seed of a restored state, or 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets which of several processes this one is.
    pub fn world(mut self, world: World) -> Self {
        self.world = world;
        self
    }

    /// Sets where batches are delivered.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Sets how work is spread over threads. Unless stated, there are as many workers as the process has cores. Each process of a machine counts all
    /// of its cores: with eight ranks, give each `Scheduler::share(1.0 / 8.0)`, or cores of its own.
    pub fn scheduler(mut self, scheduler: Scheduler) -> Self {
        self.scheduler = scheduler;
        self
    }

    /// Sets how many bytes may be in flight. Unless stated, it is a quarter of the memory that the process may use. Each process of a machine takes
    /// that much: with eight ranks, each has to state its own budget.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Sets the number of logical streams of the plan. They fix the order for all world sizes that divide their number. The number has to divide the
    /// batch.
    ///
    /// By default it is the largest number up to 8 (or up to the number of ranks) that divides the batch and is a multiple of the number of ranks: 8
    /// for a batch of 256, but 5 for 20 or 100. A run with 5 streams that one process began can continue on 5 ranks, and never on 2. If it may have
    /// to, state 10 from the start. [`Dataset::explain`] says which batches this concerns.
    pub fn streams(mut self, streams: usize) -> Self {
        self.streams = Some(streams as u64);
        self
    }

    /// States how many steps an epoch has on every rank. The data set's rows are repeated as often as that takes.
    ///
    /// After a filter or flat_map the steps cannot be counted beforehand, and several ranks need their number. Every epoch begins the rows anew, in
    /// its own order. So `n` should be about what the data set has: without a shuffle, the rows after the last step are never seen.
    pub fn steps_per_epoch(mut self, n: u64) -> Self {
        self.steps_per_epoch = Some(n);
        self
    }

    /// Continues after a saved state, with precisely the samples, order and augmentations of the run that saved it. Threads, prefetch, budget, device
    /// and world size may differ. The seed and the number of streams are taken from the state if they are not stated.
    ///
    /// The loader delivers the rest of the state's epoch, which may be empty; [`Loader::next_epoch`] returns that epoch. Any other epoch that is
    /// asked for is whole, and so are those after it. So a loop continues with `for epoch in loader.next_epoch()..epochs`.
    ///
    /// # Errors
    /// `build()` refuses a state of another data set, graph (including a function of another name), seed or number of streams, and lists the
    /// differences. [`transforms_may_differ`](Self::transforms_may_differ) allows some of them.
    ///
    /// # Example
    /// See [`State`].
    pub fn restore(mut self, state: &State) -> Self {
        self.restored = Some(state.clone());
        self
    }

    /// Accepts states of graphs that make their samples in another way: of smaller images, say, or without some augmentation. The rows and their
    /// order stay those of the run that saved the state.
    ///
    /// `columns`, `map`, `map_batch`, `image`, `pad`, `tokenize` and `enumerate` may differ, and there may be more or fewer of them. Everything else
    /// has to be as it was: the data, the seed, the streams, `shuffle`, `batch`, every stage that changes the number of rows, and the stages before
    /// such a stage, because it depends on their results. Parquet is cut into blocks by the bytes of the columns that are read: with other columns,
    /// large row groups are cut into other blocks, and the state is refused.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::Int64Array;
    /// # use forebay::{Dataset, Shuffle, int64};
    /// # let rows = Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(0..64)) as _)])?;
    /// let scaled = |name: &str, by| {
    ///     let rows = rows.shuffle(Shuffle::buffer(16));
    ///     rows.map(name, [int64("y")], move |_, row, out| out.set("y", by * row.get::<i64>("x")?)).batch(8)
    /// };
    /// let first = scaled("double", 2).loader().seed(7).build()?.into_iter().next().expect("eight batches")?;
    ///
    /// let changed = scaled("triple", 3);
    /// assert!(changed.loader().restore(&first.state()).build().is_err());
    /// let loader = changed.loader().restore(&first.state()).transforms_may_differ().build()?;
    /// assert_eq!(loader.into_iter().count(), 7);
    /// # Ok::<(), forebay::Error>(())
    /// ```
    pub fn transforms_may_differ(mut self) -> Self {
        self.transforms_may_differ = true;
        self
    }

    /// Sets how stores are reached: endpoints, retries, timeouts.
    pub fn store(mut self, options: StoreOptions) -> Self {
        self.store = options;
        self
    }

    /// Sets what is done about shards without an index.
    pub fn index(mut self, index: Index) -> Self {
        self.index = index;
        self
    }

    /// Sets the folder in which indexes are kept, instead of `$FOREBAY_INDEX_DIR`, `$XDG_CACHE_HOME/forebay/index` or `~/.cache/forebay/index`.
    pub fn index_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.index_dir = Some(dir.into());
        self
    }

    /// Leaves out bad records, within a limit. Without this call the first bad record ends the epoch with its error.
    pub fn on_bad_record(mut self, skip: Skip) -> Self {
        self.skip = Some(skip);
        self
    }

    /// Sets what is done to a column of images, and its labels, once a batch is on its device. Call it several times for several columns.
    ///
    /// # Example
    /// See [`OnDevice`].
    #[cfg(feature = "tch")]
    pub fn on_device(mut self, operations: OnDevice) -> Self {
        self.on_device.push(operations);
        self
    }

    /// Checks the graph and the settings, lists the shards, finds their indexes, and starts the threads.
    ///
    /// # Errors
    /// Every configuration mistake at once, each with the call that fixes it; and whatever goes wrong with the stores.
    pub fn build(self) -> Result<Loader> {
        let mut wrong = mistakes(&self.dataset);
        if !wrong.is_empty() {
            return all_of(wrong).map(|()| unreachable!("there are mistakes"));
        }
        let spec = BatchSpec::of(&self.dataset);
        let ranks = (self.world.rank() as u64, self.world.size() as u64);
        let restored = self.restored.as_ref();
        // A token budget is held by each stream, and so by each rank, where it has one.
        let one_each = holds_tokens(&self.dataset).then_some(ranks.1);
        let streams = self.streams.or(restored.map(|state| state.streams)).or(one_each);
        let seed = self.seed.or(restored.map(|state| state.seed)).unwrap_or(0);
        let steps = Steps::new(spec.size, streams, ranks, spec.remainder);
        let steps = steps.map_err(|error| wrong.push(self.blame_state(error, spec.size))).ok();
        if self.steps_per_epoch == Some(0) {
            wrong.push(Error::config("an epoch of 0 steps").advice(".steps_per_epoch(n) wants n of at least 1"));
        }
        let found = delivery::find(self.device).map_err(|e| wrong.push(e)).ok();
        let scheduler = self.scheduler.settle().map_err(|e| wrong.push(e)).ok();
        wrong.extend(self.skip.and_then(Skip::mistake));
        #[cfg(feature = "tch")]
        wrong.extend(on_device::mistakes(&self.on_device));
        all_of(wrong)?;
        let (Some(steps), Some(found), Some(scheduler)) = (steps, found, scheduler) else {
            unreachable!("their errors were returned")
        };
        let steps = steps.with_epoch(self.steps_per_epoch);

        let io = Io::new(scheduler)?;
        let account = Account::new(self.budget);
        let store = self.store.clone().build_within(account.clone());
        let (mut opened, mut notes) = (HashMap::new(), Vec::new());
        for (node, files, request) in requests(&self.dataset)? {
            let wanted = self.wanted(&files.patterns, &request, steps);
            let opening = io.wait(open::open(store.clone(), files.format.clone(), wanted))?;
            notes.extend(opening.notes);
            opened.insert(Arc::as_ptr(node), opening.opened);
        }
        let mut pipeline = lower(&self.dataset, &opened, steps, seed)?;
        pipeline.notes.splice(0..0, notes);
        pipeline.transforms_may_differ = self.transforms_may_differ;
        #[cfg(feature = "tch")]
        let on_device = on_device::prepare(self.on_device, &pipeline.layouts, seed)?;
        let shared = Shared {
            chunk_rows: chunk_rows(&self.dataset, &pipeline.layouts),
            alive: Arc::default(),
            pool: Pool::new(scheduler)?,
            io,
            store,
            account,
            counters: Counters::default(),
            scheduler,
            seed,
            skip: self.skip,
            skipped: Log::default(),
            ledger: Mutex::new(Ledger::new(&pipeline.identity)),
            traced: false,
            #[cfg(feature = "tch")]
            on_device,
            pipeline,
        };
        let delivery = found.through(&shared, 1)?;
        check_budget(&shared, delivery.is_ring())?;
        let current = Arc::new(Mutex::new(Current::default()));
        let start = restored.map(|state| shared.pipeline.start_behind(state)).transpose()?;
        Ok(Loader {
            shared: Arc::new(shared),
            delivery,
            split: <_>::default(),
            start: start.unwrap_or_default(),
            current,
        })
    }

    /// Says where the number of streams came from, if it was a state.
    fn blame_state(&self, error: Error, batch: u64) -> Error {
        match &self.restored {
            Some(state) if self.streams.is_none() => {
                error.advice(advice_for_state(state.streams, batch, self.world.size() as u64))
            }
            _ => error,
        }
    }

    fn wanted(&self, patterns: &[String], request: &Request, steps: Steps) -> Wanted {
        let shuffle = request.shuffle.filter(|shuffle| !shuffle.is_none());
        let global = shuffle.is_some_and(|shuffle| shuffle.is_global());
        // A run that began without an index goes on without, though its first pass left one behind.
        let arrives = self.restored.iter().any(|state| state.data.iter().any(|mark| mark.rows.is_none()));
        let needs_index = match (request.needs_index, self.world.size(), global) {
            (Some(reason), ..) => Some(reason.to_owned()),
            (None, size, _) if size > 1 => Some(format!("a world of {size}")),
            (None, _, true) => Some("a global shuffle".to_owned()),
            _ if self.steps_per_epoch.is_some() => Some("a stated number of steps".to_owned()),
            _ => None,
        };
        Wanted {
            patterns: patterns.to_vec(),
            columns: request.columns.clone(),
            also: request.also.clone(),
            is_seen: request.is_seen,
            conditions: request.conditions.clone(),
            index: self.index,
            index_dir: self.index_dir.clone(),
            min_blocks: if shuffle.is_some() { PIECES_PER_STREAM * steps.streams } else { 1 },
            whole_rows: shuffle.and_then(|shuffle| shuffle.samples()).unwrap_or(0),
            by_rows: global,
            shuffled: shuffle.is_some(),
            needs_index,
            arrives,
            leave_out: self.skip.is_some(),
            whole_shards: false,
            all_columns: false,
            // As much again is taken by what is made of it.
            max_bytes: usize::try_from(self.budget.bytes() / 2).unwrap_or(usize::MAX),
        }
    }
}

/// Where indexes are kept unless the caller says otherwise.
pub(crate) fn default_index_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("FOREBAY_INDEX_DIR")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("forebay/index")))
        .or_else(|| Some(set("HOME")?.join(".cache/forebay/index")))
}

/// Whether each batch has as many samples as fit into a token budget.
fn holds_tokens(dataset: &Dataset) -> bool {
    let mut found = false;
    visit(&dataset.node, &mut |node| found |= node.holds_tokens());
    found
}

/// Bytes of a batch that one task lays out: about a millisecond's copying. Without this limit one thread laid out batches of 104 MB (48 samples of 2
/// MB).
const CHUNK_BYTES: usize = 4 << 20;

/// Rows that one task takes: few where each row is work or many bytes, all where rows are only gathered.
fn chunk_rows(dataset: &Dataset, layouts: &[collate::Layout]) -> usize {
    let sample: usize = layouts.iter().filter_map(collate::Layout::sample_bytes).sum();
    let mut rows = CHUNK_BYTES.checked_div(sample).map_or(usize::MAX, |rows| rows.max(1));
    visit(&dataset.node, &mut |node| {
        // What works on windows has all of one, however it was cut.
        if let Node::Apply { function, .. } = node
            && function.window().is_none()
        {
            // An image takes about a millisecond, other functions microseconds; a task should take milliseconds.
            rows = rows.min(if matches!(function, Function::Image { .. }) { 8 } else { 256 });
        }
    });
    rows
}

/// Refuses a budget that cannot hold the largest block and the batches in flight. Batches in a ring have their share already.
fn check_budget(shared: &Shared, in_ring: bool) -> Result<()> {
    let largest = shared.pipeline.leaves.iter().map(|leaf| match leaf {
        Leaf::Indexed(source) => source.catalog().largest_block(),
        Leaf::Arriving(_) => 2 * crate::source::ARRIVED_BYTES,
    });
    let batches =
        if in_ring { shared.account.used() } else { shared.batch_bytes().saturating_mul(shared.pipeline.window) };
    let largest = largest.max().unwrap_or(0);
    let needed = largest.saturating_add(batches);
    if needed > shared.account.total() {
        return Err(Error::new(
            crate::ErrorKind::Memory,
            format!(
                "a block of {largest} bytes and batches of {batches} do not fit a budget of {}",
                shared.account.total()
            ),
        )
        .advice(format!(
            "take .budget(Budget::mebibytes({})) or more, smaller batches or less .prefetch()",
            needed.div_ceil(1 << 20)
        )));
    }
    Ok(())
}

impl From<&Dataset> for LoaderBuilder {
    fn from(dataset: &Dataset) -> Self {
        dataset.loader()
    }
}
