//! Computes the length of byte strings whose lengths are stored as differences, before the general reader allocates the declared number of strings
//! and writes out the prefixes that they share.
//!
//! Source: Apache Parquet, "Encodings", Delta Encoding (DELTA_BINARY_PACKED = 5), Delta-length byte array
//! (DELTA_LENGTH_BYTE_ARRAY = 6) and Delta Strings (DELTA_BYTE_ARRAY = 7).

use super::hybrid::unpack;
use super::numbers::levels_of;
use super::page::{Encoding, Page, PageKind};
use crate::error::{Error, Result};

/// Returns the bytes of all strings of a page in one of these encodings. In DELTA_BYTE_ARRAY, the lengths of the prefix that each string shares with
/// the one before come first, then the lengths of what each string adds.
pub(super) fn string_bytes(page: &Page<'_>, max_repetition: i16, max_definition: i16) -> Result<u64> {
    let mut data: &[u8] = page.data;
    if page.header.kind == PageKind::Data {
        data = levels_of(data, max_repetition)?.1;
        data = levels_of(data, max_definition)?.1;
    }
    let values = u64::from(page.header.values);
    let first = sum(&mut data, values)?;
    if page.header.encoding == Encoding::DeltaLengths {
        return Ok(first);
    }
    Ok(first.saturating_add(sum(&mut data, values)?))
}

/// Returns the sum of the numbers of a stream, and removes the stream from the front of `data`. There may be at most `most` numbers, none below zero.
fn sum(data: &mut &[u8], most: u64) -> Result<u64> {
    let wrong = |what: &str| Error::corrupt(format!("lengths of strings {what}"));
    let [block, groups, count] = [varint(data)?, varint(data)?, varint(data)?];
    let mut value = zigzag(varint(data)?);
    if count > most {
        return Err(wrong("are more than the strings"));
    }
    let each = block.checked_div(groups).filter(|each| each.is_multiple_of(32) && *each > 0 && block <= 1 << 31);
    let each = each.ok_or_else(|| wrong("come in groups of no size that there is"))? as usize;
    let mut total: u64 = 0;
    let mut add = |value: i64| -> Result<()> {
        total = total.saturating_add(u64::try_from(value).map_err(|_| wrong("are below zero"))?);
        Ok(())
    };
    let mut left = count;
    if left > 0 {
        add(value)?;
        left -= 1;
    }
    let mut unpacked = [0; 32];
    while left > 0 {
        let least = zigzag(varint(data)?);
        let widths = take(data, groups as usize)?;
        for &width in widths {
            if left == 0 {
                break;
            }
            if width > 32 {
                return Err(wrong("differ by more than 32 bits"));
            }
            // The last group is whole.
            let mut packed = take(data, each / 8 * usize::from(width))?;
            for _ in 0..each / 32 {
                let bytes = take(&mut packed, 4 * usize::from(width))?;
                unpack(bytes, width.into(), &mut unpacked);
                for &delta in unpacked.iter().take(left.min(32) as usize) {
                    // As the general reader counts: in 32 bits, which go round.
                    value = i64::from((value as i32).wrapping_add(least as i32).wrapping_add(delta as i32));
                    add(value)?;
                }
                left = left.saturating_sub(32);
                if left == 0 {
                    break;
                }
            }
        }
    }
    Ok(total)
}

fn take<'a>(data: &mut &'a [u8], bytes: usize) -> Result<&'a [u8]> {
    let (taken, rest) = data.split_at_checked(bytes).ok_or_else(early)?;
    *data = rest;
    Ok(taken)
}

fn varint(data: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(data, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::corrupt("a length does not end"))
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn early() -> Error {
    Error::corrupt("a page ends within the lengths of its strings")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_add_up() {
        // Blocks of 128 in 4 groups of 32; 5 numbers: 7, 5, 3, 1, 2 (first 7; differences -2, -2, -2, 1; least -2; 0, 0, 0, 3 in two bits).
        let stream = [0x80, 1, 4, 5, 14, 3, 2, 0, 0, 0, 0b1100_0000, 0, 0, 0, 0, 0, 0, 0];
        let mut data = &stream[..];
        assert_eq!(sum(&mut data, 5).unwrap(), 18);
        assert!(data.is_empty());
        assert!(sum(&mut &stream[..], 4).unwrap_err().to_string().contains("more than the strings"));
        for end in 0..stream.len() {
            assert!(sum(&mut &stream[..end], 5).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn numbers_without_bits_take_no_time_beyond_their_count() {
        // A block of 2^20 in one group without bits: a million times 1,000.
        let stream = [0x80, 0x80, 0x40, 1, 0x80, 0x80, 0x40, 0xd0, 0x0f, 0, 0];
        assert_eq!(sum(&mut &stream[..], 1 << 20).unwrap(), 1000 << 20);
    }
}
