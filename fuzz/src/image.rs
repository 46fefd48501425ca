//! Encoded images of any kind through any pipeline.

use std::sync::LazyLock;

use forebay::random::Key;
use forebay::transform::image::{Image, ImageFormat, ImageLimits, Interpolation, Scratch, probe};
use forebay::{ErrorKind, Layout};

/// Bytes that choose a pipeline.
pub(crate) const SETTINGS: usize = 12;
/// The limits on decoders; small, so that an input of a few KiB can ask for more.
const LIMITS: ImageLimits = ImageLimits { max_pixels: 1 << 16, max_side: 4096, max_bytes: 4 << 20 };
/// The most memory that may be held in all: three buffers, the resizer's, and tables of the decoders that no limit counts.
const MOST_BYTES: usize = 32 << 20;

/// An image is refused, or every value of its slot is written, whatever slot and scratch held before; memory is bounded by the
/// limits; and the middle of a JPEG is the middle of the whole picture.
///
/// The first bytes choose the pipeline (see `pipeline`; a bit of the second one changes colours), the rest is the encoded image.
pub fn image(data: &[u8]) {
    let (settings, encoded) = crate::split::<SETTINGS>(data);
    let (image, key) = pipeline(settings, 64);
    let image =
        if settings[1] >> 6 & 1 == 1 { image.color_jitter(0.5, 1.5, 0.8, 0.3).random_grayscale(0.2) } else { image };
    let image = image.limits(LIMITS);

    let header = crate::memory::bounded(MOST_BYTES, || probe(encoded));
    if let Ok(info) = &header {
        assert!(info.width > 0 && info.height > 0 && (1..=8).contains(&info.orientation), "{info:?}");
    }
    let mut fresh = Scratch::default();
    let first = crate::memory::bounded(MOST_BYTES, || decode(&image, encoded, key, 0x00, &mut fresh));
    let mut used = Scratch::default();
    decode(&Image::rgb().resize(40, 60).limits(LIMITS), &STRIPES, key, 0, &mut used).expect("an image");
    let second = decode(&image, encoded, key, 0xff, &mut used);
    match (&first, &second) {
        (Ok(first), Ok(second)) => {
            assert!(first == second, "{image}: values depend on what slot or scratch held before");
            assert!(header.is_ok(), "an image whose header cannot be read was decoded: {header:?}");
        }
        (Err(first), Err(second)) => assert_eq!(first.to_string(), second.to_string()),
        _ => panic!("{image}: {:?}, then {:?}", first.as_ref().map(drop), second.as_ref().map(drop)),
    }
    if let Ok(info) = header
        && info.format == ImageFormat::Jpeg
        && settings[SETTINGS - 1] >= 0x80
    {
        the_middle_is_the_middle(encoded, (info.width, info.height), settings[0] & 1 == 0, &mut fresh);
    }
}

/// Returns a pipeline, and the key of its randomness. Sides are 1 to `most`.
///
/// Bytes: 0 colour, layout, dtype, orientation, antialiasing, scaled decoding, and whether a flip comes last; 1 the filter, and the number of steps,
/// each two bytes; the last one the key.
pub(crate) fn pipeline(settings: [u8; SETTINGS], most: u32) -> (Image, Key) {
    let [flags, filter, .., key] = settings;
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let mut image = if flag(0) { Image::gray() } else { Image::rgb() };
    let steps = settings[2..SETTINGS - 1].as_chunks::<2>().0;
    for (kind, size) in steps.iter().take(usize::from(filter >> 2 & 3)).map(|[kind, size]| (*kind, *size)) {
        image = step(image, if kind < 224 { kind % 7 } else { 7 + kind % 3 }, size, most, flag(0));
    }
    // The size has to be fixed by the last step that changes it.
    image = step(image, [0, 2, 3, 4][usize::from(filter >> 4 & 3)], settings[10], most, flag(0));
    if flag(7) {
        image = image.horizontal_flip(0.5);
    }
    image = match (flag(2), flag(3), flag(0)) {
        (true, _, true) => image.normalize([0.5], [0.25]),
        (true, _, false) => image.normalize([0.5, 0.25, 0.0], [0.25, -1.0, 3.0]),
        (false, true, _) => image.to_f32(),
        _ => image,
    };
    let filters = [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos3];
    let image = image
        .layout(if flag(1) { Layout::Nhwc } else { Layout::Nchw })
        .exif_orientation(flag(4))
        .antialias(!flag(5))
        .scaled_decoding(!flag(6))
        .interpolation(filters[usize::from(filter & 3)]);
    (image, Key::new(key.into()))
}

/// The colour with which pads are filled: that of the picture that `window` passes in.
pub(crate) const PADDING: u8 = 200;

fn step(image: Image, kind: u8, size: u8, most: u32, gray: bool) -> Image {
    let filled = |image: Image| if gray { image.fill([PADDING]) } else { image.fill([PADDING; 3]) };
    let side = |bits: u8| 1 + u32::from(bits) * (most - 1) / 255;
    let (h, w) = (side(size), side(size.rotate_left(4)));
    match kind {
        0 => image.resize(h, w),
        1 => image.resize_shorter(h),
        2 => image.center_crop(h, w),
        3 => image.random_crop(h, w),
        4 => image.random_resized_crop(h, w),
        5 => image.horizontal_flip(f64::from(size) / 255.0),
        7 => filled(image.pad(side(size) / 2)),
        8 => filled(image.pad_to(h, w)),
        9 => image.resize_longer(h),
        _ => {
            let (low, high) = (f64::from(1 + (size & 15)) / 16.0, f64::from(1 + (size >> 4)) / 16.0);
            image.random_resized_crop(h, w).scale(low.min(high)..=high).ratio(low.min(high) / 4.0..=high * 8.0)
        }
    }
}

/// Decodes into a slot that held `before` in every byte.
pub(crate) fn decode(
    image: &Image,
    encoded: &[u8],
    key: Key,
    before: u8,
    scratch: &mut Scratch,
) -> forebay::Result<Vec<u8>> {
    let (dtype, shape) = match image.output() {
        Ok(output) => output,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Config);
            return Err(error);
        }
    };
    let mut slot = vec![before; shape.iter().product::<usize>() * dtype.size().expect("pixels are numbers")];
    match image.decode_into(encoded, key, &mut slot, scratch) {
        Ok(()) => Ok(slot),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Schema), "{error}");
            Err(error)
        }
    }
}

/// A picture that leaves something in every buffer of a scratch.
static STRIPES: LazyLock<Vec<u8>> = LazyLock::new(|| bitmap(64, 48, |x, y| [x as u8 | 0x81, y as u8 | 0x42, 0xa5]));

/// Returns an uncompressed picture in the simplest of formats: a BMP of 24 bits, upside down.
pub(crate) fn bitmap(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let row_bytes = (width as usize * 3).next_multiple_of(4);
    let mut file = b"BM".to_vec();
    let size = 54 + row_bytes * height as usize;
    [size as u32, 0, 54, 40, width, height, 1 | 24 << 16, 0, 0, 0, 0, 0, 0]
        .iter()
        .for_each(|number| file.extend(number.to_le_bytes()));
    for y in (0..height).rev() {
        let start = file.len();
        for x in 0..width {
            let [r, g, b] = pixel(x, y);
            file.extend([b, g, r]);
        }
        file.resize(start + row_bytes, 0);
    }
    file
}

/// Checks that decoding a window of a JPEG gives the same pixels there as decoding the whole picture, if both succeed.
fn the_middle_is_the_middle(encoded: &[u8], (width, height): (u32, u32), rgb: bool, scratch: &mut Scratch) {
    let of = |height: u32, width: u32| {
        let image = if rgb { Image::rgb() } else { Image::gray() };
        image.center_crop(height, width).layout(Layout::Nhwc).limits(LIMITS)
    };
    let (w, h) = (width.div_ceil(3), height.div_ceil(3));
    let mut pixels = |height, width| decode(&of(height, width), encoded, Key::new(0), 0, scratch);
    let (Ok(whole), Ok(middle)) = (pixels(height, width), pixels(h, w)) else { return };
    let channels = if rgb { 3 } else { 1 };
    let start = |margin: u32| (f64::from(margin) / 2.0).round_ties_even() as usize;
    let (x, y) = (start(width - w), start(height - h));
    for (row, found) in middle.chunks_exact(w as usize * channels).enumerate() {
        let from = ((y + row) * width as usize + x) * channels;
        assert!(whole[from..from + found.len()] == *found, "row {row} of the middle differs");
    }
}
