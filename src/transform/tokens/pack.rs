//! Packs documents into rows of one length, several to a row.

mod place;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, FixedSizeListArray, ListArray, PrimitiveArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Field;

use place::lay_out;
pub(crate) use place::{Layout, Span};

use super::beside::{Beside, uneven};
use super::with_integers;
use crate::error::{Error, ErrorKind};
use crate::schema::{Column, Dtype, Element, Shape, Value};

/// Documents of a stream that are packed together by default. With web pages, 1.4 % is then padding, or 0.6 % with the longest first. Four times as many
/// documents halve that, take four times the memory, and delay the first batch to four times as late: `docs/tokens.md`.
const WINDOW: u64 = 256;

/// How documents find their row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Algorithm {
    FirstFit,
    BestFit,
    ConcatThenSplit,
}

/// What happens to a document that is longer than a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Long {
    /// It is cut into pieces of a row's length. The last, shorter piece is packed like a document.
    #[default]
    Split,
    /// Its first tokens are kept.
    Truncate,
    /// It is an error of its record.
    Error,
}

/// How documents are packed into rows of one length; see [`Dataset::pack`](crate::Dataset::pack).
///
/// # Example
/// ```
/// use forebay::Pack;
///
/// let pack = Pack::best_fit(2048).column("text").eos(50256).window(4096);
/// assert_eq!(pack.to_string(), "text into rows of 2048, best fit, windows of 4096 documents, eos 50256, padded with 0, i64, segment ids");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pack {
    algorithm: Algorithm,
    pub(crate) len: usize,
    pub(crate) column: String,
    pub(crate) window: u64,
    open_bins: Option<usize>,
    longest_first: bool,
    eos: Option<i64>,
    pad_value: i64,
    long: Option<Long>,
    dtype: Dtype,
    segment_ids: bool,
    cu_seqlens: bool,
    beside: Beside,
}

impl Pack {
    fn new(algorithm: Algorithm, len: usize) -> Self {
        Self {
            algorithm,
            len,
            column: "tokens".into(),
            window: WINDOW,
            open_bins: None,
            longest_first: false,
            eos: None,
            pad_value: 0,
            long: None,
            dtype: Dtype::I64,
            segment_ids: false,
            cu_seqlens: false,
            beside: Beside::default(),
        }
    }

    /// Puts each document into the first open row that has room for it.
    pub fn first_fit(len: usize) -> Self {
        Self::new(Algorithm::FirstFit, len)
    }

    /// Puts each document into the open row that has the least room left among those with enough; of several such rows, into the first.
    pub fn best_fit(len: usize) -> Self {
        Self::new(Algorithm::BestFit, len)
    }

    /// Lays all documents of a window end to end, and cuts them every `len` tokens. Only a window's last row is padded; documents that lie on a cut are split.
    pub fn concat_then_split(len: usize) -> Self {
        Self::new(Algorithm::ConcatThenSplit, len)
    }

    /// Names the column of tokens; the default is `tokens`.
    #[must_use]
    pub fn column(mut self, column: impl Into<String>) -> Self {
        self.column = column.into();
        self
    }

    /// Sets how many documents of each stream are packed together: 256 by default. No row stays open beyond the window, so a larger window pads less, and takes
    /// memory for as many documents of every stream. The window is rounded up to whole shares of a batch.
    #[must_use]
    pub fn window(mut self, documents: u64) -> Self {
        self.window = documents;
        self
    }

    /// Sets how many rows at most are open for further documents at a time; the default is all rows of the window.
    ///
    /// If one more is needed, the fullest row is closed; of several such rows, the first. Fewer open rows keep documents nearer to their neighbours in the data
    /// set, and pad more.
    #[must_use]
    pub fn open_bins(mut self, rows: usize) -> Self {
        self.open_bins = Some(rows);
        self
    }

    /// Places a window's long documents before its short ones (first-fit decreasing, best-fit decreasing), which pads least. The rows still come in the order
    /// of their first documents, and documents stand in their row in the order of the data set.
    #[must_use]
    pub fn longest_first(mut self) -> Self {
        self.longest_first = true;
        self
    }

    /// Appends this token to each document, before anything is placed or cut.
    #[must_use]
    pub fn eos(mut self, token: i64) -> Self {
        self.eos = Some(token);
        self
    }

    /// Fills `input_ids` up with this token; the default is 0.
    #[must_use]
    pub fn pad_value(mut self, token: i64) -> Self {
        self.pad_value = token;
        self
    }

    /// Packs a further column along with the tokens.
    ///
    /// It is a ragged column with an element for each token of a document, such as a loss mask, labels or weights. The packed column has the same name and
    /// dtype and the shape `[len]`. It holds the elements at the positions of their tokens, and `pad_value` in the padding: a number or boolean that the dtype
    /// can hold (`-100`, `0.0`, `false`). Call it once for each such column.
    ///
    /// The token of [`eos`](Self::eos) is not part of any document, so a column has no element for it: [`eos_beside`](Self::eos_beside) sets the value there.
    ///
    /// # Errors
    /// A document is a bad record if the column has another number of elements than there are tokens. `build()` refuses a column that does not exist, is not
    /// ragged, is the token column itself, is named twice, or has the name of a column that packing makes. It also refuses values that the column's dtype
    /// cannot hold, and a column for which no value is stated at the token of `eos`.
    ///
    /// # Example
    /// Fine-tuning on answers: JSON Lines with tokens, and for each token whether it counts.
    /// ```
    /// # #[cfg(feature = "text")] {
    /// use forebay::{Column, Dataset, Dtype, Pack, Shape, int64};
    ///
    /// # let folder = tempfile::tempdir().expect("a folder");
    /// # let lines = "{\"tokens\": [7, 8, 9, 10], \"counts\": [false, false, true, true]}\n{\"tokens\": [5, 6], \"counts\": [false, true]}\n";
    /// # std::fs::write(folder.path().join("chats.jsonl"), lines).expect("a disk");
    /// // {"tokens": [7, 8, 9, 10], "counts": [false, false, true, true]}
    /// // {"tokens": [5, 6], "counts": [false, true]}
    /// let counts = Column::new("counts", Dtype::Bool, Shape::Ragged(vec![]));
    /// let chats = Dataset::open(folder.path().join("chats.jsonl"))?.columns([int64("tokens").ragged(), counts]);
    /// let pack = Pack::best_fit(10).eos(2).beside("counts", false).eos_beside("counts", true);
    /// let mut loader = chats.pack(pack).batch(1).loader().index_dir(folder.path()).build()?;
    /// let batch = loader.epoch(0).next().expect("a row")?;
    /// assert_eq!(*batch.values::<i64>("input_ids")?, [7, 8, 9, 10, 2, 5, 6, 2, 0, 0]);
    /// assert_eq!(*batch.values::<u8>("counts")?, [0, 0, 1, 1, 1, 0, 1, 1, 0, 0]);
    /// # }
    /// # Ok::<(), forebay::Error>(())
    /// ```
    #[must_use]
    pub fn beside(mut self, column: impl Into<String>, pad_value: impl Into<Value>) -> Self {
        self.beside.push(column.into(), pad_value.into());
        self
    }

    /// Sets the value of a column [`beside`](Self::beside) the tokens at the token of [`eos`](Self::eos). In a loss mask, 1 there teaches a model to stop, and
    /// 0 does not; in labels, it is the token itself, or the value that the loss ignores.
    #[must_use]
    pub fn eos_beside(mut self, column: impl Into<String>, value: impl Into<Value>) -> Self {
        self.beside.push_at_eos(column.into(), value.into());
        self
    }

    /// Sets what happens to documents that are longer than a row; the default is [`Long::Split`].
    #[must_use]
    pub fn long(mut self, long: Long) -> Self {
        self.long = Some(long);
        self
    }

    /// Sets the dtype of `input_ids`, `position_ids` and `segment_ids`: `I64` by default, or `I32`.
    #[must_use]
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Adds the column `segment_ids`: which document of the row each token belongs to. It is also there if neither this column nor `cu_seqlens` is requested.
    #[must_use]
    pub fn segment_ids(mut self) -> Self {
        self.segment_ids = true;
        self
    }

    /// Adds the column `cu_seqlens` (instead of `segment_ids`, unless that is requested too): where the row's documents begin, and the row's end.
    #[must_use]
    pub fn cu_seqlens(mut self) -> Self {
        self.cu_seqlens = true;
        self
    }

    fn has_segment_ids(&self) -> bool {
        self.segment_ids || !self.cu_seqlens
    }

    /// The columns that are packed with the tokens.
    pub(crate) fn beside_names(&self) -> impl Iterator<Item = &str> {
        self.beside.names()
    }

    /// Returns the values stated for a column beside the tokens that its dtype cannot hold.
    pub(crate) fn misfits(&self, column: &str, dtype: Dtype) -> Vec<String> {
        self.beside.misfits(column, dtype)
    }

    /// Returns the columns of packed rows; `beside` has the dtypes of those beside the tokens.
    pub(crate) fn outputs(&self, beside: impl IntoIterator<Item = Dtype>) -> Vec<Column> {
        let fixed = |name: &str, dtype| Column::new(name, dtype, Shape::Fixed(vec![self.len]));
        let mut columns = vec![fixed("input_ids", self.dtype), fixed("position_ids", self.dtype)];
        if self.has_segment_ids() {
            columns.push(fixed("segment_ids", self.dtype));
        }
        if self.cu_seqlens {
            columns.push(Column::new(CU_SEQLENS, Dtype::I32, Shape::Ragged(Vec::new())));
        }
        columns.extend(self.beside.names().zip(beside).map(|(name, dtype)| fixed(name, dtype)));
        columns
    }

    /// Returns what is wrong with the options, with advice.
    pub(crate) fn mistakes(&self) -> Vec<(String, &'static str)> {
        let mut mistakes = Vec::new();
        let mut add = |message: &str, advice| mistakes.push((format!("pack {}: {message}", self.column), advice));
        if self.len == 0 || self.len > i32::MAX as usize {
            add(&format!("rows of {} tokens", self.len), "take a length from 1 to 2^31 - 1");
        }
        if self.window == 0 {
            add("a window of 0 documents", ".window(n) wants n of at least 1");
        }
        if self.open_bins == Some(0) {
            add("no row may be open", ".open_bins(n) wants n of at least 1");
        }
        if self.algorithm == Algorithm::ConcatThenSplit {
            if self.open_bins.is_some() || self.longest_first {
                add("concat_then_split fills one row after another", "leave .open_bins() and .longest_first() out");
            }
            if self.long == Some(Long::Split) {
                add("concat_then_split cuts every document where its row ends", "leave .long(Long::Split) out");
            }
        }
        match self.dtype {
            Dtype::I64 => {}
            Dtype::I32 => {
                for token in [self.eos, Some(self.pad_value)].into_iter().flatten() {
                    if i32::try_from(token).is_err() {
                        add(&format!("the token {token} does not fit i32"), "leave .dtype(Dtype::I32) out");
                    }
                }
            }
            other => add(&format!("tokens as {other}"), "take Dtype::I64 or Dtype::I32"),
        }
        let outputs = self.outputs([]);
        let outputs: Vec<&str> = outputs.iter().map(|column| column.name().as_ref()).collect();
        let beside = self.beside.mistakes(&self.column, self.eos.is_some(), &outputs);
        beside.into_iter().for_each(|(message, advice)| add(&message, advice));
        mistakes
    }
}

/// The ragged column of [`Pack::cu_seqlens`].
pub(crate) const CU_SEQLENS: &str = "cu_seqlens";

impl fmt::Display for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} into rows of {}, ", self.column, self.len)?;
        f.write_str(match self.algorithm {
            Algorithm::FirstFit => "first fit",
            Algorithm::BestFit => "best fit",
            Algorithm::ConcatThenSplit => "concatenated and split",
        })?;
        if self.longest_first {
            f.write_str(", longest first")?;
        }
        write!(f, ", windows of {} documents", self.window)?;
        if let Some(rows) = self.open_bins {
            write!(f, ", {rows} open")?;
        }
        match self.long {
            Some(Long::Truncate) => f.write_str(", long ones truncated")?,
            Some(Long::Error) => f.write_str(", long ones refused")?,
            Some(Long::Split) | None => {}
        }
        if let Some(eos) = self.eos {
            write!(f, ", eos {eos}")?;
        }
        write!(f, ", padded with {}, {}", self.pad_value, self.dtype)?;
        if self.has_segment_ids() {
            f.write_str(", segment ids")?;
        }
        if self.cu_seqlens {
            f.write_str(", cu_seqlens")?;
        }
        write!(f, "{}", self.beside)
    }
}

/// The result of packing a window.
pub(crate) struct Packed {
    pub(crate) layout: Layout,
    pub(crate) columns: Vec<(Column, ArrayRef)>,
    /// The number of tokens in the rows, and of padding.
    pub(crate) tokens: u64,
    pub(crate) padding: u64,
}

/// Returns documents that cannot be packed, each with the reason, in ascending order. `beside` has the elements of each column beside the tokens.
pub(crate) fn unfit_to_pack(documents: &ListArray, beside: &[&ListArray], pack: &Pack) -> Vec<(usize, Error)> {
    let beside: Vec<(&str, &ListArray)> = pack.beside.names().zip(beside.iter().copied()).collect();
    let mut unfit = uneven((&pack.column, documents), &beside);
    let refused = pack.long == Some(Long::Error);
    let narrowed = pack.dtype == Dtype::I32 && documents.value_type() == arrow::datatypes::DataType::Int64;
    if !refused && !narrowed {
        return unfit;
    }
    let eos = usize::from(pack.eos.is_some());
    with_integers!(
        documents.values(),
        |values| for (document, range) in documents.value_offsets().windows(2).enumerate() {
            let tokens = &values[range[0] as usize..range[1] as usize];
            let length = tokens.len() + eos;
            if refused && length > pack.len {
                let message = format!("a document of {length} tokens, where rows have {}", pack.len);
                let error = Error::new(ErrorKind::Transform, message).column(pack.column.as_str());
                unfit.push((document, error.advice("take longer rows, or .long(Long::Split) or Long::Truncate")));
            } else if let Some(token) = wide(tokens).filter(|_| narrowed) {
                let error = Error::new(ErrorKind::Transform, format!("the token {token} does not fit i32"));
                unfit.push((document, error.column(pack.column.as_str()).advice("leave .dtype(Dtype::I32) out")));
            }
        },
        ()
    );
    // Of a document with several reasons, the first will do.
    unfit.sort_by_key(|(document, _)| *document);
    unfit.dedup_by_key(|(document, _)| *document);
    unfit
}

/// The first token that does not fit i32.
fn wide<I: Copy + Into<i64>>(tokens: &[I]) -> Option<i64> {
    tokens.iter().map(|&token| token.into()).find(|&token| i32::try_from(token).is_err())
}

/// Packs the documents of a window, without those in `left_out` (ascending). Documents without tokens leave no trace. For the other documents, each column
/// beside the tokens has as many elements as there are tokens.
pub(crate) fn pack(documents: &ListArray, beside: &[&ListArray], left_out: &[usize], pack: &Pack) -> Packed {
    let eos = usize::from(pack.eos.is_some());
    let mut left_out = left_out.iter().copied().peekable();
    let lengths: Vec<u32> = documents
        .offsets()
        .lengths()
        .enumerate()
        .map(|(document, length)| match left_out.next_if_eq(&document) {
            Some(_) => 0,
            None if pack.long == Some(Long::Truncate) => (length + eos).min(pack.len) as u32,
            None => (length + eos) as u32,
        })
        .collect();
    let layout = lay_out(&lengths, pack);
    let tokens: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
    let padding = (layout.ends.len() * pack.len) as u64 - tokens;
    let mut arrays = with_integers!(
        documents.values(),
        |values| match pack.dtype {
            Dtype::I32 => write::<i32, _>(values, documents.value_offsets(), &layout, pack),
            _ => write::<i64, _>(values, documents.value_offsets(), &layout, pack),
        },
        unreachable!("columns of whole numbers, as was checked")
    );
    arrays.extend(pack.beside.write(beside, &layout, pack.len));
    let dtypes = beside.iter().filter_map(|elements| Dtype::from_arrow(&elements.value_type()));
    let columns = pack.outputs(dtypes).into_iter().zip(arrays).collect();
    Packed { layout, columns, tokens, padding }
}

/// Elements of packed columns.
trait Token: Element {
    fn of(value: i64) -> Self;
}

impl Token for i32 {
    fn of(value: i64) -> Self {
        // Whether values fit was looked at before.
        value as i32
    }
}

impl Token for i64 {
    fn of(value: i64) -> Self {
        value
    }
}

/// Writes the columns of a layout that are made of the tokens, each once, from front to back.
fn write<O: Token, I: Copy + Into<i64>>(values: &[I], offsets: &[i32], layout: &Layout, pack: &Pack) -> Vec<ArrayRef> {
    let cells = layout.ends.len() * pack.len;
    let with = |wanted: bool| Vec::with_capacity(if wanted { cells } else { 0 });
    let (mut ids, mut positions) = (Vec::<O>::with_capacity(cells), Vec::<O>::with_capacity(cells));
    let mut segments: Vec<O> = with(pack.has_segment_ids());
    let (mut cu, mut cu_offsets) = (Vec::<i32>::new(), vec![0]);
    let eos = pack.eos.unwrap_or_default();
    for (row, spans) in layout.rows().enumerate() {
        let end = (row + 1) * pack.len;
        for (number, span) in spans.iter().enumerate() {
            let document: Range<usize> =
                offsets[span.document as usize] as usize..offsets[span.document as usize + 1] as usize;
            let tokens = &values[document];
            let (from, to) = (span.start as usize, (span.start + span.len) as usize);
            if pack.cu_seqlens {
                cu.push((ids.len() - row * pack.len) as i32);
            }
            ids.extend(tokens[from.min(tokens.len())..to.min(tokens.len())].iter().map(|&token| O::of(token.into())));
            if to > tokens.len() {
                ids.push(O::of(eos));
            }
            positions.extend((0..i64::from(span.len)).map(O::of));
            if pack.has_segment_ids() {
                segments.resize(ids.len(), O::of(number as i64 + 1));
            }
        }
        if pack.cu_seqlens {
            if ids.len() < end {
                cu.push((ids.len() - row * pack.len) as i32);
            }
            cu.push(pack.len as i32);
            cu_offsets.push(cu.len() as i32);
        }
        ids.resize(end, O::of(pack.pad_value));
        positions.resize(end, O::of(0));
        if pack.has_segment_ids() {
            segments.resize(end, O::of(0));
        }
    }
    let mut arrays = vec![fixed(array(ids), pack.len), fixed(array(positions), pack.len)];
    if pack.has_segment_ids() {
        arrays.push(fixed(array(segments), pack.len));
    }
    if pack.cu_seqlens {
        let items: ArrayRef = Arc::new(arrow::array::Int32Array::from(cu));
        let field = Arc::new(Field::new_list_field(items.data_type().clone(), false));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(cu_offsets));
        arrays.push(Arc::new(ListArray::new(field, offsets, items, None)));
    }
    arrays
}

fn array<O: Token>(elements: Vec<O>) -> ArrayRef {
    Arc::new(PrimitiveArray::<O::Arrow>::new(ScalarBuffer::from(elements), None))
}

/// Rows of `len` elements.
pub(super) fn fixed(items: ArrayRef, len: usize) -> ArrayRef {
    let field = Arc::new(Field::new_list_field(items.data_type().clone(), false));
    Arc::new(FixedSizeListArray::new(field, len as i32, items, None))
}

#[cfg(test)]
mod tests;
