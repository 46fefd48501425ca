//! Shards that are one stream of encoded rows: counted, checksummed, and compressed as a whole.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::write::{GzEncoder, ZlibEncoder};

use super::encode::{Data, Piece, Shard, Written};
use super::output::{Codec, Packing};
use super::part::{self, Part};
use crate::error::Result;
use crate::format::tfrecord::{FOOTER_BYTES, HEADER_BYTES, IndexBuilder};

/// Below this size, system calls cost more than the bytes they move.
const BUFFER_BYTES: usize = 128 << 10;

/// A file in progress, with its bytes counted and checksummed.
pub(crate) struct Counted {
    part: Part,
    bytes: u64,
    crc32c: u32,
}

impl Counted {
    pub(crate) fn create(folder: &Path, name: &str) -> Result<Self> {
        Ok(Self { part: Part::create(folder, name)?, bytes: 0, crc32c: 0 })
    }

    /// Gives the file its name. Returns its size and its CRC32C, in hexadecimal.
    pub(crate) fn finish(self) -> Result<(u64, String)> {
        self.part.finish()?;
        Ok((self.bytes, format!("{:08x}", self.crc32c)))
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.part.write(bytes)?;
        self.bytes += written as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The compression of a file.
enum Packer {
    Plain(BufWriter<Counted>),
    Gzip(GzEncoder<BufWriter<Counted>>),
    Zlib(ZlibEncoder<BufWriter<Counted>>),
    #[cfg(feature = "zstd")]
    Zstd(zstd::stream::write::Encoder<'static, BufWriter<Counted>>),
}

impl Packer {
    fn new(file: Counted, Packing { codec, level }: Packing) -> io::Result<Self> {
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(match codec {
            // The header of gzip holds no time and no name, so equal rows make equal files.
            Codec::Gzip => Self::Gzip(GzEncoder::new(file, flate2::Compression::new(level))),
            Codec::Zlib => Self::Zlib(ZlibEncoder::new(file, flate2::Compression::new(level))),
            #[cfg(feature = "zstd")]
            Codec::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(file, level as i32)?),
            _ => Self::Plain(file),
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.write_all(bytes),
            Self::Gzip(file) => file.write_all(bytes),
            Self::Zlib(file) => file.write_all(bytes),
            #[cfg(feature = "zstd")]
            Self::Zstd(file) => file.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<Counted> {
        let file = match self {
            Self::Plain(file) => file,
            Self::Gzip(file) => file.finish()?,
            Self::Zlib(file) => file.finish()?,
            #[cfg(feature = "zstd")]
            Self::Zstd(file) => file.finish()?,
        };
        file.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

/// A shard that is one stream of rows.
pub(super) struct Stream {
    packer: Packer,
    path: std::path::PathBuf,
    /// The bytes that follow the rows.
    trailer: &'static [u8],
    index: Option<IndexBuilder>,
}

impl Stream {
    pub(super) fn begin(
        folder: &Path,
        name: &str,
        packing: Packing,
        trailer: &'static [u8],
        indexed: bool,
    ) -> Result<Self> {
        let path = folder.join(name);
        let packer = Packer::new(Counted::create(folder, name)?, packing)
            .map_err(|e| part::failed(e, "cannot begin the shard", &path))?;
        Ok(Self { packer, path, trailer, index: indexed.then(IndexBuilder::new) })
    }
}

impl Shard for Stream {
    fn append(&mut self, piece: Piece) -> Result<()> {
        let Data::Bytes(bytes) = &piece.data else { unreachable!("streams are made of encoded rows") };
        self.packer.write_all(bytes).map_err(|e| part::failed(e, "cannot write the shard", &self.path))?;
        if let Some(index) = &mut self.index {
            let mut start = 0;
            for end in piece.ends {
                index.push(end - start - (HEADER_BYTES + FOOTER_BYTES) as u64)?;
                start = end;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Written> {
        let failed = |e| part::failed(e, "cannot write the shard", &self.path);
        self.packer.write_all(self.trailer).map_err(failed)?;
        let (bytes, crc32c) = self.packer.finish().map_err(failed)?.finish()?;
        Ok(Written { bytes, crc32c, index: self.index, labels: Vec::new() })
    }
}
