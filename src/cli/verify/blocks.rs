//! Verifies formats that a source reads in blocks: every block is fetched and decoded.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BadRecord, Decoder, Report, Unread, VerifyArgs, reason};
use crate::cli::advice::with_advice;
use crate::cli::blocks::{self, Blocks};
use crate::cli::opened::{Cells, Columns, Opener, is_damage};
use crate::cli::shards::Shards;
use crate::cli::terminal::{Terminal, Unit};
use crate::dataset::Format;
use crate::engine::Budget;
use crate::engine::io::Io;
use crate::engine::pool::no_panic;
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype};
use crate::source::{Decoded, Source};

/// Verifies shards of any format but TFRecord; also returns the error of the first shard that cannot be read.
pub(super) fn verify(
    args: &VerifyArgs,
    shards: &Shards,
    format: Format,
    terminal: &Terminal,
) -> Result<(Report, Option<Error>)> {
    // Without a folder of indexes: what is verified is what is stored now.
    let opener = Opener::new(format, &args.shards, None, false);
    let parts = opener.parts(&shards.objects);
    let columns = opener.settle(shards, &parts)?;
    let images = columns.as_ref().map_or(Ok(Vec::new()), |columns| images(columns, &args.decode))?;
    let mut found = Found { max_bad: args.max_bad, num_bad: 0, bad: Vec::new(), unread: BTreeMap::new() };
    let mut pass = Pass { sources: Vec::new(), blocks: Vec::new(), io: &shards.io, images };
    for (part, opened) in opener.open_all(shards, parts, columns.as_ref(), terminal)?.into_iter().enumerate() {
        match opened {
            Ok(source) => {
                pass.blocks.extend((0..source.catalog().blocks()).map(|block| (pass.sources.len(), block)));
                pass.sources.push((part, source));
            }
            Err(error) if is_damage(&error) => {
                found.bad(part, 0, BadRecord { reason: with_advice(&error), ..bad(&error, "", 0, None) });
            }
            Err(error) if matches!(error.kind(), ErrorKind::Config | ErrorKind::Memory) => return Err(error),
            Err(error) => _ = found.unread.insert((part, url(&error, "")), error),
        }
    }
    let rows = pass.sources.iter().map(|(_, source)| source.catalog().rows()).sum();
    let bar = terminal.progress("verifying", rows, Unit::Things);
    let (threads, budget) = (shards.threads.max(1), Budget::default().bytes() / 4);
    let mut records = 0;
    blocks::run(&pass, 0..pass.blocks.len(), threads, budget, |number, checked| {
        let (source, block) = pass.blocks[number];
        let (part, source) = &pass.sources[source];
        records += checked.good;
        checked.bad.into_iter().for_each(|entry| found.bad(*part, block + 1, entry));
        if let Some(error) = checked.unread {
            let name = source.catalog().shard_name(source.catalog().shard_of(block));
            found.unread.entry((*part, url(&error, name))).or_insert(error);
        }
        bar.inc(source.catalog().block_rows(block));
        Ok(())
    })?;
    bar.finish_and_clear();
    let Found { num_bad, mut bad, unread, .. } = found;
    bad.sort_by_key(|(place, _)| *place);
    bad.truncate(args.max_bad);
    let report = Report {
        records,
        num_bad,
        truncated: num_bad > bad.iter().map(|(_, entry)| entry.records()).sum(),
        bad: bad.into_iter().map(|(_, entry)| entry).collect(),
        unread: unread.iter().map(|((_, url), error)| Unread { url: url.clone(), reason: error.reason() }).collect(),
        shards: shards.objects.len(),
        bytes: shards.objects.iter().map(|object| object.size).sum(),
        notes: columns.map(|columns| columns.notes).unwrap_or_default(),
    };
    Ok((report, unread.into_values().next()))
}

/// Returns the columns whose images are decoded.
fn images(columns: &Columns, names: &[String]) -> Result<Vec<Column>> {
    let find = |name: &String| {
        let column = columns.asked.iter().find(|column| column.name().as_ref() == name);
        let message = match column {
            Some(column) if column.dtype() == Dtype::Bytes => return Ok(column.clone()),
            Some(column) => format!("holds {} values, no images", column.dtype()),
            None => {
                let names: Vec<_> = columns.stored.iter().map(|column| column.name().as_ref()).collect();
                format!("is not in the shards; these are: {}", names.join(", "))
            }
        };
        Err(Error::config(message).column(name.as_str()))
    };
    names.iter().map(find).collect()
}

fn url(error: &Error, shard: &str) -> String {
    error.place().url.as_deref().unwrap_or(shard).to_owned()
}

fn bad(error: &Error, shard: &str, record: u64, rows: Option<u64>) -> BadRecord {
    let place = error.place();
    let record = place.record.unwrap_or(record);
    BadRecord { url: url(error, shard), record, offset: place.byte_offset, rows, reason: reason(error) }
}

/// What was found, in the order of shards.
struct Found {
    max_bad: usize,
    num_bad: u64,
    bad: Vec<((usize, usize), BadRecord)>,
    unread: BTreeMap<(usize, String), Error>,
}

impl Found {
    /// Records a bad entry in a part: block 0 stands for the whole part, other blocks are counted from 1.
    fn bad(&mut self, part: usize, block: usize, entry: BadRecord) {
        self.num_bad += entry.records();
        // Parts that did not open come first, and blocks in order: the first ones are among those that are kept.
        if self.bad.len() < 2 * self.max_bad.max(1) {
            self.bad.push(((part, block), entry));
        }
    }
}

/// Every block of every shard.
struct Pass<'a> {
    /// The sources, each with the number of its part.
    sources: Vec<(usize, Arc<dyn Source>)>,
    /// For each block: the source, and the block's number in it.
    blocks: Vec<(usize, usize)>,
    io: &'a Io,
    images: Vec<Column>,
}

/// What was found in a block.
#[derive(Default)]
struct Checked {
    good: u64,
    bad: Vec<BadRecord>,
    /// Why it could not be read.
    unread: Option<Error>,
}

impl Blocks for Pass<'_> {
    type Made = Checked;

    fn block_bytes(&self, number: usize) -> u64 {
        let (source, block) = self.blocks[number];
        self.sources[source].1.catalog().block_bytes(block)
    }

    fn make(&self, number: usize) -> Result<Checked> {
        let (source, block) = self.blocks[number];
        let source = &*self.sources[source].1;
        let catalog = source.catalog();
        let (shard, rows) = (catalog.shard_name(catalog.shard_of(block)), catalog.block_rows(block));
        Ok(match no_panic(|| blocks::read(source, self.io, block)) {
            Ok(decoded) => self.rows(decoded, shard, catalog.record_of(block)),
            Err(error) if is_damage(&error) => {
                let entry = bad(&error, shard, catalog.record_of(block), Some(rows));
                Checked { bad: vec![entry], ..Checked::default() }
            }
            Err(error) => Checked { unread: Some(error), ..Checked::default() },
        })
    }
}

impl Pass<'_> {
    /// Finds the bad rows of a block.
    fn rows(&self, decoded: Decoded, shard: &str, first: u64) -> Checked {
        let Decoded { rows, bad: errors, places, .. } = decoded;
        let mut errors: BTreeMap<usize, Error> = errors.into_iter().collect();
        let images: Vec<_> =
            self.images.iter().filter_map(|column| Some((column.name(), Cells::of(&rows, column)?))).collect();
        if !images.is_empty() {
            let mut decoder = Decoder::default();
            for row in 0..rows.num_rows() {
                if !errors.contains_key(&row)
                    && let Err(error) =
                        images.iter().try_for_each(|(name, cells)| decoder.decode(name, &cells.strings(row)))
                {
                    errors.insert(row, error);
                }
            }
        }
        let good = rows.num_rows() as u64 - errors.len() as u64;
        let entry = |(row, error): (usize, Error)| {
            let error = places.as_ref().map_or(error.clone(), |places| places.locate(row, error));
            bad(&error, shard, first + row as u64, None)
        };
        Checked { good, bad: errors.into_iter().map(entry).collect(), unread: None }
    }
}
