//! Where rows start in shards that do not tell: found in one pass, and kept in the folder of indexes.

use std::path::PathBuf;

use bytes::Bytes;

use super::open::Wanted;
#[cfg(feature = "text")]
use super::tfrecord::PIECE_BYTES;
use super::tfrecord::indexes::{NAMED, fingerprint, on_disk_thread, write_whole};
use crate::error::{Error, ErrorKind, Result};
use crate::format::packed::{Packing, unpack};
use crate::format::tfrecord::{Fingerprint, Shortened, matches};
use crate::store::{Object, Store};

/// Finds rows in the pieces of a shard.
#[cfg(feature = "text")]
pub(super) trait Scan: Send + 'static {
    /// Takes the next piece.
    fn feed(&mut self, piece: &[u8]);

    /// Where rows start, behind the last piece.
    fn starts(self) -> Vec<u64>;
}

/// Where the rows of a shard start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RowIndex {
    pub(super) packing: Packing,
    /// Offsets in the (decompressed) shard, in ascending order.
    pub(super) starts: Vec<u64>,
    /// The end of the last row: the bytes of the (decompressed) shard.
    pub(super) end: u64,
}

impl RowIndex {
    /// Where a row ends: where the next one starts.
    pub(super) fn row_end(&self, row: usize) -> u64 {
        self.starts.get(row + 1).copied().unwrap_or(self.end)
    }

    /// Cuts rows `first..` into runs of about `target` bytes: each as a first row and a row behind the last.
    pub(super) fn runs(&self, first: usize, target: u64) -> Vec<(usize, usize)> {
        let (mut runs, mut begin) = (Vec::new(), first);
        for row in first..self.starts.len() {
            if self.row_end(row) - self.starts[begin] >= target {
                runs.push((begin, row + 1));
                begin = row + 1;
            }
        }
        if begin < self.starts.len() {
            runs.push((begin, self.starts.len()));
        }
        runs
    }
}

/// What a [`Shelf`] has of a shard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Nothing, or what is damaged or of another version of the shard.
    Nothing,
    /// The index of a longer version.
    Longer(Shortened),
    Index(RowIndex),
}

/// The layout of kept indexes. Another number is another layout.
const VERSION: u32 = 2;

/// What of a kept index is not its offsets.
#[derive(serde::Serialize, serde::Deserialize)]
struct Head {
    version: u32,
    /// The format, with what of its options moves rows.
    kind: String,
    fingerprint: Fingerprint,
    packing: u8,
    rows: u64,
    end: u64,
}

/// Keeps indexes of rows: a line of JSON, the distances between starts as variable-length integers, and a checksum of both.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    dir: Option<PathBuf>,
    kind: String,
}

impl Shelf {
    pub(super) fn new(wanted: &Wanted, kind: impl Into<String>) -> Self {
        Self { dir: wanted.index_dir.clone(), kind: kind.into() }
    }

    fn path(&self, object: &Object) -> Option<PathBuf> {
        let name = xxhash_rust::xxh3::xxh3_64(format!("{}\n{}", self.kind, object.url).as_bytes());
        Some(self.dir.as_ref()?.join(format!("{name:016x}.rows")))
    }

    /// What is kept of this version of the shard.
    pub(super) fn look(&self, object: &Object) -> Kept {
        let kept = || self.parse(&std::fs::read(self.path(object)?).ok()?, &fingerprint(object));
        kept().unwrap_or(Kept::Nothing)
    }

    fn parse(&self, stored: &[u8], now: &Fingerprint) -> Option<Kept> {
        let (content, checksum) = stored.split_last_chunk::<8>()?;
        if xxhash_rust::xxh3::xxh3_64(content).to_le_bytes() != *checksum {
            return None;
        }
        let at = content.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(&content[..at]).ok()?;
        let mut rest = &content[at + 1..];
        // Each row takes a byte at least.
        if head.version != VERSION || head.kind != self.kind || head.rows > rest.len() as u64 {
            return None;
        }
        if let Some(shortened) = Shortened::of(&head.fingerprint, now) {
            return Some(Kept::Longer(shortened));
        }
        // A store that tells neither may hold another version of the same size.
        let then = &head.fingerprint;
        let can_tell = then.etag.is_some() && now.etag.is_some() || then.modified.is_some() && now.modified.is_some();
        if !can_tell || matches(then, now).is_err() {
            return None;
        }
        let packing = match head.packing {
            0 => Packing::Plain,
            1 => Packing::Gzip,
            _ => Packing::Zstd,
        };
        let (mut starts, mut start) = (Vec::with_capacity(head.rows as usize), 0u64);
        for _ in 0..head.rows {
            start = start.checked_add(take_varint(&mut rest)?)?;
            starts.push(start);
        }
        let inside = starts.last().is_none_or(|last| *last < head.end);
        (inside && rest.is_empty()).then_some(Kept::Index(RowIndex { packing, starts, end: head.end }))
    }

    fn bytes(&self, object: &Object, index: &RowIndex) -> Option<Vec<u8>> {
        let packing = match index.packing {
            Packing::Plain => 0,
            Packing::Gzip => 1,
            Packing::Zstd => 2,
        };
        let (rows, end, kind) = (index.starts.len() as u64, index.end, self.kind.clone());
        let head = Head { version: VERSION, kind, fingerprint: fingerprint(object), packing, rows, end };
        let mut bytes = serde_json::to_vec(&head).ok()?;
        bytes.push(b'\n');
        let mut last = 0;
        for start in &index.starts {
            put_varint(&mut bytes, start - last);
            last = *start;
        }
        bytes.extend(xxhash_rust::xxh3::xxh3_64(&bytes).to_le_bytes());
        Some(bytes)
    }

    /// Stores an index where it can; where not, the next run builds it again.
    pub(super) fn save(&self, object: &Object, index: &RowIndex) {
        if let Some((path, bytes)) = self.path(object).zip(self.bytes(object, index)) {
            _ = write_whole(&path, bytes);
        }
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Says of which shards rows were found anew because they are shorter than they were.
pub(super) fn notes_of<'a>(found: impl IntoIterator<Item = (&'a Object, Option<Shortened>)>) -> Vec<String> {
    let shortened = found.into_iter().filter_map(|(object, shortened)| Some((object, shortened?)));
    let mut notes: Vec<String> = shortened
        .map(|(object, shortened)| {
            format!("{}: {shortened}; copy it again, unless it was rewritten: what it has is read", object.url)
        })
        .collect();
    if notes.len() > NAMED {
        let more = notes.len() - NAMED;
        notes.truncate(NAMED);
        notes.push(format!("{more} more shards are shorter than when they were indexed as well"));
    }
    notes
}

/// The rows of a shard: kept, or found by reading it once; and whether it is shorter than when they were found before.
///
/// # Memory
/// 8 bytes a row; a compressed shard as a whole, which must fit `limit`.
#[cfg(feature = "text")]
pub(super) async fn rows_of<S: Scan>(
    store: &Store,
    object: &Object,
    shelf: &Shelf,
    scan: impl FnOnce() -> S,
    limit: usize,
) -> Result<(RowIndex, Option<Shortened>)> {
    let (known, look) = (object.clone(), shelf.clone());
    let shortened = match on_disk_thread(move || Ok(look.look(&known))).await? {
        Kept::Index(index) => return Ok((index, None)),
        Kept::Longer(shortened) => Some(shortened),
        Kept::Nothing => None,
    };
    match (read_through(store, object, shelf, scan, limit).await, shortened) {
        (Err(error), Some(shortened)) => Err(shortened.explain(error)),
        (found, shortened) => found.map(|index| (index, shortened)),
    }
}

/// Reads a shard once for its rows.
#[cfg(feature = "text")]
async fn read_through<S: Scan>(
    store: &Store,
    object: &Object,
    shelf: &Shelf,
    scan: impl FnOnce() -> S,
    limit: usize,
) -> Result<RowIndex> {
    let head = store.read(object, 0..object.size.min(4)).await?;
    let packing = Packing::of(&head);
    let mut scan = scan();
    let index = if packing == Packing::Plain {
        let mut at = 0;
        while at < object.size {
            let end = object.size.min(at + PIECE_BYTES);
            let piece = store.read(object, at..end).await?;
            scan = on_disk_thread(move || {
                scan.feed(&piece);
                Ok(scan)
            })
            .await?;
            at = end;
        }
        RowIndex { packing, starts: scan.starts(), end: object.size }
    } else {
        let stored = whole(store, object, limit).await?;
        on_disk_thread(move || {
            let data = unpack(packing, &stored, limit)?;
            scan.feed(&data);
            Ok(RowIndex { packing, starts: scan.starts(), end: data.len() as u64 })
        })
        .await?
    };
    let (object, shelf, found) = (object.clone(), shelf.clone(), index.clone());
    on_disk_thread(move || {
        shelf.save(&object, &found);
        Ok(())
    })
    .await?;
    Ok(index)
}

/// A compressed shard as it is stored.
pub(super) async fn whole(store: &Store, object: &Object, limit: usize) -> Result<Bytes> {
    if object.size > limit as u64 {
        let message =
            format!("a compressed shard of {} bytes is one block, which does not fit the budget", object.size);
        let advice = "write smaller shards or plain ones, or give a larger .budget(..)";
        return Err(Error::new(ErrorKind::Memory, message).advice(advice));
    }
    store.read(object, 0..object.size).await
}

/// The (decompressed) bytes before `end`, or as many of them as `most`.
pub(super) async fn beginning(
    store: &Store,
    object: &Object,
    index: &RowIndex,
    end: u64,
    limit: usize,
) -> Result<Bytes> {
    if index.packing == Packing::Plain {
        return store.read(object, 0..end.min(object.size)).await;
    }
    let (stored, packing) = (whole(store, object, limit).await?, index.packing);
    let data = on_disk_thread(move || unpack(packing, &stored, limit)).await?;
    Ok(Bytes::from(data).slice(..(end as usize).min(index.end as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf(dir: Option<PathBuf>) -> Shelf {
        Shelf { dir, kind: "JSON Lines".into() }
    }

    fn object() -> Object {
        Object { url: "memory://rows/a".into(), size: 100, etag: None, modified: Some(7) }
    }

    #[test]
    fn what_is_kept_is_found_and_damage_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(Some(dir.path().join("deep")));
        let index = RowIndex { packing: Packing::Plain, starts: vec![0, 5, 6, 99_999, 1 << 40], end: (1 << 40) + 1 };
        shelf.save(&object(), &index);
        assert_eq!(shelf.look(&object()), Kept::Index(index.clone()));
        assert_eq!(shelf.look(&Object { modified: Some(8), ..object() }), Kept::Nothing);
        assert_eq!(shelf.look(&Object { size: 101, ..object() }), Kept::Nothing);
        for unknown in
            [Object { modified: None, ..object() }, Object { modified: None, etag: Some("a".into()), ..object() }]
        {
            assert_eq!(shelf.look(&unknown), Kept::Nothing);
            shelf.save(&unknown, &index);
            assert_eq!(shelf.look(&Object { etag: None, ..unknown }), Kept::Nothing);
        }
        shelf.save(&object(), &index);
        assert_eq!(Shelf { kind: "CSV ;".into(), ..shelf.clone() }.look(&object()), Kept::Nothing);
        let shorter = Object { size: 99, ..object() };
        let Kept::Longer(shortened) = shelf.look(&shorter) else { panic!("it is shorter") };
        assert!(shortened.to_string().starts_with("the shard has 99 bytes, and had 100 when it was indexed"));
        let notes = notes_of([(&shorter, Some(shortened)); 5].into_iter().chain([(&object(), None)]));
        assert!(notes.len() == 4 && notes[3].starts_with("2 more shards"), "{notes:?}");
        let bytes = shelf.bytes(&object(), &index).unwrap();
        for length in 0..bytes.len() {
            assert_eq!(shelf.parse(&bytes[..length], &fingerprint(&object())), None);
        }
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 4;
            assert_eq!(shelf.parse(&other, &fingerprint(&object())), None);
        }
    }

    #[test]
    fn an_etag_that_another_process_may_have_given_is_no_version() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(Some(dir.path().to_owned()));
        let index = RowIndex { packing: Packing::Plain, starts: vec![0, 5], end: 9 };
        for (url, is_lasting) in [("memory://rows/a", false), ("mine://rows/a", false), ("gs://rows/a", true)] {
            let object = |time| Object { url: url.into(), size: 100, etag: Some("7".into()), modified: Some(time) };
            shelf.save(&object(1), &index);
            assert_eq!(shelf.look(&object(1)), Kept::Index(index.clone()), "{url}");
            assert_eq!(shelf.look(&object(2)) == Kept::Index(index.clone()), is_lasting, "{url}");
        }
    }

    #[test]
    fn runs_are_of_about_a_size_and_of_every_row() {
        let index = RowIndex { packing: Packing::Plain, starts: vec![0, 10, 20, 50, 60], end: 65 };
        assert_eq!(index.runs(0, 20), [(0, 2), (2, 3), (3, 5)]);
        assert_eq!(index.runs(1, 1), [(1, 2), (2, 3), (3, 4), (4, 5)]);
        assert_eq!(index.runs(0, u64::MAX), [(0, 5)]);
        assert_eq!(index.runs(5, 1), []);
    }
}
