//! `forebay convert`: folders of images, or TFRecord shards, to TFRecord shards of a chosen size.
//!
//! 1. What SRC holds is found out (`source`): images and their labels (`folder`, `labels`), or shards and where their records are
//!    (`records`).
//! 2. Inputs are cut into shards by their stored sizes (`plan`), so every shard's name and content is known before the first.
//! 3. The folder is made ready (`destination`): locked, compared with what an earlier run left, and refused where that is no part
//!    of the same conversion.
//! 4. Threads write the shards that are missing (`work`), each whole or not at all (`part`).
//!
//! An interrupted run needs no handler: it leaves hidden parts, which the next run takes away.

mod destination;
mod folder;
mod images;
mod labels;
mod picture;
mod plan;
mod records;
mod size;
mod source;
#[cfg(test)]
mod tests;
mod work;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::shards::ShardArgs;
use super::terminal::{Mark, Terminal, Unit};
use super::{Failure, Verdict};
use crate::error::{Error, ErrorKind, Result};
use crate::format::tfrecord::Compression;
use destination::{Destination, Identity, MAX_SHARDS};
use images::Images;
use picture::{Encoding, Storing};
use plan::{Cut, Limits};
use records::Records;
use source::From;
use work::{Input, Settings};

const EXAMPLES: &str = "\
Examples:
  forebay convert photos/ shards/                 labels are the folders' names: photos/dog/1.jpg
  forebay convert photos/ shards/ --labels labels.csv --resize 256 --encode jpeg --shuffle 42
  forebay convert 'gs://bucket/train-*.gz' shards/ --compression none --shard-bytes 512MiB

Run again, it continues where it was interrupted. A shard appears under its name when it is whole.

Images become tf.Examples with image/encoded, image/format, image/height, image/width, image/filename (from SRC on), and
image/class/label and image/class/text where there are labels; _labels.txt lists the classes.

Exit codes: 0 good, 1 the data is bad, 2 usage, 3 it could not be read or written.";

/// How shards are cut unless stated.
const SHARD_BYTES: u64 = 256 << 20;

/// The arguments of `forebay convert`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ConvertArgs {
    /// A folder of images; or TFRecord shards: a path or URL, a folder, a pattern.
    src: String,
    /// The local folder to write shards to.
    dest: String,
    /// What SRC holds [default: images if it is a local folder with images in it].
    #[arg(long, value_enum, value_name = "WHAT")]
    from: Option<From>,
    /// Bytes of a shard at most, counted in inputs as they are stored (images before they are resized or encoded, records
    /// decompressed) [default: 256MiB, unless --shard-records is given].
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    shard_bytes: Option<u64>,
    /// Records of a shard at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    shard_records: Option<u64>,
    /// How shards are compressed as a whole. Readers can start in the middle only of those that are not.
    #[arg(
        long, value_name = "HOW", default_value = "none",
        value_parser = PossibleValuesParser::new(["none", "gzip", "zlib"]).map(|name| Compression::from_name(&name).unwrap_or_default()),
    )]
    compression: Compression,
    /// What the names of shards begin with: PREFIX-00000-of-00012.tfrecord.
    #[arg(long, default_value = "data", value_parser = plan::parse_prefix)]
    prefix: String,
    /// Images: a CSV file that names files (from SRC on) in its first column and labels in its second. Only images that it names
    /// are converted.
    #[arg(long, value_name = "CSV")]
    labels: Option<PathBuf>,
    /// Images: shrink larger ones until the shorter side has so many pixels. They keep their format where that is JPEG or PNG,
    /// and become PNG else.
    #[arg(long, value_name = "SHORT_SIDE", value_parser = clap::value_parser!(u32).range(1..=16384))]
    resize: Option<u32>,
    /// Images: store them in this format. Those that have it (and the size) are copied byte for byte, unless --quality is given.
    /// What is encoded is RGB or grey, 8 bits, and turned upright.
    #[arg(long, value_enum, value_name = "FORMAT")]
    encode: Option<Encoding>,
    /// Images: the quality of JPEGs that are encoded, 1 to 100 [default: 90].
    #[arg(long, value_name = "Q", value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: Option<u8>,
    /// Images: mix them in an order of this seed, so that each shard has images of all classes. Otherwise in the order of paths.
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,
    /// Images: decode each one, to find damage that headers do not show.
    #[arg(long)]
    verify: bool,
    /// Leave out up to N images or records that are bad, and list them. A shard whose framing is damaged is never left out: nobody
    /// knows how many records are lost.
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_bad: u64,
    /// Start over where DEST holds another conversion, whose shards are removed, or files in the way, which are replaced.
    #[arg(long)]
    force: bool,
    /// Threads that work at the same time [default: one for each core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

/// What is to be done, once SRC was looked through.
struct Job {
    input: Box<dyn Input>,
    sizes: Vec<Cut>,
    hash: Sha256,
    classes: Vec<String>,
    threads: usize,
    ignored: u64,
    /// Links that were not followed.
    links: usize,
}

/// Converts.
pub(super) fn run(args: &ConvertArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    let dest = source::local_path(&args.dest).ok_or_else(|| {
        Error::config("DEST is a local folder: a shard has to appear whole, without being held in memory")
            .url(args.dest.clone())
            .advice("convert into a local folder, and copy that with the store's own tool")
    })?;
    let dest = source::real(&dest)?;
    source::keep_apart(&args.src, &dest)?;
    let (from, tree) = args.decide(&dest)?;
    args.check(from)?;
    let job = match tree {
        Some(tree) => args.images(tree, terminal)?,
        None => args.records(&dest, terminal)?,
    };
    if job.sizes.len() > MAX_SHARDS {
        let error = Error::config(format!("{} shards, which is more than {MAX_SHARDS}", job.sizes.len()));
        return Err(error.advice("make them larger: --shard-bytes, --shard-records").into());
    }
    let names = |shard: usize| plan::name(&args.prefix, shard, job.sizes.len());
    let shards: Vec<(String, Cut)> = job.sizes.iter().cloned().enumerate().map(|(i, cut)| (names(i), cut)).collect();
    let identity = Identity {
        inputs: job.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        options: args.options(from),
        prefix: args.prefix.clone(),
        num_shards: shards.len(),
    };
    let destination = Destination::open(&dest, identity, &job.classes, args.force)?;
    let there = destination.done().len();
    let settings = Settings { compression: args.compression, threads: job.threads, max_skipped: args.skip_bad };
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

impl ConvertArgs {
    /// What SRC holds, and the images if it is a folder of them.
    fn decide(&self, dest: &Path) -> Result<(From, Option<folder::Tree>)> {
        let folder = source::local_path(&self.src).filter(|path| path.is_dir());
        match (self.from, folder) {
            (Some(From::Tfrecord), _) | (None, None) => Ok((From::Tfrecord, None)),
            (Some(From::Images), None) => Err(Error::new(ErrorKind::NotFound, "no local folder")
                .url(self.src.clone())
                .advice("images are converted from a folder of this machine")),
            (stated, Some(folder)) => {
                let tree = folder::walk(&folder, dest)?;
                match stated {
                    None if tree.images.is_empty() => Ok((From::Tfrecord, None)),
                    None if tree.shards > 0 => {
                        let (images, shards) = (tree.images.len(), tree.shards as usize);
                        let both = format!("{} and {}", plural(images, "image"), plural(shards, "TFRecord shard"));
                        Err(Error::config(format!("SRC holds {both}"))
                            .url(self.src.clone())
                            .advice("state which of them is to be converted: --from images or --from tfrecord"))
                    }
                    _ => Ok((From::Images, Some(tree))),
                }
            }
        }
    }

    /// Refuses options that would do nothing.
    fn check(&self, from: From) -> Result<()> {
        let given = [
            ("--labels", self.labels.is_some()),
            ("--resize", self.resize.is_some()),
            ("--encode", self.encode.is_some()),
            ("--quality", self.quality.is_some()),
            ("--shuffle", self.shuffle.is_some()),
            ("--verify", self.verify),
        ];
        if let (From::Tfrecord, Some((option, _))) = (from, given.into_iter().find(|(_, given)| *given)) {
            return Err(Error::config(format!("{option} is for a folder of images, and SRC is taken for TFRecord"))
                .url(self.src.clone())
                .advice("records go over as they are; for a folder of images state --from images"));
        }
        let encodes_jpeg = self.encode == Some(Encoding::Jpeg) || self.encode.is_none() && self.resize.is_some();
        if self.quality.is_some() && !encodes_jpeg {
            return Err(Error::config("--quality, and nothing is encoded as JPEG").advice("add --encode jpeg"));
        }
        Ok(())
    }

    /// The options that show in the shards.
    fn options(&self, from: From) -> serde_json::Map<String, serde_json::Value> {
        let limits = self.limits();
        let options = json!({
            "from": from, "shard_bytes": limits.bytes, "shard_records": limits.records, "resize": self.resize,
            "compression": self.compression, "encode": self.encode, "quality": self.quality, "shuffle": self.shuffle,
        });
        match options {
            serde_json::Value::Object(options) => options,
            _ => unreachable!("an object stands above"),
        }
    }

    fn limits(&self) -> Limits {
        let default = self.shard_records.is_none().then_some(SHARD_BYTES);
        Limits { bytes: self.shard_bytes.or(default), records: self.shard_records }
    }

    fn images(&self, tree: folder::Tree, terminal: &Terminal) -> Result<Job> {
        let some = |paths: &[PathBuf]| paths.first().map(|path| format!("`{}`", path.display())).unwrap_or_default();
        if !tree.links.is_empty() {
            let number = plural(tree.links.len(), "link");
            terminal
                .note(format_args!("{number} to folders or out of SRC not followed, such as {}", some(&tree.links)));
        }
        if tree.ignored > 0 {
            terminal.note(format_args!("{} ignored: no images by their names", plural(tree.ignored as usize, "file")));
        }
        let root = tree.root.clone();
        let (images, labels) = match &self.labels {
            Some(csv) => {
                let (images, labels) = labels::from_csv(csv, &root)?;
                if images.len() < tree.images.len() {
                    let number = plural(tree.images.len() - images.len(), "image");
                    terminal.note(format_args!("{number} not named in {}", csv.display()));
                }
                (images, labels)
            }
            None => {
                let labels = labels::from_folders(&tree)?;
                if !labels.classes.is_empty() && !tree.empty.is_empty() {
                    let number = plural(tree.empty.len(), "folder");
                    terminal
                        .note(format_args!("{number} without an image and so no class, such as {}", some(&tree.empty)));
                }
                (tree.images, labels)
            }
        };
        if images.is_empty() {
            let error = Error::new(ErrorKind::NotFound, "there is no image to convert").url(self.src.clone());
            return Err(error.advice("images are recognised by their names: .jpg, .png, .webp, .gif, .bmp, .tiff"));
        }
        let mut hash = Sha256::new();
        for (number, image) in images.iter().enumerate() {
            hash_text(&mut hash, image.path.as_os_str().as_encoded_bytes());
            hash.update(image.bytes.to_le_bytes());
            hash.update(image.modified.to_le_bytes());
            hash.update(labels.of(number).map_or(i64::MIN, |(label, _)| label).to_le_bytes());
        }
        labels.classes.iter().for_each(|class| hash_text(&mut hash, class.as_bytes()));
        let storing = Storing { resize: self.resize, encode: self.encode, quality: self.quality, verify: self.verify };
        let classes = labels.classes.clone();
        let images = Images::new(root, images, labels, storing, self.shuffle);
        let sizes = plan::cut(images.sizes(), self.limits());
        let threads = self.scheduler().num_threads();
        Ok(Job {
            input: Box::new(images),
            sizes,
            hash,
            classes,
            threads,
            ignored: tree.ignored,
            links: tree.links.len(),
        })
    }

    fn records(&self, dest: &Path, terminal: &Terminal) -> Result<Job> {
        let found = ShardArgs { urls: vec![self.src.clone()], threads: self.threads }.find()?;
        let (objects, links) = source::inside(&self.src, dest, &found)?;
        if let Some(link) = links.first() {
            let number = plural(links.len(), "link");
            terminal.note(format_args!("{number} out of SRC not followed, such as `{}`", link.display()));
        }
        let mut hash = Sha256::new();
        for object in &objects {
            hash_text(&mut hash, object.url.as_bytes());
            hash.update(object.size.to_le_bytes());
            hash_text(&mut hash, object.etag.as_deref().unwrap_or_default().as_bytes());
            hash.update(object.modified.unwrap_or(i64::MIN).to_le_bytes());
        }
        let bar = terminal.progress("index", objects.len() as u64, Unit::Things);
        let records = Records::open(&found, objects, &bar);
        bar.finish_and_clear();
        let records = records.map_err(|e| match (e.kind(), e.place().record, e.place().byte_offset) {
            // Not even its first bytes are those of a shard.
            (ErrorKind::Corrupt, Some(0), Some(0)) => e.advice(
                "if it is none, name the shards alone, by a pattern such as 'folder/*.tfrecord'; images are converted from \
                 their folder",
            ),
            _ => e,
        })?;
        let sizes = plan::cut(records.sizes(), self.limits());
        if sizes.is_empty() {
            return Err(Error::new(ErrorKind::Schema, "the shards hold no record").url(self.src.clone()));
        }
        Ok(Job {
            input: Box::new(records),
            sizes,
            hash,
            classes: Vec::new(),
            threads: found.threads,
            ignored: 0,
            links: links.len(),
        })
    }

    fn scheduler(&self) -> crate::engine::Scheduler {
        self.threads.map_or_else(Default::default, |threads| crate::engine::Scheduler::threads(threads.into()))
    }
}

/// With its length, so that names cannot run into each other.
fn hash_text(hash: &mut Sha256, text: &[u8]) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}

fn plural(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
