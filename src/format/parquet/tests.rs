//! Tests that columns decoded here are as the `parquet` crate decodes them, for every way of storing them, and that damage does no harm.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, ListArray,
    RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion};
use proptest::prelude::*;

use super::check::Opened;
use super::*;
use crate::ErrorKind;

fn written(batch: &RecordBatch, properties: WriterPropertiesBuilder) -> Bytes {
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties.build())).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    file.into()
}

/// Decodes rows, given only the bytes that the decoder asks for.
fn decoded(file: &Opened, names: Option<&[&str]>, part: &Part) -> Result<RecordBatch> {
    let projection = Projection::new(&file.footer, names);
    let arrays = file.decode(part.group, part.rows.clone(), names, true)?;
    let fields = projection.schema().fields().iter().map(|field| field.as_ref().clone());
    let fields =
        fields.zip(&arrays).map(|(field, array)| field.with_data_type(array.data_type().clone()).with_nullable(true));
    Ok(RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>())), arrays).unwrap())
}

fn expected(file: &Bytes, footer: &Footer) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file.clone(), footer.reader.clone());
    let reader = reader.with_batch_size(1 << 20).build().unwrap();
    let schema = arrow::array::RecordBatchReader::schema(&reader);
    let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>().unwrap();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

fn assert_equal(found: &RecordBatch, wanted: &RecordBatch, rows: Range<usize>, what: &str) {
    let wanted = wanted.slice(rows.start, rows.len());
    for (at, (a, b)) in found.columns().iter().zip(wanted.columns()).enumerate() {
        // Names of list items differ between writers, and do not matter.
        let b = arrow::compute::cast(b, a.data_type()).unwrap();
        assert_eq!(a, &b, "{what}, column {} rows {rows:?}", wanted.schema().field(at).name());
    }
    assert_eq!(found.num_columns(), wanted.num_columns());
}

/// Creates rows of every covered kind, and some that are left to the general reader.
fn rows(count: usize, nulls: bool) -> RecordBatch {
    let there = |row: usize, every: usize| !nulls || !row.is_multiple_of(every);
    let int32 = Int32Array::from_iter((0..count).map(|row| there(row, 3).then_some((row as i32).wrapping_mul(7919))));
    let few = Int64Array::from_iter((0..count).map(|row| there(row, 5).then_some(row as i64 % 7)));
    let float = Float32Array::from_iter((0..count).map(|row| there(row, 7).then_some(row as f32 / 3.0)));
    let double = Float64Array::from_iter_values((0..count).map(|row| row as f64 * -0.5));
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>((0..count).map(|row| {
        there(row, 11).then(|| (0..row % 5).map(move |i| there(row + i, 4).then_some((row * 3 + i) as i32)))
    }));
    let long = ListArray::from_iter_primitive::<Int64Type, _, _>(
        (0..count).map(|row| Some((0..40).map(move |i| Some((row * i) as i64)))),
    );
    let text = StringArray::from_iter((0..count).map(|row| there(row, 2).then(|| format!("row {row}"))));
    let bytes = BinaryArray::from_iter_values((0..count).map(|row| vec![row as u8; row % 50]));
    let truth = BooleanArray::from_iter((0..count).map(|row| there(row, 6).then_some(row % 2 == 0)));
    let image = StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), Arc::new(bytes.clone()) as ArrayRef),
        (Arc::new(Field::new("size", DataType::Int32, true)), Arc::new(int32.clone()) as ArrayRef),
    ]);
    RecordBatch::try_from_iter_with_nullable(vec![
        ("int32", Arc::new(int32) as ArrayRef, true),
        ("few", Arc::new(few), true),
        ("float", Arc::new(float), true),
        ("double", Arc::new(double), false),
        ("lists", Arc::new(lists), true),
        ("long", Arc::new(long), true),
        ("text", Arc::new(text), true),
        ("bytes", Arc::new(bytes), false),
        ("truth", Arc::new(truth), true),
        ("image", Arc::new(image), true),
    ])
    .unwrap()
}

fn ways() -> Vec<(&'static str, WriterPropertiesBuilder)> {
    let base = || WriterProperties::builder().set_data_page_row_count_limit(30).set_write_batch_size(10);
    let with = |compression| base().set_compression(compression);
    vec![
        ("plain", base().set_dictionary_enabled(false)),
        ("dictionary", base()),
        ("version 2", base().set_writer_version(WriterVersion::PARQUET_2_0)),
        ("one page", WriterProperties::builder()),
        ("snappy", with(Compression::SNAPPY)),
        ("zstd", with(Compression::ZSTD(ZstdLevel::default()))),
        (
            "zstd, version 2",
            with(Compression::ZSTD(ZstdLevel::default())).set_writer_version(WriterVersion::PARQUET_2_0),
        ),
        ("gzip", with(Compression::GZIP(GzipLevel::default()))),
        ("brotli", with(Compression::BROTLI(BrotliLevel::default()))),
        ("lz4", with(Compression::LZ4_RAW)),
        ("old lz4", with(Compression::LZ4)),
        ("small dictionary", base().set_dictionary_page_size_limit(64)),
        ("row groups of 70", base().set_max_row_group_row_count(Some(70))),
    ]
}

#[test]
fn every_way_of_storing_gives_what_the_crate_gives() {
    for nulls in [false, true] {
        let batch = rows(200, nulls);
        for (way, properties) in ways() {
            let what = format!("{way}, nulls {nulls}");
            let file = written(&batch, properties);
            let opened = Opened::new(file.clone()).unwrap();
            let footer = &opened.footer;
            let wanted = expected(&file, footer);
            let mut before = 0;
            for group in 0..footer.metadata().num_row_groups() {
                let all = footer.metadata().row_group(group).num_rows() as u64;
                for part in [0..all, 0..1, all / 3..all / 2, all - 1..all, 29..31] {
                    let rows = (before + part.start) as usize..(before + part.end) as usize;
                    let found = decoded(&opened, None, &Part { group, rows: part }).unwrap();
                    assert_equal(&found, &wanted, rows, &what);
                }
                before += all;
            }
        }
    }
}

#[test]
fn pages_that_no_index_knows_are_found() {
    let split = include_bytes!("../../../tests/data/parquet/split-lists.parquet");
    let mut files = vec![("lists over two pages", Bytes::from_static(split))];
    for (way, properties) in ways() {
        files.push((way, written(&rows(200, true), properties.set_offset_index_disabled(true))));
    }
    for (way, file) in files {
        let opened = Opened::new(file.clone()).unwrap();
        let wanted = expected(&file, &opened.footer);
        let whole = Part { group: 0, rows: 0..opened.groups()[0] };
        let projection = Projection::new(&opened.footer, None);
        assert_eq!(cut(&opened.footer, &projection, &whole, 9).len(), 1, "{way}: nobody knows");
        let opened = opened.scanned().unwrap();
        let parts = cut(&opened.footer, &projection, &whole, 9);
        assert!(parts.len() > 4 || way == "one page" || way == "row groups of 70", "{way}: {parts:?}");
        let rows = whole.rows.end;
        for rows in parts.into_iter().chain([0..1, rows / 3..rows / 2, rows - 1..rows, 29..31]) {
            let found = decoded(&opened, None, &Part { group: 0, rows: rows.clone() }).unwrap();
            assert_equal(&found, &wanted, rows.start as usize..rows.end as usize, way);
        }
    }
}

#[test]
fn chosen_columns_alone_are_read() {
    let file = written(&rows(200, true), ways()[0].1.clone());
    let opened = Opened::new(file).unwrap();
    let footer = &opened.footer;
    let projection = Projection::new(footer, Some(&["few", "image.bytes"]));
    let names: Vec<_> = projection.schema().fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["few", "image"]);
    let whole = Part { group: 0, rows: 0..200 };
    let read: u64 = ranges(footer, &projection, &whole).iter().map(|range| range.end - range.start).sum();
    let chunks = footer.metadata().row_group(0).columns();
    let wanted = chunks.iter().filter(|chunk| ["few", "image.bytes"].contains(&chunk.column_path().string().as_str()));
    assert_eq!(read, wanted.map(|chunk| chunk.compressed_size() as u64).sum::<u64>());
    let found = decoded(&opened, Some(&["few", "image.bytes"]), &whole).unwrap();
    assert_eq!(
        found.column(1).data_type(),
        &DataType::Struct(vec![Field::new("bytes", DataType::BinaryView, true)].into())
    );
    // A few rows take a few pages.
    let part = Part { group: 0, rows: 100..110 };
    let few: u64 = ranges(footer, &projection, &part).iter().map(|range| range.end - range.start).sum();
    assert!(few * 3 < read, "{few} of {read} bytes for 10 of 200 rows");
}

#[test]
fn timestamps_of_96_bits_are_right_in_any_year() {
    use parquet::data_type::{ByteArray, ByteArrayType, Int96, Int96Type};
    use parquet::file::writer::SerializedFileWriter;

    // Beside a column of bytes within a struct, whose place in the file is not that in the schema.
    let schema = "message m { optional group s { required binary b; required int96 t; } }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let bytes = [ByteArray::from("a"), ByteArray::from("b")];
    column.typed::<ByteArrayType>().write_batch(&bytes, Some(&[1, 1]), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    // The last day of 9999, and noon of the first of 2020.
    let noon = 43_200_000_000_000u64;
    let times = [[0, 0, 5_373_484], [noon as u32, (noon >> 32) as u32, 2_458_850]];
    let times = times.map(|[a, b, c]| {
        let mut time = Int96::new();
        time.set_data(a, b, c);
        time
    });
    column.typed::<Int96Type>().write_batch(&times, Some(&[1, 1]), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    let opened = Opened::new(writer.into_inner().unwrap().into()).unwrap();
    let found = decoded(&opened, None, &Part { group: 0, rows: 0..2 }).unwrap();
    let times = found.column(0).as_struct().column(1).as_primitive::<TimestampMicrosecondType>();
    assert_eq!(*times.values(), [253_402_214_400_000_000, 1_577_880_000_000_000]);
}

#[test]
fn every_cut_ends_in_an_error_or_the_right_rows() {
    let file = written(&rows(40, true), ways()[5].1.clone());
    for end in 0..file.len() {
        assert!(Opened::new(file.slice(..end)).is_err(), "cut at {end}");
    }
}

#[test]
fn every_flipped_byte_ends_in_an_error_or_in_rows() {
    for way in [0, 2, 5] {
        let file = written(&rows(12, true), ways()[way].1.clone());
        for at in 0..file.len() {
            let mut damaged = file.to_vec();
            damaged[at] ^= 1 << (at % 8);
            let damaged = Bytes::from(damaged);
            let Ok(opened) = Opened::new(damaged) else { continue };
            let footer = &opened.footer;
            for group in 0..footer.metadata().num_row_groups() {
                let rows = footer.metadata().row_group(group).num_rows() as u64;
                let part = Part { group, rows: 0..rows };
                // As the loader, which refuses blocks that do not fit its budget.
                if rows > 0 && opened.bytes(group, 0..rows) < 1 << 24 {
                    _ = decoded(&opened, None, &part).map(|batch| assert_eq!(batch.num_rows() as u64, rows));
                }
            }
        }
    }
}

#[test]
fn a_page_that_claims_to_be_large_is_refused_before_memory_is_taken() {
    let batch = RecordBatch::try_from_iter([("text", Arc::new(StringArray::from(vec!["a"; 10])) as ArrayRef)]).unwrap();
    let file = written(&batch, ways()[5].1.clone()).to_vec();
    let footer = Opened::new(file.clone().into()).unwrap().footer;
    // The first page header: 15 (type) xx 15 (uncompressed size) varint.
    let start = footer.chunk_range(0, 0).start as usize;
    let mut bomb = file[..start].to_vec();
    let (header, length) = page::PageHeader::read(&file[start..]).unwrap();
    assert!(header.bytes < 64 && length > 4);
    assert_eq!((file[start], file[start + 2]), (0x15, 0x15));
    bomb.extend([file[start], file[start + 1], 0x15, file[start + 3] | 0x80, 0xff, 0xff, 0xff, 0x0f]);
    bomb.extend(&file[start + 4..]);
    let fetched = Fetched::new(vec![(0, bomb.into())], file.len() as u64);
    let projection = Projection::new(&footer, None);
    let error = decode(&footer, &projection, &Part { group: 0, rows: 0..10 }, &fetched, &mut Decompressor::default())
        .unwrap_err();
    assert!(error.to_string().contains("more than its column's footer allows"), "{error}");
}

#[test]
fn large_windows_of_brotli_are_refused_however_a_page_is_decoded() {
    let batch = RecordBatch::try_from_iter([
        ("number", Arc::new(Int32Array::from(vec![7; 100])) as ArrayRef),
        ("truth", Arc::new(BooleanArray::from(vec![true; 100]))),
    ])
    .unwrap();
    let file = written(&batch, ways()[8].1.clone().set_dictionary_enabled(false)).to_vec();
    let footer = Opened::new(file.clone().into()).unwrap().footer;
    for (leaf, name) in ["number", "truth"].into_iter().enumerate() {
        let start = footer.chunk_range(0, leaf).start as usize;
        let (_, length) = page::PageHeader::read(&file[start..]).unwrap();
        let mut damaged = file.clone();
        // 30 bits of window, and not a byte of content.
        damaged[start + length..start + length + 2].copy_from_slice(&[0x11, 30]);
        let error = Opened::new(damaged.into()).unwrap().decode(0, 0..100, Some(&[name]), true).unwrap_err();
        assert!(error.to_string().contains("large window"), "{error}");
    }
}

#[test]
fn more_lengths_than_strings_are_refused_before_memory_is_taken_for_them() {
    use parquet::basic::Encoding::{DELTA_BYTE_ARRAY, DELTA_LENGTH_BYTE_ARRAY};

    for encoding in [DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY] {
        let batch =
            RecordBatch::try_from_iter([("text", Arc::new(StringArray::from(vec!["ab"; 9])) as ArrayRef)]).unwrap();
        let properties = WriterProperties::builder().set_dictionary_enabled(false).set_encoding(encoding);
        let mut file = written(&batch, properties.set_compression(Compression::UNCOMPRESSED)).to_vec();
        let start = Opened::new(file.clone().into()).unwrap().footer.chunk_range(0, 0).start as usize;
        let (_, length) = page::PageHeader::read(&file[start..]).unwrap();
        // Size of blocks (two bytes), groups in one, the count: 9 becomes a number of nine bytes.
        let count = start + length + 3;
        assert_eq!(file[count], 9, "{encoding}");
        file[count..count + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        let error = Opened::new(file.into()).unwrap().decode(0, 0..9, None, true).unwrap_err();
        assert!(error.to_string().contains("more than the strings"), "{encoding}: {error}");
    }
}

#[test]
fn numbers_of_a_page_header_that_are_none_are_refused() {
    // A page of one value: type, sizes, and a structure of the count, the encoding and those of the levels. Each number is a byte behind its field's.
    let sound = [0x15, 0, 0x15, 2, 0x15, 2, 0x2c, 0x15, 2, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0];
    assert!(page::PageHeader::read(&sound).is_ok());
    for field in [0, 2, 4, 7, 9, 11, 13] {
        for kind in [1, 2] {
            let mut header = sound;
            header[field] = header[field] & 0xf0 | kind;
            let error = page::PageHeader::read(&header).unwrap_err();
            assert!(error.to_string().contains("of a page header is a "), "{error}");
        }
    }
}

#[test]
fn texts_that_part_a_character_between_them_are_refused() {
    for encoding in [Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY, Encoding::PLAIN] {
        // Longer than what a view holds itself.
        let texts = StringArray::from_iter_values(["a text that ends in: y", "z is what this begins with"]);
        let lists = StructArray::from(vec![(
            Arc::new(Field::new("inner", DataType::Utf8, false)),
            Arc::new(texts.clone()) as ArrayRef,
        )]);
        let batch = RecordBatch::try_from_iter([("text", Arc::new(texts) as ArrayRef), ("outer", Arc::new(lists))]);
        let properties = WriterProperties::builder().set_dictionary_enabled(false).set_encoding(encoding);
        let sound = written(&batch.unwrap(), properties.set_statistics_enabled(EnabledStatistics::None));
        for name in ["text", "outer.inner"] {
            let mut file = sound.to_vec();
            let column = usize::from(name != "text");
            let chunk = Opened::new(sound.clone()).unwrap().footer.chunk_range(0, column);
            let page = &mut file[chunk.start as usize..chunk.end as usize];
            for (byte, part) in [(b": y", 0xc3), (b"z i", 0xa9)] {
                let at = page.windows(3).position(|bytes| bytes == byte).unwrap();
                page[at + if part == 0xc3 { 2 } else { 0 }] = part;
            }
            let file = Opened::new(file.into()).unwrap();
            let error = file.decode(0, 0..2, Some(&[name]), true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{encoding} {error}");
        }
    }
}

#[test]
fn strings_that_share_without_bound_are_refused_before_they_are_written_out() {
    // The same long string a hundred thousand times; its pages take a few KiB, and the footer says nothing of strings.
    let text = Arc::new(StringArray::from(vec!["a long text ".repeat(400); 20_000])) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("text", text)]).unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_encoding(parquet::basic::Encoding::DELTA_BYTE_ARRAY)
        .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
        .set_compression(Compression::UNCOMPRESSED);
    let opened = Opened::new(written(&batch, properties)).unwrap();
    let (reckoned, stated) = (opened.bytes(0, 0..20_000), 20_000 * 4_800);
    if let Ok(arrays) = opened.decode(0, 0..20_000, None, true) {
        assert!(reckoned > stated && arrays[0].len() == 20_000, "{reckoned} bytes were reckoned");
    } else {
        assert!(reckoned < stated, "{reckoned} bytes would have been enough");
    }
}

proptest! {
    #[test]
    fn lists_of_any_lengths_come_back(
        lists in prop::collection::vec(prop::option::weighted(0.9, prop::collection::vec(prop::option::weighted(0.9, any::<i32>()), 0..20)), 1..120),
        page_rows in 1usize..40,
        dictionary: bool,
        version2: bool,
    ) {
        let array: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists.clone()));
        let batch = RecordBatch::try_from_iter_with_nullable([("lists", array, true)]).unwrap();
        let mut properties = WriterProperties::builder()
            .set_dictionary_enabled(dictionary)
            .set_data_page_row_count_limit(page_rows)
            .set_write_batch_size(5);
        if version2 {
            properties = properties.set_writer_version(WriterVersion::PARQUET_2_0);
        }
        let file = written(&batch, properties);
        let opened = Opened::new(file.clone()).unwrap();
        let wanted = expected(&file, &opened.footer);
        let (half, all) = (lists.len() / 2, lists.len());
        for rows in [0..all, half..all] {
            let part = Part { group: 0, rows: rows.start as u64..rows.end as u64 };
            assert_equal(&decoded(&opened, None, &part).unwrap(), &wanted, rows, "any");
        }
    }
}
