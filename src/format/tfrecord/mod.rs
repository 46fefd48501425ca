//! TFRecord: framing with masked CRC32C, compression, index.
//!
//! Plain functions from bytes to values; reading and writing bytes is left to the caller. A shard is a run of records, each
//!
//! | bytes | what |
//! |---|---|
//! | 8 | payload length n, little-endian |
//! | 4 | masked CRC32C of those 8 bytes, little-endian |
//! | n | payload |
//! | 4 | masked CRC32C of the payload, little-endian |
//!
//! with nothing before, between or after them, optionally compressed as a whole. [`Decoder`] undoes the compression, [`Framer`]
//! finds records in a stream, [`frame_block`] those of a block whose place is known from a [`ShardIndex`], [`Writer`] writes.
//!
//! Where TensorFlow's reader and this one differ: a shard that ends inside a record is damaged here, and at its end there.

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

/// The folder beside shards that indexes of them may lie in, each called `SHARD.index`.
pub(crate) const INDEX_FOLDER: &str = "_index";

#[cfg(test)]
mod tests;
