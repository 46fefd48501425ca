//! Converts row by row: from any source to any format that the writer supports.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use serde_json::json;

use super::destination;
use super::pictures::Pictures;
use super::source::From;
use super::supply::{Shards, Supply};
use super::{ConvertArgs, Listed, folder, hash_objects, hex, pick_images, plural, size, work};
use crate::cli::blocks;
use crate::cli::terminal::{Mark, Terminal, Unit};
use crate::cli::{Failure, Verdict};
use crate::dataset::{Format, TfRecord};
use crate::engine::Budget;
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Missing, Shape, arrow_schema};
use crate::source::Decoded;
use crate::source::open::{Index, Opened, Wanted, doubt, open_listed};
use crate::source::tfrecord::stored_columns;
use crate::writer::{Output, Skipped, Writer};

/// Parses `OLD=NEW`.
pub(super) fn parse_rename(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        // A column may have no name.
        Some((old, new)) if !new.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => Err("write OLD=NEW".into()),
    }
}

/// What is reported at the end in addition to what was written.
struct Found {
    from: From,
    source: String,
    /// Whether JSON Lines strings that are data URIs were read as their bytes.
    data_uris: bool,
    classes: usize,
    ignored: u64,
    links: usize,
    /// Remarks on the shards, such as columns that no tensor can hold.
    notes: Vec<String>,
}

/// Converts images to formats other than TFRecord.
pub(super) fn run_images(
    args: &ConvertArgs,
    dest: &Path,
    mut tree: folder::Tree,
    terminal: &Terminal,
) -> Result<Verdict, Failure> {
    let (images, hash) = pick_images(args, &mut tree, terminal)?;
    let classes = images.labels.classes.len();
    let found = Found {
        from: From::Images,
        source: hex(hash),
        data_uris: false,
        classes,
        ignored: tree.ignored,
        links: tree.links.len(),
        notes: Vec::new(),
    };
    let pictures = Pictures::new(images);
    let columns = pictures.columns().to_vec();
    // They are read in the order that they are mixed in.
    convert(args, dest, &pictures, &columns, None, found, terminal)
}

/// Converts shards to another format, or to another order.
pub(super) fn run_shards(
    args: &ConvertArgs,
    dest: &Path,
    listed: Listed,
    format: Format,
    terminal: &Terminal,
) -> Result<Verdict, Failure> {
    let as_they_are = args.to == Output::TfRecord && !args.needs_rows() && matches!(format, Format::TfRecord(_));
    let format = if as_they_are { TfRecord::new().records().into() } else { format };
    let from = if matches!(format, Format::TfRecord(_)) { From::Tfrecord } else { From::Shards };
    let data_uris = matches!(&format, Format::JsonLines(options) if options.data_uris);
    let source = hex(hash_objects(&listed.objects));
    let picked = |stored: &[Column]| Ok::<_, Error>(pick(args, stored)?.into_iter().map(demanded).collect::<Vec<_>>());
    let (shards, notes, columns) = match &format {
        // The first records tell the columns; opening shards may take reading them through, which is done once.
        Format::TfRecord(options) if !as_they_are => {
            let (store, objects, options) = (listed.found.store.clone(), listed.objects.clone(), options.clone());
            let most = args.max_bytes();
            let stored = async move { stored_columns(&store, &objects, &options, most).await };
            let stored = listed.found.io.wait(stored);
            let columns = picked(&stored.map_err(|e| doubt(&format, e))?)?;
            let (shards, notes) = open(args, &listed, &format, Some(columns.clone()))?;
            (shards, notes, columns)
        }
        _ => {
            let (mut shards, notes) = open(args, &listed, &format, None)?;
            let columns = picked(shards.columns())?;
            // Others need not be read, and what is wrong in them is nobody's concern.
            if columns != shards.columns() || !args.columns.is_empty() {
                (shards, _) = open(args, &listed, &format, Some(columns.clone()))?;
            }
            (shards, notes, columns)
        }
    };
    let found = Found { from, source, data_uris, classes: 0, ignored: 0, links: listed.links, notes };
    convert(args, dest, &shards, &columns, args.shuffle, found, terminal)
}

/// Opens the shards: returns their blocks and columns, and remarks on them.
fn open(
    args: &ConvertArgs,
    listed: &Listed,
    format: &Format,
    columns: Option<Vec<Column>>,
) -> Result<(Shards, Vec<String>)> {
    let is_inferring = columns.is_none();
    let wanted = Wanted {
        patterns: args.srcs().to_vec(),
        columns,
        also: Vec::new(),
        is_seen: true,
        conditions: Vec::new(),
        index: Index::Build,
        index_dir: None,
        min_blocks: 1,
        whole_rows: 0,
        by_rows: false,
        shuffled: false,
        needs_index: Some("converting".into()),
        arrives: false,
        // A shard whose framing is damaged is never left out: nobody knows how many records are lost.
        leave_out: false,
        whole_shards: true,
        // What the first records or the first shard have not is not to be missed, unless it is said what is wanted.
        all_columns: is_inferring || args.columns.is_empty(),
        max_bytes: args.max_bytes(),
    };
    let (store, objects, format) = (listed.found.store.clone(), listed.objects.clone(), format.clone());
    let opening = listed.found.io.wait(open_listed(store, objects, Some(format), wanted))?;
    match opening.opened {
        Opened::Indexed(source) => Ok((Shards { source, io: Arc::clone(&listed.found.io) }, opening.notes)),
        Opened::Arriving(_) => Err(Error::config("the shards have no index").url(args.src())),
    }
}

/// Returns the columns that are written, under the names by which they are read.
fn pick(args: &ConvertArgs, columns: &[Column]) -> Result<Vec<Column>> {
    let find = |name: &String| {
        columns.iter().find(|column| column.name().as_ref() == name).cloned().ok_or_else(|| {
            let names: Vec<&str> = columns.iter().map(|column| column.name().as_ref()).collect();
            Error::config("SRC has no such column")
                .column(name.as_str())
                .advice(format!("take some of: {}", names.join(",")))
        })
    };
    args.rename.iter().try_for_each(|(old, _)| find(old).map(|_| ()))?;
    match args.columns.is_empty() {
        true => Ok(columns.to_vec()),
        false => args.columns.iter().map(find).collect(),
    }
}

/// Returns the column without a default for missing values: no format is written with made-up values. A list that is not stored counts as empty,
/// because writers of tf.Examples leave out empty lists.
fn demanded(column: Column) -> Column {
    if matches!(column.shape(), Shape::Ragged(_)) { column } else { column.or(Missing::Error) }
}

/// Writes the rows of a supply that are still missing, and reports what there is now.
fn convert(
    args: &ConvertArgs,
    dest: &Path,
    supply: &dyn Supply,
    columns: &[Column],
    shuffle: Option<u64>,
    found: Found,
    terminal: &Terminal,
) -> Result<Verdict, Failure> {
    let columns = match found.from {
        From::Images => pick(args, columns)?,
        _ => columns.to_vec(),
    };
    let starts = supply.starts();
    let rows = starts.last().copied().unwrap_or(0);
    if rows == 0 {
        return Err(Error::new(ErrorKind::Schema, "the shards hold no record").url(args.src()).into());
    }
    let names: BTreeMap<&str, &str> = args.rename.iter().map(|(old, new)| (&**old, &**new)).collect();
    let renamed: Vec<Column> =
        columns.iter().map(|c| names.get(c.name().as_ref()).map_or(c.clone(), |new| c.clone().renamed(new))).collect();
    let num_blocks = starts.len() - 1;
    let bytes: u64 = (0..num_blocks).map(|block| supply.block_bytes(block)).sum();
    let builder = builder(args, &found, bytes, shuffle);
    // Nothing is removed for a conversion that cannot begin.
    builder.validate(&renamed)?;
    destination::make_way(dest, args.force)?;
    let mut writer = builder.create(dest, renamed)?;
    work::within(writer.num_left_out(), args.skip_bad)?;
    let (there, from) = (writer.shards_before(), writer.resume_at());
    let (threads, budget) = (args.scheduler().num_threads(), args.budget().bytes() / 4);
    let places: Vec<usize> =
        columns.iter().filter_map(|column| supply.columns().iter().position(|c| c.name() == column.name())).collect();
    let schema = arrow_schema(writer.columns());
    let bar = terminal.progress("convert", rows, Unit::Things);
    bar.inc(from);
    let first = starts.partition_point(|start| *start <= from).saturating_sub(1);
    let worked = blocks::run(supply, first..num_blocks, threads, budget, |block, made| {
        let end = starts[block + 1];
        let numbers = keep(args, &writer, starts[block], from, &made)?;
        let batch = made.rows.project(&places).and_then(|rows| {
            let rows = RecordBatch::try_new(Arc::clone(&schema), rows.columns().to_vec())?;
            if numbers.len() == rows.num_rows() {
                return Ok(rows);
            }
            let mut kept = vec![false; rows.num_rows()];
            numbers.iter().for_each(|number| kept[(number - starts[block]) as usize] = true);
            filter_record_batch(&rows, &BooleanArray::from(kept))
        });
        let batch =
            batch.map_err(|e| Error::new(ErrorKind::Schema, "the rows are not those of the columns").because(e))?;
        writer.write_numbered(&batch, numbers, end)?;
        bar.inc(end - starts[block].max(from));
        Ok(())
    });
    worked?;
    let manifest = writer.finish()?;
    bar.finish_and_clear();

    let shards = manifest.shards.len();
    if terminal.is_json() {
        terminal.print_json(&json!({
            "dest": dest.to_string_lossy(), "from": found.from, "to": args.to, "shards": shards,
            "written": shards as u64 - there, "records": manifest.rows, "bytes": manifest.bytes, "classes": found.classes,
            "ignored": found.ignored, "links": found.links, "skipped": manifest.skipped.len(), "bad": manifest.skipped,
            "notes": found.notes,
        }))?;
        return Ok(Verdict::Good);
    }
    found.notes.iter().for_each(|note| terminal.note(note));
    for left_out in &manifest.skipped {
        terminal.note(format_args!("left out: {}", left_out.message));
    }
    let mut out = terminal.out();
    let what = if args.to == Output::Images { "run" } else { "shard" };
    let headline = terminal.mark(Mark::Good, format_args!("{} of {} records", plural(shards, what), manifest.rows));
    let before = if there > 0 { format!(", {there} of them written before") } else { String::new() };
    let left =
        if manifest.skipped.is_empty() { String::new() } else { format!(", {} left out", manifest.skipped.len()) };
    let classes = if found.classes == 0 { String::new() } else { format!(", {} classes", found.classes) };
    writeln!(out, "{headline} in {}{classes}{left}{before}: {}", size::show(manifest.bytes), dest.display())?;
    out.flush()?;
    Ok(Verdict::Good)
}

/// Returns the numbers of a block's rows that are written: those from `from` on that are not bad.
fn keep(args: &ConvertArgs, writer: &Writer, start: u64, from: u64, made: &Decoded) -> Result<Vec<u64>> {
    let mut bad = made.bad.iter().peekable();
    let mut numbers = Vec::with_capacity(made.rows.num_rows());
    for row in 0..made.rows.num_rows() {
        let number = start + row as u64;
        let error = bad.next_if(|(bad, _)| *bad == row).map(|(_, error)| error);
        if number < from {
            continue;
        }
        let Some(error) = error else {
            numbers.push(number);
            continue;
        };
        let error = match &made.places {
            Some(places) => places.locate(row, error.clone()),
            None => error.clone(),
        };
        if !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Schema | ErrorKind::Panicked) {
            return Err(error);
        }
        if args.skip_bad == 0 || writer.leave_out(Skipped::new(number, &error))? > args.skip_bad {
            let others =
                if error.place().column.is_some() { ", or name the columns without it: --columns" } else { "" };
            let advice = format!("mend or remove it, or leave out up to N of such inputs with --skip-bad N{others}");
            return Err(error.advice(advice));
        }
    }
    Ok(numbers)
}

fn builder(args: &ConvertArgs, found: &Found, bytes: u64, shuffle: Option<u64>) -> crate::writer::WriterBuilder {
    let as_they_are = args.to == Output::TfRecord && !args.needs_rows() && found.from == From::Tfrecord;
    let mut builder = Writer::builder(args.to)
        .name(args.prefix.clone())
        .threads(args.scheduler().num_threads())
        .budget(Budget::of_bytes(args.budget().bytes() / 4 * 3))
        .expected_bytes(bytes)
        .source(found.source.clone())
        .narrow(args.narrow)
        .bloom_filters(args.bloom.clone())
        .text_columns(args.text.clone())
        .payloads(as_they_are)
        .option("from", json!(found.from));
    builder = if args.force { builder.overwrite(true) } else { builder.resume(true) };
    if let Some(codec) = args.compression {
        builder = builder.compression(codec);
    }
    if let Some(level) = args.level {
        builder = builder.level(level);
    }
    if let Some(rows) = args.shard_records {
        builder = builder.rows_per_shard(rows);
    }
    if let Some(bytes) = args.shard_bytes {
        builder = builder.bytes_per_shard(bytes);
    }
    if let Some(seed) = shuffle {
        builder = builder.shuffle(seed);
    }
    if let Some(name) = &args.image_column {
        builder = builder.image_column(name);
    }
    if let Some(name) = &args.label_column {
        builder = builder.label_column(name);
    }
    if found.data_uris {
        builder = builder.option("data_uris", json!(true));
    }
    if found.from == From::Images {
        builder = builder
            .option("resize", json!(args.resize))
            .option("encode", json!(args.encode))
            .option("quality", json!(args.quality))
            .option("shuffle", json!(args.shuffle));
    }
    builder
}

impl ConvertArgs {
    fn budget(&self) -> Budget {
        self.budget.map_or_else(Budget::default, Budget::of_bytes)
    }

    /// Returns the size of the largest record that is accepted.
    fn max_bytes(&self) -> usize {
        usize::try_from(self.budget().bytes() / 2).unwrap_or(usize::MAX)
    }
}
