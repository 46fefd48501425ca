//! Numbers drawn from (seed, epoch, sample, operation): the same on every thread, rank and machine.

use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The generator handed to user functions and image operations.
pub type Rng = Xoshiro256PlusPlus;

/// A point in the tree of keys from which all randomness comes.
///
/// A key is made from the loader's seed and refined by what it is used for. Two keys that differ in any step give unrelated numbers. The derivation is XXH3-64
/// and the generator is xoshiro256++; both are fixed for good, because saved states rely on them.
///
/// # Example
/// ```
/// use forebay::random::Key;
/// use rand::Rng;
///
/// let key = Key::new(42).with("crop").with_number(7);
/// let (a, b): (u32, u32) = (key.rng().random(), key.rng().random());
/// assert_eq!(a, b);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    /// Returns the root of a seed's tree.
    pub fn new(seed: u64) -> Self {
        Self(xxh3_64_with_seed(b"forebay", seed))
    }

    /// Returns the key of a named purpose below this one.
    #[must_use]
    pub fn with(self, name: &str) -> Self {
        Self(xxh3_64_with_seed(name.as_bytes(), self.0))
    }

    /// Returns the key of a number below this one.
    #[must_use]
    pub fn with_number(self, number: u64) -> Self {
        Self(xxh3_64_with_seed(&number.to_le_bytes(), self.0))
    }

    /// Returns the key as a number.
    pub fn value(self) -> u64 {
        self.0
    }

    /// Returns a generator that starts at this key.
    pub fn rng(self) -> Rng {
        Rng::seed_from_u64(self.0)
    }
}

/// Draws a number in [0, 1). It uses the upper 53 bits, so it depends on the generator alone and not on a library's conversion.
pub(crate) fn uniform(rng: &mut Rng) -> f64 {
    use rand::RngCore as _;
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Draws a whole number in [0, end).
pub(crate) fn below(rng: &mut Rng, end: u32) -> u32 {
    ((uniform(rng) * f64::from(end)) as u32).min(end - 1)
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;

    #[test]
    fn the_derivation_is_pinned() {
        let key = Key::new(42).with("crop").with_number(3);
        assert_eq!((key.value(), key.rng().random::<u64>()), PINNED);
    }

    const PINNED: (u64, u64) = (4515465323258866970, 1284884267683158077);

    #[test]
    fn every_step_matters() {
        let root = Key::new(1);
        let keys = [root, Key::new(2), root.with("a"), root.with("b"), root.with_number(0), root.with_number(1)];
        let distinct: std::collections::HashSet<_> = keys.iter().map(|k| k.value()).collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
