//! What user functions receive and produce: a row's context, its values, and a writer for new ones.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewBuilder, BooleanArray, FixedSizeListArray, ListArray, PrimitiveArray,
    RecordBatch,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field};

use crate::error::{Error, ErrorKind, Result};
use crate::random::{Key, Rng};
use crate::schema::{Column, Dtype, Element, Shape};

pub(crate) type MapFn = dyn Fn(&Context, Row<'_>, &mut RowWriter<'_>) -> Result<()> + Send + Sync;
pub(crate) type MapBatchFn = dyn Fn(&[Context], &RecordBatch) -> Result<RecordBatch> + Send + Sync;
pub(crate) type FilterFn = dyn Fn(&Context, Row<'_>) -> Result<bool> + Send + Sync;
pub(crate) type FlatMapFn = dyn Fn(&Context, Row<'_>, &mut RowsWriter<'_>) -> Result<()> + Send + Sync;

/// Says which sample a function works on, and gives it its own random numbers.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub(crate) key: Key,
    pub(crate) sample: u64,
    pub(crate) epoch: u64,
}

impl Context {
    /// Returns the sample id: the row's number in the data set.
    pub fn sample(&self) -> u64 {
        self.sample
    }

    /// Returns the epoch that the loader is in.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns a random generator keyed by (seed, sample, how often it was drawn before, the function's name). Each call restarts the generator.
    pub fn rng(&self) -> Rng {
        self.key.rng()
    }
}

/// One row, read by column name.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub(crate) rows: &'a RecordBatch,
    pub(crate) index: usize,
}

impl<'a> Row<'a> {
    fn column(&self, name: &str) -> Result<&'a ArrayRef> {
        self.rows.column_by_name(name).ok_or_else(|| {
            let names: Vec<_> = self.rows.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
            Error::config(format!("no column {name:?}; these exist: {}", names.join(", ")))
        })
    }

    fn mismatch(&self, name: &str, wanted: &str) -> Error {
        let found = self.column(name).map_or_else(|_| String::new(), |column| column.data_type().to_string());
        Error::config(format!("asked for {wanted}, the column holds {found}")).column(name)
    }

    /// Returns the value of a scalar column.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no such column or it holds another type: a mistake in the function, not a bad record.
    pub fn get<T: Element>(&self, name: &str) -> Result<T> {
        let column = self.column(name)?;
        let column =
            column.as_primitive_opt::<T::Arrow>().ok_or_else(|| self.mismatch(name, std::any::type_name::<T>()))?;
        Ok(column.value(self.index))
    }

    /// Returns the values of a fixed or ragged column, in row-major order. Booleans are packed into bits: for them see [`bools`](Self::bools).
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no such column or it holds another type: a mistake in the function, not a bad record.
    pub fn values<T: Element>(&self, name: &str) -> Result<&'a [T]> {
        let mismatch = || self.mismatch(name, &format!("a list of {}", std::any::type_name::<T>()));
        let (range, items) = self.list(name)?.ok_or_else(mismatch)?;
        let items = items.as_primitive_opt::<T::Arrow>().ok_or_else(mismatch)?;
        Ok(&items.values()[range])
    }

    /// Returns the booleans of a fixed or ragged column, in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no such column or it holds another type: a mistake in the function, not a bad record.
    pub fn bools(&self, name: &str) -> Result<Vec<bool>> {
        let mismatch = || self.mismatch(name, "a list of bool");
        let (range, items) = self.list(name)?.ok_or_else(mismatch)?;
        let items = items.as_boolean_opt().ok_or_else(mismatch)?;
        Ok(range.map(|at| items.value(at)).collect())
    }

    /// Returns this row's part of a list column's innermost elements; `None` if the column is not a list.
    fn list(&self, name: &str) -> Result<Option<(Range<usize>, &'a ArrayRef)>> {
        let column = self.column(name)?;
        let (start, end, items) = match column.data_type() {
            DataType::List(_) => {
                let list = column.as_list::<i32>();
                let offsets = list.value_offsets();
                (offsets[self.index] as usize, offsets[self.index + 1] as usize, list.values())
            }
            DataType::FixedSizeList(_, _) => {
                let list = column.as_fixed_size_list();
                let start = list.value_offset(self.index) as usize;
                (start, start + list.value_length() as usize, list.values())
            }
            _ => return Ok(None),
        };
        Ok(Some(match items.as_fixed_size_list_opt() {
            Some(inner) => {
                let scale = inner.value_length() as usize;
                (start * scale..end * scale, inner.values())
            }
            None => (start..end, items),
        }))
    }

    /// Returns the byte string of a column of bytes (or of a raw one, as stored).
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no such column or it holds another type: a mistake in the function, not a bad record.
    pub fn bytes(&self, name: &str) -> Result<&'a [u8]> {
        let column = self.column(name)?.as_binary_view_opt().ok_or_else(|| self.mismatch(name, "bytes"))?;
        Ok(column.value(self.index))
    }

    /// Returns the value of a boolean column.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if there is no such column or it holds another type: a mistake in the function, not a bad record.
    pub fn bool(&self, name: &str) -> Result<bool> {
        let column = self.column(name)?.as_boolean_opt().ok_or_else(|| self.mismatch(name, "bool"))?;
        Ok(column.value(self.index))
    }
}

/// Takes the columns that a [`map`](crate::Dataset::map) computes. Every declared column must be set in every row.
pub struct RowWriter<'a> {
    columns: &'a mut [OutputColumn],
}

impl RowWriter<'_> {
    fn column(&mut self, name: &str) -> Result<&mut OutputColumn> {
        let at = self.columns.iter().position(|c| c.column.name().as_ref() == name).ok_or_else(|| {
            let names: Vec<_> = self.columns.iter().map(|c| c.column.name().as_ref()).collect();
            Error::config(format!("{name:?} is not among the declared outputs {}", names.join(", ")))
        })?;
        Ok(&mut self.columns[at])
    }

    /// Sets a scalar column.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the column is not declared, is declared with another dtype, or was already set in this row. [`ErrorKind::Transform`], a bad
    /// record, if it was declared with another shape.
    pub fn set<T: Element>(&mut self, name: &str, value: T) -> Result<()> {
        self.set_values(name, &[value])
    }

    /// Sets a scalar, fixed or ragged column to these elements, in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the column is not declared, is declared with another dtype, or was already set in this row. [`ErrorKind::Transform`], a bad
    /// record, if it was declared with another number of elements.
    pub fn set_values<T: Element>(&mut self, name: &str, values: &[T]) -> Result<()> {
        let column = self.column(name)?;
        if column.column.dtype() != T::DTYPE || column.column.is_raw() {
            return Err(Error::config(format!("set to {}, declared {}", T::DTYPE, column.column)).column(name));
        }
        column.push(values.len(), bytemuck::cast_slice(values))
    }

    /// Sets a scalar boolean column.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_bool(&mut self, name: &str, value: bool) -> Result<()> {
        self.set_bools(name, &[value])
    }

    /// Sets a scalar, fixed or ragged boolean column, in row-major order.
    ///
    /// # Errors
    /// As [`set_values`](Self::set_values).
    pub fn set_bools(&mut self, name: &str, values: &[bool]) -> Result<()> {
        let column = self.column(name)?;
        if column.column.dtype() != Dtype::Bool || column.column.is_raw() {
            return Err(Error::config(format!("set to bool, declared {}", column.column)).column(name));
        }
        column.push(values.len(), bytemuck::cast_slice(values))
    }

    /// Sets a column of bytes (for a raw column, to the memory of its array).
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the column is not declared as bytes, or was already set in this row.
    pub fn set_bytes(&mut self, name: &str, value: &[u8]) -> Result<()> {
        let column = self.column(name)?;
        let raw = column.column.is_raw();
        if column.column.dtype() != Dtype::Bytes && !raw {
            return Err(Error::config(format!("set to bytes, declared {}", column.column)).column(name));
        }
        if raw && column.column.sample_bytes() != Some(value.len()) {
            return Err(Error::new(
                ErrorKind::Transform,
                format!("set to {} bytes, declared {}", value.len(), column.column),
            )
            .column(name));
        }
        column.push(1, value)
    }
}

impl std::fmt::Debug for RowWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.columns.iter().map(|output| &output.column)).finish()
    }
}

/// Takes the rows that a [`flat_map`](crate::Dataset::flat_map) makes of one row.
pub struct RowsWriter<'a> {
    columns: &'a mut [OutputColumn],
    rows: usize,
}

impl RowsWriter<'_> {
    /// Adds a row, whose columns the closure `set` sets.
    ///
    /// # Errors
    /// The error that `set` returns, or a declared column that it did not set. The row is not added then.
    pub fn push(&mut self, set: impl FnOnce(&mut RowWriter<'_>) -> Result<()>) -> Result<()> {
        let mut begun = Begun::new(self.columns);
        set(&mut RowWriter { columns: begun.columns })?;
        begun.columns.iter_mut().try_for_each(OutputColumn::next_row)?;
        begun.is_whole = true;
        self.rows += 1;
        Ok(())
    }
}

impl std::fmt::Debug for RowsWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns: Vec<_> = self.columns.iter().map(|output| &output.column).collect();
        f.debug_struct("RowsWriter").field("columns", &columns).field("rows", &self.rows).finish()
    }
}

/// Rows being written. If writing ends before they are complete, even by a panic, nothing of them remains.
struct Begun<'a> {
    columns: &'a mut [OutputColumn],
    rows_before: usize,
    is_whole: bool,
}

impl<'a> Begun<'a> {
    fn new(columns: &'a mut [OutputColumn]) -> Self {
        let rows_before = columns.first().map_or(0, |column| column.ends.len());
        Self { columns, rows_before, is_whole: false }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            self.columns.iter_mut().for_each(|column| column.undo(self.rows_before));
        }
    }
}

/// A column under construction.
struct OutputColumn {
    column: Column,
    /// Elements in native byte order, or byte strings end to end.
    data: Vec<u8>,
    /// Elements (or bytes) before each row, and the total.
    ends: Vec<usize>,
    is_set: bool,
}

impl OutputColumn {
    fn push(&mut self, elements: usize, data: &[u8]) -> Result<()> {
        let name = self.column.name().clone();
        if self.is_set {
            return Err(Error::config("set twice in one row").column(name));
        }
        let fits = match self.column.shape() {
            Shape::Ragged(inner) => elements.is_multiple_of(inner.iter().product::<usize>().max(1)),
            _ if self.column.is_raw() => true,
            shape => shape.elements() == Some(elements),
        };
        if !fits {
            let shape = self.column.shape();
            return Err(
                Error::new(ErrorKind::Transform, format!("set to {elements} elements, declared {shape}")).column(name)
            );
        }
        self.data.extend_from_slice(data);
        self.is_set = true;
        Ok(())
    }

    fn next_row(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_set) {
            return Err(Error::new(ErrorKind::Transform, "declared as an output, but not set")
                .column(self.column.name().clone()));
        }
        self.ends.push(self.data.len());
        Ok(())
    }

    /// Drops everything after the first `rows` rows.
    fn undo(&mut self, rows: usize) {
        self.is_set = false;
        self.ends.truncate(rows);
        self.data.truncate(self.ends.last().copied().unwrap_or(0));
    }

    fn finish(self) -> Result<ArrayRef> {
        let Self { column, data, ends, .. } = self;
        if column.dtype() == Dtype::Bytes || column.is_raw() {
            if !matches!(column.shape(), Shape::Scalar) && !column.is_raw() {
                return Err(
                    Error::new(ErrorKind::Transform, "lists of bytes cannot be computed").column(column.name().clone())
                );
            }
            let mut builder = BinaryViewBuilder::with_capacity(ends.len());
            let mut start = 0;
            for end in ends {
                builder.append_value(&data[start..end]);
                start = end;
            }
            return Ok(Arc::new(builder.finish()));
        }
        let size = column.dtype().size().expect("not bytes");
        let items = elements(column.dtype(), &data);
        let item = |array: &ArrayRef| Arc::new(Field::new_list_field(array.data_type().clone(), false));
        let fixed = |items: ArrayRef, extents: &[usize]| -> Result<ArrayRef> {
            let length = extents.iter().product::<usize>() as i32;
            let field = item(&items);
            let list = FixedSizeListArray::try_new(field, length, items, None);
            Ok(Arc::new(list.map_err(|e| Error::new(ErrorKind::Transform, "not a fixed list").because(e))?))
        };
        match column.shape() {
            Shape::Scalar => Ok(items),
            Shape::Fixed(extents) => fixed(items, extents),
            Shape::Ragged(inner) => {
                let per_row = inner.iter().product::<usize>().max(1) * size;
                let items = if inner.is_empty() { items } else { fixed(items, inner)? };
                let ends = std::iter::once(0).chain(ends).map(|end| i32::try_from(end / per_row));
                let ends: Vec<i32> = ends.collect::<Result<_, _>>().map_err(|_| {
                    Error::new(ErrorKind::Transform, "2^31 or more elements in one chunk of rows")
                        .column(column.name().clone())
                })?;
                Ok(Arc::new(ListArray::new(item(&items), OffsetBuffer::new(ScalarBuffer::from(ends)), items, None)))
            }
        }
    }
}

/// An array of elements from their memory.
fn elements(dtype: Dtype, data: &[u8]) -> ArrayRef {
    fn typed<T: Element>(data: &[u8]) -> ArrayRef {
        let values: Vec<T> = bytemuck::pod_collect_to_vec(data);
        Arc::new(PrimitiveArray::<T::Arrow>::new(ScalarBuffer::from(values), None))
    }
    match dtype {
        Dtype::U8 => typed::<u8>(data),
        Dtype::I8 => typed::<i8>(data),
        Dtype::I16 => typed::<i16>(data),
        Dtype::I32 => typed::<i32>(data),
        Dtype::I64 => typed::<i64>(data),
        Dtype::F16 => typed::<half::f16>(data),
        Dtype::F32 => typed::<f32>(data),
        Dtype::F64 => typed::<f64>(data),
        Dtype::Bool => Arc::new(BooleanArray::from_iter(data.iter().map(|&byte| Some(byte != 0)))),
        Dtype::Bytes => unreachable!("byte strings have their own arrays"),
    }
}

/// Columns being computed for a chunk of rows.
pub(crate) struct Outputs {
    columns: Vec<OutputColumn>,
}

impl Outputs {
    pub(crate) fn new(columns: &[Column]) -> Self {
        let column = |column: &Column| OutputColumn {
            column: column.clone(),
            data: Vec::new(),
            ends: Vec::new(),
            is_set: false,
        };
        Self { columns: columns.iter().map(column).collect() }
    }

    /// Lets `f` write one row.
    pub(crate) fn one(&mut self, f: impl FnOnce(&mut RowWriter<'_>) -> Result<()>) -> Result<()> {
        let written = self.many(|rows| rows.push(f));
        written.map(|_| ())
    }

    /// Lets `f` write any number of rows and returns how many. After an error or a panic, none of them remains.
    pub(crate) fn many(&mut self, f: impl FnOnce(&mut RowsWriter<'_>) -> Result<()>) -> Result<usize> {
        let mut begun = Begun::new(&mut self.columns);
        let mut writer = RowsWriter { columns: begun.columns, rows: 0 };
        f(&mut writer)?;
        let rows = writer.rows;
        begun.is_whole = true;
        Ok(rows)
    }

    /// The arrays, by column name.
    pub(crate) fn finish(self) -> Result<Vec<(Column, ArrayRef)>> {
        self.columns.into_iter().map(|output| Ok((output.column.clone(), output.finish()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bytes, float32, int64};

    #[test]
    fn what_is_written_is_read_back() {
        let columns = [
            int64("n"),
            float32("v").fixed([2]),
            float32("r").ragged(),
            bytes("b"),
            Column::new("m", Dtype::I32, Shape::Ragged(vec![2])),
        ];
        let mut outputs = Outputs::new(&columns);
        for i in 0..3usize {
            let row = outputs.one(|out| {
                out.set("n", i as i64)?;
                out.set_values("v", &[i as f32, 0.5])?;
                out.set_values("r", &vec![1.5f32; i])?;
                out.set_values("m", &vec![7i32; 2 * i])?;
                out.set_bytes("b", format!("a string of more than twelve bytes, number {i}").as_bytes())
            });
            row.unwrap();
        }
        let rows = RecordBatch::try_new(
            crate::schema::arrow_schema(&columns),
            outputs.finish().unwrap().into_iter().map(|c| c.1).collect(),
        );
        let rows = rows.unwrap();
        let row = Row { rows: &rows, index: 2 };
        assert_eq!(row.get::<i64>("n").unwrap(), 2);
        assert_eq!(row.values::<f32>("v").unwrap(), [2.0, 0.5]);
        assert_eq!(row.values::<f32>("r").unwrap(), [1.5, 1.5]);
        assert_eq!(row.values::<i32>("m").unwrap(), [7, 7, 7, 7]);
        assert!(row.bytes("b").unwrap().ends_with(b"number 2"));
        assert!(row.get::<i32>("n").unwrap_err().to_string().contains("Int64"));
        assert!(row.get::<i32>("x").unwrap_err().to_string().contains("these exist: n, v, r, b, m"));
    }

    #[test]
    fn a_row_with_an_error_leaves_nothing_behind() {
        let mut outputs = Outputs::new(&[int64("a"), int64("b")]);
        outputs.one(|out| out.set("a", 1i64).and_then(|()| out.set("b", 2i64))).unwrap();
        assert!(outputs.one(|out| out.set("a", 3i64)).unwrap_err().to_string().contains("not set"));
        assert!(outputs.one(|out| out.set("a", 3i64).and_then(|()| out.set("a", 3i64))).is_err());
        assert!(outputs.one(|out| out.set("a", 3.0f32)).is_err());
        assert!(outputs.one(|out| out.set_values("a", &[1i64, 2])).is_err());
        let panics = || {
            outputs.one(|out| {
                out.set("a", 4i64)?;
                panic!("in a function")
            })
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        // A function may go on behind an error, by a value that fits or without the row.
        outputs
            .one(|out| {
                out.set_values("a", &[1i64, 2]).or_else(|_| out.set("a", 5i64)).and_then(|()| out.set("b", 6i64))
            })
            .unwrap();
        let rows = outputs.many(|out| {
            assert!(out.push(|out| out.set("a", 7i64)).is_err());
            out.push(|out| out.set("a", 8i64).and_then(|()| out.set("b", 9i64)))
        });
        assert_eq!(rows.unwrap(), 1);
        let arrays = outputs.finish().unwrap();
        let values = |i: usize| arrays[i].1.as_primitive::<arrow::datatypes::Int64Type>().values().to_vec();
        assert_eq!((values(0), values(1)), (vec![1, 5, 8], vec![2, 6, 9]));
    }

    #[test]
    fn truth_values_are_written_and_read_back() {
        let columns = [
            Column::new("one", Dtype::Bool, Shape::Scalar),
            Column::new("some", Dtype::Bool, Shape::Ragged(vec![])),
            Column::new("pairs", Dtype::Bool, Shape::Ragged(vec![2])),
        ];
        let mut outputs = Outputs::new(&columns);
        for row in 0..3 {
            let written = outputs.one(|out| {
                assert!(out.set("one", 1u8).unwrap_err().to_string().contains("set to u8, declared one: bool"));
                out.set_bool("one", row == 1)?;
                out.set_bools("some", &vec![true; row])?;
                out.set_bools("pairs", &[row == 2, true])
            });
            written.unwrap();
        }
        let arrays = outputs.finish().unwrap().into_iter().map(|output| output.1).collect();
        let rows = RecordBatch::try_new(crate::schema::arrow_schema(&columns), arrays).unwrap();
        let row = Row { rows: &rows.slice(1, 2), index: 1 };
        assert!(!row.bool("one").unwrap());
        assert_eq!((row.bools("some").unwrap(), row.bools("pairs").unwrap()), (vec![true; 2], vec![true; 2]));
        assert!(row.bools("one").unwrap_err().to_string().contains("asked for a list of bool"));
        assert!(row.values::<u8>("some").unwrap_err().to_string().contains("a list of u8"));
    }
}
