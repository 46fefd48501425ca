//! A condition selects the same rows of a Parquet file whether the file is asked for them or for all rows.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::prune(data));
