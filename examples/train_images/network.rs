//! The two networks: as small as they can be and still learn within a minute.

use tch::nn::{self, ModuleT};
use tch::{Kind, Tensor};

/// Pixels as the loader gives them, `u8` of 0 to 255, to `f32` of -1 to 1. On the device: a quarter of the bytes travel.
fn scale(pixels: &Tensor) -> Tensor {
    pixels.to_kind(Kind::Float) / 127.5 - 1.0
}

/// A convolution of 3x3 (or `kernel`), batch norm, ReLU.
fn block(path: nn::Path, channels: (i64, i64), kernel: i64, stride: i64) -> nn::SequentialT {
    let config = nn::ConvConfig { stride, padding: kernel / 2, bias: false, ..Default::default() };
    nn::seq_t()
        .add(nn::conv2d(&path / "convolution", channels.0, channels.1, kernel, config))
        .add(nn::batch_norm2d(&path / "norm", channels.1, Default::default()))
        .add_fn(|x| x.relu())
}

/// `u8 [n, 1, 8, 8]` -> logits `f32 [n, classes]`.
pub(crate) fn for_digits(path: &nn::Path, classes: i64) -> Box<dyn ModuleT> {
    let network = nn::seq_t()
        .add_fn(scale)
        .add(block(path / "a", (1, 32), 3, 1))
        .add(block(path / "b", (32, 64), 3, 1))
        .add_fn(|x| x.max_pool2d_default(2))
        .add(block(path / "c", (64, 64), 3, 1))
        .add_fn(|x| x.flat_view())
        .add_fn_t(|x, train| x.dropout(0.3, train))
        .add(nn::linear(path / "classes", 64 * 4 * 4, classes, Default::default()));
    Box::new(network)
}

/// `u8 [n, 3, 224, 224]` -> logits `f32 [n, classes]`.
///
/// Strides do what pooling would: the first convolution sees a sixteenth of the positions.
pub(crate) fn for_photographs(path: &nn::Path, classes: i64) -> Box<dyn ModuleT> {
    let network = nn::seq_t()
        .add_fn(scale)
        .add(block(path / "a", (3, 16), 7, 4))
        .add(block(path / "b", (16, 32), 3, 2))
        .add(block(path / "c", (32, 64), 3, 2))
        .add(block(path / "d", (64, 64), 3, 2))
        .add_fn(|x| x.mean_dim([2, 3].as_slice(), false, Kind::Float))
        .add(nn::linear(path / "classes", 64, classes, Default::default()));
    Box::new(network)
}
