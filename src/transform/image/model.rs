//! A slow model of the geometry, which makes one whole picture after another, compared with the implementation on random lists of steps.

use rand::Rng as _;

use super::builder::Step;
use super::exif::Turn;
use super::resize::{Method, Resampler, resize_portably};
use super::window::{Area, longer_side, random_position, random_window, shorter_side};
use super::*;
use crate::random::{Rng, uniform};

/// A decoded picture: pixel after pixel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Picture {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) channels: usize,
    pub(super) pixels: Vec<u8>,
}

impl Picture {
    /// `pixel(x, y)` says which pixel of this picture becomes pixel (x, y) of the new one, or gives its value.
    fn map(&self, width: u32, height: u32, pixel: impl Fn(u32, u32) -> Result<(u32, u32), [u8; 3]>) -> Self {
        let mut pixels = Vec::new();
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            match pixel(x, y) {
                Ok((x, y)) => {
                    let at = (y * self.width + x) as usize * self.channels;
                    pixels.extend(&self.pixels[at..][..self.channels]);
                }
                Err(fill) => pixels.extend(&fill[..self.channels]),
            }
        }
        Self { width, height, channels: self.channels, pixels }
    }

    pub(super) fn turned(&self, turn: Turn) -> Self {
        let (width, height) = turn.size((self.width, self.height));
        self.map(width, height, |x, y| {
            let x = if turn.flip_x { width - 1 - x } else { x };
            let y = if turn.flip_y { height - 1 - y } else { y };
            Ok(if turn.transpose { (y, x) } else { (x, y) })
        })
    }

    fn crop(&self, window: Rect) -> Self {
        self.map(window.width, window.height, |x, y| Ok((window.x + x, window.y + y)))
    }

    fn pad(&self, (left, top, right, bottom): (u32, u32, u32, u32), fill: [u8; 3]) -> Self {
        self.map(left + self.width + right, top + self.height + bottom, |x, y| {
            let inside = (left..left + self.width).contains(&x) && (top..top + self.height).contains(&y);
            if inside { Ok((x - left, y - top)) } else { Err(fill) }
        })
    }

    fn resize(&self, width: u32, height: u32) -> Self {
        let method = Method { interpolation: Interpolation::Bilinear, antialias: true };
        let whole = Rect::whole((self.width, self.height));
        let area = Area { x: 0.0, y: 0.0, width: self.width.into(), height: self.height.into() };
        let mut pixels = vec![0; (width * height) as usize * self.channels];
        let (from, channels, size) = (&self.pixels, self.channels, (width, height));
        let resampler = &mut Resampler::default();
        resize_portably(resampler, method, from, whole, whole, area, channels, &mut pixels, size).unwrap();
        Self { width, height, channels, pixels }
    }

    /// Returns the result of a step; `key` is that of the step.
    pub(super) fn step(&self, step: Step, key: Key) -> Self {
        let Self { width, height, .. } = *self;
        // Half of an odd number: torchvision's centre crop goes to the even one, its padding down.
        let even = |odd: u32| odd / 2 + u32::from(odd % 4 == 3);
        match step {
            Step::Resize { height, width } => self.resize(width, height),
            Step::ResizeShorter { side } => {
                let (width, height) = shorter_side(width, height, side);
                self.resize(width, height)
            }
            Step::ResizeLonger { side } => {
                let (width, height) = longer_side(width, height, side);
                self.resize(width, height)
            }
            Step::CenterCrop { height: h, width: w } => {
                self.crop(Rect { x: even(width - w), y: even(height - h), width: w, height: h })
            }
            Step::RandomCrop { height: h, width: w } => {
                self.crop(random_position(width, height, w, h, &mut key.rng()).unwrap())
            }
            Step::RandomResizedCrop { height: h, width: w, scale, ratio } => {
                self.crop(random_window(width, height, scale, ratio, &mut key.rng())).resize(w, h)
            }
            Step::HorizontalFlip { probability } => {
                let flip_x = uniform(&mut key.rng()) < probability;
                self.turned(Turn { flip_x, ..Turn::default() })
            }
            Step::Pad { margin, fill } => self.pad((margin, margin, margin, margin), fill),
            Step::PadTo { height: h, width: w, fill } => {
                let (x, y) = ((w - width) / 2, (h - height) / 2);
                self.pad((x, y, w - width - x, h - height - y), fill)
            }
        }
    }
}

/// Draws a step that can follow if the picture has this size.
fn any_step(rng: &mut Rng, (width, height): (u32, u32), channels: usize, resizes: bool) -> Step {
    let mut fill = [[0; 3], [9, 8, 7], [200, 100, 50]][rng.random_range(0..3)];
    fill[channels..].fill(0);
    let (h, w) = (rng.random_range(1..=height), rng.random_range(1..=width));
    match rng.random_range(0..if resizes { 10 } else { 6 }) {
        0 => Step::HorizontalFlip { probability: 0.5 },
        1 => Step::Pad { margin: rng.random_range(0..7), fill },
        2 => Step::PadTo { height: height + rng.random_range(0..6), width: width + rng.random_range(0..6), fill },
        3 => Step::CenterCrop { height: h, width: w },
        4 | 5 => Step::RandomCrop { height: h, width: w },
        6 => Step::Resize { height: rng.random_range(1..30), width: rng.random_range(1..30) },
        7 => Step::ResizeShorter { side: rng.random_range(1..12) },
        8 => Step::ResizeLonger { side: rng.random_range(1..30) },
        _ => {
            let (height, width) = (rng.random_range(1..20), rng.random_range(1..20));
            Step::RandomResizedCrop { height, width, scale: (0.08, 1.0), ratio: (0.75, 1.5) }
        }
    }
}

/// Adds the same step by its method.
fn declared(image: Image, step: Step) -> Image {
    let filled = |image: Image, fill: [u8; 3]| match image.channels() {
        _ if fill == [0; 3] => image,
        1 => image.fill([fill[0]]),
        _ => image.fill(fill),
    };
    match step {
        Step::Resize { height, width } => image.resize(height, width),
        Step::ResizeShorter { side } => image.resize_shorter(side),
        Step::ResizeLonger { side } => image.resize_longer(side),
        Step::CenterCrop { height, width } => image.center_crop(height, width),
        Step::RandomCrop { height, width } => image.random_crop(height, width),
        Step::RandomResizedCrop { height, width, scale, ratio } => {
            image.random_resized_crop(height, width).scale(scale.0..=scale.1).ratio(ratio.0..=ratio.1)
        }
        Step::HorizontalFlip { probability } => image.horizontal_flip(probability),
        Step::Pad { margin, fill } => filled(image.pad(margin), fill),
        Step::PadTo { height, width, fill } => filled(image.pad_to(height, width), fill),
    }
}

/// A picture of noise, encoded in the simplest lossless format that has an orientation.
fn noise(rng: &mut Rng, width: u32, height: u32, orientation: u8) -> (Picture, Vec<u8>) {
    let pixels: Vec<u8> = (0..3 * width * height).map(|_| rng.random()).collect();
    let picture = Picture { width, height, channels: 3, pixels };
    let stored = ::image::RgbImage::from_raw(width, height, picture.pixels.clone()).unwrap();
    let mut png = std::io::Cursor::new(Vec::new());
    stored.write_to(&mut png, ::image::ImageFormat::Png).unwrap();
    let mut png = png.into_inner();
    // Behind the header: a TIFF directory of one entry, tag 0x0112, a SHORT.
    let exif = [b"eXIfMM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[orientation], &[0; 6]].concat();
    let mut checksum = flate2::Crc::new();
    checksum.update(&exif);
    let chunk = [&(exif.len() as u32 - 4).to_be_bytes(), &exif[..], &checksum.sum().to_be_bytes()].concat();
    png.splice(33..33, chunk);
    (picture, png)
}

/// Compares a random list of steps on `start`, which is already turned, with the same list on `encoded`.
fn compare(rng: &mut Rng, start: &Picture, encoded: &[u8], resizes: bool, scratch: &mut Scratch) {
    let key = Key::new(rng.random());
    let mut image = if start.channels == 1 { Image::gray() } else { Image::rgb() }.exif_orientation(true);
    let (mut expected, mut resized) = (start.clone(), 0);
    for number in 0..rng.random_range(0..8) {
        let step = any_step(rng, (expected.width, expected.height), start.channels, resizes);
        let next = expected.step(step, key.with(step.name()).with_number(number));
        if matches!(step.name(), "resize" | "resize_shorter" | "resize_longer" | "random_resized_crop") {
            resized += 1;
        }
        (image, expected) = (declared(image, step), next);
    }
    // All that there is, so that the size is a fixed one.
    image = image.center_crop(expected.height, expected.width);
    let layout = if rng.random() { Layout::Nchw } else { Layout::Nhwc };
    let floats = rng.random();
    image = if floats { image.to_f32() } else { image }.layout(layout);
    let (dtype, shape) = image.output().unwrap();
    let values = shape.iter().product::<usize>();
    let mut slot = vec![f32::from_bits(0xa5a5_a5a5); values];
    let out = &mut bytemuck::cast_slice_mut(&mut slot)[..values * dtype.size().unwrap()];
    image.decode_into(encoded, key, out, scratch).unwrap_or_else(|error| panic!("{image}: {error}"));
    let got = |i: usize| if floats { slot[i] * 255.0 } else { f32::from(bytemuck::cast_slice::<_, u8>(&slot)[i]) };
    let pixels = (expected.width * expected.height) as usize;
    for (i, &want) in expected.pixels.iter().enumerate() {
        let (pixel, channel) = (i / start.channels, i % start.channels);
        let at = if layout == Layout::Nchw { channel * pixels + pixel } else { i };
        // Resizing rounds twice, in an order that depends on how the picture is stored.
        let difference = (got(at) - f32::from(want)).abs();
        assert!(
            difference <= 2.0 * resized as f32 + 0.01,
            "{image}: {} instead of {want} at {pixel}, channel {channel}, of {} x {}",
            got(at),
            start.height,
            start.width
        );
    }
}

#[test]
fn any_list_of_steps_does_what_one_step_after_the_other_does_to_whole_pictures() {
    let mut scratch = Scratch::default();
    for number in 0..3000 {
        let rng = &mut Key::new(11).with_number(number).rng();
        let mut side = || if rng.random_range(0..4) == 0 { 1 } else { rng.random_range(1..20) };
        let (width, height) = (side(), side());
        let orientation = rng.random_range(1..=8);
        let (stored, encoded) = noise(rng, width, height, orientation);
        let mut meant = stored.turned(Turn::from_exif(orientation));
        if number % 4 == 0 {
            let luma = |p: &[u8]| decode::luma(p[0], p[1], p[2]);
            meant = Picture { channels: 1, pixels: meant.pixels.chunks_exact(3).map(luma).collect(), ..meant };
        }
        compare(rng, &meant, &encoded, number % 2 == 0, &mut scratch);
    }
}

#[cfg(feature = "jpeg")]
#[test]
fn so_does_any_list_on_the_part_of_a_jpeg_that_is_decoded() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
    let mut scratch = Scratch::default();
    for name in (1..=8).map(|n| format!("exif-{n}.jpg")).chain(["large.jpg".into(), "rgb-420.jpg".into()]) {
        let encoded = std::fs::read(folder.join(&name)).unwrap();
        let info = probe(&encoded).unwrap();
        let turn = Turn::from_exif(info.orientation);
        let (width, height) = turn.size((info.width, info.height));
        let whole = Image::rgb().exif_orientation(true).center_crop(height, width).layout(Layout::Nhwc);
        let mut pixels = vec![0; 3 * (width * height) as usize];
        whole.decode_into(&encoded, Key::new(0), &mut pixels, &mut scratch).unwrap();
        let start = Picture { width, height, channels: 3, pixels };
        for number in 0..200 {
            compare(&mut Key::new(12).with(&name).with_number(number).rng(), &start, &encoded, false, &mut scratch);
        }
    }
}
