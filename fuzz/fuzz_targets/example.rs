//! Records as `tf.Example`: columns hold what the records say, and a bad row is bad for a reason; also with inferred columns.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forebay_fuzz::example(data));
