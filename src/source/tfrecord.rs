//! TFRecord shards as a source.
