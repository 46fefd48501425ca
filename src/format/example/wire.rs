//! The protobuf wire format: varints, tags, lengths, and skipping of unwanted fields.

/// What is wrong with the bytes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// The message ends inside a field.
    Truncated,
    /// A number takes more than 64 bits.
    Varint,
    /// A field number or wire type that does not exist.
    Tag,
    /// Groups that are not closed, closed twice, or nested too deep.
    Group,
}

impl Flaw {
    pub(super) fn text(self) -> &'static str {
        match self {
            Flaw::Truncated => "a field reaches beyond the end",
            Flaw::Varint => "a number takes more than 64 bits",
            Flaw::Tag => "a field has no valid number and type",
            Flaw::Group => "a group is not closed, or nested too deep",
        }
    }
}

/// Returns the tag of a length-delimited field.
pub(super) const fn len(field: u32) -> u32 {
    field << 3 | 2
}

/// Returns the tag of a varint field.
pub(super) const fn var(field: u32) -> u32 {
    field << 3
}

/// Returns the tag of a field of four bytes.
pub(super) const fn fixed32(field: u32) -> u32 {
    field << 3 | 5
}

#[inline(always)]
pub(super) fn varint(input: &mut &[u8]) -> Result<u64, Flaw> {
    match *input {
        [a, rest @ ..] if *a < 0x80 => {
            *input = rest;
            Ok(u64::from(*a))
        }
        [a, b, rest @ ..] if *b < 0x80 => {
            *input = rest;
            Ok(u64::from(*a & 0x7f) | u64::from(*b) << 7)
        }
        _ => long_varint(input),
    }
}

fn long_varint(input: &mut &[u8]) -> Result<u64, Flaw> {
    let mut value = 0;
    for (i, &byte) in input.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            *input = &input[i + 1..];
            // The tenth byte holds one bit.
            return if i == 9 && byte > 1 { Err(Flaw::Varint) } else { Ok(value) };
        }
    }
    Err(if input.len() < 10 { Flaw::Truncated } else { Flaw::Varint })
}

/// Reads the next field's number and wire type.
#[inline(always)]
pub(super) fn tag(input: &mut &[u8]) -> Result<u32, Flaw> {
    let tag = u32::try_from(varint(input)?).map_err(|_| Flaw::Tag)?;
    if tag < 8 { Err(Flaw::Tag) } else { Ok(tag) }
}

/// Reads a length-delimited value.
#[inline(always)]
pub(super) fn bytes<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], Flaw> {
    let length = varint(input)?;
    take(input, usize::try_from(length).map_err(|_| Flaw::Truncated)?)
}

#[inline(always)]
pub(super) fn take<'a>(input: &mut &'a [u8], length: usize) -> Result<&'a [u8], Flaw> {
    let (value, rest) = input.split_at_checked(length).ok_or(Flaw::Truncated)?;
    *input = rest;
    Ok(value)
}

/// Skips the value of the field with this tag.
pub(super) fn skip(input: &mut &[u8], field: u32) -> Result<(), Flaw> {
    /// The nesting depth that protobuf's own parsers allow.
    const DEPTH: usize = 100;
    let mut open = Vec::new();
    let mut field = field;
    loop {
        match field & 7 {
            0 => _ = varint(input)?,
            1 => _ = take(input, 8)?,
            2 => _ = bytes(input)?,
            3 if open.len() < DEPTH => open.push(field >> 3),
            4 if open.last() == Some(&(field >> 3)) => _ = open.pop(),
            3 | 4 => return Err(Flaw::Group),
            5 => _ = take(input, 4)?,
            _ => return Err(Flaw::Tag),
        }
        if open.is_empty() {
            return Ok(());
        }
        field = if input.is_empty() { return Err(Flaw::Group) } else { tag(input)? };
    }
}

/// Returns the length-delimited fields of a message and skips all others.
///
/// # Errors
/// The first flaw; the iterator ends after it.
pub(super) fn fields(mut message: &[u8]) -> impl Iterator<Item = Result<(u32, &[u8]), Flaw>> {
    std::iter::from_fn(move || {
        while !message.is_empty() {
            let mut next = || {
                let tag = tag(&mut message)?;
                if tag & 7 == 2 {
                    Ok(Some((tag, bytes(&mut message)?)))
                } else {
                    skip(&mut message, tag).map(|()| None)
                }
            };
            match next() {
                Ok(None) => {}
                Ok(Some(field)) => return Some(Ok(field)),
                Err(flaw) => {
                    message = &[];
                    return Some(Err(flaw));
                }
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_of_all_lengths_are_read_and_longer_ones_refused() {
        for shift in 0..64 {
            for value in [1u64 << shift, u64::MAX >> shift] {
                let mut encoded = Vec::new();
                prost::encoding::encode_varint(value, &mut encoded);
                for cut in 0..encoded.len() {
                    assert_eq!(varint(&mut &encoded[..cut]), Err(Flaw::Truncated));
                }
                encoded.push(7);
                let mut input = &encoded[..];
                assert_eq!((varint(&mut input), input), (Ok(value), &[7][..]));
            }
        }
        assert_eq!(varint(&mut &[0xff; 11][..]), Err(Flaw::Varint));
        assert_eq!(varint(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2][..]), Err(Flaw::Varint));
    }

    #[test]
    fn groups_are_skipped_whole_or_refused() {
        // Field 9: a group that holds a varint, a string, and a group 10 with four bytes.
        let group = [0x4b, 0x08, 0x05, 0x12, 0x01, b'x', 0x53, 0x0d, 1, 2, 3, 4, 0x54, 0x4c];
        let mut input = &group[..];
        let first = tag(&mut input).unwrap();
        assert_eq!((skip(&mut input, first), input), (Ok(()), &[][..]));
        for cut in 1..group.len() {
            let mut input = &group[1..cut];
            assert!(skip(&mut input, first).is_err());
        }
        let deep = vec![0x4b; 1000];
        assert_eq!(skip(&mut &deep[..], 0x4b), Err(Flaw::Group));
        assert_eq!(skip(&mut &[0x54][..], 0x4b), Err(Flaw::Group));
    }

    #[test]
    fn fields_end_after_the_first_flaw() {
        let message = [0x08, 1, 0x12, 1, b'x', 0x07];
        let found: Vec<_> = fields(&message).collect();
        assert_eq!(found, [Ok((len(2), &b"x"[..])), Err(Flaw::Tag)]);
    }
}
