//! Determines which rows of a row group can meet a condition, from statistics, Bloom filters and page indexes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::bloom_filter::Sbbf;
use parquet::data_type::ByteArray;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnDescriptor;

use super::footer::{Footer, PageRows};
use crate::schema::{Dtype, Value};

/// The minimum and the maximum of a column in some rows.
pub(crate) type Bounds = (Value, Value);

/// What is known of a column in some rows, none of which is null: the bounds, if they are known.
pub(crate) type Known = Option<Bounds>;

/// Returns what is known of a column; `None` if it may hold nulls.
pub(crate) type OfColumn<'a> = dyn Fn(&str) -> Option<Known> + 'a;

/// A column that a condition mentions.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) name: Arc<str>,
    /// The dtype in which its values are carried.
    pub(crate) dtype: Dtype,
}

/// Finds the column of the file that holds an asked column, provided that its values are carried in the order in which they are stored.
fn leaf_of(footer: &Footer, asked: &Asked) -> Option<usize> {
    let descr = footer.metadata().file_metadata().schema_descr();
    let columns = descr.columns();
    let leaf =
        columns.iter().position(|column| column.path().string() == *asked.name && column.max_rep_level() == 0)?;
    is_ordered(&columns[leaf], asked.dtype).then_some(leaf)
}

fn is_ordered(column: &ColumnDescriptor, carried: Dtype) -> bool {
    let unsigned = matches!(column.converted_type(), ConvertedType::UINT_32 | ConvertedType::UINT_64)
        || matches!(column.logical_type_ref(), Some(LogicalType::Integer(int)) if int.bit_width >= 32 && !int.is_signed);
    let decimal = column.converted_type() == ConvertedType::DECIMAL
        || matches!(column.logical_type_ref(), Some(LogicalType::Decimal { .. }));
    match (column.physical_type(), carried) {
        (_, Dtype::F16) => false,
        (Physical::BOOLEAN, carried) => carried == Dtype::Bool,
        (Physical::INT32 | Physical::INT64, carried) => !unsigned && !decimal && carried != Dtype::Bytes,
        (Physical::FLOAT | Physical::DOUBLE, carried) => matches!(carried, Dtype::F32 | Dtype::F64),
        (Physical::BYTE_ARRAY, carried) => !decimal && carried == Dtype::Bytes,
        _ => false,
    }
}

/// Rounds a bound as values are rounded; rounding keeps their order.
fn carried(bound: Value, dtype: Dtype) -> Value {
    match (bound, dtype) {
        (Value::Int(value), Dtype::F64) => Value::Float(value as f64),
        (Value::Int(value), Dtype::F32) => Value::Float(f64::from(value as f32)),
        (Value::Float(value), Dtype::F32) => Value::Float(f64::from(value as f32)),
        (bound, _) => bound,
    }
}

/// Returns what is known of a column chunk; `None` if it may hold nulls.
fn of_chunk(chunk: &ColumnChunkMetaData, dtype: Dtype) -> Option<Known> {
    let statistics = chunk.statistics();
    let nulls = statistics.and_then(Statistics::null_count_opt);
    let no_nulls = chunk.column_descr().max_def_level() == 0 || nulls == Some(0);
    no_nulls.then(|| statistics.and_then(|statistics| bounds(statistics, dtype)))
}

fn bounds(statistics: &Statistics, dtype: Dtype) -> Option<Bounds> {
    let (least, most) = match statistics {
        Statistics::Boolean(s) => (Value::Bool(*s.min_opt()?), Value::Bool(*s.max_opt()?)),
        Statistics::Int32(s) => (Value::Int((*s.min_opt()?).into()), Value::Int((*s.max_opt()?).into())),
        Statistics::Int64(s) => (Value::Int(*s.min_opt()?), Value::Int(*s.max_opt()?)),
        Statistics::Float(s) => floats((*s.min_opt()?).into(), (*s.max_opt()?).into())?,
        Statistics::Double(s) => floats(*s.min_opt()?, *s.max_opt()?)?,
        // The statistics of old writers compare bytes as signed ones.
        Statistics::ByteArray(s) if !statistics.is_min_max_deprecated() => {
            (Value::Bytes(s.min_opt()?.data().to_vec()), Value::Bytes(s.max_opt()?.data().to_vec()))
        }
        _ => return None,
    };
    Some((carried(least, dtype), carried(most, dtype)))
}

fn floats(least: f64, most: f64) -> Option<Bounds> {
    (!least.is_nan() && !most.is_nan()).then_some((Value::Float(least), Value::Float(most)))
}

/// Returns what is known of a page; `None` if it may hold nulls.
fn of_page(index: &ColumnIndexMetaData, page: usize, dtype: Dtype, nullable: bool) -> Option<Known> {
    // An index that is not there has no pages to be asked about.
    let is_there = !matches!(index, ColumnIndexMetaData::NONE) && (page as u64) < index.num_pages();
    let nulls = nullable && (!is_there || index.is_null_page(page) || index.null_count(page) != Some(0));
    (!nulls).then(|| if is_there && !index.is_null_page(page) { page_bounds(index, page, dtype) } else { None })
}

fn page_bounds(index: &ColumnIndexMetaData, page: usize, dtype: Dtype) -> Option<Bounds> {
    let (least, most) = match index {
        ColumnIndexMetaData::BOOLEAN(i) => (Value::Bool(*i.min_value(page)?), Value::Bool(*i.max_value(page)?)),
        ColumnIndexMetaData::INT32(i) => {
            (Value::Int((*i.min_value(page)?).into()), Value::Int((*i.max_value(page)?).into()))
        }
        ColumnIndexMetaData::INT64(i) => (Value::Int(*i.min_value(page)?), Value::Int(*i.max_value(page)?)),
        ColumnIndexMetaData::FLOAT(i) => floats((*i.min_value(page)?).into(), (*i.max_value(page)?).into())?,
        ColumnIndexMetaData::DOUBLE(i) => floats(*i.min_value(page)?, *i.max_value(page)?)?,
        ColumnIndexMetaData::BYTE_ARRAY(i) => {
            (Value::Bytes(i.min_value(page)?.to_vec()), Value::Bytes(i.max_value(page)?.to_vec()))
        }
        _ => return None,
    };
    Some((carried(least, dtype), carried(most, dtype)))
}

/// A Bloom filter of the values in a column of a row group.
#[derive(Clone, Debug)]
pub(crate) struct Bloom {
    filter: Sbbf,
    stored: Physical,
}

impl Bloom {
    /// Returns where the filter of a column of a row group is, if there is one.
    pub(crate) fn place(footer: &Footer, group: usize, asked: &Asked) -> Option<Range<u64>> {
        let chunk = footer.metadata().row_group(group).column(leaf_of(footer, asked)?);
        let start = u64::try_from(chunk.bloom_filter_offset()?).ok()?;
        let end = start.checked_add(u64::try_from(chunk.bloom_filter_length()?).ok()?)?;
        (end <= footer.file_bytes()).then_some(start..end)
    }

    /// Reads the filter in these bytes; returns `None` if it cannot be read.
    pub(crate) fn read(footer: &Footer, group: usize, asked: &Asked, bytes: &[u8]) -> Option<Self> {
        let chunk = footer.metadata().row_group(group).column(leaf_of(footer, asked)?);
        let filter = super::caught(|| Ok(Sbbf::from_bytes(bytes).ok())).ok()??;
        Some(Self { filter, stored: chunk.column_type() })
    }

    /// Returns whether the column certainly does not hold the value.
    pub(crate) fn excludes(&self, value: &Value) -> bool {
        match (self.stored, value) {
            (Physical::INT32, Value::Int(value)) => i32::try_from(*value).is_ok_and(|value| !self.filter.check(&value)),
            (Physical::INT64, Value::Int(value)) => !self.filter.check(value),
            (Physical::BYTE_ARRAY, Value::Bytes(value)) => !self.filter.check(&ByteArray::from(value.clone())),
            _ => false,
        }
    }
}

/// The pages of an asked column, and what the file records of their values.
struct AskedPages<'a> {
    dtype: Dtype,
    nullable: bool,
    rows: Arc<Vec<PageRows>>,
    index: &'a ColumnIndexMetaData,
}

/// Returns the rows of a row group that may be wanted according to `possible`. It calls `possible` with what is known of each asked column, first for
/// the row group as a whole, then for each run of rows between page boundaries.
pub(crate) fn rows(
    footer: &Footer,
    group: usize,
    asked: &[Asked],
    possible: &dyn Fn(&OfColumn<'_>) -> bool,
) -> Vec<Range<u64>> {
    let metadata = footer.metadata();
    let all = 0..metadata.row_group(group).num_rows() as u64;
    let leaves: HashMap<&str, (usize, Dtype)> = asked
        .iter()
        .filter_map(|asked| leaf_of(footer, asked).map(|leaf| (asked.name.as_ref(), (leaf, asked.dtype))))
        .collect();
    let in_chunk = |name: &str| {
        let &(leaf, dtype) = leaves.get(name)?;
        of_chunk(metadata.row_group(group).column(leaf), dtype)
    };
    if all.is_empty() || !possible(&in_chunk) {
        return Vec::new();
    }
    // Pages of each column, with what the index knows of them.
    let pages: HashMap<&str, AskedPages<'_>> = leaves
        .iter()
        .filter_map(|(&name, &(leaf, dtype))| {
            let rows = footer.pages(group, leaf)?;
            let index = metadata.column_index()?.get(group)?.get(leaf)?;
            let nullable = metadata.row_group(group).column(leaf).column_descr().max_def_level() > 0;
            Some((name, AskedPages { dtype, nullable, rows, index }))
        })
        .collect();
    if pages.is_empty() {
        return vec![all];
    }
    let mut cuts: Vec<u64> = pages.values().flat_map(|pages| pages.rows.iter().map(|page| page.rows.start)).collect();
    cuts.push(all.end);
    cuts.sort_unstable();
    cuts.dedup();
    let mut wanted: Vec<Range<u64>> = Vec::new();
    for run in cuts.windows(2).map(|pair| pair[0]..pair[1]) {
        let of_run = |name: &str| match pages.get(name) {
            Some(AskedPages { dtype, nullable, rows, index }) => {
                let page = rows.partition_point(|page| page.rows.start <= run.start) - 1;
                of_page(index, page, *dtype, *nullable)
            }
            None => in_chunk(name),
        };
        if possible(&of_run) {
            match wanted.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => wanted.push(run),
            }
        }
    }
    wanted
}
