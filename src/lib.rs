//! Loads ML training data for GPU pipelines.

pub(crate) mod batch;
pub mod dataset;
pub(crate) mod device;
pub(crate) mod engine;
pub mod error;
pub mod format;
pub mod loader;
pub mod plan;
pub mod random;
pub mod schema;
pub mod source;
pub mod store;
pub mod telemetry;
pub mod transform;

pub use batch::{Batch, Pad};
pub use dataset::{Context, Dataset, Row, RowWriter, RowsWriter, TfRecord, Urls};
pub use device::Device;
#[cfg(feature = "cuda")]
pub use device::init_cuda;
pub use engine::{Budget, Scheduler};
pub use error::{Error, ErrorKind, Place, Result};
pub use format::tfrecord::Compression;
pub use loader::{Epoch, Loader, LoaderBuilder, World};
pub use plan::{Remainder, Shuffle, State};
pub use schema::{Column, Dtype, Element, Missing, Shape, bytes, float32, int64};
pub use source::Source;
pub use source::tfrecord::Index;
pub use store::StoreOptions;
pub use telemetry::Report;
pub use transform::image::{Image, Layout};
