//! The interface of a format: rows become pieces, on any thread and in any order; pieces become shards, in order.

use std::path::Path;

use arrow::array::RecordBatch;
use bytes::Bytes;

use crate::error::Result;
use crate::format::tfrecord::IndexBuilder;

/// A format as the pipeline sees it.
pub(super) trait Encode: Send + Sync {
    /// Encodes rows into the form in which shards take them; `first` is the number of the first row among all that are written. It is called on
    /// several threads, with rows that are adjacent in one batch.
    ///
    /// # Errors
    /// A row that the format cannot hold, with its number as the error's record.
    fn encode(&self, first: u64, rows: &RecordBatch) -> Result<Piece>;

    /// Begins a shard in the folder.
    fn begin(&self, folder: &Path, name: &str) -> Result<Box<dyn Shard>>;

    /// Returns the bytes of a shard in addition to those of its rows, before compression.
    fn frame_bytes(&self) -> u64 {
        0
    }
}

/// A shard that is being written. If it is not finished, it leaves no file.
pub(super) trait Shard: Send {
    /// Adds the next rows.
    fn append(&mut self, piece: Piece) -> Result<()>;

    /// Completes the shard and gives it its name.
    fn finish(self: Box<Self>) -> Result<Written>;
}

/// A shard that has its final name.
pub(super) struct Written {
    pub(super) bytes: u64,
    /// The checksum in hexadecimal.
    pub(super) crc32c: String,
    /// The places of its records, for formats that do not store them.
    pub(super) index: Option<IndexBuilder>,
    /// The folders in which it has files.
    pub(super) labels: Vec<String>,
}

/// Encoded rows that wait for their shard.
pub(super) struct Piece {
    pub(super) data: Data,
    /// Where each row ends, in bytes from the beginning of the piece, before compression.
    pub(super) ends: Vec<u64>,
}

pub(super) enum Data {
    /// Encoded rows in succession.
    Bytes(Bytes),
    /// Encoded rows, with the number and key of each: the keys in a shard have to differ.
    #[cfg(feature = "tar")]
    Keyed(Bytes, Vec<(u64, String)>),
    /// Rows that only make sense together.
    #[cfg(feature = "parquet")]
    Rows(RecordBatch),
    /// One file per row.
    Files(Vec<ImageFile>),
}

/// An image and its path within the folder.
pub(super) struct ImageFile {
    pub(super) label: Option<String>,
    pub(super) name: String,
    pub(super) bytes: Bytes,
}

impl Piece {
    pub(super) fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Returns the bytes before compression.
    pub(super) fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Returns how many rows from the beginning fit into `bytes` bytes.
    pub(super) fn fitting(&self, bytes: u64) -> usize {
        self.ends.partition_point(|end| *end <= bytes)
    }

    /// Splits off the first rows; returns them and the rest.
    pub(super) fn split(mut self, rows: usize) -> (Self, Self) {
        let mut rest = self.ends.split_off(rows);
        let at = self.bytes();
        rest.iter_mut().for_each(|end| *end -= at);
        let (head, tail) = match self.data {
            Data::Bytes(mut head) => {
                let tail = head.split_off(at as usize);
                (Data::Bytes(head), Data::Bytes(tail))
            }
            #[cfg(feature = "tar")]
            Data::Keyed(mut head, mut keys) => {
                let (tail, later) = (head.split_off(at as usize), keys.split_off(rows));
                (Data::Keyed(head, keys), Data::Keyed(tail, later))
            }
            #[cfg(feature = "parquet")]
            Data::Rows(batch) => {
                (Data::Rows(batch.slice(0, rows)), Data::Rows(batch.slice(rows, batch.num_rows() - rows)))
            }
            Data::Files(mut head) => {
                let tail = head.split_off(rows);
                (Data::Files(head), Data::Files(tail))
            }
        };
        (Self { data: head, ends: self.ends }, Self { data: tail, ends: rest })
    }
}
