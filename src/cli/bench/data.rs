//! The data of benchmarks without URLs: generated once from a seed, and kept.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::{Rng as _, RngCore as _};
use serde::{Deserialize, Serialize};

use super::workload::Workload;
use crate::cli::terminal::{Terminal, Unit};
use crate::error::{Error, ErrorKind, Result};
use crate::format::example::Example;
use crate::format::tfrecord::{Compression, Writer};
use crate::random::{Key, Rng};
use crate::transform::image::encode::{JpegEncoder, Pixels};

/// Columns of `features`.
pub(super) const FLOATS: usize = 13;
pub(super) const INTS: usize = 26;
/// Records per shard of `raw`, and their bytes.
pub(super) const RAW_RECORDS: u64 = 1251;
pub(super) const RAW_BYTES: usize = 114_660;

/// The size of photographs from cameras and the web: that of most of ImageNet's.
const PHOTO: (usize, usize) = (500, 375);
/// The quality that gives files of about 110 KB for these pictures, the mean of ImageNet's.
const PHOTO_QUALITY: u8 = 92;
const LABELS: u64 = 1000;

/// The shards, and what they hold.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct Made {
    version: u32,
    pub(super) samples: u64,
    /// [`Workload::sum`] over all samples.
    pub(super) sum: u64,
    shards: Vec<String>,
}

/// Returns the version of the way in which data is generated.
fn version(workload: Workload) -> u32 {
    if workload == Workload::Image { 2 } else { 1 }
}

impl Made {
    pub(super) fn urls(&self, folder: &Path) -> Vec<String> {
        self.shards.iter().map(|shard| folder.join(shard).display().to_string()).collect()
    }
}

/// The data that is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) workload: Workload,
    pub(super) samples: u64,
    /// Whether Parquet is compressed with snappy instead of zstd.
    pub(super) snappy: bool,
    /// Whether data that could be TFRecord is in Parquet.
    pub(super) parquet: bool,
}

/// Draws a number from the standard normal distribution, by the Box-Muller method.
pub(super) fn normal(rng: &mut Rng) -> f64 {
    let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    libm::sqrt(-2.0 * libm::log(u)) * libm::cos(std::f64::consts::TAU * v)
}

/// Returns where the data lies: `target/bench` in a project, otherwise the user's cache.
pub(super) fn folder(wanted: Wanted) -> PathBuf {
    let Wanted { workload, samples, snappy, parquet } = wanted;
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = if Path::new("target").is_dir() {
        PathBuf::from("target/bench")
    } else {
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        cache.unwrap_or_else(std::env::temp_dir).join("forebay/bench")
    };
    let codec = match (workload.preset(), parquet) {
        (Some(_), true) => "-parquet",
        (None, _) if snappy && workload.is_columnar(parquet) => "-snappy",
        _ => "",
    };
    root.join(format!("{}{codec}-{samples}", workload.name()))
}

/// Returns the data of a workload; generates it unless it exists.
pub(super) fn made(wanted: Wanted, folder: &Path, threads: usize, terminal: &Terminal) -> Result<Made> {
    let Wanted { workload, samples, .. } = wanted;
    let is_columnar = workload.is_columnar(wanted.parquet);
    let manifest = folder.join("_bench.json");
    let known = std::fs::read(&manifest).ok().and_then(|text| serde_json::from_slice::<Made>(&text).ok());
    if let Some(known) = known.filter(|known| known.version == version(workload) && known.samples == samples) {
        return Ok(known);
    }
    let failed = |path: &Path| {
        let url = path.display().to_string();
        move |e| Error::new(ErrorKind::Transfer, "the bench's data cannot be written").because(e).url(url)
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let per_shard = match workload.preset() {
        Some(preset) => preset.records_per_file,
        None if workload == Workload::Raw => RAW_RECORDS,
        #[cfg(feature = "parquet")]
        None if is_columnar => samples.div_ceil(super::columnar::layout(workload, samples).0),
        None => samples.div_ceil(8).max(1),
    };
    let shards = samples.div_ceil(per_shard);
    let progress = terminal.progress("making data", samples, Unit::Things);
    let (next, sum) = (AtomicU64::new(0), AtomicU64::new(0));
    let ending = if is_columnar { "parquet" } else { "tfrecord" };
    let name = |shard: u64| format!("{}-{shard:05}-of-{shards:05}.{ending}", workload.name());
    let work = || -> Result<()> {
        let mut maker = Maker::default();
        loop {
            let shard = next.fetch_add(1, Ordering::Relaxed);
            if shard >= shards {
                return Ok(());
            }
            let path = folder.join(name(shard));
            #[cfg(feature = "parquet")]
            if is_columnar {
                let rows = shard * per_shard..samples.min((shard + 1) * per_shard);
                let group = super::columnar::layout(workload, samples).1;
                let done = |rows| progress.inc(rows);
                let value = super::columnar::write(workload, wanted.snappy, &path, rows, group, &done)?;
                sum.fetch_add(value, Ordering::Relaxed);
                continue;
            }
            let mut writer = Writer::new(File::create(&path).map_err(failed(&path))?, Compression::None);
            for sample in shard * per_shard..samples.min((shard + 1) * per_shard) {
                let (payload, value) = maker.record(workload, sample)?;
                writer.write(payload).map_err(|e| e.url(path.display().to_string()))?;
                sum.fetch_add(value, Ordering::Relaxed);
                progress.inc(1);
            }
            writer.finish().map_err(|e| e.url(path.display().to_string()))?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    progress.finish_and_clear();
    let made =
        Made { version: version(workload), samples, sum: sum.into_inner(), shards: (0..shards).map(name).collect() };
    let text = serde_json::to_vec_pretty(&made).expect("plain values");
    std::fs::write(&manifest, text).map_err(failed(&manifest))?;
    Ok(made)
}

/// Returns the random numbers of a sample, or of rows from that one on.
pub(super) fn rng_of(workload: Workload, sample: u64) -> Rng {
    Key::new(0).with("bench").with(workload.name()).with_number(sample).rng()
}

/// Generates records, each from its number.
#[derive(Default)]
struct Maker {
    encoder: JpegEncoder,
    pixels: Vec<u8>,
    payload: Vec<u8>,
}

impl Maker {
    /// Returns the record and its term of the sum.
    fn record(&mut self, workload: Workload, sample: u64) -> Result<(&[u8], u64)> {
        let mut rng = rng_of(workload, sample);
        if let Some(preset) = workload.preset() {
            preset.record(&mut rng, &mut self.payload);
            return Ok((&self.payload, xxhash_rust::xxh3::xxh3_64(&self.payload)));
        }
        match workload {
            Workload::Image => {
                paint(&mut rng, &mut self.pixels);
                let (width, height) = (PHOTO.0 as u32, PHOTO.1 as u32);
                let pixels = Pixels { bytes: &self.pixels, width, height, is_gray: false };
                let encoded = self.encoder.encode(pixels, PHOTO_QUALITY)?;
                let label = sample % LABELS;
                let example = Example::new().with_bytes("image/encoded", [encoded]);
                self.payload = example.with_int64("image/class/label", [label as i64]).encode();
                Ok((&self.payload, label))
            }
            Workload::Features => {
                let mut example = Example::new();
                for i in 0..FLOATS {
                    example = example.with_float32(format!("f{i:02}"), [rng.random::<f32>()]);
                }
                for i in 0..INTS {
                    example = example.with_int64(format!("i{i:02}"), [i64::from(rng.random::<u32>() >> 8)]);
                }
                let label = rng.random_range(0..2i64);
                self.payload = example.with_int64("label", [label]).encode();
                Ok((&self.payload, label as u64))
            }
            _ => {
                self.payload.resize(RAW_BYTES, 0);
                rng.fill_bytes(&mut self.payload);
                Ok((&self.payload, xxhash_rust::xxh3::xxh3_64(&self.payload)))
            }
        }
    }
}

/// Paints a picture that compresses like a photograph: large soft areas, edges, and grain. `examples/gpu_throughput` paints the same kind.
fn paint(rng: &mut Rng, pixels: &mut Vec<u8>) {
    let (width, height) = PHOTO;
    pixels.resize(width * height * 3, 0);
    let mut unit = || rng.random::<f32>();
    let waves: Vec<[f32; 4]> = (0..6)
        .map(|i| [unit() * 0.01 * 3f32.powi(i / 2), unit() * 0.01 * 3f32.powi(i / 2), unit() * 6.3, unit() * 30.0])
        .collect();
    let discs: Vec<[f32; 6]> = (0..12)
        .map(|_| [unit() * width as f32, unit() * height as f32, 10.0 + unit() * 90.0, unit(), unit(), unit()])
        .collect();
    let base = [unit() * 255.0, unit() * 255.0, unit() * 255.0];
    let grain = 50.0 + 50.0 * unit();
    let mut noise = Key::new(u64::from(rng.next_u32())).rng();
    for (at, pixel) in pixels.chunks_exact_mut(3).enumerate() {
        let (x, y) = ((at % width) as f32, (at / width) as f32);
        let wave: f32 = waves.iter().map(|w| (w[0] * x + w[1] * y + w[2]).sin() * w[3]).sum();
        let disc = discs.iter().find(|disc| (x - disc[0]).powi(2) + (y - disc[1]).powi(2) < disc[2] * disc[2]);
        let bits = noise.next_u32();
        for (c, value) in pixel.iter_mut().enumerate() {
            let under = disc.map_or(base[c], |disc| disc[3 + c] * 255.0);
            let speckle = ((bits >> (8 * c)) & 0xff) as f32 / 255.0 - 0.5;
            *value = (under + wave + speckle * grain).clamp(0.0, 255.0) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photographs_are_as_large_as_imagenets() {
        let mut maker = Maker::default();
        let sizes = (0..6).map(|sample| maker.record(Workload::Image, sample).unwrap().0.len());
        let mean = sizes.sum::<usize>() / 6;
        assert!((100_000..120_000).contains(&mean), "{mean}");
    }
}
