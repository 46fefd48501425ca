//! The Exif orientation tag, and the eight ways of turning a rectangle. This module also reads TIFF's directories, which Exif uses.

use crate::error::{Error, Result};

use super::window::Rect;

/// One of the eight symmetries of a rectangle: transpose first, then mirror left to right, then top to bottom.
///
/// It leads from the stored picture to the intended one. Exif orientations, flips and crops in a turned picture are all expressed by it, so pixels are turned
/// once, in the last pass over the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) transpose: bool,
    pub(super) flip_x: bool,
    pub(super) flip_y: bool,
}

impl Turn {
    /// The turn of an Exif orientation, 1 to 8; anything else means none.
    pub(super) fn from_exif(orientation: u8) -> Self {
        let turn = |transpose, flip_x, flip_y| Self { transpose, flip_x, flip_y };
        match orientation {
            2 => turn(false, true, false),
            3 => turn(false, true, true),
            4 => turn(false, false, true),
            5 => turn(true, false, false),
            6 => turn(true, true, false),
            7 => turn(true, true, true),
            8 => turn(true, false, true),
            _ => Self::default(),
        }
    }

    /// The intended size from the stored size, and back.
    pub(super) fn size(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.transpose { (height, width) } else { (width, height) }
    }

    /// Where a window of the intended picture (of size `whole`) lies in the stored one.
    pub(super) fn to_stored(self, window: Rect, whole: (u32, u32)) -> Rect {
        let x = if self.flip_x { whole.0 - window.x - window.width } else { window.x };
        let y = if self.flip_y { whole.1 - window.y - window.height } else { window.y };
        if self.transpose {
            Rect { x: y, y: x, width: window.height, height: window.width }
        } else {
            Rect { x, y, ..window }
        }
    }

    /// Where a window of the stored picture (of size `whole`) lies in the intended one.
    pub(super) fn to_meant(self, window: Rect, whole: (u32, u32)) -> Rect {
        let whole = self.size(whole);
        let Rect { x, y, width, height } = window;
        let (x, y, width, height) = if self.transpose { (y, x, height, width) } else { (x, y, width, height) };
        let x = if self.flip_x { whole.0 - x - width } else { x };
        let y = if self.flip_y { whole.1 - y - height } else { y };
        Rect { x, y, width, height }
    }
}

/// The orientation, 1 to 8, in an Exif block (a TIFF header and what follows it).
///
/// # Source
/// CIPA DC-008 (Exif 2.32), 4.6.4: tag 0x0112, type SHORT, in the first directory.
pub(super) fn orientation(exif: &[u8]) -> Option<u8> {
    const TAG: u16 = 0x0112;
    const SHORT: u16 = 3;
    let entry = entries(exif).find(|entry| entry.tag == TAG)?;
    let one_short = entry.kind == SHORT && entry.count == 1;
    (one_short && (1..=8).contains(&entry.short)).then_some(entry.short as u8)
}

/// An entry of a TIFF directory: values of one kind, or where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    kind: u16,
    count: u32,
    /// The first of the values, if there is one and it is a SHORT.
    short: u16,
}

impl Entry {
    /// Bytes of all its values.
    fn bytes(self) -> u64 {
        let size = match self.kind {
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 => 8,
            _ => 1,
        };
        u64::from(self.count) * size
    }
}

/// The entries of the first directory after a TIFF header, as far as the bytes go.
fn entries(tiff: &[u8]) -> impl Iterator<Item = Entry> {
    let little = tiff.starts_with(b"II*\0");
    let known = little || tiff.starts_with(b"MM\0*");
    let u16_at = move |at: usize| {
        let bytes = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let u32_at = move |at: usize| {
        let bytes = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    let directory = u32_at(4).and_then(|at| usize::try_from(at).ok()).filter(|_| known);
    let found = directory.and_then(|at| Some((at.checked_add(2)?, usize::from(u16_at(at)?))));
    let (first, count) = found.unwrap_or((0, 0));
    (0..count).map_while(move |number| {
        let at = first.checked_add(12 * number)?;
        let (tag, kind) = (u16_at(at)?, u16_at(at.checked_add(2)?)?);
        Some(Entry { tag, kind, count: u32_at(at.checked_add(4)?)?, short: u16_at(at.checked_add(8)?)? })
    })
}

/// Refuses a TIFF file whose first directory declares values that the file has no room for.
///
/// The decoder reserves room for all declared values, up to 256 MiB, before a limit can be set.
pub(super) fn check_directory(tiff: &[u8]) -> Result<()> {
    match entries(tiff).find(|entry| entry.bytes() > tiff.len() as u64) {
        Some(entry) => Err(Error::corrupt(format!(
            "TIFF tag {:#06x} declares values of {} bytes; the image has {}",
            entry.tag,
            entry.bytes(),
            tiff.len()
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(little: bool, value: u16) -> Vec<u8> {
        let short = |v: u16| if little { v.to_le_bytes() } else { v.to_be_bytes() };
        let long = |v: u32| if little { v.to_le_bytes() } else { v.to_be_bytes() };
        let mut exif = if little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        exif.extend(long(8));
        exif.extend(short(2));
        for (tag, value) in [(0x0100, 640), (0x0112, value)] {
            exif.extend(short(tag));
            exif.extend(short(3));
            exif.extend(long(1));
            exif.extend(short(value));
            exif.extend([0, 0]);
        }
        exif
    }

    #[test]
    fn both_byte_orders_are_read() {
        for value in 1..=8 {
            assert_eq!(orientation(&block(true, value)), Some(value as u8));
            assert_eq!(orientation(&block(false, value)), Some(value as u8));
        }
        assert_eq!(orientation(&block(true, 0)), None);
        assert_eq!(orientation(&block(true, 9)), None);
    }

    #[test]
    fn values_that_the_file_has_no_room_for_are_refused() {
        for little in [true, false] {
            let whole = block(little, 6);
            assert!(check_directory(&whole).is_ok());
            for (byte, fits) in [(0, true), (1, false), (2, false), (3, false)] {
                let mut damaged = whole.clone();
                // The second entry's number of values, which take two bytes each; there are 34 in all.
                damaged[10 + 12 + 4 + if little { byte } else { 3 - byte }] = 17;
                assert_eq!(check_directory(&damaged).is_ok(), fits);
            }
        }
    }

    #[test]
    fn every_prefix_and_changed_byte_ends_in_an_orientation_or_none() {
        let whole = block(false, 6);
        for end in 0..whole.len() {
            let _ = orientation(&whole[..end]);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                assert!(orientation(&damaged).is_none_or(|o| (1..=8).contains(&o)));
            }
        }
    }

    #[test]
    fn windows_of_a_turned_picture_land_where_its_pixels_are_stored() {
        // A stored picture of 5 x 3; the pixel at (x, y) is called 10 * y + x.
        let stored = (5, 3);
        for orientation in 1..=8 {
            let turn = Turn::from_exif(orientation);
            let meant = turn.size(stored);
            let pixel = |x, y| {
                let r = turn.to_stored(Rect { x, y, width: 1, height: 1 }, meant);
                10 * r.y + r.x
            };
            // The corners as Exif describes them: where row 0 and column 0 of the stored picture are shown.
            let corner = pixel(0, 0);
            let expected = [0, 4, 24, 20, 0, 20, 24, 4][usize::from(orientation) - 1];
            assert_eq!(corner, expected, "orientation {orientation}");
            let window = Rect { x: 1, y: 0, width: 2, height: 3 };
            let r = turn.to_stored(window, meant);
            assert_eq!(turn.to_meant(r, stored), window, "orientation {orientation}");
            let mut inside: Vec<_> =
                (0..3).flat_map(|y| (1..3).map(move |x| (x, y))).map(|(x, y)| pixel(x, y)).collect();
            inside.sort_unstable();
            let stored: Vec<_> =
                (r.y..r.y + r.height).flat_map(|y| (r.x..r.x + r.width).map(move |x| 10 * y + x)).collect();
            assert_eq!(inside, stored, "orientation {orientation}");
        }
    }
}
