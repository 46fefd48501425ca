//! `tf.Example` and `tf.SequenceExample`: messages for building, and wire bytes to Arrow columns.
mod proto;
pub use proto::*;
