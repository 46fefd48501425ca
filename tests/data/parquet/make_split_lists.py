"""Writes split-lists.parquet: lists that begin on one page and end on another, in pages that no index knows.

    python make_split_lists.py        # pyarrow 26.0.1
"""

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 60
table = pa.table(
    {
        "tokens": pa.array(
            [[row * 1000 + i for i in range(row % 7 * 9)] if row % 11 else None for row in range(ROWS)],
            pa.list_(pa.int32()),
        ),
        "id": pa.array(range(ROWS), pa.int64()),
        "text": [f"row {row}" * 3 for row in range(ROWS)],
    }
)
pq.write_table(
    table,
    "split-lists.parquet",
    data_page_size=300,
    write_batch_size=7,
    use_dictionary=False,
    compression="zstd",
    write_page_index=False,
)
