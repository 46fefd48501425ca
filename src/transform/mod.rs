//! The operations on a sample between its block and its batch.

pub mod image;
pub mod tokens;
