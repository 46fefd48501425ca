//! Cuts lists of tokens into pieces, a row each.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch};
use arrow::datatypes::Field;

use super::{Env, Evaluated, Failing, column_of, expand, part_of, with_columns, with_columns_as};
use crate::error::Result;
use crate::loader::pipeline::Stage;
use crate::schema::Column;
use crate::transform::tokens::{self, Chunk};

impl Env<'_> {
    /// Makes a row for each piece of a row's tokens and of the columns that go with them.
    pub(super) fn chunked(&self, stage: &Stage, input: Evaluated, column: &str, chunk: &Chunk) -> Result<Evaluated> {
        let mut failing = Failing::default();
        let names = || chunk.beside.iter().map(String::as_str);
        let (documents, beside) = documents_of(&input.rows.rows, column, names())?;
        let named: Vec<(&str, &ListArray)> = names().zip(beside).collect();
        for (row, error) in tokens::uneven((column, documents), &named) {
            let error = self.blame(stage, input.rows.samples[row], error);
            if self.ends_at(&mut failing, row, error) {
                break;
            }
        }
        let mut even = failing.leave(input)?;
        let (documents, beside) = documents_of(&even.rows.rows, column, names())?;
        let tokens::Chunked { from, number, pieces } = tokens::chunk(documents, &beside, chunk);
        let parts = from.iter().zip(number).map(|(&row, number)| part_of(even.rows.samples[row as usize], number));
        let parts = parts.collect();
        let cut = || std::iter::once(column).chain(names());
        let declared = cut().zip(pieces).map(|(name, pieces)| {
            let column = Column::from_arrow(&Field::new(name, pieces.data_type().clone(), false))?;
            Ok((column, pieces))
        });
        let declared = declared.collect::<Result<Vec<_>>>()?;
        // The documents themselves need not be taken once for each piece.
        let none: ArrayRef = Arc::new(arrow::array::NullArray::new(even.rows.len()));
        let without = cut().map(|name| (name.into(), none.clone())).collect();
        even.rows.rows = with_columns_as(&even.rows.rows, without)?;
        let mut expanded = expand(even, from, Some(parts), Failing::default())?;
        expanded.rows.rows = with_columns(&expanded.rows.rows, declared)?;
        Ok(expanded)
    }
}

/// The tokens of documents, and their elements in each column that goes with them.
pub(super) fn documents_of<'a, 'n>(
    rows: &'a RecordBatch,
    column: &str,
    beside: impl IntoIterator<Item = &'n str>,
) -> Result<(&'a ListArray, Vec<&'a ListArray>)> {
    let lists = |name: &str| tokens::lists(column_of(rows, name)?, name);
    Ok((lists(column)?, beside.into_iter().map(lists).collect::<Result<_>>()?))
}
