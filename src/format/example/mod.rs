//! `tf.Example` and `tf.SequenceExample`: messages for building, and wire bytes to Arrow columns.
//!
//! [`Example`] and [`SequenceExample`] build, write and show any record. [`Parser`] is how data sets are read: it turns the
//! records of a block into Arrow columns in two passes, neither of which builds a message. The first finds where the wanted
//! features of a record lie, the second appends one column after the other. [`infer`] says which columns records have.

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
