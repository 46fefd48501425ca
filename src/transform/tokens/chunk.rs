//! Cuts documents into pieces of at most a given length.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ListArray, MutableArrayData, make_array};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::DataType;

use super::beside::twice;

/// How documents are cut into pieces; see [`Dataset::chunk`](crate::Dataset::chunk).
///
/// # Example
/// ```
/// use forebay::Chunk;
///
/// assert_eq!(Chunk::of(2048).drop_last().to_string(), "of 2048, shorter ones dropped");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    pub(crate) len: usize,
    pub(crate) drop_last: bool,
    /// Columns that are cut in the same places as the tokens.
    pub(crate) beside: Vec<String>,
}

impl Chunk {
    /// Cuts into pieces of this many tokens. The last piece of a document is the rest, 1 to `len` tokens.
    pub fn of(len: usize) -> Self {
        Self { len, drop_last: false, beside: Vec::new() }
    }

    /// Leaves out a last piece that is shorter. All pieces then have `len` tokens, and a shorter document gives none.
    #[must_use]
    pub fn drop_last(mut self) -> Self {
        self.drop_last = true;
        self
    }

    /// Cuts a further column in the same places as the tokens.
    ///
    /// It is a ragged column with an element (or row of elements) for each token, such as a loss mask or labels. All other columns are given whole to each
    /// piece. Call it once for each such column.
    ///
    /// # Errors
    /// A document is a bad record if the column has another number of elements than there are tokens. `build()` refuses a column that does not exist, is not
    /// ragged, is the token column itself, or is named twice.
    ///
    /// # Example
    /// ```
    /// # use std::sync::Arc;
    /// # use arrow::array::ListArray;
    /// # use arrow::datatypes::Int32Type;
    /// # let lists = |first: i32| Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some((first..first + 3).map(Some).collect::<Vec<_>>())]));
    /// # let dataset = forebay::Dataset::from_columns([("tokens", lists(10) as _), ("labels", lists(20) as _)])?;
    /// use forebay::Chunk;
    ///
    /// // Tokens 10, 11, 12 with labels 20, 21, 22.
    /// let pieces = dataset.chunk("tokens", Chunk::of(2).beside("labels")).batch(2);
    /// let batch = pieces.loader().streams(1).build()?.epoch(0).next().expect("two pieces")?;
    /// assert_eq!(*batch.values::<i32>("tokens")?, [10, 11, 12, 0]);
    /// assert_eq!(*batch.values::<i32>("labels")?, [20, 21, 22, 0]);
    /// # Ok::<(), forebay::Error>(())
    /// ```
    #[must_use]
    pub fn beside(mut self, column: impl Into<String>) -> Self {
        self.beside.push(column.into());
        self
    }

    /// How many pieces a document of this many tokens is cut into.
    fn pieces(&self, tokens: usize) -> usize {
        if self.drop_last { tokens / self.len } else { tokens.div_ceil(self.len) }
    }

    /// Returns what is wrong with the options for tokens of this column, with advice.
    pub(crate) fn mistakes(&self, column: &str) -> Vec<(String, &'static str)> {
        let mut mistakes = Vec::new();
        if self.len == 0 {
            mistakes.push((format!("chunk {column} of 0 tokens"), ".chunk(column, len) wants a length of at least 1"));
        }
        let twice = twice(self.beside.iter().map(String::as_str), column);
        mistakes.extend(twice.into_iter().map(|(message, advice)| (format!("chunk {column}: {message}"), advice)));
        mistakes
    }
}

impl From<usize> for Chunk {
    fn from(len: usize) -> Self {
        Self::of(len)
    }
}

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of {}", self.len)?;
        if self.drop_last {
            f.write_str(", shorter ones dropped")?;
        }
        self.beside.iter().try_for_each(|column| write!(f, ", beside {column}"))
    }
}

/// The pieces of some documents, in order.
pub(crate) struct Chunked {
    /// The document of each piece, and the number of the piece in its document.
    pub(crate) from: Vec<u32>,
    pub(crate) number: Vec<u32>,
    /// The pieces of the tokens, and of each column cut with them.
    pub(crate) pieces: Vec<ArrayRef>,
}

/// Cuts each list of the tokens and of the columns cut with them, which have the same number of elements. If nothing is dropped, no element is copied: the
/// pieces are other offsets into the same values.
pub(crate) fn chunk(documents: &ListArray, beside: &[&ListArray], chunk: &Chunk) -> Chunked {
    let total = documents.offsets().lengths().map(|length| chunk.pieces(length)).sum();
    let (mut from, mut number) = (Vec::with_capacity(total), Vec::with_capacity(total));
    for (document, length) in documents.offsets().lengths().enumerate() {
        let pieces = chunk.pieces(length);
        from.extend(std::iter::repeat_n(document as u32, pieces));
        number.extend(0..pieces as u32);
    }
    let pieces = std::iter::once(documents).chain(beside.iter().copied()).map(|lists| cut(lists, chunk, total));
    Chunked { pieces: pieces.collect(), from, number }
}

/// Cuts some lists into `pieces` pieces in all.
fn cut(documents: &ListArray, chunk: &Chunk, pieces: usize) -> ArrayRef {
    let (len, offsets) = (chunk.len, documents.value_offsets());
    let last = offsets[documents.len()];
    let mut starts = Vec::with_capacity(pieces + 1);
    for range in offsets.windows(2) {
        let (start, end) = (range[0] as usize, range[1] as usize);
        starts.extend((0..chunk.pieces(end - start)).map(|piece| (start + piece * len) as i32));
    }
    let DataType::List(item) = documents.data_type() else { unreachable!("a list array") };
    let (values, offsets) = if chunk.drop_last {
        let data = documents.values().to_data();
        let mut kept = MutableArrayData::new(vec![&data], false, starts.len() * len);
        for &start in &starts {
            kept.try_extend(0, start as usize, start as usize + len).expect("fewer elements than there were");
        }
        (make_array(kept.freeze()), (0..=starts.len()).map(|piece| (piece * len) as i32).collect())
    } else {
        // Empty documents have no piece, and lie between two others without a gap.
        starts.push(last);
        (documents.values().clone(), starts)
    };
    let offsets = OffsetBuffer::new(ScalarBuffer::<i32>::from(offsets));
    Arc::new(ListArray::new(item.clone(), offsets, values, None))
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Int32Type;
    use proptest::prelude::*;

    use super::*;

    fn documents(lists: &[Vec<i32>]) -> ListArray {
        ListArray::from_iter_primitive::<Int32Type, _, _>(lists.iter().map(|l| Some(l.iter().map(|&v| Some(v)))))
    }

    fn pieces(chunked: &Chunked) -> Vec<Vec<i32>> {
        read(&chunked.pieces[0])
    }

    fn read(pieces: &ArrayRef) -> Vec<Vec<i32>> {
        let pieces = pieces.as_list::<i32>();
        pieces.iter().flatten().map(|piece| piece.as_primitive::<Int32Type>().values().to_vec()).collect()
    }

    #[test]
    fn every_mistake_is_named_and_what_stands_beside_is_shown() {
        assert_eq!(Chunk::of(4).beside("mask").beside("labels").to_string(), "of 4, beside mask, beside labels");
        assert!(Chunk::of(4).beside("mask").mistakes("tokens").is_empty());
        let mistakes = Chunk::of(0).beside("tokens").beside("mask").beside("mask").mistakes("tokens");
        let words = ["of 0 tokens", "the column of tokens itself", "stands beside the tokens twice"];
        assert_eq!(mistakes.len(), words.len());
        mistakes.iter().zip(words).for_each(|((said, _), words)| assert!(said.contains(words), "{said}"));
    }

    #[test]
    fn documents_are_cut_and_the_rest_is_kept_or_dropped() {
        let all = documents(&[vec![1, 2, 3, 4, 5], vec![], vec![6], vec![7, 8, 9, 10]]);
        let chunked = chunk(&all, &[], &Chunk::of(2));
        assert_eq!(pieces(&chunked), [vec![1, 2], vec![3, 4], vec![5], vec![6], vec![7, 8], vec![9, 10]]);
        assert_eq!((chunked.from, chunked.number), (vec![0, 0, 0, 2, 3, 3], vec![0, 1, 2, 0, 0, 1]));
        let dropped = chunk(&all, &[], &Chunk::of(2).drop_last());
        assert_eq!(pieces(&dropped), [vec![1, 2], vec![3, 4], vec![7, 8], vec![9, 10]]);
        assert_eq!(dropped.from, [0, 0, 3, 3]);
        let part = chunk(&all.slice(1, 3), &[], &Chunk::of(3));
        assert_eq!(pieces(&part), [vec![6], vec![7, 8, 9], vec![10]]);
    }

    proptest! {
        #[test]
        fn no_token_is_lost_and_none_moves(lists in prop::collection::vec(prop::collection::vec(any::<i32>(), 0..40), 0..20), len in 1usize..12) {
            // Beside each token its negative, in lists that begin elsewhere.
            let negated = lists.iter().map(|list| list.iter().map(|&token| !token).collect()).collect::<Vec<Vec<i32>>>();
            let beside = documents(&[vec![vec![1, 2, 3]], negated].concat()).slice(1, lists.len());
            for options in [Chunk::of(len), Chunk::of(len).drop_last()] {
                let chunked = chunk(&documents(&lists), &[&beside], &options);
                let wanted: Vec<Vec<i32>> = pieces(&chunked).iter().map(|piece| piece.iter().map(|&token| !token).collect()).collect();
                prop_assert_eq!(read(&chunked.pieces[1]), wanted);
            }
            let chunked = chunk(&documents(&lists), &[], &Chunk::of(len));
            let found = pieces(&chunked);
            prop_assert!(found.iter().all(|piece| (1..=len).contains(&piece.len())));
            prop_assert_eq!(found.concat(), lists.concat());
            let dropped = chunk(&documents(&lists), &[], &Chunk::of(len).drop_last());
            let whole: Vec<i32> = lists.iter().flat_map(|list| list[..list.len() / len * len].iter().copied()).collect();
            prop_assert_eq!(pieces(&dropped).concat(), whole);
            prop_assert!(pieces(&dropped).iter().all(|piece| piece.len() == len));
        }
    }
}
