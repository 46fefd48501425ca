//! What a format does: rows to pieces, on any thread and in any order; pieces to shards, in order.

use std::path::Path;

use arrow::array::RecordBatch;
use bytes::Bytes;

use crate::error::Result;
use crate::format::tfrecord::IndexBuilder;

/// A format as the pipeline sees it.
pub(super) trait Encode: Send + Sync {
    /// Turns rows into the form that shards take them in; `first` is the number of the first row among all that are written.
    /// Called on several threads, for rows that lie behind each other in the same batch.
    ///
    /// # Errors
    /// A row that the format cannot hold, with its number as the error's record.
    fn encode(&self, first: u64, rows: &RecordBatch) -> Result<Piece>;

    /// Begins a shard in the folder.
    fn begin(&self, folder: &Path, name: &str) -> Result<Box<dyn Shard>>;

    /// Bytes of a shard beside those of its rows, before compression.
    fn frame_bytes(&self) -> u64 {
        0
    }
}

/// A shard on its way. What was not finished leaves no file.
pub(super) trait Shard: Send {
    /// Adds the next rows.
    fn append(&mut self, piece: Piece) -> Result<()>;

    /// Completes the shard and gives it its name.
    fn finish(self: Box<Self>) -> Result<Written>;
}

/// A shard that has its name.
pub(super) struct Written {
    pub(super) bytes: u64,
    /// In hexadecimal.
    pub(super) crc32c: String,
    /// The places of its records, for formats that have none of their own.
    pub(super) index: Option<IndexBuilder>,
    /// The folders that it has files in.
    pub(super) labels: Vec<String>,
}

/// Rows that wait for their shard.
pub(super) struct Piece {
    pub(super) data: Data,
    /// Where each row ends, counted from the beginning of the piece: bytes before compression.
    pub(super) ends: Vec<u64>,
}

pub(super) enum Data {
    /// Encoded rows behind each other.
    Bytes(Bytes),
    /// Encoded rows, with the number and key of each: keys of a shard have to differ.
    #[cfg(feature = "tar")]
    Keyed(Bytes, Vec<(u64, String)>),
    /// Rows that only make sense together.
    #[cfg(feature = "parquet")]
    Rows(RecordBatch),
    /// A file a row.
    Files(Vec<ImageFile>),
}

/// An image under its path within the folder.
pub(super) struct ImageFile {
    pub(super) label: Option<String>,
    pub(super) name: String,
    pub(super) bytes: Bytes,
}

impl Piece {
    pub(super) fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Bytes before compression.
    pub(super) fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Rows from the beginning that fit into so many bytes.
    pub(super) fn fitting(&self, bytes: u64) -> usize {
        self.ends.partition_point(|end| *end <= bytes)
    }

    /// The first rows, and what is left.
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
