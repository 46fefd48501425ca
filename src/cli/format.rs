//! The format that a command takes shards for.

use crate::dataset::{ArrowIpc, Csv, Format, ImageFolder, JsonLines, Parquet, Tar, TfRecord};
use crate::error::Result;
use crate::source::open::format_of;
use crate::store::Object;

/// The argument that states it.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct FormatArgs {
    /// The format of the shards [default: what their names end in, and TFRecord where they say nothing].
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Name>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Name {
    Tfrecord,
    Parquet,
    /// Arrow IPC, files and streams.
    Arrow,
    /// A JSON object a line.
    Jsonl,
    Csv,
    /// Archives in the convention of WebDataset.
    Tar,
    /// A folder of image files.
    Images,
}

impl FormatArgs {
    /// The format that is stated, or that names say.
    pub(super) fn of(self, objects: &[Object]) -> Result<Format> {
        Ok(match self.format {
            None => format_of(objects)?,
            Some(Name::Tfrecord) => TfRecord::new().into(),
            Some(Name::Parquet) => Parquet::new().into(),
            Some(Name::Arrow) => ArrowIpc::new().into(),
            Some(Name::Jsonl) => JsonLines::new().into(),
            Some(Name::Csv) => Csv::new().into(),
            Some(Name::Tar) => Tar::new().into(),
            Some(Name::Images) => ImageFolder::new().into(),
        })
    }
}

/// A format's name in JSON, and behind `--format`.
pub(super) fn name(format: &Format) -> &'static str {
    match format {
        Format::TfRecord(_) => "tfrecord",
        Format::Parquet(_) => "parquet",
        Format::ArrowIpc(_) => "arrow",
        Format::JsonLines(_) => "jsonl",
        Format::Csv(_) => "csv",
        Format::Tar(_) => "tar",
        Format::Images(_) => "images",
    }
}
