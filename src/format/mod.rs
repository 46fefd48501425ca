//! Record formats: framing, compression, and records to columns.

pub mod example;
#[cfg(feature = "parquet")]
pub(crate) mod parquet;
pub mod tfrecord;
