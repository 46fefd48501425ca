//! The operations as functions on whole tensors, on any device. Nothing here waits for the device.

use tch::{Kind, TchError, Tensor};

use super::draw::Window;
use crate::transform::image::Layout;

type Result<T> = std::result::Result<T, TchError>;

/// The dimension of the width in a batch of images.
fn width_of(layout: Layout) -> i64 {
    match layout {
        Layout::Nchw => 3,
        Layout::Nhwc => 2,
    }
}

/// Copies a few numbers to the device, without waiting for what is queued there.
///
/// For up to 64 KiB of host memory that is not pinned, CUDA takes a copy and returns (CUDA C++ Programming Guide, "Concurrent Execution between Host
/// and Device").
fn to_device_of(host: &Tensor, images: &Tensor) -> Result<Tensor> {
    host.f_to_device_(images.device(), host.f_kind()?, true, false)
}

/// Mirrors these rows of the batch, in place.
pub(crate) fn flip(images: &mut Tensor, layout: Layout, rows: &[i64]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows = to_device_of(&Tensor::f_from_slice(rows)?, images)?;
    let flipped = images.f_index_select(0, &rows)?.f_flip([width_of(layout)])?;
    images.f_index_copy_(0, &rows, &flipped).map(drop)
}

/// Returns the same images in another layout, in memory too.
pub(crate) fn lay_out(images: &Tensor, from: Layout, to: Layout) -> Result<Tensor> {
    match (from, to) {
        (Layout::Nhwc, Layout::Nchw) => images.f_permute([0, 3, 1, 2])?.f_contiguous(),
        (Layout::Nchw, Layout::Nhwc) => images.f_permute([0, 2, 3, 1])?.f_contiguous(),
        _ => Ok(images.shallow_clone()),
    }
}

/// A mean and a deviation for each channel, on the images' device, with which images are normalised.
#[derive(Debug)]
pub(crate) struct Normalization {
    mean: Tensor,
    deviation: Tensor,
}

impl Normalization {
    /// Prepares for images like these. Bytes are normalised as (x - 255 mean) / (255 std): two passes over the floats instead of three, and not less
    /// exact.
    pub(crate) fn new(images: &Tensor, layout: Layout, mean: &[f32], std: &[f32]) -> Result<Self> {
        let scale = if images.f_kind()? == Kind::Uint8 { 255.0 } else { 1.0 };
        let channels = |numbers: &[f32]| -> Result<Tensor> {
            let numbers: Vec<f32> = numbers.iter().map(|&number| (f64::from(number) * scale) as f32).collect();
            let numbers = to_device_of(&Tensor::f_from_slice(&numbers)?, images)?;
            match layout {
                Layout::Nchw => numbers.f_view([-1, 1, 1]),
                Layout::Nhwc => Ok(numbers),
            }
        };
        Ok(Self { mean: channels(mean)?, deviation: channels(std)? })
    }

    pub(crate) fn device(&self) -> tch::Device {
        self.mean.device()
    }

    /// The same tensors.
    pub(crate) fn share(&self) -> Self {
        Self { mean: self.mean.shallow_clone(), deviation: self.deviation.shallow_clone() }
    }
}

/// Turns `u8` from 0 to 255, or floats from 0 to 1, into `f32` from 0 to 1, or normalised.
pub(crate) fn to_floats(images: &Tensor, normalize: Option<&Normalization>) -> Result<Tensor> {
    let is_u8 = images.f_kind()? == Kind::Uint8;
    let Some(Normalization { mean, deviation }) = normalize else {
        let mut floats = images.f_to_kind(Kind::Float)?;
        return if is_u8 { floats.f_div_scalar_(255.0) } else { Ok(floats) };
    };
    // Bytes less floats are floats; of f16 and f64 the f32 would become those.
    let images = if is_u8 { images.shallow_clone() } else { images.f_to_kind(Kind::Float)? };
    images.f_sub(mean)?.f_div_(deviation)
}

/// Turns class numbers `[n]` into `f32 [n, classes]`, smoothed. Also returns which of the numbers, `bool [n]`, are no classes: their rows are NaN.
pub(crate) fn one_hot(labels: &Tensor, classes: usize, smoothing: f64) -> Result<(Tensor, Tensor)> {
    let numbers = labels.f_to_kind(Kind::Int64)?.f_unsqueeze(1)?;
    let all = Tensor::f_arange(classes as i64, (Kind::Int64, labels.device()))?;
    let mut soft = numbers.f_eq_tensor(&all)?.f_to_kind(Kind::Float)?;
    if smoothing > 0.0 {
        soft = soft.f_mul_scalar_(1.0 - smoothing)?.f_add_scalar_(smoothing / classes as f64)?;
    }
    let wrong = numbers.f_lt(0i64)?.f_logical_or(&numbers.f_ge(classes as i64)?)?;
    let soft = soft.f_masked_fill_(&wrong, f64::NAN)?;
    Ok((soft, wrong.f_squeeze_dim(1)?))
}

/// Mixes each row with the one before it, the first with the last. `own`: the share of a row's own values.
pub(crate) fn mix(rows: &Tensor, own: f64) -> Result<Tensor> {
    rows.f_roll([1], [0])?.f_lerp_(rows, own)
}

/// Replaces the window of each image by that of the image before it, and the first image's by the last's, in place.
pub(crate) fn paste(images: &Tensor, layout: Layout, window: Window) -> Result<()> {
    let width = width_of(layout);
    let extent = |from: u32, to: u32| i64::from(to - from);
    let (across, down) = (extent(window.left, window.right), extent(window.top, window.bottom));
    if across == 0 || down == 0 {
        return Ok(());
    }
    let mut window =
        images.f_narrow(width, window.left.into(), across)?.f_narrow(width - 1, window.top.into(), down)?;
    let others = window.f_roll([1], [0])?;
    window.f_copy_(&others)
}
