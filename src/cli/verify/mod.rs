//! `forebay verify`: checks every checksum, every record, and on request every image.

mod blocks;

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrow::array::{AsArray, RecordBatch};
use serde::Serialize;

use super::advice::with_advice;
use super::format::FormatArgs;
use super::look::Look;
use super::scan::{End, Outcome, Scan, Visitor};
use super::shards::{ShardArgs, Shards};
use super::terminal::{Mark, Terminal, Unit};
use super::text::{count, size};
use super::walk::{Step, Walk};
use super::{Failure, Verdict, read_or_not};
use crate::dataset::Format;
use crate::error::{Error, ErrorKind, Result};
use crate::format::example::{Parser, either};
use crate::format::tfrecord::{Check, HEADER_BYTES};
use crate::loader::default_index_dir;
use crate::random::Key;
use crate::schema::Dtype;
use crate::source::Arrived;
use crate::source::tfrecord::{Keeper, Kept, Outdated, beside};
use crate::store::Object;
use crate::transform::image::{Image, Scratch};

pub(super) const EXAMPLES: &str = "\
Examples:
  forebay verify 'data/train-*.tfrecord'
  forebay verify gs://bucket/train/ --decode image/encoded
  forebay verify 'data/*.parquet' --json
  forebay verify photos/ --format images --decode image
  forebay verify data.tfrecord.gz --records --json | jq '.bad[].record'

Exit codes: 0 every record is good, 1 some are bad, 2 usage, 3 a shard could not be read.";

/// Arguments of `forebay verify`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    shards: ShardArgs,
    #[command(flatten)]
    format: FormatArgs,
    /// TFRecord: the records are not tf.Examples; verify only framing and checksums.
    #[arg(long)]
    records: bool,
    /// Decode every image of this column; may be given several times.
    #[arg(long, value_name = "COLUMN", conflicts_with = "records")]
    decode: Vec<String>,
    /// List at most this many bad records; all are counted.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_bad: usize,
}

/// The JSON output: a contract.
#[derive(Serialize)]
struct Report {
    /// Good records.
    records: u64,
    bad: Vec<BadRecord>,
    /// The number of bad records, including those left out of `bad` and those in blocks that cannot be decoded.
    num_bad: u64,
    /// Whether bad records were left out of `bad`.
    truncated: bool,
    /// Shards that could not be read, or not to their end; that are missing, or differ in size from the folder's manifest; that are shorter than when
    /// they were indexed.
    unread: Vec<Unread>,
    shards: usize,
    /// Stored bytes.
    bytes: u64,
    /// Remarks, such as columns that no tensor can hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Serialize)]
struct BadRecord {
    url: String,
    record: u64,
    /// Where the record starts in the (decompressed) shard; `None` if records are not stored one after another.
    offset: Option<u64>,
    /// How many records were lost with it, if a whole block cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<u64>,
    reason: String,
}

impl BadRecord {
    /// Returns how many records the entry stands for.
    fn records(&self) -> u64 {
        self.rows.unwrap_or(1)
    }
}

#[derive(Serialize)]
struct Unread {
    url: String,
    reason: String,
}

pub(super) fn run(args: &VerifyArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    let shards = args.shards.find()?;
    let mut missed = args.shards.missed(&shards)?;
    let format = args.format.of(&shards.objects)?;
    if !matches!(format, Format::TfRecord(_)) {
        if args.records {
            return Err(Error::config(format!("--records is for TFRecord, and the shards are {}", format.name()))
                .advice("leave it out")
                .into());
        }
        let (report, unread) = blocks::verify(args, &shards, format, terminal)?;
        return finish(report, missed, unread, terminal);
    }
    missed.extend(shortened(&shards));
    let parse = if args.records { None } else { Parse::settle(&shards, &args.decode)? };
    let bytes = shards.objects.iter().map(|object| object.size).sum();
    let bar = terminal.progress("verifying", bytes, Unit::Bytes);
    let findings = Findings { max_bad: args.max_bad, ..Findings::default() };
    let make = || Checker { parse: parse.as_ref(), findings: &findings, good: 0, decoder: Decoder::default() };
    let checkers = Scan { shards: &shards, check: Check::Full, first: None, bar: &bar }.run(make);
    let records = checkers.iter().map(|checker| checker.good).sum();
    bar.finish_and_clear();

    let found = findings.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let url = |shard: usize| shards.objects[shard].url.to_string();
    let bad = |((shard, record), (offset, reason))| BadRecord {
        url: url(shard),
        record,
        offset: Some(offset),
        rows: None,
        reason,
    };
    let unread = found.unread.iter().map(|(&shard, error)| Unread { url: url(shard), reason: error.reason() });
    let report = Report {
        records,
        num_bad: found.num_bad,
        truncated: found.num_bad > found.bad.len() as u64,
        unread: unread.collect(),
        bad: found.bad.into_iter().map(bad).collect(),
        shards: shards.objects.len(),
        bytes,
        notes: Vec::new(),
    };
    finish(report, missed, found.unread.into_values().next(), terminal)
}

/// Returns errors for shards that are shorter than when they were indexed: all the records that they still hold may be good.
fn shortened(shards: &Shards) -> Vec<Error> {
    let keeper = Keeper::new(default_index_dir());
    let of = |object: &Object| {
        let beside = shards.store.local_path(object).map(|path| beside(&path, object));
        let stored = [Some(keeper.look(object)), beside].map(|kept| kept.unwrap_or(Kept::Nothing));
        // One that holds says that nothing is lost.
        let holds = stored.iter().any(|kept| matches!(kept, Kept::Index(_)));
        let shortened = |kept| if let Kept::Stale(why) = kept { Outdated::shortened(&why) } else { None };
        let shortened = stored.into_iter().find_map(shortened).filter(|_| !holds)?;
        let advice = format!("copy it again, or, if it was rewritten, index it anew: forebay index '{}'", object.url);
        Some(Error::corrupt(shortened.to_string()).url(object.url.clone()).advice(advice))
    };
    shards.objects.iter().filter_map(of).collect()
}

/// Prints what was found, and returns how the command ends. Shards that were `missed` are incomplete, whatever could be read of them.
fn finish(
    mut report: Report,
    mut missed: Vec<Error>,
    unread: Option<Error>,
    terminal: &Terminal,
) -> Result<Verdict, Failure> {
    let mut urls: HashSet<String> = report.unread.iter().map(|unread| unread.url.clone()).collect();
    let url = |error: &Error| error.place().url.as_deref().unwrap_or_default().to_owned();
    missed.retain(|error| urls.insert(url(error)));
    report.unread.extend(missed.iter().map(|error| Unread { url: url(error), reason: error.reason() }));
    if !terminal.is_json() {
        report.notes.iter().for_each(|note| terminal.note(note));
    }
    read_or_not(if terminal.is_json() { terminal.print_json(&report) } else { print(&report, terminal) })?;
    // What is not there cannot be read; what is too short is bad data.
    match unread.or_else(|| missed.into_iter().min_by_key(|error| error.kind() == ErrorKind::Corrupt)) {
        Some(error) => Err(Failure::Error(error)),
        None if report.num_bad > 0 => Ok(Verdict::Bad),
        None => Ok(Verdict::Good),
    }
}

/// Prints one line per bad record, and a summary.
fn print(report: &Report, terminal: &Terminal) -> Result<(), Failure> {
    let mut out = terminal.out();
    for BadRecord { url, record, offset, rows, reason } in &report.bad {
        let more =
            rows.filter(|rows| *rows > 1).map(|rows| format!(" and {} after it", count(rows - 1))).unwrap_or_default();
        let offset = offset.map(|offset| format!(", byte {offset}")).unwrap_or_default();
        let place = terminal.mark(Mark::Bold, format_args!("{url}, record {record}{more}{offset}"));
        writeln!(out, "{place}: {reason}")?;
    }
    let left_out = report.num_bad - report.bad.iter().map(BadRecord::records).sum::<u64>();
    if left_out > 0 {
        writeln!(out, "{} more are not listed: raise --max-bad to see them", count(left_out))?;
    }
    let bad = match report.num_bad {
        0 => terminal.mark(Mark::Good, "none bad"),
        bad => terminal.mark(Mark::Bad, format_args!("{} bad", count(bad))),
    };
    let shards =
        if report.shards == 1 { "1 shard".to_owned() } else { format!("{} shards", count(report.shards as u64)) };
    let unread = match report.unread.len() {
        0 => String::new(),
        unread => {
            format!("; {}", terminal.mark(Mark::Bad, format_args!("{unread} missing, cut off or not to be read")))
        }
    };
    writeln!(out, "{} records good, {bad}, in {shards} of {}{unread}", count(report.records), size(report.bytes))?;
    out.flush()?;
    Ok(())
}

/// How records are parsed.
struct Parse {
    parser: Parser,
    /// Whether some feature lists are beyond the parser; then records are also read as messages.
    beyond: bool,
    /// Columns whose images are decoded.
    decode: Vec<String>,
}

/// The number of records from which columns are inferred, as in the loader.
const FIRST_RECORDS: u64 = 256;
/// The size of the pieces in which they are read.
const FIRST_BYTES: u64 = 1 << 20;

impl Parse {
    /// Looks at the first records; returns `None` if there are none.
    fn settle(shards: &Shards, decode: &[String]) -> Result<Option<Self>> {
        let look = first_look(shards);
        if look.records == 0 {
            return Ok(None);
        }
        if look.messages == 0 && look.strangers() > 0 {
            return Err(Error::new(ErrorKind::Schema, "the records are no tf.Examples")
                .url(shards.objects[0].url.clone())
                .advice("verify framing and checksums alone with --records"));
        }
        let columns = look.columns();
        for name in decode {
            let dtype = columns.iter().find(|column| column.name == *name).map(|column| column.dtype.as_str());
            let message = match dtype {
                Some(dtype) if dtype == Dtype::Bytes.to_string() => continue,
                Some(dtype) => format!("holds {dtype} values, no images"),
                None => {
                    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
                    format!("is not in the first records; these are: {}", names.join(", "))
                }
            };
            return Err(Error::config(message).column(name.as_str()));
        }
        let (parser, beyond) = look.lenient_parser()?;
        Ok(Some(Self { parser, beyond, decode: decode.to_vec() }))
    }
}

/// The side of decoded images, which nobody looks at.
const SIDE: u32 = 8;

/// Looks at the first records of the first shard that has good ones. All errors are left to the pass over all records.
fn first_look(shards: &Shards) -> Look {
    let mut look = Look::default();
    for shard in 0..shards.objects.len() {
        let mut walk = Walk::new(shards, shard, Check::Full, FIRST_BYTES);
        while let Ok(Some(Step::Block(Arrived { buffer, framed, .. }))) = walk.next(|_| {}) {
            let bad = |row: usize| framed.bad.iter().any(|(bad, _)| *bad == row);
            for (_, range) in framed.payloads.iter().enumerate().filter(|(row, _)| !bad(*row)) {
                if look.records < FIRST_RECORDS {
                    // What is no message is seen by its absence.
                    _ = look.add(&buffer[range.clone()]);
                }
            }
            if look.records == FIRST_RECORDS {
                return look;
            }
        }
        if look.messages > 0 {
            return look;
        }
    }
    look
}

/// What all threads found.
#[derive(Default)]
struct Findings {
    max_bad: usize,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    /// The first bad records, by shard and record, with their offset and reason.
    bad: BTreeMap<(usize, u64), (u64, String)>,
    num_bad: u64,
    unread: BTreeMap<usize, Error>,
}

impl Findings {
    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the first bad records, in whatever order they come.
    fn bad(&self, shard: usize, record: u64, offset: u64, reason: String) {
        let mut found = self.lock();
        found.num_bad += 1;
        found.bad.insert((shard, record), (offset, reason));
        if found.bad.len() > self.max_bad {
            found.bad.pop_last();
        }
    }
}

/// The work of one thread.
struct Checker<'a> {
    parse: Option<&'a Parse>,
    findings: &'a Findings,
    good: u64,
    decoder: Decoder,
}

impl Visitor for Checker<'_> {
    fn block(&mut self, block: Arrived) {
        let Arrived { buffer, framed, shard, first_record, offset, .. } = block;
        let bad = match self.parse {
            None => framed.bad,
            Some(parse) => {
                let parsed = parse.parser.parse_except(&buffer, &framed.payloads, framed.bad);
                let mut bad: BTreeMap<usize, Error> = parsed.bad.into_iter().collect();
                for (row, range) in framed.payloads.iter().enumerate() {
                    if bad.contains_key(&row) {
                        continue;
                    }
                    let message = if parse.beyond { either(&buffer[range.clone()]).map(|_| ()) } else { Ok(()) };
                    if let Err(error) = message.and_then(|()| self.decode(parse, &parsed.rows, row)) {
                        bad.insert(row, error);
                    }
                }
                bad.into_iter().collect()
            }
        };
        self.good += (framed.payloads.len() - bad.len()) as u64;
        for (row, error) in bad {
            let header = offset + framed.payloads[row].start.saturating_sub(HEADER_BYTES) as u64;
            self.findings.bad(shard, first_record + row as u64, header, reason(&error));
        }
    }

    fn end(&mut self, end: End) {
        match end.outcome {
            Outcome::Whole(_) | Outcome::Enough => {}
            Outcome::Damaged(damage) => {
                let reason = match damage.record {
                    0 => with_advice(&damage.error),
                    _ => format!("{}; the rest of the shard cannot be found", reason(&damage.error)),
                };
                self.findings.bad(end.shard, damage.record, damage.offset, reason);
            }
            Outcome::Unread(error) => _ = self.findings.lock().unread.insert(end.shard, error),
        }
    }
}

impl Checker<'_> {
    /// Decodes the images of a row.
    fn decode(&mut self, parse: &Parse, rows: &RecordBatch, row: usize) -> Result<()> {
        for name in &parse.decode {
            let lists = rows.column_by_name(name).and_then(|column| column.as_list_opt::<i32>());
            let Some(images) = lists.map(|lists| lists.value(row)) else { continue };
            let Some(images) = images.as_binary_view_opt() else { continue };
            let images: Vec<&[u8]> = images.iter().flatten().collect();
            self.decoder.decode(name, &images)?;
        }
        Ok(())
    }
}

/// Decodes images to see whether they can be decoded, on one thread.
struct Decoder {
    image: Image,
    scratch: Scratch,
}

impl Default for Decoder {
    fn default() -> Self {
        // An antialiased resize of everything needs every pixel, so no part of the image is left undecoded.
        let image = Image::rgb().resize(SIDE, SIDE).scaled_decoding(false);
        Self { image, scratch: Scratch::default() }
    }
}

impl Decoder {
    /// Decodes the images of a value.
    fn decode(&mut self, name: &str, images: &[&[u8]]) -> Result<()> {
        let mut pixels = [0; (3 * SIDE * SIDE) as usize];
        for (number, encoded) in images.iter().enumerate() {
            let decode = || self.image.decode_into(encoded, Key::new(0), &mut pixels, &mut self.scratch);
            let decoded = catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
                self.scratch = Scratch::default();
                Err(Error::new(ErrorKind::Panicked, "the decoder panicked"))
            });
            let which = if images.len() > 1 { format!("{name}, value {number}") } else { name.to_owned() };
            decoded.map_err(|error| error.column(which))?;
        }
        Ok(())
    }
}

/// Returns what is wrong, in words that follow a record's place.
fn reason(error: &Error) -> String {
    let reason = error.reason();
    match &error.place().column {
        Some(column) if !reason.starts_with("no column") => format!("column {column}: {reason}"),
        _ => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_records_are_kept_in_whatever_order_they_come() {
        let findings = Findings { max_bad: 3, ..Findings::default() };
        for (shard, record) in [(1, 5), (0, 9), (1, 2), (0, 1), (2, 0)] {
            findings.bad(shard, record, 0, String::new());
        }
        let found = findings.found.into_inner().unwrap();
        assert_eq!(found.bad.into_keys().collect::<Vec<_>>(), [(0, 1), (0, 9), (1, 2)]);
        assert_eq!(found.num_bad, 5);
    }
}
