//! One image in its stored form: copied byte for byte, or decoded, resized and encoded again.

use std::borrow::Cow;

use crate::engine::pool::no_panic;
use crate::error::{Error, Result};
use crate::random::Key;
use crate::transform::image::encode::{JpegEncoder, Pixels, is_cut_off, png};
use crate::transform::image::{Image, ImageFormat, ImageInfo, Layout, Scratch, probe};

/// Formats to which images can be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    Jpeg,
    Png,
}

/// How images are stored.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Storing {
    /// The shorter side to which larger images are shrunk.
    pub(super) resize: Option<u32>,
    pub(super) encode: Option<Encoding>,
    /// The quality of JPEG; if it is set, every image is encoded again.
    pub(super) quality: Option<u8>,
    /// Whether copied images are decoded too, to check that they can be.
    pub(super) verify: bool,
}

/// The default quality of JPEG: artefacts are hard to see, at about half the bytes of 95.
const QUALITY: u8 = 90;

/// Buffers larger than this are not kept for the next image.
const KEEP_BYTES: usize = 64 << 20;

/// Buffers and codecs of one thread.
#[derive(Default)]
pub(super) struct Pen {
    scratch: Scratch,
    pixels: Vec<u8>,
    jpeg: JpegEncoder,
}

/// An image ready to be stored.
#[derive(Debug)]
pub(super) struct Picture<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) format: &'static str,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Storing {
    /// Turns an image into what is stored.
    ///
    /// An image is copied if no change is requested; then only its header is examined and, for a JPEG, its end (unless `verify`). An image that is
    /// encoded again is grey if it was grey and otherwise RGB, with 8 bits, without alpha, and upright: its Exif orientation is applied. If any image
    /// may be encoded again, images that are not upright always are, so that the shards do not mix images that still have to be turned with images
    /// that have been.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if it is not an image, damaged, cut off, or above the limits of decoding;
    /// [`ErrorKind::Panicked`](crate::ErrorKind::Panicked) if a decoder panicked on it.
    pub(super) fn store<'a>(&self, image: &'a [u8], pen: &mut Pen) -> Result<Picture<'a>> {
        let stored = no_panic(|| self.try_store(image, pen));
        if stored.is_err() || pen.pixels.capacity() > KEEP_BYTES {
            *pen = Pen::default();
        }
        stored.map_err(|e| e.stage("image"))
    }

    fn try_store<'a>(&self, image: &'a [u8], pen: &mut Pen) -> Result<Picture<'a>> {
        let info = probe(image)?;
        if is_cut_off(image)? {
            return Err(Error::corrupt("the JPEG image is cut off: it has no end-of-image marker"));
        }
        let upright = if info.orientation >= 5 { (info.height, info.width) } else { (info.width, info.height) };
        let (width, height) = self.resize.map_or(upright, |side| shorter(upright, side));
        let encoding = match (self.encode, info.format) {
            (Some(encoding), _) => encoding,
            (None, ImageFormat::Jpeg) => Encoding::Jpeg,
            (None, _) => Encoding::Png,
        };
        let same_format = self.encode.is_none()
            || matches!(
                (encoding, info.format),
                (Encoding::Jpeg, ImageFormat::Jpeg) | (Encoding::Png, ImageFormat::Png)
            );
        let changes = self.resize.is_some() || self.encode.is_some();
        let restated = self.quality.is_some() && encoding == Encoding::Jpeg && self.encode.is_some();
        let as_it_is = same_format && (width, height) == upright && !(changes && info.orientation != 1) && !restated;
        if as_it_is {
            if self.verify {
                decode(image, &info, upright, pen)?;
            }
            let (width, height) = (info.width, info.height);
            return Ok(Picture { bytes: Cow::Borrowed(image), format: format_name(info.format), width, height });
        }
        let is_gray = decode(image, &info, (width, height), pen)?;
        let pixels = Pixels { bytes: &pen.pixels, width, height, is_gray };
        let (bytes, format) = match encoding {
            Encoding::Jpeg => (pen.jpeg.encode(pixels, self.quality.unwrap_or(QUALITY))?.to_vec(), ImageFormat::Jpeg),
            Encoding::Png => (png(pixels)?, ImageFormat::Png),
        };
        Ok(Picture { bytes: Cow::Owned(bytes), format: format_name(format), width, height })
    }
}

/// Decodes to `size` (width, height), upright, into `pen.pixels`; returns whether the pixels are grey.
fn decode(image: &[u8], info: &ImageInfo, (width, height): (u32, u32), pen: &mut Pen) -> Result<bool> {
    let is_gray = info.channels <= 2;
    let decoding = if is_gray { Image::gray() } else { Image::rgb() };
    // Decoding at a reduced size is faster by up to half and differs by a few grey values; what is kept deserves the exact one.
    let decoding = decoding.resize(height, width).layout(Layout::Nhwc).exif_orientation(true).scaled_decoding(false);
    pen.pixels.resize(width as usize * height as usize * if is_gray { 1 } else { 3 }, 0);
    decoding.decode_into(image, Key::new(0), &mut pen.pixels, &mut pen.scratch)?;
    Ok(is_gray)
}

/// Returns the size (width, height) with the shorter side at most `side`. The longer side keeps the aspect ratio, cut to whole pixels, as in
/// [`Image::resize_shorter`].
fn shorter((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let short = width.min(height);
    if short <= side {
        return (width, height);
    }
    let scale = |long: u32| (u64::from(long) * u64::from(side) / u64::from(short)) as u32;
    if width <= height { (side, scale(height)) } else { (scale(width), side) }
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "jpeg",
        ImageFormat::Png => "png",
        ImageFormat::WebP => "webp",
        ImageFormat::Gif => "gif",
        ImageFormat::Bmp => "bmp",
        ImageFormat::Tiff => "tiff",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/data/images/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn store(name: &str, storing: Storing) -> (bool, &'static str, u32, u32) {
        let image = golden(name);
        let picture = storing.store(&image, &mut Pen::default()).unwrap();
        let info = probe(&picture.bytes).unwrap();
        assert_eq!((info.width, info.height), (picture.width, picture.height));
        (matches!(picture.bytes, Cow::Borrowed(_)), picture.format, picture.width, picture.height)
    }

    #[test]
    fn sides_keep_their_shape_and_never_grow() {
        for (size, side, expected) in [
            ((500, 375), 256, (341, 256)),
            ((375, 500), 256, (256, 341)),
            ((200, 100), 256, (200, 100)),
            ((256, 300), 256, (256, 300)),
            ((100_000, 3), 2, (66_666, 2)),
        ] {
            assert_eq!(shorter(size, side), expected);
        }
    }

    #[test]
    fn nothing_asked_for_is_nothing_changed() {
        for verify in [false, true] {
            let storing = Storing { verify, ..Storing::default() };
            for (name, format) in
                [("rgb8.png", "png"), ("gray.tiff", "tiff"), ("lossy.webp", "webp"), ("animated.gif", "gif")]
            {
                let stored = store(name, storing);
                assert_eq!((stored.0, stored.1), (true, format), "{name}");
            }
        }
    }

    #[test]
    #[cfg(feature = "jpeg")]
    fn what_has_the_size_and_format_is_copied_and_the_rest_made_anew() {
        let large = probe(&golden("large.jpg")).unwrap();
        let side = large.width.min(large.height);
        let resize = |side| Storing { resize: Some(side), ..Storing::default() };
        let encode = |encoding| Storing { encode: Some(encoding), ..Storing::default() };
        assert!(store("large.jpg", resize(side)).0);
        let half = store("large.jpg", resize(side / 2));
        assert_eq!((half.0, half.1, half.2.min(half.3)), (false, "jpeg", side / 2));
        assert_eq!(store("large.jpg", encode(Encoding::Png)).1, "png");
        assert!(store("large.jpg", encode(Encoding::Jpeg)).0);
        assert!(!store("large.jpg", Storing { quality: Some(50), ..encode(Encoding::Jpeg) }).0);
        // Another format that is resized becomes PNG, which loses nothing more.
        assert_eq!(store("lossless.webp", resize(8)).1, "png");
        assert_eq!(store("gray8.png", resize(8)).1, "png");
    }

    #[test]
    #[cfg(feature = "jpeg")]
    fn images_are_upright_once_any_is_encoded_anew() {
        let stored = probe(&golden("exif-6.jpg")).unwrap();
        assert_eq!(store("exif-6.jpg", Storing::default()), (true, "jpeg", stored.width, stored.height));
        for storing in [
            Storing { encode: Some(Encoding::Jpeg), ..Storing::default() },
            Storing { resize: Some(10_000), ..Storing::default() },
        ] {
            assert_eq!(store("exif-6.jpg", storing), (false, "jpeg", stored.height, stored.width));
        }
    }

    #[test]
    fn resized_pixels_are_those_of_the_loader_and_grey_stays_grey() {
        for (name, channels) in [("gray8.png", 1), ("rgb8.png", 3), ("rgba16.png", 3)] {
            let image = golden(name);
            let info = probe(&image).unwrap();
            let side = info.width.min(info.height) / 2;
            let storing = Storing { resize: Some(side), ..Storing::default() };
            let picture = storing.store(&image, &mut Pen::default()).unwrap();
            assert_eq!(probe(&picture.bytes).unwrap().channels, channels, "{name}");
            let decode = |image: &Image, encoded: &[u8]| {
                let mut pixels = vec![0; (picture.width * picture.height * 3) as usize];
                image.decode_into(encoded, Key::new(0), &mut pixels, &mut Scratch::default()).unwrap();
                pixels
            };
            let image_of = Image::rgb().resize(picture.height, picture.width).layout(Layout::Nhwc);
            assert_eq!(decode(&image_of, &picture.bytes), decode(&image_of, &image), "{name}");
        }
    }

    #[test]
    fn damaged_images_are_found_out() {
        let mut pen = Pen::default();
        let jpeg = golden("rgb-420.jpg");
        for bad in [&b""[..], b"no image", &jpeg[..200], &jpeg[..jpeg.len() - 100]] {
            let error = Storing::default().store(bad, &mut pen).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
        let png = golden("rgb8.png");
        let cut = &png[..png.len() / 2];
        assert!(Storing::default().store(cut, &mut pen).is_ok());
        assert!(Storing { verify: true, ..Storing::default() }.store(cut, &mut pen).is_err());
        assert!(Storing { resize: Some(4), ..Storing::default() }.store(cut, &mut pen).is_err());
    }
}
