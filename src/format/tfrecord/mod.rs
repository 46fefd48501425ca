//! TFRecord: framing with masked CRC32C, compression, index.
