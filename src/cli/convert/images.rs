//! Images of a folder as inputs: each becomes a `tf.Example`.

use std::ops::Range;
use std::path::PathBuf;

use super::folder::{self, Found};
use super::labels::Labels;
use super::picture::{Pen, Picture, Storing};
use super::work::{Halt, Input, Shard, Worker};
use crate::error::{Error, Result};
use crate::format::example::Example;
use crate::format::tfrecord::MAX_RECORD_BYTES;
use crate::plan::Permutation;
use crate::random::Key;

/// Larger files are not read: a record with all its fields has to stay below the limit of readers.
const MAX_BYTES: u64 = MAX_RECORD_BYTES / 2;

/// Images in the order in which they go into shards.
pub(super) struct Images {
    pub(super) root: PathBuf,
    pub(super) images: Vec<Found>,
    pub(super) labels: Labels,
    pub(super) storing: Storing,
    order: Option<Permutation>,
}

impl Images {
    /// Creates the inputs: images in the order of their paths, or, with a seed, shuffled.
    pub(super) fn new(root: PathBuf, images: Vec<Found>, labels: Labels, storing: Storing, seed: Option<u64>) -> Self {
        let order = seed.map(|seed| Permutation::new(Key::new(seed).with("convert"), images.len() as u64));
        Self { root, images, labels, storing, order }
    }

    /// Returns which image comes at this place.
    pub(super) fn at(&self, place: u64) -> usize {
        self.order.as_ref().map_or(place, |order| order.at(place)) as usize
    }

    /// Returns the stored bytes of each image, in order.
    pub(super) fn sizes(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.images.len() as u64).map(|place| self.images[self.at(place)].bytes)
    }

    /// Creates the record of an image.
    fn example(&self, image: usize, picture: Picture<'_>) -> Example {
        let name = self.images[image].path.as_os_str().as_encoded_bytes();
        let example = Example::new()
            .with_bytes("image/encoded", [&picture.bytes])
            .with_bytes("image/format", [picture.format])
            .with_int64("image/height", [picture.height.into()])
            .with_int64("image/width", [picture.width.into()])
            .with_bytes("image/filename", [name]);
        match self.labels.of(image) {
            Some((label, Some(text))) => {
                example.with_int64("image/class/label", [label]).with_bytes("image/class/text", [text])
            }
            Some((label, None)) => example.with_int64("image/class/label", [label]),
            None => example,
        }
    }
}

impl Input for Images {
    fn worker(&self) -> Box<dyn Worker + '_> {
        Box::new(Painter::new(self))
    }
}

/// Prepares images for storage, on one thread.
pub(super) struct Painter<'a> {
    images: &'a Images,
    pen: Pen,
}

impl<'a> Painter<'a> {
    pub(super) fn new(images: &'a Images) -> Self {
        Self { images, pen: Pen::default() }
    }

    /// Reads an image, and passes on what is stored of it.
    pub(super) fn paint<T>(&mut self, image: usize, take: impl FnOnce(Picture<'_>) -> T) -> Result<T> {
        let Images { root, images, storing, .. } = self.images;
        let found = &images[image];
        let place = |e: Error| e.url(root.join(&found.path).to_string_lossy().into_owned());
        if found.bytes > MAX_BYTES {
            return Err(place(Error::corrupt(format!(
                "{} bytes, more than the {MAX_BYTES} of any image",
                found.bytes
            ))));
        }
        let bytes = folder::read(root, found)?;
        Ok(take(storing.store(&bytes, &mut self.pen).map_err(place)?))
    }
}

impl Worker for Painter<'_> {
    fn fill(&mut self, inputs: Range<u64>, shard: &mut Shard<'_>) -> Result<(), Halt> {
        let images = self.images;
        for place in inputs {
            let image = images.at(place);
            match self.paint(image, |picture| images.example(image, picture).encode()) {
                Ok(record) => shard.write(&record)?,
                Err(error) => shard.skip(error)?,
            }
            shard.advance(images.images[image].bytes)?;
        }
        Ok(())
    }
}
