//! What is done about bad records: how many may be left out, counted in the order of delivery.

use std::sync::Mutex;

use super::run::EvaluatedChunk;
use crate::error::{Error, ErrorKind};
use crate::plan::state::Progress;
use crate::telemetry::Skipped;

/// How many bad records an epoch may leave out before it ends with an error.
///
/// A bad record is one that fails by itself: a damaged payload, a column that is missing or of another type or length, an image that cannot be
/// decoded, a row for which a function of the graph returns an error. Failing reads, panics and failing functions of whole batches end the epoch as
/// always.
///
/// A sample that is left out leaves its place empty: its batch is shorter by one, and all other samples stay where they are, on every rank. After a
/// filter or flat_map, batches are filled up instead. If this leaves one of several ranks or devices without any sample, its epoch ends with an
/// error. The others do not learn of it: as after any error of one rank, the group has to be ended (`torchrun` does so when a process exits).
///
/// A shard whose framing is damaged is one bad record, counted where the damage begins, however many records come after it: they cannot be found.
///
/// Each bad record is listed in [`Report::skipped`](crate::Report::skipped).
///
/// # Example
/// ```
/// use forebay::{Dataset, Error, ErrorKind, Skip};
///
/// # let numbers = arrow::array::Int64Array::from_iter_values(0..100);
/// # let dataset = Dataset::from_columns([("x", std::sync::Arc::new(numbers) as _)])?;
/// let dataset = dataset
///     .map("check", [], |_, row, _| match row.get::<i64>("x")? {
///         17 => Err(Error::new(ErrorKind::Transform, "unlucky")),
///         _ => Ok(()),
///     })
///     .batch(10);
/// let mut loader = dataset.loader().on_bad_record(Skip::up_to(1)).build()?;
/// let lengths = loader.epoch(0).map(|batch| batch.map(|batch| batch.len())).collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(lengths, [10, 9, 10, 10, 10, 10, 10, 10, 10, 10]);
/// assert!(loader.report().skipped[0].error.to_string().contains("unlucky"));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Skip {
    limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    UpTo(u64),
    Rate(f64),
}

impl Skip {
    /// Allows at most `records` bad records in an epoch (on each rank).
    pub fn up_to(records: u64) -> Self {
        Self { limit: Limit::UpTo(records) }
    }

    /// Allows at most this share of an epoch's records to be bad (on each rank), 0 to 1.
    ///
    /// If the number of records is not known beforehand, the share is taken of the records seen so far, which count as at least 1,000. It is checked
    /// again at the epoch's end.
    pub fn rate(rate: f64) -> Self {
        Self { limit: Limit::Rate(rate) }
    }

    /// What is wrong with the setting.
    pub(super) fn mistake(self) -> Option<Error> {
        match self.limit {
            Limit::Rate(rate) if !(0.0..=1.0).contains(&rate) => Some(
                Error::config(format!("Skip::rate({rate}) is no share"))
                    .advice("take a number from 0 to 1, or Skip::up_to(n)"),
            ),
            _ => None,
        }
    }
}

/// Whether an error is that of a single record, which can be left out.
pub(super) fn is_bad_record(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Schema | ErrorKind::Transform)
}

/// What was drawn for one batch: the number of samples, and those that were left out, each with its term in the ledger.
#[derive(Debug, Default)]
pub(crate) struct Drawn {
    pub(super) samples: u64,
    pub(super) skipped: Vec<(Error, u128)>,
}

impl Drawn {
    /// Adds what a chunk was made of.
    pub(super) fn add(&mut self, chunk: &EvaluatedChunk) {
        self.samples += chunk.positions;
        let errors = chunk.evaluated.skipped.iter().map(|skipped| skipped.1.clone());
        self.skipped.extend(errors.zip(chunk.left_out.iter().copied()));
    }
}

/// Samples that are counted as seen before a rate is compared with them.
const AT_LEAST: u64 = 1000;

/// Counts an epoch's samples in the order of delivery.
pub(crate) struct Tally {
    limit: Limit,
    /// Samples of an epoch on this rank, if known.
    expected: Option<u64>,
    epoch: u64,
    samples: u64,
    skipped: u64,
    last: Option<Error>,
}

impl Tally {
    /// Continues counting where a run begins. `batch`: samples of a rank's batch, where rows are positions.
    pub(super) fn new(skip: Skip, expected: Option<u64>, start: &Progress, batch: u64) -> Self {
        let samples = match &start.cursors[..] {
            [] => start.step.saturating_mul(batch),
            cursors => cursors.iter().map(|cursor| cursor.position).sum(),
        };
        Self { limit: skip.limit, expected, epoch: start.epoch, samples, skipped: start.left_out, last: None }
    }

    /// The error of a run that begins after the last record that may be left out.
    pub(super) fn exceeded_before(&self) -> Option<Error> {
        self.hold_against(self.expected.unwrap_or(self.samples.max(AT_LEAST))).err()
    }

    /// How many of `seen` samples may be left out, and the setting that says so.
    fn allowed(&self, seen: u64) -> (u64, String) {
        match self.limit {
            Limit::UpTo(records) => (records, format!("Skip::up_to({records})")),
            Limit::Rate(rate) => ((rate * seen as f64) as u64, format!("Skip::rate({rate})")),
        }
    }

    /// Samples of this epoch that were left out.
    pub(super) fn left_out(&self) -> u64 {
        self.skipped
    }

    /// Adds the next batch. Returns what is to be listed when the loop takes the batch, and an error if more records than allowed have been left out.
    pub(super) fn add(&mut self, drawn: Drawn) -> (Vec<Skipped>, Result<(), Error>) {
        self.samples += drawn.samples;
        let (mut listed, mut held) = (Vec::with_capacity(drawn.skipped.len()), Ok(()));
        // All of them, also behind the first that is too many: the batch is delivered, and a run may go on behind it.
        for (error, term) in drawn.skipped {
            self.skipped += 1;
            self.last = Some(error.clone());
            listed.push(Skipped::new(self.epoch, error, term));
            held = held.and_then(|()| self.hold_against(self.expected.unwrap_or(self.samples.max(AT_LEAST))));
        }
        (listed, held)
    }

    /// Ends the epoch and begins the next one.
    ///
    /// # Errors
    /// The share left out was larger than allowed.
    pub(super) fn end_epoch(&mut self) -> Result<(), Error> {
        self.hold_against(self.samples)?;
        (self.epoch, self.samples, self.skipped) = (self.epoch + 1, 0, 0);
        Ok(())
    }

    fn hold_against(&self, seen: u64) -> Result<(), Error> {
        let (allowed, said) = self.allowed(seen);
        let (skipped, epoch) = (self.skipped, self.epoch);
        match &self.last {
            _ if skipped <= allowed => Ok(()),
            Some(last) => Err(last.clone().advice(format!(
                "this is bad record {skipped} of epoch {epoch}, more than {said} allows; \
                     forebay verify lists what is wrong with the shards"
            ))),
            None => Err(Error::corrupt(format!(
                "bad record {skipped} of epoch {epoch}, more than {said} allows, was met before the state was saved"
            ))
            .advice("allow more, or mend the shards: forebay verify lists what is wrong")),
        }
    }
}

/// The records that a loader has left out.
#[derive(Default)]
pub(crate) struct Log {
    records: Mutex<(Vec<Skipped>, u64)>,
}

/// Records that are listed one by one; more are only counted.
const LISTED: usize = 10_000;

impl Log {
    pub(super) fn extend(&self, skipped: Vec<Skipped>) {
        let mut records = self.records.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        records.1 += skipped.len() as u64;
        let room = LISTED - records.0.len();
        records.0.extend(skipped.into_iter().take(room));
    }

    /// The first of them, and how many there were.
    pub(super) fn listed(&self) -> (Vec<Skipped>, u64) {
        self.records.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}
