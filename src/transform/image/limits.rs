//! How large an image may be: checked against its header, before anything is allocated.

use crate::error::{Error, Result};

/// Limits on what one encoded image may ask for.
///
/// A few hundred bytes can declare a picture of 65,535 x 65,535 pixels. Therefore sizes are compared with these limits as soon as the header has been read.
///
/// # Example
/// ```
/// use forebay::transform::image::{Image, ImageLimits};
///
/// let limits = ImageLimits { max_pixels: 50_000_000, ..ImageLimits::default() };
/// let image = Image::rgb().resize(224, 224).limits(limits);
/// # assert!(image.validate().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Most pixels, width times height, of the stored image, and of a padded one. 134,217,728 (2^27) by default: eleven times a 12-megapixel photograph.
    pub max_pixels: u64,
    /// Most pixels along the longer side of either. 65,535 by default.
    pub max_side: u32,
    /// Most bytes that decoding may hold at a time: decoded pixels, and what the decoder itself needs in addition. 1 GiB by default. A JPEG holds only its crop
    /// window (and all its coefficients if it is progressive).
    pub max_bytes: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { max_pixels: 1 << 27, max_side: 65_535, max_bytes: 1 << 30 }
    }
}

impl ImageLimits {
    /// Refuses sizes of zero and sizes above the limits.
    pub(super) fn check_size(&self, width: u32, height: u32) -> Result<()> {
        if width == 0 || height == 0 {
            return Err(Error::corrupt(format!("the image is empty: {width} x {height} pixels")));
        }
        let pixels = u64::from(width) * u64::from(height);
        if pixels > self.max_pixels || width.max(height) > self.max_side {
            return Err(Error::corrupt(format!(
                "the image declares {width} x {height} pixels; the limit is {} pixels and {} along a side",
                self.max_pixels, self.max_side
            ))
            .advice("raise it with .limits(..) if such images are expected"));
        }
        Ok(())
    }

    /// Refuses padded pictures above the limits.
    pub(super) fn check_canvas(&self, width: u64, height: u64) -> Result<()> {
        if width.saturating_mul(height) > self.max_pixels || width.max(height) > self.max_side.into() {
            return Err(Error::corrupt(format!(
                "the padded image would have {width} x {height} pixels; the limit is {} pixels and {} along a side",
                self.max_pixels, self.max_side
            ))
            .advice("pad less, or raise it with .limits(..) if such images are expected"));
        }
        Ok(())
    }

    /// Refuses buffers above the limit.
    pub(super) fn check_bytes(&self, bytes: u64) -> Result<()> {
        if bytes > self.max_bytes {
            return Err(Error::corrupt(format!(
                "decoding the image would hold {bytes} bytes; the limit is {}",
                self.max_bytes
            ))
            .advice("raise ImageLimits::max_bytes with .limits(..) if such images are expected"));
        }
        Ok(())
    }
}

/// Sets the length of a reused buffer without clearing its content; the caller overwrites it.
pub(super) fn resize_buffer<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn bombs_and_empty_images_are_refused_by_their_declared_size() {
        let limits = ImageLimits::default();
        assert!(limits.check_size(8192, 16384).is_ok());
        for (width, height) in [(30_000, 30_000), (0, 1), (1, 0), (65_536, 1), (u32::MAX, u32::MAX)] {
            let error = limits.check_size(width, height).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{width} x {height}");
        }
        assert!(limits.check_bytes(1 << 30).is_ok());
        assert!(limits.check_bytes((1 << 30) + 1).is_err());
    }
}
