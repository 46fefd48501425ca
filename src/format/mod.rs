//! Record formats: framing, compression, and records to columns.

pub(crate) mod data_uri;
pub mod example;
pub(crate) mod ipc;
#[cfg(any(feature = "cli", feature = "text", feature = "tar"))]
pub(crate) mod packed;
#[cfg(feature = "parquet")]
#[doc(hidden)]
pub mod parquet;
#[cfg(feature = "tar")]
pub(crate) mod tar;
#[cfg(feature = "text")]
pub(crate) mod text;
pub mod tfrecord;
