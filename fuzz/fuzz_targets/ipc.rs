//! An Arrow IPC shard is refused, or its batches are refused or have the values that Arrow's own reader finds, in bounded memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::ipc(data));
