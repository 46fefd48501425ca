//! Images of a folder as rows, for formats other than TFRecord.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewBuilder, Int64Builder, RecordBatch};

use super::images::{Images, Painter};
use super::supply::Supply;
use crate::cli::blocks::Blocks;
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, bytes, int64};
use crate::source::Decoded;

/// Images per block: enough that handing over a block costs nothing compared with reading it.
const BLOCK_IMAGES: u64 = 32;

/// Blocks of images in the order of a conversion.
pub(super) struct Pictures {
    images: Images,
    columns: Vec<Column>,
}

impl Pictures {
    pub(super) fn new(images: Images) -> Self {
        let columns = columns_of(&images);
        Self { images, columns }
    }

    fn rows(&self) -> u64 {
        self.images.images.len() as u64
    }
}

/// Returns the columns of images, with labels and their names if there are any.
pub(super) fn columns_of(images: &Images) -> Vec<Column> {
    let mut columns = vec![
        bytes("image/encoded"),
        bytes("image/format"),
        int64("image/height"),
        int64("image/width"),
        bytes("image/filename"),
    ];
    if !images.labels.numbers.is_empty() {
        columns.push(int64("image/class/label"));
    }
    if !images.labels.classes.is_empty() {
        columns.push(bytes("image/class/text"));
    }
    columns
}

impl Supply for Pictures {
    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn starts(&self) -> Vec<u64> {
        (0..self.rows()).step_by(BLOCK_IMAGES as usize).chain([self.rows()]).collect()
    }
}

impl Blocks for Pictures {
    type Made = Decoded;

    fn block_bytes(&self, block: usize) -> u64 {
        let start = block as u64 * BLOCK_IMAGES;
        let places = start..(start + BLOCK_IMAGES).min(self.rows());
        places.map(|place| self.images.images[self.images.at(place)].bytes).sum()
    }

    fn make(&self, block: usize) -> Result<Decoded> {
        let start = block as u64 * BLOCK_IMAGES;
        let places = start..(start + BLOCK_IMAGES).min(self.rows());
        let (mut encoded, mut format, mut filename, mut text) =
            (BinaryViewBuilder::new(), BinaryViewBuilder::new(), BinaryViewBuilder::new(), BinaryViewBuilder::new());
        let (mut height, mut width, mut label) = (Int64Builder::new(), Int64Builder::new(), Int64Builder::new());
        let (mut painter, mut bad) = (Painter::new(&self.images), Vec::new());
        for (row, place) in places.enumerate() {
            let image = self.images.at(place);
            let painted = painter.paint(image, |picture| {
                encoded.append_value(&picture.bytes);
                format.append_value(picture.format);
                height.append_value(picture.height.into());
                width.append_value(picture.width.into());
            });
            if let Err(error) = painted {
                // What stands in a bad row does not matter.
                encoded.append_value(b"");
                format.append_value(b"");
                height.append_value(0);
                width.append_value(0);
                bad.push((row, error));
            }
            filename.append_value(self.images.images[image].path.as_os_str().as_encoded_bytes());
            let (number, name) = self.images.labels.of(image).unwrap_or((0, None));
            label.append_value(number);
            text.append_value(name.unwrap_or_default());
        }
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(encoded.finish()),
            Arc::new(format.finish()),
            Arc::new(height.finish()),
            Arc::new(width.finish()),
            Arc::new(filename.finish()),
            Arc::new(label.finish()),
            Arc::new(text.finish()),
        ];
        arrays.truncate(self.columns.len());
        let rows = RecordBatch::try_new(crate::schema::arrow_schema(&self.columns), arrays)
            .map_err(|e| Error::new(ErrorKind::Schema, "images do not make their columns").because(e))?;
        Ok(Decoded::with_bad(rows, bad))
    }
}
