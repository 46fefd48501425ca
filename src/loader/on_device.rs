//! Applies operations on the device to batches. They are checked against the columns at `build()`, and applied when a batch is handed to the loop.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tch::{Kind, Tensor};

use super::run::Shared;
use crate::batch::collate;
use crate::batch::{Batch, BatchColumn, Data};
use crate::dataset::validate::all_of;
use crate::device::OnDevice;
use crate::device::ops::draw::{self, Mixed};
use crate::device::ops::tensors::{self, Normalization};
use crate::error::{Error, ErrorKind, Result};
use crate::random::Key;
use crate::schema::{Column, Dtype, Shape};
use crate::transform::image::Layout;

/// The name of the stage, in errors.
const STAGE: &str = "on device";

/// Operations that suit the columns of the batch.
pub(crate) struct Prepared {
    what: OnDevice,
    key: Key,
    /// How the images are laid out in the column.
    layout: Layout,
    /// Height and width.
    size: (u32, u32),
    /// One for each device. Its first batch brings it there: if every batch brought it, it would wait behind the copy of the next batch.
    normalizations: Mutex<Vec<Normalization>>,
}

/// What is wrong with the operations whatever the columns are.
pub(super) fn mistakes(all: &[OnDevice]) -> Vec<Error> {
    let mut wrong: Vec<Error> = all
        .iter()
        .flat_map(|what| what.mistakes().into_iter().map(move |mistake| Error::config(format!("{what}: {mistake}"))))
        .collect();
    let columns = |what: &OnDevice| {
        let labels = what.labels.as_ref().map(|labels| labels.column.clone());
        [Some(what.images.clone()), labels].into_iter().flatten().collect::<Vec<_>>()
    };
    let mut seen = Vec::new();
    for column in all.iter().flat_map(columns) {
        if seen.contains(&column) {
            wrong.push(
                Error::config(format!("column {column} is named twice by operations on the device"))
                    .advice("say all that is done to a column in one .on_device(..), and name other labels"),
            );
        }
        seen.push(column);
    }
    wrong
}

/// Checks the operations against the columns that batches will have.
///
/// # Errors
/// Everything that does not fit, each with what fixes it.
pub(super) fn prepare(all: Vec<OnDevice>, columns: &[collate::Layout], seed: u64) -> Result<Arc<[Prepared]>> {
    let mut wrong = Vec::new();
    let mut prepared = Vec::with_capacity(all.len());
    for what in all {
        check_labels(&what, columns, &mut wrong);
        let before = wrong.len();
        let Some((layout, extents)) = check_images(&what, columns, &mut wrong) else { continue };
        let [channels, height, width] = match layout {
            Layout::Nchw => extents,
            Layout::Nhwc => [extents[2], extents[0], extents[1]],
        };
        if let Some((mean, std)) = &what.normalize
            && (mean.len(), std.len()) != (channels, channels)
        {
            wrong.push(
                Error::config(format!("{what}: .normalize(..) has {} channels, the images {channels}", mean.len()))
                    .advice("give one mean and one deviation a channel"),
            );
        }
        if before == wrong.len() {
            let key = Key::new(seed).with(STAGE).with(&what.images);
            let size = (height as u32, width as u32);
            prepared.push(Prepared { what, key, layout, size, normalizations: Mutex::default() });
        }
    }
    all_of(wrong)?;
    Ok(prepared.into())
}

fn find<'a>(
    what: &OnDevice,
    name: &str,
    columns: &'a [collate::Layout],
    wrong: &mut Vec<Error>,
) -> Option<&'a collate::Layout> {
    let found = columns.iter().find(|column| column.column.name().as_ref() == name);
    if found.is_none() {
        let names: Vec<&str> = columns.iter().map(|column| column.column.name().as_ref()).collect();
        wrong.push(
            Error::config(format!("{what}: batches have no column {name:?}"))
                .advice(format!("name one of theirs: {}", names.join(", "))),
        );
    }
    found
}

/// How images are laid out in their column, and the three extents there.
fn check_images(what: &OnDevice, columns: &[collate::Layout], wrong: &mut Vec<Error>) -> Option<(Layout, [usize; 3])> {
    let column = find(what, &what.images, columns, wrong)?;
    let extents = match column.column.shape() {
        Shape::Fixed(extents) => <[usize; 3]>::try_from(&extents[..]).ok().filter(|extents| !extents.contains(&0)),
        _ => None,
    };
    let takes = matches!(column.column.dtype(), Dtype::U8 | Dtype::F16 | Dtype::F32 | Dtype::F64);
    let Some(extents) = extents.filter(|_| takes) else {
        wrong.push(
            Error::config(format!("{what}: `{}` holds no images, which are u8 or floats of three extents", column.column))
                .advice("decode it with .image(column, Image::rgb()), or declare it with .raw(Dtype::U8, [height, width, channels])"),
        );
        return None;
    };
    let decoded = column.image.as_ref().map(|(image, _)| image);
    if decoded.is_some_and(|image| image.is_normalized()) && what.normalize.is_some() {
        wrong.push(
            Error::config(format!("{what}: images are normalised when they are decoded, and would be again"))
                .advice("leave .normalize(..) of the Image out, so that u8 crosses to the device"),
        );
    }
    let known = decoded.map(|image| image.placed());
    match (known, what.layout) {
        (Some(known), Some(said)) if known != said => {
            wrong.push(
                Error::config(format!("{what}: .layout({said:?}), where images are decoded as {known:?}"))
                    .advice("leave .layout(..) out; .channels_first() and .channels_last() change it"),
            );
            None
        }
        (Some(layout), _) | (None, Some(layout)) => Some((layout, extents)),
        (None, None) => {
            wrong.push(
                Error::config(format!(
                    "{what}: which of the extents of `{}` are the channels is not known",
                    column.column
                ))
                .advice("say .layout(Layout::Nhwc) where they stand last, or .layout(Layout::Nchw)"),
            );
            None
        }
    }
}

fn check_labels(what: &OnDevice, columns: &[collate::Layout], wrong: &mut Vec<Error>) {
    let Some(labels) = &what.labels else { return };
    let Some(column) = find(what, &labels.column, columns, wrong) else { return };
    let is_integer = matches!(column.column.dtype(), Dtype::U8 | Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
    if !is_integer || *column.column.shape() != Shape::Scalar {
        wrong.push(
            Error::config(format!(
                "{what}: `{}` holds no class numbers, which are one integer a sample",
                column.column
            ))
            .advice("name the column of class numbers in .labels(column, classes)"),
        );
    }
}

impl Shared {
    /// Applies the operations to a batch, on its device.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] for what libtorch reports, and [`ErrorKind::Schema`] for a label that is no class.
    pub(super) fn on_device(&self, batch: &mut Batch) -> Result<()> {
        if self.on_device.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let result = self.on_device.iter().try_for_each(|operations| operations.apply(batch));
        let bytes: usize = self.on_device.iter().flat_map(|operations| operations.bytes(batch)).sum();
        self.counters.on_device.add(batch.len() as u64, bytes as u64);
        self.counters.on_device.busy(start.elapsed());
        result.map_err(|error| error.stage(STAGE))
    }
}

impl Prepared {
    /// Bytes of the columns that the operations make.
    fn bytes<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = usize> + 'a {
        let names = [Some(&self.what.images), self.what.labels.as_ref().map(|labels| &labels.column)];
        let columns = names.into_iter().flatten().filter_map(|name| position(batch, name));
        columns.map(|at| match &batch.columns[at].data {
            Data::Tensor(tensor) => tensor.numel() * tensor.f_kind().map_or(0, |kind| kind.elt_size_in_bytes()),
            _ => 0,
        })
    }

    /// The key of one of its operations on one batch.
    fn key(&self, operation: &str, batch: &Batch) -> Key {
        self.key.with(operation).with_number(batch.epoch()).with_number(batch.step())
    }

    fn apply(&self, batch: &mut Batch) -> Result<()> {
        let first = batch.samples.first().copied().unwrap_or(0);
        let mixed = draw::mixed(self.key("mix", batch).with_number(first), &self.what, self.size);
        if let Some(labels) = &self.what.labels {
            let (numbers, at) = take(batch, &labels.column)?;
            let failed = |error| failed(error, &labels.column);
            let (soft, wrong) = tensors::one_hot(&numbers, labels.classes, labels.smoothing).map_err(failed)?;
            self.refuse_wrong_labels(batch, &numbers, &wrong)?;
            let soft = match mixed {
                Mixed::Not => soft,
                Mixed::Whole(own) | Mixed::Box(_, own) => tensors::mix(&soft, own).map_err(failed)?,
            };
            put(batch, at, soft, Dtype::F32);
        }
        let (images, at) = take(batch, &self.what.images)?;
        let images = self.of_images(images, batch, mixed).map_err(|error| failed(error, &self.what.images))?;
        let dtype = match images.f_kind().map_err(|error| failed(error, &self.what.images))? {
            Kind::Uint8 => Dtype::U8,
            Kind::Half => Dtype::F16,
            Kind::Double => Dtype::F64,
            // Of `bf16` too: see `Batch::values`.
            _ => Dtype::F32,
        };
        put(batch, at, images, dtype);
        Ok(())
    }

    fn of_images(&self, mut images: Tensor, batch: &Batch, mixed: Mixed) -> Result<Tensor, tch::TchError> {
        let what = &self.what;
        if let Some(probability) = what.flip {
            let rows = draw::flipped(self.key("horizontal_flip", batch), probability, &batch.samples);
            tensors::flip(&mut images, self.layout, &rows)?;
        }
        let layout = what.becomes.unwrap_or(self.layout);
        // While they are bytes: a quarter of what floats would be to move.
        images = tensors::lay_out(&images, self.layout, layout)?;
        if what.makes_floats() {
            let normalize = what.normalize.as_ref().map(|(mean, std)| self.normalization(&images, layout, mean, std));
            images = tensors::to_floats(&images, normalize.transpose()?.as_ref())?;
        }
        match mixed {
            Mixed::Not => {}
            Mixed::Whole(own) => images = tensors::mix(&images, own)?,
            Mixed::Box(window, _) => tensors::paste(&images, layout, window)?,
        }
        match what.kind {
            Some(kind) => images.f_to_kind(kind),
            None => Ok(images),
        }
    }

    /// The mean and deviation for images on this device.
    fn normalization(
        &self,
        images: &Tensor,
        layout: Layout,
        mean: &[f32],
        std: &[f32],
    ) -> Result<Normalization, tch::TchError> {
        let mut known = self.normalizations.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(found) = known.iter().find(|known| known.device() == images.device()) {
            return Ok(found.share());
        }
        let made = Normalization::new(images, layout, mean, std)?;
        known.push(made.share());
        Ok(made)
    }

    /// Refuses labels that are no class, on the CPU only: checking costs nothing there.
    fn refuse_wrong_labels(&self, batch: &Batch, labels: &Tensor, wrong: &Tensor) -> Result<()> {
        let Some(what) = self.what.labels.as_ref().filter(|_| labels.device() == tch::Device::Cpu) else {
            return Ok(());
        };
        let first =
            wrong.f_to_kind(Kind::Int64).and_then(|wrong| wrong.f_nonzero()).map_err(|e| failed(e, &what.column))?;
        if first.numel() == 0 {
            return Ok(());
        }
        let row = first.f_int64_value(&[0, 0]).map_err(|e| failed(e, &what.column))?;
        let label = labels.f_int64_value(&[row]).map_err(|e| failed(e, &what.column))?;
        let error = Error::new(ErrorKind::Schema, format!("the label {label} is none of {} classes", what.classes))
            .column(what.column.clone())
            .advice("classes are counted from 0; raise the number in .labels(column, classes), or map labels to it");
        Err(batch.samples.get(row as usize).map_or(error.clone(), |&sample| error.sample(sample)))
    }
}

fn failed(error: tch::TchError, column: &Arc<str>) -> Error {
    Error::new(ErrorKind::Device, "libtorch cannot do it").because(error).column(column.clone())
}

fn position(batch: &Batch, name: &str) -> Option<usize> {
    batch.columns.iter().position(|column| column.column.name().as_ref() == name)
}

/// Returns a column's tensor, and its place in the batch.
fn take(batch: &Batch, name: &Arc<str>) -> Result<(Tensor, usize)> {
    let at = position(batch, name)
        .ok_or_else(|| Error::new(ErrorKind::Schema, "the column is gone").column(name.clone()))?;
    Ok((batch.tensor(name)?, at))
}

/// Puts a column's new tensor in its place.
fn put(batch: &mut Batch, at: usize, tensor: Tensor, dtype: Dtype) {
    let shape: Vec<usize> = tensor.size().into_iter().map(|extent| extent as usize).collect();
    let name = batch.columns[at].column.name().clone();
    let column = Column::new(name, dtype, Shape::Fixed(shape[1..].to_vec()));
    batch.columns[at] = BatchColumn { column, shape, data: Data::Tensor(tensor), lengths: None };
}
