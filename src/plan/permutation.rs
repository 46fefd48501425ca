//! Keyed permutations: a shuffled order as a function of (key, position).

use rand::RngCore;

use crate::random::Key;

/// Up to this length a permutation is a table drawn by Fisher-Yates, which is exactly uniform; above it, a Feistel network that keeps no table. It is a
/// constant of the order: changing it changes every pinned order.
const TABLE_LIMIT: u64 = 1 << 16;

/// Rounds of the Feistel network. Four already pass the displacement test below; six leave a margin.
const ROUNDS: usize = 6;

/// A bijection of `0..len` chosen by a key.
///
/// # Source
/// Fisher and Yates 1938 for short lengths; for long ones an unbalanced Feistel network with cycle walking (Black and
/// Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).
#[derive(Clone, Debug)]
pub(crate) enum Permutation {
    Table(Box<[u32]>),
    Feistel { len: u64, left_bits: u32, right_bits: u32, keys: [u64; ROUNDS] },
}

impl Permutation {
    pub(crate) fn new(key: Key, len: u64) -> Self {
        if len <= TABLE_LIMIT {
            let mut table: Box<[u32]> = (0..len as u32).collect();
            shuffle(&mut table, key);
            return Self::Table(table);
        }
        let bits = u64::BITS - (len - 1).leading_zeros();
        let mut keys = [0; ROUNDS];
        for (round, slot) in (0..).zip(&mut keys) {
            *slot = key.with_number(round).value();
        }
        Self::Feistel { len, left_bits: bits / 2, right_bits: bits - bits / 2, keys }
    }

    /// Returns where `position` goes.
    pub(crate) fn at(&self, position: u64) -> u64 {
        match self {
            Self::Table(table) => u64::from(table[position as usize]),
            Self::Feistel { len, left_bits, right_bits, keys } => {
                debug_assert!(position < *len);
                let mut value = position;
                loop {
                    value = feistel(value, *left_bits, *right_bits, keys);
                    if value < *len {
                        return value;
                    }
                }
            }
        }
    }
}

/// Puts up to 65,536 items into an order drawn by Fisher-Yates.
pub(crate) fn shuffle<T>(items: &mut [T], key: Key) {
    let mut rng = key.rng();
    for i in (1..items.len()).rev() {
        // Multiply-shift: the bias is below 2^-47.
        let j = ((u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64) as usize;
        items.swap(i, j);
    }
}

fn feistel(value: u64, left_bits: u32, right_bits: u32, keys: &[u64; ROUNDS]) -> u64 {
    let (left_mask, right_mask) = ((1 << left_bits) - 1, (1 << right_bits) - 1);
    let (mut left, mut right) = (value >> right_bits, value & right_mask);
    for pair in keys.chunks_exact(2) {
        left ^= mix(right ^ pair[0]) & left_mask;
        right ^= mix(left ^ pair[1]) & right_mask;
    }
    left << right_bits | right
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_bijection_for_short_and_long_lengths() {
        for len in [0, 1, 2, 3, 7, 64, 1000, 65_535, 65_536, 65_537, 100_000, 131_072, 131_073] {
            let permutation = Permutation::new(Key::new(1), len);
            let mut seen = vec![false; len as usize];
            for position in 0..len {
                let to = permutation.at(position) as usize;
                assert!(!std::mem::replace(&mut seen[to], true), "{to} twice, length {len}");
            }
        }
    }

    #[test]
    fn keys_give_unrelated_orders() {
        for len in [1000, 100_000] {
            let (a, b) = (Permutation::new(Key::new(1), len), Permutation::new(Key::new(2), len));
            let same = (0..len).filter(|&i| a.at(i) == b.at(i)).count();
            assert!(same < 12, "{same} of {len} agree; about one is expected");
        }
    }

    #[test]
    fn displaces_by_a_third_of_the_length_on_average() {
        for len in [1000u64, 100_000, 1_000_003] {
            let permutation = Permutation::new(Key::new(3), len);
            let total: f64 = (0..len).map(|i| permutation.at(i).abs_diff(i) as f64).sum();
            let relative = total / len as f64 / len as f64;
            assert!((relative - 1.0 / 3.0).abs() < 0.02, "mean displacement {relative} of {len}");
        }
    }

    #[test]
    fn every_order_of_three_is_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        for seed in 0..6000 {
            let permutation = Permutation::new(Key::new(seed), 3);
            *counts.entry([0, 1, 2].map(|i| permutation.at(i))).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|&n| (850..1150).contains(&n)), "{counts:?}");
    }
}
