"""Finds and reads the arrays of a dataset: IDX files, gzipped or not, and `.npz` files.

IDX is the format in which MNIST and its siblings are published.
"""

import gzip
import hashlib
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
# The arrays of an .npz, as in Keras, by their names in MedMNIST.
_NAMES = {
    f"{split}_{kind}": f"{axis}_{split}"
    for split in ("train", "val", "test")
    for axis, kind in (("x", "images"), ("y", "labels"))
}
NEEDED = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte (gzipped or not, with a prefix such as emnist-letters- or "
    "without), or an .npz file with x_train, y_train, x_test and y_test"
)
# The type of the items, by the third byte of an IDX file.
_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def find_sets(folder: Path) -> dict[str, Files]:
    """Returns the sets in a folder, by the prefix of IDX files or the name of an .npz.

    MNIST's own files have the prefix "".
    """
    found: dict[str, Files] = {}
    for file in sorted(folder.glob("*"), reverse=True):  # .gz first
        if match := _FILE.fullmatch(file.name):
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
    """Reads the array of an IDX file of any type and shape, gzipped or not."""
    content = path.read_bytes()
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        zeros, code, axes = struct.unpack_from(">HBB", content)
        if zeros or code not in _TYPES:
            raise ValueError("its header is not that of an IDX file")
        shape = struct.unpack_from(f">{axes}I", content, 4)
        items = np.frombuffer(content, _TYPES[code], offset=4 + 4 * axes)
        array = items.reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise InputError(
            f"{path} is not a usable IDX file: {error}; replace it with an intact one"
        ) from None
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _read_npz(path: Path) -> Arrays:
    """Reads the arrays of an `.npz` file, by their names in Keras."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            names = {_NAMES.get(name, name): name for name in archive.files}
            used = names.keys() & {*_NAMES.values(), "class_names"}
            arrays = {name: archive[names[name]] for name in used}
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
