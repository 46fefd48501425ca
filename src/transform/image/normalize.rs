//! The last pass: turns and scales the pixels, and lays them out in the sample's slot with the padding around them.

use super::Layout;
use super::exif::Turn;
use super::window::Frame;

/// Interleaved pixels of one byte a channel.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) pixels: &'a [u8],
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) channels: usize,
}

impl<'a> Source<'a> {
    /// The first of `pixels`, as a picture of this size.
    pub(super) fn of(pixels: &'a [u8], size: (u32, u32), channels: usize) -> Self {
        let (width, height) = (size.0 as usize, size.1 as usize);
        Self { pixels: &pixels[..width * height * channels], width, height, channels }
    }
}

/// The value of each byte in each channel.
///
/// A table holds torchvision's values exactly. Multiplying and adding one byte at a time instead was slower (644 images/s, against 659 with tables, for whole
/// random resized crops on one core).
pub(super) struct Tables {
    values: [[f32; 256]; 3],
    #[cfg(target_arch = "x86_64")]
    scales: [Option<Scale>; 3],
}

impl Tables {
    /// The values of all bytes: 0 to 1, then less `mean`, over `std`, rounded at each step as in torchvision.
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

    /// Writes the values of `bytes` in channel `c`, eight at a time if they can be computed.
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

/// Computes a table's values without its divisions and look-ups, both of which are slower than multiplying vectors.
///
/// A number is multiplied by a reciprocal of twice the precision, stored as a rounded reciprocal and the rest. Rounded once, the product is nearly always the
/// rounded quotient. [`Scale::new`] tries all 256 bytes.
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

/// A sample's place in the batch, and the type in which pixels are written there.
pub(super) enum Slot<'a> {
    /// As bytes, unchanged.
    U8(&'a mut [u8]),
    /// As the values of the tables.
    F32(&'a mut [f32], &'a Tables),
}

/// How a picture is placed in a slot: turned, in a layout, in the window of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placing {
    pub(super) turn: Turn,
    pub(super) layout: Layout,
    /// For the picture after it is turned.
    pub(super) frame: Frame,
}

impl Placing {
    /// Places a picture, whose size before turning is `size`, so that it fills the slot.
    pub(super) fn filled(turn: Turn, layout: Layout, size: (u32, u32)) -> Self {
        Self { turn, layout, frame: Frame::filled(turn.size(size)) }
    }

    /// Pixels of the slot.
    pub(super) fn pixels(&self) -> usize {
        self.frame.size.0 as usize * self.frame.size.1 as usize
    }

    /// Where in the slot the `y`-th row of the turned picture starts, in pixels.
    pub(super) fn row(&self, y: usize) -> usize {
        let Frame { size, picture } = self.frame;
        (picture.y as usize + y) * size.0 as usize + picture.x as usize
    }
}

/// Writes `source`, turned, to its window of `slot`.
pub(super) fn write(source: Source<'_>, placing: Placing, slot: &mut Slot<'_>) {
    match slot {
        Slot::U8(out) => write_values(source, placing, out, |_, byte| byte),
        Slot::F32(out, tables) => {
            write_values(source, placing, out, |c, byte| tables.values[c][usize::from(byte)]);
        }
    }
}

fn write_values<T: Copy>(source: Source<'_>, placing: Placing, out: &mut [T], value: impl Fn(usize, u8) -> T + Copy) {
    match source.channels {
        1 => write_pixels::<T, 1>(source, placing, out, value),
        3 => write_pixels::<T, 3>(source, placing, out, value),
        other => unreachable!("no pixels of {other} channels"),
    }
}

fn write_pixels<T: Copy, const CHANNELS: usize>(
    source: Source<'_>,
    placing: Placing,
    out: &mut [T],
    value: impl Fn(usize, u8) -> T + Copy,
) {
    let (pixels, _) = source.pixels.as_chunks::<CHANNELS>();
    let pixels = &pixels[..source.width * source.height];
    if pixels.is_empty() {
        return;
    }
    let turn = placing.turn;
    let (width, height) = if turn.transpose { (source.height, source.width) } else { (source.width, source.height) };
    let (plane, layout) = (placing.pixels(), placing.layout);
    for y in 0..height {
        let from_y = if turn.flip_y { height - 1 - y } else { y };
        let target = Target::<T, CHANNELS> { out, plane, start: placing.row(y), width, layout };
        if turn.transpose {
            // Column `from_y` of the source.
            let column = pixels[from_y..].iter().step_by(source.width);
            if turn.flip_x { target.fill(column.rev(), value) } else { target.fill(column, value) }
        } else {
            let row = pixels[from_y * width..][..width].iter();
            if turn.flip_x { target.fill(row.rev(), value) } else { target.fill(row, value) }
        }
    }
}

/// A row of the output, or a part of one.
struct Target<'a, T, const CHANNELS: usize> {
    out: &'a mut [T],
    plane: usize,
    start: usize,
    width: usize,
    layout: Layout,
}

impl<T: Copy, const CHANNELS: usize> Target<'_, T, CHANNELS> {
    fn fill<'p>(self, row: impl Iterator<Item = &'p [u8; CHANNELS]> + Clone, value: impl Fn(usize, u8) -> T) {
        match self.layout {
            Layout::Nchw => {
                for (c, plane) in self.out.chunks_exact_mut(self.plane).take(CHANNELS).enumerate() {
                    let to = &mut plane[self.start..][..self.width];
                    to.iter_mut().zip(row.clone()).for_each(|(to, pixel)| *to = value(c, pixel[c]));
                }
            }
            Layout::Nhwc => {
                let to = &mut self.out[self.start * CHANNELS..][..self.width * CHANNELS];
                for (to, pixel) in to.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(row) {
                    (0..CHANNELS).for_each(|c| to[c] = value(c, pixel[c]));
                }
            }
        }
    }
}

/// Writes planes of bytes, one per channel, which are already turned.
pub(super) fn write_planes(planes: &[u8], channels: usize, layout: Layout, slot: &mut Slot<'_>) {
    match slot {
        Slot::U8(out) => lay_out_planes(planes, channels, layout, out, |_, byte| byte),
        Slot::F32(out, tables) => {
            lay_out_planes(planes, channels, layout, out, |c, byte| tables.values[c][usize::from(byte)]);
        }
    }
}

fn lay_out_planes<T>(planes: &[u8], channels: usize, layout: Layout, out: &mut [T], value: impl Fn(usize, u8) -> T) {
    let pixels = planes.len() / channels;
    for (c, plane) in planes.chunks_exact(pixels).enumerate() {
        match layout {
            Layout::Nchw => {
                let to = &mut out[c * pixels..][..pixels];
                to.iter_mut().zip(plane).for_each(|(to, &byte)| *to = value(c, byte));
            }
            Layout::Nhwc => {
                let to = out.iter_mut().skip(c).step_by(channels);
                to.zip(plane).for_each(|(to, &byte)| *to = value(c, byte));
            }
        }
    }
}

/// Writes `fill` around the picture's window of `slot`.
pub(super) fn write_around(placing: Placing, channels: usize, fill: [u8; 3], slot: &mut Slot<'_>) {
    match slot {
        Slot::U8(out) => fill_around(placing, &fill[..channels], out),
        Slot::F32(out, tables) => {
            let values = [0, 1, 2].map(|c| tables.values[c][usize::from(fill[c])]);
            fill_around(placing, &values[..channels], out);
        }
    }
}

fn fill_around<T: Copy>(placing: Placing, values: &[T], out: &mut [T]) {
    let Frame { size, picture } = placing.frame;
    let width = size.0 as usize;
    let mut fill = |from: usize, to: usize| match placing.layout {
        Layout::Nchw => {
            for (plane, &value) in out.chunks_exact_mut(placing.pixels()).zip(values) {
                plane[from..to].fill(value);
            }
        }
        Layout::Nhwc => {
            let out = &mut out[from * values.len()..to * values.len()];
            out.chunks_exact_mut(values.len()).for_each(|pixel| pixel.copy_from_slice(values));
        }
    };
    // From the end of one of the picture's rows to the start of the next: right of it, whole rows, left of it.
    let mut end = 0;
    for y in 0..picture.height as usize {
        let start = placing.row(y);
        fill(end, start);
        end = start + picture.width as usize;
    }
    fill(end, width * size.1 as usize);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::image::window::Rect;

    /// 3 x 2 pixels whose channels are p, p + 10 and p + 20.
    fn pixels() -> Vec<u8> {
        (0..6).flat_map(|p| [p, p + 10, p + 20]).collect()
    }

    fn source(pixels: &[u8]) -> Source<'_> {
        Source { pixels, width: 3, height: 2, channels: 3 }
    }

    fn filled(turn: Turn, layout: Layout) -> Placing {
        Placing::filled(turn, layout, (3, 2))
    }

    #[test]
    fn planes_and_pixels_hold_the_same_values() {
        let pixels = pixels();
        let (mut planes, mut interleaved) = ([0; 18], [0; 18]);
        write(source(&pixels), filled(Turn::default(), Layout::Nchw), &mut Slot::U8(&mut planes));
        write(source(&pixels), filled(Turn::default(), Layout::Nhwc), &mut Slot::U8(&mut interleaved));
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
            write(source(&pixels()), filled(Turn::from_exif(orientation), Layout::Nchw), &mut Slot::U8(&mut out));
            assert_eq!(out[..6], expected, "orientation {orientation}");
        }
    }

    #[test]
    fn floats_are_scaled_then_normalized() {
        let gray = [0, 51, 255];
        let source = Source { pixels: &gray, width: 3, height: 1, channels: 1 };
        let mut out = [0.0; 3];
        let placing = Placing::filled(Turn::default(), Layout::Nchw, (3, 1));
        write(source, placing, &mut Slot::F32(&mut out, &Tables::new(None)));
        assert_eq!(out, [0.0, 0.2, 1.0]);
        let tables = Tables::new(Some((&[0.5], &[0.25])));
        write(source, placing, &mut Slot::F32(&mut out, &tables));
        assert_eq!(out, [-2.0, (51.0 / 255.0 - 0.5) / 0.25, 2.0]);
    }

    #[test]
    fn a_picture_and_what_is_around_it_fill_the_slot_once() {
        let (pixels, fill) = (pixels(), [100, 101, 102]);
        for orientation in 1..=8 {
            for layout in [Layout::Nchw, Layout::Nhwc] {
                let turn = Turn::from_exif(orientation);
                let mut alone = [0; 18];
                write(source(&pixels), filled(turn, layout), &mut Slot::U8(&mut alone));
                let (width, height) = turn.size((3, 2));
                for (left, top, right, bottom) in [(2, 1, 0, 3), (0, 0, 1, 0), (1, 2, 3, 0), (0, 0, 0, 0)] {
                    let size = (left + width + right, top + height + bottom);
                    let frame = Frame { size, picture: Rect { x: left, y: top, width, height } };
                    let placing = Placing { turn, layout, frame };
                    let mut out = vec![255; 3 * placing.pixels()];
                    write_around(placing, 3, fill, &mut Slot::U8(&mut out));
                    assert_eq!(out.iter().filter(|&&v| v == 255).count(), 18);
                    write(source(&pixels), placing, &mut Slot::U8(&mut out));
                    let at = |size: (u32, u32), x: u32, y: u32, c: u32| match layout {
                        Layout::Nchw => ((c * size.1 + y) * size.0 + x) as usize,
                        Layout::Nhwc => ((y * size.0 + x) * 3 + c) as usize,
                    };
                    for (x, y, c) in
                        (0..size.0).flat_map(|x| (0..size.1).flat_map(move |y| (0..3).map(move |c| (x, y, c))))
                    {
                        let inside = (left..left + width).contains(&x) && (top..top + height).contains(&y);
                        let expected =
                            if inside { alone[at((width, height), x - left, y - top, c)] } else { fill[c as usize] };
                        assert_eq!(out[at(size, x, y, c)], expected, "{placing:?} at {x}, {y}, {c}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_slot_without_a_picture_is_filled_with_what_the_bytes_become() {
        let frame = Frame { size: (2, 3), picture: Rect { x: 0, y: 0, width: 0, height: 0 } };
        let tables = Tables::new(Some((&[0.5, 0.25, 0.0], &[0.25, 1.0, 2.0])));
        for layout in [Layout::Nchw, Layout::Nhwc] {
            let placing = Placing { turn: Turn::default(), layout, frame };
            let mut out = [f32::NAN; 18];
            write_around(placing, 3, [255, 0, 51], &mut Slot::F32(&mut out, &tables));
            let expected = [2.0, -0.25, 0.2 / 2.0];
            for (i, value) in out.iter().enumerate() {
                assert_eq!(*value, expected[if layout == Layout::Nchw { i / 6 } else { i % 3 }]);
            }
        }
    }
}
