//! Inspects shards of formats that a source reads in blocks.

use std::sync::Arc;

use futures::{StreamExt, stream};

use super::{Footers, InspectArgs, MOST_ERRORS, Report, quotas};
use crate::cli::blocks::{self, Blocks};
use crate::cli::look::rows::ColumnLook;
use crate::cli::opened::{Cells, Opener, is_damage};
use crate::cli::shards::Shards;
use crate::cli::terminal::{Terminal, Unit};
use crate::dataset::Format;
use crate::engine::Budget;
use crate::engine::io::Io;
use crate::engine::pool::no_panic;
use crate::error::{Error, Result};
use crate::format::packed::Packing;
use crate::schema::Column;
use crate::source::Source;

/// The number of shards whose first bytes are read at the same time.
const LOOKING: usize = 16;

#[cfg_attr(not(feature = "parquet"), allow(unused_mut, reason = "footers are those of Parquet"))]
/// Counts and inspects; returns errors in the data alongside the report.
pub(super) fn inspect(
    args: &InspectArgs,
    shards: &Shards,
    format: Format,
    terminal: &Terminal,
) -> Result<(Report, Vec<Error>)> {
    let opener = Opener::new(format.clone(), &args.shards, args.index.dir(), true);
    let mut parts = opener.parts(&shards.objects);
    let mut errors = Vec::new();
    let mut footers: Option<Footers> = None;
    let mut counts = Vec::new();
    #[cfg(feature = "parquet")]
    if matches!(format, Format::Parquet(_)) {
        let found;
        (found, counts) = super::footers::read(shards, &mut errors, terminal)?;
        // Rows are looked at in some files: the others need not be opened.
        let quotas = quotas(&counts, if args.all { u64::MAX } else { args.look });
        let chosen = |at: usize| quotas[at] > 0 || at == 0;
        parts = parts.into_iter().enumerate().filter(|(at, _)| chosen(*at)).map(|(_, part)| part).collect();
        footers = Some(found);
    }
    let columns = opener.settle(shards, &parts)?;
    let mut pass = Pass { sources: Vec::new(), blocks: Vec::new(), io: &shards.io, columns: Vec::new() };
    for opened in opener.open_all(shards, parts, columns.as_ref(), terminal)? {
        match opened {
            Ok(source) => pass.sources.push(source),
            Err(error) if is_damage(&error) => errors.push(error),
            Err(error) => return Err(error),
        }
    }
    let (stored, notes) = columns.map(|columns| (columns.stored, columns.notes)).unwrap_or_default();
    pass.columns = stored;
    let rows: Vec<u64> = pass.sources.iter().map(|source| source.catalog().rows()).collect();
    let quotas = quotas(&rows, if args.all { u64::MAX } else { args.look });
    for (number, (source, mut left)) in pass.sources.iter().zip(quotas).enumerate() {
        for block in 0..source.catalog().blocks() {
            let wanted = source.catalog().block_rows(block).min(left);
            left -= wanted;
            if wanted > 0 {
                pass.blocks.push((number, block, wanted));
            }
        }
    }
    let bar = terminal.progress("looking", pass.blocks.iter().map(|(.., rows)| rows).sum(), Unit::Things);
    let mut whole = Looked::new(&pass.columns);
    let (threads, budget) = (shards.threads.max(1), Budget::default().bytes() / 4);
    blocks::run(&pass, 0..pass.blocks.len(), threads, budget, |number, looked: Looked| {
        whole.records += looked.records;
        whole.columns.iter_mut().zip(looked.columns).for_each(|(whole, column)| whole.merge(column));
        let left = MOST_ERRORS.saturating_sub(errors.len());
        errors.extend(looked.errors.into_iter().take(left));
        bar.inc(pass.blocks[number].2);
        Ok(())
    })?;
    bar.finish_and_clear();
    if counts.is_empty() {
        counts = rows;
    }
    let report = Report {
        format: format.word(),
        compression: match &footers {
            Some(footers) => footers.compression(),
            None => packing(shards, &format)?,
        },
        shards: shards.objects.len(),
        records: counts.iter().sum(),
        bytes: shards.objects.iter().map(|object| object.size).sum(),
        decompressed_bytes: footers.as_ref().map(|footers| footers.decompressed_bytes),
        kind: match format {
            Format::Tar(_) => "sample",
            Format::Images(_) => "image",
            _ => "row",
        },
        looked_at: whole.records,
        columns: whole.columns.iter().map(|column| column.report(whole.records)).collect(),
        footers,
        notes,
    };
    Ok((report, errors))
}

/// Returns how whole shards are compressed, by their first bytes; `None` if each buffer is compressed individually.
fn packing(shards: &Shards, format: &Format) -> Result<Option<&'static str>> {
    match format {
        Format::ArrowIpc(_) => return Ok(None),
        Format::Images(_) => return Ok(Some("none")),
        _ => {}
    }
    let (store, objects) = (shards.store.clone(), shards.objects.clone());
    let found: Vec<Result<Packing>> = shards.io.wait(async move {
        let read = |object: crate::store::Object| {
            let store = store.clone();
            async move { Ok(Packing::of(&store.read(&object, 0..object.size.min(4)).await?)) }
        };
        Ok(stream::iter(objects).map(read).buffered(LOOKING).collect().await)
    })?;
    let found = found.into_iter().collect::<Result<Vec<_>>>()?;
    let first = found.first().copied().unwrap_or(Packing::Plain);
    Ok(Some(match first {
        _ if found.iter().any(|packing| *packing != first) => "mixed",
        Packing::Plain => "none",
        Packing::Gzip => "gzip",
        Packing::Zstd => "zstd",
    }))
}

/// The blocks that are looked at, and how many rows of each.
struct Pass<'a> {
    sources: Vec<Arc<dyn Source>>,
    blocks: Vec<(usize, usize, u64)>,
    io: &'a Io,
    columns: Vec<Column>,
}

/// What was seen in a block.
struct Looked {
    records: u64,
    columns: Vec<ColumnLook>,
    errors: Vec<Error>,
}

impl Looked {
    fn new(columns: &[Column]) -> Self {
        Self { records: 0, columns: columns.iter().map(ColumnLook::new).collect(), errors: Vec::new() }
    }
}

impl Blocks for Pass<'_> {
    type Made = Looked;

    fn block_bytes(&self, number: usize) -> u64 {
        let (source, block, _) = self.blocks[number];
        self.sources[source].catalog().block_bytes(block)
    }

    fn make(&self, number: usize) -> Result<Looked> {
        let (source, block, wanted) = self.blocks[number];
        let source = &*self.sources[source];
        let mut looked = Looked::new(&self.columns);
        let decoded = match no_panic(|| blocks::read(source, self.io, block)) {
            Ok(decoded) => decoded,
            Err(error) if is_damage(&error) => {
                looked.errors.push(error);
                return Ok(looked);
            }
            Err(error) => return Err(error),
        };
        let wanted = wanted as usize;
        let cells: Vec<_> = self.columns.iter().map(|column| Cells::of(&decoded.rows, column)).collect();
        let mut bad = decoded.bad.into_iter().take_while(|(row, _)| *row < wanted).peekable();
        for row in 0..decoded.rows.num_rows().min(wanted) {
            if let Some((_, error)) = bad.next_if(|(at, _)| *at == row) {
                let places = decoded.places.as_ref();
                looked.errors.push(places.map_or(error.clone(), |places| places.locate(row, error)));
                continue;
            }
            looked.records += 1;
            for (column, cells) in looked.columns.iter_mut().zip(&cells) {
                cells.iter().for_each(|cells| column.add(cells, row));
            }
        }
        Ok(looked)
    }
}
