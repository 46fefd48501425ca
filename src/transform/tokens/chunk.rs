//! Documents into pieces of at most a length.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ListArray, MutableArrayData, make_array};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::DataType;

/// How documents are cut into pieces; see [`Dataset::chunk`](crate::Dataset::chunk).
///
/// # Example
/// ```
/// use forebay::Chunk;
///
/// assert_eq!(Chunk::of(2048).drop_last().to_string(), "of 2048, shorter ones dropped");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    pub(crate) len: usize,
    pub(crate) drop_last: bool,
}

impl Chunk {
    /// Pieces of this many tokens. The last of a document is what is left, 1 to `len`.
    pub fn of(len: usize) -> Self {
        Self { len, drop_last: false }
    }

    /// Leaves out a last piece that is shorter: all have `len` tokens, and a shorter document gives none.
    #[must_use]
    pub fn drop_last(mut self) -> Self {
        self.drop_last = true;
        self
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
        if self.drop_last { f.write_str(", shorter ones dropped") } else { Ok(()) }
    }
}

/// The pieces of some documents, in order.
pub(crate) struct Chunked {
    /// The document of each piece, and the piece's number in it.
    pub(crate) from: Vec<u32>,
    pub(crate) number: Vec<u32>,
    pub(crate) pieces: ArrayRef,
}

/// Cuts each list. Where nothing is dropped no element is copied: the pieces are other offsets into the same values.
pub(crate) fn chunk(documents: &ListArray, Chunk { len, drop_last }: Chunk) -> Chunked {
    let offsets = documents.value_offsets();
    let (first, last) = (offsets[0] as usize, offsets[documents.len()] as usize);
    let at_least = (last - first).div_ceil(len) + documents.len();
    let (mut from, mut number) = (Vec::with_capacity(at_least), Vec::with_capacity(at_least));
    let mut starts = Vec::with_capacity(at_least + 1);
    for (document, range) in offsets.windows(2).enumerate() {
        let (start, end) = (range[0] as usize, range[1] as usize);
        let pieces = if drop_last { (end - start) / len } else { (end - start).div_ceil(len) };
        from.extend(std::iter::repeat_n(document as u32, pieces));
        number.extend(0..pieces as u32);
        starts.extend((0..pieces).map(|piece| (start + piece * len) as i32));
    }
    let DataType::List(item) = documents.data_type() else { unreachable!("a list array") };
    let (values, offsets) = if drop_last {
        let data = documents.values().to_data();
        let mut kept = MutableArrayData::new(vec![&data], false, starts.len() * len);
        for &start in &starts {
            kept.try_extend(0, start as usize, start as usize + len).expect("fewer elements than there were");
        }
        (make_array(kept.freeze()), (0..=starts.len()).map(|piece| (piece * len) as i32).collect())
    } else {
        // Empty documents have no piece, and lie between two others without a gap.
        starts.push(last as i32);
        (documents.values().clone(), starts)
    };
    let offsets = OffsetBuffer::new(ScalarBuffer::<i32>::from(offsets));
    let pieces = Arc::new(ListArray::new(item.clone(), offsets, values, None));
    Chunked { from, number, pieces }
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
        let pieces = chunked.pieces.as_list::<i32>();
        pieces.iter().flatten().map(|piece| piece.as_primitive::<Int32Type>().values().to_vec()).collect()
    }

    #[test]
    fn documents_are_cut_and_the_rest_is_kept_or_dropped() {
        let all = documents(&[vec![1, 2, 3, 4, 5], vec![], vec![6], vec![7, 8, 9, 10]]);
        let chunked = chunk(&all, Chunk::of(2));
        assert_eq!(pieces(&chunked), [vec![1, 2], vec![3, 4], vec![5], vec![6], vec![7, 8], vec![9, 10]]);
        assert_eq!((chunked.from, chunked.number), (vec![0, 0, 0, 2, 3, 3], vec![0, 1, 2, 0, 0, 1]));
        let dropped = chunk(&all, Chunk::of(2).drop_last());
        assert_eq!(pieces(&dropped), [vec![1, 2], vec![3, 4], vec![7, 8], vec![9, 10]]);
        assert_eq!(dropped.from, [0, 0, 3, 3]);
        let part = chunk(&all.slice(1, 3), Chunk::of(3));
        assert_eq!(pieces(&part), [vec![6], vec![7, 8, 9], vec![10]]);
    }

    proptest! {
        #[test]
        fn no_token_is_lost_and_none_moves(lists in prop::collection::vec(prop::collection::vec(any::<i32>(), 0..40), 0..20), len in 1usize..12) {
            let chunked = chunk(&documents(&lists), Chunk::of(len));
            let found = pieces(&chunked);
            prop_assert!(found.iter().all(|piece| (1..=len).contains(&piece.len())));
            prop_assert_eq!(found.concat(), lists.concat());
            let dropped = chunk(&documents(&lists), Chunk::of(len).drop_last());
            let whole: Vec<i32> = lists.iter().flat_map(|list| list[..list.len() / len * len].iter().copied()).collect();
            prop_assert_eq!(pieces(&dropped).concat(), whole);
            prop_assert!(pieces(&dropped).iter().all(|piece| piece.len() == len));
        }
    }
}
