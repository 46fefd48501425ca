//! Columns that are already in memory.

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use bytes::Bytes;

use super::{Decoded, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Catalog;
use crate::schema::Column;

/// Rows of a block: a slice that costs nothing to make, small enough to mix and large enough to find quickly.
const BLOCK_ROWS: usize = 8192;

/// Arrow arrays as a source.
pub(crate) struct Memory {
    rows: RecordBatch,
    columns: Vec<Column>,
    catalog: Catalog,
}

impl Memory {
    pub(crate) fn new(columns: Vec<(String, ArrayRef)>) -> Result<Self> {
        let (mut arrays, mut declared) = (Vec::new(), Vec::new());
        for (name, array) in columns {
            let array = to_view(array)
                .map_err(|e| Error::new(ErrorKind::Schema, "cannot be carried").because(e).column(name.as_str()))?;
            if array.null_count() > 0 {
                return Err(Error::new(
                    ErrorKind::Schema,
                    format!("{} of {} values are null", array.null_count(), array.len()),
                )
                .column(name.as_str())
                .advice("fill them before the data set is made"));
            }
            let field = arrow::datatypes::Field::new(name.as_str(), array.data_type().clone(), false);
            declared.push(Column::from_arrow(&field)?);
            arrays.push(array);
        }
        let rows = RecordBatch::try_new(crate::schema::arrow_schema(&declared), arrays).map_err(|e| {
            Error::new(ErrorKind::Schema, "columns that do not fit together")
                .because(e)
                .advice("give arrays of equal length, without null values")
        })?;
        let mut catalog = Catalog::new();
        catalog.push_shard("memory");
        for start in (0..rows.num_rows()).step_by(BLOCK_ROWS) {
            // No bytes: the arrays are the caller's memory, and slices of them take none.
            catalog.push_block((rows.num_rows() - start).min(BLOCK_ROWS) as u64, 0);
        }
        Ok(Self { rows, columns: declared, catalog })
    }
}

/// Byte strings and text are carried as views.
fn to_view(array: ArrayRef) -> Result<ArrayRef, arrow::error::ArrowError> {
    match array.data_type() {
        DataType::Binary | DataType::LargeBinary => cast(&array, &DataType::BinaryView),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            cast(&cast(&array, &DataType::Binary)?, &DataType::BinaryView)
        }
        // No tensor holds these, and the next larger dtype holds all their values: token ids are stored as u16.
        DataType::UInt16 => cast(&array, &DataType::Int32),
        DataType::UInt32 => cast(&array, &DataType::Int64),
        DataType::List(item) if *item.data_type() == DataType::UInt16 => cast(&array, &list_of(DataType::Int32)),
        DataType::List(item) if *item.data_type() == DataType::UInt32 => cast(&array, &list_of(DataType::Int64)),
        DataType::LargeList(item) => to_view(cast(&array, &DataType::List(non_null(item)))?),
        // Fields of list items are declared without nulls; a cast that only changes the field is free.
        DataType::List(item) => cast(&array, &DataType::List(non_null(item))),
        DataType::FixedSizeList(item, n) => cast(&array, &DataType::FixedSizeList(non_null(item), *n)),
        _ => Ok(array),
    }
}

fn list_of(element: DataType) -> DataType {
    DataType::List(std::sync::Arc::new(arrow::datatypes::Field::new_list_field(element, false)))
}

fn non_null(item: &arrow::datatypes::FieldRef) -> arrow::datatypes::FieldRef {
    std::sync::Arc::new(arrow::datatypes::Field::new_list_field(item.data_type().clone(), false))
}

impl Source for Memory {
    fn name(&self) -> String {
        format!("memory of {} rows", self.rows.num_rows())
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn decode(&self, block: usize, _fetched: Vec<Bytes>) -> Result<Decoded> {
        let (start, rows) = (self.catalog.block_start(block), self.catalog.block_rows(block));
        Ok(Decoded::good(self.rows.slice(start as usize, rows as usize)))
    }
}
