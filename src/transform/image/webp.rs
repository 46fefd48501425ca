//! Checks a WebP's frames before the decoder reserves memory for them.

use crate::error::{Error, Result};

/// Refuses frames that are larger than the canvas: the decoder notices only after decoding them, whatever memory that takes.
///
/// # Source
/// RFC 9649 (chunks, `VP8X`, `ANMF`, VP8L), RFC 6386 section 9.1 (VP8's frame header).
pub(super) fn check_frames(webp: &[u8], canvas: (u32, u32)) -> Result<()> {
    for (kind, payload) in chunks(webp.get(12..).unwrap_or_default()) {
        if kind == b"ANMF" {
            chunks(payload.get(16..).unwrap_or_default())
                .try_for_each(|(kind, payload)| check(kind, payload, canvas))?;
        } else {
            check(kind, payload, canvas)?;
        }
    }
    Ok(())
}

fn check(kind: &[u8], payload: &[u8], canvas: (u32, u32)) -> Result<()> {
    let size = match (kind, payload) {
        (b"VP8 ", [_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..]) => {
            let side = |bytes| u32::from(u16::from_le_bytes(bytes) & 0x3fff);
            (side([*w0, *w1]), side([*h0, *h1]))
        }
        (b"VP8L", [0x2f, bits @ ..]) => {
            let Some(bits) = bits.first_chunk() else { return Ok(()) };
            let bits = u32::from_le_bytes(*bits);
            ((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1)
        }
        _ => return Ok(()),
    };
    if size.0 <= canvas.0 && size.1 <= canvas.1 {
        return Ok(());
    }
    let ((width, height), (canvas_width, canvas_height)) = (size, canvas);
    Err(Error::corrupt(format!(
        "the WebP image has a frame of {width}x{height} on a canvas of {canvas_width}x{canvas_height}"
    ))
    .advice("store the image again"))
}

/// Iterates over chunks: kind and payload. The payload ends with the data if it is cut off.
fn chunks(mut data: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (kind, size) = (data.get(..4)?, data.get(4..8)?.first_chunk()?);
        let (size, payload) = (u32::from_le_bytes(*size) as usize, &data[8..]);
        // Chunks of an odd size are followed by a byte of padding.
        data = payload.get(size + size % 2..).unwrap_or_default();
        Some((kind, &payload[..size.min(payload.len())]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut bytes = [kind, &(payload.len() as u32).to_le_bytes(), payload].concat();
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes
    }

    #[test]
    fn frames_larger_than_the_canvas_are_found_wherever_they_stand() {
        let lossy = chunk(b"VP8 ", &[0, 0, 0, 0x9d, 0x01, 0x2a, 44, 0, 35, 0xc0, 1]);
        let lossless = chunk(b"VP8L", &[0x2f, 43, 0x80, 8, 0]);
        let frame = chunk(b"ANMF", &[&[0; 16], &lossless[..]].concat());
        let file = |chunks: &[u8]| [b"RIFF\0\0\0\0WEBP", chunks].concat();
        for picture in [lossy, lossless, frame] {
            let file = file(&[chunk(b"ICCP", &[1, 2, 3]), picture].concat());
            assert!(check_frames(&file, (44, 35)).is_ok());
            for canvas in [(43, 35), (44, 34)] {
                let message = check_frames(&file, canvas).unwrap_err().to_string();
                assert!(message.contains("a frame of 44x35 on a canvas of"), "{message}");
            }
            for len in 0..file.len() {
                _ = check_frames(&file[..len], (1, 1));
            }
        }
        let cut =
            file(&[b"VP8 ", &u32::MAX.to_le_bytes()[..], &[0, 0, 0, 0x9d, 1, 0x2a, 0xdc, 0xdc, 0xdc, 0xdc]].concat());
        assert!(check_frames(&cut, (45, 35)).is_err(), "a size beyond the file does not hide the frame");
    }
}
