//! The header of a JPEG file, read without decoding: size, components, orientation, and where its scan begins.

use crate::error::{Error, Result};

use super::exif;

/// What a JPEG file says before its first scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Markers {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) components: u8,
    pub(super) precision: u8,
    pub(super) lossless: bool,
    /// The Exif orientation, 1 to 8; 1 when the file has none.
    pub(super) orientation: u8,
    /// Where the entropy-coded data of the first scan begins.
    pub(super) scan_offset: usize,
}

fn damaged(offset: usize, what: &str) -> Error {
    Error::corrupt(format!("JPEG header: {what} (at byte {offset} of the image)"))
}

/// Reads the markers up to the first scan.
///
/// # Source
/// ITU-T T.81, annex B.
pub(super) fn read(encoded: &[u8]) -> Result<Markers> {
    let ended = |at: usize| damaged(at, "the file ends in it");
    let u16_at = |at: usize| {
        let bytes = encoded.get(at..at + 2).ok_or_else(|| ended(encoded.len()))?;
        Ok::<_, Error>(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    if !encoded.starts_with(&[0xff, 0xd8]) {
        return Err(damaged(0, "no start-of-image marker"));
    }
    let mut frame: Option<Markers> = None;
    let mut orientation = None;
    let mut at = 2;
    loop {
        // Bytes between segments are skipped as libjpeg does: up to an ff that something other than 0 or ff follows.
        let start = at;
        while encoded.get(at).is_some_and(|&b| b != 0xff)
            || encoded.get(at).is_some() && matches!(encoded.get(at + 1), Some(0 | 0xff))
        {
            at += 1;
        }
        let marker = *encoded.get(at + 1).ok_or_else(|| ended(start))?;
        at += 2;
        if matches!(marker, 0x01 | 0xd0..=0xd7) {
            continue;
        }
        if marker == 0xd8 {
            return Err(damaged(at - 2, "a second start-of-image marker"));
        }
        if marker == 0xd9 {
            return Err(damaged(at - 2, "the image ends before its first scan"));
        }
        let length = usize::from(u16_at(at)?);
        let segment = encoded.get(at..at + length).ok_or_else(|| ended(at))?;
        let body = segment.get(2..).ok_or_else(|| damaged(at, "a segment shorter than its length field"))?;
        match marker {
            0xe1 if orientation.is_none() => {
                orientation = body.strip_prefix(b"Exif\0\0").and_then(exif::orientation);
            }
            // Frame headers; c4, c8 and cc are tables and a reserved marker.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                if frame.is_some() {
                    return Err(damaged(at, "a second frame header"));
                }
                let [precision, h1, h0, w1, w0, components, ..] = *body else {
                    return Err(damaged(at, "a frame header that is too short"));
                };
                if components == 0 || body.len() != 6 + 3 * usize::from(components) {
                    return Err(damaged(at, "a frame header whose length does not fit its components"));
                }
                frame = Some(Markers {
                    width: u16::from_be_bytes([w1, w0]).into(),
                    height: u16::from_be_bytes([h1, h0]).into(),
                    components,
                    precision,
                    lossless: matches!(marker, 0xc3 | 0xc7 | 0xcb | 0xcf),
                    orientation: 1,
                    scan_offset: 0,
                });
            }
            0xda => {
                let mut frame = frame.ok_or_else(|| damaged(at, "a scan before any frame header"))?;
                frame.scan_offset = at + length;
                frame.orientation = orientation.unwrap_or(1);
                return Ok(frame);
            }
            _ => {}
        }
        at += length;
    }
}

/// Whether the end-of-image marker comes after the first scan's beginning. Looks from the end, where it normally is.
pub(super) fn is_ended(encoded: &[u8], markers: &Markers) -> bool {
    encoded[markers.scan_offset..].windows(2).rev().any(|pair| pair == [0xff, 0xd9])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
        let mut segment = vec![0xff, marker];
        segment.extend((body.len() as u16 + 2).to_be_bytes());
        segment.extend(body);
        segment
    }

    fn file(parts: &[Vec<u8>]) -> Vec<u8> {
        [&[0xff, 0xd8][..], &parts.concat()].concat()
    }

    const FRAME: [u8; 15] = [8, 0, 100, 0, 200, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1];
    const SCAN: [u8; 10] = [3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0];

    #[test]
    fn size_and_layout_are_read_past_fill_bytes_and_junk() {
        let junk = vec![1, 2, 0xff, 0, 3, 0xff, 0xff];
        let bytes = file(&[segment(0xe0, b"JFIF\0"), junk, segment(0xc0, &FRAME), segment(0xda, &SCAN), vec![7]]);
        let markers = read(&bytes).unwrap();
        assert_eq!((markers.width, markers.height, markers.components), (200, 100, 3));
        assert_eq!((markers.precision, markers.scan_offset), (8, bytes.len() - 1));
        assert!(!is_ended(&bytes, &markers));
        assert!(is_ended(&[&bytes[..], &[0xff, 0xd9, 0, 0]].concat(), &markers));
    }

    #[test]
    fn headers_out_of_order_are_errors() {
        for parts in [
            vec![segment(0xda, &SCAN)],
            vec![segment(0xc0, &FRAME), segment(0xc0, &FRAME)],
            vec![segment(0xc0, &FRAME[..10])],
            vec![segment(0xc0, &[])],
            vec![vec![0xff, 0xc0, 0, 1]],
            vec![vec![0xff, 0xd8]],
            vec![vec![0xff, 0xd9]],
            vec![],
        ] {
            assert!(read(&file(&parts)).is_err(), "{parts:?}");
        }
        let whole = file(&[segment(0xc0, &FRAME), segment(0xda, &SCAN)]);
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "{end}");
        }
    }
}
