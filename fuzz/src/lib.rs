//! What the parsers promise for any bytes, as functions that panic where a promise is broken.
//!
//! Each has a target of the same name in `fuzz_targets/`, and `tests/corpus.rs` runs them over the corpus without libFuzzer.
//! The first few bytes of an input choose how the rest is used; which they are stands at each function.

mod example;
mod framing;
mod image;
mod index;
mod memory;
mod parquet;
mod window;
mod wire;

pub use example::{example, sequence_example};
pub use framing::framing;
pub use image::image;
pub use index::index;
pub use parquet::parquet;
pub use window::window;

/// The bytes that choose how the rest of an input is used; zeros where an input is too short.
fn split<const N: usize>(data: &[u8]) -> ([u8; N], &[u8]) {
    let (head, rest) = data.split_at(N.min(data.len()));
    let mut settings = [0; N];
    settings[..head.len()].copy_from_slice(head);
    (settings, rest)
}

/// Writes the checksums that a run of TFRecord records should have, as far as their lengths lead: a fuzzer seldom hits one.
fn mend_checksums(records: &mut [u8], lengths: bool, payloads: bool) {
    use forebay::format::tfrecord::masked_crc32c;

    let mut rest = records;
    while let Some((header, after)) = rest.split_first_chunk_mut::<12>() {
        let (length, checksum) = header.split_at_mut(8);
        if lengths {
            checksum.copy_from_slice(&masked_crc32c(length).to_le_bytes());
        }
        let length = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| length[i]));
        let Some((payload, after)) = usize::try_from(length).ok().and_then(|length| after.split_at_mut_checked(length))
        else {
            return;
        };
        let Some((footer, after)) = after.split_first_chunk_mut::<4>() else { return };
        if payloads {
            *footer = masked_crc32c(payload).to_le_bytes();
        }
        rest = after;
    }
}
