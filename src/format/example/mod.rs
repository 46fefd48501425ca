//! `tf.Example` and `tf.SequenceExample`: messages to build records with, and a parser from wire bytes to Arrow columns.
//!
//! [`Example`] and [`SequenceExample`] build, write and show any record. [`Parser`] is what reads data sets: it turns the records of a block into
//! Arrow columns in two passes, neither of which builds a message. The first pass finds where the wanted features of a record lie; the second appends
//! one column after the other. [`infer`] finds out which columns records have.

mod cell;
mod infer;
mod parse;
mod proto;
mod scan;
mod wire;

#[cfg(feature = "cli")]
pub(crate) use infer::either;
pub use infer::infer;
pub use parse::{Kind, Parsed, Parser};
pub use proto::{
    BytesList, Example, Feature, FeatureList, FeatureLists, Features, FloatList, Int64List, SequenceExample, Values,
};
pub(crate) use scan::stranger;
