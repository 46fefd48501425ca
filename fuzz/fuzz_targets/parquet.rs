//! A Parquet file is refused, or its row groups are refused or have the rows that the footer declares, in bounded memory; both ways of decoding give
//! the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::parquet(data));
