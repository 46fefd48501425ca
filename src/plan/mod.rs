//! Which sample comes when: arithmetic on row numbers that reads no byte and starts no thread.
//!
//! [`Catalog`] says what there is to read, `Steps` which positions a rank delivers in a step, and `Order` which row stands at a position. `docs/order.md`
//! states the formulas and what a user may rely on.

mod catalog;
#[cfg(test)]
mod compositions;
pub(crate) mod ledger;
pub(crate) mod mix;
mod numbers;
pub(crate) mod order;
mod permutation;
pub(crate) mod shuffle;
pub(crate) mod state;
pub(crate) mod steps;

pub use catalog::Catalog;
pub use ledger::{Difference, Ledger, Property, Sums};
pub use mix::Exhausted;
pub(crate) use permutation::Permutation;
pub use shuffle::Shuffle;
pub use state::{Cursor, DataMark, ReadPoint, State};
pub use steps::Remainder;
