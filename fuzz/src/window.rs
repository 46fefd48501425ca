//! The geometry of pipelines, on pictures of any size whose pixels encode their position.

use forebay::transform::image::{Image, ImageLimits, Scratch};
use forebay::{ErrorKind, Layout};

use crate::image::{SETTINGS, bitmap, decode, pipeline};

/// Larger than any size below, so that the only limit reached is that on intermediate sizes.
const LIMITS: ImageLimits = ImageLimits { max_pixels: 1 << 20, max_side: 65_535, max_bytes: 8 << 20 };

/// Crops and flips give pixels that are neighbours in the picture. Resizing a picture of one colour gives the same colour, whether or not it is
/// padded with that colour.
///
/// The first bytes choose the pipeline; then come width and height of the picture, in two bytes each. Long pictures are cut on the other side, so
/// that they stay small.
pub fn window(data: &[u8]) {
    let (settings, rest) = crate::split::<SETTINGS>(data);
    let ([w0, w1, h0, h1], _) = crate::split::<4>(rest);
    let width = u32::from(u16::from_le_bytes([w0, w1])).max(1);
    let height = u32::from(u16::from_le_bytes([h0, h1])).clamp(1, (1 << 13) / width.min(1 << 13));
    let (image, key) = pipeline(settings, 120);
    let image = image.limits(LIMITS);
    let mut scratch = Scratch::default();

    // One colour in, one colour out: what lies outside of the picture or of the window would show.
    match decode(&image, &bitmap(width, height, |_, _| [GRAY; 3]), key, 0, &mut scratch) {
        Ok(slot) => one_colour(&image, &slot, settings[0]),
        // A crop larger than the picture, or an intermediate size above the limit.
        Err(error) => assert!(matches!(error.kind(), ErrorKind::Schema | ErrorKind::Corrupt | ErrorKind::Config)),
    }
    crops(settings, width, height, &mut scratch);
}

const GRAY: u8 = crate::image::PADDING;

/// Checks that all values are what the grey becomes, up to the rounding of the weights: one step at each of at most four resizes.
fn one_colour(image: &Image, slot: &[u8], flags: u8) {
    let (dtype, shape) = image.output().expect("it was decoded");
    let (planar, normalized) = (flags & 2 == 0, flags & 4 != 0);
    let (channels, pixels) = if planar { (shape[0], shape[1] * shape[2]) } else { (shape[2], shape[0] * shape[1]) };
    // As `pipeline` normalises.
    let [mean, std] = match (normalized, channels) {
        (false, _) => [[0.0; 3], [1.0; 3]],
        (true, 1) => [[0.5; 3], [0.25; 3]],
        (true, _) => [[0.5, 0.25, 0.0], [0.25, -1.0, 3.0]],
    };
    let size = dtype.size().expect("pixels are numbers");
    for (i, value) in slot.chunks_exact(size).enumerate() {
        let channel = if planar { i / pixels } else { i % channels };
        let value = match *value {
            [byte] => f32::from(byte) / 255.0,
            [a, b, c, d] => f32::from_ne_bytes([a, b, c, d]) * std[channel] + mean[channel],
            _ => panic!("pixels are bytes or floats"),
        };
        let difference = (value * 255.0 - f32::from(GRAY)).abs();
        assert!(difference < 4.01, "{image}: value {i} is off by {difference} steps");
    }
}

/// Checks the steps that move pixels without changing them, on a picture whose pixels encode their position.
fn crops(settings: [u8; SETTINGS], width: u32, height: u32, scratch: &mut Scratch) {
    let key = forebay::random::Key::new(settings[SETTINGS - 1].into());
    let mut image = Image::rgb().layout(Layout::Nhwc).limits(LIMITS);
    let (mut h, mut w) = (height, width);
    for [kind, size] in settings[2..SETTINGS - 1].as_chunks::<2>().0 {
        // Parts of what there is, so that they fit.
        let part = |side: u32, of: u8| (side * u32::from(of) / 16).max(1);
        match kind % 3 {
            0 => image = image.horizontal_flip(f64::from(size & 3) / 3.0),
            kind => {
                (h, w) = (part(h, 1 + (size & 15)), part(w, 1 + (size >> 4)));
                image = if kind == 1 { image.random_crop(h, w) } else { image.center_crop(h, w) };
            }
        }
    }
    if h > 16_384 || w > 16_384 || image.validate().is_err() {
        return;
    }
    let places = bitmap(width, height, |x, y| [x as u8, y as u8, (x >> 8 ^ y >> 8) as u8]);
    let found = decode(&image, &places, key, 0, scratch).expect("crops of what is there");
    let at = |x: u32, y: u32| <[u8; 3]>::try_from(&found[3 * (y * w + x) as usize..][..3]).expect("three bytes");
    // One of the sides is at most 256, and the third byte is the other one's.
    let place = |[x, y, high]: [u8; 3]| {
        let high = u32::from(high) << 8;
        if width > 256 { (u32::from(x) | high, u32::from(y)) } else { (u32::from(x), u32::from(y) | high) }
    };
    let (x0, y0) = place(at(0, 0));
    let flipped = w > 1 && place(at(1, 0)).0 < x0;
    for y in 0..h {
        for x in 0..w {
            let expected = if flipped { x0.checked_sub(x) } else { Some(x0 + x) };
            assert_eq!((Some(place(at(x, y)).0), place(at(x, y)).1), (expected, y0 + y), "{image} at {x}, {y}");
        }
    }
    assert!(y0 + h <= height && if flipped { x0 < width } else { x0 + w <= width }, "{image} of {width} x {height}");
}
