//! A Parquet file is refused, or its row groups are refused or have the rows that the footer says, the same both ways of decoding, in bounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::parquet(data));
