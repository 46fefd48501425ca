//! The format in which a command reads shards.

use crate::dataset::{ArrowIpc, Csv, Format, ImageFolder, JsonLines, Parquet, Tar, TfRecord};
use crate::error::{Error, Result};
use crate::source::open::format_of;
use crate::store::Object;

/// The argument that states the format.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct FormatArgs {
    /// The format of the shards [default: by what their names end in, or TFRecord if that says nothing].
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Name>,
    #[command(flatten)]
    fields: FieldArgs,
}

/// How the fields of CSV are separated.
#[derive(clap::Args, Clone, Copy, Debug)]
struct FieldArgs {
    /// CSV: the separator between fields, one ASCII character or `tab` [default: a comma, and a tab in .tsv].
    #[arg(long, value_name = "CHAR", value_parser = delimiter)]
    delimiter: Option<u8>,
}

/// The value of `--delimiter`.
fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [one] if one.is_ascii() => Ok(*one),
        _ => Err("one ASCII character or `tab` is wanted".into()),
    }
}

impl FieldArgs {
    /// Returns the format with its fields' settings.
    fn of(self, format: Format) -> Result<Format> {
        match (self.delimiter, format) {
            (None, format) => Ok(format),
            (Some(delimiter), Format::Csv(options)) => Ok(options.delimiter(delimiter).into()),
            (Some(_), format) => {
                Err(Error::config(format!("--delimiter is for CSV, and the shards are {}", format.name()))
                    .advice("leave it out, or take them for CSV with --format csv"))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Name {
    Tfrecord,
    Parquet,
    /// Arrow IPC, as files and streams.
    Arrow,
    /// One JSON object per line.
    Jsonl,
    Csv,
    /// Archives in the convention of WebDataset.
    Tar,
    /// A folder of image files.
    Images,
}

impl FormatArgs {
    /// Returns the stated format, or else the one that the names indicate.
    pub(super) fn of(self, objects: &[Object]) -> Result<Format> {
        match self.stated()? {
            Some(format) => Ok(format),
            None => self.fields.of(format_of(objects)?),
        }
    }

    pub(super) fn is_stated(self) -> bool {
        self.format.is_some()
    }

    /// Returns the stated format.
    pub(super) fn stated(self) -> Result<Option<Format>> {
        let format = match self.format {
            None => return Ok(None),
            Some(Name::Tfrecord) => TfRecord::new().into(),
            Some(Name::Parquet) => Parquet::new().into(),
            Some(Name::Arrow) => ArrowIpc::new().into(),
            Some(Name::Jsonl) => JsonLines::new().into(),
            Some(Name::Csv) => Csv::new().into(),
            Some(Name::Tar) => Tar::new().into(),
            Some(Name::Images) => ImageFolder::new().into(),
        };
        self.fields.of(format).map(Some)
    }
}
