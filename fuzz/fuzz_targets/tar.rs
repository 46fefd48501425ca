//! A tar archive has the samples that a plain reader finds, however it is cut and compressed, in bounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::tar(data));
