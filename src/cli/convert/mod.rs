//! `forebay convert`: converts folders of images, or shards of any format that can be read, to shards of any format that can be written.
//!
//! There are two ways. Images and TFRecord become TFRecord shard by shard (`copy`), because there the content of every shard is known before the
//! first is written, and records are copied unchanged:
//!
//! 1. The content of SRC is determined (`source`): images and their labels (`folder`, `labels`), or shards and the places of their records
//!    (`records`).
//! 2. Inputs are cut into shards by their stored sizes (`plan`), so every shard's name and content is known before the first is written.
//! 3. The folder is prepared (`destination`): locked, compared with what an earlier run left, and refused if that is not part of the same conversion.
//! 4. Threads write the missing shards (`work`), each atomically.
//!
//! Everything else goes row by row (`rows`): blocks are read and decoded on several threads and taken in order (`supply`, `pictures`), and the
//! library's [`Writer`](crate::Writer) makes shards of them.
//!
//! An interrupted run needs no handler: it leaves hidden partial files, which the next run removes.

mod copy;
mod destination;
mod folder;
mod images;
mod labels;
mod picture;
mod pictures;
mod plan;
mod records;
mod rows;
#[cfg(test)]
mod rows_tests;
mod size;
mod source;
mod supply;
#[cfg(test)]
mod tests;
mod work;

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use sha2::{Digest as _, Sha256};

use super::format::FormatArgs;
use super::shards::ShardArgs;
use super::terminal::Terminal;
use super::{Failure, Verdict};
use crate::dataset::{Format, TfRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::format::tfrecord::Compression;
use crate::store::Object;
use crate::writer::{Codec, Output};
use images::Images;
use labels::Labels;
use picture::{Encoding, Storing};
use plan::Limits;
use source::From;

const EXAMPLES: &str = "\
Examples:
  forebay convert photos/ shards/                 labels are the folders' names: photos/dog/1.jpg
  forebay convert photos/ shards/ --labels labels.csv --resize 256 --encode jpeg --shuffle 42
  forebay convert 'gs://bucket/train-*.gz' shards/ --compression none --shard-bytes 512MiB
  forebay convert 'train-*.tfrecord' out/ --to parquet --rows-per-shard 100000 --compression zstd --level 3
  forebay convert data/ out/ --to tar --columns image/encoded,label --rename image/encoded=jpg,label=cls --shuffle 7 --budget 2GiB

Run again, it continues where it was interrupted. A shard appears under its name when it is whole.

Images become tf.Examples (or rows) with image/encoded, image/format, image/height, image/width, image/filename (from SRC on),
and image/class/label and image/class/text where there are labels; to TFRecord, _labels.txt lists the classes.

TFRecord to TFRecord copies records byte for byte, whatever they hold. Everything else goes row by row; docs/writing.md says
what the formats hold. _manifest.json lists what was written.

Exit codes: 0 good, 1 the data is bad, 2 usage, 3 it could not be read or written.";

/// The default size of shards.
const SHARD_BYTES: u64 = 256 << 20;

/// The arguments of `forebay convert`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES, override_usage = "forebay convert [OPTIONS] <SRC>... <DEST>")]
pub(super) struct ConvertArgs {
    /// SRC: a folder of images, or shards: paths or URLs, folders, patterns. DEST, the last argument: the local folder to write shards to.
    #[arg(required = true, value_name = "SRC... DEST")]
    paths: Vec<String>,
    /// The format to write.
    #[arg(
        long, value_name = "FORMAT", default_value = "tfrecord",
        value_parser = PossibleValuesParser::new(["tfrecord", "parquet", "tar", "jsonl", "images"])
            .map(|name| Output::from_name(&name).unwrap_or(Output::TfRecord)),
    )]
    to: Output,
    /// What SRC holds [default: images if it is a local folder with images in it, else shards of the format that their names end in].
    #[arg(long, value_enum, value_name = "WHAT")]
    from: Option<From>,
    #[command(flatten)]
    format: FormatArgs,
    /// JSON Lines: read strings that begin with `data:;base64,` as the bytes that the rest of them encodes; forebay writes bytes that are not text
    /// this way [default: on if the _manifest.json next to the shards says that forebay wrote them].
    #[arg(long)]
    data_uris: bool,
    /// The most bytes in a shard [default: 256MiB, unless --shard-records is given]. Images and TFRecord to TFRecord: counted in inputs as they are
    /// stored (images before they are resized or encoded, records decompressed). Row by row: counted in what is written, before compression.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    shard_bytes: Option<u64>,
    /// The most records (rows) in a shard.
    #[arg(long, visible_alias = "rows-per-shard", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    shard_records: Option<u64>,
    /// The compression of shards: TFRecord none, gzip, zlib; Parquet zstd, snappy, gzip, lz4, brotli, none; tar and JSON Lines none, gzip, zstd
    /// [default: none; Parquet: zstd]. Readers can start in the middle of a TFRecord shard only if it is not compressed.
    #[arg(
        long, value_name = "HOW",
        value_parser = PossibleValuesParser::new(["none", "gzip", "zlib", "zstd", "snappy", "lz4", "brotli"])
            .map(|name| Codec::from_name(&name).unwrap_or_default()),
    )]
    compression: Option<Codec>,
    /// The level of compression: 0 to 9 for gzip and zlib, 1 to 22 for zstd, 0 to 11 for brotli.
    #[arg(long, value_name = "LEVEL")]
    level: Option<u32>,
    /// The beginning of shard names: PREFIX-00000-of-00012.tfrecord; row by row, if the number of shards is not known beforehand,
    /// PREFIX-00000.parquet.
    #[arg(long, default_value = "data", value_parser = plan::parse_prefix)]
    prefix: String,
    /// Row by row: write only these columns.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    columns: Vec<String>,
    /// Row by row: write columns under other names.
    #[arg(long, value_name = "OLD=NEW", value_delimiter = ',', value_parser = rows::parse_rename)]
    rename: Vec<(String, String)>,
    /// To TFRecord: round f64 to f32, because a tf.Example has no f64.
    #[arg(long)]
    narrow: bool,
    /// To Parquet: columns of bytes that are text, and are marked as text.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    text: Vec<String>,
    /// To Parquet: columns that get Bloom filters.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    bloom: Vec<String>,
    /// To images: the column of encoded images [default: image/encoded, image, jpg, jpeg, png, webp].
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
    /// To images: the column of labels, which become folders [default: image/class/text, label, image/class/label, class, cls].
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Images: a CSV file with file names (relative to SRC) in its first column and labels in its second. Only images that it names are converted.
    #[arg(long, value_name = "CSV")]
    labels: Option<PathBuf>,
    /// Images: shrink larger images until the shorter side has this many pixels. They keep their format if it is JPEG or PNG, and otherwise become
    /// PNG.
    #[arg(long, value_name = "SHORT_SIDE", value_parser = clap::value_parser!(u32).range(1..=16384))]
    resize: Option<u32>,
    /// Images: store images in this format. Those that already have it (and the size) are copied byte for byte, unless --quality is given. Encoded
    /// images are RGB or grey, 8 bits, and turned upright.
    #[arg(long, value_enum, value_name = "FORMAT")]
    encode: Option<Encoding>,
    /// Images: the quality of encoded JPEGs, 1 to 100 [default: 90].
    #[arg(long, value_name = "Q", value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: Option<u8>,
    /// Shuffle all inputs with this seed. For that, the rows of shards are first distributed to files in DEST, which takes as much disk space again
    /// while it runs; images are read in the shuffled order. Without it, inputs keep the order of SRC's paths.
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,
    /// Row by row: memory for rows in flight and for shuffling [default: a quarter of the machine's].
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    budget: Option<u64>,
    /// Images: decode each image, to find damage that headers do not show.
    #[arg(long)]
    verify: bool,
    /// Leave out up to N bad images or records, and list them. A shard with damaged framing is never left out, because the number of lost records is
    /// not known.
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_bad: u64,
    /// Start over if DEST holds another conversion, whose shards are removed, or files in the way, which are replaced.
    #[arg(long)]
    force: bool,
    /// Number of threads [default: one per core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

/// The shards to be converted.
struct Listed {
    found: super::shards::Shards,
    objects: Vec<Object>,
    links: usize,
}

/// Runs the conversion.
pub(super) fn run(args: &ConvertArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    if args.srcs().is_empty() {
        return Err(Error::config("there is one path alone")
            .advice("name what is converted, and the folder to write to")
            .into());
    }
    let dest = source::local_path(args.dest()).ok_or_else(|| {
        Error::config("DEST is a local folder: a shard has to appear whole, without being held in memory")
            .url(args.dest().to_owned())
            .advice("convert into a local folder, and copy that with the store's own tool")
    })?;
    let dest = source::real(&dest)?;
    args.srcs().iter().try_for_each(|src| source::keep_apart(src, &dest))?;
    let (from, tree) = args.decide(&dest)?;
    args.check(from)?;
    if let Some(tree) = tree {
        return match args.to == Output::TfRecord && !args.needs_rows() {
            true => copy::run(args, &dest, From::Images, copy::images(args, tree, terminal)?, terminal),
            false => rows::run_images(args, &dest, tree, terminal),
        };
    }
    let listed = args.list(&dest, terminal)?;
    let format = match from {
        From::Tfrecord => TfRecord::new().into(),
        _ => args.format.of(&listed.objects)?,
    };
    let format = match format {
        Format::JsonLines(options) if args.data_uris || source::has_data_uris(&listed)? => options.data_uris().into(),
        Format::JsonLines(options) => options.into(),
        format if args.data_uris => {
            return Err(Error::config(format!("--data-uris is for JSON Lines, and the shards are {}", format.name()))
                .advice("leave it out")
                .into());
        }
        format => format,
    };
    match args.to == Output::TfRecord
        && !args.needs_rows()
        && args.shuffle.is_none()
        && matches!(format, Format::TfRecord(_))
    {
        true => copy::run(args, &dest, From::Tfrecord, copy::records(args, listed, terminal)?, terminal),
        false => rows::run_shards(args, &dest, listed, format, terminal),
    }
}

impl ConvertArgs {
    fn dest(&self) -> &str {
        self.paths.last().map_or("", String::as_str)
    }

    fn srcs(&self) -> &[String] {
        &self.paths[..self.paths.len().saturating_sub(1)]
    }

    /// Returns SRC as the user wrote it.
    fn src(&self) -> String {
        self.srcs().join(" ")
    }

    /// Returns what SRC holds, and the images if it is a folder of images.
    fn decide(&self, dest: &Path) -> Result<(From, Option<folder::Tree>)> {
        let only = if let [src] = self.srcs() { Some(src) } else { None };
        let folder = only.and_then(|src| source::local_path(src)).filter(|path| path.is_dir());
        match (self.from, folder) {
            (Some(from @ (From::Tfrecord | From::Shards)), _) => Ok((from, None)),
            (None, None) => Ok((From::Shards, None)),
            (None, _) if self.format.is_stated() => Ok((From::Shards, None)),
            (Some(From::Images), None) => Err(Error::new(ErrorKind::NotFound, "no local folder")
                .url(self.src())
                .advice("images are converted from one folder of this machine")),
            (stated, Some(folder)) => {
                let tree = folder::walk(&folder, dest)?;
                match stated {
                    None if tree.images.is_empty() => Ok((From::Shards, None)),
                    None if tree.shards > 0 => {
                        let (images, shards) = (tree.images.len(), tree.shards as usize);
                        let both = format!("{} and {}", plural(images, "image"), plural(shards, "shard"));
                        Err(Error::config(format!("SRC holds {both}"))
                            .url(self.src())
                            .advice("state which of them is to be converted: --from images or --from shards"))
                    }
                    _ => Ok((From::Images, Some(tree))),
                }
            }
        }
    }

    /// Returns whether an option requires reading rows.
    fn needs_rows(&self) -> bool {
        !self.columns.is_empty() || !self.rename.is_empty() || self.narrow
    }

    /// Refuses options that would have no effect.
    fn check(&self, from: From) -> Result<()> {
        self.to.packing(self.compression, self.level)?;
        let of_images = [
            ("--labels", self.labels.is_some()),
            ("--resize", self.resize.is_some()),
            ("--encode", self.encode.is_some()),
            ("--quality", self.quality.is_some()),
            ("--verify", self.verify),
        ];
        if from == From::Images && self.data_uris {
            return Err(Error::config("--data-uris is for JSON Lines, and SRC is taken for images")
                .url(self.src())
                .advice("leave it out, or state --from shards"));
        }
        let given =
            |options: &[(&'static str, bool)]| options.iter().find(|(_, given)| *given).map(|(option, _)| *option);
        if let (From::Tfrecord | From::Shards, Some(option)) = (from, given(&of_images)) {
            return Err(Error::config(format!("{option} is for a folder of images, and SRC is taken for shards"))
                .url(self.src())
                .advice("records go over as they are; for a folder of images state --from images"));
        }
        let of_formats = [
            (Output::Parquet, given(&[("--bloom", !self.bloom.is_empty()), ("--text", !self.text.is_empty())])),
            (Output::TfRecord, given(&[("--narrow", self.narrow)])),
            (
                Output::Images,
                given(&[
                    ("--image-column", self.image_column.is_some()),
                    ("--label-column", self.label_column.is_some()),
                ]),
            ),
        ];
        let misplaced =
            of_formats.into_iter().find_map(|(format, option)| Some((format, option?)).filter(|_| format != self.to));
        if let Some((format, option)) = misplaced {
            return Err(Error::config(format!("{option} is for {format}, and {} is written", self.to))
                .advice(format!("leave it out, or write --to {format}")));
        }
        let encodes_jpeg = self.encode == Some(Encoding::Jpeg) || self.encode.is_none() && self.resize.is_some();
        if self.quality.is_some() && !encodes_jpeg {
            return Err(Error::config("--quality, and nothing is encoded as JPEG").advice("add --encode jpeg"));
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        let default = self.shard_records.is_none().then_some(SHARD_BYTES);
        Limits { bytes: self.shard_bytes.or(default), records: self.shard_records }
    }

    /// Returns the compression of TFRecord shards, which has been checked.
    fn tfrecord_compression(&self) -> Compression {
        match self.compression {
            Some(Codec::Gzip) => Compression::Gzip,
            Some(Codec::Zlib) => Compression::Zlib,
            _ => Compression::None,
        }
    }

    fn scheduler(&self) -> crate::engine::Scheduler {
        self.threads.map_or_else(Default::default, |threads| crate::engine::Scheduler::threads(threads.into()))
    }

    /// Lists the shards that SRC names: for each source, those that lie in it and not in DEST, each once.
    fn list(&self, dest: &Path, terminal: &Terminal) -> Result<Listed> {
        let mut listed: Option<Listed> = None;
        for src in self.srcs() {
            let args = ShardArgs { urls: vec![src.clone()], threads: self.threads };
            let found = args.find()?;
            // Or the manifest of DEST would say that less is all there is.
            if let Some(missed) = args.missed(&found)?.into_iter().next() {
                return Err(missed);
            }
            let (objects, links) = source::inside(src, dest, &found)?;
            if let Some(link) = links.first() {
                let number = plural(links.len(), "link");
                terminal.note(format_args!("{number} out of SRC not followed, such as `{}`", link.display()));
            }
            match &mut listed {
                None => listed = Some(Listed { found, objects, links: links.len() }),
                Some(listed) => {
                    listed.objects.extend(objects);
                    listed.links += links.len();
                }
            }
        }
        let mut listed =
            listed.ok_or_else(|| Error::config("there is no SRC").advice("name what is converted, and DEST"))?;
        listed.objects.sort_by(|a, b| a.url.cmp(&b.url));
        listed.objects.dedup_by(|a, b| a.url == b.url);
        Ok(listed)
    }
}

/// Returns the images of a folder in the order of a conversion, with a hash of their identity.
fn pick_images(args: &ConvertArgs, tree: &mut folder::Tree, terminal: &Terminal) -> Result<(Images, Sha256)> {
    let some = |paths: &[PathBuf]| paths.first().map(|path| format!("`{}`", path.display())).unwrap_or_default();
    if !tree.links.is_empty() {
        let number = plural(tree.links.len(), "link");
        terminal.note(format_args!("{number} to folders or out of SRC not followed, such as {}", some(&tree.links)));
    }
    if tree.ignored > 0 {
        terminal.note(format_args!("{} ignored: no images by their names", plural(tree.ignored as usize, "file")));
    }
    let root = tree.root.clone();
    let (images, labels): (_, Labels) = match &args.labels {
        Some(csv) => {
            let (images, labels) = labels::from_csv(csv, &root)?;
            if images.len() < tree.images.len() {
                let number = plural(tree.images.len() - images.len(), "image");
                terminal.note(format_args!("{number} not named in {}", csv.display()));
            }
            (images, labels)
        }
        None => {
            let labels = labels::from_folders(tree)?;
            if !labels.classes.is_empty() && !tree.empty.is_empty() {
                let number = plural(tree.empty.len(), "folder");
                terminal.note(format_args!("{number} without an image and so no class, such as {}", some(&tree.empty)));
            }
            (std::mem::take(&mut tree.images), labels)
        }
    };
    if images.is_empty() {
        let error = Error::new(ErrorKind::NotFound, "there is no image to convert").url(args.src());
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
    let storing = Storing { resize: args.resize, encode: args.encode, quality: args.quality, verify: args.verify };
    Ok((Images::new(root, images, labels, storing, args.shuffle), hash))
}

/// Returns a hash of the identity of shards.
fn hash_objects(objects: &[Object]) -> Sha256 {
    let mut hash = Sha256::new();
    for object in objects {
        hash_text(&mut hash, object.url.as_bytes());
        hash.update(object.size.to_le_bytes());
        hash_text(&mut hash, object.etag.as_deref().unwrap_or_default().as_bytes());
        hash.update(object.modified.unwrap_or(i64::MIN).to_le_bytes());
    }
    hash
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes a text with its length, so that adjacent names cannot be confused.
fn hash_text(hash: &mut Sha256, text: &[u8]) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}

fn plural(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
