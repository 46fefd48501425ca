//! The manifest: what a folder of shards holds, written once all of them are complete.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::output::Output;
use super::part;
use crate::error::{Error, ErrorKind, Result};
use crate::schema::Column;

/// The manifest's name. It begins with `_` because listings of a folder skip such names.
pub(crate) const MANIFEST: &str = "_manifest.json";
const VERSION: u32 = 1;

/// Describes what a folder of shards holds: the `_manifest.json` next to them.
///
/// It is written last and atomically, so a folder that has one is complete.
///
/// # Example
/// ```
/// use std::sync::Arc;
///
/// use arrow::array::{Int64Array, RecordBatch};
/// use forebay::writer::{Manifest, Output, Writer};
/// use forebay::int64;
///
/// let folder = tempfile::tempdir().unwrap();
/// let mut writer = Writer::builder(Output::JsonLines).create(folder.path(), [int64("n")])?;
/// writer.write(&RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1, 2, 3])) as _)]).unwrap())?;
/// writer.finish()?;
///
/// let manifest = Manifest::read(folder.path())?;
/// assert_eq!((manifest.rows, manifest.shards.len()), (3, 1));
/// manifest.verify(folder.path())?;
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// The version of the manifest's layout: 1.
    pub version: u32,
    /// The format of the shards.
    pub format: Output,
    /// The columns, as a reader would declare them.
    pub columns: Vec<Column>,
    /// Rows in all shards.
    pub rows: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// The shards, in row order.
    pub shards: Vec<ShardEntry>,
    /// How they were written.
    pub options: BTreeMap<String, serde_json::Value>,
    /// What the rows were made from, as stated to the writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Folders of images, named by their labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Records of the source that were left out because they are bad.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

/// One shard of a [`Manifest`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct ShardEntry {
    /// The file's name in its folder. Images are separate files: their entries stand for runs of rows, named by the numbers of the first and last
    /// row.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The CRC32C of the file (for images: of their files in succession), in hexadecimal.
    pub crc32c: String,
}

/// A record that was left out.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Skipped {
    /// The row's number in the source.
    // What convert noted before it took this down has none.
    #[serde(default)]
    pub row: u64,
    /// The URL of the shard that holds it.
    pub url: String,
    /// Its number in the shard, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<u64>,
    /// What is wrong with it.
    pub message: String,
}

impl Skipped {
    /// Creates the entry of a row that was left out, with the reason.
    #[cfg(feature = "cli")]
    pub(crate) fn new(row: u64, error: &Error) -> Self {
        Self {
            row,
            url: error.place().url.as_deref().unwrap_or_default().to_owned(),
            record: error.place().record,
            message: error.to_string(),
        }
    }
}

impl Manifest {
    pub(super) const VERSION: u32 = VERSION;

    /// Creates the manifest of TFRecord shards that were not written by a [`Writer`](super::Writer), from the name, rows, bytes and checksum of each,
    /// and from what was left out.
    #[cfg(feature = "cli")]
    pub(crate) fn of_shards(
        columns: Vec<Column>,
        options: BTreeMap<String, serde_json::Value>,
        source: String,
        shards: impl IntoIterator<Item = (String, u64, u64, String)>,
        skipped: Vec<Skipped>,
    ) -> Self {
        let entry = |(name, rows, bytes, crc32c)| ShardEntry { name, rows, bytes, crc32c };
        let shards: Vec<ShardEntry> = shards.into_iter().map(entry).collect();
        Self {
            version: VERSION,
            format: Output::TfRecord,
            columns,
            rows: shards.iter().map(|shard| shard.rows).sum(),
            bytes: shards.iter().map(|shard| shard.bytes).sum(),
            shards,
            options,
            source: Some(source),
            labels: Vec::new(),
            skipped,
        }
    }

    /// Writes it into the folder atomically.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        part::write(folder, MANIFEST, &serde_json::to_vec_pretty(self).expect("numbers and strings"))
    }

    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Corrupt`] if it is damaged or of another version.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(MANIFEST);
        let bytes = std::fs::read(&path).map_err(|e| part::failed(e, "cannot read the manifest", &path))?;
        let damaged = |what: String| {
            Error::corrupt(what).url(path.to_string_lossy().into_owned()).advice("write the shards again")
        };
        let manifest: Self =
            serde_json::from_slice(&bytes).map_err(|e| damaged(format!("no manifest of this version: {e}")))?;
        match manifest.version {
            VERSION => Ok(manifest),
            other => Err(damaged(format!("a manifest of version {other}, this is {VERSION}"))),
        }
    }

    /// Checks the files of a folder against the sizes and checksums of the shards.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for the first shard that differs from the manifest, [`ErrorKind::NotFound`] for a missing one, [`ErrorKind::Config`]
    /// for folders of images, whose files have no entries of their own.
    pub fn verify(&self, folder: impl AsRef<Path>) -> Result<()> {
        if self.format == Output::Images {
            return Err(Error::config("images have no checksums of their own").advice("decode them: forebay verify"));
        }
        self.shards.iter().try_for_each(|shard| {
            let path = folder.as_ref().join(&shard.name);
            let failed = |e| part::failed(e, "cannot read the shard", &path);
            let mut file = std::fs::File::open(&path).map_err(failed)?;
            let (mut bytes, mut crc, mut buffer) = (0, 0, vec![0; 1 << 20]);
            loop {
                match file.read(&mut buffer).map_err(failed)? {
                    0 => break,
                    read => (bytes, crc) = (bytes + read as u64, crc32c::crc32c_append(crc, &buffer[..read])),
                }
            }
            let found = format!("{crc:08x}");
            if (bytes, &found) == (shard.bytes, &shard.crc32c) {
                return Ok(());
            }
            let ShardEntry { bytes: stated, crc32c, .. } = shard;
            Err(Error::new(
                ErrorKind::Corrupt,
                format!("{bytes} bytes with CRC32C {found}, and its manifest says {stated} with {crc32c}"),
            )
            .url(path.to_string_lossy().into_owned())
            .advice("fetch or write the shard again"))
        })
    }
}
