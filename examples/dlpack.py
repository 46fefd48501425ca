"""Batches of examples/dlpack.rs in Python: python3 dlpack.py LIBRARY

Loads the library with ctypes, and takes columns as NumPy arrays, and as PyTorch tensors where torch can be imported. Nothing is copied. Loader, Batch and
Column are what one would take into a program; the rest checks values, that memory is shared, and that it is freed, once.
"""

import ctypes
import gc
import os
import sys

import numpy

# --- DLPack's structs -------------------------------------------------------------------------------------------------

DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    ]


class Unversioned(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", DELETER)]


# --- Capsules ---------------------------------------------------------------------------------------------------------

# Capsules keep the pointers of their names, so these must live as long as any capsule. Who takes a tensor renames its capsule.
KINDS = {b"dltensor_versioned": Versioned, b"dltensor": Unversioned}

DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, DESTRUCTOR]
# In its destructor a capsule has no reference any more, so it is a bare address there.
is_valid = ctypes.pythonapi.PyCapsule_IsValid
is_valid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype = ctypes.c_void_p
pointer_of.argtypes = [ctypes.c_void_p, ctypes.c_char_p]


@DESTRUCTOR
def free_untaken(capsule):
    for name, kind in KINDS.items():
        if is_valid(capsule, name):
            pointer = pointer_of(capsule, name)
            kind.from_address(pointer).deleter(pointer)


# --- The loader -------------------------------------------------------------------------------------------------------


class Library:
    def __init__(self, path):
        self.c = ctypes.CDLL(path)
        self.c.forebay_error.restype = ctypes.c_char_p
        self.c.forebay_open.restype = ctypes.c_void_p
        self.c.forebay_open.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
        self.c.forebay_next.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)]
        for column in [self.c.forebay_column, self.c.forebay_column_unversioned]:
            column.restype = ctypes.c_void_p
            column.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self.c.forebay_free.argtypes = [ctypes.c_void_p]
        self.c.forebay_close.argtypes = [ctypes.c_void_p]

    def error(self):
        return RuntimeError(self.c.forebay_error().decode())


class Loader:
    """Iterates over one epoch after another: each `for` takes the next one."""

    def __init__(self, library, seed, batch):
        self.library = library
        self.pointer = library.c.forebay_open(seed, batch)
        if not self.pointer:
            raise library.error()

    def __iter__(self):
        while True:
            batch = ctypes.c_void_p()
            found = self.library.c.forebay_next(self.pointer, ctypes.byref(batch))
            if found < 0:
                raise self.library.error()
            if found == 0:
                return
            yield Batch(self.library, batch.value)

    def __del__(self):
        if self.pointer:
            self.library.c.forebay_close(self.pointer)


class Batch:
    def __init__(self, library, pointer):
        self.library, self.pointer = library, pointer

    def __getitem__(self, name):
        return Column(self, name)

    def __del__(self):
        self.library.c.forebay_free(self.pointer)


class Column:
    """What numpy.from_dlpack and torch.from_dlpack take. Arrays made of it outlive the batch and the loader."""

    def __init__(self, batch, name):
        self.batch, self.name = batch, name
        pointer = self.export(Versioned)
        tensor = Versioned.from_address(pointer).tensor
        self.device = (tensor.device_type, tensor.device_id)
        Versioned.from_address(pointer).deleter(pointer)

    def export(self, kind):
        c = self.batch.library.c
        export = c.forebay_column if kind is Versioned else c.forebay_column_unversioned
        pointer = export(self.batch.pointer, self.name.encode())
        if not pointer:
            raise self.batch.library.error()
        return pointer

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if dl_device not in (None, self.device) or copy:
            raise BufferError("no copies are made, and none to other devices")
        # Of a CUDA device: `stream` would have to wait for the default stream here, unless it is that one (1, or None).
        name = b"dltensor_versioned" if max_version and max_version[0] >= 1 else b"dltensor"
        pointer = self.export(KINDS[name])
        watch(KINDS[name].from_address(pointer))
        return new_capsule(pointer, next(key for key in KINDS if key == name), free_untaken)


# --- Checks -----------------------------------------------------------------------------------------------------------

exported = freed = 0
watching = []


def watch(managed):
    """Counts what is exported, and calls of its deleter."""
    global exported
    exported += 1
    # By address: a function object of ctypes would follow the field that is overwritten below.
    original = DELETER(ctypes.cast(managed.deleter, ctypes.c_void_p).value)

    @DELETER
    def counted(pointer):
        global freed
        freed += 1
        original(pointer)

    watching.append(counted)
    managed.deleter = counted


class OldConsumer:
    """A column as consumers see it that do not know DLPack 1.x: they pass no version."""

    def __init__(self, column):
        self.column = column

    def __dlpack_device__(self):
        return self.column.__dlpack_device__()

    def __dlpack__(self, stream=None):
        return self.column.__dlpack__(stream=stream)


def expected(ids):
    steps = numpy.arange(32 * 32 * 3).reshape(32, 32, 3)
    return {
        "pixels": (ids[:, None, None, None] + steps).astype(numpy.uint8),
        "pair": numpy.stack([ids, ids / 4], axis=1).astype(numpy.float32),
        "half": (ids / 8).astype(numpy.float16),
        "odd": ids % 2 == 1,
    }


def check_values(library, take, to_numpy):
    """One epoch of 15 batches of 64 and one of 40; every array is compared after its batch is gone."""
    seen = []
    for batch in Loader(library, 7, 64):
        arrays = {name: take(batch[name]) for name in ["id", "pixels", "pair", "half", "odd"]}
        del batch
        ids = to_numpy(arrays.pop("id")).copy()
        for name, values in expected(ids).items():
            got = to_numpy(arrays[name])
            assert got.dtype == values.dtype and got.shape == values.shape, (name, got.dtype, got.shape)
            assert (got == values).all(), name
        seen.extend(ids)
    assert len(seen) == 1000 and sorted(seen) == list(range(1000)), len(seen)
    assert seen != sorted(seen), "the order is shuffled"


def check_sharing(library, take, address, write):
    batch = next(iter(Loader(library, 1, 10)))
    column = batch["pixels"]
    one, other = take(column), take(column)
    assert address(one) == address(other), "two exports of a column are one memory"
    write(one, 77)
    assert (numpy.from_dlpack(column) == 77).all(), "what one consumer writes the other sees"
    del column, batch, other
    gc.collect()
    assert (numpy.asarray(one) == 77).all(), "memory lives as long as its last array"


def check_untaken(library):
    batch = next(iter(Loader(library, 1, 10)))
    column = batch["pair"]
    for version in [None, (1, 0)]:
        before = freed
        capsule = column.__dlpack__(max_version=version)
        assert freed == before
        del capsule
        assert freed == before + 1, "a capsule that nobody took frees its tensor"


def check_errors(library):
    batch = next(iter(Loader(library, 1, 10)))
    for call, words in [(lambda: batch["nothing"], 'no column "nothing"'), (lambda: Loader(library, 1, 0), ".batch(n)")]:
        try:
            call()
        except RuntimeError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_memory(library, take):
    """200 batches of 3 MB: what is not freed adds up to 600 MB. Allocators keep some of what is."""
    loader, before = Loader(library, 3, 1000), None
    for epoch in range(210):
        for batch in loader:
            array = take(batch["pixels"])
            assert array.shape == (1000, 32, 32, 3)
        if epoch == 10:
            before = resident()
    grown = (resident() - before) / 2**20
    assert grown < 300, f"{grown:.0f} MiB more after 200 batches"
    return grown


def balanced():
    gc.collect()
    assert exported == freed, f"{exported} tensors were handed over, {freed} freed"
    return exported


def check(library, framework, take, to_numpy, address, write):
    check_values(library, take, to_numpy)
    check_values(library, lambda column: take(OldConsumer(column)), to_numpy)
    check_sharing(library, take, address, write)
    tensors = balanced()
    grown = check_memory(library, take) if sys.platform == "linux" else None
    balanced()
    memory = "" if grown is None else f", {max(grown, 0):.0f} MiB more memory after 200 batches of 3 MB"
    print(f"{framework}: values, sharing and freeing of {tensors} tensors are right{memory}")


def main(path):
    library = Library(path)
    check_untaken(library)
    check_errors(library)
    check(
        library,
        f"NumPy {numpy.__version__}",
        numpy.from_dlpack,
        lambda array: array,
        lambda array: array.__array_interface__["data"][0],
        lambda array, value: array.fill(value),
    )
    try:
        import torch
    except ImportError:
        print("PyTorch: not installed in this Python, not checked")
        return
    check(
        library,
        f"PyTorch {torch.__version__}",
        torch.from_dlpack,
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.data_ptr(),
        lambda tensor, value: tensor.fill_(value),
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
