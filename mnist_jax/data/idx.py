"""Read IDX files, the format in which MNIST and its siblings are published.

Three kinds of files are read, recognized by their first bytes: gzipped IDX files, plain
ones, and NumPy arrays, which are converted to the IDX file with the same items.
"""

import contextlib
import gzip
import hashlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from mnist_jax.data.types import IMAGE_SHAPE
from mnist_jax.errors import InputError

MAX_ITEMS = 100_000  # 78 MB of images: limits what a forged header can make us read
# The type of the items, by the third byte of a file of any type.
_TYPES = {
    **{0x08: ">u1", 0x09: ">i1", 0x0B: ">i2"},
    **{0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"},
}
_MAX_BYTES = 16 + MAX_ITEMS * IMAGE_SHAPE[0] * IMAGE_SHAPE[1]

File = Path | zipfile.Path  # on disk or in a NumPy archive
READ_ERRORS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError)


class IdxError(InputError):
    """A file is not a valid IDX file."""


class ArrayError(IdxError):
    """A file is a NumPy array that cannot be converted to an IDX file."""


def content_sha256(file: File) -> str:
    """Returns the sha256 of a file's IDX content, the same for all kinds of files.

    Raises:
        IdxError: the file cannot be read, decompressed or converted.
    """
    with _open(file) as stream:
        return hashlib.sha256(stream.read(_MAX_BYTES + 1)).hexdigest()


def read_idx(file: File) -> np.ndarray:
    """Reads the array of an IDX file of any type and shape.

    Raises:
        IdxError: the file cannot be read or is not a valid IDX file.
    """
    with _open(file) as stream:
        start = stream.read(4)
        if len(start) < 4 or start[:2] != b"\x00\x00" or start[2] not in _TYPES:
            reason = f"it starts with 0x{start.hex()}, not with 0x0000 and a type"
            raise _error(file, reason)
        header = stream.read(4 * start[3])
        if not start[3] or len(header) < 4 * start[3]:
            raise _error(file, "its header is cut off")
        shape = [int(size) for size in np.frombuffer(header, ">u4")]
        dtype = np.dtype(_TYPES[start[2]])
        expected = math.prod(shape) * dtype.itemsize
        if expected > 2**32:  # 5 million images of 28x28
            reason = f"its header declares {expected} bytes, not 4 GB at most"
            raise _error(file, reason)
        items = stream.read(expected + 1)
        if len(items) != expected:
            more = "more" if len(items) > expected else f"{len(items)}"
            reason = f"it holds {more} bytes of items, not the declared {expected}"
            raise _error(file, reason)
    array = np.frombuffer(items, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def open_bytes(file: File) -> io.BufferedReader:
    """Opens the bytes of a file as they are."""
    return cast(io.BufferedReader, file.open("rb"))  # a zipfile.Path has peek() too


@contextlib.contextmanager
def _open(file: File) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Opens the IDX content of a file; every failure to read it becomes an IdxError."""
    try:
        with open_bytes(file) as stream:
            start = stream.peek(len(np.lib.format.MAGIC_PREFIX))
            if start.startswith(b"\x1f\x8b"):
                with gzip.GzipFile(fileobj=stream) as content:
                    yield content
            elif start.startswith(np.lib.format.MAGIC_PREFIX):
                yield _convert_array(file, stream)
            else:
                yield stream
    except READ_ERRORS as error:
        raise _error(file, f"it cannot be read ({error})") from None


def _convert_array(file: File, stream: IO[bytes]) -> io.BytesIO:
    """Returns the IDX content with the items of a NumPy array."""
    try:
        np.lib.format.read_magic(stream)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # NumPy's parser raises many types
        raise _error(file, f"its header is damaged ({error})") from None
    sizes_fit = 1 <= len(shape) <= 3 and all(0 < size < 2**32 for size in shape)
    if dtype.kind not in "iu" or fortran_order or not sizes_fit:
        order = " in Fortran order" if fortran_order else ""
        raise ArrayError(
            f"{file} is an array of {dtype}, shape {list(shape)}{order}; give integers "
            "0..255, shape [N,28,28] or [N]"
        )
    header = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
    content = stream.read(_MAX_BYTES * dtype.itemsize)
    items = np.frombuffer(content, dtype, len(content) // dtype.itemsize)
    if items.size and not 0 <= items.min() <= items.max() <= 255:
        raise ArrayError(
            f"{file} holds {items.min()}..{items.max()}; give integers 0..255"
        )
    return io.BytesIO(header + items.astype(np.uint8).tobytes())


def _error(file: File, reason: str) -> IdxError:
    """Returns the error for one file, including what to do about it."""
    return IdxError(
        f"{file} is not a usable IDX file: {reason}; replace it with an intact one, "
        "gzipped or not"
    )
