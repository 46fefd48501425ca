//! Groups samples of similar length into the same batches.

use std::collections::BTreeSet;
use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::random::Key;

/// Samples of a stream that are sorted together by default.
const WINDOW: u64 = 1024;

/// How samples are grouped by length; see [`Dataset::bucket_by_length`](crate::Dataset::bucket_by_length).
///
/// # Example
/// ```
/// use forebay::Buckets;
///
/// assert_eq!(Buckets::boundaries([64, 256]).to_string(), "bounded at 64, 256, windows of 1024 samples");
/// assert_eq!(Buckets::token_budget(8192).window(512).to_string(), "8192 tokens a batch, windows of 512 samples");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Buckets {
    kind: Kind,
    pub(crate) window: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Boundaries(Vec<usize>),
    TokenBudget(u64),
}

impl Buckets {
    /// Makes buckets of the lengths `..b0`, `b0..b1`, …, `bn..`, for ascending boundaries. Batches have the size that [`batch`](crate::Dataset::batch) says,
    /// and the samples of a batch come from one bucket as far as possible.
    pub fn boundaries(boundaries: impl IntoIterator<Item = usize>) -> Self {
        Self { kind: Kind::Boundaries(boundaries.into_iter().collect()), window: WINDOW }
    }

    /// Makes batches of as many samples as there is room for.
    ///
    /// The number of samples times the longest is at most `tokens`, over all ranks, and each stream stays within its share of that.
    /// [`batch`](crate::Dataset::batch) says how many samples there are at most.
    pub fn token_budget(tokens: u64) -> Self {
        Self { kind: Kind::TokenBudget(tokens), window: WINDOW }
    }

    /// Sets how many samples of each stream are sorted together: 1024 by default. A larger window pads less, mixes less, and takes memory for as many samples
    /// of every stream. The window is rounded up to whole shares of a batch.
    #[must_use]
    pub fn window(mut self, samples: u64) -> Self {
        self.window = samples;
        self
    }

    /// The tokens of a batch over all ranks, if they are bounded.
    pub(crate) fn tokens(&self) -> Option<u64> {
        match self.kind {
            Kind::Boundaries(_) => None,
            Kind::TokenBudget(tokens) => Some(tokens),
        }
    }

    /// Returns what is wrong with the options, with advice.
    pub(crate) fn mistakes(&self) -> Vec<(String, &'static str)> {
        let mut mistakes = Vec::new();
        if self.window == 0 {
            mistakes.push(("buckets of a window of 0 samples".into(), ".window(n) wants n of at least 1"));
        }
        match &self.kind {
            Kind::Boundaries(boundaries) if boundaries.is_empty() || !boundaries.is_sorted_by(|a, b| a < b) => {
                mistakes.push((
                    format!("buckets bounded at {boundaries:?}"),
                    "give Buckets::boundaries at least one, in ascending order",
                ));
            }
            Kind::TokenBudget(0) => {
                mistakes.push(("a budget of 0 tokens a batch".into(), "give Buckets::token_budget at least 1"));
            }
            _ => {}
        }
        mistakes
    }
}

impl fmt::Display for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Boundaries(boundaries) => {
                let boundaries: Vec<String> = boundaries.iter().map(ToString::to_string).collect();
                write!(f, "bounded at {}", boundaries.join(", "))?;
            }
            Kind::TokenBudget(tokens) => write!(f, "{tokens} tokens a batch")?,
        }
        write!(f, ", windows of {} samples", self.window)
    }
}

/// The most that a stream contributes to a batch: rows, and tokens if they are bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) rows: usize,
    pub(crate) tokens: Option<u64>,
}

/// The samples of a window in the order in which they are dealt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dealt {
    pub(crate) order: Vec<u32>,
    /// For each sample the number of its share, counted in the order of dealing.
    pub(crate) shares: Vec<u32>,
}

/// Returns samples that no share has room for, each with the reason, in ascending order.
pub(crate) fn unfit_to_deal(lengths: &[u32], part: Part, column: &str) -> Vec<(usize, Error)> {
    let Some(most) = part.tokens else { return Vec::new() };
    let longer = lengths.iter().enumerate().filter(|(_, length)| u64::from(**length) > most);
    let error = |length: u32| {
        let message = format!("a sample of {length} tokens, where a stream's share of the budget is {most}");
        let error = Error::new(ErrorKind::Transform, message).column(column);
        error.advice("take a larger Buckets::token_budget(n), fewer .streams(n), or cut samples before")
    };
    longer.map(|(row, &length)| (row, error(length))).collect()
}

/// Sorts samples of these lengths by bucket, or by length, cuts them into shares, and deals the shares.
///
/// The order of shares depends on their number and the key alone. Therefore streams with the same number of shares deal the same quantile of their lengths in
/// the same step, without knowing of each other; streams with about the same number deal about the same quantile.
///
/// Samples in `left_out` (ascending) are not dealt.
pub(crate) fn deal(lengths: &[u32], left_out: &[usize], buckets: &Buckets, part: Part, key: Key) -> Dealt {
    let mut sorted: Vec<u32> = (0..lengths.len() as u32).collect();
    if !left_out.is_empty() {
        sorted.retain(|&row| left_out.binary_search(&(row as usize)).is_err());
    }
    let length = |row: u32| lengths[row as usize] as usize;
    match &buckets.kind {
        Kind::Boundaries(boundaries) => sorted.sort_by_key(|&row| boundaries.partition_point(|&b| b <= length(row))),
        Kind::TokenBudget(_) => sorted.sort_by_key(|&row| length(row)),
    }
    let mut ends = Vec::new();
    let mut start = 0;
    for (at, &row) in sorted.iter().enumerate() {
        // Ascending: the row at hand is the longest of the share that it would join.
        let tokens = (at + 1 - start) as u64 * length(row) as u64;
        if at > start && (at - start >= part.rows || part.tokens.is_some_and(|most| tokens > most)) {
            ends.push(at);
            start = at;
        }
    }
    if start < sorted.len() {
        ends.push(sorted.len());
    }
    // Of equal shares one may be left that is not full. It comes last: whatever comes behind is dealt in other rows than those of its stream's share.
    let whole = match part.tokens {
        Some(_) => ends.len(),
        None => sorted.len() / part.rows,
    };
    let mut dealt = Dealt { order: Vec::with_capacity(sorted.len()), shares: Vec::with_capacity(sorted.len()) };
    for (number, share) in spread(whole, key).into_iter().chain(whole..ends.len()).enumerate() {
        let start = if share == 0 { 0 } else { ends[share - 1] };
        dealt.order.extend(&sorted[start..ends[share]]);
        dealt.shares.resize(dealt.order.len(), number as u32);
    }
    dealt
}

/// Orders the numbers `0..count` so that every stretch is spread over all of them, from a start that the key draws: the k-th number is the remaining one
/// nearest to `frac(start + k·golden ratio)` of them.
fn spread(count: usize, key: Key) -> Vec<usize> {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let (mut left, mut at): (BTreeSet<usize>, u64) = ((0..count).collect(), key.value());
    let next = |_| {
        let wanted = ((u128::from(at) * count as u128) >> 64) as usize;
        at = at.wrapping_add(GOLDEN);
        let (below, above) = (left.range(..wanted).next_back().copied(), left.range(wanted..).next().copied());
        let nearest = match (below, above) {
            (Some(below), Some(above)) if wanted - below < above - wanted => below,
            (below, above) => above.or(below).expect("as many are left as are wanted"),
        };
        left.remove(&nearest);
        nearest
    };
    (0..count).map(next).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(lengths: &[u32], dealt: &Dealt) -> Vec<Vec<u32>> {
        let rows = dealt.shares.chunk_by(|a, b| a == b).scan(0, |at, share| {
            let start = std::mem::replace(at, *at + share.len());
            Some(dealt.order[start..*at].iter().map(|&row| lengths[row as usize]).collect())
        });
        rows.collect()
    }

    #[test]
    fn shares_are_of_one_bucket_as_far_as_possible() {
        let lengths = [9, 1, 8, 2, 7, 3, 1, 9];
        let part = Part { rows: 2, tokens: None };
        let dealt = deal(&lengths, &[], &Buckets::boundaries([5]), part, Key::new(1));
        let mut found = shares(&lengths, &dealt);
        found.sort();
        // In the order in which they came, within a bucket.
        assert_eq!(found, [[1, 2], [3, 1], [7, 9], [9, 8]]);
    }

    #[test]
    fn a_budget_bounds_rows_times_the_longest() {
        let lengths = [9, 1, 8, 2, 7, 3, 1, 9];
        let part = Part { rows: 3, tokens: Some(10) };
        let mut found = shares(&lengths, &deal(&lengths, &[], &Buckets::token_budget(10), part, Key::new(1)));
        found.sort();
        assert_eq!(found, [vec![1, 1, 2], vec![3], vec![7], vec![8], vec![9], vec![9]]);
    }

    #[test]
    fn an_unfull_share_comes_last() {
        let lengths: Vec<u32> = (0..11).collect();
        for seed in 0..20 {
            let part = Part { rows: 4, tokens: None };
            let found = shares(&lengths, &deal(&lengths, &[], &Buckets::boundaries([6]), part, Key::new(seed)));
            assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 3]);
        }
    }

    #[test]
    fn streams_of_the_same_count_deal_the_same_quantiles() {
        let short: Vec<u32> = (0..64).map(|i| i * 7 % 64).collect();
        let long: Vec<u32> = (0..64).map(|i| 1000 + i * 11 % 64).collect();
        let (part, buckets) = (Part { rows: 4, tokens: None }, Buckets::boundaries((1..64).chain(1001..1064)));
        let longest = |lengths: &[u32]| -> Vec<u32> {
            let dealt = deal(lengths, &[], &buckets, part, Key::new(5));
            shares(lengths, &dealt).iter().map(|share| share.iter().max().unwrap() % 1000).collect()
        };
        assert_eq!(longest(&short), longest(&long));
        assert!(!longest(&short).is_sorted());
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(Buckets::boundaries([]).window(0).mistakes().len(), 2);
        assert_eq!(Buckets::boundaries([3, 3]).mistakes().len(), 1);
        assert_eq!(Buckets::token_budget(0).mistakes().len(), 1);
        assert_eq!(Buckets::token_budget(1).mistakes().len(), 0);
    }

    proptest! {
        #[test]
        fn each_sample_is_dealt_once(
            lengths in prop::collection::vec(0u32..50, 0..120),
            rows in 1usize..9,
            tokens in prop::option::of(50u64..200),
            seed in any::<u64>(),
        ) {
            let buckets = tokens.map_or_else(|| Buckets::boundaries([5, 20, 33]), Buckets::token_budget);
            let dealt = deal(&lengths, &[], &buckets, Part { rows, tokens }, Key::new(seed));
            let mut order = dealt.order.clone();
            order.sort_unstable();
            prop_assert_eq!(order, (0..lengths.len() as u32).collect::<Vec<_>>());
            for share in shares(&lengths, &dealt) {
                let longest = u64::from(*share.iter().max().unwrap());
                prop_assert!(share.len() <= rows);
                prop_assert!(tokens.is_none_or(|tokens| share.len() as u64 * longest <= tokens));
                // Neighbours in a share are neighbours by bucket: at most one boundary of three lies within, unless a bucket is too small.
                prop_assert!(!share.is_empty());
            }
            prop_assert_eq!(deal(&lengths, &[], &buckets, Part { rows, tokens }, Key::new(seed)), dealt);
        }
    }
}
