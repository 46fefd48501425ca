//! A folder of images as a source: each file is a row, runs of files are blocks.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewBuilder, Int64Array, RecordBatch, RecordBatchOptions};
use arrow::buffer::Buffer;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};

use super::carry::carry;
use super::cut::{row_bytes, target_bytes, with_also};
use super::open::{Opened, Opening, Wanted};
use super::{Decoded, RecordPlaces, Source};
use crate::dataset::ImageFolder;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Catalog;
use crate::schema::{Column, Dtype, Shape, arrow_schema, bytes, int64};
use crate::store::{Object, Store};

/// What image files are called.
const ENDINGS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// Files of a block, at most: each is a request of its own.
const MAX_FILES: usize = 64;

/// Files of a block that are read at the same time.
const AT_ONCE: usize = 16;

const IMAGE: &str = "image";
const LABEL: &str = "label";
const PATH: &str = "path";

/// The images among listed files, with their classes.
pub(crate) async fn open(store: Store, objects: Vec<Object>, _: ImageFolder, wanted: Wanted) -> Result<Opening> {
    let total = objects.len();
    let objects: Vec<Object> = objects.into_iter().filter(|object| is_image(&object.url)).collect();
    let left_out = total - objects.len();
    if objects.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, format!("none of the {total} files is called like an image"))
            .advice(format!("their names end in {}", ENDINGS.map(|ending| format!(".{ending}")).join(" "))));
    }
    let all = || vec![bytes(IMAGE), int64(LABEL), bytes(PATH)];
    let columns = match &wanted.columns {
        Some(declared) => {
            with_also(declared, &wanted, |name| all().into_iter().find(|column| column.name().as_ref() == name))
        }
        None => all(),
    };
    columns.iter().try_for_each(validate)?;
    // Names of local files are those on the disk, not those in URLs.
    let name = |object: &Object| {
        let local = store.local_path(object).map(|path| path.to_string_lossy().into_owned());
        local.unwrap_or_else(|| object.url.to_string())
    };
    let names: Vec<String> = objects.iter().map(name).collect();
    let root = common_folder(&names);
    let paths: Vec<Arc<str>> = names.iter().map(|name| name[root..].into()).collect();
    let folder: Arc<str> = match objects[0].url.strip_suffix(&*paths[0]) {
        Some(folder) => folder.into(),
        None => names[0][..root].into(),
    };
    let labels = match columns.iter().any(|column| column.name().as_ref() == LABEL) {
        true => labels_of(&paths).map_err(|e| e.url(folder.clone()))?,
        false => vec![0; paths.len()],
    };
    let (rows, bytes) = (objects.len() as u64, objects.iter().map(|object| object.size).sum());
    let target = target_bytes(&wanted, rows, bytes);
    let mut catalog = Catalog::new();
    catalog.push_shard(folder);
    let (mut first, mut held) = (0, 0);
    let row = row_bytes(&columns);
    let mut starts = vec![0];
    for (at, object) in objects.iter().enumerate() {
        held += object.size;
        let files = at + 1 - first;
        if held >= target || files == MAX_FILES || at + 1 == objects.len() {
            catalog.push_block(files as u64, held + files as u64 * row);
            starts.push(at + 1);
            (first, held) = (at + 1, 0);
        }
    }
    let source = Images { store, objects, paths, labels, columns, catalog, starts };
    let notes = match left_out {
        0 => Vec::new(),
        _ => vec![format!("{left_out} of {total} files are not called like images, and were left out")],
    };
    Ok(Opening { opened: Opened::Indexed(Arc::new(source)), notes })
}

/// Whether a file's name ends like an image's.
pub(super) fn is_image(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

/// Bytes of the folder that all files lie in, its slash included.
fn common_folder(names: &[String]) -> usize {
    let Some((first, rest)) = names.split_first() else { return 0 };
    let shared = rest.iter().fold(first.len(), |shared, name| {
        first.bytes().zip(name.bytes()).take(shared).take_while(|(a, b)| a == b).count()
    });
    first.as_bytes()[..shared].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)
}

/// The number of each file's class, by the first part of its path.
fn labels_of(paths: &[Arc<str>]) -> Result<Vec<i64>> {
    let classes: Vec<Option<&str>> = paths.iter().map(|path| path.split_once('/').map(|(class, _)| class)).collect();
    if classes.iter().all(Option::is_none) {
        return Ok(vec![0; paths.len()]);
    }
    if let Some(at) = classes.iter().position(Option::is_none) {
        return Err(Error::new(
            ErrorKind::Schema,
            format!("{} lies beside the folders of classes, in none of them", paths[at]),
        )
        .column(LABEL)
        .advice("move it into one, or do without labels: .columns([bytes(\"image\"), bytes(\"path\")])"));
    }
    let mut sorted: Vec<&str> = classes.iter().copied().flatten().collect();
    sorted.sort_unstable();
    sorted.dedup();
    Ok(classes.iter().flatten().map(|class| sorted.partition_point(|other| other < class) as i64).collect())
}

fn validate(column: &Column) -> Result<()> {
    let numeric = column.dtype() != Dtype::Bytes;
    let plain = *column.shape() == Shape::Scalar && !column.is_raw();
    let advice = match column.name().as_ref() {
        IMAGE | PATH if plain && !numeric => return Ok(()),
        LABEL if plain && numeric => return Ok(()),
        LABEL => "declare int64(\"label\")",
        IMAGE => "declare bytes(\"image\"), and .image(\"image\", ..) decodes it",
        PATH => "declare bytes(\"path\")",
        _ => "a folder of images has bytes(\"image\"), int64(\"label\") and bytes(\"path\")",
    };
    let known = matches!(column.name().as_ref(), IMAGE | LABEL | PATH);
    let message = if known { format!("is not to be had as {column}") } else { "there is no such column".into() };
    Err(Error::new(ErrorKind::Schema, message).column(column.name().clone()).advice(advice))
}

/// Image files.
struct Images {
    store: Store,
    objects: Vec<Object>,
    /// Names below the folder that all lie in.
    paths: Vec<Arc<str>>,
    labels: Vec<i64>,
    columns: Vec<Column>,
    catalog: Catalog,
    /// The first file of each block, and how many there are.
    starts: Vec<usize>,
}

impl Images {
    fn files(&self, block: usize) -> std::ops::Range<usize> {
        self.starts[block]..self.starts[block + 1]
    }
}

impl Source for Images {
    fn name(&self) -> String {
        format!("{} images", self.objects.len())
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn fetch(&self, block: usize) -> Option<BoxFuture<'static, Result<Vec<Bytes>>>> {
        if !self.columns.iter().any(|column| column.name().as_ref() == IMAGE) {
            return None;
        }
        let (store, objects) = (self.store.clone(), self.objects[self.files(block)].to_vec());
        Some(Box::pin(async move {
            let reads = objects.into_iter().map(|object| {
                let store = store.clone();
                async move { store.read(&object, 0..object.size).await }
            });
            stream::iter(reads.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await
        }))
    }

    fn decode(&self, block: usize, fetched: Vec<Bytes>) -> Result<Decoded> {
        let files = self.files(block);
        let mut fetched = Some(fetched);
        let array = |column: &Column| -> Result<ArrayRef> {
            let array: ArrayRef = match column.name().as_ref() {
                LABEL => Arc::new(Int64Array::from_iter_values(self.labels[files.clone()].iter().copied())),
                PATH => {
                    let mut builder = BinaryViewBuilder::with_capacity(files.len());
                    self.paths[files.clone()].iter().for_each(|path| builder.append_value(path.as_bytes()));
                    Arc::new(builder.finish())
                }
                _ => views(fetched.take().unwrap_or_default())?,
            };
            Ok(array)
        };
        let (mut arrays, mut bad) = (Vec::new(), std::collections::BTreeMap::new());
        let found: Vec<ArrayRef> = self.columns.iter().map(array).collect::<Result<_>>()?;
        for (column, array) in self.columns.iter().zip(found) {
            let (array, errors) = carry(&array, column)?;
            arrays.push(array);
            errors.into_iter().for_each(|(row, error)| _ = bad.entry(row).or_insert(error));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(files.len()));
        let rows = RecordBatch::try_new_with_options(arrow_schema(&self.columns), arrays, &options);
        let rows = rows.map_err(|e| Error::new(ErrorKind::Schema, "files do not make their columns").because(e))?;
        let places = RecordPlaces {
            url: self.catalog.shard_name(0).clone(),
            first_record: files.start as u64,
            offset: 0,
            starts: Vec::new(),
            files: self.objects[files].iter().map(|object| object.url.clone()).collect(),
        };
        let bad = bad.into_iter().map(|(row, error)| (row, places.locate(row, error.stage("decode")))).collect();
        let mut decoded = Decoded::with_bad(rows, bad);
        decoded.places = Some(places);
        Ok(decoded)
    }
}

/// Files as views of themselves, without copying them.
fn views(files: Vec<Bytes>) -> Result<ArrayRef> {
    let mut builder = BinaryViewBuilder::with_capacity(files.len());
    for file in files {
        let length =
            u32::try_from(file.len()).map_err(|_| Error::new(ErrorKind::Memory, "an image of 4 GiB or more"))?;
        let block = builder.append_block(Buffer::from(file));
        let viewed = builder.try_append_view(block, 0, length);
        viewed.map_err(|e| Error::new(ErrorKind::Memory, "a file cannot be viewed").because(e))?;
    }
    Ok(Arc::new(builder.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(paths: &[&str]) -> Result<Vec<i64>> {
        labels_of(&paths.iter().map(|path| Arc::from(*path)).collect::<Vec<_>>())
    }

    #[test]
    fn classes_are_numbered_in_the_order_of_their_names() {
        assert_eq!(labels(&["b/1.png", "a/x/2.png", "b/0.png", "c/1.png"]).unwrap(), [1, 0, 1, 2]);
        assert_eq!(labels(&["1.png", "2.png"]).unwrap(), [0, 0]);
        let error = labels(&["a/1.png", "2.png"]).unwrap_err();
        assert!(error.to_string().contains("2.png lies beside"), "{error}");
    }

    #[test]
    fn the_common_folder_ends_at_a_slash() {
        let common = |names: &[&str]| common_folder(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(common(&["/data/cats/1.png", "/data/cars/2.png"]), 6);
        assert_eq!(common(&["/data/cats/1.png"]), 11);
        assert_eq!(common(&["/data/cats/1.png", "/data/cats/1.png.jpg"]), 11);
        assert_eq!(common(&["a", "b"]), 0);
    }
}
