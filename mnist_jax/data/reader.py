"""Finds and reads the arrays of a dataset: IDX files, gzipped or not, and `.npz` files.

IDX is the format in which MNIST and its siblings are published.
"""

import gzip
import hashlib
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax.errors import InputError

# The files of a set: of each array an IDX file, or one `.npz` file.
Files = dict[str, Path] | Path
Arrays = dict[str, np.ndarray]

# As of MNIST (both spellings), of EMNIST and QMNIST (with a prefix, and "test").
_FILE = re.compile(
    r"(.*?)-?(train|val|t10k|test)-(images|labels)[-.]idx\d-(?:ubyte|int)(?:\.gz)?"
)
SPLITS = ("train", "val", "test")
# The arrays of an .npz, as in Keras, by their names in MedMNIST.
_NAMES = {
    f"{split}_{kind}": f"{axis}_{split}"
    for split in SPLITS
    for axis, kind in (("x", "images"), ("y", "labels"))
}
NEEDED = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte (gzipped or not, with a prefix such as emnist-letters- or "
    "without), or an .npz file with x_train, y_train, x_test and y_test"
)
# The type of the items, by the third byte of an IDX file.
_TYPES = {
    **{0x08: ">u1", 0x09: ">i1", 0x0B: ">i2"},
    **{0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"},
}
_MAX_BYTES = 2**32  # 5 million images of 28x28: what a forged header can make us read


def find_sets(folder: Path) -> dict[str, Files]:
    """Returns the sets in a folder, by the prefix of IDX files or the name of an .npz.

    MNIST's own files have the prefix "".
    """
    found: dict[str, Files] = {}
    for file in sorted(folder.glob("*"), reverse=True):  # .gz first
        if (match := _FILE.fullmatch(file.name)) and file.is_file():
            prefix, split, kind = match.groups()
            name = _NAMES[f"{'test' if split == 't10k' else split}_{kind}"]
            files = found.setdefault(prefix, {})
            assert isinstance(files, dict)
            files.setdefault(name, file)
        elif file.suffix == ".npz":
            found[file.name] = file
    return found


def read_arrays(files: Files) -> Arrays:
    """Reads the arrays `x_train`, `y_train`, `x_test` and so on of a set."""
    if isinstance(files, Path):
        return _read_npz(files)
    return {name: read_idx(file) for name, file in files.items()}


def read_idx(path: Path) -> np.ndarray:
    """Reads the array of an IDX file of any type and shape, gzipped or not.

    Raises:
        InputError: it is damaged or no IDX file.
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if gzipped else open(path, "rb") as stream:
            zeros, code, axes = struct.unpack(">HBB", stream.read(4))
            shape = struct.unpack(f">{axes}I", stream.read(4 * axes))
            if zeros or not axes or code not in _TYPES:
                raise ValueError("its header is not that of an IDX file")
            dtype = np.dtype(_TYPES[code])
            expected = math.prod(shape) * dtype.itemsize
            if expected > _MAX_BYTES:
                raise ValueError(f"its header declares {expected} bytes, not 4 GB")
            items = stream.read(expected + 1)
        if len(items) != expected:
            held = "more" if len(items) > expected else f"{len(items)}"
            raise ValueError(f"it holds {held} bytes, not the declared {expected}")
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise InputError(
            f"{path} is not a usable IDX file: {error}; replace it with an intact one, "
            "gzipped or not"
        ) from None
    array = np.frombuffer(items, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_npz(path: Path) -> Arrays:
    """Reads the arrays of an `.npz` file, by their names in Keras."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            names = {_NAMES.get(name, name): name for name in archive.files}
            used = names.keys() & {*_NAMES.values(), "class_names"}
            arrays = {name: archive[names[name]] for name in used}
    except OSError:
        raise
    except Exception as error:  # NumPy's and zipfile's parsers raise many types
        raise InputError(  # without NumPy's message, which advises to load pickles
            f"cannot read {path} as an .npz file of arrays of numbers "
            f"({type(error).__name__}); give {NEEDED}"
        ) from None
    if unused := sorted(names.keys() - used):
        logging.warning("the arrays %s of %s are not used", ", ".join(unused), path)
    return arrays


def content_sha256(array: np.ndarray) -> str:
    """Returns the sha256 of the IDX file of bytes with the items of an array."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    return hashlib.sha256(header + array.astype(np.uint8).tobytes()).hexdigest()
