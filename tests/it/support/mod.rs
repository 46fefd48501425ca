//! What several promises need: servers to test against.

#[cfg(feature = "gcs")]
pub(crate) mod fake_gcs;
