//! Loads ML training data for GPU pipelines.

pub mod error;
pub mod format;
pub mod random;
pub mod schema;
pub mod store;
pub mod transform;

pub use error::{Error, ErrorKind, Place, Result};
pub use schema::{Column, Dtype, Missing, Shape, bytes, float32, int64};
