//! Parquet files as a source: row groups are blocks, or runs of their pages where they are large.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, BinaryViewBuilder, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use futures::future::{BoxFuture, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};

use super::carry::{Carrier, Leaf, column_for, in_units_of, inferred, inferred_of_all, leaves};
use super::open::{Opened, Opening, Wanted};
use super::{Decoded, RecordPlaces, Source};
use crate::dataset::bounds::{Bounds, Excludes};
use crate::dataset::expr::Expr;
use crate::error::{Error, ErrorKind, Result};
use crate::format::parquet::prune::{self, Asked, Bloom};
use crate::format::parquet::{
    ColumnScan, Decompressor, Fetched, Footer, FooterReader, Part, Progress, Projection, cut, decode, has_pages,
    ranges, without_pages,
};
use crate::plan::Catalog;
use crate::schema::{Column, Dtype, Value, arrow_schema};
use crate::store::{Object, Store};

thread_local! {
    /// What decompressing keeps from one block to the next.
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::default();
}

/// Decoded bytes of a block, about, where a larger row group can be read in part: large enough that a request costs less than its bytes.
const BLOCK_BYTES: u64 = 16 << 20;

/// Row groups of more bytes than these are looked through for their pages, once when they are opened, where the file has no index of them. Like
/// the sizes above it does not depend on the budget: the order of samples must not.
const SCANNED_BYTES: u64 = 64 << 20;

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
pub(crate) async fn open(store: Store, objects: Vec<Object>, wanted: Wanted) -> Result<Opening> {
    let footers = stream::iter(objects.clone()).map(|object| {
        let store = store.clone();
        async move { read_footer(&store, &object).await.map_err(|e| e.url(object.url.clone()).stage("footer")) }
    });
    let footers: Vec<Footer> = footers.buffered(FOOTERS).try_collect().await?;
    let mut notes = Vec::new();
    let columns = settle_columns(&objects, &footers, &wanted, &mut notes)?;
    let layouts = layouts(&objects, &footers, &columns)?;
    let (layouts, columns) = put_off(&footers, layouts, columns, wanted.is_seen)?;
    let total: u64 = footers.iter().zip(&layouts).map(|(footer, layout)| layout.total_bytes(footer)).sum();
    let target = (total / wanted.min_blocks.max(1)).clamp(SMALLEST_BLOCK_BYTES, BLOCK_BYTES);
    let rows = |footers: &[Footer]| footers.iter().flat_map(whole_groups).map(|part| part.rows.end).sum::<u64>();
    let all = rows(&footers);
    let conditions = Arc::new(Conditions::new(wanted.conditions, &columns));
    let files = objects.into_iter().zip(footers).zip(layouts).map(|((object, footer), layout)| {
        let (store, conditions) = (store.clone(), conditions.clone());
        async move {
            let url = object.url.clone();
            let opened = open_file(&store, object, footer, layout, &conditions, target).await;
            opened.map_err(|e| e.url(url).stage("footer"))
        }
    });
    let files: Vec<_> = files.collect();
    let files: Vec<(File, Vec<Part>)> = stream::iter(files).buffered(FOOTERS).try_collect().await?;
    if !conditions.all.is_empty() {
        let left: u64 = files.iter().flat_map(|(_, kept)| kept).map(|part| part.rows.end - part.rows.start).sum();
        notes.push(format!("of {all} rows {} are not read: statistics rule out that conditions hold", all - left));
    }
    Ok(Opening { opened: Opened::Indexed(Arc::new(Files::new(store, files, columns, target))), notes })
}

/// Settles what is read of one file: where its pages stand, if that is of interest, and the rows that may be wanted.
async fn open_file(
    store: &Store,
    object: Object,
    mut footer: Footer,
    layout: Arc<Layout>,
    conditions: &Conditions,
    target: u64,
) -> Result<(File, Vec<Part>)> {
    let has_conditions = !conditions.all.is_empty();
    // Where pages stand is of interest where a row group is too large for one block, or may be wanted in part.
    if has_conditions || whole_groups(&footer).any(|whole| layout.bytes(&footer, &whole) > 2 * target) {
        footer = read_page_index(store, &object, &footer, has_conditions).await?;
    }
    for whole in whole_groups(&footer).collect::<Vec<_>>() {
        if layout.bytes(&footer, &whole) > SCANNED_BYTES && !has_pages(&footer, &layout.projection, whole.group) {
            footer = scan(store, &object, &footer, &layout, whole.group).await?;
        }
    }
    let kept = conditions.rows(store, &object, &footer).await?;
    let is_local = store.local_path(&object).is_some();
    Ok((File { object, footer, layout, is_local }, kept))
}

/// The row groups that have rows. Writers leave some without, of which there is nothing to be read.
fn whole_groups(footer: &Footer) -> impl Iterator<Item = Part> {
    let groups = footer.metadata().row_groups().iter().enumerate();
    let parts = groups.map(|(group, metadata)| Part { group, rows: 0..metadata.num_rows() as u64 });
    parts.filter(|whole| !whole.rows.is_empty())
}

/// Reads a file's footer alone.
pub(crate) async fn read_footer(store: &Store, object: &Object) -> Result<Footer> {
    let mut reader = FooterReader::new(object.size)?;
    let tail = object.size.saturating_sub(TAIL_BYTES)..object.size;
    reader.supply(tail.clone(), store.read(object, tail).await?)?;
    Footer::new(Arc::new(supplied(store, object, reader).await?), object.size)
}

async fn read_page_index(store: &Store, object: &Object, footer: &Footer, with_bounds: bool) -> Result<Footer> {
    let reader = FooterReader::of_page_index(object.size, footer.metadata(), with_bounds)?;
    Footer::new(Arc::new(supplied(store, object, reader).await?), object.size)
}

/// Finds out where the pages of a row group stand that is too large to be read as a whole, where the file does not say.
async fn scan(store: &Store, object: &Object, footer: &Footer, layout: &Layout, group: usize) -> Result<Footer> {
    let scans = without_pages(footer, &layout.projection, group).into_iter().map(|leaf| {
        let scan = ColumnScan::new(footer, group, leaf);
        async move {
            let Some(mut scan) = scan else { return Ok(None) };
            while let Some(range) = scan.wants() {
                scan.supply(&store.read(object, range).await?)?;
            }
            Ok(Some(((group, leaf), scan.finish()?)))
        }
    });
    let scans: Vec<_> = scans.collect();
    let found: Vec<_> = stream::iter(scans).buffered(FOOTERS).try_collect().await?;
    Ok(footer.clone().with_pages(found.into_iter().flatten()))
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
    let stored = footers.first().map(|footer| leaves(footer.schema())).unwrap_or_default();
    if let Some(declared) = &wanted.columns {
        let mut columns = declared.clone();
        for name in &wanted.also {
            let is_known = columns.iter().any(|column| column.name() == name);
            let found = stored.iter().find(|leaf| !is_known && leaf.name == name.as_ref());
            columns.extend(found.and_then(|leaf| leaf.column().ok()));
        }
        return Ok(in_units_of(columns, footers.iter().map(|footer| leaves(footer.schema()))));
    }
    let url = objects.first().map(|object| object.url.clone()).unwrap_or_default();
    let columns = match wanted.all_columns {
        true => inferred_of_all(&footers.iter().map(|footer| leaves(footer.schema())).collect::<Vec<_>>(), notes),
        false => inferred(&stored, notes),
    };
    columns.map_err(|e| e.url(url).stage("infer"))
}

/// What is read of the files with one schema.
struct Layout {
    stored: Arc<Schema>,
    projection: Projection,
    carrier: Carrier,
    /// Columns that are carried as views of their elements.
    viewed: Vec<usize>,
    /// Bytes that a row takes once more, because its columns are stored in other types.
    converted: u64,
}

impl Layout {
    fn new(footer: &Footer, columns: &[Column]) -> Result<Self> {
        let mut names: Vec<&str> = columns.iter().map(|column| column.name().as_ref()).collect();
        names.extend(columns.iter().filter_map(|column| column.name().strip_suffix(super::carry::MASK)));
        let projection = Projection::new(footer, Some(&names));
        let stored = leaves(projection.schema());
        // What becomes a view of its elements is a list of them before.
        let is_list = |column: &Column| {
            let named = |leaf: &&Leaf| leaf.name == column.name().as_ref();
            stored.iter().find(named).is_some_and(|leaf| matches!(leaf.field.data_type(), DataType::List(_)))
        };
        let viewed: Vec<usize> =
            (0..columns.len()).filter(|&at| columns[at].is_raw() && is_list(&columns[at])).collect();
        let mut columns = columns.to_vec();
        for &at in &viewed {
            let column = &columns[at];
            columns[at] = Column::new(column.name().clone(), column.stored_dtype(), column.shape().clone())
                .or(column.missing().clone());
        }
        // An error that names what is there instead has to know all columns.
        Carrier::new(footer.schema(), Some(&columns))?;
        let carrier = Carrier::new(projection.schema(), Some(&columns))?;
        let same = |column: &Column, leaf: &Leaf| {
            column_for(&leaf.field)
                .is_ok_and(|found| found.dtype() == column.dtype() && found.shape() == column.shape())
                && !matches!(leaf.field.data_type(), DataType::UInt16 | DataType::UInt32 | DataType::UInt64)
        };
        let converted = columns.iter().filter(|column| {
            stored.iter().find(|leaf| leaf.name == column.name().as_ref()).is_some_and(|leaf| !same(column, leaf))
        });
        let converted = converted.map(|column| column.sample_bytes().unwrap_or(16) as u64).sum();
        Ok(Self { stored: footer.schema().clone(), projection, carrier, viewed, converted })
    }

    /// Bytes of a block: what is read of it, and what becomes of that.
    fn bytes(&self, footer: &Footer, part: &Part) -> u64 {
        let (stored, decoded) = self.projection.bytes(footer, part);
        let converted = (part.rows.end - part.rows.start).saturating_mul(self.converted);
        stored.saturating_add(decoded).saturating_add(converted)
    }

    /// The dtype of the numbers that a column of lists is stored as.
    fn numbers_of(&self, column: &Column) -> Option<Dtype> {
        let leaves = leaves(self.projection.schema());
        let leaf = leaves.iter().find(|leaf| leaf.name == column.name().as_ref())?;
        match leaf.field.data_type() {
            DataType::List(item) => {
                Dtype::from_arrow(item.data_type()).filter(|dtype| dtype.size().is_some_and(|size| size > 1))
            }
            _ => None,
        }
    }

    fn total_bytes(&self, footer: &Footer) -> u64 {
        whole_groups(footer).map(|part| self.bytes(footer, &part)).fold(0, u64::saturating_add)
    }
}

/// The layout of each file; files of one schema share it.
fn layouts(objects: &[Object], footers: &[Footer], columns: &[Column]) -> Result<Vec<Arc<Layout>>> {
    let mut layouts: Vec<Arc<Layout>> = Vec::with_capacity(footers.len());
    for (object, footer) in objects.iter().zip(footers) {
        // Most files have the schema of the one before, or of the first.
        let likely = [layouts.last(), layouts.first()].into_iter().flatten();
        let known = likely.into_iter().find(|layout| layout.stored == *footer.schema()).cloned();
        if let Some(known) = known {
            layouts.push(known);
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

/// Bytes of a sample from which on it is carried as a view of where it was decoded: copied once, into the batch.
const VIEWED_BYTES: usize = 64;

/// Columns of fixed extents are carried as they were decoded, where only the batch wants them: they are copied, and widened, when it is laid out.
fn put_off(
    footers: &[Footer],
    layouts: Vec<Arc<Layout>>,
    mut columns: Vec<Column>,
    is_seen: bool,
) -> Result<(Vec<Arc<Layout>>, Vec<Column>)> {
    let stored: Vec<Option<Dtype>> = columns
        .iter()
        .map(|column| {
            let is_large = column.sample_bytes().is_some_and(|bytes| bytes >= VIEWED_BYTES) && !column.is_raw();
            let of_layout = |layout: &Arc<Layout>| layout.numbers_of(column);
            let first = layouts.first().and_then(of_layout)?;
            let alike = layouts.iter().all(|layout| of_layout(layout) == Some(first));
            (!is_seen && is_large && alike && first.widens_to(column.dtype())).then_some(first)
        })
        .collect();
    if stored.iter().all(Option::is_none) {
        return Ok((layouts, columns));
    }
    for (column, stored) in columns.iter_mut().zip(&stored) {
        if let Some(stored) = *stored {
            *column = column.clone().carried_raw(stored);
        }
    }
    let mut changed: Vec<Arc<Layout>> = Vec::with_capacity(layouts.len());
    for (layout, footer) in layouts.iter().zip(footers) {
        let known = changed.last().filter(|known| known.stored == layout.stored).cloned();
        changed.push(match known {
            Some(known) => known,
            None => Arc::new(Layout::new(footer, &columns)?),
        });
    }
    Ok((changed, columns))
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

/// What holds for each row that is wanted.
struct Conditions {
    all: Vec<Arc<Expr>>,
    /// The columns that they speak of.
    asked: Vec<Asked>,
}

impl Conditions {
    fn new(all: Vec<Arc<Expr>>, columns: &[Column]) -> Self {
        let mut names = Vec::new();
        all.iter().for_each(|condition| condition.visit(&mut |name, _| names.push(name.clone())));
        let asked = columns.iter().filter(|column| names.contains(column.name()));
        let asked = asked.map(|column| Asked { name: column.name().clone(), dtype: column.dtype() });
        Self { asked: asked.collect(), all }
    }

    /// The rows of a file that may be wanted.
    async fn rows(&self, store: &Store, object: &Object, footer: &Footer) -> Result<Vec<Part>> {
        let mut kept = Vec::new();
        for whole in whole_groups(footer) {
            if self.all.is_empty() {
                kept.push(whole);
                continue;
            }
            let mut rows = self.possible_rows(footer, whole.group, &HashMap::new());
            let blooms =
                if rows.is_empty() { HashMap::new() } else { self.blooms(store, object, footer, &whole).await? };
            if !blooms.is_empty() {
                rows = self.possible_rows(footer, whole.group, &blooms);
            }
            kept.extend(rows.into_iter().map(|rows| Part { group: whole.group, rows }));
        }
        Ok(kept)
    }

    /// The bloom filters of a row group.
    async fn blooms(
        &self,
        store: &Store,
        object: &Object,
        footer: &Footer,
        whole: &Part,
    ) -> Result<HashMap<&str, Arc<Bloom>>> {
        let mut blooms = HashMap::new();
        for asked in &self.asked {
            let Some(place) = Bloom::place(footer, whole.group, asked) else { continue };
            let bytes = store.read(object, place).await?;
            if let Some(bloom) = Bloom::read(footer, whole.group, asked, &bytes) {
                blooms.insert(asked.name.as_ref(), Arc::new(bloom));
            }
        }
        Ok(blooms)
    }

    fn possible_rows(&self, footer: &Footer, group: usize, blooms: &HashMap<&str, Arc<Bloom>>) -> Vec<Range<u64>> {
        prune::rows(footer, group, &self.asked, &|known| {
            let known = |name: &str| {
                let range = known(name)?;
                let excludes = blooms.get(name).cloned().map(|bloom| {
                    let excludes = move |value: &Value| bloom.excludes(value);
                    Arc::new(excludes) as Excludes
                });
                Some(Bounds { range, excludes })
            };
            self.all.iter().all(|condition| condition.possible(&known).holds)
        })
    }
}

/// Parquet files, cut into blocks.
struct Files {
    store: Store,
    files: Vec<Arc<File>>,
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
    fn new(store: Store, opened: Vec<(File, Vec<Part>)>, columns: Vec<Column>, target: u64) -> Self {
        let (mut catalog, mut blocks, mut files) = (Catalog::new(), Vec::new(), Vec::with_capacity(opened.len()));
        for (number, (file, kept)) in opened.into_iter().enumerate() {
            let File { object, footer, layout, .. } = &file;
            catalog.push_shard(object.url.clone());
            let starts = footer.metadata().row_groups().iter().scan(0, |before, group| {
                let start = *before;
                *before += group.num_rows() as u64;
                Some(start)
            });
            let starts: Vec<u64> = starts.collect();
            for whole in &kept {
                // Row groups of twice the size are still one block: half a block is read no faster.
                let parts = match layout.bytes(footer, whole) {
                    bytes if bytes <= 2 * target => 1,
                    bytes => bytes.div_ceil(target),
                };
                for rows in cut(footer, &layout.projection, whole, parts) {
                    let part = Part { group: whole.group, rows };
                    let first_row = starts[part.group] + part.rows.start;
                    catalog.push_block(part.rows.end - part.rows.start, layout.bytes(footer, &part));
                    blocks.push(Block { file: number as u32, part, first_row });
                }
            }
            files.push(Arc::new(file));
        }
        assert_eq!(catalog.blocks(), blocks.len(), "every block has rows");
        Self { store, files, columns, catalog: catalog.indivisible(), blocks }
    }
}

/// The rows with lists of one length as views of their elements' memory.
fn with_views(rows: &RecordBatch, viewed: &[usize], columns: &[Column]) -> Result<RecordBatch> {
    let mut arrays = rows.columns().to_vec();
    for &at in viewed {
        let list = arrays[at].as_fixed_size_list();
        let length = list.value_length() as usize;
        let values = list.values().slice(list.value_offset(0) as usize, length * list.len()).to_data();
        let width = values.data_type().primitive_width().unwrap_or(1);
        let buffer = values.buffers()[0].slice_with_length(values.offset() * width, values.len() * width);
        let mut views = BinaryViewBuilder::with_capacity(list.len());
        let block = views.append_block(buffer);
        for row in 0..list.len() {
            let too_large = |e| Error::new(ErrorKind::Memory, "a block of 4 GiB or more cannot be viewed").because(e);
            let start = u32::try_from(row * length * width).unwrap_or(u32::MAX);
            views.try_append_view(block, start, (length * width) as u32).map_err(too_large)?;
        }
        arrays[at] = Arc::new(views.finish());
    }
    RecordBatch::try_new(arrow_schema(columns), arrays)
        .map_err(|e| Error::corrupt("columns of a block that do not fit together").because(e))
}

impl File {
    /// What is asked of the store for a block: ranges, ascending, each of which holds whole columns.
    fn requests(&self, part: &Part) -> Vec<Range<u64>> {
        let gap = if self.is_local { 0 } else { GAP_BYTES };
        let ranges = ranges(&self.footer, &self.layout.projection, part);
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
        let (store, file, part) = (self.store.clone(), self.files[*file as usize].clone(), part.clone());
        // Where its pages stand is found out when it is read, not while the run is planned.
        Some(Box::pin(async move {
            let requests = file.requests(&part);
            try_join_all(requests.into_iter().map(|range| store.read(&file.object, range))).await
        }))
    }

    fn decode(&self, block: usize, fetched: Vec<Bytes>) -> Result<Decoded> {
        let Block { file, part, first_row } = &self.blocks[block];
        let file = &self.files[*file as usize];
        let File { object, footer, layout, .. } = &**file;
        let pieces = file.requests(part).into_iter().map(|range| range.start).zip(fetched).collect();
        let fetched = Fetched::new(pieces, object.size);
        let rows = (part.rows.end - part.rows.start) as usize;
        let place = |error: Error| error.url(object.url.clone());
        let arrays = DECOMPRESSOR.with_borrow_mut(|decompressor| {
            decode(footer, &layout.projection, part, &fetched, decompressor).map_err(place)
        })?;
        drop(fetched);
        let carried = layout.carrier.rows_of(rows, |at| arrays.get(at).cloned());
        let (mut rows, bad) = carried.map_err(place)?;
        if !layout.viewed.is_empty() {
            rows = with_views(&rows, &layout.viewed, &self.columns).map_err(place)?;
        }
        let record = |(row, error): (usize, Error)| (row, place(error).record(first_row + row as u64).stage("decode"));
        let bad = bad.into_iter().map(record).collect();
        let mut decoded = Decoded::with_bad(rows, bad);
        let (url, starts) = (object.url.clone(), Vec::new());
        decoded.places = Some(RecordPlaces { url, first_record: *first_row, offset: 0, starts, files: Vec::new() });
        Ok(decoded)
    }
}
