#!/usr/bin/env python3
"""Makes the TFRecord shards beside this file. README.md there says where the images come from.

    pip download --no-deps scikit-learn scikit-image
    python3 make.py scikit_learn-*.whl scikit_image-*.whl

Needs Pillow. The framing, the checksum and the messages are written out here, so that the shards are made by other
code than that which reads them.
"""

import csv
import gzip
import io
import pathlib
import struct
import sys
import zipfile

from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent

# In the order of their labels. What the wheel says of each image's origin and licence is in README.md.
PHOTOS = [
    ("astronaut", "astronaut.png"),
    ("brick", "brick.png"),
    ("camera", "camera.png"),
    ("cat", "chelsea.png"),
    ("cell", "cell.png"),
    ("clock", "clock_motion.png"),
    ("coffee", "coffee.png"),
    ("grass", "grass.png"),
    ("gravel", "gravel.png"),
    ("hubble", "hubble_deep_field.jpg"),
    ("retina", "retina.jpg"),
    ("rocket", "rocket.jpg"),
]
LONGEST_SIDE = 512
JPEG_QUALITY = 80

# The customary split of this file: the first 80 % in its order to train with, the rest held out.
NUM_TRAIN = 1437


def crc_table():
    """CRC-32C, reflected, polynomial 0x1EDC6F41."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = crc_table()


def masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(payload):
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc(length)) + payload + struct.pack("<I", masked_crc(payload))


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, content):
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features):
    """tf.Example: features { feature { key, value { bytes_list | int64_list } } }."""
    entries = b""
    for key, value in sorted(features.items()):
        if isinstance(value, int):
            kind = field(3, field(1, varint(value)))
        else:
            kind = field(1, field(1, value))
        entries += field(1, field(1, key.encode()) + field(2, kind))
    return field(1, entries)


def write_shards(folder, split, examples, num_shards):
    (HERE / folder).mkdir(exist_ok=True)
    for shard in range(num_shards):
        first, last = (len(examples) * n // num_shards for n in (shard, shard + 1))
        path = HERE / folder / ("%s-%05d-of-%05d.tfrecord" % (split, shard, num_shards))
        path.write_bytes(b"".join(record(example(features)) for features in examples[first:last]))
        print("%s: %d records, %d bytes" % (path.relative_to(HERE), last - first, path.stat().st_size))


def encoded(image, **options):
    out = io.BytesIO()
    image.save(out, **options)
    return out.getvalue()


def digits(wheel):
    """One row an image: 64 pixels from 0 to 16, then the digit."""
    text = gzip.decompress(wheel.read("sklearn/datasets/data/digits.csv.gz")).decode()
    for row in csv.reader(io.StringIO(text)):
        *pixels, digit = (int(float(number)) for number in row)
        image = Image.frombytes("L", (8, 8), bytes((pixel * 255 + 8) // 16 for pixel in pixels))
        png = encoded(image, format="PNG", optimize=True)
        yield {"image/encoded": png, "image/class/label": digit}


def photos(wheel):
    for label, (name, file) in enumerate(PHOTOS):
        image = Image.open(io.BytesIO(wheel.read("skimage/data/" + file)))
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        jpeg = encoded(image, format="JPEG", quality=JPEG_QUALITY, optimize=True)
        yield {"image/encoded": jpeg, "image/class/label": label, "image/class/text": name.encode()}


def main(scikit_learn, scikit_image):
    with zipfile.ZipFile(scikit_learn) as wheel:
        rows = list(digits(wheel))
    assert len(rows) == 1797
    write_shards("digits", "train", rows[:NUM_TRAIN], 4)
    write_shards("digits", "test", rows[NUM_TRAIN:], 1)
    with zipfile.ZipFile(scikit_image) as wheel:
        write_shards("photos", "train", list(photos(wheel)), 3)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
