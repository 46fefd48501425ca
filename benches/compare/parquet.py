"""Rows a second from the Parquet files of `forebay bench tokens|wide|latents` to torch tensors, through pyarrow and datasets.

    python benches/compare/parquet.py tokens 'target/bench/tokens-40000/*.parquet'

Needs pyarrow, numpy and torch, and datasets for its streaming. Each way is run four times, the first to warm up; the best of the
others is printed.
"""

import glob
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import torch

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
WIDE = [f"c{column:03}" for column in range(0, 200, 5)]
BATCH = {"tokens": 32, "wide": 16_384, "latents": 48}
COLUMNS = {"tokens": ["tokens"], "wide": WIDE, "latents": None}


def tensors(column, kind):
    """A column of a batch as a tensor of the loader's dtype."""
    if kind == "wide":
        return torch.from_numpy(column.to_numpy(zero_copy_only=False)).clone()
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    values = torch.from_numpy(values)
    return values.to(torch.int64) if kind == "tokens" else values.clone()


def batches(files, kind):
    """`ParquetFile.iter_batches` in the loader's batches."""
    rows = 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH[kind], columns=COLUMNS[kind]):
            for column in batch.columns:
                tensors(column, kind)
            rows += len(batch)
    return rows


def tables(files, kind):
    """`read_table` of a file at a time, cut into batches."""
    rows = 0
    for file in files:
        table = pq.read_table(file, columns=COLUMNS[kind]).combine_chunks()
        for batch in table.to_batches(max_chunksize=BATCH[kind]):
            for column in batch.columns:
                tensors(column, kind)
            rows += len(batch)
    return rows


def two_threads(read):
    """The same, a file a thread."""

    def reading(files, kind):
        with ThreadPoolExecutor(2) as pool:
            return sum(pool.map(lambda file: read([file], kind), files))

    return reading


def streaming(files, kind):
    """`datasets` streaming, in torch format."""
    from datasets import load_dataset

    data = load_dataset("parquet", data_files=files, split="train", streaming=True, columns=COLUMNS[kind])
    rows = 0
    for batch in data.with_format("torch").iter(BATCH[kind]):
        rows += len(next(iter(batch.values())))
    return rows


def main():
    kind, files = sys.argv[1], sorted(glob.glob(sys.argv[2]))
    torch.set_num_threads(2)
    ways = {
        "pyarrow, batches": batches,
        "pyarrow, batches, a file a thread": two_threads(batches),
        "pyarrow, tables": tables,
        "pyarrow, tables, a file a thread": two_threads(tables),
    }
    if len(sys.argv) > 3:
        ways["datasets, streaming"] = streaming
    for name, read in ways.items():
        best = 0.0
        for round in range(4):
            start = time.perf_counter()
            rows = read(files, kind)
            rate = rows / (time.perf_counter() - start)
            best = max(best, rate if round else 0.0)
        print(f"{kind}: {name}: {best:,.0f} rows/s")


main()
