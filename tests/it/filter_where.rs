//! Conditions: the rows that hold, whatever the source could rule out beforehand.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use forebay::store::Store;
use forebay::testing::restores_everywhere;
use forebay::{Dataset, Expr, Result, Shuffle, col, int64};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};

const ROWS: i64 = 4000;

/// Row numbers, a text that changes every 500 rows, and a float that goes down; in row groups of 1,000 and pages of 100.
fn put(url: &str, properties: WriterPropertiesBuilder) {
    let lang = ["de", "en", "fr", "it"];
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(Int64Array::from_iter_values(0..ROWS))),
        ("lang", Arc::new(StringArray::from_iter_values((0..ROWS).map(|row| lang[(row / 500 % 4) as usize])))),
        ("score", Arc::new(Float64Array::from_iter_values((0..ROWS).map(|row| (ROWS - row) as f64 / 8.0)))),
        ("hash", Arc::new(Int64Array::from_iter_values((0..ROWS).map(|row| (row * 7919) % 100_003)))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let properties = properties
        .set_max_row_group_row_count(Some(1000))
        .set_data_page_row_count_limit(100)
        .set_write_batch_size(50)
        .set_dictionary_enabled(false)
        .build();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties)).expect("a schema");
    writer.write(&batch).expect("memory");
    writer.close().expect("memory");
    Store::memory_put(url, Bytes::from(file)).expect("memory");
}

/// The ids that are delivered, by one stream and so in their order, and the bytes that were read of rows.
fn delivered(dataset: &Dataset) -> Result<(Vec<i64>, u64)> {
    let mut loader = dataset.batch(64).loader().seed(3).streams(1).build()?;
    let mut ids = Vec::new();
    for batch in &mut loader {
        ids.extend(batch?.values::<i64>("id")?.iter());
    }
    let read = loader.report().stage("read").map_or(0, |stage| stage.bytes);
    Ok((ids, read))
}

/// A condition, and which rows it holds for.
type Case = (Expr, Box<dyn Fn(i64) -> bool>);

fn conditions() -> Vec<Case> {
    vec![
        (col("lang").eq("en"), Box::new(|row| row / 500 % 4 == 1)),
        (col("id").lt(150), Box::new(|row| row < 150)),
        (col("id").ge(1990).and(col("id").lt(2010)), Box::new(|row| (1990..2010).contains(&row))),
        (col("score").gt(499.0).or(col("lang").eq("it")), Box::new(|row| row < 8 || row / 500 % 4 == 3)),
        (!col("id").le(3900), Box::new(|row| row > 3900)),
        (col("id").is_in([5, 3005]), Box::new(|row| row == 5 || row == 3005)),
        (col("hash").eq(7919 * 1234 % 100_003), Box::new(|row| row == 1234)),
        (col("lang").ne("xx"), Box::new(|_| true)),
        (col("id").lt(0), Box::new(|_| false)),
    ]
}

#[test]
fn rows_that_hold_come_in_their_order_however_the_file_was_written() {
    let without = || WriterProperties::builder().set_statistics_enabled(EnabledStatistics::None);
    let ways = [
        ("pages", WriterProperties::builder()),
        ("groups", WriterProperties::builder().set_statistics_enabled(EnabledStatistics::Chunk)),
        ("nothing", without()),
        ("bloom", without().set_bloom_filter_enabled(true)),
    ];
    for (way, properties) in ways {
        let url = format!("memory://filter-where/{way}.parquet");
        put(&url, properties);
        let all = delivered(&Dataset::open(url.as_str()).unwrap()).unwrap().1;
        for (condition, holds) in conditions() {
            let dataset = Dataset::open(url.as_str()).unwrap().filter_where(condition.clone());
            let (ids, read) = delivered(&dataset).unwrap();
            let wanted: Vec<i64> = (0..ROWS).filter(|&row| holds(row)).collect();
            assert_eq!(ids, wanted, "{way}: {condition}");
            if way == "pages" && wanted.len() < 200 && condition.to_string().starts_with("id") {
                assert!(read < all / 2, "{way}: {condition} read {read} of {all} bytes");
            }
            if way == "groups" && condition.to_string() == "id < 150" {
                assert!(read < all / 3, "{way}: {condition} read {read} of {all} bytes");
            }
            if way == "bloom" && condition.to_string().starts_with("hash") {
                assert!(read < all / 3, "{way}: {condition} read {read} of {all} bytes");
            }
        }
    }
}

#[test]
fn the_column_of_a_condition_is_read_for_it_alone() {
    let url = "memory://filter-where/columns.parquet";
    put(url, WriterProperties::builder());
    let dataset = Dataset::open(url).unwrap().filter_where(col("lang").eq("fr")).columns([int64("id")]);
    let mut loader = dataset.batch(64).loader().build().unwrap();
    let batch = (&mut loader).into_iter().next().unwrap().unwrap();
    assert_eq!(batch.names().collect::<Vec<_>>(), ["id"]);
    assert_eq!(batch.values::<i64>("id").unwrap()[0], 1000);
    // Below the choice of columns it is not there, and above it must be.
    let error = Dataset::open(url).unwrap().columns([int64("id")]).filter_where(col("lang").eq("fr")).batch(4);
    let error = error.loader().build().err().unwrap().to_string();
    assert!(error.contains("a condition on a column \"lang\"; these exist: id"), "{error}");
    let error = Dataset::open(url).unwrap().filter_where(col("lang").eq(3)).batch(4).loader().build().err().unwrap();
    assert!(error.to_string().contains("`lang: bytes` compared with 3"), "{error}");
}

#[test]
fn rows_that_are_counted_before_a_condition_are_not_left_out() {
    let url = "memory://filter-where/counted.parquet";
    put(url, WriterProperties::builder());
    let open = || Dataset::open(url).unwrap();
    let ids = |dataset: &Dataset| delivered(dataset).unwrap().0;
    assert_eq!(ids(&open().skip(10).take(100).filter_where(col("id").ge(105))), [105, 106, 107, 108, 109]);
    let numbered = open().enumerate("position").filter_where(col("id").eq(3000)).batch(1).loader().build().unwrap();
    let batch = numbered.into_iter().next().unwrap().unwrap();
    assert_eq!(*batch.values::<i64>("position").unwrap(), [3000]);
    let replaced = open().map("minus", [int64("id")], |_, row, out| out.set("id", -row.get::<i64>("id")?));
    assert_eq!(ids(&replaced.filter_where(col("id").lt(-3997))), [-3998, -3999]);
    let twice = open();
    let both = twice.filter_where(col("id").lt(2)).concat(&twice.filter_where(col("id").ge(3998)));
    assert_eq!(ids(&both), [0, 1, 3998, 3999]);
}

#[test]
fn runs_with_conditions_go_on_from_every_batch() {
    let url = "memory://filter-where/restored.parquet";
    put(url, WriterProperties::builder());
    let dataset = Dataset::open(url)
        .unwrap()
        .filter_where(col("lang").eq("en").and(col("id").lt(800)))
        .shuffle(Shuffle::buffer(100))
        .batch(32);
    restores_everywhere(&dataset).unwrap();
}
