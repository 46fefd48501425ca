//! Parquet: footers, pages, and row groups to columns.
//!
//! The `parquet` crate reads footers, and all columns other than numbers and lists of numbers. Those two, which accelerators need most, are decoded
//! here (`numbers`).

pub mod check;
mod decode;
mod delta;
mod footer;
mod hybrid;
mod numbers;
mod page;
pub(crate) mod prune;
mod scan;
mod thrift;

#[cfg(test)]
mod tests;

pub(crate) use decode::{Fetched, Part, Projection, cut, decode, has_pages, ranges, without_pages};
pub(crate) use footer::{Footer, FooterReader, Progress};
pub(crate) use page::Decompressor;
pub(crate) use scan::ColumnScan;

use crate::error::{Error, Result};

/// Turns a panic of the `parquet` crate, which trusts files further than we do, into an error.
fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Error::corrupt(format!("cannot be decoded: {}", said.unwrap_or("the decoder gave up")))
            .advice("fetch or write the shard again"))
    })
}
