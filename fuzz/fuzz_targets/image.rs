//! An image is refused, or every value of its slot is written, whatever was there before, in bounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::image(data));
