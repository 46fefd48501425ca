//! Loads ML training data for GPU pipelines.

pub(crate) mod batch;
pub(crate) mod device;
pub(crate) mod engine;
pub mod error;
pub mod format;
pub mod plan;
pub mod random;
pub mod schema;
pub mod source;
pub mod store;
pub mod transform;

pub use error::{Error, ErrorKind, Place, Result};
pub use schema::{Column, Dtype, Missing, Shape, bytes, float32, int64};
