"""TFRecord to batches: tf.Examples of 40 numbers parsed to columns, and records of 114,660 bytes as they are. forebay beside what people come from.

    pip install tensorflow-cpu torch tfrecord crc32c grain array-record protobuf nvidia-dali-cuda130 numpy
    python benches/compare/records.py features
    python benches/compare/records.py raw

Whatever of these is missing is left out, and said to be. `contest.py` tells how it is measured. All read the files that `forebay bench features|raw` makes, in their
order, from the page cache.

`features`: 400,000 tf.Examples of 13 floats, 26 integers and a label in 8 files, to 40 columns of 4,096 numbers, f32 and i64. Checked of each: the number of samples, and the sums of
the label, of `i00` and of `f00`, which must equal the others'. (`forebay bench` checks samples and labels by itself.)

- forebay: `forebay bench features`, checksums on.
- tf.data: `TFRecordDataset`, batched before `parse_example` parses all of a batch at once (which its guide calls vectorised mapping), AUTOTUNE, prefetch, order left free. The fastest is
  kept of: files read in parallel by the data set itself; files interleaved that are batched and parsed within; a thread pool of its own or not. Checksums are on, as always.
- PyTorch, tfrecord: the `tfrecord` package as it stands, an `IterableDataset` of its `tfrecord_loader` over a worker's share of the files in a `DataLoader`. It reads no checksums.
- PyTorch, protobuf: what one writes by hand: workers that take 4,096 records by an index, parse them with `protobuf` (its C parser) and fill arrays; no collation. No checksums.
- Grain: the same function behind `MapDataset` over the index, in processes. No checksums.
- DALI: `fn.readers.tfrecord` with 40 features, which gives 40 lists of 4,096 tensors of one number each; they are views of memory that a later batch overwrites. No checksums.

`raw`: 5,004 records of noise in 4 files, to u8 [400, 114660]. Checked of each: the number of records, their shape, and the sum of all bytes. (`forebay bench` checks a hash of all by itself.)

- forebay: `forebay bench raw`, checksums on.
- tf.data, equal: `TFRecordDataset`, `batch`, `decode_raw` to one tensor of u8; AUTOTUNE, prefetch; parallel reads or interleaved files, the faster.
- tf.data, strings: the same without `decode_raw`: a batch is 400 strings, which nobody has laid side by side. Less work.
- PyTorch, crc32c: workers read 400 records by an index into one tensor in shared memory, and check them with the `crc32c` package (which uses the processor's instruction).
- PyTorch, unchecked: the same without. Less work.
- PyTorch, tfrecord: records of the package's `tfrecord_iterator`, batched by the `DataLoader`. Nothing is checked.
- Grain, crc32c: `MapDataset` over the index with the same check, batched in processes.
- Grain, ArrayRecord: the same records written once as ArrayRecord, one a chunk, not compressed; its own hashes are checked.

Left out: WebDataset, which reads tar files, not these.
"""

from pathlib import Path

import contest
import numpy as np
from contest import CORES, Contender

FLOATS, INTS = [f"f{i:02}" for i in range(13)], [f"i{i:02}" for i in range(26)]
RAW = 114_660
BATCHES = {"features": 4096, "raw": 400}
SAMPLES = {"features": 400_000, "raw": 5004}
WORKERS = [{"workers": workers} for workers in range(1, CORES + 2)]


class Records(contest.Reads):
    """Records by number: of a list of numbers, their payloads in a list."""

    def __init__(self, files, is_checked=False):
        super().__init__(files)
        self.is_checked = is_checked
        spans = [(file, *span) for file, path in enumerate(files) for span in contest.offsets(path)]
        self.places = np.array(spans, np.int64)

    def __len__(self):
        return len(self.places)

    def __getitem__(self, at):
        file, start, length = map(int, self.places[at])
        if not self.is_checked:
            return self.span(file, start, length)
        frame = memoryview(self.span(file, start, length + 4))
        check(frame[:length], int.from_bytes(frame[length:], "little"))
        return frame[:length]


def check(payload, stored):
    from crc32c import crc32c

    crc = crc32c(payload)
    if ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF != stored:
        raise ValueError("the checksum of a record is wrong")


def spans(count, batch, endless):
    """Batches of numbers in their order, once or for ever."""
    while True:
        for start in range(0, count, batch):
            yield range(start, min(start + batch, count))
        if not endless:
            return


# TensorFlow


def tf_data(inner):
    """Files read in parallel, `inner` done to the records: as one stream, or to each file by itself."""

    def build(context, reading, private):
        import tensorflow as tf

        options = tf.data.Options()
        options.deterministic = False
        if private:
            options.threading.private_threadpool_size = CORES
        files = context.files
        if reading == "parallel":
            data = inner(tf.data.TFRecordDataset(files, num_parallel_reads=tf.data.AUTOTUNE), context.batch, tf.data.AUTOTUNE)
        else:
            each = lambda file: inner(tf.data.TFRecordDataset(file), context.batch, None)  # noqa: E731
            data = tf.data.Dataset.from_tensor_slices(files)
            data = data.interleave(each, cycle_length=CORES + 2, num_parallel_calls=tf.data.AUTOTUNE)
        if context.endless:
            data = data.repeat()
        return data.prefetch(tf.data.AUTOTUNE).with_options(options)

    return build


def parsed(data, batch, calls):
    import tensorflow as tf

    spec = {name: tf.io.FixedLenFeature([], tf.float32) for name in FLOATS}
    spec |= {name: tf.io.FixedLenFeature([], tf.int64) for name in [*INTS, "label"]}
    return data.batch(batch, num_parallel_calls=calls).map(lambda records: tf.io.parse_example(records, spec), num_parallel_calls=calls)


def strings(data, batch, calls):
    return data.batch(batch, num_parallel_calls=calls)


def dense(data, batch, calls):
    import tensorflow as tf

    decode = lambda records: tf.ensure_shape(tf.io.decode_raw(records, tf.uint8), [None, RAW])  # noqa: E731
    return strings(data, batch, calls).map(decode, num_parallel_calls=calls)


# PyTorch


def loaded(data, workers, **options):
    from torch.utils.data import DataLoader

    return DataLoader(data, num_workers=workers, persistent_workers=True, prefetch_factor=2, **options)


def by_package(kind):
    """The `tfrecord` package: each worker reads its share of the files."""

    def build(context, workers):
        from tfrecord import tfrecord_iterator, tfrecord_loader
        from torch.utils.data import IterableDataset, get_worker_info

        description = {name: "float" for name in FLOATS} | {name: "int" for name in [*INTS, "label"]}

        class Samples(IterableDataset):
            def __iter__(self):
                worker = get_worker_info()
                while True:
                    for file in context.files[worker.id :: worker.num_workers]:
                        if kind == "features":
                            yield from tfrecord_loader(file, None, description)
                        else:
                            # The iterator reads into the same memory again, so each record is copied.
                            yield from (np.frombuffer(bytes(record), np.uint8) for record in tfrecord_iterator(file))
                    if not context.endless:
                        return

        return loaded(Samples(), workers, batch_size=context.batch)

    return build


def columns(records):
    """Parses tf.Examples by protobuf's C parser into an array a column."""
    from tfrecord.example_pb2 import Example

    floats = {name: np.empty(len(records), np.float32) for name in FLOATS}
    ints = {name: np.empty(len(records), np.int64) for name in [*INTS, "label"]}
    for row, record in enumerate(records):
        feature = Example.FromString(record).features.feature
        for name, column in floats.items():
            column[row] = feature[name].float_list.value[0]
        for name, column in ints.items():
            column[row] = feature[name].int64_list.value[0]
    return floats | ints


def by_hand(context, workers):
    import torch
    from torch.utils.data import Dataset

    records = Records(context.files)

    class Batches(Dataset):
        def __getitem__(self, rows):
            return {name: torch.from_numpy(column) for name, column in columns([records[row] for row in rows]).items()}

    return loaded(Batches(), workers, batch_size=None, sampler=Rows(len(records), context))


def stacked(is_checked):
    def build(context, workers):
        import torch
        from torch.utils.data import Dataset

        records = Records(context.files)

        class Batches(Dataset):
            def __getitem__(self, rows):
                # Memory that goes to the loop's process without another copy, as `default_collate` takes it.
                storage = torch.UntypedStorage._new_shared(len(rows) * RAW)
                batch = torch.empty(0, dtype=torch.uint8).set_(storage).view(len(rows), RAW)
                into = batch.numpy()
                for at, row in enumerate(rows):
                    file, start, length = map(int, records.places[row])
                    frame = memoryview(records.span(file, start, length + 4))
                    if is_checked:
                        check(frame[:length], int.from_bytes(frame[length:], "little"))
                    into[at] = np.frombuffer(frame[:length], np.uint8)
                return batch

        return loaded(Batches(), workers, batch_size=None, sampler=Rows(len(records), context))

    return build


class Rows:
    """A sampler of whole batches."""

    def __init__(self, count, context):
        self.count, self.batch, self.endless = count, context.batch, context.endless

    def __len__(self):
        return -(-self.count // self.batch)

    def __iter__(self):
        return spans(self.count, self.batch, self.endless)


# Grain


def in_processes(data, context, workers, batch_fn=None):
    import grain

    if context.endless:
        data = data.repeat()
    # Batched before the iterator, which looks through what it has prefetched for each element that it gives: small ones are best few.
    data = data.batch(context.batch, batch_fn=batch_fn)
    data = data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    return data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))


def grain_features(context, workers):
    import grain

    return in_processes(grain.MapDataset.source(Records(context.files)), context, workers, columns)


def as_bytes(record):
    return np.frombuffer(record, np.uint8)


def grain_raw(context, workers):
    import grain

    return in_processes(grain.MapDataset.source(Records(context.files, is_checked=True)).map(as_bytes), context, workers)


def grain_array_record(context, workers):
    import grain

    return in_processes(grain.MapDataset.source(grain.sources.ArrayRecordDataSource(array_records(context.files))).map(as_bytes), context, workers)


def array_records(files):
    return [str(Path(file).with_suffix(".array_record")) for file in files]


# DALI


def dali(context, threads, dynamic):
    import nvidia.dali.tfrecord as tfrec
    from nvidia.dali import fn, pipeline_def

    names = [*FLOATS, *INTS, "label"]
    features = {name: tfrec.FixedLenFeature([1], tfrec.float32, 0.0) for name in FLOATS}
    features |= {name: tfrec.FixedLenFeature([1], tfrec.int64, 0) for name in [*INTS, "label"]}

    @pipeline_def(batch_size=context.batch, num_threads=threads, device_id=None, prefetch_queue_depth=2, exec_dynamic=dynamic)
    def pipeline():
        read = fn.readers.tfrecord(path=context.files, index_path=[contest.index_of(file) for file in context.files], features=features, prefetch_queue_depth=2, name="reader")
        return tuple(read[name] for name in names)

    pipe = pipeline()
    pipe.build()
    left = pipe.epoch_size("reader")
    while True:
        batch = dict(zip(names, pipe.run()))
        if context.endless:
            yield batch
            continue
        # The last batch of an epoch goes on with the next.
        yield {name: column.as_array()[:left] for name, column in batch.items()}
        left -= context.batch
        if left <= 0:
            return


# What they deliver


def array(values):
    return np.asarray(values.as_array() if hasattr(values, "as_array") else values)


def digest_features(batches):
    known = {"samples": 0, "labels": 0, "i00": 0, "f00": 0.0}
    kinds = set()
    for batch in batches:
        known["samples"] += len(batch["label"])
        known["labels"] += int(array(batch["label"]).sum())
        known["i00"] += int(array(batch["i00"]).sum())
        known["f00"] += float(array(batch["f00"]).sum(dtype=np.float64))
        kinds.add(f"{len(batch)} columns, f00 {array(batch['f00']).dtype}, i00 {array(batch['i00']).dtype}")
    return {**known, "f00": round(known["f00"], 3), "kinds": sorted(kinds)}


def digest_raw(batches):
    samples, total, shapes = 0, 0, set()
    for batch in batches:
        batch = array(batch)
        samples += len(batch)
        if batch.dtype == object:  # strings
            batch = np.stack([np.frombuffer(record, np.uint8) for record in batch])
        shapes.add(f"{list(batch.shape[1:])} {batch.dtype}")
        total += int(batch.sum(dtype=np.uint64))
    return {"samples": samples, "bytes": total, "shape": sorted(shapes)}


def judge(digests, samples):
    """All must hold the same, whatever of it they tell; the first that tells is the measure, but for forebay's."""
    wrong = {}
    measure = {}
    for one in [digests["forebay"], *digests.values()]:
        measure = {**one, **measure}
    measure["samples"] = samples
    for name, one in digests.items():
        for what, value in one.items():
            expected = measure[what]
            # PyTorch's collation keeps the dimension of length one that `tfrecord` and DALI give.
            if what not in ("shape", "kinds") and abs(value - expected) > 1e-6 * abs(expected):
                wrong[name] = f"{what} is {value}, not {expected}"
            elif what in ("shape", "kinds") and value != expected:
                wrong[name] = f"{value}, not {expected}"
    return wrong


def prepare(kind):
    """Where records begin, for DALI, and ArrayRecord files of the same records for Grain."""

    def write(options, folder, files):
        for file, twin in zip(files, array_records(files)):
            if kind == "features":
                contest.write_index(file)
            if kind == "raw" and not contest.is_fresh(twin, file) and not without_array_record(options):
                from array_record.python.array_record_module import ArrayRecordWriter

                writer = ArrayRecordWriter(f"{twin}.part", "group_size:1,uncompressed")
                for record in Records([file]):
                    writer.write(record)
                writer.close()
                Path(f"{twin}.part").rename(twin)

    return write


def without_array_record(_):
    import importlib.util

    return None if importlib.util.find_spec("array_record") else "there is no module array_record"


def main():
    parser = contest.arguments(__doc__)
    parser.add_argument("kind", choices=["features", "raw"])
    options = parser.parse_args()
    readings = [{"reading": reading, "private": private} for reading in ["parallel", "interleaved"] for private in [False, True]]
    dalis = [{"threads": threads, "dynamic": dynamic} for threads in [1, CORES] for dynamic in [False, True]]
    tf, torch = (["tensorflow"], ["tensorflow-cpu"]), ["torch", "numpy"]
    unchecked = "no checksums"
    if options.kind == "features":
        by = ["torch", "tfrecord", "protobuf"]
        contenders = [
            Contender("tf.data", *tf, tf_data(parsed), readings),
            Contender("PyTorch, tfrecord", ["torch", "tfrecord"], by, by_package("features"), WORKERS, f"{unchecked}; [4096, 1] each"),
            Contender("PyTorch, protobuf", ["torch", "tfrecord"], by, by_hand, WORKERS, unchecked),
            Contender("Grain", ["grain", "tfrecord"], ["grain", "tfrecord", "protobuf"], grain_features, WORKERS, unchecked),
            Contender("DALI", ["nvidia.dali"], ["nvidia-dali-cuda130"], dali, dalis, f"{unchecked}; a tensor a number; memory is reused"),
        ]
        size, digest = (lambda batch: len(batch["label"])), digest_features
        title = "tf.Examples of 40 numbers to columns"
    else:
        contenders = [
            Contender("tf.data, equal", *tf, tf_data(dense), readings),
            Contender("tf.data, strings", *tf, tf_data(strings), readings, "strings, not a tensor"),
            Contender("PyTorch, crc32c", ["torch", "crc32c"], [*torch, "crc32c"], stacked(True), WORKERS, "checks payloads, not lengths"),
            Contender("PyTorch, unchecked", ["torch"], torch, stacked(False), WORKERS, unchecked),
            Contender("PyTorch, tfrecord", ["torch", "tfrecord"], ["torch", "tfrecord"], by_package("raw"), WORKERS, unchecked),
            Contender("Grain, crc32c", ["grain", "crc32c"], ["grain", "crc32c"], grain_raw, WORKERS, "checks payloads, not lengths"),
            Contender(
                "Grain, ArrayRecord", ["grain", "array_record"], ["grain", "array-record"], grain_array_record, WORKERS,
                "another format, its own hashes",
            ),
        ]
        size, digest, title = len, digest_raw, "records of 114,660 bytes"
    contest.main(
        contest.Contest(
            command=[__file__, options.kind], title=title, contenders=contenders, forebay=[options.kind], samples=SAMPLES[options.kind],
            batch=BATCHES[options.kind], folder=f"{options.kind}-{SAMPLES[options.kind]}", size=size, digest=digest, judge=judge,
            prepare=prepare(options.kind), sum="labels" if options.kind == "features" else "xxh3",
        ),
        options,
    )


if __name__ == "__main__":
    main()
