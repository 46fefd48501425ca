//! Runs of small numbers: levels and dictionary indexes.
//!
//! A stream alternates between runs of one repeated number and groups of eight numbers packed into bits. Levels of lists are nearly all runs, so they
//! are handled as runs and never expanded one by one.
//!
//! Source: Apache Parquet, "Encodings", Run Length Encoding / Bit-Packing Hybrid (RLE = 3).

use crate::error::{Error, Result};

/// Consecutive numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run<'a> {
    /// One number, repeated `count` times.
    Repeated { value: u32, count: usize },
    /// `count` numbers, packed into these bytes.
    Packed { bytes: &'a [u8], count: usize },
}

impl Run<'_> {
    fn count(&self) -> usize {
        match self {
            Run::Repeated { count, .. } | Run::Packed { count, .. } => *count,
        }
    }
}

/// Iterates over the runs of a stream, up to a number of values.
pub(super) struct Runs<'a> {
    data: &'a [u8],
    width: u32,
    left: usize,
}

impl<'a> Runs<'a> {
    /// Reads `values` numbers of `width` bits each (at most 32).
    pub(super) fn new(data: &'a [u8], width: u32, values: usize) -> Result<Self> {
        if width > 32 {
            return Err(Error::corrupt(format!("numbers of {width} bits, where 32 are the most")));
        }
        Ok(Self { data, width, left: values })
    }

    /// Returns the next run, cut to the values that are left; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Run<'a>>> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.width == 0 && self.data.is_empty() {
            // Numbers of no bits need no bytes.
            let run = Run::Repeated { value: 0, count: self.left };
            self.left = 0;
            return Ok(Some(run));
        }
        loop {
            let header = self.varint()?;
            let run = if header & 1 == 0 {
                let bytes = self.take(self.width.div_ceil(8) as usize)?;
                let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
                if u64::from(value) >> self.width != 0 {
                    return Err(Error::corrupt(format!("the number {value} in a run of {} bits", self.width)));
                }
                Run::Repeated { value, count: (header >> 1).min(self.left as u64) as usize }
            } else {
                let groups = (header >> 1) as usize;
                // The last group may be cut where its numbers end.
                let wanted = groups.saturating_mul(self.width as usize);
                let there = wanted.min(self.data.len());
                let count = if wanted == there { groups.saturating_mul(8) } else { there * 8 / self.width as usize };
                Run::Packed { bytes: self.take(there)?, count: count.min(self.left) }
            };
            // An empty run took a byte at least, so that the data ends some time.
            let count = run.count();
            if count > 0 {
                self.left -= count;
                return Ok(Some(run));
            }
        }
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let (&byte, rest) = self.data.split_first().ok_or_else(|| early(self.left))?;
            self.data = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::corrupt("the length of a run does not end"))
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.data.split_at_checked(bytes).ok_or_else(|| early(self.left))?;
        self.data = rest;
        Ok(taken)
    }
}

fn early(left: usize) -> Error {
    Error::corrupt(format!("a page ends {left} values early"))
}

/// Returns the number of bits needed for numbers up to `max`.
pub(super) fn width_of(max: i16) -> u32 {
    u16::BITS - (max as u16).leading_zeros()
}

/// Unpacks `out.len()` numbers of `width` bits from the front of `bytes`, which must hold them; the lowest bits come first.
pub(super) fn unpack(bytes: &[u8], width: u32, out: &mut [u32]) {
    macro_rules! by_width {
        ($($w:literal)*) => {
            match width {
                0 => out.fill(0),
                $($w => unpack_width::<$w>(bytes, out),)*
                _ => unreachable!("32 bits are the most"),
            }
        };
    }
    by_width!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32);
}

/// Unpacks numbers of a width known at compile time, so that shifts and masks are constants: 32 numbers take `W` words.
fn unpack_width<const W: usize>(bytes: &[u8], out: &mut [u32]) {
    let mask = u64::MAX >> (64 - W);
    let (mut whole, mut packed) = (out.chunks_exact_mut(32), bytes.chunks_exact(4 * W));
    let mut done = 0;
    for (out, packed) in (&mut whole).zip(&mut packed) {
        done += 1;
        let mut words = [0u64; 33];
        for (word, bytes) in words.iter_mut().zip(packed.chunks_exact(4)) {
            *word = u64::from(u32::from_le_bytes(bytes.try_into().expect("four bytes")));
        }
        for (i, out) in out.iter_mut().enumerate() {
            let bit = i * W;
            let pair = words[bit / 32] | words[bit / 32 + 1] << 32;
            *out = (pair >> (bit % 32) & mask) as u32;
        }
    }
    for (i, out) in out.iter_mut().enumerate().skip(done * 32) {
        let bit = i * W;
        let mut window = [0; 8];
        let there = &bytes[(bit / 8).min(bytes.len())..];
        let length = there.len().min(8);
        window[..length].copy_from_slice(&there[..length]);
        *out = (u64::from_le_bytes(window) >> (bit % 8) & mask) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(data: &[u8], width: u32, values: usize) -> Result<Vec<u32>> {
        let (mut runs, mut out) = (Runs::new(data, width, values)?, Vec::new());
        while let Some(run) = runs.next()? {
            match run {
                Run::Repeated { value, count } => out.extend(std::iter::repeat_n(value, count)),
                Run::Packed { bytes, count } => {
                    let start = out.len();
                    out.resize(start + count, 0);
                    unpack(bytes, width, &mut out[start..]);
                }
            }
        }
        Ok(out)
    }

    fn packed(values: &[u32], width: u32) -> Vec<u8> {
        let mut bytes = vec![0u8; (values.len() * width as usize).div_ceil(8)];
        for (i, value) in values.iter().enumerate() {
            for b in (0..width as usize).filter(|b| value >> b & 1 == 1) {
                bytes[(i * width as usize + b) / 8] |= 1 << ((i * width as usize + b) % 8);
            }
        }
        bytes
    }

    #[test]
    fn numbers_of_every_width_come_back() {
        for width in 1..=32 {
            for len in [1usize, 7, 8, 31, 32, 33, 100] {
                let values: Vec<u32> =
                    (0..len as u32).map(|i| i.wrapping_mul(2_654_435_761) & (u32::MAX >> (32 - width))).collect();
                let mut out = vec![0; len];
                unpack(&packed(&values, width), width, &mut out);
                assert_eq!(out, values, "width {width}, {len} numbers");
            }
        }
    }

    #[test]
    fn runs_and_groups_follow_each_other() {
        // Eight of 5, a group of 0..8, and one more run that is longer than what is left.
        let mut data = vec![8 << 1, 5, 1 << 1 | 1];
        data.extend(packed(&[0, 1, 2, 3, 4, 5, 6, 7], 3));
        data.extend([100 << 1 & 0x7f | 0x80, 1, 2]);
        let expected: Vec<u32> = [5; 8].into_iter().chain(0..8).chain([2; 4]).collect();
        assert_eq!(all(&data, 3, 20).unwrap(), expected);
        assert_eq!(all(&[], 0, 3).unwrap(), [0, 0, 0]);
    }

    #[test]
    fn what_ends_early_is_an_error_and_takes_no_memory() {
        for data in [&[][..], &[0x10], &[0x80], &[0xff; 9], &[0, 0, 0, 0], &[0x03]] {
            assert!(all(data, 3, 20).is_err(), "{data:?}");
        }
        assert!(Runs::new(&[], 33, 1).is_err());
        // A number that takes more bits than there are.
        assert!(all(&[0x10, 8], 3, 8).is_err() && all(&[0x10, 7], 3, 8).is_ok());
        // A run of 2^31 is cut to what is asked for.
        let mut runs = Runs::new(&[0xfe, 0xff, 0xff, 0xff, 0x0f, 1], 1, 10).unwrap();
        assert_eq!(runs.next().unwrap(), Some(Run::Repeated { value: 1, count: 10 }));
    }
}
