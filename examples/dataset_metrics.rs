//! Computes what you want to know about a data set before training on it, in one streaming pass: how many samples, which labels and how often each, sizes of
//! images, mean and deviation of each channel, lengths of texts, and what is missing or broken.
//!
//! The pass is one graph, whatever the format of the shards. Stand-in values tell missing data from empty data. `map` notes sizes and sums while the images are
//! decoded, and `columns` keeps pixels out of the batches. `on_bad_record` continues after a broken record, and the report says where it is.
//!
//! Without arguments it writes the photographs of `examples/data` several times over, with labels and captions of many lengths, as TFRecord and as Parquet. One
//! sample has no image, one has no label, one has no text, and one has half an image. Both formats must give the same table, which must be what was written.
//! Then the table is used: images normalised by its constants must have mean 0 and deviation 1, and batches bucketed at its quartiles must have less padding
//! than others. `--image COLUMN --label COLUMN --text COLUMN URL...` prints the table of your own shards; columns that are not named are not read. It needs no
//! libtorch.
//!
//! Checked with: ``

#[path = "dataset_metrics/shards.rs"]
mod shards;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Cursor;

use forebay::{
    Buckets, Column, Dataset, Dtype, Error, ErrorKind, Image, Layout, Missing, Shape, Shuffle, Skip, bytes, int64,
};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Images are resized to this size for the sums, so that every image counts the same, whatever its size.
const SIDE: u32 = 64;

/// Replaces a missing text. It is not valid UTF-8, so an empty text is not mistaken for it.
const NO_TEXT: &[u8] = b"\xff";
const NO_LABEL: i64 = i64::MIN;

/// The columns to look at.
#[derive(Clone, Default)]
struct Wanted {
    image: Option<String>,
    label: Option<String>,
    text: Option<String>,
}

/// A record that cannot be used.
struct Broken {
    url: String,
    record: u64,
    why: String,
}

/// The results of a pass.
#[derive(Default)]
struct Metrics {
    samples: u64,
    labels: BTreeMap<i64, u64>,
    /// Height and width.
    sizes: BTreeMap<(u32, u32), u64>,
    /// For each channel, the sum of its bytes and of their squares, over images of `SIDE` by `SIDE`.
    sums: [f64; 3],
    squares: [f64; 3],
    /// Bytes of each text.
    lengths: BTreeMap<u64, u64>,
    /// Samples without an image, without a label, without a text.
    missing: [u64; 3],
    /// The first 10,000 broken records, in the order of the data set.
    broken: Vec<Broken>,
    num_broken: u64,
}

impl Metrics {
    fn images(&self) -> u64 {
        self.sizes.values().sum()
    }

    /// Mean and standard deviation of each channel, as [`Image::normalize`] wants them.
    fn channels(&self) -> ([f32; 3], [f32; 3]) {
        let pixels = (self.images() * u64::from(SIDE * SIDE)) as f64;
        let mean = self.sums.map(|sum| sum / pixels);
        let std: [f64; 3] = std::array::from_fn(|c| (self.squares[c] / pixels - mean[c] * mean[c]).sqrt());
        (mean.map(|byte| (byte / 255.0) as f32), std.map(|byte| (byte / 255.0) as f32))
    }

    /// The smallest length that this share of the texts does not exceed.
    fn length(&self, share: f64) -> u64 {
        let texts: u64 = self.lengths.values().sum();
        let mut left = ((share * texts as f64).ceil() as u64).max(1);
        for (&length, &count) in &self.lengths {
            if count >= left {
                return length;
            }
            left -= count;
        }
        0
    }

    /// The boundaries for buckets of texts: the quartiles of their lengths.
    fn edges(&self) -> Vec<usize> {
        let mut edges: Vec<usize> = [0.25, 0.5, 0.75].map(|share| self.length(share) as usize + 1).into();
        edges.dedup();
        edges
    }

    /// Whether both have the same results; the shards have different names.
    fn agrees(&self, other: &Self) -> bool {
        let broken = |metrics: &Self| metrics.broken.iter().map(|b| (b.record, b.why.clone())).collect::<Vec<_>>();
        let numbers =
            |metrics: &Self| (metrics.samples, metrics.sums, metrics.squares, metrics.missing, metrics.num_broken);
        numbers(self) == numbers(other)
            && self.labels == other.labels
            && self.sizes == other.sizes
            && self.lengths == other.lengths
            && broken(self) == broken(other)
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(f, "{name:<16}{value}");
        line("samples", self.samples.to_string())?;
        if let (Some(most), Some(least)) = (self.labels.values().max(), self.labels.values().min()) {
            let ratio = *most as f64 / *least as f64;
            line("labels", format!("{}, the commonest {ratio:.2} times as often as the rarest", self.labels.len()))?;
            let counts: Vec<String> =
                self.labels.iter().take(12).map(|(label, count)| format!("{label}: {count}")).collect();
            let more = if self.labels.len() > counts.len() { ", ..." } else { "" };
            line("", format!("{}{more}", counts.join(", ")))?;
        }
        if let (Some(low), Some(high)) = (self.sizes.keys().min(), self.sizes.keys().max()) {
            let widths = || self.sizes.keys().map(|(_, width)| *width);
            let (narrow, wide) = (widths().min().unwrap_or(0), widths().max().unwrap_or(0));
            line("images", format!("{} of {} sizes", self.images(), self.sizes.len()))?;
            line("  height, width", format!("{} to {}, {narrow} to {wide}", low.0, high.0))?;
            if let Some(((height, width), count)) = self.sizes.iter().max_by_key(|(_, count)| **count) {
                line("  commonest", format!("{height} x {width}: {count}"))?;
            }
            let (mean, std) = self.channels();
            line("  mean r, g, b", mean.map(|value| format!("{value:.4}")).join(", "))?;
            line("  deviation", std.map(|value| format!("{value:.4}")).join(", "))?;
        }
        if !self.lengths.is_empty() {
            let quantiles = [0.0, 0.25, 0.5, 0.75, 0.95, 1.0].map(|share| self.length(share).to_string());
            line("texts", format!("{} bytes (0, 25, 50, 75, 95, 100 %)", quantiles.join(", ")))?;
            line("  empty", self.lengths.get(&0).unwrap_or(&0).to_string())?;
        }
        let [image, label, text] = self.missing;
        line("missing", format!("{image} images, {label} labels, {text} texts"))?;
        line("broken", self.num_broken.to_string())?;
        for Broken { url, record, why } in self.broken.iter().take(20) {
            line("", format!("{url}, record {record}: {why}"))?;
        }
        Ok(())
    }
}

/// Height and width of an encoded image, read from its header.
fn size_of(encoded: &[u8]) -> Option<(u32, u32)> {
    if !encoded.starts_with(&[0xff, 0xd8]) {
        let reader = image::ImageReader::new(Cursor::new(encoded)).with_guessed_format().ok()?;
        return reader.into_dimensions().ok().map(|(width, height)| (height, width));
    }
    let number = |at: usize| Some(u32::from(u16::from_be_bytes(encoded.get(at..at + 2)?.try_into().ok()?)));
    let mut at = 2;
    loop {
        match *encoded.get(at..at + 2)? {
            [0xff, 0xff] => at += 1,
            [0xff, 0xc4 | 0xc8 | 0xcc] => at += 2 + number(at + 2)? as usize,
            [0xff, 0xc0..=0xcf] => return Some((number(at + 5)?, number(at + 7)?)),
            [0xff, 0xd9 | 0xda] => return None,
            [0xff, _] => at += 2 + number(at + 2)? as usize,
            _ => return None,
        }
    }
}

/// The graph of the pass: the notes about each sample, in batches.
fn noted(dataset: &Dataset, wanted: &Wanted) -> Result<Dataset> {
    let image = wanted.image.iter().map(|name| bytes(name.as_str()).optional());
    let label = wanted.label.iter().map(|name| int64(name.as_str()).or(Missing::Int(NO_LABEL)));
    let text = wanted.text.iter().map(|name| bytes(name.as_str()).or(Missing::Bytes(NO_TEXT.to_vec())));
    let mut dataset = dataset.columns(image.chain(label.clone()).chain(text));
    let mut kept: Vec<Column> = label.collect();
    if let Some(text) = wanted.text.clone() {
        dataset = dataset.map("text length@1", [int64("text length")], move |_, row, out| {
            let text = row.bytes(&text)?;
            out.set("text length", if text == NO_TEXT { -1 } else { text.len() as i64 })
        });
        kept.push(int64("text length"));
    }
    if let Some(image) = wanted.image.clone() {
        // Decoded in place of an image that is missing, and not counted; an error would take label and text along.
        let mut pixel = Cursor::new(Vec::new());
        image::RgbImage::new(1, 1).write_to(&mut pixel, image::ImageFormat::Png)?;
        let size = int64("image size").fixed([2]);
        let sums = Column::new("image sums", Dtype::F64, Shape::Fixed(vec![6]));
        let name = image.clone();
        dataset = dataset
            .map("image size@1", [bytes(image.as_str()), size.clone()], move |_, row, out| {
                let encoded = row.bytes(&name)?;
                if encoded.is_empty() {
                    out.set_values("image size", &[0i64, 0])?;
                    return out.set_bytes(&name, pixel.get_ref());
                }
                let (height, width) = size_of(encoded)
                    .ok_or_else(|| Error::new(ErrorKind::Corrupt, "the image's header cannot be read"))?;
                out.set_values("image size", &[i64::from(height), i64::from(width)])?;
                out.set_bytes(&name, encoded)
            })
            .image(image.as_str(), Image::rgb().resize(SIDE, SIDE).layout(Layout::Nhwc).to_u8())
            .map("image sums@1", [sums.clone()], move |_, row, out| {
                let mut sums = [0.0; 6];
                for pixel in row.values::<u8>(&image)?.chunks_exact(3) {
                    for (c, byte) in pixel.iter().map(|byte| f64::from(*byte)).enumerate() {
                        sums[c] += byte;
                        sums[3 + c] += byte * byte;
                    }
                }
                out.set_values("image sums", &sums)
            });
        kept.extend([size, sums]);
    }
    Ok(dataset.columns(kept).batch(64))
}

/// Makes one pass over a data set.
fn metrics(dataset: &Dataset, wanted: &Wanted) -> Result<Metrics> {
    let mut loader = noted(dataset, wanted)?.loader().on_bad_record(Skip::rate(1.0)).build()?;
    let mut found = Metrics::default();
    for batch in loader.epoch(0) {
        let batch = batch?;
        found.samples += batch.len() as u64;
        if let Some(label) = &wanted.label {
            for &label in batch.values::<i64>(label)?.iter() {
                match label {
                    NO_LABEL => found.missing[1] += 1,
                    _ => *found.labels.entry(label).or_default() += 1,
                }
            }
        }
        if wanted.text.is_some() {
            for &length in batch.values::<i64>("text length")?.iter() {
                match u64::try_from(length) {
                    Ok(length) => *found.lengths.entry(length).or_default() += 1,
                    Err(_) => found.missing[2] += 1,
                }
            }
        }
        if wanted.image.is_some() {
            let (sizes, sums) = (batch.values::<i64>("image size")?, batch.values::<f64>("image sums")?);
            for (size, sums) in sizes.chunks_exact(2).zip(sums.chunks_exact(6)) {
                if size[0] == 0 {
                    found.missing[0] += 1;
                    continue;
                }
                *found.sizes.entry((size[0] as u32, size[1] as u32)).or_default() += 1;
                for c in 0..3 {
                    found.sums[c] += sums[c];
                    found.squares[c] += sums[3 + c];
                }
            }
        }
    }
    let report = loader.report();
    found.num_broken = report.num_skipped;
    found.broken = report.skipped.iter().map(|skipped| Broken::of(&skipped.error)).collect();
    Ok(found)
}

impl Broken {
    fn of(error: &Error) -> Self {
        let place = error.place();
        Self {
            url: place.url.as_deref().unwrap_or_default().to_owned(),
            record: place.record.unwrap_or_default(),
            why: error.message().to_owned(),
        }
    }
}

/// Mean and standard deviation of each channel of the images that `image` makes.
fn normalised(dataset: &Dataset, name: &str, (mean, std): ([f32; 3], [f32; 3])) -> Result<[(f64, f64); 3]> {
    let column = name.to_owned();
    let images = dataset
        .columns([bytes(name).optional()])
        .filter("has an image@1", move |_, row| Ok(!row.bytes(&column)?.is_empty()))
        .image(name, Image::rgb().resize(SIDE, SIDE).layout(Layout::Nhwc).normalize(mean, std))
        .batch(64);
    let (mut count, mut sums, mut squares) = (0.0, [0.0; 3], [0.0; 3]);
    for batch in images.loader().on_bad_record(Skip::up_to(1)).build()?.epoch(0) {
        for pixel in batch?.values::<f32>(name)?.chunks_exact(3) {
            count += 1.0;
            for (c, value) in pixel.iter().map(|value| f64::from(*value)).enumerate() {
                sums[c] += value;
                squares[c] += value * value;
            }
        }
    }
    Ok(std::array::from_fn(|c| {
        let mean: f64 = sums[c] / count;
        (mean, (squares[c] / count - mean * mean).sqrt())
    }))
}

/// The share of padding in batches of texts, with buckets or without.
fn padding(dataset: &Dataset, name: &str, edges: Option<Vec<usize>>) -> Result<f64> {
    let text = name.to_owned();
    let tokens = Column::new("tokens", Dtype::I32, Shape::Scalar).ragged();
    let mut dataset = dataset.columns([bytes(name).optional()]).shuffle(Shuffle::buffer(1024)).map(
        "bytes as tokens@1",
        [tokens.clone()],
        move |_, row, out| {
            let tokens: Vec<i32> = row.bytes(&text)?.iter().map(|byte| i32::from(*byte)).collect();
            out.set_values("tokens", &tokens)
        },
    );
    dataset = dataset.columns([tokens]);
    if let Some(edges) = edges {
        dataset = dataset.bucket_by_length("tokens", Buckets::boundaries(edges));
    }
    let mut loader = dataset.batch(8).loader().streams(1).seed(42).build()?;
    for batch in loader.epoch(0) {
        batch?;
    }
    Ok(loader.report().stage("collate").and_then(|stage| stage.padding_share()).ok_or("no texts")?)
}

fn check(holds: bool, otherwise: impl Into<String>) -> Result<()> {
    if holds { Ok(()) } else { Err(otherwise.into().into()) }
}

/// Checks whether a pass has found what was written.
fn check_found(found: &Metrics) -> Result<()> {
    let texts: u64 = found.lengths.values().sum();
    check(found.samples == shards::ROWS - 1, format!("{} samples of {}", found.samples, shards::ROWS))?;
    check(found.missing == [1, 1, 1], format!("missing are {:?}", found.missing))?;
    check(found.images() == found.samples - 1, format!("{} images", found.images()))?;
    check(texts == found.samples - 1, format!("{texts} texts"))?;
    check(found.labels.len() == shards::PHOTOS, format!("{} labels", found.labels.len()))?;
    let [broken] = &found.broken[..] else { return Err(format!("{} are broken", found.broken.len()).into()) };
    let (shard, record) = shards::place(shards::BROKEN);
    let is_there = broken.url.contains(&shard) && broken.record == record;
    check(is_there, format!("record {record} of {shard} is broken, not record {} of {}", broken.record, broken.url))
}

fn run_own() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shards = shards::write(folder.path())?;
    let name = |name: &str| Some(name.to_owned());
    let wanted = Wanted { image: name(shards::IMAGE), label: name(shards::LABEL), text: name(shards::TEXT) };
    let [records, table] = [Dataset::open(shards.tfrecord)?, Dataset::open(shards.parquet)?];
    println!("{}\n", noted(&records, &wanted)?);
    let [by_records, by_table] = [metrics(&records, &wanted)?, metrics(&table, &wanted)?];
    println!("TFRecord\n{by_records}\nParquet\n{by_table}");
    check_found(&by_records)?;
    check_found(&by_table)?;
    check(by_records.agrees(&by_table), "the same rows as TFRecord and as Parquet give different tables")?;

    let found = by_table;
    for (channel, (mean, std)) in
        ["red", "green", "blue"].iter().zip(normalised(&table, shards::IMAGE, found.channels())?)
    {
        println!("{channel}, normalised: mean {mean:.4}, deviation {std:.4}");
        check(mean.abs() < 0.05 && (std - 1.0).abs() < 0.05, format!("{channel} is not normalised"))?;
    }
    let edges = found.edges();
    let plain = padding(&table, shards::TEXT, None)?;
    let bucketed = padding(&table, shards::TEXT, Some(edges.clone()))?;
    println!("padding: {:.1} %, with buckets bounded at {edges:?} {:.1} %", 100.0 * plain, 100.0 * bucketed);
    check(bucketed < plain, "buckets do not lessen the padding")
}

fn main() -> Result<()> {
    let (mut wanted, mut urls) = (Wanted::default(), Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let column = match argument.as_str() {
            "--image" => &mut wanted.image,
            "--label" => &mut wanted.label,
            "--text" => &mut wanted.text,
            flag if flag.starts_with("--") => return Err(format!("{flag} is none of --image, --label, --text").into()),
            _ => {
                urls.push(argument);
                continue;
            }
        };
        *column = Some(arguments.next().ok_or_else(|| format!("{argument} wants a column"))?);
    }
    let names_any = [&wanted.image, &wanted.label, &wanted.text].into_iter().any(|column| column.is_some());
    match (urls.is_empty(), names_any) {
        (true, false) => run_own(),
        (false, true) => {
            print!("{}", metrics(&Dataset::open(urls)?, &wanted)?);
            Ok(())
        }
        _ => {
            Err("dataset_metrics [--image COLUMN] [--label COLUMN] [--text COLUMN] URL..., with one column at least"
                .into())
        }
    }
}
