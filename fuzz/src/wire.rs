//! A second reader of `tf.Example`, plain and slow, with which the parser is compared.
//!
//! It follows protobuf's own rules where `prost` is stricter (a known field of another wire type is an unknown field, and unwanted names need not be
//! UTF-8). It reads as little as the parser: features that no column wants are skipped, and of several with the same name only the last is opened.

use std::collections::BTreeMap;

use forebay::format::example::{BytesList, Feature, FloatList, Int64List, Kind, Values};

/// The error of bytes that are not valid protobuf.
#[derive(Debug)]
pub(crate) struct Flawed;

/// The values of a map's entries, by name, as pieces that are to be merged.
pub(crate) type Map<'a> = BTreeMap<&'a [u8], Vec<&'a [u8]>>;

/// The value of a field.
pub(crate) enum Value<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
    /// Eight bytes, or a group: features have neither.
    Other,
}

fn take<'a>(input: &mut &'a [u8], bytes: u64) -> Result<&'a [u8], Flawed> {
    let (taken, rest) = usize::try_from(bytes).ok().and_then(|bytes| input.split_at_checked(bytes)).ok_or(Flawed)?;
    *input = rest;
    Ok(taken)
}

fn varint(input: &mut &[u8]) -> Result<u64, Flawed> {
    let mut value = 0u128;
    for shift in 0..10 {
        let byte = take(input, 1)?[0];
        value |= u128::from(byte & 0x7f) << (7 * shift);
        if byte < 0x80 {
            return value.try_into().map_err(|_| Flawed);
        }
    }
    Err(Flawed)
}

/// Reads the next field's number and value.
fn field<'a>(input: &mut &'a [u8], depth: u32) -> Result<(u32, Value<'a>), Flawed> {
    let (number, wire_type) = tag(input)?;
    let value = match wire_type {
        0 => Value::Varint(varint(input)?),
        1 => {
            take(input, 8)?;
            Value::Other
        }
        2 => {
            let bytes = varint(input)?;
            Value::Bytes(take(input, bytes)?)
        }
        3 if depth > 0 => {
            // Fields up to the end of this very group.
            loop {
                let mut ahead = *input;
                if tag(&mut ahead)? == (number, 4) {
                    *input = ahead;
                    break;
                }
                field(input, depth - 1)?;
            }
            Value::Other
        }
        5 => Value::Fixed32(take(input, 4)?.try_into().map_err(|_| Flawed)?),
        _ => return Err(Flawed),
    };
    Ok((number, value))
}

fn tag(input: &mut &[u8]) -> Result<(u32, u32), Flawed> {
    let tag = u32::try_from(varint(input)?).map_err(|_| Flawed)?;
    if tag < 8 { Err(Flawed) } else { Ok((tag >> 3, tag & 7)) }
}

/// Returns all fields of a message, in order; a flaw comes last.
pub(crate) fn fields(mut message: &[u8]) -> impl Iterator<Item = Result<(u32, Value<'_>), Flawed>> {
    std::iter::from_fn(move || {
        let next = (!message.is_empty()).then(|| field(&mut message, 100))?;
        if next.is_err() {
            message = &[];
        }
        Some(next)
    })
}

/// Returns the features of a record, and its feature lists.
pub(crate) fn maps(record: &[u8], kind: Kind) -> Result<[Map<'_>; 2], Flawed> {
    let mut maps = [Map::new(), Map::new()];
    let last = if kind == Kind::Example { 1 } else { 2 };
    for part in fields(record) {
        let (number, value) = part?;
        if let Value::Bytes(map) = value
            && (1..=last).contains(&number)
        {
            for entry in fields(map) {
                let (1, Value::Bytes(entry)) = entry? else { continue };
                let (mut name, mut values) = (&[][..], Vec::new());
                for part in fields(entry) {
                    match part? {
                        (1, Value::Bytes(bytes)) => name = bytes,
                        (2, Value::Bytes(bytes)) => values.push(bytes),
                        _ => {}
                    }
                }
                maps[number as usize - 1].insert(name, values);
            }
        }
    }
    Ok(maps)
}

/// Returns the feature that these pieces make.
pub(crate) fn feature(pieces: &[&[u8]]) -> Result<Feature, Flawed> {
    let mut kind = None;
    for part in pieces.iter().flat_map(|piece| fields(piece)) {
        let (number @ 1..=3, Value::Bytes(list)) = part? else { continue };
        // Another kind replaces what was there.
        match (number, &mut kind) {
            (1, Some(Values::Bytes(_))) | (2, Some(Values::Float(_))) | (3, Some(Values::Int64(_))) => {}
            (1, kind) => *kind = Some(Values::Bytes(BytesList::default())),
            (2, kind) => *kind = Some(Values::Float(FloatList::default())),
            (_, kind) => *kind = Some(Values::Int64(Int64List::default())),
        }
        for value in fields(list) {
            let (1, value) = value? else { continue };
            match (kind.as_mut().expect("set above"), value) {
                (Values::Bytes(list), Value::Bytes(string)) => list.value.push(string.to_vec()),
                (Values::Float(list), Value::Fixed32(float)) => list.value.push(f32::from_le_bytes(float)),
                (Values::Float(list), Value::Bytes(packed)) => {
                    let (floats, []) = packed.as_chunks::<4>() else { return Err(Flawed) };
                    list.value.extend(floats.iter().map(|float| f32::from_le_bytes(*float)));
                }
                (Values::Int64(list), Value::Varint(int)) => list.value.push(int as i64),
                (Values::Int64(list), Value::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        list.value.push(varint(&mut packed)? as i64);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(Feature { kind })
}
