"""Read gzipped IDX files, the format in which MNIST and its siblings are published."""

import gzip
import os
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from mnist_jax.data.types import CLASSES, IMAGE_SHAPE
from mnist_jax.errors import InputError

MAX_ITEMS = 100_000  # 78 MB of images: limits what a forged header can make us read
_IMAGES_MAGIC = b"\x00\x00\x08\x03"  # 08: unsigned bytes, 03: three dimensions
_LABELS_MAGIC = b"\x00\x00\x08\x01"


class IdxError(InputError):
    """A file is not a valid gzipped IDX file of 28x28 images or of labels 0..9."""


def read_images(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the images of one gzipped IDX file.

    Args:
        path: a file such as `train-images-idx3-ubyte.gz`.

    Returns:
        `[N,28,28] uint8`, 0 is the background.

    Raises:
        IdxError: the file cannot be read or is not a valid IDX file of images.
    """
    return _read_array(Path(path), _IMAGES_MAGIC, IMAGE_SHAPE)


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the labels of one gzipped IDX file.

    Args:
        path: a file such as `train-labels-idx1-ubyte.gz`.

    Returns:
        `[N] uint8`, each 0..9.

    Raises:
        IdxError: the file cannot be read or is not a valid IDX file of labels.
    """
    labels = _read_array(Path(path), _LABELS_MAGIC, ())
    if labels.max() >= CLASSES:
        index = int(np.argmax(labels >= CLASSES))
        raise _error(path, f"label {index} is {labels[index]}, not in 0..9")
    return labels


def _read_array(path: Path, magic: bytes, item_shape: tuple[int, ...]) -> np.ndarray:
    """Decodes one file; every failure becomes an IdxError."""
    try:
        with gzip.open(path) as stream:
            return _decode(path, stream, magic, item_shape)
    except EOFError:
        raise _error(path, "its gzip stream ends too early") from None
    except (OSError, zlib.error) as error:
        raise _error(path, f"it cannot be read ({error})") from None


def _decode(
    path: Path,
    stream: IO[bytes] | gzip.GzipFile,
    magic: bytes,
    item_shape: tuple[int, ...],
) -> np.ndarray:
    """Decodes header and items; reads at most one byte past them."""
    got = stream.read(4)
    if got != magic:
        raise _error(path, f"it starts with 0x{got.hex()}, not 0x{magic.hex()}")
    header = stream.read(4 * (1 + len(item_shape)))
    if len(header) != 4 * (1 + len(item_shape)):
        raise _error(path, "its header is cut off")
    # Counts are signed in the format; read as unsigned, a negative one is too large.
    count, *shape = (int(size) for size in np.frombuffer(header, ">u4"))
    if tuple(shape) != item_shape:
        raise _error(path, f"its images have shape {shape}, not [28, 28]")
    if not 1 <= count <= MAX_ITEMS:
        raise _error(path, f"its header declares {count} items, not 1..{MAX_ITEMS}")

    expected = count * int(np.prod(item_shape, dtype=int))
    items = stream.read(expected)
    if len(items) != expected:
        raise _error(
            path, f"it holds {len(items)} bytes of items, not the declared {expected}"
        )
    # Reading to the end of the stream also makes gzip check its CRC.
    if stream.read(1):
        raise _error(path, f"bytes follow the {expected} that its header declares")
    return np.frombuffer(items, np.uint8).reshape(count, *item_shape)


def _error(path: str | os.PathLike[str], reason: str) -> IdxError:
    """Returns the error for one file, including what to do about it."""
    return IdxError(
        f"{os.fspath(path)} is not a usable IDX file: {reason}; replace it with the"
        " published file"
    )
