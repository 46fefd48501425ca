//! `forebay explain`: the graph of a data set, described by flags named after its verbs.

use std::io::Write;
use std::str::FromStr;

use serde_json::json;

use super::bench::Workload;
use super::format::FormatArgs;
use super::terminal::Terminal;
use super::{Failure, Verdict};
use crate::dataset::{Dataset, TfRecord};
use crate::plan::Shuffle;
use crate::schema::{Column, Dtype, Shape};
use crate::transform::image::{IMAGENET_MEAN, IMAGENET_STD, Image};

pub(super) const EXAMPLES: &str = "\
Examples:
  forebay explain 'gs://bucket/train-*.tfrecord' --columns image:bytes,label:i64 --image image --crop 224 --flip \\
      --shuffle 10000 --batch 256
  forebay explain --bench image
  forebay explain data/ --columns 'tokens:i64[*],box:f32[4]' --shuffle global --batch 32 --dot | dot -Tsvg > graph.svg

Nothing is read: shards need not exist.";

const COLUMNS: &str =
    "Columns with their dtype and, in brackets, their shape: [4], [2x3], or [*] for any number of values";

/// Arguments of `forebay explain`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct ExplainArgs {
    /// Shards, as accepted by `Dataset::open`.
    #[arg(required_unless_present = "bench", value_name = "URL")]
    urls: Vec<String>,
    /// The graph that `forebay bench` runs, instead of one described by flags.
    #[arg(long, value_name = "WORKLOAD", conflicts_with_all = ["urls", "format", "delimiter", "records", "columns", "image", "shuffle", "batch"])]
    bench: Option<Workload>,
    #[command(flatten)]
    format: FormatArgs,
    /// TFRecord: raw payloads instead of tf.Examples.
    #[arg(long, conflicts_with_all = ["columns", "image", "format", "delimiter"])]
    records: bool,
    /// Columns with their dtype and shape.
    #[arg(long, value_name = "NAME:DTYPE,…", value_delimiter = ',', value_parser = column, help = COLUMNS)]
    columns: Vec<Column>,
    /// A column of encoded images to decode.
    #[arg(long, value_name = "COLUMN")]
    image: Option<String>,
    /// The side of the random resized crop of each image.
    #[arg(long, value_name = "PIXELS", default_value_t = 224, requires = "image")]
    crop: u32,
    /// Mirror half of the images at random.
    #[arg(long, requires = "image")]
    flip: bool,
    /// Normalised f32 pixels (default: u8).
    #[arg(long, requires = "image", conflicts_with = "u8")]
    f32: bool,
    /// Pixels from 0 to 255.
    #[arg(long, requires = "image")]
    u8: bool,
    /// The shuffle: a buffer of this many samples, `global` or `none`.
    #[arg(long, value_name = "N")]
    shuffle: Option<Shuffled>,
    /// Samples per batch, over all ranks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Drop the last batch if it is not full.
    #[arg(long, requires = "batch")]
    drop_remainder: bool,
    /// Draw it in Graphviz's DOT language.
    #[arg(long)]
    dot: bool,
    /// Draw it as a Mermaid flowchart.
    #[arg(long, conflicts_with = "dot")]
    mermaid: bool,
}

/// The value of `--shuffle`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shuffled(pub(super) Shuffle);

impl FromStr for Shuffled {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "global" => Shuffle::global(),
            "none" => Shuffle::none(),
            samples => Shuffle::buffer(samples.parse().map_err(|_| "a number, `global` or `none` is wanted")?),
        }))
    }
}

/// The value of `--columns`.
fn column(text: &str) -> Result<Column, String> {
    let (name, rest) = text.rsplit_once(':').ok_or("a dtype is wanted: NAME:DTYPE, such as label:i64")?;
    let (dtype, shape) = match rest.split_once('[') {
        Some((dtype, shape)) => (dtype, Some(shape.strip_suffix(']').ok_or("a shape ends with ]")?)),
        None => (rest, None),
    };
    let dtypes = [Dtype::Bytes, Dtype::I64, Dtype::F32, Dtype::I32, Dtype::I16, Dtype::I8, Dtype::U8, Dtype::F16];
    let mut dtypes = dtypes.into_iter().chain([Dtype::F64, Dtype::Bool]);
    let dtype =
        dtypes.find(|known| known.to_string() == dtype).ok_or_else(|| format!("there is no dtype {dtype:?}"))?;
    let column = Column::new(name, dtype, Shape::Scalar);
    match shape {
        None => Ok(column),
        Some("*") => Ok(column.ragged()),
        Some(extents) => {
            let extents: Result<Vec<usize>, _> = extents.split('x').map(str::parse).collect();
            Ok(column.fixed(extents.map_err(|_| "a shape is [*] or numbers: [4], [2x3]")?))
        }
    }
}

pub(super) fn run(args: &ExplainArgs, terminal: &Terminal) -> Result<Verdict, Failure> {
    let dataset = args.bench.map_or_else(|| dataset(args), |workload| workload.default_dataset())?;
    let mut out = terminal.out();
    if terminal.is_json() {
        let stages: Vec<_> = dataset.explain().lines().map(stage).map(str::to_owned).collect();
        drop(out);
        terminal.print_json(&json!({
            "stages": stages, "text": dataset.explain(), "dot": dataset.to_dot(), "mermaid": dataset.to_mermaid(),
        }))?;
        return Ok(Verdict::Good);
    }
    let text = match (args.dot, args.mermaid) {
        (true, _) => dataset.to_dot(),
        (_, true) => dataset.to_mermaid(),
        _ => dataset.explain(),
    };
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Verdict::Good)
}

/// Returns a line of `explain()` without its number.
fn stage(line: &str) -> &str {
    line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit()).trim_start()
}

fn dataset(args: &ExplainArgs) -> crate::error::Result<Dataset> {
    let format = if args.records { Some(TfRecord::new().records().into()) } else { args.format.stated()? };
    let mut dataset = match format {
        Some(format) => Dataset::open_with(&args.urls[..], format)?,
        None => Dataset::open(&args.urls[..])?,
    };
    if !args.columns.is_empty() {
        dataset = dataset.columns(args.columns.clone());
    }
    if let Some(shuffle) = args.shuffle {
        dataset = dataset.shuffle(shuffle.0);
    }
    if let Some(column) = &args.image {
        let image = Image::rgb().random_resized_crop(args.crop, args.crop);
        let image = if args.flip { image.horizontal_flip(0.5) } else { image };
        let image = if args.f32 { image.normalize(IMAGENET_MEAN, IMAGENET_STD) } else { image };
        image.validate()?;
        dataset = dataset.image(column, image);
    }
    if let Some(size) = args.batch {
        dataset = dataset.batch(size as usize);
    }
    Ok(if args.drop_remainder { dataset.drop_remainder() } else { dataset })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_written_as_they_print() {
        let printed = |text: &str| column(text).map(|column| column.to_string());
        assert_eq!(printed("image/encoded:bytes").unwrap(), "image/encoded: bytes");
        assert_eq!(printed("a:b:f32[2x3]").unwrap(), "a:b: f32[2, 3]");
        assert_eq!(printed("tokens:i64[*]").unwrap(), "tokens: i64[*]");
        for wrong in ["label", "label:i65", "x:f32[", "x:f32[a]", "x:f32[]"] {
            assert!(printed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shuffles_are_numbers_or_words() {
        let printed = |text: &str| text.parse::<Shuffled>().map(|shuffled| shuffled.0.to_string());
        assert_eq!(printed("100").unwrap(), "buffer of 100 samples");
        assert_eq!((printed("global").unwrap(), printed("none").unwrap()), ("global".into(), "none".into()));
        assert!(printed("all").is_err());
    }
}
