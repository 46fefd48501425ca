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

/// The value beside token `id`.
fn beside(id: i64, dtype: Dtype) -> i64 {
    if dtype == Dtype::Bool { id % 2 } else { id % 97 }
}

/// The values beside each token of [`documents`], in lists that begin elsewhere.
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
    let lists =
        ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1)]), Some(vec![Some(2), Some(1 << 40)])]);
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
    assert!(said[0].starts_with("1: column mask: 3 elements beside the 2 tokens of `tokens`; give each"), "{said:?}");
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

/// Places pieces with a model of a few lines, which looks at all open bins each time.
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
        let placed: Vec<usize> = place::place(&pieces, &options).into_iter().map(|bin| bin as usize).collect();
        prop_assert_eq!(placed, modelled(&lengths, &options));
    }
}
