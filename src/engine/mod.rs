//! Execution: threads, waiting, memory. It knows nothing of images.

pub(crate) mod budget;
pub(crate) mod file_lock;
pub(crate) mod io;
pub(crate) mod memory;
pub(crate) mod neighbour;
pub(crate) mod pool;
pub(crate) mod reorder;

pub use budget::Budget;
pub use pool::Scheduler;
