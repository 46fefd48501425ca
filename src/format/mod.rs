//! Record formats: framing, compression, and records to columns.

pub mod example;
pub mod tfrecord;
