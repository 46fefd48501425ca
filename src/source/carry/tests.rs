use std::fmt::Write as _;

use arrow::array::*;
use arrow::buffer::Buffer;
use arrow::datatypes::*;
use half::f16;

use super::*;
use crate::schema::{bytes, float32, int64};

/// Rows as text, and what is wrong with the bad ones.
fn shown(array: &ArrayRef, column: &Column) -> (String, Vec<(usize, String)>) {
    let (carried, bad) = carry(array, column).unwrap();
    assert_eq!(*carried.data_type(), column.arrow_type());
    assert_eq!(carried.len(), array.len());
    carried.to_data().validate_full().unwrap();
    // The schema says that nothing is null, and batches are made with it.
    RecordBatch::try_new(arrow_schema(std::slice::from_ref(column)), vec![carried.clone()]).unwrap();
    let mut text = String::new();
    for row in 0..carried.len() {
        let value = if bad.iter().any(|(at, _)| *at == row) {
            "!".into()
        } else if let Some(views) = carried.as_binary_view_opt() {
            views.value(row).escape_ascii().to_string()
        } else {
            arrow::util::display::array_value_to_string(&carried, row).unwrap()
        };
        write!(text, "{}{value}", if row == 0 { "" } else { " " }).unwrap();
    }
    (text, bad.into_iter().map(|(row, error)| (row, error.to_string())).collect())
}

fn default_of(array: &ArrayRef) -> Column {
    column_for(&Field::new("x", array.data_type().clone(), true)).unwrap()
}

fn of(dtype: Dtype) -> Column {
    Column::new("x", dtype, Shape::Scalar)
}

#[test]
fn every_type_of_elements_has_a_column() {
    let decimal = |values: Vec<Option<i128>>| Decimal128Array::from(values).with_precision_and_scale(20, 2).unwrap();
    let cases: Vec<(ArrayRef, &str, &str)> = vec![
        (Arc::new(Int8Array::from(vec![-1, 2])), "i8", "-1 2"),
        (Arc::new(Int16Array::from(vec![-1, 2])), "i16", "-1 2"),
        (Arc::new(Int32Array::from(vec![-1, 2])), "i32", "-1 2"),
        (Arc::new(Int64Array::from(vec![-1, i64::MIN])), "i64", "-1 -9223372036854775808"),
        (Arc::new(UInt8Array::from(vec![1, 255])), "u8", "1 255"),
        (Arc::new(UInt16Array::from(vec![1, 65535])), "i32", "1 65535"),
        (Arc::new(UInt32Array::from(vec![1, u32::MAX])), "i64", "1 4294967295"),
        (Arc::new(UInt64Array::from(vec![1, i64::MAX as u64])), "i64", "1 9223372036854775807"),
        (Arc::new(Float16Array::from(vec![f16::from_f32(0.5)])), "f16", "0.5"),
        (Arc::new(Float32Array::from(vec![0.5])), "f32", "0.5"),
        (Arc::new(Float64Array::from(vec![1e300])), "f64", "1e300"),
        (Arc::new(BooleanArray::from(vec![true, false])), "bool", "true false"),
        (Arc::new(decimal(vec![Some(12345), Some(-5)])), "f64", "123.45 -0.05"),
        (Arc::new(Date32Array::from(vec![19_000, -1])), "i64", "19000 -1"),
        (Arc::new(Date64Array::from(vec![86_400_000])), "i64", "86400000"),
        (Arc::new(Time32SecondArray::from(vec![61])), "i64", "61"),
        (Arc::new(Time32MillisecondArray::from(vec![61])), "i64", "61"),
        (Arc::new(Time64MicrosecondArray::from(vec![61])), "i64", "61"),
        (Arc::new(Time64NanosecondArray::from(vec![61])), "i64", "61"),
        (Arc::new(TimestampSecondArray::from(vec![61])), "i64", "61"),
        (Arc::new(TimestampNanosecondArray::from(vec![61]).with_timezone("UTC")), "i64", "61"),
        (Arc::new(DurationMillisecondArray::from(vec![61])), "i64", "61"),
        (Arc::new(StringArray::from(vec!["a", "longer than twelve bytes"])), "bytes", "a longer than twelve bytes"),
        (
            Arc::new(LargeStringArray::from(vec!["a", "longer than twelve bytes"])),
            "bytes",
            "a longer than twelve bytes",
        ),
        (Arc::new(StringViewArray::from(vec!["a", "longer than twelve bytes"])), "bytes", "a longer than twelve bytes"),
        (Arc::new(BinaryArray::from_vec(vec![b"\xff", b""])), "bytes", "\\xff "),
        (Arc::new(LargeBinaryArray::from_vec(vec![b"\xff", b""])), "bytes", "\\xff "),
        (Arc::new(BinaryViewArray::from(vec![&b"\xff"[..], b""])), "bytes", "\\xff "),
        (Arc::new(FixedSizeBinaryArray::try_new(2, Buffer::from(b"abcd"), None).unwrap()), "bytes", "ab cd"),
        (Arc::new(DictionaryArray::<Int8Type>::from_iter(["a", "b", "a"])), "bytes", "a b a"),
        (
            Arc::new(DictionaryArray::<UInt16Type>::new(vec![1, 0].into(), Arc::new(Int64Array::from(vec![7, 9])))),
            "i64",
            "9 7",
        ),
        (
            Arc::new(RunArray::try_new(&Int32Array::from(vec![2, 3]), &Int64Array::from(vec![7, 9])).unwrap()),
            "i64",
            "7 7 9",
        ),
    ];
    for (array, dtype, rows) in cases {
        let column = default_of(&array);
        assert_eq!(column.to_string(), format!("x: {dtype}"), "{}", array.data_type());
        assert_eq!(shown(&array, &column), (rows.to_owned(), vec![]), "{}", array.data_type());
        // Slices too.
        if array.len() > 1 {
            let rest = rows.split_once(' ').unwrap().1;
            assert_eq!(shown(&array.slice(1, array.len() - 1), &column).0, rest, "{}", array.data_type());
        }
        assert_eq!(shown(&array.slice(0, 0), &column).0, "");
    }
}

#[test]
fn types_that_no_tensor_holds_are_refused_with_their_name() {
    let list = |data_type| DataType::List(Arc::new(Field::new_list_field(data_type, true)));
    let fields: Fields =
        vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Int8, true)].into();
    for data_type in [
        DataType::Null,
        DataType::Interval(IntervalUnit::DayTime),
        list(list(DataType::Int8)),
        list(DataType::Struct(fields.clone())),
        DataType::Map(Arc::new(Field::new("entries", DataType::Struct(fields), false)), false),
        DataType::FixedSizeList(Arc::new(Field::new_list_field(DataType::Int8, true)), 0),
    ] {
        let error = column_for(&Field::new("odd", data_type.clone(), true)).unwrap_err();
        assert_eq!(error.place().column.as_deref(), Some("odd"), "{data_type}: {error}");
    }
}

#[test]
fn a_value_that_does_not_fit_makes_its_row_bad() {
    let ints: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(300), None, Some(-1)]));
    let (rows, bad) = shown(&ints, &of(Dtype::U8).optional());
    assert_eq!(rows, "1 ! 0 !");
    assert_eq!(bad[0], (1, "column x: 300 does not fit u8".into()));
    let (rows, bad) = shown(&ints, &of(Dtype::U8));
    assert_eq!((rows.as_str(), bad.len(), bad[1].0), ("1 ! ! !", 3, 2));
    assert!(bad[1].1.contains(".optional()"), "{}", bad[1].1);
    let wide: ArrayRef = Arc::new(UInt64Array::from(vec![7, u64::MAX]));
    assert_eq!(shown(&wide, &default_of(&wide)).0, "7 !");
    let ints: ArrayRef = Arc::new(Int64Array::from(vec![1 << 24, (1 << 24) + 1, -3]));
    assert_eq!(shown(&ints, &float32("x")).0, "16777216.0 ! -3.0");
    assert_eq!(shown(&ints, &of(Dtype::F64)).1, []);
    let ints: ArrayRef = Arc::new(Int32Array::from(vec![0, 1, 2]));
    assert_eq!(shown(&ints, &of(Dtype::Bool)).0, "false true !");
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![0.1, 1e300, f64::INFINITY]));
    assert_eq!(shown(&floats, &float32("x")).0, "0.1 ! inf");
    let bools: ArrayRef = Arc::new(BooleanArray::from(vec![true, false]));
    assert_eq!(shown(&bools, &float32("x")).0, "1.0 0.0");
    assert_eq!(shown(&bools, &int64("x")).0, "1 0");
}

#[test]
fn decimals_are_scaled_integers_where_integers_are_declared() {
    let array: ArrayRef = Arc::new(
        Decimal128Array::from(vec![Some(12345), Some(i128::from(i64::MAX) + 1), None])
            .with_precision_and_scale(30, 2)
            .unwrap(),
    );
    assert_eq!(shown(&array, &int64("x").optional()).0, "12345 ! 0");
    let array: ArrayRef = Arc::new(Decimal32Array::from(vec![123]).with_precision_and_scale(5, 1).unwrap());
    assert_eq!(shown(&array, &of(Dtype::U8)).0, "123");
    assert_eq!(shown(&array, &of(Dtype::F32)).0, "12.3");
    let array: ArrayRef = Arc::new(Decimal64Array::from(vec![-123]).with_precision_and_scale(5, 1).unwrap());
    assert_eq!(shown(&array, &int64("x")).0, "-123");
    let array: ArrayRef =
        Arc::new(Decimal256Array::from(vec![i256::from(5), i256::MAX]).with_precision_and_scale(76, 0).unwrap());
    assert_eq!(shown(&array, &int64("x")).0, "5 !");
}

#[test]
fn nulls_are_errors_or_what_stands_for_them() {
    let long = b"a default of more than twelve bytes".to_vec();
    let cases: Vec<(ArrayRef, Column, &str)> = vec![
        (Arc::new(Int64Array::from(vec![Some(1), None])), int64("x").or(Missing::Int(-7)), "1 -7"),
        (Arc::new(Int8Array::from(vec![Some(1), None])), of(Dtype::I8).optional(), "1 0"),
        (Arc::new(Float32Array::from(vec![Some(1.0), None])), float32("x").or(Missing::Float(0.5)), "1.0 0.5"),
        (Arc::new(Float32Array::from(vec![Some(1.0), None])), float32("x").or(Missing::Int(2)), "1.0 2.0"),
        (Arc::new(Float16Array::from(vec![None])), of(Dtype::F16).optional(), "0"),
        (Arc::new(BooleanArray::from(vec![Some(true), None])), of(Dtype::Bool).optional(), "true false"),
        (Arc::new(BooleanArray::from(vec![Some(false), None])), of(Dtype::Bool).or(Missing::Int(1)), "false true"),
        (Arc::new(StringArray::from(vec![Some("a"), None])), bytes("x").optional(), "a "),
        (Arc::new(StringArray::from(vec![Some("a"), None])), bytes("x").or(Missing::Bytes(b"n/a".to_vec())), "a n/a"),
        (
            Arc::new(StringArray::from(vec![Some("another of more than twelve"), None])),
            bytes("x").or(Missing::Bytes(long)),
            "another of more than twelve a default of more than twelve bytes",
        ),
        (Arc::new(NullArray::new(2)), int64("x").or(Missing::Int(3)), "3 3"),
        (Arc::new(NullArray::new(1)), float32("x").fixed([2]).optional(), "[0.0, 0.0]"),
        (Arc::new(NullArray::new(1)), bytes("x").ragged().optional(), "[]"),
    ];
    for (array, column, rows) in cases {
        assert_eq!(shown(&array, &column), (rows.to_owned(), vec![]), "{column}");
        let (_, bad) = shown(&array, &column.or(Missing::Error));
        let nulls = array.logical_nulls().unwrap();
        let wanted: Vec<usize> = (0..array.len()).filter(|&row| nulls.is_null(row)).collect();
        assert_eq!(bad.iter().map(|(row, _)| *row).collect::<Vec<_>>(), wanted);
    }
    for column in
        [int64("x").or(Missing::Float(1.0)), of(Dtype::U8).or(Missing::Int(300)), bytes("x").or(Missing::Int(0))]
    {
        assert_eq!(validate(&column).unwrap_err().kind(), ErrorKind::Config, "{column}");
    }
}

fn lists(rows: &[Option<&[Option<i64>]>]) -> ArrayRef {
    let rows = rows.iter().map(|row| row.map(|row| row.to_vec()));
    Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(rows))
}

#[test]
fn lists_are_ragged_or_checked_row_by_row() {
    let array = lists(&[Some(&[Some(1), Some(2)]), Some(&[]), None, Some(&[Some(3), None]), Some(&[Some(4), Some(5)])]);
    assert_eq!(default_of(&array).to_string(), "x: i64[*]");
    let (rows, bad) = shown(&array, &int64("x").ragged());
    assert_eq!(rows, "[1, 2] [] ! ! [4, 5]");
    assert!(bad[0].1.contains("the value is null") && bad[1].1.contains("an element of the list is null"), "{bad:?}");
    assert_eq!(shown(&array, &int64("x").ragged().or(Missing::Int(9))).0, "[1, 2] [] [] [3, 9] [4, 5]");
    let (rows, bad) = shown(&array, &int64("x").fixed([2]));
    assert_eq!(rows, "[1, 2] ! ! ! [4, 5]");
    assert_eq!(bad[0].1, "column x: 0 elements, where 2 are declared");
    assert_eq!(shown(&array, &int64("x").fixed([2]).or(Missing::Int(9))).0, "[1, 2] ! [9, 9] [3, 9] [4, 5]");
    assert_eq!(shown(&array, &Column::new("x", Dtype::U8, Shape::Fixed(vec![2, 1]))).0, "[1, 2] ! ! ! [4, 5]");
    let small = lists(&[Some(&[Some(1), Some(300)]), Some(&[Some(5)])]);
    let (rows, bad) = shown(&small, &of(Dtype::U8).ragged());
    assert_eq!((rows.as_str(), bad[0].1.as_str()), ("! [5]", "column x: 300 does not fit u8"));
    let single = lists(&[Some(&[Some(1)]), Some(&[])]);
    assert_eq!(shown(&single, &int64("x")).0, "1 !");
    assert_eq!(shown(&single, &int64("x").or(Missing::Int(4))).0, "1 !");
}

#[test]
fn slices_of_lists_begin_where_they_begin() {
    let array = lists(&[Some(&[Some(1), Some(2)]), Some(&[Some(3)]), Some(&[Some(4), Some(5), Some(6)])]);
    assert_eq!(shown(&array.slice(1, 2), &int64("x").ragged()).0, "[3] [4, 5, 6]");
    assert_eq!(shown(&array.slice(2, 1), &int64("x").fixed([3])).0, "[4, 5, 6]");
    assert_eq!(shown(&array.slice(1, 2), &of(Dtype::I32).ragged()).0, "[3] [4, 5, 6]");
    assert_eq!(shown(&array.slice(1, 0), &int64("x").ragged()).0, "");
    let scalars: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    assert_eq!(shown(&scalars, &int64("x").ragged()).0, "[1] !");
    assert_eq!(shown(&scalars, &int64("x").fixed([1]).optional()).0, "[1] [0]");
}

#[test]
fn every_kind_of_list_is_one() {
    let array = lists(&[Some(&[Some(1), Some(2)]), Some(&[Some(3)]), None]);
    let item = || Arc::new(Field::new_list_field(DataType::Int64, true));
    for data_type in [DataType::LargeList(item()), DataType::ListView(item()), DataType::LargeListView(item())] {
        let other = cast(&array, &data_type).unwrap();
        assert_eq!(default_of(&other).to_string(), "x: i64[*]");
        assert_eq!(shown(&other, &int64("x").ragged().optional()).0, "[1, 2] [3] []", "{data_type}");
    }
    let strings: ArrayRef = {
        let mut builder = ListBuilder::new(StringBuilder::new());
        builder.append_value([Some("a"), Some("b")]);
        builder.append_value([Some("longer than twelve bytes"), None]);
        Arc::new(builder.finish())
    };
    let (carried, bad) = carry(&strings, &bytes("x").ragged()).unwrap();
    assert_eq!((carried.as_list::<i32>().value(0).as_binary_view().value(1), bad.len()), (&b"b"[..], 1));
}

#[test]
fn lists_of_lists_have_extents() {
    let inner = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
        (0..4).map(|i| Some([Some(i as f32), Some(i as f32 + 0.5)])),
        2,
    );
    let item = Arc::new(Field::new_list_field(inner.data_type().clone(), true));
    let fixed: ArrayRef = Arc::new(FixedSizeListArray::new(item.clone(), 2, Arc::new(inner.clone()), None));
    assert_eq!(default_of(&fixed).to_string(), "x: f32[2, 2]");
    let (carried, bad) = carry(&fixed, &default_of(&fixed)).unwrap();
    assert_eq!(carried.as_fixed_size_list().values().as_primitive::<Float32Type>().values()[..4], [0.0, 0.5, 1.0, 1.5]);
    assert_eq!((carried.len(), bad.len()), (2, 0));
    assert_eq!(shown(&fixed, &float32("x").fixed([4])).1, []);
    let ragged: ArrayRef = Arc::new(ListArray::new(item, OffsetBuffer::from_lengths([3, 0, 1]), Arc::new(inner), None));
    assert_eq!(default_of(&ragged).to_string(), "x: f32[*, 2]");
    let (carried, bad) = carry(&ragged, &default_of(&ragged)).unwrap();
    assert_eq!(
        (carried.as_list::<i32>().value_length(0), carried.as_list::<i32>().value_length(2), bad.len()),
        (3, 1, 0)
    );
    shown(&ragged, &default_of(&ragged));
    // Lists that vary are checked against the extents, at each depth.
    let rows = |rows: Vec<Vec<Option<Vec<i64>>>>| {
        let mut builder = ListBuilder::new(ListBuilder::new(Int64Builder::new()));
        for row in rows {
            for list in row {
                match list {
                    Some(list) => builder.values().append_value(list.into_iter().map(Some)),
                    None => builder.values().append_null(),
                }
            }
            builder.append(true);
        }
        Arc::new(builder.finish()) as ArrayRef
    };
    let array = rows(vec![
        vec![Some(vec![1, 2]), Some(vec![3, 4])],
        vec![Some(vec![1]), Some(vec![2, 3, 4])],
        vec![Some(vec![1, 2]), None],
        vec![Some(vec![5, 6]), Some(vec![7, 8])],
    ]);
    assert_eq!(shown(&array, &int64("x").fixed([2, 2])).0, "[1, 2, 3, 4] ! ! [5, 6, 7, 8]");
    let (rows, bad) = shown(&array, &Column::new("x", Dtype::I64, Shape::Ragged(vec![2])));
    assert_eq!(rows, "[[1, 2], [3, 4]] ! ! [[5, 6], [7, 8]]");
    assert_eq!(bad[1].1, "column x: a list within is null");
    let flat = lists(&[Some(&[Some(1), Some(2), Some(3), Some(4)]), Some(&[Some(1)])]);
    assert_eq!(shown(&flat, &Column::new("x", Dtype::I64, Shape::Ragged(vec![2]))).0, "[[1, 2], [3, 4]] !");
}

#[test]
fn raw_columns_are_byte_strings_of_one_length() {
    let array: ArrayRef = Arc::new(BinaryArray::from(vec![Some(&b"abcd"[..]), Some(b"abc"), None]));
    let (rows, bad) = shown(&array, &bytes("x").raw(Dtype::I16, [2]));
    assert_eq!((rows.as_str(), bad[0].1.as_str()), ("abcd ! !", "column x: 3 bytes, where i16[2] takes 4"));
    let filled = shown(&array, &bytes("x").raw(Dtype::I16, [2]).or(Missing::Int(0x4142)));
    assert_eq!(filled.0, "abcd ! BABA");
}

#[test]
fn what_matches_is_shared() {
    let pointer = |array: &ArrayRef| array.to_data().buffers()[0].as_ptr();
    let ints: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
    assert_eq!(pointer(&carry(&ints, &int64("x")).unwrap().0), pointer(&ints));
    let strings: ArrayRef = Arc::new(StringArray::from(vec!["a string of more than twelve bytes"; 3]));
    let (views, _) = carry(&strings, &bytes("x")).unwrap();
    assert_eq!(views.as_binary_view().data_buffers()[0].as_ptr(), strings.as_string::<i32>().values().as_ptr());
    let lists = lists(&[Some(&[Some(1), Some(2)]), Some(&[Some(3)])]);
    let (carried, _) = carry(&lists, &int64("x").ragged()).unwrap();
    assert_eq!(carried.as_list::<i32>().offsets().as_ptr(), lists.as_list::<i32>().offsets().as_ptr());
    assert_eq!(pointer(carried.as_list::<i32>().values()), pointer(lists.as_list::<i32>().values()));
    let images: ArrayRef =
        Arc::new(FixedSizeListArray::from_iter_primitive::<UInt8Type, _, _>([Some([Some(1); 4])], 4));
    let (carried, _) = carry(&images, &of(Dtype::U8).fixed([2, 2])).unwrap();
    assert_eq!(pointer(carried.as_fixed_size_list().values()), pointer(images.as_fixed_size_list().values()));
}

fn nested() -> RecordBatch {
    let strings: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some("b"), None]));
    let sizes: ArrayRef = Arc::new(Int32Array::from(vec![1, 2, 3]));
    let deep = StructArray::new(
        vec![Field::new("size", DataType::Int32, true)].into(),
        vec![sizes],
        Some(NullBuffer::from(vec![true, true, false])),
    );
    let fields: Fields =
        vec![Field::new("bytes", DataType::Utf8, true), Field::new("meta", deep.data_type().clone(), true)].into();
    let nulls = Some(NullBuffer::from(vec![true, false, true]));
    let image = StructArray::new(fields, vec![strings, Arc::new(deep)], nulls);
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef, false),
        ("image", Arc::new(image) as ArrayRef, true),
    ])
    .unwrap()
}

#[test]
fn structs_are_flattened_and_their_nulls_reach_their_fields() {
    let batch = nested();
    let carrier = Carrier::new(&batch.schema(), None).unwrap();
    let names: Vec<String> = carrier.columns().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["id: i64", "image.bytes: bytes", "image.meta.size: i32"]);
    let (_, bad) = carrier.rows(&batch).unwrap();
    assert_eq!(
        bad.iter().map(|(row, e)| (*row, e.place().column.as_deref())).collect::<Vec<_>>(),
        [(1, Some("image.bytes")), (2, Some("image.bytes"))]
    );
    let declared = [of(Dtype::I64), int64("image.meta.size").or(Missing::Int(-1))].map(|c| c);
    let error = Carrier::new(&batch.schema(), Some(&declared)).err().unwrap();
    assert!(error.to_string().contains("there are id, image.bytes, image.meta.size"), "{error}");
    let carrier = Carrier::new(&batch.schema(), Some(&declared[1..])).unwrap();
    assert_eq!(carrier.projection(), [1]);
    let (rows, bad) = carrier.projected_rows(&batch.project(&[1]).unwrap()).unwrap();
    assert_eq!((rows.column(0).as_primitive::<Int64Type>().values().to_vec(), bad.len()), (vec![1, -1, -1], 0));
}

#[test]
fn a_mask_says_which_values_are_there() {
    let batch = nested();
    let columns = [
        bytes("image.bytes").optional(),
        Column::new("image.bytes.is_present", Dtype::Bool, Shape::Scalar),
        Column::new("id.is_present", Dtype::Bool, Shape::Scalar),
        int64("not there").or(Missing::Int(8)),
    ];
    let (rows, bad) = Carrier::new(&batch.schema(), Some(&columns)).unwrap().rows(&batch).unwrap();
    assert!(bad.is_empty());
    let mask = |column: usize| rows.column(column).as_boolean().values().iter().collect::<Vec<_>>();
    assert_eq!((mask(1), mask(2)), (vec![true, false, false], vec![true; 3]));
    assert_eq!(rows.column(3).as_primitive::<Int64Type>().values(), &[8, 8, 8]);
}

#[test]
fn a_mask_of_a_column_that_is_not_stored_names_the_column() {
    let columns = [int64("y").optional(), Column::new("y.is_present", Dtype::Bool, Shape::Scalar)];
    let error = Carrier::new(&nested().schema(), Some(&columns)).err().unwrap();
    assert_eq!(error.place().column.as_deref(), Some("y"), "{error}");
}

#[test]
fn times_are_of_the_kind_and_unit_of_the_first_shard() {
    let time = |unit| DataType::Timestamp(unit, None);
    let of = |data_type: DataType| Schema::new(vec![Field::new("t", data_type, true)]);
    let first = of(time(TimeUnit::Millisecond));
    let inferred = inferred(&leaves(&first), &mut Vec::new()).unwrap();
    let declared = in_units_of(vec![int64("t").optional()], [leaves(&first)]);
    for columns in [inferred, declared] {
        let zoned = DataType::Timestamp(TimeUnit::Millisecond, Some("+01:00".into()));
        for same in [time(TimeUnit::Millisecond), zoned, DataType::Null] {
            assert!(Carrier::new(&of(same), Some(&columns)).is_ok());
        }
        for other in [time(TimeUnit::Microsecond), DataType::Date64, DataType::Duration(TimeUnit::Millisecond)] {
            let error = Carrier::new(&of(other), Some(&columns)).err().unwrap();
            assert_eq!((error.kind(), error.place().column.as_deref()), (ErrorKind::Schema, Some("t")), "{error}");
            assert!(error.to_string().contains("and Timestamp(ms) in the first shard"), "{error}");
        }
    }
    let list = |unit| of(DataType::new_list(time(unit), true));
    let columns = in_units_of(vec![int64("t").ragged()], [leaves(&list(TimeUnit::Second))]);
    assert!(Carrier::new(&list(TimeUnit::Nanosecond), Some(&columns)).is_err());
}

#[test]
fn integers_are_of_the_unit_of_the_first_shard_that_has_them() {
    let of = |data_type: DataType| Schema::new(vec![Field::new("n", data_type, true)]);
    let (time, cents) = (DataType::Timestamp(TimeUnit::Second, None), DataType::Decimal128(9, 2));
    let cases = [
        (DataType::Int64, vec![DataType::Int8, DataType::Boolean, DataType::Null], vec![cents.clone(), time.clone()]),
        (cents.clone(), vec![DataType::Decimal64(5, 2)], vec![DataType::Decimal128(9, 3), DataType::Int64]),
        (time, vec![], vec![DataType::Int64, cents]),
    ];
    for (first, same, others) in cases {
        let shards = [Schema::empty(), of(DataType::Null), of(first)];
        let columns = in_units_of(vec![int64("n").optional()], shards.iter().map(leaves));
        for schema in shards.into_iter().chain(same.into_iter().map(of)) {
            assert!(Carrier::new(&schema, Some(&columns)).is_ok(), "{schema}");
        }
        for other in others {
            let error = Carrier::new(&of(other), Some(&columns)).err().unwrap();
            assert_eq!((error.kind(), error.place().column.as_deref()), (ErrorKind::Schema, Some("n")), "{error}");
        }
    }
    // Floats are what decimals say, whatever their scale.
    let columns = inferred(&leaves(&of(DataType::Decimal128(9, 2))), &mut Vec::new()).unwrap();
    assert!(Carrier::new(&of(DataType::Decimal128(9, 3)), Some(&columns)).is_ok());
}

#[test]
fn types_that_no_tensor_can_hold_are_named_with_the_reason() {
    let structs = DataType::Struct(Fields::from(vec![Field::new("role", DataType::Utf8, true)]));
    let schema = Schema::new(vec![
        Field::new("messages", DataType::new_list(structs, true), true),
        Field::new("grid", DataType::new_list(DataType::new_list(DataType::Int8, true), true), true),
    ]);
    let error = inferred(&leaves(&schema), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("messages (List(") && error.contains("a list of structs"), "{error}");
    assert!(error.contains("grid (List(") && error.contains(".fixed(..)"), "{error}");
}

#[test]
fn what_cannot_be_declared_says_what_can() {
    let schema = Schema::new(vec![
        Field::new("text", DataType::Utf8, true),
        Field::new("real", DataType::Float64, true),
        Field::new("pixels", DataType::FixedSizeList(Arc::new(Field::new_list_field(DataType::UInt8, true)), 4), true),
        Field::new(
            "deep",
            DataType::List(Arc::new(Field::new_list_field(DataType::new_list(DataType::Int8, true), true))),
            true,
        ),
    ]);
    let cases = [
        (int64("text"), "declare it as bytes[]"),
        (int64("real"), "declare it as f64[]"),
        (Column::new("pixels", Dtype::U8, Shape::Fixed(vec![3])), "declare it as u8[4]"),
        (bytes("real"), "declare it as f64[]"),
        (int64("deep"), "leave it out"),
        (bytes("real").raw(Dtype::U8, [4]), "declare it as f64[]"),
        (int64("real").in_sequence(), ".ragged()"),
        (float32("real").fixed([0]), "no elements"),
        (float32("real").fixed([usize::MAX, 2]), "too many"),
    ];
    for (column, words) in cases {
        let error = Carrier::new(&schema, Some(std::slice::from_ref(&column))).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_name_of_two_fields_is_refused_wherever_it_is_meant() {
    let inner = Fields::from(vec![Field::new("b", DataType::Boolean, true)]);
    let schema = Schema::new(vec![
        Field::new("a.b", DataType::Int64, true),
        Field::new("a", DataType::Struct(inner), true),
        Field::new("c", DataType::Int64, true),
    ]);
    let refused = |error: Option<Error>| error.unwrap().to_string().contains("2 stored columns have this name");
    assert!(refused(inferred(&leaves(&schema), &mut Vec::new()).err()));
    assert!(refused(Carrier::new(&schema, Some(&[int64("c"), int64("a.b")])).err()));
    assert!(Carrier::new(&schema, Some(&[int64("c")])).is_ok());
}
