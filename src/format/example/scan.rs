//! Finds where the wanted features of a record lie: the first of the parser's two passes.

use xxhash_rust::xxh3::xxh3_64;

use super::wire::{self, Flaw, len};

/// Marks the slot of an entry with several values that are to be merged. No value looks like this.
pub(super) const ODD: &[u8] = &[0xff];

/// Marks the slot of a feature list that exists but has no steps: a valid encoding of an empty list that is not itself empty.
pub(super) const NO_STEPS: &[u8] = &[0x10, 0];

/// Column numbers by name: open addressing, at most half full.
#[derive(Clone, Debug)]
pub(super) struct Names {
    table: Vec<Option<(Box<[u8]>, u32)>>,
}

impl Names {
    pub(super) fn new<'n>(names: impl Iterator<Item = (&'n str, u32)>) -> Self {
        let names: Vec<_> = names.collect();
        let mut table = vec![None; (names.len() * 2).next_power_of_two().max(2)];
        for (name, column) in names {
            let mut at = xxh3_64(name.as_bytes()) as usize % table.len();
            while table[at].is_some() {
                at = (at + 1) % table.len();
            }
            table[at] = Some((name.as_bytes().into(), column));
        }
        Self { table }
    }

    fn find(&self, name: &[u8]) -> u32 {
        let mask = self.table.len() - 1;
        let mut at = xxh3_64(name) as usize & mask;
        while let Some((found, column)) = &self.table[at] {
            if **found == *name {
                return *column;
            }
            at = (at + 1) & mask;
        }
        UNWANTED
    }
}

/// Marks names that belong to no column.
const UNWANTED: u32 = u32::MAX;
/// Limits the hints: beyond this many features per record they would only cost memory.
const MAX_HINTS: usize = 1 << 14;

/// The order of the features in the records so far. Writers repeat it, so comparing a name with the one at the same place in the previous record
/// usually saves the look-up.
#[derive(Debug, Default)]
pub(super) struct Hints<'a>(Vec<(&'a [u8], u32)>);

impl<'a> Hints<'a> {
    #[inline(always)]
    fn column(&mut self, position: &mut usize, name: &'a [u8], names: &Names) -> u32 {
        for ahead in 0..2 {
            if let Some((hint, column)) = self.0.get(*position + ahead)
                && *hint == name
            {
                *position += ahead + 1;
                return *column;
            }
        }
        let column = names.find(name);
        if let Some(hint) = self.0.get_mut(*position) {
            *hint = (name, column);
        } else if self.0.len() < MAX_HINTS {
            self.0.push((name, column));
        }
        *position += 1;
        column
    }
}

/// An entry with several values: the number of its slot, and the whole entry.
pub(super) type OddEntry<'a> = (usize, &'a [u8]);

/// Puts the value of each wanted entry of a map into its column's slot; of entries with the same name, the last one counts. Returns how many were
/// wanted.
///
/// `first_slot` is the slot number of `slots[0]`, under which odd entries are recorded; `empty` stands for an empty value.
pub(super) fn map<'a>(
    mut input: &'a [u8],
    names: &Names,
    hints: &mut Hints<'a>,
    slots: &mut [&'a [u8]],
    first_slot: usize,
    odd: &mut Vec<OddEntry<'a>>,
    empty: &'a [u8],
) -> Result<usize, Flaw> {
    let (mut position, mut wanted) = (0, 0);
    while !input.is_empty() {
        let tag = wire::tag(&mut input)?;
        if tag != len(1) {
            wire::skip(&mut input, tag)?;
            continue;
        }
        let entry = wire::bytes(&mut input)?;
        let (name, value) = match usual(entry) {
            Some(parts) => parts,
            None => unusual(entry)?,
        };
        let column = hints.column(&mut position, name, names) as usize;
        if let Some(slot) = slots.get_mut(column) {
            *slot = if value.is_empty() { empty } else { value };
            wanted += 1;
            if value == ODD {
                odd.push((first_slot + column, entry));
            }
        }
    }
    Ok(wanted)
}

/// Returns the name and value of an entry in the form that all writers use: name, value, nothing else.
#[inline(always)]
fn usual(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let [0x0a, name_bytes @ 0..0x80, rest @ ..] = entry else { return None };
    let (name, rest) = rest.split_at_checked(usize::from(*name_bytes))?;
    let [0x12, value @ ..] = rest else { return None };
    let mut value = value;
    let value_bytes = wire::varint(&mut value).ok()?;
    (value_bytes == value.len() as u64).then_some((name, value))
}

/// Returns the name and value of any entry: the last name, or none; the one value, nothing, or [`ODD`].
#[cold]
fn unusual(entry: &[u8]) -> Result<(&[u8], &[u8]), Flaw> {
    let (mut name, mut value, mut values) = (&[][..], &[][..], 0);
    for field in wire::fields(entry) {
        match field? {
            (tag, bytes) if tag == len(1) => name = bytes,
            (tag, bytes) if tag == len(2) => (value, values) = (bytes, values + 1),
            _ => {}
        }
    }
    Ok((name, if values > 1 { ODD } else { value }))
}

/// Returns the values of an odd entry.
pub(super) fn odd_values(entry: &[u8]) -> impl Iterator<Item = &[u8]> {
    // The scan has been through the entry, so there is no flaw.
    wire::fields(entry).filter_map(|field| field.ok().filter(|(tag, _)| *tag == len(2)).map(|(_, value)| value))
}

/// Returns the names in the maps of a record, as far as they can be read, and at most `limit` of them.
pub(super) fn names(payload: &[u8], limit: usize) -> Vec<String> {
    let maps = wire::fields(payload).map_while(Result::ok).filter(|(tag, _)| *tag == len(1) || *tag == len(2));
    let entries = maps.flat_map(|(_, map)| wire::fields(map).map_while(Result::ok)).filter(|(tag, _)| *tag == len(1));
    let names = entries.filter_map(|(_, entry)| Some(unusual(entry).ok()?.0));
    let mut names: Vec<_> =
        names.take(limit).map(|name| String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned()).collect();
    names.sort();
    names.dedup();
    names
}

/// Returns the name of a feature or feature list that has values and is not known; nothing if the record cannot be read.
pub(crate) fn stranger(payload: &[u8], is_known: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
    // Numbers may be packed into runs, also of none at all.
    let has_values = |feature: &[u8]| {
        let mut lists = wire::fields(feature).map_while(Result::ok);
        feature == ODD || lists.any(|(kind, list)| list.chunks(2).any(|piece| kind == len(1) || piece != [0x0a, 0]))
    };
    let maps = wire::fields(payload).map_while(Result::ok).filter(|(tag, _)| *tag == len(1) || *tag == len(2));
    for (map_tag, map) in maps {
        for (_, entry) in wire::fields(map).map_while(Result::ok).filter(|(tag, _)| *tag == len(1)) {
            let Ok((name, value)) = usual(entry).map_or_else(|| unusual(entry), Ok) else { continue };
            let is_filled = || match map_tag == len(1) {
                true => has_values(value),
                false => value == ODD || wire::fields(value).map_while(Result::ok).any(|(_, step)| has_values(step)),
            };
            if !is_known(name) && is_filled() {
                return Some(name);
            }
        }
    }
    None
}

/// Checks whether every byte of a record belongs to a `tf.Example` (or `tf.SequenceExample`): no unknown field, no field of another type.
///
/// Another message may parse as an Example that has only unknown fields; this check tells them apart.
pub(super) fn is_exactly(payload: &[u8], sequence: bool) -> bool {
    fn all(message: &[u8], mut good: impl FnMut(u32, &[u8]) -> bool) -> bool {
        let mut message = message;
        while !message.is_empty() {
            let Ok(tag) = wire::tag(&mut message) else { return false };
            if tag & 7 != 2 {
                return false;
            }
            let Ok(value) = wire::bytes(&mut message) else { return false };
            if !good(tag, value) {
                return false;
            }
        }
        true
    }
    let feature = |value: &[u8]| all(value, |tag, _| (len(1)..=len(3)).contains(&tag));
    let map = |message: &[u8], value: &dyn Fn(&[u8]) -> bool| {
        all(message, |tag, entry| {
            tag == len(1)
                && all(entry, |tag, part| match tag {
                    tag if tag == len(1) => std::str::from_utf8(part).is_ok(),
                    tag => tag == len(2) && value(part),
                })
        })
    };
    all(payload, |tag, part| match tag {
        tag if tag == len(1) => map(part, &feature),
        tag => sequence && tag == len(2) && map(part, &|list| all(list, |tag, step| tag == len(1) && feature(step))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_without_values_are_no_strangers() {
        // A feature "a" of this list, of this kind.
        let record = |kind: u8, list: &[u8]| {
            let nested = |tag: u8, content: &[u8]| [&[tag, content.len() as u8], content].concat();
            let entry = [nested(0x0a, b"a"), nested(0x12, &nested(kind, list))].concat();
            nested(0x0a, &nested(0x0a, &entry))
        };
        let [bytes, floats, integers] = [0x0a, 0x12, 0x1a];
        for (kind, list, is_filled) in [
            (bytes, &[][..], false),
            (bytes, &[0x0a, 0], true),
            (floats, &[], false),
            (floats, &[0x0a, 0, 0x0a, 0], false),
            (floats, &[0x0a, 4, 0, 0, 0, 0], true),
            (floats, &[0x0d, 0, 0, 0, 0], true),
            (integers, &[0x0a, 0], false),
            (integers, &[0x0a, 0, 0x08, 0], true),
            (integers, &[0x0a, 1, 0], true),
        ] {
            let record = record(kind, list);
            assert_eq!(stranger(&record, |_| false), is_filled.then_some(&b"a"[..]), "{kind} {list:?}");
            assert_eq!(stranger(&record, |name| name == b"a"), None);
        }
    }
}
