//! Bilinear resizing of RGB pictures with AVX2: both passes, turning, scaling and laying out, a row at a time.
//!
//! For each row of the output, the vertical pass blends the source rows that it needs into one row. The horizontal pass blends the pixels of that row into
//! those of the output, sorts them by colour if planes are wanted, and writes them to the slot. Between the steps a row is a few KiB and stays in the
//! first-level cache; a whole picture is read only once and written only once. Mirroring a picture costs nothing: its weights are mirrored.
//!
//! The bytes are those of `fast_image_resize`, which serves other processors, filters and turns; the test `pixels_are_those_of_the_portable_path` checks that.
//! The passes are the same, with two differences: weights are spread to vectors once per picture instead of once every four rows, and every output pixel has
//! the same number of taps, which the compiler knows, so eight pixels are made and stored at a time.
#![expect(unsafe_code, reason = "the call of a function that needs AVX2 and FMA, after asking the processor")]

use std::arch::x86_64::*;

use super::Layout;
use super::limits::resize_buffer;
use super::normalize::{Placing, Slot};
use super::weights::Weights;
use super::window::{Area, Rect};

/// A picture of RGB pixels: `pixels` has those of the window `held`, and only those inside `seen` count.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) pixels: &'a [u8],
    pub(super) held: Rect,
    pub(super) seen: Rect,
}

/// Buffers for weights and for one row, reused from image to image.
#[derive(Default)]
pub(super) struct Bilinear {
    rows: Weights,
    columns: Weights,
    groups: Groups,
    blended: Vec<u8>,
    line: Vec<u8>,
}

/// The weights of the horizontal pass, in the order in which eight output pixels at a time need them.
#[derive(Default)]
struct Groups {
    /// Pairs of taps of an output pixel.
    pairs: usize,
    /// Byte offsets of the first tap of each of eight pixels.
    starts: Vec<[u32; 8]>,
    /// For pixels k and k + 4 of a group, and for each pair of taps: its weights, four times for the one pixel and four times for the other.
    weights: Vec<[i16; 16]>,
}

impl Bilinear {
    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let groups = (self.groups.starts.capacity() + self.groups.weights.capacity()) * 32;
        self.rows.bytes() + self.columns.bytes() + groups + self.blended.capacity() + self.line.capacity()
    }

    /// Resizes `area` (counted from the corner of `seen`) to `size` and writes it to its window of `slot`. Returns false and writes nothing if this path cannot
    /// do it: no AVX2, a picture of a few pixels, a transposing turn, interleaved floats.
    pub(super) fn resize(
        &mut self,
        from: Part<'_>,
        area: Area,
        antialias: bool,
        size: (u32, u32),
        placing: Placing,
        slot: &mut Slot<'_>,
    ) -> bool {
        let made_for = !placing.turn.transpose && (placing.layout == Layout::Nchw || matches!(slot, Slot::U8(_)));
        if !made_for || !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
            return false;
        }
        // SAFETY: the processor has AVX2 and FMA, which is all that the function asks for.
        unsafe { self.resize_avx2(from, area, antialias, size, placing, slot) }
    }

    #[target_feature(enable = "avx2,fma")]
    fn resize_avx2(
        &mut self,
        from: Part<'_>,
        area: Area,
        antialias: bool,
        size: (u32, u32),
        placing: Placing,
        slot: &mut Slot<'_>,
    ) -> bool {
        let Placing { turn, layout, .. } = placing;
        let (width, height) = (size.0 as usize, size.1 as usize);
        let row_bytes = from.seen.width as usize * 3;
        if row_bytes < LANES
            || area.width <= 0.0
            || area.height <= 0.0
            || !self.columns.compute(area.x, area.width, from.seen.width, size.0, antialias)
            || !self.rows.compute(area.y, area.height, from.seen.height, size.1, antialias)
        {
            return false;
        }
        self.groups.arrange(&self.columns, turn.flip_x);
        let blended = resize_buffer(&mut self.blended, row_bytes + OVERREAD);
        let stride = width.next_multiple_of(8);
        let line = resize_buffer(&mut self.line, 3 * stride);
        let precision = self.columns.precision;
        let pitch = from.held.width as usize * 3;
        let corner = (from.seen.y - from.held.y) as usize * pitch + (from.seen.x - from.held.x) as usize * 3;
        for (y, (&start, weights)) in
            self.rows.starts.iter().zip(self.rows.values.chunks_exact(self.rows.taps)).enumerate()
        {
            let rows = &from.pixels[corner + start as usize * pitch..];
            blend_rows(rows, pitch, weights, self.rows.precision, &mut blended[..row_bytes]);
            match self.groups.pairs {
                1 => self.groups.blend_columns::<1>(blended, precision, layout, line),
                2 => self.groups.blend_columns::<2>(blended, precision, layout, line),
                3 => self.groups.blend_columns::<3>(blended, precision, layout, line),
                _ => self.groups.blend_columns::<0>(blended, precision, layout, line),
            }
            let start = placing.row(if turn.flip_y { height - 1 - y } else { y });
            match (layout, &mut *slot) {
                (Layout::Nhwc, Slot::U8(out)) => out[start * 3..][..width * 3].copy_from_slice(&line[..width * 3]),
                (Layout::Nhwc, Slot::F32(..)) => unreachable!("turned down above"),
                (Layout::Nchw, slot) => {
                    for (c, plane) in line.chunks_exact(stride).enumerate() {
                        let start = c * placing.pixels() + start;
                        let to = start..start + width;
                        match slot {
                            Slot::U8(out) => out[to].copy_from_slice(&plane[..width]),
                            Slot::F32(out, tables) => tables.look_up_avx2(c, &plane[..width], &mut out[to]),
                        }
                    }
                }
            }
        }
        true
    }
}

/// Bytes of a vector.
const LANES: usize = 32;

/// Bytes that the horizontal pass may read past a row's last pixel: vectors of 16 bytes hold five pixels, of which it uses two or four.
const OVERREAD: usize = 16;

/// Adds up rows, `pitch` apart, by their weights.
#[target_feature(enable = "avx2,fma")]
fn blend_rows(rows: &[u8], pitch: usize, weights: &[i16], precision: u32, out: &mut [u8]) {
    let zero = _mm256_setzero_si256();
    let half = _mm256_set1_epi32(1 << precision >> 1);
    let shift = _mm256_set1_epi32(precision as i32);
    let (pairs, _) = weights.as_chunks::<2>();
    let len = out.len();
    let blend = |x: usize| {
        let mut sums = [half; 4];
        for (pair, weights) in pairs.iter().enumerate() {
            let at = 2 * pair * pitch + x;
            let (a, b) = (load_32(rows, at), load_32(rows, at + pitch));
            let weights = _mm256_set1_epi32(bytemuck::cast(*weights));
            let (low, high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let widened = [
                _mm256_unpacklo_epi8(low, zero),
                _mm256_unpackhi_epi8(low, zero),
                _mm256_unpacklo_epi8(high, zero),
                _mm256_unpackhi_epi8(high, zero),
            ];
            for (sum, widened) in sums.iter_mut().zip(widened) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(widened, weights));
            }
        }
        for sum in &mut sums {
            *sum = _mm256_srav_epi32(*sum, shift);
        }
        let [a, b, c, d] = sums;
        _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d))
    };
    let (chunks, rest) = out.as_chunks_mut::<LANES>();
    for (number, to) in chunks.iter_mut().enumerate() {
        *to = bytemuck::cast(blend(number * LANES));
    }
    if !rest.is_empty() {
        // The last vector begins earlier instead, and writes some bytes again.
        out[len - LANES..].copy_from_slice(&bytemuck::cast::<_, [u8; LANES]>(blend(len - LANES)));
    }
}

impl Groups {
    /// Puts `columns` into order, from right to left if `mirrored`.
    fn arrange(&mut self, columns: &Weights, mirrored: bool) {
        let width = columns.starts.len();
        let groups = width.div_ceil(8);
        self.pairs = columns.taps / 2;
        self.starts.clear();
        self.weights.clear();
        self.starts.resize(groups, [0; 8]);
        self.weights.resize(groups * 4 * self.pairs, [0; 16]);
        for (x, (&start, values)) in columns.starts.iter().zip(columns.values.chunks_exact(columns.taps)).enumerate() {
            let x = if mirrored { width - 1 - x } else { x };
            let (group, k) = (x / 8, x % 8);
            self.starts[group][k] = start * 3;
            let weights = &mut self.weights[(group * 4 + k % 4) * self.pairs..][..self.pairs];
            for (weights, &pair) in weights.iter_mut().zip(values.as_chunks::<2>().0) {
                weights[k / 4 * 8..][..8].as_chunks_mut::<2>().0.fill(pair);
            }
        }
    }

    /// Adds up pixels of `row` by their weights, eight output pixels at a time, and writes them to `line`: by colour, where each colour has a third of the
    /// line, or as pixels.
    ///
    /// `PAIRS` is the number of pairs of taps, or 0 for any.
    #[target_feature(enable = "avx2,fma")]
    fn blend_columns<const PAIRS: usize>(&self, row: &[u8], precision: u32, layout: Layout, line: &mut [u8]) {
        let pairs = if PAIRS == 0 { self.pairs } else { PAIRS };
        let half = _mm256_set1_epi32(1 << precision >> 1);
        let shift = _mm256_set1_epi32(precision as i32);
        // From pixels of three bytes: the first two (or the second two), each colour of both side by side, widened to 16 bits.
        let pick = |p: i8| _mm_setr_epi8(p, -1, p + 3, -1, p + 1, -1, p + 4, -1, p + 2, -1, p + 5, -1, -1, -1, -1, -1);
        let picks = [_mm256_broadcastsi128_si256(pick(0)), _mm256_broadcastsi128_si256(pick(6))];
        let by_color = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        let by_pixel =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
        let join = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);

        let stride = line.len() / 3;
        let groups = self.starts.iter().zip(self.weights.chunks_exact(4 * pairs));
        for (group, (starts, weights)) in groups.enumerate() {
            let mut pixels = [half; 4];
            for (k, pixel) in pixels.iter_mut().enumerate() {
                let mut source = half;
                for pair in 0..pairs {
                    if pair % 2 == 0 {
                        let at = |k: usize| starts[k] as usize + pair * 6;
                        let low = _mm256_castsi128_si256(load_16(row, at(k)));
                        source = _mm256_inserti128_si256::<1>(low, load_16(row, at(k + 4)));
                    }
                    let weights = bytemuck::cast(weights[k * pairs + pair]);
                    let products = _mm256_madd_epi16(_mm256_shuffle_epi8(source, picks[pair % 2]), weights);
                    *pixel = _mm256_add_epi32(*pixel, products);
                }
                *pixel = _mm256_srav_epi32(*pixel, shift);
            }
            let [a, b, c, d] = pixels;
            // Four pixels of four bytes (the last one 0) in each half.
            let pixels = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            match layout {
                Layout::Nchw => {
                    let colors = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(pixels, by_color), join);
                    let colors: [[u8; 8]; 4] = bytemuck::cast(colors);
                    for (c, color) in colors[..3].iter().enumerate() {
                        line[c * stride + group * 8..][..8].copy_from_slice(color);
                    }
                }
                Layout::Nhwc => {
                    let halves: [[u8; 16]; 2] = bytemuck::cast(_mm256_shuffle_epi8(pixels, by_pixel));
                    let to = &mut line[group * 24..][..24];
                    to[..12].copy_from_slice(&halves[0][..12]);
                    to[12..].copy_from_slice(&halves[1][..12]);
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn load_16(bytes: &[u8], at: usize) -> __m128i {
    bytemuck::cast(*bytes[at..at + 16].as_array::<16>().expect("sixteen bytes"))
}

#[target_feature(enable = "avx2,fma")]
fn load_32(bytes: &[u8], at: usize) -> __m256i {
    bytemuck::cast(*bytes[at..at + LANES].as_array::<LANES>().expect("as many bytes as a vector"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;
    use crate::transform::image::exif::Turn;
    use crate::transform::image::normalize::{self, Source, Tables};
    use crate::transform::image::resize::{Method, Resampler, resize_into_slot, resize_portably};
    use crate::transform::image::window::Frame;
    use crate::transform::image::{IMAGENET_MEAN, IMAGENET_STD, Interpolation};
    use rand::Rng as _;

    /// Resizes a random window of a random picture to `size` on both paths and compares them. Returns whether both paths exist.
    fn compare(size: (u32, u32), turn: Turn, antialias: bool, tables: &Tables, key: Key) -> bool {
        let mut rng = key.rng();
        let (width, height) = (rng.random_range(1..400), rng.random_range(1..60));
        let held = Rect { x: rng.random_range(0..9), y: rng.random_range(0..9), width, height };
        let pixels: Vec<u8> = (0..width * height * 3).map(|_| [0, 255, rng.random()][rng.random_range(0..3)]).collect();
        let (x, y) = (rng.random_range(0..width.min(20)), rng.random_range(0..height.min(5)));
        let seen = Rect { x: held.x + x, y: held.y + y, width: width - x, height: height - y };
        let mut part = |start: u32, length: u32| {
            let margin = rng.random_range(0.0..0.3) * f64::from(length);
            (f64::from(start) + margin, f64::from(length) - margin - rng.random_range(0.0..0.6) * f64::from(length))
        };
        let ((x, width), (y, height)) = (part(seen.x, seen.width), part(seen.y, seen.height));
        let area = Area { x, y, width, height };

        let (mut resampler, method) =
            (Resampler::default(), Method { interpolation: Interpolation::Bilinear, antialias });
        // Every second one on a larger canvas.
        let mut margin = || if size.0.is_multiple_of(2) { rng.random_range(0..5) } else { 0 };
        let (left, top, right, bottom) = (margin(), margin(), margin(), margin());
        let frame = Frame {
            size: (left + size.0 + right, top + size.1 + bottom),
            picture: Rect { x: left, y: top, width: size.0, height: size.1 },
        };
        let placing = |layout| Placing { turn, layout, frame };
        let samples = 3 * placing(Layout::Nchw).pixels();
        let (mut bytes, mut floats, mut pixelwise) = (vec![1; samples], vec![-1.0; samples], vec![1; samples]);
        let slots = [
            (Layout::Nchw, Slot::U8(&mut bytes)),
            (Layout::Nchw, Slot::F32(&mut floats, tables)),
            (Layout::Nhwc, Slot::U8(&mut pixelwise)),
        ];
        for (layout, mut slot) in slots {
            let (placing, slot) = (placing(layout), &mut slot);
            if !resize_into_slot(&mut resampler, method, &pixels, held, seen, area, size, placing, slot) {
                return false;
            }
        }
        let mut resized = vec![0; 3 * size.0 as usize * size.1 as usize];
        resize_portably(&mut resampler, method, &pixels, held, seen, area, 3, &mut resized, size).unwrap();
        let source = Source { pixels: &resized, width: size.0 as usize, height: size.1 as usize, channels: 3 };
        let (mut expected_bytes, mut expected_floats) = (vec![1; samples], vec![-1.0; samples]);
        normalize::write(source, placing(Layout::Nchw), &mut Slot::U8(&mut expected_bytes));
        normalize::write(source, placing(Layout::Nchw), &mut Slot::F32(&mut expected_floats, tables));
        assert!(bytes == expected_bytes, "{size:?}, {turn:?}, {area:?} of {seen:?}");
        let mut expected_bytes = vec![1; samples];
        normalize::write(source, placing(Layout::Nhwc), &mut Slot::U8(&mut expected_bytes));
        assert!(pixelwise == expected_bytes, "{size:?}, {turn:?}, {area:?} of {seen:?}, pixel by pixel");
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(bits(&floats) == bits(&expected_floats), "{size:?}, {turn:?}, {area:?} of {seen:?}");
        true
    }

    #[test]
    fn pixels_are_those_of_the_portable_path() {
        let tables = [
            Tables::new(None),
            Tables::new(Some((&IMAGENET_MEAN, &IMAGENET_STD))),
            Tables::new(Some((&[0.5, 1e30, 0.1], &[0.25, 1e-40, 1e30]))),
        ];
        let mut compared = 0;
        for width in 1..=100 {
            for (number, tables) in (0..).zip(&tables) {
                for orientation in 1..=4 {
                    let key = Key::new(7).with_number(width.into()).with_number(number).with_number(orientation.into());
                    let (turn, antialias) = (Turn::from_exif(orientation), orientation % 2 == 1 || number > 0);
                    compared += u32::from(compare((width, 7), turn, antialias, tables, key));
                }
            }
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            assert!(compared > 1000, "{compared} of 1200");
        }
    }
}
