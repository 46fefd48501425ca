//! `forebay index`: writes and checks the indexes of shards.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use futures::future::join_all;
use serde::Serialize;

use super::advice::with_advice;
use super::count::IndexArgs;
use super::format::FormatArgs;
use super::scan::{End, Outcome, Scan, Visitor};
use super::shards::{ShardArgs, Shards};
use super::terminal::{Mark, Terminal, Unit};
use super::text::count;
use super::{Failure, Verdict, read_or_not};
use crate::dataset::{Format, TfRecord};
use crate::error::{Error, Result};
use crate::format::tfrecord::{Check, ShardIndex};
use crate::source::Arrived;
use crate::source::open::Index;
use crate::source::tfrecord::{Keeper, Kept, Outdated, beside, index_of};

pub(super) const EXAMPLES: &str = "\
Examples:
  forebay index gs://bucket/train/
  forebay index 'data/*.tfrecord' --index-dir /shared/index
  forebay index 'data/*.tfrecord' --check --deep

Exit codes: 0 every shard has its index, 1 a shard is damaged (or, with --check, an index missing or stale), 2 usage, 3 a shard
could not be read, or an index not written.";

/// Arguments of `forebay index`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct IndexingArgs {
    #[command(flatten)]
    shards: ShardArgs,
    #[command(flatten)]
    index: IndexArgs,
    #[command(flatten)]
    format: FormatArgs,
    /// Write nothing; list the indexes that are missing or stale.
    #[arg(long)]
    check: bool,
    /// Read the shards and compare their indexes, instead of trusting size, etag and time.
    #[arg(long)]
    deep: bool,
}

/// The JSON output: a contract.
#[derive(Serialize)]
struct Report {
    shards: usize,
    /// Records of the shards whose index is valid or has been written.
    records: u64,
    /// Indexes that have been written.
    written: usize,
    /// Indexes that existed and are valid.
    valid: usize,
    /// Indexes that were missing or stale.
    stale: Vec<Stale>,
    /// Shards that cannot be indexed.
    bad: Vec<Stale>,
    dir: String,
    /// Why there is nothing to do, if that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Serialize)]
struct Stale {
    url: String,
    reason: String,
    /// Whether the shard is shorter than it was when it was indexed.
    #[serde(skip)]
    may_be_cut: bool,
}

pub(super) fn run(args: &IndexingArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    let Some(dir) = args.index.dir() else {
        let error = Error::config("there is no folder for indexes");
        return Err(error.advice("name one with --index-dir, or set FOREBAY_INDEX_DIR").into());
    };
    let shards = args.shards.find()?;
    let format = args.format.of(&shards.objects)?;
    if !matches!(format, Format::TfRecord(_)) {
        return needless(&format, &shards, dir.display().to_string(), terminal);
    }
    let keeper = Keeper::new(Some(dir.clone()));
    let mut found = Indexing { states: Vec::new(), failed: None };
    for object in &shards.objects {
        // One beside the shard may tell of a copy that was cut off.
        let witness = || Some(beside(&shards.store.local_path(object)?, object));
        found.states.push(match keeper.look(object) {
            Kept::Index(index) => State::Valid(index.len() as u64),
            Kept::Stale(reason @ Outdated::Shortened(_)) => State::Stale(reason),
            kept => match (kept, witness()) {
                (_, Some(Kept::Stale(reason @ Outdated::Shortened(_)))) | (Kept::Stale(reason), _) => {
                    State::Stale(reason)
                }
                _ => State::Stale(Outdated::Other("there is none".to_owned())),
            },
        });
    }
    let found = if args.check && !args.deep { found } else { found.build(&shards, &keeper, args, terminal)? };

    let url = |shard: usize| shards.objects[shard].url.to_string();
    let pick = |reason: fn(&State) -> Option<(String, bool)>| {
        let states = found.states.iter().enumerate();
        let stale = states.filter_map(|(shard, state)| {
            let (reason, may_be_cut) = reason(state)?;
            Some(Stale { url: url(shard), reason, may_be_cut })
        });
        stale.collect()
    };
    let report = Report {
        shards: shards.objects.len(),
        records: found.states.iter().map(State::records).sum(),
        written: found.states.iter().filter(|state| matches!(state, State::Written(..))).count(),
        valid: found.states.iter().filter(|state| matches!(state, State::Valid(_))).count(),
        stale: pick(|state| match state {
            State::Stale(reason) if reason.shortened().is_some() => Some((
                format!("{reason}; copy it again, or, if it was rewritten, index it anew, without --check"),
                true,
            )),
            State::Written(_, reason) if reason.shortened().is_some() => {
                Some((format!("{reason}; copy it again, unless it was rewritten: its index was built anew"), true))
            }
            State::Stale(reason) | State::Written(_, reason) => Some((reason.to_string(), false)),
            _ => None,
        }),
        bad: pick(|state| if let State::Damaged(reason) = state { Some((reason.clone(), false)) } else { None }),
        dir: dir.display().to_string(),
        note: None,
    };
    read_or_not(if terminal.is_json() { terminal.print_json(&report) } else { print(&report, args, terminal) })?;
    let bad = !report.bad.is_empty() || args.check && !report.stale.is_empty();
    match found.failed {
        Some(error) => Err(Failure::Error(error)),
        None => Ok(if bad { Verdict::Bad } else { Verdict::Good }),
    }
}

/// Explains why there is nothing to do for shards of a format other than TFRecord.
fn needless(format: &Format, shards: &Shards, dir: String, terminal: &Terminal) -> Result<Verdict, Failure> {
    let shards = shards.objects.len();
    let why = match format {
        Format::Parquet(_) | Format::ArrowIpc(_) => {
            "no index is needed, the shards say themselves where their rows are"
        }
        Format::Images(_) => "no index is needed, each file is a record",
        _ => {
            "nothing is written or checked here: a loader that is built finds where rows start, and keeps it in the folder of indexes"
        }
    };
    if terminal.is_json() {
        let (stale, bad, note) = (Vec::new(), Vec::new(), Some(why.to_owned()));
        terminal.print_json(&Report { shards, records: 0, written: 0, valid: 0, stale, bad, dir, note })?;
        return Ok(Verdict::Good);
    }
    let mut out = terminal.out();
    writeln!(out, "{} shards of {}: {why}", count(shards as u64), format.name())?;
    out.flush()?;
    Ok(Verdict::Good)
}

fn print(report: &Report, args: &IndexingArgs, terminal: &Terminal) -> Result<(), Failure> {
    let mut out = terminal.out();
    for Stale { url, reason, .. } in report.stale.iter().filter(|stale| args.check || stale.may_be_cut) {
        writeln!(out, "{}: index: {reason}", terminal.mark(Mark::Bold, url))?;
    }
    for Stale { url, reason, .. } in &report.bad {
        writeln!(out, "{}: {reason}", terminal.mark(Mark::Bold, url))?;
    }
    let stale = match report.stale.len() {
        0 if args.check => terminal.mark(Mark::Good, "none missing or stale"),
        stale if args.check => terminal.mark(Mark::Bad, format_args!("{stale} missing or stale")),
        _ => format!("{} written", count(report.written as u64)),
    };
    let bad = match report.bad.len() {
        0 => String::new(),
        bad => format!(", {}", terminal.mark(Mark::Bad, format_args!("{bad} damaged"))),
    };
    let mark = if report.valid == report.shards { Mark::Good } else { Mark::Plain };
    let valid = terminal.mark(mark, format_args!("{} valid", count(report.valid as u64)));
    let (shards, records) = (count(report.shards as u64), count(report.records));
    writeln!(out, "{shards} shards, {records} records: {valid}, {stale}{bad}, in {}", report.dir)?;
    out.flush()?;
    Ok(())
}

/// The state of a shard's index.
enum State {
    /// It existed; holds the number of records.
    Valid(u64),
    /// It is missing or does not belong to this shard; holds the reason.
    Stale(Outdated),
    /// It has been written; holds the number of records and the reason why it was outdated.
    Written(u64, Outdated),
    /// The shard is damaged.
    Damaged(String),
}

impl State {
    fn records(&self) -> u64 {
        if let State::Valid(records) | State::Written(records, _) = self { *records } else { 0 }
    }
}

/// The number of files that are hopped through at the same time: a disk or a network file system serves several at once.
const HOPS: usize = 16;

struct Indexing {
    states: Vec<State>,
    /// The error of the first shard that cannot be read, or index that cannot be written.
    failed: Option<Error>,
}

impl Indexing {
    /// Builds the missing indexes, or all indexes if they are to be compared.
    fn build(mut self, shards: &Shards, keeper: &Keeper, args: &IndexingArgs, terminal: &Terminal) -> Result<Self> {
        let wanted = |state: &State| args.deep || matches!(state, State::Stale(_));
        let mut missing: Vec<u64> = self.states.iter().map(|state| if wanted(state) { u64::MAX } else { 0 }).collect();
        // Headers of plain files are hopped over, which reads next to nothing.
        let open: Vec<usize> = (0..missing.len()).filter(|&shard| missing[shard] > 0).collect();
        let bar = terminal.progress("hopping", open.len() as u64, Unit::Things);
        for some in open.chunks(HOPS) {
            // A keeper without a folder, so that neither the stored index is taken nor the new one stored.
            let find = |shard: usize| {
                let (store, object) = (shards.store.clone(), shards.objects[shard].clone());
                index_of(store, Keeper::new(None), object, TfRecord::new(), Index::Auto)
            };
            let hops = join_all(some.iter().map(|&shard| find(shard)));
            let hopped = shards.io.wait(async move { Ok(hops.await) })?;
            for (&shard, hopped) in some.iter().zip(hopped) {
                match hopped {
                    Ok(Some(index)) => self.settle(shards, keeper, args, shard, &index),
                    Ok(None) => continue,
                    Err(error) => _ = self.failed.get_or_insert(error),
                }
                missing[shard] = 0;
            }
            bar.inc(some.len() as u64);
        }
        bar.finish_and_clear();
        if missing.iter().all(|&wanted| wanted == 0) {
            return Ok(self);
        }
        let sizes =
            shards.objects.iter().zip(&missing).filter(|(_, wanted)| **wanted > 0).map(|(object, _)| object.size);
        let bar = terminal.progress("indexing", sizes.sum(), Unit::Bytes);
        let scan = Scan { shards, check: Check::LengthsOnly, first: Some(&missing), bar: &bar };
        let shared = Shared { shards, keeper, args, found: Mutex::new(self) };
        scan.run(|| &shared);
        bar.finish_and_clear();
        Ok(shared.found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records the state of a shard's index, given the index that it should have, and stores the latter if that is wanted.
    fn settle(&mut self, shards: &Shards, keeper: &Keeper, args: &IndexingArgs, shard: usize, fresh: &ShardIndex) {
        let object = &shards.objects[shard];
        let records = fresh.len() as u64;
        let reason = match &self.states[shard] {
            State::Stale(reason) => reason.clone(),
            _ => match keeper.look(object) {
                Kept::Index(kept) if same_records(&kept, fresh) => return,
                _ => Outdated::Other("its records are not those of the shard".to_owned()),
            },
        };
        self.states[shard] = State::Stale(reason.clone());
        if args.check {
            return;
        }
        match keeper.try_save(object, fresh) {
            Ok(()) => self.states[shard] = State::Written(records, reason),
            Err(error) => _ = self.failed.get_or_insert(error.url(object.url.clone())),
        }
    }
}

fn same_records(a: &ShardIndex, b: &ShardIndex) -> bool {
    a.len() == b.len() && a.compression() == b.compression() && (0..a.len()).all(|i| a.length(i) == b.length(i))
}

/// What threads share while they read.
struct Shared<'a> {
    shards: &'a Shards,
    keeper: &'a Keeper,
    args: &'a IndexingArgs,
    found: Mutex<Indexing>,
}

impl Visitor for &Shared<'_> {
    fn block(&mut self, _: Arrived) {}

    fn end(&mut self, end: End) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match end.outcome {
            Outcome::Whole(index) => found.settle(self.shards, self.keeper, self.args, end.shard, &index),
            Outcome::Enough => {}
            Outcome::Damaged(damage) => {
                let mut reason = if damage.record == 0 { with_advice(&damage.error) } else { damage.error.reason() };
                if let State::Stale(Outdated::Shortened(shortened)) = found.states[end.shard] {
                    reason = format!("{}; {shortened}; copy it again", damage.error.reason());
                }
                let (record, offset) = (damage.record, damage.offset);
                found.states[end.shard] = State::Damaged(format!("record {record}, byte {offset}: {reason}"));
            }
            Outcome::Unread(error) => _ = found.failed.get_or_insert(error),
        }
    }
}
