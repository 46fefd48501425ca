//! Tokens: documents are cut, packed into rows of one length, and grouped by length.
//!
//! Each operation is a plain function over Arrow arrays, and its result depends on its arguments alone. [`Chunk`] works document by document. [`Pack`] and
//! [`Buckets`] work on all documents of a *window*, which is a fixed range of positions of a stream. Their result for a window is the same whenever and
//! wherever it is computed. Therefore a run can resume in the middle of a window, in any world. `docs/tokens.md` says what users may rely on.

mod beside;
mod bucket;
mod chunk;
mod pack;
#[cfg(feature = "tokenizers")]
mod tokenize;

use arrow::array::{ArrayRef, AsArray, ListArray};
use arrow::datatypes::DataType;

use crate::error::{Error, ErrorKind, Result};

pub(crate) use beside::{holds, uneven};
pub use bucket::Buckets;
pub(crate) use bucket::{Dealt, Part, deal, unfit_to_deal};
pub use chunk::Chunk;
pub(crate) use chunk::{Chunked, chunk};
pub(crate) use pack::{CU_SEQLENS, Packed, Span, pack, unfit_to_pack};
pub use pack::{Long, Pack};
#[cfg(feature = "tokenizers")]
pub(crate) use tokenize::Tokenized;
#[cfg(feature = "tokenizers")]
pub use tokenize::Tokenizer;

/// Calls `$body` with the elements of an array of integers as a slice; for any other array, evaluates `$other`.
macro_rules! with_integers {
    ($array:expr, |$values:ident| $body:expr, $other:expr) => {{
        use arrow::array::AsArray;
        use arrow::datatypes::{DataType, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type};
        let array: &arrow::array::ArrayRef = $array;
        match array.data_type() {
            DataType::UInt8 => {
                let $values: &[u8] = array.as_primitive::<UInt8Type>().values();
                $body
            }
            DataType::Int8 => {
                let $values: &[i8] = array.as_primitive::<Int8Type>().values();
                $body
            }
            DataType::Int16 => {
                let $values: &[i16] = array.as_primitive::<Int16Type>().values();
                $body
            }
            DataType::Int32 => {
                let $values: &[i32] = array.as_primitive::<Int32Type>().values();
                $body
            }
            DataType::Int64 => {
                let $values: &[i64] = array.as_primitive::<Int64Type>().values();
                $body
            }
            _ => $other,
        }
    }};
}
use with_integers;

/// Returns the lists of a column, one per document.
///
/// # Errors
/// A column of any other type.
pub(crate) fn lists<'a>(array: &'a ArrayRef, column: &str) -> Result<&'a ListArray> {
    array.as_list_opt::<i32>().ok_or_else(|| {
        let found = array.data_type();
        Error::new(ErrorKind::Schema, format!("lists of tokens are wanted, the column holds {found}")).column(column)
    })
}

/// Returns the number of tokens of each document (or of bytes, for a column of byte strings).
///
/// # Errors
/// A column that has no lengths.
pub(crate) fn lengths(array: &ArrayRef, column: &str) -> Result<Vec<u32>> {
    match array.data_type() {
        DataType::BinaryView => {
            let strings = array.as_binary_view();
            Ok(strings.views().iter().map(|&view| view as u32).collect())
        }
        _ => Ok(lists(array, column)?.offsets().lengths().map(|length| length as u32).collect()),
    }
}
