//! The last pass: turn, scale and lay out the pixels in the sample's slot.

use super::Layout;
use super::exif::Turn;

/// Interleaved pixels of one byte a channel.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) pixels: &'a [u8],
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) channels: usize,
}

/// What a byte becomes: the table of each channel.
///
/// A table holds torchvision's values exactly; multiplying and adding instead was slower (644 images/s, 659 with tables,
/// whole random resized crops on one core).
pub(super) type Tables = [[f32; 256]; 3];

/// The values that bytes become: 0 to 1, then less `mean`, over `std`, rounded at each step as torchvision does.
pub(super) fn tables(normalize: Option<(&[f32], &[f32])>) -> Box<Tables> {
    let mut tables = Box::new([[0.0; 256]; 3]);
    for (c, table) in tables.iter_mut().enumerate() {
        for (byte, value) in table.iter_mut().enumerate() {
            *value = byte as f32 / 255.0;
            if let Some((mean, std)) = normalize
                && let (Some(mean), Some(std)) = (mean.get(c), std.get(c))
            {
                *value = (*value - mean) / std;
            }
        }
    }
    tables
}

/// Writes `source`, turned, to `out` as bytes.
pub(super) fn write_u8(source: Source<'_>, turn: Turn, layout: Layout, out: &mut [u8]) {
    write(source, turn, layout, out, |_, byte| byte);
}

/// Writes `source`, turned, to `out` as the values of `tables`.
pub(super) fn write_f32(source: Source<'_>, turn: Turn, layout: Layout, tables: &Tables, out: &mut [f32]) {
    write(source, turn, layout, out, |c, byte| tables[c][usize::from(byte)]);
}

fn write<T: Copy>(
    source: Source<'_>,
    turn: Turn,
    layout: Layout,
    out: &mut [T],
    value: impl Fn(usize, u8) -> T + Copy,
) {
    match source.channels {
        1 => write_pixels::<T, 1>(source, turn, layout, out, value),
        3 => write_pixels::<T, 3>(source, turn, layout, out, value),
        other => unreachable!("no pixels of {other} channels"),
    }
}

fn write_pixels<T: Copy, const CHANNELS: usize>(
    source: Source<'_>,
    turn: Turn,
    layout: Layout,
    out: &mut [T],
    value: impl Fn(usize, u8) -> T + Copy,
) {
    let (pixels, _) = source.pixels.as_chunks::<CHANNELS>();
    let pixels = &pixels[..source.width * source.height];
    let (width, height) = if turn.transpose { (source.height, source.width) } else { (source.width, source.height) };
    let plane = width * height;
    if plane == 0 {
        return;
    }
    for y in 0..height {
        let from_y = if turn.flip_y { height - 1 - y } else { y };
        if turn.transpose {
            // Column `from_y` of the source.
            let column = pixels[from_y..].iter().step_by(source.width);
            let target = Target::<T, CHANNELS> { out, plane, width, y, layout };
            if turn.flip_x { target.fill(column.rev(), value) } else { target.fill(column, value) }
        } else {
            let row = pixels[from_y * width..][..width].iter();
            let target = Target::<T, CHANNELS> { out, plane, width, y, layout };
            if turn.flip_x { target.fill(row.rev(), value) } else { target.fill(row, value) }
        }
    }
}

/// A row of the output.
struct Target<'a, T, const CHANNELS: usize> {
    out: &'a mut [T],
    plane: usize,
    width: usize,
    y: usize,
    layout: Layout,
}

impl<T: Copy, const CHANNELS: usize> Target<'_, T, CHANNELS> {
    fn fill<'p>(self, row: impl Iterator<Item = &'p [u8; CHANNELS]> + Clone, value: impl Fn(usize, u8) -> T) {
        match self.layout {
            Layout::Nchw => {
                for (c, plane) in self.out.chunks_exact_mut(self.plane).take(CHANNELS).enumerate() {
                    let to = &mut plane[self.y * self.width..][..self.width];
                    to.iter_mut().zip(row.clone()).for_each(|(to, pixel)| *to = value(c, pixel[c]));
                }
            }
            Layout::Nhwc => {
                let to = &mut self.out[self.y * self.width * CHANNELS..][..self.width * CHANNELS];
                for (to, pixel) in to.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(row) {
                    (0..CHANNELS).for_each(|c| to[c] = value(c, pixel[c]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 x 2 pixels whose channels are p, p + 10 and p + 20.
    fn pixels() -> Vec<u8> {
        (0..6).flat_map(|p| [p, p + 10, p + 20]).collect()
    }

    fn source(pixels: &[u8]) -> Source<'_> {
        Source { pixels, width: 3, height: 2, channels: 3 }
    }

    #[test]
    fn planes_and_pixels_hold_the_same_values() {
        let pixels = pixels();
        let (mut planes, mut interleaved) = ([0; 18], [0; 18]);
        write_u8(source(&pixels), Turn::default(), Layout::Nchw, &mut planes);
        write_u8(source(&pixels), Turn::default(), Layout::Nhwc, &mut interleaved);
        assert_eq!(planes, [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25]);
        assert_eq!(interleaved[..6], [0, 10, 20, 1, 11, 21]);
    }

    #[test]
    fn every_turn_puts_pixels_where_exif_says() {
        let expected: [[u8; 6]; 8] = [
            [0, 1, 2, 3, 4, 5],
            [2, 1, 0, 5, 4, 3],
            [5, 4, 3, 2, 1, 0],
            [3, 4, 5, 0, 1, 2],
            [0, 3, 1, 4, 2, 5],
            [3, 0, 4, 1, 5, 2],
            [5, 2, 4, 1, 3, 0],
            [2, 5, 1, 4, 0, 3],
        ];
        for (orientation, expected) in (1..).zip(expected) {
            let mut out = [0; 18];
            write_u8(source(&pixels()), Turn::from_exif(orientation), Layout::Nchw, &mut out);
            assert_eq!(out[..6], expected, "orientation {orientation}");
        }
    }

    #[test]
    fn floats_are_scaled_then_normalized() {
        let gray = [0, 51, 255];
        let source = Source { pixels: &gray, width: 3, height: 1, channels: 1 };
        let mut out = [0.0; 3];
        write_f32(source, Turn::default(), Layout::Nchw, &tables(None), &mut out);
        assert_eq!(out, [0.0, 0.2, 1.0]);
        write_f32(source, Turn::default(), Layout::Nchw, &tables(Some((&[0.5], &[0.25]))), &mut out);
        assert_eq!(out, [-2.0, (51.0 / 255.0 - 0.5) / 0.25, 2.0]);
    }
}
