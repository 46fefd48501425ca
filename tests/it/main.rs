//! One binary for all promises that need more than one module, a file each.

mod cache;
mod dag;
mod damage;
mod edges;
mod faults;
#[cfg(feature = "parquet")]
mod filter_where;
mod formats;
#[cfg(feature = "gcs")]
mod gcs;
mod incomplete;
mod killed;
mod layers;
mod ledger;
mod loops;
mod mix;
mod order;
#[cfg(feature = "parquet")]
mod parquet;
mod quality;
mod report;
mod resume;
mod scale;
mod source;
mod stale;
mod support;
mod tfrecord;
mod tokens;
