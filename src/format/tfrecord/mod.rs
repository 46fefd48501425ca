//! TFRecord: framing with masked CRC32C, compression, indexes.
//!
//! This module holds plain functions from bytes to values; the caller reads and writes the bytes. A shard is a sequence of records, each laid out as
//!
//! | bytes | what |
//! |---|---|
//! | 8 | payload length n, little-endian |
//! | 4 | masked CRC32C of those 8 bytes, little-endian |
//! | n | payload |
//! | 4 | masked CRC32C of the payload, little-endian |
//!
//! with nothing before, between or after the records. The shard as a whole may be compressed. [`Decoder`] undoes the compression; [`Framer`] finds
//! records in a stream; [`frame_block`] finds the records of a block whose place is known from a [`ShardIndex`]; [`Writer`] writes shards.
//!
//! This reader and TensorFlow's differ for a shard that ends inside a record: this one reports it as damaged, TensorFlow's takes it as the end of the
//! shard.

mod compression;
mod framing;
mod index;
mod writer;

pub use compression::{Compression, Decoded, Decoder};
pub use framing::{
    Check, FOOTER_BYTES, Framed, Framer, HEADER_BYTES, MAX_RECORD_BYTES, Progress, frame_block, masked_crc32c,
};
pub(crate) use index::Shortened;
#[cfg(any(feature = "text", feature = "tar"))]
pub(crate) use index::matches;
pub use index::{Fingerprint, IndexBuilder, Run, ShardIndex};
pub use writer::Writer;

/// The folder next to the shards that may hold their indexes, each called `SHARD.index`.
pub(crate) const INDEX_FOLDER: &str = "_index";

#[cfg(test)]
mod tests;
