//! Parquet files as a source: row groups are blocks, or runs of their pages where they are large.

use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use futures::future::{BoxFuture, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};

use super::carry::{Carrier, Leaf, column_for, leaves};
use super::open::{Opened, Opening, Wanted};
use super::{Decoded, RecordPlaces, Source};
use crate::dataset::files::Parquet;
use crate::error::{Error, ErrorKind, Result};
use crate::format::parquet::{
    Decompressor, Fetched, Footer, FooterReader, Part, Progress, Projection, cut, decode, ranges,
};
use crate::plan::Catalog;
use crate::schema::{Column, Dtype};
use crate::store::{Object, Store};

/// Decoded bytes of a block, about, where a larger row group can be read in part: large enough that a request costs less than its bytes.
const BLOCK_BYTES: u64 = 16 << 20;

/// The smallest part of a row group, however finely a shuffle would like to mix.
const SMALLEST_BLOCK_BYTES: u64 = 1 << 20;

/// What is read of the end of a file at first: a footer is seldom longer.
const TAIL_BYTES: u64 = 128 << 10;

/// Columns of a remote file that lie no further apart are read with one request: so many bytes take less time than another request.
const GAP_BYTES: u64 = 32 << 10;

/// Columns are not joined to longer requests: those of a block run at the same time.
const REQUEST_BYTES: u64 = 8 << 20;

/// Footers that are read at the same time.
const FOOTERS: usize = 16;

/// Reads the footers and settles columns and blocks.
pub(crate) async fn open(store: Store, objects: Vec<Object>, options: Parquet, wanted: Wanted) -> Result<Opening> {
    let footers = stream::iter(objects.clone()).map(|object| {
        let store = store.clone();
        async move { read_footer(&store, &object).await.map_err(|e| e.url(object.url.clone()).stage("footer")) }
    });
    let mut footers: Vec<Footer> = footers.buffered(FOOTERS).try_collect().await?;
    let mut notes = Vec::new();
    let columns = settle_columns(&objects, &footers, &wanted, &mut notes)?;
    let layouts = layouts(&objects, &footers, &columns)?;
    let total: u64 = footers.iter().zip(&layouts).map(|(footer, layout)| layout.total_bytes(footer)).sum();
    let target = (total / wanted.min_blocks.max(1)).clamp(SMALLEST_BLOCK_BYTES, BLOCK_BYTES);
    for ((object, footer), layout) in objects.iter().zip(&mut footers).zip(&layouts) {
        // Where pages stand is of interest where a row group is too large for one block.
        if whole_groups(footer).any(|part| layout.bytes(footer, &part) > 2 * target) {
            let indexed = read_page_index(&store, object, footer).await;
            *footer = indexed.map_err(|e| e.url(object.url.clone()).stage("footer"))?;
        }
    }
    let files = Files::new(store, objects, footers, layouts, columns, options, target);
    Ok(Opening { opened: Opened::Indexed(Arc::new(files)), notes })
}

fn whole_groups(footer: &Footer) -> impl Iterator<Item = Part> {
    let groups = footer.metadata().row_groups().iter().enumerate();
    groups.map(|(group, metadata)| Part { group, rows: 0..metadata.num_rows() as u64 })
}

async fn read_footer(store: &Store, object: &Object) -> Result<Footer> {
    let mut reader = FooterReader::new(object.size)?;
    let tail = object.size.saturating_sub(TAIL_BYTES)..object.size;
    reader.supply(tail.clone(), store.read(object, tail).await?)?;
    Footer::new(Arc::new(supplied(store, object, reader).await?), object.size)
}

async fn read_page_index(store: &Store, object: &Object, footer: &Footer) -> Result<Footer> {
    let reader = FooterReader::of_page_index(object.size, footer.metadata())?;
    Footer::new(Arc::new(supplied(store, object, reader).await?), object.size)
}

/// Reads what the reader wants until it is done.
async fn supplied(
    store: &Store,
    object: &Object,
    mut reader: FooterReader,
) -> Result<parquet::file::metadata::ParquetMetaData> {
    loop {
        match reader.next()? {
            Progress::Done(metadata) => return Ok(*metadata),
            Progress::Wants(ranges) => {
                for range in ranges {
                    reader.supply(range.clone(), store.read(object, range).await?)?;
                }
            }
        }
    }
}

/// The declared columns, or those of the first file that can be carried.
fn settle_columns(
    objects: &[Object],
    footers: &[Footer],
    wanted: &Wanted,
    notes: &mut Vec<String>,
) -> Result<Vec<Column>> {
    if let Some(columns) = &wanted.columns {
        return Ok(columns.clone());
    }
    let stored = footers.first().map(|footer| leaves(footer.schema())).unwrap_or_default();
    let (mut columns, mut left_out) = (Vec::new(), Vec::new());
    for leaf in &stored {
        match leaf.column() {
            Ok(column) => columns.push(column),
            Err(_) => left_out.push(format!("{} ({})", leaf.name, leaf.field.data_type())),
        }
    }
    if columns.is_empty() {
        let url = objects.first().map(|object| object.url.clone()).unwrap_or_default();
        return Err(Error::new(ErrorKind::Schema, "no column can become a tensor")
            .url(url)
            .advice("look at the file with `forebay inspect`"));
    }
    if !left_out.is_empty() {
        notes.push(format!("columns that no tensor can hold were left out: {}", left_out.join(", ")));
    }
    Ok(columns)
}

/// What is read of the files with one schema.
struct Layout {
    stored: Arc<Schema>,
    projection: Projection,
    carrier: Carrier,
    /// Bytes that a row takes once more, because its columns are stored in other types.
    converted: u64,
}

impl Layout {
    fn new(footer: &Footer, columns: &[Column]) -> Result<Self> {
        let mut names: Vec<&str> = columns.iter().map(|column| column.name().as_ref()).collect();
        names.extend(columns.iter().filter_map(|column| column.name().strip_suffix(super::carry::MASK)));
        let projection = Projection::new(footer, Some(&names));
        let carrier = Carrier::new(projection.schema(), Some(columns))?;
        let stored = leaves(projection.schema());
        let same = |column: &Column, leaf: &Leaf| {
            column_for(&leaf.field)
                .is_ok_and(|found| found.dtype() == column.dtype() && found.shape() == column.shape())
                && !matches!(leaf.field.data_type(), DataType::UInt16 | DataType::UInt32 | DataType::UInt64)
        };
        let converted = columns.iter().filter(|column| {
            stored.iter().find(|leaf| leaf.name == column.name().as_ref()).is_some_and(|leaf| !same(column, leaf))
        });
        let converted = converted.map(|column| column.sample_bytes().unwrap_or(16) as u64).sum();
        Ok(Self { stored: footer.schema().clone(), projection, carrier, converted })
    }

    /// Bytes of a block: what is read of it, and what becomes of that.
    fn bytes(&self, footer: &Footer, part: &Part) -> u64 {
        let (stored, decoded) = self.projection.bytes(footer, part);
        let converted = (part.rows.end - part.rows.start).saturating_mul(self.converted);
        stored.saturating_add(decoded).saturating_add(converted)
    }

    fn total_bytes(&self, footer: &Footer) -> u64 {
        whole_groups(footer).map(|part| self.bytes(footer, &part)).fold(0, u64::saturating_add)
    }
}

/// The layout of each file; files of one schema share it.
fn layouts(objects: &[Object], footers: &[Footer], columns: &[Column]) -> Result<Vec<Arc<Layout>>> {
    let mut layouts: Vec<Arc<Layout>> = Vec::with_capacity(footers.len());
    for (object, footer) in objects.iter().zip(footers) {
        let known = layouts.last().or(layouts.first()).filter(|layout| layout.stored == *footer.schema());
        if let Some(known) = known {
            layouts.push(known.clone());
            continue;
        }
        let layout = Layout::new(footer, columns).map_err(|error| {
            let error = error.url(object.url.clone()).stage("schema");
            match (layouts.first(), objects.first()) {
                (Some(first), Some(other)) => error.advice(format!(
                    "its schema is {}, and that of {} is {}: convert them to one, or open them apart",
                    described(footer.schema()),
                    other.url,
                    described(&first.stored)
                )),
                _ => error,
            }
        })?;
        if let Some(first) = layouts.first() {
            check_drift(&first.stored, footer.schema(), columns).map_err(|error| {
                error.url(object.url.clone()).stage("schema").advice(format!(
                    "declare the column with .columns(), as one dtype for all; {} has {}",
                    objects[0].url,
                    described(&first.stored)
                ))
            })?;
        }
        layouts.push(Arc::new(layout));
    }
    Ok(layouts)
}

/// Of columns that nobody declared, each file must have the same.
fn check_drift(first: &Schema, other: &Schema, columns: &[Column]) -> Result<()> {
    let (first, other) = (leaves(first), leaves(other));
    let described =
        |leaves: &[Leaf], name: &str| leaves.iter().find(|leaf| leaf.name == name).and_then(|leaf| leaf.column().ok());
    for column in columns {
        let (a, b) = (described(&first, column.name()), described(&other, column.name()));
        if let (Some(a), Some(b)) = (a, b)
            && a == *column
            && (a.dtype() != b.dtype() || a.shape() != b.shape())
            // Numbers that become the declared dtype without loss are no drift.
            && !(a.dtype() == Dtype::F64 || a.dtype() == Dtype::I64)
        {
            return Err(Error::new(ErrorKind::Schema, format!("`{b}` in this file, `{a}` in the first"))
                .column(column.name().clone()));
        }
    }
    Ok(())
}

/// A schema in a line.
fn described(schema: &Schema) -> String {
    let fields = leaves(schema).into_iter().map(|leaf| format!("{}: {}", leaf.name, leaf.field.data_type()));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
}

/// Parquet files, cut into blocks.
struct Files {
    store: Store,
    files: Vec<File>,
    columns: Vec<Column>,
    catalog: Catalog,
    blocks: Vec<Block>,
}

struct File {
    object: Object,
    footer: Footer,
    layout: Arc<Layout>,
    is_local: bool,
}

/// A block: which file, and what of it.
struct Block {
    file: u32,
    part: Part,
    /// Its first row in the file.
    first_row: u64,
}

impl Files {
    fn new(
        store: Store,
        objects: Vec<Object>,
        footers: Vec<Footer>,
        layouts: Vec<Arc<Layout>>,
        columns: Vec<Column>,
        _options: Parquet,
        target: u64,
    ) -> Self {
        let (mut catalog, mut blocks) = (Catalog::new(), Vec::new());
        let files = objects.into_iter().zip(footers).zip(layouts).map(|((object, footer), layout)| {
            let is_local = store.local_path(&object).is_some();
            File { object, footer, layout, is_local }
        });
        let files: Vec<File> = files.collect();
        for (number, File { object, footer, layout, .. }) in files.iter().enumerate() {
            catalog.push_shard(object.url.clone());
            let mut before = 0;
            for whole in whole_groups(footer) {
                let bytes = layout.bytes(footer, &whole);
                for rows in cut(footer, &layout.projection, &whole, bytes.div_ceil(target)) {
                    let part = Part { group: whole.group, rows };
                    let first_row = before + part.rows.start;
                    catalog.push_block(part.rows.end - part.rows.start, layout.bytes(footer, &part));
                    blocks.push(Block { file: number as u32, part, first_row });
                }
                before += whole.rows.end;
            }
        }
        Self { store, files, columns, catalog: catalog.indivisible(), blocks }
    }
}

/// What is asked of a store for some ranges of a file, ascending: each lies within one request.
fn requests(ranges: Vec<Range<u64>>, is_local: bool) -> Vec<Range<u64>> {
    let gap = if is_local { 0 } else { GAP_BYTES };
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end + gap && range.end - last.start <= REQUEST_BYTES => {
                last.end = range.end;
            }
            _ => joined.push(range),
        }
    }
    joined
}

impl Source for Files {
    fn name(&self) -> String {
        format!("{} Parquet files", self.files.len())
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn fetch(&self, block: usize) -> Option<BoxFuture<'static, Result<Vec<Bytes>>>> {
        let Block { file, part, .. } = &self.blocks[block];
        let File { object, footer, layout, is_local } = &self.files[*file as usize];
        let (store, object) = (self.store.clone(), object.clone());
        let requests = requests(ranges(footer, &layout.projection, part), *is_local);
        Some(Box::pin(async move { try_join_all(requests.into_iter().map(|range| store.read(&object, range))).await }))
    }

    fn decode(&self, block: usize, fetched: Vec<Bytes>) -> Result<Decoded> {
        let Block { file, part, first_row } = &self.blocks[block];
        let File { object, footer, layout, is_local } = &self.files[*file as usize];
        let requests = requests(ranges(footer, &layout.projection, part), *is_local);
        let pieces = requests.into_iter().map(|range| range.start).zip(fetched).collect();
        let fetched = Fetched::new(pieces, object.size);
        let rows = (part.rows.end - part.rows.start) as usize;
        let place = |error: Error| error.url(object.url.clone());
        let arrays = decode(footer, &layout.projection, part, &fetched, &mut Decompressor::default()).map_err(place)?;
        drop(fetched);
        let carried = layout.carrier.rows_of(rows, |at| arrays.get(at).cloned());
        let (rows, bad) = carried.map_err(place)?;
        let record = |(row, error): (usize, Error)| (row, place(error).record(first_row + row as u64).stage("decode"));
        let bad = bad.into_iter().map(record).collect();
        let mut decoded = Decoded::with_bad(rows, bad);
        let (url, starts) = (object.url.clone(), Vec::new());
        decoded.places = Some(RecordPlaces { url, first_record: *first_row, offset: 0, starts });
        Ok(decoded)
    }
}
