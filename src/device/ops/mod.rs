//! Operations on whole batches of images on their device: the description. [`tensors`] carries them out, [`draw`] draws their numbers, and
//! `loader::on_device` brings both to the batches.

pub(crate) mod draw;
pub(crate) mod tensors;

use std::fmt;
use std::sync::Arc;

use tch::Kind;

use crate::transform::image::Layout;

/// What happens to a column of images, and to its labels, once a batch is on its device. Give it to
/// [`LoaderBuilder::on_device`](crate::LoaderBuilder::on_device).
///
/// So images cross to a GPU as `u8`, a quarter of the bytes of `f32`, and become floats there. The order is fixed, wherever a step is declared: flip,
/// layout, scale and normalise, mixup or cutmix, dtype. Everything is computed in `f32`; values are rounded to `f16` or `bf16` once, at the end.
///
/// On a CUDA device `next()` only queues the work on the default stream, before what the loop queues. On the CPU `next()` computes it, on the loop's
/// thread. There [`Image::normalize`](crate::Image::normalize) and [`Image::horizontal_flip`](crate::Image::horizontal_flip), which run on the
/// workers, are the faster choice.
///
/// # Shape
/// Images are `[batch, height, width, channels]` or `[batch, channels, height, width]`, `u8` from 0 to 255 or floats from 0 to 1. They stay `u8`
/// unless [`normalize`](Self::normalize), [`to`](Self::to), [`mixup`](Self::mixup) or [`cutmix`](Self::cutmix) is called; then they are floats: 0 to
/// 1, or what `normalize` makes of that. [`labels`](Self::labels), `[batch]` of class numbers, become `f32 [batch, classes]`. `Batch::shape`,
/// `Batch::tensor` and `Batch::values` show the result. `Batch::values` gives `f16` as `half::f16`; it has no type for `bf16` and widens it to `f32`,
/// which holds each of its values.
///
/// # Randomness
/// Flips are drawn from (seed, epoch, step, sample id): they are equal for any number of threads, ranks and devices, and in a resumed run. If a batch
/// has several rows of one sample, each row is drawn separately. Mixup and cutmix draw once for each batch, from (seed, epoch, step, id of its first
/// sample). So each rank, and each device of a [split](crate::Loader::split), draws its own, and partners are of the same rank and device. These
/// settings are not part of a [`State`](crate::State): give the same settings to the loader that restores one.
///
/// # Errors
/// `build()` lists every mistake: columns that do not exist or have another shape or dtype, and arguments that make no sense.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// use forebay::transform::image::{IMAGENET_MEAN, IMAGENET_STD};
/// use forebay::{Column, Dataset, Dtype, Layout, OnDevice, Shape};
///
/// let labels = arrow::array::Int64Array::from_iter_values((0..32).map(|i| i % 10));
/// let dataset = Dataset::from_columns([("label", Arc::new(labels) as _)])?
///     // Most often .image("image", Image::rgb().…), whose layout is known without saying.
///     .map("paint", [Column::new("image", Dtype::U8, Shape::Fixed(vec![8, 8, 3]))], |_, row, out| {
///         out.set_values("image", &[25 * row.get::<i64>("label")? as u8; 8 * 8 * 3])
///     })
///     .batch(16);
///
/// let train = OnDevice::images("image")
///     .layout(Layout::Nhwc)
///     .horizontal_flip(0.5)
///     .channels_first()
///     .normalize(IMAGENET_MEAN, IMAGENET_STD)
///     .labels("label", 10)
///     .mixup(0.8, 0.5)
///     .cutmix(1.0, 0.5)
///     .to(tch::Kind::BFloat16);
/// for batch in dataset.loader().seed(42).on_device(train).build()? {
///     let batch = batch?;
///     assert_eq!((batch.shape("image")?, batch.shape("label")?), (&[16, 3, 8, 8][..], &[16, 10][..]));
///     assert_eq!(batch.tensor("image")?.kind(), tch::Kind::BFloat16);
///     let of_first: f32 = batch.values::<f32>("label")?[..10].iter().sum();
///     assert!((of_first - 1.0).abs() < 1e-6);
/// }
/// # Ok::<(), forebay::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use = "it does nothing until a loader is given it"]
pub struct OnDevice {
    pub(crate) images: Arc<str>,
    /// How images are laid out in the column, if that was stated.
    pub(crate) layout: Option<Layout>,
    pub(crate) flip: Option<f64>,
    /// The layout that they are to have.
    pub(crate) becomes: Option<Layout>,
    /// A mean and a deviation for each channel.
    pub(crate) normalize: Option<(Vec<f32>, Vec<f32>)>,
    pub(crate) labels: Option<Labels>,
    pub(crate) mixup: Option<Mixing>,
    pub(crate) cutmix: Option<Mixing>,
    pub(crate) kind: Option<Kind>,
    mistakes: Vec<String>,
}

/// Class numbers that become shares of classes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Labels {
    pub(crate) column: Arc<str>,
    pub(crate) classes: usize,
    pub(crate) smoothing: f64,
}

/// How strongly a batch is mixed, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mixing {
    pub(crate) alpha: f64,
    pub(crate) probability: f64,
}

impl OnDevice {
    /// Returns a description without operations, for this column of images.
    pub fn images(column: impl Into<Arc<str>>) -> Self {
        Self {
            images: column.into(),
            layout: None,
            flip: None,
            becomes: None,
            normalize: None,
            labels: None,
            mixup: None,
            cutmix: None,
            kind: None,
            mistakes: Vec::new(),
        }
    }

    /// States how the images are laid out in the column. Columns that are stored as arrays or come from functions need it; the layout of what
    /// [`Dataset::image`](crate::Dataset::image) decodes is known.
    pub fn layout(mut self, layout: Layout) -> Self {
        set(&mut self.layout, layout, "layout", &mut self.mistakes);
        self
    }

    /// Mirrors images left to right, each sample with this probability.
    pub fn horizontal_flip(mut self, probability: f64) -> Self {
        set(&mut self.flip, probability, "horizontal_flip", &mut self.mistakes);
        self
    }

    /// Lays images out as `[batch, channels, height, width]`, in memory too.
    ///
    /// Convolutions of half-precision floats are faster if channels lie last in memory, under the same shape. For that leave this call out, and take
    /// `batch.tensor("image")?.permute([0, 3, 1, 2])`: a view that libtorch recognises as its channels-last memory format.
    pub fn channels_first(mut self) -> Self {
        set(&mut self.becomes, Layout::Nchw, "channels_first() or .channels_last", &mut self.mistakes);
        self
    }

    /// Lays images out as `[batch, height, width, channels]`, in memory too.
    pub fn channels_last(mut self) -> Self {
        set(&mut self.becomes, Layout::Nhwc, "channels_first() or .channels_last", &mut self.mistakes);
        self
    }

    /// Scales `u8` to 0..1, subtracts `mean` and divides by `std`, for each channel, as [`Image::normalize`](crate::Image::normalize) does. Floats
    /// are taken to be 0 to 1 already. The result equals that of `Image::normalize` within rounding of `f32`.
    pub fn normalize<const N: usize>(mut self, mean: [f32; N], std: [f32; N]) -> Self {
        set(&mut self.normalize, (mean.into(), std.into()), "normalize", &mut self.mistakes);
        self
    }

    /// Sets the dtype of the images: [`Kind::Float`], [`Kind::Half`] or [`Kind::BFloat16`]. `u8` is scaled to 0..1. Without this call floats are
    /// `f32`.
    pub fn to(mut self, kind: Kind) -> Self {
        set(&mut self.kind, kind, "to", &mut self.mistakes);
        self
    }

    /// Turns the column of class numbers, integers from 0 to `classes - 1`, into `f32 [batch, classes]`: 1 for the class and 0 for the others, or
    /// what smoothing, mixup and cutmix make of it. Each row sums to 1.
    ///
    /// # Errors
    /// A number that is no class is an error on the CPU. On a CUDA device, where checking would make the loop wait for everything that is queued, its
    /// row is NaN, so that the loss shows it.
    pub fn labels(mut self, column: impl Into<Arc<str>>, classes: usize) -> Self {
        let smoothing = self.labels.as_ref().map_or(0.0, |labels| labels.smoothing);
        set(&mut self.labels, Labels { column: column.into(), classes, smoothing }, "labels", &mut self.mistakes);
        self
    }

    /// Spreads this share of each label evenly over all classes: `1 - smoothing + smoothing / classes` for the class, `smoothing / classes` for the
    /// others. It is applied before mixing.
    ///
    /// # Source
    /// Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7.
    pub fn label_smoothing(mut self, smoothing: f64) -> Self {
        match &mut self.labels {
            Some(labels) => labels.smoothing = smoothing,
            None => self.mistakes.push(".label_smoothing(..) belongs behind .labels(column, classes)".into()),
        }
        self
    }

    /// Mixes each sample with the one before it in the batch, the first with the last, with this probability for a batch. Images become
    /// `l * own + (1 - l) * other`, and labels likewise, with one `l` for the batch from the Beta distribution of (`alpha`, `alpha`).
    ///
    /// A batch gets mixup or [`cutmix`](Self::cutmix) or neither: their probabilities sum to at most 1. timm's `prob` and `switch_prob` are
    /// `.mixup(alpha, prob * (1 - switch_prob)).cutmix(alpha, prob * switch_prob)`; torchvision's `RandomChoice` of both is 0.5 and 0.5. In a
    /// shuffled data set, neighbours in a batch are unrelated. A batch of one sample is left as it is.
    ///
    /// # Source
    /// Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    pub fn mixup(mut self, alpha: f64, probability: f64) -> Self {
        set(&mut self.mixup, Mixing { alpha, probability }, "mixup", &mut self.mistakes);
        self
    }

    /// Replaces a box of each image by the same box of the image before it in the batch, that of the first by the last's, with this probability for a
    /// batch. There is one box for the batch. Its centre is drawn evenly over the pixels, its sides are `sqrt(1 - l)` of the image's, with `l` from
    /// the Beta distribution of (`alpha`, `alpha`), and what reaches over the edge is cut off. Labels are mixed by the share of pixels that are each
    /// image's own.
    ///
    /// See [`mixup`](Self::mixup) for using both.
    ///
    /// # Source
    /// Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019.
    pub fn cutmix(mut self, alpha: f64, probability: f64) -> Self {
        set(&mut self.cutmix, Mixing { alpha, probability }, "cutmix", &mut self.mistakes);
        self
    }

    /// Whether images come out as floats, whatever their dtype was.
    pub(crate) fn makes_floats(&self) -> bool {
        self.normalize.is_some() || self.kind.is_some() || self.mixup.is_some() || self.cutmix.is_some()
    }

    /// What is wrong with the description whatever the columns are. Each mistake comes with what fixes it.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = self.mistakes.clone();
        let share = |value: f64| (0.0..=1.0).contains(&value);
        if let Some(p) = self.flip.filter(|&p| !share(p)) {
            mistakes.push(format!(".horizontal_flip({p}): a probability is 0 to 1"));
        }
        if let Some((mean, std)) = &self.normalize
            && !(mean.iter().all(|m| m.is_finite()) && std.iter().all(|s| s.is_finite() && *s != 0.0))
        {
            mistakes.push(".normalize(..): means are finite, deviations finite and not 0".into());
        }
        for (name, mixing) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            let Some(Mixing { alpha, probability }) = mixing else { continue };
            if !(alpha > 0.0 && alpha.is_finite()) {
                mistakes.push(format!(
                    ".{name}({alpha}, {probability}): alpha is above 0; leave the call out for no {name}"
                ));
            }
            if !share(probability) {
                mistakes.push(format!(".{name}({alpha}, {probability}): a probability is 0 to 1"));
            }
            if self.labels.is_none() {
                mistakes.push(format!(".{name}(..) mixes labels too; name them with .labels(column, classes)"));
            }
        }
        if let (Some(mixup), Some(cutmix)) = (self.mixup, self.cutmix)
            && share(mixup.probability)
            && share(cutmix.probability)
            && mixup.probability + cutmix.probability > 1.0 + 1e-9
        {
            mistakes.push(format!(
                "mixup with probability {} and cutmix with {}: a batch gets one of them, so they sum to at most 1",
                mixup.probability, cutmix.probability
            ));
        }
        if let Some(Labels { classes, smoothing, .. }) = &self.labels {
            if *classes == 0 || *classes > 1 << 24 {
                mistakes.push(format!(".labels(column, {classes}): classes are 1 to 2^24"));
            }
            if !share(*smoothing) {
                mistakes.push(format!(".label_smoothing({smoothing}): a share is 0 to 1"));
            }
        }
        if let Some(kind) = self.kind.filter(|kind| ![Kind::Float, Kind::Half, Kind::BFloat16].contains(kind)) {
            mistakes.push(format!(".to({kind:?}): images become Float, Half or BFloat16"));
        }
        if !self.makes_floats() && self.flip.is_none() && self.becomes.is_none() && self.labels.is_none() {
            mistakes.push(
                "it says nothing to do; call .normalize(..) or another of its verbs, or leave .on_device(..) out"
                    .into(),
            );
        }
        mistakes
    }
}

/// Sets what may be stated only once.
fn set<T>(slot: &mut Option<T>, value: T, verb: &str, mistakes: &mut Vec<String>) {
    if slot.replace(value).is_some() {
        mistakes.push(format!(".{verb}(..) is called twice; leave one out"));
    }
}

impl fmt::Display for OnDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "on device {}", self.images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_listed_with_what_mends_it() {
        let wrong = OnDevice::images("x")
            .label_smoothing(0.1)
            .horizontal_flip(1.5)
            .horizontal_flip(f64::NAN)
            .normalize([0.5], [0.0])
            .mixup(0.0, 0.5)
            .cutmix(1.0, 2.0)
            .channels_first()
            .channels_last()
            .to(Kind::Int);
        let text = wrong.mistakes().join("\n");
        for part in [
            "belongs behind .labels",
            ".horizontal_flip(..) is called twice",
            ".horizontal_flip(NaN): a probability",
            "deviations finite and not 0",
            ".mixup(0, 0.5): alpha is above 0",
            ".mixup(..) mixes labels too",
            ".cutmix(1, 2): a probability",
            ".channels_first() or .channels_last(..) is called twice",
            "become Float, Half or BFloat16",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let both = OnDevice::images("x").labels("y", 0).mixup(1.0, 0.6).cutmix(1.0, 0.5).label_smoothing(2.0);
        let text = both.mistakes().join("\n");
        for part in ["sum to at most 1", "classes are 1 to 2^24", ".label_smoothing(2): a share"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(OnDevice::images("x").mistakes()[0].contains("nothing to do"));
    }

    #[test]
    fn what_is_right_has_no_mistake() {
        let shares = OnDevice::images("x").labels("y", 10).label_smoothing(0.1).mixup(0.2, 0.1).cutmix(1.0, 0.9);
        assert_eq!(shares.mistakes(), [] as [&str; 0]);
        assert_eq!(OnDevice::images("x").channels_last().mistakes(), [] as [&str; 0]);
    }
}
