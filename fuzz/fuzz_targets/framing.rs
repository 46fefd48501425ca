//! A stored shard decompressed and framed in pieces of any size gives the same as in one piece, in bounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::framing(data));
