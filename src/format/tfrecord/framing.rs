//! Finds records in a byte stream: length, its checksum, payload, its checksum.

use std::ops::Range;

use crate::error::{Error, Result};

/// Bytes before a payload: the length and its checksum.
pub const HEADER_BYTES: usize = 12;
/// Bytes after a payload: its checksum.
pub const FOOTER_BYTES: usize = 4;
/// The payload length above which a record counts as damaged, unless the caller sets another.
pub const MAX_RECORD_BYTES: u64 = 1 << 30;

/// Computes the checksum that TFRecord stores: CRC32C, rotated and shifted, so that a checksum of data that holds checksums stays strong.
///
/// # Source
/// TensorFlow, "TFRecord and tf.train.Example", section "TFRecords format details".
///
/// # Example
/// ```
/// use forebay::format::tfrecord::masked_crc32c;
///
/// assert_eq!(masked_crc32c(b"123456789"), 0xc78a_b0e5);
/// ```
#[inline]
pub fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// How many of a shard's checksums are verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Lengths and payloads.
    #[default]
    Full,
    /// Lengths only: damage to a payload goes unnoticed, damage to the framing does not.
    LengthsOnly,
    /// Nothing; declared lengths are still checked against the shard and the limit.
    None,
}

/// Records found in a buffer: one payload per row, and the rows that are damaged.
///
/// A row with a damaged payload keeps its range. A row that could not be found has an empty range.
#[derive(Clone, Debug, Default)]
pub struct Framed {
    /// Each row's payload, as a range of the buffer.
    pub payloads: Vec<Range<usize>>,
    /// Damaged rows in ascending order, each with its error.
    pub bad: Vec<(usize, Error)>,
}

impl Framed {
    /// Removes the records but keeps the memory for reuse.
    pub fn clear(&mut self) {
        self.payloads.clear();
        self.bad.clear();
    }
}

/// How far a [`Framer`] got in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that have been used up. Put the rest in front of the next buffer's bytes.
    pub consumed: usize,
    /// Bytes that the next buffer must hold, counted from `consumed`, to get further with a record; 0 at the end of the shard.
    pub needed: usize,
}

/// Finds records in a shard that arrives in buffers of any size.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt), with the record and the byte offset, for a damaged length, for a length that exceeds the shard
/// or the limit, and for a shard that ends inside a record. The records before the error have been delivered, and another call returns the same
/// error. A damaged payload is not an error of the framer: the row is listed in [`Framed::bad`].
///
/// # Memory
/// Allocates only what `Framed` needs to grow. A declared length that is too large is refused before anything can be allocated for it.
///
/// # Example
/// ```
/// use forebay::format::tfrecord::{Check, Compression, Framed, Framer, Writer};
///
/// let mut writer = Writer::new(Vec::new(), Compression::None);
/// writer.write(b"first")?;
/// writer.write(b"second")?;
/// let shard = writer.finish()?;
///
/// let (mut framer, mut framed) = (Framer::new(Check::Full), Framed::default());
/// let progress = framer.frame(&shard[..30], None, &mut framed)?;
/// assert_eq!((&shard[framed.payloads[0].clone()], progress.consumed), (&b"first"[..], 21));
///
/// framed.clear();
/// framer.frame(&shard[21..], Some(0), &mut framed)?;
/// assert_eq!(&shard[21..][framed.payloads[0].clone()], b"second");
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Framer {
    check: Check,
    max_record_bytes: u64,
    record: u64,
    offset: u64,
}

impl Framer {
    /// Creates a framer at the start of a shard.
    pub fn new(check: Check) -> Self {
        Self { check, max_record_bytes: MAX_RECORD_BYTES, record: 0, offset: 0 }
    }

    /// Refuses payloads longer than this many bytes. Default 1 GiB.
    #[must_use]
    pub fn max_record_bytes(mut self, bytes: u64) -> Self {
        self.max_record_bytes = bytes;
        self
    }

    /// Starts in the middle of a shard: at the header of record number `record`, `offset` bytes from the start.
    #[must_use]
    pub fn starting_at(mut self, record: u64, offset: u64) -> Self {
        (self.record, self.offset) = (record, offset);
        self
    }

    /// Returns the number of the next record.
    pub fn record(&self) -> u64 {
        self.record
    }

    /// Returns the offset of the next record's header within the (decompressed) shard.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends the complete records of `buffer`, which starts at [`offset`](Self::offset), to `framed`.
    ///
    /// `following` is the number of bytes of the shard that come after the buffer, where that is known; `Some(0)` means that the shard ends there.
    ///
    /// # Errors
    /// See [`Framer`].
    pub fn frame(&mut self, buffer: &[u8], following: Option<u64>, framed: &mut Framed) -> Result<Progress> {
        let mut at = 0;
        loop {
            let rest = &buffer[at..];
            let left = following.map(|f| f.saturating_add(rest.len() as u64));
            if left == Some(0) {
                return Ok(Progress { consumed: at, needed: 0 });
            }
            let length = match self.length(rest, left)? {
                Some(length) => length,
                None => return Ok(Progress { consumed: at, needed: HEADER_BYTES }),
            };
            let total = HEADER_BYTES + length + FOOTER_BYTES;
            if rest.len() < total {
                return Ok(Progress { consumed: at, needed: total });
            }
            if let Some(error) = self.payload_damage(&rest[HEADER_BYTES..total]) {
                framed.bad.push((framed.payloads.len(), error));
            }
            framed.payloads.push(at + HEADER_BYTES..at + HEADER_BYTES + length);
            at += total;
            self.record += 1;
            self.offset += total as u64;
        }
    }

    /// Returns the payload length that the header at the front of `rest` declares, or `None` while the header is incomplete.
    ///
    /// `left` is the number of bytes from here to the end of the shard, where known.
    #[inline]
    pub(super) fn length(&self, rest: &[u8], left: Option<u64>) -> Result<Option<usize>> {
        let Some(header) = rest.first_chunk::<HEADER_BYTES>() else {
            return match left {
                Some(left) if left < HEADER_BYTES as u64 => Err(self
                    .damage(format!("the shard ends inside a record's header, after {left} of {HEADER_BYTES} bytes"))),
                _ => Ok(None),
            };
        };
        let (length, stored) = header.split_at(8);
        let stored = u32::from_le_bytes(stored.try_into().expect("12 - 8 bytes"));
        if self.check != Check::None {
            let computed = masked_crc32c(length);
            if computed != stored {
                return Err(self.damage(format!("length checksum {computed:08x}, stored {stored:08x}")));
            }
        }
        let length = u64::from_le_bytes(length.try_into().expect("8 bytes"));
        if length > self.max_record_bytes || length > (usize::MAX - HEADER_BYTES - FOOTER_BYTES) as u64 {
            return Err(self.damage(format!(
                "a record of {length} bytes is declared, more than the limit of {} bytes",
                self.max_record_bytes
            )));
        }
        let total = length + (HEADER_BYTES + FOOTER_BYTES) as u64;
        match left {
            Some(left) if left < total => {
                let part = if left < total - FOOTER_BYTES as u64 { "payload" } else { "footer" };
                Err(self.damage(format!(
                    "the shard ends inside a record's {part}: {total} bytes with header and footer are declared, {left} are there"
                )))
            }
            _ => Ok(Some(length as usize)),
        }
    }

    /// Returns what is wrong with a payload that is followed by its checksum.
    #[inline]
    fn payload_damage(&self, payload_and_footer: &[u8]) -> Option<Error> {
        if self.check != Check::Full {
            return None;
        }
        let (payload, stored) = payload_and_footer.split_last_chunk::<FOOTER_BYTES>()?;
        let (computed, stored) = (masked_crc32c(payload), u32::from_le_bytes(*stored));
        (computed != stored).then(|| self.damage(format!("payload checksum {computed:08x}, stored {stored:08x}")))
    }

    #[cold]
    fn damage(&self, message: String) -> Error {
        Error::corrupt(message).record(self.record).byte_offset(self.offset).advice("fetch or write the shard again")
    }
}

/// Frames a block whose rows are known from an index: exactly `num_rows` records that fill `buffer`.
///
/// `base_offset` is where the block starts in the (decompressed) shard; `first_record` is the number of its first record. The result always has one
/// payload per row. A damaged payload spoils its own row; a damaged length spoils its row and all rows after it.
///
/// # Errors
/// All errors go into [`Framed::bad`], each with its record and byte offset. Bytes left over at the end spoil the last row: they show that the index
/// and the shard do not belong together.
///
/// # Example
/// ```
/// use forebay::format::tfrecord::{Check, Compression, Writer, frame_block};
///
/// let mut writer = Writer::new(Vec::new(), Compression::None);
/// for payload in ["a", "b", "c"] {
///     writer.write(payload.as_bytes())?;
/// }
/// let mut shard = writer.finish()?;
/// shard[17 + 12] ^= 1;
/// let framed = frame_block(&shard, 0, 0, 3, Check::Full);
/// assert_eq!((framed.payloads.len(), framed.bad.len(), framed.bad[0].0), (3, 1, 1));
/// # Ok::<(), forebay::Error>(())
/// ```
pub fn frame_block(buffer: &[u8], base_offset: u64, first_record: u64, num_rows: usize, check: Check) -> Framed {
    let mut framer = Framer::new(check).max_record_bytes(u64::MAX).starting_at(first_record, base_offset);
    // A row takes at least 16 bytes, so a damaged index cannot make this large.
    let mut framed = Framed { payloads: Vec::with_capacity(num_rows.min(buffer.len() / 16 + 1)), bad: Vec::new() };
    let mut at = 0;
    while framed.payloads.len() < num_rows {
        let rest = &buffer[at..];
        let length = match framer.length(rest, Some(rest.len() as u64)) {
            Ok(length) => length.expect("the bytes left are known"),
            Err(error) => {
                spoil_from(&mut framed, error, &framer, num_rows);
                return framed;
            }
        };
        let total = HEADER_BYTES + length + FOOTER_BYTES;
        if let Some(error) = framer.payload_damage(&rest[HEADER_BYTES..total]) {
            framed.bad.push((framed.payloads.len(), error));
        }
        framed.payloads.push(at + HEADER_BYTES..at + HEADER_BYTES + length);
        at += total;
        framer.record += 1;
        framer.offset += total as u64;
    }
    if at < buffer.len() && num_rows > 0 && framed.bad.last().is_none_or(|(row, _)| *row + 1 != num_rows) {
        let error = Error::corrupt(format!("{} bytes follow the block's {num_rows} records", buffer.len() - at))
            .record(framer.record - 1)
            .byte_offset(framer.offset)
            .advice("the index is of another shard: build it again");
        framed.bad.push((num_rows - 1, error));
    }
    framed
}

#[cold]
fn spoil_from(framed: &mut Framed, error: Error, framer: &Framer, num_rows: usize) {
    let (broken, first) = (framer.record, framed.payloads.len());
    framed.payloads.resize(num_rows, 0..0);
    framed.bad.push((first, error));
    framed.bad.extend((first + 1..num_rows).map(|row| {
        let error = Error::corrupt(format!("cannot be found: the length of record {broken} before it is damaged"))
            .record(broken + (row - first) as u64)
            .byte_offset(framer.offset)
            .advice("fetch or write the shard again");
        (row, error)
    }));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ErrorKind;
    use crate::format::tfrecord::{Compression, Writer};

    fn shard(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), Compression::None);
        payloads.iter().for_each(|p| writer.write(p).unwrap());
        writer.finish().unwrap()
    }

    fn whole(shard: &[u8], check: Check) -> (Vec<Vec<u8>>, Vec<usize>, Option<Error>) {
        let mut framed = Framed::default();
        let error = Framer::new(check).frame(shard, Some(0), &mut framed).err();
        let payloads = framed.payloads.iter().map(|r| shard[r.clone()].to_vec()).collect();
        (payloads, framed.bad.iter().map(|(row, _)| *row).collect(), error)
    }

    fn three() -> Vec<Vec<u8>> {
        vec![b"one".to_vec(), Vec::new(), (0..100).collect()]
    }

    #[test]
    fn the_empty_shard_has_no_records() {
        assert!(matches!(whole(&[], Check::Full), (payloads, _, None) if payloads.is_empty()));
    }

    #[test]
    fn every_prefix_gives_the_records_before_it_and_then_damage() {
        let payloads = three();
        let bytes = shard(&payloads);
        let ends = [0, 19, 35, 151];
        for cut in 0..bytes.len() {
            let (found, bad, error) = whole(&bytes[..cut], Check::Full);
            let complete = ends.iter().filter(|&&end| end <= cut).count() - 1;
            assert_eq!((&found[..], bad.len()), (&payloads[..complete], 0), "cut at {cut}");
            match error {
                None => assert!(ends.contains(&cut)),
                Some(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                    let place = (error.place().record, error.place().byte_offset);
                    assert_eq!(place, (Some(complete as u64), Some(ends[complete] as u64)));
                }
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_spoils_no_record_before_it() {
        let payloads = three();
        let bytes = shard(&payloads);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (found, bad, error) = whole(&damaged, Check::Full);
            assert!(error.is_some() != (bad.len() == 1), "bit {bit}");
            for (row, payload) in found.iter().enumerate().filter(|(row, _)| !bad.contains(row)) {
                assert_eq!(payload, &payloads[row]);
            }
        }
    }

    #[test]
    fn huge_lengths_are_refused_at_once() {
        for (length, following, words) in [
            (1u64 << 60, None, "more than the limit"),
            (u64::MAX, None, "more than the limit"),
            (1 << 20, Some(1000), "ends inside a record's payload"),
        ] {
            let mut header = length.to_le_bytes().to_vec();
            header.extend(masked_crc32c(&length.to_le_bytes()).to_le_bytes());
            let error = Framer::new(Check::Full).frame(&header, following, &mut Framed::default()).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_framer_says_how_many_bytes_it_needs() {
        let bytes = shard(&three());
        let mut framer = Framer::new(Check::Full);
        let mut framed = Framed::default();
        for (have, needed) in [(0, 12), (11, 12), (12, 19), (18, 19)] {
            let progress = framer.frame(&bytes[..have], None, &mut framed).unwrap();
            assert_eq!(progress, Progress { consumed: 0, needed });
        }
    }

    #[test]
    fn blocks_keep_their_row_count_whatever_is_damaged() {
        let bytes = shard(&three());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let framed = frame_block(&damaged, 1000, 7, 3, Check::Full);
            assert_eq!(framed.payloads.len(), 3);
            assert!(!framed.bad.is_empty());
            let (row, error) = &framed.bad[0];
            assert_eq!(error.place().record, Some(7 + *row as u64));
        }
        let framed = frame_block(&bytes, 1000, 7, 2, Check::Full);
        assert!(framed.bad[0].1.to_string().contains("index is of another shard"), "{:?}", framed.bad);
        let framed = frame_block(&bytes, 0, 0, 5, Check::Full);
        assert_eq!(framed.bad.iter().map(|b| b.0).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn unchecked_framing_delivers_what_checksums_would_refuse() {
        let mut bytes = shard(&three());
        bytes[12] ^= 1;
        assert!(matches!(whole(&bytes, Check::LengthsOnly), (_, bad, None) if bad.is_empty()));
        bytes[8] ^= 1;
        assert!(whole(&bytes, Check::LengthsOnly).2.is_some());
        assert!(matches!(whole(&bytes, Check::None), (found, bad, None) if bad.is_empty() && found.len() == 3));
    }

    proptest! {
        #[test]
        fn feeding_in_pieces_finds_the_same_records(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..12),
            pieces in proptest::collection::vec(1usize..50, 1..20),
        ) {
            let bytes = shard(&payloads);
            let (mut framer, mut found) = (Framer::new(Check::Full), Vec::new());
            let (mut carried, mut fed) = (Vec::new(), 0);
            for piece in pieces.iter().cycle() {
                let end = (fed + piece).min(bytes.len());
                carried.extend_from_slice(&bytes[fed..end]);
                fed = end;
                let mut framed = Framed::default();
                let following = (fed == bytes.len()).then_some(0);
                let progress = framer.frame(&carried, following, &mut framed).unwrap();
                prop_assert!(framed.bad.is_empty());
                found.extend(framed.payloads.into_iter().map(|r| carried[r].to_vec()));
                carried.drain(..progress.consumed);
                if fed == bytes.len() {
                    break;
                }
                prop_assert!(progress.needed > carried.len());
            }
            prop_assert_eq!(found, payloads);
            prop_assert!(carried.is_empty());
        }
    }
}
