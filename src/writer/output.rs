//! The formats that can be written, and how each may be compressed.

use std::fmt;

use crate::error::{Error, Result};

/// A format of shards that a [`Writer`](super::Writer) writes.
///
/// # Example
/// ```
/// use forebay::writer::Output;
///
/// assert_eq!(Output::from_name("jsonl"), Some(Output::JsonLines));
/// assert_eq!(Output::Parquet.to_string(), "parquet");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Output {
    /// TFRecord shards of `tf.Example`s, or of `tf.SequenceExample`s where a column is
    /// [`in_sequence`](crate::Column::in_sequence).
    TfRecord,
    /// Parquet files with a page index (feature `parquet`).
    Parquet,
    /// WebDataset archives: one member per column, with the column's name as its extension (feature `tar`).
    Tar,
    /// JSON Lines: one object per row.
    #[serde(rename = "jsonl")]
    JsonLines,
    /// Image files in folders named by their labels: `dog/00000017.jpg`.
    Images,
}

/// The compression of a shard, or of the pages of a Parquet file.
///
/// # Example
/// ```
/// use forebay::writer::Codec;
///
/// assert_eq!(Codec::from_name("zstd"), Some(Codec::Zstd));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Codec {
    /// No compression.
    #[default]
    None,
    /// Snappy: Parquet only.
    Snappy,
    /// gzip, levels 0 to 9.
    Gzip,
    /// zlib, levels 0 to 9: TFRecord only.
    Zlib,
    /// zstd, levels 1 to 22.
    Zstd,
    /// LZ4 (the raw form): Parquet only.
    Lz4,
    /// Brotli, levels 0 to 11: Parquet only.
    Brotli,
}

/// A codec with its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packing {
    pub(super) codec: Codec,
    pub(super) level: u32,
}

impl Output {
    const ALL: [Self; 5] = [Self::TfRecord, Self::Parquet, Self::Tar, Self::JsonLines, Self::Images];

    /// Returns the name used in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::TfRecord => "tfrecord",
            Self::Parquet => "parquet",
            Self::Tar => "tar",
            Self::JsonLines => "jsonl",
            Self::Images => "images",
        }
    }

    /// Returns the format of this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|output| output.name() == name)
    }

    /// Returns the codecs that readers of the format support; the first is the default.
    fn codecs(self) -> &'static [Codec] {
        match self {
            Self::TfRecord => &[Codec::None, Codec::Gzip, Codec::Zlib],
            Self::Parquet => &[Codec::Zstd, Codec::Snappy, Codec::Gzip, Codec::Lz4, Codec::Brotli, Codec::None],
            Self::Tar | Self::JsonLines => &[Codec::None, Codec::Gzip, Codec::Zstd],
            Self::Images => &[Codec::None],
        }
    }

    /// Returns the extension of shard names.
    pub(super) fn extension(self, codec: Codec) -> &'static str {
        match (self, codec) {
            (Self::TfRecord, _) => "tfrecord",
            (Self::Parquet, _) => "parquet",
            (Self::Tar, Codec::Gzip) => "tar.gz",
            (Self::Tar, Codec::Zstd) => "tar.zst",
            (Self::Tar, _) => "tar",
            (Self::JsonLines, Codec::Gzip) => "jsonl.gz",
            (Self::JsonLines, Codec::Zstd) => "jsonl.zst",
            (Self::JsonLines, _) => "jsonl",
            (Self::Images, _) => "images",
        }
    }

    /// Returns the codec and level to write with.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for a format that is not compiled in, a codec that the format does not support, and a level
    /// that the codec does not have.
    pub(crate) fn packing(self, codec: Option<Codec>, level: Option<u32>) -> Result<Packing> {
        let missing = match self {
            Self::Parquet if !cfg!(feature = "parquet") => Some("parquet"),
            Self::Tar if !cfg!(feature = "tar") => Some("tar"),
            _ if codec == Some(Codec::Zstd) && !cfg!(feature = "zstd") => Some("zstd"),
            _ => None,
        };
        if let Some(feature) = missing {
            return Err(Error::config(format!("{self} shards of this kind are not compiled in"))
                .advice(format!("compile forebay with the feature `{feature}`")));
        }
        let codecs = self.codecs();
        let codec = codec.unwrap_or(codecs[0]);
        if !codecs.contains(&codec) {
            let names: Vec<&str> = codecs.iter().map(|codec| codec.name()).collect();
            return Err(Error::config(format!("{self} is not compressed by {codec}"))
                .advice(format!("take one of: {}", names.join(", "))));
        }
        match (codec.levels(), level) {
            (Some((_, default)), None) => Ok(Packing { codec, level: default }),
            (None, None) => Ok(Packing { codec, level: 0 }),
            (Some((levels, _)), Some(level)) if levels.contains(&level) => Ok(Packing { codec, level }),
            (Some((levels, default)), Some(level)) => Err(Error::config(format!("{codec} has no level {level}"))
                .advice(format!("take {} to {}; {default} is usual", levels.start(), levels.end()))),
            (None, Some(_)) => Err(Error::config(format!("{codec} has no levels")).advice("leave the level out")),
        }
    }
}

impl Codec {
    const ALL: [Self; 7] = [Self::None, Self::Snappy, Self::Gzip, Self::Zlib, Self::Zstd, Self::Lz4, Self::Brotli];

    /// Returns the name used in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Snappy => "snappy",
            Self::Gzip => "gzip",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Brotli => "brotli",
        }
    }

    /// Returns the codec of this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }

    /// Returns the codec's levels and its default level.
    fn levels(self) -> Option<(std::ops::RangeInclusive<u32>, u32)> {
        match self {
            Self::Gzip | Self::Zlib => Some((0..=9, 6)),
            Self::Zstd => Some((1..=22, 3)),
            Self::Brotli => Some((0..=11, 5)),
            Self::None | Self::Snappy | Self::Lz4 => None,
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_manifests_and_read_back() {
        for output in Output::ALL {
            assert_eq!(Output::from_name(output.name()), Some(output));
            assert_eq!(serde_json::to_value(output).unwrap(), output.name());
        }
        for codec in Codec::ALL {
            assert_eq!(Codec::from_name(codec.name()), Some(codec));
            assert_eq!(serde_json::to_value(codec).unwrap(), codec.name());
        }
    }

    #[test]
    fn codecs_and_levels_that_there_are_not_name_those_that_there_are() {
        let refused = |output: Output, codec, level| output.packing(Some(codec), level).unwrap_err().to_string();
        assert!(refused(Output::TfRecord, Codec::Snappy, None).contains("none, gzip, zlib"));
        assert!(refused(Output::JsonLines, Codec::Gzip, Some(10)).contains("0 to 9"));
        assert!(refused(Output::JsonLines, Codec::None, Some(1)).contains("no levels"));
        assert!(Output::Images.packing(None, None).is_ok());
    }
}
