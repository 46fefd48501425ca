//! Sources of users' own: what they may get wrong is an error that says what and where.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewArray, Float32Array, Int32Array, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use forebay::plan::Catalog;
use forebay::source::Decoded;
use forebay::{Column, Dataset, Error, ErrorKind, Result, Skip, Source, float32, int64};

use crate::support::source::Numbers;
use crate::support::take;

/// Two blocks of three rows in a shard `given`, each with these arrays.
struct Given {
    columns: Vec<Column>,
    catalog: Catalog,
    arrays: Vec<(&'static str, ArrayRef)>,
    bad: Vec<usize>,
}

impl Given {
    fn new(column: Column, arrays: impl IntoIterator<Item = (&'static str, ArrayRef)>) -> Self {
        let mut catalog = Catalog::new();
        catalog.push_shard("given");
        (0..2).for_each(|_| catalog.push_block(3, 24));
        Self { columns: vec![column], catalog, arrays: arrays.into_iter().collect(), bad: Vec::new() }
    }
}

impl Source for Given {
    fn name(&self) -> String {
        "given".into()
    }
    fn columns(&self) -> &[Column] {
        &self.columns
    }
    fn catalog(&self) -> &Catalog {
        &self.catalog
    }
    fn decode(&self, _block: usize, _fetched: Vec<Bytes>) -> Result<Decoded> {
        let rows = RecordBatch::try_from_iter_with_nullable(
            self.arrays.iter().map(|(name, array)| (*name, array.clone(), true)),
        );
        let bad = self.bad.iter().map(|&row| (row, Error::new(ErrorKind::Corrupt, "odd")));
        Ok(Decoded::with_bad(rows.expect("arrays of one length"), bad.collect()))
    }
}

fn failure(source: Given) -> Result<Error> {
    Ok(take(Dataset::from_source(source).batch(2).loader(), 0, |_| Ok(()))?.failure().clone())
}

#[test]
fn arrays_of_other_types_than_declared_are_errors_that_name_both() -> Result<()> {
    let bytes = || forebay::bytes("x");
    let cases: [(Column, ArrayRef, &str); 5] = [
        (
            float32("x"),
            Arc::new(Int32Array::from(vec![0, 1, 2])),
            "an array of Int32, where x: f32 is declared: Float32",
        ),
        (int64("x"), Arc::new(Float32Array::from(vec![0.0, 1.0, 2.0])), "an array of Float32"),
        (float32("x"), Arc::new(Int64Array::from(vec![0, 1, 2])), "an array of Int64"),
        (bytes(), Arc::new(StringArray::from(vec!["a", "b", "c"])), "where x: bytes is declared: BinaryView"),
        (int64("x").fixed([2]), Arc::new(Int64Array::from(vec![0, 1, 2])), "an array of Int64"),
    ];
    for (column, array, said) in cases {
        let error = failure(Given::new(column, [("x", array)]))?;
        assert_eq!((error.kind(), error.place().column.as_deref()), (ErrorKind::Schema, Some("x")), "{error}");
        let text = error.to_string();
        assert!(text.contains(said) && text.contains("decode() of \"given\""), "{text}");
        assert_eq!(error.place().block, Some(0), "{text}");
    }
    let error = failure(Given::new(int64("x"), [("y", Arc::new(Int64Array::from(vec![0, 1, 2])) as _)]))?;
    assert!(error.to_string().contains("a block without this column"), "{error}");
    Ok(())
}

#[test]
fn rows_with_a_null_are_bad_rows_with_their_place() -> Result<()> {
    let array = Arc::new(Int64Array::from(vec![Some(5), None, Some(7)]));
    let dataset = || Dataset::from_source(Given::new(int64("x"), [("x", array.clone() as ArrayRef)])).batch(6);
    let error = take(dataset().loader(), 0, |_| Ok(()))?.failure().clone();
    let place = error.place();
    assert_eq!(
        (place.record, place.column.as_deref(), place.url.as_deref()),
        (Some(1), Some("x"), Some("given")),
        "{error}"
    );
    assert!(error.to_string().contains("a null"), "{error}");
    let taken =
        take(dataset().loader().on_bad_record(Skip::up_to(2)), 0, |batch| Ok(batch.values::<i64>("x")?.to_vec()))?;
    assert_eq!(taken.whole(), [[5, 7, 5, 7]]);
    Ok(())
}

#[test]
fn bad_rows_say_where_they_stand_though_the_source_does_not() -> Result<()> {
    let array: ArrayRef = Arc::new(BinaryViewArray::from(vec![&b"a"[..], b"b", b"c"]));
    let mut source = Given::new(forebay::bytes("x"), [("x", array)]);
    source.bad = vec![2];
    let error = failure(source)?;
    assert_eq!((error.place().record, error.place().url.as_deref()), (Some(2), Some("given")), "{error}");
    Ok(())
}

#[test]
fn a_panic_of_a_read_says_what_it_said() -> Result<()> {
    let mut numbers = Numbers::new(&[vec![10; 3]], 8);
    numbers.fetch_panics_at = Some(1);
    let error = take(numbers.dataset().batch(5).loader(), 0, |_| Ok(()))?.failure().clone();
    assert_eq!(error.kind(), ErrorKind::Panicked);
    assert!(error.to_string().contains("the disk is upside down"), "{error}");
    Ok(())
}
