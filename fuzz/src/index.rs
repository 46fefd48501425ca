//! Stored indexes, and indexes built by hopping over a shard.

use std::io;

use forebay::ErrorKind;
use forebay::format::tfrecord::{Check, Compression, Fingerprint, Framed, Framer, IndexBuilder, ShardIndex};

/// A stored index is refused or consistent; hopping over a shard finds what framing finds.
///
/// Byte 0 says what the rest is (its lowest two bits; those above repair checksums): a stored index; record lengths of two bytes, stored as an index
/// and then changed in a few places; a shard; record lengths of two bytes, written as a shard with records of that many zeros and then changed. Byte
/// 1 is the size of blocks, in units of 64 bytes.
pub fn index(data: &[u8]) {
    let ([mode, block], rest) = crate::split::<2>(data);
    let target_bytes = u64::from(block) * 64;
    match mode & 3 {
        0 => stored(rest, mode & 4 != 0, target_bytes),
        1 => {
            let (lengths, edits) = lengths_and_edits(rest, mode);
            let original = built(&lengths, mode);
            holds_together(&original, target_bytes);
            let mut bytes = original.to_bytes().expect("it can be written");
            edit(&mut bytes, edits);
            stored(&bytes, mode & 4 != 0, target_bytes);
        }
        2 => {
            let mut shard = rest.to_vec();
            crate::mend_checksums(&mut shard, mode & 4 != 0, false);
            hop(&shard, target_bytes);
        }
        _ => {
            let (lengths, edits) = lengths_and_edits(rest, mode);
            let mut shard = Vec::new();
            for &length in lengths.iter().take_while(|&&length| length < 60_000) {
                // Enough for several windows, and no more.
                if shard.len() > 400_000 {
                    break;
                }
                let header = shard.len();
                shard.extend(u64::from(length).to_le_bytes());
                shard.extend([0; 4]);
                crate::mend_checksums(&mut shard[header..], true, false);
                shard.resize(shard.len() + length as usize + 4, 0);
            }
            edit(&mut shard, edits);
            hop(&shard, target_bytes);
        }
    }
}

/// Splits off lengths of two bytes each, and before them as many edits of five bytes as the mode says.
fn lengths_and_edits(rest: &[u8], mode: u8) -> (Vec<u32>, &[[u8; 5]]) {
    let (edits, lengths) = rest.split_at(rest.len().min(5 * usize::from(mode >> 3 & 3)));
    let (lengths, _) = lengths.as_chunks::<2>();
    let unit = if mode & 0x20 == 0 { 1 } else { 40 };
    (lengths.iter().map(|length| u32::from(u16::from_le_bytes(*length)) * unit).collect(), edits.as_chunks::<5>().0)
}

/// Changes bytes; each edit is a place in four bytes, and the byte that is XORed into it.
fn edit(bytes: &mut [u8], edits: &[[u8; 5]]) {
    for [place @ .., value] in edits {
        let place = u32::from_le_bytes(*place) as usize;
        if !bytes.is_empty() {
            let place = place % bytes.len();
            bytes[place] ^= value;
        }
    }
}

fn built(lengths: &[u32], mode: u8) -> ShardIndex {
    let mut builder = IndexBuilder::new();
    lengths.iter().try_for_each(|length| builder.push(u64::from(*length))).expect("below 4 GiB");
    let compression = if mode & 0x40 == 0 { Compression::None } else { Compression::Gzip };
    let size = builder.offset();
    let etag = (mode & 0x80 != 0).then(|| "an etag".to_owned());
    let modified = (mode & 0x80 == 0).then_some(-5);
    builder.finish(Fingerprint { size, etag, modified }, compression).expect("the size is that of the records")
}

fn stored(bytes: &[u8], mend: bool, target_bytes: u64) {
    let mut bytes = bytes.to_vec();
    for _ in 0..3 {
        let error = match ShardIndex::from_bytes(&bytes) {
            Ok(index) => {
                assert!(index.len() * 4 <= bytes.len(), "more records than the file has bytes for");
                return holds_together(&index, target_bytes);
            }
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        // A fuzzer seldom hits the checksum, so it is taken from the message and written to where it should be.
        let message = error.message().to_owned();
        let both = message.split_once("checksum ").and_then(|(_, rest)| rest.split_once(", stored "));
        let Some((computed, wrong)) = both.filter(|(_, wrong)| mend && wrong.len() == 8) else { return };
        let Some(at) = bytes.windows(8).position(|found| found == wrong.as_bytes()) else { return };
        bytes[at..at + 8].copy_from_slice(computed.as_bytes());
    }
}

/// Checks that an index reads back as it was written, and that its blocks are its records.
fn holds_together(index: &ShardIndex, target_bytes: u64) {
    let bytes = index.to_bytes().expect("it can be written");
    assert_eq!(&ShardIndex::from_bytes(&bytes).expect("what was written can be read"), index);
    let mut offset = 0;
    for record in 0..index.len() {
        // Adding up from the last multiple of 128 makes this quadratic in part.
        if record % 61 == 0 {
            assert_eq!(index.offset(record), offset);
        }
        offset += index.length(record) as u64 + 16;
    }
    assert_eq!((index.offset(index.len()), index.bytes()), (offset, offset));
    assert!(index.compression() != Compression::None || index.fingerprint().size == offset);
    assert_eq!(index.matches(index.fingerprint()), Ok(()));

    let (mut record, mut offset) = (0, 0);
    for run in index.blocks(target_bytes) {
        assert_eq!((run.first_record, run.offset), (record, offset));
        assert!(run.num_records > 0);
        let lengths = (0..run.num_records).map(|i| index.length(record as usize + i) as u64 + 16);
        assert_eq!(run.bytes, lengths.sum::<u64>());
        (record, offset) = (record + run.num_records as u64, offset + run.bytes);
    }
    assert_eq!((record, offset), (index.len() as u64, index.bytes()));
}

/// Checks that hopping reads within the shard, and finds the same records or the same damage as framing, which sees every byte.
fn hop(shard: &[u8], target_bytes: u64) {
    let size = shard.len() as u64;
    let mut read = 0;
    let mut read_at = |offset: u64, into: &mut [u8]| -> io::Result<()> {
        assert!(!into.is_empty() && offset + into.len() as u64 <= size, "a read outside of the shard");
        read += into.len();
        into.copy_from_slice(&shard[offset as usize..][..into.len()]);
        Ok(())
    };
    let hopped = ShardIndex::hop(&mut read_at, Fingerprint { size, ..Fingerprint::default() });
    assert!(read <= 12 * (shard.len() / 16 + 1) + 2 * shard.len(), "{read} bytes of {size} were read");

    let (mut framed, mut framer) =
        (Framed::default(), Framer::new(Check::LengthsOnly).max_record_bytes(u32::MAX.into()));
    let result = framer.frame(shard, Some(0), &mut framed);
    match (hopped, result) {
        (Ok(index), Ok(_)) => {
            let lengths = framed.payloads.iter().map(|payload| payload.len());
            assert!((0..index.len()).map(|record| index.length(record)).eq(lengths), "other records");
            holds_together(&index, target_bytes);
        }
        (Err(hopped), Err(framed)) => {
            assert_eq!((hopped.to_string(), hopped.place()), (framed.to_string(), framed.place()))
        }
        (hopped, framed) => panic!("hopped: {:?}, framed: {framed:?}", hopped.map(|index| index.len())),
    }
}
