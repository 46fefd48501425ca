//! Record formats: framing, compression, and records to columns.

pub mod example;
pub(crate) mod ipc;
pub(crate) mod packed;
pub mod tfrecord;
