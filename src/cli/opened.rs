//! Opens shards of all formats but TFRecord in the same way as the loader's sources, but one by one, so that a damaged one does not affect the
//! others.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::DataType;
use futures::{StreamExt, stream};

use super::shards::{ShardArgs, Shards};
use super::terminal::{Terminal, Unit};
use crate::dataset::Format;
use crate::engine::Budget;
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Missing, Shape, bytes};
use crate::source::Source;
use crate::source::open::{Index, Opened, Opening, Wanted, open_listed};
use crate::store::Object;

/// The number of shards that are opened at the same time.
const OPENING: usize = 16;

/// The block size to request when only some rows are looked at.
const SMALL_BYTES: u64 = 1 << 20;

/// The suffix that names the mask of a column, after the column's own name.
const MASK: &str = ".is_present";

/// How shards are opened.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) format: Format,
    patterns: Vec<String>,
    index_dir: Option<PathBuf>,
    /// Whether blocks should be small, for a look at some rows.
    small: bool,
}

/// The columns that are read.
pub(super) struct Columns {
    /// The columns as they are stored.
    pub(super) stored: Vec<Column>,
    /// The columns as requested: nulls are not errors, and masks show which they are.
    pub(super) asked: Vec<Column>,
    /// Remarks on them.
    pub(super) notes: Vec<String>,
}

impl Opener {
    pub(super) fn new(format: Format, args: &ShardArgs, index_dir: Option<PathBuf>, small: bool) -> Self {
        Self { format, patterns: args.urls.clone(), index_dir, small }
    }

    /// Returns what is opened together: each shard by itself, but all files of a folder of images.
    pub(super) fn parts(&self, objects: &[Object]) -> Vec<Vec<Object>> {
        match self.format {
            Format::Images(_) => vec![objects.to_vec()],
            _ => objects.iter().map(|object| vec![object.clone()]).collect(),
        }
    }

    /// Opens a part: all of its columns, or the requested ones.
    async fn open(
        self,
        store: crate::store::Store,
        part: Vec<Object>,
        columns: Option<Vec<Column>>,
    ) -> Result<(Arc<dyn Source>, Vec<String>)> {
        let bytes: u64 = part.iter().map(|object| object.size).sum();
        let url = part.first().map(|object| object.url.clone()).unwrap_or_default();
        let wanted = Wanted {
            patterns: self.patterns,
            columns,
            also: Vec::new(),
            is_seen: true,
            conditions: Vec::new(),
            index: Index::Build,
            index_dir: self.index_dir,
            min_blocks: if self.small { bytes.div_ceil(SMALL_BYTES) } else { 1 },
            whole_rows: 0,
            by_rows: false,
            shuffled: false,
            needs_index: Some("looking at blocks".into()),
            arrives: false,
            leave_out: false,
            whole_shards: false,
            all_columns: false,
            max_bytes: usize::try_from(Budget::default().bytes() / 2).unwrap_or(usize::MAX),
        };
        let Opening { opened, notes } = open_listed(store, part, Some(self.format), wanted).await?;
        match opened {
            Opened::Indexed(source) => Ok((source, notes)),
            Opened::Arriving(_) => Err(Error::config("the shard has no index").url(url)),
        }
    }

    /// Returns the columns of the first part that can be opened; `None` if every part is damaged.
    ///
    /// # Errors
    /// Faults of the build or the arguments, as opposed to those of a shard.
    pub(super) fn settle(&self, shards: &Shards, parts: &[Vec<Object>]) -> Result<Option<Columns>> {
        for part in parts {
            let open = |columns| shards.io.wait(self.clone().open(shards.store.clone(), part.clone(), columns));
            let mut opened = open(None);
            if matches!(&opened, Err(error) if error.kind() == ErrorKind::Schema)
                && matches!(self.format, Format::Images(_))
            {
                // Files beside the folders of classes have no label, and are images all the same.
                opened = open(Some(vec![bytes("image"), bytes("path")]));
            }
            match opened {
                Ok((source, notes)) => return Ok(Some(self.columns(source.columns(), notes))),
                Err(error) if matches!(error.kind(), ErrorKind::Config | ErrorKind::Memory) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    fn columns(&self, stored: &[Column], notes: Vec<String>) -> Columns {
        let has_masks = !matches!(self.format, Format::Tar(_) | Format::Images(_));
        let settled = |column: &Column| match column.missing() {
            // A loader takes no list with nulls in it.
            Missing::Error if has_masks => column.clone().optional().with_whole_lists(),
            _ => column.clone(),
        };
        let mut asked: Vec<Column> = stored.iter().map(settled).collect();
        if has_masks {
            let mask = |column: &Column| format!("{}{MASK}", column.name());
            let is_free = |name: &String| stored.iter().all(|column| column.name().as_ref() != name);
            let masks = stored.iter().map(mask).filter(is_free);
            asked.extend(masks.map(|name| Column::new(name, Dtype::Bool, Shape::Scalar)));
        }
        Columns { stored: stored.to_vec(), asked, notes }
    }

    /// Opens all parts, several at the same time; returns each opened part or its error.
    pub(super) fn open_all(
        &self,
        shards: &Shards,
        parts: Vec<Vec<Object>>,
        columns: Option<&Columns>,
        terminal: &Terminal,
    ) -> Result<Vec<Result<Arc<dyn Source>>>> {
        let bar = terminal.progress("opening", parts.len() as u64, Unit::Things);
        let (store, opener, counting) = (shards.store.clone(), self.clone(), bar.clone());
        let asked = columns.map(|columns| columns.asked.clone());
        let opened = shards.io.wait(async move {
            let open = |part: Vec<Object>| {
                let url = part.first().map(|object| object.url.clone()).unwrap_or_default();
                let opening = opener.clone().open(store.clone(), part, asked.clone());
                let bar = counting.clone();
                async move {
                    let opened = opening.await.map(|(source, _)| source);
                    bar.inc(1);
                    opened.map_err(|error| if error.place().url.is_none() { error.url(url) } else { error })
                }
            };
            Ok(stream::iter(parts).map(open).buffered(OPENING).collect::<Vec<_>>().await)
        })?;
        bar.finish_and_clear();
        Ok(opened)
    }
}

/// Returns whether an error says that the data is bad, as opposed to unreadable.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Schema | ErrorKind::Panicked)
}

/// A column of a block, and which of its rows have a value.
pub(super) struct Cells {
    pub(super) array: ArrayRef,
    mask: Option<BooleanArray>,
    /// Whether, without a mask, an empty byte string counts as a missing value.
    optional: bool,
}

impl Cells {
    pub(super) fn of(rows: &RecordBatch, column: &Column) -> Option<Self> {
        let array = rows.column_by_name(column.name())?.clone();
        let mask = rows.column_by_name(&format!("{}{MASK}", column.name()));
        let mask = mask.and_then(|mask| mask.as_boolean_opt()).cloned();
        Some(Self { array, mask, optional: *column.missing() != Missing::Error })
    }

    pub(super) fn is_present(&self, row: usize) -> bool {
        match &self.mask {
            Some(mask) => mask.value(row),
            None if self.optional => self.array.as_binary_view_opt().is_none_or(|values| !values.value(row).is_empty()),
            None => true,
        }
    }

    /// Returns the elements of a row's value: the array that holds them, and their range in it.
    pub(super) fn elements(&self, row: usize) -> (&ArrayRef, std::ops::Range<usize>) {
        let (mut array, mut range) = (&self.array, row..row + 1);
        loop {
            match array.data_type() {
                DataType::FixedSizeList(_, length) => {
                    let (list, length) = (array.as_fixed_size_list(), *length as usize);
                    let first = range.start * length;
                    range = first..first + range.len() * length;
                    array = list.values();
                }
                DataType::List(_) => {
                    let list = array.as_list::<i32>();
                    let offsets = list.value_offsets();
                    range = offsets[range.start] as usize..offsets[range.end] as usize;
                    array = list.values();
                }
                _ => return (array, range),
            }
        }
    }

    /// Returns the byte strings of a row's value; none if it has no value or holds something else.
    pub(super) fn strings(&self, row: usize) -> Vec<&[u8]> {
        let (array, range) = self.elements(row);
        match array.as_binary_view_opt() {
            Some(values) if self.is_present(row) => range.map(|at| values.value(at)).collect(),
            _ => Vec::new(),
        }
    }
}
