//! What an [`Image`] outputs, whether its steps are valid, and how it is printed.

use std::fmt;

use crate::error::{Error, Result};
use crate::schema::Dtype;

use super::builder::{Color, Normalize, Step};
use super::color::Tint;
use super::{Image, Interpolation, Layout};

/// The largest side of an output that is accepted; a larger one would be a typing mistake.
const MAX_OUTPUT_SIDE: u32 = 16_384;

impl Image {
    /// The order of the channels in memory.
    #[cfg(feature = "tch")]
    pub(crate) fn placed(&self) -> Layout {
        self.layout
    }

    /// Whether values are normalised.
    #[cfg(feature = "tch")]
    pub(crate) fn is_normalized(&self) -> bool {
        self.normalize.is_some()
    }

    pub(super) fn channels(&self) -> usize {
        match self.color {
            Color::Gray => 1,
            Color::Rgb => 3,
        }
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype.unwrap_or(if self.normalize.is_some() { Dtype::F32 } else { Dtype::U8 })
    }

    /// Height and width after all steps, if they are the same for every image.
    pub(super) fn fixed_size(&self) -> Option<(u32, u32)> {
        self.steps.iter().fold(None, |size, step| match *step {
            Step::Resize { height, width }
            | Step::CenterCrop { height, width }
            | Step::RandomCrop { height, width }
            | Step::RandomResizedCrop { height, width, .. }
            | Step::PadTo { height, width, .. } => Some((height, width)),
            Step::ResizeShorter { .. } | Step::ResizeLonger { .. } => None,
            Step::HorizontalFlip { .. } => size,
            Step::Pad { margin, .. } => size.map(|(height, width)| padded(height, width, margin)),
        })
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), which lists every mistake, each with its fix.
    pub fn validate(&self) -> Result<()> {
        let mut mistakes = self.mistakes.clone();
        let mut known: Option<(u32, u32)> = None;
        for step in &self.steps {
            let name = step.name();
            match *step {
                Step::Resize { height, width }
                | Step::CenterCrop { height, width }
                | Step::RandomCrop { height, width }
                | Step::RandomResizedCrop { height, width, .. }
                | Step::PadTo { height, width, .. } => {
                    if !(1..=MAX_OUTPUT_SIDE).contains(&height) || !(1..=MAX_OUTPUT_SIDE).contains(&width) {
                        mistakes.push(format!(".{name}({height}, {width}): sides are 1 to {MAX_OUTPUT_SIDE}"));
                    }
                    let crops = matches!(step, Step::CenterCrop { .. } | Step::RandomCrop { .. });
                    if let Some((h, w)) = known
                        && crops
                        && (h < height || w < width)
                    {
                        mistakes.push(format!(
                            ".{name}({height}, {width}) takes more than the {h} x {w} pixels before it; resize to more"
                        ));
                    }
                    if let (Some((h, w)), Step::PadTo { .. }) = (known, step)
                        && (h > height || w > width)
                    {
                        mistakes.push(format!(
                            ".{name}({height}, {width}) is smaller than the {h} x {w} pixels before it; pad to more, or resize to less"
                        ));
                    }
                    known = Some((height, width));
                }
                Step::Pad { margin, .. } => {
                    known = known.map(|(height, width)| padded(height, width, margin));
                    if margin > MAX_OUTPUT_SIDE || known.is_some_and(|(h, w)| h.max(w) > MAX_OUTPUT_SIDE) {
                        mistakes.push(format!(".{name}({margin}): sides are 1 to {MAX_OUTPUT_SIDE}, padding included"));
                    }
                }
                Step::ResizeShorter { side } | Step::ResizeLonger { side } => {
                    if !(1..=MAX_OUTPUT_SIDE).contains(&side) {
                        mistakes.push(format!(".{name}({side}): sides are 1 to {MAX_OUTPUT_SIDE}"));
                    }
                    known = None;
                }
                Step::HorizontalFlip { probability } => {
                    if !(0.0..=1.0).contains(&probability) {
                        mistakes.push(format!(".{name}({probability}): a probability is 0 to 1"));
                    }
                }
            }
            if let Step::RandomResizedCrop { scale: (from, to), ratio: (low, high), .. } = *step {
                if !(from > 0.0 && from <= to && to <= 1.0) {
                    mistakes.push(format!(".scale({from}..={to}): shares rise from above 0 to at most 1"));
                }
                if !(low > 0.0 && low <= high && high.is_finite()) {
                    mistakes.push(format!(".ratio({low}..={high}): ratios rise from above 0"));
                }
            }
        }
        for tint in &self.tints {
            let name = tint.name();
            let is_share = |probability: f64| (0.0..=1.0).contains(&probability);
            match *tint {
                Tint::ColorJitter { brightness, contrast, saturation, hue, probability } => {
                    let is_strength = |strength: f64| (0.0..).contains(&strength) && strength.is_finite();
                    if ![brightness, contrast, saturation].into_iter().all(is_strength) || !(0.0..=0.5).contains(&hue) {
                        mistakes.push(format!(
                            ".{name}({brightness}, {contrast}, {saturation}, {hue}): strengths are 0 or more, that of the hue 0 to 0.5"
                        ));
                    }
                    if !is_share(probability) {
                        mistakes.push(format!(".jitter_probability({probability}): a probability is 0 to 1"));
                    }
                }
                Tint::RandomGrayscale { probability } if !is_share(probability) => {
                    mistakes.push(format!(".{name}({probability}): a probability is 0 to 1"));
                }
                Tint::RandomGrayscale { .. } => {}
            }
        }
        if self.fixed_size().is_none() {
            mistakes.push(
                "images would differ in size; end with .resize(h, w), .center_crop(h, w) or .pad_to(h, w)".into(),
            );
        }
        if let Some(Normalize { mean, std }) = &self.normalize {
            if mean.len() != self.channels() {
                mistakes.push(format!(
                    ".normalize(..) has {} channels, the image {}; give one mean and one deviation a channel",
                    mean.len(),
                    self.channels()
                ));
            }
            if !mean.iter().all(|m| m.is_finite()) || !std.iter().all(|s| s.is_finite() && *s != 0.0) {
                mistakes.push(".normalize(..): means are finite, deviations finite and not 0".into());
            }
            if self.dtype == Some(Dtype::U8) {
                mistakes.push(".normalize(..) makes f32; leave out .to_u8()".into());
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Error::config(mistakes.join("; ")).stage("image")) }
    }

    /// Returns dtype and shape of one sample: `[channels, height, width]`, or `[height, width, channels]` with [`Layout::Nhwc`].
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn output(&self) -> Result<(Dtype, Vec<usize>)> {
        self.validate()?;
        let (height, width) = self.fixed_size().expect("validated: the size is fixed");
        let (height, width) = (height as usize, width as usize);
        Ok((
            self.dtype(),
            match self.layout {
                Layout::Nchw => vec![self.channels(), height, width],
                Layout::Nhwc => vec![height, width, self.channels()],
            },
        ))
    }
}

/// The sides after `margin` pixels are added all around.
fn padded(height: u32, width: u32, margin: u32) -> (u32, u32) {
    let side = |side: u32| side.saturating_add(margin).saturating_add(margin);
    (side(height), side(width))
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.color == Color::Rgb { "rgb" } else { "gray" })?;
        if self.exif_orientation {
            f.write_str(", exif_orientation")?;
        }
        for step in &self.steps {
            write!(f, ", {}", step.name())?;
            match *step {
                Step::Resize { height, width }
                | Step::CenterCrop { height, width }
                | Step::RandomCrop { height, width } => write!(f, " {height}x{width}")?,
                Step::RandomResizedCrop { height, width, scale, ratio } => write!(
                    f,
                    " {height}x{width} (area {} to {}, ratio {:.3} to {:.3})",
                    scale.0, scale.1, ratio.0, ratio.1
                )?,
                Step::ResizeShorter { side } | Step::ResizeLonger { side } => write!(f, " {side}")?,
                Step::Pad { margin, .. } => write!(f, " {margin}")?,
                Step::PadTo { height, width, .. } => write!(f, " {height}x{width}")?,
                Step::HorizontalFlip { probability } => write!(f, " {probability}")?,
            }
            if let Step::Pad { fill, .. } | Step::PadTo { fill, .. } = step
                && *fill != [0; 3]
            {
                write!(f, " (fill {:?})", &fill[..self.channels()])?;
            }
        }
        for tint in &self.tints {
            write!(f, ", {}", tint.name())?;
            match *tint {
                Tint::ColorJitter { brightness, contrast, saturation, hue, probability } => {
                    write!(f, " {brightness} {contrast} {saturation} {hue}")?;
                    if probability < 1.0 {
                        write!(f, " (probability {probability})")?;
                    }
                }
                Tint::RandomGrayscale { probability } => write!(f, " {probability}")?,
            }
        }
        if let Some(Normalize { mean, std }) = &self.normalize {
            write!(f, ", normalize {mean:?} {std:?}")?;
        }
        f.write_str(match self.interpolation {
            Interpolation::Nearest => ", nearest",
            Interpolation::Bilinear => ", bilinear",
            Interpolation::Bicubic => ", bicubic",
            Interpolation::Lanczos3 => ", lanczos3",
        })?;
        if !self.antialias && self.interpolation != Interpolation::Nearest {
            f.write_str(" without antialias")?;
        }
        match self.output() {
            Ok((dtype, shape)) => write!(f, ", {dtype} {shape:?}"),
            Err(_) => write!(f, ", {} of no fixed size", self.dtype()),
        }
    }
}
