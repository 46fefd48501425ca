//! Converts images and records to TFRecord shard by shard; each thread turns inputs into whole files.

use std::io::Write as _;
use std::path::Path;

use serde_json::json;
use sha2::Sha256;

use super::destination::{Destination, Identity, MAX_SHARDS};
use super::pictures::columns_of;
use super::plan::{self, Cut};
use super::records::Records;
use super::source::From;
use super::work::{self, Input, Settings};
use super::{ConvertArgs, Listed, folder, hash_objects, hex, pick_images, plural, size};
use crate::cli::terminal::{Mark, Terminal, Unit};
use crate::cli::{Failure, Verdict};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, bytes};
use crate::source::tfrecord::RECORD;

/// The work to be done, once SRC has been examined.
pub(super) struct Job {
    input: Box<dyn Input>,
    sizes: Vec<Cut>,
    hash: Sha256,
    classes: Vec<String>,
    columns: Vec<Column>,
    threads: usize,
    ignored: u64,
    /// The number of links that were not followed.
    links: usize,
}

/// Writes the missing shards, and reports what there is now.
pub(super) fn run(
    args: &ConvertArgs,
    dest: &Path,
    from: From,
    job: Job,
    terminal: &Terminal,
) -> Result<Verdict, Failure> {
    if job.sizes.len() > MAX_SHARDS {
        let error = Error::config(format!("{} shards, which is more than {MAX_SHARDS}", job.sizes.len()));
        return Err(error.advice("make them larger: --shard-bytes, --shard-records").into());
    }
    let names = |shard: usize| plan::name(&args.prefix, shard, job.sizes.len());
    let shards: Vec<(String, Cut)> = job.sizes.iter().cloned().enumerate().map(|(i, cut)| (names(i), cut)).collect();
    let identity = Identity {
        inputs: hex(job.hash),
        options: options(args, from),
        prefix: args.prefix.clone(),
        num_shards: shards.len(),
    };
    let destination = Destination::open(dest, identity, &job.classes, job.columns, args.force)?;
    let there = destination.done().len();
    let settings = Settings {
        compression: args.tfrecord_compression(),
        level: args.level.unwrap_or(6),
        threads: job.threads,
        max_skipped: args.skip_bad,
    };
    let bar = terminal.progress("convert", 0, Unit::Bytes);
    let worked = work::run(&*job.input, &shards, &destination, &settings, &bar);
    bar.finish_and_clear();
    worked?;

    let done = destination.done();
    let skipped: Vec<_> = done.iter().flat_map(|shard| &shard.skipped).collect();
    let records: u64 = done.iter().map(|shard| shard.records).sum();
    let bytes: u64 = done.iter().map(|shard| shard.bytes).sum();
    if terminal.is_json() {
        terminal.print_json(&json!({
            "dest": dest.to_string_lossy(), "from": from, "shards": shards.len(), "written": shards.len() - there,
            "records": records, "bytes": bytes, "classes": job.classes.len(), "ignored": job.ignored, "links": job.links,
            "skipped": skipped.len(), "bad": skipped,
        }))?;
        return Ok(Verdict::Good);
    }
    for left_out in &skipped {
        terminal.note(format_args!("left out: {}", left_out.message));
    }
    let mut out = terminal.out();
    let headline = terminal.mark(Mark::Good, format_args!("{} of {records} records", plural(shards.len(), "shard")));
    let before = if there > 0 { format!(", {there} of them written before") } else { String::new() };
    let left = if skipped.is_empty() { String::new() } else { format!(", {} left out", skipped.len()) };
    let classes = if job.classes.is_empty() { String::new() } else { format!(", {} classes", job.classes.len()) };
    writeln!(out, "{headline} in {}{classes}{left}{before}: {}", size::show(bytes), dest.display())?;
    out.flush()?;
    Ok(Verdict::Good)
}

/// Returns the options that affect the shards.
fn options(args: &ConvertArgs, from: From) -> serde_json::Map<String, serde_json::Value> {
    let limits = args.limits();
    let options = json!({
        "from": from, "shard_bytes": limits.bytes, "shard_records": limits.records, "resize": args.resize,
        "compression": args.tfrecord_compression(), "level": args.level, "encode": args.encode,
        "quality": args.quality, "shuffle": args.shuffle,
    });
    match options {
        serde_json::Value::Object(options) => options,
        _ => unreachable!("an object stands above"),
    }
}

/// Prepares a job for images, cut into shards by the sizes of their files.
pub(super) fn images(args: &ConvertArgs, mut tree: folder::Tree, terminal: &Terminal) -> Result<Job> {
    let (images, hash) = pick_images(args, &mut tree, terminal)?;
    let (classes, columns) = (images.labels.classes.clone(), columns_of(&images));
    let sizes = plan::cut(images.sizes(), args.limits());
    let threads = args.scheduler().num_threads();
    let (ignored, links) = (tree.ignored, tree.links.len());
    Ok(Job { input: Box::new(images), sizes, hash, classes, columns, threads, ignored, links })
}

/// Prepares a job for records, cut into shards by their lengths.
pub(super) fn records(args: &ConvertArgs, listed: Listed, terminal: &Terminal) -> Result<Job> {
    let Listed { found, objects, links } = listed;
    let hash = hash_objects(&objects);
    let bar = terminal.progress("index", objects.len() as u64, Unit::Things);
    let records = Records::open(&found, objects, &bar);
    bar.finish_and_clear();
    let records = records.map_err(|e| match (e.kind(), e.place().record, e.place().byte_offset) {
        // Not even its first bytes are those of a shard.
        (ErrorKind::Corrupt, Some(0), Some(0)) => e.advice(
            "state the format that the shards have with --format; if it is none, name the shards alone, by a pattern such as 'folder/*.tfrecord'; images are converted from \
             their folder",
        ),
        _ => e,
    })?;
    let sizes = plan::cut(records.sizes(), args.limits());
    if sizes.is_empty() {
        return Err(Error::new(ErrorKind::Schema, "the shards hold no record").url(args.src()));
    }
    // Records go over as they are, whatever they hold.
    let (threads, classes, columns) = (found.threads, Vec::new(), vec![bytes(RECORD)]);
    Ok(Job { input: Box::new(records), sizes, hash, classes, columns, threads, ignored: 0, links })
}
