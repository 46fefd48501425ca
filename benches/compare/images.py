"""JPEG photographs to normalised f32 [256, 3, 224, 224] (`--u8`: to u8): forebay beside what people come from.

    pip install tensorflow-cpu torch torchvision webdataset grain spdl-core nvidia-dali-cuda130 numpy pillow
    CC="cc -mavx2" pip install --no-deps --target /tmp/pillow-simd pillow-simd      # compiled here: needs libjpeg's headers
    python benches/compare/images.py --pillow-simd /tmp/pillow-simd

Whatever of these is missing is left out, and said to be. `contest.py` tells how it is measured. The pictures are those of `forebay bench image --samples 4096`:
500 x 375, in 8 TFRecord shards, in the page cache (their mean size is printed). Each contender draws random resized crops (8 to 100 % of the area, shape 3:4 to 4:3),
flips half of them, normalises, shuffles, and gives labels beside the pixels.

Checked of each: the number of samples, the sum of their labels, shape and dtype of batches, and the mean of all numbers in an epoch, which must be that of the others. Printed beside it: `grain`, by
how much neighbours in a row differ on average, which tells who antialiases: these pictures have noise that a filter averages away when it widens. `forebay bench`
compares samples and labels by itself; its pixels are held against Pillow's in the project's tests.

What is the same: JPEG by libjpeg-turbo, the accurate inverse transform, chroma upsampled smoothly, unless a line says otherwise; bilinear resize with
antialiasing (forebay's, Pillow's and torchvision's default; asked for in TensorFlow and DALI); f32, channels first, on the host.

What each is, and why so:

- forebay: `forebay bench image`, a shuffle buffer of 1,000, checksums on, two batches ahead, a worker for each core; only the window of a JPEG is decoded. Its rate is
  that of whole epochs, so it alone pays for where one ends and the next begins.
- tf.data, equal: shards interleaved, `parse_single_example`, windows drawn as all others draw them, `decode_and_crop_jpeg` (which decodes the window alone), `resize` with `antialias`, everything
  in one parallel `map` with AUTOTUNE, one operator thread (the pipeline has its parallelism from its samples; Google's ResNet does so), order left free, prefetch. Batched in parallel. Checksums are on, as always.
- tf.data, as recommended: the same with `sample_distorted_bounding_box`, TensorFlow's default transform (the fast one), no antialiasing and channels last: less work, and what TensorFlow's tutorials and models do.
- PyTorch: `DataLoader` over an index of the same TFRecord files (which knows where each JPEG lies: nothing is parsed or checked, in its favour), `torchvision.transforms.v2` as
  torchvision's own training reference has them: on PIL images, or on tensors from `torchvision.io.decode_jpeg`. All of the JPEG is decoded: neither can do less. Workers stay for all epochs, one intra-op thread in each.
- PyTorch, pillow-simd: the first, with that in Pillow's place.
- WebDataset: the same pictures in 8 tar files by `forebay convert`, `shuffle(1000)`, the same transforms (on PIL images or tensors: the faster), batched in the worker as its documentation says, by PyTorch's `default_collate`, which spares a copy.
- DALI: its CPU pipeline, by `fn.readers.tfrecord`, `fn.decoders.image_random_crop` (decodes the window alone), `fn.resize` with antialiasing, `fn.crop_mirror_normalize`. Batches are taken with `run()`, which hands over memory
  that the next but one batch will overwrite: less work than a batch that can be kept. Nothing checks its records.
- Grain: `MapDataset` over the index that PyTorch has, Pillow (`resize` with `box` crops and resizes at once) and NumPy; threads and processes are tried.
- SPDL: its pipeline, torchvision's `decode_jpeg` and transforms in threads, or Pillow, the faster; normalised by the batch. (Its own decoders are FFmpeg's: they need its shared libraries, and resample differently.)

Left out: FFCV (its source package does not build where OpenCV's headers are missing, and it needs the data in a format of its own); Hugging Face `datasets` (gives PIL images to the transforms measured here).
"""

import io
import math
import random
import shutil
import subprocess
from pathlib import Path

import contest
import numpy as np
from contest import CORES, Contender

SIZE, BATCH, SHUFFLE, SAMPLES = 224, 256, 1000, 4096
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORKERS = [{"workers": workers} for workers in range(1, CORES + 2)]


def window(height, width, rng=random):
    """Inception's random window, as torchvision draws it: top, left, height, width."""
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    ratio = min(max(width / height, 3 / 4), 4 / 3)
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


class Pictures(contest.Reads):
    """The encoded pictures and their labels, by number."""

    def __init__(self, files):
        super().__init__(files)
        self.places = []
        for number, file in enumerate(files):
            for start, length in contest.offsets(file):
                found = contest.features(self.span(number, start, length))
                begin, end = found["image/encoded"]
                self.places.append((number, start + begin, end - begin, found["image/class/label"]))

    def __len__(self):
        return len(self.places)

    def __getitem__(self, at):
        file, start, length, label = self.places[at]
        return self.span(file, start, length), label


# TensorFlow


def drawn_window(shape):
    """The same window in TensorFlow's operations: ten draws at once, of which the first that fits is taken."""
    import tensorflow as tf

    height, width = tf.cast(shape[0], tf.float32), tf.cast(shape[1], tf.float32)
    area = height * width * tf.random.uniform([10], 0.08, 1.0)
    ratio = tf.exp(tf.random.uniform([10], math.log(3 / 4), math.log(4 / 3)))
    w, h = tf.round(tf.sqrt(area * ratio)), tf.round(tf.sqrt(area / ratio))
    fits = (w <= width) & (h <= height)
    first = tf.argmax(fits)
    # None of ten fits once in tens of thousands of such pictures: then the whole picture will do.
    h = tf.cast(tf.where(tf.reduce_any(fits), h[first], height), tf.int32)
    w = tf.cast(tf.where(tf.reduce_any(fits), w[first], width), tf.int32)
    top = tf.random.uniform([], 0, shape[0] - h + 1, tf.int32)
    left = tf.random.uniform([], 0, shape[1] - w + 1, tf.int32)
    return tf.stack([top, left, h, w])


def tf_data(is_equal):
    def build(context, private):
        import tensorflow as tf

        is_u8 = context.options.u8
        spec = {"image/encoded": tf.io.FixedLenFeature([], tf.string), "image/class/label": tf.io.FixedLenFeature([], tf.int64)}
        scale = tf.constant([1 / (255 * std) for std in STD])
        shift = tf.constant([-mean / std for mean, std in zip(MEAN, STD)])

        def sample(record):
            parsed = tf.io.parse_single_example(record, spec)
            encoded = parsed["image/encoded"]
            shape = tf.io.extract_jpeg_shape(encoded)
            if is_equal:
                box = drawn_window(shape)
            else:
                begin, size, _ = tf.image.sample_distorted_bounding_box(
                    shape, tf.zeros([1, 0, 4]), min_object_covered=0.1, aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0),
                    max_attempts=10, use_image_if_no_bounding_boxes=True,
                )
                box = tf.stack([begin[0], begin[1], size[0], size[1]])
            method = "INTEGER_ACCURATE" if is_equal else ""
            image = tf.io.decode_and_crop_jpeg(encoded, box, channels=3, dct_method=method)
            image = tf.image.random_flip_left_right(image) if not is_equal else image
            image = tf.image.resize(image, [SIZE, SIZE], antialias=is_equal)
            image = tf.image.random_flip_left_right(image) if is_equal else image
            if is_u8:
                image = tf.cast(tf.round(image), tf.uint8)
            else:
                image = image * scale + shift
            if is_equal:
                image = tf.transpose(image, [2, 0, 1])
            return image, parsed["image/class/label"]

        options = tf.data.Options()
        options.deterministic = False
        options.threading.max_intra_op_parallelism = 1
        if private:
            options.threading.private_threadpool_size = CORES
        data = tf.data.Dataset.from_tensor_slices(context.files).shuffle(len(context.files))
        data = data.interleave(tf.data.TFRecordDataset, cycle_length=len(context.files), num_parallel_calls=tf.data.AUTOTUNE)
        data = data.shuffle(SHUFFLE)
        if context.endless:
            data = data.repeat()
        data = data.map(sample, num_parallel_calls=tf.data.AUTOTUNE)
        data = data.batch(BATCH, num_parallel_calls=tf.data.AUTOTUNE)
        return data.prefetch(tf.data.AUTOTUNE).with_options(options)

    return build


# PyTorch, and what stands on its transforms


def transforms(backend, is_u8):
    """torchvision's training reference (references/classification/presets.py), from bytes to a tensor."""
    import torch
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
    if backend == "pil":
        steps.append(v2.PILToTensor())
    if not is_u8:
        steps += [v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD)]
    steps = v2.Compose(steps)
    if backend == "pil":
        return lambda encoded: steps(Image.open(io.BytesIO(encoded)).convert("RGB"))
    return lambda encoded: steps(decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode=ImageReadMode.RGB))


def pytorch(backend):
    def build(context, workers):
        from torch.utils.data import DataLoader, Dataset, Sampler

        pictures = Pictures(context.files)
        transform = transforms(backend, context.options.u8)

        class Samples(Dataset):
            def __len__(self):
                return len(pictures)

            def __getitem__(self, at):
                encoded, label = pictures[at]
                return transform(encoded), label

        class Shuffled(Sampler):
            def __iter__(self):
                while True:
                    yield from random.sample(range(len(pictures)), len(pictures))
                    if not context.endless:
                        return

        return DataLoader(Samples(), BATCH, sampler=Shuffled(), num_workers=workers, persistent_workers=True, prefetch_factor=2)

    return build


def tars(folder):
    return sorted(map(str, Path(f"{folder}-tar").glob("*.tar")))


def webdataset(context, workers, backend):
    import webdataset as wds
    from torch.utils.data import default_collate

    transform = transforms(backend, context.options.u8)
    data = wds.WebDataset(tars(context.folder), shardshuffle=100, empty_check=False)
    if context.endless:
        data = data.repeat()
    data = data.shuffle(SHUFFLE).to_tuple("jpg", "cls").map_tuple(transform, int).batched(BATCH, collation_fn=default_collate)
    return wds.WebLoader(data, batch_size=None, num_workers=workers, prefetch_factor=2)


def spdl(context, threads, backend):
    import torch
    from spdl.pipeline import PipelineBuilder

    torch.set_num_threads(1)
    pictures = Pictures(context.files)
    transform = transforms(backend, is_u8=True)
    scale = torch.tensor([1 / (255 * std) for std in STD]).view(3, 1, 1)
    shift = torch.tensor([-mean / std for mean, std in zip(MEAN, STD)]).view(3, 1, 1)

    def numbers():
        while True:
            yield from random.sample(range(len(pictures)), len(pictures))
            if not context.endless:
                return

    def sample(at):
        encoded, label = pictures[at]
        return transform(encoded), label

    def batch(samples):
        pixels = torch.stack([pixels for pixels, _ in samples])
        if not context.options.u8:
            pixels = torch.addcmul(shift, pixels, scale)
        return pixels, torch.tensor([label for _, label in samples])

    builder = PipelineBuilder().add_source(numbers()).pipe(sample, concurrency=threads)
    pipeline = builder.aggregate(BATCH).pipe(batch).add_sink(2).build(num_threads=threads)
    with pipeline.auto_stop():
        yield from pipeline


# Grain


def picture(encoded, rng, is_u8):
    from PIL import Image

    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    top, left, height, width = window(image.height, image.width, rng)
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    pixels = np.asarray(image)
    pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    pixels = pixels.transpose(2, 0, 1)
    if is_u8:
        return np.ascontiguousarray(pixels)
    pixels = np.multiply(pixels, np.array([1 / (255 * std) for std in STD], np.float32)[:, None, None], dtype=np.float32, order="C")
    pixels -= np.array([mean / std for mean, std in zip(MEAN, STD)], np.float32)[:, None, None]
    return pixels


class Decode:
    def __init__(self, is_u8):
        self.is_u8 = is_u8

    def __call__(self, sample, generator):
        encoded, label = sample
        return picture(encoded, random.Random(int(generator.integers(1 << 62))), self.is_u8), np.int64(label)


def with_grain(context, workers, threads):
    import grain

    data = grain.MapDataset.source(Pictures(context.files)).seed(0).shuffle()
    if context.endless:
        data = data.repeat()
    data = data.random_map(Decode(context.options.u8))
    data = data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=64)).batch(BATCH)
    return data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)) if workers else data


# DALI


def dali(context, threads, dynamic):
    import nvidia.dali.tfrecord as tfrec
    from nvidia.dali import fn, pipeline_def, types

    is_u8 = context.options.u8

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None, seed=1, prefetch_queue_depth=2, exec_dynamic=dynamic)
    def pipeline():
        read = fn.readers.tfrecord(
            path=context.files, index_path=[contest.index_of(file) for file in context.files], random_shuffle=True, initial_fill=SHUFFLE,
            prefetch_queue_depth=2,
            features={
                "image/encoded": tfrec.FixedLenFeature((), tfrec.string, ""),
                "image/class/label": tfrec.FixedLenFeature([1], tfrec.int64, -1),
            },
        )
        images = fn.decoders.image_random_crop(
            read["image/encoded"], device="cpu", output_type=types.RGB, random_area=(0.08, 1.0), random_aspect_ratio=(3 / 4, 4 / 3),
            num_attempts=10, jpeg_fancy_upsampling=True,
        )
        images = fn.resize(images, resize_x=SIZE, resize_y=SIZE, interp_type=types.INTERP_LINEAR, antialias=True)
        flips = fn.random.coin_flip(probability=0.5)
        numbers = {} if is_u8 else {"mean": [255 * mean for mean in MEAN], "std": [255 * std for std in STD]}
        dtype = types.UINT8 if is_u8 else types.FLOAT
        images = fn.crop_mirror_normalize(images, dtype=dtype, output_layout="CHW", mirror=flips, **numbers)
        return images, read["image/class/label"]

    pipe = pipeline()
    pipe.build()
    while True:
        for _ in range(SAMPLES // BATCH):
            yield pipe.run()
        if not context.endless:
            return


# What they deliver


def array(values):
    return values.as_array() if hasattr(values, "as_array") else np.asarray(values)


def digest(batches):
    samples = labels = 0
    shapes, dtypes, sums, differences, numbers = set(), set(), 0.0, 0.0, 0
    for pixels, classes in batches:
        pixels, classes = array(pixels), array(classes)
        samples += len(classes)
        labels += int(classes.sum())
        shapes.add(str(list(pixels.shape[1:])))
        dtypes.add(str(pixels.dtype))
        sums += float(pixels.sum(dtype=np.float64))
        row = pixels.shape.index(SIZE) + 1  # the axis along a row of pixels
        differences += float(np.abs(np.diff(pixels.astype(np.float32), axis=row)).sum(dtype=np.float64))
        numbers += pixels.size
    known = {"samples": samples, "labels": labels, "shape": sorted(shapes), "dtype": sorted(dtypes)}
    return {**known, "mean": round(sums / numbers, 4), "grain": round(differences / (numbers / SIZE * (SIZE - 1)), 4)}


def judge_as(is_u8):
    # Windows are drawn anew each time, TensorFlow's of another distribution: means of an epoch differ by a hundredth of a deviation or two.
    tolerance = 1.8 if is_u8 else 0.03
    dtype = "uint8" if is_u8 else "float32"

    def judge(digests, samples):
        wrong = {}
        middle = float(np.median([one["mean"] for one in digests.values() if "mean" in one] or [0.0]))
        for name, one in digests.items():
            shape = [f"[{SIZE}, {SIZE}, 3]"] if name == "tf.data, as recommended" else [f"[3, {SIZE}, {SIZE}]"]
            if one["samples"] != samples:
                wrong[name] = f"{one['samples']} samples of {samples}"
            elif one["labels"] != digests["forebay"]["labels"]:
                wrong[name] = f"labels add up to {one['labels']}, not {digests['forebay']['labels']}"
            elif (one.get("shape", shape), one.get("dtype", [dtype])) != (shape, [dtype]):
                wrong[name] = f"{one['shape']} of {one['dtype']}"
            elif abs(one.get("mean", middle) - middle) > tolerance:
                wrong[name] = f"the mean is {one['mean']:.4f}, that of the others {middle:.4f}"
        return wrong

    return judge


def prepare(options, folder, files):
    """What WebDataset and DALI read: archives of the same pictures, and where records begin."""
    if not contest.is_fresh(Path(f"{folder}-tar/_manifest.json"), folder / "_bench.json"):
        shutil.rmtree(f"{folder}-tar", ignore_errors=True)
        command = [options.forebay, "convert", *files, f"{folder}-tar", "--to", "tar", "--shard-records", str(SAMPLES // 8), "--quiet"]
        subprocess.run([*command, "--rename", "image/encoded=jpg,image/class/label=cls"], check=True)
    for file in files:
        contest.write_index(file)


def main():
    parser = contest.arguments(__doc__)
    parser.add_argument("--u8", action="store_true", help="pixels as u8, not normalised")
    parser.add_argument("--pillow-simd", type=Path, help="the folder that pip installed pillow-simd to")
    options = parser.parse_args()
    torch = ["torch", "torchvision", "pillow"]
    simd = lambda options: options.pillow_simd  # noqa: E731
    no_simd = lambda options: None if options.pillow_simd else "it needs --pillow-simd"  # noqa: E731
    backends = [{**workers, "backend": backend} for backend in ["pil", "tensor"] for workers in WORKERS]
    dalis = [{"threads": threads, "dynamic": dynamic} for threads in range(CORES, CORES + 2) for dynamic in [False, True]]
    threads = [{"threads": threads} for threads in range(CORES, CORES + 2)]
    spdl_threads = [{**one, "backend": backend} for backend in ["pil", "tensor"] for one in threads]
    with_threads = [{"workers": 0, "threads": CORES}, {"workers": 0, "threads": CORES + 1}]
    grains = with_threads + [{"workers": workers, "threads": 1} for workers in range(1, CORES + 2)]
    private = [{"private": False}, {"private": True}]
    unchecked, whole = "no checksums", "no checksums; decodes whole pictures"
    last = "fast transform, no antialiasing, channels last, other windows"
    contenders = [
        Contender("tf.data, equal", ["tensorflow"], ["tensorflow-cpu"], tf_data(True), private),
        Contender("tf.data, as recommended", ["tensorflow"], ["tensorflow-cpu"], tf_data(False), private, last),
        Contender("PyTorch, PIL", ["torch", "torchvision", "PIL"], torch, pytorch("pil"), WORKERS, whole),
        Contender("PyTorch, pillow-simd", ["torch", "torchvision"], torch, pytorch("pil"), WORKERS, whole, no_simd, simd),
        Contender("PyTorch, decode_jpeg", ["torch", "torchvision"], torch, pytorch("tensor"), WORKERS, whole),
        Contender("WebDataset", ["webdataset", "torchvision"], ["webdataset", *torch], webdataset, backends, f"{whole}; tar files"),
        Contender("SPDL", ["spdl.pipeline", "torchvision"], ["spdl-core", *torch], spdl, spdl_threads, whole),
        Contender("Grain", ["grain", "PIL"], ["grain", "pillow", "numpy"], with_grain, grains, whole),
        Contender("DALI", ["nvidia.dali"], ["nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13"], dali, dalis, f"{unchecked}; memory is reused"),
    ]
    title = "JPEG 500x375, random resized crop, flip, " + ("u8" if options.u8 else "normalised f32")
    work = ["image", "--samples", str(SAMPLES), *(["--u8"] if options.u8 else [])]
    contest.main(
        contest.Contest(
            command=[__file__], title=title, contenders=contenders, forebay=work, samples=SAMPLES, batch=BATCH,
            folder=f"image-{SAMPLES}", size=lambda batch: len(batch[1]), digest=digest, judge=judge_as(options.u8), prepare=prepare,
        ),
        options,
    )


if __name__ == "__main__":
    main()
