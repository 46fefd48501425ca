//! One binary for all promises that need more than one module, a file each.

#[cfg(feature = "gcs")]
mod gcs;
mod loops;
mod order;
mod support;
mod tfrecord;
