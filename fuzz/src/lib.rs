//! The properties that the parsers guarantee for any bytes, as functions that panic if one is violated.
//!
//! Each function has a target of the same name in `fuzz_targets/`, and `tests/corpus.rs` runs them over the corpus without libFuzzer. The first few
//! bytes of an input choose how the rest is used; each function documents which bytes these are.

use std::cell::Cell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use arrow::array::{Array, ArrayRef};

mod example;
mod framing;
mod image;
mod index;
mod ipc;
mod memory;
mod parquet;
mod prune;
mod shard;
mod tar;
mod text;
mod window;
mod wire;

pub use example::{example, sequence_example};
pub use framing::framing;
pub use image::image;
pub use index::index;
pub use ipc::ipc;
pub use parquet::parquet;
pub use prune::prune;
pub use tar::tar;
pub use text::text;
pub use window::window;

/// Returns the bytes that choose how the rest of an input is used; zeros if the input is too short.
fn split<const N: usize>(data: &[u8]) -> ([u8; N], &[u8]) {
    let (head, rest) = data.split_at(N.min(data.len()));
    let mut settings = [0; N];
    settings[..head.len()].copy_from_slice(head);
    (settings, rest)
}

/// Writes the correct checksums into a sequence of TFRecord records, as far as their lengths lead, because a fuzzer seldom finds one.
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

/// Compresses a whole shard.
fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("memory");
    encoder.finish().expect("memory")
}

/// Checks that everything in an array is consistent with its type.
pub(crate) fn valid(array: &ArrayRef) {
    array.to_data().validate_full().expect("arrays hold together");
}

/// Runs a property in which panics may be caught: those of the `parquet` crate and of Arrow become errors. A panic that is not caught propagates.
pub(crate) fn quietly(promise: impl FnOnce()) {
    static HOOK: Once = Once::new();
    thread_local! {
        static MESSAGE: Cell<Option<String>> = const { Cell::new(None) };
    }
    // Whoever asked before us to be told of panics is told of those alone that nothing caught: libFuzzer's hook ends the process.
    HOOK.call_once(|| std::panic::set_hook(Box::new(|panic| MESSAGE.set(Some(panic.to_string())))));
    if catch_unwind(AssertUnwindSafe(promise)).is_err() {
        eprintln!("{}", MESSAGE.take().unwrap_or_default());
        if cfg!(fuzzing) {
            std::process::abort();
        }
        panic!("a promise was broken");
    }
}
