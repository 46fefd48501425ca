//! The small part of Thrift's compact protocol in which page headers and footers are written.
//!
//! Source: Apache Thrift, "Thrift Compact protocol encoding".

use crate::error::{Error, Result};

/// The deepest nesting of values: page headers need three levels, footers eight.
const MAX_DEPTH: u32 = 16;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    True,
    False,
    Byte,
    /// Integers of 16, 32 and 64 bits: they have the same encoding.
    Int,
    Double,
    Binary,
    List,
    Map,
    Struct,
}

/// Reads from the front of a slice.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    /// Returns the number of bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Result<u8> {
        let byte = *self.data.get(self.at).ok_or_else(|| Error::corrupt("a header ends early"))?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::corrupt("a number in a header does not end"))
    }

    pub(super) fn int(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Reads the number and kind of the next field of a structure; `None` at the structure's end.
    pub(super) fn field(&mut self, last: &mut i64) -> Result<Option<(i64, Kind)>> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        let delta = i64::from(head >> 4);
        *last = if delta == 0 { self.int()? } else { *last + delta };
        i16::try_from(*last).map_err(|_| Error::corrupt(format!("a header has a field with the number {last}")))?;
        Ok(Some((*last, kind_of(head & 0x0f)?)))
    }

    /// Reads how many items a list has, and of which kind; the items follow.
    pub(super) fn list(&mut self) -> Result<(u64, Kind)> {
        let head = self.byte()?;
        let length = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        // Some writers give empty lists no type.
        Ok((length, if head == 0 { Kind::Byte } else { kind_of(head & 0x0f)? }))
    }

    /// Skips a list of booleans, each of which takes one byte in a list.
    pub(super) fn skip_truths(&mut self) -> Result<()> {
        match self.list()? {
            (0, _) => Ok(()),
            (length, Kind::True | Kind::False) => self.bytes(length),
            (_, other) => Err(Error::corrupt(format!("a list of {other:?}, where truth values are expected"))),
        }
    }

    /// Skips a value.
    pub(super) fn skip(&mut self, kind: Kind) -> Result<()> {
        self.skip_within(kind, MAX_DEPTH)
    }

    fn skip_within(&mut self, kind: Kind, depth: u32) -> Result<()> {
        let depth = depth.checked_sub(1).ok_or_else(|| Error::corrupt("a header nests too deeply"))?;
        match kind {
            Kind::True | Kind::False => Ok(()),
            Kind::Byte => self.bytes(1),
            Kind::Int => self.varint().map(drop),
            Kind::Double => self.bytes(8),
            Kind::Binary => {
                let length = self.varint()?;
                self.bytes(length)
            }
            Kind::List => {
                let (length, items) = self.list()?;
                self.items(length, depth, &[items])
            }
            Kind::Map => {
                let length = self.varint()?;
                if length == 0 {
                    return Ok(());
                }
                let kinds = self.byte()?;
                self.items(length, depth, &[kind_of(kinds >> 4)?, kind_of(kinds & 0x0f)?])
            }
            Kind::Struct => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip_within(kind, depth)?;
                }
                Ok(())
            }
        }
    }

    fn items(&mut self, length: u64, depth: u32, kinds: &[Kind]) -> Result<()> {
        for _ in 0..length {
            for &kind in kinds {
                // Each takes a byte at least, so a length from a damaged file ends with the data. Truth values do too, but the parquet crate
                // passes over those that it does not know as if they took none: for a length that is damaged, nearly without end.
                match kind {
                    Kind::True | Kind::False => return Err(Error::corrupt("a header has a list of truth values")),
                    other => self.skip_within(other, depth)?,
                }
            }
        }
        Ok(())
    }

    fn bytes(&mut self, length: u64) -> Result<()> {
        let left = (self.data.len() - self.at) as u64;
        if length > left {
            return Err(Error::corrupt("a header ends early"));
        }
        self.at += length as usize;
        Ok(())
    }
}

fn kind_of(code: u8) -> Result<Kind> {
    Ok(match code {
        1 => Kind::True,
        2 => Kind::False,
        3 => Kind::Byte,
        4..=6 => Kind::Int,
        7 => Kind::Double,
        8 => Kind::Binary,
        9 | 10 => Kind::List,
        11 => Kind::Map,
        12 => Kind::Struct,
        other => return Err(Error::corrupt(format!("a header has a field of type {other}, which there is not"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_passed_over() {
        // Field 1: list of 2 structs {1: i32}, field 2: map {i32: binary}, field 3: true, field 4: double, field 5: i32 -3.
        let data = [
            0x19, 0x2c, 0x15, 0x02, 0x00, 0x15, 0x04, 0x00, 0x1b, 0x01, 0x58, 0x06, 0x01, b'x', 0x11, 0x17, 0, 0, 0, 0,
            0, 0, 0, 0, 0x15, 0x05, 0x00, 0xff,
        ];
        let (mut reader, mut last, mut found) = (Reader::new(&data), 0, Vec::new());
        while let Some((field, kind)) = reader.field(&mut last).unwrap() {
            match field {
                5 => found.push(reader.int().unwrap()),
                _ => reader.skip(kind).unwrap(),
            }
        }
        assert_eq!((found, reader.position()), (vec![-3], data.len() - 1));
    }

    #[test]
    fn lengths_beyond_the_data_end_in_an_error_at_once() {
        // A list of 2^60 truth values, and structures in structures without end.
        let list = [0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 1];
        let nested = [0x1c; 64];
        // The parquet crate takes truth values of lists that it does not know for nothing.
        assert!(
            Reader::new(&[0x22, 1, 1]).skip(Kind::List).is_err() && Reader::new(&[0x22, 1, 1]).skip_truths().is_ok()
        );
        assert!(Reader::new(&[0]).skip(Kind::List).is_ok(), "an empty list without a type");
        // A number that is 2 in 16 bits.
        assert!(Reader::new(&[0x09, 0x84, 0x80, 0x08, 0]).field(&mut 0).is_err());
        for data in [&list[..], &nested[..], &[0x18, 0xff, 0xff, 0x7f, 1], &[0x15, 0xff], &[0x1d]] {
            let (mut reader, mut last) = (Reader::new(data), 0);
            let result = reader.field(&mut last).and_then(|field| field.map_or(Ok(()), |(_, kind)| reader.skip(kind)));
            assert!(result.is_err(), "{data:?}");
        }
    }
}
