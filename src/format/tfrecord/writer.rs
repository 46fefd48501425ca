//! Writes TFRecord shards.

use std::io::{BufWriter, Write};

use flate2::write::{GzEncoder, ZlibEncoder};

use super::compression::Compression;
use super::framing::{FOOTER_BYTES, HEADER_BYTES, masked_crc32c};
use crate::error::{Error, ErrorKind, Result};

/// Writes payloads as records of a TFRecord shard, plain or compressed as a whole.
///
/// Small writes are buffered. Call [`finish`](Self::finish), or the end of the shard is missing.
///
/// # Errors
/// [`ErrorKind::Transfer`] with the writer's own error as its cause.
///
/// # Example
/// ```
/// use forebay::format::example::Example;
/// use forebay::format::tfrecord::{Compression, Writer};
///
/// let mut writer = Writer::new(Vec::new(), Compression::None);
/// writer.write(&Example::new().with_int64("label", [3]).encode())?;
/// let shard = writer.finish()?;
/// assert_eq!(shard[0] as usize, shard.len() - 16);
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Debug)]
pub struct Writer<W: Write> {
    sink: Sink<W>,
    records: u64,
    offset: u64,
}

#[derive(Debug)]
enum Sink<W: Write> {
    Plain(BufWriter<W>),
    Gzip(GzEncoder<BufWriter<W>>),
    Zlib(ZlibEncoder<BufWriter<W>>),
}

/// Below this size, system calls cost more than the bytes they move.
const BUFFER_BYTES: usize = 64 << 10;

impl<W: Write> Writer<W> {
    /// Creates a writer at the start of a shard; compression is at level 6.
    pub fn new(inner: W, compression: Compression) -> Self {
        Self::with_level(inner, compression, 6)
    }

    /// Creates a writer with a compression level: 0 stores, 1 is fastest, 9 smallest. Higher numbers count as 9.
    pub fn with_level(inner: W, compression: Compression, level: u32) -> Self {
        let (inner, level) = (BufWriter::with_capacity(BUFFER_BYTES, inner), flate2::Compression::new(level.min(9)));
        let sink = match compression {
            Compression::None => Sink::Plain(inner),
            Compression::Gzip => Sink::Gzip(GzEncoder::new(inner, level)),
            Compression::Zlib => Sink::Zlib(ZlibEncoder::new(inner, level)),
        };
        Self { sink, records: 0, offset: 0 }
    }

    /// Returns the number of records written so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Returns the bytes of records written so far, before compression: the offset of the next record's header.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Writes one record.
    ///
    /// # Errors
    /// See [`Writer`]. After an error the shard is incomplete and cannot be continued.
    pub fn write(&mut self, payload: &[u8]) -> Result<()> {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        let checksum = masked_crc32c(&header[..8]);
        header[8..].copy_from_slice(&checksum.to_le_bytes());
        for part in [&header[..], payload, &masked_crc32c(payload).to_le_bytes()[..]] {
            match &mut self.sink {
                Sink::Plain(sink) => sink.write_all(part),
                Sink::Gzip(sink) => sink.write_all(part),
                Sink::Zlib(sink) => sink.write_all(part),
            }
            .map_err(|error| self.failed(error))?;
        }
        self.records += 1;
        self.offset += (HEADER_BYTES + payload.len() + FOOTER_BYTES) as u64;
        Ok(())
    }

    /// Completes the shard, flushes it and returns the inner writer.
    ///
    /// # Errors
    /// See [`Writer`].
    pub fn finish(self) -> Result<W> {
        let place = (self.records, self.offset);
        let buffered = match self.sink {
            Sink::Plain(sink) => Ok(sink),
            Sink::Gzip(sink) => sink.finish(),
            Sink::Zlib(sink) => sink.finish(),
        };
        buffered
            .and_then(|sink| sink.into_inner().map_err(std::io::IntoInnerError::into_error))
            .and_then(|mut inner| inner.flush().map(|()| inner))
            .map_err(|error| write_failed(error, place))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        write_failed(error, (self.records, self.offset))
    }
}

fn write_failed(error: std::io::Error, (record, offset): (u64, u64)) -> Error {
    Error::new(ErrorKind::Transfer, "the shard could not be written").because(error).record(record).byte_offset(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_reported_at_the_latest_by_finish() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zlib] {
            let mut writer = Writer::new(Full, compression);
            writer.write(b"small").unwrap();
            assert_eq!((writer.records(), writer.offset()), (1, 21));
            let error = writer.finish().expect_err("nothing can be written");
            assert_eq!((error.kind(), error.place().record), (ErrorKind::Transfer, Some(1)));
            assert!(error.to_string().contains("could not be written: "), "{error}");
        }
    }
}
