//! Stored Arrow arrays to the arrays that carry columns between stages: what formats with a schema of their own have in common.
//!
//! | stored | carried, unless another dtype is declared |
//! |---|---|
//! | `Int8` `Int16` `Int32` `Int64` `UInt8` | the same |
//! | `UInt16`, `UInt32`, `UInt64` | `i32`, `i64`, `i64` (a value that does not fit makes its row bad) |
//! | `Float16` `Float32` `Float64`, `Boolean` | the same |
//! | decimals | `f64`; the unscaled integer where an integer is declared |
//! | `Date32`, `Date64`, times, timestamps, durations | `i64`, in the unit they are stored in |
//! | `Utf8`, `Binary`, their large and view forms, `FixedSizeBinary` | bytes, as views into the stored buffers |
//! | dictionaries, run ends | their values |
//! | lists of any kind | ragged; lists of lists of fixed size have inner extents |
//! | `FixedSizeList`, also of each other | fixed |
//! | structs | their fields, under dotted names |

mod elements;
mod types;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, FixedSizeListArray, ListArray, NullArray, RecordBatch,
    UInt64Array,
};
use arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer};
use arrow::compute::{cast, nullif, take};
use arrow::datatypes::{DataType, Field, Fields, Schema};

use self::elements::{StandIn, elements, fill, stand_in};
pub(crate) use self::types::column_for;
use self::types::{fits, of_one_name, validate};
pub(super) use self::types::{in_units_of, inferred, inferred_of_all};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Missing, Shape, arrow_schema};

/// Names the mask of a column, behind the column's own name.
pub(super) const MASK: &str = ".is_present";

/// Stored record batches to rows of declared columns.
///
/// A declared column `NAME.is_present` of dtype bool that is not stored is the mask of `NAME`: whether its value is there. With a value for
/// what is missing (`int64("age").or(Missing::Int(-1))`) and a mask, nulls are data instead of errors.
pub(crate) struct Carrier {
    columns: Vec<Column>,
    origins: Vec<Origin>,
}

/// Where a column comes from.
enum Origin {
    Stored(Leaf),
    /// Whether the value of this leaf is there.
    Mask(Leaf),
    /// Not stored, but there is a value for what is missing.
    Absent,
}

/// A field that is no struct, and the way to it through structs.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) name: String,
    pub(crate) field: Arc<Field>,
    pub(crate) path: Vec<usize>,
}

/// The fields of a schema, those of structs under dotted names: `image.bytes` for `image: {bytes, path}`.
pub(crate) fn leaves(schema: &Schema) -> Vec<Leaf> {
    fn visit(fields: &Fields, prefix: &str, path: &mut Vec<usize>, leaves: &mut Vec<Leaf>) {
        for (at, field) in fields.iter().enumerate() {
            path.push(at);
            let name = format!("{prefix}{}", field.name());
            match field.data_type() {
                DataType::Struct(fields) => visit(fields, &format!("{name}."), path, leaves),
                _ => leaves.push(Leaf { name, field: field.clone(), path: path.clone() }),
            }
            path.pop();
        }
    }
    let mut leaves = Vec::new();
    visit(schema.fields(), "", &mut Vec::new(), &mut leaves);
    leaves
}

impl Leaf {
    /// Its values, null where a struct around them is. `top` gives the stored column of a number.
    fn of(&self, top: impl Fn(usize) -> Option<ArrayRef>) -> Result<ArrayRef> {
        let absent = || Error::corrupt("is in the schema, but not in this block").column(self.name.as_str());
        let mut array = self.path.first().and_then(|&at| top(at)).ok_or_else(absent)?;
        let mut nulls: Option<NullBuffer> = None;
        for &at in &self.path[1..] {
            let parent = array.as_struct_opt().ok_or_else(absent)?;
            nulls = NullBuffer::union(nulls.as_ref(), parent.nulls());
            let child = parent.columns().get(at).ok_or_else(absent)?.clone();
            array = child;
        }
        match nulls.filter(|nulls| nulls.null_count() > 0) {
            None => Ok(array),
            // The nulls of run ends are those of their values.
            Some(nulls) => {
                let plain = match array.data_type() {
                    DataType::RunEndEncoded(_, values) => cast(&array, values.data_type()),
                    _ => Ok(array),
                };
                let absent = BooleanArray::new(!nulls.inner(), None);
                plain.and_then(|array| nullif(&array, &absent)).map_err(|e| wrong(e, &self.name))
            }
        }
    }

    /// The column it is carried as where nothing is declared.
    pub(crate) fn column(&self) -> Result<Column> {
        column_for(&Field::new(self.name.as_str(), self.field.data_type().clone(), true))
    }
}

fn wrong(error: arrow::error::ArrowError, name: &str) -> Error {
    Error::new(ErrorKind::Schema, "cannot be carried").because(error).column(name)
}

impl Carrier {
    /// For batches of this schema: the declared columns, or all that are stored.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if a declared column is not stored or cannot become what is declared, or if a stored one cannot be carried.
    pub(crate) fn new(schema: &Schema, declared: Option<&[Column]>) -> Result<Self> {
        let leaves = leaves(schema);
        let Some(declared) = declared else {
            let columns = leaves.iter().map(Leaf::column).collect::<Result<Vec<_>>>()?;
            return Ok(Self { columns, origins: leaves.into_iter().map(Origin::Stored).collect() });
        };
        let named = |name: &str| leaves.iter().find(|leaf| leaf.name == name);
        let origins = declared.iter().map(|column| {
            validate(column)?;
            of_one_name(&leaves, column.name())?;
            let masked = || named(column.name().strip_suffix(MASK)?).filter(|_| is_mask(column));
            match (named(column.name()), masked()) {
                (Some(leaf), _) => {
                    fits(leaf.field.data_type(), column)?;
                    Ok(Origin::Stored(leaf.clone()))
                }
                (None, Some(leaf)) => Ok(Origin::Mask(leaf.clone())),
                (None, None) if *column.missing() != Missing::Error => Ok(Origin::Absent),
                (None, None) => {
                    // A mask that is asked for with its column is no column of the user's.
                    let of = column.name().strip_suffix(MASK).filter(|_| is_mask(column));
                    let of = of.and_then(|of| declared.iter().find(|column| column.name().as_ref() == of));
                    Err(no_such(of.unwrap_or(column), &leaves))
                }
            }
        });
        Ok(Self { origins: origins.collect::<Result<_>>()?, columns: declared.to_vec() })
    }

    /// The columns of the rows.
    #[cfg(test)]
    pub(crate) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The stored columns (by their place at the top of the schema) that are needed, in ascending order.
    pub(crate) fn projection(&self) -> Vec<usize> {
        let leaves = self.origins.iter().filter_map(|origin| match origin {
            Origin::Stored(leaf) | Origin::Mask(leaf) => leaf.path.first().copied(),
            Origin::Absent => None,
        });
        let mut tops: Vec<usize> = leaves.collect();
        tops.sort_unstable();
        tops.dedup();
        tops
    }

    /// The rows of a stored batch with all columns of the schema.
    #[cfg(test)]
    pub(crate) fn rows(&self, batch: &RecordBatch) -> Result<(RecordBatch, Vec<(usize, Error)>)> {
        self.rows_of(batch.num_rows(), |at| batch.columns().get(at).cloned())
    }

    /// The rows of a stored batch that has the columns of [`projection`](Self::projection) alone.
    pub(crate) fn projected_rows(&self, batch: &RecordBatch) -> Result<(RecordBatch, Vec<(usize, Error)>)> {
        let tops = self.projection();
        self.rows_of(batch.num_rows(), |at| Some(batch.columns().get(tops.binary_search(&at).ok()?)?.clone()))
    }

    /// The rows, and in ascending order those that are bad, each with its first error.
    pub(crate) fn rows_of(
        &self,
        rows: usize,
        stored: impl Fn(usize) -> Option<ArrayRef>,
    ) -> Result<(RecordBatch, Vec<(usize, Error)>)> {
        let (mut arrays, mut bad) = (Vec::with_capacity(self.columns.len()), BTreeMap::new());
        for (column, origin) in self.columns.iter().zip(&self.origins) {
            let array = match origin {
                Origin::Stored(leaf) => leaf.of(&stored)?,
                Origin::Mask(leaf) => {
                    let present = match leaf.of(&stored)?.logical_nulls() {
                        Some(nulls) => nulls.into_inner(),
                        None => BooleanBuffer::new_set(rows),
                    };
                    Arc::new(BooleanArray::new(present, None))
                }
                Origin::Absent => Arc::new(NullArray::new(rows)),
            };
            let (array, errors) = carry(&array, column)?;
            arrays.push(array);
            errors.into_iter().for_each(|(row, error)| _ = bad.entry(row).or_insert(error));
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
        let rows = RecordBatch::try_new_with_options(arrow_schema(&self.columns), arrays, &options).map_err(|e| {
            Error::corrupt("columns of a block that do not fit together").because(e).advice("write the shard again")
        })?;
        Ok((rows, bad.into_iter().collect()))
    }
}

fn is_mask(column: &Column) -> bool {
    column.dtype() == Dtype::Bool && *column.shape() == Shape::Scalar && !column.is_raw()
}

/// Names beside a missing one that an error lists.
const LISTED: usize = 40;

fn no_such(column: &Column, leaves: &[Leaf]) -> Error {
    let mut names = leaves.iter().take(LISTED).map(|leaf| leaf.name.as_str()).collect::<Vec<_>>().join(", ");
    if leaves.len() > LISTED {
        names += &format!(" and {} more", leaves.len() - LISTED);
    }
    Error::new(ErrorKind::Schema, format!("there is no such column; there are {names}"))
        .column(column.name().clone())
        .advice("name one of them in .columns(), or declare what stands for it: .optional() or .or(..)")
}

/// Stored values of any type to the array that carries `column`; rows that cannot be are listed in ascending order.
///
/// Where types match and nothing is null, buffers are shared and no element is looked at.
///
/// # Errors
/// [`ErrorKind::Schema`] if the type as a whole cannot become the column.
pub(crate) fn carry(array: &ArrayRef, column: &Column) -> Result<(ArrayRef, Vec<(usize, Error)>)> {
    let stand_in = stand_in(column)?;
    if column.is_raw() {
        return carry_raw(array, column, &stand_in);
    }
    let (layers, leaf) = peel(array).map_err(|e| wrong(e, column.name()))?;
    let nulls = leaf.logical_nulls();
    let (leaf, misfits) = elements(&leaf, column.dtype()).map_err(|e| e.column(column.name().clone()))?;
    let problem = |problem: String| Error::new(ErrorKind::Schema, problem).column(column.name().clone());
    if layers.is_empty() && *column.shape() == Shape::Scalar {
        let mut bad: Vec<_> = misfits.into_iter().map(|(row, why)| (row, problem(why))).collect();
        if leaf.null_count() == 0 {
            return Ok((leaf, bad));
        }
        if *column.missing() == Missing::Error {
            let nulls = absent_rows(&leaf).into_iter().filter(|row| bad.binary_search_by_key(row, |b| b.0).is_err());
            let mut all: Vec<_> = nulls.map(|row| (row, null_value(column))).collect();
            all.append(&mut bad);
            all.sort_by_key(|(row, _)| *row);
            bad = all;
        }
        return Ok((fill(&leaf, column.dtype(), &stand_in)?, bad));
    }
    let found = Found::of(layers, nulls, column.shape());
    let mut bad = Vec::new();
    let mut spans: Vec<Option<Range<usize>>> = Vec::new();
    let whole = found.is_whole() && leaf.null_count() == 0;
    if !whole {
        let nulls = leaf.nulls().filter(|nulls| nulls.null_count() > 0);
        let mut misfits = misfits.into_iter().peekable();
        for row in 0..array.len() {
            let verdict = found.row(row).and_then(|span| {
                let Some((span, nulls)) = span.clone().zip(nulls) else { return Ok(span) };
                while misfits.next_if(|(at, _)| *at < span.start).is_some() {}
                if let Some((_, why)) = misfits.next_if(|(at, _)| *at < span.end) {
                    return Err(problem(why));
                }
                if column.refuses_null_elements() && nulls.slice(span.start, span.len()).null_count() > 0 {
                    return Err(null_within(column));
                }
                Ok(Some(span))
            });
            match verdict {
                Ok(None) if *column.missing() == Missing::Error => bad.push((row, null_value(column))),
                Ok(Some(span)) => {
                    spans.push(Some(span));
                    continue;
                }
                Ok(None) => {}
                Err(error) => bad.push((row, error.column(column.name().clone()))),
            }
            spans.push(None);
        }
    }
    let array = assemble(found, leaf, whole.then_some(array.len()), &spans, column, &stand_in)?;
    Ok((array, bad))
}

/// Byte strings of the one length that holds a raw column's array.
fn carry_raw(array: &ArrayRef, column: &Column, stand_in: &StandIn) -> Result<(ArrayRef, Vec<(usize, Error)>)> {
    let (_, leaf) = peel(array).map_err(|e| wrong(e, column.name()))?;
    let (views, _) = elements(&leaf, Dtype::Bytes).map_err(|e| e.column(column.name().clone()))?;
    let wanted = column.sample_bytes().unwrap_or(0);
    let mut bad = Vec::new();
    let strings: &BinaryViewArray = views.as_binary_view();
    for (row, view) in strings.views().iter().enumerate() {
        // A view's length is its lowest 32 bits.
        let length = *view as u32 as usize;
        if strings.is_null(row) {
            if *column.missing() == Missing::Error {
                bad.push((row, null_value(column)));
            }
        } else if length != wanted {
            let message = format!("{length} bytes, where {}{} takes {wanted}", column.dtype(), column.shape());
            bad.push((row, Error::new(ErrorKind::Schema, message).column(column.name().clone())));
        }
    }
    Ok((fill(&views, Dtype::Bytes, stand_in)?, bad))
}

fn null_value(column: &Column) -> Error {
    let error = Error::new(ErrorKind::Schema, "the value is null").column(column.name().clone());
    error.advice("declare what stands for it: .optional() or .or(..)")
}

fn null_within(column: &Column) -> Error {
    let error = Error::new(ErrorKind::Schema, "an element of the list is null").column(column.name().clone());
    error.advice("declare what stands for it: .optional() or .or(..)")
}

fn absent_rows(array: &ArrayRef) -> Vec<usize> {
    let nulls = array.nulls();
    nulls.map_or_else(Vec::new, |nulls| (0..array.len()).filter(|&row| nulls.is_null(row)).collect())
}

/// Lists around elements, from the outside.
struct Layer {
    bounds: Bounds,
    nulls: Option<NullBuffer>,
}

enum Bounds {
    Fixed(usize),
    /// Offsets into the next layer, and what to take from each.
    Offsets(OffsetBuffer<i32>, usize),
}

impl Layer {
    fn range(&self, at: usize) -> Range<usize> {
        self.start(at)..self.start(at + 1)
    }

    fn start(&self, at: usize) -> usize {
        match &self.bounds {
            Bounds::Fixed(n) => at * n,
            Bounds::Offsets(offsets, base) => offsets[at] as usize - base,
        }
    }

    fn is_null(&self, at: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(at))
    }
}

/// Takes lists off an array, until their elements are left.
fn peel(array: &ArrayRef) -> Result<(Vec<Layer>, ArrayRef), arrow::error::ArrowError> {
    let (mut layers, mut array) = (Vec::new(), array.clone());
    loop {
        let (layer, values) = match array.data_type() {
            DataType::Dictionary(..) => {
                let dictionary = array.as_any_dictionary();
                // Views are gathered without their bytes.
                let values = match elements::is_bytes(dictionary.values().data_type()) {
                    true => elements::views(dictionary.values())?,
                    false => dictionary.values().clone(),
                };
                array = take(&values, dictionary.keys(), None)?;
                continue;
            }
            DataType::RunEndEncoded(_, values) => {
                array = cast(&array, values.data_type())?;
                continue;
            }
            DataType::LargeList(item) | DataType::ListView(item) | DataType::LargeListView(item) => {
                array = cast(&array, &DataType::List(item.clone()))?;
                continue;
            }
            DataType::FixedSizeList(_, n) => {
                let list = array.as_fixed_size_list();
                let layer = Layer { bounds: Bounds::Fixed(*n as usize), nulls: list.nulls().cloned() };
                (layer, list.values().slice(0, array.len() * *n as usize))
            }
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let offsets = list.offsets();
                let (first, last) = (offsets[0] as usize, offsets[array.len()] as usize);
                let bounds = Bounds::Offsets(offsets.clone(), first);
                (Layer { bounds, nulls: list.nulls().cloned() }, list.values().slice(first, last - first))
            }
            _ => return Ok((layers, array)),
        };
        let nulls = layer.nulls.filter(|nulls| nulls.null_count() > 0);
        layers.push(Layer { nulls, ..layer });
        array = values;
    }
}

/// What the lists of a column hold, and what is wanted of them.
struct Found {
    layers: Vec<Layer>,
    /// Extents behind the first of a ragged column, or all.
    extents: Vec<usize>,
    ragged: bool,
}

impl Found {
    fn of(mut layers: Vec<Layer>, nulls: Option<NullBuffer>, shape: &Shape) -> Self {
        if layers.is_empty() {
            let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
            layers.push(Layer { bounds: Bounds::Fixed(1), nulls });
        }
        let (extents, ragged) = match shape {
            Shape::Scalar => (Vec::new(), false),
            Shape::Fixed(extents) => (extents.clone(), false),
            Shape::Ragged(inner) => (inner.clone(), true),
        };
        Self { layers, extents, ragged }
    }

    fn item_elements(&self) -> usize {
        self.extents.iter().product()
    }

    /// Whether every row is good by the types alone, nulls among the elements aside.
    fn is_whole(&self) -> bool {
        let same = |layers: &[Layer], extents: &[usize]| {
            let sizes = layers.iter().map(|layer| if let Bounds::Fixed(n) = layer.bounds { Some(n) } else { None });
            let Some(sizes) = sizes.collect::<Option<Vec<usize>>>() else { return false };
            if sizes.len() == extents.len() {
                sizes == extents
            } else {
                sizes.iter().product::<usize>() == extents.iter().product::<usize>()
            }
        };
        let no_nulls = self.layers.iter().all(|layer| layer.nulls.is_none());
        match self.ragged {
            true => no_nulls && same(&self.layers[1..], &self.extents),
            false => no_nulls && same(&self.layers, &self.extents),
        }
    }

    /// The elements of a row; none where it is null.
    fn row(&self, row: usize) -> Result<Option<Range<usize>>> {
        let wrong = |message: String| Error::new(ErrorKind::Schema, message);
        if self.layers[0].is_null(row) {
            return Ok(None);
        }
        let checked = if self.ragged { &self.layers[1..] } else { &self.layers[..] };
        let each = checked.len() == self.extents.len();
        let mut range = if self.ragged { self.layers[0].range(row) } else { row..row + 1 };
        let items = range.len();
        for (depth, layer) in checked.iter().enumerate() {
            if layer.nulls.is_some() && range.clone().any(|at| layer.is_null(at)) {
                return Err(wrong("a list within is null".into()));
            }
            if each {
                let length = |at: usize| layer.range(at).len();
                if let Some(length) = range.clone().map(length).find(|&length| length != self.extents[depth]) {
                    return Err(wrong(format!("{length} elements, where {} are declared", self.extents[depth])));
                }
            }
            range = layer.start(range.start)..layer.start(range.end);
        }
        let wanted = self.item_elements();
        let whole = match self.ragged {
            true if checked.is_empty() => range.len().is_multiple_of(wanted),
            true => range.len() == items * wanted,
            false => range.len() == wanted,
        };
        if !whole {
            let rows = if self.ragged { "a multiple of " } else { "" };
            return Err(wrong(format!("{} elements, where {rows}{wanted} are declared", range.len())));
        }
        Ok(Some(range))
    }
}

/// Puts the elements of the rows together again. `whole`: all elements, as they are, in so many rows.
fn assemble(
    found: Found,
    leaf: ArrayRef,
    whole: Option<usize>,
    spans: &[Option<Range<usize>>],
    column: &Column,
    stand_in: &StandIn,
) -> Result<ArrayRef> {
    let broken = |e| wrong(e, column.name());
    let (item, rows) = (found.item_elements(), whole.unwrap_or(spans.len()));
    // Rows without elements take none where they may, and null ones where they must.
    let gap = if found.ragged { 0 } else { item };
    let mut ends = vec![0usize];
    let (leaf, shared) = match (whole, found.ragged) {
        (Some(_), false) => (leaf, None),
        (Some(_), true) => {
            let Layer { bounds, .. } = &found.layers[0];
            let offsets = match bounds {
                // Without inner layers, offsets count elements.
                Bounds::Offsets(offsets, 0) if found.layers.len() > 1 || item == 1 => Some(offsets.clone()),
                _ => {
                    (0..rows).for_each(|row| ends.push(found.layers[0].start(row + 1)));
                    None
                }
            };
            (leaf, offsets)
        }
        (None, _) => {
            let contiguous =
                spans.iter().try_fold(0, |at, span| span.clone().filter(|span| span.start == at).map(|span| span.end));
            spans
                .iter()
                .for_each(|span| ends.push(ends[ends.len() - 1] + span.as_ref().map_or(gap, Range::len) / item));
            let leaf = match contiguous == Some(leaf.len()) {
                true => leaf,
                false => {
                    let indices = spans.iter().flat_map(|span| {
                        let (there, absent) = match span {
                            Some(span) => (span.clone(), 0),
                            None => (0..0, gap),
                        };
                        there.map(|at| Some(at as u64)).chain(std::iter::repeat_n(None, absent))
                    });
                    take(&leaf, &UInt64Array::from_iter(indices), None).map_err(broken)?
                }
            };
            (leaf, None)
        }
    };
    let elements = fill(&leaf, column.dtype(), stand_in)?;
    let fixed = |elements: ArrayRef, field: &Arc<Field>| {
        FixedSizeListArray::try_new(field.clone(), item as i32, elements, None).map_err(broken)
    };
    Ok(match (column.arrow_type(), shared) {
        (DataType::FixedSizeList(field, _), _) => Arc::new(fixed(elements, &field)?),
        (DataType::List(field), shared) => {
            let offsets = match shared {
                Some(offsets) => offsets,
                None => {
                    let narrow = ends.iter().map(|&at| i32::try_from(at).ok()).collect::<Option<Vec<i32>>>();
                    let narrow = narrow.ok_or_else(|| {
                        Error::new(ErrorKind::Memory, "a block holds 2^31 elements or more")
                            .column(column.name().clone())
                            .advice("write the shard with smaller blocks")
                    })?;
                    OffsetBuffer::new(narrow.into())
                }
            };
            let items: ArrayRef = match field.data_type() {
                DataType::FixedSizeList(inner, _) => Arc::new(fixed(elements, inner)?),
                _ => elements,
            };
            Arc::new(ListArray::try_new(field, offsets, items, None).map_err(broken)?)
        }
        _ => elements,
    })
}

#[cfg(test)]
mod tests;
