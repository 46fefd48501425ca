//! `forebay inspect`: describes what shards hold.

#[cfg(feature = "parquet")]
mod footers;
mod rows;

use std::io::Write;

use serde::Serialize;

use super::count::{Count, IndexArgs, count as count_records};
use super::format::FormatArgs;
use super::look::{ColumnReport, Look};
use super::scan::{End, Outcome, Scan, Visitor};
use super::shards::{ShardArgs, Shards};
use super::terminal::{Mark, Terminal, Unit};
use super::text::{count, size, span};
use super::{Failure, Verdict, read_or_not};
use crate::dataset::Format;
use crate::error::{Error, Result};
use crate::format::example::Kind;
use crate::format::tfrecord::{Check, HEADER_BYTES};
use crate::source::Arrived;

pub(super) const EXAMPLES: &str = "\
Examples:
  forebay inspect 'data/train-*.tfrecord'
  forebay inspect gs://bucket/train/ --look 10000
  forebay inspect 'data/*.parquet'
  forebay inspect photos/ --format images
  forebay inspect data.tfrecord --json | jq '.columns[] | .name, .suggested'";

/// Arguments of `forebay inspect`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct InspectArgs {
    #[command(flatten)]
    shards: ShardArgs,
    #[command(flatten)]
    format: FormatArgs,
    /// Number of records whose columns are examined, spread over the beginnings of shards.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    look: u64,
    /// Look at every record.
    #[arg(long, conflicts_with = "look")]
    all: bool,
    #[command(flatten)]
    index: IndexArgs,
}

/// The JSON output: a contract.
#[derive(Serialize)]
struct Report {
    format: &'static str,
    /// `none`, `gzip`, `zlib`, `zstd`, a codec of Parquet, or `mixed`; null for Arrow IPC, whose buffers are compressed individually.
    compression: Option<&'static str>,
    shards: usize,
    records: u64,
    /// Stored bytes.
    bytes: u64,
    /// Null if it is not known.
    decompressed_bytes: Option<u64>,
    /// `example`, `sequence_example` or `record` (other payloads); for other formats `row`, `sample` or `image`.
    kind: &'static str,
    looked_at: u64,
    columns: Vec<ColumnReport>,
    /// For Parquet only.
    #[serde(flatten)]
    footers: Option<Footers>,
    /// Remarks, such as columns that no tensor can hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// A summary of the footers of Parquet files.
#[derive(Default, Serialize)]
struct Footers {
    row_groups: u64,
    codecs: Vec<&'static str>,
    /// Whether every file has a page index.
    page_index: bool,
    /// The number of files with a page index.
    #[serde(skip)]
    indexed: u64,
    #[serde(skip)]
    decompressed_bytes: u64,
}

impl Footers {
    fn compression(&self) -> Option<&'static str> {
        Some(match self.codecs[..] {
            [] => "none",
            [one] => one,
            _ => "mixed",
        })
    }
}

pub(super) fn run(args: &InspectArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    let shards = args.shards.find()?;
    let format = args.format.of(&shards.objects)?;
    if !matches!(format, Format::TfRecord(_)) {
        let (report, errors) = rows::inspect(args, &shards, format, terminal)?;
        return finish(&report, errors, terminal);
    }
    let counts = count_records(&shards, &args.index.keeper(), terminal)?;
    let quotas = if args.all { None } else { Some(quotas(&records(&counts), args.look)) };
    let (look, mut errors) = look_at(&shards, quotas.as_deref(), terminal)?;
    errors.extend(counts.iter().filter_map(|count| count.damage.clone()));
    errors.extend(look.mixtures());

    let report = Report {
        format: "tfrecord",
        compression: Some(compression(&shards, &counts)),
        shards: counts.len(),
        records: counts.iter().map(|count| count.records).sum(),
        bytes: shards.objects.iter().map(|object| object.size).sum(),
        decompressed_bytes: Some(counts.iter().map(|count| count.bytes).sum()),
        kind: match look.kind() {
            None => "record",
            Some(Kind::Example) => "example",
            Some(Kind::SequenceExample) => "sequence_example",
        },
        looked_at: look.records,
        columns: look.columns(),
        footers: None,
        notes: Vec::new(),
    };
    finish(&report, errors, terminal)
}

/// Prints what was found, and returns how the command ends.
fn finish(report: &Report, mut errors: Vec<Error>, terminal: &Terminal) -> Result<Verdict, Failure> {
    read_or_not(if terminal.is_json() { terminal.print_json(report) } else { print(report, terminal) })?;
    if !terminal.is_json() {
        report.notes.iter().for_each(|note| terminal.note(note));
    }
    // Threads found them in any order, and what counting met was met again.
    errors.sort_by_key(|error| (error.place().url.clone(), error.place().record));
    errors.dedup_by_key(|error| error.to_string());
    errors.iter().for_each(|error| terminal.error(error));
    Ok(if errors.is_empty() { Verdict::Good } else { Verdict::Bad })
}

fn print(report: &Report, terminal: &Terminal) -> Result<(), Failure> {
    let mut out = terminal.out();
    let mut line =
        |name: &str, value: String| writeln!(out, "{}  {value}", terminal.mark(Mark::Bold, format_args!("{name:9}")));
    let compressed = match report.compression {
        None | Some("none") => String::new(),
        Some("mixed") if let Some(footers) = &report.footers => format!(", {}", footers.codecs.join(" and ")),
        Some(compression) => format!(", {compression}"),
    };
    line("format", format!("{}{compressed}", report.format))?;
    line(
        "holds",
        match report.kind {
            "example" => "tf.Example".to_owned(),
            "sequence_example" => "tf.SequenceExample".to_owned(),
            "row" => "rows".to_owned(),
            "sample" => "samples".to_owned(),
            "image" => "images".to_owned(),
            _ if report.records == 0 => "no records".to_owned(),
            _ => "records that are no tf.Example".to_owned(),
        },
    )?;
    line("shards", count(report.shards as u64))?;
    line("records", count(report.records))?;
    if let Some(footers) = &report.footers {
        line("groups", count(footers.row_groups))?;
        let indexed = match footers.indexed {
            0 => "none".to_owned(),
            _ if footers.page_index => "in every file".to_owned(),
            indexed => format!("in {} of {} files", count(indexed), count(report.shards as u64)),
        };
        line("page index", indexed)?;
    }
    let decompressed = match (report.compression, report.decompressed_bytes) {
        (None | Some("none"), _) | (_, None) => String::new(),
        (_, Some(bytes)) => format!(", {} decompressed", size(bytes)),
    };
    line("bytes", format!("{}{decompressed}", size(report.bytes)))?;
    line(
        "looked at",
        if report.looked_at == 1 { "1 record".into() } else { format!("{} records", count(report.looked_at)) },
    )?;
    if !report.columns.is_empty() {
        writeln!(out)?;
        let rows: Vec<_> = report.columns.iter().map(row).collect();
        terminal.table(&["column", "dtype", "present", "values", "bytes", "holds", "declare as"], &rows, &mut out)?;
    }
    out.flush()?;
    Ok(())
}

fn row(column: &ColumnReport) -> Vec<String> {
    let steps = if column.sequence { " steps" } else { "" };
    vec![
        column.name.clone(),
        column.dtype.clone(),
        count(column.present),
        format!("{}{steps}", span(column.min_len, column.max_len)),
        column.min_bytes.zip(column.max_bytes).map(|(least, most)| span(least, most)).unwrap_or_default(),
        column.holds.unwrap_or_default().to_owned(),
        column.suggested.clone().unwrap_or_else(|| "no declaration takes all of them".to_owned()),
    ]
}

/// Returns the compression of all shards that hold anything.
fn compression(shards: &Shards, counts: &[Count]) -> &'static str {
    let full = counts.iter().zip(&shards.objects).filter(|(_, object)| object.size > 0);
    let mut found = full.map(|(count, _)| count.compression);
    let first = found.next().unwrap_or_default();
    if found.all(|compression| compression == first) { first.name() } else { "mixed" }
}

fn records(counts: &[Count]) -> Vec<u64> {
    counts.iter().map(|count| count.records).collect()
}

/// The number of shards whose beginnings are looked at: enough to see differences, few enough to open.
const LOOK_SHARDS: usize = 32;

/// Returns how many records of each shard to look at, so that they add up to `wanted` if there are that many.
fn quotas(counts: &[u64], wanted: u64) -> Vec<u64> {
    let full: Vec<usize> = (0..counts.len()).filter(|&shard| counts[shard] > 0).collect();
    let total: u64 = counts.iter().sum();
    let chosen = if total <= wanted { full.len() } else { full.len().min(LOOK_SHARDS) };
    let mut chosen: Vec<usize> = (0..chosen).map(|i| full[i * full.len() / chosen]).collect();
    // The short ones first: what they lack is left to the others.
    chosen.sort_by_key(|&shard| counts[shard]);
    let (mut quotas, mut left) = (vec![0; counts.len()], wanted);
    for (i, &shard) in chosen.iter().enumerate() {
        quotas[shard] = left.div_ceil((chosen.len() - i) as u64).min(counts[shard]).min(left);
        left -= quotas[shard];
    }
    quotas
}

/// Looks at records, and returns the errors in them.
fn look_at(shards: &Shards, quotas: Option<&[u64]>, terminal: &Terminal) -> Result<(Look, Vec<Error>)> {
    let opened = |shard: usize| quotas.is_none_or(|quotas| quotas[shard] > 0);
    let bytes = (0..shards.objects.len()).filter(|&shard| opened(shard)).map(|shard| shards.objects[shard].size).sum();
    let bar = terminal.progress("looking", bytes, Unit::Bytes);
    let looks = Scan { shards, check: Check::Full, first: quotas, bar: &bar }.run(|| Looker::new(shards));
    bar.finish_and_clear();
    let (mut look, mut errors, mut strangers) = (Look::default(), Vec::new(), None);
    for looker in looks {
        if let Some(error) = looker.unread {
            return Err(error);
        }
        look.merge(looker.look);
        errors.extend(looker.errors);
        strangers = strangers.or(looker.stranger);
    }
    // Where no record is a message, they are something else, and that is no fault.
    errors.extend(strangers.filter(|_| look.messages > 0));
    Ok((look, errors))
}

/// What one thread sees.
struct Looker<'a> {
    shards: &'a Shards,
    look: Look,
    errors: Vec<Error>,
    /// The error of a record that is not a message.
    stranger: Option<Error>,
    unread: Option<Error>,
}

/// The number of errors of single records that are shown; `verify` lists all.
const MOST_ERRORS: usize = 8;

impl<'a> Looker<'a> {
    fn new(shards: &'a Shards) -> Self {
        Self { shards, look: Look::default(), errors: Vec::new(), stranger: None, unread: None }
    }
}

impl Visitor for Looker<'_> {
    fn block(&mut self, block: Arrived) {
        let Arrived { buffer, framed, shard, first_record, offset, .. } = block;
        let url = &self.shards.objects[shard].url;
        let mut bad = framed.bad.into_iter().peekable();
        for (row, range) in framed.payloads.into_iter().enumerate() {
            if let Some((_, error)) = bad.next_if(|(at, _)| *at == row) {
                if self.errors.len() < MOST_ERRORS {
                    self.errors.push(error.url(url.clone()));
                }
                continue;
            }
            let header = offset + range.start.saturating_sub(HEADER_BYTES) as u64;
            if let Err(error) = self.look.add(&buffer[range])
                && self.stranger.is_none()
            {
                let record = first_record + row as u64;
                self.stranger = Some(error.url(url.clone()).record(record).byte_offset(header));
            }
        }
    }

    fn end(&mut self, end: End) {
        match end.outcome {
            Outcome::Unread(error) => _ = self.unread.get_or_insert(error),
            // Counting met it first, and has said so.
            Outcome::Damaged(_) | Outcome::Whole(_) | Outcome::Enough => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_to_look_at_are_spread_and_short_shards_make_up_for_nothing() {
        let spread = quotas;
        assert_eq!(spread(&[100, 3, 0, 100], 103), [50, 3, 0, 50]);
        assert_eq!(spread(&[5, 5], 1000), [5, 5]);
        assert!(spread(&[], 10).is_empty());
        assert_eq!(spread(&[0, 0], 10), [0, 0]);
        assert_eq!(spread(&[9, 9, 9], 2).iter().sum::<u64>(), 2);
        let many = spread(&[10; 1000], 64);
        assert_eq!((many.iter().sum::<u64>(), many.iter().filter(|&&quota| quota > 0).count()), (64, LOOK_SHARDS));
    }
}
