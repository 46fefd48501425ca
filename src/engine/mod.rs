//! Execution: threads, waiting, memory. It has never heard of an image.

pub(crate) mod budget;
pub(crate) mod file_lock;
pub(crate) mod io;
pub(crate) mod memory;
pub(crate) mod neighbour;
pub(crate) mod pool;
pub(crate) mod reorder;

pub use budget::Budget;
pub use pool::Scheduler;
