//! Documents of `pack`: token lists in memory, with the lengths of web texts.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int32Array, ListArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Int32Type};
use rand::Rng as _;

use crate::error::{Error, Result};
use crate::random::{Key, Rng};

/// The median of the lengths, which are log-normal. Web pages have some hundred tokens, a few have tens of thousands; with these parameters the mean
/// is 863.
const MEDIAN: f64 = 420.0;
const SIGMA: f64 = 1.2;
const SHORTEST: f64 = 8.0;
const LONGEST: f64 = 100_000.0;

/// Token ids: 1 up to GPT-2's vocabulary. 0 is padding.
const VOCABULARY: i32 = 50_257;

/// Draws a length from the distribution.
fn length(rng: &mut Rng) -> usize {
    (MEDIAN * libm::exp(SIGMA * super::data::normal(rng))).clamp(SHORTEST, LONGEST) as usize
}

/// Generates `count` documents, as one column of lists.
pub(super) fn documents(count: u64) -> Result<ArrayRef> {
    let mut rng = Key::new(0).with("bench").with("pack").rng();
    let (mut tokens, mut offsets) = (Vec::<i32>::new(), vec![0]);
    for _ in 0..count {
        let length = length(&mut rng);
        tokens.extend((0..length).map(|_| rng.random_range(1..VOCABULARY)));
        offsets.push(i32::try_from(tokens.len()).map_err(|_| {
            Error::config(format!("{count} documents have 2^31 tokens or more")).advice("take fewer --samples")
        })?);
    }
    let field = Arc::new(Field::new_list_field(DataType::Int32, false));
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Ok(Arc::new(ListArray::new(field, offsets, Arc::new(Int32Array::from(tokens)), None)))
}

/// Returns a token's term of the sum over all tokens, which shows if one is lost or repeated.
pub(super) fn term(token: i64) -> u64 {
    let mixed = (token as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// Returns the number of tokens, and the sum of their terms.
pub(super) fn sum(documents: &ArrayRef) -> (u64, u64) {
    let tokens = documents.as_list::<i32>().values().as_primitive::<Int32Type>().values();
    (tokens.len() as u64, tokens.iter().fold(0, |sum, &token| sum.wrapping_add(term(token.into()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_distribution() {
        let lists = documents(4000).unwrap();
        let mut lengths: Vec<usize> = lists.as_list::<i32>().offsets().lengths().collect();
        lengths.sort_unstable();
        assert!((380..460).contains(&lengths[2000]), "median {}", lengths[2000]);
        let mean = lengths.iter().sum::<usize>() / 4000;
        assert!((780..950).contains(&mean), "mean {mean}");
        assert_eq!(sum(&lists).0, (mean * 4000 + lengths.iter().sum::<usize>() % 4000) as u64);
    }
}
