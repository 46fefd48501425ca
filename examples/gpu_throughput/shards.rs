//! The shards that are read: made in a folder that is removed in the end.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use forebay::Compression;
use forebay::format::example::Example;
use forebay::format::tfrecord::Writer;

use super::measured::Measured;
use super::{Result, photos};

/// Bytes of an image of 224 x 224.
pub(crate) const RAW_BYTES: usize = 224 * 224 * 3;

const SHARDS: usize = 16;

/// A folder with shards of JPEG photographs and of raw images.
pub(crate) struct Shards {
    folder: PathBuf,
    pub(crate) jpeg: String,
    pub(crate) raw: String,
    /// Different photographs, and the bytes of their mean.
    photos: usize,
    mean_photo_bytes: usize,
}

impl Shards {
    /// So many records of either kind; the photographs are up to so many different ones.
    pub(crate) fn make(records: usize, photos: usize) -> Result<Self> {
        let photos = photos::make(photos as u64)?;
        let folder = std::env::temp_dir().join(format!("forebay-gpu-throughput-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let url = |name: &str| folder.join(name).join("*.tfrecord").display().to_string();
        let shards = Self {
            jpeg: url("jpeg"),
            raw: url("raw"),
            photos: photos.len(),
            mean_photo_bytes: photos.iter().map(Vec::len).sum::<usize>() / photos.len(),
            folder: folder.clone(),
        };
        let jpeg = |record: usize| {
            let photo = &photos[record % photos.len()];
            Example::new().with_bytes("image", [photo]).with_int64("label", [label(record)]).encode()
        };
        write(&folder.join("jpeg"), records, jpeg)?;
        let mut state = 1u64;
        let raw = |record: usize| {
            let mut pixels = vec![0u8; RAW_BYTES];
            for word in pixels.chunks_exact_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                word.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
            }
            Example::new().with_bytes("image", [pixels]).with_int64("label", [label(record)]).encode()
        };
        write(&folder.join("raw"), records, raw)?;
        Ok(shards)
    }

    /// Adds what the photographs are.
    pub(crate) fn describe_photos(&self, measured: Measured) -> Measured {
        measured
            .with("photos", self.photos as f64)
            .with("photo_mean_bytes", self.mean_photo_bytes as f64)
            .with("photo_width", photos::WIDTH as f64)
            .with("photo_height", photos::HEIGHT as f64)
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        // What is left behind lies in the system's folder for such things.
        _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn label(record: usize) -> i64 {
    record as i64 * 7 % 1000
}

fn write(folder: &Path, records: usize, mut record: impl FnMut(usize) -> Vec<u8>) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for shard in 0..SHARDS {
        let file = BufWriter::new(File::create(folder.join(format!("{shard:05}.tfrecord")))?);
        let mut writer = Writer::new(file, Compression::None);
        for number in records * shard / SHARDS..records * (shard + 1) / SHARDS {
            writer.write(&record(number))?;
        }
        writer.finish()?;
    }
    Ok(())
}
