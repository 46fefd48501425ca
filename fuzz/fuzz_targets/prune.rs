//! Rows for which a condition holds are the same whether a Parquet file is asked for them or all rows are.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::prune(data));
