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

/// What a byte becomes: the values of each channel.
///
/// A table holds torchvision's values exactly; multiplying and adding a byte at a time instead was slower (644 images/s, 659 with
/// tables, whole random resized crops on one core).
pub(super) struct Tables {
    values: [[f32; 256]; 3],
    #[cfg(target_arch = "x86_64")]
    scales: [Option<Scale>; 3],
}

impl Tables {
    /// The values that bytes become: 0 to 1, then less `mean`, over `std`, rounded at each step as torchvision does.
    pub(super) fn new(normalize: Option<(&[f32], &[f32])>) -> Box<Self> {
        let mut tables = Box::new(Self {
            values: [[0.0; 256]; 3],
            #[cfg(target_arch = "x86_64")]
            scales: [None; 3],
        });
        for c in 0..3 {
            let numbers = normalize.and_then(|(mean, std)| Some((*mean.get(c)?, *std.get(c)?)));
            for (byte, value) in tables.values[c].iter_mut().enumerate() {
                *value = byte as f32 / 255.0;
                if let Some((mean, std)) = numbers {
                    *value = (*value - mean) / std;
                }
            }
            #[cfg(target_arch = "x86_64")]
            {
                let (mean, std) = numbers.unwrap_or((0.0, 1.0));
                tables.scales[c] = Scale::new(mean, std, &tables.values[c]);
            }
        }
        tables
    }

    /// Writes what `bytes` become in channel `c`, eight at a time where they can be computed.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn look_up_avx2(&self, c: usize, bytes: &[u8], out: &mut [f32]) {
        match self.scales[c] {
            Some(scale) => {
                for (to, &byte) in out.iter_mut().zip(bytes) {
                    *to = scale.apply(byte);
                }
            }
            None => {
                for (to, &byte) in out.iter_mut().zip(bytes) {
                    *to = self.values[c][usize::from(byte)];
                }
            }
        }
    }
}

/// A table's values without its divisions and look-ups, both of which are slower than multiplying vectors.
///
/// A number is multiplied by a reciprocal of twice the precision, as a rounded one and the rest: rounded once, that is
/// nearly always the quotient, rounded. [`Scale::new`] tries all 256 bytes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Scale {
    mean: f32,
    per_std: (f32, f32),
}

#[cfg(target_arch = "x86_64")]
impl Scale {
    /// None unless every byte becomes the value in `table`, bit for bit.
    fn new(mean: f32, std: f32, table: &[f32; 256]) -> Option<Self> {
        let scale = Self { mean, per_std: Self::reciprocal(std) };
        (0..=255).zip(table).all(|(byte, value)| scale.apply(byte).to_bits() == value.to_bits()).then_some(scale)
    }

    const fn reciprocal(of: f32) -> (f32, f32) {
        let exact = 1.0 / of as f64;
        (exact as f32, (exact - exact as f32 as f64) as f32)
    }

    #[inline(always)]
    fn apply(self, byte: u8) -> f32 {
        const PER_255: (f32, f32) = Scale::reciprocal(255.0);
        let times = |value: f32, (rounded, rest): (f32, f32)| value.mul_add(rounded, value * rest);
        times(times(f32::from(byte), PER_255) - self.mean, self.per_std)
    }
}

/// A sample's place in the batch, and as what pixels are written there.
pub(super) enum Slot<'a> {
    /// As they are.
    U8(&'a mut [u8]),
    /// As the values of the tables.
    F32(&'a mut [f32], &'a Tables),
}

/// Writes `source`, turned, to `slot`.
pub(super) fn write(source: Source<'_>, turn: Turn, layout: Layout, slot: Slot<'_>) {
    match slot {
        Slot::U8(out) => write_values(source, turn, layout, out, |_, byte| byte),
        Slot::F32(out, tables) => {
            write_values(source, turn, layout, out, |c, byte| tables.values[c][usize::from(byte)]);
        }
    }
}

fn write_values<T: Copy>(
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
        write(source(&pixels), Turn::default(), Layout::Nchw, Slot::U8(&mut planes));
        write(source(&pixels), Turn::default(), Layout::Nhwc, Slot::U8(&mut interleaved));
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
            write(source(&pixels()), Turn::from_exif(orientation), Layout::Nchw, Slot::U8(&mut out));
            assert_eq!(out[..6], expected, "orientation {orientation}");
        }
    }

    #[test]
    fn floats_are_scaled_then_normalized() {
        let gray = [0, 51, 255];
        let source = Source { pixels: &gray, width: 3, height: 1, channels: 1 };
        let mut out = [0.0; 3];
        write(source, Turn::default(), Layout::Nchw, Slot::F32(&mut out, &Tables::new(None)));
        assert_eq!(out, [0.0, 0.2, 1.0]);
        let tables = Tables::new(Some((&[0.5], &[0.25])));
        write(source, Turn::default(), Layout::Nchw, Slot::F32(&mut out, &tables));
        assert_eq!(out, [-2.0, (51.0 / 255.0 - 0.5) / 0.25, 2.0]);
    }
}
