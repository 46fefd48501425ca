//! Batches: what the loop receives, and how rows are laid out in their memory.

pub(crate) mod buffer;
pub(crate) mod collate;
mod copy;
pub mod dlpack;
mod pad;

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};

use crate::error::{Error, ErrorKind, Result};
use crate::plan::State;
use crate::plan::Sums;
use crate::plan::state::{Identity, Progress};
use crate::schema::{Column, Dtype, Element};
use buffer::Buffer;
pub use pad::{Pad, Side};

/// One batch of a training step. It has a column for each feature, each in one piece of memory.
///
/// # Shape
/// Scalars are `[batch]`, fixed shapes `[batch, extents…]`, ragged columns `[batch, longest, extents…]` together with their
/// [`lengths`](Self::lengths). Columns of bytes do not become tensors: [`bytes`](Self::bytes) returns them.
///
/// # Example
/// ```
/// # use std::sync::Arc;
/// # use arrow::array::Int64Array;
/// # let dataset = forebay::Dataset::from_columns([("x", Arc::new(Int64Array::from(vec![1, 2, 3])) as _)])?;
/// for batch in dataset.batch(2).loader().build()? {
///     let batch = batch?;
///     assert_eq!(batch.values::<i64>("x")?.len(), batch.len());
///     # #[cfg(feature = "tch")]
///     assert_eq!(batch.tensor("x")?.size(), [batch.len() as i64]);
/// }
/// # Ok::<(), forebay::Error>(())
/// ```
pub struct Batch {
    pub(crate) columns: Vec<BatchColumn>,
    pub(crate) len: usize,
    pub(crate) step: u64,
    pub(crate) samples: Vec<u64>,
    /// What the batch adds to the loader's ledger.
    pub(crate) sums: Sums,
    /// Where the run stands after this batch, and which run it is.
    pub(crate) progress: Progress,
    pub(crate) identity: Arc<Identity>,
    /// Where the batch's samples were read, for batches that are rebuilt.
    pub(crate) origins: Vec<Origin>,
}

/// Where a sample was read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Origin {
    /// The sample id, as in [`Batch::samples`].
    pub sample: u64,
    /// URL of its shard, or the name of its source.
    pub url: Arc<str>,
    /// Record number within the shard.
    pub record: u64,
    /// Byte offset of the record in the (decompressed) shard, if the source has offsets.
    pub offset: Option<u64>,
}

/// One column of a batch.
pub(crate) struct BatchColumn {
    pub(crate) column: Column,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Data,
    /// Rows of each sample before padding, for ragged columns.
    pub(crate) lengths: Option<Vec<i64>>,
}

impl BatchColumn {
    /// The name of its dtype.
    fn dtype(&self) -> Cow<'static, str> {
        match &self.data {
            #[cfg(feature = "tch")]
            Data::Tensor(tensor) if is_bf16(tensor) => "bf16".into(),
            _ => self.column.dtype().to_string().into(),
        }
    }
}

/// Whether a tensor is `bf16`, the one dtype that no column is declared with. Its column says `f32`, which holds each of its values.
#[cfg(feature = "tch")]
fn is_bf16(tensor: &tch::Tensor) -> bool {
    tensor.f_kind().is_ok_and(|kind| kind == tch::Kind::BFloat16)
}

/// Where a column's values lie.
pub(crate) enum Data {
    /// In host memory, shared with what was handed to other frameworks.
    Host(Arc<Buffer>),
    #[cfg(feature = "tch")]
    Tensor(tch::Tensor),
    /// Between the host and a device; users never see it.
    #[cfg(feature = "tch")]
    OnItsWay,
    Bytes(ArrayRef),
}

impl Batch {
    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no sample. The loader never delivers such a batch.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the epoch that this batch belongs to.
    pub fn epoch(&self) -> u64 {
        self.progress.epoch
    }

    /// Returns the step within the epoch, counted from 0.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Returns the sample ids, in the order of the batch. They are the row numbers in the data set.
    pub fn samples(&self) -> &[u64] {
        &self.samples
    }

    /// Returns where training stands once this batch is used: what was delivered, never what was prefetched. Save it with a checkpoint, and give it
    /// to [`LoaderBuilder::restore`](crate::LoaderBuilder::restore).
    pub fn state(&self) -> State {
        State::new(&self.identity, &self.progress)
    }

    /// Iterates over the names of the columns.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|c| c.column.name().as_ref())
    }

    fn column(&self, name: &str) -> Result<&BatchColumn> {
        self.columns.iter().find(|c| c.column.name().as_ref() == name).ok_or_else(|| {
            let names: Vec<_> = self.names().collect();
            Error::new(
                ErrorKind::Schema,
                format!("the batch has no column {name:?}; these exist: {}", names.join(", ")),
            )
        })
    }

    /// Returns the shape of a column in this batch.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if there is no such column.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.column(name)?.shape)
    }

    /// Returns a column as a tensor, on the loader's device.
    ///
    /// # Memory
    /// The tensor is the batch's own memory, not a copy, and outlives the batch.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if there is no such column, or it holds bytes.
    #[cfg(feature = "tch")]
    pub fn tensor(&self, name: &str) -> Result<tch::Tensor> {
        match &self.column(name)?.data {
            Data::Tensor(tensor) => Ok(tensor.shallow_clone()),
            _ => Err(Error::new(ErrorKind::Schema, "bytes do not make a tensor")
                .column(name)
                .advice("decode the column with .image() or .map(), or read it with Batch::bytes")),
        }
    }

    /// Returns the elements of a column in row-major order: borrowed from plain memory, or copied out of a tensor. Booleans are `u8`, 0 or 1. `bf16`,
    /// which only operations on the device make, is widened to `f32`.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if there is no such column or it has another dtype.
    pub fn values<T: Element>(&self, name: &str) -> Result<Cow<'_, [T]>> {
        let column = self.column(name)?;
        let is_truth = column.column.dtype() == Dtype::Bool && T::DTYPE == Dtype::U8;
        if column.column.dtype() != T::DTYPE && !is_truth {
            return Err(Error::new(
                ErrorKind::Schema,
                format!("asked for {}, the column holds {}", T::DTYPE, column.column),
            )
            .column(name));
        }
        match &column.data {
            // Where every list is empty there is no memory, and so none that is aligned.
            Data::Host(buffer) if buffer.bytes().is_empty() => Ok(Cow::Borrowed(&[])),
            Data::Host(buffer) => Ok(Cow::Borrowed(bytemuck::cast_slice(buffer.bytes()))),
            #[cfg(feature = "tch")]
            Data::Tensor(tensor) => {
                let failed = |e| Error::new(ErrorKind::Device, "cannot be copied to the host").because(e).column(name);
                let widened =
                    is_bf16(tensor).then(|| tensor.f_to_kind(tch::Kind::Float)).transpose().map_err(failed)?;
                let tensor = widened.as_ref().unwrap_or(tensor);
                let mut values = vec![T::zeroed(); tensor.numel()];
                let copied = tensor.f_copy_data_u8(bytemuck::cast_slice_mut(&mut values), tensor.numel());
                copied.map_err(failed)?;
                Ok(Cow::Owned(values))
            }
            Data::Bytes(_) => Err(Error::new(ErrorKind::Schema, "the column holds bytes").column(name)),
            #[cfg(feature = "tch")]
            Data::OnItsWay => unreachable!("the loop gets batches that have arrived"),
        }
    }

    /// Returns the byte strings of a column that has one for each sample.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if there is no such column or it holds something else.
    pub fn bytes(&self, name: &str) -> Result<impl ExactSizeIterator<Item = &[u8]>> {
        let array = self.array(name)?.as_binary_view_opt();
        let array = array.ok_or_else(|| {
            Error::new(ErrorKind::Schema, "a sample has a list of byte strings").column(name).advice("use array()")
        })?;
        Ok((0..self.len).map(|row| array.value(row)))
    }

    /// Returns a column of byte strings, or of lists of them, as an Arrow array.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if there is no such column or it holds something else.
    pub fn array(&self, name: &str) -> Result<&ArrayRef> {
        match &self.column(name)?.data {
            Data::Bytes(array) => Ok(array),
            _ => Err(Error::new(ErrorKind::Schema, "the column does not hold bytes")
                .column(name)
                .advice("use tensor() or values()")),
        }
    }

    /// Returns how many rows each sample of a ragged column had before padding (at most the padded length).
    ///
    /// # Errors
    /// [`ErrorKind::Schema`] if there is no such column or it is not ragged.
    pub fn lengths(&self, name: &str) -> Result<&[i64]> {
        let lengths = self.column(name)?.lengths.as_deref();
        lengths.ok_or_else(|| Error::new(ErrorKind::Schema, "all samples of the column have one shape").column(name))
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns: Vec<String> =
            self.columns.iter().map(|c| format!("{}: {}{:?}", c.column.name(), c.dtype(), c.shape)).collect();
        write!(f, "Batch(epoch {}, step {}: {})", self.epoch(), self.step, columns.join(", "))
    }
}
