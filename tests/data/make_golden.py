"""Writes the golden files of this folder with TensorFlow: python make_golden.py [FOLDER]

All values are formulas of the record's number, which the tests repeat.
"""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import tensorflow as tf

folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
COMPRESSIONS = [("", ".tfrecord"), ("GZIP", ".gzip.tfrecord"), ("ZLIB", ".zlib.tfrecord")]


def write(name, payloads, compressions=COMPRESSIONS):
    for compression, suffix in compressions:
        path = os.path.join(folder, name + suffix)
        with tf.io.TFRecordWriter(path, tf.io.TFRecordOptions(compression_type=compression)) as writer:
            for payload in payloads:
                writer.write(payload)


def ints(*values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def floats(*values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def strings(*values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


# Record i: i * i bytes that count up.
write("records", [bytes(j % 256 for j in range(i * i)) for i in range(8)])


def example(i):
    feature = {
        "label": ints(i - 2),
        "score": floats(i * 0.5),
        "image": strings(bytes([i]) * (10 + i)),  # below and above the 12 bytes that fit into a view
        "tokens": ints(i, 300 * i, -(i << 40)),
        "boxes": floats(*[j * 0.25 for j in range(i % 4)]),
        "words": strings(*[b"word %d" % j for j in range(i % 3)]),
        "empty": tf.train.Feature(),
    }
    if i % 2 == 0:
        feature["sometimes"] = ints(7 * i)
    return tf.train.Example(features=tf.train.Features(feature=feature))


write("examples", [example(i).SerializeToString(deterministic=True) for i in range(6)])


def sequence(i):
    return tf.train.SequenceExample(
        context=tf.train.Features(feature={"id": ints(100 + i), "title": strings(b"sequence number %d" % i)}),
        feature_lists=tf.train.FeatureLists(
            feature_list={
                "frame": tf.train.FeatureList(feature=[strings(b"frame %d of sequence %d" % (t, i)) for t in range(i)]),
                "speed": tf.train.FeatureList(feature=[floats(t, -t) for t in range(i + 1)]),
                "action": tf.train.FeatureList(feature=[ints(10 * t) for t in range(i + 1)]),
            }
        ),
    )


write("sequences", [sequence(i).SerializeToString(deterministic=True) for i in range(4)], COMPRESSIONS[:1])
print("TensorFlow", tf.__version__)
