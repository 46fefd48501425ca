//! A stored shard decompressed and framed in pieces of any sizes gives what it gives as a whole, in bounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::framing(data));
