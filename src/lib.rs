//! Loads ML training data for GPU pipelines. It reads sharded files from object stores or disks, then decodes, shuffles and batches them into libtorch tensors
//! before the training loop asks for them.
//!
//! A [`Dataset`] describes which data is read and what happens to it. Nothing is read until the loader that [`Dataset::loader`] sets up is built. A [`Loader`]
//! runs that description; each of its [`Epoch`]s is an iterator of [`Batch`]es. The order of samples is a function of the seed, the shards and the graph. It is
//! the same for any number of threads, and for any number of ranks that divides the plan's streams.
//!
//! # Example
//! ```
//! use std::sync::Arc;
//!
//! use arrow::array::{Float32Array, Int64Array};
//! use forebay::{Dataset, Shuffle, float32};
//! use rand::Rng;
//!
//! // Columns in memory; `Dataset::open("gs://bucket/train-*.tfrecord")` reads shards.
//! let x = Float32Array::from_iter_values((0..1000).map(|i| i as f32));
//! let label = Int64Array::from_iter_values((0..1000).map(|i| i % 10));
//! let dataset = Dataset::from_columns([("x", Arc::new(x) as _), ("label", Arc::new(label) as _)])?
//!     .shuffle(Shuffle::buffer(256))
//!     .map("noise", [float32("x")], |context, row, out| {
//!         let noise: f32 = context.rng().random(); // of this sample in this epoch, on whatever thread
//!         out.set("x", row.get::<f32>("x")? + noise)
//!     })
//!     .batch(50);
//!
//! let mut loader = dataset.loader().seed(42).build()?;
//! for epoch in 0..2 {
//!     let mut steps = 0;
//!     for batch in loader.epoch(epoch) {
//!         let batch = batch?; // with libtorch: batch.tensor("x")?
//!         assert_eq!(batch.values::<f32>("x")?.len(), 50);
//!         steps += 1;
//!     }
//!     assert_eq!(steps, 20);
//! }
//! println!("{}", loader.report()); // which stage the loop waited for
//! # Ok::<(), forebay::Error>(())
//! ```
//!
//! # Map
//!
//! | module | holds |
//! |---|---|
//! | [`dataset`] | the lazy graph: its operations, its checks, and what user functions see of a row |
//! | [`plan`] | which sample comes when, computed from row numbers |
//! | [`source`] | where rows come from: shards, columns in memory, or your own implementation of the trait [`Source`] |
//! | [`store`] | URLs, patterns, range reads, retries |
//! | [`mod@format`] | TFRecord and `tf.Example`, reading and writing |
//! | [`transform`] | images: decode, crop, pad, resize, flip, jitter colours, normalise; tokens: chunk, pack, bucket |
//! | [`writer`] | shards of several formats, written in parallel, whole or not at all |
//! | [`loader`] | one execution of a data set; its page describes how a run proceeds |
//! | [`mod@dlpack`] | columns of batches for other frameworks |
//! | [`telemetry`] | what each stage did and waited for |
//! | [`testing`] | checks for your own pipelines: restoring from every state |
//! | [`schema`], [`random`], [`error`] | columns and shapes; keyed random numbers; errors that say where |
//!
//! Batches, devices, and the engine (one pool of workers, one budget of bytes) are reached through [`Batch`], [`Device`], [`Scheduler`] and [`Budget`].
//!
//! # Features
//!
//! These features are on by default: `tch` (batches as libtorch tensors), `cuda` (loaded at run time), `gcs`, `s3`, `azure`, `http`, `jpeg`, `parquet`, `tar`,
//! `text` (JSON Lines and CSV), `zstd` and `cli`. Without them the core needs neither libtorch, nor a C compiler, nor a network.

pub(crate) mod batch;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
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
pub mod testing;
pub mod transform;
pub mod writer;

pub use batch::{Batch, Origin, Pad, Side, dlpack};
pub use dataset::{
    ArrowIpc, Col, Context, Csv, Dataset, Expr, Format, ImageFolder, JsonLines, Parquet, Row, RowWriter, RowsWriter,
    Tar, TfRecord, Urls, col,
};
pub use device::Device;
#[cfg(feature = "tch")]
pub use device::OnDevice;
#[cfg(feature = "cuda")]
pub use device::init_cuda;
pub use engine::{Budget, Scheduler};
pub use error::{Error, ErrorKind, Place, Result};
pub use format::tfrecord::Compression;
pub use loader::{Epoch, Loader, LoaderBuilder, Replay, Skip, World};
pub use plan::{Exhausted, Ledger, Remainder, Shuffle, State};
pub use schema::{Column, Dtype, Element, Missing, Shape, Value, bytes, float32, int64};
pub use source::Source;
pub use source::open::Index;
pub use store::StoreOptions;
pub use telemetry::Report;
pub use transform::image::{Image, Layout};
#[cfg(feature = "tokenizers")]
pub use transform::tokens::Tokenizer;
pub use transform::tokens::{Buckets, Chunk, Long, Pack};
pub use writer::{Manifest, Writer};

/// The loop in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
