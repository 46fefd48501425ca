//! Images: encoded bytes to a slot of a batch.
