//! Checks that your own pipeline keeps what the library promises, for use in tests.

use std::hash::Hasher;

use arrow::array::{Array, AsArray};
use xxhash_rust::xxh3::Xxh3;

use crate::batch::{Batch, Data};
use crate::engine::Scheduler;
use crate::error::{Error, ErrorKind, Result};
use crate::loader::{Loader, LoaderBuilder};
use crate::plan::State;

/// Batches of an epoch that are checked, for data sets that do not end.
const STEPS: usize = 200;

/// Batches of the next epoch that are checked after the rest of one.
const BEYOND: usize = 3;

/// Checks that a pipeline can be restored after every batch.
///
/// It takes an epoch and a bit of the next and saves the state after every batch (as JSON). It restores each state in a fresh loader and requires the
/// identical tail: samples, order, contents, and the states after them. The restored loaders have other numbers of threads.
///
/// The check covers the first 200 batches of an epoch. Its time grows with the square of their number.
///
/// # Errors
/// Any error of the loaders, and the first difference.
///
/// # Example
/// ```
/// use rand::Rng;
///
/// # use std::sync::Arc;
/// # let values = arrow::array::Int64Array::from_iter_values(0..64);
/// # let dataset = forebay::Dataset::from_columns([("x", Arc::new(values) as _)])?;
/// let dataset = dataset
///     .filter("odd@1", |_, row| Ok(row.get::<i64>("x")? % 2 == 1))
///     .map("noise@1", [forebay::int64("noise")], |context, _, out| out.set("noise", context.rng().random::<i64>()))
///     .batch(8);
/// forebay::testing::restores_everywhere(&dataset)?;
/// # Ok::<(), forebay::Error>(())
/// ```
pub fn restores_everywhere(loader: impl Into<LoaderBuilder>) -> Result<()> {
    let builder = loader.into();
    let mut whole = Seen::default();
    let mut loader = builder.clone().build()?;
    let epoch = loader.next_epoch();
    whole.take(&mut loader, epoch, STEPS)?;
    let steps = whole.batches.len();
    whole.take(&mut loader, epoch + 1, BEYOND)?;
    drop(loader);
    for behind in 0..steps {
        let unusable = |e| Error::new(ErrorKind::Config, "a state cannot be saved and read").because(e);
        let saved = serde_json::to_string(&whole.states[behind]).map_err(unusable)?;
        let state: State = serde_json::from_str(&saved).map_err(unusable)?;
        let mut restored = builder.clone().scheduler(Scheduler::threads(1 + behind % 3)).restore(&state).build()?;
        let mut tail = Seen::default();
        // Where the epoch was seen to its end, the rest of it must end there too.
        let rest = if steps < STEPS { STEPS } else { steps - behind - 1 };
        tail.take(&mut restored, state.epoch, rest)?;
        tail.take(&mut restored, state.epoch + 1, whole.batches.len() - steps)?;
        let wanted = &whole.batches[behind + 1..];
        let at = tail.batches.iter().zip(wanted).position(|(a, b)| a != b);
        let at = at.or((tail.batches.len() != wanted.len()).then_some(tail.batches.len().min(wanted.len())));
        let states = || tail.states.iter().zip(&whole.states[behind + 1..]).position(|(a, b)| !alike(a, b));
        if let Some(at) = at.or_else(states) {
            let say = |seen: Option<&Mark>| seen.map_or("nothing".to_owned(), ToString::to_string);
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "restored behind step {} of epoch {}, batch {at} of the tail is {}, undisturbed it is {}; restored from {}",
                    state.step,
                    state.epoch,
                    say(tail.batches.get(at)),
                    say(wanted.get(at)),
                    saved
                ),
            )
            .advice("functions must depend on their row and context alone"));
        }
    }
    Ok(())
}

/// Whether two states say the same. Where shards are read on from may differ: it depends on what was asked of the store at a time.
fn alike(a: &State, b: &State) -> bool {
    let without = |state: &State| State { read_from: None, ..state.clone() };
    without(a) == without(b)
}

/// Batches that came, and the states after them.
#[derive(Default)]
struct Seen {
    batches: Vec<Mark>,
    states: Vec<State>,
}

impl Seen {
    fn take(&mut self, loader: &mut Loader, epoch: u64, steps: usize) -> Result<()> {
        for batch in loader.epoch(epoch).take(steps.min(STEPS)) {
            let batch = batch?;
            self.batches.push(Mark::of(&batch)?);
            self.states.push(batch.state());
        }
        Ok(())
    }
}

/// What is compared of a batch.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    epoch: u64,
    step: u64,
    samples: Vec<u64>,
    contents: u64,
}

impl Mark {
    fn of(batch: &Batch) -> Result<Self> {
        let contents = digest(batch)?;
        Ok(Self { epoch: batch.epoch(), step: batch.step(), samples: batch.samples().to_vec(), contents })
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { epoch, step, samples, contents } = self;
        write!(f, "epoch {epoch} step {step}, samples {samples:?}, contents {contents:016x}")
    }
}

/// A number that changes with the names, shapes and values of a batch.
fn digest(batch: &Batch) -> Result<u64> {
    let mut hash = Xxh3::new();
    for column in &batch.columns {
        hash.update(column.column.to_string().as_bytes());
        column.shape.iter().for_each(|&extent| hash.write_usize(extent));
        column.lengths.iter().flatten().for_each(|&length| hash.write_i64(length));
        match &column.data {
            Data::Host(buffer) => hash.update(buffer.bytes()),
            #[cfg(feature = "tch")]
            Data::Tensor(tensor) => {
                let mut bytes = vec![0; tensor.numel() * tensor.f_kind().map_or(1, |kind| kind.elt_size_in_bytes())];
                let copied = tensor.f_copy_data_u8(&mut bytes, tensor.numel());
                copied.map_err(|e| Error::new(ErrorKind::Device, "cannot be copied to the host").because(e))?;
                hash.update(&bytes);
            }
            Data::Bytes(array) => digest_strings(array, &mut hash),
            #[cfg(feature = "tch")]
            Data::OnItsWay => unreachable!("batches of a loop have arrived"),
        }
    }
    Ok(hash.finish())
}

/// Byte strings, or lists of them.
fn digest_strings(array: &dyn Array, hash: &mut Xxh3) {
    hash.write_usize(array.len());
    if let Some(strings) = array.as_binary_view_opt() {
        for string in strings.iter().flatten() {
            hash.write_usize(string.len());
            hash.update(string);
        }
    } else if let Some(lists) = array.as_list_opt::<i32>() {
        lists.iter().flatten().for_each(|list| digest_strings(&list, hash));
    } else if let Some(lists) = array.as_fixed_size_list_opt() {
        lists.iter().flatten().for_each(|list| digest_strings(&list, hash));
    }
}
