//! Resampling: an area of one pixel buffer to a smaller or larger one.

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use crate::error::{Error, Result};

use super::Interpolation;
use super::window::{Area, Rect};

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

/// Resamples `area` of the picture in `source` to `size` pixels in `out`.
///
/// `source` holds pixels of 1 or 3 `channels`, those of `held`; only those inside `seen` count. All three windows are in the
/// picture's coordinates, and `held` contains `seen`.
#[expect(clippy::too_many_arguments, reason = "three windows, two buffers and how to get from one to the other")]
pub(super) fn resize(
    resizer: &mut Resizer,
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
    // The area may stick out of what is seen by a rounding error, which the resizer would refuse.
    let (x, width) = inside(area.x - f64::from(seen.x), area.width, seen.width);
    let (y, height) = inside(area.y - f64::from(seen.y), area.height, seen.height);
    let options = ResizeOptions::new().resize_alg(algorithm).crop(x, y, width, height).use_alpha(false);
    match channels {
        1 => resize_pixels::<U8>(resizer, &options, source, held, seen, out, size),
        3 => resize_pixels::<U8x3>(resizer, &options, source, held, seen, out, size),
        other => unreachable!("no pixels of {other} channels"),
    }
}

fn inside(start: f64, length: f64, extent: u32) -> (f64, f64) {
    let extent = f64::from(extent);
    let start = start.clamp(0.0, extent);
    (start, length.min(extent - start))
}

fn resize_pixels<P: PixelTrait>(
    resizer: &mut Resizer,
    options: &ResizeOptions,
    source: &[u8],
    held: Rect,
    seen: Rect,
    out: &mut [u8],
    size: (u32, u32),
) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::corrupt(format!("the image cannot be resampled: {e}"));
    let whole = TypedImageRef::<P>::from_buffer(held.width, held.height, source).map_err(|e| failed(&e))?;
    let view = TypedCroppedImage::new(whole, seen.x - held.x, seen.y - held.y, seen.width, seen.height)
        .map_err(|e| failed(&e))?;
    let mut target = TypedImage::<P>::from_buffer(size.0, size.1, out).map_err(|e| failed(&e))?;
    resizer.resize_typed(&view, &mut target, options).map_err(|e| failed(&e))
}
