//! The columns of any format, with statistics over the rows that were looked at.

use arrow::array::AsArray;

use super::{ColumnReport, Seen};
use crate::cli::opened::Cells;
use crate::schema::{Column, Shape};

/// What was seen of a column.
pub(in crate::cli) struct ColumnLook {
    column: Column,
    seen: Seen,
}

impl ColumnLook {
    pub(in crate::cli) fn new(column: &Column) -> Self {
        Self { column: column.clone(), seen: Seen::default() }
    }

    /// Looks at a row.
    pub(in crate::cli) fn add(&mut self, cells: &Cells, row: usize) {
        if !cells.is_present(row) {
            return;
        }
        let (array, range) = cells.elements(row);
        self.seen.present += 1;
        self.seen.len.add(range.len() as u64);
        if let Some(values) = array.as_binary_view_opt() {
            range.for_each(|at| self.seen.string(values.value(at)));
        }
    }

    pub(in crate::cli) fn merge(&mut self, other: Self) {
        self.seen.merge(other.seen);
    }

    /// Returns the report; `records` is the number of records looked at.
    pub(in crate::cli) fn report(&self, records: u64) -> ColumnReport {
        let (column, seen) = (&self.column, &self.seen);
        let declared = Column::new(column.name().clone(), column.dtype(), column.shape().clone());
        let declared = match (column.shape(), seen.len.0) {
            (Shape::Ragged(inner), Some((least, most))) if inner.is_empty() && least == most && least > 0 => {
                declared.fixed([least as usize])
            }
            _ => declared,
        };
        let declared = if seen.present < records { declared.optional() } else { declared };
        seen.report_as(column.name(), column.dtype(), false, Some(declared))
    }
}
