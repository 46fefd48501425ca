//! Encodes pixels as images, to store them again: JPEG through libjpeg-turbo, PNG.
#![cfg_attr(feature = "jpeg", expect(unsafe_code, reason = "libjpeg-turbo is a C library"))]

#[cfg(feature = "jpeg")]
use std::ffi::{CStr, c_int, c_void};
#[cfg(feature = "jpeg")]
use std::ptr::NonNull;

use ::image::codecs::png::{CompressionType, FilterType, PngEncoder};
use ::image::{ExtendedColorType, ImageEncoder as _};
#[cfg(feature = "jpeg")]
use turbojpeg_sys as tj;

#[cfg(feature = "jpeg")]
use crate::error::ErrorKind;
use crate::error::{Error, Result};

#[cfg(feature = "jpeg")]
use super::limits::resize_buffer;
use super::markers;

/// Whether the file is a JPEG without its end, as an interrupted upload or copy leaves it.
///
/// For other formats this returns `false`; there only decoding can find out.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) for a damaged JPEG header.
pub(crate) fn is_cut_off(encoded: &[u8]) -> Result<bool> {
    if !encoded.starts_with(&[0xff, 0xd8, 0xff]) {
        return Ok(false);
    }
    Ok(!markers::is_ended(encoded, &markers::read(encoded)?))
}

/// 8-bit pixels, row by row: grey (one byte each) or RGB (three).
#[derive(Clone, Copy)]
pub(crate) struct Pixels<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) is_gray: bool,
}

impl Pixels<'_> {
    fn channels(&self) -> usize {
        if self.is_gray { 1 } else { 3 }
    }

    /// Refuses buffers that do not match their description.
    fn check(&self) -> Result<()> {
        let bytes = (self.width as usize).saturating_mul(self.height as usize).saturating_mul(self.channels());
        if self.bytes.is_empty() || self.bytes.len() != bytes {
            return Err(Error::config(format!("{} bytes of pixels, where {bytes} are needed", self.bytes.len())));
        }
        Ok(())
    }
}

/// Encodes as PNG, at the compression level that most programs use. Equal pixels give equal bytes.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the encoder refuses the picture.
pub(crate) fn png(pixels: Pixels<'_>) -> Result<Vec<u8>> {
    pixels.check()?;
    let mut encoded = Vec::new();
    let color = if pixels.is_gray { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    PngEncoder::new_with_quality(&mut encoded, CompressionType::Default, FilterType::Adaptive)
        .write_image(pixels.bytes, pixels.width, pixels.height, color)
        .map_err(|e| Error::corrupt("the picture cannot be encoded as PNG").because(e))?;
    Ok(encoded)
}

/// A JPEG compressor and its buffer, reused from image to image. One per thread.
#[derive(Default)]
pub(crate) struct JpegEncoder {
    #[cfg(feature = "jpeg")]
    handle: Option<Handle>,
    #[cfg(feature = "jpeg")]
    buffer: Vec<u8>,
}

impl JpegEncoder {
    /// Encodes as a baseline JPEG with chroma at half the size in both directions, as most programs do by default. Equal pixels
    /// give equal bytes.
    ///
    /// # Memory
    /// A buffer for the largest file that the picture could become: about its pixels' bytes, kept for the next image.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) for pictures with more than 65,500 pixels along a side,
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) without the feature `jpeg`.
    pub(crate) fn encode(&mut self, pixels: Pixels<'_>, quality: u8) -> Result<&[u8]> {
        pixels.check()?;
        #[cfg(not(feature = "jpeg"))]
        return Err(Error::config(format!(
            "JPEG of quality {quality} is asked for, and forebay was built without `jpeg`"
        ))
        .advice("build with `--features jpeg`, or encode as PNG"));
        #[cfg(feature = "jpeg")]
        {
            let mut handle = match self.handle.take() {
                Some(handle) => handle,
                None => Handle::new()?,
            };
            // After an error the handle is not used again, as when decoding.
            let len = handle.compress(pixels, quality, &mut self.buffer)?;
            self.handle = Some(handle);
            Ok(&self.buffer[..len])
        }
    }
}

/// An owned TurboJPEG instance for compressing.
#[cfg(feature = "jpeg")]
struct Handle(NonNull<c_void>);

// SAFETY: an instance is plain memory with no tie to the thread that made it; only its error text may be thread-local, and
// that is read right after the call that set it, in the same `&mut self` method.
#[cfg(feature = "jpeg")]
unsafe impl Send for Handle {}

#[cfg(feature = "jpeg")]
impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from tj3Init and is destroyed once, here.
        unsafe { tj::tj3Destroy(self.0.as_ptr()) }
    }
}

#[cfg(feature = "jpeg")]
impl Handle {
    fn new() -> Result<Self> {
        // SAFETY: tj3Init takes any value and answers null when it fails.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as c_int) };
        let handle = NonNull::new(handle)
            .ok_or_else(|| Error::new(ErrorKind::Memory, "libjpeg-turbo could not allocate a compressor"))?;
        let mut handle = Self(handle);
        // The library writes into our buffer, which holds the largest file it could make, and never replaces it.
        handle.set(tj::TJPARAM_TJPARAM_NOREALLOC, 1)?;
        Ok(handle)
    }

    fn set(&mut self, param: tj::TJPARAM, value: c_int) -> Result<()> {
        // SAFETY: the handle is live; unknown parameters and values are answered with -1.
        match unsafe { tj::tj3Set(self.0.as_ptr(), param as c_int, value) } {
            0 => Ok(()),
            _ => Err(self.error()),
        }
    }

    /// Compresses into the front of `buffer` and returns how many bytes that took. `pixels` were checked.
    fn compress(&mut self, pixels: Pixels<'_>, quality: u8, buffer: &mut Vec<u8>) -> Result<usize> {
        let side = |side: u32| c_int::try_from(side).map_err(|_| Error::corrupt("the picture is too large for a JPEG"));
        let (width, height) = (side(pixels.width)?, side(pixels.height)?);
        let pitch = side(pixels.width.saturating_mul(pixels.channels() as u32))?;
        let (format, sampling) = match pixels.is_gray {
            true => (tj::TJPF_TJPF_GRAY, tj::TJSAMP_TJSAMP_GRAY),
            false => (tj::TJPF_TJPF_RGB, tj::TJSAMP_TJSAMP_420),
        };
        self.set(tj::TJPARAM_TJPARAM_QUALITY, quality.clamp(1, 100).into())?;
        self.set(tj::TJPARAM_TJPARAM_SUBSAMP, sampling as c_int)?;
        // SAFETY: a function of its three arguments, which answers 0 to those that are out of bounds.
        let most = unsafe { tj::tj3JPEGBufSize(width, height, sampling as c_int) };
        let most = usize::try_from(most).ok().filter(|&most| most > 0);
        let most = most.ok_or_else(|| Error::corrupt("the picture is too large for a JPEG"))?;
        let room = resize_buffer(buffer, most);
        let (mut start, mut len) = (room.as_mut_ptr(), most as tj::size_t);
        // SAFETY: the handle is live; the library reads `height` rows of `pitch` bytes, which `Pixels::check` has counted, and
        // writes at most `len` bytes to `start`, which `room` has: TJPARAM_NOREALLOC forbids it to take another buffer.
        let answer = unsafe {
            tj::tj3Compress8(
                self.0.as_ptr(),
                pixels.bytes.as_ptr(),
                width,
                pitch,
                height,
                format as c_int,
                &mut start,
                &mut len,
            )
        };
        if answer != 0 {
            return Err(self.error());
        }
        Ok((len as usize).min(most))
    }

    fn error(&self) -> Error {
        // SAFETY: the handle is live; the text is a C string that stays as it is until the next call, and is copied here.
        let text = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0.as_ptr())) };
        Error::corrupt(format!("the picture cannot be encoded as JPEG: {}", text.to_string_lossy()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Image, Layout, Scratch, probe};
    use super::*;
    use crate::random::Key;

    /// A soft gradient, which JPEG keeps to a few values.
    fn gradient(width: u32, height: u32, is_gray: bool) -> Vec<u8> {
        let channels = if is_gray { 1 } else { 3 };
        let value = |x: u32, y: u32, c: u32| (x * 100 / width + y * 100 / height + c * 20) as u8;
        let at = |i: u32| (i / channels % width, i / channels / width, i % channels);
        (0..width * height * channels).map(at).map(|(x, y, c)| value(x, y, c)).collect()
    }

    fn decode(encoded: &[u8], width: u32, height: u32, is_gray: bool) -> Vec<u8> {
        let image = if is_gray { Image::gray() } else { Image::rgb() };
        let image = image.resize(height, width).layout(Layout::Nhwc);
        let mut pixels = vec![0; (width * height) as usize * if is_gray { 1 } else { 3 }];
        image.decode_into(encoded, Key::new(0), &mut pixels, &mut Scratch::default()).unwrap();
        pixels
    }

    #[test]
    fn png_gives_the_pixels_back() {
        for is_gray in [false, true] {
            let bytes = gradient(37, 23, is_gray);
            let encoded = png(Pixels { bytes: &bytes, width: 37, height: 23, is_gray }).unwrap();
            assert_eq!(decode(&encoded, 37, 23, is_gray), bytes);
        }
    }

    #[test]
    #[cfg(feature = "jpeg")]
    fn jpeg_comes_near_the_pixels_and_nearer_with_quality() {
        let mut encoder = JpegEncoder::default();
        for is_gray in [false, true] {
            let bytes = gradient(77, 53, is_gray);
            let pixels = Pixels { bytes: &bytes, width: 77, height: 53, is_gray };
            let mut off = |quality| {
                let encoded = encoder.encode(pixels, quality).unwrap();
                assert!(!is_cut_off(encoded).unwrap() && is_cut_off(&encoded[..encoded.len() - 2]).unwrap());
                let info = probe(encoded).unwrap();
                assert_eq!((info.width, info.height, info.channels), (77, 53, if is_gray { 1 } else { 3 }));
                let decoded = decode(encoded, 77, 53, is_gray);
                let sum: u32 = decoded.iter().zip(&bytes).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
                (f64::from(sum) / bytes.len() as f64, encoded.len())
            };
            let (good, poor) = (off(95), off(10));
            assert!(good.0 < 1.5 && good.0 < poor.0 && good.1 > poor.1, "{good:?} {poor:?}");
        }
    }

    #[test]
    #[cfg(feature = "jpeg")]
    fn the_buffer_of_a_large_picture_serves_a_small_one() {
        let mut encoder = JpegEncoder::default();
        let (large, small) = (gradient(200, 200, false), gradient(9, 1, false));
        let pixels = |bytes, width, height| Pixels { bytes, width, height, is_gray: false };
        let fresh = encoder.encode(pixels(&small, 9, 1), 90).unwrap().to_vec();
        encoder.encode(pixels(&large, 200, 200), 90).unwrap();
        assert_eq!(encoder.encode(pixels(&small, 9, 1), 90).unwrap(), fresh);
    }

    #[test]
    fn buffers_of_another_size_are_refused() {
        for (width, height) in [(0, 0), (4, 4), (u32::MAX, u32::MAX)] {
            let pixels = Pixels { bytes: &[0; 47], width, height, is_gray: false };
            assert!(png(pixels).is_err());
            assert!(JpegEncoder::default().encode(pixels, 90).is_err());
        }
    }
}
