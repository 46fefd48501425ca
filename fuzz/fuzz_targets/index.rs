//! A stored index is refused or consistent; hopping over a shard finds what framing finds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::index(data));
