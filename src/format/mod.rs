//! Record formats: framing, compression, and conversion of records to columns.

pub(crate) mod data_uri;
pub mod example;
pub(crate) mod ipc;
#[cfg(any(feature = "cli", feature = "text", feature = "tar"))]
#[cfg_attr(
    not(any(feature = "text", feature = "tar")),
    expect(dead_code, reason = "the command names what only other features unpack")
)]
pub(crate) mod packed;
#[cfg(feature = "parquet")]
#[doc(hidden)]
pub mod parquet;
#[cfg(feature = "tar")]
pub(crate) mod tar;
#[cfg(feature = "text")]
pub(crate) mod text;
pub mod tfrecord;
