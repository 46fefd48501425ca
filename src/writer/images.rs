//! Writes rows as image files in folders named by their labels.
//!
//! A file's name is the number of its row, with the extension of its image format. The file contains only the image, so equal rows make equal
//! folders. A run of rows takes the place of a shard: all its files are on the disk before the first of them gets its name.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use bytes::Bytes;

use super::cells::{Cells, unfit};
use super::encode::{Data, Encode, ImageFile, Piece, Shard, Written};
use super::part::{self, Part};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Shape};
use crate::transform::image::{ImageFormat, probe};

/// The columns that are taken as images and as labels, unless others are named.
const IMAGES: [&str; 6] = ["image/encoded", "image", "jpg", "jpeg", "png", "webp"];
const LABELS: [&str; 5] = ["image/class/text", "label", "image/class/label", "class", "cls"];

pub(super) struct Images {
    columns: Vec<Column>,
    image: usize,
    label: Option<usize>,
}

impl Images {
    /// # Errors
    /// [`ErrorKind::Schema`] if there is no column of images, or if labels are neither text nor whole numbers.
    pub(super) fn new(columns: &[Column], image: Option<&str>, label: Option<&str>) -> Result<Self> {
        let at = |name: &str| columns.iter().position(|column| column.name().as_ref() == name);
        let named = |name: &str| {
            at(name).ok_or_else(|| {
                let names: Vec<&str> = columns.iter().map(|column| column.name().as_ref()).collect();
                Error::config("there is no such column")
                    .column(name)
                    .advice(format!("take one of: {}", names.join(", ")))
            })
        };
        let is_image = |column: &Column| column.dtype() == Dtype::Bytes && *column.shape() == Shape::Scalar;
        let image = match image {
            Some(name) => named(name)?,
            None => IMAGES.into_iter().find_map(at).ok_or_else(|| {
                Error::new(ErrorKind::Schema, "no column is known to hold images")
                    .advice("name it: .image_column(name), --image-column NAME")
            })?,
        };
        let label = match label {
            Some(name) => Some(named(name)?),
            None => LABELS.into_iter().find_map(at),
        };
        if !is_image(&columns[image]) {
            return Err(Error::new(
                ErrorKind::Schema,
                format!("images are byte strings, and this is {}", columns[image]),
            )
            .column(columns[image].name().clone())
            .advice("name another column: .image_column(name), --image-column NAME"));
        }
        if let Some(column) = label.map(|label| &columns[label])
            && (*column.shape() != Shape::Scalar || matches!(column.dtype(), Dtype::F16 | Dtype::F32 | Dtype::F64))
        {
            return Err(Error::new(
                ErrorKind::Schema,
                format!("labels are text or whole numbers, and this is {column}"),
            )
            .column(column.name().clone())
            .advice("name another column: .label_column(name), --label-column NAME"));
        }
        Ok(Self { columns: columns.to_vec(), image, label })
    }

    fn label(&self, columns: &[Cells<'_>], row: usize, number: u64) -> Result<Option<String>> {
        let Some(cells) = self.label.map(|label| &columns[label]) else { return Ok(None) };
        let mut label = String::new();
        match cells.values.bytes(row) {
            None => cells.values.number(row, &mut label),
            Some(text) => label.push_str(&String::from_utf8_lossy(text)),
        }
        let is_name = is_folder(&label) && !label.contains(char::REPLACEMENT_CHARACTER);
        if is_name {
            Ok(Some(label))
        } else {
            let what = format!("the label `{}` cannot be a folder", label.escape_debug());
            Err(unfit(cells.column, number, what)
                .advice("take a column of numbers: .label_column(name), --label-column NAME"))
        }
    }
}

/// Returns whether a label can be the name of a folder that listings find.
pub(super) fn is_folder(label: &str) -> bool {
    let plain = |c: char| !c.is_control() && c != '/';
    !label.is_empty() && label.len() <= 200 && !label.starts_with(['.', '_']) && label.chars().all(plain)
}

/// Returns the extension for files of a format.
fn extension(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "jpg",
        ImageFormat::Png => "png",
        ImageFormat::WebP => "webp",
        ImageFormat::Gif => "gif",
        ImageFormat::Bmp => "bmp",
        ImageFormat::Tiff => "tiff",
    }
}

impl Encode for Images {
    fn encode(&self, first: u64, rows: &RecordBatch) -> Result<Piece> {
        let columns: Vec<Cells<'_>> =
            self.columns.iter().zip(rows.columns()).map(|(column, array)| Cells::new(column, array)).collect();
        let (mut files, mut ends, mut end) = (Vec::new(), Vec::new(), 0);
        for row in 0..rows.num_rows() {
            let number = first + row as u64;
            let label = self.label(&columns, row, number)?;
            let image = columns[self.image].values.bytes(row).unwrap_or_default();
            let format =
                probe(image).map_err(|e| e.column(self.columns[self.image].name().clone()).record(number))?.format;
            end += image.len() as u64;
            ends.push(end);
            let name = format!("{number:08}.{}", extension(format));
            files.push(ImageFile { label, name, bytes: Bytes::copy_from_slice(image) });
        }
        Ok(Piece { data: Data::Files(files), ends })
    }

    fn begin(&self, folder: &Path, _name: &str) -> Result<Box<dyn Shard>> {
        Ok(Box::new(Run { folder: folder.to_owned(), parts: Vec::new(), labels: BTreeSet::new(), bytes: 0, crc32c: 0 }))
    }
}

/// Images that wait for their names.
struct Run {
    folder: PathBuf,
    parts: Vec<(PathBuf, String)>,
    labels: BTreeSet<String>,
    bytes: u64,
    crc32c: u32,
}

impl Shard for Run {
    fn append(&mut self, piece: Piece) -> Result<()> {
        let Data::Files(files) = piece.data else { unreachable!("images are files") };
        for ImageFile { label, name, bytes } in files {
            let folder = label.as_ref().map_or_else(|| self.folder.clone(), |label| self.folder.join(label));
            if let Some(label) = label
                && self.labels.insert(label)
            {
                std::fs::create_dir_all(&folder).map_err(|e| part::failed(e, "cannot make the folder", &folder))?;
            }
            let mut file = Part::create(&folder, &name)?;
            file.write_all(&bytes).map_err(|e| part::failed(e, "cannot write the image", file.path()))?;
            file.hold()?;
            self.bytes += bytes.len() as u64;
            self.crc32c = crc32c::crc32c_append(self.crc32c, &bytes);
            self.parts.push((folder, name));
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Written> {
        for (folder, name) in &self.parts {
            let path = folder.join(name);
            std::fs::rename(folder.join(part::hidden_name(name)), &path)
                .map_err(|e| part::failed(e, "cannot name the image", &path))?;
        }
        let folders: BTreeSet<&PathBuf> = self.parts.iter().map(|(folder, _)| folder).collect();
        for folder in folders.into_iter().chain([&self.folder]) {
            part::sync_folder(folder)?;
        }
        self.parts = Vec::new();
        let labels = std::mem::take(&mut self.labels).into_iter().collect();
        Ok(Written { bytes: self.bytes, crc32c: format!("{:08x}", self.crc32c), index: None, labels })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for (folder, name) in &self.parts {
            // It was given up; what is left is in nobody's way, and written over by the next run.
            _ = std::fs::remove_file(folder.join(part::hidden_name(name)));
        }
    }
}
