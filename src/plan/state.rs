//! What was delivered, in a few numbers.

use serde::{Deserialize, Serialize};

/// Where a training run stands after a batch: what was delivered, never what was prefetched.
///
/// Small (below 1 KiB plus 16 bytes a stream), readable as JSON, versioned. Restoring from it comes with a later release;
/// it is written from the first one so that its fields are known to suffice.
///
/// # Example
/// ```
/// # use forebay::{Dataset, Device};
/// # use std::sync::Arc;
/// # let values = arrow::array::Int64Array::from_iter_values(0..10);
/// # let dataset = Dataset::from_columns([("x", Arc::new(values) as _)])?.batch(5);
/// let mut loader = dataset.loader().seed(7).device(Device::Cpu).build()?;
/// let batch = loader.epoch(3).next().expect("two batches")?;
/// assert_eq!((batch.state().epoch, batch.state().step, batch.state().seed), (3, 1, 7));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of this format: 1.
    pub version: u32,
    /// A digest of catalog and graph: a state belongs to the data set it came from.
    pub fingerprint: u64,
    /// The seed behind all randomness.
    pub seed: u64,
    /// Logical streams of the plan.
    pub streams: u64,
    /// The epoch.
    pub epoch: u64,
    /// Steps of this epoch delivered so far, this batch included.
    pub step: u64,
    /// Where each local stream stands, in graphs whose stages change the number of rows; empty where rows are positions.
    pub cursors: Vec<Cursor>,
}

/// Where one stream stands: the next row to deliver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Position in the stream before row-changing stages.
    pub position: u64,
    /// Rows that were already delivered of those which that position became.
    pub expanded: u64,
}
