"""Writes small Parquet files with several writers, and beside them what pyarrow reads.

    python make.py FOLDER [pyarrow] [duckdb] [polars] [spark]

Without names of writers, all. Files of the same rows share a JSON file, whose name theirs begin with; what pyarrow reads of each is held against it.
It has the columns that a tensor can hold, structs as their fields: integers as they are, in the
unit they are stored in; floats as the hexadecimal digits of their bits; bytes and text as hexadecimal digits; null as null.
"""

import datetime
import decimal
import json
import os
import pathlib
import shutil
import struct
import sys
import tempfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

HERE = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
WRITERS = sys.argv[2:] or ["pyarrow", "duckdb", "polars", "spark"]


# --- what pyarrow reads ------------------------------------------------------------------------------------------------

DTYPES = {
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64", "uint8": "u8", "uint16": "i32", "uint32": "i64",
    "uint64": "i64", "halffloat": "f16", "float": "f32", "double": "f64", "bool": "bool",
}  # fmt: skip


def kind(t):
    """dtype and shape, or None: "scalar", ["ragged", inner..], ["fixed", extents..]."""
    if pa.types.is_dictionary(t):
        return kind(t.value_type)
    if pa.types.is_fixed_size_list(t):
        inner = kind(t.value_type)
        if inner is None or inner[1][0] == "ragged":
            return None
        return inner[0], ["fixed", t.list_size, *inner[1][1:]]
    if pa.types.is_list(t) or pa.types.is_large_list(t):
        inner = kind(t.value_type)
        if inner is None or inner[1][0] == "ragged":
            return None
        return inner[0], ["ragged", *inner[1][1:]]
    if pa.types.is_decimal(t):
        return "f64", ["scalar"]
    if pa.types.is_temporal(t) and not pa.types.is_interval(t):
        return "i64", ["scalar"]
    if pa.types.is_string(t) or pa.types.is_binary(t) or pa.types.is_large_string(t) or pa.types.is_large_binary(t):
        return "bytes", ["scalar"]
    if pa.types.is_fixed_size_binary(t) or pa.types.is_string_view(t) or pa.types.is_binary_view(t):
        return "bytes", ["scalar"]
    dtype = DTYPES.get(str(t))
    return dtype and (dtype, ["scalar"])


def plain(array):
    """Values as JSON has them."""
    t = array.type
    if isinstance(array, pa.ExtensionArray):
        return plain(array.storage)
    if pa.types.is_dictionary(t):
        return plain(array.dictionary_decode())
    if pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t):
        return [None if not item.is_valid else plain(item.values) for item in array]
    if pa.types.is_temporal(t):
        width = pa.int32() if t.bit_width == 32 else pa.int64()
        return array.cast(width).to_pylist()
    if pa.types.is_decimal(t):
        return [None if v is None else struct.pack(">d", float(v)).hex() for v in array.to_pylist()]
    if pa.types.is_floating(t):
        code = {16: ">e", 32: ">f", 64: ">d"}[t.bit_width]
        return [None if v is None else struct.pack(code, v).hex() for v in array.to_pylist()]
    values = array.to_pylist()
    if kind(t)[0] == "bytes":
        return [None if v is None else (v.encode() if isinstance(v, str) else bytes(v)).hex() for v in values]
    return [None if v is None else int(v) for v in values]


def leaves(array, name):
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_struct(array.type):
        # flatten() hands a struct's nulls on to its fields.
        for field, child in zip(array.type, array.flatten()):
            yield from leaves(child, f"{name}.{field.name}")
    else:
        yield name, array


def describe(path):
    # In the unit that holds all years.
    table = pq.read_table(path, coerce_int96_timestamp_unit="us")
    columns, left_out = {}, []
    for name in table.column_names:
        whole = table[name].combine_chunks()
        whole = whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
        for leaf, array in leaves(whole, name):
            found = kind(array.type)
            if found is None:
                left_out.append(leaf)
                continue
            columns[leaf] = {"type": str(array.type), "dtype": found[0], "shape": found[1], "values": plain(array)}
            if pa.types.is_decimal(array.type):
                scale = array.type.scale
                values = array.to_pylist()
                columns[leaf]["unscaled"] = [None if v is None else str(int(v.scaleb(scale, CONTEXT))) for v in values]
    lines = [f"  {json.dumps(name)}: {json.dumps(column, separators=(',', ':'))}" for name, column in columns.items()]
    text = "{\n" + f' "rows": {table.num_rows},\n "left_out": {json.dumps(left_out)},\n "columns": {{\n'
    return text + ",\n".join(lines) + "\n }\n}\n"


CONTEXT = decimal.Context(prec=60)
D = decimal.Decimal


SHARED = {}


def done(name, shared):
    text = describe(HERE / name)
    assert SHARED.setdefault(shared, text) == text, f"{name} differs from the others of {shared}"
    (HERE / f"{shared}.json").write_text(text)
    print(f"{name}: {(HERE / name).stat().st_size} bytes")


def nulls(values, every):
    return [None if every and i % every == every - 1 else v for i, v in enumerate(values)]


# --- pyarrow -----------------------------------------------------------------------------------------------------------


def png(seed):
    """A grey picture of 6 x 4 pixels."""
    rows = b"".join(b"\0" + bytes((seed * 40 + 20 * x + 5 * y) % 256 for x in range(6)) for y in range(4))

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 6, 4, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pyarrow():
    n = 10

    def scalars(every):
        day = datetime.date(2026, 1, 1)
        ints = {str(t): pa.array(nulls([(-1) ** i * i * 11 if "u" not in str(t) else i * 25 for i in range(n)], every), t)
                for t in [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]}  # fmt: skip
        floats = [0.1, -0.0, 1e-3, 65504.0, float("inf"), float("nan"), 2.5, -7.25, 3.0, 1 / 3]
        counts = [i * 100_000_007 for i in range(n)]

        def cast(values, via, t):
            return pa.array(nulls(values, every), via).cast(t)

        return {
            **ints,
            "half": pa.array(nulls([np.float16(v) for v in floats], every), pa.float16()),
            "float": pa.array(nulls(floats, every), pa.float32()),
            "double": pa.array(nulls(floats, every), pa.float64()),
            "bool": pa.array(nulls([i % 3 == 0 for i in range(n)], every), pa.bool_()),
            "decimal9": pa.array(nulls([D(i * 12345).scaleb(-2) for i in range(n)], every), pa.decimal128(9, 2)),
            "decimal18": pa.array(nulls([D(-i * 10**12 - 1).scaleb(-4) for i in range(n)], every), pa.decimal128(18, 4)),
            "decimal38": pa.array(nulls([D(i * 10**15 + 7).scaleb(-10) for i in range(n)], every), pa.decimal128(38, 10)),
            "date32": pa.array(nulls([day + datetime.timedelta(days=100 * i) for i in range(n)], every), pa.date32()),
            "date64": pa.array(nulls([day + datetime.timedelta(days=100 * i) for i in range(n)], every), pa.date64()),
            "time32": cast([i * 1000 for i in range(n)], pa.int32(), pa.time32("ms")),
            "time64": cast(counts, pa.int64(), pa.time64("us")),
            "seconds": cast(counts, pa.int64(), pa.timestamp("s")),
            "millis": cast(counts, pa.int64(), pa.timestamp("ms", "UTC")),
            "micros": cast(counts, pa.int64(), pa.timestamp("us", "Europe/Berlin")),
            "nanos": cast(counts, pa.int64(), pa.timestamp("ns")),
            "duration": cast(counts, pa.int64(), pa.duration("us")),
            "string": pa.array(nulls([f"Zeile {i} ü" * (i % 4) for i in range(n)], every), pa.string()),
            "large_string": pa.array(nulls([f"row {i}" for i in range(n)], every), pa.large_string()),
            "binary": pa.array(nulls([bytes([i, 255 - i]) * i for i in range(n)], every), pa.binary()),
            "large_binary": pa.array(nulls([bytes([i]) * 20 for i in range(n)], every), pa.large_binary()),
            "fixed": pa.array(nulls([bytes([i, 1, 2, 3, 4]) for i in range(n)], every), pa.binary(5)),
            "dictionary": pa.array(nulls([f"class {i % 3}" for i in range(n)], every), pa.string()).dictionary_encode(),
        }

    for name, every in [("types", 0), ("nulls", 3)]:
        pq.write_table(pa.table(scalars(every)), HERE / f"pyarrow-{name}.parquet", compression="zstd")
        done(f"pyarrow-{name}.parquet", f"pyarrow-{name}")

    lengths = [0, 3, 1, 0, 5, 2, 0, 0, 4, 1]
    lists = [[10 * row + i for i in range(length)] for row, length in enumerate(lengths)]
    gaps = [None if row % 4 == 3 else [None if (row + i) % 3 == 2 else v for i, v in enumerate(items)]
            for row, items in enumerate(lists)]  # fmt: skip
    texts = [[f"word {v}" for v in items] for items in lists]
    triples = [[row, row + 0.5, -row] for row in range(n)]
    pairs = [[[v, v / 4] for v in items] for items in lists]
    table = pa.table({
        "ints": pa.array(lists, pa.list_(pa.int32())),
        "gaps": pa.array(gaps, pa.list_(pa.int64())),
        "floats": pa.array(lists, pa.list_(pa.float32())),
        "large": pa.array(lists, pa.large_list(pa.int64())),
        "shorts": pa.array(lists, pa.list_(pa.int16())),
        "texts": pa.array(texts, pa.list_(pa.string())),
        "triples": pa.array(triples, pa.list_(pa.float32(), 3)),
        "pairs": pa.array(pairs, pa.list_(pa.list_(pa.float32(), 2))),
        "all_empty": pa.array([[]] * n, pa.list_(pa.float64())),
        "all_null": pa.array([None] * n, pa.list_(pa.int32())),
        "map": pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int32())),
    })  # fmt: skip
    for version in ["1.0", "2.0"]:
        name = f"pyarrow-lists-v{version[0]}.parquet"
        pq.write_table(table, HERE / name, compression="snappy", data_page_version=version)
        done(name, "pyarrow-lists")

    inner = [None if i % 5 == 4 else {"b": i, "c": list(range(i % 3))} for i in range(n)]
    outer = [None if i % 4 == 3 else {"a": inner[i], "d": f"d{i}"} for i in range(n)]
    a = pa.struct([("b", pa.int32()), ("c", pa.list_(pa.int32()))])
    table = pa.table({"id": range(n), "outer": pa.array(outer, pa.struct([("a", a), ("d", pa.string())]))})
    pq.write_table(table, HERE / "pyarrow-nested.parquet")
    done("pyarrow-nested.parquet", "pyarrow-nested")

    # As the library `datasets` stores images.
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(n)]
    table = pa.table({
        "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": pa.array([i % 2 for i in range(n)], pa.int64()),
    }).replace_schema_metadata({"huggingface": json.dumps(features)})  # fmt: skip
    pq.write_table(table, HERE / "pyarrow-images.parquet", row_group_size=4)
    done("pyarrow-images.parquet", "pyarrow-images")

    # Row groups of 40 rows, pages of about 10; one column of each way of decoding.
    rows = 100
    table = pa.table({
        "id": pa.array(range(rows), pa.int64()),
        "few": pa.array([i // 7 % 5 for i in range(rows)], pa.int32()),
        "value": pa.array(nulls([i / 3 for i in range(rows)], 6), pa.float32()),
        "tokens": pa.array([[i * 3 + k for k in range(i % 6)] for i in range(rows)], pa.list_(pa.int32())),
        "text": pa.array(nulls([f"text of row {i // 4}" for i in range(rows)], 9), pa.string()),
        "flag": pa.array([i % 3 == 0 for i in range(rows)], pa.bool_()),
    })  # fmt: skip
    ways = [
        ("none-v1-plain", dict(compression="none", use_dictionary=False)),
        ("none-v2-dictionary", dict(compression="none", data_page_version="2.0")),
        ("snappy-v1", dict(compression="snappy", write_page_index=True)),
        ("gzip-v2", dict(compression="gzip", data_page_version="2.0", write_page_index=True)),
        ("brotli-v1", dict(compression="brotli", use_dictionary=False)),
        ("zstd-v2-checksums", dict(compression="zstd", data_page_version="2.0", write_page_checksum=True)),
        ("lz4-v1-checksums", dict(compression="lz4", write_page_checksum=True, write_page_index=True)),
    ]
    for name, options in ways:
        name = f"pyarrow-rows-{name}.parquet"
        # Pages end where a batch of values does.
        small = dict(row_group_size=40, data_page_size=1, write_batch_size=10, dictionary_pagesize_limit=1 << 20)
        pq.write_table(table, HERE / name, **{**small, **options})
        done(name, "pyarrow-rows")
    # Groups without rows, as they come of empty tables: in front, between, behind; without a dictionary their pages have a place, with one they have none.
    for name, options in [("plain", dict(use_dictionary=False)), ("dictionary", dict())]:
        name = f"pyarrow-rows-empty-groups-{name}.parquet"
        with pq.ParquetWriter(HERE / name, table.schema, compression="none", **options) as writer:
            for start, length in [(0, 0), (0, 30), (30, 0), (30, 0), (30, 50), (80, 20), (100, 0)]:
                writer.write_table(table.slice(start, length))
        done(name, "pyarrow-rows")

    encodings = {
        "delta32": "DELTA_BINARY_PACKED", "delta64": "DELTA_BINARY_PACKED", "lengths": "DELTA_LENGTH_BYTE_ARRAY",
        "prefixes": "DELTA_BYTE_ARRAY", "split32": "BYTE_STREAM_SPLIT", "split64": "BYTE_STREAM_SPLIT",
        "split_int": "BYTE_STREAM_SPLIT", "split_fixed": "BYTE_STREAM_SPLIT", "rle": "RLE",
    }  # fmt: skip
    rows = 120
    table = pa.table({
        "delta32": pa.array([i * i % 1009 - 500 for i in range(rows)], pa.int32()),
        "delta64": pa.array(nulls([(i - 60) ** 7 for i in range(rows)], 8), pa.int64()),
        "lengths": pa.array([f"x{i}" * (i % 4) for i in range(rows)]),
        "prefixes": pa.array(nulls([f"https://example.org/{i // 20}/{i}" for i in range(rows)], 50)),
        "split32": pa.array([i / 7 for i in range(rows)], pa.float32()),
        "split64": pa.array(nulls([-i / 7 for i in range(rows)], 5), pa.float64()),
        "split_int": pa.array(range(rows), pa.int32()),
        "split_fixed": pa.array([struct.pack(">HB", i, 7) for i in range(rows)], pa.binary(3)),
        "rle": pa.array([i % 50 < 25 for i in range(rows)], pa.bool_()),
    })  # fmt: skip
    pq.write_table(table, HERE / "pyarrow-encodings.parquet", use_dictionary=False, column_encoding=encodings, compression="zstd")
    done("pyarrow-encodings.parquet", "pyarrow-encodings")


# --- DuckDB ------------------------------------------------------------------------------------------------------------


def duckdb():
    import duckdb

    query = """
        SELECT i AS id, (i % 100)::TINYINT AS tiny, (-i)::SMALLINT AS small, i::UINTEGER AS unsigned, i / 3::DOUBLE AS double,
            (i / 7)::FLOAT AS float, i % 2 = 0 AS truth, (i * 1.25)::DECIMAL(9, 2) AS decimal, (i * -100.125)::DECIMAL(30, 3) AS wide,
            DATE '2026-01-01' + i::INTEGER AS date, TIMESTAMP '2026-01-01' + INTERVAL (i) SECOND AS time,
            'text ' || (i % 7) AS text, CASE WHEN i % 3 = 0 THEN NULL ELSE encode('b' || i) END AS blob,
            ('00000000-0000-0000-0000-' || lpad(i::VARCHAR, 12, '0'))::UUID AS uuid,
            (['red', 'green', 'blue'][i % 3 + 1])::ENUM ('red', 'green', 'blue') AS colour,
            CASE WHEN i % 5 = 4 THEN NULL ELSE range(i % 4)::INTEGER[] END AS list, [i::FLOAT, 0.5] AS pair,
            {'x': i::INTEGER, 'words': ['w' || i]} AS nested
        FROM range(50) t(i)"""
    for version, codec in [("V1", "SNAPPY"), ("V2", "ZSTD"), ("V2", "LZ4_RAW")]:
        name = f"duckdb-{version.lower()}-{codec.lower()}.parquet"
        options = f"FORMAT PARQUET, CODEC '{codec}', PARQUET_VERSION '{version}', ROW_GROUP_SIZE 2048"
        duckdb.sql("SET threads TO 1")
        duckdb.sql(f"COPY ({query}) TO '{HERE / name}' ({options})")
        done(name, "duckdb")


# --- polars ------------------------------------------------------------------------------------------------------------


def polars():
    import polars as pl

    n = 30
    frame = pl.DataFrame({
        "id": pl.Series(range(n), dtype=pl.UInt32),
        "byte": pl.Series([i - 15 for i in range(n)], dtype=pl.Int8),
        "value": pl.Series(nulls([i / 9 for i in range(n)], 4), dtype=pl.Float32),
        "category": pl.Series([f"c{i % 4}" for i in range(n)], dtype=pl.Categorical),
        "text": pl.Series(nulls([f"a longer text, number {i}" for i in range(n)], 5)),
        "when": pl.Series([datetime.datetime(2026, 1, 1) + datetime.timedelta(minutes=i) for i in range(n)]),
        "took": pl.Series([datetime.timedelta(milliseconds=i) for i in range(n)], dtype=pl.Duration("ms")),
        "list": pl.Series([None if i % 7 == 6 else list(range(i % 4)) for i in range(n)], dtype=pl.List(pl.Int64)),
        "array": pl.Series([[i, i + 1] for i in range(n)], dtype=pl.Array(pl.Int32, 2)),
        "price": pl.Series([D(i * 199).scaleb(-2) for i in range(n)], dtype=pl.Decimal(12, 2)),
        "truth": pl.Series(nulls([i % 2 == 0 for i in range(n)], 6)),
        "point": [{"x": float(i), "y": -i} for i in range(n)],
        "raw": pl.Series([bytes([i]) * (i % 3) for i in range(n)]),
    })  # fmt: skip
    for codec in ["zstd", "lz4", "uncompressed"]:
        name = f"polars-{codec}.parquet"
        frame.write_parquet(HERE / name, compression=codec, row_group_size=12, data_page_size=128, statistics="full")
        done(name, "polars")
    # A type that Arrow has none for: 16 bytes each in Parquet, and a schema that Arrow's own reader does not read in both.
    wide = pl.DataFrame({"wide": pl.Series([1, 2, 3], dtype=pl.Int128), "y": [4, 5, 6]})
    wide.write_parquet(HERE / "polars-int128.parquet", compression="uncompressed")
    wide.write_ipc(HERE / "polars-int128.arrow")


# --- Spark, and with it parquet-mr -------------------------------------------------------------------------------------


def spark():
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    session = session.config("spark.sql.session.timeZone", "UTC").getOrCreate()
    query = """
        SELECT id, cast(id % 100 AS tinyint) AS tiny, cast(-id AS smallint) AS small, cast(id * 3 AS int) AS int,
            cast(id / 3 AS float) AS float, if(id % 4 = 3, NULL, id / 7) AS double, id % 2 = 0 AS truth,
            cast(id * 1.25 AS decimal(9, 2)) AS decimal, cast(id * -100.125 AS decimal(30, 3)) AS wide,
            date_add(date'2026-01-01', cast(id AS int)) AS date, timestamp_seconds(1700000000 + id) AS time,
            if(id % 5 = 4, NULL, concat('text ', id % 7)) AS text, cast(concat('b', id) AS binary) AS blob,
            if(id % 6 = 5, NULL, slice(array(1, 2, 3, cast(id AS int)), 1, cast(id % 4 AS int))) AS list,
            transform(array('a', 'b'), x -> concat(x, id)) AS words, named_struct('x', cast(id AS int), 'y', id / 2) AS point
        FROM range(0, 40, 1, 1)"""
    ways = [
        ("snappy", {}),
        ("legacy-gzip", {"spark.sql.parquet.writeLegacyFormat": "true", "spark.sql.parquet.outputTimestampType": "INT96"}),
        ("v2-zstd", {"parquet.writer.version": "PARQUET_2_0"}),
        ("lz4raw-bloom", {"parquet.enable.dictionary#text": "false", "parquet.bloom.filter.enabled#text": "true", "parquet.bloom.filter.expected.ndv#text": "50"}),
    ]
    for name, settings in ways:
        codec = name.split("-")[-1] if "lz4" not in name else "lz4_raw"
        session.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
        session.conf.set("spark.sql.parquet.writeLegacyFormat", "false")
        writer = session.sql(query)
        for key, value in settings.items():
            if key.startswith("spark."):
                session.conf.set(key, value)
        writer = writer.write.option("compression", codec).option("parquet.page.row.count.limit", "15")
        for key, value in settings.items():
            if not key.startswith("spark."):
                writer = writer.option(key, value)
        folder = pathlib.Path(tempfile.mkdtemp())
        writer.mode("overwrite").parquet(str(folder))
        (part,) = folder.glob("part-*.parquet")
        shutil.copy(part, HERE / f"spark-{name}.parquet")
        shutil.rmtree(folder)
        done(f"spark-{name}.parquet", "spark-legacy" if "legacy" in name else "spark")
    session.stop()


HERE.mkdir(exist_ok=True, parents=True)
os.environ.setdefault("POLARS_MAX_THREADS", "1")
for writer in WRITERS:
    globals()[writer]()
