//! JSON Lines and CSV are refused, or have the rows that a plain reader finds, however they are cut and compressed, in bounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::text(data));
