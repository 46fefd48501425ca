//! Resampling: turns an area of one pixel buffer into a smaller or larger one.

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use crate::error::{Error, Result};

#[cfg(target_arch = "x86_64")]
use super::bilinear::{Bilinear, Part};
use super::exif::Turn;
use super::limits::resize_buffer;
use super::normalize::{Placing, Slot};
use super::window::{Area, Rect};
use super::{Interpolation, Layout};

impl Interpolation {
    fn filter(self) -> Option<FilterType> {
        match self {
            Interpolation::Nearest => None,
            Interpolation::Bilinear => Some(FilterType::Bilinear),
            Interpolation::Bicubic => Some(FilterType::CatmullRom),
            Interpolation::Lanczos3 => Some(FilterType::Lanczos3),
        }
    }

    /// How far the filter reaches, in pixels of the source at scale 1.
    pub(super) fn support(self) -> f64 {
        match self {
            Interpolation::Nearest => 0.5,
            Interpolation::Bilinear => 1.0,
            Interpolation::Bicubic => 2.0,
            Interpolation::Lanczos3 => 3.0,
        }
    }
}

/// How to resample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    pub(super) interpolation: Interpolation,
    pub(super) antialias: bool,
}

/// A resizer and the picture between its two passes, reused from image to image. One per thread.
#[derive(Default)]
pub(super) struct Resampler {
    resizer: Resizer,
    between: Vec<u8>,
    #[cfg(target_arch = "x86_64")]
    bilinear: Bilinear,
}

impl Resampler {
    /// Bytes of the buffers held.
    pub(super) fn bytes(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        let weights = self.bilinear.bytes();
        #[cfg(not(target_arch = "x86_64"))]
        let weights = 0;
        self.resizer.size_of_internal_buffers() + self.between.capacity() + weights
    }

    /// Releases buffers above `keep` bytes.
    pub(super) fn trim(&mut self, keep: usize) {
        if self.bytes() > keep {
            self.resizer.reset_internal_buffers();
            self.between = Vec::new();
            #[cfg(target_arch = "x86_64")]
            {
                self.bilinear = Bilinear::default();
            }
        }
    }
}

/// Resamples `area` of the picture in `source` to `size` pixels in `out`.
///
/// `source` holds the pixels of the window `held`, with 1 or 3 `channels`; only those inside `seen` count. All three windows are in the picture's coordinates,
/// and `held` contains `seen`.
///
/// # Memory
/// Between its passes, `seen.width` x `size.1` pixels. If a picture becomes more than [`MOST_SCALE`] times smaller, also a picture no larger than `seen`.
#[expect(clippy::too_many_arguments, reason = "three windows, two buffers and how to get from one to the other")]
pub(super) fn resize(
    resampler: &mut Resampler,
    method: Method,
    source: &[u8],
    held: Rect,
    seen: Rect,
    area: Area,
    channels: usize,
    out: &mut [u8],
    size: (u32, u32),
) -> Result<()> {
    let (placing, slot) = (Placing::filled(Turn::default(), Layout::Nhwc, size), &mut Slot::U8(out));
    if channels == 3 && resize_into_slot(resampler, method, source, held, seen, area, size, placing, slot) {
        return Ok(());
    }
    resize_portably(resampler, method, source, held, seen, area, channels, out, size)
}

/// As [`resize`], with `fast_image_resize`.
#[expect(clippy::too_many_arguments, reason = "as `resize`")]
pub(super) fn resize_portably(
    resampler: &mut Resampler,
    method: Method,
    source: &[u8],
    held: Rect,
    seen: Rect,
    area: Area,
    channels: usize,
    out: &mut [u8],
    size: (u32, u32),
) -> Result<()> {
    let algorithm = match (method.interpolation.filter(), method.antialias) {
        (None, _) => ResizeAlg::Nearest,
        (Some(filter), true) => ResizeAlg::Convolution(filter),
        (Some(filter), false) => ResizeAlg::Interpolation(filter),
    };
    if let Some((width, height)) = halfway(method, area, size) {
        let between = (share(seen.width, width), share(seen.height, height));
        let mut pixels = vec![0; between.0 as usize * between.1 as usize * channels];
        let all = Area { x: seen.x.into(), y: seen.y.into(), width: seen.width.into(), height: seen.height.into() };
        resize_portably(resampler, method, source, held, seen, all, channels, &mut pixels, between)?;
        let (x, y) = (f64::from(between.0) / all.width, f64::from(between.1) / all.height);
        let Area { x: left, y: top, .. } = inside(area, seen);
        let area = Area { x: left * x, y: top * y, width: area.width * x, height: area.height * y };
        let whole = Rect::whole(between);
        return resize_portably(resampler, method, &pixels, whole, whole, area, channels, out, size);
    }
    let area = inside(area, seen);
    match channels {
        1 => resize_pixels::<U8>(resampler, algorithm, source, held, seen, area, out, size),
        3 => resize_pixels::<U8x3>(resampler, algorithm, source, held, seen, area, out, size),
        other => unreachable!("no pixels of {other} channels"),
    }
}

/// As [`resize`] for three channels, then turns the picture and lays it out in its window of `slot`. Returns false, and writes nothing, if there is no such
/// path for the method, the turn or the processor.
#[expect(clippy::too_many_arguments, reason = "as `resize`")]
pub(super) fn resize_into_slot(
    resampler: &mut Resampler,
    method: Method,
    source: &[u8],
    held: Rect,
    seen: Rect,
    area: Area,
    size: (u32, u32),
    placing: Placing,
    slot: &mut Slot<'_>,
) -> bool {
    let area = inside(area, seen);
    if method.interpolation != Interpolation::Bilinear || one_way(area, size) || halfway(method, area, size).is_some() {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    {
        let from = Part { pixels: source, held, seen };
        resampler.bilinear.resize(from, area, method.antialias, size, placing, slot)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (resampler, source, held, placing, slot);
        false
    }
}

/// The most source pixels per output pixel for one step; beyond this, a picture is made smaller in two steps.
///
/// Weights are whole numbers, fractions of 2^21 at the finest. Each is off by half a unit at most. A filter that reaches `support` pixels has
/// `2 * support * MOST_SCALE` weights: with 3, the support of Lanczos, all together are off by 1 / 683, three eighths of a step of 255. Each weight is also
/// about 1 / `MOST_SCALE` and must not come near to nothing.
const MOST_SCALE: f64 = 1024.0;

/// If weights for `size` would be too coarse, returns the shares by which to reduce width and height first.
fn halfway(method: Method, area: Area, size: (u32, u32)) -> Option<(f64, f64)> {
    let is_filtered = method.antialias && method.interpolation != Interpolation::Nearest;
    let share = |length: f64, size: u32| (MOST_SCALE * f64::from(size) / length).min(1.0);
    let shares = (share(area.width, size.0), share(area.height, size.1));
    (is_filtered && shares != (1.0, 1.0)).then_some(shares)
}

/// This share of a length, in whole pixels.
fn share(length: u32, share: f64) -> u32 {
    ((f64::from(length) * share) as u32).max(1)
}

/// `area`, counted from the corner of `seen`, without the rounding error that could make it stick out.
fn inside(area: Area, seen: Rect) -> Area {
    let clamp = |start: f64, length: f64, extent: u32| {
        let extent = f64::from(extent);
        let start = start.clamp(0.0, extent);
        (start, length.min(extent - start))
    };
    let (x, width) = clamp(area.x - f64::from(seen.x), area.width, seen.width);
    let (y, height) = clamp(area.y - f64::from(seen.y), area.height, seen.height);
    Area { x, y, width, height }
}

/// Whether whole columns or whole rows are copied unchanged.
fn one_way(area: Area, size: (u32, u32)) -> bool {
    let whole_pixels = |start: f64, length: f64, size: u32| start == start.round() && length == f64::from(size);
    whole_pixels(area.x, area.width, size.0) || whole_pixels(area.y, area.height, size.1)
}

/// Resizes `area`, which is within `seen` and counted from its corner.
///
/// The two directions are two calls. In one call, `fast_image_resize` (6.1) keeps only the columns from the first one that the first output pixel needs to the
/// last one that the last output pixel needs. A cubic or Lanczos filter that falls onto whole pixels needs one column there, but its neighbours need more, so
/// they would read outside of these columns: other pixels, or memory that does not belong to the picture. Otherwise the pixels are the same.
#[expect(clippy::too_many_arguments, reason = "as `resize`")]
fn resize_pixels<P: PixelTrait>(
    resampler: &mut Resampler,
    algorithm: ResizeAlg,
    source: &[u8],
    held: Rect,
    seen: Rect,
    area: Area,
    out: &mut [u8],
    size: (u32, u32),
) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::corrupt(format!("the image cannot be resampled: {e}"));
    let whole = TypedImageRef::<P>::from_buffer(held.width, held.height, source).map_err(|e| failed(&e))?;
    let view = TypedCroppedImage::new(whole, seen.x - held.x, seen.y - held.y, seen.width, seen.height)
        .map_err(|e| failed(&e))?;
    let mut target = TypedImage::<P>::from_buffer(size.0, size.1, out).map_err(|e| failed(&e))?;
    let of =
        |x, y, width, height| ResizeOptions::new().resize_alg(algorithm).crop(x, y, width, height).use_alpha(false);
    let resizer = &mut resampler.resizer;
    if algorithm == ResizeAlg::Nearest || one_way(area, size) {
        let options = of(area.x, area.y, area.width, area.height);
        return resizer.resize_typed(&view, &mut target, &options).map_err(|e| failed(&e));
    }
    let bytes = seen.width as usize * size.1 as usize * size_of::<P>();
    let rows = resize_buffer(&mut resampler.between, bytes);
    let mut between = TypedImage::<P>::from_buffer(seen.width, size.1, rows).map_err(|e| failed(&e))?;
    let (columns, rows) = (f64::from(seen.width), f64::from(size.1));
    let vertically = of(0.0, area.y, columns, area.height);
    resizer.resize_typed(&view, &mut between, &vertically).map_err(|e| failed(&e))?;
    let horizontally = of(area.x, 0.0, area.width, rows);
    resizer.resize_typed(&between, &mut target, &horizontally).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps by a quarter of a pixel, so that about every second centre falls onto a pixel: `columns` x 5 pixels from `start`.
    fn columns(method: Method, start: f64, columns: u32) -> Vec<u8> {
        let held = Rect::whole((12, 6));
        let source: Vec<u8> = (0..72).map(|i| i % 12 * 20 + i / 12 * 3).collect();
        let area = Area { x: start, y: 0.3, width: f64::from(columns) / 4.0, height: 4.5 };
        let mut out = vec![0; columns as usize * 5];
        resize(&mut Resampler::default(), method, &source, held, held, area, 1, &mut out, (columns, 5)).unwrap();
        out
    }

    #[test]
    fn one_colour_stays_one_colour_however_much_smaller_it_becomes() {
        let mut resampler = Resampler::default();
        for (interpolation, channels, most) in [
            (Interpolation::Bilinear, 3, 20_000),
            // Above 2^22 columns each weight of a single pass would be nothing, and the picture black.
            (Interpolation::Bicubic, 1, 557_840),
            (Interpolation::Lanczos3, 1, 55_784),
        ] {
            for columns in [1_500, most] {
                for held in [(columns, 2), (2, columns)].map(Rect::whole) {
                    let source = vec![200; 2 * columns as usize * channels];
                    let area = Area { x: 0.0, y: 0.0, width: held.width.into(), height: held.height.into() };
                    let method = Method { interpolation, antialias: true };
                    let mut out = vec![0; channels];
                    resize(&mut resampler, method, &source, held, held, area, channels, &mut out, (1, 1)).unwrap();
                    assert_eq!(out, vec![200; channels], "{interpolation:?}, {held:?}");
                }
            }
        }
    }

    #[test]
    fn a_very_large_picture_keeps_what_stands_where() {
        // Bright on the right; the middle half is cut out and becomes two pixels of 2,048 each.
        let held = Rect::whole((8_192, 1));
        let source: Vec<u8> = (0..8_192).map(|x| if x < 4_096 { 20 } else { 220 }).collect();
        let area = Area { x: 2_048.0, y: 0.0, width: 4_096.0, height: 1.0 };
        for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
            let [few, many] = [2, 8].map(|size| {
                let method = Method { interpolation, antialias: true };
                let mut out = vec![0; size as usize];
                resize(&mut Resampler::default(), method, &source, held, held, area, 1, &mut out, (size, 1)).unwrap();
                out
            });
            assert!(few[0].abs_diff(20) < 30 && few[1].abs_diff(220) < 30, "{interpolation:?}: {few:?}");
            assert!(few[0].abs_diff(240 - few[1]) <= 1, "{interpolation:?}: {few:?} is not symmetric");
            // Without reduction beforehand: eight pixels of 512 each.
            assert!(many[0].abs_diff(20) < 5 && many[7].abs_diff(220) < 5, "{interpolation:?}: {many:?}");
        }
    }

    #[test]
    fn a_column_does_not_depend_on_where_the_picture_begins_and_ends() {
        for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos3] {
            for antialias in [true, false] {
                let method = Method { interpolation, antialias };
                let all = columns(method, 2.125, 24);
                for from in 0..12 {
                    for num in 1..12 {
                        let some = columns(method, 2.125 + f64::from(from) / 4.0, num);
                        for (row, found) in some.chunks_exact(num as usize).enumerate() {
                            let expected = &all[row * 24 + from as usize..][..num as usize];
                            // Weights are rounded to the precision that the largest of them allows.
                            let near = found.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 1);
                            assert!(near, "{interpolation:?}, {num} columns from {from}: {found:?}, not {expected:?}");
                        }
                    }
                }
            }
        }
    }
}
