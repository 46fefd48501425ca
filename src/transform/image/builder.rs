//! The declaration of what happens to images: the methods of [`Image`].

use std::ops::RangeInclusive;

use crate::schema::Dtype;

use super::color::Tint;
use super::{Image, ImageLimits, Interpolation, Layout};

/// A step of the geometry, as declared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    Resize { height: u32, width: u32 },
    ResizeShorter { side: u32 },
    ResizeLonger { side: u32 },
    Pad { margin: u32, fill: [u8; 3] },
    PadTo { height: u32, width: u32, fill: [u8; 3] },
    CenterCrop { height: u32, width: u32 },
    RandomCrop { height: u32, width: u32 },
    RandomResizedCrop { height: u32, width: u32, scale: (f64, f64), ratio: (f64, f64) },
    HorizontalFlip { probability: f64 },
}

impl Step {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Step::Resize { .. } => "resize",
            Step::ResizeShorter { .. } => "resize_shorter",
            Step::ResizeLonger { .. } => "resize_longer",
            Step::Pad { .. } => "pad",
            Step::PadTo { .. } => "pad_to",
            Step::CenterCrop { .. } => "center_crop",
            Step::RandomCrop { .. } => "random_crop",
            Step::RandomResizedCrop { .. } => "random_resized_crop",
            Step::HorizontalFlip { .. } => "horizontal_flip",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    Gray,
    Rgb,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Normalize {
    pub(super) mean: Vec<f32>,
    pub(super) std: Vec<f32>,
}

impl Image {
    /// Outputs three channels: red, green, blue.
    #[must_use]
    pub fn rgb() -> Self {
        Self::new(Color::Rgb)
    }

    /// Outputs one channel. For a colour JPEG, only the luma is decoded; other colours are weighted 0.299, 0.587, 0.114 (ITU-R BT.601).
    #[must_use]
    pub fn gray() -> Self {
        Self::new(Color::Gray)
    }

    fn new(color: Color) -> Self {
        Self {
            color,
            steps: Vec::new(),
            tints: Vec::new(),
            normalize: None,
            dtype: None,
            layout: Layout::default(),
            exif_orientation: false,
            interpolation: Interpolation::default(),
            antialias: true,
            scaled_decoding: true,
            limits: ImageLimits::default(),
            mistakes: Vec::new(),
        }
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Resizes to `height` x `width`, without keeping the aspect ratio.
    #[must_use]
    pub fn resize(self, height: u32, width: u32) -> Self {
        self.step(Step::Resize { height, width })
    }

    /// Resizes so that the shorter side has `side` pixels. The longer side follows from the aspect ratio, cut to whole pixels.
    #[must_use]
    pub fn resize_shorter(self, side: u32) -> Self {
        self.step(Step::ResizeShorter { side })
    }

    /// Resizes so that the longer side has `side` pixels. The shorter side follows from the aspect ratio, cut to whole pixels, and has at least one.
    ///
    /// Followed by [`pad_to`](Self::pad_to), this is what detectors call letterboxing: `.resize_longer(640).pad_to(640, 640).fill([114, 114, 114])`.
    #[must_use]
    pub fn resize_longer(self, side: u32) -> Self {
        self.step(Step::ResizeLonger { side })
    }

    /// Adds `margin` pixels on every side of the image: black ones, or of the colour set by [`fill`](Self::fill).
    ///
    /// Later steps work on the larger picture: a crop may lie partly or wholly in the padding, and a resize blends the padding with the image. For pictures of
    /// 32 x 32, `.pad(4).random_crop(32, 32)` moves them by up to four pixels.
    ///
    /// # Errors
    /// A result above the [limits](Self::limits) is an error ([`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt)).
    #[must_use]
    pub fn pad(self, margin: u32) -> Self {
        self.step(Step::Pad { margin, fill: [0; 3] })
    }

    /// Centres the image on `height` x `width` pixels, which are black, or of the colour set by [`fill`](Self::fill). If a margin is odd, the larger part is on
    /// the right and below.
    ///
    /// # Errors
    /// A larger image is an error ([`ErrorKind::Schema`](crate::ErrorKind::Schema)); it is not cut.
    #[must_use]
    pub fn pad_to(self, height: u32, width: u32) -> Self {
        self.step(Step::PadTo { height, width, fill: [0; 3] })
    }

    /// Sets the colour of the pad before this call: one byte per channel, 0 to 255, whatever the values become afterwards.
    #[must_use]
    pub fn fill<const N: usize>(mut self, color: [u8; N]) -> Self {
        let channels = self.channels();
        match self.steps.last_mut() {
            Some(Step::Pad { fill, .. } | Step::PadTo { fill, .. }) => {
                if N == channels {
                    fill[..N].copy_from_slice(&color);
                } else {
                    self.mistakes
                        .push(format!(".fill(..) has {N} channels, the image {channels}; give one value a channel"));
                }
            }
            _ => self.mistakes.push(".fill(..) belongs right after .pad(..) or .pad_to(..)".into()),
        }
        self
    }

    /// Keeps the `height` x `width` pixels in the middle.
    ///
    /// # Errors
    /// A smaller image is an error ([`ErrorKind::Schema`](crate::ErrorKind::Schema)); it is not padded, unless by an earlier [`pad`](Self::pad).
    #[must_use]
    pub fn center_crop(self, height: u32, width: u32) -> Self {
        self.step(Step::CenterCrop { height, width })
    }

    /// Keeps `height` x `width` pixels at a random place; every place is equally likely.
    ///
    /// # Errors
    /// A smaller image is an error ([`ErrorKind::Schema`](crate::ErrorKind::Schema)); it is not padded, unless by an earlier [`pad`](Self::pad).
    #[must_use]
    pub fn random_crop(self, height: u32, width: u32) -> Self {
        self.step(Step::RandomCrop { height, width })
    }

    /// Cuts a random window out of the image and resizes it to `height` x `width`.
    ///
    /// The window covers 8 % to 100 % of the area ([`scale`](Self::scale)), with an aspect ratio between 3:4 and 4:3 ([`ratio`](Self::ratio)), drawn uniformly
    /// in its logarithm. After ten draws that do not fit, the operation takes the centred window of the nearest ratio. Nothing outside the window affects the
    /// result.
    ///
    /// # Source
    /// Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6.
    #[must_use]
    pub fn random_resized_crop(self, height: u32, width: u32) -> Self {
        self.step(Step::RandomResizedCrop { height, width, scale: (0.08, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) })
    }

    /// Sets the share of the image's area that the random resized crop before this call covers.
    #[must_use]
    pub fn scale(mut self, range: RangeInclusive<f64>) -> Self {
        match self.steps.last_mut() {
            Some(Step::RandomResizedCrop { scale, .. }) => *scale = range.into_inner(),
            _ => self.mistakes.push(".scale(..) belongs right after .random_resized_crop(..)".into()),
        }
        self
    }

    /// Sets the range of width over height for the window of the random resized crop before this call.
    #[must_use]
    pub fn ratio(mut self, range: RangeInclusive<f64>) -> Self {
        match self.steps.last_mut() {
            Some(Step::RandomResizedCrop { ratio, .. }) => *ratio = range.into_inner(),
            _ => self.mistakes.push(".ratio(..) belongs right after .random_resized_crop(..)".into()),
        }
        self
    }

    /// Mirrors left to right, with this probability.
    #[must_use]
    pub fn horizontal_flip(self, probability: f64) -> Self {
        self.step(Step::HorizontalFlip { probability })
    }

    /// Changes brightness, contrast, saturation and hue by random factors, in an order that is drawn for each image.
    ///
    /// The first three factors are uniform from `1 - x`, or 0 if that is less, to `1 + x`. At factor 0 an image is black (brightness), its mean grey
    /// (contrast), or grey (saturation); at 1 it is unchanged. Hues turn by a share of the circle, uniform from `-hue` to `hue`, which is at most 0.5. A
    /// property given as 0 is left alone. The values are those of torchvision's `ColorJitter` on Pillow images, byte for byte.
    ///
    /// Wherever this call stands, colours are changed after the geometry, on the whole output with its padding, and before normalisation. Two colour steps run
    /// in the order of their calls. Grey images get brightness and contrast; they have no saturation and no hue, so these leave them unchanged, as in
    /// torchvision.
    #[must_use]
    pub fn color_jitter(mut self, brightness: f64, contrast: f64, saturation: f64, hue: f64) -> Self {
        self.tints.push(Tint::ColorJitter { brightness, contrast, saturation, hue, probability: 1.0 });
        self
    }

    /// Sets the share of images that the colour jitter before this call changes. The default is all of them.
    ///
    /// This is torchvision's `RandomApply` around a `ColorJitter`: SimCLR has `.color_jitter(0.8, 0.8, 0.8, 0.2).jitter_probability(0.8)`.
    #[must_use]
    pub fn jitter_probability(mut self, share: f64) -> Self {
        match self.tints.last_mut() {
            Some(Tint::ColorJitter { probability, .. }) => *probability = share,
            _ => self.mistakes.push(".jitter_probability(..) belongs behind .color_jitter(..)".into()),
        }
        self
    }

    /// Makes an image grey with this probability: every channel becomes the luma, 0.299, 0.587 and 0.114 of red, green and blue.
    ///
    /// It runs at the same point and in the same way as [`color_jitter`](Self::color_jitter). Images of one channel stay unchanged.
    #[must_use]
    pub fn random_grayscale(mut self, probability: f64) -> Self {
        self.tints.push(Tint::RandomGrayscale { probability });
        self
    }

    /// Scales to 0..1, subtracts `mean` and divides by `std`, each per channel. The result is `f32`.
    ///
    /// Normalisation is the last step, wherever it is declared: geometry and scaling do not depend on each other, and colours are changed before.
    #[must_use]
    pub fn normalize<const N: usize>(mut self, mean: [f32; N], std: [f32; N]) -> Self {
        if self.normalize.is_some() {
            self.mistakes.push(".normalize(..) is called twice; leave one out".into());
        }
        self.normalize = Some(Normalize { mean: mean.into(), std: std.into() });
        self
    }

    /// Outputs values of 0 to 255. The default, unless [`normalize`](Self::normalize) is called.
    #[must_use]
    pub fn to_u8(mut self) -> Self {
        self.dtype = Some(Dtype::U8);
        self
    }

    /// Outputs values of 0 to 1.
    #[must_use]
    pub fn to_f32(mut self) -> Self {
        self.dtype = Some(Dtype::F32);
        self
    }

    /// Sets the order of the channels in memory. [`Layout::Nchw`] by default.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Sets whether images are turned according to their Exif orientation. Off by default, as in TensorFlow and torchvision: data sets such as ImageNet have
    /// bounding boxes that refer to the pixels as stored.
    #[must_use]
    pub fn exif_orientation(mut self, apply: bool) -> Self {
        self.exif_orientation = apply;
        self
    }

    /// Sets the filter of every resize. [`Interpolation::Bilinear`] by default.
    #[must_use]
    pub fn interpolation(mut self, interpolation: Interpolation) -> Self {
        self.interpolation = interpolation;
        self
    }

    /// Sets whether the filter widens when an image is made smaller, so that every pixel counts. On by default. Without it, fine patterns alias, as they do in
    /// OpenCV and in TensorFlow's `resize`.
    #[must_use]
    pub fn antialias(mut self, antialias: bool) -> Self {
        self.antialias = antialias;
        self
    }

    /// Sets whether a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if the window is that much larger than the output. On by default.
    ///
    /// The inverse transform then does part of the antialiasing. This was measured with random resized crops. Photographs of 12 megapixels to 224 x 224 decode
    /// 1.9 times as fast, and differ from a full decode by 0.8 of 255 on average and by 21 at most. Photographs of ImageNet to 112 x 112 decode 1.1 times as
    /// fast, and differ by 0.7 on average, by 4.2 in the worst image, and by up to 50 at single pixels.
    #[must_use]
    pub fn scaled_decoding(mut self, allow: bool) -> Self {
        self.scaled_decoding = allow;
        self
    }

    /// Sets how large an image may be; see [`ImageLimits`].
    #[must_use]
    pub fn limits(mut self, limits: ImageLimits) -> Self {
        self.limits = limits;
        self
    }
}
