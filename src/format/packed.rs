//! Shards that are compressed as a whole: text and archives in gzip or zstd.

use std::io::Read;

use crate::error::{Error, ErrorKind, Result};

/// How a whole shard is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// Detects the compression from the first bytes, whatever the shard is called.
    pub(crate) fn of(first_bytes: &[u8]) -> Self {
        match first_bytes {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// Undoes the compression of a whole shard, which may consist of several streams in succession.
///
/// # Memory
/// The size of the decompressed data, and no more than `limit` bytes; the size that the shard declares is not trusted.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for damaged streams, [`ErrorKind::Memory`] for more than `limit` bytes, [`ErrorKind::Config`] for zstd without its feature.
pub(crate) fn unpack(packing: Packing, stored: &[u8], limit: usize) -> Result<Vec<u8>> {
    match packing {
        Packing::Plain => Ok(stored.to_vec()),
        Packing::Gzip => read_up_to(flate2::read::MultiGzDecoder::new(stored), "gzip", limit),
        #[cfg(feature = "zstd")]
        Packing::Zstd => {
            let damaged = |e| Error::corrupt("the zstd stream is damaged").because(e);
            read_up_to(zstd::stream::read::Decoder::with_buffer(stored).map_err(damaged)?, "zstd", limit)
        }
        #[cfg(not(feature = "zstd"))]
        Packing::Zstd => Err(Error::config("shards compressed by zstd need the feature `zstd`")
            .advice("compile forebay with it: --features zstd")),
    }
}

fn read_up_to(stream: impl Read, name: &str, limit: usize) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    let read = stream.take(limit as u64 + 1).read_to_end(&mut data);
    read.map_err(|e| {
        Error::corrupt(format!("the {name} stream is damaged behind {} bytes", data.len()))
            .because(e)
            .advice("fetch or write the shard again")
    })?;
    if data.len() > limit {
        return Err(Error::new(
            ErrorKind::Memory,
            format!(
                "a compressed shard is one block, and this one takes more than the {limit} bytes of half the budget"
            ),
        )
        .advice("write smaller shards or plain ones, or give a larger .budget(..)"));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn streams_on_end_are_one() {
        let stored = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(Packing::of(&stored), Packing::Gzip);
        assert_eq!(unpack(Packing::Gzip, &stored, 7).unwrap(), b"one two");
        #[cfg(feature = "zstd")]
        {
            let stored =
                [zstd::encode_all(&b"one "[..], 1).unwrap(), zstd::encode_all(&b"two"[..], 1).unwrap()].concat();
            assert_eq!(Packing::of(&stored), Packing::Zstd);
            assert_eq!(unpack(Packing::Zstd, &stored, 7).unwrap(), b"one two");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let error = unpack(Packing::Gzip, &gzip(&vec![0; 1 << 20]), 1000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let stored = gzip(b"some text that takes a few bytes");
        for length in 0..stored.len() {
            assert!(length == 0 || unpack(Packing::Gzip, &stored[..length], 100).is_err(), "{length}");
        }
    }
}
