//! Tests the parts together, and against files that TensorFlow wrote.

use super::*;
use crate::error::{Error, Result};

/// Returns every record of a stored shard, and the first error in it.
fn read(stored: &[u8]) -> (Vec<Vec<u8>>, Result<()>) {
    let mut decoder = Decoder::new(Compression::detect(stored));
    let (mut plain, mut rest) = (Vec::new(), stored);
    let damage = loop {
        match decoder.decode(rest, &mut plain, 100) {
            Ok(decoded) => rest = &rest[decoded.consumed..],
            Err(error) => break Err(error),
        }
        if rest.is_empty() {
            let decoded = decoder.decode(rest, &mut plain, 1 << 20);
            break decoded.and_then(|_| decoder.finish());
        }
    };
    let mut framed = Framed::default();
    let following = damage.is_ok().then_some(0);
    let framing = Framer::new(Check::Full).frame(&plain, following, &mut framed).map(|_| ());
    let bad: Option<&(usize, Error)> = framed.bad.first();
    let good = bad.map_or(framed.payloads.len(), |(row, _)| *row);
    let records = framed.payloads[..good].iter().map(|r| plain[r.clone()].to_vec()).collect();
    (records, bad.map_or(Ok(()), |(_, error)| Err(error.clone())).and(framing).and(damage))
}

const GOLDEN: [(&[u8], Compression); 3] = [
    (include_bytes!("../../../tests/data/records.tfrecord"), Compression::None),
    (include_bytes!("../../../tests/data/records.gzip.tfrecord"), Compression::Gzip),
    (include_bytes!("../../../tests/data/records.zlib.tfrecord"), Compression::Zlib),
];

fn expected() -> Vec<Vec<u8>> {
    (0..8usize).map(|i| (0..i * i).map(|j| j as u8).collect()).collect()
}

#[test]
fn golden_shards_hold_what_tensorflow_wrote() {
    for (stored, compression) in GOLDEN {
        assert_eq!(Compression::detect(stored), compression);
        let (records, end) = read(stored);
        assert!(end.is_ok(), "{compression}: {end:?}");
        assert_eq!(records, expected());
    }
}

#[test]
fn the_writer_writes_plain_shards_byte_for_byte_like_tensorflow() {
    let mut writer = Writer::new(Vec::new(), Compression::None);
    expected().iter().for_each(|payload| writer.write(payload).unwrap());
    assert_eq!(writer.finish().unwrap(), GOLDEN[0].0);
}

#[test]
fn every_prefix_and_flipped_byte_gives_good_records_and_then_an_error() {
    let expected = expected();
    for (stored, compression) in GOLDEN {
        // Cut between two records, a plain shard is a shorter shard.
        let ends = |cut: usize| {
            compression == Compression::None && (0..8).any(|n| cut == (0..n).map(|i| i * i + 16).sum::<usize>())
        };
        for cut in 1..stored.len() {
            let (records, end) = read(&stored[..cut]);
            assert!(expected.starts_with(&records), "{compression} cut at {cut}");
            assert_eq!(end.is_ok(), ends(cut), "{compression} cut at {cut}");
        }
        for byte in 0..stored.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut damaged = stored.to_vec();
                damaged[byte] ^= mask;
                let (records, end) = read(&damaged);
                assert!(expected.starts_with(&records), "{compression} byte {byte} ^ {mask:#x}");
                assert!(end.is_err() || records.len() == expected.len(), "{compression} byte {byte} ^ {mask:#x}");
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_the_payload_of_a_plain_shard_leaves_the_other_records() {
    let mut damaged = GOLDEN[0].0.to_vec();
    let third = (0..2).map(|i| i * i + 16).sum::<usize>();
    damaged[third + HEADER_BYTES + 1] ^= 4;
    let mut framed = Framed::default();
    Framer::new(Check::Full).frame(&damaged, Some(0), &mut framed).unwrap();
    assert_eq!((framed.payloads.len(), framed.bad.len()), (8, 1));
    let (row, error) = &framed.bad[0];
    assert_eq!(*row, 2);
    assert_eq!(error.place().byte_offset, Some(third as u64));
}
