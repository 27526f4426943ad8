"""The per-user cache of decoded arrays; each file ends with its sha256."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax.records.files import (
    add_checksum,
    expand_home,
    replace_file,
    verify_checksum,
)

_HEADER_BYTES = 128  # size of the header that np.save writes for a small array


def cache_dir() -> Path:
    """Returns the folder for downloads and decoded arrays; it may not exist yet."""
    if folder := os.environ.get("MNIST_JAX_CACHE_DIR"):
        return expand_home(folder)
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand_home(parent) / "mnist_jax"


def load_or_build(
    key: str, item_shape: tuple[int, ...], build: Callable[[], np.ndarray]
) -> np.ndarray:
    """Returns the cached `[N, *item_shape] uint8` array of a key, or builds it."""
    path = cache_dir() / "arrays" / f"{key}.npy"
    array = read_entry(path, item_shape)
    if array is None:
        array = build()
        write_entry(path, array)
    return array


def read_entry(path: Path, item_shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns the array of a cache entry, or None if it is missing or damaged."""
    try:
        return _decode_array(item_shape, verify_checksum(path.read_bytes()))
    except OSError:
        return None
    except ValueError as error:
        logging.warning("%s is damaged (%s); rebuilding it", path, error)
        return None


def _decode_array(item_shape: tuple[int, ...], npy: memoryview) -> np.ndarray:
    """Returns an entry's array without a copy; raises ValueError if it is invalid."""
    header = io.BytesIO(npy[:_HEADER_BYTES])
    np.lib.format.read_magic(header)
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    if dtype != np.uint8 or shape[1:] != item_shape or len(shape) == 0:
        raise ValueError(f"it holds {dtype} of shape {shape}")
    # Raises, without allocating, if the shape does not match the bytes.
    return np.frombuffer(npy, np.uint8, offset=header.tell()).reshape(shape)


def write_entry(path: Path, array: np.ndarray) -> None:
    """Writes a cache entry, or logs a warning if the cache is not writable."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, add_checksum(buffer.getvalue()))
    except OSError as error:
        warn_unwritable(error)


def warn_unwritable(error: OSError) -> None:
    """Warns once that the cache is not writable, which only slows later starts."""
    logging.log_first_n(
        logging.WARNING,
        "cannot write to the cache folder %s (%s); set MNIST_JAX_CACHE_DIR to a"
        " writable folder to make later starts faster",
        1,
        cache_dir(),
        error,
    )
