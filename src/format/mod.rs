//! Record formats: framing, compression, and records to columns.

pub mod example;
#[cfg(feature = "parquet")]
#[doc(hidden)]
pub mod parquet;
pub mod tfrecord;
