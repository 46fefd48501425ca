//! Assigns inputs to shards: ranges of inputs, cut by their stored sizes.
//!
//! The assignment is known before anything is written. So names can include the number of shards (`data-00003-of-00012`), shards can be written in
//! any order, and a run that continues an interrupted one cuts at the same places.

use std::ops::Range;

/// The limits on a shard's size; every limit that is set applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Limits {
    /// Bytes of a shard's inputs as they are stored. Their size after re-encoding is not known when shards are cut.
    pub(super) bytes: Option<u64>,
    pub(super) records: Option<u64>,
}

/// A planned shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Its inputs, numbered in the order of the conversion.
    pub(super) inputs: Range<u64>,
    /// Their stored bytes.
    pub(super) bytes: u64,
}

/// Cuts inputs of these sizes into runs, each as long as the limits allow and of at least one input.
pub(super) fn cut(sizes: impl IntoIterator<Item = u64>, limits: Limits) -> Vec<Cut> {
    let mut shards = Vec::new();
    let (mut start, mut end, mut bytes) = (0, 0, 0u64);
    for size in sizes {
        let full = limits.bytes.is_some_and(|most| bytes.saturating_add(size) > most)
            || limits.records.is_some_and(|most| end - start >= most);
        if full && end > start {
            shards.push(Cut { inputs: start..end, bytes });
            (start, bytes) = (end, 0);
        }
        end += 1;
        bytes = bytes.saturating_add(size);
    }
    if end > start {
        shards.push(Cut { inputs: start..end, bytes });
    }
    shards
}

/// Returns the file name of a shard, in the form that the tools around TFRecord use.
pub(super) fn name(prefix: &str, shard: usize, shards: usize) -> String {
    format!("{prefix}-{shard:05}-of-{shards:05}.tfrecord")
}

/// Checks a prefix: shards have to stay in their folder, and patterns and listings have to find them.
pub(super) fn parse_prefix(text: &str) -> Result<String, String> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 100 || !text.chars().all(known) {
        return Err("a prefix is 1 to 100 letters, digits, `-`, `_` and `.`".into());
    }
    if text.starts_with(['.', '_', '-']) {
        return Err("listings pass over names that begin with `.` or `_`, and commands take `-` for an option".into());
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(bytes: impl Into<Option<u64>>, records: impl Into<Option<u64>>) -> Limits {
        Limits { bytes: bytes.into(), records: records.into() }
    }

    #[test]
    fn shards_hold_what_fits_and_at_least_one_input() {
        let cut = |sizes: &[u64], limits| -> Vec<Range<u64>> {
            cut(sizes.iter().copied(), limits).into_iter().map(|shard| shard.inputs).collect()
        };
        let sizes = &[5, 5, 5, 20, 1, 1, 1];
        assert_eq!(cut(sizes, limits(10, None)), [0..2, 2..3, 3..4, 4..7]);
        assert_eq!(cut(sizes, limits(None, 3)), [0..3, 3..6, 6..7]);
        assert_eq!(cut(sizes, limits(10, 1)).len(), 7);
        assert_eq!(cut(sizes, limits(None, None)).len(), 1);
        assert!(cut(&[], limits(10, 3)).is_empty());
        assert_eq!(cut(&[0, 0, 0], limits(1, None)).len(), 1);
    }

    #[test]
    fn prefixes_stay_in_their_folder() {
        for text in ["data", "train-2024", "a.b_c"] {
            assert_eq!(parse_prefix(text).as_deref(), Ok(text));
        }
        for text in ["", ".", "..", "a/b", "../a", "_a", "-a", "a*", "a b", "ä", "a\0"] {
            assert!(parse_prefix(text).is_err(), "{text:?}");
        }
        assert_eq!(name("data", 3, 12), "data-00003-of-00012.tfrecord");
    }

    proptest! {
        #[test]
        fn every_input_is_in_one_shard_and_no_shard_could_take_the_next(
            sizes in proptest::collection::vec(0u64..50, 0..200), bytes in 1u64..100, records in 1u64..20,
        ) {
            let shards = cut(sizes.iter().copied(), limits(bytes, records));
            let mut at = 0;
            for shard in &shards {
                let (shard, stored) = (&shard.inputs, shard.bytes);
                prop_assert!(shard.start == at && shard.end > shard.start && shard.end - shard.start <= records);
                let sum = |range: Range<u64>| sizes[range.start as usize..range.end as usize].iter().sum::<u64>();
                prop_assert_eq!(sum(shard.clone()), stored);
                prop_assert!(shard.end - shard.start == 1 || stored <= bytes);
                if (shard.end as usize) < sizes.len() {
                    prop_assert!(shard.end - shard.start == records || sum(shard.start..shard.end + 1) > bytes);
                }
                at = shard.end;
            }
            prop_assert_eq!(at, sizes.len() as u64);
        }
    }
}
