//! Images: from encoded bytes to a slot of a batch.
//!
//! [`Image`] describes what happens to each picture; [`Image::decode_into`] carries it out, on the calling thread, without input or output. The steps are:
//!
//! 1. the header: format, size, orientation (`markers`, `decode`), checked against the limits;
//! 2. the geometry: which window of the stored picture becomes how many pixels, and how much padding surrounds it (`window`), numbers only;
//! 3. decoding that window (`jpeg`; other formats decode the whole picture);
//! 4. resampling it (`resize`);
//! 5. turning it, scaling its values and laying it out in the sample's slot, with the padding, in one pass (`normalize`);
//! 6. if colours change (`color`, `hue`), step 5 makes planes of bytes, and a last pass lays them out.
//!
//! `builder` has the methods that declare these steps; `checks` rejects invalid declarations.
//!
//! On processors with AVX2, steps 4 and 5 are one step for colour pictures and the bilinear filter, a row at a time (`bilinear`).

#[cfg(target_arch = "x86_64")]
mod bilinear;
mod builder;
mod checks;
mod color;
mod decode;
#[cfg(feature = "cli")]
pub(crate) mod encode;
mod exif;
mod hue;
#[cfg(feature = "jpeg")]
mod jpeg;
mod limits;
#[cfg_attr(not(feature = "jpeg"), allow(dead_code, reason = "parts of it serve the JPEG decoder alone"))]
mod markers;
mod normalize;
mod resize;
mod webp;
#[cfg(target_arch = "x86_64")]
mod weights;
#[cfg_attr(not(feature = "jpeg"), allow(dead_code, reason = "parts of it serve the JPEG decoder alone"))]
mod window;

use std::fmt;

use crate::error::{Error, Result};
use crate::random::Key;
use crate::schema::Dtype;

use builder::{Color, Normalize, Step};
use color::{Change, Tint};
use exif::Turn;
use normalize::{Placing, Slot, Source, Tables};
use resize::Resampler;
use window::{Frame, Rect, Stage};

pub use decode::{ImageFormat, ImageInfo, probe};
pub use limits::ImageLimits;

/// Channel means of ImageNet's training images, on values from 0 to 1: red, green, blue.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// Channel standard deviations of ImageNet's training images, on values from 0 to 1: red, green, blue.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// The order of an image's channels in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// One plane after another: `[channels, height, width]`. Convolutions in libtorch take this layout.
    #[default]
    Nchw,
    /// Pixel after pixel: `[height, width, channels]`.
    Nhwc,
}

/// The filter of a resize.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Interpolation {
    /// The nearest pixel.
    Nearest,
    /// A triangle, one pixel wide to either side.
    #[default]
    Bilinear,
    /// A cubic (Catmull-Rom, a = -0.5), two pixels wide.
    Bicubic,
    /// A windowed sinc, three pixels wide.
    Lanczos3,
}

/// The operations on an encoded image. It is a value, cheap to clone; [`decode_into`](Self::decode_into) carries it out.
///
/// Geometry happens first, in the order of the calls. Then colours are changed, in the order of their calls; then values are normalised. Grey, CMYK, 16-bit and
/// palette images become what [`rgb`](Self::rgb) or [`gray`](Self::gray) asks for. Alpha is dropped, not blended, as in Pillow's `convert("RGB")`. Resizing is
/// antialiased and bilinear, as in torchvision with Pillow images; the names and the defaults of the random operations are also torchvision's.
///
/// # Shape
/// Encoded bytes -> `u8` or `f32`, `[channels, height, width]` (or `[height, width, channels]` with [`Layout::Nhwc`]). `u8` holds 0 to 255; `f32` holds 0 to 1,
/// or the result of [`normalize`](Self::normalize). The size must be the same for every image, so the last step that changes it must be one of
/// [`resize`](Self::resize), [`center_crop`](Self::center_crop), [`random_crop`](Self::random_crop), [`random_resized_crop`](Self::random_resized_crop) and
/// [`pad_to`](Self::pad_to); only [`pad`](Self::pad) may follow.
///
/// # Randomness
/// The draws depend on the key passed to `decode_into`, and on each operation's name and place in its list. The geometry is one list, and the colour changes
/// are another: neither affects the draws of the other.
///
/// # Example
/// ```
/// use forebay::Dtype;
/// use forebay::transform::image::{IMAGENET_MEAN, IMAGENET_STD, Image};
///
/// let train = Image::rgb().random_resized_crop(224, 224).horizontal_flip(0.5).normalize(IMAGENET_MEAN, IMAGENET_STD);
/// let eval = Image::rgb().resize_shorter(256).center_crop(224, 224).normalize(IMAGENET_MEAN, IMAGENET_STD);
/// let cifar = Image::rgb().pad(4).random_crop(32, 32).horizontal_flip(0.5);
/// let letterbox = Image::rgb().resize_longer(640).pad_to(640, 640).fill([114, 114, 114]);
/// let contrastive = train.clone().color_jitter(0.8, 0.8, 0.8, 0.2).jitter_probability(0.8).random_grayscale(0.2);
/// assert_eq!(train.output()?, (Dtype::F32, vec![3, 224, 224]));
/// assert_eq!(letterbox.output()?, (Dtype::U8, vec![3, 640, 640]));
/// # assert!(cifar.validate().is_ok() && contrastive.validate().is_ok());
/// assert!(eval.to_string().starts_with("rgb, resize_shorter 256, center_crop 224x224, normalize [0.485, 0.456, 0.406] ["));
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    color: Color,
    steps: Vec<Step>,
    tints: Vec<Tint>,
    normalize: Option<Normalize>,
    dtype: Option<Dtype>,
    layout: Layout,
    exif_orientation: bool,
    interpolation: Interpolation,
    antialias: bool,
    scaled_decoding: bool,
    limits: ImageLimits,
    mistakes: Vec<String>,
}

impl Image {
    /// Decodes one image into its slot.
    ///
    /// `out` has exactly the bytes of [`output`](Self::output), aligned to its dtype; `f32` is written in the machine's byte order. Its previous content does
    /// not matter, and after an error its content is unspecified. `scratch` carries buffers from call to call.
    ///
    /// # Memory
    /// `scratch` holds the decoded window and the intermediate sizes: for a JPEG the window, for other formats the whole image. If colours change and the slot
    /// does not hold planes of `u8`, it also holds one byte for each value of the output.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the bytes are not an image, or are damaged, cut off, or above the limits (damage to a JPEG below
    /// its crop window is not detected, but a missing end is); [`ErrorKind::Schema`](crate::ErrorKind::Schema) if the image is smaller than a crop or larger
    /// than a canvas; [`ErrorKind::Config`](crate::ErrorKind::Config) if the configuration or the slot does not fit, or for a JPEG without feature `jpeg`.
    ///
    /// # Example
    /// ```
    /// use forebay::random::Key;
    /// use forebay::transform::image::{Image, Scratch};
    ///
    /// let gif = b"GIF89a\x03\0\x02\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x03\0\x02\0\0\x02\x03\x84\x8f\x05\0;";
    /// let image = Image::gray().resize(2, 3);
    /// let mut slot = [9; 6];
    /// image.decode_into(gif, Key::new(42), &mut slot, &mut Scratch::default())?;
    /// assert!(slot.iter().all(|&v| v == 0 || v == 255));
    /// # Ok::<(), forebay::Error>(())
    /// ```
    pub fn decode_into(&self, encoded: &[u8], key: Key, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        // What it refuses would read or write elsewhere, or never end. It costs far less than the smallest image.
        self.validate()?;
        let (height, width) = self.fixed_size().expect("validated: the size is fixed");
        let samples = height as usize * width as usize * self.channels();
        if Some(out.len()) != self.dtype().size().map(|size| size * samples) {
            return Err(Error::config(format!(
                "the slot has {} bytes, the image {samples} values of {}",
                out.len(),
                self.dtype()
            )));
        }
        let result = self.run(encoded, key, out, scratch);
        scratch.trim();
        result
    }

    /// Decodes the same window as [`decode_into`](Self::decode_into), and does nothing with it: the minimum of its work.
    #[cfg(feature = "cli")]
    pub(crate) fn decode_window(&self, encoded: &[u8], key: Key, scratch: &mut Scratch) -> Result<()> {
        self.decode(encoded, key, scratch).map(|_| ())
    }

    fn run(&self, encoded: &[u8], key: Key, out: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        let (turn, held) = self.decode(encoded, key, scratch)?;
        let Scratch { work, changes, planes, tables, .. } = scratch;
        color::draw(&self.tints, key, changes);
        let channels = self.channels();
        let samples = out.len() / self.dtype().size().expect("pixels are numbers");
        let mut slot = match self.dtype() {
            Dtype::U8 => Slot::U8(out),
            _ => Slot::F32(floats(out)?, self.tables(tables)),
        };
        if changes.is_empty() {
            return self.draw(turn, held, work, self.layout, &mut slot);
        }
        if let Slot::U8(out) = &mut slot
            && (self.layout == Layout::Nchw || channels == 1)
        {
            self.draw(turn, held, work, Layout::Nchw, &mut Slot::U8(out))?;
            color::apply(changes, out, channels);
            return Ok(());
        }
        let planes = limits::resize_buffer(planes, samples);
        self.draw(turn, held, work, Layout::Nchw, &mut Slot::U8(planes))?;
        color::apply(changes, planes, channels);
        normalize::write_planes(planes, channels, self.layout, &mut slot);
        Ok(())
    }

    /// Takes the decoded pixels through the stages, and writes the result to `slot`.
    fn draw(&self, turn: Turn, held: Rect, work: &mut Work, layout: Layout, slot: &mut Slot<'_>) -> Result<()> {
        let direct = layout == Layout::Nhwc || self.color == Color::Gray;
        let channels = self.channels();
        let method = resize::Method { interpolation: self.interpolation, antialias: self.antialias };
        let Work { stages, decoded, resized, resampler } = work;
        let (last, before) = stages.split_last().expect("a plan has at least one stage");
        let mut held = held;
        for (number, stage) in before.iter().enumerate() {
            let seen = self.seen(number, stage)?;
            let from = &decoded[..bytes(held, channels)];
            let to = limits::resize_buffer(resized, bytes(Rect::whole(stage.size), channels));
            if stage.is_seen() {
                resize::resize(resampler, method, from, held, seen, stage.area, channels, to, stage.size)?;
            }
            std::mem::swap(decoded, resized);
            if let Some(canvas) = stage.canvas {
                // The next stage looks at the padding too.
                let placing = Placing { turn: Turn::default(), layout: Layout::Nhwc, frame: stage.frame() };
                let padded = limits::resize_buffer(resized, placing.pixels() * channels);
                let slot = &mut Slot::U8(padded);
                normalize::write_around(placing, channels, canvas.fill, slot);
                normalize::write(Source::of(decoded, stage.size, channels), placing, slot);
                std::mem::swap(decoded, resized);
            }
            held = Rect::whole(stage.frame().size);
        }

        let seen = self.seen(before.len(), last)?;
        let placing = Placing { turn, layout, frame: last.frame().turned(turn) };
        if let Some(canvas) = last.canvas {
            normalize::write_around(placing, channels, canvas.fill, slot);
        }
        if !last.is_seen() {
            return Ok(());
        }
        let (area, size) = (last.area, last.size);
        let from = &decoded[..bytes(held, channels)];
        if channels == 3 && resize::resize_into_slot(resampler, method, from, held, seen, area, size, placing, slot) {
            return Ok(());
        }
        if let Slot::U8(out) = slot
            && direct
            && turn == Turn::default()
            && last.canvas.is_none()
        {
            return resize::resize(resampler, method, from, held, seen, area, channels, out, size);
        }
        let to = limits::resize_buffer(resized, bytes(Rect::whole(size), channels));
        resize::resize(resampler, method, from, held, seen, area, channels, to, size)?;
        normalize::write(Source::of(to, size, channels), placing, slot);
        Ok(())
    }

    /// Returns the window that stage `number` reads, after checking the stage's output against the limits.
    fn seen(&self, number: usize, stage: &Stage) -> Result<Rect> {
        let seen = if number == 0 { stage.needed(self.interpolation.support(), self.antialias) } else { stage.bounds };
        let Frame { size, .. } = stage.frame();
        let between = Rect { height: stage.size.1, ..seen };
        let bytes = |rect| bytes(rect, self.channels()) as u64;
        self.limits.check_bytes(bytes(Rect::whole(size)).max(bytes(between)))?;
        Ok(seen)
    }

    /// Returns the tables for this normalisation; makes them if those in `kept` are for another.
    fn tables<'a>(&self, kept: &'a mut Option<(Option<Normalize>, Box<Tables>)>) -> &'a Tables {
        if kept.as_ref().is_none_or(|(of, _)| *of != self.normalize) {
            let made = Tables::new(self.normalize.as_ref().map(|n| (&n.mean[..], &n.std[..])));
            *kept = Some((self.normalize.clone(), made));
        }
        &kept.as_ref().expect("they were made above").1
    }

    /// Plans the geometry and decodes what the first stage needs into `scratch.work`; returns the window that lies there.
    fn decode(&self, encoded: &[u8], key: Key, scratch: &mut Scratch) -> Result<(Turn, Rect)> {
        let Scratch { work: Work { stages, decoded, .. }, raw, .. } = scratch;
        let support = self.interpolation.support();
        let format = ImageFormat::of(encoded)?;
        if format != ImageFormat::Jpeg {
            let opened = decode::open_image(encoded, format, self.exif_orientation, &self.limits)?;
            let turn = window::plan(&self.steps, opened.size, opened.orientation, key, &self.limits, stages)?;
            let window = first(stages).needed(support, self.antialias);
            opened.decode(window, self.channels(), &self.limits, raw, decoded)?;
            return Ok((turn, window));
        }
        #[cfg(not(feature = "jpeg"))]
        return Err(Error::config("the image is a JPEG, and forebay was built without the feature `jpeg`")
            .advice("build with `--features jpeg`"));
        #[cfg(feature = "jpeg")]
        {
            let markers = markers::read(encoded)?;
            let size = (markers.width, markers.height);
            self.limits.check_size(size.0, size.1)?;
            let orientation = if self.exif_orientation { markers.orientation } else { 1 };
            let turn = window::plan(&self.steps, size, orientation, key, &self.limits, stages)?;
            let may_reduce = self.scaled_decoding
                && self.antialias
                && self.interpolation != Interpolation::Nearest
                && !markers.lossless;
            let n = if may_reduce { first(stages).reduction() } else { 1 };
            if n > 1 {
                stages[0] = stages[0].reduced(n, jpeg::reduced_size(size, n));
            }
            let window = first(stages).needed(support, self.antialias);
            let pixels = match self.color {
                Color::Gray => jpeg::Pixels::Gray,
                Color::Rgb => jpeg::Pixels::Rgb,
            };
            let request = jpeg::Request { encoded, markers: &markers, n, window, pixels, limits: &self.limits };
            let held = scratch.jpeg.decode(&request, decoded)?;
            Ok((turn, held))
        }
    }
}

fn floats(out: &mut [u8]) -> Result<&mut [f32]> {
    bytemuck::try_cast_slice_mut(out)
        .map_err(|e| Error::config(format!("the slot cannot hold f32: {e}")).advice("align it to four bytes"))
}

fn bytes(rect: Rect, channels: usize) -> usize {
    rect.width as usize * rect.height as usize * channels
}

fn first(stages: &[Stage]) -> &Stage {
    stages.first().expect("a plan has at least one stage")
}

/// Buffers that decoding reuses from image to image, and the JPEG decompressor. One per thread.
///
/// # Memory
/// The buffers grow to the needs of the largest image so far. Buffers above 64 MiB are released after each image.
///
/// # Example
/// ```
/// let scratch = forebay::transform::image::Scratch::default();
/// assert_eq!(scratch.bytes(), 0);
/// ```
#[derive(Default)]
pub struct Scratch {
    raw: Vec<u8>,
    work: Work,
    changes: Vec<Change>,
    planes: Vec<u8>,
    tables: Option<(Option<Normalize>, Box<Tables>)>,
    #[cfg(feature = "jpeg")]
    jpeg: jpeg::JpegDecoder,
}

/// The geometry of one image, and the pixels on their way through it.
#[derive(Default)]
struct Work {
    stages: Vec<Stage>,
    decoded: Vec<u8>,
    resized: Vec<u8>,
    resampler: Resampler,
}

impl Scratch {
    /// Buffers above this are not kept: one huge image should not hold its memory for the rest of an epoch.
    const KEEP_BYTES: usize = 64 << 20;

    /// Returns the bytes held at present.
    pub fn bytes(&self) -> usize {
        let Work { decoded, resized, resampler, .. } = &self.work;
        let buffers = [&self.raw, &self.planes, decoded, resized].map(|buffer| buffer.capacity()).iter().sum::<usize>();
        #[cfg(feature = "jpeg")]
        let buffers = buffers + self.jpeg.bytes();
        buffers + resampler.bytes()
    }

    fn trim(&mut self) {
        let Work { decoded, resized, resampler, .. } = &mut self.work;
        for buffer in [&mut self.raw, &mut self.planes, decoded, resized] {
            if buffer.capacity() > Self::KEEP_BYTES {
                *buffer = Vec::new();
            }
        }
        resampler.trim(Self::KEEP_BYTES);
        #[cfg(feature = "jpeg")]
        self.jpeg.trim(Self::KEEP_BYTES);
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
