//! Stored types and columns: which column a type becomes, and whether it can become the one that is declared.

use arrow::datatypes::{DataType, Field};
use std::collections::{HashMap, HashSet};

use super::Leaf;
use super::elements::{self, castable, stand_in};
use crate::error::{Error, ErrorKind, Result};
use crate::schema::{Column, Dtype, Shape, Unit};

/// Elements of one sample, at most: a batch's offsets are 31 bits wide.
const MAX_ELEMENTS: usize = i32::MAX as usize / 8;

/// The column that a stored field becomes where nothing is declared; a null is an error.
///
/// # Errors
/// [`ErrorKind::Schema`] for types that no tensor can hold: maps, unions, intervals, lists of structs, lists of lists that vary in length.
pub(crate) fn column_for(field: &Field) -> Result<Column> {
    let name = field.name().as_str();
    let (dtype, shape) = described(field.data_type()).ok_or_else(|| {
        Error::new(ErrorKind::Schema, format!("Arrow type {} has no tensor dtype", field.data_type()))
            .column(name)
            .advice("name the columns to read, without this one: .columns([..])")
    })?;
    let column = Column::new(name, dtype, shape).in_unit(unit_of(field.data_type()));
    validate(&column)?;
    Ok(column)
}

/// What the numbers of a type count; time zones do not change what is stored. None where there are no numbers.
fn unit_of(data_type: &DataType) -> Option<Unit> {
    use DataType::*;
    match leaf_of(data_type) {
        Timestamp(unit, _) => Some(Unit::Time(Timestamp(*unit, None))),
        time if time.is_temporal() => Some(Unit::Time(time.clone())),
        Decimal32(_, scale) | Decimal64(_, scale) | Decimal128(_, scale) | Decimal256(_, scale) => {
            Some(Unit::Decimal(*scale))
        }
        Null => None,
        leaf if elements::is_bytes(leaf) => None,
        _ => Some(Unit::Plain),
    }
}

/// The type within lists, dictionaries and run ends.
fn leaf_of(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => leaf_of(values),
        DataType::RunEndEncoded(_, values) => leaf_of(values.data_type()),
        other => list_item(other).map_or(other, leaf_of),
    }
}

/// The type of a list's elements.
fn list_item(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::FixedSizeList(item, _)
        | DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => Some(item.data_type()),
        _ => None,
    }
}

/// Declared columns, of which those of integers hold all shards to what the first that has them counts.
pub(in crate::source) fn in_units_of(
    mut columns: Vec<Column>,
    shards: impl IntoIterator<Item = Vec<Leaf>>,
) -> Vec<Column> {
    let is_open = |column: &Column| column.unit().is_none() && column.dtype().is_int() && !column.is_raw();
    for leaves in shards {
        for column in columns.iter_mut().filter(|column| is_open(column)) {
            let leaf = leaves.iter().find(|leaf| leaf.name == column.name().as_ref());
            *column = column.clone().in_unit(leaf.and_then(|leaf| unit_of(leaf.field.data_type())));
        }
        if !columns.iter().any(is_open) {
            break;
        }
    }
    columns
}

fn described(data_type: &DataType) -> Option<(Dtype, Shape)> {
    Some(match data_type {
        DataType::Dictionary(_, values) => described(values)?,
        DataType::RunEndEncoded(_, values) => described(values.data_type())?,
        DataType::FixedSizeList(item, n) => {
            let n = usize::try_from(*n).ok()?;
            match described(item.data_type())? {
                (dtype, Shape::Scalar) => (dtype, Shape::Fixed(vec![n])),
                (dtype, Shape::Fixed(extents)) => (dtype, Shape::Fixed([vec![n], extents].concat())),
                (_, Shape::Ragged(_)) => return None,
            }
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::ListView(item) | DataType::LargeListView(item) => {
            match described(item.data_type())? {
                (dtype, Shape::Scalar) => (dtype, Shape::Ragged(Vec::new())),
                (dtype, Shape::Fixed(extents)) => (dtype, Shape::Ragged(extents)),
                (_, Shape::Ragged(_)) => return None,
            }
        }
        leaf => (elements::default_dtype(leaf)?, Shape::Scalar),
    })
}

/// Whether a name is that of one stored field at most: nobody could say which of them is meant.
pub(super) fn of_one_name(leaves: &[Leaf], name: &str) -> Result<()> {
    match leaves.iter().filter(|leaf| leaf.name == name).count() {
        0 | 1 => Ok(()),
        several => Err(Error::new(ErrorKind::Schema, format!("{several} stored columns have this name"))
            .column(name)
            .advice("name the columns to read, without this one: .columns([..])")),
    }
}

/// The columns of stored fields where none are declared: all that can be carried. A note names the others.
///
/// # Errors
/// [`ErrorKind::Schema`] if there is none, or if two have one name.
pub(in crate::source) fn inferred(stored: &[Leaf], notes: &mut Vec<String>) -> Result<Vec<Column>> {
    let (mut columns, mut left_out) = (Vec::new(), Vec::new());
    for leaf in stored {
        match leaf.column() {
            Ok(column) => {
                of_one_name(stored, column.name())?;
                columns.push(column);
            }
            Err(_) => left_out.push(format!("{} ({})", leaf.name, refused(leaf.field.data_type()))),
        }
    }
    if columns.is_empty() {
        if left_out.is_empty() {
            return Err(Error::new(ErrorKind::Schema, "the shard stores no column"));
        }
        let message = format!("no column can become a tensor: {}", left_out.join(", "));
        return Err(Error::new(ErrorKind::Schema, message).advice(
            "declare them with .columns() where their types allow it, or write scalars, bytes, or lists of those",
        ));
    }
    if !left_out.is_empty() {
        notes.push(format!("columns that no tensor can hold were left out: {}", left_out.join(", ")));
    }
    Ok(columns)
}

/// The columns of shards of these schemas, each as the first shard that has it stores it; those that are not in all of them are optional.
///
/// # Errors
/// See [`inferred`].
pub(in crate::source) fn inferred_of_all(schemas: &[Vec<Leaf>], notes: &mut Vec<String>) -> Result<Vec<Column>> {
    let (mut stored, mut shards) = (Vec::<Leaf>::new(), HashMap::<&str, usize>::new());
    for leaves in schemas {
        for leaf in leaves {
            if !shards.contains_key(leaf.name.as_str()) {
                stored.push(leaf.clone());
                continue;
            }
            // A shard that has nothing but nulls says nothing of what others have.
            let is_empty = |known: &&mut Leaf| *leaf_of(known.field.data_type()) == DataType::Null;
            if let Some(known) = stored.iter_mut().filter(is_empty).find(|known| known.name == leaf.name) {
                known.clone_from(leaf);
            }
        }
        let names: HashSet<&str> = leaves.iter().map(|leaf| leaf.name.as_str()).collect();
        names.into_iter().for_each(|name| *shards.entry(name).or_default() += 1);
    }
    let is_everywhere = |column: &Column| shards.get(column.name().as_ref()) == Some(&schemas.len());
    let columns = inferred(&stored, notes)?.into_iter();
    Ok(columns.map(|column| if is_everywhere(&column) { column } else { column.optional() }).collect())
}

/// A type that no tensor can hold, and why.
fn refused(data_type: &DataType) -> String {
    let why = match (list_item(data_type), leaf_of(data_type)) {
        (_, DataType::Null) => "nothing but nulls",
        (Some(_), DataType::Struct(_)) => "a list of structs",
        (Some(item), leaf) if list_item(item).is_some() && elements::default_dtype(leaf).is_some() => {
            "lists within lists may vary in length: declare .fixed(..)"
        }
        _ => return data_type.to_string(),
    };
    format!("{data_type}: {why}")
}

/// Whether a column can be declared at all.
pub(super) fn validate(column: &Column) -> Result<()> {
    let wrong = |message: String| Error::config(message).column(column.name().clone());
    let (Shape::Fixed(extents) | Shape::Ragged(extents)) = column.shape() else {
        return stand_in(column).map(|_| ());
    };
    let count = extents.iter().try_fold(1usize, |count, &extent| count.checked_mul(extent));
    if !count.is_some_and(|count| count > 0 && count <= MAX_ELEMENTS) {
        return Err(wrong(format!("shape {} has no elements, or too many", column.shape())));
    }
    if column.is_sequence() {
        return Err(wrong("is a feature list of tf.SequenceExamples, which this format does not hold".into())
            .advice("declare it with .ragged(), without .in_sequence()"));
    }
    if column.is_raw() && (column.dtype() == Dtype::Bytes || matches!(column.shape(), Shape::Ragged(_))) {
        return Err(wrong("a raw column has a numeric dtype and fixed extents".into()));
    }
    stand_in(column).map(|_| ())
}

/// Whether a stored type can become a declared column.
pub(super) fn fits(stored: &DataType, column: &Column) -> Result<()> {
    let (mut layers, mut fixed, mut leaf) = (0, Some(1usize), stored);
    loop {
        leaf = match leaf {
            DataType::Dictionary(_, values) => values,
            DataType::RunEndEncoded(_, values) => values.data_type(),
            DataType::FixedSizeList(item, n) => {
                fixed = fixed.and_then(|count| count.checked_mul(usize::try_from(*n).ok()?));
                layers += 1;
                item.data_type()
            }
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::ListView(item)
            | DataType::LargeListView(item) => {
                (fixed, layers) = (None, layers + 1);
                item.data_type()
            }
            _ => break,
        }
    }
    let dtype = if column.is_raw() { Dtype::Bytes } else { column.dtype() };
    let (deepest, elements) = match column.shape() {
        _ if column.is_raw() => (0, None),
        Shape::Scalar => (1, Some(1)),
        Shape::Fixed(extents) => (extents.len().max(1), column.shape().elements()),
        Shape::Ragged(inner) => (1 + inner.len().max(1), None),
    };
    let sizes_differ = elements.zip(fixed).is_some_and(|(wanted, stored)| wanted != stored) && layers > 0;
    if castable(leaf, dtype) && layers <= deepest && !sizes_differ {
        return in_unit(stored, column);
    }
    let declared = if column.is_raw() { "raw bytes".into() } else { format!("{dtype}{}", column.shape()) };
    let error = Error::new(ErrorKind::Schema, format!("is stored as {stored} and declared as {declared}"));
    let advice = match column_for(&Field::new("", stored.clone(), true)) {
        Ok(found) => format!("declare it as {}{}", found.dtype(), found.shape()),
        Err(_) => "leave it out of .columns()".into(),
    };
    Err(error.column(column.name().clone()).advice(advice))
}

/// Whether integers count what those of the first shard do.
fn in_unit(stored: &DataType, column: &Column) -> Result<()> {
    let is_counted = column.dtype().is_int() && !column.is_raw();
    let units = column.unit().zip(unit_of(stored)).filter(|(wanted, found)| is_counted && *wanted != found);
    let Some((wanted, found)) = units else { return Ok(()) };
    Err(Error::new(ErrorKind::Schema, format!("holds {found}, and {wanted} in the first shard that has it"))
        .column(column.name().clone())
        .advice("write the column with one type and unit in all shards, or open them apart"))
}
