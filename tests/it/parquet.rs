//! Parquet from several writers, through the public interface: what pyarrow reads of a file is what batches hold; damage ends in errors.

use std::ops::Range;

use arrow::array::{Array as _, AsArray as _};
use forebay::testing::restores_everywhere;
use forebay::{
    Batch, Budget, Column, Dataset, Dtype, ErrorKind, Image, Layout, LoaderBuilder, Missing, Result, Scheduler, Shape,
    Shuffle, Skip, World, bytes, float32, int64,
};
use serde_json::Value;

use crate::support::shards::{Folder, content, golden};
use crate::support::{alone, take, take_ids};

// --- golden files --------------------------------------------------------------------------------------------------------

/// The golden files, each with the JSON file that says what pyarrow reads.
const GOLDEN: [(&str, &str); 26] = [
    ("pyarrow-types", "pyarrow-types"),
    ("pyarrow-nulls", "pyarrow-nulls"),
    ("pyarrow-lists-v1", "pyarrow-lists"),
    ("pyarrow-lists-v2", "pyarrow-lists"),
    ("pyarrow-nested", "pyarrow-nested"),
    ("pyarrow-images", "pyarrow-images"),
    ("pyarrow-rows-none-v1-plain", "pyarrow-rows"),
    ("pyarrow-rows-none-v2-dictionary", "pyarrow-rows"),
    ("pyarrow-rows-snappy-v1", "pyarrow-rows"),
    ("pyarrow-rows-gzip-v2", "pyarrow-rows"),
    ("pyarrow-rows-brotli-v1", "pyarrow-rows"),
    ("pyarrow-rows-zstd-v2-checksums", "pyarrow-rows"),
    ("pyarrow-rows-lz4-v1-checksums", "pyarrow-rows"),
    ("pyarrow-rows-empty-groups-plain", "pyarrow-rows"),
    ("pyarrow-rows-empty-groups-dictionary", "pyarrow-rows"),
    ("pyarrow-encodings", "pyarrow-encodings"),
    ("duckdb-v1-snappy", "duckdb"),
    ("duckdb-v2-zstd", "duckdb"),
    ("duckdb-v2-lz4_raw", "duckdb"),
    ("polars-zstd", "polars"),
    ("polars-lz4", "polars"),
    ("polars-uncompressed", "polars"),
    ("spark-snappy", "spark"),
    ("spark-legacy-gzip", "spark-legacy"),
    ("spark-v2-zstd", "spark"),
    ("spark-lz4raw-bloom", "spark"),
];

fn path(name: &str) -> String {
    golden(&format!("parquet/{name}.parquet"))
}

/// What pyarrow reads of a file.
struct Expected {
    rows: usize,
    left_out: Vec<String>,
    columns: Vec<(Column, Value)>,
}

impl Expected {
    fn of(name: &str) -> Self {
        let json: Value = serde_json::from_slice(&content(&golden(&format!("parquet/{name}.json")))).expect("JSON");
        let columns = json["columns"].as_object().expect("an object");
        let columns = columns.iter().map(|(name, column)| (declared(name, column), column.clone()));
        let left_out = json["left_out"].as_array().expect("a list");
        Self {
            rows: json["rows"].as_u64().expect("a number") as usize,
            left_out: left_out.iter().map(|name| name.as_str().expect("a name").to_owned()).collect(),
            columns: columns.collect(),
        }
    }
}

fn declared(name: &str, column: &Value) -> Column {
    let dtype = match column["dtype"].as_str().expect("a name") {
        "i8" => Dtype::I8,
        "i16" => Dtype::I16,
        "i32" => Dtype::I32,
        "i64" => Dtype::I64,
        "u8" => Dtype::U8,
        "f16" => Dtype::F16,
        "f32" => Dtype::F32,
        "f64" => Dtype::F64,
        "bool" => Dtype::Bool,
        "bytes" => Dtype::Bytes,
        other => panic!("no dtype {other}"),
    };
    let shape = column["shape"].as_array().expect("a list");
    let extents = shape[1..].iter().map(|extent| extent.as_u64().expect("a number") as usize).collect();
    let shape = match shape[0].as_str() {
        Some("scalar") => Shape::Scalar,
        Some("fixed") => Shape::Fixed(extents),
        _ => Shape::Ragged(extents),
    };
    Column::new(name, dtype, shape)
}

fn hex(bytes: impl IntoIterator<Item = u8>) -> Value {
    bytes.into_iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

/// The elements of a column, sample by sample, flat; written as in the JSON files.
fn elements(batch: &Batch, column: &Column) -> Result<Vec<Vec<Value>>> {
    let name = column.name().as_ref();
    if column.dtype() == Dtype::Bytes {
        if *column.shape() == Shape::Scalar {
            return Ok(batch.bytes(name)?.map(|value| vec![hex(value.iter().copied())]).collect());
        }
        let lists = batch.array(name)?.as_list::<i32>().clone();
        let strings = |list: arrow::array::ArrayRef| {
            let list = list.as_binary_view().clone();
            (0..list.len()).map(|at| hex(list.value(at).iter().copied())).collect()
        };
        return Ok((0..batch.len()).map(|row| strings(lists.value(row))).collect());
    }
    macro_rules! flat {
        ($t:ty, $write:expr) => {
            batch.values::<$t>(name)?.iter().map($write).collect::<Vec<Value>>()
        };
    }
    let flat = match column.dtype() {
        Dtype::U8 | Dtype::Bool => flat!(u8, |&v| v.into()),
        Dtype::I8 => flat!(i8, |&v| v.into()),
        Dtype::I16 => flat!(i16, |&v| v.into()),
        Dtype::I32 => flat!(i32, |&v| v.into()),
        Dtype::I64 => flat!(i64, |&v| v.into()),
        Dtype::F16 => flat!(half::f16, |v| hex(v.to_be_bytes())),
        Dtype::F32 => flat!(f32, |v| hex(v.to_be_bytes())),
        Dtype::F64 => flat!(f64, |v| hex(v.to_be_bytes())),
        other => panic!("no elements of {other}"),
    };
    let each = flat.len() / batch.len().max(1);
    let rows = (0..batch.len()).map(|row| flat[row * each..(row + 1) * each].to_vec());
    let Shape::Ragged(inner) = column.shape() else { return Ok(rows.collect()) };
    let item: usize = inner.iter().product();
    let lengths = batch.lengths(name)?;
    Ok(rows.zip(lengths).map(|(row, &length)| row[..length as usize * item].to_vec()).collect())
}

/// The elements of an expected value, flat, with zeros for what is null.
fn flat(value: &Value, column: &Column) -> Vec<Value> {
    let zero = || match column.dtype() {
        Dtype::Bytes => "".into(),
        Dtype::F16 => "0000".into(),
        Dtype::F32 => "00000000".into(),
        Dtype::F64 => "0000000000000000".into(),
        _ => 0.into(),
    };
    match value {
        Value::Array(items) => items.iter().flat_map(|item| flat(item, column)).collect(),
        Value::Null => vec![zero()],
        there => vec![there.clone()],
    }
}

fn without_value(column: &Column) -> Vec<Value> {
    match column.shape() {
        Shape::Scalar => flat(&Value::Null, column),
        Shape::Fixed(extents) => vec![flat(&Value::Null, column)[0].clone(); extents.iter().product()],
        Shape::Ragged(_) => Vec::new(),
    }
}

/// NaN has many bits.
fn alike(found: &Value, wanted: &Value) -> bool {
    let is_nan = |value: &Value| {
        let bits = value.as_str().and_then(|text| Some((text.len(), u64::from_str_radix(text, 16).ok()?)));
        matches!(bits, Some((4, bits)) if half::f16::from_bits(bits as u16).is_nan())
            || matches!(bits, Some((8, bits)) if f32::from_bits(bits as u32).is_nan())
            || matches!(bits, Some((16, bits)) if f64::from_bits(bits).is_nan())
    };
    found == wanted || is_nan(found) && is_nan(wanted)
}

fn mask_of(column: &Column) -> Column {
    Column::new(format!("{}.is_present", column.name()), Dtype::Bool, Shape::Scalar)
}

#[test]
fn files_of_all_writers_hold_what_pyarrow_reads_with_nulls_as_masks() -> Result<()> {
    let mut wrong = Vec::new();
    for (name, json) in GOLDEN {
        let expected = Expected::of(json);
        for (column, wanted) in &expected.columns {
            let (column, wanted) = (column.clone(), wanted["values"].as_array().expect("a list").clone());
            let mask = mask_of(&column);
            let what = format!("{name}, {column}");
            let dataset = Dataset::open(path(name))?.columns([column.clone().optional(), mask.clone()]).batch(7);
            let loader = dataset.loader().scheduler(Scheduler::single_threaded());
            let of = column.clone();
            let taken = take(loader, 0, move |batch| Ok((elements(batch, &of)?, elements(batch, &mask)?)))?;
            let (found, masks): (Vec<_>, Vec<_>) = taken.whole().into_iter().unzip();
            let (found, masks) = (found.concat(), masks.concat().concat());
            assert_eq!((found.len(), masks.len()), (expected.rows, expected.rows), "{what}");
            for (row, wanted) in wanted.iter().enumerate() {
                assert_eq!(masks[row], u8::from(!wanted.is_null()), "{what}, row {row}: mask");
                let wanted = if wanted.is_null() { without_value(&column) } else { flat(wanted, &column) };
                let equal =
                    found[row].len() == wanted.len() && found[row].iter().zip(&wanted).all(|(a, b)| alike(a, b));
                if !equal {
                    wrong.push(format!("{what}, row {row}: {:?}, not {wanted:?}", found[row]));
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn columns_are_found_out_and_what_no_tensor_holds_is_left_out_and_noted() -> Result<()> {
    for (name, json) in GOLDEN {
        let expected = Expected::of(json);
        let mut loader = Dataset::open(path(name))?.batch(8).loader().on_bad_record(Skip::rate(1.0)).build()?;
        let notes = loader.report().to_string();
        expected.left_out.iter().for_each(|left| assert!(notes.contains(left.as_str()), "{name}: {notes}"));
        // Nulls that nothing was declared for make rows bad; where all are, there is no batch.
        let Some(batch) = loader.epoch(0).next() else { continue };
        let batch = batch?;
        let mut names: Vec<&str> = batch.names().collect();
        let mut wanted: Vec<&str> = expected.columns.iter().map(|(column, _)| column.name().as_ref()).collect();
        names.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(names, wanted, "{name}");
        for (column, _) in &expected.columns {
            let found = elements(&batch, column).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(found.len(), batch.len(), "{name}, {column}");
        }
    }
    Ok(())
}

#[test]
fn decimals_are_whole_numbers_of_their_scale_where_that_is_declared() -> Result<()> {
    for (name, json, columns) in [
        ("pyarrow-types", "pyarrow-types", &["decimal9", "decimal18", "decimal38"][..]),
        ("duckdb-v2-zstd", "duckdb", &["decimal", "wide"]),
        ("spark-legacy-gzip", "spark-legacy", &["decimal", "wide"]),
        ("spark-snappy", "spark", &["decimal", "wide"]),
        ("polars-zstd", "polars", &["price"]),
    ] {
        let expected = Expected::of(json);
        for &column in columns {
            let (_, json) = expected.columns.iter().find(|(found, _)| found.name().as_ref() == column).expect("there");
            let wanted: Vec<i64> = json["unscaled"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|value| value.as_str().expect("digits").parse().expect("64 bits"))
                .collect();
            let dataset = Dataset::open(path(name))?.columns([int64(column)]).batch(9);
            assert_eq!(take_ids(dataset.loader(), column)?.whole().concat(), wanted, "{name}, {column}");
        }
    }
    Ok(())
}

#[test]
fn integers_of_128_bits_are_their_bytes_and_refused_by_name_where_arrow_has_to_read_them() -> Result<()> {
    let columns = [bytes("wide"), int64("y")];
    let taken = take(Dataset::open(path("polars-int128"))?.columns(columns).batch(3).loader(), 0, |batch| {
        let wide: Vec<Vec<u8>> = batch.bytes("wide")?.map(<[u8]>::to_vec).collect();
        Ok((wide, batch.values::<i64>("y")?.to_vec()))
    })?;
    let wide = [1i128, 2, 3].map(|number| number.to_le_bytes().to_vec()).to_vec();
    assert_eq!(taken.whole(), [(wide, vec![4, 5, 6])]);
    let error = Dataset::open(golden("parquet/polars-int128.arrow"))?
        .batch(3)
        .loader()
        .build()
        .expect_err("a schema that is not read");
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("column \"wide\" has integers of 128 bits"), "{error}");
    Ok(())
}

#[test]
fn images_of_the_hugging_face_convention_are_decoded() -> Result<()> {
    let dataset = Dataset::open(path("pyarrow-images"))?
        .columns([bytes("image.bytes"), int64("label")])
        .image("image.bytes", Image::gray().resize(4, 6).layout(Layout::Nhwc))
        .batch(4);
    let taken = take(dataset.loader(), 0, |batch| {
        assert_eq!(batch.shape("image.bytes")?, [batch.len(), 4, 6, 1]);
        Ok((batch.values::<i64>("label")?.into_owned(), batch.values::<u8>("image.bytes")?.into_owned()))
    })?;
    let (labels, pixels): (Vec<_>, Vec<_>) = taken.whole().into_iter().unzip();
    assert_eq!(labels.concat(), (0..10).map(|row| row % 2).collect::<Vec<_>>());
    let wanted = (0..10u32).flat_map(|seed| (0..4).flat_map(move |y| (0..6).map(move |x| seed * 40 + 20 * x + 5 * y)));
    assert_eq!(pixels.concat(), wanted.map(|value| value as u8).collect::<Vec<_>>());
    Ok(())
}

// --- nulls -----------------------------------------------------------------------------------------------------------------

#[test]
fn a_null_is_an_error_with_its_row_or_a_value_or_left_out() -> Result<()> {
    let open = |column: Column| -> Result<Dataset> {
        Ok(Dataset::open(path("pyarrow-rows-snappy-v1"))?.columns([int64("id"), column]).batch(10))
    };
    let taken = take_ids(open(float32("value"))?.loader(), "id")?;
    let error = taken.failure();
    // Every sixth value is null, from row 5 on.
    assert_eq!(taken.batches.concat(), (0..5).collect::<Vec<_>>());
    assert_eq!((error.kind(), error.place().record), (ErrorKind::Schema, Some(5)), "{error}");
    let text = error.to_string();
    for words in ["pyarrow-rows-snappy-v1.parquet", "record 5", "column value", "null", ".optional()"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let skipped = take_ids(open(float32("value"))?.loader().on_bad_record(Skip::up_to(16)), "id")?;
    assert_eq!(skipped.whole().concat(), (0..100).filter(|row| row % 6 != 5).collect::<Vec<_>>());
    let value = |batch: &Batch| Ok(batch.values::<f32>("value")?.into_owned());
    let filled = take(open(float32("value").or(Missing::Float(-1.0)))?.loader(), 0, value)?.whole().concat();
    let wanted = (0..100).map(|row| if row % 6 == 5 { -1.0 } else { (f64::from(row) / 3.0) as f32 });
    assert_eq!(filled, wanted.collect::<Vec<_>>());
    Ok(())
}

#[test]
fn columns_that_are_not_there_or_are_other_are_named_before_anything_is_read() -> Result<()> {
    for (column, words) in [
        (int64("imaeg.bytes"), "id, few, value, tokens, text, flag"),
        (int64("text"), "is stored as"),
        (bytes("id"), "is stored as"),
        (int64("value"), "declare it as f32"),
        (bytes("tokens").ragged(), "declare it as i32"),
    ] {
        let dataset = Dataset::open(path("pyarrow-rows-snappy-v1"))?.columns([column.clone()]).batch(10);
        let error = dataset.loader().build().expect_err("it cannot be read");
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Schema, "{text}");
        assert!(text.contains(words) && text.contains(column.name().as_ref()), "{words}: {text}");
    }
    Ok(())
}

#[test]
fn shards_of_other_schemas_are_reported_with_both() -> Result<()> {
    let folder = Folder::new();
    folder.put("0.parquet", &content(&path("pyarrow-rows-snappy-v1")));
    folder.put("1.parquet", &content(&path("polars-zstd")));
    for dataset in [folder.open("*.parquet"), folder.open("*.parquet").columns([int64("id"), int64("few")])] {
        let error = dataset.batch(4).loader().build().expect_err("the schemas differ");
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Schema, "{text}");
        for words in ["0.parquet", "1.parquet", "few: Int32", "category: "] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
    // What all of them have can be read of all.
    let dataset = folder.open("*.parquet").columns([int64("id")]).batch(50);
    let wanted: Vec<i64> = (0..100).chain(0..30).collect();
    assert_eq!(take_ids(dataset.loader(), "id")?.whole().concat(), wanted);
    Ok(())
}

// --- order -----------------------------------------------------------------------------------------------------------------

/// Files of 100 rows with ids that go on: in row groups of 40, with pages of 10 rows.
fn shuffled(buffer: u64) -> Result<(Folder, Dataset)> {
    let folder = Folder::new();
    for (number, name) in ["snappy-v1", "gzip-v2", "none-v1-plain"].iter().enumerate() {
        folder.put(&format!("{number}.parquet"), &content(&path(&format!("pyarrow-rows-{name}"))));
    }
    let dataset =
        folder.open("*.parquet").columns([int64("id"), Column::new("tokens", Dtype::I32, Shape::Ragged(vec![]))]);
    Ok((folder, dataset.shuffle(Shuffle::buffer(buffer)).batch(12)))
}

#[test]
fn every_row_comes_once_with_its_columns_whatever_the_world() -> Result<()> {
    let (_folder, dataset) = shuffled(64)?;
    for size in [1, 2, 4] {
        let mut ids = Vec::new();
        for rank in 0..size {
            let loader = dataset.loader().seed(5).streams(4).world(World::new(rank, size)?);
            let taken = take(loader, 1, |batch| {
                let ids = batch.values::<i64>("id")?.into_owned();
                let lengths = batch.lengths("tokens")?;
                ids.iter().zip(lengths).for_each(|(id, &length)| assert_eq!(length, id % 6, "row {id}"));
                Ok(ids)
            });
            ids.extend(taken?.batches.concat());
        }
        ids.sort_unstable();
        let wanted: Vec<i64> = (0..100).flat_map(|id| [id; 3]).collect();
        assert_eq!(ids, wanted, "{size} ranks");
    }
    Ok(())
}

#[test]
fn a_global_shuffle_says_how_often_it_reads_the_data() -> Result<()> {
    let dataset = Dataset::open(path("pyarrow-rows-snappy-v1"))?.columns([int64("id")]);
    for (shuffle, said) in [(Shuffle::buffer(64), false), (Shuffle::global(), true)] {
        let report = dataset.shuffle(shuffle).batch(8).loader().build()?.report();
        assert_eq!(report.to_string().contains("a global shuffle of"), said, "{report}");
    }
    Ok(())
}

#[test]
fn threads_change_nothing_and_seeds_do() -> Result<()> {
    let (_folder, dataset) = shuffled(64)?;
    let ids = |loader: LoaderBuilder| Ok::<_, forebay::Error>(take_ids(loader, "id")?.whole());
    let one = ids(dataset.loader().seed(1).scheduler(Scheduler::single_threaded()))?;
    assert!(!one.concat().is_sorted());
    assert_eq!(ids(dataset.loader().seed(1).scheduler(Scheduler::threads(4)))?, one);
    assert_ne!(ids(dataset.loader().seed(2))?, one);
    Ok(())
}

#[test]
fn a_run_goes_on_at_every_step() -> Result<()> {
    for buffer in [30, 1000] {
        let (_folder, dataset) = shuffled(buffer)?;
        restores_everywhere(&dataset)?;
    }
    Ok(())
}

// --- damage ----------------------------------------------------------------------------------------------------------------

/// Reads a file whole, as it comes; the rows until the error, if there is one.
fn read(url: String, budget: u64) -> Result<u64> {
    let loader = Dataset::open(url)?.batch(16).loader().scheduler(Scheduler::single_threaded());
    let loader = loader.budget(Budget::of_bytes(budget)).on_bad_record(Skip::rate(1.0));
    let mut rows = 0;
    for batch in loader.build()?.epoch(0) {
        rows += batch?.len() as u64;
    }
    Ok(rows)
}

#[track_caller]
fn assert_refused(error: &forebay::Error, what: &str) {
    let kinds = [ErrorKind::Corrupt, ErrorKind::Schema, ErrorKind::Memory, ErrorKind::Config];
    assert!(kinds.contains(&error.kind()), "{what}: {error}");
    assert!(error.to_string().contains("damaged.parquet"), "{what}: {error}");
}

#[test]
fn every_cut_is_refused() {
    let folder = Folder::new();
    for name in ["pyarrow-nested", "pyarrow-images"] {
        let whole = content(&path(name));
        for end in 0..whole.len() {
            folder.put("damaged.parquet", &whole[..end]);
            let error = read(folder.url("damaged.parquet"), 64 << 20).expect_err("half a file");
            assert_refused(&error, &format!("{name} cut at {end}"));
        }
    }
}

#[test]
fn flipped_bits_end_in_errors_or_in_rows() -> Result<()> {
    let folder = Folder::new();
    let mut state = 42u64;
    let mut draw = |below: usize| {
        // Knuth's multiplier: which bits are flipped is the same in every run.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let names = ["pyarrow-lists-v1", "pyarrow-rows-gzip-v2", "duckdb-v2-zstd", "spark-legacy-gzip", "polars-lz4"];
    for name in names {
        let whole = content(&path(name));
        let rows = read(path(name), 64 << 20)?;
        for _ in 0..60 {
            let mut damaged = whole.clone();
            // Half of them in the footer, where sizes stand.
            let from = if draw(2) == 0 { 0 } else { whole.len() * 3 / 4 };
            let at = from + draw(whole.len() - from);
            damaged[at] ^= 1 << draw(8);
            folder.put("damaged.parquet", &damaged);
            match read(folder.url("damaged.parquet"), 64 << 20) {
                Ok(found) => assert!(found <= 2 * rows + 1000, "{name} flipped at {at}: {found} rows"),
                Err(error) => assert_refused(&error, &format!("{name} flipped at {at}")),
            }
        }
    }
    Ok(())
}

#[test]
fn pages_with_checksums_show_every_flipped_bit() {
    let folder = Folder::new();
    let whole = content(&path("pyarrow-rows-zstd-v2-checksums"));
    let dataset = || folder.open("damaged.parquet").columns([int64("id")]).batch(16);
    folder.put("damaged.parquet", &whole);
    // The first column of the first row group begins behind the magic; its pages follow the dictionary.
    let mut refused = 0;
    for at in (60..200).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x20;
        folder.put("damaged.parquet", &damaged);
        let taken = take_ids(dataset().loader(), "id").expect("the footer is sound");
        match &taken.error {
            Some(error) => {
                assert!(error.kind() == ErrorKind::Corrupt && taken.batches.is_empty(), "byte {at}: {error}");
                refused += u64::from(error.to_string().contains("checksum"));
            }
            // A number in a header that says nothing of importance.
            None => assert_eq!(taken.whole().concat(), (0..100).collect::<Vec<_>>(), "byte {at}"),
        }
    }
    // Headers take as much room as what they stand before.
    assert!(refused >= 5, "{refused} flips were seen by a checksum");
}

#[test]
fn wrong_magic_and_footers_beyond_the_file_are_named() {
    let folder = Folder::new();
    let whole = content(&path("pyarrow-nested"));
    let end = whole.len();
    let with = |place: Range<usize>, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[place].copy_from_slice(bytes);
        changed
    };
    for (file, words) in [
        (with(end - 4..end, b"PAR2"), "does not end in PAR1"),
        (with(end - 4..end, b"PARE"), "encrypted"),
        (whole[..end / 2].to_vec(), "does not end in PAR1"),
        (with(end - 8..end - 4, &u32::MAX.to_le_bytes()), "a footer of 4294967295 bytes in a file of"),
        (with(end - 8..end - 4, &(end as u32).to_le_bytes()), "bytes in a file of"),
        (with(end - 8..end - 4, &3u32.to_le_bytes()), "footer"),
        (b"PAR1PAR1".to_vec(), "8 bytes are no Parquet file"),
        (b"not Parquet, but a text that somebody named so".to_vec(), "does not end in PAR1"),
    ] {
        folder.put("damaged.parquet", &file);
        let error = read(folder.url("damaged.parquet"), 64 << 20).expect_err("it is damaged");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(words) && error.to_string().contains("damaged.parquet"), "{words}: {error}");
    }
}

/// A footer with these fields in Thrift's compact protocol, behind nothing.
fn file_with_footer(footer: &[u8]) -> Vec<u8> {
    let mut file = b"PAR1".to_vec();
    file.extend(footer);
    file.extend((footer.len() as u32).to_le_bytes());
    file.extend(b"PAR1");
    file
}

/// The most memory that this process has had.
fn peak_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

#[test]
fn footers_that_declare_more_than_they_hold_take_no_memory() {
    if !alone("parquet::footers_that_declare_more_than_they_hold_take_no_memory") {
        return;
    }
    let folder = Folder::new();
    // Field 1, version 1; field 2, the schema: one group "a" without fields; field 3, 0 rows; field 4: row groups.
    let front = [0x15, 2, 0x19, 0x1c, 0x48, 1, b'a', 0x15, 0, 0, 0x16, 0];
    let list = |fields: &[u8]| [&front[..], fields].concat();
    // A schema of groups in groups, each of one field.
    let mut deep = vec![0x15, 2, 0x19, 0xfc, 0xa0, 0x9c, 1];
    (0..20_000).for_each(|_| deep.extend([0x48, 1, b'a', 0x15, 2, 0]));
    let before = peak_bytes();
    for (what, footer) in [
        ("2^31 row groups", list(&[0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07])),
        ("2^28 row groups of no bytes", list(&[0x19, 0xfc, 0x80, 0x80, 0x80, 0x80, 0x01, 0, 0, 0])),
        ("2^30 fields of a group", vec![0x15, 2, 0x19, 0x1c, 0x48, 1, b'a', 0x15, 0x80, 0x80, 0x80, 0x80, 0x08, 0, 0]),
        ("a name of 2^31 bytes", vec![0x15, 2, 0x19, 0x1c, 0x48, 0xff, 0xff, 0xff, 0xff, 0x07, b'a', 0]),
        ("20,000 groups in groups", deep),
    ] {
        folder.put("damaged.parquet", &file_with_footer(&footer));
        let error = read(folder.url("damaged.parquet"), 64 << 20).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
    let taken = peak_bytes() - before;
    assert!(taken < 64 << 20, "{taken} bytes");
}

#[test]
fn a_block_that_decompresses_to_more_than_the_budget_is_refused_by_name() {
    if !alone("parquet::a_block_that_decompresses_to_more_than_the_budget_is_refused_by_name") {
        return;
    }
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::properties::WriterProperties;

    // Zeros: 160 MB of them in a few KiB.
    let folder = Folder::new();
    let zeros = || Arc::new(Int64Array::from(vec![0; 1 << 20])) as ArrayRef;
    let batch = RecordBatch::try_from_iter((0..20).map(|column| (format!("c{column}"), zeros()))).expect("columns");
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_data_page_row_count_limit(1 << 20)
        .set_data_page_size_limit(1 << 30)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_offset_index_disabled(true)
        .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
        .build();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("a writer");
    writer.write(&batch).expect("memory takes it");
    let file = writer.into_inner().expect("memory takes it");
    assert!(file.len() < 1 << 20, "{} bytes", file.len());
    folder.put("damaged.parquet", &file);
    drop(batch);
    let before = peak_bytes();
    let error = read(folder.url("damaged.parquet"), 16 << 20).expect_err("it does not fit");
    assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::Memory), "{error}");
    assert!(error.to_string().contains("budget"), "{error}");
    let taken = peak_bytes().saturating_sub(before);
    assert!(taken < 32 << 20, "{taken} bytes");
}

// --- what is read --------------------------------------------------------------------------------------------------------

/// Rows of numbers without pattern in two row groups: `id`, `bytes` of 100 a row, `few` in a page of indexes, `value`.
pub(crate) fn written(rows: usize, has_page_index: bool) -> Vec<u8> {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, BinaryArray, Float64Array, Int32Array, Int64Array, RecordBatch};
    use parquet::file::properties::{EnabledStatistics, WriterProperties};

    let noise = |row: usize| (row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(Int64Array::from_iter_values(0..rows as i64))),
        ("bytes", Arc::new(BinaryArray::from_iter_values((0..rows).map(|row| noise(row).to_le_bytes().repeat(12))))),
        ("few", Arc::new(Int32Array::from_iter_values((0..rows).map(|row| noise(row) as i32 & 3)))),
        ("value", Arc::new(Float64Array::from_iter_values((0..rows).map(|row| noise(row) as f64)))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("four columns");
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_column_dictionary_enabled("few".into(), true)
        .set_max_row_group_row_count(Some(rows.div_ceil(2)))
        .set_data_page_row_count_limit(1000)
        .set_write_batch_size(500)
        .set_statistics_enabled(if has_page_index { EnabledStatistics::Page } else { EnabledStatistics::None })
        .set_offset_index_disabled(!has_page_index)
        .build();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).expect("a writer");
    writer.write(&batch).expect("memory takes it");
    writer.into_inner().expect("memory takes it")
}

/// Where the columns stand in a file, by row group.
pub(crate) fn chunks(file: &[u8]) -> Vec<Vec<Range<u64>>> {
    use parquet::file::reader::FileReader as _;

    let reader = parquet::file::reader::SerializedFileReader::new(bytes::Bytes::copy_from_slice(file)).expect("a file");
    let range = |column: &parquet::file::metadata::ColumnChunkMetaData| {
        let (start, length) = column.byte_range();
        start..start + length
    };
    reader.metadata().row_groups().iter().map(|group| group.columns().iter().map(range).collect()).collect()
}

/// What has to be asked of a store for these columns of [`written`]: the end of the file, then nothing but them.
pub(crate) fn asked(file: &[u8], names: &[&str]) -> Vec<Range<u64>> {
    let size = file.len() as u64;
    let mut asked = Vec::new();
    asked.push(size.saturating_sub(128 << 10)..size);
    for group in chunks(file) {
        let wanted = ["id", "bytes", "few", "value"].iter().zip(group).filter(|(name, _)| names.contains(name));
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (_, range) in wanted {
            match ranges.last_mut() {
                // Columns within 32 KiB of each other take one request.
                Some(last) if range.start - last.end <= 32 << 10 => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        asked.extend(ranges);
    }
    asked.sort_unstable_by_key(|range| (range.start, range.end));
    asked
}

#[test]
fn integers_of_several_units_are_no_column() -> Result<()> {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Decimal128Array, Int64Array, RecordBatch, TimestampSecondArray};

    let decimal = |scale| -> ArrayRef {
        Arc::new(Decimal128Array::from(vec![1234]).with_precision_and_scale(9, scale).expect("a scale"))
    };
    let plain = || -> ArrayRef { Arc::new(Int64Array::from(vec![1])) };
    let rows = |array: Option<ArrayRef>| {
        let columns = [("id", plain())].into_iter().chain(array.map(|array| ("n", array)));
        RecordBatch::try_from_iter(columns).expect("columns of one length")
    };
    let as_parquet = |rows: &RecordBatch| {
        let writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), rows.schema(), None);
        let mut writer = writer.expect("a writer");
        writer.write(rows).expect("memory takes it");
        writer.into_inner().expect("memory takes it")
    };
    let as_ipc = |rows: &RecordBatch| {
        let mut writer = arrow::ipc::writer::FileWriter::try_new(Vec::new(), &rows.schema()).expect("a writer");
        writer.write(rows).expect("memory takes it");
        writer.into_inner().expect("memory takes it")
    };
    let cases = [
        (Some(plain()), decimal(2), Some("decimals of scale 2, and plain numbers")),
        (Some(decimal(2)), decimal(3), Some("decimals of scale 3, and decimals of scale 2")),
        (Some(plain()), Arc::new(TimestampSecondArray::from(vec![1])), Some("Timestamp(s), and plain numbers")),
        (Some(decimal(2)), decimal(2), None),
    ];
    for (first, second, refused) in cases {
        for is_parquet in [true, false] {
            let folder = Folder::new();
            // The column may be missing from the first shard of all.
            for (number, array) in [None, first.clone(), Some(second.clone())].into_iter().enumerate() {
                let rows = rows(array);
                match is_parquet {
                    true => folder.put(&format!("{number}.parquet"), &as_parquet(&rows)),
                    false => folder.put(&format!("{number}.arrow"), &as_ipc(&rows)),
                };
            }
            let dataset = Dataset::open(folder.url("*"))?.columns([int64("id"), int64("n").optional()]);
            let loader = dataset.batch(3).loader().build();
            match refused {
                None => assert!(loader.is_ok()),
                Some(words) => {
                    let error = loader.expect_err("two units");
                    assert_eq!(
                        (error.kind(), error.place().column.as_deref()),
                        (ErrorKind::Schema, Some("n")),
                        "{error}"
                    );
                    assert!(error.place().url.as_deref().is_some_and(|url| url.contains("/2.")), "{error}");
                    assert!(error.to_string().contains(words), "{error}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn only_the_end_of_a_file_and_the_wanted_columns_are_asked_for() -> Result<()> {
    use std::sync::Arc;

    use forebay::store::StoreOptions;
    use object_store::ObjectStoreExt as _;

    use crate::support::recording::Recording;

    let file = written(20_000, true);
    let memory = Arc::new(object_store::memory::InMemory::new());
    let path = "a.parquet".into();
    let put = memory.put(&path, file.clone().into());
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(put).expect("a map takes it");
    let store = Recording::new(memory);
    for (names, requests) in [
        (&["id"][..], 1 + 2),
        // The column between them is longer than a request is worth.
        (&["id", "few"], 1 + 4),
        // `few` lies between them and is short: fetched along.
        (&["bytes", "value"], 1 + 2),
        (&["id", "bytes", "few", "value"], 1 + 2),
    ] {
        let columns = names.iter().map(|&name| match name {
            "bytes" => bytes(name),
            "few" => Column::new(name, Dtype::I32, Shape::Scalar),
            "value" => Column::new(name, Dtype::F64, Shape::Scalar),
            _ => int64(name),
        });
        let dataset = Dataset::open("mine://shards/*.parquet")?.columns(columns.collect::<Vec<_>>()).batch(999);
        let options = StoreOptions::new().register("mine://shards", store.clone());
        let rows = take(dataset.loader().store(options), 0, |batch| Ok(batch.len()))?.whole();
        assert_eq!(rows.iter().sum::<usize>(), 20_000);
        let found = store.take();
        assert_eq!(found, asked(&file, names), "{names:?}");
        assert_eq!(found.len(), requests, "{names:?}");
    }
    Ok(())
}

#[test]
fn large_row_groups_are_read_in_parts_within_a_budget_that_they_do_not_fit() -> Result<()> {
    let folder = Folder::new();
    let columns = || [int64("id"), bytes("bytes")];
    // 46 MB a row group: in parts of a third, or, for a shuffle, of a MiB and more. `take` holds the peak against the budget.
    for (name, has_page_index) in [("a.parquet", true), ("b.parquet", false)] {
        folder.put(name, &written(400_000, has_page_index));
    }
    let dataset = folder.open("a.parquet").columns(columns());
    let in_order = dataset.batch(500).loader().budget(Budget::mebibytes(40));
    assert_eq!(take_ids(in_order, "id")?.whole().concat(), (0..400_000).collect::<Vec<_>>());
    let shuffled = dataset.shuffle(Shuffle::buffer(2_000)).batch(500);
    let mut ids = take_ids(shuffled.loader().budget(Budget::mebibytes(24)), "id")?.whole().concat();
    assert!(!ids.is_sorted());
    ids.sort_unstable();
    assert_eq!(ids, (0..400_000).collect::<Vec<_>>());

    // Where the file does not say where pages stand, a row group is one block, unless it is larger than 64 MiB.
    let whole = folder.open("b.parquet").columns(columns()).batch(500);
    let error = whole.loader().budget(Budget::mebibytes(40)).build().expect_err("it does not fit");
    let text = error.to_string();
    assert!(error.kind() == ErrorKind::Memory && text.contains("take .budget(Budget::mebibytes("), "{text}");
    assert_eq!(take_ids(whole.loader().budget(Budget::mebibytes(100)), "id")?.whole().concat().len(), 400_000);
    folder.put("c.parquet", &written(600_000, false));
    let large = folder.open("c.parquet").columns(columns()).batch(500).loader().budget(Budget::mebibytes(40));
    assert_eq!(take_ids(large, "id")?.whole().concat(), (0..600_000).collect::<Vec<_>>());
    Ok(())
}
