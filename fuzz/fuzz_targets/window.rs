//! Crops and flips give pixels that are neighbours in the picture; resizing keeps a single colour.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::window(data));
