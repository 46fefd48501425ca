//! What a loader has delivered, in a few sums. Two runs, or a run and its plan, can be compared by them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use super::permutation::mix;
use super::state::{Identity, is_transform};
use crate::error::{Error, ErrorKind, Result};

/// The only version of this format.
const VERSION: u32 = 1;

/// What a loader has delivered to its loop, epoch by epoch, as sums: proof that another run delivered the same.
///
/// Each sum has a term for every sample, modulo 2^128. So the sums of all ranks add up to those of a single rank, and the sums of an interrupted and resumed
/// run add up to those of an uninterrupted one. [`Sums`] says what each sum proves; `docs/order.md` has the formulas.
///
/// It supports serde: as JSON it takes about 250 bytes per epoch, whatever was delivered. `forebay ledger` adds up and compares such files.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// use forebay::{Dataset, Ledger, Scheduler, Shuffle, World};
///
/// # let numbers = arrow::array::Int64Array::from_iter_values(0..1000);
/// let dataset = Dataset::from_columns([("x", Arc::new(numbers) as _)])?.shuffle(Shuffle::buffer(100)).batch(40);
/// let run = |world, scheduler| {
///     let mut loader = dataset.loader().seed(42).world(world).scheduler(scheduler).build()?;
///     loader.epoch(0).try_for_each(|batch| batch.map(drop))?;
///     Ok::<_, forebay::Error>(loader.ledger())
/// };
/// let single = run(World::single(), Scheduler::threads(2))?;
/// let ranks = [run(World::new(0, 2)?, Scheduler::single_threaded())?, run(World::new(1, 2)?, Scheduler::threads(1))?];
/// assert_eq!(single.epoch(0).samples, 1000);
/// assert!(single.compare(&Ledger::sum(&ranks)?).is_empty());
///
/// let difference = &single.compare(&ranks[0])[0];
/// assert_eq!(difference.to_string(), "epoch 0: 1000 samples, and 500 samples");
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ledger {
    /// Version of this format: 1.
    pub version: u32,
    /// A digest of the sources and stages that a [`State`](super::State) names. The URLs may change; names and contents may not.
    #[serde(with = "hex64")]
    pub fingerprint: u64,
    /// The seed of all randomness.
    pub seed: u64,
    /// Logical streams of the plan.
    pub streams: u64,
    /// The sums of each epoch in which something was delivered.
    pub epochs: BTreeMap<u64, Sums>,
}

/// The sums over the samples delivered in an epoch.
///
/// As JSON, sums are 32 hexadecimal digits.
///
/// # Example
/// ```
/// use forebay::plan::Sums;
///
/// let nothing: Sums = serde_json::from_str(&serde_json::to_string(&Sums::default())?)?;
/// assert_eq!((nothing.samples, nothing.ids), (0, 0));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sums {
    /// Samples delivered.
    pub samples: u64,
    /// Bad records left out, as `.on_bad_record()` allows.
    pub left_out: u64,
    /// Σ H₁(sample, pass): equal if the same samples were delivered, each as often.
    #[serde(with = "hex128")]
    pub ids: u128,
    /// Σ H₂(sample, position): equal if each sample was in the same slot of the same step.
    #[serde(with = "hex128")]
    pub order: u128,
    /// Σ H₃(sample, checksum): equal if the samples were read as the same bytes.
    ///
    /// The checksum is that of the stored record if the format has one, and otherwise that of the values that the source gave. It does not cover what functions
    /// make of these. With [`TfRecord::unchecked`](crate::TfRecord::unchecked) the stored checksums are used unverified: damage that happened after writing
    /// then goes unnoticed here as well.
    #[serde(with = "hex128")]
    pub payloads: u128,
    /// Σ H₁(sample, pass) of the bad records that were left out.
    #[serde(with = "hex128")]
    pub left_out_ids: u128,
}

// --- the hash: its derivation is fixed for good, because ledgers are kept -------------------------------------------------

const IDS: u64 = 1;
const ORDER: u64 = 2;
const PAYLOADS: u64 = 3;

/// `2^64` divided by the golden ratio, the increment of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// `H_kind(a, b)`: a bijection of pairs of numbers for each kind, so that different pairs have different terms.
///
/// It is computed three times for every delivered row, so it is two rounds of SplitMix64's finaliser rather than a general hash. The first round is the same
/// for all kinds.
#[inline]
fn hash(kind: u64, a: u64, b: u64) -> u128 {
    let a = mix(a.wrapping_add(STEP));
    let low = mix(a.wrapping_add(STEP.wrapping_mul(kind)) ^ b);
    u128::from(a.rotate_left(32) ^ low) << 64 | u128::from(low)
}

/// The number that stands for a row: its sample id, or, for the later rows that a `flat_map` made of a sample, a number derived from the id.
fn name(id: u64, part: u32) -> u64 {
    if part == 0 { id } else { xxh3_64_with_seed(&u64::from(part).to_le_bytes(), id) }
}

/// The term of a sample in [`Sums::ids`].
pub(crate) fn id_term(id: u64, part: u32, pass: u64) -> u128 {
    hash(IDS, name(id, part), pass)
}

impl Sums {
    /// Adds a delivered row: the given part of sample `id`, drawn in `pass`, at `position` of the epoch, whose record has this checksum.
    #[inline]
    pub(crate) fn deliver(&mut self, id: u64, part: u32, pass: u64, position: u64, checksum: u32) {
        let name = name(id, part);
        self.samples += 1;
        self.ids = self.ids.wrapping_add(hash(IDS, name, pass));
        self.order = self.order.wrapping_add(hash(ORDER, name, position));
        self.payloads = self.payloads.wrapping_add(hash(PAYLOADS, name, u64::from(checksum)));
    }

    /// Adds a bad record that was left out, by its [`id_term`].
    pub(crate) fn leave_out(&mut self, term: u128) {
        self.left_out += 1;
        self.left_out_ids = self.left_out_ids.wrapping_add(term);
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.samples += other.samples;
        self.left_out += other.left_out;
        self.ids = self.ids.wrapping_add(other.ids);
        self.order = self.order.wrapping_add(other.order);
        self.payloads = self.payloads.wrapping_add(other.payloads);
        self.left_out_ids = self.left_out_ids.wrapping_add(other.left_out_ids);
    }
}

impl Ledger {
    /// Makes a ledger as it is before the first batch.
    pub(crate) fn new(identity: &Identity) -> Self {
        let mut digest = Xxh3::new();
        let sources = identity.data.iter().map(|mark| &mark.digest);
        // How samples are made may change where a run goes on; its ledgers still add up.
        let deciding = identity.graph.iter().filter(|mark| !is_transform(mark));
        for mark in sources.chain(deciding) {
            digest.update(mark.as_bytes());
            digest.update(&[0]);
        }
        let Identity { seed, streams, .. } = *identity;
        Self { version: VERSION, fingerprint: digest.digest(), seed, streams, epochs: BTreeMap::new() }
    }

    /// Returns the sums of an epoch; all are zero if none of it was delivered.
    pub fn epoch(&self, epoch: u64) -> Sums {
        self.epochs.get(&epoch).copied().unwrap_or_default()
    }

    pub(crate) fn epoch_mut(&mut self, epoch: u64) -> &mut Sums {
        self.epochs.entry(epoch).or_default()
    }

    /// Adds up the ledgers of all ranks, or of the parts of a resumed run.
    ///
    /// # Errors
    /// An empty list; ledgers whose data set, graph, seed, number of streams or version differs from the first.
    pub fn sum<'a>(ledgers: impl IntoIterator<Item = &'a Ledger>) -> Result<Ledger> {
        let mut ledgers = ledgers.into_iter();
        let mut sum = ledgers.next().ok_or_else(|| Error::config("no ledgers to add up"))?.clone();
        for ledger in ledgers {
            let other = sum.settings_unlike(ledger);
            if !other.is_empty() {
                return Err(Error::config(format!("ledgers of other runs: {}", other.join("; ")))
                    .advice("add up the ledgers of one run's ranks; different runs are compared"));
            }
            for (&epoch, &sums) in &ledger.epochs {
                *sum.epoch_mut(epoch) += sums;
            }
        }
        Ok(sum)
    }

    /// Returns the differences between the runs, by epoch. The list is empty if they delivered the same samples in the same order with the same bytes.
    ///
    /// Only the sums are compared: the same data in shards with other names has another fingerprint, and may still agree.
    pub fn compare(&self, other: &Ledger) -> Vec<Difference> {
        let epochs: std::collections::BTreeSet<u64> = self.epochs.keys().chain(other.epochs.keys()).copied().collect();
        let differences = epochs.into_iter().flat_map(|epoch| {
            let sums = [self.epoch(epoch), other.epoch(epoch)];
            sums[0].unlike(&sums[1]).into_iter().map(move |property| Difference { epoch, property, sums })
        });
        differences.collect()
    }

    /// Returns the differences in the setup of the runs, which explain differences of their sums.
    pub(crate) fn settings_unlike(&self, other: &Ledger) -> Vec<String> {
        let mut unlike = Vec::new();
        let mut note = |what: &str, a: String, b: String| {
            if a != b {
                unlike.push(format!("{what} {a} and {b}"));
            }
        };
        let hex = |fingerprint: u64| format!("{fingerprint:016x}");
        note("version", self.version.to_string(), other.version.to_string());
        note("data set or graph", hex(self.fingerprint), hex(other.fingerprint));
        note("seed", self.seed.to_string(), other.seed.to_string());
        note("streams", self.streams.to_string(), other.streams.to_string());
        unlike
    }

    /// Checks that this release knows what the ledger's fields mean.
    ///
    /// # Errors
    /// A ledger of another version.
    pub(crate) fn check_version(&self) -> Result<()> {
        if self.version == VERSION {
            return Ok(());
        }
        let message = format!("a ledger of version {}; this release knows version {VERSION}", self.version);
        Err(Error::new(ErrorKind::NotFound, message).advice("compare ledgers with the release that wrote them"))
    }
}

impl Sums {
    fn unlike(&self, other: &Sums) -> Vec<Property> {
        let same_samples = (self.samples, self.ids) == (other.samples, other.ids);
        let same_left_out = (self.left_out, self.left_out_ids) == (other.left_out, other.left_out_ids);
        // Where the samples are others, so are their order and bytes: that says nothing new.
        [
            (Property::Samples, !same_samples),
            (Property::Order, same_samples && self.order != other.order),
            (Property::Payloads, same_samples && self.payloads != other.payloads),
            (Property::LeftOut, !same_left_out),
        ]
        .into_iter()
        .filter_map(|(property, differs)| differs.then_some(property))
        .collect()
    }
}

/// The properties in which two runs can differ.
///
/// # Example
/// ```
/// assert_eq!(serde_json::to_string(&forebay::plan::Property::LeftOut).expect("a word"), "\"left_out\"");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Property {
    /// A sample is missing, came twice, or came in place of another.
    Samples,
    /// The same samples came in a different order.
    Order,
    /// The same samples were read as different bytes.
    Payloads,
    /// Different bad records were left out.
    LeftOut,
}

/// One difference between two runs.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// use forebay::{Dataset, plan::Property};
///
/// # let numbers = arrow::array::Int64Array::from_iter_values(0..100);
/// # let dataset = Dataset::from_columns([("x", Arc::new(numbers) as _)])?.shuffle(forebay::Shuffle::buffer(50)).batch(10);
/// let ledger = |seed| {
///     let mut loader = dataset.loader().seed(seed).build()?;
///     loader.epoch(0).try_for_each(|batch| batch.map(drop))?;
///     Ok::<_, forebay::Error>(loader.ledger())
/// };
/// let differences = ledger(1)?.compare(&ledger(2)?);
/// assert_eq!((differences.len(), differences[0].property), (1, Property::Order));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The epoch in which they differ.
    pub epoch: u64,
    /// What differs.
    pub property: Property,
    /// The sums of the two runs.
    pub sums: [Sums; 2],
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.sums;
        write!(f, "epoch {}: ", self.epoch)?;
        match self.property {
            Property::Samples if a.samples != b.samples => {
                write!(f, "{} samples, and {} samples", a.samples, b.samples)
            }
            Property::Samples => {
                write!(
                    f,
                    "{} samples each, but not the same: one is missing and another came twice or instead",
                    a.samples
                )
            }
            Property::Order => write!(f, "the same {} samples, in another order", a.samples),
            Property::Payloads => write!(f, "the same {} samples, read as other bytes", a.samples),
            Property::LeftOut => {
                write!(f, "{} bad records were left out, and {}", a.left_out, b.left_out)?;
                if a.left_out == b.left_out { f.write_str(" others") } else { Ok(()) }
            }
        }
    }
}

/// Stores numbers as hexadecimal digits, because many readers of JSON keep only 53 bits.
macro_rules! hex {
    ($module:ident, $number:ty, $digits:literal) => {
        mod $module {
            use serde::{Deserialize, Deserializer, Serializer};

            pub(super) fn serialize<S: Serializer>(number: &$number, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(&format_args!(concat!("{:0", $digits, "x}"), number))
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<$number, D::Error> {
                let text = String::deserialize(from)?;
                <$number>::from_str_radix(&text, 16)
                    .map_err(|e| serde::de::Error::custom(format_args!("{text:?} is no hexadecimal number: {e}")))
            }
        }
    };
}

hex!(hex64, u64, "16");
hex!(hex128, u128, "32");

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of a small run: (id, part, pass, position, checksum).
    type Rows = Vec<(u64, u32, u64, u64, u32)>;

    fn rows() -> Rows {
        (0..50).map(|i| (i * 7 % 50, 0, 3, i, i as u32 * 0x9e37)).collect()
    }

    fn ledger(rows: &Rows) -> Ledger {
        let mut ledger = Ledger { version: 1, fingerprint: 1, seed: 2, streams: 8, epochs: BTreeMap::new() };
        rows.iter().for_each(|&(id, part, pass, at, sum)| ledger.epoch_mut(3).deliver(id, part, pass, at, sum));
        ledger
    }

    fn properties(changed: &Rows) -> Vec<Property> {
        ledger(&rows()).compare(&ledger(changed)).iter().map(|difference| difference.property).collect()
    }

    #[test]
    fn the_hash_is_pinned() {
        let terms = [id_term(7, 0, 3), id_term(7, 2, 3), hash(ORDER, 7, 3), hash(PAYLOADS, 7, 3)];
        assert_eq!(terms.map(|term| format!("{term:032x}")), PINNED);
    }

    const PINNED: [&str; 4] = [
        "ac0824750a9e9624f53a29a2695577c0",
        "014c5423c7e4f6d7da3d2832fb37ba1d",
        "313f810e28d612fd680d8cd94b1df319",
        "19c45f4adc9ed04f40f6529dbf5531ab",
    ];

    #[test]
    fn sums_do_not_depend_on_how_rows_are_grouped() {
        let all = rows();
        let parts: Vec<Ledger> = all.chunks(13).rev().map(|rows| ledger(&rows.to_vec())).collect();
        assert_eq!(Ledger::sum(&parts).unwrap(), ledger(&all));
    }

    #[test]
    fn each_change_is_named_by_what_it_changed() {
        let change = |f: fn(&mut Rows)| {
            let mut changed = rows();
            f(&mut changed);
            properties(&changed)
        };
        assert_eq!(change(|_| {}), []);
        assert_eq!(change(|rows| _ = rows.pop()), [Property::Samples]);
        assert_eq!(change(|rows| rows.push(rows[0])), [Property::Samples]);
        assert_eq!(change(|rows| rows[4] = rows[5]), [Property::Samples]);
        assert_eq!(change(|rows| rows[4].2 |= 1 << 63), [Property::Samples], "another occurrence");
        assert_eq!(change(|rows| rows[4].1 = 1), [Property::Samples], "another row of the same record");
        let swap = |rows: &mut Rows| (rows[4].3, rows[5].3) = (rows[5].3, rows[4].3);
        assert_eq!(change(swap), [Property::Order]);
        assert_eq!(change(|rows| rows[4].4 ^= 1), [Property::Payloads]);
        assert_eq!(
            change(|rows| {
                rows[4].4 ^= 1;
                rows[5].3 = 99;
            }),
            [Property::Order, Property::Payloads]
        );
        // Checksums that two samples exchange are other bytes, though the set of checksums is the same.
        assert_eq!(change(|rows| (rows[4].4, rows[5].4) = (rows[5].4, rows[4].4)), [Property::Payloads]);
    }

    #[test]
    fn what_was_left_out_is_told_apart() {
        let (mut a, mut b) = (ledger(&rows()), ledger(&rows()));
        a.epoch_mut(3).leave_out(id_term(60, 0, 3));
        b.epoch_mut(3).leave_out(id_term(61, 0, 3));
        let differences = a.compare(&b);
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].to_string(), "epoch 3: 1 bad records were left out, and 1 others");
        assert_eq!(a.compare(&ledger(&rows()))[0].to_string(), "epoch 3: 1 bad records were left out, and 0");
    }

    #[test]
    fn ledgers_of_different_runs_do_not_add_up() {
        let one = ledger(&rows());
        for (other, words) in [
            (Ledger { seed: 9, ..one.clone() }, "seed 2 and 9"),
            (Ledger { fingerprint: 9, ..one.clone() }, "data set or graph 0000000000000001 and 0000000000000009"),
            (Ledger { streams: 4, ..one.clone() }, "streams 8 and 4"),
            (Ledger { version: 2, ..one.clone() }, "version 1 and 2"),
        ] {
            let error = Ledger::sum([&one, &other]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(Ledger::sum([]).is_err());
    }

    #[test]
    fn json_keeps_every_bit() {
        let mut full = ledger(&rows());
        full.fingerprint = u64::MAX;
        full.epoch_mut(0).ids = u128::MAX - 1;
        let text = serde_json::to_string(&full).unwrap();
        assert!(text.contains("\"fffffffffffffffffffffffffffffffe\""), "{text}");
        assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), full);
        let spoiled = text.replace("fffffffffffffffffffffffffffffffe", "fffg");
        assert!(serde_json::from_str::<Ledger>(&spoiled).unwrap_err().to_string().contains("no hexadecimal"));
    }
}
