//! The same samples as TFRecord and as Parquet, with flaws at places that are known.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use forebay::format::example::Example;
use forebay::format::tfrecord::{Compression, Writer};
use forebay::{Dataset, bytes, int64};
use parquet::arrow::ArrowWriter;

use super::Result;

pub(crate) const IMAGE: &str = "image/encoded";
pub(crate) const LABEL: &str = "image/class/label";
pub(crate) const TEXT: &str = "caption";

/// The photographs that come with the examples, one to a class.
pub(crate) const PHOTOS: usize = 12;
pub(crate) const ROWS: u64 = 8 * PHOTOS as u64;
const ROWS_PER_SHARD: u64 = 36;

/// The rows without an image, without a label and without a text, and the one whose image ends too early.
const NO_IMAGE: u64 = 17;
const NO_LABEL: u64 = 77;
const NO_TEXT: u64 = 50;
pub(crate) const BROKEN: u64 = 41;

/// The shard that a row is in, without the end of its name, and its number there.
pub(crate) fn place(row: u64) -> (String, u64) {
    (format!("train-{:05}", row / ROWS_PER_SHARD), row % ROWS_PER_SHARD)
}

struct Row {
    image: Option<Vec<u8>>,
    label: Option<i64>,
    text: Option<String>,
}

/// Patterns of the shards in either format.
pub(crate) struct Shards {
    pub(crate) tfrecord: String,
    pub(crate) parquet: String,
}

/// Writes them below a folder.
pub(crate) fn write(folder: &Path) -> Result<Shards> {
    let photos = photos()?;
    let rows: Vec<Row> = (0..ROWS).map(|row| sample(row, &photos[row as usize % photos.len()])).collect();
    let (records, tables) = (folder.join("tfrecord"), folder.join("parquet"));
    fs::create_dir(&records)?;
    fs::create_dir(&tables)?;
    for (shard, rows) in (0..).zip(rows.chunks(ROWS_PER_SHARD as usize)) {
        let (name, _) = place(shard * ROWS_PER_SHARD);
        write_tfrecord(&records.join(format!("{name}.tfrecord")), rows)?;
        write_parquet(&tables.join(format!("{name}.parquet")), rows)?;
    }
    let pattern = |folder: PathBuf, end: &str| folder.join(format!("*.{end}")).display().to_string();
    Ok(Shards { tfrecord: pattern(records, "tfrecord"), parquet: pattern(tables, "parquet") })
}

/// Encoded images and labels.
fn photos() -> Result<Vec<(Vec<u8>, i64)>> {
    let shards = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/photos/*.tfrecord");
    let mut photos = Vec::new();
    for batch in Dataset::open(shards)?.columns([bytes(IMAGE), int64(LABEL)]).batch(PHOTOS).loader().build()?.epoch(0) {
        let batch = batch?;
        let images = batch.bytes(IMAGE)?.map(<[u8]>::to_vec);
        photos.extend(images.zip(batch.values::<i64>(LABEL)?.iter().copied()));
    }
    if photos.len() == PHOTOS { Ok(photos) } else { Err(format!("{} photographs, not {PHOTOS}", photos.len()).into()) }
}

fn sample(row: u64, (image, label): &(Vec<u8>, i64)) -> Row {
    let image = match row {
        NO_IMAGE => None,
        BROKEN => Some(image[..image.len() / 2].to_vec()),
        _ => Some(image.clone()),
    };
    // Many short captions, few long ones.
    let x = row * 37 % ROWS;
    let words =
        ["a", "photograph", "of", "something", "seen", "once", "more"].iter().cycle().take((x * x / 100) as usize);
    let text = words.copied().collect::<Vec<_>>().join(" ");
    Row { image, label: (row != NO_LABEL).then_some(*label), text: (row != NO_TEXT).then_some(text) }
}

fn write_tfrecord(path: &Path, rows: &[Row]) -> Result<()> {
    let mut writer = Writer::new(File::create(path)?, Compression::None);
    for row in rows {
        let mut example = Example::new();
        if let Some(label) = row.label {
            example = example.with_int64(LABEL, [label]);
        }
        if let Some(image) = &row.image {
            example = example.with_bytes(IMAGE, [image.as_slice()]);
        }
        if let Some(text) = &row.text {
            example = example.with_bytes(TEXT, [text.as_bytes()]);
        }
        writer.write(&example.encode())?;
    }
    writer.finish()?;
    Ok(())
}

fn write_parquet(path: &Path, rows: &[Row]) -> Result<()> {
    let images: ArrayRef = Arc::new(BinaryArray::from_iter(rows.iter().map(|row| row.image.as_deref())));
    let labels: ArrayRef = Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.label)));
    let texts: ArrayRef = Arc::new(StringArray::from_iter(rows.iter().map(|row| row.text.as_deref())));
    let batch = RecordBatch::try_from_iter([(IMAGE, images), (LABEL, labels), (TEXT, texts)])?;
    let mut writer = ArrowWriter::try_new(File::create(path)?, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(())
}
