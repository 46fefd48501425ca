//! Decompression and framing: the result is the same for any pieces, memory is bounded, and damage is found where it is.

use std::io::Write;

use flate2::write::{GzEncoder, ZlibEncoder};
use forebay::format::tfrecord::{
    Check, Compression, Decoder, FOOTER_BYTES, Framed, Framer, HEADER_BYTES, frame_block, masked_crc32c,
};
use forebay::{Error, ErrorKind};

/// Inputs of a few KiB may decompress to a thousand times as much: a run stops after this many bytes.
const MOST_BYTES: usize = 1 << 18;
/// Small, so that inputs of a few KiB can exceed it.
const MAX_RECORD_BYTES: u64 = 1 << 12;

/// A stored shard that is decompressed and framed in pieces of any size gives the same as in one piece.
///
/// Bytes: 0 says what the rest is (bits 0 and 1: a shard, a plain shard, records to be stored with gzip, or with zlib; 2 and 3: whether checksums of
/// lengths and payloads are repaired; 4 and 5: what is verified; 6: whether the framer is told how much follows; 7: whether the compressed shard is
/// damaged), 1 the sizes of pieces, 2 the limit of a call, 3 and 4 the rows of a block.
pub fn framing(data: &[u8]) {
    let ([mode, sizes, limit, rows @ ..], rest) = crate::split::<5>(data);
    let mut records = rest.to_vec();
    crate::mend_checksums(&mut records, mode & 4 != 0, mode & 8 != 0);
    let (stored, compression) = match mode & 3 {
        0 => (records, Compression::detect(rest)),
        1 => (records, Compression::None),
        2 => (stored(&records, mode, sizes, Compression::Gzip), Compression::Gzip),
        _ => (stored(&records, mode, sizes, Compression::Zlib), Compression::Zlib),
    };
    let check = [Check::Full, Check::LengthsOnly, Check::None, Check::Full][usize::from(mode >> 4 & 3)];

    let (plain, end) = decode(&stored, compression, || usize::MAX, MOST_BYTES);
    let (in_pieces, end_in_pieces) = decode(&stored, compression, pieces(sizes), 1 + usize::from(limit) * 16);
    assert!(plain.starts_with(&in_pieces) || in_pieces.starts_with(&plain), "other bytes in pieces");
    match (&end, &end_in_pieces) {
        (End::Cut, _) | (_, End::Cut) => {}
        (End::Good, End::Good) => assert_eq!(plain, in_pieces),
        (End::Bad(a), End::Bad(b)) => {
            assert_eq!((plain.len(), a.place()), (in_pieces.len(), b.place()), "{a}\n{b}");
        }
        _ => panic!("whole and in pieces end differently: {end:?}, {end_in_pieces:?}"),
    }

    let whole = frame_whole(&plain, check);
    assert_eq!(frame_pieces(&plain, check, mode & 0x40 != 0, pieces(sizes.rotate_left(3))), whole);
    blocks(&plain, check, &whole, usize::from(u16::from_le_bytes(rows) & 0x3ff));
}

/// Returns piece sizes from 1 to about a thousand bytes, derived from one byte.
fn pieces(seed: u8) -> impl FnMut() -> usize {
    let mut state = u32::from(seed);
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 8) as usize % [2, 13, 40, 1000][usize::from(seed & 3)]
    }
}

/// Returns the records as a compressed shard: one member or two, with one byte changed if the mode says so.
fn stored(records: &[u8], mode: u8, sizes: u8, compression: Compression) -> Vec<u8> {
    let (records, damage) = match records.split_last_chunk::<3>() {
        Some((records, damage)) if mode & 0x80 != 0 => (records, *damage),
        _ => (records, [0; 3]),
    };
    let level = flate2::Compression::new(u32::from(sizes >> 6));
    let mut stored = match compression {
        Compression::Zlib => {
            let mut encoder = ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(records).and_then(|()| encoder.finish()).expect("memory takes everything")
        }
        _ => {
            let (first, second) = records.split_at(records.len() * usize::from(sizes & 7) / 8);
            let members = [first, second].map(|part| {
                let mut encoder = GzEncoder::new(Vec::new(), level);
                encoder.write_all(part).and_then(|()| encoder.finish()).expect("memory takes everything")
            });
            members.concat()
        }
    };
    let at = usize::from(u16::from_le_bytes([damage[0], damage[1]]));
    if let Some(byte) = stored.get_mut(at) {
        *byte ^= damage[2];
    }
    stored
}

#[derive(Debug)]
enum End {
    Good,
    Bad(Error),
    /// The maximum number of bytes was reached.
    Cut,
}

/// Returns everything to which a shard decompresses, and how it ends.
fn decode(stored: &[u8], compression: Compression, mut piece: impl FnMut() -> usize, limit: usize) -> (Vec<u8>, End) {
    let (mut decoder, mut plain, mut rest) = (Decoder::new(compression), Vec::new(), stored);
    loop {
        let (mut now, after) = rest.split_at(piece().min(rest.len()));
        loop {
            let (before, room) = (plain.len(), limit.min(MOST_BYTES - plain.len()));
            let decoded = match decoder.decode(now, &mut plain, room) {
                Ok(decoded) => decoded,
                Err(error) => {
                    assert!(plain.len() - before <= room, "more than the limit");
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                    let again = decoder.decode(after, &mut plain, room).expect_err("after an error there is nothing");
                    assert_eq!(again.to_string(), error.to_string());
                    return (plain, End::Bad(error));
                }
            };
            now = &now[decoded.consumed..];
            assert!(plain.len() - before <= room, "more than the limit");
            if !decoded.more {
                assert!(now.is_empty(), "input is left over");
                break;
            }
            assert_eq!(plain.len() - before, room, "stopped, but not at the limit");
            if plain.len() == MOST_BYTES {
                return (plain, End::Cut);
            }
        }
        rest = after;
        if rest.is_empty() {
            assert_eq!(decoder.bytes_written(), plain.len() as u64);
            let end = decoder.finish();
            return (plain, end.map_or_else(End::Bad, |()| End::Good));
        }
    }
}

/// What framing found: payloads with their places in the shard, damaged rows, and how it ended.
#[derive(Debug, PartialEq)]
struct Found {
    payloads: Vec<std::ops::Range<usize>>,
    bad: Vec<(usize, String)>,
    end: Result<(), String>,
}

fn framer(check: Check) -> Framer {
    Framer::new(check).max_record_bytes(MAX_RECORD_BYTES)
}

fn in_words(bad: Vec<(usize, Error)>) -> Vec<(usize, String)> {
    bad.into_iter().map(|(row, error)| (row, error.to_string())).collect()
}

/// Frames a complete shard, and compares every record with its bytes.
fn frame_whole(plain: &[u8], check: Check) -> Found {
    let (mut framer, mut framed) = (framer(check), Framed::default());
    let end = framer.frame(plain, Some(0), &mut framed);
    let (mut at, mut bad) = (0, framed.bad.iter().peekable());
    for (row, payload) in framed.payloads.iter().enumerate() {
        assert_eq!(payload.start, at + HEADER_BYTES, "records follow each other");
        at = payload.end + FOOTER_BYTES;
        let crc = |data: &[u8], at: usize| masked_crc32c(data).to_le_bytes() == plain[at..at + 4];
        assert!(check == Check::None || crc(&plain[payload.start - 12..payload.start - 4], payload.start - 4));
        let bad = bad.next_if(|(bad, _)| *bad == row);
        assert_eq!(check == Check::Full && !crc(&plain[payload.clone()], payload.end), bad.is_some());
        let place = bad.map(|(_, error)| (error.place().record, error.place().byte_offset));
        assert!(place.is_none_or(|place| place == (Some(row as u64), Some(payload.start as u64 - 12))));
    }
    assert_eq!((framer.record(), framer.offset()), (framed.payloads.len() as u64, at as u64));
    match &end {
        Ok(progress) => assert_eq!((progress.consumed, progress.needed, at), (plain.len(), 0, plain.len())),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert_eq!((error.place().record, error.place().byte_offset), (Some(framer.record()), Some(at as u64)));
        }
    }
    let end = end.map(drop).map_err(|error| error.to_string());
    Found { payloads: framed.payloads, bad: in_words(framed.bad), end }
}

/// Frames a shard as a reader does: bytes are added until a record is complete, and processed records are dropped.
fn frame_pieces(plain: &[u8], check: Check, told: bool, mut piece: impl FnMut() -> usize) -> Found {
    let mut framer = framer(check);
    let (mut start, mut end) = (0, 0);
    let mut found = Found { payloads: Vec::new(), bad: Vec::new(), end: Ok(()) };
    loop {
        let following = (told || end == plain.len()).then_some((plain.len() - end) as u64);
        let mut framed = Framed::default();
        let result = framer.frame(&plain[start..end], following, &mut framed);
        let before = found.payloads.len();
        found.bad.extend(in_words(framed.bad).into_iter().map(|(row, error)| (before + row, error)));
        found.payloads.extend(framed.payloads.iter().map(|range| start + range.start..start + range.end));
        let progress = match result {
            Ok(progress) => progress,
            Err(error) => {
                let (mut framed, at) = (Framed::default(), framer.offset() as usize);
                let again = framer.frame(&plain[at..end], following, &mut framed).expect_err("the same again");
                assert_eq!((again.to_string(), framed.payloads.len()), (error.to_string(), 0));
                found.end = Err(error.to_string());
                return found;
            }
        };
        start += progress.consumed;
        assert_eq!(start as u64, framer.offset());
        if progress.needed == 0 {
            assert_eq!((start, following), (plain.len(), Some(0)));
            return found;
        }
        assert!(end < plain.len(), "nothing can come");
        assert!(progress.needed > end - start && progress.needed <= MAX_RECORD_BYTES as usize + 16, "{progress:?}");
        end = plain.len().min(end + piece());
    }
}

/// Checks that a block with the right number of rows gives the same result; with any other number, it has that many rows and reports what is wrong.
fn blocks(plain: &[u8], check: Check, whole: &Found, rows: usize) {
    const BASE: u64 = 1 << 40;
    for num_rows in [rows, whole.payloads.len()] {
        let block = frame_block(plain, BASE, 7, num_rows, check);
        assert_eq!(block.payloads.len(), num_rows);
        assert!(block.bad.windows(2).all(|pair| pair[0].0 < pair[1].0), "ascending, each once");
        let mut bad = block.bad.iter().peekable();
        for (row, payload) in block.payloads.iter().enumerate() {
            let place = bad.next_if(|(bad, _)| *bad == row).map(|(_, error)| error.place());
            match whole.payloads.get(row) {
                Some(found) => assert_eq!(payload, found),
                // Blocks know no limit but their own length.
                None if whole.end.as_ref().is_err_and(|end| end.contains("more than the limit")) => {}
                None => assert!(place.is_some() && plain.get(payload.clone()).is_some(), "row {row}"),
            }
            if let Some(place) = place {
                assert_eq!(place.record, Some(7 + row as u64));
                assert!(place.byte_offset.is_some_and(|offset| offset - BASE <= plain.len() as u64));
            }
        }
        if num_rows == whole.payloads.len() && num_rows > 0 {
            // Bytes that are left over spoil the last row.
            let spoilt = block.bad.last().is_some_and(|(row, _)| row + 1 == num_rows);
            assert!(whole.end.is_ok() || spoilt);
            if whole.end.is_ok() {
                assert!(block.bad.iter().map(|(row, _)| row).eq(whole.bad.iter().map(|(row, _)| row)));
            }
        }
    }
}
