//! Counters of every stage, and the report that says which stage the loop waited for.

mod counters;
mod report;

pub(crate) use counters::{Clock, Counters, FunctionCounter, StageCounter, WaitedFor};
pub use report::{Report, RingReport, Skipped, StageReport};
