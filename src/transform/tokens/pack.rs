//! Documents into rows of one length, several in a row.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, FixedSizeListArray, ListArray, PrimitiveArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Field;

use super::beside::{Beside, uneven};
use super::with_integers;
use crate::error::{Error, ErrorKind};
use crate::schema::{Column, Dtype, Element, Shape, Value};

/// Documents of a stream that are packed together unless somebody says otherwise: with web pages 1.4 % are padding, or 0.6 % longest first. Four times as many
/// halve that, take four times the memory, and the first batch comes four times as late: `docs/tokens.md`.
const WINDOW: u64 = 256;

/// How documents find their row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Algorithm {
    FirstFit,
    BestFit,
    ConcatThenSplit,
}

/// What becomes of a document that is longer than a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Long {
    /// It is cut into pieces of a row's length, and the last, shorter one is packed like a document.
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

    /// Each document goes to the first open row that has room for it.
    pub fn first_fit(len: usize) -> Self {
        Self::new(Algorithm::FirstFit, len)
    }

    /// Each document goes to the open row that has the least room left which will do; of several to the first.
    pub fn best_fit(len: usize) -> Self {
        Self::new(Algorithm::BestFit, len)
    }

    /// All documents of a window end to end, cut every `len` tokens: only a window's last row is padded, and documents that lie on a cut are
    /// torn apart.
    pub fn concat_then_split(len: usize) -> Self {
        Self::new(Algorithm::ConcatThenSplit, len)
    }

    /// The column of tokens: `tokens`, unless another is named.
    #[must_use]
    pub fn column(mut self, column: impl Into<String>) -> Self {
        self.column = column.into();
        self
    }

    /// How many documents of each stream are packed together: 256, unless said otherwise. Rows are never open beyond them, so a larger window
    /// pads less, and takes memory for as many documents of every stream. It is rounded up to whole shares of a batch.
    #[must_use]
    pub fn window(mut self, documents: u64) -> Self {
        self.window = documents;
        self
    }

    /// At most so many rows are open for further documents at a time; without it, all of the window. Where one more is needed, the fullest
    /// is closed, of several the first. Fewer keep documents nearer to their neighbours in the data set, and pad more.
    #[must_use]
    pub fn open_bins(mut self, rows: usize) -> Self {
        self.open_bins = Some(rows);
        self
    }

    /// Places a window's long documents before its short ones (first-fit decreasing, best-fit decreasing), which pads least. The rows come
    /// in the order of their first documents all the same, and documents stand in their row in the order of the data set.
    #[must_use]
    pub fn longest_first(mut self) -> Self {
        self.longest_first = true;
        self
    }

    /// Puts this token behind each document, before anything is placed or cut.
    #[must_use]
    pub fn eos(mut self, token: i64) -> Self {
        self.eos = Some(token);
        self
    }

    /// Fills `input_ids` up with this token: 0, unless said otherwise.
    #[must_use]
    pub fn pad_value(mut self, token: i64) -> Self {
        self.pad_value = token;
        self
    }

    /// Packs a further column along: a ragged one with an element for each token of a document, such as a loss mask, labels or weights. It comes out under its
    /// own name, `[len]` of its own dtype, its elements where their tokens stand and `pad_value` in the padding: a number or truth value that the dtype holds
    /// (`-100`, `0.0`, `false`). Called several times, for several columns.
    ///
    /// The token of [`eos`](Self::eos) is in no document, so a column has no element for it: [`eos_beside`](Self::eos_beside) says what stands there.
    ///
    /// # Errors
    /// A document for which the column has another number of elements than there are tokens is a bad record. `build()` refuses a column that is
    /// not there, not ragged, the tokens themselves, named twice or like a column that packing makes, values that its dtype does not hold, and nothing
    /// said about the token of `eos`.
    ///
    /// # Example
    /// Fine-tuning on answers: tokens, and for each whether it counts, in JSON Lines.
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

    /// What stands in a column [`beside`](Self::beside) the tokens at the token of [`eos`](Self::eos). In a loss mask 1 there teaches a model to stop,
    /// and 0 does not; of labels it is the token itself, or what the loss leaves out.
    #[must_use]
    pub fn eos_beside(mut self, column: impl Into<String>, value: impl Into<Value>) -> Self {
        self.beside.push_at_eos(column.into(), value.into());
        self
    }

    /// What becomes of documents that are longer than a row: [`Long::Split`], unless said otherwise.
    #[must_use]
    pub fn long(mut self, long: Long) -> Self {
        self.long = Some(long);
        self
    }

    /// The dtype of `input_ids`, `position_ids` and `segment_ids`: `I64`, unless `I32` is said.
    #[must_use]
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Gives the column `segment_ids`: which document of the row each token is of. It is given as well where nothing is said of either.
    #[must_use]
    pub fn segment_ids(mut self) -> Self {
        self.segment_ids = true;
        self
    }

    /// Gives the column `cu_seqlens` (in place of `segment_ids`, unless these are asked for too): where the row's documents begin, and the row's end.
    #[must_use]
    pub fn cu_seqlens(mut self) -> Self {
        self.cu_seqlens = true;
        self
    }

    fn has_segment_ids(&self) -> bool {
        self.segment_ids || !self.cu_seqlens
    }

    /// The columns that are packed along.
    pub(crate) fn beside_names(&self) -> impl Iterator<Item = &str> {
        self.beside.names()
    }

    /// The values that stand in a column beside the tokens and that its dtype does not hold.
    pub(crate) fn misfits(&self, column: &str, dtype: Dtype) -> Vec<String> {
        self.beside.misfits(column, dtype)
    }

    /// The columns of packed rows, of which those beside the tokens have these dtypes.
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

    /// What is wrong with it, and what would be right.
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

/// A part of a document, as it stands in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) document: u32,
    /// Its tokens, counted in the document; behind the last one stands eos, where there is one.
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// Which tokens stand in which row.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Row after row, in each in the order of the documents.
    pub(crate) spans: Vec<Span>,
    /// Where each row's spans end.
    pub(crate) ends: Vec<usize>,
}

impl Layout {
    /// The spans of each row.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[Span]> {
        self.ends.iter().scan(0, |start, &end| Some(&self.spans[std::mem::replace(start, end)..end]))
    }
}

/// What a window became.
pub(crate) struct Packed {
    pub(crate) layout: Layout,
    pub(crate) columns: Vec<(Column, ArrayRef)>,
    /// Tokens in the rows, and what they are filled up with.
    pub(crate) tokens: u64,
    pub(crate) padding: u64,
}

/// Documents that cannot be packed, each with the reason, ascending. `beside` has the elements of each column beside the tokens.
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

/// Packs the documents of a window, without those in `left_out` (ascending). Documents without tokens leave no trace. Of the others each column beside the
/// tokens has as many elements.
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

/// Decides where documents of these lengths stand.
fn lay_out(lengths: &[u32], pack: &Pack) -> Layout {
    if pack.algorithm == Algorithm::ConcatThenSplit {
        return concatenate(lengths, pack.len as u32);
    }
    let mut pieces = Vec::with_capacity(lengths.len());
    for (document, &length) in lengths.iter().enumerate() {
        let starts = (0..length).step_by(pack.len);
        pieces.extend(starts.map(|start| Span {
            document: document as u32,
            start,
            len: (length - start).min(pack.len as u32),
        }));
    }
    let bins = place(&pieces, pack);
    // Rows in the order of their first pieces, and in each row the order of pieces: sorted by counting.
    let (mut rows, mut ends) = (vec![u32::MAX; pieces.len()], Vec::new());
    for &bin in &bins {
        let row = &mut rows[bin as usize];
        if *row == u32::MAX {
            *row = ends.len() as u32;
            ends.push(0);
        }
        ends[*row as usize] += 1;
    }
    let mut next = Vec::with_capacity(ends.len());
    let mut sum = 0;
    for end in &mut ends {
        next.push(sum);
        sum += *end;
        *end = sum;
    }
    let mut spans = vec![Span { document: 0, start: 0, len: 0 }; pieces.len()];
    for (piece, bin) in pieces.into_iter().zip(bins) {
        let at = &mut next[rows[bin as usize] as usize];
        spans[*at] = piece;
        *at += 1;
    }
    Layout { spans, ends }
}

/// All documents end to end, cut into rows.
fn concatenate(lengths: &[u32], row: u32) -> Layout {
    let mut layout = Layout::default();
    let mut room = row;
    for (document, &length) in lengths.iter().enumerate() {
        let mut start = 0;
        while start < length {
            let len = (length - start).min(room);
            layout.spans.push(Span { document: document as u32, start, len });
            start += len;
            room -= len;
            if room == 0 {
                layout.ends.push(layout.spans.len());
                room = row;
            }
        }
    }
    if room < row {
        layout.ends.push(layout.spans.len());
    }
    layout
}

/// The bin of each piece. Bins are numbered as they are opened.
fn place(pieces: &[Span], pack: &Pack) -> Vec<u32> {
    let mut order: Vec<u32> = (0..pieces.len() as u32).collect();
    if pack.longest_first {
        order.sort_by_key(|&piece| std::cmp::Reverse(pieces[piece as usize].len));
    }
    let mut bins = vec![0; pieces.len()];
    let mut open: Box<dyn Bins> = match pack.algorithm {
        Algorithm::FirstFit => Box::new(FirstFit::new(pieces.len(), pack.open_bins)),
        _ => Box::new(BestFit::new(pack.open_bins)),
    };
    for piece in order {
        bins[piece as usize] = open.place(pieces[piece as usize].len, pack.len as u32);
    }
    bins
}

/// Bins that are open for further pieces.
trait Bins {
    /// The bin that a piece of this length goes to: a new one where none has room.
    fn place(&mut self, len: u32, capacity: u32) -> u32;
}

/// Open bins by the room they have left: the least that will do, and the fullest, are found in O(log n).
struct BestFit {
    open: BTreeSet<(u32, u32)>,
    most: usize,
    opened: u32,
}

impl BestFit {
    fn new(most: Option<usize>) -> Self {
        Self { open: BTreeSet::new(), most: most.unwrap_or(usize::MAX), opened: 0 }
    }
}

impl Bins for BestFit {
    fn place(&mut self, len: u32, capacity: u32) -> u32 {
        let (room, bin) = match self.open.range((len, 0)..).next().copied() {
            Some(found) => {
                self.open.remove(&found);
                found
            }
            None => {
                self.opened += 1;
                (capacity, self.opened - 1)
            }
        };
        if room > len {
            if self.open.len() >= self.most {
                self.open.pop_first();
            }
            self.open.insert((room - len, bin));
        }
        bin
    }
}

/// A tree over all bins, each node of which knows the most room of a bin below: the first with enough is found in O(log n).
struct FirstFit {
    /// The root is node 1, the children of node i are 2i and 2i + 1, and bins begin in the middle. Closed bins have no room.
    room: Vec<u32>,
    /// The same by room, where the fullest will be asked for.
    by_room: Option<(BTreeSet<(u32, u32)>, usize)>,
    opened: u32,
}

impl FirstFit {
    fn new(bins: usize, most: Option<usize>) -> Self {
        let room = vec![0; 2 * bins.next_power_of_two()];
        Self { room, by_room: most.map(|most| (BTreeSet::new(), most)), opened: 0 }
    }

    fn first(&self, len: u32) -> Option<usize> {
        let leaves = self.room.len() / 2;
        let mut node = 1;
        if self.room[node] < len {
            return None;
        }
        while node < leaves {
            node = if self.room[2 * node] >= len { 2 * node } else { 2 * node + 1 };
        }
        Some(node - leaves)
    }

    fn set(&mut self, bin: usize, room: u32) {
        let mut node = self.room.len() / 2 + bin;
        self.room[node] = room;
        while node > 1 {
            node /= 2;
            self.room[node] = self.room[2 * node].max(self.room[2 * node + 1]);
        }
    }
}

impl Bins for FirstFit {
    fn place(&mut self, len: u32, capacity: u32) -> u32 {
        let (room, bin) = match self.first(len) {
            Some(bin) => (self.room[self.room.len() / 2 + bin], bin as u32),
            None => {
                self.opened += 1;
                (capacity, self.opened - 1)
            }
        };
        let left = room - len;
        let mut fullest = None;
        if let Some((by_room, most)) = &mut self.by_room {
            by_room.remove(&(room, bin));
            if left > 0 {
                fullest = if by_room.len() >= *most { by_room.pop_first() } else { None };
                by_room.insert((left, bin));
            }
        }
        if let Some((_, closed)) = fullest {
            self.set(closed as usize, 0);
        }
        self.set(bin as usize, left);
        bin
    }
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

/// The columns of a layout that are made of the tokens, each written once, from front to back.
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
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{Int32Type, Int64Type};
    use proptest::prelude::*;

    use super::*;

    /// Documents of these lengths; token t of document d is 1000·d + t.
    fn documents(lengths: &[usize]) -> ListArray {
        let lists = lengths.iter().enumerate().map(|(document, &length)| {
            let tokens: Vec<Option<i32>> = (0..length).map(|t| Some((1000 * document + t) as i32)).collect();
            Some(tokens)
        });
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
        // Without nulls, as columns are carried.
        let field = Arc::new(Field::new_list_field(arrow::datatypes::DataType::Int32, false));
        ListArray::new(field, lists.offsets().clone(), lists.values().clone(), None)
    }

    /// What stands beside token `id`.
    fn beside(id: i64, dtype: Dtype) -> i64 {
        if dtype == Dtype::Bool { id % 2 } else { id % 97 }
    }

    /// For each token of [`documents`] what stands beside it, in lists that begin elsewhere.
    fn elements(lengths: &[usize], dtype: Dtype) -> ListArray {
        let documents = documents(&[vec![3], lengths.to_vec()].concat());
        let ids = documents.values().as_primitive::<Int32Type>();
        // The first one is none of them.
        let values = ids.unary::<_, Int64Type>(|id| beside(i64::from(id) - 1000, dtype).abs());
        let values = arrow::compute::cast(&values, &dtype.arrow()).unwrap();
        let field = Arc::new(Field::new_list_field(dtype.arrow(), false));
        ListArray::new(field, documents.offsets().clone(), values, None).slice(1, lengths.len())
    }

    fn column(packed: &Packed, name: &str) -> Vec<Vec<i64>> {
        let (_, array) = packed.columns.iter().find(|(column, _)| column.name().as_ref() == name).unwrap();
        let cast = |items: &ArrayRef| {
            let cast = arrow::compute::cast(items, &arrow::datatypes::DataType::Int64).unwrap();
            cast.as_primitive::<Int64Type>().values().to_vec()
        };
        match array.as_fixed_size_list_opt() {
            Some(list) => list.iter().flatten().map(|row| cast(&row)).collect(),
            None => array.as_list::<i32>().iter().flatten().map(|row| cast(&row)).collect(),
        }
    }

    /// Lengths of the documents in each row.
    fn bins(lengths: &[usize], options: &Pack) -> Vec<Vec<u32>> {
        let packed = pack(&documents(lengths), &[], &[], options);
        packed.layout.rows().map(|spans| spans.iter().map(|span| span.len).collect()).collect()
    }

    #[test]
    fn each_algorithm_places_as_it_says() {
        let lengths = [6, 5, 3, 4, 2];
        // 3 fits behind 6 and behind 5: the first, and the fullest. 4 then only behind 5.
        assert_eq!(bins(&lengths, &Pack::first_fit(10)), [vec![6, 3], vec![5, 4], vec![2]]);
        assert_eq!(bins(&[5, 6, 3, 4, 2], &Pack::first_fit(10)), [vec![5, 3, 2], vec![6, 4]]);
        assert_eq!(bins(&[5, 6, 3, 4, 2], &Pack::best_fit(10)), [vec![5, 4], vec![6, 3], vec![2]]);
        assert_eq!(bins(&lengths, &Pack::best_fit(10).longest_first()), [vec![6, 4], vec![5, 3, 2]]);
        assert_eq!(bins(&lengths, &Pack::concat_then_split(8)), [vec![6, 2], vec![3, 3, 2], vec![2, 2]]);
        assert_eq!(bins(&[0, 0], &Pack::best_fit(8)), Vec::<Vec<u32>>::new());
    }

    #[test]
    fn the_fullest_of_open_rows_is_closed() {
        // With two open rows, 7 closes the row of 6, so that 4 finds no room there.
        let lengths = [6, 5, 7, 4];
        for options in [Pack::first_fit(10), Pack::best_fit(10)] {
            assert_eq!(bins(&lengths, &options.clone().open_bins(2)), [vec![6], vec![5, 4], vec![7]], "{options}");
            assert_eq!(bins(&[6, 4, 5], &options.clone().open_bins(1)), [vec![6, 4], vec![5]], "{options}");
            assert_eq!(bins(&[6, 5, 4], &options.open_bins(1)), [vec![6], vec![5, 4]]);
        }
        assert_eq!(bins(&lengths, &Pack::first_fit(10)), [vec![6, 4], vec![5], vec![7]]);
    }

    #[test]
    fn a_row_says_what_stands_where() {
        let options = Pack::first_fit(8).eos(9).pad_value(-1).segment_ids().cu_seqlens();
        let packed = pack(&documents(&[3, 0, 10, 2]), &[], &[], &options);
        // Document 1 is its eos alone. Of document 2 the first eight fill a row, and two and its eos are packed like a document.
        assert_eq!(
            column(&packed, "input_ids"),
            [
                vec![0, 1, 2, 9, 9, 2008, 2009, 9],
                vec![2000, 2001, 2002, 2003, 2004, 2005, 2006, 2007],
                vec![3000, 3001, 9, -1, -1, -1, -1, -1]
            ]
        );
        assert_eq!(column(&packed, "position_ids")[0], [0, 1, 2, 3, 0, 0, 1, 2]);
        assert_eq!(column(&packed, "segment_ids")[0], [1, 1, 1, 1, 2, 3, 3, 3]);
        assert_eq!(column(&packed, "segment_ids")[2], [1, 1, 1, 0, 0, 0, 0, 0]);
        assert_eq!(column(&packed, "cu_seqlens"), [vec![0, 4, 5, 8], vec![0, 8], vec![0, 3, 8]]);
        assert_eq!((packed.tokens, packed.padding), (19, 5));
    }

    #[test]
    fn long_documents_are_split_cut_or_refused() {
        let all = documents(&[5, 2]);
        let packed = pack(&all, &[], &[], &Pack::best_fit(4).eos(7).long(Long::Truncate));
        assert_eq!(column(&packed, "input_ids"), [vec![0, 1, 2, 3], vec![1000, 1001, 7, 0]]);
        let refusing = Pack::best_fit(4).long(Long::Error);
        let unfit = unfit_to_pack(&all, &[], &refusing);
        assert_eq!(unfit.len(), 1);
        assert!(unfit[0].1.to_string().contains("5 tokens, where rows have 4"), "{}", unfit[0].1);
        let packed = pack(&all, &[], &[0], &refusing);
        assert_eq!(column(&packed, "input_ids"), [vec![1000, 1001, 0, 0]]);
    }

    #[test]
    fn tokens_that_do_not_fit_are_refused() {
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([
            Some(vec![Some(1)]),
            Some(vec![Some(2), Some(1 << 40)]),
        ]);
        let narrow = Pack::best_fit(4).dtype(Dtype::I32);
        let found = unfit_to_pack(&lists, &[], &narrow);
        assert!(found[0].0 == 1 && found[0].1.to_string().contains("1099511627776 does not fit i32"));
        assert_eq!(unfit_to_pack(&lists, &[], &Pack::best_fit(4)).len(), 0);
        assert_eq!(column(&pack(&lists, &[], &[1], &narrow), "input_ids"), [vec![1, 0, 0, 0]]);
    }

    #[test]
    fn a_document_with_more_or_fewer_elements_than_tokens_is_unfit() {
        let options = Pack::best_fit(4).long(Long::Error).beside("mask", 0).beside("labels", -100);
        let (mask, labels) = (elements(&[2, 3, 5, 1], Dtype::U8), elements(&[2, 2, 5, 2], Dtype::I64));
        let found = unfit_to_pack(&documents(&[2, 2, 5, 1]), &[&mask, &labels], &options);
        let said: Vec<String> = found.iter().map(|(document, error)| format!("{document}: {error}")).collect();
        assert_eq!(said.len(), 3);
        assert!(
            said[0].starts_with("1: column mask: 3 elements beside the 2 tokens of `tokens`; give each"),
            "{said:?}"
        );
        assert!(said[1].starts_with("2: column tokens: a document of 5 tokens"), "{said:?}");
        assert!(said[2].starts_with("3: column labels: 2 elements beside the 1 tokens"), "{said:?}");
        let packed = pack(&documents(&[2, 2, 5, 1]), &[&mask, &labels], &[1, 2, 3], &options);
        assert_eq!(column(&packed, "labels"), [[0, 1, -100, -100]]);
        assert_eq!(packed.columns[4].0.to_string(), "labels: i64[4]");
    }

    #[test]
    fn what_stands_beside_is_part_of_what_a_pack_is() {
        let plain = Pack::best_fit(8).eos(1);
        let beside = |pad| plain.clone().beside("mask", pad);
        let texts = [
            plain.to_string(),
            beside(0).to_string(),
            beside(1).to_string(),
            beside(0).eos_beside("mask", 1).to_string(),
            beside(0).eos_beside("mask", 1).beside("weights", 0.0).to_string(),
        ];
        assert!((1..texts.len()).all(|at| !texts[..at].contains(&texts[at])), "{texts:?}");
        assert!(texts[4].ends_with(", beside mask padded with 0 and 1 at eos, beside weights padded with 0.0"));
        assert!(!beside(0).mistakes().is_empty() && beside(0).eos_beside("mask", 0).mistakes().is_empty());
    }

    #[test]
    fn all_mistakes_are_named() {
        let pack = Pack::concat_then_split(0).window(0).open_bins(0).long(Long::Split).dtype(Dtype::F32);
        assert_eq!(pack.mistakes().len(), 6);
        assert_eq!(Pack::best_fit(8).dtype(Dtype::I32).eos(1 << 40).mistakes().len(), 1);
        assert!(Pack::best_fit(8).longest_first().open_bins(3).mistakes().is_empty());
    }

    /// Places like a model of a few lines: all open bins are looked at, each time.
    fn modelled(pieces: &[u32], options: &Pack) -> Vec<usize> {
        let capacity = options.len as u32;
        let (mut open, mut opened) = (Vec::<(usize, u32)>::new(), 0);
        let place = |&len: &u32| {
            let fitting = open.iter().filter(|(_, room)| *room >= len);
            let found = match options.algorithm {
                Algorithm::FirstFit => fitting.min_by_key(|(bin, _)| *bin).copied(),
                _ => fitting.min_by_key(|(bin, room)| (*room, *bin)).copied(),
            };
            let (bin, room) = found.unwrap_or_else(|| {
                opened += 1;
                (opened - 1, capacity)
            });
            open.retain(|other| other.0 != bin);
            if room > len {
                if open.len() >= options.open_bins.unwrap_or(usize::MAX) {
                    let fullest = *open.iter().min_by_key(|(bin, room)| (*room, *bin)).unwrap();
                    open.retain(|other| *other != fullest);
                }
                open.push((bin, room - len));
            }
            bin
        };
        pieces.iter().map(place).collect()
    }

    fn options() -> impl Strategy<Value = Pack> {
        let long = prop_oneof![Just(None), Just(Some(Long::Truncate))];
        (0..3u8, 1usize..24, prop::option::of(1usize..6), any::<bool>(), any::<bool>(), long, any::<bool>()).prop_map(
            |(algorithm, len, open, longest, eos, long, narrow)| {
                let mut pack = match algorithm {
                    0 => Pack::first_fit(len),
                    1 => Pack::best_fit(len),
                    _ => Pack::concat_then_split(len),
                };
                if pack.algorithm != Algorithm::ConcatThenSplit {
                    (pack.open_bins, pack.longest_first) = (open, longest);
                }
                pack.eos = eos.then_some(-7);
                pack.long = long;
                pack.dtype = if narrow { Dtype::I32 } else { Dtype::I64 };
                pack.segment_ids().cu_seqlens().pad_value(-1)
            },
        )
    }

    proptest! {
        #[test]
        fn no_token_is_lost_none_comes_twice_and_documents_keep_their_order(
            lengths in prop::collection::vec(0usize..60, 0..40),
            options in options(),
        ) {
            let all = documents(&lengths);
            let packed = pack(&all, &[], &[], &options);
            let ids = column(&packed, "input_ids");
            let segments = column(&packed, "segment_ids");
            let positions = column(&packed, "position_ids");
            let seqlens = column(&packed, "cu_seqlens");
            let mut found = vec![Vec::new(); lengths.len()];
            let mut filled = 0;
            for (row, spans) in packed.layout.rows().enumerate() {
                prop_assert!(!spans.is_empty() && ids[row].len() == options.len);
                prop_assert!(spans.windows(2).all(|two| two[0].document <= two[1].document));
                let mut at = 0;
                for (number, span) in spans.iter().enumerate() {
                    let end = at + span.len as usize;
                    prop_assert!(end <= options.len && span.len > 0);
                    prop_assert_eq!(seqlens[row][number], at as i64);
                    prop_assert!(segments[row][at..end].iter().all(|&segment| segment == number as i64 + 1));
                    prop_assert!(positions[row][at..end].iter().enumerate().all(|(i, &p)| p == i as i64));
                    // Pieces of a document come in their order, and each where the one before ended.
                    let document: &mut Vec<i64> = &mut found[span.document as usize];
                    if options.algorithm == Algorithm::ConcatThenSplit {
                        prop_assert_eq!(document.len(), span.start as usize);
                    }
                    let len = document.len().max(end - at + span.start as usize);
                    document.resize(len, i64::MIN);
                    for (i, &token) in ids[row][at..end].iter().enumerate() {
                        prop_assert_eq!(std::mem::replace(&mut document[span.start as usize + i], token), i64::MIN);
                    }
                    at = end;
                }
                prop_assert!(ids[row][at..].iter().all(|&id| id == -1));
                prop_assert!(segments[row][at..].iter().chain(&positions[row][at..]).all(|&zero| zero == 0));
                prop_assert_eq!(*seqlens[row].last().unwrap(), options.len as i64);
                filled += at as u64;
            }
            prop_assert_eq!((packed.tokens, packed.tokens + packed.padding), (filled, (ids.len() * options.len) as u64));
            for (document, &length) in lengths.iter().enumerate() {
                let mut wanted: Vec<i64> = (0..length).map(|t| (1000 * document + t) as i64).collect();
                wanted.extend(options.eos);
                if options.long == Some(Long::Truncate) {
                    wanted.truncate(options.len);
                }
                prop_assert_eq!(&found[document], &wanted);
            }
            let again = pack(&all, &[], &[], &options);
            prop_assert_eq!(again.layout.spans, packed.layout.spans);
        }

        #[test]
        fn elements_stand_where_their_tokens_stand(
            lengths in prop::collection::vec(0usize..60, 0..40),
            left_out in prop::collection::vec(any::<bool>(), 40),
            options in options(),
        ) {
            use Dtype::*;
            let (all, has_eos) = (documents(&lengths), options.eos.is_some());
            let left_out: Vec<usize> = (0..lengths.len()).filter(|&document| left_out[document]).collect();
            for dtype in [U8, I8, I16, I32, I64, F16, F32, F64, Bool] {
                let (pad, at_eos) = if dtype == Bool { (1, 0) } else { (101, 103) };
                // Beside each other, so that each has its own.
                let options = options.clone().beside("a", pad).beside("b", at_eos);
                let options = if has_eos { options.eos_beside("b", pad).eos_beside("a", at_eos) } else { options };
                prop_assert!(options.mistakes().is_empty() && options.misfits("a", dtype).is_empty());
                let elements = elements(&lengths, dtype);
                prop_assert!(unfit_to_pack(&all, &[&elements, &elements], &options).is_empty());
                let packed = pack(&all, &[&elements, &elements], &left_out, &options);
                let ids = column(&packed, "input_ids");
                for (name, pad, at_eos) in [("a", pad, at_eos), ("b", at_eos, pad)] {
                    let declared = packed.columns.iter().find(|(column, _)| column.name().as_ref() == name);
                    prop_assert_eq!(declared.map(|(column, _)| column.dtype()), Some(dtype));
                    let of = |&id: &i64| match id {
                        -1 => i64::from(pad),
                        -7 => i64::from(at_eos),
                        id => beside(id, dtype),
                    };
                    let wanted: Vec<Vec<i64>> = ids.iter().map(|row| row.iter().map(of).collect()).collect();
                    prop_assert_eq!(column(&packed, name), wanted);
                }
            }
        }

        #[test]
        fn fast_placing_is_that_of_the_model(
            lengths in prop::collection::vec(1u32..=20, 0..80),
            best in any::<bool>(),
            open in prop::option::of(1usize..8),
        ) {
            let mut options = if best { Pack::best_fit(20) } else { Pack::first_fit(20) };
            options.open_bins = open;
            let pieces: Vec<Span> = lengths.iter().map(|&len| Span { document: 0, start: 0, len }).collect();
            let placed: Vec<usize> = place(&pieces, &options).into_iter().map(|bin| bin as usize).collect();
            prop_assert_eq!(placed, modelled(&lengths, &options));
        }
    }
}
