//! The workloads: what each reads and does, and how to check that it was done.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};

use super::preset::{self, Preset};
use super::{data, documents};
use crate::batch::Batch;
use crate::dataset::{Dataset, Format, TfRecord};
use crate::error::Result;
use crate::plan::Shuffle;
use crate::schema::{Column, Dtype, bytes, float32, int64};
use crate::transform::image::{IMAGENET_MEAN, IMAGENET_STD, Image};
use crate::transform::tokens::Pack;

/// Typical workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Workload {
    /// JPEG photographs: random resized crop to 224 x 224, flip, normalise to f32 (NCHW).
    Image,
    /// tf.Examples of 13 float and 26 int64 scalars and a label.
    Features,
    /// Records of 114,660 bytes, stacked as they are.
    Raw,
    /// Eight bytes per row, from memory, through a shuffle buffer of 100,000.
    Tiny,
    /// Parquet: lists of 2,048 int32 tokens, to int64.
    #[cfg(feature = "parquet")]
    Tokens,
    /// Parquet: 40 of 200 columns of numbers.
    #[cfg(feature = "parquet")]
    Wide,
    /// Parquet: samples of 2,164,832 bytes in five columns of f32, uncompressed.
    #[cfg(feature = "parquet")]
    Latents,
    /// Documents of int32 tokens, from memory, packed into rows of 2,048: int64 ids, positions and segments.
    Pack,
    /// Records, batches and steps in the sizes of MLPerf Storage's resnet50: 1,251 records of 114,660 bytes per file, stacked as they are.
    #[value(name = "resnet50-like")]
    Resnet50Like,
    /// The same for MLPerf Storage's cosmoflow: one record of about 2.8 MB per file, as bytes.
    #[value(name = "cosmoflow-like")]
    CosmoflowLike,
    /// The same for MLPerf Storage's unet3d: one record of about 147 MB per file, as bytes.
    #[value(name = "unet3d-like")]
    Unet3dLike,
}

/// How documents are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Packing {
    FirstFit,
    BestFit,
    /// Best fit, longest first.
    BestFitDecreasing,
    Concat,
}

impl Packing {
    fn pack(self, len: usize) -> Pack {
        match self {
            Self::FirstFit => Pack::first_fit(len),
            Self::BestFit => Pack::best_fit(len),
            Self::BestFitDecreasing => Pack::best_fit(len).longest_first(),
            Self::Concat => Pack::concat_then_split(len),
        }
    }
}

/// Tokens per row.
pub(super) const PACKED: usize = 2048;

/// Returns the packing; `window` replaces the default window if it is given.
pub(super) fn pack(packing: Packing, len: usize, window: Option<u64>) -> Pack {
    let pack = packing.pack(len);
    window.map_or(pack.clone(), |window| pack.window(window))
}

/// The files that are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files {
    pub(super) number: usize,
    pub(super) bytes: u64,
    /// Whether all of them are on local disks, whose pages the kernel caches.
    pub(super) are_local: bool,
}

/// What a workload reads.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub(super) urls: Vec<String>,
    /// For workloads that are scaled by the number of files.
    pub(super) files: Option<Files>,
    pub(super) image: String,
    pub(super) label: String,
    pub(super) record_bytes: usize,
    /// For `image` and `features`: the format of shards that are not generated here.
    pub(super) format: Option<Format>,
    /// Whether data that could be TFRecord is in Parquet.
    pub(super) parquet: bool,
    /// Rows of `tiny`, which has no shards.
    pub(super) rows: i64,
    /// Documents of `pack`, and how they are packed.
    pub(super) documents: Option<ArrayRef>,
    pub(super) pack: Pack,
}

impl Workload {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Features => "features",
            Self::Raw => "raw",
            Self::Tiny => "tiny",
            #[cfg(feature = "parquet")]
            Self::Tokens => "tokens",
            #[cfg(feature = "parquet")]
            Self::Wide => "wide",
            #[cfg(feature = "parquet")]
            Self::Latents => "latents",
            Self::Pack => "pack",
            Self::Resnet50Like => "resnet50-like",
            Self::CosmoflowLike => "cosmoflow-like",
            Self::Unet3dLike => "unet3d-like",
        }
    }

    /// Returns what is published about the workload, if it has one of MLPerf Storage's sizes.
    pub(super) fn preset(self) -> Option<&'static Preset> {
        match self {
            Self::Resnet50Like => Some(&preset::RESNET50),
            Self::CosmoflowLike => Some(&preset::COSMOFLOW),
            Self::Unet3dLike => Some(&preset::UNET3D),
            _ => None,
        }
    }

    pub(super) fn default_batch(self) -> usize {
        match self {
            Self::Image => 256,
            Self::Features => 4096,
            Self::Raw => 400,
            Self::Tiny => 1024,
            #[cfg(feature = "parquet")]
            Self::Tokens => 32,
            #[cfg(feature = "parquet")]
            Self::Wide => 16_384,
            #[cfg(feature = "parquet")]
            Self::Latents => 48,
            Self::Pack => 32,
            Self::Resnet50Like => preset::RESNET50.batch,
            Self::CosmoflowLike => preset::COSMOFLOW.batch,
            Self::Unet3dLike => preset::UNET3D.batch,
        }
    }

    pub(super) fn default_shuffle(self) -> Shuffle {
        match self {
            Self::Image => Shuffle::buffer(1000),
            Self::Tiny => Shuffle::buffer(100_000),
            Self::Pack => Shuffle::buffer(10_000),
            _ => self.preset().map_or(Shuffle::none(), Preset::shuffle),
        }
    }

    /// Returns the number of samples in the data that is generated if no URLs are given.
    pub(super) fn default_samples(self) -> u64 {
        match self {
            Self::Image => 1000,
            Self::Features => 400_000,
            Self::Raw => 4 * data::RAW_RECORDS,
            Self::Tiny => 10_000_000,
            #[cfg(feature = "parquet")]
            Self::Tokens => 40_000,
            #[cfg(feature = "parquet")]
            Self::Wide => 64 * 16_384,
            #[cfg(feature = "parquet")]
            Self::Latents => 192,
            Self::Pack => 50_000,
            Self::Resnet50Like => preset::RESNET50.samples(),
            Self::CosmoflowLike => preset::COSMOFLOW.samples(),
            Self::Unet3dLike => preset::UNET3D.samples(),
        }
    }

    /// Returns the columns that are read from shards; `None` stands for all that they hold.
    pub(super) fn columns(self, input: &Input) -> Option<Vec<Column>> {
        match self {
            Self::Image => Some(vec![bytes(input.image.as_str()), int64(input.label.as_str())]),
            Self::Features => {
                let floats = (0..data::FLOATS).map(|i| float32(format!("f{i:02}")));
                let ints = (0..data::INTS).map(|i| int64(format!("i{i:02}")));
                Some(floats.chain(ints).chain([int64(input.label.as_str())]).collect())
            }
            Self::Raw | Self::Resnet50Like => Some(vec![bytes("record").raw(Dtype::U8, [input.record_bytes])]),
            Self::CosmoflowLike | Self::Unet3dLike => Some(vec![bytes("record")]),
            Self::Tiny | Self::Pack => None,
            #[cfg(feature = "parquet")]
            Self::Tokens | Self::Wide | Self::Latents => Some(super::columnar::columns(self)),
        }
    }

    /// Returns whether the workload reads Parquet; `parquet` decides for data that could be either.
    pub(super) fn is_columnar(self, parquet: bool) -> bool {
        match self {
            Self::Image | Self::Features | Self::Raw | Self::Tiny | Self::Pack => false,
            Self::Resnet50Like | Self::CosmoflowLike | Self::Unet3dLike => parquet,
            #[cfg(feature = "parquet")]
            Self::Tokens | Self::Wide | Self::Latents => true,
        }
    }

    /// Returns whether a whole record is a sample.
    fn is_of_records(self) -> bool {
        self == Self::Raw || self.preset().is_some()
    }

    /// Returns the image operation of `image`.
    pub(super) fn image(self, u8: bool) -> Image {
        let image = Image::rgb().random_resized_crop(224, 224).horizontal_flip(0.5);
        if u8 { image.to_u8() } else { image.normalize(IMAGENET_MEAN, IMAGENET_STD) }
    }

    /// Returns the graph that runs by default, over the data generated here.
    pub(in crate::cli) fn default_dataset(self) -> Result<Dataset> {
        let samples = self.default_samples();
        let folder = data::folder(data::Wanted { workload: self, samples, snappy: false, parquet: false });
        let label = if self == Self::Image { "image/class/label" } else { "label" };
        let input = Input {
            urls: vec![
                folder.join(if self.is_columnar(false) { "*.parquet" } else { "*.tfrecord" }).display().to_string(),
            ],
            files: None,
            image: "image/encoded".into(),
            label: label.into(),
            record_bytes: data::RAW_BYTES,
            format: None,
            parquet: false,
            rows: 1,
            documents: if self == Self::Pack { Some(documents::documents(1)?) } else { None },
            pack: pack(Packing::BestFit, PACKED, None),
        };
        self.dataset(&input, false, self.default_batch(), self.default_shuffle(), false)
    }

    /// Returns the whole graph; with `endless`, its rows repeat forever.
    pub(super) fn dataset(
        self,
        input: &Input,
        u8: bool,
        batch: usize,
        shuffle: Shuffle,
        endless: bool,
    ) -> Result<Dataset> {
        let options = TfRecord::new();
        let options = if self.is_of_records() { options.records() } else { options };
        let mut dataset = match self {
            Self::Pack => Dataset::from_columns([("tokens", input.documents.clone().expect("made before"))])?,
            Self::Tiny => Dataset::from_columns([("x", Arc::new(Int64Array::from_iter_values(0..input.rows)) as _)])?,
            _ if self.is_columnar(input.parquet) => Dataset::open(input.urls.clone())?,
            _ => Dataset::open_with(input.urls.clone(), input.format.clone().unwrap_or(options.into()))?,
        };
        if let Some(columns) = self.columns(input) {
            dataset = dataset.columns(columns);
        }
        if !shuffle.is_none() {
            dataset = dataset.shuffle(shuffle);
        }
        if endless {
            dataset = dataset.repeat_forever();
        }
        if self == Self::Image {
            dataset = dataset.image(input.image.as_str(), self.image(u8));
        }
        if self == Self::Pack {
            dataset = dataset.pack(input.pack.clone());
        }
        Ok(dataset.batch(batch))
    }

    /// Counts a batch: the tokens of `pack`, the samples of other workloads.
    pub(super) fn count(self, batch: &Batch) -> Result<u64> {
        match self {
            Self::Pack => Ok(batch.values::<i64>("segment_ids")?.iter().filter(|&&segment| segment > 0).count() as u64),
            _ => Ok(batch.len() as u64),
        }
    }

    /// Returns a number to which every sample of the batch contributes: equal sums mean equal data, whatever its order.
    pub(super) fn sum(self, batch: &Batch, input: &Input) -> Result<u64> {
        let ints = |name: &str| -> Result<u64> {
            Ok(batch.values::<i64>(name)?.iter().fold(0, |sum, &value| sum.wrapping_add(value as u64)))
        };
        match self {
            Self::Image | Self::Features if batch.names().any(|name| name == input.label) => ints(&input.label),
            Self::Image | Self::Features => Ok(0),
            Self::CosmoflowLike | Self::Unet3dLike => {
                let records = batch.bytes("record")?;
                Ok(records.fold(0, |sum, record| sum.wrapping_add(xxhash_rust::xxh3::xxh3_64(record))))
            }
            Self::Raw | Self::Resnet50Like => {
                let records = batch.values::<u8>("record")?;
                let records = records.chunks_exact(input.record_bytes);
                Ok(records.fold(0, |sum, record| sum.wrapping_add(xxhash_rust::xxh3::xxh3_64(record))))
            }
            Self::Tiny => ints("x"),
            #[cfg(feature = "parquet")]
            Self::Tokens | Self::Wide | Self::Latents => super::columnar::sum(self, batch),
            Self::Pack => {
                let (ids, segments) = (batch.values::<i64>("input_ids")?, batch.values::<i64>("segment_ids")?);
                let tokens = ids.iter().zip(segments.iter()).filter(|(_, segment)| **segment > 0);
                Ok(tokens.fold(0, |sum, (&id, _)| sum.wrapping_add(documents::term(id))))
            }
        }
    }
}
