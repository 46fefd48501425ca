//! From encoded bytes to interleaved bytes in a buffer: detects the format and picks its decoder.

use std::fmt;
use std::io::Cursor;

use ::image::error::ImageError;
use ::image::{ColorType, ImageDecoder as _, ImageReader};

use crate::error::{Error, Result};

use super::exif;
use super::limits::{ImageLimits, resize_buffer};
use super::window::Rect;
use super::{markers, webp};

/// The image formats that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageFormat {
    /// JPEG (JFIF, Exif, Adobe): baseline, extended, progressive and lossless, Huffman or arithmetic coding. Feature `jpeg`.
    Jpeg,
    /// PNG.
    Png,
    /// WebP; the first frame of an animation.
    WebP,
    /// GIF; the first frame of an animation.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF; the first page.
    Tiff,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageFormat::Jpeg => "JPEG",
            ImageFormat::Png => "PNG",
            ImageFormat::WebP => "WebP",
            ImageFormat::Gif => "GIF",
            ImageFormat::Bmp => "BMP",
            ImageFormat::Tiff => "TIFF",
        })
    }
}

impl ImageFormat {
    /// Recognises the format by its first bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the bytes have none of the formats.
    pub(crate) fn of(encoded: &[u8]) -> Result<Self> {
        Ok(match encoded {
            [0xff, 0xd8, 0xff, ..] => Self::Jpeg,
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Self::Png,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Self::WebP,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Self::Gif,
            [b'B', b'M', ..] => Self::Bmp,
            [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => Self::Tiff,
            [] => return Err(Error::corrupt("there is no image: the value is empty")),
            _ => {
                let start: String = encoded.iter().take(8).map(|b| format!(" {b:02x}")).collect();
                return Err(Error::corrupt(format!(
                    "{} bytes that begin with{start} are no image of a known format",
                    encoded.len()
                ))
                .advice("known are JPEG, PNG, WebP, GIF, BMP and TIFF; does this column hold images?"));
            }
        })
    }

    fn in_image_crate(self) -> Option<::image::ImageFormat> {
        Some(match self {
            ImageFormat::Jpeg => return None,
            ImageFormat::Png => ::image::ImageFormat::Png,
            ImageFormat::WebP => ::image::ImageFormat::WebP,
            ImageFormat::Gif => ::image::ImageFormat::Gif,
            ImageFormat::Bmp => ::image::ImageFormat::Bmp,
            ImageFormat::Tiff => ::image::ImageFormat::Tiff,
        })
    }
}

/// What the header of an encoded image says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// The format.
    pub format: ImageFormat,
    /// Columns as stored, before any Exif orientation.
    pub width: u32,
    /// Rows as stored, before any Exif orientation.
    pub height: u32,
    /// Channels as decoded: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha (JPEG: CMYK). A palette counts as colour.
    pub channels: u8,
    /// Bits of a channel as stored; for a palette, those of its colours.
    pub bit_depth: u8,
    /// The Exif orientation, 1 to 8; 1 if there is none.
    pub orientation: u8,
}

/// Reads an image's header, without decoding any pixel.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the bytes are not an image, or the header is damaged or above the default [`ImageLimits`].
///
/// # Example
/// ```
/// use forebay::transform::image::{ImageFormat, probe};
///
/// let gif = b"GIF89a\x03\0\x02\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x03\0\x02\0\0\x02\x03\x84\x8f\x05\0;";
/// let info = probe(gif)?;
/// assert_eq!((info.format, info.width, info.height), (ImageFormat::Gif, 3, 2));
/// # Ok::<(), forebay::Error>(())
/// ```
pub fn probe(encoded: &[u8]) -> Result<ImageInfo> {
    let format = ImageFormat::of(encoded)?;
    let limits = ImageLimits::default();
    let Some(known) = format.in_image_crate() else {
        let m = markers::read(encoded)?;
        limits.check_size(m.width, m.height)?;
        let (channels, bit_depth) = (m.components, m.precision);
        return Ok(ImageInfo {
            format,
            width: m.width,
            height: m.height,
            channels,
            bit_depth,
            orientation: m.orientation,
        });
    };
    let mut decoder = open(encoded, known, format, &limits)?;
    let (width, height) = decoder.dimensions();
    limits.check_size(width, height)?;
    let (color, stored) = (decoder.color_type(), decoder.original_color_type());
    let mut bit_depth = (stored.bits_per_pixel() / u16::from(stored.channel_count()).max(1)).min(255) as u8;
    if let (ImageFormat::Png, Some(&[depth, kind])) = (format, encoded.get(24..26))
        && kind != 3
    {
        // The decoder speaks of grey as expanded to bytes; the file's own word is in IHDR. Kind 3 is a palette.
        bit_depth = depth;
    }
    let orientation = decoder.orientation().map_or(1, |o| o.to_exif());
    Ok(ImageInfo { format, width, height, channels: color.channel_count(), bit_depth, orientation })
}

fn open<'a>(
    encoded: &'a [u8],
    known: ::image::ImageFormat,
    format: ImageFormat,
    limits: &ImageLimits,
) -> Result<impl ::image::ImageDecoder + 'a> {
    if format == ImageFormat::Tiff {
        exif::check_directory(encoded)?;
    }
    let mut reader = ImageReader::with_format(Cursor::new(encoded), known);
    let mut bounds = ::image::Limits::default();
    bounds.max_image_width = Some(limits.max_side);
    bounds.max_image_height = Some(limits.max_side);
    bounds.max_alloc = Some(limits.max_bytes);
    reader.limits(bounds);
    let decoder = reader.into_decoder().map_err(|e| failed(format, e))?;
    if format == ImageFormat::WebP {
        webp::check_frames(encoded, decoder.dimensions())?;
    }
    Ok(decoder)
}

fn failed(format: ImageFormat, error: ImageError) -> Error {
    let advice = match &error {
        ImageError::Limits(_) => Some("raise it with .limits(..) if such images are expected"),
        ImageError::Unsupported(_) => Some("store the image in another variant of the format"),
        _ => None,
    };
    let failed = Error::corrupt(format!("the {format} image cannot be decoded")).because(error);
    match advice {
        Some(advice) => failed.advice(advice),
        None => failed,
    }
}

/// A decoder of a format other than JPEG, whose header has been read.
pub(super) struct Opened<D> {
    decoder: D,
    format: ImageFormat,
    pub(super) size: (u32, u32),
    pub(super) orientation: u8,
}

/// Reads the header.
pub(super) fn open_image(
    encoded: &[u8],
    format: ImageFormat,
    with_orientation: bool,
    limits: &ImageLimits,
) -> Result<Opened<impl ::image::ImageDecoder>> {
    let known = format.in_image_crate().expect("JPEG is dispatched before");
    let mut decoder = open(encoded, known, format, limits)?;
    let size = decoder.dimensions();
    limits.check_size(size.0, size.1)?;
    let orientation = if with_orientation { decoder.orientation().map_or(1, |o| o.to_exif()) } else { 1 };
    Ok(Opened { decoder, format, size, orientation })
}

impl<D: ::image::ImageDecoder> Opened<D> {
    /// Decodes the whole picture into `raw` and writes its part `window`, which may be empty, to `out` as pixels of 1 (grey) or 3 (RGB) channels.
    pub(super) fn decode(
        self,
        window: Rect,
        channels: usize,
        limits: &ImageLimits,
        raw: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let color = self.decoder.color_type();
        let bytes = self.decoder.total_bytes();
        let converted = u64::from(window.width) * u64::from(window.height) * channels as u64;
        limits.check_bytes(bytes.saturating_add(converted))?;
        let raw = resize_buffer(raw, bytes as usize);
        // Decoders leave pixels as they were: GIF's those whose colour is not in the palette. They would be another image's.
        raw.fill(0);
        self.decoder.read_image(raw).map_err(|e| failed(self.format, e))?;
        if window.is_empty() {
            return Ok(());
        }
        let out = resize_buffer(out, converted as usize);
        let row_bytes = self.size.0 as usize * usize::from(color.bytes_per_pixel());
        let columns = window.x as usize..window.right() as usize;
        for (y, to) in (window.y..).zip(out.chunks_exact_mut(window.width as usize * channels)) {
            convert_row(color, &raw[y as usize * row_bytes..][..row_bytes], columns.clone(), channels, to)?;
        }
        Ok(())
    }
}

/// Grey from colour, with Pillow's weights (ITU-R BT.601).
pub(super) fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 0x8000) >> 16) as u8
}

/// Converts one row of any colour type to grey or RGB bytes. Alpha is dropped; of 16 bits, the upper 8 are kept, as in Pillow.
fn convert_row(
    color: ColorType,
    row: &[u8],
    columns: std::ops::Range<usize>,
    channels: usize,
    out: &mut [u8],
) -> Result<()> {
    let byte = |sample: &[u8; 1]| sample[0];
    let high = |sample: &[u8; 2]| (u16::from_ne_bytes(*sample) >> 8) as u8;
    let float = |sample: &[u8; 4]| (f32::from_ne_bytes(*sample).clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
    match color {
        ColorType::L8 => convert::<1, 1>(row, columns, channels, out, byte),
        ColorType::La8 => convert::<1, 2>(row, columns, channels, out, byte),
        ColorType::Rgb8 => convert::<1, 3>(row, columns, channels, out, byte),
        ColorType::Rgba8 => convert::<1, 4>(row, columns, channels, out, byte),
        ColorType::L16 => convert::<2, 1>(row, columns, channels, out, high),
        ColorType::La16 => convert::<2, 2>(row, columns, channels, out, high),
        ColorType::Rgb16 => convert::<2, 3>(row, columns, channels, out, high),
        ColorType::Rgba16 => convert::<2, 4>(row, columns, channels, out, high),
        ColorType::Rgb32F => convert::<4, 3>(row, columns, channels, out, float),
        ColorType::Rgba32F => convert::<4, 4>(row, columns, channels, out, float),
        other => return Err(Error::corrupt(format!("pixels of type {other:?} are not supported"))),
    }
    Ok(())
}

fn convert<const BYTES: usize, const CHANNELS: usize>(
    row: &[u8],
    columns: std::ops::Range<usize>,
    channels: usize,
    out: &mut [u8],
    sample: impl Fn(&[u8; BYTES]) -> u8,
) {
    let (samples, _) = row.as_chunks::<BYTES>();
    let (pixels, _) = samples.as_chunks::<CHANNELS>();
    for (pixel, to) in pixels[columns].iter().zip(out.chunks_exact_mut(channels)) {
        let channel = |c: usize| sample(&pixel[if CHANNELS < 3 { 0 } else { c }]);
        let (r, g, b) = (channel(0), channel(1), channel(2));
        match to {
            [gray] if CHANNELS < 3 => *gray = r,
            [gray] => *gray = luma(r, g, b),
            [red, green, blue] => (*red, *green, *blue) = (r, g, b),
            _ => unreachable!("pixels have one or three bytes"),
        }
    }
}
