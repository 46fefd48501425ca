"""Tokens a second and padding of first-fit packing in Grain, on documents like those of `forebay bench pack`.

    python benches/compare/pack.py [documents]

Needs grain and numpy. Lengths are log-normal, median 420 tokens, sigma 1.2, cut to rows of 2,048; 64 rows are open at a time.
"""

import sys
import time

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset

LENGTH, BINS = 2048, 64


def main():
    documents = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(420), 1.2, documents).astype(int), 1, None)
    pieces = []
    for length in lengths:
        while length > 0:
            pieces.append({"tokens": rng.integers(0, 50_257, min(length, LENGTH), dtype=np.int32)})
            length -= LENGTH
    data = grain.MapDataset.source(pieces).to_iter_dataset()
    packed = FirstFitPackIterDataset(data, length_struct={"tokens": LENGTH}, num_packing_bins=BINS, shuffle_bins=False)
    batches = packed.batch(32)
    start, rows, tokens = time.perf_counter(), 0, 0
    for batch in batches:
        rows += len(batch["tokens"])
        tokens += int((batch["tokens_segment_ids"] > 0).sum())
    seconds = time.perf_counter() - start
    print(f"grain first fit: {tokens / seconds:,.0f} tokens/s, {100 - 100 * tokens / (rows * LENGTH):.2f} % padding")


main()
